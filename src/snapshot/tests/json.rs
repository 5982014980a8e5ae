//! Entries as JSON: what is found out once for a map must say what every entry says itself.

use serde_json::{Value, json};

use crate::snapshot::testing::{made_up, made_up_as, sample};
use crate::snapshot::{CaptureRequest, Entry, Map, to_json};

fn value(entry: &Entry) -> Value {
    entry.value().map_or(Value::Null, |value| to_json(&value))
}

/// Entry by entry, the slow way.
fn one_by_one(map: &Map) -> Value {
    let cpus = map.cpus().ok();
    let row = |entry: Entry| {
        let value = match cpus {
            None => value(&entry),
            Some(cpus) => (0..cpus as i64)
                .map(|cpu| entry.cpu(cpu).map_or(Value::Null, |entry| value(&entry)))
                .collect(),
        };
        match map.is_indexed() {
            true => json!({ "value": value }),
            false => json!({ "key": to_json(&entry.key()), "value": value }),
        }
    };
    map.known_entries().map(row).collect()
}

#[test]
fn all_entries_at_once_are_what_each_is_alone() {
    let mut rows = 0;
    for snapshot in [sample(), made_up(true), super::compiled::snapshot()] {
        for map in snapshot.maps().unwrap() {
            let all = serde_json::to_value(map.entries_as_json()).unwrap();
            assert_eq!(all, one_by_one(&map), "{}", map.name());
            rows += all.as_array().unwrap().len();
        }
    }
    assert!(rows >= 20, "{rows} rows");
}

#[test]
fn members_come_by_name_and_text_as_text() {
    let map = sample().map("task_ctx").unwrap();
    let text = serde_json::to_string(&map.entries_as_json()).unwrap();
    let first = text.split("},{").next().unwrap();
    assert!(first.starts_with("[{\"key\":7,\"value\":{"), "{first}");
    assert!(first.contains("\"slow\""), "{first}");
}

#[test]
fn the_kernels_state_has_every_part_and_says_what_is_missing() {
    let json = made_up(true).kernel_as_json();
    assert_eq!(json["unknown"], json!({}));
    let spin = &json["tasks"][4];
    assert_eq!(
        *spin,
        json!({
            "cgroup": "/lab/hot", "class": "ext", "comm": "spin", "cpu": 0, "cpus_allowed": "0",
            "dsq": null, "dsq_vtime": 0, "nice": 5, "on_cpu": 1, "on_rq": 1, "policy": "ext",
            "prio": 120, "schedstats": null, "slice": 0, "state": "running", "tgid": 50, "tid": 50,
            "weight": 150,
        })
    );
    let cpu = &json["cpus"][0];
    assert_eq!((&cpu["curr"], &cpu["idle"]), (&json!(50), &json!(false)));
    assert_eq!(cpu["cpustat"], json!({ "user": 700, "idle": 300 }));
    assert_eq!(cpu["registers"], Value::Null);
    let mc = &cpu["domains"][0];
    assert_eq!((&mc["name"], &mc["level"], &mc["span"]), (&json!("MC"), &json!(0), &json!("0-1")));
    assert_eq!(mc["groups"][1]["span"], "1");
    let queue = json["dsqs"].as_array().unwrap().iter().find(|dsq| dsq["name"] == "7").unwrap();
    assert_eq!((&queue["tasks"], &queue["nr"]), (&json!([41, 42]), &json!(2)));
    let root = &json["sched"]["scheds"][0];
    assert_eq!((&json["sched"]["state"], &root["ops"]), (&json!("enabled"), &json!("made")));
    assert_eq!(root["counters"], json!({ "SCX_EV_BYPASS": 30, "SCX_EV_FALLBACK": 3 }));
    let total = |of: &Value| of["io"]["some"]["total"].clone();
    assert_eq!(total(&json["psi"]["system"]), 1);
    assert_eq!(total(&json["psi"]["cgroups"]["/lab/hot"]), 100);
    assert!(json["variables"]["jiffies_64"].is_string(), "bytes without a type");
    // Without sched_ext, and without anything.
    let json = made_up(false).kernel_as_json();
    assert_eq!((&json["sched"], &json["dsqs"]), (&Value::Null, &Value::Null));
    let why = json["unknown"]["sched"].as_str().unwrap();
    assert!(why.contains("built without sched_ext"), "{why}");
    assert_eq!(json["tasks"].as_array().unwrap().len(), 5);
    assert_eq!(sample().kernel_as_json(), Value::Null);
    let request = CaptureRequest { sched: false, ..CaptureRequest::default() };
    let json = made_up_as(true, &request).kernel_as_json();
    assert!(json["unknown"]["tasks"].as_str().unwrap().contains("sched: false"));
}

#[test]
fn what_there_is_is_counted() {
    let lines = |snapshot: &std::sync::Arc<crate::snapshot::Snapshot>| {
        let lines = snapshot.kernel_counts().into_iter();
        lines.map(|(label, text)| format!("{label}: {text}")).collect::<Vec<_>>()
    };
    assert_eq!(
        lines(&made_up(true)),
        [
            "kernel: 5 tasks, 2 CPUs, 6 dispatch queues, 0 programs, 1 module",
            "domains of CPU 0: MC 0-1: 0 | 1; PKG 0-1: 0-1",
            "pressure: cpu 4.25 %, memory 2.25 %, io 0.25 %, irq 6.25 % of 10 s; also of 2 cgroups",
            "kept: jiffies_64, scx_root",
        ]
    );
    assert_eq!(lines(&sample()), [""; 0]);
}
