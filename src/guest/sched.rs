//! The scheduler under test: attached, watched, let go.
//!
//! ```text
//!            attach                 sched_ext enabled
//!   none ─────────────▶ attaching ────────────────────▶ attached
//!    ▲                      │ refused, ended, late          │   │ the kernel drops it, or its
//!    │◀─────────────────────┘                        detach │   │ process ends: unasked
//!    │                                                      ▼   ▼
//!    │◀──────────────── its process has ended ───── detaching   leaving
//!    │                                                              │ its last words are in
//!    └───────────────────── Event::SchedulerExited ─────────────────┘
//! ```
//!
//! Either way a process holds it: the user's own program, or a loader of ours (see
//! [`crate::loader`]). The kernel announces each root scheduler with a uevent of the kobject
//! `/kernel/sched_ext/root` (kernel: `kobject_uevent` in `scx_root_enable`, and `kobject_del`,
//! which implies the removal's, when it goes). Where no announcement came, its state is polled.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cryoscope::wire::{Attach, Event, Refusal, RefusalKind, SchedulerState};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::kmsg::{self, SchedulerEnd};
use crate::process::{Ended, read_some};
use crate::sys::{self, Role, Start};
use crate::text::{Ring, tail};
use crate::uevent::Uevents;
use crate::work::Workers;
use crate::{exec, loader, maps, refuse};

const SYSFS: &str = "/sys/kernel/sched_ext";
/// How long a scheduler that has left may take to say its last words and end.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// When the state is looked at although nothing was announced.
const POLL: Duration = Duration::from_millis(200);
/// The same while the kernel lets go.
const POLL_BUSY: Duration = Duration::from_millis(20);

/// Where the scheduler's life stands; see the diagram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    Attaching,
    Attached,
    Leaving { until: Instant },
    Detaching,
}

/// A scheduler's process and what is known of it.
pub(crate) struct Run {
    pub(crate) pid: Pid,
    /// The program, for messages.
    pub(crate) program: String,
    /// Whether it is a loader of ours.
    pub(crate) ours: bool,
    pub(crate) stage: Stage,
    pub(crate) ended: Option<Ended>,
    /// When that was seen.
    pub(crate) ended_at: Option<Instant>,
    /// Numbers of the signals that it was sent.
    sent: Vec<i32>,
    /// What it printed.
    log: Ring,
    out: Option<OwnedFd>,
    /// Our loader's outcome, or why a program could not start; `None` once it is complete.
    report: Option<OwnedFd>,
    pub(crate) report_text: Vec<u8>,
    /// Where the kernel's log stood before.
    mark: Option<kmsg::Mark>,
    /// What the kernel's log has said since.
    kernel_log: String,
    pub(crate) seq_before: u64,
    maps_before: BTreeSet<u32>,
}

/// The scheduler under test, if there is one.
#[derive(Default)]
pub(crate) struct Scheduler {
    pub(crate) run: Option<Run>,
    /// The log of one that has gone, until the host attaches or detaches.
    pub(crate) gone: Option<String>,
    /// Map ids from before the last scheduler.
    maps_before: BTreeSet<u32>,
}

fn sysfs(file: &str) -> Option<String> {
    Some(fs::read_to_string(format!("{SYSFS}/{file}")).ok()?.trim().to_owned())
}

/// `enabled`, `disabled`, ..; `None` on a kernel without sched_ext.
pub(crate) fn kernel_state() -> Option<String> {
    sysfs("state")
}

/// The name of the scheduler in charge.
pub(crate) fn ops_name() -> Option<String> {
    sysfs("root/ops")
}

pub(crate) fn enable_seq() -> u64 {
    sysfs("enable_seq").and_then(|s| s.parse().ok()).unwrap_or(0)
}

impl Run {
    /// Starts the process that `plan` asks for.
    pub(crate) fn start(plan: &Attach) -> Result<Self, Refusal> {
        let failed = |e: io::Error| {
            let message = format!("cannot start the scheduler's process: {}", sys::reason(&e));
            refuse(RefusalKind::Kernel, message)
        };
        match plan {
            Attach::Object { path, patches, .. } => {
                let life = || loader::main(path, patches);
                let start = |start: &Start<'_>| sys::spawn(Role::Own(&life), start);
                Self::spawn(&start, path.clone(), true).map_err(failed)
            }
            Attach::Program { argv, env, .. } => {
                let program = exec::program(argv, env)?;
                Self::spawn(&|start| program.spawn(start), argv[0].clone(), false).map_err(failed)
            }
        }
    }

    fn spawn(
        spawn: &dyn Fn(&Start<'_>) -> io::Result<Pid>,
        program: String,
        ours: bool,
    ) -> io::Result<Self> {
        let (out, out_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC)?;
        for fd in [&out, &report] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let maps_before = maps::all_ids();
        let mark = kmsg::Mark::end().ok();
        let seq_before = enable_seq();
        let null = File::open("/dev/null")?;
        let start = Start {
            stdio: [null.as_fd(), out_end.as_fd(), out_end.as_fd()],
            report: report_end.as_fd(),
            cgroup: None,
            go: None,
        };
        Ok(Run {
            pid: spawn(&start)?,
            program,
            ours,
            stage: Stage::Attaching,
            ended: None,
            ended_at: None,
            sent: Vec::new(),
            log: Ring::default(),
            out: Some(out),
            report: Some(report),
            report_text: Vec::new(),
            mark,
            kernel_log: String::new(),
            seq_before,
            maps_before,
        })
    }

    /// Takes in what the process has written.
    fn read(&mut self) {
        let log = &mut self.log;
        if self.out.as_ref().is_some_and(|fd| !read_some(fd, |b| log.push(b))) {
            self.out = None;
        }
        let text = &mut self.report_text;
        if self.report.as_ref().is_some_and(|fd| !read_some(fd, |b| text.extend(b))) {
            self.report = None;
        }
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// Whether the report is complete.
    pub(crate) fn reported(&self) -> bool {
        self.report.is_none()
    }

    /// What the kernel's log says of its end.
    pub(crate) fn kernel_end(&mut self) -> SchedulerEnd {
        if let Some(mark) = &self.mark {
            let new = mark.read();
            self.kernel_log.push_str(&new);
        }
        kmsg::scheduler_end(&self.kernel_log)
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended.is_none() {
            self.sent.push(signal.as_raw());
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Kills the process and its group.
    pub(crate) fn kill(&mut self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        self.signal(Signal::KILL);
    }

    /// The event that tells of an unasked end.
    fn exited(&mut self) -> Event {
        let end = self.kernel_end();
        let process = self.ended.map(|how| format!("its process, {}, {how}", self.program));
        let reason = match (end.reason.is_empty(), process) {
            (false, _) if !end.unregistered => end.reason,
            (_, Some(process)) => process,
            (false, None) => end.reason,
            (true, None) => "the kernel's log does not say why".into(),
        };
        Event::SchedulerExited { reason, log: self.log(), dmesg: tail(&end.lines, 200, 32 << 10) }
    }
}

impl Scheduler {
    /// Whether a scheduler runs the machine, whoever attached it.
    pub(crate) fn is_in_charge(&self) -> bool {
        kernel_state().as_deref() == Some("enabled")
    }

    /// Whether the one that the host asked for is attached.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(&self.run, Some(run) if run.stage == Stage::Attached)
    }

    pub(crate) fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if let Some(run) = &self.run {
            let open = run.out.iter().chain(&run.report);
            out.extend(open.map(|fd| (fd.as_fd(), PollFlags::IN)));
        }
    }

    /// When to look again although nothing happened.
    pub(crate) fn wake(&self, now: Instant, uevents: &Uevents) -> Option<Instant> {
        match self.run.as_ref()?.stage {
            Stage::Attached if uevents.announced() => None,
            // What matters wakes the loop: an announcement, a report, the end of the process.
            Stage::Attached | Stage::Attaching => Some(now + POLL),
            // The removal is announced just before the state is "disabled".
            Stage::Detaching | Stage::Leaving { .. } => Some(now + POLL_BUSY),
        }
    }

    /// Takes in what happened in this round; an event when the scheduler left unasked.
    pub(crate) fn advance(
        &mut self,
        now: Instant,
        ended: &[(u32, Ended)],
        uevents: &mut Uevents,
    ) -> Option<Event> {
        let removed = uevents.take_removed();
        let run = self.run.as_mut()?;
        run.read();
        let pid = Pid::as_raw(Some(run.pid)) as u32;
        if let Some((_, how)) = ended.iter().find(|(p, _)| *p == pid) {
            (run.ended, run.ended_at) = (Some(*how), Some(now));
            run.read();
        }
        match run.stage {
            Stage::Attached => {
                let gone = removed || (!uevents.announced() && !enabled());
                if gone || run.ended.is_some() {
                    run.stage = Stage::Leaving { until: now + LAST_WORDS };
                    if run.ours {
                        run.signal(Signal::TERM);
                    }
                }
                None
            }
            Stage::Leaving { until } => {
                if now >= until {
                    run.kill();
                }
                // The kernel lets go when the process has; its reason is in the log before that.
                let settled = run.ended.is_some() && kernel_state().is_none_or(|s| s == "disabled");
                if !settled && now < until + 5 * LAST_WORDS {
                    return None;
                }
                let event = run.exited();
                self.forget();
                Some(event)
            }
            Stage::Attaching | Stage::Detaching => None,
        }
    }

    /// Drops the process, which must have ended or been killed; keeps what it said.
    pub(crate) fn forget(&mut self) {
        if let Some(mut run) = self.run.take() {
            run.kill();
            self.gone = Some(run.log());
            self.maps_before = run.maps_before;
        }
    }

    /// An event that a detach overtook: the scheduler had left by itself before.
    pub(crate) fn left_before_detach(&mut self) -> Option<Event> {
        let run = self.run.as_mut()?;
        let end = run.kernel_end();
        let dropped = !end.reason.is_empty() && !end.unregistered;
        let killed = matches!(run.ended, Some(Ended::Signal(n)) if !run.sent.contains(&n));
        (dropped || killed).then(|| run.exited())
    }

    /// Map ids from before the attached, or else the last, scheduler.
    pub(crate) fn maps_before(&self) -> &BTreeSet<u32> {
        self.run.as_ref().map_or(&self.maps_before, |run| &run.maps_before)
    }

    /// sched_ext and the loader as they are now.
    pub(crate) fn state(&self, workers: &Workers) -> SchedulerState {
        let state = kernel_state().unwrap_or_default();
        SchedulerState {
            strays: if state == "enabled" { workers.strays() } else { Vec::new() },
            state,
            ops: ops_name(),
            enable_seq: enable_seq(),
            attached: self.is_attached(),
            log: self.run.as_ref().map_or_else(|| self.gone.clone().unwrap_or_default(), Run::log),
        }
    }
}

fn enabled() -> bool {
    kernel_state().as_deref() == Some("enabled")
}
