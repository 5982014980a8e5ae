//! Samples of a machine over time, what they hold at one place each, and what that must look like.
//!
//! ```text
//! SampleSeries ──project(target)──▶ SeriesField ──nondecreasing()──▶ Judgement
//!     │  phase(name), periodic()        │  phase(name), min(), delta(), ..
//!     └──at(i)──▶ Sample ──snapshot()   └──values(): a value or a SnapshotError for each sample
//! ```
//!
//! A sample that lies in a file is read when it is asked for. One bad sample never ends a
//! projection: what it has in the place of a value is its error.

mod field;
mod judge;
mod live;
mod monitor;
mod patterns;
mod sample;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use field::{Point, SeriesField, Stamp};
pub use judge::{Judged, Judgement};
pub use monitor::MonitorSeries;
pub use patterns::Bound;
pub use sample::Sample;

use crate::snapshot::{
    Probe, Scalar, Snapshot, SnapshotError, SnapshotResult, StoreError, Target, counters, open_all,
    save_all,
};

/// The most counters that [`SampleSeries::counters`] finds.
pub const MOST_COUNTERS: usize = 4096;

/// Samples in the order of their time. A cheap handle.
#[derive(Clone)]
pub struct SampleSeries {
    samples: Arc<[Sample]>,
    stamps: Arc<[Stamp]>,
}

impl SampleSeries {
    /// The samples as a series; those of one time stay in their order.
    #[must_use]
    pub fn new(mut samples: Vec<Sample>) -> SampleSeries {
        samples.sort_by_key(|sample| sample.meta().elapsed());
        let mut names = PhaseNames::default();
        let stamps = samples.iter().map(|sample| Stamp::of(sample.meta(), &mut names)).collect();
        SampleSeries { samples: samples.into(), stamps }
    }

    /// The series in a file that [`SampleSeries::save`] wrote. Samples are read when they are asked
    /// for.
    ///
    /// # Errors
    /// Every [`StoreError`] but those of writing.
    pub fn open(path: &Path) -> Result<SampleSeries, StoreError> {
        let samples = open_all(path)?.into_iter();
        Ok(SampleSeries::new(samples.map(|(meta, shelved)| Sample::filed(meta, shelved)).collect()))
    }

    /// Writes all samples to one file, in the place of one that is there. A sample that cannot be
    /// read any more is written as a placeholder.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        save_all(path, self.samples.iter().map(Sample::whatever))
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// When and in which phase each was taken.
    #[must_use]
    pub fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// Those that were taken by themselves when their time had come.
    #[must_use]
    pub fn periodic(&self) -> SampleSeries {
        self.filter(|i| self.samples[i].boundary_offset_ms().is_some())
    }

    /// Those of one phase. A phase whose name comes again is `name#2`.
    #[must_use]
    pub fn phase(&self, name: &str) -> SampleSeries {
        self.filter(|i| self.stamps[i].phase.as_deref() == Some(name))
    }

    /// The phases that have samples, in order.
    #[must_use]
    pub fn phases(&self) -> Vec<Arc<str>> {
        field::phases(&self.stamps)
    }

    fn filter(&self, keep: impl Fn(usize) -> bool) -> SampleSeries {
        let kept: Vec<usize> = (0..self.len()).filter(|i| keep(*i)).collect();
        SampleSeries {
            samples: kept.iter().map(|i| self.samples[*i].clone()).collect(),
            stamps: kept.iter().map(|i| self.stamps[*i].clone()).collect(),
        }
    }

    /// What `read` gives for each sample. A placeholder is [`SnapshotError::PlaceholderSample`].
    #[must_use]
    pub fn project(
        &self,
        label: &str,
        mut read: impl FnMut(&Arc<Snapshot>) -> SnapshotResult<Scalar>,
    ) -> SeriesField {
        let read = |_: &Sample, snapshot: &Arc<Snapshot>| Ok::<_, Never>(read(snapshot));
        match self.try_project(label, read) {
            Ok(field) => field,
            Err(never) => match never {},
        }
    }

    /// The same with a way to give up.
    ///
    /// # Errors
    /// What `read` gives up with.
    pub fn try_project<E>(
        &self,
        label: &str,
        mut read: impl FnMut(&Sample, &Arc<Snapshot>) -> Result<SnapshotResult<Scalar>, E>,
    ) -> Result<SeriesField, E> {
        let mut values = Vec::with_capacity(self.len());
        for sample in self.samples.iter() {
            values.push(match sample.snapshot() {
                Ok(snapshot) => read(sample, &snapshot)?,
                Err(error) => Err(error),
            });
        }
        Ok(SeriesField::new(label, self.stamps.clone(), values))
    }

    /// What is at one place in each sample.
    #[must_use]
    pub fn target(&self, label: &str, target: Target) -> SeriesField {
        let mut probe = Probe::new(target);
        self.project(label, |snapshot| probe.read(snapshot))
    }

    /// What is at each of these places, whose labels come with them. Each sample is read once.
    #[must_use]
    pub fn targets(&self, targets: Vec<(String, Target)>) -> Vec<SeriesField> {
        let (labels, targets): (Vec<String>, Vec<Target>) = targets.into_iter().unzip();
        let mut probes: Vec<Probe> = targets.into_iter().map(Probe::new).collect();
        let mut columns: Vec<Vec<SnapshotResult<Scalar>>> =
            labels.iter().map(|_| Vec::with_capacity(self.len())).collect();
        for sample in self.samples.iter() {
            let snapshot = sample.snapshot();
            for (probe, column) in probes.iter_mut().zip(&mut columns) {
                column.push(match &snapshot {
                    Ok(snapshot) => probe.read(snapshot),
                    Err(error) => Err(error.clone()),
                });
            }
        }
        let fields = labels.iter().zip(columns);
        fields.map(|(label, column)| SeriesField::new(label, self.stamps.clone(), column)).collect()
    }

    /// Every number among the global variables, read from the first sample that has any; and
    /// whether those are all, of which there are at most [`MOST_COUNTERS`].
    #[must_use]
    pub fn counters(&self) -> (Vec<SeriesField>, bool) {
        let found = self.samples.iter().find_map(|sample| {
            let (names, all) = counters(&sample.snapshot().ok()?, MOST_COUNTERS);
            (!names.is_empty()).then_some((names, all))
        });
        let Some((names, all)) = found else { return (Vec::new(), true) };
        let targets = names.into_iter().map(|name| (name.clone(), Target::Global(name)));
        (self.targets(targets.collect()), all)
    }

    /// A value in the scheduler's statistics at each sample: see [`Snapshot::stat`].
    #[must_use]
    pub fn stats(&self, path: &str) -> SeriesField {
        self.project(&format!("stats {path}"), |snapshot| snapshot.stat(path))
    }

    /// One of a CPU's times at each sample: see [`crate::snapshot::Cpu::cpustat`].
    #[must_use]
    pub fn cpustat(&self, cpu: i64, name: &str) -> SeriesField {
        let label = format!("cpustat of CPU {cpu}: {name}");
        self.project(&label, |snapshot| {
            let missing =
                || SnapshotError::HostFieldUnavailable { tag: snapshot.tag().to_owned(), cpu };
            let stats = match snapshot.cpu(cpu) {
                Ok(found) => found.cpustat().map_err(|_| missing())?,
                Err(error @ SnapshotError::PlaceholderSnapshot { .. }) => return Err(error),
                Err(_) => return Err(missing()),
            };
            let value = stats.iter().find(|(known, _)| known == name);
            value.map(|(_, value)| value.clone()).ok_or_else(|| {
                let known = stats.into_iter().map(|(known, _)| known).collect();
                SnapshotError::FieldNotFound {
                    requested: name.to_owned(),
                    walked: String::new(),
                    component: name.to_owned(),
                    available: crate::words::nearest_first(name, known),
                }
            })
        })
    }
}

enum Never {}

impl fmt::Debug for SampleSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SampleSeries({} samples)", self.len())
    }
}

/// Names of phases, of which one may come again as another step.
#[derive(Default)]
pub(crate) struct PhaseNames {
    /// By name: the steps that had it, in order.
    steps: HashMap<String, Vec<u64>>,
    names: HashMap<(String, usize), Arc<str>>,
}

impl PhaseNames {
    /// `name` for the first step of that name, then `name#2`.
    pub(crate) fn of(&mut self, name: &str, step: u64) -> Arc<str> {
        let steps = self.steps.entry(name.to_owned()).or_default();
        let place = steps.iter().position(|known| *known == step).unwrap_or_else(|| {
            steps.push(step);
            steps.len() - 1
        });
        let spelled = || match place {
            0 => Arc::from(name),
            n => Arc::from(format!("{name}#{}", n + 1)),
        };
        self.names.entry((name.to_owned(), place)).or_insert_with(spelled).clone()
    }
}
