//! The page of a report in a browser: on a phone and on a desk, in light and in dark, on paper; for
//! eyes, keyboards and screen readers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cryoscope::scenario::event::{CellFinished, CellInfo, Logs, RunEvent, RunModel, Stage};
use cryoscope::scenario::plot::{Plot, PlotLine};
use cryoscope::scenario::report::{Html, Trouble};
use cryoscope::scenario::runner::Sink;
use cryoscope::scenario::verdict::{Check, Counts, Outcome, Record, Verdict};

/// What a guest or a script may say to break a page.
const HOSTILE: &str = "</script></svg></details><h1 id=\"scenarios\">&amp;\u{202e}\u{7}\u{1b}[31m";

fn info(name: &str, axes: &[(&str, &str)]) -> CellInfo {
    CellInfo {
        name: name.into(),
        file: "scripts/a-long-directory/with-a-long-name-of-a-script.rhai".into(),
        index: 0,
        kernel: "debian:7.2".into(),
        topology: "1n2l2c1t".into(),
        scheduler: "examples/schedulers/fifo.bpf.c".into(),
        tags: vec![],
        axes: axes.iter().map(|(a, v)| ((*a).to_owned(), (*v).to_owned())).collect(),
    }
}

/// A run with everything that a page can show.
fn events() -> Vec<RunEvent> {
    let variants =
        [("1n1l2c1t", "debian:7.2"), ("1n1l2c1t", "debian:7.3"), ("2n2l2c1t", "debian:7.2")];
    let cells =
        [info("everything happens", &[]), info(HOSTILE, &[]), info(&"long".repeat(60), &[])];
    let varied = variants.map(|(topology, kernel)| {
        let name = format!("varied[topology={topology},kernel={kernel}]");
        info(&name, &[("topology", topology), ("kernel", kernel)])
    });
    let cells: Vec<CellInfo> = cells.into_iter().chain(varied).collect();
    let count = cells.len();
    let mut out = vec![RunEvent::RunStarted { cryoscope: "0.1.0".into(), cells, jobs: 2 }];
    for cell in 0..count - 1 {
        out.push(RunEvent::CellStarted { cell, attempt: 1, at_ms: 5 });
        out.extend(of_cell(cell, if cell == 1 { HOSTILE } else { "steady" }));
        let outcome = Outcome::ALL[(cell + 3) % 5];
        let reason = Some(if cell == 1 { HOSTILE.to_owned() } else { "for a reason".to_owned() });
        let counts = Counts { fail: 1, pass: 7, ..Counts::default() };
        let verdict = Verdict { outcome, reason, allowed: false, counts };
        let console = format!("{}\n{}", "x".repeat(3000), HOSTILE);
        let logs = Logs { scheduler: "attached\n".into(), console };
        let (fault, failed_before) = (None, u32::from(cell == 0));
        let end = CellFinished { cell, verdict, duration_ms: 6_200, fault, failed_before, logs };
        out.push(RunEvent::CellFinished(end));
    }
    let outcomes = Outcome::ALL.into_iter().map(|outcome| (outcome, 1)).collect();
    let (not_run, interrupted, duration_ms, exit_code) = (1, true, 65_000, 130);
    out.push(RunEvent::RunFinished { outcomes, not_run, interrupted, duration_ms, exit_code });
    out
}

fn of_cell(cell: usize, word: &str) -> Vec<RunEvent> {
    let stages = [Stage::Kernel, Stage::Boot, Stage::Attach];
    let mut out: Vec<RunEvent> =
        stages.map(|stage| RunEvent::Stage { cell, stage, detail: word.into() }).to_vec();
    for (i, name) in ["warm", word, "a phase with quite a long name", "x"].into_iter().enumerate() {
        let elapsed_ms = 900 * i as u64;
        out.push(RunEvent::Phase { cell, name: name.into(), elapsed_ms });
    }
    for i in 0..20 {
        let tag = format!("periodic_{i:03}");
        let elapsed_ms = 150 * i;
        let placeholder = (i == 7).then(|| word.to_owned());
        out.push(RunEvent::Frozen {
            cell,
            tag,
            elapsed_ms,
            pause_us: 2_500,
            copy_us: 800,
            placeholder,
        });
    }
    for (attached, elapsed_ms) in [(None, 1_200), (Some(word.to_owned()), 1_350)] {
        out.push(RunEvent::Scheduler { cell, attached, elapsed_ms });
    }
    out.push(RunEvent::SchedulerExited { cell, reason: word.into(), elapsed_ms: 3_300 });
    let line = |label: &str, factor: f64| PlotLine {
        label: label.to_owned(),
        points: (0..20).map(|i| (150 * i, (i != 7).then_some(i as f64 * factor))).collect(),
    };
    let plot = Plot { lines: vec![line(word, 1.0), line("nr_enqueued", 2.5)] };
    let check = Check::fail(word, "one line\nand another").compared("at most 4", "7");
    let records = [
        Record::Check(check.origin(Some("map task_ctx, \"end\" at 3.2 s".into()))),
        Record::Check(Check::new(Outcome::Inconclusive, "too little")),
        Record::Note { text: word.into(), at: None },
        Record::Print { text: format!("{word}\n{}", "wide ".repeat(60)) },
        Record::Plot(plot),
    ];
    out.extend(records.map(|record| RunEvent::Recorded { cell, record }));
    let text = format!("snapshot \"end\"\n  map\n    [0]  {{a: 1}}\n    [1]  {word}\n  other\n");
    out.push(RunEvent::Tree { cell, tag: word.into(), text });
    out
}

/// The page in a directory of its own, and a browser.
struct Bench {
    dir: tempfile::TempDir,
    page: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let trouble = Trouble::default();
        let mut sink = Html::create(&dir.path().join("report"), &trouble).expect("a report");
        events().iter().for_each(|event| sink.event(event, &RunModel::default()));
        assert_eq!(trouble.first(), None);
        let page = dir.path().join("report/index.html");
        Bench { dir, page }
    }

    /// Starts the browser and gives what it prints; it has minutes, since machines are emulated
    /// beside it.
    fn browse(&self, page: &Path, more: &[&str]) -> String {
        let out = self.dir.path().join("out");
        let err = self.dir.path().join("err");
        let file = |path: &Path| fs::File::create(path).expect("a file");
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.args(["--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]);
        // It has nothing to ask of any network.
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.args(["--disable-sync", "--disable-quic", "--no-default-browser-check"]);
        command.arg(format!("--user-data-dir={}", self.dir.path().join("profile").display()));
        command.args(more).arg(format!("file://{}", page.display()));
        let mut browser =
            command.stdout(file(&out)).stderr(file(&err)).spawn().unwrap_or_else(|e| {
                panic!("chromium cannot be started, `make browser` installs it: {e}")
            });
        let until = Instant::now() + Duration::from_secs(240);
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).expect("it")).into_owned();
        loop {
            if let Some(status) = browser.try_wait().expect("a child") {
                assert!(status.success(), "chromium {more:?}: {status}\n{}", read(&err));
                return read(&out);
            }
            if Instant::now() > until {
                let _ = browser.kill();
                let _ = browser.wait();
                panic!("chromium {more:?} did not end in time\n{}", read(&err));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What there is to complain about in a window of that width.
    fn look(&self, width: u32, dark: bool) -> serde_json::Value {
        let page = fs::read_to_string(&self.page).expect("the page");
        let page = page.replace('&', "&amp;").replace('"', "&quot;");
        let script = include_str!("report/look.js");
        let frame = self.dir.path().join("frame.html");
        let text = format!(
            "<!DOCTYPE html><meta charset=\"utf-8\"><iframe id=\"page\" style=\"width:{width}px;\
             height:900px;border:0\" srcdoc=\"{page}\"></iframe><pre id=\"found\"></pre><script>{script}\n\
             const page = document.getElementById('page');\n\
             const told = () => document.getElementById('found').textContent = \
             JSON.stringify(look(page));\n\
             if (page.contentDocument.readyState === 'complete' && page.contentDocument.title) told();\n\
             else page.onload = told;</script>"
        );
        fs::write(&frame, text).expect("it can be written");
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
        let dom = self.browse(&frame, &["--window-size=1400,1000", &scheme, "--dump-dom"]);
        let found =
            dom.split("<pre id=\"found\">").nth(1).and_then(|rest| rest.split("</pre>").next());
        let found = found.unwrap_or_else(|| panic!("nothing was found in {dom}"));
        let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        serde_json::from_str(&found).unwrap_or_else(|e| panic!("{e}: {found}"))
    }
}

#[test]
fn everybody_can_read_the_page() {
    let bench = Bench::new();
    for (width, dark) in [(380, false), (380, true), (1100, false), (1100, true)] {
        let found = bench.look(width, dark);
        println!("{width} {dark}: {found}");
        assert_eq!((&found["width"], &found["dark"]), (&width.into(), &dark.into()));
        assert_eq!(found["wrong"], serde_json::json!([]), "in a window of {width}, dark {dark}");
        // It has looked at something: texts, trees and logs, and a chart and a timeline each.
        assert!(found["texts"].as_u64() > Some(300), "{found}");
        assert!(found["details"].as_u64() > Some(20), "{found}");
        assert_eq!(found["drawings"], 10, "{found}");
    }
}

#[test]
fn what_looks_finds_what_is_wrong() {
    let bench = Bench::new();
    let page = fs::read_to_string(&bench.page).expect("the page");
    let spoilt = page
        .replace("<main>", "<main><h4>deep</h4><p id=\"scenarios\" style=\"color:#bbb\">pale</p>")
        .replace("</main>", "<div style=\"width:2000px\">wide</div><svg></svg></main>");
    fs::write(&bench.page, spoilt).expect("it can be written");
    let found = bench.look(380, false);
    let wrong = found["wrong"].to_string();
    for part in
        ["skips a level", "comes twice", "a contrast of 1.", "wide in a window", "without words"]
    {
        assert!(wrong.contains(part), "{part:?} is not among {wrong}");
    }
}

#[test]
fn it_is_drawn_and_printed() {
    let bench = Bench::new();
    let blank = bench.dir.path().join("blank.html");
    fs::write(&blank, "<!DOCTYPE html><title>blank</title>").expect("it can be written");
    let mut shots = Vec::new();
    for (name, page) in [("one", &bench.page), ("two", &bench.page), ("blank", &blank)] {
        let shot = bench.dir.path().join(format!("{name}.png"));
        let to = format!("--screenshot={}", shot.display());
        bench.browse(page, &["--window-size=1100,3000", &to]);
        let bytes = fs::read(&shot).expect("a screenshot");
        assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
        shots.push(bytes);
    }
    assert!(shots[0] == shots[1], "it looks the same each time");
    assert!(shots[0].len() > 10 * shots[2].len(), "{} and {}", shots[0].len(), shots[2].len());
    let printed = bench.dir.path().join("page.pdf");
    bench.browse(&bench.page, &[&format!("--print-to-pdf={}", printed.display())]);
    let printed = fs::read(&printed).expect("a document");
    assert!(printed.starts_with(b"%PDF-") && printed.len() > 20_000, "{} bytes", printed.len());
    if let Some(dir) = std::env::var_os("CRYOSCOPE_KEEP_SHOTS") {
        fs::copy(&bench.page, Path::new(&dir).join("index.html")).expect("it can be kept");
    }
}
