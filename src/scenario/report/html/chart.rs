//! A plot as a chart: inline SVG, which needs nothing else, and its numbers as a table.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::page::text;
use super::timeline::clipped;
use crate::scenario::plot::{Plot, PlotLine, short};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
/// Room at the left for numbers, and at the other sides.
const LEFT: f64 = 70.0;
const EDGE: f64 = 24.0;
/// Phases that are marked.
const PHASES: usize = 40;
/// Points that the table has.
const ROWS: usize = 200;
/// Lines differ by how they are dashed as well as by colour.
const DASHES: [&str; 4] = ["none", "6 3", "2 3", "8 3 2 3"];

/// The chart; `phases` are marked where they begin, `freezes` by a tick.
pub(super) fn chart(
    id: &str,
    plot: &Plot,
    phases: &[(u64, &str)],
    freezes: &[u64],
    out: &mut String,
) {
    let points = || plot.lines.iter().flat_map(|line| &line.points);
    let from = points().map(|(at, _)| *at).min();
    let (Some(from), Some(to), Some((lo, hi))) =
        (from, points().map(|(at, _)| *at).max(), plot.range())
    else {
        out.push_str("<p>A plot without values.</p>\n");
        return;
    };
    let names: Vec<String> = plot.lines.iter().map(|line| text(&line.label)).collect();
    let x = |at: u64| {
        let part = at.saturating_sub(from) as f64 / (to - from).max(1) as f64;
        LEFT + part * (WIDTH - LEFT - EDGE)
    };
    let y = |value: f64| {
        let part = if hi > lo { (value - lo) / (hi - lo) } else { 0.5 };
        HEIGHT - EDGE - part * (HEIGHT - 2.0 * EDGE)
    };
    let (low, high) = (short(lo), short(hi));
    let _ = write!(
        out,
        "<figure class=\"chart\">\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\">\n<title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">From \
         {low} to {high} between {:.2} s and {:.2} s of the workload's time.</desc>\n",
        names.join(", "),
        from as f64 / 1000.0,
        to as f64 / 1000.0
    );
    let (bottom, right) = (HEIGHT - EDGE, WIDTH - EDGE);
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{LEFT} {EDGE}V{bottom}H{right}\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{high}</text>\n\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">{low}</text>\n\
         <text x=\"{LEFT}\" y=\"{}\">{:.2} s</text>\n\
         <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{:.2} s</text>\n",
        LEFT - 6.0,
        EDGE + 4.0,
        LEFT - 6.0,
        HEIGHT - 6.0,
        from as f64 / 1000.0,
        HEIGHT - 6.0,
        to as f64 / 1000.0
    );
    marks(phases, freezes, from..=to, &x, out);
    for (i, line) in plot.lines.iter().enumerate() {
        let dashes = DASHES[i % DASHES.len()];
        let path = path(line, &x, &y);
        let _ = writeln!(
            out,
            "<path class=\"line l{}\" stroke-dasharray=\"{dashes}\" d=\"{path}\"/>",
            i % 4
        );
    }
    out.push_str("</svg>\n<figcaption><ul class=\"legend\">");
    for (i, name) in names.iter().enumerate() {
        let _ = write!(
            out,
            "<li><svg class=\"key\" viewBox=\"0 0 24 6\" aria-hidden=\"true\"><path class=\"line l{}\" \
             stroke-dasharray=\"{}\" d=\"M0 3H24\"/></svg> {name}</li>",
            i % 4,
            DASHES[i % DASHES.len()]
        );
    }
    out.push_str("</ul></figcaption>\n");
    table(plot, &names, out);
    out.push_str("</figure>\n");
}

/// Phases where they begin, and freezes.
fn marks(
    phases: &[(u64, &str)],
    freezes: &[u64],
    shown: RangeInclusive<u64>,
    x: &dyn Fn(u64) -> f64,
    out: &mut String,
) {
    let bottom = HEIGHT - EDGE;
    let phases: Vec<_> = phases.iter().filter(|(at, _)| shown.contains(at)).take(PHASES).collect();
    for (i, (at, name)) in phases.iter().enumerate() {
        let left = x(*at);
        let right = phases.get(i + 1).map_or(WIDTH, |(next, _)| x(*next));
        let _ = writeln!(out, "<path class=\"phase\" d=\"M{left:.1} {EDGE}V{bottom}\"/>");
        clipped("phase", name, (left + 3.0, 0.0), (right - left - 3.0, EDGE - 2.0), out);
    }
    let mut ticks = String::new();
    for at in freezes.iter().filter(|at| shown.contains(at)).take(1000) {
        let _ = write!(ticks, "M{:.1} {bottom}v-5", x(*at));
    }
    let _ = writeln!(out, "<path class=\"freeze\" d=\"{ticks}\"/>");
}

/// A line, interrupted where a sample has no value; a value alone is a dot.
fn path(line: &PlotLine, x: &dyn Fn(u64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let mut out = String::new();
    let mut draws = false;
    for (i, (at, value)) in line.points.iter().enumerate() {
        let Some(value) = value else {
            draws = false;
            continue;
        };
        let command = if draws { 'L' } else { 'M' };
        let _ = write!(out, "{command}{:.1} {:.1}", x(*at), y(*value));
        let alone = !draws && line.points.get(i + 1).is_none_or(|(_, next)| next.is_none());
        if alone {
            out.push_str("h0.1");
        }
        draws = true;
    }
    out
}

fn table(plot: &Plot, names: &[String], out: &mut String) {
    out.push_str("<details><summary>The numbers</summary>\n<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"The numbers\">\n");
    for (line, name) in plot.lines.iter().zip(names) {
        let _ = writeln!(
            out,
            "<table><caption>{name}</caption><thead><tr><th scope=\"col\">Time</th><th \
             scope=\"col\">Value</th></tr></thead><tbody>"
        );
        for (at, value) in line.points.iter().take(ROWS) {
            let value = value.map_or_else(|| "none".to_owned(), short);
            let _ = writeln!(out, "<tr><td>{:.3} s</td><td>{value}</td></tr>", *at as f64 / 1000.0);
        }
        out.push_str("</tbody></table>\n");
        if line.points.len() > ROWS {
            let _ = writeln!(out, "<p>and {} more</p>", line.points.len() - ROWS);
        }
    }
    out.push_str("</div></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(points: Vec<(u64, Option<f64>)>) -> String {
        let lines = vec![PlotLine { label: "a <b> & c".into(), points }];
        let mut out = String::new();
        chart(
            "c1",
            &Plot { lines },
            &[(500, "wide & <x>"), (9000, "later")],
            &[100, 700],
            &mut out,
        );
        out
    }

    #[test]
    fn a_chart_says_in_words_what_it_shows() {
        let out = drawn(vec![(0, Some(1.0)), (500, None), (1000, Some(3.0)), (1500, Some(2.0))]);
        let has = [
            "<title id=\"c1-t\">a &lt;b&gt; &amp; c</title>",
            "<desc id=\"c1-d\">From 1 to 3 between 0.00 s and 1.50 s of the workload's time.</desc>",
            "d=\"M70.0 196.0h0.1M434.0 24.0L616.0 110.0\"",
            ">wide &amp; &lt;x&gt;</text>",
            "<tr><td>0.500 s</td><td>none</td></tr>",
            "M106.4 196v-5M324.8 196v-5",
        ];
        for part in has {
            assert!(out.contains(part), "{part}\n{out}");
        }
        assert!(!out.contains("later"), "it is not in the picture");
    }

    #[test]
    fn nothing_and_one_value_are_no_trouble() {
        assert_eq!(drawn(vec![(0, None)]), "<p>A plot without values.</p>\n");
        let one = drawn(vec![(7, Some(5.0))]);
        assert!(one.contains("M70.0 110.0h0.1") && !one.contains("NaN"), "{one}");
    }
}
