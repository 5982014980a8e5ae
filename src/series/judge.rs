//! What a pattern found, in words.

use std::fmt::Write as _;
use std::time::Duration;

use super::field::{Number, Stamp};
use crate::snapshot::SnapshotError;

/// Samples that a note names.
const NAMED: usize = 4;

/// What came of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The series is as expected.
    Pass,
    /// There is too little to tell.
    Inconclusive,
    /// It is not.
    Fail,
}

/// What a pattern found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What came of it.
    pub outcome: Judged,
    /// The pattern, as scripts call it.
    pub pattern: String,
    /// What every sample or pair had to be.
    pub expected: String,
    /// What was there: the sample that broke it by tag, time and value, and its neighbour.
    pub found: String,
    /// Samples that were left out, and why.
    pub note: Option<String>,
}

/// `periodic_004 at 1.200 s`.
pub(super) fn at(stamp: &Stamp) -> String {
    format!("{} at {}", stamp.tag, seconds(stamp.elapsed))
}

/// `1.200 s`.
pub(super) fn seconds(time: Duration) -> String {
    format!("{}.{:03} s", time.as_secs(), time.subsec_millis())
}

/// A number that was computed, without digits that say nothing.
pub(super) fn short(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() || x.abs() >= 1e15 {
        return format!("{x:e}");
    }
    let digits = match x.abs() {
        a if a >= 1000.0 => 0,
        a if a >= 1.0 => 3,
        _ => 6,
    };
    let text = format!("{x:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Gathers what a pattern sees, and words it.
pub(super) struct Jury {
    pattern: String,
    expected: String,
    /// Samples or pairs that were looked at, and how many of them broke the pattern.
    seen: usize,
    broken: usize,
    what: &'static str,
    first: Option<String>,
    doubt: Option<String>,
    skipped: Vec<String>,
    skips: usize,
}

impl Jury {
    /// `what` is judged one by one: `pairs`, `samples`.
    pub(super) fn new(pattern: impl Into<String>, expected: String, what: &'static str) -> Jury {
        Jury {
            pattern: pattern.into(),
            expected,
            seen: 0,
            broken: 0,
            what,
            first: None,
            doubt: None,
            skipped: Vec::new(),
            skips: 0,
        }
    }

    /// One more was looked at; `wrong` words what is wrong with it.
    pub(super) fn saw(&mut self, holds: bool, wrong: impl FnOnce() -> String) {
        self.seen += 1;
        if !holds {
            self.broken += 1;
            self.first.get_or_insert_with(wrong);
        }
    }

    /// Something that cannot be told either way.
    pub(super) fn doubts(&mut self, why: impl FnOnce() -> String) {
        self.doubt.get_or_insert_with(why);
    }

    /// A sample is left out.
    pub(super) fn skips(&mut self, stamp: &Stamp, error: &SnapshotError) {
        self.skips += 1;
        if self.skipped.len() < NAMED {
            self.skipped.push(format!("{} ({}: {error})", at(stamp), error.kind()));
        }
    }

    /// A sample that is no number at all.
    pub(super) fn nan(&mut self, stamp: &Stamp, number: Number) -> bool {
        if number.is_nan() {
            self.saw(false, || format!("NaN in {}", at(stamp)));
        }
        number.is_nan()
    }

    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken > 0
    }

    /// The judgement; `whole` words what was there when nothing was wrong.
    pub(super) fn verdict(self, label: &str, whole: impl FnOnce() -> String) -> Judgement {
        let (outcome, found) = match (self.first, self.doubt) {
            (Some(first), _) if self.seen > 1 => {
                let all = format!("{first}; {} of {} {} fail", self.broken, self.seen, self.what);
                (Judged::Fail, all)
            }
            (Some(first), _) => (Judged::Fail, first),
            (None, Some(doubt)) => (Judged::Inconclusive, doubt),
            (None, None) => (Judged::Pass, whole()),
        };
        let note = (self.skips > 0).then(|| {
            let samples = if self.skips == 1 { "sample" } else { "samples" };
            let mut note = format!(
                "{label}: {} left out {} {samples}: {}",
                self.pattern,
                self.skips,
                self.skipped.join("; ")
            );
            if self.skips > self.skipped.len() {
                let _ = write!(note, "; and {} more", self.skips - self.skipped.len());
            }
            note
        });
        Judgement { outcome, pattern: self.pattern, expected: self.expected, found, note }
    }
}
