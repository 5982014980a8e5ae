//! The live scheduler, its variables, and the three errors about it, on the made-up machine.

use std::sync::Arc;

use super::super::testing::{changed, meta};
use super::super::*;
use crate::introspect::made_up_at::{AUX_ASSOC, OPS_PRIV};
use crate::introspect::made_up_sched::{Loaded, Machine, at};

/// The number that a variable holds, or the error.
fn number(field: SnapshotResult<Field>) -> Result<u64, String> {
    field.and_then(|f| f.as_u64()).map_err(|e| format!("{}: {e}", e.kind()))
}

/// The root runs the first copy of an object; another one is loaded.
fn attached(machine: &mut Machine) -> [Loaded; 2] {
    let loaded = [machine.load("made", 1), machine.load("made", 2)];
    machine.attach(&loaded[0], machine.sched);
    loaded
}

const STALL: [&str; 2] = ["runnable task stall", "spin[50] failed to run for 3.1s"];

fn names(maps: &[Map]) -> Vec<String> {
    maps.iter().map(|map| format!("{}#{}", map.name(), map.attrs().id)).collect()
}

#[test]
fn of_two_copies_the_live_one_is_read() {
    let snap = changed(|m| {
        attached(m);
    });
    assert_eq!(number(snap.global("nr")), Ok(1));
    assert_eq!(number(snap.live_global("nr")), Ok(1));
    assert_eq!(number(snap.live_global("tuned")), Ok(10), "no program uses it");
    let all: Vec<u64> = snap.globals("nr").unwrap().iter().map(|f| f.as_u64().unwrap()).collect();
    assert_eq!(all, [1, 2]);
    let both = snap.live_globals(&["tuned", "nr"]).unwrap();
    let both: Vec<(&str, u64)> = both.iter().map(|(n, f)| (&**n, f.as_u64().unwrap())).collect();
    assert_eq!(both, [("tuned", 10), ("nr", 1)]);
    let root = snap.active().unwrap();
    assert_eq!(
        (root.path(), root.id(), root.is_root(), root.is_live()),
        (Ok("/"), Ok(1), Ok(true), Ok(true))
    );
    assert_eq!((root.exit(), root.parent().unwrap().is_none()), (Ok(None), true));
    let maps = root.maps().unwrap();
    assert_eq!(names(&maps), ["made.bss#3", "made.rodata#4", "made_ops#2"]);
    let progs: Vec<u32> = root.progs().unwrap().iter().map(|p| p.state().id).collect();
    assert_eq!(progs, [1]);
    assert_eq!(snap.live_maps(), [true, true, true, false, false, false]);
    let dump = snap.dump();
    assert!(dump.contains("scheduler /"), "{dump}");
    assert!(dump.contains("made, live; 2 maps, 1 programs"), "{dump}");
    let e = number(snap.live_global("tund"));
    assert_eq!(
        e,
        Err("VarNotFound: no global variable is called \"tund\"; did you mean global(\"tuned\")? \
             (there are tuned, nr)"
            .to_owned())
    );
}

#[test]
fn the_replacement_by_the_same_binary_is_the_live_one() {
    // Somebody still holds the maps of the first copy open.
    let snap = changed(|m| {
        let [old, new] = attached(m);
        m.guest.write_u64(old.ops.offset(OPS_PRIV), 0);
        m.attach(&new, m.sched);
    });
    assert_eq!(number(snap.global("nr")), Ok(2));
    assert_eq!(number(snap.live_global("nr")), Ok(2));
}

#[test]
fn nothing_is_live_while_it_comes_or_goes() {
    let none = |change: fn(&mut Machine), why: &str| {
        let snap = changed(|m| {
            attached(m);
            change(m);
        });
        let want = format!("NoActiveScheduler: no scheduler was running: {why}");
        assert_eq!(number(snap.live_global("nr")), Err(want.clone()));
        let e = snap.active().map(drop).unwrap_err();
        assert_eq!(format!("{}: {e}", e.kind()), want);
        // The text points at both ways out.
        let e = snap.global("nr").map(drop).unwrap_err();
        assert_eq!(
            e,
            SnapshotError::AmbiguousVar {
                requested: "nr".into(),
                found_in: vec!["made.bss#3".into(), "made.bss#6".into()]
            }
        );
        let text = e.to_string();
        assert!(
            text.contains("live_global(\"nr\")") && text.contains("map(\"made.bss#3\")"),
            "{text}"
        );
        assert_eq!(snap.globals("nr").map(|all| all.len()), Ok(2));
        assert!(!snap.live_maps().contains(&true));
        snap
    };
    let coming = "\"made\" was still being enabled, and had not scheduled anything yet";
    none(|m| m.set_state(0), coming);
    let snap = none(|m| m.set_state(2), "\"made\" was not in charge (sched_ext was disabling)");
    assert_eq!(snap.scheds().unwrap().len(), 1, "it is still there");
    none(|m| m.exit(m.sched, 64, ["", ""]), "\"made\" was leaving (unreg)");
    let stalled = "\"made\" was leaving (runnable task stall: spin[50] failed to run for 3.1s)";
    none(|m| m.exit(m.sched, 1026, STALL), stalled);
    let unlinked = "\"made\" was coming or going, and not linked";
    none(
        |m| {
            let all = crate::mem::Kva(m.guest.address("scx_sched_all"));
            m.link(all, &[]);
        },
        unlinked,
    );
    let gone = "none was attached when the machine was frozen (sched_ext was disabled); one had \
                been enabled before, and was gone; loaded, but not attached: made_ops, made_ops";
    none(Machine::detach, gone);
    let first = "none was attached when the machine was frozen (sched_ext was disabled); none has \
                 been enabled since the machine booted; loaded, but not attached: made_ops, made_ops";
    none(
        |m| {
            m.detach();
            let seq = crate::mem::Kva(m.guest.address("scx_enable_seq"));
            m.guest.write_u64(seq, 0);
        },
        first,
    );
    // Once it has left, what it was is in its report only.
    let snap = changed(|m| {
        attached(m);
        m.exit(m.sched, 1026, STALL);
        m.guest.write_u32(m.sched.offset(at::EXIT_KIND), 1);
    });
    let exit = snap.sched().unwrap().exit().unwrap().unwrap();
    assert_eq!((exit.kind.as_str(), exit.reason.as_str()), ("error_stall", STALL[0]));
    assert_eq!((exit.message.as_str(), exit.code), (STALL[1], 0));
}

#[test]
fn sub_schedulers_are_a_tree_with_variables_of_their_own() {
    let snap = changed(|m| {
        attached(m);
        let sub = m.sub("below", "/lab/hot", 300);
        let loaded = m.load("below", 7);
        m.attach(&loaded, sub);
    });
    let all = snap.scheds().unwrap();
    let paths: Vec<&str> = all.iter().map(|s| s.path().unwrap()).collect();
    assert_eq!(paths, ["/", "/lab/hot"]);
    let sub = snap.sched_of("/lab/hot/").unwrap();
    assert_eq!((sub.id(), sub.is_root(), sub.is_live()), (Ok(300), Ok(false), Ok(true)));
    assert_eq!(sub.parent().unwrap().unwrap().path(), Ok("/"));
    assert_eq!(all[0].children().unwrap().len(), 1);
    assert_eq!(sub.headline(), "sched_ext enabled: below, the sub-scheduler of /lab/hot");
    assert_eq!(number(sub.global("nr")), Ok(7));
    assert_eq!(number(snap.sched_of("/").unwrap().global("nr")), Ok(1));
    assert_eq!(
        number(snap.live_global("nr")),
        Err(
            "AmbiguousVar: the live schedulers of more than one cgroup have a variable \"nr\": /, \
             /lab/hot; choose one, as in sched(\"/\").global(\"nr\")"
                .to_owned()
        )
    );
    let e = snap.global("nr").map(drop).unwrap_err();
    assert_eq!(e.kind(), "AmbiguousVar", "several are live: {e}");
    let e = snap.sched_of("/lab/hat").map(drop).unwrap_err();
    assert_eq!(
        e.to_string(),
        "sched(\"/lab/hat\") found nothing in \"scheds\", which has 2 entries; keys there: \
         /lab/hot, /"
    );
    // One that its parent has not accepted yet does not count.
    let snap = changed(|m| {
        attached(m);
        let sub = m.sub("below", "/lab/hot", 300);
        let loaded = m.load("below", 7);
        m.attach(&loaded, sub);
        m.guest.write(sub.offset(at::SUB_ATTACHED), &[0]);
    });
    assert_eq!(number(snap.live_global("nr")), Ok(1));
    assert_eq!(snap.sched_of("/lab/hot").unwrap().is_live(), Ok(false));
}

#[test]
fn what_is_tied_to_the_scheduler_is_its_own() {
    let snap = changed(|m| {
        let [live, other] = attached(m);
        // A program of another object that is associated, and one whose association is poison.
        m.guest.write_u64(other.aux.offset(AUX_ASSOC), live.ops.0);
        let stray = m.load("stray", 5);
        m.guest.write_u64(stray.aux.offset(AUX_ASSOC), 0xeb9f_dead_0000_0100);
    });
    let root = snap.active().unwrap();
    let maps = root.maps().unwrap();
    assert_eq!(names(&maps), ["made.bss#3", "made.rodata#4", "made.bss#6", "made_ops#2"]);
    // Both copies are the live scheduler's own: then only a map tells them apart.
    assert_eq!(
        snap.live_global("nr").map(drop).unwrap_err(),
        SnapshotError::AmbiguousVar {
            requested: "nr".into(),
            found_in: vec!["made.bss#3".into(), "made.bss#6".into()]
        }
    );
}

/// The same captured maps with other addresses.
fn recorded_at(snap: &Arc<Snapshot>, kva: impl Fn(&Map) -> u64) -> Arc<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cryo");
    snap.save(&file).unwrap();
    let again = Snapshot::open(&file).unwrap();
    let maps = again.maps().unwrap();
    let captured = maps.iter().map(|map| {
        let attrs = MapAttrs { kva: kva(map), ..map.attrs().clone() };
        CapturedMap::new(attrs, Box::new(move || Box::new(testing::Rows::default())))
    });
    let state = again.kernel_state().unwrap();
    let held = state.clone_without_bytes().with_bytes(
        state.btf.clone().unwrap(),
        None,
        state.memory.bytes().to_vec(),
    );
    Snapshot::with_kernel(meta("end"), captured.collect(), Vec::new(), held)
}

#[test]
fn maps_that_are_not_the_live_ones_are_not_searched() {
    let live = changed(|m| {
        attached(m);
    });
    let excluded = |kva: fn(&Map) -> u64| match recorded_at(&live, kva)
        .live_global("nr")
        .map(drop)
        .unwrap_err()
    {
        e @ SnapshotError::ActiveFilterExcludedMaps { .. } => e,
        e => panic!("{e}"),
    };
    let stale = excluded(|map| map.attrs().kva + 0x1_0000);
    let SnapshotError::ActiveFilterExcludedMaps {
        requested,
        active_obj,
        excluded_maps,
        whitelist_kvas,
    } = &stale
    else {
        unreachable!()
    };
    assert_eq!((requested.as_str(), active_obj.as_str()), ("nr", "made"));
    assert_eq!(excluded_maps.len(), 2);
    assert_eq!(whitelist_kvas.len(), 2);
    let text = stale.to_string();
    assert!(
        text.contains(
            "their addresses are stale: they were captured before the last attach or replace"
        ),
        "{text}"
    );
    let never = excluded(|_| 0).to_string();
    assert!(never.contains("their addresses were never recorded"), "{never}");
    let both =
        excluded(|map| if map.attrs().id == 3 { 0 } else { map.attrs().kva + 1 }).to_string();
    assert!(both.contains("some addresses are stale"), "{both}");
    // Never when at least one passes, whatever it holds.
    let one = recorded_at(&live, |map| if map.attrs().id == 4 { map.attrs().kva } else { 0 });
    let e = one.live_global("nr").map(drop).unwrap_err();
    assert_eq!(e.kind(), "VarNotFound", "{e}");
    // A damaged list of maps does it, too: those of the live scheduler are missing in it.
    let snap = changed(|m| {
        let [first, _] = attached(m);
        m.guest.forget(first.bss);
        m.guest.forget(first.rodata);
    });
    let e = snap.live_global("nr").map(drop).unwrap_err();
    assert_eq!(e.kind(), "ActiveFilterExcludedMaps", "{e}");
    assert_eq!(e.fields()["excluded_maps"][0]["name"], "made.bss");
}

#[test]
fn a_file_answers_as_the_snapshot_did() {
    let snap = changed(|m| {
        attached(m);
        let sub = m.sub("below", "/lab/hot", 300);
        let loaded = m.load("below", 7);
        m.attach(&loaded, sub);
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cryo");
    snap.save(&file).unwrap();
    let again = Snapshot::open(&file).unwrap();
    let outline = |snap: &Arc<Snapshot>| {
        let all = snap.scheds().unwrap();
        let one = |s: &Sched| {
            format!("{} {:?} {}", s.summary(), s.path(), names(&s.maps().unwrap()).join(" "))
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(outline(&again), outline(&snap));
    assert_eq!(number(again.sched_of("/lab/hot").unwrap().global("nr")), Ok(7));
    // What an older file lacks is told, not guessed.
    let mut state = snap.kernel_state().unwrap().clone_without_bytes();
    state.scx.as_mut().unwrap().scheds.iter_mut().for_each(|s| s.owns = None);
    let btf = snap.kernel_state().unwrap().btf.clone().unwrap();
    let bytes = snap.kernel_state().unwrap().memory.bytes().to_vec();
    let old = Snapshot::with_kernel(
        meta("old"),
        Vec::new(),
        Vec::new(),
        state.with_bytes(btf, None, bytes),
    );
    assert_eq!(old.sched().unwrap().ops().unwrap().as_str().unwrap(), "made");
    assert_eq!(
        old.active().map(drop).unwrap_err().to_string(),
        "what belongs to the scheduler could not be read: the file was saved by an older \
         cryoscope, which did not record it"
    );
}

#[test]
fn parents_that_run_in_a_circle_end() {
    let snap = changed(|m| {
        attached(m);
        let sub = m.sub("below", "/lab/hot", 300);
        let root = m.sched;
        m.guest.write_u32(root.offset(at::LEVEL), 1);
        // The root's parent would be its own child.
        m.guest.write_u64(root.offset(at::SCHED), sub.0);
    });
    let all = snap.scheds().unwrap();
    assert_eq!(all.len(), 2);
}
