//! A line to a Unix socket in the guest, and one back: how schedulers are asked for statistics.
//!
//! ```text
//!  (none) ──connect──▶ asked ──a line──▶ kept ──the same asker──▶ asked ..
//!                        │                ▲
//!                        └── time is up ──┘  owing a line, which is thrown away when it comes
//! ```
//!
//! A connection is kept, since schedulers of the scx project tell what changed since the last answer
//! on the same connection: a new one for each request would always hear of no change.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cryoscope::wire::{Answer, MAX_LINE, Refusal, RefusalKind};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

use crate::jobs::{Task, World};
use crate::process::read_some;
use crate::refuse;
use crate::sys::reason;
use crate::text::clean;

/// Connections that are kept at most.
const MOST_KEPT: usize = 8;

/// Lines that a connection may owe.
const MOST_OWED: u32 = 8;
/// How long it may owe one: after that it may never say anything again.
const OWED_FOR: Duration = Duration::from_secs(3);

/// Connections that wait for the next request of whom they are kept for.
#[derive(Default)]
pub(crate) struct Lines(Vec<(Whose, Talk)>);

/// Where a connection leads, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whose {
    path: String,
    asker: String,
}

impl Lines {
    /// Closes all: what answers is about to be another.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn keep(&mut self, whose: Whose, talk: Talk) {
        self.0.retain(|(known, _)| *known != whose);
        if self.0.len() >= MOST_KEPT {
            self.0.remove(0);
        }
        self.0.push((whose, talk));
    }

    /// The connection of this asker, if it still stands.
    fn take(&mut self, whose: &Whose, now: Instant) -> Option<Talk> {
        let at = self.0.iter().position(|(known, _)| known == whose)?;
        Some(self.0.remove(at).1).filter(|talk| talk.stands(now))
    }
}

/// What goes on over one connection.
struct Talk {
    socket: OwnedFd,
    /// What is not sent yet.
    left: Vec<u8>,
    /// Of the line that is waited for, one byte more than it may have at most.
    received: Vec<u8>,
    /// Bytes of the line that is coming.
    size: u64,
    /// Lines that come before it: answers to requests whose time was up.
    owed: u32,
    /// Since when what is owed is waited for.
    owes_since: Option<Instant>,
    /// Something came behind the line.
    more: bool,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Line(Vec<u8>),
    /// More than a line may have: so many bytes without an end.
    TooLong(u64),
    /// The other side closed, after so many bytes of a line.
    Closed(u64),
    Failed(Errno),
}

impl Talk {
    fn connect(path: &str) -> Result<Talk, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // To a Unix socket there is a connection at once, or none.
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Talk::over(socket))
    }

    fn over(socket: OwnedFd) -> Talk {
        let (left, received) = (Vec::new(), Vec::new());
        Talk { socket, left, received, size: 0, owed: 0, owes_since: None, more: false }
    }

    /// Whether the other side is still there, has said nothing that it does not owe, and does not
    /// owe it for long.
    fn stands(&self, now: Instant) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.socket, &mut [0u8; 1][..], flags) {
            Ok((0, _)) => false,
            Ok(_) => self.owed > 0,
            Err(Errno::AGAIN) => {
                self.owes_since.is_none_or(|since| now.duration_since(since) < OWED_FOR)
            }
            Err(_) => false,
        }
    }

    fn say(&mut self, line: &str) {
        self.left = line.as_bytes().to_vec();
        self.left.push(b'\n');
    }

    /// Sends what can be sent now.
    fn send(&mut self) -> Result<(), Errno> {
        while !self.left.is_empty() {
            match send(&self.socket, &self.left, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.left.drain(..sent)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in what came; the line, once it is whole.
    fn hear(&mut self, mut new: &[u8]) -> Option<Vec<u8>> {
        while let Some(end) = new.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&new[..end], &new[end + 1..]);
            new = rest;
            self.size += line.len() as u64;
            if self.size > MAX_LINE as u64 {
                return None;
            }
            if self.owed == 0 {
                self.more = !rest.is_empty();
                self.size = 0;
                self.received.extend(line);
                return Some(std::mem::take(&mut self.received));
            }
            (self.owed, self.owes_since, self.size) = (self.owed - 1, None, 0);
        }
        self.size += new.len() as u64;
        // Beyond the cap it is thrown away, so that a flood takes no memory.
        if self.owed == 0 && self.size <= MAX_LINE as u64 {
            self.received.extend(new);
        }
        None
    }

    /// Goes on as far as it can.
    fn step(&mut self) -> Option<Heard> {
        if let Err(error) = self.send() {
            return Some(Heard::Failed(error));
        }
        let mut read = Vec::new();
        let open = read_some(&self.socket, |new| read.extend(new));
        if let Some(line) = self.hear(&read) {
            return Some(Heard::Line(line));
        }
        if self.size > MAX_LINE as u64 {
            return Some(Heard::TooLong(self.size));
        }
        (!open).then_some(Heard::Closed(self.size))
    }

    /// Gives up waiting for what was asked then; whether the connection can be used again.
    fn give_up(&mut self, asked: Instant) -> bool {
        self.received = Vec::new();
        self.owed += 1;
        self.owes_since.get_or_insert(asked);
        self.left.is_empty() && self.owed <= MOST_OWED
    }
}

/// A request under way.
pub(crate) struct AskTask {
    whose: Whose,
    line: String,
    /// None once it is over.
    talk: Option<Talk>,
    /// Whether others were answered on the connection before.
    kept: bool,
    timeout: Duration,
    asked: Instant,
}

fn failed(path: &str, error: Errno) -> Refusal {
    let kind = match error {
        Errno::NOENT => RefusalKind::NotFound,
        _ => RefusalKind::Kernel,
    };
    let why = reason(&io::Error::from(error));
    refuse(kind, format!("cannot talk to {} in the guest: {why}", clean(path.as_bytes())))
}

/// Begins to send, over the connection that is kept for the asker or a new one.
pub(crate) fn ask(
    path: &str,
    asker: &str,
    line: String,
    timeout: Duration,
    now: Instant,
    lines: &mut Lines,
) -> Result<AskTask, Refusal> {
    if line.len() > MAX_LINE || line.contains('\n') {
        let message = format!("{} bytes are no line to send", line.len());
        return Err(refuse(RefusalKind::Invalid, message));
    }
    let whose = Whose { path: path.to_owned(), asker: asker.to_owned() };
    let kept = lines.take(&whose, now);
    let mut task = AskTask { whose, line, talk: None, kept: kept.is_some(), timeout, asked: now };
    task.begin(kept)?;
    Ok(task)
}

impl AskTask {
    fn begin(&mut self, kept: Option<Talk>) -> Result<(), Refusal> {
        let talk = kept.map_or_else(|| Talk::connect(&self.whose.path), Ok);
        let mut talk = talk.map_err(|error| failed(&self.whose.path, error))?;
        talk.say(&self.line);
        self.talk = Some(talk);
        Ok(())
    }

    fn line(&mut self, line: Vec<u8>, lines: &mut Lines) -> Result<Answer, Refusal> {
        if let Some(talk) = self.talk.take_if(|talk| !talk.more && talk.left.is_empty()) {
            lines.keep(self.whose.clone(), talk);
        }
        let size = line.len() as u64;
        match String::from_utf8(line) {
            Ok(text) => Ok(Answer::Line { text: Some(text), size }),
            Err(_) => Err(self.odd("answered with bytes that are no text".to_owned())),
        }
    }

    fn odd(&self, what: String) -> Refusal {
        refuse(RefusalKind::Invalid, format!("{} {what}", clean(self.whose.path.as_bytes())))
    }

    fn advance(&mut self, lines: &mut Lines) -> Option<Result<Answer, Refusal>> {
        let heard = self.talk.as_mut()?.step()?;
        if matches!(heard, Heard::Closed(0) | Heard::Failed(_)) && std::mem::take(&mut self.kept) {
            // It was closed after the last answer, which says nothing about this request.
            return match self.begin(None) {
                Ok(()) => self.advance(lines),
                Err(refusal) => Some(Err(refusal)),
            };
        }
        Some(match heard {
            Heard::Line(line) => self.line(line, lines),
            Heard::TooLong(size) => Ok(Answer::Line { text: None, size }),
            Heard::Failed(error) => Err(failed(&self.whose.path, error)),
            Heard::Closed(0) => Err(self.odd("closed the connection without an answer".to_owned())),
            Heard::Closed(n) => {
                Err(self.odd(format!("closed the connection within a line, after {n} bytes")))
            }
        })
    }
}

impl Task for AskTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let Some(talk) = &self.talk else { return };
        let sending = if talk.left.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        out.push((talk.socket.as_fd(), PollFlags::IN | sending));
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        self.advance(&mut world.lines)
    }

    fn timed_out(&mut self, world: &mut World) -> Refusal {
        let came = self.talk.as_ref().map_or(0, |talk| talk.size);
        let asked = self.asked;
        if let Some(talk) = self.talk.take_if(|talk| talk.give_up(asked)) {
            world.lines.keep(self.whose.clone(), talk);
        }
        let time = self.timeout.as_millis();
        let message = format!("did not answer within {time} ms; {came} bytes came");
        Refusal { kind: RefusalKind::Timeout, ..self.odd(message) }
    }

    fn patience(&self, _: Instant) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn pair() -> (Talk, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Talk::over(ours.into()), theirs)
    }

    #[test]
    fn a_line_is_heard_however_it_comes() {
        let (mut talk, mut there) = pair();
        talk.say("hello");
        assert_eq!(talk.step(), None);
        let mut asked = [0; 6];
        there.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"hello\n");
        for byte in b"{\"a\":1}" {
            there.write_all(&[*byte]).unwrap();
            assert_eq!(talk.step(), None);
        }
        there.write_all(b"\n").unwrap();
        assert_eq!(talk.step(), Some(Heard::Line(b"{\"a\":1}".to_vec())));
        assert!(talk.stands(Instant::now()) && !talk.more);
        there.write_all(b"again\nand more").unwrap();
        assert_eq!(talk.step(), Some(Heard::Line(b"again".to_vec())));
        assert!(talk.more, "nobody asked for that");
    }

    #[test]
    fn what_is_too_long_is_not_kept_in_memory() {
        for (len, end, whole) in
            [(MAX_LINE, true, true), (MAX_LINE + 1, true, false), (MAX_LINE + 1, false, false)]
        {
            let (mut talk, mut there) = pair();
            let writer = std::thread::spawn(move || {
                let mut line = vec![b'x'; len];
                line.extend(end.then_some(b'\n'));
                // The reader may have heard enough.
                let _ = there.write_all(&line);
                there
            });
            let heard = std::iter::repeat_with(|| talk.step()).flatten().next().unwrap();
            match heard {
                Heard::Line(line) => assert!(whole && line.len() == len),
                Heard::TooLong(size) => assert!(!whole && size > MAX_LINE as u64, "{size}"),
                heard => panic!("{heard:?}"),
            }
            assert!(talk.received.len() <= MAX_LINE);
            drop(talk);
            writer.join().unwrap();
        }
    }

    #[test]
    fn an_answer_that_comes_too_late_is_not_taken_for_the_next() {
        let (mut talk, mut there) = pair();
        talk.say("one");
        there.write_all(b"first ha").unwrap();
        assert_eq!(talk.step(), None);
        let then = Instant::now();
        assert!(talk.give_up(then));
        assert!(talk.stands(then + OWED_FOR / 2));
        assert!(!talk.stands(then + OWED_FOR), "it says nothing any more");
        talk.say("two");
        assert_eq!(talk.step(), None);
        there.write_all(b"lf\n").unwrap();
        assert_eq!(talk.step(), None);
        assert!(talk.stands(then + OWED_FOR), "nothing is owed now");
        there.write_all(b"second\n").unwrap();
        assert_eq!(talk.step(), Some(Heard::Line(b"second".to_vec())));

        for asked in ["three", "four"] {
            talk.say(asked);
            assert_eq!(talk.step(), None);
            assert!(talk.give_up(then));
        }
        there.write_all(b"third\nfourth\nfifth\n").unwrap();
        assert!(talk.stands(then), "that is owed");
        talk.say("five");
        assert_eq!(talk.step(), Some(Heard::Line(b"fifth".to_vec())));

        for owed in 1..=MOST_OWED + 1 {
            talk.say("x");
            assert_eq!(talk.step(), None);
            assert_eq!(talk.give_up(then), owed <= MOST_OWED, "{owed}");
        }
    }

    #[test]
    fn a_connection_that_ended_or_says_too_much_is_not_used_again() {
        let (talk, mut there) = pair();
        assert!(talk.stands(Instant::now()));
        there.write_all(b"x").unwrap();
        assert!(!talk.stands(Instant::now()));
        let (mut talk, there) = pair();
        drop(there);
        assert!(!talk.stands(Instant::now()));
        assert_eq!(talk.step(), Some(Heard::Closed(0)));
        let (mut talk, mut there) = pair();
        there.write_all(b"half").unwrap();
        drop(there);
        assert_eq!(talk.step(), Some(Heard::Closed(4)));
    }

    /// Asks, has `serve` done by the other side, and gives the outcome.
    fn asked(
        path: &str,
        asker: &str,
        lines: &mut Lines,
        serve: impl FnOnce(&AskTask),
    ) -> Result<Answer, Refusal> {
        let mut task = ask(path, asker, "x".into(), Duration::ZERO, Instant::now(), lines)?;
        assert!(task.advance(lines).is_none());
        serve(&task);
        task.advance(lines).expect("it is over")
    }

    #[test]
    fn each_asker_has_a_connection_of_its_own_that_is_used_again() {
        let name = format!("cryoscope-lines-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let server = UnixListener::bind(&path).unwrap();
        let (path, mut lines) = (path.to_str().unwrap(), Lines::default());
        let answer = |mut conn: &UnixStream| {
            let mut line = [0; 2];
            conn.read_exact(&mut line).unwrap();
            conn.write_all(b"y\n").unwrap();
        };
        let line = Ok(Answer::Line { text: Some("y".into()), size: 1 });

        let (mut first, mut second) = (None, None);
        let accepted = |conn: &mut Option<UnixStream>| {
            answer(conn.insert(server.accept().unwrap().0));
        };
        assert_eq!(asked(path, "a", &mut lines, |_| accepted(&mut first)), line);
        assert_eq!(asked(path, "b", &mut lines, |_| accepted(&mut second)), line);
        assert_eq!(asked(path, "a", &mut lines, |_| answer(first.as_ref().unwrap())), line);
        assert_eq!(asked(path, "b", &mut lines, |_| answer(second.as_ref().unwrap())), line);

        // One that is closed in between, or while a request is under way, is made anew.
        drop(first.take());
        assert_eq!(asked(path, "a", &mut lines, |_| accepted(&mut first)), line);
        let mut task =
            ask(path, "a", "x".into(), Duration::ZERO, Instant::now(), &mut lines).unwrap();
        drop(first.take());
        assert!(task.advance(&mut lines).is_none());
        accepted(&mut first);
        assert_eq!(task.advance(&mut lines), Some(line));

        // A new one that is closed was closed because of the request.
        lines.clear();
        let closed = asked(path, "a", &mut lines, |_| {
            let mut conn = server.accept().unwrap().0;
            conn.read_exact(&mut [0; 2]).unwrap();
        });
        let says = format!("{path} closed the connection without an answer");
        assert_eq!(closed, Err(refuse(RefusalKind::Invalid, says)));
        std::fs::remove_file(path).unwrap();
        let gone = asked(path, "c", &mut lines, |_| {}).unwrap_err();
        assert_eq!(gone.kind, RefusalKind::NotFound);
        assert!(gone.message.ends_with("in the guest: No such file or directory"), "{gone:?}");
    }

    #[test]
    fn connections_are_kept_within_bounds() {
        let mut lines = Lines::default();
        let whose = |i: usize| Whose { path: "p".into(), asker: i.to_string() };
        let mut there = Vec::new();
        for i in 0..20 {
            let (talk, other) = pair();
            there.push(other);
            lines.keep(whose(i), talk);
        }
        assert_eq!(lines.0.len(), MOST_KEPT);
        let mut has = |i| lines.take(&whose(i), Instant::now()).is_some();
        assert!(!has(11) && has(12));
    }
}
