//! What natives throw: an author's mistakes as values that a script can catch, and endings that
//! it cannot.

use rhai::{Dynamic, EvalAltResult, Position};

use crate::scenario::lab::LabError;

use super::register::Package;

/// What a native function returns when it can fail.
pub(crate) type Native<T> = Result<T, Box<EvalAltResult>>;

/// A refusal that a script can catch: `e.kind`, `e.message`, `e.hint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// `Argument`, `NotAvailableYet`, `Timeout`, ...
    pub(crate) kind: Kind,
    /// What was wrong, with the nearest right name and what to do.
    pub(crate) message: String,
}

/// Sorts of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The author asked for something that makes no sense or is not there.
    Argument,
    /// It is planned, but this version cannot do it.
    NotAvailableYet,
    /// It cannot be done here: `boot` in a file of scenarios, ...
    Misplaced,
    /// Something did not happen in its time.
    Timeout,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Argument => "Argument",
            Kind::NotAvailableYet => "NotAvailableYet",
            Kind::Misplaced => "Misplaced",
            Kind::Timeout => "Timeout",
        }
    }
}

impl Fault {
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Fault { kind: Kind::Argument, message: message.into() }
    }

    pub(crate) fn misplaced(message: impl Into<String>) -> Self {
        Fault { kind: Kind::Misplaced, message: message.into() }
    }

    /// The refusal of something that a later version will do.
    pub(crate) fn not_yet(what: &str) -> Self {
        let message = format!("{what} is not available yet");
        Fault { kind: Kind::NotAvailableYet, message }
    }

    /// The refusal as an error; Rhai adds the position of the call.
    pub(crate) fn thrown(self) -> Box<EvalAltResult> {
        EvalAltResult::ErrorRuntime(Dynamic::from(self), Position::NONE).into()
    }
}

impl From<Fault> for Box<EvalAltResult> {
    fn from(fault: Fault) -> Self {
        fault.thrown()
    }
}

impl TryFrom<&LabError> for Fault {
    type Error = ();

    /// A laboratory's refusal, when scripts may catch it.
    fn try_from(error: &LabError) -> Result<Self, ()> {
        let kind = match error {
            LabError::Argument(_) => Kind::Argument,
            LabError::Timeout(_) => Kind::Timeout,
            _ => return Err(()),
        };
        Ok(Fault { kind, message: error.to_string() })
    }
}

/// An ending that no script can catch; what it means is in the session.
pub(crate) fn terminate() -> Box<EvalAltResult> {
    EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE).into()
}

pub(crate) fn register(pkg: &mut Package<'_>) {
    super::values::incomparable::<Fault>(pkg, "Fault");
    pkg.ty::<Fault>(
        "Fault",
        "What is thrown for a mistake in the script's own words: `kind` and `message`.",
    )
    .getter(
        "kind(self: Fault) -> string",
        "`Argument`, `NotAvailableYet`, `Misplaced` or `Timeout`.",
        |f: &mut Fault| f.kind.name(),
    )
    .getter(
        "message(self: Fault) -> string",
        "What was wrong, and what to write instead.",
        |f: &mut Fault| f.message.clone(),
    )
    .func("to_string(self: Fault) -> string", "The message.", |f: &mut Fault| f.message.clone())
    .func("to_debug(self: Fault) -> string", "The kind and the message.", |f: &mut Fault| {
        format!("{}: {}", f.kind.name(), f.message)
    });
}
