//! Loaded modules.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::symbols::Symbols;
use super::{KernelState, Place, unreadable};
use crate::btf::{Btf, Shape};
use crate::snapshot::{Field, Snapshot, SnapshotError, SnapshotResult};
use crate::words::nearest_first;

/// What was copied of a module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ModuleState {
    /// Its name.
    pub name: String,
    /// Its `struct module`.
    pub at: u64,
    /// Start and length of its memory, its code first.
    pub memory: Vec<(u64, u64)>,
    /// The same of its per-CPU variables, without a CPU's offset.
    pub per_cpu: Option<(u64, u64)>,
    /// Where its symbols begin in [`KernelState::module_symbols`], and how many there are.
    pub symbols: (usize, usize),
    /// Its types, split from the kernel's.
    #[serde(skip)]
    pub btf: Option<Arc<Btf>>,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// A module as it was when the machine was frozen: its `struct module` (include/linux/module.h). A
/// cheap handle.
#[derive(Clone)]
pub struct Module {
    snapshot: Arc<Snapshot>,
    state: Arc<ModuleState>,
}

/// `taint_flags` in the order of their bits (Documentation/admin-guide/tainted-kernels.rst).
const TAINTS: &str = "PFSRMBUDAWCIOELKXTNJ";

impl ModuleState {
    /// The region of its memory that has an address.
    fn region(&self, at: u64) -> Option<(u64, u64)> {
        self.memory.iter().copied().find(|(start, size)| at.wrapping_sub(*start) < *size)
    }

    /// Whether a symbol there is a per-CPU variable.
    pub(super) fn is_per_cpu(&self, at: u64) -> bool {
        self.per_cpu.is_some_and(|(start, size)| at.wrapping_sub(start) < size)
    }

    /// Bytes from an address to the next symbol of any module, or to the end of that memory.
    pub(super) fn room_at(&self, symbols: &Symbols, at: u64) -> u64 {
        let end = self.region(at).or(self.per_cpu).map(|(start, size)| start.wrapping_add(size));
        let room = symbols.room_at(at).into_iter().chain(end.map(|end| end.wrapping_sub(at)));
        room.min().unwrap_or(8)
    }
}

impl KernelState {
    /// The module that has a symbol at an address.
    pub(super) fn module_at(&self, at: u64) -> Option<&ModuleState> {
        let mut modules = self.modules.iter();
        modules.find(|module| module.region(at).is_some() || module.is_per_cpu(at))
    }

    /// A module's symbol at or before an address in its memory, how far before, and whose it is.
    /// Of several at one address the kernel gives the first (kernel/module/kallsyms.c).
    pub(super) fn module_symbol(&self, at: u64) -> Option<(String, u64, &ModuleState)> {
        let module = self.modules.iter().find(|module| module.region(at).is_some())?;
        let (start, _) = module.region(at)?;
        let (first, count) = module.symbols;
        let mut best: Option<(&str, u64)> = None;
        for (name, address) in self.module_symbols.as_deref()?.range(first, count) {
            // Local labels of assemblers (`is_mapping_symbol`).
            if [".L", "L0", "$"].iter().any(|label| name.starts_with(label)) {
                continue;
            }
            let better = best.is_none_or(|(_, best)| address > best);
            if (start..=at).contains(&address) && better {
                best = Some((name, address));
            }
        }
        best.map(|(name, address)| (name.to_owned(), at - address, module))
    }
}

impl Snapshot {
    /// The loaded modules, those that come or go just then among them, in the order of
    /// `/proc/modules`: the last one first.
    ///
    /// # Errors
    /// As [`Snapshot::tasks`].
    pub fn modules(self: &Arc<Self>) -> SnapshotResult<Vec<Module>> {
        let state = self.sched_state()?;
        if let Some(why) = &state.modules_incomplete {
            return Err(unreadable("the list of modules", why));
        }
        if state.module_symbols.is_none() {
            let why = "the file was saved by an older cryoscope, which kept none";
            return Err(unreadable("the list of modules", why));
        }
        let module =
            |state: &ModuleState| Module { snapshot: self.clone(), state: Arc::new(state.clone()) };
        Ok(state.modules.iter().map(module).collect())
    }

    /// The module of that name.
    ///
    /// # Errors
    /// As [`Snapshot::modules`]; [`SnapshotError::NoMatch`] with the nearest names.
    pub fn module(self: &Arc<Self>, name: &str) -> SnapshotResult<Module> {
        let all = self.modules()?;
        if let Some(found) = all.iter().find(|module| module.name() == name) {
            return Ok(found.clone());
        }
        let names = all.iter().map(|module| module.name().to_owned()).collect();
        Err(SnapshotError::NoMatch {
            map: "modules".to_owned(),
            op: format!("module({name:?})"),
            len: all.len(),
            available_keys: nearest_first(name, names).into_iter().take(3).collect(),
        })
    }
}

impl Module {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    fn what(&self) -> String {
        format!("module {}", self.state.name)
    }

    /// All of its `struct module`.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when it could not be copied.
    pub fn whole(&self) -> SnapshotResult<Field> {
        Place::of_type(&self.snapshot, self.what(), self.state.at, "struct module")
    }

    /// The field at a path in its `struct module`.
    ///
    /// # Errors
    /// As [`Module::whole`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.whole()?.get(path)
    }

    /// Its state: `live`, `coming`, `going` or `unformed` (`enum module_state`). `/proc/modules`
    /// calls the second and third `Loading` and `Unloading`.
    ///
    /// # Errors
    /// As [`Module::get`].
    pub fn state(&self) -> SnapshotResult<String> {
        let field = self.get("state")?;
        let number = field.scalar()?.number().unwrap_or_default();
        let btf = self.snapshot.kernel_state()?.types()?;
        let shape = btf.find_c("enum module_state").and_then(|id| btf.shape(id).ok());
        let name = match shape.as_deref() {
            Some(Shape::Enum(states)) => states.name_of(number).map(str::to_owned),
            _ => None,
        };
        let name = name.unwrap_or_else(|| number.to_string());
        Ok(name.strip_prefix("MODULE_STATE_").unwrap_or(&name).to_ascii_lowercase())
    }

    /// Where its code begins.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.state.memory.first().map_or(0, |(start, _)| *start)
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.state.memory.iter().fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// How many use it, as `/proc/modules` counts them.
    ///
    /// # Errors
    /// As [`Module::get`]; a kernel that cannot unload modules does not count.
    pub fn refcount(&self) -> SnapshotResult<i64> {
        // One is the module's own (`MODULE_REF_BASE`).
        Ok(self.get("refcnt.counter")?.as_i64()?.saturating_sub(1))
    }

    /// The letters by which it taints the kernel: `OE`; usually none.
    ///
    /// # Errors
    /// As [`Module::get`].
    pub fn taints(&self) -> SnapshotResult<String> {
        let bits = self.get("taints")?.as_u64()?;
        Ok((0..).zip(TAINTS.chars()).filter(|(i, _)| bits >> i & 1 == 1).map(|(_, c)| c).collect())
    }

    /// Its symbols: names and addresses, in the kernel's order.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`] when they could not be read.
    pub fn symbols(&self) -> SnapshotResult<Vec<(String, u64)>> {
        if let Some(why) = &self.state.incomplete {
            return Err(unreadable(self.what(), why));
        }
        let (first, count) = self.state.symbols;
        let all = self.snapshot.kernel_state()?.module_symbols.as_deref();
        let all = all.map(|all| all.range(first, count).map(|(name, at)| (name.to_owned(), at)));
        Ok(all.map(Iterator::collect).unwrap_or_default())
    }

    /// Its own types, split from the kernel's, when the kernel has them.
    #[must_use]
    pub fn types(&self) -> Option<&Arc<Btf>> {
        self.state.btf.as_ref()
    }

    /// One line: name, state, size, users.
    #[must_use]
    pub fn headline(&self) -> String {
        let users = self.refcount().map_or("?".to_owned(), |n| n.to_string());
        let state = self.state().unwrap_or_else(|_| "?".to_owned());
        format!("module {}: {state}, {} bytes, {users} users", self.name(), self.size())
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.headline())
    }
}
