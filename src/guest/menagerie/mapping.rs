//! Memory of maps that is mapped into this process.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Memory of a map.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

impl Mapping {
    /// `len` bytes from `offset` on, to read and to write.
    pub(crate) fn writable(fd: &OwnedFd, offset: usize, len: usize) -> io::Result<Mapping> {
        Mapping::new(fd, offset, len, true)
    }

    /// The same, only to read.
    pub(crate) fn readable(fd: &OwnedFd, offset: usize, len: usize) -> io::Result<Mapping> {
        Mapping::new(fd, offset, len, false)
    }

    fn new(fd: &OwnedFd, offset: usize, len: usize, writable: bool) -> io::Result<Mapping> {
        let write = if writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        let (prot, flags) = (ProtFlags::READ | write, MapFlags::SHARED);
        // SAFETY: the kernel chooses a free range, which nothing else in this process uses.
        #[allow(unsafe_code)]
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, fd, offset as u64)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { start, len, writable })
    }

    /// Where it lies.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(self.writable && at + bytes.len() <= self.len);
        // SAFETY: the range lies in the mapping, which lives as long as this and may be written;
        // nobody has a reference into it.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at).as_ptr(), bytes.len());
        }
    }

    pub(crate) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut out = vec![0; len];
        // SAFETY: as in `write`, and `out` is as long.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.add(at).as_ptr(), out.as_mut_ptr(), len);
        }
        out
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and no reference into it is left.
        #[allow(unsafe_code)]
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
