//! Statistics that a scheduler is asked for, and why there are none.

use std::time::Duration;

use serde_json::{Value, json};

use super::sampling::{all, ms, wait_for};
use super::*;
use crate::scenario::lab::SampleOps;
use crate::scenario::samples::{SampleOptions, SampleTimes};
use crate::scheduler::AttachPlan;
use crate::snapshot::MissingStatsReason as R;
use crate::wire::MAX_LINE;

const SOCKET: &str = "/var/run/scx/root/stats";
const TOP_LINE: &str = r#"{"errno":0,"args":{"resp":{"nr":7}}}"#;

fn line(text: &str) -> Result<Answer, CallError> {
    Ok(Answer::Line { text: Some(text.to_owned()), size: text.len() as u64 })
}

fn refused(kind: RefusalKind, message: &str) -> Result<Answer, CallError> {
    let (message, log) = (message.to_owned(), String::new());
    Err(CallError::Refused(Refusal { kind, message, log }))
}

/// A laboratory whose scheduler is a program.
fn serving() -> Bench {
    let bench = bench(ExpectExit::None);
    bench.lab.stats.changed(Some(SOCKET.into()));
    bench
}

fn top(lab: &Lab) -> Result<Value, R> {
    lab.stats("top", &BTreeMap::new()).unwrap()
}

fn no_scheduler(reason: &str) -> R {
    R::NoScheduler { reason: reason.to_owned() }
}

#[test]
fn the_agent_is_given_the_line_and_the_answer_is_taken_apart() {
    let Bench { lab, fake, .. } = serving();
    fake.answer(line(TOP_LINE));
    assert_eq!(top(&lab), Ok(json!({ "nr": 7 })));
    fake.answer(line(r#"{"errno":0,"args":{"resp":{"Metrics":{}}}}"#));
    assert_eq!(lab.stats_meta().unwrap(), Ok(json!({ "Metrics": {} })));
    let asked = fake.asked();
    let want = [r#"{"args":{"target":"top"},"req":"stats"}"#, r#"{"args":{},"req":"stats_meta"}"#];
    assert_eq!(asked.len(), 2);
    for (op, want) in asked.into_iter().zip(want) {
        let Op::AskSocket { path, asker, line, timeout_ms } = op else { panic!("{op:?}") };
        assert_eq!((path.as_str(), asker.as_str()), (SOCKET, "script"));
        assert_eq!((line.as_str(), timeout_ms), (want, 10_000));
    }
}

#[test]
fn each_reason_has_its_condition() {
    let Bench { lab, fake, .. } = serving();
    let cases = [
        (
            line(r#"{"errno":22,"args":{"resp":"no"}}"#),
            R::SchedulerError { errno: 22, args: json!({ "resp": "no" }) },
        ),
        (line(r#"{"errno":0,"args":{"x":1}}"#), R::MissingResp { args: json!({ "x": 1 }) }),
        (
            Ok(Answer::Line { text: None, size: MAX_LINE as u64 + 1 }),
            R::ResponseTooLarge { size: 262_145, max: 262_144 },
        ),
        (refused(RefusalKind::NotFound, "no socket"), no_scheduler("no socket")),
        (refused(RefusalKind::Timeout, "2 bytes came"), no_scheduler("2 bytes came")),
        (
            Err(CallError::Timeout("AskSocket".into())),
            no_scheduler(&format!("{SOCKET} did not answer within 10000 ms")),
        ),
        (
            line("hello"),
            no_scheduler(
                "what answered there speaks another protocol: expected value at line 1 column 1: \
                 \"hello\"",
            ),
        ),
        (
            Ok(Answer::Done),
            no_scheduler("the guest's agent gave an answer that does not fit: Done"),
        ),
        (Err(CallError::Gone("the machine is gone".into())), no_scheduler("the machine is gone")),
    ];
    for (answer, want) in cases {
        fake.answer(answer);
        assert_eq!(top(&lab), Err(want));
    }
    assert_eq!(fake.asked().len(), 9);
    // The rest are known before anybody is asked.
    let long = lab.stats(&"x".repeat(MAX_LINE), &BTreeMap::new()).unwrap().unwrap_err();
    assert!(matches!(long, R::RequestTooLarge { size: 262_180.., max: 262_144 }), "{long:?}");
    lab.pause().unwrap();
    assert_eq!(top(&lab), Err(R::DuringFreeze));
    assert_eq!(lab.stats_meta().unwrap(), Err(R::DuringFreeze));
    lab.resume().unwrap();
    lab.stats.changed(None);
    assert_eq!(top(&lab), Err(R::NoSchedulerBinary));
    assert_eq!(fake.asked().len(), 0);
}

#[test]
fn detaching_leaves_nobody_to_ask() {
    let Bench { lab, fake, .. } = serving();
    lab.scheduler_detach().unwrap();
    assert_eq!(top(&lab), Err(R::NoSchedulerBinary));
    lab.scheduler_restart().unwrap_err();
    // One that is given as a BPF object has no program, either.
    assert!(!fake.asked().iter().any(|op| matches!(op, Op::AskSocket { .. })));
    assert_eq!(bench(ExpectExit::None).lab.stats.serves(), Ok(false));
}

#[test]
fn a_program_is_asked_where_it_listens() {
    let Bench { lab, fake, .. } = bench(ExpectExit::None);
    let object = lab.state().scheduler.clone();
    assert_eq!(object.serves(), None);
    let program = AttachPlan::Program { argv: vec!["/bin/x".into()], env: Vec::new() };
    let usual = Current { plan: Some(program), ..object };
    assert_eq!(usual.serves().as_deref(), Some(SOCKET));
    let own = Current { socket: Some("/run/own".into()), ..usual };
    // Restarted, it listens there again.
    lab.state().scheduler = own;
    lab.scheduler_restart().unwrap();
    fake.asked();
    fake.answer(line(TOP_LINE));
    assert_eq!(top(&lab), Ok(json!({ "nr": 7 })));
    let asked = fake.asked();
    let [Op::AskSocket { path, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(path, "/run/own");
}

#[test]
fn a_machine_that_stood_meanwhile_is_why_there_was_no_answer() {
    for late in [Err(CallError::Timeout("late".into())), refused(RefusalKind::Timeout, "late")] {
        let Bench { lab, fake, .. } = serving();
        fake.answer(late.clone());
        fake.during_a_call(|fake| {
            fake.still.begin(Instant::now() - ms(50));
            fake.still.end(Instant::now(), None);
        });
        assert_eq!(top(&lab), Err(R::DuringFreeze), "{late:?}");
        // An answer is an answer.
        fake.answer(line(TOP_LINE));
        fake.during_a_call(|fake| fake.still.begin(Instant::now()));
        assert_eq!(top(&lab), Ok(json!({ "nr": 7 })));
    }
}

#[test]
fn a_request_is_taken_back_when_the_run_ends() {
    let Bench { lab, fake, cancel, .. } = serving();
    fake.silent.store(true, Ordering::Relaxed);
    let stopper = std::thread::spawn(move || {
        wait_for("the request", || !fake.asked.lock().unwrap().is_empty());
        cancel.raise(crate::scenario::cell::Why::Told);
    });
    assert_eq!(top(&lab), Err(R::Cancelled));
    stopper.join().unwrap();
}

#[test]
fn a_panic_with_the_clients_lock_is_told() {
    let Bench { lab, fake, .. } = serving();
    let stats = lab.stats.clone();
    let panicked = std::thread::spawn(move || {
        let _held = stats.socket.lock().unwrap();
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicked.join().is_err());
    assert_eq!(top(&lab), Err(R::MutexPoisoned));
    assert_eq!(fake.asked().len(), 0);
}

/// Samples of a scheduler that is a program, at 600, 1000 and 1400 ms.
fn sampled(set: impl FnOnce(&Fake)) -> Bench {
    let mut bench = serving();
    bench.fake.stands.store(0, Ordering::Relaxed);
    set(&bench.fake);
    bench.lab.parts.facts.duration = ms(2000);
    bench.lab.start_sampling(&SampleOptions::new(SampleTimes::Count(3))).unwrap();
    wait_for("the samples", || bench.lab.report().fired == 3);
    bench
}

#[test]
fn each_sample_has_the_answer_or_the_reason() {
    let bench = sampled(|fake| {
        // The first begins what a scheduler counts from.
        fake.answer(line(r#"{"errno":0,"args":{"resp":{"nr":0}}}"#));
        fake.answer(line(TOP_LINE));
        fake.answer(refused(RefusalKind::NotFound, "no socket"));
        fake.answer(line(r#"{"errno":0,"args":{}}"#));
    });
    let missing = |tag: &str, reason| SnapshotError::MissingStats { tag: tag.into(), reason };
    let samples = all(&bench.lab);
    let stats: Vec<_> = samples.iter().map(|s| s.stats().cloned()).collect();
    let want = [
        Ok(json!({ "nr": 7 })),
        Err(missing("periodic_001", no_scheduler("no socket"))),
        Err(missing("periodic_002", R::MissingResp { args: json!({}) })),
    ];
    assert_eq!(stats, want);
    let asks = bench.fake.asked().into_iter().filter_map(|op| match op {
        Op::AskSocket { asker, timeout_ms, .. } => Some((asker, timeout_ms)),
        _ => None,
    });
    let asks: Vec<_> = asks.collect();
    assert_eq!(asks.len(), 4, "one before each sample, and one to begin with: {asks:?}");
    for (asker, timeout_ms) in asks {
        assert!(asker == "samples" && timeout_ms <= 300, "{asker} {timeout_ms}");
    }
}

#[test]
fn a_scheduler_that_does_not_answer_shifts_no_sample() {
    let bench = sampled(|fake| fake.silent.store(true, Ordering::Relaxed));
    for (sample, at) in all(&bench.lab).iter().zip([600, 1000, 1400]) {
        assert_eq!(sample.boundary_offset_ms(), Some(at));
        let error = sample.stats().unwrap_err().to_string();
        assert!(error.contains("/var/run/scx/root/stats did not answer within "), "{error}");
    }
    assert_eq!(bench.lab.report().missed, 0);
}

#[test]
fn nobody_is_asked_where_nobody_can_answer() {
    let mut bench = bench(ExpectExit::None);
    bench.fake.stands.store(0, Ordering::Relaxed);
    bench.lab.parts.facts.duration = Duration::from_secs(2);
    bench.lab.start_sampling(&SampleOptions::new(SampleTimes::Count(1))).unwrap();
    wait_for("the sample", || bench.lab.report().fired == 1);
    let error = all(&bench.lab)[0].stats().unwrap_err();
    let missing = |reason| SnapshotError::MissingStats { tag: "periodic_000".into(), reason };
    assert_eq!(error, missing(R::NoSchedulerBinary));
    assert!(!bench.fake.asked().iter().any(|op| matches!(op, Op::AskSocket { .. })));
}
