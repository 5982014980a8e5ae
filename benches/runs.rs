//! Whole runs, measured against a reference in the same run:
//!
//! - the time from starting a machine to the agent's hello, over the time a bare QEMU takes to
//!   start a minimal `/init` of the same kernel with the same memory and CPUs, with QEMU's and
//!   the kernel's defaults, and over the time of the same `/init` in the very machine that we use;
//! - the pause of a freeze of `fifo`, whose HASH has 10,240 preallocated entries, under load;
//! - the time to write a snapshot to a file, and to open it for one variable;
//! - the time from command to verdict of one scenario that holds for a second.
//!
//! `make bench` runs it. Times are of one machine; the ratio is what travels.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryoscope::freeze::Freezer;
use cryoscope::kernel::KernelImage;

use cryoscope::snapshot::{CaptureRequest, Meta, Pause, Snapshot};
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::{self, EngineChoice, VmSpec};
use cryoscope::wire::{Op, Work, WorkKind};
use support::Guest;

const ROUNDS: usize = 5;
const FREEZES: usize = 50;
const CPUS: &str = "1n1l2c1t";

/// `write(1, "READY\n", 6)`, then `pause()` for ever.
const INIT: [u8; 47] = [
    0xb8, 1, 0, 0, 0, // mov eax, 1
    0xbf, 1, 0, 0, 0, // mov edi, 1
    0x48, 0x8d, 0x35, 0x13, 0, 0, 0, // lea rsi, [rip + 0x13]
    0xba, 6, 0, 0, 0, // mov edx, 6
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // mov eax, 34
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp back to the last mov
    0x90, 0x90, 0x90, // padding
    b'R', b'E', b'A', b'D', b'Y', b'\n', 0, 0, 0, 0, 0,
];

/// An ELF executable that holds just [`INIT`].
fn init_elf() -> Vec<u8> {
    let base: u64 = 0x40_0000;
    let mut elf = Vec::new();
    elf.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend((base + 120).to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // where the program headers are
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes()); // readable, executable
    let size = 120 + INIT.len() as u64;
    for word in [0, base, base, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(INIT);
    elf
}

/// From starting QEMU by hand to the first line that `/init` prints.
fn bare(kernel: &KernelImage, initrd: &std::path::Path) -> Duration {
    let start = Instant::now();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"])
        .args(["-m", "512M", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-append", "console=ttyS0 quiet panic=-1", "-kernel"])
        .arg(kernel.elf())
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("QEMU starts");
    let mut out = qemu.stdout.take().expect("piped");
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while !seen.windows(5).any(|w| w == b"READY") {
        let n = out.read(&mut chunk).expect("the console can be read");
        assert!(n > 0, "QEMU ended early:\n{}", String::from_utf8_lossy(&seen));
        seen.extend(&chunk[..n]);
    }
    let took = start.elapsed();
    qemu.kill().expect("it can be killed");
    qemu.wait().expect("it can be waited for");
    took
}

/// From starting our machine to the first line of the same `/init`.
fn ours_with(kernel: &KernelImage, archive: &Arc<[u8]>) -> Duration {
    let topology = CPUS.parse().expect("a topology");
    let spec = VmSpec::new(support::elf(kernel), archive.clone(), topology, 512 << 20);
    let start = Instant::now();
    let mut engine = vm::start(&spec, EngineChoice::Qemu).expect("the machine starts");
    assert!(engine.console().wait_for("READY", support::BOOT), "{}", engine.console().text());
    let took = start.elapsed();
    engine.stop();
    took
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1e3
}

fn hello(kernel: &KernelImage) {
    let mut fs = Initramfs::new();
    fs.bytes("/init", init_elf(), 0o755).expect("a file");
    let initrd = tempfile::NamedTempFile::new().expect("a temporary file");
    let archive: Arc<[u8]> = fs.build().expect("an archive").into();
    std::fs::write(initrd.path(), &archive).expect("it can be written");
    let (mut bares, mut same, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bares.push(bare(kernel, initrd.path()));
        same.push(ours_with(kernel, &archive));
        let start = Instant::now();
        let guest = Guest::boot(support::elf(kernel), CPUS, |_| {});
        ours.push(start.elapsed());
        drop(guest);
    }
    let (bare, same, hello) = (median(bares), median(same), median(ours));
    println!("hello       {hello:8.0} ms from start to the agent's hello, median of {ROUNDS}");
    println!("bare QEMU   {bare:8.0} ms from start to a minimal /init");
    println!("ratio       {:8.2}    hello over bare; aim: at most 1.3", hello / bare);
    println!("same        {same:8.0} ms from start to that /init in our machine");
    println!("agent       {:8.2}    hello over same", hello / same);
}

/// A part of a pause: its name, how to get it, what it should be.
type Part = (&'static str, fn(&Pause) -> u64, &'static str);

fn pause(kernel: &KernelImage) {
    let fifo = support::scheduler("examples/schedulers/fifo.bpf.c", kernel);
    let mut guest = Guest::boot(support::elf(kernel), CPUS, |fs| support::stage(fs, &fifo));
    guest.call(support::attach(&fifo));
    guest.call(Op::Start(Work {
        kind: WorkKind::Spin,
        count: 4,
        cgroup: None,
        policy: None,
        nice: None,
        affinity: None,
        period_us: None,
    }));
    let mut freezer = Freezer::new(guest.take_engine());
    let mut pauses = Vec::new();
    for i in 0..FREEZES {
        let meta = Meta { tag: format!("bench {i}"), ..Meta::default() };
        let snapshot = freezer.freeze(&CaptureRequest::default(), || meta).expect("a freeze");
        assert!(!snapshot.is_placeholder(), "{:?}", snapshot.placeholder_reason());
        pauses.push(snapshot.pause());
        std::thread::sleep(Duration::from_millis(20));
    }
    let meta = Meta { tag: "file".to_owned(), ..Meta::default() };
    file(&freezer.freeze(&CaptureRequest::default(), || meta).expect("a freeze"));
    let parts: [Part; 4] = [
        ("copy", |p| p.copy_us, "; aim: under 1000"),
        ("stop", |p| p.stop_us, ""),
        ("resume", |p| p.resume_us, ""),
        ("pause", |p| p.total_us, ""),
    ];
    for (name, of, aim) in parts {
        let mut all: Vec<u64> = pauses.iter().map(of).collect();
        all.sort_unstable();
        let at = |part: usize| all[(all.len() - 1) * part / 100];
        let (p50, p90, max) = (at(50), at(90), at(100));
        println!("{name:<11} {p50:8} µs p50, {p90} p90, {max} max of {FREEZES} freezes{aim}");
    }
}

/// A snapshot's file: written, then opened for one variable; the reference is reading its bytes.
fn file(snapshot: &Snapshot) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("a.cryo");
    let timed = |what: &dyn Fn()| {
        let times = (0..20).map(|_| {
            let start = Instant::now();
            what();
            start.elapsed()
        });
        median(times.collect())
    };
    let save = timed(&|| snapshot.save(&path).expect("it can be saved"));
    let read = timed(&|| drop(std::fs::read(&path).expect("it can be read")));
    let open = timed(&|| {
        let opened = Snapshot::open(&path).expect("it can be opened");
        let counter = opened.global("nr_running").and_then(|field| field.as_u64());
        assert!(counter.expect("the counter") > 0);
    });
    let kib = std::fs::metadata(&path).expect("a file").len() >> 10;
    println!("save        {save:8.1} ms for a file of {kib} KiB, median of 20");
    println!("open        {open:8.1} ms to open it and read one variable; aim: under 20");
    println!("read        {read:8.1} ms to read its bytes alone");
}

fn verdict(kernel: &KernelImage) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = dir.path().join("hold.rhai");
    let fifo = support::project("examples/schedulers/fifo.bpf.c");
    let text = format!(
        "scenario(\"hold\", #{{ scheduler: {fifo:?} }}, |t| {{\n  t.start(#{{ work: \"spin\" }});\
         \n  t.hold(\"1s\");\n  expect(t.freeze(\"end\").global(\"nr_running\")).at_least(1);\n}});"
    );
    std::fs::write(&script, text).expect("it can be written");
    let mut all = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_cryoscope"))
            .args(["run", "--kernel", &kernel.spec])
            .arg(&script)
            .output()
            .expect("cryoscope runs");
        all.push(start.elapsed());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    println!("verdict     {:8.0} ms from command to verdict, 1000 of them held", median(all));
}

fn main() {
    let spec = std::env::args().find(|a| a.starts_with("debian:"));
    let kernel = support::kernel(spec.as_deref().unwrap_or("debian:7.2"));
    println!("kernel      {}", kernel.release);
    hello(&kernel);
    pause(&kernel);
    verdict(&kernel);
}
