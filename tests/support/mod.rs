//! What tests of machines share: the cache of kernels, a booted guest that is ready to serve, and
//! everything worth knowing about it when a test fails.

#![allow(dead_code, unreachable_pub)]

pub mod machine;
pub mod modules;
pub mod outer;
pub mod scripts;
pub mod shape;
pub mod shapes;
pub mod soak;
pub mod traps;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cryoscope::kernel::progress::Silent;
use cryoscope::kernel::{self, CacheDir, KernelImage};
use cryoscope::mem::GuestMem;
use cryoscope::scheduler::{self, AttachPlan, Contents, Prepared, SchedulerSpec, Toolchain};
use cryoscope::vm::channel::Channel;
use cryoscope::vm::initramfs::Initramfs;
use cryoscope::vm::topology::Topology;
use cryoscope::vm::{self, Boot, Engine, EngineChoice, VmSpec};
use cryoscope::wire::{Answer, Attach, Op, Patch};

/// How long a boot may take: the emulator, a busy host of two cores, a debug build.
pub const BOOT: Duration = Duration::from_secs(120);
/// How long any one request may take.
pub const CALL: Duration = Duration::from_secs(60);

/// The cache that the command itself uses, so that kernels are fetched once.
pub fn cache() -> CacheDir {
    let var = |name| std::env::var_os(name);
    CacheDir::locate(var("XDG_CACHE_HOME"), var("HOME")).expect("a cache directory")
}

/// A kernel by its spec, fetched if need be.
pub fn kernel(spec: &str) -> KernelImage {
    kernel::resolve(spec, &cache(), &Silent).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

/// How a kernel is entered.
pub fn elf(kernel: &KernelImage) -> Boot {
    Boot::Elf(kernel.elf().to_owned())
}

/// The same kernel as it was packaged, with KASLR.
pub fn bzimage(kernel: &KernelImage) -> Boot {
    Boot::BzImage(kernel.bzimage().expect("a packaged kernel is a bzImage").to_owned())
}

/// The agent that was built with this test.
pub fn agent() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cryoscope-agent"))
}

/// A path in the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A scheduler of the project, compiled for a kernel.
pub fn scheduler(source: &str, kernel: &KernelImage) -> Prepared {
    let spec =
        SchedulerSpec { src: source.to_owned(), base_dir: project(""), ..Default::default() };
    scheduler::prepare(&spec, kernel, &cache(), &Toolchain::new(None, std::env::var_os("PATH")))
        .unwrap_or_else(|e| panic!("{source}: {e}"))
}

/// Puts a scheduler's files into a guest.
pub fn stage(initramfs: &mut Initramfs, prepared: &Prepared) {
    for file in &prepared.files {
        let staged = match &file.contents {
            Contents::Host(path) if file.closure => initramfs.elf(path, &file.guest),
            Contents::Host(path) => initramfs.file(path, &file.guest, file.mode),
            Contents::Bytes(bytes) => initramfs.bytes(&file.guest, bytes.clone(), file.mode),
        };
        staged.unwrap_or_else(|e| panic!("{}: {e}", file.guest));
    }
}

/// The request that brings a scheduler up.
pub fn attach(prepared: &Prepared) -> Op {
    Op::Attach(match prepared.attach.clone().expect("there is a scheduler") {
        AttachPlan::Object { guest_path, patches } => Attach::Object {
            path: guest_path,
            patches: patches
                .into_iter()
                .map(|p| Patch { section: p.section, offset: p.offset, bytes: p.bytes })
                .collect(),
            timeout_ms: CALL.as_millis() as u64,
        },
        AttachPlan::Program { argv, env } => {
            Attach::Program { argv, env, timeout_ms: CALL.as_millis() as u64 }
        }
    })
}

/// A machine of 512 MiB with the agent and whatever else `stage` adds.
pub fn spec(boot: Boot, topology: &str, stage: impl FnOnce(&mut Initramfs)) -> VmSpec {
    let mut initramfs = Initramfs::new();
    initramfs.agent(agent()).expect("the agent can be staged");
    stage(&mut initramfs);
    let archive = initramfs.build().expect("an archive");
    let topology: Topology = topology.parse().expect("a topology");
    VmSpec::new(boot, archive.into(), topology, 512 << 20)
}

/// A guest whose agent has said hello. When a test that holds one fails, it prints the console,
/// the frames and how the machine ended.
pub struct Guest {
    engine: Option<Box<dyn Engine>>,
    pub channel: Channel,
}

impl Guest {
    /// Boots with the agent and whatever else `stage` adds.
    pub fn boot(boot: Boot, topology: &str, stage: impl FnOnce(&mut Initramfs)) -> Guest {
        Guest::start(&spec(boot, topology, stage))
    }

    /// Starts the machine that `spec` describes.
    pub fn start(spec: &VmSpec) -> Guest {
        let mut engine = vm::start(spec, EngineChoice::Qemu).expect("the machine starts");
        let transport = engine.take_transport().expect("a transport");
        let watch = engine.exit_watch();
        let channel = Channel::new(transport, Some(watch)).expect("a channel");
        let guest = Guest { engine: Some(engine), channel };
        if let Err(e) = guest.channel.hello(BOOT) {
            panic!("waiting for the agent's hello: {e}");
        }
        guest
    }

    /// The machine.
    pub fn engine(&mut self) -> &mut dyn Engine {
        self.engine.as_deref_mut().expect("the machine is still here")
    }

    /// Hands out the machine, for those who freeze it themselves.
    pub fn take_engine(&mut self) -> Box<dyn Engine> {
        self.engine.take().expect("the machine is still here")
    }

    /// Guest RAM.
    pub fn memory(&self) -> Arc<dyn GuestMem> {
        self.engine.as_ref().expect("the machine is still here").memory()
    }

    /// One request that must succeed.
    pub fn call(&self, op: Op) -> Answer {
        match self.channel.call(op.clone(), CALL) {
            Ok(answer) => answer,
            Err(e) => panic!("{op:?}: {e}"),
        }
    }

    /// The contents of a file in the guest.
    pub fn file(&self, path: &str) -> String {
        let (mut text, mut from) = (Vec::new(), 0);
        loop {
            match self.call(Op::ReadFile { path: path.to_owned(), offset: from }) {
                Answer::File { bytes, truncated } => {
                    from += bytes.len() as u64;
                    text.extend(bytes);
                    if !truncated {
                        return String::from_utf8_lossy(&text).into_owned();
                    }
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- frames\n{}", self.channel.trace().join("\n"));
            if let Some(engine) = &self.engine {
                eprintln!("--- console\n{}", engine.console().tail(60));
                eprintln!("--- machine: {:?}", engine.exited());
            }
        }
    }
}
