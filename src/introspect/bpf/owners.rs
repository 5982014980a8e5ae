//! Which programs and maps belong to an attached scheduler.
//!
//! ```text
//! struct scx_sched ◀──kvalue.data.priv── STRUCT_OPS map ──links[]──▶ bpf_link ──▶ bpf_prog ──▶ used_maps
//!                                             └──────btf──────▶ struct btf ◀──btf── programs and maps
//! ```
//!
//! The `struct btf` of a loaded object is its own even where the same binary was loaded twice, so
//! its address tells the copies apart.

use std::collections::{BTreeMap, HashSet};

use super::layout::{At, Finder};
use super::{BpfState, MapInfo, ProgList, kind};
use crate::btf::Btf;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// More links than a struct_ops has members.
const MAX_LINKS: u64 = 1024;

/// What belongs to a scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// The id of its STRUCT_OPS map.
    pub ops_map: Option<u32>,
    /// Ids and addresses of its maps, ascending; the STRUCT_OPS map is not among them.
    pub maps: Vec<(u32, u64)>,
    /// Ids of its programs, ascending.
    pub progs: Vec<u32>,
    /// Why some may be missing.
    pub incomplete: Option<String>,
}

/// What leads from `struct bpf_struct_ops_map` (kernel/bpf/bpf_struct_ops.c) to programs.
pub(crate) struct LinkLayout {
    links: At,
    count: At,
    prog: At,
}

impl LinkLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let map = Finder::new(btf, "struct bpf_struct_ops_map")?;
        Ok(LinkLayout {
            links: map.number("links")?,
            // Renamed in 6.13 ("bpf: Use function pointers count as struct_ops links count").
            count: map.number("funcs_cnt").or_else(|_| map.number("links_cnt"))?,
            prog: Finder::new(btf, "struct bpf_link")?.number("prog")?,
        })
    }
}

impl Kernel {
    /// What belongs to each of the schedulers whose `struct scx_sched` lie at `scheds`, in their
    /// order. Costs a few reads for each struct_ops map.
    #[must_use]
    pub fn owned(&self, scheds: &[u64], maps: &[MapInfo], progs: &ProgList) -> Vec<Owned> {
        let failed =
            |e: IntrospectError| Owned { incomplete: Some(e.to_string()), ..Owned::default() };
        let state = match self.bpf() {
            Ok(state) => state,
            Err(e) => return scheds.iter().map(|_| failed(e.clone())).collect(),
        };
        let ops: Vec<(&MapInfo, u64)> = maps
            .iter()
            .filter(|map| map.kind.number == kind::STRUCT_OPS)
            .filter_map(|map| Some((map, self.sched_of(state, map)?)))
            .collect();
        let owned = |sched: &u64| {
            let Some((map, _)) = ops.iter().find(|(_, of)| of == sched) else {
                let incomplete = Some("no struct_ops map belongs to it".to_owned());
                return Owned { incomplete, ..Owned::default() };
            };
            self.owned_by(state, map, maps, progs).unwrap_or_else(failed)
        };
        scheds.iter().map(owned).collect()
    }

    /// The scheduler that a STRUCT_OPS map is attached as: `kvalue.data.priv`, whatever its type
    /// (7.2 added `sched_ext_ops_cid`). Those of other subsystems hold something else there.
    fn sched_of(&self, state: &BpfState, map: &MapInfo) -> Option<u64> {
        let value = state.layouts.kinds.struct_ops.as_ref().ok()?.value as u64;
        let within = self.btf().field(map.value_type, "data.priv").ok()?.offset;
        self.read_u64(map.kva.offset(value).offset(within)).ok().filter(|sched| *sched != 0)
    }

    /// The programs that a STRUCT_OPS map calls.
    fn linked(&self, layout: &LinkLayout, map: Kva) -> Result<Vec<Kva>, IntrospectError> {
        let links = self.member(map, layout.links)?;
        let count = self.member(map, layout.count)?.min(MAX_LINKS);
        let mut raw = vec![0; count as usize * 8];
        self.read(Kva(links), &mut raw)?;
        let mut out = Vec::new();
        for link in raw.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)) {
            // Operations that the scheduler does not have.
            if link != 0 {
                out.push(Kva(self.member(Kva(link), layout.prog)?));
            }
        }
        Ok(out)
    }

    fn owned_by(
        &self,
        state: &BpfState,
        ops: &MapInfo,
        maps: &[MapInfo],
        list: &ProgList,
    ) -> Result<Owned, IntrospectError> {
        let layout = state.layouts.links.as_ref().map_err(Clone::clone)?;
        let mut out = Owned { ops_map: Some(ops.id), ..Owned::default() };
        let linked: HashSet<Kva> = match self.linked(layout, ops.kva) {
            Ok(progs) => progs.into_iter().collect(),
            Err(e) => {
                out.incomplete = Some(format!("the programs it calls: {e}"));
                HashSet::new()
            }
        };
        let mut objects: HashSet<Kva> = HashSet::from([ops.btf_kva]);
        objects.extend(list.progs.iter().filter(|p| linked.contains(&p.kva)).map(|p| p.btf_kva));
        objects.remove(&Kva(0));
        // What a program is associated with (since 7.0) may be poison, so it is only compared.
        let progs = list.progs.iter().filter(|p| {
            linked.contains(&p.kva) || objects.contains(&p.btf_kva) || p.assoc == Some(ops.kva)
        });
        let mut found: BTreeMap<u32, u64> = BTreeMap::new();
        let of_object = maps.iter().filter(|map| objects.contains(&map.btf_kva));
        found.extend(of_object.map(|map| (map.id, map.kva.0)));
        for prog in progs {
            out.progs.push(prog.id);
            out.incomplete = out.incomplete.or_else(|| prog.incomplete.clone());
            found.extend(prog.maps.iter().copied().zip(prog.map_kvas.iter().map(|kva| kva.0)));
        }
        found.remove(&ops.id);
        out.maps = found.into_iter().collect();
        out.incomplete = out.incomplete.or_else(|| list.incomplete.clone());
        if linked.iter().any(|kva| !list.progs.iter().any(|p| p.kva == *kva)) {
            out.incomplete.get_or_insert("a program that it calls is not in the list".to_owned());
        }
        Ok(out)
    }
}
