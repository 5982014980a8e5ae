//! Requests that take a while. Each is a [`Task`] that the loop asks for its outcome whenever
//! something happened; none ever blocks.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use cryoscope::wire::{Answer, Event, Refusal};
use rustix::event::PollFlags;

use crate::cgroup::Groups;
use crate::maps::Held;
use crate::process::Ended;
use crate::sched::Scheduler;
use crate::socket::Lines;
use crate::work::Workers;

/// Everything that requests act on.
pub(crate) struct World {
    pub(crate) groups: Groups,
    pub(crate) workers: Workers,
    pub(crate) sched: Scheduler,
    pub(crate) held: Held,
    pub(crate) lines: Lines,
    /// What the host is to be told, before any answer of this round.
    pub(crate) events: Vec<Event>,
    /// Children that were reaped in this round of the loop.
    pub(crate) ended: Vec<(u32, Ended)>,
    /// The time of this round.
    pub(crate) now: Instant,
}

impl World {
    /// How the child `pid` ended, if that was in this round.
    pub(crate) fn end_of(&self, pid: u32) -> Option<Ended> {
        self.ended.iter().find(|(p, _)| *p == pid).map(|(_, how)| *how)
    }
}

/// A request under way.
pub(crate) trait Task {
    /// Descriptors that wake the loop for this task.
    fn fds<'a>(&'a self, _out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {}

    /// When to look again although nothing happened.
    fn wake(&self, _now: Instant) -> Option<Instant> {
        None
    }

    /// The outcome, once there is one.
    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>>;

    /// What to say when its time is up; cleans up after itself.
    fn timed_out(&mut self, world: &mut World) -> Refusal;

    /// How long it may take.
    fn patience(&self, _now: Instant) -> Duration {
        Duration::from_secs(30)
    }
}

/// A task with the request that it answers.
pub(crate) struct Job {
    /// The request's id.
    pub(crate) id: u64,
    pub(crate) deadline: Instant,
    pub(crate) task: Box<dyn Task>,
}

impl Job {
    /// The outcome, also that of time running out.
    pub(crate) fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        let outcome = self.task.step(world);
        if outcome.is_none() && world.now >= self.deadline {
            return Some(Err(self.task.timed_out(world)));
        }
        outcome
    }
}
