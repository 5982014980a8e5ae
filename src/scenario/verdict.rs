//! How a scenario is judged: outcomes, checks, and the rules that fold them into one verdict.
//!
//! Everything here is pure. [`Recorder`] collects what a scenario says while it runs and
//! [`Recorder::verdict`] folds it, by [`Rules`], into a [`Verdict`]:
//!
//! | recorded | verdict |
//! |---|---|
//! | any error | Error |
//! | a failed check, no error | Fail |
//! | `skip`, nothing failed | Skip, whatever else was recorded before it |
//! | an inconclusive check, nothing failed | Inconclusive |
//! | only passed checks | Pass |
//! | no check at all | Inconclusive |
//!
//! With [`Rules::expect_fail`] the failure that it names, alone, is a Pass; its absence is a Fail;
//! an error stays an Error.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::plot::Plot;

/// Failed, inconclusive and erroneous checks that are kept whole; further ones are only counted.
pub const KEPT_CHECKS: usize = 200;
/// Notes and printed lines that are kept; further ones are only counted.
pub const KEPT_LINES: usize = 1000;

/// The longest text that is kept, in bytes: whatever a script or a guest says ends up in memory,
/// in a pipe and in a report.
pub const KEPT_TEXT: usize = 16 << 10;

/// What came of a check or of a whole scenario, from the least to the most serious.
///
/// The order is the lattice: the outcome of many is their maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not judged, on purpose.
    Skip,
    /// As expected.
    Pass,
    /// Judged, but the evidence does not suffice.
    Inconclusive,
    /// Not as expected.
    Fail,
    /// Could not be judged: the machine, the script or the set-up is at fault.
    Error,
}

impl Outcome {
    /// Every outcome, from the least to the most serious.
    pub const ALL: [Outcome; 5] =
        [Outcome::Skip, Outcome::Pass, Outcome::Inconclusive, Outcome::Fail, Outcome::Error];

    /// The word for it in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Skip => "skip",
            Outcome::Pass => "pass",
            Outcome::Inconclusive => "inconclusive",
            Outcome::Fail => "fail",
            Outcome::Error => "error",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A place in a script.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScriptPos {
    /// The script.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1; 0 when only the line is known.
    pub column: usize,
    /// The line's text, without its line break.
    pub text: String,
}

impl fmt::Display for ScriptPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        if self.column > 0 { write!(f, ":{}", self.column) } else { Ok(()) }
    }
}

/// One judgement: of an `expect`, a `require`, or of the machinery itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What came of it.
    pub outcome: Outcome,
    /// What was judged, in the author's words where there are any.
    pub label: String,
    /// What should have been there; `None` where the message says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Where the value came from: map, path, tag and time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The author's line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<ScriptPos>,
    /// One or more lines that explain it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Check {
    /// A check with this outcome and nothing else said yet.
    #[must_use]
    pub fn new(outcome: Outcome, label: impl Into<String>) -> Self {
        Check {
            outcome,
            label: label.into(),
            expected: None,
            found: None,
            origin: None,
            at: None,
            message: None,
        }
    }

    /// A check that held.
    #[must_use]
    pub fn pass(label: impl Into<String>) -> Self {
        Check::new(Outcome::Pass, label)
    }

    /// A check that did not hold, explained by `message`.
    #[must_use]
    pub fn fail(label: impl Into<String>, message: impl Into<String>) -> Self {
        Check::new(Outcome::Fail, label).message(message)
    }

    /// Something that prevents judging.
    #[must_use]
    pub fn error(label: impl Into<String>, message: impl Into<String>) -> Self {
        Check::new(Outcome::Error, label).message(message)
    }

    /// Adds an explanation.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Adds what was expected and what was found.
    #[must_use]
    pub fn compared(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self.found = Some(found.into());
        self
    }

    /// Adds where the value came from.
    #[must_use]
    pub fn origin(mut self, origin: Option<String>) -> Self {
        self.origin = origin;
        self
    }

    /// Adds the author's line.
    #[must_use]
    pub fn at(mut self, at: Option<ScriptPos>) -> Self {
        self.at = at;
        self
    }

    /// Cuts every text that is too long to be kept.
    fn shorten(&mut self) {
        shorten(&mut self.label);
        let texts = [&mut self.expected, &mut self.found, &mut self.origin, &mut self.message];
        texts.into_iter().flatten().for_each(shorten);
        if let Some(at) = &mut self.at {
            shorten(&mut at.text);
        }
    }

    /// Whether `wanted` is this check's label or a part of its message.
    fn is_named(&self, wanted: &str) -> bool {
        self.label == wanted || self.message.as_ref().is_some_and(|m| m.contains(wanted))
    }
}

/// One thing that a scenario said, in the order in which it said it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A judgement.
    Check(Check),
    /// A remark for the report.
    Note {
        /// The remark.
        text: String,
        /// The author's line, when an author made it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<ScriptPos>,
    },
    /// The scenario ends here, unjudged.
    Skip {
        /// Why.
        reason: String,
        /// The author's line, when an author said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<ScriptPos>,
    },
    /// A line that the script printed.
    Print {
        /// The line.
        text: String,
    },
    /// How fields went over time.
    Plot(Plot),
}

/// How many checks came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Checks that held.
    pub pass: u64,
    /// Checks without enough evidence.
    pub inconclusive: u64,
    /// Checks that did not hold.
    pub fail: u64,
    /// What prevented judging.
    pub error: u64,
}

impl Counts {
    /// All checks.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.pass + self.inconclusive + self.fail + self.error
    }

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Skip => {}
            Outcome::Pass => self.pass += 1,
            Outcome::Inconclusive => self.inconclusive += 1,
            Outcome::Fail => self.fail += 1,
            Outcome::Error => self.error += 1,
        }
    }
}

/// What a scenario's declaration says about judging it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The label, or a part of the message, of the one check that is meant to fail.
    pub expect_fail: Option<String>,
    /// Whether an Inconclusive counts as success for the exit code.
    pub allow_inconclusive: bool,
}

/// The judgement of one scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, where the checks do not say it: the reason of a skip, "no check was recorded", ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether this Inconclusive counts as success (the scenario's `allow_inconclusive`).
    #[serde(default)]
    pub allowed: bool,
    /// How the checks came out.
    pub counts: Counts,
}

impl Verdict {
    /// A verdict about something that never came to a check.
    #[must_use]
    pub fn bare(outcome: Outcome, reason: impl Into<String>) -> Self {
        let counts = Counts { error: u64::from(outcome == Outcome::Error), ..Counts::default() };
        Verdict { outcome, reason: Some(reason.into()), allowed: false, counts }
    }

    /// What this contributes to the exit code of a run: an allowed Inconclusive is a Pass.
    #[must_use]
    pub fn weight(&self) -> Outcome {
        if self.allowed && self.outcome == Outcome::Inconclusive {
            Outcome::Pass
        } else {
            self.outcome
        }
    }
}

type Sink = Box<dyn Fn(&Record) + Send + Sync>;

/// Collects what a scenario says. Clones share one record.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    sink: Option<Sink>,
    /// Whether nothing is kept, so that nothing has to be left out.
    passing_on: bool,
}

#[derive(Default)]
struct State {
    counts: Counts,
    kept: Vec<Check>,
    skip: Option<String>,
    lines: usize,
    dropped: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder::new()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that keeps to itself.
    #[must_use]
    pub fn new() -> Self {
        Recorder::build(None, false)
    }

    /// A recorder that also hands everything it keeps to `sink`, in order, at once.
    ///
    /// The sink is called under the recorder's lock: it must not record anything itself.
    #[must_use]
    pub fn with_sink(sink: impl Fn(&Record) + Send + Sync + 'static) -> Self {
        Recorder::build(Some(Box::new(sink)), false)
    }

    /// A recorder that keeps nothing but the counts: everything goes to `sink`, whole, however
    /// much it is. For a person who looks on.
    ///
    /// The sink is called under the recorder's lock: it must not record anything itself.
    #[must_use]
    pub fn passing_on(sink: impl Fn(&Record) + Send + Sync + 'static) -> Self {
        Recorder::build(Some(Box::new(sink)), true)
    }

    fn build(sink: Option<Sink>, passing_on: bool) -> Self {
        Recorder { inner: Arc::new(Inner { state: Mutex::default(), sink, passing_on }) }
    }

    /// Records a judgement. All count; beyond [`KEPT_CHECKS`] that did not hold, and
    /// [`KEPT_LINES`] that did, only their number is kept.
    pub fn record(&self, mut check: Check) {
        let mut state = self.lock();
        state.counts.add(check.outcome);
        if self.inner.passing_on {
            return self.tell(&Record::Check(check));
        }
        check.shorten();
        if check.outcome <= Outcome::Pass {
            if state.counts.pass > KEPT_LINES as u64 {
                return;
            }
        } else {
            if state.kept.len() >= KEPT_CHECKS {
                return self.drop_one(&mut state, "checks that do not hold", KEPT_CHECKS);
            }
            state.kept.push(check.clone());
        }
        self.tell(&Record::Check(check));
    }

    /// Records a remark.
    pub fn note(&self, text: impl Into<String>, at: Option<ScriptPos>) {
        self.line(Record::Note { text: text.into(), at });
    }

    /// Records what the script printed.
    pub fn print(&self, text: impl Into<String>) {
        self.line(Record::Print { text: text.into() });
    }

    /// Records how fields went over time.
    pub fn plot(&self, plot: Plot) {
        self.line(Record::Plot(plot));
    }

    /// Records that the scenario is to end unjudged. The first reason stays.
    pub fn skip(&self, reason: impl Into<String>, at: Option<ScriptPos>) {
        let mut reason = reason.into();
        shorten(&mut reason);
        let mut state = self.lock();
        if state.skip.is_none() || self.inner.passing_on {
            state.skip = Some(reason.clone());
            self.tell(&Record::Skip { reason, at });
        }
    }

    /// How the checks came out so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The checks so far that did not hold, at most [`KEPT_CHECKS`], in order.
    #[must_use]
    pub fn failures(&self) -> Vec<Check> {
        self.lock().kept.clone()
    }

    /// Failures, notes and printed lines that were counted but not kept.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Folds what was recorded so far.
    #[must_use]
    pub fn verdict(&self, rules: &Rules) -> Verdict {
        let state = self.lock();
        let (outcome, reason) = match &rules.expect_fail {
            Some(wanted) => fold_expecting(&state, wanted),
            None => fold(&state),
        };
        Verdict { outcome, reason, allowed: rules.allow_inconclusive, counts: state.counts }
    }

    fn line(&self, mut record: Record) {
        if self.inner.passing_on {
            let _in_order = self.lock();
            return self.tell(&record);
        }
        if let Record::Note { text, .. } | Record::Print { text } = &mut record {
            shorten(text);
        }
        let mut state = self.lock();
        if state.lines >= KEPT_LINES {
            return self.drop_one(&mut state, "printed lines and notes", KEPT_LINES);
        }
        state.lines += 1;
        self.tell(&record);
    }

    /// Counts what is not kept. The first time it says so.
    fn drop_one(&self, state: &mut State, what: &str, most: usize) {
        state.dropped += 1;
        if state.dropped == 1 {
            let text = format!("of more than {most} {what}, the others are only counted");
            self.tell(&Record::Note { text, at: None });
        }
    }

    fn tell(&self, record: &Record) {
        if let Some(sink) = &self.inner.sink {
            sink(record);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not hide what was recorded before it.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fold(state: &State) -> (Outcome, Option<String>) {
    let counts = &state.counts;
    if counts.error > 0 {
        return (Outcome::Error, None);
    }
    if counts.fail > 0 {
        return (Outcome::Fail, None);
    }
    if let Some(reason) = &state.skip {
        return (Outcome::Skip, Some(reason.clone()));
    }
    if counts.inconclusive > 0 {
        return (Outcome::Inconclusive, None);
    }
    if counts.pass > 0 {
        return (Outcome::Pass, None);
    }
    let advice = "no check was recorded: use expect(..) or require(..), or say skip(..)";
    (Outcome::Inconclusive, Some(advice.to_string()))
}

/// The fold of a scenario in which one check is meant to fail.
fn fold_expecting(state: &State, wanted: &str) -> (Outcome, Option<String>) {
    let counts = &state.counts;
    if counts.error > 0 {
        return (Outcome::Error, None);
    }
    let failed = || state.kept.iter().filter(|c| c.outcome == Outcome::Fail);
    let named = failed().filter(|c| c.is_named(wanted)).count() as u64;
    if counts.fail > named {
        let reason = format!(
            "{} failed beside the one that expect_fail names ({wanted:?})",
            plural(counts.fail - named, "check")
        );
        return (Outcome::Fail, Some(reason));
    }
    if named > 0 {
        return (Outcome::Pass, Some(format!("failed as expect_fail wants it: {wanted:?}")));
    }
    if let Some(reason) = &state.skip {
        return (Outcome::Skip, Some(reason.clone()));
    }
    let reason = format!("expect_fail wants {wanted:?} to fail, but no such check failed");
    (Outcome::Fail, Some(reason))
}

/// Cuts a text that is longer than [`KEPT_TEXT`], and says so.
fn shorten(text: &mut String) {
    if text.len() <= KEPT_TEXT {
        return;
    }
    let mut end = KEPT_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let cut = text.len() - end;
    text.truncate(end);
    text.push_str(&format!("… ({cut} more bytes)"));
}

/// "1 check", "2 checks".
#[must_use]
pub fn plural(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Outcome::{Error, Fail, Inconclusive, Pass, Skip};

    /// `p`ass, `i`nconclusive, `f`ail (label "f"), `F`ail (label "wanted"), `e`rror, `s`kip.
    fn recorded(script: &str) -> Recorder {
        let recorder = Recorder::new();
        for c in script.chars() {
            match c {
                'p' => recorder.record(Check::pass("p")),
                'i' => recorder.record(Check::new(Inconclusive, "i")),
                'f' => recorder.record(Check::fail("f", "too small")),
                'F' => recorder.record(Check::fail("wanted", "too big")),
                'e' => recorder.record(Check::error("e", "no machine")),
                's' => recorder.skip("cannot", None),
                other => panic!("no such step {other}"),
            }
        }
        recorder
    }

    #[test]
    fn outcomes_are_ordered_as_the_lattice_says() {
        assert!(Outcome::ALL.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(Outcome::ALL.iter().max(), Some(&Error));
        assert_eq!(format!("[{:>6}]", Pass), "[  pass]");
    }

    #[test]
    fn everything_recorded_folds_by_the_lattice() {
        let cases = [
            ("", Inconclusive),
            ("p", Pass),
            ("ppp", Pass),
            ("pi", Inconclusive),
            ("pf", Fail),
            ("if", Fail),
            ("fe", Error),
            ("e", Error),
            ("s", Skip),
            ("ps", Skip),
            ("is", Skip),
            ("fs", Fail),
            ("es", Error),
            ("sp", Skip),
            ("sf", Fail),
        ];
        for (script, want) in cases {
            let verdict = recorded(script).verdict(&Rules::default());
            assert_eq!(verdict.outcome, want, "{script:?}");
        }
    }

    #[test]
    fn reasons_are_given_where_no_check_says_them() {
        let reason = |script| recorded(script).verdict(&Rules::default()).reason;
        assert_eq!(reason("ps").as_deref(), Some("cannot"));
        let none = "no check was recorded: use expect(..) or require(..), or say skip(..)";
        assert_eq!(reason("").as_deref(), Some(none));
        assert_eq!(reason("pf"), None);
    }

    #[test]
    fn an_expected_failure_is_met_by_that_check_alone() {
        let cases = [
            ("", Fail),
            ("p", Fail),
            ("F", Pass),
            ("pF", Pass),
            ("FF", Pass),
            ("f", Fail),
            ("Ff", Fail),
            ("Fe", Error),
            ("e", Error),
            ("s", Skip),
            ("Fs", Pass),
        ];
        for (script, want) in cases {
            let rules = Rules { expect_fail: Some("wanted".into()), ..Rules::default() };
            assert_eq!(recorded(script).verdict(&rules).outcome, want, "{script:?}");
        }
        let by_message = Rules { expect_fail: Some("too big".into()), ..Rules::default() };
        assert_eq!(recorded("F").verdict(&by_message).outcome, Pass);
        let absent = recorded("p").verdict(&by_message).reason.unwrap();
        assert_eq!(absent, "expect_fail wants \"too big\" to fail, but no such check failed");
        let beside = recorded("Ff").verdict(&by_message).reason.unwrap();
        assert_eq!(beside, "1 check failed beside the one that expect_fail names (\"too big\")");
    }

    #[test]
    fn an_allowed_inconclusive_weighs_as_a_pass() {
        let rules = Rules { allow_inconclusive: true, ..Rules::default() };
        let cases = [("", Inconclusive, Pass), ("i", Inconclusive, Pass), ("f", Fail, Fail)];
        for (script, outcome, weight) in cases {
            let verdict = recorded(script).verdict(&rules);
            assert_eq!((verdict.outcome, verdict.weight()), (outcome, weight), "{script:?}");
        }
        assert_eq!(recorded("i").verdict(&Rules::default()).weight(), Inconclusive);
    }

    #[test]
    fn the_record_is_bounded_but_counts_everything() {
        let recorder = Recorder::new();
        for i in 0..KEPT_CHECKS + 5 {
            recorder.record(Check::fail(format!("{i}"), "no"));
        }
        for _ in 0..KEPT_LINES + 3 {
            recorder.note("again", None);
        }
        assert_eq!(recorder.counts().fail as usize, KEPT_CHECKS + 5);
        assert_eq!(recorder.failures().len(), KEPT_CHECKS);
        assert_eq!(recorder.dropped(), 8);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let recorder = Recorder::with_sink(move |r| sink.lock().unwrap().push(r.clone()));
        let long = format!("x{}", "ä".repeat(KEPT_TEXT));
        recorder.print(long.clone());
        recorder.note(long.clone(), None);
        recorder.record(Check::fail("a", long.clone()).compared(long.clone(), "short"));
        recorder.skip(long, None);
        for record in seen.lock().unwrap().iter() {
            let json = serde_json::to_string(record).unwrap();
            assert!(json.len() < 3 * KEPT_TEXT, "{} bytes", json.len());
            assert!(
                json.contains("ä… (16386 more bytes)"),
                "{}",
                json.chars().rev().take(60).collect::<String>()
            );
        }
    }

    #[test]
    fn the_sink_sees_what_is_kept_in_order() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let recorder = Recorder::with_sink(move |r| sink.lock().unwrap().push(r.clone()));
        recorder.record(Check::pass("a"));
        recorder.note("b", None);
        recorder.skip("c", None);
        recorder.skip("d", None);
        recorder.print("e");
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 4, "the second skip adds nothing: {seen:?}");
        assert!(matches!(&seen[2], Record::Skip { reason, .. } if reason == "c"));
    }

    #[test]
    fn what_is_passed_on_is_whole() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let recorder = Recorder::passing_on(move |r| sink.lock().unwrap().push(r.clone()));
        recorder.print("x".repeat(2 * KEPT_TEXT));
        for _ in 0..KEPT_LINES {
            recorder.note("n", None);
        }
        for _ in 0..=KEPT_CHECKS {
            recorder.record(Check::fail("f", "no"));
        }
        recorder.skip("once", None);
        recorder.skip("twice", None);
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1 + KEPT_LINES + KEPT_CHECKS + 1 + 2);
        assert_eq!(told[0], Record::Print { text: "x".repeat(2 * KEPT_TEXT) });
        assert_eq!((recorder.dropped(), recorder.counts().fail), (0, KEPT_CHECKS as u64 + 1));
        assert_eq!(recorder.failures(), []);
    }
}
