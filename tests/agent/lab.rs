//! A machine with the agent in it, for tests: what goes wrong is shown with the console, the last
//! frames, and what was waited for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels};
use cryoscope::scheduler::{self, AttachPlan, Contents, SchedulerSpec, Toolchain};
use cryoscope::vm::channel::{Channel, ChannelError};
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::topology::Topology;
use cryoscope::vm::{self, Boot, Engine, EngineChoice, ExitInfo, VmSpec};
use cryoscope::wire::{
    Answer, Attach, Event, Exec, Hello, Op, Patch, Refusal, SchedulerState, Work, WorkKind,
};

/// How long anything in an emulated guest may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn cache() -> CacheDir {
    let env = std::env::var_os;
    CacheDir::locate(env("XDG_CACHE_HOME"), env("HOME")).expect("a place for the cache")
}

pub(crate) fn kernel(spec: &str) -> KernelImage {
    let (cache, progress) = (cache(), Printed::to_stderr());
    Kernels::new(&cache, &progress).resolve(spec).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

/// An emulated machine takes a whole CPU: they run one after the other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Lab {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) channel: Channel,
    pub(crate) hello: Hello,
    /// The host's end of the transport, for what no channel would send.
    pub(crate) transport: OwnedFd,
    _alone: MutexGuard<'static, ()>,
}

/// An initramfs with the agent.
pub(crate) fn guest() -> Initramfs {
    let mut fs = Initramfs::new();
    fs.agent(Path::new(env!("CARGO_BIN_EXE_cryoscope-agent"))).expect("the agent can be staged");
    fs
}

pub(crate) fn start(
    kernel: &KernelImage,
    topology: &str,
    fs: &Initramfs,
    kargs: &[&str],
) -> Box<dyn Engine> {
    let archive: Arc<[u8]> = fs.build().expect("the archive is small").into();
    let topology = Topology::parse(topology).expect("a valid topology");
    let boot = Boot::Elf(PathBuf::from(kernel.elf()));
    let mut spec = VmSpec::new(boot, archive, topology, 512 << 20);
    spec.kargs = kargs.iter().map(|a| (*a).to_owned()).collect();
    vm::start(&spec, EngineChoice::Qemu).unwrap_or_else(|e| panic!("no machine: {e}"))
}

impl Lab {
    pub(crate) fn boot(kernel: &KernelImage, topology: &str, fs: &Initramfs) -> Lab {
        let alone = alone();
        let mut engine = start(kernel, topology, fs, &[]);
        let fd = engine.take_transport().expect("a new machine has its transport");
        let transport = fd.as_fd().try_clone_to_owned().unwrap();
        let channel = Channel::new(fd, Some(engine.exit_watch())).expect("a channel");
        let hello = channel.hello(PATIENCE).unwrap_or_else(|e| {
            panic!("no hello: {e}\n--- console\n{}", engine.console().tail(40))
        });
        Lab { engine, channel, hello, transport, _alone: alone }
    }

    /// Everything that helps to understand why `what` did not come true.
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!(
            "{what}\n--- frames\n{}\n--- console\n{}",
            self.channel.trace().join("\n"),
            self.engine.console().tail(40)
        )
    }

    pub(crate) fn call(&self, op: Op) -> Answer {
        let text = format!("{op:?}");
        self.channel
            .call(op, PATIENCE)
            .unwrap_or_else(|e| self.fail(&format!("{text} failed: {e}{}", log_of(&e))))
    }

    pub(crate) fn done(&self, op: Op) {
        let text = format!("{op:?}");
        let answer = self.call(op);
        if answer != Answer::Done {
            self.fail(&format!("{text} gave {answer:?}"));
        }
    }

    pub(crate) fn refused(&self, op: Op) -> Refusal {
        let text = format!("{op:?}");
        match self.channel.call(op, PATIENCE) {
            Err(ChannelError::Refused(refusal)) => refusal,
            other => self.fail(&format!("{text} should have been refused: {other:?}")),
        }
    }

    pub(crate) fn event(&self, what: &str) -> Event {
        match self.channel.wait_event(PATIENCE) {
            Ok(Some(event)) => event,
            other => self.fail(&format!("no event ({what}): {other:?}")),
        }
    }

    pub(crate) fn no_event(&self) {
        if let Some(event) = self.channel.try_event() {
            self.fail(&format!("nothing should have happened: {event:?}"));
        }
    }

    pub(crate) fn exec(&self, argv: &[&str]) -> Exec {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        match self.call(Op::Exec { argv, timeout_ms: 60_000 }) {
            Answer::Exec(done) => done,
            other => self.fail(&format!("exec gave {other:?}")),
        }
    }

    pub(crate) fn read(&self, path: &str) -> String {
        match self.call(Op::ReadFile { path: path.into(), offset: 0 }) {
            Answer::File { bytes, .. } => String::from_utf8_lossy(&bytes).into_owned(),
            other => self.fail(&format!("{path}: {other:?}")),
        }
    }

    /// A line `key:\tvalue` of `/proc/PID/status` or `/proc/PID/sched`.
    pub(crate) fn proc(&self, pid: u32, file: &str, key: &str) -> String {
        let text = self.read(&format!("/proc/{pid}/{file}"));
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        });
        value.unwrap_or_else(|| self.fail(&format!("no {key} in /proc/{pid}/{file}:\n{text}")))
    }

    pub(crate) fn number(&self, pid: u32, file: &str, key: &str) -> f64 {
        let text = self.proc(pid, file, key);
        text.parse().unwrap_or_else(|_| self.fail(&format!("{key} of {pid} is {text:?}")))
    }

    /// Waits until `check` holds.
    pub(crate) fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check() {
            if Instant::now() > deadline {
                self.fail(&format!("waited in vain until {what}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn start(&self, work: Work) -> Vec<u32> {
        match self.call(Op::Start(work)) {
            Answer::Workers(pids) => pids,
            other => self.fail(&format!("start gave {other:?}")),
        }
    }

    pub(crate) fn procs(&self, group: &str) -> Vec<u32> {
        match self.call(Op::CgroupProcs { name: group.into() }) {
            Answer::Pids(pids) => pids,
            other => self.fail(&format!("procs gave {other:?}")),
        }
    }

    pub(crate) fn state(&self) -> SchedulerState {
        match self.call(Op::SchedulerState) {
            Answer::Scheduler(state) => state,
            other => self.fail(&format!("state gave {other:?}")),
        }
    }

    /// All entries of a held map.
    pub(crate) fn entries(&self, id: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut all, mut skip) = (Vec::new(), 0);
        loop {
            match self.call(Op::DumpMap { id, skip }) {
                Answer::MapPage { entries, next, more } => {
                    all.extend(entries.into_iter().map(|(key, value)| (key.0, value.0)));
                    if !more {
                        return all;
                    }
                    skip = next;
                }
                other => self.fail(&format!("map {id} gave {other:?}")),
            }
        }
    }

    /// Asks for the end and waits for it.
    pub(crate) fn power_off(mut self) -> ExitInfo {
        let gone = self.channel.call(Op::PowerOff, PATIENCE);
        self.wait_for_end(&format!("{gone:?}"))
    }

    pub(crate) fn wait_for_end(&mut self, asked: &str) -> ExitInfo {
        match self.engine.exit_watch().wait(PATIENCE) {
            Some(end) => end,
            None => self.fail(&format!("the machine did not end ({asked})")),
        }
    }
}

fn log_of(error: &ChannelError) -> String {
    match error {
        ChannelError::Refused(refusal) => format!("\n--- log\n{}", refusal.log),
        _ => String::new(),
    }
}

/// Workers of one kind, everything else as it comes.
pub(crate) fn work(kind: WorkKind, count: u32) -> Work {
    Work { kind, count, cgroup: None, policy: None, nice: None, affinity: None, period_us: None }
}

/// A scheduler of this repository, compiled for `kernel` and staged; how to attach it.
pub(crate) fn scheduler(
    fs: &mut Initramfs,
    kernel: &KernelImage,
    src: &str,
    values: &[(&str, u64)],
) -> Attach {
    let rodata = values.iter().map(|(name, v)| ((*name).to_owned(), (*v).into())).collect();
    let base_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let spec = SchedulerSpec { src: src.into(), rodata, base_dir, ..SchedulerSpec::default() };
    let tools = Toolchain::new(None, std::env::var_os("PATH"));
    let prepared = scheduler::prepare(&spec, kernel, &cache(), &tools)
        .unwrap_or_else(|e| panic!("{src}: {e}"));
    for file in prepared.files {
        let staged = match (&file.contents, file.closure) {
            (Contents::Host(path), true) => fs.elf(path, &file.guest),
            (Contents::Host(path), false) => fs.file(path, &file.guest, file.mode),
            (Contents::Bytes(bytes), _) => fs.bytes(&file.guest, bytes.clone(), file.mode),
        };
        staged.unwrap_or_else(|e| panic!("{src}: {e}"));
    }
    match prepared.attach {
        Some(AttachPlan::Object { guest_path, patches }) => {
            let patch = |p: scheduler::Patch| Patch {
                section: p.section,
                offset: p.offset,
                bytes: p.bytes,
            };
            let patches = patches.into_iter().map(patch).collect();
            Attach::Object { path: guest_path, patches, timeout_ms: 60_000 }
        }
        other => panic!("{src} is no object: {other:?}"),
    }
}
