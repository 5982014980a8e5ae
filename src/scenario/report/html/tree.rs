//! A snapshot as a tree to open and close. It comes as the text that `dump(snap)` prints, in which
//! what belongs to a line is indented below it.

use std::fmt::Write as _;

use super::page::text;
use crate::scenario::text::clean;

/// Levels that can be opened; deeper lines stand in the last of them.
const LEVELS: usize = 12;
/// Lines that are shown.
const LINES: usize = 4000;

/// The tree of one snapshot.
pub(super) fn tree(tag: &str, dump: &str, out: &mut String) {
    let dump = clean(dump);
    let lines: Vec<(usize, &str)> = dump.lines().take(LINES).map(indented).collect();
    let _ = writeln!(out, "<details class=\"tree\"><summary>{}</summary>", text(tag));
    let mut open: Vec<usize> = Vec::new();
    for (i, (indent, line)) in lines.iter().enumerate() {
        while open.last().is_some_and(|above| above >= indent) {
            open.pop();
            out.push_str("</details>\n");
        }
        let has_parts = lines.get(i + 1).is_some_and(|(next, _)| next > indent);
        if has_parts && open.len() < LEVELS {
            // What is on top is open, so that one sees what there is.
            let state = if open.is_empty() { " open" } else { "" };
            let _ = writeln!(out, "<details{state}><summary>{}</summary>", text(line));
            open.push(*indent);
        } else {
            let _ = writeln!(out, "<div>{}</div>", text(line));
        }
    }
    open.iter().for_each(|_| out.push_str("</details>\n"));
    if dump.lines().nth(LINES).is_some() {
        out.push_str("<div>.. further lines are left out</div>\n");
    }
    out.push_str("</details>\n");
}

fn indented(line: &str) -> (usize, &str) {
    let rest = line.trim_start_matches(' ');
    (line.len() - rest.len(), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(dump: &str) -> String {
        let mut out = String::new();
        tree("end", dump, &mut out);
        out.replace('\n', "")
    }

    #[test]
    fn what_is_indented_belongs_to_the_line_above() {
        assert_eq!(
            of("snapshot\n  map\n    a  1\n    b  2\n  other\nlast"),
            "<details class=\"tree\"><summary>end</summary><details open><summary>snapshot</summary>\
             <details><summary>map</summary><div>a  1</div><div>b  2</div></details><div>other</div>\
             </details><div>last</div></details>"
        );
        assert_eq!(of(""), "<details class=\"tree\"><summary>end</summary></details>");
    }

    #[test]
    fn endless_trees_end() {
        let deep: String = (0..100).map(|i| format!("{}<x>\n", " ".repeat(i))).collect();
        let page = of(&deep);
        assert_eq!(page.matches("<details").count(), 1 + LEVELS);
        assert!(!page.contains("<x>"));
        let long = of(&"x\n".repeat(LINES + 1));
        assert!(long.contains("further lines are left out"));
    }

    proptest! {
        #[test]
        fn whatever_is_opened_is_closed(lines in prop::collection::vec((0usize..9, "[a-z<&]{0,4}"), 0..60)) {
            let dump: String = lines.iter().map(|(n, t)| format!("{}{t}\n", " ".repeat(*n))).collect();
            let page = of(&dump);
            prop_assert_eq!(page.matches("<details").count(), page.matches("</details>").count());
        }
    }
}
