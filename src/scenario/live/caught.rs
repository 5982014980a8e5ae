//! What a machine captures unasked: the writes to watched places, and what a scheduler leaves
//! behind. It is caught on the coordinator's thread and taken over when the laboratory next looks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::clock::Clock;
use crate::freeze::{ExitOrder, MetaNow, Tell, WatchId};
use crate::snapshot::{CaptureRequest, Exit, Meta, Sched, Snapshot, Trigger};

/// Bytes of snapshots that wait to be taken over.
const WAITING: u64 = 256 << 20;
/// Snapshots that wait to be taken over.
const MOST_WAITING: usize = 1000;
/// Globals of a dead scheduler that are told.
const VALUES: usize = 8;
/// Characters of a value that is told.
const VALUE: usize = 60;
/// The name of the snapshot of a scheduler's death.
pub(super) const EXIT_TAG: &str = "error exit";

/// For whom a snapshot was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A watch, by our own number of it.
    Watch(u64),
    Exit,
}

/// A snapshot that was caught.
pub(super) type Caught = (For, Arc<Snapshot>);

/// What waits to be taken over; clones share it.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    caught: Vec<Caught>,
    bytes: u64,
    /// How many found no room.
    lost: u64,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What puts snapshots in here.
    pub(super) fn tell(&self, to: For) -> Tell {
        let inbox = self.clone();
        Box::new(move |snapshot| inbox.put(to, snapshot))
    }

    fn put(&self, to: For, snapshot: Arc<Snapshot>) {
        let mut waiting = self.lock();
        // A scheduler dies once: that always finds room.
        let full = waiting.caught.len() >= MOST_WAITING || waiting.bytes >= WAITING;
        if full && to != For::Exit {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += snapshot.bytes();
        waiting.caught.push((to, snapshot));
    }

    /// All that waits, and how many snapshots found no room.
    pub(super) fn take(&self) -> (Vec<Caught>, u64) {
        let Waiting { caught, lost, .. } = std::mem::take(&mut *self.lock());
        (caught, lost)
    }
}

/// A step of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StepNow {
    name: Option<String>,
    index: u64,
}

impl StepNow {
    /// What a snapshot that is taken now, in this step, says of itself.
    pub(super) fn meta(self, tag: String, clock: &Clock) -> Meta {
        let meta = Meta { tag, phase: self.name, step_index: self.index, ..Meta::default() };
        meta.at(clock.elapsed(Instant::now()))
    }
}

/// The phase of a scenario; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<Mutex<StepNow>>);

impl Phase {
    fn lock(&self) -> MutexGuard<'_, StepNow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> StepNow {
        self.lock().clone()
    }

    /// Goes on to the next step.
    pub(super) fn set(&self, name: &str) {
        let mut now = self.lock();
        *now = StepNow { name: Some(name.to_owned()), index: now.index.saturating_add(1) };
    }
}

/// When and in which phase something is caught.
pub(super) fn meta_now(tag: &str, clock: &Clock, phase: &Phase) -> MetaNow {
    let (tag, clock, phase) = (tag.to_owned(), clock.clone(), phase.clone());
    Box::new(move || phase.get().meta(tag.clone(), &clock))
}

/// What is captured of a scheduler that dies: all, and the registers of the CPUs.
pub(super) fn exit_order(clock: &Clock, phase: &Phase, inbox: &Inbox) -> ExitOrder {
    ExitOrder {
        request: CaptureRequest { registers: true, ..CaptureRequest::default() },
        meta: meta_now(EXIT_TAG, clock, phase),
        tell: inbox.tell(For::Exit),
    }
}

/// The watches of a laboratory.
#[derive(Default)]
pub(super) struct Watches {
    next: u64,
    pub(super) all: BTreeMap<u64, Watched>,
}

/// A watch and what came of it.
#[derive(Default)]
pub(super) struct Watched {
    /// The machine's own number, while it lasts.
    pub(super) live: Option<WatchId>,
    pub(super) name: String,
    pub(super) fires: Vec<Arc<Snapshot>>,
    /// What became of it, once it has ended.
    pub(super) ended: crate::freeze::WatchCount,
}

impl Watches {
    /// A number that none has had.
    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A scheduler that has left, as the snapshot of that instant shows it.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) exit: Option<Exit>,
    root: bool,
}

impl Death {
    /// Finds the scheduler that is leaving.
    pub(super) fn of(snapshot: Arc<Snapshot>) -> Death {
        let scheds = snapshot.scheds().unwrap_or_default();
        let leaving = |sched: &Sched| Some((sched.exit().ok()??, sched.is_root().unwrap_or(true)));
        // A sub-scheduler goes with the one above it: that one is the cause.
        let mut found: Vec<(Exit, bool)> = scheds.iter().filter_map(leaving).collect();
        found.sort_by_key(|(_, root)| !root);
        let first = found.into_iter().next();
        let root = first.as_ref().is_none_or(|(_, root)| *root);
        Death { exit: first.map(|(exit, _)| exit), root, snapshot }
    }

    /// Whether it was the root scheduler.
    pub(super) fn is_root(&self) -> bool {
        self.root
    }

    /// What is worth saying about it, a line each.
    pub(super) fn told(&self) -> String {
        let mut out = String::new();
        if let Some(exit) = &self.exit {
            let _ = write!(out, "exit: {} ({})", exit.kind, exit.reason);
            if !exit.message.is_empty() {
                let _ = write!(out, ": {}", exit.message);
            }
            out.push('\n');
        }
        if let Some(text) = self.snapshot.trigger().told() {
            let _ = writeln!(out, "captured because of {text}{}", self.running());
        }
        let values = self.values();
        if !values.is_empty() {
            let _ = writeln!(out, "globals then: {}", values.join(", "));
        }
        let _ = write!(out, "all of it: snapshot {EXIT_TAG:?}");
        out
    }

    /// What ran on the CPU where it was trapped.
    fn running(&self) -> String {
        let Trigger::ErrorExit { cpu: Some(cpu), .. } = self.snapshot.trigger() else {
            return String::new();
        };
        let task = self.snapshot.cpu(i64::from(*cpu)).and_then(|cpu| cpu.curr());
        task.map_or_else(|_| String::new(), |task| format!(", which ran {}", task.headline()))
    }

    /// The scheduler's first numbers.
    fn values(&self) -> Vec<String> {
        let maps = self.snapshot.maps().unwrap_or_default();
        let live = self.snapshot.active().and_then(|sched| sched.maps());
        let names: Vec<u32> = live.unwrap_or_default().iter().map(|map| map.attrs().id).collect();
        let sections = maps.iter().filter(|map| {
            let bss = map.attrs().section.as_deref() == Some(".bss");
            bss && (names.is_empty() || names.contains(&map.attrs().id))
        });
        let mut out = Vec::new();
        for section in sections {
            let Some(value) = section.known_entries().next().and_then(|e| e.value().ok()) else {
                continue;
            };
            for name in value.members().unwrap_or_default() {
                let leaf = value.get(&name).and_then(|field| field.leaf());
                if let Ok(Some(leaf)) = leaf {
                    let text: String = format!("{name} = {leaf}").chars().take(VALUE).collect();
                    out.push(text);
                }
                if out.len() == VALUES {
                    out.push("..".to_owned());
                    return out;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Standstill;

    fn snapshot(bytes: u64) -> Arc<Snapshot> {
        Snapshot::new(Meta { bytes, ..Meta::default() }, Vec::new(), Vec::new())
    }

    #[test]
    fn what_waits_is_bounded_but_a_death_finds_room() {
        let inbox = Inbox::default();
        let mut tell = inbox.tell(For::Watch(7));
        (0..3).for_each(|_| tell(snapshot(WAITING / 2)));
        inbox.tell(For::Exit)(snapshot(1));
        let (caught, lost) = inbox.take();
        let kinds: Vec<For> = caught.iter().map(|(to, _)| *to).collect();
        assert_eq!((kinds, lost), (vec![For::Watch(7), For::Watch(7), For::Exit], 1));
        assert!(inbox.take().0.is_empty() && inbox.take().1 == 0, "it is told once");
        (0..MOST_WAITING + 5).for_each(|_| tell(snapshot(1)));
        let (caught, lost) = inbox.take();
        assert_eq!((caught.len(), lost), (MOST_WAITING, 5));
    }

    #[test]
    fn what_is_caught_carries_the_phase_of_that_moment() {
        let clock = Clock::starting(Instant::now(), Standstill::default());
        let phase = Phase::default();
        let meta = meta_now("error exit", &clock, &phase);
        assert_eq!((meta().tag.as_str(), meta().phase), ("error exit", None));
        phase.clone().set("wide");
        assert_eq!(meta().phase.as_deref(), Some("wide"));
    }

    #[test]
    fn a_death_of_which_little_is_known_says_what_is() {
        let trigger = Trigger::ErrorExit { cpu: None, function: None, late_us: Some(900) };
        let meta = Meta { trigger, ..Meta::default() };
        let death = Death::of(Snapshot::placeholder(meta, "it did not stop"));
        assert!(death.is_root() && death.exit.is_none());
        assert_eq!(
            death.told(),
            "captured because of a scheduler's exit, seen by polling at most 900 us late\nall of \
             it: snapshot \"error exit\""
        );
    }
}
