//! The kinds of map that user space fills: what the agent has put in is what the host reads, and
//! what the syscall says, where it says anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cryoscope::btf::Shape;
use cryoscope::introspect::{Budget, Kernel, MapContents, MapData, MapInfo, MapKind};
use cryoscope::mem::Kva;
use cryoscope::snapshot::{
    CaptureRequest, Capturer, Detail, Entry, Field, KeyArg, Map, Meta, Scalar, Snapshot,
};
use cryoscope::wire::{Answer, Hex, MadeMap, Op};

use super::said;
use super::support::Guest;

const PERF_EVENT_ARRAY: u32 = 4;
const STACK_TRACE: u32 = 7;
const CGROUP_ARRAY: u32 = 8;
const XSKMAP: u32 = 17;
const PERCPU_CGROUP_STORAGE: u32 = 21;
const USER_RINGBUF: u32 = 31;
const ARENA: u32 = 33;

/// Kinds whose entries the syscall does not give, with what it says instead.
const NOT_SAID: [u32; 4] = [XSKMAP, PERF_EVENT_ARRAY, CGROUP_ARRAY, USER_RINGBUF];

/// Every kind that the kernel's own types name is looked for in memory: none is silently empty, and
/// none is left out.
pub(super) fn every_kind_is_read(kernel: &Kernel) {
    let btf = kernel.btf();
    let shape = btf.shape(btf.find_c("enum bpf_map_type").expect("the kinds")).expect("an enum");
    let Shape::Enum(kinds) = &*shape else { panic!("{shape:?}") };
    let mut read = Vec::new();
    for (name, number) in &kinds.variants {
        let Some(name) = name.strip_prefix("BPF_MAP_TYPE_").filter(|n| *n != "UNSPEC") else {
            continue;
        };
        let name = name.to_ascii_lowercase();
        let name = name.trim_end_matches("_deprecated");
        let kind = MapKind { number: *number as u32, name: name.to_owned() };
        let mut budget = Budget::new(1 << 20, Duration::from_secs(1));
        let contents = kernel.copy_map(&nowhere(kind), &mut budget).decode();
        let reason = match (contents.data, contents.incomplete) {
            (MapData::Unreadable { reason }, _) => reason,
            (_, Some(reason)) => reason,
            (data, None) => panic!("{name}: {data:?} of a map that is nowhere"),
        };
        let memory = ["cannot read ", "is not a canonical", "no page is"];
        assert!(memory.iter().any(|words| reason.contains(words)), "{name}: {reason}");
        read.push(name.to_owned());
    }
    assert!(read.len() >= 35, "only {read:?}");
    assert!(read.iter().any(|name| name == "rhash"), "{read:?}");
}

/// A map in memory that no kernel has.
fn nowhere(kind: MapKind) -> MapInfo {
    MapInfo {
        id: 1,
        kva: Kva(0xffff_ffff_ffff_0000),
        kind,
        name: "nowhere".into(),
        full_name: None,
        section: None,
        key_size: 4,
        value_size: 8,
        max_entries: 4,
        map_flags: 0,
        map_extra: 0,
        frozen: false,
        btf: None,
        btf_error: None,
        key_type: 0,
        value_type: 0,
        btf_kva: Kva(0),
        torn: Vec::new(),
    }
}

/// Reads a map that nothing changes. Each CPU's value, one after the other, where each has its own.
fn read(kernel: &Kernel, map: &MadeMap) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let name = &map.map.name;
    let list = kernel.maps().expect("the list of maps");
    let info = list.maps.iter().find(|m| m.id == map.map.id);
    let info = info.unwrap_or_else(|| panic!("{name} is not listed"));
    let mut budget = Budget::new(64 << 20, Duration::from_secs(60));
    let MapContents { data, torn, incomplete, .. } = kernel.copy_map(info, &mut budget).decode();
    assert_eq!((incomplete, torn), (None, vec![]), "{name}");
    let (keys, values): (_, Vec<Vec<u8>>) = match data {
        MapData::Hash { keys, values } => (keys, values.iter().map(<[u8]>::to_vec).collect()),
        MapData::PerCpuHash { keys, values } => {
            let of_cpu = |row, cpu| values.get(row, cpu).expect("a value for each CPU");
            let row = |row| (0..values.cpus()).flat_map(|cpu| of_cpu(row, cpu).to_vec()).collect();
            (keys, (0..values.len()).map(row).collect())
        }
        other => panic!("{name}: {other:?}"),
    };
    let rows: BTreeMap<_, _> = keys.iter().map(<[u8]>::to_vec).zip(values).collect();
    assert_eq!(rows.len(), keys.len(), "{name}: the host gives a key twice");
    rows
}

/// Has the agent make its maps, and compares.
pub(super) fn compare(guest: &Guest, kernel: &Kernel) {
    let Answer::Made(made) = guest.call(Op::MakeMaps) else { panic!("no maps were made") };
    for map in &made {
        assert_eq!(map.refused, None, "the kernel refuses {}", map.map.name);
    }
    // Before anybody looks a socket up, which would give it a cookie.
    let snapshot = snapshot(guest);
    for map in &made {
        words(&snapshot, map);
    }
    let mut counts = BTreeMap::new();
    for map in &made {
        counts.insert(map.map.name.as_str(), bytes(guest, kernel, map));
    }
    stacks(guest, &made, &snapshot);
    counts.retain(|name, count| match name.strip_prefix("stacks") {
        Some(_) => {
            assert!(*count > 0, "{name} is empty");
            false
        }
        None => true,
    });
    let want = [
        ("arena", 8),
        ("arena_empty", 0),
        ("arena_huge", 5),
        ("cgroups", 5),
        ("cpu_all", 4),
        ("cpu_ways", 8),
        ("cpumap", 2),
        ("devmap", 3),
        ("devmap_hash", 3),
        ("events", 4),
        ("group_ways", 8),
        ("groups_all", 4),
        ("insns", 5),
        ("no_requests", 0),
        ("requests", 60 - 9),
        ("reuseport", 3),
        ("rhash_empty", 0),
        ("rhash_long", 3000 - 429),
        ("rhash_odd", 100 - 15),
        ("sockhash", 6),
        ("sockmap", 6),
        ("xskmap", 2),
    ];
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), want);
}

/// The host's bytes are the syscall's, as far as those go. How many entries there are.
fn bytes(guest: &Guest, kernel: &Kernel, map: &MadeMap) -> usize {
    let name = &map.map.name;
    if NOT_SAID.contains(&map.map.kind) {
        let dump = Op::DumpMap { id: map.map.id, skip: 0 };
        let refused = guest.channel.call(dump, super::support::CALL).unwrap_err().to_string();
        // ENOTSUPP is the kernel's own, and has no words in user space.
        let words = ["not supported", "error 524"];
        assert!(words.iter().any(|words| refused.contains(words)), "{refused}");
        return read(kernel, map).len();
    }
    let per_cpu = map.map.kind == PERCPU_CGROUP_STORAGE;
    let mut said = said(guest, &map.map, if per_cpu { kernel.nr_cpu_ids() as usize } else { 1 });
    for value in said.values_mut() {
        *value = vec![value.concat()];
    }
    let read = read(kernel, map);
    let keys = |keys: Vec<&Vec<u8>>| keys.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(keys(said.keys().collect()), keys(read.keys().collect()), "{name}");
    for (key, value) in &said {
        let there = &read[key][..value[0].len().min(read[key].len())];
        assert!(there == &value[0][..], "{name}: key {key:02x?}: {there:02x?}, {value:02x?}");
    }
    read.len()
}

pub(super) fn snapshot(guest: &Guest) -> Arc<Snapshot> {
    let capturer = Capturer::open(guest.memory()).expect("the kernel can be read");
    let request = CaptureRequest::default();
    assert_eq!(capturer.prepare(&request).expect("the maps").len(), 0);
    let raw = capturer.capture(&request).expect("the maps");
    raw.finish(Meta { tag: "menagerie".into(), ..Meta::default() })
}

/// What the agent knows of an entry is what a script reads by the same name.
fn words(snapshot: &Arc<Snapshot>, made: &MadeMap) {
    let name = format!("{}#{}", made.map.name, made.map.id);
    let map = snapshot.map(&name).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (Hex(key), facts) in &made.entries {
        if made.map.kind == ARENA {
            arena(&map, facts);
            continue;
        }
        if made.map.kind == USER_RINGBUF {
            // A position, or the ring as a whole.
            let at = key.as_slice().try_into().ok().map(u64::from_le_bytes);
            record(&map, at, facts);
            continue;
        }
        let entry = || map.get(&KeyArg::Bytes(key.clone())).unwrap_or_else(|e| panic!("{e}"));
        for (what, told) in facts {
            let found = fact(&entry(), what);
            assert_eq!(&found, told, "{name}, key {key:02x?}: {what}");
        }
    }
}

/// What an entry has by that name: in its value, its key, or beside both.
fn fact(entry: &Entry, what: &str) -> String {
    let field = match (what.strip_prefix("details."), what.strip_prefix("key")) {
        (Some(name), _) => return detail(entry.details(), name),
        (_, Some("")) => Ok(entry.key()),
        (_, Some(path)) => entry.key().get(path.trim_start_matches('.')),
        _ if what.is_empty() => entry.value(),
        _ => entry.get(what),
    };
    text(&field.unwrap_or_else(|e| panic!("{what}: {e}")))
}

fn detail(details: &[(String, Detail)], wanted: &str) -> String {
    let found = details.iter().find(|(name, _)| name == wanted);
    found.unwrap_or_else(|| panic!("no {wanted} in {details:?}")).1.to_string()
}

/// The record at a position in a ring, or the ring's own positions.
fn record(map: &Map, at: Option<u64>, facts: &[(String, String)]) {
    let Some(at) = at else {
        for (what, told) in facts {
            assert_eq!(&detail(map.details(), what), told, "{}: {what}", map.name());
        }
        return;
    };
    let entry = map.get(&KeyArg::Number(at.into())).unwrap_or_else(|e| panic!("{e}"));
    let raw = entry.value().and_then(|value| value.raw()).unwrap_or_else(|e| panic!("{e}"));
    let record: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    let busy = !entry.torn().is_empty();
    let found = [("record", record), ("busy", busy.to_string())];
    let found = found.map(|(name, what)| (name.to_owned(), what));
    assert_eq!(&found[..], facts, "{}: {}", map.name(), entry.key_text());
}

fn text(field: &Field) -> String {
    match field.scalar().unwrap_or_else(|e| panic!("{e}")) {
        Scalar::Str(text) => text,
        Scalar::Enum(value) => {
            value.name().map_or_else(|| value.value().to_string(), |name| name.into_owned())
        }
        Scalar::Int(n) => n.to_string(),
        _ => field.as_u64().unwrap_or_else(|e| panic!("{e}")).to_string(),
    }
}

/// Pages lie where user space has them, and what lies in them leads on.
fn arena(map: &Map, facts: &[(String, String)]) {
    let fact = |name: &str| -> Option<u64> {
        facts.iter().find(|(n, _)| n == name).map(|(_, v)| v.parse().expect("a number"))
    };
    let start = fact("start").expect("where the arena begins");
    for entry in map.entries().unwrap_or_else(|e| panic!("{e}")) {
        let at = entry.key().as_u64().unwrap_or_else(|e| panic!("{e}"));
        let size = u64::from(map.attrs().max_entries) * 4096;
        assert!((start..start + size).contains(&at), "{at:#x} is not in {}", map.name());
    }
    let Some(list) = fact("next").zip(fact("prev")) else { return };
    let first = map.get(&KeyArg::Number(start.into())).unwrap_or_else(|e| panic!("{e}"));
    let first = first.as_type("struct list_head").unwrap_or_else(|e| panic!("{e}"));
    let number = |path: &str| {
        let found = first.get(path).and_then(|field| field.as_u64());
        found.unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    // The one is a whole address, the other its lower half.
    assert_eq!((number("next.next"), number("next.prev")), list);
    assert_eq!((number("prev.next"), number("prev.prev")), list);
    assert_eq!(number("next.next") - start, 0x10, "it lies in the first page");
    let there = number("next.next.next");
    let page = map.get(&KeyArg::Number(start.into())).and_then(|page| page.value()?.raw());
    let page = page.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(there.to_le_bytes(), page[0x10..0x18], "and leads on");
    let e = first.get("next.prev.next").unwrap_err().to_string();
    assert!(e.contains(&format!("{:#x}", list.1)), "{e}");
}

/// The kernel's functions by their addresses, as the guest lists them.
fn functions(guest: &Guest) -> BTreeMap<u64, Vec<String>> {
    let mut out = BTreeMap::<u64, Vec<String>>::new();
    for line in guest.file("/proc/kallsyms").lines() {
        let mut words = line.split_whitespace();
        let (at, kind, name) = (words.next(), words.next(), words.next());
        let at = u64::from_str_radix(at.expect("an address"), 16).expect("hexadecimal");
        let name = name.expect("a name").to_owned();
        if matches!(kind, Some("t" | "T" | "w" | "W")) {
            let of_bpf = words.next() == Some("[bpf]");
            out.entry(at).or_default().push(if of_bpf { name + " [bpf]" } else { name });
        }
    }
    out
}

/// Stacks are what the syscall says, and their functions are called what the guest calls them.
fn stacks(guest: &Guest, made: &[MadeMap], snapshot: &Arc<Snapshot>) {
    let functions = functions(guest);
    let (mut kernel, mut bpf, mut user, mut in_files) = (0, 0, 0, 0);
    for made in made.iter().filter(|made| made.map.kind == STACK_TRACE) {
        let map = snapshot.map(&format!("{}#{}", made.map.name, made.map.id));
        let map = map.unwrap_or_else(|e| panic!("{e}"));
        let frame = if made.map.name.ends_with("files") || made.map.name.ends_with("mixed") {
            32
        } else {
            8
        };
        for (key, value) in said(guest, &made.map, 1) {
            let entry = map.get(&KeyArg::Bytes(key)).unwrap_or_else(|e| panic!("{e}"));
            let stack = entry.stack().unwrap_or_else(|e| panic!("{e}"));
            let used = value[0].chunks_exact(frame).rposition(|raw| raw.iter().any(|b| *b != 0));
            assert_eq!(Some(stack.frames.len()), used.map(|last| last + 1), "{}", map.name());
            assert_eq!(stack.is_complete(), stack.frames.len() * frame < value[0].len());
            for (raw, frame) in value[0].chunks_exact(frame).zip(&stack.frames) {
                let (head, place) = raw.split_at(raw.len() - 8);
                let place = u64::from_le_bytes(place.try_into().expect("eight bytes"));
                assert_eq!(frame.address, place);
                let symbol = frame.symbol.as_deref();
                if head.first() == Some(&1) {
                    let id: String = head[4..].iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(symbol, Some(format!("{id}+{place:#x}").as_str()));
                    in_files += 1;
                } else if place < 1 << 63 {
                    assert_eq!(symbol, None);
                    user += 1;
                } else {
                    let symbol = symbol.unwrap_or_else(|| panic!("nothing at {place:#x}"));
                    let (name, within) = symbol.split_once('+').expect("a place in a function");
                    let (within, of_bpf) = match within.split_once(' ') {
                        Some((within, of_bpf)) => (within, format!(" {of_bpf}")),
                        None => (within, String::new()),
                    };
                    let within = u64::from_str_radix(within.trim_start_matches("0x"), 16);
                    let start = place - within.expect("hexadecimal");
                    let names = functions.get(&start).unwrap_or_else(|| panic!("{symbol}"));
                    assert!(names.contains(&format!("{name}{of_bpf}")), "{symbol}: {names:?}");
                    // Nothing else begins between the two.
                    assert_eq!(functions.range(start + 1..place).next(), None, "{symbol}");
                    if of_bpf.is_empty() { kernel += 1 } else { bpf += 1 }
                }
            }
        }
    }
    let seen = [kernel, bpf, user, in_files];
    assert!(kernel > 50 && bpf > 5 && user > 0 && in_files > 0, "{seen:?}");
}
