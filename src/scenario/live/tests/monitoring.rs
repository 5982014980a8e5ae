//! A machine that is read while it runs.

use super::sampling::{Told, ms, wait_for};
use super::*;
use crate::scenario::lab::{MonitorOps, SampleOps};
use crate::scenario::monitor::{Limit, Mode, MonitorOptions, MonitorReport, Signal};
use crate::scenario::samples::{SampleOptions, SampleTimes};
use crate::scenario::verdict::Record;
use crate::snapshot::monitor_tests::observation;

/// A laboratory whose machine is read each 10 ms.
struct Monitored {
    bench: Bench,
    told: Told,
    records: Arc<Mutex<Vec<Record>>>,
}

fn monitored(
    limits: Vec<Limit>,
    read: impl Fn(u64) -> Result<Reading, CallError> + Send + 'static,
) -> Monitored {
    let mut bench = bench(ExpectExit::None);
    let (told, records) = (Told::default(), Arc::new(Mutex::new(Vec::new())));
    let seen = records.clone();
    bench.recorder = Recorder::with_sink(move |record| seen.lock().unwrap().push(record.clone()));
    bench.lab.parts.recorder = bench.recorder.clone();
    bench.fake.stands.store(0, Ordering::Relaxed);
    *bench.fake.reads.lock().unwrap() = Some(Box::new(read));
    bench.lab.parts.events = Events::new(3, told.clone());
    bench.lab.born = Instant::now() - ms(2000);
    bench.lab.start_monitor(&MonitorOptions { every: ms(10), limits }).unwrap();
    Monitored { bench, told, records }
}

/// Two CPUs with so many tasks.
fn tasks(number: u64, running: [u32; 2]) -> Result<Reading, CallError> {
    Ok(observation(10 * number, &running).reading)
}

fn limit(signal: Signal, most: f64, mode: Mode) -> Limit {
    Limit { signal, most, mode, readings: 3 }
}

impl Monitored {
    /// Waits for this many readings, and ends it.
    fn after(&self, readings: u64) -> Vec<String> {
        let so_far = || {
            let report = self.bench.lab.monitored();
            report.readings + report.failed
        };
        wait_for("readings", || so_far() >= readings);
        self.bench.lab.finish();
        self.bench.lab.finish();
        let records = self.records.lock().unwrap();
        let told = |record: &Record| match record {
            Record::Check(check) => format!("{} {}", check.outcome, check.label),
            Record::Note { text, .. } => format!("note {text}"),
            other => panic!("{other:?}"),
        };
        records.iter().map(told).collect()
    }

    fn report(&self) -> MonitorReport {
        let events = self.told.events();
        let reports = events.iter().filter_map(|event| match event {
            RunEvent::Monitored { report, .. } => Some(report.clone()),
            _ => None,
        });
        let [report] = &reports.collect::<Vec<_>>()[..] else { panic!("told once: {events:?}") };
        report.clone()
    }
}

#[test]
fn a_machine_is_read_while_it_runs_and_judged_in_the_end() {
    let limits = vec![
        limit(Signal::Imbalance, 4.0, Mode::Enforce),
        limit(Signal::Depth, 4.0, Mode::Enforce),
        limit(Signal::LocalDepth, 4.0, Mode::Report),
        limit(Signal::Stuck, 1.0, Mode::Off),
    ];
    let monitored = monitored(limits, |n| tasks(n, [6, 2]));
    let lab = &monitored.bench.lab;
    lab.step("a", Span::Time(ms(60))).unwrap();
    let said = monitored.after(5);
    assert_eq!(said[..2], ["pass monitor: imbalance", "fail monitor: depth"], "{said:?}");
    assert!(said[2].starts_with("note monitor: local_depth: 5 tasks at "), "{said:?}");
    assert_eq!((said.len(), outcome(&monitored.bench)), (3, Outcome::Fail));
    let report = monitored.report();
    assert_eq!((report.imbalance, report.depth), (Some(3.0), Some(("local:0".into(), 5))));
    assert_eq!((report.doubted, report.failed, report.doubt), (0, 0, None));
    // Each has its time and phase.
    let readings = lab.readings().unwrap();
    assert_eq!(readings.len() as u64, report.readings);
    assert!(readings.iter().any(|meta| meta.phase.as_deref() == Some("a")));
    assert!(readings.windows(2).all(|pair| pair[0].elapsed() < pair[1].elapsed()));
    assert_eq!(readings[3].tag, "reading_0003");
}

#[test]
fn what_cannot_be_read_at_all_is_inconclusive_and_says_why() {
    let none = |_| Err(CallError::Invalid("the types have no 'struct rq'".into()));
    let monitored = monitored(vec![limit(Signal::Imbalance, 4.0, Mode::Enforce)], none);
    assert_eq!(monitored.after(2), ["inconclusive monitor: imbalance"]);
    assert_eq!(outcome(&monitored.bench), Outcome::Inconclusive);
    let report = monitored.report();
    assert_eq!(
        (report.readings, report.failure.as_deref()),
        (0, Some("the types have no 'struct rq'"))
    );
    let Record::Check(check) = monitored.records.lock().unwrap()[0].clone() else { panic!() };
    assert_eq!(check.found.as_deref(), Some("no value: the types have no 'struct rq'"));
}

#[test]
fn what_runs_back_is_not_believed_and_counted() {
    // Every other clock is an earlier one than that before it.
    let read = |n: u64| {
        let mut reading = observation(10 * n, &[1, 1]).reading;
        reading.cpus[1].clock = 1_000_000_000 + n - 2 * (n % 2);
        Ok(reading)
    };
    let monitored = monitored(vec![limit(Signal::Imbalance, 4.0, Mode::Enforce)], read);
    assert_eq!(monitored.after(6), ["pass monitor: imbalance"]);
    let report = monitored.report();
    assert!(report.doubted * 2 >= report.readings - 1, "{report:?}");
    assert!(report.doubt.unwrap().starts_with("CPU 1: its clock ran back from "));
    assert!(
        monitored.bench.lab.readings().unwrap()[1].monitor.as_ref().unwrap().imbalance().is_err()
    );
}

#[test]
fn a_machine_that_stands_is_not_read_and_one_that_dies_ends_it() {
    let monitored = monitored(Vec::new(), |n| tasks(n, [1, 1]));
    let Bench { lab, fake, .. } = &monitored.bench;
    wait_for("a reading", || lab.monitored().readings > 0);
    lab.pause().unwrap();
    // One may have been on its way.
    std::thread::sleep(ms(30));
    let before = fake.readings.load(Ordering::Relaxed);
    std::thread::sleep(ms(100));
    assert_eq!(fake.readings.load(Ordering::Relaxed), before);
    lab.resume().unwrap();
    wait_for("more readings", || fake.readings.load(Ordering::Relaxed) > before + 2);
    *fake.reads.lock().unwrap() = Some(Box::new(|_| Err(CallError::Gone("it ended".into()))));
    fake.dies(ExitKind::PoweredOff);
    let report = || lab.monitored();
    std::thread::sleep(ms(50));
    let last = fake.readings.load(Ordering::Relaxed);
    std::thread::sleep(ms(50));
    assert_eq!((fake.readings.load(Ordering::Relaxed), report().failed), (last, 0));
}

#[test]
fn snapshots_and_samples_have_what_was_seen_last() {
    let mut monitored = monitored(Vec::new(), |n| tasks(n, [n as u32, 1]));
    let lab = &mut monitored.bench.lab;
    wait_for("a reading", || lab.monitored().readings > 2);
    lab.start_sampling(&SampleOptions::new(SampleTimes::Every(ms(20)))).unwrap();
    let taken = lab.freeze("a", &CaptureRequest::default()).unwrap();
    let seen = taken.meta().monitor.as_ref().unwrap();
    assert!(seen.elapsed_us / 1000 <= taken.elapsed_ms(), "{seen:?}");
    assert!(seen.reading.cpus[0].nr_running >= 2, "{seen:?}");
    wait_for("a sample", || lab.report().fired > 0);
    let sample = lab.sampler.end().map(|_| lab.sample(0).unwrap().unwrap()).unwrap();
    assert!(sample.meta().monitor.as_ref().unwrap().reading.cpus[0].nr_running >= 2);
}
