//! What a kernel's ELF says about itself: release, BTF, sched_ext, PVH entry, symbols.
//!
//! Images come from anywhere, so everything is read with bounds: a header's claims are held
//! against the file's length before anything is allocated for them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

/// What is wrong with an image, without its path. Completes "PATH: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is something else.
    #[error(
        "not a Linux kernel for x86-64: {0}; give a vmlinuz (bzImage), a vmlinux (ELF) or a \
         kernel build tree"
    )]
    NotAKernel(String),
    /// It ends before its header says.
    #[error("truncated: its {what} ends at byte {needs}, and it has {has}; copy or build it again")]
    Truncated {
        /// The part that is cut.
        what: &'static str,
        /// Where the header says that part ends.
        needs: u64,
        /// The file's length.
        has: u64,
    },
    /// It contradicts itself.
    #[error("damaged: {0}; copy or build it again")]
    Damaged(String),
    /// It is a kernel, of a kind that cannot be read.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Io(String),
}

/// Bytes that can be read at any place.
pub(super) trait ReadAt {
    fn len(&self) -> u64;
    /// Fills `buf` from `at`.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..at.checked_add(buf.len())?));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file whose length was taken once.
pub(super) struct FileAt {
    file: File,
    len: u64,
}

impl FileAt {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(FileAt { file, len })
    }
}

impl ReadAt for FileAt {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)
    }
}

/// What is known of a kernel's ELF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// As `uname -r` prints it.
    pub release: String,
    /// Length of the ELF file in bytes.
    pub size: u64,
    /// Where the file has its `.BTF` section, if it has one.
    pub btf: Option<Range<u64>>,
    /// Whether the BTF has `struct sched_ext_ops`, that is whether the kernel was built with
    /// sched_ext.
    pub has_sched_ext: bool,
    /// Whether there is a PVH entry, so that a VMM can start the ELF without a boot loader.
    pub has_pvh: bool,
    /// Whether there is an ELF symbol table.
    pub has_symtab: bool,
}

/// The largest BTF that is read; the largest known ones have some 20 MB.
const MAX_BTF: u64 = 128 << 20;
const MAX_SECTIONS: u64 = 1 << 20;
const MAX_SEGMENTS: u64 = 1 << 12;
const MAX_NAMES: u64 = 16 << 20;
const MAX_NOTES: u64 = 1 << 20;
const MAX_NOTE_SEGMENTS: usize = 16;
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// The 32-bit physical entry point of the Xen/PVH boot protocol (`XEN_ELFNOTE_PHYS32_ENTRY`).
const NOTE_PVH_ENTRY: u32 = 18;

struct Section {
    name: u32,
    kind: u32,
    range: Range<u64>,
}

struct Segment {
    kind: u32,
    range: Range<u64>,
}

/// The tables of an ELF file, all ranges checked against its length.
struct Elf<'a, R: ?Sized> {
    source: &'a R,
    sections: Vec<Section>,
    names: Vec<u8>,
    segments: Vec<Segment>,
}

/// Little-endian integers of a record whose length was checked.
fn int(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn read<R: ReadAt + ?Sized>(
    source: &R,
    what: &'static str,
    range: &Range<u64>,
) -> Result<Vec<u8>, ImageError> {
    let range = within(source, what, range.start, range.end.checked_sub(range.start))?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let read = source.read_at(range.start, &mut bytes);
    read.map_err(|error| ImageError::Io(error.to_string()))?;
    Ok(bytes)
}

/// The range of `len` bytes at `start`, if the file has it.
fn within<R: ReadAt + ?Sized>(
    source: &R,
    what: &'static str,
    start: u64,
    len: Option<u64>,
) -> Result<Range<u64>, ImageError> {
    let end = len.and_then(|len| start.checked_add(len)).unwrap_or(u64::MAX);
    if end > source.len() {
        return Err(ImageError::Truncated { what, needs: end, has: source.len() });
    }
    Ok(start..end)
}

impl<'a, R: ReadAt + ?Sized> Elf<'a, R> {
    fn parse(source: &'a R) -> Result<Self, ImageError> {
        let header = read(source, "ELF header", &(0..64))?;
        if !header.starts_with(b"\x7fELF") {
            return Err(ImageError::NotAKernel("it is no ELF file".into()));
        }
        if header[4] != 2 || header[5] != 1 {
            return Err(ImageError::NotAKernel("it is no 64-bit little-endian ELF file".into()));
        }
        let machine = int(&header, 18, 2) as u16;
        if machine != EM_X86_64 {
            return Err(ImageError::NotAKernel(format!(
                "it is an ELF file for another processor (machine {machine})"
            )));
        }
        let mut elf = Elf { source, sections: Vec::new(), names: Vec::new(), segments: Vec::new() };
        elf.read_segments(&header)?;
        elf.read_sections(&header)?;
        Ok(elf)
    }

    fn read_segments(&mut self, header: &[u8]) -> Result<(), ImageError> {
        let (at, entry, count) = (int(header, 32, 8), int(header, 54, 2), int(header, 56, 2));
        if count == 0 {
            return Ok(());
        }
        if entry != 56 || count > MAX_SEGMENTS {
            return Err(ImageError::Damaged(format!("{count} program headers of {entry} bytes")));
        }
        let range = within(self.source, "program header table", at, Some(count * entry))?;
        let table = read(self.source, "program header table", &range)?;
        for row in table.chunks_exact(56) {
            let (kind, start, len) = (int(row, 0, 4) as u32, int(row, 8, 8), int(row, 32, 8));
            if kind == PT_LOAD || kind == PT_NOTE {
                let range = within(self.source, "segments", start, Some(len))?;
                self.segments.push(Segment { kind, range });
            }
        }
        Ok(())
    }

    fn read_sections(&mut self, header: &[u8]) -> Result<(), ImageError> {
        let (at, entry) = (int(header, 40, 8), int(header, 58, 2));
        let (mut count, mut names) = (int(header, 60, 2), int(header, 62, 2));
        if at == 0 {
            return Ok(());
        }
        if entry != 64 {
            return Err(ImageError::Damaged(format!("section headers of {entry} bytes")));
        }
        // Counts that do not fit their 16 bits are in the first section's header.
        let first = within(self.source, "section header table", at, Some(entry))?;
        let first = read(self.source, "section header table", &first)?;
        if count == 0 {
            count = int(&first, 32, 8);
        }
        if names == 0xffff {
            names = int(&first, 40, 4);
        }
        if count > MAX_SECTIONS {
            return Err(ImageError::Damaged(format!("{count} sections")));
        }
        let range = within(self.source, "section header table", at, Some(count * entry))?;
        for row in read(self.source, "section header table", &range)?.chunks_exact(64) {
            let (name, kind) = (int(row, 0, 4) as u32, int(row, 4, 4) as u32);
            let (start, len) = (int(row, 24, 8), int(row, 32, 8));
            let range = match kind {
                0 | SHT_NOBITS => 0..0,
                _ => within(self.source, "sections", start, Some(len))?,
            };
            self.sections.push(Section { name, kind, range });
        }
        if let Some(table) = self.sections.get(names as usize) {
            if table.range.end - table.range.start > MAX_NAMES {
                return Err(ImageError::Damaged("its section names fill more than 16 MiB".into()));
            }
            self.names = read(self.source, "section names", &table.range)?;
        }
        Ok(())
    }

    fn section(&self, name: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|s| {
            let rest = self.names.get(s.name as usize..).unwrap_or_default();
            s.kind != 0 && rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0)
        })
    }

    /// The release, out of the banner that every kernel prints first and keeps among its
    /// read-only data: `Linux version RELEASE (…`.
    fn release(&self) -> Result<Option<String>, ImageError> {
        let rodata = self.section(".rodata").map(|s| s.range.clone());
        let loaded = self.segments.iter().filter(|s| s.kind == PT_LOAD).map(|s| s.range.clone());
        // Segments may overlap in a file that means ill: no more is read than the file has twice.
        let mut budget = self.source.len().saturating_mul(2);
        for range in rodata.into_iter().chain(loaded) {
            budget = match budget.checked_sub(range.end - range.start) {
                Some(rest) => rest,
                None => break,
            };
            if let Some(release) = self.banner_in(range)? {
                return Ok(Some(release));
            }
        }
        Ok(None)
    }

    fn banner_in(&self, range: Range<u64>) -> Result<Option<String>, ImageError> {
        const BANNER: &[u8] = b"Linux version ";
        const CHUNK: u64 = 4 << 20;
        // The release has at most 64 bytes (__NEW_UTS_LEN).
        const OVERLAP: u64 = 128;
        let finder = memchr::memmem::Finder::new(BANNER);
        let mut at = range.start;
        while at < range.end {
            let chunk = read(self.source, "data", &(at..range.end.min(at + CHUNK + OVERLAP)))?;
            for hit in finder.find_iter(&chunk) {
                let text = &chunk[hit + BANNER.len()..];
                let len = text.iter().take(65).take_while(|b| b.is_ascii_graphic()).count();
                let release = &text[..len];
                if release.first().is_some_and(u8::is_ascii_digit) && text.get(len) == Some(&b' ') {
                    return Ok(Some(String::from_utf8_lossy(release).into_owned()));
                }
            }
            at += CHUNK;
        }
        Ok(None)
    }

    fn has_pvh_note(&self) -> Result<bool, ImageError> {
        let in_segments = self.segments.iter().filter(|s| s.kind == PT_NOTE).map(|s| &s.range);
        for range in in_segments.take(MAX_NOTE_SEGMENTS) {
            let end = range.end.min(range.start + MAX_NOTES);
            let notes = read(self.source, "notes", &(range.start..end))?;
            if notes_have(&notes, b"Xen\0", NOTE_PVH_ENTRY) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a run of ELF notes has one of that owner and type.
fn notes_have(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    let padded = |len: u64| (len as usize).checked_next_multiple_of(4);
    while notes.len() >= 12 {
        let (name_len, len, found) = (int(notes, 0, 4), int(notes, 4, 4), int(notes, 8, 4) as u32);
        let body = &notes[12..];
        if found == kind && name_len as usize == owner.len() && body.starts_with(owner) {
            return true;
        }
        let (Some(name), Some(data)) = (padded(name_len), padded(len)) else { return false };
        match name.checked_add(data).and_then(|skip| body.get(skip..)) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

/// Reads what there is to know. `release` is what is known from elsewhere (a bzImage's header),
/// for an ELF without a banner.
pub(super) fn facts<R: ReadAt + ?Sized>(
    source: &R,
    release: Option<String>,
) -> Result<Facts, ImageError> {
    let elf = Elf::parse(source)?;
    let release = elf.release()?.or(release).ok_or_else(|| {
        ImageError::NotAKernel("it is an ELF file without the banner `Linux version …`".into())
    })?;
    let btf = elf.section(".BTF").map(|s| s.range.clone()).filter(|range| !range.is_empty());
    let has_sched_ext = match &btf {
        Some(range) if range.end - range.start > MAX_BTF => {
            return Err(ImageError::Damaged("its BTF has more than 128 MiB".into()));
        }
        Some(range) => has_struct(&read(source, "BTF", range)?, b"sched_ext_ops")?,
        None => false,
    };
    Ok(Facts {
        release,
        size: source.len(),
        btf,
        has_sched_ext,
        has_pvh: elf.has_pvh_note()?,
        has_symtab: elf.sections.iter().any(|s| s.kind == SHT_SYMTAB && !s.range.is_empty()),
    })
}

/// Whether BTF has a struct of that name, without building its graph of types: a walk along the
/// records of the type section, whose lengths follow from their kinds (`include/uapi/linux/btf.h`).
fn has_struct(btf: &[u8], name: &[u8]) -> Result<bool, ImageError> {
    let damaged = |why: &str| ImageError::Damaged(format!("its BTF {why}"));
    if btf.len() < 24 || int(btf, 0, 2) != 0xeb9f {
        return Err(damaged("has no BTF header"));
    }
    let header = int(btf, 4, 4);
    let part = |at: usize| {
        let start = header + int(btf, at, 4);
        btf.get(start as usize..(start + int(btf, at + 4, 4)) as usize)
    };
    let (Some(types), Some(strings)) = (part(8), part(16)) else {
        return Err(damaged("ends before its types or strings"));
    };
    // Names may share tails with longer ones, so every place where this one ends counts.
    let terminated = [name, b"\0"].concat();
    let offsets: Vec<u64> =
        memchr::memmem::find_iter(strings, &terminated).map(|at| at as u64).collect();
    let mut rest = types;
    while rest.len() >= 12 {
        let (name_off, info) = (int(rest, 0, 4), int(rest, 4, 4));
        // Unused bits of either field are zero, so the wider reading holds for all versions.
        let (kind, vlen) = (info >> 24 & 0x7f, (info & 0xff_ffff) as usize);
        if kind == 4 && offsets.binary_search(&name_off).is_ok() {
            return Ok(true);
        }
        let extra = match kind {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // ARRAY
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => 12 * vlen,
            // ENUM, FUNC_PROTO
            6 | 13 => 8 * vlen,
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            _ => return Err(damaged(&format!("has a type of unknown kind {kind}"))),
        };
        rest = rest.get(12 + extra..).ok_or_else(|| damaged("ends inside a type"))?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixtures::{Made, btf, elf};
    use proptest::prelude::*;

    fn of(made: &Made) -> Facts {
        facts(elf(made).as_slice(), None).expect("a kernel")
    }

    fn error(bytes: &[u8]) -> String {
        facts(bytes, None).expect_err("refused").to_string()
    }

    #[test]
    fn a_kernel_says_what_it_is() {
        let made = Made::default();
        let found = of(&made);
        assert_eq!(found.release, "7.2.13+made");
        assert!(found.has_sched_ext && found.has_pvh && !found.has_symtab);
        let (bytes, range) = (elf(&made), found.btf.expect("has BTF"));
        assert_eq!(Some(bytes[range.start as usize..range.end as usize].to_vec()), made.btf);
    }

    #[test]
    fn what_is_missing_is_missing() {
        let old = of(&Made { btf: Some(btf(&["task_struct"])), pvh: false, ..Made::default() });
        assert!(!old.has_sched_ext && !old.has_pvh && old.btf.is_some());
        let bare = of(&Made { btf: None, symtab: true, ..Made::default() });
        assert!(!bare.has_sched_ext && bare.btf.is_none() && bare.has_symtab);
    }

    #[test]
    fn a_struct_is_found_by_its_whole_name() {
        assert_eq!(has_struct(&btf(&["sched_ext_ops"]), b"sched_ext_ops"), Ok(true));
        assert_eq!(
            has_struct(&btf(&["bpf_struct_ops_sched_ext_ops"]), b"sched_ext_ops"),
            Ok(false)
        );
        assert_eq!(has_struct(&btf(&["sched_ext_ops_cid"]), b"sched_ext_ops"), Ok(false));
        // A string is not yet a type.
        let mut bytes = btf(&["task_struct"]);
        let strings = int(&bytes, 20, 4) as u32 + 14;
        bytes[20..24].copy_from_slice(&strings.to_le_bytes());
        bytes.extend(b"sched_ext_ops\0");
        assert_eq!(has_struct(&bytes, b"sched_ext_ops"), Ok(false));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let whole = elf(&Made::default());
        let advice = "give a vmlinuz (bzImage), a vmlinux (ELF) or a kernel build tree";
        let mut arm = whole.clone();
        arm[18] = 183;
        assert_eq!(
            error(&arm),
            format!(
                "not a Linux kernel for x86-64: it is an ELF file for another processor (machine \
                 183); {advice}"
            )
        );
        let mut narrow = whole.clone();
        narrow[4] = 1;
        assert_eq!(
            error(&narrow),
            format!(
                "not a Linux kernel for x86-64: it is no 64-bit little-endian ELF file; {advice}"
            )
        );
        let mut program = whole.clone();
        let banner = memchr::memmem::find(&whole, b"Linux version").expect("it is there");
        program[banner] = b'?';
        assert_eq!(
            error(&program),
            format!(
                "not a Linux kernel for x86-64: it is an ELF file without the banner `Linux \
                 version …`; {advice}"
            )
        );
        assert_eq!(
            facts(program.as_slice(), Some("7.2".into())).expect("known elsewhere").release,
            "7.2"
        );
    }

    #[test]
    fn a_cut_elf_says_what_is_cut() {
        let whole = elf(&Made::default());
        let (len, cut) = (whole.len(), whole.len() - 1);
        assert_eq!(
            error(&whole[..cut]),
            format!(
                "truncated: its section header table ends at byte {len}, and it has {cut}; copy \
                 or build it again"
            )
        );
        assert_eq!(
            error(&whole[..40]),
            "truncated: its ELF header ends at byte 64, and it has 40; copy or build it again"
        );
    }

    #[test]
    fn damaged_btf_is_refused() {
        let text = |btf: Vec<u8>| error(&elf(&Made { btf: Some(btf), ..Made::default() }));
        let good = btf(&["sched_ext_opz"]);
        assert_eq!(
            text(b"no BTF".to_vec()),
            "damaged: its BTF has no BTF header; copy or build it again"
        );
        let mut bytes = good.clone();
        bytes.truncate(good.len() - 1);
        assert_eq!(
            text(bytes),
            "damaged: its BTF ends before its types or strings; copy or build it again"
        );
        let mut bytes = good.clone();
        bytes[24 + 7] = 60;
        assert_eq!(
            text(bytes),
            "damaged: its BTF has a type of unknown kind 60; copy or build it again"
        );
        let mut bytes = good;
        bytes[24 + 16 + 4] = 200;
        assert_eq!(text(bytes), "damaged: its BTF ends inside a type; copy or build it again");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Whatever a file claims, there is an answer.
        #[test]
        fn hostile_files_are_answered(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
            words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
            cut in 0_usize..200,
        ) {
            let mut bytes = elf(&Made { symtab: true, ..Made::default() });
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for (at, word) in words {
                // In the headers, mostly.
                let at = at.index(bytes.len().min(400) - 8);
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            bytes.truncate(bytes.len() - cut);
            let _ = facts(bytes.as_slice(), None);
        }
    }
}
