//! Runs of scenarios on real machines, as a user sees them: what each outcome looks like, and what
//! bad input gets. Scenarios are grouped, since every one boots a machine.

use std::fs;

use cryoscope::scenario::event::{RunEvent, RunModel};

use place::{Place, alone, project};
use serde_json::json;

mod place;

/// Asserts that `text` has all of these, in this order.
fn has(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not (there) in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn outcomes_are_told_with_their_reasons() {
    let _alone = alone();
    let place = Place::new();
    place.file(
        "all.rhai",
        r#"const SMALL = "1n1l1c1t";
scenario("passes", #{ topology: SMALL }, |t| {
    print("hello \x1b[31mthere");
    note("remember this");
    expect(1 + 1).eq(2);
    let old = t.freeze("a").tag;
    expect(t.freeze("a").tag, "a tag used again").eq("a#2");
});
scenario("fails", #{ topology: SMALL }, |t| {
    expect(t.topology.cpus, "CPUs").eq(64);
    require(false, "that was required");
    fail("never");
});
scenario("skips", #{ topology: SMALL }, |t| { expect(1).eq(1); skip("not here"); fail("never"); });
scenario("says nothing", #{ topology: SMALL }, |t| { });
scenario("throws", #{ topology: SMALL }, |t| { let x = [1]; x[7]; });
scenario("computes for ever", #{ topology: SMALL, timeout: "25s" }, |t| {
    // Few steps that each take long: a fast host must not come to the limit of steps first.
    let text = "x";
    text.pad(100000, "y");
    loop { text.contains("z"); }
});
"#,
    );
    let said = place.run(&["run", "all.rhai", "--json", "events.jsonl", "--keep", "kept"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    has(&said.out, &["cryoscope 0.1.0: 6 scenarios"]);
    has(said.about("passes"), &["PASS", " s  passes", "│ hello there", "note: remember this"]);
    has(
        said.about("fails"),
        &[
            "FAIL",
            "fail: CPUs",
            "expected: 64",
            "found: 1",
            "--> all.rhai:10:5",
            "10 |     expect(t.topology.cpus, \"CPUs\").eq(64);",
            "|     ^",
            "that was required",
            "--> all.rhai:11:5",
        ],
    );
    assert!(!said.out.contains("fail: never"), "require and skip end the scenario");
    has(said.about("skips"), &["SKIP", "skip: not here"]);
    has(said.about("says nothing"), &["INCONCLUSIVE", "no check was recorded"]);
    let throws = said.about("throws");
    has(throws, &["ERROR", "--> all.rhai:16:", "x[7]"]);
    assert!(!throws.contains("console"), "the machine is not to blame: {throws}");
    let late = said.about("computes for ever");
    has(late, &["ERROR", "error: deadline", "did not end within its 25.0 s", "--> all.rhai:1"]);
    has(&said.out, &["1 passed, 1 failed, 2 in error, 1 inconclusive, 1 skipped in "]);
    events_are_whole(&place.read("events.jsonl"));
    for (dir, file) in [
        ("01-passes", "console.log"),
        ("01-passes", "dmesg.log"),
        ("02-fails", "events.jsonl"),
        ("06-computes-for-ever", "console.log"),
    ] {
        let text = place.read(&format!("kept/{dir}/{file}"));
        assert!(!text.is_empty(), "{dir}/{file}");
    }
}

/// Every line is an event, and the events follow each other as they must.
fn events_are_whole(text: &str) {
    let mut model = RunModel::default();
    let mut last = None;
    for line in text.lines() {
        let event = RunEvent::from_line(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        model.apply(&event).unwrap_or_else(|e| panic!("{e}: {line}"));
        last = Some(event);
    }
    assert!(matches!(last, Some(RunEvent::RunFinished { .. })), "{last:?}");
}

#[test]
fn schedulers_are_judged_by_what_they_do() {
    let _alone = alone();
    let place = Place::new();
    let [broken, rejected, exits, fifo] = [
        "tests/schedulers/broken_syntax.bpf.c",
        "tests/schedulers/broken_verifier.bpf.c",
        "tests/schedulers/exits.bpf.c",
        "examples/schedulers/fifo.bpf.c",
    ]
    .map(|path| project(path).display().to_string());
    place.program("leaves.sh", "#!/bin/sh\nexit 3\n").file("data.txt", "no program\n");
    fs::copy("/bin/true", place.path().join("leaves")).unwrap();
    place.file(
        "all.rhai",
        format!(
            r#"const SMALL = "1n1l1c1t";
fn busy(t) {{ expect(t.kernel.len).gt(0); t.start(#{{ work: "spin" }}); t.hold("4s"); }}
scenario("does not compile", #{{ scheduler: "{broken}", topology: SMALL }}, |t| busy(t));
scenario("is rejected", #{{ scheduler: "{rejected}", topology: SMALL }}, |t| busy(t));
scenario("leaves", #{{ scheduler: "{exits}", topology: SMALL }}, |t| busy(t));
scenario("is meant to leave", #{{ scheduler: "{exits}", topology: SMALL, expect_exit: "error" }},
    |t| busy(t));
scenario("is meant to leave but stays", #{{
    scheduler: "{fifo}", topology: SMALL, expect_exit: "stall" }}, |t| expect(1).eq(1));
scenario("is not there", #{{ scheduler: "fifoo.bpf.c", topology: SMALL }}, |t| busy(t));
scenario("is no program", #{{ scheduler: "data.txt", topology: SMALL }}, |t| busy(t));
scenario("ends at once", #{{ scheduler: "leaves", topology: SMALL }}, |t| busy(t));
scenario("has no such tunable", #{{
    scheduler: #{{ src: "{fifo}", rodata: #{{ slice_nss: 1 }} }}, topology: SMALL }}, |t| busy(t));
"#
        ),
    );
    let said = place.run(&["run", "all.rhai"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    has(
        said.about("does not compile"),
        &["FAIL", "does not compile:", "error:", "the command was:"],
    );
    has(
        said.about("is rejected"),
        &["FAIL", "verifier rejects broken_verifier: ", "--> all.rhai:4"],
    );
    has(
        said.about("leaves"),
        &["FAIL", "the scheduler left unasked after ", "had enough of pid", "--> all.rhai:2:"],
    );
    has(said.about("is meant to leave"), &["PASS"]);
    has(
        said.about("is meant to leave but stays"),
        &["FAIL", "expect_exit", "expected: to be ended by the watchdog for a stall", "it stayed"],
    );
    has(said.about("is not there"), &["ERROR", "fifoo.bpf.c"]);
    has(said.about("is no program"), &["ERROR", "data.txt"]);
    has(said.about("ends at once"), &["FAIL", "leaves could not be attached: "]);
    has(said.about("has no such tunable"), &["ERROR", "slice_nss", "slice_ns"]);
    has(&said.out, &["1 passed, 5 failed, 3 in error in "]);
}

#[test]
fn machines_that_do_not_come_up_say_why() {
    let _alone = alone();
    let place = Place::new();
    place.file("text", "this is no kernel\n").file("a/vmlinuz", fs::read(vmlinuz()).unwrap());
    let whole = fs::read(place.path().join("a/vmlinuz")).unwrap();
    place.file("cut", &whole[..whole.len() / 2]);
    place.file(
        "all.rhai",
        r#"const SMALL = "1n1l1c1t";
scenario("no kernel", #{ topology: SMALL, kernel: "text" }, |t| { });
scenario("half a kernel", #{ topology: SMALL, kernel: "cut" }, |t| { });
scenario("no such kernel", #{ topology: SMALL, kernel: "debian:1.0" }, |t| { });
scenario("too many CPUs", #{ topology: "2n8l16c2t" }, |t| { });
scenario("too little memory", #{ topology: SMALL, memory: "16M" }, |t| { });
scenario("no init", #{ topology: SMALL, kargs: ["rdinit=/nothing"] }, |t| { });
scenario("cannot do that", #{ topology: SMALL, requires: ["hardware_time"] }, |t| { });
scenario("never comes up", #{
    topology: SMALL, timeout: "20s",
    include_files: #{ "/bin/sleep": "/sleep" }, kargs: ["rdinit=/sleep", "--", "1000"],
}, |t| { });
"#,
    );
    let said = place.run(&["run", "all.rhai", "--keep", "kept"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    has(said.about("no kernel"), &["ERROR", "text: not a Linux kernel for x86-64"]);
    has(said.about("half a kernel"), &["ERROR", "cut: truncated: "]);
    has(said.about("no such kernel"), &["ERROR", "no Debian kernel `1.0`"]);
    has(said.about("too many CPUs"), &["ERROR", "2n8l16c2t has 256 CPUs", "at most"]);
    has(said.about("too little memory"), &["ERROR", "memory 16M is too small", "at least"]);
    has(
        said.about("no init"),
        &["ERROR", "the machine ended before its agent was up", "panicked", "end of the console:"],
    );
    has(said.about("cannot do that"), &["SKIP", "hardware_time"]);
    has(
        said.about("never comes up"),
        &["ERROR", "did not end within its 20.0 s: it was still booting", "end of the console:"],
    );
    assert!(place.read("kept/06-no-init/console.log").contains("Kernel panic"));
}

/// Some stock kernel's compressed image.
fn vmlinuz() -> std::path::PathBuf {
    use cryoscope::kernel::{CacheDir, progress::Silent, resolve};
    let var = |name| std::env::var_os(name);
    let cache = CacheDir::locate(var("XDG_CACHE_HOME"), var("HOME")).unwrap();
    resolve("auto", &cache, &Silent).unwrap().bzimage().unwrap().to_owned()
}

#[test]
fn a_scheduler_needs_a_kernel_with_sched_ext() {
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    place.file(
        "a.rhai",
        format!(
            "scenario(\"old\", #{{ scheduler: \"{fifo}\", kernel: \"debian:6.12\" }}, |t| {{ }});"
        ),
    );
    let said = place.run(&["run", "a.rhai"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    has(said.about("old"), &["ERROR", "has no sched_ext", "use one that", "the scheduler `none`"]);
}

#[test]
fn an_engine_that_dies_is_tried_again_and_never_the_schedulers_fault() {
    let place = Place::new();
    place.file("a.rhai", "scenario(\"one\", |t| { fail(\"x\"); });");
    place.program(
        "bin/qemu-system-x86_64",
        "#!/bin/sh\n[ \"$1\" = --version ] && exec /usr/bin/qemu-system-x86_64 --version\n\
         kill -SEGV $$\n",
    );
    let path = format!("{}:/usr/bin:/bin", place.path().join("bin").display());
    let mut command = place.command(&["run", "a.rhai"]);
    let said = place::Said::from(command.env("PATH", path).output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    has(
        said.about("one"),
        &[
            "ERROR",
            "note: attempt 1 ended in a fault of the engine, tried again: ",
            "note: attempt 2",
            "the engine failed 3 times",
        ],
    );
}

#[test]
fn a_missing_or_old_qemu_is_told_with_its_remedy() {
    let place = Place::new();
    place.file("a.rhai", "scenario(\"one\", |t| { });");
    let cases = [
        (
            None,
            "QEMU is not there: \"qemu-system-x86_64\" was not found; install it (on Debian: \
                apt-get install qemu-system-x86)",
        ),
        (
            Some("#!/bin/sh\necho QEMU emulator version 5.2.0\n"),
            "is QEMU 5.2.0, at least 7.2.0 is \
                needed; upgrade it",
        ),
        (Some("#!/bin/sh\necho something else\n"), "does not work as QEMU: "),
    ];
    for (qemu, says) in cases {
        fs::create_dir_all(place.path().join("bin")).unwrap();
        if let Some(script) = qemu {
            place.program("bin/qemu-system-x86_64", script);
        }
        let mut command = place.command(&["run", "a.rhai"]);
        let said =
            place::Said::from(command.env("PATH", place.path().join("bin")).output().unwrap());
        assert_eq!(said.code, Some(1), "{said:?}");
        has(said.about("one"), &["ERROR", says]);
    }
}

#[test]
fn a_snapshot_outlives_its_machine_with_the_same_answers() {
    let _alone = alone();
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    // What is asked of a snapshot, wherever it comes from.
    place.file(
        "ask.rhai",
        r#"fn ask(s) {
    dump(s);
    for map in s.maps() { dump(map); }
    print(s.global("nr_running"));
    try { s.map("task_ctxx") } catch (e) { print(e.message) }
    try { s.global("nr_runing") } catch (e) { print(e.message) }
    let one = s.map("task_ctx").get(2);
    print(`${one} ${one.comm} ${one.value.members()}`);
    for prog in s.progs() { print(`${prog} ${prog.maps}`); }
    try { s.progs()[0].run_count } catch (e) { print(e.message) }
    expect(s.progs().map(|p| p.name)).contains("fifo_select_cpu");
    expect(s.progs().filter(|p| p.name == "fifo_init_task")[0].maps).contains("task_times");
    for task in s.tasks() { print(task); }
    expect(s.tag).eq("end");
}"#,
    );
    place.file(
        "live.rhai",
        format!(
            r#"import "ask" as ask;
scenario("live", #{{ scheduler: "{fifo}", topology: "1n1l2c1t" }}, |t| {{
    t.start(#{{ work: "spin", count: 3 }});
    t.freeze("begin").save("begin.cryo");
    t.hold("300ms");
    let s = t.freeze("end");
    s.save("end.cryo");
    ask::ask(s);
    let changed = open("begin.cryo").diff(s);
    expect(changed.filter(|c| c.path == "fifo.bss.nr_running").len, "the counter").eq(1);
}});
"#
        ),
    );
    place.file("opened.rhai", "import \"ask\" as ask;\nask::ask(open(\"end.cryo\"));\n");
    let printed = |said: &place::Said| -> Vec<String> {
        let lines = said.out.lines().filter_map(|line| line.trim_start().strip_prefix('│'));
        lines.map(str::to_owned).collect()
    };
    let live = place.run(&["run", "live.rhai"]);
    assert_eq!(live.code, Some(0), "{live:?}");
    let opened = place.run(&["run", "opened.rhai"]);
    assert_eq!(opened.code, Some(0), "{opened:?}");
    assert!(printed(&live).len() > 100, "{live:?}");
    assert_eq!(printed(&opened), printed(&live));

    let tree = place.run(&["snapshot", "tree", "end.cryo"]);
    has(&tree.out, &["snapshot \"end\" at ", "task_ctx: hash, ", "fifo.bss: "]);
    let shown = place.run(&["snapshot", "show", "end.cryo", "nr_running"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let missing = place.run(&["snapshot", "show", "end.cryo", "nr_runing"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    has(&missing.err, &["error: no captured map is called", "nr_running"]);
    let diff = place.run(&["snapshot", "diff", "begin.cryo", "end.cryo"]);
    assert_eq!(diff.code, Some(1), "{diff:?}");
    has(&diff.out, &["~ fifo.bss.nr_running: ", " → ", " (+"]);
    assert_eq!(place.run(&["snapshot", "diff", "end.cryo", "end.cryo"]).code, Some(0));
    let json = place.run(&["snapshot", "export", "end.cryo"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["tag"], &json["version"]), (&"end".into(), &1.into()));
    let kernel = &json["kernel"];
    assert_eq!((&kernel["unknown"], &kernel["sched"]["state"]), (&json!({}), &json!("enabled")));
    assert_eq!(kernel["sched"]["scheds"][0]["ops"], "fifo");
    let tasks = kernel["tasks"].as_array().expect("tasks");
    let init = tasks.iter().find(|task| task["tid"] == 1).expect("PID 1");
    assert_eq!((&init["tgid"], &init["cgroup"]), (&json!(1), &json!("/")));
    assert!(kernel["psi"]["system"]["cpu"]["some"]["total"].is_u64(), "{}", kernel["psi"]);
    assert!(json["maps"].as_array().unwrap().iter().any(|m| m["name"] == "task_ctx"));
}

/// The examples of our modules, as they are printed, in one scenario of a real machine.
#[test]
fn the_examples_of_our_modules_run_on_a_real_machine() {
    let _alone = alone();
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    let (mut imports, mut body, mut count) = (String::new(), String::new(), 0);
    for module in cryoscope::script::reference().modules() {
        let short = module.name.rsplit('/').next().unwrap();
        imports.push_str(&format!("import \"{}\" as {short};\n", module.name));
        for function in &module.functions {
            for example in function.doc.split("```").skip(1).step_by(2) {
                body.push_str(&format!("{{ // {short}::{}\n{example}}}\n", function.name));
                count += 1;
            }
        }
    }
    assert!(count >= 40, "{count}");
    place.file(
        "a.rhai",
        format!(
            "{imports}scenario(\"examples\", #{{ scheduler: \"{fifo}\", topology: \"1n1l2c1t\", \
             timeout: \"3m\" }}, |t| {{\n{body}}});"
        ),
    );
    let said = place.run(&["run", "a.rhai"]);
    assert_eq!(said.code, Some(0), "{said:?}\n{}", place.read("a.rhai"));
}
