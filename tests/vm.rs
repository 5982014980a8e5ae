//! Machines that really run: stock kernels with the agent, and kernels of a few instructions that
//! end in every way there is.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryoscope::freeze::{Freezer, Phase};
use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels};
use cryoscope::mem::Gpa;
use cryoscope::snapshot::{CaptureRequest, Meta};
use cryoscope::vm::channel::{Channel, ChannelError};
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::topology::Topology;
use cryoscope::vm::{self, Boot, Capability, Engine, EngineChoice, ExitKind, VmError, VmSpec};
use cryoscope::wire::{Answer, Event, Op};

const MIB: u64 = 1 << 20;
/// Generous: the machine that runs the tests may be busy with other things.
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);

/// An emulated machine takes a whole CPU: they run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn topology(spec: &str) -> Topology {
    Topology::parse(spec).unwrap()
}

#[path = "support/tiny.rs"]
mod tiny;

/// A small machine with a tiny kernel and without anything to unpack.
fn tiny_spec(kernel: &tiny::Kernel) -> VmSpec {
    kernel.spec("1n1l1c1t")
}

fn start(spec: &VmSpec) -> Box<dyn Engine> {
    vm::start(spec, EngineChoice::Qemu).unwrap_or_else(|e| panic!("the machine starts: {e}"))
}

#[test]
fn every_ending_is_told_apart() {
    let _alone = alone();
    let oops = "[    9.5] Oops: int3: 0000 [#1] SMP NOPTI\n\
                [    9.6] Kernel panic - not syncing: Fatal exception in interrupt\n";
    let panic = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n";
    let cases = [
        ("bye\n", tiny::POWER_OFF, ExitKind::PoweredOff),
        ("[    5.0] reboot: Restarting system\n", tiny::RESET, ExitKind::Restarted),
        ("hm\n", tiny::TRIPLE_FAULT, ExitKind::TripleFault),
        (panic, tiny::RESET, ExitKind::Panicked { message: "VFS: Unable to mount root fs".into() }),
        (
            oops,
            tiny::TRIPLE_FAULT,
            ExitKind::EngineFault { evidence: "Oops: int3: 0000 [#1] SMP NOPTI".into() },
        ),
    ];
    for (text, end, kind) in cases {
        let kernel = tiny::Kernel::new(text, end);
        let mut vm = start(&tiny_spec(&kernel));
        let info = vm.exit_watch().wait(SOON);
        let info = info.unwrap_or_else(|| panic!("{kind}: still runs; {}", vm.console().text()));
        assert_eq!(info.kind, kind, "{info}");
        assert_eq!(info.console, text.trim_end(), "the end of the console is there");
        let channel = Channel::new(vm.take_transport().unwrap(), Some(vm.exit_watch())).unwrap();
        let error = channel.hello(SOON).unwrap_err();
        assert_eq!(error, ChannelError::MachineEnded(Box::new(info.clone())), "nobody waits");
        assert_eq!(vm.stop(), info, "stopping what has ended changes nothing");
        assert!(matches!(vm.pause(), Err(VmError::Exited(why)) if *why == info));
    }
}

#[test]
fn a_hang_ends_with_a_deadline_that_names_what_was_waited_for() {
    let _alone = alone();
    let kernel = tiny::Kernel::new("starting\n", tiny::HANG);
    let mut vm = start(&tiny_spec(&kernel));
    assert!(vm.console().wait_for("starting", SOON), "{}", vm.console().text());
    assert!(!vm.console().wait_for("never printed", Duration::from_millis(50)));
    let channel = Channel::new(vm.take_transport().unwrap(), Some(vm.exit_watch())).unwrap();
    assert!(vm.take_transport().is_none(), "there is one transport");
    let error = channel.hello(Duration::from_millis(200)).unwrap_err();
    assert_eq!(error.to_string(), "waited 200ms for the guest's agent to say hello in vain");
    assert_eq!(vm.exited(), None);
    assert_eq!(vm.stop().kind, ExitKind::Stopped);
    let error = channel.hello(SOON).unwrap_err();
    assert!(matches!(&error, ChannelError::MachineEnded(info) if info.kind == ExitKind::Stopped));
}

#[test]
fn pausing_twice_is_pausing_once_and_registers_hold_still() {
    let _alone = alone();
    let kernel = tiny::Kernel::new("up\n", &[0xff, 0xc0, 0xeb, 0xfc]); // inc eax; jmp back
    let mut vm = start(&tiny_spec(&kernel));
    assert!(vm.console().wait_for("up", SOON), "{}", vm.console().text());
    for capability in [Capability::Freeze, Capability::Memory, Capability::Registers] {
        assert!(vm.capabilities().has(capability), "{capability:?}");
    }
    assert!(!vm.capabilities().has(Capability::ParallelCpus));
    vm.pause().unwrap();
    vm.pause().unwrap();
    let first = vm.registers(0).unwrap();
    assert!((0x10_1000..0x10_2000).contains(&first.values["rip"]), "{first:x?}");
    assert_eq!(vm.registers(0).unwrap(), first, "nothing runs");
    vm.resume().unwrap();
    vm.resume().unwrap();
    let deadline = Instant::now() + SOON;
    while vm.registers(0).unwrap().values["rax"] == first.values["rax"] {
        assert!(Instant::now() < deadline, "the CPU goes on: {first:x?}");
    }
    let error = vm.registers(1).unwrap_err();
    assert_eq!(error.to_string(), "there is no CPU 1; this machine has CPUs 0 to 0");
}

#[test]
fn what_cannot_be_made_says_what_to_ask_for() {
    type Change = fn(&mut VmSpec);
    let kernel = tiny::Kernel::new("", tiny::HANG);
    let error = |change: Change| {
        let mut spec = tiny_spec(&kernel);
        change(&mut spec);
        match vm::start(&spec, EngineChoice::Qemu) {
            Ok(_) => panic!("this should not start: {spec:?}"),
            Err(e) => e.to_string(),
        }
    };
    let cases: [(Change, &str); 7] = [
        (
            |spec| spec.topology = topology("1n5l13c1t"),
            "topology 1n5l13c1t has 65 CPUs, the qemu engine takes at most 64; ask for fewer \
             LLCs, cores or threads",
        ),
        (
            |spec| spec.memory = 64 * MIB,
            "memory 64M is too small: this machine needs at least 132M; ask for 132M or more",
        ),
        (
            |spec| spec.memory = 12,
            "memory 12 bytes is too small: this machine needs at least 132M; ask for 132M or more",
        ),
        (
            |spec| spec.boot = Boot::Elf("/etc/passwd".into()),
            "kernel \"/etc/passwd\": it is no usable ELF vmlinux: Unsupported ELF header",
        ),
        (
            |spec| spec.boot = Boot::BzImage("/bin/sh".into()),
            "kernel \"/bin/sh\": it is no bzImage: there is no boot header; it is an ELF file",
        ),
        (
            |spec| spec.qemu = "/nonexistent/qemu".into(),
            "QEMU is not there: \"/nonexistent/qemu\" was not found; install it (on Debian: \
             apt-get install qemu-system-x86)",
        ),
        (
            |spec| spec.qemu = "/bin/true".into(),
            "\"/bin/true\" does not work as QEMU: asked for its version, it said",
        ),
    ];
    for (change, message) in cases {
        let found = error(change);
        assert!(found.starts_with(message), "{found}\nshould begin with\n{message}");
    }
    let found = error(|spec| spec.memory = 1 << 50);
    assert!(found.starts_with("memory 1073741824M is more than this host has ("), "{found}");
    let found = error(|spec| spec.kargs = vec!["x".repeat(3000)]);
    assert!(found.contains("the kernel reads 2047; give fewer kernel arguments"), "{found}");
}

/// A shell script in the place of QEMU. Another process writes it: while we had it open for
/// writing, a child of another test could inherit that, and it could not be run.
fn fake_qemu(script: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("qemu-system-x86_64");
    let mut writer = Command::new("/bin/sh");
    writer.args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]);
    assert!(writer.arg(&program).arg(script).status().unwrap().success());
    (dir, program)
}

#[test]
fn an_old_qemu_is_named_with_its_version() {
    let (_dir, program) =
        fake_qemu("[ \"$1\" = --version ] && echo 'QEMU emulator version 5.2.0'; exit 1");
    let kernel = tiny::Kernel::new("", tiny::HANG);
    let spec = VmSpec { qemu: program.clone(), ..tiny_spec(&kernel) };
    let error = vm::start(&spec, EngineChoice::Qemu).err().expect("it is too old").to_string();
    assert_eq!(
        error,
        format!(
            "{program:?} is QEMU 5.2.0, at least 7.2.0 is needed; upgrade it (on Debian 12 or \
             later: apt-get install qemu-system-x86)"
        )
    );
}

/// Processes whose parent is `parent`.
fn children(parent: u32) -> Vec<u32> {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent_of = |pid| {
        let stat = stat(pid)?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

fn is_qemu(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).starts_with("qemu-system")
}

fn signal(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn the_death_of_qemu_itself_is_nobody_elses_fault() {
    let _alone = alone();
    let kernel = tiny::Kernel::new("up\n", tiny::HANG);
    let mut vm = start(&tiny_spec(&kernel));
    let qemu = children(std::process::id()).into_iter().find(|pid| is_qemu(*pid)).unwrap();
    signal(qemu, libc::SIGSEGV);
    let info = vm.exit_watch().wait(SOON).expect("QEMU dies");
    assert_eq!(info.kind, ExitKind::EngineDied { status: "was killed by signal 11".into() });
    assert!(info.kind.is_engine_fault());
    assert!(matches!(vm.resume(), Ok(_) | Err(VmError::Exited(_))));
    drop(vm);
    assert!(!Path::new(&format!("/proc/{qemu}")).exists(), "it is reaped");
}

/// Not a test of its own: what `nothing_outlives_us` kills.
#[test]
#[ignore = "holds a machine until it is killed; another test runs it"]
fn hold_a_machine() {
    let kernel = tiny::Kernel::new("up\n", tiny::HANG);
    let vm = start(&tiny_spec(&kernel));
    std::thread::sleep(SOON);
    drop(vm);
}

#[test]
fn nothing_outlives_us() {
    let _alone = alone();
    // At once, while QEMU starts, and when it runs.
    for delay in [0, 40, 400] {
        let mut holder = Command::new(std::env::current_exe().unwrap());
        holder.args(["--ignored", "--exact", "hold_a_machine"]).stdout(Stdio::null());
        holder.process_group(0);
        let mut holder = holder.spawn().unwrap();
        let deadline = Instant::now() + SOON;
        let qemu = loop {
            if let Some(qemu) = children(holder.id()).first() {
                break *qemu;
            }
            assert!(Instant::now() < deadline, "the holder starts QEMU");
        };
        std::thread::sleep(Duration::from_millis(delay));
        signal(holder.id(), libc::SIGKILL);
        holder.wait().unwrap();
        while Path::new(&format!("/proc/{qemu}/exe")).exists() {
            assert!(Instant::now() < deadline, "QEMU {qemu} dies with its parent");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A kernel through the cache that the program uses.
fn kernel(spec: &str) -> KernelImage {
    let env = std::env::var_os;
    let cache =
        CacheDir::locate(env("XDG_CACHE_HOME"), env("HOME")).expect("a place for the cache");
    let progress = Printed::to_stderr();
    Kernels::new(&cache, &progress).resolve(spec).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

/// A stock kernel with the agent, which says what happened when the test fails.
struct Guest {
    freezer: Freezer,
    channel: Channel,
}

impl Guest {
    fn boot(spec: &VmSpec) -> Guest {
        let mut vm = start(spec);
        let transport = vm.take_transport().expect("nobody took it");
        let channel = Channel::new(transport, Some(vm.exit_watch())).unwrap();
        let guest = Guest { freezer: Freezer::new(vm), channel };
        let hello = guest.channel.hello(BOOT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(hello.cpus, spec.topology.cpus(), "CPUs online");
        guest
    }

    fn vm(&mut self) -> &mut dyn Engine {
        self.freezer.engine_mut()
    }

    fn call(&self, op: Op) -> Answer {
        self.channel.call(op, SOON).unwrap_or_else(|e| panic!("{e}"))
    }

    fn read(&self, path: &str) -> String {
        match self.call(Op::ReadFile { path: path.into(), offset: 0 }) {
            Answer::File { bytes, .. } => String::from_utf8(bytes).unwrap().trim().to_owned(),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Freezes a few times: nothing is left stopped, and every part of the pause is known.
    fn check_freezing(&mut self, release: &str) {
        let Guest { freezer, channel } = self;
        assert_eq!(freezer.open().unwrap_or_else(|e| panic!("{e}")).release(), release);
        for tag in ["first", "second", "third"] {
            let meta = Meta { tag: tag.into(), ..Meta::default() };
            let snap = freezer.freeze(&CaptureRequest::default(), || meta).unwrap();
            let pause = snap.pause();
            println!("{tag}: {} maps, {pause:?}", snap.maps().map_or(0, |maps| maps.len()));
            assert_eq!((snap.tag(), snap.placeholder_reason()), (tag, None));
            assert!(pause.stop_us > 0 && pause.copy_us > 0 && pause.resume_us > 0, "{pause:?}");
            assert!(pause.total_us >= pause.stop_us + pause.copy_us + pause.resume_us, "{pause:?}");
            assert_eq!(freezer.phase(), Phase::Running);
            let answer = channel.call(Op::SchedulerState, SOON);
            assert!(matches!(answer, Ok(Answer::Scheduler(_))), "the guest goes on: {answer:?}");
        }
        let request =
            CaptureRequest { maps: Some(vec!["nope".into()]), ..CaptureRequest::default() };
        let error = freezer.freeze(&request, Meta::default).unwrap_err();
        assert!(error.to_string().contains("\"nope\""), "{error}");
        assert_eq!(freezer.stop().kind, ExitKind::Stopped);
        let error = freezer.freeze(&CaptureRequest::default(), Meta::default).err();
        let error = error.expect("the machine has ended");
        assert_eq!(error.to_string().lines().next(), Some("the machine was stopped"));
    }

    /// What the guest's sysfs says about its shape against what was asked for.
    fn check_topology(&self, t: &Topology) {
        let cpu =
            |cpu: u32, file: &str| self.read(&format!("/sys/devices/system/cpu/cpu{cpu}/{file}"));
        for i in t.all().iter() {
            let (llc, node) = (t.llc_of(i).unwrap(), t.node_of(i).unwrap());
            assert_eq!(cpu(i, "cache/index3/level"), "3");
            let found = cpu(i, "cache/index3/shared_cpu_list");
            assert_eq!(found, t.cpus_of_llc(llc).to_string(), "LLC of CPU {i}");
            let found = cpu(i, "topology/thread_siblings_list");
            assert_eq!(found, t.siblings_of(i).to_string(), "core of CPU {i}");
            let found = cpu(i, "topology/die_cpus_list");
            assert_eq!(found, t.cpus_of_llc(llc).to_string(), "die of CPU {i}");
            let found = cpu(i, "topology/package_cpus_list");
            assert_eq!(found, t.cpus_of_node(node).to_string(), "package of CPU {i}");
        }
        for node in 0..t.nodes() {
            let list = self.read(&format!("/sys/devices/system/node/node{node}/cpulist"));
            assert_eq!(list, t.cpus_of_node(node).to_string(), "CPUs of node {node}");
            let info = self.read(&format!("/sys/devices/system/node/node{node}/meminfo"));
            let total = info.lines().find(|l| l.contains("MemTotal")).expect("MemTotal");
            let kb: u64 = total.split_whitespace().nth_back(1).unwrap().parse().unwrap();
            assert!(kb > 32 << 10, "node {node} has memory: {total}");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.vm().console().tail(60));
            eprintln!("frames:\n{}", self.channel.trace().join("\n"));
            eprintln!("machine: {:?}", self.vm().exited().map(|info| info.kind));
        }
    }
}

fn agent_spec(boot: Boot, shape: &str, memory: u64) -> VmSpec {
    let mut initramfs = Initramfs::new();
    initramfs.agent(Path::new(env!("CARGO_BIN_EXE_cryoscope-agent"))).unwrap();
    initramfs.bytes("/marker", MARKER.repeat(4096), 0o644).unwrap();
    let archive = initramfs.build().unwrap();
    VmSpec::new(boot, archive.into(), topology(shape), memory)
}

/// Fills whole pages of the guest's file system.
const MARKER: &[u8] = b"cryoscope marker in guest memory";

/// Whether the host sees pages of the marker in RAM from `from` on.
fn marker_at_or_above(vm: &dyn Engine, from: Gpa) -> bool {
    let mem = vm.memory();
    let mut page = vec![0; 4096];
    mem.populated().iter().filter(|run| run.start >= from).any(|run| {
        (0..run.len / 4096).any(|n| {
            mem.read(Gpa(run.start.0 + n * 4096), &mut page).unwrap();
            page.starts_with(MARKER)
        })
    })
}

/// What the kernel tells the time by. A second after it has found the TSC it measures it again, and
/// until then calls it `tsc-early`.
fn clocksource(guest: &Guest) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = guest.read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        if now != "tsc-early" || Instant::now() > deadline {
            return now;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_elf_kernel_shows_the_topology_stops_goes_on_and_powers_off() {
    let _alone = alone();
    let image = kernel("debian:7.2");
    let boot = Boot::Elf(image.elf().to_owned());
    let mut spec = agent_spec(boot, "2n4l1c2t", 512 * MIB);
    spec.kargs.push("cryoscope.test=1".into());
    let mut guest = Guest::boot(&spec);
    guest.check_topology(&spec.topology);
    assert!(guest.read("/proc/cmdline").ends_with(" cryoscope.test=1"), "ours come last");
    assert_eq!(clocksource(&guest), "tsc");
    assert!(marker_at_or_above(guest.vm(), Gpa(0)), "the host sees the guest's RAM");

    let uptime = |guest: &Guest| {
        let text = guest.read("/proc/uptime");
        text.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let before = uptime(&guest);
    let stop = guest.vm().pause().unwrap();
    let registers: Vec<_> = (0..8).map(|cpu| guest.vm().registers(cpu).unwrap()).collect();
    assert!(registers.iter().all(|r| r.values["cr3"] != 0), "all CPUs run: {registers:x?}");
    let late = guest.channel.call(Op::Dmesg, Duration::from_millis(1500)).unwrap_err();
    assert!(!late.is_final(), "a stopped guest is silent: {late}");
    let go = guest.vm().resume().unwrap();
    println!("stop {stop:?}, continue {go:?}");
    assert!(uptime(&guest) - before < 1.4, "the guest's clock stood still");

    assert!(matches!(guest.channel.call(Op::PowerOff, SOON), Err(ChannelError::MachineEnded(_))));
    assert_eq!(guest.channel.try_event(), Some(Event::PoweringOff));
    assert_eq!(guest.vm().exited().map(|info| info.kind), Some(ExitKind::PoweredOff));
}

#[test]
fn a_bzimage_with_four_gibibytes_is_seen_above_the_hole() {
    let _alone = alone();
    let image = kernel("debian:7.2");
    let boot = Boot::BzImage(image.bzimage().expect("a bzImage").to_owned());
    let mut spec = agent_spec(boot, "1n3l1c1t", 4096 * MIB);
    spec.five_level_paging = true;
    let mut guest = Guest::boot(&spec);
    guest.check_topology(&spec.topology);
    assert_eq!(guest.vm().memory().size(), 4096 * MIB);
    assert!(marker_at_or_above(guest.vm(), Gpa(1 << 32)), "files are in high memory");
    let levels = guest.vm().registers(0).unwrap().values["cr4"] >> 12 & 1;
    assert_eq!(levels, 1, "five levels of page tables, as asked");
    guest.check_freezing(&image.release);
}

#[test]
fn an_init_that_ends_is_a_panic_with_its_console() {
    let _alone = alone();
    let image = kernel("debian:7.2");
    let mut initramfs = Initramfs::new();
    initramfs.elf(Path::new("/bin/true"), "/init").unwrap();
    let archive = initramfs.build().unwrap();
    let boot = Boot::Elf(image.elf().to_owned());
    let spec = VmSpec::new(boot, archive.into(), topology("1n1l1c1t"), 256 * MIB);
    let mut vm = start(&spec);
    let channel = Channel::new(vm.take_transport().unwrap(), Some(vm.exit_watch())).unwrap();
    let error = channel.hello(BOOT).unwrap_err();
    let ChannelError::MachineEnded(info) = error else { panic!("{error}") };
    let ExitKind::Panicked { message } = &info.kind else { panic!("{info}") };
    assert!(message.starts_with("Attempted to kill init!"), "{message}");
    assert!(info.console.contains("Kernel panic - not syncing"), "{info}");
}

/// The emulator's own faults are retried, as the runner does, and nothing else is.
#[test]
fn cpus_may_run_in_parallel_when_asked() {
    let _alone = alone();
    let image = kernel("debian:7.2");
    let spec = agent_spec(Boot::Elf(image.elf().to_owned()), "1n1l2c1t", 256 * MIB);
    for attempt in 1.. {
        let mut vm = vm::start(&spec, EngineChoice::QemuMulti).unwrap();
        assert_eq!(vm.name(), "qemu-tcg-multi");
        assert!(vm.capabilities().has(Capability::ParallelCpus));
        let channel = Channel::new(vm.take_transport().unwrap(), Some(vm.exit_watch())).unwrap();
        match channel.hello(BOOT) {
            Ok(hello) => return assert_eq!(hello.cpus, 2),
            Err(e) => println!("attempt {attempt}: {e}\n{}", vm.console().tail(5)),
        }
        assert!(attempt < 4, "this cannot be bad luck any more");
        let fault = vm.exited().is_none_or(|info| info.kind.is_engine_fault());
        assert!(fault, "{}", vm.exited().unwrap());
    }
}

/// A program that is a QEMU of the right version, but cannot make this machine.
#[test]
fn what_qemu_says_when_it_cannot_start_is_passed_on() {
    let (_dir, program) = fake_qemu(
        "[ \"$1\" = --version ] && echo 'QEMU emulator version 9.0.0' && exit\n\
         echo 'cannot set up guest memory' >&2\nexit 1",
    );
    let kernel = tiny::Kernel::new("", tiny::HANG);
    let spec = VmSpec { qemu: program, ..tiny_spec(&kernel) };
    let error = vm::start(&spec, EngineChoice::Qemu).err().expect("it cannot start").to_string();
    assert_eq!(
        error,
        "cannot start QEMU: the machine's process ended with exit code 1\n\
         end of the engine's output:\ncannot set up guest memory"
    );
}
