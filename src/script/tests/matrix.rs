//! The option `matrix`, and the failure that is expected.

use super::*;
use crate::scenario::ScenarioDecl;

fn collected(options: &str) -> Result<Vec<ScenarioDecl>, String> {
    Bench::new().collect(&format!("scenario(\"x\", #{{ {options} }}, |t| {{}});"))
}

fn names(options: &str) -> Vec<String> {
    collected(options).unwrap_or_else(|e| panic!("{e}")).into_iter().map(|d| d.name).collect()
}

#[test]
fn a_matrix_is_a_scenario_for_each_combination() {
    let decls = collected(
        "matrix: #{ kernel: [\"debian:7.2\", \"debian:7.3\"], topology: [\"1n1l1c1t\", \"1n1l2c1t\"] }, duration: \"3s\"",
    )
    .unwrap();
    let told: Vec<_> =
        decls.iter().map(|d| (d.name.as_str(), d.options.topology.as_str(), d.index)).collect();
    assert_eq!(
        told,
        [
            ("x[topology=1n1l1c1t,kernel=debian:7.2]", "1n1l1c1t", 0),
            ("x[topology=1n1l1c1t,kernel=debian:7.3]", "1n1l1c1t", 1),
            ("x[topology=1n1l2c1t,kernel=debian:7.2]", "1n1l2c1t", 2),
            ("x[topology=1n1l2c1t,kernel=debian:7.3]", "1n1l2c1t", 3),
        ]
    );
    assert_eq!(decls[3].options.kernel, "debian:7.3");
    assert_eq!(decls[3].options.duration, Duration::from_secs(3));
    let axes = [("topology", "1n1l2c1t"), ("kernel", "debian:7.3")];
    let axes: Vec<(String, String)> = axes.map(|(a, v)| (a.into(), v.into())).to_vec();
    assert_eq!(decls[3].options.axes, axes);
}

#[test]
fn schedulers_and_their_arguments_vary() {
    assert_eq!(
        names(
            "matrix: #{ scheduler: [\"a/fifo.bpf.c\", #{ src: \"fifo.bpf.c\", rodata: #{ slice_ns: 5 } }, \"none\"] }"
        ),
        [
            "x[scheduler=fifo.bpf.c]",
            "x[scheduler=fifo.bpf.c{rodata:{slice_ns:5}}]",
            "x[scheduler=none]"
        ]
    );
    assert_eq!(
        names("matrix: #{ scheduler: [\"a/f.bpf.c\", \"b/f.bpf.c\"] }"),
        ["x[scheduler=f.bpf.c]", "x[scheduler=b/f.bpf.c]"]
    );
    let decls =
        collected("scheduler: \"scx_x\", matrix: #{ args: [[], [\"-v\", \"--slice\", \"5\"]] }")
            .unwrap();
    let args: Vec<_> = decls.iter().map(|d| d.options.scheduler.args.join(" ")).collect();
    assert_eq!(args, ["", "-v --slice 5"]);
    assert_eq!(decls[1].name, "x[args=-v --slice 5]");
}

#[test]
fn the_one_that_was_asked_for_runs() {
    let text = "scenario(\"x\", #{ matrix: #{ topology: [\"1n1l1c1t\", \"1n1l2c1t\"] } }, |t| { print(\"ran\"); expect(1).eq(1); });\n\
                scenario(\"y\", |t| { fail(\"not this one\"); });";
    let bench = Bench::new();
    assert_eq!(bench.collect(text).unwrap().len(), 3);
    let ran = bench.run(text, 1);
    assert_eq!((ran.outcome, ran.printed()), (Outcome::Pass, vec!["ran"]), "{ran:#?}");
}

#[test]
fn what_is_no_matrix_is_refused() {
    let of = "the option \"matrix\" of scenario(..): ";
    let cases = [
        (
            "matrix: 3",
            "expected a map of arrays, like #{ topology: [\"1n1l2c1t\", \"1n2l2c1t\"] }, found 3 (int)",
        ),
        ("matrix: #{}", "it is empty; it may vary topology, kernel, scheduler, args"),
        (
            "matrix: #{ kernel: \"auto\" }",
            "kernel: expected an array of values, found \"auto\" (string)",
        ),
        ("matrix: #{ kernel: [] }", "kernel: the array is empty, so nothing would run"),
        ("matrix: #{ kernel: [\"auto\", \"auto\"] }", "kernel: auto comes twice"),
        (
            "kernel: \"auto\", matrix: #{ kernel: [\"auto\"] }",
            "kernel is an option of its own as well: give it in one place",
        ),
        (
            "matrix: #{ args: [[]] }",
            "args: they are a scheduler's, and there is none: say which executable is meant with the option scheduler",
        ),
    ];
    for (options, why) in cases {
        let error = collected(options).unwrap_err();
        assert!(error.contains(&format!("{of}{why}")), "{options}: {error}");
    }
    let many = "matrix: #{ kernel: range(0, 300).collect().map(|i| `debian:${i}`) }";
    let many = many.replace("range(0, 300).collect()", "all(300)");
    let text = format!(
        "fn all(n) {{ let a = []; for i in 0..n {{ a.push(i); }} a }}\nscenario(\"x\", #{{ {many} }}, |t| {{}});"
    );
    let error = Bench::new().collect(&text).unwrap_err();
    assert!(
        error.contains("it has more than 256 combinations: vary less in one scenario"),
        "{error}"
    );
    let near = collected("matrix: #{ kernels: [\"auto\"] }").unwrap_err();
    assert!(near.contains("did you mean \"kernel\"?"), "{near}");
    let bad = collected("matrix: #{ topology: [\"1n1l1c1t\", \"2x\"] }").unwrap_err();
    assert!(bad.contains("2x"), "{bad}");
}

#[test]
fn the_failure_that_is_meant_is_named() {
    let decl = &collected("expect_fail: \"nr stalls\"").unwrap()[0];
    assert_eq!(decl.options.rules().expect_fail.as_deref(), Some("nr stalls"));
    let error = collected("expect_fail: \" \"").unwrap_err();
    assert!(error.contains("give the label of the check that is meant to fail"), "{error}");
}
