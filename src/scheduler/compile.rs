//! From a `.bpf.c` to an object, through the cache.
//!
//! An object is found again without running the compiler. What made it is in two places: what
//! is known before compiling (source path, flags, compiler, kernel types) names a group of
//! entries; which files were read, with their digests, is in each entry's manifest and is held
//! against the files of today. A header that appears where the compiler looks before it finds
//! today's one is not noticed, as in other compiler caches. Where there is no compiler, what any
//! compiler made of the very same files will do: a cache can be carried to such a machine.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::btf::Btf;
use crate::child::command_dying_with_parent;
use crate::kernel::cache::{sha256, sha256_of_parts};
use crate::kernel::{CacheDir, KernelImage};

use super::clang::{Clang, Toolchain};
use super::{SchedulerError, SchedulerSpec, vmlinux};
use crate::words::plain;

/// The header that every source can include beside `vmlinux.h`.
const HEADER: &str = include_str!("cryoscope.bpf.h");

/// Objects and their manifests.
const OBJECTS: &str = "schedulers";

/// Entries that are kept of one source: its author edits it all day.
const KEPT: usize = 8;

/// The longest a compilation may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Bytes of the compiler's words that are kept.
const MAX_LOG: u64 = 256 << 10;

/// The largest object.
const MAX_OBJECT: u64 = 64 << 20;

/// An object and what the compiler had to say of its source.
#[derive(Debug)]
pub(super) struct Compiled {
    pub object: Arc<[u8]>,
    /// Warnings, as the compiler wrote them.
    pub log: String,
}

/// What is stored beside an object.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// Every file that was read, our own headers excepted: absolute path and SHA-256.
    files: Vec<(PathBuf, String)>,
    /// Name of the object in the same area.
    object: String,
    log: String,
}

/// Compiles `src`, or finds the object that an earlier run made of the same.
pub(super) fn compile(
    src: &Path,
    spec: &SchedulerSpec,
    kernel: &KernelImage,
    cache: &CacheDir,
    tools: &Toolchain,
) -> Result<Compiled, SchedulerError> {
    let clang = tools.clang()?;
    let headers = headers(kernel, cache)?;
    let args = arguments(src, spec, &headers);
    let group = group(&args)?;
    let key = match &clang {
        Some(clang) => format!("{group}-{}", &sha256(clang.identity.as_bytes())[..16]),
        None => group,
    };
    if let Some(found) = find(cache, &key) {
        return Ok(found);
    }
    let clang = clang.ok_or_else(|| SchedulerError::NoClang { src: src.to_owned() })?;
    let job = Job { src, clang, args, headers, cache };
    // One at a time: cells that start together want the same object.
    let _lock = cache.lock("compile", || {})?;
    if let Some(found) = find(cache, &key) {
        return Ok(found);
    }
    job.clang.version()?;
    job.run(&key)
}

/// What is known before the compiler runs, but for the compiler itself.
fn group(args: &[OsString]) -> Result<String, SchedulerError> {
    let here = std::env::current_dir().map_err(|e| SchedulerError::read(Path::new("."), e))?;
    let mut parts = vec![here.as_os_str().as_bytes()];
    parts.extend(args.iter().map(|arg| arg.as_bytes()));
    Ok(sha256_of_parts(&parts)[..32].to_owned())
}

/// An entry whose files are all as they were.
fn find(cache: &CacheDir, key: &str) -> Option<Compiled> {
    let mut digests = HashMap::new();
    let mut digest = |path: &Path| -> Option<String> {
        let known = digests.entry(path.to_owned());
        known.or_insert_with(|| fs::read(path).ok().map(|bytes| sha256(&bytes))).clone()
    };
    for name in entries(cache, key) {
        let bytes = fs::read(cache.entry(OBJECTS, &name)).ok()?;
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { continue };
        let same = |(path, was): &(PathBuf, String)| digest(path).as_ref() == Some(was);
        if !manifest.files.iter().all(same) {
            continue;
        }
        let component = Path::new(&manifest.object).file_name()?.to_str()?;
        if let Ok(object) = fs::read(cache.entry(OBJECTS, component)) {
            return Some(Compiled { object: object.into(), log: manifest.log });
        }
    }
    None
}

/// Manifests of this key.
fn entries(cache: &CacheDir, key: &str) -> Vec<String> {
    let all = cache.list(OBJECTS).unwrap_or_default();
    let ours = |name: &String| name.starts_with(key) && name.ends_with(".json");
    all.into_iter().filter(ours).collect()
}

/// The directory with `vmlinux.h` for that kernel and our own header, made if it is not there.
fn headers(kernel: &KernelImage, cache: &CacheDir) -> Result<PathBuf, SchedulerError> {
    let raw = kernel.btf_bytes()?;
    let parts = [raw.as_slice(), vmlinux::GENERATOR.as_bytes(), HEADER.as_bytes()];
    let area = format!("headers-{}", &sha256_of_parts(&parts)[..32]);
    if cache.find(&area, "vmlinux.h").is_none() {
        let release = &kernel.release;
        let btf = Btf::parse(&raw)
            .map_err(|source| SchedulerError::KernelBtf { release: release.clone(), source })?;
        let text = vmlinux::generate(&btf)
            .map_err(|source| SchedulerError::Header { release: release.clone(), source })?;
        cache.put(&area, "vmlinux.h", text.as_bytes())?;
    }
    if cache.find(&area, "cryoscope.bpf.h").is_none() {
        cache.put(&area, "cryoscope.bpf.h", HEADER.as_bytes())?;
    }
    Ok(cache.path().join(area))
}

/// Everything on the command line but the compiler, the source and the output.
fn arguments(src: &Path, spec: &SchedulerSpec, headers: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "--target=bpf",
        "-mcpu=v3",
        "-g",
        "-O2",
        "-std=gnu11",
        "-Wall",
        "-Wno-compare-distinct-pointer-types",
        "-Wno-unused-function",
        "-D__TARGET_ARCH_x86",
    ]
    .map(OsString::from)
    .to_vec();
    args.extend(spec.defines.iter().map(|define| OsString::from(format!("-D{define}"))));
    let mut include = |flag: &str, dir: &Path| {
        args.push(flag.into());
        args.push(dir.into());
    };
    for dir in &spec.include {
        include("-I", &spec.base_dir.join(dir));
    }
    // Ours come after the author's, who may bring a vmlinux.h.
    include("-I", headers);
    // Where distributions keep what <linux/*.h> includes; clang looks there only for targets
    // that it knows to be Linux.
    for dir in ["/usr/include/x86_64-linux-gnu", "/usr/include"].map(Path::new) {
        if dir.is_dir() {
            include("-idirafter", dir);
        }
    }
    args.push("-c".into());
    args.push(src.into());
    args
}

struct Job<'a> {
    src: &'a Path,
    clang: Clang,
    args: Vec<OsString>,
    headers: PathBuf,
    cache: &'a CacheDir,
}

impl Job<'_> {
    fn run(&self, key: &str) -> Result<Compiled, SchedulerError> {
        let io = |cause| SchedulerError::BadClang {
            path: self.clang.path.clone(),
            cause: format!("cannot run it: {cause}"),
        };
        let memory = |name| memory_file(name).map_err(|e| io(plain(&e)));
        // The three standard descriptors are files in memory, so nothing temporary has a name
        // that could be left behind. The dependencies go to the first: the compiler does not
        // read its input.
        let (deps, object, log) = (memory("deps")?, memory("object")?, memory("log")?);
        let stdio = |file: &File| file.try_clone().map(Stdio::from).map_err(|e| io(plain(&e)));
        let mut command = Command::new(&self.clang.path);
        command
            .args(&self.args)
            .args(["-MD", "-MT", "object", "-MF", "/proc/self/fd/0", "-o", "-"])
            .stdin(stdio(&deps)?)
            .stdout(stdio(&object)?)
            .stderr(stdio(&log)?);
        // What would change the result without being on the command line.
        for name in ["CPATH", "C_INCLUDE_PATH", "CCC_OVERRIDE_OPTIONS"] {
            command.env_remove(name);
        }
        let started = SystemTime::now();
        let mut child = command_dying_with_parent(command).spawn().map_err(|e| io(plain(&e)))?;
        let status = wait(&mut child, DEADLINE).map_err(|e| io(plain(&e)))?;
        let Some(status) = status else {
            return Err(SchedulerError::CompileTimeout {
                src: self.src.to_owned(),
                seconds: DEADLINE.as_secs(),
                command: self.command(),
            });
        };
        let contents = |file, max| contents(file, max).map_err(|e| io(plain(&e)));
        let log = String::from_utf8_lossy(&contents(log, MAX_LOG)?).into_owned();
        if let Some(how) = ended(status) {
            // The compiler's crash, or lack of memory: not what it was given.
            return Err(SchedulerError::ClangDied { path: self.clang.path.clone(), how, log });
        }
        if !status.success() {
            return Err(self.failed(log));
        }
        let object = contents(object, MAX_OBJECT)?;
        let deps = contents(deps, MAX_LOG)?;
        self.store(key, started, (&object, &deps), &log)?;
        Ok(Compiled { object: object.into(), log })
    }

    fn failed(&self, log: String) -> SchedulerError {
        SchedulerError::Compile { src: self.src.to_owned(), log, command: self.command() }
    }

    /// The command for a shell, without what only we need.
    fn command(&self) -> String {
        let program = [self.clang.path.as_os_str()];
        let words = program.into_iter().chain(self.args.iter().map(OsString::as_os_str));
        let quoted: Vec<String> = words.map(quoted).collect();
        format!("{} -o /dev/null", quoted.join(" "))
    }

    fn store(
        &self,
        key: &str,
        started: SystemTime,
        (object, deps): (&[u8], &[u8]),
        log: &str,
    ) -> Result<(), SchedulerError> {
        let mut files = Vec::new();
        for path in dependencies(deps) {
            if path.starts_with(&self.headers) {
                continue;
            }
            let path = std::path::absolute(&path).unwrap_or(path);
            let bytes = fs::read(&path).map_err(|e| SchedulerError::read(&path, e))?;
            let saved = fs::metadata(&path).and_then(|meta| meta.modified());
            if saved.is_ok_and(|saved| saved >= started) {
                // Which of its texts was compiled cannot be told.
                return Ok(());
            }
            files.push((path, sha256(&bytes)));
        }
        if files.is_empty() {
            // Nothing could ever show that the entry is stale.
            return Ok(());
        }
        let name = format!("{key}-{}", &sha256(object)[..32]);
        let manifest = Manifest { files, object: format!("{name}.o"), log: log.to_owned() };
        let json = serde_json::to_vec(&manifest).expect("plain data");
        let entry = format!("{key}-{}.json", &sha256(&json)[..32]);
        self.cache.put(OBJECTS, &manifest.object, object)?;
        self.cache.put(OBJECTS, &entry, &json)?;
        self.prune(key);
        Ok(())
    }

    /// Drops the oldest entries of this key. A reader that comes too late compiles again.
    fn prune(&self, key: &str) {
        let age = |name: &String| {
            let meta = self.cache.entry(OBJECTS, name).metadata();
            meta.and_then(|m| m.modified()).ok()
        };
        let mut entries = entries(self.cache, key);
        entries.sort_by_key(age);
        let surplus = entries.len().saturating_sub(KEPT);
        for name in &entries[..surplus] {
            let _ = self.cache.remove(OBJECTS, name);
        }
        let used: Vec<String> = entries[surplus..]
            .iter()
            .filter_map(|name| fs::read(self.cache.entry(OBJECTS, name)).ok())
            .filter_map(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok())
            .map(|manifest| manifest.object)
            .collect();
        let all = self.cache.list(OBJECTS).unwrap_or_default();
        for name in all.iter().filter(|n| n.starts_with(key) && n.ends_with(".o")) {
            if !used.contains(name) {
                let _ = self.cache.remove(OBJECTS, name);
            }
        }
    }
}

fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?))
}

fn contents(mut file: File, max: u64) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits for the end of `child`; kills it and gives `None` when it takes longer than `limit`.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let until = Instant::now() + limit;
    let pid = Pid::from_child(child);
    let ended = (|| -> std::io::Result<bool> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    })();
    match ended {
        Ok(true) => child.wait().map(Some),
        otherwise => {
            child.kill()?;
            child.wait()?;
            otherwise.map(|_| None)
        }
    }
}

/// How it ended, when its own words may not say so.
fn ended(status: ExitStatus) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    status.signal().map(|signal| format!("was killed by signal {signal}"))
}

/// The files in a dependency file as compilers write them for make.
fn dependencies(text: &[u8]) -> Vec<PathBuf> {
    let start = text.windows(2).position(|w| w == b": ").map_or(text.len(), |at| at + 2);
    let mut out = Vec::new();
    let mut word = Vec::new();
    let mut bytes = text[start..].iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(b'\n')) => {
                bytes.next();
                out.push(std::mem::take(&mut word));
            }
            (b'\\', Some(&next @ (b' ' | b'#'))) | (b'$', Some(&next @ b'$')) => {
                bytes.next();
                word.push(next);
            }
            (b' ' | b'\n', _) => out.push(std::mem::take(&mut word)),
            _ => word.push(byte),
        }
    }
    out.push(word);
    let paths = out.into_iter().filter(|word| !word.is_empty());
    paths.map(|word| PathBuf::from(OsStr::from_bytes(&word))).collect()
}

/// A word for a shell.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_files_are_read_with_their_escapes() {
        let text =
            b"object: /a/fifo.bpf.c /with\\ space/x.h \\\n  /hash\\#.h /dollar$$.h \\\n /b.h\n";
        let paths = ["/a/fifo.bpf.c", "/with space/x.h", "/hash#.h", "/dollar$.h", "/b.h"];
        assert_eq!(dependencies(text), paths.map(PathBuf::from));
        assert!(dependencies(b"").is_empty());
        assert!(dependencies(b"object:\n").is_empty());
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted(OsStr::new("-I/usr/include")), "-I/usr/include");
        assert_eq!(quoted(OsStr::new("-DX=\"a b\"")), "'-DX=\"a b\"'");
        assert_eq!(quoted(OsStr::new("it's")), "'it'\\''s'");
        assert_eq!(quoted(OsStr::new("")), "''");
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep runs");
        assert!(wait(&mut child, Duration::from_millis(20)).expect("waited").is_none());
        let mut child = Command::new("true").spawn().expect("true runs");
        let status = wait(&mut child, Duration::from_secs(60)).expect("waited");
        assert!(status.expect("it ended").success());
    }
}
