//! The workload clock: time that passes for the guest.

use std::time::{Duration, Instant};

use crate::vm::Standstill;

/// Counts from its start, without the time that the machine was stopped. An emulated or virtual
/// machine's own clock runs with the host's and stands still with the machine, so this is guest
/// time without asking the guest.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    start: Instant,
    still: Standstill,
    /// What was on that account at the start.
    before: Duration,
}

impl Clock {
    /// A clock that starts now and stands when the machine does.
    pub(super) fn starting(now: Instant, still: Standstill) -> Self {
        let before = still.total(now);
        Clock { start: now, still, before }
    }

    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        let stood = self.still.total(now).saturating_sub(self.before);
        now.saturating_duration_since(self.start).saturating_sub(stood)
    }

    pub(super) fn elapsed_ms(&self, now: Instant) -> u64 {
        u64::try_from(self.elapsed(now).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_do_not_count() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let still = Standstill::default();
        still.begin(start);
        still.end(at(5), None);
        let clock = Clock::starting(at(10), still.clone());
        assert_eq!(clock.elapsed_ms(at(110)), 100, "what was before does not count");
        still.begin(at(110));
        assert_eq!(clock.elapsed_ms(at(130)), 100, "it stands with the machine");
        still.end(at(140), None);
        assert_eq!(clock.elapsed_ms(at(140)), 100);
        assert_eq!(clock.elapsed_ms(at(190)), 150);
        assert_eq!(clock.elapsed_ms(at(0)), 0, "never negative");
    }
}
