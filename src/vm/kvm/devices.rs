//! The machine's devices: two serial ports, a virtio port ([`super::virtio`]), the registers that
//! switch the machine off and reset it, and nothing else. What is written to any other port goes
//! nowhere; reads of it give ones.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuFd, VmFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_superio::serial::{NoEvents, SerialEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::contain::{self, Doors, Refused};
use super::gather::Gathered;
use super::pci;
use super::tables::{OFF, RESET, RESET_VALUE, SERIAL, SLEEP_CONTROL, SLEEP_STATUS};
use super::virtio::{Virtio, Work};
use crate::vm::Console;

/// Bytes from the guest that wait for the host to take them; a guest that sends more without being
/// heard loses its connection.
const BACKLOG: usize = 16 << 20;
/// Ports of a serial line.
const SERIAL_PORTS: u16 = 8;
/// The keyboard controller, and its command that resets the machine: kernels fall back on it.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// A hole in the machine, for tests: a write makes the CPU's thread try what it may not.
#[cfg(test)]
pub(super) const ESCAPE: u16 = 0x510;

/// What the guest did that ends the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Off,
    Reset,
}

/// An interrupt line, by the event that raises it.
pub(super) struct Irq(pub(super) EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The console's other end.
pub(super) struct ToConsole(Console);

impl Write for ToConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Who is told of a system call that was refused.
type Tell = Box<dyn Fn(Refused) + Send + Sync>;

/// What the guest has sent and the host has not taken, and what wakes the thread that carries it.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: OwnedFd,
    refused: OnceLock<Tell>,
}

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// The guest sent more than anybody took.
    overrun: bool,
    /// The machine ends.
    over: bool,
}

impl Queue {
    fn new() -> io::Result<Arc<Queue>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Queue { waiting: Mutex::default(), wake, refused: OnceLock::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when it is awake already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The guest's side of the frames.
pub(super) struct ToHost(Arc<Queue>);

impl Write for ToHost {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        // While something waits, the carrier waits for the host to take it.
        let idle = waiting.bytes.is_empty() && !bytes.is_empty();
        if waiting.bytes.len() + bytes.len() > BACKLOG {
            waiting.overrun = true;
        } else {
            waiting.bytes.extend(bytes);
        }
        let overrun = waiting.overrun;
        drop(waiting);
        if idle || overrun {
            self.0.wake();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the carrier that the guest has taken what there was.
pub(super) struct Taken(Arc<Queue>);

impl SerialEvents for Taken {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.wake();
    }
}

type Frames = Serial<Irq, Taken, ToHost>;

/// How often the guest has touched what: each time costs it an exit.
#[derive(Default)]
struct Touched {
    /// By serial port, register, and whether it was written.
    serial: [[[AtomicU64; 2]; SERIAL_PORTS as usize]; SERIAL.len()],
    ports: AtomicU64,
    bus: AtomicU64,
    virtio: AtomicU64,
    memory: AtomicU64,
}

impl Touched {
    fn port(&self, port: u16, written: bool) {
        let count = match serial(port) {
            Some((line, register)) => &self.serial[line][register as usize][usize::from(written)],
            None if on_bus(port) => &self.bus,
            None => &self.ports,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// All devices.
pub(super) struct Devices {
    console: Mutex<Serial<Irq, NoEvents, ToConsole>>,
    frames: Arc<Mutex<Frames>>,
    virtio: Arc<Mutex<Virtio>>,
    queue: Arc<Queue>,
    touched: Touched,
    gathered: OnceLock<Gathered>,
    /// What whoever works the devices needs.
    doors: Doors,
    carrier: Mutex<Option<JoinHandle<()>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    /// Devices with their interrupts; `host` is our end of the frames' stream.
    ///
    /// # Errors
    /// The host's, of threads and descriptors.
    pub(super) fn new(
        console: Console,
        host: UnixStream,
        irqs: [Irq; 2],
        virtio: Virtio,
    ) -> io::Result<Arc<Self>> {
        let [console_irq, frames_irq] = irqs;
        let queue = Queue::new()?;
        let wake = queue.wake.as_raw_fd();
        let events = vec![console_irq.0.as_raw_fd(), frames_irq.0.as_raw_fd(), wake];
        let doors = Doors { events, messages: virtio.post() };
        let frames = Serial::with_events(frames_irq, Taken(queue.clone()), ToHost(queue.clone()));
        let (frames, virtio) = (Arc::new(Mutex::new(frames)), Arc::new(Mutex::new(virtio)));
        host.set_nonblocking(true)?;
        let carrier = {
            let (queue, doors) = (queue.clone(), doors.clone());
            let ports = Ports { serial: frames.clone(), virtio: virtio.clone() };
            std::thread::Builder::new().name("kvm-frames".to_owned()).spawn(move || {
                contain::carrier(host.as_raw_fd(), wake, &doors);
                carry(&queue, &ports, host);
                if let (Some(refused), Some(tell)) = (contain::refused(), queue.refused.get()) {
                    tell(refused);
                }
            })?
        };
        Ok(Arc::new(Devices {
            console: Mutex::new(Serial::new(console_irq, ToConsole(console))),
            frames,
            virtio,
            queue,
            touched: Touched::default(),
            gathered: OnceLock::new(),
            doors,
            carrier: Mutex::new(Some(carrier)),
        }))
    }

    /// The descriptors that a thread which works the devices needs.
    pub(super) fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Says who is told when the thread that carries frames tries what it may not.
    pub(super) fn on_refused(&self, tell: impl Fn(Refused) + Send + Sync + 'static) {
        // The first one stays; there is one.
        let _ = self.queue.refused.set(Box::new(tell));
    }

    /// A read of `data.len()` bytes from a port.
    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        self.touched.port(port, false);
        data.fill(0xff);
        if on_bus(port) {
            return locked(&self.virtio).read_port(port, data);
        }
        let [byte] = data else { return };
        match serial(port) {
            Some((0, register)) => *byte = locked(&self.console).read(register),
            Some((_, register)) => *byte = locked(&self.frames).read(register),
            None if port == SLEEP_STATUS || port == SLEEP_CONTROL => *byte = 0,
            None => {}
        }
    }

    /// A write to a port; what it does to the machine.
    pub(super) fn write(&self, port: u16, data: &[u8]) -> Option<Ending> {
        const SLEEP_ENABLE: u8 = 1 << 5;
        self.touched.port(port, true);
        if on_bus(port) {
            locked(&self.virtio).write_port(port, data);
            return None;
        }
        let [byte] = *data else { return None };
        match port {
            #[cfg(test)]
            ESCAPE => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            SLEEP_CONTROL if byte & SLEEP_ENABLE != 0 => {
                return (byte >> 2 & 7 == OFF).then_some(Ending::Off);
            }
            RESET if byte == RESET_VALUE => return Some(Ending::Reset),
            KEYBOARD if byte == KEYBOARD_RESET => return Some(Ending::Reset),
            _ => self.put(port, byte),
        }
        None
    }

    /// Lets KVM gather what the guest prints and sends, where it can: it then leaves once for a
    /// port's whole FIFO, or for every other byte of its early console, which asks after each.
    pub(super) fn gather(&self, vm: &VmFd, cpu: &VcpuFd) {
        if let Some(gathered) = Gathered::new(vm, cpu, &SERIAL.map(|(port, _)| port)) {
            let _ = self.gathered.set(gathered);
        }
    }

    /// Has the ports take what was gathered. Comes before anything else that a CPU has left the
    /// guest for, so that registers are written in the order in which the guest wrote them; and
    /// now and then, lest a guest waits for an interrupt that nobody has been left for.
    pub(super) fn catch_up(&self) {
        let Some(gathered) = self.gathered.get() else { return };
        gathered.take(|port, byte| self.put(port, byte));
    }

    /// A byte that the guest wrote to a serial port. An interrupt that cannot be raised is one that
    /// the guest does not get.
    fn put(&self, port: u16, byte: u8) {
        match serial(port) {
            Some((0, register)) => drop(locked(&self.console).write(register, byte)),
            Some((_, register)) => drop(locked(&self.frames).write(register, byte)),
            None => {}
        }
    }

    /// A read of memory that is no RAM.
    pub(super) fn read_memory(&self, at: u64, data: &mut [u8]) {
        let mut virtio = locked(&self.virtio);
        match virtio.offset(at, data.len()) {
            Some(offset) => {
                self.touched.virtio.fetch_add(1, Relaxed);
                virtio.read(offset, data);
            }
            None => {
                self.touched.memory.fetch_add(1, Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// A write of memory that is no RAM.
    pub(super) fn write_memory(&self, at: u64, data: &[u8]) {
        let mut virtio = locked(&self.virtio);
        let Some(offset) = virtio.offset(at, data.len()) else {
            self.touched.memory.fetch_add(1, Relaxed);
            return;
        };
        self.touched.virtio.fetch_add(1, Relaxed);
        let Work { sent, broken, room } = virtio.write(offset, data);
        drop(virtio);
        if broken {
            self.queue.lock().overrun = true;
        }
        // Never fails.
        let _ = ToHost(self.queue.clone()).write(&sent);
        if broken || room {
            self.queue.wake();
        }
    }

    /// Keeps the guest's memory as it is while the machine stands.
    pub(super) fn stand(&self, stands: bool) {
        if locked(&self.virtio).stand(stands) {
            self.queue.wake();
        }
    }

    /// How often the guest has touched what, the most first.
    pub(super) fn touched(&self) -> Vec<(String, u64)> {
        let mut all = vec![
            ("other ports".to_owned(), self.touched.ports.load(Relaxed)),
            ("ports of the PCI bus".to_owned(), self.touched.bus.load(Relaxed)),
            ("registers of the virtio port".to_owned(), self.touched.virtio.load(Relaxed)),
            ("memory".to_owned(), self.touched.memory.load(Relaxed)),
        ];
        for (line, registers) in ["console", "frames"].iter().zip(&self.touched.serial) {
            for (register, counts) in registers.iter().enumerate() {
                let named = ["reads", "writes"].iter().zip(counts);
                all.extend(named.map(|(how, count)| {
                    (format!("{how} of the {line}'s register {register}"), count.load(Relaxed))
                }));
            }
        }
        all.retain(|(_, count)| *count > 0);
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all
    }

    /// Ends the stream of frames, after what the guest has sent before.
    pub(super) fn end(&self) {
        self.queue.lock().over = true;
        self.queue.wake();
        if let Some(carrier) = locked(&self.carrier).take() {
            let _ = carrier.join();
        }
    }
}

/// Whether a port is one of the PCI bus's.
fn on_bus(port: u16) -> bool {
    (pci::ADDRESS..pci::DATA + 4).contains(&port)
}

/// Which serial port, and which of its registers.
fn serial(port: u16) -> Option<(usize, u8)> {
    let offset = |(first, _): &(u16, u32)| {
        port.checked_sub(*first).filter(|offset| *offset < SERIAL_PORTS).map(|o| o as u8)
    };
    SERIAL.iter().enumerate().find_map(|(i, line)| Some((i, offset(line)?)))
}

/// What frames go to the guest by.
struct Ports {
    serial: Arc<Mutex<Frames>>,
    virtio: Arc<Mutex<Virtio>>,
}

impl Ports {
    /// Gives the guest what it takes: by the virtio port if it has opened that.
    fn give(&self, bytes: &mut VecDeque<u8>) {
        if !locked(&self.virtio).give(bytes) {
            give(&self.serial, bytes);
        }
    }
}

/// Carries frames between the guest's ports and the host's stream until either ends.
fn carry(queue: &Queue, ports: &Ports, mut host: UnixStream) {
    let mut from_host: VecDeque<u8> = VecDeque::new();
    let mut piece = [0; 4096];
    loop {
        let mut waiting = queue.lock();
        let sent = send(&mut host, &mut waiting.bytes);
        // At the end of the machine, what the stream does not take now nobody takes any more.
        let done = waiting.over || waiting.overrun;
        drop(waiting);
        if sent.is_err() || done || contain::refused().is_some() {
            return;
        }
        if from_host.is_empty() {
            match host.read(&mut piece) {
                Ok(0) => return,
                Ok(n) => from_host.extend(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        ports.give(&mut from_host);
        let mut flags = PollFlags::empty();
        if from_host.is_empty() {
            flags |= PollFlags::IN;
        }
        if !queue.lock().bytes.is_empty() {
            flags |= PollFlags::OUT;
        }
        let mut fds = [
            PollFd::from_borrowed_fd(host.as_fd(), flags),
            PollFd::new(&queue.wake, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        let said = fds[0].revents();
        if said.intersects(PollFlags::HUP | PollFlags::ERR) && !said.contains(PollFlags::IN) {
            return;
        }
        let _ = rustix::io::read(&queue.wake, &mut [0; 8]);
    }
}

/// Writes what the stream takes now.
fn send(host: &mut UnixStream, bytes: &mut VecDeque<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match host.write(bytes.as_slices().0) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => drop(bytes.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Gives the guest what its serial port has room for.
fn give(frames: &Mutex<Frames>, bytes: &mut VecDeque<u8>) {
    let mut frames = locked(frames);
    while !bytes.is_empty() {
        let room = frames.fifo_capacity().min(bytes.as_slices().0.len());
        if room == 0 {
            return;
        }
        let piece: Vec<u8> = bytes.drain(..room).collect();
        // It has room; in loopback mode it takes nothing, which is the guest's own affair.
        let _ = frames.enqueue_raw_bytes(&piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn devices() -> (Arc<Devices>, Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let console = Console::new(1 << 16);
        let irq = || Irq(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let virtio = Virtio::alone(1 << 20).unwrap();
        let devices = Devices::new(console.clone(), ours, [irq(), irq()], virtio).unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (devices, console, theirs)
    }

    #[test]
    fn the_console_prints_and_frames_go_both_ways() {
        let (devices, console, mut host) = devices();
        for byte in b"hello\n" {
            assert_eq!(devices.write(SERIAL[0].0, &[*byte]), None);
        }
        assert_eq!(console.text(), "hello\n");
        let sent: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        for byte in &sent {
            devices.write(SERIAL[1].0, &[*byte]);
        }
        let mut got = vec![0; sent.len()];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
        // More than the port's own buffer holds.
        host.write_all(&sent).unwrap();
        let mut taken = Vec::new();
        while taken.len() < sent.len() {
            let mut status = [0];
            devices.read(SERIAL[1].0 + 5, &mut status);
            if status[0] & 1 == 1 {
                let mut byte = [0];
                devices.read(SERIAL[1].0, &mut byte);
                taken.push(byte[0]);
            }
        }
        assert_eq!(taken, sent);
        devices.write(SERIAL[1].0, b"x");
        devices.end();
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"x", "what was sent before the end arrives");
    }

    #[test]
    fn an_end_while_something_waits_to_be_sent_is_an_end() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let queue = Queue::new().unwrap();
        queue.lock().bytes.extend(b"last words");
        // The end has come, and what it woke the carrier with is used up.
        queue.lock().over = true;
        let irq = Irq(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let frames = Serial::with_events(irq, Taken(queue.clone()), ToHost(queue.clone()));
        let (serial, virtio) = (Mutex::new(frames), Mutex::new(Virtio::alone(1 << 20).unwrap()));
        let ports = Ports { serial: serial.into(), virtio: virtio.into() };
        let carrier = std::thread::spawn(move || carry(&queue, &ports, ours));
        let mut said = String::new();
        host.read_to_string(&mut said).expect("the stream ends");
        assert_eq!(said, "last words");
        carrier.join().unwrap();
    }

    #[test]
    fn registers_end_the_machine_and_others_do_nothing() {
        let (devices, _, _host) = devices();
        let off = 1 << 5 | OFF << 2;
        let cases: [(u16, &[u8], Option<Ending>); 8] = [
            (SLEEP_CONTROL, &[off], Some(Ending::Off)),
            (SLEEP_CONTROL, &[OFF << 2], None),
            (SLEEP_CONTROL, &[1 << 5 | 3 << 2], None),
            (RESET, &[RESET_VALUE], Some(Ending::Reset)),
            (RESET, &[RESET_VALUE, 0], None),
            (KEYBOARD, &[KEYBOARD_RESET], Some(Ending::Reset)),
            (0x5658, &[0, 0, 0, 0x80], None),
            (0xffff, &[1], None),
        ];
        for (port, data, ending) in cases {
            assert_eq!(devices.write(port, data), ending, "{port:#x} {data:?}");
        }
        let mut data = [0; 4];
        devices.read(0x5658, &mut data);
        assert_eq!(data, [0xff; 4]);
        devices.read_memory(0x1234_5678, &mut data);
        assert_eq!(data, [0xff; 4]);
        devices.write(SERIAL[0].0 + 1, &[1]);
        let touched = devices.touched();
        let touched: Vec<(&str, u64)> =
            touched.iter().map(|(what, n)| (what.as_str(), *n)).collect();
        let writes = "writes of the console's register 1";
        assert_eq!(touched, [("other ports", 9), ("memory", 1), (writes, 1)]);
    }

    #[test]
    fn a_guest_that_floods_loses_its_connection() {
        let (devices, _, mut host) = devices();
        let mut sent = 0usize;
        while !devices.queue.lock().overrun {
            devices.write(SERIAL[1].0, &[sent as u8]);
            sent += 1;
            assert!(sent < 2 * BACKLOG, "it goes on for ever");
        }
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        assert!(got.len() <= sent);
    }
}
