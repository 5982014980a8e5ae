//! How scripts are run: collected, chosen, stopped.

use std::time::Instant;

use super::*;
use crate::scenario::cell::Why;
use crate::scenario::{BootPath, ExpectExit};

const THREE: &str = "\
import \"std/checks\" as checks;
const BASE = 10;
fn helper(x) { x + 1 }
print(\"top\");
for i in 0..3 {
    scenario(`number ${i}`, #{ tags: [\"loop\"], duration: \"2s\" }, |t| {
        print(`body ${i}`);
        expect(helper(i) + global::BASE).eq(11 + i);
    });
}
print(\"bottom\");
";

#[test]
fn collecting_runs_no_body_and_a_cell_runs_the_one_it_is_for() {
    let bench = Bench::new();
    let decls = bench.collect(THREE).unwrap();
    let names: Vec<_> = decls.iter().map(|d| (d.name.as_str(), d.index, d.plain)).collect();
    assert_eq!(names, [("number 0", 0, false), ("number 1", 1, false), ("number 2", 2, false)]);
    assert_eq!(decls[1].options.tags, ["loop"]);
    assert_eq!(decls[1].options.duration, Duration::from_secs(2));
    assert_eq!(decls[1].at.as_ref().map(|at| at.line), Some(6));
    let ran = bench.run(THREE, 1);
    assert_eq!(ran.printed(), ["top", "body 1"], "what stands behind is for other scenarios");
    assert_eq!(ran.one(), "pass 8:9 helper(i) + global::BASE: expected 12, found 12");
    assert_eq!((ran.end, ran.outcome), (End::Done, Outcome::Pass));
}

#[test]
fn every_option_arrives() {
    let text = "\
scenario(\"all\", #{
    scheduler: #{ src: \"a.bpf.c\", rodata: #{ slice_ns: 5_000_000 }, args: [\"-v\"],
        include: \"inc\", defines: [\"X=1\"], staged: #{ \"f\": \"/f\" }, env: #{ A: 1 }, stats: \"/s\" },
    topology: \"1n2l2c1t\", memory: \"1G\", huge_pages: true, pin: \"2-5\", kernel: \"debian:7.2\", boot: \"bzimage\",
    duration: \"4s\", tags: [\"smoke\", \"x\"], timeout: \"1m\", expect_exit: \"stall\",
    allow_inconclusive: true, requires: [\"llcs\"], kargs: [\"quiet\"], bpf_stats: true,
    include_files: #{ \"data.bin\": \"/data.bin\" },
}, |t| {});
scenario(\"short\", #{ scheduler: \"x.bpf.o\" }, |t| {});
scenario(\"none\", |t| {});";
    let decls = Bench::new().collect(text).unwrap();
    let all = &decls[0].options;
    let scheduler = &all.scheduler;
    assert_eq!(scheduler.src, "a.bpf.c");
    assert_eq!(scheduler.rodata["slice_ns"], 5_000_000);
    assert_eq!((scheduler.args[0].as_str(), scheduler.include[0].as_str()), ("-v", "inc"));
    assert_eq!(scheduler.defines, ["X=1"]);
    assert_eq!(scheduler.staged, [("f".into(), "/f".into())]);
    assert_eq!(scheduler.env, [("A".into(), "1".into())]);
    assert_eq!(scheduler.stats.as_deref(), Some("/s"));
    assert_eq!((all.topology.as_str(), all.memory), ("1n2l2c1t", 1 << 30));
    assert_eq!((all.huge_pages, all.pin.as_deref()), (true, Some("2-5")));
    assert_eq!((all.kernel.as_str(), all.boot), ("debian:7.2", BootPath::BzImage));
    assert_eq!(all.tags, ["smoke", "x"]);
    assert_eq!(all.timeout, Some(Duration::from_secs(60)));
    assert_eq!((&all.expect_exit, all.allow_inconclusive), (&ExpectExit::Stall, true));
    assert_eq!(
        (all.requires.as_slice(), all.kargs.as_slice()),
        (
            &["llcs".to_string()][..],
            &["quiet", "sysctl.kernel.bpf_stats_enabled=1"].map(str::to_owned)[..]
        )
    );
    assert_eq!(all.include_files, [("data.bin".into(), "/data.bin".into())]);
    assert_eq!(decls[1].options.scheduler.src, "x.bpf.o");
    assert_eq!(decls[2].options, Default::default());
}

#[test]
fn a_script_that_changes_from_run_to_run_is_an_error() {
    let bench = Bench::new();
    let ran = bench.run_as(THREE, 1, "another");
    let want = "error 6:5 script: the script declares \"number 1\" where it declared \"another\" when it was \
                collected: what it declares must not change from run to run";
    assert_eq!(ran.one(), want);
    let ran = bench.run_as(THREE, 7, "number 7");
    let want = "error ? script: the script no longer declares a scenario number 8 called \"number 7\": what it \
                declares must not change from run to run";
    assert_eq!(ran.one(), want);
    let ran = bench.run_as("let x = ;", 0, "x");
    assert_eq!(ran.one(), "error 1:9 script: ';' is unexpected here");
}

#[test]
fn plain_scripts_boot_for_themselves() {
    let bench = Bench::new();
    let text = "print(1); let t = boot(#{ memory: \"1G\" }); print(2); expect(t.kernel).contains(\"7.2\");";
    let decls = bench.collect(text).unwrap();
    assert_eq!((decls.len(), decls[0].name.as_str(), decls[0].plain), (1, "s", true));
    let ran = bench.run(text, 0);
    assert_eq!(ran.printed(), ["1", "2"]);
    assert_eq!(ran.outcome, Outcome::Pass);
    assert!(bench.collect("1 + 1;").unwrap()[0].plain);
    let cases = [
        ("boot(#{ mem: 1 });", "\"mem\" is no option of boot(..)"),
        ("boot(); boot();", "a second machine in one script is not available yet"),
        ("open(\"/nowhere/x\");", "cannot open /nowhere/x: No such file or directory"),
    ];
    for (text, want) in cases {
        let told = bench.run_as(text, 0, "s").one();
        assert!(told.contains(want), "{text}: {told}");
    }
    let declared_by_a_module = "import \"m\" as m; boot(); m::declare();";
    bench.file("m.rhai", "fn declare() { scenario(\"late\", |t| {}); }");
    let told = bench.run_as(declared_by_a_module, 0, "s").one();
    assert!(told.contains("a script that calls boot(..) cannot declare scenarios too"), "{told}");
}

#[test]
fn scripts_without_any_scenario_to_declare_are_not_plain() {
    let decls = Bench::new().collect("if false { scenario(\"x\", |t| {}); }").unwrap();
    assert!(decls.is_empty());
}

#[test]
fn collecting_prints_waits_and_judges_nothing() {
    let start = Instant::now();
    let text = "print(1); sleep(\"1h\"); expect(1).eq(2); scenario(\"x\", |t| { fail(\"no\"); });";
    assert_eq!(Bench::new().collect(text).unwrap().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_top_level_that_takes_too_long_is_an_error() {
    let bench = Bench::new();
    let path = bench.file("s.rhai", "let n = 0;\nloop { n += 1; }");
    let limits = Limits { operations: 0, collect: Duration::from_millis(100) };
    let told = bench.plain(&collect_within(&path, limits).unwrap_err().to_string());
    let want = "\
error: the script's top level did not come to its end within 0.10 s
 --> s.rhai:2:";
    assert!(told.starts_with(want), "{told}");
    assert!(told.ends_with("is there a loop that never ends?"), "{told}");
}

#[test]
fn what_the_laboratory_refuses_is_judged_by_whose_fault_it_is() {
    let cases = [
        (LabError::Machine("no QEMU".into()), "error 2:1 machine: no QEMU", Outcome::Error),
        (LabError::Scheduler("rejected".into()), "fail 2:1 scheduler: rejected", Outcome::Fail),
        (LabError::Timeout("no hello".into()), "error 2:1 deadline: no hello", Outcome::Error),
    ];
    for (error, want, outcome) in cases {
        let mut bench = Bench::new();
        bench.refuse = Some(error.clone());
        let ran = bench.run("\nscenario(\"x\", |t| { fail(\"ran\"); });", 0);
        assert_eq!((ran.one().as_str(), ran.outcome), (want, outcome));
        assert_eq!(ran.end, End::Lab(error));
    }
    let mut bench = Bench::new();
    bench.refuse = Some(LabError::Unsupported("this engine has no watch".into()));
    let ran = bench.run("scenario(\"x\", |t| {});", 0);
    assert_eq!((ran.end, ran.outcome), (End::Stopped, Outcome::Skip));
}

#[test]
fn trouble_in_the_middle_ends_the_scenario_where_it_happened() {
    let cases = [
        (LabError::Machine("it died".into()), "error 3:3 machine: it died", false),
        (LabError::Scheduler("it left".into()), "fail 3:3 scheduler: it left", false),
        (LabError::Argument("nonsense".into()), "fail 4:15 fail: nonsense", true),
        (LabError::Timeout("too slow".into()), "fail 4:15 fail: too slow", true),
        (LabError::Interrupted, "error 3:3 interrupted: the run was interrupted here", false),
    ];
    for (error, want, caught) in cases {
        let mut lab = FakeLab::new();
        lab.trouble = Some(error.clone());
        let bench = Bench::with(lab);
        let ran = bench.body("try {\nt.hold(\"1s\");\n} catch (e) { fail(e.message) }");
        assert_eq!(ran.one(), want, "{error:?}");
        assert_eq!(ran.end == End::Done, caught, "{error:?}");
    }
}

#[test]
fn a_wish_to_end_reaches_loops_and_waits() {
    let cases = [
        ("loop {}", "1:1"),
        ("sleep(\"1h\");", "2:1"),
        ("let n = 0; while true { n += 1; try { sleep(\"1ms\") } catch { } }", ""),
    ];
    for (body, at) in cases {
        for why in [Why::Told, Why::Deadline(Duration::from_millis(50))] {
            let bench = Bench::new();
            let (cancel, lab) = (bench.cancel.clone(), bench.lab.clone());
            let raiser = std::thread::spawn(move || {
                // Not before the body has begun.
                for _ in 0..60_000 {
                    if !lab.asked.lock().unwrap().is_empty() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(50));
                cancel.raise(why);
            });
            let path_text = format!("scenario(\"x\", |t| {{ t.hold(\"1ms\");\n{body}\n}});");
            let ran = bench.run_unlimited(&path_text);
            raiser.join().unwrap();
            let told = ran.one();
            let label = if why == Why::Told { "interrupted" } else { "deadline" };
            assert!(told.contains(label), "{told}");
            assert!(told.contains(at), "{told}");
            assert_eq!((ran.end, ran.outcome), (End::Cancelled, Outcome::Error), "{body}");
        }
    }
}

#[test]
fn a_deadline_names_the_loops_of_the_scenario() {
    let bench = Bench::new();
    bench.cancel.raise(Why::Deadline(Duration::from_secs(5)));
    let text = "scenario(\"x\", |t| {\n  while true { }\n});\nscenario(\"y\", |t| {\n loop {}\n});";
    let want = "error 1:1 deadline: the scenario did not end within its 5.0 s\n\
                help: is there a loop that never ends? a loop begins in line 2";
    let raised = bench.cancel.clone();
    assert!(raised.is_raised());
    // Raised before: the script ends at its first step, which is the call of `scenario`.
    let ran = bench.run_unlimited(text);
    assert_eq!(ran.one(), want);
}

#[test]
fn long_texts_are_cut_before_they_are_recorded() {
    let body = "let long = \"x\"; long.pad(1000000, \"x\"); print(long); note(long); fail(long);\nthrow long;";
    let ran = Bench::new().body(body);
    assert_eq!(ran.records.len(), 4);
    for record in &ran.records {
        assert!(format!("{record:?}").len() < 20_000);
    }
}

#[test]
fn deep_and_large_values_end_in_errors_not_in_crashes() {
    let bench = Bench::new();
    let deep_text = format!("let x = {}1{};", "(".repeat(5000), ")".repeat(5000));
    let told = bench.collect(&deep_text).unwrap_err();
    assert!(told.contains("the expression is nested too deeply"), "{told}");
    let deep_value = "let a = []; for i in 0..3000 { a = [a]; } print(a);";
    let path = bench.file("s.rhai", deep_value);
    let limits = Limits { operations: 0, collect: Duration::from_secs(20) };
    let _ = collect_within(&path, limits);
    let many = "let a = []; a.pad(2000000, 0);";
    let told = bench.collect(many).unwrap_err();
    assert!(told.contains("an array has more than 1000000 elements"), "{told}");
}

#[test]
fn a_saved_snapshot_is_opened_by_any_script() {
    let bench = Bench::with(FakeLab::new().with_fifo());
    let file = bench.file("a.cryo", "");
    let path = file.display();
    let ran = bench.body(&format!(
        "let live = t.freeze(\"a\");\nlive.save(\"{path}\");\nlet s = open(\"{path}\");\n\
         expect(s.tag).eq(\"a\");\nexpect(s.global(\"nr_running\")).eq(live.global(\"nr_running\"));\n\
         dump(live);\ndump(s);\n\
         try {{ live.save(\"/nowhere/a.cryo\") }} catch (e) {{ print(e.message) }}\n\
         try {{ live.save(\"x\", #{{ ram: true }}) }} catch (e) {{ print(e.message) }}"
    ));
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
    let printed = ran.printed();
    assert_eq!(printed[0], printed[1]);
    assert!(printed[2].starts_with("cannot save the snapshot to /nowhere/a.cryo: "), "{printed:?}");
    let none = "cannot save all of memory to x: it was not copied with this snapshot";
    assert_eq!(printed[3], none);
    // A script without a machine of its own.
    let text = format!("expect(open(\"{path}\").global(\"nr_running\")).at_least(1);");
    let decls = bench.collect(&text).unwrap();
    assert!(decls[0].plain && !decls[0].boots);
    let ran = bench.run_as(&text, 0, "s");
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
    let text = "let s = boot(#{ timeout: \"9m\" });";
    let decls = bench.collect(text).unwrap();
    assert!(decls[0].plain && decls[0].boots);
    assert_eq!(decls[0].options.timeout, Some(Duration::from_secs(540)));
}
