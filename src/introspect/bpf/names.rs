//! Whole names of maps.
//!
//! The kernel keeps 15 characters. libbpf names the maps of sections after object and section
//! (`fifo.bss`), cutting the object's name to what is left beside at least seven characters of
//! the section's (`scx_simple` becomes `scx_simp.bss`), and those of custom sections after the
//! section alone (`.data.hot`). What was cut off survives in the object's BTF: sections and maps
//! by name, and the source files that its line numbers refer to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::btfs::BtfCache;
use super::{BpfState, MapInfo, kind};
use crate::btf::{Btf, Shape, TypeId};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Characters of a name that the kernel keeps (`BPF_OBJ_NAME_LEN` less the NUL).
pub(super) const KEPT: usize = 15;

/// Characters of the section's name for which libbpf always leaves room.
const SECTION_ROOM: usize = 7;

/// Programs that are searched for the maps they use.
const MAX_PROGS: usize = 16 << 10;

/// Names that were found out, by id and address of the map.
#[derive(Default)]
pub(super) struct NameCache {
    known: HashMap<(u32, u64), Names>,
}

#[derive(Clone, Debug, Default)]
struct Names {
    full: Option<String>,
    section: Option<String>,
    /// Types that the object declares for a map to which the kernel takes none: queues, stacks
    /// and others (libbpf, `bpf_object__create_map`).
    types: Option<Types>,
}

#[derive(Clone, Debug)]
struct Types {
    btf: Arc<Btf>,
    key: TypeId,
    value: TypeId,
}

impl NameCache {
    /// Lets those be looked for again whose name was not found. It may be there now: libbpf makes
    /// maps before it loads programs, and programs before it fills in struct_ops.
    pub(super) fn retry(&mut self) {
        self.known.retain(|_, names| names.full.is_some());
    }

    /// Fills in whole names and sections. Names do not change, so each map is looked at once.
    pub(super) fn complete(
        &mut self,
        kernel: &Kernel,
        state: &BpfState,
        btfs: &mut BtfCache,
        maps: &mut [MapInfo],
    ) {
        let mut objects: Option<Objects> = None;
        for i in 0..maps.len() {
            let key = (maps[i].id, maps[i].kva.0);
            let names = match self.known.get(&key) {
                Some(names) => names.clone(),
                None => {
                    let objects = objects.get_or_insert_with(|| Objects::new(kernel, state, maps));
                    let names = objects.names(kernel, state, btfs, &maps[i]);
                    self.known.insert(key, names.clone());
                    names
                }
            };
            (maps[i].full_name, maps[i].section) = (names.full, names.section);
            if let Some(Types { btf, key, value }) = names.types {
                maps[i].btf = Some(btf);
                (maps[i].key_type, maps[i].value_type) = (key, value);
            }
        }
        if self.known.len() > maps.len() {
            let alive: BTreeSet<_> = maps.iter().map(|m| (m.id, m.kva.0)).collect();
            self.known.retain(|key, _| alive.contains(key));
        }
    }
}

/// What is known of the loaded objects.
struct Objects {
    /// The names that struct_ops give themselves, by the `struct btf` of their object.
    ops_names: HashMap<u64, Vec<String>>,
    /// For maps that have no BTF of their own: that of a program which uses them.
    users: HashMap<u64, Kva>,
    read: HashMap<u64, Option<Arc<Object>>>,
}

/// What one object's BTF tells.
struct Object {
    btf: Arc<Btf>,
    /// Names of source files up to the first dot.
    stems: BTreeSet<String>,
    /// Names of sections.
    sections: Vec<String>,
    /// Declarations of maps, by what the kernel keeps of the name.
    declared: HashMap<String, Vec<Declared>>,
}

/// A variable that declares a map.
struct Declared {
    name: String,
    ty: TypeId,
    struct_ops: bool,
}

impl Object {
    fn new(btf: Arc<Btf>) -> Self {
        let mut declared: HashMap<String, Vec<Declared>> = HashMap::new();
        let datasecs = btf.datasecs();
        for (id, section) in &datasecs {
            let struct_ops = section.contains(".struct_ops");
            if !struct_ops && section != ".maps" {
                continue;
            }
            let shape = btf.shape(*id).ok();
            let Some(Shape::Datasec { vars, .. }) = shape.as_deref() else { continue };
            for var in vars {
                let kept = var.name.get(..KEPT).unwrap_or(&var.name);
                let found = Declared { name: var.name.clone(), ty: var.ty, struct_ops };
                declared.entry(kept.to_owned()).or_default().push(found);
            }
        }
        let sections = datasecs.into_iter().map(|(_, name)| name).collect();
        Object { stems: stems(&btf), btf, sections, declared }
    }
}

impl Objects {
    fn new(kernel: &Kernel, state: &BpfState, maps: &[MapInfo]) -> Self {
        let mut ops_names: HashMap<u64, Vec<String>> = HashMap::new();
        for map in maps.iter().filter(|m| m.kind.number == kind::STRUCT_OPS) {
            if let Some(name) = ops_name(kernel, state, map) {
                ops_names.entry(map.btf_kva.0).or_default().push(name);
            }
        }
        let orphans = maps.iter().any(|m| m.btf_kva.is_null());
        let users = if orphans { users(kernel, state) } else { HashMap::new() };
        Objects { ops_names, users, read: HashMap::new() }
    }

    fn names(
        &mut self,
        kernel: &Kernel,
        state: &BpfState,
        btfs: &mut BtfCache,
        map: &MapInfo,
    ) -> Names {
        let own = Some(map.btf_kva).filter(|at| !at.is_null());
        let at = own.or_else(|| self.users.get(&map.kva.0).copied()).unwrap_or(Kva(0));
        let object = self.read.entry(at.0).or_insert_with(|| {
            let btf = btfs.get(kernel, &state.layouts.btf, at).ok()??;
            Some(Arc::new(Object::new(btf)))
        });
        let ops_names = self.ops_names.get(&at.0).map_or(&[][..], Vec::as_slice);
        names(map, object.as_deref(), ops_names)
    }
}

/// The kernel's own words for numbers: enumerators that begin with `prefix`, without it and in lower
/// case. Where there are two words for a number, the shorter one: the other says that it is
/// deprecated.
pub(super) fn enumerators(btf: &Btf, name: &str, prefix: &str) -> Vec<(u32, String)> {
    let Some(shape) = btf.find_c(name).and_then(|id| btf.shape(id).ok()) else {
        return Vec::new();
    };
    let Shape::Enum(kinds) = &*shape else { return Vec::new() };
    let mut out: Vec<(u32, String)> = Vec::new();
    for (name, value) in &kinds.variants {
        let (Some(name), Ok(value)) = (name.strip_prefix(prefix), u32::try_from(*value)) else {
            continue;
        };
        let name = name.to_ascii_lowercase();
        match out.iter_mut().find(|(n, _)| *n == value) {
            Some((_, known)) if known.len() > name.len() => *known = name,
            Some(_) => {}
            None => out.push((value, name)),
        }
    }
    out
}

/// `ops.name` of a struct_ops map.
fn ops_name(kernel: &Kernel, state: &BpfState, map: &MapInfo) -> Option<String> {
    let field = kernel.btf().field(map.value_type, "data.name").ok()?;
    let at = map
        .kva
        .offset(state.layouts.kinds.struct_ops.as_ref().ok()?.value as u64)
        .offset(field.offset);
    let mut raw = vec![0; usize::try_from(field.size).ok()?.min(256)];
    kernel.read(at, &mut raw).ok()?;
    let end = raw.iter().position(|b| *b == 0)?;
    let name = String::from_utf8(raw[..end].to_vec()).ok()?;
    (!name.is_empty()).then_some(name)
}

/// From each map that a program uses to the BTF of one such program.
fn users(kernel: &Kernel, state: &BpfState) -> HashMap<u64, Kva> {
    let mut out = HashMap::new();
    let Ok(layout) = &state.layouts.prog else { return out };
    let idr = kernel.symbols().get("prog_idr").and_then(|at| kernel.idr(at, MAX_PROGS).ok());
    let progs = idr.map(|walk| walk.items).unwrap_or_default();
    for (_, prog) in progs {
        let Ok(aux) = kernel.prog_aux(layout, prog) else { continue };
        let btf = Kva(layout.btf.read(&aux).unwrap_or(0));
        if btf.is_null() {
            continue;
        }
        for map in kernel.used_maps(layout, &aux).unwrap_or_default() {
            out.entry(map.0).or_insert(btf);
        }
    }
    out
}

/// Names of C files among the strings of `btf`, up to their first dot.
fn stems(btf: &Btf) -> BTreeSet<String> {
    let raw = btf.raw();
    let word =
        |at: usize| raw.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // struct btf_header: hdr_len at 4, str_off at 16, str_len at 20.
    let (Some(header), Some(start), Some(len)) = (word(4), word(16), word(20)) else {
        return BTreeSet::new();
    };
    let start = (header as usize).saturating_add(start as usize);
    let strings = raw.get(start..start.saturating_add(len as usize)).unwrap_or_default();
    strings
        .split(|b| *b == 0)
        .filter(|s| s.ends_with(b".c") && s.len() < 4096)
        .filter_map(|s| std::str::from_utf8(s).ok())
        // A line of source text can end like a file name; a path has no blanks in its last part.
        .filter_map(|path| path.rsplit('/').next())
        .filter_map(|file| file.split('.').next())
        .filter(|stem| !stem.is_empty() && !stem.contains(char::is_whitespace))
        .map(sanitized)
        .collect()
}

/// As libbpf makes names fit for the kernel.
fn sanitized(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    name.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

fn names(map: &MapInfo, object: Option<&Object>, ops_names: &[String]) -> Names {
    match section(map, object) {
        Some(section) => {
            let full = section_name(&map.name, &section, object, ops_names);
            Names { full, section: Some(section), types: None }
        }
        None => {
            let declared = object.and_then(|object| declaration(map, object));
            let types = declared.filter(|_| map.btf.is_none()).zip(object);
            Names {
                types: types.and_then(|(declared, object)| types_of(map, declared, object)),
                full: match map.name.len() {
                    0 => None,
                    len if len < KEPT => Some(map.name.clone()),
                    _ => declared.map(|d| d.name.clone()),
                },
                section: None,
            }
        }
    }
}

/// The section that a map holds: its value's type is that section's, or its name says so.
fn section(map: &MapInfo, object: Option<&Object>) -> Option<String> {
    if map.kind.number != kind::ARRAY || map.max_entries != 1 {
        return None;
    }
    let ty = map.btf.as_ref().and_then(|btf| btf.shape(map.value_type).ok());
    if let Some(Shape::Datasec { name, .. }) = ty.as_deref() {
        return Some(name.clone());
    }
    // Constants without debug information are in sections without a type: .rodata.str1.1.
    let cut = &map.name[map.name.find('.')?..];
    let mut known = object.map_or(&[][..], |o| &o.sections).iter();
    let whole = known.find(|name| map.name.len() == KEPT && name.starts_with(cut));
    Some(whole.map_or(cut, String::as_str).to_owned())
}

/// The name that libbpf would give the map of `section`, had it room.
fn section_name(
    name: &str,
    section: &str,
    object: Option<&Object>,
    ops_names: &[String],
) -> Option<String> {
    // Two dots: a custom section, named without its object.
    if section.get(1..).is_some_and(|rest| rest.contains('.')) {
        return Some(section.to_owned());
    }
    let prefix = name.strip_suffix(section)?;
    let room = KEPT.saturating_sub(section.len().max(SECTION_ROOM));
    if prefix.len() < room {
        return Some(name.to_owned());
    }
    let stems = object.map(|o| o.stems.iter().cloned().collect()).unwrap_or_default();
    let object = object_name(prefix, stems, ops_names)?;
    Some(format!("{object}{section}"))
}

/// The one name that begins with `prefix`: among source files, or else among what the object's
/// struct_ops call themselves. Several are no answer, unless a struct_ops points one out.
fn object_name(prefix: &str, stems: Vec<String>, ops_names: &[String]) -> Option<String> {
    let fits = |name: &String| name.starts_with(prefix);
    // Schedulers of the sched_ext family are called scx_NAME and name their ops NAME.
    let ops =
        ops_names.iter().flat_map(|name| [sanitized(name), sanitized(&format!("scx_{name}"))]);
    let mut ops: Vec<String> = ops.filter(fits).collect();
    let mut stems: Vec<String> = stems.into_iter().filter(fits).collect();
    if stems.len() > 1 {
        stems.retain(|stem| ops.contains(stem));
    } else if stems.is_empty() {
        ops.sort_unstable();
        ops.dedup();
        stems = ops;
    }
    (stems.len() == 1).then(|| stems.swap_remove(0))
}

/// The variable with which the object declares a map that is no section.
fn declaration<'a>(map: &MapInfo, object: &'a Object) -> Option<&'a Declared> {
    let is_ops = map.kind.number == kind::STRUCT_OPS;
    let alike = object.declared.get(&map.name).map_or(&[][..], Vec::as_slice);
    let mut found: Vec<&Declared> = alike.iter().filter(|d| d.struct_ops == is_ops).collect();
    if found.len() > 1 {
        found.retain(|d| describes(&object.btf, d.ty, map));
    }
    (found.len() == 1).then(|| found[0])
}

/// The types in a declaration, if they are as large as the map's keys and values.
fn types_of(map: &MapInfo, declared: &Declared, object: &Object) -> Option<Types> {
    let btf = &object.btf;
    let shape = btf.shape(declared.ty).ok()?;
    let Shape::Struct(declaration) = &*shape else { return None };
    let of = |name: &str, size: u32| {
        let member = declaration.members.iter().find(|m| m.name == name)?;
        match &*btf.shape(member.ty).ok()? {
            Shape::Ptr { to } if btf.size_of(*to) == Some(size.into()) => Some(*to),
            _ => None,
        }
    };
    let value = of("value", map.value_size)?;
    Some(Types { btf: btf.clone(), key: of("key", map.key_size).unwrap_or(0), value })
}

/// Whether the declaration of type `ty` is that of `map`, as far as it says: numbers are spelled
/// as pointers to arrays of that length, types as pointers.
fn describes(btf: &Btf, ty: TypeId, map: &MapInfo) -> bool {
    let Ok(shape) = btf.shape(ty) else { return false };
    let Shape::Struct(declaration) = &*shape else { return false };
    declaration.members.iter().all(|member| {
        let target = btf.shape(member.ty).ok();
        let Some(Shape::Ptr { to }) = target.as_deref() else { return true };
        let number = match btf.shape(*to).ok().as_deref() {
            Some(Shape::Array { len, .. }) => Some(*len),
            _ => None,
        };
        match member.name.as_str() {
            "type" => number.is_none_or(|n| n == map.kind.number),
            "max_entries" => number.is_none_or(|n| n == map.max_entries),
            "key" => map.key_type == 0 || *to == map.key_type,
            "value" => map.value_type == 0 || *to == map.value_type,
            _ => true,
        }
    })
}
