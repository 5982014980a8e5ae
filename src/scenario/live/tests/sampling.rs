//! Samples that are taken by themselves.

use super::*;
use crate::scenario::lab::SampleOps;
use crate::scenario::samples::{SampleOptions, SampleReport, SampleTimes};

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a cell said.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Told {
    pub(super) fn events(&self) -> Vec<RunEvent> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| RunEvent::from_line(line).unwrap()).collect()
    }
}

/// A laboratory of this duration whose freezes take no time, and samples begun.
fn sampled(options: &SampleOptions, duration: Duration, set: impl FnOnce(&Fake)) -> (Bench, Told) {
    let mut bench = bench(ExpectExit::None);
    let told = Told::default();
    bench.fake.stands.store(0, Ordering::Relaxed);
    set(&bench.fake);
    bench.lab.parts.facts.duration = duration;
    bench.lab.parts.events = Events::new(3, told.clone());
    bench.lab.start_sampling(options).unwrap();
    (bench, told)
}

pub(super) fn all(lab: &Lab) -> Vec<Arc<Snapshot>> {
    (0..).map_while(|i| lab.sample(i).unwrap()).collect()
}

pub(super) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(ms(2));
    }
}

#[test]
fn samples_are_taken_at_their_boundaries_whatever_the_script_does() {
    let (bench, told) = sampled(&SampleOptions::new(SampleTimes::Count(3)), ms(2000), |_| {});
    let lab = &bench.lab;
    lab.step("first", Span::Time(ms(700))).unwrap();
    // The script computes.
    wait_for("the samples", || lab.report().fired == 3);
    let samples = all(lab);
    let of = |s: &Arc<Snapshot>| (s.tag().to_owned(), s.boundary_offset_ms().unwrap());
    let want = [("periodic_000", 600), ("periodic_001", 1000), ("periodic_002", 1400)];
    assert_eq!(samples.iter().map(of).collect::<Vec<_>>(), want.map(|(t, at)| (t.to_owned(), at)));
    for (sample, (_, at)) in samples.iter().zip(want) {
        assert!(
            (at..at + 400).contains(&sample.elapsed_ms()),
            "{sample:?} {}",
            sample.elapsed_ms()
        );
        assert_eq!(sample.phase(), Some("first"));
    }
    assert_eq!(lab.snapshots().len(), 0, "they are no snapshots by name");
    lab.finish();
    lab.finish();
    let events = told.events();
    let sampled: Vec<&SampleReport> = events
        .iter()
        .filter_map(|e| if let RunEvent::Sampled { report, .. } = e { Some(report) } else { None })
        .collect();
    let [report] = sampled[..] else { panic!("it is told once: {events:?}") };
    let counted =
        (report.planned, report.fired, report.missed, report.placeholders, report.not_fired);
    assert_eq!(counted, (Some(3), 3, 0, 0, 0));
    let frozen = events.iter().filter(|e| matches!(e, RunEvent::Frozen { .. })).count();
    assert_eq!(frozen, 3);
}

#[test]
fn boundaries_that_are_not_reached_are_told() {
    let (bench, _) = sampled(&SampleOptions::new(SampleTimes::Count(4)), ms(100_000), |_| {});
    let started = Instant::now();
    bench.lab.finish();
    assert!(started.elapsed() < Duration::from_secs(10), "nobody waits for them");
    let report = bench.lab.report();
    assert_eq!((report.fired, report.missed, report.not_fired), (0, 0, 4));
    assert!(bench.lab.sample(0).unwrap().is_none());
}

#[test]
fn a_machine_that_stands_reaches_no_boundary() {
    let (bench, _) = sampled(&SampleOptions::new(SampleTimes::Every(ms(40))), ms(100), |_| {});
    bench.lab.pause().unwrap();
    let standing = bench.lab.elapsed_ms();
    // One may have been on its way.
    std::thread::sleep(ms(50));
    let before = bench.lab.report().fired;
    std::thread::sleep(ms(300));
    assert_eq!(bench.lab.report().fired, before);
    bench.lab.resume().unwrap();
    wait_for("more samples", || bench.lab.report().fired > before + 3);
    bench.lab.finish();
    let samples = all(&bench.lab);
    let after = samples.iter().find(|s| s.boundary_offset_ms() > Some(standing)).unwrap();
    assert!(after.elapsed_ms() < standing + 200, "pauses do not count: {}", after.elapsed_ms());
    assert!(samples.len() as u64 > before + 3, "they go on behind the duration");
}

#[test]
fn boundaries_whose_next_one_has_come_are_missed() {
    let (bench, _) = sampled(&SampleOptions::new(SampleTimes::Every(ms(20))), ms(100), |fake| {
        fake.takes.store(110, Ordering::Relaxed);
    });
    wait_for("some samples", || bench.lab.report().fired >= 3);
    bench.lab.finish();
    let report = bench.lab.report();
    let samples = all(&bench.lab);
    assert_eq!((samples[0].tag(), samples.len() as u64), ("periodic_000", report.fired));
    let numbers: Vec<u64> =
        samples.iter().map(|s| s.boundary_offset_ms().unwrap() / 20 - 1).collect();
    for (sample, number) in samples.iter().zip(&numbers) {
        assert_eq!(sample.tag(), format!("periodic_{number:03}"));
    }
    let last = numbers.last().unwrap();
    assert!(report.missed >= last + 1 - report.fired, "{report:?} {numbers:?}");
    assert!(numbers[1] >= 4, "the second comes after the first took its time: {numbers:?}");
    assert_eq!(report.first_missed[0], 1, "{report:?}");
}

#[test]
fn what_cannot_be_frozen_is_a_placeholder() {
    let (bench, _) = sampled(&SampleOptions::new(SampleTimes::Count(3)), ms(300), |fake| {
        fake.late.store(true, Ordering::Relaxed);
    });
    wait_for("the end", || bench.lab.report().fired + bench.lab.report().missed == 3);
    let report = bench.lab.report();
    assert_eq!(report.placeholders, report.fired);
    let sample = bench.lab.sample(0).unwrap().unwrap();
    assert_eq!(sample.placeholder_reason(), Some("CPU 1 did not come"));
    // And so is what cannot be copied, which is said once.
    let notes = Arc::new(Mutex::new(Vec::new()));
    let mut bench = self::bench(ExpectExit::None);
    let seen = notes.clone();
    bench.lab.parts.recorder =
        Recorder::with_sink(move |record| seen.lock().unwrap().push(format!("{record:?}")));
    bench.lab.parts.facts.duration = ms(300);
    let maps = Some(vec!["fifo.bsss".to_owned()]);
    let options = SampleOptions { maps, ..SampleOptions::new(SampleTimes::Count(3)) };
    bench.lab.start_sampling(&options).unwrap();
    wait_for("the end", || bench.lab.report().fired + bench.lab.report().missed == 3);
    let report = bench.lab.report();
    assert!(report.fired > 0 && report.placeholders == report.fired, "{report:?}");
    let notes = notes.lock().unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("has no contents: "), "{notes:?}");
    assert!(notes[0].contains("fifo.bsss"), "{notes:?}");
}

#[test]
fn a_machine_that_dies_ends_the_samples() {
    let (bench, _) = sampled(&SampleOptions::new(SampleTimes::Count(3)), ms(300), |fake| {
        fake.dies(ExitKind::PoweredOff);
    });
    wait_for("the end", || bench.lab.elapsed_ms() > 300);
    bench.lab.finish();
    let report = bench.lab.report();
    assert_eq!((report.fired, report.missed, report.not_fired), (0, 0, 3));
}

#[test]
fn samples_beyond_the_budget_are_in_a_file_and_read_the_same() {
    let options = |memory| SampleOptions { memory, ..SampleOptions::new(SampleTimes::Count(5)) };
    for (memory, spilled) in [(1000, 0), (250, 3), (0, 5)] {
        let (bench, _) = sampled(&options(memory), ms(600), |fake| {
            fake.snapshot_bytes.store(100, Ordering::Relaxed);
        });
        wait_for("the end", || bench.lab.report().fired + bench.lab.report().missed == 5);
        let report = bench.lab.report();
        let kept = 5 - spilled;
        assert_eq!(report.spilled, report.fired.saturating_sub(kept), "{memory}: {report:?}");
        for sample in all(&bench.lab) {
            assert_eq!((sample.bytes(), sample.trigger().to_string()), (100, "periodic".into()));
            assert!(sample.boundary_offset_ms().is_some() && sample.maps().unwrap().is_empty());
        }
    }
}

#[test]
fn the_last_snapshot_of_what_failed_is_sent_as_a_tree() {
    for (failed, trees) in [(true, 1), (false, 0)] {
        let mut bench = bench(ExpectExit::None);
        let told = Told::default();
        bench.lab.parts.events = Events::new(3, told.clone());
        bench.lab.freeze("first", &CaptureRequest::default()).unwrap();
        bench.lab.freeze("last", &CaptureRequest::default()).unwrap();
        let check = if failed { Check::fail("x", "no") } else { Check::pass("x") };
        bench.recorder.record(check);
        bench.lab.finish();
        let sent = told.events().into_iter().filter_map(|event| match event {
            RunEvent::Tree { tag, text, .. } => Some((tag, text)),
            _ => None,
        });
        let sent: Vec<(String, String)> = sent.collect();
        assert_eq!(sent.len(), trees);
        for (tag, text) in sent {
            assert!(tag == "last" && text.starts_with("snapshot \"last\""), "{tag}: {text}");
        }
    }
}
