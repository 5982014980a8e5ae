//! Snapshots as scripts see them: `Snapshot`, `SnapshotMap`, `SnapshotEntry`, `SnapshotField`, of
//! the kernel's own state `SnapshotCpu`, `SnapshotDomain`, `SnapshotTask`, `SnapshotDsq`,
//! `SnapshotSched`, `SnapshotModule` and `SnapshotStack`, and the `SnapshotError` that all of them throw.
//!
//! The types are the model's own handles, registered by value, so that a closure may capture what
//! its caller works on. A leaf (a number, a truth value, text, an enum's value) comes out as a
//! value of the script's own; where it came from rides along in the value's tag (`origin.rs`).

mod cpu;
mod domain;
mod dsq;
mod error;
mod field;
mod lend;
mod map;
mod module;
mod origin;
mod prog;
mod sched;
mod snapshot;
mod stack;
mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rhai::{Array, Dynamic, EvalAltResult, Position, Variant};

use crate::snapshot::{Entry, Field, KeyArg, Map, Scalar, Snapshot, SnapshotError, SnapshotResult};

use super::fault::{Fault, Native};
use super::register::Package;
use super::values::{self, int};

pub(crate) use error::{dynamic as json, error_of};
pub(crate) use lend::lend;
pub(crate) use origin::{forget_since, mark, origin_of};

/// Registers the types and all that can be done with them.
pub(crate) fn register(pkg: &mut Package<'_>) {
    snapshot::register(pkg);
    map::register(pkg);
    map::register_entry(pkg);
    field::register(pkg);
    cpu::register(pkg);
    domain::register(pkg);
    module::register(pkg);
    task::register(pkg);
    dsq::register(pkg);
    prog::register(pkg);
    sched::register(pkg);
    stack::register(pkg);
    error::register(pkg);
}

/// Registers `dump` for each type by itself, so that the reference has it as a member; `print` takes
/// what is to be printed. (`dump(x)` and `x.dump()` are one call in Rhai.)
pub(crate) fn dumps(
    pkg: &mut Package<'_>,
    print: impl Fn(&Dynamic) + Clone + Send + Sync + 'static,
) {
    fn one<T: Variant + Clone>(
        pkg: &mut Package<'_>,
        signature: &str,
        doc: &str,
        print: impl Fn(&Dynamic) + Send + Sync + 'static,
    ) {
        pkg.func(signature, doc, move |x: T| print(&Dynamic::from(x)));
    }
    one::<Arc<Snapshot>>(
        pkg,
        "dump(self: Snapshot)",
        "Prints everything that was captured, of large maps the first entries.",
        print.clone(),
    );
    one::<Map>(
        pkg,
        "dump(self: SnapshotMap)",
        "Prints the map's attributes and first entries.",
        print.clone(),
    );
    one::<Entry>(pkg, "dump(self: SnapshotEntry)", "Prints the key and the value.", print.clone());
    one::<Field>(pkg, "dump(self: SnapshotField)", "Prints what is in it.", print);
}

/// A snapshot as a value.
pub(crate) fn snapshot(snapshot: Arc<Snapshot>) -> Dynamic {
    Dynamic::from(snapshot)
}

/// An error as something to throw.
pub(crate) fn thrown(error: SnapshotError) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(Dynamic::from(error), Position::NONE).into()
}

/// The error that an accessor threw, if that is what ended a call of a closure.
pub(crate) fn error_in(error: &EvalAltResult) -> Option<SnapshotError> {
    match error.unwrap_inner() {
        EvalAltResult::ErrorRuntime(value, _) => error_of(value),
        _ => None,
    }
}

/// The value itself for a leaf, the field for everything else.
fn value_of(field: Field) -> Native<Dynamic> {
    match field.leaf().map_err(thrown)? {
        Some(scalar) => Ok(origin::remember(&field, scalar)),
        None => Ok(Dynamic::from(field)),
    }
}

/// Names with numbers as a script has them.
fn numbers(pairs: Vec<(String, Scalar)>) -> rhai::Map {
    pairs.into_iter().map(|(name, n)| (name.into(), values::from_scalar(n))).collect()
}

fn values_of(fields: Vec<Field>) -> Native<Array> {
    fields.into_iter().map(value_of).collect()
}

/// Throws what went wrong.
fn native<T>(result: SnapshotResult<T>) -> Native<T> {
    result.map_err(thrown)
}

/// A key as the author wrote it.
pub(crate) fn key_arg(value: &Dynamic) -> Native<KeyArg> {
    if let Some(field) = value.read_lock::<Field>()
        && !field.kind().is_leaf()
    {
        return native(field.raw()).map(KeyArg::Bytes);
    }
    if let Ok(map) = value.as_map_ref() {
        let members = map.iter().map(|(name, item)| Ok((name.to_string(), key_arg(item)?)));
        return members.collect::<Native<_>>().map(KeyArg::Struct);
    }
    if let Ok(array) = value.as_array_ref() {
        return array.iter().map(key_arg).collect::<Native<_>>().map(KeyArg::Array);
    }
    if let Ok(bytes) = value.as_blob_ref() {
        return Ok(KeyArg::Bytes(bytes.clone()));
    }
    use Scalar as S;
    match native(values::to_scalar(value))? {
        Some(S::Bool(b)) => Ok(KeyArg::Bool(b)),
        Some(S::Str(s)) => Ok(KeyArg::Str(s)),
        Some(S::Enum(e)) => Ok(KeyArg::Number(e.value())),
        Some(scalar) => match scalar.number() {
            Some(n) => Ok(KeyArg::Number(n)),
            None => Err(no_key(value)),
        },
        None => Err(no_key(value)),
    }
}

fn no_key(value: &Dynamic) -> Box<EvalAltResult> {
    Fault::argument(format!(
        "{} is no key: a key is a number, text, bytes, an object map of a struct's members, an \
         array, or another entry's key",
        values::described(value)
    ))
    .into()
}

/// What a closure found: true, false, or a captured field that is one of them.
fn verdict(value: &Dynamic, call: &str) -> Native<bool> {
    match native(values::to_scalar(value))? {
        Some(Scalar::Bool(b)) => Ok(b),
        _ => Err(Fault::argument(format!(
            "the closure of {call} has to give true or false for each entry, it gave {}",
            values::described(value)
        ))
        .into()),
    }
}
