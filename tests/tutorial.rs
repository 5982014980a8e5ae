//! The tutorial, done as it says: its files are saved, its commands run in their order, and what
//! they print is compared with what it shows.

use std::process::Command;

use place::shown::{is_shown, masked};
use place::{Place, alone, project};

mod place;

/// A block of the page: what it is of, its text, and the words before it.
struct Block<'a> {
    of: &'a str,
    text: &'a str,
    before: &'a str,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut out = Vec::new();
    let parts: Vec<&str> = page.split("```").collect();
    for pair in parts.chunks_exact(2) {
        let (of, text) = pair[1].split_once('\n').expect("a block of several lines");
        out.push(Block { of, text, before: pair[0] });
    }
    out
}

/// The last name in backticks before a block.
fn named(before: &str) -> &str {
    let mut names = before.rsplit('`');
    names.next();
    names.next().expect("the words before it name a file")
}

#[test]
fn lines_are_compared_by_their_words() {
    let all = |text: &str| text.lines().map(masked).collect::<Vec<_>>();
    let shown = all("PASS  4.1 s  a\n..\nend: 7");
    assert!(is_shown(&shown, &all(" PASS 12.03 s a\nx\ny\nend: 12")));
    assert!(is_shown(&shown, &all("PASS 1 s a\nend: 12")));
    assert!(!is_shown(&shown, &all("FAIL 1 s a\nend: 12")));
    assert!(!is_shown(&shown, &all("PASS 1 s a\nend: 12\nmore")));
    assert_eq!(masked("Linux 7.2-amd64 on qemu-tcg, 2"), masked("Linux 6-amd64 on kvm, 12"));
    assert_eq!(masked("[1, 2.5, 33]"), "[#]");
}

/// Puts a function into a file, in the place of the one with its first line.
fn change(place: &Place, file: &str, function: &str) {
    let source = place.read(file);
    let head = function.lines().next().expect("a function");
    let from = source.find(head).unwrap_or_else(|| panic!("{file} has no {head}"));
    let end = from + source[from..].find("\n}\n").expect("its end") + 3;
    place.file(file, format!("{}{function}{}", &source[..from], &source[end..]));
}

#[test]
fn whoever_follows_the_tutorial_gets_what_it_shows() {
    let _alone = alone();
    let page = std::fs::read_to_string(project("docs/tutorial.md")).expect("the tutorial");
    let place = Place::new();
    let copied =
        Command::new("cp").arg("-r").args([&project("examples")]).arg(place.path()).status();
    assert!(copied.expect("cp can be run").success());
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_cryoscope"));
    let path = format!(
        "{}:{}",
        program.parent().expect("it is in a directory").display(),
        std::env::var("PATH").expect("a PATH")
    );
    let (mut said, mut compared) = (String::new(), 0);
    for block in blocks(&page) {
        match block.of {
            "rhai" => drop(place.file(named(block.before), block.text)),
            // One of the two is what there is already.
            "c" if place.read("lanes.bpf.c").contains(block.text) => {}
            "c" => change(&place, "lanes.bpf.c", block.text),
            // For the one who follows it; here the program is another one.
            "sh" if block.text.starts_with("export PATH") => {}
            "sh" => {
                let mut command = Command::new("sh");
                command.args(["-c", block.text]).current_dir(place.path()).env("PATH", &path);
                command.env_remove("RUST_BACKTRACE").env_remove("GITHUB_ACTIONS");
                let output = command.output().expect("sh can be run");
                said = String::from_utf8_lossy(&output.stdout).into_owned();
                println!("$ {}{said}{}", block.text, String::from_utf8_lossy(&output.stderr));
            }
            "text" => {
                let lines = |text: &str| text.lines().map(masked).collect::<Vec<_>>();
                let (shown, found) = (lines(block.text), lines(&said));
                assert!(is_shown(&shown, &found), "shown:\n{}\nprinted:\n{said}", block.text);
                compared += 1;
            }
            other => panic!("what is to be done with a block of {other}?"),
        }
    }
    assert_eq!(compared, 4);
}
