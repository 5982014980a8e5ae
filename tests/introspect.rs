//! Real kernels, read from their RAM alone, against what they say about themselves.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cryoscope::introspect::{IntrospectError, Kernel, MAX_ELEMENTS};
use cryoscope::kernel::KernelImage;
use cryoscope::vm::{self, Boot, EngineChoice, VmSpec};
use support::{BOOT, CALL, Guest, bzimage, elf};

/// An emulated machine takes a whole CPU: they run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names to sets of addresses, as the guest's kernel tells them: those of its image, without
/// modules and BPF programs.
fn kallsyms(text: &str) -> BTreeMap<&str, BTreeSet<u64>> {
    let mut out: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [address, _, name] = words[..] {
            let address = u64::from_str_radix(address, 16).expect("an address");
            out.entry(name).or_default().insert(address);
        }
    }
    out
}

/// Every name, so also every name that comes up more than once.
fn check_symbols(guest: &Guest, kernel: &Kernel) {
    let text = guest.file("/proc/kallsyms");
    let truth = kallsyms(&text);
    assert!(truth.len() > 100_000, "{} names", truth.len());
    assert!(truth["_stext"].iter().all(|at| *at >> 63 == 1), "addresses are not hidden");
    for (name, addresses) in &truth {
        let found: BTreeSet<u64> = kernel.symbols().lookup(name).iter().copied().collect();
        assert_eq!(&found, addresses, "{name}");
    }
    let repeated = truth.values().filter(|set| set.len() > 1).count();
    assert!(repeated > 500, "{repeated} names stand for several addresses");
    assert_eq!(kernel.symbols().lookup("no_such_symbol_anywhere"), [0u64; 0]);
    for name in ["schedule", "map_idr", "vfs_read"] {
        let at = kernel.symbols().address(name).unwrap();
        let (found, offset) = kernel.symbols().find_addr(at.offset(1)).expect("inside");
        assert_eq!((kernel.symbols().lookup(found), offset), (&[at.0][..], 1), "{name}");
    }
}

/// What is known beforehand, read by type.
fn check_values(guest: &mut Guest, kernel: &Kernel) {
    let release = guest.file("/proc/sys/kernel/osrelease");
    assert_eq!(kernel.release(), release.trim());
    let init = kernel.global("init_task", "struct task_struct").unwrap();
    assert_eq!(init.member("comm").unwrap().string().unwrap(), "swapper/0");
    for cpu in 0..kernel.nr_cpu_ids() {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu).unwrap();
        assert_eq!(rq.member("cpu").unwrap().u64(), Ok(cpu.into()));
        let idle = rq.member("idle.comm").unwrap().string().unwrap();
        assert_eq!(idle, format!("swapper/{cpu}"));
    }
    // Time passes, except while the machine is stopped.
    let jiffies = || kernel.global("jiffies_64", "u64").unwrap().u64().unwrap();
    let (before, start) = (jiffies(), Instant::now());
    while jiffies() == before {
        assert!(start.elapsed() < CALL, "time passes in the guest");
    }
    guest.engine().pause().unwrap();
    let stopped = jiffies();
    let tasks = init.member("tasks").unwrap();
    let tasks = tasks.list("struct task_struct", "tasks", MAX_ELEMENTS).unwrap();
    let names: BTreeMap<u64, String> = tasks
        .complete()
        .unwrap()
        .iter()
        .map(|t| (t.member("pid").unwrap().u64().unwrap(), t.member("comm").unwrap().string()))
        .map(|(pid, comm)| (pid, comm.unwrap()))
        .collect();
    assert_eq!(jiffies(), stopped);
    guest.engine().resume().unwrap();
    assert_eq!(names[&1], guest.file("/proc/1/comm").trim());
    assert_eq!(names[&2], "kthreadd");
    let maps = kernel.maps().unwrap();
    assert_eq!((maps.torn, maps.maps.len()), (None, 0), "nobody has made a map");
}

/// Reads the kernel of a machine that has just started.
fn check(
    series: &str,
    boot: fn(&KernelImage) -> Boot,
    topology: &str,
    change: impl FnOnce(&mut VmSpec),
) -> Kernel {
    let _alone = alone();
    let mut spec = support::spec(boot(&support::kernel(series)), topology, |_| {});
    change(&mut spec);
    let mut guest = Guest::start(&spec);
    guest.memory().prefault();
    let start = Instant::now();
    let kernel = Kernel::open(guest.memory()).unwrap_or_else(|e| panic!("{series}: {e}"));
    println!("{series}: {kernel:?} opened in {:?}", start.elapsed());
    check_symbols(&guest, &kernel);
    check_values(&mut guest, &kernel);
    kernel
}

#[test]
fn kernel_7_2_is_read_where_it_was_linked() {
    let kernel = check("debian:7.2", elf, "1n1l1c1t", |_| {});
    assert_eq!(kernel.symbols().lookup("_stext"), [0xffff_ffff_8100_0000]);
}

#[test]
fn kernel_7_2_is_read_wherever_it_moved() {
    // Memory on both sides of the hole below 4 GiB, and two nodes.
    check("debian:7.2", bzimage, "2n2l1c2t", |spec| spec.memory = 4 << 30);
}

#[test]
fn kernel_7_3_is_read_where_it_was_linked() {
    check("debian:7.3", elf, "1n2l1c1t", |_| {});
}

#[test]
fn kernel_7_3_is_read_wherever_it_moved() {
    check("debian:7.3", bzimage, "1n1l2c1t", |spec| spec.kargs.push("no5lvl".into()));
}

#[test]
fn kernel_6_12_with_its_older_symbols_is_read_as_well() {
    check("debian:6.12", bzimage, "1n1l2c1t", |_| {});
}

#[test]
fn a_kernel_that_starts_is_not_ready_until_it_can_be_read() {
    let _alone = alone();
    let spec = support::spec(bzimage(&support::kernel("debian:7.2")), "1n1l1c1t", |_| {});
    let machine = vm::start(&spec, EngineChoice::Qemu).unwrap_or_else(|e| panic!("{e}"));
    let start = Instant::now();
    let kernel = loop {
        match Kernel::open(machine.memory()) {
            Ok(kernel) => break kernel,
            // What is found on the way is never taken for a damaged kernel.
            Err(IntrospectError::NotYet(_)) => assert!(start.elapsed() < BOOT, "it gets there"),
            Err(other) => panic!("{other}"),
        }
    };
    assert!(kernel.release().starts_with("7.2."));
}
