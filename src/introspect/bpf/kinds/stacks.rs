//! STACK_TRACE: stacks by the ids that programs got for them (kernel/bpf/stackmap.c).
//!
//! ```text
//! bpf_stack_map.buckets[id] ──▶ stack_map_bucket { hash, nr, frames.. } in one slab of them
//! ```

use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::MapInfo;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// `BPF_F_STACK_BUILD_ID`: frames are places in files where those are known. ABI.
pub(super) const BUILD_ID: u32 = 1 << 5;
/// Buckets at most, as the kernel has it.
const MAX_BUCKETS: u64 = 1 << 31;

/// `struct bpf_stack_map` and `struct stack_map_bucket`.
pub(crate) struct StackLayout {
    slab: At,
    count: At,
    buckets: u64,
    hash: At,
    nr: At,
    frames: usize,
}

impl StackLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_stack_map")?;
        let bucket = Finder::new(btf, "struct stack_map_bucket")?;
        Ok(StackLayout {
            slab: f.number("elems")?,
            count: f.number("n_buckets")?,
            buckets: f.at("buckets")?.offset as u64,
            hash: bucket.number("hash")?,
            nr: bucket.number("nr")?,
            frames: bucket.at("data")?.offset,
        })
    }
}

/// Bytes of a frame in maps with these flags.
pub(super) fn frame_size(flags: u32) -> u32 {
    // `struct bpf_stack_build_id`, or an address.
    if flags & BUILD_ID != 0 { 32 } else { 8 }
}

impl Kernel {
    /// The stacks by their ids. A value is what the syscall gives: the frames, and zeros behind
    /// the last one.
    pub(super) fn stacks(&self, layout: &StackLayout, map: &MapInfo, budget: &mut Budget) -> Found {
        let (size, frame) = (map.value_size as usize, frame_size(map.map_flags) as usize);
        if size == 0 || size % frame != 0 {
            return Err(format!("its values of {size} bytes are no frames of {frame}"));
        }
        let number = |at: At| self.member(map.kva, at).map_err(text);
        let (slab, count) = (number(layout.slab)?, number(layout.count)?);
        let stacks = u64::from(map.max_entries);
        if count != stacks.next_power_of_two() || count > MAX_BUCKETS {
            return Err(format!("it claims {count} buckets for {stacks} stacks"));
        }
        let step = (layout.frames + size) as u64;
        let mut rows = Rows::new(Some(4), size);
        let table = map.kva.offset(layout.buckets);
        let found = self.table_of_pointers(table, count, budget, &mut rows)?;
        let mut raw = vec![0; layout.frames + size];
        for (id, at) in found {
            if let Err(e) = budget.take(step) {
                rows.incomplete(e);
                break;
            }
            match self.stack(layout, (slab, step * stacks), (at, &mut raw)) {
                Ok((hash, frames)) => {
                    let there = layout.frames + frames * frame;
                    let Some(rest) = raw.get_mut(there..) else {
                        rows.incomplete(format!("stack {id} claims {frames} frames"));
                        continue;
                    };
                    // What an earlier stack has left behind.
                    rest.fill(0);
                    if hash & (count - 1) != u64::from(id) {
                        rows.incomplete(format!("stack {id} is that of another id"));
                        continue;
                    }
                    rows.push(&id.to_le_bytes(), &raw[layout.frames..]);
                    rows.row_details(vec![("nr", (frames as u64).into())]);
                }
                Err(why) => rows.incomplete(format!("stack {id}: {why}")),
            }
        }
        Ok(rows.into())
    }

    /// Copies what a bucket points to, when that is one of `slab`'s: its hash, and how many frames
    /// it has.
    fn stack(
        &self,
        layout: &StackLayout,
        (slab, len): (u64, u64),
        (at, raw): (Kva, &mut [u8]),
    ) -> Result<(u64, usize), String> {
        let within = at.0.checked_sub(slab).filter(|within| *within < len);
        if within.is_none_or(|within| within % raw.len() as u64 != 0) {
            return Err(format!("there is none at {at}"));
        }
        self.read(at, raw).map_err(text)?;
        let number = |at: At| at.read(raw).unwrap_or(0);
        Ok((number(layout.hash), number(layout.nr) as u32 as usize))
    }
}
