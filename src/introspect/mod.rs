//! The guest kernel's own state, from RAM alone: paging, symbols, typed reads, BPF maps, scheduling.
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
//!                AddressSpace     Symbols     types ──▶ Object, walks ──▶ maps, sched
//! ```

mod bpf;
mod contents;
mod error;
mod kallsyms;
mod kernel;
mod object;
mod paging;
mod place;
mod rhashtable;
mod sched;
mod space;
mod symbols;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;
mod vmcoreinfo;
mod walk;

#[cfg(test)]
pub(crate) use bpf::tests::{busy_guest as made_up_guest, guest_of_kinds as made_up_kinds};
pub use bpf::{
    Budget, Cast, Code, GlobalAt, Leads, MAX_MAPS, MapInfo, MapKind, MapList, Owned, ProgInfo,
    ProgList, RawMap, Runs,
};
pub use contents::{Detail, Details, MapContents, MapData, PerCpuValues, Values};
pub use error::{IntrospectError, ReadError, Unreachable, WalkError};
pub use kernel::Kernel;
pub use object::Object;
pub use place::{New, Place};
#[cfg(test)]
pub(crate) use sched::testing as made_up_sched;
pub use sched::{
    Cgroup, CpuAt, CpuReading, DomainAt, Domains, Dsq, DsqKind, ExitPoint, GroupAt, Leaving,
    MAX_TASKS, Memory, ModuleAt, ModuleSymbol, Piece, Psi, PsiAt, RawSched, Reading, SchedReading,
    SchedRequest, ScxSched, ScxState, TaskAt, Variable, Where,
};
pub use symbols::{Symbol, Symbols};
#[cfg(test)]
pub(crate) use testing::at as made_up_at;
pub use view::{Layout, View};
pub use walk::{MAX_ELEMENTS, Walk};
