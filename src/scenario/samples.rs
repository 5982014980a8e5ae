//! Periodic samples: when they fall on the workload clock, and what came of them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text::seconds;
use super::verdict::plural;
use crate::snapshot::CaptureRequest;

/// The least time between two samples: a freeze takes a good part of it on an emulated machine.
pub const LEAST: Duration = Duration::from_millis(5);
/// What samples hold in memory before they go to a file, when nobody says otherwise.
pub const BUDGET: u64 = 256 << 20;
/// Missed boundaries that are named.
const NAMED: usize = 10;

/// When samples are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleTimes {
    /// So many, evenly inside of 10 % to 90 % of the scenario's duration.
    Count(u32),
    /// One at each multiple of this, from the start to the end of the scenario's body.
    Every(Duration),
}

/// The samples that a scenario asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleOptions {
    /// When.
    pub times: SampleTimes,
    /// Names of the maps to copy; all of them when `None`.
    pub maps: Option<Vec<String>>,
    /// Whether to copy CPUs, tasks and sched_ext.
    pub sched: bool,
    /// Whether to take the registers of the CPUs.
    pub registers: bool,
    /// Variables of the kernel to copy as well.
    pub kernel: Vec<String>,
    /// Bytes that samples hold in memory; what comes on top goes to a file.
    pub memory: u64,
}

impl SampleOptions {
    /// Everything copied, at these times.
    #[must_use]
    pub fn new(times: SampleTimes) -> Self {
        let (maps, kernel) = (None, Vec::new());
        SampleOptions { times, maps, sched: true, registers: false, kernel, memory: BUDGET }
    }

    /// What is copied of each.
    #[must_use]
    pub fn request(&self) -> CaptureRequest {
        CaptureRequest {
            maps: self.maps.clone(),
            sched: self.sched,
            registers: self.registers,
            kernel: self.kernel.clone(),
            ..CaptureRequest::default()
        }
    }
}

/// Where the boundaries of a scenario lie on its workload clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundaries {
    times: SampleTimes,
    duration: Duration,
}

impl Boundaries {
    /// The boundaries of a scenario of this duration.
    ///
    /// # Errors
    /// A sentence: there are none, or they are closer together than [`LEAST`]; and what to change.
    pub fn new(times: SampleTimes, duration: Duration) -> Result<Self, String> {
        let boundaries = Boundaries { times, duration };
        let apart = boundaries.interval();
        let least = LEAST.as_millis();
        match times {
            SampleTimes::Count(0) => Err("there have to be at least 1".to_owned()),
            _ if apart >= LEAST => Ok(boundaries),
            SampleTimes::Every(_) => Err(format!(
                "{apart:?} is too short an interval between samples; {least}ms is the shortest"
            )),
            SampleTimes::Count(count) => {
                let most = (window(duration).as_nanos() / LEAST.as_nanos()).saturating_sub(1);
                let advice = match most {
                    0 => String::new(),
                    most => format!("ask for at most {most}, or "),
                };
                let long = LEAST.as_millis() * (u128::from(count) + 1) * 5;
                let long = long.div_ceil(4);
                Err(format!(
                    "{count} samples between 10 % and 90 % of {duration:?} are {apart:?} apart, and \
                     {least}ms is the least: {advice}make the duration at least {long}ms"
                ))
            }
        }
    }

    /// The time from one boundary to the next.
    #[must_use]
    pub fn interval(&self) -> Duration {
        match self.times {
            SampleTimes::Count(count) => window(self.duration) / count.saturating_add(1),
            SampleTimes::Every(every) => every,
        }
    }

    /// How many there are, where that is known beforehand.
    #[must_use]
    pub fn planned(&self) -> Option<u64> {
        match self.times {
            SampleTimes::Count(count) => Some(count.into()),
            SampleTimes::Every(_) => None,
        }
    }

    /// When boundary `i` falls; `None` behind the last.
    #[must_use]
    pub fn due(&self, i: u64) -> Option<Duration> {
        let nth = u128::from(i) + 1;
        let nanos = match self.times {
            SampleTimes::Count(count) if i >= u64::from(count) => return None,
            SampleTimes::Count(count) => {
                let whole = self.duration.as_nanos();
                let first = whole / 10;
                let inside = nth.checked_mul(window(self.duration).as_nanos())?;
                first.checked_add(inside / (u128::from(count) + 1))?
            }
            SampleTimes::Every(every) => every.as_nanos().checked_mul(nth)?,
        };
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }

    /// The first boundary from `i` on that has not passed at `now`: one has when the next one has
    /// come as well. All before it, from `i` on, are missed.
    #[must_use]
    pub fn next(&self, i: u64, now: Duration) -> u64 {
        let come = |i: u64| self.due(i).is_some_and(|due| due <= now);
        let mut next = i;
        // Of many that have passed all but a few are passed over at once.
        if let (SampleTimes::Every(every), true) = (self.times, come(i)) {
            let nth = now.as_nanos() / every.as_nanos().max(1);
            next = next.max(u64::try_from(nth).unwrap_or(u64::MAX).saturating_sub(2));
        }
        while come(next.saturating_add(1)) {
            next += 1;
        }
        next
    }
}

/// The middle of a duration, from 10 % to 90 %.
fn window(duration: Duration) -> Duration {
    let nanos = duration.as_nanos() * 4 / 5;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What came of the samples of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleReport {
    /// How many were planned; `None` where they go on to the end of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<u64>,
    /// How many were taken, placeholders among them.
    pub fired: u64,
    /// How many boundaries had passed, the next one too, before they could be served.
    pub missed: u64,
    /// The first of those, by number from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_missed: Vec<u64>,
    /// How many are placeholders: the machine did not stop in time, or could not be read.
    pub placeholders: u64,
    /// How many boundaries were not reached before the scenario ended.
    pub not_fired: u64,
    /// The longest time between a boundary and its sample, in milliseconds of the workload.
    pub latest_ms: u64,
    /// How many lie in a file, since memory was used up.
    pub spilled: u64,
}

impl SampleReport {
    /// Counts boundaries from `from` to `to` (not among them) as missed.
    pub fn miss(&mut self, from: u64, to: u64) {
        self.missed += to.saturating_sub(from);
        let room = NAMED.saturating_sub(self.first_missed.len());
        self.first_missed.extend((from..to).take(room));
    }
}

impl fmt::Display for SampleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.planned {
            Some(planned) => write!(f, "{} of {} taken", self.fired, plural(planned, "sample"))?,
            None => write!(f, "{} taken", plural(self.fired, "sample"))?,
        }
        if self.placeholders > 0 {
            write!(f, ", {} of them without contents", self.placeholders)?;
        }
        if self.fired > 0 {
            write!(f, ", at most {} late", seconds(self.latest_ms))?;
        }
        if self.missed > 0 {
            let named: Vec<String> = self.first_missed.iter().map(u64::to_string).collect();
            let more = if self.missed > named.len() as u64 { ", .." } else { "" };
            write!(f, "; {} missed ({}{more})", self.missed, named.join(", "))?;
        }
        if self.not_fired > 0 {
            write!(f, "; {} not reached before the end", self.not_fired)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn all(boundaries: &Boundaries) -> Vec<Duration> {
        (0..).map_while(|i| boundaries.due(i)).collect()
    }

    #[test]
    fn boundaries_lie_evenly_inside_of_the_middle() {
        let four = Boundaries::new(SampleTimes::Count(3), ms(1000)).unwrap();
        assert_eq!(all(&four), [ms(300), ms(500), ms(700)]);
        assert_eq!((four.planned(), four.interval()), (Some(3), ms(200)));
        let one = Boundaries::new(SampleTimes::Count(1), ms(4000)).unwrap();
        assert_eq!(all(&one), [ms(2000)]);
        let free = Boundaries::new(SampleTimes::Every(ms(50)), ms(100)).unwrap();
        assert_eq!((free.due(0), free.due(99)), (Some(ms(50)), Some(ms(5000))));
        assert_eq!((free.planned(), free.due(u64::MAX)), (None, None));
    }

    #[test]
    fn boundaries_that_are_too_close_are_refused_with_what_to_change() {
        let told = |times, duration| Boundaries::new(times, duration).unwrap_err();
        assert_eq!(
            told(SampleTimes::Count(1000), ms(4000)),
            "1000 samples between 10 % and 90 % of 4s are 3.196803ms apart, and 5ms is the least: \
             ask for at most 639, or make the duration at least 6257ms"
        );
        assert_eq!(
            told(SampleTimes::Count(1), ms(5)),
            "1 samples between 10 % and 90 % of 5ms are 2ms apart, and 5ms is the least: make the \
             duration at least 13ms"
        );
        assert_eq!(
            told(SampleTimes::Every(ms(4)), ms(4000)),
            "4ms is too short an interval between samples; 5ms is the shortest"
        );
        assert_eq!(told(SampleTimes::Count(0), ms(4000)), "there have to be at least 1");
        // The advice holds.
        assert!(Boundaries::new(SampleTimes::Count(639), ms(4000)).is_ok());
        assert!(Boundaries::new(SampleTimes::Count(640), ms(4000)).is_err());
        assert!(Boundaries::new(SampleTimes::Count(1000), ms(6257)).is_ok());
        assert!(Boundaries::new(SampleTimes::Count(1000), ms(6255)).is_err());
    }

    #[test]
    fn reports_say_what_came_of_it() {
        let mut report = SampleReport { planned: Some(8), fired: 8, ..SampleReport::default() };
        assert_eq!(report.to_string(), "8 of 8 samples taken, at most 0.00 s late");
        (report.fired, report.placeholders, report.latest_ms) = (3, 1, 42);
        report.miss(1, 3);
        report.miss(3, 3);
        report.not_fired = 3;
        assert_eq!(
            report.to_string(),
            "3 of 8 samples taken, 1 of them without contents, at most 0.04 s late; 2 missed (1, 2); \
             3 not reached before the end"
        );
        let mut free = SampleReport { fired: 1, ..SampleReport::default() };
        free.miss(5, 500);
        assert_eq!(
            free.to_string(),
            "1 sample taken, at most 0.00 s late; 495 missed (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ..)"
        );
    }

    #[test]
    fn the_book_shows_what_came_of_samples() {
        let report = SampleReport {
            planned: Some(8),
            fired: 6,
            not_fired: 2,
            latest_ms: 10,
            ..SampleReport::default()
        };
        assert_eq!([report.to_string()], *crate::script::tests::golden::shown("sampling.md", 0));
    }

    /// The same by looking at each.
    fn slow_next(boundaries: &Boundaries, i: u64, now: Duration) -> u64 {
        let mut next = i;
        while boundaries.due(next + 1).is_some_and(|due| due <= now) {
            next += 1;
        }
        next
    }

    proptest! {
        #[test]
        fn counted_boundaries_are_as_the_formula_says(count in 1u32..500, d in 1u64..10_000) {
            let duration = ms(d);
            match Boundaries::new(SampleTimes::Count(count), duration) {
                Err(_) => {
                    let apart = 0.8 * duration.as_secs_f64() / f64::from(count + 1);
                    prop_assert!(apart < LEAST.as_secs_f64() + 1e-6);
                }
                Ok(boundaries) => {
                    let all = all(&boundaries);
                    prop_assert_eq!(all.len(), count as usize);
                    for (i, due) in all.iter().enumerate() {
                        let d = duration.as_secs_f64();
                        let want = 0.1 * d + (i as f64 + 1.0) * 0.8 * d / (f64::from(count) + 1.0);
                        prop_assert!((due.as_secs_f64() - want).abs() < 1e-7, "{due:?} {want}");
                    }
                    prop_assert!(all.iter().all(|due| *due > duration / 10));
                    prop_assert!(all.iter().all(|due| *due < duration * 9 / 10));
                    prop_assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= LEAST - ms(1) / 1000));
                }
            }
        }

        #[test]
        fn what_is_next_is_what_a_look_at_each_gives(
            every in 5u64..100, i in 0u64..50, now in 0u64..20_000, count in 1u32..100,
        ) {
            for times in [SampleTimes::Every(ms(every)), SampleTimes::Count(count)] {
                let boundaries = Boundaries::new(times, ms(9_000)).unwrap();
                prop_assert_eq!(boundaries.next(i, ms(now)), slow_next(&boundaries, i, ms(now)));
            }
        }
    }
}
