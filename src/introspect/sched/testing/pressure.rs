//! Scheduling domains and pressure of the made-up machine.
//!
//! Both CPUs have a domain `MC` of two groups, and above it `PKG` of one. Of the system and of each
//! cgroup (`/lab`, `/lab/hot`) there is pressure; `/lab/gone` was removed.

use crate::btf::testing::Builder;
use crate::introspect::testing::Guest;
use crate::mem::Kva;

use super::Machine;

/// Offsets in the made-up structs.
pub(crate) mod at {
    pub(crate) const SD_PARENT: u64 = 0;
    pub(crate) const SD_GROUPS: u64 = 8;
    pub(crate) const SD_FLAGS: u64 = 16;
    pub(crate) const SD_NAME: u64 = 24;
    pub(crate) const SD: u64 = 40;
    pub(crate) const GROUP: u64 = 24;
    pub(crate) const PSI_ENABLED: u64 = 0;
    pub(crate) const PSI_TOTAL: u64 = 8;
    pub(crate) const PSI_AVG: u64 = 8 + 2 * 7 * 8;
    pub(crate) const PSI: u64 = PSI_AVG + 7 * 3 * 8;
    pub(crate) const SIBLING: u64 = 8;
    pub(crate) const CHILDREN: u64 = 24;
    pub(crate) const CSS_FLAGS: u64 = 40;
    pub(crate) const CGROUP_PSI: u64 = 48;
    pub(crate) const CGROUP: u64 = 56;
}

fn bit(byte: u64) -> u32 {
    byte as u32 * 8
}

/// Their types; gives `struct sched_domain *` and the members of `struct cgroup` behind the first.
pub(super) fn types(t: &mut Builder, ids: [u32; 5]) -> (u32, Vec<(&'static str, u32, u32)>) {
    let [u32_, s32, u64_, void, list] = ids;
    let word = t.array(u64_, 0);
    let capacity = [("ref", s32, 0), ("capacity", u64_, 64), ("min_capacity", u64_, 128)];
    let capacity = [&capacity[..], &[("max_capacity", u64_, 192)]].concat();
    let capacity = t.structure("sched_group_capacity", 32, &capacity);
    let capacity = t.ptr(capacity);
    let group = [("next", void, 0), ("group_weight", u32_, 64), ("flags", s32, 96)];
    let group = [&group[..], &[("sgc", capacity, 128), ("cpumask", word, bit(at::GROUP))]].concat();
    let group = t.structure("sched_group", at::GROUP as u32, &group);
    let group = t.ptr(group);
    let domain_id = t.next_id() + 1;
    let domain = t.ptr(domain_id);
    let members = [
        ("parent", domain, bit(at::SD_PARENT)),
        ("groups", group, bit(at::SD_GROUPS)),
        ("flags", s32, bit(at::SD_FLAGS)),
        ("level", s32, bit(20)),
        ("name", void, bit(at::SD_NAME)),
        ("balance_interval", u32_, bit(32)),
        ("imbalance_pct", u32_, bit(36)),
    ];
    t.structure("sched_domain", at::SD as u32, &members);
    let flags = [("SD_BALANCE_NEWIDLE", 1), ("SD_BALANCE_EXEC", 2), ("SD_SHARE_LLC", 512)];
    t.enumeration("", 4, false, &flags);
    let flag = t.boolean("_Bool");
    let states = t.array(u64_, 7);
    let totals = t.array(states, 2);
    // As compilers' types are turned into BTF: one array of all.
    let avg = t.array(u64_, 7 * 3);
    let psi = [
        ("enabled", flag, bit(at::PSI_ENABLED)),
        ("total", totals, bit(at::PSI_TOTAL)),
        ("avg", avg, bit(at::PSI_AVG)),
    ];
    let psi = t.structure("psi_group", at::PSI as u32, &psi);
    let psi = t.ptr(psi);
    let names = ["IO_SOME", "IO_FULL", "MEM_SOME", "MEM_FULL", "CPU_SOME", "CPU_FULL", "IRQ_FULL"];
    let names: Vec<String> = names.iter().map(|name| format!("PSI_{name}")).collect();
    let states: Vec<(&str, i64)> = names.iter().map(String::as_str).zip(0..).collect();
    t.enumeration("psi_states", 4, false, &states);
    let css = [("sibling", list, 0), ("children", list, 128), ("flags", u32_, 256)];
    let css = t.structure("cgroup_subsys_state", 40, &css);
    (domain, vec![("self", css, bit(at::SIBLING)), ("psi", psi, bit(at::CGROUP_PSI))])
}

impl Machine {
    /// The domains of both CPUs; gives where the smaller one of each lies.
    pub(super) fn domains(&mut self) -> [Kva; 2] {
        let [mc, pkg] = ["MC", "PKG"].map(|name| self.text(name));
        let group = |guest: &mut Guest, mask: u64, capacity: u64| {
            let (at, sgc) = (guest.alloc(at::GROUP + 8), guest.alloc(32));
            guest.write_u32(at.offset(8), mask.count_ones());
            guest.write_u64(at.offset(16), sgc.0);
            guest.write_u64(at.offset(at::GROUP), mask);
            for word in 1..4 {
                guest.write_u64(sgc.offset(8 * word), capacity);
            }
            at
        };
        let guest = &mut self.guest;
        let [one, two, both] =
            [(1, 1024), (2, 900), (3, 1924)].map(|(mask, n)| group(guest, mask, n));
        for (at, next) in [(one, two), (two, one), (both, both)] {
            guest.write_u64(at, next.0);
        }
        let domain = |guest: &mut Guest, parent: Kva, first: Kva, name: Kva, level: u32| {
            let at = guest.alloc(at::SD + 8);
            for (within, word) in
                [(at::SD_PARENT, parent.0), (at::SD_GROUPS, first.0), (at::SD_NAME, name.0)]
            {
                guest.write_u64(at.offset(within), word);
            }
            for (within, n) in [(at::SD_FLAGS, 513), (20, level), (32, 8), (36, 117)] {
                guest.write_u32(at.offset(within), n);
            }
            guest.write_u64(at.offset(at::SD), 0b11);
            at
        };
        [one, two].map(|first| {
            let guest = &mut self.guest;
            let large = domain(guest, Kva(0), both, pkg, 1);
            domain(guest, large, first, mc, 0)
        })
    }

    /// The tree of cgroups, whose `struct cgroup` are `root`, `lab` and `hot`, and their pressure.
    pub(super) fn pressure(&mut self, [root, lab, hot]: [Kva; 3], gone: Kva) {
        for (name, on) in [("psi_disabled", 0), ("psi_cgroups_enabled", 1)] {
            self.guest.variable(name, &u64::to_le_bytes(on));
        }
        self.guest.variable("sched_clock_irqtime", &1u64.to_le_bytes());
        let system = self.guest.variable("psi_system", &[0; at::PSI as usize]);
        self.psi_group(system, 1);
        for (cgroup, factor) in [(lab, 10), (hot, 100), (gone, 1000)] {
            let group = self.guest.alloc(at::PSI);
            self.psi_group(group, factor);
            self.guest.write_u64(cgroup.offset(at::CGROUP_PSI), group.0);
        }
        self.guest.write_u64(root.offset(at::CGROUP_PSI), system.0);
        for cgroup in [root, lab, hot] {
            self.guest.write_u32(cgroup.offset(at::CSS_FLAGS), 0b11);
        }
        let [lab_node, hot_node, gone_node] = [lab, hot, gone].map(|c| c.offset(at::SIBLING));
        self.link(root.offset(at::CHILDREN), &[lab_node]);
        self.link(lab.offset(at::CHILDREN), &[gone_node, hot_node]);
        for cgroup in [hot, gone] {
            self.link(cgroup.offset(at::CHILDREN), &[]);
        }
    }

    /// A group's numbers: of state `i` the total is so many microseconds, the averages a quarter,
    /// a half and three quarters of a percent more than `i`.
    fn psi_group(&mut self, at: Kva, factor: u64) {
        self.guest.write(at.offset(at::PSI_ENABLED), &[1]);
        for state in 0..7u64 {
            let total = (state + 1) * factor * 1000 + 999;
            self.guest.write_u64(at.offset(at::PSI_TOTAL + 8 * state), total);
            for window in 0..3u64 {
                let within = at::PSI_AVG + 24 * state + 8 * window;
                self.guest.write_u64(at.offset(within), (state << 11) + 512 * (window + 1));
            }
        }
    }
}
