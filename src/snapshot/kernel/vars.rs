//! Variables of the kernel.

use std::sync::Arc;

use crate::btf::{Btf, Kind, TypeId};

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{SnapshotError, SnapshotResult};
use super::super::error_text::quoted;
use super::{Place, Places, Variable, unreadable};
use crate::words::nearest;

/// What messages call it.
pub(super) fn what(symbol: &str) -> String {
    format!("kernel variable {symbol}")
}

/// The variable, if the freeze was asked for it.
pub(super) fn captured<'s>(snapshot: &'s Snapshot, symbol: &str) -> SnapshotResult<&'s Variable> {
    let variables = &snapshot.kernel_state()?.variables;
    variables.get(symbol).ok_or_else(|| {
        let meant = nearest(symbol, variables.keys().map(String::as_str));
        let meant = meant.map_or(String::new(), |name| format!(" (did you mean {}?)", quoted(name)));
        let asked = quoted(symbol);
        unreadable(
            what(symbol),
            format!("it was not copied{meant}; name it, as in t.freeze(\"tag\", #{{ kernel: [{asked}] }})"),
        )
    })
}

/// A variable's place as a field: of the type that the author gives, else of its own.
pub(super) fn field(
    snapshot: &Arc<Snapshot>,
    what: String,
    at: u64,
    variable: &Variable,
    symbol: &str,
    ty: Option<&str>,
) -> SnapshotResult<Field> {
    let btf = snapshot.kernel_state()?.types()?;
    let ty = match ty {
        Some(ty) => Some(type_named(btf, ty, symbol)?),
        None => variable.ty,
    };
    let field = Field::of_kernel(
        Place::new(snapshot, what, at, variable.len),
        ty.map(|id| (btf.clone(), id)),
    );
    field.bytes()?;
    Ok(field)
}

/// A type as C spells it; `*` makes it a pointer.
fn type_named(btf: &Btf, spelled: &str, symbol: &str) -> SnapshotResult<TypeId> {
    let name = spelled.trim_end_matches(['*', ' ']);
    let stars = spelled.matches('*').count().min(4);
    let mut found = btf.find_c(name).or_else(|| (name == "void").then_some(0));
    for _ in 0..stars {
        found = found.and_then(|to| {
            (1..btf.len())
                .find(|id| btf.kind(*id) == Some(Kind::Ptr) && btf.target(*id) == Some(to))
        });
    }
    found.ok_or_else(|| {
        let bare = name.rsplit(' ').next().unwrap_or(name);
        let named = btf.names().filter(|(id, _)| {
            use Kind::{Enum, Enum64, Int, Struct, Typedef, Union};
            matches!(btf.kind(*id), Some(Struct | Union | Enum | Enum64 | Typedef | Int))
        });
        let near = nearest(bare, named.map(|(_, name)| name));
        let near = near
            .and_then(|near| {
                let found = ["struct", "union", "enum"]
                    .map(|word| format!("{word} {near}"))
                    .into_iter()
                    .chain([near.to_owned()])
                    .find(|name| btf.find_c(name).is_some())?;
                Some(format!(" (did you mean {}?)", quoted(&found)))
            })
            .unwrap_or_default();
        SnapshotError::TypeMismatch {
            expected: "a type of this kernel as C spells it, like \"u64\" or \"struct rq\"".into(),
            actual: format!("{}{near}", quoted(spelled)),
            requested: symbol.to_owned(),
        }
    })
}

/// What lies at an address that was read at `path`, as a type.
pub(crate) fn at_address(
    snapshot: &Arc<Snapshot>,
    at: u64,
    ty: &str,
    path: &str,
) -> SnapshotResult<Field> {
    let btf = snapshot.kernel_state()?.types()?;
    let id = type_named(btf, ty, path)?;
    let place = Place::new(snapshot, format!("the {ty} at {at:#x}"), at, 0).follow(at, path)?;
    Ok(Field::of_kernel(place, Some((btf.clone(), id))))
}

impl Snapshot {
    /// A variable of the kernel that the freeze was asked for, read as the type that C calls `ty`,
    /// or as its own. The kernel's BTF has the types of per-CPU variables only; those are read
    /// with [`Cpu::kernel`](super::Cpu::kernel).
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it was not copied, or not as many bytes as the
    /// type takes; [`SnapshotError::TypeMismatch`] when there is no such type, and for a per-CPU
    /// variable.
    pub fn kernel(self: &Arc<Self>, symbol: &str, ty: Option<&str>) -> SnapshotResult<Field> {
        let variable = captured(self, symbol)?;
        match &variable.places {
            Places::Once(at) => field(self, what(symbol), *at, variable, symbol, ty),
            Places::Nowhere(why) => Err(unreadable(what(symbol), why)),
            Places::PerCpu(_) => Err(SnapshotError::TypeMismatch {
                expected: "a variable that there is once".to_owned(),
                actual: format!("a per-CPU one: cpu(n).kernel({}) reads it", quoted(symbol)),
                requested: symbol.to_owned(),
            }),
        }
    }
}
