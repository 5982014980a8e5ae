//! Keys as an author writes them, turned into the bytes that a map has.

use std::ops::Range;

use crate::btf::{self, Btf, Shape, TypeId};

use super::error::{SnapshotError, join};
use super::error_text::{quoted, with_article};
use super::path::{MEMBERS, for_each_member, member_names};
use super::value::FieldKind;
use crate::words::nearest_first;

/// A key to look for.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyArg {
    /// A number; also the number or a flag value of an enum.
    Number(i128),
    /// A truth value.
    Bool(bool),
    /// Text, for an array of `char`; the name of an enum's value.
    Str(String),
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// Members by name, for a struct.
    Struct(Vec<(String, KeyArg)>),
    /// Elements, for an array.
    Array(Vec<KeyArg>),
}

impl KeyArg {
    /// As a call would spell it, for messages.
    #[must_use]
    pub fn spelled(&self) -> String {
        let list = |items: Vec<String>| {
            let more = if items.len() > 8 { ", .." } else { "" };
            items.into_iter().take(8).collect::<Vec<_>>().join(", ") + more
        };
        match self {
            KeyArg::Number(n) => n.to_string(),
            KeyArg::Bool(b) => b.to_string(),
            KeyArg::Str(s) => quoted(s),
            KeyArg::Bytes(bytes) => super::value::hex(bytes, 32),
            KeyArg::Array(items) => {
                format!("[{}]", list(items.iter().map(KeyArg::spelled).collect()))
            }
            KeyArg::Struct(members) => {
                let one = |(name, value): &(String, KeyArg)| format!("{name}: {}", value.spelled());
                format!("#{{{}}}", list(members.iter().map(one).collect()))
            }
        }
    }

    fn described(&self) -> String {
        let kind = match self {
            KeyArg::Number(_) => "a number",
            KeyArg::Bool(_) => "a truth value",
            KeyArg::Str(_) => "text",
            KeyArg::Bytes(_) => "bytes",
            KeyArg::Struct(_) => "an object map",
            KeyArg::Array(_) => "an array",
        };
        format!("{} ({kind})", self.spelled())
    }
}

/// The bytes of a key, and which bits of them were said: padding was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    bytes: Vec<u8>,
    said: Vec<u8>,
}

impl Wanted {
    pub(crate) fn exact(bytes: Vec<u8>) -> Wanted {
        let said = vec![0xff; bytes.len()];
        Wanted { bytes, said }
    }

    /// The bytes, when all of them were said: then they can be looked up rather than compared.
    pub(crate) fn as_exact(&self) -> Option<&[u8]> {
        self.said.iter().all(|&bits| bits == 0xff).then_some(&self.bytes)
    }

    /// The bytes; zeros where nothing was said.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        key.len() == self.bytes.len()
            && key
                .iter()
                .zip(&self.bytes)
                .zip(&self.said)
                .all(|((have, want), said)| have & said == want & said)
    }

    /// Whether all of these bits were said.
    fn says(&self, bits: &Range<u64>) -> bool {
        let end = bits.end.min(self.said.len() as u64 * 8);
        (bits.start..end).all(|at| self.said[(at / 8) as usize] & 1 << (at % 8) != 0)
    }

    /// Says these bits. What lies past the end of the key is left out.
    fn put(&mut self, bit: u64, bits: u64, value: i128) {
        for i in 0..bits {
            let at = bit.saturating_add(i);
            let (byte, mask) = ((at / 8) as usize, 1u8 << (at % 8));
            let (Some(slot), Some(said)) = (self.bytes.get_mut(byte), self.said.get_mut(byte))
            else {
                return;
            };
            *said |= mask;
            if i < 128 && value >> i & 1 == 1 {
                *slot |= mask;
            }
        }
    }
}

/// The bytes of `key` as one of type `ty` in a map whose keys have `size` bytes.
///
/// # Errors
/// [`SnapshotError::TypeMismatch`] and [`SnapshotError::FieldNotFound`] say what such a key is
/// made of. `requested` in them is the path within the key.
pub(crate) fn encode(
    btf: &Btf,
    ty: TypeId,
    size: usize,
    key: &KeyArg,
) -> Result<Wanted, SnapshotError> {
    if btf.is_open_text(ty) {
        return match key {
            KeyArg::Str(text) => Ok(Wanted::exact(text.as_bytes().to_vec())),
            KeyArg::Bytes(bytes) => Ok(Wanted::exact(bytes.clone())),
            other => Err(mismatch("text", other.described(), "")),
        };
    }
    if let KeyArg::Bytes(bytes) = key {
        return raw(size, bytes);
    }
    let mut wanted = Wanted { bytes: vec![0; size], said: vec![0; size] };
    let bits = btf.size_of(ty).unwrap_or_default().saturating_mul(8);
    Encoder { btf, wanted: &mut wanted, depth: 0 }.put(ty, 0..bits, key, "")?;
    Ok(wanted)
}

/// Bytes as they are, for keys without a type too.
pub(crate) fn raw(size: usize, bytes: &[u8]) -> Result<Wanted, SnapshotError> {
    if bytes.len() == size {
        return Ok(Wanted::exact(bytes.to_vec()));
    }
    Err(mismatch(&format!("a key of {size} bytes"), format!("{} bytes", bytes.len()), ""))
}

struct Encoder<'a> {
    btf: &'a Btf,
    wanted: &'a mut Wanted,
    depth: usize,
}

impl Encoder<'_> {
    /// Puts `key` as a value of type `ty` into these bits.
    fn put(
        &mut self,
        ty: TypeId,
        bits: Range<u64>,
        key: &KeyArg,
        path: &str,
    ) -> Result<(), SnapshotError> {
        self.depth += 1;
        let shape = self.btf.shape(ty).map_err(|e| mismatch("a key type", e.to_string(), path))?;
        if self.depth > btf::MAX_DEPTH {
            return Err(mismatch("a key of few levels", "one nested too deeply".into(), path));
        }
        let len = bits.end - bits.start;
        match (&*shape, FieldKind::of(self.btf, ty), key) {
            (Shape::Int { bool: true, .. }, _, KeyArg::Bool(b)) => {
                self.wanted.put(bits.start, len, i128::from(*b));
            }
            (Shape::Int { signed, bool: false, .. }, _, KeyArg::Number(n)) => {
                self.number(ty, bits, *n, *signed, path)?;
            }
            (Shape::Enum(e), _, KeyArg::Number(n)) => self.number(ty, bits, *n, e.signed, path)?,
            (Shape::Enum(e), _, KeyArg::Str(name)) => {
                match e.variants.iter().find(|(n, _)| n == name) {
                    Some((_, value)) => self.wanted.put(bits.start, len, *value),
                    None => {
                        let names: Vec<&str> = e.variants.iter().map(|(n, _)| n.as_str()).collect();
                        let near = nearest_first(name, names);
                        let expected = format!("a name of {}", self.btf.type_name(ty));
                        let there: Vec<&str> = near.into_iter().take(8).collect();
                        let actual = format!("{} (it has {})", key.spelled(), there.join(", "));
                        return Err(mismatch(&expected, actual, path));
                    }
                }
            }
            (Shape::Ptr { .. }, _, KeyArg::Number(n)) => self.number(ty, bits, *n, false, path)?,
            (_, FieldKind::Text, KeyArg::Str(text)) => self.text(ty, bits, text, path)?,
            (Shape::Array { elem, len, elem_size }, _, KeyArg::Array(items)) => {
                if items.len() as u64 != u64::from(*len) {
                    let actual = format!("{} of them", items.len());
                    return Err(mismatch(&format!("{len} elements"), actual, path));
                }
                for (i, item) in items.iter().enumerate() {
                    // An array's size in bits may not fit, its own type's size does.
                    let size = elem_size.saturating_mul(8);
                    let start = bits.start.saturating_add(size.saturating_mul(i as u64));
                    let at = format!("{path}[{i}]");
                    self.put(*elem, start..start.saturating_add(size), item, &at)?;
                }
            }
            (Shape::Struct(s), _, KeyArg::Struct(given)) => {
                self.members(ty, s.union, bits.start, given, path)?;
            }
            _ => {
                return Err(mismatch(&self.expectation(ty), key.described(), path));
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// What a key of this type is written as.
    fn expectation(&self, ty: TypeId) -> String {
        let name = self.btf.type_name(ty);
        match FieldKind::of(self.btf, ty) {
            FieldKind::Struct | FieldKind::Union => {
                let members = member_names(self.btf, ty);
                let more = if members.len() > 8 { ", .." } else { "" };
                let shown = members.into_iter().take(8).map(|m| m + ": ..").collect::<Vec<_>>();
                format!("#{{{}{more}}} ({name})", shown.join(", "))
            }
            FieldKind::Array => format!("an array of its elements ({name})"),
            kind => format!("{} ({name})", with_article(kind.as_str())),
        }
    }

    fn number(
        &mut self,
        ty: TypeId,
        bits: Range<u64>,
        n: i128,
        signed: bool,
        path: &str,
    ) -> Result<(), SnapshotError> {
        let len = bits.end - bits.start;
        let (low, high) = match (signed, len) {
            (_, 0 | 127..) => (i128::MIN, i128::MAX),
            (true, len) => (-(1i128 << (len - 1)), (1i128 << (len - 1)) - 1),
            (false, len) => (0, (1i128 << len) - 1),
        };
        if (low..=high).contains(&n) {
            self.wanted.put(bits.start, len, n);
            return Ok(());
        }
        let expected = format!("a {} ({low} to {high})", self.btf.type_name(ty));
        Err(mismatch(&expected, n.to_string(), path))
    }

    fn text(
        &mut self,
        ty: TypeId,
        bits: Range<u64>,
        text: &str,
        path: &str,
    ) -> Result<(), SnapshotError> {
        let room = (bits.end - bits.start) / 8;
        if text.len() as u64 > room {
            let expected = format!("at most {room} bytes of text ({})", self.btf.type_name(ty));
            return Err(mismatch(&expected, format!("{} bytes", text.len()), path));
        }
        // What follows the terminator is not compared: nobody clears it on every path.
        let terminated = text.bytes().chain((text.len() as u64 != room).then_some(0));
        for (i, byte) in terminated.enumerate() {
            self.wanted.put(bits.start + i as u64 * 8, 8, i128::from(byte));
        }
        Ok(())
    }

    fn members(
        &mut self,
        ty: TypeId,
        union: bool,
        start: u64,
        given: &[(String, KeyArg)],
        path: &str,
    ) -> Result<(), SnapshotError> {
        let mut have = Vec::new();
        for_each_member(self.btf, ty, MEMBERS, &mut |name, at| have.push((name.to_owned(), at)));
        for (name, _) in given {
            if !have.iter().any(|(n, _)| n == name) {
                let names = have.into_iter().map(|(n, _)| n).collect();
                return Err(SnapshotError::FieldNotFound {
                    requested: join(path, name).into_owned(),
                    walked: path.to_owned(),
                    component: name.clone(),
                    available: nearest_first(name, names),
                });
            }
        }
        let mut missing: Vec<(String, Range<u64>)> = Vec::new();
        for (name, at) in have {
            let Some((_, value)) = given.iter().find(|(n, _)| *n == name) else {
                missing.push((name, member_bits(start, at)));
                continue;
            };
            self.put(at.ty, member_bits(start, at), value, &join(path, &name))?;
        }
        if union && !given.is_empty() {
            return Ok(());
        }
        // A member of an anonymous union is said by its neighbour.
        let wanted = &*self.wanted;
        let missing: Vec<String> =
            missing.into_iter().filter(|(_, b)| !wanted.says(b)).map(|(name, _)| name).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let expected = format!("every member of {}", self.btf.type_name(ty));
        Err(mismatch(&expected, format!("none called {}", missing.join(", ")), path))
    }
}

/// The bits of a member of a value that begins at bit `start`.
fn member_bits(start: u64, at: btf::Field) -> Range<u64> {
    let bit = start.saturating_add(at.offset.saturating_mul(8));
    match at.bits {
        Some(b) => {
            bit.saturating_add(b.offset.into())..bit.saturating_add((b.offset + b.len).into())
        }
        None => bit..bit.saturating_add(at.size.saturating_mul(8)),
    }
}

fn mismatch(expected: &str, actual: String, path: &str) -> SnapshotError {
    SnapshotError::TypeMismatch {
        expected: expected.to_owned(),
        actual,
        requested: join("key", path).into_owned(),
    }
}
