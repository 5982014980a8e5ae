//! Scheduling domains and pressure of the made-up machine.

use crate::introspect::made_up_sched::Machine;
use crate::introspect::made_up_sched::pressure::at;
use crate::mem::Kva;
use crate::snapshot::testing::{changed, made_up, made_up_as};
use crate::snapshot::{CaptureRequest, Snapshot, SnapshotResult, Stall};

fn text<T: std::fmt::Debug>(result: SnapshotResult<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn domains_have_names_cpus_flags_and_groups() {
    let snap = made_up(true);
    let domains = snap.cpu(1).unwrap().domains().unwrap();
    let lines: Vec<String> = domains.iter().map(|domain| domain.headline()).collect();
    assert_eq!(lines, ["MC 0-1: 1 | 0", "PKG 0-1: 0-1"]);
    let mc = &domains[0];
    assert_eq!((mc.cpu(), mc.name(), mc.span().as_deref()), (1, Some("MC"), Ok("0-1")));
    assert_eq!(mc.flags().unwrap(), ["SD_BALANCE_NEWIDLE", "SD_SHARE_LLC"]);
    assert_eq!(mc.get("imbalance_pct").unwrap().as_u64(), Ok(117));
    assert_eq!(mc.get("parent.level").unwrap().as_u64(), Ok(1), "through the pointer");
    let group = &mc.groups().unwrap()[0];
    assert_eq!((group.span.as_str(), group.weight, group.capacity), ("1", 1, 900));
    assert!(text(mc.get("balance")).contains("balance_interval"));
    let snap = changed(|m| {
        let mc = Kva(m.guest.read_u64(m.rqs[0].offset(crate::introspect::made_up_sched::at::SD)));
        m.guest.write_u64(mc, mc.0);
        m.guest.write_u32(mc.offset(at::SD_FLAGS), 1 << 20);
    });
    let why = "the scheduling domains of CPU 0 could not be read: the domains run in a circle";
    assert_eq!(text(snap.cpu(0).unwrap().domains()), why);
    let bare = made_up_as(true, &CaptureRequest { sched: false, ..CaptureRequest::default() });
    assert!(text(bare.cpus()).contains("sched: false"));
}

#[test]
fn pressure_is_what_the_files_print() {
    let snap = made_up(true);
    let system = snap.psi(None).unwrap();
    let names: Vec<&str> = system.iter().map(|one| one.resource).collect();
    assert_eq!(names, ["cpu", "memory", "io", "irq"]);
    // State 4 and the one behind it, which the system does not have.
    let cpu = Stall { avg10: 4.25, avg60: 4.5, avg300: 4.75, total: 5 };
    assert_eq!((system[0].some, system[0].full), (Some(cpu), Some(Stall::default())));
    let irq = Stall { avg10: 6.25, avg60: 6.5, avg300: 6.75, total: 7 };
    assert_eq!((system[3].some, system[3].full), (None, Some(irq)));
    assert_eq!(snap.psi(Some("/")), Ok(system));
    let hot = snap.psi(Some("/lab/hot/")).unwrap();
    assert_eq!((hot[0].full.unwrap().total, hot[1].some.unwrap().total), (600, 300));
    assert_eq!(snap.psi_cgroups().unwrap(), ["/lab", "/lab/hot"]);
    assert_eq!(
        text(snap.psi(Some("/lab/hat"))),
        "psi(\"/lab/hat\") found nothing in \"cgroups\", which has 2 entries; keys there: \
         /lab/hot, /lab"
    );
}

#[test]
fn pressure_that_is_not_accounted_for_is_no_zero() {
    let set = |name: &'static str, n: u32| {
        changed(move |m: &mut Machine| {
            let at = Kva(m.guest.address(name));
            m.guest.write_u32(at, n);
        })
    };
    let off = |snap: std::sync::Arc<Snapshot>, cgroup| text(snap.psi(cgroup));
    assert_eq!(
        off(set("psi_disabled", 1), None),
        "the pressure of the system could not be read: the kernel does not account for pressure \
         (PSI is off); boot it with psi=1 on its command line: the scenario option kargs: [\"psi=1\"]"
    );
    let of_lab = off(set("psi_cgroups_enabled", 0), Some("/lab"));
    assert!(of_lab.contains("cgroup_disable=pressure"), "{of_lab}");
    let snap = changed(|m| {
        let root = Kva(m.guest.address("cgrp_dfl_root")).offset(8);
        let lab = m.guest.read_u64(root.offset(at::CHILDREN)) - at::SIBLING;
        let group = Kva(m.guest.read_u64(Kva(lab).offset(at::CGROUP_PSI)));
        m.guest.write(group.offset(at::PSI_ENABLED), &[0]);
    });
    assert!(text(snap.psi(Some("/lab"))).contains("write 1 to its cgroup.pressure"));
    assert!(snap.psi(None).is_ok() && snap.psi(Some("/lab/hot")).is_ok());
    let snap = set("sched_clock_irqtime", 0);
    assert!(snap.psi(None).unwrap().iter().all(|one| one.resource != "irq"));
}
