//! Our own machine on KVM. Where KVM is not real, the very same test runs in an outer guest whose
//! kernel emulates it: QEMU's emulator has AMD's SVM, and Debian's kernels have the module.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{CaptureRequest, Meta};
use cryoscope::vm::channel::Channel;
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::{Boot, Engine, EngineChoice, ExitKind, VmSpec, start};
use cryoscope::wire::{Answer, Op};
use support::Guest;

/// Where the outer guest has what the inner one boots: kernels and an initramfs.
const INNER: &str = "/inner";
/// Longest wait for the inner guest's hello: its exits are emulated.
const HELLO: Duration = Duration::from_secs(300);
const CALL: Duration = Duration::from_secs(120);
const MODULES: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];

/// A machine of two CPUs with an LLC each, and what talks to its agent.
struct Machine {
    freezer: Freezer,
    channel: Channel,
}

impl Machine {
    fn boot(boot: Boot, archive: Vec<u8>) -> Machine {
        let topology = "1n2l1c1t".parse().expect("a topology");
        let mut spec = VmSpec::new(boot, archive.into(), topology, 256 << 20);
        spec.kargs = vec!["earlyprintk=serial,ttyS0,115200".to_owned()];
        let begin = Instant::now();
        let mut engine = start(&spec, EngineChoice::Kvm).unwrap_or_else(|e| panic!("{e}"));
        let transport = engine.take_transport().expect("a transport");
        let channel = Channel::new(transport, Some(engine.exit_watch())).expect("a channel");
        let machine = Machine { freezer: Freezer::new(engine), channel };
        let hello = machine.channel.hello(HELLO);
        let hello = hello.unwrap_or_else(|e| panic!("waiting for the agent's hello: {e}"));
        println!("{}: hello after {:?}", hello.release, begin.elapsed());
        assert_eq!(hello.cpus, 2);
        machine
    }

    fn file(&self, path: &str) -> String {
        match self.channel.call(Op::ReadFile { path: path.to_owned(), offset: 0 }, CALL) {
            Ok(Answer::File { bytes, .. }) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Seconds since the guest's boot, by its own clock.
    fn uptime(&self) -> f64 {
        let text = self.file("/proc/uptime");
        text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number")
    }

    fn engine(&mut self) -> &mut dyn Engine {
        self.freezer.engine_mut()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- frames\n{}", self.channel.trace().join("\n"));
            eprintln!("--- console\n{}", self.freezer.engine().console().tail(60));
            let _ = self.engine().pause();
            for cpu in 0..2 {
                let registers = self.engine().registers(cpu);
                eprintln!("--- CPU {cpu}: {:x?}", registers.map(|r| (r.halted, r.values)));
            }
            eprintln!("--- machine: {:?}", self.freezer.engine().exited());
        }
    }
}

fn the_shape_is_what_was_asked(machine: &Machine) {
    let cpu = |n: u32, file: &str| machine.file(&format!("/sys/devices/system/cpu/cpu{n}/{file}"));
    for n in 0..2 {
        assert_eq!(cpu(n, "cache/index3/shared_cpu_list"), n.to_string(), "an LLC of its own");
        assert_eq!(cpu(n, "cache/index3/size"), "16384K");
        assert_eq!(cpu(n, "topology/thread_siblings_list"), n.to_string());
        assert_eq!(cpu(n, "topology/package_cpus_list"), "0-1");
    }
}

fn freezes_show_the_guest_and_hide_from_it(machine: &mut Machine) {
    let request = CaptureRequest { registers: true, ..CaptureRequest::default() };
    for i in 0..20 {
        let meta = || Meta { tag: format!("t{i}"), ..Meta::default() };
        let snap = machine.freezer.freeze(&request, meta).unwrap_or_else(|e| panic!("{e}"));
        assert!(!snap.is_placeholder());
        let tasks = snap.tasks().unwrap_or_else(|e| panic!("{e}"));
        assert!(tasks.iter().any(|task| task.tid().is_ok_and(|tid| tid == 1)), "{tasks:?}");
        assert!(tasks.len() > 20, "{tasks:?}");
        for cpu in snap.cpus().unwrap_or_else(|e| panic!("{e}")) {
            assert!(cpu.registers().is_ok(), "{cpu:?}");
        }
    }
    // The guest's clock does not see a pause.
    const PAUSE: Duration = Duration::from_secs(3);
    let (host, guest) = (Instant::now(), machine.uptime());
    machine.engine().pause().unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(PAUSE);
    machine.engine().resume().unwrap_or_else(|e| panic!("{e}"));
    let (host, guest) = (host.elapsed().as_secs_f64(), machine.uptime() - guest);
    assert!(guest >= 0.0 && guest <= host - 0.9 * PAUSE.as_secs_f64(), "{guest} s of {host} s");
    // Nor does it see many short ones.
    const PAUSES: u32 = 40;
    const SHORT: Duration = Duration::from_millis(50);
    let (host, guest) = (Instant::now(), machine.uptime());
    for _ in 0..PAUSES {
        machine.engine().pause().unwrap_or_else(|e| panic!("{e}"));
        std::thread::sleep(SHORT);
        machine.engine().resume().unwrap_or_else(|e| panic!("{e}"));
    }
    let (host, guest) = (host.elapsed().as_secs_f64(), machine.uptime() - guest);
    let hidden = f64::from(PAUSES) * SHORT.as_secs_f64();
    assert!(guest >= 0.0 && guest <= host - 0.9 * hidden, "{guest} s of {host} s");
    let clock = machine.file("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    println!("{clock}: {guest} s of {host} s, {hidden} s of them paused");
}

fn suite(kernels: Vec<Boot>, archive: &[u8]) {
    for kernel in kernels {
        let mut machine = Machine::boot(kernel, archive.to_vec());
        the_shape_is_what_was_asked(&machine);
        freezes_show_the_guest_and_hide_from_it(&mut machine);
        let watch = machine.freezer.engine().exit_watch();
        let _ = machine.channel.call(Op::PowerOff, CALL);
        let end = watch.wait(CALL).expect("it goes off");
        assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
    }
}

/// Starts a machine that has KVM for real, or something like it, and runs this program there.
fn in_an_outer_guest(archive: Vec<u8>) {
    let image = support::kernel("debian:7.2");
    let modules = support::modules::files(&image, &MODULES);
    let name = |path: &Path| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        format!("/{name}")
    };
    let mut spec = support::spec(support::elf(&image), "1n1l1c1t", |fs| {
        let stage = || {
            for module in &modules {
                fs.file(module, &name(module), 0o644)?;
            }
            fs.elf(&std::env::current_exe().expect("this program"), "/kvm-test")?;
            fs.bytes(&format!("{INNER}/initramfs"), archive, 0o644)?;
            fs.file(image.elf(), &format!("{INNER}/vmlinux"), 0o644)?;
            fs.file(image.bzimage().expect("a bzImage"), &format!("{INNER}/vmlinuz"), 0o644)
        };
        stage().unwrap_or_else(|e| panic!("{e}"));
    });
    spec.memory = 2 << 30;
    spec.nested = true;
    let guest = Guest::start(&spec);
    let run = |argv: &[&str], patience: Duration| {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let op = Op::Exec { argv, timeout_ms: patience.as_millis() as u64 };
        match guest.channel.call(op, patience + CALL) {
            Ok(Answer::Exec(done)) => {
                println!("{}{}", done.stdout, done.stderr);
                assert_eq!(done.code, Some(0), "in the outer guest");
            }
            other => panic!("{other:?}"),
        }
    };
    for module in &modules {
        run(&["insmod", &name(module)], CALL);
    }
    let this = "our_machine_boots_freezes_and_goes_off";
    run(&["/kvm-test", "--exact", this, "--nocapture"], Duration::from_secs(1200));
}

#[test]
fn our_machine_boots_freezes_and_goes_off() {
    if let Ok(archive) = std::fs::read(format!("{INNER}/initramfs")) {
        let inner = |name: &str| Path::new(INNER).join(name);
        return suite(vec![Boot::Elf(inner("vmlinux")), Boot::BzImage(inner("vmlinuz"))], &archive);
    }
    let mut fs = Initramfs::new();
    fs.agent(support::agent()).expect("the agent can be staged");
    let archive = fs.build().expect("an archive");
    match cryoscope::vm::kvm_speed() {
        Ok(speed) if speed.is_real() => {
            let image = support::kernel("debian:7.2");
            suite(vec![support::elf(&image), support::bzimage(&image)], &archive);
        }
        _ => in_an_outer_guest(archive),
    }
}
