//! Traps: machines that stand still by themselves, at a write or at an instruction.

mod place;
mod support;

use cryoscope::vm::Boot;
use place::{Place, alone, project};
use support::Guest;
use support::traps::{self, Bench};

fn traps_of_an_engine(boot: Boot) {
    let mut guest = Guest::boot(boot, "1n1l2c1t", |_| {});
    let mut engine = guest.take_engine();
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
    let kept = place.path().join("kept/08-one-that-is-missed-is-told/error-exit.cryo");
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
