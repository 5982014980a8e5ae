//! Memory of this process alone, which huge pages back wherever the host has some to give.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::param::page_size;

/// The size of a huge page, and what the address of one is a multiple of.
const HUGE: usize = 2 << 20;
/// What a word of the page map says of a page that is in RAM, or has gone to swap
/// (`Documentation/admin-guide/mm/pagemap.rst`).
const THERE: u64 = 3 << 62;
/// Words of it that are read at a time.
const WORDS: usize = 8192;

/// A stretch of memory, unmapped with this value. It reads as zeros until it is written.
pub(super) struct Own {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the value is an address that it alone unmaps; what lies there is accessed by `vm-memory`
// with volatile copies, from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Own {}
// SAFETY: as above; nothing is changed through a shared reference.
#[allow(unsafe_code)]
unsafe impl Sync for Own {}

impl Own {
    /// Maps `len` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// The host's, when it has no room.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let whole = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: asks for a mapping of its own, wherever there is room.
        #[allow(unsafe_code)]
        let base = unsafe { mmap_anonymous(null_mut(), whole, prot, flags | MapFlags::NORESERVE)? };
        let head = base.addr().wrapping_neg() % HUGE;
        let at = base.cast::<u8>().wrapping_add(head);
        // SAFETY: these are the parts of the new mapping before and behind the stretch that is
        // kept; nobody has seen them. What cannot be given back stays, and costs nothing.
        #[allow(unsafe_code)]
        unsafe {
            if head > 0 {
                let _ = munmap(base, head);
            }
            let _ = munmap(at.wrapping_add(len).cast(), HUGE - head);
        }
        let own = Own { at: NonNull::new(at).ok_or(io::ErrorKind::OutOfMemory)?, len };
        // Programs that are started have no use for it, nor has who looks at a core of ours.
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the range is this mapping; none of these changes what it holds. A host that
            // does not take the advice goes on without.
            #[allow(unsafe_code)]
            let _ = unsafe { madvise(own.at.as_ptr().cast(), len, advice) };
        }
        Ok(own)
    }

    /// Where it begins.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// The runs of it that hold something, ascending; all of it if the host does not tell.
    /// `pages` is `/proc/self/pagemap`.
    pub(super) fn populated(&self, pages: &File) -> Vec<Range<usize>> {
        let (page, first) = (page_size(), self.at.addr().get() / page_size());
        let (mut runs, mut at) = (Vec::<Range<usize>>::new(), 0);
        let mut words = vec![0; WORDS * 8];
        while at * page < self.len {
            let count = WORDS.min(self.len.div_ceil(page) - at);
            let piece = &mut words[..count * 8];
            if pages.read_exact_at(piece, (first + at) as u64 * 8).is_err() {
                return std::iter::once(0..self.len).collect();
            }
            for word in piece.as_chunks::<8>().0 {
                let run = at * page..(at + 1) * page;
                at += 1;
                if u64::from_ne_bytes(*word) & THERE == 0 {
                    continue;
                }
                match runs.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => runs.push(run),
                }
            }
        }
        runs
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and whoever used it is gone.
        #[allow(unsafe_code)]
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_and_nothing_else() {
        let own = Own::new(64 << 20).unwrap();
        assert_eq!(own.as_ptr().addr() % HUGE, 0);
        let pages = File::open("/proc/self/pagemap").unwrap();
        assert!(own.populated(&pages).is_empty());
        for at in [5 << 20, 47 << 20, (64 << 20) - 1] {
            // SAFETY: inside the mapping, which nobody else knows.
            #[allow(unsafe_code)]
            unsafe {
                own.as_ptr().add(at).write_volatile(7);
            }
            let runs = own.populated(&pages);
            assert!(runs.iter().any(|run| run.contains(&at)), "{at} is in none of {runs:?}");
        }
        let runs = own.populated(&pages);
        assert_eq!(runs.len(), 3, "{runs:?}");
        // Where the host gives huge pages, each is one; else a small one.
        assert!(runs.iter().all(|run| run.len() <= HUGE && run.end <= 64 << 20), "{runs:?}");
        let unknown = File::open("/dev/null").unwrap();
        let all = own.populated(&unknown);
        assert!(all.len() == 1 && all[0] == (0..64 << 20), "anything may be there: {all:?}");
    }

    #[test]
    fn it_is_given_back() {
        let mapped = |at: usize| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| line.starts_with(&format!("{at:x}-")))
        };
        let is_given_back = || {
            let own = Own::new(6 << 20).unwrap();
            let at = own.as_ptr().addr();
            assert!(mapped(at));
            drop(own);
            !mapped(at)
        };
        // Another thread may have mapped something else there by then.
        assert!((0..100).any(|_| is_given_back()));
        assert!(Own::new(usize::MAX / 4).is_err(), "there is no such memory");
    }
}
