//! What a machine's serial console has printed, kept within a limit.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A cheap handle on a machine's console; the engine writes, everybody may read, also after the
/// machine is gone.
#[derive(Clone)]
pub struct Console(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// The last bytes, at most twice the limit; see [`Console::push`].
    bytes: Vec<u8>,
    dropped: u64,
    closed: bool,
}

impl Console {
    /// An empty console that keeps the last `limit` bytes (at least 4 KiB).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let shared =
            Shared { state: Mutex::default(), changed: Condvar::new(), limit: limit.max(4096) };
        Console(Arc::new(shared))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what the guest printed.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.bytes.extend_from_slice(bytes);
        // Letting it grow to twice the limit before cutting makes the moves cheap on average.
        if state.bytes.len() > 2 * self.0.limit {
            let cut = state.bytes.len() - self.0.limit;
            state.bytes.drain(..cut);
            state.dropped += cut as u64;
        }
        self.0.changed.notify_all();
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// Everything kept: invalid UTF-8 replaced, carriage returns and other control characters
    /// left out (a guest must not be able to drive the user's terminal).
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.lock();
        let mut text = printable(&state.bytes);
        if state.dropped > 0 {
            text.insert_str(0, &format!("[{} earlier bytes dropped]\n", state.dropped));
        }
        text
    }

    /// The last `lines` lines.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let text = text.trim_end();
        match text.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
            Some((at, _)) if lines > 0 => text[at + 1..].to_owned(),
            _ if lines == 0 => String::new(),
            _ => text.to_owned(),
        }
    }

    /// Waits until `needle` has been printed. False when `within` passed or the machine went away
    /// without it.
    #[must_use]
    pub fn wait_for(&self, needle: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let finder = memchr::memmem::Finder::new(needle.as_bytes());
        let mut state = self.lock();
        loop {
            if finder.find(&state.bytes).is_some() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return false;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .map_or_else(|e| e.into_inner().0, |(state, _)| state);
        }
    }
}

/// Text that is safe to show: lines and tabs stay; terminal sequences (`ESC [ .. letter`) and
/// other control characters go.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' && chars.next_if_eq(&'[').is_some() {
            while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
            chars.next_if(|c| matches!(c, '@'..='~'));
        } else if !c.is_control() || matches!(c, '\n' | '\t') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_what_was_dropped_is_said() {
        let console = Console::new(4096);
        for i in 0..10_000 {
            console.push(format!("line {i}\r\n").as_bytes());
        }
        let text = console.text();
        assert!(text.len() < 3 * 4096, "{} bytes kept", text.len());
        assert!(text.starts_with('['), "{}", &text[..40]);
        assert!(text.contains("earlier bytes dropped"));
        assert_eq!(console.tail(2), "line 9998\nline 9999");
        assert_eq!(console.tail(0), "");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let console = Console::new(0);
        console.push(b"a\x1b[?1;31mb\x07\x1b[0m\x1bK\tc\xff\r\n\x1b[");
        assert_eq!(console.text(), "abK\tc\u{fffd}\n");
        assert_eq!(console.tail(5), "abK\tc\u{fffd}");
    }

    #[test]
    fn waiting_ends_with_the_text_the_deadline_or_the_machine() {
        let console = Console::new(4096);
        assert!(!console.wait_for("login", Duration::from_millis(10)));
        let writer = console.clone();
        let thread = std::thread::spawn(move || {
            writer.push(b"log");
            writer.push(b"in:");
        });
        assert!(console.wait_for("login", Duration::from_secs(30)));
        thread.join().unwrap();
        console.close();
        let start = Instant::now();
        assert!(!console.wait_for("never", Duration::from_secs(30)));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
