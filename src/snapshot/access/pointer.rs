//! Pointers: what a field leads to.

use std::sync::Arc;

use super::{Base, Field, Type};
use crate::btf::{Btf, Shape, TypeId};
use crate::snapshot::Cast;
use crate::snapshot::error::SnapshotResult;
use crate::snapshot::kernel::{Place, at_address};
use crate::snapshot::path;

/// Bytes of a pointer, and of a number that is one.
const POINTER: u64 = 8;

impl Field {
    /// Whether at a path there is something that [`Field::target`] follows.
    pub(super) fn leads_on(&self, path: &str) -> bool {
        let Type::Btf { btf, at } = &self.ty else { return false };
        let found = path::walk(btf, at.ty, path);
        found.is_ok_and(|found| self.placed(path, found).pointee().is_some())
    }

    /// What this points to, as far as it was copied.
    pub(super) fn target(&self) -> SnapshotResult<Field> {
        let Some((btf, to)) = self.pointee() else {
            return Err(self.mismatch("a pointer", self.described()));
        };
        let from = match &self.base {
            Base::Kernel(place) => place.clone(),
            Base::Entry(entry, _) => {
                let origin = self.origin();
                let what = match origin.key.as_str() {
                    "" => origin.map,
                    key => format!("{}[{key}]", origin.map),
                };
                Place::new(entry.map().snapshot(), what, 0, 0)
            }
        };
        let place = from.follow(self.as_u64()?, &self.path)?;
        // Of a struct that was copied in part, members are asked for one by one.
        place.bytes(0, 1, &self.path)?;
        Ok(Field { path: self.path.clone(), ..Field::of_kernel(place, Some((btf, to))) })
    }

    /// The type behind this pointer, or behind the number that programs prove to be one.
    fn pointee(&self) -> Option<(Arc<Btf>, TypeId)> {
        let Type::Btf { btf, at } = &self.ty else { return None };
        let own = match &*btf.shape(at.ty).ok()? {
            // A `void *` leads somewhere, but nobody says to what.
            Shape::Ptr { to } if btf.resolve(*to).ok() == Some(0) => return None,
            Shape::Ptr { to } => Some(*to),
            _ => None,
        };
        if let (Base::Kernel(_), Some(to)) = (&self.base, own) {
            return Some((btf.clone(), to));
        }
        let kernel = self.snapshot().kernel_state().ok().and_then(|state| state.types().ok());
        let named = |ty: &str| Some((kernel?.clone(), kernel?.find_c(ty)?));
        match own {
            // An object has its own idea of the kernel's types, often of a few members: the
            // running kernel's counts.
            Some(to) => {
                named(&btf.type_name(btf.resolve(to).ok()?)).or_else(|| Some((btf.clone(), to)))
            }
            None => named(&self.cast()?.ty),
        }
    }

    /// The type behind this pointer, as C calls it; none when this is no pointer.
    #[must_use]
    pub fn points_to(&self) -> Option<String> {
        self.pointee().map(|(btf, to)| btf.type_name(to))
    }

    /// What the programs prove of the number here: that it is a pointer.
    #[must_use]
    pub fn cast(&self) -> Option<&Cast> {
        let (Base::Entry(entry, super::Side::Value), Type::Btf { btf, at }) =
            (&self.base, &self.ty)
        else {
            return None;
        };
        let number = matches!(&*btf.shape(at.ty).ok()?, Shape::Int { bool: false, .. });
        let whole = number && at.size == POINTER && at.bits.is_none();
        let casts = &entry.map().attrs().casts;
        casts.iter().find(|cast| whole && cast.offset == at.offset)
    }

    /// What the address here points to, as the kernel's type that C calls `ty`, or the object's own
    /// where the kernel has none of that name, when it was copied.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`](crate::snapshot::SnapshotError::TypeMismatch) when here is
    /// no address or there is no such type,
    /// [`SnapshotError::MapRenderIncomplete`](crate::snapshot::SnapshotError::MapRenderIncomplete)
    /// when what is there was not copied.
    pub fn as_ptr(&self, ty: &str) -> SnapshotResult<Field> {
        let at = self.as_u64()?;
        let field = match (at_address(self.snapshot(), at, ty, &self.path), &self.base, &self.ty) {
            (Err(_), Base::Entry(entry, _), Type::Btf { btf, .. }) if btf.find_c(ty).is_some() => {
                let snapshot = entry.map().snapshot();
                let place = Place::new(snapshot, format!("the {ty} at {at:#x}"), at, 0);
                let own = btf.find_c(ty).map(|id| (btf.clone(), id));
                Field::of_kernel(place.follow(at, &self.path)?, own)
            }
            (found, ..) => found?,
        };
        field.bytes()?;
        Ok(field)
    }
}
