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
//! bytes) are in the header. All of memory, if it is in the file, comes last (`ram.rs`).
//!
//! Files are not trusted: every length is checked before anything is allocated, and what does not
//! fit its checksum is an error.

mod bundle;
mod core;
mod format;
mod pack;
mod ram;
mod read;
mod shelf;
mod write;

use std::io;
use std::path::PathBuf;

pub use bundle::{is_bundle, open_all, save_all};
pub use shelf::{Shelf, Shelved};

use crate::words::plain;
use format::VERSION;

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
    /// All of memory is to be written, and the snapshot does not have it.
    #[error("cannot save all of memory to {}: {why}", path.display())]
    NoRam {
        /// As given.
        path: PathBuf,
        /// Why there is none.
        why: String,
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
    /// It holds many.
    #[error(
        "{0} is a series of many snapshots: open(\"{0}\") gives it to a script, and .at(0) its first \
         snapshot, which .save(..) writes to a file of its own",
        path.display()
    )]
    Series {
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
