//! Members that the kernel treats as more than bytes: timers, locks, lists and trees of objects, and
//! pointers to objects that it counts the references of.
//!
//! They are recognized as the verifier does it (`btf_find_field` in kernel/bpf/btf.c): structs by
//! their names, pointers by their type tags, what a list holds by its decl tag
//! `contains:STRUCT:MEMBER`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Btf, Kind, MAX_DEPTH, MAX_HOPS, Shape, TypeId, Want};

/// Special members of one type; the kernel takes at most 11 kinds of them (`BTF_FIELDS_MAX`), but
/// an array of structs has as many as it has elements.
const MAX_SPECIALS: usize = 4096;
/// Types, members and elements that are looked at on the way.
const MAX_STEPS: usize = 1 << 16;

/// What a special member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `struct bpf_timer`.
    Timer,
    /// `struct bpf_wq`: work that waits to be done.
    Work,
    /// `struct bpf_spin_lock`, `struct bpf_res_spin_lock`.
    Lock,
    /// `struct bpf_refcount`.
    Refcount,
    /// `struct bpf_list_node`, `struct bpf_rb_node`: what makes an object a part of a list or tree.
    Node,
    /// `struct bpf_list_head`, and what its nodes are parts of.
    List(Option<Contains>),
    /// `struct bpf_rb_root`, and what its nodes are parts of.
    Tree(Option<Contains>),
    /// A pointer that holds a reference, or has an object to itself.
    Kptr {
        /// What it points to, not looked through: the tags are on it.
        to: TypeId,
        /// To memory of which each CPU has its own.
        per_cpu: bool,
    },
}

impl Special {
    /// What a struct of that name is.
    #[must_use]
    pub fn of_struct(name: &str) -> Option<Special> {
        Some(match name {
            "bpf_timer" => Special::Timer,
            "bpf_wq" => Special::Work,
            "bpf_spin_lock" | "bpf_res_spin_lock" => Special::Lock,
            "bpf_refcount" => Special::Refcount,
            "bpf_list_head" => Special::List(None),
            "bpf_rb_root" => Special::Tree(None),
            "bpf_list_node" | "bpf_rb_node" => Special::Node,
            _ => return None,
        })
    }

    /// Whether it leads to something elsewhere in memory.
    #[must_use]
    pub fn leads_on(self) -> bool {
        use Special as S;
        matches!(self, S::Timer | S::Work | S::List(_) | S::Tree(_) | S::Kptr { .. })
    }
}

/// What a list or a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contains {
    /// The struct.
    pub ty: TypeId,
    /// Bytes from its start to the node in it.
    pub node: u64,
}

/// A special member's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialAt {
    /// Bytes from the start of the whole.
    pub offset: u64,
    /// What is there.
    pub special: Special,
}

/// Decl tags by what they are on: `contains:..` of members, and of variables (no member).
pub(super) type Tags = HashMap<(TypeId, Option<u32>), TypeId>;

impl Btf {
    /// The special members of a struct or a section, ascending, those of nested structs and arrays
    /// among them. Found out once.
    #[must_use]
    pub fn specials(&self, root: TypeId) -> Arc<[SpecialAt]> {
        let known = |known: &HashMap<TypeId, Arc<[SpecialAt]>>| known.get(&root).cloned();
        let lock = || self.parsed.specials.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = known(&lock()) {
            return known;
        }
        let mut search = Search { btf: self, out: Vec::new(), steps: 0, none: HashSet::new() };
        search.find(root, 0, None, 0);
        // Members of a union lie at one place; there the verifier lets nothing overlap.
        let mut kinds = HashSet::new();
        search.out.retain(|at| kinds.insert((at.offset, std::mem::discriminant(&at.special))));
        search.out.sort_by_key(|found| found.offset);
        let found: Arc<[SpecialAt]> = search.out.into();
        lock().insert(root, found.clone());
        found
    }

    /// What is special at a place in a value of type `root`.
    #[must_use]
    pub fn special_at(&self, root: TypeId, offset: u64) -> Option<Special> {
        let all = self.specials(root);
        let at = all.binary_search_by_key(&offset, |found| found.offset).ok()?;
        Some(all[at].special)
    }

    /// The tags of one pointer, from the outermost on: `kptr`, `rcu`, `user`.
    pub fn pointer_tags(&self, to: TypeId) -> impl Iterator<Item = &str> {
        let next = |at: &TypeId| {
            let kind = self.kind(*at).filter(|kind| kind.is_modifier());
            kind.and_then(|_| self.target(*at))
        };
        std::iter::successors(Some(to), next)
            .take(MAX_HOPS)
            .filter(|at| self.kind(*at) == Some(Kind::TypeTag))
            .map(|at| self.name(at))
    }

    /// The tags of the kind that tells what a list holds.
    fn contains_tags(&self) -> &Tags {
        self.parsed.tags.get_or_init(|| {
            let own = self.first_id()..self.len();
            let tags = own.filter(|id| self.kind(*id) == Some(Kind::DeclTag));
            let ours = tags.filter(|id| self.name(*id).starts_with("contains:"));
            ours.filter_map(|id| Some((self.decl_tag(id)?, id))).collect()
        })
    }

    fn contains(&self, on: (TypeId, Option<u32>)) -> Option<Contains> {
        let tag = self.contains_tags().get(&on)?;
        let (name, node) = self.name(*tag).strip_prefix("contains:")?.split_once(':')?;
        let ty = self.find(name, Want::Struct)?;
        let node = self.field(ty, node).ok().filter(|field| field.bits.is_none())?;
        Some(Contains { ty, node: node.offset })
    }
}

struct Search<'a> {
    btf: &'a Btf,
    out: Vec<SpecialAt>,
    steps: usize,
    /// Types without special members.
    none: HashSet<TypeId>,
}

impl Search<'_> {
    /// `on` is the member or variable that has this type.
    fn find(&mut self, ty: TypeId, offset: u64, on: Option<(TypeId, Option<u32>)>, depth: usize) {
        self.steps += 1;
        let full = self.steps > MAX_STEPS || self.out.len() >= MAX_SPECIALS;
        let Ok(id) = self.btf.resolve(ty) else { return };
        if full || depth > MAX_DEPTH || self.none.contains(&id) {
            return;
        }
        let Ok(shape) = self.btf.shape(id) else { return };
        let before = self.out.len();
        match &*shape {
            Shape::Struct(s) => {
                if let Some(special) = Special::of_struct(&s.name).filter(|_| !s.union) {
                    let contains = || self.btf.contains(on?);
                    let special = match special {
                        Special::List(_) => Special::List(contains()),
                        Special::Tree(_) => Special::Tree(contains()),
                        other => other,
                    };
                    self.out.push(SpecialAt { offset, special });
                    return;
                }
                for (i, member) in s.members.iter().enumerate() {
                    let at = offset.saturating_add(u64::from(member.bit_offset / 8));
                    self.find(member.ty, at, Some((id, Some(i as u32))), depth + 1);
                }
            }
            Shape::Datasec { .. } => self.section(id),
            Shape::Array { elem, len, elem_size } => {
                for i in 0..u64::from(*len) {
                    self.find(*elem, offset.saturating_add(i * elem_size), on, depth + 1);
                    // Each element is like the first.
                    if self.out.len() == before || self.steps > MAX_STEPS {
                        break;
                    }
                }
            }
            Shape::Ptr { to } => self.pointer(*to, offset),
            _ => {}
        }
        if self.out.len() == before && self.steps <= MAX_STEPS {
            self.none.insert(id);
        }
    }

    fn section(&mut self, id: TypeId) {
        let Some(btf_rs::Type::Datasec(section)) = self.btf.decoded(id) else { return };
        for var in &section.variables {
            let Some(var_id) = btf_rs::BtfType::get_type_id(var) else { continue };
            if let (Some(Kind::Var), Some(ty)) = (self.btf.kind(var_id), self.btf.target(var_id)) {
                self.find(ty, var.offset().into(), Some((var_id, None)), 1);
            }
        }
    }

    fn pointer(&mut self, to: TypeId, offset: u64) {
        let held = ["kptr", "kptr_untrusted", "percpu_kptr", "uptr"];
        let Some(tag) = self.btf.pointer_tags(to).find(|tag| held.contains(tag)) else { return };
        let special = Special::Kptr { to, per_cpu: tag == "percpu_kptr" };
        self.out.push(SpecialAt { offset, special });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::testing::Builder;

    #[test]
    fn members_are_found_through_structs_arrays_and_sections() {
        let mut b = Builder::new();
        let u64_ = b.int("unsigned long", 8, false);
        let opaque = b.array(u64_, 2);
        let list_node = b.structure("bpf_list_node", 24, &[("opaque", opaque, 0)]);
        let node = b.structure("thing", 40, &[("x", u64_, 0), ("node", list_node, 64)]);
        let head = b.structure("bpf_list_head", 16, &[("opaque", opaque, 0)]);
        let timer = b.structure("bpf_timer", 16, &[("opaque", opaque, 0)]);
        let tagged = b.type_tag("kptr", node);
        let pointer = b.ptr(tagged);
        let per_cpu = b.type_tag("percpu_kptr", node);
        let per_cpu_pointer = b.ptr(per_cpu);
        let inner = b.structure("inner", 24, &[("t", timer, 0), ("p", pointer, 128)]);
        let inners = b.array(inner, 2);
        let plain = b.ptr(node);
        let value = b.structure(
            "value",
            88,
            &[
                ("plain", plain, 0),
                ("all", inners, 64),
                ("head", head, 448),
                ("each", per_cpu_pointer, 576),
            ],
        );
        b.decl_tag("contains:thing:node", value, 2);
        let var = b.var("heads", head);
        b.decl_tag("contains:thing:node", var, -1);
        let other = b.var("untold", head);
        let section = b.datasec(".data.A", 32, &[(var, 0, 16), (other, 16, 16)]);
        let btf = b.parse();
        let at = |offset, special| SpecialAt { offset, special };
        let kptr = Special::Kptr { to: tagged, per_cpu: false };
        let contains = Some(Contains { ty: node, node: 8 });
        assert_eq!(
            *btf.specials(value),
            [
                at(8, Special::Timer),
                at(24, kptr),
                at(32, Special::Timer),
                at(48, kptr),
                at(56, Special::List(contains)),
                at(72, Special::Kptr { to: per_cpu, per_cpu: true }),
            ]
        );
        assert_eq!(btf.special_at(value, 56), Some(Special::List(contains)));
        assert_eq!(btf.special_at(value, 0), None);
        assert_eq!(
            *btf.specials(section),
            [at(0, Special::List(contains)), at(16, Special::List(None))]
        );
        assert!(btf.specials(u64_).is_empty());
    }

    #[test]
    fn members_of_a_union_are_one() {
        let mut b = Builder::new();
        let int = b.int("int", 4, true);
        let timer = b.structure("bpf_timer", 16, &[("n", int, 0)]);
        let tagged = b.type_tag("kptr", timer);
        let pointer = b.ptr(tagged);
        let members = [("a", pointer, 0), ("t", timer, 0), ("b", pointer, 0), ("c", pointer, 0)];
        let union = b.union("many", 16, &members);
        let at = |special| SpecialAt { offset: 0, special };
        let kptr = Special::Kptr { to: tagged, per_cpu: false };
        assert_eq!(*b.parse().specials(union), [at(kptr), at(Special::Timer)]);
    }

    #[test]
    fn endless_types_end() {
        let mut b = Builder::new();
        let int = b.int("int", 4, true);
        let timer = b.structure("bpf_timer", 16, &[("n", int, 0)]);
        let many = b.array(timer, 1 << 20);
        let itself = b.next_id();
        let itself = b.structure("itself", 4, &[("", itself, 0), ("", itself, 0)]);
        let btf = b.parse();
        assert_eq!(btf.specials(many).len(), MAX_SPECIALS);
        assert!(btf.specials(itself).is_empty());
    }
}
