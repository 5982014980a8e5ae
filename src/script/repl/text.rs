//! An input's text, as far as it can be understood without compiling it: whether it is whole, what
//! ends it, and the pieces that are shown in different colours.

use std::collections::BTreeSet;
use std::ops::Range;

use rhai::Position;

use crate::script::source::{Tokens, open_quote};

/// Rhai's words that begin or join statements.
const KEYWORDS: [&str; 26] = [
    "as", "break", "catch", "const", "continue", "do", "else", "export", "false", "fn", "for",
    "global", "if", "import", "in", "let", "loop", "private", "return", "switch", "this", "throw",
    "true", "try", "until", "while",
];

/// A sort of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A word of the language.
    Keyword,
    /// A string.
    Text,
    /// A number.
    Number,
    /// A comment.
    Comment,
    /// Something else.
    Other,
}

/// Whether a word is Rhai's own.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// Rhai's own words.
pub(super) fn keywords() -> impl Iterator<Item = &'static str> {
    KEYWORDS.into_iter()
}

/// Whether an input can be evaluated as it stands; otherwise more lines are to come. What is wrong
/// anyhow is whole: more lines would not mend it.
#[must_use]
pub fn is_whole(text: &str) -> bool {
    let mut open: Vec<&str> = Vec::new();
    let mut last = "";
    let mut end = 0;
    for (at, token) in Tokens::new(text) {
        match open_quote(token) {
            Some('`') => return false,
            // These strings end with their line.
            Some(_) => return true,
            None => {}
        }
        match token {
            "(" | "[" | "{" | "#{" => open.push(token),
            ")" | "]" | "}" if open.pop().is_none() => return true,
            _ => {}
        }
        (last, end) = (token, at + token.len());
    }
    let rest = &text[end..];
    if rest.contains("/*") && !rest.contains("*/") {
        return false;
    }
    // An empty line ends what only its last sign leaves open.
    let ended = rest.lines().count() > 1 && rest.ends_with('\n');
    open.is_empty() && (ended || !wants_more(last))
}

/// Whether something has to follow a token.
fn wants_more(token: &str) -> bool {
    matches!(
        token,
        "=" | "+" | "-" | "*" | "/" | "%" | "." | "," | "<" | ">" | "&" | "|" | "^" | ":" | "?"
    )
}

/// Whether a line goes on with what the lines before it began, although that is whole.
pub(crate) fn continues(line: &str) -> bool {
    let line = line.trim_start();
    let word: String = line.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    line.starts_with('.') && !line.starts_with("..")
        || line.starts_with("&&")
        || line.starts_with("||")
        || matches!(word.as_str(), "else" | "catch")
}

/// Whether a text ends with `;`.
pub(super) fn is_statement(text: &str) -> bool {
    Tokens::new(text).last().is_some_and(|(_, token)| token == ";")
}

/// Where `_` is the last case of a `switch`.
pub(super) fn default_cases(text: &str) -> BTreeSet<Position> {
    let tokens: Vec<(usize, &str)> = Tokens::new(text).collect();
    let is_case =
        |window: &&[(usize, &str)]| window[0].1 == "_" && window[1].1 == "=" && window[2].1 == ">";
    tokens.windows(3).filter(is_case).filter_map(|window| position(text, window[0].0)).collect()
}

fn position(text: &str, at: usize) -> Option<Position> {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    Some(Position::new(u16::try_from(line).ok()?, u16::try_from(column).ok()?))
}

/// The text's pieces in order; together they are all of it.
#[must_use]
pub fn pieces(text: &str) -> Vec<(Range<usize>, Piece)> {
    let mut out = Vec::new();
    let mut end = 0;
    let between = |range: Range<usize>, out: &mut Vec<(Range<usize>, Piece)>| {
        if !range.is_empty() {
            let comment = text[range.clone()].contains(['/', '*']);
            out.push((range, if comment { Piece::Comment } else { Piece::Other }));
        }
    };
    let mut previous = "";
    for (at, token) in Tokens::new(text) {
        between(end..at, &mut out);
        end = at + token.len();
        let first = token.chars().next().unwrap_or(' ');
        let piece = match first {
            '"' | '`' | '\'' => Piece::Text,
            c if c.is_ascii_digit() => Piece::Number,
            _ if is_keyword(token) && previous != "." => Piece::Keyword,
            _ => Piece::Other,
        };
        out.push((at..end, piece));
        previous = token;
    }
    between(end..text.len(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_whole_when_everything_is_closed() {
        let cases = [
            ("1 + 1", true),
            ("", true),
            ("let f = |x| {", false),
            ("let f = |x| {\n  x + 1\n}", true),
            ("vm.freeze(", false),
            ("#{ a: [1, 2", false),
            ("#{ a: [1, 2] }", true),
            ("a)", true),
            ("\"no end", true),
            ("\"a { [ (\"", true),
            ("`two\nlines", false),
            ("`two\nlines`", true),
            ("1 // and {", true),
            ("1 /* and {", false),
            ("1 /* and { */", true),
            ("let x =", false),
            ("let x =\n\n", true),
            ("let x =\n\n{", false),
            ("snap.", false),
            ("x.filter(|e|", false),
            ("a;", true),
            ("'\"'", true),
            ("0.5", true),
        ];
        for (text, want) in cases {
            assert_eq!(is_whole(text), want, "{text:?}");
        }
    }

    #[test]
    fn lines_that_go_on_are_known() {
        for line in ["  .len", "else {", "} else {", "|| b", "&& b", "catch (e) {"] {
            assert_eq!(continues(line), !line.starts_with('}'), "{line:?}");
        }
        for line in ["..5", "elsewhere()", "|x| x", ""] {
            assert!(!continues(line), "{line:?}");
        }
    }

    #[test]
    fn statements_end_with_a_semicolon() {
        for (text, want) in
            [("a;", true), ("a; // why", true), ("a", false), ("\";\"", false), ("", false)]
        {
            assert_eq!(is_statement(text), want, "{text:?}");
        }
    }

    #[test]
    fn pieces_are_all_of_the_text() {
        let text = "let ü = \"a\"; // why\nx.let + 0x1f /* open";
        let found = pieces(text);
        let whole: String = found.iter().map(|(range, _)| &text[range.clone()]).collect();
        assert_eq!(whole, text);
        let of = |piece| -> Vec<&str> {
            let matching = found.iter().filter(|(_, p)| *p == piece);
            matching.map(|(range, _)| text[range.clone()].trim()).collect()
        };
        assert_eq!(of(Piece::Keyword), ["let"]);
        assert_eq!(of(Piece::Text), ["\"a\""]);
        assert_eq!(of(Piece::Number), ["0x1f"]);
        assert_eq!(of(Piece::Comment), ["// why", "/* open"]);
    }

    #[test]
    fn the_last_case_of_a_switch_is_found() {
        let found = default_cases("switch _ {\n  1 => _,\n  _ => 2,\n}");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [Position::new(3, 3)]);
    }
}
