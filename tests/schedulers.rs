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
    let said = place.run(&["run", "schedulers.rhai", "-j", "1", "--json", "events.jsonl"]);
    println!("{}{}", said.out, said.err);
    for name in [
        "one scheduler after the other",
        "a scheduler is replaced within a phase",
        "a scheduler that dies after it was attached anew",
    ] {
        assert!(said.about(name).contains("PASS"), "{name}: {said:?}");
    }
    // Each comes and goes at a time of its own.
    let events = place.read("events.jsonl");
    let changes: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|event: &serde_json::Value| event["event"] == "scheduler" && event["cell"] == 0)
        .collect();
    assert!(changes.len() >= 4, "{changes:?}");
    assert!(changes.iter().any(|change| change["attached"].is_null()), "{changes:?}");
    assert!(changes.iter().any(|change| change["attached"].is_string()), "{changes:?}");
    let times: Vec<u64> = changes.iter().filter_map(|c| c["elapsed_ms"].as_u64()).collect();
    assert!(times.len() == changes.len() && times.is_sorted(), "{changes:?}");
}
