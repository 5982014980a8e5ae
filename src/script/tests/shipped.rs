//! The scripts that come with cryoscope, and the examples in the documentation of its modules,
//! against a machine that behaves.

use std::path::Path;

use super::*;
use crate::script::reference;

fn shipped() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = ["scripts", "examples"].into_iter().flat_map(|dir| {
        let entries = fs::read_dir(root.join(dir)).unwrap();
        entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    });
    let mut scripts: Vec<PathBuf> =
        listed.filter(|p| p.extension().is_some_and(|e| e == "rhai")).collect();
    // A module of another script.
    scripts.retain(|path| !path.ends_with("course_bodies.rhai"));
    scripts.sort();
    scripts
}

#[test]
fn every_shipped_scenario_passes_on_a_machine_that_behaves() {
    let scripts = shipped();
    assert!(scripts.len() >= 4, "{scripts:?}");
    let mut scenarios = 0;
    for script in &scripts {
        let decls = collect_within(script, LIMITS).unwrap_or_else(|e| panic!("{e}"));
        for decl in decls {
            let src = &decl.options.scheduler.src;
            if src != "none" {
                assert!(decl.base_dir().join(src).is_file(), "{}: no {src}", decl.name);
            }
            if src.ends_with("fair.bpf.c") {
                // The machine that behaves has the fifo scheduler only: tests/course.rs has a real one.
                continue;
            }
            let bench = Bench::with(FakeLab::of(&decl));
            let ran = bench.run_file(script, decl.index, &decl.name, LIMITS);
            let told: Vec<String> = ran.checks().into_iter().map(told).collect();
            assert_eq!(ran.outcome, Outcome::Pass, "{}: {told:#?}", decl.name);
            assert!(ran.end == End::Done && !told.is_empty(), "{}: {:?}", decl.name, ran.end);
            scenarios += 1;
        }
    }
    assert!(scenarios >= 11, "{scenarios}");
}

#[test]
fn the_smoke_suite_has_a_scenario_for_each_promise() {
    let smoke = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/smoke.rhai");
    let decls = collect_within(&smoke, LIMITS).unwrap();
    assert!(decls.len() >= 6);
    assert!(decls.iter().all(|d| d.options.tags == ["smoke"]), "{decls:?}");
    assert!(decls.iter().any(|d| d.options.topology == "1n2l2c1t"));
    assert!(decls.iter().any(|d| d.options.scheduler.is_none()));
}

/// The code blocks of a documentation.
fn examples(doc: &str) -> Vec<String> {
    doc.split("```").skip(1).step_by(2).map(|code| code.trim_matches('\n').to_string()).collect()
}

#[test]
fn the_examples_of_our_modules_run_and_judge() {
    let modules = reference().modules();
    assert!(!modules.is_empty());
    for module in &modules {
        assert!(!module.doc.is_empty() && !module.functions.is_empty(), "{}", module.name);
        let short = module.name.rsplit('/').next().unwrap();
        for function in &module.functions {
            let found = examples(&function.doc);
            assert!(!found.is_empty(), "{} of {} has no example", function.name, module.name);
            for example in found {
                let name = format!("{short}::{}(", function.name);
                assert!(example.contains(&name), "the example of {name} does not call it");
                let text = format!(
                    "import \"{}\" as {short};\nscenario(\"x\", |t| {{\n{example}\n}});",
                    module.name
                );
                let bench = Bench::new();
                let decl = &bench.collect(&text).unwrap_or_else(|e| panic!("{e}"))[0];
                let lab = FakeLab::of(decl).with_fifo().with_kernel();
                let ran = Bench::with(lab).run_as(&text, 0, "x");
                assert_eq!(ran.outcome, Outcome::Pass, "{name}: {ran:#?}");
            }
        }
    }
}

#[test]
fn the_scripts_of_the_book_run() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let pages = ["snapshots.md", "freezing.md"];
    let book = pages.map(|page| fs::read_to_string(docs.join(page)).unwrap()).concat();
    let scripts: Vec<&str> = book
        .split("```rhai\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect();
    assert!(scripts.len() >= 11, "{}", scripts.len());
    for script in scripts {
        let text = format!(
            "scenario(\"x\", |t| {{\nt.start(#{{ work: \"spin\", count: 4 }});\nlet snap = t.freeze(\"loaded\");\nexpect(snap.tag).eq(\"loaded\");\n{script}\n}});"
        );
        let bench = Bench::new();
        let decl = &bench.collect(&text).unwrap_or_else(|e| panic!("{e}"))[0];
        let lab = FakeLab::of(decl).with_fifo().with_kernel();
        let ran = Bench::with(lab).run_as(&text, 0, "x");
        assert_eq!(ran.outcome, Outcome::Pass, "{script}: {ran:#?}");
    }
}

#[test]
fn the_scripts_about_samples_series_statistics_and_ci_run() {
    let pages = [
        "scenarios.md",
        "sampling.md",
        "series.md",
        "monitor.md",
        "stats.md",
        "ci.md",
        "workers.md",
    ];
    for page in pages.map(|page| format!("docs/{page}")) {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let page = fs::read_to_string(page).unwrap();
        let scripts: Vec<&str> =
            page.split("```rhai\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!scripts.is_empty(), "{}", scripts.len());
        for script in scripts {
            let decl = &Bench::new().collect(script).unwrap_or_else(|e| panic!("{e}"))[0];
            let lab = FakeLab::of(decl).with_fifo().with_kernel();
            let ran = Bench::with(lab).run_as(script, 0, &decl.name);
            assert_eq!(ran.outcome, Outcome::Pass, "{script}: {ran:#?}");
        }
    }
}

#[test]
fn a_check_of_ours_that_fails_names_the_authors_line() {
    let cases = [
        (
            "let s = t.freeze(\"a\");\nchecks::advanced(s, s, \"nr_enqueued\");",
            "fail 3:9 nr_enqueued advanced: expected more than 21, found 21",
        ),
        (
            "let s = t.freeze(\"a\");\nchecks::adds_up(s.map(\"cpu_stats\").at(0), \"nr_running\", 50, 2);",
            "fail 3:9 the CPUs' nr_running add up: expected 50, give or take 2, found 20, which is 30 away",
        ),
        (
            "let s = t.freeze(\"a\");\nchecks::has_keys(s.map(\"task_ctx\"), [1, 2]);",
            "fail 3:9 keys missing in task_ctx: expected nothing in it, found a length of 2: [1, 2]",
        ),
        (
            "t.scheduler.detach();\nchecks::in_charge(t);",
            "fail 3:9 the scheduler is in charge: expected \"enabled\", found \"disabled\"",
        ),
    ];
    for (body, want) in cases {
        let text = format!("scenario(\"x\", |t| {{ import \"std/checks\" as checks;\n{body}\n}});");
        let decl = &Bench::new().collect(&text).unwrap()[0];
        let bench = Bench::with(FakeLab::of(decl).with_fifo());
        let ran = bench.run_as(&text, 0, "x");
        assert_eq!(ran.one(), want);
        let at = ran.checks()[0].at.clone().unwrap();
        assert_eq!(bench.plain(&at.file.display().to_string()), "s.rhai");
    }
}

#[test]
fn a_failure_says_where_the_value_came_from() {
    let text = "scenario(\"x\", |t| {\nlet s = t.freeze(\"end\");\n\
                expect(s.global(\"nr_enqueued\")).eq(0);\nexpect(s.map(\"reasons\").get(1).cpu(1).value).eq(0);\n});";
    let decl = &Bench::new().collect(text).unwrap()[0];
    let ran = Bench::with(FakeLab::of(decl).with_fifo()).run_as(text, 0, "x");
    let origins: Vec<_> = ran.checks().iter().map(|c| c.origin.clone().unwrap()).collect();
    for (origin, part) in origins.iter().zip(["nr_enqueued", "reasons"]) {
        assert!(origin.contains(part) && origin.contains("end"), "{origin}");
    }
}

#[test]
fn what_a_snapshot_throws_is_told_with_its_advice() {
    let text = "scenario(\"x\", |t| {\nlet s = t.freeze(\"end\");\ns.map(\"task_ctxx\");\n});";
    let decl = &Bench::new().collect(text).unwrap()[0];
    let ran = Bench::with(FakeLab::of(decl).with_fifo()).run_as(text, 0, "x");
    let told = ran.one();
    assert!(told.starts_with("error 3:3 script: "), "{told}");
    assert!(told.contains("task_ctxx") && told.contains("\"task_ctx\""), "{told}");
}
