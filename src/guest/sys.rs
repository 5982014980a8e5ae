//! System calls that neither `std` nor `rustix` wraps, each behind a safe function.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use cryoscope::wire::Policy;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

/// `SCHED_EXT` of the kernel's `include/uapi/linux/sched.h`, which libc does not define yet.
const SCHED_EXT: i32 = 7;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Puts a process under a scheduling policy. With `reset_on_fork`, its children start as
/// ordinary SCHED_OTHER processes.
pub(crate) fn set_policy(pid: Option<Pid>, policy: Policy, reset_on_fork: bool) -> io::Result<()> {
    let (number, priority) = match policy {
        Policy::Normal => (libc::SCHED_OTHER, 0),
        Policy::Batch => (libc::SCHED_BATCH, 0),
        Policy::Idle => (libc::SCHED_IDLE, 0),
        Policy::Fifo(p) => (libc::SCHED_FIFO, p),
        Policy::Rr(p) => (libc::SCHED_RR, p),
        Policy::Ext => (SCHED_EXT, 0),
    };
    let number = if reset_on_fork { number | libc::SCHED_RESET_ON_FORK } else { number };
    let param = libc::sched_param { sched_priority: i32::try_from(priority).unwrap_or(i32::MAX) };
    // SAFETY: `param` outlives the call, which only reads it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::sched_setscheduler(Pid::as_raw(pid), number, &raw const param) };
    check(result).map(drop)
}

/// The number of a process's scheduling policy.
pub(crate) fn policy(pid: Option<Pid>) -> io::Result<u32> {
    // SAFETY: no memory is passed.
    #[allow(unsafe_code)]
    let result = unsafe { libc::sched_getscheduler(Pid::as_raw(pid)) };
    Ok((check(result)? & !libc::SCHED_RESET_ON_FORK) as u32)
}

/// Blocks SIGCHLD and gives a non-blocking descriptor that is readable when a child has ended.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialized by `sigemptyset` before it is used, and no call keeps it.
    #[allow(unsafe_code)]
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        check(libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Turns the loopback interface on.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid `ifreq`; both ioctls read and write that one structure, whose
    // name is NUL-terminated and whose flags are the member that they use.
    #[allow(unsafe_code)]
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request))?;
    }
    Ok(())
}

/// A program to execute.
pub(crate) struct Image {
    /// The file to execute.
    pub(crate) path: CString,
    /// Its arguments, the name included.
    pub(crate) argv: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub(crate) envp: Vec<CString>,
}

/// What a child process is to become.
#[derive(Clone, Copy)]
pub(crate) enum Role<'a> {
    /// Another program.
    Program(&'a Image),
    /// A part of this one, without executing it anew (under emulation that takes a tenth of a
    /// second); what it returns is its exit code.
    Own(&'a dyn Fn() -> i32),
}

/// What a child process starts with.
pub(crate) struct Start<'a> {
    /// Standard input, output and error.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// The pipe on which it says that it could not start, as descriptor [`REPORT`]. Other
    /// programs find it closed.
    pub(crate) report: BorrowedFd<'a>,
    /// An open `cgroup.procs` file of the group that it enters before anything else.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// A pipe that the child finds as descriptor [`GO`], to wait at until the agent closes its
    /// end. Until then it runs ahead of all ordinary processes, under the agent's own policy, so
    /// that whatever the scheduler under test does, the child comes that far.
    pub(crate) go: Option<BorrowedFd<'a>>,
}

/// The descriptor of the report pipe in a child.
const REPORT: RawFd = 3;
/// The descriptor of the starting line in a child, if it has one.
const GO: RawFd = 4;
/// The agent's own policy, which its children do not inherit unless they are to.
const AGENT: Policy = Policy::Fifo(1);

/// Puts PID 1 ahead of all ordinary processes.
pub(crate) fn take_precedence() -> io::Result<()> {
    set_policy(None, AGENT, true)
}

/// Forks; the child enters its cgroup and a process group of its own, closes what is the
/// agent's, and takes on its role. Its failure to do so arrives on the report pipe. The parent
/// never waits: a child that gets no CPU (a stalled scheduler, a starved group) must not stop the
/// agent.
pub(crate) fn spawn(role: Role<'_>, start: &Start<'_>) -> io::Result<Pid> {
    let urgent = start.go.is_some() && set_policy(None, AGENT, false).is_ok();
    // SAFETY: the agent has one thread, so the child may run any code. It never returns into the
    // caller: all of it happens in `child`, which does not unwind and ends in `_exit`.
    #[allow(unsafe_code)]
    let forked = check(unsafe { libc::fork() });
    if let Ok(0) = forked {
        child(role, start);
    }
    if urgent {
        take_precedence()?;
    }
    Pid::from_raw(forked?).ok_or_else(|| io::Error::other("fork gave no process"))
}

/// The child's side of [`spawn`].
fn child(role: Role<'_>, start: &Start<'_>) -> ! {
    let live = || -> i32 {
        let done = prepare(start).and_then(|()| match role {
            Role::Own(life) => Ok(life()),
            Role::Program(image) => execute(image),
        });
        done.unwrap_or_else(|error| {
            let what = match role {
                Role::Program(image) => image.path.to_string_lossy(),
                Role::Own(_) => "a process of the agent".into(),
            };
            let text = format!("cannot run {what}: {}", reason(&error));
            // One of them is open; a failure to report changes nothing.
            for fd in [start.report.as_raw_fd(), REPORT] {
                // SAFETY: `text` is valid for its length; a bad descriptor is refused.
                #[allow(unsafe_code)]
                let _ = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
            }
            127
        })
    };
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(live)).unwrap_or(101);
    let _ = io::Write::flush(&mut io::stdout());
    // SAFETY: ends this process, without running anything that was registered for the agent's.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

fn prepare(start: &Start<'_>) -> io::Result<()> {
    if let Some(procs) = start.cgroup
        && rustix::io::write(procs, b"0").is_err()
    {
        // A group without real-time runtime of its own takes ordinary processes only.
        set_policy(None, Policy::Normal, false)?;
        rustix::io::write(procs, b"0")?;
    }
    // SAFETY: plain calls on descriptors that are open; nothing that this process still uses is
    // among those closed; the signal set is initialized before use.
    #[allow(unsafe_code)]
    unsafe {
        check(libc::setpgid(0, 0))?;
        for (target, fd) in (0..).zip(start.stdio) {
            check(libc::dup2(fd.as_raw_fd(), target))?;
        }
        if start.report.as_raw_fd() != REPORT {
            check(libc::dup2(start.report.as_raw_fd(), REPORT))?;
        }
        check(libc::fcntl(REPORT, libc::F_SETFD, libc::FD_CLOEXEC))?;
        let mut first = GO as libc::c_uint;
        if let Some(go) = start.go {
            if go.as_raw_fd() != GO {
                check(libc::dup2(go.as_raw_fd(), GO))?;
            }
            first += 1;
        }
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// Returns only what went wrong.
fn execute(image: &Image) -> io::Result<i32> {
    let pointers = |list: &[CString]| {
        let mut all: Vec<*const libc::c_char> = list.iter().map(|s| s.as_ptr()).collect();
        all.push(std::ptr::null());
        all
    };
    let (argv, envp) = (pointers(&image.argv), pointers(&image.envp));
    // SAFETY: both are NULL-terminated arrays of strings that outlive the call.
    #[allow(unsafe_code)]
    unsafe {
        check(libc::execve(image.path.as_ptr(), argv.as_ptr(), envp.as_ptr()))
    }
}

/// The report pipe of this process, a child of [`spawn`]; to be called once.
pub(crate) fn take_report() -> OwnedFd {
    // SAFETY: `prepare` put the pipe there, and nothing else in this process owns the number.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(REPORT)
    }
}

/// Waits until the agent opens the starting line of this process, a child of [`spawn`] that has
/// one.
pub(crate) fn wait_for_go() {
    // SAFETY: `prepare` put the pipe there, and nothing else in this process owns the number.
    #[allow(unsafe_code)]
    let go = unsafe { OwnedFd::from_raw_fd(GO) };
    while rustix::io::read(&go, &mut [0]) == Err(rustix::io::Errno::INTR) {}
}

/// Sends a signal to every process but this one.
pub(crate) fn kill_everything() {
    // SAFETY: a plain system call; the kernel exempts PID 1, which is the caller.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(-1, libc::SIGKILL);
    }
}

fn termination_signals() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initializes the set before anything else uses it.
    #[allow(unsafe_code)]
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        set
    }
}

/// Keeps SIGTERM and SIGINT until [`wait_for_termination`] takes them.
pub(crate) fn block_termination() {
    let set = termination_signals();
    // SAFETY: the set is initialized and only read.
    #[allow(unsafe_code)]
    unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Goes on in a new process, in a session of its own, with nothing to read and nobody to talk to.
/// This one ends when that has come so far: whoever started it may then kill its group. Descriptors
/// stay open.
pub(crate) fn to_background() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (ready, ready_end) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the caller has one thread, so the child may run any code.
    #[allow(unsafe_code)]
    let forked = check(unsafe { libc::fork() })?;
    if forked == 0 {
        rustix::process::setsid()?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        rustix::io::write(&ready_end, b"1")?;
        return Ok(());
    }
    drop(ready_end);
    let came = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut [0; 1]));
    // SAFETY: ends this process; what it holds is the other's.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(i32::from(came != Ok(1)))
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) fn wait_for_termination() {
    let set = termination_signals();
    let mut signal = 0;
    // SAFETY: the set is initialized, and `signal` outlives the call that writes it.
    #[allow(unsafe_code)]
    unsafe {
        while libc::sigwait(&raw const set, &raw mut signal) == libc::EINTR {}
    }
}

/// An error as the kernel means it, without Rust's "(os error 22)".
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
