//! What is in a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::contents::{Details, MapAttrs};
use super::super::ram::About;
use super::super::{KernelState, Meta};

pub(super) const MAGIC: [u8; 8] = *b"cryo\x8f\r\n\x1a";
/// Raised whenever an older cryoscope could not read what is written.
pub(super) const VERSION: u32 = 1;
/// Magic, version, and three numbers about the header.
pub(super) const FIXED: usize = 8 + 4 * 4;
/// Bytes of header, unpacked: a few hundred a map.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// Bytes of one blob, unpacked.
pub(super) const MAX_BLOB: u64 = 1 << 30;
/// Bytes of all blobs, unpacked.
pub(super) const MAX_BLOBS: u64 = 4 << 30;
/// Bytes of symbols; a kernel's take seven million.
pub(super) const MAX_SYMBOLS: u64 = 64 << 20;
/// Bytes of a BTF; a kernel's has five million.
pub(super) const MAX_BTF: u64 = 64 << 20;
/// Bytes of the details of a map's rows.
pub(super) const MAX_DETAILS: u64 = 64 << 20;
pub(super) const LEVEL: i32 = 3;

#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    /// The program that wrote it.
    pub(super) writer: String,
    pub(super) meta: Meta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) placeholder: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) torn: Vec<String>,
    pub(super) btfs: Vec<StoredBtf>,
    pub(super) maps: Vec<StoredMap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<StoredKernel>,
}

/// What was copied of the kernel.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredKernel {
    /// Its types, in the list of them.
    pub(super) btf: usize,
    /// Its symbols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) symbols: Option<Blob>,
    pub(super) bytes: Blob,
    /// The symbols of modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) module_symbols: Option<Blob>,
    /// Types of modules in the list of types, in the order of modules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) module_btfs: Vec<Option<usize>>,
    /// All of memory, which lies behind the blobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ram: Option<About>,
    pub(super) state: KernelState,
}

/// A blob's place behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blob {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) unpacked: u64,
    pub(super) crc: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredBtf {
    pub(super) raw: Blob,
    /// The one that it is split from: an earlier one of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<usize>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredMap {
    pub(super) attrs: MapAttrs,
    /// Its types, in the list of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) btf: Option<usize>,
    pub(super) rows: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) values: Option<Blob>,
    /// By CPU: a bit a row for whether it has a value, then the values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cpus: Option<Vec<Option<Blob>>>,
    /// Bytes of a key and of a value.
    pub(super) sizes: (usize, usize),
    /// Where each key and each value ends, eight bytes each, when they have different lengths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_ends: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value_ends: Option<Blob>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) details: Details,
    /// Details of rows, as JSON: there may be many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) row_details: Option<Blob>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) torn: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) torn_rows: BTreeMap<usize, Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) incomplete: Option<String>,
}

impl StoredMap {
    pub(super) fn blobs(&self) -> impl Iterator<Item = Blob> {
        let cpus = self.cpus.iter().flatten().flatten();
        let ends = self.key_ends.iter().chain(&self.value_ends);
        let all = self.keys.iter().chain(&self.values).chain(ends).chain(&self.row_details);
        all.chain(cpus).copied()
    }
}
