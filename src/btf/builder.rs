//! A small BTF encoder: types in, bytes out. For what this program makes itself, and for tests.
//!
//! ```ignore
//! let mut b = Builder::new();
//! let u32_ = b.int("unsigned int", 4, false);
//! let point = b.structure("point", 8, &[("x", u32_, 0), ("y", u32_, 32)]);
//! let var = b.var("origin", point);
//! b.datasec(".bss", 8, &[(var, 0, 8)]);
//! let btf = b.parse();
//! assert_eq!(btf.field(point, "y").unwrap().offset, 4);
//! ```
//!
//! Nothing is checked, so that tests can also build what must be refused. Ids can be referred
//! to before they exist ([`Builder::next_id`]), which is how types that contain each other
//! are made.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Btf, TypeId};

/// Collects types; see the module's example.
pub struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    known: HashMap<String, u32>,
    next: TypeId,
    strings_base: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A stand-alone BTF.
    pub fn new() -> Self {
        Builder {
            types: Vec::new(),
            strings: vec![0],
            known: HashMap::from([(String::new(), 0)]),
            next: 1,
            strings_base: 0,
        }
    }

    /// A BTF whose ids and strings go on where those of `base` end.
    pub fn split(base: &Btf) -> Self {
        Builder {
            strings: Vec::new(),
            next: base.len(),
            strings_base: base.strings_end(),
            ..Builder::new()
        }
    }

    /// The id that the next type gets.
    pub fn next_id(&self) -> TypeId {
        self.next
    }

    /// The offset of `name` in the string section.
    pub fn string(&mut self, name: &str) -> u32 {
        if let Some(&offset) = self.known.get(name) {
            return offset;
        }
        let offset = self.strings_base + self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.known.insert(name.to_string(), offset);
        offset
    }

    /// Any type: name, kind number, kind flag, number of parts, size or type, detail words.
    pub fn raw(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        vlen: usize,
        size_or_type: u32,
        detail: &[u32],
    ) -> TypeId {
        let name = self.string(name);
        let info = u32::from(flag) << 31 | kind << 24 | vlen as u32;
        for word in [name, info, size_or_type].iter().chain(detail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    /// An integer of `size` bytes.
    pub fn int(&mut self, name: &str, size: u32, signed: bool) -> TypeId {
        let encoding = (u32::from(signed) << 24) | (size * 8);
        self.raw(name, 1, false, 0, size, &[encoding])
    }

    /// A `bool`.
    pub fn boolean(&mut self, name: &str) -> TypeId {
        self.raw(name, 1, false, 0, 1, &[4 << 24 | 8])
    }

    /// A floating-point number.
    pub fn float(&mut self, name: &str, size: u32) -> TypeId {
        self.raw(name, 16, false, 0, size, &[])
    }

    /// A pointer.
    pub fn ptr(&mut self, to: TypeId) -> TypeId {
        self.raw("", 2, false, 0, to, &[])
    }

    /// An array (its index type is the element type, which nothing reads).
    pub fn array(&mut self, elem: TypeId, len: u32) -> TypeId {
        self.raw("", 3, false, 0, 0, &[elem, elem, len])
    }

    /// A struct of members (name, type, offset in bits).
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
        self.members(name, 4, size, members)
    }

    /// A union of members (name, type, offset in bits).
    pub fn union(&mut self, name: &str, size: u32, members: &[(&str, TypeId, u32)]) -> TypeId {
        self.members(name, 5, size, members)
    }

    fn members(
        &mut self,
        name: &str,
        kind: u32,
        size: u32,
        members: &[(&str, TypeId, u32)],
    ) -> TypeId {
        let mut detail = Vec::new();
        for &(name, ty, bit) in members {
            detail.extend([self.string(name), ty, bit]);
        }
        self.raw(name, kind, false, members.len(), size, &detail)
    }

    /// A struct with bitfields: members (name, type, offset in bits, bits or 0).
    pub fn bitfields(
        &mut self,
        name: &str,
        size: u32,
        members: &[(&str, TypeId, u32, u32)],
    ) -> TypeId {
        let mut detail = Vec::new();
        for &(name, ty, bit, len) in members {
            detail.extend([self.string(name), ty, len << 24 | bit]);
        }
        self.raw(name, 4, true, members.len(), size, &detail)
    }

    /// An enum of up to four bytes.
    pub fn enumeration(
        &mut self,
        name: &str,
        size: u32,
        signed: bool,
        variants: &[(&str, i64)],
    ) -> TypeId {
        let mut detail = Vec::new();
        for &(name, value) in variants {
            detail.extend([self.string(name), value as u32]);
        }
        self.raw(name, 6, signed, variants.len(), size, &detail)
    }

    /// An enum of eight bytes.
    pub fn enum64(&mut self, name: &str, signed: bool, variants: &[(&str, u64)]) -> TypeId {
        let mut detail = Vec::new();
        for &(name, value) in variants {
            detail.extend([self.string(name), value as u32, (value >> 32) as u32]);
        }
        self.raw(name, 19, signed, variants.len(), 8, &detail)
    }

    /// A forward declaration.
    pub fn fwd(&mut self, name: &str, union: bool) -> TypeId {
        self.raw(name, 7, union, 0, 0, &[])
    }

    /// A typedef.
    pub fn typedef(&mut self, name: &str, to: TypeId) -> TypeId {
        self.raw(name, 8, false, 0, to, &[])
    }

    /// `volatile`.
    pub fn volatile(&mut self, to: TypeId) -> TypeId {
        self.raw("", 9, false, 0, to, &[])
    }

    /// `const`.
    pub fn constant(&mut self, to: TypeId) -> TypeId {
        self.raw("", 10, false, 0, to, &[])
    }

    /// A type of functions. A parameter `("", 0)` at the end stands for `...`.
    pub fn func_proto(&mut self, ret: TypeId, params: &[(&str, TypeId)]) -> TypeId {
        let mut detail = Vec::new();
        for &(name, ty) in params {
            detail.extend([self.string(name), ty]);
        }
        self.raw("", 13, false, params.len(), ret, &detail)
    }

    /// A global function.
    pub fn func(&mut self, name: &str, proto: TypeId) -> TypeId {
        // The linkage takes the place of the number of parts.
        self.raw(name, 12, false, 1, proto, &[])
    }

    /// A global variable.
    pub fn var(&mut self, name: &str, ty: TypeId) -> TypeId {
        self.raw(name, 14, false, 0, ty, &[1])
    }

    /// A section of variables (variable, offset, size).
    pub fn datasec(&mut self, name: &str, size: u32, vars: &[(TypeId, u32, u32)]) -> TypeId {
        let detail: Vec<u32> = vars.iter().flat_map(|&(v, o, s)| [v, o, s]).collect();
        self.raw(name, 15, false, vars.len(), size, &detail)
    }

    /// A tag on a type, or on one of its members or parameters.
    pub fn decl_tag(&mut self, tag: &str, to: TypeId, component: i32) -> TypeId {
        self.raw(tag, 17, false, 0, to, &[component as u32])
    }

    /// A tag in a chain of pointers.
    pub fn type_tag(&mut self, tag: &str, to: TypeId) -> TypeId {
        self.raw(tag, 18, false, 0, to, &[])
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&u32::to_le_bytes(word));
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }

    /// The bytes, parsed.
    pub fn parse(&self) -> Arc<Btf> {
        Btf::parse(&self.encode()).expect("the test's BTF is valid")
    }
}
