//! The attached schedulers, as scripts read them.

use super::*;
use crate::snapshot::testing::changed;

#[test]
fn schedulers_are_read_from_a_script() {
    let snap = changed(|m| {
        let [first, _] = [m.load("made", 1), m.load("made", 2)];
        m.attach(&first, m.sched);
        let sub = m.sub("below", "/lab/hot", 300);
        let loaded = m.load("below", 7);
        m.attach(&loaded, sub);
        m.exit(sub, 64, ["unregistered from user space", ""]);
    });
    for (script, want) in [
        (
            "snap.scheds().map(|s| [s.cgroup, s.id, s.ops])",
            "[[\"/\", 1, \"made\"], [\"/lab/hot\", 300, \"below\"]]",
        ),
        ("let s = snap.active(); [s.is_root, s.is_live, s.exit, s.parent]", "[true, true, (), ()]"),
        ("snap.active().children().map(|s| s.cgroup)", "[\"/lab/hot\"]"),
        (
            "let s = snap.sched(\"/lab/hot\"); [s.is_root, s.is_live, s.parent.cgroup]",
            "[false, false, \"/\"]",
        ),
        (
            "snap.sched(\"/lab/hot\").exit",
            "#{code: 0, kind: \"unreg\", message: \"\", reason: \"unregistered from user space\"}",
        ),
        ("snap.active().maps().map(|m| m.name)", "[\"made.bss\", \"made.rodata\", \"made_ops\"]"),
        ("snap.active().progs().map(|p| p.id)", "[1]"),
        ("snap.global(\"nr\")", "1"),
        ("snap.live_global(\"nr\") + 1", "2"),
        ("snap.live_globals([\"nr\", \"tuned\"])", "#{nr: 1, tuned: 10}"),
        ("snap.globals(\"nr\")", "[1, 2, 7]"),
        ("snap.sched(\"/lab/hot\").global(\"nr\")", "7"),
        (
            "`${snap.sched(\"/lab/hot\")}`",
            "\"sched_ext enabled: below, the sub-scheduler of /lab/hot\"",
        ),
    ] {
        let told = run(script, snap.clone()).map(|v| render(&v)).map_err(|e| told(*e));
        assert_eq!(told.as_deref(), Ok(want), "{script}");
    }
    let text = run("snap.live_globals([1])", snap).map_err(|e| told(*e)).unwrap_err();
    assert_eq!(text, "live_globals(..) takes names as strings, found i64");
}
