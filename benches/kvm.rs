//! Our own machine on KVM, at length: what `make test-kvm` runs beside tests/kvm.rs. Where KVM is
//! not real, each part runs in an outer guest whose kernel has it (`tests/support/outer.rs`).
//!
//! | part | what |
//! |---|---|
//! | `scripts` | all of `scripts/`, on two kernels, with 1, 2 and 4 CPUs |
//! | `shapes` | topologies as the guest sees them: four on our machine, all twelve under QEMU |
//! | `zoo` | maps that were filled and left alone read the same through both engines |
//! | `soak` | a thousand freezes, and fifty with a CPU that is held back |
//! | `host` | RAM of huge pages, and a CPU that is bound; in the outer guest only |
//! | `timing` | time to the agent's hello over QEMU's on the same KVM, and pauses by their parts |
//! | `course` | `scripts/course.rhai` `TIMES` (20) times on the first kernel; only when it is named |
//!
//! Names of parts as arguments choose some of them; `scripts` can be narrowed to kernels and
//! topologies, as in `scripts debian:7.3 1n2l2c1t`.

#[path = "../tests/support/mod.rs"]
mod support;

#[path = "kvm/timing.rs"]
mod timing;
#[path = "kvm/zoo.rs"]
mod zoo;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cryoscope::kernel::KernelImage;
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::{Boot, EngineChoice, VmSpec};
use support::machine::Machine;
use support::outer::{INNER, Outer, SELF, kvm_is_real, speak_up};
use support::{Guest, scripts, shape, shapes};

const PARTS: [&str; 7] = ["scripts", "shapes", "zoo", "soak", "timing", "host", "course"];
const KERNELS: [&str; 2] = ["debian:7.2", "debian:7.3"];
const CPUS: [&str; 3] = ["1n1l1c1t", "1n1l2c1t", "1n2l2c1t"];
/// RAM of the outer guest in MiB.
const OUTER: u64 = 4096;
/// RAM of inner ones.
const INNER_MIB: u64 = 512;
/// How long a part may take: everything is emulated, exits twice.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Shapes that our machine is booted in.
const BOOTED: [&str; 4] = ["1n2l2c1t", "2n4l2c1t", shapes::UNEVEN, shapes::MEMORY_ONLY];

/// What inner machines boot.
struct Cargo {
    kernel: PathBuf,
    archive: Vec<u8>,
}

impl Cargo {
    fn in_guest(kernel: &str, archive: &str) -> Cargo {
        let read = |path: &str| std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        Cargo { kernel: kernel.into(), archive: read(archive) }
    }

    fn spec(&self, topology: &str) -> VmSpec {
        let topology = topology.parse().expect("a topology");
        let boot = Boot::Elf(self.kernel.clone());
        VmSpec::new(boot, self.archive.clone().into(), topology, INNER_MIB << 20)
    }
}

/// An initial file system with the agent and nothing else.
fn agent_alone() -> Vec<u8> {
    let mut fs = Initramfs::new();
    fs.agent(support::agent()).expect("the agent can be staged");
    fs.build().expect("an archive")
}

/// Where the outer guest has that.
fn archive_in_guest(name: &str) -> String {
    format!("{INNER}/{name}.cpio")
}

/// Runs scripts of the project on our machine, with options other than the kernel.
fn run_scripts(
    image: &KernelImage,
    outer: Option<&Outer>,
    what: &str,
    options: &[&str],
) -> Duration {
    let begin = Instant::now();
    // What was compiled for them is found again by whole paths.
    let what = support::project(what).display().to_string();
    match outer {
        Some(outer) => {
            let kernel = scripts::kernel_in_guest(image);
            let words = [SELF, "inner", "scripts", &what, "--kernel", &kernel];
            outer.run(&[&words[..], options].concat(), PATIENCE);
        }
        None => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cryoscope"));
            command.arg("run").arg(what).args(options);
            command.args(["--engine", "kvm", "--kernel", &image.spec]);
            assert!(command.status().expect("it starts").success(), "a script fails");
        }
    }
    begin.elapsed()
}

fn all_scripts(images: &[KernelImage], outer: Option<&Outer>, narrowed: &[String]) {
    let named = |name: &str, all: &[&str]| {
        let some = all.iter().any(|one| narrowed.iter().any(|n| n == one));
        !some || narrowed.iter().any(|n| n == name)
    };
    for image in images.iter().filter(|image| named(&image.spec, &KERNELS)) {
        for cpus in CPUS.into_iter().filter(|cpus| named(cpus, &CPUS)) {
            let took = run_scripts(image, outer, "scripts", &["--topology", cpus]);
            println!("scripts     {} {cpus}: passed in {took:?}", image.release);
        }
    }
}

fn courses(image: &KernelImage, outer: Option<&Outer>) {
    let times = std::env::var("TIMES").map_or(20, |n| n.parse().expect("TIMES is a number"));
    for n in 1..=times {
        let took = run_scripts(image, outer, "scripts/course.rhai", &[]);
        println!("course      {n} of {times} on {}: passed in {took:?}", image.release);
    }
}

fn scripts_in_guest(args: &[&str]) {
    let args = [args, &["--engine", "kvm", "--jobs", "1"]].concat();
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    assert!(scripts::run(&args), "a script fails");
}

/// Boots our machine in some shapes.
fn our_shapes(cargo: &Cargo) {
    for shape in BOOTED {
        let spec = cargo.spec(shape);
        let machine = Machine::boot(&spec, EngineChoice::Kvm);
        shape::is_as_asked("kvm", &spec, &|path| machine.file(path));
        println!("shapes      {shape} on our machine, hello after {:?}", machine.took);
        machine.power_off();
    }
}

/// Boots with RAM of huge pages, and its CPU bound to one of the host.
fn from_the_host(cargo: &Cargo) {
    let pages = || {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        std::fs::read_to_string(path).expect("huge pages").trim().parse::<u64>().expect("a number")
    };
    std::fs::write("/proc/sys/vm/nr_hugepages", (INNER_MIB / 2).to_string()).expect("reserved");
    let before = pages();
    let mut spec = cargo.spec("1n1l1c1t");
    spec.huge_pages = true;
    spec.pin = Some("0".parse().expect("a CPU"));
    let machine = Machine::boot(&spec, EngineChoice::Kvm);
    assert!(pages() < before, "{before} huge pages are free, and still {}", pages());
    let threads = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let read = |path: PathBuf, file| std::fs::read_to_string(path.join(file)).expect("a thread");
    let cpu = threads.map(|t| t.path()).find(|t| read(t.clone(), "comm").trim() == "kvm-cpu-0");
    let status = read(cpu.expect("the CPU's thread"), "status");
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    machine.power_off();
    println!("host        huge pages and a pinned CPU");
    std::fs::write("/proc/sys/vm/nr_hugepages", "0").expect("let go");
}

/// Freezes our machine over and over.
fn soak(cargo: &Cargo) {
    support::soak::on(&cargo.spec("1n2l1c1t"), EngineChoice::Kvm, support::BOOT);
    println!("soak        nothing was lost");
}

/// Boots QEMU in all shapes.
fn qemus_shapes(image: &KernelImage) {
    for shape in shapes::SHAPES {
        let spec = support::spec(support::elf(image), shape, |_| {});
        let begin = Instant::now();
        let guest = Guest::start(&spec);
        shape::is_as_asked("qemu", &spec, &|path| guest.file(path));
        println!("shapes      {shape} under QEMU in {:?}", begin.elapsed());
    }
}

/// One part of what an outer guest is told to do.
fn inner(args: &[String]) {
    speak_up(Duration::from_secs(600));
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["scripts", ref args @ ..] => scripts_in_guest(args),
        ["host", kernel, archive] => from_the_host(&Cargo::in_guest(kernel, archive)),
        ["shapes", kernel, archive] => our_shapes(&Cargo::in_guest(kernel, archive)),
        ["soak", kernel, archive] => soak(&Cargo::in_guest(kernel, archive)),
        ["zoo", kernel, archive, attach] => {
            let attach = std::fs::read_to_string(attach).expect("how it is attached");
            let attach = serde_json::from_str(&attach).expect("a request");
            let machine =
                Machine::boot(&Cargo::in_guest(kernel, archive).spec(zoo::CPUS), EngineChoice::Kvm);
            std::fs::write(zoo::FOUND, zoo::read(machine, attach)).expect("it can be written");
        }
        ["timing", kernel, archive] => timing::measure(&Cargo::in_guest(kernel, archive), archive),
        _ => panic!("{words:?}"),
    }
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "inner") {
        return inner(&args[1..]);
    }
    // Cargo adds options of its own.
    args.retain(|arg| !arg.starts_with('-'));
    let known = [&PARTS[..], &KERNELS, &CPUS].concat();
    let unknown = args.iter().find(|part| !known.contains(&part.as_str()));
    assert_eq!(unknown, None, "parts are {PARTS:?}");
    let named = |part: &str| args.iter().any(|arg| arg == part);
    let parts = PARTS.iter().any(|part| named(part));
    assert!(args.is_empty() || parts, "{args:?} narrow the part `scripts`, which is to be named");
    let wanted = |part: &str| named(part) || args.is_empty();
    let images = KERNELS.map(support::kernel);
    let (image, real) = (&images[0], kvm_is_real());
    let zoo = zoo::Zoo::prepare(image);
    let outer = (!real).then(|| {
        Outer::start(image, OUTER, |fs| {
            scripts::stage(fs, &images.iter().collect::<Vec<_>>())?;
            fs.bytes(&archive_in_guest("agent"), agent_alone(), 0o644)?;
            zoo.stage(fs)?;
            timing::stage(fs)
        })
    });
    let kernel = scripts::kernel_in_guest(image);
    let run = |part: &[&str]| match &outer {
        Some(outer) => {
            let args = [&[SELF, "inner"], part].concat();
            outer.run(&args, PATIENCE);
            true
        }
        None => false,
    };
    let here = || Cargo { kernel: image.elf().to_owned(), archive: agent_alone() };
    let agent = archive_in_guest("agent");
    if wanted("timing") && !run(&["timing", &kernel, &agent]) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), agent_alone()).expect("it can be written");
        timing::measure(&here(), file.path().to_str().expect("text"));
    }
    if wanted("host") && !run(&["host", &kernel, &agent]) {
        println!("host        left out: it changes how many huge pages this machine has");
    }
    if wanted("shapes") {
        qemus_shapes(image);
        if !run(&["shapes", &kernel, &agent]) {
            our_shapes(&here());
        }
    }
    if wanted("soak") && !run(&["soak", &kernel, &agent]) {
        soak(&here());
    }
    if wanted("zoo") {
        zoo.compare(image, outer.as_ref(), &kernel);
    }
    if wanted("scripts") {
        all_scripts(&images, outer.as_ref(), &args);
    }
    if named("course") {
        courses(image, outer.as_ref());
    }
}
