//! The snapshots of a scenario: what is written on them, and how many there may be.

use std::sync::Arc;
use std::time::Instant;

use super::Lab;
use super::machine::MakeMeta;
use crate::scenario::event::RunEvent;
use crate::scenario::lab::{LabError, LabResult};
use crate::snapshot::{CaptureRequest, Snapshot};

/// What all snapshots of a scenario may hold together, undecoded.
const HELD: u64 = 2 << 30;
/// How many snapshots a scenario may hold.
pub(super) const MOST_SNAPSHOTS: usize = 10_000;

/// What is told of a snapshot that was taken.
pub(super) fn frozen(cell: usize, snapshot: &Snapshot) -> RunEvent {
    let pause = snapshot.pause();
    RunEvent::Frozen {
        cell,
        tag: snapshot.tag().to_owned(),
        elapsed_ms: snapshot.elapsed_ms(),
        pause_us: pause.total_us,
        copy_us: pause.copy_us,
        placeholder: snapshot.placeholder_reason().map(str::to_owned),
    }
}

impl Lab {
    /// Freezes; see [`crate::scenario::lab::LabOps::freeze_unkept`].
    pub(super) fn take_snapshot(
        &self,
        tag: &str,
        request: &CaptureRequest,
        seen: Option<Instant>,
    ) -> LabResult<Arc<Snapshot>> {
        self.go_on()?;
        self.has_room()?;
        let meta = self.meta(tag);
        self.machine.freeze(request, seen, meta).map_err(|e| self.failed(e))
    }

    /// Keeps a snapshot, and says that there is one.
    pub(super) fn keep_snapshot(&self, snapshot: &Arc<Snapshot>) {
        self.state().snapshots.push(snapshot.clone());
        self.parts.events.send(&frozen(self.parts.events.cell(), snapshot));
    }

    /// What a snapshot that is taken now says of itself.
    pub(super) fn meta(&self, tag: &str) -> MakeMeta {
        let state = self.state();
        let (tag, phase, clock) = (tag.to_owned(), state.phase.get(), state.clock.clone());
        let latest = self.latest.clone();
        Box::new(move || latest.with(phase.meta(tag, &clock)))
    }

    /// Refuses to hold more than this process can.
    pub(super) fn has_room(&self) -> LabResult<()> {
        let state = self.state();
        let (count, held) =
            (state.snapshots.len(), state.snapshots.iter().map(|s| s.bytes()).sum::<u64>());
        if count < MOST_SNAPSHOTS && held < HELD {
            return Ok(());
        }
        let mib = held >> 20;
        Err(LabError::Argument(format!(
            "{count} snapshots hold {mib} MiB already, and all are kept to the end of the \
             scenario; freeze less often, or name the maps that are needed, as in \
             t.freeze(\"tag\", #{{ maps: [\"task_ctx\"] }})"
        )))
    }

    /// A tag that no snapshot has yet.
    pub(super) fn unused_tag(&self, tag: &str) -> String {
        let state = self.state();
        let taken = |tag: &str| state.snapshots.iter().any(|s| s.tag() == tag);
        if !taken(tag) {
            return tag.to_string();
        }
        let fresh = (2..).map(|n| format!("{tag}#{n}")).find(|t| !taken(t)).unwrap_or_default();
        drop(state);
        let text = format!("the tag {tag:?} was used before: this snapshot is {fresh:?}");
        self.parts.recorder.note(text, None);
        fresh
    }
}
