//! The cache directory: entries that appear whole or not at all.
//!
//! Entries are written into an unnamed file (`O_TMPFILE`) that is given its name only when it is
//! complete and on the disk, so a process that is killed at any moment leaves nothing half-written
//! and nothing temporary. Entries never change: their names carry the digest of what made them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::words::plain;

/// Why the cache could not be used. The text is complete: what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The environment names no place for a cache.
    #[error(
        "no place for the cache: neither XDG_CACHE_HOME nor HOME names an absolute directory; \
         set XDG_CACHE_HOME to a directory that can be written"
    )]
    NoHome,
    /// The directory is not ours to write.
    #[error(
        "the cache directory is not writable: {}: {}; make it writable, or set XDG_CACHE_HOME to \
         a directory that is", path.display(), plain(cause)
    )]
    NotWritable {
        /// What could not be made or opened.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// The file system has no room (or the user no quota) for the entry.
    #[error(
        "disk full: {} while writing {}; free some space there (everything below {} can be \
         deleted and is made anew when needed), or set XDG_CACHE_HOME to a directory on a larger \
         disk", plain(cause), path.display(), root.display()
    )]
    DiskFull {
        /// The entry that did not fit.
        path: PathBuf,
        /// The cache directory.
        root: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// Any other failure of the file system.
    #[error("cannot {action} {}: {}", path.display(), plain(cause))]
    Io {
        /// What was being done, completing "cannot …".
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
    },
}

/// The directory under which everything lives that can be made anew.
///
/// Parsed once, in `main`, and passed down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDir {
    root: PathBuf,
}

impl CacheDir {
    /// A cache at `root`, which is made when the first entry is.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        CacheDir { root: root.into() }
    }

    /// Where the XDG base directory specification puts it, from the values of `XDG_CACHE_HOME`
    /// and `HOME`: `$XDG_CACHE_HOME/cryoscope`, else `$HOME/.cache/cryoscope`. Relative values are
    /// ignored, as the specification asks.
    ///
    /// # Errors
    /// [`CacheError::NoHome`] when neither names an absolute directory.
    pub fn locate(
        xdg_cache_home: Option<OsString>,
        home: Option<OsString>,
    ) -> Result<Self, CacheError> {
        let absolute =
            |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute(xdg_cache_home)
            .or_else(|| absolute(home).map(|home| home.join(".cache")))
            .ok_or(CacheError::NoHome)?;
        Ok(CacheDir::at(base.join("cryoscope")))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where the entry `name` of `area` is or would be. Both are single path components.
    #[must_use]
    pub fn entry(&self, area: &str, name: &str) -> PathBuf {
        debug_assert!(is_component(area) && is_component(name), "{area:?}/{name:?}");
        self.root.join(area).join(name)
    }

    /// The entry's path if there is one.
    #[must_use]
    pub fn find(&self, area: &str, name: &str) -> Option<PathBuf> {
        Some(self.entry(area, name)).filter(|path| path.is_file())
    }

    /// Stores `bytes` as the entry `name` of `area`. An entry that is already there stays as it
    /// is: names carry the digest of what made them.
    ///
    /// # Errors
    /// [`CacheError`]; nothing is left behind then.
    pub fn put(&self, area: &str, name: &str, bytes: &[u8]) -> Result<PathBuf, CacheError> {
        self.put_with(area, name, |file| file.write_all(bytes))
    }

    /// Like [`put`](Self::put), for contents that are produced piece by piece.
    ///
    /// # Errors
    /// [`CacheError`], which an error from `write` becomes too; nothing is left behind then.
    pub fn put_with(
        &self,
        area: &str,
        name: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<PathBuf, CacheError> {
        let path = self.entry(area, name);
        let fail = |action| {
            let path = path.clone();
            move |cause: io::Error| self.error(action, path, cause)
        };
        let dir = self.make_dir(area)?;
        let (mut file, named) =
            unnamed_file(&dir).map_err(|cause| self.error("make a file in", dir.clone(), cause))?;
        let written = write(&mut file).and_then(|()| file.sync_data());
        let given = written
            .map_err(fail("write"))
            .and_then(|()| give_name(&file, named.as_deref(), &path).map_err(fail("make")));
        if let Some(named) = named {
            // Already gone when the rename worked.
            let _ = fs::remove_file(named);
        }
        given.map(|()| path)
    }

    /// Takes an entry out; one that is not there is fine.
    ///
    /// # Errors
    /// [`CacheError`] when it is there and stays.
    pub fn remove(&self, area: &str, name: &str) -> Result<(), CacheError> {
        let path = self.entry(area, name);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(self.error("remove", path, cause))
            }
            _ => Ok(()),
        }
    }

    /// The names of the entries of `area`, in order; none when there is no such area.
    ///
    /// # Errors
    /// [`CacheError`] when the area is there but cannot be listed.
    pub fn list(&self, area: &str) -> Result<Vec<String>, CacheError> {
        let dir = self.root.join(area);
        let fail = |cause| self.error("list", dir.clone(), cause);
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fail)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
        }
        names.sort();
        Ok(names)
    }

    /// Makes the directory of `area` if it is not there, and gives its path.
    ///
    /// # Errors
    /// [`CacheError::NotWritable`] and its like.
    pub fn make_dir(&self, area: &str) -> Result<PathBuf, CacheError> {
        let dir = self.root.join(area);
        fs::create_dir_all(&dir).map_err(|cause| self.error("make", dir.clone(), cause))?;
        Ok(dir)
    }

    /// Holds the lock `name` until the returned value is dropped or the process ends. Waits for
    /// another holder (in whatever process), after calling `waiting` once.
    ///
    /// # Errors
    /// [`CacheError`] when the lock's file cannot be made.
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<CacheLock, CacheError> {
        let path = self.make_dir("locks")?.join(name);
        let fail = |cause: io::Error| self.error("lock", path.clone(), cause);
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                waiting();
                let blocking = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
                rustix::io::retry_on_intr(blocking).map_err(|cause| fail(cause.into()))?;
            }
            locked => locked.map_err(|cause| fail(cause.into()))?,
        }
        Ok(CacheLock { file })
    }

    /// Sorts a failure of the file system into the kind that its remedy needs.
    pub fn error(&self, action: &'static str, path: PathBuf, cause: io::Error) -> CacheError {
        use io::ErrorKind as K;
        match cause.kind() {
            K::StorageFull | K::QuotaExceeded => {
                CacheError::DiskFull { path, root: self.root.clone(), cause }
            }
            K::PermissionDenied | K::ReadOnlyFilesystem | K::NotADirectory => {
                CacheError::NotWritable { path, cause }
            }
            _ => CacheError::Io { action, path, cause },
        }
    }
}

/// A lock that is held; see [`CacheDir::lock`].
#[derive(Debug)]
pub struct CacheLock {
    file: File,
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // Closing alone would not do: a child that another thread is just starting has the file
        // open as well until it executes its program. Should this fail, closing is left.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    sha256_of_parts(&[bytes])
}

/// SHA-256 over several pieces, each preceded by its length, so that moving a byte from one piece
/// to the next changes it. One piece alone is digested as it is.
#[must_use]
pub fn sha256_of_parts(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        if parts.len() > 1 {
            hasher.update((part.len() as u64).to_le_bytes());
        }
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// A new file in `dir` without a name; with one, which is returned, where the file system cannot
/// make unnamed ones (network file systems, overlays of older kernels).
fn unnamed_file(dir: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let mode = Mode::from_raw_mode(0o644);
    match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(fd) => Ok((File::from(fd), None)),
        // A kernel that knows no O_TMPFILE takes it for "open this directory for writing".
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_file(dir),
        Err(errno) => Err(errno.into()),
    }
}

const PARTIAL: &str = ".partial-";

/// The second best: a file with a name of its own that its writer keeps locked, so that what a
/// killed writer left is told from what a living one still writes, and swept.
fn named_file(dir: &Path) -> io::Result<(File, Option<PathBuf>)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
            continue;
        }
        if let Ok(stale) = File::open(entry.path())
            && rustix::fs::flock(&stale, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            fs::remove_file(entry.path())?;
        }
    }
    loop {
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{PARTIAL}{}-{unique}", std::process::id()));
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        // A sweeper may have come between making and locking it.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && path.exists()
        {
            return Ok((file, Some(path)));
        }
    }
}

/// Gives the finished file its name. Losing a race against another writer of the same entry is
/// success: both wrote the same.
fn give_name(file: &File, named: Option<&Path>, path: &Path) -> io::Result<()> {
    if let Some(named) = named {
        return fs::rename(named, path);
    }
    // Linking by descriptor alone needs a capability, linking through /proc does not.
    let through_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = rustix::fs::linkat(CWD, &through_proc, CWD, path, AtFlags::SYMLINK_FOLLOW);
    let linked = match linked {
        Err(Errno::NOENT) => rustix::fs::linkat(file, "", CWD, path, AtFlags::EMPTY_PATH),
        other => other,
    };
    match linked {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, CacheDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::at(dir.path().join("cryoscope"));
        (dir, cache)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("it is there");
        entries.map(|e| e.expect("readable").file_name().into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn located_as_the_xdg_specification_says() {
        let at = |xdg: Option<&str>, home: Option<&str>| {
            CacheDir::locate(xdg.map(Into::into), home.map(Into::into))
        };
        let path = |found: Result<CacheDir, _>| found.expect("located").path().to_owned();
        assert_eq!(path(at(Some("/x"), Some("/h"))), Path::new("/x/cryoscope"));
        assert_eq!(path(at(None, Some("/h"))), Path::new("/h/.cache/cryoscope"));
        assert_eq!(path(at(Some("relative"), Some("/h"))), Path::new("/h/.cache/cryoscope"));
        assert_eq!(path(at(Some(""), Some("/h"))), Path::new("/h/.cache/cryoscope"));
        assert_eq!(
            at(None, Some("")).expect_err("no home").to_string(),
            "no place for the cache: neither XDG_CACHE_HOME nor HOME names an absolute directory; \
             set XDG_CACHE_HOME to a directory that can be written"
        );
    }

    #[test]
    fn an_entry_is_found_again_and_the_first_one_stays() {
        let (_dir, cache) = cache();
        assert_eq!(cache.find("objects", "a"), None);
        assert!(cache.list("objects").expect("listed").is_empty());
        let path = cache.put("objects", "a", b"one").expect("stored");
        assert_eq!(cache.put("objects", "a", b"two").expect("kept"), path);
        assert_eq!(cache.find("objects", "a"), Some(path.clone()));
        assert_eq!(fs::read(&path).expect("read"), b"one");
        assert_eq!(cache.list("objects").expect("listed"), ["a"]);
        cache.remove("objects", "a").expect("removed");
        cache.remove("objects", "a").expect("gone already");
        assert_eq!(cache.find("objects", "a"), None);
    }

    #[test]
    fn nothing_has_a_name_before_it_is_complete() {
        let (_dir, cache) = cache();
        cache
            .put_with("objects", "a", |file| {
                file.write_all(b"half")?;
                assert!(names(&cache.path().join("objects")).is_empty());
                file.write_all(b" and half")
            })
            .expect("stored");
        let failed = cache.put_with("objects", "b", |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("the source ended early"))
        });
        let path = cache.entry("objects", "b");
        assert_eq!(
            failed.expect_err("the writer failed").to_string(),
            format!("cannot write {}: the source ended early", path.display())
        );
        assert_eq!(names(&cache.path().join("objects")), ["a"]);
    }

    #[test]
    fn without_unnamed_files_a_dead_writers_remains_are_swept_and_a_living_ones_stay() {
        let (dir, _) = cache();
        let dead = dir.path().join(".partial-1-1");
        fs::write(&dead, "left over").expect("written");
        let (_held, living) = named_file(dir.path()).expect("made");
        let (second, named) = named_file(dir.path()).expect("made");
        assert!(!dead.exists());
        assert!(living.expect("has a name").exists());
        let target = dir.path().join("entry");
        give_name(&second, named.as_deref(), &target).expect("renamed");
        assert!(target.exists() && !named.expect("had a name").exists());
    }

    #[test]
    fn a_full_disk_is_named_with_its_remedy_and_leaves_nothing() {
        let (_dir, cache) = cache();
        let failed = cache.put_with("objects", "a", |_| {
            // The device whose every write fails as on a full disk.
            File::options().write(true).open("/dev/full")?.write_all(b"x")
        });
        assert_eq!(
            failed.expect_err("full").to_string(),
            format!(
                "disk full: No space left on device while writing {0}/objects/a; free some space \
                 there (everything below {0} can be deleted and is made anew when needed), or set \
                 XDG_CACHE_HOME to a directory on a larger disk",
                cache.path().display()
            )
        );
        assert!(names(&cache.path().join("objects")).is_empty());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "").expect("written");
        let cache = CacheDir::at(dir.path().join("file/cryoscope"));
        let text = |path: &Path, cause: &str| {
            format!(
                "the cache directory is not writable: {}: {cause}; make it writable, or set \
                 XDG_CACHE_HOME to a directory that is",
                path.display()
            )
        };
        assert_eq!(
            cache.put("objects", "a", b"").expect_err("below a file").to_string(),
            text(&cache.path().join("objects"), "Not a directory")
        );
        for (errno, cause) in [
            (libc::EACCES, "Permission denied"),
            (libc::EPERM, "Operation not permitted"),
            (libc::EROFS, "Read-only file system"),
        ] {
            let error = cache.error("make", "/c".into(), io::Error::from_raw_os_error(errno));
            assert_eq!(error.to_string(), text(Path::new("/c"), cause));
        }
    }

    #[test]
    fn a_lock_is_waited_for() {
        let (_dir, cache) = cache();
        let held = cache.lock("fetch", || panic!("nobody holds it")).expect("locked");
        let (told, hears) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                cache.lock("fetch", || told.send(()).expect("heard")).expect("locked in the end")
            });
            hears.recv().expect("the second one says that it waits");
            drop(held);
            drop(waiter.join().expect("no panic"));
        });
        drop(cache.lock("fetch", || panic!("all let go")).expect("locked"));
    }

    #[test]
    fn a_lock_that_was_let_go_is_free_while_a_starting_child_has_its_file_open() {
        let (_dir, cache) = cache();
        let held = cache.lock("fetch", || panic!("nobody holds it")).expect("locked");
        let inherited = held.file.try_clone().expect("a second descriptor, as fork makes");
        drop(held);
        drop(cache.lock("fetch", || panic!("it was let go")).expect("locked"));
        drop(inherited);
    }

    #[test]
    fn digests_keep_pieces_apart() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_ne!(sha256_of_parts(&[b"ab", b"c"]), sha256_of_parts(&[b"a", b"bc"]));
    }
}
