//! However a run ends, nothing of it is left: no process, no socket, no temporary file, no
//! half-written cache entry, no half-written event.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cryoscope::kernel::{CacheDir, progress::Silent, resolve};
use cryoscope::scenario::event::RunEvent;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};

use place::{Place, Said, alone, project};

mod place;

/// How long what dies with its parent may take to be gone.
const SOON: Duration = Duration::from_secs(10);

/// Orphans of whatever we start become our own children, so that none can hide.
fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(getpid())).unwrap();
}

/// The processes below this one, with their command lines.
fn descendants() -> Vec<(i32, String)> {
    let mut all: Vec<(i32, i32, String)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|p| p.parse().ok()));
        // A zombie has let go of everything but its number.
        let (Some(parent), false) = (parent, state == Some("Z")) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        all.push((pid, parent, command));
    }
    let mut family = BTreeSet::from([getpid().as_raw_nonzero().get()]);
    while let Some((pid, ..)) =
        all.iter().find(|(pid, parent, _)| family.contains(parent) && !family.contains(pid))
    {
        family.insert(*pid);
    }
    let me = getpid().as_raw_nonzero().get();
    all.retain(|(pid, ..)| family.contains(pid) && *pid != me);
    all.into_iter().map(|(pid, _, command)| (pid, command)).collect()
}

/// Waits until no process is left below this one.
fn assert_nobody_left(after: &str) {
    let until = Instant::now() + SOON;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = descendants();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{after}: still there after {SOON:?}: {left:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything below a directory.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        } else {
            all.insert(entry.path());
        }
    }
    all
}

/// What a run could leave outside of its own directories: named sockets and shared memory.
fn traces() -> BTreeSet<String> {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let sockets = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    let shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let shared = shared.map(|entry| entry.path().display().to_string());
    let ours = |name: &String| name.contains("cryoscope") || name.contains("qemu");
    sockets.map(str::to_string).chain(shared).filter(ours).collect()
}

/// A place with one scenario that uses everything: it unpacks a kernel, compiles a scheduler,
/// boots, attaches, freezes.
struct Bench {
    place: Place,
    kernel: PathBuf,
    traces: BTreeSet<String>,
}

impl Bench {
    fn new() -> Self {
        let var = |name| std::env::var_os(name);
        let cache = CacheDir::locate(var("XDG_CACHE_HOME"), var("HOME")).unwrap();
        let kernel = resolve("auto", &cache, &Silent).unwrap().bzimage().unwrap().to_owned();
        let place = Place::with_own_cache();
        let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
        place.file(
            "all.rhai",
            format!(
                r#"for name in ["first", "second"] {{
    scenario(name, #{{ scheduler: "{fifo}", topology: "1n1l1c1t" }}, |t| {{
        t.start(#{{ work: "spin", count: 2 }});
        t.hold("300ms");
        expect(t.freeze("a").global("nr_running")).gt(0);
    }});
}}
"#
            ),
        );
        fs::create_dir(place.path().join("tmp")).unwrap();
        Bench { place, kernel, traces: traces() }
    }

    fn start(&self) -> Child {
        // Not those of an earlier run.
        let _ = fs::remove_file(self.place.path().join("events.jsonl"));
        let kernel = self.kernel.display().to_string();
        let args = ["run", "all.rhai", "-j", "2", "--json", "events.jsonl", "--kernel", &kernel];
        let mut command = self.place.command(&args);
        command.env("TMPDIR", self.place.path().join("tmp"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Nothing is left, and what is there is whole. Gives the events that were written.
    fn assert_clean(&self, after: &str) -> Vec<RunEvent> {
        assert_nobody_left(after);
        let new: Vec<_> = traces().difference(&self.traces).cloned().collect();
        assert!(new.is_empty(), "{after}: {new:?}");
        let tmp = tree(&self.place.path().join("tmp"));
        assert!(tmp.is_empty(), "{after}: {tmp:?}");
        for path in tree(&self.place.path().join(".cache")) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let whole =
                !name.starts_with('.') && !name.contains("tmp") && !name.contains("partial");
            assert!(whole, "{after}: {}", path.display());
        }
        let path = self.place.path().join("events.jsonl");
        let text = fs::read_to_string(path).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'), "{after}: half a line: {text:?}");
        let event = |line| RunEvent::from_line(line).unwrap_or_else(|e| panic!("{after}: {e}"));
        text.lines().map(event).collect()
    }
}

/// A small generator of moments; its seed is printed so that a failure can be had again.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        below.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[test]
fn a_killed_run_leaves_nothing() {
    let _alone = alone();
    adopt_orphans();
    let bench = Bench::new();
    let started = Instant::now();
    let whole = Said::from(bench.start().wait_with_output().unwrap());
    let took = started.elapsed();
    assert_eq!(whole.code, Some(0), "{whole:?}");
    bench.assert_clean("a whole run");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut moments = Moments(now.as_nanos() as u64 | 1);
    println!("a run takes {took:?}; seed {}", moments.0);
    for number in 1..=20 {
        if number <= 5 {
            // Unpacking and compiling are killed too.
            fs::remove_dir_all(bench.place.path().join(".cache")).unwrap();
            fs::create_dir(bench.place.path().join(".cache")).unwrap();
        }
        let moment = moments.next(took);
        let mut run = bench.start();
        std::thread::sleep(moment);
        run.kill().unwrap();
        run.wait().unwrap();
        let events = bench.assert_clean(&format!("kill {number} after {moment:?}"));
        println!("kill {number} after {moment:?}: {} events", events.len());
    }
    // What the killed ones left in the cache can be used.
    let again = Said::from(bench.start().wait_with_output().unwrap());
    assert_eq!(again.code, Some(0), "{again:?}");
}

#[test]
fn an_interrupted_run_ends_in_order() {
    let _alone = alone();
    adopt_orphans();
    let bench = Bench::new();
    for (signal, times) in [(Signal::INT, 1), (Signal::TERM, 1), (Signal::INT, 2)] {
        let mut run = bench.start();
        let pid = Pid::from_child(&run);
        // Into the boots of both machines.
        let mut out = run.stdout.take().unwrap();
        wait_for_boots(&bench);
        for _ in 0..times {
            kill_process(pid, signal).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        let asked = Instant::now();
        let status = run.wait().unwrap();
        let after = format!("{signal:?}, {times} times");
        assert_eq!(status.code(), Some(130), "{after}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{after}: {:?}", asked.elapsed());
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert!(text.contains("interrupted: 2 in error in "), "{after}: {text}");
        let events = bench.assert_clean(&after);
        let end = events.last();
        assert!(
            matches!(end, Some(RunEvent::RunFinished { interrupted: true, exit_code: 130, .. })),
            "{after}: {end:?}"
        );
    }
}

/// Waits until both cells say that they boot.
fn wait_for_boots(bench: &Bench) {
    let path = bench.place.path().join("events.jsonl");
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.matches("\"stage\":\"boot\"").count() >= 2 {
            return;
        }
        assert!(Instant::now() < until, "no boot: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
