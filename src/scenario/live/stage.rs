//! What is put into the guest before it starts, and how its scheduler is brought up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::boot::Setup;
use crate::kernel::{CacheDir, KernelImage};
use crate::scenario::event::Stage;
use crate::scenario::lab::{LabError, LabResult};
use crate::scenario::verdict::Recorder;
use crate::scenario::{ScenarioDecl, SchedulerOptions};
use crate::scheduler::{
    AttachPlan, Contents, Prepared, SchedulerSpec, StagedFile, Toolchain, prepare, stage,
};
use crate::vm::initramfs::{Initramfs, InitramfsError};
use crate::wire::{Attach, Patch};

/// Compiles and checks the scheduler. What its author can mend is a failure, the rest is not.
pub(super) fn scheduler(
    decl: &ScenarioDecl,
    kernel: &KernelImage,
    setup: &Setup,
) -> LabResult<Prepared> {
    let asked = &decl.options.scheduler;
    setup.events.stage(Stage::Scheduler, asked.src.clone());
    prepared(asked, decl.base_dir(), kernel, &setup.cache, &setup.tools, &setup.recorder)
}

/// The same of any scheduler, whose paths start from a directory.
pub(super) fn prepared(
    asked: &SchedulerOptions,
    base_dir: &Path,
    kernel: &KernelImage,
    cache: &CacheDir,
    tools: &Toolchain,
    recorder: &Recorder,
) -> LabResult<Prepared> {
    let asked = asked.clone();
    let spec = SchedulerSpec {
        src: asked.src,
        rodata: asked.rodata,
        args: asked.args,
        include: asked.include.into_iter().map(Into::into).collect(),
        defines: asked.defines,
        staged: asked.staged,
        env: asked.env,
        base_dir: base_dir.to_owned(),
    };
    let prepared = prepare(&spec, kernel, cache, tools).map_err(|error| {
        let text = error.to_string();
        if error.is_schedulers_fault() { LabError::Scheduler(text) } else { LabError::Setup(text) }
    })?;
    if !prepared.log.trim().is_empty() {
        recorder.note(format!("the compiler warns:\n{}", prepared.log.trim_end()), None);
    }
    Ok(prepared)
}

/// What the agent is told.
pub(super) fn attach_op(plan: &AttachPlan, within: Duration) -> Attach {
    let timeout_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    match plan.clone() {
        AttachPlan::Object { guest_path, patches } => {
            let patch = |p: crate::scheduler::Patch| Patch {
                section: p.section,
                offset: p.offset,
                bytes: p.bytes,
            };
            let patches = patches.into_iter().map(patch).collect();
            Attach::Object { path: guest_path, patches, timeout_ms }
        }
        AttachPlan::Program { argv, env } => Attach::Program { argv, env, timeout_ms },
    }
}

/// The guest's root file system: the agent, the scheduler's files and the scenario's own.
pub(super) fn initramfs(
    decl: &ScenarioDecl,
    scheduler: &Prepared,
    setup: &Setup,
) -> LabResult<Arc<[u8]>> {
    let set_up = |e: InitramfsError| LabError::Setup(e.to_string());
    let mut fs = Initramfs::new();
    fs.agent(&setup.agent).map_err(set_up)?;
    for file in &scheduler.files {
        staged_file(&mut fs, file).map_err(set_up)?;
    }
    for (host, guest) in &decl.options.include_files {
        let file = stage(&decl.base_dir().join(host), guest);
        staged_file(&mut fs, &file.map_err(|e| LabError::Setup(e.to_string()))?).map_err(set_up)?;
    }
    Ok(fs.build().map_err(set_up)?.into())
}

pub(super) fn staged_file(fs: &mut Initramfs, file: &StagedFile) -> Result<(), InitramfsError> {
    match &file.contents {
        Contents::Host(host) if file.closure => fs.elf(host, &file.guest),
        Contents::Host(host) => fs.file(host, &file.guest, file.mode),
        Contents::Bytes(bytes) => fs.bytes(&file.guest, bytes.clone(), file.mode),
    }
}
