//! How fields went over time, to be drawn: by the terminal as a line of blocks, on the page as a chart.

use serde::{Deserialize, Serialize};

use super::text::{fit, seconds};
use crate::series::SeriesField;
use crate::snapshot::Scalar;

/// Fields in one plot.
pub const LINES: usize = 8;
/// Points of a field that are kept; of more, the least and the most of each stretch.
pub const POINTS: usize = 500;
/// Columns of a line of blocks.
const WIDTH: usize = 40;

/// Some fields over the same time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// The fields.
    pub lines: Vec<PlotLine>,
}

/// A field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlotLine {
    /// What it is called.
    pub label: String,
    /// Workload time in milliseconds, and the value; none where a sample has none.
    pub points: Vec<(u64, Option<f64>)>,
}

impl Plot {
    /// A plot of these, at most [`LINES`] of them.
    #[must_use]
    pub fn of(fields: &[SeriesField]) -> Plot {
        Plot { lines: fields.iter().take(LINES).map(PlotLine::of).collect() }
    }

    /// The plot as text, a line for each field.
    #[must_use]
    pub fn text(&self) -> Vec<String> {
        let labels = self.lines.iter().map(|line| line.label.chars().count());
        let room = labels.max().unwrap_or(0).min(24);
        self.lines.iter().map(|line| line.text(room)).collect()
    }

    /// The values there are: the least and the most.
    #[must_use]
    pub fn range(&self) -> Option<(f64, f64)> {
        range(self.lines.iter().flat_map(|line| &line.points))
    }
}

fn range<'a>(points: impl Iterator<Item = &'a (u64, Option<f64>)>) -> Option<(f64, f64)> {
    let values = points.filter_map(|(_, value)| value.filter(|x| x.is_finite()));
    values.fold(None, |range, x| match range {
        None => Some((x, x)),
        Some((lo, hi)) => Some((f64::min(lo, x), f64::max(hi, x))),
    })
}

impl PlotLine {
    fn of(field: &SeriesField) -> PlotLine {
        let value = |scalar: &Scalar| match scalar {
            Scalar::Float(x) => Some(*x),
            Scalar::Bool(b) => Some(f64::from(u8::from(*b))),
            other => other.number().map(|n| n as f64),
        };
        let points = field.points().map(|point| {
            let at = u64::try_from(point.stamp.elapsed.as_millis()).unwrap_or(u64::MAX);
            (at, point.value.ok().and_then(value).filter(|x| x.is_finite()))
        });
        let points: Vec<_> = points.collect();
        PlotLine { label: fit(field.label(), 60), points: thinned(points) }
    }

    fn text(&self, room: usize) -> String {
        const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let label = fit(&self.label, room);
        let Some((lo, hi)) = range(self.points.iter()) else {
            return format!("{label:<room$}  no values");
        };
        let (Some((first, _)), Some((last, _))) = (self.points.first(), self.points.last()) else {
            return label;
        };
        let columns = WIDTH.min(self.points.len());
        let span = (last - first).max(1);
        let mut cells = vec![(0.0, 0u32); columns];
        for (at, value) in &self.points {
            let Some(value) = value else { continue };
            let place = (u128::from(at - first) * columns as u128 / u128::from(span)) as usize;
            let cell = &mut cells[place.min(columns - 1)];
            *cell = (cell.0 + value, cell.1 + 1);
        }
        let block = |(sum, count): (f64, u32)| match count {
            0 => ' ',
            n => {
                let part = if hi > lo { (sum / f64::from(n) - lo) / (hi - lo) } else { 0.0 };
                BLOCKS[((part * 7.0).round() as usize).min(7)]
            }
        };
        let drawn: String = cells.into_iter().map(block).collect();
        let (from, to) = (seconds(*first), seconds(*last));
        format!("{label:<room$}  {drawn}  {} to {} over {from} to {to}", short(lo), short(hi))
    }
}

/// A number for the eye.
#[must_use]
pub fn short(x: f64) -> String {
    let text = match x.abs() {
        a if a >= 1e15 || (a > 0.0 && a < 1e-4) => format!("{x:.3e}"),
        a if a >= 1000.0 || x.fract() == 0.0 => format!("{x:.0}"),
        _ => format!("{x:.4}"),
    };
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// At most [`POINTS`] points: of each stretch the least, the most and a gap, if there is one.
fn thinned(points: Vec<(u64, Option<f64>)>) -> Vec<(u64, Option<f64>)> {
    if points.len() <= POINTS {
        return points;
    }
    let stretch = points.len().div_ceil(POINTS / 3);
    let mut out = Vec::with_capacity(POINTS);
    for chunk in points.chunks(stretch) {
        let by = |a: &&(u64, Option<f64>), b: &&(u64, Option<f64>)| {
            a.1.unwrap_or_default().total_cmp(&b.1.unwrap_or_default())
        };
        let known = || chunk.iter().filter(|(_, value)| value.is_some());
        let gap = chunk.iter().find(|(_, value)| value.is_none());
        let mut kept: Vec<_> = known().min_by(by).into_iter().chain(known().max_by(by)).collect();
        kept.extend(gap);
        kept.sort_by_key(|(at, _)| *at);
        kept.dedup();
        out.extend(kept.into_iter().copied());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, values: &[Option<f64>]) -> PlotLine {
        let points = values.iter().enumerate().map(|(i, value)| (100 * i as u64, *value));
        PlotLine { label: label.to_owned(), points: points.collect() }
    }

    #[test]
    fn a_field_is_a_line_of_blocks() {
        let rising: Vec<Option<f64>> = (0..8).map(|i| Some(f64::from(i))).collect();
        let plot = Plot {
            lines: vec![
                line("nr", &rising),
                line("flat", &[Some(3.0), None, Some(3.0)]),
                line("none", &[None]),
            ],
        };
        assert_eq!(
            plot.text(),
            [
                "nr    ▁▂▃▄▅▆▇█  0 to 7 over 0.00 s to 0.70 s",
                "flat  ▁ ▁  3 to 3 over 0.00 s to 0.20 s",
                "none  no values",
            ]
        );
        assert_eq!(plot.range(), Some((0.0, 7.0)));
    }

    #[test]
    fn long_courses_are_thinned_and_keep_what_stands_out() {
        let mut points: Vec<_> = (0..100_000u64).map(|i| (i, Some(1.0))).collect();
        points[54_321].1 = Some(99.0);
        points[60_000].1 = None;
        let thin = thinned(points);
        assert!(thin.len() <= POINTS, "{}", thin.len());
        assert!(thin.contains(&(54_321, Some(99.0))) && thin.contains(&(60_000, None)));
        assert!(thin.is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn numbers_are_short() {
        let told = [0.0, 7.0, -0.5, 1234.5678, 1e18, 0.000_001, 0.25].map(short);
        assert_eq!(told, ["0", "7", "-0.5", "1235", "1.000e18", "1.000e-6", "0.25"]);
    }
}
