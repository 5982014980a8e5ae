//! How schedulers leave, and how that is judged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::caught::Death;
use super::{CALL, Lab, unexpected};
use crate::scenario::SchedulerExit;
use crate::scenario::event::RunEvent;
use crate::scenario::lab::LabResult;
use crate::scenario::verdict::{Check, Outcome};
use crate::wire::{Answer, Op, SCHED_EXT};

impl Lab {
    pub(super) fn scheduler_left(&self, reason: String, log: String, dmesg: String) {
        // It stood still when it left, so what was captured then is there, or about to be.
        self.machine.catch_up();
        self.take_caught();
        let death = self.death();
        let mut state = self.state();
        if !state.scheduler.attached || state.scheduler.left {
            return;
        }
        state.scheduler.left = true;
        let elapsed_ms = state.clock.elapsed_ms(Instant::now());
        let told = death.as_ref().and_then(|death| death.exit.as_ref());
        state.exit = Some(SchedulerExit {
            reason: reason.clone(),
            elapsed_ms,
            log,
            dmesg,
            kind: told.map(|exit| exit.kind.clone()),
            message: told.map(|exit| exit.message.clone()),
            instant: death.as_ref().map(Death::told).unwrap_or_default(),
        });
        drop(state);
        let cell = self.parts.events.cell();
        self.parts.events.send(&RunEvent::SchedulerExited { cell, reason, elapsed_ms });
    }

    /// Whether the machine is well to the end, the scheduler is still there and scheduled the
    /// workers, and the kernel can let go of it; gives its log.
    pub(super) fn last_look(&self) -> LabResult<String> {
        self.take_all()?;
        self.is_well()?;
        let answer = self.machine.call(Op::SchedulerState, CALL).map_err(|e| self.failed(e))?;
        let Answer::Scheduler(now) = answer else { return Err(unexpected(&answer)) };
        if self.state().scheduler.attached && now.state != "enabled" {
            // The event may still be on its way: it knows the reason.
            while !self.state().scheduler.left {
                match self.machine.wait_event(Duration::from_secs(2)) {
                    Ok(Some(event)) => self.take(event),
                    _ => self.scheduler_left(
                        format!("sched_ext is {:?} at the end", now.state),
                        now.log.clone(),
                        String::new(),
                    ),
                }
            }
        }
        let state = self.state();
        let (under_test, scheduler) = (state.under_test, state.scheduler.name.clone());
        drop(state);
        if let (true, Some((pid, policy))) = (under_test, now.strays.first()) {
            let text = format!(
                "worker {pid} is not scheduled by {scheduler}: its scheduling policy is {policy} \
                 instead of {SCHED_EXT} (SCHED_EXT)"
            );
            let check = Check::new(Outcome::Inconclusive, "workers are scheduled");
            self.parts.recorder.record(check.message(text));
        }
        Ok(now.log)
    }

    /// Detaches the scheduler: a kernel that does not survive that is no success.
    pub(super) fn let_go(&self) -> LabResult<()> {
        let state = self.state();
        let attached = state.scheduler.attached && !state.scheduler.left;
        drop(state);
        if !attached || self.is_well().is_err() {
            return Ok(());
        }
        self.machine.forget_exits();
        match self.machine.call(Op::Detach, CALL).map_err(|e| self.failed(e))? {
            Answer::Detached { .. } => self.is_well(),
            other => Err(unexpected(&other)),
        }
    }

    /// Judges how the scheduler left, or that it did not, unless that has ended the scenario.
    pub(super) fn judge_exit(&self) {
        if self.exit_told.load(Ordering::Relaxed) || self.machine.exited().is_some() {
            return;
        }
        let state = self.state();
        let (exit, under_test) = (state.exit.clone(), state.under_test);
        drop(state);
        if let Some(check) = self.parts.expect_exit.judge(exit.as_ref())
            && (under_test || exit.is_some())
        {
            self.parts.recorder.record(check);
        }
    }
}
