//! What the REPL says: values cut to the screen, checks as they are made, stages of the boot.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::scenario::cell::Events;
use crate::scenario::event::{RunEvent, Stage};
use crate::scenario::lab::LabFacts;
use crate::scenario::report::{Colour, Style, check_lines};
use crate::scenario::text::{clean, fit, seconds};
use crate::scenario::verdict::{Check, Outcome, Record, Recorder};
use crate::script::ScriptError;
use crate::snapshot::Snapshot;

/// Lines that a value may take where the screen's height is not known.
const LINES: usize = 24;
/// Lines of the screen that are left for the prompt and for what was typed.
const LEFT: usize = 3;

type Writer = Mutex<Box<dyn Write + Send>>;

/// Where everything is said. Clones share it.
#[derive(Clone)]
pub(super) struct Voice {
    inner: Arc<Inner>,
}

struct Inner {
    style: Style,
    /// Whether somebody looks on, whose screen is not to be flooded.
    interactive: bool,
    out: Writer,
    err: Writer,
    /// Whether a check has failed, or the scheduler has left.
    failed: AtomicBool,
    /// Whether a line that tells the stage stands at the bottom.
    live: AtomicBool,
}

impl Voice {
    /// To standard output and error.
    pub(super) fn new(style: Style, interactive: bool) -> Self {
        Voice::to(style, interactive, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    pub(super) fn to(
        style: Style,
        interactive: bool,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        let (out, err) = (Mutex::new(out), Mutex::new(err));
        let (failed, live) = (AtomicBool::new(false), AtomicBool::new(false));
        Voice { inner: Arc::new(Inner { style, interactive, out, err, failed, live }) }
    }

    pub(super) fn style(&self) -> Style {
        self.inner.style
    }

    /// Whether somebody looks on.
    pub(super) fn is_interactive(&self) -> bool {
        self.inner.interactive
    }

    /// Whether a check has failed, or the scheduler has left.
    pub(super) fn failed(&self) -> bool {
        self.inner.failed.load(Ordering::Relaxed)
    }

    fn fail(&self) {
        self.inner.failed.store(true, Ordering::Relaxed);
    }

    /// Says something whole, on lines of its own.
    pub(super) fn say(&self, text: &str) {
        self.write(&self.inner.out, &clean(text));
    }

    /// Shows a value: at a terminal as much as fits on the screen.
    pub(super) fn show(&self, text: &str) {
        let text = clean(text);
        match self.inner.interactive {
            true => self.write(&self.inner.out, &cut(&text, height(), self.style().width)),
            false => self.write(&self.inner.out, &text),
        }
    }

    /// Tells an error.
    pub(super) fn error(&self, error: &ScriptError) {
        // It is clean already.
        let mut text = error.to_string();
        if self.inner.interactive {
            text = wrapped(&text, self.style().width);
        }
        let text = match text.strip_prefix("error") {
            Some(rest) => format!("{}{rest}", self.style().paint(Colour::Red, "error")),
            None => text,
        };
        self.write(&self.inner.err, &text);
    }

    /// Refuses a command.
    pub(super) fn refuse(&self, why: &str) {
        let word = self.style().paint(Colour::Red, "error");
        self.write(&self.inner.err, &format!("{word}: {}", clean(why)));
    }

    /// Says that an input was stopped; at a terminal behind the `^C` that stands there.
    pub(super) fn interrupted(&self) {
        self.tell(if self.inner.interactive { "\ninterrupted" } else { "interrupted" });
    }

    /// Tells what happened to the machine.
    pub(super) fn tell(&self, text: &str) {
        self.write(&self.inner.err, &self.style().paint(Colour::Yellow, &clean(text)));
    }

    fn write(&self, to: &Writer, text: &str) {
        let erase = match self.inner.live.swap(false, Ordering::Relaxed) {
            true => "\r\x1b[K",
            false => "",
        };
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that is gone is no error.
        let _ = write!(to, "{erase}{text}{end}").and_then(|()| to.flush());
    }

    /// A recorder that says everything at once.
    pub(super) fn recorder(&self) -> Recorder {
        let voice = self.clone();
        Recorder::passing_on(move |record| voice.record(record))
    }

    fn record(&self, record: &Record) {
        match record {
            Record::Print { text } => self.say(text),
            Record::Plot(plot) => self.say(&plot.text().join("\n")),
            Record::Note { text, .. } => self.say(&format!("note: {text}")),
            Record::Skip { reason, .. } => self.say(&format!("skip: {reason}")),
            Record::Check(check) => self.check(check),
        }
    }

    fn check(&self, check: &Check) {
        if check.outcome >= Outcome::Fail {
            self.fail();
        }
        let mut lines = check_lines(check, self.style());
        if check.outcome == Outcome::Pass {
            lines.truncate(1);
        }
        self.write(&self.inner.out, &lines.join("\n"));
    }

    /// The voice of a laboratory: its stages, and that its scheduler has left.
    pub(super) fn events(&self) -> Events {
        Events::new(0, Listener { voice: self.clone(), line: Vec::new() })
    }

    fn event(&self, event: &RunEvent) {
        match event {
            RunEvent::Stage { stage, detail, .. } => self.stage(*stage, detail),
            RunEvent::SchedulerExited { reason, elapsed_ms, .. } => {
                self.fail();
                let at = seconds(*elapsed_ms);
                let text = format!(
                    "the scheduler has left after {at}: {reason}; the kernel's own goes on"
                );
                self.tell(&text);
            }
            _ => {}
        }
    }

    fn stage(&self, stage: Stage, detail: &str) {
        if matches!(stage, Stage::Run | Stage::Stop) {
            return;
        }
        let detail = clean(detail).replace('\n', " ");
        let doing = match detail.as_str() {
            "" => stage.doing().to_owned(),
            detail => format!("{} ({detail})", stage.doing()),
        };
        if !self.style().live {
            return self.write(&self.inner.err, &doing);
        }
        let mut err = self.inner.err.lock().unwrap_or_else(PoisonError::into_inner);
        let line = self.style().paint(Colour::Dim, &fit(&doing, self.style().width - 1));
        let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
        self.inner.live.store(true, Ordering::Relaxed);
    }

    /// Takes the stage's line away.
    pub(super) fn settle(&self) {
        if self.inner.live.swap(false, Ordering::Relaxed) {
            let mut err = self.inner.err.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
        }
    }
}

/// Takes events as lines, as every consumer of them does.
struct Listener {
    voice: Voice,
    line: Vec<u8>,
}

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            if let Ok(event) = RunEvent::from_line(&String::from_utf8_lossy(&line)) {
                self.voice.event(&event);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a session begins with.
pub(super) fn greeting(facts: &LabFacts) -> String {
    let scheduler = match facts.scheduler.as_str() {
        "none" => "the kernel's own scheduler",
        name => name,
    };
    format!(
        "cryoscope {}: {} on {}, {}, {}, {} MiB\n`vm` is the machine; :help says more, :quit ends",
        env!("CARGO_PKG_VERSION"),
        scheduler,
        facts.kernel_release,
        facts.engine,
        facts.topology,
        facts.memory >> 20
    )
}

/// The first words about a stored snapshot.
pub(super) fn greeting_of(snapshot: &Snapshot) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let what = clean(&snapshot.headline());
    format!("cryoscope {version}: {what}\n`snap` is the snapshot; :help says more, :quit ends")
}

/// Lines of the screen.
fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.ok().map(|size| size.ws_row.into()).filter(|rows| *rows > 0).unwrap_or(LINES)
}

/// An error's sentences, broken between words where a terminal would break them anywhere. The
/// author's own lines are left alone.
fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut quoting = false;
    for (i, line) in text.lines().enumerate() {
        let begins = line.trim_start();
        quoting = (quoting || begins.starts_with("-->")) && !begins.starts_with("= ");
        if i > 0 {
            out.push('\n');
        }
        if quoting {
            out.push_str(line);
            continue;
        }
        let mut used = 0;
        for (n, word) in line.split(' ').enumerate() {
            let len = word.chars().count();
            if n > 0 && used + 1 + len > width {
                out.push_str("\n  ");
                used = 2;
            } else if n > 0 {
                out.push(' ');
                used += 1;
            }
            out.push_str(word);
            used += len;
        }
    }
    out
}

/// As much of a text as fits on a screen, and how much does not.
fn cut(text: &str, rows: usize, width: usize) -> String {
    let room = rows.saturating_sub(LEFT).max(5);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let wide = lines.iter().any(|line| line.chars().count() > width);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut out: Vec<String> = lines[..shown].iter().map(|line| fit(line, width)).collect();
    match lines.len() - shown {
        0 if wide => out.push("… lines are cut; dump(_) prints all of it".into()),
        0 => {}
        1 => out.push("… 1 more line; dump(_) prints all of it".into()),
        more => out.push(format!("… {more} more lines; dump(_) prints all of it")),
    }
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_break_between_words_and_quote_as_it_is() {
        let text = "error: there is no such thing here\n --> input 1:1:5\n  |\n1 | a long line of code\n  = help: \
                    write another one";
        let want = "error: there is no\n  such thing here\n --> input 1:1:5\n  |\n1 | a long line of code\n  \
                    = help: write\n  another one";
        assert_eq!(wrapped(text, 20), want);
        assert_eq!(wrapped("unbreakablewordofalllengths", 10), "unbreakablewordofalllengths");
    }

    #[test]
    fn values_are_cut_to_the_screen() {
        let text = (1..=30).map(|i| format!("line {i}\n")).collect::<String>();
        let shown = cut(&text, 24, 80);
        assert_eq!(shown.lines().count(), 21);
        assert!(shown.ends_with("line 20\n… 10 more lines; dump(_) prints all of it"), "{shown}");
        assert_eq!(cut("a\nb\n", 24, 80), "a\nb");
        assert_eq!(cut(&text, 33, 80).lines().count(), 30);
        let wide = cut(&"x".repeat(100), 24, 80);
        assert_eq!(wide.lines().next().unwrap().chars().count(), 80);
        assert!(wide.ends_with("… lines are cut; dump(_) prints all of it"), "{wide}");
        assert_eq!(cut(&text, 1, 80).lines().count(), 5, "some of it in any case");
    }
}
