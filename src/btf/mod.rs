//! BTF, the kernel's type format, as a graph of types that is safe to walk.
//!
//! BTF describes the types of a kernel and of every BPF object. It comes from places that are
//! not trusted (guest RAM, files a user points at), so [`Btf::parse`] checks the header, the
//! section bounds and every reference first (`check.rs`) and only then hands the bytes to
//! [`btf_rs`], which decodes them. What is left to a hostile author, types that contain or
//! name themselves, is met by limits on every walk: [`MAX_HOPS`] links of a chain, [`MAX_DEPTH`]
//! levels of nesting, each type visited at most once in a search.
//!
//! ```text
//! raw bytes ──check──▶ offsets, strings ──btf-rs──▶ Btf ──shape(id)──▶ Shape (looked through typedefs, memoized)
//!                                                    ├──field(root, "a.b[2].c")──▶ Field (offset, size, type)
//!                                                    └──type_name(id)──▶ "struct task_struct *"
//! ```
//!
//! The format follows `include/uapi/linux/btf.h` and `Documentation/bpf/btf.rst`.

mod basics;
pub mod builder;
mod check;
mod field;
mod flags;
mod shape;
mod special;
mod spell;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use btf_rs::BtfType as _;

pub use basics::Basics;
pub use check::BtfError;
pub use field::{BitRange, Field, FieldError};
pub use shape::{EnumShape, Last, Linkage, Member, Param, SecVar, Shape, StructShape};
pub use special::{Contains, Special, SpecialAt};
pub(crate) use spell::{Names, declaration, keyword};

#[cfg(test)]
pub(crate) use builder as testing;
use check::Layout;

/// A type's number inside one BTF. 0 is `void`.
pub type TypeId = u32;

/// Links of a chain of modifiers or pointers that are followed before it counts as endless.
pub const MAX_HOPS: usize = 64;

/// Levels of nested arrays and anonymous structs that are entered.
pub const MAX_DEPTH: usize = 32;

/// The kinds of type that BTF knows, numbered as in `include/uapi/linux/btf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    Datasec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    /// The kind of that number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Kind> {
        const ALL: [Kind; 20] = [
            Kind::Void,
            Kind::Int,
            Kind::Ptr,
            Kind::Array,
            Kind::Struct,
            Kind::Union,
            Kind::Enum,
            Kind::Fwd,
            Kind::Typedef,
            Kind::Volatile,
            Kind::Const,
            Kind::Restrict,
            Kind::Func,
            Kind::FuncProto,
            Kind::Var,
            Kind::Datasec,
            Kind::Float,
            Kind::DeclTag,
            Kind::TypeTag,
            Kind::Enum64,
        ];
        ALL.get(usize::from(number)).copied()
    }

    /// Whether a type of this kind only names or qualifies another one.
    #[must_use]
    pub fn is_modifier(self) -> bool {
        matches!(
            self,
            Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag
        )
    }
}

/// Which kinds of type a name lookup wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A struct's definition.
    Struct,
    /// A union's definition.
    Union,
    /// An enum of any size.
    Enum,
    /// An integer, a bool or a char.
    Int,
    /// A typedef.
    Typedef,
    /// A function.
    Func,
    /// A global variable.
    Var,
    /// A section of variables, as `.bss`.
    Datasec,
    /// Any kind.
    Any,
}

impl Want {
    fn takes(self, kind: Kind) -> bool {
        match self {
            Want::Struct => kind == Kind::Struct,
            Want::Union => kind == Kind::Union,
            Want::Enum => matches!(kind, Kind::Enum | Kind::Enum64),
            Want::Int => matches!(kind, Kind::Int | Kind::Float),
            Want::Typedef => kind == Kind::Typedef,
            Want::Func => kind == Kind::Func,
            Want::Var => kind == Kind::Var,
            Want::Datasec => kind == Kind::Datasec,
            Want::Any => true,
        }
    }
}

/// A parsed BTF: immutable, shared as `Arc<Btf>`.
pub struct Btf {
    parsed: LazyLock<Parsed, Load>,
    base: Option<Arc<Btf>>,
}

type Load = Box<dyn FnOnce() -> Parsed + Send>;

struct Parsed {
    raw: Box<[u8]>,
    layout: Layout,
    inner: btf_rs::Btf,
    /// One slot per type of this BTF (not of its base), filled on first use.
    shapes: Box<[OnceLock<Arc<Shape>>]>,
    /// Special members by the type they are in.
    specials: Mutex<HashMap<TypeId, Arc<[SpecialAt]>>>,
    tags: OnceLock<special::Tags>,
}

impl Parsed {
    fn new(raw: &[u8], base: Option<&Arc<Btf>>) -> Result<Parsed, BtfError> {
        if base.is_some_and(|base| base.base.is_some()) {
            return Err(BtfError::SplitBase);
        }
        let layout = check::check(raw, base.map(|base| &**base))?;
        let inner = match base {
            None => btf_rs::Btf::from_bytes(raw),
            Some(base) => btf_rs::Btf::from_split_bytes(raw, &base.parsed.inner),
        };
        let inner = inner.map_err(|e| BtfError::Decode(e.to_string()))?;
        let shapes = (0..layout.offsets.len()).map(|_| OnceLock::new()).collect();
        let (specials, tags) = (Mutex::default(), OnceLock::new());
        Ok(Parsed { raw: raw.into(), layout, inner, shapes, specials, tags })
    }
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Btf({} types, {} bytes)", self.len(), self.parsed.raw.len())
    }
}

impl Btf {
    /// Checks and parses a stand-alone BTF (`.BTF` of a vmlinux or of a BPF object).
    ///
    /// # Errors
    /// [`BtfError`] says what is wrong with the bytes and where.
    pub fn parse(raw: &[u8]) -> Result<Arc<Btf>, BtfError> {
        Ok(Btf::ready(Parsed::new(raw, None)?, None))
    }

    fn ready(parsed: Parsed, base: Option<Arc<Btf>>) -> Arc<Btf> {
        let load: Load = Box::new(move || parsed);
        Arc::new(Btf { parsed: LazyLock::new(load), base })
    }

    /// A BTF that is parsed when it is first asked for something: a kernel's takes a tenth of a
    /// second. `load` gives its bytes; if they turn out to be none of a BTF, it has no types.
    #[must_use]
    pub fn deferred(
        load: impl FnOnce() -> Vec<u8> + Send + 'static,
        base: Option<Arc<Btf>>,
    ) -> Arc<Btf> {
        let of = base.clone();
        let load: Load = Box::new(move || {
            let parsed = Parsed::new(&load(), of.as_ref());
            // struct btf_header and the empty string: there is nothing in it to go wrong.
            const NOTHING: [u8; 25] =
                *b"\x9f\xeb\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0";
            parsed.unwrap_or_else(|_| Parsed::new(&NOTHING, None).expect("it is well-formed"))
        });
        Arc::new(Btf { parsed: LazyLock::new(load), base })
    }

    /// Checks and parses a split BTF (a kernel module's), whose ids and strings go on where
    /// those of `base` end.
    ///
    /// # Errors
    /// As [`Btf::parse`]; also when `base` is itself split.
    pub fn parse_split(raw: &[u8], base: &Arc<Btf>) -> Result<Arc<Btf>, BtfError> {
        Ok(Btf::ready(Parsed::new(raw, Some(base))?, Some(base.clone())))
    }

    /// The bytes that were parsed.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.parsed.raw
    }

    /// What this BTF is split from.
    #[must_use]
    pub fn base(&self) -> Option<&Arc<Btf>> {
        self.base.as_ref()
    }

    /// The number of types, `void` and those of the base included: ids are below it.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // void is always there
    pub fn len(&self) -> u32 {
        self.first_id() + self.parsed.layout.offsets.len() as u32
    }

    /// The first id that is this BTF's own.
    fn first_id(&self) -> TypeId {
        self.base.as_ref().map_or(0, |b| b.len())
    }

    /// What kind of type `id` is; `None` when there is no such id.
    #[must_use]
    pub fn kind(&self, id: TypeId) -> Option<Kind> {
        Some(self.header(id)?.kind)
    }

    /// The type's own name, empty for anonymous types and those that have none.
    #[must_use]
    pub fn name(&self, id: TypeId) -> &str {
        self.header(id).and_then(|h| self.string(h.name_off)).unwrap_or_default()
    }

    /// The type that `id` points to, names, qualifies, tags or (a function) has as prototype;
    /// `None` for kinds without one.
    #[must_use]
    pub fn target(&self, id: TypeId) -> Option<TypeId> {
        let header = self.header(id)?;
        match header.kind {
            Kind::Ptr | Kind::Func | Kind::Var | Kind::DeclTag => Some(header.size_or_type),
            kind if kind.is_modifier() => Some(header.size_or_type),
            _ => None,
        }
    }

    /// Whether a type or decl tag is an attribute in C's own syntax (`address_space(1)`) and not
    /// a free text.
    #[must_use]
    pub fn is_attribute(&self, id: TypeId) -> bool {
        self.header(id).is_some_and(|h| h.flag && matches!(h.kind, Kind::TypeTag | Kind::DeclTag))
    }

    /// What a decl tag is attached to: the tagged type and, for a member or parameter, its
    /// position. `None` when `id` is no decl tag.
    #[must_use]
    pub fn decl_tag(&self, id: TypeId) -> Option<(TypeId, Option<u32>)> {
        match self.decoded(id)? {
            btf_rs::Type::DeclTag(tag) => Some((tag.get_type_id()?, tag.component_index())),
            _ => None,
        }
    }

    /// Follows typedefs, qualifiers and type tags to the type behind them.
    ///
    /// # Errors
    /// [`BtfError::Endless`] when the chain does not end, [`BtfError::NoSuchType`] when `id`
    /// is not in this BTF.
    pub fn resolve(&self, id: TypeId) -> Result<TypeId, BtfError> {
        let mut at = id;
        for _ in 0..MAX_HOPS {
            let kind = self.kind(at).ok_or(BtfError::NoSuchType { id: at, len: self.len() })?;
            match self.target(at) {
                Some(next) if kind.is_modifier() => at = next,
                _ => return Ok(at),
            }
        }
        Err(BtfError::Endless { id })
    }

    /// What the type is, looked through typedefs, qualifiers and type tags. Computed once.
    ///
    /// # Errors
    /// As [`Btf::resolve`]; also when a size does not fit 64 bits.
    pub fn shape(&self, id: TypeId) -> Result<Arc<Shape>, BtfError> {
        // What has a shape already is no modifier.
        if let Some(shape) = self.slot(id).and_then(OnceLock::get) {
            return Ok(shape.clone());
        }
        let id = self.resolve(id)?;
        if let Some(base) = self.base.as_ref().filter(|b| id < b.len()) {
            return base.shape(id);
        }
        let slot = self.slot(id).ok_or(BtfError::NoSuchType { id, len: self.len() })?;
        if let Some(shape) = slot.get() {
            return Ok(shape.clone());
        }
        let shape = Arc::new(shape::build(self, id)?);
        Ok(slot.get_or_init(|| shape).clone())
    }

    /// Where the shape of a type of its own is kept.
    fn slot(&self, id: TypeId) -> Option<&OnceLock<Arc<Shape>>> {
        self.parsed.shapes.get(id.checked_sub(self.first_id())? as usize)
    }

    /// Bytes that a value of the type takes; `None` for types without a size (`void`,
    /// functions, forward declarations) and for those whose size cannot be told.
    #[must_use]
    pub fn size_of(&self, id: TypeId) -> Option<u64> {
        let mut at = id;
        let mut factor = 1u64;
        // Arrays of arrays and modifiers form one chain, so one limit ends it.
        for _ in 0..MAX_HOPS {
            at = self.resolve(at).ok()?;
            let header = self.header(at)?;
            let size = match header.kind {
                Kind::Int
                | Kind::Float
                | Kind::Enum
                | Kind::Enum64
                | Kind::Struct
                | Kind::Union
                | Kind::Datasec => u64::from(header.size_or_type),
                Kind::Ptr => 8,
                Kind::Var => {
                    at = header.size_or_type;
                    continue;
                }
                Kind::Array => {
                    let btf_rs::Type::Array(array) = self.decoded(at)? else {
                        return None;
                    };
                    factor = factor.checked_mul(array.len() as u64)?;
                    at = array.get_type_id()?;
                    continue;
                }
                _ => return None,
            };
            return size.checked_mul(factor);
        }
        None
    }

    /// The C spelling of the type: `struct task_struct *`, `u32[4]`, `volatile int`.
    ///
    /// Spellings are cut (`...`) where a hostile type would make them endless.
    #[must_use]
    pub fn type_name(&self, id: TypeId) -> String {
        spell::spell(self, id)
    }

    /// The type of that name; definitions are preferred over forward declarations, this BTF's
    /// own types over those of its base, lower ids over higher ones.
    #[must_use]
    pub fn find(&self, name: &str, want: Want) -> Option<TypeId> {
        let ids = self.parsed.inner.resolve_ids_by_name(name).ok()?;
        let first = self.first_id();
        ids.into_iter()
            .filter_map(|id| Some((id, self.kind(id)?)))
            .filter(|&(_, kind)| want.takes(kind) && kind != Kind::DeclTag)
            .min_by_key(|&(id, kind)| (kind == Kind::Fwd, id < first, id))
            .map(|(id, _)| id)
    }

    /// The type that a C author names so: `struct task_struct`, `enum scx_exit_kind`, `u32`.
    #[must_use]
    pub fn find_c(&self, c_name: &str) -> Option<TypeId> {
        let mut words = c_name.split_whitespace();
        let (first, second) = (words.next()?, words.next());
        match (first, second, words.next()) {
            ("struct", Some(name), None) => self.find(name, Want::Struct),
            ("union", Some(name), None) => self.find(name, Want::Union),
            ("enum", Some(name), None) => self.find(name, Want::Enum),
            _ => {
                let name = c_name.split_whitespace().collect::<Vec<_>>().join(" ");
                self.find(&name, Want::Typedef).or_else(|| self.find(&name, Want::Int))
            }
        }
    }

    /// Every type that has a name, ascending by id, the base's first.
    pub fn names(&self) -> impl Iterator<Item = (TypeId, &str)> {
        (1..self.len()).map(|id| (id, self.name(id))).filter(|(_, name)| !name.is_empty())
    }

    /// The sections of variables of this BTF (not of its base).
    #[must_use]
    pub fn datasecs(&self) -> Vec<(TypeId, String)> {
        (self.first_id()..self.len())
            .filter(|&id| self.kind(id) == Some(Kind::Datasec))
            .map(|id| (id, self.name(id).to_string()))
            .collect()
    }

    /// Where the member is that `path` names, counted from the start of a value of type
    /// `root`, and what it is. A path has member names separated by dots and array indices in
    /// brackets (`"a.b[2].c"`); members of anonymous structs and unions are reached by their
    /// own names, as in C; pointers are not followed. The empty path is the value itself.
    ///
    /// # Errors
    /// [`FieldError`] says where the walk stopped and what was there.
    pub fn field(&self, root: TypeId, path: &str) -> Result<Field, FieldError> {
        field::walk(self, root, path)
    }

    /// The three words that begin each type.
    fn header(&self, id: TypeId) -> Option<Header> {
        if let Some(base) = self.base.as_ref().filter(|b| id < b.len()) {
            return base.header(id);
        }
        if id == 0 {
            return Some(Header { name_off: 0, kind: Kind::Void, flag: false, size_or_type: 0 });
        }
        let local = id.checked_sub(self.first_id())?;
        let at = *self.parsed.layout.offsets.get(local as usize)? as usize;
        let word = |i: usize| check::word(&self.parsed.raw, at + 4 * i);
        let info = word(1)?;
        Some(Header {
            name_off: word(0)?,
            kind: Kind::from_number((info >> 24 & 0x1f) as u8)?,
            flag: info >> 31 == 1,
            size_or_type: word(2)?,
        })
    }

    /// The first word after a type's header, which is where an int keeps its encoding.
    fn first_detail(&self, id: TypeId) -> Option<u32> {
        if let Some(base) = self.base.as_ref().filter(|b| id < b.len()) {
            return base.first_detail(id);
        }
        let local = id.checked_sub(self.first_id())?;
        let at = *self.parsed.layout.offsets.get(local as usize)? as usize;
        check::word(&self.parsed.raw, at + 12)
    }

    fn decoded(&self, id: TypeId) -> Option<btf_rs::Type> {
        self.parsed.inner.resolve_type_by_id(id).ok()
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let start = match &self.base {
            Some(base) if offset < base.strings_end() => return base.string(offset),
            Some(base) => (offset - base.strings_end()) as usize,
            None => offset as usize,
        };
        let all = self.parsed.raw.get(self.parsed.layout.strings.clone())?;
        let rest = all.get(start..)?;
        let end = memchr::memchr(0, rest)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// Offsets of strings are below this.
    fn strings_end(&self) -> u32 {
        self.base.as_ref().map_or(0, |b| b.strings_end()) + self.parsed.layout.strings.len() as u32
    }
}

#[derive(Clone, Copy)]
struct Header {
    name_off: u32,
    kind: Kind,
    /// The kind flag: bitfields (struct, union), signed (enum), union (forward declaration).
    flag: bool,
    size_or_type: u32,
}
