//! Timers, lists, trees and kptrs, as scripts read them.

use std::path::Path;

use super::{run, told};
use crate::script::values::render;
use crate::snapshot::tests::special::snapshot;

fn eval(expr: &str) -> Result<String, String> {
    let script = format!("let e = snap.map(\"queues\").at(0);\n{expr}");
    run(&script, snapshot()).map(|value| render(&value)).map_err(|e| told(*e))
}

#[test]
fn what_is_special_reads_like_any_member() {
    for (script, want) in [
        ("e.timer.armed && e.timer.expires_ns == 5_000_000_000", "true"),
        (
            "`${e.timer.callback} of ${e.timer.prog}, ${e.timer.clock}`",
            "\"on_tick of fifo_init, boottime\"",
        ),
        ("e.timer.members().len", "6"),
        ("let sum = 0; for thing in e.head { sum += thing.x } sum", "60"),
        ("let all = []; for thing in e.root { all.push(thing.x) } all", "[10, 20, 30]"),
        ("e.head[1].x == e.root[1].x", "true"),
        ("e.get(\"head[2].x\").as_u64()", "30"),
        ("e.head.kind()", "\"array\""),
        ("e.head.as_array().len", "3"),
        ("e.head.torn()", "[]"),
        ("e.lock.held", "false"),
        ("e.refs.count", "3"),
        ("e.mask.as_cpus()", "\"1-2,4\""),
        ("e.task.pid", "42"),
        ("e.get(\"group.kn.id\").as_u64()", "77"),
        ("e.own.x", "20"),
        ("e.each.cpu(1).x", "20"),
    ] {
        assert_eq!(eval(script).as_deref(), Ok(want), "{script}");
    }
    for (script, part) in [
        ("e.head[3]", "has no index 3"),
        ("e.head[-1]", "-1"),
        ("e.own.cpu(0)", "a per-CPU pointer"),
        ("e.each.cpu(9)", "9"),
        ("e.timer.armd", "armed"),
    ] {
        let error = eval(script).expect_err(script);
        assert!(error.contains(part), "{script}: {error}");
    }
}

#[test]
fn the_scripts_of_the_book_run() {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/snapshots.md");
    let book = std::fs::read_to_string(book).unwrap();
    let scripts: Vec<&str> = book
        .split("```rhai special\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect();
    assert_eq!(scripts.len(), 1);
    for script in scripts {
        let ran = run(script, snapshot()).map(|value| render(&value)).map_err(|e| told(*e));
        assert_eq!(ran.as_deref(), Ok("60"), "{script}");
    }
}
