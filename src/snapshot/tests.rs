//! The model against the hand-made snapshot of `testing.rs`.

mod compiled;
mod core;
mod diff;
mod json;
mod kinds;
mod live;
mod modules;
mod pointers;
mod pressure;
mod ram;
mod registers;
pub(crate) mod special;
mod store;
mod store_ram;
mod texts;
mod touched;

use super::testing::{Object, Rows, bytes, comm, meta, object, sample, types};
use super::*;
use crate::btf::testing::Builder;

fn text<T: std::fmt::Debug>(result: SnapshotResult<T>) -> String {
    result.expect_err("it must not succeed").to_string()
}

fn field(map: &str, key: KeyArg, path: &str) -> Field {
    sample().map(map).unwrap().get(&key).unwrap().get(path).unwrap()
}

fn task(path: &str) -> Field {
    field("task_ctx", KeyArg::Number(1002), path)
}

#[test]
fn every_kind_of_leaf_has_its_value() {
    let leaf = |path: &str| task(path).leaf().unwrap().unwrap();
    assert_eq!(leaf("ctx.weight"), Scalar::Int(200));
    assert_eq!(leaf("ctx.vtime"), Scalar::Int(-2000));
    assert_eq!(leaf("big"), Scalar::U64(u64::MAX - 1));
    assert_eq!(leaf("nice"), Scalar::Int(-20));
    assert_eq!(leaf("running"), Scalar::Bool(true));
    assert_eq!(leaf("comm"), Scalar::Str("fast".into()));
    assert_eq!(leaf("ratio"), Scalar::Float(1.5));
    assert_eq!(leaf("exact"), Scalar::Float(0.25));
    assert_eq!(leaf("word"), Scalar::Int(0x0403_0201));
    assert_eq!(leaf("octets[3]"), Scalar::Int(4));
    assert_eq!(leaf("bits.lo"), Scalar::Int(5));
    assert_eq!(leaf("bits.mid"), Scalar::Int(-2));
    assert_eq!(leaf("bits.hi"), Scalar::Int(0xab_cdef));
    assert_eq!(leaf("slots[2]"), Scalar::Int(30));
    assert_eq!(leaf("fifos[2].len"), Scalar::Int(6));
    assert_eq!(leaf("comm[0]"), Scalar::Int(i64::from(b'f')));
    let Scalar::Enum(state) = leaf("state") else { panic!("an enum") };
    assert_eq!((state.name().as_deref(), state.value()), (Some("RUNNING"), 2));
    assert_eq!(state.type_name(), "enum task_state");
    let Scalar::Enum(flags) = leaf("flags") else { panic!("an enum") };
    assert_eq!((flags.to_string().as_str(), flags.value()), ("BUILTIN", 1 << 63));
}

#[test]
fn structs_arrays_and_pointers_are_no_leaves() {
    for (path, kind) in [
        ("ctx", FieldKind::Struct),
        ("fifos", FieldKind::Array),
        ("next", FieldKind::Pointer),
        ("fifos[1]", FieldKind::Struct),
    ] {
        assert_eq!((task(path).leaf(), task(path).kind()), (Ok(None), kind), "{path}");
    }
    assert_eq!(task("next").as_u64(), Ok(0xffff_8880_0000_2000));
    assert_eq!(task("next").as_bool(), Ok(true));
    assert_eq!(task("fifos").as_array().unwrap()[1].get("head").unwrap().as_u64(), Ok(3));
    assert_eq!(task("ctx").members().unwrap(), ["weight", "vtime"]);
    let all = sample().map("task_ctx").unwrap().at(0).unwrap().value().unwrap().members().unwrap();
    assert!(all.contains(&"octets".to_owned()), "members of anonymous unions count: {all:?}");
    assert_eq!(task("slots").raw().unwrap(), bytes![10u16, 20u16, 30u16, 40u16]);
}

#[test]
fn conversions_keep_to_what_fits() {
    assert_eq!(task("running").as_u64(), Ok(1));
    assert_eq!(task("state").as_i64(), Ok(2));
    assert_eq!(task("state").as_str().as_deref(), Ok("RUNNING"));
    assert_eq!(task("octets").as_str().as_deref(), Ok("\u{1}\u{2}\u{3}\u{4}"));
    assert_eq!(task("nice").as_f64(), Ok(-20.0));
    assert_eq!(task("nice").as_bool(), Ok(true));
    let cases = [
        (text(task("nice").as_u64()), "\"nice\": expected an unsigned number, found -20 (int)"),
        (
            text(task("big").as_i64()),
            "\"big\": expected a number that fits i64 (as_u64() reads larger ones), found \
             18446744073709551614 (int)",
        ),
        (text(task("ratio").as_u64()), "\"ratio\": expected an unsigned number, found 1.5 (float)"),
        (text(task("comm").as_f64()), "\"comm\": expected a number, found \"fast\" (text)"),
        (text(task("comm").as_bool()), "\"comm\": expected a truth value, found \"fast\" (text)"),
        (text(task("nice").as_str()), "\"nice\": expected text, found -20 (int)"),
        (
            text(task("ctx").as_u64()),
            "\"ctx\": expected a single value, found a struct (struct inner)",
        ),
        (
            text(task("fifos").as_u64()),
            "\"fifos\": expected a single value, found an array (struct fifo[3])",
        ),
        (text(task("ctx").as_array()), "\"ctx\": expected an array, found a struct (struct inner)"),
        (text(task("nice").members()), "\"nice\": expected a struct, found -20 (int)"),
        (
            text(task("next").members()),
            "\"next\": expected a struct, found 0xffff888000002000 (pointer, struct task_ctx *)",
        ),
    ];
    for (have, want) in cases {
        assert_eq!(have, want);
    }
}

#[test]
fn paths_that_lead_nowhere_say_where_they_stopped() {
    let entry = sample().map("task_ctx").unwrap().get(&KeyArg::Number(7)).unwrap();
    let cases = [
        (
            "ctx.wieght",
            "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
             \"ctx.weight\"? (it has weight, vtime)",
        ),
        (
            "ctx.weight.x",
            "\"ctx.weight\" is an int, so it has no member \"x\" (asked for \"ctx.weight.x\"): \
             the path ends at \"ctx.weight\"",
        ),
        (
            "fifos.head",
            "\"fifos\" is an array, so it has no member \"head\" (asked for \"fifos.head\"): \
             choose an element, as in \"fifos[0]\"",
        ),
        ("next.ctx", "the kernel's state could not be read: it was not copied with this snapshot"),
        ("fifos[3].head", "\"task_ctx: fifos\" has no index 3: it has 3, from 0 to 2"),
        ("ctx..weight", "path \"ctx..weight\" has an empty component; write \"ctx.weight\""),
        ("ctx.", "path \"ctx.\" has an empty component; write \"ctx\""),
        ("", "the path is empty: name a member, as in \"ctx.weight\""),
        (
            "fifos[x]",
            "\"fifos[x]\": expected a member name, with indices as in \"name[3]\", found \
             \"fifos[x]\"",
        ),
        ("ctx[0]", "\"ctx\" has no member \"[0]\" (asked for \"ctx[0]\"); it has weight, vtime"),
        (
            "nice[0]",
            "\"nice\" is an int, so it has no member \"[0]\" (asked for \"nice[0]\"): the path \
             ends at \"nice\"",
        ),
        (
            "comm.x",
            "\"comm\" is a text, so it has no member \"x\" (asked for \"comm.x\"): choose an \
             element, as in \"comm[0]\"",
        ),
    ];
    for (path, want) in cases {
        assert_eq!(text(entry.get(path)), want, "{path}");
    }
    // From a field on, the whole path is told.
    assert_eq!(
        text(entry.get("ctx").unwrap().get("wieght")),
        "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
         \"ctx.weight\"? (it has weight, vtime)"
    );
    assert_eq!(
        text(entry.get("fifos[1]").unwrap().get("head.x")),
        "\"fifos[1].head\" is an int, so it has no member \"x\" (asked for \
         \"fifos[1].head.x\"): the path ends at \"fifos[1].head\""
    );
    assert_eq!(
        text(entry.key().get("x")),
        "the value is an int, so it has no member \"x\" (asked for \"x\"): read it without a path"
    );
}

#[test]
fn globals_are_found_in_their_sections() {
    let snap = sample();
    assert_eq!(snap.global("nr_enqueued").unwrap().as_u64(), Ok(100));
    assert_eq!(snap.global("slice_ns").unwrap().as_u64(), Ok(5_000_000));
    assert_eq!(snap.global("totals.worst").unwrap().as_i64(), Ok(-3));
    assert_eq!(snap.global("totals").unwrap().get("nr").unwrap().as_i64(), Ok(7));
    assert_eq!(snap.global("probe.____fmt").unwrap().as_str().as_deref(), Ok("hello"));
    assert_eq!(snap.global("probe.____fmt[1]").unwrap().as_u64(), Ok(u64::from(b'e')));
    let section = snap.map("fifo.bss").unwrap().at(0).unwrap();
    assert_eq!(section.get("nr_dispatched").unwrap().as_u64(), Ok(90));
    assert_eq!(section.value().unwrap().members().unwrap().len(), 4);
    let cases = [
        (
            "nr_enqeued",
            "no global variable is called \"nr_enqeued\"; did you mean global(\"nr_enqueued\")? \
             (there are nr_enqueued, nr_dispatched, probe.____fmt, slice_ns, totals)",
        ),
        (
            "totals.wrost",
            "\"totals\" has no member \"wrost\" (asked for \"totals.wrost\"); did you mean \
             \"totals.worst\"? (it has worst, nr)",
        ),
        (
            "nr_enqueued.x",
            "\"nr_enqueued\" is an int, so it has no member \"x\" (asked for \
             \"nr_enqueued.x\"): the path ends at \"nr_enqueued\"",
        ),
        ("totals.", "path \"totals.\" has an empty component; write \"totals\""),
        ("", "the path is empty: name a member, as in \"ctx.weight\""),
    ];
    for (name, want) in cases {
        assert_eq!(text(snap.global(name)), want, "{name}");
    }
    assert_eq!(
        text(section.get("nr_enqeued")),
        "the value has no member \"nr_enqeued\"; did you mean \"nr_enqueued\"? (it has \
         nr_enqueued, nr_dispatched, probe.____fmt, totals)"
    );
    let none = Snapshot::new(meta("bare"), Vec::new(), Vec::new());
    assert_eq!(
        text(none.global("x")),
        "no global variable is called \"x\": no captured map is a .bss, .data or .rodata section \
         with types (is a scheduler attached?)"
    );
}

#[test]
fn two_copies_of_an_object_are_told_apart() {
    let mut maps = object().maps;
    let t = types();
    let mut other = Object { btf: Some(t.btf.clone()), maps };
    let rows = Rows { values: vec![bytes![6_000_000u64]], ..Rows::default() };
    other.map("fifo.rodata", "array", (0, t.rodata), rows);
    maps = other.maps;
    let last = maps.len();
    let snap = Snapshot::new(meta("twice"), maps, Vec::new());
    assert_eq!(
        text(snap.global("slice_ns")),
        format!(
            "more than one captured map has a variable \"slice_ns\": fifo.rodata#2, \
             fifo.rodata#{last}; live_global(\"slice_ns\") takes the attached scheduler's, \
             globals(\"slice_ns\") all of them, map(\"fifo.rodata#2\").at(0).get(\"slice_ns\") \
             this one's"
        )
    );
    assert_eq!(
        text(snap.map("fifo.rodata")),
        format!(
            "more than one captured map is called \"fifo.rodata\": fifo.rodata#2, \
             fifo.rodata#{last}; choose one, as in map(\"fifo.rodata#2\")"
        )
    );
    let one = snap.map(&format!("fifo.rodata#{last}")).unwrap().at(0).unwrap();
    assert_eq!(one.get("slice_ns").unwrap().as_u64(), Ok(6_000_000));
    let all = snap.globals("slice_ns").unwrap();
    let all: Vec<u64> = all.iter().map(|f| f.as_u64().unwrap()).collect();
    assert_eq!(all, [5_000_000, 6_000_000]);
    assert!(snap.globals("slice").is_err());
}

#[test]
fn maps_are_found_by_full_and_by_cut_name() {
    let snap = sample();
    assert_eq!(snap.map("by_name_of_the_comm").unwrap().len(), Ok(2));
    assert_eq!(snap.map("by_name_of_the").map(|_| ()), Err(not_found(&snap, "by_name_of_the")));
    assert_eq!(snap.map("by_name_of_the_").unwrap().name(), "by_name_of_the_comm");
    assert_eq!(snap.map("task_ctx#4").unwrap().name(), "task_ctx");
    assert!(snap.map("task_ctx#5").is_err());
    assert_eq!(
        text(snap.map("task_ctxx")),
        "no captured map is called \"task_ctxx\"; did you mean map(\"task_ctx\")? (there are \
         task_ctx, by_name_of_the_comm, pairs, cpu_stats, cpu_hits, events, partial, empty, \
         fifo.bss, fifo.rodata, squares, untyped)"
    );
}

fn not_found(snap: &Arc<Snapshot>, name: &str) -> SnapshotError {
    let names = snap.maps().unwrap().iter().map(|m| m.name().to_owned()).collect();
    SnapshotError::MapNotFound { requested: name.to_owned(), available: nearest_first(name, names) }
}

#[test]
fn entries_come_in_the_order_of_their_keys() {
    let snap = sample();
    let keys = |map: &str| -> Vec<String> {
        snap.map(map).unwrap().entries().unwrap().map(|e| e.key_text()).collect()
    };
    assert_eq!(keys("task_ctx"), ["7", "1001", "1002"]);
    assert_eq!(keys("squares"), ["0", "1", "2", "3", "4"]);
    assert_eq!(keys("by_name_of_the_comm"), ["\"alpha\"", "\"zeta\""]);
    assert_eq!(keys("pairs"), ["{pid: 1, dsq: 10}", "{pid: 2, dsq: 20}"]);
    assert_eq!(keys("untyped"), ["0x01000000"]);
    assert_eq!(keys("empty"), Vec::<String>::new());
    let tasks = snap.map("task_ctx").unwrap();
    assert_eq!(tasks.at(0).unwrap().key().as_u64(), Ok(7));
    assert_eq!(tasks.at(0).unwrap().torn(), ["its bucket was locked"]);
    assert_eq!(tasks.at(1).unwrap().torn(), Vec::<String>::new());
    assert_eq!(text(tasks.at(3)), "\"task_ctx\" has no index 3: it has 3, from 0 to 2");
    assert_eq!(text(tasks.at(-1)), "\"task_ctx\" has no index -1: it has 3, from 0 to 2");
}

#[test]
fn keys_are_looked_up_as_an_author_writes_them() {
    let snap = sample();
    let value = |map: &str, key: KeyArg| snap.map(map).unwrap().get(&key)?.value()?.as_u64();
    let pair = |pid, dsq| {
        KeyArg::Struct(vec![
            ("dsq".into(), KeyArg::Number(dsq)),
            ("pid".into(), KeyArg::Number(pid)),
        ])
    };
    assert_eq!(value("squares", KeyArg::Number(3)), Ok(9));
    assert_eq!(value("squares", KeyArg::Bytes(bytes![2u32])), Ok(4));
    assert_eq!(value("pairs", pair(1, 10)), Ok(11), "padding does not count");
    assert_eq!(value("pairs", pair(2, 20)), Ok(22));
    assert_eq!(value("by_name_of_the_comm", KeyArg::Str("zeta".into())), Ok(4));
    assert_eq!(value("by_name_of_the_comm", KeyArg::Bytes(comm("alpha"))), Ok(5));
    let untyped = snap.map("untyped").unwrap().get(&KeyArg::Bytes(bytes![1u32])).unwrap();
    assert_eq!(untyped.value().unwrap().raw().unwrap(), bytes![0x1122_3344u32]);
    let tasks = snap.map("task_ctx").unwrap();
    assert_eq!(tasks.contains(&KeyArg::Number(7)), Ok(true));
    assert_eq!(tasks.contains(&KeyArg::Number(8)), Ok(false));
    let cases = [
        (
            value("task_ctx", KeyArg::Number(1000)),
            "get(1000) found nothing in \"task_ctx\", which has 3 entries; keys there: 7, 1001, \
             1002",
        ),
        (
            value("squares", KeyArg::Number(5)),
            "get(5) found nothing in \"squares\", which has 5 entries; keys there: 0, 1, 2, ..",
        ),
        (
            value("untyped", KeyArg::Bytes(bytes![2u32])),
            "get(0x02000000) found nothing in \"untyped\", which has one entry; keys there: \
             0x01000000 (bytes, because the map's key has no BTF type: give raw bytes, or declare \
             the map with __type(key, ..))",
        ),
        (value("empty", KeyArg::Number(1)), "get(1) found nothing in \"empty\": it is empty"),
        (
            value("task_ctx", KeyArg::Number(-1)),
            "\"key\": expected a u32 (0 to 4294967295), found -1",
        ),
        (
            value("task_ctx", KeyArg::Str("fast".into())),
            "\"key\": expected an int (u32), found \"fast\" (text)",
        ),
        (
            value("squares", KeyArg::Str("1".into())),
            "\"key\": expected an index of squares (a number), found \"1\"",
        ),
        (
            value("pairs", KeyArg::Number(1)),
            "\"key\": expected #{pid: .., dsq: ..} (struct pair), found 1 (a number)",
        ),
        (
            value("pairs", KeyArg::Struct(vec![("pid".into(), KeyArg::Number(1))])),
            "\"key\": expected every member of struct pair, found none called dsq",
        ),
        (
            value("pairs", KeyArg::Struct(vec![("pdi".into(), KeyArg::Number(1))])),
            "the value has no member \"pdi\"; did you mean \"pid\"? (it has pid, dsq)",
        ),
        (
            value("by_name_of_the_comm", KeyArg::Str("seventeen letters".into())),
            "\"key\": expected at most 16 bytes of text (char[16]), found 17 bytes",
        ),
        (
            value("untyped", KeyArg::Number(1)),
            "the key of \"untyped\" has no BTF type, only bytes: read them with .raw(), or \
             declare the map with __type(key, ..) instead of __uint(key_size, ..)",
        ),
        (
            value("untyped", KeyArg::Bytes(vec![1])),
            "\"key\": expected a key of 4 bytes, found 1 bytes",
        ),
        (
            value("untyped", KeyArg::Bytes(bytes![1u32])),
            "the value of \"untyped\" has no BTF type, only bytes: read them with .raw(), or \
             declare the map with __type(value, ..) instead of __uint(value_size, ..)",
        ),
    ];
    for (have, want) in cases {
        assert_eq!(text(have), want);
    }
}

#[test]
fn key_types_that_promise_gigabytes_cost_nothing() {
    let mut b = Builder::new();
    let u32_ = b.int("unsigned int", 4, false);
    let huge = b.array(u32_, u32::MAX / 8);
    let key = b.structure("key", 4, &[("pid", u32_, 0), ("huge", huge, 32)]);
    let rows =
        Rows { keys: Some(vec![bytes![7u32]]), values: vec![bytes![1u64]], ..Rows::default() };
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    o.map("m", "hash", (key, u32_), rows);
    let map = Snapshot::new(meta("x"), o.maps, Vec::new()).map("m").unwrap();
    let pid = |n| KeyArg::Struct(vec![("pid".into(), KeyArg::Number(n))]);
    assert_eq!(map.get(&pid(7)).unwrap().value().unwrap().as_u64(), Ok(1));
    assert!(map.get(&pid(8)).is_err());
    let whole = KeyArg::Struct(vec![
        ("pid".into(), KeyArg::Number(7)),
        ("huge".into(), KeyArg::Array(vec![])),
    ]);
    assert_eq!(text(map.get(&whole)), "\"key.huge\": expected 536870911 elements, found 0 of them");
    assert_eq!(
        map.at(0).unwrap().key_text(),
        "{pid: 7, huge: [<map \"m\" could not be read: unsigned int[536870911] takes 2147.."
    );
}

#[test]
fn enum_keys_are_looked_up_by_name_and_number() {
    let t = types();
    let rows = Rows {
        keys: Some(vec![bytes![-1i32], bytes![2i32]]),
        values: vec![bytes![1u64], bytes![2u64]],
        ..Rows::default()
    };
    let mut o = Object { btf: Some(t.btf.clone()), maps: Vec::new() };
    o.map("by_state", "hash", (t.state, t.u64_), rows);
    let map = Snapshot::new(meta("e"), o.maps, Vec::new()).map("by_state").unwrap();
    let value = |key: KeyArg| map.get(&key)?.value()?.as_u64();
    assert_eq!(value(KeyArg::Str("GONE".into())), Ok(1));
    assert_eq!(value(KeyArg::Number(2)), Ok(2));
    assert_eq!(
        text(value(KeyArg::Str("RUNING".into()))),
        "\"key\": expected a name of enum task_state, found \"RUNING\" (it has RUNNING, \
         QUEUED, GONE, IDLE)"
    );
    assert_eq!(map.at(0).unwrap().key_text(), "GONE (-1)");
}

#[test]
fn per_cpu_values_are_narrowed_or_reduced() {
    let snap = sample();
    let map = snap.map("cpu_stats").unwrap();
    let entry = map.at(0).unwrap();
    assert_eq!(entry.cpu(2).unwrap().get("nr").unwrap().as_u64(), Ok(300));
    assert_eq!(map.cpu(3).unwrap().at(0).unwrap().get("nr").unwrap().as_u64(), Ok(4000));
    assert_eq!(entry.reduce(Reduce::Sum, "nr"), Ok(Scalar::Int(4321)));
    assert_eq!(entry.reduce(Reduce::Max, "worst"), Ok(Scalar::Int(4)));
    assert_eq!(entry.reduce(Reduce::Min, "worst"), Ok(Scalar::Int(-5)));
    assert_eq!(
        snap.map("cpu_hits").unwrap().at(0).unwrap().reduce(Reduce::Sum, ""),
        Ok(Scalar::Int(10))
    );
    let holed = map.at(1).unwrap();
    assert!(holed.is_present() && holed.cpu(0).unwrap().is_present());
    assert!(!holed.cpu(1).unwrap().is_present());
    let unmapped = "\"cpu_stats\" has no memory behind its slot of CPU 1 (of 4): the CPU cannot \
                    come up in this machine, or its memory could not be read; .is_present() tells \
                    such slots";
    let not_narrowed = "\"cpu_stats\" has one value for each CPU: choose one with .cpu(n), or \
                        take .cpu_sum(path), .cpu_max(path) or .cpu_min(path) of an entry";
    let not_per_cpu = "expected a per-CPU map, found squares of kind array";
    let square = snap.map("squares").unwrap().at(2).unwrap();
    let cases = [
        (text(entry.value()), not_narrowed),
        (text(entry.get("nr")), not_narrowed),
        (text(entry.cpu(4)), "\"cpu_stats\" has no CPU 4: the machine has 4, from 0 to 3"),
        (text(map.cpu(-1)), "\"cpu_stats\" has no CPU -1: the machine has 4, from 0 to 3"),
        (text(holed.cpu(1).unwrap().get("nr")), unmapped),
        (text(holed.reduce(Reduce::Sum, "nr")), unmapped),
        (text(square.cpu(0)), not_per_cpu),
        (text(square.reduce(Reduce::Max, "")), not_per_cpu),
        (
            text(entry.reduce(Reduce::Sum, "")),
            "expected a number, found a struct (struct cpu_stats)",
        ),
        (
            text(entry.reduce(Reduce::Sum, "rn")),
            "the value has no member \"rn\"; did you mean \"nr\"? (it has nr, worst)",
        ),
    ];
    for (have, want) in cases {
        assert_eq!(have, want);
    }
}

#[test]
fn reductions_neither_overflow_nor_reduce_nothing() {
    let t = types();
    let map = |cpus: Vec<Option<Vec<u8>>>| {
        let mut o = Object { btf: Some(t.btf.clone()), maps: Vec::new() };
        let rows = Rows { cpus: Some(vec![cpus]), ..Rows::default() };
        o.map("m", "percpu_array", (t.u32_, t.u64_), rows);
        Snapshot::new(meta("x"), o.maps, Vec::new()).map("m").unwrap().at(0).unwrap()
    };
    let large = map(vec![Some(bytes![u64::MAX]), Some(bytes![u64::MAX])]);
    assert_eq!(large.reduce(Reduce::Max, ""), Ok(Scalar::U64(u64::MAX)));
    assert_eq!(
        text(large.reduce(Reduce::Sum, "")),
        "expected a sum that fits 64 bits, found one that does not (add up .cpu(n) with \
         wrapping_sub, or as_f64())"
    );
    assert_eq!(
        map(vec![]).reduce(Reduce::Min, ""),
        Err(SnapshotError::NoMatch {
            map: "m".into(),
            op: "cpu_min(\"\")".into(),
            len: 0,
            available_keys: vec![]
        })
    );
}

#[test]
fn what_was_not_read_never_looks_empty() {
    let snap = sample();
    let events = snap.map("events").unwrap();
    let ringbuf = "map \"events\" could not be read: maps of kind ringbuf cannot be decoded yet";
    assert_eq!((events.attrs().kind.as_str(), events.attrs().value_size), ("ringbuf", 8));
    assert_eq!(text(events.len()), ringbuf);
    assert_eq!(text(events.at(0)), ringbuf);
    assert_eq!(text(events.get(&KeyArg::Bytes(vec![0; 4]))), ringbuf);
    assert_eq!(text(events.contains(&KeyArg::Bytes(vec![0; 4]))), ringbuf);
    assert_eq!(text(events.keys()), ringbuf);
    assert_eq!(text(events.cpu(0)), ringbuf);
    assert_eq!(events.nothing_matched("find").to_string(), ringbuf);
    let partial = snap.map("partial").unwrap();
    let cut = "map \"partial\" could not be read: only 1 of its entries were captured: the time \
               budget of the freeze ran out";
    assert_eq!(partial.get(&KeyArg::Number(5)).unwrap().value().unwrap().as_u64(), Ok(50));
    assert_eq!(partial.at(0).unwrap().key().as_u64(), Ok(5));
    assert_eq!(partial.contains(&KeyArg::Number(5)), Ok(true));
    assert_eq!(text(partial.contains(&KeyArg::Number(6))), cut);
    assert_eq!(text(partial.get(&KeyArg::Number(6))), cut);
    assert_eq!(text(partial.len()), cut);
    assert_eq!(text(partial.at(1)), cut);
    assert_eq!(partial.known_entries().len(), 1);
    assert_eq!(partial.torn(), ["the map was being resized"]);
}

#[test]
fn a_placeholder_answers_nothing_but_what_it_is() {
    let snap = Snapshot::placeholder(meta("late"), "the vCPUs did not stop within 2 s");
    let want = SnapshotError::PlaceholderSnapshot { tag: Some("late".into()) };
    assert!(snap.is_placeholder());
    assert_eq!(snap.maps().map(|_| ()), Err(want.clone()));
    assert_eq!(snap.map("x").map(|_| ()), Err(want.clone()));
    assert_eq!(snap.global("x").map(|_| ()), Err(want.clone()));
    assert_eq!(snap.globals("x").map(|_| ()), Err(want));
    assert_eq!(
        snap.dump(),
        "snapshot \"late\" at 4.012 s is empty: its freeze did not complete: the vCPUs did not \
         stop within 2 s\n"
    );
}

#[test]
fn origins_say_map_key_path_and_instant() {
    let snap = sample();
    let origin = |field: Field| field.origin().to_string();
    let at = "of snapshot \"end\" at 4.012 s";
    assert_eq!(origin(snap.global("totals.nr").unwrap()), format!("fifo.bss totals.nr {at}"));
    assert_eq!(origin(task("ctx.weight")), format!("task_ctx[1002].ctx.weight {at}"));
    let stats = snap.map("cpu_stats").unwrap().cpu(1).unwrap().at(0).unwrap();
    assert_eq!(origin(stats.get("nr").unwrap()), format!("cpu_stats[0].nr on CPU 1 {at}"));
    let square = snap.map("squares").unwrap().at(2).unwrap();
    assert_eq!(origin(square.value().unwrap()), format!("squares[2] {at}"));
    assert_eq!(origin(square.key()), format!("squares[2].key {at}"));
}

#[test]
fn types_that_promise_more_than_there_are_bytes_are_refused() {
    let mut b = Builder::new();
    let u64_ = b.int("unsigned long", 8, false);
    let past = b.structure("past", 64, &[("first", u64_, 0), ("last", u64_, 56 * 8)]);
    let btf = b.parse();
    let mut o = Object { btf: Some(btf), maps: Vec::new() };
    let rows = Rows { values: vec![bytes![1u64]], ..Rows::default() };
    o.map("liar", "array", (u64_, past), rows);
    let entry = Snapshot::new(meta("x"), o.maps, Vec::new()).map("liar").unwrap().at(0).unwrap();
    assert_eq!(text(entry.get("last")), text(entry.value()));
    assert_eq!(
        text(entry.value()),
        "map \"liar\" could not be read: struct past takes 64 bytes at offset 0, but a value of \
         the map has 8 bytes"
    );
}

#[test]
fn text_that_is_none_is_refused_and_shown_as_bytes() {
    let t = types();
    let rows = Rows { values: vec![vec![b'a', 0xff, 0xfe, 0, 1]], ..Rows::default() };
    let mut b = Builder::new();
    let char_ = b.int("char", 1, true);
    let five = b.array(char_, 5);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    o.map("names", "array", (char_, five), rows);
    let value = Snapshot::new(meta("x"), o.maps, Vec::new())
        .map("names")
        .unwrap()
        .at(0)
        .unwrap()
        .value()
        .unwrap();
    assert_eq!(
        text(value.as_str()),
        "expected text, found bytes that are not UTF-8 (0xfffe at byte 1; .raw() reads them)"
    );
    assert!(value.leaf().is_err());
    assert_eq!(value.inline(80), "0x61fffe0001");
    drop(t);
}

#[test]
fn a_snapshot_dumps_as_an_aligned_tree() {
    let dump = sample().dump();
    let want = include_str!("dump_sample.txt");
    assert!(dump.lines().all(|line| line.chars().count() <= 80 || !line.contains(", ")), "{dump}");
    assert_eq!(dump, want, "\n{dump}");
}

#[test]
fn long_values_are_broken_after_commas_and_equal_neighbours_shown_once() {
    let mut b = Builder::new();
    let u64_ = b.int("unsigned long", 8, false);
    let many = b.array(u64_, 64);
    let pair = b.structure("pair", 16, &[("first", u64_, 0), ("second", u64_, 64)]);
    let pairs = b.array(pair, 100);
    let all = b.structure("all", 2112, &[("counts", many, 0), ("pairs", pairs, 64 * 64)]);
    let mut value: Vec<u8> = (0..24u64).flat_map(|n| (n * 1_000_003).to_le_bytes()).collect();
    value.resize(64 * 8, 0);
    value.extend(bytes![1u64, 2u64, 3u64, 4u64]);
    value.resize(2112, 0);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    o.map("m", "array", (u64_, all), Rows { values: vec![value], ..Rows::default() });
    let dump = Snapshot::new(meta("x"), o.maps, Vec::new()).map("m").unwrap().dump();
    let want = "\
m: array, 1 entry, unsigned long -> struct all
  [0]
    counts  [0, 1000003, 2000006, 3000009, 4000012, 5000015, 6000018, 7000021,
            8000024, 9000027, 10000030, 11000033, 12000036, 13000039, 14000042,
            15000045, 16000048, 17000051, 18000054, 19000057, 20000060,
            21000063, 22000066, 23000069, 0 x 40]
    pairs (struct pair[100])
      [0]      {first: 1, second: 2}
      [1]      {first: 3, second: 4}
      [2..99]  all zero
";
    assert_eq!(dump, want, "\n{dump}");
}

mod hostile {
    use super::*;
    use crate::btf::Btf;
    use proptest::prelude::*;

    /// Everything that can be asked of a field, for its side effects: none may be a panic.
    fn ask_everything(field: &Field) {
        let _ = (field.as_u64(), field.as_i64(), field.as_f64(), field.as_bool(), field.as_str());
        let _ = (field.leaf(), field.raw(), field.members(), field.kind(), field.described());
        let _ = (field.to_string(), field.origin().to_string(), field.dump());
        if let Ok(elements) = field.as_array() {
            for element in elements.iter().take(4) {
                let _ = (element.leaf(), element.inline(80));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn paths_of_any_kind_are_answered(path in r"[a-z.\[\]0-9_#\u{0}é -]{0,24}") {
            let snap = sample();
            let entry = snap.map("task_ctx").unwrap().at(0).unwrap();
            for answer in [entry.get(&path), snap.global(&path), entry.key().get(&path)] {
                match answer {
                    Ok(field) => ask_everything(&field),
                    Err(error) => prop_assert!(!error.to_string().is_empty()),
                }
            }
            let _ = snap.map(&path).map(|map| map.dump());
        }

        #[test]
        fn bytes_of_any_length_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..160)) {
            let t = types();
            for ty in 1..t.btf.len() {
                let mut o = Object { btf: Some(t.btf.clone()), maps: Vec::new() };
                let rows = Rows {
                    keys: Some(vec![bytes.clone()]),
                    values: vec![bytes.clone()],
                    ..Rows::default()
                };
                o.map("m", "hash", (ty, ty), rows);
                let snap = Snapshot::new(meta("x"), o.maps, Vec::new());
                let entry = snap.map("m").unwrap().at(0).unwrap();
                let _ = (snap.dump(), entry.key_text(), entry.dump());
                let _ = entry.value().map(|value| ask_everything(&value));
                let _ = snap.map("m").unwrap().get(&KeyArg::Number(5));
            }
        }

        #[test]
        fn damaged_types_are_walked_to_an_end(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            bytes in proptest::collection::vec(any::<u8>(), 128..129),
        ) {
            let mut raw = types().btf.raw().to_vec();
            for (at, byte) in damage {
                // The header is checked by the parser's own tests.
                let at = 24 + at.index(raw.len() - 24);
                raw[at] = byte;
            }
            let Ok(btf) = Btf::parse(&raw) else { return Ok(()) };
            for ty in 1..btf.len() {
                let mut o = Object { btf: Some(btf.clone()), maps: Vec::new() };
                let rows = Rows { values: vec![bytes.clone()], ..Rows::default() };
                o.map("m", "array", (0, ty), rows);
                let snap = Snapshot::new(meta("x"), o.maps, Vec::new());
                let _ = (snap.dump(), snap.global("ctx.weight"));
                let entry = snap.map("m").unwrap().at(0).unwrap();
                let _ = entry.value().map(|value| ask_everything(&value));
                let _ = (entry.get("ctx.weight"), entry.get("fifos[1].head"));
            }
        }

        #[test]
        fn keys_of_any_kind_are_looked_up(
            n in any::<i128>(),
            text in ".{0,20}",
            bytes in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let snap = sample();
            let keys = [
                KeyArg::Number(n),
                KeyArg::Str(text.clone()),
                KeyArg::Bytes(bytes),
                KeyArg::Bool(true),
                KeyArg::Array(vec![KeyArg::Number(n); 3]),
                KeyArg::Struct(vec![("pid".into(), KeyArg::Number(n)), (text, KeyArg::Bool(false))]),
            ];
            for map in snap.maps().unwrap() {
                for key in &keys {
                    let _ = (map.get(key), map.contains(key));
                }
            }
        }
    }
}
