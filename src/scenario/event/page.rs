//! The book's page on events: it shows every kind as the program writes it, and explains every field.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::super::monitor::MonitorReport;
use super::super::plot::{Plot, PlotLine};
use super::super::samples::SampleReport;
use super::super::verdict::{
    Check, Counts, KEPT_CHECKS, KEPT_LINES, Outcome, Record, ScriptPos, Verdict,
};
use super::{CellFinished, CellInfo, Logs, RunEvent, Stage};

fn at(line: usize, text: &str) -> Option<ScriptPos> {
    Some(ScriptPos { file: "scripts/fair.rhai".into(), line, column: 5, text: text.into() })
}

fn records() -> Vec<Record> {
    let check = Check::fail("share of the batch", "the share is above what was asked for")
        .compared("at most 0.5", "0.71")
        .origin(Some("cpu_stats[0].busy_ns of snapshot \"loaded\" at 0.512 s".into()))
        .at(at(12, "expect(share, \"share of the batch\").at_most(0.5);"));
    let text = || "the first run warms the caches".to_owned();
    let line = PlotLine { label: "nr_queued".into(), points: vec![(100, Some(3.0)), (200, None)] };
    vec![
        Record::Check(check),
        Record::Note { text: text(), at: at(3, "note(\"the first run warms the caches\");") },
        Record::Skip { reason: "there is one CPU only".into(), at: at(4, "skip(why);") },
        Record::Print { text: "3 tasks are queued".into() },
        Record::Plot(Plot { lines: vec![line] }),
    ]
}

fn sampled() -> RunEvent {
    let report = SampleReport {
        planned: Some(20),
        fired: 18,
        missed: 1,
        first_missed: vec![7],
        placeholders: 1,
        not_fired: 1,
        latest_ms: 2,
        spilled: 4,
    };
    RunEvent::Sampled { cell: 0, report }
}

fn monitored() -> RunEvent {
    let report = MonitorReport {
        readings: 97,
        failed: 1,
        failure: Some("the machine is paused".into()),
        missed: 2,
        doubted: 1,
        doubt: Some("CPU 1: 4294967295 tasks run on it".into()),
        given_up: 1,
        imbalance: Some(1.5),
        depth: Some(("local:1".into(), 12)),
        stuck_ms: Some((1, 80)),
        events: BTreeMap::from([("SCX_EV_DISPATCH_KEEP_LAST".into(), 0.5)]),
        longest_us: 147,
    };
    RunEvent::Monitored { cell: 0, report }
}

fn finished() -> RunEvent {
    let counts = Counts { pass: 3, inconclusive: 0, fail: 1, error: 0 };
    let reason = Some("no check was recorded".into());
    RunEvent::CellFinished(CellFinished {
        cell: 0,
        verdict: Verdict { outcome: Outcome::Fail, reason, allowed: false, counts },
        duration_ms: 4812,
        fault: Some("QEMU ended".into()),
        failed_before: 1,
        logs: Logs { scheduler: "fair: up".into(), console: "[    3.1] sched_ext: ..".into() },
    })
}

/// One of each, with every field that it can have.
fn examples() -> Vec<RunEvent> {
    let info = CellInfo {
        name: "the batch yields[topology=1n1l2c1t]".into(),
        file: "scripts/fair.rhai".into(),
        index: 0,
        kernel: "debian:7.2".into(),
        topology: "1n1l2c1t".into(),
        scheduler: "fair.bpf.c".into(),
        tags: vec!["smoke".into()],
        axes: vec![("topology".into(), "1n1l2c1t".into())],
    };
    let mut all = vec![
        RunEvent::RunStarted { cryoscope: "0.1.0".into(), cells: vec![info], jobs: 2 },
        RunEvent::CellStarted { cell: 0, attempt: 1, at_ms: 14 },
        RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: "7.2.13".into() },
        RunEvent::Phase { cell: 0, name: "loaded".into(), elapsed_ms: 500 },
        RunEvent::Scheduler { cell: 0, attached: Some("fair.bpf.c".into()), elapsed_ms: 508 },
        RunEvent::Frozen {
            cell: 0,
            tag: "loaded".into(),
            elapsed_ms: 512,
            pause_us: 2140,
            copy_us: 890,
            placeholder: Some("CPU 1 did not come".into()),
        },
        sampled(),
        monitored(),
        RunEvent::Tree {
            cell: 0,
            tag: "loaded".into(),
            text: "snapshot \"loaded\"\n  maps".into(),
        },
    ];
    all.extend(records().into_iter().map(|record| RunEvent::Recorded { cell: 0, record }));
    all.extend([
        RunEvent::SchedulerExited {
            cell: 0,
            reason: "runnable task stall".into(),
            elapsed_ms: 731,
        },
        RunEvent::CellRetried {
            cell: 0,
            attempt: 1,
            reason: "failed: share of the batch".into(),
            outcome: Some(Outcome::Fail),
        },
        finished(),
        RunEvent::RunFinished {
            outcomes: BTreeMap::from([(Outcome::Pass, 3), (Outcome::Fail, 1)]),
            not_run: 1,
            interrupted: true,
            duration_ms: 9210,
            exit_code: 1,
        },
    ]);
    all
}

/// How an event is called on its line. One that is new has to be shown on the page.
fn kind(event: &RunEvent) -> &'static str {
    match event {
        RunEvent::RunStarted { .. } => "run_started",
        RunEvent::CellStarted { .. } => "cell_started",
        RunEvent::Stage { .. } => "stage",
        RunEvent::Phase { .. } => "phase",
        RunEvent::Scheduler { .. } => "scheduler",
        RunEvent::Frozen { .. } => "frozen",
        RunEvent::Sampled { .. } => "sampled",
        RunEvent::Monitored { .. } => "monitored",
        RunEvent::Tree { .. } => "tree",
        RunEvent::Recorded { .. } => "recorded",
        RunEvent::SchedulerExited { .. } => "scheduler_exited",
        RunEvent::CellRetried { .. } => "cell_retried",
        RunEvent::CellFinished(_) => "cell_finished",
        RunEvent::RunFinished { .. } => "run_finished",
    }
}

/// The fields below a value: `cells[].name`. Where names are of the guest's or of outcomes, the
/// field itself.
fn fields(value: &Value, at: &str, out: &mut BTreeSet<String>) {
    let open = ["outcomes", "report.events"];
    match value {
        Value::Object(members) if !open.contains(&at) => {
            let dot = if at.is_empty() { "" } else { "." };
            for (name, member) in members {
                fields(member, &format!("{at}{dot}{name}"), out);
            }
        }
        Value::Array(items) if items.first().is_some_and(Value::is_object) => {
            items.iter().for_each(|item| fields(item, &format!("{at}[]"), out));
        }
        _ => drop(out.insert(at.to_owned())),
    }
}

/// A section of the page: its events' lines, and the fields in its table.
fn section(text: &str) -> (Vec<String>, BTreeSet<String>) {
    let mut parts = text.split("```");
    let mut names = BTreeSet::new();
    let mut lines = Vec::new();
    while let Some(prose) = parts.next() {
        let rows = prose.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let named = cells.flat_map(|cell| cell.split(','));
        names.extend(named.map(|name| name.trim().trim_matches('`').to_owned()));
        let block = parts.next().and_then(|block| block.strip_prefix("json\n"));
        lines.extend(block.iter().flat_map(|block| block.lines()).map(str::to_owned));
    }
    (lines, names)
}

#[test]
fn the_book_shows_every_event_and_explains_every_field() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.md");
    let page = fs::read_to_string(path).unwrap();
    let (head, rest) = page.split_once("\n## ").expect("a section for each kind");
    let sections: Vec<(&str, &str)> =
        rest.split("\n## ").map(|text| text.split_once('\n').expect("a title")).collect();
    let examples = examples();
    let mut kinds: Vec<&str> = examples.iter().map(kind).collect();
    kinds.dedup();
    let titles: Vec<&str> = sections.iter().map(|(title, _)| *title).collect();
    assert_eq!(titles, kinds);
    assert!(head.contains(&format!("`v` is {}", super::VERSION)), "the version is told");
    let limits = format!("hold are told up to {KEPT_LINES}, others up to {KEPT_CHECKS};");
    assert!(page.contains(&limits), "{limits}");
    for (title, text) in sections {
        let (lines, named) = section(text);
        let of_this = examples.iter().filter(|event| kind(event) == title);
        let mut known = BTreeSet::new();
        let made: Vec<String> = of_this
            .map(|event| {
                let line = event.to_line().trim_end().to_owned();
                let Value::Object(mut event) = serde_json::from_str(&line).unwrap() else {
                    panic!("{line}")
                };
                assert_eq!(event.remove("event").as_ref().and_then(Value::as_str), Some(title));
                event.remove("v");
                fields(&Value::Object(event), "", &mut known);
                line
            })
            .collect();
        assert_eq!(lines, made, "the lines of {title} in docs/events.md");
        assert_eq!(named, known, "the fields of {title} in docs/events.md");
    }
}
