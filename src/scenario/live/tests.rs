//! The laboratory against a machine that only pretends.

mod monitoring;
mod sampling;
mod stats;

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use super::machine::{CallError, MakeMeta};
use super::snapshots::MOST_SNAPSHOTS;
use super::*;
use crate::freeze::{WatchCount, WatchId, WatchOrder};
use crate::scenario::lab::WatchOptions;
use crate::scenario::lab::WorkKind;
use crate::scenario::verdict::{Check, Outcome, Rules};
use crate::snapshot::{
    Meta, Pause, Place, Reading, Scalar, SnapshotError, Trigger, WatchPlace, WatchTarget,
};
use crate::vm::topology::Topology;
use crate::vm::{ExitInfo, ExitKind, Standstill};
use crate::wire::testing::made_up;
use crate::wire::{Refusal, RefusalKind};

/// Something that happens to it.
type Happening = Box<dyn FnOnce(&Fake) + Send>;

/// A reading by its number.
type Reads = Box<dyn Fn(u64) -> Result<Reading, CallError> + Send>;

/// A machine that answers from a list, and by rote where the list says nothing.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Op>>,
    answers: Mutex<VecDeque<Result<Answer, CallError>>>,
    events: Mutex<VecDeque<Event>>,
    exited: Mutex<Option<ExitInfo>>,
    stopped: AtomicBool,
    /// Calls never come back.
    silent: AtomicBool,
    sched_state: Mutex<String>,
    snapshot_bytes: AtomicU64,
    paused: AtomicBool,
    still: Standstill,
    /// How long each freeze stops the machine.
    stands: AtomicU64,
    /// How long each takes while it runs, in milliseconds.
    takes: AtomicU64,
    /// Freezes do not come about.
    late: AtomicBool,
    /// What a monitor reads: made of how many readings there were.
    reads: Mutex<Option<Reads>>,
    /// How many readings there were.
    readings: AtomicU64,
    /// What happens during the next call.
    happens: Mutex<Option<Happening>>,
}

impl Fake {
    fn answer(&self, answer: Result<Answer, CallError>) {
        self.answers.lock().unwrap().push_back(answer);
    }

    fn event(&self, event: Event) {
        self.events.lock().unwrap().push_back(event);
    }

    fn during_a_call(&self, happens: impl FnOnce(&Fake) + Send + 'static) {
        *self.happens.lock().unwrap() = Some(Box::new(happens));
    }

    fn scheduler_leaves(&self, reason: &str) {
        let (log, dmesg) = ("its last words\n".into(), String::new());
        self.event(Event::SchedulerExited { reason: reason.into(), log, dmesg });
    }

    fn dies(&self, kind: ExitKind) {
        let info = ExitInfo { kind, console: String::new(), engine_log: String::new() };
        *self.exited.lock().unwrap() = Some(info);
    }

    fn asked(&self) -> Vec<Op> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Machine for Fake {
    fn call(&self, op: Op, within: Duration) -> Result<Answer, CallError> {
        self.asked.lock().unwrap().push(op.clone());
        if let Some(happens) = self.happens.lock().unwrap().take() {
            happens(self);
        }
        if self.silent.load(Ordering::Relaxed) {
            std::thread::sleep(within);
            return Err(CallError::Timeout("no answer".into()));
        }
        if let Some(answer) = self.answers.lock().unwrap().pop_front() {
            return answer;
        }
        Ok(match op {
            Op::SchedulerState => Answer::Scheduler(SchedulerState {
                state: self.sched_state.lock().unwrap().clone(),
                log: "attached\n".into(),
                ..SchedulerState::default()
            }),
            Op::Start(work) => Answer::Workers((100..100 + work.count).collect()),
            Op::Dmesg => Answer::Text("booted\n".into()),
            Op::Detach => Answer::Detached { log: String::new() },
            Op::Attach(_) => Answer::Attached { ops: "fifo".into(), log: String::new() },
            _ => Answer::Done,
        })
    }

    fn wait_event(&self, within: Duration) -> Result<Option<Event>, CallError> {
        let event = self.events.lock().unwrap().pop_front();
        if event.is_none() {
            std::thread::sleep(within.min(Duration::from_millis(5)));
        }
        Ok(event)
    }

    fn freeze(
        &self,
        request: &CaptureRequest,
        _: Option<Instant>,
        meta: MakeMeta,
    ) -> Result<Arc<Snapshot>, CallError> {
        if let Some([name]) = request.maps.as_deref() {
            let (requested, available) = (name.clone(), vec!["fifo.bss".into()]);
            return Err(CallError::Snapshot(SnapshotError::MapNotFound { requested, available }));
        }
        if self.exited().is_some() {
            return Err(CallError::Gone("the machine ended".into()));
        }
        std::thread::sleep(Duration::from_millis(self.takes.load(Ordering::Relaxed)));
        if self.late.load(Ordering::Relaxed) {
            return Ok(Snapshot::placeholder(meta(), "CPU 1 did not come"));
        }
        let total_us = self.stands.load(Ordering::Relaxed);
        let pause = Pause { total_us, ..Pause::default() };
        let now = Instant::now();
        self.still.begin(now - Duration::from_micros(pause.total_us));
        self.still.end(now, None);
        let bytes = self.snapshot_bytes.load(Ordering::Relaxed);
        Ok(Snapshot::new(Meta { pause, bytes, ..meta() }, vec![], vec![]))
    }

    fn edit(
        &self,
        _: &Place,
        _: Option<&Scalar>,
        _: bool,
    ) -> Result<Result<Vec<Scalar>, String>, CallError> {
        Ok(Err("nothing is there".into()))
    }

    fn watch_place(&self, target: &WatchTarget) -> Result<WatchPlace, CallError> {
        let symbol = target.symbol.clone();
        Ok(WatchPlace { name: symbol.clone(), symbol: Some(symbol), address: 8, len: 8 })
    }

    fn watch(&self, order: WatchOrder) -> Result<WatchId, CallError> {
        assert!(order.request.registers && order.request.kernel == ["x"]);
        Ok(WatchId::default())
    }

    fn unwatch(&self, _: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(Some(WatchCount { fires: 7, ..WatchCount::default() }))
    }

    fn watch_count(&self, _: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(Some(WatchCount { fires: 7, ..WatchCount::default() }))
    }

    fn look(
        &self,
        _: &CaptureRequest,
        meta: MakeMeta,
    ) -> Result<(Arc<Snapshot>, Instant), CallError> {
        Ok((Snapshot::new(meta(), vec![], vec![]), Instant::now()))
    }

    fn monitor(&self) -> Result<(Reading, Instant), CallError> {
        let number = self.readings.fetch_add(1, Ordering::Relaxed);
        let reads = self.reads.lock().unwrap();
        let Some(read) = &*reads else { return Err(CallError::Lacks("nothing is there".into())) };
        read(number).map(|reading| (reading, Instant::now()))
    }

    fn prepare(&self, _: &CaptureRequest) -> Result<(), CallError> {
        Ok(())
    }

    fn pause(&self) -> Result<(), CallError> {
        self.still.begin(Instant::now());
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn resume(&self) -> Result<(), CallError> {
        self.still.end(Instant::now(), None);
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn standstill(&self) -> Standstill {
        self.still.clone()
    }

    fn console(&self) -> String {
        "Linux version\n".into()
    }

    fn exited(&self) -> Option<ExitInfo> {
        self.exited.lock().unwrap().clone()
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

struct Bench {
    lab: Lab,
    fake: Arc<Fake>,
    recorder: Recorder,
    cancel: Cancel,
}

fn bench(expect_exit: ExpectExit) -> Bench {
    let fake = Arc::new(Fake::default());
    *fake.sched_state.lock().unwrap() = "enabled".into();
    fake.stands.store(5_000_000, Ordering::Relaxed);
    let (recorder, cancel) = (Recorder::new(), Cancel::new());
    let parts = Parts {
        facts: LabFacts {
            kernel_release: "7.2".into(),
            kernel_spec: "auto".into(),
            topology: Topology::parse("1n2l2c1t").unwrap(),
            engine: "fake".into(),
            memory: 512 << 20,
            scheduler: "fifo".into(),
            duration: Duration::from_secs(4),
        },
        expect_exit,
        scheduler: Current {
            name: "fifo".into(),
            plan: Some(crate::scheduler::AttachPlan::Object {
                guest_path: "/scheduler/fifo.bpf.o".into(),
                patches: Vec::new(),
            }),
            attached: true,
            left: false,
            socket: None,
        },
        staged: Vec::new(),
        preparer: None,
        events: Events::new(0, std::io::sink()),
        recorder: recorder.clone(),
        cancel: cancel.clone(),
        keep: None,
        attempt: 1,
    };
    Bench { lab: Lab::new(fake.clone(), parts), fake, recorder, cancel }
}

fn outcome(bench: &Bench) -> Outcome {
    bench.recorder.verdict(&Rules::default()).outcome
}

#[test]
fn time_passes_without_the_pauses() {
    let Bench { lab, .. } = bench(ExpectExit::None);
    lab.hold(Span::Time(Duration::from_millis(60))).unwrap();
    let before = lab.elapsed_ms();
    assert!((60..2_000).contains(&before), "{before}");
    // The fake says that it stood still for five seconds, longer than it has lived.
    lab.freeze("a", &CaptureRequest::default()).unwrap();
    assert_eq!(lab.elapsed_ms(), 0);
}

#[test]
fn a_paused_machine_lets_no_time_pass_and_is_asked_nothing() {
    let Bench { lab, fake, recorder, .. } = bench(ExpectExit::None);
    assert!(!lab.is_paused());
    lab.pause().unwrap();
    let before = lab.elapsed();
    std::thread::sleep(Duration::from_millis(3));
    assert_eq!((lab.elapsed(), lab.is_paused()), (before, true));
    let waits = "cannot wait for the workload: the machine is paused, and stands until \
                 t.resume(); call that first";
    let asks = "cannot ask the guest: the machine is paused, and stands until t.resume(); call \
                that first";
    let cases = [
        (lab.hold(Span::Time(Duration::from_secs(9))), waits),
        (lab.step("x", Span::Fraction(0.5)), waits),
        (lab.dmesg().map(drop), asks),
        (lab.scheduler_state().map(drop), asks),
        (lab.scheduler_detach(), asks),
        (lab.exec(&["ls".into()], Duration::from_secs(9)).map(drop), asks),
        (lab.start(None, &WorkOptions::new(WorkKind::Spin)).map(drop), asks),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.is_catchable()), (says, true));
    }
    assert_eq!(fake.asked(), []);
    lab.freeze("while it stands", &CaptureRequest::default()).unwrap();
    lab.resume().unwrap();
    lab.dmesg().unwrap();
    // One that the script leaves paused is let go on to be judged.
    lab.pause().unwrap();
    recorder.record(Check::pass("x"));
    lab.finish();
    assert!(!fake.is_paused() && !fake.asked().is_empty());
    assert_eq!(recorder.counts().error, 0);
}

#[test]
fn a_tag_that_is_used_again_gets_a_number_and_a_note() {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let mut bench = bench(ExpectExit::None);
    let seen = notes.clone();
    bench.lab.parts.recorder =
        Recorder::with_sink(move |record| seen.lock().unwrap().push(record.clone()));
    let lab = bench.lab;
    let tags: Vec<String> = (0..3)
        .map(|_| lab.freeze("end", &CaptureRequest::default()).unwrap().tag().to_string())
        .collect();
    assert_eq!(tags, ["end", "end#2", "end#3"]);
    assert!(lab.snapshot("end#2").is_some() && lab.snapshot("end#4").is_none());
    let notes = format!("{:?}", notes.lock().unwrap());
    assert!(notes.contains(r#"the tag \"end\" was used before: this snapshot is \"end#3\""#));
}

#[test]
fn snapshots_are_bounded_in_number_and_in_bytes() {
    for (bytes, most) in [(1 << 30, 2), (0, MOST_SNAPSHOTS)] {
        let Bench { lab, fake, .. } = bench(ExpectExit::None);
        fake.snapshot_bytes.store(bytes, Ordering::Relaxed);
        let taken = (0..=most)
            .take_while(|i| lab.freeze(&i.to_string(), &CaptureRequest::default()).is_ok())
            .count();
        assert_eq!(taken, most);
        let error = lab.freeze("more", &CaptureRequest::default()).unwrap_err();
        assert!(error.is_catchable(), "{error:?}");
        let says = format!("{most} snapshots hold {} MiB already", (bytes * most as u64) >> 20);
        assert!(error.to_string().starts_with(&says), "{error}");
    }
}

#[test]
fn a_map_that_is_not_there_can_be_caught() {
    let bench = bench(ExpectExit::None);
    let maps = Some(vec!["fifo.bsss".to_string()]);
    let maps = CaptureRequest { maps, ..CaptureRequest::default() };
    let error = bench.lab.freeze("a", &maps).unwrap_err();
    assert!(error.is_catchable(), "{error:?}");
    assert!(matches!(error, LabError::Snapshot(e) if e.kind() == "MapNotFound"));
    bench.lab.freeze("a", &CaptureRequest::default()).expect("the machine is well");
}

#[test]
fn a_scheduler_that_leaves_ends_the_scenario_once() {
    let bench = bench(ExpectExit::None);
    bench.lab.hold(Span::Time(Duration::ZERO)).unwrap();
    bench.fake.scheduler_leaves("runnable task stall");
    let error = bench.lab.hold(Span::Fraction(0.5)).unwrap_err();
    let LabError::Scheduler(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("the scheduler left unasked after 0."), "{text}");
    assert!(text.ends_with(" s: runnable task stall"), "{text}");
    bench.recorder.record(error.check(None).unwrap());
    let (logs, fault) = bench.lab.finish();
    assert_eq!(bench.recorder.counts().fail, 1, "it is told once");
    assert_eq!((logs.scheduler.as_str(), fault), ("attached", None));
}

#[test]
fn a_scheduler_that_leaves_at_the_very_end_is_noticed() {
    let bench = bench(ExpectExit::None);
    bench.recorder.record(Check::pass("all was well"));
    *bench.fake.sched_state.lock().unwrap() = "disabled".into();
    bench.fake.scheduler_leaves("scx_bpf_error: bad cpu");
    bench.lab.finish();
    assert_eq!(outcome(&bench), Outcome::Fail);
    let failure = &bench.recorder.failures()[0];
    assert_eq!(failure.found.as_deref(), Some("it left: scx_bpf_error: bad cpu"));
}

#[test]
fn exits_that_are_meant_to_be_are_judged_in_the_end() {
    let cases = [
        (ExpectExit::Error, Some("scx_bpf_error"), Outcome::Pass),
        (ExpectExit::Stall, Some("scx_bpf_error"), Outcome::Fail),
        (ExpectExit::Error, None, Outcome::Fail),
    ];
    for (expect, reason, want) in cases {
        let bench = bench(expect.clone());
        if let Some(reason) = reason {
            bench.fake.scheduler_leaves(reason);
            *bench.fake.sched_state.lock().unwrap() = "disabled".into();
        }
        bench.lab.hold(Span::Time(Duration::from_millis(10))).expect("the scenario goes on");
        bench.lab.finish();
        assert_eq!(outcome(&bench), want, "{expect:?} {reason:?}");
    }
}

#[test]
fn a_scheduler_that_is_restarted_is_expected_to_stay_again() {
    let bench = bench(ExpectExit::Error);
    bench.lab.scheduler_restart().unwrap();
    let asked = bench.fake.asked();
    assert!(matches!(asked[..], [Op::Detach, Op::Attach(_)]), "{asked:?}");
    // What was detached is no exit, what was attached then is one when it leaves, once.
    bench.fake.scheduler_leaves("scx_bpf_error");
    bench.fake.scheduler_leaves("again");
    bench.lab.hold(Span::Time(Duration::from_millis(10))).unwrap();
    assert_eq!(bench.lab.scheduler_exit().unwrap().reason, "scx_bpf_error");
    let none = bench.lab.scheduler_restart().unwrap_err().to_string();
    assert_eq!(
        none,
        "cannot restart the scheduler: none is attached; t.scheduler.attach(..) brings one up"
    );
    let none = bench.lab.scheduler_detach().unwrap_err().to_string();
    assert!(none.starts_with("cannot detach the scheduler: none is attached"), "{none}");
}

#[test]
fn a_second_scheduler_is_refused_and_one_that_the_kernel_refuses_is_a_failure() {
    let bench = bench(ExpectExit::None);
    let fifo = SchedulerOptions { src: "fifo.bpf.c".into(), ..SchedulerOptions::default() };
    let two = bench.lab.scheduler_attach(&fifo).unwrap_err();
    assert_eq!(
        two.to_string(),
        "cannot attach a scheduler: fifo is attached already; t.scheduler.replace(..) puts another \
         one in its place, t.scheduler.detach() lets it go"
    );
    assert!(two.is_catchable());
    bench.fake.answer(Ok(Answer::Detached { log: String::new() }));
    let (message, log) = ("it does not load".to_owned(), String::new());
    let refusal = crate::wire::Refusal { kind: crate::wire::RefusalKind::Verifier, message, log };
    bench.fake.answer(Err(CallError::Refused(refusal)));
    let rejected = bench.lab.scheduler_restart().unwrap_err();
    assert_eq!(rejected.check(None).unwrap().outcome, Outcome::Fail, "{rejected}");
    assert!(bench.lab.scheduler_detach().is_err(), "none is attached");
}

#[test]
fn detaching_is_no_exit() {
    let bench = bench(ExpectExit::None);
    bench.lab.scheduler_detach().unwrap();
    bench.fake.scheduler_leaves("unregistered from user space");
    *bench.fake.sched_state.lock().unwrap() = "disabled".into();
    bench.lab.hold(Span::Time(Duration::from_millis(10))).unwrap();
    bench.recorder.record(Check::pass("x"));
    bench.lab.finish();
    assert_eq!(outcome(&bench), Outcome::Pass);
    assert_eq!(bench.lab.scheduler_exit(), None);
}

#[test]
fn a_dead_machine_is_an_error_and_a_fault_only_when_it_is_the_engines() {
    let fault = ExitKind::EngineFault { evidence: "Oops: int3".into() };
    let panicked = ExitKind::Panicked { message: "out of memory".into() };
    for (kind, is_fault) in [(fault, true), (panicked, false)] {
        let bench = bench(ExpectExit::None);
        bench.fake.dies(kind.clone());
        let error = bench.lab.freeze("x", &CaptureRequest::default()).unwrap_err();
        assert_eq!(error, LabError::Machine(format!("the machine ended: {kind}")));
        let (logs, fault) = bench.lab.finish();
        assert_eq!(fault.is_some(), is_fault);
        assert_eq!(logs.console, "Linux version");
        assert_eq!(bench.fake.asked(), [], "nobody is there to ask");
        assert!(bench.fake.stopped.load(Ordering::Relaxed));
    }
}

#[test]
fn a_channel_that_cannot_be_trusted_ends_the_scenario() {
    let events = [
        (Event::ChannelDamaged { reason: "checksum".into() }, "damaged frame: checksum"),
        (Event::AgentFailed { reason: "no memory".into() }, "agent failed: no memory"),
        (Event::PoweringOff, "powers off, unasked"),
    ];
    for (event, says) in events {
        let bench = bench(ExpectExit::None);
        bench.fake.event(event);
        let error = bench.lab.cgroup_procs("x").map(|_| ()).and(bench.lab.dmesg().map(|_| ()));
        drop(error);
        let error = bench.lab.hold(Span::Time(Duration::from_secs(9))).unwrap_err();
        assert!(matches!(&error, LabError::Machine(text) if text.contains(says)), "{error:?}");
    }
}

#[test]
fn whoever_waits_stops_when_the_run_is_to_end() {
    let bench = bench(ExpectExit::None);
    bench.fake.silent.store(true, Ordering::Relaxed);
    let cancel = bench.cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.raise(crate::scenario::cell::Why::Told);
    });
    let started = Instant::now();
    let argv = ["sleep".to_string(), "1000".into()];
    let error = bench.lab.exec(&argv, Duration::from_secs(1000)).unwrap_err();
    assert_eq!(error, LabError::Interrupted);
    let error = bench.lab.hold(Span::Time(Duration::from_secs(1000))).unwrap_err();
    assert_eq!(error, LabError::Interrupted);
    assert!(started.elapsed() < Duration::from_secs(20));
    bench.lab.finish();
    assert!(bench.fake.stopped.load(Ordering::Relaxed));
}

#[test]
fn groups_are_checked_before_the_guest_is_asked() {
    let Bench { lab, fake, .. } = bench(ExpectExit::None);
    let options = GroupOptions { cpus: Some("llc:1".into()), ..GroupOptions::default() };
    let text = |result: LabResult<()>| result.unwrap_err().to_string();
    assert_eq!(
        text(lab.cgroup_freeze("hot", true)),
        "there is no cgroup \"hot\"; t.new_cgroup(\"hot\") makes it"
    );
    lab.new_cgroup("hot", &options).unwrap();
    let Some(Op::CgroupCreate { name, set }) = fake.asked().pop() else { panic!() };
    assert_eq!((name.as_str(), set.cpus.as_deref()), ("hot", Some("2-3")));
    assert_eq!(
        text(lab.new_cgroup("hot", &options)),
        "there is a cgroup \"hot\" already; t.cgroup(\"hot\") gives it"
    );
    assert_eq!(
        text(lab.cgroup_freeze("hott", true)),
        "there is no cgroup \"hott\"; did you mean \"hot\"?"
    );
    assert_eq!(text(lab.cgroup_stop("xyzzy")), "there is no cgroup \"xyzzy\"; there are hot");
    assert!(text(lab.cgroup_set_cpus("hot", "llc:7")).contains("llc:7"));
    assert_eq!(fake.asked(), [], "the guest was not asked");
    lab.cgroup_remove("hot").unwrap();
    assert_eq!(lab.cgroups(), Vec::<String>::new());
}

#[test]
fn workers_are_bound_to_the_cpus_that_are_meant() {
    let Bench { lab, fake, .. } = bench(ExpectExit::None);
    let spin = WorkOptions::new(WorkKind::Spin);
    let bound = WorkOptions { affinity: Some("llc:1".into()), count: 2, ..spin };
    assert_eq!(lab.start(None, &bound).unwrap(), [100, 101]);
    let Some(Op::Start(work)) = fake.asked().pop() else { panic!() };
    assert_eq!(work.affinity, Some(vec![2, 3]));
}

#[test]
fn reports_of_workers_are_asked_for_in_parts_and_checked() {
    let Bench { lab, fake, .. } = bench(ExpectExit::None);
    let text = |error: LabResult<Vec<WorkerReport>>| format!("{:?}", error.unwrap_err());
    let none =
        "no worker with the pid 7 was started; t.start(..) starts workers and gives their pids";
    assert!(text(lab.worker_reports(&[7])).contains(none));
    let many = WorkOptions { count: 70, ..WorkOptions::new(WorkKind::Spin) };
    let pids = lab.start(None, &many).unwrap();
    assert_eq!(lab.workers(), pids);
    let some = "no worker with the pid 7 was started; the pids of all 70 are in t.reports()";
    assert!(text(lab.worker_reports(&[100, 7])).contains(some));
    fake.asked();

    // One of them has ended long ago.
    let reports: Vec<_> = pids.iter().skip(1).map(|pid| made_up(*pid, 3)).collect();
    fake.answer(Ok(Answer::Reports(reports[..63].to_vec())));
    fake.answer(Ok(Answer::Reports(reports[63..].to_vec())));
    assert_eq!(lab.worker_reports(&pids).unwrap(), reports);
    let parts = fake.asked().into_iter().map(|op| match op {
        Op::WorkerReports { pids } => pids.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(parts.collect::<Vec<_>>(), [64, 6]);

    let spoilt = WorkerReport { units: u64::MAX, ..made_up(101, 3) };
    let bad: [Vec<WorkerReport>; 4] = [
        vec![spoilt],
        vec![made_up(102, 3), made_up(101, 3)],
        vec![made_up(101, 3), made_up(101, 3)],
        vec![made_up(1, 3)],
    ];
    for reports in bad {
        fake.answer(Ok(Answer::Reports(reports)));
        let said = text(lab.worker_reports(&[101, 102]));
        assert!(said.contains("gave reports of workers that make no sense"), "{said}");
    }
    assert!(text(lab.worker_reports(&[101])).contains("an answer that does not fit"));
}

#[test]
fn workers_that_the_scheduler_does_not_schedule_are_noticed() {
    for (strays, want) in [(vec![], Outcome::Pass), (vec![(100, 0)], Outcome::Inconclusive)] {
        let bench = bench(ExpectExit::None);
        bench.recorder.record(Check::pass("x"));
        let state = SchedulerState { state: "enabled".into(), strays, ..SchedulerState::default() };
        bench.fake.answer(Ok(Answer::Scheduler(state)));
        bench.lab.finish();
        assert_eq!(outcome(&bench), want);
    }
}

#[test]
fn a_machine_that_is_lost_after_the_last_check_is_an_error() {
    let lost = |break_it: &dyn Fn(&Fake)| {
        let bench = bench(ExpectExit::None);
        bench.recorder.record(Check::pass("all was well"));
        break_it(&bench.fake);
        bench.lab.finish();
        assert_eq!(outcome(&bench), Outcome::Error);
        let [failure] = &bench.recorder.failures()[..] else { panic!("one failure") };
        failure.message.clone().unwrap_or_default()
    };
    let panicked = || ExitKind::Panicked { message: "Attempted to kill init".into() };
    let text = lost(&|fake| fake.dies(panicked()));
    assert_eq!(text, format!("the machine ended: {}", panicked()));
    let text = lost(&|fake| fake.event(Event::AgentFailed { reason: "no memory".into() }));
    assert_eq!(text, "the guest's agent failed: no memory");
    let starved = || Err(CallError::Timeout("the agent did not answer".into()));
    assert_eq!(lost(&|fake| fake.answer(starved())), "the agent did not answer");
    // While the scheduler is let go of.
    let text = lost(&|fake| {
        let state = SchedulerState { state: "enabled".into(), ..SchedulerState::default() };
        fake.answer(Ok(Answer::Scheduler(state)));
        fake.answer(Err(CallError::Gone("the machine ended: panicked".into())));
    });
    assert_eq!(text, "the machine ended: panicked");
}

#[test]
fn refusals_reach_the_script_as_its_own_mistakes() {
    let Bench { lab, fake, .. } = bench(ExpectExit::None);
    let refusal = Refusal {
        kind: RefusalKind::NotFound,
        message: "there is no program \"lss\" in the guest".into(),
        log: String::new(),
    };
    fake.answer(Err(CallError::Refused(refusal)));
    let error = lab.exec(&["lss".into()], Duration::from_secs(1)).unwrap_err();
    assert_eq!(error, LabError::Argument("there is no program \"lss\" in the guest".into()));
    let error = lab.exec(&[], Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().starts_with("exec([]) names no program"), "{error}");
    fake.answer(Ok(Answer::Done));
    let error = lab.exec(&["ls".into()], Duration::from_secs(1)).unwrap_err();
    assert!(matches!(&error, LabError::Machine(text) if text.ends_with(": Done")), "{error:?}");
}

#[test]
fn logs_are_kept_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    for (attempt, suffix) in [(1, ""), (2, "-2")] {
        let mut bench = bench(ExpectExit::None);
        bench.lab.parts.keep = Some(dir.path().join("cell"));
        bench.lab.parts.attempt = attempt;
        bench.lab.finish();
        for (name, text) in
            [("console", "Linux version\n"), ("scheduler", "attached\n"), ("dmesg", "booted\n")]
        {
            let path = dir.path().join(format!("cell/{name}{suffix}.log"));
            assert_eq!(std::fs::read_to_string(path).unwrap(), text);
        }
    }
}

#[test]
fn the_end_of_the_machine_is_seen_without_asking_it_anything() {
    let bench = bench(ExpectExit::Any);
    assert_eq!(bench.lab.ended(), None);
    let left = Event::SchedulerExited {
        reason: "runnable task stall".into(),
        log: String::new(),
        dmesg: String::new(),
    };
    bench.fake.events.lock().unwrap().push_back(left);
    assert_eq!(bench.lab.ended(), None, "the machine goes on without its scheduler");
    assert!(bench.lab.scheduler_exit().is_some());
    bench.fake.events.lock().unwrap().push_back(Event::PoweringOff);
    assert_eq!(bench.lab.ended().as_deref(), Some("the guest powers off, unasked"));
    bench.lab.stop();
    assert!(bench.fake.stopped.load(Ordering::Relaxed));
}

#[test]
fn what_was_captured_of_a_death_is_in_the_failure() {
    let bench = bench(ExpectExit::None);
    let trigger = Trigger::ErrorExit { cpu: Some(1), function: Some("f".into()), late_us: None };
    let meta = Meta { tag: "error exit".into(), trigger, ..Meta::default() };
    let mut tell = bench.lab.state().inbox.tell(caught::For::Exit);
    tell(Snapshot::new(meta, vec![], vec![]));
    assert!(bench.lab.watching().death().is_none(), "it is taken over with the next call");
    bench.fake.scheduler_leaves("runnable task stall");
    let error = bench.lab.dmesg().map(drop).and_then(|()| bench.lab.hold(Span::Fraction(0.1)));
    let text = error.unwrap_err().to_string();
    assert!(text.starts_with("the scheduler left unasked after 0.0"), "{text}");
    let told = "s: runnable task stall\ncaptured because of a scheduler's exit, trapped in f by CPU \
                1\nall of it: snapshot \"error exit\"";
    assert!(text.ends_with(told), "{text}");
    assert!(bench.lab.watching().death().is_some());
    assert_eq!(bench.lab.snapshots().len(), 1, "it is among the others");
    let exit = bench.lab.scheduler_exit().unwrap();
    assert_eq!((exit.kind, exit.message), (None, None), "no kernel was copied");
}

#[test]
fn fires_are_kept_and_told_and_watches_are_ended() {
    let bench = bench(ExpectExit::None);
    let target = WatchTarget { symbol: "x".into(), ..WatchTarget::default() };
    let options = WatchOptions { target, request: CaptureRequest::default(), most: 20 };
    let (number, name) = bench.lab.watching().watch(&options).unwrap();
    assert_eq!(name, "x");
    let mut tell = bench.lab.state().inbox.tell(caught::For::Watch(number));
    tell(Snapshot::new(Meta { tag: "watch x 1".into(), ..Meta::default() }, vec![], vec![]));
    assert_eq!(bench.lab.watching().fires(number).unwrap().len(), 1);
    assert_eq!(bench.lab.snapshot("watch x 1").map(|s| s.tag().to_owned()).unwrap(), "watch x 1");
    assert_eq!(bench.lab.watching().count(number).unwrap().fires, 7, "the machine knows");
    bench.recorder.record(Check::pass("x"));
    bench.lab.finish();
    assert_eq!(bench.lab.watching().count(number).unwrap().fires, 7, "and so do we afterwards");
    bench.lab.watching().unwatch(number).unwrap();
    let none = bench.lab.watching().fires(99).unwrap();
    assert!(none.is_empty());
}
