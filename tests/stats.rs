//! Statistics of a scheduler that is a program, which misbehaves in every way.

use std::process::Command;

use place::{Place, alone, project};

mod place;
mod support;

#[test]
fn a_scheduler_is_asked_for_its_statistics() {
    let _alone = alone();
    let place = Place::new();
    let program = place.path().join("statsched");
    let source = project("tests/schedulers/statsched.c");
    let built = Command::new("gcc").args(["-O1", "-Wall", "-o"]).args([&program, &source]).status();
    assert!(built.expect("gcc can be run").success());
    let kernel = support::kernel("debian:7.2");
    let prepared = support::scheduler("examples/schedulers/fifo.bpf.c", &kernel);
    let object = place.path().join("fifo.bpf.o");
    std::fs::write(&object, prepared.object.expect("an object")).expect("it can be written");
    let script = include_str!("scripts/stats.rhai")
        .replace("@PROGRAM@", &program.display().to_string())
        .replace("@OBJECT@", &object.display().to_string());
    place.file("stats.rhai", script);
    let said = place.run(&["run", "stats.rhai", "--kernel", "debian:7.2"]);
    println!("{}{}", said.out, said.err);
    assert!(said.about("statistics, good and bad").contains("PASS"), "{said:?}");
}
