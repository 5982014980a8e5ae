//! Reports of workers, and the checks of them, on a machine whose reports are made up: a unit each
//! millisecond, half of a CPU, a longest gap of 12 ms that ended after 700.

use super::*;

/// Runs the body of a scenario with two workers, 100 and 101, and `g`, a group with a third one.
fn run(body: &str) -> Ran {
    let text = format!(
        "import \"std/checks\" as checks;\nscenario(\"x\", |t| {{ let pids = t.start(#{{ work: \
         \"sleep\", count: 2 }}); let g = t.new_cgroup(\"g\"); g.start(#{{ work: \"sleep\" }}); \
         t.hold(\"1s\");\n{body}\n}});"
    );
    let bench = Bench::with(FakeLab::new().with_fifo());
    bench.run_as(&text, 0, "x")
}

#[test]
fn reports_say_what_workers_did() {
    let cases = [
        ("t.reports().map(|r| r.pid)", "[100, 101, 102]"),
        ("t.reports([101, 100]).map(|r| r.pid)", "[101, 100]"),
        ("g.reports().map(|r| r.pid)", "[102]"),
        ("t.reports([]).len", "0"),
        ("`${r} ${r.work} ${r.ended}`", "\"sleep 100 sleep false\""),
        ("[r.units, r.working_ms, r.units_per_s]", "[1000, 1000.0, 1000.0]"),
        ("[r.run_ms, r.run_delay_ms, r.off_cpu_ms, r.cpu_share]", "[500.0, 250.0, 500.0, 0.5]"),
        ("[r.gap_ms, r.gap_at_ms, r.waiting_ms]", "[12.0, 700.0, 0.0]"),
        ("[r.cpus, r.units_on(1), r.units_on(7), r.units_on(-1)]", "[[0, 1], 500, 0, 0]"),
        ("[r.migrations, r.wakes]", "[3, 1001]"),
        ("[r.wake_us(0.5), r.wake_us(1.0)]", "[40.96, 9437.184]"),
        ("t.reports().wake_us(0.5)", "40.96"),
        ("[].wake_us(0.5)", "()"),
        ("milliseconds(\"1.5s\")", "1500.0"),
    ];
    for (expression, want) in cases {
        let ran = run(&format!("let r = t.reports(pids)[0];\nexpect({expression}).eq({want});"));
        assert_eq!(ran.outcome, Outcome::Pass, "{expression}: {}", ran.one());
    }
}

#[test]
fn what_happened_between_two_reports_is_their_difference() {
    let ran = run("let before = t.reports(pids); t.hold(\"500ms\");
        let after = t.reports(); let grown = after.since(before);
        expect(grown.map(|r| r.units)).eq([500, 500, 1500]);
        expect(after[0].since(before[0]).units).eq(500);
        expect([grown[0].working_ms, grown[0].run_ms]).eq([500.0, 250.0]);
        expect(grown[0].gap_ms).eq(0.507);
        expect(grown[0].gap_at_ms).eq(());");
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [
        ("t.reports([7])", "no worker with the pid 7 was started"),
        (
            "t.reports([\"7\"])",
            "t.reports(pids): expected pids as start(..) gave them, found \"7\"",
        ),
        ("t.reports([-1])", "expected pids as start(..) gave them, found -1"),
        ("[1].since([])", "since(..) of an array: expected reports of workers, found 1"),
        ("[1].wake_us(0.5)", "wake_us(..) of an array: expected reports of workers, found 1"),
        (
            "let a = t.reports(); t.hold(\"1s\"); a[0].since(t.reports()[0])",
            "since(..) of sleep 100: that report is the later one: write `later.since(earlier)`",
        ),
        (
            "let a = t.reports(); a[0].since(a[1])",
            "since(..) of sleep 100: that is a report of sleep 101, another worker",
        ),
        ("t.reports()[0] == t.reports()[0]", "a WorkerReport cannot be compared"),
        ("milliseconds(\"1\")", "\"1\" is no duration: 1 has no unit"),
    ];
    for (body, says) in cases {
        let ran = run(&format!("{body};"));
        assert_eq!(ran.outcome, Outcome::Error, "{body}: {ran:#?}");
        assert!(ran.one().contains(says), "{body}: {}", ran.one());
    }
}

#[test]
fn checks_name_the_worker_that_is_furthest_off() {
    let cases = [
        (
            "progress(t.reports(), 1001)",
            "fail 3:9 units of work of sleep 100: expected at least 1001, found 1000",
        ),
        (
            "isolation(t.reports(), [1, 2])",
            "fail 3:9 CPUs of sleep 100: expected only elements of [1, 2], found also [0]",
        ),
        (
            "locality(t.reports(), [0], 0.75)",
            "fail 3:9 part of the work on the CPUs: expected at least 0.75, found 0.5",
        ),
        (
            "gap(t.reports(), \"10ms\")",
            "fail 3:9 longest gap of sleep 100 up to 700.0 ms (ms): expected at most 10.0, found 12.0",
        ),
        (
            "spread(t.reports(), -0.1)",
            "fail 3:9 shares of a CPU of sleep 100 and sleep 100: how far they are apart: expected \
             at most -0.1, found 0.0",
        ),
        (
            "throughput(t.reports(), 3000.5)",
            "fail 3:9 units of work by the second: expected at least 3000.5, found 3000.0",
        ),
        (
            "cv(t.reports(), -1.0)",
            "fail 3:9 coefficient of variation of the workers' rates: expected at most -1.0, found \
             0.0",
        ),
        (
            "migrations(t.reports(), 2)",
            "fail 3:9 migrations of sleep 100: expected at most 2, found 3",
        ),
        (
            "wake_latency(t.reports(), 1.0, \"9ms\")",
            "fail 3:9 100.0 % of wake-ups led to running in (us): expected at most 9000.0, found \
             9437.184",
        ),
    ];
    for (call, want) in cases {
        assert_eq!(run(&format!("checks::{call};")).one(), want);
        let none = call.replace("t.reports()", "[]");
        let what = call.split('(').next().unwrap();
        let want =
            format!("inconclusive 3:9 inconclusive: {what}: there are no reports of workers");
        assert_eq!(run(&format!("checks::{none};")).one(), want);
    }
}
