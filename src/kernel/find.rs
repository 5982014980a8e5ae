//! From a spec to an image.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::cache::CacheDir;
use super::error::KernelError;
use super::progress::Progress;
use super::spec::{Series, Spec};
use super::store::{Image, Opened, Package, Store, open};
use super::{Facts, KernelImage, version};

/// Where kernels come from: the cache, and how the rest is reached.
pub struct Kernels<'a> {
    store: Store<'a>,
    progress: &'a dyn Progress,
}

impl<'a> Kernels<'a> {
    /// Kernels out of that cache.
    #[must_use]
    pub fn new(cache: &'a CacheDir, progress: &'a dyn Progress) -> Self {
        Kernels { store: Store { cache }, progress }
    }

    /// Finds a kernel that can be introspected.
    ///
    /// # Errors
    /// [`KernelError`], with cause and remedy.
    pub fn resolve(&self, spec: &str) -> Result<KernelImage, KernelError> {
        let image = self.inspect(spec)?;
        image.btf_range()?;
        Ok(image)
    }

    /// Finds a kernel, also one without BTF.
    ///
    /// # Errors
    /// [`KernelError`], with cause and remedy.
    pub fn inspect(&self, spec: &str) -> Result<KernelImage, KernelError> {
        match Spec::parse(spec)? {
            Spec::Auto => self.debian(spec, None),
            Spec::Debian(series) => self.debian(spec, Some(&series)),
            Spec::Host => self.host(spec),
            Spec::Path(path) => self.path(spec, &path),
        }
    }

    /// The newest cached Debian kernel of a series; of any that has sched_ext without one.
    fn debian(&self, spec: &str, series: Option<&Series>) -> Result<KernelImage, KernelError> {
        let mut cached = self.store.packages()?;
        cached.retain(|(package, image)| match series {
            Some(series) => series.matches(&package.version, &image.facts.release),
            None => image.facts.has_sched_ext,
        });
        cached.sort_by(|(a, _), (b, _)| version::compare(&a.version, &b.version));
        let (package, image) = cached.pop().ok_or_else(|| KernelError::UnknownSeries {
            series: series.map_or("auto", Series::as_str).to_owned(),
            available: Vec::new(),
        })?;
        Ok(self.from_package(spec, &package, image))
    }

    fn from_package(&self, spec: &str, package: &Package, image: Image) -> KernelImage {
        KernelImage {
            spec: spec.to_owned(),
            release: image.facts.release.clone(),
            vmlinuz: Some(self.store.vmlinuz(package)),
            vmlinux: self.store.vmlinux(&image),
            config: self.store.config(package),
            package: Some(format!("{} {}", package.name, package.version)),
            digest: Some(image.digest),
            facts: image.facts,
        }
    }

    fn path(&self, spec: &str, path: &Path) -> Result<KernelImage, KernelError> {
        if path.is_dir() { self.directory(spec, path) } else { self.file(spec, path) }
    }

    fn file(&self, spec: &str, path: &Path) -> Result<KernelImage, KernelError> {
        let mut image = KernelImage {
            spec: spec.to_owned(),
            release: String::new(),
            vmlinuz: None,
            vmlinux: PathBuf::new(),
            config: None,
            package: None,
            facts: Facts::default(),
            digest: None,
        };
        let path = std::path::absolute(path)
            .map_err(|cause| KernelError::Read { path: path.to_owned(), cause })?;
        match open(&path)? {
            Opened::Elf(facts) => {
                image.facts = facts;
                image.vmlinux = path.clone();
            }
            Opened::BzImage(bytes) => {
                let stored = self.store.unpack(&bytes, &path)?;
                image.vmlinux = self.store.vmlinux(&stored);
                image.vmlinuz = Some(path.clone());
                image.digest = Some(stored.digest);
                image.facts = stored.facts;
            }
        }
        image.release.clone_from(&image.facts.release);
        image.config = config_near(&path, &image.release);
        Ok(image)
    }

    /// A build tree, or a directory as a package installs it.
    fn directory(&self, spec: &str, dir: &Path) -> Result<KernelImage, KernelError> {
        let there = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        let bzimage = there("arch/x86/boot/bzImage").or_else(|| there("vmlinuz"));
        let Some(elf) = there("vmlinux") else {
            let bzimage =
                bzimage.ok_or_else(|| KernelError::NoKernelInDirectory { dir: dir.to_owned() })?;
            return self.file(spec, &bzimage);
        };
        let mut image = self.file(spec, &elf)?;
        // `make vmlinux` leaves the bzImage of an earlier build alone.
        if let Some(bzimage) = bzimage {
            match open(&bzimage)? {
                Opened::BzImage(bytes)
                    if super::bzimage::BzImage::parse(&bytes)
                        .is_ok_and(|b| b.release.as_ref() == Some(&image.release)) =>
                {
                    image.vmlinuz = Some(std::path::absolute(&bzimage).unwrap_or(bzimage));
                }
                _ => self.progress.step(&format!(
                    "leaving out {}: it is of another build than vmlinux",
                    bzimage.display()
                )),
            }
        }
        Ok(image)
    }

    /// The running kernel's image, where distributions put it.
    fn host(&self, spec: &str) -> Result<KernelImage, KernelError> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        self.host_below(spec, Path::new("/"), &release)
    }

    fn host_below(
        &self,
        spec: &str,
        root: &Path,
        release: &str,
    ) -> Result<KernelImage, KernelError> {
        let candidates = [
            format!("boot/vmlinuz-{release}"),
            format!("usr/lib/modules/{release}/vmlinuz"),
            format!("lib/modules/{release}/vmlinuz"),
            format!("lib/modules/{release}/build/vmlinux"),
            format!("usr/lib/debug/boot/vmlinux-{release}"),
            format!("boot/vmlinux-{release}"),
        ];
        let mut tried = Vec::new();
        for candidate in candidates.iter().map(|path| root.join(path)) {
            match fs::File::open(&candidate) {
                Ok(_) => return self.file(spec, &candidate),
                Err(cause) => tried.push((candidate, cause)),
            }
        }
        Err(KernelError::HostImage { release: release.to_owned(), tried })
    }
}

/// The configuration that belongs to the image at `path`: under the names that the kernel's build,
/// `make install` and distributions use, and of that version.
fn config_near(path: &Path, release: &str) -> Option<PathBuf> {
    let beside = path.parent()?;
    let build = path.ancestors().nth(4).filter(|_| path.ends_with("arch/x86/boot/bzImage"));
    let mut candidates = vec![
        beside.join(format!("config-{release}")),
        beside.join("config"),
        beside.join(".config"),
    ];
    candidates.extend(build.map(|dir| dir.join(".config")));
    candidates.push(beside.join(format!("../../../boot/config-{release}")));
    candidates.into_iter().find(|config| is_config_of(config, release).unwrap_or(false))
}

/// Whether the file has the heading that the kernel's configuration gets, with a version that the
/// release begins with.
fn is_config_of(path: &Path, release: &str) -> io::Result<bool> {
    if !fs::metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    let head = String::from_utf8_lossy(&head);
    let version = head.lines().find_map(|line| {
        line.strip_prefix("# Linux/")?.strip_suffix(" Kernel Configuration")?.split(' ').nth(1)
    });
    Ok(version.is_some_and(|version| release.starts_with(version)))
}
