//! Freezing: stop, copy, go on.
//!
//! ```text
//!             freeze                all CPUs stopped               copied, or not
//!   Running ──────────▶ Stopping ──────────────────▶ Copying ──────────────────▶ Resuming
//!      ▲                   │                                                        │  │
//!      │  not in time      │                    CPUs run again                      │  │
//!      ├───────────────────┘                                                        │  │
//!      └────────────────────────────────────────────────────────────────────────────┘  │
//!                                   not in time, or the machine has ended              ▼
//!                                                                                    Lost
//! ```
//!
//! What makes it short: everything that can be done while the machine runs is done before it is
//! stopped (memory faulted in, kernel found, types read) or after it goes on (decoding). What
//! makes it safe: whatever happens while it is stopped, an error or a panic, lets it go on. A
//! machine that cannot be stopped in time gives a placeholder, whose accessors say why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::snapshot::{
    CaptureError, CaptureRequest, Capturer, CpuRegisters, Meta, Pause, Snapshot, SnapshotError,
};
use crate::vm::{Engine, ExitInfo, Registers, VmError};

/// A freeze that gave no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The guest's kernel has not come far enough: try again later.
    #[error("the machine cannot be frozen yet: {0}")]
    NotYet(String),
    /// The guest's memory cannot be read.
    #[error("the machine's memory cannot be read: {0}")]
    Unreadable(String),
    /// A map was asked for by a name that none has.
    #[error("{0}")]
    NoSuchMap(SnapshotError),
    /// The machine is gone, or no longer does what it is told.
    #[error("{0}")]
    Machine(#[from] VmError),
}

impl From<CaptureError> for FreezeError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::NotYet(why) => FreezeError::NotYet(why),
            CaptureError::Failed(why) => FreezeError::Unreadable(why),
        }
    }
}

/// Where a machine is in the course of a freeze; see the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest runs.
    Running,
    /// Its CPUs are being stopped.
    Stopping,
    /// All stand still.
    Copying,
    /// They are being let go on.
    Resuming,
    /// It stands still and cannot be made to go on, or is gone.
    Lost,
}

/// What moves a machine from one phase to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Freeze,
    Done,
    TooLate,
    Ended,
}

impl Phase {
    /// The transition function; `None` for a step that makes no sense in this phase.
    fn after(self, step: Step) -> Option<Phase> {
        use Phase::{Copying, Lost, Resuming, Running, Stopping};
        match (self, step) {
            (Running, Step::Freeze) => Some(Stopping),
            (Stopping, Step::Done) => Some(Copying),
            (Stopping, Step::TooLate) => Some(Running),
            (Copying, Step::Done) => Some(Resuming),
            (Resuming, Step::Done) => Some(Running),
            (Resuming, Step::TooLate) | (_, Step::Ended) => Some(Lost),
            _ => None,
        }
    }
}

/// A machine, and what reads its memory.
pub struct Freezer {
    engine: Box<dyn Engine>,
    capturer: Option<Capturer>,
    phase: Phase,
}

impl Freezer {
    /// Takes charge of a running machine.
    #[must_use]
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Freezer { engine, capturer: None, phase: Phase::Running }
    }

    /// The machine.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// The machine, to be told something that is no freeze.
    pub fn engine_mut(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }

    /// Where the machine is in the course of a freeze; between freezes it runs or is lost.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Finds the kernel in memory, which takes a while and otherwise happens at the first freeze.
    /// The machine runs meanwhile.
    ///
    /// # Errors
    /// [`FreezeError::NotYet`] and [`FreezeError::Unreadable`].
    pub fn open(&mut self) -> Result<&Capturer, FreezeError> {
        Ok(capturer(&mut self.capturer, &*self.engine)?)
    }

    /// Stops the machine, copies what `request` asks for, lets it go on. `meta` is asked for when
    /// all is ready and the machine is about to be stopped; its `pause` is filled in. A machine
    /// that does not stop in time gives a placeholder.
    ///
    /// # Errors
    /// Every [`FreezeError`]. The machine runs afterwards unless it is a [`FreezeError::Machine`].
    pub fn freeze(
        &mut self,
        request: &CaptureRequest,
        meta: impl FnOnce() -> Meta,
    ) -> Result<Arc<Snapshot>, FreezeError> {
        let capturer = capturer(&mut self.capturer, &*self.engine)?;
        // Of a machine that runs this may fail on what is just changing; only the copy counts.
        if let Some(missing) = capturer.prepare(request).unwrap_or_default().into_iter().next() {
            return Err(FreezeError::NoSuchMap(missing));
        }
        let mut meta = meta();
        let copy = |engine: &mut dyn Engine| {
            let raw = capturer.capture(request)?;
            if !request.wants_registers() {
                return Ok(raw);
            }
            let (taken, missing) = registers(engine);
            Ok::<_, CaptureError>(raw.with_registers(taken, missing))
        };
        match rendezvous(&mut *self.engine, &mut self.phase, copy)? {
            Rendezvous::Missed(reason) => Ok(Snapshot::placeholder(meta, reason)),
            Rendezvous::Met { outcome, times } => {
                let raw = outcome?;
                meta.pause = times.pause();
                Ok(raw.finish(meta))
            }
        }
    }

    /// Ends the machine; see [`Engine::stop`].
    pub fn stop(&mut self) -> ExitInfo {
        self.phase = Phase::Lost;
        self.engine.stop()
    }
}

/// The registers of all CPUs of a stopped machine, and why some of them are missing: they are
/// worth less than the rest of a freeze.
fn registers(engine: &mut dyn Engine) -> (Vec<CpuRegisters>, Option<String>) {
    let mut taken = Vec::new();
    for cpu in 0.. {
        match engine.registers(cpu) {
            Ok(Registers { cpu, halted, values }) => {
                taken.push(CpuRegisters { cpu, halted, values });
            }
            Err(VmError::NoSuchCpu { .. }) => break,
            Err(error) => return (taken, Some(error.to_string())),
        }
    }
    (taken, None)
}

/// The capturer of this machine, opened when it is first needed.
fn capturer<'a>(
    slot: &'a mut Option<Capturer>,
    engine: &dyn Engine,
) -> Result<&'a Capturer, CaptureError> {
    match slot {
        Some(capturer) => Ok(capturer),
        None => Ok(slot.insert(Capturer::open(engine.memory())?)),
    }
}

/// What came of stopping a machine.
#[derive(Debug)]
enum Rendezvous<T> {
    /// It stopped, this was done, it runs on.
    Met { outcome: T, times: Times },
    /// It did not stop in time, and runs.
    Missed(String),
}

/// How long the parts of a rendezvous took.
#[derive(Clone, Copy, Debug)]
struct Times {
    total: Duration,
    stop: Duration,
    copy: Duration,
    resume: Duration,
}

impl Times {
    fn pause(&self) -> Pause {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Pause {
            total_us: us(self.total),
            stop_us: us(self.stop),
            copy_us: us(self.copy),
            resume_us: us(self.resume),
        }
    }
}

/// A machine that stands still, and goes on when this is dropped, however that comes about.
struct Stopped<'a> {
    engine: &'a mut dyn Engine,
    phase: &'a mut Phase,
    resumed: bool,
}

impl Stopped<'_> {
    fn resume(&mut self) -> Result<Duration, VmError> {
        self.resumed = true;
        step(self.phase, Step::Done);
        let result = self.engine.resume();
        step(
            self.phase,
            match &result {
                Ok(_) => Step::Done,
                Err(VmError::Timeout { .. }) => Step::TooLate,
                Err(_) => Step::Ended,
            },
        );
        result
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.resume();
        }
    }
}

fn step(phase: &mut Phase, step: Step) {
    let next = phase.after(step);
    debug_assert!(next.is_some(), "{step:?} in {phase:?}");
    *phase = next.unwrap_or(Phase::Lost);
}

/// Does something while the machine stands still.
fn rendezvous<T>(
    engine: &mut dyn Engine,
    phase: &mut Phase,
    copy: impl FnOnce(&mut dyn Engine) -> T,
) -> Result<Rendezvous<T>, VmError> {
    if *phase == Phase::Lost {
        return Err(lost(engine));
    }
    let start = Instant::now();
    step(phase, Step::Freeze);
    let stop = match engine.pause() {
        Ok(stop) => stop,
        Err(error @ VmError::Timeout { .. }) => {
            step(phase, Step::TooLate);
            return Ok(Rendezvous::Missed(error.to_string()));
        }
        Err(error) => {
            step(phase, Step::Ended);
            return Err(error);
        }
    };
    step(phase, Step::Done);
    let mut stopped = Stopped { engine, phase, resumed: false };
    let copying = Instant::now();
    let outcome = copy(&mut *stopped.engine);
    let copy = copying.elapsed();
    let resume = stopped.resume()?;
    let times = Times { total: start.elapsed(), stop, copy, resume };
    Ok(Rendezvous::Met { outcome, times })
}

fn lost(engine: &dyn Engine) -> VmError {
    match engine.exited() {
        Some(info) => VmError::Exited(Box::new(info)),
        None => VmError::Refused {
            command: "another freeze".to_owned(),
            reason: "the machine did not go on after an earlier one".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{FakeMem, GuestMem};
    use crate::vm::{Capabilities, Console, ExitKind, ExitWatch};
    use std::os::fd::OwnedFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// A machine that does as it is told, unless it is told to fail.
    #[derive(Default)]
    struct Fake {
        stopped: bool,
        log: Vec<&'static str>,
        fail_pause: Option<fn() -> VmError>,
        fail_resume: Option<fn() -> VmError>,
        fail_registers: bool,
        watch: ExitWatch,
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
        fn memory(&self) -> Arc<dyn GuestMem> {
            Arc::new(FakeMem::new())
        }
        fn pause(&mut self) -> Result<Duration, VmError> {
            self.log.push("pause");
            self.fail_pause.map_or(Ok(()), |error| Err(error()))?;
            self.stopped = true;
            Ok(Duration::from_micros(400))
        }
        fn resume(&mut self) -> Result<Duration, VmError> {
            self.log.push("resume");
            self.fail_resume.map_or(Ok(()), |error| Err(error()))?;
            self.stopped = false;
            Ok(Duration::from_micros(300))
        }
        fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
            match cpu {
                0..2 => Ok(Registers { cpu, halted: cpu == 1, ..Registers::default() }),
                2 if self.fail_registers => Err(late()),
                _ => Err(VmError::NoSuchCpu { cpu, cpus: 2 }),
            }
        }
        fn console(&self) -> Console {
            Console::new(0)
        }
        fn take_transport(&mut self) -> Option<OwnedFd> {
            None
        }
        fn exit_watch(&self) -> ExitWatch {
            self.watch.clone()
        }
        fn stop(&mut self) -> ExitInfo {
            gone()
        }
    }

    fn gone() -> ExitInfo {
        ExitInfo { kind: ExitKind::PoweredOff, console: String::new(), engine_log: String::new() }
    }

    fn late() -> VmError {
        VmError::Timeout { what: "the CPUs to stop".into(), waited: Duration::from_secs(10) }
    }

    fn ended() -> VmError {
        VmError::Exited(Box::new(gone()))
    }

    #[test]
    fn a_copy_is_made_between_stop_and_resume_and_measured() {
        let (mut fake, mut phase) = (Fake::default(), Phase::Running);
        let met = rendezvous(&mut fake, &mut phase, |_| {
            std::thread::sleep(Duration::from_millis(2));
            7
        });
        let Ok(Rendezvous::Met { outcome, times }) = met else { panic!("{met:?}") };
        assert_eq!(outcome, 7);
        let pause = times.pause();
        assert_eq!((pause.stop_us, pause.resume_us), (400, 300));
        assert!(pause.copy_us >= 2000 && pause.total_us >= pause.copy_us, "{pause:?}");
        assert_eq!((fake.log, phase), (vec!["pause", "resume"], Phase::Running));
    }

    #[test]
    fn a_machine_that_does_not_stop_in_time_is_missed_and_runs() {
        let mut fake = Fake { fail_pause: Some(late), ..Fake::default() };
        let mut phase = Phase::Running;
        let missed = rendezvous(&mut fake, &mut phase, |_| panic!("nothing may be copied"));
        let Ok(Rendezvous::Missed(reason)) = missed else { panic!("{missed:?}") };
        assert_eq!(reason, "waited 10s for the CPUs to stop in vain");
        assert_eq!(phase, Phase::Running);
        fake.fail_pause = None;
        let again = rendezvous(&mut fake, &mut phase, |_| ());
        assert!(matches!(again, Ok(Rendezvous::Met { .. })), "the next one may succeed");
    }

    #[test]
    fn a_panic_while_stopped_lets_the_machine_go_on() {
        let (mut fake, mut phase) = (Fake::default(), Phase::Running);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            rendezvous(&mut fake, &mut phase, |_| panic!("torn structure")).map(drop)
        }));
        assert!(caught.is_err());
        assert!(!fake.stopped);
        assert_eq!((fake.log, phase), (vec!["pause", "resume"], Phase::Running));
    }

    #[test]
    fn a_machine_that_ends_or_stays_stopped_is_lost() {
        type Fail = Option<fn() -> VmError>;
        let cases: [(Fail, Fail, &str); 3] = [
            (Some(ended), None, "the guest powered off"),
            (None, Some(ended), "the guest powered off"),
            (None, Some(late), "waited 10s for the CPUs to stop in vain"),
        ];
        for (fail_pause, fail_resume, says) in cases {
            let mut fake = Fake { fail_pause, fail_resume, ..Fake::default() };
            let mut phase = Phase::Running;
            let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err();
            assert_eq!((error.to_string().as_str(), phase), (says, Phase::Lost));
            let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err().to_string();
            assert_eq!(
                error,
                "the engine refused another freeze: the machine did not go on after an earlier one"
            );
            fake.watch.set(gone());
            let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err().to_string();
            assert_eq!(error, "the guest powered off");
        }
    }

    #[test]
    fn registers_are_those_of_every_cpu_or_it_is_told_why_not() {
        let halted = |taken: &[CpuRegisters]| taken.iter().map(|r| (r.cpu, r.halted)).collect();
        let mut fake = Fake::default();
        let (taken, missing) = registers(&mut fake);
        let all: Vec<(u32, bool)> = halted(&taken);
        assert_eq!((all, missing), (vec![(0, false), (1, true)], None));
        fake.fail_registers = true;
        let (taken, missing) = registers(&mut fake);
        let why = "waited 10s for the CPUs to stop in vain";
        assert_eq!((taken.len(), missing.as_deref()), (2, Some(why)));
    }

    #[test]
    fn every_step_leads_somewhere_or_nowhere() {
        use Phase::{Copying, Lost, Resuming, Running, Stopping};
        let phases = [Running, Stopping, Copying, Resuming, Lost];
        let table = [
            (Step::Freeze, [Some(Stopping), None, None, None, None]),
            (Step::Done, [None, Some(Copying), Some(Resuming), Some(Running), None]),
            (Step::TooLate, [None, Some(Running), None, Some(Lost), None]),
            (Step::Ended, [Some(Lost); 5]),
        ];
        for (step, expected) in table {
            assert_eq!(phases.map(|phase| phase.after(step)), expected, "{step:?}");
        }
    }

    #[test]
    fn a_machine_without_a_kernel_is_not_stopped() {
        let mut freezer = Freezer::new(Box::new(Fake::default()));
        let error = freezer.freeze(&CaptureRequest::default(), Meta::default).err();
        let error = error.expect("there is no kernel in empty memory");
        assert!(matches!(error, FreezeError::NotYet(_) | FreezeError::Unreadable(_)), "{error}");
        assert_eq!(freezer.phase(), Phase::Running);
        assert_eq!(freezer.stop().kind, ExitKind::PoweredOff);
        assert_eq!(freezer.phase(), Phase::Lost);
    }
}
