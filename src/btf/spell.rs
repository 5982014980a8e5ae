//! Types as C spells them.

use super::{Btf, Kind, MAX_DEPTH, Shape, TypeId};

/// Types that one spelling may contain before it is cut: a function type that takes itself a
/// few times would otherwise grow without end.
const MAX_PARTS: usize = 256;

/// How the parts of a spelling are written that C leaves to whoever writes it.
pub(crate) trait Names {
    /// A type that is named as a whole (everything but pointers, arrays, function types and
    /// qualifiers), with `struct`, `union` or `enum` where it needs it.
    fn base(&self, id: TypeId) -> String;

    /// What a type tag adds to the type it is on; nothing for most.
    fn tag(&self, _id: TypeId) -> Option<String> {
        None
    }

    /// The brackets of an array without elements.
    fn flexible(&self) -> &'static str {
        "[]"
    }

    /// The name of a parameter, empty for none.
    fn param(&self, _name: &str) -> String {
        String::new()
    }
}

/// The names that messages use: those of the types, `(anonymous)` where there is none.
struct Plain<'a>(&'a Btf);

impl Names for Plain<'_> {
    fn base(&self, id: TypeId) -> String {
        let name = self.0.name(id);
        let keyword = keyword(self.0, id);
        match name {
            "" if keyword.is_empty() => format!("<type {id}>"),
            "" => format!("{keyword} (anonymous)"),
            name if keyword.is_empty() => name.to_string(),
            name => format!("{keyword} {name}"),
        }
    }
}

/// The word that C wants in front of the type's name: `struct`, `union`, `enum` or nothing.
pub(crate) fn keyword(btf: &Btf, id: TypeId) -> &'static str {
    match btf.kind(id) {
        Some(Kind::Struct) => "struct",
        Some(Kind::Union) => "union",
        Some(Kind::Enum | Kind::Enum64) => "enum",
        Some(Kind::Fwd) if btf.header(id).is_some_and(|h| h.flag) => "union",
        Some(Kind::Fwd) => "struct",
        _ => "",
    }
}

/// The type alone, as in a cast: `struct task_struct *`, `u32[4]`, `void (*)(int)`.
pub(super) fn spell(btf: &Btf, id: TypeId) -> String {
    declaration(btf, &Plain(btf), id, "")
}

/// A declaration of `name`: `struct task_struct *p`, `u32 v[4]`, `void (*f)(int)`.
pub(crate) fn declaration(btf: &Btf, names: &dyn Names, id: TypeId, name: &str) -> String {
    Speller { btf, names, parts: 0 }.declare(id, name.to_string(), 0)
}

/// Writes declarations: a base type on the left, a declarator that grows around the name.
struct Speller<'a> {
    btf: &'a Btf,
    names: &'a dyn Names,
    parts: usize,
}

impl Speller<'_> {
    fn declare(&mut self, id: TypeId, inner: String, depth: usize) -> String {
        self.parts += 1;
        if self.parts > MAX_PARTS || depth > 2 * MAX_DEPTH {
            return join("...", &inner);
        }
        let btf = self.btf;
        let target = btf.target(id).unwrap_or_default();
        match btf.kind(id) {
            None => join(&format!("<no type {id}>"), &inner),
            Some(Kind::Ptr) => {
                let inner = format!("*{inner}");
                let inner = if self.binds_tighter(target) { format!("({inner})") } else { inner };
                self.declare(target, inner, depth + 1)
            }
            Some(kind @ (Kind::Const | Kind::Volatile | Kind::Restrict)) => {
                let word = match kind {
                    Kind::Const => "const",
                    Kind::Volatile => "volatile",
                    _ => "restrict",
                };
                self.qualify(word, target, inner, depth)
            }
            Some(Kind::TypeTag) => {
                let inner = match self.names.tag(id) {
                    Some(tag) => join(&tag, &inner),
                    None => inner,
                };
                self.declare(target, inner, depth + 1)
            }
            Some(Kind::Array | Kind::FuncProto) => self.suffix(id, inner, depth),
            Some(Kind::Func | Kind::Var) => {
                let name = join(btf.name(id), &inner);
                self.declare(target, name, depth + 1)
            }
            Some(Kind::Void) => join("void", &inner),
            Some(_) => join(&self.names.base(id), &inner),
        }
    }

    /// A qualifier stands left of the base type, or right of the `*` that it qualifies.
    fn qualify(&mut self, word: &str, target: TypeId, inner: String, depth: usize) -> String {
        let btf = self.btf;
        let mut at = target;
        for _ in 0..MAX_DEPTH {
            match btf.kind(at) {
                Some(Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag) => {
                    at = btf.target(at).unwrap_or_default();
                }
                _ => break,
            }
        }
        if btf.kind(at) == Some(Kind::Ptr) {
            let inner = join(word, &inner);
            return self.declare(target, format!(" {inner}"), depth + 1);
        }
        let rest = self.declare(target, inner, depth + 1);
        // An array and its elements may both be const; C has one place for the word.
        let there = rest.strip_prefix(word).is_some_and(|after| after.starts_with(' '));
        if there { rest } else { format!("{word} {rest}") }
    }

    /// Arrays and functions are written after the name.
    fn suffix(&mut self, id: TypeId, inner: String, depth: usize) -> String {
        let Ok(shape) = self.btf.shape(id) else {
            return join("...", &inner);
        };
        match &*shape {
            Shape::Array { elem, len: 0, .. } => {
                self.declare(*elem, inner + self.names.flexible(), depth + 1)
            }
            Shape::Array { elem, len, .. } => {
                self.declare(*elem, format!("{inner}[{len}]"), depth + 1)
            }
            Shape::FuncProto { ret, params, variadic } => {
                let mut list = Vec::new();
                for param in params {
                    list.push(self.declare(param.ty, self.names.param(&param.name), depth + 1));
                    if self.parts > MAX_PARTS {
                        break;
                    }
                }
                if *variadic {
                    list.push("...".to_string());
                }
                if list.is_empty() {
                    list.push("void".to_string());
                }
                self.declare(*ret, format!("{inner}({})", list.join(", ")), depth + 1)
            }
            _ => join("...", &inner),
        }
    }

    /// Whether a `*` in front needs brackets against what follows the name.
    fn binds_tighter(&self, id: TypeId) -> bool {
        let mut at = id;
        for _ in 0..MAX_DEPTH {
            match self.btf.kind(at) {
                Some(Kind::Array | Kind::FuncProto) => return true,
                Some(Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag) => {
                    at = self.btf.target(at).unwrap_or_default();
                }
                _ => return false,
            }
        }
        false
    }
}

/// Puts a declarator behind a base type: `int *p`, `int[4]`, `void (*)(int)`.
fn join(base: &str, inner: &str) -> String {
    match inner.chars().next() {
        None => base.to_string(),
        Some('[' | ' ') => format!("{base}{inner}"),
        Some(_) => format!("{base} {inner}"),
    }
}
