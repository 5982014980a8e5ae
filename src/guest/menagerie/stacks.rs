//! Stacks of whatever stops running.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use libbpf_rs::libbpf_sys as b;

use super::{Entries, Maker, Spec, code};
use crate::maps::{Held, owned};

/// Where a CPU changes from one task to another.
const WHERE: &CStr = c"sched_switch";
/// How often this process stops running, for its own stack to be among those.
const STOPS: usize = 20;

impl Maker<'_> {
    /// Stacks in the kernel, in user space, and in files.
    pub(super) fn stacks(&mut self) {
        let kind = b::BPF_MAP_TYPE_STACK_TRACE;
        let spec = Spec { kind, key: 4, value: 8 * 40, entries: 500, ..Spec::default() };
        let (user, files) = (b::BPF_F_USER_STACK, b::BPF_F_STACK_BUILD_ID);
        self.map(Spec { name: "stacks", ..spec }, |map, held| take(map, held, 0));
        // Not a power of two, and shorter than some stacks are.
        let short = Spec { name: "stacks_short", value: 8 * 3, entries: 100, ..spec };
        self.map(short, |map, held| take(map, held, 0));
        self.map(Spec { name: "stacks_user", ..spec }, |map, held| take(map, held, user));
        let spec = Spec { value: 32 * 20, flags: files, ..spec };
        self.map(Spec { name: "stacks_files", ..spec }, |map, held| take(map, held, user));
        self.map(Spec { name: "stacks_mixed", ..spec }, |map, held| take(map, held, 0));
    }
}

/// Has stacks taken for a moment. Nothing is put in once this is over. The program is kept: it is on
/// each stack.
fn take(map: &OwnedFd, held: &mut Held, flags: u32) -> io::Result<Entries> {
    let prog = code::takes_stacks(map, flags)?;
    // SAFETY: the name outlives the call; the descriptor is new and owned by nobody else.
    #[allow(unsafe_code)]
    let taking = unsafe { owned(b::bpf_raw_tracepoint_open(WHERE.as_ptr(), prog.as_raw_fd()))? };
    for _ in 0..STOPS {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(taking);
    held.keep_open(prog);
    Ok(Entries::new())
}
