//! Debian's kernels, fetched through a private apt root.
//!
//! The machine's own apt knows where the Debian archive is mirrored and how it is verified, but
//! seldom lists the newest kernels. So apt runs with sources made from the machine's own ones
//! plus further suites, and with all of its state below the cache directory: nothing on the system
//! is touched and no privilege is needed. Signatures and hashes are apt's business; the digest
//! from the signed index is compared once more and recorded.
//!
//! What apt keeps below `apt/` is its own (package lists, downloads that were cut short): it is
//! used again or swept by the next fetch. One fetch runs at a time.

mod packages;
mod run;
mod sources;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

pub(super) use packages::{is_cloud, is_released};
pub use run::Tools;

use super::bzimage::MAX_IMAGE;
use super::cache::{CacheDir, sha256};
use super::error::KernelError;
use super::progress::Progress;
use super::spec::Series;
use super::store::{Image, Package, Store, digest_of_file};
use packages::Candidate;
use run::Running;

use crate::words::plain;

/// What differs from the machine's own apt configuration, apart from paths. Hooks would act on
/// the system; lists that could not be had would not count as a failure; a sandbox user could not write below the cache directory; apt's cache of the parsed
/// lists would save a second or two, but has 75 MB and is left half-written when apt is killed.
const APT_CONF: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
#clear Acquire::Languages;
APT::Architecture \"amd64\";
APT::Architectures { \"amd64\"; };
APT::Sandbox::User \"root\";
APT::Update::Error-Mode \"any\";
APT::Get::AllowUnauthenticated \"false\";
Acquire::AllowInsecureRepositories \"false\";
Acquire::Languages \"none\";
Acquire::Retries \"2\";
Dir::Cache::pkgcache \"\";
Dir::Cache::srcpkgcache \"\";
Dir::Etc::preferences \"/dev/null\";
Dir::Etc::preferencesparts \"/dev/null\";
Dir::Etc::sourceparts \"/dev/null\";
Dir::State::status \"/dev/null\";
";

const AREA: &str = "apt";
/// How long the package lists are taken as they are, unless something is missing.
const LISTS_HOLD: Duration = Duration::from_secs(24 * 3600);
/// A configuration has some 300 kB.
const MAX_CONFIG: u64 = 8 << 20;
/// Records of all kernels of all suites have some 500 kB.
const MAX_RECORDS: u64 = 64 << 20;

/// A kernel that the archive has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// Its series, `7.2`.
    pub series: String,
    /// The package that holds it.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// Bytes to download.
    pub size: u64,
}

/// How Debian's archive is reached.
pub(super) struct Debian<'a> {
    pub(super) store: Store<'a>,
    pub(super) progress: &'a dyn Progress,
    pub(super) tools: &'a Tools,
    /// What is being fetched, for messages.
    pub(super) spec: &'a str,
}

/// The private root: apt's options that make it private.
struct Root {
    options: Vec<String>,
    /// Its modification time says when these sources were last asked.
    asked: PathBuf,
    downloads: PathBuf,
}

impl Debian<'_> {
    /// Fetches the best kernel of a series (of all released ones without a series), unless the
    /// cache has that very package. `refresh` asks the archive even when its lists are recent.
    /// The caller holds the lock.
    pub(super) fn fetch(
        &self,
        series: Option<&Series>,
        refresh: bool,
    ) -> Result<(Package, Image), KernelError> {
        let root = self.root()?;
        self.with_lists(&root, refresh, |candidates| {
            let chosen = packages::choose(candidates, series).ok_or_else(|| {
                let asked = series.map_or("auto", Series::as_str);
                let available = packages::nearest_series(candidates, asked);
                KernelError::UnknownSeries { series: asked.to_owned(), available }
            })?;
            match self.cached(chosen)? {
                Some(found) => Ok(found),
                None => self.download(&root, chosen),
            }
        })
    }

    /// The newest kernel of each series that the archive has. The caller holds the lock.
    pub(super) fn available(&self, refresh: bool) -> Result<Vec<Available>, KernelError> {
        self.with_lists(&self.root()?, refresh, |candidates| {
            let of = |candidate: &Candidate| Available {
                series: candidate.series_name(),
                package: candidate.name.clone(),
                version: candidate.version.clone(),
                size: candidate.size,
            };
            Ok(packages::newest_of_each(candidates).into_iter().map(of).collect())
        })
    }

    /// Does `act` with what the package lists have; once more with fresh lists if it fails with
    /// older ones. An update that fails in part (one suite is gone, say) matters only if what it
    /// brought does not do.
    fn with_lists<T>(
        &self,
        root: &Root,
        refresh: bool,
        act: impl Fn(&[Candidate]) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        if !refresh && root.is_recent() {
            match self.candidates(root).and_then(|candidates| act(&candidates)) {
                Err(KernelError::UnknownSeries { .. } | KernelError::Apt { .. }) => {}
                done => return done,
            }
        }
        let updated = match self.update(root) {
            Err(error @ KernelError::Apt { .. }) => Some(error),
            other => other.map(|()| None)?,
        };
        match (self.candidates(root).and_then(|candidates| act(&candidates)), updated) {
            (Err(KernelError::UnknownSeries { .. }), Some(error)) => Err(error),
            (Ok(done), Some(error)) => {
                let said = match &error {
                    KernelError::Apt { log, .. } => log.lines().next().unwrap_or_default().trim(),
                    _ => "",
                };
                let text = "some package lists could not be had; going on with the others";
                self.progress.step(&format!("{text}: {said}"));
                Ok(done)
            }
            (done, _) => done,
        }
    }

    fn cached(&self, candidate: &Candidate) -> Result<Option<(Package, Image)>, KernelError> {
        let mut packages = self.store.packages()?.into_iter();
        Ok(packages.find(|(package, _)| {
            package.name == candidate.name && package.version == candidate.version
        }))
    }

    /// Makes the private root out of the machine's sources.
    fn root(&self) -> Result<Root, KernelError> {
        let cache = self.store.cache;
        let (list, parts) = self.machine_sources()?;
        let (machine, files) = sources::read_machine(&list, &parts);
        let text = sources::private_sources(&machine)
            .ok_or_else(|| KernelError::NoDebianSource { spec: self.spec.to_owned(), files })?;
        let digest = sha256(text.as_bytes());
        let sources = cache.put(AREA, &format!("{digest}.sources"), text.as_bytes())?;
        let conf = format!("{}.conf", sha256(APT_CONF.as_bytes()));
        let conf = cache.put(AREA, &conf, APT_CONF.as_bytes())?;
        let dir = |name: &str| cache.make_dir(&format!("{AREA}/{name}"));
        dir("lists/partial")?;
        dir("archives/partial")?;
        let option = |name: &str, path: &Path| format!("-oDir::{name}={}", path.display());
        let options = vec![
            format!("-c={}", conf.display()),
            option("State", &dir("state")?),
            option("State::lists", &dir("lists")?),
            option("Cache", &cache.make_dir(AREA)?),
            option("Etc::sourcelist", &sources),
        ];
        let asked = cache.entry(AREA, &format!("{digest}.asked"));
        let root = Root { options, asked, downloads: dir("download")? };
        root.sweep(cache)?;
        Ok(root)
    }

    /// Where the machine's apt has its sources: a file, and a directory with more.
    fn machine_sources(&self) -> Result<(PathBuf, PathBuf), KernelError> {
        let mut apt = Running::start(self.spec, &self.tools.apt_config, |command| {
            command.args(["shell", "LIST", "Dir::Etc::sourcelist/f"]);
            command.args(["PARTS", "Dir::Etc::sourceparts/d"]);
        })?;
        let text = apt.text(64 << 10);
        apt.finish("ask apt for its sources", self.store.cache)?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(PathBuf::from(line.trim_start_matches('=').trim_matches('\'')))
        };
        let list = value("LIST").unwrap_or_else(|| "/etc/apt/sources.list".into());
        let parts = value("PARTS").unwrap_or_else(|| "/etc/apt/sources.list.d".into());
        Ok((list, parts))
    }

    /// Fetches the package lists.
    fn update(&self, root: &Root) -> Result<(), KernelError> {
        self.progress.step("asking the Debian archive which kernels there are");
        let cache = self.store.cache;
        let mut apt = Running::start(self.spec, &self.tools.apt_get, |command| {
            root.configure(command);
            command.args(["-qq", "-oAPT::Status-Fd=1", "update"]);
        })?;
        apt.each_line(|line| self.show(line));
        apt.finish("get the package lists of the Debian archive", cache)?;
        fs::write(&root.asked, "")
            .map_err(|cause| cache.error("write", root.asked.clone(), cause).into())
    }

    /// A line that apt writes to its status descriptor: `dlstatus:ITEM:PERCENT:TEXT`.
    fn show(&self, line: &str) {
        let mut fields = line.split(':');
        if fields.next() == Some("dlstatus")
            && let Some(Ok(percent)) = fields.nth(1).map(str::parse::<f64>)
        {
            self.progress.advance(percent / 100.0);
        }
    }

    /// Everything in the lists that holds a kernel.
    fn candidates(&self, root: &Root) -> Result<Vec<Candidate>, KernelError> {
        let mut apt = Running::start(self.spec, &self.tools.apt_cache, |command| {
            root.configure(command);
            command.args(["search", "--full", "--names-only", packages::NAMES]);
        })?;
        let text = apt.text(MAX_RECORDS);
        apt.finish("read the package lists of the Debian archive", self.store.cache)?;
        Ok(packages::parse_records(&text))
    }

    /// Downloads a package and the one with its configuration, and stores what they hold.
    fn download(&self, root: &Root, chosen: &Candidate) -> Result<(Package, Image), KernelError> {
        let megabytes = chosen.size as f64 / 1e6;
        let Candidate { name, version, .. } = chosen;
        self.progress.step(&format!("fetching {name} {version} ({megabytes:.1} MB)"));
        let mut apt = Running::start(self.spec, &self.tools.apt_get, |command| {
            root.configure(command);
            command.args(["-qq", "-oAPT::Status-Fd=1", "download"]).current_dir(&root.downloads);
            command.arg(format!("{name}={version}"));
            command.args(chosen.base.iter().map(|base| format!("{}={}", base.name, base.version)));
        })?;
        apt.each_line(|line| self.show(line));
        apt.finish(&format!("fetch {name} {version}"), self.store.cache)?;

        self.progress.step(&format!("unpacking {}", chosen.release));
        let mut parts = self.extract(&root.package_file(name, &chosen.sha256)?, name)?;
        if let Some(base) = &chosen.base
            && parts.config.is_none()
        {
            let file = root.package_file(&base.name, &base.sha256)?;
            parts.config = self.extract(&file, &base.name)?.config;
        }
        let vmlinuz = parts.vmlinuz.ok_or_else(|| KernelError::Package {
            package: format!("{name} {version}"),
            reason: "there is no vmlinuz in it".to_owned(),
        })?;
        if parts.config.is_none() {
            // The archive drops these packages earlier than the signed image.
            self.progress
                .step(&format!("the configuration of {} is no longer there", chosen.release));
        }
        let package = (name.as_str(), version.as_str(), chosen.sha256.as_str());
        let stored = self.store.add_package(package, &vmlinuz, parts.config.as_deref())?;
        root.sweep(self.store.cache)?;
        Ok(stored)
    }

    /// The kernel and the configuration in a package file, as far as it has them.
    fn extract(&self, file: &Path, package: &str) -> Result<Parts, KernelError> {
        let mut dpkg = Running::start(self.spec, &self.tools.dpkg_deb, |command| {
            command.arg("--fsys-tarfile").arg(file);
        })?;
        let mut parts = Parts::default();
        let read = parts.read_from(dpkg.output());
        if parts.vmlinuz.is_some() && parts.config.is_some() {
            // The rest, modules mostly, is not worth waiting for.
            return Ok(parts);
        }
        dpkg.finish(&format!("unpack {package}"), self.store.cache)?;
        let reason = |cause: io::Error| KernelError::Package {
            package: package.to_owned(),
            reason: format!("it cannot be unpacked: {}", plain(&cause)),
        };
        read.map(|()| parts).map_err(reason)
    }
}

#[derive(Default)]
struct Parts {
    vmlinuz: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
}

impl Parts {
    fn read_from(&mut self, tar: impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path()?.into_owned();
            if !entry.header().entry_type().is_file() {
                continue;
            }
            match kind_of(&path) {
                Some(Kind::Vmlinuz) => self.vmlinuz = Some(read_entry(entry, MAX_IMAGE)?),
                Some(Kind::Config) => self.config = Some(read_entry(entry, MAX_CONFIG)?),
                None => {}
            }
            if self.vmlinuz.is_some() && self.config.is_some() {
                break;
            }
        }
        Ok(())
    }
}

fn read_entry(entry: tar::Entry<'_, impl Read>, limit: u64) -> io::Result<Vec<u8>> {
    let path = entry.path()?.display().to_string();
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("{path} has more than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vmlinuz,
    Config,
}

/// `boot/vmlinuz-RELEASE` and `boot/config-RELEASE`, or `usr/lib/modules/RELEASE/` with
/// `vmlinuz`, `vmlinuz.unsigned` and `config`.
fn kind_of(path: &Path) -> Option<Kind> {
    let path = path.strip_prefix(".").unwrap_or(path).to_str()?;
    if let Some(name) = path.strip_prefix("boot/") {
        return match name.split_once('-')?.0 {
            "vmlinuz" => Some(Kind::Vmlinuz),
            "config" => Some(Kind::Config),
            _ => None,
        };
    }
    let path = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    match path.split_once('/')?.1 {
        "vmlinuz" | "vmlinuz.unsigned" => Some(Kind::Vmlinuz),
        "config" => Some(Kind::Config),
        _ => None,
    }
}

impl Root {
    fn configure(&self, command: &mut Command) {
        command.args(&self.options);
    }

    fn is_recent(&self) -> bool {
        let asked = fs::metadata(&self.asked).and_then(|meta| meta.modified());
        let age = asked.map(|asked| SystemTime::now().duration_since(asked));
        matches!(age, Ok(Ok(age)) if age < LISTS_HOLD)
    }

    /// The downloaded file of a package, compared with the digest in the signed index.
    fn package_file(&self, name: &str, sha256: &str) -> Result<PathBuf, KernelError> {
        let bad = |reason: &str| KernelError::Package {
            package: name.to_owned(),
            reason: reason.to_owned(),
        };
        let begin = format!("{name}_");
        let entries = fs::read_dir(&self.downloads)
            .map_err(|cause| KernelError::Read { path: self.downloads.clone(), cause })?;
        let named = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&begin) && name.ends_with(".deb"))
        };
        let file = entries.filter_map(|entry| Some(entry.ok()?.path())).find(named);
        let file = file.ok_or_else(|| bad("apt has downloaded no such file"))?;
        if digest_of_file(&file)? != sha256 {
            return Err(bad("its digest is not the one in the archive's index"));
        }
        Ok(file)
    }

    /// Takes away packages that an earlier fetch, ended in the middle, has left.
    fn sweep(&self, cache: &CacheDir) -> Result<(), KernelError> {
        for entry in fs::read_dir(&self.downloads).into_iter().flatten().flatten() {
            let path = entry.path();
            fs::remove_file(&path).map_err(|cause| cache.error("remove", path, cause))?;
        }
        Ok(())
    }
}
