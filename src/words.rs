//! Words for people that every layer needs: the name that somebody may have meant, and what an
//! error of the operating system says.

use std::cmp::Reverse;
use std::io;

/// The error's text without the number that the standard library adds.
#[must_use]
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(at)) => text[..at].to_owned(),
        _ => text,
    }
}

/// Names longer than this are compared by their beginning only: they come from the guest, and the
/// comparison takes time in the product of the lengths.
const COMPARED: usize = 64;

/// The name nearest to `asked`, when one is near enough to be what the author meant.
#[must_use]
pub fn nearest<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let asked = Asked::new(asked);
    names
        .into_iter()
        .filter_map(|name| {
            let likeness = asked.likeness(name);
            (likeness >= ENOUGH).then_some((likeness, name))
        })
        // Of equally near names the first one wins.
        .fold(None, |best: Option<(u32, &str)>, (likeness, name)| match best {
            Some((b, _)) if b >= likeness => best,
            _ => Some((likeness, name)),
        })
        .map(|(_, name)| name)
}

/// Orders `names` by how near they are to `asked`, nearest first; equally near ones keep their
/// order.
#[must_use]
pub fn nearest_first<S: AsRef<str>>(asked: &str, mut names: Vec<S>) -> Vec<S> {
    let asked = Asked::new(asked);
    names.sort_by_cached_key(|name| Reverse(asked.likeness(name.as_ref())));
    names
}

/// The likeness, in thousandths, from which a name counts as meant.
const ENOUGH: u32 = 600;

struct Asked(String);

impl Asked {
    fn new(asked: &str) -> Self {
        Asked(folded(asked))
    }

    /// How alike a name is, in thousandths: 1000 is equal but for case and separators.
    fn likeness(&self, name: &str) -> u32 {
        let name = folded(name);
        if name == self.0 {
            return 1000;
        }
        let (long, edits) =
            (self.0.len().max(name.len()), strsim::damerau_levenshtein(&self.0, &name));
        let mut likeness = (1000 - 1000 * edits.min(long) / long.max(1)) as u32;
        // In a short name one slip is a large part.
        if edits == 1 && long >= 2 {
            likeness = likeness.max(ENOUGH);
        }
        // A part of a name is a likely memory of it: `weight` for `hweight`, `bss` for `fifo.bss`.
        let (short, long) =
            if name.len() < self.0.len() { (&name, &self.0) } else { (&self.0, &name) };
        if short.len() >= 3 && long.contains(short.as_str()) {
            let covered = 1000 * short.len() / long.len();
            likeness = likeness.max(ENOUGH + (covered as u32) * (999 - ENOUGH) / 1000);
        }
        likeness.min(999)
    }
}

/// Lower case, without the separators that people mix up.
fn folded(name: &str) -> String {
    name.chars()
        .take(COMPARED)
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_name() {
        let names = ["task_ctx", "cpu_ctx", "fifo.bss", "fifo.rodata", "nr_dispatched"];
        let cases = [
            ("task_ctxx", Some("task_ctx")),
            ("taskctx", Some("task_ctx")),
            ("TASK_CTX", Some("task_ctx")),
            ("fifo.bs", Some("fifo.bss")),
            ("bss", Some("fifo.bss")),
            ("nr_dispatch", Some("nr_dispatched")),
            ("rn_dispatched", Some("nr_dispatched")),
            ("zebra", None),
            ("x", None),
            ("", None),
        ];
        for (asked, want) in cases {
            assert_eq!(nearest(asked, names), want, "{asked}");
        }
    }

    #[test]
    fn short_names_may_have_one_slip() {
        assert_eq!(nearest("rn", ["id", "nr"]), Some("nr"));
        assert_eq!(nearest("np", ["id", "pid"]), None);
        assert_eq!(nearest("a", ["b"]), None);
    }

    #[test]
    fn the_nearest_come_first_and_the_others_keep_their_order() {
        let names = vec!["dsq_id", "hweight", "weight"];
        assert_eq!(nearest_first("wieght", names), ["weight", "hweight", "dsq_id"]);
        assert_eq!(nearest_first("qqq", vec!["b", "a", "c"]), ["b", "a", "c"]);
    }

    #[test]
    fn endless_names_are_compared_by_their_beginning() {
        let long = "x".repeat(1 << 20);
        assert_eq!(nearest(&long, [long.as_str()]), Some(long.as_str()));
    }
}
