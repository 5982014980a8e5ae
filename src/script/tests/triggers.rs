//! `t.pause`, `t.every` and `t.freeze_when` against a machine whose counters grow with its time.

use super::*;

fn bench() -> Bench {
    Bench::with(FakeLab::new().with_fifo().with_kernel())
}

/// What a body that ends in an error says, in one line.
fn says(body: &str) -> String {
    bench().body(body).one()
}

#[test]
fn a_machine_is_paused_and_goes_on() {
    let ran = bench().body(
        "expect(t.paused).eq(false); t.pause(); t.pause(); expect(t.paused).eq(true);\n\
         t.resume(); t.resume(); expect(t.paused).eq(false);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
}

#[test]
fn a_closure_is_called_at_every_boundary() {
    let bench = bench();
    let ran = bench.body(
        "let seen = [];\n\
         let went = t.every(\"500ms\", |t, i| { t.freeze(`f${i}`); });\n\
         for s in t.snapshots() { seen.push(s.elapsed_ms); }\n\
         expect(seen).eq([500, 1000, 1500, 2000, 2500, 3000, 3500, 4000]);\n\
         expect(went).eq(#{ fired: 8, missed: [] });\n\
         expect(t.every(\"500ms\", |t, i| fail(\"there is no time left\")).fired).eq(0);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
    // It takes what goes on meanwhile into account, and the captured machine is no race.
    let ran = bench_with(
        "t.every(\"100ms\", #{ hold: \"50%\" }, |t2, i| { t.hold(\"30ms\"); print(t2.elapsed_ms); i < 3 });",
    );
    assert_eq!(ran.printed(), ["130", "230", "330", "430"], "false ends it: {ran:#?}");
    let ran = bench_with(
        "let went = t.every(\"10%\", #{ times: 2 }, |t, i| print(i)); print(went.fired); print(t.elapsed_ms);",
    );
    assert_eq!(ran.printed(), ["0", "1", "2", "800"]);
}

fn bench_with(body: &str) -> Ran {
    bench().body(body)
}

#[test]
fn boundaries_that_are_missed_are_told() {
    let ran = bench_with(
        "let went = t.every(\"100ms\", #{ hold: \"1s\" }, |t, i| {\n\
         print(i);\nif i == 1 { t.hold(\"350ms\"); }\n});\nexpect(went.missed).eq([2, 3]);\nexpect(went.fired).eq(8);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
    assert_eq!(ran.printed(), ["0", "1", "4", "5", "6", "7", "8", "9"]);
    let notes: Vec<_> = ran.records.iter().filter(|r| matches!(r, Record::Note { .. })).collect();
    assert_eq!(notes.len(), 1);
    let note = format!("{:?}", notes[0]);
    let says = "every(100ms): 2 of 10 boundaries passed while a call for an earlier one took its \
                time, and were missed: 2, 3";
    assert!(note.contains(says), "{note}");
}

#[test]
fn what_every_cannot_do_is_refused() {
    let cases = [
        (
            "t.every(\"10us\", |t, i| 1);",
            "error 2:3 script: every(..): \"10us\" is too short an interval; 1ms is the shortest",
        ),
        (
            "t.every(\"0%\", |t, i| 1);",
            "error 2:3 script: every(..): \"0%\" is too short an interval; 1ms is the shortest",
        ),
        (
            "t.every(\"1s\", #{ time: 3 }, |t, i| 1);",
            "error 2:3 script: \"time\" is no option of every(..); did you mean \"times\"? Options \
             are: hold, times",
        ),
        (
            "t.every(\"1s\", #{ times: 0 }, |t, i| 1);",
            "error 2:3 script: the option \"times\" of every(..): expected a whole number from 1 \
             to 4294967295, found 0 (int)",
        ),
    ];
    for (body, want) in cases {
        assert_eq!(says(body), want, "{body}");
    }
}

#[test]
fn a_freeze_comes_when_the_closure_is_true() {
    let bench = bench();
    // Each CPU counts a millisecond as one: 2 * (10 + t) + 1.
    let ran = bench.body(
        "let s = t.freeze_when(|s| s.global(\"nr_enqueued\") >= 100, #{ every: \"10ms\" });\n\
         expect(s.tag).eq(\"freeze_when\"); expect(s.elapsed_ms).eq(40);\n\
         expect(t.snapshots().len).eq(1);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
    // Everything is read once, then what was looked at.
    let looks: Vec<String> =
        bench.asked().into_iter().filter(|asked| !asked.starts_with("hold")).collect();
    let map = &looks[1]["look at Some([\"fifo.bss#".len()..];
    let narrow = format!("look at Some([\"fifo.bss#{map}");
    assert!(narrow.ends_with("\"])"), "{narrow}");
    let mut want = vec!["look at None and sched".to_owned()];
    want.extend(std::iter::repeat_n(narrow, 4));
    want.extend(["freeze freeze_when None unkept".to_owned(), "keep freeze_when".to_owned()]);
    assert_eq!(looks, want);
}

#[test]
fn what_the_closure_looks_at_later_is_read_at_once() {
    let bench = bench();
    let ran = bench.body(
        "t.start(#{ work: \"spin\", count: 2 });\n\
         let s = t.freeze_when(|s| s.global(\"nr_enqueued\") >= 100\n\
         && s.map(\"task_ctx\").len == 2 && s.cpus().len == 2, #{ tag: \"x\", maps: [\"fifo.bss\"] });\n\
         expect(s.tag).eq(\"x\");",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
    let asked = bench.asked();
    let looks: Vec<&String> = asked.iter().filter(|asked| asked.starts_with("look")).collect();
    assert_eq!(looks[0], "look at Some([\"fifo.bss\"]) and sched");
    let last = looks.last().unwrap();
    assert!(last.contains("fifo.bss#") && last.contains("task_ctx#"), "{looks:#?}");
    assert!(last.ends_with(" and sched") && !looks[1].ends_with(" and sched"), "{looks:#?}");
    assert!(asked.contains(&"freeze x Some([\"fifo.bss\"]) unkept".to_owned()), "{asked:#?}");
}

#[test]
fn what_is_no_longer_true_when_it_stands_is_dropped() {
    let ran = bench_with(
        "let asked = [0];\nlet s = t.freeze_when(|s| s.tag == \"live\" || s.elapsed_ms >= 30);\n\
         expect(s.elapsed_ms).eq(30); expect(t.snapshots().len).eq(1);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
}

#[test]
fn waiting_in_vain_says_what_was_found_instead() {
    let starts = "error 2:3 script: freeze_when(..): what was waited for did not become true \
                  within 0.05 s of workload time. It was asked 6 times (a reading took ";
    let cases = [
        ("false", "was false at last"),
        (
            "s.map(\"task_ctxx\").len > 0",
            "threw at last MapNotFound: no captured map is called \"task_ctxx\"",
        ),
        ("s.map(\"task_ctx\").get(1).weight > 0", "threw at last NoMatch: "),
        (
            "s.tag == \"live\"",
            "was false at last; 6 times it was true of the running machine and no longer when that \
             stood",
        ),
    ];
    for (cond, says) in cases {
        let told = self::says(&format!("t.freeze_when(|s| {cond}, #{{ timeout: \"50ms\" }});"));
        assert!(told.starts_with(starts), "{told}");
        let rest = told[starts.len()..].split_once(" ms), and ").expect("how long it took").1;
        assert!(rest.starts_with(says), "{cond}: {told}");
    }
    // It can be caught.
    let ran = bench_with(
        "try { t.freeze_when(|s| false, #{ timeout: \"20ms\", every: \"5ms\" }); }\n\
         catch (e) { expect(e.kind).eq(\"Timeout\"); }",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
}

#[test]
fn mistakes_of_a_closure_are_thrown_at_once() {
    let cases = [
        ("s.globall(\"nr_enqueued\") > 1", "globall"),
        ("s.global(\"nr_enqueued\")", "gave"),
        ("s.map(\"task_ctx\").at(0).wait > 0", "\"wait\""),
        ("s.map(\"cpu_stats\").at(0).nr_running > 0", "cpu("),
        ("s.global(\"nr_enqueued\") > \"many\"", "nr_enqueued"),
    ];
    for (cond, part) in cases {
        let bench = bench();
        let ran = bench.body(&format!(
            "t.start(#{{ work: \"spin\", count: 1 }});\nt.freeze_when(|s| {cond});"
        ));
        let told = ran.one();
        assert!(told.contains(part), "{cond}: {told}");
        assert!(!told.contains("did not become true"), "{cond}: {told}");
        let holds = bench.asked().iter().filter(|asked| asked.starts_with("hold")).count();
        assert_eq!(holds, 0, "{cond}: {:?}", bench.asked());
    }
    let told = says("t.freeze_when(|s| true, #{ evry: \"1ms\" });");
    assert!(told.contains("\"evry\" is no option of freeze_when(..); did you mean \"every\"?"));
    let told = says("t.freeze_when(|s| true, #{ tag: \" \" });");
    assert!(told.ends_with("\" \" is no tag: one line that is not empty"), "{told}");
}
