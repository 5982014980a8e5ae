//! Where a plain value came from.
//!
//! A leaf that a script read is a value of the script's own, so that it computes and compares like
//! any other. For the message of a failed check, its Rhai tag is a ticket into a ring of the last
//! reads of this thread. The ring also has the value: a variable that was changed in place keeps
//! its tag, and must not pass for what was read.

use std::cell::RefCell;

use rhai::Dynamic;

use crate::script::values;
use crate::snapshot::{Field, Map, Scalar};

/// Reads that are remembered.
const REMEMBERED: usize = 1 << 14;

struct Read {
    ticket: i32,
    from: Option<From>,
    value: Scalar,
}

/// What was read.
enum From {
    /// A place.
    Field(Field),
    /// Something computed over a map, with the words for it.
    Map(Map, String),
}

impl From {
    fn told(&self) -> String {
        match self {
            From::Field(field) => field.origin().to_string(),
            From::Map(map, what) => format!("{what} {}", map.snapshot().instant()),
        }
    }
}

#[derive(Default)]
struct Ring {
    reads: Vec<Read>,
    last: i32,
}

thread_local! {
    static READS: RefCell<Ring> = RefCell::default();
}

/// What was read so far, for [`forget_since`].
pub(crate) fn mark() -> i32 {
    READS.with_borrow(|ring| ring.last)
}

/// Forgets what was read since: the snapshots behind it would stay in memory.
pub(crate) fn forget_since(mark: i32) {
    READS.with_borrow_mut(|ring| {
        let since = ring.last.saturating_sub(mark).clamp(0, REMEMBERED as i32);
        for ticket in (0..since).map(|back| ring.last - back).filter(|ticket| *ticket > 0) {
            if let Some(read) = ring.reads.get_mut((ticket - 1) as usize % REMEMBERED) {
                read.from = None;
            }
        }
    });
}

/// The value that was read from a field, with a ticket.
pub(super) fn remember(field: &Field, value: Scalar) -> Dynamic {
    ticketed(From::Field(field.clone()), value)
}

/// A value that was computed over a map, with a ticket; `what` names it: `task_ctx.len`.
pub(super) fn remember_of(map: &Map, what: String, value: Scalar) -> Dynamic {
    ticketed(From::Map(map.clone(), what), value)
}

fn ticketed(from: From, value: Scalar) -> Dynamic {
    let ticket = READS.with_borrow_mut(|ring| {
        // After the highest ticket comes the first again.
        ring.last = ring.last.checked_add(1).unwrap_or(1);
        let read = Read { ticket: ring.last, from: Some(from), value: value.clone() };
        let slot = (ring.last - 1) as usize % REMEMBERED;
        match ring.reads.get_mut(slot) {
            Some(old) => *old = read,
            None => ring.reads.push(read),
        }
        ring.last
    });
    let mut value = values::from_scalar(value);
    value.set_tag(ticket);
    value
}

/// Where a value came from, if it is what a snapshot held.
pub(crate) fn origin_of(value: &Dynamic) -> Option<String> {
    if let Some(field) = value.read_lock::<Field>() {
        return Some(field.origin().to_string());
    }
    let ticket = value.tag();
    if ticket <= 0 {
        return None;
    }
    let now = values::to_scalar(value).ok()??;
    READS.with_borrow(|ring| {
        let read = ring.reads.get((ticket - 1) as usize % REMEMBERED)?;
        let from = read.from.as_ref().filter(|_| read.ticket == ticket && read.value == now);
        from.map(From::told)
    })
}
