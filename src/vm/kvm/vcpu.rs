//! The threads that run the guest's CPUs, and how all of them are made to stand still.
//!
//! ```text
//!            stop                 every CPU has come
//!   Going ─────────▶ Stopping ──────────────────────▶ Standing
//!     ▲                 │ too late                        │ go
//!     └─────────────────┴─────────────────────────────────┘
//!                 end, from anywhere: Ending; the threads leave
//! ```
//!
//! A CPU that runs into a trap ([`super::debug`]) orders all to stand, itself included.
//!
//! A CPU in the guest is called by a signal. Its handler sets `immediate_exit` in the page that the
//! thread shares with KVM, so that a call that arrives just before `KVM_RUN` is not lost: that then
//! returns at once. See `Documentation/virt/kvm/api.rst`, `KVM_RUN`.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::contain::{self, Refused};
use super::debug::{self, Next, Traps};
use super::devices::{Devices, Ending};
use super::internal;
use crate::vm::host::pin_to;
use crate::vm::{LateCpu, Trapped};

/// How long a call may go unheard before it is repeated.
const REPEAT: Duration = Duration::from_millis(2);
/// How often the devices are looked after, whatever the guest does.
const NOW_AND_THEN: Duration = Duration::from_millis(100);

thread_local! {
    /// The page that this thread shares with KVM.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal that calls a CPU out of the guest.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn called(_: libc::c_int) {
    leave_guest();
}

/// Makes this thread's CPU leave the guest at the latest when it next enters it; for signal handlers.
pub(super) fn leave_guest() {
    let _ = RUN.try_with(|run| {
        let run = run.get();
        if !run.is_null() {
            // SAFETY: the page stays mapped while the thread has its vCPU, which clears the
            // pointer before it lets go of it; a volatile store of one byte is all that is done,
            // and the handler runs on the very thread that otherwise writes it.
            #[allow(unsafe_code)]
            unsafe {
                (&raw mut (*run).immediate_exit).write_volatile(1);
            }
        }
    });
}

/// Lets the signal come; whatever else the program does with it is nobody's business here.
fn listen() {
    // SAFETY: the handler touches one thread-local page and nothing else; all fields of the action
    // are set or zero, which is valid for them.
    #[allow(unsafe_code)]
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = called as *const () as usize;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
    }
}

/// What the CPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Go,
    Stand,
    End,
}

/// How a guest came to its end by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It switched itself off or reset itself.
    Asked(Ending),
    /// A CPU could not deliver a fault.
    TripleFault {
        /// Which CPU.
        cpu: u32,
    },
    /// KVM could not go on.
    Failed(String),
    /// A thread tried a system call that its filter refuses.
    Refused(Refused),
}

struct State {
    order: Order,
    /// The CPUs that stand.
    standing: Vec<bool>,
    /// Where each was when it last left the guest because it was called.
    seen: Vec<Option<Seen>>,
    /// When all were last told to go.
    went: Instant,
    /// The CPU that does not stand, for tests.
    held_back: Option<usize>,
    /// The threads, from when they come until they leave.
    threads: Vec<Option<libc::pthread_t>>,
    /// How many have left.
    left: usize,
    end: Option<End>,
}

/// Where a CPU was.
#[derive(Clone, Copy)]
struct Seen {
    rip: Option<u64>,
    at: Instant,
}

/// What came of an order to stand.
pub(super) enum Stand {
    /// All do.
    Still {
        /// How long after the first the last one left the guest.
        skew: Duration,
    },
    /// The machine has ended, or is ending.
    Ended,
    /// These did not come in time; all go on.
    Late(Vec<LateCpu>),
}

impl State {
    /// How long after the first CPU the last one left the guest. One that had not gone yet when
    /// it was to stand again does not count.
    fn skew(&self) -> Duration {
        let times = || self.seen.iter().flatten().map(|seen| seen.at).filter(|at| *at >= self.went);
        match (times().min(), times().max()) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        }
    }

    /// What is known of a CPU that has not come since `start`.
    fn late(&self, cpu: usize, start: Instant) -> LateCpu {
        let seen = self.seen[cpu];
        let doing = match seen {
            Some(seen) if seen.at >= start => "called out of the guest, and went back into it",
            _ => "in the guest or at work for it, and did not hear",
        };
        let seen = seen.and_then(|seen| Some((seen.rip?, seen.at.elapsed())));
        LateCpu { cpu: cpu as u32, doing: doing.to_owned(), seen }
    }
}

/// Where orders are given and obeyed.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn new(cpus: usize) -> Arc<Gate> {
        let standing = vec![false; cpus];
        let threads = vec![None; cpus];
        let seen = vec![None; cpus];
        let (order, left, end, held_back) = (Order::Stand, 0, None, None);
        let went = Instant::now();
        let state = State { order, standing, seen, went, held_back, threads, left, end };
        Arc::new(Gate { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        match self.changed.wait_timeout(state, most) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    /// Whether a CPU may go; waits while it is to stand.
    fn pass(&self, cpu: usize) -> bool {
        let mut state = self.lock();
        loop {
            match state.order {
                Order::Go => {
                    state.standing[cpu] = false;
                    return true;
                }
                Order::End => return false,
                Order::Stand if state.held_back == Some(cpu) => {
                    state.standing[cpu] = false;
                    return true;
                }
                Order::Stand => {
                    if !std::mem::replace(&mut state.standing[cpu], true) {
                        self.changed.notify_all();
                    }
                    state = self.wait(state, Duration::from_secs(3600));
                }
            }
        }
    }

    /// Notes where a CPU was that has been called.
    fn saw(&self, cpu: usize, rip: Option<u64>) {
        self.lock().seen[cpu] = Some(Seen { rip, at: Instant::now() });
    }

    /// Names the CPU that does not stand any more, for tests.
    pub(super) fn hold_back(&self, cpu: Option<u32>) {
        self.lock().held_back = cpu.map(|cpu| cpu as usize);
        self.changed.notify_all();
    }

    fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.order != Order::End {
            state.order = order;
        }
        if order == Order::Go {
            state.went = Instant::now();
        }
        self.changed.notify_all();
    }

    /// Ends the machine; the first reason counts.
    pub(super) fn end(&self, why: Option<End>) {
        let mut state = self.lock();
        state.order = Order::End;
        if state.end.is_none() {
            state.end = why;
        }
        self.changed.notify_all();
    }

    /// Makes all stand on behalf of a CPU that ran into a trap, and will stand itself.
    fn stand_all(&self, cpu: usize) {
        self.order(Order::Stand);
        self.call(|other, state| other != cpu && !state.standing[other]);
    }

    /// Calls CPUs out of the guest, those that `wanted` says.
    fn call(&self, wanted: impl Fn(usize, &State) -> bool) {
        let state = self.lock();
        for (cpu, thread) in state.threads.iter().enumerate() {
            let Some(thread) = thread.filter(|_| wanted(cpu, &state)) else { continue };
            // SAFETY: a thread takes itself off the list, under the lock that is held here, before
            // it ends, so the handle is valid; the handler is installed before any thread starts.
            #[allow(unsafe_code)]
            unsafe {
                libc::pthread_kill(thread, signal());
            }
        }
    }

    /// Calls until no thread is left, once the machine is to end.
    pub(super) fn call_until_all_have_left(&self) {
        loop {
            self.call(|_, _| true);
            let state = self.lock();
            if state.left == state.threads.len() {
                return;
            }
            drop(self.wait(state, REPEAT));
        }
    }

    /// Waits until the machine is to end; why, unless it was told to. Does something `meanwhile`,
    /// every now and then.
    pub(super) fn wait_for_end(&self, meanwhile: impl Fn()) -> Option<End> {
        let mut state = self.lock();
        while state.order != Order::End {
            drop(self.wait(state, NOW_AND_THEN));
            meanwhile();
            state = self.lock();
        }
        state.end.clone()
    }
}

/// A CPU: what reads its registers while it stands, and its thread.
struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    thread: JoinHandle<()>,
}

/// All CPUs of a machine.
pub(super) struct Vcpus {
    gate: Arc<Gate>,
    cpus: Vec<Vcpu>,
}

impl Vcpus {
    /// Starts the threads, each bound to its CPU of the host if there are `pins`; the CPUs stand
    /// until they are told to go.
    ///
    /// # Errors
    /// The host's, of threads.
    pub(super) fn start(
        fds: Vec<VcpuFd>,
        devices: &Arc<Devices>,
        traps: &Traps,
        pins: Option<&[u32]>,
    ) -> std::io::Result<Self> {
        listen();
        let gate = Gate::new(fds.len());
        let mut all = Vcpus { gate: gate.clone(), cpus: Vec::new() };
        for (cpu, fd) in fds.into_iter().enumerate() {
            let fd = Arc::new(Mutex::new(fd));
            let (devices, traps) = (devices.clone(), traps.clone());
            let runner = Runner { cpu, fd: fd.clone(), gate: gate.clone(), devices, traps };
            let thread = std::thread::Builder::new().name(format!("kvm-cpu-{cpu}"));
            let pin = pins.and_then(|pins| pins.get(cpu)).copied();
            match thread.spawn(move || runner.run(pin)) {
                Ok(thread) => all.cpus.push(Vcpu { fd, thread }),
                Err(e) => {
                    all.end();
                    return Err(e);
                }
            }
        }
        Ok(all)
    }

    /// Where the end is waited for.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Lets all go.
    pub(super) fn go(&self) {
        self.gate.order(Order::Go);
    }

    /// Makes all stand still, within `patience`.
    pub(super) fn stand(&self, patience: Duration) -> Stand {
        let start = Instant::now();
        let deadline = start + patience;
        self.gate.order(Order::Stand);
        let mut state = self.gate.lock();
        loop {
            // One that is held back may not have gone yet since it stood before.
            let stands = |cpu, stands: bool| stands && state.held_back != Some(cpu);
            let missing = |(cpu, s): (usize, &bool)| (!stands(cpu, *s)).then_some(cpu);
            let missing: Vec<usize> =
                state.standing.iter().enumerate().filter_map(missing).collect();
            if state.order == Order::End {
                return Stand::Ended;
            }
            if missing.is_empty() {
                return Stand::Still { skew: state.skew() };
            }
            if Instant::now() >= deadline {
                let late = missing.into_iter().map(|cpu| state.late(cpu, start)).collect();
                drop(state);
                self.go();
                return Stand::Late(late);
            }
            drop(state);
            self.gate.call(|cpu, state| !state.standing[cpu]);
            state = self.gate.lock();
            if state.standing.iter().any(|stands| !stands) {
                state = self.gate.wait(state, REPEAT);
            }
        }
    }

    /// What one reads of a CPU that stands, or sets; `None` of one that is in the guest.
    pub(super) fn with<R>(&self, cpu: u32, f: impl FnOnce(&VcpuFd) -> R) -> Option<R> {
        match self.cpus.get(cpu as usize)?.fd.try_lock() {
            Ok(fd) => Some(f(&fd)),
            Err(TryLockError::Poisoned(fd)) => Some(f(&fd.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Ends all threads and waits for them.
    pub(super) fn end(&mut self) {
        self.gate.end(None);
        for cpu in &self.cpus {
            while !cpu.thread.is_finished() {
                self.gate.call(|_, _| true);
                let state = self.gate.lock();
                drop(self.gate.wait(state, REPEAT));
            }
        }
        for cpu in self.cpus.drain(..) {
            let _ = cpu.thread.join();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.end();
    }
}

/// A thread that may be called, for as long as this value is there, however it ends.
struct Present<'a> {
    gate: &'a Gate,
    cpu: usize,
}

impl<'a> Present<'a> {
    fn enter(gate: &'a Gate, cpu: usize) -> Self {
        // SAFETY: asks a thread for its own handle.
        #[allow(unsafe_code)]
        let this = unsafe { libc::pthread_self() };
        gate.lock().threads[cpu] = Some(this);
        Present { gate, cpu }
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.threads[self.cpu] = None;
        state.left += 1;
        drop(state);
        self.gate.changed.notify_all();
    }
}

/// What a CPU's thread has.
struct Runner {
    cpu: usize,
    fd: Arc<Mutex<VcpuFd>>,
    gate: Arc<Gate>,
    devices: Arc<Devices>,
    traps: Traps,
}

/// Why a CPU left the guest for good, or just for a moment.
enum Left {
    Called,
    End(End),
}

impl Runner {
    fn run(self, pin: Option<u32>) {
        let _present = Present::enter(&self.gate, self.cpu);
        if let Some(Err(e)) = pin.map(pin_to) {
            let why = format!("CPU {} cannot be bound to one of the host: {e}", self.cpu);
            self.gate.end(Some(End::Failed(why)));
        }
        let vcpu = self.fd.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd();
        contain::cpu(vcpu, self.devices.doors());
        while self.gate.pass(self.cpu) {
            let mut fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
            RUN.set(fd.get_kvm_run());
            let left = self.until_called(&mut fd);
            RUN.set(std::ptr::null_mut());
            drop(fd);
            if let Left::End(why) = left {
                self.gate.end(Some(why));
            }
        }
    }

    /// Has all CPUs stand because this one ran into traps.
    fn stand(&self, hits: Vec<Trapped>) -> Left {
        self.gate.stand_all(self.cpu);
        self.traps.tell(hits);
        Left::Called
    }

    /// Runs the guest until somebody calls, or it ends.
    fn until_called(&self, fd: &mut VcpuFd) -> Left {
        loop {
            if let Some(refused) = contain::refused() {
                return Left::End(End::Refused(refused));
            }
            let left = fd.run();
            self.devices.catch_up();
            match left {
                Ok(VcpuExit::IoOut(debug::PORT, data)) => {
                    let data = data.to_vec();
                    match self.traps.at_instruction(self.cpu as u32, fd) {
                        Ok(hits) if hits.is_empty() => {
                            if let Some(ending) = self.devices.write(debug::PORT, &data) {
                                return Left::End(End::Asked(ending));
                            }
                        }
                        Ok(hits) => return self.stand(hits),
                        Err(why) => return Left::End(End::Failed(why)),
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    if let Some(ending) = self.devices.write(port, data) {
                        return Left::End(End::Asked(ending));
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => self.devices.read(port, data),
                Ok(VcpuExit::MmioRead(at, data)) => self.devices.read_memory(at, data),
                Ok(VcpuExit::MmioWrite(at, data)) => self.devices.write_memory(at, data),
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Debug(exit)) => match self.traps.judge(self.cpu as u32, &exit) {
                    (Next::Inject, _) => {
                        if let Err(why) = self.traps.inject(fd, &exit) {
                            return Left::End(End::Failed(why));
                        }
                    }
                    (Next::Stand, hits) => return self.stand(hits),
                },
                Ok(VcpuExit::Shutdown) => {
                    return Left::End(End::TripleFault { cpu: self.cpu as u32 });
                }
                Ok(VcpuExit::InternalError) => {
                    return Left::End(End::Failed(internal::describe(self.cpu, fd)));
                }
                Ok(other) => {
                    return Left::End(End::Failed(format!(
                        "KVM left CPU {} with {other:?}",
                        self.cpu
                    )));
                }
                Err(e) if e.errno() == libc::EINTR => {
                    fd.set_kvm_immediate_exit(0);
                    self.gate.saw(self.cpu, fd.get_regs().ok().map(|regs| regs.rip));
                    return Left::Called;
                }
                Err(e) if e.errno() == libc::EAGAIN => {}
                Err(e) => {
                    return Left::End(End::Failed(format!("KVM cannot run CPU {}: {e}", self.cpu)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// What a CPU's thread does, without a CPU: it is called all the time.
    fn cpu(gate: &Gate, cpu: usize) {
        while gate.pass(cpu) {
            gate.saw(cpu, Some(0x1000 + cpu as u64));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the threads end, also when a test fails.
    struct Ends<'a>(&'a Gate);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.end(None);
        }
    }

    #[test]
    fn a_cpu_that_is_held_back_is_late() {
        let gate = Gate::new(3);
        let vcpus = Vcpus { gate: gate.clone(), cpus: Vec::new() };
        std::thread::scope(|scope| {
            let _ends = Ends(&gate);
            for n in 0..3 {
                let gate = gate.clone();
                scope.spawn(move || cpu(&gate, n));
            }
            for round in 0..10 {
                vcpus.go();
                gate.hold_back(Some(1));
                let Stand::Late(late) = vcpus.stand(Duration::from_millis(20)) else {
                    panic!("round {round}: it stands");
                };
                // On a busy host others may be late as well.
                let held = late.iter().find(|late| late.cpu == 1).expect("the one that is held");
                if let Some((rip, ago)) = held.seen {
                    assert!(rip == 0x1001 && ago < SOON, "{late:?}");
                }
                // All go on by themselves, and the next time they come.
                gate.hold_back(None);
                let Stand::Still { skew } = vcpus.stand(SOON) else {
                    panic!("round {round}: it does not stand");
                };
                assert!(skew < SOON, "{skew:?}");
            }
            gate.end(None);
            assert!(matches!(vcpus.stand(SOON), Stand::Ended));
        });
    }

    #[test]
    fn cpus_that_had_not_gone_stood_together() {
        let state = |ages: [u64; 3], went| {
            let now = Instant::now();
            let at = |age| now - Duration::from_millis(age);
            let seen = ages.map(|age| Some(Seen { rip: None, at: at(age) })).to_vec();
            let gate = Gate::new(3);
            let mut state = gate.lock();
            (state.seen, state.went) = (seen, at(went));
            state.skew().as_millis()
        };
        assert_eq!(state([5, 3, 4], 9), 2);
        assert_eq!(state([500, 3, 4], 9), 1, "the first one had not gone");
        assert_eq!(state([500, 300, 400], 9), 0);
    }
}
