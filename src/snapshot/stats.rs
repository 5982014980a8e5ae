//! What the scheduler's statistics said when a snapshot was taken.

use serde_json::Value;

use super::error::{SnapshotError, SnapshotResult, join};
use super::value::Scalar;
use super::{MissingStatsReason, Snapshot};
use crate::words::nearest_first;

/// Why a snapshot that nobody asked statistics for has none.
const NOT_ASKED: &str = "it was not asked, since only periodic samples ask; t.stats() asks now";

impl Snapshot {
    /// The statistics that were asked for just before the sample's time.
    ///
    /// # Errors
    /// [`SnapshotError::MissingStats`] with the reason.
    pub fn stats(&self) -> SnapshotResult<&Value> {
        let missing = |reason| SnapshotError::MissingStats { tag: self.tag().to_owned(), reason };
        match self.meta().stats.as_deref() {
            Some(Ok(stats)) => Ok(stats),
            Some(Err(reason)) => Err(missing(reason.clone())),
            None => {
                let reason = NOT_ASKED.to_owned();
                Err(missing(MissingStatsReason::NoScheduler { reason }))
            }
        }
    }

    /// A single value in them: `nr_queued`, `cpus[2].load`.
    ///
    /// # Errors
    /// As [`Snapshot::stats`]; [`SnapshotError::EmptyPathComponent`],
    /// [`SnapshotError::FieldNotFound`], [`SnapshotError::NotAStruct`],
    /// [`SnapshotError::IndexOutOfRange`] and [`SnapshotError::TypeMismatch`] say where the walk
    /// stopped.
    pub fn stat(&self, path: &str) -> SnapshotResult<Scalar> {
        let found = walk(self.stats()?, path)?;
        let scalar = match found {
            Value::Bool(b) => Some(Scalar::Bool(*b)),
            Value::String(text) => Some(Scalar::Str(text.clone())),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Some(Scalar::Int(n)),
                (None, Some(n)) => Some(Scalar::U64(n)),
                (None, None) => n.as_f64().map(Scalar::Float),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        scalar.ok_or_else(|| SnapshotError::TypeMismatch {
            expected: "a single value".to_owned(),
            actual: format!("{} in the statistics", kind(found)),
            requested: path.to_owned(),
        })
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn walk<'v>(root: &'v Value, path: &str) -> SnapshotResult<&'v Value> {
    let empty = || SnapshotError::EmptyPathComponent { requested: path.to_owned() };
    let mut at = root;
    let mut walked = String::new();
    if path.split('.').any(str::is_empty) {
        return Err(empty());
    }
    for part in path.split('.') {
        let (name, mut indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !name.is_empty() {
            at = member(at, name, path, &walked)?;
            walked = join(&walked, name).into_owned();
        }
        while !indices.is_empty() {
            let (index, rest) =
                indices[1..].split_once(']').filter(|(i, _)| !i.is_empty()).ok_or_else(empty)?;
            at = element(at, index, path, &walked)?;
            walked.push_str(&format!("[{index}]"));
            indices = rest;
            if !indices.is_empty() && !indices.starts_with('[') {
                return Err(empty());
            }
        }
    }
    Ok(at)
}

fn member<'v>(at: &'v Value, name: &str, path: &str, walked: &str) -> SnapshotResult<&'v Value> {
    let (requested, walked, component) = (path.to_owned(), walked.to_owned(), name.to_owned());
    let Value::Object(members) = at else {
        return Err(SnapshotError::NotAStruct {
            requested,
            walked,
            component,
            kind: kind(at).to_owned(),
        });
    };
    members.get(name).ok_or_else(|| {
        let available = nearest_first(name, members.keys().cloned().collect());
        SnapshotError::FieldNotFound { requested, walked, component, available }
    })
}

fn element<'v>(at: &'v Value, index: &str, path: &str, walked: &str) -> SnapshotResult<&'v Value> {
    let Value::Array(elements) = at else {
        return Err(SnapshotError::NotAStruct {
            requested: path.to_owned(),
            walked: walked.to_owned(),
            component: format!("[{index}]"),
            kind: kind(at).to_owned(),
        });
    };
    let found = index.parse::<usize>().ok().and_then(|i| elements.get(i));
    found.ok_or_else(|| SnapshotError::IndexOutOfRange {
        map: format!("stats: {walked}"),
        index: index.parse().unwrap_or(i64::MAX),
        len: elements.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Meta;
    use serde_json::json;
    use std::sync::Arc;

    fn with(stats: Option<Result<Value, MissingStatsReason>>) -> Arc<Snapshot> {
        let stats = stats.map(Box::new);
        Snapshot::new(Meta { tag: "s".into(), stats, ..Meta::default() }, vec![], vec![])
    }

    #[test]
    fn a_place_in_the_statistics_is_a_value_or_an_error_that_says_where() {
        let big = u64::MAX;
        let snap = with(Some(Ok(json!({
            "nr": 7, "big": big, "load": 0.5, "on": true, "mode": "auto", "none": null,
            "cpus": [{ "idle": 3 }, { "idle": 4 }], "m": [[1, 2]],
        }))));
        let stat = |path: &str| snap.stat(path);
        assert_eq!(stat("nr"), Ok(Scalar::Int(7)));
        assert_eq!(stat("big"), Ok(Scalar::U64(big)));
        assert_eq!(stat("load"), Ok(Scalar::Float(0.5)));
        assert_eq!(stat("on"), Ok(Scalar::Bool(true)));
        assert_eq!(stat("mode"), Ok(Scalar::Str("auto".into())));
        assert_eq!(stat("cpus[1].idle"), Ok(Scalar::Int(4)));
        assert_eq!(stat("m[0][1]"), Ok(Scalar::Int(2)));
        let kinds = [
            ("none", "TypeMismatch"),
            ("cpus", "TypeMismatch"),
            ("cpus[2].idle", "IndexOutOfRange"),
            ("cpus[x]", "IndexOutOfRange"),
            ("cpus[0].idel", "FieldNotFound"),
            ("nr.x", "NotAStruct"),
            ("nr[0]", "NotAStruct"),
            ("a..b", "EmptyPathComponent"),
            ("", "EmptyPathComponent"),
            ("cpus[", "EmptyPathComponent"),
            ("cpus[]", "EmptyPathComponent"),
            ("cpus[0]x", "EmptyPathComponent"),
        ];
        for (path, kind) in kinds {
            assert_eq!(stat(path).map_err(|e| e.kind()), Err(kind), "{path}");
        }
        let near = stat("cpus[0].idel").unwrap_err();
        assert!(near.to_string().contains("idle"), "{near}");
    }

    #[test]
    fn statistics_that_are_missing_say_why() {
        let none = with(None).stat("nr").unwrap_err().to_string();
        assert!(none.contains("t.stats() asks now"), "{none}");
        let reason = MissingStatsReason::DuringFreeze;
        let missing = SnapshotError::MissingStats { tag: "s".into(), reason: reason.clone() };
        assert_eq!(with(Some(Err(reason))).stat("nr"), Err(missing));
    }
}
