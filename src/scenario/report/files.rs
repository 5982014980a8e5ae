//! Events as files: one event per line, each line written whole.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::scenario::event::{RunEvent, RunModel};
use crate::scenario::runner::Sink;
use crate::words::plain;

/// The first failure of a file sink, for the end of the run. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Rc<RefCell<Option<String>>>);

impl Trouble {
    /// What went wrong first, if anything did.
    #[must_use]
    pub fn first(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Notes that a report could not be written.
    pub(super) fn note_report(&self, path: &Path, error: &io::Error) {
        let text = || format!("cannot write the report {}: {}", path.display(), plain(error));
        self.0.borrow_mut().get_or_insert_with(text);
    }

    fn note(&self, path: &Path, error: &io::Error) {
        self.0.borrow_mut().get_or_insert_with(|| {
            format!(
                "cannot write events to {}: {}; the file is incomplete",
                path.display(),
                plain(error)
            )
        });
    }
}

/// Writes every event as a line of JSON.
///
/// Each line is handed to the kernel in one append, at once: a run that is killed leaves only
/// whole lines.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: Option<File>,
    trouble: Trouble,
}

impl JsonLines {
    /// Starts the file anew.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn create(path: &Path, trouble: &Trouble) -> io::Result<Self> {
        // Appending and truncating do not go together in one open.
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(JsonLines { path: path.to_owned(), file: Some(file), trouble: trouble.clone() })
    }

    fn line(&mut self, event: &RunEvent) {
        if let Some(file) = &mut self.file
            && let Err(e) = file.write_all(event.to_line().as_bytes())
        {
            self.trouble.note(&self.path, &e);
            // Half a line may stand there: nothing is put behind it.
            self.file = None;
        }
    }
}

impl Sink for JsonLines {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        self.line(event);
    }
}

/// Keeps a directory per cell with its events; the cells put their logs beside them.
#[derive(Debug)]
pub struct Keep {
    root: PathBuf,
    cells: Vec<Option<JsonLines>>,
    trouble: Trouble,
}

impl Keep {
    /// Keeps below `root`, which is made if it is not there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn create(root: &Path, trouble: &Trouble) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Keep { root: root.to_owned(), cells: Vec::new(), trouble: trouble.clone() })
    }
}

impl Sink for Keep {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        if let RunEvent::RunStarted { cells, .. } = event {
            for (id, info) in cells.iter().enumerate() {
                let dir = cell_dir(&self.root, id, &info.name);
                let path = dir.join("events.jsonl");
                let made =
                    fs::create_dir_all(&dir).and_then(|()| JsonLines::create(&path, &self.trouble));
                self.cells.push(made.inspect_err(|e| self.trouble.note(&path, e)).ok());
            }
        }
        if let Some(id) = event.cell()
            && let Some(Some(file)) = self.cells.get_mut(id)
        {
            file.line(event);
        }
    }
}

/// Where a cell's files are kept: `01-counters-advance`.
#[must_use]
pub fn cell_dir(root: &Path, id: usize, name: &str) -> PathBuf {
    let mut slug = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            slug.push(c);
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= 60 {
            break;
        }
    }
    root.join(format!("{:02}-{}", id + 1, slug.trim_matches('-')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::event::{CellInfo, Stage};

    fn events() -> Vec<RunEvent> {
        let info = CellInfo {
            name: "Zähler: steigen / fallen".into(),
            file: "a.rhai".into(),
            index: 0,
            kernel: "auto".into(),
            topology: "1n1l2c1t".into(),
            scheduler: "none".into(),
            tags: vec![],
            axes: vec![],
        };
        vec![
            RunEvent::RunStarted { cryoscope: "1".into(), cells: vec![info], jobs: 1 },
            RunEvent::CellStarted { cell: 0, attempt: 1, at_ms: 0 },
            RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: "a\nb".into() },
        ]
    }

    #[test]
    fn every_event_is_one_line_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, trouble) = (dir.path().join("run.jsonl"), Trouble::default());
        fs::write(&path, "from an earlier run\n").unwrap();
        let mut sink = JsonLines::create(&path, &trouble).unwrap();
        events().iter().for_each(|e| sink.event(e, &RunModel::default()));
        let text = fs::read_to_string(&path).unwrap();
        let read: Vec<_> = text.lines().map(|l| RunEvent::from_line(l).unwrap()).collect();
        assert_eq!(read, events());
        assert_eq!(trouble.first(), None);
    }

    #[test]
    fn a_full_disk_is_told_once_and_nothing_follows_half_a_line() {
        let (path, trouble) = (Path::new("/dev/full"), Trouble::default());
        let mut sink = JsonLines::create(path, &trouble).unwrap();
        events().iter().for_each(|e| sink.event(e, &RunModel::default()));
        let told = trouble.first().unwrap();
        assert!(told.starts_with("cannot write events to /dev/full: No space left"), "{told}");
        assert!(sink.file.is_none());
    }

    #[test]
    fn kept_cells_have_directories_with_their_own_events() {
        let dir = tempfile::tempdir().unwrap();
        let trouble = Trouble::default();
        let mut keep = Keep::create(&dir.path().join("a/b"), &trouble).unwrap();
        events().iter().for_each(|e| keep.event(e, &RunModel::default()));
        let path = dir.path().join("a/b/01-zähler-steigen-fallen/events.jsonl");
        assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 2);
        assert_eq!(cell_dir(Path::new("k"), 0, "../../etc"), Path::new("k/01-etc"));
        assert_eq!(cell_dir(Path::new("k"), 11, "--"), Path::new("k/12-"));
    }
}
