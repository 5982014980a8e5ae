//! Projections of the live scheduler's variables.
//!
//! Within one phase the first sample that finds a live scheduler pins it: a later sample of that
//! phase that finds another one is an error, so that what is computed over a phase is about one
//! scheduler only.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{SampleSeries, SeriesField};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotResult};

/// The scheduler of each phase, by the addresses of its maps.
#[derive(Default)]
struct Pins(HashMap<Option<Arc<str>>, BTreeSet<u64>>);

impl Pins {
    /// Whether the live scheduler of this sample is the one that its phase began with.
    fn check(
        &mut self,
        phase: Option<&Arc<str>>,
        snapshot: &Arc<Snapshot>,
        requested: &str,
    ) -> SnapshotResult<()> {
        let found: BTreeSet<u64> = snapshot.live_addresses()?.into_iter().collect();
        let pinned = self.0.entry(phase.cloned()).or_insert_with(|| found.clone());
        if *pinned == found {
            return Ok(());
        }
        Err(SnapshotError::WalkerDriftedWithinPhase {
            phase: phase.map_or_else(String::new, |phase| phase.to_string()),
            pinned_kvas: pinned.iter().copied().collect(),
            sample_kvas: found.into_iter().collect(),
            requested: requested.to_owned(),
        })
    }
}

impl SampleSeries {
    /// A variable of the live scheduler in each sample.
    #[must_use]
    pub fn live(&self, name: &str) -> SeriesField {
        let mut all = self.live_all(&[name.to_owned()]);
        all.pop().unwrap_or_else(|| self.project(name, |snapshot| Err(gone(snapshot))))
    }

    /// Several of them; each sample is read once.
    #[must_use]
    pub fn live_all(&self, names: &[String]) -> Vec<SeriesField> {
        let mut pins = Pins::default();
        let mut columns: Vec<Vec<_>> = names.iter().map(|_| Vec::new()).collect();
        for (sample, stamp) in self.samples().iter().zip(self.stamps()) {
            let snapshot = sample.snapshot();
            for (name, column) in names.iter().zip(&mut columns) {
                column.push(snapshot.clone().and_then(|snapshot| {
                    let field = snapshot.live_global(name)?;
                    pins.check(stamp.phase.as_ref(), &snapshot, name)?;
                    let what = field.described();
                    field.leaf()?.ok_or_else(|| field.mismatch("a single value", what))
                }));
            }
        }
        let fields = names.iter().zip(columns);
        fields.map(|(name, column)| SeriesField::new(name, self.stamps.clone(), column)).collect()
    }
}

fn gone(snapshot: &Snapshot) -> SnapshotError {
    SnapshotError::PlaceholderSnapshot { tag: Some(snapshot.tag().to_owned()) }
}
