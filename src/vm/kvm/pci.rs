//! A PCI bus: a bridge to it, and one device on it. Kernels find them by ports 0xcf8 and 0xcfc
//! (PCI Local Bus 3.0, chapter 3.2.2.3.2), and the bus itself in our ACPI tables.

use std::ops::Range;

/// Ports: which register, and what it holds.
pub(super) const ADDRESS: u16 = 0xcf8;
pub(super) const DATA: u16 = 0xcfc;
/// Where in memory the registers of devices may be.
pub(super) const WINDOW: Range<u32> = 0xc000_0000..0xc100_0000;
/// How much of that a device takes.
pub(super) const BAR_LEN: u32 = 0x4000;

const COMMAND: usize = 0x04;
const BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const COMMAND_MEMORY: u8 = 1 << 1;
const MSIX: u8 = 0x11;
/// Bits of the high byte of MSI-X's message control.
const MSIX_ENABLE: u8 = 1 << 7;
const MSIX_MASK_ALL: u8 = 1 << 6;

/// What a device is.
pub(super) struct Identity {
    pub(super) vendor: u16,
    pub(super) device: u16,
    /// Class, subclass and interface, as in `0x07_8000`.
    pub(super) class: u32,
    pub(super) subsystem: u16,
}

/// Registers of one function: bytes, and which of their bits can be written.
pub(super) struct Function {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Where the next capability goes, and where the one before names its next one.
    end: usize,
    last: usize,
    msix: usize,
}

impl Function {
    pub(super) fn new(identity: &Identity) -> Self {
        let mut bytes = [0; 256];
        bytes[..2].copy_from_slice(&identity.vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&identity.device.to_le_bytes());
        bytes[8] = 1;
        bytes[9..12].copy_from_slice(&identity.class.to_le_bytes()[..3]);
        bytes[0x2c..0x2e].copy_from_slice(&identity.vendor.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&identity.subsystem.to_le_bytes());
        let (end, last) = (FIRST_CAPABILITY, CAPABILITIES);
        Function { bytes, writable: [0; 256], end, last, msix: 0 }
    }

    /// Gives it [`BAR_LEN`] bytes of memory at `at`.
    pub(super) fn memory(&mut self, at: u32) {
        self.bytes[BAR..BAR + 4].copy_from_slice(&at.to_le_bytes());
        self.writable[BAR..BAR + 4].copy_from_slice(&(!(BAR_LEN - 1)).to_le_bytes());
        // Memory, mastering the bus, no interrupt pin; the firmware has switched it on.
        self.bytes[COMMAND] = COMMAND_MEMORY;
        self.writable[COMMAND] = COMMAND_MEMORY | 1 << 2;
        self.writable[COMMAND + 1] = 1 << 2;
        self.writable[0x3c] = 0xff;
    }

    /// Adds a capability: its id, and what follows the byte that names the next one.
    pub(super) fn capability(&mut self, id: u8, body: &[u8]) {
        let at = self.end;
        // The status says that there is a list.
        self.bytes[0x06] |= 1 << 4;
        self.bytes[self.last] = at as u8;
        self.bytes[at] = id;
        self.bytes[at + 2..][..body.len()].copy_from_slice(body);
        (self.last, self.end) = (at + 1, (at + 2 + body.len()).next_multiple_of(4));
    }

    /// Adds interrupts by messages: how many, and where in its memory their table and the bits of
    /// those that wait are.
    pub(super) fn interrupts(&mut self, count: u16, table: u32, pending: u32) {
        self.msix = self.end;
        let mut body = Vec::from((count - 1).to_le_bytes());
        body.extend(table.to_le_bytes());
        body.extend(pending.to_le_bytes());
        self.capability(MSIX, &body);
        self.writable[self.msix + 3] = MSIX_ENABLE | MSIX_MASK_ALL;
    }

    /// Whether messages are to be sent at all.
    pub(super) fn interrupts_on(&self) -> bool {
        self.bytes[self.msix + 3] & MSIX_ENABLE != 0
    }

    /// Whether all of them are to wait.
    pub(super) fn interrupts_wait(&self) -> bool {
        self.bytes[self.msix + 3] & MSIX_MASK_ALL != 0
    }

    /// Where in its memory an access is.
    pub(super) fn offset(&self, at: u64, len: usize) -> Option<u32> {
        let [a, b, c, d, ..] = self.bytes[BAR..] else { return None };
        let base = u32::from_le_bytes([a, b, c, d]);
        let on = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        let offset = u32::try_from(at.checked_sub(base.into())?).ok()?;
        (on && u64::from(offset) + len as u64 <= BAR_LEN.into()).then_some(offset)
    }

    fn read(&self, at: usize, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(&self.bytes[at..]) {
            *byte = *value;
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        for (i, value) in (at..256).zip(data) {
            self.bytes[i] = self.bytes[i] & !self.writable[i] | value & self.writable[i];
        }
    }
}

/// The bus.
pub(super) struct Bus {
    address: u32,
    bridge: Function,
    pub(super) device: Function,
}

impl Bus {
    pub(super) fn new(device: Function) -> Self {
        let (vendor, class) = (0x1b36, 0x06_0000);
        let bridge = Function::new(&Identity { vendor, device: 0x0008, class, subsystem: 0x1100 });
        Bus { address: 0, bridge, device }
    }

    /// The function that is named, and which of its registers.
    fn named(&mut self, port: u16) -> Option<(&mut Function, usize)> {
        let address = self.address;
        let register = (address & 0xfc) as usize + usize::from(port - DATA);
        // Enabled; bus 0, which device, function 0.
        match (address >> 31, address >> 8 & 0xffff) {
            (1, 0x00) => Some((&mut self.bridge, register)),
            (1, 0x08) => Some((&mut self.device, register)),
            _ => None,
        }
    }

    /// A read of ports [`ADDRESS`] to `DATA + 3`; what is not there gives ones.
    pub(super) fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match port {
            ADDRESS if data.len() == 4 => data.copy_from_slice(&self.address.to_le_bytes()),
            DATA.. if usize::from(port - DATA) + data.len() <= 4 => {
                if let Some((function, at)) = self.named(port) {
                    function.read(at, data);
                }
            }
            _ => {}
        }
    }

    /// A write of such a port.
    pub(super) fn write(&mut self, port: u16, data: &[u8]) {
        match (port, data) {
            (ADDRESS, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]),
            (DATA.., _) if usize::from(port - DATA) + data.len() <= 4 => {
                if let Some((function, at)) = self.named(port) {
                    function.write(at, data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1043, class: 0x07_8000, subsystem: 0x1100 };
        let mut device = Function::new(&identity);
        device.memory(WINDOW.start);
        device.interrupts(5, 0x3000, 0x3800);
        device.capability(9, &[16, 1, 0]);
        Bus::new(device)
    }

    fn select(bus: &mut Bus, device: u32, register: u32) {
        bus.write(ADDRESS, &(1 << 31 | device << 11 | register).to_le_bytes());
    }

    fn read(bus: &mut Bus, device: u32, register: u32) -> u32 {
        select(bus, device, register);
        let mut data = [0; 4];
        bus.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(bus: &mut Bus, device: u32, register: u32, value: u32) {
        select(bus, device, register);
        bus.write(DATA, &value.to_le_bytes());
    }

    #[test]
    fn there_is_a_bridge_and_a_device_and_nothing_else() {
        let mut bus = bus();
        assert_eq!(read(&mut bus, 0, 0), 0x0008_1b36);
        assert_eq!(read(&mut bus, 0, 8), 0x0600_0001);
        assert_eq!(read(&mut bus, 1, 0), 0x1043_1af4);
        assert_eq!(read(&mut bus, 1, 8), 0x0780_0001);
        assert!((2..32).all(|device| read(&mut bus, device, 0) == u32::MAX));
        // Another function, another bus, and no enabling bit.
        for address in [1u32 << 31 | 1 << 11 | 1 << 8, 1 << 31 | 1 << 16, 1 << 11] {
            bus.write(ADDRESS, &address.to_le_bytes());
            let mut data = [0; 4];
            bus.read(DATA, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
        // Parts of a register; what goes beyond it.
        select(&mut bus, 1, 0);
        let mut half = [0; 2];
        bus.read(DATA + 2, &mut half);
        assert_eq!(half, [0x43, 0x10]);
        bus.read(DATA + 3, &mut half);
        assert_eq!(half, [0xff; 2]);
    }

    #[test]
    fn its_memory_is_sized_moved_and_switched_off() {
        let mut bus = bus();
        let at = |bus: &Bus, at: u64| bus.device.offset(at, 4);
        assert_eq!(at(&bus, 0xc000_0010), Some(0x10));
        write(&mut bus, 1, 0x10, u32::MAX);
        assert_eq!(read(&mut bus, 1, 0x10), !(BAR_LEN - 1));
        write(&mut bus, 1, 0x10, 0xc080_0000);
        assert_eq!(at(&bus, 0xc080_3ffc), Some(0x3ffc));
        assert_eq!((at(&bus, 0xc080_3ffd), at(&bus, 0xc000_0010)), (None, None));
        write(&mut bus, 1, 0x04, 0);
        assert_eq!(at(&bus, 0xc080_0000), None);
        write(&mut bus, 1, 0x14, u32::MAX);
        assert_eq!(read(&mut bus, 1, 0x14), 0, "there is no second one");
        write(&mut bus, 1, 0, 0);
        assert_eq!(read(&mut bus, 1, 0), 0x1043_1af4, "what it is stays");
    }

    #[test]
    fn its_capabilities_are_a_list() {
        let mut bus = bus();
        assert_eq!(read(&mut bus, 1, 4) >> 20 & 1, 1);
        assert_eq!(read(&mut bus, 1, 0x34), 0x40);
        assert_eq!(read(&mut bus, 1, 0x40), 0x0004_4c11, "five messages, then 0x4c");
        assert_eq!((read(&mut bus, 1, 0x44), read(&mut bus, 1, 0x48)), (0x3000, 0x3800));
        assert_eq!(read(&mut bus, 1, 0x4c), 0x0110_0009, "the last one");
        assert!(!bus.device.interrupts_on());
        write(&mut bus, 1, 0x40, 0xffff_ffff);
        assert!(bus.device.interrupts_on() && bus.device.interrupts_wait());
        assert_eq!(read(&mut bus, 1, 0x40), 0xc004_4c11);
    }
}
