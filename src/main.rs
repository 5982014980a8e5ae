//! The `cryoscope` command.

fn main() {}
