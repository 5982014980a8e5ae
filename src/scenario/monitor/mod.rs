//! The monitor: what a scenario wants to know of its machine all the time, what must not be, and what
//! came of it.
//!
//! ```text
//! memory ──Reading──▶ Watcher ──Observation──▶ Course ──▶ MonitorReport, a check or a note per limit
//!                     (can it be?)             (limits)
//! ```

mod course;
mod watcher;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use course::{Course, Judged};
pub use watcher::Watcher;

use super::text::clean;
use super::verdict::plural;
use crate::snapshot::Meta;

/// How often the machine is read when nobody says otherwise.
pub const EVERY: Duration = Duration::from_millis(100);
/// The least time between two readings.
pub const LEAST: Duration = Duration::from_millis(5);
/// How many readings in a row have to be beyond a limit when nobody says otherwise: one alone may
/// have fallen into the middle of something.
pub const READINGS: u32 = 3;
/// Events that a report's line names.
const NAMED: usize = 4;

/// What a limit is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Tasks on the CPU with most, over those on the CPU with fewest.
    Imbalance,
    /// Tasks in the longest dispatch queue.
    Depth,
    /// Tasks in the longest queue of a CPU.
    LocalDepth,
    /// Seconds that a CPU has been stuck for.
    Stuck,
    /// How often an event happens in a second.
    Event(String),
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Signal::Imbalance => f.write_str("imbalance"),
            Signal::Depth => f.write_str("depth"),
            Signal::LocalDepth => f.write_str("local_depth"),
            Signal::Stuck => f.write_str("stuck"),
            Signal::Event(name) => f.write_str(name),
        }
    }
}

impl Signal {
    /// A value of it, for people.
    fn told(&self, value: f64) -> String {
        match self {
            Signal::Imbalance => format!("{value:.1}"),
            Signal::Depth | Signal::LocalDepth => plural(value as u64, "task"),
            Signal::Stuck => format!("{value:.2} s"),
            Signal::Event(_) => format!("{value:.1}/s"),
        }
    }

    /// A limit of it, as exactly as it was given.
    fn limit(&self, value: f64) -> String {
        match self {
            Signal::Imbalance => format!("{value}"),
            Signal::Stuck => format!("{value} s"),
            Signal::Event(_) => format!("{value}/s"),
            Signal::Depth | Signal::LocalDepth => self.told(value),
        }
    }
}

/// What comes of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing: it is not looked at.
    Off,
    /// A note when it is exceeded.
    Report,
    /// A check.
    Enforce,
}

impl Mode {
    /// Every spelling.
    pub const NAMES: [&'static str; 3] = ["off", "report", "enforce"];

    /// Reads `off`, `report` or `enforce`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Mode> {
        match text {
            "off" => Some(Mode::Off),
            "report" => Some(Mode::Report),
            "enforce" => Some(Mode::Enforce),
            _ => None,
        }
    }
}

/// The most that something may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// What.
    pub signal: Signal,
    /// The most: a ratio, tasks, seconds, or events per second.
    pub most: f64,
    /// What comes of it.
    pub mode: Mode,
    /// How many readings in a row have to be beyond it.
    pub readings: u32,
}

/// The monitor that a scenario asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorOptions {
    /// How often the machine is read, in the workload's time.
    pub every: Duration,
    /// What must not be.
    pub limits: Vec<Limit>,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        MonitorOptions { every: EVERY, limits: Vec::new() }
    }
}

/// What came of a monitor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MonitorReport {
    /// How many readings were taken.
    pub readings: u64,
    /// How many could not be taken at all, and why the first of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed: u64,
    /// Why the first of those was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How many readings could not be taken in time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
    /// Numbers that were not believed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub doubted: u64,
    /// What the first of those was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
    /// What changed while it was looked at, and was given up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given_up: u64,
    /// The largest imbalance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imbalance: Option<f64>,
    /// The longest dispatch queue and the tasks in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<(String, u32)>,
    /// The CPU that was stuck for longest, and for how many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck_ms: Option<(u32, u64)>,
    /// How often each event happened in a second.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<String, f64>,
    /// The longest that a reading took, in microseconds.
    pub longest_us: u64,
}

/// A monitor that reads a live machine while it runs.
pub trait MonitorOps {
    /// The readings so far, in order, each with its time and phase; nothing when the scenario has no
    /// monitor.
    fn readings(&self) -> Option<Vec<Arc<Meta>>>;

    /// What came of it so far.
    fn monitored(&self) -> MonitorReport;
}

/// A machine without one.
pub(super) struct NoMonitor;

impl MonitorOps for NoMonitor {
    fn readings(&self) -> Option<Vec<Arc<Meta>>> {
        None
    }

    fn monitored(&self) -> MonitorReport {
        MonitorReport::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl fmt::Display for MonitorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "monitor: {}", plural(self.readings, "reading"))?;
        let mut parts = Vec::new();
        if let Some(imbalance) = self.imbalance {
            parts.push(format!("imbalance at most {imbalance:.1}"));
        }
        if let Some((name, depth)) = &self.depth {
            let of = if *depth > 0 { format!(" ({name})") } else { String::new() };
            parts.push(format!("depth at most {depth}{of}"));
        }
        if let Some((cpu, ms)) = self.stuck_ms {
            let of = if ms > 0 { format!(" (CPU {cpu})") } else { String::new() };
            parts.push(format!("stuck for at most {:.2} s{of}", ms as f64 / 1000.0));
        }
        if !parts.is_empty() {
            write!(f, ": {}", parts.join(", "))?;
        }
        let mut events: Vec<_> = self.events.iter().filter(|(_, rate)| **rate > 0.0).collect();
        events.sort_by(|a, b| b.1.total_cmp(a.1));
        if !events.is_empty() {
            let named = events.iter().take(NAMED).map(|(name, rate)| {
                format!("{} {rate:.1}/s", clean(name.strip_prefix("SCX_EV_").unwrap_or(name)))
            });
            let more = if events.len() > NAMED { ", .." } else { "" };
            write!(f, "; {}{more}", named.collect::<Vec<_>>().join(", "))?;
        }
        if self.failed > 0 {
            let why = clean(self.failure.as_deref().unwrap_or_default());
            write!(f, "; {} failed ({why})", self.failed)?;
        }
        if self.doubted > 0 {
            let numbers = plural(self.doubted, "number");
            let why = clean(self.doubt.as_deref().unwrap_or_default());
            write!(f, "; {numbers} not believed ({why})")?;
        }
        if self.missed > 0 {
            write!(f, "; {} missed", self.missed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_came_of_it() {
        let mut report = MonitorReport { readings: 39, ..MonitorReport::default() };
        assert_eq!(report.to_string(), "monitor: 39 readings");
        report.imbalance = Some(2.0);
        (report.depth, report.stuck_ms) = (Some(("local:0".into(), 0)), Some((0, 0)));
        assert_eq!(
            report.to_string(),
            "monitor: 39 readings: imbalance at most 2.0, depth at most 0, stuck for at most 0.00 s"
        );
        (report.depth, report.stuck_ms) = (Some(("7".into(), 5)), Some((1, 1234)));
        let events = [("SCX_EV_A", 0.0), ("SCX_EV_B", 1.0), ("X\u{1b}", 2.04), ("C", 3.0)];
        report.events = events.map(|(name, rate)| (name.to_owned(), rate)).into();
        (report.doubted, report.doubt) = (1, Some("CPU 1: clock is 0".into()));
        (report.failed, report.failure, report.missed) = (2, Some("gone".into()), 3);
        let text = report.to_string();
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(
            text.starts_with(
                "monitor: 39 readings: imbalance at most 2.0, depth at most 5 (7), stuck for at \
                 most 1.23 s (CPU 1); C 3.0/s, X"
            ),
            "{text}"
        );
        let ends = "B 1.0/s; 2 failed (gone); 1 number not believed (CPU 1: clock is 0); 3 missed";
        assert!(text.ends_with(ends), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<MonitorReport>(&json).unwrap(), report);
    }

    #[test]
    fn the_book_shows_a_report() {
        let report = MonitorReport {
            readings: 39,
            imbalance: Some(2.0),
            depth: Some(("local:1".into(), 5)),
            stuck_ms: Some((1, 100)),
            events: [("SCX_EV_DISPATCH_KEEP_LAST".to_owned(), 31.4)].into(),
            ..MonitorReport::default()
        };
        assert_eq!([report.to_string()], *crate::script::tests::golden::shown("monitor.md", 0));
    }
}
