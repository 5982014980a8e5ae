//! Programs of a few instructions, for maps that only programs fill.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libbpf_rs::libbpf_sys as b;

use crate::maps::owned;

/// Kinds of instructions (include/uapi/linux/bpf.h).
const MOVE: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD: u8 = 0x18;
/// `BPF_PSEUDO_MAP_FD`: the number that is loaded is a map's descriptor.
const MAP: u8 = 1;
/// Functions of the kernel's.
const GET_STACKID: i32 = 27;
const GET_LOCAL_STORAGE: i32 = 81;

fn insn(code: u8, to: u8, from: u8, imm: i32) -> b::bpf_insn {
    let mut insn = b::bpf_insn { code, imm, ..Default::default() };
    insn.set_dst_reg(to);
    insn.set_src_reg(from);
    insn
}

/// `register = number`.
fn number(register: u8, n: i32) -> b::bpf_insn {
    insn(MOVE, register, 0, n)
}

/// `register = &map`, in two instructions.
fn map(register: u8, fd: &OwnedFd) -> [b::bpf_insn; 2] {
    [insn(LOAD, register, MAP, fd.as_raw_fd()), insn(0, 0, 0, 0)]
}

/// `return n`.
fn end(n: i32) -> [b::bpf_insn; 2] {
    [number(0, n), insn(EXIT, 0, 0, 0)]
}

fn load(
    kind: b::bpf_prog_type,
    attach: b::bpf_attach_type,
    name: &CStr,
    code: &[b::bpf_insn],
) -> io::Result<OwnedFd> {
    let mut opts = b::bpf_prog_load_opts {
        sz: size_of::<b::bpf_prog_load_opts>() as _,
        expected_attach_type: attach,
        ..Default::default()
    };
    // SAFETY: what is pointed to outlives the call; the descriptor is new and owned by nobody
    // else.
    #[allow(unsafe_code)]
    unsafe {
        let (name, licence) = (name.as_ptr(), c"GPL".as_ptr());
        owned(b::bpf_prog_load(kind, name, licence, code.as_ptr(), code.len() as _, &raw mut opts))
    }
}

/// A program that lets every packet pass, for maps that have programs in their entries.
pub(super) fn pass(attach: b::bpf_attach_type) -> io::Result<OwnedFd> {
    /// `XDP_PASS`.
    const PASS: i32 = 2;
    load(b::BPF_PROG_TYPE_XDP, attach, c"pass", &end(PASS))
}

/// A program that puts the stack of whom it interrupts into a map of stacks, with `flags`.
pub(super) fn takes_stacks(stacks: &OwnedFd, flags: u32) -> io::Result<OwnedFd> {
    let flags = [number(3, flags as i32), insn(CALL, 0, 0, GET_STACKID)];
    let code = [map(2, stacks), flags, end(0)].concat();
    load(b::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, c"takes_stacks", &code)
}

/// A program for cgroups that has storage in a map, and lets packets pass.
pub(super) fn has_storage(storage: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = [number(2, 0), insn(CALL, 0, 0, GET_LOCAL_STORAGE)];
    let code = [map(1, storage), flags, end(1)].concat();
    load(b::BPF_PROG_TYPE_CGROUP_SKB, b::BPF_CGROUP_INET_INGRESS, c"has_storage", &code)
}

/// A program's id.
pub(super) fn id_of(prog: &OwnedFd) -> io::Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", prog.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not tell the program's id"))
}
