//! The option `samples`, and what came of it.

use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map, NativeCallContext};

use super::data;
use super::fault::{Fault, Native};
use super::options::{Mistake, Options};
use super::register::Package;
use super::session::Session;
use super::values::{described, int};
use super::vm::Vm;
use crate::scenario::samples::{Boundaries, SampleOptions, SampleReport, SampleTimes};

/// Options of `samples: #{ .. }`.
const SAMPLES: [&str; 7] = ["count", "every", "maps", "sched", "registers", "kernel", "memory"];
/// The most samples whose number is given.
const MOST: INT = 1_000_000;

/// Reads the option, whose boundaries have to fit into the duration.
pub(crate) fn option(
    read: &Options<'_>,
    duration: std::time::Duration,
) -> Result<Option<SampleOptions>, Mistake> {
    let Some(value) = read.value("samples") else { return Ok(None) };
    let options = if let Ok(map) = value.as_map_ref() {
        of_map(read, &map)?
    } else {
        match value.as_int() {
            Ok(_) => SampleOptions::new(SampleTimes::Count(count(read, "samples")?.unwrap_or(1))),
            Err(_) => {
                let found = described(value);
                let want = "a number like 8, or a map like #{ count: 8, maps: [..] } or \
                            #{ every: \"50ms\" }";
                return Err(read.wrong("samples", format!("expected {want}, found {found}")));
            }
        }
    };
    Boundaries::new(options.times, duration).map_err(|why| read.wrong("samples", why))?;
    Ok(Some(options))
}

fn count(read: &Options<'_>, key: &str) -> Result<Option<u32>, Mistake> {
    Ok(read.number(key, 1, MOST)?.and_then(|n| u32::try_from(n).ok()))
}

fn of_map(outer: &Options<'_>, map: &Map) -> Result<SampleOptions, Mistake> {
    let read = Options::new("samples: #{ .. }", map, &SAMPLES, &["ram"])?;
    let times = match (count(&read, "count")?, read.duration("every")?) {
        (Some(count), None) => SampleTimes::Count(count),
        (None, Some(every)) => SampleTimes::Every(every),
        (None, None) => {
            let why = "say how many, as in #{ count: 8 }, or how often, as in #{ every: \"50ms\" }";
            return Err(outer.wrong("samples", why));
        }
        (Some(_), Some(_)) => {
            let why = "`count` and `every` exclude each other: give one of them";
            return Err(outer.wrong("samples", why));
        }
    };
    let all = SampleOptions::new(times);
    Ok(SampleOptions {
        times,
        maps: read.strings("maps")?,
        sched: read.flag("sched")?.unwrap_or(all.sched),
        registers: read.flag("registers")?.unwrap_or(all.registers),
        kernel: read.strings("kernel")?.unwrap_or_default(),
        memory: read.size("memory")?.unwrap_or(all.memory),
    })
}

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "sample(self: Vm, i: int) -> Snapshot",
        "The periodic sample that was taken as number `i`, from 0: see the option `samples`. Its tag \
         is `periodic_003` for the boundary with the number 3.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, i: INT| -> Native<Dynamic> {
            let ops = t.lab.sampling();
            let sample = match usize::try_from(i) {
                Ok(i) => s.lab(&ctx, ops.sample(i))?,
                Err(_) => None,
            };
            sample.map(data::snapshot).ok_or_else(|| no_sample(i, &ops.report()).into())
        },
    );
    pkg.func(
        "sampling(self: Vm) -> map",
        "What came of the option `samples` so far: `#{ planned, fired, missed, first_missed, \
         placeholders, not_fired, latest_ms, spilled }`. `planned` is `()` where samples go on to the \
         end; a boundary is missed when the next one came before it could be served; `latest_ms` is \
         the longest time from a boundary to its sample; `spilled` lie in a file.",
        |t: &mut Vm| told(&t.lab.sampling().report()),
    );
}

fn no_sample(i: INT, report: &SampleReport) -> Fault {
    let so_far = match (report.fired, report.planned) {
        (0, Some(0) | None) => "none was taken; ask for some with the option samples".to_owned(),
        (0, _) => "none was taken so far".to_owned(),
        (n, _) => format!("{n} were taken so far, from 0 to {}", n - 1),
    };
    Fault::argument(format!("sample({i}): there is no such sample: {so_far}"))
}

fn told(report: &SampleReport) -> Map {
    let int = |n: u64| Dynamic::from(int(n));
    let first: Array = report.first_missed.iter().map(|n| int(*n)).collect();
    Map::from([
        ("planned".into(), report.planned.map_or(Dynamic::UNIT, int)),
        ("fired".into(), int(report.fired)),
        ("missed".into(), int(report.missed)),
        ("first_missed".into(), first.into()),
        ("placeholders".into(), int(report.placeholders)),
        ("not_fired".into(), int(report.not_fired)),
        ("latest_ms".into(), int(report.latest_ms)),
        ("spilled".into(), int(report.spilled)),
    ])
}
