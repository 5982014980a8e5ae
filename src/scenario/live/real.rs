//! A machine of an engine's, with a channel to the agent in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::machine::{CallError, Machine};
use crate::freeze::{FreezeError, Freezer};
use crate::snapshot::{CaptureRequest, Meta, Snapshot};
use crate::vm::channel::{Channel, ChannelError};
use crate::vm::{Console, ExitInfo, ExitWatch};
use crate::wire::{Answer, Event, Op};

pub(super) struct Real {
    pub(super) channel: Channel,
    pub(super) freezer: Mutex<Freezer>,
    pub(super) watch: ExitWatch,
    pub(super) console: Console,
}

impl Machine for Real {
    fn call(&self, op: Op, within: Duration) -> Result<Answer, CallError> {
        Ok(self.channel.call(op, within)?)
    }

    fn wait_event(&self, within: Duration) -> Result<Option<Event>, CallError> {
        Ok(self.channel.wait_event(within)?)
    }

    fn get_ready(&self) {
        // What is wrong is told by the first freeze.
        if let Ok(capturer) = self.freezer().open() {
            let _ = capturer.prepare(&CaptureRequest::default());
        }
    }

    fn freeze(
        &self,
        request: &CaptureRequest,
        meta: &dyn Fn() -> Meta,
    ) -> Result<Arc<Snapshot>, CallError> {
        self.freezer().freeze(request, meta).map_err(|error| match error {
            FreezeError::NoSuchMap(error) => CallError::Snapshot(error),
            error => CallError::Gone(error.to_string()),
        })
    }

    fn console(&self) -> String {
        self.console.text()
    }

    fn exited(&self) -> Option<ExitInfo> {
        self.watch.get()
    }

    fn stop(&self) {
        self.freezer().stop();
    }
}

impl Real {
    fn freezer(&self) -> MutexGuard<'_, Freezer> {
        self.freezer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<ChannelError> for CallError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Refused(refusal) => CallError::Refused(refusal),
            ChannelError::Timeout { .. } => CallError::Timeout(error.to_string()),
            ChannelError::MachineEnded(info) => {
                CallError::Gone(format!("the machine ended: {}", info.kind))
            }
            _ => CallError::Gone(error.to_string()),
        }
    }
}
