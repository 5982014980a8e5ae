//! A scheduler that is attached to a cgroup, below another one: what a snapshot says of the two
//! equals what the guest's own kernel says of them in /sys and through the bpf() syscall.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cryoscope::freeze::Freezer;
use cryoscope::kernel::KernelImage;
use cryoscope::scheduler::{self, Contents, SchedulerSpec, Toolchain};
use cryoscope::snapshot::{
    CaptureRequest, Map, Meta, Scalar, Sched, Snapshot, SnapshotError, SnapshotResult,
};
use cryoscope::wire::{Answer, Attach, CgroupSet, Exec, HeldMap, Op, Work, WorkKind};
use support::{CALL, Guest};

const SOURCE: &str = "tests/schedulers/subtree.bpf.c";
const LOWER: &str = "/lower.bpf.o";
const NARROW: &str = "/narrow.bpf.o";
/// The cgroup of the lower one.
const HOT: &str = "/lab/hot";
/// `BPF_PROG_TYPE_STRUCT_OPS` and `BPF_MAP_TYPE_STRUCT_OPS` of `enum bpf_prog_type` and
/// `enum bpf_map_type`.
const STRUCT_OPS_PROG: u32 = 27;
const STRUCT_OPS_MAP: u32 = 26;

/// A scheduler's object that is loaded by hand.
fn object(src: &str, defines: &[&str], image: &KernelImage) -> Vec<u8> {
    let spec = SchedulerSpec {
        src: src.to_owned(),
        base_dir: support::project(""),
        defines: defines.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let tools = Toolchain::new(None, std::env::var_os("PATH"));
    let made = scheduler::prepare(&spec, image, &support::cache(), &tools);
    let made = made.unwrap_or_else(|e| panic!("{src}: {e}"));
    let object = made.files.into_iter().find(|file| file.guest.ends_with(".bpf.o"));
    match object.expect("an object").contents {
        Contents::Host(path) => std::fs::read(&path).expect("it is there"),
        Contents::Bytes(bytes) => bytes.to_vec(),
    }
}

fn freeze(freezer: &mut Freezer) -> Arc<Snapshot> {
    let meta = || Meta { tag: "t".into(), ..Meta::default() };
    freezer.freeze(&CaptureRequest::default(), meta).unwrap_or_else(|e| panic!("{e}"))
}

/// Counts as sysfs has them.
fn events(guest: &Guest, of: &str) -> BTreeMap<String, i64> {
    let text = guest.file(&format!("/sys/kernel/sched_ext/{of}/events"));
    let counts = text.lines().filter_map(|line| line.split_once(' '));
    counts.map(|(name, n)| (name.to_owned(), n.trim().parse().expect("a count"))).collect()
}

/// A scheduler's counters.
fn counters(sched: &Sched) -> SnapshotResult<BTreeMap<String, i64>> {
    let count = |(name, count)| match count {
        Scalar::Int(count) => (name, count),
        other => panic!("{name}: {other:?}"),
    };
    Ok(sched.counters(None)?.into_iter().map(count).collect())
}

/// Each scheduler has its own: those of the lower one stand still while its tasks are frozen, those
/// of the upper one go on.
fn counters_are_what_sysfs_has(upper: &Sched, lower: &Sched, guest: &Guest) -> SnapshotResult<()> {
    let below = format!("root/sub/sub-{}", lower.id()?);
    let (above, later) = (counters(upper)?, events(guest, "root"));
    assert!(above.keys().eq(later.keys()), "{above:?}, then {later:?}");
    for (name, count) in &above {
        assert!((0..=later[name]).contains(count), "{name}: {count}, then {later:?}");
    }
    let own = counters(lower)?;
    assert_eq!(own, events(guest, &below));
    assert!(own.values().any(|count| *count > 0), "{own:?}");
    assert_ne!(above, own);
    Ok(())
}

fn the_tree_is_what_sysfs_has(snap: &Arc<Snapshot>, guest: &Guest, id: u64) -> SnapshotResult<()> {
    let scheds = snap.scheds()?;
    let told: Vec<(String, &str, u64)> = scheds
        .iter()
        .map(|sched| Ok((sched.ops()?.as_str()?, sched.path()?, sched.id()?)))
        .collect::<SnapshotResult<_>>()?;
    let (upper, lower) = (("upper".to_owned(), "/", 1), ("lower".to_owned(), HOT, id));
    assert_eq!(told, [upper, lower]);
    let below = format!("root/sub/sub-{id}");
    assert_eq!(guest.file("/sys/kernel/sched_ext/root/ops").trim(), "upper");
    assert_eq!(guest.file(&format!("/sys/kernel/sched_ext/{below}/ops")).trim(), "lower");
    assert!(scheds.iter().all(|sched| sched.is_live() == Ok(true)));
    assert_eq!(snap.active()?.ops()?.as_str()?, "upper");
    assert_eq!(snap.sched_of("/")?.children()?[0].path()?, HOT);
    let lower = snap.sched_of(HOT)?;
    assert_eq!(lower.parent()?.map(|sched| sched.path().map(str::to_owned)), Some(Ok("/".into())));
    assert_eq!(lower.get("level")?.as_i64()?, 1);
    counters_are_what_sysfs_has(&scheds[0], &lower, guest)?;
    let e = snap.sched_of("/lab/hto").map(drop).unwrap_err().to_string();
    assert!(e.contains(HOT), "{e}");
    Ok(())
}

fn variables_are_told_apart(snap: &Arc<Snapshot>, id: u64) -> SnapshotResult<()> {
    // Each of the two has one that the other has not.
    assert_eq!(snap.live_global("attached_to")?.as_u64()?, id);
    assert_eq!(snap.live_global("nr_attached")?.as_u64()?, 1);
    assert!(snap.live_global("nr_sub_init")?.as_u64()? >= 4, "tasks of the cgroup");
    match snap.live_global("nr_queued") {
        Err(SnapshotError::AmbiguousVar { requested, found_in }) => {
            assert_eq!(
                (requested.as_str(), &found_in[..]),
                ("nr_queued", &["/", HOT].map(String::from)[..])
            );
        }
        other => panic!("{other:?}"),
    }
    let (upper, lower) = (snap.sched_of("/")?, snap.sched_of(HOT)?);
    assert!(upper.global("nr_queued")?.as_u64()? > 0);
    assert!(lower.global("nr_queued")?.as_u64()? > 0, "its tasks ran");
    assert!(lower.global("attached_to").is_err());
    assert!(upper.global("nr_sub_init").is_err());
    Ok(())
}

/// Each scheduler's programs and maps are those that the syscall lists, and what has stood still
/// since holds what the syscall reads.
fn maps_are_what_the_syscall_has(snap: &Arc<Snapshot>, guest: &Guest) -> SnapshotResult<()> {
    let Answer::Progs(said) = guest.call(Op::ListProgs) else { panic!("no programs") };
    let Answer::Maps(held) = guest.call(Op::HoldMaps) else { panic!("no maps") };
    let (mut progs, mut maps) = (BTreeSet::new(), BTreeSet::new());
    for path in ["/", HOT] {
        let sched = snap.sched_of(path)?;
        let own: BTreeSet<u32> = sched.progs()?.iter().map(|prog| prog.state().id).collect();
        let listed = said.iter().filter(|prog| own.contains(&prog.id));
        let mut used: BTreeSet<u32> = listed.flat_map(|prog| prog.maps.clone()).collect();
        let of_sched = sched.maps()?;
        let ops: Vec<&Map> = of_sched.iter().filter(|m| m.attrs().kind == "struct_ops").collect();
        assert_eq!(ops.len(), 1, "{path}");
        assert!(of_sched.iter().any(|map| map.attrs().kind == "arena"), "{path}");
        used.insert(ops[0].attrs().id);
        let ids: BTreeSet<u32> = of_sched.iter().map(|map| map.attrs().id).collect();
        assert!(used.is_subset(&ids), "{path}: {ids:?}, by the syscall {used:?}");
        assert!(own.iter().all(|id| progs.insert(*id)), "{path} shares programs");
        assert!(ids.iter().all(|id| maps.insert(*id)), "{path} shares maps");
    }
    let all = said.iter().filter(|prog| prog.kind == STRUCT_OPS_PROG).map(|prog| prog.id);
    assert_eq!(progs, all.collect(), "struct_ops programs");
    assert_eq!(maps, held.iter().map(|map| map.id).collect(), "{held:?}");
    let ops = held.iter().filter(|map| map.kind == STRUCT_OPS_MAP);
    assert_eq!(ops.count(), 2);
    let section = |path: &str, name: &str| -> SnapshotResult<(Map, Vec<u8>)> {
        let maps = snap.sched_of(path)?.maps()?;
        let map = maps.into_iter().find(|map| map.name().ends_with(name)).expect("it has that");
        let bytes = map.at(0)?.value()?.raw()?;
        Ok((map, bytes))
    };
    for (path, name) in [("/", ".data.below"), (HOT, ".bss")] {
        let (map, bytes) = section(path, name)?;
        let held = held.iter().find(|h| h.id == map.attrs().id).expect("it is held");
        let by_syscall = first_value(guest, held);
        assert!(bytes.iter().any(|byte| *byte != 0), "{path} {name}");
        assert_eq!(bytes, by_syscall, "{path} {name}");
    }
    Ok(())
}

fn first_value(guest: &Guest, map: &HeldMap) -> Vec<u8> {
    match guest.call(Op::DumpMap { id: map.id, skip: 0 }) {
        Answer::MapPage { entries, .. } => entries[0].1.0.clone(),
        other => panic!("{}: {other:?}", map.name),
    }
}

fn tasks_know_their_scheduler(snap: &Arc<Snapshot>, workers: &[u32]) -> SnapshotResult<()> {
    for pid in workers {
        let task = snap.task(i64::from(*pid))?;
        assert_eq!(task.get("scx.sched.ops.name")?.as_str()?, "lower", "{pid}");
        assert_eq!(task.cgroup()?, Some(HOT));
    }
    assert_eq!(snap.task(1)?.get("scx.sched.ops.name")?.as_str()?, "upper");
    Ok(())
}

/// Attaches a scheduler by hand.
fn hold(guest: &Guest, object: &str, cgroup: &str) -> Exec {
    let argv = ["/init", "hold", object, "--cgroup", cgroup, "--background"];
    let argv = argv.map(str::to_owned).to_vec();
    match guest.call(Op::Exec { argv, timeout_ms: CALL.as_millis() as u64 }) {
        Answer::Exec(done) => done,
        other => panic!("{other:?}"),
    }
}

/// Why it would not.
fn refused(guest: &Guest, object: &str, cgroup: &str) -> String {
    let done = hold(guest, object, cgroup);
    assert_eq!(done.code, Some(1), "{done:?}");
    done.stderr
}

fn it_is_said_what_cannot_be(guest: &Guest) {
    let said = refused(guest, LOWER, "/lab/cold");
    let why = "no cgroup /lab/cold: No such file or directory (/sys/fs/cgroup has those that \
               there are)";
    assert!(said.contains(why), "{said}");
    let said = refused(guest, NARROW, HOT);
    let why = "no struct_ops of /narrow.bpf.o has the member sub_cgroup_id, so it cannot be \
               attached to a cgroup; kernels from 7.1 on have it";
    assert!(said.contains(why), "{said}");
}

/// The lower one alone, at the root, accepts none below it.
fn it_is_said_why_none_goes_below(guest: &Guest) {
    let (path, patches, timeout_ms) = (LOWER.to_owned(), Vec::new(), CALL.as_millis() as u64);
    guest.call(Op::Attach(Attach::Object { path, patches, timeout_ms }));
    let said = refused(guest, LOWER, "/lab");
    let why = "the kernel refused scheduler \"subtree_ops\" of /lower.bpf.o: Operation not \
               supported (the scheduler above lets none attach below it)";
    assert!(said.contains(why), "{said}");
    guest.call(Op::Detach);
}

/// A machine with the upper scheduler and workers in a cgroup.
fn machine(image: &KernelImage) -> (Guest, Vec<u32>) {
    let upper = support::scheduler(SOURCE, image);
    let narrow = "tests/schedulers/narrow.bpf.c";
    let by_hand = [(LOWER, object(SOURCE, &["SUB"], image)), (NARROW, object(narrow, &[], image))];
    let guest = Guest::boot(support::elf(image), "1n1l2c1t", |fs| {
        support::stage(fs, &upper);
        for (path, bytes) in by_hand {
            fs.bytes(path, bytes, 0o644).unwrap_or_else(|e| panic!("{e}"));
        }
    });
    it_is_said_why_none_goes_below(&guest);
    guest.call(support::attach(&upper));
    guest.call(Op::CgroupCreate { name: "hot".into(), set: CgroupSet::default() });
    let (policy, nice, affinity, period_us) = (None, None, None, Some(1_000));
    let (kind, cgroup) = (WorkKind::Sleep, Some("hot".into()));
    let work = Work { kind, count: 4, cgroup, policy, nice, affinity, period_us };
    let Answer::Workers(workers) = guest.call(Op::Start(work)) else { panic!("no workers") };
    (guest, workers)
}

/// Freezes until `wanted` holds.
fn until(
    freezer: &mut Freezer,
    guest: &Guest,
    wanted: impl Fn(&Arc<Snapshot>) -> SnapshotResult<bool>,
) -> Arc<Snapshot> {
    let deadline = Instant::now() + CALL;
    loop {
        let snap = freeze(freezer);
        let held = wanted(&snap);
        if held == Ok(true) {
            return snap;
        }
        if Instant::now() > deadline {
            let Answer::Text(log) = guest.call(Op::Dmesg) else { panic!("no log") };
            panic!("waited for the lower scheduler: {held:?}\n{log}");
        }
    }
}

/// The same of the machine and of a file.
fn everything(snap: &Arc<Snapshot>, guest: &Guest, id: u64, workers: &[u32]) -> SnapshotResult<()> {
    the_tree_is_what_sysfs_has(snap, guest, id)?;
    variables_are_told_apart(snap, id)?;
    maps_are_what_the_syscall_has(snap, guest)?;
    tasks_know_their_scheduler(snap, workers)
}

/// What is left when the process that held the lower scheduler ends.
fn the_upper_one_goes_on(snap: &Arc<Snapshot>, workers: &[u32]) -> SnapshotResult<()> {
    assert_eq!(snap.live_global("nr_detached")?.as_u64()?, 1);
    assert_eq!(snap.live_global("attached_to")?.as_u64()?, 0);
    assert!(snap.live_global("nr_queued")?.as_u64()? > 0, "there is but one");
    for pid in workers {
        let task = snap.task(i64::from(*pid))?;
        assert_eq!(task.get("scx.sched.ops.name")?.as_str()?, "upper", "{pid}");
    }
    Ok(())
}

fn subsched(spec: &str) {
    let image = support::kernel(spec);
    let (mut guest, workers) = machine(&image);
    it_is_said_what_cannot_be(&guest);
    let done = hold(&guest, LOWER, HOT);
    assert_eq!(done.code, Some(0), "{done:?}");
    let mut freezer = Freezer::new(guest.take_engine());
    until(&mut freezer, &guest, |snap| {
        let lower = snap.sched_of(HOT)?;
        Ok(lower.is_live()? && lower.global("nr_queued")?.as_u64()? > 0)
    });
    // What it counts stands still from here on.
    guest.call(Op::CgroupFreeze { name: "hot".into(), frozen: true });
    let snap = freeze(&mut freezer);
    let id = snap.task(workers[0].into()).and_then(|task| task.cgroup_id());
    let id = id.unwrap_or_else(|e| panic!("{e}")).expect("its cgroup");
    // The number of the directory's inode in the guest.
    assert_eq!(done.stdout, format!("cgroup {HOT} has id {id}\nattached subtree_ops\n"));
    everything(&snap, &guest, id, &workers).unwrap_or_else(|e| panic!("{e}"));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tree.cryo");
    snap.save(&path).expect("it is written");
    let file = Snapshot::open(&path).expect("it is read");
    everything(&file, &guest, id, &workers).unwrap_or_else(|e| panic!("{e}"));
    let said = refused(&guest, LOWER, HOT);
    let why = "Device or resource busy (another scheduler is in charge)";
    assert!(said.contains(why), "{said}");
    let tasks = snap.tasks().unwrap_or_else(|e| panic!("{e}"));
    let holder = tasks.iter().find(|task| task.comm().as_deref() == Ok("hold"));
    let pid = holder.expect("what holds it").tgid().unwrap_or_else(|e| panic!("{e}"));
    let argv = vec!["kill".to_owned(), pid.to_string()];
    guest.call(Op::Exec { argv, timeout_ms: CALL.as_millis() as u64 });
    let left = until(&mut freezer, &guest, |snap| Ok(snap.scheds()?.len() == 1));
    the_upper_one_goes_on(&left, &workers).unwrap_or_else(|e| panic!("{e}"));
    freezer.stop();
}

#[test]
fn a_scheduler_below_another_is_read_as_the_kernel_has_it_on_7_2() {
    subsched("debian:7.2");
}

#[test]
fn a_scheduler_below_another_is_read_as_the_kernel_has_it_on_7_3() {
    subsched("debian:7.3");
}
