//! Paths through types: `ctx.fifos[2].head`, from a key, a value or a section of variables on.

use crate::btf::{self, Btf, FieldError, Shape, TypeId};

use super::error::{SnapshotError, join};
use super::error_text::quoted;
use super::value::FieldKind;
use crate::words::nearest_first;

/// [`Btf::field`], which also enters a section of variables by their names.
pub(crate) fn walk(btf: &Btf, root: TypeId, path: &str) -> Result<btf::Field, FieldError> {
    let shape = btf.shape(root)?;
    let Shape::Datasec { vars, .. } = &*shape else { return btf.field(root, path) };
    if path.is_empty() {
        return btf.field(root, path);
    }
    let Some((var, rest)) = section_var(&shape, path) else {
        let component = path.split(['.', '[']).next().unwrap_or_default();
        if component.is_empty() {
            return Err(FieldError::EmptyComponent { path: path.to_owned() });
        }
        return Err(FieldError::NoSuchMember {
            path: path.to_owned(),
            walked: String::new(),
            component: component.to_owned(),
            type_name: btf.type_name(root),
            available: vars.iter().map(|v| v.name.clone()).collect(),
        });
    };
    let prefix = |text: &str| join(&var.name, text).into_owned();
    let at = match rest {
        "" => btf.field(var.ty, ""),
        "." => Err(FieldError::EmptyComponent { path: path.to_owned() }),
        rest => btf.field(var.ty, rest.strip_prefix('.').unwrap_or(rest)),
    };
    at.map(|at| btf::Field { offset: at.offset.saturating_add(var.offset.into()), ..at })
        .map_err(|e| below_var(e, path, prefix))
}

/// A walk's error below a variable, told from the section on.
fn below_var(error: FieldError, path: &str, prefix: impl Fn(&str) -> String) -> FieldError {
    use FieldError as E;
    let path = path.to_owned();
    match error {
        E::EmptyComponent { .. } => E::EmptyComponent { path },
        E::Syntax { component, .. } => E::Syntax { path, component },
        E::NoSuchMember { walked, component, type_name, available, .. } => {
            E::NoSuchMember { path, walked: prefix(&walked), component, type_name, available }
        }
        E::NotAStruct { walked, component, found_kind, type_name, .. } => {
            E::NotAStruct { path, walked: prefix(&walked), component, found_kind, type_name }
        }
        E::NotAnArray { walked, found_kind, type_name, .. } => {
            E::NotAnArray { path, walked: prefix(&walked), found_kind, type_name }
        }
        E::Index { walked, index, len, .. } => {
            E::Index { path, walked: prefix(&walked), index, len }
        }
        E::Btf(e) => E::Btf(e),
    }
}

/// A walk's error in the catalogue's words. `map` is the map's name; `outer` is the path at which the
/// walk from a value of type `root` began.
pub(crate) fn told(
    btf: &Btf,
    root: TypeId,
    error: FieldError,
    map: &str,
    outer: &str,
) -> SnapshotError {
    let kind_at = |walked: &str| match walk(btf, root, walked) {
        Ok(at) => FieldKind::of(btf, at.ty),
        Err(_) => FieldKind::of(btf, root),
    };
    let failed = match error {
        FieldError::EmptyComponent { path } => {
            SnapshotError::EmptyPathComponent { requested: path }
        }
        FieldError::Syntax { path, component } => SnapshotError::TypeMismatch {
            expected: "a member name, with indices as in \"name[3]\"".to_owned(),
            actual: quoted(&component),
            requested: path,
        },
        FieldError::NoSuchMember { path, walked, component, available, .. } => {
            let available = nearest_first(&component, available);
            SnapshotError::FieldNotFound { requested: path, walked, component, available }
        }
        FieldError::NotAStruct { path, walked, component, .. } => {
            let kind = kind_at(&walked).as_str().to_owned();
            SnapshotError::NotAStruct { requested: path, walked, component, kind }
        }
        FieldError::NotAnArray { path, walked, .. } => {
            let at = walk(btf, root, &walked).map_or(root, |at| at.ty);
            not_an_array(btf, at, path, walked)
        }
        FieldError::Index { walked, index, len, .. } => {
            let at = join(outer, &walked).into_owned();
            return SnapshotError::IndexOutOfRange {
                map: if at.is_empty() { map.to_owned() } else { format!("{map}: {at}") },
                index: i64::try_from(index).unwrap_or(i64::MAX),
                len: len as usize,
            };
        }
        FieldError::Btf(error) => SnapshotError::TypeMismatch {
            expected: "a type that can be walked".to_owned(),
            actual: format!("damaged BTF: {error}"),
            requested: String::new(),
        },
    };
    failed.below(outer)
}

/// An index into something that is no array: a struct lacks that member, a leaf has none.
fn not_an_array(btf: &Btf, at: TypeId, requested: String, walked: String) -> SnapshotError {
    let component = requested
        .get(walked.len()..)
        .and_then(|rest| rest.split_inclusive(']').next())
        .unwrap_or("[..]")
        .to_owned();
    let kind = FieldKind::of(btf, at);
    if matches!(kind, FieldKind::Struct | FieldKind::Union) {
        let available = member_names(btf, at);
        return SnapshotError::FieldNotFound { requested, walked, component, available };
    }
    SnapshotError::NotAStruct { requested, walked, component, kind: kind.as_str().to_owned() }
}

/// The variable that a path begins with, and the rest of the path. Names of variables may have
/// dots in them (a function's own statics do), so the longest one counts.
pub(crate) fn section_var<'v, 'p>(
    section: &'v Shape,
    path: &'p str,
) -> Option<(&'v btf::SecVar, &'p str)> {
    let Shape::Datasec { vars, by_name, last, .. } = section else { return None };
    if let Some(var) = vars.get(last.place() as usize)
        && var.name == path
        && !path.is_empty()
    {
        return Some((var, ""));
    }
    let name = |place: &u32| vars.get(*place as usize).map_or("", |var| var.name.as_str());
    let dots = path.rmatch_indices(['.', '[']).map(|(end, _)| end);
    [path.len()].into_iter().chain(dots).find_map(|end| {
        let wanted = path.get(..end).filter(|name| !name.is_empty())?;
        let first = by_name.partition_point(|place| name(place) < wanted);
        let place = by_name.get(first).filter(|place| name(place) == wanted)?;
        last.remember(*place);
        Some((vars.get(*place as usize)?, path.get(end..)?))
    })
}

/// The names by which the members of a struct, union or section are reached.
pub(crate) fn member_names(btf: &Btf, ty: TypeId) -> Vec<String> {
    let mut out = Vec::new();
    for_each_member(btf, ty, MEMBERS, &mut |name, _| out.push(name.to_owned()));
    out
}

/// More members than one type has.
pub(crate) const MEMBERS: usize = 1 << 14;

/// Visits the first members of a struct, union or section, those of anonymous ones in their place;
/// `limit` counts the anonymous ones too.
pub(crate) fn for_each_member(
    btf: &Btf,
    ty: TypeId,
    limit: usize,
    visit: &mut dyn FnMut(&str, btf::Field),
) {
    let Ok(shape) = btf.shape(ty) else { return };
    if let Shape::Datasec { vars, .. } = &*shape {
        for var in vars.iter().take(limit) {
            if let Ok(at) = btf.field(var.ty, "") {
                visit(&var.name, btf::Field { offset: var.offset.into(), ..at });
            }
        }
        return;
    }
    nested_members(btf, &shape, 0, 0, &mut Budget(limit), visit);
}

/// Members that are still visited: types that contain the same anonymous ones many times over
/// would make an exponential walk.
struct Budget(usize);

fn nested_members(
    btf: &Btf,
    shape: &Shape,
    base_bits: u64,
    depth: usize,
    budget: &mut Budget,
    visit: &mut dyn FnMut(&str, btf::Field),
) {
    let Shape::Struct(s) = shape else { return };
    for member in &s.members {
        if budget.0 == 0 || depth > btf::MAX_DEPTH {
            return;
        }
        budget.0 -= 1;
        let bit = base_bits.saturating_add(member.bit_offset.into());
        if member.name.is_empty() {
            if let Ok(inner) = btf.shape(member.ty) {
                nested_members(btf, &inner, bit, depth + 1, budget, visit);
            }
            continue;
        }
        let bits = member.bitfield_len.map(|len| btf::BitRange { offset: (bit % 8) as u32, len });
        let size = match bits {
            Some(b) => u64::from((b.offset + b.len).div_ceil(8)),
            None => btf.size_of(member.ty).unwrap_or_default(),
        };
        visit(&member.name, btf::Field { offset: bit / 8, bits, ty: member.ty, size });
    }
}
