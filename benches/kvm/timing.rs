//! Times on one and the same KVM: from start to the agent's hello on our machine and under QEMU, and
//! the parts of pauses.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cryoscope::snapshot::{CaptureRequest, Meta, Pause};
use cryoscope::vm::EngineChoice;
use cryoscope::vm::channel::Channel;
use cryoscope::vm::initramfs::{Initramfs, InitramfsError};
use cryoscope::wire::{Op, PORT_NAME, Work, WorkKind};

use super::support::machine::{HELLO, Machine};
use super::{Cargo, INNER_MIB};

const QEMU: &str = "qemu-system-x86_64";
const ROUNDS: usize = 5;
const FREEZES: usize = 100;
const SHAPE: &str = "1n1l2c1t";
/// Where Debian has QEMU's firmware.
const FIRMWARE: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];
const BLOBS: [&str; 8] = [
    "bios-256k.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "pvh.bin",
    "kvmvapic.bin",
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "bios.bin",
];

/// Machine types, without what a guest of ours does not need.
const MACHINES: [(&str, &str); 3] = [
    ("q35", "q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,dump-guest-core=off,mem-merge=off"),
    ("pc", "pc,smm=off,usb=off,vmport=off,dump-guest-core=off,mem-merge=off"),
    (
        "microvm",
        "microvm,acpi=on,pcie=on,rtc=off,pit=off,pic=off,isa-serial=on,x-option-roms=off,\
         dump-guest-core=off,mem-merge=off",
    ),
];

/// What every kernel is told, ours and QEMU's alike. The emulator that may be below us disagrees
/// with itself about XSAVE.
const KARGS: &str = "console=ttyS0 panic=-1 oops=panic cryptomgr.notests mitigations=off \
                     tsc=reliable noxsave";

/// QEMU and what it reads, for the outer guest.
pub(super) fn stage(fs: &mut Initramfs) -> Result<(), InitramfsError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(QEMU)).find(|p| p.is_file());
    fs.elf(&found.expect("QEMU is installed"), &format!("/bin/{QEMU}"))?;
    for path in FIRMWARE.iter().flat_map(|dir| BLOBS.map(|blob| format!("{dir}/{blob}"))) {
        if Path::new(&path).is_file() {
            fs.file(Path::new(&path), &path, 0o644)?;
        }
    }
    Ok(())
}

/// A process that ends with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// From starting QEMU to the hello of the agent in it, or why there is none.
fn qemu(machine: &str, cargo: &Cargo, archive: &str) -> Result<Duration, String> {
    let (ours, theirs) = UnixStream::pair().expect("a stream");
    rustix::io::fcntl_setfd(theirs.as_fd(), rustix::io::FdFlags::empty())
        .expect("it can be passed");
    let console = tempfile::NamedTempFile::new().expect("a file");
    let begin = Instant::now();
    let mut command = Command::new(QEMU);
    command
        .args(FIRMWARE.iter().flat_map(|dir| ["-L", dir]))
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "2", "-machine", machine])
        .args(["-m", &format!("{INNER_MIB}M"), "-append", KARGS, "-kernel"])
        .arg(&cargo.kernel)
        .args(["-initrd", archive, "-serial", &format!("file:{}", console.path().display())])
        .args(["-chardev", &format!("socket,id=frames,fd={}", theirs.as_raw_fd())])
        .args(["-device", "virtio-serial-pci,max_ports=2"])
        .args(["-device", &format!("virtserialport,chardev=frames,name={PORT_NAME}")])
        .stdin(Stdio::null());
    let _qemu = Killed(command.spawn().map_err(|e| e.to_string())?);
    drop(theirs);
    let channel = Channel::new(OwnedFd::from(ours), None).expect("a channel");
    let hello = channel.hello(HELLO);
    let took = begin.elapsed();
    hello.map(|_| took).map_err(|e| {
        let text = std::fs::read(console.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        format!("{e}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    })
}

fn ours(cargo: &Cargo) -> (Duration, Vec<(String, u64)>) {
    let mut spec = cargo.spec(SHAPE);
    spec.kargs = vec!["noxsave".to_owned()];
    let machine = Machine::boot(&spec, EngineChoice::Kvm);
    (machine.took, machine.freezer.engine().exits())
}

/// The median, printed with the least and the most.
fn median(name: &str, mut all: Vec<Duration>, of: &str) -> f64 {
    all.sort();
    let at = |n: usize| all[n].as_secs_f64();
    let (least, median, most) = (at(0), at(all.len() / 2), at(all.len() - 1));
    println!("{name:<11} {median:8.2} s {of}, {least:.2} to {most:.2} in {} rounds", all.len());
    median
}

pub(super) fn measure(cargo: &Cargo, archive: &str) {
    let (mut mine, mut theirs, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (took, left) = ours(cargo);
        mine.push(took);
        exits = left;
        for (n, (name, machine)) in MACHINES.iter().enumerate() {
            theirs.resize(MACHINES.len(), Ok(Vec::new()));
            match (&mut theirs[n], qemu(machine, cargo, archive)) {
                (Ok(all), Ok(took)) => all.push(took),
                (slot, Err(why)) => *slot = Err(format!("{name}: {why}")),
                (Err(_), Ok(_)) => {}
            }
        }
    }
    let hello = median("hello", mine, "on our machine");
    let mut best = f64::MAX;
    for ((name, _), took) in MACHINES.iter().zip(theirs) {
        match took {
            Ok(all) => {
                best = best.min(median(name, all, "under QEMU"));
            }
            Err(why) => println!("{name:<11} does not get there: {why}"),
        }
    }
    assert!(best < f64::MAX, "QEMU got nowhere");
    println!("ratio       {:8.2}   ours over QEMU's fastest; aim: at most 0.6", hello / best);
    for (what, count) in exits.iter().take(8) {
        println!("exits       {count:8}   {what}");
    }
    for cpus in [2, 8] {
        pauses(cargo, cpus);
    }
}

/// A part of a pause: its name, and how to get it.
type Part = (&'static str, fn(&Pause) -> u64);

/// Freezes a machine all of whose CPUs compute.
fn pauses(cargo: &Cargo, cpus: u32) {
    let mut machine = Machine::boot(&cargo.spec(&format!("1n1l{cpus}c1t")), EngineChoice::Kvm);
    machine.call(Op::Start(Work {
        kind: WorkKind::Spin,
        count: cpus,
        cgroup: None,
        policy: None,
        nice: None,
        affinity: None,
        period_us: None,
    }));
    let mut pauses = Vec::new();
    for i in 0..FREEZES {
        let meta = || Meta { tag: format!("t{i}"), ..Meta::default() };
        let snap = machine.freezer.freeze(&CaptureRequest::default(), meta);
        let snap = snap.unwrap_or_else(|e| panic!("{e}"));
        assert!(!snap.is_placeholder(), "{:?}", snap.placeholder_reason());
        pauses.push(snap.pause());
        std::thread::sleep(Duration::from_millis(20));
    }
    let parts: [Part; 4] = [
        ("rendezvous", |p| p.stop_us),
        ("copy", |p| p.copy_us),
        ("resume", |p| p.resume_us),
        ("pause", |p| p.total_us),
    ];
    for (name, of) in parts {
        let mut all: Vec<u64> = pauses.iter().map(of).collect();
        all.sort_unstable();
        let at = |part: usize| all[(all.len() - 1) * part / 100];
        println!(
            "{name:<11} {:8} µs p50, {} p90, {} max of {FREEZES} freezes, {cpus} CPUs",
            at(50),
            at(90),
            at(100)
        );
    }
}
