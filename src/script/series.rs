//! Series of samples as scripts see them: `SampleSeries`, the projections, `SeriesField`.

mod patterns;

use std::path::Path;
use std::sync::Arc;

use rhai::{Array, Dynamic, EvalAltResult, FnPtr, INT, Map, NativeCallContext};

use super::data;
use super::expect::what_was_thrown;
use super::fault::{Fault, Native};
use super::register::Package;
use super::session::Session;
use super::statistics;
use super::values::{described, from_scalar, incomparable, int, to_scalar};
use super::vm::{Vm, no_such};
use crate::scenario::lab::LabOps;
use crate::series::{Sample, SampleSeries, SeriesField};
use crate::snapshot::{
    KeyArg, Pick, Reduce, Scalar, Slot, Snapshot, SnapshotError, SnapshotResult, Target,
};

/// A map in every sample.
#[derive(Clone)]
struct SeriesMap {
    series: SampleSeries,
    name: String,
}

/// An entry of a map in every sample.
#[derive(Clone)]
struct SeriesEntry {
    map: SeriesMap,
    pick: Pick,
    slot: Slot,
}

/// The times of a machine's CPUs in every sample.
#[derive(Clone)]
struct SeriesCpustat(SampleSeries);

/// The times of one CPU.
#[derive(Clone)]
struct SeriesCpu(SampleSeries, INT);

/// Everything that was captured of a machine so far, in the order of time.
pub(super) fn of_lab(lab: &dyn LabOps) -> SampleSeries {
    let mut samples = lab.sampling().taken();
    samples.extend(lab.snapshots().into_iter().map(Sample::held));
    SampleSeries::new(samples)
}

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.func(
        "series(self: Vm) -> SampleSeries",
        "Everything that was captured so far, in the order of time: periodic samples, and snapshots \
         that were asked for. `.periodic()` has the former only. Waits for nothing.",
        |t: &mut Vm| of_lab(&*t.lab),
    );
    pkg.ty::<SampleSeries>(
        "SampleSeries",
        "Samples of a machine in the order of time. A projection takes one value out of each.",
    );
    about(pkg);
    variables(pkg, session);
    maps(pkg);
    times(pkg);
    store(pkg);
    patterns::register(pkg, session);
    incomparable::<SampleSeries>(pkg, "SampleSeries");
    incomparable::<SeriesMap>(pkg, "SeriesMap");
    incomparable::<SeriesEntry>(pkg, "SeriesEntry");
    incomparable::<SeriesCpustat>(pkg, "SeriesCpustat");
    incomparable::<SeriesCpu>(pkg, "SeriesCpu");
}

fn native<T>(result: SnapshotResult<T>) -> Native<T> {
    result.map_err(data::thrown)
}

fn about(pkg: &mut Package<'_>) {
    pkg.getter("len(self: SampleSeries) -> int", "How many samples.", |s: &mut SampleSeries| {
        int(s.len())
    })
    .func(
        "at(self: SampleSeries, i: int) -> Snapshot",
        "Sample `i`, from 0. Throws `IndexOutOfRange`.",
        |s: &mut SampleSeries, i: INT| at(s, i),
    )
    .index(
        "index(self: SampleSeries, i: int) -> Snapshot",
        "The same: `series[0]`.",
        |s: &mut SampleSeries, i: INT| at(s, i),
    )
    .iterable(|s: SampleSeries| {
        let samples = s.samples().to_vec().into_iter();
        Box::new(samples.map(|sample| Ok(data::snapshot(sample.whatever()))))
    })
    .func(
        "periodic(self: SampleSeries) -> SampleSeries",
        "Those that the option `samples` took.",
        |s: &mut SampleSeries| s.periodic(),
    )
    .func(
        "phase(self: SampleSeries, name: string) -> SampleSeries",
        "Those of one phase; the second one of a name is `name#2`. A name that no sample has is \
         refused with the nearest.",
        |s: &mut SampleSeries, name: &str| -> Native<SampleSeries> {
            known_phase(name, &s.phases())?;
            Ok(s.phase(name))
        },
    )
    .func(
        "phases(self: SampleSeries) -> array",
        "The phases that have samples, in order.",
        |s: &mut SampleSeries| names(s.phases()),
    )
    .func("to_string(self: SampleSeries) -> string", "How many there are.", told)
    .func("to_debug(self: SampleSeries) -> string", "How many there are.", told);
}

fn told(s: &mut SampleSeries) -> String {
    let phases = s.phases();
    match phases.as_slice() {
        [] => format!("SampleSeries({} samples)", s.len()),
        all => format!("SampleSeries({} samples, phases {})", s.len(), all.join(", ")),
    }
}

fn names(phases: Vec<Arc<str>>) -> Array {
    phases.iter().map(|name| name.to_string().into()).collect()
}

fn known_phase(name: &str, phases: &[Arc<str>]) -> Native<()> {
    if phases.iter().any(|known| &**known == name) {
        return Ok(());
    }
    let known: Vec<&str> = phases.iter().map(|name| &**name).collect();
    Err(Fault::argument(no_such("phase with samples", name, &known)).into())
}

fn at(s: &SampleSeries, i: INT) -> Native<Dynamic> {
    let sample = usize::try_from(i).ok().and_then(|i| s.samples().get(i));
    let out = || SnapshotError::IndexOutOfRange { map: "series".into(), index: i, len: s.len() };
    native(sample.map(|sample| data::snapshot(sample.whatever())).ok_or_else(out))
}

fn variables(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.func(
        "bpf(self: SampleSeries, place: string) -> SeriesField",
        "What is at a place in each sample: a global variable, `\"nr_enqueued\"` or \
         `\"stats.nr[2]\"`, or a map's entry, `\"task_ctx/1234.weight\"` (a key with a dot in it in \
         quotes). It is found once, and read by its offset wherever the maps are the same.",
        |s: &mut SampleSeries, place: &str| -> Native<SeriesField> {
            Ok(s.target(place, native(Target::parse(place))?))
        },
    );
    let (of_stats, session) = (session.clone(), session.clone());
    pkg.func(
        "bpf(self: SampleSeries, label: string, f: closure) -> SeriesField",
        "What a closure makes of each sample: `s.bpf(\"backlog\", |snap| snap.global(\"nr_in\") - \
         snap.global(\"nr_out\"))`. What it throws is that sample's error.",
        move |ctx: NativeCallContext<'_>, s: &mut SampleSeries, label: &str, f: FnPtr| {
            by_closure(&session, &ctx, s, label, &f)
        },
    )
    .func(
        "stats(self: SampleSeries, path: string) -> SeriesField",
        "A value in the scheduler's statistics at each sample: `\"nr_queued\"`, `\"cpus[2].load\"`. A \
         sample without them has the error `MissingStats` with the reason.",
        |s: &mut SampleSeries, path: &str| s.stats(path),
    );
    let session = of_stats;
    pkg.func(
        "stats(self: SampleSeries, label: string, f: closure) -> SeriesField",
        "What a closure makes of each sample's statistics.",
        move |ctx: NativeCallContext<'_>, s: &mut SampleSeries, label: &str, f: FnPtr| {
            s.try_project(label, |_, snapshot| {
                if session.cancel.is_raised() {
                    return Err(session.cancelled(session.place(&ctx)));
                }
                match snapshot.stats() {
                    Ok(stats) => {
                        let args = (statistics::value(&session, stats.clone()),);
                        value_or_error(label, f.call_within_context::<Dynamic>(&ctx, args))
                    }
                    Err(error) => Ok(Err(error)),
                }
            })
        },
    )
    .func(
        "bpf_live(self: SampleSeries, name: string) -> SeriesField",
        "A global variable of the scheduler that is live in each sample. Within one phase it has to \
         be the same one: `WalkerDriftedWithinPhase` is the error of a sample that has another.",
        |s: &mut SampleSeries, name: &str| s.live(name),
    )
    .func(
        "bpf_live_all(self: SampleSeries, names: array) -> map",
        "Several of them, by name; each sample is read once.",
        |s: &mut SampleSeries, names: Array| -> Native<Map> {
            let text = |name: Dynamic| -> Native<String> {
                let found = described(&name);
                name.into_string().map_err(|_| {
                    let text = format!("bpf_live_all(..) takes names as strings, found {found}");
                    Fault::argument(text).into()
                })
            };
            let names: Vec<String> = names.into_iter().map(text).collect::<Result<_, _>>()?;
            let fields = s.live_all(&names).into_iter();
            Ok(fields.map(|f| (f.label().into(), Dynamic::from(f))).collect())
        },
    )
    .func(
        "counters(self: SampleSeries) -> array",
        "A `SeriesField` for every number among the global variables that may change, members of \
         structs and elements of short arrays by themselves; at most 4096.",
        |s: &mut SampleSeries| -> Array {
            s.counters().0.into_iter().map(Dynamic::from).collect()
        },
    );
}

fn by_closure(
    session: &Session,
    ctx: &NativeCallContext<'_>,
    series: &SampleSeries,
    label: &str,
    f: &FnPtr,
) -> Native<SeriesField> {
    series.try_project(label, |_, snapshot| {
        if session.cancel.is_raised() {
            return Err(session.cancelled(session.place(ctx)));
        }
        closure_on(ctx, label, f, snapshot)
    })
}

/// What a closure makes of a snapshot; the outer error ends the script.
fn closure_on(
    ctx: &NativeCallContext<'_>,
    label: &str,
    f: &FnPtr,
    snapshot: &Arc<Snapshot>,
) -> Native<SnapshotResult<Scalar>> {
    let mark = data::mark();
    let value = f.call_within_context::<Dynamic>(ctx, (data::snapshot(snapshot.clone()),));
    let value = value_or_error(label, value);
    data::forget_since(mark);
    value
}

/// What came of a closure's call, as a sample's value.
fn value_or_error(
    label: &str,
    value: Result<Dynamic, Box<EvalAltResult>>,
) -> Native<SnapshotResult<Scalar>> {
    match value {
        Ok(value) => Ok(to_scalar(&value).and_then(|scalar| {
            scalar.ok_or_else(|| SnapshotError::TypeMismatch {
                expected: "a single value from the closure".to_owned(),
                actual: described(&value),
                requested: label.to_owned(),
            })
        })),
        Err(error) => match data::error_in(&error) {
            Some(error) => Ok(Err(error)),
            None => {
                what_was_thrown(error).map(|reason| Err(SnapshotError::ProjectionFailed { reason }))
            }
        },
    }
}

fn maps(pkg: &mut Package<'_>) {
    pkg.ty::<SeriesMap>("SeriesMap", "A map in every sample of a series.")
        .ty::<SeriesEntry>("SeriesEntry", "An entry of a map in every sample of a series.")
        .func(
            "map(self: SampleSeries, name: string) -> SeriesMap",
            "The map of that name in each sample; whether there is one shows in the projection.",
            |s: &mut SampleSeries, name: &str| SeriesMap {
                series: s.clone(),
                name: name.to_owned(),
            },
        )
        .func(
            "at(self: SeriesMap, i: int) -> SeriesEntry",
            "The entry at a position: an array's index, else the place in the order of keys.",
            |m: &mut SeriesMap, i: INT| m.entry(Pick::At(i)),
        )
        .func(
            "get(self: SeriesMap, key: any) -> SeriesEntry",
            "The entry with a key.",
            |m: &mut SeriesMap, key: Dynamic| -> Native<SeriesEntry> {
                Ok(m.entry(Pick::Key(data::key_arg(&key)?)))
            },
        )
        .func(
            "cpu(self: SeriesEntry, cpu: int) -> SeriesEntry",
            "What one CPU has of it, in a per-CPU map.",
            |e: &mut SeriesEntry, cpu: INT| SeriesEntry { slot: Slot::Cpu(cpu), ..e.clone() },
        )
        .func(
            "field(self: SeriesEntry, path: string) -> SeriesField",
            "What is at a path in the value; `\"\"` is the value itself.",
            |e: &mut SeriesEntry, path: &str| e.field(path, e.slot),
        );
    let reductions = [
        ("cpu_sum", "The sum over all CPUs of what is at a path.", Reduce::Sum),
        ("cpu_max", "The largest of all CPUs' numbers at a path.", Reduce::Max),
        ("cpu_min", "The smallest of all CPUs' numbers at a path.", Reduce::Min),
    ];
    for (name, doc, how) in reductions {
        pkg.func(
            &format!("{name}(self: SeriesEntry, path: string) -> SeriesField"),
            doc,
            move |e: &mut SeriesEntry, path: &str| e.field(path, Slot::All(how)),
        );
    }
    pkg.func("to_string(self: SeriesMap) -> string", "Its name.", |m: &mut SeriesMap| {
        m.name.clone()
    })
    .func("to_string(self: SeriesEntry) -> string", "Its name.", |e: &mut SeriesEntry| {
        e.label("", e.slot)
    });
}

impl SeriesMap {
    fn entry(&self, pick: Pick) -> SeriesEntry {
        SeriesEntry { map: self.clone(), pick, slot: Slot::Only }
    }
}

impl SeriesEntry {
    fn field(&self, path: &str, slot: Slot) -> SeriesField {
        let target = Target::Entry {
            map: self.map.name.clone(),
            pick: self.pick.clone(),
            slot,
            path: path.to_owned(),
        };
        self.map.series.target(&self.label(path, slot), target)
    }

    /// `cpu_stats[0].nr on CPU 2`.
    fn label(&self, path: &str, slot: Slot) -> String {
        let key = match &self.pick {
            Pick::At(i) => i.to_string(),
            Pick::Key(key) => KeyArg::spelled(key),
        };
        let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
        let of = match slot {
            Slot::Only => String::new(),
            Slot::Cpu(cpu) => format!(" on CPU {cpu}"),
            Slot::All(Reduce::Sum) => " summed over CPUs".to_owned(),
            Slot::All(Reduce::Max) => " at most over CPUs".to_owned(),
            Slot::All(Reduce::Min) => " at least over CPUs".to_owned(),
        };
        format!("{}[{key}]{dot}{path}{of}", self.map.name)
    }
}

fn times(pkg: &mut Package<'_>) {
    pkg.ty::<SeriesCpustat>("SeriesCpustat", "The times of all CPUs in every sample of a series.")
        .ty::<SeriesCpu>("SeriesCpu", "The times of one CPU in every sample of a series.")
        .func(
            "cpustat(self: SampleSeries) -> SeriesCpustat",
            "The CPUs' times: `s.cpustat().cpu(0).field(\"user\")`, in nanoseconds.",
            |s: &mut SampleSeries| SeriesCpustat(s.clone()),
        )
        .func(
            "cpu(self: SeriesCpustat, cpu: int) -> SeriesCpu",
            "Those of one CPU. A sample without them has the error `HostFieldUnavailable`.",
            |s: &mut SeriesCpustat, cpu: INT| SeriesCpu(s.0.clone(), cpu),
        )
        .func(
            "field(self: SeriesCpu, name: string) -> SeriesField",
            "One of them: `user`, `system`, `idle`, ..",
            |s: &mut SeriesCpu, name: &str| s.0.cpustat(s.1, name),
        )
        .func("to_string(self: SeriesCpustat) -> string", "What it is.", |s: &mut SeriesCpustat| {
            format!("SeriesCpustat({} samples)", s.0.len())
        })
        .func("to_string(self: SeriesCpu) -> string", "What it is.", |s: &mut SeriesCpu| {
            format!("SeriesCpu({} samples, CPU {})", s.0.len(), s.1)
        });
}

fn store(pkg: &mut Package<'_>) {
    pkg.func(
        "save(self: SampleSeries, path: string)",
        "Writes all samples to one file, in the place of one that is there; `open(path)` gives the \
         series back.",
        |s: &mut SampleSeries, path: &str| -> Native<()> {
            let saved = s.save(Path::new(path));
            Ok(saved.map_err(|e| Fault::argument(e.to_string()))?)
        },
    );
}

/// A field's values as a script has them; `()` where there is an error.
fn values(field: &SeriesField) -> Array {
    let value = |scalar: &Scalar| from_scalar(scalar.clone());
    field.points().map(|point| point.value.map_or(Dynamic::UNIT, value)).collect()
}
