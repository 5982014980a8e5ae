//! Loaded modules: the list `modules` (kernel/module/main.c), and the symbols that each brings
//! (`struct mod_kallsyms`, include/linux/module.h).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use super::Copy;
use super::layout::{Found, Struct};
use crate::btf::Btf;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Modules that are looked at.
const MAX_MODULES: usize = 4096;
/// Symbols of one module; the largest have some ten thousand.
const MAX_SYMBOLS: u64 = 256 << 10;
/// Bytes of their names.
const MAX_NAMES: u64 = 16 << 20;
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
    known: HashMap<u64, (Identity, Arc<Vec<ModuleSymbol>>)>,
}

impl ModuleCache {
    pub(super) fn names(&self) -> HashSet<String> {
        let tables = self.known.values().map(|(_, symbols)| symbols);
        tables.flat_map(|symbols| symbols.iter().map(|symbol| symbol.name.clone())).collect()
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
        for node in walk.items {
            let at = node.0.wrapping_sub(layout.list);
            let copied = self.budget.check_time().and_then(|()| self.piece(at, layout.size));
            if let Err(why) = copied {
                self.raw.modules_incomplete.get_or_insert(why);
                break;
            }
            let module = self.module(layout, at, &mut types);
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
        match self.module_symbols(layout, at, &out.name, word(layout.kallsyms)) {
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
        name: &str,
        table: u64,
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
        if let Some((_, known)) = cache.known.get(&at).filter(|(of, _)| *of == identity) {
            return Ok(known.clone());
        }
        if table.count > MAX_SYMBOLS {
            return Err(format!("they claim to be {}", table.count));
        }
        self.budget.take(table.count * SYMBOL as u64)?;
        let symbols = Arc::new(symbols(self.kernel, &table)?);
        cache.known.insert(at, (identity, symbols.clone()));
        Ok(symbols)
    }
}

/// As `/proc/kallsyms` shows them: what has no name, or is not defined there, does not count.
fn symbols(kernel: &Kernel, table: &Table) -> Result<Vec<ModuleSymbol>, String> {
    let mut raw = vec![0; table.count as usize * SYMBOL];
    kernel.read(Kva(table.symbols), &mut raw).map_err(|e| e.to_string())?;
    let entries: &[[u8; SYMBOL]] = raw.as_chunks().0;
    let name_of =
        |entry: &[u8; SYMBOL]| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
    let last = entries.iter().map(name_of).max().unwrap_or_default();
    let mut names = vec![0; (u64::from(last) + MAX_NAME as u64).min(MAX_NAMES) as usize];
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
        (defined && !name.is_empty()).then(|| ModuleSymbol { name: name.to_owned(), at, kind })
    };
    Ok(entries.iter().zip(&kinds).filter_map(symbol).collect())
}
