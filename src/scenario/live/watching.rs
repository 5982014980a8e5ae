//! Watches of a live machine, and what its schedulers leave behind.

use std::sync::Arc;
use std::time::Duration;

use super::caught::{Death, For, Watched, exit_order, meta_now};
use super::{CallError, Lab};
use crate::freeze::{WatchCount, WatchOrder};
use crate::scenario::lab::{LabResult, WatchOps, WatchOptions};
use crate::snapshot::Snapshot;

impl Lab {
    /// Has what the scheduler leaves behind captured from now on.
    pub(super) fn expect_exits(&self) {
        let state = self.state();
        let order = exit_order(&state.clock, &state.phase, &state.inbox);
        drop(state);
        if let Err(CallError::Invalid(why)) = self.machine.expect_exits(order) {
            let text = format!("what the scheduler leaves behind cannot be captured: {why}");
            self.parts.recorder.note(text, None);
        }
    }

    /// Takes over what was captured unasked.
    pub(super) fn take_caught(&self) {
        let (caught, lost) = self.state().inbox.take();
        if lost > 0 {
            let text = format!(
                "{lost} snapshots of watches found no room: a scenario that watches must call \
                 something of `t` now and then, or copy less"
            );
            self.parts.recorder.note(text, None);
        }
        for (to, snapshot) in caught {
            if to != For::Exit && self.has_room().is_err() {
                let mut state = self.state();
                let told = std::mem::replace(&mut state.full, true);
                drop(state);
                if !told {
                    let text = "no more snapshots of watches are kept: there are too many already";
                    self.parts.recorder.note(text.to_owned(), None);
                }
                continue;
            }
            self.keep_snapshot(&snapshot);
            match to {
                For::Exit => self.state().deaths.push(Death::of(snapshot)),
                For::Watch(number) => {
                    if let Some(watched) = self.state().watches.all.get_mut(&number) {
                        watched.fires.push(snapshot);
                    }
                }
            }
        }
    }

    /// What was captured of the root scheduler's death.
    pub(super) fn death(&self) -> Option<Death> {
        self.state().deaths.iter().find(|death| death.is_root()).cloned()
    }

    /// Ends all watches, and says which have not seen all.
    pub(super) fn end_watches(&self) {
        let numbers: Vec<u64> = self.state().watches.all.keys().copied().collect();
        for number in numbers {
            // Of a machine that is gone there is nothing to say.
            let _ = self.unwatch(number);
        }
    }

    fn live(&self, number: u64) -> Option<crate::freeze::WatchId> {
        self.state().watches.all.get(&number).and_then(|watched| watched.live)
    }
}

impl WatchOps for Lab {
    fn watch(&self, options: &WatchOptions) -> LabResult<(u64, String)> {
        self.go_on()?;
        let place = self.machine.watch_place(&options.target).map_err(|e| self.failed(e))?;
        let mut request = options.request.clone();
        request.registers = true;
        if let Some(symbol) = &place.symbol
            && !request.kernel.contains(symbol)
        {
            request.kernel.push(symbol.clone());
        }
        let name = place.name.clone();
        let mut state = self.state();
        let number = state.watches.fresh();
        let watched = Watched { name: name.clone(), ..Watched::default() };
        state.watches.all.insert(number, watched);
        let meta = meta_now("watch", &state.clock, &state.phase);
        let tell = state.inbox.tell(For::Watch(number));
        drop(state);
        let begun =
            self.machine.watch(WatchOrder { place, request, most: options.most, meta, tell });
        let mut state = self.state();
        match begun {
            Ok(id) => {
                if let Some(watched) = state.watches.all.get_mut(&number) {
                    watched.live = Some(id);
                }
                Ok((number, name))
            }
            Err(error) => {
                state.watches.all.remove(&number);
                drop(state);
                Err(self.failed(error))
            }
        }
    }

    fn fires(&self, number: u64) -> LabResult<Vec<Arc<Snapshot>>> {
        // The guest may have gone on before the last one was complete.
        self.machine.catch_up();
        self.go_on()?;
        let state = self.state();
        Ok(state.watches.all.get(&number).map(|w| w.fires.clone()).unwrap_or_default())
    }

    fn count(&self, number: u64) -> LabResult<WatchCount> {
        if let Some(id) = self.live(number)
            && let Some(count) = self.machine.watch_count(id).map_err(|e| self.failed(e))?
        {
            return Ok(count);
        }
        let state = self.state();
        Ok(state.watches.all.get(&number).map(|w| w.ended).unwrap_or_default())
    }

    fn unwatch(&self, number: u64) -> LabResult<()> {
        let Some(id) = self.live(number) else { return Ok(()) };
        let count = self.machine.unwatch(id).map_err(|e| self.failed(e))?;
        self.take_caught();
        let mut state = self.state();
        if let Some(watched) = state.watches.all.get_mut(&number) {
            watched.live = None;
            watched.ended = count.unwrap_or_default();
        }
        let unseen = count.map_or(Duration::ZERO, |count| count.unseen);
        let name = state.watches.all.get(&number).map(|w| w.name.clone()).unwrap_or_default();
        drop(state);
        if !unseen.is_zero() {
            let text = format!(
                "the watch of {name} was disarmed for {} ms of guest time, since the place is \
                 written to so often; writes then were not seen",
                unseen.as_millis()
            );
            self.parts.recorder.note(text, None);
        }
        Ok(())
    }

    fn death(&self) -> Option<Arc<Snapshot>> {
        Lab::death(self).map(|death| death.snapshot)
    }
}
