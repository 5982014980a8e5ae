//! What the laboratory needs of a machine, and how its answers become [`LabError`]s. A trait, so
//! that everything above is tested without booting anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::freeze::{ExitOrder, ExitWay, WatchCount, WatchId, WatchOrder};
use crate::scenario::lab::LabError;
use crate::scenario::text::tail;
use crate::snapshot::{
    CaptureRequest, Meta, Place, Reading, Scalar, Snapshot, SnapshotError, WatchPlace, WatchTarget,
};
use crate::vm::{ExitInfo, Standstill};
use crate::wire::{Answer, Event, Op, Refusal, RefusalKind};

/// Lines of the verifier's or a loader's words that go into a message.
const LOG_LINES: usize = 20;

/// Says when and in which phase a snapshot is taken.
pub(super) type MakeMeta = Box<dyn FnOnce() -> Meta + Send>;

/// A machine that runs, with the agent in it.
pub(super) trait Machine: Send + Sync {
    /// Asks the agent, and waits for its answer.
    fn call(&self, op: Op, within: Duration) -> Result<Answer, CallError>;

    /// Waits for something that happened unasked; `None` when nothing did.
    fn wait_event(&self, within: Duration) -> Result<Option<Event>, CallError>;

    /// Stops the CPUs, copies, lets them run on. `meta` is asked for just before; its `pause` is
    /// filled in. `seen` is when something was read that is the reason, after a
    /// [`Machine::prepare`] for the same request.
    fn freeze(
        &self,
        request: &CaptureRequest,
        seen: Option<Instant>,
        meta: MakeMeta,
    ) -> Result<Arc<Snapshot>, CallError>;

    /// Copies while the CPUs run; when that began, too.
    fn look(
        &self,
        request: &CaptureRequest,
        meta: MakeMeta,
    ) -> Result<(Arc<Snapshot>, Instant), CallError>;

    /// Reads what a monitor wants to know while the CPUs run; when that began, too.
    fn monitor(&self) -> Result<(Reading, Instant), CallError> {
        Err(CallError::Lacks("this machine cannot be monitored".to_owned()))
    }

    /// Does beforehand what makes a freeze or a look short.
    fn prepare(&self, request: &CaptureRequest) -> Result<(), CallError>;

    /// Reads single values, or writes one and gives the old; what is wrong with the place.
    fn edit(
        &self,
        place: &Place,
        value: Option<&Scalar>,
        frozen: bool,
    ) -> Result<Result<Vec<Scalar>, String>, CallError>;

    /// Stops the CPUs until [`Machine::resume`].
    fn pause(&self) -> Result<(), CallError>;

    /// Lets them run on.
    fn resume(&self) -> Result<(), CallError>;

    /// Whether they are stopped by [`Machine::pause`].
    fn is_paused(&self) -> bool;

    /// How long the machine has stood still.
    fn standstill(&self) -> Standstill;

    /// Finds a place that is to be watched.
    fn watch_place(&self, target: &WatchTarget) -> Result<WatchPlace, CallError> {
        Err(CallError::Lacks(format!("{} cannot be watched here", target.symbol)))
    }

    /// Begins to capture each write to a place.
    fn watch(&self, order: WatchOrder) -> Result<WatchId, CallError> {
        Err(CallError::Lacks(format!("{} cannot be watched here", order.place.name)))
    }

    /// Ends a watch; what became of it.
    fn unwatch(&self, _: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(None)
    }

    /// What became of a watch so far; `None` once it has ended.
    fn watch_count(&self, _: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(None)
    }

    /// Captures from now on what schedulers leave behind.
    fn expect_exits(&self, _: ExitOrder) -> Result<ExitWay, CallError> {
        Err(CallError::Lacks("exits cannot be captured here".to_owned()))
    }

    /// Lets schedulers leave from now on.
    fn forget_exits(&self) {}

    /// Waits until everything that was captured unasked so far has been handed out.
    fn catch_up(&self) {}

    /// The console so far.
    fn console(&self) -> String;

    /// How it ended, once it has.
    fn exited(&self) -> Option<ExitInfo>;

    /// Ends it at once.
    fn stop(&self);
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// The agent says no.
    Refused(Refusal),
    /// It does not answer; the text says to what and how long it had.
    Timeout(String),
    /// What was asked for makes no sense or is not there; a whole message.
    Invalid(String),
    /// The engine cannot do that; a whole message.
    Lacks(String),
    /// Not all CPUs stopped in time; the machine runs, and may be asked again.
    Late(String),
    /// The machine or the channel to it is gone, or cannot be trusted any more.
    Gone(String),
    /// The machine is well, but the snapshot lacks what was asked for.
    Snapshot(SnapshotError),
}

impl CallError {
    /// What it means for a script that asked for something.
    pub(super) fn into_lab(self) -> LabError {
        match self {
            CallError::Refused(refusal) => refused(&refusal),
            CallError::Timeout(text) | CallError::Gone(text) => LabError::Machine(text),
            CallError::Late(text) => LabError::Timeout(text),
            CallError::Invalid(text) => LabError::Argument(text),
            CallError::Lacks(text) => LabError::Unsupported(text),
            CallError::Snapshot(error) => LabError::Snapshot(error.into()),
        }
    }

    /// What it means for a scheduler that was to be attached: what the kernel or its loader says
    /// about it is its own fault.
    pub(super) fn into_lab_of_attach(self, name: &str) -> LabError {
        let CallError::Refused(refusal) = self else {
            return self.into_lab();
        };
        let text = with_log(&refusal);
        match refusal.kind {
            RefusalKind::Verifier => {
                LabError::Scheduler(format!("the kernel's verifier rejects {name}: {text}"))
            }
            RefusalKind::Exited | RefusalKind::Timeout | RefusalKind::Kernel => {
                LabError::Scheduler(format!("{name} could not be attached: {text}"))
            }
            RefusalKind::NotFound | RefusalKind::Invalid => {
                LabError::Machine(format!("{name} could not be attached: {text}"))
            }
        }
    }
}

fn refused(refusal: &Refusal) -> LabError {
    let text = with_log(refusal);
    match refusal.kind {
        RefusalKind::Timeout => LabError::Timeout(text),
        _ => LabError::Argument(text),
    }
}

fn with_log(refusal: &Refusal) -> String {
    let end = tail(&refusal.log, LOG_LINES, 4096);
    if end.trim().is_empty() {
        return refusal.message.clone();
    }
    format!("{}\n{end}", refusal.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(kind: RefusalKind, log: &str) -> CallError {
        CallError::Refused(Refusal { kind, message: "no such thing".into(), log: log.into() })
    }

    #[test]
    fn refusals_are_the_authors_unless_they_are_about_the_scheduler() {
        use RefusalKind as K;
        for kind in [K::NotFound, K::Invalid, K::Kernel] {
            let error = refusal(kind, "").into_lab();
            assert_eq!(error, LabError::Argument("no such thing".into()), "{kind:?}");
        }
        assert!(matches!(refusal(K::Timeout, "").into_lab(), LabError::Timeout(_)));
        for kind in [K::Verifier, K::Exited, K::Kernel, K::Timeout] {
            let error = refusal(kind, "").into_lab_of_attach("fifo");
            assert!(matches!(error, LabError::Scheduler(_)), "{kind:?}: {error:?}");
        }
        for kind in [K::NotFound, K::Invalid] {
            let error = refusal(kind, "").into_lab_of_attach("fifo");
            assert!(matches!(error, LabError::Machine(_)), "{kind:?}: {error:?}");
        }
        let gone = CallError::Gone("the machine is gone".into());
        assert!(matches!(gone.into_lab_of_attach("fifo"), LabError::Machine(_)));
    }

    #[test]
    fn the_verifiers_last_lines_are_shown() {
        let log: String = (0..100).map(|i| format!("{i}: insn\n")).collect();
        let error = refusal(RefusalKind::Verifier, &log).into_lab_of_attach("fifo");
        let text = error.to_string();
        assert!(
            text.starts_with("the kernel's verifier rejects fifo: no such thing\n80: insn\n"),
            "{text}"
        );
        assert!(text.ends_with("99: insn"), "{text}");
    }
}
