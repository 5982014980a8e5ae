//! What a field is a part of.

use super::{Base, Field, Side};
use crate::snapshot::entry::Entry;

impl Field {
    /// The entry whose value it is a part of, if it is.
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match &self.base {
            Base::Entry(entry, Side::Value) => Some(entry),
            Base::Entry(_, Side::Key) | Base::Kernel(_) => None,
        }
    }
}
