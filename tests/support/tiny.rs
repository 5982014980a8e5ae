//! Kernels of a few instructions, entered over PVH in 32-bit protected mode without paging.

#![allow(dead_code, unreachable_pub)]

use std::io::Write as _;
use std::sync::Arc;

use cryoscope::vm::{Boot, VmSpec};
use tempfile::NamedTempFile;

/// `cli; hlt`, for ever.
pub const HANG: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// PM1a control of q35's ACPI: SLP_EN, which is power-off there.
pub const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef];
/// The sleep register of our own machine: sleep type 5, which is off there. Nothing on a q35.
pub const KVM_POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
/// The q35's reset register.
pub const RESET: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee];
/// The reset register of our own machine.
pub const KVM_RESET: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0xb0, 0x01, 0xee];
/// An empty interrupt table, and an instruction that is none (`ud2`).
pub const TRIPLE_FAULT: &[u8] = &[0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];
/// An empty interrupt table, and an interrupt: not every KVM carries that out.
pub const BREAKPOINT: &[u8] = &[0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0xcc];
/// `inc eax`, for ever.
pub const SPIN: &[u8] = &[0xff, 0xc0, 0xeb, 0xfc];

/// First ports of the serial lines.
pub const COM1: u16 = 0x3f8;
pub const COM2: u16 = 0x2f8;

const LOAD: u32 = 0x10_0000;
const CODE: u32 = 0x1000;

/// Machine code that is put together piece by piece.
#[derive(Default)]
pub struct Code {
    bytes: Vec<u8>,
    data: Vec<u8>,
}

impl Code {
    pub fn new() -> Code {
        let mut code = Code::default();
        code.bytes.push(0xbc); // mov esp: a stack below the image
        code.bytes.extend(LOAD.to_le_bytes());
        code
    }

    /// These bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Code {
        self.bytes.extend(bytes);
        self
    }

    /// A byte to a port.
    pub fn out(self, port: u16, value: u8) -> Code {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// Sends bytes to a port, one by one.
    pub fn send(mut self, port: u16, bytes: &[u8]) -> Code {
        let at = LOAD + DATA + self.data.len() as u32;
        self.data.extend(bytes);
        self.bytes.push(0xbe); // mov esi, at
        self.bytes.extend(at.to_le_bytes());
        self.bytes.push(0xb9); // mov ecx, how many
        self.bytes.extend((bytes.len() as u32).to_le_bytes());
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high]) // mov dx, port
            .raw(&[0xac, 0xee, 0x49, 0x75, 0xfb]) // lodsb; out dx, al; dec ecx; jnz
    }

    /// Sends rising bytes to a port, for ever.
    pub fn flood(self, port: u16) -> Code {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high]).raw(&[0xee, 0xff, 0xc0, 0xeb, 0xfb])
    }

    /// Rounds of a pseudo-random number in `ebx`, and what `body` does with its copy in `eax`.
    pub fn rounds(mut self, count: u32, body: &[u8]) -> Code {
        self.bytes.push(0xb9); // mov ecx, count
        self.bytes.extend(count.to_le_bytes());
        self.bytes.push(0xbb); // mov ebx, a seed
        self.bytes.extend(0x1234_5677u32.to_le_bytes());
        let top = self.bytes.len();
        self.bytes.extend([0x69, 0xdb]); // imul ebx, ebx, ..
        self.bytes.extend(1_664_525u32.to_le_bytes());
        self.bytes.extend([0x81, 0xc3]); // add ebx, ..
        self.bytes.extend(1_013_904_223u32.to_le_bytes());
        self.bytes.extend([0x89, 0xd8, 0xc1, 0xc0, 0x10]); // mov eax, ebx; rol eax, 16
        self.bytes.extend(body);
        self.bytes.push(0x49); // dec ecx
        self.bytes.extend([0x0f, 0x85]); // jnz top
        let back = top as i64 - (self.bytes.len() as i64 + 4);
        self.bytes.extend((back as i32).to_le_bytes());
        self
    }

    /// Random bytes to and from random ones of eight ports.
    pub fn garbage_to_eight(self, first: u16, count: u32) -> Code {
        let mut body = vec![0x89, 0xc2, 0x83, 0xe2, 0x07, 0x81, 0xc2]; // edx = eax & 7 + first
        body.extend(u32::from(first).to_le_bytes());
        body.extend([0xc1, 0xe8, 0x03, 0xee, 0xec]); // shr eax, 3; out dx, al; in al, dx
        self.rounds(count, &body)
    }

    /// Random values of one, two and four bytes to and from random ports, but not to those.
    pub fn garbage_to_ports(self, count: u32, but: &[u16]) -> Code {
        const WRITES: &[u8] = &[
            0xee, 0xec, // out dx, al; in al, dx
            0x66, 0xef, 0x66, 0xed, // the same with ax
            0xef, 0xed, // and with eax
        ];
        let mut body = vec![0x0f, 0xb7, 0xd0, 0x89, 0xd8]; // movzx edx, ax; mov eax, ebx
        for (i, port) in but.iter().enumerate() {
            let left = (but.len() - 1 - i) * 7;
            body.extend([0x66, 0x81, 0xfa]); // cmp dx, port
            body.extend(port.to_le_bytes());
            body.extend([0x74, (left + WRITES.len()) as u8]); // je past the writes
        }
        body.extend(WRITES);
        self.rounds(count, &body)
    }

    /// Random values to and from random addresses above `first`, within `mask`.
    pub fn garbage_to_memory(self, first: u32, mask: u32, count: u32) -> Code {
        let mut body = vec![0x89, 0xc7, 0x81, 0xe7]; // mov edi, eax; and edi, mask
        body.extend(mask.to_le_bytes());
        body.extend([0x81, 0xc7]); // add edi, first
        body.extend(first.to_le_bytes());
        body.extend([0x89, 0x07, 0x8b, 0x07, 0x88, 0x1f]); // [edi] = eax; eax = [edi]; [edi] = bl
        self.rounds(count, &body)
    }

    /// Makes the console's line usable again, whatever was written to its registers, and prints as a
    /// driver does: the line may be slow, so each byte waits until the one before it has left.
    pub fn say(self, text: &str) -> Code {
        let fast = self.out(COM1 + 3, 0x83).out(COM1, 1).out(COM1 + 1, 0).out(COM1 + 3, 3);
        let mut code = fast.out(COM1 + 1, 0).out(COM1 + 4, 3);
        let at = LOAD + DATA + code.data.len() as u32;
        code.data.extend(text.bytes());
        code.bytes.push(0xbe); // mov esi, at
        code.bytes.extend(at.to_le_bytes());
        code.bytes.push(0xb9); // mov ecx, how many
        code.bytes.extend((text.len() as u32).to_le_bytes());
        let status = &[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8]; // mov dx, its status; in al, dx; test al
        code.raw(status)
            .raw(&[0x20, 0x74, 0xfb]) // room; jz back to `in`
            .raw(&[0x66, 0xba, 0xf8, 0x03, 0xac, 0xee, 0x49, 0x75, 0xee]) // a byte, until the last
            .raw(status)
            .raw(&[0x40, 0x74, 0xfb]) // all has left
    }

    /// Switches the machine off, whichever engine it is of.
    pub fn power_off(self) -> Code {
        self.raw(KVM_POWER_OFF).raw(POWER_OFF)
    }

    /// The kernel that does this, and then nothing any more.
    pub fn kernel(self) -> Kernel {
        let Code { bytes, data } = self.raw(HANG);
        Kernel::of(&bytes, &data)
    }
}

/// Where data begins, from where the image is loaded.
const DATA: u32 = 0x2000;

/// A kernel in a file of its own.
pub struct Kernel(NamedTempFile);

impl Kernel {
    /// A kernel that prints `text` on the serial line and then runs `end`.
    pub fn new(text: &str, end: &[u8]) -> Self {
        match text {
            "" => Code::new().raw(end).kernel(),
            text => Code::new().send(COM1, text.as_bytes()).raw(end).kernel(),
        }
    }

    fn of(code: &[u8], data: &[u8]) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&elf(code, data)).unwrap();
        Kernel(file)
    }

    /// How it is entered.
    pub fn boot(&self) -> Boot {
        Boot::Elf(self.0.path().to_owned())
    }

    /// A small machine with it and without anything to unpack.
    pub fn spec(&self, shape: &str) -> VmSpec {
        VmSpec::new(self.boot(), Arc::from([]), shape.parse().expect("a topology"), 192 << 20)
    }
}

/// An ELF vmlinux with a PVH note: a page of headers, one of code, and data.
fn elf(code: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |out: &mut Vec<u8>, v: u16| out.extend(v.to_le_bytes());
    let word = |out: &mut Vec<u8>, v: u32| out.extend(v.to_le_bytes());
    let long = |out: &mut Vec<u8>, v: u64| out.extend(v.to_le_bytes());
    half(&mut out, 2); // executable
    half(&mut out, 62); // x86-64
    word(&mut out, 1);
    long(&mut out, u64::from(LOAD + CODE));
    long(&mut out, 64); // program headers follow
    long(&mut out, 0);
    word(&mut out, 0);
    for v in [64, 56, 2, 64, 0, 0] {
        half(&mut out, v);
    }
    assert!(code.len() < (DATA - CODE) as usize, "code does not fit into its page");
    let len = u64::from(DATA) + data.len() as u64 + 1;
    let mut segment = |kind: u32, offset: u64, len: u64, align: u64| {
        word(&mut out, kind);
        word(&mut out, 7);
        long(&mut out, offset);
        for _ in 0..2 {
            long(&mut out, u64::from(LOAD) + offset);
        }
        for _ in 0..2 {
            long(&mut out, len);
        }
        long(&mut out, align);
    };
    segment(1, 0, len, 0x1000);
    segment(4, 176, 24, 4);
    assert_eq!(out.len(), 176);
    for v in [4, 8, 18] {
        word(&mut out, v);
    }
    out.extend(b"Xen\0");
    long(&mut out, u64::from(LOAD + CODE));
    out.resize(CODE as usize, 0);
    out.extend(code);
    out.resize(DATA as usize, 0);
    out.extend(data);
    out.push(0);
    out
}
