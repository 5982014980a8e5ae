//! What can be told about a kernel image before a machine is made for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use object::elf::{FileHeader64, PT_NOTE};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use crate::vm::{Boot, VmError};

/// The note that holds the 32-bit entry point of the PVH boot protocol
/// (`XEN_ELFNOTE_PHYS32_ENTRY` in Linux's `include/xen/interface/elfnote.h`).
const PVH_ENTRY: u32 = 18;
/// No kernel's note segment comes near this.
const MAX_NOTES: u64 = 1 << 20;

/// Refuses what QEMU could not enter, with a reason that says what the file is instead.
pub(super) fn check(boot: &Boot) -> Result<(), VmError> {
    let (path, result) = match boot {
        Boot::Elf(path) => (path, open(path).and_then(|file| check_elf(&file))),
        Boot::BzImage(path) => (path, open(path).and_then(|file| check_bzimage(&file))),
    };
    result.map_err(|reason| VmError::Kernel { path: path.clone(), reason })
}

fn open(path: &Path) -> Result<File, String> {
    let file = File::open(path).map_err(|e| format!("it cannot be opened: {e}"))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        _ => Err("it is not a file".to_owned()),
    }
}

fn check_elf(file: &File) -> Result<(), String> {
    let damaged = |e: object::Error| format!("it is no usable ELF vmlinux: {e}");
    let cache = ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(&cache).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    if header.e_machine.get(endian) != object::elf::EM_X86_64 {
        return Err("it is an ELF file for another architecture than x86-64".to_owned());
    }
    let file_len = (&cache).len().map_err(|()| "its length cannot be read".to_owned())?;
    for segment in header.program_headers(endian, &cache).map_err(damaged)? {
        let end = segment.p_offset(endian).checked_add(segment.p_filesz(endian));
        if end.is_none_or(|end| end > file_len) {
            return Err("it is truncated: a segment ends beyond the file".to_owned());
        }
        if segment.p_type(endian) != PT_NOTE || segment.p_filesz(endian) > MAX_NOTES {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, &cache).map_err(damaged)? else { continue };
        while let Some(note) = notes.next().map_err(damaged)? {
            if note.name() == b"Xen" && note.n_type(endian) == PVH_ENTRY {
                return Ok(());
            }
        }
    }
    Err("it has no PVH entry point (CONFIG_PVH); boot its bzImage instead".to_owned())
}

/// Follows Linux's `Documentation/arch/x86/boot.rst`.
fn check_bzimage(file: &File) -> Result<(), String> {
    let mut header = [0u8; 0x206];
    match file.read_exact_at(&mut header, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err("it is too short for a bzImage".to_owned());
        }
        other => other.map_err(|e| format!("it cannot be read: {e}"))?,
    }
    if header[0x1fe..0x200] != [0x55, 0xaa] || header[0x202..0x206] != *b"HdrS" {
        let hint = if header.starts_with(b"\x7fELF") { "; it is an ELF file" } else { "" };
        return Err(format!("it is no bzImage: there is no boot header{hint}"));
    }
    let setup = match header[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let paragraphs =
        u32::from_le_bytes([header[0x1f4], header[0x1f5], header[0x1f6], header[0x1f7]]);
    let needed = (setup + 1) * 512 + u64::from(paragraphs) * 16;
    let found = file.metadata().map_err(|e| format!("its length cannot be read: {e}"))?.len();
    if found < needed {
        return Err(format!("it is truncated: {found} bytes of {needed} are there"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn error(boot: fn(PathBuf) -> Boot, bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        match check(&boot(file.path().to_owned())) {
            Err(VmError::Kernel { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn bzimage(paragraphs: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x400];
        bytes[0x1f1] = 1;
        bytes[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    #[test]
    fn what_is_no_bzimage_says_why() {
        let cases: [(&[u8], &str); 4] = [
            (b"", "it is too short for a bzImage"),
            (&[0; 0x400], "it is no bzImage: there is no boot header"),
            (
                &[b"\x7fELF".as_slice(), &[0; 0x400]].concat(),
                "it is no bzImage: there is no boot header; it is an ELF file",
            ),
            (&bzimage(100), "it is truncated: 1024 bytes of 2624 are there"),
        ];
        for (bytes, reason) in cases {
            assert_eq!(error(Boot::BzImage, bytes), reason);
        }
        let whole = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(whole.path(), bzimage(0)).unwrap();
        check(&Boot::BzImage(whole.path().to_owned())).unwrap();
    }

    #[test]
    fn what_is_no_pvh_kernel_says_why() {
        let us = std::fs::read("/bin/sh").unwrap();
        let no_pvh = "it has no PVH entry point (CONFIG_PVH); boot its bzImage instead";
        assert_eq!(error(Boot::Elf, &us), no_pvh);
        assert_eq!(
            error(Boot::Elf, &us[..us.len() / 4]),
            "it is truncated: a segment ends beyond the file"
        );
        let mut arm = us[..0x4000].to_vec();
        arm[18] = 183;
        let reason = "it is an ELF file for another architecture than x86-64";
        assert_eq!(error(Boot::Elf, &arm), reason);
        for junk in [b"".as_slice(), b"\x7fELF", &[7; 4096]] {
            assert!(error(Boot::Elf, junk).starts_with("it is no usable ELF vmlinux: "));
        }
    }

    #[test]
    fn what_is_no_file_says_so() {
        let check = |path: &str| check(&Boot::Elf(path.into())).unwrap_err().to_string();
        assert_eq!(check("/proc"), "kernel \"/proc\": it is not a file");
        assert_eq!(
            check("/nonexistent"),
            "kernel \"/nonexistent\": it cannot be opened: No such file or directory (os error 2)"
        );
    }
}
