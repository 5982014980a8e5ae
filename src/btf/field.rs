//! Walking a path of member names and indices through nested types.

use std::collections::HashSet;

use super::{Btf, BtfError, MAX_DEPTH, Member, Shape, TypeId};

/// Where a member is and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the value that the walk began at.
    pub offset: u64,
    /// Which bits, if it is a bitfield. They begin in the byte at `offset`.
    pub bits: Option<BitRange>,
    /// Its type, not looked through.
    pub ty: TypeId,
    /// Bytes it takes; for a bitfield, bytes from `offset` on that hold all of its bits.
    pub size: u64,
}

/// The bits of a bitfield, counted from the lowest bit of the byte at [`Field::offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// First bit, 0 to 7.
    pub offset: u32,
    /// Bits, at least 1.
    pub len: u32,
}

/// Why a path does not lead to a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Nothing between two dots, or before the first or after the last.
    #[error("path {path:?} has an empty component")]
    EmptyComponent {
        /// The path.
        path: String,
    },
    /// Brackets without a number in them, or text after them.
    #[error("path {path:?}: {component:?} is no member name with indices like \"name[3]\"")]
    Syntax {
        /// The path.
        path: String,
        /// The part that cannot be read.
        component: String,
    },
    /// The struct has no such member.
    #[error("{type_name} has no member {component:?}{}", list(available))]
    NoSuchMember {
        /// The path.
        path: String,
        /// The part of the path that was walked.
        walked: String,
        /// The member that is not there.
        component: String,
        /// The type that was searched, as C spells it.
        type_name: String,
        /// The members it has, those of anonymous structs included.
        available: Vec<String>,
    },
    /// A member of something that has none.
    #[error("{:?} is {found_kind} ({type_name}) and has no member {component:?}", shown(walked))]
    NotAStruct {
        /// The path.
        path: String,
        /// The part of the path that was walked.
        walked: String,
        /// The member asked for.
        component: String,
        /// What is there instead, with its article: `a pointer`, `an integer`.
        found_kind: String,
        /// Its type, as C spells it.
        type_name: String,
    },
    /// An index into something that is no array.
    #[error("{:?} is {found_kind} ({type_name}) and cannot be indexed", shown(walked))]
    NotAnArray {
        /// The path.
        path: String,
        /// The part of the path that was walked.
        walked: String,
        /// What is there instead, with its article.
        found_kind: String,
        /// Its type, as C spells it.
        type_name: String,
    },
    /// An index past the end.
    #[error("{:?} has {len} elements, index {index} is past its end", shown(walked))]
    Index {
        /// The path.
        path: String,
        /// The part of the path that was walked.
        walked: String,
        /// The index asked for.
        index: u64,
        /// Elements there are.
        len: u32,
    },
    /// The types themselves are damaged.
    #[error(transparent)]
    Btf(#[from] BtfError),
}

/// What the walk calls the value it began at.
fn shown(walked: &str) -> &str {
    if walked.is_empty() { "the value" } else { walked }
}

fn list(available: &[String]) -> String {
    const SHOWN: usize = 12;
    if available.is_empty() {
        return "; it has no members".to_string();
    }
    let more = available.len().saturating_sub(SHOWN);
    let names = available[..available.len().min(SHOWN)].join(", ");
    match more {
        0 => format!("; it has {names}"),
        _ => format!("; it has {names} and {more} more"),
    }
}

fn with_article(kind: &str) -> String {
    let article = match kind.chars().next() {
        Some('a' | 'e' | 'i' | 'o' | 'u') if kind != "union" => "an",
        _ => "a",
    };
    format!("{article} {kind}")
}

pub(super) fn walk(btf: &Btf, root: TypeId, path: &str) -> Result<Field, FieldError> {
    let mut walk = Walk {
        btf,
        path,
        walked: String::new(),
        at: Field { offset: 0, bits: None, ty: root, size: btf.size_of(root).unwrap_or_default() },
    };
    btf.resolve(root)?;
    if path.is_empty() {
        return Ok(walk.at);
    }
    for component in path.split('.') {
        let (name, indices) = walk.split(component)?;
        if !name.is_empty() {
            walk.member(name)?;
        } else if !walk.walked.is_empty() || indices.is_empty() {
            return Err(FieldError::EmptyComponent { path: path.to_string() });
        }
        for index in indices {
            walk.index(index)?;
        }
    }
    Ok(walk.at)
}

struct Walk<'a> {
    btf: &'a Btf,
    path: &'a str,
    walked: String,
    at: Field,
}

impl Walk<'_> {
    /// `name[1][2]` into its name and indices. The first component may have no name.
    fn split<'c>(&self, component: &'c str) -> Result<(&'c str, Vec<u64>), FieldError> {
        let bad =
            || FieldError::Syntax { path: self.path.to_string(), component: component.to_string() };
        let end = component.find('[').unwrap_or(component.len());
        let (name, mut rest) = component.split_at(end);
        if name.contains(']') {
            return Err(bad());
        }
        let mut indices = Vec::new();
        while !rest.is_empty() {
            let (index, after) =
                rest.strip_prefix('[').and_then(|r| r.split_once(']')).ok_or_else(bad)?;
            if !index.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            indices.push(index.parse().map_err(|_| bad())?);
            rest = after;
        }
        Ok((name, indices))
    }

    fn member(&mut self, name: &str) -> Result<(), FieldError> {
        let shape = self.btf.shape(self.at.ty)?;
        let Shape::Struct(_) = &*shape else {
            return Err(FieldError::NotAStruct {
                path: self.path.to_string(),
                walked: self.walked.clone(),
                component: name.to_string(),
                found_kind: with_article(shape.kind_name()),
                type_name: self.btf.type_name(self.at.ty),
            });
        };
        let mut search = Search { btf: self.btf, name, seen: HashSet::new() };
        let Some((bit, member)) = search.find(self.at.ty, 0, 0) else {
            return Err(FieldError::NoSuchMember {
                path: self.path.to_string(),
                walked: self.walked.clone(),
                component: name.to_string(),
                type_name: self.btf.type_name(self.at.ty),
                available: member_names(self.btf, self.at.ty),
            });
        };
        self.at.offset += bit / 8;
        self.at.ty = member.ty;
        self.at.bits = member.bitfield_len.map(|len| BitRange { offset: (bit % 8) as u32, len });
        self.at.size = match self.at.bits {
            Some(bits) => u64::from((bits.offset + bits.len).div_ceil(8)),
            None => self.btf.size_of(member.ty).unwrap_or_default(),
        };
        if !self.walked.is_empty() {
            self.walked.push('.');
        }
        self.walked.push_str(name);
        Ok(())
    }

    fn index(&mut self, index: u64) -> Result<(), FieldError> {
        let shape = self.btf.shape(self.at.ty)?;
        let Shape::Array { elem, len, elem_size } = *shape else {
            return Err(FieldError::NotAnArray {
                path: self.path.to_string(),
                walked: self.walked.clone(),
                found_kind: with_article(shape.kind_name()),
                type_name: self.btf.type_name(self.at.ty),
            });
        };
        if index >= u64::from(len) {
            return Err(FieldError::Index {
                path: self.path.to_string(),
                walked: self.walked.clone(),
                index,
                len,
            });
        }
        // An array's whole size fits 64 bits (shape() checked it), the sum of two need not.
        self.at.offset = self
            .at
            .offset
            .checked_add(index * elem_size)
            .ok_or(BtfError::Endless { id: self.at.ty })?;
        self.at.ty = elem;
        self.at.size = elem_size;
        self.at.bits = None;
        self.walked.push_str(&format!("[{index}]"));
        Ok(())
    }
}

/// Searches a struct and the anonymous structs and unions in it. A type that was searched in
/// vain is not searched again, so shared and self-containing types cost nothing.
struct Search<'a> {
    btf: &'a Btf,
    name: &'a str,
    seen: HashSet<TypeId>,
}

impl Search<'_> {
    fn find(&mut self, ty: TypeId, base_bit: u64, depth: usize) -> Option<(u64, Member)> {
        let id = self.btf.resolve(ty).ok()?;
        if depth > MAX_DEPTH || !self.seen.insert(id) {
            return None;
        }
        let shape = self.btf.shape(id).ok()?;
        let Shape::Struct(s) = &*shape else {
            return None;
        };
        if let Some(member) = s.members.iter().find(|m| m.name == self.name) {
            return Some((base_bit + u64::from(member.bit_offset), member.clone()));
        }
        s.members
            .iter()
            .filter(|m| m.name.is_empty())
            .find_map(|m| self.find(m.ty, base_bit + u64::from(m.bit_offset), depth + 1))
    }
}

/// The names by which members can be reached from a value of type `ty`.
fn member_names(btf: &Btf, ty: TypeId) -> Vec<String> {
    fn collect(
        btf: &Btf,
        ty: TypeId,
        seen: &mut HashSet<TypeId>,
        depth: usize,
        out: &mut Vec<String>,
    ) {
        let Ok(id) = btf.resolve(ty) else { return };
        if depth > MAX_DEPTH || !seen.insert(id) {
            return;
        }
        let Ok(shape) = btf.shape(id) else { return };
        let Shape::Struct(s) = &*shape else { return };
        for member in &s.members {
            match member.name.as_str() {
                "" => collect(btf, member.ty, seen, depth + 1, out),
                name => out.push(name.to_string()),
            }
        }
    }
    let mut out = Vec::new();
    collect(btf, ty, &mut HashSet::new(), 0, &mut out);
    out
}
