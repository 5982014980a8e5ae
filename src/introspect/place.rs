//! Single places in a guest's memory, named as people name them: read and written one by one.
//!
//! A write changes what is behind an address that the page tables give, in RAM and nowhere else. A
//! number of up to eight bytes that is aligned is one store, as a CPU of the guest would make it; a
//! longer or odd one is several, between which a running guest may look; of a bitfield the bits
//! beside it are written back as they were read.

use std::sync::Arc;

use super::bpf::{MapInfo, kind};
use super::error::IntrospectError;
use super::kernel::Kernel;
use super::object::Object;
use super::walk::Walk;
use crate::btf::{BitRange, Btf, EnumShape, Shape, Want};
use crate::mem::Kva;
use crate::words::nearest;

/// Elements that are read at once.
const MAX_COUNT: u32 = 4096;
/// Bytes of one value.
const MAX_VALUE: usize = 4096;
/// Tasks that are looked at for one.
const MAX_TASKS: usize = 32 << 10;

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A variable of the kernel, a path into it included (`"init_task.comm"`), and its C type where
    /// the kernel's BTF does not tell it.
    Symbol {
        /// The variable.
        path: String,
        /// Its type.
        ty: Option<String>,
    },
    /// An address.
    Address {
        /// Where.
        at: u64,
        /// The C type of what is there.
        ty: String,
        /// How many of them.
        count: u32,
    },
    /// What a CPU has of a per-CPU variable.
    PerCpu {
        /// The variable, and a path into it.
        path: String,
        /// Its type, where the kernel's BTF does not tell it.
        ty: Option<String>,
        /// The CPU.
        cpu: u32,
    },
    /// A member of a task.
    Task {
        /// The thread's number.
        tid: u32,
        /// A path from `struct task_struct`.
        field: String,
    },
    /// A global variable of a BPF object.
    Global {
        /// The variable, and a path into it.
        path: String,
        /// The object (`"fifo"`), where several have it.
        obj: Option<String>,
    },
    /// An entry of an array.
    Entry {
        /// The map.
        map: String,
        /// Its index.
        index: u32,
        /// A path into the value.
        field: Option<String>,
        /// The CPU, in a per-CPU array.
        cpu: Option<u32>,
    },
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum New {
    /// A whole number.
    Int(i128),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text, or the name of an enum's value.
    Text(String),
}

type Found<T> = Result<T, IntrospectError>;

fn wrong<T>(text: impl Into<String>) -> Found<T> {
    Err(IntrospectError::Type(text.into()))
}

/// `, did you mean NAME?` or nothing.
fn hint<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(asked, names).map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

/// A path's first component, and the rest without its dot (an index keeps its bracket).
fn split(path: &str) -> (&str, &str) {
    match path.find(['.', '[']) {
        Some(at) => (&path[..at], path[at..].trim_start_matches('.')),
        None => (path, ""),
    }
}

impl Kernel {
    /// What is at a place; several for [`Place::Address`] with a count.
    ///
    /// # Errors
    /// There is no such thing: what there is instead, and what to name.
    pub fn at_place(&self, place: &Place) -> Found<Vec<Object<'_>>> {
        let one = match place {
            Place::Address { at, ty, count } => return self.at_address(*at, ty, *count),
            Place::Symbol { path, ty } => self.variable(path, ty.as_deref(), None)?,
            Place::PerCpu { path, ty, cpu } => self.variable(path, ty.as_deref(), Some(*cpu))?,
            Place::Task { tid, field } => self.task(*tid)?.member(field)?,
            Place::Global { path, obj } => self.bpf_global(path, obj.as_deref())?.0,
            Place::Entry { map, index, field, cpu } => {
                self.array_entry(map, *index, field.as_deref(), *cpu)?.0
            }
        };
        Ok(vec![one])
    }

    /// Writes to a place. What was there before, and what it is.
    ///
    /// # Errors
    /// As [`Kernel::at_place`]; the place is of those that are not written; the value does not fit
    /// its type. Nothing has been written then.
    pub fn write_place(&self, place: &Place, new: &New) -> Found<(Object<'_>, Vec<u8>)> {
        let object = match place {
            Place::Global { path, obj } => {
                let (object, map) = self.bpf_global(path, obj.as_deref())?;
                writable(&map)?;
                object
            }
            Place::Entry { map, index, field, cpu } => {
                let (object, map) = self.array_entry(map, *index, field.as_deref(), *cpu)?;
                writable(&map)?;
                object
            }
            _ => match &self.at_place(place)?[..] {
                [one] => one.clone(),
                _ => return wrong("values are written one at a time: leave `count` out"),
            },
        };
        self.may_change(object.address())?;
        let old = object.bytes(MAX_VALUE)?;
        let raw = encode(object.btf(), &object, &old, new)?;
        self.space.write(object.address(), &raw).map_err(IntrospectError::Type)?;
        Ok((object, old))
    }

    /// The kernel's own code and constants do not change.
    fn may_change(&self, at: Kva) -> Found<()> {
        let within = |start: &str, end: &str| {
            let range = self.symbols().get(start).zip(self.symbols().get(end));
            range.is_some_and(|(start, end)| (start.0..end.0).contains(&at.0))
        };
        let what = match () {
            () if within("_stext", "_etext") => "code",
            () if within("__start_rodata", "__end_rodata") => "read-only data",
            () => return Ok(()),
        };
        wrong(format!(
            "{at} is {what} of the kernel's, which it takes not to change; write a variable that it \
             writes itself"
        ))
    }

    fn at_address(&self, at: u64, ty: &str, count: u32) -> Found<Vec<Object<'_>>> {
        if count == 0 || count > MAX_COUNT {
            return wrong(format!("`count` is {count}; it can be 1 to {MAX_COUNT}"));
        }
        let first = self.object(Kva(at), ty)?;
        if first.size() == 0 {
            return wrong(format!("'{ty}' has no size, so nothing of it can be read"));
        }
        (0..u64::from(count))
            .map(|i| self.object(Kva(at).offset(i.wrapping_mul(first.size())), ty))
            .collect()
    }

    /// A variable of the kernel; a CPU's, if it is one of those.
    fn variable(&self, path: &str, ty: Option<&str>, cpu: Option<u32>) -> Found<Object<'_>> {
        // Names of symbols may have dots of their own.
        let (name, rest) = match self.symbols().get(path) {
            Some(_) => (path, ""),
            None => split(path),
        };
        let base = self.symbols().address(name)?;
        let known = self.btf().find(name, Want::Var).and_then(|var| self.btf().target(var));
        let at = match cpu {
            Some(cpu) => self.per_cpu(name, cpu)?,
            None if known.is_some() => {
                return wrong(format!(
                    "each CPU has a '{name}' of its own: name one, #{{ percpu: \"{path}\", cpu: 0 }}"
                ));
            }
            None => base,
        };
        let object = match (ty, known) {
            (Some(ty), _) => self.object(at, ty)?,
            (None, Some(ty)) => self.object_of(at, self.btf(), ty),
            (None, None) => {
                return wrong(format!(
                    "the kernel's BTF does not tell the type of '{name}'; give it, as in \
                     #{{ symbol: \"{name}\", type: \"u64\" }}"
                ));
            }
        };
        if rest.is_empty() { Ok(object) } else { object.member(rest) }
    }

    /// The task of that number.
    fn task(&self, tid: u32) -> Found<Object<'_>> {
        let init = self.global("init_task", "struct task_struct")?;
        let whole = |walk: Walk<Kva>| match walk.error {
            Some(error) if walk.items.is_empty() => Err(IntrospectError::from(error)),
            _ => Ok(walk.items),
        };
        let is = |task: &Object<'_>| task.member("pid").and_then(|pid| pid.u64());
        if u64::from(tid) == is(&init)? {
            return Ok(init);
        }
        let mut looked = 0;
        let leaders = whole(self.list(init.member("tasks")?.address(), MAX_TASKS))?;
        for node in leaders {
            let leader = self.object(node, "struct list_head")?;
            let leader = leader.container_of("struct task_struct", "tasks")?;
            let threads = leader.member("signal.thread_head")?.address();
            // A group that is just being torn down has no more threads to be found.
            for node in self.list(threads, MAX_TASKS).items {
                let task = self.object(node, "struct list_head")?;
                let task = task.container_of("struct task_struct", "thread_node")?;
                looked += 1;
                if is(&task).is_ok_and(|pid| pid == u64::from(tid)) {
                    return Ok(task);
                }
                if looked >= MAX_TASKS {
                    return wrong(format!("thread {tid} is not among the first {looked}"));
                }
            }
        }
        wrong(format!("there is no thread {tid} in the guest; it has {looked} of them now"))
    }

    fn bpf_global(&self, path: &str, obj: Option<&str>) -> Found<(Object<'_>, MapInfo)> {
        let (name, rest) = split(path);
        let (mut hits, mut names) = (Vec::new(), Vec::new());
        let mut objects = Vec::new();
        for map in self.maps()?.maps {
            let (Some(section), Some(btf)) = (&map.section, &map.btf) else { continue };
            let full = map.full_name.as_deref().unwrap_or(&map.name);
            let object = full.strip_suffix(section.as_str()).unwrap_or(full).to_owned();
            let wanted = obj.is_none_or(|obj| obj == object);
            if !objects.contains(&object) {
                objects.push(object.clone());
            }
            let Ok(shape) = btf.shape(map.value_type) else { continue };
            let Shape::Datasec { vars, .. } = &*shape else { continue };
            if !wanted {
                continue;
            }
            names.extend(vars.iter().map(|var| var.name.clone()));
            if let Some(var) = vars.iter().find(|var| var.name == name) {
                hits.push((object, map, var.clone()));
            }
        }
        if let Some(obj) = obj.filter(|obj| !objects.iter().any(|known| known == obj)) {
            let near = hint(obj, objects.iter().map(String::as_str));
            return wrong(format!("no loaded BPF object is called \"{obj}\"{near}"));
        }
        let (_, map, var) = match hits.len() {
            0 => {
                let near = hint(name, names.iter().map(String::as_str));
                return wrong(format!("no BPF object has a global variable \"{name}\"{near}"));
            }
            1 => hits.swap_remove(0),
            n => {
                let all: Vec<_> =
                    hits.iter().map(|(obj, map, _)| format!("{obj} (map {})", map.id)).collect();
                return wrong(format!(
                    "{n} BPF objects have a global variable \"{name}\": {}; name one, #{{ global: \
                     \"{path}\", obj: \"{}\" }}",
                    all.join(", "),
                    hits[0].0
                ));
            }
        };
        let section = self.value_at(&map, 0, None)?;
        let at = section.address().offset(var.offset.into());
        let value = self.object_of(at, section.btf(), var.ty);
        Ok((if rest.is_empty() { value } else { value.member(rest)? }, map))
    }

    fn array_entry(
        &self,
        name: &str,
        index: u32,
        field: Option<&str>,
        cpu: Option<u32>,
    ) -> Found<(Object<'_>, MapInfo)> {
        let maps = self.maps()?.maps;
        let full = |map: &MapInfo| map.full_name.clone().unwrap_or_else(|| map.name.clone());
        let mut hits: Vec<_> = maps.iter().filter(|m| full(m) == name).collect();
        if hits.is_empty() {
            hits = maps.iter().filter(|m| m.name == name).collect();
        }
        let map = match hits[..] {
            [map] => map.clone(),
            [] => {
                let all: Vec<String> = maps.iter().map(full).collect();
                let near = hint(name, all.iter().map(String::as_str));
                return wrong(format!("no BPF map is called \"{name}\"{near}"));
            }
            [..] => {
                let n = hits.len();
                return wrong(format!(
                    "{n} BPF maps are called \"{name}\", and which is meant cannot be told"
                ));
            }
        };
        let value = self.value_at(&map, index, cpu)?;
        match field {
            Some(field) => Ok((value.member(field)?, map)),
            None => Ok((value, map)),
        }
    }

    /// A value of an array.
    fn value_at(&self, map: &MapInfo, index: u32, cpu: Option<u32>) -> Found<Object<'_>> {
        let name = map.full_name.as_deref().unwrap_or(&map.name);
        let per_cpu = match map.kind.number {
            kind::ARRAY => false,
            kind::PERCPU_ARRAY => true,
            _ => {
                return wrong(format!(
                    "map {name} is of kind {}, and only entries of arrays have a place of their \
                     own; read it with t.freeze(..).map(\"{name}\")",
                    map.kind
                ));
            }
        };
        if index >= map.max_entries {
            let last = map.max_entries.saturating_sub(1);
            return wrong(format!("map {name} has no entry {index}; its last one is {last}"));
        }
        let Some(btf) = map.btf.as_ref().filter(|_| map.value_type != 0) else {
            return wrong(format!("nothing tells the types of map {name}, it has no BTF"));
        };
        let at = match (per_cpu, cpu) {
            (false, None) => self.array_slot(map, index)?,
            (false, Some(_)) => {
                return wrong(format!("map {name} is not per CPU; leave `cpu` out"));
            }
            (true, None) => {
                return wrong(format!("each CPU has values of its own in map {name}; give `cpu`"));
            }
            (true, Some(cpu)) => {
                let Some(offset) = self.per_cpu_offset(cpu) else {
                    let last = self.nr_cpu_ids().saturating_sub(1);
                    return wrong(format!("there is no CPU {cpu}: this machine has 0 to {last}"));
                };
                Kva(self.read_u64(self.array_slot(map, index)?)?).offset(offset)
            }
        };
        Ok(self.object_of(at, btf, map.value_type))
    }
}

fn writable(map: &MapInfo) -> Found<()> {
    let name = map.full_name.as_deref().unwrap_or(&map.name);
    let constant = map.section.as_deref().is_some_and(|s| s.starts_with(".rodata"));
    if !constant && !map.frozen {
        return Ok(());
    }
    wrong(format!(
        "map {name} is frozen: the verifier has built its values into the programs, which would not \
         see others; set them before loading, scheduler: #{{ src: .., rodata: #{{ .. }} }}"
    ))
}

/// The bytes that a value has as one of the object's type.
fn encode(btf: &Arc<Btf>, object: &Object<'_>, old: &[u8], new: &New) -> Found<Vec<u8>> {
    let shape = btf.shape(object.type_id()).map_err(|e| IntrospectError::Type(e.to_string()))?;
    let ty = object.type_name();
    let takes = |what: &str| wrong(format!("a {ty} takes {what}, not {}", described(new)));
    let bits = object.bits();
    let number = |value: i128, signed: bool| -> Found<Vec<u8>> {
        let len = bits.map_or(old.len() as u32 * 8, |range: BitRange| range.len);
        insert(old, bits, ranged(value, len, signed, &ty)?)
    };
    match (&*shape, new) {
        (Shape::Int { bool: true, .. }, New::Bool(value)) => number((*value).into(), false),
        (Shape::Int { bool: true, .. }, New::Int(value @ 0..=1)) => number(*value, false),
        (Shape::Int { bool: true, .. }, _) => takes("true or false"),
        (Shape::Int { signed, .. }, New::Int(value)) if old.len() <= 9 => number(*value, *signed),
        (Shape::Int { .. }, _) => takes("a whole number"),
        (Shape::Enum(e), New::Int(value)) => number(*value, e.signed),
        (Shape::Enum(e), New::Text(name)) => number(named(e, name, &ty)?, e.signed),
        (Shape::Enum(_), _) => takes("a name or a whole number"),
        (Shape::Float { .. }, New::Float(_) | New::Int(_)) => {
            let value = match new {
                New::Float(value) => *value,
                New::Int(value) => *value as f64,
                _ => 0.0,
            };
            match old.len() {
                4 => Ok((value as f32).to_le_bytes().to_vec()),
                8 => Ok(value.to_le_bytes().to_vec()),
                n => wrong(format!("a {ty} of {n} bytes cannot be written")),
            }
        }
        (Shape::Float { .. }, _) => takes("a number"),
        (Shape::Array { elem_size: 1, .. }, New::Text(text)) => {
            // One byte is the terminator's.
            if text.len() >= old.len() {
                let most = old.len().saturating_sub(1);
                return wrong(format!("{} bytes do not fit into {ty}: {most} do", text.len()));
            }
            let mut raw = text.as_bytes().to_vec();
            raw.resize(old.len(), 0);
            Ok(raw)
        }
        (Shape::Array { elem_size: 1, .. }, _) => takes("text, or name an element"),
        (Shape::Array { .. }, _) => {
            wrong(format!("{ty} is an array; write its elements one by one, as in \"name[0]\""))
        }
        (Shape::Ptr { .. }, _) => wrong(format!(
            "{ty} is a pointer; if it must be, write it as a number, #{{ addr: {:#x}, type: \"u64\" \
             }}",
            object.address().0
        )),
        (Shape::Struct(s), _) => {
            let members: Vec<&str> = s.members.iter().map(|m| m.name.as_str()).take(8).collect();
            wrong(format!("{ty} is no single value; write its members: {}", members.join(", ")))
        }
        _ => wrong(format!("{ty} is nothing that can be written")),
    }
}

fn described(new: &New) -> String {
    match new {
        New::Int(value) => format!("{value}"),
        New::Float(value) => format!("{value:?}"),
        New::Bool(value) => format!("{value}"),
        New::Text(text) => format!("{text:?}"),
    }
}

fn named(shape: &EnumShape, name: &str, ty: &str) -> Found<i128> {
    if let Some((_, value)) = shape.variants.iter().find(|(known, _)| known == name) {
        return Ok(*value);
    }
    let near = hint(name, shape.variants.iter().map(|(name, _)| name.as_str()));
    wrong(format!("{ty} has no value called \"{name}\"{near}"))
}

/// A number that fits so many bits.
fn ranged(value: i128, bits: u32, signed: bool, ty: &str) -> Found<u64> {
    let bits = bits.clamp(1, 64);
    let (low, high) = match signed {
        true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    if !(low..=high).contains(&value) {
        return wrong(format!("{value} does not fit into {ty} of {bits} bits: {low} to {high} do"));
    }
    Ok(value as u64)
}

/// The old bytes with a number in the place of what was there.
fn insert(old: &[u8], bits: Option<BitRange>, value: u64) -> Found<Vec<u8>> {
    let range = bits.unwrap_or(BitRange { offset: 0, len: (old.len() as u32 * 8).min(64) });
    let mut all = [0; 16];
    let len = old.len().min(16);
    all[..len].copy_from_slice(&old[..len]);
    let mask = (u128::from(u64::MAX) >> (64 - range.len.clamp(1, 64))) << range.offset.min(7);
    let kept = u128::from_le_bytes(all) & !mask;
    let put = (u128::from(value) << range.offset.min(7)) & mask;
    Ok((kept | put).to_le_bytes()[..len].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitfield_leaves_its_neighbours_alone() {
        let range = |offset, len| Some(BitRange { offset, len });
        let cases = [
            (vec![0xff, 0xff], range(3, 6), 0, vec![0x07, 0xfe]),
            (vec![0, 0], range(3, 6), 0x3f, vec![0xf8, 0x01]),
            // Bits beyond the field are dropped; they were refused before.
            (vec![0], range(7, 1), u64::MAX, vec![0x80]),
            (vec![0; 9], range(1, 64), u64::MAX, [&[0xfe][..], &[0xff; 7], &[1]].concat()),
            (vec![9; 4], None, 0x0102_0304, vec![4, 3, 2, 1]),
            (vec![9; 8], None, u64::MAX, vec![0xff; 8]),
        ];
        for (old, bits, value, want) in cases {
            assert_eq!(insert(&old, bits, value).unwrap(), want, "{old:?} {bits:?} {value:#x}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused_with_the_range() {
        for (value, bits, signed) in
            [(255, 8, false), (-128, 8, true), (1, 1, false), (-1, 1, true)]
        {
            assert_eq!(ranged(value, bits, signed, "t").unwrap(), value as u64);
        }
        let max = u64::MAX;
        assert_eq!(ranged(max.into(), 64, false, "t").unwrap(), max);
        let cases = [
            (256, 8, false, "256 does not fit into u8 of 8 bits: 0 to 255 do"),
            (-129, 8, true, "-129 does not fit into u8 of 8 bits: -128 to 127 do"),
            (-1, 3, false, "-1 does not fit into u8 of 3 bits: 0 to 7 do"),
        ];
        for (value, bits, signed, says) in cases {
            assert_eq!(ranged(value, bits, signed, "u8").unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn a_path_begins_with_a_name() {
        let cases = [("a", "a", ""), ("a.b.c", "a", "b.c"), ("a[2].b", "a", "[2].b")];
        for (path, name, rest) in cases {
            assert_eq!(split(path), (name, rest));
        }
    }
}
