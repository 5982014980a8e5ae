//! ARENA: memory that programs and user space share, by pages (kernel/bpf/arena.c).
//!
//! In the kernel an arena is a window of 4 GiB: what lies at a user address lies in the window at
//! the low 32 bits of that address.

use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::MapInfo;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::{Gpa, Kva};

const PAGE: u64 = 4096;
/// What the window spans.
const WINDOW: u64 = 1 << 32;
/// Addresses whose page tables are walked before the time is looked at again.
const STRIDE: u64 = 64 << 20;

/// `struct bpf_arena`, and what finding its pages takes.
pub(crate) struct ArenaLayout {
    whole: usize,
    user_vm_start: At,
    user_vm_end: At,
    kern_vm: At,
    /// What stands in for pages that a program touches and that are not there (since 7.2).
    scratch_page: Option<At>,
    vm_addr: u64,
    /// Half of what the window has around it: instructions reach so far beyond a pointer.
    guard: u64,
    page_size: u64,
}

impl ArenaLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_arena")?;
        let vm = Finder::new(btf, "struct vm_struct")?;
        let reach = Finder::new(btf, "struct bpf_insn")?.number("off")?.size as u32;
        let reach = 1u64.checked_shl(8 * reach).unwrap_or(0).next_multiple_of(2 * PAGE);
        Ok(ArenaLayout {
            whole: f.size,
            user_vm_start: f.number("user_vm_start")?,
            user_vm_end: f.number("user_vm_end")?,
            kern_vm: f.number("kern_vm")?,
            scratch_page: f.number("scratch_page").ok(),
            vm_addr: vm.number("addr")?.offset as u64,
            guard: reach / 2,
            page_size: Finder::new(btf, "struct page")?.size as u64,
        })
    }
}

impl Kernel {
    /// The pages of an arena that are there, by their user addresses.
    pub(super) fn arena(&self, layout: &ArenaLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        let mut raw = vec![0; layout.whole];
        self.read(map.kva, &mut raw).map_err(text)?;
        let number = |at: At| at.read(&raw).unwrap_or(0);
        let (start, end) = (number(layout.user_vm_start), number(layout.user_vm_end));
        let len = u64::from(map.max_entries) * PAGE;
        if len > WINDOW || start % PAGE != 0 || (start != 0 && end.wrapping_sub(start) != len) {
            let pages = map.max_entries;
            return Err(format!("it claims {pages} pages from {start:#x} to {end:#x}"));
        }
        let area = Kva(number(layout.kern_vm));
        let area = Kva(self.read_u64(area.offset(layout.vm_addr)).map_err(text)?);
        let window = area.offset(layout.guard);
        let mut rows = Rows::new(Some(8), PAGE as usize);
        let scratch = layout.scratch_page.map_or(0, number);
        let scratch = match self.frame(layout, scratch) {
            Ok(scratch) => scratch,
            Err(why) => {
                rows.incomplete(why);
                None
            }
        };
        let pages = self.arena_pages(window, start, len, scratch, budget, &mut rows);
        let mut page = vec![0; PAGE as usize];
        for (address, at) in pages {
            if let Err(e) = budget.take(PAGE + 8) {
                rows.incomplete(e);
                break;
            }
            match self.read(at, &mut page) {
                Ok(()) => rows.push(&address.to_le_bytes(), &page),
                Err(e) => rows.incomplete(e),
            }
        }
        Ok(rows.into())
    }

    /// User and kernel addresses of the pages that are mapped, ascending.
    fn arena_pages(
        &self,
        window: Kva,
        start: u64,
        len: u64,
        scratch: Option<Gpa>,
        budget: &mut Budget,
        rows: &mut Rows,
    ) -> Vec<(u64, Kva)> {
        let (mut pages, mut done) = (Vec::new(), 0);
        while done < len {
            if let Err(e) = budget.check_time() {
                rows.incomplete(e);
                break;
            }
            let first = start.wrapping_add(done);
            let low = first % WINDOW;
            // User space cannot place it across the window's end.
            let piece = STRIDE.min(len - done).min(WINDOW - low);
            self.space.runs(window.offset(low), piece, &mut |run| {
                let Ok(gpa) = run.to else { return };
                for within in (0..run.len).step_by(PAGE as usize) {
                    let at = run.at.offset(within);
                    if Some(gpa.0.wrapping_add(within)) != scratch.map(|s| s.0) {
                        let address = first.wrapping_add(at.0.wrapping_sub(window.0 + low));
                        pages.push((address, at));
                    }
                }
            });
            done += piece;
            if pages.len() as u64 * PAGE > budget.left() {
                // More are not copied anyway, and the copying says so.
                break;
            }
        }
        pages
    }

    /// Where the page of a `struct page` lies; none for a null pointer.
    fn frame(&self, layout: &ArenaLayout, page: u64) -> Result<Option<Gpa>, String> {
        if page == 0 {
            return Ok(None);
        }
        let why = |e: &dyn std::fmt::Display| {
            format!("which of its pages only stand in for missing ones is unknown: {e}")
        };
        let base = self.symbols().address("vmemmap_base").map_err(|e| why(&e))?;
        let base = self.read_u64(base).map_err(|e| why(&e))?;
        match page.checked_sub(base) {
            Some(within) if within % layout.page_size == 0 => {
                let number = within / layout.page_size;
                Ok(number.checked_mul(PAGE).map(Gpa))
            }
            _ => Err(why(&format!("there is no page at {page:#x}"))),
        }
    }
}
