//! What a CPU that stands has in its registers.

use kvm_bindings::KVM_MP_STATE_HALTED;
use kvm_ioctls::VcpuFd;

use super::host;
use crate::vm::VmError;

/// Registers by their names.
type Values = Vec<(&'static str, u64)>;

/// All that are shown, and whether the CPU is halted.
pub(super) fn read(fd: &VcpuFd) -> Result<(Values, bool), VmError> {
    let what = "read a CPU's registers";
    let r = fd.get_regs().map_err(host(what))?;
    let s = fd.get_sregs().map_err(host(what))?;
    let state = fd.get_mp_state().map_err(host(what))?;
    let values = vec![
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
        ("rflags", r.rflags),
        ("cr0", s.cr0),
        ("cr2", s.cr2),
        ("cr3", s.cr3),
        ("cr4", s.cr4),
        ("efer", s.efer),
        ("fs_base", s.fs.base),
        ("gs_base", s.gs.base),
        ("cs", s.cs.selector.into()),
        ("ss", s.ss.selector.into()),
    ];
    Ok((values, state.mp_state == KVM_MP_STATE_HALTED))
}
