//! A line to a Unix socket in the guest, and one back: how schedulers are asked for statistics.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cryoscope::wire::{Answer, MAX_LINE, Refusal, RefusalKind};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{connect, send, socket_with};

use crate::jobs::{Task, World};
use crate::process::read_some;
use crate::refuse;
use crate::sys::reason;
use crate::text::clean;

/// A request under way.
pub(crate) struct AskTask {
    path: String,
    socket: OwnedFd,
    /// What is not sent yet.
    left: Vec<u8>,
    received: Vec<u8>,
    timeout: Duration,
}

fn failed(path: &str, error: Errno) -> Refusal {
    let kind = match error {
        Errno::NOENT => RefusalKind::NotFound,
        _ => RefusalKind::Kernel,
    };
    let why = reason(&io::Error::from(error));
    refuse(kind, format!("cannot talk to {} in the guest: {why}", clean(path.as_bytes())))
}

/// Connects and begins to send.
pub(crate) fn ask(path: &str, line: &str, timeout: Duration) -> Result<AskTask, Refusal> {
    let fail = |error| failed(path, error);
    if line.len() > MAX_LINE || line.contains('\n') {
        let message = format!("{} bytes are no line to send", line.len());
        return Err(refuse(RefusalKind::Invalid, message));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(fail)?;
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    // To a Unix socket there is a connection at once, or none.
    connect(&socket, &address).map_err(fail)?;
    let mut left = line.as_bytes().to_vec();
    left.push(b'\n');
    Ok(AskTask { path: path.to_owned(), socket, left, received: Vec::new(), timeout })
}

impl AskTask {
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
}

impl Task for AskTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let sending = if self.left.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        out.push((self.socket.as_fd(), PollFlags::IN | sending));
    }

    fn step(&mut self, _: &mut World) -> Option<Result<Answer, Refusal>> {
        if let Err(error) = self.send() {
            return Some(Err(failed(&self.path, error)));
        }
        let received = &mut self.received;
        // Beyond the cap it is thrown away, so that a flood takes no memory.
        let mut size = received.len() as u64;
        let open = read_some(&self.socket, |new| {
            size += new.len() as u64;
            let room = (MAX_LINE + 1).saturating_sub(received.len());
            received.extend(&new[..new.len().min(room)]);
        });
        if let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            received.truncate(end);
            let size = received.len() as u64;
            return Some(match String::from_utf8(std::mem::take(received)) {
                Ok(text) => Ok(Answer::Line { text: Some(text), size }),
                Err(_) => {
                    let message = format!("{} answered with bytes that are no text", self.path);
                    Err(refuse(RefusalKind::Invalid, message))
                }
            });
        }
        if size > MAX_LINE as u64 {
            return Some(Ok(Answer::Line { text: None, size }));
        }
        (!open).then(|| {
            let message = match received.len() {
                0 => format!("{} closed the connection without an answer", self.path),
                n => format!("{} closed the connection within a line, after {n} bytes", self.path),
            };
            Err(refuse(RefusalKind::Invalid, message))
        })
    }

    fn timed_out(&mut self, _: &mut World) -> Refusal {
        let message = format!(
            "{} did not answer within {} ms; {} bytes came",
            self.path,
            self.timeout.as_millis(),
            self.received.len()
        );
        refuse(RefusalKind::Timeout, message)
    }

    fn patience(&self, _: Instant) -> Duration {
        self.timeout
    }
}
