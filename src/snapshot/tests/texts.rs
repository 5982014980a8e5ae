//! Keys that are text, values of different lengths, and what is said beside them.

use std::fs;
use std::sync::Arc;

use super::store::{stored, with_header};
use crate::snapshot::testing::texts;
use crate::snapshot::{Detail, KeyArg, Map, Snapshot};

/// A change of what a file says of a map.
type Lie<'a> = &'a dyn Fn(&mut serde_json::Value);

fn map(snapshot: &Arc<Snapshot>) -> Map {
    snapshot.map("texts").unwrap()
}

fn key(text: &str) -> KeyArg {
    KeyArg::Str(text.into())
}

fn check(snapshot: &Arc<Snapshot>) {
    let map = map(snapshot);
    let keys: Vec<String> = map.keys().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
    assert_eq!(keys, ["/", "/a/long/one", "/b"]);
    let bytes = |text: &str| map.get(&key(text)).unwrap().value().unwrap().raw().unwrap();
    assert_eq!(
        (bytes("/b"), bytes("/a/long/one"), bytes("/")),
        (vec![1, 2, 3], vec![], vec![4; 9])
    );
    assert_eq!(map.contains(&key("/a/long")), Ok(false));
    assert_eq!(map.contains(&KeyArg::Bytes(b"/b".to_vec())), Ok(true));
    assert_eq!(
        map.get(&key("/c")).unwrap_err().to_string(),
        "get(\"/c\") found nothing in \"texts\", which has 3 entries; keys there: \"/\", \
         \"/a/long/one\", \"/b\""
    );
    assert_eq!(
        map.get(&KeyArg::Number(7)).unwrap_err().to_string(),
        "\"key\": expected text, found 7 (a number)"
    );
    assert_eq!(map.get(&key("/a/long/one")).unwrap().torn(), ["it is being freed"]);
    let details = [
        ("position".to_owned(), Detail::Number(u64::MAX)),
        ("at".to_owned(), Detail::Text("a place".into())),
    ];
    assert_eq!(map.details(), details);
    let id = [("id".to_owned(), Detail::Text("one".into()))];
    assert_eq!(map.get(&key("/")).unwrap().details(), id);
    assert!(map.get(&key("/b")).unwrap().details().is_empty());
    assert_eq!(
        map.dump(),
        "texts: cgrp_storage, 3 entries, char[] -> 3 bytes\n  \
           position  18446744073709551615\n  \
           at        a place\n  \
           [\"/\"]     0x040404040404040404\n  \
           [\"/a/long/one\"] (torn: it is being freed)  0x\n  \
           [\"/b\"]    0x010203\n"
    );
}

#[test]
fn text_finds_entries_of_any_length_also_from_a_file() {
    check(&texts());
    check(&stored(&texts()));
    check(&stored(&stored(&texts())));
}

#[test]
fn a_file_that_lies_about_lengths_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    texts().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let told = |change: &dyn Fn(&mut serde_json::Value)| {
        fs::write(&path, with_header(&whole, |header| change(&mut header["maps"][0]))).unwrap();
        Snapshot::open(&path).map_or_else(
            |e| e.to_string(),
            |snapshot| map(&snapshot).len().map_or_else(|e| e.to_string(), |len| len.to_string()),
        )
    };
    assert_eq!(told(&|_| {}), "3");
    let follow = "texts has entries that do not follow each other";
    let lies: [(Lie<'_>, &str); 5] = [
        (&|map| map["key_ends"] = map["value_ends"].clone(), follow),
        (&|map| map["rows"] = 2.into(), "texts does not have its 2 entries"),
        (&|map| map["key_ends"] = map["keys"].clone(), "texts does not have its 3 entries"),
        (&|map| map["row_details"] = map["keys"].clone(), "what texts says of its entries"),
        (&|map| map["row_details"]["unpacked"] = (1u64 << 27).into(), "it claims 134217728 bytes"),
    ];
    for (change, want) in lies {
        let text = told(change);
        assert!(text.contains(want), "{text}");
    }
}
