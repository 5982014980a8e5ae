//! Loaded modules: the list `modules` (kernel/module/main.c), and the symbols that each brings
//! (`struct mod_kallsyms`, include/linux/module.h).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use super::Copy;
use super::layout::{Found, Struct};
use crate::btf::Btf;
use crate::introspect::bpf::Budget;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Modules that are looked at.
const MAX_MODULES: usize = 4096;
/// Symbols of one module; the largest have some ten thousand.
const MAX_SYMBOLS: u64 = 256 << 10;
/// Bytes of their names.
const MAX_NAMES: u64 = 16 << 20;
/// Symbols of all modules; a machine with everything loaded has some hundred thousand.
const MAX_ALL_SYMBOLS: u64 = 1 << 20;
/// Bytes of all their names. As many of both fit into the table that a file keeps.
const MAX_ALL_NAMES: u64 = 32 << 20;
/// Bytes of one name (`KSYM_NAME_LEN`).
const MAX_NAME: usize = 512;
/// Regions of memory that a module can have.
const MAX_REGIONS: usize = 16;
/// `Elf64_Sym`: name at 0, section at 6, value at 8.
const SYMBOL: usize = 24;

/// A loaded module, or one that comes or goes.
#[derive(Clone, Debug)]
pub struct ModuleAt {
    /// Its name.
    pub name: String,
    /// Where its `struct module` lies.
    pub at: u64,
    /// Start and length of its memory, its code first.
    pub memory: Vec<(u64, u64)>,
    /// The same of its per-CPU variables, without a CPU's offset.
    pub per_cpu: Option<(u64, u64)>,
    /// Its symbols.
    pub symbols: Arc<Vec<ModuleSymbol>>,
    /// Its types, split from the kernel's.
    pub btf: Option<Arc<Btf>>,
    /// Why something of it is missing.
    pub incomplete: Option<String>,
}

/// A module's symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSymbol {
    /// Its name.
    pub name: String,
    /// Its address.
    pub at: u64,
    /// The kernel's letter for its kind.
    pub kind: char,
}

impl ModuleAt {
    /// Bytes from an address to the module's next symbol, or to the end of that memory.
    pub(super) fn room_at(&self, at: u64) -> u64 {
        let regions = self.memory.iter().chain(&self.per_cpu);
        let within = |(start, size): &&(u64, u64)| at.wrapping_sub(*start) < *size;
        let end = regions.clone().find(within).map(|(start, size)| start.saturating_add(*size));
        let next = self.symbols.iter().map(|symbol| symbol.at).filter(|next| *next > at).min();
        let end = next.into_iter().chain(end).min();
        end.map_or(8, |end| end - at)
    }

    /// Whether a symbol there is a per-CPU variable.
    pub(super) fn is_per_cpu(&self, at: u64) -> bool {
        self.per_cpu.is_some_and(|(start, size)| at.wrapping_sub(start) < size)
    }
}

/// Symbols that were read before, by the module's address: they do not change while it lives.
#[derive(Default)]
pub(super) struct ModuleCache {
    known: HashMap<u64, Known>,
}

struct Known {
    identity: Identity,
    symbols: Arc<Vec<ModuleSymbol>>,
    /// Bytes of their names.
    names: u64,
}

/// What is left for the modules that come: many small tables may name one long string.
struct Room {
    symbols: u64,
    names: u64,
}

impl Room {
    fn take(&mut self, symbols: u64, names: u64) -> Result<(), String> {
        let left = self.symbols.checked_sub(symbols).zip(self.names.checked_sub(names));
        let Some((symbols, names)) = left else {
            return Err(format!(
                "with them, all modules have more than {MAX_ALL_SYMBOLS} symbols or \
                 {MAX_ALL_NAMES} bytes of names"
            ));
        };
        *self = Room { symbols, names };
        Ok(())
    }
}

impl ModuleCache {
    /// Those of `wanted` that a module has.
    pub(super) fn having(&self, wanted: &[String]) -> HashSet<String> {
        if wanted.is_empty() {
            return HashSet::new();
        }
        let wanted: HashSet<&String> = wanted.iter().collect();
        let names = self.known.values().flat_map(|known| known.symbols.iter().map(|s| &s.name));
        names.filter(|name| wanted.contains(name)).cloned().collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    name: String,
    /// `struct mod_kallsyms`: another one while the module is being loaded.
    table: Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    symbols: u64,
    count: u64,
    names: u64,
    kinds: Option<u64>,
}

/// `struct module` (include/linux/module.h).
pub(super) struct ModuleLayout {
    size: u64,
    list: u64,
    name: u64,
    /// Address and length of each region.
    memory: Vec<(u64, u64)>,
    per_cpu: Option<(u64, u64)>,
    kallsyms: u64,
    symtab: u64,
    num_symtab: u64,
    strtab: u64,
    typetab: Option<u64>,
}

impl ModuleLayout {
    pub(super) fn new(kernel: &Kernel) -> Found<Self> {
        let module = Struct::new(kernel, "struct module")?;
        let table = Struct::new(kernel, "struct mod_kallsyms")?;
        let region = |of: String| {
            let at = module.maybe(&format!("{of}.base"))?;
            Some((at, module.maybe(&format!("{of}.size"))?))
        };
        // By kind since ac3b43283923 ("module: replace module_layout with module_memory").
        let kinds = (0..MAX_REGIONS).map_while(|i| region(format!("mem[{i}]")));
        let mut memory: Vec<(u64, u64)> = kinds.collect();
        if memory.is_empty() {
            let both = ["core_layout", "init_layout"].into_iter();
            memory.extend(both.filter_map(|of| region(of.to_owned())));
        }
        Ok(ModuleLayout {
            list: module.at("list")?,
            name: module.at("name")?,
            memory,
            per_cpu: module.maybe("percpu").zip(module.maybe("percpu_size")),
            kallsyms: module.at("kallsyms")?,
            symtab: table.at("symtab")?,
            num_symtab: table.at("num_symtab")?,
            strtab: table.at("strtab")?,
            typetab: table.maybe("typetab"),
            size: module.size,
        })
    }
}

impl Copy<'_> {
    /// Copies each module's struct; symbols and types are those that were read before, where there
    /// are such.
    pub(super) fn modules(&mut self) {
        let Some(head) = self.kernel.symbols().get("modules") else { return };
        let layout = match &self.layout.modules {
            Ok(layout) => layout,
            Err(e) => {
                self.raw.modules_incomplete = Some(e.to_string());
                return;
            }
        };
        let walk = self.kernel.list(head, MAX_MODULES);
        self.raw.modules_incomplete = walk.error.map(|e| e.to_string());
        let mut types = match walk.items.is_empty() {
            true => HashMap::new(),
            false => self.kernel.module_types(),
        };
        let mut room = Room { symbols: MAX_ALL_SYMBOLS, names: MAX_ALL_NAMES };
        for node in walk.items {
            let at = node.0.wrapping_sub(layout.list);
            let copied = self.budget.check_time().and_then(|()| self.piece(at, layout.size));
            if let Err(why) = copied {
                self.raw.modules_incomplete.get_or_insert(why);
                break;
            }
            let module = self.module(layout, at, &mut types, &mut room);
            self.raw.modules.push(module);
        }
        let mut cache = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        cache.known.retain(|at, _| self.raw.modules.iter().any(|module| module.at == *at));
    }

    fn module(
        &mut self,
        layout: &ModuleLayout,
        at: u64,
        types: &mut HashMap<String, Result<Arc<Btf>, String>>,
        room: &mut Room,
    ) -> ModuleAt {
        let memory = &self.raw.memory;
        let word = |within: u64| memory.u64(at.wrapping_add(within)).unwrap_or_default();
        let half = |within: u64| u64::from(memory.u32(at.wrapping_add(within)).unwrap_or_default());
        let name = self.kernel.read_cstr(Kva(at.wrapping_add(layout.name)), 64);
        let regions = layout.memory.iter().map(|(base, size)| (word(*base), half(*size)));
        let per_cpu = layout.per_cpu.map(|(base, size)| (word(base), half(size)));
        let mut out = ModuleAt {
            name: name.unwrap_or_else(|_| "?".to_owned()),
            at,
            memory: regions.filter(|(_, size)| *size > 0).collect(),
            per_cpu: per_cpu.filter(|(_, size)| *size > 0),
            symbols: Arc::default(),
            btf: None,
            incomplete: None,
        };
        match self.module_symbols(layout, at, (&out.name, word(layout.kallsyms)), room) {
            Ok(symbols) => out.symbols = symbols,
            Err(why) => out.incomplete = Some(format!("its symbols: {why}")),
        }
        match types.remove(&out.name) {
            Some(Ok(btf)) => out.btf = Some(btf),
            Some(Err(why)) => {
                out.incomplete.get_or_insert(format!("its types: {why}"));
            }
            None => {}
        }
        out
    }

    fn module_symbols(
        &mut self,
        layout: &ModuleLayout,
        at: u64,
        (name, table): (&str, u64),
        room: &mut Room,
    ) -> Result<Arc<Vec<ModuleSymbol>>, String> {
        let word = |within: u64| {
            self.kernel.read_u64(Kva(table.wrapping_add(within))).map_err(|e| e.to_string())
        };
        let count = self.kernel.read_u32(Kva(table.wrapping_add(layout.num_symtab)));
        let table = Table {
            symbols: word(layout.symtab)?,
            count: count.map_err(|e| e.to_string())?.into(),
            names: word(layout.strtab)?,
            kinds: layout.typetab.map(word).transpose()?,
        };
        let identity = Identity { name: name.to_owned(), table };
        let mut cache = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.known.get(&at).filter(|known| known.identity == identity) {
            room.take(known.symbols.len() as u64, known.names)?;
            return Ok(known.symbols.clone());
        }
        if table.count > MAX_SYMBOLS {
            return Err(format!("they claim to be {}", table.count));
        }
        let (symbols, names) = symbols(self.kernel, &table, self.budget, room)?;
        let symbols = Arc::new(symbols);
        cache.known.insert(at, Known { identity, symbols: symbols.clone(), names });
        Ok(symbols)
    }
}

/// As `/proc/kallsyms` shows them: what has no name, or is not defined there, does not count. Gives
/// the bytes of their names, too. Each has its own name, however many the table gives one.
fn symbols(
    kernel: &Kernel,
    table: &Table,
    budget: &mut Budget,
    room: &mut Room,
) -> Result<(Vec<ModuleSymbol>, u64), String> {
    budget.take(table.count * SYMBOL as u64)?;
    let mut raw = vec![0; table.count as usize * SYMBOL];
    kernel.read(Kva(table.symbols), &mut raw).map_err(|e| e.to_string())?;
    let entries: &[[u8; SYMBOL]] = raw.as_chunks().0;
    let name_of =
        |entry: &[u8; SYMBOL]| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
    let last = entries.iter().map(name_of).max().unwrap_or_default();
    let len = (u64::from(last) + MAX_NAME as u64).min(MAX_NAMES);
    budget.take(len)?;
    let mut names = vec![0; len as usize];
    // Behind the last name may be nothing.
    let there = kernel.read_prefix(Kva(table.names), &mut names);
    names.truncate(there);
    let mut kinds = vec![b'?'; entries.len()];
    if let Some(at) = table.kinds {
        kernel.read_prefix(Kva(at), &mut kinds);
    }
    let symbol = |(entry, kind): (&[u8; SYMBOL], &u8)| {
        let defined = entry[6..8] != [0, 0];
        let rest = names.get(name_of(entry) as usize..)?;
        let len = rest.iter().take(MAX_NAME).position(|b| *b == 0)?;
        let name = std::str::from_utf8(&rest[..len]).ok().filter(|name| name.is_ascii())?;
        let at = u64::from_le_bytes(entry[8..16].try_into().ok()?);
        let kind = if kind.is_ascii_graphic() { char::from(*kind) } else { '?' };
        (defined && !name.is_empty()).then_some((name, at, kind))
    };
    let found: Vec<(&str, u64, char)> = entries.iter().zip(&kinds).filter_map(symbol).collect();
    let bytes = found.iter().map(|(name, ..)| name.len() as u64).sum();
    room.take(found.len() as u64, bytes)?;
    budget.take((found.len() * size_of::<ModuleSymbol>()) as u64 + bytes)?;
    let own =
        |(name, at, kind): (&str, u64, char)| ModuleSymbol { name: name.to_owned(), at, kind };
    Ok((found.into_iter().map(own).collect(), bytes))
}
