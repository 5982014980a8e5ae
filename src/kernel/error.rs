//! What can go wrong with a kernel, each with its cause and its remedy.

use std::io;
use std::path::PathBuf;

use super::cache::CacheError;
use super::image::ImageError;
use crate::words::plain;

/// Why a kernel cannot be had. The text is complete and for the user.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The spec is neither a keyword nor a file.
    #[error("bad kernel `{spec}`: {reason}; {}", allowed(nearest.as_deref()))]
    BadSpec {
        /// As it was written.
        spec: String,
        /// What is wrong with it.
        reason: String,
        /// A spec that may have been meant.
        nearest: Option<String>,
    },
    /// The path leads nowhere.
    #[error(
        "no such kernel: {}: no such file or directory; check the path, or use `debian:7.2` to \
         fetch one", path.display()
    )]
    NoSuchFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is no kernel that can be used.
    #[error("bad kernel image {}: {fault}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ImageError,
    },
    /// The kernel carries no type information.
    #[error(
        "kernel {release} ({spec}) has no BTF, from which cryoscope reads the kernel's types; \
         use one that was built with CONFIG_DEBUG_INFO_BTF=y, such as `debian:7.2`"
    )]
    NoBtf {
        /// As asked for.
        spec: String,
        /// As `uname -r` prints it.
        release: String,
    },
    /// The kernel cannot run sched_ext schedulers, and one was asked for.
    #[error(
        "kernel {release} ({spec}) has no sched_ext, so it cannot run a scheduler; use one that \
         was built with CONFIG_SCHED_CLASS_EXT=y, such as `debian:7.2`, or the scheduler `none`"
    )]
    NoSchedExt {
        /// As asked for.
        spec: String,
        /// As `uname -r` prints it.
        release: String,
    },
    /// A directory without a kernel.
    #[error(
        "no kernel in {}: it has neither vmlinux nor arch/x86/boot/bzImage nor vmlinuz; build the \
         tree (`make`), or give the path of a kernel", dir.display()
    )]
    NoKernelInDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// The image of the running kernel is nowhere to be read.
    #[error(
        "cannot use the kernel of this machine ({release}): {}; give the path of its vmlinuz, or \
         use `debian:7.2` to fetch a kernel",
        not_at(tried)
    )]
    HostImage {
        /// As `uname -r` prints it.
        release: String,
        /// Where it was looked for, and what was there.
        tried: Vec<(PathBuf, io::Error)>,
    },
    /// Debian has no kernel of that series now.
    #[error("no Debian kernel `{series}`: {}", available_text(available))]
    UnknownSeries {
        /// As asked for.
        series: String,
        /// Series that there are, nearest first.
        available: Vec<String>,
    },
    /// The programs that fetch and unpack packages are missing.
    #[error(
        "cannot fetch `{spec}`: `{program}` is not on this machine ({}); Debian kernels are \
         fetched with apt and dpkg: run this on Debian, or give the path of a vmlinuz, a vmlinux \
         or a build tree",
        plain(cause)
    )]
    NoApt {
        /// What was to be fetched.
        spec: String,
        /// The program.
        program: PathBuf,
        /// Why it did not start.
        cause: io::Error,
    },
    /// The machine's apt knows no Debian archive.
    #[error(
        "cannot fetch `{spec}`: no Debian archive among this machine's apt sources ({}); add one \
         (a `deb` line with a Debian suite and the component `main`), or give the path of a kernel",
        looked_in(files)
    )]
    NoDebianSource {
        /// What was to be fetched.
        spec: String,
        /// The files that were read.
        files: Vec<PathBuf>,
    },
    /// apt or dpkg-deb failed.
    #[error("cannot {action}: {program} failed ({status}){}\n{remedy}", indented(log))]
    Apt {
        /// What was being done, completing "cannot …".
        action: String,
        /// The program that failed.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        log: String,
        /// What to do.
        remedy: String,
    },
    /// A package is not what it should be.
    #[error(
        "bad package {package}: {reason}; fetch it again with `--refresh`, or pin another version"
    )]
    Package {
        /// Its name.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file could not be read.
    #[error("cannot read {}: {}{}", path.display(), plain(cause), read_remedy(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl KernelError {
    /// Whether the user asked for something that cannot be, rather than something that failed:
    /// then the exit code is that of bad usage.
    #[must_use]
    pub fn is_bad_usage(&self) -> bool {
        use KernelError as E;
        matches!(self, E::BadSpec { .. } | E::NoSuchFile { .. } | E::UnknownSeries { .. })
    }
}

fn allowed(nearest: Option<&str>) -> String {
    let allowed = "a kernel is `auto`, `host`, `debian:SERIES` (such as `debian:7.2`), or the \
                   path of a vmlinuz, a vmlinux or a build tree";
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`? ({allowed})"),
        None => allowed.to_owned(),
    }
}

fn available_text(available: &[String]) -> String {
    match available.split_first() {
        None => "none at all are listed by the Debian archive; `--refresh` asks it again".into(),
        Some((nearest, _)) => format!(
            "there are {}; use one of them, such as `debian:{nearest}`, or ask the archive again \
             with `cryoscope kernel fetch --refresh`",
            available.join(", ")
        ),
    }
}

fn not_at(tried: &[(PathBuf, io::Error)]) -> String {
    let denied = tried.iter().find(|(_, e)| e.kind() == io::ErrorKind::PermissionDenied);
    if let Some((path, _)) = denied {
        return format!(
            "{} is there but may not be read (`sudo chmod a+r {0}` allows it)",
            path.display()
        );
    }
    let paths: Vec<_> = tried.iter().map(|(path, _)| path.display().to_string()).collect();
    format!("no image at {}", paths.join(", "))
}

fn looked_in(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "there are none".into();
    }
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    format!("looked in {}", files.join(", "))
}

fn indented(log: &str) -> String {
    log.lines().map(|line| format!("\n  {line}")).collect()
}

fn read_remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "; make it readable (`sudo chmod a+r`)",
        _ => "",
    }
}
