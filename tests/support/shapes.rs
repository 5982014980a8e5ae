//! Shapes of machines that engines are tried with.

/// Nodes that differ in size.
pub(crate) const UNEVEN: &str = "1n2l2c1t+1n1l3c1t@10,17/17,10";
/// A node that has memory only.
pub(crate) const MEMORY_ONLY: &str = "1n1l2c2t:320M+1n:192M@10,31/31,10";
/// From the smallest to many of everything, and these two.
pub(crate) const SHAPES: [&str; 12] = [
    "1n1l1c1t",
    "1n1l2c1t",
    "1n1l2c2t",
    "1n2l1c1t",
    "1n2l2c1t",
    "1n2l3c2t",
    "2n2l1c1t",
    "2n4l2c1t",
    "2n4l2c2t",
    "4n8l2c2t",
    UNEVEN,
    MEMORY_ONLY,
];
