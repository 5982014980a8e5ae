//! `SnapshotMap` and `SnapshotEntry`.

use rhai::{Array, Dynamic, FnPtr, INT, NativeCallContext};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{Op, U64, compare, incomparable};
use crate::snapshot::{Detail, Entry, Map, Reduce, Scalar};

use super::field::element;
use super::origin::remember_of;
use super::{int, key_arg, native, thrown, value_of, values_of, verdict};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Map>(
        "SnapshotMap",
        "A BPF map as it was at the freeze. `for entry in map` goes through its entries, those of \
         the hash kinds in the order of their keys.",
    );
    attributes(pkg);
    entries(pkg);
    closures(pkg);
    pkg.func(
        "cpu(self: SnapshotMap, n: int) -> SnapshotMap",
        "The same map as one CPU sees it. Throws `PerCpuSlot` for a CPU that is not there.",
        |m: Map, n: INT| native(m.cpu(n)),
    )
    .func(
        "torn(self: SnapshotMap) -> array",
        "Why the map may be half-changed, usually nothing. A value that is updated in place takes \
         no lock: that cannot be told.",
        |m: Map| strings(m.torn()),
    )
    .func(
        "details(self: SnapshotMap) -> map",
        "What the kernel keeps of the map beside its entries, by name: a ring buffer's positions, \
         a bloom filter's seed. Empty for most kinds.",
        |m: Map| facts(m.details()),
    )
    .func("to_string(self: SnapshotMap) -> string", "Name, kind, size and types.", |m: Map| {
        m.headline()
    })
    .func("to_debug(self: SnapshotMap) -> string", "Name, kind, size and types.", |m: Map| {
        m.headline()
    });
    incomparable::<Map>(pkg, "SnapshotMap");
}

/// Facts as a script has them.
fn facts(details: &[(String, Detail)]) -> rhai::Map {
    let value = |value: &Detail| match value {
        Detail::Number(n) => U64::dynamic(*n),
        Detail::Text(text) => Dynamic::from(text.clone()),
    };
    details.iter().map(|(name, fact)| (name.as_str().into(), value(fact))).collect()
}

fn strings(texts: Vec<String>) -> Array {
    texts.into_iter().map(Dynamic::from).collect()
}

fn attributes(pkg: &mut Package<'_>) {
    pkg.getter(
        "name(self: SnapshotMap) -> string",
        "Its full name, where it is known; else the name that the kernel cut at 15 characters.",
        |m: Map| m.name().to_owned(),
    )
    .getter(
        "kind(self: SnapshotMap) -> string",
        "Its kind, as bpftool prints it: `hash`, `percpu_array`, ..",
        |m: Map| m.attrs().kind.clone(),
    )
    .getter("id(self: SnapshotMap) -> int", "The kernel's number for it.", |m: Map| {
        INT::from(m.attrs().id)
    })
    .getter("key_size(self: SnapshotMap) -> int", "Bytes of a key.", |m: Map| {
        INT::from(m.attrs().key_size)
    })
    .getter("value_size(self: SnapshotMap) -> int", "Bytes of a value.", |m: Map| {
        INT::from(m.attrs().value_size)
    })
    .getter("max_entries(self: SnapshotMap) -> int", "How many entries it can hold.", |m: Map| {
        INT::from(m.attrs().max_entries)
    })
    .getter(
        "len(self: SnapshotMap) -> int",
        "How many entries it holds. Throws `MapRenderIncomplete` when not all could be read.",
        len,
    )
    .func("len(self: SnapshotMap) -> int", "How many entries it holds.", len)
    .func("is_empty(self: SnapshotMap) -> bool", "Whether it holds no entries.", |m: Map| {
        native(m.is_empty())
    });
}

fn len(map: Map) -> Native<Dynamic> {
    let len = native(map.len()).map(int)?;
    Ok(remember_of(&map, format!("{}.len", map.name()), Scalar::Int(len)))
}

fn entries(pkg: &mut Package<'_>) {
    pkg.func(
        "at(self: SnapshotMap, i: int) -> SnapshotEntry",
        "The entry at an index of an array, or at a place in the order of keys. Throws \
         `IndexOutOfRange` past the end.",
        |m: Map, i: INT| native(m.at(i)),
    )
    .func(
        "get(self: SnapshotMap, key: any) -> SnapshotEntry",
        "The entry with a key: a number, text, a blob, `#{ pid: 1, cpu: 0 }` for a struct, or \
         another entry's key. Throws `NoMatch` with keys that are there.",
        |m: Map, key: Dynamic| native(m.get(&key_arg(&key)?)),
    )
    .func(
        "contains(self: SnapshotMap, key: any) -> bool",
        "Whether there is an entry with a key. Also written `key in map`. Of a bloom filter, \
         whether a value may have been put in: false is certain, true is not.",
        |m: Map, key: Dynamic| native(m.contains(&key_arg(&key)?)),
    )
    .func(
        "keys(self: SnapshotMap) -> array",
        "All keys: values for leaves, fields for structs.",
        |m: Map| -> Native<Array> { values_of(native(m.keys())?) },
    )
    .iterable(|m: Map| match m.entries() {
        Ok(entries) => Box::new(entries.map(|entry| Ok(Dynamic::from(entry)))),
        Err(error) => Box::new(std::iter::once(Err(thrown(error)))),
    });
}

fn closures(pkg: &mut Package<'_>) {
    pkg.func(
        "find(self: SnapshotMap, test: closure) -> SnapshotEntry",
        "The first entry for which the closure gives true: `map.find(|e| e.ctx.weight > 10)`. \
         Throws `NoMatch` when there is none.",
        |ctx: NativeCallContext<'_>, m: Map, test: FnPtr| -> Native<Entry> {
            match find(&ctx, &m, &test, "find(..)")? {
                Some(entry) => Ok(entry),
                None => Err(thrown(m.nothing_matched("find(..)"))),
            }
        },
    )
    .func(
        "find_or(self: SnapshotMap, test: closure, default: any) -> any",
        "The first entry for which the closure gives true, or `default`.",
        |ctx: NativeCallContext<'_>, m: Map, test: FnPtr, default: Dynamic| -> Native<Dynamic> {
            match find(&ctx, &m, &test, "find_or(..)")? {
                Some(entry) => Ok(Dynamic::from(entry)),
                // The entry may be among those that were not read.
                None => native(m.len()).map(|_| default),
            }
        },
    )
    .func(
        "filter(self: SnapshotMap, test: closure) -> array",
        "The entries for which the closure gives true.",
        |ctx: NativeCallContext<'_>, m: Map, test: FnPtr| -> Native<Array> {
            let mut out = Array::new();
            for entry in native(m.entries())? {
                if ask(&ctx, &test, &entry, "filter(..)")? {
                    out.push(Dynamic::from(entry));
                }
            }
            Ok(out)
        },
    )
    .func(
        "max_by(self: SnapshotMap, rank: closure) -> SnapshotEntry",
        "The entry for which the closure gives the largest value, the first of equals. Throws \
         `NoMatch` when the map is empty.",
        |ctx: NativeCallContext<'_>, m: Map, rank: FnPtr| -> Native<Entry> {
            let mut best: Option<(Dynamic, Entry)> = None;
            for entry in native(m.entries())? {
                let value = rank.call_within_context::<Dynamic>(&ctx, (entry.clone(),))?;
                let better = match &best {
                    Some((most, _)) => compare(Op::Gt, &value, most)?,
                    None => true,
                };
                if better {
                    best = Some((value, entry));
                }
            }
            match best {
                Some((_, entry)) => Ok(entry),
                None => Err(thrown(m.nothing_matched("max_by(..)"))),
            }
        },
    );
}

/// The first entry that matches, among those that could be read.
fn find(ctx: &NativeCallContext<'_>, map: &Map, test: &FnPtr, call: &str) -> Native<Option<Entry>> {
    for entry in map.known_entries() {
        if ask(ctx, test, &entry, call)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn ask(ctx: &NativeCallContext<'_>, test: &FnPtr, entry: &Entry, call: &str) -> Native<bool> {
    let found = test.call_within_context::<Dynamic>(ctx, (entry.clone(),))?;
    verdict(&found, call)
}

pub(super) fn register_entry(pkg: &mut Package<'_>) {
    pkg.ty::<Entry>(
        "SnapshotEntry",
        "A key and its value. `entry.ctx.weight` and `entry[\"ctx.weight\"]` are members of the \
         value.",
    )
    .getter(
        "key(self: SnapshotEntry) -> any",
        "The key: the value itself for a leaf, a field for a struct.",
        |e: Entry| value_of(e.key()),
    )
    .getter(
        "value(self: SnapshotEntry) -> any",
        "The value: itself for a leaf, a field for a struct or array.",
        |e: Entry| value_of(native(e.value())?),
    )
    .func(
        "get(self: SnapshotEntry, path: string) -> SnapshotField",
        "The field at a path in the value: `\"ctx.weight\"`, `\"fifos[2].head\"`.",
        |e: Entry, path: &str| native(e.get(path)),
    )
    .index(
        "index(self: SnapshotEntry, path: string) -> any",
        "What is at a path in the value: the value itself for a leaf, a field for everything \
         else; also written `entry.name`.",
        |e: Entry, path: &str| value_of(native(e.get(path))?),
    )
    .index(
        "index(self: SnapshotEntry, i: int) -> any",
        "An element of a value that is an array.",
        |e: Entry, i: INT| element(&native(e.value())?, i),
    )
    .func(
        "cpu(self: SnapshotEntry, n: int) -> SnapshotEntry",
        "The same entry as one CPU sees it. Throws `PerCpuSlot` for a CPU that is not there.",
        |e: Entry, n: INT| native(e.cpu(n)),
    );
    reductions(pkg);
    pkg.func(
        "is_present(self: SnapshotEntry) -> bool",
        "Whether there is a value to read: in a per-CPU map, whether the chosen CPU (or any) has \
         memory behind its slot.",
        |e: Entry| e.is_present(),
    )
    .func(
        "torn(self: SnapshotEntry) -> array",
        "Why the entry may be half-changed, usually nothing.",
        |e: Entry| strings(e.torn()),
    )
    .func(
        "details(self: SnapshotEntry) -> map",
        "What the kernel keeps of the entry beside key and value, by name: a cgroup's id, where a \
         socket leads. Empty for most kinds.",
        |e: Entry| facts(e.details()),
    )
    .func("to_string(self: SnapshotEntry) -> string", "Key and value on one line.", one_line)
    .func("to_debug(self: SnapshotEntry) -> string", "Key and value on one line.", one_line);
    of_some_kinds(pkg);
    incomparable::<Entry>(pkg, "SnapshotEntry");
}

/// What entries of some kinds of map lead to.
fn of_some_kinds(pkg: &mut Package<'_>) {
    pkg.func(
        "map(self: SnapshotEntry) -> SnapshotMap",
        "The map that an entry of a map of maps leads to; its value is that map's id. Throws \
         `TypeMismatch` in other maps.",
        |e: Entry| native(e.inner_map()),
    )
    .func(
        "prog(self: SnapshotEntry) -> SnapshotProg",
        "The program that an entry of an array of programs leads to. Throws `TypeMismatch` in \
         other maps.",
        |e: Entry| native(e.prog()),
    )
    .func(
        "as_type(self: SnapshotEntry, type: string) -> SnapshotField",
        "What begins with a page of an arena, read as a type of the scheduler's own (or of the \
         kernel's) in C's words: `\"struct queue\"`. It may go on in the pages behind. Throws \
         `TypeMismatch` in other maps.",
        |e: Entry, ty: &str| native(e.as_type(ty)),
    )
    .func(
        "stack(self: SnapshotEntry) -> SnapshotStack",
        "The stack that an entry of a map of stacks is: functions of the kernel and of BPF programs \
         by their names, places in files by the file's build id, anything else as an address. \
         Throws `TypeMismatch` in other maps.",
        |e: Entry| native(e.stack()),
    );
}

fn one_line(entry: Entry) -> String {
    let value = match entry.value() {
        Ok(value) => value.inline(400),
        Err(error) => format!("<{error}>"),
    };
    format!("{}[{}]: {value}", entry.map().name(), entry.key_text())
}

fn reductions(pkg: &mut Package<'_>) {
    for (how, name, what) in [
        (Reduce::Sum, "cpu_sum", "The sum over all CPUs"),
        (Reduce::Max, "cpu_max", "The largest of all CPUs"),
        (Reduce::Min, "cpu_min", "The smallest of all CPUs"),
    ] {
        pkg.func(
            &format!("{name}(self: SnapshotEntry, path: string) -> int|U64|float"),
            &format!("{what} of the number at a path in a per-CPU value."),
            move |e: Entry, path: &str| reduce(&e, how, name, path),
        )
        .func(
            &format!("{name}(self: SnapshotEntry) -> int|U64|float"),
            &format!("{what} of a per-CPU value that is a number."),
            move |e: Entry| reduce(&e, how, name, ""),
        );
    }
}

fn reduce(entry: &Entry, how: Reduce, name: &str, path: &str) -> Native<Dynamic> {
    let value = native(entry.reduce(how, path))?;
    let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
    let what = format!("{name} of {}[{}]{dot}{path}", entry.map().name(), entry.key_text());
    Ok(remember_of(entry.map(), what, value))
}
