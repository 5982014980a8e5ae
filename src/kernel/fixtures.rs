//! Kernels made by the tests: small ELF files and bzImages with everything that is read from them.

use std::io::Write;

use super::bzimage::Compression;

/// What the made ELF is to have.
pub(super) struct Made {
    pub(super) release: &'static str,
    pub(super) btf: Option<Vec<u8>>,
    pub(super) pvh: bool,
    pub(super) symtab: bool,
}

impl Default for Made {
    fn default() -> Self {
        let btf = Some(btf(&["task_struct", "sched_ext_ops"]));
        Made { release: "7.2.13+made", btf, pvh: true, symtab: false }
    }
}

/// BTF with an int and a struct of each name.
pub(super) fn btf(structs: &[&str]) -> Vec<u8> {
    let mut strings = b"\0int\0".to_vec();
    let mut types: Vec<u32> = vec![1, 1 << 24, 4, 32];
    for name in structs {
        // One member, so that the walk has something to skip.
        types.extend([strings.len() as u32, 4 << 24 | 1, 4, 0, 1, 0]);
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    let mut out = Vec::new();
    out.extend(0xeb9f_u16.to_le_bytes());
    out.extend([1, 0]);
    let types_len = types.len() as u32 * 4;
    for word in [24, 0, types_len, types_len, strings.len() as u32] {
        out.extend(u32::to_le_bytes(word));
    }
    out.extend(types.iter().flat_map(|word| word.to_le_bytes()));
    out.extend(strings);
    out
}

/// An ELF64 file as the kernel's build makes it, in miniature.
pub(super) fn elf(made: &Made) -> Vec<u8> {
    let rodata = format!("%s version %s\0Linux version {} (cc) #1\0", made.release).into_bytes();
    let mut notes = note(b"Linux\0", 0x101, &[0; 4]);
    if made.pvh {
        notes.extend(note(b"Xen\0", 18, &[0; 8]));
    }
    let mut parts: Vec<(&str, u32, Vec<u8>)> = vec![(".rodata", 1, rodata), (".notes", 7, notes)];
    parts.extend(made.btf.clone().map(|btf| (".BTF", 1, btf)));
    if made.symtab {
        parts.push((".symtab", 2, vec![0; 48]));
    }
    let mut names = b"\0".to_vec();
    let mut body = vec![0; 64 + 2 * 56];
    let mut headers = vec![[0_u64; 8]];
    let mut segments = Vec::new();
    for (name, kind, bytes) in parts {
        let name_at = names.len() as u64;
        names.extend(name.as_bytes());
        names.push(0);
        headers.push(section(name_at, kind, body.len() as u64, bytes.len() as u64));
        match name {
            ".rodata" => segments.push((1_u32, body.len(), bytes.len())),
            ".notes" => segments.push((4, body.len(), bytes.len())),
            _ => {}
        }
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let name_at = names.len() as u64;
    names.extend(b".shstrtab\0");
    headers.push(section(name_at, 3, body.len() as u64, names.len() as u64));
    body.extend(names);
    body.resize(body.len().next_multiple_of(8), 0);
    let table = body.len() as u64;
    body.extend(headers.iter().flatten().flat_map(|word| word.to_le_bytes()));
    for (i, (kind, at, len)) in segments.into_iter().enumerate() {
        let row = &mut body[64 + i * 56..][..56];
        row[..4].copy_from_slice(&kind.to_le_bytes());
        row[8..16].copy_from_slice(&(at as u64).to_le_bytes());
        row[32..40].copy_from_slice(&(len as u64).to_le_bytes());
    }
    body[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    body[16..20].copy_from_slice(&[2, 0, 62, 0]);
    body[32..40].copy_from_slice(&64_u64.to_le_bytes());
    body[40..48].copy_from_slice(&table.to_le_bytes());
    let counts = [64, 56, 2, 64, headers.len() as u16, headers.len() as u16 - 1];
    for (i, count) in counts.into_iter().enumerate() {
        body[52 + i * 2..][..2].copy_from_slice(&count.to_le_bytes());
    }
    body
}

/// The eight 64-bit words of a section header.
fn section(name: u64, kind: u32, at: u64, len: u64) -> [u64; 8] {
    [name | u64::from(kind) << 32, 0, 0, at, len, 0, 0, 0]
}

fn note(owner: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [owner.len() as u32, data.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [owner, data] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// A payload as the kernel's build makes it: packed, with the unpacked size appended.
pub(super) fn pack(elf: &[u8], compression: Compression) -> Vec<u8> {
    let mut packed = match compression {
        Compression::None => return elf.to_vec(),
        Compression::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            packer.write_all(elf).expect("packed");
            return packer.finish().expect("packed");
        }
        Compression::Zstd => zstd::encode_all(elf, 3).expect("packed"),
        Compression::Xz => {
            let mut packer = liblzma::write::XzEncoder::new(Vec::new(), 3);
            packer.write_all(elf).expect("packed");
            packer.finish().expect("packed")
        }
        Compression::Lz4 => {
            let mut packed = 0x184c_2102_u32.to_le_bytes().to_vec();
            for block in elf.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
    };
    packed.extend((elf.len() as u32).to_le_bytes());
    packed
}

/// A bzImage around a payload.
pub(super) fn bzimage(release: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 3 * 512];
    out[0x1f1] = 2;
    out[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    out[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    let version = format!("{release} (made@here) #1 SMP\0");
    out[0x400..0x400 + version.len()].copy_from_slice(version.as_bytes());
    // Some protected-mode code before the payload, and some after it.
    out[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
    out[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    out.resize(out.len() + 64, 0x90);
    out.extend(payload);
    out.resize(out.len() + 32, 0x90);
    out
}
