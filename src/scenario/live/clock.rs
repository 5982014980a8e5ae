//! The workload clock: time that passes for the guest.

use std::time::{Duration, Instant};

/// Counts from its start, without the time that the machine was stopped. An emulated or virtual
/// machine's own clock runs with the host's and stands still with the machine, so this is guest
/// time without asking the guest.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    start: Instant,
    stopped: Duration,
}

impl Clock {
    pub(super) fn starting(now: Instant) -> Self {
        Clock { start: now, stopped: Duration::ZERO }
    }

    /// Takes a pause out.
    pub(super) fn take_out(&mut self, pause: Duration) {
        self.stopped += pause;
    }

    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start).saturating_sub(self.stopped)
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
        let mut clock = Clock::starting(start);
        assert_eq!(clock.elapsed_ms(at(100)), 100);
        clock.take_out(Duration::from_millis(30));
        assert_eq!(clock.elapsed_ms(at(100)), 70);
        assert_eq!(clock.elapsed_ms(at(150)), 120);
        clock.take_out(Duration::from_secs(10));
        assert_eq!(clock.elapsed_ms(at(150)), 0, "never negative");
    }
}
