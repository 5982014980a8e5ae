//! Many snapshots in one file, as a series of samples is saved.
//!
//! ```text
//! magic, 8 bytes ┃ version ┃ footer: length, length unpacked, CRC-32 ┃ where it is, 8 bytes ┃
//! snapshots, each as in a file of its own ┃ types and symbols ┃ footer
//! ```
//!
//! Snapshots of one machine share types and symbols, which are there once. The footer is JSON, packed:
//! when and how each snapshot was taken, and where it is. As with other files, nothing in it is
//! trusted.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::{Meta, Snapshot, Symbols};
use super::format::{Blob, FIXED, StoredBtf};
use super::pack::pack;
use super::read::{Beside, Stored};
use super::write::{Blobs, replace};
use super::{Shelved, StoreError};
use crate::btf::Btf;

pub(super) const MAGIC: [u8; 8] = *b"crys\x8f\r\n\x1a";
const VERSION: u32 = 1;
/// Bytes before the first snapshot.
const START: u64 = FIXED as u64 + 8;
/// Bytes of a footer, unpacked: some two hundred a snapshot.
const MAX_FOOTER: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Footer {
    /// The program that wrote it.
    writer: String,
    /// Where types and symbols begin, from which their places count.
    blobs: u64,
    /// The types of all machines.
    btfs: Vec<StoredBtf>,
    /// The symbols of all machines.
    tables: Vec<Blob>,
    machines: Vec<Machine>,
    snapshots: Vec<Place>,
}

/// What snapshots of one machine share, as places in the lists.
#[derive(Serialize, Deserialize, PartialEq)]
struct Machine {
    btfs: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    symbols: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module_symbols: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    meta: Meta,
    from: u64,
    to: u64,
    machine: usize,
}

/// Whether a file holds many snapshots.
#[must_use]
pub fn is_bundle(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
}

/// Writes snapshots to one file, in the place of one that is there. All of memory, if it was kept,
/// is left out.
///
/// # Errors
/// [`StoreError::Write`].
pub fn save_all(
    path: &Path,
    snapshots: impl Iterator<Item = Arc<Snapshot>>,
) -> Result<(), StoreError> {
    let written = replace(path, |out| {
        out.write_all(&[0; START as usize])?;
        let mut shared = Shared::default();
        let mut places = Vec::new();
        let mut end = START;
        for snapshot in snapshots {
            let packed = snapshot.pack(None, true)?;
            out.write_all(&packed.header)?;
            out.write_all(&packed.blobs)?;
            let from = end;
            end += (packed.header.len() + packed.blobs.len()) as u64;
            let machine = shared.machine(&snapshot, &packed.types)?;
            // Statistics may be large, and are in the snapshot itself.
            let meta = Meta { stats: None, monitor: None, ..snapshot.meta().clone() };
            places.push(Place { meta, from, to: end, machine });
        }
        out.write_all(&shared.blobs.bytes)?;
        let footer = Footer {
            writer: concat!("cryoscope ", env!("CARGO_PKG_VERSION")).to_owned(),
            blobs: end,
            btfs: shared.blobs.btfs.into_iter().map(|(_, stored)| stored).collect(),
            tables: shared.tables.into_iter().map(|(_, blob)| blob).collect(),
            machines: shared.machines,
            snapshots: places,
        };
        let json = serde_json::to_vec(&footer).map_err(io::Error::other)?;
        if json.len() as u64 > MAX_FOOTER {
            return Err(io::Error::other("there are too many snapshots for one file"));
        }
        let packed = pack(&json)?;
        out.write_all(&packed)?;
        let at = end + shared.blobs.bytes.len() as u64;
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&MAGIC)?;
        let numbers = [packed.len(), json.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        for number in [VERSION, numbers[0], numbers[1], crc32fast::hash(&packed)] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.write_all(&at.to_le_bytes())
    });
    written.map_err(|cause| StoreError::Write { path: path.to_owned(), cause })
}

/// Types and symbols, each once.
#[derive(Default)]
struct Shared {
    blobs: Blobs,
    tables: Vec<(Arc<Symbols>, Blob)>,
    machines: Vec<Machine>,
}

impl Shared {
    fn machine(&mut self, snapshot: &Snapshot, types: &[Arc<Btf>]) -> io::Result<usize> {
        let btfs = types.iter().map(|btf| self.blobs.btf(btf)).collect::<io::Result<_>>()?;
        let state = snapshot.kernel_state().ok();
        let mut table = |symbols: Option<&Arc<Symbols>>| -> io::Result<Option<usize>> {
            let Some(symbols) = symbols else { return Ok(None) };
            let known = self.tables.iter().position(|(known, _)| Arc::ptr_eq(known, symbols));
            if known.is_some() {
                return Ok(known);
            }
            // One that a reader would refuse is left out.
            let Some(blob) = self.blobs.table(symbols)? else { return Ok(None) };
            self.tables.push((symbols.clone(), blob));
            Ok(Some(self.tables.len() - 1))
        };
        let symbols = table(state.and_then(|state| state.symbols.as_ref()))?;
        let module_symbols = table(state.and_then(|state| state.module_symbols.as_ref()))?;
        let machine = Machine { btfs, symbols, module_symbols };
        if let Some(place) = self.machines.iter().position(|known| *known == machine) {
            return Ok(place);
        }
        self.machines.push(machine);
        Ok(self.machines.len() - 1)
    }
}

/// The snapshots in a file that [`save_all`] wrote, and when and how each was taken. They are read
/// when they are asked for.
///
/// # Errors
/// Every [`StoreError`] but the first.
pub fn open_all(path: &Path) -> Result<Vec<(Meta, Shelved)>, StoreError> {
    let read = |cause| StoreError::Read { path: path.to_owned(), cause };
    let len = fs::metadata(path).map_err(read)?.len();
    let file = Arc::new(File::open(path).map_err(read)?);
    let mut start = [0; START as usize];
    match file.read_exact_at(&mut start, 0) {
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(read(e)),
        Ok(()) if start[..8] == MAGIC => {}
        _ => return Err(StoreError::NoSnapshot { path: path.to_owned() }),
    }
    let number =
        |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let fixed = [number(8), number(12), number(16), number(20)];
    if fixed[0] != VERSION {
        return Err(StoreError::Version { path: path.to_owned(), version: fixed[0] });
    }
    let at = u64::from(number(24)) | u64::from(number(28)) << 32;
    let mut stored =
        Stored { path: path.to_owned(), file: file.clone(), len, base: 0, blobs: 0, fixed };
    let blob = Blob { at: 0, len: fixed[1].into(), unpacked: fixed[2].into(), crc: fixed[3] };
    let json = stored.unpack(at, blob, MAX_FOOTER).map_err(|e| stored.damaged(e))?;
    let footer: Footer = serde_json::from_slice(&json)
        .map_err(|e| stored.damaged(format!("its list of snapshots: {e}")))?;
    stored.blobs = footer.blobs;
    let machines = machines(&stored, &footer)?;
    let shelved = |place: Place| {
        let Place { meta, from, to, machine } = place;
        let beside = machines.get(machine).filter(|_| START <= from && from <= to && to <= len);
        let beside = beside.cloned().ok_or_else(|| {
            stored.damaged(format!("the sample {:?} is not where it should be", meta.tag))
        })?;
        Ok((meta, Shelved { file: file.clone(), dir: path.to_owned(), from, to, beside }))
    };
    footer.snapshots.into_iter().map(shelved).collect()
}

fn machines(stored: &Stored, footer: &Footer) -> Result<Vec<Beside>, StoreError> {
    let btfs = stored.btfs(&footer.btfs)?;
    let tables = footer.tables.iter().map(|blob| stored.table(*blob).map(Arc::new));
    let tables: Vec<Arc<Symbols>> = tables.collect::<Result<_, _>>()?;
    let lost = || stored.damaged("a machine has types or symbols that are not there");
    let table = |place: Option<usize>| {
        place.map(|place| tables.get(place).cloned().ok_or_else(lost)).transpose()
    };
    let machine = |machine: &Machine| {
        let own = machine.btfs.iter().map(|place| btfs.get(*place).cloned().ok_or_else(lost));
        Ok(Beside {
            btfs: own.collect::<Result<_, _>>()?,
            symbols: table(machine.symbols)?,
            module_symbols: table(machine.module_symbols)?,
        })
    };
    footer.machines.iter().map(machine).collect()
}
