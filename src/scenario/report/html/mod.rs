//! A run as one page of HTML: `index.html`, with everything inside, to be opened from a file.

mod chart;
mod page;
mod timeline;
mod tree;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::Trouble;
use crate::scenario::event::{CellFinished, CellInfo, RunEvent, RunModel, Stage};
use crate::scenario::runner::Sink;
use crate::scenario::verdict::Record;
use crate::words::plain;

/// Records of one cell that the page has; further ones are only counted.
const KEPT_RECORDS: usize = 1000;
/// Moments of one cell that its timeline has; further ones are only counted.
const KEPT_MOMENTS: usize = 1000;
/// Snapshots of one cell that it has.
const KEPT_TREES: usize = 4;
/// While cells run, the page is written no more often than this.
const PAUSE: Duration = Duration::from_secs(2);
/// What a page of ours has in its first kilobyte.
const MARK: &str = "<meta name=\"generator\" content=\"cryoscope run --report\">";

/// What is known of a run so far.
#[derive(Debug, Default)]
struct Known {
    version: String,
    /// Seconds since 1970, UTC.
    started: u64,
    cells: Vec<Cell>,
    /// [`RunEvent::RunFinished`], once it came.
    end: Option<RunEvent>,
}

/// What is known of a cell so far.
#[derive(Debug)]
struct Cell {
    info: CellInfo,
    attempt: u32,
    retries: Vec<(u32, String)>,
    stages: Vec<(Stage, String)>,
    moments: Vec<Moment>,
    records: Vec<Record>,
    /// Snapshots as trees, by their tags.
    trees: Vec<(String, String)>,
    left_out: u64,
    end: Option<CellFinished>,
}

/// Something at an instant of a cell's workload clock.
#[derive(Debug)]
struct Moment {
    elapsed_ms: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Phase(String),
    /// Attached, or let go.
    Scheduler(Option<String>),
    Frozen {
        tag: String,
        pause_us: u64,
        copy_us: u64,
    },
    /// Why there is nothing in a snapshot.
    Placeholder {
        tag: String,
        why: String,
    },
    Exited(String),
}

impl Known {
    fn take(&mut self, event: &RunEvent) {
        match event {
            RunEvent::RunStarted { cryoscope, cells, .. } => {
                self.version.clone_from(cryoscope);
                self.cells = cells.iter().cloned().map(Cell::new).collect();
            }
            RunEvent::RunFinished { .. } => self.end = Some(event.clone()),
            _ => {
                if let Some(cell) = event.cell().and_then(|id| self.cells.get_mut(id)) {
                    cell.take(event);
                }
            }
        }
    }
}

impl Cell {
    fn new(info: CellInfo) -> Self {
        Cell {
            info,
            attempt: 0,
            retries: Vec::new(),
            stages: Vec::new(),
            moments: Vec::new(),
            records: Vec::new(),
            trees: Vec::new(),
            left_out: 0,
            end: None,
        }
    }

    fn take(&mut self, event: &RunEvent) {
        match event {
            RunEvent::CellStarted { attempt, .. } => self.attempt = *attempt,
            RunEvent::Stage { stage, detail, .. } if self.stages.len() < KEPT_MOMENTS => {
                self.stages.push((*stage, detail.clone()));
            }
            RunEvent::Phase { name, elapsed_ms, .. } => {
                self.moment(*elapsed_ms, What::Phase(name.clone()));
            }
            RunEvent::Scheduler { attached, elapsed_ms, .. } => {
                self.moment(*elapsed_ms, What::Scheduler(attached.clone()));
            }
            RunEvent::Frozen { tag, elapsed_ms, placeholder: Some(why), .. } => {
                let (tag, why) = (tag.clone(), why.clone());
                self.moment(*elapsed_ms, What::Placeholder { tag, why });
            }
            RunEvent::Frozen { tag, elapsed_ms, pause_us, copy_us, .. } => {
                let (tag, pause_us, copy_us) = (tag.clone(), *pause_us, *copy_us);
                self.moment(*elapsed_ms, What::Frozen { tag, pause_us, copy_us });
            }
            RunEvent::SchedulerExited { reason, elapsed_ms, .. } => {
                self.moment(*elapsed_ms, What::Exited(reason.clone()));
            }
            RunEvent::Recorded { record, .. } if self.records.len() < KEPT_RECORDS => {
                self.records.push(record.clone());
            }
            RunEvent::CellRetried { attempt, reason, .. } => {
                // What the attempt recorded is void.
                let mut fresh = Cell::new(self.info.clone());
                fresh.retries = std::mem::take(&mut self.retries);
                fresh.retries.push((*attempt, reason.clone()));
                fresh.attempt = *attempt;
                *self = fresh;
            }
            RunEvent::Sampled { report, .. } => {
                let (text, at) = (report.to_string(), None);
                self.records.push(Record::Note { text, at });
            }
            RunEvent::Monitored { report, .. } => {
                let (text, at) = (report.to_string(), None);
                self.records.push(Record::Note { text, at });
            }
            RunEvent::Tree { tag, text, .. } if self.trees.len() < KEPT_TREES => {
                self.trees.push((tag.clone(), text.clone()));
            }
            RunEvent::CellFinished(end) => self.end = Some(end.clone()),
            _ => self.left_out += 1,
        }
    }

    fn moment(&mut self, elapsed_ms: u64, what: What) {
        if self.moments.len() < KEPT_MOMENTS {
            self.moments.push(Moment { elapsed_ms, what });
        } else {
            self.left_out += 1;
        }
    }
}

/// Writes the page: now and then while cells finish, and at the end of the run.
///
/// The page is replaced as a whole, so that a run that is killed leaves the last one that was
/// written, which says that the run has not ended.
#[derive(Debug)]
pub struct Html {
    path: PathBuf,
    known: Known,
    written: Option<Instant>,
    trouble: Trouble,
}

impl Html {
    /// Reports into `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// A sentence: what the kernel answers, or that something else than a report is there.
    pub fn create(dir: &Path, trouble: &Trouble) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|e| plain(&e))?;
        let path = dir.join("index.html");
        // What a run that was killed while it wrote has left behind.
        let part = path.with_extension("html.part");
        if is_ours(&part).unwrap_or(false) {
            let _ = fs::remove_file(&part);
        }
        let empty = fs::read_dir(dir).map_err(|e| plain(&e))?.next().is_none();
        if !empty && !is_ours(&path).map_err(|e| plain(&e))? {
            return Err("holds something else than an earlier report; \
                        name a new or an empty directory"
                .into());
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let known = Known { started: now.map_or(0, |d| d.as_secs()), ..Known::default() };
        let report = Html { path, known, written: None, trouble: trouble.clone() };
        // A place that cannot be written to is told before anything runs.
        report.write().map_err(|e| plain(&e))?;
        Ok(report)
    }

    fn write(&self) -> io::Result<()> {
        let part = self.path.with_extension("html.part");
        let written = fs::write(&part, page::page(&self.known));
        let written = written.and_then(|()| fs::rename(&part, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// Whether an earlier report stands there.
fn is_ours(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let mut head = Vec::new();
    file.take(1024).read_to_end(&mut head)?;
    Ok(String::from_utf8_lossy(&head).contains(MARK))
}

impl Sink for Html {
    fn event(&mut self, event: &RunEvent, _: &RunModel) {
        self.known.take(event);
        let due = match event {
            RunEvent::RunStarted { .. } | RunEvent::RunFinished { .. } => true,
            RunEvent::CellFinished(_) => self.written.is_none_or(|at| at.elapsed() >= PAUSE),
            _ => false,
        };
        if due {
            if let Err(e) = self.write() {
                self.trouble.note_report(&self.path, &e);
            }
            self.written = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
