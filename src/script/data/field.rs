//! `SnapshotField`: a place in a captured key or value.

use rhai::{Array, Blob, Dynamic, INT, Map};

use crate::script::fault::Native;
use crate::script::register::Package;
use crate::script::values::{U64, operators};
use crate::snapshot::Field;

use super::{int, native, value_of, values_of};

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Field>(
        "SnapshotField",
        "A place in a captured key or value: a struct, an array, a pointer, or a leaf that `get` \
         or `global` gave.\n\
         It has methods only; `field.name` and `field[\"a.b\"]` are members of what was captured. \
         A leaf compares and computes like its value.",
    );
    walking(pkg);
    reading(pkg);
    about(pkg);
    operators::<Field>(pkg, "SnapshotField");
}

fn walking(pkg: &mut Package<'_>) {
    pkg.func(
        "get(self: SnapshotField, path: string) -> SnapshotField",
        "The field at a path of member names and indices: `\"ctx.weight\"`, `\"fifos[2].head\"`.",
        |f: Field, path: &str| native(f.get(path)),
    )
    .index(
        "index(self: SnapshotField, path: string) -> any",
        "The value at a path for a leaf, a field for everything else; also written `field.name`.",
        |f: Field, path: &str| value_of(native(f.get(path))?),
    )
    .index(
        "index(self: SnapshotField, i: int) -> any",
        "An element of an array.",
        |f: Field, i: INT| element(&f, i),
    )
    .iterable(|f: Field| match f.as_array() {
        Ok(elements) => Box::new(elements.into_iter().map(value_of)),
        Err(error) => Box::new(std::iter::once(Err(super::thrown(error)))),
    });
}

/// An element of an array by its index.
pub(super) fn element(field: &Field, i: INT) -> Native<Dynamic> {
    if i < 0 {
        // A path cannot spell it.
        let len = native(field.as_array())?.len();
        let map = format!("{}: {}", field.origin().map, field.path());
        return Err(super::thrown(crate::snapshot::SnapshotError::IndexOutOfRange {
            map,
            index: i,
            len,
        }));
    }
    value_of(native(field.get(&format!("[{i}]")))?)
}

fn reading(pkg: &mut Package<'_>) {
    pkg.func(
        "as_u64(self: SnapshotField) -> int|U64",
        "The number, without a sign; the address in a pointer. Throws for a negative one.",
        |f: Field| native(f.as_u64()).map(U64::dynamic),
    )
    .func("as_i64(self: SnapshotField) -> int", "The number, with its sign.", |f: Field| {
        native(f.as_i64())
    })
    .func("as_f64(self: SnapshotField) -> float", "The number, as a float.", |f: Field| {
        native(f.as_f64())
    })
    .func(
        "as_bool(self: SnapshotField) -> bool",
        "False for 0 and a null pointer, true for any other number.",
        |f: Field| native(f.as_bool()),
    )
    .func(
        "as_str(self: SnapshotField) -> string",
        "Text up to its first zero, an enum's name (`A|B` for several bits), or the digits of an \
         `__int128`. Throws when it is not UTF-8.",
        |f: Field| native(f.as_str()),
    )
    .func(
        "as_array(self: SnapshotField) -> array",
        "The elements of an array: values for leaves, fields for everything else. Of a \
         `bpf_list_head` or a `bpf_rb_root` the objects in it, in their order.",
        |f: Field| -> Native<Array> { values_of(native(f.as_array())?) },
    )
    .func(
        "as_ptr(self: SnapshotField, type: string) -> SnapshotField",
        "What the address points to, read as a type of the kernel's (or of the scheduler's own) in \
         C's words: `\"struct task_struct\"`. It has to be something that was copied, such as a \
         task; a freeze with `ram: true` copies all there is.",
        |f: Field, ty: &str| native(f.as_ptr(ty)),
    )
    .func(
        "points_to(self: SnapshotField) -> string",
        "The type behind a pointer, `\"struct task_struct\"`, or `()`. A path goes on through it: \
         `e.get(\"task.comm\")`. Numbers of which the programs' own instructions prove that they \
         are pointers count as such; `proven_by()` tells which programs those are.",
        |f: Field| f.points_to().map_or(Dynamic::UNIT, Dynamic::from),
    )
    .func(
        "proven_by(self: SnapshotField) -> array",
        "The programs whose instructions prove that this number is a pointer: all that write it \
         write the address of an object of one type. Empty for anything else.",
        |f: Field| -> Array {
            let by = f.cast().map(|cast| cast.by.clone()).unwrap_or_default();
            by.into_iter().map(Dynamic::from).collect()
        },
    )
    .func(
        "as_cpus(self: SnapshotField) -> string",
        "The CPUs in a CPU mask, `\"0-3,8\"`: a `struct cpumask`, a `struct bpf_cpumask`, or a pointer \
         to one.",
        |f: Field| native(f.as_cpus()),
    )
    .func(
        "cpu(self: SnapshotField, cpu: int) -> SnapshotField",
        "What a per-CPU pointer (`__percpu_kptr`) leads to on one CPU.",
        |f: Field, cpu: INT| native(f.on_cpu(cpu)),
    )
    .func(
        "torn(self: SnapshotField) -> array",
        "Why a list, a tree, or a struct with a `bpf_spin_lock` may be half-changed, usually nothing: \
         the lock is held, an object was just being moved.",
        |f: Field| -> Array { f.torn().into_iter().map(Dynamic::from).collect() },
    )
    .func(
        "raw(self: SnapshotField) -> blob",
        "The bytes, as they lay in memory.",
        |f: Field| -> Native<Blob> { native(f.raw()) },
    );
}

fn about(pkg: &mut Package<'_>) {
    pkg.func(
        "kind(self: SnapshotField) -> string",
        "`int`, `bool`, `float`, `enum`, `text`, `pointer`, `array`, `struct`, `union`, or \
         `bytes` without a type.",
        |f: Field| f.kind().as_str(),
    )
    .func(
        "type_name(self: SnapshotField) -> string",
        "The type as C spells it: `struct task_ctx`, `u32[4]`.",
        |f: Field| f.type_name(),
    )
    .func(
        "members(self: SnapshotField) -> array",
        "The names of a struct's members, in the order of their declaration.",
        |f: Field| -> Native<Array> {
            Ok(native(f.members())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .func(
        "origin(self: SnapshotField) -> map",
        "Where it came from: `map`, `key`, `path`, `cpu` (or `()`), `tag`, `elapsed_ms`, and all \
         of it as `text`.",
        |f: Field| origin(&f),
    )
    .func(
        "to_string(self: SnapshotField) -> string",
        "The value; of a struct or array its members or elements on one line.",
        |f: Field| f.to_string(),
    )
    .func(
        "to_debug(self: SnapshotField) -> string",
        "The value, and where it came from.",
        |f: Field| format!("{} ({})", f.inline(2000), f.origin()),
    );
}

fn origin(field: &Field) -> Map {
    let from = field.origin();
    let text = from.to_string();
    let cpu = from.cpu.map_or(Dynamic::UNIT, |cpu| int(cpu).into());
    let elapsed = int(from.elapsed_ms);
    Map::from([
        ("map".into(), from.map.into()),
        ("key".into(), from.key.into()),
        ("path".into(), from.path.into()),
        ("cpu".into(), cpu),
        ("tag".into(), from.tag.into()),
        ("elapsed_ms".into(), elapsed.into()),
        ("text".into(), text.into()),
    ])
}
