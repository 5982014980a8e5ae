//! A laboratory without a machine: it remembers what it was asked and answers from a plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fifo;
use crate::scenario::lab::*;
use crate::scenario::monitor::{Course, MonitorOptions, MonitorReport};
use crate::scenario::samples::{Boundaries, SampleOptions, SampleReport};
use crate::scenario::{ExpectExit, ScenarioDecl, SchedulerExit, SchedulerOptions};
use crate::series::Sample;
use crate::snapshot::MissingStatsReason;
use crate::snapshot::monitor_tests::observation;
use crate::snapshot::{CaptureRequest, Meta, Place, Scalar, Snapshot, Trigger};
use crate::vm::topology::Topology;
use crate::wire::testing::made_up;

/// A scheduler that is a program.
const PROGRAM: &str = "scx_bpfland";

pub(crate) struct FakeLab {
    facts: LabFacts,
    /// Whether `fifo` runs; without it the machine has no scheduler of its own.
    fifo: bool,
    /// Whether its freezes have the kernel's state, that of the made-up machine.
    kernel: bool,
    slice_ns: u64,
    detached: AtomicBool,
    /// Everything that was asked, one line each.
    pub(crate) asked: Mutex<Vec<String>>,
    groups: Mutex<Vec<String>>,
    /// Pids of workers, and the group that each is in.
    workers: Mutex<Vec<(u32, Option<String>)>>,
    /// Whether tasks may run everywhere: they all run on CPU 0 until a group is let go.
    spread: AtomicBool,
    snapshots: Mutex<Vec<Arc<Snapshot>>>,
    /// The steps, and when each began.
    steps: Mutex<Vec<(String, u64)>>,
    elapsed: AtomicU64,
    paused: AtomicBool,
    /// What `hold` answers instead of success.
    pub(super) trouble: Option<LabError>,
    /// What is watched.
    watches: Mutex<Vec<String>>,
    /// Whether the scheduler leaves with an error after a second.
    leaves: bool,
    /// Samples that are taken.
    samples: Option<SampleOptions>,
    /// What is read while it runs.
    monitor: Option<MonitorOptions>,
    /// The scheduler as the scenario has it.
    src: String,
}

impl FakeLab {
    pub(crate) fn new() -> Self {
        FakeLab {
            facts: LabFacts {
                kernel_release: "7.2.0-fake".into(),
                kernel_spec: "auto".into(),
                topology: Topology::parse("1n2l2c1t").unwrap(),
                engine: "fake".into(),
                memory: 512 << 20,
                scheduler: "fifo".into(),
                duration: Duration::from_secs(4),
            },
            fifo: false,
            kernel: false,
            slice_ns: 5_000_000,
            detached: AtomicBool::new(false),
            asked: Mutex::default(),
            groups: Mutex::default(),
            workers: Mutex::default(),
            spread: AtomicBool::new(false),
            snapshots: Mutex::default(),
            steps: Mutex::default(),
            elapsed: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            trouble: None,
            watches: Mutex::default(),
            leaves: false,
            src: String::new(),
            samples: None,
            monitor: None,
        }
    }

    /// The machine that a declaration asks for.
    pub(super) fn of(decl: &ScenarioDecl) -> Self {
        let mut lab = FakeLab::new();
        lab.facts.topology = Topology::parse(&decl.options.topology).unwrap();
        lab.facts.duration = decl.options.duration;
        lab.facts.scheduler = if decl.options.scheduler.is_none() { "none" } else { "fifo" }.into();
        lab.samples.clone_from(&decl.options.samples);
        lab.monitor.clone_from(&decl.options.monitor);
        lab.src.clone_from(&decl.options.scheduler.src);
        lab.leaves = decl.options.expect_exit != ExpectExit::None;
        // What leaves leaves the same behind.
        lab.fifo = decl.options.scheduler.src.ends_with("fifo.bpf.c") || lab.leaves;
        if let Some(slice) = decl.options.scheduler.rodata.get("slice_ns") {
            lab.slice_ns = slice.as_u64().unwrap();
        }
        lab
    }

    pub(crate) fn with_fifo(mut self) -> Self {
        self.fifo = true;
        self.facts.scheduler = "fifo".into();
        self
    }

    /// With the tasks, CPUs and queues of the made-up machine.
    pub(crate) fn with_kernel(mut self) -> Self {
        self.kernel = true;
        self.facts.topology = Topology::parse("1n1l2c1t").unwrap();
        self
    }

    fn ask(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    /// What is captured now.
    fn instant(&self, tag: &str) -> Arc<Snapshot> {
        self.instant_because(tag, Trigger::Demand)
    }

    fn instant_because(&self, tag: &str, trigger: Trigger) -> Arc<Snapshot> {
        self.instant_at(tag, trigger, self.elapsed_ms())
    }

    fn instant_at(&self, tag: &str, trigger: Trigger, elapsed_ms: u64) -> Arc<Snapshot> {
        let pids: Vec<u32> = self.workers.lock().unwrap().iter().map(|(pid, _)| *pid).collect();
        let every = self.monitor.as_ref().map(|monitor| monitor.every.as_millis() as u64);
        let seen = every.map(|every| elapsed_ms / every * every).filter(|at| *at > 0);
        let monitor = seen.and_then(|at| self.read_at("", at).monitor);
        let steps = self.steps.lock().unwrap();
        let step = steps.iter().rposition(|(_, since)| *since < elapsed_ms.max(1));
        let phase = step.map(|i| steps[i].0.clone());
        let step_index = step.map_or(0, |i| i as u64 + 1);
        match self.fifo {
            false => fifo::nothing(tag),
            true => fifo::snapshot_because(
                &fifo::Instant {
                    tag,
                    phase,
                    step_index,
                    elapsed_ms,
                    pids: &pids,
                    cpus: self.facts.topology.cpus(),
                    spread: self.spread.load(Ordering::Relaxed),
                    slice_ns: self.slice_ns,
                    kernel: self.kernel,
                    monitor,
                    told: matches!(trigger, Trigger::Periodic { .. })
                        .then(|| self.told(elapsed_ms))
                        .filter(|_| self.src == PROGRAM),
                },
                trigger,
            ),
        }
    }

    /// What a scheduler that is a program tells of itself.
    fn told(&self, elapsed_ms: u64) -> Result<serde_json::Value, MissingStatsReason> {
        Ok(serde_json::json!({
            "nr_cpus": self.facts.topology.cpus(), "nr_running": 2,
            "nr_direct_dispatches": elapsed_ms, "nr_shared_dispatches": 3,
        }))
    }

    fn known(&self, group: &str) -> LabResult<()> {
        match self.groups.lock().unwrap().iter().any(|g| g == group) {
            true => Ok(()),
            false => Err(LabError::Argument(format!("no cgroup {group}"))),
        }
    }
}

impl LabOps for FakeLab {
    fn facts(&self) -> &LabFacts {
        &self.facts
    }

    fn elapsed_ms(&self) -> u64 {
        self.elapsed.load(Ordering::Relaxed)
    }

    fn freeze(&self, tag: &str, request: &CaptureRequest) -> LabResult<Arc<Snapshot>> {
        let mut all = self.snapshots.lock().unwrap();
        let maps = request.maps.as_ref().map_or("all".into(), |m| m.join("+"));
        let mut asked = format!("freeze {tag} {maps}");
        if !request.kernel.is_empty() {
            asked.push_str(&format!(" kernel {}", request.kernel.join("+")));
        }
        if !request.sched {
            asked.push_str(" without sched");
        }
        self.ask(asked);
        let snapshot = self.instant(tag);
        all.push(snapshot.clone());
        Ok(snapshot)
    }

    fn edit(&self, place: &Place, value: Option<&Scalar>, frozen: bool) -> LabResult<Vec<Scalar>> {
        let how = if frozen { " frozen" } else { "" };
        let new = value.map(|value| format!(" = {value:?}")).unwrap_or_default();
        self.ask(format!("edit {place:?}{new}{how}"));
        match place {
            Place::Global { path, .. } if path == "nr_runing" => Err(LabError::Argument(
                "no BPF object has a global variable \"nr_runing\"; did you mean \"nr_running\"?"
                    .into(),
            )),
            Place::Address { count, .. } => {
                Ok((0..*count).map(|i| Scalar::Int(i.into())).collect())
            }
            _ => Ok(vec![Scalar::Int(7)]),
        }
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms())
    }

    fn fresh_tag(&self, tag: &str) -> String {
        tag.to_owned()
    }

    fn freeze_unkept(
        &self,
        tag: &str,
        request: &CaptureRequest,
        seen: Option<Instant>,
    ) -> LabResult<Arc<Snapshot>> {
        assert!(seen.is_some(), "for whatever is not kept there is a reason");
        self.ask(format!("freeze {tag} {:?} unkept", request.maps));
        Ok(self.instant(tag))
    }

    fn keep(&self, snapshot: &Arc<Snapshot>) {
        self.ask(format!("keep {}", snapshot.tag()));
        self.snapshots.lock().unwrap().push(snapshot.clone());
    }

    fn look(&self, request: &CaptureRequest) -> LabResult<(Arc<Snapshot>, Instant)> {
        let kernel = if request.sched { " and sched" } else { "" };
        self.ask(format!("look at {:?}{kernel}", request.maps));
        Ok((self.instant("live"), Instant::now()))
    }

    fn prepare(&self, _: &CaptureRequest) -> LabResult<()> {
        Ok(())
    }

    fn pause(&self) -> LabResult<()> {
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn resume(&self) -> LabResult<()> {
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.snapshots.lock().unwrap().clone()
    }

    fn hold(&self, span: Span) -> LabResult<()> {
        let time = span.of(self.facts.duration);
        self.ask(format!("hold {time:?}"));
        self.elapsed.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
        self.trouble.clone().map_or(Ok(()), Err)
    }

    fn step(&self, name: &str, span: Span) -> LabResult<()> {
        self.ask(format!("step {name}"));
        self.steps.lock().unwrap().push((name.into(), self.elapsed_ms()));
        self.hold(span)
    }

    fn new_cgroup(&self, name: &str, set: &GroupOptions) -> LabResult<()> {
        self.ask(format!("new_cgroup {name} {set:?}"));
        self.groups.lock().unwrap().push(name.into());
        Ok(())
    }

    fn cgroups(&self) -> Vec<String> {
        self.groups.lock().unwrap().clone()
    }

    fn cgroup_set_cpus(&self, name: &str, cpus: &str) -> LabResult<()> {
        self.ask(format!("set_cpus {name} {cpus}"));
        self.spread.store(cpus == "all", Ordering::Relaxed);
        self.known(name)
    }

    fn cgroup_freeze(&self, name: &str, frozen: bool) -> LabResult<()> {
        self.ask(format!("cgroup_freeze {name} {frozen}"));
        self.known(name)
    }

    fn cgroup_procs(&self, name: &str) -> LabResult<Vec<u32>> {
        self.known(name)?;
        let workers = self.workers.lock().unwrap();
        let inside = workers.iter().filter(|(_, group)| group.as_deref() == Some(name));
        Ok(inside.map(|(pid, _)| *pid).collect())
    }

    fn cgroup_stats(&self, name: &str) -> LabResult<BTreeMap<String, String>> {
        self.known(name)?;
        Ok(BTreeMap::from([
            ("cpu.stat".into(), format!("usage_usec {}\nuser_usec 5\n", 17 + self.elapsed_ms())),
            ("cpu.pressure".into(), "some avg10=0.00\n".into()),
        ]))
    }

    fn cgroup_move(&self, from: &str, to: &str) -> LabResult<()> {
        self.ask(format!("move {from} {to}"));
        self.known(from)
    }

    fn cgroup_stop(&self, name: &str) -> LabResult<()> {
        self.ask(format!("stop {name}"));
        self.known(name)
    }

    fn cgroup_remove(&self, name: &str) -> LabResult<()> {
        self.ask(format!("remove {name}"));
        self.groups.lock().unwrap().retain(|g| g != name);
        Ok(())
    }

    fn start(&self, cgroup: Option<&str>, work: &WorkOptions) -> LabResult<Vec<u32>> {
        self.ask(format!("start {cgroup:?} {work:?}"));
        let mut workers = self.workers.lock().unwrap();
        let first = 100 + workers.len() as u32;
        let pids: Vec<u32> = (first..first + work.count).collect();
        workers.extend(pids.iter().map(|pid| (*pid, cgroup.map(str::to_string))));
        Ok(pids)
    }

    fn workers(&self) -> Vec<u32> {
        self.workers.lock().unwrap().iter().map(|(pid, _)| *pid).collect()
    }

    /// Each has done a unit in a millisecond, and had half of a CPU.
    fn worker_reports(&self, pids: &[u32]) -> LabResult<Vec<WorkerReport>> {
        let known = self.workers();
        if let Some(pid) = pids.iter().find(|pid| !known.contains(pid)) {
            return Err(LabError::Argument(format!("no worker with the pid {pid} was started")));
        }
        let elapsed = self.elapsed_ms();
        let so_far = |pid: &u32| WorkerReport {
            working_us: elapsed * 1_000,
            run_us: Some(elapsed * 500),
            queued_us: Some(elapsed * 250),
            ..made_up(*pid, elapsed)
        };
        Ok(pids.iter().map(so_far).collect())
    }

    fn exec(&self, argv: &[String], timeout: Duration) -> LabResult<ExecOutcome> {
        self.ask(format!("exec {argv:?} {timeout:?}"));
        let topology = &self.facts.topology;
        let stdout = match argv {
            [cat, path] if cat == "cat" && path.ends_with("/online") => topology.all().to_string(),
            [cat, path] if cat == "cat" && path.ends_with("/cpulist") => {
                let node = path.split("/node").nth(2).and_then(|p| p.split('/').next()).unwrap();
                topology.cpus_of_node(node.parse().unwrap()).to_string()
            }
            [cat, path] if cat == "cat" => {
                let cpu = path.split("/cpu").nth(2).and_then(|p| p.split('/').next()).unwrap();
                let llc = topology.llc_of(cpu.parse().unwrap()).unwrap();
                topology.cpus_of_llc(llc).to_string()
            }
            _ => "out".into(),
        };
        let stdout = format!("{stdout}\n");
        Ok(ExecOutcome { code: Some(3), stdout, ..ExecOutcome::default() })
    }

    fn dmesg(&self) -> LabResult<String> {
        Ok("sched_ext: BPF scheduler \"fifo\" enabled\n".into())
    }

    fn console(&self) -> String {
        "console\n".into()
    }

    fn scheduler_state(&self) -> LabResult<SchedulerState> {
        let on = self.facts.scheduler != "none" && !self.detached.load(Ordering::Relaxed);
        Ok(SchedulerState {
            state: if on { "enabled" } else { "disabled" }.into(),
            ops: on.then(|| "fifo".into()),
            ..SchedulerState::default()
        })
    }

    fn scheduler_detach(&self) -> LabResult<()> {
        self.ask("detach".into());
        self.detached.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn scheduler_attach(&self, scheduler: &SchedulerOptions) -> LabResult<()> {
        self.ask(format!("attach {} {:?}", scheduler.src, scheduler.rodata));
        self.detached.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn scheduler_replace(&self, scheduler: &SchedulerOptions) -> LabResult<()> {
        self.ask(format!("replace {} {:?}", scheduler.src, scheduler.rodata));
        Ok(())
    }

    fn scheduler_restart(&self) -> LabResult<()> {
        self.ask("restart".into());
        Ok(())
    }

    fn scheduler_name(&self) -> String {
        self.facts.scheduler.clone()
    }

    fn scheduler_log(&self) -> LabResult<String> {
        Ok("attached\n".into())
    }

    fn stats(
        &self,
        target: &str,
        args: &BTreeMap<String, String>,
    ) -> LabResult<Result<serde_json::Value, MissingStatsReason>> {
        self.ask(format!("stats {target} {args:?}"));
        Ok(match target {
            "top" if self.src == PROGRAM => self.told(self.elapsed_ms()),
            "top" if self.src.ends_with(".bpf.c") => Err(MissingStatsReason::NoSchedulerBinary),
            "top" => Ok(serde_json::json!({ "nr_queued": 7, "cpus": [{ "load": 0.5 }] })),
            _ => {
                let args = serde_json::json!({ "resp": "no such target" });
                Err(MissingStatsReason::SchedulerError { errno: 22, args })
            }
        })
    }

    fn stats_meta(&self) -> LabResult<Result<serde_json::Value, MissingStatsReason>> {
        if self.src != PROGRAM {
            return Ok(Err(MissingStatsReason::NoSchedulerBinary));
        }
        let desc = "Number of running tasks";
        let fields = serde_json::json!({ "nr_running": { "datum": "u64", "desc": desc } });
        Ok(Ok(serde_json::json!({ "Metrics": { "fields": fields, "top": "true" } })))
    }

    fn watching(&self) -> &dyn WatchOps {
        self
    }

    fn sampling(&self) -> &dyn SampleOps {
        self
    }

    fn monitoring(&self) -> &dyn MonitorOps {
        self
    }

    fn scheduler_exit(&self) -> Option<SchedulerExit> {
        let message = "had enough of pid 100 after 1000 ms";
        (self.leaves && self.elapsed_ms() >= 1000).then(|| SchedulerExit {
            reason: format!("scx_bpf_error: {message}"),
            elapsed_ms: 1000,
            log: String::new(),
            dmesg: String::new(),
            kind: Some("error_bpf".into()),
            message: Some(message.into()),
            instant: String::new(),
        })
    }
}

/// Every watched place is written to three times, up from 40.
impl WatchOps for FakeLab {
    fn watch(&self, options: &WatchOptions) -> LabResult<(u64, String)> {
        let WatchOptions { target, request, most } = options;
        self.ask(format!("watch {target:?} {:?} {}, {most} at most", request.maps, request.sched));
        let mut watches = self.watches.lock().unwrap();
        watches.push(target.symbol.clone());
        Ok((watches.len() as u64, target.symbol.clone()))
    }

    fn fires(&self, watch: u64) -> LabResult<Vec<Arc<Snapshot>>> {
        let place = self.watches.lock().unwrap()[watch as usize - 1].clone();
        let fire = |n: u64| {
            let trigger = Trigger::Watch {
                place: place.clone(),
                address: 0xffff_ffff_8200_0000,
                bytes: 8,
                cpu: Some(1),
                before: (n > 1).then_some(40 + n),
                after: Some(41 + n),
            };
            let meta = Meta { tag: format!("watch {place} {n}"), trigger, ..Meta::default() };
            Snapshot::new(meta, Vec::new(), Vec::new())
        };
        Ok((1..=3).map(fire).collect())
    }

    fn count(&self, _: u64) -> LabResult<WatchCount> {
        Ok(WatchCount { fires: 3, limited: 1, unseen: Duration::from_millis(120) })
    }

    fn unwatch(&self, watch: u64) -> LabResult<()> {
        self.ask(format!("unwatch {watch}"));
        Ok(())
    }

    fn death(&self) -> Option<Arc<Snapshot>> {
        let (cpu, function) = (Some(0), Some("scx_disable_irq_workfn".into()));
        let trigger = Trigger::ErrorExit { cpu, function, late_us: None };
        self.leaves.then(|| self.instant_because("error exit", trigger))
    }
}

/// A machine that serves every boundary at once.
impl SampleOps for FakeLab {
    fn sample(&self, index: usize) -> LabResult<Option<Arc<Snapshot>>> {
        let Some(samples) = &self.samples else { return Ok(None) };
        let boundaries = Boundaries::new(samples.times, self.facts.duration).unwrap();
        let due = boundaries.due(index as u64).map(|due| due.as_millis() as u64);
        let due = due.filter(|due| *due <= self.elapsed_ms());
        let periodic = |due| Trigger::Periodic { boundary_offset_ms: due };
        Ok(due.map(|due| self.instant_at(&format!("periodic_{index:03}"), periodic(due), due)))
    }

    fn taken(&self) -> Vec<Sample> {
        let all = (0..).map_while(|i| self.sample(i).ok().flatten());
        all.map(Sample::held).collect()
    }

    fn report(&self) -> SampleReport {
        let Some(samples) = &self.samples else { return SampleReport::default() };
        let boundaries = Boundaries::new(samples.times, self.facts.duration).unwrap();
        let fired = (0..).take_while(|i| matches!(self.sample(*i), Ok(Some(_)))).count() as u64;
        let planned = boundaries.planned();
        let not_fired = planned.map_or(0, |planned| planned - fired);
        SampleReport { planned, fired, not_fired, ..SampleReport::default() }
    }
}

/// A machine whose workers are all on CPU 0 until they may run everywhere.
impl MonitorOps for FakeLab {
    fn readings(&self) -> Option<Vec<Arc<Meta>>> {
        let every = self.monitor.as_ref()?.every.as_millis() as u64;
        let times = (1..).map(|i| every * i).take_while(|at| *at <= self.elapsed_ms());
        let read = |(i, at)| Arc::new(self.read_at(&format!("reading_{i:04}"), at));
        Some((0..).zip(times).map(read).collect())
    }

    fn monitored(&self) -> MonitorReport {
        let Some(options) = &self.monitor else { return MonitorReport::default() };
        let mut course = Course::new(options);
        for reading in self.readings().unwrap_or_default() {
            course.take(reading.monitor.as_ref().unwrap(), 70);
        }
        course.report()
    }
}

impl FakeLab {
    /// What a monitor reads at a time.
    fn read_at(&self, tag: &str, elapsed_ms: u64) -> Meta {
        let cpus = self.facts.topology.cpus();
        let mut running = vec![0; cpus as usize];
        for (i, _) in self.workers.lock().unwrap().iter().enumerate() {
            let cpu = if self.spread.load(Ordering::Relaxed) { i % running.len() } else { 0 };
            running[cpu] += 1;
        }
        let steps = self.steps.lock().unwrap();
        let step = steps.iter().rposition(|(_, since)| *since < elapsed_ms.max(1));
        Meta {
            tag: tag.to_owned(),
            elapsed_ms,
            phase: step.map(|i| steps[i].0.clone()),
            step_index: step.map_or(0, |i| i as u64 + 1),
            monitor: Some(Box::new(observation(elapsed_ms, &running))),
            ..Meta::default()
        }
    }
}
