//! The guest's root file system: a cpio archive in the "newc" format, which the kernel unpacks
//! into memory before it starts `/init` (kernel: `Documentation/driver-api/early-userspace/
//! buffer-format.rst`, `init/initramfs.c`).
//!
//! ```no_run
//! # use cryoscope::vm::initramfs::Initramfs;
//! # use std::path::Path;
//! let mut fs = Initramfs::new();
//! fs.agent(Path::new("target/release/cryoscope-agent"))?;
//! fs.elf(Path::new("/usr/bin/stress-ng"), "/bin/stress-ng")?;
//! fs.bytes("/etc/motd", b"frozen".as_slice(), 0o644)?;
//! let archive = fs.build()?;
//! # Ok::<(), cryoscope::vm::initramfs::InitramfsError>(())
//! ```
//!
//! The same input gives the same bytes: entries are sorted, times are zero, owners are root.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};

use super::closure::{LibraryDirs, closure, read};
use crate::words::plain;

/// What an archive may hold in all; a guest's memory is seldom larger.
const MAX_ARCHIVE: u64 = 1 << 30;
const MAX_ENTRIES: usize = 100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Why something cannot be staged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// The path cannot be one in the guest.
    #[error("cannot stage \"{path}\" in the guest: {reason}")]
    Path {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two different things at one path.
    #[error("two different files are to be staged at {path} in the guest: {first} and {second}")]
    Conflict {
        /// The guest path.
        path: String,
        /// What was there first.
        first: String,
        /// What came second.
        second: String,
    },
    /// The host's file cannot be read.
    #[error("cannot read {path} to stage it in the guest: {}", plain(source))]
    Read {
        /// On the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Meant to be a program, but is none.
    #[error(
        "{path} is {what}; only ELF programs can be staged with their libraries, other files are staged as they are"
    )]
    NotElf {
        /// On the host.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// A program for another machine.
    #[error("{path} is built for {what}; the guest runs x86-64 programs")]
    ForeignElf {
        /// On the host.
        path: PathBuf,
        /// For what it is built.
        what: String,
    },
    /// An ELF file that contradicts itself.
    #[error("{path} is a damaged ELF file: {reason}")]
    Damaged {
        /// On the host.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A library that a program needs is not on the host.
    #[error(
        "{needed_by} needs the library {library}, which is in none of: {}; install it, or set \
         the program's RUNPATH to where it is",
        listed(searched)
    )]
    MissingLibrary {
        /// Its name in the program's own table.
        library: String,
        /// The program or library that needs it.
        needed_by: PathBuf,
        /// Directories where it is not.
        searched: Vec<PathBuf>,
    },
    /// More than a guest can hold.
    #[error("{what} has {size} bytes, more than can be staged in a guest")]
    TooBig {
        /// A file, or the archive.
        what: String,
        /// Its size in bytes.
        size: u64,
    },
}

fn listed(dirs: &[PathBuf]) -> String {
    let mut shown: Vec<String> = Vec::new();
    for dir in dirs.iter().map(|d| d.display().to_string()) {
        if !shown.contains(&dir) {
            shown.push(dir);
        }
    }
    if shown.is_empty() { "the host's files".into() } else { shown.join(", ") }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir { mode: u32 },
    File { mode: u32, bytes: Arc<[u8]> },
    Symlink { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

#[derive(Clone, Debug)]
struct Entry {
    node: Node,
    /// Where it comes from, for messages.
    from: String,
    /// Libraries yield to what was staged by name.
    library: bool,
}

/// Collects files and writes them as an archive.
#[derive(Clone, Debug)]
pub struct Initramfs {
    /// By guest path without the leading `/`: parents sort before what they hold.
    entries: BTreeMap<String, Entry>,
    dirs: LibraryDirs,
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Initramfs {
    /// The directories that the agent mounts over, and `/dev/console`, without which the kernel
    /// starts `/init` with no standard streams.
    #[must_use]
    pub fn new() -> Self {
        let mut fs = Initramfs { entries: BTreeMap::new(), dirs: LibraryDirs::of_host() };
        for dir in ["dev", "etc", "proc", "run", "sys", "tmp"] {
            fs.preset(dir, Node::Dir { mode: 0o755 });
        }
        fs.preset("dev/console", Node::CharDevice { mode: 0o600, major: 5, minor: 1 });
        fs.preset("dev/null", Node::CharDevice { mode: 0o666, major: 1, minor: 3 });
        fs
    }

    fn preset(&mut self, path: &str, node: Node) {
        let from = "the guest's own tree".into();
        self.entries.insert(path.into(), Entry { node, from, library: false });
    }

    /// The agent as `/init`, with its libraries and without its debug information.
    ///
    /// # Errors
    /// [`InitramfsError`]: it is no x86-64 program, or a library of it is missing.
    pub fn agent(&mut self, host: &Path) -> Result<(), InitramfsError> {
        for (index, needed) in closure(host, "/init", &self.dirs)?.into_iter().enumerate() {
            let bytes = if index == 0 { strip(host, &needed.bytes)? } else { needed.bytes };
            self.add(&needed.guest, file(0o755, bytes), &needed.host, index > 0)?;
        }
        Ok(())
    }

    /// A program of the host, with the loader and every library it needs.
    ///
    /// # Errors
    /// [`InitramfsError`]: it is no x86-64 program, a library is missing, the path is taken.
    pub fn elf(&mut self, host: &Path, guest: &str) -> Result<(), InitramfsError> {
        for (index, needed) in closure(host, guest, &self.dirs)?.into_iter().enumerate() {
            self.add(&needed.guest, file(0o755, needed.bytes), &needed.host, index > 0)?;
        }
        Ok(())
    }

    /// A file of the host, as it is.
    ///
    /// # Errors
    /// [`InitramfsError`]: it cannot be read, or the path is taken.
    pub fn file(&mut self, host: &Path, guest: &str, mode: u32) -> Result<(), InitramfsError> {
        self.add(guest, file(mode, read(host)?), host, false)
    }

    /// A file with these contents.
    ///
    /// # Errors
    /// [`InitramfsError`] when the path is bad or taken.
    pub fn bytes(
        &mut self,
        guest: &str,
        bytes: impl Into<Arc<[u8]>>,
        mode: u32,
    ) -> Result<(), InitramfsError> {
        self.add(guest, file(mode, bytes.into()), Path::new("generated contents"), false)
    }

    /// A directory; those above any entry are made without asking.
    ///
    /// # Errors
    /// [`InitramfsError`] when the path is bad or is taken by something else.
    pub fn dir(&mut self, guest: &str, mode: u32) -> Result<(), InitramfsError> {
        self.add(guest, Node::Dir { mode: mode & 0o7777 }, Path::new("a directory"), false)
    }

    /// A symbolic link that points to `target`.
    ///
    /// # Errors
    /// [`InitramfsError`] when the path is bad or taken.
    pub fn symlink(&mut self, guest: &str, target: &str) -> Result<(), InitramfsError> {
        let from = PathBuf::from(format!("a link to {target}"));
        self.add(guest, Node::Symlink { target: target.into() }, &from, false)
    }

    /// A character device.
    ///
    /// # Errors
    /// [`InitramfsError`] when the path is bad or taken.
    pub fn char_device(
        &mut self,
        guest: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), InitramfsError> {
        let node = Node::CharDevice { mode: mode & 0o7777, major, minor };
        self.add(guest, node, Path::new("a device"), false)
    }

    /// Whether something is staged at this guest path.
    #[must_use]
    pub fn contains(&self, guest: &str) -> bool {
        self.entries.contains_key(guest.trim_start_matches('/'))
    }

    /// The files, without the directories above them: path in the guest, permission bits, contents.
    pub fn files(&self) -> impl Iterator<Item = (String, u32, &Arc<[u8]>)> {
        self.entries.iter().filter_map(|(path, entry)| match &entry.node {
            Node::File { mode, bytes } => Some((format!("/{path}"), *mode, bytes)),
            _ => None,
        })
    }

    fn add(
        &mut self,
        guest: &str,
        node: Node,
        from: &Path,
        library: bool,
    ) -> Result<(), InitramfsError> {
        let path = guest_path(guest)?;
        let mut above = String::new();
        for part in path.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            above = if above.is_empty() { part.into() } else { format!("{above}/{part}") };
            let dir = || Entry {
                node: Node::Dir { mode: 0o755 },
                from: format!("a directory for {guest}"),
                library: false,
            };
            let entry = self.entries.entry(above.clone()).or_insert_with(dir);
            if !matches!(entry.node, Node::Dir { .. }) {
                let reason = format!("/{above} is already {}, not a directory", entry.from);
                return Err(InitramfsError::Path { path: guest.into(), reason });
            }
        }
        if self.entries.len() >= MAX_ENTRIES {
            let reason = format!("there are {MAX_ENTRIES} entries already");
            return Err(InitramfsError::Path { path: guest.into(), reason });
        }
        let new = Entry { node, from: from.display().to_string(), library };
        match self.entries.get_mut(&path) {
            Some(old) if old.node == new.node => old.library &= library,
            Some(old) => match (&old.node, &new.node) {
                (Node::Dir { .. }, Node::Dir { .. }) => *old = new,
                (Node::File { .. }, Node::File { .. }) if old.library && !library => *old = new,
                _ if library && !old.library => {}
                _ => {
                    return Err(InitramfsError::Conflict {
                        path: guest.into(),
                        first: old.from.clone(),
                        second: new.from,
                    });
                }
            },
            None => drop(self.entries.insert(path, new)),
        }
        Ok(())
    }

    /// The archive.
    ///
    /// # Errors
    /// [`InitramfsError::TooBig`] when it would be larger than 1 GiB.
    pub fn build(&self) -> Result<Vec<u8>, InitramfsError> {
        let size: u64 = self.entries.iter().map(|(p, e)| 120 + p.len() as u64 + e.size()).sum();
        if size > MAX_ARCHIVE {
            return Err(InitramfsError::TooBig { what: "the guest's initramfs".into(), size });
        }
        let mut out = Vec::with_capacity(size as usize + 1024);
        for (index, (path, entry)) in self.entries.iter().enumerate() {
            let ino = index as u32 + 1;
            match &entry.node {
                Node::Dir { mode } => record(&mut out, ino, S_IFDIR | mode, 2, (0, 0), path, &[]),
                Node::File { mode, bytes } => {
                    record(&mut out, ino, S_IFREG | mode, 1, (0, 0), path, bytes);
                }
                Node::Symlink { target } => {
                    record(&mut out, ino, S_IFLNK | 0o777, 1, (0, 0), path, target.as_bytes());
                }
                Node::CharDevice { mode, major, minor } => {
                    record(&mut out, ino, S_IFCHR | mode, 1, (*major, *minor), path, &[]);
                }
            }
        }
        record(&mut out, 0, 0, 1, (0, 0), "TRAILER!!!", &[]);
        Ok(out)
    }
}

impl Entry {
    fn size(&self) -> u64 {
        match &self.node {
            Node::File { bytes, .. } => bytes.len() as u64,
            Node::Symlink { target } => target.len() as u64,
            Node::Dir { .. } | Node::CharDevice { .. } => 0,
        }
    }
}

fn file(mode: u32, bytes: Arc<[u8]>) -> Node {
    Node::File { mode: mode & 0o7777, bytes }
}

/// The form that is archived: relative, without empty, `.` and `..` components.
fn guest_path(path: &str) -> Result<String, InitramfsError> {
    let bad = |reason: &str| Err(InitramfsError::Path { path: path.into(), reason: reason.into() });
    let Some(relative) = path.strip_prefix('/') else {
        return bad("a path in the guest starts with /");
    };
    if relative.len() > 1024 {
        return bad("it is longer than 1024 bytes");
    }
    if relative.contains('\0') {
        return bad("it contains a NUL byte");
    }
    let parts: Vec<&str> = relative.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        return bad("\"..\" is not allowed");
    }
    if parts.is_empty() {
        return bad("it names the root directory");
    }
    Ok(parts.join("/"))
}

fn record(
    out: &mut Vec<u8>,
    ino: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
    path: &str,
    data: &[u8],
) {
    let (size, name) = (data.len() as u32, path.len() as u32 + 1);
    let fields = [ino, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A program without its sections (symbols, debug information): what no segment loads is cut
/// off. A debug build of the agent shrinks to a tenth, and guests start that much faster.
fn strip(path: &Path, bytes: &[u8]) -> Result<Arc<[u8]>, InitramfsError> {
    let damaged = |reason: String| InitramfsError::Damaged { path: path.into(), reason };
    let header =
        elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(|e| damaged(e.to_string()))?;
    let segments =
        header.program_headers(LittleEndian, bytes).map_err(|e| damaged(e.to_string()))?;
    let table = header.e_phoff.get(LittleEndian) + size_of_val(segments) as u64;
    let ends = segments.iter().map(|s| {
        let (offset, size) = s.file_range(LittleEndian);
        offset.saturating_add(size)
    });
    let end = ends.max().unwrap_or(0).max(table);
    let kept = usize::try_from(end).ok().and_then(|end| bytes.get(..end));
    let mut kept = kept.ok_or_else(|| damaged("a segment ends beyond the file".into()))?.to_vec();
    // e_shoff, then e_shnum and e_shstrndx: no section table any more.
    kept[0x28..0x30].fill(0);
    kept[0x3c..0x40].fill(0);
    Ok(kept.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    /// A directory of the test's own, gone with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cryoscope-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unpack(archive: &[u8], into: &Path) {
        let mut cpio = Command::new("cpio")
            .args(["-i", "--quiet", "--make-directories", "--no-absolute-filenames"])
            .current_dir(into)
            .stdin(Stdio::piped())
            .spawn()
            .expect("cpio is installed");
        cpio.stdin.take().unwrap().write_all(archive).unwrap();
        assert!(cpio.wait().unwrap().success());
    }

    #[test]
    fn cpio_unpacks_what_was_staged() {
        let scratch = Scratch::new("cpio");
        let mut fs_ = Initramfs::new();
        fs_.bytes("/etc/odd", b"abcde".as_slice(), 0o640).unwrap();
        fs_.bytes("/a/b/c/empty", Vec::new(), 0o755).unwrap();
        fs_.symlink("/a/link", "b/c/empty").unwrap();
        fs_.dir("/var/deep", 0o700).unwrap();
        unpack(&fs_.build().unwrap(), &scratch.0);
        let at = |p: &str| scratch.0.join(p);
        assert_eq!(fs::read(at("etc/odd")).unwrap(), b"abcde");
        assert_eq!(fs::metadata(at("etc/odd")).unwrap().mode(), 0o100_640);
        assert_eq!(fs::metadata(at("a/b/c/empty")).unwrap().len(), 0);
        assert_eq!(fs::read_link(at("a/link")).unwrap(), Path::new("b/c/empty"));
        assert_eq!(fs::metadata(at("var/deep")).unwrap().mode(), 0o040_700);
        assert!(at("proc").is_dir());
        let console = fs::metadata(at("dev/console"));
        // Only root can unpack a device.
        if let Ok(console) = console {
            assert_eq!((console.mode(), console.rdev()), (0o020_600, 0x0501));
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let build = |order: [&str; 3]| {
            let mut fs_ = Initramfs::new();
            for path in order {
                fs_.bytes(path, path.as_bytes(), 0o644).unwrap();
            }
            fs_.build().unwrap()
        };
        assert_eq!(build(["/x", "/y/z", "/y-z"]), build(["/y-z", "/x", "/y/z"]));
    }

    #[test]
    fn a_staged_program_runs_from_the_archive_alone() {
        let scratch = Scratch::new("closure");
        let mut fs_ = Initramfs::new();
        fs_.elf(Path::new("/bin/ls"), "/tools/ls").unwrap();
        unpack(&fs_.build().unwrap(), &scratch.0);
        let program = fs::read(scratch.0.join("tools/ls")).unwrap();
        assert_eq!(program, fs::read("/bin/ls").unwrap());
        let loader = scratch.0.join("lib64/ld-linux-x86-64.so.2");
        assert!(loader.is_file(), "the loader is at the path that the program names");
        // The loader with nothing but the unpacked directories: `--inhibit-cache` and
        // `--library-path` keep it away from the host's.
        let dirs: Vec<String> =
            ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "lib"]
                .iter()
                .map(|d| scratch.0.join(d).display().to_string())
                .collect();
        let out = Command::new(loader)
            .args(["--inhibit-cache", "--library-path", &dirs.join(":"), "--list"])
            .arg(scratch.0.join("tools/ls"))
            .output()
            .unwrap();
        let listed = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{listed}{}", String::from_utf8_lossy(&out.stderr));
        let root = scratch.0.display().to_string();
        for line in listed.lines().filter(|l| l.contains("=>")) {
            assert!(line.contains(&root), "outside of the archive: {line}");
        }
        assert!(listed.contains("libc.so.6"), "{listed}");
    }

    #[test]
    fn what_cannot_be_staged_says_why() {
        let scratch = Scratch::new("bad");
        let path = |name: &str| scratch.0.join(name);
        fs::write(path("script"), "#!/usr/bin/env bash\necho\n").unwrap();
        fs::write(path("text"), "hello").unwrap();
        let mut arm = fs::read("/bin/ls").unwrap();
        arm.truncate(4096);
        arm[18] = 183;
        fs::write(path("arm"), &arm).unwrap();
        arm[18] = 62;
        arm.truncate(70);
        fs::write(path("cut"), &arm).unwrap();
        let cases = [
            ("script", "is a script for /usr/bin/env bash; only ELF programs can be staged"),
            ("text", "is not an ELF file; only ELF programs can be staged"),
            ("arm", "is built for aarch64; the guest runs x86-64 programs"),
            ("cut", "is a damaged ELF file: "),
        ];
        let error = Initramfs::new().elf(&path("absent"), "/x").unwrap_err().to_string();
        let says = "to stage it in the guest: No such file or directory";
        assert_eq!(error, format!("cannot read {} {says}", path("absent").display()));
        for (name, says) in cases {
            let error = Initramfs::new().elf(&path(name), "/x").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains(name), "{error}");
        }
        let paths = [
            ("x", "cannot stage \"x\" in the guest: a path in the guest starts with /"),
            ("/", "cannot stage \"/\" in the guest: it names the root directory"),
            ("/a/../b", "cannot stage \"/a/../b\" in the guest: \"..\" is not allowed"),
            (
                "/dev/console/x",
                "cannot stage \"/dev/console/x\" in the guest: /dev/console is already the \
                 guest's own tree, not a directory",
            ),
        ];
        for (guest, says) in paths {
            let error = Initramfs::new().bytes(guest, Vec::new(), 0o644).unwrap_err();
            assert_eq!(error.to_string(), says);
        }
    }

    #[test]
    fn one_path_holds_one_thing() {
        let mut fs_ = Initramfs::new();
        fs_.bytes("/x", b"one".as_slice(), 0o644).unwrap();
        fs_.bytes("/x", b"one".as_slice(), 0o644).unwrap();
        let error = fs_.symlink("/x", "y").unwrap_err().to_string();
        assert_eq!(
            error,
            "two different files are to be staged at /x in the guest: generated contents and \
             a link to y"
        );
    }

    #[test]
    fn what_is_staged_by_name_replaces_a_library() {
        for explicit_first in [true, false] {
            let mut fs_ = Initramfs::new();
            let loader = "/lib64/ld-linux-x86-64.so.2";
            if explicit_first {
                fs_.bytes(loader, b"mine".as_slice(), 0o755).unwrap();
                fs_.elf(Path::new("/bin/ls"), "/bin/ls").unwrap();
            } else {
                fs_.elf(Path::new("/bin/ls"), "/bin/ls").unwrap();
                fs_.bytes(loader, b"mine".as_slice(), 0o755).unwrap();
            }
            let Node::File { bytes, .. } = &fs_.entries[&loader[1..]].node else { panic!() };
            assert_eq!(&bytes[..], b"mine");
        }
    }

    #[test]
    fn a_stripped_program_still_runs() {
        let scratch = Scratch::new("strip");
        let me = std::env::current_exe().unwrap();
        let whole = read(&me).unwrap();
        let stripped = strip(&me, &whole).unwrap();
        assert!(stripped.len() < whole.len(), "{} of {}", stripped.len(), whole.len());
        let (written, path) = (scratch.0.join("written"), scratch.0.join("stripped"));
        fs::write(&written, &stripped).unwrap();
        // A child of another test may have inherited the file while it was open for writing, and
        // hold it as long as it takes to exec: such a program cannot be run. A copy made by
        // another process can.
        let copy = Command::new("install").arg(&written).arg(&path).status().unwrap();
        assert!(copy.success());
        let out = Command::new(&path).arg("--help").output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}
