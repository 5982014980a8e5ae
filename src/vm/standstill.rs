//! How long a machine has stood still, for everybody who measures time that it ran.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time that a machine stood still. Whoever stops it keeps the account; clones share it.
/// Clocks of the workload take this time out, deadlines are extended by it.
#[derive(Clone, Debug, Default)]
pub struct Standstill(Arc<Mutex<Account>>);

#[derive(Debug, Default)]
struct Account {
    /// Of all that are over.
    total: Duration,
    /// When the one began that lasts.
    since: Option<Instant>,
}

impl Standstill {
    fn lock(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is being stopped. Nothing to do when it stands already.
    pub fn begin(&self, now: Instant) {
        self.lock().since.get_or_insert(now);
    }

    /// The machine runs again; how long it stood. Its CPUs do not all stop at the order and start
    /// at the end: where it is known how much of it its own clocks do not show, that counts.
    pub fn end(&self, now: Instant, hidden: Option<Duration>) -> Duration {
        let mut account = self.lock();
        let Some(since) = account.since.take() else { return Duration::ZERO };
        let stood = now.saturating_duration_since(since);
        let stood = hidden.map_or(stood, |hidden| hidden.min(stood));
        account.total += stood;
        stood
    }

    /// It was not stopped after all.
    pub fn never_mind(&self) {
        self.lock().since = None;
    }

    /// How long it has stood altogether, up to `now`.
    #[must_use]
    pub fn total(&self, now: Instant) -> Duration {
        let account = self.lock();
        let lasting = account.since.map_or(Duration::ZERO, |s| now.saturating_duration_since(s));
        account.total + lasting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_from_the_order_to_stop_to_the_end() {
        let (still, start) = (Standstill::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let total = |ms| still.total(at(ms)).as_millis();
        assert_eq!(total(5), 0);
        still.begin(at(10));
        still.begin(at(12));
        assert_eq!((total(9), total(10), total(17)), (0, 0, 7), "the one that lasts counts");
        assert_eq!(still.end(at(20), None), Duration::from_millis(10));
        assert_eq!((total(20), total(900)), (10, 10));
        still.begin(at(30));
        still.never_mind();
        assert_eq!(still.end(at(99), None), Duration::ZERO);
        still.clone().begin(at(100));
        assert_eq!(total(104), 14, "clones share it");
    }

    #[test]
    fn what_the_guest_saw_of_a_stop_is_time_that_it_ran() {
        let (still, start) = (Standstill::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        still.begin(at(0));
        assert_eq!(still.end(at(10), Some(ms(7))), ms(7));
        still.begin(at(20));
        assert_eq!(still.end(at(30), Some(ms(50))), ms(10), "no more than there was");
        assert_eq!(still.total(at(40)), ms(17));
    }
}
