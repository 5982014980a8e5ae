//! The Rhai surface: the engine, its packages, and how a script's errors are told.

#[allow(dead_code, unused_imports)]
mod data;
#[allow(dead_code)]
mod fault;
pub(crate) mod register;
#[allow(dead_code)]
mod source;
#[allow(dead_code)]
pub mod surface;
#[allow(dead_code)]
mod units;
#[allow(dead_code, unused_imports)]
mod values;
