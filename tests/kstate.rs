//! The kernel's own scheduling state: what a snapshot says of tasks, CPUs and sched_ext equals
//! what the guest's own kernel says of them in /proc and /sys, for everything that stands still
//! while the workload runs.

#[path = "kstate/levels.rs"]
mod levels;
#[path = "kstate/modules.rs"]
mod modules;
mod place;
#[path = "kstate/proc.rs"]
mod proc;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{
    CaptureRequest, MAX_RAM, Meta, Scalar, Snapshot, SnapshotError, StackEnd, Task,
};
use cryoscope::vm::Boot;
use cryoscope::wire::{Answer, CgroupSet, Op, Policy, Work, WorkKind};
use support::Guest;

/// Freezes whose copies are timed.
const FREEZES: usize = 21;

/// A line of `/proc/PID/status`.
fn status(guest: &Guest, pid: u32, name: &str) -> String {
    let text = guest.file(&format!("/proc/{pid}/status"));
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{pid} has no {name} in\n{text}")).trim().to_owned()
}

/// The fields of `/proc/PID/stat` after the name, counted as proc(5) does: from 3 on.
fn stat(guest: &Guest, pid: u32) -> BTreeMap<usize, i64> {
    let text = guest.file(&format!("/proc/{pid}/stat"));
    let (_, rest) = text.rsplit_once(") ").expect("a name in brackets");
    let fields = rest.split_whitespace().enumerate();
    fields.filter_map(|(i, field)| Some((i + 3, field.parse().ok()?))).collect()
}

/// Everything of a task that does not move, as /proc has it.
#[derive(Debug, PartialEq)]
struct Facts {
    tid: i64,
    tgid: i64,
    comm: String,
    policy: String,
    nice: i64,
    cpus: String,
    cgroup: String,
}

fn said(guest: &Guest, pid: u32) -> Facts {
    let stat = stat(guest, pid);
    let names = ["normal", "fifo", "rr", "batch", "iso", "idle", "deadline", "ext"];
    let cgroup = guest.file(&format!("/proc/{pid}/cgroup"));
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2");
    Facts {
        tid: status(guest, pid, "Pid").parse().expect("a number"),
        tgid: status(guest, pid, "Tgid").parse().expect("a number"),
        comm: status(guest, pid, "Name"),
        policy: names[usize::try_from(stat[&41]).expect("a policy")].to_owned(),
        nice: stat[&19],
        cpus: status(guest, pid, "Cpus_allowed_list"),
        cgroup: cgroup.to_owned(),
    }
}

fn read(task: &Task) -> Facts {
    let get = || {
        Ok::<_, SnapshotError>(Facts {
            tid: task.tid()?,
            tgid: task.tgid()?,
            comm: task.comm()?,
            policy: task.policy()?,
            nice: task.nice()?,
            cpus: task.cpus_allowed()?,
            cgroup: task.cgroup()?.expect("a cgroup").to_owned(),
        })
    };
    get().unwrap_or_else(|e| panic!("{task:?}: {e}"))
}

fn work(kind: WorkKind, count: u32) -> Work {
    Work { kind, count, cgroup: None, policy: None, nice: None, affinity: None, period_us: None }
}

fn start(guest: &Guest, work: Work) -> Vec<u32> {
    match guest.call(Op::Start(work)) {
        Answer::Workers(pids) => pids,
        other => panic!("{other:?}"),
    }
}

fn freeze(freezer: &mut Freezer, request: &CaptureRequest) -> Arc<Snapshot> {
    let snapshot = freezer.freeze(request, || Meta { tag: "t".into(), ..Meta::default() });
    let snapshot = snapshot.unwrap_or_else(|e| panic!("{e}"));
    assert!(!snapshot.is_placeholder(), "{:?}", snapshot.placeholder_reason());
    snapshot
}

/// The first of many freezes at which so many tasks were runnable: workers take a while to start.
fn busy(freezer: &mut Freezer, request: &CaptureRequest, runnable: u64) -> Arc<Snapshot> {
    for _ in 0..200 {
        let snap = freeze(freezer, request);
        let cpus = snap.cpus().unwrap_or_else(|e| panic!("{e}"));
        let count = |cpu: &cryoscope::snapshot::Cpu| cpu.get("nr_running")?.as_u64();
        let sum: Result<u64, SnapshotError> = cpus.iter().map(count).sum();
        if sum.unwrap_or_else(|e| panic!("{e}")) >= runnable {
            return snap;
        }
    }
    panic!("at none of 200 freezes were {runnable} tasks runnable");
}

/// include/linux/sched.h
const PF_KTHREAD: u64 = 0x20_0000;

fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all[all.len() / 2]
}

/// How long copies take with and without the scheduling state.
fn measure(freezer: &mut Freezer, release: &str, tasks: usize) {
    let mut took = |sched| {
        let request = CaptureRequest { sched, ..CaptureRequest::default() };
        let all = (0..FREEZES).map(|_| freeze(freezer, &request).pause().copy_us);
        median(all.collect())
    };
    let (with, without) = (took(true), took(false));
    println!("{release}: copy {with} µs with the state of {tasks} tasks, {without} µs without");
}

/// The queue of fifo: in the order of its numbers, and known to its tasks.
fn queue_is_in_order(snap: &Arc<Snapshot>) -> Result<usize, SnapshotError> {
    let dsq = snap.dsq("0")?;
    let tasks = dsq.tasks()?;
    assert_eq!(dsq.get("nr")?.as_u64()?, tasks.len() as u64);
    let mut last = None;
    for task in &tasks {
        let seq = task.get("scx.dsq_seq")?.as_u64()? as u32;
        assert!(last.is_none_or(|last: u32| seq.wrapping_sub(last) as i32 > 0), "{dsq:?}");
        last = Some(seq);
        assert_eq!(task.dsq()?.map(|dsq| dsq.name().to_owned()).as_deref(), Some("0"));
        // Through a pointer, into another copied struct.
        assert_eq!(task.get("scx.dsq.id")?.as_u64()?, 0);
        // It is marked as being on the runqueue only after it has been put into the queue.
        let locked = snap.cpus()?.iter().any(|cpu| !cpu.torn().is_empty());
        assert!(task.is_runnable()? || locked, "{task:?}");
        assert_eq!(task.class()?, "ext", "{task:?}");
        // A thread of the kernel's that was about to sleep may have been preempted on its way; the
        // workers never sleep.
        let of_kernel = task.get("flags")?.as_u64()? & PF_KTHREAD != 0;
        assert!(task.state()? == "running" || of_kernel, "{task:?}");
    }
    Ok(tasks.len())
}

fn cpus_are_plausible(snap: &Arc<Snapshot>, spinning: u64) -> Result<(), SnapshotError> {
    let cpus = snap.cpus()?;
    assert_eq!(cpus.len(), 2);
    let mut runnable = 0;
    for (i, cpu) in cpus.iter().enumerate() {
        assert_eq!(cpu.number() as usize, i);
        assert_eq!(cpu.get("cpu")?.as_u64()?, i as u64);
        runnable += cpu.get("nr_running")?.as_u64()?;
        let curr = cpu.curr()?;
        assert_eq!(curr.cpu()?.as_u64()?, i as u64, "{curr:?}");
        assert_eq!(cpu.is_idle()?, curr.tid()? == 0, "{curr:?}");
        assert_eq!(cpu.get("curr.pid")?.as_i64()?, curr.tid()?, "through the pointer");
        assert!(cpu.get("clock")?.as_u64()? > 0);
        let stat: BTreeMap<_, _> = cpu.cpustat()?.into_iter().collect();
        assert!(stat["user"].number() > Some(0), "{stat:?}");
        assert_eq!(cpu.dsq()?.name(), format!("local:{i}"));
    }
    assert!((spinning..spinning + 40).contains(&runnable), "{runnable} runnable");
    Ok(())
}

fn sched_equals_sysfs(guest: &Guest, snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let state = guest.file("/sys/kernel/sched_ext/state");
    let ops = guest.file("/sys/kernel/sched_ext/root/ops");
    let sched = snap.sched()?;
    assert_eq!((sched.state()?, sched.ops()?.as_str()?), (state.trim(), ops.trim().to_owned()));
    assert_eq!(sched.bypass_depth()?.as_i64()?, 0);
    // Sysfs is read later: counts only grow.
    let events = guest.file("/sys/kernel/sched_ext/root/events");
    let later: BTreeMap<&str, i64> = events
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, count)| (name, count.trim().parse().expect("a count")))
        .collect();
    let counters = sched.counters(None)?;
    assert_eq!(counters.len(), later.len(), "{counters:?} {events}");
    for (name, count) in counters {
        let Scalar::Int(count) = count else { panic!("{name}: {count:?}") };
        assert!((0..=later[name.as_str()]).contains(&count), "{name}: {count}, then {events}");
    }
    let names: Vec<String> = snap.dsqs()?.iter().map(|dsq| dsq.name().to_owned()).collect();
    for name in ["global", "local:0", "local:1", "bypass:0", "bypass:1", "0"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    let e = snap.dsq("locl:1").map(drop).unwrap_err().to_string();
    assert!(e.starts_with("dsq(\"locl:1\") found nothing in \"dsqs\""), "{e}");
    Ok(())
}

fn variables_are_read(snap: &Arc<Snapshot>, uptime_s: f64) -> Result<(), SnapshotError> {
    let jiffies = snap.kernel("jiffies_64", Some("u64"))?.as_u64()?;
    // INITIAL_JIFFIES is five minutes before the 32-bit counter wraps; Debian has 250 a second.
    let since = jiffies.wrapping_sub(u64::from(u32::MAX - 300 * 250 + 1)) as f64 / 250.0;
    assert!((since - uptime_s).abs() < 30.0, "{since} s by jiffies, {uptime_s} s by /proc/uptime");
    let ops = snap.kernel("scx_root", Some("struct scx_sched *"))?.get("ops.name")?;
    assert_eq!(ops.as_str()?, "fifo");
    let rq = snap.cpu(1)?.kernel("runqueues", None)?;
    assert_eq!(rq.get("cpu")?.as_u64()?, 1);
    let each = snap.per_cpu("runqueues", None)?.expect("each CPU has one");
    for cpu in 0..2 {
        let n = each.cpu(cpu)?.get("nr_running")?.as_u64()?;
        assert_eq!(n, snap.cpu(cpu)?.get("nr_running")?.as_u64()?);
    }
    let e = each.cpu(2).unwrap_err();
    assert!(matches!(e, SnapshotError::PerCpuSlot { cpu: 2, .. }), "{e}");
    assert!(snap.per_cpu("jiffies_64", None)?.is_none());
    let e = snap.kernel("runqueues", None).unwrap_err().to_string();
    assert!(e.contains("cpu(n).kernel(\"runqueues\")"), "{e}");
    Ok(())
}

/// With all of memory any symbol can be read, and pointers lead anywhere.
fn memory_is_read(guest: &Guest, freezer: &mut Freezer) -> Result<(), SnapshotError> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let snap = freeze(freezer, &request);
        pauses.push((snap.pause().copy_us, snap.ram()?.kept() >> 20));
    }
    let snap = freeze(freezer, &request);
    println!("all of memory: {:?}, copy in µs and MiB kept: {pauses:?}", snap.ram()?);
    let init = snap.kernel("init_task", Some("struct task_struct"))?;
    assert_eq!(init.get("comm")?.as_str()?, "swapper/0");
    let release = snap.kernel("init_uts_ns", Some("struct uts_namespace"))?.get("name.release")?;
    assert_eq!(release.as_str()?, guest.file("/proc/sys/kernel/osrelease").trim());
    let banner = snap.kernel("linux_banner", None)?.raw()?;
    let version = guest.file("/proc/version");
    assert!(banner.starts_with(version.as_bytes()), "{banner:?}");
    // Out of what was copied, and on.
    let task = snap.task(1)?;
    assert_eq!(task.get("mm.owner.pid")?.as_i64()?, 1);
    assert_eq!(task.get("signal.nr_threads")?.as_i64()?, 1);
    for cpu in 0..2 {
        let rq = snap.cpu(cpu)?.kernel("runqueues", None)?;
        assert_eq!(rq.get("curr.pid")?.as_i64()?, snap.cpu(cpu)?.curr()?.tid()?);
    }
    registers_are_kept(&snap)?;
    memory_is_saved(&snap)
}

/// With all of memory go the registers of each CPU, the same numbers as the kernel's.
fn registers_are_kept(snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.core");
    let start = Instant::now();
    snap.save(&path).unwrap_or_else(|e| panic!("{e}"));
    println!("core written in {:?}", start.elapsed());
    let core = std::fs::File::open(&path).expect("it was written");
    let mut notes = vec![0; 8192];
    core.read_exact_at(&mut notes, 0).expect("it has notes");
    let offsets = snap.kernel("__per_cpu_offset", None)?.raw()?;
    for cpu in 0..2 {
        // struct user_regs_struct, in a note of 336 bytes behind 20 of its header.
        let status = 64 + 56 * (regions(&notes) + 1) + cpu * 356 + 20;
        let word = |at: usize| u64::from_le_bytes(notes[at..at + 8].try_into().expect("8 bytes"));
        let register = |i: usize| word(status + 112 + i * 8);
        let (rip, cs, gs_base) = (register(16), register(17), register(22));
        let mine = u64::from_le_bytes(offsets[cpu * 8..cpu * 8 + 8].try_into().expect("8 bytes"));
        println!("CPU {cpu}: rip {rip:#x} cs {cs:#x} gs_base {gs_base:#x}");
        // In user mode the kernel's base is put away, and so it is at the very start and end of an
        // entry into the kernel.
        let place = |name: &str| snap.symbols().map(|s| s.addresses(name).to_vec());
        let (start, end) = (place("__entry_text_start")?, place("__entry_text_end")?);
        assert_eq!((start.len(), end.len()), (1, 1));
        if cs & 3 == 0 && !(start[0]..end[0]).contains(&rip) {
            assert_eq!(gs_base, mine, "CPU {cpu} is the kernel's CPU {cpu}");
            assert!(snap.symbols()?.at(rip).is_some(), "{rip:#x}");
        }
        let pid = word(status + 32) as u32;
        assert_eq!(i64::from(pid), snap.cpu(cpu as i64)?.curr()?.tid()?);
    }
    Ok(())
}

/// Program headers of an ELF file, the notes' left out.
fn regions(file: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([file[56], file[57]])) - 1
}

/// All of memory goes through a file, of which little is read for one variable.
fn memory_is_saved(live: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.cryo");
    let start = Instant::now();
    live.save_with_ram(&path).unwrap_or_else(|e| panic!("{e}"));
    let saved = start.elapsed();
    let size = std::fs::metadata(&path).expect("it was written").len();
    let start = Instant::now();
    let snap = Snapshot::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let opened = start.elapsed();
    let comm = snap.kernel("init_task", Some("struct task_struct"))?.get("comm")?.as_str()?;
    let read = start.elapsed();
    let mib = size >> 20;
    println!("saved in {saved:?} as {mib} MiB, opened in {opened:?}, {comm} read in {read:?}");
    assert!(size < live.ram()?.kept(), "{size} bytes");
    for symbol in ["init_task", "linux_banner", "scx_root", "init_uts_ns", "saved_command_line"] {
        let bytes = |snap: &Arc<Snapshot>| snap.kernel(symbol, None)?.raw();
        assert_eq!(bytes(&snap)?, bytes(live)?, "{symbol}");
    }
    assert_eq!(format!("{:?}", snap.ram()?), format!("{:?}", live.ram()?));
    for (old, new) in live.tasks()?.iter().zip(snap.tasks()?) {
        assert_eq!(old.whole()?.dump(), new.whole()?.dump());
        let owner = |task: &Task| task.get("signal.oom_score_adj").and_then(|n| n.as_i64());
        assert_eq!(owner(old), owner(&new));
    }
    Ok(())
}

/// What CPUs were doing: each has its own registers, and its stack leads to where it began.
fn idle_cpus_are_followed(freezer: &mut Freezer) -> Result<(), SnapshotError> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    for _ in 0..50 {
        let snap = freeze(freezer, &request);
        let cpus = snap.cpus()?;
        let mut halted = 0;
        for cpu in &cpus {
            let regs = cpu.registers()?;
            if !regs.halted || !cpu.is_idle()? || regs.in_user_mode() {
                continue;
            }
            halted += 1;
            // The kernel's per-CPU variables are counted from gs.
            let number = snap.symbols()?.addresses("cpu_number")[0];
            let word = snap.kernel_at(regs.values["gs_base"].wrapping_add(number), "int")?;
            assert_eq!(word.as_i64()?, i64::from(cpu.number()), "{regs:?}");
            let stack = cpu.stack()?;
            assert_eq!(stack.end, StackEnd::Bottom, "{stack}");
            let text = stack.to_string();
            let within = |name: &str| text.contains(&format!("{name}+0x"));
            assert!(within("do_idle") && within("cpu_startup_entry"), "{text}");
            let rip = snap.symbol(regs.values["rip"])?;
            assert_eq!(stack.frames[0].symbol, rip);
            assert!(rip.is_some(), "{regs:?}");
            // It is what a task is waiting in, too.
            assert_eq!(cpu.curr()?.stack()?, stack);
        }
        if halted == cpus.len() {
            return Ok(());
        }
    }
    panic!("at none of 50 freezes both CPUs were idle");
}

/// Every task that has not run since the freeze has the stack that /proc tells.
fn stacks_are_those_of_proc(guest: &Guest, freezer: &mut Freezer) -> Result<(), SnapshotError> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    let snap = freeze(freezer, &request);
    let symbols = snap.symbols()?;
    let once = |name: &str| symbols.addresses(name)[0];
    // /proc leaves out the scheduler's own functions.
    let scheduler = once("__sched_text_start")..once("__sched_text_end");
    let (mut compared, mut longest) = (0, 0);
    for task in snap.tasks()? {
        let tid = task.tid()?;
        let pid = u32::try_from(tid).expect("a task's number");
        if task.is_on_cpu()? {
            continue;
        }
        let stack = task.stack()?;
        assert!(stack.is_complete(), "{task:?}:\n{stack}");
        let told = guest.file(&format!("/proc/{pid}/stack"));
        let switches = |name| status(guest, pid, name).parse::<u64>().expect("a count");
        let later = switches("voluntary_ctxt_switches") + switches("nonvoluntary_ctxt_switches");
        // It has been switched to since, or is just now; as the agent is, which reads this.
        let runs = status(guest, pid, "State").starts_with('R');
        if runs || task.get("nvcsw")?.as_u64()? + task.get("nivcsw")?.as_u64()? != later {
            continue;
        }
        let ours = stack.frames.iter().filter(|frame| !scheduler.contains(&frame.address));
        let ours: Vec<String> = ours.map(ToString::to_string).collect();
        let line = |line: &str| {
            let (_, symbol) = line.split_once(' ').expect("[<0>] symbol");
            symbol.rsplit_once('/').map_or(symbol, |(symbol, _)| symbol).to_owned()
        };
        let theirs: Vec<String> = told.lines().map(line).collect();
        assert_eq!(ours, theirs, "{task:?}:\n{stack}");
        compared += 1;
        longest = longest.max(theirs.len());
    }
    println!("{compared} stacks are those of /proc, the longest of {longest} functions");
    assert!(compared > 20 && longest >= 4, "{compared} compared, {longest} functions at most");
    Ok(())
}

/// What busy CPUs execute: programs, with the page tables of their task, or the kernel.
fn busy_cpus_are_followed(freezer: &mut Freezer) -> Result<(), SnapshotError> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    let mut in_programs = 0;
    for _ in 0..10 {
        let snap = freeze(freezer, &request);
        for cpu in snap.cpus()? {
            let regs = cpu.registers()?;
            let stack = cpu.stack()?;
            if !regs.in_user_mode() {
                println!("CPU {} in the kernel:\n{stack}", cpu.number());
                continue;
            }
            in_programs += 1;
            assert_eq!((stack.frames.len(), &stack.end), (0, &StackEnd::User));
            let pgd = cpu.curr()?.get("mm.pgd")?.as_u64()?;
            let tables = snap.ram()?.translate(pgd).expect("page tables are in RAM");
            // The page behind them is the one that user mode has, where the two are kept apart.
            let low = 0x1fff;
            assert_eq!(regs.values["cr3"] & !low, tables & !low, "{regs:?}");
        }
    }
    assert!(in_programs > 0, "at none of 10 freezes a CPU executed a program");
    Ok(())
}

/// What the registers add to the time that a machine stands still.
fn measure_registers(freezer: &mut Freezer, release: &str) {
    let mut took = |registers| {
        let request = CaptureRequest { registers, ..CaptureRequest::default() };
        median((0..FREEZES).map(|_| freeze(freezer, &request).pause().copy_us).collect())
    };
    let (with, without) = (took(true), took(false));
    println!("{release}: copy {with} µs with the registers of 2 CPUs, {without} µs without");
}

fn workers(guest: &Guest) -> Vec<u32> {
    guest.call(Op::CgroupCreate { name: "hot".into(), set: CgroupSet::default() });
    let mut all = vec![1];
    all.extend(start(guest, Work { cgroup: Some("hot".into()), ..work(WorkKind::Spin, 4) }));
    all.extend(start(guest, Work { nice: Some(5), ..work(WorkKind::Sleep, 2) }));
    let normal = Some(Policy::Normal);
    let bound = Work { policy: normal, affinity: Some(vec![1]), ..work(WorkKind::Sleep, 1) };
    all.extend(start(guest, bound));
    all.extend(start(guest, Work { policy: Some(Policy::Fifo(3)), ..work(WorkKind::Sleep, 1) }));
    all
}

fn kstate(spec: &str, boot: fn(&cryoscope::kernel::KernelImage) -> Boot) {
    let image = support::kernel(spec);
    let fifo = support::scheduler("examples/schedulers/fifo.bpf.c", &image);
    let mut guest = Guest::boot(boot(&image), "1n1l2c1t", |fs| support::stage(fs, &fifo));
    guest.call(support::attach(&fifo));
    let mut freezer = Freezer::new(guest.take_engine());
    idle_cpus_are_followed(&mut freezer).unwrap_or_else(|e| panic!("{e}"));
    let pids = workers(&guest);
    let kernel = ["jiffies_64", "scx_root", "runqueues"].map(str::to_owned).to_vec();
    let request = CaptureRequest { kernel, ..CaptureRequest::default() };
    let snap = busy(&mut freezer, &request, 4);
    let tasks = snap.tasks().unwrap_or_else(|e| panic!("{e}"));
    assert!(tasks.len() > pids.len() + 20, "{} tasks, kernel threads among them", tasks.len());
    for pid in pids {
        let task = snap.task(pid.into()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(read(&task), said(&guest, pid));
    }
    let kthreadd = snap.task(2).unwrap_or_else(|e| panic!("{e}"));
    let e = kthreadd.schedstats().unwrap_err().to_string();
    assert_eq!(
        e,
        "the statistics of task 2 could not be read: the kernel was not told to count them \
         (kernel.sched_schedstats is 0): declare the scenario with the option schedstats: true"
    );
    assert_eq!(
        (kthreadd.comm().as_deref(), kthreadd.class().as_deref()),
        (Ok("kthreadd"), Ok("ext"))
    );
    let uptime = guest.file("/proc/uptime");
    let uptime = uptime.split(' ').next().and_then(|s| s.parse().ok()).expect("seconds");
    let mut checks = || {
        cpus_are_plausible(&snap, 4)?;
        sched_equals_sysfs(&guest, &snap)?;
        variables_are_read(&snap, uptime)?;
        memory_is_read(&guest, &mut freezer)?;
        stacks_are_those_of_proc(&guest, &mut freezer)?;
        busy_cpus_are_followed(&mut freezer)
    };
    checks().unwrap_or_else(|e| panic!("{e}"));
    let waiting: Vec<usize> = (0..10)
        .map(|_| freeze(&mut freezer, &CaptureRequest::default()))
        .filter_map(|snap| match queue_is_in_order(&snap) {
            Ok(len) => Some(len),
            // CPUs stop anywhere, also while they change a queue.
            Err(SnapshotError::MapRenderIncomplete { error, .. }) => {
                println!("{error}");
                None
            }
            Err(e) => panic!("{e}"),
        })
        .collect();
    assert!(waiting.len() > 5 && waiting.iter().any(|n| *n > 0), "in fifo's queue: {waiting:?}");
    measure(&mut freezer, &image.release, tasks.len());
    let held = the_live_one_has_its_own(&guest, &mut freezer).unwrap_or_else(|e| panic!("{e}"));
    measure_registers(&mut freezer, &image.release);
    guest.call(Op::Detach);
    let after = freeze(&mut freezer, &CaptureRequest::default());
    none_is_live(&after).unwrap_or_else(|e| panic!("{e}"));
    let sched = after.sched().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((sched.state(), sched.is_attached()), (Ok("disabled"), false));
    let e = sched.ops().unwrap_err();
    assert!(matches!(e, SnapshotError::NoActiveScheduler { .. }), "{e}");
    guest.call(support::attach(&fifo));
    the_live_copy_counts(&mut freezer, &held).unwrap_or_else(|e| panic!("{e}"));
    freezer.stop();
}

/// The live scheduler, its maps and programs are those that came with it, by the syscall. The
/// agent holds the maps from now on.
fn the_live_one_has_its_own(
    guest: &Guest,
    freezer: &mut Freezer,
) -> Result<BTreeSet<u32>, SnapshotError> {
    let Answer::Maps(held) = guest.call(Op::HoldMaps) else { panic!("no maps") };
    let Answer::Progs(progs) = guest.call(Op::ListProgs) else { panic!("no programs") };
    // BPF_PROG_TYPE_STRUCT_OPS.
    let progs: BTreeSet<u32> = progs.iter().filter(|p| p.kind == 27).map(|p| p.id).collect();
    let held: BTreeSet<u32> = held.iter().map(|map| map.id).collect();
    let snap = freeze(freezer, &CaptureRequest::default());
    let active = snap.active()?;
    assert_eq!((active.path()?, active.is_live()?, active.parent()?.is_none()), ("/", true, true));
    assert!(active.exit()?.is_none() && active.children()?.is_empty());
    assert_eq!(snap.scheds()?.len(), 1);
    assert_eq!(active.maps()?.iter().map(|m| m.attrs().id).collect::<BTreeSet<_>>(), held);
    assert_eq!(active.progs()?.iter().map(|p| p.state().id).collect::<BTreeSet<_>>(), progs);
    let live = snap.live_global("nr_enqueued")?.as_u64()?;
    assert_eq!(live, snap.global("nr_enqueued")?.as_u64()?);
    assert!(live > 0);
    let e = snap.live_global("nr_enqeued").unwrap_err();
    assert!(matches!(e, SnapshotError::VarNotFound { .. }), "{e}");
    Ok(held)
}

/// The maps are still there, since the agent holds them, but nobody's who schedules.
fn none_is_live(snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    assert!(snap.global("nr_enqueued")?.as_u64()? > 0, "there is one copy");
    assert!(snap.scheds()?.is_empty());
    for e in [snap.active().map(drop), snap.live_global("nr_enqueued").map(drop)] {
        let e = e.unwrap_err();
        assert!(matches!(e, SnapshotError::NoActiveScheduler { .. }), "{e}");
        assert!(e.to_string().contains("sched_ext was disabled"), "{e}");
    }
    Ok(())
}

/// Of two copies of the same object the attached one counts.
fn the_live_copy_counts(freezer: &mut Freezer, held: &BTreeSet<u32>) -> Result<(), SnapshotError> {
    let snap = freeze(freezer, &CaptureRequest::default());
    let both = snap.globals("nr_enqueued")?;
    assert_eq!(both.len(), 2);
    let all: Vec<u64> = both.iter().map(|f| f.as_u64()).collect::<Result<_, _>>()?;
    assert_ne!(all[0], all[1], "the old copy stands still, the new one began at 0");
    let live = snap.live_global("nr_enqueued")?.as_u64()?;
    assert_eq!(live, snap.global("nr_enqueued")?.as_u64()?);
    assert_eq!(live, snap.active()?.global("nr_enqueued")?.as_u64()?);
    assert!(all.contains(&live) && live == all[0].min(all[1]), "{live} of {all:?}");
    let now: BTreeSet<u32> = snap.active()?.maps()?.iter().map(|m| m.attrs().id).collect();
    assert!(now.is_disjoint(held) && now.len() == held.len(), "{now:?} and {held:?}");
    Ok(())
}

#[test]
fn tasks_cpus_and_queues_are_those_of_proc_and_sys_on_7_2_with_kaslr() {
    kstate("debian:7.2", support::bzimage);
}

#[test]
fn tasks_cpus_and_queues_are_those_of_proc_and_sys_on_7_3() {
    kstate("debian:7.3", support::elf);
}

#[test]
fn a_kernel_without_sched_ext_says_so() {
    let image = support::kernel("debian:6.12");
    let mut guest = Guest::boot(support::elf(&image), "1n1l2c1t", |_| {});
    let pids = start(&guest, work(WorkKind::Spin, 3));
    let mut freezer = Freezer::new(guest.take_engine());
    let snap = busy(&mut freezer, &CaptureRequest::default(), 3);
    for pid in pids {
        let task = snap.task(pid.into()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(read(&task), said(&guest, pid));
        assert_eq!(task.class().as_deref(), Ok("fair"));
        let e = task.get("scx.weight").unwrap_err();
        assert!(matches!(e, SnapshotError::FieldNotFound { .. }), "{e}");
    }
    cpus_without_queues(&snap).unwrap_or_else(|e| panic!("{e}"));
    // Its unwind tables number the registers in another way.
    stacks_are_those_of_proc(&guest, &mut freezer).unwrap_or_else(|e| panic!("{e}"));
    busy_cpus_are_followed(&mut freezer).unwrap_or_else(|e| panic!("{e}"));
    let e = snap.sched().map(drop).unwrap_err();
    assert_eq!(
        e.to_string(),
        "no scheduler was running: this kernel was built without sched_ext (CONFIG_SCHED_CLASS_EXT)"
    );
    freezer.stop();
}

fn cpus_without_queues(snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let mut runnable = 0;
    for cpu in snap.cpus()? {
        runnable += cpu.get("nr_running")?.as_u64()?;
        assert_eq!(cpu.get("curr.pid")?.as_i64()?, cpu.curr()?.tid()?);
        assert!(cpu.cpustat()?.iter().any(|(name, _)| name == "idle"));
    }
    assert!(runnable >= 3, "{runnable}");
    Ok(())
}

/// What a script's author writes, on a machine that was booted for it.
const SCRIPT: &str = r#"
scenario("the kernel's own view", #{
    scheduler: "FIFO", topology: "1n1l2c1t", schedstats: true,
}, |t| {
    let hot = t.new_cgroup("hot");
    let pids = hot.start(#{ work: "spin", count: 4 });
    t.hold("500ms");
    let snap = t.freeze("a", #{ kernel: ["jiffies_64", "runqueues"] });
    let ours = snap.tasks().filter(|task| pids.contains(task.tid));
    expect(ours, "our workers").len_eq(4);
    for task in ours {
        expect(task.comm).eq("spin");
        expect(task.policy).eq("ext");
        expect(task.class).eq("ext");
        expect(task.state).eq("running");
        expect(task.cpus_allowed).eq("0-1");
        expect(task.cgroup.ends_with("/hot"), task.cgroup).is_true();
        expect(task["se.sum_exec_runtime"]).gt(0);
        expect(snap.map("task_ctx").get(task.tid).comm, "the scheduler's name for it").eq(task.comm);
    }
    let sleeper = t.start(#{ work: "sleep", period: "10ms" })[0];
    t.hold("300ms");
    let counted = t.freeze("counted").task(sleeper).schedstats();
    let later = t.exec(["cat", `/proc/${sleeper}/sched`]).stdout;
    let line = later.split("\n").find(|l| l.starts_with("nr_wakeups "));
    expect(type_of(line), later).eq("string");
    let number = line.split(":")[1];
    number.trim();
    expect(counted.nr_wakeups, "wake-ups of the sleeper").between(5, parse_int(number));
    let cpu = snap.cpu(0).schedstats();
    expect(cpu.sched_count, "times that CPU 0 chose a task").gt(0);
    expect(snap.sched().state).eq("enabled");
    expect(snap.sched().ops).eq(t.scheduler.ops);
    expect(snap.sched().counters().keys().len).gt(5);
    expect(snap.cpus().len).eq(t.topology.cpus);
    for cpu in snap.cpus() {
        expect(cpu.curr.cpu).eq(cpu.n);
        expect(cpu.cpustat.user).gt(0);
        expect(cpu.kernel("runqueues").cpu).eq(cpu.n);
        expect(snap.kernel("runqueues").cpu(cpu.n).nr_running).eq(cpu.nr_running);
    }
    for task in snap.dsq(0) {
        expect(task.runnable || snap.cpus().some(|cpu| cpu.torn().len > 0)).is_true();
    }
    expect(snap.kernel("jiffies_64", "u64")).gt(0);
    dump(snap.sched());
    try { snap.cpu(0).registers() } catch (e) { print(e.message); }
    try { snap.task(2).stack() } catch (e) { print(e.message); }
    let whole = t.freeze("whole", #{ ram: true });
    let kthreadd = whole.task(2).stack();
    expect(kthreadd.frames.some(|frame| frame.starts_with("kthreadd+0x")), kthreadd.to_string()).is_true();
    expect(kthreadd.ending).eq("the end of the stack");
    expect(whole.symbol(kthreadd.addresses[0])).eq(kthreadd.frames[0]);
    let task = whole.task(pids[0]);
    expect(whole.kernel(task.get("group_leader"), "struct task_struct").pid).eq(task.tgid);
    for cpu in whole.cpus() {
        let regs = cpu.registers();
        expect(regs.user || regs.symbol != (), `rip ${regs.rip}`).is_true();
        expect(regs.cr3).gt(0);
    }
    try { snap.kernel("jifies_64") } catch (e) { print(e.message); }
    try { snap.task(99999) } catch (e) { print(e.message); }
    try { t.freeze("b", #{ kernel: ["jifies_64"] }) } catch (e) { print(e.message); }
    try { t.freeze("c", #{ sched: false }).tasks() } catch (e) { print(e.message); }
});
"#;

#[test]
fn scripts_read_tasks_cpus_and_queues() {
    let place = place::Place::new();
    let fifo = place::project("examples/schedulers/fifo.bpf.c");
    place.file("kernel.rhai", SCRIPT.replace("FIFO", &fifo.display().to_string()));
    let said = place.run(&["run", "kernel.rhai"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in [
        "sched_ext enabled: fifo",
        "kernel variable jifies_64 could not be read: the kernel has no such symbol; did you mean \"jiffies_64\"?",
        "task(99999) found nothing in \"tasks\"",
        "they were not taken; freeze with t.freeze(\"tag\", #{ registers: true })",
        "the guest's memory could not be read: it was not kept; freeze with t.freeze(\"tag\", #{ ram: true })",
        "kernel: \"jifies_64\" found nothing in \"kallsyms\"",
        "keys there: jiffies_64",
        "the kernel's scheduling state could not be read: the freeze was told to leave it out",
    ] {
        assert!(said.out.contains(line), "{line}\n{}", said.out);
    }
}
