//! The guest agent: PID 1 of the machines that cryoscope boots.

fn main() {}
