//! From a snapshot to a file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use super::super::contents::{CapturedMap, Contents, MapAttrs};
use super::super::map::rows_by_key;
use super::super::{KernelState, Ram, Snapshot, SnapshotError, State, Symbols};
use super::StoreError;
use super::format::{
    Blob, Header, MAGIC, MAX_BLOB, MAX_SYMBOLS, StoredBtf, StoredKernel, StoredMap, VERSION,
};
use super::pack::pack;
use crate::btf::Btf;

/// What a file without memory says of it when the freeze had kept it.
const LEFT_OUT: &str = "it was left out when the snapshot was saved; save it with \
     snap.save(\"x.cryo\", #{ ram: true })";
/// What it says of modules' symbols that a reader would refuse.
const TOO_LARGE: &str = "its symbols: those of all modules take more than a file keeps";

impl Snapshot {
    /// Writes what was copied to a file, in the place of one that is there; all of memory, if it
    /// was kept, is left out. A name that ends in `.core` makes it [`Snapshot::save_core`].
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        if is_core(path) { self.save_core(path) } else { self.write(path, None) }
    }

    /// The same with all of memory.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::NoRam`] when it was not kept.
    pub fn save_with_ram(&self, path: &Path) -> Result<(), StoreError> {
        let ram = self.ram_for(path)?;
        if is_core(path) { self.save_core(path) } else { self.write(path, Some(ram)) }
    }

    /// All of memory, to be written to a file.
    pub(super) fn ram_for(&self, path: &Path) -> Result<&Ram, StoreError> {
        self.ram().map_err(|e| {
            let why = match e {
                SnapshotError::MapRenderIncomplete { error, .. } => error,
                other => other.to_string(),
            };
            StoreError::NoRam { path: path.to_owned(), why }
        })
    }

    fn write(&self, path: &Path, ram: Option<&Ram>) -> Result<(), StoreError> {
        let written = self.pack(ram, false).and_then(|Packed { header, blobs, .. }| {
            replace(path, |out| {
                out.write_all(&header)?;
                out.write_all(&blobs)?;
                ram.map_or(Ok(()), |ram| super::ram::write(out, blobs.len() as u64, ram))
            })
        });
        written.map_err(|cause| StoreError::Write { path: path.to_owned(), cause })
    }

    /// What goes into a file; types and symbols do not when they are kept `beside`.
    pub(super) fn pack(&self, ram: Option<&Ram>, beside: bool) -> io::Result<Packed> {
        let mut blobs = Blobs { beside, ..Blobs::default() };
        let (maps, torn): (&[CapturedMap], &[String]) = match &self.contents {
            State::Captured { maps, torn, .. } => (maps, torn),
            State::Placeholder(_) => (&[], &[]),
        };
        let maps: Vec<StoredMap> =
            maps.iter().map(|map| blobs.map(map)).collect::<io::Result<_>>()?;
        let kernel = self.kernel_state().ok().map(|state| blobs.kernel(state, ram)).transpose()?;
        let (types, btfs): (Vec<_>, Vec<_>) = blobs.btfs.into_iter().unzip();
        let header = Header {
            writer: concat!("cryoscope ", env!("CARGO_PKG_VERSION")).to_owned(),
            meta: self.meta.clone(),
            placeholder: self.placeholder_reason().map(str::to_owned),
            torn: torn.to_vec(),
            btfs: if beside { Vec::new() } else { btfs },
            maps,
            kernel: kernel.flatten(),
        };
        let json = serde_json::to_vec(&header).map_err(io::Error::other)?;
        let packed = pack(&json)?;
        let mut out = MAGIC.to_vec();
        let numbers = [packed.len(), json.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        for number in [VERSION, numbers[0], numbers[1], crc32fast::hash(&packed)] {
            out.extend(number.to_le_bytes());
        }
        out.extend(packed);
        Ok(Packed { header: out, blobs: blobs.bytes, types })
    }
}

/// What goes into a file.
pub(super) struct Packed {
    pub(super) header: Vec<u8>,
    pub(super) blobs: Vec<u8>,
    /// The list of types.
    pub(super) types: Vec<Arc<Btf>>,
}

fn is_core(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "core")
}

/// Writes `path` so that it is either the old file or the whole new one.
pub(super) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
    let partial = dir.join(format!(".{name}.partial-{}", std::process::id()));
    let write = || {
        let mut file = BufWriter::new(File::create(&partial)?);
        fill(&mut file)?;
        file.flush()?;
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
pub(super) struct Blobs {
    pub(super) bytes: Vec<u8>,
    /// By address: maps of one object share theirs.
    pub(super) btfs: Vec<(Arc<Btf>, StoredBtf)>,
    /// Whether types and symbols are kept elsewhere.
    beside: bool,
}

impl Blobs {
    fn add(&mut self, bytes: &[u8]) -> io::Result<Blob> {
        if bytes.len() as u64 > MAX_BLOB {
            return Err(too_large());
        }
        let packed = pack(bytes)?;
        let blob = Blob {
            at: self.bytes.len() as u64,
            len: packed.len() as u64,
            unpacked: bytes.len() as u64,
            crc: crc32fast::hash(&packed),
        };
        self.bytes.extend(packed);
        Ok(blob)
    }

    pub(super) fn btf(&mut self, btf: &Arc<Btf>) -> io::Result<usize> {
        if let Some(index) = self.btfs.iter().position(|(known, _)| Arc::ptr_eq(known, btf)) {
            return Ok(index);
        }
        let base = btf.base().map(|base| self.btf(base)).transpose()?;
        let raw = self.add(if self.beside { &[] } else { btf.raw() })?;
        self.btfs.push((btf.clone(), StoredBtf { raw, base }));
        Ok(self.btfs.len() - 1)
    }

    /// A table of symbols; `None` for one that a reader would refuse.
    pub(super) fn table(&mut self, symbols: &Symbols) -> io::Result<Option<Blob>> {
        let packed = symbols.pack();
        let fits = packed.len() as u64 <= MAX_SYMBOLS;
        fits.then(|| self.add(&packed)).transpose()
    }

    /// `None` for a state that was taken apart from its types.
    fn kernel(
        &mut self,
        state: &KernelState,
        ram: Option<&Ram>,
    ) -> io::Result<Option<StoredKernel>> {
        let Some(btf) = &state.btf else { return Ok(None) };
        let (btf, bytes) = (self.btf(btf)?, self.add(state.memory.bytes())?);
        let kept = |symbols| if self.beside { None } else { symbols };
        let (of_kernel, of_modules) =
            (kept(state.symbols.as_ref()), kept(state.module_symbols.as_ref()));
        let symbols = of_kernel.map(|s| self.table(s)).transpose()?.flatten();
        let mut module_symbols = of_modules.map(|s| self.table(s)).transpose()?.flatten();
        let types = state.modules.iter().map(|module| module.btf.as_ref());
        let module_btfs = types.map(|btf| btf.map(|btf| self.btf(btf)).transpose());
        let module_btfs = module_btfs.collect::<io::Result<_>>()?;
        let mut plain = state.clone_without_bytes();
        if of_modules.is_some() && module_symbols.is_none() {
            module_symbols = Some(self.add(&Symbols::none())?);
            for module in &mut plain.modules {
                module.symbols = (0, 0);
                module.incomplete = Some(TOO_LARGE.to_owned());
            }
        }
        if state.ram.is_some() && ram.is_none() {
            plain.ram_incomplete = Some(LEFT_OUT.to_owned());
        }
        let ram = ram.map(Ram::about);
        Ok(Some(StoredKernel {
            btf,
            symbols,
            bytes,
            module_symbols,
            module_btfs,
            ram,
            state: plain,
        }))
    }

    fn map(&mut self, map: &CapturedMap) -> io::Result<StoredMap> {
        let contents = map.contents();
        let rows = contents.rows();
        let sizes = sizes(contents, &map.attrs);
        // In the order in which they are read, so that a reader goes straight through them.
        let order = rows_by_key(map);
        let in_order = || (0..rows).map(|at| order.get(at).map_or(at, |&row| row as usize));
        let (keys, key_ends) = match contents.key(0) {
            Some(_) => self.side(in_order().map(|row| contents.key(row)), sizes.0)?,
            None => (None, None),
        };
        let (values, value_ends, cpus) = match contents.cpus() {
            Some(cpus) => {
                let cpus = (0..cpus).map(|cpu| {
                    let values = in_order().map(|row| contents.cpu_value(row, cpu));
                    self.cpu(&values.collect::<Vec<_>>(), sizes.1)
                });
                (None, None, Some(cpus.collect::<io::Result<_>>()?))
            }
            None => {
                let (values, ends) =
                    self.side(in_order().map(|row| contents.value(row)), sizes.1)?;
                (values, ends, None)
            }
        };
        let row_details = in_order().map(|row| contents.row_details(row)).enumerate();
        let row_details: Vec<_> = row_details.filter(|(_, facts)| !facts.is_empty()).collect();
        let row_details = match row_details.as_slice() {
            [] => None,
            some => Some(self.add(&serde_json::to_vec(some).map_err(io::Error::other)?)?),
        };
        let torn_rows = in_order().map(|row| contents.torn_row(row).to_vec()).enumerate();
        Ok(StoredMap {
            btf: map.attrs.btf.as_ref().map(|btf| self.btf(btf)).transpose()?,
            attrs: MapAttrs { btf: None, ..map.attrs.clone() },
            rows,
            keys,
            values,
            cpus,
            sizes,
            key_ends,
            value_ends,
            details: contents.details().to_vec(),
            row_details,
            torn: contents.torn().to_vec(),
            torn_rows: torn_rows.filter(|(_, why)| !why.is_empty()).collect(),
            incomplete: contents.incomplete().map(str::to_owned),
        })
    }

    /// All keys or all values, and where each ends unless all have `size` bytes.
    fn side<'a>(
        &mut self,
        rows: impl Iterator<Item = Option<&'a [u8]>>,
        size: usize,
    ) -> io::Result<(Option<Blob>, Option<Blob>)> {
        let rows: Vec<&[u8]> = rows.collect::<Option<_>>().ok_or_else(missing)?;
        let bytes = Some(self.add(&rows.concat())?);
        if rows.iter().all(|row| row.len() == size) {
            return Ok((bytes, None));
        }
        let mut end = 0u64;
        let ends = rows.iter().flat_map(|row| {
            end += row.len() as u64;
            end.to_le_bytes()
        });
        let ends: Vec<u8> = ends.collect();
        Ok((bytes, Some(self.add(&ends)?)))
    }

    /// What one CPU has in all rows; none if it has nothing.
    fn cpu(&mut self, rows: &[Option<&[u8]>], size: usize) -> io::Result<Option<Blob>> {
        if rows.iter().all(Option::is_none) {
            return Ok(None);
        }
        // Room is made for values that are not there as well, whose size a guest may make up.
        let whole = rows.len().checked_mul(size).filter(|len| *len as u64 <= MAX_BLOB);
        whole.ok_or_else(too_large)?;
        let mut out = vec![0; rows.len().div_ceil(8)];
        for (row, value) in rows.iter().enumerate() {
            if let Some(value) = value {
                out[row / 8] |= 1 << (row % 8);
                if value.len() != size {
                    return Err(uneven());
                }
                out.extend_from_slice(value);
            } else {
                out.resize(out.len() + size, 0);
            }
        }
        self.add(&out).map(Some)
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

fn too_large() -> io::Error {
    io::Error::other(format!("a map has more than {} MiB", MAX_BLOB >> 20))
}

fn uneven() -> io::Error {
    io::Error::other("a map has entries of different sizes")
}

fn missing() -> io::Error {
    io::Error::other("a map has entries without a value")
}
