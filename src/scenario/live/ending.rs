//! The end of a laboratory: what is judged last, what is kept, what is told of it.

use std::sync::Arc;

use super::kept::Kept;
use super::{LOG_END, Lab};
use crate::scenario::event::{Logs, RunEvent, Stage};
use crate::scenario::lab::{LabError, LabOps, LabResult};
use crate::scenario::text::tail;

/// Bytes of a snapshot's tree that are sent.
const TREE: usize = 64 << 10;

impl Lab {
    /// The last things to judge, the logs, and the end of the machine. Gives the ends of the logs
    /// for the report, and the fault of the engine if that is what ended the machine.
    pub fn finish(&self) -> (Logs, Option<String>) {
        self.end_sampling();
        self.end_monitor();
        self.parts.events.stage(Stage::Stop, "");
        // What is left paused cannot tell how it ends.
        if self.machine.is_paused() && self.machine.exited().is_none() {
            self.told(self.machine.resume().map_err(|e| self.failed(e)));
        }
        let log = self.told(self.last_look()).unwrap_or_default();
        self.judge_exit();
        self.end_watches();
        self.told(self.let_go());
        let alive = self.is_well().is_ok();
        let dmesg = (alive && self.parts.keep.is_some()).then(|| self.dmesg().ok()).flatten();
        let logs = self.logs(&log);
        let fault = self.fault();
        self.machine.stop();
        self.show_trees();
        if let Some(dir) = &self.parts.keep {
            let death = self.death().map(|death| death.snapshot);
            let kept = Kept {
                console: &self.machine.console(),
                scheduler: &log,
                dmesg: dmesg.as_deref(),
                death: death.as_ref(),
            };
            kept.write(dir, self.parts.attempt, &self.parts.recorder);
        }
        (logs, fault)
    }

    /// Sends the snapshots that may explain why it did not succeed: of the scheduler's death, and
    /// the last one that was taken.
    fn show_trees(&self) {
        let counts = self.parts.recorder.counts();
        if counts.fail == 0 && counts.error == 0 && counts.inconclusive == 0 {
            return;
        }
        let death = self.death().map(|death| death.snapshot);
        let last = self.snapshots().into_iter().rev().find(|snapshot| !snapshot.is_placeholder());
        let same = death.as_ref().zip(last.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        for snapshot in death.into_iter().chain(last.filter(|_| !same)) {
            let mut text = snapshot.dump();
            if text.len() > TREE {
                let end = (0..=TREE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                text.truncate(text[..end].rfind('\n').map_or(end, |at| at + 1));
                text.push_str(".. the rest is left out; t.freeze(..).save(FILE) keeps all of it\n");
            }
            let (cell, tag) = (self.parts.events.cell(), snapshot.tag().to_owned());
            self.parts.events.send(&RunEvent::Tree { cell, tag, text });
        }
    }

    /// Records what went wrong in the end, unless something has before, which then is likely to
    /// be the cause and has been told.
    fn told<T>(&self, result: LabResult<T>) -> Option<T> {
        if let Err(error) = &result
            && self.parts.recorder.counts().error == 0
            && let Some(check) = error.check(None)
        {
            self.parts.recorder.record(check);
        }
        result.ok()
    }

    /// Takes what came in meanwhile; says why nothing more can be asked of the machine, when that
    /// is so.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        match self.take_all().and_then(|()| self.is_well()) {
            Err(LabError::Machine(why)) => Some(why),
            _ => None,
        }
    }

    /// Ends the machine, unjudged.
    pub fn stop(&self) {
        self.machine.stop();
    }

    /// What is known without asking the guest anything more.
    pub fn logs_now(&self) -> (Logs, Option<String>) {
        (self.logs(""), self.fault())
    }

    fn fault(&self) -> Option<String> {
        let info = self.machine.exited()?;
        info.kind.is_engine_fault().then(|| info.kind.to_string())
    }

    fn logs(&self, log: &str) -> Logs {
        let state = self.state();
        let log = match &state.exit {
            Some(exit) if log.is_empty() => &exit.log,
            _ => log,
        };
        let end = |text: &str| tail(text, usize::MAX, LOG_END).to_string();
        Logs { scheduler: end(log), console: end(&self.machine.console()) }
    }
}
