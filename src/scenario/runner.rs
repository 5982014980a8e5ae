//! Runs cells: some at a time, each in a process of its own, engine faults again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::cell::CellSpec;
use super::event::{CellFinished, CellInfo, Logs, RunEvent, RunModel};
use super::process::{Ended, Program, Stop, attempt};
use super::verdict::{Outcome, Record, Verdict};

/// How often a cell is tried when the engine is at fault.
pub const ATTEMPTS: u32 = 3;
/// How often sinks are told that time passes.
const TICK: Duration = Duration::from_millis(100);

/// One cell that is to run.
#[derive(Clone, Debug)]
pub struct Planned {
    /// For the report.
    pub info: CellInfo,
    /// For the cell.
    pub spec: CellSpec,
    /// Guest RAM in bytes, as far as it is known.
    pub memory: u64,
    /// Why it need not be started: what is known to be missing (its kernel, for one).
    pub doomed: Option<String>,
}

/// Who consumes a run's events.
pub trait Sink {
    /// Takes an event; `model` has taken it already.
    fn event(&mut self, event: &RunEvent, model: &RunModel);

    /// Time passes: a chance to draw.
    fn tick(&mut self, _model: &RunModel) {}
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cells by outcome.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// The most serious weight of any cell.
    pub worst: Option<Outcome>,
    /// Cells that never ran.
    pub not_run: usize,
    /// Whether somebody stopped the run.
    pub interrupted: bool,
    /// Cells that ended by a bug of ours.
    pub internal: usize,
}

impl Summary {
    /// The command's exit code. `no_skips` makes a skip a failure.
    #[must_use]
    pub fn exit_code(&self, no_skips: bool) -> u8 {
        if self.interrupted {
            return 130;
        }
        if self.internal > 0 {
            return 70;
        }
        let skipped = self.outcomes.get(&Outcome::Skip).is_some_and(|n| *n > 0);
        match self.worst {
            // Nothing ran: nothing was shown.
            None | Some(Outcome::Error | Outcome::Fail) => 1,
            _ if no_skips && skipped => 1,
            Some(Outcome::Inconclusive) => 2,
            Some(Outcome::Pass | Outcome::Skip) => 0,
        }
    }

    fn add(&mut self, verdict: &Verdict) {
        *self.outcomes.entry(verdict.outcome).or_default() += 1;
        self.worst = self.worst.max(Some(verdict.weight()));
    }
}

/// How many cells to run at a time when nobody says: an emulated machine keeps one core busy, and
/// its memory must be there.
#[must_use]
pub fn default_jobs(cores: usize, available: u64, largest: u64) -> usize {
    let by_memory = available / largest.saturating_add(128 << 20).max(1);
    cores.min(usize::try_from(by_memory).unwrap_or(usize::MAX)).max(1)
}

/// What a run needs beside its cells.
pub struct Run<'a> {
    /// How to start a cell.
    pub program: &'a Program,
    /// How many at a time.
    pub jobs: usize,
    /// How often a cell that fails or cannot be judged runs again.
    pub retries: u32,
    /// Whether a skip is a failure for the exit code.
    pub no_skips: bool,
    /// The wish to end.
    pub stop: &'a Stop,
}

enum Said {
    Event(RunEvent),
    /// A cell is through, by a bug of ours or not.
    Through(CellFinished, bool),
}

impl Run<'_> {
    /// Runs all cells and tells the sink everything. Returns when every process is gone.
    pub fn cells(&self, cells: &[Planned], sink: &mut dyn Sink) -> Summary {
        let started = Instant::now();
        let mut told = Told { model: RunModel::default(), sink };
        told.tell(&RunEvent::RunStarted {
            cryoscope: env!("CARGO_PKG_VERSION").into(),
            cells: cells.iter().map(|c| c.info.clone()).collect(),
            jobs: self.jobs,
        });
        let mut summary = Summary::default();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (say, said) = mpsc::channel();
            for _ in 0..self.jobs.clamp(1, cells.len().max(1)) {
                let (say, next) = (say.clone(), &next);
                scope.spawn(move || self.work(cells, next, started, &say));
            }
            drop(say);
            loop {
                match said.recv_timeout(TICK) {
                    Ok(Said::Event(event)) => told.tell(&event),
                    Ok(Said::Through(end, internal)) => {
                        summary.add(&end.verdict);
                        summary.internal += usize::from(internal);
                        told.tell(&RunEvent::CellFinished(end));
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => told.sink.tick(&told.model),
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
            }
        });
        summary.interrupted = self.stop.is_asked();
        summary.not_run = cells.len() - summary.outcomes.values().sum::<usize>();
        told.tell(&RunEvent::RunFinished {
            outcomes: summary.outcomes.clone(),
            not_run: summary.not_run,
            interrupted: summary.interrupted,
            duration_ms: ms(started),
            exit_code: summary.exit_code(self.no_skips),
        });
        summary
    }

    /// One thread's work: cells, one after the other. It spawns their processes and outlives
    /// them, as [`super::process`] wants it.
    fn work(
        &self,
        cells: &[Planned],
        next: &AtomicUsize,
        run_started: Instant,
        say: &mpsc::Sender<Said>,
    ) {
        while !self.stop.is_asked() {
            let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let id = cell.spec.cell;
            let start = |attempt| {
                let at_ms = ms(run_started);
                Said::Event(RunEvent::CellStarted { cell: id, attempt, at_ms })
            };
            let ended = match &cell.doomed {
                Some(reason) => {
                    let _ = say.send(start(1));
                    let verdict = Verdict::bare(Outcome::Error, reason);
                    let (fault, logs) = (None, Logs::default());
                    let finished = CellFinished {
                        cell: id,
                        verdict,
                        duration_ms: 0,
                        fault,
                        failed_before: 0,
                        logs,
                    };
                    Ended { finished, internal: false }
                }
                None => self.attempts(cell, say, &start),
            };
            let _ = say.send(Said::Through(ended.finished, ended.internal));
        }
    }

    /// Tries a cell until it ends without a fault of the engine, at most [`ATTEMPTS`] times, and
    /// again when it failed and may be retried.
    fn attempts(
        &self,
        cell: &Planned,
        say: &mpsc::Sender<Said>,
        start: &dyn Fn(u32) -> Said,
    ) -> Ended {
        let (mut number, mut faults, mut failed_before) = (1, 0, 0);
        loop {
            let _ = say.send(start(number));
            let spec = CellSpec { attempt: number, ..cell.spec.clone() };
            let mut what_failed = None;
            let mut hand_on = |event| {
                if what_failed.is_none() {
                    what_failed = failure(&event);
                }
                let _ = say.send(Said::Event(event));
            };
            let mut ended = attempt(self.program, &spec, self.stop, &mut hand_on);
            let end = &mut ended.finished;
            end.failed_before = failed_before;
            let (reason, outcome) = match end.fault.clone() {
                Some(fault) => {
                    faults += 1;
                    if faults >= ATTEMPTS || self.stop.is_asked() {
                        // Whatever it found, it found in a machine that broke.
                        let times =
                            if faults > 1 { format!(" {faults} times") } else { String::new() };
                        end.verdict.outcome = Outcome::Error;
                        end.verdict
                            .reason
                            .get_or_insert_with(|| format!("the engine failed{times}: {fault}"));
                        return ended;
                    }
                    (fault, None)
                }
                None if end.verdict.outcome >= Outcome::Fail
                    && failed_before < self.retries
                    && !self.stop.is_asked()
                    && !ended.internal =>
                {
                    failed_before += 1;
                    let outcome = end.verdict.outcome;
                    let reason = end.verdict.reason.take().or(what_failed);
                    (reason.unwrap_or_else(|| outcome.word().to_owned()), Some(outcome))
                }
                None => return ended,
            };
            let cell = end.cell;
            let retried = RunEvent::CellRetried { cell, attempt: number, reason, outcome };
            let _ = say.send(Said::Event(retried));
            number += 1;
        }
    }
}

/// The check that failed, if that is what an event tells.
fn failure(event: &RunEvent) -> Option<String> {
    let RunEvent::Recorded { record: Record::Check(check), .. } = event else { return None };
    (check.outcome >= Outcome::Fail).then(|| check.label.clone())
}

struct Told<'a> {
    model: RunModel,
    sink: &'a mut dyn Sink,
}

impl Told<'_> {
    fn tell(&mut self, event: &RunEvent) {
        let applied = self.model.apply(event);
        debug_assert_eq!(applied, Ok(()), "{event:?}");
        self.sink.event(event, &self.model);
    }
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::process::tests::{end_line, shell, spec};
    use super::*;

    use Outcome::{Error, Fail, Inconclusive, Pass, Skip};

    #[derive(Default)]
    struct Seen(Vec<RunEvent>);

    impl Sink for Seen {
        fn event(&mut self, event: &RunEvent, _: &RunModel) {
            self.0.push(event.clone());
        }
    }

    fn planned(n: usize) -> Vec<Planned> {
        let cell = |cell| Planned {
            info: CellInfo {
                name: format!("{cell}"),
                file: "a.rhai".into(),
                index: cell,
                kernel: "auto".into(),
                topology: "1n1l1c1t".into(),
                scheduler: "none".into(),
                tags: vec![],
                axes: vec![],
            },
            spec: spec(cell),
            memory: 0,
            doomed: None,
        };
        (0..n).map(cell).collect()
    }

    /// Runs `n` cells of a shell script that finds its cell's number in `$cell` and the attempt
    /// in `$attempt`.
    fn run(n: usize, jobs: usize, script: &str) -> (Summary, Vec<RunEvent>) {
        run_again(n, jobs, 0, script)
    }

    /// The same with retries.
    fn run_again(n: usize, jobs: usize, retries: u32, script: &str) -> (Summary, Vec<RunEvent>) {
        let prelude = "spec=$(cat); field() { echo \"$spec\" | sed \"s/.*\\\"$1\\\":\\([0-9]*\\).*/\\1/\"; }; \
                       cell=$(field cell); attempt=$(field attempt); ";
        let program = shell(&format!("{prelude}{script}"));
        let stop = Stop::new().unwrap();
        let mut seen = Seen::default();
        let run = Run { program: &program, jobs, retries, no_skips: false, stop: &stop };
        let summary = run.cells(&planned(n), &mut seen);
        (summary, seen.0)
    }

    #[test]
    fn exit_codes_follow_the_worst_outcome() {
        let cases = [
            (vec![], false, 1),
            (vec![Pass], false, 0),
            (vec![Skip], false, 0),
            (vec![Pass, Skip], true, 1),
            (vec![Pass, Inconclusive], false, 2),
            (vec![Inconclusive, Skip], true, 1),
            (vec![Pass, Fail, Inconclusive], false, 1),
            (vec![Error], false, 1),
        ];
        for (outcomes, no_skips, code) in cases {
            let mut summary = Summary::default();
            outcomes.iter().for_each(|o| summary.add(&Verdict::bare(*o, "")));
            assert_eq!(summary.exit_code(no_skips), code, "{outcomes:?}");
            summary.internal = 1;
            assert_eq!(summary.exit_code(no_skips), 70);
            summary.interrupted = true;
            assert_eq!(summary.exit_code(no_skips), 130);
        }
        let mut summary = Summary::default();
        summary.add(&Verdict { allowed: true, ..Verdict::bare(Inconclusive, "") });
        assert_eq!(summary.exit_code(false), 0, "an allowed Inconclusive");
    }

    #[test]
    fn jobs_fit_the_cores_and_the_memory() {
        let (m, g) = (1 << 20, 1 << 30);
        let cases = [(2, 24 * g, 512 * m, 2), (8, 2 * g, 512 * m, 3), (8, 100 * m, 512 * m, 1)];
        for (cores, available, largest, want) in cases {
            assert_eq!(default_jobs(cores, available, largest), want, "{cores} {available}");
        }
        assert_eq!(default_jobs(0, 0, u64::MAX), 1);
    }

    #[test]
    fn all_cells_run_some_at_a_time() {
        let script = format!("echo '{}' | sed \"s/:99/:$cell/\"", end_line(99, Pass, None));
        for jobs in [1, 3] {
            let (summary, seen) = run(5, jobs, &script);
            assert_eq!(summary.outcomes, BTreeMap::from([(Pass, 5)]));
            let mut running = 0;
            for event in &seen {
                match event {
                    RunEvent::CellStarted { .. } => running += 1,
                    RunEvent::CellFinished(_) => running -= 1,
                    _ => {}
                }
                assert!(running <= jobs, "{running} at a time where {jobs} are allowed");
            }
            assert!(matches!(seen.first(), Some(RunEvent::RunStarted { .. })));
            assert!(matches!(seen.last(), Some(RunEvent::RunFinished { exit_code: 0, .. })));
        }
    }

    #[test]
    fn an_engine_fault_is_tried_again_and_void() {
        let fault = end_line(0, Error, Some("QEMU died"));
        let pass = end_line(0, Pass, None);
        let script = format!("if [ $attempt -lt 3 ]; then echo '{fault}'; else echo '{pass}'; fi");
        let (summary, seen) = run(1, 1, &script);
        assert_eq!(summary.outcomes, BTreeMap::from([(Pass, 1)]));
        let retries = seen.iter().filter(|e| matches!(e, RunEvent::CellRetried { .. })).count();
        assert_eq!(retries, 2);
        let (summary, seen) = run(1, 1, &format!("echo '{fault}'"));
        assert_eq!(summary.outcomes, BTreeMap::from([(Error, 1)]), "not for ever");
        let end = seen.iter().find_map(|e| match e {
            RunEvent::CellFinished(end) => Some(end),
            _ => None,
        });
        let reason = end.and_then(|end| end.verdict.reason.clone());
        assert_eq!(reason.as_deref(), Some("the engine failed 3 times: QEMU died"));
        let (summary, _) = run(1, 1, &format!("echo '{}'", end_line(0, Pass, Some("QEMU died"))));
        assert_eq!(summary.outcomes, BTreeMap::from([(Error, 1)]), "its word is not trusted");
    }

    #[test]
    fn a_doomed_cell_is_an_error_without_a_process() {
        let mut cells = planned(1);
        cells[0].doomed = Some("no such kernel".into());
        let program = shell("exit 9");
        let stop = Stop::new().unwrap();
        let mut seen = Seen::default();
        let run = Run { program: &program, jobs: 1, retries: 0, no_skips: false, stop: &stop };
        let summary = run.cells(&cells, &mut seen);
        assert_eq!(summary.exit_code(false), 1);
        assert_eq!(seen.0.len(), 4);
        assert!(matches!(&seen.0[2], RunEvent::CellFinished(end)
            if end.verdict.reason.as_deref() == Some("no such kernel")));
    }

    #[test]
    fn a_stopped_run_says_what_never_ran() {
        let program = shell("exec sleep 60");
        let stop = Stop::new().unwrap();
        let asker = stop.clone();
        let asking = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            asker.ask();
        });
        let mut seen = Seen::default();
        let run = Run { program: &program, jobs: 2, retries: 0, no_skips: false, stop: &stop };
        let summary = run.cells(&planned(5), &mut seen);
        asking.join().unwrap();
        assert_eq!((summary.not_run, summary.interrupted), (3, true));
        assert_eq!(summary.outcomes, BTreeMap::from([(Error, 2)]));
        assert_eq!(summary.exit_code(false), 130);
    }

    #[test]
    fn what_fails_runs_again_and_says_so() {
        let script = |times: u32| {
            format!(
                "if [ $attempt -le {times} ]; then outcome=fail; else outcome=pass; fi; \
                 printf '{{\"v\":1,\"event\":\"cell_finished\",\"cell\":%s,\"verdict\":{{\"outcome\":\"%s\",\
                 \"counts\":{{\"pass\":1,\"inconclusive\":0,\"fail\":0,\"error\":0}}}},\"duration_ms\":1}}\\n' \
                 $cell $outcome"
            )
        };
        let told = |events: &[RunEvent]| -> Vec<String> {
            let tell = |event: &RunEvent| match event {
                RunEvent::CellRetried { attempt, outcome, .. } => {
                    Some(format!("retried {attempt} {outcome:?}"))
                }
                RunEvent::CellFinished(end) => {
                    Some(format!("{} after {}", end.verdict.outcome, end.failed_before))
                }
                _ => None,
            };
            events.iter().filter_map(tell).collect()
        };
        let (summary, events) = run_again(1, 1, 2, &script(2));
        assert_eq!(
            told(&events),
            ["retried 1 Some(Fail)", "retried 2 Some(Fail)", "pass after 2"],
            "{events:?}"
        );
        assert_eq!(summary.exit_code(false), 0);
        let (summary, events) = run_again(1, 1, 1, &script(2));
        assert_eq!(told(&events), ["retried 1 Some(Fail)", "fail after 1"]);
        assert_eq!(summary.exit_code(false), 1);
        let (_, events) = run(1, 1, &script(1));
        assert_eq!(told(&events), ["fail after 0"]);
    }
}
