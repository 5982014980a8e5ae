//! What a script may do with a live machine, as a trait: the script layer is tested against a
//! fake of it, and later machines (clones, remote ones) are further implementations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::monitor::MonitorOps;
pub use crate::freeze::WatchCount;
use crate::series::Sample;
use crate::snapshot::{
    CaptureRequest, MissingStatsReason, Place, Scalar, Snapshot, SnapshotError, WatchTarget,
};
use crate::vm::topology::Topology;
pub use crate::wire::{Exec as ExecOutcome, Policy, SchedulerState, WorkKind, WorkerReport};

use super::monitor::NoMonitor;
use super::samples::SampleReport;
use super::verdict::{Check, ScriptPos};
use super::{SchedulerExit, SchedulerOptions};

/// What comes of asking the laboratory for something.
pub type LabResult<T> = Result<T, LabError>;

/// Why the laboratory did not do what it was asked. Every variant's text is a whole message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabError {
    /// The author asked for something that makes no sense or is not there. A script may catch it.
    #[error("{0}")]
    Argument(String),
    /// A snapshot lacks what was asked for. A script may catch it, as what an accessor throws.
    #[error("{0}")]
    Snapshot(Box<SnapshotError>),
    /// The machine cannot serve what was asked for; the scenario is skipped with this reason.
    #[error("{0}")]
    Unsupported(String),
    /// What the scenario needs cannot be had: a kernel, a compiler, a file, memory.
    #[error("{0}")]
    Setup(String),
    /// The machine or the engine is at fault: nothing can be judged.
    #[error("{0}")]
    Machine(String),
    /// The scheduler under test is at fault: it was rejected, or it left unasked.
    #[error("{0}")]
    Scheduler(String),
    /// Something did not happen in its time; the text names what was waited for.
    #[error("{0}")]
    Timeout(String),
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// The judgement that follows when nothing catches this: a scheduler at fault is a Fail, all
    /// else an Error. None follows from [`LabError::Unsupported`], for which the caller records a
    /// skip, nor from [`LabError::Interrupted`], which whoever interrupted explains.
    #[must_use]
    pub fn check(&self, at: Option<ScriptPos>) -> Option<Check> {
        let text = self.to_string();
        match self {
            LabError::Unsupported(_) | LabError::Interrupted => None,
            LabError::Scheduler(_) => Some(Check::fail("scheduler", text).at(at)),
            LabError::Argument(_) | LabError::Snapshot(_) => {
                Some(Check::error("script", text).at(at))
            }
            LabError::Timeout(_) => Some(Check::error("deadline", text).at(at)),
            LabError::Setup(_) => Some(Check::error("set-up", text).at(at)),
            LabError::Machine(_) => Some(Check::error("machine", text).at(at)),
        }
    }

    /// Whether a script's `catch` may see this. Of the others the scenario is over.
    #[must_use]
    pub fn is_catchable(&self) -> bool {
        matches!(self, LabError::Argument(_) | LabError::Snapshot(_) | LabError::Timeout(_))
    }
}

/// A stretch of the workload's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// This long.
    Time(Duration),
    /// This part (1.0 is all) of the scenario's `duration`.
    Fraction(f64),
}

impl Span {
    /// How long that is in a scenario of this duration.
    #[must_use]
    pub fn of(self, duration: Duration) -> Duration {
        match self {
            Span::Time(time) => time,
            Span::Fraction(part) if part.is_finite() && part > 0.0 => {
                Duration::try_from_secs_f64(duration.as_secs_f64() * part).unwrap_or(Duration::MAX)
            }
            Span::Fraction(_) => Duration::ZERO,
        }
    }
}

/// Settings of a new cgroup; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOptions {
    /// CPUs in the script's spelling: `all`, `0-3,8`, `llc:0`, ...
    pub cpus: Option<String>,
    /// NUMA nodes as a kernel list, `0` or `0-1`.
    pub mems: Option<String>,
    /// `cpu.weight`, 1 to 10,000.
    pub weight: Option<u64>,
    /// `cpu.max`, as the kernel spells it.
    pub cpu_max: Option<String>,
}

/// Workers to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkOptions {
    /// What each does.
    pub work: WorkKind,
    /// How many processes; even for [`WorkKind::Pipe`].
    pub count: u32,
    /// Scheduling policy; without one a worker is scheduled by the scheduler under test.
    pub policy: Option<Policy>,
    /// Nice value, -20 to 19.
    pub nice: Option<i32>,
    /// CPUs to bind to, in the script's spelling.
    pub affinity: Option<String>,
    /// For [`WorkKind::Sleep`]: how long between wake-ups.
    pub period: Option<Duration>,
}

impl WorkOptions {
    /// One worker of this kind, everything else by default.
    #[must_use]
    pub fn new(work: WorkKind) -> Self {
        WorkOptions {
            work,
            count: if work == WorkKind::Pipe { 2 } else { 1 },
            policy: None,
            nice: None,
            affinity: None,
            period: None,
        }
    }
}

/// What is known about a machine from its start.
#[derive(Clone, Debug, PartialEq)]
pub struct LabFacts {
    /// The running kernel's `uname -r`.
    pub kernel_release: String,
    /// The kernel as it was asked for.
    pub kernel_spec: String,
    /// The shape of the machine.
    pub topology: Topology,
    /// The engine's name.
    pub engine: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// The scheduler's name (`none` for the kernel's own).
    pub scheduler: String,
    /// The scenario's duration.
    pub duration: Duration,
}

/// A place to be watched, and what to copy at each write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which place.
    pub target: WatchTarget,
    /// What to copy; the registers and the variable itself are copied in any case.
    pub request: CaptureRequest,
    /// How many captures there may be in a second of guest time.
    pub most: u32,
}

/// Watches of a live machine.
pub trait WatchOps {
    /// Begins to capture each write to a place: a number for this watch, and what the place is
    /// called.
    ///
    /// # Errors
    /// There is no such place, or too many are watched ([`LabError::Argument`]); the engine has
    /// no watchpoints ([`LabError::Unsupported`]).
    fn watch(&self, options: &WatchOptions) -> LabResult<(u64, String)>;

    /// The snapshots that a watch took so far, in order.
    ///
    /// # Errors
    /// The machine died, the scheduler left.
    fn fires(&self, watch: u64) -> LabResult<Vec<Arc<Snapshot>>>;

    /// What became of a watch so far.
    ///
    /// # Errors
    /// The machine died.
    fn count(&self, watch: u64) -> LabResult<WatchCount>;

    /// Ends a watch. Nothing to do when it has ended.
    ///
    /// # Errors
    /// The machine died.
    fn unwatch(&self, watch: u64) -> LabResult<()>;

    /// The snapshot of the instant at which the scheduler left unasked, if it was captured.
    fn death(&self) -> Option<Arc<Snapshot>>;
}

/// A machine without watches.
struct NoWatches;

impl WatchOps for NoWatches {
    fn watch(&self, _: &WatchOptions) -> LabResult<(u64, String)> {
        Err(LabError::Unsupported("this machine has no watchpoints".to_owned()))
    }

    fn fires(&self, _: u64) -> LabResult<Vec<Arc<Snapshot>>> {
        Ok(Vec::new())
    }

    fn count(&self, _: u64) -> LabResult<WatchCount> {
        Ok(WatchCount::default())
    }

    fn unwatch(&self, _: u64) -> LabResult<()> {
        Ok(())
    }

    fn death(&self) -> Option<Arc<Snapshot>> {
        None
    }
}

/// Samples that are taken of a live machine while the script does something else.
pub trait SampleOps {
    /// Sample `index` of those taken so far, from 0. One that went to a file is read from there.
    ///
    /// # Errors
    /// The file cannot be read any more ([`LabError::Machine`]).
    fn sample(&self, index: usize) -> LabResult<Option<Arc<Snapshot>>>;

    /// All that were taken so far, in order.
    fn taken(&self) -> Vec<Sample>;

    /// What came of them so far.
    fn report(&self) -> SampleReport;
}

/// A machine of which none are taken.
struct NoSamples;

impl SampleOps for NoSamples {
    fn sample(&self, _: usize) -> LabResult<Option<Arc<Snapshot>>> {
        Ok(None)
    }

    fn taken(&self) -> Vec<Sample> {
        Vec::new()
    }

    fn report(&self) -> SampleReport {
        SampleReport::default()
    }
}

/// A live machine with a scheduler and a workload. Every method may be called from any thread;
/// waiting ones return [`LabError::Interrupted`] when the run is to end, and
/// [`LabError::Scheduler`] when the scheduler has left although it was meant to stay.
pub trait LabOps: Send + Sync {
    /// What is known from the start.
    fn facts(&self) -> &LabFacts;

    /// Milliseconds on the workload clock: since the scheduler was attached (without one: since
    /// the agent was ready), the pauses taken out.
    fn elapsed_ms(&self) -> u64;

    /// The same, exactly.
    fn elapsed(&self) -> Duration;

    /// Stops the machine, copies what is asked for, lets it run on. A tag that was
    /// used before gets `#2`, with a note. A machine that cannot be stopped in time gives a
    /// placeholder, whose accessors say why.
    ///
    /// # Errors
    /// The machine died, or its memory cannot be read at all.
    fn freeze(&self, tag: &str, request: &CaptureRequest) -> LabResult<Arc<Snapshot>>;

    /// A tag that no snapshot has yet: this one, or with a number, which is noted.
    fn fresh_tag(&self, tag: &str) -> String;

    /// The same without keeping it among [`LabOps::snapshots`], which [`LabOps::keep`] does.
    /// The tag is taken as it is. `seen` is when something was read that is the reason for it, after [`LabOps::prepare`] for
    /// the same request: how much later the machine stood is in the snapshot then.
    ///
    /// # Errors
    /// As [`LabOps::freeze`].
    fn freeze_unkept(
        &self,
        tag: &str,
        request: &CaptureRequest,
        seen: Option<Instant>,
    ) -> LabResult<Arc<Snapshot>>;

    /// Keeps a snapshot among [`LabOps::snapshots`].
    fn keep(&self, snapshot: &Arc<Snapshot>);

    /// Copies what is asked for while the machine runs on, so that values may be torn; when that
    /// began, too. Nothing is kept.
    ///
    /// # Errors
    /// As [`LabOps::freeze`].
    fn look(&self, request: &CaptureRequest) -> LabResult<(Arc<Snapshot>, Instant)>;

    /// Does beforehand, while the machine runs, what makes a freeze or a look short.
    ///
    /// # Errors
    /// As [`LabOps::freeze`].
    fn prepare(&self, request: &CaptureRequest) -> LabResult<()>;

    /// Reads single values of the machine, or writes one and gives what was there before;
    /// `frozen` stops it for that.
    ///
    /// # Errors
    /// [`LabError::Argument`]: no such place, or it cannot be written; the machine died, or did not
    /// stop in time.
    fn edit(&self, place: &Place, value: Option<&Scalar>, frozen: bool) -> LabResult<Vec<Scalar>>;

    /// Stops the machine until [`LabOps::resume`]. Nothing to do when it is paused already.
    ///
    /// # Errors
    /// The machine died, or did not stop in time and runs.
    fn pause(&self) -> LabResult<()>;

    /// Lets a paused machine run on. Nothing to do when it runs.
    ///
    /// # Errors
    /// The machine died.
    fn resume(&self) -> LabResult<()>;

    /// Whether the machine is paused.
    fn is_paused(&self) -> bool;

    /// Every snapshot so far, in order.
    fn snapshots(&self) -> Vec<Arc<Snapshot>>;

    /// The snapshot of that tag.
    fn snapshot(&self, tag: &str) -> Option<Arc<Snapshot>> {
        self.snapshots().into_iter().find(|s| s.tag() == tag)
    }

    /// Lets the workload run for this long of its own time.
    ///
    /// # Errors
    /// Interrupted, the machine died, the scheduler left.
    fn hold(&self, span: Span) -> LabResult<()>;

    /// Begins the phase `name` and holds.
    ///
    /// # Errors
    /// As [`LabOps::hold`].
    fn step(&self, name: &str, span: Span) -> LabResult<()>;

    /// Makes a cgroup.
    ///
    /// # Errors
    /// The name exists or is no single path component; a setting that the kernel refuses.
    fn new_cgroup(&self, name: &str, set: &GroupOptions) -> LabResult<()>;

    /// The cgroups made so far, in order.
    fn cgroups(&self) -> Vec<String>;

    /// Changes a group's CPUs, given in the script's spelling.
    ///
    /// # Errors
    /// No such group (with the nearest name), no such CPUs.
    fn cgroup_set_cpus(&self, name: &str, cpus: &str) -> LabResult<()>;

    /// Freezes or thaws a group; returns when the kernel says it is so.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_freeze(&self, name: &str, frozen: bool) -> LabResult<()>;

    /// The pids in a group.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_procs(&self, name: &str) -> LabResult<Vec<u32>>;

    /// A group's statistics: file (`cpu.stat`, ..) to its text.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_stats(&self, name: &str) -> LabResult<BTreeMap<String, String>>;

    /// Moves every process of one group to another.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_move(&self, from: &str, to: &str) -> LabResult<()>;

    /// Kills and reaps the workers of a group.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_stop(&self, name: &str) -> LabResult<()>;

    /// Kills what runs in a group and removes it.
    ///
    /// # Errors
    /// No such group.
    fn cgroup_remove(&self, name: &str) -> LabResult<()>;

    /// Starts workers, in a group or outside of any; gives their pids.
    ///
    /// # Errors
    /// No such group, no such CPUs, more workers than sensible.
    fn start(&self, cgroup: Option<&str>, work: &WorkOptions) -> LabResult<Vec<u32>>;

    /// Pids of the workers that were started, in this order; of very many, the last.
    fn workers(&self) -> Vec<u32>;

    /// What workers did so far, in the order of the pids. Of those that ended long ago nothing may be
    /// known any more; they are left out.
    ///
    /// # Errors
    /// No such worker was started.
    fn worker_reports(&self, pids: &[u32]) -> LabResult<Vec<WorkerReport>>;

    /// Runs a program in the guest to its end, or kills it when its time is up.
    ///
    /// # Errors
    /// No such program in the guest.
    fn exec(&self, argv: &[String], timeout: Duration) -> LabResult<ExecOutcome>;

    /// The kernel's log so far.
    ///
    /// # Errors
    /// The machine died.
    fn dmesg(&self) -> LabResult<String>;

    /// The machine's console so far (the end of it, when there is much).
    fn console(&self) -> String;

    /// sched_ext as the guest's sysfs shows it.
    ///
    /// # Errors
    /// The machine died.
    fn scheduler_state(&self) -> LabResult<SchedulerState>;

    /// Detaches the scheduler; the kernel's own takes over.
    ///
    /// # Errors
    /// None is attached.
    fn scheduler_detach(&self) -> LabResult<()>;

    /// Brings up a scheduler where none is attached; while it is compiled the machine stands.
    ///
    /// # Errors
    /// One is attached; it cannot be had, or the kernel rejects it ([`LabError::Scheduler`]).
    fn scheduler_attach(&self, scheduler: &SchedulerOptions) -> LabResult<()>;

    /// Puts another scheduler in the place of the one that is attached; in between, the kernel's own
    /// is in charge.
    ///
    /// # Errors
    /// As [`LabOps::scheduler_attach`]; none is attached.
    fn scheduler_replace(&self, scheduler: &SchedulerOptions) -> LabResult<()>;

    /// Detaches the scheduler and brings it up again.
    ///
    /// # Errors
    /// None is attached; the kernel rejects it.
    fn scheduler_restart(&self) -> LabResult<()>;

    /// The name of the scheduler that is, or was last, attached; `none` where there never was one.
    fn scheduler_name(&self) -> String;

    /// What the scheduler's loader said so far.
    ///
    /// # Errors
    /// The machine died.
    fn scheduler_log(&self) -> LabResult<String>;

    /// Asks the scheduler for its statistics, or why there are none.
    ///
    /// # Errors
    /// The machine died, the scheduler left.
    fn stats(
        &self,
        target: &str,
        args: &BTreeMap<String, String>,
    ) -> LabResult<Result<serde_json::Value, MissingStatsReason>>;

    /// Which statistics the scheduler has, in its own words.
    ///
    /// # Errors
    /// As [`LabOps::stats`].
    fn stats_meta(&self) -> LabResult<Result<serde_json::Value, MissingStatsReason>>;

    /// Watches, and what was captured of the scheduler's end.
    fn watching(&self) -> &dyn WatchOps {
        &NoWatches
    }

    /// Periodic samples.
    fn sampling(&self) -> &dyn SampleOps {
        &NoSamples
    }

    /// The monitor.
    fn monitoring(&self) -> &dyn MonitorOps {
        &NoMonitor
    }

    /// How the scheduler left, when it left unasked.
    fn scheduler_exit(&self) -> Option<SchedulerExit>;
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Outcome;
    use super::*;

    #[test]
    fn spans_are_taken_of_the_duration() {
        let four = Duration::from_secs(4);
        let cases = [
            (Span::Time(Duration::from_millis(250)), Duration::from_millis(250)),
            (Span::Fraction(0.5), Duration::from_secs(2)),
            (Span::Fraction(1.5), Duration::from_secs(6)),
            (Span::Fraction(0.0), Duration::ZERO),
            (Span::Fraction(-1.0), Duration::ZERO),
            (Span::Fraction(f64::NAN), Duration::ZERO),
            (Span::Fraction(f64::INFINITY), Duration::ZERO),
            (Span::Fraction(1e300), Duration::MAX),
        ];
        for (span, want) in cases {
            assert_eq!(span.of(four), want, "{span:?}");
        }
    }

    #[test]
    fn what_nothing_catches_is_judged() {
        let text = || "x".to_string();
        let cases = [
            (LabError::Argument(text()), Some(Outcome::Error), true),
            (LabError::Timeout(text()), Some(Outcome::Error), true),
            (
                LabError::Snapshot(SnapshotError::PlaceholderSnapshot { tag: None }.into()),
                Some(Outcome::Error),
                true,
            ),
            (LabError::Setup(text()), Some(Outcome::Error), false),
            (LabError::Machine(text()), Some(Outcome::Error), false),
            (LabError::Scheduler(text()), Some(Outcome::Fail), false),
            (LabError::Interrupted, None, false),
            (LabError::Unsupported(text()), None, false),
        ];
        for (error, outcome, catchable) in cases {
            assert_eq!(error.check(None).map(|c| c.outcome), outcome, "{error:?}");
            assert_eq!(error.is_catchable(), catchable, "{error:?}");
        }
    }
}
