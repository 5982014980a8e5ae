//! Takes samples when their time has come, whatever the script does.
//!
//! ```text
//!  wait ─▶ (lead before the boundary) get ready ─▶ (boundary) freeze ─▶ keep ─▶ wait ..
//!    ▲                                                                        │
//!    └── boundaries whose next one has come meanwhile are missed ◀────────────┘
//! ```
//!
//! A thread of its own asks the machine, whose requests are carried out one after the other: a
//! sample never falls into another freeze. It waits on the workload clock, so a machine that stands
//! reaches no boundary. Getting ready is done ahead, so that only the freeze itself is left when the
//! boundary comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beside::{Beside, GLANCE, Shared, no_thread};
use super::caught::Phase;
use super::clock::Clock;
use super::machine::{CallError, Machine};
use super::monitoring::Latest;
use super::sampled::Store;
use super::snapshots::frozen;
use super::stats::Stats;
use super::{Events, Lab};
use crate::scenario::event::RunEvent;
use crate::scenario::lab::{LabError, LabResult, SampleOps};
use crate::scenario::samples::{Boundaries, SampleOptions, SampleReport};
use crate::scenario::stats::TOP;
use crate::scenario::verdict::Recorder;
use crate::series::Sample;
use crate::snapshot::{CaptureRequest, Meta, MissingStatsReason, Snapshot, Trigger};

/// The least time before a boundary at which getting ready begins.
const LEAD: Duration = Duration::from_millis(2);

/// The most time before a boundary at which the scheduler is asked for its statistics.
const ASKING: Duration = Duration::from_secs(1);

/// How many times as far ahead as it took lately.
const MARGIN: u32 = 4;

/// The samples of a laboratory, and what takes them.
#[derive(Default)]
pub(super) struct Sampler(Beside<State>);

struct State {
    store: Store,
    report: SampleReport,
}

/// What taking samples needs.
pub(super) struct Order {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) clock: Clock,
    pub(super) phase: Phase,
    pub(super) stats: Stats,
    pub(super) latest: Latest,
    pub(super) events: Events,
    pub(super) recorder: Recorder,
    pub(super) options: SampleOptions,
    pub(super) boundaries: Boundaries,
}

impl Sampler {
    /// Begins to take samples.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(order: Order) -> std::io::Result<Sampler> {
        let report =
            SampleReport { planned: order.boundaries.planned(), ..SampleReport::default() };
        let store = Store::new(order.options.memory, std::env::temp_dir());
        let taker = Beside::start("samples", State { store, report }, move |shared| {
            Taker { shared, request: order.options.request(), order }.run();
        });
        taker.map(Sampler)
    }

    /// Takes no more; what came of it all, when there was anything to take.
    pub(super) fn end(&self) -> Option<SampleReport> {
        self.0.end().then(|| self.report())
    }

    /// What came of it so far.
    pub(super) fn report(&self) -> SampleReport {
        let Some(state) = self.0.state() else { return SampleReport::default() };
        let mut report = state.report.clone();
        report.spilled = state.store.spilled();
        let served = report.fired + report.missed;
        report.not_fired = report.planned.map_or(0, |planned| planned.saturating_sub(served));
        report
    }

    fn sample(&self, index: usize) -> Option<Sample> {
        self.0.state()?.store.get(index)
    }

    fn all(&self) -> Vec<Sample> {
        self.0.state().map(|state| state.store.all()).unwrap_or_default()
    }
}

/// What the scheduler's statistics said, or why there are none.
type Said = Result<serde_json::Value, MissingStatsReason>;

/// What runs in the thread.
struct Taker {
    shared: Arc<Shared<State>>,
    request: CaptureRequest,
    order: Order,
}

impl Taker {
    fn run(&self) {
        let (mut i, mut lead, mut asking) = (0, LEAD, self.begin_statistics());
        let mut troubled = false;
        while let Some(due) = self.order.boundaries.due(i) {
            let ready_by = due.saturating_sub(lead);
            let Some(stats) = self.ask(ready_by, &mut asking) else { return };
            if !self.wait_until(ready_by) {
                return;
            }
            let begun = Instant::now();
            let ready = self.order.machine.prepare(&self.request);
            // A little more than it took, within bounds: it is done while the machine runs.
            let most = self.order.boundaries.interval() / 2;
            lead = (lead / 2 + begun.elapsed() * 3 / 4).clamp(LEAD, most.max(LEAD));
            if !self.wait_until(due) {
                return;
            }
            let passed = self.order.boundaries.next(i, self.elapsed());
            self.shared.lock().report.miss(i, passed);
            i = passed;
            let Some(due) = self.order.boundaries.due(i) else { return };
            let taken = ready.and_then(|()| self.freeze(i, due, stats.clone()));
            let Some(snapshot) = self.settled(i, due, stats, taken, &mut troubled) else { return };
            self.keep(snapshot, due, &mut troubled);
            i += 1;
        }
    }

    fn elapsed(&self) -> Duration {
        self.order.clock.elapsed(Instant::now())
    }

    /// Waits for a time of the workload; whether samples are still wanted.
    fn wait_until(&self, due: Duration) -> bool {
        loop {
            let left = due.saturating_sub(self.elapsed());
            if left.is_zero() {
                return !self.shared.is_over();
            }
            // One that stands just before a boundary is no reason to be busy.
            let shortest = Duration::from_millis(u64::from(self.order.machine.is_paused()));
            if !self.shared.wait(left.clamp(shortest, GLANCE)) {
                return false;
            }
        }
    }

    /// The longest time before a boundary at which the scheduler is asked.
    fn most_asking(&self) -> Duration {
        (self.order.boundaries.interval() * 3 / 4).clamp(LEAD, ASKING)
    }

    /// Asks once before the first sample, whose statistics often are what changed since then; how
    /// long before that one to ask again.
    fn begin_statistics(&self) -> Duration {
        let (begun, most) = (Instant::now(), self.most_asking());
        let first = self.order.boundaries.due(0).unwrap_or_default();
        let time = (first.saturating_sub(self.elapsed()) / 2).min(most);
        if time < LEAD || self.order.stats.serves() != Ok(true) {
            return most;
        }
        match self.order.stats.ask(TOP, &BTreeMap::new(), Some(time)) {
            Ok(_) => (begun.elapsed() * MARGIN).clamp(LEAD, most),
            // When it does not answer, the samples say so.
            Err(_) => most,
        }
    }

    /// Asks for statistics, so long ahead that the answer is there in time; a scheduler that takes
    /// longer is not waited for. Nothing when no more samples are wanted.
    fn ask(&self, by: Duration, lead: &mut Duration) -> Option<Said> {
        match self.order.stats.serves() {
            Ok(true) => {}
            Ok(false) => return Some(Err(MissingStatsReason::NoSchedulerBinary)),
            Err(reason) => return Some(Err(reason)),
        }
        if !self.wait_until(by.saturating_sub(*lead)) {
            return None;
        }
        let begun = Instant::now();
        let left = by.saturating_sub(self.elapsed()).max(Duration::from_millis(1));
        let said = self.order.stats.ask(TOP, &BTreeMap::new(), Some(left));
        // Some times the longest that it took lately, since an answer that is in time may be a
        // little older, but one that is late is lost.
        let wanted = match &said {
            Ok(_) => (begun.elapsed() * MARGIN).max(*lead * 7 / 8),
            Err(_) => *lead * 2,
        };
        *lead = wanted.clamp(LEAD, self.most_asking());
        Some(said)
    }

    fn meta(&self, i: u64, due: Duration, stats: Said) -> impl FnOnce() -> Meta + Send + 'static {
        let (clock, phase) = (self.order.clock.clone(), self.order.phase.clone());
        let (trigger, stats) = (periodic(due), Some(Box::new(stats)));
        let latest = self.order.latest.clone();
        move || Meta { trigger, stats, ..latest.with(phase.get().meta(tag(i), &clock)) }
    }

    fn freeze(&self, i: u64, due: Duration, stats: Said) -> Result<Arc<Snapshot>, CallError> {
        let meta = Box::new(self.meta(i, due, stats));
        self.order.machine.freeze(&self.request, Some(Instant::now()), meta)
    }

    /// What a freeze gave, or what stands for it; `None` when there can be no more.
    fn settled(
        &self,
        i: u64,
        due: Duration,
        stats: Said,
        taken: Result<Arc<Snapshot>, CallError>,
        troubled: &mut bool,
    ) -> Option<Arc<Snapshot>> {
        let error = match taken {
            Ok(snapshot) => return Some(snapshot),
            // Whoever asks next is told that the machine is gone.
            Err(CallError::Gone(_)) if self.order.machine.exited().is_some() => return None,
            Err(error) => error.into_lab().to_string(),
        };
        if !std::mem::replace(troubled, true) {
            let text = format!("the sample {} has no contents: {error}", tag(i));
            self.order.recorder.note(text, None);
        }
        Some(Snapshot::placeholder(self.meta(i, due, stats)(), error))
    }

    fn keep(&self, snapshot: Arc<Snapshot>, due: Duration, troubled: &mut bool) {
        self.order.events.send(&frozen(self.order.events.cell(), &snapshot));
        let late = snapshot.elapsed_ms().saturating_sub(ms(due));
        let placeholder = snapshot.is_placeholder();
        // It is written to the file without the lock, so that nobody waits for that.
        let spill = self.shared.lock().store.admit(&snapshot);
        let (taken, trouble) = spill.settle(snapshot);
        if let Some(error) = trouble
            && !std::mem::replace(troubled, true)
        {
            let text = format!("samples stay in memory, beyond what they may hold: {error}");
            self.order.recorder.note(text, None);
        }
        let mut state = self.shared.lock();
        state.store.push(taken);
        let report = &mut state.report;
        report.fired += 1;
        report.placeholders += u64::from(placeholder);
        report.latest_ms = report.latest_ms.max(late);
    }
}

/// The name of sample `i`.
fn tag(i: u64) -> String {
    format!("periodic_{i:03}")
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn periodic(due: Duration) -> Trigger {
    Trigger::Periodic { boundary_offset_ms: ms(due) }
}

impl Lab {
    /// Begins to take the samples that a scenario asks for.
    ///
    /// # Errors
    /// Their boundaries make no sense, or no thread can be had.
    pub(super) fn start_sampling(&mut self, options: &SampleOptions) -> LabResult<()> {
        let boundaries = Boundaries::new(options.times, self.parts.facts.duration)
            .map_err(|why| LabError::Argument(format!("samples: {why}")))?;
        let state = self.state();
        let (clock, phase) = (state.clock.clone(), state.phase.clone());
        drop(state);
        let sampler = Sampler::start(Order {
            machine: self.machine.clone(),
            clock,
            phase,
            stats: self.stats.clone(),
            latest: self.latest.clone(),
            events: self.parts.events.clone(),
            recorder: self.parts.recorder.clone(),
            options: options.clone(),
            boundaries,
        });
        self.sampler = sampler.map_err(no_thread)?;
        Ok(())
    }

    /// Takes no more samples, and says what came of them.
    pub(super) fn end_sampling(&self) {
        let Some(report) = self.sampler.end() else { return };
        if self.sampler.0.tell() {
            let cell = self.parts.events.cell();
            self.parts.events.send(&RunEvent::Sampled { cell, report });
        }
    }
}

impl SampleOps for Lab {
    fn sample(&self, index: usize) -> LabResult<Option<Arc<Snapshot>>> {
        Ok(self.sampler.sample(index).map(|sample| sample.whatever()))
    }

    fn taken(&self) -> Vec<Sample> {
        self.sampler.all()
    }

    fn report(&self) -> SampleReport {
        self.sampler.report()
    }
}
