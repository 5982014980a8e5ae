//! The samples that were taken: in memory, and beyond its budget in a file.

use std::path::PathBuf;
use std::sync::Arc;

use crate::series::Sample;
use crate::snapshot::{Shelf, Snapshot, StoreError};

/// Samples, and where more of them go.
pub(super) struct Store {
    budget: u64,
    held: u64,
    dir: PathBuf,
    shelf: Option<Arc<Shelf>>,
    taken: Vec<Sample>,
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

    pub(super) fn push(&mut self, taken: Sample) {
        self.spilled += u64::from(taken.is_filed());
        self.taken.push(taken);
    }

    pub(super) fn get(&self, index: usize) -> Option<Sample> {
        self.taken.get(index).cloned()
    }

    pub(super) fn all(&self) -> Vec<Sample> {
        self.taken.clone()
    }

    pub(super) fn spilled(&self) -> u64 {
        self.spilled
    }
}

impl Place {
    /// Brings a sample there. One that cannot be is a placeholder, and why: memory is bounded.
    pub(super) fn settle(self, snapshot: Arc<Snapshot>) -> (Sample, Option<StoreError>) {
        let filed = match self {
            Place::Memory => return (Sample::held(snapshot), None),
            Place::File(shelf) => shelf.put(&snapshot),
            Place::Nowhere(error) => Err(error),
        };
        match filed {
            Ok(shelved) => (Sample::filed(snapshot.meta().clone(), shelved), None),
            Err(error) => {
                let why = format!("it found no room in memory, nor in a file: {error}");
                let empty = Snapshot::placeholder(snapshot.meta().clone(), why);
                (Sample::held(empty), Some(error))
            }
        }
    }
}
