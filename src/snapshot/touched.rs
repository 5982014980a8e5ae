//! What of a snapshot was looked at: so that the next one, of the same machine for the same
//! question, need not copy more.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{CaptureRequest, Snapshot, State};

/// What of a snapshot was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Maps into whose contents somebody looked, as [`CaptureRequest::maps`] takes them.
    pub maps: BTreeSet<String>,
    /// Whether somebody looked at CPUs, tasks, dispatch queues, programs or schedulers.
    pub sched: bool,
}

impl Touched {
    /// Adds what was looked at elsewhere; whether that was more.
    pub fn extend(&mut self, other: Touched) -> bool {
        let before = (self.maps.len(), self.sched);
        self.maps.extend(other.maps);
        self.sched |= other.sched;
        before != (self.maps.len(), self.sched)
    }
}

impl Snapshot {
    /// What was looked at so far.
    #[must_use]
    pub fn touched(self: &Arc<Self>) -> Touched {
        let sched = self.sched_touched.load(std::sync::atomic::Ordering::Relaxed);
        let maps = match &self.contents {
            State::Captured { maps, .. } => maps.as_slice(),
            State::Placeholder(_) => &[],
        };
        let spelled =
            |map: &super::CapturedMap| format!("{}#{}", map.attrs.shown_name(), map.attrs.id);
        Touched { maps: maps.iter().filter(|map| map.is_touched()).map(spelled).collect(), sched }
    }
}

impl CaptureRequest {
    /// The same for nothing but what was looked at.
    #[must_use]
    pub fn only(&self, touched: &Touched) -> CaptureRequest {
        let maps = Some(touched.maps.iter().cloned().collect());
        CaptureRequest { maps, sched: self.sched && touched.sched, ..self.clone() }
    }
}
