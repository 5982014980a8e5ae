//! A kernel's memory in a copy of its RAM, read by the kernel's own addresses.
//!
//! [`super::Kernel::open`] searches RAM for the kernel and reads its tables. Who has been told
//! where things are needs to look at nothing but what is asked for, and the page tables on the
//! way: a stored image is not unpacked for one variable.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ReadError;
use super::paging::PageTables;
use super::space::AddressSpace;
use crate::mem::{Gpa, GuestMem, Kva};

/// Where a kernel is in RAM and in its address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Physical address of the uppermost page table.
    pub tables: u64,
    /// Whether there are five levels of them.
    pub five_levels: bool,
    /// Where all of RAM is mapped in one piece.
    pub direct_map: u64,
    /// Start and end of the kernel's image.
    pub image: Option<(u64, u64)>,
    /// How far the image was moved in physical memory.
    pub phys_base: u64,
    /// Physical address of the page of VMCOREINFO.
    pub note: u64,
}

impl Layout {
    /// The address space of the kernel that is where this says in `mem`; what does not agree with
    /// the page tables is not used.
    pub(super) fn space(&self, mem: Arc<dyn GuestMem>) -> AddressSpace {
        let tables = PageTables::new(Gpa(self.tables), self.five_levels);
        let mut space = AddressSpace::new(mem, tables);
        if let Some((start, end)) = self.image {
            space.trust_image(Kva(start), Kva(end), self.phys_base);
        }
        space.trust_direct_map(Kva(self.direct_map));
        space
    }
}

/// RAM, read by a kernel's addresses.
pub struct View(AddressSpace);

impl View {
    /// Takes RAM in which a kernel is where `layout` says.
    #[must_use]
    pub fn new(mem: Arc<dyn GuestMem>, layout: &Layout) -> View {
        View(layout.space(mem))
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// [`ReadError`] when any byte of the range is not mapped or not RAM.
    pub fn read(&self, at: Kva, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0.read(at, buf)
    }

    /// The physical address behind a virtual one.
    #[must_use]
    pub fn translate(&self, at: Kva) -> Option<Gpa> {
        self.0.translate(at).ok()
    }
}
