//! Consumers of a run's events: the terminal, a file of JSON lines, kept directories, a page.

mod failure;
mod files;
mod github;
mod grid;
mod html;
mod junit;
mod matrix;
mod terminal;

pub use files::{JsonLines, Keep, Trouble, cell_dir};
pub use github::Github;
pub use html::Html;
pub use junit::Junit;
pub use terminal::Terminal;

use super::event::{Logs, RunEvent, RunModel};
use super::runner::Sink;
use super::verdict::Check;

/// How to write for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether colours may be used.
    pub colour: bool,
    /// Whether a line at the bottom may be drawn again and again.
    pub live: bool,
    /// Columns to fit into.
    pub width: usize,
}

impl Style {
    /// For a pipe or a file.
    #[must_use]
    pub fn plain() -> Self {
        Style { colour: false, live: false, width: 100 }
    }

    /// `text` in a colour, where colours may be used.
    #[must_use]
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_string() }
    }
}

/// The colours in use, by their ECMA-48 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Magenta = 35,
}

/// A check as lines: what was judged, what was found, the author's line.
#[must_use]
pub fn check_lines(check: &Check, style: Style) -> Vec<String> {
    failure::check(check, style)
}

/// The ends of logs as lines, without what has been `said` already.
#[must_use]
pub fn log_lines(logs: &Logs, said: &str, lines: usize, style: Style) -> Vec<String> {
    failure::logs(logs, said, lines, style)
}

/// Several sinks as one.
#[derive(Default)]
pub struct Fan {
    sinks: Vec<Box<dyn Sink>>,
}

impl Fan {
    /// Adds a sink.
    pub fn add(&mut self, sink: impl Sink + 'static) {
        self.sinks.push(Box::new(sink));
    }
}

impl Sink for Fan {
    fn event(&mut self, event: &RunEvent, model: &RunModel) {
        self.sinks.iter_mut().for_each(|sink| sink.event(event, model));
    }

    fn tick(&mut self, model: &RunModel) {
        self.sinks.iter_mut().for_each(|sink| sink.tick(model));
    }
}

/// A check as the report has it.
#[cfg(test)]
pub(crate) fn told(check: &Check) -> Vec<String> {
    failure::check(check, Style::plain())
}
