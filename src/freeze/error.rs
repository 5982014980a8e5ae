//! What can come of a request instead of what was asked for.

use crate::snapshot::{CaptureError, SnapshotError};
use crate::vm::{Capability, VmError};

/// A freeze that gave no snapshot, or another request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The guest's kernel has not come far enough: try again later.
    #[error("the machine cannot be frozen yet: {0}")]
    NotYet(String),
    /// The guest's memory cannot be read.
    #[error("the machine's memory cannot be read: {0}")]
    Unreadable(String),
    /// A map was asked for by a name that none has.
    #[error("{0}")]
    NoSuchMap(SnapshotError),
    /// Not all CPUs stopped in time; the machine runs.
    #[error("the machine did not stop: {0}")]
    NotStopped(String),
    /// The engine cannot do that.
    #[error("the engine {engine} cannot: {}", capability.name())]
    Lacks {
        /// Its name.
        engine: &'static str,
        /// What it lacks.
        capability: Capability,
    },
    /// What was asked for makes no sense or is not there; a whole message.
    #[error("{0}")]
    Invalid(String),
    /// Something was asked from within a request, which would wait for itself.
    #[error(
        "{0} was asked for by a request that is being carried out, and would wait for its end; \
         post it, or ask when that request has come back"
    )]
    Nested(&'static str),
    /// The coordinator panicked while it carried this out. The machine runs, or stands if it was
    /// paused.
    #[error("a defect of cryoscope's: {what} panicked: {why}")]
    Panicked {
        /// What was asked for.
        what: &'static str,
        /// The panic's words.
        why: String,
    },
    /// The machine is gone, or no longer does what it is told.
    #[error("{0}")]
    Machine(#[from] VmError),
}

impl From<CaptureError> for FreezeError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::NotYet(why) => FreezeError::NotYet(why),
            CaptureError::Failed(why) => FreezeError::Unreadable(why),
        }
    }
}
