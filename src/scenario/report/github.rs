//! What GitHub Actions shows of a run by itself: an annotation at the author's line for every scenario
//! that did not succeed, and a table in the step's summary.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::files::Trouble;
use crate::scenario::event::{CellInfo, RunEvent, RunModel};
use crate::scenario::runner::Sink;
use crate::scenario::text::seconds;
use crate::scenario::verdict::{Check, Outcome, Record, ScriptPos};

/// Bytes of the summary; GitHub takes a mebibyte for a step.
const SUMMARY: usize = 512 << 10;
/// Annotations; GitHub shows ten of a kind for a step.
const MOST: usize = 50;

/// Writes annotations to `out`, which a job's log is made of, and the summary to its file.
pub struct Github<W> {
    out: W,
    summary: Option<PathBuf>,
    trouble: Trouble,
    cells: Vec<(CellInfo, Option<Check>)>,
    rows: Vec<String>,
    told: usize,
}

impl<W: Write> Github<W> {
    /// Writes to `out`, and to the file that is named in `GITHUB_STEP_SUMMARY`.
    pub fn new(out: W, summary: Option<PathBuf>, trouble: &Trouble) -> Github<W> {
        let trouble = trouble.clone();
        Github { out, summary, trouble, cells: Vec::new(), rows: Vec::new(), told: 0 }
    }

    fn annotate(&mut self, kind: &str, at: Option<&ScriptPos>, title: &str, text: &str) {
        self.told += 1;
        if self.told > MOST {
            return;
        }
        let mut place = String::new();
        if let Some(at) = at {
            let file = property(&at.file.display().to_string());
            let _ = write!(place, "file={file},line={},", at.line);
        }
        let _ = writeln!(self.out, "::{kind} {place}title={}::{}", property(title), data(text));
    }

    fn ended(&mut self, id: usize, event: &RunEvent) {
        let RunEvent::CellFinished(end) = event else { return };
        let Some((info, worst)) = self.cells.get(id).cloned() else { return };
        let outcome = end.verdict.outcome;
        let mut what = outcome.word().to_owned();
        if end.failed_before > 0 {
            let _ = write!(what, " on attempt {}", end.failed_before + 1);
        }
        let why =
            end.verdict.reason.clone().or_else(|| worst.as_ref().map(said)).unwrap_or_default();
        let short: String = why.lines().next().unwrap_or_default().chars().take(200).collect();
        let why_of_row =
            if outcome > Outcome::Pass || outcome == Outcome::Skip { short } else { String::new() };
        self.rows.push(format!(
            "| {what} | {} | {} | {} |",
            cell(&info.name),
            seconds(end.duration_ms),
            cell(&why_of_row)
        ));
        let kind = match end.verdict.weight() {
            Outcome::Fail | Outcome::Error => "error",
            Outcome::Inconclusive => "warning",
            Outcome::Pass if end.failed_before > 0 => "warning",
            Outcome::Pass | Outcome::Skip => return,
        };
        let at = worst.as_ref().and_then(|check| check.at.clone()).or_else(|| {
            let (file, text) = (info.file.clone(), String::new());
            Some(ScriptPos { file, line: 1, column: 0, text })
        });
        let text = if why.is_empty() { what.clone() } else { why };
        self.annotate(kind, at.as_ref(), &format!("{}: {what}", info.name), &text);
    }

    fn finish(&mut self, event: &RunEvent) {
        let RunEvent::RunFinished { outcomes, not_run, duration_ms, interrupted, .. } = event
        else {
            return;
        };
        let Some(path) = &self.summary else { return };
        let mut parts: Vec<String> =
            outcomes.iter().rev().map(|(outcome, n)| format!("{n} {outcome}")).collect();
        if *not_run > 0 {
            parts.push(format!("{not_run} not run"));
        }
        let interrupted = if *interrupted { " (interrupted)" } else { "" };
        let mut text = format!(
            "### cryoscope: {} in {}{interrupted}\n\n| | scenario | time | why |\n|---|---|---|---|\n",
            parts.join(", "),
            seconds(*duration_ms)
        );
        for (i, row) in self.rows.iter().enumerate() {
            if text.len() + row.len() > SUMMARY {
                let _ = writeln!(text, "\nand {} more", self.rows.len() - i);
                break;
            }
            text.push_str(row);
            text.push('\n');
        }
        text.push('\n');
        let file = OpenOptions::new().append(true).create(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            self.trouble.note_report(path, &error);
        }
    }
}

impl<W: Write> Sink for Github<W> {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        if let RunEvent::RunStarted { cells, .. } = event {
            self.cells = cells.iter().map(|info| (info.clone(), None)).collect();
        }
        self.finish(event);
        let Some(id) = event.cell() else { return };
        if let Some((_, worst)) = self.cells.get_mut(id) {
            match event {
                RunEvent::Recorded { record: Record::Check(check), .. } => {
                    let before = worst.as_ref().map_or(Outcome::Pass, |check| check.outcome);
                    if check.outcome > before {
                        *worst = Some(check.clone());
                    }
                }
                RunEvent::CellRetried { .. } => *worst = None,
                _ => {}
            }
        }
        self.ended(id, event);
    }
}

/// What a check found, in words.
fn said(check: &Check) -> String {
    let mut text = check.label.clone();
    for (word, part) in
        [(": ", &check.message), (": expected ", &check.expected), (", found ", &check.found)]
    {
        if let Some(part) = part {
            text.push_str(word);
            text.push_str(part);
        }
    }
    text
}

/// Text behind `::`.
fn data(text: &str) -> String {
    let text: String = text.chars().take(4000).collect();
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Text of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text in a table of Markdown, which shows as it is.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '|' | '\\' | '`' | '*' | '_' | '<' | '>' | '[' | ']' | '&' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::junit::tests::run;
    use super::*;

    #[test]
    fn what_did_not_succeed_is_annotated_and_all_of_it_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.md");
        std::fs::write(&path, "before\n").unwrap();
        let mut out = Vec::new();
        {
            let mut sink = Github::new(&mut out, Some(path.clone()), &Trouble::default());
            run().iter().for_each(|event| sink.event(event, &RunModel::default()));
        }
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            out.lines().collect::<Vec<_>>(),
            [
                "::error file=a.rhai,line=7,title=fails & \"quotes\"%3A fail::x, 100 %25: the \
                 counter%0Astalls: a,b::c",
                "::error file=a.rhai,line=1,title=errs%3A error::error",
                "::warning file=dir/b & c.rhai,line=1,title=is <inconclusive>%3A \
                 inconclusive::inconclusive",
                "::warning file=dir/b & c.rhai,line=1,title=flaky%3A pass on attempt 2::pass on \
                 attempt 2",
            ]
        );
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("before\n### cryoscope: 1 error, 1 fail, 1 inconclusive, "),
            "{text}"
        );
        assert!(
            text.contains("\n| fail | fails &#38; \"quotes\" | 1.2 s | x, 100 %: the counter |\n"),
            "{text}"
        );
        assert!(text.contains("\n| pass on attempt 2 | flaky |"), "{text}");
    }

    #[test]
    fn the_summary_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("summary.md");
        let mut sink = Github::new(Vec::new(), Some(path.clone()), &Trouble::default());
        sink.rows = vec!["x".repeat(1000); 2000];
        let events = run();
        sink.finish(events.last().unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < SUMMARY + 2000 && text.contains("\nand "), "{}", text.len());
    }
}
