//! A cell from the inside: what it is told, how it speaks, and who ends it in time.
//!
//! A cell is a process of its own that runs one scenario. It reads a [`CellSpec`] (JSON) from its
//! standard input and writes [`RunEvent`]s (JSON lines) to what was its standard output; after
//! [`Events::take_stdout`] anything else that prints goes to standard error, where it cannot
//! disturb them.
//!
//! A cell ends for one of three reasons: its script is through, its deadline has passed, or it is
//! told to end (SIGTERM). In the last two cases [`Cancel`] is raised, everything that waits gives
//! up, and the cell reports what it knows.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::BootPath;
use super::event::{RunEvent, Stage};
use super::verdict::Record;
use crate::kernel::KernelImage;
use crate::vm::Standstill;

/// The version of [`CellSpec`]; runner and cell are the same program, so this only tells a stray
/// invocation by hand.
pub const SPEC_VERSION: u32 = 1;

/// How long a cell that was told to end may take to collect its logs before it is cut short.
pub const GRACE: Duration = Duration::from_secs(5);

/// Everything a cell needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// Its number in the run.
    pub cell: usize,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The script.
    pub file: PathBuf,
    /// The scenario's place in the script.
    pub index: usize,
    /// The scenario's name, to notice a script that changed meanwhile.
    pub name: String,
    /// What the command line puts in the place of the scenario's own options.
    pub overrides: Overrides,
    /// The scenario's kernel, which the runner found already.
    pub kernel: Option<KernelImage>,
    /// The longest this may take.
    pub deadline: Duration,
    /// Where to keep the logs, when they are wanted.
    pub keep: Option<PathBuf>,
    /// The cache directory.
    pub cache: PathBuf,
    /// Directories that the cell may write below, apart from its own.
    pub writable: Vec<PathBuf>,
}

/// Options that the command line sets for all scenarios.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// `--kernel`.
    pub kernel: Option<String>,
    /// `--topology`.
    pub topology: Option<String>,
    /// `--huge-pages`.
    pub huge_pages: bool,
    /// `--pin`.
    pub pin: Option<String>,
    /// `--boot`.
    pub boot: Option<BootPath>,
    /// `--engine`, `auto` or `qemu`.
    pub engine: Option<String>,
    /// `--clang`.
    pub clang: Option<PathBuf>,
}

impl Overrides {
    /// Puts the overrides into a scenario's options.
    pub fn apply(&self, options: &mut super::ScenarioOptions) {
        if let Some(kernel) = &self.kernel {
            options.kernel.clone_from(kernel);
        }
        if let Some(topology) = &self.topology {
            options.topology.clone_from(topology);
        }
        if let Some(boot) = self.boot {
            options.boot = boot;
        }
        options.huge_pages |= self.huge_pages;
        if self.pin.is_some() {
            options.pin.clone_from(&self.pin);
        }
    }
}

impl CellSpec {
    /// All that the cell may write below: its script's directory and the current one, those for
    /// temporary files, the cache and what is kept, and what the command line adds.
    #[must_use]
    pub fn may_write(&self) -> Vec<PathBuf> {
        let here = std::env::current_dir().ok();
        let script = self.file.parent().and_then(|dir| std::path::absolute(dir).ok());
        let mut all: Vec<PathBuf> = here.into_iter().chain(script).collect();
        all.extend([std::env::temp_dir(), self.cache.clone()]);
        // What is kept has a directory of its own below the one that was asked for.
        all.extend(self.keep.as_deref().and_then(std::path::Path::parent).map(Into::into));
        all.extend(self.writable.iter().cloned());
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|dir| seen.insert(dir.clone()));
        all
    }
}

/// The largest specification that is read.
const MAX_SPEC: u64 = 1 << 20;

impl CellSpec {
    /// Reads the specification that the runner wrote.
    ///
    /// # Errors
    /// A sentence for whoever ran the hidden command by hand.
    pub fn read(from: impl Read) -> Result<CellSpec, String> {
        let mut text = String::new();
        from.take(MAX_SPEC)
            .read_to_string(&mut text)
            .map_err(|e| format!("cannot read the cell's specification: {e}"))?;
        let spec: CellSpec = serde_json::from_str(&text)
            .map_err(|e| format!("not the specification of a cell: {e}; use `cryoscope run`"))?;
        if spec.version != SPEC_VERSION {
            return Err(format!(
                "a cell's specification of version {} where {SPEC_VERSION} is spoken",
                spec.version
            ));
        }
        Ok(spec)
    }
}

/// A cell's way to speak. Clones share one stream; every event is one write.
#[derive(Clone)]
pub struct Events {
    cell: usize,
    shared: Arc<Shared>,
}

struct Shared {
    out: Mutex<Box<dyn Write + Send>>,
    now: Mutex<(Stage, String)>,
}

impl Events {
    /// Events to `out`.
    pub fn new(cell: usize, out: impl Write + Send + 'static) -> Self {
        let shared = Shared {
            out: Mutex::new(Box::new(out)),
            now: Mutex::new((Stage::Kernel, String::new())),
        };
        Events { cell, shared: Arc::new(shared) }
    }

    /// Events to standard output, which from now on is standard error for everybody else.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn take_stdout(cell: usize) -> io::Result<Self> {
        let out = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok(Events::new(cell, File::from(out)))
    }

    /// The cell's number.
    #[must_use]
    pub fn cell(&self) -> usize {
        self.cell
    }

    /// Sends an event. A runner that no longer listens is not an error: it is gone, and this
    /// process will be too.
    pub fn send(&self, event: &RunEvent) {
        let mut out = self.shared.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.write_all(event.to_line().as_bytes()).and_then(|()| out.flush());
    }

    /// Says what the cell does now.
    pub fn stage(&self, stage: Stage, detail: impl Into<String>) {
        let detail = detail.into();
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner) = (stage, detail.clone());
        self.send(&RunEvent::Stage { cell: self.cell, stage, detail });
    }

    /// What the cell does now, for people: `booting 7.2.13`.
    #[must_use]
    pub fn doing(&self) -> String {
        let now = self.shared.now.lock().unwrap_or_else(PoisonError::into_inner);
        match now.1.as_str() {
            "" => now.0.doing().into(),
            detail => format!("{} ({detail})", now.0.doing()),
        }
    }

    /// Sends what was recorded.
    pub fn record(&self, record: &Record) {
        self.send(&RunEvent::Recorded { cell: self.cell, record: record.clone() });
    }
}

/// Why a cell is to end before its script is through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its time is up.
    Deadline(Duration),
    /// Somebody said so.
    Told,
}

/// The wish that a cell ends. Clones share it.
#[derive(Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    why: Arc<Mutex<Option<Why>>>,
    bell: Arc<(Mutex<()>, Condvar)>,
    still: Standstill,
}

impl Cancel {
    /// A wish that nobody has yet.
    #[must_use]
    pub fn new() -> Self {
        Cancel::default()
    }

    /// The flag alone, for those who poll.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// Whether the cell is to end.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Why it is to end; the first reason counts.
    #[must_use]
    pub fn why(&self) -> Option<Why> {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises it and wakes who waits.
    pub fn raise(&self, why: Why) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.flag.store(true, Ordering::Relaxed);
        let _guard = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.bell.1.notify_all();
    }

    /// Takes it back, for whoever stops one thing after the other: what it was raised for has
    /// ended.
    pub fn reset(&self) {
        self.flag.store(false, Ordering::Relaxed);
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long the cell's machine has stood still, which does not count against its deadline.
    #[must_use]
    pub fn standstill(&self) -> &Standstill {
        &self.still
    }

    /// Waits until it is raised (true) or `until` has come (false).
    #[must_use]
    pub fn wait_until(&self, until: Instant) -> bool {
        self.wait(|now| until.saturating_duration_since(now))
    }

    /// Waits until it is raised (true), or the machine has run for this long (false). A machine
    /// that stands delays that, altogether by as much again at most: one that is never let go on
    /// must not keep a cell for ever.
    #[must_use]
    pub fn wait_while_it_runs(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let before = self.still.total(start);
        self.wait(|now| {
            let stood = self.still.total(now).saturating_sub(before).min(limit);
            limit.saturating_add(stood).saturating_sub(now.saturating_duration_since(start))
        })
    }

    /// Waits until it is raised (true) or nothing is left to wait (false).
    fn wait(&self, left: impl Fn(Instant) -> Duration) -> bool {
        /// As long as a clock can be asked to wait.
        const FAR: Duration = Duration::from_secs(24 * 3600);
        let mut guard = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_raised() {
            let left = left(Instant::now()).min(FAR);
            if left.is_zero() {
                return false;
            }
            let waited = self.bell.1.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Watches over a cell: raises `cancel` at its deadline, and when the cell has not ended
/// [`GRACE`] after `cancel` was raised, by whomever, calls `cut_short`, which must not return.
///
/// # Errors
/// When no thread can be had.
pub fn watch(
    cancel: &Cancel,
    deadline: Duration,
    cut_short: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let cancel = cancel.clone();
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        if !cancel.wait_while_it_runs(deadline) {
            cancel.raise(Why::Deadline(deadline));
        }
        std::thread::sleep(GRACE);
        cut_short();
    })?;
    Ok(())
}

/// Raises `cancel` on SIGTERM, the runner's way to say "end now".
///
/// # Errors
/// When the signal cannot be handled.
pub fn obey_sigterm(cancel: &Cancel) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    let cancel = cancel.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            cancel.raise(Why::Told);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ScenarioOptions;
    use super::*;
    use std::sync::mpsc;

    fn spec() -> CellSpec {
        CellSpec {
            version: SPEC_VERSION,
            cell: 3,
            attempt: 1,
            file: "a.rhai".into(),
            index: 2,
            name: "x".into(),
            overrides: Overrides { kernel: Some("host".into()), ..Overrides::default() },
            kernel: None,
            deadline: Duration::from_secs(9),
            keep: None,
            cache: "/c".into(),
            writable: Vec::new(),
        }
    }

    #[test]
    fn a_specification_is_read_as_it_was_written() {
        let json = serde_json::to_string(&spec()).unwrap();
        assert_eq!(CellSpec::read(json.as_bytes()), Ok(spec()));
        let other = json.replacen("\"version\":1", "\"version\":7", 1);
        let error = CellSpec::read(other.as_bytes()).unwrap_err();
        assert_eq!(error, "a cell's specification of version 7 where 1 is spoken");
        let error = CellSpec::read(&b"hello"[..]).unwrap_err();
        assert!(error.starts_with("not the specification of a cell: "), "{error}");
        assert!(error.ends_with("; use `cryoscope run`"), "{error}");
    }

    #[test]
    fn overrides_replace_only_what_they_name() {
        let mut options = ScenarioOptions::default();
        let before = options.clone();
        Overrides::default().apply(&mut options);
        assert_eq!(options, before);
        let overrides = Overrides {
            kernel: Some("debian:7.3".into()),
            topology: Some("1n2l2c1t".into()),
            huge_pages: true,
            pin: Some("0-3".into()),
            boot: Some(BootPath::BzImage),
            engine: None,
            clang: None,
        };
        overrides.apply(&mut options);
        assert_eq!(options.kernel, "debian:7.3");
        assert_eq!(options.topology, "1n2l2c1t");
        assert_eq!((options.huge_pages, options.pin.as_deref()), (true, Some("0-3")));
        assert_eq!(options.boot, BootPath::BzImage);
        assert_eq!(options.memory, before.memory);
    }

    #[test]
    fn the_first_reason_to_end_stays_and_wakes_who_waits() {
        let cancel = Cancel::new();
        assert!(!cancel.wait_until(Instant::now() + Duration::from_millis(5)));
        let waiter = cancel.clone();
        let waiting =
            std::thread::spawn(move || waiter.wait_until(Instant::now() + Duration::from_secs(60)));
        cancel.raise(Why::Told);
        cancel.raise(Why::Deadline(Duration::ZERO));
        assert!(waiting.join().unwrap());
        assert_eq!(cancel.why(), Some(Why::Told));
        assert!(cancel.flag().load(Ordering::Relaxed));
        cancel.reset();
        assert_eq!((cancel.is_raised(), cancel.why()), (false, None));
        cancel.raise(Why::Deadline(Duration::ZERO));
        assert_eq!(cancel.why(), Some(Why::Deadline(Duration::ZERO)));
    }

    #[test]
    fn a_machine_that_stands_delays_the_deadline_by_as_much_again_at_most() {
        let cancel = Cancel::new();
        let start = Instant::now();
        let limit = Duration::from_millis(40);
        cancel.standstill().begin(start);
        cancel.standstill().end(start + Duration::from_secs(3600), None);
        // What was before does not count.
        cancel.standstill().begin(start + Duration::from_millis(1));
        assert!(!cancel.wait_while_it_runs(limit));
        assert!(start.elapsed() >= limit * 2, "{:?}", start.elapsed());
        cancel.standstill().never_mind();
        assert!(!cancel.wait_while_it_runs(limit), "and one that runs ends in time");
        cancel.raise(Why::Told);
        assert!(cancel.wait_while_it_runs(Duration::MAX));
    }

    #[test]
    fn a_deadline_raises_the_wish_to_end() {
        let cancel = Cancel::new();
        let (cut, was_cut) = mpsc::channel();
        watch(&cancel, Duration::from_millis(20), move || cut.send(()).unwrap()).unwrap();
        assert!(cancel.wait_until(Instant::now() + Duration::from_secs(60)));
        assert_eq!(cancel.why(), Some(Why::Deadline(Duration::from_millis(20))));
        assert!(was_cut.try_recv().is_err(), "there is time to collect the logs");
        was_cut.recv_timeout(GRACE * 4).expect("and then it is cut short");
    }

    #[test]
    fn events_are_lines_and_tell_what_is_done() {
        #[derive(Clone, Default)]
        struct Buf(Arc<Mutex<Vec<u8>>>);
        impl Write for Buf {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let buf = Buf::default();
        let events = Events::new(4, buf.clone());
        assert_eq!(events.doing(), "finding the kernel");
        events.stage(Stage::Boot, "7.2.13");
        assert_eq!(events.doing(), "booting (7.2.13)");
        let text = String::from_utf8(buf.0.lock().unwrap().clone()).unwrap();
        let stage = RunEvent::Stage { cell: 4, stage: Stage::Boot, detail: "7.2.13".into() };
        assert_eq!(RunEvent::from_line(&text), Ok(stage));
    }
}
