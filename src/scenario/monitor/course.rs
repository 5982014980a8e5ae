//! The course of observations against limits.

use std::collections::BTreeMap;

use super::{Limit, Mode, MonitorOptions, MonitorReport, Signal};
use crate::scenario::verdict::{Check, Outcome, plural};
use crate::snapshot::{Observation, SchedReading, SnapshotResult};

use super::watcher::same;

/// What was seen so far, and how far beyond its limits.
#[derive(Debug)]
pub struct Course {
    limits: Vec<Tally>,
    report: MonitorReport,
    /// The first and the last counters of each scheduler's time together: changes and seconds.
    events: BTreeMap<String, u64>,
    seconds: f64,
    before: Option<(u64, SchedReading)>,
}

/// What there was of a signal.
#[derive(Debug)]
struct Tally {
    limit: Limit,
    /// Readings that had a value.
    values: u64,
    /// The largest of them, and where and when.
    largest: Option<Seen>,
    /// Readings in a row that are beyond the limit, up to the last one, and the largest of those.
    row: (u32, Option<Seen>),
    /// The largest in rows that were long enough.
    beyond: Option<Seen>,
    /// Readings in such rows.
    exceeded: u64,
    /// Why the last reading without a value had none.
    why: Option<String>,
}

/// A value of a signal.
#[derive(Clone, Debug)]
struct Seen {
    value: f64,
    detail: String,
    elapsed_us: u64,
}

/// What is to be recorded about a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// A check, of a limit that is enforced.
    Check(Check),
    /// A note, about one that is only reported.
    Note(String),
}

impl Course {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(options: &MonitorOptions) -> Course {
        let on = options.limits.iter().filter(|limit| limit.mode != Mode::Off);
        let tally = |limit: &Limit| Tally {
            limit: limit.clone(),
            values: 0,
            largest: None,
            row: (0, None),
            beyond: None,
            exceeded: 0,
            why: None,
        };
        Course {
            limits: on.map(tally).collect(),
            report: MonitorReport::default(),
            events: BTreeMap::new(),
            seconds: 0.0,
            before: None,
        }
    }

    /// Takes an observation into account, which took so long.
    pub fn take(&mut self, seen: &Observation, took_us: u64) {
        let rates = self.rates(seen);
        for tally in &mut self.limits {
            tally.take(value(&tally.limit.signal, seen, rates.as_ref()), seen.elapsed_us);
        }
        let report = &mut self.report;
        report.readings += 1;
        report.longest_us = report.longest_us.max(took_us);
        report.doubted += u64::from(seen.reading.doubted);
        if report.doubt.is_none() {
            report.doubt = seen.reading.doubts.first().cloned();
        }
        report.given_up += u64::from(seen.reading.given_up);
        if let Ok(imbalance) = seen.imbalance() {
            report.imbalance = Some(report.imbalance.map_or(imbalance, |most| most.max(imbalance)));
        }
        if let Ok((name, depth)) = seen.longest("")
            && report.depth.as_ref().is_none_or(|(_, most)| depth > *most)
        {
            report.depth = Some((name.to_owned(), depth));
        }
        if let Ok((cpu, us)) = seen.stuck()
            && report.stuck_ms.is_none_or(|(_, most)| us / 1000 > most)
        {
            report.stuck_ms = Some((cpu.cpu, us / 1000));
        }
    }

    /// A reading could not be taken.
    pub fn fail(&mut self, why: &str) {
        self.report.failed += 1;
        self.report.failure.get_or_insert_with(|| why.to_owned());
        self.limits.iter_mut().for_each(|tally| tally.why = Some(why.to_owned()));
    }

    /// So many readings could not be taken in time.
    pub fn miss(&mut self, count: u64) {
        self.report.missed += count;
    }

    /// How often each event happened in a second since the reading before, where there was one of
    /// the same scheduler.
    fn rates(&mut self, seen: &Observation) -> Option<BTreeMap<String, f64>> {
        let now = seen.reading.sched.as_ref().filter(|sched| sched.events.is_some());
        let Some(now) = now else {
            // Counters that could not be read are compared with those before.
            if seen.reading.sched.is_none() && !seen.reading.queues_missing {
                self.before = None;
            }
            return None;
        };
        let before = self.before.replace((seen.elapsed_us, now.clone()));
        let (at, before) = before.filter(|(_, before)| same(before, now))?;
        let seconds = seen.elapsed_us.checked_sub(at).filter(|us| *us > 0)? as f64 / 1e6;
        self.seconds += seconds;
        let pairs = before.events.iter().flatten().zip(now.events.iter().flatten());
        let mut rates = BTreeMap::new();
        for ((name, was), (_, is)) in pairs {
            let happened = is.saturating_sub(*was);
            *self.events.entry(name.clone()).or_default() += happened;
            rates.insert(name.clone(), happened as f64 / seconds);
        }
        Some(rates)
    }

    /// What came of it so far.
    #[must_use]
    pub fn report(&self) -> MonitorReport {
        let mut report = self.report.clone();
        let rate = |(name, n): (&String, &u64)| (name.clone(), *n as f64 / self.seconds);
        if self.seconds > 0.0 {
            report.events = self.events.iter().map(rate).collect();
        }
        report
    }

    /// What the limits come to: a check for each that is enforced, a note for each other one that was
    /// exceeded or of which nothing is known.
    #[must_use]
    pub fn judge(&self) -> Vec<Judged> {
        self.limits.iter().filter_map(Tally::judge).collect()
    }
}

/// A signal's value, and where.
fn value(
    signal: &Signal,
    seen: &Observation,
    rates: Option<&BTreeMap<String, f64>>,
) -> Option<SnapshotResult<(f64, String)>> {
    Some(match signal {
        Signal::Imbalance => seen.imbalance().map(|ratio| (ratio, busiest(seen))),
        Signal::Depth => seen.longest("").map(queue),
        Signal::LocalDepth => seen.longest("local:").map(queue),
        Signal::Stuck => seen.stuck().map(|(cpu, us)| {
            let runs = match &cpu.task {
                Some((pid, comm)) => format!("runs {comm}[{pid}]"),
                None if cpu.idle => "idles".to_owned(),
                None => "runs a task".to_owned(),
            };
            let waiting = cpu.nr_running - u32::from(!cpu.idle && cpu.nr_running > 0);
            let waiting = plural(waiting.into(), "task");
            (us as f64 / 1e6, format!("CPU {} {runs}, {waiting} waiting", cpu.cpu))
        }),
        Signal::Event(name) => match (seen.event(name), rates) {
            (Err(error), _) => Err(error),
            // The first reading of a scheduler says nothing about a rate.
            (Ok(_), None) => return None,
            (Ok(_), Some(rates)) => {
                let long = format!("SCX_EV_{name}");
                let rate = rates.get(name).or_else(|| rates.get(&long));
                Ok((rate.copied().unwrap_or_default(), String::new()))
            }
        },
    })
}

fn queue((name, depth): (&str, u32)) -> (f64, String) {
    (depth.into(), name.to_owned())
}

/// The CPUs with most and with fewest tasks.
fn busiest(seen: &Observation) -> String {
    let cpus = &seen.reading.cpus;
    let most = cpus.iter().rev().max_by_key(|cpu| cpu.nr_running);
    let least = cpus.iter().min_by_key(|cpu| cpu.nr_running);
    most.zip(least).map_or(String::new(), |(most, least)| {
        format!(
            "CPU {} has {}, CPU {} has {}",
            most.cpu, most.nr_running, least.cpu, least.nr_running
        )
    })
}

impl Tally {
    fn take(&mut self, value: Option<SnapshotResult<(f64, String)>>, elapsed_us: u64) {
        let (value, detail) = match value {
            Some(Ok(value)) => value,
            // What is not known neither ends a row nor makes it longer.
            Some(Err(error)) => return self.why = Some(error.to_string()),
            None => return,
        };
        self.values += 1;
        let seen = Seen { value, detail, elapsed_us };
        keep_larger(&mut self.largest, &seen);
        if value <= self.limit.most {
            self.row = (0, None);
            return;
        }
        self.row.0 = self.row.0.saturating_add(1);
        keep_larger(&mut self.row.1, &seen);
        match self.row.0.cmp(&self.limit.readings) {
            std::cmp::Ordering::Less => return,
            std::cmp::Ordering::Equal => self.exceeded += u64::from(self.row.0),
            std::cmp::Ordering::Greater => self.exceeded += 1,
        }
        if let Some(largest) = &self.row.1 {
            keep_larger(&mut self.beyond, largest);
        }
    }

    fn judge(&self) -> Option<Judged> {
        let (signal, readings) = (&self.limit.signal, self.limit.readings);
        let label = format!("monitor: {signal}");
        let row = match readings {
            1 => " in every reading".to_owned(),
            n => format!(", exceeded by no {n} readings in a row"),
        };
        let expected = format!("at most {}{row}", signal.limit(self.limit.most));
        let (outcome, found) = match (&self.beyond, &self.largest) {
            (Some(beyond), _) => {
                let (n, all) = (self.exceeded, self.values);
                let of = format!("beyond it in {n} of {}", plural(all, "reading"));
                (Outcome::Fail, format!("{}; {of}", beyond.told(signal)))
            }
            (None, Some(largest)) => {
                let all = plural(self.values, "reading");
                (Outcome::Pass, format!("at most {} in {all}", largest.told(signal)))
            }
            (None, None) => {
                let why = self.why.as_deref().unwrap_or("there was no time for a reading");
                (Outcome::Inconclusive, format!("no value: {why}"))
            }
        };
        match (self.limit.mode, outcome) {
            (Mode::Enforce, _) => {
                Some(Judged::Check(Check::new(outcome, label).compared(expected, found)))
            }
            (Mode::Report, Outcome::Pass) | (Mode::Off, _) => None,
            (Mode::Report, _) => {
                Some(Judged::Note(format!("{label}: {found}; it is to be {expected}")))
            }
        }
    }
}

impl Seen {
    /// `7.0 at 1.23 s (CPU 0 has 14, CPU 1 has 2)`.
    fn told(&self, signal: &Signal) -> String {
        let at = self.elapsed_us as f64 / 1e6;
        let detail = match self.detail.as_str() {
            "" => String::new(),
            detail => format!(" ({detail})"),
        };
        format!("{} at {at:.2} s{detail}", signal.told(self.value))
    }
}

fn keep_larger(kept: &mut Option<Seen>, seen: &Seen) {
    if kept.as_ref().is_none_or(|kept| seen.value > kept.value) {
        *kept = Some(seen.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::monitor_tests::observation;

    fn limit(signal: Signal, most: f64) -> Limit {
        Limit { signal, most, mode: Mode::Enforce, readings: 3 }
    }

    /// What comes of a limit over a course of tasks on two CPUs, 100 ms apart.
    fn judged(limit: Limit, course: &[[u32; 2]]) -> String {
        let seen = (1..).zip(course).map(|(i, running)| observation(100 * i, running));
        told(limit, &seen.collect::<Vec<_>>())
    }

    fn told(limit: Limit, course: &[Observation]) -> String {
        let mut all = Course::new(&MonitorOptions { limits: vec![limit], ..Default::default() });
        course.iter().for_each(|seen| all.take(seen, 7));
        match all.judge().pop() {
            None => "nothing".to_owned(),
            Some(Judged::Note(text)) => format!("note {text}"),
            Some(Judged::Check(check)) => {
                let (expected, found) = (check.expected.unwrap(), check.found.unwrap());
                format!("{} {}: {expected}, found {found}", check.outcome, check.label)
            }
        }
    }

    #[test]
    fn a_limit_is_exceeded_by_so_many_readings_in_a_row() {
        let imbalance = || limit(Signal::Imbalance, 2.5);
        assert_eq!(
            judged(imbalance(), &[[6, 1], [7, 1], [2, 1], [9, 1], [2, 2]]),
            "pass monitor: imbalance: at most 2.5, exceeded by no 3 readings in a row, found at most 9.0 \
             at 0.40 s (CPU 0 has 9, CPU 1 has 1) in 5 readings"
        );
        assert_eq!(
            judged(imbalance(), &[[9, 1], [1, 1], [1, 6], [1, 7], [3, 1], [4, 1], [1, 1]]),
            "fail monitor: imbalance: at most 2.5, exceeded by no 3 readings in a row, found 7.0 at 0.40 s \
             (CPU 1 has 7, CPU 0 has 1); beyond it in 4 of 7 readings"
        );
        assert_eq!(
            judged(Limit { readings: 1, ..limit(Signal::Depth, 4.0) }, &[[1, 1], [6, 0]]),
            "fail monitor: depth: at most 4 tasks in every reading, found 5 tasks at 0.20 s \
             (local:0); beyond it in 1 of 2 readings"
        );
        assert_eq!(
            judged(limit(Signal::LocalDepth, 4.0), &[[1, 1], [2, 0]]),
            "pass monitor: local_depth: at most 4 tasks, exceeded by no 3 readings in a row, found at most 1 \
             task at 0.20 s (local:0) in 2 readings"
        );
    }

    #[test]
    fn what_is_not_known_neither_ends_a_row_nor_makes_it_longer() {
        let mut course: Vec<_> = [[6, 1], [1, 1], [6, 1], [6, 1]]
            .iter()
            .zip(1..)
            .map(|(n, i)| observation(100 * i, n))
            .collect();
        course[1].reading.cpus_missing = 1;
        let ends = "found 6.0 at 0.10 s (CPU 0 has 6, CPU 1 has 1); beyond it in 3 of 3 readings";
        let text = told(limit(Signal::Imbalance, 2.0), &course);
        assert!(text.starts_with("fail") && text.ends_with(ends), "{text}");
        let text = told(limit(Signal::Imbalance, 2.0), &course[..3]);
        assert!(text.starts_with("pass"), "{text}");
    }

    #[test]
    fn no_signal_is_inconclusive_and_says_why() {
        let mut seen = observation(100, &[1, 1]);
        seen.reading.cpus_missing = 1;
        seen.reading.doubt("CPU 1: clock is 0".to_owned());
        let text = told(limit(Signal::Imbalance, 2.0), &[seen.clone(), seen.clone()]);
        assert!(text.starts_with("inconclusive monitor: imbalance: "), "{text}");
        assert!(text.contains("found no value: ") && text.contains("CPU 1: clock is 0"), "{text}");
        let mode = Mode::Report;
        let text = told(Limit { mode, ..limit(Signal::Depth, 2.0) }, &[seen.clone()]);
        assert!(text.starts_with("note monitor: depth: no value: "), "{text}");
        assert!(
            text.ends_with("; it is to be at most 2 tasks, exceeded by no 3 readings in a row"),
            "{text}"
        );
        let text = told(limit(Signal::Event("SELECT_CPU_FALBACK".into()), 2.0), &[seen.clone()]);
        assert!(
            text.starts_with("inconclusive") && text.contains("SCX_EV_SELECT_CPU_FALLBACK"),
            "{text}"
        );
        let text = told(limit(Signal::Stuck, 2.0), &[]);
        assert!(text.ends_with("found no value: there was no time for a reading"), "{text}");
        let mut course = Course::new(&MonitorOptions {
            limits: vec![limit(Signal::Stuck, 1.0)],
            ..Default::default()
        });
        course.fail("the kernel's types are no use");
        let [Judged::Check(check)] = &course.judge()[..] else { panic!() };
        assert_eq!(check.found.as_deref(), Some("no value: the kernel's types are no use"));
        assert_eq!(course.report().failure.as_deref(), Some("the kernel's types are no use"));
    }

    #[test]
    fn limits_are_off_reported_or_enforced() {
        let of = |mode, course: &[[u32; 2]]| {
            judged(Limit { mode, ..limit(Signal::Imbalance, 2.0) }, course)
        };
        let (good, bad) = ([[1, 1]; 4], [[9, 1]; 4]);
        assert_eq!(
            (of(Mode::Off, &good), of(Mode::Off, &bad)),
            ("nothing".into(), "nothing".into())
        );
        assert_eq!(of(Mode::Report, &good), "nothing");
        assert_eq!(
            of(Mode::Report, &bad),
            "note monitor: imbalance: 9.0 at 0.10 s (CPU 0 has 9, CPU 1 has 1); beyond it in 4 of 4 \
             readings; it is to be at most 2, exceeded by no 3 readings in a row"
        );
        assert!(of(Mode::Enforce, &good).starts_with("pass"));
        assert!(of(Mode::Enforce, &bad).starts_with("fail"));
    }

    #[test]
    fn a_stuck_cpu_is_told_with_what_it_does() {
        let course: Vec<_> = (1..=4u64)
            .map(|i| {
                let mut seen = observation(500 * i, &[3, 0]);
                seen.stuck_us[0] = 500_000 * (i - 1);
                seen
            })
            .collect();
        let limit = Limit { readings: 1, ..limit(Signal::Stuck, 1.2) };
        assert_eq!(
            told(limit, &course),
            "fail monitor: stuck: at most 1.2 s in every reading, found 1.50 s at 2.00 s (CPU 0 runs \
             spin[100], 2 tasks waiting); beyond it in 1 of 4 readings"
        );
    }

    #[test]
    fn events_are_counted_by_the_second_of_one_scheduler() {
        // One in each reading, 100 ms apart.
        let event = |most, name: &str| limit(Signal::Event(name.into()), most);
        let course: Vec<_> = (1..=6).map(|i| observation(100 * i, &[1, 1])).collect();
        assert_eq!(
            told(event(9.5, "SELECT_CPU_FALLBACK"), &course),
            "fail monitor: SELECT_CPU_FALLBACK: at most 9.5/s, exceeded by no 3 readings in a row, found \
             10.0/s at 0.20 s; beyond it in 5 of 5 readings"
        );
        assert!(told(event(10.5, "SCX_EV_SELECT_CPU_FALLBACK"), &course).starts_with("pass"));
        let mut all = Course::new(&MonitorOptions::default());
        course.iter().for_each(|seen| all.take(seen, 7));
        let rates = all.report().events;
        assert!((rates["SCX_EV_SELECT_CPU_FALLBACK"] - 10.0).abs() < 1e-9, "{rates:?}");
        assert!(rates["SCX_EV_BYPASS_ACTIVATE"].abs() < 1e-9);
        // Another scheduler begins anew, and counters that were not believed are bridged.
        let mut other = course.clone();
        for seen in &mut other[3..] {
            seen.reading.sched.as_mut().unwrap().at += 8;
            let events = seen.reading.sched.as_mut().unwrap().events.as_mut().unwrap();
            events[0].1 -= 4;
        }
        other[1].reading.sched.as_mut().unwrap().events = None;
        let mut all = Course::new(&MonitorOptions::default());
        other.iter().for_each(|seen| all.take(seen, 7));
        assert!((all.report().events["SCX_EV_SELECT_CPU_FALLBACK"] - 10.0).abs() < 1e-9);
        assert!((all.seconds - 0.4).abs() < 1e-9, "{}", all.seconds);
    }
}
