//! Scheduling domains: for each CPU the chain of `struct sched_domain` from the CPUs that are
//! nearest to those of the whole machine, with their groups (include/linux/sched/topology.h,
//! kernel/sched/sched.h).

use super::Copy;
use super::layout::{Found, Struct};
use crate::btf::{Btf, Kind, Shape};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Levels of one CPU's domains; kernels have at most a dozen.
const MAX_LEVELS: usize = 32;
/// Groups of all domains of all CPUs.
const MAX_GROUPS: usize = 64 << 10;
/// Bytes of a domain's name.
const MAX_NAME: usize = 32;

/// A scheduling domain of a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainAt {
    /// Where its `struct sched_domain` lies.
    pub at: u64,
    /// Where the mask of its CPUs lies.
    pub span: u64,
    /// Its name: `MC`.
    pub name: Option<String>,
    /// Its groups, the one with the CPU itself first.
    pub groups: Vec<GroupAt>,
    /// Why groups may be missing.
    pub incomplete: Option<String>,
}

/// A group of CPUs among which a domain balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupAt {
    /// Where its `struct sched_group` lies.
    pub at: u64,
    /// Where the mask of its CPUs lies.
    pub span: u64,
    /// Where its `struct sched_group_capacity` lies.
    pub capacity: u64,
}

/// The domains of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    /// From the smallest to the largest.
    pub chain: Vec<DomainAt>,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

pub(super) struct DomainLayout {
    /// In `struct rq`.
    sd: u64,
    size: u64,
    parent: u64,
    groups: u64,
    name: Option<u64>,
    /// Where the mask begins: behind the struct unless it says otherwise (`sched_domain_span`).
    span: u64,
    group: GroupLayout,
    /// Bits and names of the flags.
    flags: Vec<(u64, String)>,
}

struct GroupLayout {
    size: u64,
    next: u64,
    sgc: u64,
    mask: u64,
    capacity_size: u64,
}

impl DomainLayout {
    pub(super) fn new(kernel: &Kernel) -> Found<Self> {
        let domain = Struct::new(kernel, "struct sched_domain")?;
        let group = Struct::new(kernel, "struct sched_group")?;
        let capacity = Struct::new(kernel, "struct sched_group_capacity")?;
        // Flexible arrays begin where the struct ends, or a little before that.
        let flexible = |of: &Struct<'_>, name| of.flexible(name).unwrap_or(of.size);
        Ok(DomainLayout {
            sd: Struct::new(kernel, "struct rq")?.at("sd")?,
            parent: domain.at("parent")?,
            groups: domain.at("groups")?,
            name: domain.maybe("name"),
            span: flexible(&domain, "span"),
            size: domain.size,
            group: GroupLayout {
                next: group.at("next")?,
                sgc: group.at("sgc")?,
                mask: flexible(&group, "cpumask"),
                size: group.size,
                capacity_size: capacity.size,
            },
            flags: flags(kernel.btf()),
        })
    }
}

/// The flags of domains by the enumeration that has them (include/linux/sched/sd_flags.h); it has
/// no name of its own.
fn flags(btf: &Btf) -> Vec<(u64, String)> {
    let is_enum = |id: &u32| matches!(btf.kind(*id), Some(Kind::Enum | Kind::Enum64));
    for id in (1..btf.len()).filter(is_enum).filter(|id| btf.name(*id).is_empty()) {
        let Ok(shape) = btf.shape(id) else { continue };
        let Shape::Enum(all) = &*shape else { continue };
        if all.variants.iter().any(|(name, _)| name == "SD_BALANCE_NEWIDLE") {
            let bit = |value: i128| u64::try_from(value).ok().filter(|bit| bit.is_power_of_two());
            let named = all.variants.iter();
            return named.filter_map(|(name, v)| Some((bit(*v)?, name.clone()))).collect();
        }
    }
    Vec::new()
}

impl Copy<'_> {
    /// Copies the domains of each CPU.
    pub(super) fn domains(&mut self) {
        let layout = match &self.layout.domains {
            Ok(layout) => layout,
            Err(e) => {
                let incomplete = Some(e.to_string());
                let none = Domains { incomplete, ..Domains::default() };
                self.raw.domains = vec![none; self.raw.cpus.len()];
                return;
            }
        };
        self.raw.domain_flags.clone_from(&layout.flags);
        let mut left = MAX_GROUPS;
        for rq in self.raw.cpus.iter().map(|cpu| cpu.rq).collect::<Vec<_>>() {
            let domains = self.domains_of(layout, rq, &mut left);
            self.raw.domains.push(domains);
        }
    }

    /// As `for_each_domain` goes through them: up to the one without a parent.
    fn domains_of(&mut self, layout: &DomainLayout, rq: u64, left: &mut usize) -> Domains {
        let mut out = Domains::default();
        let Some(mut at) = self.raw.memory.u64(rq.wrapping_add(layout.sd)) else {
            out.incomplete = Some("its runqueue was not copied".to_owned());
            return out;
        };
        while at != 0 {
            let again = out.chain.iter().any(|domain| domain.at == at);
            if again || out.chain.len() == MAX_LEVELS {
                let how = if again { "run in a circle" } else { "have no end" };
                out.incomplete = Some(format!("the domains {how}"));
                break;
            }
            match self.domain(layout, at, left) {
                Ok(domain) => out.chain.push(domain),
                Err(why) => {
                    out.incomplete = Some(why);
                    break;
                }
            }
            at = self.raw.memory.u64(at.wrapping_add(layout.parent)).unwrap_or_default();
        }
        out
    }

    fn domain(
        &mut self,
        layout: &DomainLayout,
        at: u64,
        left: &mut usize,
    ) -> Result<DomainAt, String> {
        let span = at.wrapping_add(layout.span);
        self.with_mask(at, layout.size, layout.span)?;
        let word = |this: &Self, within: u64| this.raw.memory.u64(at.wrapping_add(within));
        let name = layout.name.and_then(|within| word(self, within)).filter(|name| *name != 0);
        let name = name.and_then(|name| self.kernel.read_cstr(Kva(name), MAX_NAME).ok());
        let mut out = DomainAt { at, span, name, groups: Vec::new(), incomplete: None };
        let first = word(self, layout.groups).unwrap_or_default();
        let mut at = first;
        // They lead around in a circle.
        while at != 0 {
            if *left == 0 {
                out.incomplete = Some(format!("there are more than {MAX_GROUPS} groups"));
                break;
            }
            *left -= 1;
            match self.domain_group(&layout.group, at) {
                Ok((group, next)) => {
                    out.groups.push(group);
                    at = next;
                }
                Err(why) => {
                    out.incomplete = Some(why);
                    break;
                }
            }
            if at == first {
                break;
            }
        }
        Ok(out)
    }

    /// A group, and the next one's place.
    fn domain_group(&mut self, layout: &GroupLayout, at: u64) -> Result<(GroupAt, u64), String> {
        self.with_mask(at, layout.size, layout.mask)?;
        let word = |within: u64| self.raw.memory.u64(at.wrapping_add(within)).unwrap_or_default();
        let (next, capacity) = (word(layout.next), word(layout.sgc));
        self.piece(capacity, layout.capacity_size)?;
        Ok((GroupAt { at, span: at.wrapping_add(layout.mask), capacity }, next))
    }

    /// Copies a struct and the CPU mask that ends it: as many bits as there can be CPUs.
    fn with_mask(&mut self, at: u64, size: u64, mask: u64) -> Result<(), String> {
        let bytes = u64::from(self.kernel.nr_cpu_ids()).div_ceil(64) * 8;
        self.piece(at, size.max(mask.saturating_add(bytes)))
    }
}
