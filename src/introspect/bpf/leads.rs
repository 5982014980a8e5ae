//! What special members of values lead to (`btf/special.rs`): copied while the machine stands still,
//! so that it is there when somebody follows them.
//!
//! ```text
//! bpf_timer, bpf_wq ──▶ struct bpf_hrtimer, bpf_work ──▶ the program, the callback's name
//! bpf_list_head ──next──▶ node ──next──▶ node ..      the objects that the nodes are parts of,
//! bpf_rb_root ──▶ node ──left, right──▶ node ..         and what those lead to in turn
//! kptr ──▶ an object of the kernel's or of the program's own
//! ```
//!
//! Nothing is judged here: whoever follows the copies later finds where a list is broken. Each
//! object is copied once, however many ways lead to it.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::MapInfo;
use super::copy::{Budget, RawMap};
use super::layout::{At, Finder, ProgLayout};
use super::storage::cgroup_node;
use crate::btf::{Btf, Contains, Special, TypeId};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::introspect::sched::layout::CgroupNode;
use crate::introspect::sched::{Cgroup, Memory};
use crate::mem::Kva;

/// Objects that are copied at most.
const MAX_OBJECTS: usize = 64 << 10;
/// Bytes of one object: more than the kernel allocates for a program at once.
const MAX_OBJECT: u64 = 64 << 10;
/// Nodes of lists and trees that are followed at most.
const MAX_STEPS: usize = 4 * MAX_OBJECTS;
/// Levels of a tree of objects: 2^48 balanced ones.
const MAX_LEVELS: usize = 96;
/// Symbols of BPF programs that are looked at.
const MAX_SYMBOLS: usize = 16 << 10;
/// Things that are looked at between two looks at the clock.
const TICKS: usize = 256;
/// Addresses below are user space's.
const KERNEL: u64 = 1 << 63;

/// Code that the kernel made while it ran: a BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Where it begins.
    pub start: u64,
    /// The byte behind it.
    pub end: u64,
    /// The kernel's name for it: `bpf_prog_0123456789abcdef_tick`.
    pub name: String,
}

/// What was found on the way beside the copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leads {
    /// Functions that timers and works call.
    pub code: Vec<Code>,
    /// Cgroups that pointers lead to.
    pub cgroups: Vec<Cgroup>,
    /// Why not all was copied.
    pub incomplete: Option<String>,
}

/// Where things are in what special members lead to (kernel/bpf/helpers.c, include/linux/bpf.h).
pub(crate) struct LeadLayout {
    /// `struct bpf_hrtimer`: its size, and the clock's base.
    timer: Option<(usize, At)>,
    clock: Option<At>,
    /// Bytes of `struct bpf_work`.
    work: Option<usize>,
    /// In `struct bpf_async_cb`, with which both begin.
    prog: At,
    callback: At,
    /// `struct bpf_list_node_kern`, `struct bpf_rb_node_kern`.
    list_next: At,
    list_size: usize,
    left: At,
    right: At,
    tree_size: usize,
    cgroup: Option<CgroupNode>,
    /// `struct bpf_ksym`.
    link: At,
    start: At,
    end: At,
    name: At,
}

impl LeadLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let cb = Finder::new(btf, "struct bpf_async_cb")?;
        let list = Finder::new(btf, "struct bpf_list_node_kern")?;
        let tree = Finder::new(btf, "struct bpf_rb_node_kern")?;
        let ksym = Finder::new(btf, "struct bpf_ksym")?;
        let timer = Finder::new(btf, "struct bpf_hrtimer");
        let clock = Finder::new(btf, "struct hrtimer_clock_base");
        Ok(LeadLayout {
            timer: timer.ok().and_then(|f| Some((f.size, f.number("timer.base").ok()?))),
            clock: clock.ok().and_then(|f| f.number("clockid").ok()),
            work: Finder::new(btf, "struct bpf_work").ok().map(|f| f.size),
            prog: cb.number("prog")?,
            callback: cb.number("callback_fn")?,
            list_next: list.number("list_head.next")?,
            list_size: list.size,
            left: tree.number("rb_node.rb_left")?,
            right: tree.number("rb_node.rb_right")?,
            tree_size: tree.size,
            cgroup: cgroup_node(btf).ok(),
            link: ksym.number("lnode.next")?,
            start: ksym.number("start")?,
            end: ksym.number("end")?,
            name: ksym.at("name")?,
        })
    }
}

impl Kernel {
    /// Copies into `memory` what special members of the values of these maps lead to.
    pub fn copy_leads<'a>(
        &self,
        maps: impl Iterator<Item = (&'a MapInfo, &'a RawMap)>,
        memory: &mut Memory,
        budget: &mut Budget,
    ) -> Leads {
        let Ok(state) = self.bpf() else { return Leads::default() };
        let (Ok(layout), Ok(prog)) = (&state.layouts.leads, &state.layouts.prog) else {
            return Leads::default();
        };
        let (out, seen, todo, code, ways, ticks, late) = <_>::default();
        let mut walk = Walk {
            kernel: self,
            layout,
            prog,
            memory,
            budget,
            out,
            seen,
            todo,
            code,
            steps: MAX_STEPS,
            ways,
            ticks,
            late,
        };
        for (map, raw) in maps {
            let Some(btf) = map.btf.as_ref().filter(|_| map.value_type != 0) else { continue };
            // Types of struct_ops are the kernel's own, where nothing is a program's.
            if Arc::ptr_eq(btf, self.btf()) {
                continue;
            }
            let ways = walk.ways(btf, map.value_type);
            if !ways.is_empty() {
                raw.for_each_value(&mut |value| walk.members(btf, &ways, value));
            }
        }
        while let Some(next) = walk.todo.pop_front() {
            let bytes = walk.memory.get(next.at, next.len).map(<[u8]>::to_vec);
            if !walk.members(&next.btf, &next.ways, &bytes.unwrap_or_default()) {
                break;
            }
        }
        walk.names();
        walk.memory.close();
        walk.out
    }
}

/// An object of a program's own.
struct Object {
    btf: Arc<Btf>,
    ways: Rc<[Way]>,
    at: u64,
    len: u64,
}

/// A member that leads on, and what it leads to, found out once for each type.
struct Way {
    offset: u64,
    to: To,
}

enum To {
    Timer(usize, At),
    Work(usize),
    List(Contains),
    Tree(Contains),
    Object {
        ty: TypeId,
        /// The verifier asks the kernel's types first.
        kernels: Option<(String, TypeId)>,
        per_cpu: bool,
    },
}

struct Walk<'a> {
    kernel: &'a Kernel,
    layout: &'a LeadLayout,
    prog: &'a ProgLayout,
    memory: &'a mut Memory,
    budget: &'a mut Budget,
    out: Leads,
    /// Addresses of what was copied, with the type that it was copied as.
    seen: HashSet<(u64, TypeId)>,
    todo: VecDeque<Object>,
    /// Addresses of callbacks.
    code: BTreeSet<u64>,
    /// Nodes that may still be followed.
    steps: usize,
    /// By the BTF's address, which the maps keep, and the type.
    ways: HashMap<(*const Btf, TypeId), Rc<[Way]>>,
    /// Things that were looked at.
    ticks: usize,
    /// Whether the time ran out.
    late: bool,
}

impl Walk<'_> {
    fn miss(&mut self, why: impl FnOnce() -> String) {
        self.out.incomplete.get_or_insert_with(why);
    }

    /// Copies memory unless it is there; whether it is there then.
    fn piece(&mut self, at: u64, len: u64) -> bool {
        if at < KERNEL {
            return false;
        }
        match self.memory.copy(self.kernel, at, len, self.budget) {
            Ok(()) => true,
            Err(why) => {
                self.miss(|| why);
                false
            }
        }
    }

    /// Whether nothing was copied yet from there as this type, and there is room for it.
    fn fresh(&mut self, at: u64, ty: TypeId) -> bool {
        if at < KERNEL || self.seen.contains(&(at, ty)) {
            return false;
        }
        if self.seen.len() >= MAX_OBJECTS {
            self.miss(|| format!("values lead to more than {MAX_OBJECTS} objects"));
            return false;
        }
        self.seen.insert((at, ty))
    }

    /// Whether there is time for one thing more. Most things cost nothing else, and a hostile map
    /// has very many of them.
    fn tick(&mut self) -> bool {
        if !self.late
            && self.ticks.is_multiple_of(TICKS)
            && let Err(why) = self.budget.check_time()
        {
            self.miss(|| why);
            self.late = true;
        }
        self.ticks += 1;
        !self.late
    }

    /// Where values of type `ty` lead.
    fn ways(&mut self, btf: &Arc<Btf>, ty: TypeId) -> Rc<[Way]> {
        let key = (Arc::as_ptr(btf), ty);
        if let Some(known) = self.ways.get(&key) {
            return known.clone();
        }
        let specials = btf.specials(ty);
        let ways = specials.iter().filter_map(|found| {
            let to = match found.special {
                Special::Timer => self.layout.timer.map(|(size, base)| To::Timer(size, base))?,
                Special::Work => To::Work(self.layout.work?),
                Special::List(of) => To::List(of?),
                Special::Tree(of) => To::Tree(of?),
                Special::Kptr { to, per_cpu } => self.pointed(btf, to, per_cpu)?,
                Special::Lock | Special::Refcount | Special::Node => return None,
            };
            Some(Way { offset: found.offset, to })
        });
        let ways: Rc<[Way]> = ways.collect();
        self.ways.insert(key, ways.clone());
        ways
    }

    /// What a pointer with a reference leads to.
    fn pointed(&self, btf: &Btf, to: TypeId, per_cpu: bool) -> Option<To> {
        let ty = btf.resolve(to).ok()?;
        let spelled = btf.type_name(ty);
        let name = match spelled.split_once("___") {
            Some((name, _)) if !name.ends_with(' ') => name,
            _ => spelled.as_str(),
        };
        let kernels = self.kernel.btf().find_c(name).map(|theirs| (name.to_owned(), theirs));
        Some(To::Object { ty, kernels, per_cpu })
    }

    /// Goes where the special members of a value lead; whether there is time for another value.
    fn members(&mut self, btf: &Arc<Btf>, ways: &[Way], value: &[u8]) -> bool {
        for way in ways {
            if !self.tick() {
                return false;
            }
            let at = usize::try_from(way.offset).ok();
            let word = at.and_then(|offset| At { offset, size: 8 }.read(value));
            let Some(first) = word.filter(|word| *word >= KERNEL) else { continue };
            match &way.to {
                To::Timer(size, base) => {
                    self.callback(first, *size as u64);
                    let clock = self.memory.u64(first.wrapping_add(base.offset as u64));
                    if let (Some(base), Some(clock)) = (clock, self.layout.clock) {
                        self.piece(base, (clock.offset + clock.size) as u64);
                    }
                }
                To::Work(size) => self.callback(first, *size as u64),
                To::List(of) => self.list(btf, *of, first),
                To::Tree(of) => self.tree(btf, *of, first),
                To::Object { ty, kernels, per_cpu } => {
                    let kernels = kernels.as_ref().map(|(name, ty)| (name.as_str(), *ty));
                    self.pointer(btf, *ty, kernels, first, *per_cpu);
                }
            }
        }
        !self.late
    }

    /// `struct bpf_async_cb`: the program that set it up, and what it calls.
    fn callback(&mut self, cb: u64, size: u64) {
        if !self.piece(cb, size) {
            return;
        }
        let word = |memory: &Memory, member: At| {
            memory.u64(cb.wrapping_add(member.offset as u64)).filter(|word| *word >= KERNEL)
        };
        let (prog, code) =
            (word(self.memory, self.layout.prog), word(self.memory, self.layout.callback));
        self.code.extend(code);
        let Some(prog) = prog else { return };
        let (aux, id) = (self.prog.aux, self.prog.id);
        if self.piece(prog, (aux.offset + aux.size) as u64)
            && let Some(aux) = self.memory.u64(prog.wrapping_add(aux.offset as u64))
        {
            self.piece(aux, (id.offset + id.size) as u64);
        }
    }

    /// The objects in a list, from its first node on. The head's address is not known, but the
    /// first node points back to it, and the last one forward.
    fn list(&mut self, btf: &Arc<Btf>, of: Contains, first: u64) {
        let next = self.layout.list_next.offset as u64;
        // An empty list's head points to itself, both ways, and is no part of an object. Whoever
        // looks needs its words to see that.
        let word = |at: u64| self.kernel.read_u64(Kva(first.wrapping_add(at))).ok();
        if word(next) == Some(first) && word(next.wrapping_add(8)) == Some(first) {
            self.piece(first, next.saturating_add(16));
            return;
        }
        let (mut at, mut end) = (first, None);
        let mut visited = HashSet::new();
        while Some(at) != end && visited.insert(at) && self.step() {
            if !self.object(btf, of.ty, at.wrapping_sub(of.node)) {
                return;
            }
            self.piece(at, self.layout.list_size as u64);
            // `struct list_head` has `prev` behind `next`.
            end = end.or_else(|| self.memory.u64(at.wrapping_add(next + 8)));
            let Some(after) = self.memory.u64(at.wrapping_add(next)) else { return };
            at = after;
        }
    }

    /// The objects in a tree.
    fn tree(&mut self, btf: &Arc<Btf>, of: Contains, root: u64) {
        let mut below = vec![(root, 0)];
        let mut visited = HashSet::new();
        while let Some((at, level)) = below.pop() {
            let new = at != 0 && level <= MAX_LEVELS && visited.insert(at) && self.step();
            if !new || !self.object(btf, of.ty, at.wrapping_sub(of.node)) {
                continue;
            }
            self.piece(at, self.layout.tree_size as u64);
            let child = |memory: &Memory, side: At| memory.u64(at.wrapping_add(side.offset as u64));
            for side in [self.layout.right, self.layout.left] {
                below.extend(child(self.memory, side).map(|child| (child, level + 1)));
            }
        }
    }

    /// Whether one more node may be followed: many lists may lead into the same long one.
    fn step(&mut self) -> bool {
        if !self.tick() {
            return false;
        }
        if self.steps == 0 {
            self.miss(|| format!("lists and trees have more than {MAX_STEPS} nodes"));
            return false;
        }
        self.steps -= 1;
        true
    }

    /// An object of a program's own, of which the special members are looked at later; whether it
    /// is there.
    fn object(&mut self, btf: &Arc<Btf>, ty: TypeId, at: u64) -> bool {
        if self.seen.contains(&(at, ty)) {
            return true;
        }
        if !self.fresh(at, ty) {
            return false;
        }
        let Some(len) = btf.size_of(ty).filter(|len| (1..=MAX_OBJECT).contains(len)) else {
            return false;
        };
        let there = self.piece(at, len);
        if there {
            let ways = self.ways(btf, ty);
            if !ways.is_empty() {
                self.todo.push_back(Object { btf: btf.clone(), ways, at, len });
            }
        }
        there
    }

    /// What a pointer with a reference leads to: an object of a program's type `ty`, or of one of
    /// the kernel's.
    fn pointer(
        &mut self,
        btf: &Arc<Btf>,
        ty: TypeId,
        kernels: Option<(&str, TypeId)>,
        at: u64,
        per_cpu: bool,
    ) {
        if !per_cpu {
            return self.pointed_object(btf, ty, kernels, at);
        }
        // What the allocator gives begins with the per-CPU pointer (kernel/bpf/memalloc.c).
        let base = if self.piece(at, 8) { self.memory.u64(at) } else { None };
        let Some(base) = base else { return };
        for cpu in 0..self.kernel.nr_cpu_ids() {
            if !self.tick() {
                return;
            }
            if let Some(offset) = self.kernel.per_cpu_offset(cpu) {
                self.pointed_object(btf, ty, kernels, base.wrapping_add(offset));
            }
        }
    }

    fn pointed_object(
        &mut self,
        btf: &Arc<Btf>,
        ty: TypeId,
        kernels: Option<(&str, TypeId)>,
        at: u64,
    ) {
        match kernels {
            Some((name, theirs)) if self.fresh(at, theirs) => self.of_kernel(name, theirs, at),
            Some(_) => {}
            None => {
                self.object(btf, ty, at);
            }
        }
    }

    fn of_kernel(&mut self, name: &str, ty: TypeId, at: u64) {
        let kernel = self.kernel;
        let size = kernel.btf().size_of(ty).filter(|size| (1..=MAX_OBJECT).contains(size));
        let Some(size) = size else { return };
        match name {
            // As many bits as the machine can have CPUs: the types have room for thousands.
            "struct bpf_cpumask" | "struct cpumask" => {
                let bits = u64::from(kernel.nr_cpu_ids()).div_ceil(64) * 8;
                if self.piece(at, bits.min(size))
                    && let Ok(usage) = kernel.btf().field(ty, "usage")
                {
                    self.piece(at.wrapping_add(usage.offset), usage.size);
                }
            }
            // Where tasks were copied in part, what there is of it does.
            "struct task_struct" if self.memory.touches(at, size) => {}
            "struct cgroup" => {
                let layout = self.layout;
                let (true, Some(node)) = (self.piece(at, size), &layout.cgroup) else { return };
                let Some(kn) = self.memory.u64(at.wrapping_add(node.kn)) else { return };
                if !self.piece(kn, node.id.saturating_add(8).min(MAX_OBJECT)) {
                    return;
                }
                let Some(cgroup) = kernel.cgroup_at(node, Kva(at)) else { return };
                match self.budget.take(cgroup.path.len() as u64) {
                    Ok(()) => self.out.cgroups.push(cgroup),
                    Err(why) => self.miss(|| why),
                }
            }
            _ => {
                self.piece(at, size);
            }
        }
    }

    /// The names of what timers and works call: `bpf_kallsyms` (kernel/bpf/core.c) lists all code of
    /// programs.
    fn names(&mut self) {
        if self.late || self.code.is_empty() {
            return;
        }
        let Some(head) = self.kernel.symbols().get("bpf_kallsyms") else { return };
        let symbols = self.kernel.list(head, MAX_SYMBOLS);
        if let Some(e) = symbols.error {
            self.miss(|| format!("the names of callbacks: {e}"));
        }
        let layout = self.layout;
        for node in symbols.items {
            if !self.tick() {
                return;
            }
            let at = Kva(node.0.wrapping_sub(layout.link.offset as u64));
            let word = |member| self.kernel.member(at, member).unwrap_or_default();
            let (start, end) = (word(layout.start), word(layout.end));
            if self.code.range(start..end.max(start)).next().is_some() {
                let name = at.offset(layout.name.offset as u64);
                let name = self.kernel.read_cstr(name, layout.name.size).unwrap_or_default();
                self.out.code.push(Code { start, end, name });
            }
        }
    }
}
