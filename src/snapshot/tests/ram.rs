//! All of a machine's memory.

use crate::snapshot::ram::{About, Ram, Run};
use crate::snapshot::testing::{made_up, made_up_as, made_up_capturer, made_up_ram};
use crate::snapshot::{CaptureRequest, MAX_RAM, Snapshot};
use std::sync::Arc;

fn text<T: std::fmt::Debug>(result: Result<T, crate::snapshot::SnapshotError>) -> String {
    result.expect_err("it must not succeed").to_string()
}

#[test]
fn every_symbol_can_be_read_and_pointers_lead_anywhere() {
    let snap = made_up_ram();
    let init = snap.kernel("init_task", Some("struct task_struct")).unwrap();
    assert_eq!(init.get("pid").unwrap().as_i64().unwrap(), 0);
    let jiffies = snap.kernel("jiffies_64", Some("u64")).unwrap();
    assert_eq!(jiffies.as_u64().unwrap(), 4_294_892_296);
    // From a symbol that nobody asked for, through a pointer, into a struct.
    let root = snap.kernel("scx_root", Some("struct scx_sched *")).unwrap();
    let name = snap.sched().unwrap().ops().unwrap().as_str().unwrap();
    assert_eq!(root.get("ops.name").unwrap().as_str().unwrap(), name);
    let class = snap.kernel("ext_sched_class", None).unwrap();
    assert_eq!(class.raw().unwrap().len(), 16);
}

#[test]
fn all_of_memory_agrees_with_what_was_copied_by_itself() {
    let (whole, parts) = (made_up_ram(), made_up(true));
    let ram = whole.ram().unwrap();
    let mut compared = 0;
    for task in parts.tasks().unwrap() {
        let bytes = task.whole().unwrap().raw().unwrap();
        assert_eq!(ram.at(task.address(), bytes.len() as u64).unwrap(), bytes);
        let physical = ram.translate(task.address()).unwrap();
        assert_eq!(ram.physical(physical, bytes.len() as u64).unwrap(), bytes);
        compared += 1;
    }
    assert!(compared > 3, "{compared}");
    assert!(ram.kept() > 0 && ram.kept() < ram.size(), "{ram:?}");
    assert_eq!(whole.bytes() - ram.kept(), made_up_as(true, &CaptureRequest::default()).bytes());
}

#[test]
fn what_cannot_be_read_says_why() {
    let snap = made_up_ram();
    let task = snap.task(42).unwrap();
    let at = task.address();
    let place = crate::snapshot::kernel::at_address(&snap, 0x1000, "struct rq", "x");
    assert_eq!(
        text(place.unwrap().get("nr_running")),
        "the struct rq at 0x1000 could not be read: nr_running (4 bytes at 0x1000) is not there: no \
         page is mapped at 0x1000"
    );
    let odd = snap.ram().unwrap().at(1 << 63, 8).unwrap_err();
    assert!(odd.ends_with("is not a canonical address"), "{odd}");
    assert_eq!(
        snap.ram().unwrap().at(at, 1 << 40).unwrap_err(),
        "1099511627776 bytes are more than 64 MiB at once"
    );
    // Without memory the advice is to keep it.
    let parts = made_up(true);
    let place = crate::snapshot::kernel::at_address(&parts, 0x1000, "struct rq", "x");
    assert_eq!(
        text(place.unwrap().get("nr_running")),
        "the struct rq at 0x1000 could not be read: nr_running (4 bytes at 0x1000) was not copied: \
         a freeze copies CPUs, tasks, dispatch queues, schedulers, what timers, lists, trees and kptrs \
         in maps lead to, and what its option `kernel` names; `ram: true` keeps all of memory, as in t.freeze(\"tag\", #{ ram: true })"
    );
    assert_eq!(
        text(parts.ram()),
        "the guest's memory could not be read: it was not kept; freeze with t.freeze(\"tag\", #{ \
         ram: true })"
    );
}

#[test]
fn more_memory_than_is_kept_is_told_before_and_after() {
    let request = CaptureRequest { ram: Some(1 << 20), ..CaptureRequest::default() };
    let snap: Arc<Snapshot> = made_up_as(true, &request);
    assert_eq!(snap.tasks().unwrap().len(), made_up(true).tasks().unwrap().len());
    let error = text(snap.ram());
    assert!(error.contains("MiB of it, a freeze with `ram` keeps at most 1 MiB"), "{error}");
    let error = text(snap.kernel("ext_sched_class", None));
    assert!(
        error.contains("it was not copied; of all memory nothing was kept: the guest has used")
    );
    let capturer = made_up_capturer(true);
    let missing = capturer.prepare(&request).unwrap();
    assert_eq!(missing.len(), 1);
    assert!(missing[0].to_string().contains("give the machine less memory"), "{}", missing[0]);
    let request = CaptureRequest { ram: Some(MAX_RAM), ..CaptureRequest::default() };
    assert!(capturer.prepare(&request).unwrap().is_empty());
    let snap = capturer.capture(&request).unwrap().finish(crate::snapshot::testing::meta("t"));
    assert_eq!(snap.ram().unwrap().kept(), made_up_ram().ram().unwrap().kept());
}

#[test]
fn parts_that_contradict_themselves_are_refused() {
    let about = |regions: &[(u64, u64)]| About { regions: regions.to_vec(), ..About::default() };
    let run = |at, len, offset| Run { at, len, offset };
    let bytes = || Box::new(vec![7u8; 0x3000]);
    let ram = Ram::new(
        about(&[(0, 0x4000), (0x8000, 0x2000)]),
        vec![run(0x1000, 0x2000, 0x1000), run(0x9000, 0x1000, 0)],
        bytes(),
    );
    let ram = ram.unwrap();
    assert_eq!(ram.physical(0xffe, 4).unwrap(), [0, 0, 7, 7]);
    assert_eq!(ram.physical(0x2ffe, 4).unwrap(), [7, 7, 0, 0]);
    assert!(ram.physical(0x3ffe, 4).is_err(), "that leaves the region");
    assert!(ram.physical(u64::MAX, 4).is_err());
    let regions: [&[(u64, u64)]; 4] = [
        &[(0, 0)],
        &[(0, 0x2000), (0x1000, 0x1000)],
        &[(0x1000, u64::MAX)],
        &[(0x2000, 0x1000), (0, 0x1000)],
    ];
    for regions in regions {
        assert!(Ram::new(about(regions), vec![], bytes()).is_err(), "{regions:x?}");
    }
    let runs: [&[Run]; 6] = [
        &[run(0x3000, 0x2000, 0)],
        &[run(0x5000, 0x1000, 0)],
        &[run(0, 0x2000, 0x2000)],
        &[run(0, 0x1000, u64::MAX)],
        &[run(0, 0x2000, 0), run(0x1000, 0x1000, 0)],
        &[run(u64::MAX - 1, 0x1000, 0)],
    ];
    for runs in runs {
        assert!(Ram::new(about(&[(0, 0x4000)]), runs.to_vec(), bytes()).is_err(), "{runs:x?}");
    }
}
