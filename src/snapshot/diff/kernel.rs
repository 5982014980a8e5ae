//! What changed of the kernel's own state: tasks by number, CPUs, dispatch queues, the scheduler,
//! programs, variables, pressure, modules. Of what moves all the time only what says something about scheduling is compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Differ, Names, Value};
use crate::snapshot::kernel::KernelState;
use crate::snapshot::{
    Cpu, Domain, Dsq, FieldKind, Module, Pressure, Prog, Scalar, Snapshot, SnapshotResult, Stall,
    Task,
};

/// Where a thing comes in the order, the number by which it does, and how it is called.
type Place = (u8, i64, String);

/// Something of the kernel's: how it is shown as a whole, and its facts.
struct Thing {
    headline: String,
    facts: Vec<(String, Value)>,
}

impl Differ {
    /// Compares what was copied of the kernel in both.
    pub(super) fn kernel(&mut self, old: &Arc<Snapshot>, new: &Arc<Snapshot>) {
        let state = |snapshot: &Arc<Snapshot>| snapshot.sched_state().is_ok();
        match (state(old), state(new)) {
            (true, true) => {}
            (false, false) => return,
            (before, _) => {
                let which = if before { "before" } else { "after" };
                return self.unknown("the kernel's state", format!("it was copied only {which}"));
            }
        }
        let (before, after) = (self.things(old, "before"), self.things(new, "after"));
        let mut places: Vec<&Place> = before.keys().chain(after.keys()).collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let whole = |thing: &Thing| Value { text: thing.headline.clone(), scalar: None };
            match (before.get(place), after.get(place)) {
                (Some(old), Some(new)) => self.facts(&place.2, old, new),
                (old, new) => self.change(place.2.clone(), old.map(whole), new.map(whole)),
            }
        }
    }

    fn facts(&mut self, of: &str, old: &Thing, new: &Thing) {
        let before: BTreeMap<&str, &Value> =
            old.facts.iter().map(|(name, value)| (name.as_str(), value)).collect();
        for (name, value) in &new.facts {
            let known = before.get(name.as_str()).copied();
            if known.is_none_or(|known| known.text != value.text) {
                let path = format!("{of}.{name}");
                self.change(path, known.cloned(), Some(value.clone()));
            }
        }
    }

    /// All there is of a snapshot, in order. What cannot be told is noted.
    fn things(&mut self, snapshot: &Arc<Snapshot>, which: &str) -> BTreeMap<Place, Thing> {
        let (mut out, mut names) = (BTreeMap::new(), Names::default());
        // Things that have no order of their own are not called alike.
        let mut put = |rank: u8, number: i64, (name, thing): (String, Thing)| {
            out.insert((rank, number, names.unique(name)), thing);
        };
        match snapshot.tasks() {
            Ok(tasks) => {
                for (tid, thing) in tasks.iter().filter_map(|task| Some((task.tid().ok()?, task))) {
                    put(1, tid, of_task(tid, thing));
                }
            }
            Err(e) => self.unknown("tasks", format!("{which}: {e}")),
        }
        for cpu in snapshot.cpus().unwrap_or_default() {
            put(2, cpu.number().into(), of_cpu(&cpu));
        }
        for dsq in snapshot.dsqs().unwrap_or_default() {
            put(3, 0, of_dsq(&dsq));
        }
        if let Some(sched) = of_sched(snapshot) {
            put(4, 0, sched);
        }
        for prog in snapshot.progs().unwrap_or_default() {
            put(5, 0, of_prog(&prog));
        }
        if let Ok(state) = snapshot.kernel_state() {
            of_variables(snapshot, state, self.addresses)
                .into_iter()
                .for_each(|thing| put(6, 0, thing));
        }
        for module in snapshot.modules().unwrap_or_default() {
            put(8, 0, of_module(&module));
        }
        of_psi(snapshot).into_iter().for_each(|thing| put(7, 0, thing));
        out
    }
}

/// Facts under their names, those that could be told.
#[derive(Default)]
struct Facts(Vec<(String, Value)>);

impl Facts {
    fn text(&mut self, name: &str, text: SnapshotResult<impl ToString>) {
        if let Ok(text) = text {
            self.0.push((name.to_owned(), Value { text: text.to_string(), scalar: None }));
        }
    }

    fn number(&mut self, name: &str, number: SnapshotResult<i64>) {
        if let Ok(number) = number {
            let scalar = Some(Scalar::Int(number));
            self.0.push((name.to_owned(), Value { text: number.to_string(), scalar }));
        }
    }

    fn numbers(&mut self, prefix: &str, numbers: SnapshotResult<Vec<(String, Scalar)>>) {
        for (name, scalar) in numbers.unwrap_or_default() {
            let value = Value { text: scalar.to_string(), scalar: Some(scalar) };
            self.0.push((format!("{prefix}.{name}"), value));
        }
    }
}

fn of_task(tid: i64, task: &Task) -> (String, Thing) {
    let mut facts = Facts::default();
    facts.text("comm", task.comm());
    facts.text("state", task.state());
    facts.text("policy", task.policy());
    facts.text("class", task.class());
    facts.number("nice", task.nice());
    facts.number("cpu", task.cpu().and_then(|cpu| cpu.as_i64()));
    facts.text("cpus_allowed", task.cpus_allowed());
    facts.text("cgroup", task.cgroup().map(|path| path.unwrap_or("?").to_owned()));
    let dsq = task.dsq().map(|dsq| dsq.map_or("none".to_owned(), |dsq| dsq.name().to_owned()));
    facts.text("dsq", dsq);
    for path in ["se.sum_exec_runtime", "nvcsw", "nivcsw"] {
        facts.number(path, task.get(path).and_then(|field| field.as_i64()));
    }
    (format!("tasks[{tid}]"), Thing { headline: task.headline(), facts: facts.0 })
}

fn of_cpu(cpu: &Cpu) -> (String, Thing) {
    let mut facts = Facts::default();
    facts.number("curr", cpu.curr().and_then(|task| task.tid()));
    for path in ["nr_running", "nr_switches"] {
        facts.number(path, cpu.get(path).and_then(|field| field.as_i64()));
    }
    facts.numbers("cpustat", cpu.cpustat());
    let domains = cpu
        .domains()
        .map(|domains| domains.iter().map(Domain::headline).collect::<Vec<_>>().join("; "));
    facts.text("domains", domains);
    (format!("cpus[{}]", cpu.number()), Thing { headline: cpu.headline(), facts: facts.0 })
}

fn of_dsq(dsq: &Dsq) -> (String, Thing) {
    let mut facts = Facts::default();
    let tasks = dsq.tasks().and_then(|tasks| {
        let tids: Vec<String> =
            tasks.iter().map(|task| Ok(task.tid()?.to_string())).collect::<SnapshotResult<_>>()?;
        Ok(format!("[{}]", tids.join(", ")))
    });
    facts.text("tasks", tasks);
    (format!("dsqs[{}]", dsq.name()), Thing { headline: dsq.headline(), facts: facts.0 })
}

fn of_sched(snapshot: &Arc<Snapshot>) -> Option<(String, Thing)> {
    let sched = snapshot.sched().ok()?;
    let mut facts = Facts::default();
    facts.text("state", sched.state());
    facts.text("ops", sched.ops().and_then(|name| name.as_str()));
    facts.number("bypass_depth", sched.bypass_depth().and_then(|depth| depth.as_i64()));
    facts.numbers("counters", sched.counters(None));
    Some(("sched".to_owned(), Thing { headline: sched.headline(), facts: facts.0 }))
}

fn of_prog(prog: &Prog) -> (String, Thing) {
    let state = prog.state();
    let mut facts = Facts::default();
    if let Some((count, time_ns)) = state.runs {
        for (name, number) in [("runs", count), ("time_ns", time_ns)] {
            facts.number(name, Ok(i64::try_from(number).unwrap_or(i64::MAX)));
        }
    }
    // Ids differ from boot to boot; programs of one name come in their order.
    (format!("progs[{}]", state.name), Thing { headline: prog.headline(), facts: facts.0 })
}

fn of_module(module: &Module) -> (String, Thing) {
    let mut facts = Facts::default();
    facts.text("state", module.state());
    facts.number("refcount", module.refcount());
    (format!("modules[{}]", module.name()), Thing { headline: module.headline(), facts: facts.0 })
}

/// The pressure of the system and of each cgroup, where the kernel accounts for it.
fn of_psi(snapshot: &Arc<Snapshot>) -> Vec<(String, Thing)> {
    let group = |(cgroup, pressure): (Option<&str>, SnapshotResult<Vec<Pressure>>)| {
        let mut facts = Facts::default();
        for Pressure { resource, some, full } in pressure.ok()? {
            for (share, stall) in [("some", some), ("full", full)] {
                let Some(Stall { avg10, avg60, avg300, total }) = stall else { continue };
                let total = i64::try_from(total).unwrap_or(i64::MAX);
                for (name, avg) in [("avg10", avg10), ("avg60", avg60), ("avg300", avg300)] {
                    let value =
                        Value { text: format!("{avg:.2}"), scalar: Some(Scalar::Float(avg)) };
                    facts.0.push((format!("{resource}.{share}.{name}"), value));
                }
                facts.number(&format!("{resource}.{share}.total"), Ok(total));
            }
        }
        let name = cgroup.map_or("psi".to_owned(), |path| format!("psi({path:?})"));
        Some((name, Thing { headline: "its pressure".to_owned(), facts: facts.0 }))
    };
    snapshot.all_psi().into_iter().flatten().filter_map(group).collect()
}

/// The variables that a freeze was asked for by name. Bytes without a type may be an address.
fn of_variables(
    snapshot: &Arc<Snapshot>,
    state: &KernelState,
    addresses: bool,
) -> Vec<(String, Thing)> {
    let field = |name: &String| {
        let field = snapshot.kernel(name, None).ok()?;
        if !addresses && matches!(field.kind(), FieldKind::Bytes | FieldKind::Pointer) {
            return None;
        }
        let value = Value::of(&field);
        let headline = value.text.clone();
        let facts = vec![("value".to_owned(), value)];
        Some((format!("kernel({name:?})"), Thing { headline, facts }))
    };
    state.variables.keys().filter_map(field).collect()
}
