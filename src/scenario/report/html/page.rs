//! The page itself. It is static, reads without a script, and whatever a guest or a script said
//! goes through [`text`], which cuts and escapes it.

use std::fmt::Write as _;

use super::super::matrix::{Matrix, matrices};
use super::chart::chart;
use super::timeline::timeline;
use super::tree::tree;
use super::{Cell, Known, MARK, What};
use crate::scenario::event::RunEvent;
use crate::scenario::text::clean;
use crate::scenario::verdict::{Check, Outcome, Record};

/// Characters of a text that are shown.
const SHOWN: usize = 4000;
/// Characters of a log that are shown: its end.
const SHOWN_LOG: usize = 64_000;

const STYLE: &str = include_str!("style.css");

/// A text as HTML: control sequences gone, cut, escaped.
pub(super) fn text(raw: &str) -> String {
    let cleaned = clean(raw);
    let mut out = String::new();
    for (i, c) in cleaned.chars().enumerate() {
        if i == SHOWN {
            out.push_str(" … (cut)");
            break;
        }
        escape(c, &mut out);
    }
    out
}

fn escape(c: char, out: &mut String) {
    match c {
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '&' => out.push_str("&amp;"),
        '"' => out.push_str("&quot;"),
        '\'' => out.push_str("&#39;"),
        '\n' | '\t' => out.push(c),
        // Direction overrides would let a text rearrange what stands around it.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
        c if c.is_control() => out.push('\u{fffd}'),
        c => out.push(c),
    }
}

/// An outcome by shape and word, so that colour adds nothing that is not said.
fn badge(outcome: Outcome) -> String {
    let shape = match outcome {
        Outcome::Pass => '✓',
        Outcome::Fail => '✗',
        Outcome::Error => '!',
        Outcome::Inconclusive => '?',
        Outcome::Skip => '–',
    };
    let word = outcome.word();
    format!("<span class=\"o {word}\"><span aria-hidden=\"true\">{shape}</span> {word}</span>")
}

#[allow(clippy::cast_precision_loss)]
pub(super) fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1000.0)
}

/// The whole page.
pub(super) fn page(known: &Known) -> String {
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n");
    out.push_str("<meta charset=\"utf-8\">\n");
    out.push_str(MARK);
    out.push_str("\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = write!(out, "<title>cryoscope: {}</title>\n<style>{STYLE}</style>\n", title(known));
    out.push_str("</head>\n<body>\n");
    out.push_str("<a class=\"jump\" href=\"#scenarios\">Skip to the scenarios</a>\n");
    head(known, &mut out);
    out.push_str("<main>\n");
    table(known, &mut out);
    grids(known, &mut out);
    out.push_str("<div id=\"scenarios\">\n");
    for (id, cell) in known.cells.iter().enumerate() {
        scenario(id, cell, &mut out);
    }
    out.push_str("</div>\n</main>\n</body>\n</html>\n");
    out
}

fn title(known: &Known) -> String {
    match &known.end {
        Some(RunEvent::RunFinished { interrupted: true, .. }) => "interrupted run".into(),
        Some(RunEvent::RunFinished { exit_code, .. }) => format!("run, exit code {exit_code}"),
        _ => "run that has not ended".into(),
    }
}

fn head(known: &Known, out: &mut String) {
    let _ = write!(out, "<header>\n<h1>cryoscope: {}</h1>\n<dl class=\"facts\">\n", title(known));
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    fact("Version", &text(&known.version));
    fact("Started", &utc(known.started));
    fact("Scenarios", &known.cells.len().to_string());
    if let Some(RunEvent::RunFinished { outcomes, not_run, duration_ms, exit_code, .. }) =
        &known.end
    {
        for (outcome, count) in outcomes {
            fact(&badge(*outcome), &count.to_string());
        }
        if *not_run > 0 {
            fact("Not run", &not_run.to_string());
        }
        fact("Took", &seconds(*duration_ms));
        fact("Exit code", &exit_code.to_string());
    }
    out.push_str("</dl>\n</header>\n");
}

/// Seconds since 1970 as a date and time, by the civil-from-days algorithm.
pub(super) fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn table(known: &Known, out: &mut String) {
    out.push_str(
        "<section>\n<h2>Verdicts</h2>\n<div class=\"wide\" tabindex=\"0\" \
                  role=\"region\" aria-label=\"Verdicts\">\n<table>\n<thead><tr>",
    );
    for name in ["Outcome", "Scenario", "Kernel", "Topology", "Scheduler", "Checks", "Took"] {
        let _ = write!(out, "<th scope=\"col\">{name}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (id, cell) in known.cells.iter().enumerate() {
        let (checks, took) = cell.end.as_ref().map_or_else(Default::default, |end| {
            let counts = &end.verdict.counts;
            (format!("{} of {}", counts.pass, counts.total()), seconds(end.duration_ms))
        });
        let _ = writeln!(
            out,
            "<tr><td>{}</td><th scope=\"row\"><a href=\"#cell-{id}\">{}</a></th><td>{}</td>\
             <td>{}</td><td>{}</td><td>{checks}</td><td>{took}</td></tr>",
            outcome(cell),
            text(&cell.info.name),
            text(&cell.info.kernel),
            text(&cell.info.topology),
            text(&cell.info.scheduler),
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

/// A grid for each declaration with a matrix of several axes: the last one across, all others down.
fn grids(known: &Known, out: &mut String) {
    let cells = known.cells.iter().enumerate().map(|(id, cell)| (&cell.info, (id, cell)));
    matrices(cells).iter().filter(|matrix| matrix.axes() > 1).for_each(|matrix| grid(matrix, out));
}

fn grid(matrix: &Matrix<'_, (usize, &Cell)>, out: &mut String) {
    let name = text(matrix.name);
    let _ = write!(
        out,
        "<section>\n<h2>{name}: the matrix</h2>\n<div class=\"wide\" tabindex=\"0\" role=\"region\" \
         aria-label=\"{name}: the matrix\">\n<table>\n<thead><tr><td></td>"
    );
    for column in matrix.columns() {
        let _ = write!(out, "<th scope=\"col\">{}</th>", text(column));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (row, cells) in matrix.rows() {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", text(&row));
        for cell in cells {
            match cell {
                Some((id, cell)) => {
                    let _ = write!(out, "<td><a href=\"#cell-{id}\">{}</a></td>", outcome(cell));
                }
                None => out.push_str("<td></td>"),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

fn outcome(cell: &Cell) -> String {
    match (&cell.end, cell.attempt) {
        (Some(end), _) => badge(end.verdict.outcome),
        (None, 0) => "not run".into(),
        (None, _) => "not finished".into(),
    }
}

fn scenario(id: usize, cell: &Cell, out: &mut String) {
    let name = text(&cell.info.name);
    let _ = write!(
        out,
        "<section class=\"cell\" id=\"cell-{id}\" aria-labelledby=\"name-{id}\">\n\
         <h2 id=\"name-{id}\">{} {name}</h2>\n<p class=\"dim\">{}</p>\n",
        outcome(cell),
        text(&cell.info.file.to_string_lossy()),
    );
    if let Some(reason) = cell.end.as_ref().and_then(|end| end.verdict.reason.as_ref()) {
        let _ = writeln!(out, "<p>{}</p>", text(reason));
    }
    for (attempt, reason) in &cell.retries {
        let _ = writeln!(out, "<p>Attempt {attempt} was tried again: {}</p>", text(reason));
    }
    records(id, cell, out);
    if cell.left_out > 0 {
        let _ = writeln!(out, "<p>{} further entries are left out here.</p>", cell.left_out);
    }
    timeline(id, cell, out);
    if !cell.trees.is_empty() {
        out.push_str("<h3>Snapshots</h3>\n");
        cell.trees.iter().for_each(|(tag, dump)| tree(tag, dump, out));
    }
    if let Some(end) = &cell.end {
        log("Scheduler's log, its end", &end.logs.scheduler, out);
        log("Console, its end", &end.logs.console, out);
    }
    out.push_str("</section>\n");
}

fn records(id: usize, cell: &Cell, out: &mut String) {
    if cell.records.is_empty() {
        return;
    }
    let phase = |moment: &'_ super::Moment| match &moment.what {
        What::Phase(name) => Some((moment.elapsed_ms, name.clone())),
        _ => None,
    };
    let phases: Vec<(u64, String)> = cell.moments.iter().filter_map(phase).collect();
    let phases: Vec<(u64, &str)> = phases.iter().map(|(at, name)| (*at, name.as_str())).collect();
    let frozen = cell.moments.iter().filter(|m| matches!(m.what, What::Frozen { .. }));
    let freezes: Vec<u64> = frozen.map(|moment| moment.elapsed_ms).collect();
    out.push_str("<h3>Checks and notes</h3>\n<ul class=\"records\">\n");
    for (i, record) in cell.records.iter().enumerate() {
        match record {
            Record::Plot(plot) => {
                out.push_str("<li class=\"drawn\">");
                chart(&format!("plot-{id}-{i}"), plot, &phases, &freezes, out);
                out.push_str("</li>\n");
            }
            Record::Check(c) => check(c, out),
            Record::Note { text: t, .. } => {
                let _ = writeln!(out, "<li>note: {}</li>", text(t));
            }
            Record::Skip { reason, .. } => {
                let _ = writeln!(out, "<li>skip: {}</li>", text(reason));
            }
            Record::Print { text: t } => {
                let _ = writeln!(out, "<li><pre>{}</pre></li>", text(t));
            }
        }
    }
    out.push_str("</ul>\n");
}

fn check(check: &Check, out: &mut String) {
    let _ = write!(out, "<li>{} <b>{}</b>", badge(check.outcome), text(&check.label));
    if let Some(message) = &check.message {
        let _ = write!(out, "<pre>{}</pre>", text(message));
    }
    let parts = [("expected", &check.expected), ("found", &check.found), ("from", &check.origin)];
    if parts.iter().any(|(_, value)| value.is_some()) {
        out.push_str("<dl>");
        for (name, value) in parts {
            if let Some(value) = value {
                let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", text(value));
            }
        }
        out.push_str("</dl>");
    }
    if let Some(at) = &check.at {
        let _ = write!(out, "<pre>{}\n{}</pre>", text(&at.to_string()), text(&at.text));
    }
    out.push_str("</li>\n");
}

fn log(name: &str, log: &str, out: &mut String) {
    let cleaned = clean(log);
    if cleaned.trim().is_empty() {
        return;
    }
    let skip = cleaned.chars().count().saturating_sub(SHOWN_LOG);
    let _ = write!(out, "<details><summary>{name}</summary><pre>");
    cleaned.chars().skip(skip).for_each(|c| escape(c, out));
    out.push_str("</pre></details>\n");
}
