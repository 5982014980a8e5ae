//! Machines: what one is made of ([`VmSpec`]), what it can be asked to do ([`Engine`]), and the
//! engines that make it real.
//!
//! A machine has RAM that this process maps, a console that only prints, and one transport for
//! frames (a virtio-serial port named [`crate::wire::PORT_NAME`]). It lives until it is dropped, stopped, or
//! ends itself; nothing of it outlives this process, however that ends.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::mem::GuestMem;

pub mod channel;
mod closure;
mod console;
pub mod contain;
mod ending;
mod exit;
mod host;
pub mod initramfs;
mod kargs;
mod kvm;
mod limits;
mod qemu;
mod ram;
mod standstill;
pub mod topology;
mod trap;

pub use console::Console;
pub use exit::{ExitInfo, ExitKind, ExitWatch};
pub use kvm::{Breakpoints, KvmSpeed, KvmTraps, exercise_devices, kvm_speed, kvm_traps};
pub use qemu::{OLDEST as OLDEST_QEMU, Version as QemuVersion, version as qemu_version};
pub use standstill::Standstill;
use topology::Topology;
pub use trap::{MOST_EXECUTES, MOST_WRITES, Trap, TrapWake, Trapped};

/// The QEMU program that is looked for.
pub const QEMU: &str = "qemu-system-x86_64";

/// A machine, as plain data.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The kernel and how it is entered.
    pub boot: Boot,
    /// The initial RAM file system, a newc archive, compressed or not.
    pub initramfs: Arc<[u8]>,
    /// Kernel arguments after the engine's own.
    pub kargs: Vec<String>,
    /// Its CPUs, caches and nodes.
    pub topology: Topology,
    /// RAM in bytes, of all nodes together.
    pub memory: u64,
    /// Whether the CPUs offer five levels of page tables (LA57), which kernels then use.
    pub five_level_paging: bool,
    /// Whether the guest may have guests: QEMU's CPUs are AMD's then, with SVM and one LLC.
    pub nested: bool,
    /// Whether RAM is made of the host's huge pages of 2 MiB, of which enough must be reserved.
    pub huge_pages: bool,
    /// CPUs of the host to bind the machine's to, one each, ascending. Our own machine can.
    pub pin: Option<topology::CpuSet>,
    /// How many bytes of console output are kept.
    pub console_limit: usize,
    /// The QEMU program: a path, or a name in `PATH`.
    pub qemu: PathBuf,
}

impl VmSpec {
    /// The usual kind: no further kernel arguments, 1 MiB of console, the QEMU in `PATH`.
    #[must_use]
    pub fn new(boot: Boot, initramfs: Arc<[u8]>, topology: Topology, memory: u64) -> Self {
        VmSpec {
            boot,
            initramfs,
            kargs: Vec::new(),
            topology,
            memory,
            five_level_paging: false,
            nested: false,
            huge_pages: false,
            pin: None,
            console_limit: 1 << 20,
            qemu: PathBuf::from(QEMU),
        }
    }
}

/// A kernel and how it is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// An unpacked ELF `vmlinux`, entered through its PVH note: starts sooner, has no KASLR.
    Elf(PathBuf),
    /// A `bzImage` that unpacks itself in the guest: KASLR as on real machines.
    BzImage(PathBuf),
}

/// Which engine to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// Our own machine where KVM is real, QEMU's emulator elsewhere.
    #[default]
    Auto,
    /// QEMU with its emulator; all CPUs take turns on one thread. Slower with several CPUs, and
    /// the only way in which emulated stock kernels never crash for reasons of the emulator's own.
    Qemu,
    /// QEMU with its emulator, a thread for each CPU. Text patching by one CPU races with others'
    /// translated code: one boot in ten ends in [`ExitKind::EngineFault`], or hangs.
    QemuMulti,
    /// Our own machine on `/dev/kvm`.
    Kvm,
}

impl EngineChoice {
    /// All there are.
    pub const ALL: [EngineChoice; 4] =
        [EngineChoice::Auto, EngineChoice::Qemu, EngineChoice::QemuMulti, EngineChoice::Kvm];

    /// Their names on the command line, in the same order.
    pub const NAMES: [&str; 4] =
        [Self::ALL[0].name(), Self::ALL[1].name(), Self::ALL[2].name(), Self::ALL[3].name()];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Qemu => "qemu",
            EngineChoice::QemuMulti => "qemu-multi",
            EngineChoice::Kvm => "kvm",
        }
    }
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(asked: &str) -> Result<Self, Self::Err> {
        EngineChoice::ALL.into_iter().find(|engine| engine.name() == asked).ok_or_else(|| {
            let names = EngineChoice::NAMES.join(", ");
            format!("there is no engine {asked:?}; there are {names}")
        })
    }
}

/// Something that an engine can or cannot do; a scenario names what it needs in `requires`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Guest memory can be read while the guest runs.
    Memory,
    /// All CPUs can be stopped and continued.
    Freeze,
    /// CPU registers can be read while stopped.
    Registers,
    /// NUMA nodes are shown to the guest.
    Nodes,
    /// Last-level caches are shown to the guest.
    Llcs,
    /// CPUs run at the same time, each on a host thread of its own.
    ParallelCpus,
    /// Guest instructions run on the host's CPU, so durations mean something.
    HardwareTime,
    /// The machine can be made to stand still when a CPU writes to a place ([`Trap::Write`]).
    Watchpoints,
    /// The machine can be made to stand still at an instruction ([`Trap::Execute`]).
    Breakpoints,
}

impl Capability {
    /// All there are.
    pub const ALL: [Capability; 9] = [
        Capability::Memory,
        Capability::Freeze,
        Capability::Registers,
        Capability::Nodes,
        Capability::Llcs,
        Capability::ParallelCpus,
        Capability::HardwareTime,
        Capability::Watchpoints,
        Capability::Breakpoints,
    ];

    /// Its name in scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Capability::Memory => "memory",
            Capability::Freeze => "freeze",
            Capability::Registers => "registers",
            Capability::Nodes => "nodes",
            Capability::Llcs => "llcs",
            Capability::ParallelCpus => "parallel_cpus",
            Capability::HardwareTime => "hardware_time",
            Capability::Watchpoints => "watchpoints",
            Capability::Breakpoints => "breakpoints",
        }
    }
}

impl FromStr for Capability {
    type Err = String;

    fn from_str(asked: &str) -> Result<Self, Self::Err> {
        Capability::ALL.into_iter().find(|c| c.name() == asked).ok_or_else(|| {
            let names = Capability::ALL.map(Capability::name).join(", ");
            format!("there is no engine capability {asked:?}; there are {names}")
        })
    }
}

/// What an engine can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(std::collections::BTreeSet<Capability>);

impl Capabilities {
    /// Whether the engine can do this.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }

    /// All that it can do.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(all: I) -> Self {
        Capabilities(all.into_iter().collect())
    }
}

/// A CPU's registers, by the architecture's own names in lower case (`rip`, `rsp`, `cr3`,
/// `gs_base`, ..).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Which CPU.
    pub cpu: u32,
    /// Whether it waits for an interrupt.
    pub halted: bool,
    /// Name to value.
    pub values: BTreeMap<String, u64>,
}

impl Stillness {
    /// How much time the guest's clocks do not show, as well as it is known.
    #[must_use]
    pub fn likely(&self) -> Option<Duration> {
        self.hidden.map(|least| least + self.slack / 2)
    }
}

/// How long all CPUs may take to stop when nobody says otherwise.
pub const RENDEZVOUS: Duration = Duration::from_secs(10);

/// What the guest noticed of its last standstill, as far as the engine knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stillness {
    /// How much time the guest's clocks do not show, at least.
    pub hidden: Option<Duration>,
    /// How much more it may be.
    pub slack: Duration,
    /// How long after the first CPU the last one stopped.
    pub skew: Option<Duration>,
}

/// A CPU that did not stop in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateCpu {
    /// Which one.
    pub cpu: u32,
    /// What it was doing, as the end of "it was ..".
    pub doing: String,
    /// Its instruction pointer when it was last seen, and how long ago that was.
    pub seen: Option<(u64, Duration)>,
}

impl LateCpu {
    /// What is known of it, with `place` to say where an instruction pointer is.
    #[must_use]
    pub fn told(&self, place: impl FnOnce(u64) -> String) -> String {
        let seen = self.seen.map_or(String::new(), |(rip, ago)| {
            format!(", last seen at {} {} ms before", place(rip), ago.as_millis())
        });
        format!("CPU {} did not come (it was {}{seen})", self.cpu, self.doing)
    }
}

/// A running machine. Dropping it ends the machine and everything that belongs to it.
pub trait Engine: Send {
    /// A short name for reports, as in `qemu-tcg`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Guest RAM, readable at any time, also after the machine has ended.
    fn memory(&self) -> Arc<dyn GuestMem>;

    /// Stops all CPUs within `patience`; on return none executes. How long that took. Nothing to
    /// do when they are stopped already.
    ///
    /// # Errors
    /// [`VmError::Exited`] when the machine is gone; [`VmError::Late`] or [`VmError::Timeout`]
    /// when the CPUs do not stop in time (they are told to go on again).
    fn pause_within(&mut self, patience: Duration) -> Result<Duration, VmError>;

    /// [`Engine::pause_within`] the usual time.
    ///
    /// # Errors
    /// The same.
    fn pause(&mut self) -> Result<Duration, VmError> {
        self.pause_within(RENDEZVOUS)
    }

    /// Lets the CPUs go on. How long that took.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    fn resume(&mut self) -> Result<Duration, VmError>;

    /// What the guest noticed of its last standstill: how far apart the CPUs stopped is known
    /// from [`Engine::pause`] on, what was hidden after [`Engine::resume`].
    fn stillness(&self) -> Stillness {
        Stillness::default()
    }

    /// How often the guest has left to the engine, by what for, where the engine counts that.
    fn exits(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// For tests of what happens when a CPU does not stop: from now on this one does not, until
    /// another or none is named.
    ///
    /// # Errors
    /// [`VmError::Refused`] where an engine has no such thing, and [`VmError::NoSuchCpu`].
    fn hold_back(&mut self, cpu: Option<u32>) -> Result<(), VmError> {
        let which = cpu.map_or("a CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        let reason = format!("the engine {} cannot make {which} late", self.name());
        Err(VmError::Refused { command: "hold_back".to_owned(), reason })
    }

    /// The registers of a CPU; consistent only while paused.
    ///
    /// # Errors
    /// [`VmError::NoSuchCpu`], and as [`Engine::pause`].
    fn registers(&mut self, cpu: u32) -> Result<Registers, VmError>;

    /// Sets these traps in place of all that were set before. The machine is stopped for that if
    /// it runs, and goes on afterwards unless a trap was hit meanwhile.
    ///
    /// # Errors
    /// [`VmError::Trap`] where the engine has no such traps or the trap is none that a CPU could
    /// have, and as [`Engine::pause`]. On an error no trap is set.
    fn set_traps(&mut self, traps: &[Trap]) -> Result<(), VmError> {
        let reason = "this engine has no traps".to_owned();
        traps.first().map_or(Ok(()), |&trap| Err(VmError::Trap { trap, reason }))
    }

    /// Who is told of hits from now on. After being woken: [`Engine::pause`],
    /// [`Engine::trapped`], [`Engine::resume`].
    fn on_trap(&mut self, _wake: TrapWake) {}

    /// The traps that were hit since this was last asked. Complete, and the machine still as the
    /// trap left it, only while paused; worth asking after every pause, since a trap may have
    /// been hit at the same moment.
    fn trapped(&mut self) -> Vec<Trapped> {
        Vec::new()
    }

    /// The console.
    fn console(&self) -> Console;

    /// The transport for frames, a connected stream; `None` when it was taken before.
    fn take_transport(&mut self) -> Option<OwnedFd>;

    /// A handle that learns how the machine ends.
    fn exit_watch(&self) -> ExitWatch;

    /// How the machine ended, once it has.
    fn exited(&self) -> Option<ExitInfo> {
        self.exit_watch().get()
    }

    /// Ends the machine now, without asking the guest, and waits until nothing of it is left. A
    /// machine that had ended before says how.
    fn stop(&mut self) -> ExitInfo;
}

/// Whether [`EngineChoice::Auto`] means our own machine: where KVM is real, for all that it can be.
fn takes_kvm(spec: &VmSpec) -> bool {
    static REAL: OnceLock<bool> = OnceLock::new();
    // Guests of ours start no guests.
    !spec.nested && *REAL.get_or_init(|| kvm_speed().is_ok_and(|speed| speed.is_real()))
}

/// Makes a machine and lets it run.
///
/// # Errors
/// [`VmError`]: what cannot be asked for, what the host lacks, or how the machine ended before it
/// could be handed out.
pub fn start(spec: &VmSpec, choice: EngineChoice) -> Result<Box<dyn Engine>, VmError> {
    match choice {
        EngineChoice::Auto if takes_kvm(spec) => Ok(Box::new(kvm::start(spec)?)),
        EngineChoice::Auto | EngineChoice::Qemu => Ok(Box::new(qemu::start(spec, false)?)),
        EngineChoice::QemuMulti => Ok(Box::new(qemu::start(spec, true)?)),
        EngineChoice::Kvm => Ok(Box::new(kvm::start(spec)?)),
    }
}

/// A machine that could not be made or no longer does what it is told.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No QEMU.
    #[error(
        "QEMU is not there: {program:?} was not found; install it (on Debian: apt-get install \
         qemu-system-x86)"
    )]
    QemuAbsent {
        /// What was looked for.
        program: PathBuf,
    },
    /// A QEMU that lacks what is needed.
    #[error(
        "{program:?} is QEMU {found}, at least {needed} is needed; upgrade it (on Debian 12 or \
         later: apt-get install qemu-system-x86)"
    )]
    QemuTooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: String,
        /// The oldest version that will do.
        needed: String,
    },
    /// A program that is no working QEMU.
    #[error("{program:?} does not work as QEMU: {reason}")]
    QemuUnusable {
        /// The program.
        program: PathBuf,
        /// What it did instead.
        reason: String,
    },
    /// More CPUs than the engine takes.
    #[error(
        "topology {topology} has {cpus} CPUs, the {engine} engine takes at most {most}; ask for \
         fewer LLCs, cores or threads"
    )]
    TooManyCpus {
        /// The engine.
        engine: &'static str,
        /// What was asked.
        topology: Topology,
        /// CPUs in it.
        cpus: u32,
        /// The most it takes.
        most: u32,
    },
    /// Too little RAM for this kernel and these CPUs.
    #[error(
        "memory {asked} is too small: this machine needs at least {least}; ask for {least} or more"
    )]
    MemoryTooSmall {
        /// What was asked, as text.
        asked: String,
        /// What is needed, as text.
        least: String,
    },
    /// Nodes that differ too much for QEMU, which has sockets of one size.
    #[error(
        "topology {topology}: QEMU gives all nodes the room that the largest needs, which would be \
         {places} places for CPUs, and {most} are the most; make the nodes more alike"
    )]
    TooUneven {
        /// What was asked.
        topology: Topology,
        /// Places that it would take.
        places: u32,
        /// The most there can be.
        most: u32,
    },
    /// RAM that the nodes cannot have as they ask for it.
    #[error("memory {asked} does not suit topology {topology}: {reason}")]
    MemoryOfNodes {
        /// What was asked, as text.
        asked: String,
        /// What has the nodes.
        topology: Topology,
        /// What does not add up, and what would.
        reason: String,
    },
    /// More RAM than the host has.
    #[error("memory {asked} is more than this host has ({host}); ask for less")]
    MemoryTooLarge {
        /// What was asked, as text.
        asked: String,
        /// What the host has, as text.
        host: String,
    },
    /// Too few huge pages.
    #[error(
        "the machine's RAM needs {needed} huge pages of 2 MiB, and this host has {free} free; \
         reserve more (as root: sysctl vm.nr_hugepages=N), or leave huge pages out"
    )]
    HugePages {
        /// Pages.
        needed: u64,
        /// Pages that nobody has.
        free: u64,
    },
    /// CPUs that cannot be bound as asked.
    #[error("pin {asked:?}: {reason}")]
    Pin {
        /// CPUs of the host.
        asked: String,
        /// What is wrong with them, and what would be right.
        reason: String,
    },
    /// More text on the kernel's command line than it reads.
    #[error(
        "the kernel command line is {length} bytes long with the engine's own arguments, the \
         kernel reads {most}; give fewer kernel arguments"
    )]
    KernelArgs {
        /// Bytes.
        length: usize,
        /// The most it reads.
        most: usize,
    },
    /// The kernel image cannot be used.
    #[error("kernel {path:?}: {reason}")]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The host refused something that a machine needs.
    #[error("cannot {what}: {reason}")]
    Host {
        /// What was tried.
        what: String,
        /// The host's words.
        reason: String,
    },
    /// The engine refused a command or did not understand it.
    #[error("the engine refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// The engine's words.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("waited {waited:?} for {what} in vain")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// CPUs did not stop in time.
    #[error("waited {waited:?} in vain for all CPUs to stop: {}", late_cpus(late))]
    Late {
        /// Which, at least one.
        late: Vec<LateCpu>,
        /// How long.
        waited: Duration,
    },
    /// A trap that cannot be set.
    #[error("cannot trap {trap}: {reason}")]
    Trap {
        /// Which one.
        trap: Trap,
        /// Why.
        reason: String,
    },
    /// No such CPU.
    #[error("there is no CPU {cpu}; this machine has CPUs 0 to {}", cpus - 1)]
    NoSuchCpu {
        /// What was asked.
        cpu: u32,
        /// How many there are.
        cpus: u32,
    },
    /// The machine is gone.
    #[error("{0}")]
    Exited(Box<ExitInfo>),
}

fn late_cpus(late: &[LateCpu]) -> String {
    let one = |late: &LateCpu| late.told(|rip| format!("{rip:#x}"));
    late.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_cpus_are_named_with_what_is_known_of_them() {
        let seen = Some((0xffff_ffff_8100_0040, Duration::from_millis(2)));
        let late = vec![
            LateCpu { cpu: 1, doing: "in the guest".into(), seen },
            LateCpu { cpu: 3, doing: "writing to a device".into(), seen: None },
        ];
        assert_eq!(
            VmError::Late { late, waited: Duration::from_secs(10) }.to_string(),
            "waited 10s in vain for all CPUs to stop: CPU 1 did not come (it was in the guest, last \
             seen at 0xffffffff81000040 2 ms before); CPU 3 did not come (it was writing to a device)"
        );
    }

    #[test]
    fn engines_and_capabilities_are_known_by_name() {
        for engine in EngineChoice::ALL {
            assert_eq!(engine.name().parse(), Ok(engine));
        }
        assert_eq!(
            "xen".parse::<EngineChoice>().unwrap_err(),
            "there is no engine \"xen\"; there are auto, qemu, qemu-multi, kvm"
        );
        for capability in Capability::ALL {
            assert_eq!(capability.name().parse(), Ok(capability));
        }
        assert_eq!(
            "freez".parse::<Capability>().unwrap_err(),
            "there is no engine capability \"freez\"; there are memory, freeze, registers, nodes, \
             llcs, parallel_cpus, hardware_time, watchpoints, breakpoints"
        );
    }
}
