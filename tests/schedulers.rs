//! Schedulers that are attached, replaced and restarted while a scenario runs.

use place::{Place, alone, project};

mod place;

#[test]
fn schedulers_come_and_go() {
    let _alone = alone();
    let place = Place::new();
    let path = |name: &str| project(name).display().to_string();
    let script = include_str!("scripts/schedulers.rhai")
        .replace("@FIFO@", &path("examples/schedulers/fifo.bpf.c"))
        .replace("@EXITS@", &path("tests/schedulers/exits.bpf.c"));
    place.file("schedulers.rhai", script);
    let said = place.run(&["run", "schedulers.rhai", "-j", "1"]);
    println!("{}{}", said.out, said.err);
    for name in [
        "one scheduler after the other",
        "a scheduler is replaced within a phase",
        "a scheduler that dies after it was attached anew",
    ] {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
}
