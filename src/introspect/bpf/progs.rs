//! The BPF programs of a guest kernel: which there are, what they use, how often they ran.

use super::copy::Budget;
use super::layout::{At, Finder, ProgLayout};
use super::{BpfState, btfs::BtfCache, names};
use crate::btf::{Btf, Kind};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Programs that are listed at most.
const MAX_PROGS: usize = 4096;
/// More maps than one program can use (`MAX_USED_MAPS`, include/linux/bpf_verifier.h).
const MAX_USED_MAPS: u64 = 256;

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgInfo {
    /// Its id, as in `bpftool prog`.
    pub id: u32,
    /// Its name as the kernel has it: cut to 15 characters.
    pub name: String,
    /// Its whole name, where it could be found out.
    pub full_name: Option<String>,
    /// Its type in the guest kernel's own words, in lower case: `struct_ops`.
    pub kind: String,
    /// Where its `struct bpf_prog` lies.
    pub kva: Kva,
    /// Where the `struct btf` of its object lies. Null if it has none.
    pub btf_kva: Kva,
    /// The STRUCT_OPS map that it was tied to; whether there is one at that address is not known.
    pub assoc: Option<Kva>,
    /// Ids of the maps it uses, as it names them.
    pub maps: Vec<u32>,
    /// Where those lie, in the same order.
    pub map_kvas: Vec<Kva>,
    /// How often and how long it ran; `None` unless the kernel counts
    /// (`kernel.bpf_stats_enabled`).
    pub runs: Option<Runs>,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// What the kernel counts of a program while it is told to, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Times it ran.
    pub count: u64,
    /// Nanoseconds that took.
    pub time_ns: u64,
    /// Times it did not run because it was running on that CPU already.
    pub missed: u64,
}

/// The programs there are.
#[derive(Clone, Debug, Default)]
pub struct ProgList {
    /// Ascending by id.
    pub progs: Vec<ProgInfo>,
    /// Whether the kernel counts runs.
    pub counts_runs: bool,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// What [`ProgLayout`] lacks of `struct bpf_prog` and `bpf_prog_aux`, and `struct bpf_prog_stats`
/// (include/linux/bpf.h, linux/filter.h).
pub(crate) struct RunLayout {
    kind: At,
    stats: At,
    name: At,
    func_info: At,
    func_info_cnt: At,
    func_idx: Option<At>,
    count: At,
    time: At,
    missed: Option<At>,
    stats_size: usize,
    kinds: Vec<(u32, String)>,
}

impl RunLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let prog = Finder::new(btf, "struct bpf_prog")?;
        let aux = Finder::new(btf, "struct bpf_prog_aux")?;
        let stats = Finder::new(btf, "struct bpf_prog_stats")?;
        Ok(RunLayout {
            kind: prog.number("type")?,
            stats: prog.number("stats")?,
            name: aux.at("name")?,
            func_info: aux.number("func_info")?,
            func_info_cnt: aux.number("func_info_cnt")?,
            func_idx: aux.number("func_idx").ok(),
            count: stats.number("cnt")?,
            time: stats.number("nsecs")?,
            missed: stats.number("misses").ok(),
            stats_size: stats.size,
            kinds: names::enumerators(btf, "enum bpf_prog_type", "BPF_PROG_TYPE_"),
        })
    }
}

impl Kernel {
    /// The BPF programs there are. As with [`Kernel::maps`], a call before the machine stops makes
    /// the one after it cheap.
    ///
    /// # Errors
    /// The kernel has no BPF, or its list of programs cannot be read at all.
    pub fn progs(&self, budget: &mut Budget) -> Result<ProgList, IntrospectError> {
        let state = self.bpf()?;
        let prog = state.layouts.prog.as_ref().map_err(Clone::clone)?;
        let runs = state.layouts.runs.as_ref().map_err(Clone::clone)?;
        let walk = self.idr(self.symbols().address("prog_idr")?, MAX_PROGS)?;
        let counts_runs = self.counts_runs();
        let mut caches = state.caches();
        let mut out = ProgList { progs: Vec::new(), counts_runs, incomplete: None };
        out.incomplete = walk.error.map(|e| e.to_string());
        for (id, at) in walk.items {
            if let Err(e) = budget.check_time() {
                out.incomplete.get_or_insert_with(|| format!("from program {id} on: {e}"));
                break;
            }
            match self.prog(state, (prog, runs), &mut caches.btfs, at, counts_runs) {
                Ok(prog) => out.progs.push(prog),
                Err(e) => {
                    out.incomplete.get_or_insert_with(|| e.to_string());
                }
            }
        }
        Ok(out)
    }

    /// Whether the kernel counts runs: the static key of `kernel.bpf_stats_enabled`, whose first
    /// word is how many want it (include/linux/jump_label.h).
    fn counts_runs(&self) -> bool {
        let key = self.symbols().get("bpf_stats_enabled_key");
        key.and_then(|at| self.read_u32(at).ok()).is_some_and(|enabled| enabled as i32 > 0)
    }

    fn prog(
        &self,
        state: &BpfState,
        (layout, more): (&ProgLayout, &RunLayout),
        btfs: &mut BtfCache,
        at: Kva,
        counts_runs: bool,
    ) -> Result<ProgInfo, IntrospectError> {
        let aux = self.prog_aux(layout, at)?;
        let number = |member: At| member.read(&aux).unwrap_or(0);
        let name = super::text_at(&aux, more.name);
        let kind = self.member(at, more.kind)? as u32;
        let known = more.kinds.iter().find(|(n, _)| *n == kind);
        let mut incomplete = None;
        let used = self.used_maps(layout, &aux);
        let ids = used.and_then(|used| {
            let ids: Result<Vec<u32>, _> = used.iter().map(|m| self.map_id(state, *m)).collect();
            Ok((ids?, used))
        });
        let (maps, map_kvas) = ids.unwrap_or_else(|e| {
            incomplete = Some(format!("the maps it uses: {e}"));
            (Vec::new(), Vec::new())
        });
        let stats = counts_runs.then(|| self.runs(more, self.member(at, more.stats)?)).transpose();
        let runs = stats.unwrap_or_else(|e| {
            incomplete.get_or_insert_with(|| format!("its runs: {e}"));
            None
        });
        let function = self.function(more, &aux);
        let btf = btfs.get(self, &state.layouts.btf, Kva(number(layout.btf))).ok().flatten();
        let full_name = btf.zip(function).and_then(|(btf, id)| whole_name(&btf, id, &name));
        Ok(ProgInfo {
            id: number(layout.id) as u32,
            full_name: full_name.or_else(|| (name.len() < names::KEPT).then(|| name.clone())),
            name,
            kind: known.map_or_else(|| format!("type {kind}"), |(_, name)| name.clone()),
            kva: at,
            btf_kva: Kva(number(layout.btf)),
            assoc: layout.assoc.map(number).filter(|map| *map != 0).map(Kva),
            maps,
            map_kvas,
            runs,
            incomplete,
        })
    }

    /// The `struct bpf_prog_aux` of a program.
    pub(super) fn prog_aux(
        &self,
        layout: &ProgLayout,
        prog: Kva,
    ) -> Result<Vec<u8>, IntrospectError> {
        let mut aux = vec![0; layout.aux_size];
        let at = self.read_u64(prog.offset(layout.aux.offset as u64))?;
        self.read(Kva(at), &mut aux)?;
        Ok(aux)
    }

    /// The maps that a program uses, from its `struct bpf_prog_aux`.
    pub(super) fn used_maps(
        &self,
        layout: &ProgLayout,
        aux: &[u8],
    ) -> Result<Vec<Kva>, IntrospectError> {
        let number = |member: At| member.read(aux).unwrap_or(0);
        let count = number(layout.used_map_cnt).min(MAX_USED_MAPS) as usize;
        let mut raw = vec![0; count * 8];
        self.read(Kva(number(layout.used_maps)), &mut raw)?;
        Ok(raw.as_chunks().0.iter().map(|b| Kva(u64::from_le_bytes(*b))).collect())
    }

    /// What all CPUs have counted. A sum that lacks one would be a wrong one.
    fn runs(&self, layout: &RunLayout, stats: u64) -> Result<Runs, IntrospectError> {
        let mut out = Runs::default();
        let mut raw = vec![0; layout.stats_size];
        for cpu in 0..self.nr_cpu_ids() {
            let Some(offset) = self.per_cpu_offset(cpu) else { continue };
            self.read(Kva(stats.wrapping_add(offset)), &mut raw)?;
            let number = |member: At| member.read(&raw).unwrap_or(0);
            out.count = out.count.wrapping_add(number(layout.count));
            out.time_ns = out.time_ns.wrapping_add(number(layout.time));
            out.missed = out.missed.wrapping_add(layout.missed.map_or(0, number));
        }
        Ok(out)
    }

    /// The type of the program's own function: `func_info` has a pair of numbers (an instruction,
    /// a type) for each of its functions.
    fn function(&self, layout: &RunLayout, aux: &[u8]) -> Option<u32> {
        let number = |member: At| member.read(aux).unwrap_or(0);
        let index = layout.func_idx.map_or(0, number);
        if index >= number(layout.func_info_cnt) {
            return None;
        }
        let at = Kva(number(layout.func_info)).offset(index.checked_mul(8)? + 4);
        self.read_u32(at).ok()
    }
}

/// The name of the function `id`, if the kernel has kept the beginning of it.
fn whole_name(btf: &Btf, id: u32, kept: &str) -> Option<String> {
    let whole = (btf.kind(id) == Some(Kind::Func)).then(|| btf.name(id))?;
    whole.starts_with(kept).then(|| whole.to_owned())
}
