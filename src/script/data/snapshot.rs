//! `Snapshot`.

use std::path::Path;
use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map};

use crate::script::fault::{Fault, Native};
use crate::script::options::Options;
use crate::script::register::Package;
use crate::script::values::{described, from_scalar, incomparable, int, to_scalar};
use crate::script::vm::thrown;
use crate::snapshot::{Change, Scalar, Snapshot, SnapshotResult, StoreError, Trigger, Value};
use crate::vm::contain;

use super::stack::variable;
use super::{domain, native};

type Snap = Arc<Snapshot>;

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<Snap>("Snapshot", "The machine as it stood at one instant.");
    about(pkg);
    sampled(pkg);
    contents(pkg);
    store(pkg);
    diff(pkg);
    kernel(pkg);
    live(pkg);
    incomparable::<Snap>(pkg, "Snapshot");
}

/// The same, of what is not known everywhere.
fn known(n: Option<u64>) -> Dynamic {
    n.map_or(Dynamic::UNIT, |n| int(n).into())
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
         `stop_us`, our `copy_us` and the engine's `resume_us`; `hidden_us`, how much of it the \
         guest's clocks do not show, and `skew_us`, how far apart the vCPUs stopped, each `()` where \
         the engine does not know.",
        |s: Snap| {
            let p = s.pause();
            Map::from([
                ("hidden_us".into(), known(p.hidden_us)),
                ("skew_us".into(), known(p.skew_us)),
                ("total_us".into(), int(p.total_us).into()),
                ("stop_us".into(), int(p.stop_us).into()),
                ("copy_us".into(), int(p.copy_us).into()),
                ("resume_us".into(), int(p.resume_us).into()),
            ])
        },
    )
    .getter(
        "overshoot_us(self: Snapshot) -> int|()",
        "Of one that `t.freeze_when(..)` took: microseconds from the reading that made the \
         predicate true until all vCPUs stood; `()` of all others.",
        |s: Snap| known(s.overshoot_us()),
    )
    .getter(
        "phase(self: Snapshot) -> string",
        "The step of the scenario that it falls in; `()` for none.",
        |s: Snap| s.phase().map_or(Dynamic::UNIT, Into::into),
    )
    .getter(
        "trigger(self: Snapshot) -> string",
        "Why it was taken: `demand`, `watch jiffies_64`, `error exit`, ..",
        |s: Snap| s.trigger().to_string(),
    )
    .getter(
        "fired(self: Snapshot) -> map|()",
        "What of a trap that was hit is known. Of a watch `#{ place, address, bytes, cpu, before, after }`: \
         the CPU that wrote, what was there at the last write that was seen, and what is there now. \
         Of a scheduler's exit `#{ cpu, function, late_us }`: where it was trapped, or how late it \
         was seen. What is not known is `()`, and so is all of it for other snapshots.",
        |s: Snap| fired(s.trigger()),
    )
    .getter(
        "is_placeholder(self: Snapshot) -> bool",
        "Whether the freeze did not complete. Then `map`, `global` and the like throw \
         `PlaceholderSnapshot`, and `dump()` says why.",
        |s: Snap| s.is_placeholder(),
    )
    .func(
        "torn(self: Snapshot) -> array",
        "Why the lists of maps or tasks may be half-changed, usually nothing.",
        |s: Snap| -> Array { s.torn().iter().map(|why| why.clone().into()).collect() },
    )
    .func("to_string(self: Snapshot) -> string", "Tag, time and phase.", |s: Snap| s.headline())
    .func("to_debug(self: Snapshot) -> string", "Tag, time and phase.", |s: Snap| s.headline());
}

fn fired(trigger: &Trigger) -> Dynamic {
    let number = |n: Option<u64>| n.map_or(Dynamic::UNIT, |n| from_scalar(Scalar::U64(n)));
    let cpu = |n: &Option<u32>| number(n.map(u64::from));
    Dynamic::from(match trigger {
        Trigger::Watch { place, address, bytes, cpu: by, before, after } => Map::from([
            ("place".into(), place.clone().into()),
            ("address".into(), number(Some(*address))),
            ("bytes".into(), INT::from(*bytes).into()),
            ("cpu".into(), cpu(by)),
            ("before".into(), number(*before)),
            ("after".into(), number(*after)),
        ]),
        Trigger::ErrorExit { cpu: by, function, late_us } => Map::from([
            ("cpu".into(), cpu(by)),
            ("function".into(), function.clone().map_or(Dynamic::UNIT, Into::into)),
            ("late_us".into(), number(*late_us)),
        ]),
        _ => return Dynamic::UNIT,
    })
}

/// What a sample has that other snapshots lack.
fn sampled(pkg: &mut Package<'_>) {
    pkg.getter(
        "step_index(self: Snapshot) -> int",
        "Which `t.step(..)` it falls in, from 1; 0 before the first.",
        |s: Snap| int(s.meta().step_index),
    )
    .getter(
        "boundary_offset_ms(self: Snapshot) -> int|()",
        "Of a periodic sample: when its time had come, on the workload's clock; else `()`.",
        |s: Snap| known(s.boundary_offset_ms()),
    );
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
         path may follow, as in `\"stats.nr[2]\"`. Of several objects that have it, the one that is \
         live is asked; `AmbiguousVar` is thrown when none or several are. Throws `VarNotFound` \
         with the nearest name.",
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
            s.save(Path::new(path)).map_err(|e| cannot_save(path, &e).into())
        },
    );
    pkg.func(
        "save(self: Snapshot, path: string, opts: map)",
        "The same with options: `ram: true` writes all of memory too, of a snapshot that was taken \
         with `t.freeze(\"tag\", #{ ram: true })`. A name that ends in `.core` makes the file an \
         ELF core, with or without the option, that drgn opens.",
        |s: Snap, path: &str, opts: Map| -> Native<()> {
            let read = Options::new("save(..)", &opts, &["ram"], &[]);
            let ram = read.and_then(|read| read.flag("ram")).map_err(thrown)?.unwrap_or(false);
            let saved = match ram {
                true => s.save_with_ram(Path::new(path)),
                false => s.save(Path::new(path)),
            };
            saved.map_err(|e| cannot_save(path, &e).into())
        },
    );
}

/// Why not; where that is the wall around a scenario's process, what to do about it.
fn cannot_save(path: &str, error: &StoreError) -> Fault {
    let advice = match error {
        StoreError::Write { cause, .. } => contain::explain(Path::new(path), cause),
        _ => None,
    };
    Fault::argument(match advice {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    })
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

/// The kernel's own state.
fn kernel(pkg: &mut Package<'_>) {
    fn all<T: Clone + Send + Sync + 'static>(things: SnapshotResult<Vec<T>>) -> Native<Array> {
        Ok(native(things)?.into_iter().map(Dynamic::from).collect())
    }
    pkg.func(
        "cpus(self: Snapshot) -> array",
        "Every CPU that there can be, each a `SnapshotCpu`.",
        |s: Snap| all(s.cpus()),
    )
    .func(
        "cpu(self: Snapshot, n: int) -> SnapshotCpu",
        "One CPU. Throws `PerCpuSlot` for one that is not there.",
        |s: Snap, n: INT| native(s.cpu(n)),
    )
    .func(
        "tasks(self: Snapshot) -> array",
        "Every task but the CPUs' idle ones, each a `SnapshotTask`, by number. Throws \
         `MapRenderIncomplete` when not all could be copied.",
        |s: Snap| all(s.tasks()),
    )
    .func(
        "task(self: Snapshot, tid: int) -> SnapshotTask",
        "The task of that number: a thread's, which for a process's first is its pid. Throws \
         `NoMatch` with the nearest numbers.",
        |s: Snap, tid: INT| native(s.task(tid)),
    )
    .func(
        "dsqs(self: Snapshot) -> array",
        "Every dispatch queue, each a `SnapshotDsq`.",
        |s: Snap| all(s.dsqs()),
    )
    .func(
        "progs(self: Snapshot) -> array",
        "The BPF programs, each a `SnapshotProg`.",
        |s: Snap| all(s.progs()),
    )
    .func(
        "dsq(self: Snapshot, name: any) -> SnapshotDsq",
        "The dispatch queue of that name: `\"global\"`, `\"local:3\"`, `\"bypass:3\"`, or the \
         number that the scheduler gave it. Throws `NoMatch` with the nearest names.",
        |s: Snap, name: Dynamic| native(s.dsq(&name.to_string())),
    )
    .func(
        "sched(self: Snapshot) -> SnapshotSched",
        "The state of sched_ext and the scheduler at its root. Throws `NoActiveScheduler` on a \
         kernel without sched_ext.",
        |s: Snap| native(s.sched()),
    );
    pkg.func(
        "modules(self: Snapshot) -> array",
        "The loaded modules of the kernel, each a `SnapshotModule`, the last one first.",
        |s: Snap| all(s.modules()),
    )
    .func(
        "find_module(self: Snapshot, name: string) -> SnapshotModule",
        "The module of that name. Throws `NoMatch` with the nearest names.",
        |s: Snap, name: &str| native(s.module(name)),
    );
    pressure(pkg);
    variables(pkg);
}

/// Pressure.
fn pressure(pkg: &mut Package<'_>) {
    pkg.func(
        "psi(self: Snapshot) -> map",
        "What `/proc/pressure/` says: `cpu`, `memory`, `io` and, where the kernel accounts for it, \
         `irq`, each with `some` and `full` (`irq` has `full` only), as in \
         `snap.psi().cpu.some.avg10`. `avg10`, `avg60` and `avg300` are percents, `total` is \
         microseconds. The kernel sums up every two seconds while there is any pressure, and when \
         somebody reads such a file; this is what it had summed up by then. Throws \
         `MapRenderIncomplete` when the kernel does not account for pressure.",
        |s: Snap| native(s.psi(None)).map(domain::pressure),
    )
    .func(
        "psi(self: Snapshot, cgroup: string) -> map",
        "The same of a cgroup by its path (`\"/\"` is the system), as in its `cpu.pressure`. \
         Throws `NoMatch` with the nearest paths.",
        |s: Snap, cgroup: &str| native(s.psi(Some(cgroup))).map(domain::pressure),
    );
}

/// Variables and addresses of the kernel.
fn variables(pkg: &mut Package<'_>) {
    pkg.func(
        "kernel(self: Snapshot, symbol: string) -> SnapshotField|SnapshotPerCpu",
        "A variable of the kernel that the freeze was asked for: `t.freeze(\"tag\", #{ kernel: \
         [\"jiffies_64\"] })`, or any with `#{ ram: true }`; of a per-CPU one, `.cpu(n)` is what a \
         CPU has of it. The kernel tells the types of per-CPU ones only; others are bytes.",
        |s: Snap, symbol: &str| variable(&s, symbol, None),
    )
    .func(
        "kernel(self: Snapshot, symbol: string, type: string) -> SnapshotField|SnapshotPerCpu",
        "The same, read as a type of the kernel's in C's words: `\"u64\"`, `\"struct rq\"`, \
         `\"struct scx_sched *\"`.",
        |s: Snap, symbol: &str, ty: &str| variable(&s, symbol, Some(ty)),
    )
    .func(
        "kernel(self: Snapshot, address: any, type: string) -> SnapshotField",
        "What lies at an address of the kernel's, read as a type of the kernel's, when that was \
         copied.",
        |s: Snap, address: Dynamic, ty: &str| native(s.kernel_at(number(&address)?, ty)),
    )
    .func(
        "symbol(self: Snapshot, address: any) -> string|()",
        "What lies at an address of the kernel's: `\"sched_tick+0x1c\"`, in a module \
         `\"loop_queue_rq+0x1c [loop]\"`, in a BPF program \
         `\"bpf_prog_4b5a18c6d9e2f013_enqueue+0x20 [bpf]\"`; `()` for anything else.",
        |s: Snap, address: Dynamic| -> Native<Dynamic> {
            let symbol = native(s.symbol(number(&address)?))?;
            Ok(symbol.map_or(Dynamic::UNIT, Into::into))
        },
    );
}

/// The attached schedulers.
fn live(pkg: &mut Package<'_>) {
    pkg.func(
        "active(self: Snapshot) -> SnapshotSched",
        "The root scheduler. Throws `NoActiveScheduler` with the reason when none is attached, or \
         when it is just being enabled or disabled and so is not live.",
        |s: Snap| native(s.active()),
    )
    .func(
        "scheds(self: Snapshot) -> array",
        "Every attached scheduler, each a `SnapshotSched`: the root, then those of the cgroups \
         below it, each behind its parent. Those that come or go just then are there as well; \
         `is_live` tells them.",
        |s: Snap| -> Native<Array> {
            Ok(native(s.scheds())?.into_iter().map(Dynamic::from).collect())
        },
    )
    .func(
        "sched(self: Snapshot, path: string) -> SnapshotSched",
        "The scheduler that was attached to the cgroup of that path, `\"/\"` being the root's. \
         Throws `NoMatch` with the cgroups that have one.",
        |s: Snap, path: &str| native(s.sched_of(path)),
    )
    .func(
        "live_global(self: Snapshot, name: string) -> SnapshotField",
        "The global variable of that name in the live scheduler: the copy that counts where the \
         same binary was loaded twice. Throws `NoActiveScheduler` when none is live, `AmbiguousVar` \
         with cgroups when several live ones have it (`snap.sched(path).global(name)` chooses), \
         `VarNotFound` with the live ones' variables.",
        |s: Snap, name: &str| native(s.live_global(name)),
    )
    .func(
        "live_globals(self: Snapshot, names: array) -> map",
        "Several of them at once, by name. Throws as `live_global` does.",
        |s: Snap, names: Array| -> Native<Map> {
            let text = |name: Dynamic| {
                let kind = name.type_name();
                name.into_string().map_err(|_| {
                    let text = format!("live_globals(..) takes names as strings, found {kind}");
                    Box::<rhai::EvalAltResult>::from(Fault::argument(text))
                })
            };
            let names: Vec<String> = names.into_iter().map(text).collect::<Result<_, _>>()?;
            let fields = native(s.live_globals(&names))?.into_iter();
            Ok(fields.map(|(name, field)| (name.into(), Dynamic::from(field))).collect())
        },
    );
}

/// An address as the author has it: a number, or a field that holds one.
fn number(value: &Dynamic) -> Native<u64> {
    let scalar = native(to_scalar(value))?;
    let number = scalar.map(|scalar| native(scalar.as_u64(""))).transpose()?;
    number.ok_or_else(|| Fault::argument(format!("{} is no address", described(value))).into())
}
