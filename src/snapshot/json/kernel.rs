//! The kernel's own state as JSON: what has a name of its own in the model, by that name.
//!
//! Of structs only what says something about scheduling is there; what could not be told is
//! `null`, and why a whole part is missing is in `unknown`.

use std::sync::Arc;

use serde_json::{Map as Object, Value, json};

use super::{scalar, to_json};
use crate::snapshot::{
    Cpu, CpuRegisters, Domain, DomainGroup, Dsq, Field, Module, Pressure, Prog, Scalar, Sched,
    Snapshot, SnapshotResult, Stall, Task,
};

/// Members of a task that its kernel may have.
const OF_TASK: [&str; 9] = [
    "nivcsw",
    "nvcsw",
    "on_cpu",
    "on_rq",
    "prio",
    "scx.dsq_vtime",
    "scx.slice",
    "scx.weight",
    "se.sum_exec_runtime",
];
/// Members of a runqueue.
const OF_CPU: [&str; 3] = ["clock", "nr_running", "nr_switches"];
/// Members of a domain.
const OF_DOMAIN: [&str; 8] = [
    "balance_interval",
    "busy_factor",
    "cache_nice_tries",
    "imbalance_pct",
    "level",
    "max_interval",
    "min_interval",
    "nr_balance_failed",
];

type Members = Object<String, Value>;

impl Snapshot {
    /// The kernel's own state for a serializer, its members in the order of their names; `null`
    /// when nothing of it was copied. `docs/snapshots.md` says what there is.
    #[must_use]
    pub fn kernel_as_json(self: &Arc<Self>) -> Value {
        let Ok(state) = self.kernel_state() else { return Value::Null };
        let mut unknown = Members::new();
        let mut out = Members::new();
        let mut part = |name: &str, value: SnapshotResult<Value>| {
            let value = value.unwrap_or_else(|e| {
                unknown.insert(name.to_owned(), e.to_string().into());
                Value::Null
            });
            out.insert(name.to_owned(), value);
        };
        part("cpus", all(self.cpus(), cpu));
        part("dsqs", all(self.dsqs(), dsq));
        part("modules", all(self.modules(), module));
        part("progs", all(self.progs(), prog));
        part("psi", psi(self));
        part("sched", sched_ext(self));
        part("tasks", all(self.tasks(), task));
        let variables = state.variables.keys();
        let variables = variables.map(|name| (name.clone(), variable(self, name)));
        part("variables", Ok(Value::Object(variables.collect())));
        out.insert("unknown".to_owned(), Value::Object(unknown));
        Value::Object(out)
    }
}

fn all<T>(things: SnapshotResult<Vec<T>>, one: fn(&T) -> Value) -> SnapshotResult<Value> {
    Ok(things?.iter().map(one).collect())
}

/// What an accessor says; `null` when it does not.
fn told<T: Into<Value>>(value: SnapshotResult<T>) -> Value {
    value.map_or(Value::Null, Into::into)
}

fn numbers(pairs: SnapshotResult<Vec<(String, Scalar)>>) -> Value {
    let object = |pairs: Vec<(String, Scalar)>| {
        Value::Object(pairs.into_iter().map(|(name, n)| (name, scalar(n))).collect())
    };
    pairs.map_or(Value::Null, object)
}

/// Members by the last part of their paths; those that this kernel does not have are left out.
fn members(of: &mut Value, paths: &[&str], get: impl Fn(&str) -> SnapshotResult<Field>) {
    let Value::Object(of) = of else { return };
    for path in paths {
        if let Ok(field) = get(path) {
            let name = path.rsplit('.').next().unwrap_or(path);
            of.insert(name.to_owned(), to_json(&field));
        }
    }
}

fn task(task: &Task) -> Value {
    let dsq = task.dsq().map(|dsq| dsq.map(|dsq| dsq.name().to_owned()));
    let mut out = json!({
        "cgroup": told(task.cgroup().map(|path| path.map(str::to_owned))),
        "class": told(task.class()),
        "comm": told(task.comm()),
        "cpu": told(task.cpu().and_then(|cpu| cpu.as_i64())),
        "cpus_allowed": told(task.cpus_allowed()),
        "dsq": told(dsq),
        "nice": told(task.nice()),
        "policy": told(task.policy()),
        "schedstats": numbers(task.schedstats()),
        "state": told(task.state()),
        "tgid": told(task.tgid()),
        "tid": told(task.tid()),
    });
    members(&mut out, &OF_TASK, |path| task.get(path));
    out
}

fn cpu(cpu: &Cpu) -> Value {
    let domains = cpu.domains().map(|all| all.iter().map(domain).collect::<Vec<_>>());
    let mut out = json!({
        "cpu": cpu.number(),
        "cpustat": numbers(cpu.cpustat()),
        "curr": told(cpu.curr().and_then(|task| task.tid())),
        "domains": told(domains),
        "idle": told(cpu.is_idle()),
        "registers": told(cpu.registers().map(registers)),
        "schedstats": numbers(cpu.schedstats()),
        "torn": cpu.torn(),
    });
    members(&mut out, &OF_CPU, |path| cpu.get(path));
    out
}

fn registers(all: &CpuRegisters) -> Value {
    json!({ "halted": all.halted, "user": all.in_user_mode(), "values": all.values })
}

fn domain(domain: &Domain) -> Value {
    let group = |group: &DomainGroup| {
        json!({
            "capacity": group.capacity,
            "flags": group.flags,
            "max_capacity": group.max_capacity,
            "min_capacity": group.min_capacity,
            "span": group.span,
            "weight": group.weight,
        })
    };
    let mut out = json!({
        "flags": told(domain.flags()),
        "groups": told(domain.groups().map(|all| all.iter().map(group).collect::<Vec<_>>())),
        "name": domain.name(),
        "span": told(domain.span()),
    });
    members(&mut out, &OF_DOMAIN, |path| domain.get(path));
    out
}

fn dsq(dsq: &Dsq) -> Value {
    let tids = |tasks: Vec<Task>| tasks.iter().map(Task::tid).collect::<SnapshotResult<Vec<i64>>>();
    json!({
        "cpu": dsq.cpu(),
        "id": dsq.id(),
        "name": dsq.name(),
        "nr": told(dsq.get("nr").and_then(|nr| nr.as_u64())),
        "tasks": told(dsq.tasks().and_then(tids)),
        "torn": dsq.torn(),
    })
}

/// The state of sched_ext, and every scheduler.
fn sched_ext(snapshot: &Arc<Snapshot>) -> SnapshotResult<Value> {
    let state = snapshot.sched()?.state()?.to_owned();
    Ok(json!({ "scheds": all(snapshot.scheds(), sched)?, "state": state }))
}

fn sched(sched: &Sched) -> Value {
    let exit = sched.exit().map(|exit| exit.map(|exit| {
        json!({ "code": exit.code, "kind": exit.kind, "message": exit.message, "reason": exit.reason })
    }));
    let maps = sched.maps().map(|maps| maps.iter().map(|map| map.attrs().id).collect::<Vec<_>>());
    let progs = sched.progs().map(|all| all.iter().map(|p| p.state().id).collect::<Vec<_>>());
    json!({
        "bypass_depth": told(sched.bypass_depth().and_then(|depth| depth.as_i64())),
        "cgroup": told(sched.path()),
        "counters": numbers(sched.counters(None)),
        "exit": told(exit),
        "live": told(sched.is_live()),
        "maps": told(maps),
        "ops": told(sched.ops().and_then(|name| name.as_str())),
        "progs": told(progs),
    })
}

fn module(module: &Module) -> Value {
    json!({
        "address": module.address(),
        "name": module.name(),
        "refcount": told(module.refcount()),
        "size": module.size(),
        "state": told(module.state()),
        "taints": told(module.taints()),
    })
}

fn prog(prog: &Prog) -> Value {
    let state = prog.state();
    json!({
        "id": state.id,
        "incomplete": state.incomplete,
        "maps": state.maps,
        "name": state.name,
        "run_count": state.runs.map(|(count, _)| count),
        "run_time_ns": state.runs.map(|(_, time)| time),
        "type": state.kind,
    })
}

/// Of the system and of cgroups by path; a cgroup whose accounting is off is `null`.
fn psi(snapshot: &Arc<Snapshot>) -> SnapshotResult<Value> {
    let line = |stall: Stall| {
        let Stall { avg10, avg60, avg300, total } = stall;
        json!({ "avg10": avg10, "avg300": avg300, "avg60": avg60, "total": total })
    };
    let of = |all: Vec<Pressure>| {
        let resource = |one: Pressure| {
            let shares = [("full", one.full), ("some", one.some)].into_iter();
            let shares = shares.filter_map(|(name, stall)| Some((name.to_owned(), line(stall?))));
            (one.resource.to_owned(), Value::Object(shares.collect()))
        };
        Value::Object(all.into_iter().map(resource).collect())
    };
    let groups = snapshot.all_psi()?;
    let cgroups: Members = groups
        .filter_map(|(cgroup, pressure)| Some((cgroup?.to_owned(), told(pressure.map(of)))))
        .collect();
    Ok(json!({ "cgroups": cgroups, "system": of(snapshot.psi(None)?) }))
}

/// A variable that the freeze was asked for; of a per-CPU one what each CPU has.
fn variable(snapshot: &Arc<Snapshot>, name: &str) -> Value {
    match snapshot.per_cpu(name, None) {
        Ok(Some(_)) => {
            let cpus = snapshot.cpus().unwrap_or_default();
            let field = |cpu: &Cpu| cpu.kernel(name, None).map_or(Value::Null, |f| to_json(&f));
            cpus.iter().map(field).collect()
        }
        _ => snapshot.kernel(name, None).map_or(Value::Null, |field| to_json(&field)),
    }
}
