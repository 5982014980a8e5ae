//! Many snapshots of one machine in one file that has no name, for as long as this process lives.
//! Each is as in a file of its own, but for types and symbols: all of them share these, which stay
//! in memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::super::Snapshot;
use super::StoreError;
use super::read::{Beside, Stored};

/// A file for many snapshots. It is gone with the last of them, however this process ends.
pub struct Shelf {
    file: Arc<File>,
    dir: PathBuf,
    end: Mutex<u64>,
}

impl Shelf {
    /// An empty one, on the file system that `dir` is on.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn new(dir: &Path) -> Result<Shelf, StoreError> {
        let file = nameless(dir);
        let file = file.map_err(|cause| StoreError::Write { path: dir.to_owned(), cause })?;
        Ok(Shelf { file: Arc::new(file), dir: dir.to_owned(), end: Mutex::new(0) })
    }

    /// Puts a snapshot there; all of memory, if it was kept, is left out.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn put(&self, snapshot: &Snapshot) -> Result<Shelved, StoreError> {
        let written = || {
            let packed = snapshot.pack(None, true)?;
            let mut bytes = packed.header;
            bytes.extend(packed.blobs);
            let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            let (from, to) = (*end, *end + bytes.len() as u64);
            self.file.write_all_at(&bytes, from)?;
            *end = to;
            Ok((from, to, packed.types))
        };
        let (from, to, btfs) =
            written().map_err(|cause| StoreError::Write { path: self.dir.clone(), cause })?;
        let state = snapshot.kernel_state().ok();
        let symbols = state.and_then(|state| state.symbols.clone());
        let module_symbols = state.and_then(|state| state.module_symbols.clone());
        let beside = Beside { btfs, symbols, module_symbols };
        Ok(Shelved { file: self.file.clone(), dir: self.dir.clone(), from, to, beside })
    }
}

/// A file that nobody else can find.
fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(file));
    }
    // Not every file system can do that: then it has a name for a moment.
    for n in 0..100 {
        let path = dir.join(format!(".cryoscope-{}-{n}", std::process::id()));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A snapshot on a shelf.
pub struct Shelved {
    pub(super) file: Arc<File>,
    /// What errors call the file.
    pub(super) dir: PathBuf,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) beside: Beside,
}

impl Shelved {
    /// The snapshot. Each call gives one of its own.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn open(&self) -> Result<Arc<Snapshot>, StoreError> {
        let stored = Stored::at(self.file.clone(), &self.dir, self.from, self.to)?;
        stored.snapshot(Some(&self.beside))
    }

    /// Bytes that it takes in the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.to - self.from
    }

    /// Whether it takes none, which no snapshot does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
