//! From a spec to an image.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::cache::{CacheDir, CacheLock};
use super::debian::{Available, Debian, Tools, is_cloud, is_released};
use super::error::KernelError;
use super::progress::Progress;
use super::spec::{Series, Spec};
use super::store::{Image, Opened, Package, Store, open};
use super::{Facts, KernelImage, version};

/// Where kernels come from: the cache, and how the rest is reached.
pub struct Kernels<'a> {
    store: Store<'a>,
    progress: &'a dyn Progress,
    tools: Tools,
    refresh: bool,
}

/// A fetched kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// A spec that names exactly this one.
    pub spec: String,
    /// As `uname -r` prints it.
    pub release: String,
    /// The package that it came in, and that package's version.
    pub package: (String, String),
    /// Whether it was built with sched_ext.
    pub has_sched_ext: bool,
    /// Bytes that it takes in the cache.
    pub size: u64,
}

impl<'a> Kernels<'a> {
    /// Kernels out of that cache.
    #[must_use]
    pub fn new(cache: &'a CacheDir, progress: &'a dyn Progress) -> Self {
        Kernels { store: Store { cache }, progress, tools: Tools::default(), refresh: false }
    }

    /// Uses other programs than those on the search path.
    #[must_use]
    pub fn with_tools(self, tools: Tools) -> Self {
        Kernels { tools, ..self }
    }

    /// Asks the archive for something newer than what the cache has.
    #[must_use]
    pub fn refreshed(self, refresh: bool) -> Self {
        Kernels { refresh, ..self }
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

    /// Every fetched kernel, newest first.
    ///
    /// # Errors
    /// [`KernelError::Cache`].
    pub fn cached(&self) -> Result<Vec<Cached>, KernelError> {
        let mut cached = self.store.packages()?;
        cached.sort_by(|(a, _), (b, _)| version::compare(&b.version, &a.version));
        let of = |(package, image): (Package, Image)| Cached {
            spec: format!("debian:{}", image.facts.release),
            release: image.facts.release,
            package: (package.name, package.version),
            has_sched_ext: image.facts.has_sched_ext,
            size: image.facts.size + package.vmlinuz.1,
        };
        Ok(cached.into_iter().map(of).collect())
    }

    /// The newest kernel of each series that Debian has now, newest first.
    ///
    /// # Errors
    /// [`KernelError`] when the archive cannot be asked.
    pub fn available(&self) -> Result<Vec<Available>, KernelError> {
        let _lock = self.lock()?;
        self.archive("debian").available(self.refresh)
    }

    fn archive<'b>(&'b self, spec: &'b str) -> Debian<'b> {
        Debian { store: self.store, progress: self.progress, tools: &self.tools, spec }
    }

    /// Fetches run one after the other, across processes.
    fn lock(&self) -> Result<CacheLock, KernelError> {
        let waiting = || self.progress.step("waiting for another fetch to end");
        Ok(self.store.cache.lock("apt", waiting)?)
    }

    /// The newest Debian kernel of a series, or, without one, of those with sched_ext: of the
    /// cached ones if there is any, else fetched.
    fn debian(&self, spec: &str, series: Option<&Series>) -> Result<KernelImage, KernelError> {
        let cached = || match self.refresh {
            true => Ok(None),
            false => self.newest_cached(series),
        };
        let found = match cached()? {
            Some(found) => found,
            None => {
                let _lock = self.lock()?;
                // Another process may have fetched it meanwhile.
                match cached()? {
                    Some(found) => found,
                    None => self.archive(spec).fetch(series, self.refresh)?,
                }
            }
        };
        Ok(self.of_package(spec, &found.0, found.1))
    }

    /// `auto` takes candidates for a release only where there is nothing else.
    fn newest_cached(
        &self,
        series: Option<&Series>,
    ) -> Result<Option<(Package, Image)>, KernelError> {
        let mut cached = self.store.packages()?;
        cached.retain(|(package, image)| match series {
            Some(series) => series.matches(&package.version, &image.facts.release),
            None => image.facts.has_sched_ext,
        });
        let released = |version: &str| series.is_some() || is_released(version);
        Ok(cached.into_iter().max_by(|(a, _), (b, _)| {
            let order = released(&a.version).cmp(&released(&b.version));
            let order = order.then_with(|| is_cloud(&a.name).cmp(&is_cloud(&b.name)));
            order.then_with(|| version::compare(&a.version, &b.version))
        }))
    }

    fn of_package(&self, spec: &str, package: &Package, image: Image) -> KernelImage {
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

    pub(super) fn host_below(
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
    // From /lib/modules/RELEASE, from /usr/lib/modules/RELEASE and from /usr/lib/debug/boot.
    for up in ["../../..", "../../../.."] {
        candidates.push(beside.join(up).join(format!("boot/config-{release}")));
    }
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
