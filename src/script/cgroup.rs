//! Cgroups of a live machine, and the workers in them.

use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map, NativeCallContext};

use crate::scenario::lab::{GroupOptions, LabOps, Policy, WorkKind, WorkOptions};

use super::fault::{Fault, Native};
use super::options::{Mistake, Options};
use super::register::Package;
use super::session::Session;
use super::statistics;
use super::values::incomparable;
use super::vm::{Vm, no_such, thrown};
use crate::wire::MAX_WORKERS;

/// A cgroup.
#[derive(Clone)]
pub(crate) struct Cgroup {
    pub(super) lab: Arc<dyn LabOps>,
    pub(super) name: String,
}

const WORKS: [(&str, WorkKind); 4] = [
    ("spin", WorkKind::Spin),
    ("yield", WorkKind::Yield),
    ("sleep", WorkKind::Sleep),
    ("pipe", WorkKind::Pipe),
];

/// What a kind of work is called.
pub(super) fn word_of(kind: WorkKind) -> &'static str {
    WORKS.iter().find(|(_, k)| *k == kind).map_or("work", |(word, _)| word)
}

impl Cgroup {
    pub(crate) fn make(
        s: &Session,
        ctx: &NativeCallContext<'_>,
        t: &Vm,
        name: &str,
        opts: &Map,
    ) -> Native<Cgroup> {
        let set = settings(t, opts).map_err(thrown)?;
        s.lab(ctx, t.lab.new_cgroup(name, &set))?;
        Ok(Cgroup { lab: t.lab.clone(), name: name.to_string() })
    }

    pub(crate) fn find(t: &Vm, name: &str) -> Native<Cgroup> {
        let known = t.lab.cgroups();
        if known.iter().any(|n| n == name) {
            return Ok(Cgroup { lab: t.lab.clone(), name: name.to_string() });
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        Err(Fault::argument(no_such("cgroup", name, &known)).into())
    }
}

fn settings(t: &Vm, opts: &Map) -> Result<GroupOptions, Mistake> {
    let known = &["cpus", "mems", "weight", "cpu_max"];
    let read = Options::new("new_cgroup(..)", opts, known, &["partition", "memory"])?;
    let cpus = read.string("cpus")?;
    if let Some(cpus) = &cpus {
        t.lab.facts().topology.cpu_set(cpus).map_err(|e| read.wrong("cpus", e))?;
    }
    Ok(GroupOptions {
        cpus,
        mems: read.string("mems")?,
        weight: read.number("weight", 1, 10_000)?.and_then(|w| u64::try_from(w).ok()),
        cpu_max: read.string("cpu_max")?,
    })
}

/// Reads the options of `start(..)`.
pub(crate) fn work(t: &Vm, opts: &Map) -> Native<WorkOptions> {
    worker_options(t, opts).map_err(thrown)
}

fn worker_options(t: &Vm, opts: &Map) -> Result<WorkOptions, Mistake> {
    let known = &["work", "count", "policy", "priority", "nice", "affinity", "period"];
    let read = Options::new("start(..)", opts, known, &["argv", "duty", "pinned"])?;
    let words = WORKS.map(|(word, _)| word);
    let Some(word) = read.word("work", &words)? else {
        let all = words.map(|w| format!("\"{w}\"")).join(", ");
        return Err(read.wrong("work", format!("it is missing; it can be {all}")));
    };
    let kind = WORKS.iter().find(|(w, _)| *w == word).map_or(WorkKind::Spin, |(_, kind)| *kind);
    let mut out = WorkOptions::new(kind);
    if let Some(count) = read.number("count", 1, i64::from(MAX_WORKERS))? {
        out.count = u32::try_from(count).unwrap_or(u32::MAX);
        if kind == WorkKind::Pipe && count % 2 != 0 {
            let why = format!("{count} is odd, but \"pipe\" workers talk in pairs");
            return Err(read.wrong("count", why));
        }
    }
    out.policy = policy(&read)?;
    out.nice = read.number("nice", -20, 19)?.and_then(|n| i32::try_from(n).ok());
    out.period = read.duration("period")?;
    if out.period.is_some() && kind != WorkKind::Sleep {
        return Err(read.wrong("period", "only \"sleep\" workers have one"));
    }
    out.affinity = read.string("affinity")?;
    if let Some(cpus) = &out.affinity {
        t.lab.facts().topology.cpu_set(cpus).map_err(|e| read.wrong("affinity", e))?;
    }
    Ok(out)
}

fn policy(read: &Options<'_>) -> Result<Option<Policy>, Mistake> {
    let word = read.word("policy", &["normal", "batch", "idle", "fifo", "rr", "ext"])?;
    let priority = read.number("priority", 1, 99)?;
    let level = || u32::try_from(priority.unwrap_or(1)).unwrap_or(1);
    let policy = match word {
        Some("fifo") => return Ok(Some(Policy::Fifo(level()))),
        Some("rr") => return Ok(Some(Policy::Rr(level()))),
        Some("normal") => Some(Policy::Normal),
        Some("batch") => Some(Policy::Batch),
        Some("idle") => Some(Policy::Idle),
        Some(_) => Some(Policy::Ext),
        None => None,
    };
    match priority {
        Some(_) => Err(read.wrong("priority", "only the policies \"fifo\" and \"rr\" have one")),
        None => Ok(policy),
    }
}

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Cgroup>("Cgroup", "A cgroup (v2) of the guest: CPUs to run on, and workers.")
        .getter("name(self: Cgroup) -> string", "Its name.", |g: &mut Cgroup| g.name.clone())
        .func("to_string(self: Cgroup) -> string", "Its name.", |g: &mut Cgroup| g.name.clone())
        .func("to_debug(self: Cgroup) -> string", "Its name.", |g: &mut Cgroup| {
            format!("Cgroup({:?})", g.name)
        });
    workers(pkg, session);
    settings_of(pkg, session);
    incomparable::<Cgroup>(pkg, "Cgroup");
}

fn workers(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "start(self: Cgroup, opts: map) -> array",
        "Starts workers in it and gives their pids.\n\
         Options: `work` (`\"spin\"`, `\"yield\"`, `\"sleep\"`, `\"pipe\"`), `count`, `policy` \
         (`\"normal\"`, `\"batch\"`, `\"idle\"`, `\"fifo\"`, `\"rr\"`, `\"ext\"`), `priority`, `nice`, \
         `affinity` (a CPU set), `period` (of `\"sleep\"`).",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup, opts: Map| -> Native<Array> {
            let work = work(&Vm { lab: g.lab.clone() }, &opts)?;
            let pids = s.lab(&ctx, g.lab.start(Some(&g.name), &work))?;
            Ok(pids.into_iter().map(|pid| Dynamic::from(INT::from(pid))).collect())
        },
    );
    let s = session.clone();
    pkg.getter(
        "procs(self: Cgroup) -> array",
        "The pids in it.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| -> Native<Array> {
            let pids = s.lab(&ctx, g.lab.cgroup_procs(&g.name))?;
            Ok(pids.into_iter().map(|pid| Dynamic::from(INT::from(pid))).collect())
        },
    );
    let s = session.clone();
    pkg.func(
        "reports(self: Cgroup) -> array",
        "What the workers in it did so far: see `t.reports()`.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| super::workers::of_group(&s, &ctx, g),
    );
    let s = session.clone();
    pkg.func(
        "move_to(self: Cgroup, other: Cgroup)",
        "Moves all its processes to another cgroup.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup, other: Cgroup| {
            s.lab(&ctx, g.lab.cgroup_move(&g.name, &other.name))
        },
    );
    let s = session.clone();
    pkg.func(
        "move_to(self: Cgroup, other: string)",
        "Moves all its processes to another cgroup, by its name.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup, other: &str| -> Native<()> {
            let other = Cgroup::find(&Vm { lab: g.lab.clone() }, other)?;
            s.lab(&ctx, g.lab.cgroup_move(&g.name, &other.name))
        },
    );
    let s = session.clone();
    pkg.func(
        "stop(self: Cgroup)",
        "Ends its workers.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| s.lab(&ctx, g.lab.cgroup_stop(&g.name)),
    );
}

fn settings_of(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "set_cpus(self: Cgroup, cpus: string)",
        "Changes the CPUs that it may run on: `\"all\"`, `\"0-3,8\"`, `\"llc:0\"`, ..",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup, cpus: &str| -> Native<()> {
            let topology = &g.lab.facts().topology;
            topology.cpu_set(cpus).map_err(|e| Fault::argument(format!("set_cpus(..): {e}")))?;
            s.lab(&ctx, g.lab.cgroup_set_cpus(&g.name, cpus))
        },
    );
    let s = session.clone();
    pkg.func(
        "freeze(self: Cgroup)",
        "Freezes its processes (the cgroup freezer; the machine runs on).",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| {
            s.lab(&ctx, g.lab.cgroup_freeze(&g.name, true))
        },
    );
    let s = session.clone();
    pkg.func(
        "thaw(self: Cgroup)",
        "Lets its processes run again.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| {
            s.lab(&ctx, g.lab.cgroup_freeze(&g.name, false))
        },
    );
    let s = session.clone();
    pkg.func(
        "remove(self: Cgroup)",
        "Ends its workers and removes it.",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| s.lab(&ctx, g.lab.cgroup_remove(&g.name)),
    );
    let s = session.clone();
    pkg.getter(
        "stats(self: Cgroup) -> map",
        "Its statistics as the kernel has them: `g.stats[\"cpu.stat\"].usage_usec`, ..",
        move |ctx: NativeCallContext<'_>, g: &mut Cgroup| -> Native<Map> {
            let files = s.lab(&ctx, g.lab.cgroup_stats(&g.name))?;
            let stats = files.iter().map(|(file, text)| (file.into(), parsed(text))).collect();
            Ok(statistics::named(&s, stats))
        },
    );
}

/// A statistics file: `name number` lines as a map, anything else as it is.
fn parsed(text: &str) -> Dynamic {
    let pairs = text.lines().map(|line| {
        let (name, number) = line.split_once(' ')?;
        Some((name.into(), Dynamic::from(number.trim().parse::<INT>().ok()?)))
    });
    match pairs.collect::<Option<Map>>() {
        Some(map) if !map.is_empty() => Dynamic::from(map),
        _ => Dynamic::from(text.to_string()),
    }
}
