//! What KVM says when it cannot go on: an instruction that it cannot carry out is a guest's doing as
//! often as a gap in KVM's emulator, so what is known of it is told.

use std::fmt::Write as _;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// `KVM_INTERNAL_ERROR_EMULATION`, `.._SIMUL_EX`, `.._DELIVERY_EV`, `.._UNEXPECTED_EXIT_REASON`: see
/// `KVM_EXIT_INTERNAL_ERROR` in `Documentation/virt/kvm/api.rst`.
const EMULATION: u32 = 1;
const WHAT: [&str; 5] = [
    "for a reason without a name",
    "an instruction that it cannot carry out",
    "two exceptions at once",
    "an event that could not be delivered",
    "an exit that it does not know",
];
/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`
const HAS_BYTES: u64 = 1;

/// In words, after a `KVM_EXIT_INTERNAL_ERROR`.
pub(super) fn describe(cpu: usize, fd: &mut VcpuFd) -> String {
    let (suberror, bytes) = reported(fd.get_kvm_run());
    let mut text = format!("KVM gave CPU {cpu} up");
    match WHAT.get(suberror as usize) {
        Some(what) => {
            let _ = write!(text, ": {what}");
        }
        None => {
            let _ = write!(text, " with internal error {suberror}");
        }
    }
    if let Ok(regs) = fd.get_regs() {
        let _ = write!(text, ", at rip {:#x}", regs.rip);
    }
    if !bytes.is_empty() {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = write!(text, " ({})", bytes.join(" "));
    }
    text
}

/// The kind of error, and the instruction's bytes where KVM gives them.
fn reported(run: &kvm_run) -> (u32, Vec<u8>) {
    // SAFETY: KVM has just left with an internal error, which is what these members of the union
    // are for; they are plain integers, for which all bits are valid.
    #[allow(unsafe_code)]
    unsafe {
        let internal = run.__bindgen_anon_1.internal;
        let failure = run.__bindgen_anon_1.emulation_failure;
        let gives =
            internal.suberror == EMULATION && internal.ndata >= 4 && failure.flags & HAS_BYTES != 0;
        let instruction = failure.__bindgen_anon_1.__bindgen_anon_1;
        let len = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        let bytes = if gives { instruction.insn_bytes[..len].to_vec() } else { Vec::new() };
        (internal.suberror, bytes)
    }
}
