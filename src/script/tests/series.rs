//! Series and patterns as scripts use them, on a machine whose counters grow with its time.

use super::golden::shown;
use super::*;

/// The fifo scheduler's machine; a scenario of 4 s with samples each 500 ms.
fn run(body: &str) -> Ran {
    run_with("samples: #{ every: \"500ms\" }", body)
}

fn run_with(options: &str, body: &str) -> Ran {
    let text = format!("scenario(\"x\", #{{ {options} }}, |t| {{\n{body}\n}});");
    let decl = &Bench::new().collect(&text).unwrap_or_else(|e| panic!("{e}"))[0];
    let lab = FakeLab::of(decl).with_fifo().with_kernel();
    Bench::with(lab).run_as(&text, 0, "x")
}

fn passes(body: &str) {
    let ran = run(body);
    assert_eq!(ran.outcome, Outcome::Pass, "{body}: {ran:#?}");
}

fn all(ran: &Ran) -> Vec<String> {
    ran.checks().iter().map(|check| told(check)).collect()
}

#[test]
fn everything_that_was_captured_is_in_the_order_of_time() {
    passes(
        "t.hold(\"1200ms\"); t.freeze(\"by hand\"); t.hold(\"1s\");\n\
         let s = t.series();\n\
         let tags = []; for snap in s { tags.push(snap.tag); }\n\
         expect(tags).eq([\"periodic_000\", \"periodic_001\", \"by hand\", \"periodic_002\", \"periodic_003\"]);\n\
         expect(s.len).eq(5); expect(s[2].tag).eq(\"by hand\"); expect(s.at(4).elapsed_ms).eq(2000);\n\
         expect(s.periodic().len).eq(4);\n\
         expect(s.at(0).boundary_offset_ms).eq(500); expect(s[2].boundary_offset_ms).eq(());\n\
         expect(|| s.at(5)).throws(\"IndexOutOfRange\");\n\
         expect(|| s[-1]).throws(\"IndexOutOfRange\");\n\
         expect(`${s}`).eq(\"SampleSeries(5 samples)\");",
    );
    passes("expect(t.series().len).eq(0); expect(t.series().phases()).eq([]);");
}

#[test]
fn places_are_projected() {
    passes(
        "t.hold(\"2s\");\n\
         let s = t.series();\n\
         expect(s.bpf(\"nr_dispatched\").values()).eq([1021, 2021, 3021, 4021]);\n\
         expect(s.bpf(\"run_hist/6.count\").values()).eq([510, 1010, 1510, 2010]);\n\
         expect(s.map(\"cpu_stats\").at(0).cpu(1).field(\"nr_enqueued\").last).eq(2010);\n\
         expect(s.map(\"cpu_stats\").at(0).cpu_sum(\"nr_enqueued\").values()).eq([1020, 2020, 3020, 4020]);\n\
         expect(s.map(\"cpu_stats\").at(0).cpu_max(\"nr_running\").first).eq(510);\n\
         expect(s.map(\"cpu_stats\").at(0).cpu_min(\"nr_running\").first).eq(510);\n\
         expect(s.map(\"reasons\").get(2).cpu(0).field(\"\").values()).eq([3, 3, 3, 3]);\n\
         let twice = s.bpf(\"twice\", |snap| snap.global(\"nr_running\") * 2);\n\
         expect(twice.label).eq(\"twice\"); expect(twice.delta).eq(6000);\n\
         expect(twice.min).eq(2042); expect(twice.max).eq(8042); expect(twice.mean).eq(5042.0);\n\
         expect(twice.first).eq(2042); expect(twice.len).eq(4);\n\
         expect(twice.named(\"x\").label).eq(\"x\");\n\
         expect(s.counters().map(|f| f.label)).eq([\"nr_enqueued\", \"nr_dispatched\", \
             \"nr_select_local\", \"nr_running\", \"nr_stopping\"]);\n\
         expect(s.cpustat().cpu(0).field(\"user\").errors()).is_empty();\n\
         expect(`${twice}`).eq(\"SeriesField(twice: 4 samples, 2042 to 8042)\");",
    );
}

#[test]
fn labels_say_which_place() {
    let ran = run("let m = t.series().map(\"m\");\n\
         for f in [m.at(0).field(\"a.b\"), m.get(\"k\").field(\"\"), m.get(7).cpu(1).field(\"[2]\"), m.at(0).cpu_sum(\"a\")] { print(f.label); }");
    let want = ["m[0].a.b", "m[\"k\"]", "m[7][2] on CPU 1", "m[0].a summed over CPUs"];
    assert_eq!(ran.printed(), want);
}

#[test]
fn a_bad_sample_is_an_error_in_its_place() {
    passes(
        "t.step(\"a\", \"1s\"); t.step(\"b\", \"1s\");\n\
         let s = t.series();\n\
         let f = s.bpf(\"odd\", |snap| if snap.elapsed_ms == 1000 { throw \"no\" } else { 1 });\n\
         expect(f.values()).eq([1, (), 1, 1]);\n\
         let bad = f.errors()[0];\n\
         expect(bad.tag).eq(\"periodic_001\"); expect(bad.elapsed_ms).eq(1000);\n\
         expect(bad.error.kind).eq(\"ProjectionFailed\"); expect(bad.error.reason).eq(\"no\");\n\
         expect(s.bpf(\"nr_runing\").errors()[0].error.kind).eq(\"VarNotFound\");\n\
         let own = s.bpf(\"own\", |snap| snap.map(\"nothing\").len);\n\
         expect(own.errors()[3].error.kind).eq(\"MapNotFound\");\n\
         let none = s.bpf(\"none\", |snap| [1]);\n\
         expect(none.errors()[0].error.message).contains(\"a single value from the closure\");\n\
         expect(|| none.max).throws(\"NoMatch\");\n\
         expect(|| s.bpf(\"a..b\").values()).ne(1);\n\
         expect(|| s.bpf(\"m/\")).throws(\"EmptyPathComponent\");",
    );
}

#[test]
fn phases_are_compared() {
    passes(
        "t.step(\"slow\", \"1s\"); t.step(\"fast\", \"2s\"); t.step(\"slow\", \"1s\");\n\
         let s = t.series();\n\
         expect(s.phases()).eq([\"slow\", \"fast\", \"slow#2\"]);\n\
         expect(s[0].step_index).eq(1); expect(s[3].step_index).eq(2); expect(s[7].step_index).eq(3);\n\
         let f = s.bpf(\"nr_running\");\n\
         expect(f.phase(\"fast\").len).eq(4); expect(s.phase(\"fast\").len).eq(4);\n\
         expect(f.delta_per_phase()).eq(#{ slow: 1000, fast: 3000, \"slow#2\": 1000 });\n\
         expect(f.first_per_phase().fast).eq(3021); expect(f.last_per_phase().slow).eq(2021);\n\
         f.ratio_across_phases(\"slow\", \"fast\").between(0.3, 0.4);",
    );
    let ran = run(
        "t.step(\"narrow\", \"1s\"); t.step(\"wide\", \"1s\"); let f = t.series().bpf(\"nr_running\");\n\
         f.ratio_across_phases(\"narrow\", \"wide\").gt(1.5);\n\
         t.series().bpf(\"slice_ns\").ratio_across_phases(\"narrow\", \"wide\").gt(1);\n\
         f.ratio_across_phases(\"narrow\", \"wide\");",
    );
    assert_eq!(
        all(&ran),
        [
            "fail 3:3 nr_running: change in narrow over change in wide: expected more than 1.5, found 1.0",
            "inconclusive 4:28 slice_ns: change in narrow over change in wide: expected more than 1, \
             found no value: slice_ns did not change in phase \"wide\": there is no ratio",
            "fail 5:3 nr_running: change in narrow over change in wide: expect(..) without a matcher \
             judges nothing; say what is expected, as in expect(x).eq(1)",
        ]
    );
}

#[test]
fn patterns_are_recorded_at_the_authors_line() {
    let ran = run("t.hold(\"2s\"); let s = t.series(); let f = s.bpf(\"nr_running\");\n\
         f.nondecreasing().strictly_increasing();\n\
         f.rate_within(\"1/ms\", 2100);\n\
         f.rate_within(\"1/s\", \"2/s\");\n\
         f.steady_within(\"1s\", 0.5);\n\
         f.converges_to(3021, 1000, \"2s\");\n\
         f.always_true();\n\
         f.each().at_least(1021); f.each().at_most(4020); f.each().between(1, 9000);\n\
         f.ratio_within(s.bpf(\"nr_enqueued\"), 1, 1.0);\n\
         s.bpf(\"odd\", |snap| if snap.elapsed_ms == 1000 { throw \"no\" } else { 1 }).nondecreasing();\n\
         s.bpf(\"none\", |snap| throw \"no\").nondecreasing();");
    assert_eq!(
        all(&ran),
        [
            "pass 3:3 nr_running: nondecreasing(): expected each sample at least the one before it, \
             found 4 samples from 1021 to 4021",
            "pass 3:19 nr_running: strictly_increasing(): expected each sample more than the one before \
             it, found 4 samples from 1021 to 4021",
            "pass 4:3 nr_running: rate_within(..): expected a rate between 1000/s and 2100/s from sample \
             to sample, found 2000/s to 2000/s over 3 pairs",
            "fail 5:3 nr_running: rate_within(..): expected a rate between 1/s and 2/s from sample to \
             sample, found 2000/s: 2021 in periodic_001 at 1.000 s, after 1021 in periodic_000 at \
             0.500 s; 3 of 3 pairs fail",
            "pass 6:3 nr_running: steady_within(..): expected every sample from 1.000 s on within 50 % \
             of their mean, found 3 samples with the mean 3021",
            "pass 7:3 nr_running: converges_to(..): expected 3 samples in a row within 1000 of 3021 by \
             2.000 s, found there in periodic_003 at 2.000 s",
            "pass 8:3 nr_running: always_true(): expected true in every sample, found 4 samples from \
             1021 to 4021",
            "pass 9:10 nr_running: each().at_least(..): expected at least 1021 in every sample, found 4 \
             samples from 1021 to 4021",
            "fail 9:35 nr_running: each().at_most(..): expected at most 4020 in every sample, found \
             4021 in periodic_003 at 2.000 s; 1 of 4 samples fail",
            "pass 9:59 nr_running: each().between(..): expected between 1 and 9000 in every sample, \
             found 4 samples from 1021 to 4021",
            "pass 10:3 nr_running: ratio_within(..): expected a ratio to nr_enqueued between 1 and 1 in \
             every sample, found 1 to 1 in 4 samples",
            "pass 11:75 odd: nondecreasing(): expected each sample at least the one before it, found 3 \
             samples from 1 to 1",
            "inconclusive 12:34 none: nondecreasing(): expected each sample at least the one before \
             it, found 0 usable of 4 samples; 2 are needed",
        ]
    );
    let notes: Vec<String> = ran
        .records
        .iter()
        .filter_map(|r| match r {
            Record::Note { text, .. } => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        notes[0],
        "odd: nondecreasing() left out 1 sample: periodic_001 at 1.000 s (ProjectionFailed: the \
         projection's closure failed: no)"
    );
}

#[test]
fn what_no_pattern_can_be_is_refused() {
    let cases = [
        (
            "f.rate_within(\"3\", 4)",
            "rate_within(..): \"3\" is no rate: it lacks a /; write \"100/s\" or \"5/ms\"",
        ),
        (
            "f.rate_within(\"3/d\", 4)",
            "rate_within(..): \"3/d\" is no rate: there is no unit \"d\"; units are us, ms, s, m, h; write \"100/s\" or \"5/ms\"",
        ),
        (
            "f.rate_within(\"x/s\", 4)",
            "rate_within(..): \"x/s\" is no rate: \"x\" is no number; write \"100/s\" or \"5/ms\"",
        ),
        ("f.rate_within(4, 3)", "rate_within(..): nothing is between 4 and 3"),
        ("f.rate_within([], 3)", "rate_within(..): an array is no number"),
        (
            "f.steady_within(\"1\", 0.1)",
            "steady_within(..): \"1\" is no duration: 1 has no unit; write \"250ms\", \"2s\" or \"1m30s\"",
        ),
        (
            "f.steady_within(\"1s\", -1)",
            "steady_within(..): -1 is no fraction: give a number from 0 on",
        ),
        (
            "f.converges_to(1, -1, \"1s\")",
            "converges_to(..): -1 is no tolerance: give a number from 0 on",
        ),
        ("f.each().at_least(\"x\")", "at_least(..): \"x\" (text) is no bound: give a number"),
        ("f.each().at_most([])", "at_most(..): an array is no number"),
        (
            "f.ratio_within(f.phase(\"a\"), 1, 2)",
            "ratio_within(..): nr_running has 4 samples and nr_running has 2: a ratio needs the same samples of both",
        ),
        ("t.series().bpf_live_all([1])", "bpf_live_all(..) takes names as strings, found 1 (int)"),
        (
            "t.series().phase(\"c\")",
            "there is no phase with samples called \"c\"; there are \"a\", \"b\"",
        ),
    ];
    for (call, want) in cases {
        let ran = run(&format!(
            "t.step(\"a\", \"1s\"); t.step(\"b\", \"1s\"); let f = t.series().bpf(\"nr_running\");\n{call};"
        ));
        let told = ran.one();
        let text = told.split_once("script: ").map_or("", |(_, text)| text);
        assert_eq!(text, want, "{call}");
    }
}

#[test]
fn a_closure_that_ends_the_scenario_ends_it() {
    let ran = run(
        "t.hold(\"1s\"); t.series().bpf(\"x\", |snap| { require(false, \"enough\"); 1 }); fail(\"it went on\");",
    );
    assert_eq!(ran.one(), "fail 2:44 enough: expected false to hold, found it does not");
}

#[test]
fn a_series_is_saved_and_opened() {
    let bench = Bench::new();
    let path = bench.dir.join("x.cryo");
    let path = path.display();
    passes(&format!(
        "t.step(\"a\", \"1s\"); t.freeze(\"by hand\"); t.step(\"b\", \"1s\");\n\
         let s = t.series(); s.save(\"{path}\");\n\
         let o = open(\"{path}\");\n\
         expect(o.len).eq(5); expect(o.phases()).eq([\"a\", \"b\"]);\n\
         for i in range(0, 5) {{\n\
         expect(o[i].tag).eq(s[i].tag); expect(o[i].elapsed_ms).eq(s[i].elapsed_ms);\n\
         expect(o[i].cpus().len).eq(s[i].cpus().len); expect(o[i].sched().ops).eq(s[i].sched().ops);\n\
         }}\n\
         for name in [\"nr_running\", \"slice_ns\"] {{ expect(o.bpf(name).values()).eq(s.bpf(name).values()); }}\n\
         expect(o.bpf(\"task_ctx/1.comm\").values()).eq(s.bpf(\"task_ctx/1.comm\").values());",
    ));
    let ran = run(&format!("t.series().save(\"{path}/no/x\");"));
    assert!(ran.one().contains("cannot save the snapshot to "), "{}", ran.one());
}

#[test]
fn a_member_of_statistics_that_is_not_there_names_the_nearest() {
    let helped = |body: &str| {
        let ran = run_with("scheduler: \"scx_bpfland\", samples: 3", body);
        let told = ran.one();
        let (told, help) = told.split_once('\n').unwrap();
        assert!(told.ends_with("the map has no property \"nr_runing\""), "{told}");
        help.to_owned()
    };
    assert_eq!(helped("t.stats().nr_runing;"), "help: did you mean nr_running?");
    assert_eq!(
        helped("t.stats_meta(); t.stats().nr_runing;"),
        "help: did you mean nr_running (Number of running tasks)?"
    );
    assert_eq!(
        helped("t.hold(\"100%\"); t.series()[1].stats.nr_runing;"),
        "help: did you mean nr_running?"
    );
    let cases = [
        ("t.new_cgroup(\"a\").stats[\"cpu.stat\"].usage_usecs;", "usage_usecs", "usage_usec"),
        ("t.new_cgroup(\"a\").stats[\"cpu.stats\"];", "cpu.stats", "cpu.stat"),
        ("t.exec([\"true\"]).std_out;", "std_out", "stdout"),
    ];
    for (body, asked, meant) in cases {
        let ran = run_with("samples: 3", body);
        let want = format!("the map has no property \"{asked}\"\nhelp: did you mean {meant}?");
        assert!(ran.one().ends_with(&want), "{}", ran.one());
    }
    let no_idea = helped("let m = #{ a: 1 }; m.nr_runing;");
    assert!(no_idea.starts_with("help: ask with `\"nr_runing\" in map` before"), "{no_idea}");
    let ran = run_with(
        "scheduler: \"scx_bpfland\", samples: 3",
        "t.hold(\"100%\"); let f = t.series().stats(\"x\", |told| told.nr_runing);\n\
         expect(f.errors().len).eq(3); expect(f.errors()[0].error.kind).eq(\"ProjectionFailed\");\n\
         f = t.series().stats(\"nr_runing\");\n\
         expect(f.errors()[0].error.available[0]).eq(\"nr_running\");",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
}

#[test]
fn statistics_are_maps_and_say_why_there_are_none() {
    passes(
        "let s = t.stats(); expect(s.nr_queued).eq(7); expect(s.cpus[0].load).eq(0.5);\n\
         expect(|| s.nr_qeued).throws(\"nr_qeued\");\n\
         expect(|| t.stats(\"x\")).throws(\"MissingStats\");\n\
         let told = \"\"; try { t.stats(\"x\", #{ a: \"b\" }); } catch (e) { told = `${e.reason.errno} ${e.message}`; }\n\
         expect(told).eq(\"22 no statistics: the scheduler answered with errno 22: {\\\"resp\\\":\\\"no such target\\\"}\");\n\
         expect(|| t.stats(\"x\", #{ a: 3 })).throws(\"stats(..): the argument a is 3 (int), not a text\");\n\
         expect(|| t.stats_meta()).throws(\"the scenario has no scheduler process\");\n\
         t.hold(\"1s\");\n\
         expect(|| t.series()[0].stats).throws(\"t.stats() asks now\");\n\
         let f = t.series().stats(\"nr_queued\");\n\
         expect(f.errors()[0].error.kind).eq(\"MissingStats\");\n\
         expect(t.series().stats(\"x\", |v| v.x).errors().len).eq(2);",
    );
}

#[test]
fn fields_are_drawn() {
    let ran = run("t.hold(\"2s\"); let f = t.series().bpf(\"nr_running\"); f.plot(); plot(f);\n\
         plot([f, t.series().bpf(\"nothing\").named(\"nothing at all\")]);\n\
         expect(|| plot([1])).throws(\"plot(..) draws fields of a series, found 1 (int)\");");
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:#?}");
    let plots: Vec<Vec<String>> = ran
        .records
        .iter()
        .filter_map(|r| match r {
            Record::Plot(plot) => Some(plot.text()),
            _ => None,
        })
        .collect();
    let one = "nr_running  ▁▃▆█  1021 to 4021 over 0.50 s to 2.0 s";
    assert_eq!(plots[0], [one]);
    assert_eq!(plots[1], [one]);
    let two =
        ["nr_running      ▁▃▆█  1021 to 4021 over 0.50 s to 2.0 s", "nothing at all  no values"];
    assert_eq!(plots[2], two);
}

#[test]
fn the_book_shows_a_pattern_that_fails_and_a_field_that_is_drawn() {
    let ran = run_with(
        "samples: 40, duration: \"4s\"",
        "t.hold(\"4s\");\n\
         let s = t.series();\n\
         s.bpf(\"nr_running\").plot();\n\
         let stalls = |snap| { let n = snap.global(\"nr_running\"); if n < 6000 { n } else { 6000 } };\n\
         s.bpf(\"nr_dispatched\", stalls).strictly_increasing();",
    );
    let told = crate::scenario::report::told(ran.checks()[0]);
    assert_eq!(told[..3], shown("series.md", 0), "{ran:#?}");
    let drawn = ran.records.iter().find_map(|record| match record {
        Record::Plot(plot) => Some(plot.text()),
        _ => None,
    });
    assert_eq!(drawn.unwrap(), shown("series.md", 1));
}
