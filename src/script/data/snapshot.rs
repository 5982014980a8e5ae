//! `Snapshot`.

use std::path::Path;
use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map};

use crate::script::fault::{Fault, Native};
use crate::script::options::Options;
use crate::script::register::Package;
use crate::script::values::{from_scalar, incomparable};
use crate::script::vm::thrown;
use crate::snapshot::{Change, Snapshot, Value};

use super::native;

type Snap = Arc<Snapshot>;

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Snap>("Snapshot", "The machine as it stood at one instant.");
    about(pkg);
    contents(pkg);
    store(pkg);
    diff(pkg);
    later(pkg);
    incomparable::<Snap>(pkg, "Snapshot");
}

/// Time as a script's integer.
fn int(n: u64) -> INT {
    INT::try_from(n).unwrap_or(INT::MAX)
}

fn about(pkg: &mut Package<'_>) {
    pkg.getter("tag(self: Snapshot) -> string", "The name it was given.", |s: Snap| {
        s.tag().to_owned()
    })
    .getter(
        "elapsed_ms(self: Snapshot) -> int",
        "Workload time: since the scheduler was attached, pauses taken out.",
        |s: Snap| int(s.elapsed_ms()),
    )
    .getter(
        "pause_us(self: Snapshot) -> int",
        "How long the machine was stopped for it, in microseconds.",
        |s: Snap| int(s.pause().total_us),
    )
    .getter(
        "pause(self: Snapshot) -> map",
        "How long the machine was stopped, in microseconds: `total_us`, and of it the engine's \
         `stop_us`, our `copy_us` and the engine's `resume_us`.",
        |s: Snap| {
            let p = s.pause();
            Map::from([
                ("total_us".into(), int(p.total_us).into()),
                ("stop_us".into(), int(p.stop_us).into()),
                ("copy_us".into(), int(p.copy_us).into()),
                ("resume_us".into(), int(p.resume_us).into()),
            ])
        },
    )
    .getter(
        "phase(self: Snapshot) -> string",
        "The step of the scenario that it falls in; `()` for none.",
        |s: Snap| s.phase().map_or(Dynamic::UNIT, Into::into),
    )
    .getter(
        "is_placeholder(self: Snapshot) -> bool",
        "Whether the freeze did not complete. Then `map`, `global` and the like throw \
         `PlaceholderSnapshot`, and `dump()` says why.",
        |s: Snap| s.is_placeholder(),
    )
    .func(
        "torn(self: Snapshot) -> array",
        "Why the list of maps may be half-changed, usually nothing.",
        |s: Snap| -> Array { s.torn().iter().map(|why| why.clone().into()).collect() },
    )
    .func("to_string(self: Snapshot) -> string", "Tag, time and phase.", |s: Snap| s.headline())
    .func("to_debug(self: Snapshot) -> string", "Tag, time and phase.", |s: Snap| s.headline());
}

fn contents(pkg: &mut Package<'_>) {
    pkg.func(
        "maps(self: Snapshot) -> array",
        "The captured maps, each a `SnapshotMap`.",
        |s: Snap| -> Native<Array> {
            Ok(native(s.maps())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .func(
        "map(self: Snapshot, name: string) -> SnapshotMap",
        "The map of that name: in full (`fifo.bss`), as the kernel cut it, or with `#` and the \
         kernel's id where several have it. Throws `MapNotFound` with the nearest name.",
        |s: Snap, name: &str| native(s.map(name)),
    )
    .func(
        "global(self: Snapshot, name: string) -> SnapshotField",
        "The global variable of that name, in the scheduler's `.bss`, `.data` or `.rodata`; a \
         path may follow, as in `\"stats.nr[2]\"`. Throws `VarNotFound` with the nearest name, \
         `AmbiguousVar` when several objects have it.",
        |s: Snap, name: &str| native(s.global(name)),
    )
    .func(
        "globals(self: Snapshot, name: string) -> array",
        "The global variable of that name in every object that has it.",
        |s: Snap, name: &str| -> Native<Array> {
            Ok(native(s.globals(name))?.into_iter().map(Dynamic::from).collect())
        },
    );
}

/// Files.
fn store(pkg: &mut Package<'_>) {
    pkg.func(
        "save(self: Snapshot, path: string)",
        "Writes all that was captured to a file, in the place of one that is there: `open(path)` \
         gives the same answers. A relative path starts from the current directory.",
        |s: Snap, path: &str| -> Native<()> {
            s.save(Path::new(path)).map_err(|e| Fault::argument(e.to_string()).into())
        },
    );
    pkg.func(
        "save(self: Snapshot, path: string, opts: map)",
        "The same with options: `ram`, the whole memory too. Not available yet.",
        |_: Snap, _: &str, _: Map| -> Native<()> {
            Err(Fault::not_yet("the option \"ram\" of save(..)").into())
        },
    );
}

fn diff(pkg: &mut Package<'_>) {
    pkg.func(
        "diff(self: Snapshot, newer: Snapshot) -> array",
        "What changed from this snapshot to `newer`: maps with `path`, `before` and `after`, of \
         which one is `()` where something came or went. Pointers are left out.",
        |s: Snap, newer: Snap| changes(&s, &newer, false),
    )
    .func(
        "diff(self: Snapshot, newer: Snapshot, opts: map) -> array",
        "The same with options: `addresses: true` compares pointers too.",
        |s: Snap, newer: Snap, opts: Map| -> Native<Array> {
            let read = Options::new("diff(..)", &opts, &["addresses"], &[]);
            let addresses = read.and_then(|read| read.flag("addresses")).map_err(thrown)?;
            changes(&s, &newer, addresses.unwrap_or(false))
        },
    );
}

fn changes(old: &Snap, new: &Snap, addresses: bool) -> Native<Array> {
    let diff = native(old.diff(new, addresses))?;
    if diff.more > 0 {
        let text = format!("{} values differ, too many for a list", diff.changes.len() + diff.more);
        return Err(Fault::argument(text).into());
    }
    let value = |value: Option<Value>| match value {
        Some(Value { scalar: Some(scalar), .. }) => from_scalar(scalar),
        Some(Value { text, .. }) => text.into(),
        None => Dynamic::UNIT,
    };
    let change = |change: Change| {
        let Change { path, old, new } = change;
        Dynamic::from(Map::from([
            ("path".into(), path.into()),
            ("before".into(), value(old)),
            ("after".into(), value(new)),
        ]))
    };
    Ok(diff.changes.into_iter().map(change).collect())
}

/// What a later version answers: refused by name, so that nobody looks for a typo.
fn later(pkg: &mut Package<'_>) {
    let refuse = |what: &'static str| -> Native<Dynamic> {
        Err(Fault::not_yet(&format!("snapshot.{what}(..)")).into())
    };
    pkg.getter(
        "stats(self: Snapshot) -> map",
        "What the scheduler's statistics said. Not available yet.",
        |_: Snap| -> Native<Dynamic> { Err(Fault::not_yet("snapshot.stats").into()) },
    );
    for (signature, doc) in [
        ("active(self: Snapshot) -> any", "The root scheduler."),
        ("cpus(self: Snapshot) -> array", "Every CPU's runqueue and times."),
        ("dsqs(self: Snapshot) -> array", "Every dispatch queue."),
        ("tasks(self: Snapshot) -> array", "Every task."),
        ("sched(self: Snapshot) -> any", "The state of sched_ext."),
        ("scheds(self: Snapshot) -> array", "The tree of attached schedulers."),
        ("progs(self: Snapshot) -> array", "The BPF programs."),
    ] {
        let name = refused(signature);
        pkg.func(signature, &not_yet(doc), move |_: Snap| refuse(name));
    }
    for (signature, doc) in [
        ("live_global(self: Snapshot, name: any) -> any", "A global of the live scheduler."),
        ("live_globals(self: Snapshot, names: any) -> any", "Globals of the live scheduler."),
        ("cpu(self: Snapshot, n: any) -> any", "One CPU's runqueue and times."),
        ("dsq(self: Snapshot, id: any) -> any", "One dispatch queue."),
        ("task(self: Snapshot, tid: any) -> any", "One task."),
        ("sched(self: Snapshot, path: any) -> any", "The scheduler of a cgroup."),
        ("kernel(self: Snapshot, symbol: any) -> any", "A variable of the kernel."),
    ] {
        let name = refused(signature);
        pkg.func(signature, &not_yet(doc), move |_: Snap, _: Dynamic| refuse(name));
    }
    pkg.func(
        "kernel(self: Snapshot, symbol: any, type: any) -> any",
        &not_yet("A variable of the kernel, read as a type."),
        move |_: Snap, _: Dynamic, _: Dynamic| refuse("kernel"),
    );
}

fn not_yet(doc: &str) -> String {
    format!("{doc} Not available yet.")
}

/// The name in a signature.
fn refused(signature: &'static str) -> &'static str {
    signature.split('(').next().unwrap_or(signature)
}
