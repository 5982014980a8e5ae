//! Everything that can be asked of a snapshot, asked.

use std::sync::Arc;

use cryoscope::snapshot::{Entry, Field, FieldKind, KeyArg, Map, Reduce, Snapshot, to_json};

use super::scratch;

/// Entries of a map, members of a struct and so on that are looked at one by one.
const SOME: usize = 12;
/// Structs within structs.
const DEEP: u32 = 4;

/// Asks everything. That there are answers is not checked, that there are no panics is.
pub(crate) fn snapshot(snapshot: &Arc<Snapshot>) {
    maps(snapshot);
    kernel(snapshot);
}

/// Asks everything about maps, and the snapshot as a whole.
pub(crate) fn maps(snapshot: &Arc<Snapshot>) {
    let _ = (format!("{snapshot:?}"), snapshot.instant(), snapshot.torn(), snapshot.bytes());
    for map in snapshot.maps().into_iter().flatten() {
        self::map(&map);
    }
    let _ = snapshot.dump();
    let _ = snapshot.global("nr_enqueued").map(|field| self::field(&field, DEEP));
    let _ = snapshot.map("no such map").map_err(|e| e.to_string());
    if let Ok(diff) = snapshot.diff(snapshot, true) {
        let changed: Vec<_> = diff.changes.iter().map(|change| &change.path).collect();
        assert!(changed.is_empty(), "a snapshot differs from itself in {changed:?}");
    }
}

fn map(map: &Map) {
    let _ = (map.name(), map.len(), map.torn(), map.incomplete(), map.headline());
    let _ = map.dump();
    as_json(map);
    let entries = map.known_entries();
    let len = entries.len();
    // The last ones are those that a map cut short ends with.
    let some = entries.enumerate().filter(|(i, _)| *i < SOME || *i + 2 > len);
    for (_, entry) in some.take(SOME + 2) {
        self::entry(&entry);
        if let Ok(number) = entry.key().as_i64() {
            let _ = map.get(&KeyArg::Number(number.into())).map_err(|e| e.to_string());
        }
        if let Ok(raw) = entry.key().raw() {
            let _ = map.contains(&KeyArg::Bytes(raw)).map_err(|e| e.to_string());
        }
    }
    for index in [0, -1, i64::MAX, i64::MIN] {
        let _ = map.at(index).map_err(|e| e.to_string());
        let _ = map.cpu(index).map(|map| map.dump()).map_err(|e| e.to_string());
    }
    let _ = map.get(&KeyArg::Str("x".to_owned())).map_err(|e| e.to_string());
}

/// All entries at once are read by their places, each alone by its path: the same must come out.
fn as_json(map: &Map) {
    let entries = map.known_entries();
    if entries.len() > 100 || map.cpus().is_ok() {
        return;
    }
    let all = serde_json::to_value(map.entries_as_json()).expect("it is JSON");
    for (entry, row) in entries.zip(all.as_array().expect("a list")) {
        let value = entry.value().map_or(serde_json::Value::Null, |value| to_json(&value));
        assert_eq!(row["value"], value, "{} of {}", entry.key_text(), map.name());
    }
}

fn entry(entry: &Entry) {
    let _ = (entry.key_text(), entry.is_present(), entry.torn(), entry.dump());
    field(&entry.key(), DEEP);
    for cpu in [-1, 0, 1, 70_000] {
        let _ = entry.cpu(cpu).and_then(|e| e.value()).map(|value| field(&value, 1));
    }
    for how in [Reduce::Sum, Reduce::Max, Reduce::Min] {
        let _ = entry.reduce(how, "").map_err(|e| e.to_string());
    }
    if let Ok(value) = entry.value() {
        field(&value, DEEP);
    }
}

/// A value and what is in it.
pub(crate) fn field(field: &Field, deep: u32) {
    let _ = (field.kind(), field.type_name(), field.origin(), field.described());
    let _ =
        (field.leaf(), field.raw(), field.inline(60), field.as_str().map_err(|e| e.to_string()));
    let _ = (field.as_u64(), field.as_f64(), field.as_bool());
    let Some(deep) = deep.checked_sub(1) else { return };
    if let Ok(members) = field.members() {
        for name in members.iter().take(4 * SOME) {
            let _ = field.get(name).map(|member| self::field(&member, deep));
        }
    }
    if field.kind() == FieldKind::Array
        && let Ok(elements) = field.as_array()
    {
        elements.iter().take(3).for_each(|element| self::field(element, deep.min(1)));
    }
    if field.kind() == FieldKind::Pointer {
        let _ = field.as_ptr("struct task_struct").map(|field| self::field(&field, deep));
    }
}

/// Asks everything about the kernel.
pub(crate) fn kernel(snapshot: &Arc<Snapshot>) {
    for task in snapshot.tasks().into_iter().flatten().take(4 * SOME) {
        let _ = (task.headline(), task.comm(), task.state(), task.policy(), task.class());
        let _ = (task.nice(), task.cpus_allowed(), task.cgroup(), task.cgroup_id());
        let _ = task.dsq().map(|dsq| dsq.map(|dsq| dsq.headline()));
        let _ = task.whole().map(|whole| field(&whole, 2));
        for path in ["group_leader.comm", "group_leader.group_leader.pid", "scx.dsq.id"] {
            let _ = task.get(path).map(|found| field(&found, 2)).map_err(|e| e.to_string());
        }
    }
    for cpu in snapshot.cpus().into_iter().flatten().take(4 * SOME) {
        let _ = (cpu.headline(), cpu.cpustat(), cpu.torn(), cpu.is_idle());
        let _ = cpu.curr().map(|task| task.headline());
        let _ = cpu.whole().map(|whole| field(&whole, 3));
        let _ = cpu.dsq().map(|dsq| dsq.headline());
        let _ = cpu.kernel("runqueues", Some("struct rq")).map(|found| field(&found, 1));
    }
    for dsq in snapshot.dsqs().into_iter().flatten().take(4 * SOME) {
        let _ = (dsq.headline(), dsq.torn(), dsq.tasks().map(|tasks| tasks.len()));
        let _ = dsq.whole().map(|whole| field(&whole, 2));
    }
    if let Ok(sched) = snapshot.sched() {
        let _ = (sched.headline(), sched.state(), sched.counters(None), sched.counters(Some(1)));
        let _ = sched.ops().map(|ops| field(&ops, 2));
        let _ = sched.whole().map(|whole| field(&whole, 3));
    }
    for prog in snapshot.progs().into_iter().flatten().take(4 * SOME) {
        let _ = (prog.headline(), prog.maps(), prog.runs());
    }
    memory(snapshot);
    for (symbol, ty) in [("jiffies_64", "u64"), ("scx_root", "struct scx_sched *")] {
        let _ = snapshot.kernel(symbol, Some(ty)).map(|found| field(&found, 3));
    }
}

/// Asks for symbols, and for memory where all of it was kept.
fn memory(snapshot: &Arc<Snapshot>) {
    let mut places = vec![0, 0x20_0000, u64::MAX - 4, 0xffff_8880_0000_0000, 0xffff_ffff_8100_0000];
    if let Ok(symbols) = snapshot.symbols() {
        for name in ["jiffies_64", "init_task", "map_idr", "", "no_such_symbol"] {
            places.extend(symbols.addresses(name).iter().take(3));
            let _ = symbols.alike(name);
        }
        for at in &places {
            let _ = (symbols.at(*at), symbols.room_at(*at));
        }
    }
    let Ok(ram) = snapshot.ram() else { return };
    let _ = (ram.size(), ram.kept(), format!("{ram:?}"));
    for at in places {
        for len in [0, 1, 8, 5000, u64::MAX] {
            let _ = (ram.at(at, len), ram.physical(at, len), ram.translate(at));
        }
    }
}

/// What is saved and opened again must say the same.
pub(crate) fn same_from_a_file(live: &Arc<Snapshot>, ram: bool) {
    let path = scratch("same.cryo");
    let saved = if ram { live.save_with_ram(&path) } else { live.save(&path) };
    saved.expect("a snapshot can be saved");
    let opened = match Snapshot::open(&path) {
        Ok(opened) => opened,
        Err(e) => panic!("what was saved cannot be opened: {e}"),
    };
    let (want, got) = (live.dump(), opened.dump());
    if want != got {
        let differ = want.lines().zip(got.lines()).find(|(a, b)| a != b);
        panic!("a file says something else: {differ:?}");
    }
}
