//! Names of what lies at addresses of the kernel.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::error::SnapshotResult;
use super::super::symbols::Symbols;
use super::{KernelState, Place};

/// BPF programs and trampolines that are looked at.
const MAX_MADE: usize = 16 << 10;

/// Code that the kernel made while it ran: a BPF program, a trampoline (`struct bpf_ksym`,
/// include/linux/bpf.h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) start: u64,
    pub(super) end: u64,
    pub(super) name: String,
}

/// Whether an address lies in the kernel's image.
pub(super) fn in_image(symbols: &Symbols, at: u64) -> bool {
    let once = |name| symbols.addresses(name).first().copied();
    once("_text").zip(once("_end")).is_some_and(|(start, end)| (start..end).contains(&at))
}

/// All such code, as far as it is known, ascending.
pub(super) fn made(snapshot: &Arc<Snapshot>, state: &KernelState) -> Vec<Made> {
    let mut out = listed(snapshot, state).unwrap_or_default();
    let known: HashSet<u64> = out.iter().map(|made| made.start).collect();
    let named = state.code.iter().filter(|(start, ..)| !known.contains(start));
    let named =
        named.map(|(start, end, name)| Made { start: *start, end: *end, name: name.clone() });
    out.extend(named);
    out.sort_by_key(|made| made.start);
    out
}

/// As far as the kernel's list of it can be followed in memory.
fn listed(snapshot: &Arc<Snapshot>, state: &KernelState) -> Option<Vec<Made>> {
    let head = state.symbols.as_deref()?.addresses("bpf_kallsyms").first().copied()?;
    let btf = state.types().ok()?;
    let link = btf.field(btf.find_c("struct bpf_ksym")?, "lnode").ok()?;
    let word = |at| {
        let bytes = state.at(at, 8).ok()?;
        Some(u64::from_le_bytes(bytes[..].try_into().ok()?))
    };
    let mut out = Vec::new();
    let mut at = word(head);
    for _ in 0..MAX_MADE {
        let Some(node) = at.filter(|node| *node != head && *node != 0) else { break };
        let start = node.wrapping_sub(link.offset);
        let one = || -> SnapshotResult<Made> {
            let one = Place::of_type(snapshot, "a BPF symbol".into(), start, "struct bpf_ksym")?;
            Ok(Made {
                start: one.get("start")?.as_u64()?,
                end: one.get("end")?.as_u64()?,
                name: one.get("name")?.as_str()?,
            })
        };
        out.extend(one());
        at = word(node);
    }
    Some(out)
}

impl Made {
    /// The function's own name: the kernel puts the program's tag in front of it.
    pub(crate) fn function(&self) -> &str {
        let tagged = self.name.strip_prefix("bpf_prog_").and_then(|rest| rest.split_once('_'));
        match tagged {
            Some((tag, name)) if tag.len() == 16 => name,
            _ => &self.name,
        }
    }
}

impl Snapshot {
    /// What lies at an address of the kernel's, as `sched_tick+0x1c`, in a module as
    /// `loop_queue_rq+0x1c [loop]`, in a BPF program as
    /// `bpf_prog_0123456789abcdef_fifo_enqueue+0x20 [bpf]`, unless the freeze left the kernel's
    /// state out. `None` for anything else.
    ///
    /// # Errors
    /// As [`Snapshot::symbols`].
    pub fn symbol(self: &Arc<Self>, address: u64) -> SnapshotResult<Option<String>> {
        self.symbol_before(address, 0)
    }

    /// The symbol that is `back` bytes before an address, with the address's distance from it.
    pub(super) fn symbol_before(
        self: &Arc<Self>,
        address: u64,
        back: u64,
    ) -> SnapshotResult<Option<String>> {
        let symbols = self.symbols()?;
        let at = address.wrapping_sub(back);
        let spelled = |name: &str, within: u64| match within.wrapping_add(back) {
            0 => name.to_owned(),
            within => format!("{name}+{within:#x}"),
        };
        if in_image(symbols, at) {
            return Ok(symbols.at(at).map(|(name, within)| spelled(name, within)));
        }
        let state = self.kernel_state()?;
        if let Some((name, within, module)) = state.module_symbol(at) {
            return Ok(Some(format!("{} [{}]", spelled(&name, within), module.name)));
        }
        let found = self.made_at(at)?;
        Ok(found.map(|made| format!("{} [bpf]", spelled(&made.name, at - made.start))))
    }

    /// The code that was made at an address.
    pub(crate) fn made_at(self: &Arc<Self>, at: u64) -> SnapshotResult<Option<&Made>> {
        let Some(held) = self.copied_kernel()? else { return Ok(None) };
        let all = held.made.get_or_init(|| made(self, &held.state));
        let after = all.partition_point(|made| made.start <= at);
        Ok(all[..after].last().filter(|made| at < made.end))
    }
}
