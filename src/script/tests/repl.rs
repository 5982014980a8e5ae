//! The REPL's session: inputs that follow each other, and what could come next in one.

use super::*;
use crate::script::repl::{Answer, Interactive};

struct Repl {
    interactive: Interactive,
    lab: Arc<FakeLab>,
    cancel: Cancel,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Repl {
    fn new() -> Self {
        let (lab, cancel) = (Arc::new(FakeLab::new().with_fifo()), Cancel::new());
        let records = Arc::new(Mutex::new(Vec::new()));
        let sink = records.clone();
        let recorder = Recorder::passing_on(move |r| sink.lock().unwrap().push(r.clone()));
        let interactive = Interactive::new(lab.clone(), recorder, cancel.clone());
        Repl { interactive, lab, cancel, records }
    }

    fn frozen() -> Self {
        let mut repl = Repl::new();
        repl.eval("vm.start(#{ work: \"spin\", count: 2 }); vm.freeze(\"one\");");
        repl
    }

    /// Evaluates; an error as its text.
    fn eval(&mut self, text: &str) -> String {
        match self.interactive.eval(text) {
            Answer::Value(text) => text,
            Answer::Nothing => String::new(),
            Answer::Ended => "ended".into(),
            Answer::Interrupted => "interrupted".into(),
            Answer::Error(error) => error.to_string(),
        }
    }

    fn offered(&self, text: &str) -> Vec<String> {
        let (start, found) = self.interactive.complete(text, false);
        found.into_iter().map(|c| format!("{}{}", &text[..start], c.text)).collect()
    }

    fn told(&self) -> Vec<String> {
        let records = std::mem::take(&mut *self.records.lock().unwrap());
        let told = records.iter().map(|record| match record {
            Record::Check(check) => format!("{} {}", check.outcome, check.label),
            Record::Note { text, .. } => format!("note {text}"),
            Record::Skip { reason, .. } => format!("skip {reason}"),
            Record::Print { text } => text.clone(),
            Record::Plot(plot) => plot.text().join("\n"),
        });
        told.collect()
    }
}

#[test]
fn values_are_shown_unless_a_semicolon_keeps_them_back() {
    let mut repl = Repl::new();
    let cases = [
        ("1 + 1", "2"),
        ("_ * 21", "42"),
        ("_;", ""),
        ("_", "42"),
        ("let x = 5;", ""),
        ("let y = 6", ""),
        ("x * y", "30"),
        ("x = 7", ""),
        ("x", "7"),
        ("()", ""),
        ("\"a\"", "\"a\""),
        ("\"a\\nb\"", "a\nb"),
        ("1.0", "1.0"),
        ("[1, \"b\"]", "[1, \"b\"]"),
        ("#{ a: 1 }", "#{a: 1}"),
        ("_.a", "1"),
        ("// nothing", ""),
        ("", ""),
        ("switch 3 { 1 => 2, _ => 4 }", "4"),
        ("const C = 3;", ""),
        ("C", "3"),
        ("vm", "Vm(7.2.0-fake on fake, 1n2l2c1t)"),
    ];
    for (text, want) in cases {
        assert_eq!(repl.eval(text), want, "{text:?}");
    }
}

#[test]
fn functions_closures_and_imports_outlive_their_input() {
    let mut repl = Repl::new();
    let cases = [
        ("fn twice(x) { 2 * x }", ""),
        ("twice(4)", "8"),
        ("fn thrice(x) { x + twice(x) }", ""),
        ("thrice(4)", "12"),
        ("fn twice(x) { 200 * x } twice(1)", "200"),
        ("thrice(1)", "201"),
        ("let n = 0; let more = |by| n += by;", ""),
        ("more.call(3); more.call(4);", ""),
        ("n", "7"),
        ("[1, 2, 3].map(|x| x + n)", "[8, 9, 10]"),
        ("import \"std/checks\" as c;", ""),
        ("let f = |x| { let a = [x]; a[5] };", ""),
    ];
    for (text, want) in cases {
        assert_eq!(repl.eval(text), want, "{text:?}");
    }
    let offered = repl.offered("c::");
    assert!(offered.iter().any(|o| o.starts_with("c::")), "{offered:?}");
    // An error in what an earlier input defined shows that input.
    let error = repl.eval("f.call(1)");
    assert!(error.contains("there is nothing at index 5"), "{error}");
    assert!(error.contains("let f = |x| { let a = [x]; a[5] };"), "{error}");
    repl.eval("fn broken() { nothing.there }");
    let error = repl.eval("fn broken() { let a = []; a[1] }");
    assert_eq!(error, "");
    let error = repl.eval("1 + broken()");
    assert!(error.contains("fn broken() { let a = []; a[1] }"), "{error}");
    assert!(error.contains("broken(..) was called from input"), "{error}");
}

#[test]
fn the_newest_snapshot_is_snap() {
    let mut repl = Repl::new();
    let error = repl.eval("snap.tag");
    assert!(error.contains("snap is the newest snapshot, and there is none yet"), "{error}");
    assert_eq!(repl.eval("vm.freeze(\"one\");"), "");
    assert_eq!(repl.eval("snap.tag"), "\"one\"");
    assert_eq!(repl.eval("let old = snap; vm.freeze(\"two\"); snap.tag"), "\"one\"");
    assert_eq!(repl.eval("`${snap.tag} ${old.tag}`"), "\"two one\"");
    assert_eq!(repl.eval("const snap = 3; vm.freeze(\"three\"); "), "");
    assert_eq!(repl.eval("snap.tag"), "\"three\"");
    assert!(repl.eval("snap").starts_with("snapshot"), "a tree");
}

#[test]
fn checks_are_told_at_once_and_errors_leave_the_session_as_it_is() {
    let mut repl = Repl::frozen();
    repl.told();
    assert_eq!(repl.eval("expect(1 + 1).eq(2)"), "");
    assert_eq!(repl.eval("expect(snap.tag, \"tag\").eq(\"two\"); print(\"on\"); note(\"n\")"), "");
    assert_eq!(repl.told(), ["pass 1 + 1", "fail tag", "on", "note n"]);
    assert_eq!(repl.eval("require(false, \"must\"); print(\"never\")"), "ended");
    assert_eq!(repl.eval("skip(\"a\")"), "ended");
    assert_eq!(repl.eval("skip(\"b\")"), "ended");
    assert_eq!(repl.eval("expect(3)"), "");
    assert_eq!(repl.told(), ["fail must", "skip a", "skip b", "fail 3"]);
    let error = repl.eval("let kept = 1; snap.map(\"task_ctxx\")");
    assert!(error.contains("no captured map is called \"task_ctxx\""), "{error}");
    assert!(error.contains("--> input "), "{error}");
    assert_eq!(repl.eval("kept"), "1");
    assert!(repl.eval("let = 3").contains("let = 3"));
    let error = repl.eval("snpa.tag");
    assert!(error.contains("did you mean snap?"), "{error}");
    for (text, says) in [
        ("boot()", "a machine runs already: it is `vm`"),
        ("scenario(\"x\", |t| {})", "here, work with `vm`"),
    ] {
        let error = repl.eval(text);
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(repl.eval("6 * 7"), "42");
}

#[test]
fn everything_is_printed_whole() {
    let mut repl = Repl::new();
    repl.eval("let s = \"\"; for i in 0..3000 { s += \"0123456789\"; } dump(s); for i in 0..2000 { print(i) }");
    let told = repl.told();
    assert_eq!((told.len(), told[0].len()), (2001, 30_000));
}

#[test]
fn a_raised_wish_ends_the_input_alone() {
    let mut repl = Repl::new();
    let cancel = repl.cancel.clone();
    let raiser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        cancel.raise(crate::scenario::cell::Why::Told);
    });
    assert_eq!(repl.eval("let before = 1; loop {}"), "interrupted");
    raiser.join().unwrap();
    assert_eq!(repl.eval("sleep(\"10s\")"), "interrupted", "as long as it stays raised");
    repl.cancel.reset();
    assert_eq!(repl.eval("before"), "1");
    assert!(repl.told().is_empty());
}

#[test]
fn types_and_variables_are_told() {
    let mut repl = Repl::frozen();
    let kind = |repl: &mut Repl, text: &str| match repl.interactive.type_of(text) {
        Answer::Value(text) => text,
        other => format!("{other:?}"),
    };
    for (text, want) in [
        ("1", "int"),
        ("\"a\"", "string"),
        ("[1]", "array"),
        ("#{}", "map"),
        ("|| 1", "closure"),
        ("()", "nothing"),
        ("vm", "Vm"),
        ("snap", "Snapshot"),
        ("snap.map(\"task_ctx\")", "SnapshotMap"),
        ("snap.map(\"task_ctx\").at(0)", "SnapshotEntry"),
        ("snap.map(\"task_ctx\").at(0).value", "SnapshotField (struct task_ctx)"),
        ("snap.global(\"nr_enqueued\")", "SnapshotField (unsigned long)"),
        ("vm.scheduler", "Scheduler"),
    ] {
        assert_eq!(kind(&mut repl, text), want, "{text}");
    }
    repl.eval("let x = 1; let x = \"new\";");
    let vars: Vec<(String, String)> =
        repl.interactive.variables().into_iter().map(|v| (v.name, v.kind)).collect();
    let want = [("snap", "Snapshot"), ("vm", "Vm"), ("x", "string")];
    assert_eq!(vars, want.map(|(name, kind)| (name.to_string(), kind.to_string())));
}

#[test]
fn parts_of_a_script_are_told_with_their_own_lines() {
    let mut repl = Repl::new();
    let whole = "fn f() {\n  [][1]\n}\nlet x = 1;\nf()\n";
    let mut parts = Vec::new();
    for (from, to) in [(0, 18), (19, 29), (30, 34)] {
        parts.push(repl.interactive.eval_part(whole, from..to));
    }
    assert_eq!(parts[..2], [Answer::Nothing, Answer::Nothing]);
    let Answer::Error(error) = &parts[2] else { panic!("{parts:?}") };
    let error = error.to_string();
    assert!(error.contains("--> stdin:2:"), "{error}");
    assert!(error.contains("2 |   [][1]"), "{error}");
    assert!(error.contains("f(..) was called from stdin:5:1"), "{error}");
}

#[test]
fn what_could_come_next_is_offered() {
    let mut repl = Repl::frozen();
    repl.eval("let e = snap.map(\"task_ctx\").at(0); let m = #{ one: 1, two: #{ deep: 2 } };");
    repl.eval("fn mine(a) {} fn none() {}");
    let cases: [(&str, &[&str]); 32] = [
        ("sn", &["snap"]),
        ("1 + sna", &["1 + snap"]),
        ("min", &["min(", "mine("]),
        ("no", &["none()", "note("]),
        ("whi", &["while"]),
        ("pri", &["print(", "private"]),
        ("snap.glo", &["snap.global(", "snap.globals("]),
        ("snap.global(\"nr_e", &["snap.global(\"nr_enqueued\")"]),
        ("snap.live_glo", &["snap.live_global(", "snap.live_globals("]),
        ("snap.live_global(\"nr_e", &["snap.live_global(\"nr_enqueued\")"]),
        ("snap.global(\"sli", &["snap.global(\"slice_ns\")"]),
        ("snap.map(\"ta", &["snap.map(\"task_ctx\")"]),
        ("snap.map(\"fifo.", &["snap.map(\"fifo.bss\")", "snap.map(\"fifo.rodata\")"]),
        (
            "snap.map(\"task_ctx\").at(0).co",
            &["snap.map(\"task_ctx\").at(0).comm", "snap.map(\"task_ctx\").at(0).cookie"],
        ),
        ("snap.map(\"task_ctx\").at(0).runs.nr", &["snap.map(\"task_ctx\").at(0).runs.nr_runs"]),
        ("e.get(\"ru", &["e.get(\"runs"]),
        ("e.get(\"runs.nr", &["e.get(\"runs.nr_runs\")"]),
        ("e[\"wei", &["e[\"weight\"]"]),
        ("print(e.we", &["print(e.weight"]),
        ("snap.map(\"task_ctx\").find(|x| x.we", &["snap.map(\"task_ctx\").find(|x| x.weight"]),
        ("for x in snap.map(\"task_ctx\") { x.we", &["for x in snap.map(\"task_ctx\") { x.weight"]),
        (
            "snap.maps().map(|m| m.max_",
            &["snap.maps().map(|m| m.max_by(", "snap.maps().map(|m| m.max_entries"],
        ),
        ("m.tw", &["m.two"]),
        ("m.two.de", &["m.two.deep"]),
        ("vm.fre", &["vm.freeze(", "vm.freeze_when("]),
        ("vm.freeze(\"x\").pau", &["vm.freeze(\"x\").pause", "vm.freeze(\"x\").pause_us"]),
        ("vm.snapshot(\"", &["vm.snapshot(\"one\")"]),
        ("vm.freeze(\"two\", #{ maps: [\"task", &["vm.freeze(\"two\", #{ maps: [\"task_ctx\""]),
        ("import \"std/ch", &["import \"std/checks\" as "]),
        ("vm.freeze(\"a", &[]),
        ("snap.save(\"Cargo.t", &["snap.save(\"Cargo.toml"]),
        ("open(\"src/li", &["open(\"src/lib.rs"]),
    ];
    for (text, want) in cases {
        let offered = repl.offered(text);
        // Only what begins alike: functions of ours may come.
        assert_eq!(offered, want, "{text}");
    }
    for (text, has) in [
        ("snap.map(\"task_ctx\").at(0).", "snap.map(\"task_ctx\").at(0).weight"),
        ("snap.map(\"task_ctx\").at(0).", "snap.map(\"task_ctx\").at(0).cpu_sum("),
        ("snap.map(\"task_ctx\").", "snap.map(\"task_ctx\").len"),
        ("snap.maps().", "snap.maps().filter("),
        ("\"a\".", "\"a\"."),
    ] {
        let offered = repl.offered(text);
        assert!(offered.iter().any(|o| o == has) || text == has, "{text}: {offered:?}");
    }
    // What the scheduler told once is known, and asked for again only by the author.
    let nothing = repl.offered("vm.stats().nr_");
    assert_eq!(nothing, [""; 0]);
    repl.eval("vm.stats();");
    let cases: [(&str, &[&str]); 6] = [
        ("vm.stats().nr_", &["vm.stats().nr_queued"]),
        ("vm.stats().cpus[0].lo", &["vm.stats().cpus[0].load"]),
        ("vm.series().stats(\"nr", &["vm.series().stats(\"nr_queued\")"]),
        ("vm.series().stats(\"cp", &["vm.series().stats(\"cpus"]),
        ("vm.series().stats(\"cpus.", &[]),
        ("vm.stats_meta().nr", &[]),
    ];
    for (text, want) in cases {
        assert_eq!(repl.offered(text), want, "{text}");
    }
    for nothing in ["nope.", "1.", "// sna", "`sna", "vm.exec([\"ls\"]).cod", "snap.statss"] {
        assert_eq!(repl.offered(nothing), [""; 0], "{nothing}");
    }
    // Nothing was asked of the machine for it.
    assert_eq!(repl.lab.asked.lock().unwrap().len(), 3);
    let (_, found) = repl.interactive.complete("snap.map(\"ta", true);
    assert_eq!(found[0].text, "task_ctx", "something follows already");
}
