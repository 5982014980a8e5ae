//! Types as C spells them.

use super::{Btf, Kind, MAX_DEPTH, Shape, TypeId};

/// Types that one spelling may contain before it is cut: a function type that takes itself a
/// few times would otherwise grow without end.
const MAX_PARTS: usize = 256;

/// Writes declarations: a base type on the left, a declarator that grows around the name.
pub(crate) struct Speller<'a> {
    btf: &'a Btf,
    parts: usize,
}

impl<'a> Speller<'a> {
    pub(crate) fn new(btf: &'a Btf) -> Self {
        Speller { btf, parts: 0 }
    }

    /// The type alone, as in a cast: `struct task_struct *`, `u32[4]`, `void (*)(int)`.
    pub(crate) fn spell(&mut self, id: TypeId) -> String {
        self.declare(id, String::new(), 0)
    }

    /// A declaration of `name`: `struct task_struct *p`, `u32 v[4]`, `void (*f)(int)`.
    #[allow(dead_code)] // until headers are generated
    pub(crate) fn declaration(&mut self, id: TypeId, name: &str) -> String {
        self.declare(id, name.to_string(), 0)
    }

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
            Some(Kind::TypeTag) => self.declare(target, inner, depth + 1),
            Some(Kind::Array | Kind::FuncProto) => self.suffix(id, inner, depth),
            Some(Kind::Func | Kind::Var) => {
                let name = join(btf.name(id), &inner);
                self.declare(target, name, depth + 1)
            }
            Some(Kind::Void) => join("void", &inner),
            Some(_) => join(&self.base(id), &inner),
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
        format!("{word} {rest}")
    }

    /// Arrays and functions are written after the name.
    fn suffix(&mut self, id: TypeId, inner: String, depth: usize) -> String {
        let Ok(shape) = self.btf.shape(id) else {
            return join("...", &inner);
        };
        match &*shape {
            Shape::Array { elem, len: 0, .. } => self.declare(*elem, inner + "[]", depth + 1),
            Shape::Array { elem, len, .. } => {
                self.declare(*elem, format!("{inner}[{len}]"), depth + 1)
            }
            Shape::FuncProto { ret, params, variadic } => {
                let mut list = Vec::new();
                for param in params {
                    list.push(self.declare(param.ty, String::new(), depth + 1));
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

    /// A type that is named as a whole.
    fn base(&self, id: TypeId) -> String {
        let name = self.btf.name(id);
        let keyword = match self.btf.kind(id) {
            Some(Kind::Struct) => "struct ",
            Some(Kind::Union) => "union ",
            Some(Kind::Enum | Kind::Enum64) => "enum ",
            Some(Kind::Fwd) => match self.btf.header(id) {
                Some(header) if header.flag => "union ",
                _ => "struct ",
            },
            _ => "",
        };
        match name {
            "" if keyword.is_empty() => format!("<type {id}>"),
            "" => format!("{keyword}(anonymous)"),
            name => format!("{keyword}{name}"),
        }
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
