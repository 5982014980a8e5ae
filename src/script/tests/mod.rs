//! Scripts as authors write them, against a laboratory without a machine.

mod engine;
mod errors;
mod fifo;
pub(crate) mod golden;
pub(crate) mod lab;
mod matrix;
mod modules;
mod monitor;
mod reference;
mod repl;
mod seeds;
mod series;
mod shipped;
mod stdlib;
mod triggers;
mod workers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::End;
use super::engine::Limits;
use super::run::{collect_within, run};
use super::session::{Mode, Session};
use crate::scenario::ScenarioDecl;
use crate::scenario::cell::Cancel;
use crate::scenario::lab::{LabError, LabOps};
use crate::scenario::verdict::{Check, Outcome, Record, Recorder};
use lab::FakeLab;

/// Endless scripts have to end sooner in tests.
const LIMITS: Limits = Limits { operations: 2_000_000, collect: Duration::from_secs(5) };

/// Scripts in a directory of their own, removed at the end.
struct Bench {
    dir: PathBuf,
    lab: Arc<FakeLab>,
    refuse: Option<LabError>,
    cancel: Cancel,
}

/// What a script did.
#[derive(Debug)]
struct Ran {
    end: End,
    outcome: Outcome,
    records: Vec<Record>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Bench {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("cryoscope-script-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Bench { dir, lab: Arc::new(FakeLab::new()), refuse: None, cancel: Cancel::new() }
    }

    fn with(lab: FakeLab) -> Self {
        let mut bench = Bench::new();
        bench.lab = Arc::new(lab);
        bench
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Without the directory's name, which differs from run to run.
    fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.dir.display()), "")
    }

    fn collect(&self, text: &str) -> Result<Vec<ScenarioDecl>, String> {
        collect_within(&self.file("s.rhai", text), LIMITS).map_err(|e| self.plain(&e.to_string()))
    }

    /// Runs scenario `index` of a script that was collected.
    fn run(&self, text: &str, index: usize) -> Ran {
        let decls = self.collect(text).unwrap_or_else(|e| panic!("{e}"));
        self.run_as(text, index, &decls[index].name)
    }

    fn run_as(&self, text: &str, index: usize, name: &str) -> Ran {
        self.run_within(text, index, name, LIMITS)
    }

    /// Runs the first scenario, called `x`, without counting steps.
    fn run_unlimited(&self, text: &str) -> Ran {
        self.run_within(text, 0, "x", Limits { operations: 0, ..LIMITS })
    }

    fn run_within(&self, text: &str, index: usize, name: &str, limits: Limits) -> Ran {
        self.run_file(&self.file("s.rhai", text), index, name, limits)
    }

    fn run_file(&self, path: &Path, index: usize, name: &str, limits: Limits) -> Ran {
        let records = Arc::new(Mutex::new(Vec::new()));
        let sink = records.clone();
        let recorder = Recorder::with_sink(move |r| sink.lock().unwrap().push(r.clone()));
        let (lab, refuse) = (self.lab.clone(), self.refuse.clone());
        let boot = move |_: &ScenarioDecl| match &refuse {
            Some(error) => Err(error.clone()),
            None => Ok(lab.clone() as Arc<dyn LabOps>),
        };
        let cancel = self.cancel.clone();
        let mode = Mode::Run { index, name: name.to_string(), boot: Arc::new(boot) };
        let end = run(&Session::new(mode, path, limits, recorder.clone(), cancel));
        let outcome = recorder.verdict(&Default::default()).outcome;
        let records = records.lock().unwrap().clone();
        Ran { end, outcome, records }
    }

    /// Runs `body` as the body of a scenario; it begins in line 2.
    fn body(&self, body: &str) -> Ran {
        self.run_as(&format!("scenario(\"x\", |t| {{\n{body}\n}});"), 0, "x")
    }

    fn asked(&self) -> Vec<String> {
        self.lab.asked.lock().unwrap().clone()
    }
}

impl Ran {
    fn checks(&self) -> Vec<&Check> {
        let checks = self.records.iter().filter_map(|r| match r {
            Record::Check(check) => Some(check),
            _ => None,
        });
        checks.collect()
    }

    fn printed(&self) -> Vec<&str> {
        let lines = self.records.iter().filter_map(|r| match r {
            Record::Print { text } => Some(text.as_str()),
            _ => None,
        });
        lines.collect()
    }

    /// The only check, told in one line.
    fn one(&self) -> String {
        let checks = self.checks();
        assert_eq!(checks.len(), 1, "{:#?}", self.records);
        told(checks[0])
    }
}

/// A check in one line: `fail 3:5 label: expected A, found B: message`.
fn told(check: &Check) -> String {
    let at = check.at.as_ref().map_or("?".into(), |at| format!("{}:{}", at.line, at.column));
    let mut out = format!("{} {at} {}", check.outcome, check.label);
    if let (Some(expected), Some(found)) = (&check.expected, &check.found) {
        out.push_str(&format!(": expected {expected}, found {found}"));
    }
    if let Some(message) = &check.message {
        out.push_str(&format!(": {message}"));
    }
    out
}
