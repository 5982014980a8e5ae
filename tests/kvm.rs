//! Our own machine on KVM. Where KVM is not real, the very same test runs in an outer guest whose
//! kernel emulates it. `make test-kvm` runs more of this kind: benches/kvm.rs.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cryoscope::freeze::Opened;
use cryoscope::snapshot::{CaptureRequest, Meta, Place, Scalar};
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::{Boot, EngineChoice, VmSpec};
use cryoscope::wire::{Answer, Op, PORT_NAME, TTY_ARG};
use support::machine::Machine;
use support::outer::{INNER, Outer, SELF, kvm_is_real, speak_up};
use support::{scripts, traps};

/// What is tried on a machine, and what is done for that.
type Body = (&'static str, fn(&mut Machine));

/// One after the other on each machine: two CPUs with an LLC each, and nothing in it but the agent.
const BODIES: &[Body] = &[
    ("the shape is what was asked", the_shape_is_what_was_asked),
    ("the console has all that the kernel says", the_console_has_all_that_the_kernel_says),
    ("freezes show the guest", freezes_show_the_guest),
    ("pauses are hidden from it", pauses_are_hidden_from_it),
    ("all CPUs have one TSC", all_cpus_have_one_tsc),
    ("what is written the guest has", what_is_written_the_guest_has),
    ("traps fire", |machine| traps::fire_on_kvm(machine.freezer.engine_mut(), &machine.channel)),
];

fn the_shape_is_what_was_asked(machine: &mut Machine) {
    let cpu = |n: u32, file: &str| machine.file(&format!("/sys/devices/system/cpu/cpu{n}/{file}"));
    for n in 0..2 {
        assert_eq!(cpu(n, "cache/index3/shared_cpu_list"), n.to_string(), "an LLC of its own");
        assert_eq!(cpu(n, "cache/index3/size"), "16384K");
        assert_eq!(cpu(n, "topology/thread_siblings_list"), n.to_string());
        assert_eq!(cpu(n, "topology/package_cpus_list"), "0-1");
    }
}

/// How many lines a log has, all of which are on the console, in this order.
fn lines_in_common(log: &str, console: &str) -> Result<usize, String> {
    let words = |line: &str| line.split_once("] ").map(|(_, words)| words.trim().to_owned());
    let said: Vec<String> = console.lines().filter_map(words).collect();
    // What is said before there is a console comes again when there is one.
    let mut at =
        said.iter().rposition(|line| line.starts_with("Linux version")).ok_or("no start")?;
    let mut nr = 0;
    for line in log.lines().filter_map(words).filter(|line| !line.is_empty()) {
        match said[at..].iter().position(|other| *other == line) {
            Some(more) => at += more,
            None => return Err(format!("the console lacks {line:?} after {:?}", said[at])),
        }
        nr += 1;
    }
    Ok(nr)
}

/// What KVM gathers of it comes whole and in order.
fn the_console_has_all_that_the_kernel_says(machine: &mut Machine) {
    let Answer::Text(log) = machine.call(Op::Dmesg) else { panic!("no log") };
    // A CPU may still be at a line that the log has already.
    let until = Instant::now() + Duration::from_secs(30);
    let (console, nr) = loop {
        let console = machine.freezer.engine().console().text();
        match lines_in_common(&log, &console) {
            Ok(nr) => break (console, nr),
            Err(why) if Instant::now() > until => panic!("{why}:\n{console}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    assert!(nr > 100, "{nr} lines");
    let exits = machine.freezer.engine().exits();
    println!("{nr} lines in {} bytes; exits: {exits:?}", console.len());
}

fn freezes_show_the_guest(machine: &mut Machine) {
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
}

fn pauses_are_hidden_from_it(machine: &mut Machine) {
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

/// After all those pauses, each CPU's TSC is what the others' is, and goes on.
fn all_cpus_have_one_tsc(machine: &mut Machine) {
    let mut last = 0;
    for _ in 0..10 {
        machine.engine().pause().unwrap_or_else(|e| panic!("{e}"));
        let of = |machine: &mut Machine, cpu| {
            let registers = machine.engine().registers(cpu).unwrap_or_else(|e| panic!("{e}"));
            registers.values["tsc"]
        };
        let all = [0, 1].map(|cpu| of(machine, cpu));
        machine.engine().resume().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(all[0], all[1], "the TSCs are apart");
        assert!(all[0] > last, "{} after {last}", all[0]);
        last = all[0];
        // The guest gets to run.
        machine.uptime();
    }
}

/// Hot and frozen, and the value before is the one that was there.
fn what_is_written_the_guest_has(machine: &mut Machine) {
    let place = Place::Symbol { path: "panic_timeout".into(), ty: Some("int".into()) };
    for (frozen, old, new) in [(false, -1, 17), (true, 17, 4), (false, 4, -1)] {
        let value = Scalar::Int(new);
        let write = |opened: &mut Opened<'_>| opened.capturer.write_place(&place, &value);
        let before = machine.freezer.with_kernel(frozen, write).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(before, Ok(Scalar::Int(old)));
        assert_eq!(machine.file("/proc/sys/kernel/panic"), new.to_string());
    }
}

/// The port is there for whoever wants it, and frames went where they should.
fn frames_went_over(machine: &Machine, by: &str) {
    assert_eq!(machine.file("/sys/class/virtio-ports/vport0p0/name"), PORT_NAME);
    let exits = machine.freezer.engine().exits();
    let touched = |what: &str| exits.iter().filter(|(n, _)| n.contains(what)).map(|e| e.1).sum();
    let (port, line): (u64, u64) = (touched("virtio port"), touched("frames's register"));
    let wanted = if by == "virtio" { port > 500 && line < 100 } else { port < 500 && line > 500 };
    assert!(wanted, "{by}: {port} and {line} of {exits:?}");
}

fn suite(kernels: Vec<Boot>, archive: &[u8]) {
    for (kernel, by) in kernels.into_iter().zip(["virtio", "ttyS1"]) {
        let topology = "1n2l1c1t".parse().expect("a topology");
        let mut spec = VmSpec::new(kernel, archive.to_vec().into(), topology, 256 << 20);
        // All that the log has is to be on the console.
        let kargs = ["earlyprintk=serial,ttyS0,115200", "ignore_loglevel"];
        spec.kargs = kargs.map(str::to_owned).to_vec();
        if by != "virtio" {
            spec.kargs.push(format!("{TTY_ARG}={by}"));
        }
        let mut machine = Machine::boot(&spec, EngineChoice::Kvm);
        println!("{}: hello after {:?}", machine.hello.release, machine.took);
        for (what, body) in BODIES {
            let begin = Instant::now();
            body(&mut machine);
            println!("{what}: {:?}", begin.elapsed());
        }
        frames_went_over(&machine, by);
        machine.power_off();
    }
}

/// A scenario by the command itself, as its user runs it.
fn script(kernel: &str) -> Vec<String> {
    let script = support::project("scripts/smoke.rhai").display().to_string();
    let words = ["--engine", "kvm", "--filter", "every worker is in the hash", "--kernel", kernel];
    std::iter::once(script).chain(words.map(str::to_owned)).collect()
}

/// Starts a machine that has KVM, and runs this program's tests there.
fn in_an_outer_guest(archive: Vec<u8>) {
    let image = support::kernel("debian:7.2");
    let outer = Outer::start(&image, 3072, |fs| {
        scripts::stage(fs, &[&image])?;
        fs.bytes(&format!("{INNER}/initramfs"), archive, 0o644)?;
        fs.file(image.elf(), &format!("{INNER}/vmlinux"), 0o644)?;
        fs.file(image.bzimage().expect("a bzImage"), &format!("{INNER}/vmlinuz"), 0o644)
    });
    let this = "our_machine_boots_freezes_and_goes_off";
    outer.run(&[SELF, "--exact", this, "--nocapture"], Duration::from_secs(2400));
}

#[test]
fn our_machine_boots_freezes_and_goes_off() {
    if let Ok(archive) = std::fs::read(format!("{INNER}/initramfs")) {
        speak_up(Duration::from_secs(600));
        let inner = |name: &str| Path::new(INNER).join(name);
        let vmlinux = inner("vmlinux");
        let args = script(vmlinux.to_str().expect("text"));
        assert!(scripts::run(&args), "a script fails");
        return suite(vec![Boot::Elf(vmlinux), Boot::BzImage(inner("vmlinuz"))], &archive);
    }
    let mut fs = Initramfs::new();
    fs.agent(support::agent()).expect("the agent can be staged");
    let archive = fs.build().expect("an archive");
    if !kvm_is_real() {
        return in_an_outer_guest(archive);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryoscope"));
    command.arg("run").args(script("debian:7.2"));
    assert!(command.status().expect("it starts").success(), "a script fails");
    let image = support::kernel("debian:7.2");
    suite(vec![support::elf(&image), support::bzimage(&image)], &archive);
}
