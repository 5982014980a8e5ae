//! What a BPF object says about itself: its types, its variables, what it attaches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::LittleEndian;
use object::elf::{EM_BPF, FileHeader64, STT_SECTION};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};

use crate::btf::{Btf, Linkage, Shape, TypeId};

use super::SchedulerError;

/// A BPF object, checked as far as it can be without loading it.
#[derive(Debug)]
pub(super) struct BpfObject {
    pub path: PathBuf,
    pub btf: Arc<Btf>,
    /// Variables that can be given a first value, in the order of their declaration.
    pub variables: Vec<Variable>,
    /// Names of its struct_ops maps.
    pub struct_ops: Vec<String>,
    /// Whether it wants values of the kernel's configuration.
    pub uses_kconfig: bool,
}

/// A variable in a section that libbpf loads as a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub name: String,
    /// ELF section, as in `.rodata`.
    pub section: String,
    /// Bytes from the section's start.
    pub offset: u32,
    pub ty: TypeId,
}

struct Section<'a> {
    name: &'a str,
    size: u64,
    /// Empty for `.bss`, which only has a size.
    data: &'a [u8],
}

/// Sections and symbols, as far as they are needed.
struct Elf<'a> {
    sections: Vec<Section<'a>>,
    /// Offsets of symbols by section index and name.
    symbols: HashMap<(usize, &'a str), Vec<u64>>,
}

impl BpfObject {
    /// Reads an object; `path` is what messages call it.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SchedulerError> {
        let bad = |problem: String| SchedulerError::Object { path: path.to_owned(), problem };
        let elf = Elf::parse(bytes).map_err(&bad)?;
        let btf = elf.section(".BTF").map(|(_, section)| section.data).ok_or_else(|| {
            bad("it has no BTF, the description of its types; compile it with -g".into())
        })?;
        let btf = Btf::parse(btf).map_err(|e| bad(format!("its BTF is damaged: {e}")))?;
        let mut object = BpfObject {
            path: path.to_owned(),
            btf,
            variables: Vec::new(),
            struct_ops: Vec::new(),
            uses_kconfig: false,
        };
        for (id, name) in object.btf.datasecs() {
            object.section(&elf, id, &name).map_err(&bad)?;
        }
        if object.struct_ops.is_empty() {
            return Err(bad(
                "it has no struct_ops, so there is no scheduler in it to attach; sched_ext \
                 schedulers define a `struct sched_ext_ops` in section .struct_ops.link"
                    .into(),
            ));
        }
        Ok(object)
    }

    fn section(&mut self, elf: &Elf, id: TypeId, name: &str) -> Result<(), String> {
        let shape = self.btf.shape(id).map_err(|e| format!("its BTF is damaged: {e}"))?;
        let Shape::Datasec { vars, .. } = &*shape else { return Ok(()) };
        match name {
            ".kconfig" => self.uses_kconfig = true,
            _ if name.starts_with(".struct_ops") || name.starts_with("?.struct_ops") => {
                self.struct_ops.extend(vars.iter().map(|var| var.name.clone()));
            }
            _ if is_data(name) => {
                let (index, section) = elf
                    .section(name)
                    .ok_or_else(|| format!("its BTF has section {name}, its ELF file has not"))?;
                for var in vars.iter().filter(|var| var.linkage != Linkage::Extern) {
                    let offset = elf.offset(index, &var.name, var.offset)?;
                    let end = u64::from(offset) + u64::from(var.size);
                    if end > section.size || self.btf.size_of(var.ty) != Some(var.size.into()) {
                        return Err(format!(
                            "variable {} ({} bytes at {offset}) does not fit section {name} of \
                             {} bytes",
                            var.name, var.size, section.size
                        ));
                    }
                    self.variables.push(Variable {
                        name: var.name.clone(),
                        section: name.to_owned(),
                        offset,
                        ty: var.ty,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether libbpf makes a map of variables of the section.
fn is_data(section: &str) -> bool {
    [".rodata", ".data", ".bss"].iter().any(|kind| {
        section.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

impl<'a> Elf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let damaged = |e: object::read::Error| format!("it is a damaged ELF file: {e}");
        let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(damaged)?;
        let endian = header.endian().map_err(damaged)?;
        if header.e_machine(endian) != EM_BPF {
            return Err("it is an ELF file, but not one for BPF".into());
        }
        let table = header.sections(endian, bytes).map_err(damaged)?;
        let mut elf = Elf { sections: Vec::new(), symbols: HashMap::new() };
        for section in table.iter() {
            let name = table.section_name(endian, section).map_err(damaged)?;
            let name = std::str::from_utf8(name).map_err(|_| "a section has no readable name")?;
            let data = section.data(endian, bytes).map_err(damaged)?;
            elf.sections.push(Section { name, size: section.sh_size(endian), data });
        }
        let symbols = table.symbols(endian, bytes, object::elf::SHT_SYMTAB).map_err(damaged)?;
        for symbol in symbols.iter() {
            let name = symbol.name(endian, symbols.strings()).map_err(damaged)?;
            let index = usize::from(symbol.st_shndx(endian));
            if let (Ok(name), true) = (std::str::from_utf8(name), symbol.st_type() != STT_SECTION) {
                elf.symbols.entry((index, name)).or_default().push(symbol.st_value(endian));
            }
        }
        Ok(elf)
    }

    fn section(&self, name: &str) -> Option<(usize, &Section<'a>)> {
        self.sections.iter().enumerate().find(|(_, section)| section.name == name)
    }

    /// Where a variable is. Compilers leave the places in BTF at zero for libbpf to fill in from
    /// the symbols; what is already linked has them.
    fn offset(&self, section: usize, name: &str, in_btf: u32) -> Result<u32, String> {
        match self.symbols.get(&(section, name)).map(Vec::as_slice) {
            Some([offset]) => {
                u32::try_from(*offset).map_err(|_| format!("variable {name} is out of bounds"))
            }
            _ if in_btf != 0 => Ok(in_btf),
            Some(_) => Err(format!("it has several symbols for variable {name}")),
            None => Err(format!("it has no symbol for variable {name}")),
        }
    }
}
