//! The samples that were taken: in memory, and beyond its budget in a file.

use std::path::PathBuf;
use std::sync::Arc;

use crate::snapshot::{Shelf, Shelved, Snapshot, StoreError};

/// A sample that was taken. Clones are cheap.
#[derive(Clone)]
pub(super) enum Taken {
    /// It is in memory.
    Here(Arc<Snapshot>),
    /// It is in the file.
    Filed(Arc<Shelved>),
}

impl Taken {
    /// The sample. One in the file is read anew by each call.
    pub(super) fn snapshot(&self) -> Result<Arc<Snapshot>, StoreError> {
        match self {
            Taken::Here(snapshot) => Ok(snapshot.clone()),
            Taken::Filed(shelved) => shelved.open(),
        }
    }
}

/// Samples, and where more of them go.
pub(super) struct Store {
    budget: u64,
    held: u64,
    dir: PathBuf,
    shelf: Option<Arc<Shelf>>,
    taken: Vec<Taken>,
    spilled: u64,
}

/// Where a sample goes.
pub(super) enum Place {
    Memory,
    File(Arc<Shelf>),
    /// There is no room for it.
    Nowhere(StoreError),
}

impl Store {
    /// Holds up to `budget` bytes in memory; what comes on top goes to a file in `dir`, which is
    /// made when it is needed.
    pub(super) fn new(budget: u64, dir: PathBuf) -> Self {
        Store { budget, held: 0, dir, shelf: None, taken: Vec::new(), spilled: 0 }
    }

    /// Makes room for a sample.
    pub(super) fn admit(&mut self, snapshot: &Snapshot) -> Place {
        let held = self.held.saturating_add(snapshot.bytes());
        if held <= self.budget {
            self.held = held;
            return Place::Memory;
        }
        match &self.shelf {
            Some(shelf) => Place::File(shelf.clone()),
            None => match Shelf::new(&self.dir) {
                Ok(shelf) => Place::File(self.shelf.insert(Arc::new(shelf)).clone()),
                Err(error) => Place::Nowhere(error),
            },
        }
    }

    pub(super) fn push(&mut self, taken: Taken) {
        self.spilled += u64::from(matches!(taken, Taken::Filed(..)));
        self.taken.push(taken);
    }

    pub(super) fn get(&self, index: usize) -> Option<Taken> {
        self.taken.get(index).cloned()
    }

    pub(super) fn spilled(&self) -> u64 {
        self.spilled
    }
}

impl Place {
    /// Brings a sample there. One that cannot be is a placeholder, and why: memory is bounded.
    pub(super) fn settle(self, snapshot: Arc<Snapshot>) -> (Taken, Option<StoreError>) {
        let filed = match self {
            Place::Memory => return (Taken::Here(snapshot), None),
            Place::File(shelf) => shelf.put(&snapshot),
            Place::Nowhere(error) => Err(error),
        };
        match filed {
            Ok(shelved) => (Taken::Filed(Arc::new(shelved)), None),
            Err(error) => {
                let why = format!("it found no room in memory, nor in a file: {error}");
                let empty = Snapshot::placeholder(snapshot.meta().clone(), why);
                (Taken::Here(empty), Some(error))
            }
        }
    }
}
