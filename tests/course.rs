//! Courses of samples: ten that hold under a fair scheduler, and their twins under buggy ones, each of
//! which fails by the check that names the symptom.

use place::{Place, alone, project};

mod place;

#[test]
fn a_fair_scheduler_passes_and_each_bug_shows() {
    let _alone = alone();
    let place = Place::new();
    for (name, from) in [
        ("course_bodies.rhai", "scripts/course_bodies.rhai"),
        ("fair.bpf.c", "examples/schedulers/fair.bpf.c"),
        ("twins.rhai", "tests/scripts/twins.rhai"),
    ] {
        place.file(name, std::fs::read(project(from)).expect("it is there"));
    }
    let course = project("scripts/course.rhai").display().to_string();
    let said = place.run(&["run", &course, "twins.rhai", "-j", "1"]);
    println!("{}{}", said.out, said.err);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("\n20 passed in "), "{said:?}");
}
