//! Numbers that move: what a snapshot says of them lies between what `/proc` and sysfs say before
//! and after, and is equal where those do not differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{CaptureRequest, Scalar, Snapshot, SnapshotError, Task};
use cryoscope::wire::{CgroupSet, Op, Policy, Work, WorkKind};

use super::support::{self, Guest};
use super::{freeze, start, stat, status, work};

/// Numbers by name.
type Numbers = BTreeMap<String, i128>;

fn number(text: &str) -> Option<i128> {
    let text = text.trim();
    match text.split_once('.') {
        // Milliseconds with six places.
        Some((whole, rest)) if rest.len() == 6 => {
            let rest: i128 = rest.parse().ok()?;
            Some(whole.parse::<i128>().ok()? * 1_000_000 + rest)
        }
        _ => text.parse().ok(),
    }
}

/// `/proc/PID/sched`: all numbers that a task itself has.
fn sched_file(guest: &Guest, pid: u32) -> Numbers {
    let text = guest.file(&format!("/proc/{pid}/sched"));
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter_map(|(name, n)| Some((name.trim().to_owned(), number(n)?))).collect()
}

fn signed(field: &cryoscope::snapshot::Field) -> Option<i128> {
    field.leaf().ok().flatten().and_then(|leaf: Scalar| leaf.number())
}

/// What the snapshot has under a name of that file; `None` for what is computed for it.
fn of_task(task: &Task, stats: &Numbers, name: &str) -> Option<i128> {
    let path = match name {
        "nr_voluntary_switches" => "nvcsw",
        "nr_involuntary_switches" => "nivcsw",
        "policy" | "prio" => name,
        _ if name.starts_with("se.") => name,
        _ => return stats.get(name).copied(),
    };
    signed(&task.get(path).ok()?)
}

fn tasks_are_those_of_sched_files(
    guest: &Guest,
    freezer: &mut Freezer,
    pids: &[u32],
) -> Result<(), SnapshotError> {
    let (mut equal, mut between) = (BTreeSet::new(), BTreeSet::new());
    for &pid in pids {
        let before = sched_file(guest, pid);
        let snap = freeze(freezer, &CaptureRequest::default());
        let after = sched_file(guest, pid);
        let task = snap.task(pid.into())?;
        let stats = task.schedstats()?.into_iter();
        let stats = stats.filter_map(|(name, n)| Some((name, n.number()?))).collect();
        for (name, before) in before {
            let Some(after) = after.get(&name).copied() else { continue };
            let Some(ours) = of_task(&task, &stats, &name) else { continue };
            // Weights are scaled, and averages decay.
            if name.starts_with("se.avg") || name == "se.load.weight" {
                continue;
            }
            // When it began to wait is forgotten when it runs.
            let forgotten = name.ends_with("_start") && (before == 0 || before != after);
            if forgotten || name == "se.vruntime" && before != after {
                continue;
            }
            match before == after {
                true => {
                    assert_eq!(ours, before, "{name} of {task:?}");
                    equal.insert(name);
                }
                false if after > before => {
                    assert!((before..=after).contains(&ours), "{name}: {before} {ours} {after}");
                    between.insert(name);
                }
                false => {}
            }
        }
    }
    println!("of /proc/PID/sched equal: {equal:?}\nbetween: {between:?}");
    for name in ["se.sum_exec_runtime", "nr_wakeups", "wait_sum", "policy", "prio"] {
        assert!(equal.contains(name), "{name} was never compared");
    }
    assert!(between.contains("se.sum_exec_runtime") && equal.len() >= 20, "{equal:?}");
    Ok(())
}

/// `/proc/PID/stat` and `status`, of tasks that do not go away.
fn tasks_are_those_of_stat_files(
    guest: &Guest,
    freezer: &mut Freezer,
    pids: &[u32],
) -> Result<(), SnapshotError> {
    let switches_of = |pid| {
        let count = |name| status(guest, pid, name).parse::<i64>().expect("a count");
        [count("voluntary_ctxt_switches"), count("nonvoluntary_ctxt_switches")]
    };
    let mut stood_still = 0;
    for &pid in pids {
        let (before, switches) = (stat(guest, pid), switches_of(pid));
        let letter = status(guest, pid, "State");
        let snap = freeze(freezer, &CaptureRequest { ram: Some(1 << 30), ..Default::default() });
        let after = stat(guest, pid);
        let task = snap.task(pid.into())?;
        let get = |path: &str| task.get(path)?.as_i64();
        // proc(5) numbers them: parent, session's leader is not a task's, priority, threads.
        assert_eq!(get("real_parent.tgid")?, before[&4], "{task:?}");
        assert_eq!(get("signal.nr_threads")?, before[&20], "{task:?}");
        assert_eq!(get("prio")? - 100, before[&18], "{task:?}");
        assert_eq!(get("rt_priority")?, before[&40], "{task:?}");
        // Clock ticks of 10 ms, since boot.
        assert_eq!(get("start_boottime")? / 10_000_000, before[&22], "{task:?}");
        let (same, later) = (letter == status(guest, pid, "State"), switches_of(pid));
        // One that ran meanwhile may have come back to where it was.
        if switches == later && same && before[&39] == after[&39] {
            let told = letter.split(['(', ')']).nth(1).expect("a word");
            assert_eq!((task.cpu()?.as_i64()?, task.state()?), (before[&39], told), "{task:?}");
            stood_still += 1;
        }
        for (i, name) in ["nvcsw", "nivcsw"].into_iter().enumerate() {
            assert!((switches[i]..=later[i]).contains(&get(name)?), "{name} of {task:?}");
        }
    }
    assert!(stood_still >= 2, "{stood_still} tasks stood still");
    Ok(())
}

/// The numbers of each CPU's line of a file.
fn of_cpus(guest: &Guest, path: &str) -> Vec<Vec<u64>> {
    let text = guest.file(path);
    let lines = text.lines().filter_map(|line| line.strip_prefix("cpu"));
    let lines = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    lines
        .map(|line| line.split_whitespace().skip(1).map(|n| n.parse().expect("a number")).collect())
        .collect()
}

fn ctxt(guest: &Guest) -> u64 {
    let text = guest.file("/proc/stat");
    let line = text.lines().find_map(|line| line.strip_prefix("ctxt "));
    line.expect("switches").trim().parse().expect("a count")
}

fn cpus_are_between(guest: &Guest, freezer: &mut Freezer) -> Result<(), SnapshotError> {
    /// Columns of `/proc/schedstat`.
    const SCHEDSTAT: [(&str, usize); 8] = [
        ("yld_count", 0),
        ("sched_count", 2),
        ("sched_goidle", 3),
        ("ttwu_count", 4),
        ("ttwu_local", 5),
        ("rq_cpu_time", 6),
        ("run_delay", 7),
        ("pcount", 8),
    ];
    /// Columns of `/proc/stat`. Idle times it takes from the clock where the tick stops.
    const STAT: [(&str, usize); 7] = [
        ("user", 0),
        ("nice", 1),
        ("system", 2),
        ("irq", 5),
        ("softirq", 6),
        ("steal", 7),
        ("guest", 8),
    ];
    for _ in 0..5 {
        let before = (of_cpus(guest, "/proc/schedstat"), of_cpus(guest, "/proc/stat"), ctxt(guest));
        let snap = freeze(freezer, &CaptureRequest::default());
        let after = (of_cpus(guest, "/proc/schedstat"), of_cpus(guest, "/proc/stat"), ctxt(guest));
        let mut switches = 0;
        for (i, cpu) in snap.cpus()?.iter().enumerate() {
            let counted: BTreeMap<String, Scalar> = cpu.schedstats()?.into_iter().collect();
            let ours = |of: &BTreeMap<String, Scalar>, name: &str| {
                u64::try_from(of[name].number().expect("a number")).expect("a count")
            };
            for (name, column) in SCHEDSTAT {
                let bounds = before.0[i][column]..=after.0[i][column];
                let ours = ours(&counted, name);
                assert!(bounds.contains(&ours), "{name} of CPU {i}: {ours} {bounds:?}");
            }
            let times: BTreeMap<String, Scalar> = cpu.cpustat()?.into_iter().collect();
            for (name, column) in STAT {
                let bounds = before.1[i][column]..=after.1[i][column];
                let ours = ours(&times, name) / 10_000_000;
                assert!(bounds.contains(&ours), "{name} of CPU {i}: {ours} {bounds:?}");
            }
            switches += cpu.get("nr_switches")?.as_u64()?;
        }
        assert!((before.2..=after.2).contains(&switches), "{switches} switches");
    }
    Ok(())
}

/// Who is in a cgroup, and its id.
fn cgroups_are_those_of_their_files(
    guest: &Guest,
    snap: &Arc<Snapshot>,
) -> Result<(), SnapshotError> {
    let file = guest.file("/sys/fs/cgroup/lab/hot/cgroup.threads");
    let theirs: BTreeSet<i64> = file.lines().map(|tid| tid.parse().expect("a number")).collect();
    let in_hot = |task: &Task| task.cgroup() == Ok(Some("/lab/hot"));
    let ours: Vec<Task> = snap.tasks()?.into_iter().filter(in_hot).collect();
    assert_eq!(ours.iter().map(Task::tid).collect::<Result<BTreeSet<_>, _>>()?, theirs);
    assert_eq!(theirs.len(), 4);
    Ok(())
}

/// What sysfs says of sched_ext beside what `sched_equals_sysfs` compares.
fn sched_ext_counts_are_those_of_sysfs(
    guest: &Guest,
    freezer: &mut Freezer,
) -> Result<(), SnapshotError> {
    let names = ["scx_enable_seq", "scx_hotplug_seq", "scx_nr_rejected", "scx_switching_all"];
    let kernel = names.map(str::to_owned).to_vec();
    let snap = freeze(freezer, &CaptureRequest { kernel, ..CaptureRequest::default() });
    let sysfs = |name: &str| {
        let text = guest.file(&format!("/sys/kernel/sched_ext/{name}"));
        text.trim().parse::<u64>().expect("a number")
    };
    for (symbol, file) in [
        ("scx_enable_seq", "enable_seq"),
        ("scx_hotplug_seq", "hotplug_seq"),
        ("scx_nr_rejected", "nr_rejected"),
    ] {
        assert_eq!(snap.kernel(symbol, Some("u64"))?.as_u64()?, sysfs(file), "{symbol}");
    }
    assert_eq!(sysfs("enable_seq"), 1, "one scheduler was enabled");
    // Whether all tasks are the scheduler's: so each of an ordinary policy has its class.
    assert_eq!(sysfs("switch_all"), 1);
    for task in snap.tasks()?.iter().filter(|task| task.policy().as_deref() == Ok("normal")) {
        assert_eq!(task.class()?, "ext", "{task:?}");
    }
    Ok(())
}

fn numbers(spec: &str, scheduler: bool) {
    let image = support::kernel(spec);
    let fifo = scheduler.then(|| support::scheduler("examples/schedulers/fifo.bpf.c", &image));
    let mut spec = support::spec(support::elf(&image), "1n1l2c1t", |fs| {
        fifo.iter().for_each(|fifo| support::stage(fs, fifo));
    });
    spec.kargs.push("sysctl.kernel.sched_schedstats=1".to_owned());
    let mut guest = Guest::start(&spec);
    fifo.iter().for_each(|fifo| drop(guest.call(support::attach(fifo))));
    let mut freezer = Freezer::new(guest.take_engine());
    guest.call(Op::CgroupCreate { name: "hot".into(), set: CgroupSet::default() });
    let mut pids = start(&guest, Work { cgroup: Some("hot".into()), ..work(WorkKind::Spin, 4) });
    pids.extend(start(&guest, Work { nice: Some(5), ..work(WorkKind::Sleep, 2) }));
    pids.extend(start(&guest, Work { policy: Some(Policy::Fifo(3)), ..work(WorkKind::Sleep, 1) }));
    // Those of the kernel's own that seldom run: kthreadd, and who waits for work.
    pids.extend([2, 3, 4]);
    let mut checks = || {
        tasks_are_those_of_sched_files(&guest, &mut freezer, &pids)?;
        tasks_are_those_of_stat_files(&guest, &mut freezer, &pids)?;
        cpus_are_between(&guest, &mut freezer)?;
        let snap = freeze(&mut freezer, &CaptureRequest::default());
        cgroups_are_those_of_their_files(&guest, &snap)?;
        match scheduler {
            true => sched_ext_counts_are_those_of_sysfs(&guest, &mut freezer),
            false => Ok(()),
        }
    };
    checks().unwrap_or_else(|e| panic!("{e}"));
    freezer.stop();
}

#[test]
fn numbers_that_move_are_those_of_7_3_with_a_scheduler() {
    numbers("debian:7.3", true);
}

#[test]
fn numbers_that_move_are_those_of_6_12() {
    numbers("debian:6.12", false);
}
