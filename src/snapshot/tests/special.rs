//! Timers, locks, lists, trees and kptrs in a map, and what they lead to.

use std::sync::Arc;

use serde_json::json;

use super::store::stored;
use super::text;
use crate::btf::Btf;
use crate::btf::testing::Builder;
use crate::snapshot::kernel::{CpuState, Extents, KernelState, ProgState};
use crate::snapshot::testing::{Object, Rows, bytes, comm, meta};
use crate::snapshot::{Entry, FieldKind, Snapshot, to_json};

const TIMER: u64 = 0xffff_8880_0001_0000;
const WORK: u64 = 0xffff_8880_0001_1000;
const BASE: u64 = 0xffff_8880_0001_2000;
const PROG: u64 = 0xffff_8880_0001_3000;
const AUX: u64 = 0xffff_8880_0001_4000;
const CODE: u64 = 0xffff_ffff_c000_0040;
const TASK: u64 = 0xffff_8880_0002_0000;
const MASK: u64 = 0xffff_8880_0002_1000;
const CGROUP: u64 = 0xffff_8880_0002_2000;
const KN: u64 = 0xffff_8880_0002_3000;
/// What begins with a per-CPU pointer.
const EACH: u64 = 0xffff_8880_0002_4000;
/// Objects, `OBJECT` bytes apart, and the heads of the list and of others.
const OBJECTS: u64 = 0xffff_8880_0003_0000;
const OBJECT: u64 = 0x100;
const HEAD: u64 = 0xffff_8880_0004_0000;
/// Where the nodes are in an object.
const LIST: u64 = 8;
const TREE: u64 = 32;

/// The members that are read of the kernel's structs.
fn kernel_types() -> Arc<Btf> {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let u64_ = b.int("unsigned long", 8, false);
    let bool_ = b.boolean("bool");
    let char_ = b.int("char", 1, true);
    let comm = b.array(char_, 16);
    let aux = b.structure("bpf_prog_aux", 4, &[("id", int, 0)]);
    let to_aux = b.ptr(aux);
    let prog = b.structure("bpf_prog", 8, &[("aux", to_aux, 0)]);
    let to_prog = b.ptr(prog);
    let cb = b.structure("bpf_async_cb", 16, &[("prog", to_prog, 0), ("callback_fn", u64_, 64)]);
    let base = b.structure("hrtimer_clock_base", 4, &[("clockid", int, 0)]);
    let to_base = b.ptr(base);
    let node = b.structure("timerqueue_node", 8, &[("expires", u64_, 0)]);
    let hrtimer = [("node", node, 0), ("base", to_base, 64), ("is_queued", bool_, 128)];
    let hrtimer = b.structure("hrtimer", 24, &hrtimer);
    b.structure("bpf_hrtimer", 40, &[("cb", cb, 0), ("timer", hrtimer, 128)]);
    let counter = b.structure("atomic_long_t", 8, &[("counter", u64_, 0)]);
    let work = b.structure("work_struct", 8, &[("data", counter, 0)]);
    b.structure("bpf_work", 24, &[("cb", cb, 0), ("work", work, 128)]);
    let list = b.structure("list_head", 16, &[("next", u64_, 0), ("prev", u64_, 64)]);
    b.structure("bpf_list_node_kern", 24, &[("list_head", list, 0), ("owner", u64_, 128)]);
    let rb = [("__rb_parent_color", u64_, 0), ("rb_right", u64_, 64), ("rb_left", u64_, 128)];
    let rb = b.structure("rb_node", 24, &rb);
    b.structure("bpf_rb_node_kern", 32, &[("rb_node", rb, 0), ("owner", u64_, 192)]);
    b.structure("task_struct", 24, &[("pid", int, 0), ("comm", comm, 64)]);
    let bits = b.array(u64_, 128);
    let cpumask = b.structure("cpumask", 1024, &[("bits", bits, 0)]);
    b.structure("bpf_cpumask", 1032, &[("cpumask", cpumask, 0), ("usage", int, 8192)]);
    let kn = b.structure("kernfs_node", 8, &[("id", u64_, 0)]);
    let to_kn = b.ptr(kn);
    b.structure("cgroup", 8, &[("kn", to_kn, 0)]);
    b.parse()
}

/// A value with one of each.
fn program(row: Vec<u8>) -> Object {
    let mut b = Builder::new();
    let int = b.int("unsigned int", 4, false);
    let u64_ = b.int("unsigned long", 8, false);
    let opaque = |b: &mut Builder, name: &str, words: u32| {
        let words_ = b.array(u64_, words);
        b.structure(name, 8 * words, &[("__opaque", words_, 0)])
    };
    let timer = opaque(&mut b, "bpf_timer", 2);
    let work = opaque(&mut b, "bpf_wq", 2);
    let head = opaque(&mut b, "bpf_list_head", 2);
    let root = opaque(&mut b, "bpf_rb_root", 2);
    let list_node = opaque(&mut b, "bpf_list_node", 3);
    let tree_node = opaque(&mut b, "bpf_rb_node", 4);
    let lock = b.structure("bpf_spin_lock", 4, &[("val", int, 0)]);
    let refcount = b.structure("bpf_refcount", 4, &[("__opaque", int, 0)]);
    let thing = [("x", u64_, 0), ("node", list_node, 64), ("rb", tree_node, 256)];
    let thing = b.structure("thing", 64, &thing);
    let mut tagged = |name: &str, tag: &str| {
        let fwd = if name == "thing" { thing } else { b.fwd(name, false) };
        let to = b.type_tag(tag, fwd);
        b.ptr(to)
    };
    let members = [
        ("timer", timer, 0),
        ("work", work, 128),
        ("lock", lock, 256),
        ("refs", refcount, 288),
        ("head", head, 320),
        ("root", root, 448),
        ("task", tagged("task_struct", "kptr"), 576),
        ("mask", tagged("bpf_cpumask", "kptr"), 640),
        ("group", tagged("cgroup", "kptr_untrusted"), 704),
        ("own", tagged("thing", "kptr"), 768),
        ("each", tagged("thing", "percpu_kptr"), 832),
    ];
    let value = b.structure("value", 112, &members);
    b.decl_tag("contains:thing:node", value, 4);
    b.decl_tag("contains:thing:rb", value, 5);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    o.map("queues", "array", (int, value), Rows { values: vec![row], ..Rows::default() });
    o
}

/// Memory as it is filled.
#[derive(Default)]
struct Filled {
    bytes: Vec<u8>,
    pieces: Vec<(u64, usize, usize)>,
}

impl Filled {
    fn put(&mut self, at: u64, bytes: Vec<u8>) {
        self.pieces.push((at, bytes.len(), self.bytes.len()));
        self.bytes.extend(bytes);
    }
}

fn object(n: u64) -> u64 {
    OBJECTS + n * OBJECT
}

/// Three objects, 10, 20, 30: linked in this order, and as a tree of which the second is the root.
fn objects(memory: &mut Filled, next_of_last: u64) {
    let list = |n: u64| object(n) + LIST;
    let tree = |n: u64| object(n) + TREE;
    for n in 0..3 {
        let next = if n == 2 { next_of_last } else { list(n + 1) };
        let prev = if n == 0 { HEAD } else { list(n - 1) };
        let (parent, right, left) = if n == 1 { (1, tree(2), tree(0)) } else { (tree(1), 0, 0) };
        let words = [10 * (n + 1), next, prev, HEAD, parent, right, left, HEAD + 16];
        memory.put(object(n), words.iter().flat_map(|word| word.to_le_bytes()).collect());
    }
}

fn snapshot_with(next_of_last: u64, lock: u32) -> Arc<Snapshot> {
    let (first, last) = (object(0) + LIST, object(2) + LIST);
    let mut row = bytes![TIMER, 0u64, WORK, 0u64, lock, 3u32, first, last];
    row.extend(bytes![object(1) + TREE, object(0) + TREE, TASK, MASK, CGROUP, object(1), EACH]);
    let mut memory = Filled::default();
    objects(&mut memory, next_of_last);
    memory.put(TIMER, bytes![PROG, CODE, 5_000_000_000u64, BASE, 1u64]);
    memory.put(WORK, bytes![PROG, CODE, 0xffff_8880_0000_0001u64]);
    memory.put(BASE, bytes![7i32]);
    memory.put(PROG, bytes![AUX]);
    memory.put(AUX, bytes![9i32]);
    memory.put(TASK, [bytes![42i32, 0i32], comm("worker")].concat());
    memory.put(MASK, bytes![0b1_0110u64]);
    memory.put(MASK + 1024, bytes![2i32]);
    memory.put(CGROUP, bytes![KN]);
    memory.put(KN, bytes![77u64]);
    memory.put(EACH, bytes![object(0)]);
    let prog = ProgState { id: 9, name: "fifo_init".into(), ..ProgState::default() };
    let kernel = KernelState {
        btf: Some(kernel_types()),
        memory: Extents::new(memory.bytes, memory.pieces),
        cpus: vec![CpuState { cpu: 4, ..CpuState::default() }],
        per_cpu: vec![Some(0), Some(OBJECT), None],
        cgroups: vec![(1, "/".into()), (77, "/lab/hot".into())],
        progs: vec![prog],
        code: vec![(CODE, CODE + 64, "bpf_prog_0123456789abcdef_on_tick".into())],
        ..KernelState::default()
    };
    Snapshot::with_kernel(meta("s"), program(row).maps, Vec::new(), kernel)
}

/// A snapshot with one of each.
pub(crate) fn snapshot() -> Arc<Snapshot> {
    snapshot_with(HEAD, 0)
}

fn entry(snap: &Arc<Snapshot>) -> Entry {
    snap.map("queues").unwrap().at(0).unwrap()
}

#[test]
fn timers_and_works_say_when_and_what() {
    let snap = snapshot();
    let entry = entry(&snap);
    let get = |path: &str| entry.get(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(get("timer.armed").as_bool(), Ok(true));
    assert_eq!(get("timer.expires_ns").as_u64(), Ok(5_000_000_000));
    assert_eq!(get("timer.clock").as_str().as_deref(), Ok("boottime"));
    assert_eq!(get("timer.callback").as_str().as_deref(), Ok("on_tick"));
    assert_eq!(get("timer.prog").as_str().as_deref(), Ok("fifo_init"));
    let members = ["initialized", "armed", "expires_ns", "clock", "callback", "prog"];
    assert_eq!(get("timer").members().unwrap(), members);
    assert_eq!(
        get("work").to_string(),
        "{initialized: true, queued: true, callback: \"on_tick\", prog: \"fifo_init\"}"
    );
    assert_eq!(get("refs.count").as_u64(), Ok(3));
    assert_eq!(get("lock.held").as_bool(), Ok(false));
    assert_eq!(get("lock.val").as_u64(), Ok(0), "what the program's types say is there, too");
    assert!(entry.value().unwrap().torn().is_empty());
    let error = text(entry.get("timer.armd"));
    assert!(error.contains("\"armd\"") && error.contains("armed"), "{error}");
}

#[test]
fn what_was_never_set_up_is_shown_so_and_what_is_missing_is_told() {
    let row = vec![0; 112];
    let kernel = || KernelState { btf: Some(kernel_types()), ..KernelState::default() };
    let snap = Snapshot::with_kernel(meta("s"), program(row).maps, Vec::new(), kernel());
    let e = entry(&snap);
    assert_eq!(e.get("timer.initialized").unwrap().as_bool(), Ok(false));
    assert_eq!(e.get("timer.armed").unwrap().as_bool(), Ok(false));
    assert_eq!(e.get("timer.callback").unwrap().as_str().as_deref(), Ok(""));
    assert_eq!(e.get("head").unwrap().to_string(), "[]");
    assert_eq!(e.get("root").unwrap().to_string(), "[]");
    assert_eq!(e.get("task").unwrap().to_string(), "NULL");
    let mut row = vec![0; 112];
    row[..8].copy_from_slice(&TIMER.to_le_bytes());
    row[40..48].copy_from_slice(&object(0).to_le_bytes());
    let snap = Snapshot::with_kernel(meta("s"), program(row).maps, Vec::new(), kernel());
    let e = entry(&snap);
    let error = text(e.get("timer.armed"));
    assert!(error.contains("was not copied"), "{error}");
    let error = text(e.get("head").unwrap().as_array());
    assert!(error.contains("was not copied"), "{error}");
    let shown = e.get("head").unwrap().to_string();
    assert!(shown.starts_with("[.. the rest is missing: "), "{shown}");
    assert!(e.get("head").unwrap().torn()[0].contains("was not copied"));
}

#[test]
fn lists_and_trees_are_their_objects_in_order() {
    let snap = snapshot();
    let entry = entry(&snap);
    for path in ["head", "root"] {
        let list = entry.get(path).unwrap();
        assert_eq!(list.kind(), FieldKind::Array, "{path}");
        let all = list.as_array().unwrap();
        let x: Vec<u64> = all.iter().map(|f| f.get("x").unwrap().as_u64().unwrap()).collect();
        assert_eq!(x, [10, 20, 30], "{path}");
        assert!(list.torn().is_empty(), "{path}: {:?}", list.torn());
        let second = entry.get(&format!("{path}[1].x")).unwrap();
        assert_eq!(second.as_u64(), Ok(20));
        assert!(second.origin().to_string().contains(&format!("{path}[1].x")));
        assert_eq!(
            text(entry.get(&format!("{path}[3].x"))),
            format!("\"queues: {path}\" has no index 3: it has 3, from 0 to 2")
        );
        assert_eq!(to_json(&list)[2]["x"], json!(30));
    }
    let dump = entry.dump();
    for line in ["head (struct bpf_list_head)", "root (struct bpf_rb_root)", "[2]  {x: 30, "] {
        assert!(dump.contains(line), "{line}: {dump}");
    }
}

#[test]
fn what_contradicts_itself_is_told_and_ends() {
    // The last one leads back to the second.
    let snap = snapshot_with(object(1) + LIST, 1);
    let entry = entry(&snap);
    assert_eq!(entry.get("head[2].x").unwrap().as_u64(), Ok(30));
    let error = text(entry.get("head").unwrap().as_array());
    assert!(error.ends_with("its list comes back to [3] without an end"), "{error}");
    assert!(to_json(&entry.get("head").unwrap()).is_string(), "not an array that looks whole");
    assert_eq!(entry.value().unwrap().torn(), ["the lock at byte 32 of it is held"]);
    assert_eq!(entry.get("lock.held").unwrap().as_bool(), Ok(true));
    assert_eq!(entry.get("head[0].node.linked").unwrap().as_bool(), Ok(true));
    // The last one is not in the list any more: its owner is another.
    let snap = snapshot_with(HEAD, 0);
    let head =
        |snap: &Arc<Snapshot>| snap.map("queues").unwrap().at(0).unwrap().get("head").unwrap();
    assert!(head(&snap).torn().is_empty());
    let mut memory = Filled::default();
    objects(&mut memory, HEAD);
    let owner = (2 * 64 + 24) as usize;
    memory.bytes[owner..owner + 8].copy_from_slice(&[0; 8]);
    let mut row = vec![0; 112];
    row[40..56].copy_from_slice(&bytes![object(0) + LIST, object(2) + LIST]);
    let kernel = KernelState {
        btf: Some(kernel_types()),
        memory: Extents::new(memory.bytes, memory.pieces),
        ..KernelState::default()
    };
    let snap = Snapshot::with_kernel(meta("s"), program(row).maps, Vec::new(), kernel);
    assert_eq!(head(&snap).torn(), ["[2] does not belong to the list: it is being moved"]);
    assert_eq!(head(&snap).as_array().unwrap().len(), 3);
}

#[test]
fn an_object_behind_those_that_are_handed_out_is_no_wrong_index() {
    const MANY: u64 = 0xffff_8880_1000_0000;
    let (node, count) = (|n: u64| MANY + n * 64 + LIST, 65_537);
    let mut bytes = Vec::new();
    for n in 0..count {
        let next = if n == count - 1 { HEAD } else { node(n + 1) };
        let prev = if n == 0 { HEAD } else { node(n - 1) };
        bytes.extend(bytes![n, next, prev, HEAD, 0u64, 0u64, 0u64, 0u64]);
    }
    let mut row = vec![0; 112];
    row[40..56].copy_from_slice(&bytes![node(0), node(count - 1)]);
    let pieces = vec![(MANY, bytes.len(), 0)];
    let kernel = KernelState {
        btf: Some(kernel_types()),
        memory: Extents::new(bytes, pieces),
        ..KernelState::default()
    };
    let snap = Snapshot::with_kernel(meta("s"), program(row).maps, Vec::new(), kernel);
    let error = entry(&snap).get("head[70000].x").unwrap_err();
    assert_eq!(error.kind(), "MapRenderIncomplete");
    let error = error.to_string();
    assert!(error.contains("[70000] is behind the 65536 objects"), "{error}");
}

#[test]
fn kptrs_say_what_they_lead_to() {
    let snap = snapshot();
    let entry = entry(&snap);
    let shown = |path: &str| entry.get(path).unwrap().to_string();
    assert_eq!(shown("task"), format!("{TASK:#x} (task 42 \"worker\")"));
    assert_eq!(shown("mask"), format!("{MASK:#x} (CPUs 1-2,4)"));
    assert_eq!(shown("group"), format!("{CGROUP:#x} (/lab/hot)"));
    let own = shown("own");
    assert!(own.starts_with(&format!("{:#x} ({{x: 20, ", object(1))), "{own}");
    assert_eq!(entry.get("mask").unwrap().as_cpus().as_deref(), Ok("1-2,4"));
    assert_eq!(entry.get("mask.usage").unwrap().as_u64(), Ok(2));
    assert_eq!(entry.get("task.comm").unwrap().as_str().as_deref(), Ok("worker"));
    assert_eq!(entry.get("own.x").unwrap().as_u64(), Ok(20));
    let each = entry.get("each").unwrap();
    assert_eq!(each.on_cpu(0).unwrap().get("x").unwrap().as_u64(), Ok(10));
    assert_eq!(each.on_cpu(1).unwrap().get("x").unwrap().as_u64(), Ok(20));
    for cpu in [2, 3, -1] {
        assert!(text(each.on_cpu(cpu)).contains(&format!("CPU {cpu}")), "{cpu}");
    }
    assert!(text(entry.get("own").unwrap().on_cpu(0)).contains("a per-CPU pointer"));
}

#[test]
fn a_file_shows_the_same() {
    let snap = snapshot();
    let file = stored(&snap);
    assert_eq!(entry(&file).dump(), entry(&snap).dump());
    assert_eq!(
        entry(&file).get("timer").unwrap().to_string(),
        entry(&snap).get("timer").unwrap().to_string()
    );
    let all = |snap: &Arc<Snapshot>| {
        serde_json::to_value(snap.map("queues").unwrap().entries_as_json()).unwrap()
    };
    assert_eq!(all(&file), all(&snap));
    assert_eq!(all(&snap), json!([{ "value": to_json(&entry(&snap).value().unwrap()) }]));
    assert_eq!(all(&snap)[0]["value"]["timer"]["callback"], json!("on_tick"));
}
