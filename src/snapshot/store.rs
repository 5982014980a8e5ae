//! Snapshots in files (`x.cryo`): what was copied, its types, when and how. Everything that can be
//! asked of a snapshot can be asked of its file, with the same answers.
//!
//! ```text
//! magic, 8 bytes ┃ version ┃ header: length, length unpacked, CRC-32 ┃ header ┃ blobs
//! ```
//!
//! Numbers are little-endian, four bytes each. The header is JSON; it and every blob (a map's keys,
//! its values, what one CPU has, a BTF) are zstd frames of their own, so that reading one variable
//! unpacks little more than that variable. A blob's place, lengths and CRC-32 (of the packed
//! bytes) are in the header.
//!
//! Files are not trusted: every length is checked before anything is allocated, and what does not
//! fit its checksum is an error.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contents::{CapturedMap, Contents, MapAttrs};
use super::{KernelState, Meta, Snapshot, State, Symbols};
use crate::btf::Btf;
use crate::words::plain;

const MAGIC: [u8; 8] = *b"cryo\x8f\r\n\x1a";
/// Raised whenever an older cryoscope could not read what is written.
const VERSION: u32 = 1;
/// Magic, version, and three numbers about the header.
const FIXED: usize = 8 + 4 * 4;
/// Bytes of header, unpacked: a few hundred a map.
const MAX_HEADER: u64 = 16 << 20;
/// Bytes of one blob, unpacked.
const MAX_BLOB: u64 = 1 << 30;
/// Bytes of all blobs, unpacked.
const MAX_BLOBS: u64 = 4 << 30;
/// Bytes of symbols; a kernel's take seven million.
const MAX_SYMBOLS: u64 = 64 << 20;
/// Bytes of a BTF; a kernel's has five million.
const MAX_BTF: u64 = 64 << 20;
const LEVEL: i32 = 3;

/// Why a snapshot's file cannot be written or read. Texts are complete: cause and remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be written.
    #[error("cannot save the snapshot to {}: {}{}", path.display(), plain(cause), remedy(cause))]
    Write {
        /// As given.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot open {}: {}", path.display(), plain(cause))]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is something else.
    #[error(
        "{} is no snapshot: it does not begin as one; give a file that snap.save(..) has written",
        path.display()
    )]
    NoSnapshot {
        /// As given.
        path: PathBuf,
    },
    /// It was written by a newer cryoscope.
    #[error(
        "{} is a snapshot of version {version}, and this cryoscope reads versions up to {VERSION}: \
         open it with the cryoscope that wrote it, or a newer one",
        path.display()
    )]
    Version {
        /// As given.
        path: PathBuf,
        /// What the file says.
        version: u32,
    },
    /// What it holds contradicts itself.
    #[error("{} is damaged: {what}; copy it again from where it was saved", path.display())]
    Damaged {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space there, or choose another place"
        }
        io::ErrorKind::NotFound => "; make the directory first",
        _ => "",
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// The program that wrote it.
    writer: String,
    meta: Meta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    placeholder: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    torn: Vec<String>,
    btfs: Vec<StoredBtf>,
    maps: Vec<StoredMap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<StoredKernel>,
}

/// What was copied of the kernel.
#[derive(Serialize, Deserialize)]
struct StoredKernel {
    /// Its types, in the list of them.
    btf: usize,
    /// Its symbols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    symbols: Option<Blob>,
    bytes: Blob,
    state: KernelState,
}

/// A blob's place behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Blob {
    at: u64,
    len: u64,
    unpacked: u64,
    crc: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredBtf {
    raw: Blob,
    /// The one that it is split from: an earlier one of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<usize>,
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredMap {
    attrs: MapAttrs,
    /// Its types, in the list of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    btf: Option<usize>,
    rows: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values: Option<Blob>,
    /// By CPU: a bit a row for whether it has a value, then the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpus: Option<Vec<Option<Blob>>>,
    /// Bytes of a key and of a value.
    sizes: (usize, usize),
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    torn: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    torn_rows: BTreeMap<usize, Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
}

impl StoredMap {
    fn blobs(&self) -> impl Iterator<Item = Blob> {
        let cpus = self.cpus.iter().flatten().flatten();
        self.keys.iter().chain(&self.values).chain(cpus).copied()
    }
}

impl Snapshot {
    /// Writes all that the snapshot holds to a file, in the place of one that is there.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        let written = self.pack().and_then(|bytes| replace(path, &bytes));
        written.map_err(|cause| StoreError::Write { path: path.to_owned(), cause })
    }

    /// Opens a file that [`Snapshot::save`] wrote. Contents are read when they are first asked
    /// for; what turns out to be damaged then makes its map incomplete.
    ///
    /// # Errors
    /// Every [`StoreError`] but the first.
    pub fn open(path: &Path) -> Result<Arc<Snapshot>, StoreError> {
        let stored = Stored::open(path)?;
        let header = stored.header()?;
        let kernel = header.kernel.iter().flat_map(|k| k.symbols.into_iter().chain([k.bytes]));
        let all = header.maps.iter().flat_map(StoredMap::blobs).chain(kernel);
        let all = all.map(|blob| blob.unpacked);
        if all.fold(0, u64::saturating_add) > MAX_BLOBS {
            return Err(stored.damaged(format!("its maps claim more than {} GiB", MAX_BLOBS >> 30)));
        }
        let btfs = stored.btfs(&header.btfs)?;
        let kernel = header.kernel.map(|kernel| stored.kernel(kernel, &btfs)).transpose()?;
        let stored = Arc::new(stored);
        let mut maps = Vec::with_capacity(header.maps.len());
        for map in header.maps {
            let btf = match map.btf {
                Some(index) => Some(btfs.get(index).cloned().ok_or_else(|| {
                    stored.damaged(format!("{} has types that are not there", map.attrs.name))
                })?),
                None => None,
            };
            let attrs = MapAttrs { btf, ..map.attrs.clone() };
            let file = stored.clone();
            maps.push(CapturedMap::new(attrs, Box::new(move || Box::new(file.rows(map)))));
        }
        Ok(match (header.placeholder, kernel) {
            (Some(reason), _) => Snapshot::placeholder(header.meta, reason),
            (None, None) => Snapshot::new(header.meta, maps, header.torn),
            (None, Some(state)) => Snapshot::with_kernel(header.meta, maps, header.torn, state),
        })
    }

    fn pack(&self) -> io::Result<Vec<u8>> {
        let mut blobs = Blobs::default();
        let (maps, torn): (&[CapturedMap], &[String]) = match &self.contents {
            State::Captured { maps, torn, .. } => (maps, torn),
            State::Placeholder(_) => (&[], &[]),
        };
        let maps: Vec<StoredMap> =
            maps.iter().map(|map| blobs.map(map)).collect::<io::Result<_>>()?;
        let kernel = self.kernel_state().ok().map(|state| blobs.kernel(state)).transpose()?;
        let header = Header {
            writer: concat!("cryoscope ", env!("CARGO_PKG_VERSION")).to_owned(),
            meta: self.meta.clone(),
            placeholder: self.placeholder_reason().map(str::to_owned),
            torn: torn.to_vec(),
            btfs: blobs.btfs.into_iter().map(|(_, stored)| stored).collect(),
            maps,
            kernel: kernel.flatten(),
        };
        let json = serde_json::to_vec(&header).map_err(io::Error::other)?;
        let packed = zstd::bulk::compress(&json, LEVEL)?;
        let mut out = MAGIC.to_vec();
        let numbers = [packed.len(), json.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        for number in [VERSION, numbers[0], numbers[1], crc32fast::hash(&packed)] {
            out.extend(number.to_le_bytes());
        }
        out.extend(packed);
        out.extend(blobs.bytes);
        Ok(out)
    }
}

/// Writes `path` so that it is either the old file or the whole new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
    let partial = dir.join(format!(".{name}.partial-{}", std::process::id()));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        fs::rename(&partial, path)
    };
    let written = write();
    if written.is_err() {
        // Whatever was wrong, this is what is left of it.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// What goes behind the header.
#[derive(Default)]
struct Blobs {
    bytes: Vec<u8>,
    /// By address: maps of one object share theirs.
    btfs: Vec<(Arc<Btf>, StoredBtf)>,
}

impl Blobs {
    fn add(&mut self, bytes: &[u8]) -> io::Result<Blob> {
        if bytes.len() as u64 > MAX_BLOB {
            return Err(io::Error::other(format!("a map has more than {} MiB", MAX_BLOB >> 20)));
        }
        let packed = zstd::bulk::compress(bytes, LEVEL)?;
        let blob = Blob {
            at: self.bytes.len() as u64,
            len: packed.len() as u64,
            unpacked: bytes.len() as u64,
            crc: crc32fast::hash(&packed),
        };
        self.bytes.extend(packed);
        Ok(blob)
    }

    fn btf(&mut self, btf: &Arc<Btf>) -> io::Result<usize> {
        if let Some(index) = self.btfs.iter().position(|(known, _)| Arc::ptr_eq(known, btf)) {
            return Ok(index);
        }
        let base = btf.base().map(|base| self.btf(base)).transpose()?;
        let raw = self.add(btf.raw())?;
        self.btfs.push((btf.clone(), StoredBtf { raw, base }));
        Ok(self.btfs.len() - 1)
    }

    /// `None` for a state that was taken apart from its types.
    fn kernel(&mut self, state: &KernelState) -> io::Result<Option<StoredKernel>> {
        let Some(btf) = &state.btf else { return Ok(None) };
        let (btf, bytes) = (self.btf(btf)?, self.add(state.memory.bytes())?);
        let symbols = state.symbols.as_ref().map(|s| self.add(&s.pack())).transpose()?;
        Ok(Some(StoredKernel { btf, symbols, bytes, state: state.clone_without_bytes() }))
    }

    fn map(&mut self, map: &CapturedMap) -> io::Result<StoredMap> {
        let contents = map.contents();
        let rows = contents.rows();
        let sizes = sizes(contents, &map.attrs);
        let keys = match contents.key(0) {
            Some(_) => {
                let keys: Option<Vec<&[u8]>> = (0..rows).map(|row| contents.key(row)).collect();
                Some(self.add(&even(keys.as_deref(), sizes.0)?)?)
            }
            None => None,
        };
        let (values, cpus) = match contents.cpus() {
            Some(cpus) => {
                let cpus = (0..cpus).map(|cpu| self.cpu(contents, cpu, sizes.1));
                (None, Some(cpus.collect::<io::Result<_>>()?))
            }
            None => {
                let values: Option<Vec<&[u8]>> = (0..rows).map(|row| contents.value(row)).collect();
                (Some(self.add(&even(values.as_deref(), sizes.1)?)?), None)
            }
        };
        let torn_rows = (0..rows).map(|row| (row, contents.torn_row(row).to_vec()));
        Ok(StoredMap {
            btf: map.attrs.btf.as_ref().map(|btf| self.btf(btf)).transpose()?,
            attrs: MapAttrs { btf: None, ..map.attrs.clone() },
            rows,
            keys,
            values,
            cpus,
            sizes,
            torn: contents.torn().to_vec(),
            torn_rows: torn_rows.filter(|(_, why)| !why.is_empty()).collect(),
            incomplete: contents.incomplete().map(str::to_owned),
        })
    }

    /// What one CPU has in all rows; none if it has nothing.
    fn cpu(
        &mut self,
        contents: &dyn Contents,
        cpu: usize,
        size: usize,
    ) -> io::Result<Option<Blob>> {
        let rows = contents.rows();
        let mut out = vec![0; rows.div_ceil(8)];
        let mut any = false;
        for row in 0..rows {
            let value = contents.cpu_value(row, cpu);
            if let Some(value) = value {
                any = true;
                out[row / 8] |= 1 << (row % 8);
                if value.len() != size {
                    return Err(uneven());
                }
                out.extend_from_slice(value);
            } else {
                out.resize(out.len() + size, 0);
            }
        }
        if any { self.add(&out).map(Some) } else { Ok(None) }
    }
}

/// Bytes of a key and of a value.
fn sizes(contents: &dyn Contents, attrs: &MapAttrs) -> (usize, usize) {
    let cpus = contents.cpus().unwrap_or_default();
    let anywhere = (0..cpus).find_map(|cpu| {
        (0..contents.rows()).find_map(|row| contents.cpu_value(row, cpu).map(<[u8]>::len))
    });
    let value = contents.value(0).map(<[u8]>::len).or(anywhere);
    let key = contents.key(0).map(<[u8]>::len);
    (key.unwrap_or(attrs.key_size as usize), value.unwrap_or(attrs.value_size as usize))
}

/// All of `rows`, which have `size` bytes each, in one piece.
fn even(rows: Option<&[&[u8]]>, size: usize) -> io::Result<Vec<u8>> {
    match rows {
        Some(rows) if rows.iter().all(|row| row.len() == size) => Ok(rows.concat()),
        _ => Err(uneven()),
    }
}

fn uneven() -> io::Error {
    io::Error::other("a map has entries of different sizes")
}

/// A file that is open.
struct Stored {
    path: PathBuf,
    file: File,
    /// Bytes in all.
    len: u64,
    /// Where the blobs begin.
    blobs: u64,
    fixed: [u32; 4],
}

impl Stored {
    fn open(path: &Path) -> Result<Stored, StoreError> {
        let read = |cause| StoreError::Read { path: path.to_owned(), cause };
        let meta = fs::metadata(path).map_err(read)?;
        if !meta.is_file() {
            return Err(StoreError::NoSnapshot { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(read)?;
        let mut fixed = [0; FIXED];
        match file.read_exact(&mut fixed) {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(read(e)),
            Ok(()) if fixed[..8] == MAGIC => {}
            _ => return Err(StoreError::NoSnapshot { path: path.to_owned() }),
        }
        let number = |i: usize| {
            let at = 8 + 4 * i;
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        let numbers = [number(0), number(1), number(2), number(3)];
        if numbers[0] != VERSION {
            return Err(StoreError::Version { path: path.to_owned(), version: numbers[0] });
        }
        let blobs = FIXED as u64 + u64::from(numbers[1]);
        Ok(Stored { path: path.to_owned(), file, len: meta.len(), blobs, fixed: numbers })
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.into() }
    }

    fn header(&self) -> Result<Header, StoreError> {
        let [_, len, unpacked, crc] = self.fixed;
        let blob = Blob { at: 0, len: len.into(), unpacked: unpacked.into(), crc };
        let json = self.unpack(FIXED as u64, blob, MAX_HEADER).map_err(|e| self.damaged(e))?;
        serde_json::from_slice(&json).map_err(|e| self.damaged(format!("its header: {e}")))
    }

    fn btfs(&self, stored: &[StoredBtf]) -> Result<Vec<Arc<Btf>>, StoreError> {
        let mut out: Vec<Arc<Btf>> = Vec::new();
        for StoredBtf { raw, base } in stored {
            let packed = self.packed(self.blobs, *raw, MAX_BTF).map_err(|e| self.damaged(e))?;
            let base =
                match base {
                    None => None,
                    Some(index) => Some(out.get(*index).cloned().ok_or_else(|| {
                        self.damaged("types are split from some that come later")
                    })?),
                };
            let len = raw.unpacked as usize;
            let load = move || zstd::bulk::decompress(&packed, len).unwrap_or_default();
            out.push(Btf::deferred(load, base));
        }
        Ok(out)
    }

    /// A blob's bytes, `from` being where its place is counted from.
    fn unpack(&self, from: u64, blob: Blob, most: u64) -> Result<Vec<u8>, String> {
        let packed = self.packed(from, blob, most)?;
        // As it was written by anybody, it may unpack to more than it says: that is cut off.
        match zstd::bulk::decompress(&packed, blob.unpacked as usize) {
            Ok(bytes) if bytes.len() as u64 == blob.unpacked => Ok(bytes),
            _ => Err(format!("{} bytes do not unpack to what they should", blob.len)),
        }
    }

    /// The same as it is in the file, which fits its checksum.
    fn packed(&self, from: u64, blob: Blob, most: u64) -> Result<Vec<u8>, String> {
        let start = from.checked_add(blob.at);
        let end = start.and_then(|start| start.checked_add(blob.len));
        let (Some(start), Some(_)) = (start, end.filter(|end| *end <= self.len)) else {
            return Err(format!("{} bytes are missing at its end", blob.len));
        };
        if blob.unpacked > most {
            return Err(format!("it claims {} bytes in one piece", blob.unpacked));
        }
        let mut packed = vec![0; blob.len as usize];
        self.file.read_exact_at(&mut packed, start).map_err(|e| plain(&e))?;
        if crc32fast::hash(&packed) != blob.crc {
            return Err(format!("the {} bytes at {start} do not fit their checksum", blob.len));
        }
        Ok(packed)
    }

    fn kernel(&self, stored: StoredKernel, btfs: &[Arc<Btf>]) -> Result<KernelState, StoreError> {
        let btf = btfs.get(stored.btf).cloned();
        let btf = btf.ok_or_else(|| self.damaged("the kernel has types that are not there"))?;
        let bytes = self.unpack(self.blobs, stored.bytes, MAX_BLOB).map_err(|e| self.damaged(e))?;
        let symbols = stored.symbols.map(|blob| {
            let packed = self.packed(self.blobs, blob, MAX_SYMBOLS).map_err(|e| self.damaged(e))?;
            let len = blob.unpacked as usize;
            let load = move || zstd::bulk::decompress(&packed, len).unwrap_or_default();
            Ok::<_, StoreError>(Symbols::deferred(load))
        });
        Ok(stored.state.with_bytes(btf, symbols.transpose()?, bytes))
    }

    /// A map's contents. What is damaged makes them incomplete.
    fn rows(&self, map: StoredMap) -> StoredRows {
        let read = self.try_rows(&map);
        let (columns, why) = match read {
            Ok(columns) => (columns, None),
            Err(what) => (Columns::default(), Some(self.damaged(what).to_string())),
        };
        let rows = if why.is_some() { 0 } else { map.rows };
        StoredRows { columns, rows, incomplete: why.or_else(|| map.incomplete.clone()), map }
    }

    fn try_rows(&self, map: &StoredMap) -> Result<Columns, String> {
        let fits = |blob: &Blob, size: usize, extra: usize| {
            let want = (map.rows as u64).checked_mul(size as u64);
            want.and_then(|want| want.checked_add(extra as u64)) == Some(blob.unpacked)
        };
        let take = |blob: &Blob, size: usize, extra: usize| match fits(blob, size, extra) {
            true => self.unpack(self.blobs, *blob, MAX_BLOB),
            false => Err(format!("{} does not have its {} entries", map.attrs.name, map.rows)),
        };
        let (key, value) = map.sizes;
        let bits = map.rows.div_ceil(8);
        let cpu = |blob: &Option<Blob>| blob.as_ref().map(|b| take(b, value, bits)).transpose();
        Ok(Columns {
            keys: map.keys.as_ref().map(|blob| take(blob, key, 0)).transpose()?,
            values: map.values.as_ref().map(|blob| take(blob, value, 0)).transpose()?,
            cpus: map.cpus.as_ref().map(|c| c.iter().map(cpu).collect()).transpose()?,
        })
    }
}

/// The bytes of a map's rows.
#[derive(Default)]
struct Columns {
    keys: Option<Vec<u8>>,
    values: Option<Vec<u8>>,
    cpus: Option<Vec<Option<Vec<u8>>>>,
}

/// A map's contents, as they were stored.
struct StoredRows {
    map: StoredMap,
    columns: Columns,
    rows: usize,
    incomplete: Option<String>,
}

impl StoredRows {
    fn cut(&self, bytes: &'_ [u8], from: usize, row: usize, size: usize) -> Option<(usize, usize)> {
        let start = from.checked_add(row.checked_mul(size)?)?;
        let end = start.checked_add(size)?;
        (row < self.rows && end <= bytes.len()).then_some((start, end))
    }
}

impl Contents for StoredRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn key(&self, row: usize) -> Option<&[u8]> {
        let bytes = self.columns.keys.as_ref()?;
        let (start, end) = self.cut(bytes, 0, row, self.map.sizes.0)?;
        bytes.get(start..end)
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        let bytes = self.columns.values.as_ref()?;
        let (start, end) = self.cut(bytes, 0, row, self.map.sizes.1)?;
        bytes.get(start..end)
    }

    fn cpus(&self) -> Option<usize> {
        self.map.cpus.as_ref().map(Vec::len)
    }

    fn cpu_value(&self, row: usize, cpu: usize) -> Option<&[u8]> {
        let bytes = self.columns.cpus.as_ref()?.get(cpu)?.as_ref()?;
        let bits = self.map.rows.div_ceil(8);
        let (start, end) = self.cut(bytes, bits, row, self.map.sizes.1)?;
        let there = bytes.get(row / 8)? >> (row % 8) & 1 == 1;
        bytes.get(start..end).filter(|_| there)
    }

    fn torn(&self) -> &[String] {
        &self.map.torn
    }

    fn torn_row(&self, row: usize) -> &[String] {
        self.map.torn_rows.get(&row).map_or(&[], Vec::as_slice)
    }

    fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }
}
