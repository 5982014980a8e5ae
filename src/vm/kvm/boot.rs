//! Loading a kernel and laying out what it is entered with: an ELF `vmlinux` over PVH, a bzImage
//! over the 64-bit boot protocol.
//!
//! See Linux's `Documentation/arch/x86/boot.rst`, and `include/xen/interface/hvm/start_info.h` for
//! PVH.

use std::fs::File;
use std::path::Path;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{
    COMMAND_LINE, GDT, HIGH_START, IDT, LOW_END, MEMORY_MAP, MODULES, PAGE_TABLES, START_INFO,
    ZERO_PAGE, initramfs, usable,
};
use super::tables::TABLES;
use crate::vm::Boot;
use crate::vm::ram::Part;

/// How the first CPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// In 32-bit protected mode without paging, the start info in `rbx`.
    Pvh(u64),
    /// In 64-bit mode, low memory mapped to itself, the zero page in `rsi`.
    Long(u64),
}

/// What is loaded beside the kernel.
pub(super) struct Cargo<'a> {
    pub(super) initramfs: &'a [u8],
    pub(super) command_line: &'a str,
}

/// Loads a kernel and everything it is told.
///
/// # Errors
/// What is wrong with the image, or what does not fit.
pub(super) fn load(
    mem: &GuestMemoryMmap,
    parts: &[Part],
    boot: &Boot,
    cargo: &Cargo<'_>,
) -> Result<Entry, String> {
    let mut line = cargo.command_line.as_bytes().to_vec();
    line.push(0);
    write(mem, COMMAND_LINE, &line)?;
    match boot {
        Boot::Elf(path) => pvh(mem, parts, path, cargo.initramfs),
        Boot::BzImage(path) => bzimage(mem, parts, path, cargo),
    }
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|e| format!("it cannot be opened: {e}"))
}

fn write(mem: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), String> {
    mem.write_slice(bytes, GuestAddress(at)).map_err(|e| format!("no RAM at {at:#x}: {e}"))
}

/// Puts the initial RAM file system where it does not cover the kernel, which ends at `end` and may
/// unpack itself behind that.
fn place(
    mem: &GuestMemoryMmap,
    parts: &[Part],
    archive: &[u8],
    (end, most): (u64, u64),
) -> Result<u64, String> {
    let at = initramfs(parts, archive.len() as u64, end, most)
        .ok_or("the kernel and its initramfs do not fit into RAM")?;
    write(mem, at, archive)?;
    Ok(at)
}

fn pvh(
    mem: &GuestMemoryMmap,
    parts: &[Part],
    path: &Path,
    archive: &[u8],
) -> Result<Entry, String> {
    /// `XEN_HVM_START_MAGIC_VALUE`
    const MAGIC: u32 = 0x336e_c578;
    const RAM: u32 = 1;
    let loaded = Elf::load(mem, None, &mut open(path)?, None)
        .map_err(|e| format!("it cannot be loaded: {e}"))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err("it has no PVH entry point".to_owned());
    };
    // What a kernel sets up at first lies in its own image.
    let at = place(mem, parts, archive, (loaded.kernel_end, LOW_END))?;
    let map: Vec<hvm_memmap_table_entry> = usable(parts)
        .iter()
        .map(|r| hvm_memmap_table_entry { addr: r.start.0, size: r.len, type_: RAM, reserved: 0 })
        .collect();
    let module = hvm_modlist_entry { paddr: at, size: archive.len() as u64, ..Default::default() };
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: TABLES,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    params.set_modules(&[module], GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(|e| e.to_string())?;
    Ok(Entry::Pvh(entry.0))
}

fn bzimage(
    mem: &GuestMemoryMmap,
    parts: &[Part],
    path: &Path,
    cargo: &Cargo<'_>,
) -> Result<Entry, String> {
    /// `XLF_KERNEL_64`: there is a 64-bit entry.
    const KERNEL_64: u16 = 1;
    /// Its distance from where the kernel was loaded.
    const ENTRY_64: u64 = 0x200;
    const RAM: u32 = 1;
    let loaded = BzImage::load(mem, None, &mut open(path)?, None)
        .map_err(|e| format!("it cannot be loaded: {e}"))?;
    let mut header = loaded.setup_header.ok_or("it has no boot header")?;
    if header.xloadflags & KERNEL_64 == 0 {
        return Err("it has no 64-bit entry".to_owned());
    }
    // It unpacks itself into `init_size` bytes from its preferred address, or from where it is.
    let room =
        header.pref_address.max(loaded.kernel_load.0).saturating_add(header.init_size.into());
    let most = u64::from(header.initrd_addr_max).min(LOW_END);
    let at = place(mem, parts, cargo.initramfs, (room.max(loaded.kernel_end), most))?;
    // "Undefined" among boot loaders.
    header.type_of_loader = 0xff;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    header.cmdline_size = cargo.command_line.len() as u32;
    header.ramdisk_image = at as u32;
    header.ramdisk_size = cargo.initramfs.len() as u32;
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: TABLES, ..Default::default() };
    let map = usable(parts);
    if map.len() > params.e820_table.len() {
        return Err(format!("its memory is in {} pieces, more than can be told", map.len()));
    }
    for (entry, region) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: region.start.0, size: region.len, r#type: RAM };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, mem).map_err(|e| e.to_string())?;
    page_tables(mem)?;
    Ok(Entry::Long(loaded.kernel_load.0 + ENTRY_64))
}

/// Maps the first 4 GiB to themselves with pages of 2 MiB.
fn page_tables(mem: &GuestMemoryMmap) -> Result<(), String> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const PAGE: u64 = 4096;
    let directories = HIGH_START >> 30;
    let entry = |at: u64, value: u64| write(mem, at, &value.to_le_bytes());
    entry(PAGE_TABLES, (PAGE_TABLES + PAGE) | PRESENT_WRITABLE)?;
    for i in 0..directories {
        let directory = PAGE_TABLES + (2 + i) * PAGE;
        entry(PAGE_TABLES + PAGE + i * 8, directory | PRESENT_WRITABLE)?;
        for j in 0..512 {
            entry(directory + j * 8, ((i << 30) + (j << 21)) | PRESENT_WRITABLE | LARGE)?;
        }
    }
    Ok(())
}

/// A flat segment of 4 GiB; `kind` is its type, `long` the L bit.
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// A descriptor as it lies in memory.
fn descriptor(segment: &kvm_segment) -> u64 {
    let (base, limit) = (segment.base, u64::from(segment.limit >> 12));
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Writes the descriptor table, and gives the first CPU its registers.
///
/// # Errors
/// Without RAM at the bottom.
pub(super) fn enter(
    mem: &GuestMemoryMmap,
    entry: Entry,
    sregs: &mut kvm_sregs,
) -> Result<kvm_regs, String> {
    const CODE: u8 = 0xb;
    const DATA: u8 = 3;
    const PE: u64 = 1;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LONG_MODE: u64 = 1 << 8 | 1 << 10;
    let long = matches!(entry, Entry::Long(_));
    // The boot protocols ask for selectors 0x10 and 0x18.
    let (code, data) = (segment(0x10, CODE, long), segment(0x18, DATA, false));
    let task = kvm_segment { s: 0, g: 0, limit: 0x67, db: 0, ..segment(0x20, 0xb, false) };
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (i, entry) in (0..).zip(table) {
        write(mem, GDT + i * 8, &entry.to_le_bytes())?;
    }
    write(mem, IDT, &[0; 8])?;
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, table.len() as u16 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 7);
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = task;
    sregs.cr0 = PE;
    sregs.cr4 = 0;
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };
    match entry {
        Entry::Pvh(at) => (regs.rip, regs.rbx) = (at, START_INFO),
        Entry::Long(at) => {
            (sregs.cr3, sregs.cr4, sregs.efer) = (PAGE_TABLES, PAE, LONG_MODE);
            sregs.cr0 |= PG;
            (regs.rip, regs.rsi) = (at, ZERO_PAGE);
        }
    }
    Ok(regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_lie_in_memory_as_the_cpu_reads_them() {
        let cases = [
            (segment(0x10, 0xb, false), 0x00cf_9b00_0000_ffff),
            (segment(0x10, 0xb, true), 0x00af_9b00_0000_ffff),
            (segment(0x18, 3, false), 0x00cf_9300_0000_ffff),
        ];
        for (segment, raw) in cases {
            assert_eq!(descriptor(&segment), raw, "{segment:x?}");
        }
    }

    #[test]
    fn low_memory_is_mapped_to_itself() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        page_tables(&mem).unwrap();
        let entry = |at: u64| mem.read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [0u64, 0x1234_5678, 0xffff_ffff] {
            let pdpt = entry(PAGE_TABLES + (address >> 39) * 8) & !0xfff;
            let directory = entry(pdpt + (address >> 30) * 8) & !0xfff;
            let page = entry(directory + (address >> 21 & 0x1ff) * 8);
            assert_eq!((page & !0x1f_ffff) + (address & 0x1f_ffff), address);
            assert_eq!(page & 0x83, 0x83);
        }
    }
}
