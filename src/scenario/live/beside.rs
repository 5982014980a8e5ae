//! A thread that does something beside the script, until no more of it is wanted.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::scenario::lab::LabError;

/// The longest that is waited in one go for a time of the workload, since a pause shifts what is
/// left.
pub(super) const GLANCE: Duration = Duration::from_millis(20);

/// The error when there is no thread to be had.
pub(super) fn no_thread(error: io::Error) -> LabError {
    LabError::Machine(format!("cannot start a thread: {error}"))
}

/// What the thread and the laboratory both know.
pub(super) struct Shared<S> {
    state: Mutex<S>,
    /// No more is wanted. It is set with the lock, so that nobody begins to wait after it.
    over: AtomicBool,
    bell: Condvar,
}

impl<S> Shared<S> {
    pub(super) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more is wanted.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits at most this long; whether more is wanted.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let state = self.lock();
        if self.is_over() {
            return false;
        }
        drop(self.bell.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner));
        !self.is_over()
    }
}

/// The thread, or none; it ends with this.
pub(super) struct Beside<S> {
    shared: Option<Arc<Shared<S>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    told: AtomicBool,
}

impl<S> Default for Beside<S> {
    fn default() -> Self {
        Beside { shared: None, thread: Mutex::default(), told: AtomicBool::new(false) }
    }
}

impl<S: Send + 'static> Beside<S> {
    /// Begins it.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(
        name: &str,
        state: S,
        run: impl FnOnce(Arc<Shared<S>>) + Send + 'static,
    ) -> io::Result<Self> {
        let (state, over) = (Mutex::new(state), AtomicBool::new(false));
        let shared = Arc::new(Shared { state, over, bell: Condvar::new() });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(own))?;
        let (shared, thread) = (Some(shared), Mutex::new(Some(thread)));
        Ok(Beside { shared, thread, told: AtomicBool::new(false) })
    }
}

impl<S> Beside<S> {
    /// What is known by now, if there is a thread.
    pub(super) fn state(&self) -> Option<MutexGuard<'_, S>> {
        self.shared.as_ref().map(|shared| shared.lock())
    }

    /// Ends it; whether there was one.
    pub(super) fn end(&self) -> bool {
        let Some(shared) = &self.shared else { return false };
        let state = shared.lock();
        shared.over.store(true, Ordering::SeqCst);
        drop(state);
        shared.bell.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        true
    }

    /// Whether what came of it is told for the first time.
    pub(super) fn tell(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

impl<S> Drop for Beside<S> {
    fn drop(&mut self) {
        self.end();
    }
}
