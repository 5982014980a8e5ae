//! What happened when: phases, freezes, schedulers that were changed and their death along the
//! workload's clock, drawn and as a table.

use std::fmt::Write as _;

use super::page::{seconds, text};
use super::{Cell, Moment, What};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 72.0;
const EDGE: f64 = 8.0;
/// Where phases are, and where freezes are.
const PHASES: (f64, f64) = (18.0, 22.0);
const FREEZES: (f64, f64) = (46.0, 8.0);
/// Phases that are drawn, freezes likewise.
const DRAWN: usize = 200;
/// What a name needs at least.
const LEAST: f64 = 10.0;

/// Stages, the drawing, and the table that says the same.
pub(super) fn timeline(id: usize, cell: &Cell, out: &mut String) {
    if cell.stages.is_empty() && cell.moments.is_empty() {
        return;
    }
    out.push_str("<h3>Timeline</h3>\n<ol class=\"stages\">");
    for (stage, detail) in &cell.stages {
        let _ = write!(out, "<li>{} {}</li>", stage.word(), text(detail));
    }
    out.push_str("</ol>\n");
    if cell.moments.is_empty() {
        return;
    }
    drawing(id, &cell.moments, out);
    let many = |is: fn(&What) -> bool| {
        cell.moments.iter().filter(|moment| is(&moment.what)).count() > DRAWN
    };
    if many(|what| matches!(what, What::Phase(_)))
        || many(|what| matches!(what, What::Frozen { .. }))
    {
        let _ = writeln!(out, "<p>The drawing has the first {DRAWN} phases and freezes.</p>");
    }
    table(&cell.moments, out);
}

fn drawing(id: usize, moments: &[Moment], out: &mut String) {
    let end = moments.iter().map(|moment| moment.elapsed_ms).max().unwrap_or(0).max(1);
    // A little is left behind the last moment, so that a phase that begins there can be seen.
    let whole = end + end / 20 + 1;
    let x = |at: u64| EDGE + at as f64 / whole as f64 * (WIDTH - 2.0 * EDGE);
    let freezes = moments.iter().filter(|m| matches!(m.what, What::Frozen { .. })).count();
    let phases: Vec<(u64, &str)> = moments.iter().filter_map(phase).collect();
    let count = |is: fn(&What) -> bool| moments.iter().filter(|m| is(&m.what)).count();
    let exits = count(|what| matches!(what, What::Exited(_)));
    let changes = count(|what| matches!(what, What::Scheduler(_)));
    let lost = count(|what| matches!(what, What::Placeholder { .. }));
    let _ = write!(
        out,
        "<figure class=\"chart\">\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"time-{id}-t time-{id}-d\">\n<title id=\"time-{id}-t\">Timeline</title>\n\
         <desc id=\"time-{id}-d\">{} phases, {freezes} freezes and {lost} without contents, {changes} \
         changes of the scheduler and {exits} ends of one in {} of the workload's time; the table has \
         each of them.</desc>\n",
        phases.len(),
        seconds(end),
    );
    for (i, (from, name)) in phases.iter().take(DRAWN).enumerate() {
        let to = phases.get(i + 1).map_or(whole, |(at, _)| *at);
        let (left, right) = (x(*from), x(to));
        let (top, tall) = PHASES;
        let _ = write!(
            out,
            "<rect class=\"span s{}\" x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{tall}\"/>",
            i % 2,
            (right - left).max(1.0)
        );
        clipped("", name, (left + 3.0, top), (right - left - 3.0, tall), out);
    }
    let mut ticks = String::new();
    for moment in moments.iter().filter(|m| matches!(m.what, What::Frozen { .. })).take(DRAWN) {
        let _ = write!(ticks, "M{:.1} {}v{}", x(moment.elapsed_ms), FREEZES.0, FREEZES.1);
    }
    let _ = writeln!(out, "<path class=\"freeze\" d=\"{ticks}\"/>");
    for (at, class, words) in moments.iter().filter_map(mark).take(DRAWN) {
        let at = x(at);
        let _ = write!(
            out,
            "<path class=\"{class}\" d=\"M{at:.1} {}v{}\"/>",
            PHASES.0 - 4.0,
            FREEZES.0 + FREEZES.1 - PHASES.0 + 4.0,
        );
        if !words.is_empty() {
            let (to, anchor) =
                if at > WIDTH / 2.0 { (at - 3.0, "end") } else { (at + 3.0, "start") };
            let _ = write!(
                out,
                "<text class=\"{class}\" x=\"{to:.1}\" y=\"12\" text-anchor=\"{anchor}\">{words}</text>"
            );
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "<text x=\"{EDGE}\" y=\"{0}\">0 s</text><text x=\"{1}\" y=\"{0}\" \
         text-anchor=\"end\">{2}</text>\n</svg>\n</figure>",
        HEIGHT - 4.0,
        WIDTH - EDGE,
        seconds(whole)
    );
}

/// A text as far as there is room for it, whatever the letters' width.
pub(super) fn clipped(
    class: &str,
    words: &str,
    (x, y): (f64, f64),
    (width, height): (f64, f64),
    out: &mut String,
) {
    if width < LEAST {
        return;
    }
    let _ = writeln!(
        out,
        "<svg aria-hidden=\"true\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" \
         height=\"{height}\"><text class=\"{class}\" y=\"{}\">{}</text></svg>",
        height - 6.0,
        text(words)
    );
}

fn phase(moment: &Moment) -> Option<(u64, &str)> {
    match &moment.what {
        What::Phase(name) => Some((moment.elapsed_ms, name)),
        _ => None,
    }
}

/// What is marked across phases and freezes: when, how, and in words, where they are worth the room.
fn mark(moment: &Moment) -> Option<(u64, &'static str, &'static str)> {
    let (class, words) = match moment.what {
        What::Exited(_) => ("exit", "scheduler left"),
        What::Placeholder { .. } => ("exit", ""),
        What::Scheduler(_) => ("change", ""),
        What::Phase(_) | What::Frozen { .. } => return None,
    };
    Some((moment.elapsed_ms, class, words))
}

fn table(moments: &[Moment], out: &mut String) {
    out.push_str(
        "<details><summary>Every moment</summary>\n<table>\n<thead><tr><th scope=\"col\">Workload \
         clock</th><th scope=\"col\">What</th></tr></thead>\n<tbody>\n",
    );
    for moment in moments {
        let what = match &moment.what {
            What::Phase(name) => format!("phase {}", text(name)),
            What::Frozen { tag, pause_us, copy_us } => {
                format!("frozen {}: stood {pause_us} µs, {copy_us} µs of it to copy", text(tag))
            }
            What::Scheduler(Some(name)) => format!("{} attached", text(name)),
            What::Scheduler(None) => "the scheduler let go".to_owned(),
            What::Placeholder { tag, why } => {
                format!("{} has no contents: {}", text(tag), text(why))
            }
            What::Exited(reason) => format!("the scheduler left: {}", text(reason)),
        };
        let _ = writeln!(out, "<tr><td>{}</td><td>{what}</td></tr>", seconds(moment.elapsed_ms));
    }
    out.push_str("</tbody>\n</table>\n</details>\n");
}
