//! QEMU's traps: which are set, and which of them a stop was about.

use std::time::Duration;

use serde_json::json;

use super::gdb::{Gdb, GdbError, Stop};
use super::{CONTROL, Qemu};
use crate::vm::trap::check;
use crate::vm::{Engine, Trap, TrapWake, Trapped, VmError};

/// Where QEMU's gdbstub is to listen: a stream that is connected since its start.
const STUB: &str = "gdbserver chardev:gdb";

/// The traps of a machine.
pub(super) struct Traps {
    gdb: Gdb,
    /// Whether there is a stub at the other end. It is made when it is first needed: making it stops
    /// the machine.
    attached: bool,
    set: Vec<Trap>,
    hits: Vec<Trapped>,
}

impl Traps {
    pub(super) fn new(gdb: Gdb) -> Self {
        Traps { gdb, attached: false, set: Vec::new(), hits: Vec::new() }
    }

    pub(super) fn on(&self, wake: TrapWake) {
        self.gdb.stops().on(wake.clone());
        if !self.hits.is_empty() {
            wake();
        }
    }

    fn any_hit(&self) -> bool {
        !self.hits.is_empty() || self.gdb.stops().any()
    }
}

impl Qemu {
    pub(super) fn replace_traps(&mut self, traps: &[Trap]) -> Result<(), VmError> {
        check(traps).map_err(|(trap, reason)| VmError::Trap { trap, reason })?;
        if self.traps.set.is_empty() && traps.is_empty() {
            return Ok(());
        }
        let ran = self.paused.is_none();
        self.pause()?;
        let done = self.exchange(traps);
        // A machine that a trap stopped meanwhile stays as it is until somebody has looked.
        if ran && !self.traps.any_hit() {
            self.resume()?;
        }
        done
    }

    /// Sets these in place of the others, or none at all. The machine stands.
    fn exchange(&mut self, traps: &[Trap]) -> Result<(), VmError> {
        // Hits of traps that go now still count.
        self.settle()?;
        self.attach()?;
        for old in std::mem::take(&mut self.traps.set) {
            if traps.contains(&old) {
                self.traps.set.push(old);
            } else {
                self.ask("take a trap away", |gdb, within| gdb.remove(&old, within))?;
            }
        }
        for &trap in traps {
            if self.traps.set.contains(&trap) {
                continue;
            }
            if let Err(error) = self.ask("set a trap", |gdb, within| gdb.insert(&trap, within)) {
                for set in std::mem::take(&mut self.traps.set) {
                    let _ = self.traps.gdb.remove(&set, CONTROL);
                }
                return Err(error);
            }
            self.traps.set.push(trap);
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<(), VmError> {
        if self.traps.attached {
            return Ok(());
        }
        let answer = self.control("human-monitor-command", &json!({ "command-line": STUB }))?;
        let answer = answer.as_str().unwrap_or_default().trim();
        if !answer.starts_with("Waiting for gdb connection") {
            let reason = answer.chars().take(200).collect();
            return Err(VmError::Refused { command: STUB.to_owned(), reason });
        }
        self.traps.attached = true;
        Ok(())
    }

    fn ask(
        &mut self,
        what: &str,
        f: impl FnOnce(&mut Gdb, Duration) -> Result<(), GdbError>,
    ) -> Result<(), VmError> {
        f(&mut self.traps.gdb, CONTROL).map_err(|error| match error {
            // The connection ends a moment before the process is reaped.
            GdbError::Closed(_) if let Some(info) = self.exited() => VmError::Exited(info.into()),
            error => VmError::Refused { command: what.to_owned(), reason: error.to_string() },
        })
    }

    pub(super) fn take_trapped(&mut self) -> Vec<Trapped> {
        // What fails here fails again when the machine is to go on.
        let _ = self.settle();
        std::mem::take(&mut self.traps.hits)
    }

    /// Finds out which traps the stops so far were about, and takes those away that count once.
    /// The machine stands.
    pub(super) fn settle(&mut self) -> Result<(), VmError> {
        for stop in self.traps.gdb.stops().take() {
            let address = self.place(&stop);
            let hit = |trap: &Trap| match *trap {
                Trap::Execute { address: at, .. } => stop.wrote.is_none() && address == Some(at),
                Trap::Write { address: at, .. } => stop.wrote == Some(at),
            };
            let hit: Vec<Trap> = self.traps.set.iter().copied().filter(hit).collect();
            for trap in hit {
                self.traps.hits.push(Trapped { trap, cpu: stop.cpu, at: stop.at });
                if matches!(trap, Trap::Execute { .. }) {
                    self.traps.set.retain(|set| *set != trap);
                    self.ask("take a trap away", |gdb, within| gdb.remove(&trap, within))?;
                }
            }
        }
        Ok(())
    }

    /// Where the CPU is that a stop was about.
    fn place(&mut self, stop: &Stop) -> Option<u64> {
        let executes = self.traps.set.iter().any(|trap| matches!(trap, Trap::Execute { .. }));
        if !executes || stop.wrote.is_some() {
            return None;
        }
        self.registers(stop.cpu?).ok()?.values.get("rip").copied()
    }
}
