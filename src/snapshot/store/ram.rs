//! All of memory in a file, behind everything else:
//!
//! ```text
//! .. blobs ┃ chunk ┃ chunk ┃ .. ┃ index ┃ end: place, length, length unpacked and CRC-32 of the index
//! ```
//!
//! What is kept of memory, put end to end, is cut into chunks of one size; each is a zstd frame of
//! its own. The index says which addresses are kept, and each chunk's length and CRC-32. So memory
//! can be written without holding it twice, and opening a file reads the index alone: a variable
//! costs the chunks that it and the page tables on the way to it are in. Places are counted from
//! where the blobs begin.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::ram::{About, Kept, MAX_RAM, Ram, Run};
use super::format::Blob;
use super::pack::{pack, unpack};
use super::read::Stored;

/// Bytes of memory in a chunk.
const CHUNK: u64 = 256 << 10;
/// The most that a file may say it has in one.
const MAX_CHUNK: u64 = 16 << 20;
/// Bytes of an index, unpacked: 16 for each run of memory, 8 for each chunk.
const MAX_INDEX: u64 = 64 << 20;
/// Unpacked chunks that are held, so that neighbours need not be unpacked again.
const HELD: usize = 64;
/// What begins the last bytes of a file with memory.
const MARK: [u8; 8] = *b"cryo-ram";
/// The mark, three numbers of eight bytes, two checksums of four.
const END: usize = 8 + 3 * 8 + 2 * 4;

/// Writes memory behind the blobs, which end at `at`.
pub(super) fn write(out: &mut impl Write, at: u64, ram: &Ram) -> io::Result<()> {
    let total = ram.kept();
    let mut chunks = Vec::new();
    let (mut end, mut offset) = (at, 0);
    while offset < total {
        let mut bytes = vec![0; CHUNK.min(total - offset) as usize];
        ram.read_kept(offset, &mut bytes).map_err(io::Error::other)?;
        let packed = pack(&bytes)?;
        out.write_all(&packed)?;
        chunks.push((packed.len() as u32, crc32fast::hash(&packed)));
        end += packed.len() as u64;
        offset += bytes.len() as u64;
    }
    let mut index = Vec::new();
    let numbers = [CHUNK, at, ram.runs().len() as u64];
    numbers.iter().for_each(|n| index.extend(n.to_le_bytes()));
    for run in ram.runs() {
        index.extend(run.at.to_le_bytes());
        index.extend(run.len.to_le_bytes());
    }
    for (len, crc) in chunks {
        index.extend(len.to_le_bytes());
        index.extend(crc.to_le_bytes());
    }
    let packed = pack(&index)?;
    out.write_all(&packed)?;
    let mut last = MARK.to_vec();
    let numbers = [end, packed.len() as u64, index.len() as u64];
    numbers.iter().for_each(|n| last.extend(n.to_le_bytes()));
    last.extend(crc32fast::hash(&packed).to_le_bytes());
    last.extend(crc32fast::hash(&last).to_le_bytes());
    out.write_all(&last)
}

/// Opens the memory in a file. Nothing of it is unpacked.
pub(super) fn open(stored: &Arc<Stored>, about: About) -> Result<Ram, String> {
    let missing = || "its memory is missing at its end".to_owned();
    let start = stored.len.checked_sub(END as u64).ok_or_else(missing)?;
    let mut last = [0; END];
    stored.file.read_exact_at(&mut last, start).map_err(|e| e.to_string())?;
    let mut end = Numbers(&last);
    if end.take::<8>() != Some(&MARK) {
        return Err(missing());
    }
    let (at, len, unpacked) = (end.u64()?, end.u64()?, end.u64()?);
    let (crc, of_this) = (end.u32()?, end.u32()?);
    if crc32fast::hash(&last[..END - 4]) != of_this {
        return Err("its last bytes do not fit their checksum".to_owned());
    }
    let index = stored.unpack(stored.blobs, Blob { at, len, unpacked, crc }, MAX_INDEX)?;
    let (runs, chunks) = read_index(&index, at, stored)?;
    Ram::new(about, runs, Box::new(chunks))
}

/// Takes an index apart, which begins at `end` in the file: chunks end there.
fn read_index(index: &[u8], end: u64, stored: &Stored) -> Result<(Vec<Run>, Chunks), String> {
    let wrong = || "its index of memory contradicts itself".to_owned();
    let mut rest = Numbers(index);
    let (size, mut at, count) = (rest.u64()?, rest.u64()?, rest.u64()?);
    let room = rest.0.len() as u64 / 16;
    if !(1..=MAX_CHUNK).contains(&size) || count > room {
        return Err(wrong());
    }
    let (mut runs, mut total) = (Vec::with_capacity(count as usize), 0u64);
    for _ in 0..count {
        let (at, len) = (rest.u64()?, rest.u64()?);
        runs.push(Run { at, len, offset: total });
        total = total.checked_add(len).filter(|total| *total <= MAX_RAM).ok_or_else(wrong)?;
    }
    if rest.0.len() as u64 != total.div_ceil(size) * 8 {
        return Err(wrong());
    }
    let mut table = Vec::with_capacity(rest.0.len() / 8);
    while !rest.0.is_empty() {
        let (len, crc) = (rest.u32()?, rest.u32()?);
        // What does not compress takes a little more than it is.
        if u64::from(len) > size + size / 64 + 1024 {
            return Err(wrong());
        }
        table.push(Chunk { at, len, crc });
        at = at.checked_add(len.into()).filter(|at| *at <= end).ok_or_else(wrong)?;
    }
    // All of this lies before the index, which is in the file.
    table.iter_mut().for_each(|chunk| chunk.at += stored.blobs);
    let file = stored.file.try_clone().map_err(|e| e.to_string())?;
    let held = Mutex::default();
    Ok((runs, Chunks { file, path: stored.path.clone(), size, total, table, held }))
}

/// Little-endian numbers, one after the other.
struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(first)
    }

    fn u64(&mut self) -> Result<u64, String> {
        let bytes = self.take().ok_or("its index of memory ends early")?;
        Ok(u64::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take().ok_or("its index of memory ends early")?;
        Ok(u32::from_le_bytes(*bytes))
    }
}

/// Where a chunk is in the file.
#[derive(Clone, Copy)]
struct Chunk {
    at: u64,
    len: u32,
    crc: u32,
}

/// The chunks of a file, unpacked when they are read.
struct Chunks {
    file: File,
    path: PathBuf,
    /// Bytes of each but the last.
    size: u64,
    /// Bytes of all.
    total: u64,
    table: Vec<Chunk>,
    /// The last ones that were read, the latest first.
    held: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

impl Chunks {
    fn chunk(&self, i: usize) -> Result<Arc<Vec<u8>>, String> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = held.iter().position(|(n, _)| *n == i) {
            let known = held.remove(place).expect("it was just found");
            held.push_front(known.clone());
            return Ok(known.1);
        }
        let bytes = Arc::new(self.unpack(i)?);
        held.push_front((i, bytes.clone()));
        // Large chunks are fewer.
        let most = (HELD as u64 * CHUNK / self.size).clamp(2, HELD as u64);
        held.truncate(most as usize);
        Ok(bytes)
    }

    fn unpack(&self, i: usize) -> Result<Vec<u8>, String> {
        let damaged = |what: &str| {
            let Chunk { at, len, .. } = self.table[i];
            let path = self.path.display();
            format!("{path} is damaged: the {len} bytes of memory at {at} {what}")
        };
        let Chunk { at, len, crc } = self.table[i];
        let mut packed = vec![0; len as usize];
        self.file.read_exact_at(&mut packed, at).map_err(|e| damaged(&e.to_string()))?;
        if crc32fast::hash(&packed) != crc {
            return Err(damaged("do not fit their checksum"));
        }
        let want = self.size.min(self.total - i as u64 * self.size) as usize;
        // One that would unpack to more is cut off by this.
        match unpack(&packed, want) {
            Ok(bytes) if bytes.len() == want => Ok(bytes),
            _ => Err(damaged("do not unpack to what they should")),
        }
    }
}

impl Kept for Chunks {
    fn len(&self) -> u64 {
        self.total
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (i, within) = ((at / self.size) as usize, (at % self.size) as usize);
            let chunk = self.chunk(i)?;
            let there =
                chunk.get(within..).filter(|rest| !rest.is_empty()).ok_or("it ends early")?;
            let n = there.len().min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&there[..n]);
            done += n;
        }
        Ok(())
    }
}
