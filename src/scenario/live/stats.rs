//! Asks the scheduler for its statistics, through the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::CALL;
use super::machine::{CallError, Machine};
use crate::scenario::cell::Cancel;
use crate::scenario::stats;
use crate::snapshot::MissingStatsReason;
use crate::wire::{Answer, Op, Refusal, RefusalKind};

/// How long the scheduler may take when a script asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who asks; clones ask the same scheduler.
#[derive(Clone)]
pub(super) struct Stats {
    machine: Arc<dyn Machine>,
    cancel: Cancel,
    /// Where the attached scheduler is asked, when it is a program, which may serve statistics.
    pub(super) socket: Arc<Mutex<Option<String>>>,
}

impl Stats {
    pub(super) fn new(machine: Arc<dyn Machine>, cancel: Cancel) -> Stats {
        Stats { machine, cancel, socket: Arc::default() }
    }

    /// Another scheduler is attached, or none any more.
    pub(super) fn changed(&self, socket: Option<String>) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }

    /// Whether there is anybody to ask.
    pub(super) fn serves(&self) -> Result<bool, MissingStatsReason> {
        Ok(self.socket.lock()?.is_some())
    }

    /// Statistics of a target; an answer that comes later than `within` is thrown away.
    pub(super) fn ask(
        &self,
        target: &str,
        args: &BTreeMap<String, String>,
        within: Option<Duration>,
    ) -> Result<Value, MissingStatsReason> {
        self.send(&stats::request(target, args)?, within)
    }

    /// Which statistics there are.
    pub(super) fn meta(&self) -> Result<Value, MissingStatsReason> {
        self.send(&stats::meta_request(), None)
    }

    fn send(&self, line: &str, within: Option<Duration>) -> Result<Value, MissingStatsReason> {
        use MissingStatsReason as R;
        let Some(path) = self.socket.lock()?.clone() else { return Err(R::NoSchedulerBinary) };
        if self.machine.is_paused() {
            return Err(R::DuringFreeze);
        }
        let time = within.unwrap_or(PATIENCE);
        let timeout_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let op = Op::AskSocket {
            path: path.clone(),
            // Each tells what changed since its own last answer.
            asker: if within.is_some() { "samples" } else { "script" }.to_owned(),
            line: line.to_owned(),
            timeout_ms,
        };
        let stood = || self.machine.standstill().total(Instant::now());
        let before = stood();
        let answer = match within {
            Some(within) => self.machine.call(op, within),
            None => super::call_while_wanted(&self.machine, op, PATIENCE + CALL, &self.cancel)
                .map_err(|_| R::Cancelled)?,
        };
        match answer {
            Ok(Answer::Line { text: Some(text), .. }) => stats::response(&text),
            Ok(Answer::Line { text: None, size }) => Err(stats::too_large(size)),
            Ok(other) => Err(R::NoScheduler { reason: super::unexpected(&other).to_string() }),
            Err(_) if self.cancel.is_raised() => Err(R::Cancelled),
            // Its time ran on while it could not answer.
            Err(
                CallError::Timeout(_)
                | CallError::Refused(Refusal { kind: RefusalKind::Timeout, .. }),
            ) if stood() > before => Err(R::DuringFreeze),
            Err(CallError::Refused(refusal)) => Err(R::NoScheduler { reason: refusal.message }),
            Err(CallError::Timeout(_)) => {
                let reason = format!("{path} did not answer within {timeout_ms} ms");
                Err(R::NoScheduler { reason })
            }
            Err(error) => Err(R::NoScheduler { reason: error.into_lab().to_string() }),
        }
    }
}
