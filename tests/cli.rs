//! The command line from outside, as far as it needs no machine: bad input gets one clear message
//! and the right exit code, and leaves nothing behind.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use place::{Place, Said};

mod place;

#[test]
fn bad_usage_is_64_and_names_what_is_near() {
    let place = Place::with_own_cache();
    place.file("good.rhai", "scenario(\"one\", |t| {});\n");
    let cases: [(&[&str], &str); 10] = [
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
