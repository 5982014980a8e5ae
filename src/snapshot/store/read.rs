//! From a file to a snapshot. Files are not trusted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::contents::{CapturedMap, Contents, Detail, Details, MapAttrs};
use super::super::{KernelState, Snapshot, Symbols};
use super::StoreError;
use super::bundle::MAGIC as SERIES;
use super::format::{
    Blob, FIXED, Header, MAGIC, MAX_BLOB, MAX_BLOBS, MAX_BTF, MAX_DETAILS, MAX_HEADER, MAX_SYMBOLS,
    StoredBtf, StoredKernel, StoredMap, VERSION,
};
use super::pack::unpack;
use crate::btf::Btf;
use crate::words::plain;

/// Bytes that zstd makes of one at most: 128 KiB are a block, which takes four.
const MAX_RATIO: u64 = 1 << 15;

/// Entries of which a file has neither key nor value: those of a per-CPU array that no CPU has.
const MAX_EMPTY: usize = 1 << 20;

impl Snapshot {
    /// Opens a file that [`Snapshot::save`] wrote. Contents are read when they are first asked
    /// for; what turns out to be damaged then makes its map incomplete.
    ///
    /// # Errors
    /// Every [`StoreError`] but the first.
    pub fn open(path: &Path) -> Result<Arc<Snapshot>, StoreError> {
        Stored::open(path)?.snapshot(None)
    }
}

/// What goes with a snapshot in a file and is not in it.
#[derive(Clone)]
pub(super) struct Beside {
    /// The list of types.
    pub(super) btfs: Vec<Arc<Btf>>,
    pub(super) symbols: Option<Arc<Symbols>>,
    pub(super) module_symbols: Option<Arc<Symbols>>,
}

impl Stored {
    /// What is in the file, with what lies `beside` it.
    pub(super) fn snapshot(self, beside: Option<&Beside>) -> Result<Arc<Snapshot>, StoreError> {
        let stored = self;
        let header = stored.header()?;
        let kernel = header
            .kernel
            .iter()
            .flat_map(|k| k.symbols.into_iter().chain(k.module_symbols).chain([k.bytes]));
        let all = header.maps.iter().flat_map(StoredMap::blobs).chain(kernel);
        let all = all.map(|blob| blob.unpacked);
        if all.fold(0, u64::saturating_add) > MAX_BLOBS {
            return Err(stored.damaged(format!("its maps claim more than {} GiB", MAX_BLOBS >> 30)));
        }
        let btfs = match beside {
            Some(beside) => beside.btfs.clone(),
            None => stored.btfs(&header.btfs)?,
        };
        let stored = Arc::new(stored);
        let mut kernel = header.kernel.map(|kernel| stored.kernel(kernel, &btfs)).transpose()?;
        if let (Some(kernel), Some(beside)) = (&mut kernel, beside) {
            kernel.symbols.clone_from(&beside.symbols);
            kernel.module_symbols.clone_from(&beside.module_symbols);
        }
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
}

/// A file that is open.
pub(super) struct Stored {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Where in the file it ends.
    pub(super) len: u64,
    /// Where in the file it begins.
    pub(super) base: u64,
    /// Where the blobs begin.
    pub(super) blobs: u64,
    /// Version; length, length unpacked and CRC-32 of the header.
    pub(super) fixed: [u32; 4],
}

impl Stored {
    fn open(path: &Path) -> Result<Stored, StoreError> {
        let read = |cause| StoreError::Read { path: path.to_owned(), cause };
        let meta = fs::metadata(path).map_err(read)?;
        if !meta.is_file() {
            return Err(StoreError::NoSnapshot { path: path.to_owned() });
        }
        let file = Arc::new(File::open(path).map_err(read)?);
        Stored::at(file, path, 0, meta.len())
    }

    /// What lies in a file from `base` to `end`.
    pub(super) fn at(
        file: Arc<File>,
        path: &Path,
        base: u64,
        end: u64,
    ) -> Result<Stored, StoreError> {
        let read = |cause| StoreError::Read { path: path.to_owned(), cause };
        let mut fixed = [0; FIXED];
        match file.read_exact_at(&mut fixed, base) {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(read(e)),
            Ok(()) if fixed[..8] == MAGIC => {}
            Ok(()) if fixed[..8] == SERIES => {
                return Err(StoreError::Series { path: path.to_owned() });
            }
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
        let blobs = base.saturating_add(FIXED as u64 + u64::from(numbers[1]));
        Ok(Stored { path: path.to_owned(), file, len: end, base, blobs, fixed: numbers })
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.into() }
    }

    fn header(&self) -> Result<Header, StoreError> {
        let [_, len, unpacked, crc] = self.fixed;
        let blob = Blob { at: 0, len: len.into(), unpacked: unpacked.into(), crc };
        let json = self
            .unpack(self.base.saturating_add(FIXED as u64), blob, MAX_HEADER)
            .map_err(|e| self.damaged(e))?;
        serde_json::from_slice(&json).map_err(|e| self.damaged(format!("its header: {e}")))
    }

    pub(super) fn btfs(&self, stored: &[StoredBtf]) -> Result<Vec<Arc<Btf>>, StoreError> {
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
            let load = move || unpack(&packed, len).unwrap_or_default();
            out.push(Btf::deferred(load, base));
        }
        Ok(out)
    }

    /// A blob's bytes, `from` being where its place is counted from.
    pub(super) fn unpack(&self, from: u64, blob: Blob, most: u64) -> Result<Vec<u8>, String> {
        let packed = self.packed(from, blob, most)?;
        // As it was written by anybody, it may unpack to more than it says: that is cut off.
        match unpack(&packed, blob.unpacked as usize) {
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
        if blob.unpacked > blob.len.saturating_mul(MAX_RATIO) {
            // Before room is made for them.
            return Err(format!("it claims {} bytes out of {}", blob.unpacked, blob.len));
        }
        let mut packed = vec![0; blob.len as usize];
        self.file.read_exact_at(&mut packed, start).map_err(|e| plain(&e))?;
        if crc32fast::hash(&packed) != blob.crc {
            return Err(format!("the {} bytes at {start} do not fit their checksum", blob.len));
        }
        Ok(packed)
    }

    /// A table of symbols, which is unpacked when it is first asked.
    pub(super) fn table(&self, blob: Blob) -> Result<Symbols, StoreError> {
        let packed = self.packed(self.blobs, blob, MAX_SYMBOLS).map_err(|e| self.damaged(e))?;
        let len = blob.unpacked as usize;
        let load = move || unpack(&packed, len).unwrap_or_default();
        Ok(Symbols::deferred(load))
    }

    fn kernel(
        self: &Arc<Self>,
        stored: StoredKernel,
        btfs: &[Arc<Btf>],
    ) -> Result<KernelState, StoreError> {
        let btf = btfs.get(stored.btf).cloned();
        let btf = btf.ok_or_else(|| self.damaged("the kernel has types that are not there"))?;
        let bytes = self.unpack(self.blobs, stored.bytes, MAX_BLOB).map_err(|e| self.damaged(e))?;
        let symbols = stored.symbols.map(|blob| self.table(blob)).transpose()?;
        let module_symbols = stored.module_symbols.map(|blob| self.table(blob)).transpose()?;
        let ram = stored.ram.map(|about| super::ram::open(self, about));
        let ram = ram.transpose().map_err(|e| self.damaged(e))?;
        let mut state = stored.state.with_bytes(btf, symbols, bytes);
        state.module_symbols = module_symbols.map(Arc::new);
        for (module, btf) in state.modules.iter_mut().zip(stored.module_btfs) {
            module.btf = btf.and_then(|index| btfs.get(index).cloned());
        }
        state.ram = ram.map(Arc::new);
        Ok(state)
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
        let (rows, name) = (map.rows, &map.attrs.name);
        let fits = |blob: &Blob, size: usize, extra: usize| {
            let want = (rows as u64).checked_mul(size as u64);
            want.and_then(|want| want.checked_add(extra as u64)) == Some(blob.unpacked)
        };
        let take = |blob: &Blob, size: usize, extra: usize| match fits(blob, size, extra) {
            true => self.unpack(self.blobs, *blob, MAX_BLOB),
            false => Err(format!("{name} does not have its {rows} entries")),
        };
        let side = |bytes: &Option<Blob>, ends: &Option<Blob>, size: usize| {
            let Some(blob) = bytes else { return Ok(None) };
            let Some(ends) = ends else {
                let bytes = take(blob, size, 0)?;
                return Ok(Some(Column { bytes, place: Place::Even(size) }));
            };
            let ends = take(ends, 8, 0)?;
            let ends = ends.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b));
            let ends: Vec<usize> = ends.map(|end| end as usize).collect();
            let bytes = self.unpack(self.blobs, *blob, MAX_BLOB)?;
            let whole = ends.last().copied().unwrap_or_default() == bytes.len();
            match ends.is_sorted() && whole {
                true => Ok(Some(Column { bytes, place: Place::Ends(ends) })),
                false => Err(format!("{name} has entries that do not follow each other")),
            }
        };
        let (key, value) = map.sizes;
        // Every entry that there is has some bytes, so that the file's own length bounds them.
        let bounded = map.keys.is_some() && (key > 0 || map.key_ends.is_some())
            || map.values.is_some() && (value > 0 || map.value_ends.is_some());
        if !bounded && rows > MAX_EMPTY {
            return Err(format!("{name} claims {rows} entries of no bytes"));
        }
        let bits = rows.div_ceil(8);
        let cpu = |blob: &Option<Blob>| blob.as_ref().map(|b| take(b, value, bits)).transpose();
        let details = match map.row_details {
            Some(blob) => {
                let json = self.unpack(self.blobs, blob, MAX_DETAILS)?;
                let facts: Vec<(usize, Details)> = serde_json::from_slice(&json)
                    .map_err(|e| format!("what {name} says of its entries: {e}"))?;
                facts.into_iter().collect()
            }
            None => BTreeMap::new(),
        };
        Ok(Columns {
            keys: side(&map.keys, &map.key_ends, key)?,
            values: side(&map.values, &map.value_ends, value)?,
            cpus: map.cpus.as_ref().map(|c| c.iter().map(cpu).collect()).transpose()?,
            details,
        })
    }
}

/// The bytes of a map's rows.
#[derive(Default)]
struct Columns {
    keys: Option<Column>,
    values: Option<Column>,
    cpus: Option<Vec<Option<Vec<u8>>>>,
    details: BTreeMap<usize, Details>,
}

/// All keys or all values.
struct Column {
    bytes: Vec<u8>,
    place: Place,
}

/// Where each of them is.
enum Place {
    /// All have as many bytes.
    Even(usize),
    /// Where each ends: ascending.
    Ends(Vec<usize>),
}

impl Column {
    fn get(&self, row: usize) -> Option<&[u8]> {
        let (start, end) = match &self.place {
            Place::Even(size) => {
                let start = row.checked_mul(*size)?;
                (start, start.checked_add(*size)?)
            }
            Place::Ends(ends) => (
                match row.checked_sub(1) {
                    None => 0,
                    Some(before) => *ends.get(before)?,
                },
                *ends.get(row)?,
            ),
        };
        self.bytes.get(start..end)
    }
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
        self.columns.keys.as_ref().filter(|_| row < self.rows)?.get(row)
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        self.columns.values.as_ref().filter(|_| row < self.rows)?.get(row)
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

    fn details(&self) -> &[(String, Detail)] {
        &self.map.details
    }

    fn row_details(&self, row: usize) -> &[(String, Detail)] {
        self.columns.details.get(&row).map_or(&[], Vec::as_slice)
    }
}
