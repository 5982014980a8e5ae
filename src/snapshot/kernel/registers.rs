//! The registers of CPUs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::error::SnapshotResult;
use super::{Cpu, unreadable};

/// A CPU's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRegisters {
    /// Its number.
    pub cpu: u32,
    /// Whether it waited for an interrupt.
    pub halted: bool,
    /// By the architecture's own names in lower case: `rip`, `rsp`, `rflags`, `cr3`, ..
    pub values: BTreeMap<String, u64>,
}

impl CpuRegisters {
    /// Whether it executed a program, not the kernel.
    #[must_use]
    pub fn in_user_mode(&self) -> bool {
        self.values.get("cs").is_some_and(|cs| cs & 3 == 3)
    }
}

impl Cpu {
    /// Its registers.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](super::SnapshotError::MapRenderIncomplete) when they
    /// were not taken.
    pub fn registers(&self) -> SnapshotResult<&CpuRegisters> {
        let state = self.snapshot().kernel_state()?;
        let cpu = self.number();
        state.registers.iter().find(|regs| regs.cpu == cpu).ok_or_else(|| {
            let why = state.registers_incomplete.as_deref().unwrap_or(match state.registers[..] {
                [] => "they were not taken; freeze with t.freeze(\"tag\", #{ registers: true })",
                _ => "the machine has no such CPU",
            });
            unreadable(format!("the registers of CPU {cpu}"), why)
        })
    }
}
