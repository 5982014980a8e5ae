//! The Rhai surface: the engine, its packages, and how a script's errors are told.
//!
//! A script is run twice, by different processes. The parent runs it to learn what it declares
//! ([`collect`]); then a cell runs it again, and the one `scenario(..)` that the cell is for calls
//! its closure there and then ([`run_scenario`]), so that imports, functions, constants and loop
//! variables around it mean what they say.
//!
//! | file | job |
//! |---|---|
//! | `engine.rs` | limits, cancelling, what is registered |
//! | `session.rs` | what the functions of one run share |
//! | `declare.rs` | `scenario`, `boot` and their options |
//! | `vm.rs`, `cgroup.rs` | the live machine |
//! | `expect.rs`, `globals.rs` | judging |
//! | `data.rs`, `values.rs` | snapshots and values |
//! | `statistics.rs` | what the scheduler tells of itself |
//! | `monitor.rs` | what is read while the machine runs |
//! | `series.rs`, `series/` | samples over time, and patterns over them |
//! | `repl.rs`, `repl/` | inputs of the REPL, and what could stand next in one |
//! | `modules.rs` | `import`, and who called whom |
//! | `error.rs`, `explain.rs`, `source.rs` | errors in an author's words, at an author's line |
//! | `register.rs`, `surface.rs` | the reference: written once, read back from the engine |

mod cgroup;
mod data;
mod declare;
mod engine;
mod error;
mod expect;
mod explain;
mod fault;
mod globals;
mod matrix;
mod modules;
mod monitor;
mod options;
pub(crate) mod register;
pub mod repl;
mod run;
mod sampling;
mod series;
mod session;
mod shape;
mod source;
mod statistics;
pub mod surface;
mod topology;
mod units;
mod values;
mod vm;
mod workers;

#[cfg(test)]
pub(crate) mod tests;

pub use error::ScriptError;
use run::finish;
pub use run::{End, ModuleDoc, Reference, collect, reference, run_scenario};
pub use session::Boot;
pub(crate) use units::size;
