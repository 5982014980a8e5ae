//! Text that travels: bounded, and cheap to put into JSON.

use std::collections::VecDeque;

/// A log of which the end is kept.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Ring {
    /// Bytes kept.
    const KEPT: usize = 256 << 10;

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(Self::KEPT);
        self.cut |= over > 0;
        self.bytes.drain(..over);
    }

    /// What was kept; says so when that is not all.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let kept = clean(&bytes);
        if !self.cut {
            return kept;
        }
        let from = kept.find('\n').map_or(0, |at| at + 1);
        format!("[the beginning was cut off]\n{}", &kept[from..])
    }
}

/// UTF-8 without control characters other than line breaks and tabs. Each of those would take
/// six bytes in JSON, and a frame has a cap.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if text.chars().all(plain) {
        return text.into_owned();
    }
    text.replace("\r\n", "\n").chars().map(|c| if plain(c) { c } else { '\u{fffd}' }).collect()
}

/// The end of `text`: at most `lines` lines and `bytes` bytes of it, whole lines.
pub(crate) fn tail(text: &str, lines: usize, bytes: usize) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut size = 0;
    for line in text.lines().rev().take(lines) {
        size += line.len() + 1;
        if size > bytes {
            break;
        }
        kept.push(line);
    }
    kept.reverse();
    kept.join("\n")
}

/// A list of CPUs or nodes as the kernel writes it (`0-3,8`), ascending; `None` when it is no
/// such list or reaches beyond any machine.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= 8192 {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_keeps_the_end() {
        let mut ring = Ring::default();
        ring.push(b"first line\n");
        assert_eq!(ring.text(), "first line\n");
        ring.push("x".repeat(Ring::KEPT - 6).as_bytes());
        ring.push(b"\nlast\n");
        assert_eq!(ring.text(), "[the beginning was cut off]\nlast\n");
        assert!(ring.bytes.len() <= Ring::KEPT);
    }

    #[test]
    fn text_is_cleaned_and_cut() {
        assert_eq!(clean(b"a\r\nb\x1b[0m\xff\t."), "a\nb\u{fffd}[0m\u{fffd}\t.");
        assert_eq!(tail("a\nb\nc\n", 2, 100), "b\nc");
        assert_eq!(tail("aaaa\nbbbb", 5, 6), "bbbb");
    }

    #[test]
    fn lists_are_parsed_or_refused() {
        assert_eq!(parse_list("0-2,8,1\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["2-1", "x", "1-", "0-4294967295", "-1", "1,,a"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }
}
