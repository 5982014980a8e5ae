//! Workers as the agent sees them: started, placed, watched, stopped.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use cryoscope::wire::{
    Answer, Event, MAX_LAST_REPORTS, MAX_REPORTS, MAX_STRAYS, MAX_WORKERS, Policy, Refusal,
    RefusalKind, SCHED_EXT, Work, WorkKind, WorkerReport,
};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::jobs::{Task, World};
use crate::ledger::{self, Pages};
use crate::process::{Ended, read_some};
use crate::sys::{self, Role, Start, reason};
use crate::worker::{self, Place, READY, name};
use crate::{kmsg, refuse};

/// How long workers may take to be ready or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

struct Worker {
    kind: WorkKind,
    /// Where it writes down what it does: this one of these pages.
    pages: Rc<Pages>,
    index: usize,
    /// Whether it had no policy of its own and follows the scheduler under test.
    follows: bool,
    /// Whether its end is an event: it was started, and was not told to end.
    expected: bool,
}

impl Worker {
    fn report(&self, pid: u32) -> WorkerReport {
        ledger::report(pid, self.kind, self.pages.page(self.index))
    }
}

/// All workers.
#[derive(Default)]
pub(crate) struct Workers {
    /// Those alive, or dead and not yet reaped.
    alive: BTreeMap<u32, Worker>,
    /// What others had done when they ended, the last ones of them.
    gone: VecDeque<WorkerReport>,
}

impl Workers {
    /// Takes note of an ended child; an event when it was a worker that should be alive.
    pub(crate) fn ended(&mut self, pid: u32, how: Ended) -> Option<Event> {
        let worker = self.alive.remove(&pid)?;
        // One that was killed was looked at before, when the kernel still knew of it.
        if self.last_report(pid).is_none() {
            let report = worker.report(pid);
            self.keep(report);
        }
        let reason = how.to_string();
        worker.expected.then_some(Event::WorkerExited { pid, reason })
    }

    /// Kills workers; [`StopTask`] waits for their end.
    pub(crate) fn kill(&mut self, pids: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut killed = Vec::new();
        for pid in pids {
            // Only workers, which this process has not reaped: the number is still theirs.
            let Some(worker) = self.alive.get_mut(&pid) else { continue };
            let report = worker.expected.then(|| worker.report(pid));
            worker.expected = false;
            if let Some(report) = report {
                self.keep(report);
            }
            if let Some(target) = pid.try_into().ok().and_then(Pid::from_raw) {
                let _ = kill_process(target, Signal::KILL);
            }
            killed.push(pid);
        }
        killed
    }

    fn last_report(&self, pid: u32) -> Option<&WorkerReport> {
        self.gone.iter().rev().find(|report| report.pid == pid)
    }

    fn keep(&mut self, report: WorkerReport) {
        if self.gone.len() >= MAX_LAST_REPORTS {
            self.gone.pop_front();
        }
        self.gone.push_back(WorkerReport { ended: true, waiting_us: 0, ..report });
    }

    /// What these did so far, of those that are known.
    pub(crate) fn reports(&self, pids: &[u32]) -> Vec<WorkerReport> {
        let report = |pid: &u32| match self.alive.get(pid).filter(|worker| worker.expected) {
            Some(worker) => Some(worker.report(*pid)),
            None => self.last_report(*pid).cloned(),
        };
        pids.iter().take(MAX_REPORTS).filter_map(report).collect()
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
    let pages = Pages::new(work.count as usize).map(Rc::new);
    let started = pages.and_then(|pages| {
        spawn_all(work, entrance.as_ref().map(AsFd::as_fd), &pages, &mut task, &mut |pid, index| {
            let pages = pages.clone();
            // The kernel may give a number again.
            world.workers.gone.retain(|report| report.pid != pid);
            let worker = Worker { kind: work.kind, pages, index, follows, expected: false };
            world.workers.alive.insert(pid, worker);
        })
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
    pages: &Pages,
    task: &mut StartTask,
    note: &mut dyn FnMut(u32, usize),
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
        let index = task.pids.len();
        // Those of a pair come one after the other.
        let other = if spec.kind == WorkKind::Pipe { index ^ 1 } else { index };
        let place = Place { leads, page: pages.page(index), partner: pages.page(other) };
        let role = Role::Own(&|| worker::main(spec, &place));
        let pid = Pid::as_raw(Some(sys::spawn(role, &start)?)) as u32;
        note(pid, index);
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
        let began = ledger::now();
        for worker in self.pids.iter().filter_map(|pid| world.workers.alive.get(pid)) {
            worker.pages.page(worker.index).begin(began);
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
    /// When the kernel said so and members could still be seen on CPUs.
    pub(crate) leaving: Option<Instant>,
}

/// How long members may take to leave their CPUs once the kernel calls them frozen. A kernel that
/// cannot tell where tasks sleep shows them as leaving for ever.
const LEAVING: Duration = Duration::from_secs(2);

impl Task for FreezeTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        out.push((self.events.as_fd(), PollFlags::PRI));
    }

    /// The kernel counts a task as frozen just before it leaves its CPU; a virtual CPU that the
    /// host interrupts in between lets it "run" on, by the clock, for as long as that lasts.
    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        let value = if self.frozen { "1" } else { "0" };
        if !crate::cgroup::event_is(&self.events, "frozen", value) {
            return None;
        }
        if self.frozen && !world.groups.rests(&self.name) {
            let since = *self.leaving.get_or_insert_with(Instant::now);
            return (since.elapsed() >= LEAVING).then_some(Ok(Answer::Done));
        }
        Some(Ok(Answer::Done))
    }

    fn wake(&self, now: Instant) -> Option<Instant> {
        self.leaving.map(|_| now + Duration::from_millis(5))
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
