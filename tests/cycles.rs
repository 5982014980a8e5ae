//! Machines that are started and ended, over and over: what this process holds returns to where it
//! was. A file of its own, since everything in the process is counted.

#[path = "support/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use cryoscope::vm::channel::Channel;
use cryoscope::vm::{self, EngineChoice, ExitKind};
use tiny::Kernel;

const SOON: Duration = Duration::from_secs(120);

/// What a process holds that a machine might leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Holds {
    /// Descriptors, by what they are of.
    fds: BTreeMap<String, usize>,
    threads: usize,
    children: usize,
    /// Mappings that are guests' RAM, or of KVM.
    mappings: usize,
    /// Named shared memory and sockets of ours.
    named: usize,
}

impl Holds {
    fn now() -> Holds {
        let mut fds = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/fd").expect("our descriptors").flatten() {
            if let Ok(to) = fs::read_link(entry.path()) {
                // Without the numbers of pipes and sockets.
                let kind = to.display().to_string();
                let kind = kind.split('[').next().unwrap_or_default();
                *fds.entry(kind.to_owned()).or_default() += 1;
            }
        }
        let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
        let ours = |line: &&str| line.contains("memfd:") || line.contains("kvm-vcpu");
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let shm = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let shm = shm.filter(|e| e.file_name().to_string_lossy().contains("cryoscope")).count();
        Holds {
            fds,
            threads: fs::read_dir("/proc/self/task").expect("our threads").count(),
            children: children(),
            mappings: maps.lines().filter(ours).count(),
            named: sockets.lines().filter(|l| l.contains("cryoscope")).count() + shm,
        }
    }
}

/// Processes whose parent is this one, also those that have ended and were not waited for.
fn children() -> usize {
    let us = std::process::id().to_string();
    let parent = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1).map(str::to_owned)
    };
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| parent(pid).as_deref() == Some(&us))
        .count()
}

/// KiB in RAM.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("our own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Starts a machine and ends it, in a different way each time.
fn cycle(engine: EngineChoice, number: usize) {
    let own = engine == EngineChoice::Kvm;
    let off = if own { tiny::KVM_POWER_OFF } else { tiny::POWER_OFF };
    let (code, kind) = match number % 4 {
        0 => (tiny::SPIN, None),
        1 => (off, Some(ExitKind::PoweredOff)),
        2 => (tiny::TRIPLE_FAULT, Some(ExitKind::TripleFault)),
        _ => (tiny::HANG, None),
    };
    let kernel = Kernel::new("hi\n", code);
    let shape = if number.is_multiple_of(3) { "1n1l2c1t" } else { "1n1l1c1t" };
    let mut vm = vm::start(&kernel.spec(shape), engine).unwrap_or_else(|e| panic!("{e}"));
    // Every other one is ended with somebody listening to it, or frozen.
    let channel = (number.is_multiple_of(2)).then(|| {
        let transport = vm.take_transport().expect("a transport");
        Channel::new(transport, Some(vm.exit_watch())).expect("a channel")
    });
    match kind {
        Some(kind) => {
            let end = vm.exit_watch().wait(SOON).unwrap_or_else(|| panic!("{kind}: it runs on"));
            assert_eq!(end.kind, kind, "{number}: {end}");
        }
        // From here on it may be anywhere in its code.
        None if number.is_multiple_of(5) => {
            vm.pause().unwrap_or_else(|e| panic!("{number}: {e}"));
        }
        None if number % 5 == 1 => assert!(vm.console().wait_for("hi", SOON), "{number}"),
        None => {}
    }
    drop(vm);
    if let Some(channel) = channel {
        assert!(channel.hello(SOON).is_err(), "{number}");
    }
}

/// This many cycles leave nothing.
fn cycles(engine: EngineChoice, count: usize) {
    // What is made once and kept: thread-local stores, the allocator's arenas, signal handlers.
    (0..12).for_each(|number| cycle(engine, number));
    let (before, begin) = (Holds::now(), Instant::now());
    let mut resident = Vec::new();
    for number in 0..count {
        cycle(engine, number);
        resident.push(resident_kib());
    }
    let after = Holds::now();
    let took = begin.elapsed();
    let (first, last) = (resident[count / 10], resident[count - 1]);
    println!("{} cycles under {}: {took:.1?}, {first} KiB then {last}", count, engine.name());
    assert_eq!(before, after, "after {count} cycles under {}", engine.name());
    assert!(last < first + (4 << 10), "{first} KiB grew to {last}");
}

#[test]
fn machines_come_and_go_and_nothing_of_them_stays() {
    if let Err(why) = vm::kvm_speed() {
        assert!(!std::path::Path::new("/dev/kvm").exists(), "{why}");
    } else {
        cycles(EngineChoice::Kvm, 300);
    }
    cycles(EngineChoice::Qemu, 20);
}
