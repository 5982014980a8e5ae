//! `cryoscope cell` (hidden): runs one scenario, as the runner tells it on standard input.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Config, Failure};
use crate::kernel::CacheDir;
use crate::scenario::ScenarioDecl;
use crate::scenario::cell::{Cancel, CellSpec, Events, Why, obey_sigterm, watch};
use crate::scenario::event::{CellFinished, Logs, RunEvent};
use crate::scenario::lab::{LabOps, LabResult};
use crate::scenario::live::{BootFailed, Lab, Setup};
use crate::scenario::text::seconds;
use crate::scenario::verdict::{Check, Outcome, Recorder, Rules};
use crate::script;
use crate::vm::contain;
use crate::words::plain;

/// What the script's thread and the watchdog share: whoever comes first says the last word.
struct Cell {
    spec: CellSpec,
    events: Events,
    recorder: Recorder,
    cancel: Cancel,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Rules,
    lab: Option<Arc<Lab>>,
    /// What is known of a machine that did not come up.
    failed: Option<BootFailed>,
    finished: bool,
}

pub(super) fn run(config: &Config) -> Result<u8, Failure> {
    let spec = CellSpec::read(std::io::stdin()).map_err(Failure::usage)?;
    // A cache that is not there yet can be made now alone.
    let _ = std::fs::create_dir_all(&spec.cache);
    // Where the host does not enforce it, `doctor` says so.
    let _ = contain::confine(spec.may_write());
    let cannot = |what: &'static str| {
        move |e: std::io::Error| Failure::new(format!("cannot {what}: {}", plain(&e)))
    };
    let events = Events::take_stdout(spec.cell).map_err(cannot("take standard output"))?;
    let cancel = Cancel::new();
    obey_sigterm(&cancel).map_err(cannot("handle signals"))?;
    let said = events.clone();
    let cell = Arc::new(Cell {
        recorder: Recorder::with_sink(move |record| said.record(record)),
        started: Instant::now(),
        state: Mutex::default(),
        events,
        cancel,
        spec,
    });
    let watched = cell.clone();
    let cut_short = move || {
        watched.explain_end();
        watched.finish(&|lab| lab.logs_now());
        // The machine and whatever else was begun ends with this process.
        std::process::exit(0);
    };
    watch(&cell.cancel, cell.spec.deadline, cut_short).map_err(cannot("start a thread"))?;
    let setup = Setup {
        cache: CacheDir::at(&cell.spec.cache),
        kernel: cell.spec.kernel.clone(),
        agent: config.agent()?,
        tools: config.tools(cell.spec.overrides.clang.clone()),
        engine: cell.spec.overrides.engine.clone().unwrap_or_else(|| "auto".into()),
        attempt: cell.spec.attempt,
        keep: cell.spec.keep.clone(),
        events: cell.events.clone(),
        recorder: cell.recorder.clone(),
        cancel: cell.cancel.clone(),
    };
    let booter = cell.clone();
    let boot = move |decl: &ScenarioDecl| booter.boot(decl, &setup);
    let (file, index, name) = (&cell.spec.file, cell.spec.index, &cell.spec.name);
    let (recorder, cancel) = (cell.recorder.clone(), cell.cancel.clone());
    // Whatever counts for the verdict is recorded.
    let _ended = script::run_scenario(file, index, name, Arc::new(boot), recorder, cancel);
    cell.finish(&Lab::finish);
    Ok(0)
}

impl Cell {
    fn boot(&self, decl: &ScenarioDecl, setup: &Setup) -> LabResult<Arc<dyn LabOps>> {
        let mut decl = decl.clone();
        self.spec.overrides.apply(&mut decl.options);
        self.lock().rules = decl.options.rules();
        match Lab::boot(&decl, setup) {
            Ok(lab) => {
                let lab = Arc::new(lab);
                self.lock().lab = Some(lab.clone());
                Ok(lab)
            }
            Err(failed) => {
                let error = failed.error.clone();
                self.lock().failed = Some(failed);
                Err(error)
            }
        }
    }

    /// Says why it ended, when nothing else has said it.
    fn explain_end(&self) {
        if self.recorder.counts().error > 0 {
            return;
        }
        let doing = self.events.doing();
        let check = match self.cancel.why() {
            Some(Why::Deadline(limit)) => {
                let limit = seconds(millis(limit));
                let text = format!("the scenario did not end within its {limit}: it was {doing}");
                Check::error("deadline", text)
            }
            _ => Check::error("interrupted", format!("interrupted while {doing}")),
        };
        self.recorder.record(check);
    }

    /// The last word, said once.
    fn finish(&self, end: &dyn Fn(&Lab) -> (Logs, Option<String>)) {
        let lab = self.lock().lab.clone();
        let known = lab.as_deref().map(end);
        let mut state = self.lock();
        if std::mem::replace(&mut state.finished, true) {
            return;
        }
        let verdict = self.recorder.verdict(&state.rules);
        let failed = state.failed.take().map(|failed| (failed.logs, failed.fault));
        let (logs, fault) = known.or(failed).unwrap_or_default();
        // Logs are for those who look for a cause outside of the script.
        let told = self.cancel.why() == Some(Why::Told);
        let scripts_own = self.recorder.failures().iter().all(|check| check.label == "script");
        let of_use = verdict.outcome > Outcome::Pass && !told && !scripts_own;
        let logs = if of_use { logs } else { Logs::default() };
        self.events.send(&RunEvent::CellFinished(CellFinished {
            cell: self.spec.cell,
            verdict,
            duration_ms: millis(self.started.elapsed()),
            fault,
            failed_before: 0,
            logs,
        }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
