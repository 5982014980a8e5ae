//! A run as JUnit XML, as CI services read it.
//!
//! A script is a `testsuite`, a scenario a `testcase`: Fail is a `failure`, Error an `error`, Skip and an
//! Inconclusive that is allowed are `skipped`, any other Inconclusive is a `failure` of the type
//! `inconclusive`, since such a run does not succeed. The file is written anew whenever a scenario
//! ends, whole or not at all.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Style;
use super::failure::{check, logs};
use super::files::Trouble;
use crate::scenario::event::{CellFinished, CellInfo, RunEvent, RunModel};
use crate::scenario::runner::Sink;
use crate::scenario::verdict::{Check, Outcome, Record};

/// Bytes of text that one scenario has in the file.
const TEXT: usize = 64 << 10;
/// Lines of each log.
const LOG_LINES: usize = 40;

/// Writes the file.
#[derive(Debug)]
pub struct Junit {
    path: PathBuf,
    trouble: Trouble,
    cells: Vec<Cell>,
}

#[derive(Debug)]
struct Cell {
    info: CellInfo,
    checks: Vec<Check>,
    said: String,
    end: Option<CellFinished>,
}

impl Cell {
    fn new(info: &CellInfo) -> Cell {
        Cell { info: info.clone(), checks: Vec::new(), said: String::new(), end: None }
    }

    fn say(&mut self, line: &str) {
        if self.said.len() < TEXT {
            self.said.push_str(line);
            self.said.push('\n');
        }
    }

    fn take(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Recorded { record: Record::Check(check), .. }
                if check.outcome > Outcome::Pass && self.checks.len() < 100 =>
            {
                self.checks.push(check.clone());
            }
            RunEvent::Recorded { record: Record::Note { text, .. }, .. } => {
                self.say(&format!("note: {text}"));
            }
            RunEvent::Recorded { record: Record::Print { text }, .. } => self.say(text),
            RunEvent::Recorded { record: Record::Plot(plot), .. } => {
                plot.text().iter().for_each(|line| self.say(line));
            }
            RunEvent::Sampled { report, .. } => self.say(&report.to_string()),
            RunEvent::Monitored { report, .. } => self.say(&report.to_string()),
            RunEvent::CellRetried { attempt, reason, .. } => {
                // What the attempt recorded is void.
                self.checks.clear();
                self.said.clear();
                self.say(&format!("attempt {attempt} was tried again: {reason}"));
            }
            RunEvent::CellFinished(end) => self.end = Some(end.clone()),
            _ => {}
        }
    }
}

impl Junit {
    /// Will write to `path`, which is made empty now, so that a place that cannot be written to is
    /// known at once.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn create(path: &Path, trouble: &Trouble) -> io::Result<Junit> {
        fs::write(path, document(&[]))?;
        Ok(Junit { path: path.to_owned(), trouble: trouble.clone(), cells: Vec::new() })
    }

    fn write(&self) {
        let part = self.path.with_extension("xml.part");
        let is_file = fs::metadata(&self.path).is_ok_and(|meta| meta.is_file());
        let text = document(&self.cells);
        let written = match is_file {
            true => fs::write(&part, text).and_then(|()| fs::rename(&part, &self.path)),
            // A pipe or the like.
            false => fs::write(&self.path, text),
        };
        if let Err(error) = written {
            let _ = fs::remove_file(&part);
            self.trouble.note_report(&self.path, &error);
        }
    }
}

impl Sink for Junit {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        match event {
            RunEvent::RunStarted { cells, .. } => {
                self.cells = cells.iter().map(Cell::new).collect()
            }
            _ => {
                if let Some(cell) = event.cell().and_then(|id| self.cells.get_mut(id)) {
                    cell.take(event);
                }
            }
        }
        let ends = matches!(
            event,
            RunEvent::RunStarted { .. } | RunEvent::CellFinished(..) | RunEvent::RunFinished { .. }
        );
        if ends && (fs::metadata(&self.path).is_ok_and(|m| m.is_file()) || event.cell().is_none()) {
            self.write();
        }
    }
}

/// All of it.
fn document(cells: &[Cell]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all: Vec<&Cell> = cells.iter().collect();
    let _ = writeln!(out, "<testsuites name=\"cryoscope\"{}>", Counts::of(&all).without_skips());
    let mut files: Vec<&Path> = cells.iter().map(|cell| cell.info.file.as_path()).collect();
    files.dedup();
    let mut seen: Vec<&Path> = Vec::new();
    for file in files {
        if seen.contains(&file) {
            continue;
        }
        seen.push(file);
        let own: Vec<&Cell> = cells.iter().filter(|cell| cell.info.file == file).collect();
        let counts = Counts::of(&own);
        let name = escaped(&file.display().to_string());
        let skipped = counts.skipped;
        let counts = counts.without_skips();
        let _ = writeln!(out, "  <testsuite name=\"{name}\"{counts} skipped=\"{skipped}\">");
        own.iter().for_each(|cell| testcase(&mut out, cell));
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    ms: u64,
}

impl Counts {
    fn of(cells: &[&Cell]) -> Counts {
        let count = |word: &str| cells.iter().filter(|cell| element(cell) == Some(word)).count();
        let times = cells.iter().filter_map(|cell| cell.end.as_ref()).map(|end| end.duration_ms);
        Counts {
            tests: cells.len(),
            failures: count("failure"),
            errors: count("error"),
            skipped: count("skipped"),
            ms: times.fold(0, u64::saturating_add),
        }
    }

    fn without_skips(&self) -> String {
        let Counts { tests, failures, errors, ms, .. } = self;
        let time = seconds(*ms);
        format!(" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{time}\"")
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// The element that says how a scenario ended; none for a Pass.
fn element(cell: &Cell) -> Option<&'static str> {
    let Some(end) = &cell.end else { return Some("skipped") };
    match end.verdict.outcome {
        Outcome::Pass => None,
        Outcome::Skip => Some("skipped"),
        Outcome::Inconclusive if end.verdict.allowed => Some("skipped"),
        Outcome::Inconclusive | Outcome::Fail => Some("failure"),
        Outcome::Error => Some("error"),
    }
}

fn testcase(out: &mut String, cell: &Cell) {
    let info = &cell.info;
    let class = info.file.file_stem().unwrap_or_default().to_string_lossy();
    let _ = write!(
        out,
        "    <testcase classname=\"{}\" name=\"{}\" file=\"{}\"",
        escaped(&class),
        escaped(&info.name),
        escaped(&info.file.display().to_string())
    );
    if let Some(end) = &cell.end {
        let (time, checks) = (seconds(end.duration_ms), end.verdict.counts.total());
        let _ = write!(out, " time=\"{time}\" assertions=\"{checks}\"");
    }
    out.push_str(">\n");
    if let Some(element) = element(cell) {
        let kind = cell.end.as_ref().map_or("not run", |end| end.verdict.outcome.word());
        let (message, text) = (message(cell), details(cell));
        let _ = writeln!(
            out,
            "      <{element} type=\"{kind}\" message=\"{}\">{}</{element}>",
            escaped(&message),
            escaped(&text)
        );
    }
    let mut said = cell.said.clone();
    let flaky = |end: &&CellFinished| end.failed_before > 0 && end.verdict.outcome < Outcome::Fail;
    if let Some(end) = cell.end.as_ref().filter(flaky) {
        let _ = writeln!(said, "it passed only on attempt {}", end.failed_before + 1);
    }
    if !said.is_empty() {
        let _ = writeln!(out, "      <system-out>{}</system-out>", escaped(cut(&said)));
    }
    out.push_str("    </testcase>\n");
}

/// The one line that says what went wrong.
fn message(cell: &Cell) -> String {
    let Some(end) = &cell.end else { return "it did not run to its end".to_owned() };
    if let Some(reason) = &end.verdict.reason {
        return reason.lines().next().unwrap_or_default().to_owned();
    }
    match cell.checks.iter().max_by_key(|check| check.outcome) {
        Some(worst) => match (&worst.message, &worst.found) {
            (Some(text), _) => {
                format!("{}: {}", worst.label, text.lines().next().unwrap_or_default())
            }
            (None, Some(found)) => {
                let expected = worst.expected.as_deref().unwrap_or_default();
                format!("{}: expected {expected}, found {found}", worst.label)
            }
            (None, None) => worst.label.clone(),
        },
        None => end.verdict.outcome.word().to_owned(),
    }
}

/// Every check that did not hold, as the terminal tells it, and the ends of the logs.
fn details(cell: &Cell) -> String {
    let style = Style::plain();
    let mut lines: Vec<String> =
        cell.checks.iter().flat_map(|failed| check(failed, style)).collect();
    if let Some(end) = &cell.end
        && end.verdict.outcome >= Outcome::Fail
    {
        lines.extend(logs(&end.logs, "", LOG_LINES, style));
    }
    cut(&lines.join("\n")).to_owned()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Text in XML; what XML has no way to say is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push('\t'),
            c if u32::from(c) < 0x20 || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::scenario::event::Logs;
    use crate::scenario::verdict::{Counts, ScriptPos, Verdict};
    use std::process::Command;

    pub(in crate::scenario::report) fn info(name: &str, file: &str) -> CellInfo {
        CellInfo {
            name: name.into(),
            file: file.into(),
            index: 0,
            kernel: "auto".into(),
            topology: "1n1l2c1t".into(),
            scheduler: "none".into(),
            tags: vec![],
            axes: vec![],
        }
    }

    pub(in crate::scenario::report) fn end(cell: usize, outcome: Outcome) -> RunEvent {
        RunEvent::CellFinished(CellFinished {
            cell,
            verdict: Verdict { outcome, reason: None, allowed: false, counts: Counts::default() },
            duration_ms: 1250,
            fault: None,
            failed_before: u32::from(outcome == Outcome::Pass && cell > 0),
            logs: Logs { scheduler: String::new(), console: "the <console>\u{1b}[0m".into() },
        })
    }

    /// A run with every outcome, and texts that XML and terminals stumble over.
    pub(in crate::scenario::report) fn run() -> Vec<RunEvent> {
        let names = ["passes", "fails & \"quotes\"", "errs", "skips", "is <inconclusive>", "flaky"];
        let file = |i: usize| if i < 3 { "a.rhai" } else { "dir/b & c.rhai" };
        let cells = names.iter().enumerate().map(|(i, name)| info(name, file(i))).collect();
        let mut events = vec![RunEvent::RunStarted { cryoscope: "0.1.0".into(), cells, jobs: 2 }];
        for cell in 0..names.len() {
            events.push(RunEvent::CellStarted { cell, attempt: 1, at_ms: 0 });
        }
        let at = ScriptPos {
            file: "a.rhai".into(),
            line: 7,
            column: 5,
            text: "    expect(x).eq(1); // <&>".into(),
        };
        let check = Check::fail("x, 100 %", "the counter\nstalls: a,b::c").at(Some(at));
        events.push(RunEvent::Recorded { cell: 1, record: Record::Check(check) });
        let note = Record::Note { text: "a \u{0}note ]]> \u{fffe}".into(), at: None };
        events.push(RunEvent::Recorded { cell: 1, record: note });
        let reason = "x: the counter stalls".to_owned();
        let outcome = Some(Outcome::Fail);
        events.push(RunEvent::CellRetried { cell: 5, attempt: 1, reason, outcome });
        events.push(RunEvent::CellStarted { cell: 5, attempt: 2, at_ms: 9 });
        use Outcome::{Error, Fail, Inconclusive, Pass, Skip};
        for (cell, outcome) in [Pass, Fail, Error, Skip, Inconclusive, Pass].into_iter().enumerate()
        {
            events.push(end(cell, outcome));
        }
        events.push(RunEvent::RunFinished {
            outcomes: [(Pass, 2), (Fail, 1), (Error, 1), (Skip, 1), (Inconclusive, 1)].into(),
            not_run: 0,
            interrupted: false,
            duration_ms: 5000,
            exit_code: 1,
        });
        events
    }

    #[test]
    fn the_file_is_what_the_schema_of_jenkins_says_at_every_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("junit.xml");
        let trouble = Trouble::default();
        let mut sink = Junit::create(&path, &trouble).unwrap();
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/junit/junit-10.xsd");
        for event in run() {
            sink.event(&event, &RunModel::default());
            let mut xmllint = Command::new("xmllint");
            xmllint.args(["--noout", "--schema"]).arg(&schema).arg(&path);
            let valid = xmllint.output().expect("xmllint can be run");
            assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stderr));
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(trouble.first(), None);
        let has = [
            "<testsuites name=\"cryoscope\" tests=\"6\" failures=\"2\" errors=\"1\" time=\"7.500\">",
            "<testsuite name=\"dir/b &amp; c.rhai\" tests=\"3\" failures=\"1\" errors=\"0\" \
             time=\"3.750\" skipped=\"1\">",
            "<testcase classname=\"a\" name=\"fails &amp; &quot;quotes&quot;\" file=\"a.rhai\" \
             time=\"1.250\" assertions=\"0\">",
            "<failure type=\"fail\" message=\"x, 100 %: the counter\">fail: x, 100 %",
            "--&gt; a.rhai:7:5",
            "<failure type=\"inconclusive\" message=\"inconclusive\">",
            "<skipped type=\"skip\" message=\"skip\">",
            "note: a note ]]&gt; ",
            "attempt 1 was tried again: x: the counter stalls&#10;it passed only on attempt 2",
        ];
        for part in has {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_known_at_once() {
        let error = Junit::create(Path::new("/nowhere/x.xml"), &Trouble::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
