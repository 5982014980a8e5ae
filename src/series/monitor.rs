//! What a monitor saw: at the times of its readings, or what it had seen last at each sample.

use std::fmt;
use std::sync::Arc;

use super::field::Stamp;
use super::{PhaseNames, SampleSeries, SeriesField};
use crate::snapshot::{Meta, Observation, Scalar, SnapshotError, SnapshotResult};

/// Observations of a machine in the order of time. A cheap handle.
#[derive(Clone)]
pub struct MonitorSeries {
    stamps: Arc<[Stamp]>,
    seen: Arc<[Result<Box<Observation>, SnapshotError>]>,
}

impl MonitorSeries {
    /// The readings of a monitor, each with its time and phase.
    #[must_use]
    pub fn of_readings(readings: &[Arc<Meta>]) -> MonitorSeries {
        let mut names = PhaseNames::default();
        let stamps = readings.iter().map(|meta| Stamp::of(meta, &mut names)).collect();
        MonitorSeries { stamps, seen: readings.iter().map(|meta| last(meta)).collect() }
    }

    /// How many times there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// The last observation, if there is any.
    #[must_use]
    pub fn last(&self) -> Option<&Observation> {
        self.seen.iter().rev().find_map(|seen| seen.as_deref().ok())
    }

    fn project(
        &self,
        label: &str,
        read: impl Fn(&Observation) -> SnapshotResult<Scalar>,
    ) -> SeriesField {
        let values = self.seen.iter().map(|seen| match seen {
            Ok(seen) => read(seen),
            Err(error) => Err(error.clone()),
        });
        SeriesField::new(label, self.stamps.clone(), values.collect())
    }

    /// A number of the whole machine; see [`Observation::field`].
    #[must_use]
    pub fn field(&self, name: &str) -> SeriesField {
        self.project(&format!("monitor {name}"), |seen| seen.field(name))
    }

    /// A number of a CPU; see [`Observation::of_cpu`].
    #[must_use]
    pub fn cpu(&self, cpu: i64, name: &str) -> SeriesField {
        self.project(&format!("monitor CPU {cpu}: {name}"), |seen| seen.of_cpu(cpu, name))
    }

    /// How many tasks wait in a dispatch queue; see [`Observation::dsq`].
    #[must_use]
    pub fn dsq(&self, name: &str) -> SeriesField {
        self.project(&format!("monitor dsq {name}"), |seen| seen.dsq(name))
    }

    /// How often an event has happened; see [`Observation::event`].
    #[must_use]
    pub fn event(&self, name: &str) -> SeriesField {
        self.project(&format!("monitor {name}"), |seen| {
            Ok(Scalar::Int(i64::try_from(seen.event(name)?).unwrap_or(i64::MAX)))
        })
    }
}

impl MonitorSeries {
    /// How often an event happened in a second, from the time before it that has a value of the same
    /// scheduler.
    #[must_use]
    pub fn rate(&self, name: &str) -> SeriesField {
        let label = format!("monitor {name} per second");
        let mut before: Option<(&Observation, u64)> = None;
        let rates = self.seen.iter().map(|seen| {
            let seen = seen.as_deref().map_err(Clone::clone)?;
            let count = seen.event(name)?;
            let first = || SnapshotError::MapRenderIncomplete {
                map: label.clone(),
                error: "there was no reading of this scheduler before".to_owned(),
            };
            let of =
                |seen: &Observation| seen.reading.sched.as_ref().map(|sched| (sched.at, sched.seq));
            let last = before.replace((seen, count)).filter(|(last, _)| of(last) == of(seen));
            let (last, was) = last.ok_or_else(first)?;
            // The same reading again, at two samples, says nothing new.
            let us = seen.elapsed_us.checked_sub(last.elapsed_us).filter(|us| *us > 0);
            let us = us.ok_or_else(first)?;
            Ok(Scalar::Float(count.saturating_sub(was) as f64 * 1e6 / us as f64))
        });
        let rates = rates.collect();
        SeriesField::new(&label, self.stamps.clone(), rates)
    }
}

/// What a monitor had seen when a snapshot was taken.
fn last(meta: &Meta) -> SnapshotResult<Box<Observation>> {
    meta.monitor.clone().ok_or_else(|| SnapshotError::MapRenderIncomplete {
        map: format!("what the monitor saw before {}", meta.tag),
        error: "there was none, or it had not read yet; the option `monitor` has one read"
            .to_owned(),
    })
}

impl SampleSeries {
    /// What the monitor had seen last at each sample.
    #[must_use]
    pub fn monitor(&self) -> MonitorSeries {
        // One in a file has it there; a placeholder has it as well, since nobody stopped for it.
        let seen = self.samples.iter().map(|sample| match sample.is_filed() {
            true => last(sample.whatever().meta()),
            false => last(sample.meta()),
        });
        MonitorSeries { stamps: self.stamps.clone(), seen: seen.collect() }
    }
}

impl fmt::Debug for MonitorSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MonitorSeries({} readings)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Sample;
    use crate::snapshot::Snapshot;
    use crate::snapshot::monitor_tests::observation;

    fn meta(i: u64, phase: &str) -> Meta {
        let seen = observation(100 * i, &[i as u32, 1]);
        Meta {
            tag: format!("reading_{i:04}"),
            elapsed_ms: 100 * i,
            phase: Some(phase.to_owned()),
            step_index: u64::from(phase == "b") + 1,
            monitor: Some(Box::new(seen)),
            ..Meta::default()
        }
    }

    fn values(field: &SeriesField) -> Vec<String> {
        let text = |scalar: &Scalar| format!("{scalar:?}");
        field.points().map(|p| p.value.map_or_else(|e| e.to_string(), text)).collect()
    }

    #[test]
    fn readings_are_a_course_of_their_own() {
        let mut all: Vec<_> = (1..=4).map(|i| meta(i, if i < 3 { "a" } else { "b" })).collect();
        all[3].monitor.as_mut().unwrap().reading.sched = None;
        let all: Vec<_> = all.into_iter().map(Arc::new).collect();
        let seen = MonitorSeries::of_readings(&all);
        assert_eq!((seen.len(), seen.is_empty()), (4, false));
        let imbalance = seen.field("imbalance");
        assert_eq!(imbalance.label(), "monitor imbalance");
        assert_eq!(values(&imbalance), ["Float(1.0)", "Float(2.0)", "Float(3.0)", "Float(4.0)"]);
        assert_eq!(imbalance.phase("b").len(), 2);
        assert_eq!(values(&seen.cpu(0, "nr_running"))[3], "Int(4)");
        assert_eq!(values(&seen.dsq("local:0")), ["Int(0)", "Int(1)", "Int(2)", "Int(3)"]);
        let events = values(&seen.event("SELECT_CPU_FALLBACK"));
        assert_eq!(events[..3], ["Int(1)", "Int(2)", "Int(3)"]);
        assert!(events[3].contains("no scheduler is attached"), "{events:?}");
        assert_eq!(seen.last().unwrap().elapsed_us, 400_000);
        let rates = values(&seen.rate("SELECT_CPU_FALLBACK"));
        assert_eq!(rates[1..3], ["Float(10.0)", "Float(10.0)"]);
        assert!(rates[0].contains("no reading of this scheduler before"), "{rates:?}");
        assert!(rates[3].contains("no scheduler is attached"), "{rates:?}");
    }

    #[test]
    fn samples_have_what_was_seen_last_also_when_they_are_placeholders() {
        let bare = Meta { monitor: None, ..meta(2, "a") };
        let samples = [
            Sample::held(Snapshot::new(meta(1, "a"), vec![], vec![])),
            Sample::held(Snapshot::new(bare, vec![], vec![])),
            Sample::held(Snapshot::placeholder(meta(3, "a"), "CPU 1 did not come")),
        ];
        let depths = SampleSeries::new(samples.to_vec()).monitor().field("depth");
        let depths = values(&depths);
        assert_eq!((depths[0].as_str(), depths[2].as_str()), ("Int(0)", "Int(2)"));
        assert!(depths[1].contains("the option `monitor` has one read"), "{depths:?}");
    }
}
