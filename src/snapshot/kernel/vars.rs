//! Variables of the kernel.

use std::borrow::Cow;
use std::sync::Arc;

use crate::btf::{Btf, Kind, TypeId, Want};

use super::super::Snapshot;
use super::super::access::Field;
use super::super::error::{SnapshotError, SnapshotResult};
use super::super::error_text::quoted;
use super::super::symbols::Symbols;
#[cfg(doc)]
use super::Cpu;
use super::{KernelState, NotThere, Place, Places, Variable, unreadable};
use crate::words::nearest;

/// What messages call it.
pub(super) fn what(symbol: &str) -> String {
    format!("kernel variable {symbol}")
}

/// Bytes of a variable whose type is not known, at most.
const MAX_VARIABLE: u64 = 64 << 10;

/// The variable: as the freeze was asked for it, else where the kernel's symbols have it, when
/// something was copied from there.
pub(super) fn captured<'s>(
    snapshot: &'s Snapshot,
    symbol: &str,
) -> SnapshotResult<Cow<'s, Variable>> {
    let state = snapshot.kernel_state()?;
    if let Some(variable) = state.variables.get(symbol) {
        return Ok(Cow::Borrowed(variable));
    }
    let found = state.symbols.as_deref().and_then(|symbols| by_symbol(state, symbols, symbol));
    let there = |at: &u64| state.at(*at, 1) != Err(NotThere::NotCopied);
    if let Some(variable) = found {
        let any = match &variable.places {
            Places::Once(at) => there(at),
            Places::PerCpu(places) => places.iter().any(|(_, at)| there(at)),
            Places::Nowhere(_) => true,
        };
        return match any {
            true => Ok(Cow::Owned(variable)),
            false => Err(not_copied(state, symbol, "")),
        };
    }
    let asked = state.variables.keys().map(String::as_str);
    let mut meant = nearest(symbol, asked);
    if let Some(symbols) = &state.symbols {
        meant = meant.or_else(|| symbols.alike(symbol).first().copied());
        let meant = meant.map_or(String::new(), |near| format!("; did you mean {}?", quoted(near)));
        return Err(unreadable(what(symbol), format!("the kernel has no such symbol{meant}")));
    }
    let meant = meant.map_or(String::new(), |name| format!(" (did you mean {}?)", quoted(name)));
    Err(not_copied(state, symbol, &meant))
}

fn not_copied(state: &KernelState, symbol: &str, meant: &str) -> SnapshotError {
    let asked = quoted(symbol);
    let why = match &state.ram_incomplete {
        Some(_) => state.if_not_copied(),
        None => format!(
            "name it, as in t.freeze(\"tag\", #{{ kernel: [{asked}] }}), or keep all of memory \
             with #{{ ram: true }}"
        ),
    };
    unreadable(what(symbol), format!("it was not copied{meant}; {why}"))
}

/// Where the kernel's symbols have a variable; `None` when they do not.
fn by_symbol(state: &KernelState, symbols: &Symbols, name: &str) -> Option<Variable> {
    let once = |name| symbols.addresses(name).first().copied();
    let btf = state.btf.as_deref()?;
    let ty = btf.find(name, Want::Var).and_then(|var| btf.target(var));
    let at = match symbols.addresses(name) {
        [] => return of_module(state, name),
        [at] => *at,
        several => {
            let all: Vec<String> = several.iter().map(|at| format!("{at:#x}")).collect();
            let why = format!(
                "{} symbols are called so (at {}), and which is meant cannot be told",
                several.len(),
                all.join(", ")
            );
            return Some(Variable { places: Places::Nowhere(why), len: 0, ty });
        }
    };
    let size = ty.and_then(|ty| btf.size_of(ty)).filter(|size| *size > 0);
    let len = size.or_else(|| symbols.room_at(at)).unwrap_or(8).clamp(1, MAX_VARIABLE);
    let per_cpu = once("__per_cpu_start").zip(once("__per_cpu_end"));
    let per_cpu = per_cpu.is_some_and(|(start, end)| (start..end).contains(&at));
    Some(Variable { places: places(state, at, per_cpu), len, ty })
}

/// Where a variable lies whose symbol is at an address.
fn places(state: &KernelState, at: u64, per_cpu: bool) -> Places {
    if !per_cpu {
        return Places::Once(at);
    }
    let offsets = (0..).zip(&state.per_cpu);
    let place = |(cpu, offset): (u32, &Option<u64>)| Some((cpu, at.wrapping_add((*offset)?)));
    Places::PerCpu(offsets.filter_map(place).collect())
}

/// Where a module has a variable.
fn of_module(state: &KernelState, name: &str) -> Option<Variable> {
    let symbols = state.module_symbols.as_deref()?;
    let at = match symbols.addresses(name) {
        [] => return None,
        [at] => *at,
        several => {
            let n = several.len();
            let why =
                format!("{n} symbols of modules are called so, and which is meant cannot be told");
            return Some(Variable { places: Places::Nowhere(why), len: 0, ty: None });
        }
    };
    let module = state.module_at(at)?;
    let len = module.room_at(symbols, at).clamp(1, MAX_VARIABLE);
    Some(Variable { places: places(state, at, module.is_per_cpu(at)), len, ty: None })
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
    let state = snapshot.kernel_state()?;
    let ty = match ty {
        Some(ty) => Some(type_of(state, ty, symbol, at)?),
        None => variable.ty.map(|id| Ok((state.types()?.clone(), id))).transpose()?,
    };
    let field = Field::of_kernel(Place::new(snapshot, what, at, variable.len), ty);
    field.bytes()?;
    Ok(field)
}

/// A type as C spells it: of the module that has the address, else the kernel's, else of any
/// module.
fn type_of(
    state: &KernelState,
    spelled: &str,
    symbol: &str,
    at: u64,
) -> SnapshotResult<(Arc<Btf>, TypeId)> {
    let own = state.module_at(at).and_then(|module| module.btf.as_ref());
    let modules = state.modules.iter().filter_map(|module| module.btf.as_ref());
    let kernel = state.types()?;
    let found = |btf: &Arc<Btf>| Some((btf.clone(), type_named(btf, spelled, symbol).ok()?));
    if let Some(found) = own.and_then(found) {
        return Ok(found);
    }
    match type_named(kernel, spelled, symbol) {
        Ok(id) => Ok((kernel.clone(), id)),
        Err(e) => modules.into_iter().find_map(found).ok_or(e),
    }
}

/// A type of some types as C spells it; `*` makes it a pointer.
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
    let meant = type_of(snapshot.kernel_state()?, ty, path, at)?;
    let place = Place::new(snapshot, format!("the {ty} at {at:#x}"), at, 0).follow(at, path)?;
    Ok(Field::of_kernel(place, Some(meant)))
}

/// A per-CPU variable of the kernel. A cheap handle.
#[derive(Clone)]
pub struct PerCpu {
    snapshot: Arc<Snapshot>,
    symbol: Arc<str>,
    ty: Option<Arc<str>>,
}

impl PerCpu {
    /// Its name.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// What one CPU has of it.
    ///
    /// # Errors
    /// As [`Snapshot::cpu`] and [`Cpu::kernel`].
    pub fn cpu(&self, cpu: i64) -> SnapshotResult<Field> {
        self.snapshot.cpu(cpu)?.kernel(&self.symbol, self.ty.as_deref())
    }
}

impl Snapshot {
    /// The per-CPU variable of that name, read as the type that C calls `ty`, or as its own;
    /// `None` when there is one of it for all CPUs.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it was not copied.
    pub fn per_cpu(
        self: &Arc<Self>,
        symbol: &str,
        ty: Option<&str>,
    ) -> SnapshotResult<Option<PerCpu>> {
        let variable = captured(self, symbol)?;
        let handle =
            || PerCpu { snapshot: self.clone(), symbol: symbol.into(), ty: ty.map(Into::into) };
        Ok(matches!(variable.places, Places::PerCpu(_)).then(handle))
    }

    /// What lies at an address of the kernel's, read as the type that C calls `ty`, when that was
    /// copied.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it was not; [`SnapshotError::TypeMismatch`]
    /// when there is no such type, and for 0.
    pub fn kernel_at(self: &Arc<Self>, address: u64, ty: &str) -> SnapshotResult<Field> {
        let field = at_address(self, address, ty, &format!("{address:#x}"))?;
        field.bytes()?;
        Ok(field)
    }

    /// A variable of the kernel that was copied, because the freeze was asked for it or for all of
    /// memory, read as the type that C calls `ty`, or as its own. The kernel's BTF has the types of
    /// per-CPU variables only; those are read with [`Cpu::kernel`](super::Cpu::kernel).
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it was not copied, or not as many bytes as the
    /// type takes; [`SnapshotError::TypeMismatch`] when there is no such type, and for a per-CPU
    /// variable.
    pub fn kernel(self: &Arc<Self>, symbol: &str, ty: Option<&str>) -> SnapshotResult<Field> {
        let variable = captured(self, symbol)?;
        match &variable.places {
            Places::Once(at) => field(self, what(symbol), *at, &variable, symbol, ty),
            Places::Nowhere(why) => Err(unreadable(what(symbol), why)),
            Places::PerCpu(_) => Err(SnapshotError::TypeMismatch {
                expected: "a variable that there is once".to_owned(),
                actual: format!("a per-CPU one: cpu(n).kernel({}) reads it", quoted(symbol)),
                requested: symbol.to_owned(),
            }),
        }
    }
}
