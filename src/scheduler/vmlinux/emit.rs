//! Writing the header: what comes after what, and how each thing is put.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::btf::{self, Btf, Kind, Shape, StructShape, TypeId};

use super::layout::{Layouts, padding};
use super::names::{self, Names};
use super::{HeaderError, MAX_LEVELS, MAX_OUTPUT};

const PROLOGUE: &str = "\
/* Generated from the kernel's BTF. */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)
#endif

#ifndef __ksym
#define __ksym __attribute__((section(\".ksyms\")))
#endif

#ifndef __weak
#define __weak __attribute__((weak))
#endif

";

const EPILOGUE: &str = "
#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute pop
#endif

#endif /* __VMLINUX_H__ */
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Active,
    Done,
}

pub(super) struct Header<'a> {
    btf: &'a Btf,
    names: Names,
    layouts: Layouts<'a>,
    out: String,
    /// Structs and unions, by whether their definition is (being) written.
    defined: HashMap<TypeId, State>,
    /// Typedefs, likewise.
    declared: HashMap<TypeId, State>,
    /// Typedefs whose value's type is defined too.
    completed: HashSet<TypeId>,
    /// Function prototypes of which everything that they need stands there.
    prototypes: HashSet<TypeId>,
}

impl<'a> Header<'a> {
    pub(super) fn new(btf: &'a Btf) -> Self {
        Header {
            btf,
            names: Names::new(btf),
            layouts: Layouts::new(btf),
            out: String::with_capacity(4 << 20),
            defined: HashMap::new(),
            declared: HashMap::new(),
            completed: HashSet::new(),
            prototypes: HashSet::new(),
        }
    }

    pub(super) fn write(mut self) -> Result<String, HeaderError> {
        self.out.push_str(PROLOGUE);
        self.enums()?;
        self.forward_declarations();
        for id in 1..self.btf.len() {
            match self.btf.kind(id) {
                Some(Kind::Struct | Kind::Union) if !self.btf.name(id).is_empty() => {
                    self.need(id, true, 0)?;
                }
                Some(Kind::Typedef) => self.need(id, false, 0)?,
                _ => {}
            }
        }
        self.kfuncs()?;
        self.out.push_str(EPILOGUE);
        Ok(self.out)
    }

    /// All enums; they need nothing. The enumerators of one may only be declared once, so they
    /// are never written inside other types.
    fn enums(&mut self) -> Result<(), HeaderError> {
        for id in 1..self.btf.len() {
            if !matches!(self.btf.kind(id), Some(Kind::Enum | Kind::Enum64)) {
                continue;
            }
            let shape = self.btf.shape(id)?;
            let Shape::Enum(e) = &*shape else { continue };
            let tag = self.names.of(id).unwrap_or_default();
            let _ = writeln!(self.out, "enum {tag} {{");
            for (name, (_, value)) in self.names.enumerators(id).iter().zip(&e.variants) {
                let _ = writeln!(self.out, "\t{name} = {},", literal(*value));
            }
            if e.variants.is_empty() {
                // C has no enum without enumerators.
                let _ = writeln!(self.out, "\t__empty_{tag},");
            }
            let mode = match e.size {
                1 => " __attribute__((mode(QI)))",
                2 => " __attribute__((mode(HI)))",
                8 => " __attribute__((mode(DI)))",
                _ => "",
            };
            let _ = writeln!(self.out, "}}{mode};\n");
            self.bounded()?;
        }
        Ok(())
    }

    fn forward_declarations(&mut self) {
        for id in 1..self.btf.len() {
            let tagged = matches!(self.btf.kind(id), Some(Kind::Struct | Kind::Union | Kind::Fwd));
            if let (true, Some(name)) = (tagged, self.names.of(id)) {
                let _ = writeln!(self.out, "{} {name};", btf::keyword(self.btf, id));
            }
        }
        self.out.push('\n');
    }

    /// Writes what must stand before a declaration that uses `id`: by value, so that its size
    /// is known, or only by name.
    fn need(&mut self, id: TypeId, by_value: bool, level: usize) -> Result<(), HeaderError> {
        if level > MAX_LEVELS {
            return Err(HeaderError::TooDeep { id, name: self.btf.type_name(id) });
        }
        match self.btf.kind(id) {
            // An anonymous one is written where it is used, so it is always needed whole.
            Some(Kind::Struct | Kind::Union) if by_value || self.names.of(id).is_none() => {
                self.need_whole(id, level)?;
            }
            Some(Kind::Typedef) => self.need_typedef(id, by_value, level)?,
            Some(Kind::Ptr) => {
                let to = self.btf.target(id).unwrap_or_default();
                self.need(to, false, level + 1)?;
            }
            Some(Kind::Array | Kind::FuncProto) => match &*self.btf.shape(id)? {
                // C wants an array's elements complete even behind a pointer.
                Shape::Array { elem, .. } => self.need(*elem, true, level + 1)?,
                Shape::FuncProto { ret, params, .. } if !self.prototypes.contains(&id) => {
                    self.need(*ret, false, level + 1)?;
                    for param in params {
                        self.need(param.ty, false, level + 1)?;
                    }
                    self.prototypes.insert(id);
                }
                _ => {}
            },
            Some(kind) if kind.is_modifier() => {
                let to = self.btf.target(id).unwrap_or_default();
                self.need(to, by_value, level + 1)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn need_typedef(
        &mut self,
        id: TypeId,
        by_value: bool,
        level: usize,
    ) -> Result<(), HeaderError> {
        let to = self.btf.target(id).unwrap_or_default();
        match self.declared.get(&id) {
            Some(State::Active) => return Err(self.circular(id)),
            Some(State::Done) => {}
            None => {
                self.declared.insert(id, State::Active);
                self.need(to, false, level + 1)?;
                let name = self.names.of(id).unwrap_or_default();
                let written = Written { header: self, indent: 0, written: Cell::new(0) };
                let declared = written.declaration(to, name)?;
                let _ = writeln!(self.out, "typedef {declared};\n");
                self.bounded()?;
                self.declared.insert(id, State::Done);
            }
        }
        if by_value && self.completed.insert(id) {
            self.need(to, true, level + 1)?;
        }
        Ok(())
    }

    fn need_whole(&mut self, id: TypeId, level: usize) -> Result<(), HeaderError> {
        match self.defined.get(&id) {
            Some(State::Active) => return Err(self.circular(id)),
            Some(State::Done) => return Ok(()),
            None => self.defined.insert(id, State::Active),
        };
        let shape = self.btf.shape(id)?;
        let Shape::Struct(s) = &*shape else { return Ok(()) };
        for member in &s.members {
            self.need(member.ty, true, level + 1)?;
        }
        if self.names.of(id).is_some() {
            let written = Written { header: self, indent: 0, written: Cell::new(0) };
            let text = written.definition(id, s)?;
            let _ = writeln!(self.out, "{text};\n");
            self.bounded()?;
        }
        self.defined.insert(id, State::Done);
        Ok(())
    }

    /// Prototypes of the functions that BPF programs may call. Kernels mark them; from those
    /// that do not, the ones that are known by their name are taken.
    fn kfuncs(&mut self) -> Result<(), HeaderError> {
        let mut marked: Vec<TypeId> = (1..self.btf.len())
            .filter(|&id| {
                self.btf.kind(id) == Some(Kind::DeclTag) && self.btf.name(id) == "bpf_kfunc"
            })
            .filter_map(|id| self.btf.target(id))
            .collect();
        if marked.is_empty() {
            marked = (1..self.btf.len())
                .filter(|&id| self.btf.kind(id) == Some(Kind::Func))
                .filter(|&id| self.btf.name(id).starts_with("scx_bpf_"))
                .collect();
        }
        self.out.push_str("#ifndef BPF_NO_KFUNC_PROTOTYPES\n");
        for id in marked {
            let Some(proto) = self.btf.target(id).filter(|_| self.btf.kind(id) == Some(Kind::Func))
            else {
                continue;
            };
            let Some(name) = self.names.function(self.btf.name(id)) else { continue };
            self.need(proto, false, 0)?;
            let written = Written { header: self, indent: 0, written: Cell::new(0) };
            let declared = written.declaration(proto, &name)?;
            // The macro tells other headers that this one is declared.
            let _ = writeln!(self.out, "extern {declared} __weak __ksym;");
            let _ = writeln!(self.out, "#define __kfunc_{name} 1");
            self.bounded()?;
        }
        self.out.push_str("#endif\n");
        Ok(())
    }

    fn bounded(&self) -> Result<(), HeaderError> {
        if self.out.len() > MAX_OUTPUT { Err(HeaderError::TooLong) } else { Ok(()) }
    }

    fn circular(&self, id: TypeId) -> HeaderError {
        HeaderError::Circular { id, name: self.btf.type_name(id) }
    }
}

/// A value as C reads it back.
fn literal(value: i128) -> String {
    if value > i128::from(i64::MAX) {
        format!("{value}ULL")
    } else if value == i128::from(i64::MIN) {
        format!("{}LL - 1", value + 1)
    } else if i32::try_from(value).is_err() && u32::try_from(value).is_err() {
        format!("{value}LL")
    } else {
        value.to_string()
    }
}

/// One declaration, with the bodies of the anonymous structs in it.
struct Written<'h, 'a> {
    header: &'h Header<'a>,
    indent: usize,
    /// Bytes written into bodies so far: anonymous structs that contain the same one several
    /// times could otherwise multiply without end.
    written: Cell<usize>,
}

impl Written<'_, '_> {
    fn declaration(&self, id: TypeId, name: &str) -> Result<String, HeaderError> {
        let text = btf::declaration(self.header.btf, self, id, name);
        if self.written.get() > MAX_OUTPUT { Err(HeaderError::TooLong) } else { Ok(text) }
    }

    fn deeper(&self) -> Self {
        Written {
            header: self.header,
            indent: self.indent + 1,
            written: Cell::new(self.written.get()),
        }
    }

    /// `struct name { .. } attributes`, without the semicolon.
    fn definition(&self, id: TypeId, s: &StructShape) -> Result<String, HeaderError> {
        let layout = self.header.layouts.of(id)?;
        let tabs = "\t".repeat(self.indent);
        let mut out = String::from(if s.union { "union" } else { "struct" });
        if let Some(name) = self.header.names.of(id) {
            out.push(' ');
            out.push_str(name);
        }
        out.push_str(" {\n");
        let inner = self.deeper();
        if layout.opaque {
            let _ = writeln!(out, "{tabs}\tunsigned char __bytes[{}];", s.size);
        } else {
            for (member, &(from, to)) in s.members.iter().zip(&layout.padding) {
                inner.pad(&mut out, from, to);
                let text = inner.member(member)?;
                let _ = writeln!(out, "{tabs}\t{text};");
            }
            if let Some(&(from, to)) = layout.padding.last() {
                inner.pad(&mut out, from, to);
            }
        }
        let _ = write!(out, "{tabs}}}");
        if layout.packed {
            out.push_str(" __attribute__((packed))");
        }
        if let Some(align) = layout.aligned {
            let _ = write!(out, " __attribute__((aligned({align})))");
        }
        self.written.set(inner.written.get() + out.len());
        Ok(out)
    }

    fn pad(&self, out: &mut String, from: u64, to: u64) {
        let tabs = "\t".repeat(self.indent);
        for member in padding(from, to) {
            let _ = writeln!(out, "{tabs}{member};");
        }
    }

    fn member(&self, member: &btf::Member) -> Result<String, HeaderError> {
        if self.written.get() > MAX_OUTPUT || self.indent > MAX_LEVELS {
            return Err(HeaderError::TooLong);
        }
        if member.name.is_empty() {
            // An anonymous struct. Where the kernel embeds a named one so (an extension of C
            // that not every program is compiled with), its members are written out.
            let id = self.header.btf.resolve(member.ty)?;
            if let Shape::Struct(s) = &*self.header.btf.shape(id)? {
                return self.anonymous(id, s);
            }
        }
        let name = names::member(&member.name);
        let text = self.declaration(member.ty, &name)?;
        Ok(match member.bitfield_len {
            Some(len) => format!("{text} : {len}"),
            None => text,
        })
    }

    fn anonymous(&self, id: TypeId, s: &StructShape) -> Result<String, HeaderError> {
        let text = self.definition(id, s)?;
        let Some(name) = self.header.names.of(id) else { return Ok(text) };
        let tagged = format!("{} {name} {{", if s.union { "union" } else { "struct" });
        let bare = if s.union { "union {" } else { "struct {" };
        Ok(text.replacen(&tagged, bare, 1))
    }
}

impl btf::Names for Written<'_, '_> {
    fn base(&self, id: TypeId) -> String {
        let btf = self.header.btf;
        if let Some(name) = self.header.names.of(id) {
            let keyword = btf::keyword(btf, id);
            return if keyword.is_empty() { name.to_string() } else { format!("{keyword} {name}") };
        }
        match btf.shape(id).as_deref() {
            Ok(shape @ (Shape::Int { .. } | Shape::Float { .. })) => {
                names::scalar(shape).to_string()
            }
            Ok(Shape::Struct(s)) if self.written.get() <= MAX_OUTPUT => {
                self.definition(id, s).unwrap_or_else(|_| {
                    // Reported by declaration(), which every caller comes through.
                    self.written.set(MAX_OUTPUT + 1);
                    String::new()
                })
            }
            _ => "void".to_string(),
        }
    }

    fn tag(&self, id: TypeId) -> Option<String> {
        // Tags that are attributes carry the attribute's text, as `address_space(1)`.
        let btf = self.header.btf;
        let text = btf.name(id);
        let safe = text.chars().all(|c| c.is_ascii_alphanumeric() || "_()".contains(c));
        (btf.is_attribute(id) && safe).then(|| format!("__attribute__(({text}))"))
    }

    fn flexible(&self) -> &'static str {
        // Unlike `[]`, allowed everywhere: in unions, alone in a struct, in the middle.
        "[0]"
    }

    fn param(&self, name: &str) -> String {
        if name.is_empty() { String::new() } else { names::member(name) }
    }
}
