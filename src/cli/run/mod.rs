//! `cryoscope run`: scripts in, a report and an exit code out.

mod files;
mod last;
mod plan;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use clap::Args as ClapArgs;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{Config, Failure, print, say};
use crate::kernel::{CacheDir, KernelImage, Spec, progress::Printed, resolve};
use crate::scenario::cell::{CellSpec, Overrides, SPEC_VERSION};
use crate::scenario::event::CellInfo;
use crate::scenario::process::{Program, Stop};
use crate::scenario::report::{
    Fan, Github, Html, JsonLines, Junit, Keep, Terminal, Trouble, cell_dir,
};
use crate::scenario::runner::{Planned, Run, default_jobs};
use crate::scenario::verdict::plural;
use crate::scenario::{BootPath, ScenarioDecl};
use crate::script;
use crate::vm::EngineChoice;
use crate::vm::topology::{CpuSet, Topology};
use crate::words::plain;
use last::LastRun;
use watch::Watched;

/// Run scenarios: each boots a machine of its own
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Scripts, and directories that are searched for *.rhai
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Show what would run, and where it stands
    #[arg(long)]
    list: bool,
    /// Only scenarios with this text in their name, or with this tag
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many to run at the same time [default: what cores and memory allow]
    #[arg(short, long, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// What the machines run on
    #[arg(long, value_name = "ENGINE", value_parser = EngineChoice::NAMES, default_value = "auto")]
    engine: String,
    /// Boot this kernel: auto, host, debian:SERIES, or a vmlinuz, vmlinux or build tree
    #[arg(long, value_name = "SPEC")]
    kernel: Option<String>,
    /// How to boot it: the unpacked ELF starts sooner, the bzImage has KASLR
    #[arg(long, value_name = "HOW", value_parser = BootPath::NAMES)]
    boot: Option<String>,
    /// Nodes, LLCs, cores per LLC and threads per core, as in 1n2l2c1t
    #[arg(long, value_name = "TOPOLOGY", value_parser = topology)]
    topology: Option<String>,
    /// Make RAM of the host's huge pages, of which enough must be reserved
    #[arg(long)]
    huge_pages: bool,
    /// Bind the machine's CPUs to these of the host, one each, as in 2-5 (engine kvm)
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    pin: Option<String>,
    /// Compile schedulers with this [default: the newest clang on the search path]
    #[arg(long, value_name = "PROGRAM")]
    clang: Option<PathBuf>,
    /// Write every event as a line of JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep console, logs and events of every scenario here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write a page of HTML about the run, DIR/index.html
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Write JUnit XML, as CI services read it
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Run what fails or cannot be judged again, so often, and mark what passed only then
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: u32,
    /// Run part K of N of the scenarios, as in 2/4: even parts, chosen by the names of script and scenario
    #[arg(long, value_name = "K/N", value_parser = shard)]
    shard: Option<Shard>,
    /// Run again whenever a script, a module or a scheduler's source changes, until Ctrl-C
    #[arg(short, long, conflicts_with = "list")]
    watch: bool,
    /// Only what did not succeed when it last ran; everything, where nothing is known
    #[arg(long)]
    last_failed: bool,
    /// Let scenarios write below this directory too, beside those of script, cache and temporary files
    #[arg(long, value_name = "DIR")]
    writable: Vec<PathBuf>,
    /// Let a skipped scenario fail the run
    #[arg(long)]
    no_skips: bool,
}

/// More machines at a time than this are a slip of the finger.
const MAX_JOBS: usize = 256;

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_JOBS) => Ok(n),
        _ => Err(format!("give a number from 1 to {MAX_JOBS}")),
    }
}

/// A part of all scenarios: which, from 1, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    part: usize,
    of: usize,
}

fn shard(text: &str) -> Result<Shard, String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    match numbers {
        Some((part, of)) if 1 <= part && part <= of => Ok(Shard { part, of }),
        _ => Err("give K/N with K from 1 to N, as in 2/4".to_owned()),
    }
}

fn cpus(text: &str) -> Result<String, String> {
    text.parse::<CpuSet>().map(|_| text.to_string()).map_err(|e| e.to_string())
}

pub(super) fn topology(text: &str) -> Result<String, String> {
    Topology::parse(text).map(|_| text.to_string()).map_err(|e| e.to_string())
}

pub(super) fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let interrupts = Interrupts::watch()?;
    if !args.watch {
        let decls = collect(args)?;
        return once(args, config, &interrupts, decls);
    }
    loop {
        let (code, decls) = match collect(args) {
            Ok(decls) => (once(args, config, &interrupts, decls.clone()), decls),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let code = code.unwrap_or_else(|failure| {
            say(&format!("error: {}\n", failure.message));
            failure.code
        });
        if interrupts.stop.is_asked() {
            return Ok(code);
        }
        let look = || Watched::now(&args.paths, &decls);
        let watched = look();
        say(&format!("watching {}; Ctrl-C ends\n", plural(watched.len() as u64, "file")));
        interrupts.wait_with(code);
        let changed = watched.wait(look);
        interrupts.wait_with(INTERRUPTED);
        say(&format!("\n{} has changed\n", changed.display()));
    }
}

/// All that the scripts declare.
fn collect(args: &Args) -> Result<Vec<ScenarioDecl>, Failure> {
    let scripts = files::find(&args.paths)?;
    plan::collect(&scripts, &|path| script::collect(path).map_err(|e| e.to_string()))
}

/// Runs what is wanted of that.
fn once(
    args: &Args,
    config: &Config,
    interrupts: &Interrupts,
    decls: Vec<ScenarioDecl>,
) -> Result<u8, Failure> {
    let overrides = Overrides {
        kernel: args.kernel.clone(),
        topology: args.topology.clone(),
        huge_pages: args.huge_pages,
        pin: args.pin.clone(),
        boot: args.boot.as_deref().and_then(BootPath::parse),
        engine: Some(args.engine.clone()),
        clang: args.clang.clone(),
    };
    let (decls, declared) = plan::overridden(decls, &overrides);
    // First the part, which is the same on every machine, and then what is known on this one.
    let decls = plan::part(plan::select(decls, args.filter.as_deref())?, args.shard);
    let memory = config.cache().ok().map(|cache| LastRun::new(cache.path()));
    let decls = match &memory {
        Some(memory) if args.last_failed => memory.failed(decls),
        _ => decls,
    };
    if decls.is_empty() {
        say("cryoscope: this part of the scenarios is empty\n");
        return Ok(0);
    }
    if args.list {
        print(&plan::list(&decls));
        return Ok(0);
    }
    super::engine::check(&args.engine)?;
    let cache = config.cache()?;
    config.agent()?;
    let kernels = find_kernels(&decls, args, cache)?;
    let trouble = Trouble::default();
    let mut sinks = Fan::default();
    sinks.add(Terminal::new(io::stdout(), config.style));
    if let Some(path) = &args.json {
        let file = JsonLines::create(path, &trouble).map_err(|e| unwritable("--json", path, &e))?;
        sinks.add(file);
    }
    if let Some(dir) = &args.keep {
        sinks.add(Keep::create(dir, &trouble).map_err(|e| unwritable("--keep", dir, &e))?);
    }
    if let Some(dir) = &args.report {
        let failure = |e| Failure::usage(format!("--report {}: {e}", dir.display()));
        sinks.add(Html::create(dir, &trouble).map_err(failure)?);
    }
    if let Some(path) = &args.junit {
        sinks.add(Junit::create(path, &trouble).map_err(|e| unwritable("--junit", path, &e))?);
    }
    if config.github {
        sinks.add(Github::new(io::stdout(), config.github_summary.clone(), &trouble));
    }
    if let Some(memory) = memory {
        sinks.add(memory);
    }
    let cells = cells(decls, &declared, &overrides, &kernels, args, cache)?;
    // The very program that runs, even when its file is replaced meanwhile.
    let program = Program { path: "/proc/self/exe".into(), args: vec!["cell".into()] };
    let jobs = args.jobs.unwrap_or_else(|| jobs_for(&cells));
    let run = Run {
        program: &program,
        jobs,
        retries: args.retries,
        no_skips: args.no_skips,
        stop: &interrupts.stop,
    };
    interrupts.running.store(true, Ordering::SeqCst);
    let summary = run.cells(&cells, &mut sinks);
    interrupts.running.store(false, Ordering::SeqCst);
    let code = summary.exit_code(args.no_skips);
    if let Some(what) = trouble.first() {
        say(&format!("cryoscope: {what}; free some space, or choose another place\n"));
        return Ok(code.max(1));
    }
    Ok(code)
}

fn unwritable(option: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{option} {}: {}", path.display(), plain(error)))
}

/// The kernels of all scenarios, by spec; what went wrong with those that cannot be had.
type Kernels = BTreeMap<String, Result<KernelImage, String>>;

/// Finds or fetches every kernel once, before anything runs.
fn find_kernels(decls: &[ScenarioDecl], args: &Args, cache: &CacheDir) -> Result<Kernels, Failure> {
    let mut kernels = Kernels::new();
    let progress = Printed::to_stderr();
    for decl in decls.iter().filter(|d| d.boots) {
        let spec = kernel_spec(decl, args);
        if kernels.contains_key(&spec) {
            continue;
        }
        let found = resolve(&spec, cache, &progress);
        if let Err(error) = &found
            && args.kernel.is_some()
            && error.is_bad_usage()
        {
            return Err(Failure::usage(format!("--kernel: {error}")));
        }
        kernels.insert(spec, found.map_err(|e| e.to_string()));
    }
    Ok(kernels)
}

/// A scenario's kernel: a path in a script starts from the script's directory, one on the command
/// line from the current one.
fn kernel_spec(decl: &ScenarioDecl, args: &Args) -> String {
    let asked = &decl.options.kernel;
    let beside = decl.base_dir().join(asked);
    let is_path = !matches!(Spec::parse(asked), Ok(Spec::Auto | Spec::Host | Spec::Debian(_)));
    if args.kernel.is_none() && is_path && beside.exists() {
        return beside.to_string_lossy().into_owned();
    }
    asked.clone()
}

fn cells(
    decls: Vec<ScenarioDecl>,
    declared: &plan::Declared,
    overrides: &Overrides,
    kernels: &Kernels,
    args: &Args,
    cache: &CacheDir,
) -> Result<Vec<Planned>, Failure> {
    // Cells run where we run, but what they keep is named once and for all.
    let keep = args.keep.as_deref().map(fs::canonicalize).transpose();
    let keep = keep.map_err(|e| Failure::usage(format!("--keep: {}", plain(&e))))?;
    let writable = args.writable.iter().map(|dir| {
        fs::canonicalize(dir)
            .map_err(|e| Failure::usage(format!("--writable {}: {}", dir.display(), plain(&e))))
    });
    let writable = writable.collect::<Result<Vec<_>, _>>()?;
    let cell = |(cell, decl): (usize, ScenarioDecl)| {
        let kernel = kernels.get(&kernel_spec(&decl, args));
        let options = &decl.options;
        let info = CellInfo {
            name: decl.name.clone(),
            file: decl.file.clone(),
            index: decl.index,
            kernel: options.kernel.clone(),
            topology: options.topology.clone(),
            scheduler: options.scheduler.src.clone(),
            tags: options.tags.clone(),
            axes: options.axes.clone(),
        };
        let spec = CellSpec {
            version: SPEC_VERSION,
            cell,
            attempt: 1,
            file: decl.file.clone(),
            index: decl.index,
            name: declared
                .get(&(decl.file.clone(), decl.index))
                .map_or_else(|| decl.name.clone(), String::clone),
            overrides: overrides.clone(),
            kernel: kernel.and_then(|k| k.as_ref().ok().cloned()),
            deadline: options.deadline(),
            keep: keep.as_deref().map(|root| cell_dir(root, cell, &decl.name)),
            cache: cache.path().to_owned(),
            writable: writable.clone(),
        };
        let doomed = kernel.and_then(|k| k.as_ref().err().cloned());
        Planned { info, spec, memory: options.memory, doomed }
    };
    Ok(decls.into_iter().enumerate().map(cell).collect())
}

fn jobs_for(cells: &[Planned]) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let largest = cells.iter().map(|c| c.memory).max().unwrap_or(0);
    let available = super::doctor::available_memory().unwrap_or(u64::MAX);
    default_jobs(cores, available, largest).min(cells.len().max(1))
}

/// What Ctrl-C does: before anything runs it ends us at once, later it ends the run in order, and
/// the second time at once.
struct Interrupts {
    stop: Stop,
    running: Arc<AtomicBool>,
    /// The exit code for when nothing runs.
    code: Arc<AtomicU8>,
}

/// The exit code of what was interrupted.
const INTERRUPTED: u8 = 130;

impl Interrupts {
    fn watch() -> Result<Self, Failure> {
        let cannot = |e: io::Error| Failure::new(format!("cannot handle signals: {e}"));
        let stop = Stop::new().map_err(cannot)?;
        let running = Arc::new(AtomicBool::new(false));
        let mut signals =
            signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(cannot)?;
        let code = Arc::new(AtomicU8::new(INTERRUPTED));
        let (asked, begun, ends_with) = (stop.clone(), running.clone(), code.clone());
        let watcher = std::thread::Builder::new().name("signals".into());
        let watching = watcher.spawn(move || {
            for _ in signals.forever() {
                if !begun.load(Ordering::SeqCst) {
                    // Downloads and compilers end with us; unfinished cache entries have no name.
                    let code = ends_with.load(Ordering::SeqCst);
                    say(if code == INTERRUPTED { "\ncryoscope: interrupted\n" } else { "\n" });
                    std::process::exit(code.into());
                }
                asked.ask();
            }
        });
        watching.map_err(cannot)?;
        Ok(Interrupts { stop, running, code })
    }

    /// From now on an interrupt ends us with this exit code.
    fn wait_with(&self, code: u8) {
        self.code.store(code, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Args, String> {
        let args = ["run"].iter().chain(args);
        Alone::try_parse_from(args).map(|a| a.args).map_err(|e| e.to_string())
    }

    #[test]
    fn options_are_checked_before_anything_else() {
        let cases = [
            (&["a", "--jobs", "0"][..], "give a number from 1 to 256"),
            (&["a", "--jobs", "many"], "give a number from 1 to 256"),
            (&["a", "--engine", "xen"], "[possible values: auto, qemu, qemu-multi, kvm]"),
            (&["a", "--shard", "3/2"], "give K/N with K from 1 to N, as in 2/4"),
            (&["a", "--shard", "0/2"], "give K/N with K from 1 to N, as in 2/4"),
            (&["a", "--retries", "1000"], "1000 is not in 0..=100"),
            (&["a", "--boot", "pvh"], "[possible values: auto, elf, bzimage]"),
            (&["a", "--topology", "2x2"], "2x2"),
            (&["a", "--pin", "2-x"], "CPU set \"2-x\": \"x\" is not a CPU number"),
            (&["a", "--filer", "x"], "--filter"),
            (&[], "<PATH>"),
        ];
        for (args, says) in cases {
            let error = parse(args).unwrap_err();
            assert!(error.contains(says), "{args:?}: {error}");
        }
        let args = parse(&["a", "b", "-j", "3", "--topology", "1n2l2c1t"]).unwrap();
        assert_eq!((args.jobs, args.topology.as_deref()), (Some(3), Some("1n2l2c1t")));
    }

    #[test]
    fn kernels_in_scripts_are_found_beside_the_script() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinux"), "").unwrap();
        let decl = |kernel: &str| {
            let mut decl = ScenarioDecl {
                name: "x".into(),
                file: dir.path().join("a.rhai"),
                index: 0,
                at: None,
                plain: false,
                boots: true,
                options: Default::default(),
            };
            decl.options.kernel = kernel.into();
            decl
        };
        let none = parse(&["a"]).unwrap();
        let beside = dir.path().join("vmlinux").display().to_string();
        assert_eq!(kernel_spec(&decl("vmlinux"), &none), beside);
        assert_eq!(kernel_spec(&decl("auto"), &none), "auto");
        assert_eq!(kernel_spec(&decl("debian:7.2"), &none), "debian:7.2");
        assert_eq!(kernel_spec(&decl("nothing"), &none), "nothing");
        let given = parse(&["a", "--kernel", "vmlinux"]).unwrap();
        assert_eq!(kernel_spec(&decl("vmlinux"), &given), "vmlinux");
    }
}
