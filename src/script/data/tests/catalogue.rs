//! The catalogue of errors, each provoked from a stored snapshot, as a script and as a Rust caller
//! meet it: kind, fields, message.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::introspect::made_up_sched::Machine;
use crate::script::tests::golden;
use crate::snapshot::testing::changed;
use crate::snapshot::{Field, KeyArg, MissingStatsReason, SnapshotResult};

/// What was captured, saved, and opened again.
fn stored(snap: &Arc<Snapshot>) -> Arc<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cryo");
    snap.save(&file).unwrap();
    Snapshot::open(&file).unwrap()
}

/// Two copies of an object are loaded, of which the first is attached.
fn two_copies(machine: &mut Machine) {
    let [live, _] = [machine.load("made", 1), machine.load("made", 2)];
    machine.attach(&live, machine.sched);
}

/// A snapshot to ask.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// The small scheduler of `snapshot/testing.rs`.
    Sample,
    /// Two copies of an object, of which none is attached.
    Detached,
    /// The maps of the live copy are not in the kernel's list.
    Stale,
    /// A freeze that did not complete.
    Placeholder,
}

impl Source {
    fn snapshot(self) -> Arc<Snapshot> {
        stored(&match self {
            Source::Sample => sample(),
            Source::Detached => changed(|m| {
                two_copies(m);
                m.detach();
            }),
            Source::Stale => changed(|m| {
                let [live, _] = [m.load("made", 1), m.load("made", 2)];
                m.attach(&live, m.sched);
                [live.bss, live.rodata].into_iter().for_each(|map| m.guest.forget(map));
            }),
            Source::Placeholder => Snapshot::placeholder(meta("late"), "the vCPUs did not stop"),
        })
    }
}

type Rust = fn(&Arc<Snapshot>) -> SnapshotResult<()>;

/// One way to an error: where, how in a script, how in Rust, and what comes.
struct Case {
    from: Source,
    script: &'static str,
    rust: Rust,
    kind: &'static str,
    fields: Value,
    message: &'static str,
}

fn entry(snap: &Arc<Snapshot>) -> SnapshotResult<crate::snapshot::Entry> {
    snap.map("task_ctx")?.get(&KeyArg::Number(1002))
}

fn nothing(field: SnapshotResult<Field>) -> SnapshotResult<()> {
    field.map(drop)
}

const MAPS: [&str; 12] = [
    "task_ctx",
    "by_name_of_the_comm",
    "pairs",
    "cpu_stats",
    "cpu_hits",
    "events",
    "partial",
    "empty",
    "fifo.bss",
    "fifo.rodata",
    "squares",
    "untyped",
];

fn about_names() -> Vec<Case> {
    use Source::*;
    vec![
        Case {
            from: Sample,
            script: "snap.map(\"task_ctxx\")",
            rust: |s| s.map("task_ctxx").map(drop),
            kind: "MapNotFound",
            fields: json!({ "requested": "task_ctxx", "available": MAPS }),
            message: "no captured map is called \"task_ctxx\"; did you mean map(\"task_ctx\")? \
                      (there are task_ctx, by_name_of_the_comm, pairs, cpu_stats, cpu_hits, \
                      events, partial, empty, fifo.bss, fifo.rodata, squares, untyped)",
        },
        Case {
            from: Sample,
            script: "snap.global(\"slice\")",
            rust: |s| nothing(s.global("slice")),
            kind: "VarNotFound",
            fields: json!({
                "requested": "slice",
                "available": ["slice_ns", "nr_dispatched", "probe.____fmt", "nr_enqueued", "totals"],
            }),
            message: "no global variable is called \"slice\"; did you mean global(\"slice_ns\")? \
                      (there are slice_ns, nr_dispatched, probe.____fmt, nr_enqueued, totals)",
        },
        Case {
            from: Detached,
            script: "snap.global(\"nr\")",
            rust: |s| nothing(s.global("nr")),
            kind: "AmbiguousVar",
            fields: json!({ "requested": "nr", "found_in": ["made.bss#3", "made.bss#6"] }),
            message: "more than one captured map has a variable \"nr\": made.bss#3, made.bss#6; \
                      live_global(\"nr\") takes the attached scheduler's, globals(\"nr\") all of \
                      them, map(\"made.bss#3\").at(0).get(\"nr\") this one's",
        },
        Case {
            from: Sample,
            script: "snap.map(\"task_ctx\").get(1002).get(\"ctx.wieght\")",
            rust: |s| nothing(entry(s)?.get("ctx.wieght")),
            kind: "FieldNotFound",
            fields: json!({
                "requested": "ctx.wieght", "walked": "ctx", "component": "wieght",
                "available": ["weight", "vtime"],
            }),
            message: "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
                      \"ctx.weight\"? (it has weight, vtime)",
        },
        Case {
            from: Sample,
            script: "snap.global(\"nr_enqueued.x\")",
            rust: |s| nothing(s.global("nr_enqueued.x")),
            kind: "NotAStruct",
            fields: json!({
                "requested": "nr_enqueued.x", "walked": "nr_enqueued", "component": "x",
                "kind": "int",
            }),
            message: "\"nr_enqueued\" is an int, so it has no member \"x\" (asked for \
                      \"nr_enqueued.x\"): the path ends at \"nr_enqueued\"",
        },
        Case {
            from: Sample,
            script: "snap.map(\"task_ctx\").get(1002).get(\"ctx..weight\")",
            rust: |s| nothing(entry(s)?.get("ctx..weight")),
            kind: "EmptyPathComponent",
            fields: json!({ "requested": "ctx..weight" }),
            message: "path \"ctx..weight\" has an empty component; write \"ctx.weight\"",
        },
    ]
}

fn about_values() -> Vec<Case> {
    use Source::*;
    vec![
        Case {
            from: Sample,
            script: "snap.global(\"totals\").as_u64()",
            rust: |s| s.global("totals")?.as_u64().map(drop),
            kind: "TypeMismatch",
            fields: json!({
                "expected": "a single value", "actual": "a struct (struct cpu_stats)",
                "requested": "totals",
            }),
            message: "\"totals\": expected a single value, found a struct (struct cpu_stats)",
        },
        Case {
            from: Sample,
            script: "snap.map(\"squares\").at(9)",
            rust: |s| s.map("squares")?.at(9).map(drop),
            kind: "IndexOutOfRange",
            fields: json!({ "map": "squares", "index": 9, "len": 5 }),
            message: "\"squares\" has no index 9: it has 5, from 0 to 4",
        },
        Case {
            from: Sample,
            script: "snap.map(\"cpu_stats\").at(0).cpu(9)",
            rust: |s| s.map("cpu_stats")?.at(0)?.cpu(9).map(drop),
            kind: "PerCpuSlot",
            fields: json!({ "map": "cpu_stats", "cpu": 9, "len": 4, "unmapped": false }),
            message: "\"cpu_stats\" has no CPU 9: the machine has 4, from 0 to 3",
        },
        Case {
            from: Sample,
            script: "snap.map(\"cpu_stats\").at(1).cpu(1).value",
            rust: |s| nothing(s.map("cpu_stats")?.at(1)?.cpu(1)?.value()),
            kind: "PerCpuSlot",
            fields: json!({ "map": "cpu_stats", "cpu": 1, "len": 4, "unmapped": true }),
            message: "\"cpu_stats\" has no memory behind its slot of CPU 1 (of 4): the CPU cannot \
                      come up in this machine, or its memory could not be read; .is_present() \
                      tells such slots",
        },
    ]
}

fn about_keys() -> Vec<Case> {
    use Source::*;
    vec![
        Case {
            from: Sample,
            script: "snap.map(\"task_ctx\").get(8)",
            rust: |s| s.map("task_ctx")?.get(&KeyArg::Number(8)).map(drop),
            kind: "NoMatch",
            fields: json!({
                "map": "task_ctx", "op": "get(8)", "len": 3,
                "available_keys": ["7", "1001", "1002"],
            }),
            message: "get(8) found nothing in \"task_ctx\", which has 3 entries; keys there: 7, \
                      1001, 1002",
        },
        Case {
            from: Sample,
            script: "snap.map(\"empty\").get(1)",
            rust: |s| s.map("empty")?.get(&KeyArg::Number(1)).map(drop),
            kind: "NoMatch",
            fields: json!({ "map": "empty", "op": "get(1)", "len": 0, "available_keys": [] }),
            message: "get(1) found nothing in \"empty\": it is empty",
        },
        Case {
            from: Sample,
            script: "snap.map(\"untyped\").get(blob(4, 9))",
            rust: |s| s.map("untyped")?.get(&KeyArg::Bytes(vec![9; 4])).map(drop),
            kind: "NoMatch",
            fields: json!({
                "map": "untyped", "op": "get(0x09090909)", "len": 1,
                "available_keys": ["0x01000000"],
            }),
            message: "get(0x09090909) found nothing in \"untyped\", which has one entry; keys \
                      there: 0x01000000 (bytes, because the map's key has no BTF type: give raw \
                      bytes, or declare the map with __type(key, ..))",
        },
        Case {
            from: Sample,
            script: "snap.map(\"cpu_stats\").at(0).value",
            rust: |s| nothing(s.map("cpu_stats")?.at(0)?.value()),
            kind: "PerCpuNotNarrowed",
            fields: json!({ "map": "cpu_stats" }),
            message: "\"cpu_stats\" has one value for each CPU: choose one with .cpu(n), or take \
                      .cpu_sum(path), .cpu_max(path) or .cpu_min(path) of an entry",
        },
        Case {
            from: Sample,
            script: "snap.map(\"untyped\").at(0).get(\"x\")",
            rust: |s| nothing(s.map("untyped")?.at(0)?.get("x")),
            kind: "NoRendered",
            fields: json!({ "map": "untyped", "side": "value" }),
            message: "the value of \"untyped\" has no BTF type, only bytes: read them with \
                      .raw(), or declare the map with __type(value, ..) instead of \
                      __uint(value_size, ..)",
        },
    ]
}

fn about_captures() -> Vec<Case> {
    use Source::*;
    vec![
        Case {
            from: Placeholder,
            script: "snap.live_global(\"nr\")",
            rust: |s| nothing(s.live_global("nr")),
            kind: "PlaceholderSnapshot",
            fields: json!({ "tag": "late" }),
            message: "snapshot \"late\" is empty, because its freeze did not complete: ask \
                      .is_placeholder first, and read the reason with .dump()",
        },
        Case {
            from: Detached,
            script: "snap.live_global(\"nr\")",
            rust: |s| nothing(s.live_global("nr")),
            kind: "NoActiveScheduler",
            fields: json!({
                "reason": "none was attached when the machine was frozen (sched_ext was disabled); \
                           one had been enabled before, and was gone; loaded, but not attached: \
                           made_ops, made_ops",
            }),
            message: "no scheduler was running: none was attached when the machine was frozen \
                      (sched_ext was disabled); one had been enabled before, and was gone; loaded, \
                      but not attached: made_ops, made_ops",
        },
        Case {
            from: Stale,
            script: "snap.live_global(\"nr\")",
            rust: |s| nothing(s.live_global("nr")),
            kind: "ActiveFilterExcludedMaps",
            fields: json!({
                "requested": "nr", "active_obj": "made",
                "excluded_maps": [{ "name": "made.bss", "map_kva": 0xffff_c900_0000_b000_u64 }],
                "whitelist_kvas": [0xffff_c900_0000_3000_u64],
            }),
            message: "\"nr\" was not looked for: none of the captured maps of \"made\" (made.bss at \
                      0xffffc9000000b000) belongs to the scheduler that is live (maps at \
                      0xffffc90000003000); their addresses are stale: they were captured before \
                      the last attach or replace; freeze again, or name the map with map(..)",
        },
        Case {
            from: Sample,
            script: "snap.map(\"events\").at(0)",
            rust: |s| s.map("events")?.at(0).map(drop),
            kind: "MapRenderIncomplete",
            fields: json!({
                "map": "events", "error": "maps of kind ringbuf cannot be decoded yet",
            }),
            message: "map \"events\" could not be read: maps of kind ringbuf cannot be decoded yet",
        },
    ]
}

/// The kinds that a snapshot alone can answer. The match has no default, so that a new variant is
/// put somewhere.
fn is_of_snapshots(error: &SnapshotError) -> bool {
    use SnapshotError as E;
    match error {
        E::MapNotFound { .. }
        | E::VarNotFound { .. }
        | E::AmbiguousVar { .. }
        | E::FieldNotFound { .. }
        | E::NotAStruct { .. }
        | E::TypeMismatch { .. }
        | E::IndexOutOfRange { .. }
        | E::PerCpuSlot { .. }
        | E::NoMatch { .. }
        | E::EmptyPathComponent { .. }
        | E::PerCpuNotNarrowed { .. }
        | E::NoRendered { .. }
        | E::PlaceholderSnapshot { .. }
        | E::NoActiveScheduler { .. }
        | E::ActiveFilterExcludedMaps { .. }
        | E::MapRenderIncomplete { .. } => true,
        // These need samples, or statistics.
        E::PlaceholderSample { .. }
        | E::MissingStats { .. }
        | E::HostFieldUnavailable { .. }
        | E::WalkerDriftedWithinPhase { .. }
        | E::ProjectionFailed { .. } => false,
    }
}

/// What a script caught: the error, its properties, and what it says of one that it lacks.
fn caught(case: &Case, snap: &Arc<Snapshot>) -> (SnapshotError, Vec<Dynamic>, String) {
    let tried = |then: &str| {
        let script = format!("let r; try {{ {}; }} catch (e) {{ r = {then}; }} r", case.script);
        run(&script, snap.clone())
    };
    let value = tried("[e, e.kind, e.message, e.fields]")
        .unwrap_or_else(|e| panic!("{}: {e}", case.script));
    let mut parts = value.into_array().unwrap_or_else(|found| panic!("{}: {found}", case.script));
    let error = error_of(&parts.remove(0)).unwrap();
    let lacks = told(*tried("e.no_such_thing").unwrap_err());
    (error, parts, lacks)
}

#[test]
fn every_error_is_met_by_scripts_and_by_rust_alike() {
    let mut kinds = BTreeSet::new();
    for case in
        [about_names(), about_values(), about_keys(), about_captures()].into_iter().flatten()
    {
        let snap = case.from.snapshot();
        let error = (case.rust)(&snap).unwrap_err();
        let (thrown, parts, lacks) = caught(&case, &snap);
        assert_eq!(thrown, error, "{}", case.script);
        assert!(is_of_snapshots(&error));
        kinds.insert(error.kind());
        let fields = Value::Object(error.fields());
        assert_eq!(
            (error.kind(), &fields, error.to_string().as_str()),
            (case.kind, &case.fields, case.message),
            "{}",
            case.script
        );
        let [kind, message, in_script] = &parts[..] else { unreachable!() };
        assert_eq!(
            (kind.to_string(), message.to_string()),
            (case.kind.to_owned(), error.to_string())
        );
        let names: Vec<String> =
            in_script.as_map_ref().unwrap().keys().map(ToString::to_string).collect();
        // A variant's own `kind` would hide the error's.
        let want =
            fields.as_object().unwrap().keys().map(|n| if n == "kind" { "found_kind" } else { n });
        assert_eq!(
            names.iter().collect::<BTreeSet<_>>(),
            want.map(str::to_owned).collect::<Vec<_>>().iter().collect()
        );
        for name in names {
            assert!(lacks.contains(&name), "{lacks}");
        }
        assert!(lacks.starts_with(&format!("a {} has no \"no_such_thing\"", case.kind)), "{lacks}");
    }
    assert_eq!(kinds.len(), 16, "each of `is_of_snapshots`: {kinds:?}");
}

/// Kinds that need samples or statistics, as they may be; each has tests where it comes from.
fn of_series() -> [SnapshotError; 5] {
    use SnapshotError as E;
    let tag = || "periodic_007".to_owned();
    [
        E::PlaceholderSample { tag: tag(), reason: "the vCPUs did not stop".to_owned() },
        E::MissingStats { tag: tag(), reason: MissingStatsReason::NoSchedulerBinary },
        E::HostFieldUnavailable { tag: tag(), cpu: 9 },
        E::WalkerDriftedWithinPhase {
            phase: "warm".to_owned(),
            pinned_kvas: vec![0xffff_c900_0000_3000],
            sample_kvas: vec![0xffff_c900_0000_b000],
            requested: "nr_dispatched".to_owned(),
        },
        E::ProjectionFailed { reason: "Division by zero".to_owned() },
    ]
}

/// `docs/errors.md`.
fn page() -> String {
    let mut out = String::from(
        "# Errors\n\nWhat reading a snapshot can throw, each as a script provokes it and as it is told. The test that keeps \
         this page\nalso provokes them. A script catches them:\n\n```text\ntry { snap.map(\"task_ctxx\"); }\ncatch (e) { \
         print(`${e.kind}: ${e.available[0]} may be meant`); }\n```\n\nEvery error has `e.kind`, `e.message`, and the \
         properties that are listed with it; `e.fields` has them as a map.\nCaught or not, the message is the same.\n",
    );
    let mut last = "";
    let cases = [about_names(), about_values(), about_keys(), about_captures()];
    let mut cases: Vec<Case> = cases.into_iter().flatten().collect();
    cases.sort_by_key(|case| case.kind);
    for case in &cases {
        if case.kind != last {
            let names = case.fields.as_object().unwrap().keys();
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            out.push_str(&format!("\n## {}\n\n", case.kind));
            match names.is_empty() {
                true => out.push_str("It has no properties of its own.\n"),
                false => out.push_str(&format!("Properties: {}.\n", names.join(", "))),
            }
            last = case.kind;
        }
        out.push_str(&format!("\n```text\n{}\n\n{}\n```\n", case.script, case.message));
    }
    out.push_str(
        "\n# Errors of samples\n\nThese stand in a [series](series.md) in the place of a sample's value, or are thrown for \
         want of [statistics](stats.md).\n",
    );
    for error in of_series() {
        let fields = error.fields();
        let names: Vec<String> = fields.keys().map(|name| format!("`{name}`")).collect();
        out.push_str(&format!("\n## {}\n\n", error.kind()));
        out.push_str(&format!("Properties: {}.\n\n```text\n{error}\n```\n", names.join(", ")));
    }
    out
}

#[test]
fn the_page_of_the_book_has_every_error() {
    let page = page();
    golden::page("docs/errors.md", &page, "catalogue");
    assert!(of_series().iter().all(|error| !is_of_snapshots(error)));
    assert_eq!(page.matches("\n## ").count(), 16 + of_series().len());
}
