//! What `examples/schedulers/fifo.bpf.c` leaves in memory, made by hand: the more often the
//! machine was frozen, the further its counters are.

use std::sync::Arc;

use crate::btf::testing::Builder;
use crate::snapshot::testing::{Object, Rows, beside_waiting_tasks, bytes, comm};
use crate::snapshot::{Meta, MissingStatsReason, Observation, Pause, Snapshot, Trigger};

/// A freeze of a machine with these workers and CPUs.
pub(super) struct Instant<'a> {
    pub(super) tag: &'a str,
    pub(super) phase: Option<String>,
    pub(super) step_index: u64,
    pub(super) elapsed_ms: u64,
    pub(super) pids: &'a [u32],
    pub(super) cpus: u32,
    pub(super) spread: bool,
    pub(super) slice_ns: u64,
    /// Whether there is the kernel's state, too: that of the made-up machine.
    pub(super) kernel: bool,
    /// What a monitor saw last.
    pub(super) monitor: Option<Box<Observation>>,
    /// What the scheduler told of itself.
    pub(super) told: Option<Result<serde_json::Value, MissingStatsReason>>,
}

/// The scheduler's memory at that instant, taken for that reason.
pub(super) fn snapshot_because(at: &Instant<'_>, trigger: Trigger) -> Arc<Snapshot> {
    let pause =
        Pause { total_us: 900, stop_us: 600, copy_us: 100, resume_us: 200, ..Pause::default() };
    let (tag, phase, step_index) = (at.tag.to_owned(), at.phase.clone(), at.step_index);
    let elapsed_ms = at.elapsed_ms;
    let (stats, monitor) = (at.told.clone().map(Box::new), at.monitor.clone());
    let meta = Meta {
        tag,
        elapsed_ms,
        pause,
        phase,
        step_index,
        trigger,
        stats,
        monitor,
        ..Meta::default()
    };
    match at.kernel {
        true => beside_waiting_tasks(meta, maps(at)),
        false => Snapshot::new(meta, maps(at), Vec::new()),
    }
}

/// The kernel's own scheduler leaves no maps.
pub(super) fn nothing(tag: &str) -> Arc<Snapshot> {
    Snapshot::new(Meta { tag: tag.to_owned(), ..Meta::default() }, Vec::new(), Vec::new())
}

fn maps(at: &Instant<'_>) -> Vec<crate::snapshot::CapturedMap> {
    let mut b = Builder::new();
    let u32_ = b.int("unsigned int", 4, false);
    let s32 = b.int("int", 4, true);
    let u64_ = b.int("unsigned long", 8, false);
    let bool_ = b.boolean("_Bool");
    let char_ = b.int("char", 1, true);
    let name = b.array(char_, 16);
    let runs = b.structure(
        "run_stats",
        24,
        &[("nr_runs", u64_, 0), ("total_ns", u64_, 64), ("last_ns", u64_, 128)],
    );
    let task = b.structure(
        "task_ctx",
        56,
        &[
            ("cookie", u64_, 0),
            ("cpu", s32, 64),
            ("weight", u32_, 96),
            ("comm", name, 128),
            ("runs", runs, 256),
        ],
    );
    let stats = b.structure(
        "cpu_stats",
        32,
        &[
            ("nr_enqueued", u64_, 0),
            ("nr_dispatched", u64_, 64),
            ("nr_running", u64_, 128),
            ("busy_ns", u64_, 192),
        ],
    );
    let bucket = b.structure("run_bucket", 16, &[("count", u64_, 0), ("total_ns", u64_, 64)]);
    let names = ["nr_enqueued", "nr_dispatched", "nr_select_local", "nr_running", "nr_stopping"];
    let vars: Vec<(u32, u32, u32)> =
        (0u32..).zip(names).map(|(i, name)| (b.var(name, u64_), i * 8, 8)).collect();
    let bss = b.datasec(".bss", 40, &vars);
    let tunables = [(b.var("slice_ns", u64_), 0, 8), (b.var("direct_local", bool_), 8, 1)];
    let rodata = b.datasec(".rodata", 16, &tunables);
    let mut object = Object { btf: Some(b.parse()), maps: Vec::new() };

    // Each CPU has counted this many; the common counters are ahead by one.
    let (n, cpus) = (10 + at.elapsed_ms, u64::from(at.cpus));
    let all = n * cpus + 1;
    let section = |bytes: Vec<u8>| Rows { values: vec![bytes], ..Rows::default() };
    object.map("fifo.bss", "array", (0, bss), section(bytes![all, all, 0u64, all, all]));
    object.map("fifo.rodata", "array", (0, rodata), section(bytes![at.slice_ns, 0u64]));
    let values = (0u32..).zip(at.pids).map(|(i, _)| {
        let cpu = if at.spread { i % at.cpus } else { 0 };
        let mut value = bytes![7u64, cpu, 100u32];
        value.extend(comm("worker"));
        value.extend(bytes![n, n * 5_000_000, 5_000_000u64]);
        value
    });
    let keys = Some(at.pids.iter().map(|pid| bytes![*pid]).collect());
    let tasks = Rows { keys, values: values.collect(), ..Rows::default() };
    object.map("task_ctx", "hash", (s32, task), tasks);
    object.map("run_hist", "array", (u32_, bucket), histogram(n));
    let per_cpu = |value: Vec<u8>| vec![Some(value); at.cpus as usize];
    let cpu_stats = vec![per_cpu(bytes![n, n, n, n * 4_000_000])];
    object.map(
        "cpu_stats",
        "percpu_array",
        (u32_, stats),
        Rows { cpus: Some(cpu_stats), ..Rows::default() },
    );
    let reasons = Rows {
        keys: Some(vec![bytes![1u32], bytes![2u32]]),
        cpus: Some(vec![per_cpu(bytes![n - 3]), per_cpu(bytes![3u64])]),
        ..Rows::default()
    };
    object.map("reasons", "percpu_hash", (u32_, u64_), reasons);
    object.maps
}

/// Runs of 1 to 2 ms, and a few twice as long.
fn histogram(n: u64) -> Rows {
    let buckets = (0u64..16).map(|i| match i {
        6 => bytes![n, n * 1_500_000],
        7 => bytes![3u64, 9_000_000u64],
        _ => bytes![0u64, 0u64],
    });
    Rows { values: buckets.collect(), ..Rows::default() }
}
