//! What can go wrong while a guest kernel is read.

use crate::mem::{Gpa, Kva};

/// The guest kernel, or something in it, could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IntrospectError {
    /// The kernel has not come far enough to be read: try again later.
    #[error("the guest kernel cannot be read yet: {0}")]
    NotYet(String),
    /// This is a kernel, but what it needs to be read is missing or contradicts itself.
    #[error("the guest kernel cannot be read: {0}")]
    Damaged(String),
    /// The kernel was built without something that reading it relies on.
    #[error("the guest kernel was built without {option}: {detail}")]
    NotBuilt {
        /// The configuration option.
        option: &'static str,
        /// How that shows.
        detail: String,
    },
    /// The kernel has no symbol of that name.
    #[error("the guest kernel has no symbol '{name}'{hint}")]
    NoSymbol {
        /// The name asked for.
        name: String,
        /// The nearest name, as the end of the sentence; may be empty.
        hint: String,
    },
    /// The kernel's BTF has no such type, or the type has no such member.
    #[error("{0}")]
    Type(String),
    /// Memory that was to be read is not there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A walk ended early.
    #[error(transparent)]
    Walk(#[from] WalkError),
}

/// A kernel-virtual address range that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {len} bytes at {at}: {cause}")]
pub struct ReadError {
    /// First address asked for.
    pub at: Kva,
    /// Bytes asked for.
    pub len: usize,
    /// What was in the way.
    pub cause: Unreachable,
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The address is not one that the CPU accepts.
    #[error("{0} is not a canonical address")]
    NotCanonical(Kva),
    /// No page is mapped there.
    #[error("no page is mapped at {0}")]
    NotMapped(Kva),
    /// A page is mapped there, but there is no RAM behind it.
    #[error("{at} is mapped to {gpa}, which is not RAM")]
    NotRam {
        /// The kernel-virtual address.
        at: Kva,
        /// Where it leads.
        gpa: Gpa,
    },
    /// A page table is not in RAM.
    #[error("the page table at {0} is not in RAM")]
    NoTable(Gpa),
    /// The range runs over the end of the address space.
    #[error("the range leaves the address space")]
    Wraps,
    /// A string did not end where it should have.
    #[error("no end of the string within {0} bytes")]
    NoEnd(usize),
}

/// A list, tree or table that could not be walked to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// More elements than a walk may visit.
    #[error("the {what} at {at} goes on after {limit} elements")]
    TooLong {
        /// The kind of structure.
        what: &'static str,
        /// Where it begins.
        at: Kva,
        /// How many were visited.
        limit: usize,
    },
    /// An element came up twice.
    #[error("the {what} at {at} runs in a circle: {again} comes up twice")]
    Circle {
        /// The kind of structure.
        what: &'static str,
        /// Where it begins.
        at: Kva,
        /// The element that came up twice.
        again: Kva,
    },
    /// A link does not fit the one before it.
    #[error("the {what} at {at} is damaged: {detail}")]
    Damaged {
        /// The kind of structure.
        what: &'static str,
        /// Where it begins.
        at: Kva,
        /// What does not fit.
        detail: String,
    },
    /// An element could not be read.
    #[error("the {what} at {at} cannot be followed: {cause}")]
    Read {
        /// The kind of structure.
        what: &'static str,
        /// Where it begins.
        at: Kva,
        /// What was in the way.
        cause: ReadError,
    },
}
