//! cryoscope: a scriptable laboratory for Linux schedulers.
//!
//! The way of the data:
//!
//! ```text
//! script ──declares──▶ scenario ──cell──▶ vm (engine) ──boots──▶ guest agent (PID 1) ──▶ scheduler, workers
//!                                           │  ▲ frames
//!                                 guest RAM │  │ pause / resume
//!                                           ▼  │
//!  verdict ◀─ patterns ◀─ series ◀─ snapshot ◀─ freeze ◀── introspect (paging, symbols, BTF, maps)
//! ```
//!
//! # The import law
//!
//! Each module may import those named here and nothing else of ours; `tests/tidy.rs` enforces it.
//!
//! | module | may import | job |
//! |---|---|---|
//! | [`child`] | | child processes that end with us |
//! | [`mem`] | | guest physical memory |
//! | [`wire`] | | frames between host and guest |
//! | [`btf`] | | BTF as a graph of types |
//! | [`words`] | | names that were meant, errors of the system; everything but a leaf may import it |
//! | [`kernel`] | `btf`, `child` | kernel images: find, fetch, unpack, cache |
//! | [`scheduler`] | `btf`, `kernel`, `child` | a scheduler spec becomes files to stage |
//! | [`vm`] | `mem`, `wire`, `kernel`, `scheduler`, `child` | machines: topology, initramfs, channel, engines |
//! | [`introspect`] | `mem`, `btf` | paging, symbols, typed reads, BPF maps, from RAM alone |
//! | [`snapshot`] | `btf`; `introspect` and `mem` in `capture.rs`, `decoded.rs`, `edit.rs`, `monitor.rs`, `points.rs`, `ram.rs` and `symbols.rs` only | what was copied at a freeze, read by name |
//! | [`series`] | `snapshot` | samples over time, projections, temporal patterns |
//! | [`freeze`] | `vm`, `snapshot`, `mem` | stop, copy, go on |
//! | [`scenario`] | all of the above | declarations, cells, verdicts, reports |
//! | [`script`] | all of the above | the Rhai surface |
//! | [`cli`] | all of the above | subcommands |
//!
//! The guest agent (`src/guest/`) is a binary of its own that uses [`wire`] alone.
//! `introspect` and `vm` never meet, so all introspection also runs on a stored image.

pub mod btf;
pub mod child;
pub mod cli;
pub mod freeze;
pub mod introspect;
pub mod kernel;
pub mod mem;
pub mod scenario;
pub mod scheduler;
pub mod script;
pub mod series;
pub mod snapshot;
pub mod vm;
pub mod wire;
pub mod words;
