//! BLOOM_FILTER: only bits are kept of what was put in. The model asks them.

use super::copy::Budget;
use super::kinds::{Found, text};
use super::layout::{At, Finder};
use super::rows::Rows;
use super::{BpfState, MapInfo};
use crate::btf::Btf;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;

/// `struct bpf_bloom_filter` (kernel/bpf/bloom_filter.c).
pub(crate) struct BloomLayout {
    whole: usize,
    mask: At,
    seed: At,
    hashes: At,
    bits: u64,
}

impl BloomLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct bpf_bloom_filter")?;
        Ok(BloomLayout {
            whole: f.size,
            mask: f.number("bitset_mask")?,
            seed: f.number("hash_seed")?,
            hashes: f.number("nr_hash_funcs")?,
            bits: f.at("bitset")?.offset as u64,
        })
    }
}

impl Kernel {
    /// The bits as one value, and how they are found.
    pub(super) fn bloom(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let layout = state.layouts.kinds.bloom.as_ref().map_err(text)?;
        let mut raw = vec![0; layout.whole];
        self.read(map.kva, &mut raw).map_err(text)?;
        let number = |at: At| at.read(&raw).unwrap_or(0);
        let bits = number(layout.mask) + 1;
        if !bits.is_power_of_two() {
            return Err(format!("it claims a mask of {:#x}, which is none", bits - 1));
        }
        let size = bits.div_ceil(64) * 8;
        budget.take(size)?;
        let mut value = vec![0; size as usize];
        self.read(map.kva.offset(layout.bits), &mut value).map_err(text)?;
        let mut rows = Rows::new(None, value.len());
        rows.detail("nr_hash_funcs", number(layout.hashes));
        rows.detail("hash_seed", number(layout.seed));
        rows.detail("bits", bits);
        let set: u64 = value.iter().map(|byte| u64::from(byte.count_ones())).sum();
        rows.detail("bits_set", set);
        rows.push(&[], &value);
        Ok(rows.into())
    }
}
