//! The matrix of a scenario as rows and columns, whatever is shown of its cells.

use std::path::Path;

use super::super::event::CellInfo;

/// The cells of one declaration, with what is to be shown of each.
pub(super) struct Matrix<'a, T> {
    /// The scenario's name, without a combination.
    pub(super) name: &'a str,
    file: &'a Path,
    cells: Vec<(&'a CellInfo, T)>,
}

/// A row: what it is called, and what is in each column. Not every combination is there where only
/// a part was run.
pub(super) type Row<T> = (String, Vec<Option<T>>);

/// The matrices of those cells that are in one with several of them.
pub(super) fn matrices<'a, T>(
    cells: impl Iterator<Item = (&'a CellInfo, T)>,
) -> Vec<Matrix<'a, T>> {
    let mut all: Vec<Matrix<'a, T>> = Vec::new();
    for (info, shown) in cells.filter(|(info, _)| !info.axes.is_empty()) {
        let (file, name) = (info.file.as_path(), base(info));
        match all.iter_mut().find(|matrix| (matrix.file, matrix.name) == (file, name)) {
            Some(matrix) => matrix.cells.push((info, shown)),
            None => all.push(Matrix { name, file, cells: vec![(info, shown)] }),
        }
    }
    all.retain(|matrix| matrix.cells.len() > 1);
    all
}

/// The name without the combination.
fn base(info: &CellInfo) -> &str {
    let suffix = crate::scenario::with_axes("", &info.axes);
    info.name.strip_suffix(suffix.as_str()).unwrap_or(&info.name)
}

fn values(axes: &[(String, String)]) -> String {
    axes.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(", ")
}

impl<T: Copy> Matrix<'_, T> {
    /// How many axes there are.
    pub(super) fn axes(&self) -> usize {
        self.cells.iter().map(|(info, _)| info.axes.len()).max().unwrap_or(0)
    }

    /// The values of the last axis, in their order.
    pub(super) fn columns(&self) -> Vec<&str> {
        let mut columns = Vec::new();
        for (_, value) in self.cells.iter().filter_map(|(info, _)| info.axes.last()) {
            if !columns.contains(&value.as_str()) {
                columns.push(value);
            }
        }
        columns
    }

    /// The last axis across, all others down.
    pub(super) fn rows(&self) -> Vec<Row<T>> {
        let columns = self.columns();
        let mut rows: Vec<Row<T>> = Vec::new();
        for (info, shown) in &self.cells {
            let Some(((_, last), others)) = info.axes.split_last() else { continue };
            let name = values(others);
            let at = rows.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                rows.push((name, vec![None; columns.len()]));
                rows.len() - 1
            });
            let column = columns.iter().position(|column| column == last);
            if let Some(place) = column.and_then(|column| rows[at].1.get_mut(column)) {
                *place = Some(*shown);
            }
        }
        rows
    }

    /// All axes down, in one column.
    pub(super) fn list(&self) -> Vec<Row<T>> {
        let row = |(info, shown): &(&CellInfo, T)| (values(&info.axes), vec![Some(*shown)]);
        self.cells.iter().map(row).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::junit;
    use super::*;

    /// A cell with a place in a matrix.
    pub(in super::super) fn info(name: &str, axes: &[(&str, &str)]) -> CellInfo {
        let axes: Vec<(String, String)> =
            axes.iter().map(|(a, v)| ((*a).to_owned(), (*v).to_owned())).collect();
        let name = crate::scenario::with_axes(name, &axes);
        CellInfo { axes, ..junit::tests::info(&name, "a.rhai") }
    }

    #[test]
    fn scenarios_are_told_apart_whatever_they_are_called() {
        let cells = [
            info("a", &[("x", "1"), ("y", "1")]),
            info("a[0]", &[("x", "1"), ("y", "1")]),
            info("a", &[("x", "1"), ("y", "2")]),
            info("a[0]", &[("x", "2"), ("y", "2")]),
            info("a", &[]),
            info("b", &[("x", "1")]),
        ];
        let found = matrices(cells.iter().zip(0..));
        let names: Vec<&str> = found.iter().map(|matrix| matrix.name).collect();
        assert_eq!(names, ["a", "a[0]"], "one cell is no matrix");
        assert_eq!((found[0].axes(), found[0].columns()), (2, vec!["1", "2"]));
        assert_eq!(found[0].rows(), [("1".to_owned(), vec![Some(0), Some(2)])]);
        let rows = [("1".to_owned(), vec![Some(1), None]), ("2".to_owned(), vec![None, Some(3)])];
        assert_eq!(found[1].rows(), rows);
        let list = [("1, 1".to_owned(), vec![Some(1)]), ("2, 2".to_owned(), vec![Some(3)])];
        assert_eq!(found[1].list(), list);
    }
}
