//! A CPU's TSC as an offset from the host's: `KVM_VCPU_TSC_CTRL` in Linux's
//! `Documentation/virt/kvm/devices/vcpu.rst`.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::vm::VmError;

/// `KVM_SET_DEVICE_ATTR` and `KVM_GET_DEVICE_ATTR`.
const SET: libc::c_ulong = 0x4018_aee1;
const GET: libc::c_ulong = 0x4018_aee2;

/// The host's TSC.
pub(super) fn now() -> u64 {
    // SAFETY: reads a counter that every x86-64 CPU has, and that programs may read.
    #[allow(unsafe_code)]
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

/// Asks for the attribute at `value`, or sets it from there; whether KVM did.
fn attribute(fd: &VcpuFd, request: libc::c_ulong, value: &mut u64) -> bool {
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(value) as u64,
    };
    // SAFETY: both requests take this struct, and read or write the eight bytes at `addr`, which
    // `value` borrows for as long as the call takes.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const attr) };
    done == 0
}

/// What is added to the host's TSC; `None` where KVM does not tell (before Linux 5.16).
pub(super) fn offset(fd: &VcpuFd) -> Option<u64> {
    let mut value = 0;
    attribute(fd, GET, &mut value).then_some(value)
}

/// Sets that; whether it could be.
pub(super) fn set_offset(fd: &VcpuFd, mut offset: u64) -> bool {
    attribute(fd, SET, &mut offset)
}

/// `IA32_TSC` and `IA32_TSC_DEADLINE`, with values.
pub(super) fn timers(values: [u64; 2]) -> Result<Msrs, VmError> {
    const TSC: u32 = 0x10;
    const DEADLINE: u32 = 0x6e0;
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    let entries: Vec<_> = [TSC, DEADLINE].into_iter().zip(values).map(entry).collect();
    Msrs::from_entries(&entries)
        .map_err(|e| VmError::Host { what: "read a CPU's clock".into(), reason: format!("{e:?}") })
}
