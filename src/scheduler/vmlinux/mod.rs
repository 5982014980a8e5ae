//! `vmlinux.h`: the types of a kernel as one C header, written from its BTF.
//!
//! A BPF program that includes it sees every struct, union, enum and typedef of exactly the
//! kernel it is going to run on, and prototypes of its kfuncs. The order is: enums, forward
//! declarations of everything with a tag, then typedefs and definitions, each after what it
//! needs, then kfuncs.
//!
//! Sizes and offsets equal BTF's. C gives no direct way to say where a member is, so
//! [`layout`] lays each struct out as the compiler would and adds padding or attributes where
//! that differs. Every definition carries `preserve_access_index`, so accesses are relocated
//! when the program is loaded and an object also runs on other kernels.
//!
//! Names that C would take for the same thing (two structs of one name from two source files)
//! get a suffix `___2`, which libbpf ignores when it matches types. As with headers written by
//! bpftool, `BPF_NO_PRESERVE_ACCESS_INDEX` and `BPF_NO_KFUNC_PROTOTYPES` leave parts out.

mod emit;
mod layout;
mod names;
#[cfg(test)]
mod tests;

use crate::btf::{Btf, BtfError, TypeId};

/// Changes whenever the generated text may, for the same BTF: part of the cache key.
pub(crate) const GENERATOR: &str = concat!(
    include_str!("mod.rs"),
    include_str!("emit.rs"),
    include_str!("layout.rs"),
    include_str!("names.rs"),
    include_str!("../../btf/spell.rs"),
);

/// Levels of types inside types that are followed. Kernels nest some forty deep.
const MAX_LEVELS: usize = 200;

/// Bytes of header that are written at most. Kernels take 3 MB.
const MAX_OUTPUT: usize = 16 << 20;

/// Why no header can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The types themselves are damaged.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// C cannot say it: a struct that contains itself, a typedef of itself.
    #[error("type {id} ({name}) needs itself to be declared")]
    Circular {
        /// The type.
        id: TypeId,
        /// Its spelling.
        name: String,
    },
    /// Types nested beyond all measure.
    #[error("type {id} ({name}) nests more than {MAX_LEVELS} levels deep")]
    TooDeep {
        /// The type.
        id: TypeId,
        /// Its spelling.
        name: String,
    },
    /// More text than any kernel needs.
    #[error("the header would be longer than {} MiB", MAX_OUTPUT >> 20)]
    TooLong,
}

/// Writes the header.
///
/// # Errors
/// [`HeaderError`], for BTF that no compiler has written.
pub fn generate(btf: &Btf) -> Result<String, HeaderError> {
    emit::Header::new(btf).write()
}
