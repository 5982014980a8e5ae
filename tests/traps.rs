//! Traps: machines that stand still by themselves, at a write or at an instruction.

mod place;
mod support;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use cryoscope::freeze::{Bridge, ExitOrder, ExitWay};
use cryoscope::mem::GuestMem;
use cryoscope::snapshot::{CaptureRequest, Meta, Trigger};
use cryoscope::vm::{
    Boot, Capabilities, Capability, Console, Engine, ExitInfo, ExitWatch, RENDEZVOUS, Registers,
    Standstill, VmError,
};
use cryoscope::wire::Op;
use place::{Place, alone, project};
use support::Guest;
use support::traps::{self, Bench};

fn traps_of_an_engine(boot: Boot) {
    let mut guest = Guest::boot(boot, "1n1l2c1t", |_| {});
    let mut engine = guest.take_engine();
    assert!(engine.capabilities().has(Capability::Breakpoints));
    let mut bench = Bench::new(&mut *engine, &guest.channel);
    traps::writes_are_trapped_one_by_one(&mut bench);
    traps::instructions_are_trapped_once(&mut bench);
    traps::the_kernels_own_breakpoints_stay_its_own(&mut bench);
}

#[test]
fn a_kernel_with_kaslr_is_trapped() {
    traps_of_an_engine(support::bzimage(&support::kernel("debian:7.2")));
}

#[test]
fn an_elf_kernel_is_trapped() {
    traps_of_an_engine(support::elf(&support::kernel("debian:7.3")));
}

fn scripts(kernel: &str, boot: &str) {
    let _alone = alone();
    let place = Place::new();
    let schedulers = project("tests/schedulers").display().to_string();
    let script = include_str!("scripts/traps.rhai")
        .replace("@KERNEL@", kernel)
        .replace("@BOOT@", boot)
        .replace("@SCHEDULERS@", &schedulers);
    place.file("traps.rhai", script);
    let said = place.run(&["run", "traps.rhai", "-j", "1", "--keep", "kept"]);
    println!("{}{}", said.out, said.err);
    for name in [
        "writes are captured one by one",
        "a hot place does not wedge the machine",
        "a scheduler's own variable is watched",
        "what cannot be watched is refused",
        "a scheduler's own error is captured",
        "the watchdog's ejection is captured",
        "a killed scheduler is captured",
        "one that is detached is not",
    ] {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
    // What a report says of a scheduler that was meant to stay.
    let told = said.about("one that is missed is told");
    for part in [
        "FAIL",
        "the scheduler left unasked after ",
        "exit: error_bpf (",
        "): had enough of pid ",
        "captured because of a scheduler's exit, trapped in scx_",
        ", which ran ",
        "globals then: ",
        "nr_enqueued = ",
        "all of it: snapshot \"error exit\"",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let kept = place.path().join("kept/09-one-that-is-missed-is-told/error-exit.cryo");
    let file = kept.display().to_string();
    let shown = place.run(&["snapshot", "show", &file]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.out.contains("snapshot \"error exit\" at "), "{shown:?}");
}

#[test]
fn scripts_watch_and_see_schedulers_die_with_kaslr() {
    scripts("debian:7.2", "bzimage");
}

#[test]
fn scripts_watch_and_see_schedulers_die_on_the_newest_kernel() {
    scripts("debian:7.3", "elf");
}

#[test]
fn the_book_and_the_example_are_right() {
    let _alone = alone();
    let place = Place::new();
    let book = std::fs::read_to_string(project("docs/traps.md")).expect("the book");
    let scripts = book.split("```rhai\n").skip(1).map(|rest| rest.split("```").next());
    let scripts: String = scripts.map(|script| script.expect("a block ends")).collect();
    let mine = std::fs::read(project("tests/schedulers/exits.bpf.c")).expect("a scheduler");
    let example = std::fs::read(project("examples/who-writes.rhai")).expect("an example");
    place.file("book.rhai", scripts).file("mine.bpf.c", mine).file("who-writes.rhai", example);
    let said = place.run(&["run", "book.rhai", "who-writes.rhai", "-j", "1"]);
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    for name in ["writes are seen one by one", "it has had enough", "the clock only moves forward"]
    {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
    assert!(said.about("writes are seen one by one").contains("sysctl: 10 -> 20 in "), "{said:?}");
    assert!(said.about("it has had enough").contains("error_bpf: had enough of pid "), "{said:?}");
}

/// A machine without traps.
struct Blind(Box<dyn Engine>);

impl Engine for Blind {
    fn name(&self) -> &'static str {
        "blind"
    }
    fn capabilities(&self) -> Capabilities {
        let traps = [Capability::Watchpoints, Capability::Breakpoints];
        self.0.capabilities().iter().filter(|can| !traps.contains(can)).collect()
    }
    fn memory(&self) -> Arc<dyn GuestMem> {
        self.0.memory()
    }
    fn pause_within(&mut self, patience: Duration) -> Result<Duration, VmError> {
        self.0.pause_within(patience)
    }
    fn resume(&mut self) -> Result<Duration, VmError> {
        self.0.resume()
    }
    fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
        self.0.registers(cpu)
    }
    fn console(&self) -> Console {
        self.0.console()
    }
    fn take_transport(&mut self) -> Option<OwnedFd> {
        self.0.take_transport()
    }
    fn exit_watch(&self) -> ExitWatch {
        self.0.exit_watch()
    }
    fn stop(&mut self) -> ExitInfo {
        self.0.stop()
    }
}

#[test]
fn an_exit_that_cannot_be_trapped_is_polled_and_says_how_late_it_is() {
    let _alone = alone();
    let kernel = support::kernel("debian:7.3");
    let prepared = support::scheduler("tests/schedulers/exits.bpf.c", &kernel);
    let mut guest =
        Guest::boot(support::elf(&kernel), "1n1l2c1t", |fs| support::stage(fs, &prepared));
    let engine = Box::new(Blind(guest.take_engine()));
    let bridge = Bridge::start(engine, Standstill::default(), RENDEZVOUS).expect("a thread");
    let order = || {
        let (say, said) = channel();
        let order = ExitOrder {
            request: CaptureRequest { registers: true, ..CaptureRequest::default() },
            meta: Box::new(|| Meta { tag: "error exit".into(), ..Meta::default() }),
            tell: Box::new(move |snapshot| drop(say.send(snapshot))),
        };
        (order, said)
    };
    let none = bridge.expect_exits(order().0).expect_err("no scheduler is attached").to_string();
    assert!(none.contains("no scheduler is attached"), "{none}");
    guest.call(support::attach(&prepared));
    let (order, said) = order();
    let way = bridge.expect_exits(order).unwrap_or_else(|e| panic!("{e}"));
    let ExitWay::Polled { because, .. } = way else { panic!("{way:?}") };
    assert_eq!(because, "the engine blind has no breakpoints");
    // Each of its starts and ends is a reason for the scheduler to look at the clock.
    let sleep = || Op::Exec { argv: vec!["sleep".into(), "0.1".into()], timeout_ms: 60_000 };
    let snap = (0..600).find_map(|_| {
        guest.call(sleep());
        said.try_recv().ok()
    });
    let snap = snap.expect("a snapshot of its end");
    let Trigger::ErrorExit { cpu: None, function: None, late_us: Some(_) } = snap.trigger() else {
        panic!("{:?}", snap.trigger());
    };
    let scheds = snap.scheds().unwrap_or_else(|e| panic!("{e}"));
    let exit = scheds[0].exit().unwrap_or_else(|e| panic!("{e}")).expect("it leaves");
    assert_eq!(exit.kind, "error_bpf");
    assert!(exit.message.contains("had enough of pid "), "{exit:?}");
    assert!(said.try_recv().is_err(), "once");
    bridge.stop().unwrap_or_else(|e| panic!("{e}"));
}
