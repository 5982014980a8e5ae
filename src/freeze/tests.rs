//! The coordinator against a machine that only pretends.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::freezer::{Rendezvous, Stand, reason, registers};
use super::*;
use crate::mem::{FakeMem, GuestMem};
use crate::snapshot::testing::made_up_memory;
use crate::snapshot::{CaptureRequest, CpuRegisters, Meta, Trigger};
use crate::vm::{
    Capabilities, Console, Engine, ExitInfo, ExitKind, ExitWatch, LateCpu, Registers, Standstill,
    Stillness, VmError,
};

const SOON: Duration = Duration::from_secs(60);

type Fail = Option<fn() -> VmError>;

/// What a pretended machine did, and what it is to fail at.
#[derive(Default)]
struct Acts {
    stopped: bool,
    log: Vec<&'static str>,
    fail_pause: Fail,
    fail_resume: Fail,
    fail_registers: bool,
    held_back: Option<u32>,
    hidden: Option<Duration>,
    /// Where a CPU is that is held back.
    rip: u64,
}

#[derive(Clone)]
struct Fake {
    acts: Arc<Mutex<Acts>>,
    watch: ExitWatch,
    memory: Arc<dyn GuestMem>,
}

impl Default for Fake {
    /// One with empty memory.
    fn default() -> Self {
        let acts = Acts { rip: 0xffff_ffff_8100_0040, ..Acts::default() };
        let memory = Arc::new(FakeMem::new());
        Fake { acts: Arc::new(Mutex::new(acts)), watch: ExitWatch::default(), memory }
    }
}

impl Fake {
    /// One with a kernel in it.
    fn with_kernel() -> Self {
        Fake { memory: made_up_memory(true), ..Fake::default() }
    }

    fn acts(&self) -> std::sync::MutexGuard<'_, Acts> {
        self.acts.lock().unwrap()
    }

    fn log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.acts().log)
    }
}

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    fn memory(&self) -> Arc<dyn GuestMem> {
        self.memory.clone()
    }
    fn pause_within(&mut self, patience: Duration) -> Result<Duration, VmError> {
        let mut acts = self.acts();
        acts.log.push("pause");
        acts.fail_pause.map_or(Ok(()), |error| Err(error()))?;
        if let Some(cpu) = acts.held_back {
            let seen = Some((acts.rip, Duration::from_millis(2)));
            let late = vec![LateCpu { cpu, doing: "in the guest".into(), seen }];
            return Err(VmError::Late { late, waited: patience });
        }
        acts.stopped = true;
        Ok(Duration::from_micros(400))
    }
    fn resume(&mut self) -> Result<Duration, VmError> {
        let mut acts = self.acts();
        acts.log.push("resume");
        acts.fail_resume.map_or(Ok(()), |error| Err(error()))?;
        acts.stopped = false;
        acts.hidden = Some(Duration::from_micros(1500));
        Ok(Duration::from_micros(300))
    }
    fn stillness(&self) -> Stillness {
        Stillness {
            hidden: self.acts().hidden,
            skew: Some(Duration::from_micros(7)),
            ..Stillness::default()
        }
    }
    fn hold_back(&mut self, cpu: Option<u32>) -> Result<(), VmError> {
        self.acts().held_back = cpu;
        Ok(())
    }
    fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
        assert!(self.acts().stopped, "only a stopped CPU has registers");
        match cpu {
            0..2 => Ok(Registers { cpu, halted: cpu == 1, ..Registers::default() }),
            2 if self.acts().fail_registers => Err(late()),
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
        self.acts().log.push("stop");
        self.watch.set(gone(ExitKind::Stopped));
        gone(ExitKind::Stopped)
    }
}

fn gone(kind: ExitKind) -> ExitInfo {
    ExitInfo { kind, console: String::new(), engine_log: String::new() }
}

fn late() -> VmError {
    VmError::Timeout { what: "the CPUs to stop".into(), waited: Duration::from_secs(10) }
}

fn ended() -> VmError {
    VmError::Exited(Box::new(gone(ExitKind::PoweredOff)))
}

fn rendezvous<T>(
    fake: &mut Fake,
    phase: &mut Phase,
    work: impl FnOnce(&mut dyn Engine) -> T,
) -> Result<Rendezvous<T>, VmError> {
    Stand::new(fake, phase, &Standstill::default(), SOON).rendezvous(work)
}

fn bridge(fake: &Fake) -> Bridge {
    Bridge::start(Box::new(fake.clone()), Standstill::default(), SOON).unwrap()
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
    assert_eq!((pause.hidden_us, pause.skew_us), (Some(1500), Some(7)));
    assert!(pause.copy_us >= 2000 && pause.total_us >= pause.copy_us, "{pause:?}");
    assert_eq!((fake.log(), phase), (vec!["pause", "resume"], Phase::Running));
}

#[test]
fn a_machine_that_does_not_stop_in_time_is_missed_and_runs() {
    let mut fake = Fake::default();
    fake.acts().fail_pause = Some(late);
    let mut phase = Phase::Running;
    let missed = rendezvous(&mut fake, &mut phase, |_| panic!("nothing may be copied"));
    let Ok(Rendezvous::Missed(error)) = missed else { panic!("{missed:?}") };
    assert_eq!(reason(&error, None), "waited 10s for the CPUs to stop in vain");
    assert_eq!(phase, Phase::Running);
    fake.acts().fail_pause = None;
    let again = rendezvous(&mut fake, &mut phase, |_| ());
    assert!(matches!(again, Ok(Rendezvous::Met { .. })), "the next one may succeed");
}

#[test]
fn a_cpu_that_is_held_back_is_named_with_its_place() {
    let fake = Fake::default();
    let bridge =
        Bridge::start(Box::new(fake.clone()), Standstill::default(), Duration::from_millis(30))
            .unwrap();
    bridge.ask("a test", |freezer| freezer.engine_mut().hold_back(Some(1))).unwrap().unwrap();
    let says = "the machine did not stop: waited 30ms in vain for all CPUs to stop: CPU 1 did not \
                come (it was in the guest, last seen at 0xffffffff81000040 2 ms before)";
    for _ in 0..50 {
        assert_eq!(bridge.pause().unwrap_err().to_string(), says);
        assert_eq!(bridge.registers().unwrap_err().to_string(), says);
        assert!(!bridge.is_paused());
    }
    assert_eq!(bridge.standstill().total(Instant::now()), Duration::ZERO, "it never stood");
    bridge.ask("a test", |freezer| freezer.engine_mut().hold_back(None)).unwrap().unwrap();
    bridge.pause().unwrap();
    assert!(bridge.is_paused());
}

#[test]
fn a_panic_while_stopped_lets_the_machine_go_on() {
    let (mut fake, mut phase) = (Fake::default(), Phase::Running);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        rendezvous(&mut fake, &mut phase, |_| panic!("torn structure")).map(drop)
    }));
    assert!(caught.is_err());
    assert!(!fake.acts().stopped);
    assert_eq!((fake.log(), phase), (vec!["pause", "resume"], Phase::Running));
}

#[test]
fn a_panic_in_a_request_is_told_and_the_next_one_is_served() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    let broken = bridge.ask("a test", |freezer| -> () {
        freezer.pause().unwrap();
        panic!("torn {}", "structure")
    });
    let says = "a defect of cryoscope's: a test panicked: torn structure";
    assert_eq!(broken.unwrap_err().to_string(), says);
    // By hand it stays paused, as whoever asked for that expects.
    assert_eq!(bridge.registers().unwrap().0.len(), 2);
    bridge.resume().unwrap();
    bridge.poster().post(|_| panic!("nobody hears this"));
    assert_eq!(bridge.registers().unwrap().0.len(), 2);
    assert_eq!(fake.log(), ["pause", "resume", "pause", "resume"]);
}

#[test]
fn a_machine_that_ends_or_stays_stopped_is_lost() {
    let cases: [(Fail, Fail, &str); 3] = [
        (Some(ended), None, "the guest powered off"),
        (None, Some(ended), "the guest powered off"),
        (None, Some(late), "waited 10s for the CPUs to stop in vain"),
    ];
    for (fail_pause, fail_resume, says) in cases {
        let mut fake = Fake::default();
        (fake.acts().fail_pause, fake.acts().fail_resume) = (fail_pause, fail_resume);
        let mut phase = Phase::Running;
        let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err();
        assert_eq!((error.to_string().as_str(), phase), (says, Phase::Lost));
        let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err().to_string();
        assert_eq!(
            error,
            "the engine refused another freeze: the machine did not go on after an earlier one"
        );
        fake.watch.set(gone(ExitKind::PoweredOff));
        let error = rendezvous(&mut fake, &mut phase, |_| ()).unwrap_err().to_string();
        assert_eq!(error, "the guest powered off");
    }
}

#[test]
fn registers_are_those_of_every_cpu_or_it_is_told_why_not() {
    let halted = |taken: &[CpuRegisters]| taken.iter().map(|r| (r.cpu, r.halted)).collect();
    let mut fake = Fake::default();
    fake.pause().unwrap();
    let (taken, missing) = registers(&mut fake);
    let all: Vec<(u32, bool)> = halted(&taken);
    assert_eq!((all, missing), (vec![(0, false), (1, true)], None));
    fake.acts().fail_registers = true;
    let (taken, missing) = registers(&mut fake);
    let why = "waited 10s for the CPUs to stop in vain";
    assert_eq!((taken.len(), missing.as_deref()), (2, Some(why)));
}

#[test]
fn what_is_asked_while_it_is_paused_leaves_it_so() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    bridge.pause().unwrap();
    bridge.pause().unwrap();
    assert_eq!(bridge.registers().unwrap().0.len(), 2);
    assert_eq!(fake.log(), ["pause"]);
    assert!(bridge.is_paused() && fake.acts().stopped);
    let stood = |bridge: &Bridge| bridge.standstill().total(Instant::now());
    let before = stood(&bridge);
    std::thread::sleep(Duration::from_millis(2));
    assert!(stood(&bridge) >= before + Duration::from_millis(2), "it counts while it lasts");
    assert_eq!(bridge.resume().unwrap(), Some(Duration::from_micros(1500)));
    assert_eq!(bridge.resume().unwrap(), None);
    assert_eq!(stood(&bridge), stood(&bridge), "and no more when it runs");
    assert_eq!((fake.log(), bridge.is_paused()), (vec!["resume"], false));
}

/// A request that waits until it is told to end, on a coordinator that is busy with it when this
/// returns.
fn busy(bridge: &Bridge) -> (Sender<()>, std::thread::JoinHandle<()>) {
    let (go, gone): (Sender<()>, Receiver<()>) = channel();
    let (begun, begins) = channel();
    let asker = bridge.clone();
    let thread = std::thread::spawn(move || {
        let waits = move |_: &mut Freezer| {
            begun.send(()).unwrap();
            gone.recv().unwrap();
        };
        asker.ask("a test", waits).unwrap();
    });
    begins.recv().unwrap();
    (go, thread)
}

#[test]
fn requests_wait_for_one_another_and_are_served_in_order() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    let (go, first) = busy(&bridge);
    let order = Arc::new(Mutex::new(Vec::new()));
    for i in 0..20 {
        let order = order.clone();
        bridge.poster().post(move |_| order.lock().unwrap().push(i));
    }
    let asker = bridge.clone();
    let second = std::thread::spawn(move || asker.registers().unwrap().0.len());
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(fake.log(), Vec::<&str>::new(), "one at a time");
    assert!(!second.is_finished());
    go.send(()).unwrap();
    first.join().unwrap();
    assert_eq!(second.join().unwrap(), 2);
    assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!(fake.log(), ["pause", "resume"]);
}

#[test]
fn what_is_asked_within_a_request_is_refused_and_what_is_posted_is_done_later() {
    let fake = Fake::default();
    let handle = bridge(&fake);
    let (inner, poster) = (handle.clone(), handle.poster());
    let (told, tells) = channel();
    let nested = handle.ask("a test", move |freezer| {
        poster.post(move |freezer| told.send(freezer.phase()).unwrap());
        freezer.pause().unwrap();
        inner.registers().map(drop).unwrap_err().to_string()
    });
    assert_eq!(
        nested.unwrap(),
        "reading registers was asked for by a request that is being carried out, and would wait \
         for its end; post it, or ask when that request has come back"
    );
    assert_eq!(tells.recv_timeout(SOON), Ok(Phase::Paused));
}

#[test]
fn a_lost_machine_fails_what_waits_with_the_reason() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    let (go, first) = busy(&bridge);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let asker = bridge.clone();
            std::thread::spawn(move || asker.registers().unwrap_err().to_string())
        })
        .collect();
    fake.watch.set(gone(ExitKind::TripleFault));
    go.send(()).unwrap();
    first.join().unwrap();
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), "the guest died of a triple fault");
    }
    let errors = [
        bridge.pause().map(drop).unwrap_err(),
        bridge.resume().map(drop).unwrap_err(),
        bridge.with_kernel(true, |_| ()).unwrap_err(),
        bridge.look(&CaptureRequest::default(), Meta::default).map(drop).unwrap_err(),
        bridge.freeze(&CaptureRequest::default(), None, Meta::default).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "the guest died of a triple fault");
    }
    assert_eq!(fake.log(), Vec::<&str>::new(), "it is told nothing any more");
}

#[test]
fn the_machine_ends_with_its_last_handle() {
    let fake = Fake::default();
    let handle = bridge(&fake);
    let (second, poster) = (handle.clone(), handle.poster());
    drop(handle);
    assert_eq!(second.registers().unwrap().0.len(), 2);
    drop(second);
    assert_eq!(fake.log(), ["pause", "resume", "stop"], "before the drop returns");
    poster.post(|_| panic!("there is nobody to do it"));
    // Also when a request holds it, and when the machine is paused.
    let fake = Fake::default();
    let handle = bridge(&fake);
    handle.pause().unwrap();
    let (poster, watch) = (handle.poster(), fake.watch.clone());
    poster.post(move |_| drop(handle));
    assert_eq!(watch.wait(SOON).map(|info| info.kind), Some(ExitKind::Stopped));
}

#[test]
fn a_machine_that_was_stopped_says_so() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    assert_eq!(bridge.stop().unwrap().kind, ExitKind::Stopped);
    assert_eq!(bridge.registers().unwrap_err().to_string(), "the machine was stopped");
    assert_eq!(bridge.exited().map(|info| info.kind), Some(ExitKind::Stopped));
}

#[test]
fn a_machine_without_a_kernel_is_not_stopped() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    let error = bridge.freeze(&CaptureRequest::default(), None, Meta::default).err();
    let error = error.expect("there is no kernel in empty memory");
    assert!(matches!(error, FreezeError::NotYet(_) | FreezeError::Unreadable(_)), "{error}");
    assert_eq!(fake.log(), Vec::<&str>::new());
}

#[test]
fn a_freeze_of_a_kernel_is_whole_and_says_how_late_it_came() {
    let fake = Fake::with_kernel();
    let bridge = bridge(&fake);
    let all = CaptureRequest { registers: true, ..CaptureRequest::default() };
    let meta = || Meta { tag: "end".into(), ..Meta::default() };
    let snap = bridge.freeze(&all, None, meta).unwrap();
    assert_eq!((snap.tag(), snap.placeholder_reason()), ("end", None));
    assert!(!snap.tasks().unwrap().is_empty() && snap.cpu(0).unwrap().registers().is_ok());
    let pause = snap.pause();
    assert_eq!((pause.stop_us, pause.hidden_us, pause.skew_us), (400, Some(1500), Some(7)));
    assert_eq!((snap.overshoot_us(), snap.trigger()), (None, &Trigger::Demand));
    assert_eq!(fake.log(), ["pause", "resume"]);
    // A look does not stop it, and has no registers.
    let plain = CaptureRequest::default();
    let (view, seen) = bridge.look(&plain, meta).unwrap();
    assert_eq!(view.tasks().unwrap().len(), snap.tasks().unwrap().len());
    assert_eq!((fake.log(), view.pause().total_us), (vec![], 0));
    std::thread::sleep(Duration::from_millis(2));
    let snap = bridge.freeze(&plain, Some(seen), meta).unwrap();
    assert!(snap.overshoot_us().unwrap() >= 2000, "{:?}", snap.overshoot_us());
    assert_eq!(snap.trigger(), &Trigger::Condition);
    // One that is paused stays so, and its copy says no more than it knows.
    bridge.pause().unwrap();
    let snap = bridge.freeze(&plain, None, meta).unwrap();
    assert_eq!((snap.pause().stop_us, snap.pause().hidden_us), (0, None));
    assert_eq!(bridge.with_kernel(true, |opened| opened.engine.name()).unwrap(), "fake");
    assert_eq!(fake.log(), ["pause", "resume", "pause"]);
}

#[test]
fn a_placeholder_names_the_function_in_which_a_cpu_is() {
    let fake = Fake::with_kernel();
    let bridge =
        Bridge::start(Box::new(fake.clone()), Standstill::default(), Duration::from_millis(30))
            .unwrap();
    let request = CaptureRequest::default();
    let symbols = bridge.freeze(&request, None, Meta::default).unwrap();
    let at = symbols.symbols().unwrap().addresses("init_task")[0] + 8;
    fake.acts().rip = at;
    for _ in 0..50 {
        fake.acts().held_back = Some(1);
        let snap = bridge.freeze(&request, None, Meta::default).unwrap();
        let says = format!(
            "waited 30ms in vain for all CPUs to stop: CPU 1 did not come (it was in the guest, \
             last seen at init_task+0x8 ({at:#x}) 2 ms before)"
        );
        assert_eq!(snap.placeholder_reason(), Some(says.as_str()));
        assert!(snap.dump().contains("CPU 1 did not come"), "{}", snap.dump());
        assert_eq!(bridge.with_kernel(false, |_| 7).unwrap(), 7, "as it runs");
        let error = bridge.with_kernel(true, |_| ()).unwrap_err().to_string();
        assert_eq!(error, format!("the machine did not stop: {says}"));
        fake.acts().held_back = None;
        assert!(!bridge.freeze(&request, None, Meta::default).unwrap().is_placeholder());
    }
}

#[test]
fn a_paused_machine_that_dies_stands_no_longer() {
    let fake = Fake::default();
    let bridge = bridge(&fake);
    bridge.pause().unwrap();
    fake.watch.set(gone(ExitKind::TripleFault));
    assert_eq!(bridge.resume().unwrap_err().to_string(), "the guest died of a triple fault");
    let stood = bridge.standstill().total(Instant::now());
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(bridge.standstill().total(Instant::now()), stood);
    assert!(!bridge.is_paused());
}
