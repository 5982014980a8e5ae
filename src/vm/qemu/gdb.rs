//! QEMU's gdbstub, by which breakpoints and watchpoints are set; the protocol is in GDB's manual,
//! "Remote Serial Protocol". One thread feeds what QEMU sends ([`Feed`]), another asks ([`Gdb`]).
//!
//! The stub and QMP drive one machine, so who does what is fixed:
//! - Only QMP stops and continues it. Any byte that reaches the stub while the machine runs would
//!   stop it; so it is asked only while the machine stands, and stop replies are never acknowledged
//!   (a new packet makes QEMU forget that it waits for that).
//! - When a trap is hit, QEMU stops by itself and says so unasked: `T05`, with `watch:` and the
//!   address for a watchpoint. Each stop by QMP gives a `T02`, which says nothing new.
//! - Whatever the stub says about a stop it has written before QMP answers the next command.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::vm::channel::write_all;
use crate::vm::trap::{Hits, Trap};

/// QEMU's own packets are at most 4 KiB long.
const MAX_PACKET: usize = 8 << 10;
/// The signals in stop replies: a trap.
const SIGTRAP: &str = "05";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GdbError {
    /// QEMU is gone, or speaks something else.
    #[error("the connection to QEMU's gdbstub is closed: {0}")]
    Closed(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The stub's answer to what it does not do.
    #[error("QEMU's gdbstub answers {answer:?} to {packet:?}")]
    Refused { packet: String, answer: String },
}

/// That QEMU stopped because of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// The CPU, as QEMU numbers them for gdb less one.
    pub(super) cpu: Option<u32>,
    /// The watchpoint's address; none at a breakpoint.
    pub(super) wrote: Option<u64>,
    pub(super) at: Instant,
}

#[derive(Default)]
struct State {
    /// Whether the next packet answers something.
    awaited: bool,
    answer: Option<String>,
    closed: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.changed.notify_all();
    }
}

/// The end that takes what QEMU sends.
pub(super) struct Feed {
    shared: Arc<Shared>,
    stops: Hits<Stop>,
    partial: Vec<u8>,
}

impl Feed {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.shared.lock().closed.is_some() {
            return;
        }
        self.partial.extend_from_slice(bytes);
        loop {
            let skip = self.partial.iter().take_while(|&&byte| byte == b'+').count();
            self.partial.drain(..skip);
            match next(&self.partial) {
                Next::More if self.partial.len() > MAX_PACKET => {
                    return self.close("a packet without an end");
                }
                Next::More => return,
                Next::Bad(why) => return self.close(why),
                Next::Packet { text, len } => {
                    self.partial.drain(..len);
                    self.packet(text);
                }
            }
        }
    }

    fn packet(&mut self, text: String) {
        let mut state = self.shared.lock();
        if std::mem::take(&mut state.awaited) {
            state.answer = Some(text);
            drop(state);
            return self.shared.changed.notify_all();
        }
        drop(state);
        if let Some(stop) = stop(&text) {
            self.stops.tell(stop);
        }
    }

    /// Says that QEMU will not send any more. The first reason stays.
    pub(super) fn close(&mut self, why: &str) {
        self.partial = Vec::new();
        self.shared.close(why);
    }
}

/// What begins a stream of packets.
enum Next {
    /// Not yet a whole packet.
    More,
    Packet {
        text: String,
        len: usize,
    },
    /// No packet.
    Bad(&'static str),
}

/// The packet at the beginning: `$`, text, `#`, two digits of a sum. The stub is asked nothing
/// whose answer would hold escaped bytes or run lengths.
fn next(bytes: &[u8]) -> Next {
    match bytes.first() {
        None => return Next::More,
        Some(b'$') => {}
        Some(b'-') => return Next::Bad("a packet arrived damaged"),
        Some(_) => return Next::Bad("something that is no packet"),
    }
    let Some(end) = memchr::memchr(b'#', bytes) else { return Next::More };
    let Some(sum) = bytes.get(end + 1..end + 3) else { return Next::More };
    let body = &bytes[1..end];
    let found = std::str::from_utf8(sum).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
    if found != Some(checksum(body)) {
        return Next::Bad("a packet with a wrong checksum");
    }
    match std::str::from_utf8(body) {
        Ok(text) if text.is_ascii() => Next::Packet { text: text.to_owned(), len: end + 3 },
        _ => Next::Bad("a packet that is no text"),
    }
}

fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// What a stop reply says, when it is about a trap.
fn stop(text: &str) -> Option<Stop> {
    let rest = text.strip_prefix('T')?.strip_prefix(SIGTRAP)?;
    let mut stop = Stop { cpu: None, wrote: None, at: Instant::now() };
    for pair in rest.split(';') {
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        match pair.split_once(':') {
            Some(("thread", id)) => {
                // `pPID.TID` where several processes are shown.
                let id = id.rsplit('.').next().and_then(number);
                stop.cpu = id.and_then(|id| u32::try_from(id.checked_sub(1)?).ok());
            }
            Some(("watch", address)) => stop.wrote = number(address),
            _ => {}
        }
    }
    Some(stop)
}

/// The end that asks.
pub(super) struct Gdb {
    stream: UnixStream,
    shared: Arc<Shared>,
    stops: Hits<Stop>,
}

/// Both ends for one connection.
pub(super) fn connection(stream: UnixStream) -> (Gdb, Feed) {
    let (shared, stops) = (Arc::new(Shared::default()), Hits::default());
    let feed = Feed { shared: shared.clone(), stops: stops.clone(), partial: Vec::new() };
    (Gdb { stream, shared, stops }, feed)
}

impl Gdb {
    /// What was hit and not yet asked for.
    pub(super) fn stops(&self) -> &Hits<Stop> {
        &self.stops
    }

    /// Sets a trap. The machine must stand.
    pub(super) fn insert(&mut self, trap: &Trap, within: Duration) -> Result<(), GdbError> {
        self.done(&format!("Z{}", point(trap)), within)
    }

    /// Takes a trap away. The machine must stand.
    pub(super) fn remove(&mut self, trap: &Trap, within: Duration) -> Result<(), GdbError> {
        self.done(&format!("z{}", point(trap)), within)
    }

    fn done(&mut self, packet: &str, within: Duration) -> Result<(), GdbError> {
        match self.ask(packet, within)? {
            answer if answer == "OK" => Ok(()),
            answer => Err(GdbError::Refused { packet: packet.to_owned(), answer }),
        }
    }

    /// Sends a packet and gives its answer. After one that did not come in time nothing can be
    /// asked any more: which answer belongs to what would be a guess.
    fn ask(&mut self, packet: &str, within: Duration) -> Result<String, GdbError> {
        let deadline = Instant::now() + within;
        let mut state = self.shared.lock();
        if let Some(why) = &state.closed {
            return Err(GdbError::Closed(why.clone()));
        }
        (state.awaited, state.answer) = (true, None);
        drop(state);
        let message = format!("${packet}#{:02x}", checksum(packet.as_bytes()));
        if let Err(e) = write_all(&self.stream, message.as_bytes(), deadline) {
            let late = e.kind() == io::ErrorKind::TimedOut;
            self.shared.close(if late { "it takes no packets" } else { "QEMU ended" });
            return Err(if late { GdbError::Timeout(within) } else { closed(&e) });
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(answer) = state.answer.take() {
                return Ok(answer);
            }
            if let Some(why) = &state.closed {
                return Err(GdbError::Closed(why.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.closed = Some(format!("an answer to {packet:?} did not come in time"));
                return Err(GdbError::Timeout(within));
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn closed(error: &io::Error) -> GdbError {
    GdbError::Closed(error.to_string())
}

/// A trap as packets name it: kind, address, length.
fn point(trap: &Trap) -> String {
    match trap {
        Trap::Execute { address, .. } => format!("0,{address:x},1"),
        Trap::Write { address, len } => format!("2,{address:x},{len:x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const SOON: Duration = Duration::from_secs(20);
    const WRITE: Trap = Trap::Write { address: 0xffff_ffff_8000_0010, len: 8 };
    const EXECUTE: Trap = Trap::Execute { address: 0xffff_ffff_8100_0000, physical: 0x100_0000 };

    fn pair() -> (Gdb, Feed, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (gdb, feed) = connection(ours);
        (gdb, feed, theirs)
    }

    /// A packet as QEMU sends it.
    fn packet(text: &str) -> Vec<u8> {
        format!("+${text}#{:02x}", checksum(text.as_bytes())).into_bytes()
    }

    /// A stub that expects these packets and answers each.
    fn respond(
        mut feed: Feed,
        mut theirs: UnixStream,
        script: Vec<(&'static str, Vec<u8>)>,
    ) -> std::thread::JoinHandle<Feed> {
        std::thread::spawn(move || {
            for (asked, answer) in script {
                let mut found = vec![0; asked.len()];
                theirs.read_exact(&mut found).unwrap();
                assert_eq!(String::from_utf8(found).unwrap(), asked);
                feed.push(&answer);
            }
            feed
        })
    }

    #[test]
    fn traps_are_set_and_taken_away() {
        let (mut gdb, feed, theirs) = pair();
        let script = vec![
            ("$Z2,ffffffff80000010,8#d5", packet("OK")),
            ("$z0,ffffffff81000000,1#ec", packet("OK")),
        ];
        let thread = respond(feed, theirs, script);
        assert_eq!(gdb.insert(&WRITE, SOON), Ok(()));
        assert_eq!(gdb.remove(&EXECUTE, SOON), Ok(()));
        thread.join().unwrap();
    }

    #[test]
    fn a_refusal_carries_packet_and_answer() {
        for (answer, says) in [("E22", "\"E22\""), ("", "\"\"")] {
            let (mut gdb, feed, theirs) = pair();
            let thread = respond(feed, theirs, vec![("$Z2,ffffffff80000010,8#d5", packet(answer))]);
            let error = gdb.insert(&WRITE, SOON).unwrap_err().to_string();
            let asked = "\"Z2,ffffffff80000010,8\"";
            assert_eq!(error, format!("QEMU's gdbstub answers {says} to {asked}"));
            thread.join().unwrap();
        }
    }

    #[test]
    fn stop_replies_tell_where_and_by_whom() {
        let cases = [
            ("T05thread:01;watch:ffffffff80000010;", Some((Some(0), Some(0xffff_ffff_8000_0010)))),
            ("T05thread:0c;", Some((Some(11), None))),
            ("T05thread:p01.02;", Some((Some(1), None))),
            ("T05", Some((None, None))),
            ("T05thread:00;watch:zz;;:", Some((None, None))),
            ("T05thread:ffffffffffffffffff;", Some((None, None))),
            ("T02thread:01;", None),
            ("OK", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let (gdb, mut feed, _theirs) = pair();
            for byte in packet(text) {
                feed.push(&[byte]);
            }
            let found: Vec<_> = gdb.stops().take().iter().map(|s| (s.cpu, s.wrote)).collect();
            assert_eq!(found, Vec::from_iter(expected), "{text}");
        }
    }

    #[test]
    fn an_answer_is_not_taken_for_a_stop() {
        let (mut gdb, mut feed, theirs) = pair();
        feed.push(&packet("T02thread:01;"));
        let thread = respond(feed, theirs, vec![("$Z2,ffffffff80000010,8#d5", packet("T05"))]);
        assert!(matches!(gdb.insert(&WRITE, SOON), Err(GdbError::Refused { .. })));
        assert!(!gdb.stops().any());
        thread.join().unwrap();
    }

    #[test]
    fn what_is_no_gdbstub_closes_the_connection() {
        let mut long = vec![b'$'];
        long.resize(MAX_PACKET + 2, b'a');
        let cases: [(&[u8], &str); 7] = [
            (b"hello", "something that is no packet"),
            (b"+++-", "a packet arrived damaged"),
            (b"$OK#00", "a packet with a wrong checksum"),
            (b"$OK#zz", "a packet with a wrong checksum"),
            (b"$OK#\xff\xff", "a packet with a wrong checksum"),
            (b"$\xff#ff", "a packet that is no text"),
            (&long, "a packet without an end"),
        ];
        for (bytes, why) in cases {
            let (mut gdb, mut feed, _theirs) = pair();
            feed.push(bytes);
            feed.push(&packet("T05"));
            assert!(!gdb.stops().any(), "{why}");
            assert_eq!(gdb.insert(&WRITE, SOON), Err(GdbError::Closed(why.to_owned())));
        }
    }

    #[test]
    fn no_answer_ends_with_the_deadline_and_for_good() {
        let (mut gdb, mut feed, _theirs) = pair();
        let short = Duration::from_millis(20);
        assert_eq!(gdb.insert(&WRITE, short), Err(GdbError::Timeout(short)));
        feed.push(&packet("OK"));
        let error = gdb.insert(&WRITE, SOON).unwrap_err().to_string();
        assert_eq!(
            error,
            "the connection to QEMU's gdbstub is closed: an answer to \
             \"Z2,ffffffff80000010,8\" did not come in time"
        );
        let (mut gdb, mut feed, theirs) = pair();
        feed.close("QEMU ended");
        assert_eq!(gdb.insert(&WRITE, SOON), Err(GdbError::Closed("QEMU ended".to_owned())));
        drop((feed, theirs));
        let (mut gdb, _feed, theirs) = pair();
        drop(theirs);
        assert!(matches!(gdb.insert(&WRITE, SOON), Err(GdbError::Closed(_))));
    }
}
