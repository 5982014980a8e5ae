//! Single values, as they come out of bytes.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::btf::{BitRange, Btf, EnumShape, Shape, TypeId};

use super::error::{SnapshotError, SnapshotResult};
use super::error_text::{quoted, with_article};

/// What a field is, in the words that errors and scripts use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// An integer of any width, a single `char` included.
    Int,
    /// A `bool`.
    Bool,
    /// A floating-point number.
    Float,
    /// An enum.
    Enum,
    /// An array of `char`.
    Text,
    /// A pointer.
    Pointer,
    /// Any other array.
    Array,
    /// A struct, or a section of variables.
    Struct,
    /// A union.
    Union,
    /// Bytes without a BTF type.
    Bytes,
    /// Something that has no value: `void`, a function, a struct of which only the name is known.
    Opaque,
}

impl FieldKind {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FieldKind::Int => "int",
            FieldKind::Bool => "bool",
            FieldKind::Float => "float",
            FieldKind::Enum => "enum",
            FieldKind::Text => "text",
            FieldKind::Pointer => "pointer",
            FieldKind::Array => "array",
            FieldKind::Struct => "struct",
            FieldKind::Union => "union",
            FieldKind::Bytes => "bytes",
            FieldKind::Opaque => "opaque",
        }
    }

    /// What a type is. A type that cannot be walked is opaque.
    #[must_use]
    pub fn of(btf: &Btf, ty: TypeId) -> FieldKind {
        let Ok(shape) = btf.shape(ty) else { return FieldKind::Opaque };
        match &*shape {
            Shape::Int { bool: true, .. } => FieldKind::Bool,
            Shape::Int { .. } => FieldKind::Int,
            Shape::Float { .. } => FieldKind::Float,
            Shape::Enum(_) => FieldKind::Enum,
            Shape::Ptr { .. } => FieldKind::Pointer,
            Shape::Array { elem, .. } if is_char(btf, *elem) => FieldKind::Text,
            Shape::Array { .. } => FieldKind::Array,
            Shape::Struct(s) if s.union => FieldKind::Union,
            Shape::Struct(_) | Shape::Datasec { .. } => FieldKind::Struct,
            _ => FieldKind::Opaque,
        }
    }

    /// Whether it holds one value rather than members, elements or nothing.
    #[must_use]
    pub fn is_leaf(self) -> bool {
        use FieldKind as K;
        matches!(self, K::Int | K::Bool | K::Float | K::Enum | K::Text)
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether an element of an array is a character. Compilers mark `char` in BTF only now and then,
/// so its name counts too; `unsigned char` (the kernel's `u8`) is a number.
fn is_char(btf: &Btf, elem: TypeId) -> bool {
    matches!(
        btf.shape(elem).as_deref(),
        Ok(Shape::Int { size: 1, char, name, bool: false, .. }) if *char || name == "char"
    )
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A number that fits 64 bits with a sign.
    Int(i64),
    /// A number above [`i64::MAX`].
    U64(u64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Str(String),
    /// A value of an enum.
    Enum(EnumValue),
}

/// A value of an enum, with the names that the enum has.
#[derive(Clone)]
pub struct EnumValue {
    value: i128,
    /// Always a [`Shape::Enum`].
    shape: Arc<Shape>,
}

impl EnumValue {
    fn shape(&self) -> Option<&EnumShape> {
        match &*self.shape {
            Shape::Enum(shape) => Some(shape),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub fn value(&self) -> i128 {
        self.value
    }

    /// The first name that the enum gives to the number; of an enum whose names are bits, the names
    /// of all that are set, as in `A|B`. None when some of the number has no name.
    #[must_use]
    pub fn name(&self) -> Option<Cow<'_, str>> {
        match self.spelled()? {
            (name, 0) => Some(name),
            _ => None,
        }
    }

    /// What of the number has a name, and the bits that have none.
    fn spelled(&self) -> Option<(Cow<'_, str>, i128)> {
        let shape = self.shape()?;
        if let Some(name) = shape.name_of(self.value) {
            return Some((name.into(), 0));
        }
        let (names, rest) = shape.flags_of(self.value)?;
        Some((names.join("|").into(), rest))
    }

    /// The number that the enum gives to a name, or to names of bits: `A|B`.
    #[must_use]
    pub fn value_of(&self, name: &str) -> Option<i128> {
        self.shape()?.value_of(name)
    }

    /// Every name that the enum has, in the order of its declaration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shape().into_iter().flat_map(|shape| &shape.variants).map(|(name, _)| name.as_str())
    }

    /// The enum in C's spelling, `enum scx_exit_kind`.
    #[must_use]
    pub fn type_name(&self) -> String {
        match self.shape() {
            Some(shape) if !shape.name.is_empty() => format!("enum {}", shape.name),
            _ => "an enum without a name".to_owned(),
        }
    }
}

impl PartialEq for EnumValue {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value && self.shape == other.shape
    }
}

impl fmt::Debug for EnumValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        write!(f, "{} {} ({})", self.type_name(), name.as_deref().unwrap_or("?"), self.value)
    }
}

impl fmt::Display for EnumValue {
    /// The name; the number when it has none. Bits without a name stand behind those that have
    /// one: `A|B|0x40`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spelled() {
            Some((name, 0)) => f.write_str(&name),
            Some((names, rest)) => write!(f, "{names}|{rest:#x}"),
            None => write!(f, "{}", self.value),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Int(n) => write!(f, "{n}"),
            Scalar::U64(n) => write!(f, "{n}"),
            // `{:?}` keeps the point, so that a float never looks like an integer.
            Scalar::Float(x) => write!(f, "{x:?}"),
            Scalar::Bool(b) => write!(f, "{b}"),
            Scalar::Str(s) => f.write_str(s),
            Scalar::Enum(e) => write!(f, "{e}"),
        }
    }
}

impl Scalar {
    /// The number as the narrowest scalar that holds it; `None` when it needs more than 64 bits.
    #[must_use]
    pub fn of_number(n: i128) -> Option<Scalar> {
        i64::try_from(n).map(Scalar::Int).or_else(|_| u64::try_from(n).map(Scalar::U64)).ok()
    }

    /// The number, when it is one: floats, text and truth values are none.
    #[must_use]
    pub fn number(&self) -> Option<i128> {
        match self {
            Scalar::Int(n) => Some(i128::from(*n)),
            Scalar::U64(n) => Some(i128::from(*n)),
            Scalar::Enum(e) => Some(e.value),
            Scalar::Float(_) | Scalar::Bool(_) | Scalar::Str(_) => None,
        }
    }

    /// The value with what it is, for messages: `5 (int)`, `"kworker" (text)`.
    #[must_use]
    pub fn described(&self) -> String {
        match self {
            Scalar::Int(n) => format!("{n} (int)"),
            Scalar::U64(n) => format!("{n} (int)"),
            Scalar::Float(x) => format!("{x:?} (float)"),
            Scalar::Bool(b) => format!("{b} (bool)"),
            Scalar::Str(s) => format!("{} (text)", quoted(s)),
            Scalar::Enum(e) => format!("{e} ({})", e.type_name()),
        }
    }

    /// The value as an unsigned number; a truth value counts as 0 or 1, an enum as its number.
    /// `requested` is the path that the error names.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] for negative numbers, floats and text.
    pub fn as_u64(&self, requested: &str) -> SnapshotResult<u64> {
        self.whole_number()
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| self.is_not("an unsigned number", requested))
    }

    /// The value as a signed number, as [`Scalar::as_u64`].
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] for numbers above [`i64::MAX`], floats and text.
    pub fn as_i64(&self, requested: &str) -> SnapshotResult<i64> {
        let n = self.whole_number().ok_or_else(|| self.is_not("a whole number", requested))?;
        i64::try_from(n).map_err(|_| {
            self.is_not("a number that fits i64 (as_u64() reads larger ones)", requested)
        })
    }

    /// The value as a floating-point number; the nearest one, when it is too large to be exact.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] for text and truth values.
    pub fn as_f64(&self, requested: &str) -> SnapshotResult<f64> {
        match self {
            Scalar::Float(x) => Ok(*x),
            other => match other.number() {
                Some(n) => Ok(n as f64),
                None => Err(self.is_not("a number", requested)),
            },
        }
    }

    /// False for 0, true for any other number.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] for text.
    pub fn as_bool(&self, requested: &str) -> SnapshotResult<bool> {
        match self {
            Scalar::Bool(b) => Ok(*b),
            Scalar::Float(x) => Ok(*x != 0.0),
            other => match other.number() {
                Some(n) => Ok(n != 0),
                None => Err(self.is_not("a truth value", requested)),
            },
        }
    }

    /// Text, or the name of an enum's value.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] for numbers, and for an enum's value without a name.
    pub fn as_str(&self, requested: &str) -> SnapshotResult<String> {
        match self {
            Scalar::Str(s) => Ok(s.clone()),
            Scalar::Enum(e) => match e.name() {
                Some(name) => Ok(name.into_owned()),
                None => Err(self.is_not("a value that the enum has a name for", requested)),
            },
            other => Err(other.is_not("text", requested)),
        }
    }

    fn whole_number(&self) -> Option<i128> {
        match self {
            Scalar::Bool(b) => Some(i128::from(*b)),
            other => other.number(),
        }
    }

    fn is_not(&self, expected: &str, requested: &str) -> SnapshotError {
        SnapshotError::TypeMismatch {
            expected: expected.to_owned(),
            actual: self.described(),
            requested: requested.to_owned(),
        }
    }
}

/// The bits of a number that lies in `bytes`, least significant byte first: all of them, or the
/// range of a bitfield. `None` when it needs more bytes than there are, or more than 16.
pub(crate) fn number(bytes: &[u8], bits: Option<BitRange>, signed: bool) -> Option<i128> {
    let range = match bits {
        Some(range) => range,
        None => BitRange { offset: 0, len: u32::try_from(bytes.len()).ok()?.checked_mul(8)? },
    };
    let end = range.offset.checked_add(range.len)?;
    if range.len == 0 || end > 128 || end.div_ceil(8) as usize > bytes.len() {
        return None;
    }
    let mut all = [0u8; 16];
    let n = bytes.len().min(16);
    all[..n].copy_from_slice(&bytes[..n]);
    let above = 128 - end;
    let aligned = u128::from_le_bytes(all) << above;
    let dropped = 128 - range.len;
    if signed {
        Some((aligned as i128) >> dropped)
    } else {
        // An unsigned 128-bit number beyond i128 has no use here.
        i128::try_from(aligned >> dropped).ok()
    }
}

/// The value that `bytes` hold as one of type `ty`. The caller gives exactly the bytes that the
/// type (or the bitfield) takes.
///
/// # Errors
/// What it holds instead, when it is no single value, is not UTF-8, or is too wide.
pub(crate) fn decode(
    btf: &Btf,
    ty: TypeId,
    bits: Option<BitRange>,
    bytes: &[u8],
) -> Result<Scalar, String> {
    let shape = btf.shape(ty).map_err(|e| e.to_string())?;
    let wide = || match wide(btf, ty, bytes) {
        Some(digits) => format!(
            "{digits} ({}, more than a number holds; .as_str() gives the digits, .as_f64() comes \
             near)",
            btf.type_name(ty)
        ),
        None => format!("{} of {} bytes, more than a number holds", btf.type_name(ty), bytes.len()),
    };
    match &*shape {
        Shape::Int { bool: true, .. } => {
            Ok(Scalar::Bool(number(bytes, bits, false).ok_or_else(wide)? != 0))
        }
        Shape::Int { signed, .. } => {
            number(bytes, bits, *signed).and_then(Scalar::of_number).ok_or_else(wide)
        }
        Shape::Enum(e) => {
            let value = number(bytes, bits, e.signed).ok_or_else(wide)?;
            Ok(Scalar::Enum(EnumValue { value, shape: shape.clone() }))
        }
        Shape::Ptr { .. } => {
            number(bytes, bits, false).and_then(Scalar::of_number).ok_or_else(wide)
        }
        Shape::Float { .. } => match *bytes {
            [a, b, c, d] => Ok(Scalar::Float(f32::from_le_bytes([a, b, c, d]).into())),
            [a, b, c, d, e, f, g, h] => {
                Ok(Scalar::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h])))
            }
            _ => Err(format!("a {} of {} bytes", btf.type_name(ty), bytes.len())),
        },
        Shape::Array { elem, .. } if is_char(btf, *elem) => text(bytes).map(Scalar::Str),
        _ => {
            let kind = with_article(FieldKind::of(btf, ty).as_str());
            Err(format!("{kind} ({})", btf.type_name(ty)))
        }
    }
}

/// The digits of an integer that takes 16 bytes; `None` for any other type.
pub(crate) fn wide(btf: &Btf, ty: TypeId, bytes: &[u8]) -> Option<String> {
    let Shape::Int { size: 16, signed, .. } = *btf.shape(ty).ok()? else { return None };
    let bytes = bytes.try_into().ok()?;
    Some(match signed {
        true => i128::from_le_bytes(bytes).to_string(),
        false => u128::from_le_bytes(bytes).to_string(),
    })
}

/// Bytes up to the first zero, as text.
pub(crate) fn text(bytes: &[u8]) -> Result<String, String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    match std::str::from_utf8(&bytes[..end]) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => Err(format!(
            "bytes that are not UTF-8 ({} at byte {}; .raw() reads them)",
            hex(&bytes[e.valid_up_to()..end], 8),
            e.valid_up_to()
        )),
    }
}

/// Bytes in hexadecimal in the order of memory, at most `max` of them.
pub(crate) fn hex(bytes: &[u8], max: usize) -> String {
    use std::fmt::Write as _;
    let mut out = String::from("0x");
    for byte in bytes.iter().take(max) {
        let _ = write!(out, "{byte:02x}");
    }
    if bytes.len() > max {
        out.push_str("..");
    }
    out
}
