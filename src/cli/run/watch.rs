//! `--watch`: runs again when a script, a module or a scheduler's source changes.
//!
//! Files are looked at a few times a second. That needs nothing of the host, sees editors that save
//! by renaming, and works on every file system, those of containers and networks too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files::{self, Script};
use crate::scenario::ScenarioDecl;

/// How often files are looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// Files that are watched, and the largest that is searched for the names of others.
const MOST: usize = 4096;
const LARGEST: u64 = 4 << 20;

/// What a file is like: when it was changed and how long it is; `None` of one that is not there.
type Likeness = Option<(SystemTime, u64)>;

/// Files and what they are like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched(BTreeMap<PathBuf, Likeness>);

impl Watched {
    /// All that scripts and what they declare consist of, as far as that can be told from their
    /// text. Paths that the user named are searched anew, so that new scripts are seen.
    pub(super) fn now(paths: &[PathBuf], decls: &[ScenarioDecl]) -> Self {
        let scripts = files::find(paths).unwrap_or_default().into_iter().map(|s: Script| s.path);
        let mut wanted: Vec<PathBuf> = paths.iter().filter(|p| !p.is_dir()).cloned().collect();
        wanted.extend(scripts);
        let mut includes = BTreeSet::new();
        for decl in decls.iter().filter(|decl| !decl.options.scheduler.is_none()) {
            wanted.push(decl.base_dir().join(&decl.options.scheduler.src));
            includes.extend(decl.options.scheduler.include.iter().map(|d| decl.base_dir().join(d)));
            wanted.extend(decl.options.include_files.iter().map(|(f, _)| decl.base_dir().join(f)));
        }
        let mut all = BTreeMap::new();
        while let Some(path) = wanted.pop() {
            if all.len() >= MOST || all.contains_key(&path) {
                continue;
            }
            wanted.extend(named_in(&path, &includes));
            all.insert(path.clone(), likeness(&path));
        }
        Watched(all)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().filter(|likeness| likeness.is_some()).count()
    }

    /// The first that is different now.
    fn changed(&self, now: &Watched) -> Option<PathBuf> {
        let all: BTreeSet<&PathBuf> = self.0.keys().chain(now.0.keys()).collect();
        let like = |of: &Watched, path: &PathBuf| of.0.get(path).copied().flatten();
        all.into_iter().find(|path| like(self, path) != like(now, path)).cloned()
    }

    /// Waits until something changes and then nothing does for a moment; what it was.
    pub(super) fn wait(&self, look: impl Fn() -> Watched) -> PathBuf {
        loop {
            std::thread::sleep(GLANCE);
            let mut now = look();
            let Some(changed) = self.changed(&now) else { continue };
            // An editor may write several files, or one in parts.
            loop {
                std::thread::sleep(GLANCE);
                let next = look();
                if now.changed(&next).is_none() {
                    return changed;
                }
                now = next;
            }
        }
    }
}

fn likeness(path: &Path) -> Likeness {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// Files that a script imports or a source includes, those that there are.
fn named_in(path: &Path, includes: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let word = match kind {
        "rhai" => "import",
        "c" | "h" => "#include",
        _ => return Vec::new(),
    };
    let fits = fs::metadata(path).is_ok_and(|meta| meta.len() <= LARGEST);
    let Some(text) = fits.then(|| fs::read(path).ok()).flatten() else { return Vec::new() };
    let text = String::from_utf8_lossy(&text);
    let beside = path.parent().unwrap_or(Path::new(""));
    let mut out = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix(word) else { continue };
        let Some(name) = rest.split('"').nth(1).filter(|name| !name.is_empty()) else { continue };
        let name = if kind == "rhai" { format!("{name}.rhai") } else { name.to_owned() };
        let places = std::iter::once(beside).chain(includes.iter().map(PathBuf::as_path));
        out.extend(places.map(|dir| dir.join(&name)).find(|file| file.is_file()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decl(file: &Path, src: &str) -> ScenarioDecl {
        let mut decl = ScenarioDecl {
            name: "x".into(),
            file: file.to_owned(),
            index: 0,
            at: None,
            plain: false,
            boots: true,
            options: Default::default(),
        };
        decl.options.scheduler.src = src.into();
        decl.options.scheduler.include = vec!["inc".into()];
        decl
    }

    #[test]
    fn everything_that_a_run_consists_of_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("inc")).unwrap();
        for (name, text) in [
            ("a.rhai", "import \"std/checks\" as c;\nimport \"lib\" as lib;\n"),
            ("lib.rhai", "import \"more\" as more;\n"),
            ("more.rhai", "import \"a\" as round;\n"),
            ("other.rhai", ""),
            ("s.bpf.c", "#include \"vmlinux.h\"\n  #include \"near.h\"\n#include <far.h>\n"),
            ("near.h", "#include \"deep.h\"\n"),
            ("inc/deep.h", ""),
        ] {
            fs::write(at(name), text).unwrap();
        }
        let decls = [decl(&at("a.rhai"), "s.bpf.c")];
        let watched = || Watched::now(&[at("a.rhai")], &decls);
        let first = watched();
        let names: Vec<String> = first
            .0
            .keys()
            .map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["a.rhai", "inc/deep.h", "lib.rhai", "more.rhai", "near.h", "s.bpf.c"]);
        assert_eq!((first.len(), first.changed(&watched())), (6, None));
        // Saved by renaming, as editors do.
        fs::write(at("new"), "// longer than nothing\n").unwrap();
        fs::rename(at("new"), at("inc/deep.h")).unwrap();
        assert_eq!(first.changed(&watched()), Some(at("inc/deep.h")));
        let second = watched();
        fs::remove_file(at("s.bpf.c")).unwrap();
        assert!(second.changed(&watched()).is_some());

        // A directory's new scripts belong to it.
        let all = || Watched::now(&[dir.path().to_owned()], &[]);
        let before = all();
        fs::write(at("fresh.rhai"), "").unwrap();
        assert_eq!(before.changed(&all()), Some(at("fresh.rhai")));
    }

    #[test]
    fn a_change_is_waited_for_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("a.rhai");
        fs::write(&script, "").unwrap();
        let look = || Watched::now(std::slice::from_ref(&script), &[]);
        let first = look();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(GLANCE);
                fs::write(&script, "let x = 1;").unwrap();
            });
            assert_eq!(first.wait(look), script);
        });
        assert_eq!(fs::read_to_string(&script).unwrap(), "let x = 1;");
    }
}
