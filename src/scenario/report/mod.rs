//! Consumers of a run's events: the terminal, a file of JSON lines, kept directories.

mod failure;
mod files;
mod terminal;

pub use files::{JsonLines, Keep, Trouble, cell_dir};
pub use terminal::Terminal;

use super::event::{RunEvent, RunModel};
use super::runner::Sink;

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
    fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_string() }
    }
}

/// The colours in use, by their ECMA-48 numbers.
#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
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
