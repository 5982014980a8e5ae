//! A scheduler spec becomes files to stage.

pub mod vmlinux;
