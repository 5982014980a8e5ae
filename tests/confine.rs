//! A scenario's process writes where it has to and nowhere else.

mod place;

use std::fs;

use cryoscope::vm::contain::{Landlock, landlock};
use place::{Place, project};

/// A directory that is not below that for temporary files, nor the place itself.
fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_scenario_saves_beside_its_script_and_where_it_is_told_but_not_elsewhere() {
    let place = Place::with_own_cache();
    let outside = elsewhere();
    let path = outside.path().display().to_string();
    let sample = fs::read(project("fuzz/seeds/capsule/sample.cryo")).unwrap();
    place.file("suite/sample.cryo", sample);
    place.file(
        "suite/saves.rhai",
        format!(
            r#"let s = open("suite/sample.cryo");
s.save("here.cryo");
s.save("suite/beside.cryo");
expect(open("suite/beside.cryo").tag).eq(s.tag);
try {{
    s.save("{path}/outside.cryo");
    note("it was saved");
}} catch (e) {{
    note("refused: " + e.message);
}}
"#
        ),
    );
    // Temporary files have a directory of their own here, or the one of all would allow too much.
    fs::create_dir(place.path().join("tmp")).unwrap();
    let run = |args: &[&str]| {
        let args = [&["run", "suite/saves.rhai", "--json", "events.jsonl"], args].concat();
        let mut command = place.command(&args);
        command.env("TMPDIR", place.path().join("tmp"));
        place::Said::from(command.output().unwrap())
    };
    let said = run(&[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(place.path().join("here.cryo").exists());
    assert!(place.path().join("suite/beside.cryo").exists());
    let events = place.read("events.jsonl");
    if let Landlock::Offered(_) = landlock() {
        assert!(!outside.path().join("outside.cryo").exists());
        let refused = format!("refused: cannot save the snapshot to {path}/outside.cryo: ");
        assert!(events.contains(&refused), "{events}");
        for part in [
            "a scenario's process may only write below ",
            &place.path().display().to_string(),
            "; save it there, or name its directory with --writable",
        ] {
            assert!(events.contains(part), "{part} in {events}");
        }
    } else {
        println!("not shown, this host has no landlock: {:?}", landlock());
    }
    let said = run(&["--writable", &path]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(outside.path().join("outside.cryo").exists());
    assert!(place.read("events.jsonl").contains("it was saved"));
    let said = run(&["--writable", "nowhere"]);
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.err.contains("--writable nowhere: "), "{said:?}");
}
