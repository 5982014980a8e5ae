//! Real kernels, read from their RAM alone, against what they say about themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryoscope::introspect::{IntrospectError, Kernel, MAX_ELEMENTS};
use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels};
use cryoscope::vm::channel::Channel;
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::topology::Topology;
use cryoscope::vm::{self, Boot, Engine, EngineChoice, VmSpec};
use cryoscope::wire::{Answer, Op};

const MIB: u64 = 1 << 20;
/// Generous: the machine that runs the tests may be busy with other things.
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

/// An emulated machine takes a whole CPU: they run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A kernel through the cache that the program uses.
fn image(spec: &str) -> KernelImage {
    let env = std::env::var_os;
    let cache =
        CacheDir::locate(env("XDG_CACHE_HOME"), env("HOME")).expect("a place for the cache");
    let progress = Printed::to_stderr();
    Kernels::new(&cache, &progress).resolve(spec).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

/// A stock kernel with the agent, which says what happened when the test fails.
struct Guest {
    vm: Box<dyn Engine>,
    channel: Channel,
}

impl Guest {
    fn boot(boot: Boot, shape: &str, memory: u64, kargs: &[&str]) -> Guest {
        let mut initramfs = Initramfs::new();
        initramfs.agent(Path::new(env!("CARGO_BIN_EXE_cryoscope-agent"))).unwrap();
        let archive = initramfs.build().unwrap();
        let topology = Topology::parse(shape).unwrap();
        let mut spec = VmSpec::new(boot, archive.into(), topology, memory);
        spec.kargs.extend(kargs.iter().map(|arg| (*arg).to_owned()));
        let vm = vm::start(&spec, EngineChoice::Qemu);
        let mut vm = vm.unwrap_or_else(|e| panic!("the machine starts: {e}"));
        let transport = vm.take_transport().expect("nobody took it");
        let channel = Channel::new(transport, Some(vm.exit_watch())).unwrap();
        let guest = Guest { vm, channel };
        guest.channel.hello(BOOT).unwrap_or_else(|e| panic!("{e}"));
        guest
    }

    /// A file of any length.
    fn read(&self, path: &str) -> String {
        let mut all = Vec::new();
        loop {
            let op = Op::ReadFile { path: path.into(), offset: all.len() as u64 };
            let answer = self.channel.call(op, SOON).unwrap_or_else(|e| panic!("{path}: {e}"));
            let Answer::File { bytes, truncated } = answer else { panic!("{path}: {answer:?}") };
            all.extend(bytes);
            if !truncated {
                return String::from_utf8(all).unwrap();
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.vm.console().tail(60));
            eprintln!("machine: {:?}", self.vm.exited().map(|info| info.kind));
        }
    }
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
    let text = guest.read("/proc/kallsyms");
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
    let release = guest.read("/proc/sys/kernel/osrelease");
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
        assert!(start.elapsed() < SOON, "time passes in the guest");
    }
    guest.vm.pause().unwrap();
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
    guest.vm.resume().unwrap();
    assert_eq!(names[&1], guest.read("/proc/1/comm").trim());
    assert_eq!(names[&2], "kthreadd");
    let maps = kernel.maps().unwrap();
    assert_eq!((maps.torn, maps.maps.len()), (None, 0), "nobody has made a map");
}

/// Opens the kernel of a machine that has just started.
fn check(spec: &str, boot: Boot, shape: &str, memory: u64, kargs: &[&str]) -> Kernel {
    let _alone = alone();
    let mut guest = Guest::boot(boot, shape, memory, kargs);
    guest.vm.memory().prefault();
    let start = Instant::now();
    let kernel = Kernel::open(guest.vm.memory()).unwrap_or_else(|e| panic!("{spec}: {e}"));
    println!("{spec}: {kernel:?} opened in {:?}", start.elapsed());
    check_symbols(&guest, &kernel);
    check_values(&mut guest, &kernel);
    kernel
}

fn elf(spec: &str) -> Boot {
    Boot::Elf(image(spec).elf().to_owned())
}

fn bzimage(spec: &str) -> Boot {
    Boot::BzImage(image(spec).bzimage().expect("a bzImage").to_owned())
}

#[test]
fn kernel_7_2_is_read_where_it_was_linked() {
    let kernel = check("debian:7.2", elf("debian:7.2"), "1n1l1c1t", 512 * MIB, &[]);
    assert_eq!(kernel.symbols().lookup("_stext"), [0xffff_ffff_8100_0000]);
}

#[test]
fn kernel_7_2_is_read_wherever_it_moved() {
    // Memory on both sides of the hole below 4 GiB, and two nodes.
    check("debian:7.2", bzimage("debian:7.2"), "2n2l1c2t", 4096 * MIB, &[]);
}

#[test]
fn kernel_7_3_is_read_where_it_was_linked() {
    check("debian:7.3", elf("debian:7.3"), "1n2l1c1t", 512 * MIB, &[]);
}

#[test]
fn kernel_7_3_is_read_wherever_it_moved() {
    check("debian:7.3", bzimage("debian:7.3"), "1n1l2c1t", 512 * MIB, &["no5lvl"]);
}

#[test]
fn kernel_6_12_with_its_older_symbols_is_read_as_well() {
    check("debian:6.12", bzimage("debian:6.12"), "1n1l2c1t", 512 * MIB, &[]);
}

#[test]
fn a_machine_whose_kernel_has_not_started_is_not_ready() {
    let _alone = alone();
    let topology = Topology::parse("1n1l1c1t").unwrap();
    let spec = VmSpec::new(elf("debian:7.2"), Vec::new().into(), topology, 256 * MIB);
    let mut vm = vm::start(&spec, EngineChoice::Qemu).unwrap_or_else(|e| panic!("{e}"));
    vm.pause().unwrap();
    let opened = Kernel::open(vm.memory());
    assert!(matches!(opened, Err(IntrospectError::NotYet(_))), "{opened:?}");
}
