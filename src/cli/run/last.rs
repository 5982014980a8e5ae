//! What did not succeed when it last ran, for `--last-failed`: a small file in the cache for each
//! directory from which cryoscope is run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::scenario::ScenarioDecl;
use crate::scenario::event::{CellInfo, RunEvent, RunModel};
use crate::scenario::runner::Sink;
use crate::scenario::verdict::Outcome;

/// More than this is no file of ours.
const LARGEST: u64 = 16 << 20;

/// Remembers a run.
pub(super) struct LastRun {
    path: PathBuf,
    cells: Vec<CellInfo>,
    known: Known,
}

/// What is remembered: scripts, and the names of scenarios in them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Known {
    failed: BTreeSet<(PathBuf, String)>,
}

fn key(file: &Path, name: &str) -> (PathBuf, String) {
    (fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()), name.to_owned())
}

fn read(path: &Path) -> Known {
    let fits = fs::metadata(path).is_ok_and(|meta| meta.len() <= LARGEST);
    let text = if fits { fs::read(path).ok() } else { None };
    // Whatever else lies there is nothing that is known.
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

impl LastRun {
    /// What is known of runs from this directory.
    pub(super) fn new(cache: &Path) -> LastRun {
        let here = std::env::current_dir().unwrap_or_default();
        LastRun::at(cache, &here)
    }

    fn at(cache: &Path, here: &Path) -> LastRun {
        let digest = Sha256::digest(here.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = cache.join("last-run").join(name + ".json");
        let known = read(&path);
        LastRun { path, cells: Vec::new(), known }
    }

    /// Those that did not succeed; all, when none of them is known to have failed.
    pub(super) fn failed(&self, decls: Vec<ScenarioDecl>) -> Vec<ScenarioDecl> {
        let failed = |d: &ScenarioDecl| self.known.failed.contains(&key(&d.file, &d.name));
        match decls.iter().any(failed) {
            true => decls.into_iter().filter(failed).collect(),
            false => decls,
        }
    }

    /// Notes what a scenario came to, beside what others have noted meanwhile.
    fn note(&mut self, key: (PathBuf, String), failed: bool) {
        // It is a convenience: a cache that cannot be written to costs no run its verdict.
        let Some(dir) = self.path.parent() else { return };
        let _ = fs::create_dir_all(dir);
        // Held until the end; without it a run at the same time may be forgotten in part.
        let lock = fs::File::create(self.path.with_extension("lock"));
        let _ = lock.as_ref().map(fs::File::lock);
        self.known = read(&self.path);
        match failed {
            true => self.known.failed.insert(key),
            false => self.known.failed.remove(&key),
        };
        let part = self.path.with_extension(format!("part-{}", std::process::id()));
        let written = serde_json::to_vec(&self.known)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&part, text))
            .and_then(|()| fs::rename(&part, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
    }
}

impl Sink for LastRun {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        match event {
            RunEvent::RunStarted { cells, .. } => self.cells.clone_from(cells),
            RunEvent::CellFinished(end) => {
                let Some(info) = self.cells.get(end.cell) else { return };
                let key = key(&info.file, &info.name);
                self.note(key, end.verdict.weight() > Outcome::Pass);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::event::{CellFinished, Logs};
    use crate::scenario::verdict::Verdict;

    fn decl(name: &str) -> ScenarioDecl {
        ScenarioDecl {
            name: name.into(),
            file: "a.rhai".into(),
            index: 0,
            at: None,
            plain: false,
            boots: true,
            options: Default::default(),
        }
    }

    fn names(last: &LastRun) -> Vec<String> {
        let all = ["a", "b", "c"].map(decl).to_vec();
        last.failed(all).into_iter().map(|decl| decl.name).collect()
    }

    fn end(last: &mut LastRun, cell: usize, outcome: Outcome) {
        let verdict = Verdict::bare(outcome, "");
        let (fault, logs) = (None, Logs::default());
        let end = CellFinished { cell, verdict, duration_ms: 1, fault, failed_before: 0, logs };
        last.event(&RunEvent::CellFinished(end), &RunModel::default());
    }

    #[test]
    fn what_failed_is_remembered_until_it_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = LastRun::at(dir.path(), Path::new("/here"));
        assert_eq!(names(&last), ["a", "b", "c"], "nothing is known");
        let info = |name: &str| CellInfo {
            name: name.into(),
            file: "a.rhai".into(),
            index: 0,
            kernel: String::new(),
            topology: String::new(),
            scheduler: String::new(),
            tags: vec![],
            axes: vec![],
        };
        let cells = ["a", "b", "c"].map(info).to_vec();
        let started = RunEvent::RunStarted { cryoscope: "1".into(), cells, jobs: 1 };
        last.event(&started, &RunModel::default());
        end(&mut last, 0, Outcome::Fail);
        end(&mut last, 1, Outcome::Pass);
        end(&mut last, 2, Outcome::Inconclusive);
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/here"))), ["a", "c"]);
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/there"))).len(), 3);
        end(&mut last, 0, Outcome::Pass);
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/here"))), ["c"]);
        // Another run from here, at the same time.
        let mut other = LastRun::at(dir.path(), Path::new("/here"));
        other.event(&started, &RunModel::default());
        end(&mut last, 0, Outcome::Error);
        end(&mut other, 1, Outcome::Fail);
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/here"))), ["a", "b", "c"]);
        end(&mut last, 2, Outcome::Pass);
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/here"))), ["a", "b"]);
        fs::write(&last.path, "garbage").unwrap();
        assert_eq!(names(&LastRun::at(dir.path(), Path::new("/here"))).len(), 3);
    }
}
