//! Real machines that are read while they run: what is read is what the guest's kernel says of itself.

use place::{Place, alone, project};

mod place;

#[test]
fn a_machine_is_watched_while_it_runs() {
    let _alone = alone();
    let place = Place::new();
    let source = |path: &str| project(path).display().to_string();
    let script = include_str!("scripts/monitor.rhai")
        .replace("@FIFO@", &source("examples/schedulers/fifo.bpf.c"))
        .replace("@LAZY@", &source("tests/schedulers/lazy.bpf.c"));
    place.file("monitor.rhai", script);
    let said = place.run(&["run", "monitor.rhai", "-j", "1", "--json", "events.jsonl"]);
    println!("{}{}", said.out, said.err);

    // Names of events have words of verdicts in them.
    let is = |text: &str, verdict: &str| text.trim_start().starts_with(verdict);
    let figures = said.about("figures");
    assert!(is(figures, "PASS"), "{figures}");
    assert!(figures.contains("note: monitor: SCX_EV_SELECT_CPU_FALLBAK: no value: "), "{figures}");
    assert!(figures.contains("SCX_EV_SELECT_CPU_FALLBACK"), "the nearest name: {figures}");
    assert!(figures.contains("\n    monitor: "), "{figures}");
    // Both fail for that check, as they are meant to, and for nothing else.
    let hog = said.about("a task that lets no other run");
    assert!(is(hog, "PASS") && hog.contains("(CPU 1)"), "{hog}");
    let lazy = said.about("a scheduler that takes nothing out of its queue");
    assert!(is(lazy, "PASS"), "{lazy}");
    // Nothing is attached, so there is nothing to judge the events by.
    let idle = said.about("an idle machine (allowed)");
    assert!(is(idle, "INCONCLUSIVE") && idle.contains("no scheduler is attached"), "{idle}");

    let events = place.read("events.jsonl");
    let monitored = events.lines().filter(|line| line.contains("\"event\":\"monitored\"")).count();
    assert_eq!(monitored, 4, "one for each scenario");
    let checks = |of: &str, outcome: &str| {
        let label = format!("\"outcome\":\"{outcome}\",\"label\":\"monitor: {of}\"");
        events.lines().filter(|line| line.contains(&label)).count()
    };
    assert_eq!((checks("stuck", "fail"), checks("stuck", "pass")), (2, 2), "{events}");
    assert_eq!((checks("imbalance", "pass"), checks("depth", "pass")), (2, 2), "{events}");
}
