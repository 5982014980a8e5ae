//! An allocator that counts, so that an input that makes us allocate beyond all measure is found
//! instead of being survived by a machine with much memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes that may be held at any one time, of everything in the process. A freeze may copy ten MiB
/// here (`ram.rs`); what a small file may claim to unpack to is most of it.
pub const CAP: usize = 512 << 20;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

static DYING: AtomicBool = AtomicBool::new(false);

/// What each of two threads is at, for the message: the target's place in the list of them, and
/// 32 bits with the input's number.
pub static RUNNING: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// An input's name.
pub fn named(running: &AtomicU64) -> String {
    let running = running.load(Relaxed);
    let target = super::TARGETS.get((running >> 32) as usize).unwrap_or(&"?");
    format!("{target}:{}", running & 0xffff_ffff)
}

/// The system's allocator, counting.
pub struct Counting;

/// Most bytes that were held since the last call.
pub fn take_peak() -> usize {
    PEAK.swap(HELD.load(Relaxed), Relaxed)
}

fn add(len: usize) {
    let held = HELD.fetch_add(len, Relaxed).saturating_add(len);
    PEAK.fetch_max(held, Relaxed);
    // The message itself may allocate.
    if held > CAP && !DYING.swap(true, Relaxed) {
        let running = RUNNING.each_ref().map(named);
        eprintln!("{len} more bytes would be more than {CAP}; running: {running:?}");
        eprintln!("{}", std::backtrace::Backtrace::force_capture());
        std::process::abort();
    }
}

fn sub(len: usize) {
    HELD.fetch_sub(len, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        sub(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        match new.checked_sub(layout.size()) {
            Some(more) => add(more),
            None => sub(layout.size() - new),
        }
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, new) }
    }
}
