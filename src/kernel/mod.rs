//! Kernel images: find, fetch, unpack, cache.
//!
//! ```text
//!            auto, debian:SERIES            host, PATH
//!                    │                          │
//!      cached? ──no─▶ debian (apt) ─▶ vmlinuz ──┤
//!         │                             │ bzimage: unpack
//!        yes                            ▼       │
//!         │                           store ◀───┘ vmlinux: image (facts) in place
//!         ▼                             │
//!     KernelImage ◀─────────────────────┘
//! ```
//!
//! [`resolve`] is what most callers want. It gives images that can be introspected: those without
//! BTF are refused. [`Kernels`] offers the rest: other tools, refreshing, listing, looking closer.

mod bzimage;
pub mod cache;
mod debian;
mod error;
mod find;
#[cfg(test)]
mod fixtures;
mod image;
pub mod progress;
mod spec;
mod store;
#[cfg(test)]
mod tests;
mod version;

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use cache::{CacheDir, CacheError, CacheLock};
pub use debian::{Available, Tools};
pub use error::KernelError;
pub use find::{Cached, Kernels};
pub use image::{Facts, ImageError};
pub use progress::Progress;
pub use spec::{Series, Spec};

use image::{FileAt, ReadAt as _};

/// A kernel that can be booted and whose types are known. Plain data: it can be handed to another
/// process, and names files in the cache or of the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelImage {
    /// As asked for.
    pub spec: String,
    /// As `uname -r` prints it.
    pub release: String,
    /// The bzImage, if there is one.
    pub vmlinuz: Option<PathBuf>,
    /// The ELF.
    pub vmlinux: PathBuf,
    /// The kernel's configuration, if it was found.
    pub config: Option<PathBuf>,
    /// Name and version of the Debian package that it came in.
    pub package: Option<String>,
    /// What the ELF says about itself.
    pub facts: Facts,
    /// SHA-256 of the ELF where it is known without reading the file.
    digest: Option<String>,
}

impl KernelImage {
    /// A stock kernel at those paths, where there need not be any files.
    #[cfg(test)]
    pub(crate) fn for_test(vmlinuz: &str, vmlinux: &str) -> Self {
        let facts = Facts {
            release: "7.2.13+made".to_owned(),
            size: 62_093_508,
            btf: Some(25_348_640..30_348_640),
            has_sched_ext: true,
            has_pvh: true,
            has_symtab: false,
        };
        KernelImage {
            spec: "debian:7.2".to_owned(),
            release: facts.release.clone(),
            vmlinuz: Some(vmlinuz.into()),
            vmlinux: vmlinux.into(),
            config: None,
            package: Some("linux-binary-7.2.13+made 7.2.13-1".to_owned()),
            facts,
            digest: None,
        }
    }

    /// The unpacked ELF.
    #[must_use]
    pub fn elf(&self) -> &Path {
        &self.vmlinux
    }

    /// The bzImage, if there is one.
    #[must_use]
    pub fn bzimage(&self) -> Option<&Path> {
        self.vmlinuz.as_deref()
    }

    /// Whether it was built with sched_ext.
    #[must_use]
    pub fn has_sched_ext(&self) -> bool {
        self.facts.has_sched_ext
    }

    /// The contents of the `.BTF` section.
    ///
    /// # Errors
    /// [`KernelError::NoBtf`]; [`KernelError::Read`] when the file has changed meanwhile.
    pub fn btf_bytes(&self) -> Result<Vec<u8>, KernelError> {
        let range = self.btf_range()?;
        let unreadable = |cause| KernelError::Read { path: self.vmlinux.clone(), cause };
        let file = File::open(&self.vmlinux).and_then(FileAt::new).map_err(unreadable)?;
        // The facts were checked against the file when they were made; it may have been rebuilt.
        if range.end > file.len() || range.start > range.end {
            let fault = ImageError::Truncated { what: "BTF", needs: range.end, has: file.len() };
            return Err(KernelError::Image { path: self.vmlinux.clone(), fault });
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_at(range.start, &mut bytes).map_err(unreadable)?;
        Ok(bytes)
    }

    fn btf_range(&self) -> Result<std::ops::Range<u64>, KernelError> {
        self.facts.btf.clone().ok_or_else(|| KernelError::NoBtf {
            spec: self.spec.clone(),
            release: self.release.clone(),
        })
    }

    /// Refuses a kernel that cannot run a sched_ext scheduler.
    ///
    /// # Errors
    /// [`KernelError::NoSchedExt`].
    pub fn require_sched_ext(&self) -> Result<(), KernelError> {
        if self.facts.has_sched_ext {
            return Ok(());
        }
        Err(KernelError::NoSchedExt { spec: self.spec.clone(), release: self.release.clone() })
    }

    /// SHA-256 of the ELF. Reads the whole file when it is one of the user's own.
    ///
    /// # Errors
    /// [`KernelError::Read`].
    pub fn digest(&self) -> Result<String, KernelError> {
        match &self.digest {
            Some(digest) => Ok(digest.clone()),
            None => store::digest_of_file(&self.vmlinux),
        }
    }
}

/// Finds the kernel that a spec names (see [`Spec`]), fetching and unpacking it if need be.
///
/// # Errors
/// [`KernelError`], with cause and remedy; [`KernelError::NoBtf`] for a kernel without types.
pub fn resolve(
    spec: &str,
    cache: &CacheDir,
    progress: &dyn Progress,
) -> Result<KernelImage, KernelError> {
    Kernels::new(cache, progress).resolve(spec)
}
