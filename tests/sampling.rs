//! Samples of a real machine.

use place::{Place, alone, project};

mod place;

#[test]
fn a_scheduler_is_sampled_while_the_script_does_something_else() {
    let _alone = alone();
    let place = Place::new();
    let scheduler = project("examples/schedulers/fifo.bpf.c").display().to_string();
    let script = include_str!("scripts/sampling.rhai").replace("@SCHEDULER@", &scheduler);
    place.file("sampling.rhai", script);
    let before = temporaries();
    let said = place.run(&["run", "sampling.rhai", "-j", "1", "--json", "events.jsonl"]);
    println!("{}{}", said.out, said.err);
    for name in ["a hundred samples", "samples in a file", "a body that returns early"] {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
    assert!(said.about("a hundred samples").contains(" of 100 samples taken, at most "));
    let early = said.about("a body that returns early");
    assert!(early.contains(" not reached before the end"), "{early}");
    let events = place.read("events.jsonl");
    let sampled = events.lines().filter(|line| line.contains("\"event\":\"sampled\"")).count();
    assert_eq!(sampled, 3, "one for each scenario");
    let left: Vec<_> = temporaries().into_iter().filter(|name| !before.contains(name)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What of ours is in the directory for temporary files.
fn temporaries() -> Vec<String> {
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(".cryoscope-")).collect()
}
