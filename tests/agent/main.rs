//! The guest agent in real machines. Each test boots once and checks a lot, since a boot takes
//! seconds.

mod lab;

use std::fs::File;
use std::io::Write;

use cryoscope::vm::ExitKind;
use cryoscope::wire::{
    Answer, Attach, CgroupSet, Event, Op, PORT_ARG, Patch, Policy, RefusalKind, SchedulerState,
    Work, WorkKind,
};
use lab::{Lab, guest, kernel, scheduler, start, work};

fn cpus(list: &str) -> CgroupSet {
    CgroupSet { cpus: Some(list.into()), ..CgroupSet::default() }
}

fn create(name: &str, set: CgroupSet) -> Op {
    Op::CgroupCreate { name: name.into(), set }
}

fn group(name: &str) -> String {
    name.into()
}

#[test]
fn groups_workers_and_programs() {
    let lab = Lab::boot(&kernel("debian:7.2"), "1n2l2c1t", &guest());
    assert_eq!(lab.hello.cpus, 4);
    assert!(lab.hello.release.starts_with("7.2."), "{:?}", lab.hello);
    assert!(lab.hello.uptime_us > 0, "{:?}", lab.hello);
    for kind in ["proc", "sysfs", "devtmpfs", "cgroup2", "bpf", "tracefs", "tmpfs"] {
        let mounts = lab.read("/proc/mounts");
        assert!(mounts.lines().any(|l| l.split(' ').nth(2) == Some(kind)), "{kind}: {mounts}");
    }
    let flags = lab.read("/sys/class/net/lo/flags");
    assert_eq!(u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap() & 1, 1);
    groups(&lab);
    workers(&lab);
    programs(&lab);
    files(&lab);
    lab.no_event();
    let end = lab.power_off();
    assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
}

fn groups(lab: &Lab) {
    let set = CgroupSet { weight: Some(50), cpu_max: Some("50000 100000".into()), ..cpus("2-3") };
    lab.done(create("hot", set));
    lab.done(create("cold", CgroupSet::default()));
    for (op, kind, says) in [
        (create("hot", cpus("0")), RefusalKind::Invalid, "cgroup \"hot\": it exists already"),
        (
            create("big", cpus("3-4")),
            RefusalKind::Invalid,
            "cgroup \"big\": CPUs 3-4 asked, the machine has 0-3",
        ),
        (
            create("odd", cpus("x")),
            RefusalKind::Invalid,
            "cgroup \"odd\": \"x\" is no list of CPUs (as in 0-3,8)",
        ),
        (
            Op::CgroupSet {
                name: group("hot"),
                set: CgroupSet { weight: Some(0), ..CgroupSet::default() },
            },
            RefusalKind::Kernel,
            "cgroup \"hot\": cpu.weight cannot be set to \"0\": Numerical result out of range",
        ),
        (
            Op::CgroupProcs { name: group("hto") },
            RefusalKind::NotFound,
            "no cgroup \"hto\"; there are: hot, cold",
        ),
    ] {
        let refusal = lab.refused(op);
        assert_eq!((refusal.kind, refusal.message.as_str()), (kind, says));
    }
    // Workers in it are where it says, and follow it.
    let pids = lab.start(Work { cgroup: Some(group("hot")), ..work(WorkKind::Spin, 2) });
    let mut there = lab.procs("hot");
    there.sort_unstable();
    assert_eq!(there, pids);
    assert_eq!(lab.read(&format!("/proc/{}/cgroup", pids[0])).trim(), "0::/lab/hot");
    assert_eq!(lab.proc(pids[0], "status", "Cpus_allowed_list"), "2-3");
    lab.done(Op::CgroupSet { name: group("hot"), set: cpus("1") });
    assert_eq!(lab.proc(pids[1], "status", "Cpus_allowed_list"), "1");
    lab.done(Op::CgroupSet { name: group("hot"), set: cpus("") });
    assert_eq!(lab.proc(pids[1], "status", "Cpus_allowed_list"), "0-3");
    freezing(lab, pids[0]);
    let Answer::Files(files) = lab.call(Op::CgroupStats { name: group("hot") }) else { panic!() };
    let file = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
    assert_eq!(file("cpu.weight"), Some("50\n"));
    assert_eq!(file("cpu.max"), Some("50000 100000\n"));
    assert!(file("cpu.stat").is_some_and(|t| t.contains("usage_usec ")), "{files:?}");
    lab.done(Op::CgroupMove { from: group("hot"), to: group("cold") });
    assert_eq!(lab.procs("hot"), [0; 0]);
    assert_eq!(lab.procs("cold").len(), 2);
    lab.done(Op::StopWorkers { cgroup: Some(group("hot")) });
    assert_eq!(lab.procs("cold").len(), 2, "those of another group stay");
    lab.done(Op::CgroupRemove { name: group("cold") });
    let missing = lab.refused(Op::ReadFile { path: format!("/proc/{}/stat", pids[0]), offset: 0 });
    assert_eq!(missing.kind, RefusalKind::NotFound, "removing kills: {missing}");
    assert_eq!(lab.refused(Op::CgroupProcs { name: group("cold") }).kind, RefusalKind::NotFound);
    lab.done(Op::CgroupRemove { name: group("hot") });
    lab.no_event();
}

fn freezing(lab: &Lab, pid: u32) {
    let freeze = |frozen| Op::CgroupFreeze { name: group("hot"), frozen };
    let ran = || lab.number(pid, "sched", "se.sum_exec_runtime");
    lab.done(freeze(true));
    assert_ne!(lab.read(&format!("/proc/{pid}/wchan")), "0", "it has left its CPU");
    let before = ran();
    let refusal =
        lab.refused(Op::Start(Work { cgroup: Some(group("hot")), ..work(WorkKind::Spin, 1) }));
    assert_eq!(
        refusal.message,
        "cgroup \"hot\": it is frozen, nothing can start in it; thaw it first"
    );
    lab.exec(&["sleep", "0.3"]);
    assert_eq!(ran(), before, "frozen is frozen");
    lab.done(freeze(false));
    lab.until("a thawed worker runs again", || ran() > before);
}

fn workers(lab: &Lab) {
    let switches = |pid| lab.number(pid, "status", "voluntary_ctxt_switches");
    let ran = |pid| lab.number(pid, "sched", "se.sum_exec_runtime");
    for (kind, name, rests) in [
        (WorkKind::Spin, "spin", false),
        (WorkKind::Yield, "yield", false),
        (WorkKind::Sleep, "sleep", true),
        (WorkKind::Pipe, "pipe", true),
    ] {
        let pids = lab.start(work(kind, 2));
        assert_eq!(pids.len(), 2);
        for pid in &pids {
            assert_eq!(lab.proc(*pid, "status", "Name"), name);
            assert_eq!(lab.proc(*pid, "sched", "policy"), "0", "no scheduler, so SCHED_OTHER");
            let (slept, busy) = (switches(*pid), ran(*pid));
            lab.until("it has run", || ran(*pid) > busy + 5.0);
            if rests {
                lab.until("it has slept", || switches(*pid) > slept + 10.0);
            } else {
                // Reading /proc of a worker never makes it sleep; what shakes out of the start
                // is over.
                assert_eq!(switches(*pid), slept, "{name} never sleeps");
            }
        }
        lab.done(Op::StopWorkers { cgroup: None });
    }
    let nice = Work {
        nice: Some(5),
        affinity: Some(vec![1, 3]),
        policy: Some(Policy::Batch),
        ..work(WorkKind::Spin, 1)
    };
    let pid = lab.start(nice)[0];
    assert_eq!(lab.proc(pid, "status", "Cpus_allowed_list"), "1,3");
    assert_eq!(lab.proc(pid, "sched", "policy"), "3");
    assert_eq!(lab.proc(pid, "sched", "prio"), "125");
    for (work, says) in [
        (work(WorkKind::Pipe, 3), "pipe workers come in pairs: 3 is odd, ask for 4"),
        (work(WorkKind::Spin, 0), "spin workers: a count of 0 starts nothing"),
        (work(WorkKind::Spin, 5000), "5000 spin workers asked, 1 are there; at most 1024 can be"),
        (
            Work { nice: Some(20), ..work(WorkKind::Spin, 1) },
            "spin workers: nice is -20 to 19, not 20",
        ),
    ] {
        let refusal = lab.refused(Op::Start(work));
        assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::Invalid, says));
    }
    let nowhere = Work { affinity: Some(vec![9]), ..work(WorkKind::Spin, 1) };
    let refusal = lab.refused(Op::Start(nowhere));
    let says = "affinity to CPUs [9]: Invalid argument (none of them is among the CPUs of its \
         group and of the machine)";
    assert!(refusal.message.ends_with(says), "{refusal}");
    // Only a death that nobody asked for is an event.
    lab.no_event();
    lab.exec(&["kill", "-KILL", &pid.to_string()]);
    let reason = "was killed by signal 9 (SIGKILL)".into();
    assert_eq!(lab.event("a killed worker"), Event::WorkerExited { pid, reason });
}

fn programs(lab: &Lab) {
    let done = lab.exec(&["echo", "hello", "\u{1b}[0mworld"]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "hello \u{fffd}[0mworld\n"));
    let done = lab.exec(&["cat", "/nowhere", "/proc/version"]);
    assert_eq!(done.code, Some(1));
    assert_eq!(done.stderr, "cat: /nowhere: No such file or directory\n");
    assert!(done.stdout.starts_with("Linux version 7.2"), "{done:?}");
    assert_eq!(lab.exec(&["true"]).code, Some(0));
    assert_eq!(lab.exec(&["false"]).code, Some(1));
    assert!(lab.exec(&["ls", "/"]).stdout.lines().any(|l| l == "init"));
    let endless = Op::Exec { argv: vec!["cat".into(), "/dev/zero".into()], timeout_ms: 300 };
    let Answer::Exec(done) = lab.call(endless) else { panic!() };
    assert!(done.timed_out && done.truncated && done.signal == Some(9), "{:?}", done.signal);
    for (argv, kind, says) in [
        (
            vec!["nope"],
            RefusalKind::NotFound,
            "cannot run \"nope\" in the guest: it is neither in /bin, /usr/bin, /sbin, /usr/sbin, \
             /usr/local/bin, /usr/local/sbin nor built in; built in are cat, echo, false, insmod, kill, \
             ls, sleep, sysctl, ticks, true, other programs must be staged",
        ),
        (
            vec!["/proc/version"],
            RefusalKind::NotFound,
            "cannot run \"/proc/version\" in the guest: it is no executable file; built in are \
             cat, echo, false, insmod, kill, ls, sleep, sysctl, ticks, true, other programs must be staged",
        ),
        (vec![], RefusalKind::Invalid, "no program named"),
    ] {
        let argv = argv.into_iter().map(String::from).collect();
        let refusal = lab.refused(Op::Exec { argv, timeout_ms: 1000 });
        assert_eq!((refusal.kind, refusal.message.as_str()), (kind, says));
    }
}

fn files(lab: &Lab) {
    let part = |offset| match lab.call(Op::ReadFile { path: "/proc/kallsyms".into(), offset }) {
        Answer::File { bytes, truncated } => (bytes, truncated),
        other => lab.fail(&format!("{other:?}")),
    };
    let ((first, cut), (second, _)) = (part(0), part(1000));
    assert!(cut && first.len() == 1 << 20, "{} bytes", first.len());
    assert_eq!(first[1000..2000], second[..1000]);
    let refusal = lab.refused(Op::ReadFile { path: "proc".into(), offset: 0 });
    assert_eq!(refusal.message, "cannot read \"proc\" in the guest: not an absolute path");
    let Answer::Text(log) = lab.call(Op::Dmesg) else { panic!() };
    assert!(log.contains("Linux version 7.2"), "{log}");
    assert!(log.lines().all(|l| l.starts_with('[')), "{log}");
}

#[test]
fn schedulers_of_7_2() {
    schedulers("debian:7.2");
}

#[test]
fn schedulers_of_7_3() {
    schedulers("debian:7.3");
}

struct Plans {
    fifo: Attach,
    rejected: Attach,
    exits: Attach,
    stalls: Attach,
}

fn schedulers(spec: &str) {
    let (kernel, mut fs) = (kernel(spec), guest());
    let mut plan = |src: &str, values| scheduler(&mut fs, &kernel, src, values);
    let plans = Plans {
        fifo: plan("examples/schedulers/fifo.bpf.c", &[("slice_ns", 3_000_000)]),
        rejected: plan("tests/schedulers/broken_verifier.bpf.c", &[]),
        exits: plan("tests/schedulers/exits.bpf.c", &[("works_ns", 4_000_000_000)]),
        stalls: plan("tests/schedulers/stall.bpf.c", &[("works_ns", 4_000_000_000)]),
    };
    let lab = Lab::boot(&kernel, "1n1l2c1t", &fs);
    let state = lab.state();
    assert_eq!((state.state.as_str(), state.attached, state.enable_seq), ("disabled", false, 0));
    refusals(&lab, &plans);
    attach_and_detach(&lab, &plans);
    unasked_exits(&lab, &plans);
    scheduler_programs(&lab, &plans);
    lab.no_event();
    lab.call(Op::Attach(plans.fifo));
    let end = lab.power_off();
    assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
}

fn object(path: &str, patches: &[(&str, u32, &[u8])]) -> Op {
    let patch = |(section, offset, bytes): &(&str, u32, &[u8])| Patch {
        section: (*section).into(),
        offset: *offset,
        bytes: bytes.to_vec(),
    };
    let patches = patches.iter().map(patch).collect();
    Op::Attach(Attach::Object { path: path.into(), patches, timeout_ms: 60_000 })
}

fn path_of(plan: &Attach) -> &str {
    match plan {
        Attach::Object { path, .. } => path,
        Attach::Program { argv, .. } => &argv[0],
    }
}

fn refusals(lab: &Lab, plans: &Plans) {
    let refusal = lab.refused(Op::Attach(plans.rejected.clone()));
    assert_eq!(refusal.kind, RefusalKind::Verifier, "{refusal}");
    let says = "the verifier rejected program \"broken_enqueue\" of \
         /scheduler/broken_verifier.bpf.o at broken_verifier.bpf.c:";
    assert!(refusal.message.starts_with(says), "{refusal}");
    assert!(refusal.message.contains("invalid mem access 'map_value_or_null'"), "{refusal}");
    assert!(refusal.log.contains("-- BEGIN PROG LOAD LOG --"), "{}", refusal.log);
    let fifo = path_of(&plans.fifo);
    for (op, kind, says) in [
        (
            object("/nowhere.bpf.o", &[]),
            RefusalKind::NotFound,
            "cannot open the BPF object /nowhere.bpf.o: No such file or directory",
        ),
        (object("/init", &[]), RefusalKind::Invalid, "cannot open the BPF object /init: "),
        (
            object(fifo, &[(".rodata.x", 0, &[0])]),
            RefusalKind::NotFound,
            "no section .rodata.x with values in /scheduler/fifo.bpf.o; there are: ",
        ),
        (
            object(fifo, &[(".rodata", u32::MAX, &[0, 0])]),
            RefusalKind::Invalid,
            "cannot set 2 bytes at 4294967295 of .rodata in /scheduler/fifo.bpf.o: the section \
             has ",
        ),
        (Op::Detach, RefusalKind::Invalid, "no scheduler is attached"),
    ] {
        let refusal = lab.refused(op);
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert!(refusal.message.starts_with(says), "{refusal}");
    }
    assert_eq!(lab.state().state, "disabled");
}

fn attach_and_detach(lab: &Lab, plans: &Plans) {
    let policy = |pid| lab.proc(pid, "sched", "policy");
    let is_ext = |pid| lab.proc(pid, "sched", "ext.enabled");
    let before = lab.start(work(WorkKind::Spin, 1))[0];
    assert_eq!((policy(before), is_ext(before)), ("0".into(), "0".into()));
    let Answer::Attached { ops, .. } = lab.call(Op::Attach(plans.fifo.clone())) else { panic!() };
    assert_eq!(ops, "fifo");
    let state = lab.state();
    assert_eq!((state.state.as_str(), state.ops.as_deref()), ("enabled", Some("fifo")));
    assert!(state.attached && state.enable_seq == 1, "{state:?}");
    let refusal = lab.refused(Op::Attach(plans.fifo.clone()));
    assert_eq!(
        refusal.message,
        "a scheduler (/scheduler/fifo.bpf.o) is attached already; detach it first"
    );
    let after = lab.start(work(WorkKind::Spin, 2))[0];
    for pid in [before, after] {
        assert_eq!((policy(pid), is_ext(pid)), ("7".into(), "1".into()), "SCHED_EXT");
    }
    // PID 1 is not the scheduler's.
    assert_eq!((policy(1), is_ext(1)), ("1".into(), "0".into()));
    let ran = || lab.number(after, "sched", "se.sum_exec_runtime");
    let start = ran();
    lab.until("fifo has let the worker run", || ran() > start + 20.0);
    let Answer::Maps(maps) = lab.call(Op::HoldMaps) else { panic!() };
    let map = |name: &str| {
        let found = maps.iter().find(|m| m.name == name);
        found.unwrap_or_else(|| lab.fail(&format!("no map {name} among {maps:?}")))
    };
    // While it is attached: it forgets tasks that it no longer schedules.
    let tasks = lab.entries(map("task_ctx").id);
    for pid in [before, after] {
        assert!(tasks.iter().any(|(key, _)| key == &pid.to_le_bytes()), "{pid}: {tasks:02x?}");
    }
    let Answer::Detached { .. } = lab.call(Op::Detach) else { panic!() };
    assert_eq!(lab.state().state, "disabled");
    assert_eq!(is_ext(after), "0");
    let refusal = lab.refused(Op::Detach);
    assert_eq!(refusal.message, "no scheduler is attached");
    // Held, they outlive it.
    let rodata = lab.entries(map("fifo.rodata").id);
    let slice = 3_000_000u64.to_le_bytes();
    assert!(rodata[0].1.windows(8).any(|w| w == slice), "the patch is in: {rodata:02x?}");
    let stats = map("cpu_stats");
    let size = stats.value_size.next_multiple_of(8) as usize * lab.hello.cpus as usize;
    assert_eq!(lab.entries(stats.id)[0].1.len(), size, "a value for each possible CPU");
    let refusal = lab.refused(Op::DumpMap { id: 4_000_000, skip: 0 });
    assert!(refusal.message.starts_with("map 4000000 is not held; held are: ["), "{refusal}");
    lab.done(Op::StopWorkers { cgroup: None });
    lab.no_event();
}

fn unasked_exits(lab: &Lab, plans: &Plans) {
    lab.start(work(WorkKind::Spin, 3));
    for (plan, name, says) in [
        (&plans.exits, "exits", "scx_bpf_error: had enough of pid "),
        (&plans.stalls, "stall", "runnable task stall: "),
    ] {
        lab.call(Op::Attach(plan.clone()));
        // Starting must work while nothing is scheduled any more.
        lab.start(work(WorkKind::Spin, 1));
        let Event::SchedulerExited { reason, dmesg, .. } = lab.event("the scheduler leaves") else {
            lab.fail("another event came first")
        };
        assert!(reason.starts_with(says), "{reason}");
        assert!(dmesg.contains(&format!("BPF scheduler \"{name}\" disabled")), "{dmesg}");
        let state = lab.state();
        assert!(state.state == "disabled" && !state.attached, "{state:?}");
        // The host may not have known yet: detaching what has gone is no mistake, once.
        let Answer::Detached { .. } = lab.call(Op::Detach) else { panic!() };
        assert_eq!(lab.refused(Op::Detach).kind, RefusalKind::Invalid);
        lab.no_event();
    }
    lab.done(Op::StopWorkers { cgroup: None });
}

fn scheduler_programs(lab: &Lab, plans: &Plans) {
    let program = |argv: &[&str], timeout_ms| {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        let env = vec![("COLOR".to_owned(), "no".to_owned())];
        Op::Attach(Attach::Program { argv, env, timeout_ms })
    };
    for (argv, kind, says) in [
        (
            &["false"],
            RefusalKind::Exited,
            "the scheduler false exited with code 1 before it was in charge",
        ),
        (
            &["/scheduler/absent"],
            RefusalKind::NotFound,
            "cannot run \"/scheduler/absent\" in the guest: there is no such file; ",
        ),
    ] {
        let refusal = lab.refused(program(argv, 30_000));
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert!(refusal.message.starts_with(says), "{refusal}");
    }
    let refusal = lab.refused(program(&["sleep", "600"], 500));
    assert_eq!(
        refusal.message,
        "the scheduler sleep is not in charge after 0.5 s; sched_ext is disabled"
    );
    let rejected = ["/init", "hold", path_of(&plans.rejected)];
    let refusal = lab.refused(program(&rejected, 60_000));
    assert_eq!(refusal.kind, RefusalKind::Exited, "{refusal}");
    assert!(refusal.log.contains("invalid mem access"), "what it printed: {}", refusal.log);
    let holds = ["/init", "hold", path_of(&plans.fifo)];
    let Answer::Attached { ops, .. } = lab.call(program(&holds, 60_000)) else { panic!() };
    assert_eq!(ops, "fifo");
    let Answer::Detached { log } = lab.call(Op::Detach) else { panic!() };
    assert_eq!(log, "attached fifo_ops\n");
    lab.no_event();
    // One that somebody kills.
    lab.call(program(&holds, 60_000));
    let listed = lab.exec(&["ls", "/proc"]).stdout;
    let pids = listed.lines().filter_map(|name| name.parse::<u32>().ok());
    let holder = pids
        .into_iter()
        .find(|pid| lab.read(&format!("/proc/{pid}/cmdline")).contains("hold") && *pid != 1);
    let holder = holder.unwrap_or_else(|| lab.fail("no process holds the scheduler"));
    assert!(lab.read(&format!("/proc/{holder}/environ")).contains("COLOR=no"));
    lab.exec(&["kill", "-KILL", &holder.to_string()]);
    let Event::SchedulerExited { reason, .. } = lab.event("its program was killed") else {
        lab.fail("another event came first")
    };
    assert_eq!(reason, "its process, /init, was killed by signal 9 (SIGKILL)");
    assert_eq!(lab.state().state, "disabled");
}

#[test]
fn without_sched_ext_and_after_damage() {
    let mut lab = Lab::boot(&kernel("debian:6.12"), "1n1l1c1t", &guest());
    let refusal = lab.refused(object("/s.bpf.o", &[]));
    assert_eq!(
        (refusal.kind, refusal.message.as_str()),
        (RefusalKind::Kernel, "this kernel has no sched_ext (CONFIG_SCHED_CLASS_EXT is off)")
    );
    assert_eq!(lab.state(), SchedulerState::default());
    let ext = Work { policy: Some(Policy::Ext), ..work(WorkKind::Spin, 1) };
    let refusal = lab.refused(Op::Start(ext));
    let says = "policy Ext: Invalid argument (this kernel has no sched_ext)";
    assert!(refusal.message.ends_with(says), "{refusal}");
    lab.done(create("hot", cpus("0")));
    lab.start(Work { cgroup: Some(group("hot")), ..work(WorkKind::Spin, 2) });
    lab.no_event();
    // Bytes that are no frame.
    File::from(lab.transport.try_clone().unwrap()).write_all(b"no frame at all").unwrap();
    let Event::ChannelDamaged { reason } = lab.event("damage is reported") else {
        lab.fail("another event came first")
    };
    assert!(reason.ends_with("bad magic [6e, 6f, 20, 66] instead of \"CRYO\""), "{reason}");
    assert_eq!(lab.event("the last frame"), Event::PoweringOff);
    let end = lab.wait_for_end("damage");
    assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
}

#[test]
fn an_agent_without_its_port_says_so_and_goes() {
    let _alone = lab::alone();
    let argument = format!("{PORT_ARG}=other");
    let engine = start(&kernel("debian:7.2"), "1n1l1c1t", &guest(), &[&argument]);
    let end = engine.exit_watch().wait(lab::PATIENCE).expect("the machine goes off");
    assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
    let says = "cryoscope-agent: cannot go on: no virtio-serial port named \"other\" after 10 s \
         (ports there: [\"cryoscope.frames\"]); give the machine one";
    assert!(end.console.contains(says), "{}", end.console);
}
