//! Snippets of scripts against the hand-made snapshot of `snapshot/testing.rs`.

mod catalogue;
mod live;
mod special;

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rhai::{Dynamic, Engine, EvalAltResult, Module, Scope};

use crate::script::data::{error_of, lend, origin_of};
use crate::script::fault::Fault;
use crate::script::register::Package;
use crate::script::values::{pretty, render};
use crate::snapshot::testing::{made_up, meta, sample};
use crate::snapshot::{Snapshot, SnapshotError};

static ENGINE: LazyLock<Engine> = LazyLock::new(engine);

fn engine() -> Engine {
    let mut module = Module::new();
    let mut pkg = Package::new(&mut module);
    crate::script::fault::register(&mut pkg);
    crate::script::values::register(&mut pkg);
    super::register(&mut pkg);
    super::dumps(&mut pkg, |x| drop(pretty(x)));
    let mut engine = Engine::new();
    engine.register_global_module(module.into());
    engine.set_fail_on_invalid_map_property(true);
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    engine.set_max_operations(1_000_000);
    lend(&mut engine, |name| name == "again");
    engine
}

fn run(script: &str, snap: Arc<Snapshot>) -> Result<Dynamic, Box<EvalAltResult>> {
    let mut scope = Scope::new();
    scope.push("snap", snap);
    // `try` is no expression: what is caught goes through a function.
    let caught = "fn caught(f, g) { let r; try { f.call() } catch (e) { r = g.call(e); } r }";
    let script = format!("{script}\n");
    let script = if script.contains("caught(") { format!("{caught}\n{script}") } else { script };
    ENGINE.eval_with_scope::<Dynamic>(&mut scope, &script)
}

fn told(error: EvalAltResult) -> String {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) => told(*inner),
        EvalAltResult::ErrorRuntime(value, _) => match value.read_lock::<Fault>() {
            Some(fault) => fault.message.clone(),
            None => error_of(&value).map_or_else(|| value.to_string(), |e| e.to_string()),
        },
        EvalAltResult::ErrorArithmetic(text, _) => text,
        other => other.to_string(),
    }
}

fn eval(script: &str) -> Result<String, String> {
    run(script, sample()).map(|value| render(&value)).map_err(|e| told(*e))
}

fn gives(cases: &[(&str, &str)]) {
    for (script, want) in cases {
        assert_eq!(eval(script).as_deref(), Ok(*want), "{script}");
    }
}

fn throws(cases: &[(&str, &str)]) {
    for (script, want) in cases {
        assert_eq!(eval(script), Err((*want).to_owned()), "{script}");
    }
}

/// The entry of pid 1002, whose values `testing.rs` spells out.
fn of_task(expr: &str) -> String {
    format!("let e = snap.map(\"task_ctx\").get(1002); {expr}")
}

#[test]
fn a_snapshot_says_when_it_was_taken() {
    gives(&[
        ("snap.tag", "\"end\""),
        ("snap.elapsed_ms", "4012"),
        ("snap.pause_us", "1234"),
        ("snap.pause.stop_us + snap.pause.copy_us + snap.pause.resume_us", "1234"),
        ("snap.phase", "\"wide\""),
        ("snap.is_placeholder", "false"),
        ("snap.torn()", "[]"),
        ("`${snap}`", r#""snapshot \"end\" at 4.012 s, phase \"wide\"""#),
        ("snap.maps().len", "12"),
        ("snap.maps()[3].name", "\"task_ctx\""),
        ("snap.dump()", "()"),
        ("type_of(snap)", "\"Snapshot\""),
        ("type_of(snap.map(\"task_ctx\"))", "\"SnapshotMap\""),
    ]);
}

#[test]
fn dumps_are_those_of_the_model() {
    let shown = |script: &str| pretty(&run(script, sample()).unwrap());
    assert_eq!(shown("snap"), sample().dump().trim_end());
    assert_eq!(shown("snap.map(\"squares\").at(2)"), "[2]  4");
    assert_eq!(shown("snap.global(\"totals\")"), "totals  {nr: 7, worst: -3}");
    assert_eq!(
        shown("#{ entry: snap.map(\"squares\").at(2), n: 1 }"),
        "#{\n  entry:\n    [2]  4\n  n: 1\n}"
    );
}

#[test]
fn globals_read_compare_and_compute_as_their_values() {
    gives(&[
        ("snap.global(\"nr_enqueued\") > 50", "true"),
        ("50 < snap.global(\"nr_enqueued\")", "true"),
        ("snap.global(\"nr_enqueued\") - snap.global(\"nr_dispatched\")", "10"),
        ("snap.global(\"nr_enqueued\") / 3.0 > 33.3", "true"),
        ("let sum = 1; sum += snap.global(\"nr_enqueued\"); sum", "101"),
        ("-snap.global(\"totals.worst\")", "3"),
        ("snap.global(\"nr_enqueued\") == 100.0", "true"),
        ("snap.global(\"totals\").nr", "7"),
        ("snap.global(\"totals\")[\"worst\"]", "-3"),
        ("snap.global(\"totals\").kind()", "\"struct\""),
        ("snap.global(\"totals\").members()", "[\"nr\", \"worst\"]"),
        ("snap.global(\"probe.____fmt\") == \"hello\"", "true"),
        ("\"hello\" == snap.global(\"probe.____fmt\")", "true"),
        (
            "`${snap.global(\"nr_enqueued\")} and ${snap.global(\"totals\")}`",
            "\"100 and {nr: 7, worst: -3}\"",
        ),
        ("\"n=\" + snap.global(\"nr_enqueued\")", "\"n=100\""),
        ("snap.globals(\"slice_ns\")", "[5000000]"),
        ("snap.global(\"nr_enqueued\") in [99, 100]", "true"),
        ("max(snap.global(\"nr_enqueued\"), snap.global(\"nr_dispatched\"))", "100"),
        ("min(5, snap.global(\"nr_enqueued\"))", "5"),
        ("snap.global(\"nr_enqueued\").to_float()", "100.0"),
        ("snap.map(\"task_ctx\").get(7).get(\"ratio\").to_int()", "1"),
        ("wrapping_sub(snap.global(\"nr_dispatched\"), snap.global(\"nr_enqueued\"))", "-10"),
    ]);
    throws(&[
        (
            "snap.global(\"nr_enqeued\")",
            "no global variable is called \"nr_enqeued\"; did you mean global(\"nr_enqueued\")? \
             (there are nr_enqueued, nr_dispatched, probe.____fmt, slice_ns, totals)",
        ),
        (
            "snap.map(\"task_ctxx\")",
            "no captured map is called \"task_ctxx\"; did you mean map(\"task_ctx\")? (there are \
             task_ctx, by_name_of_the_comm, pairs, cpu_stats, cpu_hits, events, partial, empty, \
             fifo.bss, fifo.rodata, squares, untyped)",
        ),
    ]);
}

#[test]
fn members_are_reached_by_dots_and_brackets() {
    for (expr, want) in [
        ("e.ctx.weight", "200"),
        ("e[\"ctx.weight\"]", "200"),
        ("e.ctx[\"weight\"]", "200"),
        ("e.get(\"ctx.weight\")", "200"),
        ("e.get(\"ctx\").get(\"weight\").as_u64()", "200"),
        ("e.value.ctx.vtime", "-2000"),
        ("e.key", "1002"),
        ("e.big", "18446744073709551614"),
        ("e.big.hex()", "\"0xfffffffffffffffe\""),
        ("e.big - 1 == u64(\"18446744073709551613\")", "true"),
        ("e.running", "true"),
        ("e.comm", "\"fast\""),
        ("e.comm.len", "4"),
        ("e.ratio + e.exact", "1.75"),
        ("e.bits.mid", "-2"),
        ("e.octets[2]", "3"),
        ("e.fifos[1].len", "4"),
        ("e[\"fifos[1].len\"]", "4"),
        ("e.fifos[1]", "{head: 3, len: 4}"),
        ("e.slots.as_array()", "[10, 20, 30, 40]"),
        ("let s = 0; for x in e.slots { s += x } s", "100"),
        ("e.next.as_u64().hex()", "\"0xffff888000002000\""),
        ("e.next != 0", "true"),
        ("e.next.as_bool()", "true"),
        ("e.slots.raw()", "0x0a0014001e002800"),
        ("e.ctx.kind() + \" \" + e.ctx.type_name()", "\"struct struct inner\""),
        ("e.ctx.weight.as_u64() + e.get(\"ctx.weight\").as_i64()", "400"),
        ("e.is_present()", "true"),
        ("e.torn()", "[]"),
        ("type_of(e.get(\"ctx.weight\"))", "\"SnapshotField\""),
        ("type_of(e.ctx.weight)", "\"i64\""),
        ("type_of(e.fifos)", "\"SnapshotField\""),
    ] {
        assert_eq!(eval(&of_task(expr)).as_deref(), Ok(want), "{expr}");
    }
    for (expr, want) in [
        (
            "e.ctx.wieght",
            "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
             \"ctx.weight\"? (it has weight, vtime)",
        ),
        (
            "e.ctx.weight.x",
            "Unknown property 'x' - a getter is not registered for type 'i64' (line 1, position \
             54)",
        ),
        (
            "e.next.ctx",
            "the kernel's state could not be read: it was not copied with this snapshot",
        ),
        (
            "e.next.as_ptr(\"struct x\")",
            "the kernel's state could not be read: it was not copied with this snapshot",
        ),
        ("e.fifos[3]", "\"task_ctx: fifos\" has no index 3: it has 3, from 0 to 2"),
        ("e.fifos[-1]", "\"task_ctx: fifos\" has no index -1: it has 3, from 0 to 2"),
        ("e.ctx[0]", "\"ctx\" has no member \"[0]\" (asked for \"ctx[0]\"); it has weight, vtime"),
        (
            "for x in e.ctx { print(x) }",
            "\"ctx\": expected an array, found a struct (struct inner)",
        ),
        ("e.get(\"\")", "the path is empty: name a member, as in \"ctx.weight\""),
        ("e.nice.as_u64()", "expected an unsigned number, found -20 (int)"),
        ("e.get(\"nice\").as_u64()", "\"nice\": expected an unsigned number, found -20 (int)"),
    ] {
        assert_eq!(eval(&of_task(expr)), Err(want.to_owned()), "{expr}");
    }
}

#[test]
fn enums_equal_their_names_and_numbers() {
    for (expr, want) in [
        ("e.state == \"RUNNING\"", "true"),
        ("\"RUNNING\" == e.state", "true"),
        ("e.state == 2", "true"),
        ("2 == e.state", "true"),
        ("e.state != \"IDLE\"", "true"),
        ("e.state > \"QUEUED\"", "true"),
        ("e.state >= 2", "true"),
        ("e.get(\"state\") == \"RUNNING\"", "true"),
        ("e.state == e.get(\"state\")", "true"),
        ("`${e.state}`", "\"RUNNING\""),
        ("e.state.name", "\"RUNNING\""),
        ("e.state.value", "2"),
        ("e.state + 1", "3"),
        ("e.flags.value", "9223372036854775808"),
        ("e.flags == u64(\"0x8000000000000000\")", "true"),
        ("e.state.as_str()", "\"RUNNING\""),
        ("\"state \" + e.state", "\"state RUNNING\""),
        ("e.state in [\"IDLE\", \"RUNNING\"]", "true"),
        ("type_of(e.state)", "\"EnumValue\""),
    ] {
        assert_eq!(eval(&of_task(expr)).as_deref(), Ok(want), "{expr}");
    }
    for (expr, want) in [
        (
            "e.state == \"RUNING\"",
            "expected a name of enum task_state (RUNNING, QUEUED, GONE, IDLE), found \"RUNING\"",
        ),
        (
            "e.get(\"state\") == \"RUNING\"",
            "\"state\": expected a name of enum task_state (RUNNING, QUEUED, GONE, IDLE), found \
             \"RUNING\"",
        ),
        (
            "e.state == true",
            "expected a number or a name to compare with RUNNING (enum task_state), found true \
             (bool)",
        ),
        (
            "() != e.state",
            "expected a number or a name to compare with RUNNING (enum task_state), found \
             nothing, ()",
        ),
    ] {
        assert_eq!(eval(&of_task(expr)), Err(want.to_owned()), "{expr}");
    }
}

#[test]
fn no_comparison_is_silently_false() {
    let weight = "e.get(\"ctx.weight\")";
    for op in ["==", "!=", "<", "<=", ">", ">="] {
        for (left, right, want) in [
            (
                weight,
                "\"200\"",
                "\"ctx.weight\": expected a number to compare with 200 (int), found \"200\" (string)",
            ),
            (
                "\"200\"",
                weight,
                "\"ctx.weight\": expected a number to compare with 200 (int), found \"200\" (string)",
            ),
            (
                weight,
                "()",
                "\"ctx.weight\": expected a number to compare with 200 (int), found nothing, ()",
            ),
            (
                weight,
                "[200]",
                "\"ctx.weight\": expected a number to compare with 200 (int), found an array",
            ),
            (
                weight,
                "true",
                "\"ctx.weight\": expected a number to compare with 200 (int), found true (bool)",
            ),
            (
                "e.get(\"running\")",
                "1",
                "\"running\": expected true or false to compare with true (bool), found 1 (int)",
            ),
            (
                "e.get(\"comm\")",
                "5",
                "\"comm\": expected text to compare with \"fast\" (text), found 5 (int)",
            ),
            (
                weight,
                "e.get(\"comm\")",
                "\"ctx.weight\": expected a number to compare with 200 (int), found \"fast\" (text)",
            ),
            ("e.ctx", "5", "\"ctx\": expected a single value, found a struct (struct inner)"),
            ("5", "e.fifos", "\"fifos\": expected a single value, found an array (struct fifo[3])"),
            ("e", "5", "a SnapshotEntry cannot be compared: compare values in it"),
            ("snap", "snap", "a Snapshot cannot be compared: compare values in it"),
            ("5", "snap.map(\"empty\")", "a SnapshotMap cannot be compared: compare values in it"),
        ] {
            let expr = format!("{left} {op} {right}");
            assert_eq!(eval(&of_task(&expr)), Err(want.to_owned()), "{expr}");
        }
    }
}

#[test]
fn maps_have_attributes_entries_and_closures() {
    gives(&[
        (
            "let m = snap.map(\"task_ctx\"); [m.name, m.kind, m.id, m.key_size, m.value_size, m.max_entries, m.len, m.len()]",
            "[\"task_ctx\", \"hash\", 4, 4, 128, 3, 3, 3]",
        ),
        ("snap.map(\"empty\").is_empty()", "true"),
        ("snap.map(\"task_ctx\").at(0).key", "7"),
        ("snap.map(\"task_ctx\").keys()", "[7, 1001, 1002]"),
        ("snap.map(\"pairs\").keys()[0].pid", "1"),
        ("snap.map(\"pairs\").get(#{ pid: 1, dsq: 10 }).value", "11"),
        ("let p = snap.map(\"pairs\"); p.get(p.at(1).key).value", "22"),
        ("snap.map(\"by_name_of_the_comm\").get(\"zeta\").value", "4"),
        ("snap.map(\"task_ctx\").contains(7)", "true"),
        ("8 in snap.map(\"task_ctx\")", "false"),
        ("let sum = 0; for e in snap.map(\"squares\") { sum += e.value; } sum", "30"),
        ("snap.map(\"task_ctx\").find(|e| e.ctx.weight > 150).comm", "\"fast\""),
        ("snap.map(\"task_ctx\").find(|e| e.get(\"running\")).key", "7"),
        ("snap.map(\"task_ctx\").find_or(|e| e.ctx.weight > 900, -1)", "-1"),
        (
            "snap.map(\"task_ctx\").filter(|e| e.ctx.weight >= 100).map(|e| e.comm)",
            "[\"slow\", \"fast\"]",
        ),
        ("snap.map(\"task_ctx\").max_by(|e| e.ctx.vtime).comm", "\"idle\""),
        ("snap.map(\"untyped\").at(0).key.raw()", "0x01000000"),
        ("snap.map(\"untyped\").at(0).value", "0x44332211"),
        ("snap.map(\"task_ctx\").at(0).torn()", "[\"its bucket was locked\"]"),
        ("`${snap.map(\"squares\").at(2)}`", "\"squares[2]: 4\""),
        ("`${snap.map(\"squares\")}`", "\"squares: array, 5 entries, u32 -> u64\""),
    ]);
    throws(&[
        (
            "snap.map(\"task_ctx\").get(5)",
            "get(5) found nothing in \"task_ctx\", which has 3 entries; keys there: 7, 1001, 1002",
        ),
        (
            "snap.map(\"task_ctx\").find(|e| e.ctx.weight > 900)",
            "find(..) found nothing in \"task_ctx\", which has 3 entries; keys there: 7, 1001, 1002",
        ),
        (
            "snap.map(\"empty\").max_by(|e| e.value)",
            "max_by(..) found nothing in \"empty\": it is empty",
        ),
        (
            "snap.map(\"task_ctx\").filter(|e| e.ctx.weight)",
            "the closure of filter(..) has to give true or false for each entry, it gave 100 (int)",
        ),
        (
            "snap.map(\"task_ctx\").find(|e| ())",
            "the closure of find(..) has to give true or false for each entry, it gave nothing, ()",
        ),
        (
            "snap.map(\"task_ctx\").get(|x| x)",
            "a closure is no key: a key is a number, text, bytes, an object map of a struct's \
             members, an array, or another entry's key",
        ),
        ("snap.map(\"squares\").at(5)", "\"squares\" has no index 5: it has 5, from 0 to 4"),
        (
            "for e in snap.map(\"events\") { print(e) }",
            "map \"events\" could not be read: maps of kind ringbuf cannot be decoded yet",
        ),
        (
            "snap.map(\"partial\").find_or(|e| false, 1)",
            "map \"partial\" could not be read: only 1 of its entries were captured: the time \
             budget of the freeze ran out",
        ),
        (
            "snap.map(\"task_ctx\").find(|e| e.ctx.wieght > 1)",
            "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
             \"ctx.weight\"? (it has weight, vtime)",
        ),
        ("snap.map(\"task_ctx\").find(|e| throw \"mine\")", "mine"),
    ]);
}

#[test]
fn closures_may_use_what_their_call_is_made_on() {
    gives(&[
        ("let m = snap.map(\"task_ctx\"); m.filter(|e| e.key != m.at(0).key).len", "2"),
        ("snap.map(\"task_ctx\").filter(|e| e.key < snap.global(\"nr_enqueued\")).len", "1"),
        ("let m = snap.map(\"task_ctx\"); m.find(|e| snap.map(m.name).len == m.len).key", "7"),
        (
            "let e = snap.map(\"task_ctx\").at(2); let f = || e[\"ctx.weight\"]; e.comm + f.call()",
            "\"fast200\"",
        ),
        ("let e = snap.map(\"task_ctx\").at(2); [7, 200].filter(|w| e.ctx.weight == w)", "[200]"),
        // Variables that are assigned to stay variables.
        (
            "let again = snap.map(\"empty\"); let f = || again = snap.map(\"squares\"); f.call(); again.len",
            "5",
        ),
        ("let n = 0; snap.map(\"squares\").filter(|e| { n += e.value; true }); n", "30"),
        ("let a = [1]; let f = || a.push(2); f.call(); a[1] = 5; a", "[1, 5]"),
        ("let m = #{ a: 1 }; let f = || m.a += 1; f.call(); m.a", "2"),
    ]);
}

#[test]
fn per_cpu_maps_are_narrowed_or_reduced() {
    gives(&[
        ("snap.map(\"cpu_stats\").at(0).cpu(2).nr", "300"),
        ("snap.map(\"cpu_stats\").cpu(1).at(0).worst", "4"),
        ("snap.map(\"cpu_stats\").at(0).cpu_sum(\"nr\")", "4321"),
        ("snap.map(\"cpu_stats\").at(0).cpu_max(\"worst\")", "4"),
        ("snap.map(\"cpu_stats\").at(0).cpu_min(\"worst\")", "-5"),
        ("snap.map(\"cpu_hits\").get(2).cpu_sum()", "10"),
        ("snap.map(\"cpu_stats\").at(1).cpu(1).is_present()", "false"),
    ]);
    throws(&[
        (
            "snap.map(\"cpu_stats\").at(0).nr",
            "\"cpu_stats\" has one value for each CPU: choose one with .cpu(n), or take \
             .cpu_sum(path), .cpu_max(path) or .cpu_min(path) of an entry",
        ),
        (
            "snap.map(\"cpu_stats\").at(0).cpu(9)",
            "\"cpu_stats\" has no CPU 9: the machine has 4, from 0 to 3",
        ),
    ]);
}

#[test]
fn errors_are_values_with_their_fields() {
    gives(&[
        ("caught(|| snap.map(\"task_ctxx\"), |e| e.kind)", "\"MapNotFound\""),
        ("caught(|| snap.map(\"task_ctxx\"), |e| e.requested)", "\"task_ctxx\""),
        ("caught(|| snap.map(\"task_ctxx\"), |e| e.available[0])", "\"task_ctx\""),
        ("caught(|| snap.map(\"task_ctxx\"), |e| e.available.len)", "12"),
        ("caught(|| snap.map(\"task_ctxx\"), |e| e[\"kind\"])", "\"MapNotFound\""),
        ("caught(|| snap.map(\"task_ctxx\"), |e| type_of(e))", "\"SnapshotError\""),
        ("caught(|| snap.map(\"task_ctxx\"), |e| `${e}` == e.message)", "true"),
        (
            "caught(|| snap.map(\"task_ctxx\"), |e| e.fields.keys())",
            "[\"available\", \"requested\"]",
        ),
        (
            "caught(|| snap.global(\"nr_enqueued.x\"), |e| [e.kind, e.found_kind, e.walked, e.component])",
            "[\"NotAStruct\", \"int\", \"nr_enqueued\", \"x\"]",
        ),
        (
            "caught(|| snap.map(\"cpu_stats\").at(0).cpu(9), |e| [e.cpu, e.len, e.unmapped])",
            "[9, 4, false]",
        ),
        (
            "caught(|| snap.map(\"squares\").at(9), |e| `${e.kind} ${e.index} of ${e.len}`)",
            "\"IndexOutOfRange 9 of 5\"",
        ),
    ]);
    throws(&[
        (
            "caught(|| snap.map(\"task_ctxx\"), |e| e.requestd)",
            "a MapNotFound has no \"requestd\"; did you mean requested? (it has kind, message, \
             fields, available, requested)",
        ),
        (
            "try { snap.map(\"task_ctxx\") } catch (e) { throw e }",
            "no captured map is called \"task_ctxx\"; did you mean map(\"task_ctx\")? (there are \
             task_ctx, by_name_of_the_comm, pairs, cpu_stats, cpu_hits, events, partial, empty, \
             fifo.bss, fifo.rodata, squares, untyped)",
        ),
    ]);
}

#[test]
fn the_reason_of_missing_statistics_is_a_map() {
    let error = SnapshotError::MissingStats {
        tag: "s1".into(),
        reason: crate::snapshot::MissingStatsReason::SchedulerError {
            errno: 22,
            args: serde_json::json!({"resp": 18_446_744_073_709_551_615u64, "part": 0.5}),
        },
    };
    let mut scope = Scope::new();
    scope.push("e", error);
    let script = "[e.reason.kind, e.reason.errno, e.reason.args.resp, e.reason.args.part]";
    let value = ENGINE.eval_with_scope::<Dynamic>(&mut scope, script).unwrap();
    assert_eq!(render(&value), "[\"SchedulerError\", 22, 18446744073709551615, 0.5]");
}

#[test]
fn a_placeholder_is_told_from_a_typo() {
    let snap = || Snapshot::placeholder(meta("late"), "the vCPUs did not stop within 2 s");
    let eval = |script: &str| run(script, snap()).map(|v| render(&v)).map_err(|e| told(*e));
    assert_eq!(eval("snap.is_placeholder").as_deref(), Ok("true"));
    for script in ["snap.map(\"x\")", "snap.global(\"x\")", "snap.globals(\"x\")", "snap.maps()"] {
        assert_eq!(
            eval(script),
            Err("snapshot \"late\" is empty, because its freeze did not complete: ask \
                 .is_placeholder first, and read the reason with .dump()"
                .to_owned()),
            "{script}"
        );
    }
}

#[test]
fn plain_values_know_where_they_came_from() {
    let origin = |script: &str| origin_of(&run(script, sample()).unwrap());
    let weight = "task_ctx[1002].ctx.weight of snapshot \"end\" at 4.012 s";
    assert_eq!(origin(&of_task("e.ctx.weight")).as_deref(), Some(weight));
    assert_eq!(origin(&of_task("let x = e.ctx.weight; x")).as_deref(), Some(weight));
    assert_eq!(origin(&of_task("e.get(\"ctx.weight\")")).as_deref(), Some(weight));
    assert_eq!(
        origin(&of_task("e.comm")).as_deref(),
        Some("task_ctx[1002].comm of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(
        origin(&of_task("e.big")).as_deref(),
        Some("task_ctx[1002].big of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(
        origin(&of_task("e.state")).as_deref(),
        Some("task_ctx[1002].state of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(
        origin("snap.global(\"nr_enqueued\")").as_deref(),
        Some("fifo.bss nr_enqueued of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(origin(&of_task("e.ctx.weight + 1")), None, "computing makes a new value");
    assert_eq!(origin(&of_task("let x = e.ctx.weight; x += 1; x")), None, "so does changing it");
    assert_eq!(
        origin("snap.map(\"task_ctx\").len").as_deref(),
        Some("task_ctx.len of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(
        origin("snap.map(\"cpu_stats\").at(0).cpu_sum(\"nr\")").as_deref(),
        Some("cpu_sum of cpu_stats[0].nr of snapshot \"end\" at 4.012 s")
    );
    assert_eq!(origin("5"), None);
    // Old reads are forgotten, not mistaken for others.
    let churn = "let old = e.ctx.weight; for i in 0..20000 { let y = e.ctx.vtime; } old";
    assert_eq!(origin(&of_task(churn)), None);
    gives(&[
        (
            "snap.global(\"totals\").origin().text",
            r#""fifo.bss totals of snapshot \"end\" at 4.012 s""#,
        ),
        (
            "let o = snap.map(\"cpu_stats\").cpu(1).at(0).get(\"nr\").origin(); [o.map, o.key, o.path, o.cpu, o.tag, o.elapsed_ms]",
            "[\"cpu_stats\", \"0\", \"nr\", 1, \"end\", 4012]",
        ),
    ]);
}

#[test]
fn everything_registered_is_documented() {
    let surface = crate::script::surface::Surface::of(&ENGINE, false);
    assert!(surface.functions.len() > 200);
    for f in &surface.functions {
        assert!(!f.doc.is_empty(), "{}", f.signature());
        assert!(f.summary().ends_with(['.', ':', ',']) || !f.summary().is_empty(), "{}", f.doc);
    }
    let names: Vec<&str> = surface.types.iter().map(|t| t.name.as_str()).collect();
    for name in
        ["Snapshot", "SnapshotMap", "SnapshotEntry", "SnapshotField", "SnapshotError", "U64"]
    {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Values of all sorts against each other: an answer or an error, never a panic.
    #[test]
    fn operators_take_whatever_comes(
        left in operand(), right in operand(), op in prop::sample::select(OPS.to_vec())
    ) {
        let _ = eval(&of_task(&format!("({left}) {op} ({right})")));
    }

    #[test]
    fn paths_of_any_kind_are_answered(path in r"[a-z.\[\]0-9_# -]{0,24}") {
        let _ = eval(&of_task(&format!("e.get({path:?}).dump()")));
        let _ = eval(&format!("snap.global({path:?}).dump()"));
        let _ = eval(&format!("snap.map({path:?}).dump()"));
    }
}

const OPS: [&str; 17] =
    ["==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "**", "&", "|", "^", "<<", ">>"];

fn operand() -> impl Strategy<Value = String> {
    let fixed = [
        "e.get(\"ctx.weight\")",
        "e.get(\"big\")",
        "e.get(\"running\")",
        "e.get(\"comm\")",
        "e.get(\"ratio\")",
        "e.get(\"state\")",
        "e.state",
        "e.flags",
        "e.big",
        "e.ctx",
        "e.next",
        "e",
        "snap",
        "()",
        "\"RUNNING\"",
        "true",
        "-1.5",
        "[1]",
        "u64(\"18446744073709551615\")",
    ];
    prop_oneof![
        prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
    ]
}

#[test]
fn a_diff_is_a_list_of_changes() {
    gives(&[("snap.diff(snap)", "[]"), ("snap.diff(snap, #{ addresses: true })", "[]")]);
    throws(&[(
        "snap.diff(snap, #{ adresses: true })",
        "\"adresses\" is no option of diff(..); did you mean \"addresses\"? \
         Options are: addresses",
    )]);
}

/// What a script says about the made-up machine of `introspect/sched/testing.rs`.
fn of_machine(script: &str) -> Result<String, String> {
    run(script, made_up(true)).map(|value| render(&value)).map_err(|e| told(*e))
}

#[test]
fn tasks_are_read_by_number() {
    for (script, want) in [
        ("snap.tasks().map(|t| t.tid)", "[1, 40, 41, 42, 50]"),
        ("let t = snap.task(50); [t.tid, t.tgid, t.comm]", "[50, 50, \"spin\"]"),
        (
            "let t = snap.task(42); [t.tid, t.tgid, t.cgroup, t.cgroup_id]",
            "[42, 40, \"/lab/hot\", 300]",
        ),
        (
            "let t = snap.task(50); [t.policy, t.class, t.prio, t.nice]",
            "[\"ext\", \"ext\", 120, 5]",
        ),
        (
            "let t = snap.task(50); [t.state, t.runnable, t.on_cpu, t.cpu]",
            "[\"running\", true, true, 0]",
        ),
        ("let t = snap.task(40); [t.state, t.runnable, t.on_cpu]", "[\"sleeping\", false, false]"),
        ("[snap.task(50).cpus_allowed, snap.task(40).cpus_allowed]", "[\"0\", \"0-1\"]"),
        (
            "let t = snap.task(41); [t.weight, t.slice, t.dsq_vtime, t.dsq.name]",
            "[141, 0, 0, \"7\"]",
        ),
        ("snap.task(50).dsq", "()"),
        ("snap.task(42).group_leader.kind()", "\"pointer\""),
        ("snap.task(42)[\"group_leader.comm\"]", "\"worker\""),
        ("snap.task(42).get(\"group_leader.group_leader.pid\").as_u64()", "40"),
        ("snap.task(41)[\"scx.dsq.nr\"]", "2"),
        ("snap.task(41).get(\"scx.dsq\").as_ptr(\"struct scx_dispatch_q\").nr", "2"),
        ("snap.task(41).scx.weight", "141"),
        ("`${snap.task(50)}`", "\"task 50 (spin): running, policy ext, CPU 0\""),
        (
            "snap.task(50).get(\"prio\").origin().text",
            "\"task 50 prio of snapshot \\\"end\\\" at 4.012 s\"",
        ),
        ("snap.tasks().filter(|t| t.cgroup == \"/lab/hot\" && t.runnable).len", "3"),
    ] {
        assert_eq!(of_machine(script).as_deref(), Ok(want), "{script}");
    }
}

#[test]
fn cpus_queues_and_the_scheduler_are_read() {
    for (script, want) in [
        ("snap.cpus().map(|c| c.n)", "[0, 1]"),
        (
            "let c = snap.cpu(0); [c.nr_running, c.clock, c.is_idle, c.curr.tid]",
            "[2, 1000, false, 50]",
        ),
        ("let c = snap.cpu(1); [c.nr_running, c.is_idle, c.curr.comm]", "[1, true, \"swapper/1\"]"),
        ("snap.cpu(0).cpustat", "#{idle: 300, user: 700}"),
        ("snap.cpu(1).cpustat.idle == u64(\"0xffffffffffffffff\")", "true"),
        ("snap.cpu(0)[\"curr.comm\"]", "\"spin\""),
        ("snap.cpu(0).dsq.tasks().map(|t| t.tid)", "[1]"),
        ("snap.cpu(0).torn()", "[]"),
        (
            "snap.dsqs().map(|d| d.name)",
            "[\"local:0\", \"local:1\", \"bypass:0\", \"bypass:1\", \"global\", \"7\"]",
        ),
        ("snap.dsq(7).tasks().map(|t| t.tid)", "[41, 42]"),
        ("snap.dsq(\"0x7\").nr", "2"),
        ("let n = []; for t in snap.dsq(7) { n.push(t[\"scx.dsq_seq\"]); } n", "[1, 2]"),
        (
            "let d = snap.dsq(\"local:1\"); [d.cpu, d.nr, d.id.hex()]",
            "[1, 0, \"0x8000000000000002\"]",
        ),
        ("snap.dsq(\"global\").cpu", "()"),
        ("`${snap.dsq(7)}`", "\"dsq 7: 2 tasks [41, 42]\""),
        (
            "let s = snap.sched(); [s.state, s.ops, s.bypass_depth, s.is_attached]",
            "[\"enabled\", \"made\", 0, true]",
        ),
        ("snap.sched().counters()", "#{SCX_EV_BYPASS: 30, SCX_EV_FALLBACK: 3}"),
        ("snap.sched().counters(1).SCX_EV_FALLBACK", "2"),
        ("snap.kernel(\"jiffies_64\", \"u64\")", "4294892296"),
        ("snap.kernel(\"jiffies_64\").raw().len", "16"),
        ("snap.symbol(0)", "()"),
        ("snap.kernel(snap.task(42).get(\"group_leader\"), \"struct task_struct\").pid", "40"),
        ("snap.kernel(\"scx_root\", \"struct scx_sched *\")[\"ops.name\"]", "\"made\""),
        ("type_of(snap.sched()) + type_of(snap.cpu(0))", "\"SnapshotSchedSnapshotCpu\""),
    ] {
        assert_eq!(of_machine(script).as_deref(), Ok(want), "{script}");
    }
}

#[test]
fn what_the_kernel_does_not_have_is_told_with_what_it_has() {
    for (script, want) in [
        (
            "snap.task(43)",
            "task(43) found nothing in \"tasks\", which has 5 entries; keys there: 42, 41, 40, ..",
        ),
        ("snap.cpu(2)", "\"cpus\" has no CPU 2: the machine has 2, from 0 to 1"),
        (
            "snap.dsq(\"locl:1\")",
            "dsq(\"locl:1\") found nothing in \"dsqs\", which has 6 entries; keys there: local:1, \
             local:0, bypass:1, ..",
        ),
        ("snap.sched().counters(5)", "\"cpus\" has no CPU 5: the machine has 2, from 0 to 1"),
        (
            "snap.task(1).nr_switchs",
            "the value has no member \"nr_switchs\"; it has __state, prio, policy, tasks, signal, scx, \
             exit_state, on_rq, on_cpu, pid, tgid, cpu, cgroups, static_prio, thread_node, \
             sched_class and 4 more",
        ),
        (
            "snap.task(1).get(\"scx.wieght\")",
            "\"scx\" has no member \"wieght\" (asked for \"scx.wieght\"); did you mean \"scx.weight\"? \
             (it has weight, dsq_list, dsq, dsq_seq, slice, dsq_vtime)",
        ),
        (
            "snap.task(50).get(\"scx.dsq.nr\")",
            "\"scx.dsq\": expected a pointer that leads somewhere, found NULL",
        ),
        (
            "snap.task(50).get(\"group_leader\").as_ptr(\"struct tsk_struct\")",
            "\"group_leader\": expected a type of this kernel as C spells it, like \"u64\" or \
             \"struct rq\", found \"struct tsk_struct\" (did you mean \"struct task_struct\"?)",
        ),
        (
            "snap.kernel(\"jifies_64\")",
            "kernel variable jifies_64 could not be read: the kernel has no such symbol; did you \
             mean \"jiffies_64\"?",
        ),
        (
            "snap.kernel(\"ext_sched_class\")",
            "kernel variable ext_sched_class could not be read: it was not copied; name it, as in \
             t.freeze(\"tag\", #{ kernel: [\"ext_sched_class\"] }), or keep all of memory with #{ \
             ram: true }",
        ),
        (
            "snap.kernel(\"jiffies_64\") + 1",
            "kernel variable jiffies_64 could not be read: the kernel's BTF does not tell its type, \
             only bytes are known: give the type, as in kernel(\"jiffies_64\", \"u64\"), or read \
             them with .raw()",
        ),
    ] {
        assert_eq!(of_machine(script), Err(want.to_owned()), "{script}");
    }
    let deep = format!("snap.task(42).get(\"{}pid\")", "group_leader.".repeat(17));
    assert_eq!(
        of_machine(&deep),
        Err(format!(
            "\"{}\": expected at most 16 pointers in a path, found one more: ask the last field \
             for the rest",
            ["group_leader"; 17].join(".").get(..80).unwrap_or_default().to_owned() + ".."
        ))
    );
    let addressed = of_machine("snap.task(1).get(\"signal\").as_ptr(\"struct signal_struct\")");
    let text = addressed.unwrap_err();
    assert!(text.starts_with("the struct signal_struct at 0xffff8880"), "{text}");
    assert!(text.contains("and what its option `kernel` names; `ram: true` keeps"), "{text}");
    let old = |script: &str| run(script, made_up(false)).map_err(|e| told(*e)).unwrap_err();
    assert_eq!(
        old("snap.sched()"),
        "no scheduler was running: this kernel was built without sched_ext (CONFIG_SCHED_CLASS_EXT)"
    );
    assert_eq!(
        eval("snap.tasks()"),
        Err("the kernel's state could not be read: it was not copied with this snapshot".to_owned())
    );
}
