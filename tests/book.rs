//! The book: every page is in its table of contents, every link leads somewhere, and what pages show
//! is run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The pages in `docs/`, by name.
fn pages() -> BTreeMap<String, String> {
    let files = fs::read_dir(project("docs")).expect("docs/").map(|e| e.expect("an entry").path());
    let pages = files.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    pages.map(|path| (name(&path), read(&path))).filter(|(name, _)| name != "SUMMARY.md").collect()
}

/// A page without its blocks and its spans of code.
fn prose(page: &str) -> String {
    let blocks = page.split("```").step_by(2).collect::<Vec<_>>().concat();
    blocks.split('`').step_by(2).collect()
}

/// Where its links lead.
fn links(page: &str) -> Vec<String> {
    let mut out = Vec::new();
    // Code in the text of a link does not matter here.
    let text: String = page.split("```").step_by(2).collect();
    for part in text.split("](").skip(1) {
        out.push(part.split(')').next().expect("an end").to_owned());
    }
    out
}

/// What a heading is called in addresses, as mdBook and GitHub make it.
fn anchors(page: &str) -> BTreeSet<String> {
    let text: String = page.split("```").step_by(2).collect();
    let headings = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let slug = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let summary = links(&read(&project("docs/SUMMARY.md")));
    let listed: BTreeSet<String> = summary.iter().cloned().collect();
    assert_eq!(listed.len(), summary.len(), "a page is listed twice: {summary:?}");
    let there: BTreeSet<String> = pages().into_keys().collect();
    let missing: Vec<&String> = there.difference(&listed).collect();
    let gone: Vec<&String> = listed.difference(&there).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/SUMMARY.md lacks {missing:?}, and lists {gone:?}, which are not there"
    );
}

#[test]
fn every_link_leads_somewhere() {
    let mut all: Vec<(PathBuf, String)> =
        pages().into_iter().map(|(name, page)| (project("docs").join(name), page)).collect();
    all.push((project("docs/SUMMARY.md"), read(&project("docs/SUMMARY.md"))));
    all.push((project("README.md"), read(&project("README.md"))));
    let mut count = 0;
    for (path, page) in &all {
        for link in links(page) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("a directory").join(file),
            };
            assert!(target.exists(), "{}: {link} is not there", path.display());
            let known = |anchor: &str| anchors(&read(&target)).contains(anchor);
            assert!(anchor.is_empty() || known(anchor), "{}: no heading {link}", path.display());
        }
    }
    assert!(count >= 40, "{count} links");
}

/// Tests that run the blocks of pages, and name them.
const RUN_BY: [&str; 4] = [
    "src/script/tests/shipped.rs",
    "src/script/data/tests/special.rs",
    "tests/traps.rs",
    "tests/tutorial.rs",
];

/// Pages that are made by a program, which a test compares.
const MADE: [&str; 2] = ["api.md", "errors.md"];

#[test]
fn every_script_of_the_book_is_run() {
    let tests: String = RUN_BY.iter().map(|path| read(&project(path))).collect();
    let mut scripts = 0;
    for (name, page) in pages() {
        let shown = page.matches("```rhai").count();
        if shown == 0 || MADE.contains(&name.as_str()) {
            continue;
        }
        scripts += shown;
        let run = tests.contains(&format!("\"{name}\"")) || tests.contains(&format!("docs/{name}"));
        assert!(run, "no test runs the scripts of docs/{name}: see {RUN_BY:?}");
    }
    assert!(scripts >= 25, "{scripts} scripts");
}

/// Tests that compare blocks of output with what is printed. Of the tutorial all are.
const PRINTED_BY: [(&str, &[&str]); 6] = [
    ("src/scenario/report/grid.rs", &["shown(\"ci.md\", 0)"]),
    ("src/scenario/monitor/mod.rs", &["shown(\"monitor.md\", 0)"]),
    ("tests/repl.rs", &["docs/repl.md"]),
    ("src/scenario/samples.rs", &["shown(\"sampling.md\", 0)"]),
    ("src/script/tests/series.rs", &["shown(\"series.md\", 0)", "shown(\"series.md\", 1)"]),
    ("tests/tutorial.rs", &["docs/tutorial.md"]),
];

/// Pages whose block is a drawing, which no program prints.
const DRAWN: [&str; 1] = ["how-it-works.md"];

#[test]
fn every_output_of_the_book_is_printed() {
    for (path, calls) in PRINTED_BY {
        let test = read(&project(path));
        for call in calls {
            assert!(test.contains(call), "{path} does not compare {call}");
        }
    }
    for (name, page) in pages() {
        let blocks = match name.as_str() {
            // All of them are compared in one go.
            "tutorial.md" => 1,
            name if DRAWN.contains(&name) || MADE.contains(&name) => 0,
            _ => page.matches("```text").count(),
        };
        let calls = PRINTED_BY.iter().flat_map(|(_, calls)| *calls);
        let compared = calls.filter(|call| call.contains(name.as_str())).count();
        assert_eq!(compared, blocks, "blocks of output in docs/{name}: see PRINTED_BY");
    }
}

#[test]
fn pages_are_plain() {
    for (name, page) in pages() {
        assert!(page.starts_with("# "), "docs/{name} begins with its title");
        assert_eq!(page.matches("```").count() % 2, 0, "docs/{name}: a block has no end");
        // The made ones have sentences of the program, which are as long as they are; so are rows of
        // tables and what is one line by its nature.
        if !MADE.contains(&name.as_str()) {
            let free = |line: &&str| !line.starts_with(['|', '{']);
            let long = page.lines().filter(free).find(|line| line.chars().count() > 200);
            assert_eq!(long, None, "docs/{name}: a line of more than 200 characters");
        }
        // What looks like HTML would vanish from the page.
        let tag = prose(&page).split('<').skip(1).find_map(|rest| {
            rest.chars().next().filter(char::is_ascii_alphabetic).map(|_| rest.to_owned())
        });
        assert_eq!(tag, None, "docs/{name}: write it as code");
    }
}

#[test]
fn the_workflow_is_yaml_that_runs_what_there_is() {
    let ci = read(&project("docs/ci.md"));
    let workflow = ci.split("```yaml\n").nth(1).expect("a workflow");
    let workflow = workflow.split("```").next().expect("its end");
    for (number, line) in workflow.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        assert!(indent % 2 == 0 && !line.contains('\t'), "line {number}: {line}");
    }
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_cryoscope"))
        .args(["run", "--help"])
        .output()
        .expect("it runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let options = workflow.split_whitespace().filter(|word| word.starts_with("--"));
    let options: Vec<&str> = options.filter(|word| *word != "--release").collect();
    assert!(options.len() >= 4, "{options:?}");
    for option in options {
        assert!(help.contains(option), "{option} is no option of run");
    }
    let makefile = read(&project("Makefile"));
    for target in workflow.split("make ").skip(1) {
        let target = target.split([' ', '\n']).next().expect("a target");
        assert!(makefile.contains(&format!("\n{target}:")), "make {target} is not there");
    }
}
