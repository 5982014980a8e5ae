//! The report for people: a line per scenario as it ends, what went wrong under it, a summary.

use std::io::Write;
use std::time::Instant;

use super::failure::{block, check, colour_of, indented, logs, one_line, place};
use super::{Colour, Style, grid};
use crate::scenario::event::{CellFinished, CellInfo, CellState, RunEvent, RunModel, Stage};
use crate::scenario::runner::Sink;
use crate::scenario::text::{clean, fit, seconds};
use crate::scenario::verdict::{Check, Outcome, Record, ScriptPos, Verdict, plural};

/// Writes the report. A writer that fails (a closed pipe) is left alone from then on.
pub struct Terminal<W> {
    out: W,
    style: Style,
    started: Instant,
    cells: Vec<Cell>,
    /// Whether a live line stands at the bottom.
    live: bool,
    closed: bool,
}

struct Cell {
    info: CellInfo,
    stage: Stage,
    detail: String,
    since: Instant,
    said: Vec<Said>,
    outcome: Option<Outcome>,
}

impl Cell {
    /// Its name, as much of it as fits, and what it does.
    fn now(&self, width: usize) -> String {
        let doing = match (self.stage, self.detail.as_str()) {
            (Stage::Run, phase) if !phase.is_empty() => format!("run ({phase})"),
            (Stage::Kernel, step) if !step.is_empty() => step.to_string(),
            (stage, _) => stage.word().to_string(),
        };
        let doing = format!(": {doing} {}", seconds(millis(self.since)));
        let room = width.saturating_sub(doing.chars().count()).max(8);
        fit(&format!("{}{doing}", fit(&one_line(&self.info.name), room)), width)
    }
}

enum Said {
    Print(String),
    Note(String, Option<ScriptPos>),
    Check(Check),
    Retry(u32, String, Option<Outcome>),
    /// What came of samples, or of the monitor.
    Came(String),
}

impl<W: Write> Terminal<W> {
    /// A report to `out`.
    pub fn new(out: W, style: Style) -> Self {
        let started = Instant::now();
        Terminal { out, style, started, cells: Vec::new(), live: false, closed: false }
    }

    fn write(&mut self, text: &str) {
        if self.closed {
            return;
        }
        let erase = if std::mem::take(&mut self.live) { "\r\x1b[K" } else { "" };
        let written = write!(self.out, "{erase}{text}").and_then(|()| self.out.flush());
        self.closed = written.is_err();
    }

    fn lines(&mut self, lines: &[String]) {
        let mut text = lines.join("\n");
        text.push('\n');
        self.write(&text);
    }

    fn begin(&mut self, cells: &[CellInfo], jobs: usize) {
        let new = |info: &CellInfo| Cell {
            info: info.clone(),
            stage: Stage::Kernel,
            detail: String::new(),
            since: Instant::now(),
            said: Vec::new(),
            outcome: None,
        };
        self.cells = cells.iter().map(new).collect();
        let at_a_time = if jobs > 1 { format!(", {jobs} at a time") } else { String::new() };
        let what = plural(cells.len() as u64, "scenario");
        self.lines(&[format!("cryoscope {}: {what}{at_a_time}", env!("CARGO_PKG_VERSION"))]);
    }

    /// Where something happens, with the file only where there are several.
    fn name(&self, info: &CellInfo) -> String {
        let several = self.cells.iter().any(|cell| cell.info.file != info.file);
        let name = one_line(&info.name);
        if several { format!("{}: {name}", one_line(&info.file.to_string_lossy())) } else { name }
    }

    fn head(&self, word: &str, colour: Colour, time: &str, rest: &str) -> String {
        format!("{} {time:>9}  {rest}", self.style.paint(colour, &format!("{word:>12}")))
    }

    fn cell_event(&mut self, id: usize, event: &RunEvent) {
        let Some(cell) = self.cells.get_mut(id) else { return };
        match event {
            RunEvent::CellStarted { attempt, .. } => {
                cell.stage = Stage::Kernel;
                cell.detail.clear();
                cell.since = Instant::now();
                if !self.style.live && *attempt == 1 {
                    let line =
                        self.head("start", Colour::Dim, "", &self.name(&self.cells[id].info));
                    self.lines(&[line]);
                }
            }
            RunEvent::Stage { stage, detail, .. } => {
                if cell.stage != *stage {
                    cell.since = Instant::now();
                }
                cell.stage = *stage;
                cell.detail = one_line(detail);
            }
            RunEvent::Phase { name, .. } => cell.detail = one_line(name),
            RunEvent::Sampled { report, .. } => cell.said.push(Said::Came(report.to_string())),
            RunEvent::Monitored { report, .. } => cell.said.push(Said::Came(report.to_string())),
            RunEvent::Recorded { record, .. } => cell.said.extend(said(record)),
            RunEvent::CellRetried { attempt, reason, outcome, .. } => {
                // What that attempt recorded is void.
                cell.said.retain(|said| matches!(said, Said::Retry(..)));
                cell.said.push(Said::Retry(*attempt, reason.clone(), *outcome));
            }
            RunEvent::CellFinished(end) => self.finish(id, end),
            _ => {}
        }
    }

    fn finish(&mut self, id: usize, end: &CellFinished) {
        let style = self.style;
        let outcome = end.verdict.outcome;
        self.cells[id].outcome = Some(outcome);
        let said = std::mem::take(&mut self.cells[id].said);
        let name = self.name(&self.cells[id].info);
        let mut rest = name;
        if end.verdict.allowed && outcome == Outcome::Inconclusive {
            rest.push_str(" (allowed)");
        }
        if end.failed_before > 0 && outcome < Outcome::Fail {
            rest.push_str(&format!(" (only on attempt {})", end.failed_before + 1));
        }
        let word = outcome.word().to_uppercase();
        let mut out = vec![self.head(&word, colour_of(outcome), &seconds(end.duration_ms), &rest)];
        out.extend(body(&said, &end.verdict, style));
        if matches!(outcome, Outcome::Fail | Outcome::Error) {
            // A machine that broke says more on its console than one that worked.
            let lines = if outcome == Outcome::Error { 20 } else { 8 };
            let quoted: String = said.iter().filter_map(Said::message).collect();
            let logs = logs(&end.logs, &quoted, lines, style);
            out.extend(logs.iter().map(|line| format!("    {line}")));
            out.push(String::new());
        }
        self.lines(&out);
    }

    fn summary(&mut self, event: &RunEvent) {
        let RunEvent::RunFinished { outcomes, not_run, interrupted, duration_ms, .. } = event
        else {
            return;
        };
        let mut parts = Vec::new();
        for (outcome, word) in [
            (Outcome::Pass, "passed"),
            (Outcome::Fail, "failed"),
            (Outcome::Error, "in error"),
            (Outcome::Inconclusive, "inconclusive"),
            (Outcome::Skip, "skipped"),
        ] {
            if let Some(n) = outcomes.get(&outcome).filter(|n| **n > 0) {
                parts.push(self.style.paint(colour_of(outcome), &format!("{n} {word}")));
            }
        }
        if *not_run > 0 {
            parts.push(format!("{not_run} not run"));
        }
        let mut out = Vec::new();
        let bad: Vec<_> = self.cells.iter().filter(|c| c.outcome > Some(Outcome::Pass)).collect();
        if self.cells.len() > 1 {
            for cell in bad {
                let outcome = cell.outcome.unwrap_or(Outcome::Error);
                let word = self.style.paint(colour_of(outcome), &format!("{outcome:>12}"));
                let (file, line) = (cell.info.file.to_string_lossy(), one_line(&cell.info.name));
                out.push(format!("{word}  {}: {line}", one_line(&file)));
            }
        }
        let judged: Vec<_> = self.cells.iter().map(|cell| (&cell.info, cell.outcome)).collect();
        for line in grid::grids(&judged, self.style.width) {
            let painted = line.into_iter().map(|(word, outcome)| match outcome {
                Some(outcome) => self.style.paint(colour_of(outcome), &word),
                None => word,
            });
            out.push(painted.collect());
        }
        let interrupted = if *interrupted { "interrupted: " } else { "" };
        let parts = if parts.is_empty() { "nothing ran".to_string() } else { parts.join(", ") };
        out.push(format!("{interrupted}{parts} in {}", seconds(*duration_ms)));
        self.lines(&out);
    }

    /// What goes on, on one line that fits: `[2/6] 12.1 s  counters adv…: boot 2.1 s | hash: ..`.
    fn live_line(&self, model: &RunModel) -> String {
        let states = model.cells();
        let done = states.iter().filter(|s| matches!(s, CellState::Finished(_))).count();
        let head = format!("[{done}/{}] {:>7}  ", states.len(), seconds(millis(self.started)));
        let running: Vec<&Cell> = states
            .iter()
            .zip(&self.cells)
            .filter(|(state, _)| matches!(state, CellState::Running(_)))
            .map(|(_, cell)| cell)
            .collect();
        // Below this a cell cannot be told from another.
        let least = 24;
        let room = (self.style.width - 1).saturating_sub(head.chars().count());
        let shown = running.len().min((room / least).max(1));
        let each = ((room + 3) / shown.max(1)).saturating_sub(3);
        let cells: Vec<String> = running[..shown].iter().map(|cell| cell.now(each)).collect();
        let more = match running.len() - shown {
            0 => String::new(),
            n => format!(" +{n}"),
        };
        fit(&format!("{head}{}{more}", cells.join(" | ")), self.style.width - 1)
    }

    fn draw(&mut self, model: &RunModel) {
        if self.style.live && !self.closed {
            let line = self.live_line(model);
            let line = self.style.paint(Colour::Dim, &line);
            let written = write!(self.out, "\r\x1b[K{line}").and_then(|()| self.out.flush());
            self.live = true;
            self.closed = written.is_err();
        }
    }
}

impl<W: Write> Sink for Terminal<W> {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        match (event, event.cell()) {
            (RunEvent::RunStarted { cells, jobs, .. }, _) => self.begin(cells, *jobs),
            (RunEvent::RunFinished { .. }, _) => self.summary(event),
            (_, Some(id)) => self.cell_event(id, event),
            _ => {}
        }
    }

    fn tick(&mut self, model: &RunModel) {
        self.draw(model);
    }
}

impl Said {
    /// The explanation of a check.
    fn message(&self) -> Option<String> {
        match self {
            Said::Check(check) => check.message.as_deref().map(clean),
            _ => None,
        }
    }
}

/// What is worth showing of a record.
fn said(record: &Record) -> Option<Said> {
    match record {
        Record::Check(check) if check.outcome > Outcome::Pass => Some(Said::Check(check.clone())),
        // A skip's reason comes with the verdict.
        Record::Check(_) | Record::Skip { .. } => None,
        Record::Note { text, at } => Some(Said::Note(text.clone(), at.clone())),
        Record::Print { text } => Some(Said::Print(text.clone())),
        Record::Plot(plot) => Some(Said::Print(plot.text().join("\n"))),
    }
}

/// Everything under a scenario's line but the logs.
fn body(said: &[Said], verdict: &Verdict, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    let mut part = |lines: &[String]| out.extend(lines.iter().map(|l| format!("    {l}")));
    for said in said {
        match said {
            Said::Print(text) => {
                let bar = style.paint(Colour::Dim, "│");
                let lines: Vec<_> = clean(text).lines().map(|l| format!("{bar} {l}")).collect();
                part(&lines);
            }
            Said::Note(text, at) => {
                let lines = block(text, style);
                let mut note = vec![format!("note: {}", lines.first().map_or("", String::as_str))];
                note.extend(indented(lines.get(1..).unwrap_or_default()));
                if verdict.outcome > Outcome::Pass {
                    note.extend(at.iter().flat_map(|at| place(at, style)));
                }
                part(&note);
            }
            Said::Check(failed) => part(&check(failed, style)),
            Said::Came(text) => part(std::slice::from_ref(text)),
            Said::Retry(attempt, reason, outcome) => {
                let ended = match outcome {
                    None => "ended in a fault of the engine",
                    Some(Outcome::Error) => "was in error",
                    Some(_) => "failed",
                };
                let reason = one_line(reason);
                part(&[format!("note: attempt {attempt} {ended}, tried again: {reason}")]);
            }
        }
    }
    if let Some(reason) = &verdict.reason {
        let lines = block(reason, style);
        let word = style.paint(colour_of(verdict.outcome), verdict.outcome.word());
        let mut whole = vec![format!("{word}: {}", lines.first().map_or("", String::as_str))];
        whole.extend(indented(lines.get(1..).unwrap_or_default()));
        part(&whole);
    }
    out
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::event::Logs;
    use crate::scenario::monitor::MonitorReport;
    use crate::scenario::samples::SampleReport;
    use crate::scenario::verdict::Counts;
    use std::collections::BTreeMap;

    fn info(index: usize, file: &str) -> CellInfo {
        CellInfo {
            name: format!("scenario {index}"),
            file: file.into(),
            index,
            kernel: "auto".into(),
            topology: "1n1l2c1t".into(),
            scheduler: "none".into(),
            tags: vec![],
            axes: vec![],
        }
    }

    fn end(cell: usize, outcome: Outcome, reason: Option<&str>) -> RunEvent {
        let verdict = Verdict {
            outcome,
            reason: reason.map(Into::into),
            allowed: false,
            counts: Counts::default(),
        };
        let logs = Logs { scheduler: "loaded\n".into(), console: "\x1b[2Jboot\r\noops\r\n".into() };
        RunEvent::CellFinished(CellFinished {
            cell,
            verdict,
            duration_ms: 6_200,
            fault: None,
            failed_before: 0,
            logs,
        })
    }

    fn recorded(cell: usize, record: Record) -> RunEvent {
        RunEvent::Recorded { cell, record }
    }

    fn start(cell: usize, attempt: u32) -> RunEvent {
        RunEvent::CellStarted { cell, attempt, at_ms: 0 }
    }

    fn over(outcomes: &[(Outcome, usize)], not_run: usize) -> RunEvent {
        RunEvent::RunFinished {
            outcomes: outcomes.iter().copied().collect::<BTreeMap<_, _>>(),
            not_run,
            interrupted: not_run > 0,
            duration_ms: 31_200,
            exit_code: 0,
        }
    }

    fn report(style: Style, files: &[&str], events: &[RunEvent]) -> String {
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out, style);
        let mut model = RunModel::default();
        let cells = files.iter().enumerate().map(|(i, f)| info(i, f)).collect();
        let first = RunEvent::RunStarted { cryoscope: "1".into(), cells, jobs: 1 };
        for event in std::iter::once(&first).chain(events) {
            model.apply(event).unwrap();
            terminal.event(event, &model);
            terminal.tick(&model);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        let failed = Check::fail("enough", "too few").compared("4", "3");
        let text = report(
            Style::plain(),
            &["a.rhai", "a.rhai", "b.rhai"],
            &[
                start(0, 1),
                recorded(0, Record::Check(Check::pass("fine"))),
                recorded(0, Record::Print { text: "hello\x1b[31m there".into() }),
                end(0, Outcome::Pass, None),
                start(1, 1),
                recorded(1, Record::Check(failed)),
                recorded(1, Record::Note { text: "odd".into(), at: None }),
                end(1, Outcome::Fail, None),
                start(2, 1),
                end(2, Outcome::Skip, Some("needs two nodes")),
                over(&[(Outcome::Pass, 1), (Outcome::Fail, 1), (Outcome::Skip, 1)], 0),
            ],
        );
        let want = "\
cryoscope 0.1.0: 3 scenarios
       start            a.rhai: scenario 0
        PASS     6.2 s  a.rhai: scenario 0
    │ hello there
       start            a.rhai: scenario 1
        FAIL     6.2 s  a.rhai: scenario 1
    fail: enough
      too few
      expected: 4
         found: 3
    note: odd
    end of the scheduler's log:
    │ loaded
    end of the console:
    │ boot
    │ oops

       start            b.rhai: scenario 2
        SKIP     6.2 s  b.rhai: scenario 2
    skip: needs two nodes
        fail  a.rhai: scenario 1
1 passed, 1 failed, 1 skipped in 31.2 s
";
        assert_eq!(text, want, "{text}");
    }

    #[test]
    fn a_retried_attempt_is_void_but_noted() {
        let retried = RunEvent::CellRetried {
            cell: 0,
            attempt: 1,
            reason: "QEMU died".into(),
            outcome: None,
        };
        let text = report(
            Style::plain(),
            &["a.rhai"],
            &[
                start(0, 1),
                recorded(0, Record::Check(Check::error("machine", "gone"))),
                retried,
                start(0, 2),
                end(0, Outcome::Pass, None),
                over(&[(Outcome::Pass, 1)], 0),
            ],
        );
        assert!(!text.contains("gone"), "{text}");
        assert!(
            text.contains(
                "note: attempt 1 ended in a fault of the engine, tried again: QEMU died\n"
            ),
            "{text}"
        );
        assert!(text.contains("        PASS     6.2 s  scenario 0\n"), "one file: no file name");
    }

    #[test]
    fn an_interrupted_run_says_so() {
        let text = report(
            Style::plain(),
            &["a.rhai", "a.rhai"],
            &[
                start(0, 1),
                end(0, Outcome::Error, Some("interrupted")),
                over(&[(Outcome::Error, 1)], 1),
            ],
        );
        assert!(text.ends_with("interrupted: 1 in error, 1 not run in 31.2 s\n"), "{text}");
    }

    #[test]
    fn a_terminal_gets_one_line_that_is_drawn_again() {
        let style = Style { colour: false, live: true, width: 40 };
        let stage = RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: "7.2".into() };
        let text = report(
            style,
            &["a.rhai"],
            &[start(0, 1), stage, end(0, Outcome::Pass, None), over(&[(Outcome::Pass, 1)], 0)],
        );
        assert!(!text.contains("       start"), "{text:?}");
        let drawn: Vec<&str> = text.split("\r\x1b[K").collect();
        assert!(drawn.iter().any(|l| l.starts_with("[0/1]") && l.contains("scenario 0: boot 0.0")));
        for line in drawn.iter().filter(|line| line.starts_with('[')) {
            assert!(line.chars().count() < 40, "{line:?}");
        }
        assert!(text.contains("\r\x1b[K        PASS     6.2 s  scenario 0\n"), "{text:?}");
    }

    #[test]
    fn a_closed_pipe_is_left_alone() {
        struct Closed(usize);
        impl Write for &mut Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                self.0 += 1;
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut closed = Closed(0);
        let mut terminal = Terminal::new(&mut closed, Style::plain());
        let event = RunEvent::RunStarted { cryoscope: "1".into(), cells: vec![], jobs: 1 };
        terminal.event(&event, &RunModel::default());
        terminal.event(&event, &RunModel::default());
        drop(terminal);
        assert_eq!(closed.0, 1);
    }

    #[test]
    fn what_came_of_samples_is_a_line_and_void_with_its_attempt() {
        let report = |fired| RunEvent::Sampled {
            cell: 0,
            report: SampleReport { planned: Some(8), fired, ..SampleReport::default() },
        };
        let retried = RunEvent::CellRetried {
            cell: 0,
            attempt: 1,
            reason: "QEMU died".to_owned(),
            outcome: None,
        };
        let cells = vec![info(0, "a.rhai")];
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out, Style::plain());
        let model = RunModel::default();
        let run = RunEvent::RunStarted { cryoscope: "0.1.0".into(), cells, jobs: 1 };
        let monitored = RunEvent::Monitored {
            cell: 0,
            report: MonitorReport { readings: 7, ..MonitorReport::default() },
        };
        let finished = end(0, Outcome::Pass, None);
        for event in [run, report(3), retried, report(8), monitored, finished] {
            terminal.event(&event, &model);
        }
        drop(terminal);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\n    8 of 8 samples taken, at most 0.00 s late\n"), "{text}");
        assert!(text.contains("\n    monitor: 7 readings\n"), "{text}");
        assert!(!text.contains("3 of 8"), "{text}");
    }
}
