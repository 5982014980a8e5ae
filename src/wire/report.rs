//! What workers say of themselves: how much they did, and how long they had to wait for it.
//!
//! Each worker keeps counts that only grow, from its start on; a report is a copy of them. What
//! happened between two reports is their difference ([`WorkerReport::since`]).
//!
//! Spans of time are kept in buckets: bucket 0 has what is shorter than 2^10 ns, then sixteen
//! buckets for each doubling. Whatever is read from one is its upper end, so it is too large by a
//! sixteenth at most, and never too small.

use serde::{Deserialize, Serialize};

use super::WorkKind;

/// How many buckets there are; the last one has everything from some 18 minutes on.
pub const BUCKETS: usize = 1 + (TOP - BOTTOM) as usize * PARTS;
/// Workers of which a report is asked in one request.
pub const MAX_REPORTS: usize = 64;
/// CPUs that units are told apart by; what ran on later ones is counted on the last.
pub const MAX_STEP_CPUS: usize = 256;

/// The first bucket ends at 2 to this power, in nanoseconds,
const BOTTOM: u32 = 10;
/// and the last one begins below 2 to that.
const TOP: u32 = 40;
/// Buckets of a doubling.
const PARTS: usize = 16;

/// How often a span fell into a bucket: its index, and the count.
pub type Bucket = (u16, u64);

/// The bucket of a span.
#[must_use]
pub fn bucket_of(ns: u64) -> usize {
    if ns < 1 << BOTTOM {
        return 0;
    }
    let power = ns.ilog2();
    if power >= TOP {
        return BUCKETS - 1;
    }
    let part = (ns >> (power - PARTS.ilog2())) as usize % PARTS;
    1 + (power - BOTTOM) as usize * PARTS + part
}

/// The end of a bucket in nanoseconds: what is in it is shorter (the last one has no end).
#[must_use]
pub fn bucket_end(index: usize) -> u64 {
    let Some(index) = index.checked_sub(1) else { return 1 << BOTTOM };
    let (power, part) = (BOTTOM + (index / PARTS) as u32, index % PARTS);
    ((PARTS + part + 1) as u64) << (power.min(TOP) - PARTS.ilog2())
}

/// What a worker did since it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its pid.
    pub pid: u32,
    /// What it does.
    pub kind: WorkKind,
    /// Whether it has ended; this is then what it had done until then.
    pub ended: bool,
    /// Microseconds since it was let go, to the report or to its end.
    pub working_us: u64,
    /// Units of work done: stretches of computing, of which `sleep` does one after each wake-up;
    /// for `pipe`, messages received.
    pub units: u64,
    /// The longest time from the instant at which it could have run to the end of the next unit,
    /// in microseconds,
    pub gap_us: u64,
    /// and when, since it was let go, that ended.
    pub gap_at_us: u64,
    /// How long it has been able to run by now without ending a unit; 0 while it sleeps.
    pub waiting_us: u64,
    /// All such times, in ascending buckets.
    pub gaps: Vec<Bucket>,
    /// Times from the instant of waking up (of the timer, of the message) to running, in ascending
    /// buckets; only `sleep` and `pipe` have them.
    pub wakes: Vec<Bucket>,
    /// CPUs, ascending, and units that ended on them.
    pub cpus: Vec<(u32, u64)>,
    /// Microseconds on a CPU, as the kernel counts (`/proc/PID/schedstat`).
    pub run_us: Option<u64>,
    /// Microseconds in a queue, able to run (`/proc/PID/schedstat`).
    pub queued_us: Option<u64>,
    /// How often the kernel moved it to another CPU (`/proc/PID/sched`).
    pub migrations: Option<u64>,
}

impl WorkerReport {
    /// Whether it makes sense: within all bounds, in order, nothing too large to be added up.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let bound = 1 << 48;
        let ordered = |buckets: &[Bucket]| {
            buckets.iter().all(|(at, count)| usize::from(*at) < BUCKETS && *count <= bound)
                && buckets.windows(2).all(|two| two[0].0 < two[1].0)
        };
        let times = [self.working_us, self.units, self.gap_us, self.gap_at_us, self.waiting_us];
        let kernel = [self.run_us, self.queued_us, self.migrations].into_iter().flatten();
        times.into_iter().chain(kernel).all(|n| n <= bound)
            && ordered(&self.gaps)
            && ordered(&self.wakes)
            && self.cpus.len() <= MAX_STEP_CPUS
            && self.cpus.iter().all(|(_, count)| *count <= bound)
            && self.cpus.windows(2).all(|two| two[0].0 < two[1].0)
    }

    /// What it did since an earlier report of the same worker; none when that one is of another, or
    /// is not earlier.
    ///
    /// The longest gap is exact when it is the longest of all; otherwise it is the end of its
    /// bucket, and when it was is not known (0).
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if (self.pid, self.kind) != (earlier.pid, earlier.kind) {
            return None;
        }
        let less = |now: Option<u64>, then: Option<u64>| match (now, then) {
            (Some(now), Some(then)) => now.checked_sub(then),
            _ => None,
        };
        let gaps = taken_from(&self.gaps, &earlier.gaps)?;
        let (gap_us, gap_at_us) = match gaps.last() {
            None => (0, 0),
            Some(_) if self.gap_at_us > earlier.working_us => {
                (self.gap_us, self.gap_at_us - earlier.working_us)
            }
            Some((at, _)) => ((bucket_end((*at).into()) / 1_000).min(self.gap_us), 0),
        };
        Some(WorkerReport {
            pid: self.pid,
            kind: self.kind,
            ended: self.ended,
            working_us: self.working_us.checked_sub(earlier.working_us)?,
            units: self.units.checked_sub(earlier.units)?,
            gap_us,
            gap_at_us,
            waiting_us: self.waiting_us,
            gaps,
            wakes: taken_from(&self.wakes, &earlier.wakes)?,
            cpus: taken_from(&self.cpus, &earlier.cpus)?,
            run_us: less(self.run_us, earlier.run_us),
            queued_us: less(self.queued_us, earlier.queued_us),
            migrations: less(self.migrations, earlier.migrations),
        })
    }

    /// The time from waking up to running that this part of the wake-ups (0 to 1) did not exceed,
    /// in microseconds; none when it never woke up.
    #[must_use]
    pub fn wake_us(&self, part: f64) -> Option<f64> {
        percentile(self.wakes.iter().copied(), part)
    }
}

/// The span, in microseconds, that this part (0 to 1) of what is in the buckets did not exceed.
/// Indices may come in any order and several times.
pub fn percentile(buckets: impl Iterator<Item = Bucket>, part: f64) -> Option<f64> {
    let mut counts = std::collections::BTreeMap::<u16, u64>::new();
    for (at, count) in buckets {
        let sum = counts.entry(at).or_default();
        *sum = sum.saturating_add(count);
    }
    let total = counts.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    let wanted = ((total as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
    let mut seen = 0_u64;
    let found = counts.iter().find(|(_, count)| {
        seen = seen.saturating_add(**count);
        seen >= wanted
    });
    found.map(|(at, _)| bucket_end((*at).into()) as f64 / 1e3)
}

/// Counts less those of before; none when there were more before.
fn taken_from<K: Copy + Ord>(now: &[(K, u64)], then: &[(K, u64)]) -> Option<Vec<(K, u64)>> {
    let mut then = then.iter().peekable();
    let mut out = Vec::new();
    for (at, count) in now {
        let before = match then.peek() {
            Some((key, _)) if key < at => return None,
            Some((key, before)) if key == at => {
                then.next();
                *before
            }
            _ => 0,
        };
        match count.checked_sub(before)? {
            0 => {}
            more => out.push((*at, more)),
        }
    }
    then.next().is_none().then_some(out)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A report of a worker that woke up once a millisecond for a second, half of which it ran, a
    /// quarter of it queued.
    pub(crate) fn made_up(pid: u32, units: u64) -> WorkerReport {
        WorkerReport {
            pid,
            kind: WorkKind::Sleep,
            ended: false,
            working_us: 1_000_000,
            units,
            gap_us: 12_000,
            gap_at_us: 700_000,
            waiting_us: 0,
            gaps: vec![(bucket_of(500_000) as u16, units), (bucket_of(12_000_000) as u16, 1)],
            wakes: vec![(bucket_of(40_000) as u16, units), (bucket_of(9_000_000) as u16, 1)],
            cpus: vec![(0, units / 2), (1, units - units / 2)],
            run_us: Some(500_000),
            queued_us: Some(250_000),
            migrations: Some(3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::made_up;
    use super::*;

    #[test]
    fn every_span_is_in_the_bucket_that_ends_after_it() {
        let powers = (0..64).flat_map(|p| [(1_u64 << p) - 1, 1 << p, (1 << p) + 1, 3 << (p / 2)]);
        for ns in powers.chain([u64::MAX, 1_500, 999_999, 123_456_789]) {
            let at = bucket_of(ns);
            assert!(at < BUCKETS, "{ns}");
            if at + 1 < BUCKETS {
                assert!(ns < bucket_end(at), "{ns} in bucket {at}");
            }
            if at > 0 {
                assert!(ns >= bucket_end(at - 1), "{ns} in bucket {at}");
                let width = bucket_end(at) - bucket_end(at - 1);
                assert!(width * 16 <= bucket_end(at - 1), "bucket {at}");
            }
        }
        assert_eq!((0..BUCKETS).filter(|at| bucket_of(bucket_end(*at) - 1) != *at).count(), 0);
    }

    #[test]
    fn percentiles_are_ends_of_buckets() {
        let report = made_up(7, 99);
        let end = |ns| Some(bucket_end(bucket_of(ns)) as f64 / 1e3);
        assert_eq!(report.wake_us(0.5), end(40_000));
        assert_eq!(report.wake_us(0.99), end(40_000));
        assert_eq!(report.wake_us(0.991), end(9_000_000));
        assert_eq!(report.wake_us(0.0), end(40_000));
        assert_eq!(report.wake_us(7.0), end(9_000_000));
        assert_eq!(report.wake_us(f64::NAN), end(40_000));
        let asleep = WorkerReport { wakes: Vec::new(), ..report };
        assert_eq!(asleep.wake_us(0.5), None);
    }

    #[test]
    fn a_difference_has_what_came_in_between() {
        let (then, mut now) = (made_up(7, 100), made_up(7, 250));
        now.working_us = 3_000_000;
        now.migrations = Some(10);
        now.cpus.push((5, 2));
        let grown = now.since(&then).unwrap();
        assert_eq!((grown.units, grown.working_us, grown.migrations), (150, 2_000_000, Some(7)));
        assert_eq!((grown.run_us, grown.queued_us), (Some(0), Some(0)));
        assert_eq!(grown.cpus, [(0, 75), (1, 75), (5, 2)]);
        // The longest was before: what remains is known by its bucket.
        assert_eq!(grown.gaps, [(bucket_of(500_000) as u16, 150)]);
        assert_eq!((grown.gap_us, grown.gap_at_us), (bucket_end(bucket_of(500_000)) / 1_000, 0));
        // The longest came after.
        now.gap_at_us = 1_500_000;
        let grown = now.since(&then).unwrap();
        assert_eq!((grown.gap_us, grown.gap_at_us), (12_000, 500_000));
        let nothing = then.since(&then).unwrap();
        assert_eq!((nothing.units, nothing.gap_us, nothing.wake_us(0.5)), (0, 0, None));
    }

    #[test]
    fn a_difference_of_what_does_not_belong_together_is_none() {
        let (then, now) = (made_up(7, 100), made_up(7, 250));
        assert_eq!(then.since(&now), None, "backwards");
        assert_eq!(now.since(&made_up(8, 100)), None, "of another");
        let other = WorkerReport { kind: WorkKind::Spin, ..then.clone() };
        assert_eq!(now.since(&other), None, "of one that does something else");
        let more = WorkerReport { cpus: vec![(0, 1), (9, 1)], ..then };
        assert_eq!(now.since(&more), None, "a CPU that is lost");
        let unknown = WorkerReport { run_us: None, ..made_up(7, 1) };
        assert_eq!(now.since(&unknown).unwrap().run_us, None);
    }

    #[test]
    fn what_makes_no_sense_is_not_whole() {
        assert!(made_up(7, 3).is_whole());
        let broken: [fn(&mut WorkerReport); 8] = [
            |r| r.units = u64::MAX,
            |r| r.run_us = Some(u64::MAX),
            |r| r.gaps = vec![(BUCKETS as u16, 1)],
            |r| r.wakes = vec![(3, 1), (3, 1)],
            |r| r.wakes = vec![(3, u64::MAX)],
            |r| r.cpus = (0..=MAX_STEP_CPUS as u32).map(|cpu| (cpu, 1)).collect(),
            |r| r.cpus = vec![(2, 1), (1, 1)],
            |r| r.cpus = vec![(2, 1 << 60)],
        ];
        for (at, spoil) in broken.iter().enumerate() {
            let mut report = made_up(7, 3);
            spoil(&mut report);
            assert!(!report.is_whole(), "{at}");
        }
    }
}
