//! What a monitor saw, as scripts use it, on a machine whose workers are all on CPU 0.

use super::*;
use crate::scenario::monitor::{Limit, Mode as How, MonitorOptions, Signal};

fn run(options: &str, body: &str) -> Ran {
    let text = format!("scenario(\"x\", #{{ {options} }}, |t| {{\n{body}\n}});");
    let decl = &Bench::new().collect(&text).unwrap_or_else(|e| panic!("{e}"))[0];
    let lab = FakeLab::of(decl).with_fifo().with_kernel();
    Bench::with(lab).run_as(&text, 0, "x")
}

fn passes(options: &str, body: &str) {
    let ran = run(options, body);
    let bad = ran.checks().into_iter().filter(|check| check.outcome > Outcome::Pass).map(told);
    assert_eq!(ran.outcome, Outcome::Pass, "{body}: {:#?}", bad.collect::<Vec<_>>());
}

fn declared(options: &str) -> Option<MonitorOptions> {
    let text = format!("scenario(\"x\", #{{ monitor: {options} }}, |t| {{}});");
    Bench::new().collect(&text).unwrap_or_else(|e| panic!("{e}"))[0].options.monitor.clone()
}

#[test]
fn limits_are_numbers_times_and_rates_alone_or_with_a_mode() {
    assert_eq!((declared("false"), declared("()")), (None, None));
    assert_eq!(declared("true"), Some(MonitorOptions::default()));
    assert_eq!(declared("#{}"), Some(MonitorOptions::default()));
    let limit = |signal, most, mode, readings| Limit { signal, most, mode, readings };
    let event = |name: &str| Signal::Event(name.to_owned());
    use How::{Enforce, Off, Report};
    assert_eq!(
        declared(
            "#{ every: \"50ms\", imbalance: 2.5, depth: #{ at_most: 64, mode: \"report\" }, \
             local_depth: #{ at_most: 8, readings: 1 }, stuck: \"1500ms\", \
             events: #{ A: \"10/s\", B: #{ at_most: \"1/ms\", mode: \"off\", readings: 7 } } }"
        ),
        Some(MonitorOptions {
            every: Duration::from_millis(50),
            limits: vec![
                limit(Signal::Imbalance, 2.5, Enforce, 3),
                limit(Signal::Depth, 64.0, Report, 3),
                limit(Signal::LocalDepth, 8.0, Enforce, 1),
                limit(Signal::Stuck, 1.5, Enforce, 1),
                limit(event("A"), 10.0, Enforce, 3),
                limit(event("B"), 1000.0, Off, 7),
            ],
        })
    );
    let limits =
        declared("#{ mode: \"report\", readings: 5, depth: 64, stuck: \"2s\" }").unwrap().limits;
    let want = [limit(Signal::Depth, 64.0, Report, 5), limit(Signal::Stuck, 2.0, Report, 1)];
    assert_eq!(limits, want);
}

#[test]
fn readings_are_fields_over_time_of_the_machine_its_cpus_queues_and_events() {
    passes(
        "monitor: true",
        "t.start(#{ work: \"spin\", count: 5 });\n\
         t.step(\"a\", \"600ms\"); t.step(\"b\", \"400ms\");\n\
         let m = t.monitor();\n\
         expect(m.len).eq(10); expect(`${m}`).eq(\"SeriesMonitor(10 readings)\");\n\
         expect(m.field(\"imbalance\").last).eq(5.0); expect(m.field(\"nr_running\").first).eq(5);\n\
         expect(m.field(\"depth\").values()).eq([4, 4, 4, 4, 4, 4, 4, 4, 4, 4]);\n\
         expect(m.field(\"depth\").phase(\"b\").len).eq(4);\n\
         m.field(\"depth\").each().at_most(4);\n\
         let cpu = m.cpu(0);\n\
         cpu.field(\"clock\").rate_within(\"1/us\", 1_100_000_000);\n\
         expect(cpu.field(\"nr_running\").max).eq(5); expect(m.cpu(1).field(\"nr_running\").max).eq(0);\n\
         expect(`${m.cpu(1)}`).eq(\"SeriesMonitorCpu(10 readings, CPU 1)\");\n\
         expect(m.dsq(\"local:0\").last).eq(4); expect(m.dsq(\"global\").last).eq(0);\n\
         m.event(\"SELECT_CPU_FALLBACK\").rate_within(\"9/s\", \"11/s\");\n\
         expect(m.event(\"SCX_EV_SELECT_CPU_FALLBACK\").delta).eq(9);\n\
         expect(m.rate(\"SELECT_CPU_FALLBACK\").values()[0]).eq(());\n\
         expect(m.rate(\"SELECT_CPU_FALLBACK\").mean).near(10.0, 0.001);\n\
         let went = t.monitored();\n\
         expect(went.readings).eq(10); expect(went.depth).eq(4); expect(went.queue).eq(\"local:0\");\n\
         expect(went.stuck_ms).eq(0); expect(went.imbalance).eq(5.0); expect(went.longest_us).eq(70);\n\
         expect(went.events.SCX_EV_SELECT_CPU_FALLBACK).near(10.0, 0.001); expect(went.doubted).eq(0);",
    );
}

#[test]
fn samples_have_what_was_seen_last() {
    passes(
        "samples: #{ every: \"250ms\" }, monitor: #{ every: \"100ms\" }",
        "t.start(#{ work: \"spin\", count: 5 }); t.hold(\"1s\"); t.freeze(\"by hand\");\n\
         let s = t.series();\n\
         let events = s.monitor().event(\"SELECT_CPU_FALLBACK\");\n\
         expect(events.values()).eq([2, 5, 7, 10, 10]);\n\
         expect(s.periodic().monitor().len).eq(4);\n\
         expect(s.monitor().field(\"depth\").last).eq(4);",
    );
    passes(
        "samples: #{ every: \"250ms\" }",
        "t.hold(\"500ms\"); let f = t.series().monitor().field(\"depth\");\n\
         expect(f.values()).eq([(), ()]);\n\
         expect(f.errors()[0].error.kind).eq(\"MapRenderIncomplete\");\n\
         expect(f.errors()[0].error.message).contains(\"the option `monitor` has one read\");",
    );
}

#[test]
fn what_is_not_there_names_what_is() {
    let cases = [
        (
            "",
            "t.monitor();",
            "monitor(): nothing was read, since the scenario does not say so; give it the option monitor: true",
        ),
        ("monitor: true", "t.monitor().field(\"inbalance\");", "imbalance"),
        ("monitor: true", "t.monitor().cpu(0).field(\"nr_runing\");", "nr_running"),
    ];
    for (options, body, want) in cases {
        let ran = run(options, body);
        let told = ran.one();
        assert!(ran.outcome == Outcome::Error && told.contains(want), "{told}");
    }
    passes(
        "monitor: true",
        "t.hold(\"300ms\"); let m = t.monitor();\n\
         expect(m.event(\"SELECT_CPU_FALBACK\").errors()[0].error.available[0]).eq(\"SCX_EV_SELECT_CPU_FALLBACK\");\n\
         expect(m.dsq(7).errors()[0].error.kind).eq(\"FieldNotFound\");\n\
         expect(|| m == m).throws(\"cannot be compared\");\n\
         expect(t.monitored().failed).eq(0);",
    );
}
