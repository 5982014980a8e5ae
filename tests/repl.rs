//! `cryoscope repl` as a script uses it: inputs on standard input, and the exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use place::shown::{is_shown, masked};
use place::{Place, Said, alone, project};

mod place;

fn given(mut command: Command, input: &str) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Said::from(child.wait_with_output().unwrap())
}

#[test]
fn bad_usage_is_refused_before_anything_boots() {
    let place = Place::with_own_cache();
    let cases: [(&[&str], &str); 8] = [
        (&["x.cryo"], "cannot open x.cryo: No such file or directory"),
        (&["--topology", "2x2"], "2x2"),
        (&["--memory", "512"], "it has no unit"),
        (&["--boot", "pvh"], "[possible values: auto, elf, bzimage]"),
        (&["--engine", "xen"], "[possible values: auto, qemu, qemu-multi, kvm]"),
        (&["--kernel", "debian"], "--kernel: bad kernel `debian`: "),
        (&["x.cryo", "--kernel", "auto"], "cannot be used with '--kernel"),
        (&["--schedular", "x"], "a similar argument exists: '--scheduler'"),
    ];
    for (args, says) in cases {
        let args = [&["repl"], args].concat();
        let said = given(place.command(&args), "1\n");
        assert_eq!(said.code, Some(64), "{args:?}: {said:?}");
        assert!(said.err.contains(says), "{args:?}: {}", said.err);
        assert_eq!(said.out, "", "{args:?}");
    }
    let mut command = place.command(&["repl"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\xff").unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.err.contains("standard input is no script: byte 1 is not UTF-8"), "{said:?}");
}

#[test]
fn a_script_works_with_a_machine() {
    let _alone = alone();
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    let args = ["repl", "--scheduler", &fifo, "--topology", "1n1l1c1t"];
    let said = given(
        place.command(&args),
        "let pids = vm.start(#{ work: \"spin\", count: 2 });\n\
         vm.hold(\"300ms\");\n\
         vm.freeze(\"a\");\n\
         vm.freeze(\"b\");\n\
         snap.tag\n\
         snap.global(\"nr_enqueued\")\n\
         expect(snap.global(\"nr_enqueued\")).at_least(1);\n\
         fn known(s, pid) {\n    s.map(\"task_ctx\").contains(pid)\n}\n\
         pids.all(|pid| known(snap, pid))\n\
         :type snap.map(\"task_ctx\").at(0).value\n\
         try { snap.map(\"task_ctxx\") } catch (e) { print(e.kind) }\n\
         snap.map(\"task_ctxx\")\n\
         print(\"never\");\n",
    );
    assert_eq!(said.code, Some(1), "{said:?}");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], "\"b\"", "{said:?}");
    let counted = lines[1].strip_prefix("nr_enqueued").unwrap().trim();
    assert!(counted.parse::<u64>().unwrap() > 0, "{said:?}");
    let rest = [
        "pass: snap.global(\"nr_enqueued\")",
        "true",
        "SnapshotField (struct task_ctx)",
        "MapNotFound",
    ];
    assert_eq!(lines[2..], rest, "{said:?}");
    assert!(said.err.contains("no captured map is called \"task_ctxx\""), "{}", said.err);
    assert!(said.err.contains("--> stdin:14:6"), "{}", said.err);

    let said = given(
        place.command(&args),
        "vm.start(#{ work: \"spin\", count: 3 });\nvm.hold(\"200ms\");\nvm.freeze(\"a\");\n:ps\n:dsq\n",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.starts_with("a\nTID  COMMAND  "), "{said:?}");
    let spinning = said.out.lines().filter(|line| line.contains("  spin  ")).count();
    assert_eq!(spinning, 3, "{said:?}");
    // One runs; the others are in the scheduler's queue.
    assert!(said.out.contains("(spin): running, policy ext, CPU 0\n"), "{said:?}");
    assert!(said.out.lines().any(|line| line.starts_with("empty: ")), "{said:?}");

    // Without anything wrong the exit code is 0; with a check that fails it is 1.
    let said = given(place.command(&["repl", "--topology", "1n1l1c1t"]), "1 + 1\nvm.kernel;\n");
    assert_eq!((said.code, said.out.as_str()), (Some(0), "2\n"), "{said:?}");
    let said = given(
        place.command(&["repl", "--topology", "1n1l1c1t"]),
        "expect(vm.topology.cpus).eq(64);\nprint(\"on\");\n",
    );
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("expected: 64") && said.out.ends_with("on\n"), "{said:?}");
}

#[test]
fn the_book_shows_a_session() {
    let _alone = alone();
    let page = fs::read_to_string(project("docs/repl.md")).unwrap();
    let block = |of: &str| page.split(of).nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (inputs, outputs): (Vec<&str>, Vec<&str>) =
        block("```text\n").lines().partition(|line| line.starts_with("> "));
    let input: String = inputs.iter().map(|line| format!("{}\n", &line[2..])).collect();
    let place = Place::new();
    let args: Vec<&str> = block("```sh\ncryoscope ").split_whitespace().collect();
    let mut command = place.command(&args);
    command.current_dir(project(""));
    let said = given(command, &input);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines = |all: &[&str]| all.iter().map(|line| masked(line)).collect::<Vec<_>>();
    let found: Vec<&str> = said.out.lines().collect();
    assert!(is_shown(&lines(&outputs), &lines(&found)), "shown: {outputs:#?}\nprinted: {said:?}");
    assert_eq!(outputs.len(), 4);
}

#[test]
fn a_scheduler_that_leaves_is_told() {
    let _alone = alone();
    let place = Place::new();
    let exits = project("tests/schedulers/exits.bpf.c").display().to_string();
    let args = ["repl", "--scheduler", &exits, "--topology", "1n1l1c1t"];
    let said = given(
        place.command(&args),
        "vm.start(#{ work: \"spin\" });\nvm.hold(\"4s\");\nprint(vm.scheduler.state);\n",
    );
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.out, "disabled\n");
    assert!(said.err.contains("the scheduler has left after "), "{}", said.err);
}

#[test]
fn a_ctrl_c_ends_a_script_and_leaves_nothing_behind() {
    let _alone = alone();
    let place = Place::new();
    let mut child = place
        .command(&["repl", "--topology", "1n1l1c1t"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"print(\"ready\"); loop {}\nprint(\"never\");").unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let machines = children(child.id());
    assert!(machines.iter().any(|(_, name)| name.starts_with("qemu")), "{machines:?}");
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.err.ends_with("interrupted\n"), "{said:?}");
    line.clear();
    out.read_to_string(&mut line).unwrap();
    assert_eq!(line, "", "nothing runs after it");
    for (pid, name) in machines {
        let gone = Path::new("/proc").join(pid.to_string()).join("exe");
        assert!(!gone.exists(), "{name} is still there");
    }
}

/// The processes that one has started: numbers and names.
fn children(parent: u32) -> Vec<(u32, String)> {
    let mut out = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let of = rest.split_whitespace().nth(1).and_then(|p| p.parse().ok());
        if of == Some(parent) {
            let name = name.split_once('(').map_or("", |(_, name)| name);
            out.push((pid, name.to_owned()));
        }
    }
    out
}

#[test]
fn a_saved_snapshot_is_looked_at_without_a_machine() {
    let place = Place::new();
    let opened = cryoscope::snapshot::Snapshot::new(
        cryoscope::snapshot::Meta { tag: "kept".into(), ..Default::default() },
        Vec::new(),
        Vec::new(),
    );
    opened.save(&place.path().join("a.cryo")).unwrap();
    let said = given(
        place.command(&["repl", "a.cryo"]),
        "snap.tag\n:save b.cryo\nopen(\"b.cryo\").tag\nvm.freeze(\"x\")\n",
    );
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.out.starts_with("\"kept\"\nsnapshot \"kept\" at 0.000 s is in b.cryo\n"),
        "{said:?}"
    );
    assert!(said.err.contains("there is no variable called vm here"), "{said:?}");
}
