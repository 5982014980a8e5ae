//! Workers as the agent sees them: started, placed, watched, stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cryoscope::wire::{
    Answer, Event, MAX_STRAYS, MAX_WORKERS, Policy, Refusal, RefusalKind, SCHED_EXT, Work, WorkKind,
};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::jobs::{Task, World};
use crate::process::{Ended, read_some};
use crate::sys::{self, Role, Start, reason};
use crate::worker::{self, READY, name};
use crate::{kmsg, refuse};

/// How long workers may take to be ready or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

struct Worker {
    /// Whether it had no policy of its own and follows the scheduler under test.
    follows: bool,
    /// Whether its end is an event: it was started, and was not told to end.
    expected: bool,
}

/// Those alive, or dead and not yet reaped.
#[derive(Default)]
pub(crate) struct Workers {
    alive: BTreeMap<u32, Worker>,
}

impl Workers {
    /// Takes note of an ended child; an event when it was a worker that should be alive.
    pub(crate) fn ended(&mut self, pid: u32, how: Ended) -> Option<Event> {
        let worker = self.alive.remove(&pid)?;
        let reason = how.to_string();
        worker.expected.then_some(Event::WorkerExited { pid, reason })
    }

    /// Kills workers; [`StopTask`] waits for their end.
    pub(crate) fn kill(&mut self, pids: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut killed = Vec::new();
        for pid in pids {
            // Only workers, which this process has not reaped: the number is still theirs.
            let Some(worker) = self.alive.get_mut(&pid) else { continue };
            worker.expected = false;
            if let Some(target) = pid.try_into().ok().and_then(Pid::from_raw) {
                let _ = kill_process(target, Signal::KILL);
            }
            killed.push(pid);
        }
        killed
    }

    pub(crate) fn all(&self) -> Vec<u32> {
        self.alive.keys().copied().collect()
    }

    /// Workers that follow the scheduler but are not under it, with their policies' numbers.
    pub(crate) fn strays(&self) -> Vec<(u32, u32)> {
        let following = self.alive.iter().filter(|(_, w)| w.follows && w.expected);
        let policies = following.filter_map(|(pid, _)| {
            let target = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            Some((*pid, sys::policy(target).ok()?))
        });
        policies.filter(|(_, policy)| *policy != SCHED_EXT).take(MAX_STRAYS).collect()
    }

    /// Puts workers without a policy of their own under the scheduler that has just come, for
    /// one that takes only tasks of SCHED_EXT.
    pub(crate) fn follow_scheduler(&self) {
        let following = self.alive.iter().filter(|(_, w)| w.follows && w.expected);
        for (pid, _) in following {
            let target = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            if let Err(error) = sys::set_policy(target, Policy::Ext, false) {
                kmsg::say(&format!("worker {pid} cannot join SCHED_EXT: {error}"));
            }
        }
    }
}

/// Workers that have been started and are not yet all ready.
pub(crate) struct StartTask {
    pids: Vec<u32>,
    /// Their report pipes, with what came.
    waiting: Vec<(u32, OwnedFd, Vec<u8>)>,
    kind: WorkKind,
    policy: Option<Policy>,
    /// Closing it lets them go.
    line: Option<OwnedFd>,
}

/// Starts them. They are ready when the task is done.
pub(crate) fn start(work: &Work, world: &mut World) -> Result<StartTask, Refusal> {
    let invalid = |message: String| Err(refuse(RefusalKind::Invalid, message));
    let kind = name(work.kind);
    if work.count == 0 {
        return invalid(format!("{kind} workers: a count of 0 starts nothing"));
    }
    if work.kind == WorkKind::Pipe && !work.count.is_multiple_of(2) {
        return invalid(format!(
            "pipe workers come in pairs: {} is odd, ask for {}",
            work.count,
            work.count.saturating_add(1)
        ));
    }
    if let Some(nice) = work.nice.filter(|n| !(-20..=19).contains(n)) {
        return invalid(format!("{kind} workers: nice is -20 to 19, not {nice}"));
    }
    let alive = world.workers.alive.len();
    if alive.saturating_add(work.count as usize) > MAX_WORKERS as usize {
        return invalid(format!(
            "{} {kind} workers asked, {alive} are there; at most {MAX_WORKERS} can be",
            work.count
        ));
    }
    let entrance = work.cgroup.as_deref().map(|name| world.groups.entrance(name)).transpose()?;
    let follows = work.policy.is_none();
    let mut task = StartTask {
        pids: Vec::new(),
        waiting: Vec::new(),
        kind: work.kind,
        policy: work.policy,
        line: None,
    };
    let started = spawn_all(work, entrance.as_ref().map(AsFd::as_fd), &mut task, &mut |pid| {
        world.workers.alive.insert(pid, Worker { follows, expected: false });
    });
    if let Err(error) = started {
        world.workers.kill(task.pids.iter().copied());
        let message = format!("cannot start {kind} workers: {}", reason(&error));
        return Err(refuse(RefusalKind::Kernel, message));
    }
    Ok(task)
}

fn spawn_all(
    spec: &Work,
    cgroup: Option<BorrowedFd<'_>>,
    task: &mut StartTask,
    note: &mut dyn FnMut(u32),
) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let console = rustix::stdio::stderr();
    let (go, line) = pipe_with(PipeFlags::CLOEXEC)?;
    task.line = Some(line);
    let mut one = |leads: bool, stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>| {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let start = Start {
            stdio: [stdin, stdout, console],
            report: theirs.as_fd(),
            cgroup,
            go: Some(go.as_fd()),
        };
        let pid =
            Pid::as_raw(Some(sys::spawn(Role::Own(&|| worker::main(spec, leads)), &start)?)) as u32;
        note(pid);
        task.pids.push(pid);
        task.waiting.push((pid, ours, Vec::new()));
        io::Result::Ok(())
    };
    if spec.kind != WorkKind::Pipe {
        return (0..spec.count).try_for_each(|_| one(true, null.as_fd(), console));
    }
    for _ in 0..spec.count / 2 {
        let (ping_in, ping_out) = pipe_with(PipeFlags::CLOEXEC)?;
        let (pong_in, pong_out) = pipe_with(PipeFlags::CLOEXEC)?;
        one(true, pong_in.as_fd(), ping_out.as_fd())?;
        one(false, ping_in.as_fd(), pong_out.as_fd())?;
    }
    Ok(())
}

impl StartTask {
    /// All are ready and wait: gives them their policy and lets them run.
    fn let_go(&mut self, world: &mut World) -> Result<Answer, Refusal> {
        let fail = |task: &Self, world: &mut World, message: String| {
            world.workers.kill(task.pids.iter().copied());
            Err(refuse(RefusalKind::Kernel, message))
        };
        let kind = name(self.kind);
        let follow = if world.sched.is_in_charge() { Policy::Ext } else { Policy::Normal };
        let policy = self.policy.unwrap_or(follow);
        for pid in self.pids.clone() {
            let Some(worker) = world.workers.alive.get_mut(&pid) else {
                let message = format!("{kind} worker (pid {pid}): it ended before it could work");
                return fail(self, world, message);
            };
            let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if let Err(error) = sys::set_policy(target, policy, false) {
                let hint = match (policy, error.raw_os_error()) {
                    (Policy::Ext, Some(libc::EINVAL)) => " (this kernel has no sched_ext)",
                    (Policy::Fifo(_) | Policy::Rr(_), Some(libc::EINVAL)) => {
                        " (priorities are 1 to 99)"
                    }
                    _ => "",
                };
                let why = reason(&error);
                let message = format!("{kind} worker (pid {pid}): policy {policy:?}: {why}{hint}");
                return fail(self, world, message);
            }
            worker.expected = true;
        }
        self.line = None;
        Ok(Answer::Workers(self.pids.clone()))
    }
}

impl Task for StartTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        out.extend(self.waiting.iter().map(|(_, fd, _)| (fd.as_fd(), PollFlags::IN)));
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        let kind = name(self.kind);
        let mut failure = None;
        self.waiting.retain_mut(|(pid, fd, text)| {
            let open = read_some(fd, |bytes| text.extend(bytes)) && text.len() < 4096;
            if !open && text != READY && failure.is_none() {
                let why = String::from_utf8_lossy(text).into_owned();
                let why = if why.is_empty() { "it ended before it was ready".into() } else { why };
                failure = Some(format!("{kind} worker (pid {pid}): {why}"));
            }
            open
        });
        if let Some(message) = failure {
            world.workers.kill(self.pids.iter().copied());
            return Some(Err(refuse(RefusalKind::Kernel, message)));
        }
        self.waiting.is_empty().then(|| self.let_go(world))
    }

    fn timed_out(&mut self, world: &mut World) -> Refusal {
        world.workers.kill(self.pids.iter().copied());
        let late: Vec<u32> = self.waiting.iter().map(|(pid, ..)| *pid).collect();
        let message = format!(
            "{} of {} {} workers were not ready after {} s (pids {late:?}): they got no CPU time",
            late.len(),
            self.pids.len(),
            name(self.kind),
            PATIENCE.as_secs(),
        );
        refuse(RefusalKind::Timeout, message)
    }

    fn patience(&self, _: Instant) -> Duration {
        PATIENCE
    }
}

/// Killed workers that are not yet reaped.
pub(crate) struct StopTask {
    pub(crate) pids: Vec<u32>,
}

impl Task for StopTask {
    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        self.pids.retain(|pid| world.workers.alive.contains_key(pid));
        self.pids.is_empty().then_some(Ok(Answer::Done))
    }

    fn timed_out(&mut self, _: &mut World) -> Refusal {
        let message = format!("killed workers are still there: pids {:?}", self.pids);
        refuse(RefusalKind::Timeout, message)
    }

    fn patience(&self, _: Instant) -> Duration {
        PATIENCE
    }
}

/// A group that is being frozen or thawed.
pub(crate) struct FreezeTask {
    pub(crate) name: String,
    pub(crate) frozen: bool,
    pub(crate) events: File,
}

impl Task for FreezeTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        out.push((self.events.as_fd(), PollFlags::PRI));
    }

    fn step(&mut self, _: &mut World) -> Option<Result<Answer, Refusal>> {
        let value = if self.frozen { "1" } else { "0" };
        crate::cgroup::event_is(&self.events, "frozen", value).then_some(Ok(Answer::Done))
    }

    fn timed_out(&mut self, _: &mut World) -> Refusal {
        let done = if self.frozen { "frozen" } else { "thawed" };
        refuse(RefusalKind::Timeout, format!("cgroup \"{}\" is not {done} yet", self.name))
    }
}

/// A group whose processes were killed and which goes when they have gone.
pub(crate) struct RemoveTask {
    pub(crate) name: String,
    pub(crate) events: File,
    pub(crate) removed: bool,
    /// Its workers: a process leaves its group before it has ended.
    pub(crate) killed: StopTask,
}

impl Task for RemoveTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        out.push((self.events.as_fd(), PollFlags::PRI));
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        if !self.removed {
            match world.groups.try_remove(&self.name) {
                Ok(removed) => self.removed = removed,
                Err(refusal) => return Some(Err(refusal)),
            }
        }
        let gone = self.killed.step(world);
        if self.removed { gone } else { None }
    }

    /// A dying process can hold the directory a moment longer than it counts as populating it.
    fn wake(&self, now: Instant) -> Option<Instant> {
        Some(now + Duration::from_millis(20))
    }

    fn timed_out(&mut self, world: &mut World) -> Refusal {
        if self.removed {
            return self.killed.timed_out(world);
        }
        let pids = world.groups.procs(&self.name).unwrap_or_default();
        let message = format!("cgroup \"{}\" still holds killed processes: {pids:?}", self.name);
        refuse(RefusalKind::Timeout, message)
    }
}
