//! How long work shows that it goes on.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Told what is being done. Implementations decide what of it is shown.
pub trait Progress: Send + Sync {
    /// Something new has begun, or there is something to know.
    fn step(&self, what: &str);

    /// The step that was begun last has come that far: `done` of `total` percent or bytes.
    fn advance(&self, fraction: f64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}

    fn advance(&self, _: f64) {}
}

/// Writes to standard error: one live line per step on a terminal, plain lines elsewhere.
pub struct Printed<W: Write + Send = std::io::Stderr> {
    state: Mutex<State<W>>,
    live: bool,
    /// Least time between two signs of life within a step.
    every: Duration,
}

struct State<W> {
    out: W,
    step: String,
    /// A live line without its end is on the terminal.
    open: bool,
    shown: Instant,
}

impl Printed {
    /// On standard error.
    #[must_use]
    pub fn to_stderr() -> Self {
        let stderr = std::io::stderr();
        let live = stderr.is_terminal();
        let every = if live { Duration::from_millis(100) } else { Duration::from_secs(10) };
        Printed::new(stderr, live, every)
    }
}

impl<W: Write + Send> Printed<W> {
    fn new(out: W, live: bool, every: Duration) -> Self {
        let state = State { out, step: String::new(), open: false, shown: Instant::now() };
        Printed { state: Mutex::new(state), live, every }
    }

    fn with(&self, act: impl FnOnce(&mut State<W>) -> std::io::Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Progress that cannot be shown is no reason to stop.
        let _ = act(&mut state).and_then(|()| state.out.flush());
    }
}

impl<W: Write + Send> Progress for Printed<W> {
    fn step(&self, what: &str) {
        self.with(|state| {
            state.close()?;
            what.clone_into(&mut state.step);
            state.shown = Instant::now();
            state.open = self.live;
            if self.live { write!(state.out, "{what}") } else { writeln!(state.out, "{what}") }
        });
    }

    fn advance(&self, fraction: f64) {
        self.with(|state| {
            if state.shown.elapsed() < self.every || state.step.is_empty() {
                return Ok(());
            }
            state.shown = Instant::now();
            let percent = (fraction.clamp(0.0, 1.0) * 100.0) as u32;
            if self.live {
                state.open = true;
                write!(state.out, "\r{}: {percent:3} %\x1b[K", state.step)
            } else {
                writeln!(state.out, "{}: {percent} %", state.step)
            }
        });
    }
}

impl<W: Write> State<W> {
    fn close(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.open) {
            writeln!(self.out)?;
        }
        Ok(())
    }
}

impl<W: Write + Send> Drop for Printed<W> {
    fn drop(&mut self) {
        self.with(State::close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn shown(live: bool, every: Duration) -> String {
        let out = Shared::default();
        let progress = Printed::new(out.clone(), live, every);
        progress.step("fetching a");
        progress.advance(0.5);
        progress.advance(f64::NAN);
        progress.step("fetching b");
        drop(progress);
        let bytes = out.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_terminal_gets_one_live_line_per_step() {
        assert_eq!(
            shown(true, Duration::ZERO),
            "fetching a\rfetching a:  50 %\x1b[K\rfetching a:   0 %\x1b[K\nfetching b\n"
        );
    }

    #[test]
    fn a_pipe_gets_plain_lines_and_few_of_them() {
        assert_eq!(
            shown(false, Duration::ZERO),
            "fetching a\nfetching a: 50 %\nfetching a: 0 %\nfetching b\n"
        );
        assert_eq!(shown(false, Duration::from_secs(60)), "fetching a\nfetching b\n");
    }
}
