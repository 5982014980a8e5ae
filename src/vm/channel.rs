//! The host's end of the conversation with the guest's agent.
//!
//! A thread reads frames for as long as the transport lives. Answers go to whoever waits for
//! them, events into a queue. The guest is not trusted: what it may make this process keep is
//! bounded, and the first thing that breaks the protocol ends the conversation with an error that
//! every later caller gets. When the transport ends because the machine did, the error says how
//! the machine ended.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::{ExitInfo, ExitWatch, Standstill};
use crate::wire::{
    Answer, Decoder, Encoder, Event, FromGuest, Hello, Op, Refusal, Request, VERSION, WireError,
};

/// Events that may wait to be taken.
const MAX_EVENTS: usize = 4096;
/// Bytes of text in them.
const MAX_EVENT_BYTES: usize = 64 << 20;
/// Messages remembered for reports of failure, and how much of each.
const TRACE: usize = 24;
const TRACE_WIDTH: usize = 160;
/// How long after the end of the transport the machine may take to be known to have ended.
const MACHINE_END: Duration = Duration::from_secs(5);

/// A conversation that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The agent says that it could not do what was asked.
    #[error("{0}")]
    Refused(Refusal),
    /// What was waited for did not come. The conversation goes on.
    #[error("waited {waited:?} for {what} in vain")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The guest sent something that cannot be trusted; nothing more is read.
    #[error("the guest's frames are damaged: {0}")]
    Damaged(WireError),
    /// The guest said something out of turn, or too much; nothing more is read.
    #[error("the guest broke the protocol: {0}")]
    Protocol(String),
    /// A request is too large to be sent.
    #[error("the request cannot be sent: {0}")]
    Unsendable(WireError),
    /// The machine has ended.
    #[error("{0}")]
    MachineEnded(Box<ExitInfo>),
    /// The transport has ended, or cannot be written to, although the machine has not.
    #[error("the transport to the guest has ended: {0}")]
    Closed(String),
}

impl ChannelError {
    /// Whether nothing more can be said over this channel.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            ChannelError::Refused(_) | ChannelError::Timeout { .. } | ChannelError::Unsendable(_)
        )
    }
}

/// A conversation with an agent. Callers may share it; each waits for its own answer.
pub struct Channel {
    shared: Arc<Shared>,
    writer: Mutex<Writer>,
    /// By how long deadlines of calls are extended.
    still: Standstill,
    thread: Option<JoinHandle<()>>,
}

struct Writer {
    fd: OwnedFd,
    encoder: Encoder,
    next_id: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hello: Option<Hello>,
    /// Requests that somebody waits for, with the answer once it is there.
    waiting: BTreeMap<u64, Option<Result<Answer, Refusal>>>,
    /// One more than the last request's id.
    next_id: u64,
    events: VecDeque<Event>,
    /// What [`weight`] gives for all of them.
    event_bytes: usize,
    ended: Option<ChannelError>,
    trace: VecDeque<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something, the conversation has ended, or the time is up
    /// (`None`). What came before the end is still found.
    fn wait<T>(
        &self,
        within: Duration,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, ChannelError> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&mut state) {
                return Ok(Some(value));
            }
            if let Some(why) = &state.ended {
                return Err(why.clone());
            }
            let left = within.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, why: ChannelError) {
        self.lock().ended.get_or_insert(why);
        self.changed.notify_all();
    }
}

impl Channel {
    /// Begins to listen on a connected stream. `watch` is the machine's, so that the end of the
    /// machine ends every wait at once and with its reason.
    ///
    /// # Errors
    /// The host's refusal of another thread or descriptor.
    pub fn new(transport: OwnedFd, watch: Option<ExitWatch>) -> io::Result<Channel> {
        ioctl_fionbio(&transport, true)?;
        let shared = Arc::new(Shared::default());
        let reader = Reader { fd: transport.try_clone()?, shared: shared.clone(), watch };
        let thread =
            std::thread::Builder::new().name("frames".to_owned()).spawn(move || reader.run())?;
        let writer = Writer { fd: transport, encoder: Encoder::default(), next_id: 1 };
        let (writer, still) = (Mutex::new(writer), Standstill::default());
        Ok(Channel { shared, writer, still, thread: Some(thread) })
    }

    /// The same, with calls that wait longer by the time that the machine stands still meanwhile.
    #[must_use]
    pub fn extended_by(mut self, still: Standstill) -> Channel {
        self.still = still;
        self
    }

    /// The agent's introduction; what it was is known from then on.
    ///
    /// # Errors
    /// [`ChannelError::Timeout`] when the guest does not come that far in time (it hangs while
    /// starting), [`ChannelError::Protocol`] for another version of the protocol, and what ends a
    /// conversation.
    pub fn hello(&self, within: Duration) -> Result<Hello, ChannelError> {
        let hello = self.shared.wait(within, |state| state.hello.clone())?;
        hello.ok_or_else(|| ChannelError::Timeout {
            what: "the guest's agent to say hello".to_owned(),
            waited: within,
        })
    }

    /// Asks the agent to do something and waits for what comes of it.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] with the agent's reason, [`ChannelError::Timeout`] (a late
    /// answer is dropped), [`ChannelError::Unsendable`], and what ends a conversation.
    pub fn call(&self, op: Op, within: Duration) -> Result<Answer, ChannelError> {
        let start = Instant::now();
        let what = name(&op);
        let late =
            || ChannelError::Timeout { what: format!("an answer to {what}"), waited: within };
        let id = self.send(op, start + within)?.ok_or_else(late)?;
        let before = self.still.total(start);
        let answer = loop {
            let now = Instant::now();
            let ran = (now - start).saturating_sub(self.still.total(now).saturating_sub(before));
            let left = within.saturating_sub(ran);
            let found =
                self.shared.wait(left, |state| state.waiting.get_mut(&id).and_then(Option::take));
            if left.is_zero() || !matches!(found, Ok(None)) {
                break found;
            }
        };
        self.shared.lock().waiting.remove(&id);
        answer?.ok_or_else(late)?.map_err(ChannelError::Refused)
    }

    /// The next event, if there is one.
    #[must_use]
    pub fn try_event(&self) -> Option<Event> {
        self.shared.lock().next_event()
    }

    /// Waits for the next event; `None` when there is none within this time.
    ///
    /// # Errors
    /// What ends a conversation, once all events before it are taken.
    pub fn wait_event(&self, within: Duration) -> Result<Option<Event>, ChannelError> {
        self.shared.wait(within, State::next_event)
    }

    /// Why the conversation ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ChannelError> {
        self.shared.lock().ended.clone()
    }

    /// The last messages in both directions, shortened, oldest first.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.shared.lock().trace.iter().cloned().collect()
    }

    /// Sends a request; its id, or `None` when it could not be begun in time.
    fn send(&self, op: Op, deadline: Instant) -> Result<Option<u64>, ChannelError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = &mut *writer;
        if let Some(why) = self.ended() {
            return Err(why);
        }
        let id = writer.next_id;
        let request = Request { id, op };
        let frame = writer.encoder.encode(&request).map_err(ChannelError::Unsendable)?;
        writer.next_id += 1;
        {
            let mut state = self.shared.lock();
            state.next_id = writer.next_id;
            state.waiting.insert(id, None);
            state.note("->", &request.op, Some(id));
        }
        match write_all(&writer.fd, &frame, deadline) {
            Ok(()) => Ok(Some(id)),
            Err(e) => {
                self.shared.lock().waiting.remove(&id);
                // Part of a frame may have gone out: whatever followed would be taken for its rest.
                let why = match e.kind() {
                    io::ErrorKind::TimedOut => "the guest does not read".to_owned(),
                    _ => e.to_string(),
                };
                // A machine that has ended is the better reason; the reader is about to find it.
                let _ = shutdown(&writer.fd, Shutdown::Both);
                let found = self.shared.wait(MACHINE_END, |_| None::<()>);
                self.shared.end(ChannelError::Closed(why.clone()));
                match found {
                    Err(why @ ChannelError::MachineEnded(_)) => Err(why),
                    _ => Err(ChannelError::Closed(why)),
                }
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The reader sees the end of the stream; it must not wait for the machine's end then.
        self.shared.end(ChannelError::Closed("the channel was dropped".to_owned()));
        let _ = shutdown(&writer.fd, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn note(&mut self, direction: &str, message: &impl fmt::Debug, id: Option<u64>) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        let mut line = Shortened(String::new());
        let id = id.map_or(String::new(), |id| format!(" #{id}"));
        // Ends early with an error when the line is full.
        let _ = write!(line, "{direction}{id} {message:?}");
        self.trace.push_back(line.0);
    }

    /// Takes a message from the guest.
    fn take(&mut self, message: FromGuest) -> Result<(), ChannelError> {
        let broken = |what: String| Err(ChannelError::Protocol(what));
        if self.hello.is_none() != matches!(message, FromGuest::Hello(_)) {
            return broken(match message {
                FromGuest::Hello(_) => "it said hello twice".to_owned(),
                _ => "its first frame was not hello".to_owned(),
            });
        }
        match message {
            FromGuest::Hello(hello) if hello.version != VERSION => broken(format!(
                "its agent speaks version {}, this program speaks {VERSION}; build both from \
                 the same sources",
                hello.version
            )),
            FromGuest::Hello(hello) => {
                self.hello = Some(hello);
                Ok(())
            }
            FromGuest::Reply { id, .. } if id == 0 || id >= self.next_id => {
                broken(format!("it answered a request that was never made (#{id})"))
            }
            FromGuest::Reply { id, result } => {
                // Without anybody waiting, the answer came too late.
                if let Some(slot) = self.waiting.get_mut(&id) {
                    *slot = Some(result);
                }
                Ok(())
            }
            FromGuest::Event(_) if self.events.len() >= MAX_EVENTS => {
                broken(format!("it sent more than {MAX_EVENTS} events at once"))
            }
            FromGuest::Event(event) => {
                self.event_bytes += weight(&event);
                if self.event_bytes > MAX_EVENT_BYTES {
                    let mib = MAX_EVENT_BYTES >> 20;
                    return broken(format!("it sent more than {mib} MiB of events at once"));
                }
                self.events.push_back(event);
                Ok(())
            }
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.event_bytes -= weight(&event);
        Some(event)
    }
}

/// Bytes of text that an event holds.
fn weight(event: &Event) -> usize {
    match event {
        Event::SchedulerExited { reason, log, dmesg } => reason.len() + log.len() + dmesg.len(),
        Event::WorkerExited { reason, .. }
        | Event::ChannelDamaged { reason }
        | Event::AgentFailed { reason } => reason.len(),
        Event::PoweringOff => 0,
    }
}

/// Text that is cut when it gets too long, and then refuses more: formatting a message of
/// megabytes for its first line stops there.
struct Shortened(String);

impl fmt::Write for Shortened {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() >= TRACE_WIDTH {
                self.0.push_str("..");
                return Err(fmt::Error);
            }
            self.0.push(if c.is_control() { ' ' } else { c });
        }
        Ok(())
    }
}

/// What an operation is called in messages: its name without its contents.
fn name(op: &Op) -> String {
    let mut text = Shortened(String::new());
    let _ = write!(text, "{op:?}");
    text.0.chars().take_while(|c| c.is_alphanumeric()).collect()
}

struct Reader {
    fd: OwnedFd,
    shared: Arc<Shared>,
    watch: Option<ExitWatch>,
}

impl Reader {
    fn run(self) {
        let why = self.listen();
        self.shared.end(why);
    }

    /// Reads until the conversation ends; why it did.
    fn listen(&self) -> ChannelError {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 << 10];
        let mut stream = std::fs::File::from(match self.fd.try_clone() {
            Ok(fd) => fd,
            Err(e) => return ChannelError::Closed(e.to_string()),
        });
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return self.closed("end of stream".to_owned()),
                Ok(n) => decoder.feed(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // An interruption reads nothing and comes back.
                    let _ = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return self.closed(e.to_string()),
            }
            loop {
                match decoder.message::<FromGuest>() {
                    Ok(None) => break,
                    Ok(Some(message)) => {
                        let mut state = self.shared.lock();
                        state.note("<-", &message, None);
                        let taken = state.take(message);
                        drop(state);
                        self.shared.changed.notify_all();
                        if let Err(why) = taken {
                            return why;
                        }
                    }
                    Err(e) => return ChannelError::Damaged(e),
                }
            }
        }
    }

    /// The transport has ended: because the machine has, or for reasons of its own.
    fn closed(&self, reason: String) -> ChannelError {
        // Ours has been said already when it was us who ended it.
        if self.shared.lock().ended.is_some() {
            return ChannelError::Closed(reason);
        }
        // QEMU's descriptors close a moment before its process is seen to have ended.
        match self.watch.as_ref().and_then(|watch| watch.wait(MACHINE_END)) {
            Some(info) => ChannelError::MachineEnded(Box::new(info)),
            None => ChannelError::Closed(reason),
        }
    }
}

/// Writes all of it to a socket, waiting for room until the deadline.
pub(super) fn write_all(fd: &impl AsFd, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        // A peer that is gone is an error here, not a signal.
        match send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout =
                    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                match poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&timeout)) {
                    Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::ExitKind;
    use crate::wire::RefusalKind;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(30);

    /// A guest's end, driven by hand.
    struct Guest {
        stream: UnixStream,
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Guest {
        fn say(&mut self, message: &FromGuest) {
            let frame = self.encoder.encode(message).unwrap();
            self.stream.write_all(&frame).unwrap();
        }

        fn hello(&mut self) {
            self.say(&FromGuest::Hello(hello(VERSION)));
        }

        fn hear(&mut self) -> Request {
            let mut buffer = [0; 4096];
            loop {
                if let Some(request) = self.decoder.message().unwrap() {
                    return request;
                }
                let n = self.stream.read(&mut buffer).unwrap();
                assert_ne!(n, 0, "the host hung up");
                self.decoder.feed(&buffer[..n]);
            }
        }
    }

    fn hello(version: u32) -> Hello {
        Hello { version, release: "7.2.13".into(), cpus: 2, uptime_us: 1 }
    }

    fn pair(watch: Option<ExitWatch>) -> (Channel, Guest) {
        let (ours, stream) = UnixStream::pair().unwrap();
        let guest = Guest { stream, encoder: Encoder::default(), decoder: Decoder::default() };
        (Channel::new(ours.into(), watch).unwrap(), guest)
    }

    fn reply(id: u64, text: &str) -> FromGuest {
        FromGuest::Reply { id, result: Ok(Answer::Text(text.into())) }
    }

    /// What ends the conversation when the guest sends these messages after hello.
    fn end_after(messages: &[FromGuest]) -> String {
        let (channel, mut guest) = pair(None);
        guest.hello();
        for message in messages {
            guest.say(message);
        }
        loop {
            match channel.wait_event(SOON) {
                Ok(event) => assert!(event.is_some(), "the conversation did not end"),
                Err(e) => {
                    assert!(e.is_final());
                    assert_eq!(channel.ended(), Some(e.clone()));
                    assert_eq!(channel.call(Op::Dmesg, SOON), Err(e.clone()));
                    return e.to_string();
                }
            }
        }
    }

    #[test]
    fn calls_get_their_own_answers() {
        let (channel, mut guest) = pair(None);
        guest.hello();
        assert_eq!(channel.hello(SOON).unwrap().cpus, 2);
        let thread = std::thread::spawn(move || {
            let (first, second) = (guest.hear(), guest.hear());
            for request in [second, first] {
                let text = if request.op == Op::Dmesg { "log" } else { "state" };
                guest.say(&reply(request.id, text));
            }
            let third = guest.hear();
            let refusal = Refusal {
                kind: RefusalKind::NotFound,
                message: "no scheduler is attached".into(),
                log: String::new(),
            };
            guest.say(&FromGuest::Reply { id: third.id, result: Err(refusal) });
            guest
        });
        std::thread::scope(|scope| {
            let state = scope.spawn(|| channel.call(Op::SchedulerState, SOON));
            assert_eq!(channel.call(Op::Dmesg, SOON), Ok(Answer::Text("log".into())));
            assert_eq!(state.join().unwrap(), Ok(Answer::Text("state".into())));
        });
        let refused = channel.call(Op::Detach, SOON).unwrap_err();
        assert_eq!(refused.to_string(), "no scheduler is attached");
        assert!(!refused.is_final());
        let trace = channel.trace();
        assert!(trace[0].starts_with("<- Hello("), "{trace:?}");
        assert!(trace.iter().any(|line| line.starts_with("-> #") && line.ends_with("Dmesg")));
        drop(thread.join().unwrap());
    }

    #[test]
    fn a_deadline_names_what_was_waited_for_and_a_late_answer_is_dropped() {
        let (channel, mut guest) = pair(None);
        let error = channel.hello(SHORT).unwrap_err();
        assert_eq!(error.to_string(), "waited 30ms for the guest's agent to say hello in vain");
        guest.hello();
        channel.hello(SOON).unwrap();
        let exec = Op::Exec { argv: vec!["/bin/true".into()], timeout_ms: 1 };
        let error = channel.call(exec, SHORT).unwrap_err();
        assert_eq!(error.to_string(), "waited 30ms for an answer to Exec in vain");
        assert!(!error.is_final());
        let late = guest.hear();
        guest.say(&reply(late.id, "late"));
        let thread = std::thread::spawn(move || {
            let request = guest.hear();
            guest.say(&reply(request.id, "in time"));
            guest
        });
        assert_eq!(channel.call(Op::Dmesg, SOON), Ok(Answer::Text("in time".into())));
        drop(thread.join().unwrap());
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_conversation() {
        let event = || FromGuest::Event(Event::PoweringOff);
        let cases = [
            (
                vec![FromGuest::Hello(hello(VERSION))],
                "the guest broke the protocol: it said hello twice",
            ),
            (
                vec![event(), reply(1, "x")],
                "the guest broke the protocol: it answered a request that was never made (#1)",
            ),
            (
                vec![reply(0, "x")],
                "the guest broke the protocol: it answered a request that was never made (#0)",
            ),
        ];
        for (messages, says) in cases {
            assert_eq!(end_after(&messages), says);
        }
        let (channel, mut guest) = pair(None);
        guest.say(&event());
        let error = channel.hello(SOON).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest broke the protocol: its first frame was not hello"
        );
        let (channel, mut guest) = pair(None);
        guest.say(&FromGuest::Hello(hello(VERSION + 1)));
        let error = channel.hello(SOON).unwrap_err().to_string();
        assert!(error.contains("build both from the same sources"), "{error}");
    }

    #[test]
    fn events_are_bounded_in_bytes_as_long_as_they_are_not_taken() {
        let (channel, mut guest) = pair(None);
        let thread = std::thread::spawn(move || {
            guest.hello();
            let reason = "x".repeat(1 << 20);
            for _ in 0..=(MAX_EVENT_BYTES >> 20) + 8 {
                guest.say(&FromGuest::Event(Event::AgentFailed { reason: reason.clone() }));
            }
        });
        for _ in 0..8 {
            channel.wait_event(SOON).unwrap().expect("an event");
        }
        let error = channel.shared.wait(SOON, |_| None::<()>).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest broke the protocol: it sent more than 64 MiB of events at once"
        );
        thread.join().unwrap();
    }

    #[test]
    fn a_flood_of_events_is_bounded() {
        let (channel, mut guest) = pair(None);
        let thread = std::thread::spawn(move || {
            guest.hello();
            for _ in 0..=MAX_EVENTS {
                guest.say(&FromGuest::Event(Event::PoweringOff));
            }
        });
        // Nobody takes events while they come in.
        let error = channel.shared.wait(SOON, |_| None::<()>).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest broke the protocol: it sent more than 4096 events at once"
        );
        assert_eq!(channel.shared.lock().events.len(), MAX_EVENTS);
        thread.join().unwrap();
    }

    #[test]
    fn damage_and_silence_end_every_wait() {
        let (channel, mut guest) = pair(None);
        guest.hello();
        guest.stream.write_all(b"this is no frame at all").unwrap();
        let error = channel.call(Op::Dmesg, SOON).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest's frames are damaged: frame 1: bad magic [74, 68, 69, 73] instead of \
             \"CRYO\""
        );
        let (channel, guest) = pair(None);
        drop(guest);
        let error = channel.hello(SOON).unwrap_err();
        assert_eq!(error.to_string(), "the transport to the guest has ended: end of stream");
    }

    #[test]
    fn a_dead_machine_ends_a_wait_at_once_and_says_how_it_died() {
        let watch = ExitWatch::default();
        let (channel, mut guest) = pair(Some(watch.clone()));
        guest.hello();
        channel.hello(SOON).unwrap();
        guest.say(&FromGuest::Event(Event::PoweringOff));
        let info = ExitInfo {
            kind: ExitKind::Panicked { message: "Fatal exception".into() },
            console: "[    9.1] Kernel panic".into(),
            engine_log: String::new(),
        };
        let (start, dead) = (Instant::now(), info.clone());
        let thread = std::thread::spawn(move || {
            guest.hear();
            drop(guest);
            watch.set(dead);
        });
        let error = channel.call(Op::Dmesg, SOON).unwrap_err();
        assert_eq!(error, ChannelError::MachineEnded(Box::new(info)));
        assert_eq!(
            error.to_string(),
            "the guest's kernel panicked: Fatal exception\nend of the console's output:\n\
             [    9.1] Kernel panic"
        );
        assert!(start.elapsed() < SOON);
        assert_eq!(channel.wait_event(SOON), Ok(Some(Event::PoweringOff)), "it came before");
        assert_eq!(channel.wait_event(SOON).unwrap_err(), error);
        thread.join().unwrap();
    }

    #[test]
    fn a_guest_that_does_not_read_cannot_hold_the_host_up() {
        let (channel, mut guest) = pair(None);
        guest.hello();
        channel.hello(SOON).unwrap();
        let path = "x".repeat(1 << 20);
        let error =
            channel.call(Op::ReadFile { path, offset: 0 }, Duration::from_millis(50)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the transport to the guest has ended: the guest does not read"
        );
        let path = "x".repeat(crate::wire::MAX_PAYLOAD);
        let (channel, mut guest) = pair(None);
        guest.hello();
        let error = channel.call(Op::ReadFile { path, offset: 0 }, SOON).unwrap_err();
        assert!(matches!(error, ChannelError::Unsendable(WireError::TooLong { .. })), "{error}");
    }

    #[test]
    fn traces_are_short() {
        let mut state = State::default();
        for id in 0..100 {
            state.note(
                "->",
                &Op::ReadFile { path: "y".repeat(5000) + "\u{1b}", offset: 0 },
                Some(id),
            );
        }
        assert_eq!(state.trace.len(), TRACE);
        assert!(state.trace.iter().all(|line| line.len() <= TRACE_WIDTH + 2));
        assert!(state.trace[0].starts_with("-> #76 ReadFile"));
    }
}
