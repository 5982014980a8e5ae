//! The kinds of map that user space fills: what the agent has put in is what the host reads, and
//! what the syscall says, where it says anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cryoscope::btf::Shape;
use cryoscope::introspect::{Budget, Kernel, MapContents, MapData, MapInfo, MapKind};
use cryoscope::mem::Kva;
use cryoscope::snapshot::{CaptureRequest, Capturer, Field, KeyArg, Map, Meta, Scalar, Snapshot};
use cryoscope::wire::{Answer, Hex, MadeMap, Op};

use super::said;
use super::support::Guest;

const XSKMAP: u32 = 17;
const ARENA: u32 = 33;

/// Kinds of which nothing is read, or not by what is tested here.
const NOT_READ: [&str; 5] =
    ["perf_event_array", "stack_trace", "cgroup_array", "cgroup_storage", "percpu_cgroup_storage"];

/// Every kind that the kernel's own types name is either looked for in memory, or says that it is
/// not read: none is silently empty.
pub(super) fn every_kind_is_read_or_says_why_not(kernel: &Kernel) {
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
        // It was looked for, or not.
        if ["cannot read ", "is not a canonical", "no page is"].iter().any(|w| reason.contains(w)) {
            read.push(name.to_owned());
        } else {
            assert!(NOT_READ.contains(&name) && reason.contains(name), "{name}: {reason}");
        }
    }
    assert!(read.len() >= 30, "only {read:?}");
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

/// Reads a map that nothing changes.
fn read(kernel: &Kernel, map: &MadeMap) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let name = &map.map.name;
    let list = kernel.maps().expect("the list of maps");
    let info = list.maps.iter().find(|m| m.id == map.map.id);
    let info = info.unwrap_or_else(|| panic!("{name} is not listed"));
    let mut budget = Budget::new(64 << 20, Duration::from_secs(60));
    let MapContents { data, torn, incomplete, .. } = kernel.copy_map(info, &mut budget).decode();
    assert_eq!((incomplete, torn), (None, vec![]), "{name}");
    let MapData::Hash { keys, values } = data else { panic!("{name}: {data:?}") };
    let rows: BTreeMap<_, _> =
        keys.iter().map(<[u8]>::to_vec).zip(values.iter().map(<[u8]>::to_vec)).collect();
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
    let want = [
        ("arena", 8),
        ("arena_empty", 0),
        ("arena_huge", 5),
        ("cpumap", 2),
        ("devmap", 3),
        ("devmap_hash", 3),
        ("insns", 5),
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
    if map.map.kind == XSKMAP {
        let dump = Op::DumpMap { id: map.map.id, skip: 0 };
        let refused = guest.channel.call(dump, super::support::CALL).unwrap_err().to_string();
        assert!(refused.contains("not supported"), "{refused}");
        return read(kernel, map).len();
    }
    let said = said(guest, &map.map, 1);
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
        let entry = map.get(&KeyArg::Bytes(key.clone())).unwrap_or_else(|e| panic!("{e}"));
        for (what, told) in facts {
            let field = entry.get(what).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(&text(&field), told, "{name}, key {key:02x?}: {what}");
        }
    }
}

fn text(field: &Field) -> String {
    match field.scalar().unwrap_or_else(|e| panic!("{e}")) {
        Scalar::Str(text) => text,
        Scalar::Enum(value) => value.name().expect("a name").into_owned(),
        _ => field.as_u64().unwrap_or_else(|e| panic!("{e}")).to_string(),
    }
}

/// Pages lie where user space has them.
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
}
