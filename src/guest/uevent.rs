//! Kernel uevents: what the kernel announces about its objects over netlink
//! (kernel: `lib/kobject_uevent.c`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

const ROOT_SCHEDULER: &str = "/kernel/sched_ext/root";

/// The socket, and what came over it about the root scheduler.
pub(crate) struct Uevents {
    socket: OwnedFd,
    announced: bool,
    removed: bool,
    /// Whether a virtio port may have come or got its name.
    ports: bool,
}

impl Uevents {
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(KOBJECT_UEVENT))?;
        // Events come in bursts while devices appear.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1 << 20);
        bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Uevents { socket, announced: false, removed: false, ports: false })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in what has arrived.
    pub(crate) fn read(&mut self) {
        let mut buffer = [0; 8192];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((n, _)) => self.note(&buffer[..n]),
                // Some were lost: rely on nothing that was announced.
                Err(Errno::NOBUFS) => (self.announced, self.ports) = (false, true),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// A message starts with `ACTION@DEVPATH`.
    fn note(&mut self, message: &[u8]) {
        let head = message.split(|b| *b == 0).next().unwrap_or_default();
        match std::str::from_utf8(head).ok().and_then(|h| h.split_once('@')) {
            Some(("add", ROOT_SCHEDULER)) => (self.announced, self.removed) = (true, false),
            Some(("remove", ROOT_SCHEDULER)) => self.removed = true,
            Some((_, path)) if path.contains("/virtio-ports/") => self.ports = true,
            _ => {}
        }
    }

    /// Whether the kernel announced the scheduler that is in charge, so that it will also
    /// announce its end.
    pub(crate) fn announced(&self) -> bool {
        self.announced
    }

    /// Whether the scheduler was removed since the last call.
    pub(crate) fn take_removed(&mut self) -> bool {
        let removed = std::mem::take(&mut self.removed);
        if removed {
            self.announced = false;
        }
        removed
    }

    /// Whether a port may have come since the last call.
    pub(crate) fn take_ports(&mut self) -> bool {
        std::mem::take(&mut self.ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_understood() {
        let Ok(mut events) = Uevents::open() else { return };
        events.note(b"add@/kernel/sched_ext/root\0ACTION=add\0");
        assert!(events.announced() && !events.take_removed());
        events.note(b"remove@/kernel/sched_ext/root\0ACTION=remove\0");
        assert!(events.take_removed() && !events.announced() && !events.take_removed());
        events.note(b"remove@/kernel/sched_ext/sub-17\0");
        events.note(b"\xff\0");
        events.note(b"");
        assert!(!events.take_removed() && !events.take_ports());
        events.note(b"change@/devices/pci0000:00/virtio1/virtio-ports/vport1p1\0");
        assert!(events.take_ports());
    }
}
