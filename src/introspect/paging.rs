//! Page-table walks: from a kernel-virtual address to the guest-physical one.
//!
//! The layout is data ([`X86_64`]): one line per level, from the top. A walk over a range reads
//! the entries of a leaf table in one go, so translating a megabyte costs a handful of reads and
//! needs no cache that could be stale.

use super::error::Unreachable;
use crate::mem::{Gpa, GuestMem, Kva};

/// Bytes of the smallest page, and of a page table.
pub(crate) const PAGE: u64 = 4096;

const ENTRY: usize = 8;
const ENTRIES: u64 = 512;

/// The entry leads somewhere.
const PRESENT: u64 = 1;
/// The entry maps a large page instead of pointing to a table.
const LARGE: u64 = 1 << 7;
/// The bits of an entry that hold a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One level of tables.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// What an entry spans, as a power of two of bytes.
    shift: u32,
    /// Whether an entry may map a page of that size by itself.
    large: bool,
}

/// The levels of x86-64, from the top: PML5 (where LA57 is on), PML4, PDPT, PD, PT
/// (Intel SDM volume 3, "4-level paging and 5-level paging").
const X86_64: [Level; 5] = [
    Level { shift: 48, large: false },
    Level { shift: 39, large: false },
    Level { shift: 30, large: true },
    Level { shift: 21, large: true },
    Level { shift: 12, large: false },
];

/// The page tables of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageTables {
    root: Gpa,
    levels: &'static [Level],
}

/// A run of addresses that is mapped contiguously, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First kernel-virtual address.
    pub(crate) at: Kva,
    /// Bytes.
    pub(crate) len: u64,
    /// Where it leads, or why nowhere.
    pub(crate) to: Result<Gpa, Unreachable>,
}

impl PageTables {
    /// The tables whose uppermost one lies at `root`.
    pub(crate) fn new(root: Gpa, five_levels: bool) -> Self {
        let levels: &'static [Level] = if five_levels { &X86_64 } else { &X86_64[1..] };
        PageTables { root, levels }
    }

    /// Whether the bits above those that the tables translate all equal the highest one.
    fn is_canonical(&self, at: Kva) -> bool {
        let unused = 64 - (self.levels[0].shift + 9);
        ((at.0 << unused) as i64 >> unused) as u64 == at.0
    }

    /// Where `at` leads.
    pub(crate) fn translate(&self, mem: &dyn GuestMem, at: Kva) -> Result<Gpa, Unreachable> {
        let mut found = Err(Unreachable::NotMapped(at));
        self.walk(mem, at, 1, &mut |run| found = run.to);
        found
    }

    /// Calls `f` with the runs that make up `len` bytes from `at` on, in ascending order. Runs
    /// that follow one another in both address spaces are merged.
    pub(crate) fn walk(&self, mem: &dyn GuestMem, at: Kva, len: u64, f: &mut dyn FnMut(Run)) {
        let Some(last) = at.0.checked_add(len.saturating_sub(1)).filter(|_| len > 0) else {
            if len > 0 {
                f(Run { at, len, to: Err(Unreachable::Wraps) });
            }
            return;
        };
        let mut merge = Merge { pending: None, f };
        let mut from = at.0;
        loop {
            let next = self.step(mem, Kva(from), last, &mut merge);
            match next {
                Some(next) if next <= last => from = next,
                _ => break,
            }
        }
        merge.flush();
    }

    /// Translates from `at` to the end of what one leaf table or large page covers (or to
    /// `last`), and says where to go on; `None` at the end of the address space.
    fn step(&self, mem: &dyn GuestMem, at: Kva, last: u64, out: &mut Merge<'_>) -> Option<u64> {
        if !self.is_canonical(at) {
            // No page tables reach there: skip the rest, whatever it is.
            out.push(at, last - at.0 + 1, Err(Unreachable::NotCanonical(at)));
            return None;
        }
        let mut table = self.root;
        for level in &self.levels[..self.levels.len() - 1] {
            let span = 1u64 << level.shift;
            // The last address that this entry covers.
            let end = (at.0 | (span - 1)).min(last);
            let slot = Gpa(table.0 + (at.0 >> level.shift) % ENTRIES * ENTRY as u64);
            let mut raw = [0; ENTRY];
            let to = match mem.read(slot, &mut raw) {
                Err(_) => Some(Err(Unreachable::NoTable(table))),
                Ok(()) => match u64::from_le_bytes(raw) {
                    entry if entry & PRESENT == 0 => Some(Err(Unreachable::NotMapped(at))),
                    entry if entry & LARGE != 0 && level.large => {
                        let page = entry & ADDRESS & !(span - 1);
                        Some(Ok(Gpa(page + at.0 % span)))
                    }
                    entry => {
                        table = Gpa(entry & ADDRESS);
                        None
                    }
                },
            };
            if let Some(to) = to {
                out.push(at, end - at.0 + 1, to);
                return end.checked_add(1);
            }
        }
        self.leaf(mem, table, at, last, out)
    }

    /// Translates through one table of the lowest level, whose entries are read in one go.
    fn leaf(
        &self,
        mem: &dyn GuestMem,
        table: Gpa,
        at: Kva,
        last: u64,
        out: &mut Merge<'_>,
    ) -> Option<u64> {
        let end = (at.0 | (PAGE * ENTRIES - 1)).min(last);
        let first = at.0 / PAGE % ENTRIES;
        let count = (end / PAGE % ENTRIES - first + 1) as usize;
        let mut raw = [0; PAGE as usize];
        let raw = &mut raw[..count * ENTRY];
        if mem.read(Gpa(table.0 + first * ENTRY as u64), raw).is_err() {
            out.push(at, end - at.0 + 1, Err(Unreachable::NoTable(table)));
            return end.checked_add(1);
        }
        let mut from = at.0;
        for entry in raw.chunks_exact(ENTRY) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            let stop = (from | (PAGE - 1)).min(end);
            let to = if entry & PRESENT == 0 {
                Err(Unreachable::NotMapped(Kva(from)))
            } else {
                Ok(Gpa((entry & ADDRESS) + from % PAGE))
            };
            out.push(Kva(from), stop - from + 1, to);
            from = stop.wrapping_add(1);
        }
        end.checked_add(1)
    }
}

/// Joins runs that follow one another before they are handed on.
struct Merge<'a> {
    pending: Option<Run>,
    f: &'a mut dyn FnMut(Run),
}

impl Merge<'_> {
    fn push(&mut self, at: Kva, len: u64, to: Result<Gpa, Unreachable>) {
        if let Some(last) = &mut self.pending {
            let joins = match (last.to, to) {
                (Ok(a), Ok(b)) => a.0.checked_add(last.len) == Some(b.0),
                (Err(Unreachable::NotMapped(_)), Err(Unreachable::NotMapped(_))) => true,
                _ => false,
            };
            if joins {
                last.len += len;
                return;
            }
        }
        self.flush();
        self.pending = Some(Run { at, len, to });
    }

    fn flush(&mut self) {
        if let Some(run) = self.pending.take() {
            (self.f)(run);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::mem::FakeMem;
    use proptest::prelude::*;

    /// Builds page tables in a [`FakeMem`], taking pages for them from the top down.
    pub(crate) struct Builder {
        pub(crate) mem: FakeMem,
        pub(crate) tables: PageTables,
        next: u64,
    }

    impl Builder {
        pub(crate) fn new(five_levels: bool) -> Self {
            let mut mem = FakeMem::new();
            let next = 0x7000_0000;
            mem.write(Gpa(next), &[0; PAGE as usize]);
            Builder { mem, tables: PageTables::new(Gpa(next), five_levels), next }
        }

        pub(crate) fn root(&self) -> Gpa {
            self.tables.root
        }

        fn read(&self, at: Gpa) -> u64 {
            let mut raw = [0; 8];
            self.mem.read(at, &mut raw).unwrap();
            u64::from_le_bytes(raw)
        }

        /// Maps the page of `1 << shift` bytes at `at` to `to`.
        pub(crate) fn map(&mut self, at: Kva, to: Gpa, shift: u32) {
            let mut table = self.tables.root;
            for level in self.tables.levels {
                let slot = Gpa(table.0 + (at.0 >> level.shift) % ENTRIES * 8);
                if level.shift == shift {
                    let large = if shift > 12 { LARGE } else { 0 };
                    // Bits that are no address must not reach it: NX, dirty, global, PAT.
                    let noise =
                        1 << 63 | 1 << 6 | 1 << 8 | if large != 0 { 1 << 12 } else { LARGE };
                    self.mem.write(slot, &(to.0 | PRESENT | large | noise).to_le_bytes());
                    return;
                }
                let mut entry = self.read(slot);
                if entry == 0 {
                    self.next -= PAGE;
                    self.mem.write(Gpa(self.next), &[0; PAGE as usize]);
                    entry = self.next | PRESENT | 0x62;
                    self.mem.write(slot, &entry.to_le_bytes());
                }
                table = Gpa(entry & ADDRESS);
            }
            unreachable!("no level has pages of 1 << {shift} bytes");
        }

        /// Takes the entry that maps the smallest page at `at` away.
        pub(crate) fn unmap(&mut self, at: Kva) {
            let mut table = self.tables.root;
            for level in self.tables.levels {
                let slot = Gpa(table.0 + (at.0 >> level.shift) % ENTRIES * 8);
                if level.shift == 12 {
                    self.mem.write(slot, &[0; 8]);
                }
                table = Gpa(self.read(slot) & ADDRESS);
            }
        }

        fn runs(&self, at: Kva, len: u64) -> Vec<Run> {
            let mut out = Vec::new();
            self.tables.walk(&self.mem, at, len, &mut |run| out.push(run));
            out
        }
    }

    const VMALLOC: u64 = 0xffff_c900_0000_0000;

    #[test]
    fn pages_of_every_size_are_found_in_four_and_in_five_levels() {
        for five in [false, true] {
            let mut b = Builder::new(five);
            let base = if five { 0xff11_0000_0000_0000 } else { 0xffff_8880_0000_0000 };
            b.map(Kva(base), Gpa(0x4000_0000), 30);
            b.map(Kva(base + (1 << 30)), Gpa(0x20_0000), 21);
            b.map(Kva(base + (1 << 30) + (2 << 21)), Gpa(0x5000), 12);
            let go = |at| b.tables.translate(&b.mem, Kva(at));
            assert_eq!(go(base + 0x1234_5678), Ok(Gpa(0x5234_5678)));
            assert_eq!(go(base + (1 << 30) + 0x1f_fff8), Ok(Gpa(0x3f_fff8)));
            assert_eq!(go(base + (1 << 30) + (2 << 21) + 0xabc), Ok(Gpa(0x5abc)));
            let hole = Kva(base + (1 << 30) + (2 << 21) + PAGE);
            assert_eq!(go(hole.0), Err(Unreachable::NotMapped(hole)));
        }
    }

    #[test]
    fn addresses_that_no_table_reaches_are_refused() {
        let four = Builder::new(false);
        let five = Builder::new(true);
        let at = Kva(0xff11_0000_0000_0000);
        let odd = Kva(0x1234_5678_9abc_def0);
        assert_eq!(four.tables.translate(&four.mem, at), Err(Unreachable::NotCanonical(at)));
        assert_eq!(five.tables.translate(&five.mem, at), Err(Unreachable::NotMapped(at)));
        assert_eq!(five.tables.translate(&five.mem, odd), Err(Unreachable::NotCanonical(odd)));
        assert_eq!(four.runs(Kva(u64::MAX - 3), 8).len(), 1, "past the end");
        assert_eq!(four.runs(Kva(u64::MAX - 3), 4)[0].len, 4, "up to the end");
    }

    #[test]
    fn neighbours_are_merged_and_holes_are_kept() {
        let mut b = Builder::new(false);
        b.map(Kva(VMALLOC), Gpa(0x8000), 12);
        b.map(Kva(VMALLOC + PAGE), Gpa(0x9000), 12);
        b.map(Kva(VMALLOC + 3 * PAGE), Gpa(0xa000), 12);
        b.map(Kva(VMALLOC + 4 * PAGE), Gpa(0x2000), 12);
        let runs = b.runs(Kva(VMALLOC + 0x10), 5 * PAGE - 0x20);
        let got: Vec<_> = runs.iter().map(|r| (r.at.0 - VMALLOC, r.len, r.to.ok())).collect();
        assert_eq!(
            got,
            [
                (0x10, 0x1ff0, Some(Gpa(0x8010))),
                (0x2000, 0x1000, None),
                (0x3000, 0x1000, Some(Gpa(0xa000))),
                (0x4000, 0xff0, Some(Gpa(0x2000))),
            ]
        );
    }

    #[test]
    fn runs_cross_leaf_tables_and_page_sizes() {
        let mut b = Builder::new(false);
        let edge = VMALLOC + (1 << 21);
        b.map(Kva(edge - PAGE), Gpa(0x1f_f000), 12);
        b.map(Kva(edge), Gpa(0x20_0000), 21);
        let runs = b.runs(Kva(edge - PAGE), PAGE + (1 << 21));
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].len, runs[0].to), (PAGE + (1 << 21), Ok(Gpa(0x1f_f000))));
    }

    #[test]
    fn a_table_outside_of_ram_is_named() {
        let mut b = Builder::new(false);
        b.map(Kva(VMALLOC), Gpa(0x8000), 12);
        let slot = Gpa(b.root().0 + (VMALLOC >> 39) % ENTRIES * 8);
        b.mem.write(slot, &(0xdead_0000_0000u64 | PRESENT).to_le_bytes());
        let got = b.tables.translate(&b.mem, Kva(VMALLOC));
        assert_eq!(got, Err(Unreachable::NoTable(Gpa(0xdead_0000_0000))));
    }

    proptest! {
        #[test]
        fn hostile_tables_give_runs_that_cover_the_range_exactly(
            seed in prop::collection::vec(any::<u64>(), 64),
            at in any::<u64>(),
            len in 0u64..(1 << 24),
            five in any::<bool>(),
        ) {
            let mut mem = FakeMem::new();
            // Every entry leads back into the same few pages.
            for (i, n) in seed.iter().cycle().take(4 * 512).enumerate() {
                let entry = (n & 0xfff | (n >> 20 & 3) << 12) | (n & 1 << 50);
                mem.write(Gpa(i as u64 * 8), &entry.to_le_bytes());
            }
            let tables = PageTables::new(Gpa(0), five);
            let mut next = at;
            let mut total = 0u64;
            tables.walk(&mem, Kva(at), len, &mut |run| {
                assert_eq!(run.at.0, next);
                assert!(run.len > 0);
                total += run.len;
                next = next.wrapping_add(run.len);
            });
            prop_assert_eq!(total, len);
        }
    }
}
