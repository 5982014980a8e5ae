//! The Rhai surface: the engine, its packages, and how a script's errors are told.

#[allow(dead_code)]
pub(crate) mod register;
