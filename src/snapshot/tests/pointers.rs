//! Pointers in maps: by whose types they are followed, and which are not.

use std::sync::Arc;

use super::text;
use crate::btf::Btf;
use crate::btf::testing::Builder;
use crate::snapshot::kernel::{CpuState, Extents, KernelState};
use crate::snapshot::testing::{Object, Rows, bytes, meta};
use crate::snapshot::{Entry, Snapshot};

/// Where the kernel has a `struct task_struct`, and the scheduler an object of its own.
const TASK: u64 = 0xffff_8880_0000_1000;
const NODE: u64 = 0xffff_8880_0000_2000;

/// The running kernel's types: `pid` lies at 8, and a `struct node` that is no scheduler's.
fn kernel_types() -> Arc<Btf> {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let u64_ = b.int("unsigned long", 8, false);
    b.structure("task_struct", 16, &[("state", u64_, 0), ("pid", int, 64), ("tgid", int, 96)]);
    b.structure("node", 8, &[("dev", int, 0), ("caches", int, 32)]);
    b.parse()
}

/// A scheduler whose `struct task_struct` is another kernel's, with `pid` at 0.
fn snapshot() -> Arc<Snapshot> {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let u64_ = b.int("unsigned long", 8, false);
    let bits = b.array(u64_, 2);
    let cpumask = b.structure("cpumask", 16, &[("bits", bits, 0)]);
    let cpumask_t = b.typedef("cpumask_t", cpumask);
    let flags = b.enumeration("flags", 4, false, &[("ONE", 1), ("TWO", 2)]);
    let task = b.structure(
        "task_struct",
        24,
        &[("pid", int, 0), ("tgid", int, 32), ("state", u64_, 64), ("gone", u64_, 128)],
    );
    let variant = b.structure("task_struct___old", 8, &[("gone", u64_, 0)]);
    let fwd = b.fwd("task_struct", false);
    let kptr = b.type_tag("kptr", fwd);
    // Two pointers come before the struct.
    let node = b.next_id() + 2;
    let to_node = b.ptr(node);
    let to_task = b.ptr(task);
    let own = b.structure(
        "node",
        24,
        &[("value", u64_, 0), ("next", to_node, 64), ("task", to_task, 128)],
    );
    assert_eq!(own, node);
    let mut pointers = vec![("plain", to_task), ("variant", b.ptr(variant)), ("kptr", b.ptr(kptr))];
    pointers.push(("node", to_node));
    let tagged =
        [("tagged", "kptr"), ("arena", "arena"), ("user", "user"), ("each", "percpu_kptr")];
    for (name, tag) in tagged {
        let to = b.type_tag(tag, own);
        pointers.push((name, b.ptr(to)));
    }
    let placed = pointers.iter().zip((0..).step_by(64));
    let mut members: Vec<(&str, u32, u32)> = placed.map(|((n, ty), bit)| (*n, *ty, bit)).collect();
    members.extend([("number", u64_, 512), ("mask", cpumask_t, 576), ("flags", flags, 704)]);
    let value = b.structure("value", 96, &members);
    let mut row = bytes![TASK, TASK, TASK];
    row.extend([NODE; 6].iter().flat_map(|at| at.to_le_bytes()));
    row.extend(bytes![0b1_0000_1111u64, 0u64, 3u32, 0u32]);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    o.map("m", "array", (int, value), Rows { values: vec![row], ..Rows::default() });
    let mut held = bytes![7u64, 42i32, 40i32];
    held.extend(bytes![99u64, NODE, TASK]);
    let kernel = KernelState {
        btf: Some(kernel_types()),
        memory: Extents::new(held, vec![(TASK, 16, 0), (NODE, 24, 16)]),
        cpus: vec![CpuState { cpu: 9, ..CpuState::default() }],
        ..KernelState::default()
    };
    Snapshot::with_kernel(meta("p"), o.maps, Vec::new(), kernel)
}

fn entry() -> Entry {
    snapshot().map("m").unwrap().at(0).unwrap()
}

#[test]
fn the_running_kernels_types_count_for_its_objects() {
    let entry = entry();
    for path in ["plain", "variant", "kptr"] {
        let pid = entry.get(&format!("{path}.pid")).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(pid.as_i64(), Ok(42), "{path}");
        assert_eq!(entry.get(&format!("{path}.tgid")).unwrap().as_i64(), Ok(40), "{path}");
        assert_eq!(entry.get(path).unwrap().points_to().as_deref(), Some("struct task_struct"));
    }
    let error = text(entry.get("plain.gone"));
    assert!(error.contains("no member \"gone\"") && error.ends_with("state, pid, tgid"), "{error}");
}

#[test]
fn an_object_of_the_schedulers_own_is_read_by_its_types() {
    let entry = entry();
    for path in ["node", "arena"] {
        assert_eq!(entry.get(&format!("{path}.value")).unwrap().as_u64(), Ok(99), "{path}");
        // And out of it into the kernel's again, by the kernel's types.
        assert_eq!(entry.get(&format!("{path}.task.pid")).unwrap().as_i64(), Ok(42), "{path}");
        assert!(entry.get(&format!("{path}.dev")).is_err(), "{path}");
    }
    let node = entry.get("number").unwrap().as_ptr("struct node").unwrap();
    assert_eq!(node.get("next.next.value").unwrap().as_u64(), Ok(99));
    assert_eq!(
        node.get("task").unwrap().as_ptr("struct task_struct").unwrap().members().unwrap(),
        ["state", "pid", "tgid"]
    );
    // The verifier takes a kptr for the kernel's type whenever the kernel has one of that name.
    assert_eq!(entry.get("tagged.dev").unwrap().as_i64(), Ok(99));
}

#[test]
fn a_cycle_ends() {
    let entry = entry();
    let path = |hops: usize| format!("node{}.value", ".next".repeat(hops - 1));
    assert_eq!(entry.get(&path(16)).unwrap().as_u64(), Ok(99));
    let error = text(entry.get(&path(17)));
    assert!(error.contains("at most 16 pointers in a path"), "{error}");
}

#[test]
fn what_is_no_address_of_the_kernels_is_not_followed() {
    let entry = entry();
    let error = text(entry.get("user.value"));
    assert!(error.contains("\"user\"") && error.contains("a process's memory"), "{error}");
    let error = text(entry.get("each.value"));
    assert!(error.contains("\"each\"") && error.contains("a per-CPU pointer"), "{error}");
}

#[test]
fn masks_and_flags_are_shown_as_such() {
    let dump = entry().dump();
    let shows = |label: &str, text: &str| {
        let line =
            |line: &str| line.split_once("  ").map(|(l, t)| (l.to_owned(), t.trim().to_owned()));
        dump.lines().any(|l| line(l.trim()) == Some((label.to_owned(), text.to_owned())))
    };
    assert!(shows("mask", "CPUs 0-3,8"), "{dump}");
    assert!(shows("flags", "ONE|TWO (0x3)"), "{dump}");
}

/// A scheduler whose list lies in an arena, across two pages.
#[test]
fn pointers_into_an_arena_lead_to_its_pages() {
    const START: u64 = 0x7f12_0000_5000;
    let mut b = Builder::new();
    let u64_ = b.int("unsigned long", 8, false);
    let node = b.next_id() + 2;
    let arena = b.type_tag("arena", node);
    let next = b.ptr(arena);
    let made = b.structure("thing", 16, &[("value", u64_, 0), ("next", next, 64)]);
    assert_eq!(made, node);
    let first = b.var("first", next);
    let number = b.var("number", u64_);
    let crossing = b.var("crossing", u64_);
    let bss = b.datasec(".bss", 24, &[(first, 0, 8), (number, 8, 8), (crossing, 16, 8)]);
    let page = |at: usize, value: u64, next: u64| {
        let mut page = vec![0; 4096];
        page[at..at + 16].copy_from_slice(&bytes![value, next]);
        page
    };
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    let section = bytes![START + 0x10, (START + 0x2ff0) & 0xffff_ffff, START + 0x2ff8];
    o.map("a.bss", "array", (0, bss), Rows { values: vec![section], ..Rows::default() });
    let pages = Rows {
        keys: Some(vec![bytes![START], bytes![START + 0x2000], bytes![START + 0x3000]]),
        values: vec![
            page(0x10, 7, (START + 0x2ff0) & 0xffff_ffff),
            page(0xff0, 8, START + 0x1000),
            page(0, START + 0x10, START),
        ],
        ..Rows::default()
    };
    // To the kernel it has no keys.
    o.map("heap", "arena", (u64_, 0), pages).maps[1].attrs.key_size = 0;
    let kernel = KernelState { btf: Some(kernel_types()), ..KernelState::default() };
    let snap = Snapshot::with_kernel(meta("p"), o.maps, Vec::new(), kernel);
    let number = |path: &str| snap.global(path).unwrap().as_u64().unwrap();
    assert_eq!((number("first.value"), number("first.next.value")), (7, 8));
    let origin = snap.global("first.next.value").unwrap().origin().to_string();
    let page = format!("heap[{}].first.next.value ", START + 0x2000);
    assert!(origin.starts_with(&page), "{origin}");
    let error = text(snap.global("first.next.next.value"));
    assert!(error.contains("was not copied"), "a page that is not there: {error}");
    let cast = snap.global("number").unwrap().as_ptr("struct thing").unwrap();
    assert_eq!(cast.get("value").unwrap().as_u64(), Ok(8));
    let page = snap.map("heap").unwrap().at(0).unwrap();
    assert_eq!(page.as_type("struct thing").unwrap().get("value").unwrap().as_u64(), Ok(0));
    let error = text(page.as_type("struct thingy"));
    assert!(error.contains("struct thingy"), "{error}");
    // One whose second half lies in the next page.
    let crossing = snap.global("crossing").unwrap().as_ptr("struct thing").unwrap();
    let number = |path: &str| crossing.get(path).unwrap().as_u64().unwrap();
    assert_eq!((number("value"), number("next.value")), (START + 0x1000, 7));
}

/// A pointer whose type and whose place both lead back to it, and a list that does.
#[test]
fn cycles_in_an_arena_end() {
    const START: u64 = 0x7f12_0000_5000;
    let mut b = Builder::new();
    let u64_ = b.int("unsigned long", 8, false);
    let own = b.next_id();
    assert_eq!(b.ptr(own), own);
    let node = b.next_id() + 1;
    let next = b.ptr(node);
    assert_eq!(b.structure("thing", 16, &[("value", u64_, 0), ("next", next, 64)]), node);
    let (first, itself) = (b.var("first", next), b.var("itself", own));
    let bss = b.datasec(".bss", 16, &[(first, 0, 8), (itself, 8, 8)]);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    let section = Rows { values: vec![bytes![START, START + 0x20]], ..Rows::default() };
    o.map("a.bss", "array", (0, bss), section);
    let mut page = bytes![7u64, START, 0u64, 0u64, START + 0x20];
    page.resize(4096, 0);
    let pages = Rows { keys: Some(vec![bytes![START]]), values: vec![page], ..Rows::default() };
    o.map("heap", "arena", (u64_, 0), pages).maps[1].attrs.key_size = 0;
    let kernel = KernelState { btf: Some(kernel_types()), ..KernelState::default() };
    let snap = Snapshot::with_kernel(meta("p"), o.maps, Vec::new(), kernel);
    let error = text(snap.global("itself").unwrap().as_cpus());
    assert!(error.contains("a CPU mask"), "{error}");
    let path = |hops: usize| format!("first{}.value", ".next".repeat(hops - 1));
    assert_eq!(snap.global(&path(16)).unwrap().as_u64(), Ok(7));
    let error = text(snap.global(&path(17)));
    assert!(error.contains("at most 16 pointers in a path"), "{error}");
    // Step by step it is the same; a pointer that is cast begins anew.
    let mut at = snap.global("first").unwrap();
    for _ in 1..16 {
        at = at.get("next").unwrap();
    }
    assert_eq!(at.get("value").unwrap().as_u64(), Ok(7));
    let last = at.get("next").unwrap();
    assert!(text(last.get("value")).contains("at most 16"));
    let again = last.as_ptr("struct thing").unwrap();
    assert_eq!(again.get("next.value").unwrap().as_u64(), Ok(7));
}
