//! `cryoscope snapshot`: what is in a file that a script has saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::{Map as Object, Value, json};

use super::{Failure, print};
use crate::scenario::text::clean;
use crate::snapshot::{Entry, Field, FieldKind, Map, Scalar, Snapshot, SnapshotError};

/// Look into saved snapshots.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print a snapshot, or one map or global variable of it
    Show {
        /// The file
        file: PathBuf,
        /// A map (`task_ctx`, `fifo.bss`) or a global variable (`nr_running`)
        name: Option<String>,
    },
    /// List the maps of a snapshot
    Tree {
        /// The file
        file: PathBuf,
    },
    /// Print what changed from one snapshot to another; exits with 1 if anything did
    Diff {
        /// The older one
        old: PathBuf,
        /// The newer one
        new: PathBuf,
        /// Compare pointers too
        #[arg(long)]
        addresses: bool,
    },
    /// Print everything as JSON
    Export {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let (text, code) = match &args.command {
        Command::Show { file, name } => (show(&open(file)?, name.as_deref())?, 0),
        Command::Tree { file } => (tree(&open(file)?)?, 0),
        Command::Diff { old, new, addresses } => {
            let diff = open(old)?.diff(&open(new)?, *addresses).map_err(lacks)?;
            let same = diff.changes.is_empty();
            (diff.to_string(), u8::from(!same))
        }
        Command::Export { file } => {
            let text = serde_json::to_string_pretty(&export(&open(file)?)?);
            (text.map_err(|e| Failure::new(e.to_string()))? + "\n", 0)
        }
    };
    print(&clean(&text));
    Ok(code)
}

fn open(path: &Path) -> Result<Arc<Snapshot>, Failure> {
    Snapshot::open(path).map_err(|e| Failure::new(e.to_string()))
}

fn lacks(error: SnapshotError) -> Failure {
    Failure::new(error.to_string())
}

fn show(snapshot: &Arc<Snapshot>, name: Option<&str>) -> Result<String, Failure> {
    let Some(name) = name else { return Ok(snapshot.dump()) };
    match snapshot.map(name) {
        Ok(map) => Ok(map.dump()),
        Err(no_map @ SnapshotError::MapNotFound { .. }) => match snapshot.global(name) {
            Ok(field) => Ok(field.dump()),
            // A name without a dot is as likely a variable's.
            Err(SnapshotError::VarNotFound { available, .. }) if available.is_empty() => {
                Err(lacks(no_map))
            }
            Err(error @ SnapshotError::VarNotFound { .. }) => {
                Err(Failure::new(format!("{no_map}\n{error}")))
            }
            Err(error) => Err(lacks(error)),
        },
        Err(error) => Err(lacks(error)),
    }
}

fn tree(snapshot: &Arc<Snapshot>) -> Result<String, Failure> {
    let mut out = format!("{}\n", snapshot.headline());
    for map in snapshot.maps().map_err(lacks)? {
        out.push_str(&format!("  {}\n", map.headline()));
        if let Some(why) = map.incomplete() {
            out.push_str(&format!("    incomplete: {why}\n"));
        }
    }
    Ok(out)
}

fn export(snapshot: &Arc<Snapshot>) -> Result<Value, Failure> {
    let maps = snapshot.maps().map_err(lacks)?;
    Ok(json!({
        "tag": snapshot.tag(),
        "elapsed_ms": snapshot.elapsed_ms(),
        "pause": snapshot.pause(),
        "phase": snapshot.phase(),
        "torn": snapshot.torn(),
        "maps": maps.iter().map(export_map).collect::<Vec<_>>(),
    }))
}

fn export_map(map: &Map) -> Value {
    let attrs = map.attrs();
    let cpus = map.cpus().ok();
    let entries: Vec<Value> = map
        .known_entries()
        .map(|entry| {
            let value = match cpus {
                None => value_of(&entry),
                Some(cpus) => (0..cpus)
                    .map(|cpu| {
                        let narrowed = i64::try_from(cpu).ok().and_then(|n| entry.cpu(n).ok());
                        narrowed.as_ref().map_or(Value::Null, value_of)
                    })
                    .collect(),
            };
            match map.is_indexed() {
                true => json!({ "value": value }),
                false => json!({ "key": field(&entry.key(), 0), "value": value }),
            }
        })
        .collect();
    json!({
        "name": map.name(),
        "id": attrs.id,
        "kind": attrs.kind,
        "max_entries": attrs.max_entries,
        "per_cpu": cpus.is_some(),
        "torn": map.torn(),
        "incomplete": map.incomplete(),
        "entries": entries,
    })
}

fn value_of(entry: &Entry) -> Value {
    entry.value().map_or(Value::Null, |value| field(&value, 0))
}

/// Levels of members and elements.
const MAX_LEVELS: usize = 32;

fn field(f: &Field, level: usize) -> Value {
    if level < MAX_LEVELS {
        match f.kind() {
            FieldKind::Struct | FieldKind::Union => {
                let names = f.members().unwrap_or_default().into_iter();
                let member =
                    |name: String| Some((name.clone(), field(&f.get(&name).ok()?, level + 1)));
                return Value::Object(names.filter_map(member).collect::<Object<_, _>>());
            }
            FieldKind::Array => {
                let elements = f.as_array().unwrap_or_default();
                return elements.iter().map(|element| field(element, level + 1)).collect();
            }
            _ => {}
        }
    }
    match f.leaf() {
        Ok(Some(Scalar::Int(n))) => n.into(),
        Ok(Some(Scalar::U64(n))) => n.into(),
        Ok(Some(Scalar::Float(x))) => x.into(),
        Ok(Some(Scalar::Bool(b))) => b.into(),
        Ok(Some(Scalar::Str(s))) => s.into(),
        Ok(Some(Scalar::Enum(e))) => e.name().map_or_else(|| json!(e.value() as i64), Into::into),
        // Bytes without a type, and what has no value.
        _ => f.inline(1 << 16).into(),
    }
}
