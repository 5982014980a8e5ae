//! Values of every shape, and what pointers in maps lead to: those that the verifier knows, and
//! plain numbers of which the programs' own instructions prove that they are pointers.

mod support;

use std::sync::Arc;

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{CaptureRequest, Meta, Snapshot, SnapshotError, SnapshotResult};
use cryoscope::vm::Boot;
use cryoscope::wire::{Op, Work, WorkKind};
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
    // Tasks are being made; the first of several freezes at which no task was just missing.
    let snap = (0..50).map(|_| freeze(&mut freezer, &request)).find(|snap| {
        let held = snap.global("held_pid").and_then(|f| f.as_i64());
        held.is_ok_and(|pid| snap.task(pid).is_ok())
    });
    let snap = snap.expect("a task that is held");
    casts_are_proven(&snap).unwrap_or_else(|e| panic!("{e}"));
    let seen = pointers_lead_to_tasks(&snap).unwrap_or_else(|e| panic!("{e}"));
    assert!(seen > 20, "{seen}");
    let masks = |snap: &Arc<Snapshot>| snap.map("holder")?.at(1)?.get("mask.cpumask")?.as_cpus();
    let e = masks(&snap).unwrap_err().to_string();
    assert!(e.contains("ram: true"), "{e}");
    let whole = freeze(&mut freezer, &CaptureRequest { ram: Some(1 << 30), ..request });
    let cpus = masks(&whole).unwrap_or_else(|e| panic!("{e}"));
    let held = whole.global("held_pid").and_then(|f| f.as_i64()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cpus, if held & 1 == 1 { "0-1" } else { "0" });
    objects_of_its_own_are_read_by_its_types(&whole, held).unwrap_or_else(|e| panic!("{e}"));
    freezer.stop();
}

#[test]
fn values_and_pointers_are_what_the_program_wrote_on_7_2_with_kaslr() {
    values("debian:7.2", support::bzimage);
}

#[test]
fn values_and_pointers_are_what_the_program_wrote_on_7_3() {
    values("debian:7.3", support::elf);
}
