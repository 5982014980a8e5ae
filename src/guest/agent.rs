//! The loop of PID 1: one thread that never blocks, so that no scheduler, worker or host can stop
//! it. Requests that take a while are [`Job`]s; everything else is answered at once.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cryoscope::wire::{
    Answer, Event, FromGuest, Hello, Op, Refusal, RefusalKind, Request, VERSION, WireError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, wait};
use rustix::time::{ClockId, clock_gettime};

use crate::attach::{DetachTask, attach};
use crate::cgroup::Groups;
use crate::jobs::{Job, Task, World};
use crate::maps::Held;
use crate::process::Ended;
use crate::sched::Scheduler;
use crate::socket::Lines;
use crate::sys::reason;
use crate::text::{clean, parse_list};
use crate::transport::{Link, Received};
use crate::uevent::Uevents;
use crate::work::{self, FreezeTask, RemoveTask, StopTask, Workers};
use crate::{boot, exec, kmsg, maps, menagerie, refuse, socket, sys};

/// Requests under way at one time.
const MAX_JOBS: usize = 64;
/// Of a file, what is sent.
const MAX_FILE: usize = 1 << 20;
/// How often a host that has gone is looked for.
const RECONNECT: Duration = Duration::from_millis(20);
/// Rounds that go on reading requests before anything else is looked at.
const MAX_REQUESTS_PER_ROUND: usize = 64;

/// What PID 1 is made of.
pub(crate) struct Agent {
    link: Link,
    signals: OwnedFd,
    uevents: Uevents,
    world: World,
    jobs: Vec<Job>,
}

/// Why the loop ended.
enum Off {
    /// The host asked.
    Asked,
    /// A frame from the host cannot be trusted.
    Damaged(WireError),
}

impl Agent {
    /// Finds the transport and introduces itself, then does all that could wait.
    pub(crate) fn start() -> io::Result<Self> {
        boot::first_steps();
        boot::ensure_console();
        let mut uevents = Uevents::open()?;
        let mut link = Link::new(boot::open_transport(&mut uevents)?);
        greet(&mut link)?;
        boot::later_steps();
        let world = World {
            groups: Groups::set_up(),
            workers: Workers::default(),
            sched: Scheduler::default(),
            held: Held::default(),
            lines: Lines::default(),
            events: Vec::new(),
            ended: Vec::new(),
            now: Instant::now(),
        };
        Ok(Agent { link, signals: sys::child_signals()?, uevents, world, jobs: Vec::new() })
    }

    /// Serves until the machine is to go off, and sees to that.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            if let Some(off) = self.round()? {
                if let Off::Damaged(error) = off {
                    kmsg::say(&format!("damaged frame from the host: {error}"));
                    self.tell(&FromGuest::Event(Event::ChannelDamaged {
                        reason: error.to_string(),
                    }));
                }
                self.tidy_up();
                return Ok(());
            }
        }
    }

    /// Sleeps until a descriptor is ready or something is due.
    fn wait(&self) -> io::Result<()> {
        let now = Instant::now();
        let mut fds: Vec<(BorrowedFd<'_>, PollFlags)> = vec![
            (std::os::fd::AsFd::as_fd(&self.signals), PollFlags::IN),
            (self.uevents.fd(), PollFlags::IN),
        ];
        fds.extend(self.link.interest());
        self.world.sched.fds(&mut fds);
        for job in &self.jobs {
            job.task.fds(&mut fds);
        }
        let due = self.jobs.iter().flat_map(|j| [Some(j.deadline), j.task.wake(now)]).flatten();
        let reconnect = (!self.link.is_connected()).then_some(now + RECONNECT);
        let due = due.chain(self.world.sched.wake(now, &self.uevents)).chain(reconnect).min();
        // Rounded up, so that what is due has come when the loop looks.
        let left = due.map(|at| at.saturating_duration_since(now) + Duration::from_micros(100));
        let left = left.and_then(|d| Timespec::try_from(d).ok());
        let mut fds: Vec<PollFd<'_>> =
            fds.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in everything that has happened, then what the host wants.
    fn round(&mut self) -> io::Result<Option<Off>> {
        self.world.now = Instant::now();
        self.reap();
        self.uevents.read();
        let world = &mut self.world;
        let left = world.sched.advance(world.now, &world.ended, &mut self.uevents);
        world.events.extend(left);
        self.step_jobs();
        let off = self.requests();
        if let Err(error) = self.link.flush() {
            kmsg::say(&format!("cannot send: {error}"));
            self.link.disconnect();
        }
        if !self.link.is_connected() && self.link.try_reconnect() {
            greet(&mut self.link)?;
        }
        Ok(off)
    }

    /// Collects every child that has ended, also those that others have left behind.
    /// Says whether any are left.
    fn reap(&mut self) -> bool {
        let mut buffer = [0; 1280];
        while rustix::io::read(&self.signals, &mut buffer).is_ok() {}
        self.world.ended.clear();
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => return true,
                Err(_) => return false,
            };
            let (pid, Some(how)) = (Pid::as_raw(Some(pid)) as u32, Ended::from_status(status))
            else {
                continue;
            };
            self.world.ended.push((pid, how));
            let event = self.world.workers.ended(pid, how);
            self.world.events.extend(event);
        }
    }

    fn step_jobs(&mut self) {
        let mut done = Vec::new();
        let world = &mut self.world;
        self.jobs.retain_mut(|job| match job.step(world) {
            Some(result) => {
                done.push((job.id, result));
                false
            }
            None => true,
        });
        self.tell_events();
        for (id, result) in done {
            self.answer(id, result);
        }
    }

    /// Serves what has arrived.
    fn requests(&mut self) -> Option<Off> {
        if !self.link.is_connected() {
            return None;
        }
        for _ in 0..MAX_REQUESTS_PER_ROUND {
            match self.link.receive() {
                Ok(Received::Request(Request { op: Op::PowerOff, .. })) => return Some(Off::Asked),
                Ok(Received::Request(request)) => self.serve(request),
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    self.link.disconnect();
                    break;
                }
                Err(damage) => return Some(Off::Damaged(damage)),
            }
        }
        None
    }

    fn serve(&mut self, request: Request) {
        let id = request.id;
        let task = match self.dispatch(request.op) {
            Ok(Outcome::Now(answer)) => return self.answer(id, Ok(answer)),
            Err(refusal) => return self.answer(id, Err(refusal)),
            Ok(Outcome::Later(task)) => task,
        };
        let now = self.world.now;
        let mut job = Job { id, deadline: now + task.patience(now), task };
        match job.step(&mut self.world) {
            Some(result) => {
                self.tell_events();
                self.answer(id, result);
            }
            None => self.jobs.push(job),
        }
    }

    fn dispatch(&mut self, op: Op) -> Result<Outcome, Refusal> {
        if self.jobs.len() >= MAX_JOBS {
            let message = format!("{MAX_JOBS} requests are under way already");
            return Err(refuse(RefusalKind::Invalid, message));
        }
        let world = &mut self.world;
        let groups = &mut world.groups;
        Ok(match op {
            Op::Attach(plan) => {
                world.lines.clear();
                later(attach(plan, world)?)
            }
            Op::Detach => {
                world.lines.clear();
                later(DetachTask::default())
            }
            Op::SchedulerState => now(Answer::Scheduler(world.sched.state(&world.workers))),
            Op::CgroupCreate { name, set } => done(groups.create(&name, &set)?),
            Op::CgroupSet { name, set } => done(groups.set(&name, &set)?),
            Op::CgroupFreeze { name, frozen } => {
                let events = groups.freeze(&name, frozen)?;
                later(FreezeTask { name, frozen, events, leaving: None })
            }
            Op::CgroupProcs { name } => now(Answer::Pids(groups.procs(&name)?)),
            Op::CgroupStats { name } => now(Answer::Files(groups.statistics(&name)?)),
            Op::CgroupMove { from, to } => done(groups.move_all(&from, &to)?),
            Op::CgroupRemove { name } => {
                let pids = groups.procs(&name)?;
                let killed = StopTask { pids: world.workers.kill(pids.into_iter()) };
                let events = groups.kill(&name)?;
                later(RemoveTask { name, events, removed: false, killed })
            }
            Op::StopWorkers { cgroup } => {
                let pids = match cgroup {
                    Some(name) => groups.procs(&name)?,
                    None => world.workers.all(),
                };
                later(StopTask { pids: world.workers.kill(pids.into_iter()) })
            }
            Op::Start(work) => later(work::start(&work, world)?),
            Op::WorkerReports { pids } => now(Answer::Reports(world.workers.reports(&pids))),
            Op::Exec { argv, timeout_ms } => {
                later(exec::start(&argv, Duration::from_millis(timeout_ms), world.now)?)
            }
            Op::ReadFile { path, offset } => now(read_file(&path, offset)?),
            Op::WriteFile { path, mode, append, bytes } => {
                done(write_file(&path, mode, append, &bytes)?)
            }
            Op::AskSocket { path, asker, line, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                later(socket::ask(&path, &asker, line, timeout, world.now, &mut world.lines)?)
            }
            Op::Dmesg => {
                let log = kmsg::Mark::start().map_err(|e| {
                    let message = format!("cannot read the kernel's log: {}", reason(&e));
                    refuse(RefusalKind::Kernel, message)
                })?;
                now(Answer::Text(log.read()))
            }
            Op::ListProgs => now(maps::progs()?),
            Op::HoldMaps => now(world.held.hold(world.sched.maps_before())?),
            Op::MakeMaps => now(menagerie::make(&mut world.held)),
            Op::StoreByFd { id, count } => now(world.held.store(id, count)?),
            Op::DumpMap { id, skip } => now(world.held.page(id, skip)?),
            // Taken out before.
            Op::PowerOff => done(()),
        })
    }

    fn answer(&mut self, id: u64, result: Result<Answer, Refusal>) {
        if let Err(error) = self.link.send(&FromGuest::Reply { id, result }) {
            let message = format!("the answer cannot be sent: {error}");
            let result = Err(refuse(RefusalKind::Invalid, message));
            self.tell(&FromGuest::Reply { id, result });
        }
    }

    fn tell_events(&mut self) {
        for event in std::mem::take(&mut self.world.events) {
            self.tell(&FromGuest::Event(event));
        }
    }

    fn tell(&mut self, message: &FromGuest) {
        if let Err(error) = self.link.send(message) {
            kmsg::say(&format!("cannot send {message:?}: {error}"));
        }
    }

    /// Lets the scheduler go, ends every process, says good-bye.
    fn tidy_up(&mut self) {
        if let Some(run) = &mut self.world.sched.run {
            run.signal(if run.ours { Signal::TERM } else { Signal::INT });
            self.wait_for_children(Duration::from_secs(3), |world| {
                world.sched.run.as_ref().is_none_or(|run| run.ended.is_some())
            });
        }
        sys::kill_everything();
        self.wait_for_children(Duration::from_secs(2), |_| false);
        self.tell(&FromGuest::Event(Event::PoweringOff));
        self.last_words(Duration::from_secs(2));
    }

    /// Reaps until `done`, no child is left, or time is up.
    fn wait_for_children(&mut self, limit: Duration, done: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + limit;
        loop {
            let children = self.reap();
            self.world.events.clear();
            let world = &mut self.world;
            world.now = Instant::now();
            let _ = world.sched.advance(world.now, &world.ended, &mut self.uevents);
            let left = deadline.saturating_duration_since(Instant::now());
            if done(&self.world) || !children || left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            let step = left.min(Duration::from_millis(100));
            let _ = poll(&mut fds, Timespec::try_from(step).ok().as_ref());
        }
    }

    /// Says that the agent itself has failed, as far as it still can.
    pub(crate) fn failed(&mut self, reason: String) {
        self.tell(&FromGuest::Event(Event::AgentFailed { reason }));
        self.last_words(Duration::from_secs(2));
    }

    fn last_words(&mut self, patience: Duration) {
        if self.link.is_connected() && !self.link.drain(Instant::now() + patience) {
            kmsg::say("the host did not read everything");
        }
    }
}

enum Outcome {
    Now(Answer),
    Later(Box<dyn Task>),
}

fn now(answer: Answer) -> Outcome {
    Outcome::Now(answer)
}

fn done((): ()) -> Outcome {
    Outcome::Now(Answer::Done)
}

fn later(task: impl Task + 'static) -> Outcome {
    Outcome::Later(Box::new(task))
}

/// Sends the hello and, if the host is there already, gets it out at once.
fn greet(link: &mut Link) -> io::Result<()> {
    let since = clock_gettime(ClockId::Boottime);
    let uptime = Duration::try_from(since).unwrap_or_default();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let cpus = parse_list(&online).map_or(1, |list| list.len().max(1));
    let hello = Hello {
        version: VERSION,
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        uptime_us: u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX),
    };
    link.send(&FromGuest::Hello(hello)).map_err(io::Error::other)?;
    link.flush()
}

/// A file from `offset` on, up to the cap, without waiting for more where a read would.
fn read_file(path: &str, offset: u64) -> Result<Answer, Refusal> {
    let failed = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => RefusalKind::NotFound,
            _ => RefusalKind::Kernel,
        };
        refuse(kind, format!("cannot read {path} in the guest: {}", reason(error)))
    };
    if !path.starts_with('/') {
        let message = format!(
            "cannot read \"{}\" in the guest: not an absolute path",
            clean(path.as_bytes())
        );
        return Err(refuse(RefusalKind::Invalid, message));
    }
    let mut options = fs::File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let mut file = options.read(true).open(path).map_err(|e| failed(&e))?;
    if offset > 0 {
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset)).map_err(|e| failed(&e))?;
    }
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while bytes.len() <= MAX_FILE {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(&e)),
        }
    }
    let truncated = bytes.len() > MAX_FILE;
    bytes.truncate(MAX_FILE);
    Ok(Answer::File { bytes, truncated })
}

/// Writes a file, or goes on writing it.
fn write_file(path: &str, mode: u32, append: bool, bytes: &[u8]) -> Result<(), Refusal> {
    if !path.starts_with('/') {
        let message = format!(
            "cannot write \"{}\" in the guest: not an absolute path",
            clean(path.as_bytes())
        );
        return Err(refuse(RefusalKind::Invalid, message));
    }
    let write = || {
        let at = Path::new(path);
        if !append {
            if let Some(dir) = at.parent() {
                fs::create_dir_all(dir)?;
            }
            // A program that runs keeps its file; so do those who read a library.
            match fs::remove_file(at) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        let mut options = fs::File::options();
        options.write(true).append(append).create_new(!append);
        let mut file = options.open(at)?;
        io::Write::write_all(&mut file, bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
    };
    write().map_err(|e| {
        let message =
            format!("cannot write {} in the guest: {}", clean(path.as_bytes()), reason(&e));
        refuse(RefusalKind::Kernel, message)
    })
}
