//! The thread that owns the machine.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use super::Freezer;

/// What is to be done with the machine. Whoever waits for the outcome gets it over a channel of
/// its own, which the job holds.
pub(super) type Job = Box<dyn FnOnce(&mut Freezer) + Send>;

/// What comes over the queue.
pub(super) enum Message {
    /// One request, or something that happened in the machine by itself.
    Job(Job),
    /// Nobody is there any more to ask for something.
    End,
}

/// Does what is asked, one after the other, until nobody is left to ask. Jobs that are dropped
/// undone tell whoever waits for them by that.
pub(super) fn run(mut freezer: Freezer, queue: &Receiver<Message>) {
    loop {
        let message = match freezer.due() {
            None => queue.recv().ok(),
            Some(due) => match queue.recv_timeout(due) {
                Err(RecvTimeoutError::Timeout) => {
                    let _ = catch_unwind(AssertUnwindSafe(|| freezer.tick()));
                    continue;
                }
                message => message.ok(),
            },
        };
        let Some(Message::Job(job)) = message else { break };
        // Whoever waits has been told of a panic by the job itself; the machine goes on.
        let _ = catch_unwind(AssertUnwindSafe(|| job(&mut freezer)));
    }
    freezer.stop();
}

/// The words of a panic.
pub(super) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a word".to_owned())
}
