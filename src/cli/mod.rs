//! Subcommands.

pub mod kernel;
