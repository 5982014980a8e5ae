//! Kernels in the cache: unpacked once, described once, named by digest.
//!
//! Entries of the area `kernels`:
//!
//! | name | what |
//! |---|---|
//! | `D.vmlinuz` | a fetched bzImage; `D` is its SHA-256 |
//! | `D.vmlinux` | the ELF out of the bzImage with digest `D` |
//! | `D.image.v1.json` | [`Image`]: what that ELF says about itself |
//! | `C.config` | a kernel's configuration; `C` is its SHA-256 |
//! | `NAME_VERSION.package.v1.json` | [`Package`]: which package holds which of them |
//!
//! A description is stored after what it describes, so one that is there can be relied on; sizes
//! are compared all the same, and an entry that does not hold is made again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bzimage::{self, BzImage};
use super::cache::{CacheDir, sha256};
use super::error::KernelError;
use super::image::{self, Facts, FileAt, ImageError, ReadAt as _};

pub(super) const AREA: &str = "kernels";
const IMAGE: &str = ".image.v1.json";
const PACKAGE: &str = ".package.v1.json";
/// No description is anywhere near that long.
const MAX_RECORD: u64 = 64 << 10;

/// An ELF in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    pub(super) facts: Facts,
    /// SHA-256 of the ELF.
    pub(super) digest: String,
    /// SHA-256 of the bzImage that it was unpacked from.
    pub(super) vmlinuz: String,
}

/// A Debian package in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// SHA-256 of the `.deb` file, as the signed index of the archive has it.
    pub(super) deb: String,
    /// SHA-256 and length of the bzImage.
    pub(super) vmlinuz: (String, u64),
    /// SHA-256 of the configuration.
    pub(super) config: Option<String>,
}

/// The cache, seen as a store of kernels.
#[derive(Clone, Copy)]
pub(super) struct Store<'a> {
    pub(super) cache: &'a CacheDir,
}

impl Store<'_> {
    pub(super) fn vmlinux(&self, image: &Image) -> PathBuf {
        self.cache.entry(AREA, &format!("{}.vmlinux", image.vmlinuz))
    }

    pub(super) fn vmlinuz(&self, package: &Package) -> PathBuf {
        self.cache.entry(AREA, &format!("{}.vmlinuz", package.vmlinuz.0))
    }

    pub(super) fn config(&self, package: &Package) -> Option<PathBuf> {
        self.cache.find(AREA, &format!("{}.config", package.config.as_ref()?))
    }

    /// The image that was unpacked from the bzImage with that digest, if it is whole.
    pub(super) fn image(&self, vmlinuz: &str) -> Option<Image> {
        let image: Image = self.record(&format!("{vmlinuz}{IMAGE}"))?;
        let whole = image.vmlinuz == vmlinuz && has_len(&self.vmlinux(&image), image.facts.size);
        whole.then_some(image)
    }

    /// Every package whose bzImage and ELF are whole.
    pub(super) fn packages(&self) -> Result<Vec<(Package, Image)>, KernelError> {
        let mut found = Vec::new();
        for name in self.cache.list(AREA)? {
            if name.ends_with(PACKAGE)
                && let Some(package) = self.record::<Package>(&name)
                && has_len(&self.vmlinuz(&package), package.vmlinuz.1)
                && let Some(image) = self.image(&package.vmlinuz.0)
            {
                found.push((package, image));
            }
        }
        Ok(found)
    }

    /// Stores a package's bzImage and configuration, unpacks it, and describes all of it.
    pub(super) fn add_package(
        &self,
        (name, version, deb): (&str, &str, &str),
        vmlinuz: &[u8],
        config: Option<&[u8]>,
    ) -> Result<(Package, Image), KernelError> {
        let what = PathBuf::from(format!("of package {name} {version}"));
        let image = self.unpack(vmlinuz, &what)?;
        self.put_whole(&format!("{}.vmlinuz", image.vmlinuz), vmlinuz)?;
        let config = match config {
            Some(config) => {
                let digest = sha256(config);
                self.put_whole(&format!("{digest}.config"), config)?;
                Some(digest)
            }
            None => None,
        };
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            deb: deb.to_owned(),
            vmlinuz: (image.vmlinuz.clone(), vmlinuz.len() as u64),
            config,
        };
        self.describe(&format!("{name}_{version}{PACKAGE}"), &package)?;
        Ok((package, image))
    }

    /// The ELF out of a bzImage, unpacked unless the cache has it. `path` is for messages.
    pub(super) fn unpack(&self, vmlinuz: &[u8], path: &Path) -> Result<Image, KernelError> {
        let digest = sha256(vmlinuz);
        if let Some(image) = self.image(&digest) {
            return Ok(image);
        }
        let _lock = self.cache.lock("unpack", || {})?;
        if let Some(image) = self.image(&digest) {
            return Ok(image);
        }
        let bad = |fault| KernelError::Image { path: path.to_owned(), fault };
        let bzimage = BzImage::parse(vmlinuz).map_err(bad)?;
        let elf = bzimage.unpack().map_err(bad)?;
        let facts = image::facts(elf.as_slice(), bzimage.release).map_err(bad)?;
        self.put_whole(&format!("{digest}.vmlinux"), &elf)?;
        let image = Image { facts, digest: sha256(&elf), vmlinuz: digest };
        self.describe(&format!("{}{IMAGE}", image.vmlinuz), &image)?;
        Ok(image)
    }

    /// Like [`CacheDir::put`], but an entry of another length is replaced.
    fn put_whole(&self, name: &str, bytes: &[u8]) -> Result<(), KernelError> {
        if !has_len(&self.cache.entry(AREA, name), bytes.len() as u64) {
            self.cache.remove(AREA, name)?;
            self.cache.put(AREA, name, bytes)?;
        }
        Ok(())
    }

    fn describe(&self, name: &str, record: &impl Serialize) -> Result<(), KernelError> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
        let path = self.cache.entry(AREA, name);
        let text = text.map_err(|cause| self.cache.error("write", path, cause))?;
        self.cache.remove(AREA, name)?;
        self.cache.put(AREA, name, &text)?;
        Ok(())
    }

    /// A description that is not there or not readable is none; it is made again.
    fn record<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let file = File::open(self.cache.entry(AREA, name)).ok()?;
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

fn has_len(path: &Path, len: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == len)
}

/// What a file turned out to be.
pub(super) enum Opened {
    /// A bzImage, in full.
    BzImage(Vec<u8>),
    /// An ELF kernel.
    Elf(Facts),
}

/// Opens a file that may be a kernel.
pub(super) fn open(path: &Path) -> Result<Opened, KernelError> {
    let bad = |fault| KernelError::Image { path: path.to_owned(), fault };
    let unreadable = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => KernelError::NoSuchFile { path: path.to_owned() },
        _ => KernelError::Read { path: path.to_owned(), cause },
    };
    // Asked before opening: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(bad(ImageError::NotAKernel("it is no regular file".into())));
    }
    let file = FileAt::new(File::open(path).map_err(unreadable)?).map_err(unreadable)?;
    let mut head = vec![0; file.len().min(4096) as usize];
    file.read_at(0, &mut head).map_err(unreadable)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(Opened::Elf(image::facts(&file, None).map_err(bad)?));
    }
    if !bzimage::is_bzimage(&head) {
        return Err(bad(ImageError::NotAKernel(what_is(&head))));
    }
    if file.len() > bzimage::MAX_IMAGE {
        return Err(bad(ImageError::Unsupported("an image of more than 256 MiB".into())));
    }
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(0, &mut bytes).map_err(unreadable)?;
    Ok(Opened::BzImage(bytes))
}

/// A guess at what somebody took for a kernel.
fn what_is(head: &[u8]) -> String {
    let begins = |magic: &[u8]| head.starts_with(magic);
    match head {
        [] => "it is empty",
        _ if head.get(0x38..0x3c) == Some(b"ARM\x64") => "it is a kernel for arm64",
        _ if begins(b"MZ") => {
            "it is a PE file without a Linux boot header (a unified kernel image? its kernel is \
             in the section .linux)"
        }
        _ if begins(&[0x1f, 0x8b])
            || begins(b"\xfd7zXZ\0")
            || begins(&[0x28, 0xb5, 0x2f, 0xfd]) =>
        {
            "it is a compressed file (an initramfs? a packed vmlinux has to be unpacked first)"
        }
        _ if begins(b"!<arch>\n") => "it is a package (`.deb`) or library archive",
        _ if begins(b"070701") => "it is an initramfs",
        _ if begins(b"#!") => "it is a script",
        _ => "it has neither a Linux boot header nor an ELF header",
    }
    .to_owned()
}

/// SHA-256 of a file, read piece by piece.
pub(super) fn digest_of_file(path: &Path) -> Result<String, KernelError> {
    let unreadable = |cause| KernelError::Read { path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => return Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            n => hasher.update(&piece[..n]),
        }
    }
}
