//! Script texts by name: lines for error messages, and the words of an argument for labels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhai::Position;

use crate::scenario::verdict::ScriptPos;

/// The largest script that is read: far more than anybody writes.
pub(crate) const MAX_SCRIPT: u64 = 4 << 20;

/// One script's text.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As messages name it.
    pub(crate) path: PathBuf,
    /// All of it.
    pub(crate) text: Arc<str>,
    /// Whether it is a part of cryoscope, not of the author.
    pub(crate) embedded: bool,
}

impl Source {
    /// Reads a script.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the file.
    pub(crate) fn read(path: &Path) -> Result<Source, String> {
        let shown = path.display();
        let meta = std::fs::metadata(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        if meta.is_dir() {
            return Err(format!("{shown} is a directory, not a script"));
        }
        if !meta.is_file() {
            let why = "every scenario reads its script anew";
            return Err(format!("{shown} is no regular file, and {why}: write the script to one"));
        }
        if meta.len() > MAX_SCRIPT {
            let mib = MAX_SCRIPT >> 20;
            return Err(format!("{shown} is no script: it is larger than {mib} MiB"));
        }
        let bytes = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            format!("{shown} is no script: byte {at} is not UTF-8")
        })?;
        Ok(Source { path: path.to_path_buf(), text: text.into(), embedded: false })
    }

    /// A place in this script, with its line.
    pub(crate) fn place(&self, pos: Position) -> Option<ScriptPos> {
        let line = pos.line()?;
        let text = self.text.lines().nth(line - 1).unwrap_or("");
        // Rhai counts columns from 1 and says 0 for "somewhere in the line".
        let column = pos.position().unwrap_or(0);
        Some(ScriptPos { file: self.path.clone(), line, column, text: text.to_string() })
    }

    /// The text from `pos` on.
    fn from(&self, pos: Position) -> Option<&str> {
        let line = pos.line()?;
        let column = pos.position()?;
        let start: usize = self.text.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let rest = &self.text[start..];
        let skip = rest.char_indices().nth(column - 1).map(|(at, _)| at)?;
        Some(&rest[skip..])
    }

    /// The words of the first argument of the call whose name stands at `pos`, on one line.
    pub(crate) fn first_argument(&self, pos: Position) -> Option<String> {
        let rest = self.from(pos)?;
        let open = rest.find('(')?;
        if !rest[..open].chars().all(|c| c.is_alphanumeric() || c == '_' || c.is_whitespace()) {
            return None;
        }
        let args = &rest[open + 1..];
        let end = end_of_argument(args)?;
        let words: Vec<&str> = args[..end].split_whitespace().collect();
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// The place of `key:` among the arguments of the call whose name stands at `pos`.
    pub(crate) fn key(&self, pos: Position, key: &str) -> Option<Position> {
        let rest = self.from(pos)?;
        let open = rest.find('(')? + 1;
        let mut depth = 1usize;
        let mut previous: Option<(usize, &str)> = None;
        for (at, token) in Tokens::new(&rest[open..]) {
            match token {
                "(" | "[" | "{" | "#{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                ":" => {
                    if let Some((at, _)) = previous.filter(|(_, name)| *name == key) {
                        let before = &self.text[..self.text.len() - rest.len() + open + at];
                        let line = before.matches('\n').count() + 1;
                        let start = before.rfind('\n').map_or(0, |nl| nl + 1);
                        let column = before[start..].chars().count() + 1;
                        let (line, column) = (u16::try_from(line), u16::try_from(column));
                        return Some(Position::new(line.ok()?, column.ok()?));
                    }
                }
                _ => {}
            }
            if depth == 0 {
                return None;
            }
            previous = Some((at, token.trim_matches('"')));
        }
        None
    }

    /// Every identifier in the text, for nearest names.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        Tokens::new(&self.text)
            .map(|(_, token)| token)
            .filter(|t| t.starts_with(|c: char| c.is_alphabetic() || c == '_'))
    }
}

/// Adds the names that a script assigns to, other than in their definitions. Names of properties
/// are among them; nothing that is assigned to is missing.
fn assigned(text: &str, names: &mut BTreeSet<String>) {
    let mut previous = "";
    let is_name = |token: &str| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    for (at, token) in Tokens::new(text) {
        let after = &text[at + token.len()..];
        if token.starts_with('`') && token.len() > 2 {
            // Text between backticks has code in it.
            assigned(&token[1..token.len() - 1], names);
        } else if is_name(token) && !matches!(previous, "let" | "const") && is_assignment(after) {
            names.insert(token.to_string());
        }
        previous = token;
    }
}

/// Whether `=`, `+=` or another of their kind is the first thing in `text`.
fn is_assignment(text: &str) -> bool {
    let Some((at, _)) = Tokens::new(text).next() else { return false };
    let sign = &text[at..];
    let operators = ["**", "<<", ">>", "+", "-", "*", "/", "%", "&", "|", "^"];
    let rest = operators.iter().find_map(|o| sign.strip_prefix(o)).unwrap_or(sign);
    let rest = rest.strip_prefix('=');
    rest.is_some_and(|rest| !rest.starts_with(['=', '>']))
}

/// Where the argument at the start of `text` ends: at its comma or at the closing parenthesis.
fn end_of_argument(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    // The commas between a closure's parameters separate nothing else.
    let mut bars = if text.trim_start().starts_with('|') { 2 } else { 0 };
    for (at, token) in Tokens::new(text) {
        match token {
            "|" if bars > 0 => bars -= 1,
            _ if bars > 0 => {}
            "(" | "[" | "{" | "#{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return Some(at),
            ")" | "]" | "}" => depth -= 1,
            "," if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// A rough cut of a script into tokens: words, strings (with their quotes), single characters and
/// `#{`; blanks and comments are left out. It only has to find what belongs together.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Tokens { text, at: 0 }
    }

    /// How long the token at the start of `rest` is, and whether it counts.
    fn measure(rest: &str) -> (usize, bool) {
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let c = rest.chars().next().unwrap_or(' ');
        let until = |end: &str, from: usize| {
            rest[from.min(rest.len())..].find(end).map_or(rest.len(), |at| from + at + end.len())
        };
        match c {
            _ if rest.starts_with("//") => (until("\n", 2), false),
            _ if rest.starts_with("/*") => (until("*/", 2), false),
            _ if rest.starts_with("#{") => (2, true),
            '"' | '\'' | '`' => (quoted(rest, c), true),
            c if c.is_whitespace() => (first, false),
            c if c.is_alphanumeric() || c == '_' => {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
                (end.unwrap_or(rest.len()), true)
            }
            _ => (first, true),
        }
    }
}

/// The length of the string at the start of `text`, quotes included.
fn quoted(text: &str, quote: char) -> usize {
    closing_quote(text, quote).unwrap_or(text.len())
}

/// Where the string at the start of `text` ends, if it does.
fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote != '`' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The quote of a token that is a string without an end.
pub(super) fn open_quote(token: &str) -> Option<char> {
    let quote = token.chars().next().filter(|c| matches!(c, '"' | '`' | '\''))?;
    closing_quote(token, quote).is_none().then_some(quote)
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = &self.text[self.at..];
            if rest.is_empty() {
                return None;
            }
            let (len, counts) = Self::measure(rest);
            let at = self.at;
            self.at += len;
            if counts {
                return Some((at, &rest[..len]));
            }
        }
    }
}

/// The scripts that one run has read, by the name under which the engine knows them.
#[derive(Debug, Default)]
pub(crate) struct Sources(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    sources: BTreeMap<String, Source>,
    /// Names that any of them assigns to.
    assigned: BTreeSet<String>,
}

impl Sources {
    pub(crate) fn add(&self, name: &str, source: Source) {
        let mut all = self.lock();
        assigned(&source.text, &mut all.assigned);
        all.sources.insert(name.to_string(), source);
    }

    pub(crate) fn get(&self, name: &str) -> Option<Source> {
        self.lock().sources.get(name).cloned()
    }

    /// Whether any script may assign to a variable of that name after its definition.
    pub(crate) fn assign(&self, name: &str) -> bool {
        self.lock().assigned.contains(name)
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { path: "a.rhai".into(), text: text.into(), embedded: false }
    }

    #[test]
    fn the_words_of_an_argument_are_found() {
        let cases = [
            ("expect(x).eq(1)", Some("x")),
            ("expect(m[\"a,b\"], \"label\")", Some("m[\"a,b\"]")),
            (
                "expect(\n    f(1, 2)\n      + g(\")\") // why (\n)",
                Some("f(1, 2) + g(\")\") // why ("),
            ),
            ("expect(|a, b| a, 1)", Some("|a, b| a")),
            ("expect(|| a, 1)", Some("|| a")),
            ("expect(#{a: 1, b: [2, 3]})", Some("#{a: 1, b: [2, 3]}")),
            ("expect(`a${1}, b`, 2)", Some("`a${1}, b`")),
            ("expect()", None),
            ("expect(x", None),
            ("expect", None),
            ("expect . (x)", None),
        ];
        for (text, want) in cases {
            let got = source(text).first_argument(Position::new(1, 1));
            assert_eq!(got.as_deref(), want, "{text}");
        }
        let two = source("let ü = 1;\nlet y = 2; expect(ü + y).eq(3);");
        assert_eq!(two.first_argument(Position::new(2, 12)).as_deref(), Some("ü + y"));
        assert_eq!(two.first_argument(Position::new(9, 1)), None);
    }

    #[test]
    fn names_that_are_assigned_to_are_known() {
        let text = "let a = 1; const b = 2; a == 1; a >= b; a => c; d = 1; e += 1; f **= 2;\n\
                    g <<= 1; h /* why */ = 2; i != 1; j <= 2; k.l = 3; `m ${n = 4}`; \"o = 5\";\n\
                    // p = 6\nlet q = |r| r = 7; s[0] = 8";
        let sources = Sources::default();
        sources.add("x", source(text));
        let names: Vec<String> = sources.lock().assigned.iter().cloned().collect();
        assert_eq!(names, ["d", "e", "f", "g", "h", "l", "n", "r"]);
        assert!(sources.assign("d") && !sources.assign("a"));
    }

    #[test]
    fn keys_are_found_among_their_own_arguments_only() {
        let text = "f(1);\nscenario(\"kernl: x\", #{ // kernl: y\n  tags: [\"kernl\"],\n  kernl: 1 });\n\
                    g(#{ other: 2 })";
        let text = source(text);
        assert_eq!(text.key(Position::new(2, 1), "kernl"), Some(Position::new(4, 3)));
        assert_eq!(text.key(Position::new(2, 1), "other"), None);
        assert_eq!(text.key(Position::new(5, 1), "other"), Some(Position::new(5, 6)));
        assert_eq!(
            source("f(#{ \"a b\": 1 })").key(Position::new(1, 1), "a b"),
            Some(Position::new(1, 6))
        );
    }

    #[test]
    fn files_that_are_no_scripts_say_why() {
        let dir = std::env::temp_dir().join(format!("cryoscope-source-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("x.rhai");
        let told =
            |path: &Path| Source::read(path).unwrap_err().replace(dir.to_str().unwrap(), "D");
        assert_eq!(told(&file), "cannot read D/x.rhai: No such file or directory (os error 2)");
        assert_eq!(told(&dir), "D is a directory, not a script");
        std::fs::write(&file, b"ab\xff").unwrap();
        assert_eq!(told(&file), "D/x.rhai is no script: byte 2 is not UTF-8");
        let big = std::fs::File::create(&file).unwrap();
        big.set_len(MAX_SCRIPT + 1).unwrap();
        assert_eq!(told(&file), "D/x.rhai is no script: it is larger than 4 MiB");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
