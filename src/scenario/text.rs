//! Text for people: cleaning what a guest printed, fitting it into a width, pointing at a place.

use super::verdict::ScriptPos;

/// `text` without anything that a terminal would obey: escape sequences are dropped whole, carriage
/// returns end nothing, other control characters show as `·`. Line breaks and tabs stay.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {}
            '\u{1b}' => skip_escape(&mut chars),
            c if c.is_control() => out.push('·'),
            // Marks that reorder or hide text in a terminal.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('·');
            }
            c => out.push(c),
        }
    }
    out
}

/// Drops the rest of an ECMA-48 escape sequence whose ESC was just read.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            while let Some(&c) = chars.peek() {
                // Parameters and intermediates, then one final byte; anything else is text again.
                match c {
                    '\u{20}'..='\u{3f}' => chars.next(),
                    '\u{40}'..='\u{7e}' => {
                        chars.next();
                        return;
                    }
                    _ => return,
                };
            }
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            // A string up to BEL or ST, but never beyond the line: a lone introducer in a log
            // must not swallow what follows.
            while let Some(&c) = chars.peek() {
                if c == '\n' {
                    return;
                }
                chars.next();
                if c == '\u{7}' {
                    return;
                }
                if c == '\u{1b}' {
                    if chars.peek() == Some(&'\\') {
                        chars.next();
                    }
                    return;
                }
            }
        }
        Some('\u{20}'..='\u{7e}') => {
            chars.next();
        }
        _ => {}
    }
}

/// The last `lines` lines of `text` (blank ends not counted), at most `bytes` bytes of them.
#[must_use]
pub fn tail(text: &str, lines: usize, bytes: usize) -> &str {
    let text = text.trim_end();
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let by_lines =
        text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    &text[start.max(by_lines)..]
}

/// `text` cut to `width` characters, with `…` where something is missing.
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// At most `lines` lines of `text`, each at most `width` characters; says how many are missing.
#[must_use]
pub fn head(text: &str, lines: usize, width: usize) -> Vec<String> {
    let total = text.lines().count();
    let mut out: Vec<String> = text.lines().take(lines).map(|l| fit(l, width)).collect();
    if total > lines {
        out.push(format!("… ({} more lines)", total - lines));
    }
    out
}

/// The place with its line and a caret under the column, as compilers show it:
///
/// ```text
///    --> scripts/a.rhai:3:5
///     |
///   3 |     expect(x).eq(1);
///     |     ^
/// ```
#[must_use]
pub fn caret(at: &ScriptPos, width: usize) -> Vec<String> {
    let number = at.line.to_string();
    let gutter = " ".repeat(number.len());
    let mut out = vec![format!("{gutter}--> {at}")];
    if at.text.trim().is_empty() {
        return out;
    }
    let (text, column) = window(&at.text, at.column, width.saturating_sub(number.len() + 3));
    out.push(format!("{gutter} |"));
    out.push(format!("{number} | {}", text.trim_end()));
    if at.column > 0 {
        out.push(format!("{gutter} | {}^", " ".repeat(column - 1)));
    }
    out
}

/// The part of a line around `column` (from 1) that fits into `width`, tabs as one blank each, and
/// the column in that part.
fn window(line: &str, column: usize, width: usize) -> (String, usize) {
    let chars: Vec<char> = clean(line).chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
    let width = width.max(20);
    let column = column.clamp(1, chars.len() + 1);
    if chars.len() <= width {
        return (chars.into_iter().collect(), column);
    }
    let start = (column - 1).saturating_sub(width / 2).min(chars.len() - width);
    let end = start + width;
    let mut part: Vec<char> = chars[start..end].to_vec();
    if start > 0 {
        part[0] = '…';
    }
    if end < chars.len() {
        part[width - 1] = '…';
    }
    (part.into_iter().collect(), column - start)
}

/// A length of time as people say it: `0.42 s`, `6.2 s`, `2 min 5 s`.
#[must_use]
pub fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{:.2} s", ms as f64 / 1e3),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_cannot_command_a_terminal() {
        let cases = [
            ("plain\ttext\n", "plain\ttext\n"),
            ("a\r\nb\r\n", "a\nb\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b[2J\x1b[Hgone", "gone"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]0;title\x1b\\after", "after"),
            ("\x1bPq#\nnext", "\nnext"),
            ("\x1bcreset", "reset"),
            ("bell\x07 nul\0", "bell· nul·"),
            ("\u{9b}31m", "·31m"),
            ("a\u{202e}b", "a·b"),
            ("\x1b[\x1b[1mx", "x"),
            ("ends in \x1b", "ends in "),
            ("ends in \x1b[12", "ends in "),
        ];
        for (raw, want) in cases {
            assert_eq!(clean(raw), want, "{raw:?}");
        }
    }

    #[test]
    fn tails_end_at_lines_and_at_characters() {
        assert_eq!(tail("a\nb\nc\n\n", 2, 100), "b\nc");
        assert_eq!(tail("a\nb", 5, 100), "a\nb");
        assert_eq!(tail("äöü", 1, 3), "ü");
        assert_eq!(tail("", 3, 100), "");
    }

    #[test]
    fn the_caret_stands_under_the_column() {
        let at = |column, text: &str| ScriptPos {
            file: "a.rhai".into(),
            line: 12,
            column,
            text: text.into(),
        };
        let lines = caret(&at(5, "    expect(x).eq(1);"), 80);
        assert_eq!(lines, ["  --> a.rhai:12:5", "   |", "12 |     expect(x).eq(1);", "   |     ^"]);
        assert_eq!(caret(&at(0, "x"), 80).len(), 3, "a line without a column has no caret");
        assert_eq!(caret(&at(3, "  "), 80).len(), 1);
        let long = format!("{}X{}", "a".repeat(200), "b".repeat(200));
        let lines = caret(&at(201, &long), 60);
        let under = lines[3].chars().position(|c| c == '^').unwrap();
        assert_eq!(lines[2].chars().nth(under), Some('X'));
        assert!(lines[2].chars().count() <= 60, "{}", lines[2]);
        assert!(lines[2].contains("| …a") && lines[2].ends_with("b…"), "{}", lines[2]);
    }

    #[test]
    fn texts_are_cut_with_a_mark() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(head("a\nb\nc", 2, 9), ["a", "b", "… (1 more lines)"]);
        assert_eq!(seconds(420), "0.42 s");
        assert_eq!(seconds(6_230), "6.2 s");
        assert_eq!(seconds(125_000), "2 min 5 s");
    }
}
