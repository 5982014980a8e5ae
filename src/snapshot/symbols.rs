//! The kernel's symbols: names of its functions and variables, and their addresses.

use std::sync::{Arc, LazyLock};

use super::error::SnapshotResult;
use super::{ModuleState, Snapshot};
use crate::introspect::{self, ModuleAt, ModuleSymbol};
use crate::mem::Kva;

/// The symbols of the kernel's image, not those of modules and BPF programs. A name may stand for
/// several addresses.
pub struct Symbols {
    table: LazyLock<Table, Load>,
}

type Table = Arc<introspect::Symbols>;
type Load = Box<dyn FnOnce() -> Table + Send>;

impl Symbols {
    /// Those of a kernel that was opened.
    pub(super) fn of_kernel(table: &Table) -> Symbols {
        let table = table.clone();
        Symbols { table: LazyLock::new(Box::new(move || table)) }
    }

    /// Those that `load` gives, as [`Symbols::pack`] made them, once they are needed; bytes that
    /// are not give none.
    pub(super) fn deferred(load: impl FnOnce() -> Vec<u8> + Send + 'static) -> Symbols {
        let load = move || introspect::Symbols::unpack(&load()).unwrap_or_default().into();
        Symbols { table: LazyLock::new(Box::new(load)) }
    }

    /// A table without symbols, as it is stored.
    pub(super) fn none() -> Vec<u8> {
        introspect::Symbols::default().pack()
    }

    /// Those that `make` gives, once they are needed.
    pub(super) fn made(make: impl FnOnce() -> introspect::Symbols + Send + 'static) -> Symbols {
        Symbols { table: LazyLock::new(Box::new(move || make().into())) }
    }

    /// Names and addresses of some of them, in the kernel's order.
    pub(crate) fn range(&self, first: usize, count: usize) -> impl Iterator<Item = (&str, u64)> {
        self.table.iter().skip(first).take(count).map(|symbol| (symbol.name, symbol.address.0))
    }

    /// All of them as bytes.
    pub(super) fn pack(&self) -> Vec<u8> {
        self.table.pack()
    }

    /// The addresses that a name stands for, ascending; none for a name that there is not.
    #[must_use]
    pub fn addresses(&self, name: &str) -> &[u64] {
        self.table.lookup(name)
    }

    /// The symbol at or before an address, and how far behind it the address lies; `None` outside
    /// of the kernel's image.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<(&str, u64)> {
        self.table.find_addr(Kva(address))
    }

    /// Bytes from an address to the next symbol; `None` behind the last one.
    #[must_use]
    pub fn room_at(&self, address: u64) -> Option<u64> {
        self.table.room_at(Kva(address))
    }

    /// The names most like one that there is not, nearest first.
    #[must_use]
    pub fn alike(&self, name: &str) -> Vec<&str> {
        self.table.alike(name)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The modules, and the symbols of all of them in one table.
pub(super) fn of_modules(modules: Vec<ModuleAt>) -> (Vec<ModuleState>, Symbols) {
    let mut states = Vec::with_capacity(modules.len());
    let mut tables: Vec<Arc<Vec<ModuleSymbol>>> = Vec::with_capacity(modules.len());
    let mut first = 0;
    for module in modules {
        let ModuleAt { name, at, memory, per_cpu, symbols, btf, incomplete } = module;
        let range = (first, symbols.len());
        first += symbols.len();
        tables.push(symbols);
        states.push(ModuleState { name, at, memory, per_cpu, symbols: range, btf, incomplete });
    }
    let all = move || {
        let symbols = tables.iter().flat_map(|table| table.iter());
        let symbols = symbols.map(|symbol| (symbol.kind, symbol.name.as_str(), symbol.at));
        // A guest that chose its names to collide has none.
        introspect::Symbols::of(symbols).unwrap_or_default()
    };
    (states, Symbols::made(all))
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Symbols")
    }
}

impl Snapshot {
    /// The kernel's symbols.
    ///
    /// # Errors
    /// [`super::SnapshotError::PlaceholderSnapshot`],
    /// [`super::SnapshotError::MapRenderIncomplete`] when they are not with this snapshot.
    pub fn symbols(&self) -> SnapshotResult<&Symbols> {
        self.kernel_state()?.names()
    }
}
