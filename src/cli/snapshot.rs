//! `cryoscope snapshot`: what is in a file that a script has saved.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;
use serde_json::ser::Formatter;
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
    /// List the maps of a snapshot, and what there is of the kernel
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
            let snapshot = open(file)?;
            let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
            let done = write_json(&export(&snapshot)?, out);
            // A reader that is gone is no error.
            done.or_else(|e| if e.is_io() { Ok(()) } else { Err(Failure::new(e.to_string())) })?;
            return Ok(0);
        }
    };
    print(&clean(&text));
    Ok(code)
}

/// Writes JSON as it comes, to be read by people as well: a snapshot can have a hundred megabytes.
fn write_json(value: &impl Serialize, mut out: impl Write) -> serde_json::Result<()> {
    let formatter = Clean::default();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(serde_json::Error::io)
}

/// Two spaces a level, as serde_json's own, but written in one piece: there are millions of lines.
/// And strings that a terminal does not obey.
#[derive(Default)]
struct Clean {
    level: usize,
    /// Whether anything is in the list or object that is being written.
    filled: bool,
}

impl Clean {
    fn begin(&mut self, w: &mut (impl ?Sized + Write), mark: &[u8]) -> io::Result<()> {
        (self.level, self.filled) = (self.level + 1, false);
        w.write_all(mark)
    }

    fn end(&mut self, w: &mut (impl ?Sized + Write), mark: &[u8]) -> io::Result<()> {
        self.level = self.level.saturating_sub(1);
        if self.filled {
            self.line(w, b"\n")?;
        }
        self.filled = true;
        w.write_all(mark)
    }

    /// Ends a line and indents the next.
    fn line(&self, w: &mut (impl ?Sized + Write), end: &[u8]) -> io::Result<()> {
        const SPACES: [u8; 32] = [b' '; 32];
        w.write_all(end)?;
        let mut left = 2 * self.level;
        while left > 0 {
            let n = left.min(SPACES.len());
            w.write_all(&SPACES[..n])?;
            left -= n;
        }
        Ok(())
    }

    fn next(&self, w: &mut (impl ?Sized + Write), first: bool) -> io::Result<()> {
        self.line(w, if first { b"\n" } else { b",\n" })
    }
}

impl Formatter for Clean {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        w: &mut W,
        part: &str,
    ) -> io::Result<()> {
        let plain = part.bytes().all(|b| matches!(b, b' '..=b'~'));
        if plain { w.write_all(part.as_bytes()) } else { w.write_all(clean(part).as_bytes()) }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.begin(w, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.end(w, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
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
    for sched in snapshot.scheds().unwrap_or_default() {
        let path = clean(sched.path().unwrap_or("?"));
        out.push_str(&format!("  scheduler {path}: {}\n", sched.summary()));
    }
    for (label, text) in snapshot.kernel_counts() {
        out.push_str(&format!("  {label}: {text}\n"));
    }
    let live = snapshot.live_maps();
    for (i, map) in snapshot.maps().map_err(lacks)?.iter().enumerate() {
        let mark = if live.get(i) == Some(&true) { ", live" } else { "" };
        out.push_str(&format!("  {}{mark}\n", map.headline()));
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
        kernel: snapshot.kernel_as_json(),
        maps: maps.iter().map(export_map).collect(),
        overshoot_us: snapshot.overshoot_us(),
        pause: json!(snapshot.pause()),
        phase: snapshot.phase().map(str::to_owned),
        tag: snapshot.tag().to_owned(),
        torn: snapshot.torn().to_vec(),
        trigger: json!(snapshot.trigger()),
        version: EXPORT_VERSION,
    })
}

/// Raised when a member goes or means something else; members may be added without that.
const EXPORT_VERSION: u32 = 1;

/// Members in the order of their names, as everywhere in what is exported. `docs/snapshots.md` says
/// what they are.
#[derive(Serialize)]
struct Export<M> {
    elapsed_ms: u64,
    /// `null` when nothing of it was copied.
    kernel: Value,
    maps: Vec<M>,
    /// Of one that was taken because something turned true.
    overshoot_us: Option<u64>,
    pause: Value,
    phase: Option<String>,
    tag: String,
    torn: Vec<String>,
    trigger: Value,
    version: u32,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_obeyed_by_no_terminal() {
        let mut out = Vec::new();
        let value = json!({ "list": [1, { "name": "a\u{202e}b\u{1b}\"é" }], "none": null });
        write_json(&value, &mut out).unwrap();
        let plain = json!({ "a": [], "b": {}, "c": [[], [1, [2]], {}], "d": { "e": null } });
        let mut as_serde = Vec::new();
        write_json(&plain, &mut as_serde).unwrap();
        let pretty = serde_json::to_string_pretty(&plain).unwrap();
        assert_eq!(String::from_utf8(as_serde).unwrap(), pretty + "\n");
        let want = "{\n  \"list\": [\n    1,\n    {\n      \"name\": \"a·b\\u001b\\\"é\"\n    }\n  \
                    ],\n  \"none\": null\n}\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
}
