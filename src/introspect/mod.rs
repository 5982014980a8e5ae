//! The guest kernel's own state, from RAM alone: paging, symbols, typed reads, BPF maps.
//!
//! Nothing here knows of virtual machines: all it needs is [`GuestMem`](crate::mem::GuestMem), so
//! it works on a stored image as well. Whatever it reads may have been made up by a hostile
//! guest: walks are bounded, addresses checked, and what is torn or damaged becomes a typed error
//! beside what could be read.
//!
//! ```text
//! VMCOREINFO ──▶ page tables ──▶ kallsyms ──▶ BTF
//!                     │              │          │
//!                     ▼              ▼          ▼
//!                AddressSpace     Symbols     types ──▶ Object, walks ──▶ maps
//! ```

mod bpf;
mod contents;
mod error;
mod kallsyms;
mod kernel;
mod object;
mod paging;
mod space;
mod symbols;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vmcoreinfo;
mod walk;

pub use bpf::{Budget, MAX_MAPS, MapInfo, MapKind, MapList, ProgInfo, ProgList, RawMap, Runs};
pub use contents::{MapContents, MapData, PerCpuValues, Values};
pub use error::{IntrospectError, ReadError, Unreachable, WalkError};
pub use kernel::Kernel;
pub use object::Object;
pub use symbols::{Symbol, Symbols};
pub use walk::{MAX_ELEMENTS, Walk};
