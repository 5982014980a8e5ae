//! `t`: the live machine inside a scenario, and its scheduler.

mod watch;

use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map, NativeCallContext};

use crate::scenario::lab::{ExecOutcome, LabOps, Span};
use crate::snapshot::{CaptureRequest, MAX_RAM};
use crate::vm::topology::Topology;

use super::cgroup::{Cgroup, work};
use super::data;
use super::declare;
use super::fault::{Fault, Native};
use super::options::{Mistake, Options};
use super::register::Package;
use super::session::Session;
use super::statistics;
use super::units;
use super::values::{described, incomparable, int};
use crate::words::nearest;

mod memory;
mod triggers;

/// A live machine.
#[derive(Clone)]
pub(crate) struct Vm {
    pub(crate) lab: Arc<dyn LabOps>,
}

/// The scheduler of a live machine.
#[derive(Clone)]
struct Scheduler {
    lab: Arc<dyn LabOps>,
}

/// How long `t.exec` waits for a program when it is not told.
const EXEC_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Vm>("Vm", "A live machine: `t` inside a scenario.");
    facts(pkg);
    freezing(pkg, session);
    watch::register(pkg, session);
    time(pkg, session);
    triggers::register(pkg, session);
    super::sampling::register(pkg, session);
    super::series::register(pkg, session);
    super::monitor::register(pkg);
    memory::register(pkg, session);
    programs(pkg, session);
    groups(pkg, session);
    super::workers::register(pkg, session);
    scheduler(pkg, session);
    changing(pkg, session);
    super::statistics::register(pkg, session);
    incomparable::<Vm>(pkg, "Vm");
    incomparable::<Scheduler>(pkg, "Scheduler");
}

/// Throws a mistake in options where a script may catch it.
pub(crate) fn thrown(mistake: Mistake) -> Box<rhai::EvalAltResult> {
    match mistake.later {
        true => {
            Fault { kind: super::fault::Kind::NotAvailableYet, message: mistake.message }.into()
        }
        false => Fault::argument(mistake.message).into(),
    }
}

fn facts(pkg: &mut Package<'_>) {
    pkg.getter("kernel(self: Vm) -> string", "The running kernel's release.", |t: &mut Vm| {
        t.lab.facts().kernel_release.clone()
    })
    .getter(
        "topology(self: Vm) -> Topology",
        "The shape of the machine.",
        |t: &mut Vm| -> Topology { t.lab.facts().topology.clone() },
    )
    .getter("engine(self: Vm) -> string", "What runs the machine: `qemu`, ..", |t: &mut Vm| {
        t.lab.facts().engine.clone()
    })
    .getter(
        "elapsed_ms(self: Vm) -> int",
        "Milliseconds of guest time since the scheduler was attached; pauses do not count.",
        |t: &mut Vm| int(t.lab.elapsed_ms()),
    )
    .func("to_string(self: Vm) -> string", "What machine it is.", |t: &mut Vm| told(t))
    .func("to_debug(self: Vm) -> string", "What machine it is.", |t: &mut Vm| told(t));
}

fn told(t: &Vm) -> String {
    let facts = t.lab.facts();
    format!("Vm({} on {}, {})", facts.kernel_release, facts.engine, facts.topology)
}

fn freezing(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "freeze(self: Vm, tag: string) -> Snapshot",
        "Stops all vCPUs, copies the scheduler's maps and the kernel's scheduling state, lets them \
         go on.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, tag: &str| {
            freeze(&s, &ctx, t, tag, &CaptureRequest::default())
        },
    );
    let s = session.clone();
    pkg.func(
        "freeze(self: Vm, tag: string, opts: map) -> Snapshot",
        "The same with options: `maps: [\"fifo.bss\", ..]` copies only these maps, `kernel: \
         [\"jiffies_64\", ..]` these variables of the kernel as well, `sched: false` no CPUs, \
         tasks and dispatch queues, `registers: true` the CPUs' registers, `ram: true` these and all \
         of the memory that was ever used.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, tag: &str, opts: Map| {
            let request = request(&opts).map_err(thrown)?;
            freeze(&s, &ctx, t, tag, &request)
        },
    );
    pkg.func(
        "snapshots(self: Vm) -> array",
        "All snapshots so far, in order.",
        |t: &mut Vm| -> Array { t.lab.snapshots().into_iter().map(data::snapshot).collect() },
    )
    .func(
        "snapshot(self: Vm, tag: string) -> Snapshot",
        "The snapshot of that tag; an unknown one is refused with the nearest.",
        |t: &mut Vm, tag: &str| -> Native<Dynamic> {
            if let Some(snapshot) = t.lab.snapshot(tag) {
                return Ok(data::snapshot(snapshot));
            }
            let all = t.lab.snapshots();
            let tags: Vec<&str> = all.iter().map(|s| s.tag()).collect();
            Err(Fault::argument(no_such("snapshot", tag, &tags)).into())
        },
    );
}

/// `there is no WHAT called "NAME"`, with the nearest name or all of them.
pub(crate) fn no_such(what: &str, name: &str, known: &[&str]) -> String {
    let rest = match (nearest(name, known.iter().copied()), known) {
        (Some(near), _) => format!("did you mean \"{near}\"?"),
        (None, []) => format!("there is no {what} yet"),
        (None, all) => {
            let all: Vec<String> = all.iter().take(20).map(|n| format!("\"{n}\"")).collect();
            format!("there are {}", all.join(", "))
        }
    };
    format!("there is no {what} called \"{name}\"; {rest}")
}

/// What a freeze's options ask for.
fn request(opts: &Map) -> Result<CaptureRequest, Mistake> {
    let read = Options::new(
        "freeze(..)",
        opts,
        &["maps", "kernel", "sched", "registers", "ram"],
        &["budget"],
    )?;
    let all = CaptureRequest::default();
    Ok(CaptureRequest {
        maps: read.strings("maps")?,
        kernel: read.strings("kernel")?.unwrap_or_default(),
        sched: read.flag("sched")?.unwrap_or(all.sched),
        registers: read.flag("registers")?.unwrap_or(false),
        ram: read.flag("ram")?.unwrap_or(false).then_some(MAX_RAM),
        ..all
    })
}

fn freeze(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    t: &Vm,
    tag: &str,
    request: &CaptureRequest,
) -> Native<Dynamic> {
    is_tag(tag)?;
    s.lab(ctx, t.lab.freeze(tag, request)).map(data::snapshot)
}

/// Refuses what cannot be a snapshot's name.
fn is_tag(tag: &str) -> Native<()> {
    if tag.trim().is_empty() || tag.chars().any(char::is_control) {
        return Err(
            Fault::argument(format!("{tag:?} is no tag: one line that is not empty")).into()
        );
    }
    Ok(())
}

fn time(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "hold(self: Vm, d: duration)",
        "Lets the workload run for so much guest time: `\"250ms\"`, or `\"50%\"` of the duration.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, d: &str| -> Native<()> {
            let span = span("hold", d)?;
            s.lab(&ctx, t.lab.hold(span))
        },
    );
    let s = session.clone();
    pkg.func(
        "step(self: Vm, name: string, hold: duration)",
        "Begins a phase and holds; snapshots taken meanwhile carry its name.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, name: &str, d: &str| -> Native<()> {
            let span = span("step", d)?;
            if name.trim().is_empty() {
                return Err(Fault::argument("step(..): a phase needs a name").into());
            }
            s.lab(&ctx, t.lab.step(name, span))
        },
    );
}

fn span(what: &str, text: &str) -> Native<Span> {
    units::span(text).map_err(|why| Fault::argument(format!("{what}(..): {why}")).into())
}

fn programs(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "exec(self: Vm, argv: array) -> map",
        "Runs a program in the guest to its end: `#{ code, signal, timed_out, stdout, stderr, truncated }`.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, argv: Array| exec(&s, &ctx, t, &argv, &Map::new()),
    );
    let s = session.clone();
    pkg.func(
        "exec(self: Vm, argv: array, opts: map) -> map",
        "The same with `#{ timeout: \"5s\" }`; without it 30 s.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, argv: Array, opts: Map| {
            exec(&s, &ctx, t, &argv, &opts)
        },
    );
    let s = session.clone();
    pkg.func(
        "dmesg(self: Vm) -> string",
        "The kernel's log so far.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| s.lab(&ctx, t.lab.dmesg()),
    )
    .func(
        "console(self: Vm) -> string",
        "What the machine wrote to its console so far.",
        |t: &mut Vm| t.lab.console(),
    );
}

fn exec(s: &Session, ctx: &NativeCallContext<'_>, t: &Vm, argv: &Array, opts: &Map) -> Native<Map> {
    let read =
        Options::new("exec(..)", opts, &["timeout"], &["env", "stdin", "cwd"]).map_err(thrown)?;
    let timeout = read.duration("timeout").map_err(thrown)?.unwrap_or(EXEC_TIMEOUT);
    let words = argv.iter().map(|word| {
        word.clone().into_string().map_err(|_| {
            let found = described(word);
            Fault::argument(format!("exec(..): expected an array of strings, found {found} in it"))
        })
    });
    let argv: Vec<String> = words.collect::<Result<_, _>>()?;
    if argv.first().is_none_or(String::is_empty) {
        let why = "exec(..): the array is empty; its first string is the program";
        return Err(Fault::argument(why).into());
    }
    let done = s.lab(ctx, t.lab.exec(&argv, timeout))?;
    Ok(statistics::named(s, outcome(done)))
}

fn outcome(done: ExecOutcome) -> Map {
    let number = |n: Option<i32>| n.map_or(Dynamic::UNIT, |n| Dynamic::from(INT::from(n)));
    Map::from([
        ("code".into(), number(done.code)),
        ("signal".into(), number(done.signal)),
        ("timed_out".into(), done.timed_out.into()),
        ("stdout".into(), done.stdout.into()),
        ("stderr".into(), done.stderr.into()),
        ("truncated".into(), done.truncated.into()),
    ])
}

fn groups(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "new_cgroup(self: Vm, name: string) -> Cgroup",
        "Makes a cgroup (v2) with all CPUs.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, name: &str| {
            Cgroup::make(&s, &ctx, t, name, &Map::new())
        },
    );
    let s = session.clone();
    pkg.func(
        "new_cgroup(self: Vm, name: string, opts: map) -> Cgroup",
        "Makes a cgroup (v2) with `cpus` (a CPU set like `\"llc:0\"`), `mems`, `weight`, `cpu_max`.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, name: &str, opts: Map| {
            Cgroup::make(&s, &ctx, t, name, &opts)
        },
    );
    pkg.func(
        "cgroup(self: Vm, name: string) -> Cgroup",
        "A cgroup that was made before; an unknown name is refused with the nearest.",
        |t: &mut Vm, name: &str| Cgroup::find(t, name),
    );
    let s = session.clone();
    pkg.func(
        "start(self: Vm, opts: map) -> array",
        "Starts workers outside of any cgroup, `#{ work: \"spin\", count: 4, .. }`; gives their pids.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, opts: Map| -> Native<Array> {
            let work = work(t, &opts)?;
            let pids = s.lab(&ctx, t.lab.start(None, &work))?;
            Ok(pids.into_iter().map(|pid| Dynamic::from(INT::from(pid))).collect())
        },
    );
}

fn scheduler(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Scheduler>("Scheduler", "The scheduler under test: `t.scheduler`.").getter(
        "scheduler(self: Vm) -> Scheduler",
        "The scheduler under test.",
        |t: &mut Vm| Scheduler { lab: t.lab.clone() },
    );
    let s = session.clone();
    pkg.getter(
        "state(self: Scheduler) -> string",
        "The kernel's word for it: `enabled`, `disabled`, `enabling`, ..",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler| {
            s.lab(&ctx, x.lab.scheduler_state()).map(|state| state.state)
        },
    );
    let s = session.clone();
    pkg.getter(
        "ops(self: Scheduler) -> string",
        "The name of the attached scheduler's operations; empty when none is attached.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler| {
            s.lab(&ctx, x.lab.scheduler_state()).map(|state| state.ops.unwrap_or_default())
        },
    );
    let s = session.clone();
    pkg.func(
        "log(self: Scheduler) -> string",
        "What the scheduler's loader said so far.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler| s.lab(&ctx, x.lab.scheduler_log()),
    );
    pkg.func(
        "exit_info(self: Scheduler) -> map|()",
        "How it left unasked, or `()` when it did not: `#{ reason, kind, message, elapsed_ms, log, \
         dmesg, snapshot }`. `kind` is the kernel's word (`error_stall`), `message` what was said in \
         particular and `snapshot` the machine at the instant of its death, before `ops.exit` and \
         before the kernel's own scheduler takes over; these are `()` when it was not captured.",
        |x: &mut Scheduler| -> Dynamic {
            let Some(exit) = x.lab.scheduler_exit() else { return Dynamic::UNIT };
            let at = int(exit.elapsed_ms);
            let death = x.lab.watching().death();
            Dynamic::from(Map::from([
                ("reason".into(), exit.reason.into()),
                ("elapsed_ms".into(), at.into()),
                ("log".into(), exit.log.into()),
                ("dmesg".into(), exit.dmesg.into()),
                ("kind".into(), exit.kind.map_or(Dynamic::UNIT, Into::into)),
                ("message".into(), exit.message.map_or(Dynamic::UNIT, Into::into)),
                ("snapshot".into(), death.map_or(Dynamic::UNIT, data::snapshot)),
            ]))
        },
    )
    .func("to_string(self: Scheduler) -> string", "Its name.", |x: &mut Scheduler| {
        x.lab.scheduler_name()
    })
    .func("to_debug(self: Scheduler) -> string", "Its name.", |x: &mut Scheduler| {
        format!("Scheduler({})", x.lab.scheduler_name())
    });
}

/// Bringing schedulers up, and letting them go.
fn changing(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "detach(self: Scheduler)",
        "Detaches it; the kernel's own scheduler takes over.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler| s.lab(&ctx, x.lab.scheduler_detach()),
    );
    let s = session.clone();
    pkg.func(
        "attach(self: Scheduler, x: any)",
        "Brings up a scheduler where none is attached: what the option `scheduler` takes, as in \
         `\"fifo.bpf.c\"` or `#{ src, rodata, .. }`. While it is compiled the machine stands.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler, asked: Dynamic| -> Native<()> {
            let asked = declare::scheduler_of("t.scheduler.attach(..)", asked).map_err(thrown)?;
            s.lab(&ctx, x.lab.scheduler_attach(&asked))
        },
    );
    let s = session.clone();
    pkg.func(
        "replace(self: Scheduler, x: any)",
        "Puts another scheduler in the place of the one that is attached. It is made ready before; \
         between the two the kernel's own is in charge for a moment.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler, asked: Dynamic| -> Native<()> {
            let asked = declare::scheduler_of("t.scheduler.replace(..)", asked).map_err(thrown)?;
            s.lab(&ctx, x.lab.scheduler_replace(&asked))
        },
    );
    let s = session.clone();
    pkg.func(
        "restart(self: Scheduler)",
        "Detaches it and brings it up again: its maps begin anew.",
        move |ctx: NativeCallContext<'_>, x: &mut Scheduler| s.lab(&ctx, x.lab.scheduler_restart()),
    );
}
