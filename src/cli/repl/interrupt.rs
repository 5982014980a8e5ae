//! Signals: a Ctrl-C stops what is being evaluated, not the machine.

use std::io::{self, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::INTERRUPTED;
use crate::cli::{Failure, say};
use crate::scenario::cell::{Cancel, Why};

/// Nothing runs yet that would have to be ended in order.
const STARTING: u8 = 0;
/// Something is evaluated, or the machine boots.
const BUSY: u8 = 1;
/// An input is waited for.
const IDLE: u8 = 2;

/// What signals do, and to what.
pub(super) struct Interrupts {
    /// The wish that what is evaluated ends.
    pub(super) cancel: Cancel,
    state: Arc<AtomicU8>,
}

impl Interrupts {
    /// Begins to take signals. At a terminal a Ctrl-C between two inputs means nothing (the editor
    /// takes it as a key).
    pub(super) fn watch(interactive: bool) -> Result<Self, Failure> {
        let cannot = |e: io::Error| Failure::new(format!("cannot handle signals: {e}"));
        let interrupts = Interrupts::idle();
        let mut signals =
            signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(cannot)?;
        let (cancel, state) = (interrupts.cancel.clone(), interrupts.state.clone());
        // An editor that is cut short would leave the terminal as editors need it.
        let terminal = interactive.then(|| tcgetattr(stdin()).ok()).flatten();
        let watcher = std::thread::Builder::new().name("signals".into());
        let watching = watcher.spawn(move || {
            for signal in signals.forever() {
                match (signal, state.load(Ordering::SeqCst)) {
                    (SIGINT, BUSY) if cancel.is_raised() => {
                        say("\nstopping, as soon as the guest answers (Ctrl-\\ ends cryoscope)\n");
                    }
                    (SIGINT, BUSY) => cancel.raise(Why::Told),
                    (SIGINT, IDLE) if interactive => {}
                    _ => end(signal, terminal.as_ref()),
                }
            }
        });
        watching.map_err(cannot)?;
        Ok(interrupts)
    }

    /// Does `work`, which a Ctrl-C stops; says whether one has.
    pub(super) fn busy<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        self.cancel.reset();
        self.state.store(BUSY, Ordering::SeqCst);
        let done = work();
        self.state.store(IDLE, Ordering::SeqCst);
        let stopped = self.cancel.is_raised();
        // Completion evaluates too.
        self.cancel.reset();
        (done, stopped)
    }

    /// Takes no signals.
    pub(super) fn idle() -> Self {
        Interrupts { cancel: Cancel::new(), state: Arc::new(AtomicU8::new(STARTING)) }
    }
}

/// Ends the process; the machine, downloads and compilers end with it.
fn end(signal: i32, terminal: Option<&Termios>) {
    if let Some(terminal) = terminal {
        let _ = tcsetattr(stdin(), OptionalActions::Now, terminal);
    }
    say("\ncryoscope: interrupted\n");
    let code = u8::try_from(128 + signal).unwrap_or(INTERRUPTED);
    std::process::exit(code.into());
}
