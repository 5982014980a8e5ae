//! Registers, stacks, and what lies at addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::snapshot::testing::{made_up, made_up_capturer, made_up_ram, meta};
use crate::snapshot::{CaptureRequest, CpuRegisters, MAX_RAM, Snapshot, SnapshotError};

/// The registers of one CPU, in the kernel or in a program.
fn regs(cpu: u32, cs: u64) -> CpuRegisters {
    let values = [("rip", u64::MAX - 7), ("rsp", 1 << 63), ("cs", cs)];
    let values: BTreeMap<String, u64> = values.map(|(name, n)| (name.to_owned(), n)).into();
    CpuRegisters { cpu, halted: cpu == 1, values }
}

fn with(taken: Vec<CpuRegisters>, missing: Option<&str>) -> Arc<Snapshot> {
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    assert!(request.wants_registers());
    let raw = made_up_capturer(true).capture(&request).expect("it can be captured");
    raw.with_registers(taken, missing.map(str::to_owned)).finish(meta("end"))
}

fn text<T>(result: Result<T, SnapshotError>) -> String {
    result.map(drop).expect_err("it must not succeed").to_string()
}

#[test]
fn registers_are_kept_in_files() {
    let live = with(vec![regs(0, 0x10), regs(1, 0x33)], None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    live.save(&path).unwrap();
    for snap in [live, Snapshot::open(&path).unwrap()] {
        for (cpu, cs) in [(0, 0x10), (1, 0x33)] {
            let cpu = snap.cpu(cpu).unwrap();
            let taken = cpu.registers().unwrap();
            assert_eq!(taken, &regs(cpu.number(), cs));
            assert_eq!(taken.in_user_mode(), cs == 0x33);
        }
    }
}

#[test]
fn registers_that_are_missing_say_why() {
    let not_taken = "the registers of CPU 1 could not be read: they were not taken; freeze with \
                     t.freeze(\"tag\", #{ registers: true })";
    assert_eq!(text(made_up(true).cpu(1).unwrap().registers()), not_taken);
    let some = with(vec![regs(0, 0x10)], Some("the engine is gone"));
    assert!(some.cpu(0).unwrap().registers().is_ok());
    assert_eq!(
        text(some.cpu(1).unwrap().registers()),
        "the registers of CPU 1 could not be read: the engine is gone"
    );
    let fewer = with(vec![regs(0, 0x10)], None);
    assert_eq!(
        text(fewer.cpu(1).unwrap().registers()),
        "the registers of CPU 1 could not be read: the machine has no such CPU"
    );
}

#[test]
fn stacks_that_cannot_be_followed_say_why() {
    let parts = made_up(true);
    let kept = "the guest's memory could not be read: it was not kept; freeze with \
                t.freeze(\"tag\", #{ ram: true })";
    assert_eq!(text(parts.cpu(0).unwrap().stack()), kept);
    assert_eq!(text(parts.task(42).unwrap().stack()), kept);
    assert_eq!(
        text(made_up_ram().task(42).unwrap().stack()),
        "a kernel stack could not be read: the kernel has no symbol '__start_orc_header'"
    );
}

#[test]
fn addresses_have_names_and_types() {
    let snap = made_up_ram();
    let at = snap.symbols().unwrap().addresses("jiffies_64")[0];
    assert_eq!(snap.symbol(at).unwrap().as_deref(), Some("jiffies_64"));
    assert_eq!(snap.symbol(at + 5).unwrap().as_deref(), Some("jiffies_64+0x5"));
    for elsewhere in [0, 0x1000, snap.task(42).unwrap().address(), u64::MAX] {
        assert_eq!(snap.symbol(elsewhere).unwrap(), None, "{elsewhere:#x}");
    }
    assert_eq!(snap.kernel_at(at, "u64").unwrap().as_u64().unwrap(), 4_294_892_296);
    let task = snap.task(42).unwrap();
    let by_address = snap.kernel_at(task.address(), "struct task_struct").unwrap();
    assert_eq!(by_address.get("pid").unwrap().as_i64().unwrap(), 42);
    assert!(text(snap.kernel_at(at, "struct tsk_struct")).contains("did you mean \"struct task_"));
    assert!(text(snap.kernel_at(0x1000, "u64")).contains("no page is mapped at 0x1000"));
    assert!(text(made_up(true).kernel_at(0x1000, "u64")).contains("was not copied"));
}
