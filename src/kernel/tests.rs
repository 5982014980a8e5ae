//! From specs to images: the user's own files, and packages out of a made archive that the real
//! apt and dpkg-deb read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::bzimage::Compression;
use super::cache::{CacheDir, sha256};
use super::fixtures::{Made, btf, bzimage, elf, pack};
use super::progress::{Progress, Silent};
use super::*;

/// Remembers the steps.
#[derive(Default)]
struct Steps(Mutex<Vec<String>>);

impl Progress for Steps {
    fn step(&self, what: &str) {
        self.0.lock().expect("not poisoned").push(what.to_owned());
    }

    fn advance(&self, fraction: f64) {
        assert!((0.0..=1.0).contains(&fraction), "{fraction}");
    }
}

impl Steps {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("not poisoned"))
    }
}

/// A directory with a cache in it.
struct Bench {
    dir: tempfile::TempDir,
    cache: CacheDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::at(dir.path().join("cache"));
        Bench { dir, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(&path, bytes).expect("written");
        path
    }

    fn kernels(&self) -> Kernels<'_> {
        Kernels::new(&self.cache, &Silent)
    }

    fn resolve(&self, path: &Path) -> Result<KernelImage, KernelError> {
        resolve(path.to_str().expect("UTF-8"), &self.cache, &Silent)
    }

    fn error(&self, path: &Path) -> String {
        self.resolve(path).expect_err("refused").to_string()
    }
}

fn made_bzimage(made: &Made) -> Vec<u8> {
    bzimage(made.release, &pack(&elf(made), Compression::Zstd))
}

fn config(version: &str) -> String {
    format!("#\n# Automatically generated\n# Linux/x86 {version} Kernel Configuration\n#\n")
}

#[test]
fn a_vmlinuz_is_unpacked_once() {
    let bench = Bench::new();
    let bytes = made_bzimage(&Made::default());
    let path = bench.write("boot/vmlinuz-7.2.13+made", &bytes);
    let config = bench.write("boot/config-7.2.13+made", config("7.2.13"));
    let image = bench.resolve(&path).expect("a kernel");
    assert_eq!(image.release, "7.2.13+made");
    assert_eq!(image.bzimage(), Some(path.as_path()));
    assert_eq!(image.config, Some(config));
    assert!(image.has_sched_ext());
    assert_eq!(image.btf_bytes().expect("BTF"), Made::default().btf.expect("made"));
    let elf = fs::read(image.elf()).expect("unpacked");
    assert_eq!(image.digest().expect("known"), sha256(&elf));
    image.require_sched_ext().expect("it has");

    // What is there is used: a change to it would be seen.
    let stamp = fs::metadata(image.elf()).expect("there").modified().expect("known");
    assert_eq!(bench.resolve(&path).expect("again"), image);
    assert_eq!(fs::metadata(image.elf()).expect("there").modified().expect("known"), stamp);
    // What has become damaged is made again.
    fs::write(image.elf(), b"short").expect("written");
    assert_eq!(bench.resolve(&path).expect("again"), image);
    assert_eq!(fs::read(image.elf()).expect("unpacked"), elf);
}

#[test]
fn a_vmlinux_is_used_in_place() {
    let bench = Bench::new();
    let bytes = elf(&Made { symtab: true, ..Made::default() });
    let path = bench.write("vmlinux", &bytes);
    let image = bench.resolve(&path).expect("a kernel");
    assert_eq!((image.elf(), image.bzimage()), (path.as_path(), None));
    assert_eq!(image.digest().expect("read"), sha256(&bytes));
    assert!(image.facts.has_symtab && image.config.is_none());
    assert!(!bench.cache.path().exists());
}

#[test]
fn a_build_tree_gives_elf_bzimage_and_config() {
    let bench = Bench::new();
    let made = Made { release: "7.3.0-rc1-00012-gabc", ..Made::default() };
    let tree = bench.path("tree");
    let bzimage = bench.write("tree/arch/x86/boot/bzImage", made_bzimage(&made));
    let config = bench.write("tree/.config", config("7.3.0-rc1"));
    let image = bench.resolve(&tree).expect("a bzImage alone does");
    assert_eq!((image.bzimage(), &image.config), (Some(bzimage.as_path()), &Some(config.clone())));

    let vmlinux = bench.write("tree/vmlinux", elf(&made));
    let image = bench.resolve(&tree).expect("a whole tree");
    assert_eq!(image.elf(), vmlinux);
    assert_eq!((image.bzimage(), &image.config), (Some(bzimage.as_path()), &Some(config)));

    // Built again, without bzImage, and configured anew.
    bench.write("tree/vmlinux", elf(&Made::default()));
    let steps = Steps::default();
    let image = resolve(tree.to_str().expect("UTF-8"), &bench.cache, &steps).expect("a kernel");
    assert_eq!((image.bzimage(), &image.config), (None, &None));
    let left_out =
        format!("leaving out {}: it is of another build than vmlinux", bzimage.display());
    assert_eq!(steps.take(), [left_out]);
}

#[test]
fn bad_files_say_what_they_are() {
    let bench = Bench::new();
    let advice = "give a vmlinuz (bzImage), a vmlinux (ELF) or a kernel build tree";
    for (name, bytes, what) in [
        ("empty", &b""[..], "it is empty"),
        ("script", b"#!/bin/sh\n", "it is a script"),
        ("text", b"hello", "it has neither a Linux boot header nor an ELF header"),
        ("initrd", b"070701000", "it is an initramfs"),
        ("a.deb", b"!<arch>\ndebian", "it is a package (`.deb`) or library archive"),
        (
            "vmlinux.gz",
            b"\x1f\x8b\x08\0",
            "it is a compressed file (an initramfs? a packed vmlinux has to be unpacked first)",
        ),
        (
            "uki.efi",
            b"MZ and more",
            "it is a PE file without a Linux boot header (a unified kernel image? its kernel is \
             in the section .linux)",
        ),
    ] {
        let path = bench.write(name, bytes);
        assert_eq!(
            bench.error(&path),
            format!(
                "bad kernel image {}: not a Linux kernel for x86-64: {what}; {advice}",
                path.display()
            )
        );
    }
    let missing = bench.path("nothing/here");
    assert_eq!(
        bench.error(&missing),
        format!(
            "no such kernel: {}: no such file or directory; check the path, or use `debian:7.2` \
             to fetch one",
            missing.display()
        )
    );
    let device = "/dev/null";
    assert_eq!(
        bench.error(Path::new(device)),
        format!(
            "bad kernel image /dev/null: not a Linux kernel for x86-64: it is no regular file; \
             {advice}"
        )
    );
    let empty = bench.path("empty-directory");
    fs::create_dir(&empty).expect("made");
    assert_eq!(
        bench.error(&empty),
        format!(
            "no kernel in {}: it has neither vmlinux nor arch/x86/boot/bzImage nor vmlinuz; build \
             the tree (`make`), or give the path of a kernel",
            empty.display()
        )
    );
}

#[test]
fn a_truncated_image_says_so_and_leaves_nothing() {
    let bench = Bench::new();
    let bytes = made_bzimage(&Made::default());
    let (end, half) = (bytes.len() - 32, bytes.len() / 2);
    let path = bench.write("vmlinuz", &bytes[..half.max(1700)]);
    assert_eq!(
        bench.error(&path),
        format!(
            "bad kernel image {}: truncated: its compressed kernel ends at byte {end}, and it has \
             {}; copy or build it again",
            path.display(),
            half.max(1700)
        )
    );
    assert!(bench.cache.list("kernels").expect("listed").is_empty());
}

#[test]
fn a_kernel_without_btf_or_sched_ext_is_refused_where_it_matters() {
    let bench = Bench::new();
    let bare = bench.write("bare", elf(&Made { btf: None, ..Made::default() }));
    assert_eq!(
        bench.error(&bare),
        format!(
            "kernel 7.2.13+made ({}) has no BTF, from which cryoscope reads the kernel's types; \
             use one that was built with CONFIG_DEBUG_INFO_BTF=y, such as `debian:7.2`",
            bare.display()
        )
    );
    let spec = bare.to_str().expect("UTF-8");
    assert!(bench.kernels().inspect(spec).expect("it can be looked at").facts.btf.is_none());

    let old = bench.write("old", elf(&Made { btf: Some(btf(&["rq"])), ..Made::default() }));
    let image = bench.resolve(&old).expect("good enough without a scheduler");
    assert_eq!(
        image.require_sched_ext().expect_err("it has none").to_string(),
        format!(
            "kernel 7.2.13+made ({}) has no sched_ext, so it cannot run a scheduler; use one that \
             was built with CONFIG_SCHED_CLASS_EXT=y, such as `debian:7.2`, or the scheduler `none`",
            old.display()
        )
    );
}

#[test]
fn an_elf_that_shrank_since_it_was_resolved_is_an_error() {
    let bench = Bench::new();
    let path = bench.write("vmlinux", elf(&Made::default()));
    let image = bench.resolve(&path).expect("a kernel");
    bench.write("vmlinux", b"\x7fELF");
    let end = image.facts.btf.clone().expect("BTF").end;
    assert_eq!(
        image.btf_bytes().expect_err("it is gone").to_string(),
        format!(
            "bad kernel image {}: truncated: its BTF ends at byte {end}, and it has 4; copy or \
             build it again",
            path.display()
        )
    );
}

#[test]
fn the_hosts_kernel_is_found_where_distributions_put_it() {
    let bench = Bench::new();
    let kernels = bench.kernels();
    let found = |root: &str| kernels.host_below("host", &bench.path(root), "7.2.13+made");
    let debian = bench.write("debian/boot/vmlinuz-7.2.13+made", made_bzimage(&Made::default()));
    assert_eq!(found("debian").expect("found").bzimage(), Some(debian.as_path()));
    let modules = "fedora/usr/lib/modules/7.2.13+made";
    let fedora = bench.write(&format!("{modules}/vmlinuz"), made_bzimage(&Made::default()));
    let config = bench.write(&format!("{modules}/config"), config("7.2.13"));
    let image = found("fedora").expect("found");
    assert_eq!((image.bzimage(), &image.config), (Some(fedora.as_path()), &Some(config)));

    let root = bench.path("container");
    let text = found("container").expect_err("there is none").to_string();
    assert_eq!(
        text,
        format!(
            "cannot use the kernel of this machine (7.2.13+made): no image at \
             {0}/boot/vmlinuz-7.2.13+made, {0}/usr/lib/modules/7.2.13+made/vmlinuz, \
             {0}/lib/modules/7.2.13+made/vmlinuz, {0}/lib/modules/7.2.13+made/build/vmlinux, \
             {0}/usr/lib/debug/boot/vmlinux-7.2.13+made, {0}/boot/vmlinux-7.2.13+made; give the \
             path of its vmlinuz, or use `debian:7.2` to fetch a kernel",
            root.display()
        )
    );
    let denied = std::io::Error::from_raw_os_error(libc::EACCES);
    let error = KernelError::HostImage {
        release: "7.2".into(),
        tried: vec![("/boot/vmlinuz-7.2".into(), denied)],
    };
    assert_eq!(
        error.to_string(),
        "cannot use the kernel of this machine (7.2): /boot/vmlinuz-7.2 is there but may not be \
         read (`sudo chmod a+r /boot/vmlinuz-7.2` allows it); give the path of its vmlinuz, or \
         use `debian:7.2` to fetch a kernel"
    );
}

#[test]
fn an_unreadable_file_is_an_error_with_a_remedy() {
    let denied = std::io::Error::from_raw_os_error(libc::EACCES);
    assert_eq!(
        KernelError::Read { path: "/boot/vmlinuz".into(), cause: denied }.to_string(),
        "cannot read /boot/vmlinuz: Permission denied; make it readable (`sudo chmod a+r`)"
    );
}

/// A Debian archive in a directory, and the tools to reach it: the machine's own, except that
/// `apt-config` says that this archive is the machine's source.
struct Archive {
    bench: Bench,
    /// Records of the suites.
    packages: Vec<(&'static str, String)>,
    tools: Tools,
}

impl Archive {
    fn new() -> Self {
        let bench = Bench::new();
        let root = bench.path("debian");
        let line = format!("deb [trusted=yes] file:{} bookworm main\n", root.display());
        let list = bench.write("sources.list", line);
        let script = format!("#!/bin/sh\necho \"LIST='{}'\"\necho \"PARTS=''\"\n", list.display());
        let config = bench.write("apt-config", script);
        fs::set_permissions(&config, fs::Permissions::from_mode(0o755)).expect("executable");
        let tools = Tools { apt_config: config, ..Tools::default() };
        let mut archive = Archive { bench, packages: Vec::new(), tools };
        for suite in ["bookworm", "sid", "trixie-backports", "experimental", "bookworm-backports"] {
            archive.packages.push((suite, String::new()));
        }
        archive
    }

    /// Builds a package with those files, and lists it in `suite` with the digest `sha256`, or
    /// its true one.
    fn add(
        &mut self,
        suite: &str,
        name: &str,
        version: &str,
        depends: &str,
        files: &[(String, Vec<u8>)],
    ) {
        let tree = format!("tree/{name}");
        let fields = format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n{depends}");
        let control = format!("{fields}Maintainer: nobody <n@b.invalid>\nDescription: made\n");
        self.bench.write(&format!("{tree}/DEBIAN/control"), &control);
        for (path, bytes) in files {
            self.bench.write(&format!("{tree}/{path}"), bytes);
        }
        let pool = format!("pool/{name}_{version}_amd64.deb");
        let deb = self.bench.write(&format!("debian/{pool}"), "");
        let status = Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Znone", "--build"])
            .args([self.bench.path(&tree), deb.clone()])
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.expect("dpkg-deb runs").success());
        let bytes = fs::read(deb).expect("built");
        let (size, digest) = (bytes.len(), sha256(&bytes));
        let record = format!("{control}Filename: {pool}\nSize: {size}\nSHA256: {digest}\n\n");
        let suite = self.packages.iter_mut().find(|(name, _)| *name == suite);
        suite.expect("a suite").1.push_str(&record);
    }

    /// A kernel in the newer packaging.
    fn add_new(&mut self, suite: &str, release: &'static str, version: &str, made: &Made) {
        let modules = format!("usr/lib/modules/{release}");
        let base = format!("linux-base-{release}");
        let upstream = version.split('-').next().expect("a part");
        let config = (format!("{modules}/config"), config(upstream).into_bytes());
        self.add(suite, &base, version, "", &[config]);
        let depends = format!("Depends: {base} (= {version})\n");
        let vmlinuz = made_bzimage(&Made { release, btf: made.btf.clone(), ..*made });
        for (name, file) in [("", "vmlinuz"), ("unsigned-", "vmlinuz.unsigned")] {
            let name = format!("linux-binary-{name}{release}");
            let file = (format!("{modules}/{file}"), vmlinuz.clone());
            self.add(suite, &name, version, &depends, &[file]);
        }
        let depends = format!("Depends: linux-binary-{release} (= {version})\n");
        self.add(suite, &format!("linux-image-{release}"), version, &depends, &[]);
    }

    /// A kernel in the older packaging.
    fn add_old(&mut self, suite: &str, release: &'static str, version: &str) {
        let made = Made { release, btf: Some(btf(&["rq"])), ..Made::default() };
        let files = [
            (format!("boot/config-{release}"), config("6.12.111").into_bytes()),
            (format!("boot/vmlinuz-{release}"), made_bzimage(&made)),
            (format!("lib/modules/{release}/kernel/a.ko"), vec![7; 500_000]),
        ];
        self.add(suite, &format!("linux-image-{release}"), version, "", &files);
    }

    /// Writes the suites' lists.
    fn publish(&self) {
        for (suite, packages) in &self.packages {
            let list = "main/binary-amd64/Packages";
            self.bench.write(&format!("debian/dists/{suite}/{list}"), packages);
            let release = format!(
                "Origin: made\nSuite: {suite}\nCodename: {suite}\nComponents: main\n\
                 Architectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n\
                 SHA256:\n {} {} {list}\n",
                sha256(packages.as_bytes()),
                packages.len()
            );
            self.bench.write(&format!("debian/dists/{suite}/Release"), release);
        }
    }

    fn standard() -> Self {
        let mut archive = Archive::new();
        archive.add_old("bookworm", "6.12.111+deb12-cloud-amd64", "6.12.111-1");
        archive.add_new("sid", "7.2.13+deb14-cloud-amd64", "7.2.13-1", &Made::default());
        archive.add_new("sid", "7.2.9+deb14-cloud-amd64", "7.2.9-1", &Made::default());
        archive.add_new("experimental", "7.3-cloud-amd64", "7.3~rc7-1~exp1", &Made::default());
        archive.publish();
        archive
    }

    fn resolve_with(
        &self,
        spec: &str,
        refresh: bool,
        progress: &dyn Progress,
    ) -> Result<KernelImage, KernelError> {
        Kernels::new(&self.bench.cache, progress)
            .with_tools(self.tools.clone())
            .refreshed(refresh)
            .resolve(spec)
    }

    fn resolve(&self, spec: &str) -> KernelImage {
        self.resolve_with(spec, false, &Silent).unwrap_or_else(|error| panic!("{spec}: {error}"))
    }

    fn error(&self, spec: &str) -> String {
        self.resolve_with(spec, false, &Silent).expect_err("refused").to_string()
    }

    /// The same cache, and nothing that could fetch.
    fn offline(&self, spec: &str) -> Result<KernelImage, KernelError> {
        let gone = |name: &str| PathBuf::from("/nowhere").join(name);
        let tools = Tools {
            apt_get: gone("apt-get"),
            apt_cache: gone("apt-cache"),
            apt_config: gone("apt-config"),
            dpkg_deb: gone("dpkg-deb"),
        };
        Kernels::new(&self.bench.cache, &Silent).with_tools(tools).resolve(spec)
    }
}

#[test]
fn kernels_of_both_packagings_are_fetched_once_with_their_configuration() {
    let archive = Archive::standard();
    for (spec, package, upstream, sched_ext) in [
        ("debian:7.2", "linux-binary-7.2.13+deb14-cloud-amd64 7.2.13-1", "7.2.13", true),
        ("debian:7.2.9", "linux-binary-7.2.9+deb14-cloud-amd64 7.2.9-1", "7.2.9", true),
        ("debian:7.3", "linux-binary-7.3-cloud-amd64 7.3~rc7-1~exp1", "7.3~rc7", true),
        ("debian:6.12", "linux-image-6.12.111+deb12-cloud-amd64 6.12.111-1", "6.12.111", false),
    ] {
        let image = archive.resolve(spec);
        assert_eq!(image.spec, spec);
        assert_eq!(image.package.as_deref(), Some(package));
        assert!(package.contains(&image.release), "{}", image.release);
        assert_eq!(image.has_sched_ext(), sched_ext);
        let found = fs::read_to_string(image.config.as_ref().expect("a configuration"));
        assert_eq!(found.expect("readable"), config(upstream));
        let bzimage = image.bzimage().expect("a bzImage");
        assert!(fs::metadata(bzimage).expect("there").len() > 0);
        assert_eq!(archive.offline(spec).expect("from the cache alone"), image);
    }
    let downloads = fs::read_dir(archive.bench.cache.path().join("apt/download"));
    assert_eq!(downloads.expect("it is there").count(), 0, "packages stay");

    let cached = archive.bench.kernels().cached().expect("listed");
    let specs: Vec<_> = cached.iter().map(|kernel| kernel.spec.as_str()).collect();
    assert_eq!(
        specs,
        [
            "debian:7.3-cloud-amd64",
            "debian:7.2.13+deb14-cloud-amd64",
            "debian:7.2.9+deb14-cloud-amd64",
            "debian:6.12.111+deb12-cloud-amd64"
        ]
    );
    for spec in specs {
        archive.offline(spec).expect("its own spec finds it");
    }
    // Of what is cached, the newest release with sched_ext.
    assert_eq!(archive.offline("auto").expect("cached").release, "7.2.13+deb14-cloud-amd64");
}

#[test]
fn a_kernel_whose_configuration_has_left_the_archive_is_fetched_without() {
    let mut archive = Archive::new();
    let release = "7.0.13+deb13-cloud-amd64";
    let made = Made { release, ..Made::default() };
    let file = (format!("usr/lib/modules/{release}/vmlinuz"), made_bzimage(&made));
    let depends = format!("Depends: linux-base-{release} (= 7.0.13-1)\n");
    archive.add("sid", &format!("linux-binary-{release}"), "7.0.13-1", &depends, &[file]);
    archive.publish();
    let steps = Steps::default();
    let image = archive.resolve_with("debian:7.0", false, &steps).expect("fetched");
    assert_eq!((image.release.as_str(), image.config), (release, None));
    let last = steps.take().pop();
    assert_eq!(last, Some(format!("the configuration of {release} is no longer there")));
}

#[test]
fn auto_fetches_the_newest_release() {
    let archive = Archive::standard();
    assert_eq!(archive.resolve("auto").release, "7.2.13+deb14-cloud-amd64");
}

#[test]
fn a_refresh_finds_what_is_new_and_downloads_nothing_twice() {
    let mut archive = Archive::standard();
    let steps = Steps::default();
    archive.resolve_with("debian:7.2", false, &steps).expect("fetched");
    let asking = "asking the Debian archive which kernels there are";
    let [asked, fetching, unpacking] = &steps.take()[..] else { panic!("three steps") };
    assert_eq!(asked, asking);
    assert_eq!(fetching, "fetching linux-binary-7.2.13+deb14-cloud-amd64 7.2.13-1 (0.0 MB)");
    assert_eq!(unpacking, "unpacking 7.2.13+deb14-cloud-amd64");
    archive.resolve_with("debian:7.2", true, &steps).expect("there is nothing newer");
    assert_eq!(steps.take(), [asking]);

    archive.add_new("sid", "7.2.14+deb14-cloud-amd64", "7.2.14-1", &Made::default());
    archive.publish();
    archive.resolve_with("debian:7.2", false, &steps).expect("the cached one does");
    assert!(steps.take().is_empty());
    let image = archive.resolve_with("debian:7.2", true, &steps).expect("fetched");
    assert_eq!(image.release, "7.2.14+deb14-cloud-amd64");
    // Recent lists do, unless something is not in them.
    archive.resolve_with("debian:7.3", false, &steps).expect("fetched");
    assert!(!steps.take()[3..].contains(&asking.to_owned()));
    archive.add_new("sid", "7.4.1+deb14-cloud-amd64", "7.4.1-1", &Made::default());
    archive.publish();
    assert_eq!(archive.resolve("debian:7.4").release, "7.4.1+deb14-cloud-amd64");
}

#[test]
fn concurrent_fetches_wait_for_each_other() {
    let archive = Archive::standard();
    let steps = Steps::default();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| archive.resolve_with("debian:7.2", false, &steps)))
            .collect();
        for fetch in fetches {
            let image = fetch.join().expect("no panic").expect("fetched");
            assert_eq!(image.release, "7.2.13+deb14-cloud-amd64");
        }
    });
    let steps = steps.take();
    let count = |begin: &str| steps.iter().filter(|step| step.starts_with(begin)).count();
    assert_eq!((count("asking"), count("fetching")), (1, 1), "{steps:?}");
}

#[test]
fn an_unknown_series_lists_those_that_there_are() {
    let archive = Archive::standard();
    let error = archive.resolve_with("debian:7.9", false, &Silent).expect_err("there is none");
    assert!(error.is_bad_usage());
    assert_eq!(
        error.to_string(),
        "no Debian kernel `7.9`: there are 7.3, 7.2, 6.12; use one of them, such as `debian:7.3`, \
         or ask the archive again with `cryoscope kernel fetch --refresh`"
    );
    let empty = Archive::new();
    empty.publish();
    assert_eq!(
        empty.error("debian:7.2"),
        "no Debian kernel `7.2`: none at all are listed by the Debian archive; `--refresh` asks it \
         again"
    );
}

#[test]
fn a_suite_that_is_gone_matters_only_to_those_who_need_it() {
    let archive = Archive::standard();
    fs::remove_dir_all(archive.bench.path("debian/dists/trixie-backports")).expect("removed");
    assert_eq!(archive.resolve("debian:7.2").release, "7.2.13+deb14-cloud-amd64");
    let text = archive.error("debian:7.9");
    assert!(
        text.starts_with(
            "cannot get the package lists of the Debian archive: apt-get failed (exit"
        ),
        "{text}"
    );
    assert!(
        text.ends_with(
            "\ncheck that `apt-get update` works on this machine, or give the path of a kernel"
        ),
        "{text}"
    );
}

#[test]
fn a_machine_without_network_is_told_so() {
    let archive = Archive::standard();
    // The port that discards: nobody listens there.
    let line = "deb [trusted=yes] http://127.0.0.1:9/debian bookworm main\n";
    archive.bench.write("sources.list", line);
    let text = archive.error("debian:7.2");
    let begin =
        "cannot get the package lists of the Debian archive: apt-get failed (exit status: 100)";
    let end = "\ncheck the network connection (`apt-get update` has to work on this machine); \
               kernels that `cryoscope kernel list` shows need none";
    assert!(text.starts_with(begin) && text.ends_with(end), "{text}");
}

#[test]
fn a_package_that_is_not_what_the_index_says_is_refused() {
    let archive = Archive::standard();
    let pool = "debian/pool/linux-binary-7.2.13+deb14-cloud-amd64_7.2.13-1_amd64.deb";
    let mut bytes = fs::read(archive.bench.path(pool)).expect("there");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    archive.bench.write(pool, bytes);
    let text = archive.error("debian:7.2");
    assert!(
        text.starts_with(
            "cannot fetch linux-binary-7.2.13+deb14-cloud-amd64 7.2.13-1: apt-get failed"
        ),
        "{text}"
    );
    assert!(archive.bench.cache.list("kernels").expect("listed").is_empty());
}

#[test]
fn a_package_without_a_kernel_is_refused() {
    let mut archive = Archive::new();
    let file = ("boot/System.map-7.2".to_owned(), vec![1]);
    archive.add("sid", "linux-image-7.2-amd64", "7.2-1", "", &[file]);
    archive.publish();
    assert_eq!(
        archive.error("debian:7.2"),
        "bad package linux-image-7.2-amd64 7.2-1: there is no vmlinuz in it; fetch it again with \
         `--refresh`, or pin another version"
    );
}

#[test]
fn a_machine_without_apt_is_told_what_else_there_is() {
    let archive = Archive::new();
    assert_eq!(
        archive.offline("debian:7.2").expect_err("nothing can fetch").to_string(),
        "cannot fetch `debian:7.2`: `/nowhere/apt-config` is not on this machine (No such file or \
         directory); Debian kernels are fetched with apt and dpkg: run this on Debian, or give the \
         path of a vmlinuz, a vmlinux or a build tree"
    );
}

#[test]
fn a_machine_without_a_debian_source_is_told_to_add_one() {
    let archive = Archive::standard();
    let list = archive.bench.write("sources.list", "deb http://third.invalid/x stable other\n");
    assert_eq!(
        archive.error("debian:7.2"),
        format!(
            "cannot fetch `debian:7.2`: no Debian archive among this machine's apt sources (looked \
             in {}); add one (a `deb` line with a Debian suite and the component `main`), or give \
             the path of a kernel",
            list.display()
        )
    );
}

#[test]
fn a_cache_that_cannot_be_written_stops_a_fetch_before_it_begins() {
    let archive = Archive::standard();
    let file = archive.bench.write("file", "");
    let cache = CacheDir::at(file.join("cache"));
    let error = Kernels::new(&cache, &Silent).with_tools(archive.tools.clone());
    let error = error.resolve("debian:7.2").expect_err("not writable").to_string();
    assert!(error.starts_with("the cache directory is not writable: "), "{error}");
    let vmlinuz = archive.bench.write("vmlinuz", made_bzimage(&Made::default()));
    let error = resolve(vmlinuz.to_str().expect("UTF-8"), &cache, &Silent);
    let error = error.expect_err("not writable").to_string();
    assert!(error.starts_with("the cache directory is not writable: "), "{error}");
}

#[test]
fn what_an_interrupted_fetch_has_left_is_swept() {
    let archive = Archive::standard();
    archive.bench.write("cache/apt/download/linux-binary-7.2.13_1_amd64.deb", "left");
    archive.resolve("debian:7.2");
    let left = fs::read_dir(archive.bench.path("cache/apt/download")).expect("there").count();
    assert_eq!(left, 0);
}

/// What `fuzz/` starts from: an unpacked kernel, a packed one of each kind, and their types.
#[test]
#[ignore = "writes files: cargo test --lib -- --ignored seeds_of_fuzzing"]
fn seeds_of_fuzzing() {
    let dir = |kind: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(kind);
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    let whole = elf(&Made::default());
    fs::write(dir("kernel").join("vmlinux"), &whole).unwrap();
    let kinds = [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("xz", Compression::Xz),
        ("lz4", Compression::Lz4),
    ];
    for (name, kind) in kinds {
        let image = bzimage("7.2.13+made", &pack(&whole, kind));
        fs::write(dir("kernel").join(format!("vmlinuz-{name}")), image).unwrap();
    }
    fs::write(dir("btf").join("small"), btf(&["task_struct", "sched_ext_ops"])).unwrap();
}
