//! The line editor: completion, colours, inputs of several lines, history.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustyline::completion::Completer;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Context, Helper};

use super::commands::{self, COMMANDS};
use crate::scenario::report::{Colour, Style};
use crate::script::repl::{Candidate, Interactive, Piece, is_whole, pieces};
use crate::words::plain;

const PROMPT: &str = "> ";
/// Inputs that are remembered.
const REMEMBERED: usize = 10_000;
/// Candidates that are listed without asking.
const LISTED: usize = 60;

/// What came from the terminal.
pub(super) enum Read {
    Input(String),
    /// A Ctrl-C, or an empty line.
    Nothing,
    End,
}

/// The editor with its history.
pub(super) struct Editor {
    editor: rustyline::Editor<Assistant, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    pub(super) fn new(
        interactive: Rc<RefCell<Interactive>>,
        style: Style,
    ) -> Result<Self, ReadlineError> {
        let config = rustyline::Config::builder()
            .completion_type(CompletionType::List)
            .completion_prompt_limit(LISTED)
            .completion_show_all_if_ambiguous(true)
            .history_ignore_space(true)
            .build();
        let mut editor = rustyline::Editor::with_config(config)?;
        editor.set_max_history_size(REMEMBERED)?;
        editor.set_helper(Some(Assistant { interactive, style }));
        Ok(Editor { editor, history: None })
    }

    /// Reads the history, and keeps it from now on; says why it cannot.
    pub(super) fn keep_history(&mut self, path: Option<&Path>) -> Option<String> {
        let Some(path) = path else {
            return Some("neither XDG_STATE_HOME nor HOME names a place for it".into());
        };
        let dir = path.parent()?;
        // What was typed is nobody else's business.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        if let Err(e) = made {
            return Some(format!("{}: {}", dir.display(), plain(&e)));
        }
        match self.editor.load_history(path) {
            Ok(()) => {}
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Some(format!("{}: {e}", path.display())),
        }
        self.history = Some(path.to_owned());
        None
    }

    /// The next input.
    pub(super) fn read(&mut self) -> Result<Read, ReadlineError> {
        let input = match self.editor.readline(PROMPT) {
            Ok(input) => input,
            Err(ReadlineError::Interrupted) => return Ok(Read::Nothing),
            Err(ReadlineError::Eof) => return Ok(Read::End),
            Err(e) => return Err(e),
        };
        if input.trim().is_empty() {
            return Ok(Read::Nothing);
        }
        // At once, so that nothing is lost however the session ends.
        if self.editor.add_history_entry(input.trim_end()).unwrap_or(false)
            && let Some(path) = &self.history
        {
            let _ = self.editor.append_history(path);
        }
        Ok(Read::Input(input))
    }
}

/// What the editor asks while a line is typed.
pub(super) struct Assistant {
    interactive: Rc<RefCell<Interactive>>,
    style: Style,
}

impl Assistant {
    /// What could stand at `pos`: where the part begins that it replaces, and the candidates.
    fn candidates(&self, line: &str, pos: usize) -> (usize, Vec<Candidate>) {
        let (before, rest) = line.split_at(pos);
        let follows = !rest.trim().is_empty();
        if !commands::is_command(before) {
            return self.interactive.borrow().complete(before, follows);
        }
        let colon = before.len() - before.trim_start().len() + 1;
        let Some(space) = before[colon..].find(' ') else {
            let typed = &before[colon..];
            let named = COMMANDS.iter().filter(|(name, ..)| name.starts_with(typed));
            let candidate = |(name, argument, _): &(&str, &str, &str)| Candidate {
                text: if argument.is_empty() { (*name).into() } else { format!("{name} ") },
                shown: format!(":{name}"),
            };
            return (colon, named.map(candidate).collect());
        };
        let argument = colon + space + 1;
        let typed = &before[argument..];
        match commands::parse(&before[..argument].replace(' ', " x")) {
            Ok(commands::Command::Load(_)) => Interactive::files(argument, typed),
            Ok(commands::Command::Help(_)) => {
                let interactive = self.interactive.borrow();
                let types = interactive.surface().types.iter();
                let named = types.filter(|t| t.name.starts_with(typed));
                let candidate = |name: &str| Candidate { text: name.into(), shown: name.into() };
                (argument, named.map(|t| candidate(&t.name)).collect())
            }
            Ok(commands::Command::Type(_) | commands::Command::Time(_)) => {
                let (start, found) = self.interactive.borrow().complete(typed, follows);
                (argument + start, found)
            }
            _ => (pos, Vec::new()),
        }
    }
}

/// A candidate as the editor wants it.
pub(super) struct Offered(Candidate);

impl rustyline::completion::Candidate for Offered {
    fn display(&self) -> &str {
        &self.0.shown
    }

    fn replacement(&self) -> &str {
        &self.0.text
    }
}

impl Completer for Assistant {
    type Candidate = Offered;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Offered>)> {
        let (start, found) = self.candidates(line, pos);
        Ok((start, found.into_iter().map(Offered).collect()))
    }
}

impl Hinter for Assistant {
    type Hint = String;
}

impl Validator for Assistant {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = ctx.input();
        match commands::is_command(input) || is_whole(input) {
            true => Ok(ValidationResult::Valid(None)),
            false => Ok(ValidationResult::Incomplete),
        }
    }
}

impl Highlighter for Assistant {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if !self.style.colour || commands::is_command(line) {
            return Cow::Borrowed(line);
        }
        let mut out = String::with_capacity(line.len() * 2);
        for (range, piece) in pieces(line) {
            let text = &line[range];
            let colour = match piece {
                Piece::Keyword => Colour::Magenta,
                Piece::Text => Colour::Green,
                Piece::Number => Colour::Yellow,
                Piece::Comment => Colour::Dim,
                Piece::Other => {
                    out.push_str(text);
                    continue;
                }
            };
            out.push_str(&self.style.paint(colour, text));
        }
        Cow::Owned(out)
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(self.style.paint(Colour::Blue, prompt))
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        kind != CmdKind::MoveCursor && self.style.colour
    }
}

impl Helper for Assistant {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scenario::cell::Cancel;
    use crate::scenario::verdict::Recorder;
    use crate::script::tests::lab::FakeLab;

    fn assistant(colour: bool) -> Assistant {
        let lab = Arc::new(FakeLab::new().with_fifo());
        let mut interactive = Interactive::new(lab, Recorder::new(), Cancel::new());
        interactive.eval("vm.start(#{ work: \"spin\", count: 2 }); vm.freeze(\"one\");");
        let style = Style { colour, ..Style::plain() };
        Assistant { interactive: Rc::new(RefCell::new(interactive)), style }
    }

    /// What the line could become, with the cursor at `|` or at its end.
    fn completed(assistant: &Assistant, line: &str) -> Vec<String> {
        let pos = line.find('|').unwrap_or(line.len());
        let line = line.replacen('|', "", 1);
        let (start, found) = assistant.candidates(&line, pos);
        found.iter().map(|c| format!("{}{}{}", &line[..start], c.text, &line[pos..])).collect()
    }

    #[test]
    fn lines_and_commands_are_completed() {
        let assistant = assistant(false);
        let cases: [(&str, &[&str]); 10] = [
            ("snap.map(\"ta", &["snap.map(\"task_ctx\")"]),
            ("snap.map(\"ta|\").len", &["snap.map(\"task_ctx\").len"]),
            (":he", &[":help "]),
            (":qu", &[":quit"]),
            (":load src/li", &[":load src/lib.rs"]),
            (":load Cargo.t", &[":load Cargo.toml"]),
            (":help SnapshotE", &[":help SnapshotEntry", ":help SnapshotError"]),
            (":type snap.pau", &[":type snap.pause", ":type snap.pause_us"]),
            (":time vm.fre", &[":time vm.freeze(", ":time vm.freeze_when("]),
            (":maps x", &[]),
        ];
        for (line, want) in cases {
            assert_eq!(completed(&assistant, line), want, "{line}");
        }
        let of_global = completed(&assistant, "snap.global(\"nr_");
        assert_eq!(of_global.len(), 5, "{of_global:?}");
        assert_eq!(of_global[0], "snap.global(\"nr_dispatched\")");
        let of_entry = completed(&assistant, "snap.map(\"task_ctx\").at(0).");
        for member in ["weight", "runs", "get(", "cpu_sum("] {
            let whole = format!("snap.map(\"task_ctx\").at(0).{member}");
            assert!(of_entry.contains(&whole), "{member} in {of_entry:?}");
        }
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let line = "let x = \"a\"; // ü\nx.len + 1";
        let plain = assistant(false);
        assert_eq!(plain.highlight(line, 0), line);
        let coloured = assistant(true);
        let shown = coloured.highlight(line, 0);
        assert!(shown.starts_with("\x1b[35mlet\x1b[0m x = \x1b[32m\"a\"\x1b[0m"), "{shown:?}");
        assert_eq!(crate::scenario::text::clean(&shown), line);
        assert_eq!(coloured.highlight(":type \"a\"", 0), ":type \"a\"");
    }
}
