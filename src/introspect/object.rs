//! A typed cursor: an address in the guest together with what lies there.

use std::sync::Arc;

use super::error::IntrospectError;
use super::kernel::Kernel;
use super::walk::Walk;
use crate::btf::{BitRange, Btf, Field, Shape, TypeId};
use crate::mem::Kva;

/// Pointers that one path may follow.
const MAX_POINTERS: usize = 16;

/// A value in guest memory and its type. Nothing is read until it is asked for.
#[derive(Clone)]
pub struct Object<'k> {
    kernel: &'k Kernel,
    btf: Arc<Btf>,
    ty: TypeId,
    at: Kva,
    bits: Option<BitRange>,
    /// Bytes; for a bitfield, bytes that hold all of its bits.
    size: u64,
}

impl Kernel {
    /// The value at `at`, of the kernel's type that C calls `ty` (`struct task_struct`, `u64`).
    ///
    /// # Errors
    /// No such type.
    pub fn object(&self, at: Kva, ty: &str) -> Result<Object<'_>, IntrospectError> {
        Ok(self.object_of(at, self.btf(), self.type_id(ty)?))
    }

    /// The value at `at`, of type `ty` of `btf` (a BPF object's or a module's).
    #[must_use]
    pub fn object_of(&self, at: Kva, btf: &Arc<Btf>, ty: TypeId) -> Object<'_> {
        let size = btf.size_of(ty).unwrap_or(0);
        Object { kernel: self, btf: btf.clone(), ty, at, bits: None, size }
    }

    /// The global variable `symbol`, of the kernel's type that C calls `ty`.
    ///
    /// # Errors
    /// No such symbol, or no such type.
    pub fn global(&self, symbol: &str, ty: &str) -> Result<Object<'_>, IntrospectError> {
        self.object(self.symbols().address(symbol)?, ty)
    }

    /// What `cpu` has of the per-CPU variable `symbol`, of the kernel's type that C calls `ty`.
    ///
    /// # Errors
    /// No such symbol, type or CPU.
    pub fn per_cpu_object(
        &self,
        symbol: &str,
        ty: &str,
        cpu: u32,
    ) -> Result<Object<'_>, IntrospectError> {
        self.object(self.per_cpu(symbol, cpu)?, ty)
    }
}

impl<'k> Object<'k> {
    /// Where the value lies.
    #[must_use]
    pub fn address(&self) -> Kva {
        self.at
    }

    /// Its type's id in [`Object::btf`].
    #[must_use]
    pub fn type_id(&self) -> TypeId {
        self.ty
    }

    /// Where its type is defined.
    #[must_use]
    pub fn btf(&self) -> &Arc<Btf> {
        &self.btf
    }

    /// Its type as C spells it.
    #[must_use]
    pub fn type_name(&self) -> String {
        self.btf.type_name(self.ty)
    }

    /// Which bits of its bytes it is, if it is a bitfield.
    #[must_use]
    pub fn bits(&self) -> Option<BitRange> {
        self.bits
    }

    /// Bytes it takes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn shape(&self) -> Result<Arc<Shape>, IntrospectError> {
        self.btf.shape(self.ty).map_err(|e| IntrospectError::Type(e.to_string()))
    }

    fn with(&self, field: Field) -> Self {
        Object {
            kernel: self.kernel,
            btf: self.btf.clone(),
            ty: field.ty,
            at: self.at.offset(field.offset),
            bits: field.bits,
            size: field.size,
        }
    }

    /// The member that `path` names: members separated by dots, indices in brackets
    /// (`"rq.curr.comm"`, `"slots[3].next"`). Pointers on the way are followed; what the path
    /// ends at is not.
    ///
    /// # Errors
    /// No such member; a null pointer or memory that cannot be read on the way; more than 16
    /// pointers.
    pub fn member(&self, path: &str) -> Result<Self, IntrospectError> {
        let mut at = self.clone();
        let mut pointers = 0;
        for component in path.split('.') {
            if component.is_empty() {
                let text = format!("path {path:?} has an empty component");
                return Err(IntrospectError::Type(text));
            }
            while matches!(*at.shape()?, Shape::Ptr { .. }) {
                pointers += 1;
                if pointers > MAX_POINTERS {
                    let limit = MAX_POINTERS;
                    let text = format!("path {path:?} follows more than {limit} pointers");
                    return Err(IntrospectError::Type(text));
                }
                at = at.deref()?;
            }
            let field = at.btf.field(at.ty, component);
            at = at.with(field.map_err(|e| IntrospectError::Type(e.to_string()))?);
        }
        Ok(at)
    }

    /// As [`Object::member`], but `None` when the type of this value (nothing behind a pointer)
    /// has no such member: how a difference between kernels is told.
    ///
    /// # Errors
    /// As [`Object::member`].
    pub fn member_if_any(&self, path: &str) -> Result<Option<Self>, IntrospectError> {
        let first = path.split(['.', '[']).next().unwrap_or(path);
        match self.btf.field(self.ty, first) {
            Ok(_) => self.member(path).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// What this pointer points to.
    ///
    /// # Errors
    /// This is no pointer, or a null pointer.
    pub fn deref(&self) -> Result<Self, IntrospectError> {
        let Shape::Ptr { to } = *self.shape()? else { return Err(self.not("a pointer")) };
        let target = self.ptr()?;
        if target.is_null() {
            let text = format!("the {} at {} is null", self.type_name(), self.at);
            return Err(IntrospectError::Type(text));
        }
        Ok(self.kernel.object_of(target, &self.btf, to))
    }

    /// The struct of the kernel's type `ty` of which this value is the member `member`.
    ///
    /// # Errors
    /// No such type or member.
    pub fn container_of(&self, ty: &str, member: &str) -> Result<Self, IntrospectError> {
        let id = self.kernel.type_id(ty)?;
        let offset = self.kernel.field(id, member)?;
        let at = Kva(self.at.0.wrapping_sub(offset));
        Ok(self.kernel.object_of(at, self.kernel.btf(), id))
    }

    /// This value as the kernel's type that C calls `ty`.
    ///
    /// # Errors
    /// No such type.
    pub fn cast(&self, ty: &str) -> Result<Self, IntrospectError> {
        self.kernel.object(self.at, ty)
    }

    /// The bytes of the value.
    ///
    /// # Errors
    /// More than `limit` bytes, or memory that cannot be read.
    pub fn bytes(&self, limit: usize) -> Result<Vec<u8>, IntrospectError> {
        if self.size > limit as u64 {
            let text = format!("{} takes {} bytes, more than {limit}", self.type_name(), self.size);
            return Err(IntrospectError::Type(text));
        }
        let mut raw = vec![0; self.size as usize];
        self.kernel.read(self.at, &mut raw)?;
        Ok(raw)
    }

    /// A number, pointer, enum or bool as 64 bits; signed ones are extended.
    ///
    /// # Errors
    /// The value is none of these, or cannot be read.
    pub fn u64(&self) -> Result<u64, IntrospectError> {
        let signed = match &*self.shape()? {
            Shape::Int { signed, size: 1..=8, .. } => *signed,
            Shape::Enum(e) => e.signed,
            Shape::Ptr { .. } => false,
            _ => return Err(self.not("a number")),
        };
        // A bitfield of 64 bits that does not begin on a byte takes nine of them.
        let mut raw = [0; 16];
        let size = self.size.min(9) as usize;
        self.kernel.read(self.at, &mut raw[..size])?;
        let all = u128::from_le_bytes(raw);
        let (shift, bits) = match self.bits {
            Some(range) => (range.offset.min(7), range.len.clamp(1, 64)),
            None => (0, (self.size as u32 * 8).clamp(1, 64)),
        };
        let value = ((all >> shift) as u64) << (64 - bits);
        Ok(if signed { (value as i64 >> (64 - bits)) as u64 } else { value >> (64 - bits) })
    }

    /// As [`Object::u64`], taken as a signed number.
    ///
    /// # Errors
    /// As [`Object::u64`].
    pub fn i64(&self) -> Result<i64, IntrospectError> {
        self.u64().map(|n| n as i64)
    }

    /// The address in this pointer.
    ///
    /// # Errors
    /// This is no pointer, or it cannot be read.
    pub fn ptr(&self) -> Result<Kva, IntrospectError> {
        match *self.shape()? {
            Shape::Ptr { .. } => Ok(Kva(self.kernel.read_u64(self.at)?)),
            _ => Err(self.not("a pointer")),
        }
    }

    /// The string in this array of characters, or behind this pointer (at most 4,096 bytes).
    ///
    /// # Errors
    /// The value is neither, or cannot be read.
    pub fn string(&self) -> Result<String, IntrospectError> {
        match *self.shape()? {
            Shape::Ptr { .. } => Ok(self.kernel.read_cstr(self.ptr()?, 4096)?),
            Shape::Array { elem_size: 1, .. } => {
                let raw = self.bytes(1 << 16)?;
                let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
                Ok(String::from_utf8_lossy(&raw[..end]).into_owned())
            }
            _ => Err(self.not("a string")),
        }
    }

    /// The name that this enum's value has, if it has one.
    ///
    /// # Errors
    /// The value is no enum, or cannot be read.
    pub fn enum_name(&self) -> Result<Option<String>, IntrospectError> {
        let Shape::Enum(e) = &*self.shape()? else { return Err(self.not("an enum")) };
        let raw = self.u64()?;
        let value = if e.signed { i128::from(raw as i64) } else { i128::from(raw) };
        Ok(e.name_of(value).map(str::to_owned))
    }

    /// The structs of the kernel's type `ty` that are linked by their `member` into the list
    /// whose head (`struct list_head`) this is.
    ///
    /// # Errors
    /// No such type or member. That the walk ended early is part of the result.
    pub fn list(&self, ty: &str, member: &str, limit: usize) -> Linked<'k> {
        let id = self.kernel.type_id(ty)?;
        let offset = self.kernel.field(id, member)?;
        let walk = self.kernel.list(self.at, limit);
        let nodes = walk.items.iter().map(|node| Kva(node.0.wrapping_sub(offset)));
        let items = nodes.map(|at| self.kernel.object_of(at, self.kernel.btf(), id)).collect();
        Ok(Walk { items, error: walk.error })
    }

    fn not(&self, what: &str) -> IntrospectError {
        let (ty, at) = (self.type_name(), self.at);
        IntrospectError::Type(format!("the {ty} at {at} is not {what}"))
    }
}

/// What a walk over a list of structs gives.
type Linked<'k> = Result<Walk<Object<'k>>, IntrospectError>;

impl std::fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}) {}", self.type_name(), self.at)
    }
}
