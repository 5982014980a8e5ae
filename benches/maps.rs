//! Maps, measured against a reference in the same run:
//!
//! - a HASH of 100,000 entries as JSON: `cryoscope snapshot export` of a file that holds it, over
//!   `bpftool -j map dump` of an equal map on this machine (the same types, the same entries); and
//!   what of that is decoding alone;
//! - the pause of a freeze by the bytes of the map that is copied, over a copy of as many bytes;
//! - the memory of a sample that is held, over the bytes that were copied for it;
//! - the time to open a file and read one variable, over reading as many bytes.
//!
//! `make bench` runs it. It needs root for `bpf()`, and bpftool.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{CaptureRequest, Map, Meta, Snapshot};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};
use support::Guest;

const ROUNDS: usize = 7;
const CPUS: &str = "1n1l2c1t";

/// The middle of some times, in milliseconds.
fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1e3
}

/// The middle of `ROUNDS` times.
fn timed(mut what: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        what();
        start.elapsed()
    });
    median(times.collect())
}

fn freeze(freezer: &mut Freezer, request: &CaptureRequest) -> Arc<Snapshot> {
    let meta = Meta { tag: "bench".to_owned(), ..Meta::default() };
    let snapshot = freezer.freeze(request, || meta).expect("a freeze");
    assert!(!snapshot.is_placeholder(), "{:?}", snapshot.placeholder_reason());
    snapshot
}

fn of_map(name: &str) -> CaptureRequest {
    CaptureRequest { maps: Some(vec![name.to_owned()]), sched: false, ..CaptureRequest::default() }
}

/// A map of this machine with the entries and the types of that one.
#[allow(unsafe_code)]
fn on_the_host(map: &Map) -> MapHandle {
    let attrs = map.attrs();
    let btf = attrs.btf.as_ref().expect("the map has types").raw();
    // SAFETY: the kernel copies `btf.len()` bytes from `btf`; a null pointer means no options.
    let fd = unsafe {
        libbpf_sys::bpf_btf_load(btf.as_ptr().cast(), btf.len() as _, std::ptr::null_mut())
    };
    assert!(fd >= 0, "the types cannot be loaded: {}", std::io::Error::from_raw_os_error(-fd));
    // SAFETY: the kernel has just handed the descriptor out, and nobody else has it.
    let btf = unsafe { OwnedFd::from_raw_fd(fd) };
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        btf_fd: btf.as_raw_fd() as u32,
        btf_key_type_id: attrs.key_type,
        btf_value_type_id: attrs.value_type,
        ..Default::default()
    };
    let (key, value) = (attrs.key_size, attrs.value_size);
    let host =
        MapHandle::create(MapType::Hash, Some("big"), key, value, attrs.max_entries, &options)
            .expect("bpf() makes a map; this bench needs root");
    for entry in map.entries().expect("entries") {
        let raw = |field: cryoscope::snapshot::SnapshotResult<cryoscope::snapshot::Field>| {
            field.and_then(|f| f.raw()).expect("bytes")
        };
        let (key, value) = (raw(Ok(entry.key())), raw(entry.value()));
        host.update(&key, &value, MapFlags::ANY).expect("an entry");
    }
    host
}

/// Runs a program until it has said everything.
fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdout(Stdio::null()).status();
    assert!(status.expect("it starts").success(), "{program} {args:?}");
}

/// JSON that a program prints.
fn json(program: &str, args: &[&str]) -> serde_json::Value {
    let output = Command::new(program).args(args).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

fn decoding(freezer: &mut Freezer, dir: &Path) {
    let snapshot = freeze(freezer, &of_map("big"));
    let map = snapshot.map("big").expect("the map");
    let len = map.len().expect("it can be decoded");
    assert_eq!(len, 100_000, "{:?}", map.incomplete());
    let host = on_the_host(&map);
    let id = host.info().expect("the map's attributes").info.id.to_string();
    let file = dir.join("big.cryo");
    snapshot.save(&file).expect("it can be saved");
    let file = file.to_str().expect("a path in UTF-8");

    let cryoscope = env!("CARGO_BIN_EXE_cryoscope");
    let theirs = json("bpftool", &["-j", "map", "dump", "id", &id]);
    assert_eq!(theirs.as_array().map(Vec::len), Some(len));
    let ours = json(cryoscope, &["snapshot", "export", file]);
    let exported = ours["maps"].to_string();
    assert!(exported.matches("runtime_ns").count() >= len, "not all entries are exported");

    let bpftool = timed(|| run("bpftool", &["-j", "map", "dump", "id", &id]));
    let export = timed(|| run(cryoscope, &["snapshot", "export", file]));
    println!("bpftool     {bpftool:8.1} ms for a HASH of {len} entries as JSON");
    println!("export      {export:8.1} ms for the same from a snapshot's file");
    println!("ratio       {:8.2}    bpftool over export; aim: at least 10", bpftool / export);

    let (mut decode, mut values) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let snapshot = freeze(freezer, &of_map("big"));
        let map = snapshot.map("big").expect("the map");
        let start = Instant::now();
        assert_eq!(map.len().expect("it can be decoded"), len);
        decode.push(start.elapsed());
        let start = Instant::now();
        let entries = map.entries().expect("entries");
        let sum = entries.map(|e| e.get("weight").and_then(|f| f.as_u64()).expect("a weight"));
        black_box(sum.fold(0, u64::wrapping_add));
        values.push(start.elapsed());
    }
    let (decode, values) = (median(decode), median(values));
    println!("decode      {decode:8.1} ms from copied bytes to {len} entries in order");
    println!("ratio       {:8.2}    bpftool over decode", bpftool / decode);
    println!("one member  {values:8.1} ms to read one member of each");
    let whole = decode + values;
    println!("ratio       {:8.2}    bpftool over decode and one member", bpftool / whole);
}

fn pause(freezer: &mut Freezer) {
    println!("pause of a freeze by what is copied, µs, median of {ROUNDS}:");
    println!("  {:<6} {:>12} {:>8} {:>8} {:>8}", "map", "bytes", "pause", "copy", "memcpy");
    for name in ["k64", "m1", "m4", "big", "m16", "m64"] {
        let (mut pauses, mut copies, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let snapshot = freeze(freezer, &of_map(name));
            pauses.push(Duration::from_micros(snapshot.pause().total_us));
            copies.push(Duration::from_micros(snapshot.pause().copy_us));
            bytes = snapshot.bytes();
        }
        let (from, mut to) = (vec![1u8; bytes as usize], vec![2u8; bytes as usize]);
        let reference = timed(|| to.copy_from_slice(black_box(&from)));
        black_box(&to);
        println!(
            "  {name:<6} {bytes:>12} {:>8.0} {:>8.0} {:>8.0}",
            median(pauses) * 1e3,
            median(copies) * 1e3,
            reference * 1e3
        );
    }
}

fn opening(freezer: &mut Freezer, dir: &Path) {
    let path = dir.join("a.cryo");
    let snapshot = freeze(freezer, &CaptureRequest::default());
    let save = timed(|| snapshot.save(&path).expect("it can be saved"));
    let open = timed(|| {
        let opened = Snapshot::open(&path).expect("it can be opened");
        let filled = opened.global("nr_filled").and_then(|field| field.as_u64());
        assert_eq!(filled.expect("the variable"), 100_000);
    });
    let read = timed(|| drop(black_box(std::fs::read(&path).expect("it can be read"))));
    let mib = std::fs::metadata(&path).expect("a file").len() >> 20;
    println!("open        {open:8.2} ms to open {mib} MiB and read one variable; aim: under 20");
    println!("read        {read:8.2} ms to read the file's bytes alone");
    println!("save        {save:8.2} ms to write it");
}

/// What samples that are held take, by what was copied of them.
fn keeping(freezer: &mut Freezer) {
    println!("memory of samples that are held, by what is copied:");
    println!("  {:<6} {:>12} {:>12} {:>8}", "map", "bytes", "resident", "ratio");
    // None is let go before the last is measured: what was freed would be used again unseen.
    let mut all = Vec::new();
    for (name, count) in [("k64", 400), ("m1", 50), ("m4", 20)] {
        // What is needed once is there before it counts.
        let first = freeze(freezer, &of_map(name));
        let before = resident();
        let held: Vec<Arc<Snapshot>> = (0..count).map(|_| freeze(freezer, &of_map(name))).collect();
        let each = resident().saturating_sub(before) / count;
        let bytes = first.bytes();
        println!("  {name:<6} {bytes:>12} {each:>12} {:>8.2}", each as f64 / bytes as f64);
        assert!(each > bytes / 2, "{count} samples of {bytes} bytes take {each} each");
        all.push(held);
    }
}

/// Bytes of this process in memory, those of the guest's memory not among them.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()).expect("a number");
    number.parse::<u64>().expect("a number") << 10
}

fn main() {
    let spec = std::env::args().find(|a| a.starts_with("debian:"));
    let kernel = support::kernel(spec.as_deref().unwrap_or("debian:7.2"));
    println!("kernel      {}", kernel.release);
    let maps = support::scheduler("benches/maps.bpf.c", &kernel);
    let mut guest = Guest::boot(support::elf(&kernel), CPUS, |fs| support::stage(fs, &maps));
    guest.call(support::attach(&maps));
    let mut freezer = Freezer::new(guest.take_engine());
    let dir = tempfile::tempdir().expect("a temporary directory");
    // First of all, while the process has no memory that was freed.
    keeping(&mut freezer);
    decoding(&mut freezer, dir.path());
    pause(&mut freezer);
    opening(&mut freezer, dir.path());
}
