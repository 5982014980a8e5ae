//! `scenario(..)`, `boot(..)` and `open(..)`: what a script declares, and how the one scenario
//! that was asked for is run.

use std::path::Path;
use std::sync::Arc;

use rhai::{Dynamic, EvalAltResult, FnPtr, Map, NativeCallContext};

use crate::scenario::lab::LabError;
use crate::scenario::{BootPath, ExpectExit, ScenarioDecl, ScenarioOptions, SchedulerOptions};
use crate::series::SampleSeries;
use crate::snapshot::{Snapshot, is_bundle};
use crate::vm::Capability;
use crate::vm::topology::CpuSet;

use super::End;
use super::error::ScriptError;
use super::fault::{Fault, Native, terminate};
use super::matrix::{self, Variant};
use super::monitor;
use super::options::{Mistake, Options};
use super::register::Package;
use super::sampling;
use super::session::{Boot, Mode, Plain, Session};
use super::shape::topology;
use super::vm::Vm;

/// Options of `scenario(..)` and `boot(..)`.
const OPTIONS: &[&str] = &[
    "scheduler",
    "topology",
    "memory",
    "huge_pages",
    "pin",
    "kernel",
    "boot",
    "duration",
    "samples",
    "monitor",
    "tags",
    "timeout",
    "expect_exit",
    "expect_fail",
    "allow_inconclusive",
    "requires",
    "kargs",
    "schedstats",
    "bpf_stats",
    "include_files",
    "matrix",
];
/// Options that have the kernel count, and how it is told.
const COUNTING: [(&str, &str); 2] =
    [("schedstats", "kernel.sched_schedstats"), ("bpf_stats", "kernel.bpf_stats_enabled")];
/// Options that are planned.
const LATER: &[&str] = &[];

/// Options of `scheduler: #{ .. }`.
const SCHEDULER: &[&str] =
    &["src", "rodata", "args", "include", "defines", "staged", "env", "stats"];

/// Scenarios of one script.
const MAX_SCENARIOS: usize = 10_000;

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "scenario(name: string, body: closure)",
        "Declares a scenario; `body` is called with a freshly booted `Vm`.",
        move |ctx: NativeCallContext<'_>, name: &str, body: FnPtr| {
            scenario(&s, &ctx, name, &Map::new(), &body)
        },
    );
    let s = session.clone();
    pkg.func(
        "scenario(name: string, opts: map, body: closure)",
        "Declares a scenario with options: `scheduler`, `topology` (see `topology(..)`), `memory`, \
         `huge_pages: true` (RAM of the host's huge pages), `pin: \"2-5\"` (CPUs of the host, one \
         for each of the machine's; engine kvm), `kernel`, `boot`, \
         `duration`, `samples` (how many there are to be inside of 10 % to 90 % of it, or \
         `#{ every: \"50ms\" }`), `monitor` (`true`, or limits: `#{ imbalance: 4, depth: 64, stuck: \"2s\", \
         events: #{ SCX_EV_SELECT_CPU_FALLBACK: \"10/s\" } }`), `tags`, `timeout`, `expect_exit`, `expect_fail` (the label of the check \
         that is meant to fail, or a part of its message), `allow_inconclusive`, `requires`, `kargs`, \
         `include_files`, `matrix` (`#{ topology: [..], kernel: [..], scheduler: [..], args: [..] }`: one \
         scenario for each combination); `schedstats: true` and `bpf_stats: true` have the kernel count what it \
         does not count otherwise.",
        move |ctx: NativeCallContext<'_>, name: &str, opts: Map, body: FnPtr| {
            scenario(&s, &ctx, name, &opts, &body)
        },
    );
    let s = session.clone();
    pkg.func(
        "boot(opts: map) -> Vm",
        "Boots a machine in a script that declares no scenarios; options as in `scenario`.",
        move |ctx: NativeCallContext<'_>, opts: Map| plain_boot(&s, &ctx, &opts),
    );
    let s = session.clone();
    pkg.func(
        "boot() -> Vm",
        "Boots a machine in a script that declares no scenarios.",
        move |ctx: NativeCallContext<'_>| plain_boot(&s, &ctx, &Map::new()),
    );
    let s = session.clone();
    pkg.func(
        "open(path: string) -> Snapshot|SampleSeries",
        "The snapshot, or the series, in a file that `save(..)` wrote; a relative path starts from \
         the current directory.",
        move |path: &str| -> Native<Dynamic> {
            let mut state = s.lock();
            if matches!(s.mode, Mode::Collect) {
                if state.has_scenarios() {
                    return Err(Fault::misplaced(in_parent("open")).into());
                }
                // It runs in a cell as a whole, and may open files there.
                state.plain = Some(Plain::WithoutMachine);
                drop(state);
                return Err(terminate());
            }
            drop(state);
            let path = Path::new(path);
            let opened = match is_bundle(path) {
                true => SampleSeries::open(path).map(Dynamic::from),
                false => Snapshot::open(path).map(Dynamic::from),
            };
            Ok(opened.map_err(|e| Fault::argument(e.to_string()))?)
        },
    );
}

fn in_parent(what: &str) -> String {
    format!(
        "{what}(..) cannot be called at the top level of a script that declares scenarios: the \
         script is read first, to learn its scenarios, and runs once more for each of them; \
         call it in a script without scenario(..)"
    )
}

fn scenario(
    s: &Arc<Session>,
    ctx: &NativeCallContext<'_>,
    name: &str,
    opts: &Map,
    body: &FnPtr,
) -> Native<()> {
    if matches!(s.mode, Mode::Interactive) {
        let why = "scenario(..) declares what `cryoscope run` runs, each with a machine of its \
                   own: write it to a file; here, work with `vm`";
        return Err(Fault::misplaced(why).into());
    }
    if s.lock().booted > 0 {
        let why =
            "a script that calls boot(..) cannot declare scenarios too: put them into another file";
        return Err(Fault::misplaced(why).into());
    }
    if s.lock().ran {
        let why = "scenario(..) cannot stand inside of a scenario: declare it at the top level";
        return Err(Fault::misplaced(why).into());
    }
    let variants = match matrix::expand("scenario(..)", opts) {
        Ok(variants) => variants,
        Err(mistake) => return Err(refused(s, ctx, mistake)),
    };
    for variant in variants {
        one(s, ctx, name, variant, body)?;
    }
    Ok(())
}

/// One combination of a declaration's matrix, or all there is.
fn one(
    s: &Arc<Session>,
    ctx: &NativeCallContext<'_>,
    name: &str,
    variant: Variant,
    body: &FnPtr,
) -> Native<()> {
    let mut decl = declare(s, ctx, &variant.name(name), &variant.options)?;
    decl.options.axes = variant.axes;
    let index = decl.index;
    s.lock().declared.push(decl.clone());
    match &s.mode {
        Mode::Run { index: wanted, name: asked, boot } if *wanted == index => {
            if decl.name != *asked {
                let name = &decl.name;
                let message = format!(
                    "the script declares {name:?} where it declared {asked:?} when it was \
                     collected: what it declares must not change from run to run"
                );
                return Err(threw(s, ScriptError::new(message).at(s.place(ctx))));
            }
            s.lock().ran = true;
            Err(run_body(s, ctx, &decl, boot, body))
        }
        _ => Ok(()),
    }
}

/// The declaration, when nothing is wrong with it.
fn declare(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    name: &str,
    opts: &Map,
) -> Native<ScenarioDecl> {
    let at = s.place(ctx);
    if name.trim().is_empty() || name.chars().any(char::is_control) || name.chars().count() > 400 {
        let why = format!("{name:?} is no name for a scenario: one line of up to 200 characters");
        return Err(Fault::argument(why).into());
    }
    let state = s.lock();
    let index = state.declared.len();
    if index >= MAX_SCENARIOS {
        let why = format!("one script cannot declare more than {MAX_SCENARIOS} scenarios");
        return Err(Fault::argument(why).into());
    }
    if let Some(first) = state.declared.iter().find(|d| d.name == name) {
        let line = first.at.as_ref().map_or(String::new(), |at| format!(" in line {}", at.line));
        let why = format!(
            "a scenario called {name:?} is already declared{line}; each needs a name of its own"
        );
        return Err(Fault::argument(why).into());
    }
    drop(state);
    let options = match options("scenario(..)", opts) {
        Ok(options) => options,
        Err(mistake) => return Err(refused(s, ctx, mistake)),
    };
    let file = s.file.clone();
    Ok(ScenarioDecl { name: name.to_string(), file, index, at, plain: false, boots: true, options })
}

/// What a mistake in options becomes: an error at the key, which no script means to catch.
fn refused(s: &Session, ctx: &NativeCallContext<'_>, mistake: Mistake) -> Box<EvalAltResult> {
    let at = match &mistake.key {
        Some(key) => s.place_of_key(ctx, key),
        None => s.place(ctx),
    };
    threw(s, ScriptError::new(mistake.message).at(at))
}

/// Records an error of the script and ends the run.
fn threw(s: &Session, error: ScriptError) -> Box<EvalAltResult> {
    s.recorder.record(error.check());
    s.end(End::Threw(error))
}

/// Boots, calls the body, and ends the script: what stands behind is for other scenarios.
fn run_body(
    s: &Arc<Session>,
    ctx: &NativeCallContext<'_>,
    decl: &ScenarioDecl,
    boot: &Boot,
    body: &FnPtr,
) -> Box<EvalAltResult> {
    let lab = match boot(decl) {
        Ok(lab) => lab,
        Err(error) => return s.over(error, decl.at.clone()),
    };
    let vm = Dynamic::from(Vm { lab });
    let result = body.call_within_context::<Dynamic>(ctx, (vm,));
    let end = super::finish(s, ctx.engine(), result.map(drop), ctx.call_source());
    s.end(end)
}

fn plain_boot(s: &Arc<Session>, ctx: &NativeCallContext<'_>, opts: &Map) -> Native<Vm> {
    if matches!(s.mode, Mode::Interactive) {
        return Err(Fault::misplaced("a machine runs already: it is `vm`").into());
    }
    let options = match options("boot(..)", opts) {
        Ok(options) => options,
        Err(mistake) => return Err(refused(s, ctx, mistake)),
    };
    let mut state = s.lock();
    let declares = state.has_scenarios();
    let Mode::Run { boot, name, .. } = &s.mode else {
        if declares {
            return Err(Fault::misplaced(in_parent("boot")).into());
        }
        // This much is enough to know: it is a plain script, and runs in a cell as a whole.
        state.plain = Some(Plain::Boots(Box::new(options)));
        drop(state);
        return Err(terminate());
    };
    if declares {
        let why = "boot(..) has no place in a script with scenarios: a scenario's machine is what its closure is given";
        return Err(Fault::misplaced(why).into());
    }
    if state.booted > 0 {
        return Err(Fault::not_yet("a second machine in one script").into());
    }
    state.booted += 1;
    drop(state);
    let decl = ScenarioDecl {
        name: name.clone(),
        file: s.file.clone(),
        index: 0,
        at: s.place(ctx),
        plain: true,
        boots: true,
        options,
    };
    match boot(&decl) {
        Ok(lab) => Ok(Vm { lab }),
        Err(error @ LabError::Argument(_)) => s.lab(ctx, Err(error)),
        Err(error) => Err(s.over(error, decl.at)),
    }
}

/// Reads the options of `what`.
pub(crate) fn options(what: &'static str, map: &Map) -> Result<ScenarioOptions, Mistake> {
    let read = Options::new(what, map, OPTIONS, LATER)?;
    let mut out = ScenarioOptions::default();
    if map.contains_key("matrix") {
        return Err(read.wrong("matrix", "only scenario(..) can vary what it runs on"));
    }
    if let Some(scheduler) = scheduler(&read)? {
        out.scheduler = scheduler;
    }
    if let Some(value) = map.get("topology").filter(|value| !value.is_unit()) {
        out.topology = topology(value).map_err(|e| read.wrong("topology", e))?.to_string();
    }
    set(&mut out.memory, read.size("memory")?);
    set(&mut out.huge_pages, read.flag("huge_pages")?);
    out.pin = read.string("pin")?;
    if let Some(pin) = &out.pin {
        pin.parse::<CpuSet>().map_err(|e| read.wrong("pin", e))?;
    }
    set(&mut out.kernel, read.string("kernel")?);
    set(&mut out.boot, read.word("boot", &BootPath::NAMES)?.and_then(BootPath::parse));
    set(&mut out.duration, read.duration("duration")?);
    set(&mut out.tags, read.strings("tags")?);
    out.timeout = read.duration("timeout")?;
    if out.duration.is_zero() || out.timeout.is_some_and(|t| t.is_zero()) {
        let key = if out.duration.is_zero() { "duration" } else { "timeout" };
        return Err(read.wrong(key, "it has to be longer than nothing"));
    }
    out.samples = sampling::option(&read, out.duration)?;
    out.monitor = monitor::option(&read)?;
    set(&mut out.expect_exit, read.string("expect_exit")?.map(|text| ExpectExit::parse(&text)));
    out.expect_fail = read.string("expect_fail")?;
    if out.expect_fail.as_deref().is_some_and(|text| text.trim().is_empty()) {
        let why = "it is empty; give the label of the check that is meant to fail, or a part of its message";
        return Err(read.wrong("expect_fail", why));
    }
    set(&mut out.allow_inconclusive, read.flag("allow_inconclusive")?);
    set(&mut out.requires, read.strings("requires")?);
    for name in &out.requires {
        name.parse::<Capability>().map_err(|e| read.wrong("requires", e))?;
    }
    set(&mut out.kargs, read.strings("kargs")?);
    for (option, sysctl) in COUNTING {
        if read.flag(option)? == Some(true) {
            out.kargs.push(format!("sysctl.{sysctl}=1"));
        }
    }
    set(&mut out.include_files, read.paths("include_files")?);
    Ok(out)
}

fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(from) = from {
        *to = from;
    }
}

/// A scheduler that a call is given, as the option `scheduler` takes it.
pub(crate) fn scheduler_of(
    call: &'static str,
    value: Dynamic,
) -> Result<SchedulerOptions, Mistake> {
    let map = Map::from([("scheduler".into(), value)]);
    let read = Options::new(call, &map, &["scheduler"], &[])?;
    let found = scheduler(&read)?;
    found.ok_or_else(|| read.wrong("scheduler", "give a .bpf.c, a .bpf.o, an executable, or a map"))
}

fn scheduler(read: &Options<'_>) -> Result<Option<SchedulerOptions>, Mistake> {
    if read.is_string("scheduler") {
        let src = read.string("scheduler")?.unwrap_or_default();
        return match src.is_empty() {
            true => {
                Err(read.wrong("scheduler", "it is empty; the kernel's own scheduler is \"none\""))
            }
            false => Ok(Some(SchedulerOptions { src, ..SchedulerOptions::default() })),
        };
    }
    let Some(map) = read.map("scheduler")? else { return Ok(None) };
    let inner = Options::new("scheduler: #{ .. }", &map, SCHEDULER, &[])?;
    let Some(src) = inner.string("src")? else {
        let why = "src is missing: a .bpf.c, a .bpf.o, an executable, or \"none\"";
        return Err(read.wrong("scheduler", why));
    };
    Ok(Some(SchedulerOptions {
        src,
        rodata: inner.values("rodata")?.unwrap_or_default(),
        args: inner.strings("args")?.unwrap_or_default(),
        include: inner.strings("include")?.unwrap_or_default(),
        defines: inner.strings("defines")?.unwrap_or_default(),
        staged: inner.paths("staged")?.unwrap_or_default(),
        env: inner
            .texts("env", "a map of texts, like #{ RUST_LOG: \"debug\" }")?
            .unwrap_or_default(),
        stats: inner.socket("stats")?,
    }))
}
