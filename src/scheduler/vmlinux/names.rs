//! What each type is called in the header.

use std::collections::{HashMap, HashSet};

use crate::btf::{Btf, Kind, Shape, TypeId, keyword};

/// Words that no type, enumerator or member may be called, and names that the compiler keeps
/// for itself. (`bool` is not one: kernels define it and C before C23 allows that.)
const RESERVED: &[&str] = &[
    "__builtin_va_list",
    "__int128",
    "_Bool",
    "asm",
    "auto",
    "break",
    "case",
    "char",
    "const",
    "continue",
    "default",
    "do",
    "double",
    "else",
    "enum",
    "extern",
    "float",
    "for",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "typedef",
    "typeof",
    "union",
    "unsigned",
    "void",
    "volatile",
    "while",
];

/// Spellings of integers that C knows; others (Rust's) are replaced by what has their size.
const C_INTS: &[&str] = &[
    "_Bool",
    "__int128",
    "__int128 unsigned",
    "char",
    "int",
    "long int",
    "long long int",
    "long long unsigned int",
    "long unsigned int",
    "short int",
    "short unsigned int",
    "signed char",
    "unsigned __int128",
    "unsigned char",
    "unsigned int",
];

/// Names given out once, in one of C's two name spaces.
#[derive(Default)]
struct Space {
    taken: HashSet<String>,
    /// The last suffix that each name came with, so that many of one name are not tried again.
    suffix: HashMap<String, u32>,
}

impl Space {
    /// `name`, or with a suffix if it is taken.
    fn give(&mut self, name: &str) -> String {
        let name = identifier(name);
        let mut given = name.clone();
        let n = self.suffix.entry(name.clone()).or_insert(1);
        while RESERVED.contains(&given.as_str()) || !self.taken.insert(given.clone()) {
            *n += 1;
            given = format!("{name}___{n}");
        }
        given
    }
}

/// `name` with everything replaced that C does not allow in one.
pub(super) fn identifier(name: &str) -> String {
    let mut out: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// A member's or parameter's name.
pub(super) fn member(name: &str) -> String {
    let name = identifier(name);
    if RESERVED.contains(&name.as_str()) { name + "_" } else { name }
}

/// The names of everything that the header declares.
pub(super) struct Names {
    /// Tags of structs, unions and enums (those of anonymous enums included), and typedefs.
    types: HashMap<TypeId, String>,
    /// Enumerators: names given by enum, in order.
    enumerators: HashMap<TypeId, Vec<String>>,
    /// Functions and everything else that shares their name space.
    ordinary: Space,
}

impl Names {
    pub(super) fn new(btf: &Btf) -> Self {
        let mut names = Names {
            types: HashMap::new(),
            enumerators: HashMap::new(),
            ordinary: Space::default(),
        };
        names.give_tags(btf);
        names.give_typedefs(btf);
        names.give_enumerators(btf);
        names
    }

    fn give_tags(&mut self, btf: &Btf) {
        let mut tags = Space::default();
        // The first definition of each name, for the forward declarations of it.
        let mut defined: HashMap<(&str, &str), TypeId> = HashMap::new();
        for id in 1..btf.len() {
            let (Some(kind), name) = (btf.kind(id), btf.name(id)) else { continue };
            let given = match kind {
                Kind::Struct | Kind::Union if !name.is_empty() => tags.give(name),
                Kind::Enum | Kind::Enum64 if !name.is_empty() => tags.give(name),
                // A tag of our own: the type may be used in several places, but its enumerators
                // can be declared only once.
                Kind::Enum | Kind::Enum64 => tags.give(&format!("anonymous_enum_{id}")),
                _ => continue,
            };
            if !name.is_empty() {
                defined.entry((keyword(btf, id), name)).or_insert(id);
            }
            self.types.insert(id, given);
        }
        for id in 1..btf.len() {
            if btf.kind(id) != Some(Kind::Fwd) {
                continue;
            }
            let key = (keyword(btf, id), btf.name(id));
            let known = defined.get(&key).and_then(|d| self.types.get(d)).cloned();
            let given = known.unwrap_or_else(|| tags.give(key.1));
            defined.entry(key).or_insert(id);
            self.types.insert(id, given);
        }
    }

    fn give_typedefs(&mut self, btf: &Btf) {
        for id in 1..btf.len() {
            if btf.kind(id) == Some(Kind::Typedef) {
                let given = self.ordinary.give(btf.name(id));
                self.types.insert(id, given);
            }
        }
    }

    fn give_enumerators(&mut self, btf: &Btf) {
        for id in 1..btf.len() {
            if !matches!(btf.kind(id), Some(Kind::Enum | Kind::Enum64)) {
                continue;
            }
            let Ok(shape) = btf.shape(id) else { continue };
            let Shape::Enum(e) = &*shape else { continue };
            let given = e.variants.iter().map(|(name, _)| self.ordinary.give(name)).collect();
            self.enumerators.insert(id, given);
        }
    }

    /// Gives a function its name; `None` when something else is called so.
    pub(super) fn function(&mut self, name: &str) -> Option<String> {
        let free = identifier(name) == name && !RESERVED.contains(&name);
        (free && self.ordinary.taken.insert(name.to_string())).then(|| name.to_string())
    }

    /// The name of a struct, union, enum or typedef that has one.
    pub(super) fn of(&self, id: TypeId) -> Option<&str> {
        self.types.get(&id).map(String::as_str)
    }

    /// An enum's enumerators, in order.
    pub(super) fn enumerators(&self, id: TypeId) -> &[String] {
        self.enumerators.get(&id).map(Vec::as_slice).unwrap_or_default()
    }
}

/// How C spells an integer or floating-point number.
pub(super) fn scalar(shape: &Shape) -> &str {
    match shape {
        Shape::Int { name, .. } if C_INTS.contains(&name.as_str()) => name,
        Shape::Int { bool: true, size: 1, .. } => "_Bool",
        Shape::Int { size, signed, .. } => match (size, signed) {
            (1, true) => "signed char",
            (1, false) => "unsigned char",
            (2, true) => "short int",
            (2, false) => "short unsigned int",
            (4, true) => "int",
            (4, false) => "unsigned int",
            (8, true) => "long long int",
            (8, false) => "long long unsigned int",
            (_, true) => "__int128",
            (_, false) => "unsigned __int128",
        },
        Shape::Float { size: 2, .. } => "short int",
        Shape::Float { size: 4, .. } => "float",
        Shape::Float { size: 8, .. } => "double",
        _ => "long double",
    }
}
