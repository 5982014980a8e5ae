//! Reads the machine now and then while it runs, and judges in the end what was seen.
//!
//! A thread of its own asks, and the coordinator reads: between other requests, without stopping
//! anything. It waits on the workload clock, so a machine that stands is not read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Lab;
use super::beside::{Beside, GLANCE, Shared, no_thread};
use super::caught::Phase;
use super::clock::Clock;
use super::machine::{CallError, Machine};
use crate::scenario::event::RunEvent;
use crate::scenario::lab::{LabError, LabResult, MonitorOps};
use crate::scenario::monitor::{Course, Judged, MonitorOptions, MonitorReport, Watcher};
use crate::scenario::samples::{Boundaries, SampleTimes};
use crate::snapshot::{Meta, Observation};

/// Bytes of readings that are kept. Those after them are judged all the same.
const KEPT: usize = 64 << 20;

/// What a monitor has seen last; clones share it.
#[derive(Clone, Default)]
pub(super) struct Latest(Arc<Mutex<Option<Box<Observation>>>>);

impl Latest {
    fn set(&self, seen: Observation) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(seen));
    }

    /// Adds it to what a snapshot says of itself.
    pub(super) fn with(&self, meta: Meta) -> Meta {
        let monitor = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Meta { monitor, ..meta }
    }
}

/// The monitor of a laboratory.
pub(super) type Monitor = Beside<State>;

pub(super) struct State {
    course: Course,
    kept: Vec<Arc<Meta>>,
    bytes: usize,
}

/// What runs in the thread.
struct Reader {
    shared: Arc<Shared<State>>,
    machine: Arc<dyn Machine>,
    clock: Clock,
    phase: Phase,
    latest: Latest,
    boundaries: Boundaries,
    /// When the machine was young.
    born: Instant,
}

impl Reader {
    fn run(&self) {
        let (mut i, mut number, mut watcher) = (0, 0, Watcher::default());
        while let Some(due) = self.boundaries.due(i) {
            if !self.wait_until(due) {
                return;
            }
            let next = self.boundaries.next(i, self.clock.elapsed(Instant::now()));
            self.shared.lock().course.miss(next - i);
            i = next + 1;
            match self.machine.monitor() {
                Ok((reading, begun)) => {
                    let took = begun.elapsed();
                    let up = begun.saturating_duration_since(self.born);
                    let seen = watcher.observe(reading, self.clock.elapsed(begun), up);
                    self.keep(seen, took, number);
                    number += 1;
                }
                // Whoever asks next is told that the machine is gone.
                Err(CallError::Gone(_)) if self.machine.exited().is_some() => return,
                Err(error) => {
                    self.shared.lock().course.fail(&error.into_lab().to_string());
                }
            }
        }
    }

    /// Waits for a time of the workload; whether readings are still wanted.
    fn wait_until(&self, due: Duration) -> bool {
        loop {
            let left = due.saturating_sub(self.clock.elapsed(Instant::now()));
            // A machine that stands has nothing new to tell, also when its time has just come.
            let stands = self.machine.is_paused();
            if left.is_zero() && !stands {
                return !self.shared.is_over();
            }
            if !self.shared.wait(if stands { GLANCE } else { left.min(GLANCE) }) {
                return false;
            }
        }
    }

    fn keep(&self, seen: Observation, took: Duration, number: u64) {
        let meta = self.phase.get().meta(format!("reading_{number:04}"), &self.clock);
        let meta = meta.at(Duration::from_micros(seen.elapsed_us));
        let bytes = size(&seen);
        self.latest.set(seen.clone());
        let mut state = self.shared.lock();
        state.course.take(&seen, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if state.bytes.saturating_add(bytes) <= KEPT {
            state.bytes += bytes;
            state.kept.push(Arc::new(Meta { monitor: Some(Box::new(seen)), ..meta }));
        }
    }
}

/// About how much memory an observation takes.
fn size(seen: &Observation) -> usize {
    let reading = &seen.reading;
    let texts = |n: usize, item: usize| n * (item + 24);
    let events = reading.sched.iter().flat_map(|sched| &sched.events).map(Vec::len).sum();
    let doubts: usize = reading.doubts.iter().map(String::len).sum();
    let (cpus, queues) = (reading.cpus.len(), reading.queues.len());
    size_of::<Meta>() + doubts + texts(cpus, 88) + texts(queues, 32) + texts(events, 56)
}

impl Lab {
    /// Begins to read the machine.
    ///
    /// # Errors
    /// The interval makes no sense, or no thread can be had.
    pub(super) fn start_monitor(&mut self, options: &MonitorOptions) -> LabResult<()> {
        let times = SampleTimes::Every(options.every);
        let boundaries = Boundaries::new(times, self.parts.facts.duration)
            .map_err(|why| LabError::Argument(format!("monitor: {why}")))?;
        let course = Course::new(options);
        let state = State { course, kept: Vec::new(), bytes: 0 };
        let now = self.state();
        let (clock, phase) = (now.clock.clone(), now.phase.clone());
        drop(now);
        let (machine, latest, born) = (self.machine.clone(), self.latest.clone(), self.born);
        let monitor = Beside::start("monitor", state, move |shared| {
            Reader { shared, machine, clock, phase, latest, boundaries, born }.run();
        });
        self.monitor = monitor.map_err(no_thread)?;
        Ok(())
    }

    /// Reads no more, judges what was seen, and says what came of it.
    pub(super) fn end_monitor(&self) {
        self.monitor.end();
        let Some(state) = self.monitor.state().filter(|_| self.monitor.tell()) else {
            return;
        };
        let (report, judged) = (state.course.report(), state.course.judge());
        drop(state);
        for judged in judged {
            match judged {
                Judged::Check(check) => self.parts.recorder.record(check),
                Judged::Note(text) => self.parts.recorder.note(text, None),
            }
        }
        let cell = self.parts.events.cell();
        self.parts.events.send(&RunEvent::Monitored { cell, report });
    }
}

impl MonitorOps for Lab {
    fn readings(&self) -> Option<Vec<Arc<Meta>>> {
        self.monitor.state().map(|state| state.kept.clone())
    }

    fn monitored(&self) -> MonitorReport {
        self.monitor.state().map(|state| state.course.report()).unwrap_or_default()
    }
}
