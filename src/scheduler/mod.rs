//! A scheduler spec becomes files to stage and a plan to attach them.
//!
//! ```text
//! SchedulerSpec ─▶ .bpf.c ──compile (clang, vmlinux.h, cache)──▶ object ──▶ Prepared: files,
//!                  .bpf.o ─────────────────────────────────────▶ object ──▶ AttachPlan::Object
//!                  executable ────────────────────────────────────────────▶ AttachPlan::Program
//!                  none ──────────────────────────────────────────────────▶ no plan
//! ```
//!
//! Nothing is loaded here: the kernel's verifier has its word in the guest. What can be told
//! before is told before: a source that does not compile, an object without a scheduler in it, a
//! variable that is not there, a program for another machine.

mod clang;
mod compile;
mod error;
mod form;
mod object;
#[cfg(test)]
mod tests;
mod values;
pub mod vmlinux;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::btf::{Btf, Kind, Shape};
use crate::kernel::{CacheDir, KernelImage};
use crate::words::plain;

pub use clang::{Clang, OLDEST as OLDEST_CLANG, Toolchain};
pub use error::SchedulerError;

use form::Form;
use object::{BpfObject, Variable};

/// The source that stands for the kernel's own scheduler.
pub const NONE: &str = "none";

/// Where a scheduler's files are in the guest.
const GUEST_DIR: &str = "/scheduler";

/// The largest source or object that is read.
const MAX_FILE: u64 = 64 << 20;

/// A scheduler as an author asks for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulerSpec {
    /// Path of a `.bpf.c`, a `.bpf.o` or an executable, or [`NONE`].
    pub src: String,
    /// First values for variables, by name or by path into them (`"cfg.weights[2]"`): numbers,
    /// booleans, names of enumerators, text for arrays of characters, arrays, and maps for
    /// structs. For sources and objects.
    pub rodata: BTreeMap<String, serde_json::Value>,
    /// Arguments, for executables.
    pub args: Vec<String>,
    /// Directories to search for headers, for sources.
    pub include: Vec<PathBuf>,
    /// `NAME` or `NAME=VALUE`, for sources.
    pub defines: Vec<String>,
    /// Further files that it needs: on the host, in the guest.
    pub staged: Vec<(PathBuf, String)>,
    /// Environment variables, for executables.
    pub env: Vec<(String, String)>,
    /// What relative paths start from: the script's directory.
    pub base_dir: PathBuf,
}

/// A scheduler, ready to go into a guest.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What to call it: `fifo` for `fifo.bpf.c`; `none`.
    pub name: String,
    /// How to bring it up; `None` when there is nothing to bring up.
    pub attach: Option<AttachPlan>,
    /// What has to be in the guest.
    pub files: Vec<StagedFile>,
    /// The BPF object, where it is known.
    pub object: Option<Arc<[u8]>>,
    /// What the compiler had to say though it compiled: warnings.
    pub log: String,
}

/// How the agent brings a scheduler up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachPlan {
    /// It loads and attaches an object itself.
    Object {
        /// Where the object is.
        guest_path: String,
        /// First values of variables.
        patches: Vec<Patch>,
    },
    /// It starts a program.
    Program {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the environment.
        env: Vec<(String, String)>,
    },
}

/// Bytes to put into a section of an object before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// ELF section, as in `.rodata`.
    pub section: String,
    /// Bytes from the section's start.
    pub offset: u32,
    /// What to put there.
    pub bytes: Vec<u8>,
}

/// A file to put into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedFile {
    /// Where its contents are.
    pub contents: Contents,
    /// Absolute path in the guest.
    pub guest: String,
    /// Permission bits.
    pub mode: u32,
    /// Whether it is a program whose loader and libraries have to come along.
    pub closure: bool,
}

/// Contents of a [`StagedFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A file of the host.
    Host(PathBuf),
    /// These bytes.
    Bytes(Arc<[u8]>),
}

/// Makes a scheduler ready for a kernel: compiles it, checks it, encodes its options.
///
/// # Errors
/// [`SchedulerError`], with cause and remedy.
pub fn prepare(
    spec: &SchedulerSpec,
    kernel: &KernelImage,
    cache: &CacheDir,
    tools: &Toolchain,
) -> Result<Prepared, SchedulerError> {
    if spec.src == NONE {
        let form = Form::None;
        form.check_options(spec)?;
        let files = staged(spec)?;
        let name = NONE.to_owned();
        return Ok(Prepared { name, attach: None, files, object: None, log: String::new() });
    }
    let src = spec.base_dir.join(&spec.src);
    let form = Form::of(&src)?;
    form.check_options(spec)?;
    kernel.require_sched_ext()?;
    let mut prepared = match form {
        Form::Source => {
            let compiled = compile::compile(&src, spec, kernel, cache, tools)?;
            let mut prepared = from_object(&src, spec, kernel, compiled.object)?;
            prepared.log = compiled.log;
            prepared
        }
        Form::Object => from_object(&src, spec, kernel, read(&src)?.into())?,
        _ => from_program(&src, spec),
    };
    // libbpf reads it there: for an object whose programs ask for values of the configuration,
    // and for whatever a program loads.
    if let Some(config) = &kernel.config {
        prepared.files.push(StagedFile {
            contents: Contents::Host(config.clone()),
            guest: format!("/boot/config-{}", kernel.release),
            mode: 0o644,
            closure: false,
        });
    }
    prepared.files.extend(staged(spec)?);
    Ok(prepared)
}

fn read(path: &Path) -> Result<Vec<u8>, SchedulerError> {
    let fail = |e| SchedulerError::read(path, e);
    let file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(SchedulerError::TooLarge { path: path.to_owned(), size, max: MAX_FILE });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// `fifo` for `fifo.bpf.c` and `fifo.bpf.o`.
fn name_of(src: &Path) -> String {
    let name = src.file_name().unwrap_or_default().to_string_lossy();
    let short = [".bpf.c", ".bpf.o"].iter().find_map(|end| name.strip_suffix(end));
    short.unwrap_or(&name).to_owned()
}

fn from_object(
    src: &Path,
    spec: &SchedulerSpec,
    kernel: &KernelImage,
    bytes: Arc<[u8]>,
) -> Result<Prepared, SchedulerError> {
    let object = BpfObject::parse(src, &bytes)?;
    if object.uses_kconfig && kernel.config.is_none() {
        let release = kernel.release.clone();
        return Err(SchedulerError::NoConfig { path: object.path, release });
    }
    let mut patches = constants(&object, kernel)?;
    // Later ones win, so an author can say otherwise.
    for (name, value) in &spec.rodata {
        patches.extend(values::patches(&object, name, value)?);
    }
    let name = name_of(src);
    // libbpf names the maps of sections after the file.
    let guest_path = format!("{GUEST_DIR}/{name}.bpf.o");
    let file = StagedFile {
        contents: Contents::Bytes(bytes.clone()),
        guest: guest_path.clone(),
        mode: 0o644,
        closure: false,
    };
    let attach = Some(AttachPlan::Object { guest_path, patches });
    Ok(Prepared { name, attach, files: vec![file], object: Some(bytes), log: String::new() })
}

/// Values for the constants that the headers of the scx project keep in variables (`__SCX_X`
/// for `SCX_X`), for their loaders to fill in from the kernel. Constants that the kernel does not
/// have stay zero, which is what those headers expect.
fn constants(object: &BpfObject, kernel: &KernelImage) -> Result<Vec<Patch>, SchedulerError> {
    let wanted: Vec<_> = object
        .variables
        .iter()
        .filter(|v| v.section == ".rodata" && object.btf.size_of(v.ty) == Some(8))
        .filter_map(|v| Some((v, v.name.strip_prefix("__").filter(|n| n.starts_with("SCX_"))?)))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let damaged = |source| SchedulerError::KernelBtf { release: kernel.release.clone(), source };
    let btf = Btf::parse(&kernel.btf_bytes()?).map_err(damaged)?;
    let mut known = HashMap::new();
    for id in 1..btf.len() {
        if matches!(btf.kind(id), Some(Kind::Enum | Kind::Enum64))
            && let Shape::Enum(e) = &*btf.shape(id).map_err(damaged)?
        {
            let ours = e.variants.iter().filter(|(name, _)| name.starts_with("SCX_"));
            known.extend(ours.map(|(name, value)| (name.clone(), *value)));
        }
    }
    let patch = |(variable, constant): (&Variable, &str)| {
        let bytes = known.get(constant)?.to_le_bytes()[..8].to_vec();
        let section = variable.section.clone();
        Some(Patch { section, offset: variable.offset, bytes })
    };
    Ok(wanted.into_iter().filter_map(patch).collect())
}

fn from_program(src: &Path, spec: &SchedulerSpec) -> Prepared {
    let name = name_of(src);
    let guest = format!("{GUEST_DIR}/{name}");
    let argv = std::iter::once(guest.clone()).chain(spec.args.iter().cloned()).collect();
    let contents = Contents::Host(src.to_owned());
    let file = StagedFile { contents, guest, mode: 0o755, closure: true };
    let attach = Some(AttachPlan::Program { argv, env: spec.env.clone() });
    Prepared { name, attach, files: vec![file], object: None, log: String::new() }
}

fn staged(spec: &SchedulerSpec) -> Result<Vec<StagedFile>, SchedulerError> {
    spec.staged.iter().map(|(host, guest)| stage(&spec.base_dir.join(host), guest)).collect()
}

/// A file that an author names: a program comes with its libraries, everything else as it is.
///
/// # Errors
/// [`SchedulerError::Staged`]: it cannot be read, or `guest` is no absolute path.
pub fn stage(host: &Path, guest: &str) -> Result<StagedFile, SchedulerError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |cause: String| SchedulerError::Staged { path: host.to_owned(), cause };
    let meta = host.metadata().map_err(|e| fail(plain(&e)))?;
    if !meta.is_file() {
        return Err(fail("it is not a file".into()));
    }
    if !guest.starts_with('/') {
        return Err(fail(format!("{guest:?} is no absolute path in the guest")));
    }
    let executable = clang::is_executable(host);
    let mut head = [0; 4];
    let elf = executable
        && File::open(host).and_then(|mut f| f.read_exact(&mut head)).is_ok()
        && head == *form::ELF_MAGIC;
    Ok(StagedFile {
        contents: Contents::Host(host.to_owned()),
        guest: guest.to_owned(),
        mode: meta.permissions().mode() & 0o777,
        closure: elf,
    })
}
