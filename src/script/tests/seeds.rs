//! Writes what `fuzz/` starts from: made-up guests, and snapshots of them. Here, since this module
//! may use both.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::introspect::{Kernel, made_up_guest, made_up_kinds, made_up_sched::Machine};
use crate::mem::{Gpa, GuestMem};
use crate::snapshot::testing::{meta, sample};
use crate::snapshot::{CaptureRequest, Capturer, Snapshot};

const PAGE: usize = 4096;

fn seeds(kind: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(kind);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The guests by name.
fn guests() -> [(&'static str, Arc<dyn GuestMem>); 4] {
    [
        ("maps", made_up_guest().mem()),
        ("kinds", made_up_kinds().mem()),
        ("sched", Machine::monitored(true).guest.mem()),
        ("no-sched-ext", Machine::new(false).guest.mem()),
    ]
}

/// Pages, each behind its address, in a zstd frame.
fn image(mem: &dyn GuestMem) -> Vec<u8> {
    let mut raw = Vec::new();
    for region in mem.regions() {
        for at in (region.start.0..region.start.0 + region.len).step_by(PAGE) {
            let mut page = [0; PAGE];
            mem.read(Gpa(at), &mut page).unwrap();
            raw.extend(at.to_le_bytes());
            raw.extend(page);
        }
    }
    zstd::bulk::compress(&raw, 19).unwrap()
}

fn freeze(mem: Arc<dyn GuestMem>, ram: Option<u64>) -> Arc<Snapshot> {
    let capturer = Capturer::open(mem).unwrap();
    let kernel = ["jiffies_64", "scx_root"].map(str::to_owned).to_vec();
    let request = CaptureRequest { kernel, ram, ..CaptureRequest::default() };
    capturer.capture(&request).unwrap().finish(meta("end"))
}

#[test]
#[ignore = "writes files: cargo test --lib -- --ignored seeds_of_fuzzing"]
fn seeds_of_fuzzing() {
    for (name, mem) in guests() {
        fs::write(seeds("ram").join(name), image(&*mem)).unwrap();
        let types = Kernel::open(mem.clone()).unwrap().btf().raw().to_vec();
        fs::write(seeds("btf").join(name), types).unwrap();
        freeze(mem, None).save(&seeds("capsule").join(format!("{name}.cryo"))).unwrap();
    }
    let all = freeze(Machine::new(true).guest.mem(), Some(1 << 30));
    all.save(&seeds("capsule").join("memory.cryo")).unwrap();
    sample().save(&seeds("capsule").join("sample.cryo")).unwrap();
    let late = Snapshot::placeholder(meta("late"), "the machine had ended");
    late.save(&seeds("capsule").join("placeholder.cryo")).unwrap();
}
