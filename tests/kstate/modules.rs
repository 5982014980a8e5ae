//! Loaded modules: what a snapshot says of them equals `/proc/modules`, `/proc/kallsyms`,
//! `/sys/kernel/btf` and `/sys/module`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cryoscope::freeze::Freezer;
use cryoscope::kernel::KernelImage;
use cryoscope::snapshot::{CaptureRequest, MAX_RAM, Snapshot, SnapshotError};
use cryoscope::vm::Boot;
use cryoscope::wire::{Answer, Op};

use super::freeze;
use super::support::{self, Guest};

/// Two that need no others.
const FILES: [&str; 2] = ["drivers/block/loop", "drivers/net/dummy"];

fn load(guest: &Guest, path: &str) {
    let argv = vec!["insmod".to_owned(), path.to_owned()];
    match guest.call(Op::Exec { argv, timeout_ms: 30_000 }) {
        Answer::Exec(done) => assert_eq!(done.code, Some(0), "{path}: {done:?}"),
        other => panic!("{other:?}"),
    }
}

/// As `Guest::file`, of what is no text.
fn bytes(guest: &Guest, path: &str) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let from = all.len() as u64;
        match guest.call(Op::ReadFile { path: path.to_owned(), offset: from }) {
            Answer::File { bytes, truncated } => {
                all.extend(bytes);
                if !truncated {
                    return all;
                }
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn modules_are_those_of_proc(guest: &Guest, snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let theirs = guest.file("/proc/modules");
    let ours = snap.modules()?;
    assert_eq!(ours.len(), theirs.lines().count(), "{ours:?}\n{theirs}");
    for (module, line) in ours.iter().zip(theirs.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(module.name(), words[0]);
        assert_eq!(module.size().to_string(), words[1], "{line}");
        assert_eq!(module.refcount()?.to_string(), words[2], "{line}");
        let states =
            BTreeMap::from([("live", "Live"), ("coming", "Loading"), ("going", "Unloading")]);
        assert_eq!(states[module.state()?.as_str()], words[4], "{line}");
        assert_eq!(format!("{:#018x}", module.address()), words[5], "{line}");
        let taints = words.get(6).map_or("", |word| word.trim_matches(['(', ')']));
        assert_eq!(module.taints()?, taints, "{line}");
    }
    let names: BTreeSet<&str> = ours.iter().map(|module| module.name()).collect();
    assert!(names.contains("loop") && names.contains("dummy"), "{names:?}");
    Ok(())
}

fn symbols_are_those_of_kallsyms(guest: &Guest, snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let text = guest.file("/proc/kallsyms");
    for module in snap.modules()? {
        let of_it = format!("[{}]", module.name());
        let mut theirs: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        let mut code = Vec::new();
        for line in text.lines().filter(|line| line.ends_with(&of_it)) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = u64::from_str_radix(words[0], 16).expect("an address");
            theirs.entry(at).or_default().insert(words[2].to_owned());
            code.extend(words[1].eq_ignore_ascii_case("t").then_some(at));
        }
        let mut ours: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for (name, at) in module.symbols()? {
            ours.entry(at).or_default().insert(name);
        }
        assert_eq!(ours, theirs, "{module:?}");
        assert!(code.len() > 5, "{module:?} has {} functions", code.len());
        // Of the kernel's own lookups, labels are left out.
        for at in code {
            let spelled =
                |end: &str| theirs[&at].iter().any(|name| *end == format!("{name} {of_it}"));
            let symbol = snap.symbol(at)?.expect("a symbol");
            assert!(spelled(&symbol), "{symbol}");
            if !theirs.contains_key(&(at + 1)) {
                let symbol = snap.symbol(at + 1)?.expect("a symbol");
                assert!(symbol.ends_with(&format!("+0x1 {of_it}")), "{symbol}");
            }
        }
        let raw = module.types().expect("types").raw().to_vec();
        let path = format!("/sys/kernel/btf/{}", module.name());
        assert!(raw == bytes(guest, &path), "{path} differs");
    }
    Ok(())
}

/// With all of memory a module's variables are read, and what they lead to, by its own types.
fn variables_are_read(snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let idr = snap.kernel("loop_index_idr", Some("struct idr"))?;
    let head = idr.get("idr_rt.xa_head")?.as_u64()?;
    assert_eq!(head & 3, 2, "several devices are in a node");
    let node = snap.kernel_at(head & !3, "struct xa_node")?;
    for i in 0..4 {
        let device = node.get(&format!("slots[{i}]"))?.as_u64()?;
        let device = snap.kernel_at(device, "struct loop_device")?;
        assert_eq!(device.get("lo_number")?.as_u64()?, i);
        assert_eq!(device.get("lo_disk.disk_name")?.as_str()?, format!("loop{i}"));
    }
    let e = snap.kernel("loop_index_idrr", None).unwrap_err().to_string();
    assert!(e.contains("no such symbol"), "{e}");
    Ok(())
}

fn modules(spec: &str, boot: fn(&KernelImage) -> Boot) {
    let image = support::kernel(spec);
    let files = support::modules::files(&image, &FILES);
    let spec = support::spec(boot(&image), "1n1l2c1t", |fs| {
        for file in &files {
            let name = file.file_name().expect("a name").to_string_lossy();
            fs.file(file, &format!("/{name}"), 0o644).unwrap_or_else(|e| panic!("{e}"));
        }
    });
    let mut guest = Guest::start(&spec);
    let mut freezer = Freezer::new(guest.take_engine());
    let none = freeze(&mut freezer, &CaptureRequest::default());
    let e = none.module("loop").unwrap_err();
    assert!(matches!(e, SnapshotError::NoMatch { .. }), "{e}");
    ["/loop.ko", "/dummy.ko"].iter().for_each(|path| load(&guest, path));
    let kernel = vec!["max_loop".to_owned()];
    let request = CaptureRequest { kernel, ..CaptureRequest::default() };
    let snap = freeze(&mut freezer, &request);
    let mut checks = || {
        modules_are_those_of_proc(&guest, &snap)?;
        symbols_are_those_of_kallsyms(&guest, &snap)?;
        let max = guest.file("/sys/module/loop/parameters/max_loop");
        assert_eq!(snap.kernel("max_loop", Some("int"))?.as_i64()?.to_string(), max.trim());
        let ram = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
        let ram = freeze(&mut freezer, &ram);
        variables_are_read(&ram)?;
        // The same from a file.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.cryo");
        ram.save_with_ram(&path).unwrap_or_else(|e| panic!("{e}"));
        let again = Snapshot::open(&path).unwrap_or_else(|e| panic!("{e}"));
        modules_are_those_of_proc(&guest, &again)?;
        symbols_are_those_of_kallsyms(&guest, &again)?;
        variables_are_read(&again)
    };
    checks().unwrap_or_else(|e| panic!("{e}"));
    let copy = (0..11).map(|_| freeze(&mut freezer, &CaptureRequest::default()).pause().copy_us);
    println!("{}: copy {} µs with two modules", image.release, super::median(copy.collect()));
    freezer.stop();
}

#[test]
fn modules_are_those_of_7_2_with_kaslr() {
    modules("debian:7.2", support::bzimage);
}

#[test]
fn modules_are_those_of_6_12() {
    modules("debian:6.12", support::elf);
}
