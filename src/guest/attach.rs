//! Attaching and detaching, as tasks.

use std::time::{Duration, Instant};

use cryoscope::wire::{Answer, Attach, Refusal, RefusalKind};
use rustix::process::Signal;

use crate::exec::LONGEST;
use crate::jobs::{Task, World};
use crate::loader::Report;
use crate::refuse;
use crate::sched::{LAST_WORDS, Run, Stage, enable_seq, kernel_state, ops_name};
use crate::text::tail;

/// How long a program may take to let go after SIGINT, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Of a log, what a refusal carries.
const LOG_LINES: usize = 400;
const LOG_BYTES: usize = 64 << 10;

/// Brings a scheduler up.
pub(crate) struct AttachTask {
    plan: Attach,
    started: bool,
}

/// Checks what can be checked at once.
pub(crate) fn attach(plan: Attach, world: &World) -> Result<AttachTask, Refusal> {
    if kernel_state().is_none() {
        let message = "this kernel has no sched_ext (CONFIG_SCHED_CLASS_EXT is off)";
        return Err(refuse(RefusalKind::Kernel, message));
    }
    if let Some(run) = &world.sched.run
        && !matches!(run.stage, Stage::Leaving { .. })
    {
        let message = format!("a scheduler ({}) is attached already; detach it first", run.program);
        return Err(refuse(RefusalKind::Invalid, message));
    }
    Ok(AttachTask { plan, started: false })
}

/// A refusal with the end of the scheduler's log; the process goes.
fn give_up(world: &mut World, kind: RefusalKind, message: String) -> Refusal {
    let log = world.sched.run.as_ref().map(Run::log).unwrap_or_default();
    world.sched.forget();
    world.sched.gone = None;
    Refusal { kind, message, log: tail(&log, LOG_LINES, LOG_BYTES) }
}

impl AttachTask {
    /// Waits for a scheduler on its way out, then starts the process.
    fn begin(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        if world.sched.run.is_some() {
            return None;
        }
        match kernel_state().as_deref() {
            Some("disabled") => {}
            Some("enabled") => {
                let ops = ops_name().unwrap_or_default();
                let message = format!(
                    "a scheduler (\"{ops}\") is in charge that was not attached \
                     by the host; it must go first"
                );
                return Some(Err(refuse(RefusalKind::Invalid, message)));
            }
            _ => return None,
        }
        match Run::start(&self.plan) {
            Ok(run) => world.sched.run = Some(run),
            Err(refusal) => return Some(Err(refusal)),
        }
        world.sched.gone = None;
        self.started = true;
        None
    }

    /// What the process's end or its report mean; `None` while neither forbids to go on.
    fn failure(&self, world: &mut World, state: &str) -> Option<Refusal> {
        let run = world.sched.run.as_mut()?;
        let loader: Option<Report> = match (run.ours, run.reported()) {
            (true, true) => serde_json::from_slice(&run.report_text).ok(),
            _ => None,
        };
        if let Some(Err(refusal)) = loader {
            return Some(give_up(world, refusal.kind, refusal.message));
        }
        if !run.ours && run.reported() && !run.report_text.is_empty() {
            let message = String::from_utf8_lossy(&run.report_text).into_owned();
            return Some(give_up(world, RefusalKind::Kernel, message));
        }
        let dropped = matches!(loader, Some(Ok(_))) && state == "disabled";
        if run.ended.is_none() && !dropped {
            return None;
        }
        // The kernel lets go a moment after the process has ended, and says why in its log.
        let just_now = run.ended_at.is_some_and(|at| world.now < at + LAST_WORDS);
        if just_now && state != "disabled" {
            return None;
        }
        let (end, program) = (run.kernel_end(), run.program.clone());
        let kernel = match end.reason.is_empty() {
            true => String::new(),
            false => format!("; the kernel says: {}", end.reason),
        };
        let message = match (run.ended, loader) {
            (Some(how), _) if state == "enabled" => format!(
                "{program} {how} although its scheduler is in charge; a scheduler's program must \
                 stay for as long as it schedules"
            ),
            (Some(how), _) => {
                format!("the scheduler {program} {how} before it was in charge{kernel}")
            }
            (None, Some(Ok(names))) if enable_seq() == run.seq_before && kernel.is_empty() => {
                format!(
                    "sched_ext stays disabled after {program} was attached: is one of its struct_ops \
                 maps ({}) a sched_ext_ops?",
                    names.join(", ")
                )
            }
            _ => format!("the scheduler {program} was dropped as soon as it was attached{kernel}"),
        };
        Some(give_up(world, RefusalKind::Exited, message))
    }
}

impl Task for AttachTask {
    fn wake(&self, now: Instant) -> Option<Instant> {
        // Something on its way out, which nothing announces to this task.
        (!self.started).then_some(now + Duration::from_millis(20))
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        if !self.started {
            return self.begin(world);
        }
        // The state is read before the process's end is looked at: a scheduler that was enabled
        // and whose process has ended since has failed.
        let state = kernel_state().unwrap_or_default();
        if let Some(refusal) = self.failure(world, &state) {
            return Some(Err(refusal));
        }
        let run = world.sched.run.as_mut()?;
        let holds = run.ended.is_none() && (!run.ours || run.reported());
        let ready = state == "enabled" && holds;
        let ops = ops_name().filter(|_| ready)?;
        run.stage = Stage::Attached;
        let log = run.log();
        world.workers.follow_scheduler();
        Some(Ok(Answer::Attached { ops, log }))
    }

    fn timed_out(&mut self, world: &mut World) -> Refusal {
        let state = kernel_state().unwrap_or_default();
        if !self.started {
            let message = format!("the scheduler before is not gone yet; sched_ext is {state}");
            return refuse(RefusalKind::Timeout, message);
        }
        let program = world.sched.run.as_ref().map_or("", |run| &run.program);
        let message = format!(
            "the scheduler {program} is not in charge after {:.1} s; sched_ext is {state}",
            self.patience(world.now).as_secs_f64()
        );
        give_up(world, RefusalKind::Timeout, message)
    }

    fn patience(&self, _: Instant) -> Duration {
        let (Attach::Object { timeout_ms, .. } | Attach::Program { timeout_ms, .. }) = &self.plan;
        Duration::from_millis(*timeout_ms).min(LONGEST)
    }
}

/// Lets the scheduler go.
#[derive(Default)]
pub(crate) struct DetachTask {
    /// When to be less polite, and the signals that are left.
    next: Option<(Instant, usize)>,
}

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::KILL];

impl Task for DetachTask {
    fn wake(&self, _: Instant) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        let now = world.now;
        let Some(run) = &mut world.sched.run else {
            // It left by itself and the host has been told; or there never was one.
            return Some(match world.sched.gone.take() {
                Some(log) => Ok(Answer::Detached { log }),
                None => Err(refuse(RefusalKind::Invalid, "no scheduler is attached")),
            });
        };
        match run.stage {
            Stage::Leaving { .. } | Stage::Attaching => return None,
            Stage::Attached => {
                run.stage = Stage::Detaching;
                self.next = Some((now, 0));
            }
            Stage::Detaching => {}
        }
        if run.ended.is_some() && kernel_state().is_none_or(|s| s == "disabled") {
            let event = world.sched.left_before_detach();
            world.events.extend(event);
            world.sched.forget();
            let log = world.sched.gone.take().unwrap_or_default();
            return Some(Ok(Answer::Detached { log }));
        }
        if let Some((at, index)) = self.next
            && now >= at
        {
            run.signal(SIGNALS[index]);
            self.next = (index + 1 < SIGNALS.len()).then_some((now + GRACE, index + 1));
        }
        None
    }

    fn timed_out(&mut self, world: &mut World) -> Refusal {
        let state = kernel_state().unwrap_or_default();
        give_up(
            world,
            RefusalKind::Timeout,
            format!("the scheduler does not let go; sched_ext is {state}"),
        )
    }
}
