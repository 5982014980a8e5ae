//! All of memory as an ELF core, read back by somebody else's reader.

use std::fs;

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::snapshot::testing::{made_up, made_up_capturer, made_up_ram, meta};
use crate::snapshot::{CaptureRequest, CpuRegisters, MAX_RAM, Snapshot};
use std::sync::Arc;

const LE: Endianness = Endianness::Little;

/// A note: name, kind, bytes.
type Note = (String, u32, Vec<u8>);
/// A segment: virtual and physical address, bytes.
type Segment = (u64, u64, Vec<u8>);

fn parts(file: &[u8]) -> (Vec<Note>, Vec<Segment>) {
    let header = FileHeader64::<Endianness>::parse(file).unwrap();
    let is = (header.e_type.get(LE), header.e_machine.get(LE));
    assert_eq!(is, (object::elf::ET_CORE, object::elf::EM_X86_64));
    let (mut notes, mut segments) = (Vec::new(), Vec::new());
    for program in header.program_headers(LE, file).unwrap() {
        match program.p_type(LE) {
            object::elf::PT_NOTE => {
                let mut all = program.notes(LE, file).unwrap().unwrap();
                while let Some(note) = all.next().unwrap() {
                    let name = String::from_utf8(note.name().to_vec()).unwrap();
                    notes.push((name, note.n_type(LE), note.desc().to_vec()));
                }
            }
            object::elf::PT_LOAD => {
                assert_eq!(program.p_filesz(LE), program.p_memsz(LE));
                let bytes = program.data(LE, file).unwrap().to_vec();
                segments.push((program.p_vaddr(LE), program.p_paddr(LE), bytes));
            }
            other => panic!("a segment of kind {other}"),
        }
    }
    (notes, segments)
}

/// A capture with memory and registers.
fn with_registers() -> Arc<Snapshot> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    let raw = made_up_capturer(true).capture(&request).unwrap();
    let registers = (0..2).map(|cpu| {
        let values = [("rip", 0xffff_ffff_8100_0010), ("r15", 15), ("rsp", 0x77)];
        let values = values.map(|(name, value)| (name.to_owned(), value + u64::from(cpu)));
        CpuRegisters { cpu, halted: false, values: values.into() }
    });
    let registers = registers.collect();
    raw.with_registers(registers, None).finish(meta("end"))
}

#[test]
fn a_core_has_memory_where_it_was_and_registers_and_the_kernels_note() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.core");
    let snap = with_registers();
    snap.save(&path).unwrap();
    let file = fs::read(&path).unwrap();
    let (notes, segments) = parts(&file);
    let names: Vec<(&str, u32)> =
        notes.iter().map(|(name, kind, _)| (name.as_str(), *kind)).collect();
    assert_eq!(names, [("CORE", 1), ("CORE", 1), ("VMCOREINFO", 0)]);
    let text = String::from_utf8(notes[2].2.clone()).unwrap();
    assert!(text.starts_with("OSRELEASE=9.9.9-made-up\n"), "{text}");
    for (cpu, (_, _, status)) in notes[..2].iter().enumerate() {
        let word = |at: usize| u64::from_le_bytes(status[at..at + 8].try_into().unwrap());
        assert_eq!(status.len(), 336);
        let registers = (word(112), word(112 + 15 * 8), word(112 + 16 * 8), word(112 + 19 * 8));
        let cpu = cpu as u64;
        assert_eq!(registers, (15 + cpu, u64::MAX, 0xffff_ffff_8100_0010 + cpu, 0x77 + cpu));
        let pid = u32::from_le_bytes(status[32..36].try_into().unwrap());
        let curr = snap.cpu(cpu as i64).unwrap().curr().unwrap();
        assert_eq!(i64::from(pid), curr.tid().unwrap());
    }
    // By physical and by virtual address there is what the snapshot has.
    let ram = snap.ram().unwrap();
    let by = |virt: bool, at: u64, len: usize| {
        let found = segments.iter().find_map(|(v, p, bytes)| {
            let within = usize::try_from(at.checked_sub(if virt { *v } else { *p })?).ok()?;
            bytes.get(within..within.checked_add(len)?)
        });
        found.unwrap_or_else(|| panic!("no {len} bytes at {at:#x}"))
    };
    for task in snap.tasks().unwrap() {
        let want = ram.at(task.address(), 128).unwrap();
        assert_eq!(by(true, task.address(), 128), want);
        assert_eq!(by(false, ram.translate(task.address()).unwrap(), 128), want);
    }
    let init = snap.symbols().unwrap().addresses("init_task")[0];
    assert_eq!(by(true, init, 64), ram.at(init, 64).unwrap(), "of the image");
    for (_, physical, bytes) in &segments {
        for (i, page) in bytes.chunks(4096).enumerate().step_by(7) {
            let at = physical + i as u64 * 4096;
            assert_eq!(ram.physical(at, page.len() as u64).unwrap(), page, "{at:#x}");
        }
    }
    // The same from a file, whose memory is unpacked for it.
    let capsule = dir.path().join("x.cryo");
    snap.save_with_ram(&capsule).unwrap();
    Snapshot::open(&capsule).unwrap().save_with_ram(&path).unwrap();
    assert!(fs::read(&path).unwrap() == file, "another core");
}

#[test]
fn a_core_needs_memory_and_does_without_registers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.core");
    assert_eq!(
        made_up(true).save(&path).unwrap_err().to_string(),
        format!(
            "cannot save all of memory to {}: it was not kept; freeze with t.freeze(\"tag\", #{{ \
             ram: true }})",
            path.display()
        )
    );
    assert!(!path.exists());
    made_up_ram().save(&path).unwrap();
    let (notes, segments) = parts(&fs::read(&path).unwrap());
    assert_eq!((notes.len(), notes[0].0.as_str()), (1, "VMCOREINFO"));
    assert!(segments.len() > 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
