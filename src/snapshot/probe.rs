//! One place that is read in many snapshots of one machine: found in the first, read by its offset
//! in those that are laid out alike.
//!
//! What a probe answers is what the ordinary accessors answer: they are asked whenever a snapshot
//! has other maps, or the same ones with other types, than the one in which the place was found.

use std::sync::Arc;

use crate::btf::{self, Btf, Shape, TypeId};

use super::access::Field;
use super::contents::{CapturedMap, Contents};
use super::entry::{Entry, Reduce};
use super::error::{SnapshotError, SnapshotResult, join};
use super::key::KeyArg;
use super::map::Map;
use super::path;
use super::value::{self, FieldKind, Scalar};
use super::{Snapshot, State};

/// Which entry of a map.
#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    /// The one at a position.
    At(i64),
    /// The one with a key.
    Key(KeyArg),
}

/// Which of a per-CPU map's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The map is not per-CPU.
    Only,
    /// What one CPU has.
    Cpu(i64),
    /// One number out of those of all CPUs.
    All(Reduce),
}

/// A place in a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A global variable, as [`Snapshot::global`] takes it.
    Global(String),
    /// A place in the value of a map's entry.
    Entry {
        /// The map, as [`Snapshot::map`] takes it.
        map: String,
        /// The entry.
        pick: Pick,
        /// The CPU.
        slot: Slot,
        /// The path in the value; empty for the value itself.
        path: String,
    },
}

impl Target {
    /// Reads `global`, `global.member`, `map/key` or `map/key.path`. A key is a number, text, or
    /// text in quotes when it has a dot or a bracket in it; of an array it is the index.
    ///
    /// # Errors
    /// [`SnapshotError::EmptyPathComponent`] when a part is missing.
    pub fn parse(text: &str) -> SnapshotResult<Target> {
        let empty = || SnapshotError::EmptyPathComponent { requested: text.to_owned() };
        let Some((map, rest)) = text.split_once('/') else {
            return Ok(Target::Global(text.to_owned()));
        };
        let (key, path) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (key, path) = quoted.split_once('"').ok_or_else(empty)?;
                (KeyArg::Str(key.to_owned()), path)
            }
            None => {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (key, path) = rest.split_at(end);
                if key.is_empty() {
                    return Err(empty());
                }
                let number = match key.strip_prefix("0x") {
                    Some(hex) => i128::from_str_radix(hex, 16).ok(),
                    None => key.parse().ok(),
                };
                (number.map_or_else(|| KeyArg::Str(key.to_owned()), KeyArg::Number), path)
            }
        };
        let path = match path.strip_prefix('.') {
            Some("") => return Err(empty()),
            Some(path) => path,
            None => path,
        };
        if map.is_empty() {
            return Err(empty());
        }
        let (map, path) = (map.to_owned(), path.to_owned());
        Ok(Target::Entry { map, pick: Pick::Key(key), slot: Slot::Only, path })
    }

    /// The value there.
    ///
    /// # Errors
    /// Those of the accessors; [`SnapshotError::TypeMismatch`] for what is no single value.
    pub fn read(&self, snapshot: &Arc<Snapshot>) -> SnapshotResult<Scalar> {
        match self.place(snapshot)? {
            Place::Field(field) => leaf(&field),
            Place::Reduced(entry, how, path) => entry.reduce(how, path),
        }
    }

    fn place(&self, snapshot: &Arc<Snapshot>) -> SnapshotResult<Place<'_>> {
        let (map, pick, slot, path) = match self {
            Target::Global(name) => return snapshot.global(name).map(Place::Field),
            Target::Entry { map, pick, slot, path } => (map, pick, slot, path),
        };
        let map = snapshot.map(map)?;
        let entry = match pick {
            Pick::At(index) => map.at(*index)?,
            Pick::Key(key) => map.get(key)?,
        };
        let entry = match slot {
            Slot::Only => entry,
            Slot::Cpu(cpu) => entry.cpu(*cpu)?,
            Slot::All(how) => return Ok(Place::Reduced(entry, *how, path)),
        };
        let field = if path.is_empty() { entry.value()? } else { entry.get(path)? };
        Ok(Place::Field(field))
    }
}

enum Place<'t> {
    Field(Field),
    Reduced(Entry, Reduce, &'t str),
}

fn leaf(field: &Field) -> SnapshotResult<Scalar> {
    field.leaf()?.ok_or_else(|| field.mismatch("a single value", field.described()))
}

/// A [`Target`] that remembers where it was found.
pub struct Probe {
    target: Target,
    found: Option<Found>,
}

/// Where a place was found, and in what.
struct Found {
    /// The maps of that snapshot.
    maps: Vec<Likeness>,
    index: usize,
    row: Row,
    cpu: Option<usize>,
    btf: Arc<Btf>,
    at: btf::Field,
    /// Whether it is a plain number, and one with a sign.
    plain: Option<bool>,
}

enum Row {
    /// Always the same.
    Fixed(usize),
    /// Wherever this key is.
    Keyed(KeyArg),
}

/// What tells whether two snapshots have the same map in the same place.
struct Likeness {
    kva: u64,
    id: u32,
    value_type: TypeId,
    btf: Option<Arc<Btf>>,
}

impl Likeness {
    fn of(map: &CapturedMap) -> Likeness {
        let attrs = &map.attrs;
        let (kva, id, value_type) = (attrs.kva, attrs.id, attrs.value_type);
        Likeness { kva, id, value_type, btf: attrs.btf.clone() }
    }

    fn is(&self, map: &CapturedMap) -> bool {
        let attrs = &map.attrs;
        let types = match (&self.btf, &attrs.btf) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let same = (self.kva, self.id, self.value_type) == (attrs.kva, attrs.id, attrs.value_type);
        types && same
    }
}

fn maps(snapshot: &Snapshot) -> &[CapturedMap] {
    match &snapshot.contents {
        State::Captured { maps, .. } => maps,
        State::Placeholder(_) => &[],
    }
}

impl Probe {
    /// A probe of this place.
    #[must_use]
    pub fn new(target: Target) -> Probe {
        Probe { target, found: None }
    }

    /// The place.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The value there, as [`Target::read`] gives it.
    ///
    /// # Errors
    /// As [`Target::read`].
    pub fn read(&mut self, snapshot: &Arc<Snapshot>) -> SnapshotResult<Scalar> {
        if let Some(found) = &self.found
            && found.fits(snapshot)
            && let Some(value) = found.read(snapshot)
        {
            return Ok(value);
        }
        match self.target.place(snapshot)? {
            Place::Field(field) => {
                self.found = Found::of(&self.target, snapshot, &field);
                leaf(&field)
            }
            Place::Reduced(entry, how, path) => entry.reduce(how, path),
        }
    }
}

impl Found {
    /// Remembers where a field was found, if that is a place of its own in the value of an entry.
    fn of(target: &Target, snapshot: &Arc<Snapshot>, field: &Field) -> Option<Found> {
        let (btf, at) = field.typed()?;
        let entry = field.entry()?;
        let (index, cpu) = (entry.map().index(), entry.map().narrowed_to());
        let (row, path) = match target {
            Target::Global(name) => {
                // Which of several is meant depends on more than the maps.
                if snapshot.globals(name).ok()?.len() != 1 {
                    return None;
                }
                (Row::Fixed(entry.row()), name)
            }
            Target::Entry { pick: Pick::Key(key), path, .. } if !entry.map().is_indexed() => {
                (Row::Keyed(key.clone()), path)
            }
            // A place in the order of keys is another entry in each snapshot.
            Target::Entry { path, .. } if entry.map().is_indexed() => {
                (Row::Fixed(entry.row()), path)
            }
            Target::Entry { .. } => return None,
        };
        // What is behind a pointer, or was made up for the occasion, lies elsewhere.
        let root = entry.map().attrs().value_type;
        let plainly = path::walk(btf, root, path).ok()?;
        let own = entry.map().attrs().btf.as_ref().is_some_and(|own| Arc::ptr_eq(own, btf));
        if !own || plainly != at || !FieldKind::of(btf, at.ty).is_leaf() {
            return None;
        }
        let plain = match btf.shape(at.ty).as_deref() {
            Ok(Shape::Int { bool: false, signed, .. }) if at.bits.is_none() && at.size <= 8 => {
                Some(*signed)
            }
            _ => None,
        };
        let maps = maps(snapshot).iter().map(Likeness::of).collect();
        Some(Found { maps, index, row, cpu, btf: btf.clone(), at, plain })
    }

    /// Whether the place is the same in this snapshot.
    fn fits(&self, snapshot: &Snapshot) -> bool {
        let maps = maps(snapshot);
        maps.len() == self.maps.len() && maps.iter().zip(&self.maps).all(|(map, like)| like.is(map))
    }

    /// The value; none where the ordinary accessors have to say why there is none.
    fn read(&self, snapshot: &Arc<Snapshot>) -> Option<Scalar> {
        let contents = snapshot.captured(self.index).contents();
        let row = match &self.row {
            Row::Fixed(row) => *row,
            Row::Keyed(key) => Map::new(snapshot.clone(), self.index).get(key).ok()?.row(),
        };
        if row >= contents.rows() {
            return None;
        }
        let value = self.value(contents, row)?;
        let start = usize::try_from(self.at.offset).ok()?;
        let bytes = value.get(start..start.checked_add(usize::try_from(self.at.size).ok()?)?)?;
        match self.plain {
            Some(signed) => Scalar::of_number(value::number(bytes, None, signed)?),
            None => value::decode(&self.btf, self.at.ty, self.at.bits, bytes).ok(),
        }
    }

    fn value<'c>(&self, contents: &'c dyn Contents, row: usize) -> Option<&'c [u8]> {
        match (contents.cpus(), self.cpu) {
            (None, None) => contents.value(row),
            (Some(cpus), Some(cpu)) if cpu < cpus => contents.cpu_value(row, cpu),
            _ => None,
        }
    }
}

/// The global variables of a snapshot that are numbers, with the path of each: members of structs
/// and elements of arrays by themselves, at most `most` of them, and whether those are all.
#[must_use]
pub fn counters(snapshot: &Arc<Snapshot>, most: usize) -> (Vec<String>, bool) {
    let mut out = Vec::new();
    let sections: Vec<Map> = snapshot.maps().unwrap_or_default();
    for section in sections.iter().filter(|map| map.is_section()) {
        let attrs = section.attrs();
        let Some(btf) = &attrs.btf else { continue };
        // What is never written counts nothing.
        if attrs.section.as_deref().unwrap_or(btf.name(attrs.value_type)).starts_with(".rodata") {
            continue;
        }
        if !numbers(btf, attrs.value_type, "", 0, most, &mut out) {
            return (out, false);
        }
    }
    // One that several objects have is no single variable.
    let mut seen = std::collections::HashMap::new();
    for name in &out {
        *seen.entry(name.clone()).or_insert(0) += 1;
    }
    out.retain(|name| seen.get(name) == Some(&1));
    (out, true)
}

/// Nested structs and arrays in a counter's path.
const DEPTH: usize = 8;
/// Elements of an array that are counters of their own.
const ELEMENTS: u32 = 64;

/// Paths of the numbers in a type; whether there was room for all.
fn numbers(
    btf: &Btf,
    ty: TypeId,
    at: &str,
    depth: usize,
    most: usize,
    out: &mut Vec<String>,
) -> bool {
    let Ok(shape) = btf.shape(ty) else { return true };
    match &*shape {
        Shape::Int { bool: false, .. } | Shape::Float { .. } => {
            if out.len() >= most {
                return false;
            }
            out.push(at.to_owned());
            true
        }
        Shape::Datasec { .. } | Shape::Struct(_) if depth < DEPTH => {
            let mut members = Vec::new();
            path::for_each_member(btf, ty, path::MEMBERS, &mut |name, field| {
                members.push((name.to_owned(), field.ty));
            });
            members
                .iter()
                .all(|(name, ty)| numbers(btf, *ty, &join(at, name), depth + 1, most, out))
        }
        Shape::Array { elem, len, .. }
            if depth < DEPTH && *len <= ELEMENTS && FieldKind::of(btf, ty) == FieldKind::Array =>
        {
            (0..*len).all(|i| numbers(btf, *elem, &format!("{at}[{i}]"), depth + 1, most, out))
        }
        _ => true,
    }
}
