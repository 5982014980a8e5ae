//! A virtio console with one port (Virtual I/O Device 1.2, chapters 4.1 and 5.3), on our PCI bus.
//! Frames go over it in whole buffers, where a serial line takes an interrupt for 16 bytes. What is
//! left out is the window through which firmware reaches the registers (4.1.4.9): there is none.
//!
//! What the guest writes into registers, rings and buffers is taken for what it is: rings are
//! walked by `virtio-queue`, which checks them, and of each request at most so much is done that a
//! CPU's thread hears when it is called.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::pci::{Bus, Function, Identity, WINDOW};
use crate::mem::MappedMem;
use crate::wire::PORT_NAME;

/// Where in the device's memory its registers are.
const COMMON: u32 = 0;
const COMMON_LEN: u32 = 0x38;
const ISR: u32 = 0x1000;
const CONFIG: u32 = 0x1800;
const CONFIG_LEN: u32 = 12;
const NOTIFY: u32 = 0x2000;
/// What lies between the bells of two queues.
const NOTIFY_STEP: u32 = 4;
const TABLE: u32 = 0x3000;
const PENDING: u32 = 0x3800;

/// The queues: the port's, as the guest sees it, then those that control it.
const QUEUES: usize = 4;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const TO_GUEST: usize = 2;
const FROM_GUEST: usize = 3;
const QUEUE_SIZE: u16 = 128;
/// One message for each queue, and one for changes of the configuration.
const VECTORS: usize = QUEUES + 1;
const NO_VECTOR: u16 = 0xffff;

/// `VIRTIO_F_VERSION_1` and `VIRTIO_CONSOLE_F_MULTIPORT`: a port with a name needs both.
const FEATURES: u64 = 1 << 32 | 1 << 1;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// Events of the control queues.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_SAYS_ITS_NAME: u16 = 7;
/// Messages to the guest that wait for buffers; more come of a guest that asks again and again.
const MOST_WAITING: usize = 64;
/// What the buffers of a ring may hold in all; Linux puts 32 KiB into one.
const MOST_BYTES: usize = 8 << 20;
/// What a message about a port takes, and so what one of its buffers may hold.
const MESSAGE: usize = 8;

/// What sends messages to the guest's interrupt controllers.
pub(super) struct Post {
    /// The descriptor that it does so by, -1 for none.
    pub(super) via: RawFd,
    pub(super) send: Box<dyn Fn(kvm_msi) + Send>,
}

impl Post {
    /// Has KVM deliver them (`KVM_SIGNAL_MSI` in `Documentation/virt/kvm/api.rst`).
    pub(super) fn by(vm: Arc<VmFd>) -> Self {
        let via = vm.as_raw_fd();
        let send = move |message| {
            // One that goes nowhere is the guest's own affair.
            let _ = vm.signal_msi(message);
        };
        Post { via, send: Box::new(send) }
    }
}

/// What whoever rang is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Frames that the guest sent.
    pub(super) sent: Vec<u8>,
    /// It sent what no driver sends: the connection ends.
    pub(super) broken: bool,
    /// It has room for more, or has opened the port.
    pub(super) room: bool,
}

/// A message of MSI-X's table: address, data, whether it is masked.
#[derive(Clone, Copy)]
struct Message([u32; 4]);

struct Ring {
    queue: Queue,
    vector: u16,
}

/// The device and its bus.
pub(super) struct Virtio {
    bus: Bus,
    memory: Arc<MappedMem>,
    post: Post,
    status: u8,
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: u16,
    selected: u16,
    rings: Vec<Ring>,
    table: [Message; VECTORS],
    pending: u64,
    isr: u8,
    control: VecDeque<Vec<u8>>,
    /// Whether a program in the guest has opened the port.
    open: bool,
    /// Whether the machine stands, and its memory is not to change.
    stands: bool,
    /// Whether something was not given for that reason.
    held: bool,
}

fn rings() -> Vec<Ring> {
    // The size is a power of two that fits.
    let ring = || Some(Ring { queue: Queue::new(QUEUE_SIZE).ok()?, vector: NO_VECTOR });
    (0..QUEUES).filter_map(|_| ring()).collect()
}

/// A capability that says where registers are (chapter 4.1.4).
fn structure(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

fn function() -> Function {
    let identity = Identity { vendor: 0x1af4, device: 0x1043, class: 0x07_8000, subsystem: 0x1100 };
    let mut function = Function::new(&identity);
    function.memory(WINDOW.start);
    function.interrupts(VECTORS as u16, TABLE, PENDING);
    let notify = (QUEUES as u32 * NOTIFY_STEP, NOTIFY_STEP.to_le_bytes());
    for (kind, offset, len, more) in [
        (1, COMMON, COMMON_LEN, &[][..]),
        (2, NOTIFY, notify.0, &notify.1[..]),
        (3, ISR, 1, &[]),
        (4, CONFIG, CONFIG_LEN, &[]),
    ] {
        function.capability(9, &structure(kind, offset, len, more));
    }
    function
}

impl Virtio {
    pub(super) fn new(memory: Arc<MappedMem>, post: Post) -> Self {
        Virtio {
            bus: Bus::new(function()),
            memory,
            post,
            status: 0,
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            selected: 0,
            rings: rings(),
            table: [Message([0, 0, 0, 1]); VECTORS],
            pending: 0,
            isr: 0,
            control: VecDeque::new(),
            open: false,
            stands: false,
            held: false,
        }
    }

    /// One with a memory of `ram` bytes that no guest has, and nobody to send interrupts to.
    #[cfg(test)]
    pub(super) fn alone(ram: u64) -> Option<Self> {
        let memory =
            MappedMem::own(vec![crate::mem::Region { start: crate::mem::Gpa(0), len: ram }])
                .ok()?;
        Some(Virtio::new(memory.into(), Post { via: -1, send: Box::new(drop) }))
    }

    /// A read of the bus's ports.
    pub(super) fn read_port(&mut self, port: u16, data: &mut [u8]) {
        self.bus.read(port, data);
    }

    /// A write of the bus's ports, which may let messages go that waited.
    pub(super) fn write_port(&mut self, port: u16, data: &[u8]) {
        self.bus.write(port, data);
        self.settle();
    }

    /// The descriptor by which interrupts are sent.
    pub(super) fn post(&self) -> RawFd {
        self.post.via
    }

    /// Sends what waited, after what held it up may have changed.
    fn settle(&mut self) {
        for vector in 0..VECTORS {
            if self.pending >> vector & 1 == 1 {
                self.pending &= !(1 << vector);
                self.ring(vector as u16);
            }
        }
    }

    /// Where in its memory an access is, if it is there.
    pub(super) fn offset(&self, at: u64, len: usize) -> Option<u32> {
        self.bus.device.offset(at, len)
    }

    /// Interrupts the guest by a message, or notes that it is to be.
    fn ring(&mut self, vector: u16) {
        let Some(Message([low, high, data, control])) = self.table.get(usize::from(vector)) else {
            return;
        };
        if !self.bus.device.interrupts_on() {
            return;
        }
        if control & 1 == 1 || self.bus.device.interrupts_wait() {
            self.pending |= 1 << vector;
            return;
        }
        let (address_lo, address_hi, data) = (*low, *high, *data);
        (self.post.send)(kvm_msi { address_lo, address_hi, data, ..Default::default() });
    }

    /// A read of its memory.
    pub(super) fn read(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let copy = |data: &mut [u8], bytes: &[u8], from: u32| {
            for (to, byte) in data.iter_mut().zip(bytes.iter().skip(from as usize)) {
                *to = *byte;
            }
        };
        match offset {
            COMMON..COMMON_LEN => copy(data, &self.common(), offset),
            // Read is cleared.
            ISR => copy(data, &[std::mem::take(&mut self.isr)], 0),
            CONFIG.. if offset < CONFIG + CONFIG_LEN => {
                // No size in characters; one port; no emergency writes.
                copy(data, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], offset - CONFIG);
            }
            TABLE.. if offset < TABLE + 16 * VECTORS as u32 => {
                let words = self.table.iter().flat_map(|message| message.0);
                let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
                copy(data, &bytes, offset - TABLE);
            }
            PENDING.. => copy(data, &self.pending.to_le_bytes(), offset - PENDING),
            _ => {}
        }
    }

    /// What the common registers say.
    fn common(&self) -> [u8; COMMON_LEN as usize] {
        let features = |select: u32, all: u64| match select {
            0 => all as u32,
            1 => (all >> 32) as u32,
            _ => 0,
        };
        let mut out = [0; COMMON_LEN as usize];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &features(self.device_select, FEATURES).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &features(self.driver_select, self.driver_features).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(QUEUES as u16).to_le_bytes());
        put(0x14, &[self.status]);
        put(0x16, &self.selected.to_le_bytes());
        if let Some(Ring { queue, vector }) = self.rings.get(usize::from(self.selected)) {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x1e, &self.selected.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
        out
    }

    /// A write to its memory; what is to be done then.
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) -> Work {
        let value = data.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte)) as u32;
        match (offset, data.len()) {
            // An address is written in halves, or whole.
            (0x20..0x38, 8) => {
                self.set_common(offset, value);
                self.set_common(
                    offset + 4,
                    u32::from_le_bytes([data[4], data[5], data[6], data[7]]),
                );
            }
            (COMMON..COMMON_LEN, 1 | 2 | 4) => self.set_common(offset, value),
            (NOTIFY.., _) if offset < NOTIFY + QUEUES as u32 * NOTIFY_STEP => {
                return self.rung(((offset - NOTIFY) / NOTIFY_STEP) as usize);
            }
            (TABLE.., 4) if offset < TABLE + 16 * VECTORS as u32 && offset.is_multiple_of(4) => {
                let word = ((offset - TABLE) / 4) as usize;
                self.table[word / 4].0[word % 4] = value;
                self.settle();
            }
            _ => {}
        }
        Work::default()
    }

    fn set_common(&mut self, offset: u32, value: u32) {
        let half = value as u16;
        match offset {
            0x00 => self.device_select = value,
            0x08 => self.driver_select = value,
            0x0c if self.status & FEATURES_OK == 0 => {
                let word = |select| if self.driver_select == select { value.into() } else { 0 };
                let keep = match self.driver_select {
                    0 => !0 << 32,
                    1 => !0 >> 32,
                    _ => !0u64,
                };
                self.driver_features = self.driver_features & keep | word(0) | word(1) << 32;
            }
            0x10 => self.config_vector = half,
            0x14 => self.set_status(value as u8),
            0x16 => self.selected = half,
            _ => self.set_ring(offset, value),
        }
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.rings = rings();
            (self.driver_features, self.config_vector) = (0, NO_VECTOR);
            (self.isr, self.pending, self.open) = (0, 0, false);
            self.control.clear();
        }
        // Whoever leaves a feature out that we cannot do without finds the bit unset.
        let agreed = self.driver_features == FEATURES;
        self.status = if agreed { status } else { status & !FEATURES_OK };
    }

    fn set_ring(&mut self, offset: u32, value: u32) {
        let Some(Ring { queue, vector }) = self.rings.get_mut(usize::from(self.selected)) else {
            return;
        };
        match offset {
            0x1a => *vector = value as u16,
            // What is set up is not changed any more.
            _ if queue.ready() => {}
            0x18 => queue.set_size(value as u16),
            0x1c => queue.set_ready(value == 1),
            0x20 => queue.set_desc_table_address(Some(value), None),
            0x24 => queue.set_desc_table_address(None, Some(value)),
            0x28 => queue.set_avail_ring_address(Some(value), None),
            0x2c => queue.set_avail_ring_address(None, Some(value)),
            0x30 => queue.set_used_ring_address(Some(value), None),
            0x34 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// Goes through the buffers that the guest has put into a ring, at most as many as it holds,
    /// until `f` wants no more; `f` says what it has written into one.
    fn each(&mut self, which: usize, mut f: impl FnMut(&GuestMemoryMmap, Buffer) -> Option<u32>) {
        let memory = self.memory.mapping();
        let Some(Ring { queue, vector }) = self.rings.get_mut(which) else { return };
        if self.status & DRIVER_OK == 0 || !queue.ready() || !queue.is_valid(memory) {
            return;
        }
        let mut done = false;
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            let Some(written) = f(memory, chain) else {
                queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                break;
            };
            if queue.add_used(memory, head, written).is_err() {
                break;
            }
            done = true;
        }
        if done && queue.needs_notification(memory).unwrap_or(true) {
            let vector = *vector;
            self.isr |= 1;
            self.ring(vector);
        }
    }

    /// The guest has rung for a queue.
    fn rung(&mut self, which: usize) -> Work {
        let mut work = Work::default();
        match which {
            RECEIVE => work.room = true,
            TRANSMIT => {
                self.each(TRANSMIT, |memory, buffer| {
                    work.broken |= !take(memory, buffer, &mut work.sent, MOST_BYTES);
                    Some(0)
                });
            }
            FROM_GUEST => {
                let mut said = Vec::new();
                self.each(FROM_GUEST, |memory, buffer| {
                    let mut message = Vec::new();
                    work.broken |= !take(memory, buffer, &mut message, MESSAGE);
                    said.push(message);
                    Some(0)
                });
                for message in said {
                    work.room |= self.hear(&message);
                }
                self.tell();
            }
            TO_GUEST => self.tell(),
            _ => {}
        }
        work
    }

    /// What the guest says of the port; whether it has just opened it.
    fn hear(&mut self, message: &[u8]) -> bool {
        let &[a, b, c, d, event_low, event_high, value, 0] = message else { return false };
        match (u16::from_le_bytes([event_low, event_high]), u32::from_le_bytes([a, b, c, d])) {
            // Linux says so of a port that there is not.
            (DEVICE_READY, _) if value == 1 => self.say(PORT_ADD, 1, &[]),
            (PORT_READY, 0) if value == 1 => {
                self.say(PORT_SAYS_ITS_NAME, 1, PORT_NAME.as_bytes());
                self.say(PORT_OPEN, 1, &[]);
            }
            (PORT_OPEN, 0) => self.open = value == 1,
            _ => {}
        }
        self.open
    }

    fn say(&mut self, event: u16, value: u16, more: &[u8]) {
        let mut message = vec![0; 4];
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(more);
        if self.control.len() < MOST_WAITING {
            self.control.push_back(message);
        }
    }

    /// Hands over the messages for which there is room.
    fn tell(&mut self) {
        let mut waiting = std::mem::take(&mut self.control);
        self.each(TO_GUEST, |memory, buffer| {
            let message = waiting.pop_front()?;
            Some(put(memory, buffer, &mut message.into()))
        });
        self.control = waiting;
    }

    /// Keeps the guest's memory as it is from now on, or no longer; whether something waits for
    /// that.
    pub(super) fn stand(&mut self, stands: bool) -> bool {
        self.stands = stands;
        !stands && std::mem::take(&mut self.held)
    }

    /// Gives the guest what it has room for, unless it stands. Whether the port is open.
    pub(super) fn give(&mut self, bytes: &mut VecDeque<u8>) -> bool {
        self.held |= self.open && self.stands && !bytes.is_empty();
        if self.open && !self.stands {
            self.each(RECEIVE, |memory, buffer| match bytes.is_empty() {
                true => None,
                false => Some(put(memory, buffer, bytes)),
            });
        }
        self.open
    }
}

type Buffer<'a> = virtio_queue::DescriptorChain<&'a GuestMemoryMmap>;

/// Reads a buffer of the guest's, until `out` has `most` bytes; whether it is one that a driver sends.
fn take(memory: &GuestMemoryMmap, buffer: Buffer, out: &mut Vec<u8>, most: usize) -> bool {
    for part in buffer.readable() {
        let (start, len) = (out.len(), part.len() as usize);
        if start + len > most {
            return false;
        }
        out.resize(start + len, 0);
        if memory.read_slice(&mut out[start..], part.addr()).is_err() {
            out.truncate(start);
            return false;
        }
    }
    true
}

/// Fills a buffer of the guest's with what there is; how many bytes went into it.
fn put(memory: &GuestMemoryMmap, buffer: Buffer, bytes: &mut VecDeque<u8>) -> u32 {
    let mut written = 0;
    for part in buffer.writable() {
        let piece = &bytes.make_contiguous()[..];
        let piece = &piece[..piece.len().min(part.len() as usize)];
        if memory.write_slice(piece, part.addr()).is_err() {
            break;
        }
        let len = piece.len();
        written += len as u32;
        bytes.drain(..len);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Gpa, Region};
    use std::sync::Mutex;
    use vm_memory::GuestAddress;

    /// What Linux's driver does, on memory of a machine that is not there.
    struct Driver {
        device: Virtio,
        memory: Arc<MappedMem>,
        messages: Arc<Mutex<Vec<u32>>>,
        /// Buffers that were put into each queue.
        made: [u16; QUEUES],
        /// Those that came back.
        seen: [u16; QUEUES],
        /// What is added to the addresses of the rings that the device reads.
        avail: u64,
    }

    const SIZE: u16 = 16;

    /// Where a queue's descriptors, rings and buffers are.
    fn place(queue: usize, what: u64) -> u64 {
        0x10_0000 * queue as u64 + 0x1000 * what
    }

    impl Driver {
        fn new() -> Self {
            let memory = MappedMem::own(vec![Region { start: Gpa(0), len: 64 << 20 }]).unwrap();
            let memory = Arc::new(memory);
            let messages = Arc::new(Mutex::new(Vec::new()));
            let noted = messages.clone();
            let send = Box::new(move |msi: kvm_msi| noted.lock().unwrap().push(msi.data));
            let device = Virtio::new(memory.clone(), Post { via: -1, send });
            let (made, seen) = ([0; QUEUES], [0; QUEUES]);
            Driver { device, memory, messages, made, seen, avail: 0 }
        }

        fn config(&mut self, register: u32, value: &[u8]) {
            let address = 1u32 << 31 | 1 << 11 | register & 0xfc;
            self.device.write_port(super::super::pci::ADDRESS, &address.to_le_bytes());
            let port = super::super::pci::DATA + (register & 3) as u16;
            self.device.write_port(port, value);
        }

        fn common(&mut self, offset: u32, value: u64, len: usize) {
            self.device.write(offset, &value.to_le_bytes()[..len]);
        }

        fn read(&mut self, offset: u32) -> u32 {
            let mut data = [0; 4];
            self.device.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn start(&mut self, features: u64) {
            self.common(0x14, 3, 1);
            for half in 0..2 {
                self.common(0x08, half, 4);
                self.common(0x0c, features >> (32 * half) & 0xffff_ffff, 4);
            }
            self.common(0x14, 11, 1);
            // Message n has number 0x40 + n.
            self.config(0x43, &[MSIX_ON]);
            for vector in 0..VECTORS as u32 {
                for (word, value) in [(0, 0xfee0_0000), (2, 0x40 + vector), (3, 0)] {
                    let offset = TABLE + 16 * vector + 4 * word;
                    self.device.write(offset, &value.to_le_bytes());
                }
            }
            for queue in 0..QUEUES {
                self.common(0x16, queue as u64, 2);
                self.common(0x18, SIZE.into(), 2);
                self.common(0x1a, queue as u64, 2);
                self.common(0x20, place(queue, 0), 8);
                self.common(0x28, place(queue, 1) + self.avail, 8);
                self.common(0x30, place(queue, 2), 8);
                self.common(0x1c, 1, 2);
            }
            self.common(0x14, 15, 1);
        }

        fn set<const N: usize>(&self, at: u64, bytes: [u8; N]) {
            self.memory.mapping().write_slice(&bytes, GuestAddress(at)).unwrap();
        }

        fn get<const N: usize>(&self, at: u64) -> [u8; N] {
            let mut bytes = [0; N];
            self.memory.mapping().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }

        /// Puts a buffer into a queue and rings.
        fn put(&mut self, queue: usize, at: u64, len: u32, device_writes: bool) -> Work {
            let slot = self.made[queue] % SIZE;
            let descriptor = place(queue, 0) + 16 * u64::from(slot);
            self.set(descriptor, at.to_le_bytes());
            self.set(descriptor + 8, len.to_le_bytes());
            self.set(descriptor + 12, (u16::from(device_writes) << 1).to_le_bytes());
            self.set(place(queue, 1) + 4 + 2 * u64::from(slot), slot.to_le_bytes());
            self.made[queue] += 1;
            self.set(place(queue, 1) + 2, self.made[queue].to_le_bytes());
            self.device.write(NOTIFY + NOTIFY_STEP * queue as u32, &(queue as u16).to_le_bytes())
        }

        /// The room that a queue's next buffer gets.
        fn room(&mut self, queue: usize, len: u32) -> Work {
            let at = place(queue, 16 + u64::from(self.made[queue] % SIZE));
            self.put(queue, at, len, true)
        }

        fn send(&mut self, queue: usize, bytes: &[u8]) -> Work {
            let at = place(queue, 16);
            self.memory.mapping().write_slice(bytes, GuestAddress(at)).unwrap();
            self.put(queue, at, bytes.len() as u32, false)
        }

        /// What the device has put into buffers since.
        fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
            let used = u16::from_le_bytes(self.get(place(queue, 2) + 2));
            let mut all = Vec::new();
            while self.seen[queue] != used {
                let entry = place(queue, 2) + 4 + 8 * u64::from(self.seen[queue] % SIZE);
                let slot = u32::from_le_bytes(self.get(entry));
                let mut bytes = vec![0; u32::from_le_bytes(self.get(entry + 4)) as usize];
                let at = GuestAddress(place(queue, 16 + u64::from(slot)));
                self.memory.mapping().read_slice(&mut bytes, at).unwrap();
                all.push(bytes);
                self.seen[queue] += 1;
            }
            all
        }

        fn control(&mut self, event: u16, value: u16) -> Work {
            let [e, v] = [event.to_le_bytes(), value.to_le_bytes()];
            let port = if event == DEVICE_READY { 0xff } else { 0 };
            self.send(FROM_GUEST, &[port, port, port, port, e[0], e[1], v[0], v[1]])
        }

        /// As far as an open port.
        fn open(&mut self) {
            self.start(FEATURES);
            (0..8).for_each(|_| drop(self.room(TO_GUEST, 64)));
            self.control(DEVICE_READY, 1);
            assert_eq!(self.received(TO_GUEST), [[0, 0, 0, 0, 1, 0, 1, 0]]);
            self.control(PORT_READY, 1);
            let name = [&[0, 0, 0, 0, 7, 0, 1, 0][..], PORT_NAME.as_bytes()].concat();
            assert_eq!(self.received(TO_GUEST), [name, vec![0, 0, 0, 0, 6, 0, 1, 0]]);
            assert!(self.control(PORT_OPEN, 1).room);
            self.messages.lock().unwrap().clear();
        }
    }

    const MSIX_ON: u8 = 0x80;

    #[test]
    fn a_driver_opens_the_port_and_bytes_go_both_ways() {
        let mut driver = Driver::new();
        driver.open();
        let sent = driver.send(TRANSMIT, b"from the guest");
        assert_eq!(sent, Work { sent: b"from the guest".to_vec(), ..Work::default() });
        assert_eq!(*driver.messages.lock().unwrap(), [0x40 + TRANSMIT as u32]);
        // More than the guest has room for: it comes when there is.
        driver.room(RECEIVE, 8);
        let mut bytes: VecDeque<u8> = b"to the guest".to_vec().into();
        assert!(driver.device.give(&mut bytes));
        assert_eq!(driver.received(RECEIVE), [b"to the g"]);
        assert_eq!(bytes, b"uest");
        assert!(driver.room(RECEIVE, 8).room);
        driver.device.give(&mut bytes);
        assert_eq!(driver.received(RECEIVE), [b"uest"]);
        // Room that is not needed stays.
        driver.room(RECEIVE, 8);
        driver.device.give(&mut bytes);
        assert!(driver.received(RECEIVE).is_empty());
        bytes.extend(b"later");
        driver.device.give(&mut bytes);
        assert_eq!(driver.received(RECEIVE), [b"later"]);
    }

    #[test]
    fn a_machine_that_stands_keeps_its_memory() {
        let mut driver = Driver::new();
        driver.open();
        driver.room(RECEIVE, 8);
        assert!(!driver.device.stand(true));
        let mut bytes: VecDeque<u8> = b"frame".to_vec().into();
        assert!(driver.device.give(&mut bytes), "it is open, and to be tried again");
        assert!(driver.received(RECEIVE).is_empty() && bytes == b"frame");
        assert!(driver.device.stand(false), "something waits");
        driver.device.give(&mut bytes);
        assert_eq!(driver.received(RECEIVE), [b"frame"]);
        assert!(!driver.device.stand(true) && !driver.device.stand(false), "nothing waits");
    }

    #[test]
    fn interrupts_that_are_masked_wait() {
        let mut driver = Driver::new();
        driver.open();
        let said = |driver: &Driver| driver.messages.lock().unwrap().clone();
        let mask = TABLE + 16 * TRANSMIT as u32 + 12;
        driver.device.write(mask, &1u32.to_le_bytes());
        driver.send(TRANSMIT, b"x");
        assert_eq!((said(&driver).len(), driver.read(PENDING)), (0, 1 << TRANSMIT));
        driver.device.write(mask, &0u32.to_le_bytes());
        assert_eq!((said(&driver).len(), driver.read(PENDING)), (1, 0));
        driver.config(0x43, &[MSIX_ON | 0x40]);
        driver.send(TRANSMIT, b"x");
        assert_eq!(said(&driver).len(), 1);
        driver.config(0x43, &[MSIX_ON]);
        assert_eq!(said(&driver).len(), 2);
    }

    #[test]
    fn a_reset_forgets_all_and_features_must_be_ours() {
        let mut driver = Driver::new();
        driver.open();
        driver.common(0x14, 0, 1);
        assert_eq!(driver.read(0x14) & 0xff, 0);
        assert!(!driver.device.give(&mut VecDeque::from([1])));
        for features in [0, 2, 1 << 32, FEATURES | 1 << 29] {
            let mut driver = Driver::new();
            driver.start(features);
            assert_eq!(driver.read(0x14) & 8, 0, "{features:#x}");
        }
        assert_eq!(driver.read(0x04), 2);
        driver.common(0x00, 1, 4);
        assert_eq!(driver.read(0x04), 1);
    }

    #[test]
    fn what_no_driver_sends_breaks_the_connection() {
        let beyond = [(place(1, 16), 9 << 20), (63 << 20, 2 << 20), (u64::MAX - 8, 4)];
        for (at, len) in beyond {
            let mut driver = Driver::new();
            driver.open();
            let work = driver.put(TRANSMIT, at, len, false);
            assert!(work.broken && work.sent.is_empty(), "{at:#x} {len}");
        }
        // A ring that says there is more than it can hold is not walked.
        let mut driver = Driver::new();
        driver.open();
        driver.made[TRANSMIT] = 1000;
        assert_eq!(driver.send(TRANSMIT, b"x"), Work::default());
        // One that lies where there is no memory is none.
        let mut driver = Driver::new();
        driver.avail = 1 << 40;
        driver.start(FEATURES);
        assert_eq!(driver.send(TRANSMIT, b"x"), Work::default());
        let mut driver = Driver::new();
        driver.open();
        // A message that is longer than any.
        assert!(driver.put(FROM_GUEST, place(3, 16), 9, false).broken);
        // Whoever asks for the port again and again without ever listening.
        for _ in 0..100 {
            driver.control(PORT_READY, 1);
        }
        assert!(driver.device.control.len() <= MOST_WAITING);
    }
}
