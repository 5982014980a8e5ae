//! Frames of zstd. A thread keeps what it packs and unpacks with: making one anew costs more than
//! most frames here, which are one small map's values.

use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

use super::format::LEVEL;

thread_local! {
    static PACKER: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// What the thread has of it, made when it is first asked for.
fn kept<T, R>(
    slot: &RefCell<Option<T>>,
    make: impl FnOnce() -> io::Result<T>,
    with: impl FnOnce(&mut T) -> io::Result<R>,
) -> io::Result<R> {
    let mut slot = slot.borrow_mut();
    let tool = match slot.take() {
        Some(tool) => tool,
        None => make()?,
    };
    with(slot.insert(tool))
}

/// One frame of these bytes.
pub(super) fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    PACKER.with(|slot| kept(slot, || Compressor::new(LEVEL), |packer| packer.compress(bytes)))
}

/// What a frame holds; one that holds more than `len` bytes is an error.
pub(super) fn unpack(packed: &[u8], len: usize) -> io::Result<Vec<u8>> {
    UNPACKER.with(|slot| kept(slot, Decompressor::new, |unpacker| unpacker.decompress(packed, len)))
}
