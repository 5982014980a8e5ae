//! Where a compiler puts members, and what has to be added so that it puts them where BTF
//! says they are.
//!
//! The rules are those of the System V ABI, which clang's BPF target follows: a member is
//! aligned to its type's alignment, a struct's size to its largest member's; a bitfield goes
//! to the next bit unless it would cross a boundary of its type; unnamed bitfields take room
//! and align nothing. The rules are applied to the types as they are written into the header,
//! so an alignment attribute that BTF does not know is made up for by padding, consistently.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::btf::{Btf, Member, Shape, StructShape, TypeId};

use super::{HeaderError, MAX_LEVELS};

/// What is written for a struct or union besides its members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Alignment in bytes of the type as written.
    pub align: u64,
    /// `packed` is needed.
    pub packed: bool,
    /// `aligned(N)` is needed.
    pub aligned: Option<u64>,
    /// Bits of padding: from, to; in front of each member, and last after all of them.
    pub padding: Vec<(u64, u64)>,
    /// C cannot express it; it is written as bytes.
    pub opaque: bool,
}

/// Lays types out, each once.
pub(super) struct Layouts<'a> {
    btf: &'a Btf,
    done: RefCell<HashMap<TypeId, Rc<Layout>>>,
}

impl<'a> Layouts<'a> {
    pub(super) fn new(btf: &'a Btf) -> Self {
        Layouts { btf, done: RefCell::default() }
    }

    /// The layout of the struct or union `id` (not looked through).
    pub(super) fn of(&self, id: TypeId) -> Result<Rc<Layout>, HeaderError> {
        self.layout(id, 0)
    }

    fn layout(&self, id: TypeId, level: usize) -> Result<Rc<Layout>, HeaderError> {
        if let Some(done) = self.done.borrow().get(&id) {
            return Ok(done.clone());
        }
        if level > MAX_LEVELS {
            return Err(HeaderError::TooDeep { id, name: self.btf.type_name(id) });
        }
        let shape = self.btf.shape(id)?;
        let layout = match &*shape {
            Shape::Struct(s) => {
                let members = self.members(s, level)?;
                if s.union { union(s.size, &members) } else { structure(s.size, &members) }
            }
            _ => Layout { align: 1, ..Layout::default() },
        };
        let layout = Rc::new(layout);
        self.done.borrow_mut().insert(id, layout.clone());
        Ok(layout)
    }

    fn members(&self, s: &StructShape, level: usize) -> Result<Vec<Placed>, HeaderError> {
        s.members.iter().map(|m| self.placed(m, level)).collect()
    }

    fn placed(&self, member: &Member, level: usize) -> Result<Placed, HeaderError> {
        Ok(Placed {
            at: u64::from(member.bit_offset),
            bitfield: member.bitfield_len.map(u64::from),
            size: self.btf.size_of(member.ty).unwrap_or_default(),
            align: self.align(member.ty, level)?,
        })
    }

    /// Alignment in bytes of a value of the type, as written.
    fn align(&self, ty: TypeId, level: usize) -> Result<u64, HeaderError> {
        if level > MAX_LEVELS {
            return Err(HeaderError::TooDeep { id: ty, name: self.btf.type_name(ty) });
        }
        let id = self.btf.resolve(ty)?;
        Ok(match &*self.btf.shape(id)? {
            Shape::Struct(_) => self.layout(id, level + 1)?.align,
            Shape::Array { elem, .. } => self.align(*elem, level + 1)?,
            Shape::Int { size, .. } => u64::from(*size),
            Shape::Float { size, .. } => u64::from(*size).next_power_of_two(),
            Shape::Enum(e) => u64::from(e.size),
            Shape::Ptr { .. } => 8,
            _ => 1,
        })
    }
}

/// A member as far as its place goes. Places in bits, sizes in bytes.
struct Placed {
    at: u64,
    bitfield: Option<u64>,
    size: u64,
    align: u64,
}

impl Placed {
    /// Where the compiler puts it when `from` is the next free bit.
    fn natural(&self, from: u64, packed: bool) -> u64 {
        let align = if packed { 8 } else { self.align * 8 };
        match self.bitfield {
            None => from.next_multiple_of(align),
            Some(_) if packed => from,
            Some(len) => {
                let unit = (self.size * 8).max(1);
                let fits = from / unit == (from + len.max(1) - 1) / unit;
                if fits { from } else { from.next_multiple_of(align) }
            }
        }
    }

    fn end(&self) -> u64 {
        match self.bitfield {
            Some(len) => self.at.saturating_add(len),
            None => self.at.saturating_add(self.size.saturating_mul(8)),
        }
    }
}

fn structure(size: u64, members: &[Placed]) -> Layout {
    for packed in [false, true] {
        if let Some(layout) = try_structure(size, members, packed) {
            return layout;
        }
    }
    opaque()
}

fn try_structure(size: u64, members: &[Placed], packed: bool) -> Option<Layout> {
    let align = if packed { 1 } else { members.iter().map(|m| m.align).max().unwrap_or(1) };
    let mut padding = Vec::new();
    let mut next = 0;
    for member in members {
        if member.at < next || (member.bitfield.is_none() && !member.at.is_multiple_of(8)) {
            return None;
        }
        if member.natural(next, packed) == member.at {
            padding.push((member.at, member.at));
        } else if member.natural(member.at, packed) == member.at {
            padding.push((next, member.at));
        } else {
            return None;
        }
        next = member.end();
    }
    let end = size.checked_mul(8)?;
    if next > end {
        return None;
    }
    let natural_end = next.next_multiple_of(align * 8);
    if natural_end == end {
        padding.push((end, end));
    } else if size.is_multiple_of(align) {
        padding.push((next, end));
    } else {
        return None;
    }
    Some(Layout { align, packed, padding, ..Layout::default() })
}

fn union(size: u64, members: &[Placed]) -> Layout {
    if members.iter().any(|m| m.at != 0) {
        return opaque();
    }
    let largest = members.iter().map(|m| m.end().div_ceil(8)).max().unwrap_or(0);
    let natural = members.iter().map(|m| m.align).max().unwrap_or(1);
    let padding = vec![(0, 0); members.len() + 1];
    if largest > size {
        return opaque();
    }
    for align in [natural, 1] {
        if largest.next_multiple_of(align) == size {
            let packed = align != natural;
            return Layout { align, packed, padding, ..Layout::default() };
        }
    }
    // An attribute of the original that BTF does not carry made it larger.
    let mut align = natural;
    while align < size {
        align *= 2;
        if largest.next_multiple_of(align) == size {
            return Layout { align, aligned: Some(align), padding, ..Layout::default() };
        }
    }
    opaque()
}

fn opaque() -> Layout {
    Layout { align: 1, opaque: true, ..Layout::default() }
}

/// Bits of padding that are written as bitfields at most, before they become an array.
const MAX_BITFIELD_PADDING: u64 = 8 * 512;

/// Members that take the bits from `from` to `to`, without the semicolons.
///
/// Unnamed bitfields, so that nothing is added that could be taken for a member; none crosses
/// a boundary of its type, so they lie where they are put. Only very large gaps, which would
/// be thousands of them, end with an array.
pub(super) fn padding(from: u64, to: u64) -> Vec<String> {
    let mut out = Vec::new();
    let mut at = from;
    while at < to {
        if at - from > MAX_BITFIELD_PADDING && at.is_multiple_of(8) && to - at >= 8 {
            let bytes = (to - at) / 8;
            out.push(format!("unsigned char __padding_{}[{bytes}]", at / 8));
            at += bytes * 8;
            continue;
        }
        let left = to - at;
        let (ty, bits) = [("long", 64), ("int", 32), ("short", 16)]
            .into_iter()
            .find(|&(_, bits)| at.is_multiple_of(bits) && left >= bits)
            .unwrap_or_else(|| ("char", left.min(8 - at % 8)));
        out.push(format!("{ty} : {bits}"));
        at += bits;
    }
    out
}
