use super::*;
use crate::scenario::event::Logs;
use crate::scenario::verdict::{Check, Counts, Outcome, Verdict};

const HOSTILE: &str = "<script>alert(\"1\")</script>&'\u{202e}";

fn info() -> CellInfo {
    CellInfo {
        name: HOSTILE.into(),
        file: "a.rhai".into(),
        index: 0,
        kernel: "auto".into(),
        topology: "1n1l2c1t".into(),
        scheduler: "none".into(),
        tags: vec![],
        axes: vec![],
    }
}

fn events() -> Vec<RunEvent> {
    let check = Check::fail(HOSTILE, HOSTILE).compared("4", HOSTILE).origin(Some(HOSTILE.into()));
    let verdict = Verdict {
        outcome: Outcome::Fail,
        reason: Some(HOSTILE.into()),
        allowed: false,
        counts: Counts { fail: 1, ..Counts::default() },
    };
    let logs = Logs { scheduler: HOSTILE.into(), console: "x".repeat(100_000) };
    let record = |record| RunEvent::Recorded { cell: 0, record };
    vec![
        RunEvent::RunStarted { cryoscope: "1".into(), cells: vec![info()], jobs: 1 },
        RunEvent::CellStarted { cell: 0, attempt: 1, at_ms: 0 },
        RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: HOSTILE.into() },
        RunEvent::Phase { cell: 0, name: HOSTILE.into(), elapsed_ms: 1500 },
        RunEvent::Frozen {
            cell: 0,
            tag: HOSTILE.into(),
            elapsed_ms: 1600,
            pause_us: 7,
            copy_us: 3,
            placeholder: None,
        },
        record(Record::Check(check)),
        record(Record::Print { text: "p".repeat(10_000) }),
        RunEvent::CellFinished(CellFinished {
            cell: 0,
            verdict,
            duration_ms: 9,
            fault: None,
            failed_before: 0,
            logs,
        }),
        RunEvent::RunFinished {
            outcomes: [(Outcome::Fail, 1)].into(),
            not_run: 0,
            interrupted: false,
            duration_ms: 10,
            exit_code: 1,
        },
    ]
}

fn known(events: &[RunEvent]) -> Known {
    let mut known = Known::default();
    events.iter().for_each(|e| known.take(e));
    known
}

#[test]
fn whatever_a_guest_or_a_script_says_is_text_and_cut() {
    let page = page::page(&known(&events()));
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains('\u{202e}'));
    let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;·";
    // Name twice, reason, stage, phase in the drawing and the table, tag, label, message, found, origin, log.
    assert_eq!(page.matches(escaped).count(), 12, "{page}");
    assert!(page.contains(&format!("{} … (cut)", "p".repeat(4000))));
    assert!(page.contains(&"x".repeat(64_000)) && !page.contains(&"x".repeat(64_001)));
}

#[test]
fn the_page_says_where_the_run_stands() {
    let all = events();
    let heads = [(1, "run that has not ended"), (8, "run that has not ended")];
    for (n, says) in heads {
        let page = page::page(&known(&all[..n]));
        assert!(page.contains(&format!("<h1>cryoscope: {says}</h1>")), "{n}: {page}");
    }
    assert!(page::page(&known(&all[..1])).contains("<td>not run</td>"));
    assert!(page::page(&known(&all[..2])).contains("<td>not finished</td>"));
    let page = page::page(&known(&all));
    assert!(page.contains("<h1>cryoscope: run, exit code 1</h1>"));
    assert!(page.contains("✗</span> fail</span>"));
    assert!(page.contains("<td>1.60 s</td><td>frozen "));
}

#[test]
fn what_a_void_attempt_recorded_is_gone() {
    let mut all = events();
    all.truncate(7);
    all.push(RunEvent::CellRetried {
        cell: 0,
        attempt: 1,
        reason: "QEMU died".into(),
        outcome: None,
    });
    let known = known(&all);
    assert!(known.cells[0].records.is_empty() && known.cells[0].moments.is_empty());
    assert!(page::page(&known).contains("Attempt 1 was tried again: QEMU died"));
}

#[test]
fn further_records_are_counted() {
    let print = RunEvent::Recorded { cell: 0, record: Record::Print { text: "a".into() } };
    let mut known = known(&events()[..2]);
    (0..1003).for_each(|_| known.take(&print));
    assert!(page::page(&known).contains("<p>3 further entries are left out here.</p>"));
}

#[test]
fn only_reports_of_ours_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (root, trouble) = (dir.path().join("a/report"), Trouble::default());
    let mut sink = Html::create(&root, &trouble).unwrap();
    events().iter().for_each(|e| sink.event(e, &RunModel::default()));
    let page = fs::read_to_string(root.join("index.html")).unwrap();
    assert!(page.contains("exit code 1") && page.ends_with("</html>\n"));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "nothing half-written is left");
    assert_eq!(trouble.first(), None);
    assert!(Html::create(&root, &trouble).is_ok(), "an earlier report");
    fs::write(root.join("index.html"), "<html>mine</html>").unwrap();
    let says = "holds something else than an earlier report; name a new or an empty directory";
    assert_eq!(Html::create(&root, &trouble).unwrap_err(), says);
    assert_eq!(fs::read_to_string(root.join("index.html")).unwrap(), "<html>mine</html>");
    assert_eq!(Html::create(Path::new("/dev/null"), &trouble).unwrap_err(), "File exists");
}

#[test]
fn schedulers_that_change_and_snapshots_without_contents_are_on_the_timeline() {
    let mut known = known(&events()[..5]);
    let scheduler = |attached: Option<&str>, elapsed_ms| RunEvent::Scheduler {
        cell: 0,
        attached: attached.map(str::to_owned),
        elapsed_ms,
    };
    let late = RunEvent::Frozen {
        cell: 0,
        tag: "late".into(),
        elapsed_ms: 1_900,
        pause_us: 0,
        copy_us: 0,
        placeholder: Some("CPU 1 did not come".into()),
    };
    for event in [scheduler(None, 1_700), scheduler(Some("fair<"), 1_800), late] {
        known.take(&event);
    }
    let page = page::page(&known);
    for row in [
        "<td>1.70 s</td><td>the scheduler let go</td>",
        "<td>1.80 s</td><td>fair&lt; attached</td>",
        "<td>1.90 s</td><td>late has no contents: CPU 1 did not come</td>",
        "1 freezes and 1 without contents, 2 changes of the scheduler and 0 ends of one",
    ] {
        assert!(page.contains(row), "{row}: {page}");
    }
    assert_eq!(page.matches("<path class=\"change\"").count(), 2);
    assert_eq!(page.matches("<path class=\"exit\"").count(), 1);
}

#[test]
fn a_drawing_that_leaves_something_out_says_so() {
    let freeze = |n: u64| RunEvent::Frozen {
        cell: 0,
        tag: format!("{n}"),
        elapsed_ms: n,
        pause_us: 1,
        copy_us: 1,
        placeholder: None,
    };
    for (count, says) in [(199, false), (200, true)] {
        let mut known = known(&events()[..5]);
        (0..count).for_each(|n| known.take(&freeze(n)));
        let page = page::page(&known);
        let text = "<p>The drawing has the first 200 phases and freezes.</p>";
        assert_eq!(page.contains(text), says, "{count}");
        assert_eq!(page.matches("<td>frozen ").count(), count as usize + 1);
    }
}

#[test]
fn dates_are_civil() {
    let cases = [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399, "2000-02-28 23:59:59 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (1_767_225_600, "2026-01-01 00:00:00 UTC"),
    ];
    for (seconds, says) in cases {
        assert_eq!(page::utc(seconds), says);
    }
}
