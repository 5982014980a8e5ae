//! Why a scheduler cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::btf::BtfError;
use crate::kernel::{CacheError, KernelError};
use crate::words::plain;

use super::vmlinux::HeaderError;

/// Why a scheduler cannot be made ready. Texts are complete: cause and remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// There is no such file.
    #[error(
        "no scheduler at {}{} (a relative path starts at the script's directory)",
        path.display(), did_you_mean(nearest.as_deref())
    )]
    NotFound {
        /// What was looked for.
        path: PathBuf,
        /// A file beside it that may have been meant.
        nearest: Option<String>,
    },
    /// A file of the scheduler cannot be read.
    #[error("cannot read {}: {}", path.display(), plain(cause))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// Far more than any scheduler has.
    #[error("{} is {size} bytes long, more than the {max} that a scheduler may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// It is there but is none of the forms that a scheduler has.
    #[error(
        "{} is {found}; a scheduler is a .bpf.c, a .bpf.o, an executable, or \"none\"",
        path.display()
    )]
    NotAScheduler {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// The kernel cannot run it, or its types cannot be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel's types are damaged.
    #[error("the BTF of kernel {release} is damaged: {source}")]
    KernelBtf {
        /// The kernel.
        release: String,
        /// What is wrong.
        source: BtfError,
    },
    /// No header can be written for the kernel.
    #[error("cannot write vmlinux.h for kernel {release}: {source}")]
    Header {
        /// The kernel.
        release: String,
        /// Why.
        source: HeaderError,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No compiler.
    #[error(
        "no clang to compile {} with: none called clang-N or clang is on the search path; install \
         one of version {} or later (`apt install clang-19` on Debian), or name one with \
         `--clang PATH`", src.display(), super::clang::OLDEST
    )]
    NoClang {
        /// What was to be compiled.
        src: PathBuf,
    },
    /// The compiler that was asked for is not there.
    #[error("no clang at {}: {cause}; give `--clang` the path of one", path.display())]
    NoSuchClang {
        /// As given.
        path: PathBuf,
        /// Why it cannot be used.
        cause: String,
    },
    /// The compiler does not run, or does not say what it is.
    #[error("{} is no clang that can be used: {cause}", path.display())]
    BadClang {
        /// The program.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
    /// The compiler did not come to its end.
    #[error("{} {how} while compiling; is there enough memory?{}{}", path.display(),
        if log.is_empty() { "" } else { "\n" }, log.trim_end())]
    ClangDied {
        /// The program.
        path: PathBuf,
        /// How it ended.
        how: String,
        /// What it said before.
        log: String,
    },
    /// The compiler cannot compile for sched_ext.
    #[error(
        "{} is clang {version}, too old for sched_ext: it needs {} or later; install one \
         (`apt install clang-19` on Debian), or name one with `--clang PATH`",
        path.display(), super::clang::OLDEST
    )]
    OldClang {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// The source does not compile. The compiler's own words, unchanged.
    #[error("{} does not compile:\n{}\nthe command was:\n  {command}", src.display(), log.trim_end())]
    Compile {
        /// What was compiled.
        src: PathBuf,
        /// What the compiler said.
        log: String,
        /// How to run it again.
        command: String,
    },
    /// The compiler did not end.
    #[error("compiling {} took more than {seconds} s; the command was:\n  {command}", src.display())]
    CompileTimeout {
        /// What was compiled.
        src: PathBuf,
        /// The limit.
        seconds: u64,
        /// How to run it again.
        command: String,
    },
    /// A BPF object that cannot be used.
    #[error("{} cannot be loaded: {problem}", path.display())]
    Object {
        /// The object, or the source it was made from.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A variable that is not there.
    #[error(
        "the scheduler has no variable `{name}`{}; it has {}", did_you_mean(nearest.as_deref()),
        if available.is_empty() { "none at all".into() } else { available.join(", ") }
    )]
    NoSuchVariable {
        /// As asked for.
        name: String,
        /// The one that may have been meant.
        nearest: Option<String>,
        /// All there are: name, type, section.
        available: Vec<String>,
    },
    /// A variable cannot be given that value.
    #[error("variable `{name}` is {type_name}: {problem}")]
    Value {
        /// The variable, or the part of it.
        name: String,
        /// Its type.
        type_name: String,
        /// What is wrong with the value.
        problem: String,
    },
    /// An option that this form of scheduler does not have.
    #[error("the scheduler option `{option}` is for {for_what}; {} is {is}", src.display())]
    Option {
        /// The option's name.
        option: &'static str,
        /// Where it belongs.
        for_what: &'static str,
        /// The scheduler.
        src: PathBuf,
        /// What form it has.
        is: &'static str,
    },
    /// An executable that is not marked as one.
    #[error("{0} is not executable; `chmod +x {0}` makes it so", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// An executable for another machine.
    #[error("{} is a program for {found}; the guest is {wanted}", path.display())]
    WrongArchitecture {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: String,
        /// What the guest is.
        wanted: &'static str,
    },
    /// The object needs the kernel's configuration, which is not known.
    #[error(
        "{} uses values of the kernel's configuration, and that of kernel {release} was not found; \
         put it beside the image as config-{release}, or use a kernel that has it (`debian:..`)",
        path.display()
    )]
    NoConfig {
        /// The object.
        path: PathBuf,
        /// The kernel.
        release: String,
    },
    /// Something that was to be staged with it.
    #[error("cannot stage {}: {cause}", path.display())]
    Staged {
        /// The host's file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}

impl SchedulerError {
    /// Whether the scheduler itself is at fault, so that a scenario fails rather than ends in an
    /// error: it does not compile, or is no scheduler that can be loaded.
    #[must_use]
    pub fn is_schedulers_fault(&self) -> bool {
        matches!(self, SchedulerError::Compile { .. } | SchedulerError::Object { .. })
    }

    pub(super) fn read(path: &Path, cause: io::Error) -> Self {
        SchedulerError::Read { path: path.to_owned(), cause }
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}
