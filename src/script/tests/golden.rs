//! Scripts with what they come to, in files: `CRYOSCOPE_BLESS=1 cargo test script::` writes them
//! anew, and the difference is for reading.
//!
//! A file is a row of cases. A case is a script, a line `----`, and what it comes to, up to a
//! line `====`.

use std::fs;
use std::path::PathBuf;

fn blesses() -> bool {
    std::env::var_os("CRYOSCOPE_BLESS").is_some()
}

/// Compares a page of the book that the program makes with the one that is kept; `tests` names those
/// that write it anew.
pub(crate) fn page(at: &str, made: &str, tests: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(at);
    if blesses() {
        fs::write(&path, made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
    assert!(
        made == kept,
        "{at} is not what the program makes (first: {differs:?}); CRYOSCOPE_BLESS=1 cargo test --lib \
         {tests} writes it anew"
    );
}

/// The lines of a block of output on a page of the book, the first of which is block 0.
pub(crate) fn shown(page: &str, block: usize) -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(&path).unwrap();
    let blocks = text.split("```text\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| block.lines().map(str::to_owned).collect()).nth(block).unwrap()
}

/// Runs every case of a file and compares.
pub(super) fn check(name: &str, run: impl Fn(&str) -> String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/script/tests").join(name);
    let text = fs::read_to_string(&path).unwrap();
    let mut wrong = Vec::new();
    let mut blessed = String::new();
    let cases: Vec<&str> = text.split("\n====\n").filter(|c| !c.trim().is_empty()).collect();
    assert!(cases.len() > 5, "{name} has hardly any cases");
    for case in cases {
        let (script, want) = case.split_once("\n----\n").unwrap_or((case, ""));
        let script = script.trim_matches('\n');
        let got = run(script);
        let got = got.trim_end();
        if got != want.trim_end() {
            wrong.push(format!("{script}\n-- expected\n{want}\n-- found\n{got}\n"));
        }
        blessed.push_str(&format!("{script}\n----\n{got}\n====\n"));
    }
    if blesses() {
        fs::write(&path, blessed).unwrap();
    } else {
        assert!(wrong.is_empty(), "{} of {name}:\n{}", wrong.len(), wrong.join("\n"));
    }
}
