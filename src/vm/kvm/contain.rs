//! Threads that handle what a guest says may make few system calls.
//!
//! A guest reaches this process through two doors: the exits of its CPUs and the bytes on its serial
//! lines. The threads behind them need little once they run, so a filter (seccomp) takes the rest
//! away: they open nothing, start nothing, connect to nothing, and write only to the descriptors
//! named. What such a thread tries beyond that fails with `EPERM` and is noted; the thread finds the
//! note when it comes round, and ends the machine with a verdict that names thread and call. Killing
//! the thread instead would leave its locks held, and killing the process would leave no verdict
//! (that is what the kernel does when the thread has signals blocked, as for starting a program).
//!
//! The filter is a hurdle, not a wall: the thread shares its memory with others. The wall is around
//! the process; see [`crate::vm::contain`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Once;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

thread_local! {
    /// Whether this thread has a filter of ours.
    static FILTERED: Cell<bool> = const { Cell::new(false) };
    /// The first call that it was refused, or [`NONE`].
    static REFUSED: Cell<libc::c_long> = const { Cell::new(NONE) };
}

const NONE: libc::c_long = -1;

/// A call that a thread tried and may not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The thread's name.
    pub(super) thread: String,
    /// The call's number.
    pub(super) call: libc::c_long,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(call, _)| *call == self.call) {
            Some((_, name)) => write!(f, "{name}"),
            None => write!(f, "number {}", self.call),
        }
    }
}

/// What is tried by somebody who breaks out.
const NAMES: [(libc::c_long, &str); 22] = [
    (libc::SYS_open, "open"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_read, "read"),
    (libc::SYS_write, "write"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_socket, "socket"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_fork, "fork"),
    (libc::SYS_vfork, "vfork"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_unlinkat, "unlinkat"),
];

/// What this thread was refused, if anything was.
pub(super) fn refused() -> Option<Refused> {
    let call = REFUSED.get();
    let name = || std::thread::current().name().unwrap_or("a thread").to_owned();
    (call != NONE).then(|| Refused { thread: name(), call })
}

/// What a thread that works the devices needs.
#[derive(Clone, Debug)]
pub(super) struct Doors {
    /// The events that it rings.
    pub(super) events: Vec<RawFd>,
    /// The machine, to which it sends interrupts.
    pub(super) messages: RawFd,
}

impl Doors {
    fn message(&self) -> Rule {
        /// `_IOW(KVMIO, 0xa5, struct kvm_msi)`
        const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
        Rule(vec![is(0, self.messages), condition(1, SeccompCmpOp::Eq, KVM_SIGNAL_MSI)])
    }
}

/// The thread that runs a CPU: it may tell KVM to, and ring the events.
///
/// Where the host refuses filters, it goes on without; whether that happened.
pub(super) fn cpu(vcpu: RawFd, doors: &Doors) -> bool {
    const KVM: u64 = 0xae << 8;
    let mut rules = common(&doors.events);
    let own = Rule(vec![is(0, vcpu), masked(1, 0xff00, KVM)]);
    rules.insert(libc::SYS_ioctl, vec![own, doors.message()]);
    filter(rules)
}

/// The thread that carries frames: it may also read and write the stream, and wait for both.
pub(super) fn carrier(stream: RawFd, wake: RawFd, doors: &Doors) -> bool {
    let mut writes = doors.events.clone();
    writes.push(stream);
    let mut rules = common(&writes);
    rules.insert(libc::SYS_ioctl, vec![doors.message()]);
    let from = |fds: &[RawFd]| fds.iter().map(|fd| Rule(vec![is(0, *fd)])).collect::<Vec<_>>();
    for call in [libc::SYS_read, libc::SYS_recvfrom] {
        rules.insert(call, from(&[stream, wake]));
    }
    rules.insert(libc::SYS_sendto, from(&[stream]));
    for call in [libc::SYS_poll, libc::SYS_ppoll] {
        rules.insert(call, Vec::new());
    }
    filter(rules)
}

/// Whether the host takes filters at all; why not.
///
/// # Errors
/// The host's words.
pub fn offered() -> Result<(), String> {
    // A filter stays with a thread to its end, so one that ends at once tries it.
    let tried = std::thread::spawn(|| {
        let rules = BTreeMap::from([(libc::SYS_ptrace, Vec::new())]);
        let program = compile(rules, SeccompAction::Allow, SeccompAction::Errno(1))?;
        apply_filter(&program).map_err(|e| e.to_string())
    });
    tried.join().unwrap_or_else(|_| Err("a thread that tried it failed".to_owned()))
}

/// Conditions that all hold.
struct Rule(Vec<SeccompCondition>);

type Rules = BTreeMap<libc::c_long, Vec<Rule>>;

fn condition(arg: u8, op: SeccompCmpOp, value: u64) -> SeccompCondition {
    // Fails for an argument beyond the sixth alone.
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)
        .expect("a call has six arguments")
}

fn is(arg: u8, value: i32) -> SeccompCondition {
    condition(arg, SeccompCmpOp::Eq, u64::from(value.cast_unsigned()))
}

fn masked(arg: u8, mask: u64, value: u64) -> SeccompCondition {
    condition(arg, SeccompCmpOp::MaskedEq(mask), value)
}

/// What every thread does: take and give memory, lock, wait, report to standard error, end.
fn common(writes: &[RawFd]) -> Rules {
    const FREE: [libc::c_long; 20] = [
        libc::SYS_futex,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_sched_yield,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getrandom,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
    ];
    let mut rules: Rules = FREE.into_iter().map(|call| (call, Vec::new())).collect();
    // Memory, but none that holds code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![Rule(vec![masked(2, libc::PROT_EXEC as u64, 0)])]);
    }
    // Closing a descriptor may begin with a look at its flags.
    let looks = [libc::F_GETFD, libc::F_GETFL].map(|what| Rule(vec![is(1, what)]));
    rules.insert(libc::SYS_fcntl, looks.into());
    let ours = std::process::id();
    rules.insert(libc::SYS_tgkill, vec![Rule(vec![is(0, ours.cast_signed())])]);
    let writes = writes.iter().chain(&[libc::STDERR_FILENO]);
    rules.insert(libc::SYS_write, writes.map(|fd| Rule(vec![is(0, *fd)])).collect());
    rules
}

fn compile(
    rules: Rules,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, String> {
    let rule = |Rule(conditions)| SeccompRule::new(conditions).map_err(|e| e.to_string());
    let rules = rules
        .into_iter()
        .map(|(call, rules)| Ok((call, rules.into_iter().map(rule).collect::<Result<_, _>>()?)))
        .collect::<Result<_, String>>()?;
    let arch = std::env::consts::ARCH.try_into().map_err(|_| "no such architecture")?;
    let filter = SeccompFilter::new(rules, others, these, arch).map_err(|e| e.to_string())?;
    filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())
}

/// Puts the filter on this thread.
fn filter(mut rules: Rules) -> bool {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(listen);
    let refuses = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let quietly = compile(reads(), SeccompAction::Allow, refuses);
    rules.extend(reads());
    let strictly = compile(rules, SeccompAction::Trap, SeccompAction::Allow);
    let (Ok(quietly), Ok(strictly)) = (quietly, strictly) else { return false };
    FILTERED.set(true);
    // Of two filters the one that refuses counts.
    let applied = apply_filter(&quietly).and_then(|()| apply_filter(&strictly)).is_ok();
    FILTERED.set(applied);
    applied
}

/// Opening a file in order to read it: the C library's allocator looks into one of /proc's, and can
/// do without. Refused without anybody being accused.
fn reads() -> Rules {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    Rules::from([(libc::SYS_openat, vec![Rule(vec![is(2, flags)])])])
}

/// Takes the signal that a refused call sends.
fn listen() {
    // SAFETY: the handler touches thread-local cells and the registers it is handed; all fields of
    // the action are set or zero, which is valid for them.
    #[allow(unsafe_code)]
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
    }
}

/// Notes the call, and makes it fail.
extern "C" fn trapped(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// `si_syscall` in a `siginfo_t` of a SIGSYS, in `int`s from its start.
    const CALL: usize = 6;
    let ours = FILTERED.try_with(Cell::get).unwrap_or(false);
    // SAFETY: with SA_SIGINFO the kernel passes a `siginfo_t`, whose layout for SIGSYS is fixed
    // (`include/uapi/asm-generic/siginfo.h`), and a `ucontext_t`, both of them ours until we return.
    // Everything called is async-signal-safe.
    #[allow(unsafe_code)]
    unsafe {
        if !ours {
            // Somebody else's filter on somebody else's thread: as if we were not here.
            libc::signal(libc::SIGSYS, libc::SIG_DFL);
            libc::raise(libc::SIGSYS);
            return;
        }
        let call = libc::c_long::from(*info.cast::<i32>().add(CALL));
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        registers[libc::REG_RAX as usize] = i64::from(-libc::EPERM);
        let _ = REFUSED.try_with(|refused| {
            if refused.get() == NONE {
                refused.set(call);
            }
        });
        super::vcpu::leave_guest();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{ErrorKind, Read, Write};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Runs in a thread with a filter, which must be there: without one the test shows nothing.
    fn filtered<R: Send + 'static>(
        name: &str,
        filter: impl FnOnce() -> bool + Send + 'static,
        what: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        if let Err(why) = offered() {
            println!("not shown, this host takes no filters: {why}");
            return None;
        }
        let thread = std::thread::Builder::new().name(name.to_owned());
        let run = move || {
            assert!(filter(), "the filter is there");
            what()
        };
        Some(thread.spawn(run).unwrap().join().unwrap())
    }

    #[test]
    fn a_filtered_thread_works_but_opens_starts_and_connects_nothing() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = ours.as_raw_fd();
        theirs.write_all(b"ab").unwrap();
        let done = filtered(
            "kvm-test",
            move || carrier(stream, stream, &Doors { events: Vec::new(), messages: -1 }),
            move || {
                // What it is there for.
                let mut piece = [0; 2];
                ours.read_exact(&mut piece).unwrap();
                ours.write_all(&piece).unwrap();
                let large = vec![1u8; 8 << 20];
                assert_eq!(large.iter().map(|b| usize::from(*b)).sum::<usize>(), large.len());
                drop(large);
                // Reading a file is refused, without anybody being accused.
                let refusal = |e: std::io::Error| e.kind() == ErrorKind::PermissionDenied;
                assert!(File::open("/proc/self/status").is_err_and(refusal));
                assert_eq!(super::refused(), None);
                assert!(UdpSocket::bind("127.0.0.1:0").is_err_and(refusal));
                let first = super::refused();
                let write = OpenOptions::new().append(true).create(true).open("/tmp/escaped");
                assert!(write.is_err_and(refusal));
                assert_eq!(super::refused(), first, "the first one counts");
                // It goes on and ends like any other.
                ours.write_all(b"!").unwrap();
                first.map(|refused| (refused.to_string(), refused.thread))
            },
        );
        if let Some(first) = done {
            assert_eq!(first, Some(("socket".to_owned(), "kvm-test".to_owned())));
            let mut got = [0; 3];
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"ab!");
        }
    }

    #[test]
    fn a_cpus_thread_writes_only_where_it_may() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, _kept) = UnixStream::pair().unwrap();
        let allowed = ours.as_raw_fd();
        let done = filtered(
            "kvm-cpu-7",
            move || cpu(-1, &Doors { events: vec![allowed], messages: -1 }),
            move || {
                assert!(rustix::io::write(&ours, b"x").is_ok());
                assert!(super::refused().is_none());
                assert!(rustix::io::write(&other, b"x").is_err());
                super::refused().map(|refused| refused.to_string())
            },
        );
        if let Some(refused) = done {
            assert_eq!(refused.as_deref(), Some("write"));
        }
        drop(theirs);
        let odd = Refused { thread: "t".into(), call: 999 };
        assert_eq!(odd.to_string(), "number 999");
    }

    /// A guest in real mode that writes to a port, with our devices and nothing else.
    fn escape() -> Option<crate::vm::kvm::vcpu::End> {
        use crate::vm::kvm::devices::{Devices, ESCAPE, Irq};
        use crate::vm::kvm::vcpu::Vcpus;
        use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
        use vmm_sys_util::eventfd::EventFd;

        let kvm = kvm_ioctls::Kvm::new().ok()?;
        let vm = kvm.create_vm().unwrap();
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let [low, high] = ESCAPE.to_le_bytes();
        // mov dx, ESCAPE; out dx, al; jmp to itself
        mem.write_slice(&[0xba, low, high, 0xee, 0xeb, 0xfe], GuestAddress(0x1000)).unwrap();
        let slot = kvm_bindings::kvm_userspace_memory_region {
            memory_size: 0x4000,
            userspace_addr: mem.iter().next().unwrap().as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: `mem` is dropped after the CPU's thread has ended, at the end of this function.
        #[allow(unsafe_code)]
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let cpu = vm.create_vcpu(0).unwrap();
        let mut sregs = cpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        cpu.set_sregs(&sregs).unwrap();
        let mut regs = cpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (0x1000, 2);
        cpu.set_regs(&regs).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let irq = || Irq(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let console = crate::vm::Console::new(0);
        let virtio = crate::vm::kvm::virtio::Virtio::alone(1 << 20).unwrap();
        let devices = Devices::new(console, ours, [irq(), irq()], virtio).unwrap();
        let traps = crate::vm::kvm::debug::Traps::default();
        let mut vcpus = Vcpus::start(vec![cpu], &devices, &traps, None).unwrap();
        vcpus.go();
        let end = vcpus.gate().wait_for_end(|| {});
        vcpus.end();
        devices.end();
        drop(mem);
        end
    }

    #[test]
    fn a_cpu_that_tries_to_break_out_ends_the_machine() {
        use crate::vm::ExitKind;
        use crate::vm::kvm::vcpu::End;

        if let (Ok(()), Ok(_)) = (offered(), crate::vm::kvm_speed()) {
            match escape() {
                Some(End::Refused(refused)) => {
                    assert_eq!(refused.to_string(), "socket");
                    assert_eq!(refused.thread, "kvm-cpu-0");
                }
                other => panic!("{other:?}"),
            }
        }
        let end = ExitKind::Contained { thread: "kvm-cpu-0".into(), call: "socket".into() };
        assert!(end.is_engine_fault());
        assert_eq!(
            end.to_string(),
            "the machine was ended because its thread kvm-cpu-0 tried a system call that it may \
             not make (socket): the guest tried to break out, or this program has a bug; this is \
             no fault of the scheduler"
        );
    }
}
