//! Freezing: stop, copy, go on.
//!
//! ```text
//!             freeze               all CPUs stopped              copied, or not
//!   Running ─────────▶ Stopping ─────────────────▶ Copying ─────────────────▶ Resuming
//!    ▲ ▲ │ pause          │                                                    ▲ │  │
//!    │ │ └──────▶ Pausing │ not in time                                        │ │  │ not in time,
//!    │ │ not in  │  │     │                                                    │ │  │ or the machine
//!    │ └─────────┘  │     │        copied                                      │ │  │ has ended
//!    │    time      │     │     ┌──────────┐                resume             │ │  │
//!    │              └─────┼───▶ Paused ───────────────────────────────────────▶┘ │  │
//!    │      stopped       │     └──▶ Peeking                                     │  │
//!    │                    │  freeze                                              │  ▼
//!    ├────────────────────┘                                    CPUs run again    │ Lost
//!    └───────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! One thread, the coordinator, owns the machine and what reads its memory. Everybody else holds
//! a [`Bridge`] and sends requests, which are done one after the other in the order in which they
//! come: there is never more than one capture in flight. What happens in the machine by itself (a
//! trap) comes over the same queue. Dropping the last [`Bridge`] ends the machine.
//!
//! What makes a freeze short: everything that can be done while the machine runs is done before it
//! is stopped (memory faulted in, kernel found, types read) or after it goes on (decoding). What
//! makes it safe: whatever happens while it is stopped, an error or a panic, lets it go on. A
//! machine that cannot be stopped in time gives a placeholder, whose accessors say which CPU did
//! not come and where it was last seen.

mod bridge;
mod coordinator;
mod error;
mod freezer;
mod phase;
#[cfg(test)]
mod tests;
mod trigger;

pub use bridge::{Bridge, Poster};
pub use error::FreezeError;
pub use freezer::{Freezer, Opened};
pub use phase::Phase;
pub use trigger::{
    ExitOrder, ExitWay, MOST_WATCHES, MetaNow, Tell, WatchCount, WatchId, WatchOrder,
};
