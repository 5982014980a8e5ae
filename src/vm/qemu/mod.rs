//! The QEMU engine: QEMU's emulator (TCG), so that it runs on any machine.
//!
//! Everything between QEMU and us is a descriptor that it inherits: RAM and the initramfs are
//! memfds, control (QMP), console and frames are socket pairs, the log is a pipe. There is no name
//! in any file system to clean up, and when QEMU ends, so does every stream.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use super::ram::{Ram, memfd, share_out};
use super::{
    Capabilities, Capability, Console, Engine, ExitInfo, ExitKind, ExitWatch, Registers, Stillness,
    Trap, TrapWake, Trapped, VmError, VmSpec, limits,
};
use crate::mem::{GuestMem, MappedMem};
use process::{Launch, Outputs, Process};
use qmp::{Qmp, QmpError};
use traps::Traps;

mod args;
mod gdb;
mod image;
mod process;
mod qmp;
mod registers;
mod traps;
mod version;

pub use version::{OLDEST, Version, version};

/// The most CPUs. All share one host thread: where one takes 2 s of it to boot and 16 take 5 s, 64
/// take 21 s, and each then gets a 64th of what it can do.
const MOST_CPUS: u32 = 64;
/// The most places for CPUs, filled or not: their ids have a byte, of which 255 is everybody.
const MOST_PLACES: u32 = 254;
/// How long QEMU may take until it greets us. It takes 50 ms; a machine that is busy with other
/// things may take many times that.
const GREETING: Duration = Duration::from_secs(30);
/// How long stopping, continuing and queries may take. The emulator looks up from its work every
/// 100 ms at the latest.
const CONTROL: Duration = Duration::from_secs(10);

/// A machine that QEMU emulates.
pub(super) struct Qemu {
    memory: Arc<MappedMem>,
    qmp: Qmp,
    traps: Traps,
    console: Console,
    transport: Option<OwnedFd>,
    /// Since when it stands, and how long it took to stop.
    paused: Option<(Instant, Duration)>,
    /// What the guest noticed of the last standstill.
    stillness: Stillness,
    cpus: u32,
    /// Whether each CPU has a thread of its own.
    parallel: bool,
    process: Process,
}

/// Makes the machine and lets it run; `parallel` gives each CPU a thread of its own.
pub(super) fn start(spec: &VmSpec, parallel: bool) -> Result<Qemu, VmError> {
    limits::check(spec, "qemu", MOST_CPUS)?;
    if let Some(pin) = &spec.pin {
        let asked = pin.to_string();
        let reason =
            "QEMU's emulator runs the CPUs in turns; only the engine kvm pins them, so ask \
                      for that, or leave pin out"
                .to_owned();
        return Err(VmError::Pin { asked, reason });
    }
    let places = args::Grid::of(&spec.topology).cpus();
    if places > MOST_PLACES {
        let topology = spec.topology.clone();
        return Err(VmError::TooUneven { topology, places, most: MOST_PLACES });
    }
    image::check(&spec.boot)?;
    let node_mib = share_out(spec.memory, &spec.topology);
    let ram = Ram::new(&node_mib, args::LOW_MIB, spec.huge_pages, MappedMem::writable)?;
    let refused = |e: io::Error| VmError::Host {
        what: "make the descriptors of a machine".to_owned(),
        reason: e.to_string(),
    };
    let wires = Wires::new(ram.files, &spec.initramfs).map_err(refused)?;
    let args = args::qemu(spec, parallel, &node_mib, &wires.fds);
    let console = Console::new(spec.console_limit);
    let (qmp, feed) = qmp::connection(wires.qmp.try_clone().map_err(refused)?);
    let (gdb, gdb_feed) = gdb::connection(wires.gdb.try_clone().map_err(refused)?);
    let launch = Launch { program: spec.qemu.clone(), args, inherit: wires.inherit };
    let outputs = Outputs {
        console_socket: wires.console.into(),
        console: console.clone(),
        qmp_socket: wires.qmp.into(),
        qmp: feed,
        gdb_socket: wires.gdb.into(),
        gdb: gdb_feed,
        log_pipe: wires.log,
    };
    let process =
        Process::spawn(launch, outputs).map_err(|e| version::spawn_error(&spec.qemu, &e))?;
    let mut qemu = Qemu {
        memory: ram.mem,
        qmp,
        traps: Traps::new(gdb),
        console,
        transport: Some(wires.frames.into()),
        paused: None,
        stillness: Stillness::default(),
        cpus: spec.topology.cpus(),
        parallel,
        process,
    };
    qemu.handshake(spec)?;
    Ok(qemu)
}

/// Whether QEMU itself came to grief, rather than that it refused what it was told.
fn crashed(kind: &ExitKind) -> bool {
    matches!(kind, ExitKind::EngineDied { status } if status.contains("killed by signal"))
}

/// Everything that connects us with QEMU.
struct Wires {
    fds: args::Fds,
    inherit: Vec<OwnedFd>,
    qmp: UnixStream,
    console: UnixStream,
    frames: UnixStream,
    gdb: UnixStream,
    log: OwnedFd,
}

impl Wires {
    fn new(ram: Vec<File>, initramfs: &[u8]) -> io::Result<Self> {
        let mut initrd = memfd("cryoscope-initramfs", initramfs.len() as u64)?;
        initrd.write_all(initramfs)?;
        let (qmp, their_qmp) = UnixStream::pair()?;
        let (console, their_console) = UnixStream::pair()?;
        let (frames, their_frames) = UnixStream::pair()?;
        let (gdb, their_gdb) = UnixStream::pair()?;
        let (log, their_log) = pipe_with(PipeFlags::CLOEXEC)?;
        let fds = args::Fds {
            ram: ram.iter().map(AsRawFd::as_raw_fd).collect(),
            initrd: initrd.as_raw_fd(),
            qmp: their_qmp.as_raw_fd(),
            console: their_console.as_raw_fd(),
            frames: their_frames.as_raw_fd(),
            gdb: their_gdb.as_raw_fd(),
            log: their_log.as_raw_fd(),
        };
        let mut inherit: Vec<OwnedFd> = ram.into_iter().map(OwnedFd::from).collect();
        inherit.extend([initrd.into(), their_qmp.into(), their_console.into()]);
        inherit.extend([their_frames.into(), their_gdb.into(), their_log]);
        Ok(Wires { fds, inherit, qmp, console, frames, gdb, log })
    }
}

impl Qemu {
    /// Waits for QEMU to greet us, and lets the machine go; what keeps it from doing so is found out.
    fn handshake(&mut self, spec: &VmSpec) -> Result<(), VmError> {
        match self.qmp.greeting(GREETING) {
            Ok(found) if found < OLDEST => return Err(version::too_old(&spec.qemu, found)),
            Ok(_) => {}
            Err(e) => {
                let ended = self.exited();
                let info = self.process.stop();
                if ended.is_some() && crashed(&info.kind) && version::version(&spec.qemu).is_ok() {
                    return Err(VmError::Exited(Box::new(info)));
                }
                let said = ended.map_or(e.to_string(), |_| info.to_string());
                return Err(version::diagnose(&spec.qemu, &said));
            }
        }
        self.control("qmp_capabilities", &Value::Null)?;
        self.control("cont", &Value::Null).map(drop)
    }

    /// Carries out a command; the machine's own end is the better reason where there is one.
    fn control(&mut self, command: &str, arguments: &Value) -> Result<Value, VmError> {
        self.control_within(command, arguments, CONTROL)
    }

    fn control_within(
        &mut self,
        command: &str,
        arguments: &Value,
        within: Duration,
    ) -> Result<Value, VmError> {
        self.qmp.execute(command, arguments, within).map_err(|e| match e {
            QmpError::Refused(reason) => VmError::Refused { command: command.to_owned(), reason },
            QmpError::Timeout(waited) => {
                VmError::Timeout { what: format!("QEMU to answer {command:?}"), waited }
            }
            // The connection ends a moment before the process is reaped.
            QmpError::Closed(reason) => match self.process.watch().wait(CONTROL) {
                Some(info) => VmError::Exited(Box::new(info)),
                None => VmError::Refused { command: command.to_owned(), reason },
            },
        })
    }
}

impl Engine for Qemu {
    fn name(&self) -> &'static str {
        if self.parallel { "qemu-tcg-multi" } else { "qemu-tcg" }
    }

    fn capabilities(&self) -> Capabilities {
        use Capability::{
            Breakpoints, Freeze, Llcs, Memory, Nodes, ParallelCpus, Registers, Watchpoints,
        };
        let parallel = self.parallel.then_some(ParallelCpus);
        let always = [Memory, Freeze, Registers, Nodes, Llcs, Watchpoints, Breakpoints];
        always.into_iter().chain(parallel).collect()
    }

    fn memory(&self) -> Arc<dyn GuestMem> {
        self.memory.clone()
    }

    fn pause_within(&mut self, patience: Duration) -> Result<Duration, VmError> {
        let start = Instant::now();
        if self.paused.is_none() {
            if let Err(e) = self.control_within("stop", &Value::Null, patience) {
                // A stop that comes late must not leave the machine standing. Commands are
                // carried out in order, and this one's own failure adds nothing.
                let _ = self.qmp.execute("cont", &Value::Null, Duration::ZERO);
                let VmError::Timeout { waited, .. } = e else { return Err(e) };
                let what = format!(
                    "QEMU to stop its {} CPUs (it does not say which of them did not come)",
                    self.cpus
                );
                return Err(VmError::Timeout { what, waited });
            }
            self.paused = Some((Instant::now(), start.elapsed()));
        }
        Ok(start.elapsed())
    }

    fn resume(&mut self) -> Result<Duration, VmError> {
        let start = Instant::now();
        if let Some((paused, stopping)) = self.paused {
            // What was not asked for is noted: a breakpoint that stays would be hit again at once.
            self.settle()?;
            let (hidden, going) = (paused.elapsed(), Instant::now());
            self.control("cont", &Value::Null)?;
            self.paused = None;
            let slack = stopping + going.elapsed();
            self.stillness = Stillness { hidden: Some(hidden), slack, skew: None };
        }
        Ok(start.elapsed())
    }

    /// QEMU's virtual clock, which the guest's TSC and timers follow under the emulator, stands
    /// still from within `stop` to within `cont`: at least between these, and where within them is
    /// not told.
    fn stillness(&self) -> Stillness {
        self.stillness
    }

    fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
        if cpu >= self.cpus {
            return Err(VmError::NoSuchCpu { cpu, cpus: self.cpus });
        }
        let arguments = json!({ "command-line": "info registers", "cpu-index": cpu });
        let answer = self.control("human-monitor-command", &arguments)?;
        let registers = registers::parse(cpu, answer.as_str().unwrap_or_default());
        if registers.values.is_empty() {
            return Err(VmError::Refused {
                command: "info registers".to_owned(),
                reason: answer.to_string().chars().take(200).collect(),
            });
        }
        Ok(registers)
    }

    fn set_traps(&mut self, traps: &[Trap]) -> Result<(), VmError> {
        self.replace_traps(traps)
    }

    fn on_trap(&mut self, wake: TrapWake) {
        self.traps.on(wake);
    }

    fn trapped(&mut self) -> Vec<Trapped> {
        self.take_trapped()
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    fn take_transport(&mut self) -> Option<OwnedFd> {
        self.transport.take()
    }

    fn exit_watch(&self) -> ExitWatch {
        self.process.watch().clone()
    }

    fn stop(&mut self) -> ExitInfo {
        self.process.stop()
    }
}
