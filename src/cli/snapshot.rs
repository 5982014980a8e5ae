//! `cryoscope snapshot`: what is in a file that a script has saved.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Failure, print};
use crate::scenario::text::clean;
use crate::snapshot::{Map, Snapshot, SnapshotError};

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

fn export(snapshot: &Arc<Snapshot>) -> Result<impl Serialize + use<>, Failure> {
    let maps = snapshot.maps().map_err(lacks)?;
    Ok(Export {
        elapsed_ms: snapshot.elapsed_ms(),
        maps: maps.iter().map(export_map).collect(),
        pause: json!(snapshot.pause()),
        phase: snapshot.phase().map(str::to_owned),
        tag: snapshot.tag().to_owned(),
        torn: snapshot.torn().to_vec(),
    })
}

/// Members in the order of their names, as everywhere in what is exported.
#[derive(Serialize)]
struct Export<M> {
    elapsed_ms: u64,
    maps: Vec<M>,
    pause: Value,
    phase: Option<String>,
    tag: String,
    torn: Vec<String>,
}

#[derive(Serialize)]
struct ExportedMap<E> {
    entries: E,
    id: u32,
    incomplete: Option<String>,
    kind: String,
    max_entries: u32,
    name: String,
    per_cpu: bool,
    torn: Vec<String>,
}

fn export_map(map: &Map) -> impl Serialize + use<> {
    let attrs = map.attrs();
    ExportedMap {
        entries: map.entries_as_json(),
        id: attrs.id,
        incomplete: map.incomplete().map(str::to_owned),
        kind: attrs.kind.clone(),
        max_entries: attrs.max_entries,
        name: map.name().to_owned(),
        per_cpu: map.cpus().is_ok(),
        torn: map.torn(),
    }
}
