//! `import`: what is found, who called whom, and whose line it is.

use super::*;

const HELPERS: &str = "\
fn judged(x) {
    expect(x).eq(1);
}
fn each(xs, f) {
    for x in xs {
        f.call(x);
    }
}
fn mapped(xs, f) { xs.map(f) }
fn thrower() {
    deeper();
}
private fn deeper() {
    let a = [];
    a[3]
}
fn private_too() { deeper() }
export const LIMIT = 7;
";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.file("lib/helpers.rhai", HELPERS);
    bench
}

fn lines(ran: &Ran) -> Vec<String> {
    let place = |check: &Check| match &check.at {
        Some(at) => format!("{}:{}", at.file.file_name().unwrap().display(), at.line),
        None => "?".into(),
    };
    ran.checks().iter().map(|c| format!("{} {}", place(c), c.label)).collect()
}

#[test]
fn modules_stand_beside_the_script_or_below_it() {
    let bench = bench();
    let ran = bench.body(
        "import \"lib/helpers\" as h;\nimport \"lib/helpers.rhai\" as again;\nexpect(h::LIMIT + again::LIMIT).eq(14);",
    );
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
    let ran = bench.body("import \"lib/helpres\" as h;");
    assert!(
        ran.one().contains("there is no module \"lib/helpres\"; did you mean \"lib/helpers\"?"),
        "{}",
        ran.one()
    );
    let ran = bench.body("import \"lib/helpers\" as h;\nh::deeper();");
    assert!(ran.one().contains("there is no function h::deeper()"), "{}", ran.one());
    let ran = bench.body("import \"lib/helpers\" as h;\nh::judgd(1);");
    assert!(ran.one().ends_with("help: did you mean judged?"), "{}", ran.one());
}

#[test]
fn a_file_beside_the_script_wins_over_our_own_module() {
    let bench = bench();
    bench.file("std/checks.rhai", "fn mine() { 42 }");
    let ran = bench.body("import \"std/checks\" as c;\nexpect(c::mine()).eq(42);");
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
}

#[test]
fn links_do_not_lead_out() {
    let (bench, outside) = (bench(), Bench::new());
    outside.file("x.rhai", "fn f() { 1 }");
    std::os::unix::fs::symlink(outside.dir.join("x.rhai"), bench.dir.join("x.rhai")).unwrap();
    let told = bench.body("import \"x\" as x;").one();
    assert!(
        told.contains("\"x\" leads out of the script's directory through a symbolic link"),
        "{told}"
    );
}

#[test]
fn circles_are_told() {
    let bench = Bench::new();
    bench.file("a.rhai", "import \"b\" as b;");
    bench.file("b.rhai", "import \"a\" as a;");
    let told = bench.plain(&bench.body("import \"a\" as a;").one());
    assert!(
        told.contains(
            "modules import each other in a circle: a.rhai imports b.rhai imports a.rhai"
        ),
        "{told}"
    );
    let told = bench.plain(&bench.body("import \"s\" as s;").one());
    assert!(told.contains("modules import each other in a circle: s.rhai"), "{told}");
}

#[test]
fn mistakes_in_a_module_are_told_at_their_own_line() {
    let bench = Bench::new();
    bench.file("bad.rhai", "fn f() {\n  1 +\n}");
    let told = bench.plain(&bench.collect("import \"bad\" as b;").unwrap_err());
    assert!(told.contains("--> bad.rhai:3:1"), "{told}");
    bench.file("bad.rhai", "fn f() {\n  nothing_such()\n}");
    let told = bench.plain(&bench.collect("import \"bad\" as b;\nb::f();").unwrap_err());
    assert!(told.contains("--> bad.rhai:2:3"), "{told}");
    assert!(told.ends_with("= f(..) was called from s.rhai:2:4"), "{told}");
}

#[test]
fn a_check_in_an_authors_module_is_told_where_it_stands() {
    let ran = bench().body("import \"lib/helpers\" as h;\nh::judged(2);");
    assert_eq!(lines(&ran), ["helpers.rhai:2 x"]);
}

#[test]
fn a_closure_keeps_its_own_line_whoever_calls_it() {
    let ran = bench().body(
        "import \"lib/helpers\" as h;\nlet n = 1;\nh::each([1, 2], |x| {\n  expect(x).eq(n);\n});\n\
         expect(h::mapped([1, 2], |x| x + n)).eq([2, 3]);\nexpect(h::mapped([5, 6], |x, i| i)).eq([0, 1]);",
    );
    let want = ["s.rhai:5 x", "s.rhai:5 x", "s.rhai:7 h::mapped([1, 2], |x| x + n)"];
    assert_eq!(lines(&ran)[..3], want);
    assert_eq!(ran.checks()[3].outcome, Outcome::Pass, "{:?}", ran.checks()[3]);
}

#[test]
fn a_closure_finds_the_functions_and_constants_of_its_own_script() {
    let text = "const BASE = 10;\nfn plus(x) { x + global::BASE }\nscenario(\"x\", |t| {\n\
                import \"lib/helpers\" as h;\nexpect(h::mapped([1], |x| plus(x))).eq([11]);\n});";
    let ran = bench().run(text, 0);
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
}

#[test]
fn recursion_through_modules_and_closures_ends() {
    let bench = bench();
    let text = "import \"lib/helpers\" as h;\nfn f(g) {\n import \"lib/helpers\" as h;\n\
                h::mapped([1], |x| f(g));\n}\nf(1);";
    let told = bench.plain(&bench.collect(text).unwrap_err());
    assert!(told.contains("functions call each other more than 100 deep"), "{told}");
}

#[test]
fn what_is_handed_to_a_module_stays_what_it_was() {
    let ran = bench().body(
        "import \"lib/helpers\" as h;\nlet xs = [1];\nlet f = |x| x;\nh::mapped(xs, f);\nh::judged(xs);\n\
         expect(xs).eq([1]);\nexpect(f.call(3)).eq(3);",
    );
    let outcomes: Vec<Outcome> = ran.checks().iter().map(|c| c.outcome).collect();
    assert_eq!(outcomes, [Outcome::Fail, Outcome::Pass, Outcome::Pass], "{ran:?}");
}

#[test]
fn an_error_below_is_told_at_the_authors_line_with_the_way_there() {
    let bench = bench();
    let ran = bench.body("import \"lib/helpers\" as h;\nh::thrower();");
    let told = bench.plain(&match &ran.end {
        End::Threw(error) => error.to_string(),
        other => panic!("{other:?}"),
    });
    let want = "\
error: there is nothing at index 3: the array is empty
  --> lib/helpers.rhai:15:7
   |
15 |     a[3]
   |       ^
   = deeper(..) was called from lib/helpers.rhai:11:5
   = thrower(..) was called from s.rhai:3:4";
    assert_eq!(told, want);
}
