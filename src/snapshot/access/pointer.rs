//! Pointers: what a field leads to.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Base, Field, Type, arena};
use crate::btf::{Btf, Kind, Shape, TypeId};
use crate::snapshot::Cast;
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::kernel::{Place, at_address};
use crate::snapshot::path;

/// Bytes of a pointer, and of a number that is one.
const POINTER: u64 = 8;
/// Addresses below are user space's (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL: u64 = 1 << 63;
/// Tags of pointers to memory of which each CPU has its own.
const PER_CPU: [&str; 2] = ["percpu", "percpu_kptr"];
/// Tags and qualifiers that one pointer has, at most.
const MAX_TAGS: usize = 32;

impl Field {
    /// Whether at a path there is something that [`Field::target`] follows.
    pub(super) fn leads_on(&self, path: &str) -> bool {
        let Type::Btf { btf, at, .. } = &self.ty else { return false };
        let found = path::walk(btf, at.ty, path);
        found.is_ok_and(|found| self.placed(path, found).pointee().is_some())
    }

    /// What this is in, for messages: `task_ctx[17]`.
    pub(super) fn here(&self) -> String {
        let origin = self.origin();
        match origin.key.as_str() {
            "" => origin.map,
            key => format!("{}[{key}]", origin.map),
        }
    }

    /// Whether this is not in a map's entry, but behind a pointer or of the kernel's.
    pub(crate) fn is_followed(&self) -> bool {
        self.hops > 0 || matches!(self.base, Base::Kernel(_))
    }

    /// Where a pointer is followed from.
    pub(super) fn start(&self) -> Place {
        match &self.base {
            Base::Kernel(place) => place.clone(),
            Base::Entry(..) => Place::new(self.snapshot(), self.here(), 0, 0).after(self.hops),
        }
    }

    /// What this points to, as far as it was copied.
    pub(super) fn target(&self) -> SnapshotResult<Field> {
        let Some((btf, to)) = self.pointee() else {
            return Err(self.mismatch("a pointer", self.described()));
        };
        let from = self.start();
        if let Some(no) = self.typed().and_then(|(btf, at)| elsewhere(btf, at.ty)) {
            return Err(self.mismatch("a pointer into the kernel's memory", no.to_owned()));
        }
        let address = self.as_u64()?;
        let place = from.follow(address, &self.path)?;
        if address < KERNEL
            && let Some(field) = {
                let ty = (btf.clone(), to);
                arena::lookup(self.snapshot(), address, ty, &self.path, place.hops())
            }
        {
            return Ok(field);
        }
        // Of a struct that was copied in part, members are asked for one by one.
        place.bytes(0, 1, &self.path)?;
        Ok(Field { path: self.path.clone(), ..Field::of_kernel(place, Some((btf, to))) })
    }

    /// What a per-CPU pointer leads to on one CPU.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`](crate::snapshot::SnapshotError::TypeMismatch) when this is
    /// no such pointer, [`SnapshotError::PerCpuSlot`](crate::snapshot::SnapshotError::PerCpuSlot)
    /// when there is no such CPU,
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError::MapRenderIncomplete)
    /// when what is there was not copied.
    pub fn on_cpu(&self, cpu: i64) -> SnapshotResult<Field> {
        let tag = self.typed().and_then(|(btf, at)| match btf.shape(at.ty).as_deref() {
            Ok(Shape::Ptr { to }) => btf.pointer_tags(*to).find(|tag| PER_CPU.contains(tag)),
            _ => None,
        });
        let Some((tag, pointee)) = tag.zip(self.pointee()) else {
            return Err(self.mismatch("a per-CPU pointer", self.described()));
        };
        let per_cpu = &self.snapshot().kernel_state()?.per_cpu;
        let slot = usize::try_from(cpu).ok().and_then(|cpu| per_cpu.get(cpu).copied().flatten());
        let Some(offset) = slot else {
            let (map, len) = (self.here(), per_cpu.len());
            return Err(SnapshotError::PerCpuSlot { map, cpu, len, unmapped: false });
        };
        let mut place = self.start().follow(self.as_u64()?, &self.path)?;
        // What a program allocates begins with the per-CPU pointer (kernel/bpf/memalloc.c).
        let base = match tag {
            "percpu_kptr" => {
                let word = place.bytes(0, 8, &self.path)?;
                u64::from_le_bytes(word[..].try_into().unwrap_or_default())
            }
            _ => self.as_u64()?,
        };
        place = place.follow(if base == 0 { 0 } else { base.wrapping_add(offset) }, &self.path)?;
        place.bytes(0, 1, &self.path)?;
        Ok(Field { path: self.path.clone(), ..Field::of_kernel(place, Some(pointee)) })
    }

    /// The type behind this pointer, or behind the number that programs prove to be one.
    fn pointee(&self) -> Option<(Arc<Btf>, TypeId)> {
        let Type::Btf { btf, at, .. } = &self.ty else { return None };
        let own = match &*btf.shape(at.ty).ok()? {
            // A `void *` leads somewhere, but nobody says to what.
            Shape::Ptr { to } if btf.resolve(*to).ok() == Some(0) => return None,
            Shape::Ptr { to } => Some(*to),
            _ => None,
        };
        match own {
            Some(to) => Some(self.meant(btf, to)),
            None => {
                let kernel = self.kernel_types()?;
                Some((kernel.clone(), kernel.find_c(&self.cast()?.ty)?))
            }
        }
    }

    fn kernel_types(&self) -> Option<&Arc<Btf>> {
        self.snapshot().kernel_state().ok()?.types().ok()
    }

    /// The type that a pointer to `to` means. An object has its own idea of the kernel's types,
    /// often of a few members or of another kernel: the running kernel's counts. Its own types may
    /// be called like one of the kernel's that has nothing to do with them.
    fn meant(&self, btf: &Arc<Btf>, to: TypeId) -> (Arc<Btf>, TypeId) {
        let known = self.kernel_types().and_then(|kernel| kernels(kernel, btf, to));
        known.unwrap_or_else(|| (btf.clone(), to))
    }

    /// The type behind this pointer, as C calls it; none when this is no pointer.
    #[must_use]
    pub fn points_to(&self) -> Option<String> {
        self.pointee().map(|(btf, to)| btf.type_name(to))
    }

    /// What the programs prove of the number here: that it is a pointer.
    #[must_use]
    pub fn cast(&self) -> Option<&Cast> {
        let (Base::Entry(entry, super::Side::Value), Type::Btf { btf, at, made: None, .. }) =
            (&self.base, &self.ty)
        else {
            return None;
        };
        let number = matches!(&*btf.shape(at.ty).ok()?, Shape::Int { bool: false, .. });
        let whole = number && at.size == POINTER && at.bits.is_none();
        let casts = &entry.map().attrs().casts;
        casts.iter().find(|cast| whole && cast.offset == at.offset)
    }

    /// A type of that name which is not this field's: the kernel's, else that of whatever object
    /// has one, if only one object has. Addresses of an arena's pages have no types of their own.
    fn anybodys(&self, ty: &str) -> Option<(Arc<Btf>, TypeId)> {
        let kernel = self.kernel_types();
        if let Some(found) = kernel.and_then(|btf| Some((btf.clone(), btf.find_c(ty)?))) {
            return Some(found);
        }
        let mut found: Option<(Arc<Btf>, TypeId)> = None;
        for map in self.snapshot().maps().ok()? {
            // Types of ours may stand behind those of an object.
            let Some(btf) = map.attrs().btf.as_ref().map(|btf| btf.base().unwrap_or(btf)) else {
                continue;
            };
            let known = found.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, btf));
            match btf.find_c(ty) {
                Some(_) if found.is_some() && !known => return None,
                Some(id) => found = Some((btf.clone(), id)),
                None => {}
            }
        }
        found
    }

    /// What the address here points to, as the kernel's type that C calls `ty`, or the object's own
    /// where the kernel has none of that name or means something else by it, when it was copied.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`](crate::snapshot::SnapshotError::TypeMismatch) when here is
    /// no address or there is no such type,
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError::MapRenderIncomplete)
    /// when what is there was not copied.
    pub fn as_ptr(&self, ty: &str) -> SnapshotResult<Field> {
        let at = self.as_u64()?;
        let own = self.typed().and_then(|(btf, _)| Some(self.meant(btf, btf.find_c(ty)?)));
        let in_arena = at != 0 && at < KERNEL;
        let field = match own.or_else(|| if in_arena { self.anybodys(ty) } else { None }) {
            Some((btf, ty)) if at != 0 && at < KERNEL => {
                let found = arena::lookup(self.snapshot(), at, (btf, ty), &Arc::from(""), 1);
                let why = "an address of user space, and no captured arena has a page there";
                found.ok_or_else(|| self.mismatch("an address of the kernel's", why.to_owned()))?
            }
            Some(own) => {
                let what = format!("the {ty} at {at:#x}");
                let place = Place::new(self.snapshot(), what, at, 0).follow(at, &self.path)?;
                Field::of_kernel(place, Some(own))
            }
            None => at_address(self.snapshot(), at, ty, &self.path)?,
        };
        field.bytes()?;
        Ok(field)
    }
}

/// Type tags of a pointer and of what it points to, outermost first, with whether each is an
/// attribute of C's own.
fn tags(btf: &Btf, to: TypeId) -> impl Iterator<Item = (&str, bool)> {
    let next = |at: &TypeId| {
        let kind = btf.kind(*at).filter(|kind| kind.is_modifier());
        kind.and_then(|_| btf.target(*at))
    };
    // A chain that goes on for longer is refused elsewhere.
    std::iter::successors(Some(to), next)
        .take(MAX_TAGS)
        .filter(|at| btf.kind(*at) == Some(Kind::TypeTag))
        .map(|at| (btf.name(at), btf.is_attribute(at)))
}

/// Where a pointer of type `ty` leads, when that is not to one place in the kernel's memory.
fn elsewhere(btf: &Btf, ty: TypeId) -> Option<&'static str> {
    let shape = btf.shape(ty).ok()?;
    let Shape::Ptr { to } = &*shape else { return None };
    tags(btf, *to).find_map(|(tag, _)| match tag {
        tag if PER_CPU.contains(&tag) => Some(
            "a per-CPU pointer, which leads to another place on each CPU: .cpu(n) goes there, \
             .as_u64() gives what is stored",
        ),
        "user" => Some("an address in a process's memory, which is not copied; .as_u64() gives it"),
        _ => None,
    })
}

/// The kernel's type that an object's type stands for; `None` for one of the object's own.
fn kernels(kernel: &Arc<Btf>, btf: &Arc<Btf>, to: TypeId) -> Option<(Arc<Btf>, TypeId)> {
    let of_kernel = |btf: &Arc<Btf>| Arc::ptr_eq(btf, kernel);
    if of_kernel(btf) || btf.base().is_some_and(of_kernel) {
        return None;
    }
    let id = btf.resolve(to).ok()?;
    let spelled = btf.type_name(id);
    // What follows three underscores tells variants of one type apart.
    let (name, variant) = match spelled.split_once("___") {
        Some((name, _)) if !name.ends_with(' ') => (name, true),
        _ => (spelled.as_str(), false),
    };
    let theirs = kernel.find_c(name)?;
    let tagged = |wanted: fn((&str, bool)) -> bool| tags(btf, to).any(wanted);
    if tagged(|(tag, c)| tag == "arena" || (c && tag.starts_with("address_space("))) {
        return None;
    }
    // For these the verifier asks the kernel for the name first, too.
    let kptr = tagged(|(tag, _)| matches!(tag, "kptr" | "kptr_untrusted"));
    let stands = variant || kptr || !has_members(btf, id) || alike(btf, id, kernel, theirs);
    stands.then(|| (kernel.clone(), theirs))
}

fn has_members(btf: &Btf, ty: TypeId) -> bool {
    matches!(btf.shape(ty).as_deref(), Ok(Shape::Struct(s)) if !s.members.is_empty())
}

/// Whether most members of a type are called like members of another.
fn alike(btf: &Btf, ty: TypeId, other: &Btf, as_other: TypeId) -> bool {
    let theirs: HashSet<String> = path::member_names(other, as_other).into_iter().collect();
    let ours = path::member_names(btf, ty);
    2 * ours.iter().filter(|name| theirs.contains(*name)).count() > ours.len()
}
