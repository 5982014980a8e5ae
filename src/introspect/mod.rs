//! The guest kernel's own state, from RAM alone: paging, symbols, typed reads, BPF maps.

mod contents;
mod error;

pub use contents::{MapContents, MapData, PerCpuValues, Values};
pub use error::{IntrospectError, ReadError, Unreachable, WalkError};
