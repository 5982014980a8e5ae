//! An error of a script, told with the author's line.

use std::fmt;

use crate::scenario::text::{caret, clean, head};
use crate::scenario::verdict::{Check, ScriptPos};

/// Columns that an error is told in.
const WIDTH: usize = 80;
/// Lines of a message that are told.
const LINES: usize = 40;
/// Steps of a call chain that are told.
const STEPS: usize = 6;

/// Why a script could not be read, compiled or run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// What is wrong.
    pub message: String,
    /// The author's line.
    pub at: Option<Box<ScriptPos>>,
    /// What to do about it.
    pub help: Option<String>,
    /// Where it happened below the author's line, and how it got there, innermost first.
    pub trail: Vec<String>,
}

impl ScriptError {
    /// An error without a place.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        ScriptError { message: message.into(), at: None, help: None, trail: Vec::new() }
    }

    pub(crate) fn at(mut self, at: Option<ScriptPos>) -> Self {
        self.at = at.map(Box::new);
        self
    }

    pub(crate) fn help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    /// The judgement that follows: the scenario could not be judged.
    #[must_use]
    pub fn check(&self) -> Check {
        let mut text = self.message.clone();
        for line in self.below() {
            text.push('\n');
            text.push_str(&line);
        }
        Check::error("script", text).at(self.at.as_deref().cloned())
    }

    /// The lines below the excerpt.
    fn below(&self) -> Vec<String> {
        let mut out: Vec<String> = self.help.iter().map(|help| format!("help: {help}")).collect();
        out.extend(self.trail.iter().take(STEPS).cloned());
        if self.trail.len() > STEPS {
            out.push(format!("and {} calls more", self.trail.len() - STEPS));
        }
        out
    }
}

/// The whole error, as compilers tell it:
///
/// ```text
/// error: "topolgy" is no option of scenario(..); did you mean "topology"?
///  --> smoke.rhai:3:5
///   |
/// 3 |     topolgy: "1n2l2c1t",
///   |     ^
///   = help: options are ...
/// ```
impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = head(&clean(&self.message), LINES, 1000);
        write!(f, "error: {}", message.join("\n"))?;
        let mut gutter = 1;
        if let Some(at) = &self.at {
            gutter = at.line.to_string().len();
            for line in caret(at, WIDTH) {
                write!(f, "\n{line}")?;
            }
        }
        for line in self.below() {
            write!(f, "\n{} = {}", " ".repeat(gutter), clean(&line))?;
        }
        Ok(())
    }
}

impl std::error::Error for ScriptError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_point_at_the_authors_line() {
        let at = ScriptPos { file: "a.rhai".into(), line: 12, column: 3, text: "  frob();".into() };
        let mut error = ScriptError::new("there is no function frob()").at(Some(at));
        error.help = Some("write it".into());
        error.trail = (0..8).map(|n| format!("called from b.rhai:{n}")).collect();
        let told = error.to_string();
        let want = "\
error: there is no function frob()
  --> a.rhai:12:3
   |
12 |   frob();
   |   ^
   = help: write it
   = called from b.rhai:0
   = called from b.rhai:1
   = called from b.rhai:2
   = called from b.rhai:3
   = called from b.rhai:4
   = called from b.rhai:5
   = and 2 calls more";
        assert_eq!(told, want);
        let check = error.check();
        assert_eq!(check.label, "script");
        assert!(
            check.message.unwrap().starts_with("there is no function frob()\nhelp: write it\n")
        );
    }

    #[test]
    fn tabs_wide_text_and_long_lines_stay_in_their_columns() {
        let long = format!("\t\tlet ünïcode = \"{}\"; frob();", "x".repeat(200));
        let column = long.chars().count() - 6;
        let at = ScriptPos { file: "a.rhai".into(), line: 1, column, text: long };
        let told = ScriptError::new("no\x1b[31m colour").at(Some(at)).to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "error: no colour");
        assert!(lines.iter().all(|l| l.chars().count() <= 80), "{told}");
        let caret = lines[4].chars().position(|c| c == '^').unwrap();
        let under: String = lines[3].chars().skip(caret).take(4).collect();
        assert_eq!(under, "frob", "{told}");
    }
}
