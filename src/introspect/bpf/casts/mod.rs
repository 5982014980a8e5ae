//! Numbers in maps that are pointers: what the programs' own instructions prove.
//!
//! Schedulers keep addresses of the kernel's objects in plain `u64`s, since a map's value cannot
//! hold a pointer that the verifier does not manage. Where every program that writes such a number
//! writes the address of one type of object into it, it can be followed as if it were declared.
//!
//! The instructions are the ones that the verifier has left in `struct bpf_prog` (a compiled
//! program keeps them too), so this works for every scheduler, however it was loaded.

mod flow;
mod known;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::layout::{At, Finder, ProgLayout};
use super::{BpfState, Budget, MapInfo, kind};
use crate::btf::{Btf, Kind, SecVar, Shape, TypeId, Want};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;
use known::{Effect, Insn, Known, Place, Store, Stored, World};

/// Programs that are looked at.
const MAX_PROGS: usize = 4096;
/// Instructions of one program that are looked at.
const MAX_INSNS: usize = 64 << 10;
/// Different places that all programs together may write to: a scheduler has hundreds.
const MAX_STORES: usize = 16 << 10;
/// Functions of one program.
const MAX_FUNCTIONS: u64 = 4096;
/// Structs in structs that are entered.
const MAX_DEPTH: usize = 8;
/// `BPF_PSEUDO_KFUNC_CALL`.
const KFUNC: u8 = 2;
/// `struct bpf_func_info`: an instruction's number and a type.
const FUNC_INFO: usize = 8;

/// A number in a map's values that is a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast {
    /// Where the number lies in a value.
    pub offset: u64,
    /// What it points to: a type of the kernel's, as C calls it.
    pub ty: String,
    /// The programs that write it.
    pub by: Vec<String>,
}

/// What [`ProgLayout`] lacks of `struct bpf_prog` and `bpf_prog_aux` (include/linux/bpf.h).
pub(crate) struct CodeLayout {
    insns: usize,
    len: At,
    kind: At,
    attach: At,
    attach_btf_id: At,
    func_info: At,
    func_info_cnt: At,
    name: At,
}

impl CodeLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let prog = Finder::new(btf, "struct bpf_prog")?;
        let aux = Finder::new(btf, "struct bpf_prog_aux")?;
        Ok(CodeLayout {
            insns: prog.at("insnsi")?.offset,
            len: prog.number("len")?,
            kind: prog.number("type")?,
            attach: prog.number("expected_attach_type")?,
            attach_btf_id: aux.number("attach_btf_id")?,
            func_info: aux.number("func_info")?,
            func_info_cnt: aux.number("func_info_cnt")?,
            name: aux.at("name")?,
        })
    }
}

/// By id and address of a program: its name and what it writes into maps; `None` when that cannot
/// be told.
type Stores = HashMap<(u64, u64), Option<(String, Vec<Store>)>>;

/// What was found in programs, by where they are. Their instructions do not change.
#[derive(Default)]
pub(super) struct CastCache {
    progs: Stores,
    /// The maps that `progs` counts by.
    maps: Vec<u64>,
    /// What they prove together, until one of them changes.
    proven: Option<Vec<Vec<Cast>>>,
}

impl Kernel {
    /// The numbers in `maps`' values that are pointers, in the order of the maps. What was found
    /// in a program is kept for the next call; it takes long, so it is for a machine that runs.
    ///
    /// # Errors
    /// The kernel has no BPF, or its list of programs cannot be read at all.
    pub fn casts(
        &self,
        maps: &[MapInfo],
        budget: &mut Budget,
    ) -> Result<Vec<Vec<Cast>>, IntrospectError> {
        let state = self.bpf()?;
        let layout = state.layouts.prog.as_ref().map_err(Clone::clone)?;
        let code = state.layouts.code.as_ref().map_err(Clone::clone)?;
        let walk = self.idr(self.symbols().address("prog_idr")?, MAX_PROGS)?;
        let mut cache = std::mem::take(&mut state.caches().casts);
        let places: Vec<u64> = maps.iter().map(|map| map.kva.0).collect();
        if cache.maps != places {
            cache = CastCache { maps: places, ..CastCache::default() };
        }
        let known = cache.progs.len();
        cache.progs.retain(|key, _| walk.items.iter().any(|(id, at)| (*id, at.0) == *key));
        if cache.progs.len() < known {
            cache.proven = None;
        }
        // One that was not looked at may write anything anywhere.
        let mut whole = walk.error.is_none();
        for (id, at) in walk.items {
            if cache.progs.contains_key(&(id, at.0)) {
                continue;
            }
            if budget.check_time().is_err() {
                whole = false;
                break;
            }
            let stored: usize = cache.progs.values().flatten().map(|(_, s)| s.len()).sum();
            let found = self.stores(state, (layout, code), at, maps);
            let found = found.filter(|(_, stores)| stored + stores.len() <= MAX_STORES);
            cache.progs.insert((id, at.0), found);
            cache.proven = None;
        }
        whole &= cache.progs.values().all(Option::is_some);
        let out = match (whole, &cache.proven) {
            (false, _) => vec![Vec::new(); maps.len()],
            (true, Some(proven)) => proven.clone(),
            (true, None) => cache.proven.insert(self.agreed(&cache.progs, maps)).clone(),
        };
        state.caches().casts = cache;
        Ok(out)
    }

    /// What all programs together prove.
    fn agreed(&self, progs: &Stores, maps: &[MapInfo]) -> Vec<Vec<Cast>> {
        let all: Vec<Store> =
            progs.values().flatten().flat_map(|(_, stores)| stores.clone()).collect();
        let mut out = vec![Vec::new(); maps.len()];
        for (map, offset, ty) in known::agreed(&all) {
            let (Some(casts), Ok(offset)) = (out.get_mut(map), u64::try_from(offset)) else {
                continue;
            };
            let writes = |store: &Store| {
                (store.map, store.start) == (map, offset as i64)
                    && store.what == Stored::Pointer(ty)
            };
            let programs = progs.values().flatten().filter(|(_, stores)| stores.iter().any(writes));
            let mut by: Vec<String> = programs.map(|(name, _)| name.clone()).collect();
            by.sort();
            by.dedup();
            casts.push(Cast { offset, ty: self.btf().type_name(ty), by });
        }
        out
    }

    /// The name of a program and what it writes into maps; none when that cannot be told.
    fn stores(
        &self,
        state: &BpfState,
        (layout, code): (&ProgLayout, &CodeLayout),
        prog: Kva,
        maps: &[MapInfo],
    ) -> Option<(String, Vec<Store>)> {
        let aux = self.prog_aux(layout, prog).ok()?;
        let number = |member: At| member.read(&aux).unwrap_or(0);
        let read = |member: At| self.member(prog, member).ok();
        let used = self.used_maps(layout, &aux).ok()?;
        let name = super::text_at(&aux, code.name);
        // A program writes into the maps that it uses, and into no others.
        if !maps.iter().any(|map| used.contains(&map.kva)) {
            return Some((name, Vec::new()));
        }
        let len = usize::try_from(read(code.len)?).ok().filter(|len| *len <= MAX_INSNS)?;
        let mut raw = vec![0; len * Insn::SIZE];
        self.read(prog.offset(code.insns as u64), &mut raw).ok()?;
        let insns: Vec<Insn> = raw.as_chunks().0.iter().map(Insn::decode).collect();
        let world = Code {
            kernel: self,
            arguments: self.arguments(
                read(code.kind)?,
                read(code.attach)?,
                number(code.attach_btf_id),
            ),
            maps: maps.iter().map(|map| Values::new(state, map)).collect(),
            functions: self.functions(number(code.func_info), number(code.func_info_cnt)),
        };
        Some((name, flow::stores(&insns, &world)?))
    }

    /// Where the functions of a program begin.
    fn functions(&self, info: u64, count: u64) -> Vec<usize> {
        let mut raw = vec![0; count.min(MAX_FUNCTIONS) as usize * FUNC_INFO];
        if self.read(Kva(info), &mut raw).is_err() {
            return Vec::new();
        }
        let pairs = raw.as_chunks::<FUNC_INFO>().0.iter();
        pairs.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize).collect()
    }

    /// The parameters of the function that a program takes the place of or is attached to: their
    /// types, as far as they are pointers to structs.
    fn arguments(&self, kind: u64, attach: u64, id: u64) -> Vec<Option<TypeId>> {
        /// `BPF_PROG_TYPE_TRACING` and `BPF_PROG_TYPE_STRUCT_OPS`.
        const TRACING: u64 = 26;
        const STRUCT_OPS: u64 = 27;
        let (btf, id) = (self.btf(), id as TypeId);
        let function = match (kind, btf.kind(id)) {
            (STRUCT_OPS, Some(Kind::Struct)) => {
                btf.shape(id).ok().and_then(|shape| match &*shape {
                    Shape::Struct(s) => s.members.get(usize::try_from(attach).ok()?).map(|m| m.ty),
                    _ => None,
                })
            }
            (TRACING, Some(Kind::Func)) => btf.target(id),
            _ => None,
        };
        let Some(function) = function else { return Vec::new() };
        let proto = match btf.shape(function).as_deref() {
            Ok(Shape::Ptr { to }) => *to,
            _ => function,
        };
        match btf.shape(proto).as_deref() {
            Ok(Shape::FuncProto { params, .. }) => {
                params.iter().map(|param| struct_behind(btf, param.ty)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The struct that a type points to.
fn struct_behind(btf: &Btf, pointer: TypeId) -> Option<TypeId> {
    match btf.shape(pointer).as_deref() {
        Ok(Shape::Ptr { to }) => {
            btf.resolve(*to).ok().filter(|id| btf.kind(*id) == Some(Kind::Struct))
        }
        _ => None,
    }
}

/// The struct that the pointer at an offset of a type points to.
fn pointer_at(btf: &Btf, ty: TypeId, offset: u64, depth: usize) -> Option<TypeId> {
    match btf.shape(ty).as_deref().ok()? {
        Shape::Ptr { .. } if offset == 0 => struct_behind(btf, ty),
        // Of a union it is not known which member it is.
        Shape::Struct(s) if !s.union && depth < MAX_DEPTH => s.members.iter().find_map(|member| {
            let start = u64::from(member.bit_offset / 8);
            let size = btf.size_of(member.ty).filter(|_| member.bitfield_len.is_none())?;
            let within = offset.checked_sub(start).filter(|within| *within < size)?;
            pointer_at(btf, member.ty, within, depth + 1)
        }),
        Shape::Datasec { vars, .. } => vars.iter().find_map(|var| {
            let within = offset.checked_sub(var.offset.into()).filter(|o| *o < var.size.into())?;
            pointer_at(btf, var.ty, within, depth + 1)
        }),
        Shape::Array { elem, elem_size, .. } if *elem_size > 0 && depth < MAX_DEPTH => {
            pointer_at(btf, *elem, offset % elem_size, depth + 1)
        }
        _ => None,
    }
}

/// A map, as instructions see it.
struct Values<'a> {
    map: &'a MapInfo,
    /// Where an array has its values.
    array: Option<u64>,
    /// From an element of a hash to its value.
    element: Option<i64>,
    /// Whether a lookup gives what [`MapInfo::value_type`] says.
    direct: bool,
}

impl<'a> Values<'a> {
    fn new(state: &BpfState, map: &'a MapInfo) -> Self {
        let array = state.layouts.array.as_ref().ok().map(|layout| layout.values as u64);
        let htab = state.layouts.htab.as_ref().ok();
        let key = u64::from(map.key_size).next_multiple_of(8);
        let element = htab.map(|layout| (layout.elem_key as u64 + key) as i64);
        let number = map.kind.number;
        Values {
            map,
            array: array.filter(|_| number == kind::ARRAY),
            element: element.filter(|_| matches!(number, kind::HASH | kind::LRU_HASH)),
            direct: matches!(
                number,
                kind::ARRAY | kind::HASH | kind::LRU_HASH | kind::TASK_STORAGE | kind::LPM_TRIE
            ),
        }
    }
}

/// A program's surroundings.
struct Code<'a> {
    kernel: &'a Kernel,
    arguments: Vec<Option<TypeId>>,
    maps: Vec<Values<'a>>,
    functions: Vec<usize>,
}

impl World for Code<'_> {
    fn maps(&self) -> usize {
        self.maps.len()
    }

    fn argument(&self, offset: i64) -> Option<TypeId> {
        let place = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(8))? / 8;
        *self.arguments.get(place)?
    }

    fn member(&self, ty: TypeId, offset: i64) -> Option<TypeId> {
        pointer_at(self.kernel.btf(), ty, u64::try_from(offset).ok()?, 0)
    }

    fn pointer(&self, map: usize, offset: i64) -> Option<TypeId> {
        let map = self.maps.get(map).filter(|values| values.direct)?.map;
        let (btf, offset) = (map.btf.as_ref()?, u64::try_from(offset).ok()?);
        // The object has its own idea of the kernel's types; the name is what counts.
        let pointee = pointer_at(btf, map.value_type, offset, 0)?;
        self.kernel.btf().find_c(&btf.type_name(pointee))
    }

    fn address(&self, at: u64) -> Known {
        for (place, values) in self.maps.iter().enumerate() {
            let Some(within) = at.checked_sub(values.map.kva.0) else { continue };
            if within == 0 {
                return Known::Map(place, 0);
            }
            let Some(within) = values.array.and_then(|first| within.checked_sub(first)) else {
                continue;
            };
            let stride = u64::from(values.map.value_size).next_multiple_of(8).max(1);
            if within / stride < values.map.max_entries.into() {
                return Known::Value(place, Place::Exact((within % stride) as i64));
            }
        }
        Known::Nothing
    }

    fn values_at(&self, map: usize) -> Option<i64> {
        self.maps.get(map)?.array.map(|at| at as i64)
    }

    fn value_behind(&self, map: usize, finds: bool) -> Option<i64> {
        let values = self.maps.get(map)?;
        if finds { values.element } else { values.direct.then_some(0) }
    }

    fn variable(&self, map: usize, offset: i64) -> Option<(i64, i64)> {
        let map = self.maps.get(map)?.map;
        let shape = map.btf.as_ref()?.shape(map.value_type).ok()?;
        let Shape::Datasec { vars, .. } = &*shape else { return None };
        let offset = u32::try_from(offset).ok()?;
        let has = |var: &&SecVar| offset.checked_sub(var.offset).is_some_and(|o| o < var.size);
        vars.iter().find(has).map(|var| (var.offset.into(), var.size.into()))
    }

    fn value_size(&self, map: usize) -> i64 {
        self.maps.get(map).map_or(0, |values| values.map.value_size.into())
    }

    fn call(&self, insn: Insn) -> Effect {
        // How far a function is from this one; of kfuncs, where they can be far, their type.
        let symbols = self.kernel.symbols();
        let base = symbols.get("__bpf_call_base").unwrap_or(Kva(0));
        let at = Kva(base.0.wrapping_add_signed(insn.imm.into()));
        let btf = self.kernel.btf();
        let (name, id) = match (symbols.find_addr(at), TypeId::try_from(insn.imm)) {
            (Some((name, 0)), _) => (name, None),
            (_, Ok(id)) if insn.src == KFUNC && insn.off == 0 => (btf.name(id), Some(id)),
            _ => return Effect::Writes,
        };
        let gives = match insn.src {
            KFUNC => id.or_else(|| btf.find(name, Want::Func)).and_then(|id| self.returned(id)),
            _ => self.helper_gives(name),
        };
        effect(name, gives)
    }

    fn is_entry(&self, at: usize) -> bool {
        !self.functions.iter().any(|start| (1..=at).contains(start))
    }

    fn function(&self, at: usize, insn: Insn) -> Option<usize> {
        // A compiled program has the function's number in `imm`, and how far it is in `off`.
        let relative = at.checked_add(1)?.checked_add_signed(insn.off.into());
        let known = |place: &usize| self.functions.contains(place);
        relative.filter(known).or_else(|| {
            let far = at.checked_add(1)?.checked_add_signed(isize::try_from(insn.imm).ok()?);
            far.filter(known)
        })
    }
}

/// What a helper or kfunc does; one that is not known here may do anything.
fn effect(name: &str, gives: Option<TypeId>) -> Effect {
    /// They read their arguments, or change objects of the kernel's alone.
    const HARMLESS: [&str; 24] = [
        "scx_bpf_",
        "bpf_cpumask_",
        "bpf_task_acquire",
        "bpf_task_release",
        "bpf_task_from_",
        "bpf_task_storage_delete",
        "bpf_cgroup_",
        "bpf_cgrp_storage_delete",
        "bpf_rcu_",
        "bpf_preempt_",
        "bpf_local_irq_",
        "bpf_ktime_",
        "bpf_jiffies64",
        "bpf_get_smp_processor_id",
        "bpf_get_numa_node_id",
        "bpf_get_current_task",
        "bpf_get_prandom",
        "bpf_user_rnd_u32",
        "bpf_spin_",
        "bpf_kptr_xchg",
        "bpf_timer_init",
        "bpf_timer_start",
        "bpf_timer_cancel",
        "bpf_throw",
    ];
    let named = |names: &[&str]| names.iter().any(|end| name.ends_with(end));
    match name {
        "__htab_map_lookup_elem" => Effect::Finds,
        "bpf_task_storage_get" | "bpf_task_storage_get_recur" => Effect::Looks,
        _ if named(&["map_lookup_elem", "trie_lookup_elem"]) => Effect::Looks,
        _ if named(&["map_update_elem", "trie_update_elem"]) => Effect::Updates,
        _ if named(&["map_delete_elem", "trie_delete_elem"]) => Effect::Gives(Known::Nothing),
        _ if name.contains("set_callback") || name.contains("for_each") => Effect::Lends,
        _ if HARMLESS.iter().any(|begins| name.starts_with(begins)) => {
            Effect::Gives(gives.map_or(Known::Nothing, |ty| Known::Object(ty, 0)))
        }
        _ => Effect::Writes,
    }
}

impl Code<'_> {
    /// What a helper gives, if that is a pointer to a struct: the kernel's BTF does not tell.
    fn helper_gives(&self, name: &str) -> Option<TypeId> {
        let task = name == "bpf_get_current_task_btf";
        task.then(|| self.kernel.btf().find_c("struct task_struct")).flatten()
    }

    /// What a kfunc gives, if that is a pointer to a struct.
    fn returned(&self, function: TypeId) -> Option<TypeId> {
        let btf = self.kernel.btf();
        let shape = btf.shape(btf.target(function)?).ok()?;
        match &*shape {
            Shape::FuncProto { ret, .. } => struct_behind(btf, *ret),
            _ => None,
        }
    }
}
