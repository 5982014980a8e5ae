//! Pieces of a guest kernel's memory, copied.

use std::collections::BTreeMap;

use super::super::bpf::Budget;
use super::super::kernel::Kernel;
use crate::mem::Kva;

/// Pieces before an address that are asked for it.
const OVERLAPPING: usize = 8;

/// Where a piece of memory was copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its kernel-virtual address.
    pub at: u64,
    /// Bytes.
    pub len: usize,
    /// Where it begins in the bytes.
    pub offset: usize,
}

/// Copied pieces, each in one run of bytes.
#[derive(Debug, Default)]
pub struct Memory {
    bytes: Vec<u8>,
    used: usize,
    /// Length and place by address.
    pieces: BTreeMap<u64, (usize, usize)>,
}

impl Memory {
    /// Nothing, to be written into `spare`, which keeps its length: bytes behind those in use are
    /// whatever they were.
    pub(super) fn new(spare: Vec<u8>) -> Self {
        Memory { bytes: spare, used: 0, pieces: BTreeMap::new() }
    }

    /// Copies `len` bytes at `at`, unless they are there already.
    pub(in crate::introspect) fn copy(
        &mut self,
        kernel: &Kernel,
        at: u64,
        len: u64,
        budget: &mut Budget,
    ) -> Result<(), String> {
        if self.get(at, len).is_some() {
            return Ok(());
        }
        budget.take(len)?;
        let (offset, len) = (self.used, len as usize);
        let end = offset + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        kernel.read(Kva(at), &mut self.bytes[offset..end]).map_err(|e| e.to_string())?;
        self.used = end;
        // A longer piece at the same address takes the place of a shorter one.
        self.pieces.insert(at, (len, offset));
        Ok(())
    }

    /// The bytes there, if all of them lie in one piece.
    #[must_use]
    pub fn get(&self, at: u64, len: u64) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        // A piece may lie in a longer one that was copied later.
        self.pieces.range(..=at).rev().take(OVERLAPPING).find_map(|(start, &(size, offset))| {
            let within = usize::try_from(at - start).ok()?;
            let end = within.checked_add(len).filter(|end| *end <= size)?;
            self.bytes.get(offset + within..offset + end)
        })
    }

    pub(in crate::introspect) fn u64(&self, at: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.get(at, 8)?.try_into().ok()?))
    }

    pub(in crate::introspect) fn u32(&self, at: u64) -> Option<u32> {
        Some(u32::from_le_bytes(self.get(at, 4)?.try_into().ok()?))
    }

    /// Whether anything between `at` and `len` bytes behind it was copied.
    pub(in crate::introspect) fn touches(&self, at: u64, len: u64) -> bool {
        let begins_there = self.pieces.range(at..at.saturating_add(len)).next().is_some();
        begins_there || self.get(at, 1).is_some()
    }

    /// Bytes that were copied.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing was copied.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Nothing more is copied.
    pub(in crate::introspect) fn close(&mut self) {
        self.bytes.truncate(self.used);
    }

    pub(super) fn into_spare(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes, and the pieces in them, ascending by address.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Vec<Piece>) {
        let piece = |(at, (len, offset))| Piece { at, len, offset };
        (self.bytes, self.pieces.into_iter().map(piece).collect())
    }
}
