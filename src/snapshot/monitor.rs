//! What a monitor saw of a machine at one time, and the few numbers that it comes down to.

pub use crate::introspect::{CpuReading, Reading, SchedReading};

use serde::{Deserialize, Serialize};

use super::Capturer;
use super::capture::CaptureError;
use super::error::{SnapshotError, SnapshotResult};
use super::kernel::unreadable;
use super::value::Scalar;
use crate::words::nearest_first;

/// What was read of a machine while it ran, when, and what the readings before it make of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// When, on the workload clock in microseconds.
    pub elapsed_us: u64,
    /// What was read.
    #[serde(flatten)]
    pub reading: Reading,
    /// For how long each of its CPUs has been stuck, in microseconds.
    pub stuck_us: Vec<u64>,
}

impl Capturer {
    /// Reads what a monitor wants to know, while the machine runs.
    ///
    /// # Errors
    /// [`CaptureError::Failed`] when the kernel's types do not say where it is.
    pub fn monitor(&self) -> Result<Reading, CaptureError> {
        Ok(self.kernel().monitor()?)
    }
}

impl Observation {
    /// The numbers of a whole machine.
    pub const FIELDS: [&'static str; 8] = [
        "imbalance",
        "depth",
        "local_depth",
        "nr_running",
        "stuck_ms",
        "cpus",
        "doubted",
        "given_up",
    ];
    /// The numbers of a CPU.
    pub const OF_CPU: [&'static str; 6] =
        ["nr_running", "ext_running", "local_depth", "clock", "nr_switches", "stuck_ms"];

    fn missing(&self, what: &str) -> SnapshotError {
        let why = match self.reading.doubts.as_slice() {
            [] => "it changed while it was read".to_owned(),
            [first, ..] => first.clone(),
        };
        unreadable(what, why)
    }

    /// All CPUs: a number over all of them means nothing when one is missing.
    fn cpus(&self, what: &str) -> SnapshotResult<&[CpuReading]> {
        match self.reading.cpus_missing == 0 && !self.reading.cpus.is_empty() {
            true => Ok(&self.reading.cpus),
            false => Err(self.missing(what)),
        }
    }

    /// Tasks on the CPU that has most, over those on the CPU that has fewest (at least 1).
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when a CPU could not be read.
    pub fn imbalance(&self) -> SnapshotResult<f64> {
        let counts = self.cpus("the imbalance")?.iter().map(|cpu| cpu.nr_running);
        let (least, most) = counts.fold((u32::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
        Ok(f64::from(most) / f64::from(least.max(1)))
    }

    /// The dispatch queue in which most tasks wait, of those whose name begins so, and how many.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when one could not be read, or the kernel has none.
    pub fn longest(&self, of: &str) -> SnapshotResult<(&str, u32)> {
        let what = "the longest dispatch queue";
        if !self.reading.has_queues {
            return Err(unreadable(what, "this kernel has no sched_ext"));
        }
        if self.reading.queues_missing || self.reading.cpus_missing > 0 {
            return Err(self.missing(what));
        }
        let queues = self.reading.queues.iter().filter(|(name, _)| name.starts_with(of));
        // Of several the first one.
        let longest = queues.rev().max_by_key(|(_, depth)| *depth);
        longest.map(|(name, depth)| (name.as_str(), *depth)).ok_or_else(|| self.missing(what))
    }

    /// The CPU that has been stuck for longest, and for how many microseconds.
    ///
    /// # Errors
    /// As [`Observation::imbalance`].
    pub fn stuck(&self) -> SnapshotResult<(&CpuReading, u64)> {
        let what = "the time that CPUs are stuck";
        let cpus = self.cpus(what)?.iter().zip(self.stuck_us.iter().copied());
        cpus.rev().max_by_key(|(_, us)| *us).ok_or_else(|| self.missing(what))
    }

    /// How often an event happened, of which the name may go without `SCX_EV_`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when there is no scheduler or its counters could not
    /// be read, [`SnapshotError::FieldNotFound`] when the kernel does not count that.
    pub fn event(&self, name: &str) -> SnapshotResult<u64> {
        let what = format!("the event counter {name}");
        let Some(sched) = &self.reading.sched else {
            let why = match self.reading.queues_missing {
                true => return Err(self.missing(&what)),
                false => "no scheduler is attached",
            };
            return Err(unreadable(what, why));
        };
        let events = sched.events.as_ref().ok_or_else(|| self.missing(&what))?;
        let is = |known: &str| known == name || known.strip_prefix("SCX_EV_") == Some(name);
        let found = events.iter().find(|(known, _)| is(known));
        found.map(|(_, n)| *n).ok_or_else(|| no_field(name, events.iter().map(|(name, _)| name)))
    }

    /// One of [`Observation::FIELDS`].
    ///
    /// # Errors
    /// [`SnapshotError::FieldNotFound`] for another name, and as the methods of the same names.
    pub fn field(&self, name: &str) -> SnapshotResult<Scalar> {
        Ok(match name {
            "imbalance" => Scalar::Float(self.imbalance()?),
            "depth" => int(self.longest("")?.1),
            "local_depth" => int(self.longest("local:")?.1),
            "nr_running" => {
                let counts = self.cpus("the number of runnable tasks")?.iter();
                Scalar::Int(counts.map(|cpu| i64::from(cpu.nr_running)).sum())
            }
            "stuck_ms" => ms(self.stuck()?.1),
            "cpus" => Scalar::Int(self.reading.cpus.len() as i64),
            "doubted" => int(self.reading.doubted),
            "given_up" => int(self.reading.given_up),
            _ => return Err(no_field(name, Self::FIELDS.iter())),
        })
    }

    /// One of [`Observation::OF_CPU`].
    ///
    /// # Errors
    /// [`SnapshotError::FieldNotFound`] for another name; [`SnapshotError::MapRenderIncomplete`] when
    /// there is no such CPU online, or it could not be read.
    pub fn of_cpu(&self, cpu: i64, name: &str) -> SnapshotResult<Scalar> {
        let place = self.reading.cpus.iter().position(|known| i64::from(known.cpu) == cpu);
        let Some(place) = place else {
            let what = format!("CPU {cpu}");
            return Err(match self.reading.cpus_missing {
                0 => unreadable(what, "it is not online"),
                _ => self.missing(&what),
            });
        };
        let read = &self.reading.cpus[place];
        Ok(match name {
            "nr_running" => int(read.nr_running),
            "ext_running" => int(read
                .ext_running
                .ok_or_else(|| unreadable("ext_running", "this kernel has no sched_ext"))?),
            "local_depth" => return self.dsq(&format!("local:{cpu}")),
            "clock" => Scalar::Int(i64::try_from(read.clock).unwrap_or(i64::MAX)),
            "nr_switches" => Scalar::Int(i64::try_from(read.nr_switches).unwrap_or(i64::MAX)),
            "stuck_ms" => ms(self.stuck_us.get(place).copied().unwrap_or_default()),
            _ => return Err(no_field(name, Self::OF_CPU.iter())),
        })
    }

    /// How many tasks wait in a dispatch queue, by its name in a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::FieldNotFound`] when there is none of that name,
    /// [`SnapshotError::MapRenderIncomplete`] when that cannot be known.
    pub fn dsq(&self, name: &str) -> SnapshotResult<Scalar> {
        let queues = &self.reading.queues;
        match queues.iter().find(|(known, _)| known == name) {
            Some((_, depth)) => Ok(int(*depth)),
            None if self.reading.queues_missing || self.reading.given_up > 0 => {
                Err(self.missing(&format!("dispatch queue {name}")))
            }
            None => Err(no_field(name, queues.iter().map(|(name, _)| name))),
        }
    }
}

fn int(n: u32) -> Scalar {
    Scalar::Int(n.into())
}

/// Microseconds as whole milliseconds.
fn ms(us: u64) -> Scalar {
    Scalar::Int(i64::try_from(us / 1000).unwrap_or(i64::MAX))
}

fn no_field<S: ToString>(name: &str, known: impl Iterator<Item = S>) -> SnapshotError {
    SnapshotError::FieldNotFound {
        requested: name.to_owned(),
        walked: String::new(),
        component: name.to_owned(),
        available: nearest_first(name, known.map(|name| name.to_string()).collect()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// CPUs with so many runnable tasks each, none of them stuck, and a queue for each.
    pub(crate) fn observation(elapsed_ms: u64, running: &[u32]) -> Observation {
        let cpu = |(cpu, n): (u32, &u32)| CpuReading {
            cpu,
            nr_running: *n,
            ext_running: Some(*n),
            clock: 1_000_000 * (1000 + elapsed_ms),
            nr_switches: 10 * elapsed_ms,
            idle: *n == 0,
            task: (*n > 0).then(|| (100 + cpu, "spin".to_owned())),
        };
        let queue = |(cpu, n): (u32, &u32)| (format!("local:{cpu}"), n.saturating_sub(1));
        let mut queues: Vec<_> = (0..).zip(running).map(queue).collect();
        queues.push(("global".to_owned(), 0));
        let events =
            [("SCX_EV_SELECT_CPU_FALLBACK", elapsed_ms / 100), ("SCX_EV_BYPASS_ACTIVATE", 1)];
        let events = events.map(|(name, n)| (name.to_owned(), n)).to_vec();
        let sched = SchedReading { at: 0xffff_8880_0000_1000, seq: Some(1), events: Some(events) };
        Observation {
            elapsed_us: 1000 * elapsed_ms,
            reading: Reading {
                cpus: (0..).zip(running).map(cpu).collect(),
                has_queues: true,
                queues,
                sched: Some(sched),
                ..Reading::default()
            },
            stuck_us: vec![0; running.len()],
        }
    }

    fn told<T: std::fmt::Debug>(result: SnapshotResult<T>) -> String {
        result.map_or_else(|e| e.to_string(), |value| format!("{value:?}"))
    }

    #[test]
    fn numbers_of_the_whole_machine_and_of_each_cpu() {
        let mut seen = observation(500, &[6, 2, 0]);
        seen.stuck_us[2] = 1_234_567;
        let whole = Observation::FIELDS.map(|name| told(seen.field(name)));
        let want =
            ["Float(6.0)", "Int(5)", "Int(5)", "Int(8)", "Int(1234)", "Int(3)", "Int(0)", "Int(0)"];
        assert_eq!(whole, want);
        let of = |cpu| Observation::OF_CPU.map(|name| told(seen.of_cpu(cpu, name)));
        let want = ["Int(2)", "Int(2)", "Int(1)", "Int(1500000000)", "Int(5000)", "Int(0)"];
        assert_eq!(of(1), want);
        assert_eq!(of(2)[5], "Int(1234)");
        assert_eq!((seen.longest("").unwrap(), seen.stuck().unwrap().0.cpu), (("local:0", 5), 2));
        assert_eq!(
            (seen.event("SCX_EV_SELECT_CPU_FALLBACK"), seen.event("BYPASS_ACTIVATE")),
            (Ok(5), Ok(1))
        );
        assert_eq!(told(seen.dsq("global")), "Int(0)");
    }

    #[test]
    fn what_is_not_there_is_an_error_with_the_nearest_name_or_the_reason() {
        let mut seen = observation(500, &[6, 2]);
        let near = |e: SnapshotError| match e {
            SnapshotError::FieldNotFound { available, .. } => available[0].clone(),
            other => other.to_string(),
        };
        assert_eq!(near(seen.field("inbalance").unwrap_err()), "imbalance");
        assert_eq!(near(seen.of_cpu(0, "nr_runing").unwrap_err()), "nr_running");
        assert_eq!(
            near(seen.event("SCX_EV_BYPASS_ACTIVATED").unwrap_err()),
            "SCX_EV_BYPASS_ACTIVATE"
        );
        assert_eq!(near(seen.dsq("locl:1").unwrap_err()), "local:1");
        assert!(told(seen.of_cpu(7, "clock")).contains("it is not online"));
        seen.reading.cpus.pop();
        seen.reading.cpus_missing = 1;
        seen.reading.doubt("CPU 1: clock is 0".to_owned());
        for name in ["imbalance", "depth", "nr_running", "stuck_ms"] {
            let told = told(seen.field(name));
            assert!(told.contains("CPU 1: clock is 0"), "{name}: {told}");
        }
        assert!(told(seen.of_cpu(1, "clock")).contains("CPU 1: clock is 0"));
        assert_eq!(told(seen.of_cpu(0, "nr_running")), "Int(6)");
        seen.reading.sched = None;
        assert!(told(seen.event("X")).contains("no scheduler is attached"));
        seen.reading.has_queues = false;
        assert!(told(seen.longest("")).contains("this kernel has no sched_ext"));
    }

    #[test]
    fn an_observation_is_written_and_read_back() {
        let seen = observation(500, &[6, 0]);
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Observation>(&text).unwrap(), seen);
        assert!(text.len() < 700, "{text}");
    }
}
