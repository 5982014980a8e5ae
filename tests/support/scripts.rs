//! `cryoscope run` in an outer guest, as a user has it there: the program, its agent, scripts, and
//! the cache with the schedulers that the scripts ask for, compiled here, since the guest has no
//! compiler.
//!
//! What was compiled is found again by the names of its files, so these have to be the same in
//! both places. They may lie where the guest has something of its own (`/tmp`): so they are staged
//! below [`INNER`], and bound to their places by [`run`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cryoscope::kernel::{CacheDir, KernelImage};
use cryoscope::scheduler::{self, NONE, SchedulerSpec, Toolchain};
use cryoscope::vm::initramfs::{Initramfs, InitramfsError};

use super::outer::INNER;
use super::{agent, project};

const PROGRAM: &str = "/inner/bin/cryoscope";

/// What of the project scripts need.
const SHARED: [&str; 3] = ["scripts", "examples", "tests/schedulers"];

/// Where the guest's copy of a path lies until it is bound to its place.
fn copy_of(path: &Path) -> String {
    format!("{INNER}/root{}", path.display())
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Where kernels lie in the guest.
pub fn kernel_in_guest(image: &KernelImage) -> String {
    format!("{INNER}/vmlinux-{}", image.release)
}

/// Puts everything there that [`run`] needs to run the scripts in `scripts/` on those kernels.
pub fn stage(fs: &mut Initramfs, images: &[&KernelImage]) -> Result<(), InitramfsError> {
    fs.elf(Path::new(env!("CARGO_BIN_EXE_cryoscope")), PROGRAM)?;
    fs.elf(agent(), &format!("{PROGRAM}-agent"))?;
    for image in images {
        fs.file(image.elf(), &kernel_in_guest(image), 0o644)?;
    }
    for path in SHARED.iter().flat_map(|dir| files(&project(dir))) {
        fs.file(&path, &copy_of(&path), 0o644)?;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let cache = CacheDir::at(dir.path().join("cryoscope"));
    let mut headers = BTreeSet::from(["/usr/include".to_owned()]);
    for script in files(&project("scripts")) {
        for image in images.iter().filter(|_| script.extension().is_some_and(|e| e == "rhai")) {
            compile(&script, image, &cache, &mut headers);
        }
    }
    for path in files(dir.path()) {
        fs.file(&path, &copy_of(&path), 0o644)?;
    }
    for header in headers {
        let path = Path::new(&header);
        if path.is_dir() {
            // The compiler is told to look there, which is part of what it was told.
            fs.dir(&header, 0o755)?;
        } else if !path.starts_with(project("")) {
            fs.file(path, &header, 0o644)?;
        }
    }
    fs.bytes(&format!("{INNER}/cache"), dir.path().as_os_str().as_encoded_bytes(), 0o644)
}

/// Compiles the schedulers of a script into a cache; notes what else was read for that.
fn compile(script: &Path, image: &KernelImage, cache: &CacheDir, read: &mut BTreeSet<String>) {
    let tools = Toolchain::new(None, std::env::var_os("PATH"));
    let decls = cryoscope::script::collect(script).unwrap_or_else(|e| panic!("{e}"));
    for decl in decls {
        let asked = decl.options.scheduler.clone();
        if asked.src == NONE {
            continue;
        }
        let spec = SchedulerSpec {
            src: asked.src,
            rodata: asked.rodata,
            include: asked.include.into_iter().map(Into::into).collect(),
            defines: asked.defines,
            base_dir: decl.base_dir().to_owned(),
            ..Default::default()
        };
        scheduler::prepare(&spec, image, cache, &tools).unwrap_or_else(|e| panic!("{e}"));
    }
    for path in files(&cache.path().join("schedulers")) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let manifest: serde_json::Value = serde_json::from_str(&text).expect("a manifest");
        let files = manifest["files"].as_array().expect("files").iter();
        read.extend(files.filter_map(|file| file[0].as_str().map(str::to_owned)));
    }
    let more = Some("/usr/include/x86_64-linux-gnu").filter(|dir| Path::new(dir).is_dir());
    read.extend(more.map(str::to_owned));
}

/// In the guest: `cryoscope run` with these arguments, its output being ours. Whether all passed.
pub fn run(args: &[String]) -> bool {
    let cache = fs::read_to_string(format!("{INNER}/cache")).expect("the cache's place");
    let mut shared: Vec<PathBuf> = SHARED.iter().map(|dir| project(dir)).collect();
    shared.push(cache.clone().into());
    for path in shared.iter().filter(|path| !path.is_dir()) {
        fs::create_dir_all(path).expect("a place");
        rustix::mount::mount_bind(copy_of(path), path).unwrap_or_else(|e| panic!("{e}"));
    }
    let mut command = Command::new(PROGRAM);
    command.arg("run").args(args).current_dir(project(""));
    command.env("XDG_CACHE_HOME", cache).env("PATH", "/bin").stdin(Stdio::null());
    command.status().unwrap_or_else(|e| panic!("{PROGRAM}: {e}")).success()
}
