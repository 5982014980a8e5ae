//! Where a machine is in the course of a freeze, and what moves it: the diagram in `mod.rs` as a
//! pure function.

/// Where a machine is in the course of a freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest runs.
    Running,
    /// Its CPUs are being stopped for a capture.
    Stopping,
    /// All stand still, and are copied from.
    Copying,
    /// They are being let go on.
    Resuming,
    /// Its CPUs are being stopped by hand.
    Pausing,
    /// It stands still until it is told to go on.
    Paused,
    /// It stands still by hand, and is copied from.
    Peeking,
    /// It stands still and cannot be made to go on, or is gone.
    Lost,
}

/// What moves a machine from one phase to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A capture is wanted.
    Freeze,
    /// It is to stand until further notice.
    Pause,
    /// It is to go on.
    Resume,
    /// What the phase is about is done.
    Done,
    /// It did not happen in time.
    TooLate,
    /// The machine is gone.
    Ended,
}

impl Phase {
    /// The transition function; `None` for a step that makes no sense in this phase.
    pub(super) fn after(self, step: Step) -> Option<Phase> {
        use Phase::{Copying, Lost, Paused, Pausing, Peeking, Resuming, Running, Stopping};
        match (self, step) {
            (Running, Step::Freeze) => Some(Stopping),
            (Stopping, Step::Done) => Some(Copying),
            (Copying, Step::Done) => Some(Resuming),
            (Resuming, Step::Done) => Some(Running),
            (Running, Step::Pause) => Some(Pausing),
            (Pausing, Step::Done) => Some(Paused),
            (Paused, Step::Freeze) => Some(Peeking),
            (Peeking, Step::Done) => Some(Paused),
            (Paused, Step::Resume) => Some(Resuming),
            (Stopping | Pausing, Step::TooLate) => Some(Running),
            (Resuming, Step::TooLate) | (_, Step::Ended) => Some(Lost),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_leads_somewhere_or_nowhere() {
        use Phase::{Copying, Lost, Paused, Pausing, Peeking, Resuming, Running, Stopping};
        const NO: Option<Phase> = None;
        let phases = [Running, Stopping, Copying, Resuming, Pausing, Paused, Peeking, Lost];
        let table = [
            (Step::Freeze, [Some(Stopping), NO, NO, NO, NO, Some(Peeking), NO, NO]),
            (Step::Pause, [Some(Pausing), NO, NO, NO, NO, NO, NO, NO]),
            (Step::Resume, [NO, NO, NO, NO, NO, Some(Resuming), NO, NO]),
            (
                Step::Done,
                [
                    NO,
                    Some(Copying),
                    Some(Resuming),
                    Some(Running),
                    Some(Paused),
                    NO,
                    Some(Paused),
                    NO,
                ],
            ),
            (Step::TooLate, [NO, Some(Running), NO, Some(Lost), Some(Running), NO, NO, NO]),
            (Step::Ended, [Some(Lost); 8]),
        ];
        for (step, expected) in table {
            assert_eq!(phases.map(|phase| phase.after(step)), expected, "{step:?}");
        }
    }
}
