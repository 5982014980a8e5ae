//! What a series holds at a place is what the accessors of each snapshot answer.

use super::*;
use crate::snapshot::testing::{Object, Rows, Types, bytes, task, types};
use crate::snapshot::{KeyArg, Pick, Reduce, Shelf, Slot, Trigger};

/// The maps of the sample scheduler after `n` rounds; `extra` ones come first.
fn object(t: &Types, n: u64, extra: usize) -> Object {
    let mut o = Object { btf: Some(t.btf.clone()), maps: Vec::new() };
    let section = |bytes: Vec<u8>| Rows { values: vec![bytes], ..Rows::default() };
    for i in 0..extra {
        o.map(&format!("extra{i}"), "array", (t.u32_, t.u64_), section(bytes![n]));
    }
    let mut bss = bytes![10 * n, 9 * n, n, -(n as i64)];
    bss.extend(crate::snapshot::testing::comm("hello"));
    o.map("fifo.bss", "array", (0, t.bss), section(bss));
    o.map("fifo.rodata", "array", (0, t.rodata), section(bytes![5_000_000u64]));
    let squares = (0..5u64).map(|i| bytes![i * n]).collect();
    o.map("squares", "array", (t.u32_, t.u64_), Rows { values: squares, ..Rows::default() });
    // The task with the number 7 comes in another place each time, and is gone in each fifth.
    let mut pids: Vec<u32> = vec![1000 + n as u32, 7, 3, 2000];
    pids.rotate_left((n % 4) as usize);
    pids.retain(|pid| *pid != 7 || n % 5 != 4);
    let tasks = pids
        .iter()
        .map(|pid| (bytes![*pid], task(pid + n as u32, -(n as i64), (n % 3) as i32, "name")));
    let (keys, values) = tasks.unzip();
    o.map(
        "task_ctx",
        "hash",
        (t.u32_, t.task),
        Rows { keys: Some(keys), values, ..Rows::default() },
    );
    let cpus = (0..4u64).map(|cpu| Some(bytes![n * cpu, -(cpu as i64)])).collect();
    let per_cpu = Rows { cpus: Some(vec![cpus]), ..Rows::default() };
    o.map("cpu_stats", "percpu_array", (t.u32_, t.stats), per_cpu);
    o
}

fn meta(i: u64) -> Meta {
    let trigger = Trigger::Periodic { boundary_offset_ms: 100 * i };
    let phase = (i >= 2).then(|| if i < 6 { "narrow" } else { "wide" }.to_owned());
    let step_index = match i {
        0 | 1 => 0,
        2..6 => 1,
        _ => 2,
    };
    let meta = Meta { tag: format!("s{i}"), trigger, phase, step_index, ..Meta::default() };
    meta.at(ms(100 * i + 1))
}

/// Twelve samples: the types are made anew in the middle, as those of a scheduler that was
/// replaced; one is a placeholder, some have maps that the others lack.
fn snapshots() -> Vec<Arc<Snapshot>> {
    let (first, second) = (types(), types());
    let each = |i: u64| match i {
        5 => Snapshot::placeholder(meta(i), "CPU 1 did not stop"),
        _ => {
            let types = if i < 7 { &first } else { &second };
            let extra = usize::from(matches!(i, 3 | 8));
            Snapshot::new(meta(i), object(types, i + 1, extra).maps, Vec::new())
        }
    };
    (0..12).map(each).collect()
}

fn targets() -> Vec<Target> {
    let entry = |map: &str, pick, slot, path: &str| Target::Entry {
        map: map.to_owned(),
        pick,
        slot,
        path: path.to_owned(),
    };
    let key = |n: i128| Pick::Key(KeyArg::Number(n));
    let global = |name: &str| Target::Global(name.to_owned());
    vec![
        global("nr_enqueued"),
        global("totals.worst"),
        global("slice_ns"),
        global("probe.____fmt"),
        global("totals"),
        global("nr_enqueue"),
        global("totals..nr"),
        entry("squares", Pick::At(3), Slot::Only, ""),
        entry("squares", Pick::At(9), Slot::Only, ""),
        entry("squares", key(4), Slot::Only, ""),
        entry("task_ctx", key(7), Slot::Only, "ctx.weight"),
        entry("task_ctx", key(7), Slot::Only, "bits.mid"),
        entry("task_ctx", key(7), Slot::Only, "state"),
        entry("task_ctx", key(7), Slot::Only, "exact"),
        entry("task_ctx", key(7), Slot::Only, "next"),
        entry("task_ctx", Pick::At(0), Slot::Only, "comm"),
        entry("task_ctx", Pick::At(1), Slot::Only, "ctx.vtime"),
        entry("cpu_stats", Pick::At(0), Slot::Only, "nr"),
        entry("cpu_stats", Pick::At(0), Slot::Cpu(2), "nr"),
        entry("cpu_stats", Pick::At(0), Slot::Cpu(4), "nr"),
        entry("cpu_stats", Pick::At(0), Slot::All(Reduce::Sum), "worst"),
        entry("extra0", Pick::At(0), Slot::Only, ""),
        entry("nothing", Pick::At(0), Slot::Only, ""),
    ]
}

#[test]
fn a_projection_is_what_the_accessors_say() {
    let snapshots = snapshots();
    let filed = Shelf::new(&std::env::temp_dir()).unwrap();
    let kinds: [fn(&Shelf, &Arc<Snapshot>) -> Sample; 2] = [
        |_, snapshot| Sample::held(snapshot.clone()),
        |shelf, snapshot| Sample::filed(snapshot.meta().clone(), shelf.put(snapshot).unwrap()),
    ];
    for kind in kinds {
        let samples = snapshots.iter().rev().map(|snapshot| kind(&filed, snapshot)).collect();
        let series = SampleSeries::new(samples);
        let together = series.targets(targets().into_iter().map(|t| ("x".into(), t)).collect());
        for (target, again) in targets().into_iter().zip(together) {
            let field = series.target("x", target.clone());
            assert_eq!(field.len(), 12);
            for (snapshot, point) in snapshots.iter().zip(field.points()) {
                assert_eq!(&*point.stamp.tag, snapshot.tag());
                let want = match snapshot.placeholder_reason() {
                    Some(reason) => Err(SnapshotError::PlaceholderSample {
                        tag: "s5".to_owned(),
                        reason: reason.to_owned(),
                    }),
                    None => target.read(snapshot),
                };
                let found = point.value.cloned().map_err(Clone::clone);
                assert_eq!(found, want, "{target:?} in {}", snapshot.tag());
            }
            let same = |a: &SeriesField, b: &SeriesField| {
                a.points().zip(b.points()).all(|(a, b)| a.value == b.value)
            };
            assert!(same(&field, &again), "{target:?}");
        }
    }
    // Something is there in each of them at all.
    let series = SampleSeries::new(snapshots.into_iter().map(Sample::held).collect());
    let field = series.target("x", Target::Global("nr_enqueued".into()));
    assert_eq!((field.first(), field.last()), (Ok(Scalar::Int(10)), Ok(Scalar::Int(120))));
    assert_eq!(field.usable().count(), 11);
    let weight = series.target("x", Target::parse("task_ctx/7.ctx.weight").unwrap());
    // Samples 3 and 8 lack the task, 5 is a placeholder.
    assert_eq!(weight.usable().count(), 9);
}

#[test]
fn phases_are_steps_and_a_name_may_come_again() {
    let series = SampleSeries::new(snapshots().into_iter().map(Sample::held).collect());
    let names: Vec<String> = series.phases().iter().map(|name| name.to_string()).collect();
    assert_eq!(names, ["narrow", "wide"]);
    assert_eq!((series.phase("narrow").len(), series.phase("wide").len()), (4, 6));
    assert_eq!((series.phase("x").len(), series.periodic().len()), (0, 12));
    let field = series.target("nr", Target::Global("nr_enqueued".into()));
    let delta = field.per_phase(SeriesField::delta).unwrap();
    let told: Vec<(String, Scalar)> =
        delta.into_iter().map(|(name, delta)| (name.to_string(), delta)).collect();
    // 3 to 5 (the last one is a placeholder), 7 to 12.
    let want = [("narrow".to_owned(), Scalar::Int(20)), ("wide".to_owned(), Scalar::Int(50))];
    assert_eq!(told, want);
    assert_eq!(field.ratio_across_phases("narrow", "wide"), Ok(0.4));
    assert_eq!(
        field.ratio_across_phases("narrow", "late").unwrap_err(),
        "phase \"late\" has 0 usable samples; a change needs two"
    );
    let slice = series.target("slice", Target::Global("slice_ns".into()));
    assert_eq!(
        slice.ratio_across_phases("narrow", "wide").unwrap_err(),
        "slice did not change in phase \"wide\": there is no ratio"
    );
    let mut again = PhaseNames::default();
    let names = [("a", 1), ("b", 2), ("a", 3), ("a", 1)].map(|(name, n)| again.of(name, n));
    assert_eq!(names.map(|name| name.to_string()), ["a", "b", "a#2", "a"]);
}

#[test]
fn counters_are_all_numbers_that_may_change() {
    let series = SampleSeries::new(snapshots().into_iter().map(Sample::held).collect());
    let (counters, all) = series.counters();
    let labels: Vec<&str> = counters.iter().map(SeriesField::label).collect();
    assert_eq!(labels, ["nr_enqueued", "nr_dispatched", "totals.nr", "totals.worst"]);
    assert!(all);
    assert_eq!(counters[3].last(), Ok(Scalar::Int(-12)));
    let (few, all) = crate::snapshot::counters(&snapshots()[0], 2);
    assert_eq!((few, all), (vec!["nr_enqueued".to_owned(), "nr_dispatched".to_owned()], false));
    assert!(SampleSeries::new(Vec::new()).counters().0.is_empty());
}

#[test]
fn places_are_spelled_in_one_text() {
    let entry = |map: &str, key: KeyArg, path: &str| {
        let (map, path) = (map.to_owned(), path.to_owned());
        Ok(Target::Entry { map, pick: Pick::Key(key), slot: Slot::Only, path })
    };
    assert_eq!(Target::parse("nr.x[3]"), Ok(Target::Global("nr.x[3]".into())));
    assert_eq!(Target::parse("a.bss/0"), entry("a.bss", KeyArg::Number(0), ""));
    assert_eq!(Target::parse("t/-7.a.b"), entry("t", KeyArg::Number(-7), "a.b"));
    assert_eq!(Target::parse("t/0x10[2]"), entry("t", KeyArg::Number(16), "[2]"));
    assert_eq!(Target::parse("t/init.x"), entry("t", KeyArg::Str("init".into()), "x"));
    assert_eq!(Target::parse("t/\"a.b[1]\".x"), entry("t", KeyArg::Str("a.b[1]".into()), "x"));
    for wrong in ["/3", "t/", "t/.x", "t/3.", "t/\"open"] {
        let error = Target::parse(wrong).unwrap_err();
        assert_eq!(error, SnapshotError::EmptyPathComponent { requested: wrong.to_owned() });
    }
}

#[test]
fn a_cpu_without_its_time_says_so() {
    let series = SampleSeries::new(snapshots().into_iter().map(Sample::held).collect());
    let field = series.cpustat(3, "user");
    let (_, error) = field.errors().next().unwrap();
    let want = SnapshotError::HostFieldUnavailable { tag: "s0".to_owned(), cpu: 3 };
    assert_eq!(*error, want);
    let held = vec![Sample::held(crate::snapshot::testing::made_up(true))];
    let series = SampleSeries::new(held);
    let none = series.cpustat(0, "usr");
    let (_, error) = none.errors().next().unwrap();
    assert_eq!(error.kind(), "FieldNotFound", "{error}");
    assert_eq!(series.cpustat(0, "user").usable().count(), 1);
    let (_, error) =
        series.cpustat(99, "user").errors().next().map(|(s, e)| (s, e.clone())).unwrap();
    let want = SnapshotError::HostFieldUnavailable { tag: "end".to_owned(), cpu: 99 };
    assert_eq!(error, want);
}
