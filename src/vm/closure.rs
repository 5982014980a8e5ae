//! The shared libraries that an ELF program needs, found as the dynamic loader finds them.
//!
//! A guest holds no `ld.so.cache` and no configuration: its loader looks where the files
//! themselves say (RPATH, RUNPATH) and then in the directories compiled into it. So every library
//! gets a guest path at which that loader will find it: one found through RPATH or RUNPATH goes
//! where the same entry points in the guest, one from a directory that only the host's
//! configuration names goes beside the C library.
//!
//! Libraries that a program opens by name at run time (`dlopen`) are in none of its tables and
//! must be staged by whoever knows of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use object::LittleEndian;
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use super::initramfs::InitramfsError;

type Header = elf::FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// No program that anyone stages has more libraries than this.
const MAX_OBJECTS: usize = 512;
const MAX_FILE: u64 = 512 << 20;
/// What glibc and musl builds are known to have compiled in.
const DEFAULT_DIRS: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// What `$LIB` stands for, by distribution.
const LIB_TOKENS: [&str; 3] = ["lib/x86_64-linux-gnu", "lib64", "lib"];

/// One file of a closure.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) host: PathBuf,
    pub(super) guest: String,
    pub(super) bytes: Arc<[u8]>,
}

/// Where the host keeps libraries.
#[derive(Clone, Debug)]
pub(super) struct LibraryDirs {
    /// Searched in this order when no file says otherwise.
    dirs: Vec<PathBuf>,
}

impl LibraryDirs {
    /// The directories of `/etc/ld.so.conf`, then those compiled into loaders.
    pub(super) fn of_host() -> Self {
        let mut dirs = Vec::new();
        let mut files = 64;
        read_conf(Path::new("/etc/ld.so.conf"), &mut dirs, &mut files, 4);
        dirs.extend(DEFAULT_DIRS.map(PathBuf::from));
        let mut seen = BTreeSet::new();
        dirs.retain(|d| seen.insert(d.clone()));
        LibraryDirs { dirs }
    }

    #[cfg(test)]
    pub(super) fn only(dirs: &[&Path]) -> Self {
        LibraryDirs { dirs: dirs.iter().map(|d| d.to_path_buf()).collect() }
    }

    /// The directory whose libraries the guest's loader finds by itself.
    fn home(&self) -> PathBuf {
        let has_libc = |d: &&PathBuf| d.join("libc.so.6").is_file();
        self.dirs.iter().find(has_libc).cloned().unwrap_or_else(|| PathBuf::from("/lib"))
    }
}

/// Reads one `ld.so.conf` file, following `include`. `files` bounds how many in all.
fn read_conf(path: &Path, dirs: &mut Vec<PathBuf>, files: &mut u32, depth: u32) {
    if depth == 0 || *files == 0 {
        return;
    }
    *files -= 1;
    let Ok(text) = fs::read_to_string(path) else { return };
    for line in text.lines().take(1000) {
        let line = line.split('#').next().unwrap_or("").trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            let base = path.parent().unwrap_or(Path::new("/"));
            for file in expand_glob(&base.join(pattern.trim())) {
                read_conf(&file, dirs, files, depth - 1);
            }
        } else if line.starts_with('/') {
            dirs.push(PathBuf::from(line.trim_end_matches('/')));
        }
    }
}

/// The files that a pattern with one `*` in its last component names, in order.
fn expand_glob(pattern: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(last)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str()))
    else {
        return Vec::new();
    };
    let Some((before, after)) = last.split_once('*') else {
        return vec![pattern.to_path_buf()];
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|e| {
            e.file_name().to_str().is_some_and(|n| {
                n.len() >= before.len() + after.len() && n.starts_with(before) && n.ends_with(after)
            })
        })
        .map(|e| e.path())
        .collect();
    found.sort();
    found
}

/// What one object says about itself.
struct Object {
    needed: Needed,
    soname: Option<String>,
    needs: Vec<String>,
    rpath: Vec<String>,
    runpath: Vec<String>,
    interpreter: Option<String>,
    /// Which object asked for it; the program itself has none.
    parent: Option<usize>,
}

/// `host` itself, to be at `guest`, and everything that its loader will look for.
///
/// # Errors
/// [`InitramfsError`]: not an x86-64 ELF program, damaged, or a library is missing.
pub(super) fn closure(
    host: &Path,
    guest: &str,
    dirs: &LibraryDirs,
) -> Result<Vec<Needed>, InitramfsError> {
    let needed = Needed { host: host.into(), guest: guest.into(), bytes: read(host)? };
    let program = parse(needed, None)?;
    let home = dirs.home();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut objects = Vec::new();
    let mut queue: VecDeque<(usize, String)> = VecDeque::new();
    let mut extra = None;
    if let Some(path) = &program.interpreter {
        let file = Path::new(path);
        let bytes = read(file).map_err(|_| InitramfsError::MissingLibrary {
            library: path.clone(),
            needed_by: host.into(),
            searched: vec![],
        })?;
        let loader = parse(Needed { host: file.into(), guest: path.clone(), bytes }, None)?;
        known.extend(loader.soname);
        known.extend(file.file_name().and_then(|n| n.to_str()).map(String::from));
        extra = Some(loader.needed);
    }
    queue.extend(program.needs.iter().map(|n| (0, n.clone())));
    objects.push(program);
    while let Some((by, name)) = queue.pop_front() {
        if !known.insert(name.clone()) {
            continue;
        }
        if objects.len() >= MAX_OBJECTS {
            return Err(InitramfsError::Damaged {
                path: host.into(),
                reason: format!("it needs more than {MAX_OBJECTS} libraries"),
            });
        }
        let found = find(&objects, by, &name, dirs, &home)?;
        known.extend(found.soname.clone());
        queue.extend(found.needs.iter().map(|n| (objects.len(), n.clone())));
        objects.push(found);
    }
    Ok(objects.into_iter().map(|o| o.needed).chain(extra).collect())
}

/// Searches in the loader's order: RPATH of the asking object and of those that brought it in
/// (unless it has a RUNPATH), its RUNPATH, then the directories.
fn find(
    objects: &[Object],
    by: usize,
    name: &str,
    dirs: &LibraryDirs,
    home: &Path,
) -> Result<Object, InitramfsError> {
    let asking = &objects[by];
    let missing = |searched| InitramfsError::MissingLibrary {
        library: name.into(),
        needed_by: asking.needed.host.clone(),
        searched,
    };
    let mut searched = Vec::new();
    let mut attempt = |host: PathBuf, guest: PathBuf| {
        let host_dir = host.parent().unwrap_or(Path::new("/")).to_path_buf();
        let guest = normal(&guest);
        match read(&host).map(|bytes| parse(Needed { host, guest, bytes }, Some(by))) {
            Ok(Ok(object)) => Some(object),
            // Like the loader: a library of another machine is not the one that is meant.
            _ => {
                searched.push(host_dir);
                None
            }
        }
    };
    if name.contains('/') {
        let path = Path::new(name);
        return attempt(path.into(), path.into()).ok_or_else(|| missing(searched));
    }
    let mut entries: Vec<(&Object, &String)> = Vec::new();
    if asking.runpath.is_empty() {
        let mut at = Some(by);
        while let Some(index) = at {
            let object = &objects[index];
            if object.runpath.is_empty() {
                entries.extend(object.rpath.iter().map(|e| (object, e)));
            }
            at = object.parent;
        }
    }
    entries.extend(asking.runpath.iter().map(|e| (asking, e)));
    for (owner, entry) in entries {
        for (host_dir, guest_dir) in expand(owner, entry) {
            if let Some(object) = attempt(host_dir.join(name), guest_dir.join(name)) {
                return Ok(object);
            }
        }
    }
    for dir in &dirs.dirs {
        let guest_dir = if same_but_usr(dir, home) { dir } else { home };
        if let Some(object) = attempt(dir.join(name), guest_dir.join(name)) {
            return Ok(object);
        }
    }
    Err(missing(searched))
}

/// An RPATH or RUNPATH entry as directories, on the host and in the guest.
fn expand(owner: &Object, entry: &str) -> Vec<(PathBuf, PathBuf)> {
    let lib_tokens: &[&str] =
        if entry.contains("$LIB") || entry.contains("${LIB}") { &LIB_TOKENS } else { &[""] };
    let host = fs::canonicalize(&owner.needed.host).unwrap_or_else(|_| owner.needed.host.clone());
    let origins = [&host, Path::new(&owner.needed.guest)]
        .map(|p| p.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned());
    let fill = |lib: &str, origin: &str| {
        let mut text = entry.to_owned();
        for (token, value) in [("ORIGIN", origin), ("LIB", lib), ("PLATFORM", "x86_64")] {
            text = text.replace(&format!("${{{token}}}"), value);
            text = text.replace(&format!("${token}"), value);
        }
        PathBuf::from(text)
    };
    lib_tokens
        .iter()
        .map(|lib| (fill(lib, &origins[0]), fill(lib, &origins[1])))
        .filter(|(host, guest)| host.is_absolute() && guest.is_absolute())
        .collect()
}

/// A merged `/usr` makes `/lib/x` and `/usr/lib/x` the same; loaders look in both.
fn same_but_usr(a: &Path, b: &Path) -> bool {
    let bare =
        |p: &Path| p.strip_prefix("/usr").or_else(|_| p.strip_prefix("/")).map(PathBuf::from);
    matches!((bare(a), bare(b)), (Ok(a), Ok(b)) if a == b)
}

/// `path` without `.` and `..`; what leaves the root stays in it.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    format!("/{}", parts.join("/"))
}

/// A file's bytes, bounded.
pub(super) fn read(path: &Path) -> Result<Arc<[u8]>, InitramfsError> {
    let failed = |source: std::io::Error| InitramfsError::Read { path: path.into(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(failed(std::io::Error::other("not a regular file")));
    }
    if meta.len() > MAX_FILE {
        return Err(InitramfsError::TooBig { what: path.display().to_string(), size: meta.len() });
    }
    fs::read(path).map(Arc::from).map_err(failed)
}

fn parse(needed: Needed, parent: Option<usize>) -> Result<Object, InitramfsError> {
    let bytes = Arc::clone(&needed.bytes);
    let damaged =
        |reason: &str| InitramfsError::Damaged { path: needed.host.clone(), reason: reason.into() };
    check_kind(&needed.host, &bytes)?;
    let data: &[u8] = &bytes;
    let header = Header::parse(data).map_err(|e| damaged(&e.to_string()))?;
    let segments = header.program_headers(ENDIAN, data).map_err(|e| damaged(&e.to_string()))?;
    let mut object = Object {
        needed: needed.clone(),
        soname: None,
        needs: Vec::new(),
        rpath: Vec::new(),
        runpath: Vec::new(),
        interpreter: None,
        parent,
    };
    let mut dynamic = None;
    for segment in segments {
        let interpreter = segment.interpreter(ENDIAN, data).map_err(|e| damaged(&e.to_string()))?;
        if let Some(path) = interpreter {
            object.interpreter = Some(text(path).ok_or_else(|| damaged("its loader's name"))?);
        }
        let entries = segment.dynamic(ENDIAN, data).map_err(|e| damaged(&e.to_string()))?;
        dynamic = dynamic.or(entries);
    }
    let Some(dynamic) = dynamic else { return Ok(object) };
    let tags: BTreeMap<i64, u64> = dynamic.iter().map(|d| (d.tag(ENDIAN), d.val(ENDIAN))).collect();
    let no_strings = || damaged("its dynamic string table is outside the file");
    let strings = match (tags.get(&elf::DT_STRTAB), tags.get(&elf::DT_STRSZ)) {
        (Some(&at), Some(&len)) => segments
            .iter()
            .find_map(|s| s.data_range(ENDIAN, data, at, len).ok().flatten())
            .ok_or_else(no_strings)?,
        _ => &[],
    };
    let string = |at: u64| {
        let tail = usize::try_from(at).ok().and_then(|at| strings.get(at..));
        let end = tail.and_then(|t| memchr::memchr(0, t));
        end.and_then(|end| text(&tail?[..end])).ok_or_else(no_strings)
    };
    for entry in dynamic.iter().take_while(|d| d.tag(ENDIAN) != elf::DT_NULL) {
        let value = entry.val(ENDIAN);
        match entry.tag(ENDIAN) {
            elf::DT_NEEDED => object.needs.push(string(value)?),
            elf::DT_SONAME => object.soname = Some(string(value)?),
            elf::DT_RPATH => object.rpath = list(&string(value)?),
            elf::DT_RUNPATH => object.runpath = list(&string(value)?),
            _ => {}
        }
    }
    Ok(object)
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn list(paths: &str) -> Vec<String> {
    paths.split(':').filter(|p| !p.is_empty()).map(String::from).collect()
}

/// Whether these bytes are something that an x86-64 kernel can run or its loader can load.
fn check_kind(path: &Path, bytes: &[u8]) -> Result<(), InitramfsError> {
    let not = |what: String| Err(InitramfsError::NotElf { path: path.into(), what });
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let end = line.iter().position(|b| *b == b'\n').unwrap_or(line.len()).min(80);
        let line = String::from_utf8_lossy(&line[..end]);
        return not(format!("a script for {}", line.trim()));
    }
    if !bytes.starts_with(&elf::ELFMAG) || bytes.len() < 64 {
        return not("not an ELF file".into());
    }
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let foreign = |what: String| Err(InitramfsError::ForeignElf { path: path.into(), what });
    if bytes[4] != elf::ELFCLASS64 || bytes[5] != elf::ELFDATA2LSB {
        return foreign("a 32-bit or big-endian machine".into());
    }
    match word(18) {
        m if m == elf::EM_X86_64 => {}
        m if m == elf::EM_BPF => return foreign("BPF, which the kernel loads itself".into()),
        m if m == elf::EM_AARCH64 => return foreign("aarch64".into()),
        m => return foreign(format!("ELF machine number {m}")),
    }
    match word(16) {
        t if t == elf::ET_EXEC || t == elf::ET_DYN => Ok(()),
        t => not(format!("an ELF file of type {t}, neither a program nor a shared library")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Compiles a shared library or program `name` in `dir` that needs `libs`.
    fn cc(dir: &Path, name: &str, body: &str, args: &[&str]) -> PathBuf {
        let source = dir.join(format!("{}.c", name.replace('/', "_")));
        fs::write(&source, body).unwrap();
        let out = dir.join(name);
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let done = Command::new("cc")
            .current_dir(dir)
            .arg("-o")
            .arg(&out)
            .arg(&source)
            .args(args)
            .output()
            .expect("a C compiler is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        out
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cryoscope-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Scratch(fs::canonicalize(dir).unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn guests(found: &[Needed]) -> Vec<&str> {
        found.iter().map(|n| n.guest.as_str()).collect()
    }

    #[test]
    fn runpath_moves_with_the_program_and_configured_directories_go_home() {
        let scratch = Scratch::new("runpath");
        let dir = &scratch.0;
        let shared = ["-shared", "-fPIC"];
        let deep = [&shared[..], &["-Wl,-soname,libdeep.so.1"]].concat();
        cc(dir, "conf/libdeep.so.1", "int deep(void){return 1;}", &deep);
        let near = [&shared[..], &["conf/libdeep.so.1", "-Wl,-soname,libnear.so.2"]].concat();
        let body = "int deep(void); int near_(void){return deep();}";
        cc(dir, "app/lib/libnear.so.2", body, &near);
        let program = cc(
            dir,
            "app/bin/prog",
            "int near_(void); int main(void){return near_();}",
            &[
                "app/lib/libnear.so.2",
                "-Wl,-rpath,$ORIGIN/../lib,--enable-new-dtags",
                "-Wl,--allow-shlib-undefined",
            ],
        );
        let conf = dir.join("conf");
        let home = LibraryDirs::of_host().home();
        let dirs = LibraryDirs::only(&[&home, &conf]);
        let found = closure(&program, "/opt/x/bin/prog", &dirs).unwrap();
        let guests = guests(&found);
        assert_eq!(guests[0], "/opt/x/bin/prog");
        assert!(guests.contains(&"/opt/x/lib/libnear.so.2"), "{guests:?}");
        assert!(guests.contains(&format!("{}/libc.so.6", home.display()).as_str()), "{guests:?}");
        assert!(guests.contains(&"/lib64/ld-linux-x86-64.so.2"), "{guests:?}");
        let deep = format!("{}/libdeep.so.1", home.display());
        assert!(guests.contains(&deep.as_str()), "{guests:?}");
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let scratch = Scratch::new("missing");
        let dir = &scratch.0;
        let lib = ["-shared", "-fPIC", "-Wl,-soname,libgone.so.7"];
        let path = cc(dir, "libgone.so.7", "int gone(void){return 1;}", &lib);
        let program =
            cc(dir, "prog", "int gone(void); int main(void){return gone();}", &["libgone.so.7"]);
        fs::remove_file(path).unwrap();
        let error = closure(&program, "/prog", &LibraryDirs::only(&[dir])).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{0}/prog needs the library libgone.so.7, which is in none of: {0}; install it, \
                 or set the program's RUNPATH to where it is",
                dir.display()
            )
        );
    }

    #[test]
    fn a_static_program_needs_nothing() {
        let scratch = Scratch::new("static");
        let program = cc(
            &scratch.0,
            "prog",
            "void _start(void){for(;;);}",
            &["-nostdlib", "-static", "-ffreestanding"],
        );
        let found = closure(&program, "/prog", &LibraryDirs::of_host()).unwrap();
        assert_eq!(guests(&found), ["/prog"]);
    }

    #[test]
    fn configuration_is_followed() {
        let scratch = Scratch::new("conf");
        let dir = &scratch.0;
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("ld.so.conf"), "include d/*.conf\n# none\n/last/\n").unwrap();
        fs::write(dir.join("d/b.conf"), "/b").unwrap();
        fs::write(dir.join("d/a.conf"), "/a # first\ninclude ../ld.so.conf\n").unwrap();
        fs::write(dir.join("d/c.txt"), "/c").unwrap();
        let (mut dirs, mut files) = (Vec::new(), 64);
        read_conf(&dir.join("ld.so.conf"), &mut dirs, &mut files, 2);
        assert_eq!(dirs, ["/a", "/b", "/last"].map(PathBuf::from));
    }

    #[test]
    fn damaged_files_never_panic() {
        let whole = fs::read("/bin/ls").unwrap();
        let scratch = Scratch::new("damage");
        let path = scratch.0.join("x");
        let mut state = 1u64;
        for _ in 0..300 {
            let mut bytes = whole[..20_000.min(whole.len())].to_vec();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % 1200;
                bytes[at] = (state >> 20) as u8;
            }
            let needed = Needed { host: path.clone(), guest: "/x".into(), bytes: bytes.into() };
            let _ = parse(needed, None);
        }
    }
}
