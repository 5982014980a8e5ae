//! What was looked at, and a request for no more than that.

use crate::snapshot::testing::{made_up, sample};
use crate::snapshot::{CaptureRequest, Touched};

#[test]
fn only_what_is_looked_into_is_touched() {
    let snap = sample();
    assert_eq!(snap.touched(), Touched::default());
    // Names, kinds and types are known without looking.
    let names: Vec<String> = snap.maps().unwrap().iter().map(|m| m.name().to_owned()).collect();
    assert!(names.len() > 3 && snap.map("task_ctx").unwrap().attrs().key_size == 4);
    assert_eq!(snap.touched(), Touched::default());
    snap.map("task_ctx").unwrap().len().unwrap();
    let touched = snap.touched();
    let id = snap.map("task_ctx").unwrap().attrs().id;
    assert_eq!(touched.maps.iter().collect::<Vec<_>>(), [&format!("task_ctx#{id}")]);
    assert!(!touched.sched);
}

#[test]
fn a_request_shrinks_to_what_was_touched_and_grows_with_it() {
    let of = |maps: &[&str], sched| Touched {
        maps: maps.iter().map(|map| (*map).to_owned()).collect(),
        sched,
    };
    let all = CaptureRequest { kernel: vec!["jiffies_64".into()], ..CaptureRequest::default() };
    let mut known = of(&["a#1"], false);
    let narrow = all.only(&known);
    assert_eq!((narrow.maps, narrow.sched), (Some(vec!["a#1".to_owned()]), false));
    assert_eq!(narrow.kernel, all.kernel, "what is asked for by name stays");
    assert!(!known.extend(of(&["a#1"], false)), "nothing new");
    assert!(known.extend(of(&["b#2"], false)) && known.extend(of(&[], true)));
    assert_eq!(all.only(&known).maps, Some(vec!["a#1".to_owned(), "b#2".to_owned()]));
    assert!(all.only(&known).sched);
    let without = CaptureRequest { sched: false, ..all };
    assert!(!without.only(&known).sched, "what nobody wants is not copied either");
}

#[test]
fn tasks_and_cpus_belong_to_the_schedulers_state() {
    let snap = made_up(true);
    drop(snap.symbols());
    assert!(!snap.touched().sched);
    snap.tasks().unwrap();
    assert!(snap.touched().sched);
}
