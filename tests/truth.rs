//! The truth: what the host reads from a guest's RAM equals, key by key and byte by byte, what
//! the guest's own kernel says through the bpf() syscall.
//!
//! The test scheduler `zoo` fills maps of every kind that can be read, with every size of value,
//! tens of thousands of entries among them, and takes some out again. The agent holds the maps
//! open, the scheduler is detached, so nothing moves, and both readers read.

#[path = "truth/menagerie.rs"]
mod menagerie;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use cryoscope::introspect::{Budget, Kernel, MapData, MapInfo};
use cryoscope::snapshot::{KeyArg, Map, Snapshot, SnapshotError};
use cryoscope::vm::Boot;
use cryoscope::wire::{Answer, CgroupSet, HeldMap, Op, Prog, Work, WorkKind};
use support::Guest;

/// Key to value; of a per-CPU map the value is one string a CPU.
type Contents = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// What the syscall says.
fn said(guest: &Guest, map: &HeldMap, cpus: usize) -> Contents {
    let (mut all, mut skip) = (Contents::new(), 0);
    let per_cpu = matches!(map.kind, 5 | 6 | 10 | 21);
    let (size, stride) = (map.value_size as usize, (map.value_size as usize).next_multiple_of(8));
    loop {
        let page = guest.call(Op::DumpMap { id: map.id, skip });
        let Answer::MapPage { entries, next, more } = page else {
            panic!("{}: {page:?}", map.name);
        };
        for (key, value) in entries {
            let values = match per_cpu {
                true => {
                    (0..cpus).map(|c| value.0[c * stride..c * stride + size].to_vec()).collect()
                }
                false => vec![value.0],
            };
            assert!(all.insert(key.0, values).is_none(), "{}: the syscall repeats a key", map.name);
        }
        if !more {
            return all;
        }
        skip = next;
    }
}

/// What the host reads.
fn read(kernel: &Kernel, map: &MapInfo) -> Contents {
    let mut budget = Budget::new(256 << 20, std::time::Duration::from_secs(60));
    let contents = kernel.copy_map(map, &mut budget).decode();
    assert_eq!(contents.incomplete, None, "{}", map.name);
    assert_eq!(contents.torn, Vec::<String>::new(), "{}", map.name);
    assert!(contents.torn_entries.is_empty(), "{}: {:?}", map.name, contents.torn_entries);
    let index = |i: usize| (i as u32).to_le_bytes().to_vec();
    let cpus = |values: &cryoscope::introspect::PerCpuValues, i| {
        (0..values.cpus())
            .map(|cpu| values.get(i, cpu).unwrap_or_else(|| panic!("{}: no CPU {cpu}", map.name)))
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let listed: Vec<(Vec<u8>, Vec<Vec<u8>>)> = match contents.data {
        MapData::Array { values } => {
            values.iter().enumerate().map(|(i, v)| (index(i), vec![v.to_vec()])).collect()
        }
        MapData::PerCpuArray { values } => {
            (0..values.len()).map(|i| (index(i), cpus(&values, i))).collect()
        }
        MapData::Hash { keys, values } => {
            keys.iter().zip(values.iter()).map(|(k, v)| (k.to_vec(), vec![v.to_vec()])).collect()
        }
        MapData::PerCpuHash { keys, values } => {
            keys.iter().enumerate().map(|(i, k)| (k.to_vec(), cpus(&values, i))).collect()
        }
        MapData::Unreadable { reason } => panic!("{} cannot be read: {reason}", map.name),
    };
    let count = listed.len();
    let all: Contents = listed.into_iter().collect();
    assert_eq!(all.len(), count, "{}: the host gives a key twice", map.name);
    all
}

/// Both readers agree on every map of the zoo. How many entries were compared.
fn compare(guest: &Guest, held: &[HeldMap], kernel: &Kernel) -> usize {
    let cpus = kernel.nr_cpu_ids() as usize;
    let listed = kernel.maps().expect("the list of maps");
    assert_eq!(listed.torn, None);
    let (mut entries, mut kinds) = (0, BTreeMap::<&str, usize>::new());
    for map in held {
        let info = listed.maps.iter().find(|m| m.id == map.id);
        let info = info.unwrap_or_else(|| panic!("{} (id {}) is not listed", map.name, map.id));
        assert_eq!(
            (&info.name, info.kind.number, info.key_size, info.value_size, info.max_entries),
            (&map.name, map.kind, map.key_size, map.value_size, map.max_entries),
        );
        if SEPARATELY.contains(&map.kind) {
            continue;
        }
        let (mut said, mut read) = (said(guest, map, cpus), read(kernel, info));
        if map.kind == STRUCT_OPS {
            // The syscall adds how many refer to it now, in the first four bytes.
            said.values_mut().chain(read.values_mut()).for_each(|v| v[0][..4].fill(0));
        }
        assert_eq!(said.len(), read.len(), "{}: number of entries", map.name);
        for (key, value) in &said {
            assert_eq!(Some(value), read.get(key), "{}: key {key:02x?}", map.name);
        }
        entries += said.len();
        *kinds.entry(&info.kind.name).or_default() += said.len();
    }
    for kind in [
        "array",
        "hash",
        "lru_hash",
        "percpu_array",
        "percpu_hash",
        "lru_percpu_hash",
        "lpm_trie",
        "array_of_maps",
        "hash_of_maps",
        "prog_array",
        "struct_ops",
    ] {
        assert!(kinds.get(kind).is_some_and(|n| *n > 0), "no entry of kind {kind}: {kinds:?}");
    }
    entries
}

const STRUCT_OPS: u32 = 26;
/// Queues, storages, ring buffers and filters: the syscall cannot list them.
const SEPARATELY: [u32; 8] = [22, 23, 24, 27, 28, 29, 30, 32];

/// The values of a map without keys, or the one with that name.
fn values_of(kernel: &Kernel, held: &[HeldMap], name: &str) -> Contents {
    let id = held.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no map {name}")).id;
    let maps = kernel.maps().expect("the list of maps").maps;
    read(kernel, maps.iter().find(|m| m.id == id).expect("it is listed"))
}

/// Queues hold what the scheduler has put in, in that order.
fn check_queues(kernel: &Kernel, held: &[HeldMap]) {
    let number = |i: u32| vec![(1000 + i) as u8, ((1000 + i) >> 8) as u8, !i as u8];
    let listed = |name: &str| -> Vec<Vec<u8>> {
        values_of(kernel, held, name).into_values().map(|mut v| v.swap_remove(0)).collect()
    };
    let queued: Vec<Vec<u8>> = (5..20).map(number).collect();
    assert_eq!(listed("queue"), queued);
    // Of 10 to 14 each was taken out again as soon as it was put in.
    let stacked: Vec<Vec<u8>> = (0..10).chain(15..20).map(number).collect();
    assert_eq!(listed("stack"), stacked);
}

/// What each task has in its storage is what the hash, which the syscall has confirmed, says.
fn check_task_storage(guest: &Guest, kernel: &Kernel, held: &[HeldMap]) -> usize {
    let (notes, noted) = (values_of(kernel, held, "notes"), values_of(kernel, held, "noted"));
    for (pid, note) in &notes {
        assert_eq!(Some(note), noted.get(pid), "task {pid:?}");
        assert_eq!(note[0][8..12], pid[..], "the note of another task");
    }
    for pid in noted.keys().filter(|pid| !notes.contains_key(*pid)) {
        let pid = u32::from_le_bytes(pid[..4].try_into().expect("four bytes"));
        let path = format!("/proc/{pid}/stat");
        let answer = guest.channel.call(Op::ReadFile { path, offset: 0 }, support::CALL);
        assert!(answer.is_err(), "task {pid} lives and has no storage: {answer:?}");
    }
    notes.len()
}

/// Rings hold what was written and not thrown away, in that order.
fn check_ring(kernel: &Kernel, held: &[HeldMap]) {
    let wrote = (0..40u32).filter(|i| i % 5 != 4).map(|i| match i % 2 {
        0 => i.to_le_bytes().to_vec(),
        _ => (0..13).map(|j| (i * 7 + j) as u8).collect(),
    });
    let mut found: Vec<(u64, Vec<u8>)> = values_of(kernel, held, "ring")
        .into_iter()
        .map(|(key, mut value)| {
            (u64::from_le_bytes(key.try_into().expect("a position")), value.swap_remove(0))
        })
        .collect();
    found.sort();
    assert_eq!(
        found.into_iter().map(|(_, record)| record).collect::<Vec<_>>(),
        wrote.collect::<Vec<_>>()
    );
}

/// What each cgroup has in its storage is what the hash, which the syscall has confirmed, says.
fn check_cgroup_storage(kernel: &Kernel, held: &[HeldMap]) -> usize {
    let (notes, noted) =
        (values_of(kernel, held, "group_notes"), values_of(kernel, held, "groups_noted"));
    let mut ids: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for (path, note) in &notes {
        let path = String::from_utf8(path.clone()).expect("a path");
        let id = note[0][..8].to_vec();
        assert_eq!(Some(note), noted.get(&id), "{path}");
        assert_eq!(ids.insert(id, path.clone()), None, "{path}");
    }
    for i in 0..50 {
        assert!(notes.contains_key(format!("/lab/g{i}").as_bytes()), "{:?}", ids.values());
    }
    assert!(notes.contains_key(&b"/"[..]), "{:?}", ids.values());
    notes.len()
}

/// What hangs on sockets and files is what the agent has put there, by what it calls them.
fn check_other_storage(guest: &Guest, kernel: &Kernel, held: &[HeldMap]) {
    for name in ["sockets", "inodes"] {
        let map = held.iter().find(|map| map.name == name).expect("it is held");
        let stored = guest.call(Op::StoreByFd { id: map.id, count: 60 });
        let Answer::MapPage { entries, .. } = stored else { panic!("{stored:?}") };
        let stored: Contents = entries.into_iter().map(|(k, v)| (k.0, vec![v.0])).collect();
        assert_eq!(stored.len(), 60);
        let read = values_of(kernel, held, name);
        let text = |key: &Vec<u8>| String::from_utf8_lossy(key).into_owned();
        let keys = |all: &Contents| all.keys().map(text).collect::<Vec<_>>();
        assert_eq!(keys(&read), keys(&stored), "{name}");
        assert_eq!(read, stored, "{name}");
    }
}

/// Entries lead to the maps and programs that the object declares there.
fn check_what_entries_lead_to(snap: &Arc<Snapshot>) -> Result<(), SnapshotError> {
    let leads = |outer: &str, key: i128| {
        let inner = snap.map(outer)?.get(&KeyArg::Number(key))?.inner_map()?;
        Ok::<_, SnapshotError>((inner.name().to_owned(), inner.len()?))
    };
    for (outer, key, inner) in
        [("outer_array", 1, "inner_a"), ("outer_array", 4, "inner_b"), ("outer_hash", 0, "inner_b")]
    {
        assert_eq!(leads(outer, key)?, (inner.to_owned(), 3), "{outer}[{key}]");
    }
    let programs = snap.map("programs")?;
    for (key, name) in [(2, "tail_one"), (7, "tail_two")] {
        assert_eq!(programs.get(&KeyArg::Number(key))?.prog()?.state().name, name);
    }
    let e = programs.at(0)?.inner_map().unwrap_err().to_string();
    assert_eq!(
        e,
        "expected an entry of a map of maps, found one of \"programs\", which is of kind \
         prog_array"
    );
    Ok(())
}

/// Of what was put into a filter all may be in it, and of the rest not much.
fn check_blooms(snap: &Arc<Snapshot>) {
    let filter = snap.map("bloom").unwrap_or_else(|e| panic!("{e}"));
    let may = |filter: &Map, key: KeyArg| filter.contains(&key).unwrap_or_else(|e| panic!("{e}"));
    assert!((0..200).all(|i| may(&filter, KeyArg::Number(2 * i))));
    let wrong = (0..200).filter(|i| may(&filter, KeyArg::Number(2 * i + 1))).count();
    assert!(wrong < 100, "{wrong} of 200 that are not in it may be");
    let filter = snap.map("bloom_12").unwrap_or_else(|e| panic!("{e}"));
    let value = |i: u32| {
        let mut bytes = vec![0; 12];
        (bytes[0], bytes[11]) = (i as u8, (i >> 8) as u8);
        KeyArg::Bytes(bytes)
    };
    assert!((0..200).all(|i| may(&filter, value(2 * i))));
    let wrong = (0..200).filter(|i| may(&filter, value(2 * i + 1))).count();
    assert!(wrong < 100, "{wrong} of 200 that are not in it may be");
}

fn zoo(spec: &str, boot: fn(&cryoscope::kernel::KernelImage) -> Boot, topology: &str) {
    let image = support::kernel(spec);
    let prepared = support::scheduler("tests/schedulers/zoo.bpf.c", &image);
    let guest = Guest::boot(boot(&image), topology, |fs| support::stage(fs, &prepared));
    guest.call(Op::Start(Work {
        kind: WorkKind::Sleep,
        count: 40,
        cgroup: None,
        policy: None,
        nice: None,
        affinity: None,
        period_us: Some(1_000_000),
    }));
    for i in 0..50 {
        guest.call(Op::CgroupCreate { name: format!("g{i}"), set: CgroupSet::default() });
    }
    guest.call(support::attach(&prepared));
    let answer = guest.call(Op::HoldMaps);
    let Answer::Maps(held) = answer else { panic!("{answer:?}") };
    assert!(held.len() > 50, "the zoo has {} maps", held.len());
    guest.call(Op::Detach);

    let kernel = Kernel::open(guest.memory()).unwrap_or_else(|e| panic!("{e}"));
    let entries = compare(&guest, &held, &kernel);
    assert!(entries > 20_000, "only {entries} entries were compared");
    check_queues(&kernel, &held);
    check_ring(&kernel, &held);
    let snap = menagerie::snapshot(&guest);
    check_blooms(&snap);
    check_what_entries_lead_to(&snap).unwrap_or_else(|e| panic!("{e}"));
    let groups = check_cgroup_storage(&kernel, &held);
    assert!(groups > 50, "only {groups} cgroups have storage");
    check_other_storage(&guest, &kernel, &held);
    let tasks = check_task_storage(&guest, &kernel, &held);
    assert!(tasks >= 50, "only {tasks} tasks have storage");
    let big = held.iter().find(|m| m.name == "big").expect("the map of many entries");
    assert!(said(&guest, big, 1).len() >= 10_000);
}

#[test]
fn maps_read_from_ram_equal_the_syscalls_on_7_2_with_kaslr() {
    zoo("debian:7.2", support::bzimage, "1n1l2c1t");
}

#[test]
fn maps_read_from_ram_equal_the_syscalls_on_7_3() {
    zoo("debian:7.3", support::elf, "1n2l2c1t");
}

/// Programs are what the syscall says. What they count goes on counting, so the host's reading
/// lies between two of the guest's.
fn progs(spec: &str, boot: fn(&cryoscope::kernel::KernelImage) -> Boot, counting: bool) {
    let image = support::kernel(spec);
    let prepared = support::scheduler("examples/schedulers/fifo.bpf.c", &image);
    let mut machine = support::spec(boot(&image), "1n1l2c1t", |fs| support::stage(fs, &prepared));
    if counting {
        machine.kargs.push("sysctl.kernel.bpf_stats_enabled=1".into());
    }
    let guest = Guest::start(&machine);
    guest.call(support::attach(&prepared));
    let kernel = Kernel::open(guest.memory()).unwrap_or_else(|e| panic!("{e}"));
    let ask = || match guest.call(Op::ListProgs) {
        Answer::Progs(progs) => progs,
        other => panic!("{other:?}"),
    };
    let before = ask();
    let mut budget = Budget::new(1 << 20, std::time::Duration::from_secs(60));
    let read = kernel.progs(&mut budget).expect("the list of programs");
    let after = ask();
    assert_eq!((read.counts_runs, read.incomplete), (counting, None));
    let ids = |progs: &[Prog]| progs.iter().map(|p| p.id).collect::<Vec<_>>();
    assert_eq!(ids(&before), read.progs.iter().map(|p| p.id).collect::<Vec<_>>());
    assert_eq!(ids(&before), ids(&after));
    let mut ran = 0;
    for ((before, after), ours) in before.iter().zip(&after).zip(&read.progs) {
        assert_eq!((&before.name, &before.maps), (&ours.name, &ours.maps), "{ours:?}");
        assert_eq!(ours.incomplete, None);
        let struct_ops = before.kind == 27;
        assert_eq!(ours.kind == "struct_ops", struct_ops, "{ours:?}");
        match ours.runs {
            Some(runs) => {
                assert!(counting);
                assert!((before.run_count..=after.run_count).contains(&runs.count), "{ours:?}");
                let time = before.run_time_ns..=after.run_time_ns;
                assert!(time.contains(&runs.time_ns), "{ours:?}: {time:?}");
                ran += runs.count;
            }
            None => assert!(!counting),
        }
    }
    assert_eq!(ran > 0, counting);
    let names: Vec<&str> = read.progs.iter().filter_map(|p| p.full_name.as_deref()).collect();
    assert!(names.contains(&"fifo_select_cpu"), "{names:?}");
    menagerie::every_kind_is_read(&kernel);
    menagerie::compare(&guest, &kernel);
}

#[test]
fn programs_read_from_ram_are_the_syscalls_on_7_2_with_kaslr() {
    progs("debian:7.2", support::bzimage, true);
}

#[test]
fn programs_read_from_ram_are_the_syscalls_on_7_3() {
    progs("debian:7.3", support::elf, false);
}
