//! The option `monitor`, and what it saw.

use rhai::{Dynamic, INT, Map};

use super::data;
use super::fault::{Fault, Native};
use super::options::{Mistake, Options};
use super::register::Package;
use super::units;
use super::values::{Number, described, incomparable, int, to_scalar};
use super::vm::Vm;
use crate::scenario::monitor::{
    LEAST, Limit, Mode, MonitorOptions, MonitorReport, READINGS, Signal,
};
use crate::series::{MonitorSeries, SampleSeries, SeriesField};
use crate::snapshot::{Observation, SnapshotError};
use crate::words::nearest_first;

/// Options of `monitor: #{ .. }`.
const MONITOR: [&str; 8] =
    ["every", "mode", "readings", "imbalance", "depth", "local_depth", "stuck", "events"];
/// Options of a limit that is a map.
const LIMIT: [&str; 3] = ["at_most", "mode", "readings"];
/// The most readings in a row that a limit can ask for.
const MOST_READINGS: INT = 10_000;

/// Reads the option.
pub(crate) fn option(read: &Options<'_>) -> Result<Option<MonitorOptions>, Mistake> {
    let Some(value) = read.value("monitor") else { return Ok(None) };
    if let Ok(on) = value.as_bool() {
        return Ok(on.then(MonitorOptions::default));
    }
    let Ok(map) = value.as_map_ref() else {
        let found = described(value);
        let want = "true, or a map like #{ every: \"100ms\", imbalance: 4, stuck: \"2s\" }";
        return Err(read.wrong("monitor", format!("expected {want}, found {found}")));
    };
    let read = Options::new("monitor: #{ .. }", &map, &MONITOR, &[])?;
    let every = read.duration("every")?.unwrap_or(MonitorOptions::default().every);
    if every < LEAST {
        let why = format!("{every:?} is too short an interval; {LEAST:?} is the shortest");
        return Err(read.wrong("every", why));
    }
    let mode = mode(&read)?.unwrap_or(Mode::Enforce);
    let readings = readings(&read)?;
    let mut limits = Vec::new();
    let plain = [
        ("imbalance", Signal::Imbalance, Kind::Number),
        ("depth", Signal::Depth, Kind::Number),
        ("local_depth", Signal::LocalDepth, Kind::Number),
        ("stuck", Signal::Stuck, Kind::Time),
    ];
    for (key, signal, kind) in plain {
        // How long a CPU is stuck says by itself that it lasted.
        let usual = if kind == Kind::Time { 1 } else { READINGS };
        let readings = readings.filter(|_| kind != Kind::Time).unwrap_or(usual);
        limits.extend(limit(&read, key, signal, kind, (mode, readings))?);
    }
    if let Some(events) = read.map("events")? {
        // Which ones a kernel counts shows in the machine.
        for (name, value) in &events {
            let (signal, usual) = (Signal::Event(name.to_string()), readings.unwrap_or(READINGS));
            limits.push(of(&read, name, value, signal, Kind::Rate, (mode, usual))?);
        }
    }
    Ok(Some(MonitorOptions { every, limits }))
}

/// How a limit is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Time,
    Rate,
}

impl Kind {
    fn wanted(self) -> &'static str {
        match self {
            Kind::Number => "a number from 0 on",
            Kind::Time => "a duration like \"2s\"",
            Kind::Rate => "a rate like \"100/s\"",
        }
    }
}

fn mode(read: &Options<'_>) -> Result<Option<Mode>, Mistake> {
    Ok(read.word("mode", &Mode::NAMES)?.and_then(Mode::parse))
}

fn readings(read: &Options<'_>) -> Result<Option<u32>, Mistake> {
    let readings = read.number("readings", 1, MOST_READINGS)?;
    Ok(readings.and_then(|n| u32::try_from(n).ok()))
}

fn limit(
    read: &Options<'_>,
    key: &str,
    signal: Signal,
    kind: Kind,
    usual: (Mode, u32),
) -> Result<Option<Limit>, Mistake> {
    let value = read.value(key);
    value.map(|value| of(read, key, value, signal, kind, usual)).transpose()
}

/// A limit: the most alone, or a map with the mode and so on.
fn of(
    read: &Options<'_>,
    key: &str,
    value: &Dynamic,
    signal: Signal,
    kind: Kind,
    (mode_here, readings_here): (Mode, u32),
) -> Result<Limit, Mistake> {
    let most = |value: &Dynamic| {
        let found = match kind {
            Kind::Number => match to_scalar(value).ok().flatten().as_ref().and_then(Number::of) {
                Some(number) => Ok(number.float()),
                None => Err(None),
            },
            _ => match (value.clone().into_string(), kind) {
                (Err(_), _) => Err(None),
                (Ok(text), Kind::Time) => {
                    units::duration(&text).map(|time| time.as_secs_f64()).map_err(Some)
                }
                (Ok(text), _) => units::rate(&text).map_err(Some),
            },
        };
        match found {
            Ok(most) if most.is_finite() && most >= 0.0 => Ok(most),
            Err(Some(why)) => Err(read.wrong(key, why)),
            _ => {
                let (want, found) = (kind.wanted(), described(value));
                let why = format!(
                    "expected {want}, the most that it may be, or a map like #{{ at_most: .., mode: \
                     \"report\" }}, found {found}"
                );
                Err(read.wrong(key, why))
            }
        }
    };
    let Ok(map) = value.as_map_ref() else {
        let (mode, readings) = (mode_here, readings_here);
        return Ok(Limit { signal, most: most(value)?, mode, readings });
    };
    let inner = Options::new("a limit of the monitor", &map, &LIMIT, &[])?;
    let Some(at_most) = inner.value("at_most") else {
        let why = format!("at_most is missing: {}, the most that it may be", kind.wanted());
        return Err(read.wrong(key, why));
    };
    Ok(Limit {
        signal,
        most: most(at_most)?,
        mode: mode(&inner)?.unwrap_or(mode_here),
        readings: readings(&inner)?.unwrap_or(readings_here),
    })
}

/// What the monitor saw of one CPU.
#[derive(Clone)]
struct SeriesMonitorCpu(MonitorSeries, INT);

pub(crate) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<MonitorSeries>(
        "SeriesMonitor",
        "What the monitor saw of a machine while it ran, in the order of time.",
    )
    .ty::<SeriesMonitorCpu>("SeriesMonitorCpu", "What the monitor saw of one CPU.")
    .func(
        "monitor(self: Vm) -> SeriesMonitor",
        "The readings that the option `monitor` took so far, each with its own time and phase.",
        |t: &mut Vm| readings_of(t),
    )
    .func(
        "monitored(self: Vm) -> map",
        "What came of the option `monitor` so far: `#{ readings, failed, missed, doubted, given_up, \
         imbalance, depth, queue, stuck_ms, stuck_cpu, events, longest_us }`: the largest of each (`()` \
         where there is no value), how often each event happened in a second, and the longest that a \
         reading took. `doubted` numbers could not be true, `given_up` ones changed while they were \
         looked at.",
        |t: &mut Vm| told(&t.lab.monitoring().monitored()),
    )
    .func(
        "monitor(self: SampleSeries) -> SeriesMonitor",
        "What the monitor had seen last when each sample was taken.",
        |s: &mut SampleSeries| s.monitor(),
    );
    fields(pkg);
    incomparable::<MonitorSeries>(pkg, "SeriesMonitor");
    incomparable::<SeriesMonitorCpu>(pkg, "SeriesMonitorCpu");
}

fn fields(pkg: &mut Package<'_>) {
    pkg.getter("len(self: SeriesMonitor) -> int", "How many readings.", |m: &mut MonitorSeries| {
        int(m.len())
    })
    .func(
        "field(self: SeriesMonitor, name: string) -> SeriesField",
        "A number of the whole machine: `imbalance` (tasks on the CPU with most, over those on the CPU \
         with fewest, at least 1), `depth` (tasks in the longest dispatch queue), `local_depth` (in the \
         longest one of a CPU), `nr_running`, `stuck_ms` (the longest that a CPU is stuck), `cpus`, \
         `doubted`, `given_up`.",
        |m: &mut MonitorSeries, name: &str| -> Native<SeriesField> {
            known("a machine", name, &Observation::FIELDS)?;
            Ok(m.field(name))
        },
    )
    .func(
        "cpu(self: SeriesMonitor, cpu: int) -> SeriesMonitorCpu",
        "What was read of one CPU.",
        |m: &mut MonitorSeries, cpu: INT| SeriesMonitorCpu(m.clone(), cpu),
    )
    .func(
        "field(self: SeriesMonitorCpu, name: string) -> SeriesField",
        "A number of the CPU: `nr_running`, `ext_running` (those that sched_ext schedules), \
         `local_depth`, `clock` (in nanoseconds), `nr_switches`, `stuck_ms`.",
        |m: &mut SeriesMonitorCpu, name: &str| -> Native<SeriesField> {
            known("a CPU", name, &Observation::OF_CPU)?;
            Ok(m.0.cpu(m.1, name))
        },
    )
    .func(
        "dsq(self: SeriesMonitor, name: string) -> SeriesField",
        "How many tasks wait in a dispatch queue: `\"global\"`, `\"local:3\"` or its id. Of more than 64 \
         queues the longest are known.",
        |m: &mut MonitorSeries, name: &str| m.dsq(name),
    )
    .func(
        "dsq(self: SeriesMonitor, id: int) -> SeriesField",
        "The same of one that the scheduler made, by its id.",
        |m: &mut MonitorSeries, id: INT| m.dsq(&id.to_string()),
    )
    .func(
        "event(self: SeriesMonitor, name: string) -> SeriesField",
        "How often an event has happened, as `/sys/kernel/sched_ext/root/events` counts it; \
         `SCX_EV_` may be left out. `.rate_within(0, \"10/s\")` judges how often.",
        |m: &mut MonitorSeries, name: &str| m.event(name),
    )
    .func(
        "rate(self: SeriesMonitor, name: string) -> SeriesField",
        "How often an event happened in a second since the reading before; the first one has none.",
        |m: &mut MonitorSeries, name: &str| m.rate(name),
    )
    .func("to_string(self: SeriesMonitor) -> string", "How many readings.", |m: &mut MonitorSeries| {
        format!("SeriesMonitor({} readings)", m.len())
    })
    .func(
        "to_string(self: SeriesMonitorCpu) -> string",
        "Which CPU.",
        |m: &mut SeriesMonitorCpu| format!("SeriesMonitorCpu({} readings, CPU {})", m.0.len(), m.1),
    );
}

fn readings_of(t: &Vm) -> Native<MonitorSeries> {
    match t.lab.monitoring().readings() {
        Some(readings) => Ok(MonitorSeries::of_readings(&readings)),
        None => {
            let why = "monitor(): nothing was read, since the scenario does not say so; give it the \
                       option monitor: true";
            Err(Fault::argument(why).into())
        }
    }
}

/// Refuses a name that no observation has, before a field of nothing but errors comes of it.
fn known(of: &str, name: &str, names: &[&str]) -> Native<()> {
    if names.contains(&name) {
        return Ok(());
    }
    let available = nearest_first(name, names.iter().map(|name| (*name).to_owned()).collect());
    let (requested, walked) = (name.to_owned(), format!("what the monitor reads of {of}"));
    let component = requested.clone();
    Err(data::thrown(SnapshotError::FieldNotFound { requested, walked, component, available }))
}

fn told(report: &MonitorReport) -> Map {
    let int = |n: u64| Dynamic::from(int(n));
    let or_unit = |value: Option<Dynamic>| value.unwrap_or(Dynamic::UNIT);
    let (queue, depth) = report.depth.clone().unzip();
    let (stuck_cpu, stuck_ms) = report.stuck_ms.unzip();
    let events: Map =
        report.events.iter().map(|(name, rate)| (name.into(), Dynamic::from(*rate))).collect();
    Map::from([
        ("readings".into(), int(report.readings)),
        ("failed".into(), int(report.failed)),
        ("missed".into(), int(report.missed)),
        ("doubted".into(), int(report.doubted)),
        ("given_up".into(), int(report.given_up)),
        ("imbalance".into(), or_unit(report.imbalance.map(Dynamic::from))),
        ("depth".into(), or_unit(depth.map(|n| int(n.into())))),
        ("queue".into(), or_unit(queue.map(Dynamic::from))),
        ("stuck_ms".into(), or_unit(stuck_ms.map(int))),
        ("stuck_cpu".into(), or_unit(stuck_cpu.map(|n| int(n.into())))),
        ("events".into(), events.into()),
        ("longest_us".into(), int(report.longest_us)),
    ])
}
