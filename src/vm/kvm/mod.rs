//! Our own machine on KVM: a kernel, its CPUs, two serial ports, and nothing that takes time.
//!
//! There is no firmware and no disk. The kernel is entered directly ([`boot`]), finds its CPUs and
//! nodes in our ACPI tables ([`tables`]) and in CPUID ([`cpuid`]), prints on a serial port and sends
//! frames over a virtio port ([`virtio`]), or a second serial one ([`devices`]). RAM is this
//! process's own.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    Msrs, kvm_clock_data, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::ram::{Part, Ram, share_out};
use super::{
    Capabilities, Capability, Console, Engine, ExitInfo, ExitKind, ExitWatch, RENDEZVOUS,
    Registers, Stillness, Trap, TrapWake, Trapped, VmError, VmSpec, ending, limits,
};
use crate::mem::{GuestMem, MappedMem};
use cpuid::Cpuid;
use debug::Traps;
use devices::{Devices, Ending, Irq};
use vcpu::{End, Stand, Vcpus};
use virtio::{Post, Virtio};

pub use contain::offered as seccomp_offered;
pub use exercise::exercise_devices;
pub use probe::{Breakpoints, KvmSpeed, KvmTraps, kvm_speed, kvm_traps};

mod apic;
mod boot;
mod contain;
mod cpuid;
mod debug;
mod devices;
mod exercise;
mod gather;
mod internal;
mod layout;
mod pci;
mod probe;
mod registers;
mod tables;
mod tsc;
mod vcpu;
mod virtio;

/// The most CPUs.
const MOST_CPUS: u32 = 128;
/// The highest APIC id that our tables can name; 255 is everybody.
const HIGHEST_ID: u32 = 254;
/// Lines of the console that go into an [`ExitInfo`].
const TAIL: usize = 30;

/// A machine of our own.
pub(super) struct KvmMachine {
    // The order matters: threads first, then what they use.
    vcpus: Vcpus,
    watcher: Option<JoinHandle<()>>,
    vm: Arc<VmFd>,
    devices: Arc<Devices>,
    memory: Arc<MappedMem>,
    console: Console,
    transport: Option<OwnedFd>,
    watch: ExitWatch,
    cpus: u32,
    traps: Traps,
    /// Those that were hit and whose traps are settled, and that nobody has asked for.
    hits: Vec<Trapped>,
    /// When the clocks stood still, while paused.
    paused: Option<Clocks>,
    stillness: Stillness,
}

/// What the guest's clocks said when it was stopped.
struct Clocks {
    kvm: kvm_clock_data,
    /// The host's TSC then, and the time.
    host_tsc: u64,
    at: Instant,
    cpus: Vec<CpuClock>,
}

impl Clocks {
    /// What a CPU's TSC said when all stood still: of all CPUs at one instant, where KVM tells.
    fn tsc(&self, cpu: u32) -> Option<u64> {
        let clock = self.cpus.get(cpu as usize)?;
        Some(clock.offset.map_or(clock.tsc, |offset| self.host_tsc.wrapping_add(offset)))
    }
}

/// A CPU's clock.
struct CpuClock {
    tsc: u64,
    /// When its timer rings, by the TSC; 0 for never.
    deadline: u64,
    /// What is added to the host's TSC to get its own; KVM tells since Linux 5.16.
    offset: Option<u64>,
}

fn host<E: ToString>(what: &str) -> impl Fn(E) -> VmError + '_ {
    move |e| VmError::Host { what: what.to_owned(), reason: e.to_string() }
}

/// Makes the machine and lets it run.
///
/// # Errors
/// [`VmError`]: what the host refuses, and what is wrong with the kernel.
pub(super) fn start(spec: &VmSpec) -> Result<KvmMachine, VmError> {
    let cpus = spec.topology.cpus();
    limits::check(spec, "kvm", MOST_CPUS)?;
    let pins = super::host::pins(spec)?;
    let kvm = Kvm::new().map_err(host("open /dev/kvm"))?;
    let vm = Arc::new(kvm.create_vm().map_err(host("make a virtual machine"))?);
    let node_mib = share_out(spec.memory, &spec.topology);
    let Ram { parts, mem: memory, .. } =
        Ram::own(&node_mib, layout::LOW_END >> 20, spec.huge_pages)?;
    attach(&vm, &memory)?;
    interrupts(&vm)?;
    let cpuid = cpuid(&kvm, spec)?;
    let entry = fill(spec, &memory, &parts, &cpuid)?;
    let fds = (0..cpus).map(|cpu| vcpu(&vm, &cpuid, cpu)).collect::<Result<Vec<_>, _>>()?;
    let mut sregs = fds[0].get_sregs().map_err(host("read a CPU's registers"))?;
    let regs = boot::enter(memory.mapping(), entry, &mut sregs).map_err(kernel(spec))?;
    fds[0].set_sregs(&sregs).map_err(host("set a CPU's registers"))?;
    fds[0].set_regs(&regs).map_err(host("set a CPU's registers"))?;
    let console = Console::new(spec.console_limit);
    let (ours, theirs) = UnixStream::pair().map_err(host("make a stream for frames"))?;
    let irqs = irqs(&vm)?;
    let virtio = Virtio::new(memory.clone(), Post::by(vm.clone()));
    let devices =
        Devices::new(console.clone(), ours, irqs, virtio).map_err(host("make devices"))?;
    devices.gather(&vm, &fds[0]);
    let traps = Traps::default();
    let vcpus = Vcpus::start(fds, &devices, &traps, pins.as_deref())
        .map_err(host("start a CPU's thread"))?;
    let gate = vcpus.gate();
    devices.on_refused(move |refused| gate.end(Some(End::Refused(refused))));
    let watch = ExitWatch::default();
    let watcher = watcher(&vcpus, &devices, &console, &watch)?;
    vcpus.go();
    Ok(KvmMachine {
        vcpus,
        watcher: Some(watcher),
        vm,
        devices,
        memory,
        console,
        transport: Some(theirs.into()),
        watch,
        cpus,
        traps,
        hits: Vec::new(),
        paused: None,
        stillness: Stillness::default(),
    })
}

fn kernel(spec: &VmSpec) -> impl Fn(String) -> VmError + '_ {
    |reason| {
        let (super::Boot::Elf(path) | super::Boot::BzImage(path)) = &spec.boot;
        VmError::Kernel { path: path.clone(), reason }
    }
}

/// Makes our mapping of RAM the guest's.
fn attach(vm: &VmFd, memory: &MappedMem) -> Result<(), VmError> {
    for (slot, region) in (0..).zip(memory.mapping().iter()) {
        let host_address = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(host("map guest RAM"))?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host_address as u64,
        };
        // SAFETY: the mapping lives as long as `memory`, which the machine keeps until its CPUs
        // are gone; slots do not overlap, because the regions of a mapping do not.
        #[allow(unsafe_code)]
        let set = unsafe { vm.set_user_memory_region(slot) };
        set.map_err(host("give the guest its RAM"))?;
    }
    Ok(())
}

/// The interrupt controllers and the timer, all in the host's kernel.
fn interrupts(vm: &VmFd) -> Result<(), VmError> {
    vm.set_tss_address(layout::KVM_TSS).map_err(host("place KVM's own pages"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY).map_err(host("place KVM's own pages"))?;
    vm.create_irq_chip().map_err(host("make interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(host("make a timer"))
}

fn irqs(vm: &VmFd) -> Result<[Irq; 2], VmError> {
    let mut irqs = Vec::new();
    for (_, line) in tables::SERIAL {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = event.map_err(host("make an interrupt"))?;
        vm.register_irqfd(&event, line).map_err(host("make an interrupt"))?;
        irqs.push(Irq(event));
    }
    irqs.try_into().map_err(|_| VmError::Host {
        what: "make an interrupt".into(),
        reason: "a serial port has none".into(),
    })
}

/// The leaves for each CPU. What does not work under an emulated host is taken away.
fn cpuid(kvm: &Kvm, spec: &VmSpec) -> Result<Cpuid, VmError> {
    let offered = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let offered = offered.map_err(host("ask KVM for CPU features"))?;
    let mut cpuid = Cpuid::new(offered.as_slice().to_vec(), &spec.topology);
    if !spec.five_level_paging {
        cpuid.hide(7, 0, 1 << 16, 0);
    }
    if cpuid::host_is_emulated() {
        // TCG's sizes of XSAVE's areas disagree with one another: XSAVE and what needs it
        // (OSXSAVE, AVX, F16C, FMA; AVX2, AVX-512 and MPX).
        cpuid.hide(1, 0, 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 12, 0);
        cpuid.hide(7, 1 << 5 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 0xf << 26 | 3 << 30, !0, !0);
    }
    let highest = (0..spec.topology.cpus()).map(|cpu| cpuid.bits().id(&spec.topology, cpu)).max();
    let highest = highest.unwrap_or(0);
    if highest > HIGHEST_ID {
        return Err(VmError::Host {
            what: format!("number the CPUs of topology {}", spec.topology),
            reason: format!(
                "each level has bits of its own in an APIC id, which would go up to {highest}, and \
                 {HIGHEST_ID} is the most; ask for counts that are powers of two, or for fewer"
            ),
        });
    }
    Ok(cpuid)
}

/// Loads what the guest begins with.
fn fill(
    spec: &VmSpec,
    memory: &MappedMem,
    parts: &[Part],
    cpuid: &Cpuid,
) -> Result<boot::Entry, VmError> {
    let line = super::kargs::line(&spec.kargs);
    if line.len() > limits::COMMAND_LINE {
        return Err(VmError::KernelArgs { length: line.len(), most: limits::COMMAND_LINE });
    }
    let cargo = boot::Cargo { initramfs: &spec.initramfs, command_line: &line };
    let entry = boot::load(memory.mapping(), parts, &spec.boot, &cargo).map_err(kernel(spec))?;
    let mut nodes = vec![Vec::new(); spec.topology.nodes() as usize];
    for part in parts {
        nodes[part.node].push(part.region);
    }
    let tables = tables::tables(&spec.topology, cpuid.bits(), &nodes);
    if tables.len() as u64 > tables::TABLES_LEN {
        let reason = format!("its tables take {} bytes", tables.len());
        return Err(VmError::Host { what: "describe the machine".into(), reason });
    }
    vm_memory::Bytes::write_slice(
        memory.mapping(),
        &tables,
        vm_memory::GuestAddress(tables::TABLES),
    )
    .map_err(host("describe the machine"))?;
    Ok(entry)
}

/// Makes a CPU.
fn vcpu(vm: &VmFd, cpuid: &Cpuid, cpu: u32) -> Result<VcpuFd, VmError> {
    // KVM's number of a CPU is its APIC id.
    let id = cpuid.bits().id(cpuid.topology(), cpu);
    let fd = vm.create_vcpu(id.into()).map_err(host("make a CPU"))?;
    let leaves = CpuId::from_entries(&cpuid.of(cpu))
        .map_err(|e| VmError::Host { what: "describe a CPU".into(), reason: format!("{e:?}") })?;
    fd.set_cpuid2(&leaves).map_err(host("describe a CPU"))?;
    Ok(fd)
}

/// The thread that waits for the machine's end and says how it came.
fn watcher(
    vcpus: &Vcpus,
    devices: &Arc<Devices>,
    console: &Console,
    watch: &ExitWatch,
) -> Result<JoinHandle<()>, VmError> {
    let (gate, devices) = (vcpus.gate(), devices.clone());
    let (console, watch) = (console.clone(), watch.clone());
    let thread = std::thread::Builder::new().name("kvm-end".to_owned());
    let wait = move || {
        let end = gate.wait_for_end(|| devices.catch_up());
        // No CPU goes on in a machine that has ended.
        gate.call_until_all_have_left();
        devices.catch_up();
        devices.end();
        console.close();
        let text = console.text();
        let kind = match end {
            None => ExitKind::Stopped,
            Some(End::Asked(Ending::Off)) => ExitKind::PoweredOff,
            Some(End::Asked(Ending::Reset)) => ending::reset_kind(&text, false),
            Some(End::TripleFault { .. }) => ending::reset_kind(&text, true),
            Some(End::Refused(ref refused)) => {
                ExitKind::Contained { thread: refused.thread.clone(), call: refused.to_string() }
            }
            Some(End::Failed(ref why)) => ExitKind::EngineDied { status: format!("failed: {why}") },
        };
        let engine_log = match end {
            Some(End::TripleFault { cpu }) => format!("CPU {cpu}: triple fault"),
            _ => String::new(),
        };
        let console = match kind {
            ExitKind::Stopped => console.tail(TAIL),
            _ => ending::excerpt(&text),
        };
        watch.set(ExitInfo { kind, console, engine_log });
    };
    thread.spawn(wait).map_err(host("start a thread"))
}

impl KvmMachine {
    fn ended(&self) -> VmError {
        match self.watch.wait(RENDEZVOUS) {
            Some(info) => VmError::Exited(Box::new(info)),
            None => VmError::Timeout { what: "the end of the machine".into(), waited: RENDEZVOUS },
        }
    }

    fn go(&self) {
        self.devices.stand(false);
        self.vcpus.go();
    }

    /// Takes away the traps that were hit and count once.
    fn settle(&mut self) -> Result<(), VmError> {
        let hits = self.traps.hits().take();
        let changed = self.traps.settle(&hits, self.memory.mapping());
        self.hits.extend(hits);
        if changed { self.tell_cpus() } else { Ok(()) }
    }

    /// Tells all CPUs, which stand, what traps are set.
    fn tell_cpus(&self) -> Result<(), VmError> {
        let tell = |fd: &VcpuFd| self.traps.apply(fd).map_err(host("set a CPU's traps"));
        (0..self.cpus)
            .try_for_each(|cpu| self.vcpus.with(cpu, tell).unwrap_or_else(|| Err(self.ended())))
    }

    /// Notes what the guest's clocks say.
    fn clocks(&self) -> Result<Clocks, VmError> {
        let read = |fd: &VcpuFd| {
            let mut msrs = tsc::timers([0; 2])?;
            fd.get_msrs(&mut msrs).map_err(host("read a CPU's clock"))?;
            let of = |i: usize| msrs.as_slice().get(i).map_or(0, |msr| msr.data);
            Ok(CpuClock { tsc: of(0), deadline: of(1), offset: tsc::offset(fd) })
        };
        let cpus = (0..self.cpus)
            .map(|cpu| self.vcpus.with(cpu, read).unwrap_or_else(|| Err(self.ended())));
        let cpus = cpus.collect::<Result<_, _>>()?;
        // One right after the other: what lies between them is hidden from one clock only.
        let kvm = self.vm.get_clock().map_err(host("read the guest's clock"))?;
        Ok(Clocks { kvm, host_tsc: tsc::now(), at: Instant::now(), cpus })
    }

    /// Makes the clocks go on from where they stood.
    ///
    /// KVM takes a write of the TSC that comes soon after another for an attempt to synchronize
    /// CPUs, and keeps its offset. So the offset itself is changed where KVM lets us.
    ///
    /// TSC and kvm-clock must go on from the same instant and at the same instant: CPUs read the
    /// latter by way of the former, the first to run still with the scale that was there before.
    /// Since Linux 5.16 KVM tells both of one instant, and sets kvm-clock as of an instant
    /// (`KVM_GET_CLOCK`, `KVM_SET_CLOCK` in `Documentation/virt/kvm/api.rst`).
    ///
    /// Gives how much time they do not show.
    fn wind(&self, clocks: &Clocks) -> Result<Duration, VmError> {
        const BOTH: u32 = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
        let now = self.vm.get_clock().map_err(host("read the guest's clock"))?;
        let begin = Instant::now();
        let exact = clocks.kvm.flags & now.flags & BOTH == BOTH;
        let (hidden, time) = match exact {
            true => (
                now.host_tsc.wrapping_sub(clocks.kvm.host_tsc),
                Duration::from_nanos(now.clock.saturating_sub(clocks.kvm.clock)),
            ),
            false => (tsc::now().wrapping_sub(clocks.host_tsc), begin - clocks.at),
        };
        // Without offsets: all CPUs read the TSC at nearly the same instant; the first one's counts
        // for all, so that KVM gives them one.
        let first = clocks.cpus.first().map_or(0, |cpu| cpu.tsc);
        for (cpu, clock) in (0..).zip(&clocks.cpus) {
            let set = |fd: &VcpuFd| {
                let moved =
                    clock.offset.is_some_and(|o| tsc::set_offset(fd, o.wrapping_sub(hidden)));
                let both = tsc::timers([first, clock.deadline])?;
                // The deadline comes last, so that it is reckoned by the clock that is right.
                let last = Msrs::from_entries(&both.as_slice()[1..]).unwrap_or(both.clone());
                fd.set_msrs(if moved { &last } else { &both }).map_err(host("set a CPU's clock"))
            };
            self.vcpus.with(cpu, set).unwrap_or_else(|| Err(self.ended()))?;
        }
        let mut clock = kvm_clock_data { clock: clocks.kvm.clock, ..Default::default() };
        if exact {
            (clock.flags, clock.realtime) = (KVM_CLOCK_REALTIME, now.realtime);
        } else {
            clock.clock += u64::try_from(begin.elapsed().as_nanos()).unwrap_or(0);
        }
        self.vm.set_clock(&clock).map_err(host("set the guest's clock"))?;
        Ok(time)
    }
}

impl Engine for KvmMachine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn capabilities(&self) -> Capabilities {
        use Capability::{Breakpoints, Watchpoints};
        let traps = kvm_traps();
        let can = |capability: &Capability| match capability {
            Watchpoints => traps.watchpoints,
            Breakpoints => traps.breakpoints == probe::Breakpoints::Fire,
            _ => true,
        };
        Capability::ALL.into_iter().filter(can).collect()
    }

    fn memory(&self) -> Arc<dyn GuestMem> {
        self.memory.clone()
    }

    fn exits(&self) -> Vec<(String, u64)> {
        self.devices.touched()
    }

    fn pause_within(&mut self, patience: Duration) -> Result<Duration, VmError> {
        let start = Instant::now();
        if self.paused.is_none() {
            match self.vcpus.stand(patience) {
                Stand::Still { skew } => {
                    self.stillness = Stillness { skew: Some(skew), ..Stillness::default() };
                }
                Stand::Ended => return Err(self.ended()),
                Stand::Late(late) => return Err(VmError::Late { late, waited: patience }),
            }
            // Whatever fails now must not leave it standing.
            self.devices.stand(true);
            self.paused = Some(self.clocks().inspect_err(|_| self.go())?);
        }
        Ok(start.elapsed())
    }

    fn resume(&mut self) -> Result<Duration, VmError> {
        let start = Instant::now();
        if self.paused.is_some() {
            // A breakpoint that stays would be hit again at once.
            self.settle()?;
        }
        if let Some(clocks) = self.paused.take() {
            let wound = self.wind(&clocks);
            self.go();
            self.stillness.hidden = Some(wound?);
        }
        Ok(start.elapsed())
    }

    fn stillness(&self) -> Stillness {
        self.stillness
    }

    fn hold_back(&mut self, cpu: Option<u32>) -> Result<(), VmError> {
        match cpu {
            Some(cpu) if cpu >= self.cpus => Err(VmError::NoSuchCpu { cpu, cpus: self.cpus }),
            _ => {
                self.vcpus.gate().hold_back(cpu);
                Ok(())
            }
        }
    }

    fn registers(&mut self, cpu: u32) -> Result<Registers, VmError> {
        if cpu >= self.cpus {
            return Err(VmError::NoSuchCpu { cpu, cpus: self.cpus });
        }
        if self.paused.is_none() {
            let reason = "the machine runs: pause it first".to_owned();
            return Err(VmError::Refused { command: "registers".to_owned(), reason });
        }
        let read = self.vcpus.with(cpu, registers::read).unwrap_or_else(|| Err(self.ended()));
        let (values, halted) = read?;
        let tsc = self.paused.as_ref().and_then(|clocks| clocks.tsc(cpu));
        let values = values.into_iter().chain(tsc.map(|tsc| ("tsc", tsc)));
        let values = values.map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Registers { cpu, halted, values })
    }

    fn set_traps(&mut self, traps: &[Trap]) -> Result<(), VmError> {
        if traps.is_empty() && !self.traps.any() {
            return Ok(());
        }
        let can = kvm_traps();
        let lacks = |trap: &&Trap| match trap {
            Trap::Execute { .. } => !can.breakpoints.stop_guests(),
            Trap::Write { .. } => !can.watchpoints,
        };
        if let Some(&trap) = traps.iter().find(lacks) {
            let reason = "this host's KVM does not stop there: see `cryoscope doctor`".to_owned();
            return Err(VmError::Trap { trap, reason });
        }
        let ran = self.paused.is_none();
        self.pause()?;
        let done = self.settle().and_then(|()| self.traps.replace(traps, self.memory.mapping()));
        let told = self.tell_cpus();
        // A machine that a trap stopped meanwhile stays as it is until somebody has looked.
        if ran && self.hits.is_empty() {
            self.resume()?;
        }
        done.and(told)
    }

    fn on_trap(&mut self, wake: TrapWake) {
        self.traps.hits().on(wake.clone());
        if !self.hits.is_empty() {
            wake();
        }
    }

    fn trapped(&mut self) -> Vec<Trapped> {
        // What fails here fails again when the machine is to go on.
        let _ = self.settle();
        std::mem::take(&mut self.hits)
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    fn take_transport(&mut self) -> Option<OwnedFd> {
        self.transport.take()
    }

    fn exit_watch(&self) -> ExitWatch {
        self.watch.clone()
    }

    fn stop(&mut self) -> ExitInfo {
        self.vcpus.end();
        self.devices.end();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        self.watch.get().unwrap_or(ExitInfo {
            kind: ExitKind::Stopped,
            console: String::new(),
            engine_log: String::new(),
        })
    }
}

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.stop();
    }
}
