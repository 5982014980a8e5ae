//! What was copied at a freeze, read by name.

mod error;
mod error_text;
mod nearest;
mod reason;

pub use error::{ExcludedMap, SnapshotError, SnapshotResult};
pub use nearest::{nearest, nearest_first};
pub use reason::MissingStatsReason;
