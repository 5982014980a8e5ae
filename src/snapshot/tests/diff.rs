//! What changed from one snapshot to another.

use crate::btf::testing::Builder;
use crate::introspect::made_up_sched::pressure::at;
use crate::mem::Kva;
use crate::snapshot::testing::{Object, Rows, bytes, changed, made_up, meta, sample};
use crate::snapshot::{KernelState, Meta, ProgState, Snapshot};
use std::sync::Arc;

/// A scheduler's memory: a counter, a hash of structs with an array and a pointer in them, a
/// per-CPU array.
fn at(counter: u64, tasks: &[(u32, [u32; 3], u64)], cpus: [u64; 2]) -> Arc<Snapshot> {
    let mut b = Builder::new();
    let (u32_, u64_) = (b.int("u32", 4, false), b.int("u64", 8, false));
    let three = b.array(u32_, 3);
    let pointer = b.ptr(0);
    let task = b.structure("task", 24, &[("slots", three, 0), ("next", pointer, 128)]);
    let var = b.var("counter", u64_);
    let bss = b.datasec(".bss", 8, &[(var, 0, 8)]);
    let mut object = Object { btf: Some(b.parse()), maps: Vec::new() };
    let section = Rows { values: vec![bytes![counter]], ..Rows::default() };
    object.map("x.bss", "array", (0, bss), section);
    let values =
        tasks.iter().map(|(_, slots, next)| bytes![slots[0], slots[1], slots[2], 0u32, *next]);
    let keys = Some(tasks.iter().map(|(pid, ..)| bytes![*pid]).collect());
    object.map(
        "tasks",
        "hash",
        (u32_, task),
        Rows { keys, values: values.collect(), ..Rows::default() },
    );
    let cpus = Some(vec![cpus.map(|n| Some(bytes![n])).to_vec()]);
    object.map("sums", "percpu_array", (u32_, u64_), Rows { cpus, ..Rows::default() });
    Snapshot::new(Meta { tag: "t".into(), ..Meta::default() }, object.maps, Vec::new())
}

#[test]
fn changes_are_told_by_path_with_both_values() {
    let old = at(5, &[(300, [1, 2, 3], 16), (2, [0; 3], 0)], [7, 8]);
    let new = at(1 << 40, &[(300, [1, 9, 3], 32), (1000, [4, 5, 6], 0)], [7, 6]);
    let diff = old.diff(&new, false).unwrap();
    assert_eq!(
        diff.to_string(),
        "\
~ sums[0].cpu(1): 8 → 6 (-2)
~ tasks[300].slots[1]: 2 → 9 (+7)
+ tasks[1000]: {slots: [4, 5, 6], next: NULL}
- tasks[2]: {slots: [0, 0, 0], next: NULL}
~ x.bss.counter: 5 → 1099511627776 (+1099511627771)
"
    );
    let with_addresses = old.diff(&new, true).unwrap().to_string();
    assert!(with_addresses.contains("~ tasks[300].next: 0x10 → 0x20\n"), "{with_addresses}");
    assert!(old.diff(&old, true).unwrap().changes.is_empty());
}

#[test]
fn maps_that_come_and_go_and_what_was_not_captured_are_told() {
    let (small, full) = (at(5, &[], [0, 0]), sample());
    let text = small.diff(&full, false).unwrap().to_string();
    assert!(text.contains("+ task_ctx: "), "{text}");
    assert!(text.contains("- x.bss: "), "{text}");
    let text = full.diff(&full, false).unwrap().to_string();
    assert_eq!(
        text,
        "\
? events: not all of it was captured before: maps of kind ringbuf cannot be decoded yet
? events: not all of it was captured after: maps of kind ringbuf cannot be decoded yet
? partial: not all of it was captured before: the time budget of the freeze ran out
? partial: not all of it was captured after: the time budget of the freeze ran out
"
    );
    let late = Snapshot::placeholder(meta("late"), "no");
    assert_eq!(small.diff(&late, false).unwrap_err().kind(), "PlaceholderSnapshot");
}

#[test]
fn the_kernels_state_is_compared_by_number_and_name() {
    let old = changed(|_| {});
    assert_eq!(old.diff(&changed(|_| {}), false).unwrap().to_string(), "");
    let new = changed(|machine| machine.detach());
    let text = old.diff(&new, false).unwrap().to_string();
    assert_eq!(
        text,
        "- dsqs[7]: dsq 7: 2 tasks [41, 42]\n\
         - dsqs[bypass:0]: dsq bypass:0: 0 tasks []\n\
         - dsqs[bypass:1]: dsq bypass:1: 0 tasks []\n\
         - dsqs[global]: dsq global: 0 tasks []\n\
         ~ sched.state: enabled → disabled\n"
    );
    let new = changed(|machine| {
        let system = Kva(machine.guest.address("psi_system"));
        machine.guest.write_u64(system.offset(at::PSI_TOTAL), 3_000_000);
        machine.guest.write_u64(system.offset(at::PSI_AVG), 1 << 11);
    });
    assert_eq!(
        old.diff(&new, false).unwrap().to_string(),
        "~ psi.io.some.avg10: 0.25 → 1.00\n~ psi.io.some.total: 1 → 3000 (+2999)\n"
    );
    let bare = sample();
    let text = bare.diff(&old, false).unwrap().to_string();
    assert!(text.ends_with("? the kernel's state: it was copied only after\n"), "{text}");
    let asked = made_up(true);
    assert_eq!(asked.diff(&old, false).unwrap().to_string(), "", "of bytes nothing is known");
    let text = asked.diff(&old, true).unwrap().to_string();
    assert!(text.starts_with("- kernel(\"jiffies_64\"): 0x08dbfeff"), "{text}");
}

/// A file may have as many programs of one name as it likes, and others of the names that these get.
#[test]
fn many_things_of_one_name_are_told_apart_quickly() {
    let with = |runs: u64| {
        let prog = |name: &str| ProgState {
            id: 1,
            name: name.to_owned(),
            kind: "tracing".to_owned(),
            maps: Vec::new(),
            runs: Some((runs, 0)),
            incomplete: None,
        };
        let mut progs = vec![prog("same"), prog("same"), prog("same] (2)"), prog("same")];
        progs.extend((0..50_000).map(|_| prog("many")));
        let kernel = KernelState { progs, ..KernelState::default() };
        Snapshot::with_kernel(Meta::default(), Vec::new(), Vec::new(), kernel)
    };
    let start = std::time::Instant::now();
    let diff = with(1).diff(&with(2), false).unwrap();
    // A search from the first for each would take a billion looks.
    assert!(start.elapsed() < std::time::Duration::from_secs(60));
    let paths: Vec<&str> = diff.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths.len(), 50_004);
    for path in ["[same].runs", "[same] (2).runs", "[same] (3).runs", "[many] (50000).runs"] {
        assert!(paths.contains(&format!("progs{path}").as_str()), "{path}");
    }
}
