//! The made-up machine's module.

use std::sync::Arc;

use crate::introspect::made_up_sched::Machine;
use crate::introspect::made_up_sched::modules::at;
use crate::snapshot::testing::{changed, meta};
use crate::snapshot::{CaptureRequest, Capturer, Snapshot, SnapshotResult};

fn text<T: std::fmt::Debug>(result: SnapshotResult<T>) -> String {
    result.unwrap_err().to_string()
}

/// A snapshot with the module's variable, where its code lies, and its variables.
fn captured() -> (Arc<Snapshot>, u64, u64) {
    let machine = Machine::new(true);
    let (code, data) = (machine.module.text.0, machine.module.data.0);
    let kernel = vec!["made_var".to_owned()];
    let request = CaptureRequest { kernel, ..CaptureRequest::default() };
    let capturer = Capturer::open(machine.guest.mem()).unwrap();
    assert_eq!(capturer.prepare(&request).unwrap(), []);
    (capturer.capture(&request).unwrap().finish(meta("end")), code, data)
}

#[test]
fn modules_and_their_symbols_are_told_and_kept_in_files() {
    let (snap, code, data) = captured();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    snap.save(&path).unwrap();
    for snap in [snap, Snapshot::open(&path).unwrap()] {
        let made = snap.module("made").unwrap();
        assert_eq!(made.headline(), "module made: live, 96 bytes, 2 users");
        assert_eq!((made.address(), made.taints().as_deref()), (code, Ok("O")));
        let names: Vec<String> = made.symbols().unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["made_run", ".LC0", "made_next", "made_var"]);
        let symbol = |at| snap.symbol(at).unwrap();
        assert_eq!(symbol(code).as_deref(), Some("made_run [made]"));
        assert_eq!(symbol(code + 9).as_deref(), Some("made_run+0x9 [made]"), "labels are none");
        assert_eq!(symbol(code + 63).as_deref(), Some("made_next+0x2f [made]"));
        assert_eq!(symbol(data + 8).as_deref(), Some("made_var [made]"));
        assert_eq!((symbol(code + 64), symbol(data)), (None, None));
        assert_eq!(snap.kernel("made_var", Some("u64")).unwrap().as_u64(), Ok(4711));
        assert_eq!(snap.kernel("made_var", None).unwrap().raw().unwrap().len(), 24);
        assert!(text(snap.kernel("made_run", None)).contains("it was not copied"));
        assert!(text(snap.module("mad")).contains("keys there: made"));
        let json = snap.kernel_as_json();
        assert_eq!(
            (&json["modules"][0]["name"], &json["modules"][0]["refcount"]),
            (&"made".into(), &2.into())
        );
    }
}

#[test]
fn modules_that_are_damaged_say_so() {
    let snap = changed(|m| {
        let next = m.module.at.offset(at::LIST);
        m.guest.write_u64(next, next.0);
    });
    assert!(text(snap.modules()).contains("runs in a circle"));
    let snap = changed(|m| {
        let count = m.module.table.offset(at::NUM);
        m.guest.write_u32(count, u32::MAX);
    });
    let made = snap.module("made").unwrap();
    let why = "module made could not be read: its symbols: they claim to be 4294967295";
    assert_eq!(text(made.symbols()), why);
    let snap = changed(|m| {
        let table = m.module.table;
        m.guest.write_u64(table, 0x1000);
    });
    assert!(text(snap.module("made").unwrap().symbols()).contains("its symbols: cannot"));
    let old = changed(|_| {});
    let gone = changed(|m| {
        let head = crate::mem::Kva(m.guest.address("modules"));
        m.link(head, &[]);
    });
    let diff = old.diff(&gone, false).unwrap().to_string();
    assert_eq!(diff, "- modules[made]: module made: live, 96 bytes, 2 users\n");
}
