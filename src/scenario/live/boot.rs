//! From a declaration to a running laboratory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beside::no_thread;
use super::kept::Kept;
use super::real::Real;
use super::schedulers::{Current, Preparer};
use super::stage;
use super::{CALL, GLANCE, LOG_END, Lab, Logs, Machine, Parts, call_while_wanted};
use crate::freeze::Bridge;
use crate::kernel::progress::Progress;
use crate::kernel::{CacheDir, KernelImage, resolve};
use crate::scenario::cell::{Cancel, Events, Why};
use crate::scenario::event::Stage;
use crate::scenario::lab::{LabError, LabFacts, LabResult};
use crate::scenario::text::{seconds, tail};
use crate::scenario::verdict::Recorder;
use crate::scenario::{BootPath, ScenarioDecl, ScenarioOptions};
use crate::scheduler::{Prepared, Toolchain};
use crate::snapshot::CaptureRequest;
use crate::vm::channel::{Channel, ChannelError};
use crate::vm::topology::{CpuSet, Topology, TopologyError};
use crate::vm::{Boot, Capability, EngineChoice, ExitKind, RENDEZVOUS, VmError, VmSpec, start};
use crate::wire::{Answer, Hello, Op};

/// How long a guest may take to its agent's hello: some seconds when emulated on a free host,
/// many times that on a busy one.
const BOOT: Duration = Duration::from_secs(90);
/// How long loading, verifying and attaching a scheduler may take.
pub(super) const ATTACH: Duration = Duration::from_secs(60);

/// What booting needs beside the declaration.
pub struct Setup {
    /// The cache.
    pub cache: CacheDir,
    /// The kernel, when it was found already.
    pub kernel: Option<KernelImage>,
    /// The guest's agent.
    pub agent: PathBuf,
    /// Where programs are looked for.
    pub tools: Toolchain,
    /// `auto` or `qemu`.
    pub engine: String,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Where to keep logs.
    pub keep: Option<PathBuf>,
    /// The cell's voice.
    pub events: Events,
    /// Where remarks go.
    pub recorder: Recorder,
    /// The wish to end.
    pub cancel: Cancel,
}

/// A laboratory that did not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFailed {
    /// What it means for the scenario.
    pub error: LabError,
    /// The fault of the engine behind it, if that is what it was: worth another attempt.
    pub fault: Option<String>,
    /// Ends of the logs, as far as there are any.
    pub logs: Logs,
}

impl From<LabError> for BootFailed {
    fn from(error: LabError) -> Self {
        BootFailed { error, fault: None, logs: Logs::default() }
    }
}

/// A machine whose agent has said hello.
struct Up {
    machine: Real,
    engine: &'static str,
    hello: Hello,
}

impl Lab {
    /// Boots the machine that a scenario asks for and attaches its scheduler.
    ///
    /// # Errors
    /// What the scenario asks for cannot be had, does not come up, or is rejected by the kernel.
    pub fn boot(decl: &ScenarioDecl, setup: &Setup) -> Result<Lab, BootFailed> {
        let options = &decl.options;
        let topology = parse_topology(options)?;
        let needs = parse_requires(options)?;
        let kernel = find_kernel(options, setup)?;
        let scheduler = stage::scheduler(decl, &kernel, setup)?;
        let spec = VmSpec {
            kargs: options.kargs.clone(),
            huge_pages: options.huge_pages,
            pin: parse_pin(options)?,
            ..VmSpec::new(
                boot_image(options.boot, &kernel)?,
                stage::initramfs(decl, &scheduler, setup)?,
                topology.clone(),
                options.memory,
            )
        };
        let born = Instant::now();
        let up = bring_up(&spec, &needs, setup)?;
        let machine: Arc<dyn Machine> = Arc::new(up.machine);
        attach(&machine, &scheduler, setup)?;
        if options.samples.is_some() || options.monitor.is_some() {
            // The kernel is read once, which takes long; the first boundaries must not wait for it.
            let _ = machine.prepare(&CaptureRequest::default());
        }
        setup.events.stage(Stage::Run, "");
        let preparer = Preparer {
            kernel: kernel.clone(),
            cache: setup.cache.clone(),
            tools: setup.tools.clone(),
            base_dir: decl.base_dir().to_owned(),
            recorder: setup.recorder.clone(),
        };
        let facts = LabFacts {
            kernel_release: up.hello.release,
            kernel_spec: kernel.spec,
            topology,
            engine: up.engine.into(),
            memory: options.memory,
            scheduler: scheduler.name.clone(),
            duration: options.duration,
        };
        let parts = Parts {
            facts,
            expect_exit: options.expect_exit.clone(),
            scheduler: Current::of(&scheduler, &options.scheduler),
            staged: scheduler.files,
            preparer: Some(preparer),
            events: setup.events.clone(),
            recorder: setup.recorder.clone(),
            cancel: setup.cancel.clone(),
            keep: setup.keep.clone(),
            attempt: setup.attempt,
        };
        let mut lab = Lab::new(machine, parts);
        lab.born = born;
        if lab.state().under_test {
            lab.expect_exits();
        }
        if let Some(samples) = &options.samples {
            lab.start_sampling(samples)?;
        }
        if let Some(monitor) = &options.monitor {
            lab.start_monitor(monitor)?;
        }
        Ok(lab)
    }
}

fn parse_topology(options: &ScenarioOptions) -> LabResult<Topology> {
    Topology::parse(&options.topology).map_err(|e| LabError::Argument(e.to_string()))
}

fn parse_pin(options: &ScenarioOptions) -> LabResult<Option<CpuSet>> {
    let pin = options.pin.as_deref().map(str::parse).transpose();
    pin.map_err(|e: TopologyError| LabError::Argument(format!("pin: {e}")))
}

fn parse_requires(options: &ScenarioOptions) -> LabResult<Vec<Capability>> {
    let parsed = options.requires.iter().map(|name| name.parse().map_err(LabError::Argument));
    parsed.collect()
}

fn find_kernel(options: &ScenarioOptions, setup: &Setup) -> LabResult<KernelImage> {
    setup.events.stage(Stage::Kernel, options.kernel.clone());
    let kernel = match &setup.kernel {
        Some(kernel) => kernel.clone(),
        None => resolve(&options.kernel, &setup.cache, &Told(&setup.events))
            .map_err(|e| LabError::Setup(e.to_string()))?,
    };
    Ok(kernel)
}

/// Progress as stages of the cell.
struct Told<'a>(&'a Events);

impl Progress for Told<'_> {
    fn step(&self, what: &str) {
        self.0.stage(Stage::Kernel, what);
    }

    fn advance(&self, _: f64) {}
}

fn boot_image(how: BootPath, kernel: &KernelImage) -> LabResult<Boot> {
    let elf = || Boot::Elf(kernel.elf().to_owned());
    let bzimage = kernel.bzimage().map(|path| Boot::BzImage(path.to_owned()));
    let lacks = |what: &str, instead: &str| {
        let KernelImage { spec, release, .. } = kernel;
        LabError::Setup(format!("kernel {release} ({spec}) {what}; use {instead}"))
    };
    match how {
        BootPath::Auto if kernel.facts.has_pvh => Ok(elf()),
        BootPath::Auto => bzimage.ok_or_else(|| {
            lacks("has neither a PVH entry nor a bzImage", "one built with CONFIG_PVH=y")
        }),
        BootPath::Elf if kernel.facts.has_pvh => Ok(elf()),
        BootPath::Elf => Err(lacks("has no PVH entry, so its ELF cannot be booted", "bzimage")),
        BootPath::BzImage => {
            bzimage.ok_or_else(|| lacks("has no bzImage, only an ELF", "elf, or its vmlinuz"))
        }
    }
}

/// Starts the machine and waits for its agent.
fn bring_up(spec: &VmSpec, needs: &[Capability], setup: &Setup) -> Result<Up, BootFailed> {
    let what = match &spec.boot {
        Boot::Elf(_) => "ELF",
        Boot::BzImage(_) => "bzImage",
    };
    setup.events.stage(Stage::Boot, what);
    let choice: EngineChoice = setup.engine.parse().map_err(LabError::Argument)?;
    let mut engine = start(spec, choice).map_err(not_started)?;
    let can = engine.capabilities();
    if let Some(lacking) = needs.iter().find(|need| !can.has(**need)) {
        let text = format!("the engine {} cannot: {}", engine.name(), lacking.name());
        return Err(LabError::Unsupported(text).into());
    }
    let (watch, console, name) = (engine.exit_watch(), engine.console(), engine.name());
    let transport = engine.take_transport().ok_or_else(|| {
        LabError::Machine(format!("the engine {name} has no transport for frames"))
    })?;
    let still = setup.cancel.standstill().clone();
    let channel = Channel::new(transport, Some(watch))
        .map_err(|e| LabError::Machine(format!("cannot listen to the guest: {e}")))?
        .extended_by(still.clone());
    let hello = wait_for_hello(&channel, setup).map_err(|(error, fault)| {
        engine.stop();
        failed(error, fault, &console.text(), "", setup)
    })?;
    let bridge = Bridge::start(engine, still, RENDEZVOUS).map_err(no_thread)?;
    let machine = Real { channel, bridge };
    Ok(Up { machine, engine: name, hello })
}

/// A laboratory that did not come up, its logs kept if that is wanted.
fn failed(
    error: LabError,
    fault: Option<String>,
    console: &str,
    scheduler: &str,
    setup: &Setup,
) -> BootFailed {
    if let Some(dir) = &setup.keep {
        let kept = Kept { console, scheduler, dmesg: None, death: None };
        kept.write(dir, setup.attempt, &setup.recorder);
    }
    let end = |text: &str| tail(text, usize::MAX, LOG_END).to_string();
    BootFailed { error, fault, logs: Logs { scheduler: end(scheduler), console: end(console) } }
}

/// What it means that a machine did not start.
fn not_started(error: VmError) -> BootFailed {
    let VmError::Exited(info) = error else {
        return LabError::Setup(error.to_string()).into();
    };
    let error = LabError::Machine(format!("the machine did not start: {}", info.kind));
    let fault = info.kind.is_engine_fault().then(|| info.kind.to_string());
    BootFailed { error, fault, logs: Logs { console: info.console, ..Logs::default() } }
}

/// Waits for the agent's hello, as long as the run is wanted. An error comes with the fault of
/// the engine behind it, if that is what it is.
fn wait_for_hello(channel: &Channel, setup: &Setup) -> Result<Hello, (LabError, Option<String>)> {
    let until = Instant::now() + BOOT;
    loop {
        match channel.hello(GLANCE) {
            Ok(hello) => return Ok(hello),
            Err(ChannelError::Timeout { .. }) => {}
            Err(error) => return Err(did_not_come_up(error)),
        }
        if setup.cancel.is_raised() {
            return Err((gave_up(setup), None));
        }
        if Instant::now() >= until {
            let text = format!(
                "the guest hangs while starting: no hello from its agent within {}",
                seconds(BOOT.as_millis() as u64)
            );
            // An emulator may be to blame, the kernel may be: a second attempt tells.
            let fault = (setup.attempt == 1).then(|| "the guest hung while starting".to_string());
            return Err((LabError::Machine(text), fault));
        }
    }
}

/// The end of a boot that nobody wants any more.
fn gave_up(setup: &Setup) -> LabError {
    match setup.cancel.why() {
        Some(Why::Deadline(limit)) => {
            let limit = seconds(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
            let doing = setup.events.doing();
            let text = format!("the scenario did not end within its {limit}: it was still {doing}");
            LabError::Timeout(text)
        }
        _ => LabError::Interrupted,
    }
}

fn did_not_come_up(error: ChannelError) -> (LabError, Option<String>) {
    let ChannelError::MachineEnded(info) = &error else {
        let text = format!("the guest's agent did not come up: {error}");
        return (LabError::Machine(text), None);
    };
    let mut text = format!("the machine ended before its agent was up: {}", info.kind);
    if let ExitKind::Panicked { message } = &info.kind
        && message.to_lowercase().contains("memory")
    {
        text.push_str("; give the machine more memory");
    }
    let fault = info.kind.is_engine_fault().then(|| info.kind.to_string());
    (LabError::Machine(text), fault)
}

/// Hands the scheduler to the agent.
fn attach(
    machine: &Arc<dyn Machine>,
    prepared: &Prepared,
    setup: &Setup,
) -> Result<(), BootFailed> {
    let Some(plan) = &prepared.attach else { return Ok(()) };
    setup.events.stage(Stage::Attach, prepared.name.clone());
    // Attaching keeps the guest busy for a while, and us idle. What is wrong is told by the first
    // freeze.
    let reader = machine.clone();
    let read = move || drop(reader.prepare(&CaptureRequest::default()));
    let _reading = std::thread::Builder::new().name("reader".into()).spawn(read);
    let op = Op::Attach(stage::attach_op(plan, ATTACH));
    let answer =
        call_while_wanted(machine, op, ATTACH + CALL, &setup.cancel).map_err(|_| gave_up(setup))?;
    match answer {
        Ok(Answer::Attached { .. }) => Ok(()),
        Ok(other) => Err(super::unexpected(&other).into()),
        Err(error) => {
            let log = match &error {
                super::CallError::Refused(refusal) => refusal.log.clone(),
                _ => String::new(),
            };
            let exited = machine.exited();
            let fault = exited.filter(|e| e.kind.is_engine_fault()).map(|e| e.kind.to_string());
            let error = error.into_lab_of_attach(&prepared.name);
            let failed = failed(error, fault, &machine.console(), &log, setup);
            machine.stop();
            Err(failed)
        }
    }
}
