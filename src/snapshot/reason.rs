//! Why a sample carries no statistics of the scheduler.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a statistics request to the scheduler brought nothing.
///
/// In JSON it is an object with `kind` and the fields of that kind, and so it is in a script.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum MissingStatsReason {
    /// The run has no scheduler that could answer.
    NoSchedulerBinary,
    /// The relay could not reach the scheduler's socket.
    NoScheduler {
        /// What the relay said.
        reason: String,
    },
    /// The guest was being frozen while the request was in flight.
    DuringFreeze,
    /// The watchdog or the end of the run took the request back.
    Cancelled,
    /// The scheduler answered with an error number.
    SchedulerError {
        /// The error number.
        errno: i32,
        /// What the scheduler sent along.
        args: serde_json::Value,
    },
    /// The answer has no `resp` key.
    MissingResp {
        /// What the answer holds instead.
        args: serde_json::Value,
    },
    /// The request is longer than the protocol allows.
    RequestTooLarge {
        /// Bytes of the request.
        size: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The answer went on without a newline beyond what the protocol allows.
    ResponseTooLarge {
        /// Bytes received.
        size: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A thread panicked while it held the client's lock.
    MutexPoisoned,
}

impl fmt::Display for MissingStatsReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use MissingStatsReason as R;
        match self {
            R::NoSchedulerBinary => f.write_str(
                "the scenario has no scheduler process that could answer: statistics come from an \
                 executable given as `scheduler`, not from a .bpf.c, a .bpf.o or \"none\"",
            ),
            R::NoScheduler { reason } => {
                write!(f, "the scheduler's statistics socket could not be reached: {reason}")
            }
            R::DuringFreeze => f.write_str("the machine was being frozen during the request"),
            R::Cancelled => f.write_str("the request was taken back because the run was ending"),
            R::SchedulerError { errno, args } => {
                write!(f, "the scheduler answered with errno {errno}: {args}")
            }
            R::MissingResp { args } => {
                write!(f, "the scheduler's answer has no `resp`, only {args}")
            }
            R::RequestTooLarge { size, max } => {
                write!(f, "the request has {size} bytes, at most {max} are allowed")
            }
            R::ResponseTooLarge { size, max } => {
                write!(f, "the answer passed {size} bytes without a newline, at most {max} fit")
            }
            R::MutexPoisoned => {
                f.write_str("the statistics client broke off in an earlier request of this run")
            }
        }
    }
}

impl std::error::Error for MissingStatsReason {}

impl From<std::io::Error> for MissingStatsReason {
    /// A socket that failed is a scheduler that could not be reached.
    fn from(error: std::io::Error) -> Self {
        MissingStatsReason::NoScheduler { reason: error.to_string() }
    }
}

impl<T> From<std::sync::PoisonError<T>> for MissingStatsReason {
    fn from(_: std::sync::PoisonError<T>) -> Self {
        MissingStatsReason::MutexPoisoned
    }
}

impl From<anyhow::Error> for MissingStatsReason {
    /// Finds the reason anywhere in the chain; what carries none counts as "not reached", with
    /// the chain as its text.
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<MissingStatsReason>() {
            Ok(reason) => reason,
            Err(error) => error
                .chain()
                .find_map(|cause| cause.downcast_ref::<MissingStatsReason>().cloned())
                .unwrap_or_else(|| MissingStatsReason::NoScheduler {
                    reason: format!("{error:#}"),
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_reason_says_what_happened() {
        use MissingStatsReason as R;
        let cases = [
            (
                R::NoSchedulerBinary,
                "the scenario has no scheduler process that could answer: statistics come from an \
                 executable given as `scheduler`, not from a .bpf.c, a .bpf.o or \"none\"",
            ),
            (
                R::NoScheduler { reason: "connection refused".into() },
                "the scheduler's statistics socket could not be reached: connection refused",
            ),
            (R::DuringFreeze, "the machine was being frozen during the request"),
            (R::Cancelled, "the request was taken back because the run was ending"),
            (
                R::SchedulerError { errno: 22, args: json!({"resp": "no such target"}) },
                "the scheduler answered with errno 22: {\"resp\":\"no such target\"}",
            ),
            (
                R::MissingResp { args: json!({"a": 1}) },
                "the scheduler's answer has no `resp`, only {\"a\":1}",
            ),
            (
                R::RequestTooLarge { size: 300_000, max: 262_144 },
                "the request has 300000 bytes, at most 262144 are allowed",
            ),
            (
                R::ResponseTooLarge { size: 300_000, max: 262_144 },
                "the answer passed 300000 bytes without a newline, at most 262144 fit",
            ),
            (R::MutexPoisoned, "the statistics client broke off in an earlier request of this run"),
        ];
        for (reason, text) in cases {
            assert_eq!(reason.to_string(), text);
            let stored = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<R>(&stored).unwrap(), reason);
        }
    }

    #[test]
    fn reasons_come_out_of_other_errors() {
        use MissingStatsReason as R;
        let nested = anyhow::Error::new(R::DuringFreeze).context("asking for the stats");
        assert_eq!(R::from(nested), R::DuringFreeze);
        assert_eq!(R::from(anyhow::Error::new(R::Cancelled)), R::Cancelled);
        let foreign = anyhow::anyhow!("no route").context("connecting");
        assert_eq!(R::from(foreign), R::NoScheduler { reason: "connecting: no route".into() });
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(R::from(io), R::NoScheduler { reason: "entity not found".into() });
        let lock = std::sync::Mutex::new(0);
        let poison = std::sync::PoisonError::new(lock.lock());
        assert_eq!(R::from(poison), R::MutexPoisoned);
    }

    #[test]
    fn json_names_the_kind_beside_the_fields() {
        let reason = MissingStatsReason::RequestTooLarge { size: 5, max: 4 };
        let stored = serde_json::to_value(reason).unwrap();
        assert_eq!(stored, json!({"kind": "RequestTooLarge", "size": 5, "max": 4}));
    }
}
