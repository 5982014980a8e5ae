//! What a machine captures by itself: writes to a watched place, and the death of a scheduler.
//!
//! ```text
//!                 watch                   a write: captured           stop
//!   (nothing) ───────────▶ armed ────────────────────────▶ armed ──────────▶ (nothing)
//!                            ▲                                │
//!                            │ the second is over             │ as many in one second as it may
//!                            └──────────── disarmed ◀─────────┘
//! ```
//!
//! A hit stops the machine ([`crate::vm::Trap`]). At every rendezvous, whatever it is for, hits are
//! asked for and captured before the machine goes on, so that a freeze that comes at the same
//! moment does not move on what was trapped.
//!
//! A hot place would have the machine stand most of the time. So each watch may capture so many
//! times in a second of guest time, and is disarmed for the rest of it: writes then cost nothing,
//! and are not seen. How long that was is counted.
//!
//! A scheduler's death is trapped at the code that every exit passes. Where the engine has no such
//! traps, the machine is polled, and the snapshot says how late it may be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::snapshot::{
    CaptureError, CaptureRequest, Capturer, CpuRegisters, ExitTrap, Leaving, Meta, RawCapture,
    Snapshot, Trigger, WatchPlace,
};
use crate::vm::{Capability, Engine, Standstill, Trap, Trapped, VmError};

use super::freezer::{Times, registers};

/// The most watches at once. A CPU has four debug registers; one is kept for our own needs.
pub const MOST_WATCHES: usize = 3;
/// How much guest time a watch's limit is for.
const SECOND: Duration = Duration::from_secs(1);
/// How long after a scheduler's exit the trap is set again: the CPU has moved on by then.
const AGAIN: Duration = Duration::from_millis(20);
/// How often the machine is looked at for an exit where that cannot be trapped.
const POLL: Duration = Duration::from_millis(10);
/// How long after its last sign of life a scheduler that leaves without a reason is taken for dead.
const UNTOLD: Duration = Duration::from_secs(1);
/// Deaths that are captured: a scheduler that is restarted over and over must not fill our memory.
const MOST_DEATHS: usize = 16;

/// Says when and in which phase a snapshot is taken; asked for with each.
pub type MetaNow = Box<dyn Fn() -> Meta + Send>;

/// Gets a snapshot that was taken unasked, on the coordinator's thread; must return at once.
pub type Tell = Box<dyn FnMut(Arc<Snapshot>) + Send>;

/// A place to be watched.
pub struct WatchOrder {
    /// Which one.
    pub place: WatchPlace,
    /// What to copy at each write.
    pub request: CaptureRequest,
    /// How many captures there may be in a second of guest time.
    pub most: u32,
    /// When and in which phase.
    pub meta: MetaNow,
    /// Who gets the snapshots.
    pub tell: Tell,
}

/// Which watch; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(u64);

/// What became of a watch so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchCount {
    /// Writes that were seen.
    pub fires: u64,
    /// How often the limit was reached, and the watch disarmed.
    pub limited: u64,
    /// For how much guest time it was disarmed, so that writes were not seen.
    pub unseen: Duration,
}

/// What to do when a scheduler leaves.
pub struct ExitOrder {
    /// What to copy.
    pub request: CaptureRequest,
    /// When and in which phase.
    pub meta: MetaNow,
    /// Who gets the snapshots.
    pub tell: Tell,
}

/// How one finds out that a scheduler leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitWay {
    /// At the instant: the machine stands still in this function of the kernel's.
    Trapped {
        /// Its name.
        function: String,
    },
    /// By looking, so often.
    Polled {
        /// The time between two looks.
        every: Duration,
        /// Why it is not trapped.
        because: String,
    },
}

struct Watch {
    id: WatchId,
    order: WatchOrder,
    /// What was there when it was last looked at.
    last: Option<u64>,
    /// When the present second began, in guest time, and how many captures it has had.
    since: Duration,
    captured: u32,
    disarmed: Option<Duration>,
    count: WatchCount,
}

impl Watch {
    fn trap(&self) -> Trap {
        Trap::Write { address: self.order.place.address, len: self.order.place.len }
    }

    /// Counts a capture at `now`; disarms the watch when it has had its share.
    fn fired(&mut self, now: Duration) {
        if now.saturating_sub(self.since) >= SECOND {
            (self.since, self.captured) = (now, 0);
        }
        self.captured += 1;
        if self.captured >= self.order.most {
            self.disarmed = Some(now);
            self.count.limited += 1;
        }
    }

    /// When it is to be armed again, in guest time.
    fn due(&self) -> Option<Duration> {
        self.disarmed.map(|_| self.since + SECOND)
    }

    /// Arms it again if it is time.
    fn revive(&mut self, now: Duration) {
        if let (Some(disarmed), Some(due)) = (self.disarmed, self.due())
            && now >= due
        {
            self.count.unseen += now.saturating_sub(disarmed);
            self.disarmed = None;
            (self.since, self.captured) = (now, 0);
        }
    }

    fn count(&self, now: Duration) -> WatchCount {
        let lasting = self.disarmed.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        WatchCount { unseen: self.count.unseen + lasting, ..self.count }
    }
}

struct Exits {
    order: ExitOrder,
    traps: Vec<ExitTrap>,
    /// Schedulers that were captured as they left, and how many had been enabled by then: where
    /// one was, another one may come to lie.
    dead: Vec<(u64, Option<u64>)>,
    /// When the traps that were hit are set again, in guest time.
    again: Option<Duration>,
    /// When the machine was last looked at and no scheduler was leaving, if it is polled.
    alive: Option<Instant>,
}

impl Exits {
    fn trap(exit: &ExitTrap) -> Trap {
        let (address, physical) = exit.address();
        Trap::Execute { address, physical }
    }

    /// Whether this scheduler's exit is captured, for the first time.
    fn is_new(&mut self, sched: u64, enabled: Option<u64>) -> bool {
        let death = (sched, enabled);
        let new = self.dead.len() < MOST_DEATHS && !self.dead.contains(&death);
        if new {
            self.dead.push(death);
        }
        new
    }
}

/// A capture that becomes a snapshot when the machine runs again.
struct Pending {
    raw: Result<RawCapture, CaptureError>,
    meta: Meta,
    /// When the reason for it was seen.
    seen: Instant,
    to: Option<WatchId>,
}

/// The triggers of a machine.
pub(super) struct Triggers {
    watches: Vec<Watch>,
    exits: Option<Exits>,
    /// What the engine was told.
    set: Vec<Trap>,
    pending: Vec<Pending>,
    next: u64,
    start: Instant,
    still: Standstill,
}

impl Triggers {
    pub(super) fn new(still: Standstill) -> Self {
        let (watches, set, pending) = (Vec::new(), Vec::new(), Vec::new());
        Triggers { watches, exits: None, set, pending, next: 1, start: Instant::now(), still }
    }

    /// Time that the guest ran.
    fn now(&self) -> Duration {
        let now = Instant::now();
        (now - self.start).saturating_sub(self.still.total(now))
    }

    /// Begins a watch. The machine stands.
    pub(super) fn watch(
        &mut self,
        order: WatchOrder,
        capturer: &Capturer,
        engine: &mut dyn Engine,
    ) -> Result<WatchId, VmError> {
        let id = WatchId(self.next);
        self.next += 1;
        let (now, last) = (self.now(), capturer.value_at(&order.place));
        let (captured, disarmed, count) = (0, None, WatchCount::default());
        self.watches.push(Watch { id, order, last, since: now, captured, disarmed, count });
        match self.arm(engine) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.watches.retain(|watch| watch.id != id);
                let _ = self.arm(engine);
                Err(error)
            }
        }
    }

    /// Why there cannot be this watch beside those there are.
    pub(super) fn refusal(&self, place: &WatchPlace) -> Option<String> {
        let same =
            |w: &&Watch| (w.order.place.address, w.order.place.len) == (place.address, place.len);
        if self.watches.iter().any(|watch| same(&watch)) {
            return Some(format!("{} is watched already; stop() that watch first", place.name));
        }
        if self.watches.len() < MOST_WATCHES {
            return None;
        }
        let names: Vec<&str> =
            self.watches.iter().map(|watch| watch.order.place.name.as_str()).collect();
        Some(format!(
            "at most {MOST_WATCHES} places can be watched at once, and {} are: stop() one before \
             watching {}",
            names.join(", "),
            place.name
        ))
    }

    /// Ends a watch. The machine stands.
    pub(super) fn unwatch(&mut self, id: WatchId, engine: &mut dyn Engine) -> Result<(), VmError> {
        self.watches.retain(|watch| watch.id != id);
        self.arm(engine)
    }

    pub(super) fn count(&self, id: WatchId) -> Option<WatchCount> {
        let now = self.now();
        self.watches.iter().find(|watch| watch.id == id).map(|watch| watch.count(now))
    }

    /// Waits for schedulers to leave. The machine stands.
    pub(super) fn expect_exits(
        &mut self,
        order: ExitOrder,
        capturer: &Capturer,
        engine: &mut dyn Engine,
    ) -> Result<ExitWay, String> {
        let traps = capturer.exit_traps()?;
        let function = traps.first().map_or_else(String::new, |trap| trap.function().to_owned());
        let exits = Exits { order, traps, dead: Vec::new(), again: None, alive: None };
        let exits = self.exits.insert(exits);
        let because = if engine.capabilities().has(Capability::Breakpoints) {
            match self.arm(engine) {
                Ok(()) => return Ok(ExitWay::Trapped { function }),
                Err(error) => error.to_string(),
            }
        } else {
            exits.traps.clear();
            format!("the engine {} has no breakpoints", engine.name())
        };
        if let Some(exits) = &mut self.exits {
            exits.traps.clear();
            exits.alive = Some(Instant::now());
        }
        self.arm(engine).map_err(|e| e.to_string())?;
        Ok(ExitWay::Polled { every: POLL, because })
    }

    /// Schedulers may leave from now on. The machine stands.
    pub(super) fn forget_exits(&mut self, engine: &mut dyn Engine) -> Result<(), VmError> {
        self.exits = None;
        self.arm(engine)
    }

    /// Tells the engine which traps there are now.
    fn arm(&mut self, engine: &mut dyn Engine) -> Result<(), VmError> {
        let watches = self.watches.iter().filter(|watch| watch.disarmed.is_none());
        let exits = self.exits.iter().filter(|exits| exits.again.is_none());
        let exits = exits.flat_map(|exits| exits.traps.iter().map(Exits::trap));
        let wanted: Vec<Trap> = watches.map(Watch::trap).chain(exits).collect();
        if wanted == self.set {
            return Ok(());
        }
        let done = engine.set_traps(&wanted);
        self.set = if done.is_ok() { wanted } else { Vec::new() };
        done
    }

    /// Captures what was trapped. The machine stands.
    pub(super) fn collect(&mut self, capturer: &Capturer, engine: &mut dyn Engine) {
        let mut hits = engine.trapped();
        // Two CPUs that wrote at the same moment are one instant.
        hits.dedup_by_key(|hit| hit.trap);
        let now = self.now();
        for hit in hits {
            match hit.trap {
                Trap::Write { .. } => self.written(&hit, now, capturer, engine),
                Trap::Execute { .. } => self.left(&hit, now, capturer, engine),
            }
        }
        for watch in &mut self.watches {
            watch.revive(now);
        }
        if let Some(exits) = &mut self.exits
            && exits.again.is_some_and(|again| now >= again)
        {
            // A CPU that has not moved on since would run into it again, and again.
            let stuck = exits.traps.iter().any(|trap| is_at(engine, trap.address().0));
            exits.again = stuck.then_some(now + AGAIN);
        }
        // What cannot be set shows as missing captures; the machine must go on.
        let _ = self.arm(engine);
    }

    fn written(
        &mut self,
        hit: &Trapped,
        now: Duration,
        capturer: &Capturer,
        engine: &mut dyn Engine,
    ) {
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.trap() == hit.trap) else {
            return;
        };
        let place = watch.order.place.clone();
        let after = capturer.value_at(&place);
        let trigger = Trigger::Watch {
            place: place.name.clone(),
            address: place.address,
            bytes: place.len,
            cpu: hit.cpu,
            before: watch.last,
            after,
        };
        watch.last = after;
        watch.count.fires += 1;
        watch.fired(now);
        let raw = copy(capturer, engine, &watch.order.request);
        let mut meta = (watch.order.meta)();
        meta.tag = format!("watch {} {}", place.name, watch.count.fires);
        meta.trigger = trigger;
        self.pending.push(Pending { raw, meta, seen: hit.at, to: Some(watch.id) });
    }

    fn left(&mut self, hit: &Trapped, now: Duration, capturer: &Capturer, engine: &mut dyn Engine) {
        self.set.retain(|set| *set != hit.trap);
        let Some(exits) = &mut self.exits else { return };
        exits.again = Some(now + AGAIN);
        let Some(trap) = exits.traps.iter().find(|trap| Exits::trap(trap) == hit.trap) else {
            return;
        };
        let argument = hit.cpu.and_then(|cpu| engine.registers(cpu).ok());
        let argument = argument.and_then(|r| r.values.get("rdi").copied());
        let sched = argument.map(|rdi| trap.sched(rdi)).or_else(|| capturer.root_sched());
        let function = trap.function().to_owned();
        let trigger = Trigger::ErrorExit { cpu: hit.cpu, function: Some(function), late_us: None };
        self.died(sched, trigger, hit.at, capturer, engine);
    }

    fn died(
        &mut self,
        sched: Option<u64>,
        trigger: Trigger,
        seen: Instant,
        capturer: &Capturer,
        engine: &mut dyn Engine,
    ) {
        let Some(exits) = &mut self.exits else { return };
        if !sched.is_none_or(|sched| exits.is_new(sched, capturer.enabled_before())) {
            return;
        }
        let raw = copy(capturer, engine, &exits.order.request);
        let mut meta = (exits.order.meta)();
        meta.trigger = trigger;
        self.pending.push(Pending { raw, meta, seen, to: None });
    }

    /// What else there is to do at a rendezvous for the sake of these: see [`Triggers::due`].
    pub(super) fn at_rendezvous(&mut self, capturer: &Capturer, engine: &mut dyn Engine) {
        self.collect(capturer, engine);
        let Some(alive) = self.exits.as_ref().and_then(|exits| exits.alive) else { return };
        let now = Instant::now();
        match is_dead(capturer.leaving(None), now - alive) {
            Some(true) => {}
            Some(false) => return,
            None => {
                if let Some(exits) = &mut self.exits {
                    exits.alive = Some(now);
                }
                return;
            }
        }
        let late = u64::try_from((now - alive).as_micros()).unwrap_or(u64::MAX);
        let trigger = Trigger::ErrorExit { cpu: None, function: None, late_us: Some(late) };
        self.died(capturer.root_sched(), trigger, now, capturer, engine);
    }

    /// Whether a look at the running machine says that there is need for a rendezvous.
    pub(super) fn needs_one(&mut self, capturer: &Capturer) -> bool {
        let now = self.now();
        let rearm = self.watches.iter().filter_map(Watch::due).any(|due| now >= due);
        let again = self.exits.as_ref().and_then(|exits| exits.again);
        if rearm || again.is_some_and(|again| now >= again) {
            return true;
        }
        let Some(exits) = &mut self.exits else { return false };
        let Some(alive) = exits.alive else { return false };
        let now = Instant::now();
        match is_dead(capturer.leaving(None), now - alive) {
            Some(true) => {
                let root = capturer.root_sched();
                let enabled = capturer.enabled_before();
                root.is_some_and(|root| !exits.dead.contains(&(root, enabled)))
            }
            Some(false) => false,
            None => {
                exits.alive = Some(now);
                false
            }
        }
    }

    /// How long from now until [`Triggers::needs_one`] is worth asking, if ever.
    pub(super) fn due(&self) -> Option<Duration> {
        let now = self.now();
        let watches = self.watches.iter().filter_map(Watch::due);
        let again = self.exits.iter().filter_map(|exits| exits.again);
        let timed = watches.chain(again).map(|due| due.saturating_sub(now)).min();
        let polled = self.exits.as_ref().and_then(|exits| exits.alive).map(|_| POLL);
        timed.into_iter().chain(polled).min()
    }

    /// Makes snapshots of what was captured, and hands them out. The machine runs again.
    pub(super) fn tell(&mut self, times: &Times) {
        for pending in std::mem::take(&mut self.pending) {
            let Pending { raw, mut meta, seen, to } = pending;
            meta.pause = times.pause();
            meta.overshoot_us = Some(times.since(seen));
            let snapshot = match raw {
                Ok(raw) => raw.finish(meta),
                Err(error) => Snapshot::placeholder(meta, error.to_string()),
            };
            let tell = match to {
                Some(id) => {
                    let watch = self.watches.iter_mut().find(|watch| watch.id == id);
                    watch.map(|watch| &mut watch.order.tell)
                }
                None => self.exits.as_mut().map(|exits| &mut exits.order.tell),
            };
            if let Some(tell) = tell {
                tell(snapshot);
            }
        }
    }
}

/// Whether a scheduler that was alive so long ago has left, and said why; none for one that stays.
///
/// A CPU first claims the exit and then writes down the reason, and an emulated one may be
/// interrupted in between for long; but not for ever.
fn is_dead(leaving: Option<Leaving>, since: Duration) -> Option<bool> {
    let leaving = leaving.filter(|leaving| leaving.kind != 0)?;
    Some(leaving.told || since >= UNTOLD)
}

/// Whether a CPU is about to execute this instruction.
fn is_at(engine: &mut dyn Engine, address: u64) -> bool {
    let at = |registers: &CpuRegisters| registers.values.get("rip") == Some(&address);
    registers(engine).0.iter().any(at)
}

/// Copies what a request asks for.
pub(super) fn copy(
    capturer: &Capturer,
    engine: &mut dyn Engine,
    request: &CaptureRequest,
) -> Result<RawCapture, CaptureError> {
    let raw = capturer.capture(request)?;
    if !request.wants_registers() {
        return Ok(raw);
    }
    let (taken, missing) = registers(engine);
    Ok(raw.with_registers(taken, missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{FakeMem, GuestMem};
    use crate::vm::{Capabilities, Console, ExitInfo, ExitKind, ExitWatch, Registers};
    use std::os::fd::OwnedFd;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn watch(id: u64, address: u64, most: u32) -> Watch {
        let name = format!("x{id}");
        let order = WatchOrder {
            place: WatchPlace { name, symbol: None, address, len: 8 },
            request: CaptureRequest::default(),
            most,
            meta: Box::new(Meta::default),
            tell: Box::new(drop),
        };
        let (since, captured, disarmed) = (Duration::ZERO, 0, None);
        let count = WatchCount::default();
        Watch { id: WatchId(id), order, last: None, since, captured, disarmed, count }
    }

    /// An engine that notes its traps, and refuses some.
    #[derive(Default)]
    struct Fake {
        set: Vec<Vec<Trap>>,
        refuse: Option<u64>,
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
        fn memory(&self) -> Arc<dyn GuestMem> {
            Arc::new(FakeMem::new())
        }
        fn pause_within(&mut self, _: Duration) -> Result<Duration, VmError> {
            Ok(Duration::ZERO)
        }
        fn resume(&mut self) -> Result<Duration, VmError> {
            Ok(Duration::ZERO)
        }
        fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
            Err(VmError::NoSuchCpu { cpu, cpus: 1 })
        }
        fn set_traps(&mut self, traps: &[Trap]) -> Result<(), VmError> {
            let refused = |trap: &&Trap| match trap {
                Trap::Write { address, .. } => Some(*address) == self.refuse,
                Trap::Execute { .. } => false,
            };
            if let Some(&trap) = traps.iter().find(refused) {
                return Err(VmError::Trap { trap, reason: "no".to_owned() });
            }
            self.set.push(traps.to_vec());
            Ok(())
        }
        fn console(&self) -> Console {
            Console::new(0)
        }
        fn take_transport(&mut self) -> Option<OwnedFd> {
            None
        }
        fn exit_watch(&self) -> ExitWatch {
            ExitWatch::default()
        }
        fn stop(&mut self) -> ExitInfo {
            let (console, engine_log) = (String::new(), String::new());
            ExitInfo { kind: ExitKind::PoweredOff, console, engine_log }
        }
    }

    #[test]
    fn a_hot_place_is_disarmed_for_the_rest_of_its_second() {
        let mut w = watch(1, 8, 3);
        // One now and then is never too much: each second is counted by itself.
        for s in 0..10 {
            w.fired(ms(s * 1000));
            w.fired(ms(s * 1000 + 500));
        }
        assert_eq!((w.due(), w.count.limited), (None, 0));
        for at in [10_000, 10_010, 10_020] {
            w.fired(ms(at));
        }
        assert_eq!((w.due(), w.count.limited), (Some(ms(11_000)), 1));
        assert_eq!(w.count(ms(10_520)).unseen, ms(500), "while it lasts, too");
        w.revive(ms(10_999));
        assert!(w.disarmed.is_some());
        w.revive(ms(11_030));
        assert_eq!((w.due(), w.count(ms(20_000)).unseen), (None, ms(1010)));
        w.fired(ms(11_040));
        assert_eq!(w.due(), None, "the next second has a share of its own");
    }

    #[test]
    fn the_engine_is_told_what_is_armed_and_only_changes() {
        let (mut engine, mut triggers) = (Fake::default(), Triggers::new(Standstill::default()));
        let write = |address| Trap::Write { address, len: 8 };
        triggers.watches = vec![watch(1, 8, 1), watch(2, 16, 1)];
        for _ in 0..2 {
            triggers.arm(&mut engine).unwrap();
        }
        triggers.watches[0].fired(ms(5));
        triggers.arm(&mut engine).unwrap();
        triggers.watches[0].revive(ms(1005));
        triggers.arm(&mut engine).unwrap();
        triggers.unwatch(WatchId(2), &mut engine).unwrap();
        let both = vec![write(8), write(16)];
        assert_eq!(engine.set, [both.clone(), vec![write(16)], both, vec![write(8)]]);
        // After a refusal nothing is set, and all is tried anew.
        engine.refuse = Some(24);
        triggers.watches.push(watch(3, 24, 1));
        assert!(triggers.arm(&mut engine).is_err() && triggers.set.is_empty());
        triggers.unwatch(WatchId(3), &mut engine).unwrap();
        assert_eq!(engine.set.last(), Some(&vec![write(8)]));
        assert_eq!(triggers.count(WatchId(3)), None);
    }

    #[test]
    fn a_fourth_watch_and_a_second_of_one_place_are_refused() {
        let mut triggers = Triggers::new(Standstill::default());
        triggers.watches = vec![watch(1, 8, 1), watch(2, 16, 1)];
        let place = |address| watch(9, address, 1).order.place;
        assert_eq!(triggers.refusal(&place(24)), None);
        assert_eq!(
            triggers.refusal(&place(16)).unwrap(),
            "x9 is watched already; stop() that watch first"
        );
        triggers.watches.push(watch(3, 24, 1));
        assert_eq!(
            triggers.refusal(&place(32)).unwrap(),
            "at most 3 places can be watched at once, and x1, x2, x3 are: stop() one before \
             watching x9"
        );
    }

    #[test]
    fn a_death_is_new_once_and_so_is_that_of_another_at_the_same_place() {
        let order = ExitOrder {
            request: CaptureRequest::default(),
            meta: Box::new(Meta::default),
            tell: Box::new(drop),
        };
        let (traps, dead, again, alive) = (Vec::new(), Vec::new(), None, None);
        let mut exits = Exits { order, traps, dead, again, alive };
        assert!(exits.is_new(8, Some(1)) && !exits.is_new(8, Some(1)));
        assert!(exits.is_new(8, Some(2)) && exits.is_new(16, Some(2)));
        let captured = (0..100).filter(|i| exits.is_new(100 + i, Some(3))).count();
        assert_eq!(captured, MOST_DEATHS - 3, "no more than can be held");
    }

    #[test]
    fn a_scheduler_is_dead_when_it_has_said_why_or_after_long() {
        let dead = |kind, told, since| is_dead(Some(Leaving { kind, told }), since);
        assert_eq!(is_dead(None, UNTOLD), None);
        assert_eq!(dead(0, false, UNTOLD), None);
        assert_eq!(dead(1024, false, ms(20)), Some(false));
        assert_eq!(dead(1024, true, ms(20)), Some(true));
        assert_eq!(dead(1024, false, UNTOLD), Some(true));
    }

    #[test]
    fn what_is_due_is_known() {
        let mut triggers = Triggers::new(Standstill::default());
        triggers.watches = vec![watch(1, 8, 1)];
        assert_eq!(triggers.due(), None);
        let now = triggers.now();
        triggers.watches[0].fired(now);
        assert!(triggers.due().is_some_and(|due| due <= SECOND));
    }
}
