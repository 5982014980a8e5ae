//! The laboratory with a real machine in it.
//!
//! ```text
//!  Lab::boot:  kernel ─▶ scheduler ─▶ boot ─▶ attach ─▶ (running)
//!                                                         │  ▲ every call: events first
//!                                                         ▼  │
//!                                              hold, freeze, cgroups, workers, ..
//!                                                         │
//!  Lab::finish: was it the same scheduler to the end? ─▶ logs ─▶ power off
//! ```
//!
//! Before every call the events that came in meanwhile are taken: a scheduler that has left
//! unasked ends the scenario at the next call, unless it was meant to leave.

mod beside;
mod boot;
mod caught;
mod clock;
mod ending;
mod exits;
mod groups;
mod kept;
mod machine;
mod monitoring;
mod real;
mod sampled;
mod sampling;
mod schedulers;
mod snapshots;
mod stage;
mod stats;
#[cfg(test)]
mod tests;
mod watching;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

pub use boot::{BootFailed, Setup};

use super::cell::{Cancel, Events};
use super::event::{Logs, RunEvent};
use super::lab::{
    ExecOutcome, GroupOptions, LabError, LabFacts, LabOps, LabResult, MonitorOps, SampleOps,
    SchedulerState, Span, WatchOps, WorkOptions, WorkerReport,
};
use super::verdict::Recorder;
use super::{ExpectExit, SchedulerExit, SchedulerOptions};
use crate::scheduler::StagedFile;
use crate::snapshot::{CaptureRequest, MissingStatsReason, Place, Scalar, Snapshot};
use crate::wire::{Answer, Event, Op};
use caught::{Death, Inbox, Phase, Watches};
use clock::Clock;
use machine::{CallError, Machine};
use monitoring::{Latest, Monitor};
use sampling::Sampler;
use schedulers::{Current, Preparer};
use stats::Stats;

/// How long the agent may take for what it does at once: generous, since an emulated machine
/// with many busy CPUs gives the agent little time.
const CALL: Duration = Duration::from_secs(30);
/// How often a waiting call looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(50);
/// Ends of logs that go into the report.
const LOG_END: usize = 8 << 10;

/// A live machine with a scheduler and a workload.
pub struct Lab {
    machine: Arc<dyn Machine>,
    parts: Parts,
    state: Mutex<State>,
    stats: Stats,
    sampler: Sampler,
    monitor: Monitor,
    /// What the monitor has seen last.
    latest: Latest,
    /// When the machine was young.
    born: Instant,
    /// Whether the unasked exit has already ended the scenario, and so is recorded.
    exit_told: AtomicBool,
}

/// What a laboratory needs beside its machine.
struct Parts {
    facts: LabFacts,
    expect_exit: ExpectExit,
    /// The scheduler that was attached in the beginning.
    scheduler: Current,
    /// What is in the guest for its sake.
    staged: Vec<StagedFile>,
    /// What makes another one ready.
    preparer: Option<Preparer>,
    events: Events,
    recorder: Recorder,
    cancel: Cancel,
    keep: Option<PathBuf>,
    attempt: u32,
}

struct State {
    clock: Clock,
    phase: Phase,
    /// What was captured unasked and is not yet taken over.
    inbox: Inbox,
    watches: Watches,
    /// Schedulers that have left.
    deaths: Vec<Death>,
    /// Whether it was told that no more snapshots of watches are kept.
    full: bool,
    snapshots: Vec<Arc<Snapshot>>,
    groups: Vec<String>,
    /// Workers that were started, the last [`MAX_KNOWN`] of them.
    workers: VecDeque<u32>,
    exit: Option<SchedulerExit>,
    scheduler: Current,
    staged: Vec<StagedFile>,
    /// Whether there was a scheduler at any time.
    under_test: bool,
    /// What broke the channel, once something has.
    broken: Option<String>,
}

impl Lab {
    /// A laboratory whose workload begins now.
    fn new(machine: Arc<dyn Machine>, mut parts: Parts) -> Self {
        let scheduler = std::mem::take(&mut parts.scheduler);
        let under_test = scheduler.attached;
        let state = State {
            clock: Clock::starting(Instant::now(), machine.standstill()),
            phase: Phase::default(),
            inbox: Inbox::default(),
            watches: Watches::default(),
            deaths: Vec::new(),
            full: false,
            snapshots: Vec::new(),
            groups: Vec::new(),
            workers: VecDeque::new(),
            exit: None,
            scheduler,
            staged: std::mem::take(&mut parts.staged),
            under_test,
            broken: None,
        };
        let stats = Stats::new(machine.clone(), parts.cancel.clone());
        stats.changed(state.scheduler.serves());
        let (state, sampler) = (Mutex::new(state), Sampler::default());
        let (monitor, latest) = (Monitor::default(), Latest::default());
        let (born, exit_told) = (Instant::now(), AtomicBool::new(false));
        Lab { machine, parts, state, stats, sampler, monitor, latest, born, exit_told }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event into account.
    fn take(&self, event: Event) {
        match event {
            Event::SchedulerExited { reason, log, dmesg } => {
                self.scheduler_left(reason, log, dmesg)
            }
            Event::WorkerExited { pid, reason } => {
                self.parts.recorder.note(format!("worker {pid} ended by itself: {reason}"), None);
            }
            Event::ChannelDamaged { reason } => {
                let text = format!("the guest's agent received a damaged frame: {reason}");
                self.state().broken.get_or_insert(text);
            }
            Event::AgentFailed { reason } => {
                let text = format!("the guest's agent failed: {reason}");
                self.state().broken.get_or_insert(text);
            }
            Event::PoweringOff => {
                let text = "the guest powers off, unasked".to_string();
                self.state().broken.get_or_insert(text);
            }
        }
    }

    /// Takes all events that are there.
    fn take_all(&self) -> LabResult<()> {
        self.take_caught();
        while let Some(event) =
            self.machine.wait_event(Duration::ZERO).map_err(|e| self.failed(e))?
        {
            self.take(event);
        }
        Ok(())
    }

    /// Takes all events that are there, and says whether the scenario can go on.
    fn go_on(&self) -> LabResult<()> {
        self.take_all()?;
        self.is_well()?;
        match &self.state().exit {
            Some(exit) if self.parts.expect_exit == ExpectExit::None => {
                self.exit_told.store(true, Ordering::Relaxed);
                Err(LabError::Scheduler(ExpectExit::left_unasked(exit)))
            }
            _ => Ok(()),
        }
    }

    /// Whether the run is wanted, the machine runs and the agent can be trusted.
    fn is_well(&self) -> LabResult<()> {
        if self.parts.cancel.is_raised() {
            return Err(LabError::Interrupted);
        }
        if let Some(info) = self.machine.exited() {
            return Err(LabError::Machine(format!("the machine ended: {}", info.kind)));
        }
        match &self.state().broken {
            Some(broken) => Err(LabError::Machine(broken.clone())),
            None => Ok(()),
        }
    }

    /// The reason behind a failed call: that the machine is gone says more than that it does not
    /// answer.
    fn failed(&self, error: CallError) -> LabError {
        if self.parts.cancel.is_raised() {
            return LabError::Interrupted;
        }
        if !matches!(error, CallError::Refused(_))
            && let Some(info) = self.machine.exited()
        {
            return LabError::Machine(format!("the machine ended: {}", info.kind));
        }
        error.into_lab()
    }

    /// Refuses what a machine that is paused by hand cannot do.
    fn runs(&self, what: &str) -> LabResult<()> {
        if !self.machine.is_paused() {
            return Ok(());
        }
        Err(LabError::Argument(format!(
            "cannot {what}: the machine is paused, and stands until t.resume(); call that first"
        )))
    }

    /// Asks the agent, without a look at how the scheduler is.
    fn ask(&self, op: Op) -> LabResult<Answer> {
        self.runs("ask the guest")?;
        self.machine.call(op, CALL).map_err(|e| self.failed(e))
    }

    /// A call that is over in a moment.
    fn call(&self, op: Op) -> LabResult<Answer> {
        self.go_on()?;
        self.runs("ask the guest")?;
        self.machine.call(op, CALL).map_err(|e| self.failed(e))
    }

    /// A call that may take long: it ends when the run is to end.
    fn long_call(&self, op: Op, within: Duration) -> LabResult<Answer> {
        self.go_on()?;
        self.runs("ask the guest")?;
        let answer = call_while_wanted(&self.machine, op, within, &self.parts.cancel);
        answer?.map_err(|e| self.failed(e))
    }

    fn done(&self, op: Op) -> LabResult<()> {
        match self.call(op)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

/// The agent answered something else.
fn unexpected(answer: &Answer) -> LabError {
    let mut text = format!("{answer:?}");
    if let Some((at, _)) = text.char_indices().nth(100) {
        text.truncate(at);
    }
    LabError::Machine(format!("the guest's agent gave an answer that does not fit: {text}"))
}

/// Calls in a thread of its own and waits as long as the run is wanted. The thread of a call that
/// is no longer wanted ends with the machine.
fn call_while_wanted(
    machine: &Arc<dyn Machine>,
    op: Op,
    within: Duration,
    cancel: &Cancel,
) -> LabResult<Result<Answer, CallError>> {
    let (say, said) = mpsc::channel();
    let caller = machine.clone();
    let spawned = std::thread::Builder::new().name("call".into()).spawn(move || {
        let _ = say.send(caller.call(op, within));
    });
    spawned.map_err(beside::no_thread)?;
    loop {
        match said.recv_timeout(GLANCE) {
            Ok(answer) => return Ok(answer),
            Err(mpsc::RecvTimeoutError::Timeout) if !cancel.is_raised() => {}
            Err(_) => return Err(LabError::Interrupted),
        }
    }
}

impl LabOps for Lab {
    fn facts(&self) -> &LabFacts {
        &self.parts.facts
    }

    fn elapsed_ms(&self) -> u64 {
        self.state().clock.elapsed_ms(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.state().clock.elapsed(Instant::now())
    }

    fn freeze(&self, tag: &str, request: &CaptureRequest) -> LabResult<Arc<Snapshot>> {
        let snapshot = self.take_snapshot(&self.unused_tag(tag), request, None)?;
        self.keep(&snapshot);
        Ok(snapshot)
    }

    fn fresh_tag(&self, tag: &str) -> String {
        self.unused_tag(tag)
    }

    fn freeze_unkept(
        &self,
        tag: &str,
        request: &CaptureRequest,
        seen: Option<Instant>,
    ) -> LabResult<Arc<Snapshot>> {
        self.take_snapshot(tag, request, seen)
    }

    fn keep(&self, snapshot: &Arc<Snapshot>) {
        self.keep_snapshot(snapshot);
    }

    fn look(&self, request: &CaptureRequest) -> LabResult<(Arc<Snapshot>, Instant)> {
        self.go_on()?;
        self.machine.look(request, self.meta("live")).map_err(|e| self.failed(e))
    }

    fn prepare(&self, request: &CaptureRequest) -> LabResult<()> {
        self.go_on()?;
        self.machine.prepare(request).map_err(|e| self.failed(e))
    }

    fn edit(&self, place: &Place, value: Option<&Scalar>, frozen: bool) -> LabResult<Vec<Scalar>> {
        self.go_on()?;
        let edited = self.machine.edit(place, value, frozen).map_err(|e| self.failed(e))?;
        edited.map_err(LabError::Argument)
    }

    fn pause(&self) -> LabResult<()> {
        self.go_on()?;
        self.machine.pause().map_err(|e| self.failed(e))
    }

    fn resume(&self) -> LabResult<()> {
        self.go_on()?;
        self.machine.resume().map_err(|e| self.failed(e))
    }

    fn is_paused(&self) -> bool {
        self.machine.is_paused()
    }

    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.machine.catch_up();
        self.take_caught();
        self.state().snapshots.clone()
    }

    fn hold(&self, span: Span) -> LabResult<()> {
        let wanted = span.of(self.parts.facts.duration);
        let until = self.state().clock.elapsed(Instant::now()).saturating_add(wanted);
        loop {
            self.go_on()?;
            self.runs("wait for the workload")?;
            let left = until.saturating_sub(self.state().clock.elapsed(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            match self.machine.wait_event(left.min(GLANCE)) {
                Ok(Some(event)) => self.take(event),
                Ok(None) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn step(&self, name: &str, span: Span) -> LabResult<()> {
        self.go_on()?;
        let state = self.state();
        state.phase.set(name);
        let elapsed_ms = state.clock.elapsed_ms(Instant::now());
        drop(state);
        let (cell, name) = (self.parts.events.cell(), name.to_string());
        self.parts.events.send(&RunEvent::Phase { cell, name, elapsed_ms });
        self.hold(span)
    }

    fn new_cgroup(&self, name: &str, set: &GroupOptions) -> LabResult<()> {
        self.make_group(name, set)
    }

    fn cgroups(&self) -> Vec<String> {
        self.state().groups.clone()
    }

    fn cgroup_set_cpus(&self, name: &str, cpus: &str) -> LabResult<()> {
        self.set_group_cpus(name, cpus)
    }

    fn cgroup_freeze(&self, name: &str, frozen: bool) -> LabResult<()> {
        let name = self.known_group(name)?;
        self.done(Op::CgroupFreeze { name, frozen })
    }

    fn cgroup_procs(&self, name: &str) -> LabResult<Vec<u32>> {
        let name = self.known_group(name)?;
        match self.call(Op::CgroupProcs { name })? {
            Answer::Pids(pids) => Ok(pids),
            other => Err(unexpected(&other)),
        }
    }

    fn cgroup_stats(&self, name: &str) -> LabResult<BTreeMap<String, String>> {
        let name = self.known_group(name)?;
        match self.call(Op::CgroupStats { name })? {
            Answer::Files(files) => Ok(files.into_iter().collect()),
            other => Err(unexpected(&other)),
        }
    }

    fn cgroup_move(&self, from: &str, to: &str) -> LabResult<()> {
        let (from, to) = (self.known_group(from)?, self.known_group(to)?);
        self.done(Op::CgroupMove { from, to })
    }

    fn cgroup_stop(&self, name: &str) -> LabResult<()> {
        let cgroup = Some(self.known_group(name)?);
        self.done(Op::StopWorkers { cgroup })
    }

    fn cgroup_remove(&self, name: &str) -> LabResult<()> {
        let name = self.known_group(name)?;
        self.done(Op::CgroupRemove { name: name.clone() })?;
        self.state().groups.retain(|group| *group != name);
        Ok(())
    }

    fn start(&self, cgroup: Option<&str>, work: &WorkOptions) -> LabResult<Vec<u32>> {
        self.start_workers(cgroup, work)
    }

    fn workers(&self) -> Vec<u32> {
        self.state().workers.iter().copied().collect()
    }

    fn worker_reports(&self, pids: &[u32]) -> LabResult<Vec<WorkerReport>> {
        self.reports_of(pids)
    }

    fn exec(&self, argv: &[String], timeout: Duration) -> LabResult<ExecOutcome> {
        if argv.is_empty() {
            let text =
                "exec([]) names no program; give it and its arguments, as in [\"ls\", \"/\"]";
            return Err(LabError::Argument(text.into()));
        }
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let op = Op::Exec { argv: argv.to_vec(), timeout_ms };
        match self.long_call(op, timeout.saturating_add(CALL))? {
            Answer::Exec(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    fn dmesg(&self) -> LabResult<String> {
        match self.ask(Op::Dmesg)? {
            Answer::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    fn console(&self) -> String {
        self.machine.console()
    }

    fn scheduler_state(&self) -> LabResult<SchedulerState> {
        match self.ask(Op::SchedulerState)? {
            Answer::Scheduler(state) => Ok(state),
            other => Err(unexpected(&other)),
        }
    }

    fn scheduler_detach(&self) -> LabResult<()> {
        self.detach_scheduler()
    }

    fn scheduler_attach(&self, scheduler: &SchedulerOptions) -> LabResult<()> {
        self.attach_scheduler(scheduler)
    }

    fn scheduler_replace(&self, scheduler: &SchedulerOptions) -> LabResult<()> {
        self.replace_scheduler(scheduler)
    }

    fn scheduler_restart(&self) -> LabResult<()> {
        self.restart_scheduler()
    }

    fn scheduler_name(&self) -> String {
        self.state().scheduler.name.clone()
    }

    fn scheduler_log(&self) -> LabResult<String> {
        self.scheduler_state().map(|state| state.log)
    }

    fn stats(
        &self,
        target: &str,
        args: &BTreeMap<String, String>,
    ) -> LabResult<Result<serde_json::Value, MissingStatsReason>> {
        self.go_on()?;
        Ok(self.stats.ask(target, args, None))
    }

    fn stats_meta(&self) -> LabResult<Result<serde_json::Value, MissingStatsReason>> {
        self.go_on()?;
        Ok(self.stats.meta())
    }

    fn watching(&self) -> &dyn WatchOps {
        self
    }

    fn sampling(&self) -> &dyn SampleOps {
        self
    }

    fn monitoring(&self) -> &dyn MonitorOps {
        self
    }

    fn scheduler_exit(&self) -> Option<SchedulerExit> {
        self.state().exit.clone()
    }
}
