//! The kernel's symbols: names of its functions and variables, and their addresses.

use std::sync::LazyLock;

use super::Snapshot;
use super::error::SnapshotResult;
use crate::introspect;
use crate::mem::Kva;

/// The symbols of the kernel's image, not those of modules and BPF programs. A name may stand for
/// several addresses.
pub struct Symbols {
    table: LazyLock<Table, Load>,
}

type Table = std::sync::Arc<introspect::Symbols>;
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
        let none = || introspect::Symbols::unpack(&[0; 4]).expect("no symbols at all");
        let load = move || introspect::Symbols::unpack(&load()).unwrap_or_else(none).into();
        Symbols { table: LazyLock::new(Box::new(load)) }
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
