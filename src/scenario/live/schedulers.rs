//! Schedulers that a script attaches, replaces and restarts while the machine runs.
//!
//! ```text
//!   (none) ──attach──▶ under test ──detach──▶ (none)
//!      ▲                │   │ ▲
//!      └─ left unasked ─┘   └─┘ replace, restart: for a moment the kernel's own is in charge
//! ```

use std::path::PathBuf;
use std::time::Instant;

use super::boot::ATTACH;
use super::stage;
use super::{CALL, Lab, unexpected};
use crate::kernel::{CacheDir, KernelImage};
use crate::scenario::SchedulerOptions;
use crate::scenario::event::RunEvent;
use crate::scenario::lab::{LabError, LabResult};
use crate::scenario::stats;
use crate::scenario::verdict::Recorder;
use crate::scheduler::{AttachPlan, Prepared, StagedFile, Toolchain};
use crate::vm::initramfs::Initramfs;
use crate::wire::{Answer, Op};

/// Bytes of a file that go into one frame; on the wire they are twice as many.
const CHUNK: usize = 1 << 20;

/// The scheduler under test.
#[derive(Clone, Default)]
pub(super) struct Current {
    /// What to call it.
    pub(super) name: String,
    /// How it was brought up; none where there never was one.
    pub(super) plan: Option<AttachPlan>,
    /// Whether it is meant to be attached: it was, and nobody has detached it.
    pub(super) attached: bool,
    /// Whether it left by itself.
    pub(super) left: bool,
    /// Where it serves statistics, if the author says so.
    pub(super) socket: Option<String>,
}

impl Current {
    /// One that was just attached.
    pub(super) fn of(prepared: &Prepared, asked: &SchedulerOptions) -> Current {
        let (name, plan) = (prepared.name.clone(), prepared.attach.clone());
        let (attached, socket) = (plan.is_some(), asked.stats.clone());
        Current { name, attached, plan, left: false, socket }
    }

    /// Where statistics are asked for, of a program that may serve them.
    pub(super) fn serves(&self) -> Option<String> {
        let program = self.attached && matches!(self.plan, Some(AttachPlan::Program { .. }));
        program.then(|| self.socket.clone().unwrap_or_else(|| stats::SOCKET.to_owned()))
    }
}

/// Makes schedulers ready for this machine's kernel.
pub(super) struct Preparer {
    pub(super) kernel: KernelImage,
    pub(super) cache: CacheDir,
    pub(super) tools: Toolchain,
    pub(super) base_dir: PathBuf,
    pub(super) recorder: Recorder,
}

impl Preparer {
    pub(super) fn prepare(&self, asked: &SchedulerOptions) -> LabResult<Prepared> {
        let Preparer { kernel, cache, tools, base_dir, recorder } = self;
        stage::prepared(asked, base_dir, kernel, cache, tools, recorder)
    }
}

impl Lab {
    /// Whether there is one that is meant to be attached.
    fn is_attached(&self) -> bool {
        let state = self.state();
        state.scheduler.attached && !state.scheduler.left
    }

    /// Refuses what only works with a scheduler, or only without.
    fn attached(&self, wanted: bool, what: &str) -> LabResult<()> {
        if self.is_attached() == wanted {
            return Ok(());
        }
        let name = self.state().scheduler.name.clone();
        Err(LabError::Argument(match wanted {
            false => format!(
                "cannot {what} a scheduler: {name} is attached already; t.scheduler.replace(..) puts \
                 another one in its place, t.scheduler.detach() lets it go"
            ),
            true => format!(
                "cannot {what} the scheduler: none is attached; t.scheduler.attach(..) brings one up"
            ),
        }))
    }

    pub(super) fn attach_scheduler(&self, asked: &SchedulerOptions) -> LabResult<()> {
        self.go_on()?;
        self.runs("attach a scheduler")?;
        self.attached(false, "attach")?;
        let prepared = self.made_ready(asked)?;
        self.bring_up(&prepared, asked)
    }

    pub(super) fn replace_scheduler(&self, asked: &SchedulerOptions) -> LabResult<()> {
        self.go_on()?;
        self.runs("replace the scheduler")?;
        self.attached(true, "replace")?;
        let prepared = self.made_ready(asked)?;
        self.detach_scheduler()?;
        self.bring_up(&prepared, asked)
    }

    pub(super) fn restart_scheduler(&self) -> LabResult<()> {
        self.go_on()?;
        self.runs("restart the scheduler")?;
        self.attached(true, "restart")?;
        let again = self.state().scheduler.clone();
        self.detach_scheduler()?;
        self.load(again)
    }

    pub(super) fn detach_scheduler(&self) -> LabResult<()> {
        self.go_on()?;
        self.runs("ask the guest")?;
        self.attached(true, "detach")?;
        self.machine.forget_exits();
        match self.call(Op::Detach)? {
            Answer::Detached { .. } => {
                self.state().scheduler.attached = false;
                self.stats.changed(None);
                self.tell_scheduler(None);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Compiles and checks a scheduler while the machine stands, so that the workload does not run on
    /// for as long as a compiler takes, and puts its files into the guest.
    fn made_ready(&self, asked: &SchedulerOptions) -> LabResult<Prepared> {
        let Some(preparer) = &self.parts.preparer else {
            let text = "this machine cannot bring up another scheduler";
            return Err(LabError::Unsupported(text.to_owned()));
        };
        if asked.is_none() {
            let text =
                "\"none\" is the kernel's own scheduler: t.scheduler.detach() lets it take over";
            return Err(LabError::Argument(text.to_owned()));
        }
        self.machine.pause().map_err(|e| self.failed(e))?;
        let prepared = preparer.prepare(asked);
        self.machine.resume().map_err(|e| self.failed(e))?;
        let prepared = prepared?;
        self.put_files(&prepared)?;
        Ok(prepared)
    }

    fn put_files(&self, prepared: &Prepared) -> LabResult<()> {
        let set_up = |e: crate::vm::initramfs::InitramfsError| LabError::Setup(e.to_string());
        let mut fs = Initramfs::new();
        let fresh = |file: &&StagedFile| !self.state().staged.contains(file);
        let files: Vec<&StagedFile> = prepared.files.iter().filter(fresh).collect();
        for file in &files {
            stage::staged_file(&mut fs, file).map_err(set_up)?;
        }
        for (path, mode, bytes) in fs.files() {
            // An empty file is one chunk, too.
            let count = bytes.len().div_ceil(CHUNK).max(1);
            for i in 0..count {
                let part = &bytes[i * CHUNK..bytes.len().min((i + 1) * CHUNK)];
                let (path, bytes) = (path.clone(), part.to_vec());
                self.done(Op::WriteFile { path, mode, append: i > 0, bytes })?;
            }
        }
        let mut state = self.state();
        for file in files {
            state.staged.retain(|known| known.guest != file.guest);
            state.staged.push(file.clone());
        }
        Ok(())
    }

    /// Says that one was attached, or let go.
    fn tell_scheduler(&self, attached: Option<String>) {
        let elapsed_ms = self.state().clock.elapsed_ms(Instant::now());
        let cell = self.parts.events.cell();
        self.parts.events.send(&RunEvent::Scheduler { cell, attached, elapsed_ms });
    }

    fn bring_up(&self, prepared: &Prepared, asked: &SchedulerOptions) -> LabResult<()> {
        self.load(Current::of(prepared, asked))
    }

    /// Loads a scheduler whose files are in the guest, and expects it to leave some time.
    fn load(&self, scheduler: Current) -> LabResult<()> {
        let Some(plan) = &scheduler.plan else { return Ok(()) };
        let op = Op::Attach(stage::attach_op(plan, ATTACH));
        let within = ATTACH + CALL;
        match super::call_while_wanted(&self.machine, op, within, &self.parts.cancel)? {
            Ok(Answer::Attached { .. }) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(_) if self.machine.exited().is_some() => return self.is_well(),
            Err(error) => return Err(error.into_lab_of_attach(&scheduler.name)),
        }
        let mut state = self.state();
        state.scheduler = Current { attached: true, left: false, ..scheduler };
        state.under_test = true;
        self.stats.changed(state.scheduler.serves());
        let name = state.scheduler.name.clone();
        drop(state);
        self.expect_exits();
        self.tell_scheduler(Some(name));
        Ok(())
    }
}
