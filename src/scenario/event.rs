//! What happens in a run, as a stream of events.
//!
//! One run is one sequence of [`RunEvent`]s; the terminal, the JSON file and whatever comes later
//! only consume it. A cell (one scenario in a process of its own) speaks the same language over
//! its pipe: its events go from [`CellStarted`](RunEvent::CellStarted) to
//! [`CellFinished`](RunEvent::CellFinished), and the runner adds those of the run.
//!
//! ```text
//!  run:   RunStarted ─▶ ( any event of a cell )* ─▶ RunFinished
//!
//!  cell:  (waiting) ── CellStarted ─▶ (running) ── CellFinished ─▶ (finished)
//!              ▲                       │  │ ▲
//!              │                       │  └─┘ Stage, Phase, Frozen, Sampled, Recorded, ..
//!              └────── CellRetried ────┘      (an engine fault: what was recorded is void)
//! ```
//!
//! [`RunModel`] is that machine: it accepts an event or says why it cannot come now. On the wire
//! an event is one line of JSON, an [`Envelope`] with the version; a consumer that meets an event
//! that it does not know skips it, one that meets another version stops.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::monitor::MonitorReport;
use super::samples::SampleReport;
use super::verdict::{Outcome, Record, Verdict};

/// The version of the event stream, `v` on every line.
pub const VERSION: u32 = 1;

/// An event as it stands on a line: `{"v":1,"event":"stage",..}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// The event.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// One thing that happened in a run. Times are milliseconds; `at_ms` counts from the run's start
/// on the host, `elapsed_ms` on the workload clock of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The files are compiled and the cells are known.
    RunStarted {
        /// The version of cryoscope.
        cryoscope: String,
        /// All that is to run, in order; a cell's `id` is its index here.
        cells: Vec<CellInfo>,
        /// How many run at the same time.
        jobs: usize,
    },
    /// A cell's process is up.
    CellStarted {
        /// Which.
        cell: usize,
        /// From 1; above 1 after a [`RunEvent::CellRetried`].
        attempt: u32,
        /// When.
        #[serde(default)]
        at_ms: u64,
    },
    /// A cell goes into another stage.
    Stage {
        /// Which.
        cell: usize,
        /// What it does now.
        stage: Stage,
        /// With what: a kernel's release, a scheduler's name, bytes fetched, ...
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// The script moved on to a named phase.
    Phase {
        /// Which cell.
        cell: usize,
        /// The phase.
        name: String,
        /// When it began.
        elapsed_ms: u64,
    },
    /// A scheduler was attached, or let go on demand, while the workload runs.
    Scheduler {
        /// Which cell.
        cell: usize,
        /// The one that was attached; none when it was let go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attached: Option<String>,
        /// When.
        elapsed_ms: u64,
    },
    /// The machine was frozen, copied, and runs on.
    Frozen {
        /// Which cell.
        cell: usize,
        /// The snapshot's tag.
        tag: String,
        /// When.
        elapsed_ms: u64,
        /// Microseconds that the vCPUs stood still.
        pause_us: u64,
        /// Microseconds of that which our own copying took.
        copy_us: u64,
        /// Why nothing was copied, when the snapshot is a placeholder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        placeholder: Option<String>,
    },
    /// No more samples are taken; at most once in an attempt.
    Sampled {
        /// Which cell.
        cell: usize,
        /// What came of them.
        report: SampleReport,
    },
    /// The monitor has read the machine for the last time; at most once in an attempt.
    Monitored {
        /// Which cell.
        cell: usize,
        /// What came of it.
        report: MonitorReport,
    },
    /// A snapshot of a scenario that did not succeed, as `dump(..)` prints it, within bounds.
    Tree {
        /// Which cell.
        cell: usize,
        /// The snapshot's tag.
        tag: String,
        /// Lines, of which those that belong to one are indented below it.
        text: String,
    },
    /// The script (or the machinery, about the script) said something that counts.
    Recorded {
        /// Which cell.
        cell: usize,
        /// What.
        record: Record,
    },
    /// The scheduler left unasked.
    SchedulerExited {
        /// Which cell.
        cell: usize,
        /// The kernel's reason.
        reason: String,
        /// When.
        elapsed_ms: u64,
    },
    /// An attempt ended in a fault of the engine, or failed and may be retried; what it recorded is
    /// void and it runs again.
    CellRetried {
        /// Which cell.
        cell: usize,
        /// The attempt that failed.
        attempt: u32,
        /// The fault, or what failed.
        reason: String,
        /// What the attempt came to, where that is why it runs again (`--retries`); none for a
        /// fault of the engine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
    },
    /// A cell is done.
    CellFinished(CellFinished),
    /// Nothing more comes.
    RunFinished {
        /// Cells by outcome.
        outcomes: BTreeMap<Outcome, usize>,
        /// Cells that never ran, after an interruption.
        not_run: usize,
        /// Whether somebody stopped it.
        interrupted: bool,
        /// From start to end.
        duration_ms: u64,
        /// The command's exit code.
        exit_code: u8,
    },
}

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellFinished {
    /// Which.
    pub cell: usize,
    /// The judgement.
    pub verdict: Verdict,
    /// From the start of this attempt's process to here, on the host.
    pub duration_ms: u64,
    /// The fault of the engine behind an Error, when there was one: worth another attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Attempts before this one that failed and were retried.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_before: u32,
    /// Ends of the logs.
    #[serde(default)]
    pub logs: Logs,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// The ends of a cell's logs; empty where there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// What the scheduler's loader said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scheduler: String,
    /// The machine's serial console.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub console: String,
}

/// A scenario that is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellInfo {
    /// The scenario's name.
    pub name: String,
    /// Its script.
    pub file: PathBuf,
    /// The scenario's place in the script, from 0.
    pub index: usize,
    /// The kernel as it was asked for.
    pub kernel: String,
    /// The topology as it was asked for.
    pub topology: String,
    /// The scheduler as it was asked for.
    pub scheduler: String,
    /// The scenario's tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where in its declaration's matrix it is: axes, and what their values are called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub axes: Vec<(String, String)>,
}

/// What a cell does, in the order in which it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Finds or fetches the kernel.
    Kernel,
    /// Compiles and stages the scheduler.
    Scheduler,
    /// Waits for the guest's agent.
    Boot,
    /// Puts the scheduler in charge.
    Attach,
    /// Runs the script's body.
    Run,
    /// Collects logs, powers off.
    Stop,
}

impl Stage {
    /// What a cell in this stage is doing, for people.
    #[must_use]
    pub fn doing(self) -> &'static str {
        match self {
            Stage::Kernel => "finding the kernel",
            Stage::Scheduler => "preparing the scheduler",
            Stage::Boot => "booting",
            Stage::Attach => "attaching the scheduler",
            Stage::Run => "running",
            Stage::Stop => "stopping",
        }
    }

    /// The same in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Stage::Kernel => "kernel",
            Stage::Scheduler => "compile",
            Stage::Boot => "boot",
            Stage::Attach => "attach",
            Stage::Run => "run",
            Stage::Stop => "stop",
        }
    }
}

impl RunEvent {
    /// The cell that this is about.
    #[must_use]
    pub fn cell(&self) -> Option<usize> {
        match self {
            RunEvent::RunStarted { .. } | RunEvent::RunFinished { .. } => None,
            RunEvent::CellStarted { cell, .. }
            | RunEvent::Stage { cell, .. }
            | RunEvent::Phase { cell, .. }
            | RunEvent::Scheduler { cell, .. }
            | RunEvent::Frozen { cell, .. }
            | RunEvent::Sampled { cell, .. }
            | RunEvent::Monitored { cell, .. }
            | RunEvent::Tree { cell, .. }
            | RunEvent::Recorded { cell, .. }
            | RunEvent::SchedulerExited { cell, .. }
            | RunEvent::CellRetried { cell, .. }
            | RunEvent::CellFinished(CellFinished { cell, .. }) => Some(*cell),
        }
    }

    /// The event as one line of JSON, line break included.
    ///
    /// # Panics
    /// Never: every event can be represented.
    #[must_use]
    pub fn to_line(&self) -> String {
        let envelope = Envelope { v: VERSION, event: self.clone() };
        let mut line = serde_json::to_string(&envelope).expect("events are plain data");
        line.push('\n');
        line
    }

    /// Whether a line that cannot be read is an event that a later cryoscope knows.
    #[must_use]
    pub fn is_of_a_later_kind(line: &str) -> bool {
        #[derive(Deserialize)]
        struct Any {
            v: u32,
            event: String,
        }
        const KNOWN: [&str; 12] = [
            "run_started",
            "cell_started",
            "stage",
            "phase",
            "frozen",
            "sampled",
            "monitored",
            "tree",
            "recorded",
            "scheduler_exited",
            "cell_retried",
            "cell_finished",
        ];
        serde_json::from_str::<Any>(line).is_ok_and(|any| {
            any.v == VERSION && !KNOWN.contains(&any.event.as_str()) && any.event != "run_finished"
        })
    }

    /// Reads a line that [`RunEvent::to_line`] wrote.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the line.
    pub fn from_line(line: &str) -> Result<RunEvent, String> {
        let envelope: Envelope =
            serde_json::from_str(line).map_err(|e| format!("not an event: {e}"))?;
        if envelope.v != VERSION {
            return Err(format!("event of version {} where {VERSION} is spoken", envelope.v));
        }
        Ok(envelope.event)
    }
}

/// Where a cell is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellState {
    /// Not started, or to be started again; the number of attempts so far.
    Waiting(u32),
    /// Its process runs; the attempt's number.
    Running(u32),
    /// Judged.
    Finished(Outcome),
}

/// The state machine of a run: which events may come, and where everything stands.
#[derive(Clone, Debug, Default)]
pub struct RunModel {
    cells: Option<Vec<CellState>>,
    finished: bool,
}

impl RunModel {
    /// Every cell's state; empty before the run has started.
    #[must_use]
    pub fn cells(&self) -> &[CellState] {
        self.cells.as_deref().unwrap_or(&[])
    }

    /// Takes an event.
    ///
    /// # Errors
    /// A sentence that says why this event cannot come now; the state stays as it was.
    pub fn apply(&mut self, event: &RunEvent) -> Result<(), String> {
        if self.finished {
            return Err("an event after the end of the run".into());
        }
        let Some(cells) = &mut self.cells else {
            let RunEvent::RunStarted { cells, .. } = event else {
                return Err("an event before the start of the run".into());
            };
            self.cells = Some(vec![CellState::Waiting(0); cells.len()]);
            return Ok(());
        };
        let Some(id) = event.cell() else {
            if matches!(event, RunEvent::RunStarted { .. }) {
                return Err("the run started twice".into());
            }
            if let Some(id) = cells.iter().position(|c| matches!(c, CellState::Running(_))) {
                return Err(format!("the run ended while cell {id} was running"));
            }
            self.finished = true;
            return Ok(());
        };
        let count = cells.len();
        let state =
            cells.get_mut(id).ok_or_else(|| format!("cell {id} of a run of {count} cells"))?;
        *state = step(*state, event).map_err(|why| format!("cell {id}: {why}"))?;
        Ok(())
    }
}

/// The transition function of one cell.
fn step(state: CellState, event: &RunEvent) -> Result<CellState, String> {
    match (state, event) {
        (CellState::Waiting(n), RunEvent::CellStarted { attempt, .. }) if *attempt == n + 1 => {
            Ok(CellState::Running(*attempt))
        }
        (CellState::Waiting(n), RunEvent::CellStarted { attempt, .. }) => {
            Err(format!("attempt {attempt} after {n} attempts"))
        }
        (CellState::Waiting(_), _) => Err("an event before its start".into()),
        (CellState::Finished(_), _) => Err("an event after its end".into()),
        (CellState::Running(_), RunEvent::CellStarted { .. }) => Err("it started twice".into()),
        (CellState::Running(n), RunEvent::CellRetried { .. }) => Ok(CellState::Waiting(n)),
        (CellState::Running(_), RunEvent::CellFinished(end)) => {
            Ok(CellState::Finished(end.verdict.outcome))
        }
        (CellState::Running(n), _) => Ok(CellState::Running(n)),
    }
}

#[cfg(test)]
mod page;

#[cfg(test)]
mod tests {
    use super::super::verdict::{Check, Counts};
    use super::*;

    fn started(n: usize) -> RunEvent {
        let cell = |index| CellInfo {
            name: format!("scenario {index}"),
            file: "a.rhai".into(),
            index,
            kernel: "auto".into(),
            topology: "1n1l2c1t".into(),
            scheduler: "none".into(),
            tags: vec![],
            axes: vec![],
        };
        let cells = (0..n).map(cell).collect();
        RunEvent::RunStarted { cryoscope: "0.1.0".into(), cells, jobs: 1 }
    }

    fn start(cell: usize, attempt: u32) -> RunEvent {
        RunEvent::CellStarted { cell, attempt, at_ms: 5 }
    }

    fn stage(cell: usize) -> RunEvent {
        RunEvent::Stage { cell, stage: Stage::Boot, detail: String::new() }
    }

    fn retried(cell: usize) -> RunEvent {
        RunEvent::CellRetried { cell, attempt: 1, reason: "QEMU died".into(), outcome: None }
    }

    fn end(cell: usize) -> RunEvent {
        let verdict = Verdict {
            outcome: Outcome::Pass,
            reason: None,
            allowed: false,
            counts: Counts { pass: 1, ..Counts::default() },
        };
        let logs = Logs::default();
        RunEvent::CellFinished(CellFinished {
            cell,
            verdict,
            duration_ms: 9,
            fault: None,
            failed_before: 0,
            logs,
        })
    }

    fn over() -> RunEvent {
        RunEvent::RunFinished {
            outcomes: BTreeMap::from([(Outcome::Pass, 1)]),
            not_run: 0,
            interrupted: false,
            duration_ms: 10,
            exit_code: 0,
        }
    }

    #[test]
    fn lines_are_versioned_and_come_back_as_they_were() {
        let check = Check::fail("x", "no").compared("1", "2");
        let events = [
            started(2),
            start(1, 1),
            stage(0),
            RunEvent::Phase { cell: 0, name: "warm".into(), elapsed_ms: 7 },
            RunEvent::Recorded { cell: 0, record: Record::Check(check) },
            RunEvent::Recorded { cell: 0, record: Record::Print { text: "a\nb".into() } },
            RunEvent::Monitored {
                cell: 0,
                report: MonitorReport {
                    readings: 3,
                    depth: Some(("local:1".into(), 5)),
                    events: [("SCX_EV_X".to_owned(), 0.5)].into(),
                    ..Default::default()
                },
            },
            RunEvent::Sampled {
                cell: 0,
                report: SampleReport {
                    planned: Some(3),
                    first_missed: vec![1],
                    ..Default::default()
                },
            },
            RunEvent::Tree { cell: 0, tag: "end".into(), text: "a\n  b\n".into() },
            retried(1),
            end(0),
            over(),
        ];
        for event in events {
            let line = event.to_line();
            // One that is damaged is no event of a later version.
            let damaged =
                line.replacen("\"v\":1", "\"v\":1,\"cell\":\"x\",\"cells\":7,\"outcomes\":7", 1);
            assert!(!RunEvent::is_of_a_later_kind(&damaged), "{damaged}");
            assert!(line.starts_with(r#"{"v":1,"event":""#), "{line}");
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(RunEvent::from_line(&line), Ok(event));
        }
    }

    #[test]
    fn foreign_lines_are_refused_with_the_reason() {
        let other = end(0).to_line().replacen("\"v\":1", "\"v\":2", 1);
        let error = RunEvent::from_line(&other).unwrap_err();
        assert_eq!(error, "event of version 2 where 1 is spoken");
        assert!(RunEvent::from_line("hello").unwrap_err().starts_with("not an event: "));
        assert!(RunEvent::from_line(r#"{"v":1,"event":"dance"}"#).is_err());
    }

    #[test]
    fn the_machine_accepts_whole_runs() {
        let runs = [
            vec![started(0), over()],
            vec![started(1), over()],
            vec![started(1), start(0, 1), stage(0), end(0), over()],
            vec![started(2), start(1, 1), start(0, 1), end(1), stage(0), end(0), over()],
            vec![started(1), start(0, 1), retried(0), start(0, 2), end(0), over()],
        ];
        for run in runs {
            let mut model = RunModel::default();
            for event in &run {
                assert_eq!(model.apply(event), Ok(()), "{event:?}");
            }
        }
    }

    #[test]
    fn the_machine_says_what_cannot_come() {
        let cases = [
            (vec![], stage(0), "an event before the start of the run"),
            (vec![started(1)], started(1), "the run started twice"),
            (vec![started(1), over()], stage(0), "an event after the end of the run"),
            (vec![started(1)], stage(0), "cell 0: an event before its start"),
            (vec![started(1)], start(1, 1), "cell 1 of a run of 1 cells"),
            (vec![started(1)], start(0, 2), "cell 0: attempt 2 after 0 attempts"),
            (vec![started(1), start(0, 1)], start(0, 1), "cell 0: it started twice"),
            (vec![started(1), start(0, 1)], over(), "the run ended while cell 0 was running"),
            (vec![started(1), start(0, 1), end(0)], end(0), "cell 0: an event after its end"),
            (
                vec![started(1), start(0, 1), retried(0)],
                start(0, 1),
                "cell 0: attempt 1 after 1 attempts",
            ),
        ];
        for (before, event, says) in cases {
            let mut model = RunModel::default();
            before.iter().for_each(|e| model.apply(e).unwrap());
            assert_eq!(model.apply(&event), Err(says.to_string()));
        }
    }
}
