//! Walks from values into the memory of made-up guests, whole and hostile.

use std::time::Duration;

use super::*;
use crate::btf::testing::Builder;
use crate::introspect::bpf::copy::RawData;
use crate::introspect::testing::Guest;

/// Bytes of an object: a number, a node of a list, a node of a tree, a kptr.
const OBJECT: u64 = 72;
const LIST: u64 = 8;
const TREE: u64 = 32;
const KPTR: u64 = 64;

/// The types of what special members lead to.
fn guest() -> Guest {
    let mut guest = Guest::new();
    let t = &mut guest.types;
    let u32_ = t.int("u32", 4, false);
    let u64_ = t.int("u64", 8, false);
    let char_ = t.int("char", 1, true);
    let cb = t.structure("bpf_async_cb", 16, &[("prog", u64_, 0), ("callback_fn", u64_, 64)]);
    let timer = t.structure("hrtimer", 8, &[("base", u64_, 0)]);
    t.structure("bpf_hrtimer", 24, &[("cb", cb, 0), ("timer", timer, 128)]);
    t.structure("hrtimer_clock_base", 8, &[("clockid", u32_, 32)]);
    let list = t.structure("list_head", 16, &[("next", u64_, 0), ("prev", u64_, 64)]);
    t.structure("bpf_list_node_kern", 24, &[("list_head", list, 0), ("owner", u64_, 128)]);
    let rb = t.structure("rb_node", 24, &[("rb_right", u64_, 64), ("rb_left", u64_, 128)]);
    t.structure("bpf_rb_node_kern", 32, &[("rb_node", rb, 0), ("owner", u64_, 192)]);
    let name = t.array(char_, 32);
    let ksym = [("start", u64_, 0), ("end", u64_, 64), ("name", name, 128), ("lnode", list, 384)];
    t.structure("bpf_ksym", 64, &ksym);
    let bits = t.array(u64_, 16);
    let mask = t.structure("cpumask", 128, &[("bits", bits, 0)]);
    t.structure("bpf_cpumask", 136, &[("cpumask", mask, 0), ("usage", u32_, 1024)]);
    guest
}

/// A map with one value: a list's head, a tree's root, a timer, a kptr to an object, one to a mask.
fn map(guest: &mut Guest, row: [u64; 8]) -> Kva {
    let mut b = Builder::new();
    let u64_ = b.int("unsigned long", 8, false);
    let words = |b: &mut Builder, name: &str, n: u32| {
        let words = b.array(u64_, n);
        b.structure(name, 8 * n, &[("__opaque", words, 0)])
    };
    let head = words(&mut b, "bpf_list_head", 2);
    let root = words(&mut b, "bpf_rb_root", 2);
    let timer = words(&mut b, "bpf_timer", 2);
    let list = words(&mut b, "bpf_list_node", 3);
    let tree = words(&mut b, "bpf_rb_node", 4);
    // Two types come before the struct.
    let thing = b.next_id() + 2;
    let kptr = b.type_tag("kptr", thing);
    let own = b.ptr(kptr);
    let bit = |at: u64| at as u32 * 8;
    let members = [
        ("x", u64_, 0),
        ("node", list, bit(LIST)),
        ("rb", tree, bit(TREE)),
        ("own", own, bit(KPTR)),
    ];
    assert_eq!(b.structure("thing", OBJECT as u32, &members), thing);
    let fwd = b.fwd("bpf_cpumask", false);
    let fwd = b.type_tag("kptr", fwd);
    let mask = b.ptr(fwd);
    let members = [
        ("head", head, 0),
        ("root", root, 128),
        ("timer", timer, 256),
        ("own", own, 384),
        ("mask", mask, 448),
    ];
    let value = b.structure("value", 64, &members);
    b.decl_tag("contains:thing:node", value, 0);
    b.decl_tag("contains:thing:rb", value, 1);
    let btf = guest.btf(&b.encode());
    let row = row.iter().flat_map(|word| word.to_le_bytes()).collect();
    let map = guest.array("m", 64, &[row]);
    guest.set_types(map, btf, 0, value);
    map
}

fn objects(guest: &mut Guest, n: usize) -> Vec<u64> {
    (0..n).map(|_| guest.alloc(OBJECT).0).collect()
}

/// What follows in a list, and what comes before.
fn link(guest: &mut Guest, object: u64, next: u64, prev: u64) {
    guest.write_u64(Kva(object + LIST), next);
    guest.write_u64(Kva(object + LIST + 8), prev);
}

fn copied(guest: Guest, bytes: u64) -> (Memory, Leads) {
    copied_within(guest, Budget::new(bytes, Duration::from_secs(60)))
}

fn copied_within(guest: Guest, mut within: Budget) -> (Memory, Leads) {
    let kernel = Kernel::open(guest.mem()).unwrap();
    let maps = kernel.maps().unwrap().maps;
    let mut budget = Budget::new(1 << 20, Duration::from_secs(60));
    let raws: Vec<RawMap> = maps.iter().map(|map| kernel.copy_map(map, &mut budget)).collect();
    let mut memory = Memory::default();
    let leads = kernel.copy_leads(maps.iter().zip(&raws), &mut memory, &mut within);
    (memory, leads)
}

const PLENTY: u64 = 1 << 20;

#[test]
fn lists_and_trees_are_copied_whole() {
    let mut guest = guest();
    let all = objects(&mut guest, 6);
    let head = 0xffff_c900_dead_0000;
    for n in 0..3 {
        let next = if n == 2 { head } else { all[n + 1] + LIST };
        let prev = if n == 0 { head } else { all[n - 1] + LIST };
        link(&mut guest, all[n], next, prev);
    }
    // The fourth is the root, the fifth and sixth are below it.
    guest.write_u64(Kva(all[3] + TREE + 8), all[4] + TREE);
    guest.write_u64(Kva(all[3] + TREE + 16), all[5] + TREE);
    map(&mut guest, [all[0] + LIST, all[2] + LIST, all[3] + TREE, 0, 0, 0, 0, 0]);
    let (memory, leads) = copied(guest, PLENTY);
    assert_eq!(leads, Leads::default());
    for (n, at) in all.iter().enumerate() {
        assert!(memory.get(*at, OBJECT).is_some(), "object {n}");
    }
}

#[test]
fn what_leads_in_circles_ends() {
    let mut guest = guest();
    let all = objects(&mut guest, 4);
    // The third leads back to the second.
    for (n, next) in [(0, 1), (1, 2), (2, 1)] {
        link(&mut guest, all[n], all[next] + LIST, 0xffff_c900_dead_0000);
    }
    // A node that is below itself, on both sides; objects that hold each other.
    guest.write_u64(Kva(all[3] + TREE + 8), all[3] + TREE);
    guest.write_u64(Kva(all[3] + TREE + 16), all[3] + TREE);
    guest.write_u64(Kva(all[3] + KPTR), all[0]);
    guest.write_u64(Kva(all[0] + KPTR), all[3]);
    map(&mut guest, [all[0] + LIST, 0, all[3] + TREE, 0, 0, 0, all[3], 0]);
    let (memory, leads) = copied(guest, PLENTY);
    assert_eq!(leads, Leads::default());
    assert!(all.iter().all(|at| memory.get(*at, OBJECT).is_some()));
}

#[test]
fn what_leads_nowhere_is_told_or_left_alone() {
    let mut guest = guest();
    // Addresses of user space are none of the kernel's, and nothing is behind them.
    map(&mut guest, [0x1000, 0x1000, 0x2000, 0x2000, 0x3000, 0, 0x4000, 0x5000]);
    let (memory, leads) = copied(guest, PLENTY);
    assert_eq!((memory.len(), leads), (0, Leads::default()));
    for row in [
        [u64::MAX - 7, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, u64::MAX, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0xffff_c900_1234_5000, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0xffff_8000_0000_0000, 0],
        [0, 0, 0, 0, 0, 0, 0, 0xffff_c900_1234_5000],
    ] {
        let mut guest = self::guest();
        map(&mut guest, row);
        let (_, leads) = copied(guest, PLENTY);
        let why = leads.incomplete.expect("nothing is there");
        assert!(why.contains("cannot read") || why.contains("canonical"), "{why}");
    }
}

#[test]
fn a_budget_ends_it() {
    let mut guest = guest();
    let all = objects(&mut guest, 100);
    for n in 0..99 {
        link(&mut guest, all[n], all[n + 1] + LIST, 0xffff_c900_dead_0000);
    }
    map(&mut guest, [all[0] + LIST, 0, 0, 0, 0, 0, 0, 0]);
    let (memory, leads) = copied(guest, 10 * OBJECT);
    assert_eq!(memory.len() as u64, 10 * OBJECT);
    assert_eq!(leads.incomplete.unwrap(), "the capture's budget of 720 bytes ran out");
}

#[test]
fn time_ends_it_even_where_nothing_is_copied() {
    for row in [[0; 8], [0x1000; 8]] {
        let mut guest = guest();
        map(&mut guest, row);
        let (memory, leads) = copied_within(guest, Budget::new(PLENTY, Duration::ZERO));
        assert!(memory.is_empty());
        assert_eq!(leads.incomplete.unwrap(), "the capture's budget of 0ns ran out");
    }
    let data = RawData::Array { bytes: vec![1; 24], stride: 8, value_size: 8 };
    let mut seen = 0;
    RawMap::new(data).for_each_value(&mut |_| {
        seen += 1;
        seen < 2
    });
    assert_eq!(seen, 2, "no value is looked at when no more are wanted");
}

#[test]
fn an_empty_list_is_its_head_and_no_object() {
    let mut guest = guest();
    let [around, other] = objects(&mut guest, 2)[..] else { panic!("two") };
    let head = around + LIST;
    link(&mut guest, around, head, head);
    // Were it a node, this would be a kptr of its object's.
    guest.write_u64(Kva(around + KPTR), other);
    map(&mut guest, [head, head, 0, 0, 0, 0, 0, 0]);
    let (memory, leads) = copied(guest, PLENTY);
    assert_eq!(leads, Leads::default());
    assert_eq!(memory.u64(head), Some(head));
    assert_eq!(memory.len(), 16, "nothing else");
}

#[test]
fn what_does_not_fit_is_not_followed() {
    let mut guest = guest();
    let mask = guest.alloc(136);
    map(&mut guest, [0, 0, 0, 0, 0, 0, 0, mask.0]);
    // The count would fit, without the bits.
    let (memory, leads) = copied(guest, 4);
    assert!(memory.is_empty());
    assert_eq!(leads.incomplete.unwrap(), "the capture's budget of 4 bytes ran out");
}

#[test]
fn callbacks_are_named_and_masks_are_as_long_as_the_machine() {
    let mut guest = guest();
    let head = guest.variable("bpf_kallsyms", &[0; 16]);
    let (timer, base, ksym) = (guest.alloc(24), guest.alloc(8), guest.alloc(64));
    let code = 0xffff_ffff_c000_1000u64;
    let btf = guest.btf(&Builder::new().encode());
    let (prog, aux) = guest.prog(btf, &[]);
    for (at, word) in [(0, prog.0), (8, code), (16, base.0)] {
        guest.write_u64(timer.offset(at), word);
    }
    guest.write_u32(base.offset(4), 7);
    for (at, word) in [(0, code), (8, code + 0x80), (48, head.0), (56, head.0)] {
        guest.write_u64(ksym.offset(at), word);
    }
    guest.write(ksym.offset(16), b"bpf_prog_0123456789abcdef_tick");
    guest.write_u64(head, ksym.0 + 48);
    guest.write_u64(head.offset(8), ksym.0 + 48);
    let mask = guest.alloc(136);
    guest.write_u64(mask, 0b10);
    map(&mut guest, [0, 0, 0, 0, timer.0, 0, 0, mask.0]);
    let (memory, leads) = copied(guest, PLENTY);
    let name = "bpf_prog_0123456789abcdef_tick".to_owned();
    assert_eq!(leads.code, [Code { start: code, end: code + 0x80, name }]);
    assert_eq!(leads.incomplete, None);
    assert_eq!(memory.u32(base.0 + 4), Some(7), "the clock");
    assert!(memory.get(aux.0 + 4, 4).is_some(), "the program's id");
    assert_eq!(memory.u64(mask.0), Some(0b10));
    assert!(memory.get(mask.0, 16).is_none(), "no more bits than there can be CPUs");
    assert!(memory.get(mask.0 + 128, 4).is_some(), "how often it is held");
}
