//! Logs that are kept when somebody wants them (`--keep`).

use std::path::Path;
use std::sync::Arc;

use crate::scenario::verdict::Recorder;
use crate::snapshot::Snapshot;
use crate::words::plain;

/// A cell's logs, whole.
pub(super) struct Kept<'a> {
    pub(super) console: &'a str,
    pub(super) scheduler: &'a str,
    /// The kernel's log, when the guest could still be asked for it.
    pub(super) dmesg: Option<&'a str>,
    /// What the scheduler left behind, when it died.
    pub(super) death: Option<&'a Arc<Snapshot>>,
}

impl Kept<'_> {
    /// Writes them into `dir`; a second attempt does not overwrite the first. What cannot be
    /// written is noted: it is no reason to judge otherwise.
    pub(super) fn write(&self, dir: &Path, attempt: u32, recorder: &Recorder) {
        let suffix = if attempt > 1 { format!("-{attempt}") } else { String::new() };
        let files = [
            ("console", Some(self.console)),
            ("scheduler", Some(self.scheduler)),
            ("dmesg", self.dmesg),
        ];
        for (name, text) in files {
            let Some(text) = text else { continue };
            let path = dir.join(format!("{name}{suffix}.log"));
            let kept = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&path, text));
            if let Err(e) = kept {
                recorder.note(format!("cannot keep {}: {}", path.display(), plain(&e)), None);
            }
        }
        if let Some(death) = self.death {
            let path = dir.join(format!("error-exit{suffix}.cryo"));
            if let Err(e) = death.save(&path) {
                recorder.note(format!("cannot keep {}: {e}", path.display()), None);
            }
        }
    }
}
