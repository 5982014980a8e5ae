//! The command line from outside, as far as it needs no machine: bad input gets one clear message
//! and the right exit code, and leaves nothing behind.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use place::{Place, Said};
use rustix::process::{Pid, Signal, kill_process};

mod place;

#[test]
fn bad_usage_is_64_and_names_what_is_near() {
    let place = Place::with_own_cache();
    place.file("good.rhai", "scenario(\"one\", |t| {});\n");
    let cases: [(&[&str], &str); 16] = [
        (&[], "Usage: cryoscope <COMMAND>"),
        (&["rum"], "a similar subcommand exists: 'run'"),
        (&["run"], "<PATH>..."),
        (&["run", "good.rhai", "--filer", "x"], "a similar argument exists: '--filter'"),
        (&["run", "good.rhai", "--jobs", "0"], "give a number from 1 to 256"),
        (
            &["run", "good.rhai", "--engine", "xen"],
            "[possible values: auto, qemu, qemu-multi, kvm]",
        ),
        (&["run", "good.rhai", "--topology", "4"], "topology \"4\": "),
        (&["run", "goad.rhai"], "goad.rhai: No such file or directory; did you mean good.rhai?"),
        (&["run", "good.rhai", "--kernel", "debian"], "--kernel: bad kernel `debian`: "),
        (&["run", "good.rhai", "--json", "no/where"], "--json no/where: No such file"),
        (&["run", "good.rhai", "--junit", "no/where"], "--junit no/where: No such file"),
        (&["run", "good.rhai", "--shard", "3/2"], "give K/N with K from 1 to N, as in 2/4"),
        (&["run", "good.rhai", "--retries", "x"], "invalid value 'x' for '--retries <N>'"),
        (&["replay"], "<FILE>"),
        (&["replay", "no/where"], "cannot read no/where: No such file or directory"),
        (&["replay", "good.rhai"], "good.rhai:1: not an event: "),
    ];
    for (args, says) in cases {
        let said = place.run(args);
        assert_eq!(said.code, Some(64), "{args:?}: {said:?}");
        assert!(said.err.contains(says), "{args:?}: {}", said.err);
        assert_eq!(said.out, "", "{args:?}");
    }
}

#[test]
fn version_and_help_are_on_standard_output() {
    let place = Place::with_own_cache();
    let said = place.run(&["--version"]);
    let version = concat!("cryoscope ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), version, ""));
    let said = place.run(&["run", "--help"]);
    assert_eq!(said.code, Some(0));
    for option in [
        "--list",
        "--filter",
        "--jobs",
        "--engine",
        "--kernel",
        "--boot",
        "--topology",
        "--json",
        "--keep",
        "--no-skips",
    ] {
        assert!(said.out.contains(option), "{option} in {}", said.out);
    }
    assert!(!place.run(&["--help"]).out.contains("cell"), "the cell is hidden");
}

#[test]
fn scripts_that_do_not_compile_end_the_run_before_anything_starts() {
    let place = Place::with_own_cache();
    place.file("good.rhai", "scenario(\"one\", |t| {});\n");
    place.file("bad.rhai", "let x = 1;\nscenario(\"two\", |t| {\n    let = 3;\n});\n");
    let said = place.run(&["run", ".", "--json", "events.jsonl"]);
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.err.contains("1 script cannot be used; nothing was run"), "{}", said.err);
    assert!(said.err.contains("bad.rhai:3:9"), "{}", said.err);
    assert!(said.err.contains("let = 3;"), "the author's line: {}", said.err);
    assert!(!place.path().join("events.jsonl").exists());
    assert!(!place.path().join(".cache").exists(), "nothing is left behind");
}

#[test]
fn lists_and_filters_need_no_machine() {
    let place = Place::with_own_cache();
    place.file("a.rhai", "scenario(\"one\", #{ tags: [\"quick\"] }, |t| {});\n");
    place.file("sub/b.rhai", "\nscenario(\"two\", |t| {});\nscenario(\"three\", |t| {});\n");
    place.file("sub/helpers.rhai", "fn twice(x) { 2 * x }\n");
    let said = place.run(&["run", "--list", "."]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.out, "./a.rhai:1: one [quick]\n./sub/b.rhai:2: two\n./sub/b.rhai:3: three\n");
    let said = place.run(&["run", "--list", "sub", "--filter", "TH"]);
    assert_eq!(said.out, "sub/b.rhai:3: three\n");
    let said = place.run(&["run", "--list", ".", "--filter", "quikc"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err, "error: \"quikc\" matches none of 3 scenarios; did you mean \"quick\"?\n");
    let said = place.run(&["run", "--list", "sub/helpers.rhai", "sub"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    place.file("empty/nothing.txt", "");
    let said = place.run(&["run", "empty"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("no scenarios there"), "{}", said.err);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let place = Place::with_own_cache();
    let many: String =
        (0..5000).map(|i| format!("scenario(\"number {i}\", |t| {{}});\n")).collect();
    place.file("many.rhai", &many);
    let mut child = place
        .command(&["run", "--list", "many.rhai"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[test]
fn a_cell_by_hand_is_told_to_use_run() {
    let place = Place::with_own_cache();
    for input in ["", "{}", "hello"] {
        let mut child = place
            .command(&["cell"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(64), "{input:?}: {said:?}");
        assert!(said.err.contains("use `cryoscope run`"), "{input:?}: {}", said.err);
    }
}

#[test]
fn the_cache_must_have_a_place_that_can_be_written() {
    let place = Place::with_own_cache();
    place.file("a.rhai", "scenario(\"one\", |t| {});\n").file("file", "");
    let mut command = place.command(&["run", "a.rhai"]);
    let said = Said::from(command.env_remove("XDG_CACHE_HOME").env("HOME", "").output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.starts_with("error: no place for the cache: "), "{}", said.err);
    assert!(said.err.contains("set XDG_CACHE_HOME"), "{}", said.err);
    // A cache below a file cannot be made, whoever asks.
    let mut command = place.command(&["doctor"]);
    let said =
        Said::from(command.env("XDG_CACHE_HOME", place.path().join("file")).output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("MISSING  cache"), "{}", said.out);
    assert!(said.out.contains("set XDG_CACHE_HOME to a directory that can be written"));
}

#[test]
fn doctor_names_every_missing_thing_with_its_remedy() {
    let place = Place::with_own_cache();
    let mut command = place.command(&["doctor"]);
    let said = Said::from(command.env("PATH", place.path()).output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    for line in [
        " MISSING  qemu      QEMU is not there: \"qemu-system-x86_64\" was not found\n",
        " -> install it (on Debian: apt-get install qemu-system-x86)\n",
        " MISSING  clang     there is no clang on the search path, so no .bpf.c can be compiled\n",
        " -> install one (on Debian: apt-get install clang-19)\n",
        " MISSING  fetching  not on the search path: apt-get, apt-cache, apt-config, dpkg-deb; ",
        "Scenarios cannot run here until the 3 missing things are mended.\n",
    ] {
        assert!(said.out.contains(line), "{line:?} in\n{}", said.out);
    }
}

#[test]
fn snapshots_that_cannot_be_opened_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cryo");
    fs::write(&file, "no snapshot").unwrap();
    for (args, code, says) in [
        (
            vec!["snapshot", "show", "/nowhere/a.cryo"],
            1,
            "error: cannot open /nowhere/a.cryo: No such file",
        ),
        (
            vec!["snapshot", "tree", file.to_str().unwrap()],
            1,
            "a.cryo is no snapshot: it does not begin",
        ),
        (vec!["snapshot", "diff", file.to_str().unwrap()], 64, "<NEW>"),
        (vec!["snapshot"], 64, "Usage: cryoscope snapshot <COMMAND>"),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_cryoscope")).args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

/// Plain scripts, which need no machine: one that passes, one that fails, one that cannot be judged.
fn scripts() -> Place {
    let place = Place::with_own_cache();
    place.file("a.rhai", "print(\"hello\");\nexpect(1).eq(1);\n");
    place.file("b.rhai", "note(\"one is not two\");\nexpect(1, \"one\").eq(2);\n");
    place.file("c.rhai", "expect(1).eq(1);\nopen(\"nowhere.cryo\");\n");
    place
}

#[test]
fn the_events_of_a_run_replay_to_the_same_report() {
    let place = scripts();
    let args =
        ["run", "a.rhai", "b.rhai", "c.rhai", "-j", "1", "--json", "e.jsonl", "--junit", "j.xml"];
    let ran = place.run(&args);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let again = place.run(&["replay", "e.jsonl", "--junit", "again.xml", "--report", "page"]);
    assert_eq!((again.code, &again.out), (Some(1), &ran.out), "{again:?}");
    assert_eq!(place.read("again.xml"), place.read("j.xml"));
    assert!(place.read("page/index.html").contains("one is not two"));
    let junit = place.read("j.xml");
    assert!(
        junit.contains("<failure type=\"fail\" message=\"one: expected 2, found 1\">"),
        "{junit}"
    );
    assert!(junit.contains("<error type=\"error\""), "{junit}");
}

#[test]
fn a_run_that_is_killed_leaves_whole_lines_that_replay_as_far_as_they_go() {
    let place = Place::with_own_cache();
    let line = "print(\"a line that is printed\"); expect(1).eq(1);\n";
    for i in 0..6 {
        place.file(&format!("{i}.rhai"), line.repeat(200));
    }
    let mut seen = [false; 2];
    for i in 0..24 {
        let mut run = place.command(&["run", ".", "-j", "2", "--json", "e.jsonl"]);
        // A directory has no plain scripts: each is named.
        run.args(["0.rhai", "1.rhai", "2.rhai", "3.rhai", "4.rhai", "5.rhai"]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3 * i * i % 211));
        let _ = run.kill();
        let _ = run.wait();
        let Ok(text) = fs::read_to_string(place.path().join("e.jsonl")) else { continue };
        assert!(text.is_empty() || text.ends_with('\n'), "{:?}", text.lines().last());
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            assert_eq!(event["v"], 1);
        }
        let again = place.run(&["replay", "e.jsonl"]);
        let whole = again.err.is_empty();
        assert!(whole || again.err.contains("ends before the run did"), "{again:?}");
        seen[usize::from(whole)] = true;
    }
    assert!(seen[0], "some run was killed on its way");
}

/// Waits until a file has this text so many times.
fn until_it_says(place: &Place, file: &str, text: &str, times: usize) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let said = place.read(file);
        if said.matches(text).count() >= times {
            return said;
        }
        assert!(Instant::now() < until, "no {text:?} ({times}) in\n{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn watched_scripts_run_again_when_something_changes() {
    let place = Place::with_own_cache();
    place.file("a.rhai", "import \"lib\" as lib;\nexpect(lib::two(), \"two\").eq(2);\n");
    place.file("lib.rhai", "fn two() { 3 }\n");
    let to = |name: &str| std::fs::File::create(place.path().join(name)).unwrap();
    let mut command = place.command(&["run", "a.rhai", "--watch"]);
    let mut watch = command.stdout(to("out")).stderr(to("err")).spawn().unwrap();
    until_it_says(&place, "err", "watching 2 files; Ctrl-C ends", 1);
    until_it_says(&place, "out", "1 failed in", 1);

    // Saved by renaming; what does not compile is told and watched on.
    place.file("new", "fn two() { 2 \n");
    std::fs::rename(place.path().join("new"), place.path().join("lib.rhai")).unwrap();
    let err = until_it_says(&place, "err", "watching 2 files", 2);
    assert!(err.contains("lib.rhai has changed\n"), "{err}");
    assert!(
        err.contains("error: 1 script cannot be used") || place.read("out").contains("lib.rhai:2")
    );
    place.file("lib.rhai", "fn two() { 2 }\n");
    until_it_says(&place, "out", "1 passed in", 1);
    until_it_says(&place, "err", "watching 2 files", 3);

    let pid = Pid::from_child(&watch);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0), "as the last run: {}", place.read("err"));
}

#[test]
fn what_failed_last_runs_again_alone() {
    let place = scripts();
    place.run(&["run", "a.rhai", "b.rhai", "c.rhai"]);
    let all = ["run", "a.rhai", "b.rhai", "c.rhai", "--last-failed", "--list"];
    assert_eq!(place.run(&all).out, "b.rhai: b\nc.rhai: c\n");
    place.file("b.rhai", "expect(1).eq(1);\n");
    place.run(&["run", "b.rhai"]);
    assert_eq!(place.run(&all).out, "c.rhai: c\n");
    // Which part has what is the same on every machine, in whatever order the paths are given.
    for paths in [["a.rhai", "b.rhai", "c.rhai"], ["c.rhai", "b.rhai", "a.rhai"]] {
        let lines = |shard| {
            let out =
                place.run(&[&["run"], &paths[..], &["--shard", shard, "--list"]].concat()).out;
            let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines("1/2"), ["b.rhai: b"]);
        assert_eq!(lines("2/2"), ["a.rhai: a", "c.rhai: c"]);
    }
    let none = place.run(&["run", "a.rhai", "--shard", "1/2"]);
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    assert_eq!(none.err, "cryoscope: this part of the scenarios is empty\n");
}

#[test]
fn what_passes_only_again_is_marked() {
    let place = Place::with_own_cache();
    // It fails as long as there is no file, which it makes.
    let script = "let there = true;\ntry { open(\"made.cryo\"); } catch (e) { there = `${e}`.contains(\"no snapshot\"); }\n\
                  expect(there, \"the file\").eq(true);\n";
    place.file("flaky.rhai", script);
    let said = place.run(&["run", "flaky.rhai", "--retries", "2"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for attempt in [1, 2] {
        let note = format!("note: attempt {attempt} failed, tried again: the file");
        assert!(said.out.contains(&note), "{said:?}");
    }
    place.file("made.cryo", "something");
    let said = place.run(&["run", "flaky.rhai", "--retries", "2"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn github_is_told_by_itself() {
    let place = scripts();
    let mut command = place.command(&["run", "a.rhai", "b.rhai"]);
    command.env("GITHUB_ACTIONS", "true");
    command.env("GITHUB_STEP_SUMMARY", place.path().join("summary.md"));
    let said = Said::from(command.output().unwrap());
    let line = "::error file=b.rhai,line=2,title=b%3A fail::one: expected 2, found 1";
    assert!(said.out.lines().any(|l| l == line), "{said:?}");
    assert!(place.read("summary.md").starts_with("### cryoscope: 1 fail, 1 pass in "));
}
