//! The scheduling state of a made-up machine, whole and damaged.

mod monitor;

use std::time::Duration;

use proptest::prelude::*;

use super::testing::modules::at as made;
use super::testing::pressure::at as pressure;
use super::testing::{Machine, at};
use super::*;
use crate::mem::Kva;

fn budget() -> Budget {
    Budget::new(64 << 20, Duration::from_secs(20))
}

fn copy_with(machine: Machine, variables: &[String], mut budget: Budget) -> RawSched {
    let kernel = Kernel::open(machine.guest.mem()).unwrap();
    kernel.copy_sched(SchedRequest { state: true, variables }, &mut budget)
}

fn copy(machine: Machine) -> RawSched {
    copy_with(machine, &[], budget())
}

fn pids(machine: &Machine, tasks: impl Iterator<Item = u64>) -> Vec<u32> {
    let pid = |at: u64| machine.tasks.iter().find(|(_, kva)| kva.0 == at).map(|(pid, _)| *pid);
    tasks.map(|at| pid(at).unwrap_or(999)).collect()
}

/// A queue with the numbers of its tasks.
type Queue = (DsqKind, Vec<u32>);

/// Tasks by number, and queues with theirs.
fn outline(machine: impl Fn() -> Machine) -> (RawSched, Vec<u32>, Vec<Queue>) {
    let (known, raw) = (machine(), copy(machine()));
    let tasks = pids(&known, raw.tasks.iter().map(|task| task.at));
    let queues = raw.dsqs.iter().map(|d| (d.kind, pids(&known, d.tasks.iter().copied()))).collect();
    (raw, tasks, queues)
}

#[test]
fn everything_is_found_in_its_order() {
    let (raw, tasks, queues) = outline(|| Machine::new(true));
    assert_eq!((raw.unreadable.as_ref(), raw.tasks_incomplete.as_ref()), (None, None));
    assert_eq!(tasks, [1, 40, 41, 42, 50]);
    let paths: Vec<(u64, &str)> = raw.cgroups.iter().map(|c| (c.id, c.path.as_str())).collect();
    assert_eq!(paths, [(1, "/"), (300, "/lab/hot")]);
    let groups: Vec<Option<usize>> = raw.tasks.iter().map(|task| task.cgroup).collect();
    assert_eq!(groups, [Some(0), Some(1), Some(1), Some(1), Some(1)]);
    use DsqKind::{Bypass, Global, Local, User};
    assert_eq!(
        queues,
        [
            (Local, vec![1]),
            (Local, vec![]),
            (Bypass, vec![]),
            (Bypass, vec![]),
            (Global, vec![]),
            (User, vec![41, 42])
        ]
    );
    assert!(raw.dsqs.iter().all(|dsq| dsq.incomplete.is_none()), "{:?}", raw.dsqs);
    let scx = raw.scx.unwrap();
    assert_eq!((scx.state.as_deref(), scx.scheds.len()), (Some("enabled"), 1));
    assert_eq!((scx.incomplete, scx.scheds[0].pcpu.len()), (None, 2));
    assert!(raw.cpus.iter().all(|cpu| cpu.incomplete.is_none() && cpu.cpustat.is_some()));
    // The idle task of CPU 1 is in no list.
    assert!(raw.memory.get(raw.cpus[1].idle, at::TASK).is_some());
}

#[test]
fn a_kernel_without_sched_ext_has_tasks_and_cpus() {
    let (raw, tasks, queues) = outline(|| Machine::new(false));
    assert_eq!(tasks, [1, 40, 41, 42, 50]);
    assert_eq!((raw.scx, queues), (None, vec![]));
    assert_eq!(raw.cpus.len(), 2);
}

#[test]
fn what_runs_in_a_circle_or_nowhere_is_partial_and_says_why() {
    type Harm = fn(&mut Machine);
    let cases: [(Harm, &[u32], &str); 4] = [
        // The list of leaders comes back to its second element.
        (
            |m| {
                let [from, to] = [50, 40].map(|pid| m.tasks[&pid].offset(at::TASKS));
                m.guest.write_u64(from, to.0);
            },
            &[1, 40, 41, 42, 50],
            "runs in a circle",
        ),
        (
            |m| {
                let from = m.tasks[&40].offset(at::TASKS);
                m.guest.write_u64(from, 0xdead_beef_0000);
            },
            &[1, 40, 41, 42],
            "0xdeadbeef0000 is not a canonical address",
        ),
        // Threads that lead into another group's list.
        (
            |m| {
                let [from, to] = [42, 50].map(|pid| m.tasks[&pid].offset(at::THREAD_NODE));
                m.guest.write_u64(from, to.0);
            },
            &[1, 40, 41, 42, 50],
            "",
        ),
        (
            |m| {
                let at = m.tasks[&40].offset(at::SIGNAL);
                m.guest.write_u64(at, u64::MAX - 7);
            },
            &[1, 40, 50],
            "cannot",
        ),
    ];
    for (harm, want, why) in cases {
        let harmed = || {
            let mut machine = Machine::new(true);
            harm(&mut machine);
            machine
        };
        let (raw, mut tasks, _) = outline(harmed);
        tasks.retain(|pid| *pid != 999);
        assert_eq!(tasks, want, "{:?}", raw.tasks_incomplete);
        let told = raw.tasks_incomplete.unwrap_or_default();
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn queues_that_are_damaged_or_being_changed_say_so() {
    let queue = |harm: fn(&mut Machine)| {
        let mut machine = Machine::new(true);
        harm(&mut machine);
        let mut raw = copy(machine);
        let last = raw.dsqs.pop().unwrap();
        (last.kind, last.tasks.len(), last.incomplete.unwrap_or_default(), raw.scx.unwrap())
    };
    let (kind, len, why, _) = queue(|m| m.guest.write_u32(m.user_dsq.offset(at::NR), 3));
    assert_eq!((kind, len), (DsqKind::User, 2));
    assert_eq!(why, "it counts 3 tasks and lists 2: it is being changed");
    let (_, len, why, _) = queue(|m| {
        let at = m.tasks[&42].offset(at::DSQ_NODE);
        m.guest.write_u64(at, 0x1000);
    });
    assert!(len >= 2 && why.contains("cannot"), "{len} {why}");
    let (_, _, why, _) = queue(|m| {
        let [from, to] = [42, 41].map(|pid| m.tasks[&pid].offset(at::DSQ_NODE));
        m.guest.write_u64(from, to.0);
    });
    assert!(why.contains("runs in a circle"), "{why}");
    // The table of queues: absurd, in pieces, a chain that comes back.
    let (kind, _, _, scx) = queue(|m| m.guest.write_u32(m.table, u32::MAX));
    assert_eq!(kind, DsqKind::Global);
    assert_eq!(
        scx.incomplete.as_deref(),
        Some("the table of dispatch queues has 4294967295 buckets")
    );
    let (_, _, _, scx) = queue(|m| m.guest.write_u32(m.table.offset(4), 1));
    assert_eq!(scx.incomplete.as_deref(), Some("the table of dispatch queues is in pieces"));
    let (kind, ..) = queue(|m| {
        let node = m.user_dsq.offset(at::HASH_NODE);
        m.guest.write_u64(node, node.0);
    });
    assert_eq!(kind, DsqKind::User);
}

#[test]
fn domains_are_followed_to_their_end() {
    let raw = copy(Machine::new(true));
    assert_eq!(raw.domain_flags.iter().map(|(bit, _)| *bit).collect::<Vec<_>>(), [1, 2, 512]);
    for (cpu, domains) in raw.domains.iter().enumerate() {
        assert_eq!(domains.incomplete, None);
        let names: Vec<_> = domains.chain.iter().map(|d| d.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["MC", "PKG"]);
        let masks = |domain: &DomainAt| {
            assert_eq!(raw.memory.u64(domain.span), Some(0b11));
            domain.groups.iter().map(|g| raw.memory.u64(g.span).unwrap()).collect::<Vec<_>>()
        };
        // The own group comes first.
        let mc = if cpu == 0 { [1, 2] } else { [2, 1] };
        assert_eq!(masks(&domains.chain[0]), mc);
        assert_eq!(masks(&domains.chain[1]), [3]);
    }
    let damaged = |harm: fn(&mut Machine, Kva)| {
        let mut machine = Machine::new(true);
        let mc = Kva(machine.guest.read_u64(machine.rqs[0].offset(at::SD)));
        harm(&mut machine, mc);
        copy(machine).domains.swap_remove(0)
    };
    let domains = damaged(|m, mc| m.guest.write_u64(mc, mc.0));
    assert_eq!(domains.chain.len(), 1);
    assert_eq!(domains.incomplete.as_deref(), Some("the domains run in a circle"));
    let domains = damaged(|m, mc| m.guest.write_u64(mc, 0x1000));
    assert_eq!(domains.chain.len(), 1);
    assert!(domains.incomplete.unwrap().contains("cannot"));
    // Groups that never come back to the first one.
    let domains = damaged(|m, mc| {
        let first = Kva(m.guest.read_u64(mc.offset(8)));
        let second = Kva(m.guest.read_u64(first));
        m.guest.write_u64(second, second.0);
    });
    let why = domains.chain[0].incomplete.as_deref();
    assert_eq!(why, Some("there are more than 65536 groups"));
    let domains = damaged(|m, mc| m.guest.write_u64(mc.offset(8), u64::MAX - 63));
    assert!(domains.chain[0].incomplete.as_ref().unwrap().contains("cannot"));
}

#[test]
fn pressure_is_found_of_the_system_and_of_each_cgroup() {
    let paths = |psi: &Psi| {
        let named = |group: &PsiAt| group.cgroup.clone().unwrap_or_default();
        psi.groups.iter().map(named).collect::<Vec<_>>()
    };
    let changed = |harm: fn(&mut Machine)| {
        let mut machine = Machine::new(true);
        harm(&mut machine);
        copy(machine).psi.unwrap()
    };
    let psi = changed(|_| {});
    assert_eq!(paths(&psi), ["", "/lab", "/lab/hot"], "the one that is gone is left out");
    assert_eq!((psi.irq, &psi.off, &psi.incomplete), (true, &None, &None));
    assert!(psi.groups.iter().all(|group| group.incomplete.is_none()));
    let psi = changed(|m| {
        let at = Kva(m.guest.address("psi_disabled"));
        m.guest.write_u32(at, 1);
    });
    assert!(psi.off.unwrap().contains("psi=1"));
    let psi = changed(|m| {
        let at = Kva(m.guest.address("psi_cgroups_enabled"));
        m.guest.write_u32(at, 0);
    });
    assert_eq!(paths(&psi), [""]);
    assert!(psi.cgroups_off.unwrap().contains("cgroup_disable=pressure"));
    // A list of children that leads back into itself.
    let psi = changed(|m| {
        let root = Kva(m.guest.address("cgrp_dfl_root")).offset(8);
        let lab = Kva(m.guest.read_u64(root.offset(pressure::CHILDREN)));
        m.guest.write_u64(lab, lab.0);
    });
    assert!(psi.incomplete.unwrap().contains("runs in a circle"));
    // A cgroup whose path leads nowhere.
    let psi = changed(|m| {
        let hot = Kva(m.guest.read_u64(m.groups[1]));
        let node = Kva(m.guest.read_u64(hot));
        m.guest.write_u64(node, 0x1000);
    });
    assert_eq!(paths(&psi), ["", "/lab"]);
    assert!(psi.incomplete.unwrap().contains("the path of the cgroup at 0x"));
    assert_eq!(paths(&copy(Machine::new(false)).psi.unwrap()).len(), 3);
}

#[test]
fn a_budget_that_runs_out_leaves_a_part_with_the_reason() {
    let raw = copy_with(Machine::new(true), &[], Budget::new(600, Duration::from_secs(20)));
    let why = raw.tasks_incomplete.unwrap();
    assert!(why.contains("the capture's budget of 600 bytes ran out"), "{why}");
    assert!(raw.memory.len() <= 600);
    let late = Budget::new(1 << 20, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(1));
    let raw = copy_with(Machine::new(true), &[], late);
    assert!(raw.tasks.is_empty() && raw.tasks_incomplete.is_some());
    assert!(raw.cpus.iter().all(|cpu| cpu.incomplete.is_some()));
}

#[test]
fn where_room_is_short_of_each_task_only_what_matters_is_copied() {
    let machine = Machine::new(true);
    let spin = machine.tasks[&50].0;
    let raw = copy_with(machine, &[], Budget::new(1700, Duration::from_secs(20)));
    assert_eq!((raw.tasks_incomplete, raw.tasks.len()), (None, 5));
    assert_eq!(raw.memory.u32(spin + 28), Some(50), "its number");
    assert!(raw.memory.get(spin + at::COMM, 16).is_some());
    assert!(raw.memory.get(spin, at::TASK).is_none());
}

#[test]
fn variables_are_copied_to_their_end() {
    let names = ["jiffies_64", "runqueues", "nothing"].map(str::to_owned);
    let raw = copy_with(Machine::new(true), &names, budget());
    let [jiffies, _, nothing] = &raw.variables[..] else { panic!("{:?}", raw.variables) };
    let Where::Once(at) = jiffies.place else { panic!("{jiffies:?}") };
    // The next symbol begins sixteen bytes on.
    assert_eq!((jiffies.len, jiffies.ty), (16, None));
    assert_eq!(raw.memory.u64(at), Some(4_294_892_296));
    assert_eq!(nothing.place, Where::Nowhere("the kernel has no such symbol".into()));
}

#[test]
fn memory_is_used_again() {
    let kernel = Kernel::open(Machine::new(true).guest.mem()).unwrap();
    let request = SchedRequest { state: true, variables: &[] };
    let first = kernel.copy_sched(request, &mut budget());
    let (len, tasks) = (first.memory.len(), first.tasks.clone());
    kernel.recycle_sched(first);
    let again = kernel.copy_sched(request, &mut budget());
    assert_eq!((again.memory.len(), again.tasks), (len, tasks));
    let (bytes, pieces) = again.memory.into_parts();
    assert_eq!(bytes.len(), len);
    assert_eq!(pieces.iter().map(|p| p.len).sum::<usize>(), len);
}

/// The made-up module and another of the same table: `count` symbols of one name, as long as names
/// can be.
fn with_symbols(count: u32) -> Machine {
    let mut machine = Machine::new(true);
    let (guest, module) = (&mut machine.guest, &machine.module);
    let names = guest.alloc(512);
    guest.write(names, &[b'x'; 511]);
    let table = guest.alloc(24 * u64::from(count));
    let mut symbol = [0; 24];
    (symbol[6], symbol[15]) = (1, 0xff);
    guest.write(table, &symbol.repeat(count as usize));
    guest.write_u64(module.table, table.0);
    guest.write_u64(module.table.offset(16), names.0);
    guest.write_u32(module.table.offset(made::NUM), count);
    let other = guest.alloc(made::MODULE);
    for word in (0..made::MODULE).step_by(8) {
        let value = guest.read_u64(module.at.offset(word));
        guest.write_u64(other.offset(word), value);
    }
    let head = Kva(guest.address("modules"));
    let nodes = [module.at, other].map(|at| at.offset(made::LIST));
    machine.link(head, &nodes);
    machine
}

#[test]
fn symbols_of_modules_are_charged_and_bounded_in_all() {
    let kernel = Kernel::open(with_symbols(1000).guest.mem()).unwrap();
    let request = SchedRequest { state: true, variables: &[] };
    let mut wide = budget();
    let raw = kernel.copy_sched(request, &mut wide);
    assert!(raw.modules.iter().all(|m| m.symbols.len() == 1000 && m.incomplete.is_none()));
    let least = 2 * 1000 * (511 + size_of::<ModuleSymbol>() as u64);
    assert!(budget().left() - wide.left() >= least, "{}", wide.left());
    // Those that were read before are there, and only those that are asked for are looked up.
    let wanted = ["x".repeat(511), "y".to_owned()];
    assert_eq!(kernel.module_symbols(&wanted), std::iter::once("x".repeat(511)).collect());
    assert!(kernel.module_symbols(&[]).is_empty());
    let raw = copy_with(with_symbols(1000), &[], Budget::new(400_000, Duration::from_secs(20)));
    let why = raw.modules[0].incomplete.as_deref().unwrap();
    assert!(why.contains("the capture's budget of 400000 bytes ran out"), "{why}");
    // One fits, both do not, the second time neither.
    let kernel = Kernel::open(with_symbols(40_000).guest.mem()).unwrap();
    for _ in 0..2 {
        let raw = kernel.copy_sched(request, &mut budget());
        assert_eq!(raw.modules[0].symbols.len(), 40_000);
        let why = raw.modules[1].incomplete.as_deref().unwrap();
        assert!(why.starts_with("its symbols: with them, all modules have more than"), "{why}");
        assert!(raw.modules[1].symbols.is_empty());
    }
}

/// A place, a word in it, what is written there, and whether that leads anywhere.
type Write = (usize, u64, u64, bool);

/// What a guest may write at any time.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    prop::collection::vec((0usize..9, 0u64..24, any::<u64>(), any::<bool>()), 1..12)
}

/// Writes that into tasks, queues and runqueues.
fn write_anything(machine: &mut Machine, words: Vec<Write>) {
    let mut places: Vec<Kva> = machine.tasks.values().copied().collect();
    places.extend([machine.sched, machine.table, machine.user_dsq, machine.rqs[0]]);
    for (place, word, value, wild) in words {
        let at = places[place % places.len()].offset(word * 8 % at::DSQ);
        let value = if wild { value } else { places[value as usize % places.len()].0 };
        machine.guest.write_u64(at, value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever a guest writes whatever it likes, a copy ends and is bounded.
    #[test]
    fn no_guest_makes_a_copy_panic_or_hang(
        words in writes()
    ) {
        let mut machine = Machine::new(true);
        write_anything(&mut machine, words);
        let raw = copy(machine);
        prop_assert!(raw.tasks.len() <= MAX_TASKS);
        prop_assert!(raw.memory.len() < 1 << 20);
    }
}
