//! What code is called that the kernel made while it ran: BPF programs and trampolines
//! (`struct bpf_ksym`, include/linux/bpf.h; the list `bpf_kallsyms`, kernel/bpf/core.c).

use super::Copy;

/// Pieces of such code that are copied at most.
const MAX_MADE: usize = 4096;
/// `struct list_head`.
const HEAD: u64 = 16;

impl Copy<'_> {
    /// Copies the list of such code, so that addresses in it have names. As far as it can be
    /// followed: a name that is missing is no error of the state's.
    pub(super) fn made_code(&mut self) {
        let head = self.kernel.symbols().get("bpf_kallsyms");
        let Some((head, (node, size))) = head.zip(self.layout.ksym) else { return };
        if self.piece(head.0, HEAD).is_err() {
            return;
        }
        let mut at = self.raw.memory.u64(head.0).unwrap_or_default();
        for _ in 0..MAX_MADE {
            if at == head.0 || self.piece(at.wrapping_sub(node), size).is_err() {
                return;
            }
            at = self.raw.memory.u64(at).unwrap_or_default();
        }
    }
}
