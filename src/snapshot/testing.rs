//! A snapshot made by hand, for the tests of the model and of its script face.
//!
//! It looks like what a small scheduler leaves behind: sections, an array, hashes with a number,
//! a struct and text as keys, per-CPU maps, a map without types, one that cannot be decoded.

use std::sync::Arc;

use super::{CapturedMap, Contents, Detail, Details, MapAttrs, Meta, Pause, Snapshot};
use crate::btf::testing::Builder;
use crate::btf::{Basics, Btf, TypeId};

/// Rows written down by a test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) keys: Option<Vec<Vec<u8>>>,
    pub(crate) values: Vec<Vec<u8>>,
    /// By row, then by CPU.
    pub(crate) cpus: Option<Vec<Vec<Option<Vec<u8>>>>>,
    pub(crate) torn: Vec<String>,
    pub(crate) torn_rows: Vec<(usize, Vec<String>)>,
    pub(crate) incomplete: Option<String>,
    pub(crate) details: Details,
    pub(crate) row_details: Vec<(usize, Details)>,
}

impl Contents for Rows {
    fn rows(&self) -> usize {
        self.cpus.as_ref().map_or(self.values.len(), Vec::len)
    }

    fn key(&self, row: usize) -> Option<&[u8]> {
        self.keys.as_ref()?.get(row).map(Vec::as_slice)
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        if self.cpus.is_some() {
            return None;
        }
        self.values.get(row).map(Vec::as_slice)
    }

    fn cpus(&self) -> Option<usize> {
        self.cpus.as_ref().map(|rows| rows.first().map_or(4, Vec::len))
    }

    fn cpu_value(&self, row: usize, cpu: usize) -> Option<&[u8]> {
        self.cpus.as_ref()?.get(row)?.get(cpu)?.as_deref()
    }

    fn torn(&self) -> &[String] {
        &self.torn
    }

    fn torn_row(&self, row: usize) -> &[String] {
        self.torn_rows.iter().find(|(r, _)| *r == row).map_or(&[], |(_, why)| why)
    }

    fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    fn details(&self) -> &[(String, Detail)] {
        &self.details
    }

    fn row_details(&self, row: usize) -> &[(String, Detail)] {
        let found = self.row_details.iter().find(|(r, _)| *r == row);
        found.map_or(&[], |(_, facts)| facts)
    }
}

/// Captured maps of one object.
pub(crate) struct Object {
    pub(crate) btf: Option<Arc<Btf>>,
    pub(crate) maps: Vec<CapturedMap>,
}

impl Object {
    /// Adds a map; sizes and limits are taken from the rows where there are any.
    pub(crate) fn map(
        &mut self,
        name: &str,
        kind: &str,
        (key_type, value_type): (TypeId, TypeId),
        rows: Rows,
    ) -> &mut Self {
        let sizes = |id: TypeId| self.btf.as_ref().filter(|_| id != 0).and_then(|b| b.size_of(id));
        let key_size = match rows.keys.as_ref().and_then(|keys| keys.first()) {
            Some(key) => key.len() as u64,
            None => sizes(key_type).unwrap_or(4),
        };
        let id = self.maps.len() as u32 + 1;
        let attrs = MapAttrs {
            id,
            kva: 0xffff_8880_0000_1000 + u64::from(id) * 0x400,
            name: name.chars().take(15).collect(),
            full_name: (name.len() > 15).then(|| name.to_owned()),
            kind: kind.to_owned(),
            key_size: key_size as u32,
            value_size: rows.values.first().map_or(8, Vec::len) as u32,
            max_entries: rows.rows().max(1) as u32,
            flags: 0,
            section: None,
            btf: self.btf.clone(),
            btf_error: None,
            key_type,
            value_type,
            casts: Vec::new(),
        };
        self.maps.push(CapturedMap::new(attrs, Box::new(move || Box::new(rows))));
        self
    }
}

/// Little-endian bytes of numbers, each with its width.
macro_rules! bytes {
    ($($n:expr),* $(,)?) => {{
        let mut out: Vec<u8> = Vec::new();
        $(out.extend_from_slice(&$n.to_le_bytes());)*
        out
    }};
}
pub(crate) use bytes;

/// Text in an array of 16 characters.
pub(crate) fn comm(text: &str) -> Vec<u8> {
    let mut out = text.as_bytes().to_vec();
    out.resize(16, 0);
    out
}

/// Ids of the types that the sample's maps have.
pub(crate) struct Types {
    pub(crate) btf: Arc<Btf>,
    pub(crate) u32_: TypeId,
    pub(crate) u64_: TypeId,
    pub(crate) task: TypeId,
    pub(crate) pair: TypeId,
    pub(crate) comm: TypeId,
    pub(crate) stats: TypeId,
    pub(crate) bss: TypeId,
    pub(crate) rodata: TypeId,
    pub(crate) state: TypeId,
}

/// The types of the sample scheduler.
pub(crate) fn types() -> Types {
    let mut b = Builder::new();
    let u8_ = b.int("unsigned char", 1, false);
    let u16_ = b.int("unsigned short", 2, false);
    let uint = b.int("unsigned int", 4, false);
    let u32_ = b.typedef("u32", uint);
    let s32 = b.int("int", 4, true);
    let ulong = b.int("unsigned long", 8, false);
    let u64_ = b.typedef("u64", ulong);
    let s64 = b.int("long", 8, true);
    let char_ = b.int("char", 1, true);
    let bool_ = b.boolean("_Bool");
    let f32_ = b.float("float", 4);
    let f64_ = b.float("double", 8);
    let comm = b.array(char_, 16);
    let state = b.enumeration(
        "task_state",
        4,
        true,
        &[("IDLE", 0), ("QUEUED", 1), ("RUNNING", 2), ("GONE", -1)],
    );
    let flags = b.enum64("dsq_flags", false, &[("NONE", 0), ("BUILTIN", 1 << 63)]);
    let inner = b.structure("inner", 16, &[("weight", u32_, 0), ("vtime", s64, 64)]);
    let fifo = b.structure("fifo", 8, &[("head", u32_, 0), ("len", u32_, 32)]);
    let fifos = b.array(fifo, 3);
    let slots = b.array(u16_, 4);
    let octets = b.array(u8_, 4);
    let anon = b.union("", 4, &[("word", u32_, 0), ("octets", octets, 0)]);
    let bits =
        b.bitfields("bits", 4, &[("lo", u32_, 0, 3), ("mid", s32, 3, 5), ("hi", u32_, 8, 24)]);
    let next = b.next_id();
    let task_ptr = b.ptr(next + 1);
    // 0 ctx, 16 big, 24 nice, 28 running, 32 comm, 48 state, 56 flags, 64 ratio, 72 exact,
    // 80 word/octets, 84 bits, 88 slots, 96 fifos, 120 next
    let task = b.structure(
        "task_ctx",
        128,
        &[
            ("ctx", inner, 0),
            ("big", u64_, 16 * 8),
            ("nice", s32, 24 * 8),
            ("running", bool_, 28 * 8),
            ("comm", comm, 32 * 8),
            ("state", state, 48 * 8),
            ("flags", flags, 56 * 8),
            ("ratio", f32_, 64 * 8),
            ("exact", f64_, 72 * 8),
            ("", anon, 80 * 8),
            ("bits", bits, 84 * 8),
            ("slots", slots, 88 * 8),
            ("fifos", fifos, 96 * 8),
            ("next", task_ptr, 120 * 8),
        ],
    );
    let pair = b.structure("pair", 16, &[("pid", u32_, 0), ("dsq", u64_, 64)]);
    let stats = b.structure("cpu_stats", 16, &[("nr", u64_, 0), ("worst", s64, 64)]);
    let vars = [
        b.var("nr_enqueued", u64_),
        b.var("nr_dispatched", u64_),
        b.var("totals", stats),
        b.var("probe.____fmt", comm),
    ];
    let bss = b.datasec(
        ".bss",
        48,
        &[(vars[0], 0, 8), (vars[1], 8, 8), (vars[2], 16, 16), (vars[3], 32, 16)],
    );
    let slice = b.var("slice_ns", u64_);
    let rodata = b.datasec(".rodata", 8, &[(slice, 0, 8)]);
    Types { btf: b.parse(), u32_, u64_, task, pair, comm, stats, bss, rodata, state }
}

/// A value of `struct task_ctx`.
pub(crate) fn task(weight: u32, vtime: i64, state: i32, name: &str) -> Vec<u8> {
    let mut v = bytes![weight, 0u32, vtime, u64::MAX - 1, -20i32, 1u32];
    v.extend(comm(name));
    v.extend(bytes![state, 0u32, 1u64 << 63, 1.5f32, 0u32, 0.25f64, 0x0403_0201u32]);
    // lo 5, mid -2, hi 0xabcdef
    v.extend(bytes![0xabcd_ef00u32 | (0b11110 << 3) | 5]);
    v.extend(bytes![10u16, 20u16, 30u16, 40u16]);
    v.extend(bytes![1u32, 2u32, 3u32, 4u32, 5u32, 6u32, 0xffff_8880_0000_2000u64]);
    assert_eq!(v.len(), 128);
    v
}

/// The sample's maps.
pub(crate) fn object() -> Object {
    let t = types();
    let mut o = Object { btf: Some(t.btf.clone()), maps: Vec::new() };
    let mut bss = bytes![100u64, 90u64, 7u64, -3i64];
    bss.extend(comm("hello"));
    let section = |bytes: Vec<u8>| Rows { values: vec![bytes], ..Rows::default() };
    let hash = |rows: Vec<(Vec<u8>, Vec<u8>)>| {
        let (keys, values) = rows.into_iter().unzip();
        Rows { keys: Some(keys), values, ..Rows::default() }
    };
    o.map("fifo.bss", "array", (0, t.bss), section(bss));
    o.map("fifo.rodata", "array", (0, t.rodata), section(bytes![5_000_000u64]));
    let numbers = (0..5u64).map(|n| bytes![n * n]).collect();
    o.map("squares", "array", (t.u32_, t.u64_), Rows { values: numbers, ..Rows::default() });
    let tasks = [(1002u32, 200u32, 2, "fast"), (7, 100, 1, "slow"), (1001, 1, 0, "idle")];
    let mut rows = hash(
        tasks
            .map(|(pid, w, st, name)| (bytes![pid], task(w, i64::from(w) * -10, st, name)))
            .to_vec(),
    );
    rows.torn_rows = vec![(1, vec!["its bucket was locked".to_owned()])];
    o.map("task_ctx", "hash", (t.u32_, t.task), rows);
    // The padding of the first key is not zero.
    let pairs = vec![
        (bytes![1u32, 0xdead_beefu32, 10u64], bytes![11u64]),
        (bytes![2u32, 0u32, 20u64], bytes![22u64]),
    ];
    o.map("pairs", "hash", (t.pair, t.u64_), hash(pairs));
    let named = ["zeta", "alpha"].map(|n| (comm(n), bytes![n.len() as u64])).to_vec();
    o.map("by_name_of_the_comm", "lru_hash", (t.comm, t.u64_), hash(named));
    let stats = |nr: u64, worst: i64| Some(bytes![nr, worst]);
    let cpus = vec![
        vec![stats(1, -5), stats(20, 4), stats(300, -1), stats(4000, 2)],
        vec![stats(1, 1), None, stats(1, 1), stats(1, 1)],
    ];
    let per_cpu = |cpus| Rows { cpus: Some(cpus), ..Rows::default() };
    o.map("cpu_stats", "percpu_array", (t.u32_, t.stats), per_cpu(cpus));
    let mut per_cpu_hash = per_cpu(vec![(1..=4u64).map(|n| Some(bytes![n])).collect()]);
    per_cpu_hash.keys = Some(vec![bytes![2u32]]);
    o.map("cpu_hits", "percpu_hash", (t.u32_, t.u64_), per_cpu_hash);
    o.map("untyped", "hash", (0, 0), hash(vec![(bytes![1u32], bytes![0x1122_3344u32])]));
    let unreadable = "maps of kind ringbuf cannot be decoded yet".to_owned();
    o.map("events", "ringbuf", (0, 0), Rows { incomplete: Some(unreadable), ..Rows::default() });
    let mut partial = hash(vec![(bytes![5u32], bytes![50u64])]);
    partial.incomplete = Some("the time budget of the freeze ran out".to_owned());
    partial.torn = vec!["the map was being resized".to_owned()];
    o.map("partial", "hash", (t.u32_, t.u64_), partial);
    o.map("empty", "hash", (t.u32_, t.u64_), hash(vec![]));
    o
}

/// When the sample was taken.
pub(crate) fn meta(tag: &str) -> Meta {
    Meta {
        tag: tag.to_owned(),
        elapsed_ms: 4012,
        pause: Pause {
            total_us: 1234,
            stop_us: 690,
            copy_us: 180,
            resume_us: 364,
            ..Pause::default()
        },
        phase: Some("wide".to_owned()),
        ..Meta::default()
    }
}

/// The sample.
pub(crate) fn sample() -> Arc<Snapshot> {
    Snapshot::new(meta("end"), object().maps, Vec::new())
}

/// A capture of the made-up machine of `introspect/sched/testing.rs`.
pub(crate) fn made_up(scx: bool) -> Arc<Snapshot> {
    use super::CaptureRequest;
    let kernel = ["jiffies_64", "scx_root"].map(str::to_owned).to_vec();
    made_up_as(scx, &CaptureRequest { kernel, ..CaptureRequest::default() })
}

/// The same with all of its memory.
pub(crate) fn made_up_ram() -> Arc<Snapshot> {
    use super::{CaptureRequest, MAX_RAM};
    made_up_as(true, &CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() })
}

/// A capture of the made-up machine as it was asked for.
pub(crate) fn made_up_as(scx: bool, request: &super::CaptureRequest) -> Arc<Snapshot> {
    let raw = made_up_capturer(scx).capture(request).expect("it can be captured");
    raw.finish(meta("end"))
}

/// What captures the made-up machine.
pub(crate) fn made_up_capturer(scx: bool) -> super::Capturer {
    super::Capturer::open(made_up_memory(scx)).expect("the made-up kernel can be read")
}

/// The memory of the made-up machine.
pub(crate) fn made_up_memory(scx: bool) -> Arc<dyn crate::mem::GuestMem> {
    crate::introspect::made_up_sched::Machine::new(scx).guest.mem()
}

/// Maps that a test wrote down, beside the kernel's state of the made-up machine in which tasks
/// wait.
pub(crate) fn beside_waiting_tasks(meta: Meta, maps: Vec<CapturedMap>) -> Arc<Snapshot> {
    use super::{CaptureRequest, Capturer, State};
    let machine = crate::introspect::made_up_sched::Machine::new(true).waiting();
    let capturer = Capturer::open(machine.guest.mem()).expect("the made-up kernel can be read");
    let raw = capturer.capture(&CaptureRequest::default()).expect("it can be captured");
    let captured = Arc::into_inner(raw.finish(meta)).expect("nobody else has it");
    let State::Captured { torn, kernel, .. } = captured.contents else {
        panic!("it was captured");
    };
    Snapshot::of(captured.meta, State::Captured { maps, torn, kernel })
}

/// A capture of the made-up machine after `change`.
pub(crate) fn changed(
    change: impl FnOnce(&mut crate::introspect::made_up_sched::Machine),
) -> Arc<Snapshot> {
    let mut machine = crate::introspect::made_up_sched::Machine::new(true);
    change(&mut machine);
    let capturer = super::Capturer::open(machine.guest.mem()).expect("it can be read");
    let raw = capturer.capture(&super::CaptureRequest::default()).expect("it can be captured");
    raw.finish(meta("end"))
}

/// A map whose keys are text and whose values have different lengths, with facts about it and one
/// of its entries.
pub(crate) fn texts() -> Arc<Snapshot> {
    let types = Basics::new(None);
    let mut object = Object { btf: Some(types.btf), maps: Vec::new() };
    let fact = |name: &str, text: &str| (name.to_owned(), Detail::Text(text.into()));
    let rows = Rows {
        keys: Some(["/b", "/a/long/one", "/"].map(|key| key.as_bytes().to_vec()).to_vec()),
        values: vec![vec![1, 2, 3], vec![], vec![4; 9]],
        torn_rows: vec![(1, vec!["it is being freed".into()])],
        details: vec![("position".into(), Detail::Number(u64::MAX)), fact("at", "a place")],
        row_details: vec![(2, vec![fact("id", "one")])],
        ..Rows::default()
    };
    object.map("texts", "cgrp_storage", (types.text, 0), rows);
    Snapshot::new(meta("end"), object.maps, Vec::new())
}
