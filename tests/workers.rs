//! What workers did: reports against the guest's kernel, and checks that find what a scheduler does
//! wrong.

use place::{Place, alone, project};

mod place;

/// Scenarios that fail, and the checks of each that do, by the beginning of their labels.
const FAILING: [(&str, &[&str]); 4] = [
    (
        "the light one starves",
        &["units of work of spin", "longest gap of spin", "units of work by the second"],
    ),
    (
        "tasks stay where they were",
        &["shares of a CPU of spin", "coefficient of variation of the workers' rates"],
    ),
    (
        "tasks go everywhere",
        &["CPUs of spin", "part of the work on the CPUs", "migrations of spin"],
    ),
    ("slices are too long", &["90.0 % of wake-ups led to running in (us)"]),
];

#[test]
fn reports_are_true_and_checks_find_what_is_wrong() {
    let _alone = alone();
    let place = Place::new();
    for (name, from) in [
        ("fair.bpf.c", "examples/schedulers/fair.bpf.c"),
        ("workers.rhai", "tests/scripts/workers.rhai"),
    ] {
        place.file(name, std::fs::read(project(from)).expect("it is there"));
    }
    let said = place.run(&["run", "workers.rhai", "-j", "1", "--json", "run.jsonl"]);
    println!("{}{}", said.out, said.err);
    for name in ["reports are true", "a gap is as long as nothing ran", "a fair scheduler passes"] {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
    let events = std::fs::read_to_string(place.path().join("run.jsonl")).expect("events");
    for (name, labels) in FAILING {
        assert!(said.about(name).contains("FAIL"), "{name}: {said:?}");
        let found = failed(&events, name);
        assert_eq!(found.len(), labels.len(), "{name}: {found:?}");
        for (label, found) in labels.iter().zip(&found) {
            assert!(found.starts_with(label), "{name}: {found:?}");
        }
    }
    assert_eq!(said.code, Some(1), "{said:?}");
}

/// Labels of the checks of a scenario that failed.
fn failed(events: &str, name: &str) -> Vec<String> {
    let events = events.lines().map(|line| serde_json::from_str(line).expect("an event"));
    let all: Vec<serde_json::Value> = events.collect();
    let cells = all[0]["cells"].as_array().expect("cells");
    let cell = cells.iter().position(|cell| cell["name"] == name).expect("the scenario");
    let checks = all.iter().filter(|e| e["cell"] == cell).map(|e| &e["record"]["check"]);
    let failed = checks.filter(|check| check["outcome"] == "fail");
    failed.map(|check| check["label"].as_str().expect("a label").to_owned()).collect()
}
