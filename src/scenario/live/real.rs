//! A machine of an engine's, with a channel to the agent in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::machine::{CallError, Machine, MakeMeta};
use crate::freeze::{Bridge, ExitOrder, ExitWay, FreezeError, WatchCount, WatchId, WatchOrder};
use crate::snapshot::{CaptureRequest, Place, Reading, Scalar, Snapshot, WatchPlace, WatchTarget};
use crate::vm::channel::{Channel, ChannelError};
use crate::vm::{ExitInfo, Standstill};
use crate::wire::{Answer, Event, Op};

pub(super) struct Real {
    pub(super) channel: Channel,
    pub(super) bridge: Bridge,
}

impl Machine for Real {
    fn call(&self, op: Op, within: Duration) -> Result<Answer, CallError> {
        Ok(self.channel.call(op, within)?)
    }

    fn wait_event(&self, within: Duration) -> Result<Option<Event>, CallError> {
        Ok(self.channel.wait_event(within)?)
    }

    fn freeze(
        &self,
        request: &CaptureRequest,
        seen: Option<Instant>,
        meta: MakeMeta,
    ) -> Result<Arc<Snapshot>, CallError> {
        Ok(self.bridge.freeze(request, seen, meta)?)
    }

    fn look(
        &self,
        request: &CaptureRequest,
        meta: MakeMeta,
    ) -> Result<(Arc<Snapshot>, Instant), CallError> {
        Ok(self.bridge.look(request, meta)?)
    }

    fn monitor(&self) -> Result<(Reading, Instant), CallError> {
        let read = self.bridge.with_kernel(false, |opened| {
            let begun = Instant::now();
            opened.capturer.monitor().map(|reading| (reading, begun))
        })?;
        read.map_err(|error| CallError::Invalid(error.to_string()))
    }

    fn prepare(&self, request: &CaptureRequest) -> Result<(), CallError> {
        Ok(self.bridge.prepare(request)?)
    }

    fn edit(
        &self,
        place: &Place,
        value: Option<&Scalar>,
        frozen: bool,
    ) -> Result<Result<Vec<Scalar>, String>, CallError> {
        let (place, value) = (place.clone(), value.cloned());
        let edited = self.bridge.ask("reading and writing", move |freezer| {
            freezer.with_kernel(frozen, |opened| match &value {
                Some(value) => opened.capturer.write_place(&place, value).map(|old| vec![old]),
                None => opened.capturer.read_place(&place),
            })
        })?;
        Ok(edited?)
    }

    fn pause(&self) -> Result<(), CallError> {
        Ok(self.bridge.pause()?)
    }

    fn resume(&self) -> Result<(), CallError> {
        self.bridge.resume()?;
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.bridge.is_paused()
    }

    fn standstill(&self) -> Standstill {
        self.bridge.standstill().clone()
    }

    fn watch_place(&self, target: &WatchTarget) -> Result<WatchPlace, CallError> {
        Ok(self.bridge.watch_place(target)?)
    }

    fn watch(&self, order: WatchOrder) -> Result<WatchId, CallError> {
        Ok(self.bridge.watch(order)?)
    }

    fn unwatch(&self, id: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(self.bridge.unwatch(id)?)
    }

    fn watch_count(&self, id: WatchId) -> Result<Option<WatchCount>, CallError> {
        Ok(self.bridge.watch_count(id)?)
    }

    fn expect_exits(&self, order: ExitOrder) -> Result<ExitWay, CallError> {
        Ok(self.bridge.expect_exits(order)?)
    }

    fn forget_exits(&self) {
        // Only a machine that is gone already cannot forget them.
        let _ = self.bridge.forget_exits();
    }

    fn catch_up(&self) {
        // A machine that is gone has handed out all.
        let _ = self.bridge.ask("catching up", |_| ());
    }

    fn console(&self) -> String {
        self.bridge.console().text()
    }

    fn exited(&self) -> Option<ExitInfo> {
        self.bridge.exited()
    }

    fn stop(&self) {
        // Only a machine that is gone already cannot be stopped.
        let _ = self.bridge.stop();
    }
}

impl From<FreezeError> for CallError {
    fn from(error: FreezeError) -> Self {
        match error {
            FreezeError::NoSuchMap(error) => CallError::Snapshot(error),
            FreezeError::Invalid(text) => CallError::Invalid(text),
            FreezeError::Lacks { .. } => CallError::Lacks(error.to_string()),
            FreezeError::NotStopped(_) => CallError::Late(error.to_string()),
            error => CallError::Gone(error.to_string()),
        }
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
