//! x86 bzImages: the setup header, and the compressed ELF that it carries.
//!
//! Layout after the kernel's boot protocol document (`Documentation/arch/x86/boot.rst`): real-mode
//! setup sectors with the header at 0x1f1, then the protected-mode code, in which `payload_offset`
//! and `payload_length` find the compressed kernel. The build appends the unpacked size as a
//! 32-bit word (gzip ends with it anyway), which serves here to tell a whole payload from a cut one.

use std::io::{self, Read};

use super::image::ImageError;

/// The largest image file that is read, in bytes.
pub(super) const MAX_IMAGE: u64 = 256 << 20;
/// The largest unpacked kernel, in bytes: what a compressed payload may grow to.
pub(super) const MAX_UNPACKED: usize = 512 << 20;
/// What the xz decoder may allocate: room for the 128 MiB dictionary that kernels use at most.
const XZ_MEMORY: u64 = 192 << 20;
/// Unpacked bytes of one block of the legacy LZ4 frame, at most.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_MAGIC: u32 = 0x184c_2102;
const SECTOR: usize = 512;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Zstd,
    Xz,
    Gzip,
    Lz4,
    /// The payload is the ELF itself.
    None,
}

/// A bzImage whose header has been checked against the file's length.
#[derive(Debug)]
pub(super) struct BzImage<'a> {
    payload: &'a [u8],
    /// First word of the header's version string, which is the release.
    pub(super) release: Option<String>,
    pub(super) compression: Compression,
}

/// Whether the bytes have the marks of a bzImage; they may still be damaged.
pub(super) fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && bytes.get(0x202..0x206) == Some(b"HdrS")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> BzImage<'a> {
    /// Finds version string and payload.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        if !is_bzimage(bytes) {
            return Err(ImageError::NotAKernel("it has no Linux boot header".into()));
        }
        let cut = |what, needs: u64| ImageError::Truncated { what, needs, has: bytes.len() as u64 };
        let version = u16_at(bytes, 0x206).ok_or(cut("boot header", 0x250))?;
        if version < 0x208 {
            return Err(ImageError::Unsupported(format!(
                "boot protocol {}.{:02}, older than 2.08, which says where the kernel is",
                version >> 8,
                version & 0xff
            )));
        }
        let setup_sectors = match bytes[0x1f1] {
            0 => 4,
            n => usize::from(n),
        };
        let code = (setup_sectors + 1) * SECTOR;
        let offset = u32_at(bytes, 0x248).ok_or(cut("boot header", 0x250))?;
        let length = u32_at(bytes, 0x24c).ok_or(cut("boot header", 0x250))?;
        if length < 8 {
            return Err(ImageError::Damaged(format!("its payload has {length} bytes")));
        }
        // A usize holds both sums: three 32-bit values at most.
        let start = code + offset as usize;
        let payload = bytes
            .get(start..start + length as usize)
            .ok_or(cut("compressed kernel", start as u64 + u64::from(length)))?;
        let compression = compression_of(payload)?;
        Ok(BzImage { payload, release: release_of(bytes), compression })
    }

    /// Unpacks the kernel's ELF, checked against the size that the build recorded.
    pub(super) fn unpack(&self) -> Result<Vec<u8>, ImageError> {
        self.unpack_within(MAX_UNPACKED)
    }

    fn unpack_within(&self, limit: usize) -> Result<Vec<u8>, ImageError> {
        let (body, size) = self.payload.split_at(self.payload.len() - 4);
        let size = u32::from_le_bytes(size.try_into().unwrap_or_default());
        let unpacked = match self.compression {
            // The uncompressed payload has no size appended.
            Compression::None => return Ok(self.payload.to_vec()),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(body);
                read_within(decoder.map(|d| d.single_frame()), limit, size)
            }
            Compression::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0);
                let decoder = stream.map(|s| liblzma::bufread::XzDecoder::new_stream(body, s));
                read_within(decoder.map_err(io::Error::from), limit, size)
            }
            Compression::Gzip => {
                read_within(Ok(flate2::bufread::GzDecoder::new(self.payload)), limit, size)
            }
            Compression::Lz4 => unlz4(body, limit),
        }?;
        if unpacked.len() as u64 % (1 << 32) != u64::from(size) {
            return Err(ImageError::Damaged(format!(
                "its payload unpacks to {} bytes, and the build recorded {size}",
                unpacked.len()
            )));
        }
        Ok(unpacked)
    }
}

/// The version string is 0x200 past the pointer at 0x20e; its first word is the release.
fn release_of(bytes: &[u8]) -> Option<String> {
    let at = match u16_at(bytes, 0x20e)? {
        0 => return None,
        at => usize::from(at) + 0x200,
    };
    let text = bytes.get(at..)?;
    let word = text.iter().take(256).take_while(|b| b.is_ascii_graphic()).count();
    Some(String::from_utf8_lossy(&text[..word]).into_owned()).filter(|release| !release.is_empty())
}

fn compression_of(payload: &[u8]) -> Result<Compression, ImageError> {
    let begins = |magic: &[u8]| payload.starts_with(magic);
    let unsupported = |name: &str| {
        Err(ImageError::Unsupported(format!(
            "a kernel compressed with {name}; zstd, xz, gzip and lz4 can be unpacked: build it \
             with one of them, or give the uncompressed vmlinux"
        )))
    };
    match payload {
        _ if begins(&[0x28, 0xb5, 0x2f, 0xfd]) => Ok(Compression::Zstd),
        _ if begins(b"\xfd7zXZ\0") => Ok(Compression::Xz),
        _ if begins(&[0x1f, 0x8b]) => Ok(Compression::Gzip),
        _ if begins(&LZ4_MAGIC.to_le_bytes()) => Ok(Compression::Lz4),
        _ if begins(b"\x7fELF") => Ok(Compression::None),
        _ if begins(b"BZh") => unsupported("bzip2"),
        _ if begins(&[0x5d, 0, 0]) => unsupported("lzma"),
        _ if begins(b"\x89LZO") => unsupported("lzo"),
        _ => Err(ImageError::Damaged("its payload begins like no known compression".into())),
    }
}

fn too_large(limit: usize) -> ImageError {
    ImageError::Damaged(format!("its payload unpacks to more than {} MiB", limit >> 20))
}

/// Everything the decoder gives, up to `limit`. The recorded size is a hint for the first
/// allocation and not believed beyond 64 MiB.
fn read_within(
    decoder: io::Result<impl Read>,
    limit: usize,
    size: u32,
) -> Result<Vec<u8>, ImageError> {
    let damaged = |error| ImageError::Damaged(format!("its payload does not unpack: {error}"));
    let decoder = decoder.map_err(damaged)?;
    let mut unpacked = Vec::with_capacity((size as usize).min(64 << 20).min(limit));
    decoder.take(limit as u64 + 1).read_to_end(&mut unpacked).map_err(damaged)?;
    if unpacked.len() > limit {
        return Err(too_large(limit));
    }
    Ok(unpacked)
}

/// The legacy LZ4 frame: the magic number, then blocks of at most 8 MiB, each behind its packed
/// size. `body` ends with the last block.
fn unlz4(body: &[u8], limit: usize) -> Result<Vec<u8>, ImageError> {
    let damaged = |why: String| ImageError::Damaged(format!("its payload does not unpack: {why}"));
    let mut rest = &body[4..];
    let mut unpacked = Vec::new();
    let mut block = Vec::new();
    while !rest.is_empty() {
        let packed = u32_at(rest, 0).ok_or_else(|| damaged("cut inside an lz4 block".into()))?;
        rest = &rest[4..];
        if packed == LZ4_MAGIC {
            continue;
        }
        let bytes = rest
            .get(..packed as usize)
            .ok_or_else(|| damaged(format!("an lz4 block of {packed} bytes is cut")))?;
        rest = &rest[packed as usize..];
        block.resize(LZ4_BLOCK, 0);
        let len = lz4_flex::block::decompress_into(bytes, &mut block)
            .map_err(|error| damaged(error.to_string()))?;
        if unpacked.len() + len > limit {
            return Err(too_large(limit));
        }
        unpacked.extend_from_slice(&block[..len]);
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixtures::{Made, bzimage, elf, pack};
    use proptest::prelude::*;

    const ALL: [Compression; 5] = [
        Compression::Zstd,
        Compression::Xz,
        Compression::Gzip,
        Compression::Lz4,
        Compression::None,
    ];

    /// Large enough for two blocks of LZ4, and compressible.
    fn large() -> Vec<u8> {
        let mut out = elf(&Made::default());
        out.extend((0..LZ4_BLOCK as u32 / 4 + 1000).flat_map(|i| (i / 7).to_le_bytes()));
        out
    }

    fn unpack(image: &[u8]) -> Result<Vec<u8>, ImageError> {
        BzImage::parse(image)?.unpack()
    }

    fn error(image: &[u8]) -> String {
        unpack(image).expect_err("refused").to_string()
    }

    #[test]
    fn every_compression_unpacks_to_what_was_packed() {
        let elf = large();
        for compression in ALL {
            let image = bzimage("7.2.13+made", &pack(&elf, compression));
            let parsed = BzImage::parse(&image).expect("a bzImage");
            assert_eq!(parsed.compression, compression);
            assert_eq!(parsed.release.as_deref(), Some("7.2.13+made"));
            assert!(parsed.unpack().expect("unpacked") == elf, "{compression:?}");
        }
    }

    #[test]
    fn a_payload_that_unpacks_to_too_much_is_refused_in_time() {
        let elf = large();
        for compression in ALL.into_iter().filter(|c| *c != Compression::None) {
            let image = bzimage("7.2", &pack(&elf, compression));
            let parsed = BzImage::parse(&image).expect("a bzImage");
            assert_eq!(
                parsed.unpack_within(1 << 20).expect_err("too large").to_string(),
                "damaged: its payload unpacks to more than 1 MiB; copy or build it again",
                "{compression:?}"
            );
        }
    }

    #[test]
    fn a_cut_image_says_what_is_cut() {
        let image = bzimage("7.2", &pack(&elf(&Made::default()), Compression::Zstd));
        let end = image.len() - 32;
        assert_eq!(
            error(&image[..end - 1]),
            format!(
                "truncated: its compressed kernel ends at byte {end}, and it has {}; copy or \
                 build it again",
                end - 1
            )
        );
        assert_eq!(
            error(&image[..0x220]),
            "truncated: its boot header ends at byte 592, and it has 544; copy or build it again"
        );
        assert_eq!(
            error(&image[..0x100]),
            "not a Linux kernel for x86-64: it has no Linux boot header; give a vmlinuz (bzImage), \
             a vmlinux (ELF) or a kernel build tree"
        );
    }

    #[test]
    fn a_damaged_payload_is_never_taken_for_a_kernel() {
        let elf = elf(&Made::default());
        for compression in ALL.into_iter().filter(|c| *c != Compression::None) {
            let mut payload = pack(&elf, compression);
            let end = payload.len();
            payload[end - 4..].copy_from_slice(&77_u32.to_le_bytes());
            let text = error(&bzimage("7.2", &payload));
            // gzip itself checks that word.
            let expected = match compression {
                Compression::Gzip => "damaged: its payload does not unpack: ".to_owned(),
                _ => format!(
                    "damaged: its payload unpacks to {} bytes, and the build recorded 77",
                    elf.len()
                ),
            };
            assert!(text.starts_with(&expected), "{text}");

            let cut = [&payload[..end / 2], &(elf.len() as u32).to_le_bytes()].concat();
            let text = error(&bzimage("7.2", &cut));
            assert!(text.starts_with("damaged: its payload does not unpack: "), "{text}");
        }
        assert_eq!(
            error(&bzimage("7.2", b"something else")),
            "damaged: its payload begins like no known compression; copy or build it again"
        );
        assert_eq!(
            error(&bzimage("7.2", b"BZh9and so on")),
            "not supported: a kernel compressed with bzip2; zstd, xz, gzip and lz4 can be \
             unpacked: build it with one of them, or give the uncompressed vmlinux"
        );
        assert_eq!(
            error(&bzimage("7.2", b"")),
            "damaged: its payload has 0 bytes; copy or build it again"
        );
    }

    #[test]
    fn an_old_boot_protocol_is_named() {
        let mut image = bzimage("2.6.20", b"\x1f\x8bpayload");
        image[0x206..0x208].copy_from_slice(&[5, 2]);
        assert_eq!(
            error(&image),
            "not supported: boot protocol 2.05, older than 2.08, which says where the kernel is"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever a header or a payload claims, there is an answer, and it is bounded.
        #[test]
        fn hostile_images_are_answered(
            compression in prop::sample::select(&ALL[..]),
            changes in prop::collection::vec((0_usize..4096, any::<u8>()), 1..20),
            words in prop::collection::vec((0x1f1_usize..0x260, any::<u32>()), 0..3),
            cut in 0_usize..4096,
        ) {
            let mut image = bzimage("7.2", &pack(&elf(&Made::default()), compression));
            for (at, byte) in changes {
                let at = at % image.len();
                image[at] = byte;
            }
            for (at, word) in words {
                image[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            image.truncate(image.len().saturating_sub(cut));
            if let Ok(parsed) = BzImage::parse(&image)
                && let Ok(unpacked) = parsed.unpack_within(1 << 20)
            {
                prop_assert!(unpacked.len() <= 1 << 20);
            }
        }
    }
}
