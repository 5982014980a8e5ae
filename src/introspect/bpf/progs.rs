//! The BPF programs of a guest kernel: which there are, what they use, how often they ran.

use super::layout::{At, Finder};
use super::{BpfState, btfs::BtfCache, names};
use crate::btf::{Btf, Kind};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Programs that are listed at most.
const MAX_PROGS: usize = 4096;
/// More than one program can use (`MAX_USED_MAPS`, include/linux/bpf_verifier.h).
const MAX_USED_MAPS: u64 = 256;
/// Characters of a name that the kernel keeps (`BPF_OBJ_NAME_LEN` less the NUL).
const KEPT: usize = 15;

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
    /// Ids of the maps it uses, as it names them.
    pub maps: Vec<u32>,
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

/// `struct bpf_prog`, `bpf_prog_aux` and `bpf_prog_stats` (include/linux/bpf.h, linux/filter.h).
pub(crate) struct RunLayout {
    kind: At,
    stats: At,
    aux: At,
    aux_size: usize,
    id: At,
    name: At,
    used_maps: At,
    used_map_cnt: At,
    btf: At,
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
            aux: prog.number("aux")?,
            aux_size: aux.size,
            id: aux.number("id")?,
            name: aux.at("name")?,
            used_maps: aux.number("used_maps")?,
            used_map_cnt: aux.number("used_map_cnt")?,
            btf: aux.number("btf")?,
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
    pub fn progs(&self) -> Result<ProgList, IntrospectError> {
        let state = self.bpf()?;
        let layout = state.layouts.runs.as_ref().map_err(Clone::clone)?;
        let walk = self.idr(self.symbols().address("prog_idr")?, MAX_PROGS)?;
        let counts_runs = self.counts_runs();
        let mut caches = state.caches();
        let progs = walk
            .items
            .into_iter()
            .map(|(_, at)| self.prog(state, layout, &mut caches.btfs, at, counts_runs));
        let mut out = ProgList { progs: Vec::new(), counts_runs, incomplete: None };
        out.incomplete = walk.error.map(|e| e.to_string());
        for prog in progs {
            match prog {
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
        layout: &RunLayout,
        btfs: &mut BtfCache,
        at: Kva,
        counts_runs: bool,
    ) -> Result<ProgInfo, IntrospectError> {
        let read = |member: At| {
            let mut raw = vec![0; member.size];
            self.read(at.offset(member.offset as u64), &mut raw)?;
            Ok::<u64, IntrospectError>(At { offset: 0, ..member }.read(&raw).unwrap_or(0))
        };
        let mut aux = vec![0; layout.aux_size];
        self.read(Kva(read(layout.aux)?), &mut aux)?;
        let number = |member: At| member.read(&aux).unwrap_or(0);
        let name = aux.get(layout.name.offset..layout.name.offset + layout.name.size);
        let name = name.unwrap_or_default();
        let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
        let name = String::from_utf8_lossy(name).into_owned();
        let kind = read(layout.kind)? as u32;
        let known = layout.kinds.iter().find(|(n, _)| *n == kind);
        let mut incomplete = None;
        let maps =
            self.used_maps(state, Kva(number(layout.used_maps)), number(layout.used_map_cnt));
        let maps = maps.unwrap_or_else(|e| {
            incomplete = Some(format!("the maps it uses: {e}"));
            Vec::new()
        });
        let runs = match counts_runs {
            true => Some(self.runs(layout, read(layout.stats)?)),
            false => None,
        };
        let function = self.function(layout, &aux);
        let btf = btfs.get(self, &state.layouts.btf, Kva(number(layout.btf))).ok().flatten();
        let full_name = btf.zip(function).and_then(|(btf, id)| whole_name(&btf, id, &name));
        Ok(ProgInfo {
            id: number(layout.id) as u32,
            full_name: full_name.or_else(|| (name.len() < KEPT).then(|| name.clone())),
            name,
            kind: known.map_or_else(|| format!("type {kind}"), |(_, name)| name.clone()),
            maps,
            runs,
            incomplete,
        })
    }

    fn used_maps(
        &self,
        state: &BpfState,
        at: Kva,
        count: u64,
    ) -> Result<Vec<u32>, IntrospectError> {
        let count = count.min(MAX_USED_MAPS) as usize;
        let mut raw = vec![0; count * 8];
        self.read(at, &mut raw)?;
        let id = state.layouts.map.id.offset as u64;
        let maps = raw.as_chunks().0.iter().map(|b| Kva(u64::from_le_bytes(*b)));
        maps.map(|map| Ok(self.read_u32(map.offset(id))?)).collect()
    }

    /// What all CPUs have counted.
    fn runs(&self, layout: &RunLayout, stats: u64) -> Runs {
        let mut out = Runs::default();
        let mut raw = vec![0; layout.stats_size];
        for cpu in 0..self.nr_cpu_ids() {
            let Some(offset) = self.per_cpu_offset(cpu) else { continue };
            if self.read(Kva(stats.wrapping_add(offset)), &mut raw).is_err() {
                continue;
            }
            let number = |member: At| member.read(&raw).unwrap_or(0);
            out.count = out.count.wrapping_add(number(layout.count));
            out.time_ns = out.time_ns.wrapping_add(number(layout.time));
            out.missed = out.missed.wrapping_add(layout.missed.map_or(0, number));
        }
        out
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
