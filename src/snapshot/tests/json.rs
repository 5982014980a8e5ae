//! Entries as JSON: what is found out once for a map must say what every entry says itself.

use serde_json::{Value, json};

use crate::snapshot::testing::{made_up, sample};
use crate::snapshot::{Entry, Map, to_json};

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
