//! Frames over a descriptor, without ever waiting for the host.
//!
//! What is sent waits in a queue until the descriptor takes it, so a slow host never stops the
//! agent. The queue is bounded: while it is long no requests are taken in, and events that do
//! not fit are dropped with a note in the kernel's log (replies always fit, since requests stop).
//!
//! A virtio-serial port has no end of its own: the host's side may go and come back. Then both
//! directions start afresh, with another hello.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::kmsg;
use cryoscope::wire::{Decoder, Encoder, FromGuest, Request, WireError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// No more requests are read while this much waits to be sent.
const BACKLOG: usize = 16 << 20;
/// Events are dropped when this much waits.
const LIMIT: usize = 32 << 20;

/// One end of the channel.
pub(crate) struct Link {
    fd: OwnedFd,
    encoder: Encoder,
    decoder: Decoder,
    out: VecDeque<Vec<u8>>,
    queued: usize,
    /// Bytes of the first frame in `out` that are sent.
    sent: usize,
    connected: bool,
}

/// What reading gave.
#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    /// A request.
    Request(Request),
    /// Nothing now.
    Nothing,
    /// The host's side is closed.
    Closed,
}

impl Link {
    /// Takes a non-blocking descriptor.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Link {
            fd,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            out: VecDeque::new(),
            queued: 0,
            sent: 0,
            connected: true,
        }
    }

    /// The descriptor and what to wait for on it; nothing while the host is away, since a port
    /// without host is always ready.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        if self.queued < BACKLOG {
            flags |= PollFlags::IN;
        }
        if !self.out.is_empty() {
            flags |= PollFlags::OUT;
        }
        self.connected.then(|| (self.fd.as_fd(), flags))
    }

    /// Whether the host's side is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Queues one message.
    ///
    /// # Errors
    /// [`WireError`] when it does not fit into a frame; nothing is queued then.
    pub(crate) fn send(&mut self, message: &FromGuest) -> Result<(), WireError> {
        if self.queued >= LIMIT && matches!(message, FromGuest::Event(_)) {
            kmsg::say(&format!("the host does not read; dropped {message:?}"));
            return Ok(());
        }
        let frame = self.encoder.encode(message)?;
        self.queued += frame.len();
        self.out.push_back(frame);
        Ok(())
    }

    /// Writes as much as the descriptor takes now.
    ///
    /// # Errors
    /// Those of writing, other than that it would wait.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(frame) = self.out.front() {
            match rustix::io::write(&self.fd, &frame[self.sent..]) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.sent += n;
                    self.queued -= n;
                    if self.sent == frame.len() {
                        self.out.pop_front();
                        self.sent = 0;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes everything, waiting until `deadline`; says whether all was written.
    pub(crate) fn drain(&mut self, deadline: Instant) -> bool {
        while self.flush().is_ok() && !self.out.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // A port whose host is away is always "ready": look again now and then.
            let step = left.min(Duration::from_millis(5));
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            let _ = poll(&mut fds, Timespec::try_from(step).ok().as_ref());
            if fds[0].revents().contains(PollFlags::HUP) {
                std::thread::sleep(step);
            }
        }
        self.out.is_empty()
    }

    /// The next request, reading at most one buffer from the descriptor.
    ///
    /// # Errors
    /// [`WireError`] when the stream is damaged; it stays so.
    pub(crate) fn receive(&mut self) -> Result<Received, WireError> {
        if let Some(request) = self.decoder.message()? {
            return Ok(Received::Request(request));
        }
        if self.queued >= BACKLOG {
            return Ok(Received::Nothing);
        }
        let mut buffer = [0; 32 << 10];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => Ok(Received::Closed),
            Ok(n) => {
                self.decoder.feed(&buffer[..n]);
                Ok(self.decoder.message()?.map_or(Received::Nothing, Received::Request))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Received::Nothing),
            Err(_) => Ok(Received::Closed),
        }
    }

    /// Forgets both directions: the host has gone.
    pub(crate) fn disconnect(&mut self) {
        self.connected = false;
        self.encoder = Encoder::default();
        self.decoder = Decoder::default();
        self.out.clear();
        (self.queued, self.sent) = (0, 0);
    }

    /// Whether the host has come back, after [`Self::disconnect`].
    pub(crate) fn try_reconnect(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        self.connected = !fds[0].revents().contains(PollFlags::HUP);
        self.connected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryoscope::wire::{Answer, Event, Op};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Link::new(ours.into()), theirs)
    }

    fn reply(id: u64, size: usize) -> FromGuest {
        FromGuest::Reply { id, result: Ok(Answer::Text("x".repeat(size))) }
    }

    #[test]
    fn a_host_that_does_not_read_stops_requests_but_not_the_agent() {
        let (mut link, mut host) = pair();
        for id in 0..6 {
            link.send(&reply(id, 3 << 20)).unwrap();
            link.flush().unwrap();
        }
        let (_, flags) = link.interest().unwrap();
        assert_eq!(flags, PollFlags::OUT, "no requests while so much waits");
        host.write_all(&Encoder::default().encode(&Request { id: 9, op: Op::Dmesg }).unwrap())
            .unwrap();
        assert_eq!(link.receive().unwrap(), Received::Nothing);
        let reader = std::thread::spawn(move || {
            let (mut decoder, mut buffer, mut seen) = (Decoder::default(), [0; 65536], 0);
            while seen < 6 {
                let n = host.read(&mut buffer).unwrap();
                decoder.feed(&buffer[..n]);
                while let Some(message) = decoder.message::<FromGuest>().unwrap() {
                    assert_eq!(message, reply(seen, 3 << 20));
                    seen += 1;
                }
            }
            host
        });
        assert!(link.drain(Instant::now() + Duration::from_secs(20)));
        let _host = reader.join().unwrap();
        let Received::Request(request) = link.receive().unwrap() else { panic!("a request") };
        assert_eq!(request.id, 9);
    }

    #[test]
    fn events_beyond_the_limit_are_dropped_and_memory_stays_bounded() {
        let (mut link, _host) = pair();
        let event = FromGuest::Event(Event::WorkerExited { pid: 1, reason: "x".repeat(1 << 20) });
        for _ in 0..100 {
            link.send(&event).unwrap();
        }
        assert!(link.queued < LIMIT + (2 << 20));
    }

    #[test]
    fn a_host_that_goes_is_noticed() {
        let (mut link, host) = pair();
        drop(host);
        assert_eq!(link.receive().unwrap(), Received::Closed);
        link.disconnect();
        assert!(link.interest().is_none());
        assert!(!link.try_reconnect());
    }
}
