//! What workers did, as scripts see it: `t.reports()`, `WorkerReport`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Array, Dynamic, FLOAT, INT, NativeCallContext};

use super::cgroup::{Cgroup, word_of};
use super::fault::{Fault, Native};
use super::register::Package;
use super::session::Session;
use super::values::{described, incomparable, int};
use super::vm::Vm;
use crate::scenario::lab::{LabOps, WorkerReport};
use crate::wire::percentile;

/// What one worker did.
#[derive(Clone)]
struct Report(Arc<WorkerReport>);

impl Report {
    fn dynamic(report: WorkerReport) -> Dynamic {
        Dynamic::from(Report(Arc::new(report)))
    }

    fn name(&self) -> String {
        format!("{} {}", word_of(self.0.kind), self.0.pid)
    }
}

fn ms(us: u64) -> FLOAT {
    us as FLOAT / 1e3
}

/// A number that the kernel may not give.
fn known<T: Into<Dynamic>>(value: Option<T>) -> Dynamic {
    value.map_or(Dynamic::UNIT, Into::into)
}

/// Reports of all these workers, in their order.
fn reports(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    lab: &dyn LabOps,
    pids: &[u32],
) -> Native<Array> {
    let reports = s.lab(ctx, lab.worker_reports(pids))?;
    Ok(reports.into_iter().map(Report::dynamic).collect())
}

/// Reports of the workers in a cgroup.
pub(super) fn of_group(s: &Session, ctx: &NativeCallContext<'_>, group: &Cgroup) -> Native<Array> {
    let inside = s.lab(ctx, group.lab.cgroup_procs(&group.name))?;
    let mut pids = group.lab.workers();
    pids.retain(|pid| inside.contains(pid));
    reports(s, ctx, &*group.lab, &pids)
}

pub(super) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Report>(
        "WorkerReport",
        "What a worker did since it was started, or between two reports: see `t.reports()`. Times are \
         the guest's.",
    );
    asking(pkg, session);
    identity(pkg);
    figures(pkg);
    kernel_figures(pkg);
    waking(pkg);
    differences(pkg);
    incomparable::<Report>(pkg, "WorkerReport");
}

fn asking(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "reports(self: Vm) -> array",
        "What every worker that was started did so far, in the order of their start: of `WorkerReport`. \
         Those that have ended are among them (of more than 1,024, the last).",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| reports(&s, &ctx, &*t.lab, &t.lab.workers()),
    );
    let s = session.clone();
    pkg.func(
        "reports(self: Vm, pids: array) -> array",
        "The same of these workers only, in this order.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, pids: Array| -> Native<Array> {
            let pids = pids_of(&pids)?;
            let found = reports(&s, &ctx, &*t.lab, &pids)?;
            match pids.len() - found.len().min(pids.len()) {
                0 => Ok(found),
                missing => Err(Fault::argument(format!(
                    "{missing} of these {} workers ended long ago, and their reports are gone: the \
                     last 1,024 of those that ended are kept; ask before they end",
                    pids.len()
                ))
                .into()),
            }
        },
    );
}

fn pids_of(pids: &Array) -> Native<Vec<u32>> {
    let pid = |value: &Dynamic| {
        value.as_int().ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
            let found = described(value);
            let text =
                format!("t.reports(pids): expected pids as start(..) gave them, found {found}");
            Fault::argument(text).into()
        })
    };
    pids.iter().map(pid).collect()
}

fn identity(pkg: &mut Package<'_>) {
    pkg.getter("pid(self: WorkerReport) -> int", "Its pid.", |r: &mut Report| INT::from(r.0.pid))
        .getter(
            "work(self: WorkerReport) -> string",
            "What it does: `\"spin\"`, `\"yield\"`, `\"sleep\"` or `\"pipe\"`.",
            |r: &mut Report| word_of(r.0.kind),
        )
        .getter(
            "ended(self: WorkerReport) -> bool",
            "Whether it has ended; the report is then of what it had done.",
            |r: &mut Report| r.0.ended,
        )
        .func("to_string(self: WorkerReport) -> string", "As in `spin 71`.", |r: &mut Report| {
            r.name()
        })
        .func("to_debug(self: WorkerReport) -> string", "With what it did.", |r: &mut Report| {
            let (units, ms) = (r.0.units, ms(r.0.working_us));
            format!("WorkerReport({}: {units} units in {ms} ms)", r.name())
        });
}

fn figures(pkg: &mut Package<'_>) {
    pkg.getter(
        "units(self: WorkerReport) -> int",
        "Units of work that it ended: for `\"spin\"` a stretch of computing of some 30 us, for \
         `\"yield\"` and `\"sleep\"` one of some 10 us before each yield or after each sleep, for \
         `\"pipe\"` a message received.",
        |r: &mut Report| int(r.0.units),
    )
    .getter(
        "working_ms(self: WorkerReport) -> float",
        "How long it has been there, from the instant at which it was let go.",
        |r: &mut Report| ms(r.0.working_us),
    )
    .getter(
        "units_per_s(self: WorkerReport) -> float|()",
        "Units by the second; `()` when no time has passed.",
        |r: &mut Report| {
            let rate = r.0.units as FLOAT / (r.0.working_us as FLOAT / 1e6);
            known((r.0.working_us > 0).then_some(rate))
        },
    )
    .getter(
        "gap_ms(self: WorkerReport) -> float",
        "The longest time in which it could run and did not end a unit; also one that still goes on.",
        |r: &mut Report| ms(r.0.gap_us.max(r.0.waiting_us)),
    )
    .getter(
        "gap_at_ms(self: WorkerReport) -> float|()",
        "When that ended, in milliseconds since the worker was let go; `()` while it goes on, and for a \
         difference whose longest gap is not the longest of all.",
        |r: &mut Report| {
            let over = r.0.gap_us >= r.0.waiting_us && r.0.gap_at_us > 0;
            known(over.then_some(ms(r.0.gap_at_us)))
        },
    )
    .getter(
        "waiting_ms(self: WorkerReport) -> float",
        "For how long it has been able to run by now, and has not ended a unit; 0 while it sleeps.",
        |r: &mut Report| ms(r.0.waiting_us),
    )
    .getter(
        "cpus(self: WorkerReport) -> array",
        "The CPUs on which units ended, ascending.",
        |r: &mut Report| -> Array {
            r.0.cpus.iter().map(|(cpu, _)| INT::from(*cpu).into()).collect()
        },
    )
    .func(
        "units_on(self: WorkerReport, cpu: int) -> int",
        "How many units ended on a CPU.",
        |r: &mut Report, cpu: INT| {
            let here = r.0.cpus.iter().find(|(at, _)| INT::from(*at) == cpu);
            here.map_or(0, |(_, units)| int(*units))
        },
    );
}

/// What the kernel counts of each task; `()` of one that ended by itself, of which it counts no
/// more.
fn kernel_figures(pkg: &mut Package<'_>) {
    pkg.getter(
        "run_ms(self: WorkerReport) -> float|()",
        "How long it was on a CPU, as the kernel counts (`/proc/PID/schedstat`); `()` when it does not, \
         and of one that ended by itself.",
        |r: &mut Report| known(r.0.run_us.map(ms)),
    )
    .getter(
        "run_delay_ms(self: WorkerReport) -> float|()",
        "How long it waited in a queue, able to run (`/proc/PID/schedstat`).",
        |r: &mut Report| known(r.0.queued_us.map(ms)),
    )
    .getter(
        "off_cpu_ms(self: WorkerReport) -> float|()",
        "How long it was on no CPU, asleep or waiting: `working_ms` less `run_ms`.",
        |r: &mut Report| known(r.0.run_us.map(|run| ms(r.0.working_us.saturating_sub(run)))),
    )
    .getter(
        "cpu_share(self: WorkerReport) -> float|()",
        "Which part of the time it was on a CPU: 0.0 to 1.0.",
        |r: &mut Report| {
            let run = r.0.run_us.filter(|_| r.0.working_us > 0);
            known(run.map(|run| (run as FLOAT / r.0.working_us as FLOAT).min(1.0)))
        },
    )
    .getter(
        "migrations(self: WorkerReport) -> int|()",
        "How often the kernel moved it to another CPU (`/proc/PID/sched`).",
        |r: &mut Report| known(r.0.migrations.map(int)),
    );
}

fn waking(pkg: &mut Package<'_>) {
    pkg.getter(
        "wakes(self: WorkerReport) -> int",
        "How often it woke up: `\"sleep\"` by its timer, `\"pipe\"` by its partner; others never do.",
        |r: &mut Report| int(r.0.wakes.iter().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n))),
    )
    .func(
        "wake_us(self: WorkerReport, part: float) -> float|()",
        "The time from waking up to running that this part of the wake-ups (`0.99`) did not exceed, in \
         microseconds: too large by a sixteenth at most. `()` when it never woke up.",
        |r: &mut Report, part: FLOAT| known(r.0.wake_us(part)),
    )
    .func(
        "wake_us(self: array, part: float) -> float|()",
        "The same over the wake-ups of all these workers.",
        |all: &mut Array, part: FLOAT| -> Native<Dynamic> {
            let all = reports_in(all, "wake_us(..)")?;
            let buckets = all.iter().flat_map(|r| r.0.wakes.iter().copied());
            Ok(known(percentile(buckets, part)))
        },
    );
}

fn differences(pkg: &mut Package<'_>) {
    pkg.func(
        "since(self: WorkerReport, before: WorkerReport) -> WorkerReport",
        "What it did since an earlier report of the same worker.",
        |r: &mut Report, before: Report| -> Native<Report> {
            match r.0.since(&before.0) {
                Some(grown) => Ok(Report(Arc::new(grown))),
                None => Err(backwards(r, &before)),
            }
        },
    )
    .func(
        "since(self: array, before: array) -> array",
        "What these workers did since earlier reports: `t.reports().since(before)`. Those that were not \
         there before are taken whole.",
        |now: &mut Array, before: Array| -> Native<Array> {
            let (now, before) = (reports_in(now, "since(..)")?, reports_in(&before, "since(..)")?);
            let before: BTreeMap<u32, &Report> = before.iter().map(|r| (r.0.pid, r)).collect();
            let grown = now.iter().map(|r| match before.get(&r.0.pid) {
                None => Ok(Dynamic::from(r.clone())),
                Some(then) => match r.0.since(&then.0) {
                    Some(grown) => Ok(Report::dynamic(grown)),
                    None => Err(backwards(r, then)),
                },
            });
            grown.collect()
        },
    );
}

fn backwards(now: &Report, before: &Report) -> Box<rhai::EvalAltResult> {
    let why = match now.0.pid == before.0.pid {
        true => "that report is the later one: write `later.since(earlier)`".to_string(),
        false => format!("that is a report of {}, another worker", before.name()),
    };
    Fault::argument(format!("since(..) of {}: {why}", now.name())).into()
}

fn reports_in(all: &Array, what: &str) -> Native<Vec<Report>> {
    let one = |value: &Dynamic| {
        value.clone().try_cast::<Report>().ok_or_else(|| {
            let found = described(value);
            let text = format!("{what} of an array: expected reports of workers, found {found}");
            Fault::argument(text).into()
        })
    };
    all.iter().map(one).collect()
}
