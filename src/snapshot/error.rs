//! The catalogue of everything that reading a snapshot can answer instead of a value.
//!
//! One enum; every accessor that fails returns exactly one of its variants. The message of each
//! lets the author mend the call without a second run: what was asked, where the walk stopped,
//! what is there instead (the nearest name first), and the call to use. The wording is in
//! `error_text.rs`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::reason::MissingStatsReason;

/// The call of a [`SnapshotError::NoMatch`] that found one sample where it needs two.
pub(crate) const DELTA: &str = "delta";

/// What reading a snapshot answers.
pub type SnapshotResult<T> = Result<T, SnapshotError>;

/// Why a snapshot, a map, an entry or a field could not answer.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SnapshotError {
    /// No captured map has that name.
    MapNotFound {
        /// The name asked for.
        requested: String,
        /// Every captured map's name, nearest first.
        available: Vec<String>,
    },
    /// No `.bss`, `.data` or `.rodata` section has such a variable.
    VarNotFound {
        /// The name asked for.
        requested: String,
        /// Every variable's name, nearest first.
        available: Vec<String>,
    },
    /// More than one captured map has it, and none or several of them are live.
    AmbiguousVar {
        /// The name asked for.
        requested: String,
        /// The maps that have it, each spelled so that `map(..)` finds it.
        found_in: Vec<String>,
    },
    /// A component of a path is no member at that depth.
    FieldNotFound {
        /// The path asked for.
        requested: String,
        /// As far as the walk came; empty at the value itself.
        walked: String,
        /// What is no member there.
        component: String,
        /// The members there, nearest first.
        available: Vec<String>,
    },
    /// The path goes on below something that has no members.
    NotAStruct {
        /// The path asked for.
        requested: String,
        /// As far as the walk came.
        walked: String,
        /// What was asked of it.
        component: String,
        /// What it is: a word of [`FieldKind`](super::FieldKind).
        kind: String,
    },
    /// A value cannot be read as what was asked for.
    TypeMismatch {
        /// What was asked for.
        expected: String,
        /// What is there.
        actual: String,
        /// The path; empty on a bare leaf.
        requested: String,
    },
    /// An index past the end.
    IndexOutOfRange {
        /// The map, or the array within it.
        map: String,
        /// The index asked for.
        index: i64,
        /// How many there are.
        len: usize,
    },
    /// A CPU without a slot.
    PerCpuSlot {
        /// The per-CPU map.
        map: String,
        /// The CPU asked for.
        cpu: i64,
        /// How many CPUs the map was captured with.
        len: usize,
        /// The CPU is in range, but no memory stands behind its slot.
        unmapped: bool,
    },
    /// Nothing in the map matched, or a reduction had nothing to reduce.
    NoMatch {
        /// The map.
        map: String,
        /// The call that matched nothing.
        op: String,
        /// How many entries were looked at; 0 means an empty map.
        len: usize,
        /// Up to three keys that are there, of at most 80 characters each.
        available_keys: Vec<String>,
    },
    /// A path has nothing between two dots, or at an end.
    EmptyPathComponent {
        /// The path asked for.
        requested: String,
    },
    /// A per-CPU value was read before a CPU was chosen.
    PerCpuNotNarrowed {
        /// The per-CPU map.
        map: String,
    },
    /// A key or a value has no BTF type, only bytes.
    NoRendered {
        /// The map.
        map: String,
        /// `key` or `value`.
        side: String,
    },
    /// A projection met a sample whose freeze never completed.
    PlaceholderSample {
        /// The sample.
        tag: String,
        /// Why the freeze did not complete.
        reason: String,
    },
    /// A sample carries no statistics.
    MissingStats {
        /// The sample.
        tag: String,
        /// Why.
        reason: MissingStatsReason,
    },
    /// No per-CPU time was captured for that CPU.
    HostFieldUnavailable {
        /// The sample.
        tag: String,
        /// The CPU asked for.
        cpu: i64,
    },
    /// The freeze of this snapshot never completed: there is nothing to read.
    PlaceholderSnapshot {
        /// The snapshot.
        tag: Option<String>,
    },
    /// No scheduler was attached, or none had run yet, at that instant.
    NoActiveScheduler {
        /// Which of them, and how it is known.
        reason: String,
    },
    /// The live filter rejected every captured map of the live object.
    ActiveFilterExcludedMaps {
        /// The name asked for.
        requested: String,
        /// The object that is live.
        active_obj: String,
        /// The maps of that object that were captured and rejected.
        excluded_maps: Vec<ExcludedMap>,
        /// Addresses that would have passed.
        whitelist_kvas: Vec<u64>,
    },
    /// Within one phase a later sample belongs to another scheduler than the first one.
    WalkerDriftedWithinPhase {
        /// The phase.
        phase: String,
        /// Maps of the scheduler that the phase began with, by address.
        pinned_kvas: Vec<u64>,
        /// Maps of the scheduler in this sample, by address.
        sample_kvas: Vec<u64>,
        /// The name asked for.
        requested: String,
    },
    /// A closure of the script threw for reasons of its own.
    ProjectionFailed {
        /// What it threw.
        reason: String,
    },
    /// The map exists, but its contents could not be read at the capture.
    MapRenderIncomplete {
        /// The map.
        map: String,
        /// Why.
        error: String,
    },
}

/// A captured map that a filter for the live scheduler rejected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExcludedMap {
    /// Its name.
    pub name: String,
    /// Its address in the guest's kernel; 0 when it was never recorded.
    pub map_kva: u64,
}

impl SnapshotError {
    /// The variant's name, as scripts and JSON spell it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        use SnapshotError as E;
        match self {
            E::MapNotFound { .. } => "MapNotFound",
            E::VarNotFound { .. } => "VarNotFound",
            E::AmbiguousVar { .. } => "AmbiguousVar",
            E::FieldNotFound { .. } => "FieldNotFound",
            E::NotAStruct { .. } => "NotAStruct",
            E::TypeMismatch { .. } => "TypeMismatch",
            E::IndexOutOfRange { .. } => "IndexOutOfRange",
            E::PerCpuSlot { .. } => "PerCpuSlot",
            E::NoMatch { .. } => "NoMatch",
            E::EmptyPathComponent { .. } => "EmptyPathComponent",
            E::PerCpuNotNarrowed { .. } => "PerCpuNotNarrowed",
            E::NoRendered { .. } => "NoRendered",
            E::PlaceholderSample { .. } => "PlaceholderSample",
            E::MissingStats { .. } => "MissingStats",
            E::HostFieldUnavailable { .. } => "HostFieldUnavailable",
            E::PlaceholderSnapshot { .. } => "PlaceholderSnapshot",
            E::NoActiveScheduler { .. } => "NoActiveScheduler",
            E::ActiveFilterExcludedMaps { .. } => "ActiveFilterExcludedMaps",
            E::WalkerDriftedWithinPhase { .. } => "WalkerDriftedWithinPhase",
            E::ProjectionFailed { .. } => "ProjectionFailed",
            E::MapRenderIncomplete { .. } => "MapRenderIncomplete",
        }
    }

    /// The variant's fields by name.
    #[must_use]
    pub fn fields(&self) -> Map<String, Value> {
        // Serialized, a variant is an object with its name as the only key.
        match serde_json::to_value(self) {
            Ok(Value::Object(tagged)) => match tagged.into_iter().next() {
                Some((_, Value::Object(fields))) => fields,
                _ => Map::new(),
            },
            _ => Map::new(),
        }
    }

    /// The same error about a longer path: `outer` is where the walk that failed began.
    ///
    /// A path that is asked of a field is relative to it; what the author reads names all of it.
    #[must_use]
    pub(crate) fn below(mut self, outer: &str) -> Self {
        use SnapshotError as E;
        match &mut self {
            E::FieldNotFound { requested, walked, .. }
            | E::NotAStruct { requested, walked, .. } => {
                *requested = join(outer, requested).into_owned();
                *walked = join(outer, walked).into_owned();
            }
            E::TypeMismatch { requested, .. } | E::EmptyPathComponent { requested } => {
                *requested = join(outer, requested).into_owned();
            }
            _ => {}
        }
        self
    }
}

/// Two pieces of a path as one: a dot between them unless an index follows or one is empty.
pub(crate) fn join<'a>(outer: &'a str, inner: &'a str) -> Cow<'a, str> {
    if outer.is_empty() {
        Cow::Borrowed(inner)
    } else if inner.is_empty() {
        Cow::Borrowed(outer)
    } else if inner.starts_with('[') {
        Cow::Owned(format!("{outer}{inner}"))
    } else {
        Cow::Owned(format!("{outer}.{inner}"))
    }
}
