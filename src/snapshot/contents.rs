//! Where a captured map's bytes come from, as the model sees it.
//!
//! The model does not know introspection: a capture of a live kernel, a stored snapshot and a
//! test hand over the same [`Contents`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::btf::{Btf, TypeId};

/// What is known of a map without looking into it.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct MapAttrs {
    /// The kernel's id.
    pub id: u32,
    /// Address of its `struct bpf_map`; 0 when it is not known.
    pub kva: u64,
    /// The name that the kernel has, cut at 15 characters.
    pub name: String,
    /// The name that its author gave it, where it could be told.
    pub full_name: Option<String>,
    /// The section of its object that it holds (`.bss`), if it holds one.
    pub section: Option<String>,
    /// The kind in the kernel's words and lower case, as bpftool prints it: `percpu_hash`.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries it can hold.
    pub max_entries: u32,
    /// Flags it was created with.
    pub flags: u32,
    /// Types of its object.
    #[serde(skip)]
    pub btf: Option<Arc<Btf>>,
    /// Why `btf` is missing although the map has types.
    pub btf_error: Option<String>,
    /// Type of a key in `btf`; 0 for none.
    pub key_type: TypeId,
    /// Type of a value in `btf`; 0 for none.
    pub value_type: TypeId,
    /// Numbers in its values that are pointers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub casts: Vec<Cast>,
}

/// A number in a map's values that is a pointer: the programs' own instructions prove it, since
/// whatever writes it writes the address of one type of object, or null.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cast {
    /// Where the number lies in a value.
    pub offset: u64,
    /// What it points to: a type of the kernel's, as C calls it.
    pub ty: String,
    /// The programs that write it.
    pub by: Vec<String>,
}

impl MapAttrs {
    /// The full name where it is known, else the cut one.
    #[must_use]
    pub fn shown_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.name)
    }

    /// Bytes of a key as it was captured. To the kernel, arenas and ring buffers have no keys.
    pub(super) fn key_bytes(&self) -> u64 {
        let made = || self.btf.as_ref().filter(|_| self.key_type != 0)?.size_of(self.key_type);
        match self.key_size {
            0 => made().unwrap_or(0),
            size => size.into(),
        }
    }
}

/// Facts by name, in an order that reads well.
pub type Details = Vec<(String, Detail)>;

/// A fact about a map or an entry that is neither key nor value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Detail {
    /// A number.
    Number(u64),
    /// Text.
    Text(String),
}

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Detail::Number(n) => write!(f, "{n}"),
            Detail::Text(text) => f.write_str(text),
        }
    }
}

/// What a map held, as rows of bytes. Rows keep their number as long as the snapshot lives.
pub trait Contents: Send + Sync {
    /// How many rows were read.
    fn rows(&self) -> usize;

    /// The key of a row; `None` in the kinds whose key is the row's number.
    fn key(&self, row: usize) -> Option<&[u8]>;

    /// The value of a row; `None` in per-CPU kinds, and past the end.
    fn value(&self, row: usize) -> Option<&[u8]>;

    /// How many CPUs each row has a slot for; `None` in kinds without per-CPU values.
    fn cpus(&self) -> Option<usize>;

    /// What a CPU has in a row; `None` when no memory stands behind that slot.
    fn cpu_value(&self, row: usize, cpu: usize) -> Option<&[u8]>;

    /// Why the map as a whole may be half-changed; usually empty.
    fn torn(&self) -> &[String];

    /// Why this row may be half-changed; usually empty.
    fn torn_row(&self, row: usize) -> &[String];

    /// Why rows are missing: the kind cannot be decoded, a budget ran out, memory could not be
    /// read.
    fn incomplete(&self) -> Option<&str>;

    /// What the kernel keeps of the map beside its rows; nothing in most kinds.
    fn details(&self) -> &[(String, Detail)] {
        &[]
    }

    /// What it keeps of a row beside key and value.
    fn row_details(&self, row: usize) -> &[(String, Detail)] {
        let _ = row;
        &[]
    }
}

/// Makes the contents at the first access.
pub type Decode = Box<dyn FnOnce() -> Box<dyn Contents> + Send>;

/// A captured map: its attributes, and its contents once somebody looks.
pub struct CapturedMap {
    /// What is known without looking.
    pub attrs: MapAttrs,
    contents: LazyLock<Box<dyn Contents>, Decode>,
    /// Whether somebody has looked.
    touched: AtomicBool,
    /// Rows in the order in which entries are handed out; empty where that is the rows' own.
    order: OnceLock<Vec<u32>>,
}

impl CapturedMap {
    /// A map whose contents are decoded when they are first needed.
    #[must_use]
    pub fn new(attrs: MapAttrs, decode: Decode) -> Self {
        CapturedMap {
            attrs,
            contents: LazyLock::new(decode),
            touched: AtomicBool::new(false),
            order: OnceLock::new(),
        }
    }

    pub(crate) fn contents(&self) -> &dyn Contents {
        self.touched.store(true, Ordering::Relaxed);
        &**LazyLock::force(&self.contents)
    }

    /// Whether somebody has looked at the contents.
    pub(crate) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    pub(crate) fn order(&self, sorted: impl FnOnce() -> Vec<u32>) -> &[u32] {
        self.order.get_or_init(sorted)
    }
}

impl std::fmt::Debug for CapturedMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CapturedMap({} {})", self.attrs.kind, self.attrs.shown_name())
    }
}
