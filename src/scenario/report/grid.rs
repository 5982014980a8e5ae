//! The matrix of a scenario as a grid, for a terminal or a pipe of 80 columns.
//!
//! ```text
//! it gets on                debian:7.2  debian:7.3
//!   1n1l2c1t                pass        FAIL
//!   1n2l2c1t                pass        pass
//! ```

use super::super::event::CellInfo;
use super::super::text::fit;
use super::super::verdict::Outcome;
use super::failure::one_line;
use super::matrix::{Matrix, Row, matrices};

/// The width that the names of rows have at least where columns are shown, and that between columns.
const NAME: usize = 32;
const GAP: usize = 2;

/// A cell in words, and what it came to.
pub(super) type Judged<'a> = (&'a CellInfo, Option<Outcome>);

/// A word of a line, and the outcome by which it is painted.
pub(super) type Word = (String, Option<Outcome>);

/// The grids of all scenarios that vary, as lines of words that fit `width`.
pub(super) fn grids(cells: &[Judged<'_>], width: usize) -> Vec<Vec<Word>> {
    let all = matrices(cells.iter().copied());
    all.iter().flat_map(|matrix| grid(matrix, width)).collect()
}

fn grid(matrix: &Matrix<'_, Option<Outcome>>, width: usize) -> Vec<Vec<Word>> {
    // The last axis goes across, unless that is too wide; then one column has the outcomes.
    let columns: Vec<Column> = matrix.columns().into_iter().map(Column::new).collect();
    match NAME + columns.iter().map(|column| column.width).sum::<usize>() <= width {
        true => lines(matrix.name, &columns, matrix.rows(), width),
        false => lines(matrix.name, &[Column::new("")], matrix.list(), width),
    }
}

struct Column {
    title: String,
    /// With the gap behind it.
    width: usize,
}

impl Column {
    fn new(title: &str) -> Column {
        let least = Outcome::ALL.iter().map(|outcome| outcome.word().len()).max().unwrap_or(0);
        let title = one_line(title);
        Column { width: title.chars().count().max(least) + GAP, title }
    }
}

fn padded(text: &str, width: usize) -> String {
    format!("{:<width$}", fit(text, width.saturating_sub(GAP)))
}

fn lines(
    name: &str,
    columns: &[Column],
    rows: Vec<Row<Option<Outcome>>>,
    width: usize,
) -> Vec<Vec<Word>> {
    let names = rows.iter().map(|(row, _)| format!("  {}", one_line(row)));
    let names: Vec<String> = std::iter::once(one_line(name)).chain(names).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let of_columns = columns.iter().map(|column| column.width).sum();
    let first = (longest + GAP).min(width.saturating_sub(of_columns).max(8));
    let titles = columns.iter().map(|column| (padded(&column.title, column.width), None));
    let mut out: Vec<Vec<Word>> = vec![titles.collect()];
    out.extend(rows.into_iter().map(|(_, outcomes)| {
        let words = outcomes.into_iter().zip(columns).map(|(cell, column)| {
            let word = match cell {
                None => "",
                Some(None) => "-",
                Some(Some(outcome)) => outcome.word(),
            };
            (padded(word, column.width), cell.flatten())
        });
        words.collect()
    }));
    for (line, name) in out.iter_mut().zip(names) {
        line.insert(0, (padded(&name, first), None));
    }
    for line in &mut out {
        while line.len() > 1 && line.last().is_some_and(|(word, _)| word.trim().is_empty()) {
            line.pop();
        }
        if let Some((word, _)) = line.last_mut() {
            word.truncate(word.trim_end().len());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::matrix::tests::info;
    use super::*;
    use crate::script::tests::golden::shown;

    fn told(cells: &[(CellInfo, Option<Outcome>)], width: usize) -> Vec<String> {
        let cells: Vec<Judged<'_>> = cells.iter().map(|(info, o)| (info, *o)).collect();
        let lines = grids(&cells, width);
        lines.iter().map(|line| line.iter().map(|(word, _)| word.as_str()).collect()).collect()
    }

    fn matrix() -> Vec<(CellInfo, Option<Outcome>)> {
        let mut out = vec![(info("alone", &[]), Some(Outcome::Fail))];
        let outcomes =
            [Some(Outcome::Pass), Some(Outcome::Fail), Some(Outcome::Inconclusive), None];
        let all = ["1n1l2c1t", "1n2l2c1t"].into_iter().flat_map(|t| {
            ["debian:7.2", "debian:7.3"]
                .map(|k| info("it gets on", &[("topology", t), ("kernel", k)]))
        });
        out.extend(all.zip(outcomes));
        out
    }

    #[test]
    fn the_last_axis_goes_across() {
        assert_eq!(
            told(&matrix(), 80),
            [
                "it gets on  debian:7.2    debian:7.3",
                "  1n1l2c1t  pass          fail",
                "  1n2l2c1t  inconclusive  -",
            ]
        );
    }

    #[test]
    fn the_book_shows_a_grid() {
        let mut cells = matrix();
        cells.remove(0);
        cells[2].1 = Some(Outcome::Pass);
        cells[3].1 = Some(Outcome::Pass);
        assert_eq!(told(&cells, 80), shown("ci.md", 0));
    }

    #[test]
    fn what_is_too_wide_goes_down() {
        assert_eq!(
            told(&matrix(), 50),
            [
                "it gets on",
                "  1n1l2c1t, debian:7.2  pass",
                "  1n1l2c1t, debian:7.3  fail",
                "  1n2l2c1t, debian:7.2  inconclusive",
                "  1n2l2c1t, debian:7.3  -",
            ]
        );
        let long = "x".repeat(100);
        let one = |k: &str| (info("n", &[("args", &long), ("kernel", k)]), Some(Outcome::Pass));
        for line in told(&[one("a"), one("b")], 80) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn combinations_that_were_not_run_are_blank() {
        let mut some = matrix();
        some.remove(2);
        assert_eq!(told(&some, 80)[1], "  1n1l2c1t  pass");
        assert_eq!(told(&some[..2], 80), [""; 0], "one combination is no grid");
        assert_eq!(told(&some[..1], 80), [""; 0]);
    }
}
