//! The script layer from outside: the shipped scripts can be collected, and `cryoscope api`
//! prints the language.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use cryoscope::scenario::ScenarioDecl;
use cryoscope::scenario::cell::Cancel;
use cryoscope::scenario::lab::LabError;
use cryoscope::scenario::verdict::{Outcome, Recorder, Rules};
use cryoscope::script::{End, collect, run_scenario};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cryoscope(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cryoscope")).args(args).output().expect("cryoscope runs")
}

#[test]
fn shipped_scripts_declare_what_they_should() {
    let names = |script: &str| -> Vec<String> {
        let decls = collect(&root().join(script)).unwrap_or_else(|e| panic!("{e}"));
        decls.into_iter().map(|d| d.name).collect()
    };
    assert_eq!(names("examples/hello.rhai"), ["hello"]);
    let squeezed = ["a group stays on its CPUs (1n1l2c1t)", "a group stays on its CPUs (1n2l2c1t)"];
    assert_eq!(names("examples/cpusets.rhai"), squeezed);
    assert_eq!(names("examples/nodes.rhai"), ["tasks stay on their node"]);
    assert!(names("scripts/smoke.rhai").len() >= 6);
}

#[test]
fn a_script_runs_without_a_machine_up_to_its_boot() {
    let script = root().join("examples/hello.rhai");
    let recorder = Recorder::new();
    let boot = |decl: &ScenarioDecl| {
        assert_eq!(decl.options.scheduler.src, "schedulers/fifo.bpf.c");
        Err(LabError::Machine("no machine in this test".into()))
    };
    let end = run_scenario(&script, 0, "hello", Arc::new(boot), recorder.clone(), Cancel::new());
    assert_eq!(end, End::Lab(LabError::Machine("no machine in this test".into())));
    let check = recorder.failures().remove(0);
    assert_eq!(check.outcome, Outcome::Error);
    let at = check.at.expect("the line of scenario(..)");
    assert!(at.text.starts_with("scenario(\"hello\""), "{at:?}");
    assert_eq!(recorder.verdict(&Rules::default()).outcome, Outcome::Error);
}

#[test]
fn api_prints_the_language() {
    let out = cryoscope(&["api"]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    for part in
        ["scenario(name: string, body: closure)", "\nSnapshotMap\n", "import \"std/checks\""]
    {
        assert!(text.contains(part), "{part} is missing");
    }
    // Scripts call functions of the modules with two colons too.
    let modules = ["bpf", "cgroup", "checks", "cpus", "load", "sched", "topologies"];
    let text = modules.iter().fold(text, |text, name| text.replace(&format!("{name}::"), "_."));
    for rust in ["::", "Dynamic", "ImmutableString", ": i64", "-> i64", "&mut", "Box<"] {
        let line = text.lines().find(|l| l.contains(rust));
        assert_eq!(line, None, "a Rust name in the reference");
    }
    let out = cryoscope(&["api", "freez"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(text, "error: nothing in scripts is called freez; did you mean freeze?\n");
}

#[test]
fn api_writes_definition_files_for_editors() {
    let dir: PathBuf = std::env::temp_dir().join(format!("cryoscope-defs-{}", std::process::id()));
    let out = cryoscope(&["api", "--definitions", dir.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!files.is_empty());
    assert!(files.iter().all(|f| f.to_str().unwrap().ends_with(".d.rhai")), "{files:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}
