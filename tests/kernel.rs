//! Real kernels, through this machine's own apt. The cache is the one that the program uses, so
//! that nothing is fetched twice.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels, Spec, Tools};

fn cache() -> CacheDir {
    let env = std::env::var_os;
    CacheDir::locate(env("XDG_CACHE_HOME"), env("HOME")).expect("a place for the cache")
}

/// Programs that are not there: whoever asks one of them fails.
fn nothing_fetches() -> Tools {
    let gone = |name: &str| PathBuf::from("/nowhere").join(name);
    Tools {
        apt_get: gone("apt-get"),
        apt_cache: gone("apt-cache"),
        apt_config: gone("apt-config"),
        dpkg_deb: gone("dpkg-deb"),
    }
}

fn check(spec: &str, image: &KernelImage) {
    let Ok(Spec::Debian(series)) = Spec::parse(spec) else { panic!("{spec} is a Debian spec") };
    let series = series.as_str();
    assert!(image.release.starts_with(&format!("{series}.")), "{}", image.release);
    assert!(image.release.ends_with("-cloud-amd64"), "{}", image.release);
    assert!(image.facts.has_pvh && !image.facts.has_symtab, "a stock kernel");

    let btf = image.btf_bytes().expect("BTF");
    assert!(btf.starts_with(&[0x9f, 0xeb]) && btf.len() > 1 << 20, "{} bytes", btf.len());
    let elf = fs::read(image.elf()).expect("the ELF is there");
    assert!(elf.starts_with(b"\x7fELF") && elf.len() as u64 == image.facts.size);
    let bzimage = fs::read(image.bzimage().expect("a bzImage")).expect("the bzImage is there");
    assert_eq!(&bzimage[0x202..0x206], b"HdrS");

    let config = image.config.as_ref().expect("a configuration");
    let config = fs::read_to_string(config).expect("it can be read");
    assert!(config.contains("\nCONFIG_DEBUG_INFO_BTF=y\n"));
    let says = config.contains("\nCONFIG_SCHED_CLASS_EXT=y\n");
    assert_eq!(image.has_sched_ext(), says, "BTF and configuration agree");
}

#[test]
fn debian_kernels_are_fetched_and_then_need_no_network() {
    let cache = cache();
    let progress = Printed::to_stderr();
    for (spec, sched_ext) in [("debian:7.2", true), ("debian:7.3", true), ("debian:6.12", false)] {
        let fetched = Kernels::new(&cache, &progress).resolve(spec);
        let fetched = fetched.unwrap_or_else(|error| panic!("{spec}: {error}"));
        check(spec, &fetched);
        assert_eq!(fetched.has_sched_ext(), sched_ext, "{spec}");
        assert_eq!(fetched.require_sched_ext().is_ok(), sched_ext, "{spec}");

        let offline = Kernels::new(&cache, &progress).with_tools(nothing_fetches());
        assert_eq!(offline.resolve(spec).expect("from the cache alone"), fetched);
    }
    // What was fetched is also found by path, with its configuration's absence as the difference.
    let offline = Kernels::new(&cache, &progress).with_tools(nothing_fetches());
    let auto = offline.resolve("auto").expect("one with sched_ext is cached");
    assert!(auto.has_sched_ext());
    let path = auto.bzimage().expect("a bzImage").to_str().expect("UTF-8");
    let by_path = offline.resolve(path).expect("the same image");
    assert_eq!((by_path.release, by_path.vmlinux), (auto.release, auto.vmlinux));
}

#[test]
fn a_real_image_that_was_cut_is_refused_wherever_it_was_cut() {
    let cache = cache();
    let progress = Printed::to_stderr();
    let image = Kernels::new(&cache, &progress).resolve("debian:6.12").expect("fetched");
    let dir = tempfile::tempdir().expect("a directory");
    let elsewhere = CacheDir::at(dir.path().join("cache"));
    let kernels = Kernels::new(&elsewhere, &progress).with_tools(nothing_fetches());
    for (whole, name) in
        [(image.bzimage().expect("a bzImage"), "vmlinuz"), (image.elf(), "vmlinux")]
    {
        let bytes = fs::read(whole).expect("it is there");
        for part in [10, 50, 90] {
            let cut = dir.path().join(format!("{name}-{part}"));
            fs::write(&cut, &bytes[..bytes.len() / 100 * part]).expect("written");
            let error = kernels.resolve(cut.to_str().expect("UTF-8")).expect_err("it is cut");
            let text = error.to_string();
            let begin = format!("bad kernel image {}: truncated: its ", cut.display());
            assert!(text.starts_with(&begin), "{text}");
            assert!(text.ends_with("; copy or build it again"), "{text}");
        }
    }
    assert!(elsewhere.list("kernels").expect("listed").is_empty(), "nothing is left");
}

/// Set for the process that runs inside a small file system.
const SMALL_DISK: &str = "CRYOSCOPE_TEST_SMALL_DISK";

#[test]
fn a_disk_that_fills_while_unpacking_is_named_and_nothing_is_left() {
    if let Some(vmlinuz) = std::env::var_os(SMALL_DISK) {
        return on_a_small_disk(&PathBuf::from(vmlinuz));
    }
    let progress = Printed::to_stderr();
    let image = Kernels::new(&cache(), &progress).resolve("debian:6.12").expect("fetched");
    let dir = tempfile::tempdir().expect("a directory");
    let mount = format!("mount -t tmpfs -o size=20m none {} && exec \"$@\"", dir.path().display());
    let myself = std::env::current_exe().expect("known");
    let inside = |program: &std::path::Path, args: &[&str]| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
            .arg(program)
            .args(args)
            .env(SMALL_DISK, image.bzimage().expect("a bzImage"))
            .env("XDG_CACHE_HOME", dir.path())
            .output()
    };
    if !inside("true".as_ref(), &[]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this machine lets nobody mount a file system of their own");
        return;
    }
    let name = "a_disk_that_fills_while_unpacking_is_named_and_nothing_is_left";
    let output = inside(&myself, &["--exact", name, "--nocapture"]).expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let ran = String::from_utf8_lossy(&output.stdout);
    assert!(ran.contains("1 passed"), "{ran}");
}

fn on_a_small_disk(vmlinuz: &std::path::Path) {
    let cache = cache();
    let progress = Printed::to_stderr();
    let error = Kernels::new(&cache, &progress).resolve(vmlinuz.to_str().expect("UTF-8"));
    let text = error.expect_err("20 MB hold no kernel").to_string();
    let root = cache.path().display().to_string();
    let begin = format!("disk full: No space left on device while writing {root}/kernels/");
    let end = format!(
        ".vmlinux; free some space there (everything below {root} can be deleted and is made anew \
         when needed), or set XDG_CACHE_HOME to a directory on a larger disk"
    );
    assert!(text.starts_with(&begin) && text.ends_with(&end), "{text}");
    let left = fs::read_dir(cache.path().join("kernels")).expect("it was made").count();
    assert_eq!(left, 0);
}
