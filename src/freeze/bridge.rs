//! The handle that callers hold.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use super::coordinator::{self, Message, words};
use super::{ExitOrder, ExitWay, FreezeError, Freezer, Opened, WatchCount, WatchId, WatchOrder};
use crate::snapshot::{CaptureRequest, CpuRegisters, Meta, Snapshot, WatchPlace, WatchTarget};
use crate::vm::{Console, Engine, ExitInfo, ExitWatch, Standstill, VmError};

/// A handle on a machine that is in the coordinator's hands. Clones are cheap; requests of all of
/// them are carried out one after the other, in the order in which they come. When the last one is
/// dropped the machine has ended.
#[derive(Clone)]
pub struct Bridge(Arc<Inner>);

struct Inner {
    queue: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    id: ThreadId,
    paused: Arc<AtomicBool>,
    still: Standstill,
    watch: ExitWatch,
    console: Console,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.queue.send(Message::End);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may have been in a request.
        if let Some(thread) = thread
            && std::thread::current().id() != self.id
        {
            let _ = thread.join();
        }
    }
}

/// Puts something into the queue without waiting for it, for what happens in a machine by itself.
/// Does not keep the machine alive.
#[derive(Clone)]
pub struct Poster(Sender<Message>);

impl Poster {
    /// Has this done when what was asked for before is through. Nothing happens when the machine
    /// has been let go of.
    pub fn post(&self, work: impl FnOnce(&mut Freezer) + Send + 'static) {
        let _ = self.0.send(Message::Job(Box::new(work)));
    }
}

impl Bridge {
    /// Hands a running machine to a thread of its own. How long it stands is added to `still`;
    /// its CPUs have `patience` to stop.
    ///
    /// # Errors
    /// When no thread can be had; the machine has ended then.
    pub fn start(
        mut engine: Box<dyn Engine>,
        still: Standstill,
        patience: Duration,
    ) -> io::Result<Bridge> {
        let (watch, console) = (engine.exit_watch(), engine.console());
        let (queue, requests) = channel();
        let poster = Poster(queue.clone());
        engine.on_trap(Arc::new(move || poster.post(Freezer::trapped)));
        let freezer = Freezer::with(engine, still.clone(), patience);
        let thread = std::thread::Builder::new().name("freeze".to_owned());
        let thread = thread.spawn(move || coordinator::run(freezer, &requests))?;
        let (id, paused) = (thread.thread().id(), Arc::default());
        let thread = Mutex::new(Some(thread));
        Ok(Bridge(Arc::new(Inner { queue, thread, id, paused, still, watch, console })))
    }

    /// Has `work` done by the coordinator, and waits for what comes of it. `what` names it in
    /// errors.
    ///
    /// # Errors
    /// [`FreezeError::Nested`], [`FreezeError::Panicked`], and [`FreezeError::Machine`] when the
    /// machine was let go of.
    pub fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Freezer) -> T + Send + 'static,
    ) -> Result<T, FreezeError> {
        if std::thread::current().id() == self.0.id {
            return Err(FreezeError::Nested(what));
        }
        let (say, said) = sync_channel(1);
        let job = move |freezer: &mut Freezer| {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(freezer)));
            let _ = say.send(outcome.map_err(|panic| words(&*panic)));
        };
        let sent = self.0.queue.send(Message::Job(Box::new(job)));
        match sent.ok().and_then(|()| said.recv().ok()) {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(why)) => Err(FreezeError::Panicked { what, why }),
            None => Err(self.gone().into()),
        }
    }

    /// Puts things into the queue without waiting for them.
    #[must_use]
    pub fn poster(&self) -> Poster {
        Poster(self.0.queue.clone())
    }

    /// Stops the machine, copies, lets it go on; see [`Freezer::freeze_after`].
    ///
    /// # Errors
    /// Every [`FreezeError`].
    pub fn freeze(
        &self,
        request: &CaptureRequest,
        seen: Option<Instant>,
        meta: impl FnOnce() -> Meta + Send + 'static,
    ) -> Result<Arc<Snapshot>, FreezeError> {
        let request = request.clone();
        self.ask("a freeze", move |freezer| freezer.freeze_after(&request, seen, meta))?
    }

    /// Copies without stopping the machine; see [`Freezer::look`].
    ///
    /// # Errors
    /// Every [`FreezeError`].
    pub fn look(
        &self,
        request: &CaptureRequest,
        meta: impl FnOnce() -> Meta + Send + 'static,
    ) -> Result<(Arc<Snapshot>, Instant), FreezeError> {
        let request = request.clone();
        self.ask("a look", move |freezer| freezer.look(&request, meta))?
    }

    /// Does while the machine runs what makes a capture short; see [`Freezer::prepare`].
    ///
    /// # Errors
    /// As [`Freezer::prepare`].
    pub fn prepare(&self, request: &CaptureRequest) -> Result<(), FreezeError> {
        let request = request.clone();
        self.ask("getting ready", move |freezer| freezer.prepare(&request))?
    }

    /// Does something with the machine and its kernel, `frozen` or as it runs.
    ///
    /// # Errors
    /// As [`Freezer::with_kernel`].
    pub fn with_kernel<T: Send + 'static>(
        &self,
        frozen: bool,
        work: impl FnOnce(&mut Opened<'_>) -> T + Send + 'static,
    ) -> Result<T, FreezeError> {
        self.ask("work on the kernel", move |freezer| freezer.with_kernel(frozen, work))?
    }

    /// The registers of all CPUs, and why some are missing; see [`Freezer::registers`].
    ///
    /// # Errors
    /// As [`Freezer::registers`].
    pub fn registers(&self) -> Result<(Vec<CpuRegisters>, Option<String>), FreezeError> {
        self.ask("reading registers", Freezer::registers)?
    }

    /// Stops the machine until [`Bridge::resume`]; see [`Freezer::pause`].
    ///
    /// # Errors
    /// As [`Freezer::pause`].
    pub fn pause(&self) -> Result<(), FreezeError> {
        let paused = self.0.paused.clone();
        self.ask("a pause", move |freezer| {
            freezer.pause()?;
            paused.store(true, Ordering::Release);
            Ok(())
        })?
    }

    /// Lets a paused machine go on; see [`Freezer::resume`].
    ///
    /// # Errors
    /// As [`Freezer::resume`].
    pub fn resume(&self) -> Result<Option<Duration>, FreezeError> {
        let paused = self.0.paused.clone();
        self.ask("going on", move |freezer| {
            let hidden = freezer.resume();
            paused.store(false, Ordering::Release);
            hidden
        })?
    }

    /// Whether the machine is paused by hand.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }

    /// Begins to capture each write to a place; see [`Freezer::watch`].
    ///
    /// # Errors
    /// As [`Freezer::watch`].
    pub fn watch(&self, order: WatchOrder) -> Result<WatchId, FreezeError> {
        self.ask("a watch", move |freezer| freezer.watch(order))?
    }

    /// Finds a place that is to be watched; see [`Freezer::watch_place`].
    ///
    /// # Errors
    /// As [`Freezer::watch_place`].
    pub fn watch_place(&self, target: &WatchTarget) -> Result<WatchPlace, FreezeError> {
        let target = target.clone();
        self.ask("a watch", move |freezer| freezer.watch_place(&target))?
    }

    /// Ends a watch; see [`Freezer::unwatch`].
    ///
    /// # Errors
    /// As [`Freezer::unwatch`].
    pub fn unwatch(&self, id: WatchId) -> Result<Option<WatchCount>, FreezeError> {
        self.ask("the end of a watch", move |freezer| freezer.unwatch(id))?
    }

    /// What became of a watch so far; `None` once it was ended.
    ///
    /// # Errors
    /// As [`Bridge::ask`].
    pub fn watch_count(&self, id: WatchId) -> Result<Option<WatchCount>, FreezeError> {
        self.ask("the count of a watch", move |freezer| freezer.watch_count(id))
    }

    /// Captures what schedulers leave behind; see [`Freezer::expect_exits`].
    ///
    /// # Errors
    /// As [`Freezer::expect_exits`].
    pub fn expect_exits(&self, order: ExitOrder) -> Result<ExitWay, FreezeError> {
        self.ask("waiting for exits", move |freezer| freezer.expect_exits(order))?
    }

    /// Lets schedulers leave from now on.
    ///
    /// # Errors
    /// As [`Freezer::forget_exits`].
    pub fn forget_exits(&self) -> Result<(), FreezeError> {
        self.ask("waiting for exits no longer", Freezer::forget_exits)?
    }

    /// How long the machine has stood still.
    #[must_use]
    pub fn standstill(&self) -> &Standstill {
        &self.0.still
    }

    /// The machine's console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.0.console
    }

    /// How the machine ended, once it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitInfo> {
        self.0.watch.get()
    }

    /// Ends the machine; see [`Engine::stop`]. Requests that come later are told so.
    ///
    /// # Errors
    /// As [`Bridge::ask`].
    pub fn stop(&self) -> Result<ExitInfo, FreezeError> {
        self.ask("the end of the machine", Freezer::stop)
    }

    fn gone(&self) -> VmError {
        match self.0.watch.get() {
            Some(info) => VmError::Exited(Box::new(info)),
            None => VmError::Refused {
                command: "a request".to_owned(),
                reason: "the machine was let go of".to_owned(),
            },
        }
    }
}
