//! Values of every shape, and what pointers in maps lead to: those that the verifier knows, and
//! plain numbers of which the programs' own instructions prove that they are pointers.

mod support;

use std::sync::Arc;

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{
    CaptureRequest, Entry, KeyArg, Meta, Snapshot, SnapshotError, SnapshotResult,
};
use cryoscope::vm::Boot;
use cryoscope::wire::{CgroupSet, Op, Work, WorkKind};
use support::Guest;

fn freeze(freezer: &mut Freezer, request: &CaptureRequest) -> Arc<Snapshot> {
    let snapshot = freezer.freeze(request, || Meta { tag: "t".into(), ..Meta::default() });
    snapshot.unwrap_or_else(|e| panic!("{e}"))
}

/// What programs store by every way they have is a pointer; what is a time as well is a number.
fn casts_are_proven(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    let casts = |name: &str| -> SnapshotResult<Vec<(u64, String, Vec<String>)>> {
        let map = snap.map(name)?;
        let casts = map.attrs().casts.iter();
        Ok(casts.map(|c| (c.offset, c.ty.clone(), c.by.clone())).collect())
    };
    let task = |offset, by: &[&str]| {
        let by = by.iter().map(|name| (*name).to_owned()).collect();
        (offset, "struct task_struct".to_owned(), by)
    };
    let (init, running) = ("shapes_init_tas", "shapes_running");
    assert_eq!(casts("shapes")?, [task(0, &[init, running]), task(16, &[init])]);
    assert_eq!(casts("selves")?, [task(0, &[init])]);
    let last = snap.global("last")?;
    let cast = last.cast().expect("a pointer");
    assert_eq!((cast.ty.as_str(), &cast.by[..]), ("struct task_struct", &[running.to_owned()][..]));
    assert!(snap.global("nr_running")?.cast().is_none());
    Ok(())
}

/// Whether something is held, and no task is being made or dying: the program knows of such a
/// one before the kernel lists it, and after.
fn is_settled(snap: &Arc<Snapshot>) -> SnapshotResult<bool> {
    let mut pids = vec![snap.global("held_pid")?.as_i64()?, snap.global("last.pid")?.as_i64()?];
    for map in ["shapes", "selves"] {
        for entry in snap.map(map)?.entries()? {
            pids.push(entry.key().as_i64()?);
        }
    }
    Ok(pids.iter().all(|pid| snap.task(*pid).is_ok()))
}

fn pointers_lead_to_tasks(snap: &Arc<Snapshot>) -> SnapshotResult<usize> {
    let mut seen = 0;
    for entry in snap.map("shapes")?.entries()? {
        let pid = entry.key().as_i64()?;
        let task = snap.task(pid)?;
        assert_eq!(entry.get("task.pid")?.as_i64()?, pid);
        assert_eq!(entry.get("task.comm")?.as_str()?, task.comm()?);
        assert_eq!(entry.get("task.group_leader.pid")?.as_i64()?, task.tgid()?);
        assert_eq!(entry.get("group.pid")?.as_i64()?, task.tgid()?);
        assert_eq!(entry.get("task")?.as_ptr("struct task_struct")?.get("pid")?.as_i64()?, pid);
        let e = entry.get("mixed.pid").unwrap_err();
        assert!(matches!(e, SnapshotError::NotAStruct { .. }), "{e}");
        assert_eq!(entry.get("task")?.points_to().as_deref(), Some("struct task_struct"));
        assert_eq!(entry.get("low")?.as_u64()?, 5);
        assert_eq!(entry.get("middle")?.as_i64()?, pid & 0x1fff);
        assert_eq!(entry.get("high")?.as_u64()?, 0xfffe);
        assert_eq!(entry.get("negative")?.as_i64()?, -3);
        assert_eq!(entry.get("both.whole")?.as_u64()?, 0x1122_3344_5566_7788);
        assert_eq!(entry.get("both.first")?.as_u64()?, 0x5566_7788);
        assert_eq!(entry.get("both.second")?.as_u64()?, 0x1122_3344);
        let wide = if pid & 1 == 1 { "WIDE_LARGE" } else { "WIDE_SMALL" };
        assert_eq!(entry.get("wide")?.as_str()?, wide);
        assert_eq!(entry.get("points[2].x")?.as_i64()?, i64::from(pid as i16));
        assert_eq!(entry.get("points[2].y")?.as_i64()?, i64::from((-pid) as i16));
        seen += 1;
    }
    for entry in snap.map("selves")?.entries()? {
        assert_eq!(entry.get("pid")?.as_i64()?, entry.key().as_i64()?);
    }
    assert!(snap.task(snap.global("last.pid")?.as_i64()?).is_ok());
    let held = snap.map("holder")?.at(1)?;
    let pid = snap.global("held_pid")?.as_i64()?;
    assert_eq!(held.get("task.pid")?.as_i64()?, pid, "a pointer that the verifier knows");
    let e = snap.map("holder")?.at(0)?.get("task.pid").unwrap_err().to_string();
    assert!(e.contains("NULL"), "{e}");
    Ok(seen)
}

/// What the program has made itself, and what that leads to in turn.
fn objects_of_its_own_are_read_by_its_types(snap: &Arc<Snapshot>, pid: i64) -> SnapshotResult<()> {
    let held = snap.map("holder")?.at(1)?;
    assert_eq!(held.get("mine")?.points_to().as_deref(), Some("struct mine"));
    assert_eq!(held.get("mine.value")?.as_u64()?, 0x1122_3344_5566_7788);
    assert_eq!(held.get("mine.task.pid")?.as_i64()?, pid);
    let mine = held.get("mine")?.as_ptr("struct mine")?;
    assert_eq!(mine.get("task.comm")?.as_str()?, snap.task(pid)?.comm()?);
    let dump = held.get("mask.cpumask")?.dump();
    let cpus = held.get("mask.cpumask")?.as_cpus()?;
    assert!(dump.ends_with(&format!("CPUs {cpus}\n")), "{dump}");
    Ok(())
}

fn values(spec: &str, boot: fn(&cryoscope::kernel::KernelImage) -> Boot) {
    let image = support::kernel(spec);
    let shapes = support::scheduler("tests/schedulers/shapes.bpf.c", &image);
    let mut guest = Guest::boot(boot(&image), "1n1l2c1t", |fs| support::stage(fs, &shapes));
    guest.call(support::attach(&shapes));
    let period_us = Some(1_000);
    let (cgroup, policy, nice, affinity) = (None, None, None, None);
    let kind = WorkKind::Sleep;
    guest.call(Op::Start(Work { kind, count: 5, cgroup, policy, nice, affinity, period_us }));
    let mut freezer = Freezer::new(guest.take_engine());
    let request = CaptureRequest::default();
    let settled = |snap: &Arc<Snapshot>| is_settled(snap).is_ok_and(|settled| settled);
    let snap = (0..50).map(|_| freeze(&mut freezer, &request)).find(settled);
    let snap = snap.expect("a freeze with every task in its place");
    casts_are_proven(&snap).unwrap_or_else(|e| panic!("{e}"));
    let seen = pointers_lead_to_tasks(&snap).unwrap_or_else(|e| panic!("{e}"));
    assert!(seen > 20, "{seen}");
    let masks = |snap: &Arc<Snapshot>| snap.map("holder")?.at(1)?.get("mask.cpumask")?.as_cpus();
    let cpus = |pid: i64| if pid & 1 == 1 { "0-1" } else { "0" };
    let held = |snap: &Arc<Snapshot>| snap.global("held_pid").and_then(|f| f.as_i64());
    let pid = held(&snap).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(masks(&snap).unwrap_or_else(|e| panic!("{e}")), cpus(pid));
    objects_of_its_own_are_read_by_its_types(&snap, pid).unwrap_or_else(|e| panic!("{e}"));
    let whole = freeze(&mut freezer, &CaptureRequest { ram: Some(1 << 30), ..request });
    let held = held(&whole).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(masks(&whole).unwrap_or_else(|e| panic!("{e}")), cpus(held));
    objects_of_its_own_are_read_by_its_types(&whole, held).unwrap_or_else(|e| panic!("{e}"));
    flexible_arrays_of_the_kernels(&whole).unwrap_or_else(|e| panic!("{e}"));
    freezer.stop();
}

/// `unsigned long cpumask[]` at the end of `struct sched_group`.
fn flexible_arrays_of_the_kernels(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    for cpu in 0..2 {
        let own = snap.cpu(cpu)?.get("sd.groups.cpumask[0]")?;
        assert_eq!(own.as_u64()?, 1 << cpu, "the CPU's own");
    }
    Ok(())
}

/// The numbers in an array of the program's.
fn written(snap: &Arc<Snapshot>, name: &str) -> SnapshotResult<Vec<u64>> {
    snap.global(name)?.as_array()?.iter().map(|n| n.as_u64()).collect()
}

fn timers_are_what_was_set(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    let specials = snap.map("specials")?;
    let expires = snap.global("expires")?.as_u64()?;
    let timer = |entry: &Entry| -> SnapshotResult<(bool, bool, u64, String, String)> {
        let get = |member: &str| entry.get(&format!("timer.{member}"));
        Ok((
            get("initialized")?.as_bool()?,
            get("armed")?.as_bool()?,
            get("expires_ns")?.as_u64()?,
            get("clock")?.as_str()?,
            get("callback")?.as_str()?,
        ))
    };
    let text = str::to_owned;
    let never = (false, false, 0, text(""), text(""));
    assert_eq!(timer(&specials.at(0)?)?, never);
    let armed = (true, true, expires, text("monotonic"), text("on_timer"));
    assert_eq!(timer(&specials.at(1)?)?, armed);
    let idle = (true, false, 0, text("monotonic"), text("on_other_timer"));
    assert_eq!(timer(&specials.at(2)?)?, idle);
    let hashed = snap.map("timers")?.get(&KeyArg::Number(77))?;
    let expires = hashed.get("expires")?.as_u64()?;
    let armed = (true, true, expires, text("monotonic"), text("on_other_timer"));
    assert_eq!(timer(&hashed)?, armed, "in a hash");
    assert_eq!(hashed.get("timer.prog")?.as_str()?, "special_init");
    let work = specials.at(1)?.get("work")?;
    assert_eq!(snap.global("nr_worked")?.as_u64()?, 1, "it has run by now");
    assert!(!work.get("queued")?.as_bool()?);
    assert_eq!(work.get("callback")?.as_str()?, "on_work");
    Ok(())
}

fn lists_and_trees_are_what_was_put_in(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    let all = snap.map("specials")?.at(1)?;
    let each = |list: &str, member: &str| -> SnapshotResult<Vec<u64>> {
        let objects = all.get(list)?.as_array()?;
        objects.iter().map(|object| object.get(member)?.as_u64()).collect()
    };
    let items = written(snap, "items")?;
    assert_eq!(items, [1000, 1001, 1004, 1009, 1016]);
    assert_eq!(each("items", "value")?, items, "in their order");
    assert_eq!(all.get("items[3].twice")?.as_u64()?, 2 * items[3]);
    let mut leaves = written(snap, "leaves")?;
    assert!(!leaves.is_sorted(), "they came in another order");
    leaves.sort_unstable();
    assert_eq!(each("leaves", "key")?, leaves, "in the order of the keys");
    assert_eq!(all.get("leaves[0].refs.count")?.as_u64()?, 1);
    for list in ["items", "leaves"] {
        assert_eq!(all.get(list)?.torn(), Vec::<String>::new());
        assert!(snap.map("specials")?.at(0)?.get(list)?.as_array()?.is_empty());
    }
    assert!(!all.get("lock.held")?.as_bool()?);
    assert_eq!(all.get("before")?.as_u64()?, 0x1111_1111_1111_1111);
    assert_eq!(all.get("after")?.as_u64()?, 0x2222_2222_2222_2222);
    Ok(())
}

fn kptrs_lead_to_what_is_held(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    let all = snap.map("specials")?.at(1)?;
    let pid = snap.global("held_pid")?.as_i64()?;
    assert_eq!(all.get("task.pid")?.as_i64()?, pid);
    let comm = all.get("task.comm")?.as_str()?;
    assert!(all.get("task")?.to_string().ends_with(&format!("(task {pid} \"{comm}\")")));
    assert_eq!(all.get("mask")?.as_cpus()?, "1");
    assert_eq!(all.get("mask.usage.refs.counter")?.as_i64()?, 1);
    let group = snap.global("held_cgroup")?.as_u64()?;
    assert_eq!(all.get("group.kn.id")?.as_u64()?, group);
    assert!(all.get("group")?.to_string().ends_with("/hot)"), "{}", all.get("group")?);
    assert_eq!(all.get("note.number")?.as_u64()?, 0x3333_3333_3333_3333);
    assert_eq!(all.get("note.group.kn.id")?.as_u64()?, group, "out of an object of its own");
    for cpu in 0..2 {
        let on = all.get("each")?.on_cpu(cpu)?;
        assert_eq!(on.get("number")?.as_i64()?, 500 + cpu);
    }
    let mut masks = 0;
    for kept in snap.map("storage")?.entries()? {
        let pid = kept.get("pid")?.as_i64()?;
        // One that is just being made has no mask yet, and the kernel does not list it.
        if snap.task(pid).is_err() {
            continue;
        }
        let cpus = ["", "0", "1", "0-1"][(pid & 3) as usize];
        assert_eq!(kept.get("mask")?.as_cpus()?, cpus, "of task {pid}");
        masks += 1;
    }
    assert!(masks > 20, "{masks}");
    Ok(())
}

/// What an ordinary freeze copies of that is the same out of a file.
fn a_file_has_it_all(snap: &Arc<Snapshot>) -> SnapshotResult<()> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("special.cryo");
    snap.save(&path).expect("it is written");
    let file = Snapshot::open(&path).expect("it is read");
    timers_are_what_was_set(&file)?;
    lists_and_trees_are_what_was_put_in(&file)?;
    kptrs_lead_to_what_is_held(&file)?;
    for name in ["specials", "timers", "storage"] {
        assert_eq!(file.map(name)?.dump(), snap.map(name)?.dump());
    }
    Ok(())
}

fn specials(spec: &str, boot: fn(&cryoscope::kernel::KernelImage) -> Boot) {
    let image = support::kernel(spec);
    let special = support::scheduler("tests/schedulers/special.bpf.c", &image);
    let mut guest = Guest::boot(boot(&image), "1n1l2c1t", |fs| support::stage(fs, &special));
    guest.call(support::attach(&special));
    guest.call(Op::CgroupCreate { name: "hot".into(), set: CgroupSet::default() });
    let (policy, nice, affinity, period_us) = (None, None, None, Some(1_000));
    let (kind, cgroup) = (WorkKind::Sleep, Some("hot".into()));
    guest.call(Op::Start(Work { kind, count: 5, cgroup, policy, nice, affinity, period_us }));
    let mut freezer = Freezer::new(guest.take_engine());
    let request = CaptureRequest::default();
    // The first of several freezes at which everything was held already.
    let snap = (0..50).map(|_| freeze(&mut freezer, &request)).find(|snap| {
        let number = |name: &str| snap.global(name).and_then(|f| f.as_i64());
        let once = |name: &str| number(name).is_ok_and(|nr| nr == 1);
        once("nr_held")
            && once("nr_worked")
            && number("held_pid").is_ok_and(|pid| snap.task(pid).is_ok())
    });
    let snap = snap.expect("a task that is held");
    println!(
        "{}",
        snap.map("specials").and_then(|map| map.at(1)).map(|e| e.dump()).expect("a map")
    );
    let mut pauses: Vec<u64> =
        (0..25).map(|_| freeze(&mut freezer, &request).pause().copy_us).collect();
    pauses.sort_unstable();
    println!("{spec}: copy {} µs, the median of {}", pauses[12], pauses.len());
    for check in [
        timers_are_what_was_set,
        lists_and_trees_are_what_was_put_in,
        kptrs_lead_to_what_is_held,
        a_file_has_it_all,
    ] {
        check(&snap).unwrap_or_else(|e| panic!("{e}"));
    }
    freezer.stop();
}

#[test]
fn special_members_lead_to_what_the_program_made_on_7_2_with_kaslr() {
    specials("debian:7.2", support::bzimage);
}

#[test]
fn special_members_lead_to_what_the_program_made_on_7_3() {
    specials("debian:7.3", support::elf);
}

#[test]
fn values_and_pointers_are_what_the_program_wrote_on_7_2_with_kaslr() {
    values("debian:7.2", support::bzimage);
}

#[test]
fn values_and_pointers_are_what_the_program_wrote_on_7_3() {
    values("debian:7.3", support::elf);
}
