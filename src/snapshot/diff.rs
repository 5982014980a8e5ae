//! What changed from one snapshot to another, value by value.
//!
//! Maps are matched by name, tasks by number, entries by key, values member by member and element by element.
//! What is equal byte for byte is not looked into. Addresses differ from boot to boot and say
//! little, so they are left out unless asked for.

mod kernel;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::value::{FieldKind, Scalar};
use super::{Entry, Field, Map, Snapshot, SnapshotResult};

/// Changes that are kept; of further ones only the number is told.
const MAX_CHANGES: usize = 100_000;
/// Levels of members and elements that are looked into.
const MAX_LEVELS: usize = 32;
/// Characters of a value's text.
const WIDTH: usize = 160;

/// One value that is not the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Where: `fifo.bss.nr_running`, `task_ctx[1002].runs.total_ns`, `cpu_stats[0].cpu(1).busy_ns`.
    pub path: String,
    /// What was there; `None` for what is new.
    pub old: Option<Value>,
    /// What is there now; `None` for what is gone.
    pub new: Option<Value>,
}

/// A value, as text and, where it is one, as a scalar.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// As it is shown elsewhere.
    pub text: String,
    /// Numbers, names and text.
    pub scalar: Option<Scalar>,
}

/// All that is not the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// By map in the order of names, then by key.
    pub changes: Vec<Change>,
    /// How many more there are than are kept.
    pub more: usize,
    /// What could not be compared, and why.
    pub unknown: Vec<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = &self.path;
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => {
                write!(f, "~ {path}: {} → {}", old.text, new.text)?;
                match (old.number(), new.number()) {
                    (Some(old), Some(new)) => write!(f, " ({:+})", new - old),
                    _ => Ok(()),
                }
            }
            (None, Some(new)) => write!(f, "+ {path}: {}", new.text),
            (Some(old), None) => write!(f, "- {path}: {}", old.text),
            (None, None) => write!(f, "  {path}"),
        }
    }
}

impl std::fmt::Display for Diff {
    /// A line for each change, and for what is missing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        if self.more > 0 {
            writeln!(f, "and {} changes more", self.more)?;
        }
        for why in &self.unknown {
            writeln!(f, "? {why}")?;
        }
        Ok(())
    }
}

impl Value {
    fn of(field: &Field) -> Value {
        Value { text: field.inline(WIDTH), scalar: field.leaf().ok().flatten() }
    }

    /// A number whose difference means something.
    fn number(&self) -> Option<i128> {
        match &self.scalar {
            Some(Scalar::Enum(_)) | None => None,
            Some(scalar) => scalar.number(),
        }
    }
}

impl Snapshot {
    /// What changed from this snapshot to `newer`. With `addresses`, pointers count too.
    ///
    /// # Errors
    /// [`super::SnapshotError::PlaceholderSnapshot`], for either.
    pub fn diff(self: &Arc<Self>, newer: &Arc<Self>, addresses: bool) -> SnapshotResult<Diff> {
        let (old, new) = (named(self.maps()?), named(newer.maps()?));
        let mut out = Differ { diff: Diff::default(), addresses };
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) => out.maps(name, old, new),
                (old, new) => {
                    let shown =
                        |map: Option<&Map>| map.map(|m| Value { text: m.headline(), scalar: None });
                    out.change(name.clone(), shown(old), shown(new));
                }
            }
        }
        out.kernel(self, newer);
        Ok(out.diff)
    }
}

/// Maps by names that tell them apart: of several with one name, by their order.
fn named(maps: Vec<Map>) -> BTreeMap<String, Map> {
    let mut names = Names::default();
    maps.into_iter().map(|map| (names.unique(map.name().to_owned()), map)).collect()
}

/// Names that are taken, each with the number that the next one like it may have.
#[derive(Default)]
struct Names(HashMap<String, u64>);

impl Names {
    /// A name, or the first of those like it that is not taken: `name (2)`. Numbers that were
    /// tried are not tried again: a file may have many things of one name.
    fn unique(&mut self, name: String) -> String {
        let Some(mut n) = self.0.get(&name).copied() else {
            self.0.insert(name.clone(), 2);
            return name;
        };
        let free = loop {
            let numbered = format!("{name} ({n})");
            n += 1;
            if !self.0.contains_key(&numbered) {
                break numbered;
            }
        };
        self.0.insert(name, n);
        self.0.insert(free.clone(), 2);
        free
    }
}

struct Differ {
    diff: Diff,
    addresses: bool,
}

impl Differ {
    fn change(&mut self, path: String, old: Option<Value>, new: Option<Value>) {
        if self.diff.changes.len() < MAX_CHANGES {
            self.diff.changes.push(Change { path, old, new });
        } else {
            self.diff.more += 1;
        }
    }

    fn unknown(&mut self, path: &str, why: impl std::fmt::Display) {
        if self.diff.unknown.len() < MAX_CHANGES {
            self.diff.unknown.push(format!("{path}: {why}"));
        }
    }

    fn maps(&mut self, name: &str, old: &Map, new: &Map) {
        for (map, which) in [(old, "before"), (new, "after")] {
            if let Some(why) = map.incomplete() {
                self.unknown(name, format!("not all of it was captured {which}: {why}"));
            }
        }
        let (old_rows, new_rows) = (by_key(old), by_key(new));
        // In the order in which the newer map lists them, then those that are gone.
        let gone = old.known_entries().enumerate().map(|entry| key(old, entry));
        let gone = gone.filter(|key| !new_rows.contains_key(key));
        let keys = new.known_entries().enumerate().map(|entry| key(new, entry)).chain(gone);
        let section = old.is_section() && new.is_section();
        for key in keys {
            let (old, new) = (old_rows.get(&key), new_rows.get(&key));
            let Some(any) = new.or(old) else { continue };
            let path = match section {
                true => name.to_owned(),
                false => format!("{name}[{}]", any.key_text()),
            };
            match cpus(old).max(cpus(new)) {
                None => self.entries(path, old.cloned(), new.cloned()),
                Some(cpus) => {
                    for cpu in 0..cpus {
                        let narrow = |entry: Option<&Entry>| {
                            entry.and_then(|e| e.cpu(i64::try_from(cpu).ok()?).ok())
                        };
                        self.entries(format!("{path}.cpu({cpu})"), narrow(old), narrow(new));
                    }
                }
            }
        }
    }

    fn entries(&mut self, path: String, old: Option<Entry>, new: Option<Entry>) {
        let value = |entry: Option<Entry>| entry.and_then(|e| e.value().ok());
        match (value(old), value(new)) {
            (Some(old), Some(new)) => self.fields(path, &old, &new, 0),
            (None, None) => {}
            (old, new) => {
                let (old, new) = (old.as_ref().map(Value::of), new.as_ref().map(Value::of));
                self.change(path, old, new);
            }
        }
    }

    fn fields(&mut self, path: String, old: &Field, new: &Field, level: usize) {
        let (kind, alike) = (new.kind(), old.kind() == new.kind());
        if alike && old.type_name() == new.type_name() {
            // What timers and lists lead to may be another although they are the same.
            if !new.has_specials()
                && let (Ok(a), Ok(b)) = (old.raw(), new.raw())
                && a == b
            {
                return;
            }
            if kind == FieldKind::Pointer && !self.addresses {
                return;
            }
        }
        let below = match kind {
            _ if !alike || level >= MAX_LEVELS => None,
            FieldKind::Struct => members(old, new),
            FieldKind::Array => elements(old, new),
            _ => None,
        };
        match below {
            Some(parts) => {
                for (name, old, new) in parts {
                    let path = if name.starts_with('[') {
                        format!("{path}{name}")
                    } else {
                        format!("{path}.{name}")
                    };
                    match (old, new) {
                        (Some(old), Some(new)) => self.fields(path, &old, &new, level + 1),
                        (old, new) => {
                            let (old, new) =
                                (old.as_ref().map(Value::of), new.as_ref().map(Value::of));
                            self.change(path, old, new);
                        }
                    }
                }
            }
            None => {
                let (old, new) = (Value::of(old), Value::of(new));
                // Padding and members that are not shown may be all that differs.
                if old.text != new.text {
                    self.change(path, Some(old), Some(new));
                }
            }
        }
    }
}

/// How many CPUs an entry has values for; `None` for one without per-CPU values.
fn cpus(entry: Option<&Entry>) -> Option<usize> {
    entry?.map().cpus().ok()
}

/// Parts of two values, by name.
type Parts = Vec<(String, Option<Field>, Option<Field>)>;

/// Members of both, in the order of the newer one, then those that are gone.
fn members(old: &Field, new: &Field) -> Option<Parts> {
    let (before, after) = (old.members().ok()?, new.members().ok()?);
    let gone = before.iter().filter(|name| !after.contains(name));
    let names = after.iter().chain(gone);
    let part = |name: &String| (name.clone(), old.get(name).ok(), new.get(name).ok());
    Some(names.map(part).collect())
}

fn elements(old: &Field, new: &Field) -> Option<Parts> {
    let (mut before, mut after) =
        (old.as_array().ok()?.into_iter(), new.as_array().ok()?.into_iter());
    let mut out = Parts::new();
    loop {
        let pair = (before.next(), after.next());
        if let (None, None) = pair {
            return Some(out);
        }
        out.push((format!("[{}]", out.len()), pair.0, pair.1));
    }
}

/// What tells an entry from the others of its map: the bytes of its key, or its number.
type Key = (usize, Vec<u8>);

fn key(map: &Map, (i, entry): (usize, Entry)) -> Key {
    if map.is_indexed() { (i, Vec::new()) } else { (0, entry.key().raw().unwrap_or_default()) }
}

fn by_key(map: &Map) -> HashMap<Key, Entry> {
    map.known_entries().enumerate().map(|(i, e)| (key(map, (i, e.clone())), e)).collect()
}
