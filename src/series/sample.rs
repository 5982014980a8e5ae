//! One sample: in memory, or in a file until it is asked for.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::snapshot::{Meta, Shelved, Snapshot, SnapshotError, SnapshotResult, Trigger};

/// A snapshot in a series. Clones are cheap.
#[derive(Clone)]
pub struct Sample(Kind);

#[derive(Clone)]
enum Kind {
    Held(Arc<Snapshot>),
    Filed(Arc<Filed>),
}

struct Filed {
    meta: Meta,
    at: Shelved,
    /// What somebody holds of it just now.
    open: Mutex<Weak<Snapshot>>,
}

impl Sample {
    /// One that stays in memory.
    #[must_use]
    pub fn held(snapshot: Arc<Snapshot>) -> Sample {
        Sample(Kind::Held(snapshot))
    }

    /// One in a file, and when and how it was taken.
    #[must_use]
    pub fn filed(mut meta: Meta, shelved: Shelved) -> Sample {
        // They may be large, and are in the file.
        meta.stats = None;
        meta.monitor = None;
        Sample(Kind::Filed(Arc::new(Filed { meta, at: shelved, open: Mutex::default() })))
    }

    /// When and how it was taken.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        match &self.0 {
            Kind::Held(snapshot) => snapshot.meta(),
            Kind::Filed(filed) => &filed.meta,
        }
    }

    /// Whether it lies in a file.
    #[must_use]
    pub fn is_filed(&self) -> bool {
        matches!(self.0, Kind::Filed(..))
    }

    /// Of a periodic one: when its time came, on the workload clock in milliseconds.
    #[must_use]
    pub fn boundary_offset_ms(&self) -> Option<u64> {
        match self.meta().trigger {
            Trigger::Periodic { boundary_offset_ms } => Some(boundary_offset_ms),
            _ => None,
        }
    }

    /// What was captured. One in a file is read by each call, unless somebody holds it still.
    ///
    /// # Errors
    /// [`SnapshotError::PlaceholderSample`] when its freeze did not complete, or its file cannot be
    /// read any more.
    pub fn snapshot(&self) -> SnapshotResult<Arc<Snapshot>> {
        let snapshot = self.whatever();
        match snapshot.placeholder_reason() {
            None => Ok(snapshot),
            Some(reason) => {
                let (tag, reason) = (snapshot.tag().to_owned(), reason.to_owned());
                Err(SnapshotError::PlaceholderSample { tag, reason })
            }
        }
    }

    /// What was captured, or a placeholder that says why there is nothing.
    #[must_use]
    pub fn whatever(&self) -> Arc<Snapshot> {
        match &self.0 {
            Kind::Held(snapshot) => snapshot.clone(),
            Kind::Filed(filed) => filed.snapshot(),
        }
    }
}

impl Filed {
    fn snapshot(&self) -> Arc<Snapshot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = open.upgrade() {
            return held;
        }
        let read = self.at.open();
        let read = read.unwrap_or_else(|e| Snapshot::placeholder(self.meta.clone(), e.to_string()));
        *open = Arc::downgrade(&read);
        read
    }
}
