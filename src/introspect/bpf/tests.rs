//! Maps of made-up guests, whole and damaged.

mod hostile;
mod world;

use std::time::Duration;

use super::super::testing::{Guest, HashAt, HashSpec, at, hash};
use super::*;
use crate::btf::testing::Builder;
use crate::introspect::sched::Memory;
use crate::introspect::{MapContents, MapData};
use crate::mem::Kva;

type Entry = (Vec<u8>, Vec<u8>);

fn entries(n: u32, value_size: usize) -> Vec<Entry> {
    let value = |i: u32| (0..value_size).map(|b| (i as usize * 7 + b) as u8).collect();
    (0..n).map(|i| (i.wrapping_mul(0x9e37_79b1).to_le_bytes().to_vec(), value(i))).collect()
}

fn spec<'a>(name: &'a str, kind: u32, prealloc: bool, entries: &'a [Entry]) -> HashSpec<'a> {
    let cpus = if matches!(kind, 5 | 10) { 2 } else { 1 };
    let value_size = entries.first().map_or(8, |(_, v)| v.len() as u64 / cpus);
    HashSpec {
        name,
        kind,
        prealloc,
        key_size: 4,
        value_size,
        max_entries: 64,
        buckets: 16,
        entries,
    }
}

/// A guest with a map of each kind that is no plain table.
pub(crate) fn guest_of_kinds() -> Guest {
    world::world().0
}

/// A guest with tables, and what schedulers have beside them.
pub(crate) fn busy_guest() -> Guest {
    let mut guest = Guest::new();
    let mut types = Builder::new();
    let u64_ = types.int("unsigned long", 8, false);
    let var = types.var("nr_enqueued", u64_);
    let bss = types.datasec(".bss", 8, &[(var, 0, 8)]);
    let btf = guest.btf(&types.encode());
    let section = guest.array("fifo.bss", 8, &[vec![1; 8]]);
    guest.set_types(section, btf, 0, bss);
    guest.array("values", 12, &[vec![2; 12], vec![3; 12]]);
    guest.percpu_array("sums", 8, &[vec![vec![4; 8], vec![5; 8]], vec![vec![6; 8], vec![7; 8]]]);
    for (kind, prealloc) in [(1, true), (1, false), (9, true)] {
        let made = guest.hash(&spec("hash", kind, prealloc, &entries(40, 24)));
        guest.set_count(made.map, 40);
    }
    for (kind, prealloc) in [(5, true), (5, false), (10, true)] {
        guest.hash(&spec("percpu_hash", kind, prealloc, &entries(40, 2 * 16)));
    }
    let ring = guest.other("ring", 27);
    guest.prog(btf, &[section, ring]);
    let leaf = guest.node(9, [1, 2, 0, 0], Some(5), [Kva(0); 2]);
    let root = guest.node(0, [0; 4], None, [leaf, Kva(0)]);
    guest.trie("trie", root);
    guest.queue("queue", 5, 3, &[vec![1; 3], vec![2; 3], vec![3; 3]]);
    guest.storage("storage", &[(Some(7), 70), (Some(8), 80), (None, 0)]);
    guest.prog_array("programs", &[(2, 40), (5, 41)]);
    guest.struct_ops("ops", btf, "busy");
    guest
}

fn budget() -> Budget {
    Budget::new(1 << 30, Duration::from_secs(60))
}

fn read(kernel: &Kernel, map: Kva) -> MapContents {
    let list = kernel.maps().unwrap();
    let info = list.maps.iter().find(|m| m.kva == map).unwrap();
    kernel.copy_map(info, &mut budget()).decode()
}

fn open(guest: Guest) -> Kernel {
    Kernel::open(guest.mem()).unwrap()
}

/// Keys and values, sorted; per-CPU values one after the other.
fn contents(contents: &MapContents) -> Vec<Entry> {
    let mut out: Vec<Entry> = match &contents.data {
        MapData::Hash { keys, values } => {
            keys.iter().zip(values.iter()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
        }
        MapData::PerCpuHash { keys, values } => {
            let row = |i| (0..values.cpus()).flat_map(move |c| values.get(i, c).unwrap().to_vec());
            keys.iter().enumerate().map(|(i, k)| (k.to_vec(), row(i).collect())).collect()
        }
        other => panic!("no hash: {other:?}"),
    };
    out.sort();
    out
}

fn sorted(entries: &[Entry]) -> Vec<Entry> {
    let mut all = entries.to_vec();
    all.sort();
    all
}

#[test]
fn maps_are_listed_with_their_attributes() {
    let mut guest = Guest::new();
    guest.hash(&spec("tasks_with_a_long_name", 1, false, &entries(3, 24)));
    guest.other("storage", 19);
    guest.other("future", 99);
    let kernel = open(guest);
    let list = kernel.maps().unwrap();
    assert_eq!(list.torn, None);
    let map = &list.maps[0];
    assert_eq!((map.id, map.name.as_str()), (2, "tasks_with_a_lo"));
    assert_eq!((map.kind.number, map.kind.to_string()), (1, "hash".into()));
    assert_eq!((map.key_size, map.value_size, map.max_entries, map.map_flags), (4, 24, 64, 1));
    assert_eq!(map.full_name, None, "nothing tells the rest of it");
    assert!(map.btf.is_none() && map.btf_error.is_none() && !map.frozen && map.torn.is_empty());
    let kinds: Vec<_> = list.maps[1..].iter().map(|m| m.kind.to_string()).collect();
    assert_eq!(kinds, ["cgroup_storage", "type 99"]);
}

#[test]
fn maps_of_other_kinds_say_so() {
    let mut guest = Guest::new();
    let future = guest.other("future", 99);
    let kernel = open(guest);
    let reason = "maps of kind type 99 cannot be decoded yet".to_owned();
    assert_eq!(read(&kernel, future).data, MapData::Unreadable { reason });
}

#[test]
fn arrays_and_sections_are_read() {
    let mut guest = Guest::new();
    for size in [1, 2, 4, 8, 12, 4000] {
        let values: Vec<Vec<u8>> = (0..9).map(|i| vec![i * 3 + 1; size]).collect();
        let map = guest.array("a", size as u64, &values);
        let kernel = open(std::mem::replace(&mut guest, Guest::new()));
        let got = read(&kernel, map);
        let MapData::Array { values: found } = &got.data else { panic!("{got:?}") };
        assert!(found.iter().eq(values.iter()), "{size}");
        assert!(got.torn.is_empty() && got.incomplete.is_none());
    }
}

#[test]
fn an_array_that_loses_a_page_keeps_what_comes_before() {
    let mut guest = Guest::new();
    let values: Vec<Vec<u8>> = (0..30).map(|i| vec![i; 400]).collect();
    let map = guest.array("a", 400, &values);
    guest.unmap(Kva(map.0 + 2 * 4096));
    let kernel = open(guest);
    let got = read(&kernel, map);
    assert_eq!(got.data.len(), Some(20));
    let hole = Kva(map.0 + 2 * 4096);
    assert_eq!(got.incomplete, Some(format!("of entry 20 on: no page is mapped at {hole}")));
}

#[test]
fn per_cpu_arrays_are_read_slot_by_slot() {
    let mut guest = Guest::new();
    let rows: Vec<Vec<Vec<u8>>> =
        (0..5).map(|i| (0..2).map(|c| vec![i * 2 + c; 12]).collect()).collect();
    let map = guest.percpu_array("p", 12, &rows);
    let pointer = guest.read_u64(map.offset(at::ARRAY_VALUES + 8));
    guest.unmap(Kva(pointer + Guest::cpu_offset(1)));
    guest.write_u64(map.offset(at::ARRAY_VALUES + 2 * 8), 0);
    let kernel = open(guest);
    let got = read(&kernel, map);
    let MapData::PerCpuArray { values } = &got.data else { panic!("{got:?}") };
    assert_eq!((values.len(), values.cpus()), (5, 2));
    let row = |i| (values.get(i, 0).map(<[u8]>::to_vec), values.get(i, 1).map(<[u8]>::to_vec));
    assert_eq!(row(0), (Some(vec![0; 12]), Some(vec![1; 12])));
    assert_eq!(row(1), (Some(vec![2; 12]), None), "its page is not mapped");
    assert_eq!(row(2), (None, None), "its pointer is null");
    assert_eq!(row(4), (Some(vec![8; 12]), Some(vec![9; 12])));
}

#[test]
fn hashes_of_every_kind_are_read() {
    for (kind, prealloc) in [(1, true), (1, false), (9, true), (5, true), (5, false), (10, true)] {
        for size in [1, 2, 4, 8, 12, 4000] {
            let mut guest = Guest::new();
            let cpus = if matches!(kind, 5 | 10) { 2 } else { 1 };
            let want = entries(50, size * cpus);
            let made = guest.hash(&spec("h", kind, prealloc, &want));
            guest.set_count(made.map, 50);
            let kernel = open(guest);
            let got = read(&kernel, made.map);
            assert_eq!(contents(&got), sorted(&want), "kind {kind}, values of {size}");
            assert_eq!((got.torn.len(), got.incomplete), (0, None));
        }
    }
}

#[test]
fn a_large_table_with_few_elements_is_walked_instead_of_copied() {
    let mut guest = Guest::new();
    let want = entries(5, 4000);
    let made = guest.hash(&HashSpec { max_entries: 500, ..spec("h", 1, true, &want) });
    guest.set_count(made.map, 5);
    let kernel = open(guest);
    let list = kernel.maps().unwrap();
    let raw = kernel.copy_map(&list.maps[0], &mut budget());
    assert!(raw.bytes() < 64 * 4096, "{} bytes", raw.bytes());
    assert_eq!(contents(&raw.decode()), sorted(&want));
}

#[test]
fn large_per_cpu_values_of_unused_elements_cost_nothing() {
    let mut guest = Guest::new();
    let want = entries(5, 2 * 4000);
    guest.hash(&HashSpec { max_entries: 300, ..spec("h", 5, true, &want) });
    let kernel = open(guest);
    let list = kernel.maps().unwrap();
    let mut budget = Budget::new(100 << 10, Duration::from_secs(60));
    let got = kernel.copy_map(&list.maps[0], &mut budget).decode();
    assert_eq!((contents(&got), got.incomplete), (sorted(&want), None));
}

#[test]
fn keys_on_the_free_list_are_no_entries() {
    let mut guest = Guest::new();
    let want = entries(9, 8);
    let made = guest.hash(&spec("h", 1, true, &want));
    // A removed element keeps key and value.
    let free = made.elems[8].0 - 48 * 3;
    guest.write(Kva(free + at::ELEM_KEY), &[9, 9, 9, 9]);
    let kernel = open(guest);
    assert_eq!(contents(&read(&kernel, made.map)), sorted(&want));
}

/// A hash map of which a test has changed something, preallocated and not.
fn damaged(change: impl Fn(&mut Guest, &HashAt, &[Entry])) -> [MapContents; 2] {
    [true, false].map(|prealloc| {
        let mut guest = Guest::new();
        let want = entries(40, 8);
        let made = guest.hash(&spec("h", 1, prealloc, &want));
        change(&mut guest, &made, &want);
        let kernel = open(guest);
        read(&kernel, made.map)
    })
}

fn bucket(key: &[u8]) -> u64 {
    u64::from(hash(key)) % 16
}

#[test]
fn a_key_that_is_being_replaced_appears_once_with_its_new_value() {
    for got in damaged(|guest, made, want| {
        // The new element is linked before the old one is unlinked.
        let new = match guest.read_u64(made.map.offset(at::HTAB_ELEMS)) {
            0 => guest.alloc(64),
            slab => Kva(slab),
        };
        guest.write(new.offset(at::ELEM_KEY), &want[3].0);
        guest.write(new.offset(at::ELEM_KEY + 8), &[0xee; 8]);
        guest.write_u32(new.offset(at::ELEM_HASH), hash(&want[3].0));
        guest.link(made.buckets, 16, new, &want[3].0);
    }) {
        let found = contents(&got);
        let want = entries(40, 8);
        assert_eq!(found.len(), 40);
        let entry = found.iter().find(|(k, _)| *k == want[3].0).unwrap();
        assert_eq!(entry.1, [0xee; 8]);
        let b = bucket(&want[3].0);
        let text = format!("a key appears twice in bucket {b}: it is being replaced");
        assert_eq!(got.torn, std::slice::from_ref(&text));
        let MapData::Hash { keys, .. } = &got.data else { panic!() };
        let row = keys.iter().position(|k| k == want[3].0).unwrap();
        assert_eq!(got.torn_entries.get(&row), Some(&vec![text]));
    }
}

#[test]
fn entries_of_a_locked_bucket_are_torn() {
    for got in damaged(|guest, made, want| {
        let b = bucket(&want[0].0);
        guest.write_u32(made.buckets.offset(b * at::BUCKET + at::BUCKET_LOCK), 1);
    }) {
        let want = entries(40, 8);
        let b = bucket(&want[0].0);
        assert_eq!(got.torn, [format!("the lock of bucket {b} is held")]);
        let MapData::Hash { keys, .. } = &got.data else { panic!() };
        for (row, key) in keys.iter().enumerate() {
            let torn = got.torn_entries.get(&row);
            let text = format!("the lock of its bucket ({b}) is held");
            assert_eq!(torn, (bucket(key) == b).then_some(&vec![text]));
        }
        assert_eq!(contents(&got), sorted(&want));
    }
}

#[test]
fn a_list_that_runs_in_a_circle_ends() {
    for got in damaged(|guest, made, want| {
        // The last element of a list leads back to its first.
        let b = bucket(&want[0].0);
        let first = guest.read_u64(made.buckets.offset(b * at::BUCKET));
        guest.write_u64(made.elems[0], first);
    }) {
        let want = entries(40, 8);
        assert_eq!(
            got.torn,
            [format!("the list of bucket {} runs in a circle", bucket(&want[0].0))]
        );
        assert_eq!(contents(&got), sorted(&want));
    }
}

#[test]
fn a_list_that_leads_astray_keeps_what_comes_before() {
    let [whole, walked] = damaged(|guest, made, want| {
        guest.write_u64(made.elems[0], 0xffff_8880_dead_0000);
        // Another one ends as the list of a bucket that it is not in.
        let other = want.iter().position(|(k, _)| bucket(k) != bucket(&want[0].0)).unwrap();
        guest.write_u64(made.elems[other], 0xff << 1 | 1);
    });
    let want = entries(40, 8);
    let a = bucket(&want[0].0);
    let b = want.iter().map(|(k, _)| bucket(k)).find(|b| *b != a).unwrap();
    assert_eq!(contents(&whole), sorted(&want));
    assert_eq!(contents(&walked), sorted(&want));
    let astray = format!("the list of bucket {a} leads to what is no element");
    let wrong = format!("the list of bucket {b} ends as that of bucket 255");
    let mut torn = whole.torn.clone();
    torn.sort();
    let mut both = [astray, wrong.clone()];
    both.sort();
    assert_eq!(torn, both);
    assert_eq!(walked.torn, [wrong]);
    let text = walked.incomplete.unwrap();
    // The first of the two is told.
    let start = match a < b {
        true => format!("the rest of bucket {a}: cannot read 56 bytes at 0xffff8880dead0000: "),
        false => format!("the list of bucket {b} is damaged"),
    };
    assert!(text.starts_with(&start), "{text}");
    assert_eq!(whole.incomplete, Some(format!("the list of bucket {} is damaged", a.min(b))));
}

#[test]
fn an_element_of_another_bucket_ends_its_list() {
    for got in damaged(|guest, made, _| {
        let hash = guest.read_u64(made.elems[0].offset(at::ELEM_HASH)) as u32;
        guest.write_u32(made.elems[0].offset(at::ELEM_HASH), hash ^ 1);
    }) {
        let want = entries(40, 8);
        let b = bucket(&want[0].0);
        assert_eq!(got.torn, [format!("the list of bucket {b} has an element of another bucket")]);
        assert_eq!(contents(&got), sorted(&want[1..]));
    }
}

#[test]
fn a_count_that_is_far_off_is_told() {
    for got in damaged(|guest, made, _| guest.set_count(made.map, 43)) {
        assert_eq!(got.torn, ["it counts 43 elements, but 40 are linked"]);
    }
    for got in damaged(|guest, made, _| guest.set_count(made.map, 42)) {
        assert!(got.torn.is_empty(), "each of two CPUs can be between counting and linking");
    }
}

#[test]
fn many_reasons_of_one_kind_are_summed_up() {
    for got in damaged(|guest, made, _| {
        for b in 0..16 {
            guest.write_u32(made.buckets.offset(b * at::BUCKET + at::BUCKET_LOCK), 1);
        }
    }) {
        assert_eq!(got.torn.len(), 5);
        assert_eq!(got.torn[3], "the lock of bucket 3 is held");
        assert_eq!(got.torn[4], "a bucket's lock is held in 12 more places");
    }
}

#[test]
fn tables_that_contradict_themselves_are_not_read() {
    let reason = |got: &MapContents| match &got.data {
        MapData::Unreadable { reason } => reason.clone(),
        other => panic!("{other:?}"),
    };
    for got in damaged(|guest, made, _| guest.write_u32(made.map.offset(at::HTAB_N_BUCKETS), 17)) {
        assert_eq!(reason(&got), "its table has 17 buckets, which is no power of two");
    }
    for got in damaged(|guest, made, _| guest.write_u32(made.map.offset(at::HTAB_ELEM_SIZE), 8)) {
        assert_eq!(reason(&got), "its elements take 8 bytes, keys and values 56");
    }
    let mut guest = Guest::new();
    let map = guest.array("a", 8, &[vec![1; 8]]);
    guest.write_u32(map.offset(at::ARRAY_ELEM_SIZE), 16);
    let kernel = open(guest);
    assert_eq!(reason(&read(&kernel, map)), "its values of 8 bytes lie 16 bytes apart");
}

#[test]
fn a_map_that_is_going_away_is_torn() {
    let mut guest = Guest::new();
    let dead = guest.array("dead", 8, &[vec![1; 8]]);
    guest.write_u64(dead.offset(at::MAP_REFCNT), 0);
    let moved = guest.array("moved", 8, &[vec![1; 8]]);
    guest.write_u32(moved.offset(at::MAP_ID), 0);
    let kernel = open(guest);
    let gone = "nothing refers to it any more: it is being removed";
    assert_eq!(read(&kernel, dead).torn, [gone]);
    assert_eq!(read(&kernel, moved).torn, ["it calls itself map 0: it is being removed"]);
}

#[test]
fn what_exceeds_the_budget_says_so() {
    let mut guest = Guest::new();
    let values: Vec<Vec<u8>> = (0..30).map(|i| vec![i; 400]).collect();
    guest.array("a", 400, &values);
    guest.hash(&spec("walked", 1, false, &entries(60, 8)));
    guest.hash(&spec("whole", 1, true, &entries(60, 8)));
    guest.percpu_array("p", 400, &[vec![vec![1; 400]; 2], vec![vec![2; 400]; 2]]);
    let kernel = open(guest);
    let maps = kernel.maps().unwrap().maps;
    let with = |i: usize, bytes| {
        let mut budget = Budget::new(bytes, Duration::from_secs(60));
        let got = kernel.copy_map(&maps[i], &mut budget).decode();
        assert_eq!(budget.exceeded(), Some(&*format!("the capture's budget of {bytes} bytes")));
        got
    };
    let got = with(0, 1000);
    assert_eq!(got.data.len(), Some(2));
    let text = "2 of 30 entries fitted into the capture's budget";
    assert_eq!(got.incomplete.as_deref(), Some(text));
    let got = with(0, 10);
    let reason = "it takes 12000 bytes, and 10 are left of the capture's budget".to_owned();
    assert_eq!(got.data, MapData::Unreadable { reason });
    let got = with(1, 16 * 16 + 100);
    let text = got.incomplete.unwrap();
    let want = "after 0 elements, in bucket 0: the capture's budget of 356 bytes ran out";
    assert_eq!((got.data.len(), text.as_str()), (Some(0), want));
    let got = with(2, 100);
    let reason = "the capture's budget of 100 bytes ran out".to_owned();
    assert_eq!(got.data, MapData::Unreadable { reason });
    let got = with(3, 16 + 900);
    let text = "from CPU 1 on: the capture's budget of 916 bytes ran out";
    assert_eq!(got.incomplete.as_deref(), Some(text));
    let MapData::PerCpuArray { values } = &got.data else { panic!() };
    assert_eq!((values.cpus(), values.get(1, 0)), (2, Some(&[2; 400][..])));
    assert_eq!(values.get(1, 1), None);

    let mut late = Budget::new(1 << 30, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1));
    let got = kernel.copy_map(&maps[0], &mut late).decode();
    let reason = "the capture's budget of 0ns ran out".to_owned();
    assert_eq!(got.data, MapData::Unreadable { reason });
}

#[test]
fn a_rehearsed_copy_is_the_same() {
    let kernel = open(busy_guest());
    let maps = kernel.maps().unwrap().maps;
    let all = || -> Vec<MapContents> {
        maps.iter().map(|m| kernel.copy_map(m, &mut budget()).decode()).collect()
    };
    let before = all();
    kernel.rehearse(&maps, &mut Memory::default(), budget());
    assert_eq!(all(), before);
    assert_eq!(all(), before, "with and without kept buffers");
}

#[test]
fn types_come_from_the_object_and_are_parsed_once() {
    let mut guest = busy_guest();
    let damaged = guest.btf(b"no BTF at all");
    let map = guest.array("other", 8, &[vec![1; 8]]);
    guest.set_types(map, damaged, 1, 2);
    let kernel = open(guest);
    let [first, again] = [(), ()].map(|()| kernel.maps().unwrap().maps);
    let (a, b) = (first[0].btf.clone().unwrap(), again[0].btf.clone().unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!(a.type_name(first[0].value_type), ".bss");
    assert_eq!(first[0].section.as_deref(), Some(".bss"));
    let bad = first.iter().find(|m| m.kva == map).unwrap();
    assert!(bad.btf.is_none() && bad.btf_error.is_some());
    assert_eq!((bad.key_type, bad.value_type), (0, 0));
}

/// An object as libbpf loads it: sections, declared maps, names of source files.
fn object(types: &mut Builder, files: &[&str]) -> (u32, u32) {
    let int = types.int("int", 4, true);
    let u64_ = types.int("unsigned long", 8, false);
    let bss_var = types.var("nr_enqueued", u64_);
    let bss = types.datasec(".bss", 8, &[(bss_var, 0, 8)]);
    let hot_var = types.var("hot", u64_);
    let hot = types.datasec(".data.hot_and_long", 8, &[(hot_var, 0, 8)]);
    // Three maps that are alike in their first fifteen characters, told apart by their sizes.
    let mut vars = Vec::new();
    for (name, entries) in [("task_ctx_storage_a", 64), ("task_ctx_storage_b", 8), ("tiny", 64)] {
        let kind = types.array(int, 1);
        let kind = types.ptr(kind);
        let max = types.array(int, entries);
        let max = types.ptr(max);
        let map = types.structure("", 16, &[("type", kind, 0), ("max_entries", max, 64)]);
        vars.push((types.var(name, map), 0, 16));
    }
    types.datasec(".maps", 48, &vars);
    let ops = types.structure("sched_ext_ops", 136, &[]);
    let ops = types.var("scheduler_operations", ops);
    types.datasec(".struct_ops.link", 136, &[(ops, 0, 136)]);
    for file in files {
        types.string(file);
    }
    (bss, hot)
}

/// What maps of one object are called in full.
fn full_names(
    files: &[&str],
    ops_name: &str,
    map: impl Fn(&mut Guest, Kva, u32, u32),
) -> Vec<MapInfo> {
    let mut guest = Guest::new();
    let mut types = Builder::new();
    let (bss, hot) = object(&mut types, files);
    let btf = guest.btf(&types.encode());
    map(&mut guest, btf, bss, hot);
    guest.struct_ops("scheduler_opera", btf, ops_name);
    open(guest).maps().unwrap().maps
}

fn section_name(cut: &str, files: &[&str], ops_name: &str) -> (Option<String>, Option<String>) {
    let mut maps = full_names(files, ops_name, |guest, btf, bss, _| {
        let map = guest.array(cut, 8, &[vec![0; 8]]);
        guest.set_types(map, btf, 0, bss);
    });
    let map = maps.swap_remove(0);
    (map.full_name, map.section)
}

#[test]
fn sections_are_called_after_their_whole_object() {
    let bss = || Some(".bss".to_owned());
    let full = |name: &str| (Some(format!("{name}.bss")), bss());
    // A name that was not cut needs nothing else.
    assert_eq!(section_name("fifo.bss", &[], ""), full("fifo"));
    // One of eight characters may have been: the source file, or the ops, tell.
    let cut = "scx_simp.bss";
    assert_eq!(section_name(cut, &["/b/scx_simple.bpf.c"], ""), full("scx_simple"));
    assert_eq!(section_name(cut, &["a = b.c", "x.h", "scx_simp-le.c"], ""), full("scx_simp_le"));
    assert_eq!(section_name(cut, &["main.bpf.c"], "simple"), full("scx_simple"));
    assert_eq!(section_name(cut, &["main.bpf.c"], "scx_simple"), full("scx_simple"));
    assert_eq!(section_name(cut, &["scx_simp.bpf.c"], ""), full("scx_simp"));
    // Two that fit are told apart by the ops, or not at all.
    let two = ["scx_simple.bpf.c", "scx_simpler.bpf.c"];
    assert_eq!(section_name(cut, &two, "simpler"), full("scx_simpler"));
    assert_eq!(section_name(cut, &two, "other"), (None, bss()));
    assert_eq!(section_name(cut, &[], "other"), (None, bss()));
}

#[test]
fn custom_sections_are_called_after_themselves() {
    let maps = full_names(&[], "", |guest, btf, _, hot| {
        let typed = guest.array(".data.hot_and_l", 8, &[vec![0; 8]]);
        guest.set_types(typed, btf, 0, hot);
        let untyped = guest.array(".rodata.str1.1", 8, &[vec![0; 8]]);
        guest.prog(btf, &[untyped]);
        guest.array("no.section", 8, &[vec![0; 8], vec![0; 8]]);
    });
    let names = |i: usize| (maps[i].full_name.as_deref(), maps[i].section.as_deref());
    let hot = Some(".data.hot_and_long");
    assert_eq!(names(0), (hot, hot));
    assert_eq!(names(1), (Some(".rodata.str1.1"), Some(".rodata.str1.1")));
    assert_eq!(names(2), (Some("no.section"), None), "a section has one value");
}

#[test]
fn cut_names_of_maps_are_completed_from_their_declaration() {
    let maps = full_names(&[], "", |guest, btf, _, _| {
        for (name, max_entries) in [("task_ctx_storage_b", 8), ("task_ctx_storage_a", 64)] {
            let no_entries = spec(name, 1, true, &[]);
            let made = guest.hash(&HashSpec { max_entries, ..no_entries });
            guest.set_types(made.map, btf, 1, 2);
        }
        let ambiguous = guest.other("task_ctx_storage_c", 27);
        // Without types of its own: a program that uses it leads to its object.
        guest.prog(btf, &[ambiguous]);
        guest.other("of_another_object", 27);
    });
    let full: Vec<_> = maps.iter().map(|m| m.full_name.as_deref()).collect();
    let (a, b) = (Some("task_ctx_storage_a"), Some("task_ctx_storage_b"));
    assert_eq!(full, [b, a, None, None, Some("scheduler_operations")]);
    assert!(maps.iter().take(4).all(|m| m.name.len() == 15));
    let ops = &maps[4];
    let ty = ops.btf.as_ref().unwrap().type_name(ops.value_type);
    assert_eq!(ty, "struct bpf_struct_ops_sched_ext_ops");
}

/// The guest's memory in a file that is mapped, as a machine's is.
fn mapped(guest: Guest) -> Arc<dyn crate::mem::GuestMem> {
    use std::os::unix::fs::FileExt as _;
    let fake = guest.mem();
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    let end = fake.regions().iter().map(|r| r.start.0 + r.len).max().unwrap();
    file.set_len(end).unwrap();
    for region in fake.regions() {
        let mut bytes = vec![0; region.len as usize];
        fake.read(region.start, &mut bytes).unwrap();
        file.write_all_at(&bytes, region.start.0).unwrap();
    }
    let all = crate::mem::Region { start: crate::mem::Gpa(0), len: end };
    Arc::new(crate::mem::MappedMem::new(file, &[(all, 0)]).unwrap())
}

/// What a freeze costs: `cargo test --release --lib pause_of -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement; run it with --release"]
fn pause_of_ten_thousand_entries() {
    let mut guest = Guest::new();
    let many = entries(10_000, 56);
    for (name, prealloc) in [("whole", true), ("walked", false)] {
        let spec =
            HashSpec { max_entries: 10_240, buckets: 16_384, ..spec(name, 1, prealloc, &many) };
        guest.hash(&spec);
    }
    let mem = mapped(guest);
    mem.prefault();
    let kernel = Kernel::open(mem).unwrap();
    let maps = kernel.maps().unwrap().maps;
    for map in &maps {
        let mut took: Vec<Duration> = (0..25)
            .map(|_| {
                kernel.rehearse(std::slice::from_ref(map), &mut Memory::default(), budget());
                let start = std::time::Instant::now();
                let raw = kernel.copy_map(map, &mut budget());
                let took = start.elapsed();
                assert_eq!(raw.decode().data.len(), Some(10_000));
                took
            })
            .collect();
        took.sort_unstable();
        println!("{}: median {:?}, worst {:?}", map.name, took[12], took[24]);
        if map.name == "whole" && !cfg!(debug_assertions) {
            assert!(took[12] < Duration::from_millis(1), "the goal is one millisecond");
        }
    }
}

/// The values of a map without keys.
fn listed(contents: &MapContents) -> Vec<Vec<u8>> {
    match &contents.data {
        MapData::Array { values } => values.iter().map(<[u8]>::to_vec).collect(),
        other => panic!("{other:?}"),
    }
}

fn keyed(pairs: &[(u32, u64)]) -> Vec<Entry> {
    let mut out: Vec<Entry> =
        pairs.iter().map(|(k, v)| (k.to_le_bytes().to_vec(), v.to_le_bytes().to_vec())).collect();
    out.sort();
    out
}

#[test]
fn a_queue_is_listed_from_its_oldest_entry_around_its_end() {
    let mut guest = Guest::new();
    let values = [vec![1; 3], vec![2; 3], vec![3; 3], vec![4; 3]];
    let queue = guest.queue("queue", 5, 3, &values);
    let empty = guest.queue("empty", 5, 0, &[vec![]]);
    guest.write_u32(empty.offset(at::QUEUE_HEAD), 0);
    let locked = guest.queue("locked", 5, 0, &values);
    guest.write_u32(locked.offset(at::QUEUE_LOCK), 1);
    let wild = guest.queue("wild", 5, 0, &values);
    guest.write_u32(wild.offset(at::QUEUE_HEAD + 4), u32::MAX);
    let huge = guest.queue("huge", 5, 0, &values);
    guest.write_u32(huge.offset(at::QUEUE_HEAD + 8), u32::MAX);
    let kernel = open(guest);
    let got = read(&kernel, queue);
    assert_eq!((listed(&got), got.incomplete, got.torn.len()), (values.to_vec(), None, 0));
    assert_eq!(read(&kernel, empty).data.len(), Some(0));
    assert_eq!(read(&kernel, locked).torn, ["its lock is held"]);
    for (map, says) in [
        (wild, "it has 5 slots, and claims 4294967295 to 4 of them"),
        (huge, "it has 4294967295 slots, and claims 0 to 4 of them"),
    ] {
        let reason = says.to_owned();
        assert_eq!(read(&kernel, map).data, MapData::Unreadable { reason });
    }
}

#[test]
fn a_trie_gives_its_prefixes_and_not_what_only_branches() {
    let mut guest = Guest::new();
    let none = Kva(0);
    let a = guest.node(12, [1, 0x10, 0, 0], Some(100), [none; 2]);
    let b = guest.node(32, [1, 0x80, 9, 9], Some(200), [none; 2]);
    let branch = guest.node(8, [1, 0, 0, 0], None, [a, b]);
    let root = guest.node(0, [0; 4], Some(300), [branch, none]);
    let trie = guest.trie("trie", root);
    // One that leads back to its root, one to nowhere.
    let back = guest.node(3, [0x20, 0, 0, 0], Some(1), [none; 2]);
    guest.write_u64(back, back.0);
    let circle = guest.trie("circle", back);
    let astray = guest.node(3, [0x20, 0, 0, 0], Some(2), [Kva(0xffff_8880_dead_0000), none]);
    let astray = guest.trie("astray", astray);
    let kernel = open(guest);
    let key = |len: u32, data: [u8; 4]| [len.to_le_bytes(), data].concat();
    let entry = |len, data, value: u64| (key(len, data), value.to_le_bytes().to_vec());
    let got = read(&kernel, trie);
    let want =
        [entry(0, [0; 4], 300), entry(12, [1, 0x10, 0, 0], 100), entry(32, [1, 0x80, 9, 9], 200)];
    assert_eq!((contents(&got), got.incomplete), (sorted(&want), None));
    let got = read(&kernel, circle);
    assert_eq!(contents(&got), [entry(3, [0x20, 0, 0, 0], 1)]);
    assert!(got.incomplete.unwrap().ends_with("has a prefix of 3 bits"));
    let got = read(&kernel, astray);
    assert_eq!(contents(&got), [entry(3, [0x20, 0, 0, 0], 2)]);
    assert_eq!(got.incomplete.unwrap(), "the node at 0xffff8880dead0000 cannot be read");
}

#[test]
fn task_storage_is_keyed_by_the_tasks_ids() {
    let mut guest = Guest::new();
    let tasks = [(Some(7), 70), (Some(9), 90), (None, 0), (Some(8), 80)];
    let (map, _) = guest.storage("storage", &tasks);
    let (circle, elems) = guest.storage("circle", &[(Some(7), 70), (Some(8), 80)]);
    guest.write_u64(elems[0], elems[0].0);
    let (wild, _) = guest.storage("wild", &[(Some(7), 70)]);
    guest.write_u32(wild.offset(at::STORAGE_LOG), 63);
    let kernel = open(guest);
    let got = read(&kernel, map);
    assert_eq!(contents(&got), keyed(&[(7, 70), (9, 90), (8, 80)]));
    assert_eq!(got.incomplete, None);
    assert_eq!(got.torn, ["an element has lost its owner: it is being freed"]);
    let got = read(&kernel, circle);
    assert_eq!(contents(&got), keyed(&[(7, 70), (8, 80)]));
    assert!(got.incomplete.unwrap().contains("circle"));
    let reason = "it claims 2^63 buckets".to_owned();
    assert_eq!(read(&kernel, wild).data, MapData::Unreadable { reason });
}

#[test]
fn programs_in_an_array_are_given_by_their_ids() {
    let mut guest = Guest::new();
    let map = guest.prog_array("programs", &[(2, 40), (5, 41)]);
    let wild = guest.prog_array("wild", &[(1, 42)]);
    guest.write_u64(wild.offset(at::ARRAY_VALUES), 0xffff_8880_dead_0000);
    let kernel = open(guest);
    let info = kernel.maps().unwrap().maps.into_iter().find(|m| m.kva == map).unwrap();
    let name = |ty| info.btf.as_ref().map(|btf| btf.type_name(ty));
    assert_eq!(
        (name(info.key_type), name(info.value_type)),
        (Some("u32".into()), Some("u32".into()))
    );
    let ids = |pairs: &[(u32, u32)]| -> Vec<Entry> {
        let bytes = |n: u32| n.to_le_bytes().to_vec();
        pairs.iter().map(|(k, v)| (bytes(*k), bytes(*v))).collect()
    };
    let got = read(&kernel, map);
    assert_eq!((contents(&got), got.incomplete), (ids(&[(2, 40), (5, 41)]), None));
    let got = read(&kernel, wild);
    assert_eq!(contents(&got), ids(&[(1, 42)]));
    assert!(got.incomplete.unwrap().starts_with("cannot read 8 bytes at 0xffff8880dead0008"));
}

#[test]
fn entries_of_an_absurd_size_are_refused_before_room_is_made_for_them() {
    let mut guest = Guest::new();
    let leaf = guest.node(9, [1, 2, 0, 0], Some(5), [Kva(0); 2]);
    let wild = [
        guest.trie("trie", leaf),
        guest.queue("queue", 5, 3, &[vec![1; 3]]),
        guest.storage("storage", &[(Some(7), 70)]).0,
        guest.struct_ops("ops", Kva(0), "busy"),
    ];
    for map in wild {
        guest.write_u32(map.offset(at::MAP_KIND + 8), 0xffff_f000);
    }
    let kernel = open(guest);
    for map in wild {
        match read(&kernel, map).data {
            MapData::Unreadable { reason } => {
                assert!(reason.starts_with("one entry takes 42949"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn small_budgets_leave_a_part_of_any_kind() {
    let kernel = open(busy_guest());
    let list = kernel.maps().unwrap();
    for name in ["trie", "queue", "storage", "programs", "ops"] {
        let info = list.maps.iter().find(|m| m.name == name).unwrap();
        let whole = kernel.copy_map(info, &mut budget()).decode();
        assert_ne!(whole.data.len().unwrap_or(0), 0, "{name}: {whole:?}");
        for bytes in 0..200 {
            let mut small = Budget::new(bytes, Duration::from_secs(60));
            let got = kernel.copy_map(info, &mut small).decode();
            let unreadable = matches!(got.data, MapData::Unreadable { .. });
            let missing = got.data.len() < whole.data.len();
            assert!(!missing || unreadable || got.incomplete.is_some(), "{name}, {bytes}: {got:?}");
        }
    }
}

#[test]
fn a_map_without_types_has_those_of_its_declaration_if_they_fit() {
    let mut guest = Guest::new();
    let mut types = Builder::new();
    let byte = types.int("unsigned char", 1, false);
    let value =
        types.structure("number", 3, &[("low", byte, 0), ("high", byte, 8), ("sum", byte, 16)]);
    let pointer = types.ptr(value);
    let declaration = types.structure("", 8, &[("value", pointer, 0)]);
    let vars = ["queue", "other"].map(|name| (types.var(name, declaration), 0, 8));
    types.datasec(".maps", 8, &vars);
    let btf = guest.btf(&types.encode());
    let queue = guest.queue("queue", 5, 0, &[vec![1, 2, 3]]);
    // Its values are larger than what is declared.
    let other = guest.queue("other", 5, 0, &[vec![1, 2, 3, 4]]);
    guest.prog(btf, &[queue, other]);
    let kernel = open(guest);
    for _ in 0..2 {
        let list = kernel.maps().unwrap();
        let info = |at| list.maps.iter().find(|m| m.kva == at).unwrap();
        let typed = info(queue);
        let name = typed.btf.as_ref().map(|btf| btf.type_name(typed.value_type));
        assert_eq!((name.as_deref(), typed.key_type), (Some("struct number"), 0));
        assert_eq!((info(other).btf.is_none(), info(other).value_type), (true, 0));
    }
}

#[test]
fn programs_have_whole_names_the_maps_they_use_and_what_all_cpus_counted() {
    let mut guest = Guest::new();
    let mut types = Builder::new();
    let proto = types.func_proto(0, &[]);
    let function = types.func("a_function_with_a_long_name", proto);
    let btf = guest.btf(&types.encode());
    let a = guest.array("a", 8, &[vec![1; 8]]);
    let b = guest.array("b", 8, &[vec![1; 8]]);
    let (prog, aux) = guest.prog(btf, &[b, a]);
    guest.write(aux.offset(32), b"a_function_with");
    let info = guest.alloc(8);
    guest.write_u32(info.offset(4), function);
    guest.write_u64(aux.offset(48), info.0);
    guest.write_u32(aux.offset(56), 1);
    let counted = |n: u64| [n, 1000 * n, 0].map(u64::to_le_bytes).concat();
    let stats = guest.percpu(&[&counted(3), &counted(4)]);
    guest.write_u64(prog.offset(16), stats);
    guest.variable("bpf_stats_enabled_key", &1u32.to_le_bytes());
    // One that leads nowhere, with as many maps as there can be numbers.
    let (_, wild) = guest.prog(btf, &[a]);
    guest.write_u32(wild, u32::MAX);
    guest.write_u32(wild.offset(56), u32::MAX);
    guest.write_u64(wild.offset(48), u64::MAX - 3);
    let (lost, _) = guest.prog(btf, &[]);
    guest.write_u64(lost.offset(8), 0xffff_8880_dead_0000);
    let kernel = open(guest);
    let list = kernel.progs(&mut budget()).unwrap();
    assert!(list.counts_runs);
    assert!(list.incomplete.unwrap().contains("0xffff8880dead0000"));
    let [prog, wild] = &list.progs[..] else { panic!("{:?}", list.progs) };
    assert_eq!(prog.full_name.as_deref(), Some("a_function_with_a_long_name"));
    assert_eq!((prog.id, prog.kind.as_str(), prog.maps.as_slice()), (1, "struct_ops", &[3, 2][..]));
    assert_eq!(prog.runs, Some(Runs { count: 7, time_ns: 7000, missed: 0 }));
    assert!(wild.incomplete.is_some(), "{wild:?}");
    assert_eq!(wild.runs, None, "its counters are nowhere");
    let late = kernel.progs(&mut Budget::new(1 << 20, Duration::ZERO)).unwrap();
    assert!(late.progs.is_empty() && late.incomplete.unwrap().starts_with("from program 1 on: "));
}

#[test]
fn what_is_not_counted_is_not_zero() {
    let mut guest = Guest::new();
    guest.prog(Kva(0), &[]);
    guest.variable("bpf_stats_enabled_key", &0u32.to_le_bytes());
    let list = open(guest).progs(&mut budget()).unwrap();
    assert_eq!((list.counts_runs, list.progs[0].runs), (false, None));
}
