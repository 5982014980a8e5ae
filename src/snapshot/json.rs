//! Entries as JSON, many of them: where the members of a value lie is found out once for a map.
//!
//! What has no simple place (a pointer, a float, bytes without a type) goes the way of any other
//! reader, through [`Field`].

mod kernel;

use std::cell::OnceCell;
use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map as Object, Value, json};

use super::path::{MEMBERS, for_each_member};
use super::value;
use super::{Entry, Field, FieldKind, Map, Scalar, Side};
use crate::btf::{self, Btf, Shape, Special};

/// Levels of members and elements.
const MAX_LEVELS: usize = 32;
/// Members of a value, all levels together, of which the places are noted.
const MAX_PLACES: usize = 4096;

impl Map {
    /// The entries that are known, for a serializer: `{"key": .., "value": ..}`, those of arrays
    /// without keys; of a per-CPU map, values are lists. What is not there is `null`.
    #[must_use]
    pub fn entries_as_json(&self) -> impl Serialize + use<> {
        Entries { map: self.clone(), key: OnceCell::new(), value: OnceCell::new() }
    }
}

/// The value of a field, members and elements included.
#[must_use]
pub fn to_json(field: &Field) -> Value {
    any(field, 0)
}

fn any(f: &Field, level: usize) -> Value {
    if level < MAX_LEVELS {
        match f.kind() {
            FieldKind::Struct | FieldKind::Union => {
                let names = f.members().unwrap_or_default().into_iter();
                let member =
                    |name: String| Some((name.clone(), any(&f.get(&name).ok()?, level + 1)));
                return Value::Object(names.filter_map(member).collect::<Object<_, _>>());
            }
            // Lists in the objects of a list may lead round and round.
            FieldKind::Array if level > 0 && f.is_list() && f.is_followed() => {}
            FieldKind::Array => {
                if let Ok(elements) = f.as_array() {
                    return elements.iter().map(|element| any(element, level + 1)).collect();
                }
            }
            _ => {}
        }
    }
    match f.leaf() {
        Ok(Some(leaf)) => scalar(leaf),
        // Bytes without a type, what has no value, and what is too wide for a number.
        _ => f.inline(1 << 16).into(),
    }
}

fn scalar(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Int(n) => n.into(),
        Scalar::U64(n) => n.into(),
        Scalar::Float(x) => x.into(),
        Scalar::Bool(b) => b.into(),
        Scalar::Str(s) => s.into(),
        Scalar::Enum(e) => e.name().map_or_else(|| json!(e.value() as i64), Into::into),
    }
}

/// How a part of a value is read, given the part's bytes.
enum Plan {
    /// An integer of at most eight bytes.
    Number {
        bits: Option<btf::BitRange>,
        signed: bool,
    },
    Bool {
        bits: Option<btf::BitRange>,
    },
    /// Text, at a path, which is asked again if it is none.
    Text {
        path: String,
    },
    /// Members in the order of their names: first byte, length, what is there.
    Members(Vec<(String, usize, usize, Plan)>),
    /// Elements that lie so far apart.
    Elements {
        len: usize,
        size: usize,
        each: Box<Plan>,
    },
    /// Anything else, at a path.
    Other {
        path: String,
    },
}

/// Finds out how values of a type are read.
struct Planner<'a> {
    btf: &'a Btf,
    left: usize,
}

impl Planner<'_> {
    fn plan(&mut self, at: btf::Field, path: &str, level: usize) -> Plan {
        let other = || Plan::Other { path: path.to_owned() };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || level >= MAX_LEVELS {
            return other();
        }
        // What timers and locks mean is not in their bytes.
        if let Ok(Shape::Struct(s)) = self.btf.shape(at.ty).as_deref()
            && Special::of_struct(&s.name).is_some()
        {
            return other();
        }
        let narrow = at.size <= 8 && at.size > 0;
        match (FieldKind::of(self.btf, at.ty), self.btf.shape(at.ty).as_deref()) {
            (FieldKind::Bool, _) if narrow => Plan::Bool { bits: at.bits },
            (FieldKind::Int, Ok(Shape::Int { signed, .. })) if narrow => {
                Plan::Number { bits: at.bits, signed: *signed }
            }
            (FieldKind::Text, _) => Plan::Text { path: path.to_owned() },
            (FieldKind::Struct | FieldKind::Union, _) => {
                self.members(at, path, level).unwrap_or_else(other)
            }
            (FieldKind::Array, Ok(Shape::Array { elem, len, elem_size })) if *len > 0 => {
                let (size, whole) = (*elem_size as usize, at.size as usize);
                let element = self.btf.field(*elem, "").ok().filter(|e| e.size == *elem_size);
                let len = whole.checked_div(size).unwrap_or_default().min(*len as usize);
                match element.map(|element| self.plan(element, "", level + 1)) {
                    // Elements are not asked for by paths of their own.
                    Some(each) if each.is_by_place() && len <= MAX_PLACES => {
                        Plan::Elements { len, size, each: Box::new(each) }
                    }
                    _ => other(),
                }
            }
            _ => other(),
        }
    }

    /// `None` where members cannot be told apart by their names.
    fn members(&mut self, at: btf::Field, path: &str, level: usize) -> Option<Plan> {
        let mut found: BTreeMap<String, btf::Field> = BTreeMap::new();
        let mut plain = true;
        for_each_member(self.btf, at.ty, MEMBERS, &mut |name, place| {
            plain &= !name.is_empty() && !name.contains(['.', '[', ']']);
            found.entry(name.to_owned()).or_insert(place);
        });
        let members = found.into_iter().map(|(name, place)| {
            let within = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let (start, len) = (place.offset as usize, place.size as usize);
            let inside = place.offset.checked_add(place.size).is_some_and(|end| end <= at.size);
            inside.then(|| (name, start, len, self.plan(place, &within, level + 1)))
        });
        let members = members.collect::<Option<Vec<_>>>()?;
        (plain && at.bits.is_none()).then_some(Plan::Members(members))
    }
}

/// How a side of a map's entries is read.
struct Known {
    plan: Plan,
    /// Bytes that the type takes, if there is a type.
    size: Option<u64>,
}

impl Known {
    fn of(field: &Field) -> Known {
        let typed = field.typed().filter(|(_, at)| at.offset == 0);
        let plan = match typed {
            Some((btf, at)) => Planner { btf, left: MAX_PLACES }.plan(at, "", 0),
            None => Plan::Other { path: String::new() },
        };
        Known { plan, size: typed.map(|(_, at)| at.size) }
    }
}

impl Plan {
    /// Whether nothing in it has to be asked for by its path.
    fn is_by_place(&self) -> bool {
        match self {
            Plan::Number { .. } | Plan::Bool { .. } => true,
            Plan::Members(all) => all.iter().all(|(.., plan)| plan.is_by_place()),
            Plan::Elements { each, .. } => each.is_by_place(),
            Plan::Text { .. } | Plan::Other { .. } => false,
        }
    }
}

/// A part of a key or a value, given the bytes there.
struct Part<'a> {
    entry: &'a Entry,
    side: Side,
    plan: &'a Plan,
    bytes: &'a [u8],
}

impl Part<'_> {
    fn at(&self, path: &str) -> Value {
        let whole = Field::whole(self.entry.clone(), self.side);
        match path {
            "" => to_json(&whole),
            path => whole.get(path).map_or(Value::Null, |field| to_json(&field)),
        }
    }
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Part { entry, side, bytes, .. } = *self;
        match self.plan {
            // The usual ones without the detour through 128 bits.
            Plan::Number { bits: None, signed } if let [a, b, c, d] = *bytes => {
                let n = u32::from_le_bytes([a, b, c, d]);
                if *signed {
                    out.serialize_i64((n as i32).into())
                } else {
                    out.serialize_u64(n.into())
                }
            }
            Plan::Number { bits: None, signed } if let Ok(all) = bytes.try_into() => {
                let n = u64::from_le_bytes(all);
                if *signed { out.serialize_i64(n as i64) } else { out.serialize_u64(n) }
            }
            Plan::Number { bits, signed } => match value::number(bytes, *bits, *signed) {
                Some(n) if *signed => out.serialize_i64(n as i64),
                Some(n) => out.serialize_u64(n as u64),
                None => out.serialize_none(),
            },
            Plan::Bool { bits } => match value::number(bytes, *bits, false) {
                Some(n) => out.serialize_bool(n != 0),
                None => out.serialize_none(),
            },
            Plan::Text { path } => {
                let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
                match std::str::from_utf8(&bytes[..end]) {
                    Ok(text) => out.serialize_str(text),
                    Err(_) => self.at(path).serialize(out),
                }
            }
            Plan::Members(members) => {
                let mut object = out.serialize_map(Some(members.len()))?;
                for (name, start, len, plan) in members {
                    let bytes = bytes.get(*start..start + len).unwrap_or_default();
                    object.serialize_entry(name, &Part { entry, side, plan, bytes })?;
                }
                object.end()
            }
            Plan::Elements { len, size, each } => {
                let mut list = out.serialize_seq(Some(*len))?;
                for i in 0..*len {
                    let bytes = bytes.get(i * size..(i + 1) * size).unwrap_or_default();
                    list.serialize_element(&Part { entry, side, plan: each, bytes })?;
                }
                list.end()
            }
            Plan::Other { path } => self.at(path).serialize(out),
        }
    }
}

/// All of a map's entries.
struct Entries {
    map: Map,
    key: OnceCell<Known>,
    value: OnceCell<Known>,
}

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let cpus = self.map.cpus().ok();
        let entries = self.map.known_entries();
        let mut list = out.serialize_seq(Some(entries.len()))?;
        for entry in entries {
            list.serialize_element(&Row { all: self, entry, cpus })?;
        }
        list.end()
    }
}

struct Row<'a> {
    all: &'a Entries,
    entry: Entry,
    cpus: Option<usize>,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut row = out.serialize_map(None)?;
        let (entry, key, value) = (&self.entry, &self.all.key, &self.all.value);
        if !self.all.map.is_indexed() {
            row.serialize_entry("key", &Whole { entry, side: Side::Key, known: key })?;
        }
        let side = Side::Value;
        match self.cpus {
            None => row.serialize_entry("value", &Whole { entry, side, known: value })?,
            Some(cpus) => {
                let on = |cpu| i64::try_from(cpu).ok().and_then(|cpu| entry.cpu(cpu).ok());
                let entries: Vec<Option<Entry>> = (0..cpus).map(on).collect();
                let whole = |entry| Whole { entry, side, known: value };
                let values = entries.iter().map(|entry| entry.as_ref().map(whole));
                row.serialize_entry("value", &values.collect::<Vec<_>>())?;
            }
        }
        row.end()
    }
}

/// A key or a value.
struct Whole<'a> {
    entry: &'a Entry,
    side: Side,
    known: &'a OnceCell<Known>,
}

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Whole { entry, side, .. } = *self;
        let known = self.known.get_or_init(|| Known::of(&Field::whole(entry.clone(), side)));
        match (entry.bytes(side), side) {
            // Types may claim more bytes than there are.
            (Ok(bytes), _) if known.size == Some(bytes.len() as u64) => {
                Part { entry, side, plan: &known.plan, bytes: &bytes }.serialize(out)
            }
            (_, Side::Key) => to_json(&entry.key()).serialize(out),
            (_, Side::Value) => entry.value().ok().map(|value| to_json(&value)).serialize(out),
        }
    }
}
