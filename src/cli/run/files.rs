//! Which scripts are meant.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::words::nearest;
use crate::words::plain;

/// How deep directories are searched: deeper ones are a mistake or a loop.
const MAX_DEPTH: usize = 32;

/// A script to collect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script {
    /// As the user named it, or below the directory that the user named.
    pub(super) path: PathBuf,
    /// Whether the user named it, rather than a directory above it.
    pub(super) named: bool,
}

/// The scripts behind `paths`: files as they are, directories searched for `*.rhai` in the order
/// of their names. Nothing comes twice.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<Script>, Failure> {
    let mut scripts: Vec<Script> = Vec::new();
    let mut seen = BTreeMap::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|e| missing(path, &e))?;
        let mut found = Vec::new();
        if metadata.is_dir() {
            search(path, 0, &mut found)?;
        } else {
            found.push(path.clone());
        }
        for path in found {
            let real = fs::canonicalize(&path).map_err(|e| missing(&path, &e))?;
            let at = *seen.entry(real).or_insert(scripts.len());
            if at == scripts.len() {
                scripts.push(Script { path, named: false });
            }
            scripts[at].named |= !metadata.is_dir();
        }
    }
    Ok(scripts)
}

fn search(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if depth > MAX_DEPTH {
        let text = format!("{}: more than {MAX_DEPTH} directories deep", dir.display());
        return Err(Failure::usage(text));
    }
    let unreadable = |e: std::io::Error| {
        Failure::usage(format!("cannot search {}: {}", dir.display(), plain(&e)))
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // The entry's own kind: directories behind symbolic links are not entered, so that there
        // are no loops.
        entries.push((entry.file_name(), entry.file_type().map_err(unreadable)?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in entries {
        let path = dir.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if kind.is_dir() {
            search(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|e| e == "rhai") && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A path that cannot be used, with the nearest name beside it.
fn missing(path: &Path, error: &std::io::Error) -> Failure {
    let mut text = format!("{}: {}", path.display(), plain(error));
    if error.kind() == std::io::ErrorKind::NotFound
        && let Some(name) = path.file_name().and_then(|name| name.to_str())
        && let Ok(entries) = fs::read_dir(parent(path))
    {
        let names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
            text.push_str(&format!("; did you mean {}?", path.with_file_name(near).display()));
        }
    }
    Failure::usage(text)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in ["b.rhai", "a.rhai", "c.txt", "sub/d.rhai", ".git/e.rhai", "sub.rhai/f.rhai"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        dir
    }

    #[test]
    fn directories_are_searched_in_order_and_nothing_comes_twice() {
        let dir = tree();
        let root = dir.path();
        let found = find(&[root.join("c.txt"), root.to_owned(), root.join("a.rhai")]).unwrap();
        let names: Vec<_> =
            found.iter().map(|s| s.path.strip_prefix(root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["c.txt", "a.rhai", "b.rhai", "sub/d.rhai", "sub.rhai/f.rhai"]);
        let named: Vec<_> = found.iter().map(|s| s.named).collect();
        assert_eq!(named, [true, true, false, false, false], "named as well as found");
    }

    #[test]
    fn what_is_not_there_is_named_with_its_nearest() {
        let dir = tree();
        let asked = dir.path().join("a.rhaj");
        let failure = find(std::slice::from_ref(&asked)).unwrap_err();
        let meant = dir.path().join("a.rhai");
        assert_eq!(
            failure.message,
            format!(
                "{}: No such file or directory; did you mean {}?",
                asked.display(),
                meant.display()
            )
        );
        assert_eq!(failure.code, 64);
        let failure = find(&["/nonexistent/x".into()]).unwrap_err();
        assert_eq!(failure.message, "/nonexistent/x: No such file or directory");
    }
}
