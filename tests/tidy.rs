//! The house rules, enforced on the sources themselves: the import law, where `unsafe` and `rhai`
//! may appear, and how long files and functions may grow. Sources are parsed, not searched, so
//! that neither comments nor strings can trip or hide anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines that a file may have without its tests.
const FILE_LINES: usize = 600;
/// Lines that a function may have.
const FUNCTION_LINES: usize = 80;

/// Modules that import nothing else of ours.
const LEAVES: [&str; 5] = ["mem", "wire", "btf", "child", "words"];

/// The files of the model that know introspection.
const SEES_KERNELS: [&str; 7] = [
    "snapshot/capture.rs",
    "snapshot/decoded.rs",
    "snapshot/edit.rs",
    "snapshot/monitor.rs",
    "snapshot/points.rs",
    "snapshot/ram.rs",
    "snapshot/symbols.rs",
];

/// What each module may import: the arrows of the import law in `src/lib.rs`.
fn may_import(file: &str) -> Option<Vec<&'static str>> {
    let below_scenario = [
        "mem",
        "wire",
        "btf",
        "child",
        "kernel",
        "scheduler",
        "vm",
        "introspect",
        "snapshot",
        "series",
        "freeze",
    ];
    let module = file.split(['/', '.']).next().expect("a first component");
    let mut allowed: Vec<&str> = match module {
        leaf if LEAVES.contains(&leaf) => return Some(vec![]),
        "kernel" => vec!["btf", "child"],
        "scheduler" => vec!["btf", "child", "kernel"],
        "vm" => vec!["mem", "wire", "child", "kernel", "scheduler"],
        "introspect" => vec!["mem", "btf"],
        "snapshot" if SEES_KERNELS.contains(&file) => vec!["mem", "btf", "introspect"],
        "snapshot" => vec!["btf"],
        "series" => vec!["snapshot"],
        "freeze" => vec!["mem", "vm", "snapshot"],
        "scenario" => below_scenario.to_vec(),
        "script" => [&below_scenario[..], &["scenario"]].concat(),
        "cli" => [&below_scenario[..], &["scenario", "script"]].concat(),
        "main" => vec!["cli"],
        "guest" => vec!["wire"],
        _ => return None,
    };
    if module != "guest" {
        allowed.push("words");
    }
    Some(allowed)
}

fn may_be_unsafe(file: &str) -> bool {
    ["mem.rs", "child.rs"].contains(&file)
        || ["mem/", "vm/kvm/", "vm/qemu", "guest/"].iter().any(|p| file.starts_with(p))
}

fn may_name_rhai(file: &str) -> bool {
    file.starts_with("script/") || file == "cli/repl.rs"
}

/// Every crate module of ours, as found in `src/`.
fn modules() -> BTreeSet<String> {
    fs::read_dir(root().join("src"))
        .expect("src/ is there")
        .map(|e| e.expect("a directory entry").path())
        .filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned()))
        .filter(|m| m != "lib" && m != "main")
        .collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// What the walk over one file's syntax finds.
struct Finder<'a> {
    ours: &'a BTreeSet<String>,
    in_test: bool,
    imports: Vec<(String, usize)>,
    foreign: Vec<(String, usize)>,
    unsafes: Vec<usize>,
    long: Vec<(String, usize, usize)>,
    test_lines: usize,
}

impl Finder<'_> {
    /// Records `crate::x` and `cryoscope::x`, and the first segment of any other path.
    fn path(&mut self, segments: &[String], line: usize) {
        if self.in_test {
            return;
        }
        let Some(first) = segments.first() else { return };
        if first == "crate" || first == "cryoscope" {
            if let Some(second) = segments.get(1).filter(|s| self.ours.contains(*s)) {
                self.imports.push((second.clone(), line));
            }
        } else {
            self.foreign.push((first.clone(), line));
        }
    }

    fn tree(&mut self, prefix: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(p) => {
                prefix.push(p.ident.to_string());
                self.tree(prefix, &p.tree);
                prefix.pop();
            }
            syn::UseTree::Group(g) => {
                for item in &g.items {
                    self.tree(prefix, item);
                }
            }
            syn::UseTree::Name(n) => self.leaf(prefix, &n.ident),
            syn::UseTree::Rename(r) => self.leaf(prefix, &r.ident),
            syn::UseTree::Glob(g) => self.path(&prefix.clone(), g.span().start().line),
        }
    }

    fn leaf(&mut self, prefix: &[String], ident: &syn::Ident) {
        let mut full = prefix.to_vec();
        full.push(ident.to_string());
        self.path(&full, ident.span().start().line);
    }

    fn measure(&mut self, name: &syn::Ident, whole: proc_macro2::Span) {
        let lines = whole.end().line - whole.start().line + 1;
        if lines > FUNCTION_LINES && !self.in_test {
            self.long.push((name.to_string(), whole.start().line, lines));
        }
    }
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|a| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|p| p.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let outer = self.in_test;
        if is_test(&item.attrs) && !outer {
            let span = item.span();
            self.test_lines += span.end().line - span.start().line + 1;
            self.in_test = true;
        }
        visit::visit_item_mod(self, item);
        self.in_test = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if segments.len() > 1 {
            self.path(&segments, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_unsafe(&mut self, e: &'ast syn::ExprUnsafe) {
        self.unsafes.push(e.span().start().line);
        visit::visit_expr_unsafe(self, e);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.unsafes.push(token.span().start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_signature(&mut self, sig: &'ast syn::Signature) {
        if let syn::Safety::Unsafe(token) = &sig.safety {
            self.unsafes.push(token.span().start().line);
        }
        visit::visit_signature(self, sig);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig.ident, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig.ident, item.span());
        visit::visit_impl_item_fn(self, item);
    }
}

/// Everything wrong with one file, as lines that an editor can jump to.
fn judge(file: &str, text: &str, ours: &BTreeSet<String>) -> Vec<String> {
    let at = |line: usize| format!("src/{file}:{line}");
    let parsed = match syn::parse_file(text) {
        Ok(parsed) => parsed,
        Err(e) => return vec![format!("{}: does not parse: {e}", at(e.span().start().line))],
    };
    let mut found = Finder {
        ours,
        in_test: is_test(&parsed.attrs),
        imports: vec![],
        foreign: vec![],
        unsafes: vec![],
        long: vec![],
        test_lines: 0,
    };
    found.visit_file(&parsed);
    let mut wrong = Vec::new();
    let own = file.split(['/', '.']).next().expect("a first component");
    match may_import(file) {
        None if file == "lib.rs" => {}
        None => wrong.push(format!("src/{file}: tests/tidy.rs knows no import law for it")),
        Some(allowed) => {
            for (module, line) in &found.imports {
                if module != own && !allowed.contains(&module.as_str()) {
                    wrong.push(format!("{}: {own} may not import {module}", at(*line)));
                }
            }
        }
    }
    for (name, line) in &found.foreign {
        if name == "rhai" && !may_name_rhai(file) {
            wrong.push(format!("{}: only script/ and cli/repl.rs may name rhai", at(*line)));
        }
    }
    if !may_be_unsafe(file) {
        let places = found.unsafes.iter();
        wrong.extend(places.map(|l| format!("{}: unsafe is not allowed here", at(*l))));
    }
    for (name, line, lines) in &found.long {
        wrong.push(format!("{}: fn {name} has {lines} lines, at most {FUNCTION_LINES}", at(*line)));
    }
    let lines = text.lines().count().saturating_sub(found.test_lines);
    if lines > FILE_LINES && !found.in_test {
        wrong.push(format!("src/{file}: {lines} lines without tests, at most {FILE_LINES}"));
    }
    wrong
}

#[test]
fn the_sources_keep_the_house_rules() {
    let src = root().join("src");
    let (mut files, ours) = (Vec::new(), modules());
    rust_files(&src, &mut files);
    assert!(files.len() > 10, "found only {} files below {}", files.len(), src.display());
    let tests = test_only_files(&files);
    let wrong: Vec<String> = files
        .iter()
        .filter(|path| !tests.contains(*path))
        .flat_map(|path| {
            let name = path.strip_prefix(&src).expect("below src").to_str().expect("UTF-8");
            judge(name, &fs::read_to_string(path).expect("readable"), &ours)
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Files that a `#[cfg(test)] mod name;` brings in, and those that they bring in.
fn test_only_files(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    loop {
        let known = out.len();
        for path in files {
            out.extend(brought_in(path, out.contains(path)));
        }
        if out.len() == known {
            return out;
        }
    }
}

/// The files of the modules that a file has for tests: all of them in one that is a test itself.
fn brought_in(path: &Path, test: bool) -> Vec<PathBuf> {
    let Ok(parsed) = syn::parse_file(&fs::read_to_string(path).expect("readable")) else {
        return Vec::new();
    };
    let stem = path.file_stem().and_then(|s| s.to_str()).expect("a stem");
    let parent = path.parent().expect("a parent");
    let dir = match stem {
        "mod" | "lib" | "main" => parent.to_owned(),
        _ => parent.join(stem),
    };
    let mods = parsed.items.into_iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && (test || is_test(&item.attrs)) => {
            Some(item.ident.to_string())
        }
        _ => None,
    });
    mods.flat_map(|name| [dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")]).collect()
}

#[test]
fn the_rules_catch_what_they_forbid() {
    let ours = modules();
    let long = format!("fn f() {{\n{}}}\n", "let _ = 1;\n".repeat(80));
    let huge = "const _: () = ();\n".repeat(601);
    let cases: [(&str, &str, Option<&str>); 12] = [
        ("wire.rs", "use crate::mem::Gpa;", Some("src/wire.rs:1: wire may not import mem")),
        ("vm/qemu.rs", "fn f() { crate::introspect::g(); }", Some("vm may not import introspect")),
        ("vm/qemu.rs", "use crate::{mem::Gpa, snapshot};", Some("vm may not import snapshot")),
        ("snapshot/access.rs", "use crate::introspect::K;", Some("may not import introspect")),
        ("snapshot/capture.rs", "use crate::introspect::Kernel;", None),
        ("guest/main.rs", "use cryoscope::kernel::X;", Some("guest may not import kernel")),
        ("vm/mod.rs", "use rhai::Engine;", Some("may name rhai")),
        ("script/mod.rs", "use rhai::Engine; use crate::scenario;", None),
        ("snapshot/mod.rs", "fn f() { unsafe { g() } }", Some("unsafe is not allowed here")),
        ("mem.rs", "#[cfg(test)] mod t { use crate::vm; } fn f() { unsafe { g() } }", None),
        ("mem.rs", &long, Some("fn f has 82 lines, at most 80")),
        ("mem.rs", &huge, Some("601 lines without tests, at most 600")),
    ];
    for (file, text, expected) in cases {
        let wrong = judge(file, text, &ours).join("; ");
        match expected {
            Some(says) => assert!(wrong.contains(says), "{file}: {text:.60}: {wrong:?}"),
            None => assert_eq!(wrong, "", "{file}: {text:.60}"),
        }
    }
}

#[test]
fn the_import_law_is_written_down() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("readable");
    for module in modules().iter().filter(|m| *m != "guest") {
        assert!(lib.contains(&format!("| [`{module}`] |")), "src/lib.rs has no row for {module}");
    }
    for leaf in LEAVES.iter().filter(|l| modules().contains(**l)) {
        assert_eq!(may_import(&format!("{leaf}.rs")), Some(vec![]), "{leaf} is a leaf");
    }
}
