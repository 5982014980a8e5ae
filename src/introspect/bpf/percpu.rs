//! Copying per-CPU values: one pointer per row, to which each CPU adds its own offset.
//!
//! The kernel allocates the values of one map close to one another, so a sorted list of pointers
//! becomes a few runs of memory, the same ones for each CPU.

use super::buffers::Buffers;
use super::copy::Budget;
use crate::introspect::contents::PerCpuValues;
use crate::introspect::kernel::Kernel;
use crate::introspect::space::Hole;
use crate::mem::Kva;

/// Values that lie at most this far apart are copied together with what lies between them.
const GAP: u64 = 256;

/// The per-CPU values of a map, as copied.
pub(super) struct RawPerCpu {
    /// The pointer of each row; 0 for a row without one.
    rows: Vec<u64>,
    value_size: usize,
    runs: Vec<Run>,
    /// What each CPU has in all runs, one after the other; `None` if it cannot exist.
    cpus: Vec<Option<CpuBytes>>,
    incomplete: Option<String>,
}

/// A run of per-CPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    len: u64,
    /// Where its bytes begin in [`CpuBytes::bytes`].
    offset: usize,
}

struct CpuBytes {
    bytes: Vec<u8>,
    /// By position in `bytes`, ascending.
    holes: Vec<Hole>,
}

impl CpuBytes {
    /// The value at `start`, unless part of it is missing.
    fn get(&self, start: usize, len: usize) -> Option<&[u8]> {
        let end = start.checked_add(len)?;
        if crosses(&self.holes, start, end) { None } else { self.bytes.get(start..end) }
    }
}

/// Whether any of `holes`, which ascend, lies in `start..end`.
pub(super) fn crosses(holes: &[Hole], start: usize, end: usize) -> bool {
    let first = holes.partition_point(|h| h.offset + h.len <= start);
    holes.get(first).is_some_and(|h| h.offset < end)
}

/// The runs that cover `len` bytes at each pointer, ascending, and their total length.
fn runs(pointers: &[u64], len: u64) -> (Vec<Run>, u64) {
    let mut sorted: Vec<u64> = pointers.iter().copied().filter(|p| *p != 0).collect();
    sorted.sort_unstable();
    let mut out: Vec<Run> = Vec::new();
    let mut total = 0;
    for start in sorted {
        // A pointer so high that its value would wrap around is none.
        let Some(end) = start.checked_add(len) else { continue };
        match out.last_mut() {
            Some(last) if start.saturating_sub(last.start + last.len) <= GAP => {
                let grown = end.max(last.start + last.len) - last.start;
                total += grown - last.len;
                last.len = grown;
            }
            _ => {
                out.push(Run { start, len, offset: total as usize });
                total += len;
            }
        }
    }
    (out, total)
}

impl RawPerCpu {
    /// Copies what all CPUs have at the pointers in `rows`, of which `shown` will be decoded.
    pub(super) fn copy(
        kernel: &Kernel,
        buffers: &Buffers,
        rows: Vec<u64>,
        shown: usize,
        value_size: usize,
        budget: &mut Budget,
    ) -> Self {
        let (runs, total) = runs(&rows, value_size as u64);
        // Rows that share a pointer are copied once, but each has its value when decoded.
        let charge = total.max(shown as u64 * (value_size as u64 + 1));
        let mut out = RawPerCpu { rows, value_size, runs, cpus: Vec::new(), incomplete: None };
        for cpu in 0..kernel.nr_cpu_ids() {
            let base = kernel.per_cpu_offset(cpu).filter(|_| out.incomplete.is_none());
            let Some(base) = base else {
                out.cpus.push(None);
                continue;
            };
            if let Err(e) = budget.take(charge) {
                out.incomplete = Some(format!("from CPU {cpu} on: {e}"));
                out.cpus.push(None);
                continue;
            }
            let mut bytes = buffers.take(total as usize);
            let mut holes = Vec::new();
            for run in &out.runs {
                let piece = &mut bytes[run.offset..run.offset + run.len as usize];
                let at = Kva(run.start.wrapping_add(base));
                let found = kernel.space.read_what_is_there(at, piece);
                holes
                    .extend(found.into_iter().map(|h| Hole { offset: h.offset + run.offset, ..h }));
            }
            out.cpus.push(Some(CpuBytes { bytes, holes }));
        }
        out
    }

    /// The memory of the copy.
    pub(super) fn into_buffers(self) -> Vec<Vec<u8>> {
        self.cpus.into_iter().flatten().map(|cpu| cpu.bytes).collect()
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    pub(super) fn bytes(&self) -> usize {
        let cpus = self.cpus.iter().flatten().map(|c| c.bytes.len()).sum::<usize>();
        cpus + self.rows.len() * 8
    }

    /// The rows of `wanted`, in that order.
    pub(super) fn decode(&self, wanted: &[usize]) -> PerCpuValues {
        let places: Vec<Option<usize>> =
            wanted.iter().map(|row| self.place(*self.rows.get(*row)?)).collect();
        let slots = self.cpus.iter().map(|cpu| {
            cpu.as_ref().map(|cpu| places.iter().map(|p| cpu.get((*p)?, self.value_size)))
        });
        PerCpuValues::by_cpu(wanted.len(), self.value_size, slots)
    }

    /// Shows each value that is there.
    pub(super) fn for_each_value(&self, show: &mut dyn FnMut(&[u8]) -> bool) {
        for start in self.rows.iter().filter_map(|row| self.place(*row)) {
            let on_each = self.cpus.iter().flatten();
            let mut values = on_each.filter_map(|cpu| cpu.get(start, self.value_size));
            if !values.all(&mut *show) {
                return;
            }
        }
    }

    /// Where the value behind `pointer` begins in each CPU's bytes.
    fn place(&self, pointer: u64) -> Option<usize> {
        let after = self.runs.partition_point(|run| run.start <= pointer);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let within = pointer - run.start;
        (within + self.value_size as u64 <= run.len).then_some(run.offset + within as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_values_become_one_run() {
        let (found, total) = runs(&[0x1000, 0x1010, 0, 0x5000, 0x1008, 0x1200, u64::MAX - 3], 8);
        let want = [
            Run { start: 0x1000, len: 0x18, offset: 0 },
            Run { start: 0x1200, len: 8, offset: 0x18 },
            Run { start: 0x5000, len: 8, offset: 0x20 },
        ];
        assert_eq!((found.as_slice(), total), (&want[..], 0x28));
    }

    #[test]
    fn equal_and_overlapping_pointers_are_copied_once() {
        let (found, total) = runs(&[0x100, 0x100, 0x104], 8);
        assert_eq!((found, total), (vec![Run { start: 0x100, len: 12, offset: 0 }], 12));
        assert_eq!(runs(&[u64::MAX - 8, u64::MAX - 9], 8).0.len(), 1, "at the very end");
    }
}
