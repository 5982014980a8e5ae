//! A laboratory without a machine: it remembers what it was asked and answers from a plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::scenario::SchedulerExit;
use crate::scenario::lab::*;
use crate::snapshot::{Meta, Snapshot};
use crate::vm::topology::Topology;

/// Makes the snapshot of a tag; the number counts the freezes so far.
pub(super) type Freezer = Box<dyn Fn(&str, u64) -> Arc<Snapshot> + Send + Sync>;

pub(super) struct FakeLab {
    facts: LabFacts,
    /// Everything that was asked, one line each.
    pub(super) asked: Mutex<Vec<String>>,
    groups: Mutex<Vec<String>>,
    snapshots: Mutex<Vec<Arc<Snapshot>>>,
    freezer: Freezer,
    elapsed: AtomicU64,
    pids: AtomicU64,
    /// What `hold` answers instead of success.
    pub(super) trouble: Option<LabError>,
}

impl FakeLab {
    pub(super) fn new() -> Self {
        let freezer: Freezer = Box::new(|tag, _| {
            let meta = Meta { tag: tag.into(), ..Meta::default() };
            Snapshot::new(meta, Vec::new(), Vec::new())
        });
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
            asked: Mutex::default(),
            groups: Mutex::default(),
            snapshots: Mutex::default(),
            freezer,
            elapsed: AtomicU64::new(0),
            pids: AtomicU64::new(100),
            trouble: None,
        }
    }

    pub(super) fn freezing(mut self, freezer: Freezer) -> Self {
        self.freezer = freezer;
        self
    }

    fn ask(&self, what: String) {
        self.asked.lock().unwrap().push(what);
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

    fn freeze(&self, tag: &str, maps: Option<&[String]>) -> LabResult<Arc<Snapshot>> {
        let mut all = self.snapshots.lock().unwrap();
        self.ask(format!("freeze {tag} {}", maps.map_or("all".into(), |m| m.join("+"))));
        let snapshot = (self.freezer)(tag, all.len() as u64);
        all.push(snapshot.clone());
        Ok(snapshot)
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
        self.known(name)
    }

    fn cgroup_freeze(&self, name: &str, frozen: bool) -> LabResult<()> {
        self.ask(format!("cgroup_freeze {name} {frozen}"));
        self.known(name)
    }

    fn cgroup_procs(&self, name: &str) -> LabResult<Vec<u32>> {
        self.known(name).map(|()| vec![100, 101])
    }

    fn cgroup_stats(&self, name: &str) -> LabResult<BTreeMap<String, String>> {
        self.known(name)?;
        Ok(BTreeMap::from([
            ("cpu.stat".into(), "usage_usec 17\nuser_usec 5\n".into()),
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
        let first = self.pids.fetch_add(work.count.into(), Ordering::Relaxed) as u32;
        Ok((first..first + work.count).collect())
    }

    fn exec(&self, argv: &[String], timeout: Duration) -> LabResult<ExecOutcome> {
        self.ask(format!("exec {argv:?} {timeout:?}"));
        Ok(ExecOutcome { code: Some(3), stdout: "out\n".into(), ..ExecOutcome::default() })
    }

    fn dmesg(&self) -> LabResult<String> {
        Ok("sched_ext: BPF scheduler \"fifo\" enabled\n".into())
    }

    fn console(&self) -> String {
        "console\n".into()
    }

    fn scheduler_state(&self) -> LabResult<SchedulerState> {
        Ok(SchedulerState {
            state: "enabled".into(),
            ops: Some("fifo".into()),
            ..SchedulerState::default()
        })
    }

    fn scheduler_detach(&self) -> LabResult<()> {
        self.ask("detach".into());
        Ok(())
    }

    fn scheduler_log(&self) -> LabResult<String> {
        Ok("attached\n".into())
    }

    fn scheduler_exit(&self) -> Option<SchedulerExit> {
        None
    }
}
