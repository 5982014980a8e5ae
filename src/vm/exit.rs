//! How a machine ended, and a handle to learn of it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitInfo {
    /// What happened.
    pub kind: ExitKind,
    /// The last lines of the guest's console.
    pub console: String,
    /// The last lines of what the engine itself printed; for a triple fault the CPU's state.
    pub engine_log: String,
}

/// Ways for a machine to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// We stopped it.
    Stopped,
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a restart, which is not given.
    Restarted,
    /// The guest's kernel panicked (an Oops is made to panic too).
    Panicked {
        /// The kernel's own words after "Kernel panic - not syncing: ".
        message: String,
    },
    /// A CPU could not deliver a fault: the guest never got to say anything about it.
    TripleFault,
    /// The guest died of something that only a fault of the engine can cause. Says nothing about
    /// the scheduler under test: try again.
    EngineFault {
        /// What was seen.
        evidence: String,
    },
    /// A thread of the engine's tried a system call that its filter refuses. Either a guest has
    /// taken it over and tried to break out, or the engine has a bug; neither says anything about
    /// the scheduler under test.
    Contained {
        /// The thread's name.
        thread: String,
        /// The call's name, or its number.
        call: String,
    },
    /// The engine's own process died, or was killed by somebody else.
    EngineDied {
        /// Its exit code or signal.
        status: String,
    },
}

impl ExitKind {
    /// Whether the engine, not the guest, is to blame: worth another try, never a Fail.
    #[must_use]
    pub fn is_engine_fault(&self) -> bool {
        matches!(
            self,
            ExitKind::EngineFault { .. } | ExitKind::EngineDied { .. } | ExitKind::Contained { .. }
        )
    }
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitKind::Stopped => write!(f, "the machine was stopped"),
            ExitKind::PoweredOff => write!(f, "the guest powered off"),
            ExitKind::Restarted => write!(f, "the guest asked for a restart"),
            ExitKind::Panicked { message } => write!(f, "the guest's kernel panicked: {message}"),
            ExitKind::TripleFault => write!(f, "the guest died of a triple fault"),
            ExitKind::EngineFault { evidence } => write!(
                f,
                "the emulator broke the guest ({evidence}); this is no fault of the scheduler"
            ),
            ExitKind::Contained { thread, call } => write!(
                f,
                "the machine was ended because its thread {thread} tried a system call that it may \
                 not make ({call}): the guest tried to break out, or this program has a bug; this \
                 is no fault of the scheduler"
            ),
            ExitKind::EngineDied { status } => write!(f, "the machine's process {status}"),
        }
    }
}

impl fmt::Display for ExitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        for (what, text) in [("console", &self.console), ("engine", &self.engine_log)] {
            if !text.is_empty() {
                write!(f, "\nend of the {what}'s output:\n{text}")?;
            }
        }
        Ok(())
    }
}

/// A cheap handle that learns how the machine ended; outlives the engine.
#[derive(Clone, Default)]
pub struct ExitWatch(Arc<(Mutex<Option<ExitInfo>>, Condvar)>);

impl ExitWatch {
    fn lock(&self) -> MutexGuard<'_, Option<ExitInfo>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the machine ended, once it has.
    #[must_use]
    pub fn get(&self) -> Option<ExitInfo> {
        self.lock().clone()
    }

    /// Waits for the machine to end; `None` when it has not within this time.
    #[must_use]
    pub fn wait(&self, within: Duration) -> Option<ExitInfo> {
        let deadline = Instant::now() + within;
        let mut info = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if info.is_some() || left.is_zero() {
                return info.clone();
            }
            info = self
                .0
                .1
                .wait_timeout(info, left)
                .map_or_else(|e| e.into_inner().0, |(info, _)| info);
        }
    }

    /// Records the end, as the engine does; the first record stays.
    pub fn set(&self, info: ExitInfo) {
        self.lock().get_or_insert(info);
        self.0.1.notify_all();
    }
}
