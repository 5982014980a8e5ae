//! From a declaration to a running laboratory.

use std::path::PathBuf;

use super::Logs;
use crate::kernel::{CacheDir, KernelImage};
use crate::scenario::cell::{Cancel, Events};
use crate::scenario::lab::LabError;
use crate::scenario::verdict::Recorder;

/// What booting needs beside the declaration.
pub struct Setup {
    /// The cache.
    pub cache: CacheDir,
    /// The kernel, when it was found already.
    pub kernel: Option<KernelImage>,
    /// The guest's agent.
    pub agent: PathBuf,
    /// `auto` or `qemu`.
    pub engine: String,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Where to keep logs.
    pub keep: Option<PathBuf>,
    /// The cell's voice.
    pub events: Events,
    /// Where remarks go.
    pub recorder: Recorder,
    /// The wish to end.
    pub cancel: Cancel,
}

/// A laboratory that did not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFailed {
    /// What it means for the scenario.
    pub error: LabError,
    /// The fault of the engine behind it, if that is what it was: worth another attempt.
    pub fault: Option<String>,
    /// Ends of the logs, as far as there are any.
    pub logs: Logs,
}
