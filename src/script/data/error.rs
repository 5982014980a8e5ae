//! `SnapshotError`: what every accessor throws, as a value that `catch (e)` receives.

use rhai::{Array, Dynamic, EvalAltResult, Map};
use serde_json::Value;

use crate::script::fault::{Fault, Native};
use crate::script::register::Package;
use crate::script::values::{U64, incomparable};
use crate::snapshot::SnapshotError;
use crate::words::nearest;

pub(super) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<SnapshotError>(
        "SnapshotError",
        "What is thrown when a snapshot cannot answer: `catch (e)` receives it.\n\
         Each kind has its fields as properties, as in `e.requested` or `e.available`.",
    )
    .getter(
        "kind(self: SnapshotError) -> string",
        "Which kind it is: `MapNotFound`, `FieldNotFound`, ..",
        |e: SnapshotError| e.kind(),
    )
    .getter(
        "message(self: SnapshotError) -> string",
        "What was asked, what is there instead, and what to write.",
        |e: SnapshotError| e.to_string(),
    )
    .getter("fields(self: SnapshotError) -> map", "The fields of this kind.", |e: SnapshotError| {
        fields(&e)
    })
    .index(
        "index(self: SnapshotError, name: string) -> any",
        "A field of this kind: `e.requested`, `e[\"requested\"]`. One that the kind does not have \
         is an error that names those it has.",
        |e: SnapshotError, name: &str| field(&e, name),
    )
    .func("to_string(self: SnapshotError) -> string", "The message.", |e: SnapshotError| {
        e.to_string()
    })
    .func(
        "to_debug(self: SnapshotError) -> string",
        "The kind and the message.",
        |e: SnapshotError| format!("{}: {e}", e.kind()),
    );
    incomparable::<SnapshotError>(pkg, "SnapshotError");
}

/// The error behind a thrown value.
pub(crate) fn error_of(value: &Dynamic) -> Option<SnapshotError> {
    value.read_lock::<SnapshotError>().map(|e| e.clone())
}

/// The fields by their names in scripts. `kind` is the variant's name there, so a field of that
/// name is `found_kind`.
fn fields(error: &SnapshotError) -> Map {
    let named = |name: String| if name == "kind" { "found_kind".to_owned() } else { name };
    error.fields().into_iter().map(|(name, v)| (named(name).into(), dynamic(v))).collect()
}

fn field(error: &SnapshotError, name: &str) -> Native<Dynamic> {
    let all = fields(error);
    if let Some(value) = all.get(name) {
        return Ok(value.clone());
    }
    let names: Vec<&str> =
        ["kind", "message", "fields"].into_iter().chain(all.keys().map(|k| k.as_str())).collect();
    // `e["kind"]` comes here too.
    match name {
        "kind" => return Ok(error.kind().into()),
        "message" => return Ok(error.to_string().into()),
        "fields" => return Ok(all.into()),
        _ => {}
    }
    let meant = match nearest(name, names.iter().copied()) {
        Some(near) => format!("; did you mean {near}?"),
        None => String::new(),
    };
    let kind = error.kind();
    let text = format!("a {kind} has no {name:?}{meant} (it has {})", names.join(", "));
    Err(Box::<EvalAltResult>::from(Fault::argument(text)))
}

/// JSON as a script has it.
pub(crate) fn dynamic(value: Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(b) => b.into(),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => U64::dynamic(n),
            (None, None) => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(s) => s.into(),
        Value::Array(items) => items.into_iter().map(dynamic).collect::<Array>().into(),
        Value::Object(map) => {
            map.into_iter().map(|(k, v)| (k.into(), dynamic(v))).collect::<Map>().into()
        }
    }
}
