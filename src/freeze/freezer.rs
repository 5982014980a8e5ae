//! The machine and what reads its memory, in the hands of one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FreezeError;
use super::phase::{Phase, Step};
use super::trigger::{self, ExitOrder, ExitWay, Triggers, WatchCount, WatchId, WatchOrder};
use crate::snapshot::{
    CaptureError, CaptureRequest, Capturer, CpuRegisters, Meta, Pause, Snapshot, Trigger,
    WatchPlace, WatchTarget,
};
use crate::vm::{
    Capability, Engine, ExitInfo, RENDEZVOUS, Registers, Standstill, Stillness, VmError,
};

/// A machine, and what reads its memory.
pub struct Freezer {
    engine: Box<dyn Engine>,
    capturer: Option<Capturer>,
    phase: Phase,
    still: Standstill,
    patience: Duration,
    triggers: Triggers,
}

/// A machine whose kernel has been found, for whoever reads or changes it.
pub struct Opened<'a> {
    /// What reads the kernel's memory.
    pub capturer: &'a Capturer,
    /// The machine.
    pub engine: &'a mut dyn Engine,
}

impl Freezer {
    /// Takes charge of a running machine.
    #[must_use]
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Freezer::with(engine, Standstill::default(), RENDEZVOUS)
    }

    /// Takes charge of a running machine, keeps account of how long it stands in `still`, and
    /// gives its CPUs `patience` to stop.
    #[must_use]
    pub fn with(engine: Box<dyn Engine>, still: Standstill, patience: Duration) -> Self {
        let triggers = Triggers::new(still.clone());
        Freezer { engine, capturer: None, phase: Phase::Running, still, patience, triggers }
    }

    /// The machine.
    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// The machine, to be told something that is no freeze.
    pub fn engine_mut(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }

    /// Where the machine is in the course of a freeze; between requests it runs, is paused or is
    /// lost.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How long its CPUs may take to stop from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Finds the kernel in memory, which takes a while and otherwise happens at the first freeze.
    /// The machine runs meanwhile.
    ///
    /// # Errors
    /// [`FreezeError::NotYet`] and [`FreezeError::Unreadable`].
    pub fn open(&mut self) -> Result<&Capturer, FreezeError> {
        Ok(capturer(&mut self.capturer, &*self.engine)?)
    }

    /// Stops the machine, copies what `request` asks for, lets it go on. `meta` is asked for when
    /// all is ready and the machine is about to be stopped; its `pause` is filled in. A machine
    /// that does not stop in time gives a placeholder; one that is paused is copied from, and
    /// stays so.
    ///
    /// # Errors
    /// Every [`FreezeError`]. The machine runs afterwards unless it was paused or it is a
    /// [`FreezeError::Machine`].
    pub fn freeze(
        &mut self,
        request: &CaptureRequest,
        meta: impl FnOnce() -> Meta,
    ) -> Result<Arc<Snapshot>, FreezeError> {
        self.freeze_after(request, None, meta)
    }

    /// The same because of something that was read at `seen`, while the machine ran: how much
    /// later it stopped is in the snapshot, unless `meta` has a trigger of its own. There is no
    /// time then to get ready: that is for whoever reads, see [`Freezer::prepare`].
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn freeze_after(
        &mut self,
        request: &CaptureRequest,
        seen: Option<Instant>,
        meta: impl FnOnce() -> Meta,
    ) -> Result<Arc<Snapshot>, FreezeError> {
        self.is_there()?;
        if seen.is_none() {
            self.prepare(request)?;
        }
        let Opened { capturer, engine } = opened(&mut self.capturer, &mut *self.engine)?;
        let mut stand = Stand::new(engine, &mut self.phase, &self.still, self.patience);
        let mut meta = meta();
        let triggers = &mut self.triggers;
        let work = |engine: &mut dyn Engine| {
            let raw = trigger::copy(capturer, engine, request);
            triggers.collect(capturer, engine);
            raw
        };
        let met = stand.rendezvous(work)?;
        if let Rendezvous::Met { times, .. } = &met {
            self.triggers.tell(times);
        }
        match met {
            Rendezvous::Missed(error) => {
                Ok(Snapshot::placeholder(meta, reason(&error, Some(capturer))))
            }
            Rendezvous::Met { outcome, times } => {
                let raw = outcome?;
                meta.pause = times.pause();
                if let Some(seen) = seen.filter(|_| meta.trigger.is_demand()) {
                    meta.trigger = Trigger::Condition;
                    meta.overshoot_us = Some(us(times.stood.saturating_duration_since(seen)));
                }
                Ok(raw.finish(meta))
            }
        }
    }

    /// Does beforehand what makes a capture short; see [`Capturer::prepare`].
    ///
    /// # Errors
    /// [`FreezeError::NoSuchMap`] for the first name that is not there, and as
    /// [`Freezer::open`].
    pub fn prepare(&mut self, request: &CaptureRequest) -> Result<(), FreezeError> {
        let capturer = capturer(&mut self.capturer, &*self.engine)?;
        // Of a machine that runs this may fail on what is just changing; only the copy counts.
        match capturer.prepare(request).unwrap_or_default().into_iter().next() {
            Some(missing) => Err(FreezeError::NoSuchMap(missing)),
            None => Ok(()),
        }
    }

    /// Copies what `request` asks for without stopping the machine: values may be torn anywhere.
    /// When the reading began is returned too.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn look(
        &mut self,
        request: &CaptureRequest,
        meta: impl FnOnce() -> Meta,
    ) -> Result<(Arc<Snapshot>, Instant), FreezeError> {
        self.is_there()?;
        let capturer = capturer(&mut self.capturer, &*self.engine)?;
        let (meta, seen) = (meta(), Instant::now());
        Ok((capturer.capture(request)?.finish(meta), seen))
    }

    /// Does something with the machine and its kernel, `frozen` or as it runs.
    ///
    /// # Errors
    /// [`FreezeError::NotStopped`] when it was to be frozen and did not stop in time, and as
    /// [`Freezer::open`].
    pub fn with_kernel<T>(
        &mut self,
        frozen: bool,
        work: impl FnOnce(&mut Opened<'_>) -> T,
    ) -> Result<T, FreezeError> {
        if frozen {
            return self.standing(|opened, _| work(opened));
        }
        self.is_there()?;
        Ok(work(&mut opened(&mut self.capturer, &mut *self.engine)?))
    }

    /// Does something with a machine that stands still, its kernel and its triggers.
    fn standing<T>(
        &mut self,
        work: impl FnOnce(&mut Opened<'_>, &mut Triggers) -> T,
    ) -> Result<T, FreezeError> {
        self.is_there()?;
        let Opened { capturer, engine } = opened(&mut self.capturer, &mut *self.engine)?;
        let mut stand = Stand::new(engine, &mut self.phase, &self.still, self.patience);
        let triggers = &mut self.triggers;
        let work = |engine: &mut dyn Engine| {
            let outcome = work(&mut Opened { capturer, engine }, triggers);
            triggers.at_rendezvous(capturer, engine);
            outcome
        };
        match stand.rendezvous(work)? {
            Rendezvous::Met { outcome, times } => {
                self.triggers.tell(&times);
                Ok(outcome)
            }
            Rendezvous::Missed(error) => {
                Err(FreezeError::NotStopped(reason(&error, Some(capturer))))
            }
        }
    }

    /// The registers of all CPUs, of one instant, and why some are missing.
    ///
    /// # Errors
    /// [`FreezeError::NotStopped`] and [`FreezeError::Machine`].
    pub fn registers(&mut self) -> Result<(Vec<CpuRegisters>, Option<String>), FreezeError> {
        self.is_there()?;
        let Freezer { engine, capturer, phase, still, patience, .. } = self;
        match Stand::new(&mut **engine, phase, still, *patience).rendezvous(registers)? {
            Rendezvous::Met { outcome, .. } => Ok(outcome),
            Rendezvous::Missed(error) => {
                Err(FreezeError::NotStopped(reason(&error, capturer.as_ref())))
            }
        }
    }

    /// Stops the machine until [`Freezer::resume`]. Nothing to do when it is paused already.
    ///
    /// # Errors
    /// [`FreezeError::NotStopped`]: it runs; [`FreezeError::Machine`].
    pub fn pause(&mut self) -> Result<(), FreezeError> {
        self.is_there()?;
        if self.phase == Phase::Paused {
            return Ok(());
        }
        let Freezer { engine, capturer, phase, still, patience, .. } = self;
        match Stand::new(&mut **engine, phase, still, *patience).stop(Step::Pause)? {
            Ok(_) => Ok(()),
            Err(late) => Err(FreezeError::NotStopped(reason(&late, capturer.as_ref()))),
        }
    }

    /// Lets a paused machine go on. Nothing to do when it runs. How much time its clocks do not
    /// show, if the engine knows.
    ///
    /// # Errors
    /// [`FreezeError::Machine`].
    pub fn resume(&mut self) -> Result<Option<Duration>, FreezeError> {
        self.is_there()?;
        if self.phase != Phase::Paused {
            return Ok(None);
        }
        step(&mut self.phase, Step::Resume);
        let Freezer { engine, phase, still, patience, .. } = self;
        Stand::new(&mut **engine, phase, still, *patience).go()?;
        Ok(self.engine.stillness().hidden)
    }

    /// Begins to capture each write to a place; see [`WatchOrder`].
    ///
    /// # Errors
    /// [`FreezeError::Lacks`] where the engine has no watchpoints, [`FreezeError::Invalid`] when
    /// there are too many already, and as [`Freezer::freeze`].
    pub fn watch(&mut self, order: WatchOrder) -> Result<WatchId, FreezeError> {
        if !self.engine.capabilities().has(Capability::Watchpoints) {
            let (engine, capability) = (self.engine.name(), Capability::Watchpoints);
            return Err(FreezeError::Lacks { engine, capability });
        }
        if let Some(why) = self.triggers.refusal(&order.place) {
            return Err(FreezeError::Invalid(why));
        }
        self.prepare(&order.request)?;
        let begun = self.standing(|Opened { capturer, engine }, triggers| {
            triggers.watch(order, capturer, &mut **engine)
        });
        Ok(begun??)
    }

    /// Finds a place that is to be watched; see [`Capturer::watch_place`].
    ///
    /// # Errors
    /// [`FreezeError::Invalid`], and as [`Freezer::open`].
    pub fn watch_place(&mut self, target: &WatchTarget) -> Result<WatchPlace, FreezeError> {
        self.open()?.watch_place(target).map_err(FreezeError::Invalid)
    }

    /// Ends a watch; what became of it.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn unwatch(&mut self, id: WatchId) -> Result<Option<WatchCount>, FreezeError> {
        let count = self.triggers.count(id);
        self.standing(|Opened { engine, .. }, triggers| triggers.unwatch(id, &mut **engine))??;
        Ok(count)
    }

    /// What became of a watch so far; `None` once it was ended.
    #[must_use]
    pub fn watch_count(&self, id: WatchId) -> Option<WatchCount> {
        self.triggers.count(id)
    }

    /// Captures from now on what schedulers leave behind, at the instant. One must be attached.
    /// How the exits are noticed.
    ///
    /// # Errors
    /// [`FreezeError::Invalid`] with the reason why they cannot be, and as [`Freezer::freeze`].
    pub fn expect_exits(&mut self, order: ExitOrder) -> Result<ExitWay, FreezeError> {
        let request = order.request.clone();
        let way = self.standing(|Opened { capturer, engine }, triggers| {
            triggers.expect_exits(order, capturer, &mut **engine)
        });
        let way = way?.map_err(FreezeError::Invalid)?;
        // Getting ready takes a while, in which a scheduler may die.
        self.prepare(&request)?;
        Ok(way)
    }

    /// Lets schedulers leave from now on.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn forget_exits(&mut self) -> Result<(), FreezeError> {
        Ok(self.standing(|Opened { engine, .. }, t| t.forget_exits(&mut **engine))??)
    }

    /// Does what a trap that was hit asks for. A machine that stands at one goes on afterwards,
    /// whatever comes of it.
    pub fn trapped(&mut self) {
        let done = self.standing(|_, _| ());
        // One that did not stop in time has been let go on.
        let stands = !matches!(done, Ok(()) | Err(FreezeError::NotStopped(_)));
        if stands && self.phase == Phase::Running {
            let paused = self.engine.pause_within(self.patience);
            let _ = paused.and_then(|_| self.engine.resume());
        }
    }

    /// How long from now until [`Freezer::tick`] has something to do, if ever.
    pub(super) fn due(&self) -> Option<Duration> {
        if matches!(self.phase, Phase::Running) { self.triggers.due() } else { None }
    }

    /// Does what was due.
    pub(super) fn tick(&mut self) {
        let Some(capturer) = &self.capturer else { return };
        if self.triggers.needs_one(capturer) {
            self.trapped();
        }
    }

    /// Ends the machine; see [`Engine::stop`].
    pub fn stop(&mut self) -> ExitInfo {
        self.phase = Phase::Lost;
        self.still.end(Instant::now(), None);
        self.engine.stop()
    }

    /// Whether there is a machine to be told something.
    fn is_there(&mut self) -> Result<(), VmError> {
        if self.engine.exited().is_some() {
            self.phase = Phase::Lost;
            // One that was paused stands no longer.
            self.still.end(Instant::now(), None);
        }
        match self.phase {
            Phase::Lost => Err(lost(&*self.engine)),
            _ => Ok(()),
        }
    }
}

/// Why a machine did not stop, with the places of its CPUs by name where the kernel is known.
pub(super) fn reason(error: &VmError, capturer: Option<&Capturer>) -> String {
    let VmError::Late { late, waited } = error else { return error.to_string() };
    let place = |rip: u64| match capturer.and_then(|capturer| capturer.place(rip)) {
        Some(place) => format!("{place} ({rip:#x})"),
        None => format!("{rip:#x}"),
    };
    let cpus: Vec<String> = late.iter().map(|cpu| cpu.told(place)).collect();
    format!("waited {waited:?} in vain for all CPUs to stop: {}", cpus.join("; "))
}

/// The registers of all CPUs of a stopped machine, and why some of them are missing: they are
/// worth less than the rest of a freeze.
pub(super) fn registers(engine: &mut dyn Engine) -> (Vec<CpuRegisters>, Option<String>) {
    let mut taken = Vec::new();
    for cpu in 0.. {
        match engine.registers(cpu) {
            Ok(Registers { cpu, halted, values }) => {
                taken.push(CpuRegisters { cpu, halted, values });
            }
            Err(VmError::NoSuchCpu { .. }) => break,
            Err(error) => return (taken, Some(error.to_string())),
        }
    }
    (taken, None)
}

/// The capturer of this machine, opened when it is first needed.
fn capturer<'a>(
    slot: &'a mut Option<Capturer>,
    engine: &dyn Engine,
) -> Result<&'a Capturer, CaptureError> {
    match slot {
        Some(capturer) => Ok(capturer),
        None => Ok(slot.insert(Capturer::open(engine.memory())?)),
    }
}

fn opened<'a>(
    slot: &'a mut Option<Capturer>,
    engine: &'a mut dyn Engine,
) -> Result<Opened<'a>, CaptureError> {
    Ok(Opened { capturer: capturer(slot, engine)?, engine })
}

/// What came of stopping a machine.
#[derive(Debug)]
pub(super) enum Rendezvous<T> {
    /// It stopped, this was done, it runs on.
    Met { outcome: T, times: Times },
    /// It did not stop in time, and runs.
    Missed(VmError),
}

/// How long the parts of a rendezvous took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When all CPUs stood.
    stood: Instant,
    total: Duration,
    stop: Duration,
    copy: Duration,
    resume: Duration,
    stillness: Stillness,
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Times {
    /// How long after `seen` all CPUs stood.
    pub(super) fn since(&self, seen: Instant) -> u64 {
        us(self.stood.saturating_duration_since(seen))
    }

    pub(super) fn pause(&self) -> Pause {
        Pause {
            total_us: us(self.total),
            stop_us: us(self.stop),
            copy_us: us(self.copy),
            resume_us: us(self.resume),
            hidden_us: self.stillness.hidden.map(us),
            skew_us: self.stillness.skew.map(us),
        }
    }
}

/// What stops a machine and lets it go on: everything that keeps account of it.
pub(super) struct Stand<'a> {
    engine: &'a mut dyn Engine,
    phase: &'a mut Phase,
    still: &'a Standstill,
    patience: Duration,
}

impl<'a> Stand<'a> {
    pub(super) fn new(
        engine: &'a mut dyn Engine,
        phase: &'a mut Phase,
        still: &'a Standstill,
        patience: Duration,
    ) -> Self {
        Stand { engine, phase, still, patience }
    }

    /// Stops the CPUs; the inner error is that they did not stop in time.
    fn stop(&mut self, why: Step) -> Result<Result<Duration, VmError>, VmError> {
        step(self.phase, why);
        self.still.begin(Instant::now());
        match self.engine.pause_within(self.patience) {
            Ok(took) => {
                step(self.phase, Step::Done);
                Ok(Ok(took))
            }
            Err(error) => {
                self.still.never_mind();
                let late = matches!(error, VmError::Timeout { .. } | VmError::Late { .. });
                step(self.phase, if late { Step::TooLate } else { Step::Ended });
                if late { Ok(Err(error)) } else { Err(error) }
            }
        }
    }

    /// Lets the CPUs go on, which stand.
    fn go(&mut self) -> Result<Duration, VmError> {
        let result = self.engine.resume();
        let hidden = self.engine.stillness().likely().filter(|_| result.is_ok());
        self.still.end(Instant::now(), hidden);
        step(
            self.phase,
            match &result {
                Ok(_) => Step::Done,
                Err(VmError::Timeout { .. }) => Step::TooLate,
                Err(_) => Step::Ended,
            },
        );
        result
    }

    /// Does something while the machine stands still. One that is paused stays so.
    pub(super) fn rendezvous<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Engine) -> T,
    ) -> Result<Rendezvous<T>, VmError> {
        if *self.phase == Phase::Lost {
            return Err(lost(self.engine));
        }
        let start = Instant::now();
        let by_hand = *self.phase == Phase::Paused;
        let stop = if by_hand {
            step(self.phase, Step::Freeze);
            Duration::ZERO
        } else {
            match self.stop(Step::Freeze)? {
                Ok(took) => took,
                Err(late) => return Ok(Rendezvous::Missed(late)),
            }
        };
        let stood = Instant::now();
        let mut stopped = Stopped { stand: self, by_hand, resumed: false };
        let outcome = work(&mut *stopped.stand.engine);
        let copy = stood.elapsed();
        let resume = stopped.resume()?;
        drop(stopped);
        let total = start.elapsed();
        let stillness = self.engine.stillness();
        // Of a machine that stays paused it is not known yet.
        let hidden = stillness.hidden.filter(|_| !by_hand);
        let stillness = Stillness { hidden, ..stillness };
        let times = Times { stood, total, stop, copy, resume, stillness };
        Ok(Rendezvous::Met { outcome, times })
    }
}

/// A machine that stands still, and goes on when this is dropped, however that comes about.
struct Stopped<'a, 'b> {
    stand: &'a mut Stand<'b>,
    by_hand: bool,
    resumed: bool,
}

impl Stopped<'_, '_> {
    fn resume(&mut self) -> Result<Duration, VmError> {
        self.resumed = true;
        step(self.stand.phase, Step::Done);
        if self.by_hand { Ok(Duration::ZERO) } else { self.stand.go() }
    }
}

impl Drop for Stopped<'_, '_> {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.resume();
        }
    }
}

fn step(phase: &mut Phase, step: Step) {
    let next = phase.after(step);
    debug_assert!(next.is_some(), "{step:?} in {phase:?}");
    *phase = next.unwrap_or(Phase::Lost);
}

fn lost(engine: &dyn Engine) -> VmError {
    match engine.exited() {
        Some(info) => VmError::Exited(Box::new(info)),
        None => VmError::Refused {
            command: "another freeze".to_owned(),
            reason: "the machine did not go on after an earlier one".to_owned(),
        },
    }
}
