//! All of memory as an ELF core, as the kernel's own `/proc/vmcore` is one: what drgn and crash open.
//!
//! ```text
//! header ┃ program headers ┃ notes: registers of each CPU, VMCOREINFO ┃ RAM, region by region
//! ```
//!
//! Each region of RAM is one segment, at its physical address and where the direct map has it;
//! one more says where the kernel's image is. Memory that was never touched, or is zeros, is a
//! hole in the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::super::{CpuRegisters, Ram, Snapshot};
use super::StoreError;
use super::write::replace;

const PAGE: u64 = 4096;
/// Sizes of the file's header and of a program header.
const HEADER: u64 = 64;
const PROGRAM: u64 = 56;
/// `ET_CORE`, `EM_X86_64`, `PT_LOAD`, `PT_NOTE`, `NT_PRSTATUS`.
const CORE: u16 = 4;
const X86_64: u16 = 62;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const PRSTATUS: u32 = 1;
/// Readable, writable, executable.
const ALL: u32 = 7;

/// `struct user_regs_struct` (arch/x86/include/asm/user_64.h).
const REGISTERS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
];
/// Where `pr_pid` and `pr_reg` are in `struct elf_prstatus` (include/uapi/linux/elfcore.h), and
/// its size.
const PID: usize = 32;
const REGS: usize = 112;
const STATUS: usize = 336;

impl Snapshot {
    /// Writes all of memory as an ELF core, in the place of a file that is there.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::NoRam`] when memory was not kept.
    pub fn save_core(&self, path: &Path) -> Result<(), StoreError> {
        let ram = self.ram_for(path)?;
        let written = notes(self, ram).and_then(|notes| {
            let plan = Plan::new(ram, notes.len() as u64);
            replace(path, |out| {
                out.write_all(&plan.headers(ram))?;
                out.write_all(&notes)?;
                plan.memory(ram, out)
            })
        });
        written.map_err(|cause| StoreError::Write { path: path.to_owned(), cause })
    }
}

/// Registers and VMCOREINFO.
fn notes(snapshot: &Snapshot, ram: &Ram) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    if let Ok(state) = snapshot.kernel_state() {
        for CpuRegisters { cpu, values, .. } in &state.registers {
            let curr = state.cpus.iter().find(|c| c.cpu == *cpu).map(|c| c.curr);
            let pid = curr.and_then(|at| pid(snapshot, at)).unwrap_or_default();
            note(&mut out, "CORE", PRSTATUS, &status(pid, values));
        }
    }
    let at = ram.about().layout.note;
    let page = ram.physical(at, PAGE).map_err(|why| {
        io::Error::other(format!("its VMCOREINFO at {at:#x} cannot be read: {why}"))
    })?;
    let end = page.iter().position(|byte| *byte == 0).unwrap_or(page.len());
    note(&mut out, "VMCOREINFO", 0, &page[..end]);
    Ok(out)
}

/// The number of the task at an address.
fn pid(snapshot: &Snapshot, at: u64) -> Option<u32> {
    let state = snapshot.kernel_state().ok()?;
    let btf = state.btf.as_ref()?;
    let task = btf.find_c("struct task_struct")?;
    let pid = btf.field(task, "pid").ok()?;
    let bytes = state.at(at.wrapping_add(pid.offset), 4).ok()?;
    Some(u32::from_le_bytes(bytes.as_ref().try_into().ok()?))
}

fn status(pid: u32, values: &BTreeMap<String, u64>) -> [u8; STATUS] {
    let mut out = [0; STATUS];
    out[PID..PID + 4].copy_from_slice(&pid.to_le_bytes());
    for (i, name) in REGISTERS.iter().enumerate() {
        let value = match *name {
            // No system call is being restarted.
            "orig_rax" => u64::MAX,
            name => values.get(name).copied().unwrap_or_default(),
        };
        out[REGS + i * 8..REGS + i * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }
    out
}

fn note(out: &mut Vec<u8>, name: &str, kind: u32, bytes: &[u8]) {
    for number in [name.len() as u32 + 1, bytes.len() as u32, kind] {
        out.extend(number.to_le_bytes());
    }
    for part in [name.as_bytes(), &[0]].concat().chunks(4).chain(bytes.chunks(4)) {
        let mut word = [0; 4];
        word[..part.len()].copy_from_slice(part);
        out.extend(word);
    }
}

/// Where everything goes.
struct Plan {
    notes: u64,
    /// The regions of RAM: address, length, place in the file.
    regions: Vec<(u64, u64, u64)>,
}

impl Plan {
    fn new(ram: &Ram, notes: u64) -> Plan {
        let about = ram.about();
        // The notes and the image have a header too.
        let headers = HEADER + (about.regions.len() as u64 + 2) * PROGRAM;
        let mut at = (headers + notes).next_multiple_of(PAGE);
        let place = |(start, len): (u64, u64)| {
            let here = at;
            at = at.saturating_add(len).next_multiple_of(PAGE);
            (start, len, here)
        };
        Plan { notes, regions: about.regions.into_iter().map(place).collect() }
    }

    /// Where a run of physical memory is in the file, if all of it is in one region.
    fn place(&self, at: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|(start, size, place)| {
            let within = at.checked_sub(*start)?;
            (len <= size.checked_sub(within)?).then(|| place + within)
        })
    }

    fn headers(&self, ram: &Ram) -> Vec<u8> {
        let layout = ram.about().layout;
        let image = layout.image.and_then(|(start, end)| {
            let (at, len) = (ram.translate(start)?, end.checked_sub(start)?);
            Some((start, at, len, self.place(at, len)?))
        });
        let count = self.regions.len() + 1 + usize::from(image.is_some());
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend(CORE.to_le_bytes());
        out.extend(X86_64.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        // Entry, program headers, section headers; then flags and sizes.
        [0, HEADER, 0].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        let sizes = [HEADER as u16, PROGRAM as u16, count as u16, 64, 0, 0];
        sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
        let mut header = |kind: u32, place: u64, virt: u64, phys: u64, len: u64| {
            out.extend(kind.to_le_bytes());
            out.extend(if kind == LOAD { ALL } else { 0 }.to_le_bytes());
            let align = if kind == LOAD { PAGE } else { 4 };
            [place, virt, phys, len, len, align].iter().for_each(|n| out.extend(n.to_le_bytes()));
        };
        header(NOTE, HEADER + (self.regions.len() as u64 + 2) * PROGRAM, 0, 0, self.notes);
        if let Some((start, at, len, place)) = image {
            header(LOAD, place, start, at, len);
        }
        for (start, len, place) in &self.regions {
            header(LOAD, *place, layout.direct_map.wrapping_add(*start), *start, *len);
        }
        out.resize((HEADER + (self.regions.len() as u64 + 2) * PROGRAM) as usize, 0);
        out
    }

    fn memory(&self, ram: &Ram, out: &mut BufWriter<File>) -> io::Result<()> {
        /// Bytes that are copied at once.
        const PIECE: u64 = 1 << 20;
        let mut buf = vec![0; PIECE as usize];
        for run in ram.runs() {
            let place = self.place(run.at, run.len).ok_or(io::ErrorKind::InvalidData)?;
            out.seek(SeekFrom::Start(place))?;
            let mut done = 0;
            while done < run.len {
                let piece = &mut buf[..PIECE.min(run.len - done) as usize];
                ram.read_kept(run.offset + done, piece).map_err(io::Error::other)?;
                out.write_all(piece)?;
                done += piece.len() as u64;
            }
        }
        out.flush()?;
        let end = self.regions.last().map_or(0, |(_, len, place)| place + len);
        out.get_ref().set_len(end)
    }
}
