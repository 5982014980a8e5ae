//! Buffers for copies, kept from one copy to the next.
//!
//! Memory that a process has just been given costs a page fault per page when it is written
//! first, which would make up most of the time for which a machine is stopped.

use std::sync::{Mutex, PoisonError};

/// Smaller buffers are not worth keeping: the allocator has them at hand.
const SMALL: usize = 16 << 10;

/// Buffers that were written before, by ascending capacity.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer of `len` bytes, of whatever contents: it is not cleared, which would take as long
    /// as the copy that overwrites it.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        match self.kept(len) {
            Some(mut buffer) => {
                buffer.resize(len, 0);
                buffer
            }
            None => vec![0; len],
        }
    }

    /// An empty buffer with room for `len` bytes.
    pub(super) fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.kept(len).unwrap_or_else(|| Vec::with_capacity(len));
        buffer.clear();
        buffer
    }

    /// The smallest kept buffer with room for `len` bytes.
    fn kept(&self, len: usize) -> Option<Vec<u8>> {
        if len < SMALL {
            return None;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = free.partition_point(|b| b.capacity() < len);
        // One that is much too large is left to a copy that needs it.
        let fits = free.get(fit).is_some_and(|b| b.capacity() / 2 <= len);
        fits.then(|| free.remove(fit))
    }

    /// Keeps `buffers` for later, and drops those kept before.
    pub(super) fn keep(&self, buffers: impl Iterator<Item = Vec<u8>>) {
        let mut kept: Vec<Vec<u8>> = buffers.filter(|b| b.capacity() >= SMALL).collect();
        kept.sort_by_key(Vec::capacity);
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_kept_buffer_that_fits_is_used_once() {
        let pool = Buffers::default();
        let sizes = [SMALL, 8 * SMALL, 3 * SMALL, 10];
        pool.keep(sizes.iter().map(|n| Vec::with_capacity(*n)));
        let first = pool.take(2 * SMALL);
        assert_eq!((first.len(), first.capacity()), (2 * SMALL, 3 * SMALL));
        assert!(pool.take(2 * SMALL).capacity() < 3 * SMALL, "8 is too large for 2");
        assert_eq!(pool.take_empty(7 * SMALL).capacity(), 8 * SMALL);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }
}
