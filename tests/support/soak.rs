//! Many freezes of one machine whose programs watch the clock: the same body for every engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cryoscope::freeze::Bridge;
use cryoscope::snapshot::{CaptureRequest, Meta, Pause};
use cryoscope::vm::channel::Channel;
use cryoscope::vm::{self, EngineChoice, ExitKind, RENDEZVOUS, Standstill, VmSpec};
use cryoscope::wire::{Answer, Exec, Op, Work, WorkKind};

/// How long the machine is paused by hand, once.
const BY_HAND: Duration = Duration::from_secs(8);
/// The longest time for which a busy host may keep a program of the guest from running. A machine
/// that did not hide [`BY_HAND`] would show more.
const STARVED: Duration = Duration::from_secs(6);
/// How long one look at the clocks takes.
const LOOK: &str = "2";

/// What a CPU's clock looked like to a program, in microseconds but for one.
#[derive(Debug)]
struct Ticks {
    first: u64,
    last: u64,
    readings: u64,
    backwards: u64,
    behind_ns: u64,
    longest: u64,
}

fn ticks(line: &str) -> Ticks {
    let of = |name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("{name} in {line:?}"))
    };
    let number = |name| of(name).parse().unwrap_or_else(|e| panic!("{name} in {line:?}: {e}"));
    let longest = of("gaps").split('@').next().and_then(|gap| gap.parse().ok());
    Ticks {
        first: number("first"),
        last: number("last"),
        readings: number("readings"),
        backwards: number("backwards"),
        behind_ns: number("behind_ns"),
        longest: longest.unwrap_or_else(|| panic!("a gap in {line:?}")),
    }
}

/// A machine under test.
pub struct Soak<'a> {
    pub bridge: &'a Bridge,
    pub channel: &'a Channel,
    pub cpus: u32,
    /// How long a call may take.
    pub call: Duration,
}

/// What many freezes took, for people.
#[derive(Default)]
struct Sums {
    pauses: Vec<Pause>,
    hidden: Duration,
}

/// Boots a machine of an engine that can hold a CPU back, freezes it a thousand times, and then
/// fifty times with a CPU held back.
pub fn on(spec: &VmSpec, choice: EngineChoice, call: Duration) {
    let mut engine = vm::start(spec, choice).unwrap_or_else(|e| panic!("{e}"));
    let (watch, console) = (engine.exit_watch(), engine.console());
    let transport = engine.take_transport().expect("a transport");
    let channel = Channel::new(transport, Some(watch.clone())).expect("a channel");
    channel.hello(call * 3).unwrap_or_else(|e| panic!("{e}\n{}", console.tail(60)));
    let bridge = Bridge::start(engine, Standstill::default(), RENDEZVOUS).expect("a thread");
    let soak = Soak { bridge: &bridge, channel: &channel, cpus: spec.topology.cpus(), call };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        soak.held_back(50);
        soak.freezes(1000);
    }));
    if let Err(panic) = done {
        eprintln!("--- frames\n{}", channel.trace().join("\n"));
        eprintln!("--- console\n{}", console.tail(60));
        eprintln!("--- machine: {:?}", bridge.exited());
        std::panic::resume_unwind(panic);
    }
    drop(bridge);
    let kind = watch.get().map(|info| info.kind);
    assert_eq!(kind, Some(ExitKind::Stopped), "it ends with its last handle");
}

impl Soak<'_> {
    /// Freezes `count` times in a row, asked for by two callers at once, while workers run and
    /// programs watch the clocks, and pauses once by hand for longer. Nothing is lost or wedged,
    /// and the clocks show no more of it than the snapshots say.
    pub fn freezes(&self, count: u32) {
        let spin = Work {
            kind: WorkKind::Spin,
            count: self.cpus,
            cgroup: None,
            policy: None,
            nice: None,
            affinity: None,
            period_us: None,
        };
        let sleep = Work { kind: WorkKind::Sleep, count: 2, ..spin.clone() };
        for work in [spin, sleep] {
            assert!(matches!(self.ask(Op::Start(work)), Answer::Workers(_)));
        }
        let prepared = self.bridge.prepare(&CaptureRequest::default());
        prepared.unwrap_or_else(|e| panic!("{e}"));
        let (before, stood) = (self.now(), self.bridge.standstill().total(Instant::now()));
        let done = AtomicBool::new(false);
        let (sums, seen) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch_clocks(&done));
            let half = count / 2;
            let other = scope.spawn(move || self.freeze(half));
            let mut sums = self.freeze(count - half);
            let more = other.join().expect("all freezes of the second caller");
            sums.pauses.extend(more.pauses);
            sums.hidden += more.hidden + self.pause_by_hand();
            done.store(true, Ordering::Release);
            (sums, watcher.join().expect("the clocks are well"))
        });
        let (after, stands) = (self.now(), self.bridge.standstill().total(Instant::now()));
        self.judge(&sums, &seen);
        let stopped = stands - stood;
        let guest = Duration::from_micros(after.guest - before.guest);
        let (longest, shortest) = (after.end - before.begin, after.begin - before.end);
        let tolerance = longest / 100 + Duration::from_millis(50);
        println!(
            "{count} freezes: the guest's clock went {guest:?} of {shortest:?} to {longest:?}, the \
             machine stood {stopped:?}, hidden were {:?}",
            sums.hidden
        );
        assert!(guest <= longest - sums.hidden + tolerance, "what is said to be hidden is");
        assert!(guest + tolerance >= shortest.saturating_sub(stopped), "and no more than it stood");
    }

    fn freeze(&self, count: u32) -> Sums {
        let mut sums = Sums::default();
        for i in 0..count {
            let meta = move || Meta { tag: format!("t{i}"), ..Meta::default() };
            let snap = self.bridge.freeze(&CaptureRequest::default(), None, meta);
            let snap = snap.unwrap_or_else(|e| panic!("freeze {i}: {e}"));
            assert_eq!((snap.placeholder_reason(), snap.tag()), (None, &*format!("t{i}")));
            let tasks = snap.tasks().unwrap_or_else(|e| panic!("freeze {i}: {e}"));
            assert!(tasks.len() > 20, "freeze {i} has the tasks: {tasks:?}");
            let pause = snap.pause();
            let hidden = pause.hidden_us.expect("both engines hide pauses");
            assert!(hidden <= pause.total_us, "{pause:?}");
            sums.hidden += Duration::from_micros(hidden);
            sums.pauses.push(pause);
        }
        sums
    }

    /// Gives how much the guest does not see of it.
    fn pause_by_hand(&self) -> Duration {
        self.bridge.pause().unwrap_or_else(|e| panic!("{e}"));
        let deadline = Instant::now() + BY_HAND;
        let freeze = || self.bridge.freeze(&CaptureRequest::default(), None, Meta::default);
        let first = freeze().unwrap_or_else(|e| panic!("{e}"));
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        let last = freeze().unwrap_or_else(|e| panic!("{e}"));
        let changes = first.diff(&last, true).unwrap_or_else(|e| panic!("{e}"));
        assert!(changes.changes.is_empty(), "it stands: {:?}", changes.changes);
        let hidden = self.bridge.resume().unwrap_or_else(|e| panic!("{e}"));
        let hidden = hidden.expect("both engines hide pauses");
        assert!(hidden >= BY_HAND, "{hidden:?}");
        hidden
    }

    /// What programs see of the clocks until it is `done`.
    fn watch_clocks(&self, done: &AtomicBool) -> Vec<Ticks> {
        let mut seen = Vec::new();
        let mut last = false;
        while !last {
            // Once more afterwards: what the last pause has left is seen then.
            last = done.load(Ordering::Acquire);
            seen.extend(self.exec(&["ticks", LOOK]).lines().map(ticks));
        }
        seen
    }

    fn judge(&self, sums: &Sums, seen: &[Ticks]) {
        let of = |part: fn(&Pause) -> u64| {
            let mut all: Vec<u64> = sums.pauses.iter().map(part).collect();
            all.sort_unstable();
            let (half, nine) = (all[all.len() / 2], all[all.len() * 9 / 10]);
            format!("{half} / {nine} / {} us", all[all.len() - 1])
        };
        println!("p50 / p90 / max: total {}", of(|p| p.total_us));
        println!("stop {}, copy {}", of(|p| p.stop_us), of(|p| p.copy_us));
        println!("shown {}", of(|p| p.total_us - p.hidden_us.unwrap_or(0)));
        println!("skew {}", of(|p| p.skew_us.unwrap_or(0)));
        let shown = sums.pauses.iter().map(|p| p.total_us - p.hidden_us.unwrap_or(0)).max();
        let most = Duration::from_micros(shown.unwrap_or(0)) + STARVED;
        let longest = seen.iter().map(|ticks| ticks.longest).max().unwrap_or(0);
        println!("{} looks at clocks, longest gap {longest} us", seen.len());
        assert!(seen.len() >= self.cpus as usize, "every CPU was looked at: {seen:?}");
        for ticks in seen {
            assert!(ticks.readings > 1 && ticks.last > ticks.first, "{ticks:?}");
            assert_eq!(ticks.backwards, 0, "{ticks:?}");
            assert!(u128::from(ticks.longest) < most.as_micros(), "{ticks:?}, at most {most:?}");
        }
    }

    /// Holds a CPU back for each second of `count` freezes: placeholders come exactly then. Only
    /// for engines that can.
    pub fn held_back(&self, count: u32) {
        let late = self.cpus - 1;
        let set = |cpu: Option<u32>, patience: Duration| {
            let told = self.bridge.ask("a test", move |freezer| {
                freezer.set_patience(patience);
                freezer.engine_mut().hold_back(cpu)
            });
            told.and_then(|told| Ok(told?)).unwrap_or_else(|e| panic!("{e}"));
        };
        for i in 0..count * 2 {
            let held = i % 2 == 0;
            match held {
                true => set(Some(late), Duration::from_millis(50)),
                false => set(None, RENDEZVOUS),
            }
            let snap = self.bridge.freeze(&CaptureRequest::default(), None, Meta::default);
            let snap = snap.unwrap_or_else(|e| panic!("freeze {i}: {e}"));
            assert_eq!(snap.is_placeholder(), held, "{i}: {:?}", snap.placeholder_reason());
            if let Some(reason) = snap.placeholder_reason() {
                let says = format!("CPU {late} did not come (it was called out of the guest, and");
                assert!(reason.contains(&says), "{reason}");
                assert!(reason.contains("last seen at ") && !reason.contains("CPU 0"), "{reason}");
                if i == 0 {
                    println!("placeholder: {reason}");
                }
            }
        }
        assert!(matches!(self.ask(Op::SchedulerState), Answer::Scheduler(_)), "it goes on");
    }

    /// The guest's clock, and the host's before and after it was asked.
    fn now(&self) -> Reading {
        let begin = Instant::now();
        let guest = ticks(self.exec(&["ticks", "0"]).lines().next().expect("a CPU")).last;
        Reading { begin, guest, end: Instant::now() }
    }

    fn exec(&self, argv: &[&str]) -> String {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let timeout_ms = self.call.as_millis() as u64;
        match self.ask(Op::Exec { argv, timeout_ms }) {
            Answer::Exec(Exec { code: Some(0), stdout, .. }) => stdout,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, op: Op) -> Answer {
        self.channel.call(op, self.call + BY_HAND).unwrap_or_else(|e| panic!("{e}"))
    }
}

struct Reading {
    begin: Instant,
    /// Microseconds.
    guest: u64,
    end: Instant,
}
