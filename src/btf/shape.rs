//! A type as its users need it: looked through typedefs and qualifiers, with names and sizes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use btf_rs::BtfType;

use super::{Btf, BtfError, Kind, TypeId};

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `void`.
    Void,
    /// An integer, a char or a bool.
    Int {
        /// Bytes it takes.
        size: u32,
        /// Bits of them that carry the value.
        bits: u32,
        /// Two's complement.
        signed: bool,
        /// Marked as a character (compilers mark `bool` and `char` only now and then).
        char: bool,
        /// A `bool`.
        bool: bool,
        /// As C spells it, `unsigned int`.
        name: String,
    },
    /// A floating-point number.
    Float {
        /// Bytes it takes.
        size: u32,
        /// As C spells it.
        name: String,
    },
    /// A pointer, 8 bytes on every machine that is read.
    Ptr {
        /// What it points to, not looked through.
        to: TypeId,
    },
    /// An array.
    Array {
        /// Type of an element, not looked through.
        elem: TypeId,
        /// Elements; 0 for a flexible array.
        len: u32,
        /// Bytes from one element to the next.
        elem_size: u64,
    },
    /// A struct or a union.
    Struct(StructShape),
    /// An enum.
    Enum(EnumShape),
    /// A struct or union of which only the name is known.
    Fwd {
        /// Its name.
        name: String,
        /// A union.
        union: bool,
    },
    /// A function.
    Func {
        /// Its name.
        name: String,
        /// Its prototype.
        proto: TypeId,
        /// How it is linked.
        linkage: Linkage,
    },
    /// The type of a function.
    FuncProto {
        /// What it returns.
        ret: TypeId,
        /// What it takes.
        params: Vec<Param>,
        /// Whether `...` follows.
        variadic: bool,
    },
    /// A global variable.
    Var {
        /// Its name.
        name: String,
        /// Its type, not looked through.
        ty: TypeId,
        /// How it is linked.
        linkage: Linkage,
    },
    /// A section of variables.
    Datasec {
        /// `.bss`, `.rodata`, ..
        name: String,
        /// Bytes. 0 in an object that was not linked.
        size: u64,
        /// What is in it.
        vars: Vec<SecVar>,
        /// Places in `vars` in the order of names.
        by_name: Vec<u32>,
        /// The variable that was found last.
        last: Last,
    },
    /// A tag on another declaration.
    DeclTag {
        /// Its text.
        name: String,
        /// What it tags.
        to: TypeId,
    },
}

impl Shape {
    /// What an error message calls it: `struct`, `pointer`, `integer`, ..
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            Shape::Void => "void",
            Shape::Int { bool: true, .. } => "bool",
            Shape::Int { .. } => "integer",
            Shape::Float { .. } => "float",
            Shape::Ptr { .. } => "pointer",
            Shape::Array { .. } => "array",
            Shape::Struct(s) if s.union => "union",
            Shape::Struct(_) => "struct",
            Shape::Enum(_) => "enum",
            Shape::Fwd { .. } => "forward declaration",
            Shape::Func { .. } => "function",
            Shape::FuncProto { .. } => "function type",
            Shape::Var { .. } => "variable",
            Shape::Datasec { .. } => "section",
            Shape::DeclTag { .. } => "tag",
        }
    }
}

/// A place that was looked up last, and is likely to be asked for next: a series asks for the same
/// variable in each sample. It is no part of what a type is.
#[derive(Debug, Default)]
pub struct Last(AtomicU32);

impl Last {
    /// The place.
    #[must_use]
    pub fn place(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Remembers another.
    pub fn remember(&self, place: u32) {
        self.0.store(place, Relaxed);
    }
}

impl Clone for Last {
    fn clone(&self) -> Self {
        Last(AtomicU32::new(self.place()))
    }
}

impl PartialEq for Last {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Last {}

/// A struct or a union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructShape {
    /// Its name, empty if anonymous.
    pub name: String,
    /// A union.
    pub union: bool,
    /// Bytes.
    pub size: u64,
    /// Members in the order of their declaration.
    pub members: Vec<Member>,
}

/// A member of a struct or a union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; empty for an anonymous struct or union, whose members are reached directly.
    pub name: String,
    /// Its type, not looked through.
    pub ty: TypeId,
    /// Where it starts, in bits from the start of the struct.
    pub bit_offset: u32,
    /// Bits, if it is a bitfield.
    pub bitfield_len: Option<u32>,
}

/// An enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnumShape {
    /// Its name, empty if anonymous.
    pub name: String,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u32,
    /// Whether values are two's complement.
    pub signed: bool,
    /// Names and values in the order of their declaration. `i128` holds both signednesses.
    pub variants: Vec<(String, i128)>,
}

impl EnumShape {
    /// The first name of that value.
    #[must_use]
    pub fn name_of(&self, value: i128) -> Option<&str> {
        let found = self.variants.iter().find(|(_, v)| *v == value)?;
        Some(&found.0)
    }
}

/// A parameter of a function type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name, often empty.
    pub name: String,
    /// Its type, not looked through.
    pub ty: TypeId,
}

/// A variable's place in a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecVar {
    /// The variable's name; a function's in sections of functions.
    pub name: String,
    /// The type of its value (of the function in sections of functions).
    pub ty: TypeId,
    /// Bytes from the section's start. 0 in an object that was not linked.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// How it is linked.
    pub linkage: Linkage,
}

/// How a variable or function is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Visible in its own object only.
    Static,
    /// Defined here, visible everywhere.
    Global,
    /// Defined elsewhere: by the kernel, as a kfunc or a kconfig value.
    Extern,
}

/// Builds the shape of `id`, which is no modifier.
pub(super) fn build(btf: &Btf, id: TypeId) -> Result<Shape, BtfError> {
    let missing = || BtfError::NoSuchType { id, len: btf.len() };
    let header = btf.header(id).ok_or_else(missing)?;
    let name = || btf.name(id).to_string();
    Ok(match btf.decoded(id).ok_or_else(missing)? {
        btf_rs::Type::Int(int) => Shape::Int {
            size: header.size_or_type,
            bits: btf.first_detail(id).unwrap_or_default() & 0xff,
            signed: int.is_signed(),
            char: int.is_char(),
            bool: int.is_bool(),
            name: name(),
        },
        btf_rs::Type::Float(_) => Shape::Float { size: header.size_or_type, name: name() },
        btf_rs::Type::Ptr(_) => Shape::Ptr { to: header.size_or_type },
        btf_rs::Type::Array(array) => {
            let elem = array.get_type_id().unwrap_or_default();
            // The size of the whole is asked for, so that an array of arrays that overflows
            // is refused here and not by every user.
            btf.size_of(id).ok_or_else(|| BtfError::Type {
                id,
                problem: "is an array whose size cannot be told".to_string(),
            })?;
            Shape::Array {
                elem,
                len: array.len() as u32,
                elem_size: btf.size_of(elem).unwrap_or_default(),
            }
        }
        btf_rs::Type::Struct(s) | btf_rs::Type::Union(s) => Shape::Struct(StructShape {
            name: name(),
            union: header.kind == Kind::Union,
            size: u64::from(header.size_or_type),
            members: s.members.iter().map(|m| member(btf, m)).collect(),
        }),
        btf_rs::Type::Enum(e) => Shape::Enum(EnumShape {
            name: name(),
            size: header.size_or_type,
            signed: e.is_signed(),
            variants: variants(btf, &e.members, |m| match e.is_signed() {
                true => i128::from(m.val() as i32),
                false => i128::from(m.val()),
            }),
        }),
        btf_rs::Type::Enum64(e) => Shape::Enum(EnumShape {
            name: name(),
            size: header.size_or_type,
            signed: e.is_signed(),
            variants: variants(btf, &e.members, |m| match e.is_signed() {
                true => i128::from(m.val() as i64),
                false => i128::from(m.val()),
            }),
        }),
        btf_rs::Type::Fwd(_) => Shape::Fwd { name: name(), union: header.flag },
        btf_rs::Type::Func(f) => Shape::Func {
            name: name(),
            proto: header.size_or_type,
            linkage: linkage(f.is_static(), f.is_extern()),
        },
        btf_rs::Type::FuncProto(proto) => func_proto(btf, header.size_or_type, &proto),
        btf_rs::Type::Var(v) => Shape::Var {
            name: name(),
            ty: header.size_or_type,
            linkage: linkage(v.is_static(), v.is_extern()),
        },
        btf_rs::Type::Datasec(sec) => {
            let vars = sec.variables.iter().map(|v| sec_var(btf, v)).collect();
            section(name(), header.size_or_type, vars)
        }
        btf_rs::Type::DeclTag(_) => Shape::DeclTag { name: name(), to: header.size_or_type },
        // Modifiers were looked through by the caller.
        _ => Shape::Void,
    })
}

fn section(name: String, size: u32, vars: Vec<SecVar>) -> Shape {
    let mut by_name: Vec<u32> = (0..).take(vars.len()).collect();
    by_name.sort_by(|a, b| vars[*a as usize].name.cmp(&vars[*b as usize].name));
    Shape::Datasec { name, size: u64::from(size), vars, by_name, last: Last::default() }
}

fn text(btf: &Btf, named: &dyn BtfType) -> String {
    named.get_name_offset().and_then(|offset| btf.string(offset)).unwrap_or_default().to_string()
}

fn linkage(is_static: bool, is_extern: bool) -> Linkage {
    match (is_static, is_extern) {
        (true, _) => Linkage::Static,
        (_, true) => Linkage::Extern,
        _ => Linkage::Global,
    }
}

fn member(btf: &Btf, member: &btf_rs::Member) -> Member {
    let ty = member.get_type_id().unwrap_or_default();
    let mut bit_offset = member.bit_offset();
    let mut bitfield_len = member.bitfield_size().filter(|&len| len > 0);
    // Without the kind flag a bitfield is a member of an integer type with fewer bits than
    // its bytes have (the encoding that compilers used before Linux 5.0).
    if member.bitfield_size().is_none()
        && let Ok(target) = btf.resolve(ty)
        && let Some(header) = btf.header(target)
        && header.kind == Kind::Int
    {
        let encoding = btf.first_detail(target).unwrap_or_default();
        let (bits, offset) = (encoding & 0xff, encoding >> 16 & 0xff);
        if bits < header.size_or_type.saturating_mul(8) {
            bitfield_len = Some(bits);
            bit_offset = bit_offset.saturating_add(offset);
        }
    }
    Member { name: text(btf, member), ty, bit_offset, bitfield_len }
}

fn variants<M: BtfType>(
    btf: &Btf,
    members: &[M],
    value: impl Fn(&M) -> i128,
) -> Vec<(String, i128)> {
    members.iter().map(|m| (text(btf, m), value(m))).collect()
}

fn func_proto(btf: &Btf, ret: TypeId, proto: &btf_rs::FuncProto) -> Shape {
    let mut params: Vec<Param> = proto
        .parameters
        .iter()
        .map(|p| Param { name: text(btf, p), ty: p.get_type_id().unwrap_or_default() })
        .collect();
    let variadic = proto.parameters.last().is_some_and(|p| p.is_variadic());
    if variadic {
        params.pop();
    }
    Shape::FuncProto { ret, params, variadic }
}

fn sec_var(btf: &Btf, var: &btf_rs::VarSecinfo) -> SecVar {
    let id = var.get_type_id().unwrap_or_default();
    let decoded = btf.decoded(id);
    let (ty, linkage) = match &decoded {
        Some(btf_rs::Type::Var(v)) => {
            (v.get_type_id().unwrap_or_default(), linkage(v.is_static(), v.is_extern()))
        }
        Some(btf_rs::Type::Func(f)) => (id, linkage(f.is_static(), f.is_extern())),
        _ => (id, Linkage::Global),
    };
    SecVar {
        name: btf.name(id).to_string(),
        ty,
        offset: var.offset(),
        size: var.size() as u32,
        linkage,
    }
}
