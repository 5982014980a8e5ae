//! What is fuzzed, each target a function of bytes. libFuzzer drives them in `targets/`
//! (`make fuzz`), `tests/fuzz.rs` drives them with bytes from a generator.
//!
//! A target may do anything with its input but panic, hang, or hold more than [`cap::CAP`] bytes.

pub mod cap;
mod capsule;
pub mod program;
mod ram;
mod small;
mod walk;

use std::path::{Path, PathBuf};

/// The targets' names.
pub const TARGETS: [&str; 7] = ["ram", "capsule", "btf", "wire", "kernel", "path", "devices"];

/// Gives an input to a target.
///
/// # Panics
/// When the target has a bug, or there is none of that name.
pub fn run(target: &str, data: &[u8]) {
    match target {
        "ram" => ram::run(data),
        "capsule" => capsule::run(data),
        "btf" => small::btf(data),
        "wire" => small::wire(data),
        "kernel" => small::kernel(data),
        "path" => small::path(data),
        "devices" => cryoscope::vm::exercise_devices(data),
        _ => panic!("there is no target {target:?}: {TARGETS:?}"),
    }
}

/// Checks that the seeds are still what they should be: an input that changes nothing reads all
/// of each. Seeds that nothing can be read from would let every run pass.
///
/// # Panics
/// When one is not.
pub fn check_seeds() {
    ram::check_seeds();
    capsule::check_seeds();
    small::check_seeds();
}

/// Files of a directory below `seeds/`, in the order of their names. `CRYOSCOPE_FUZZ_SEEDS` is
/// another directory of that kind, for seeds that are too large for the project.
fn seeds(kind: &str) -> Vec<(String, Vec<u8>)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = if own.ends_with("fuzz") { own.join("seeds") } else { own.join("fuzz/seeds") };
    let more = std::env::var_os("CRYOSCOPE_FUZZ_SEEDS").map(PathBuf::from);
    let mut files = Vec::new();
    for root in std::iter::once(own).chain(more) {
        let Ok(entries) = std::fs::read_dir(root.join(kind)) else { continue };
        files.extend(entries.map(|entry| entry.expect("a directory entry").path()));
    }
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, std::fs::read(path).expect("a seed can be read"))
    };
    files.iter().map(read).collect()
}

/// A file for what is opened by name, below the directory for temporary files: one a thread.
fn scratch(name: &str) -> PathBuf {
    let dir = scratch_dir();
    std::fs::create_dir_all(&dir).expect("a directory for scratch files");
    // Threads of a test must not write each other's file.
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    dir.join(format!("{name}-{thread}"))
}

fn scratch_dir() -> PathBuf {
    std::env::temp_dir().join(format!("cryoscope-fuzz-{}", std::process::id()))
}

/// Takes the scratch files away.
pub fn sweep() {
    let _ = std::fs::remove_dir_all(scratch_dir());
}
