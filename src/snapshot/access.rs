//! Fields: a typed place in what was captured, walked by paths and read as values.
//!
//! A field holds no bytes, only where they are, so it is cheap to hand around; every read looks at
//! the captured bytes again. Types and offsets come from the guest: a type that says more than
//! there are bytes is an error, never a read past the end.

mod arena;
mod cpus;
mod flexible;
mod part;
mod pointer;
mod special;
mod summary;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use crate::btf::{self, Btf, FieldError, Shape, TypeId};

pub(crate) use special::Objects;

use super::Snapshot;
use super::entry::Entry;
use super::error::{SnapshotError, SnapshotResult, join};
use super::error_text::with_article;
use super::kernel::{Place, unreadable};
use super::path;
use super::value::{self, FieldKind, Scalar};
pub(crate) use cpus::set_of;

/// The path of a whole.
static NO_PATH: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// Elements of one array that are handed out at once.
const ELEMENTS: usize = 1 << 20;

/// The two sides of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The key.
    Key,
    /// The value.
    Value,
}

impl Side {
    /// As errors spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Key => "key",
            Side::Value => "value",
        }
    }
}

/// How the bytes of a field are to be read.
#[derive(Clone)]
enum Type {
    /// By BTF: the place within the entry's bytes and the type there.
    Btf {
        btf: Arc<Btf>,
        at: btf::Field,
        /// The type of the whole: of the key, the value, or what a pointer led to.
        root: TypeId,
        /// Bytes that were made for it, in the place of those of memory.
        made: Option<Arc<[u8]>>,
    },
    /// The index that is the key of an array.
    Index,
    /// Only bytes.
    Untyped,
}

/// What a field is a part of: where its bytes are.
#[derive(Clone)]
enum Base {
    /// One side of a map's entry.
    Entry(Entry, Side),
    /// Something of the kernel's own.
    Kernel(Place),
}

/// A place in a key or a value, or in what was copied of the kernel, with its type.
#[derive(Clone)]
pub struct Field {
    base: Base,
    ty: Type,
    /// From the key, the value or the kernel's struct to here; empty for the whole.
    path: Arc<str>,
    /// Pointers that were followed to an arena's page; a place of the kernel's has its own count.
    hops: u8,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The snapshot.
    pub tag: String,
    /// Workload time of the snapshot, in milliseconds.
    pub elapsed_ms: u64,
    /// The map, by its full name; what of the kernel it is, as `task 17`.
    pub map: String,
    /// The entry's key; empty where the map is a section of variables.
    pub key: String,
    /// The CPU, in a per-CPU map.
    pub cpu: Option<usize>,
    /// The path within the value; empty for the whole. A key is `key`.
    pub path: String,
}

impl fmt::Display for Origin {
    /// `task_ctx[1234].ctx.weight of snapshot "end" at 4.012 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.map)?;
        if !self.key.is_empty() {
            write!(f, "[{}]", self.key)?;
        }
        match (self.path.as_str(), self.key.is_empty()) {
            ("", _) => {}
            (path, true) => write!(f, " {path}")?,
            (path, false) if path.starts_with('[') => f.write_str(path)?,
            (path, false) => write!(f, ".{path}")?,
        }
        if let Some(cpu) = self.cpu {
            write!(f, " on CPU {cpu}")?;
        }
        write!(f, " {}", instant(&self.tag, self.elapsed_ms))
    }
}

/// `of snapshot "end" at 4.012 s`.
pub(crate) fn instant(tag: &str, elapsed_ms: u64) -> String {
    format!("of snapshot {tag:?} at {}.{:03} s", elapsed_ms / 1000, elapsed_ms % 1000)
}

impl Field {
    /// The whole key or value of an entry.
    pub(crate) fn whole(entry: Entry, side: Side) -> Field {
        let ty = {
            let attrs = entry.map().attrs();
            let id = match side {
                Side::Key => attrs.key_type,
                Side::Value => attrs.value_type,
            };
            match &attrs.btf {
                _ if side == Side::Key && entry.map().is_indexed() => Type::Index,
                Some(btf) if id != 0 => {
                    let size = match btf.is_open_text(id) {
                        // As long as it is there.
                        true => entry.bytes(side).map_or(0, |bytes| bytes.len() as u64),
                        false => btf.size_of(id).unwrap_or_default(),
                    };
                    let at = btf::Field { offset: 0, bits: None, ty: id, size };
                    Type::Btf { btf: btf.clone(), at, root: id, made: None }
                }
                _ => Type::Untyped,
            }
        };
        Field { base: Base::Entry(entry, side), ty, path: NO_PATH.clone(), hops: 0 }
    }

    /// The whole of something of the kernel's, as a type of its BTF or as bytes.
    pub(crate) fn of_kernel(place: Place, ty: Option<(Arc<Btf>, TypeId)>) -> Field {
        let ty = match ty {
            Some((btf, id)) => {
                let size = btf.size_of(id).unwrap_or_default();
                let at = btf::Field { offset: 0, bits: None, ty: id, size };
                Type::Btf { btf, at, root: id, made: None }
            }
            None => Type::Untyped,
        };
        Field { base: Base::Kernel(place), ty, path: NO_PATH.clone(), hops: 0 }
    }

    /// What it is a part of, as errors name it.
    fn of(&self) -> &str {
        match &self.base {
            Base::Entry(entry, _) => entry.map().name(),
            Base::Kernel(place) => place.what(),
        }
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        match &self.base {
            Base::Entry(entry, _) => entry.map().snapshot(),
            Base::Kernel(place) => place.snapshot(),
        }
    }

    /// The field at a path below this one: member names separated by dots, indices in brackets.
    ///
    /// # Errors
    /// [`SnapshotError::EmptyPathComponent`], [`SnapshotError::FieldNotFound`],
    /// [`SnapshotError::NotAStruct`] and [`SnapshotError::IndexOutOfRange`] say where the walk
    /// stopped; [`SnapshotError::MapRenderIncomplete`] when a pointer leads to what was not copied;
    /// [`SnapshotError::NoRendered`] when there is no type to walk.
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        if path.is_empty() {
            return Err(SnapshotError::EmptyPathComponent { requested: self.path.to_string() });
        }
        let (btf, at) = match &self.ty {
            Type::Btf { btf, at, .. } => (btf, at),
            Type::Index => {
                let component = path.split(['.', '[']).find(|c| !c.is_empty()).unwrap_or(path);
                return Err(SnapshotError::NotAStruct {
                    requested: path.to_owned(),
                    walked: String::new(),
                    component: component.to_owned(),
                    kind: FieldKind::Int.as_str().to_owned(),
                });
            }
            Type::Untyped => return Err(self.no_rendered()),
        };
        let found = match path::walk(btf, at.ty, path) {
            Ok(found) => found,
            Err(FieldError::NotAStruct { walked, .. }) if self.leads_on(&walked) => {
                let pointer = match walked.as_str() {
                    "" => self.clone(),
                    walked => self.get(walked)?,
                };
                let rest = path.get(walked.len()..).unwrap_or_default();
                return pointer.target()?.get(rest.strip_prefix('.').unwrap_or(rest));
            }
            Err(error) => {
                let further =
                    self.get_flexible(path, &error).or_else(|| self.get_special(path, &error));
                return further
                    .unwrap_or_else(|| Err(path::told(btf, at.ty, error, self.of(), &self.path)));
            }
        };
        let field = self.placed(path, found);
        // Of a struct that was copied in part, members are asked for one by one.
        let compound = matches!(
            field.kind(),
            FieldKind::Struct | FieldKind::Union | FieldKind::Array | FieldKind::Opaque
        );
        if matches!(self.base, Base::Entry(..)) || !compound {
            field.bytes()?;
        }
        Ok(field)
    }

    /// The field at a path below this one whose place within this one is known.
    pub(crate) fn placed(&self, path: &str, within: btf::Field) -> Field {
        let field = self.at_place(path, within);
        // Only an array without a length takes no bytes and may have some.
        if within.size == 0 { field.stretched() } else { field }
    }

    fn at_place(&self, path: &str, within: btf::Field) -> Field {
        let Type::Btf { btf, at, root, made } = &self.ty else { return self.clone() };
        let at = btf::Field { offset: at.offset.saturating_add(within.offset), ..within };
        let ty = Type::Btf { btf: btf.clone(), at, root: *root, made: made.clone() };
        let path = Arc::from(join(&self.path, path));
        Field { base: self.base.clone(), ty, path, hops: self.hops }
    }

    /// What is here.
    #[must_use]
    pub fn kind(&self) -> FieldKind {
        match &self.ty {
            Type::Btf { .. } if self.is_list() => FieldKind::Array,
            Type::Btf { btf, at, .. } => FieldKind::of(btf, at.ty),
            Type::Index => FieldKind::Int,
            Type::Untyped => FieldKind::Bytes,
        }
    }

    /// The type as C spells it; `bytes` without one.
    #[must_use]
    pub fn type_name(&self) -> String {
        match &self.ty {
            Type::Btf { btf, at, .. } => btf.type_name(at.ty),
            Type::Index => "u32".to_owned(),
            Type::Untyped => "bytes".to_owned(),
        }
    }

    /// Types and place, for those who walk on themselves.
    pub(crate) fn typed(&self) -> Option<(&Arc<Btf>, btf::Field)> {
        match &self.ty {
            Type::Btf { btf, at, .. } => Some((btf, *at)),
            Type::Index | Type::Untyped => None,
        }
    }

    /// The value itself, when this is a leaf: a number, a truth value, an enum or text.
    ///
    /// # Errors
    /// What [`Field::scalar`] answers, other than that this is no leaf.
    pub fn leaf(&self) -> SnapshotResult<Option<Scalar>> {
        if self.kind().is_leaf() { self.scalar().map(Some) } else { Ok(None) }
    }

    /// The value of a leaf, or the address in a pointer.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] when it holds no single value or cannot be decoded,
    /// [`SnapshotError::NoRendered`] when it has no type, and why its bytes are not there.
    pub fn scalar(&self) -> SnapshotResult<Scalar> {
        match &self.ty {
            Type::Btf { btf, at, .. } => {
                let bytes = self.bytes()?;
                value::decode(btf, at.ty, at.bits, &bytes)
                    .map_err(|actual| self.mismatch("a single value", actual))
            }
            Type::Index => match &self.base {
                Base::Entry(entry, _) => {
                    Ok(Scalar::Int(i64::try_from(entry.row()).unwrap_or(i64::MAX)))
                }
                Base::Kernel(_) => Err(self.no_rendered()),
            },
            Type::Untyped => Err(self.no_rendered()),
        }
    }

    /// The number here, without a sign; also the address in a pointer.
    ///
    /// # Errors
    /// As [`Field::scalar`] and [`Scalar::as_u64`].
    pub fn as_u64(&self) -> SnapshotResult<u64> {
        self.scalar()?.as_u64(&self.path)
    }

    /// The number here, with its sign.
    ///
    /// # Errors
    /// As [`Field::scalar`] and [`Scalar::as_i64`].
    pub fn as_i64(&self) -> SnapshotResult<i64> {
        self.scalar()?.as_i64(&self.path)
    }

    /// The number here, as a float.
    ///
    /// # Errors
    /// As [`Field::scalar`] and [`Scalar::as_f64`].
    pub fn as_f64(&self) -> SnapshotResult<f64> {
        if let Some(near) = self.wide().and_then(|digits| digits.parse().ok()) {
            return Ok(near);
        }
        self.scalar()?.as_f64(&self.path)
    }

    /// False for 0 (and a null pointer), true for any other number.
    ///
    /// # Errors
    /// As [`Field::scalar`] and [`Scalar::as_bool`].
    pub fn as_bool(&self) -> SnapshotResult<bool> {
        self.scalar()?.as_bool(&self.path)
    }

    /// The text here: an array of `char` up to its first zero, an array of any other one-byte
    /// integers read the same way, the name of an enum's value, or the digits of an `__int128`.
    ///
    /// # Errors
    /// As [`Field::scalar`] and [`Scalar::as_str`]; bytes that are not UTF-8 are a
    /// [`SnapshotError::TypeMismatch`].
    pub fn as_str(&self) -> SnapshotResult<String> {
        if self.is_byte_array() {
            return value::text(&self.bytes()?).map_err(|actual| self.mismatch("text", actual));
        }
        if let Some(digits) = self.wide() {
            return Ok(digits);
        }
        self.scalar()?.as_str(&self.path)
    }

    /// The digits of an integer of 128 bits.
    pub(crate) fn wide(&self) -> Option<String> {
        let (btf, at) = self.typed().filter(|(_, at)| at.size == 16)?;
        value::wide(btf, at.ty, &self.bytes().ok()?)
    }

    fn is_byte_array(&self) -> bool {
        let Some((btf, at)) = self.typed() else { return false };
        match btf.shape(at.ty).as_deref() {
            Ok(Shape::Array { elem, .. }) => {
                matches!(btf.shape(*elem).as_deref(), Ok(Shape::Int { size: 1, bool: false, .. }))
            }
            _ => false,
        }
    }

    /// The elements of an array; the objects in a list or a tree, in their order.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] when this is no array, or one of more than a million
    /// elements; [`SnapshotError::MapRenderIncomplete`] when not all objects of a list could be
    /// followed.
    pub fn as_array(&self) -> SnapshotResult<Vec<Field>> {
        if let Some(objects) = self.all_objects() {
            return objects;
        }
        let elements = self.elements()?;
        if elements.len > ELEMENTS {
            let actual = format!("{} of them, at most {ELEMENTS} can be listed", elements.len);
            return Err(self.mismatch("elements to list", actual));
        }
        Ok((0..elements.len).map(|i| elements.at(i)).collect())
    }

    /// The elements of an array, each made when it is asked for.
    pub(crate) fn elements(&self) -> SnapshotResult<Elements<'_>> {
        let Some((btf, at)) = self.typed() else {
            return Err(match self.ty {
                Type::Untyped => self.no_rendered(),
                _ => self.mismatch("an array", self.described()),
            });
        };
        let shape = btf.shape(at.ty).ok();
        let Some(Shape::Array { elem, len, elem_size }) = shape.as_deref() else {
            return Err(self.mismatch("an array", self.described()));
        };
        let size = usize::try_from(*elem_size).unwrap_or(usize::MAX);
        let there = self.bytes()?.len();
        // Elements without a size would be as many as a hostile type says.
        let fit = there.checked_div(size).unwrap_or_default();
        // One without a length has as many as there are.
        let most = if *len == 0 { fit } else { *len as usize };
        Ok(Elements { field: self, elem: *elem, size, len: fit.min(most) })
    }

    /// The bytes here, as they lay in memory. Of a bitfield, the bytes that hold its bits.
    ///
    /// # Errors
    /// Why the bytes are not there.
    pub fn raw(&self) -> SnapshotResult<Vec<u8>> {
        self.bytes().map(Cow::into_owned)
    }

    /// The names that [`Field::get`] takes next, in the order of their declaration; those of
    /// anonymous structs and unions are among them.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] when this has no members.
    pub fn members(&self) -> SnapshotResult<Vec<String>> {
        if let Some(Ok(shown)) = self.shown() {
            return shown.members();
        }
        match (&self.ty, self.kind()) {
            (Type::Btf { btf, at, .. }, FieldKind::Struct | FieldKind::Union) => {
                Ok(path::member_names(btf, at.ty))
            }
            (Type::Untyped, _) => Err(self.no_rendered()),
            _ => Err(self.mismatch("a struct", self.described())),
        }
    }

    /// The bytes here.
    pub(crate) fn bytes(&self) -> SnapshotResult<Cow<'_, [u8]>> {
        if let Type::Btf { at, made: Some(bytes), .. } = &self.ty {
            let start = usize::try_from(at.offset).unwrap_or(usize::MAX);
            let bytes = bytes.get(start..).and_then(|rest| rest.get(..at.size as usize));
            return bytes.map(Cow::Borrowed).ok_or_else(|| self.no_rendered());
        }
        let (entry, side) = match (&self.base, &self.ty) {
            (Base::Entry(entry, side), _) => (entry, *side),
            (Base::Kernel(place), Type::Btf { at, .. }) => {
                return place.bytes(at.offset, at.size, &self.path);
            }
            (Base::Kernel(place), _) => return place.whole(),
        };
        let whole = entry.bytes(side)?;
        let Type::Btf { btf, at, .. } = &self.ty else { return Ok(whole) };
        let range = usize::try_from(at.offset)
            .ok()
            .zip(usize::try_from(at.size).ok())
            .and_then(|(start, len)| Some(start..start.checked_add(len)?));
        let cut = range.and_then(|range| match &whole {
            Cow::Borrowed(bytes) => bytes.get(range).map(Cow::Borrowed),
            Cow::Owned(bytes) => bytes.get(range).map(|b| Cow::Owned(b.to_vec())),
        });
        let cut = cut.or_else(|| arena::across(entry, at.offset, at.size).map(Cow::Owned));
        cut.ok_or_else(|| SnapshotError::MapRenderIncomplete {
            map: entry.map().name().to_owned(),
            error: format!(
                "{} takes {} bytes at offset {}, but a {} of the map has {} bytes",
                btf.type_name(at.ty),
                at.size,
                at.offset,
                side.as_str(),
                whole.len()
            ),
        })
    }

    /// Where this came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        let (entry, side) = match &self.base {
            Base::Entry(entry, side) => (entry, *side),
            Base::Kernel(place) => {
                return Origin {
                    tag: place.snapshot().tag().to_owned(),
                    elapsed_ms: place.snapshot().elapsed_ms(),
                    map: place.what().to_owned(),
                    key: String::new(),
                    cpu: None,
                    path: self.path.to_string(),
                };
            }
        };
        let map = entry.map();
        let snapshot = map.snapshot();
        let path = match side {
            Side::Key => join("key", &self.path).into_owned(),
            Side::Value => self.path.to_string(),
        };
        Origin {
            tag: snapshot.tag().to_owned(),
            elapsed_ms: snapshot.elapsed_ms(),
            map: map.name().to_owned(),
            key: if map.is_section() { String::new() } else { entry.key_text() },
            cpu: map.narrowed_to(),
            path,
        }
    }

    /// The path from the key or value to here.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is here, for messages: `5 (int)`, `a struct (struct task_ctx)`.
    #[must_use]
    pub fn described(&self) -> String {
        let kind = self.kind();
        if kind.is_leaf() {
            return match self.scalar() {
                Ok(scalar) => scalar.described(),
                Err(SnapshotError::TypeMismatch { actual, .. }) => actual,
                Err(_) => format!("{kind} ({})", self.type_name()),
            };
        }
        match kind {
            FieldKind::Pointer => match self.as_u64() {
                Ok(at) => format!("{at:#x} (pointer, {})", self.type_name()),
                Err(_) => format!("a pointer ({})", self.type_name()),
            },
            FieldKind::Bytes => "bytes without a type".to_owned(),
            kind => format!("{} ({})", with_article(kind.as_str()), self.type_name()),
        }
    }

    /// The error that something else is here.
    #[must_use]
    pub fn mismatch(&self, expected: &str, actual: String) -> SnapshotError {
        SnapshotError::TypeMismatch {
            expected: expected.to_owned(),
            actual,
            requested: self.path.to_string(),
        }
    }

    fn no_rendered(&self) -> SnapshotError {
        match &self.base {
            Base::Entry(entry, side) => entry.map().no_rendered(side.as_str()),
            Base::Kernel(place) => unreadable(
                place.what(),
                "the kernel's BTF does not tell its type, only bytes are known: give the type, as \
                 in kernel(\"jiffies_64\", \"u64\"), or read them with .raw()",
            ),
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Field({}: {})", self.origin(), self.type_name())
    }
}

/// The elements of an array.
pub(crate) struct Elements<'a> {
    field: &'a Field,
    elem: TypeId,
    /// How many there are.
    pub(crate) len: usize,
    /// Bytes of each; not 0 when there are any.
    pub(crate) size: usize,
}

impl Elements<'_> {
    /// The element at an index below the length.
    pub(crate) fn at(&self, i: usize) -> Field {
        let (i, size) = (i as u64, self.size as u64);
        let offset = i.saturating_mul(size);
        self.field.placed(&format!("[{i}]"), btf::Field { offset, bits: None, ty: self.elem, size })
    }
}
