//! Scenarios: what a script declares, how it is run, what came of it.
//!
//! A [`ScenarioDecl`] is plain data, collected from a script in the parent. Each one becomes a
//! cell: a process of its own that runs the script again with a live machine behind
//! [`lab::LabOps`], records into a [`verdict::Recorder`], and speaks [`event::RunEvent`]s.

pub mod cell;
pub mod event;
pub mod lab;
pub mod live;
pub mod monitor;
pub mod plot;
pub mod process;
pub mod report;
pub mod runner;
pub mod samples;
pub mod stats;
pub mod text;
pub mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use monitor::MonitorOptions;
use samples::SampleOptions;
use verdict::{Check, Outcome, Rules, ScriptPos};

/// A scenario as its script declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScenarioDecl {
    /// Its name, unique in its file (a script that declares a name twice is refused).
    pub name: String,
    /// The script, as the user named it.
    pub file: PathBuf,
    /// Its place among the script's scenarios, from 0.
    pub index: usize,
    /// Where `scenario(..)` stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<ScriptPos>,
    /// A script without `scenario(..)` is run as a whole, under its file's name.
    #[serde(default)]
    pub plain: bool,
    /// Whether it boots a machine, as far as could be seen when it was collected.
    #[serde(default)]
    pub boots: bool,
    /// Its options.
    pub options: ScenarioOptions,
}

/// What a combination of a matrix is called: `name[topology=1n1l2c1t,kernel=debian:7.2]`; the name
/// itself without axes.
#[must_use]
pub fn with_axes(name: &str, axes: &[(String, String)]) -> String {
    if axes.is_empty() {
        return name.to_owned();
    }
    let axes = axes.iter().map(|(axis, value)| format!("{axis}={value}"));
    format!("{name}[{}]", axes.collect::<Vec<_>>().join(","))
}

impl ScenarioDecl {
    /// The directory that relative paths in the declaration start from: the script's own.
    #[must_use]
    pub fn base_dir(&self) -> &Path {
        match self.file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        }
    }
}

/// What a scenario asks for. Everything has a default, so that `scenario("x", |t| ..)` works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScenarioOptions {
    /// The scheduler under test.
    pub scheduler: SchedulerOptions,
    /// Nodes, LLCs, cores per LLC, threads per core, as in `1n2l2c1t`.
    pub topology: String,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// `auto`, `host`, `debian:SERIES` or a path.
    pub kernel: String,
    /// How the kernel is started.
    pub boot: BootPath,
    /// What percentages of time are taken of.
    pub duration: Duration,
    /// Samples to take while it runs.
    pub samples: Option<SampleOptions>,
    /// What to look at all the time.
    pub monitor: Option<MonitorOptions>,
    /// For choosing scenarios.
    pub tags: Vec<String>,
    /// The longest the whole cell may take, boot included; see [`ScenarioOptions::deadline`].
    pub timeout: Option<Duration>,
    /// What end of the scheduler, unasked, is right.
    pub expect_exit: ExpectExit,
    /// The label, or a part of the message, of the check that is meant to fail.
    pub expect_fail: Option<String>,
    /// Whether Inconclusive counts as success.
    pub allow_inconclusive: bool,
    /// Capabilities that the engine must have; without them the scenario is skipped.
    pub requires: Vec<String>,
    /// Whether RAM is made of the host's huge pages.
    pub huge_pages: bool,
    /// CPUs of the host to bind the machine's to, as a list: `2-5`.
    pub pin: Option<String>,
    /// Added to the kernel's command line.
    pub kargs: Vec<String>,
    /// Host files to put into the guest: host path (relative to the script), guest path.
    pub include_files: Vec<(PathBuf, String)>,
    /// Where in its declaration's matrix it is: axes, and what their values are called.
    pub axes: Vec<(String, String)>,
}

impl Default for ScenarioOptions {
    fn default() -> Self {
        ScenarioOptions {
            scheduler: SchedulerOptions::default(),
            topology: "1n1l2c1t".into(),
            memory: 512 << 20,
            kernel: "auto".into(),
            boot: BootPath::Auto,
            duration: Duration::from_secs(10),
            samples: None,
            monitor: None,
            tags: Vec::new(),
            timeout: None,
            expect_exit: ExpectExit::None,
            expect_fail: None,
            allow_inconclusive: false,
            requires: Vec::new(),
            huge_pages: false,
            pin: None,
            kargs: Vec::new(),
            include_files: Vec::new(),
            axes: Vec::new(),
        }
    }
}

impl ScenarioOptions {
    /// What a cell may take beside its scenario's own duration when no `timeout` is given: an
    /// emulated boot on a busy machine, a scheduler to compile and verify, logs to collect.
    const ALLOWANCE: Duration = Duration::from_secs(120);

    /// The longest the whole cell may take, from its process's start to its end, without the time
    /// that fetching a kernel takes: `timeout`, or two minutes and four times `duration`.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.timeout
            .unwrap_or_else(|| self.duration.saturating_mul(4).saturating_add(Self::ALLOWANCE))
    }

    /// How the scenario wants to be judged.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules { expect_fail: self.expect_fail.clone(), allow_inconclusive: self.allow_inconclusive }
    }
}

/// The scheduler as the author wrote it; [`crate::scheduler`] makes files of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerOptions {
    /// A `.bpf.c`, a `.bpf.o`, an executable (paths relative to the script), or `none`.
    pub src: String,
    /// First values of `.rodata` variables, by name.
    pub rodata: BTreeMap<String, serde_json::Value>,
    /// Arguments for an executable.
    pub args: Vec<String>,
    /// Include directories for a `.bpf.c`, relative to the script.
    pub include: Vec<String>,
    /// `NAME` or `NAME=VALUE` for a `.bpf.c`.
    pub defines: Vec<String>,
    /// More files for the guest: host path (relative to the script), guest path.
    pub staged: Vec<(PathBuf, String)>,
    /// Environment of an executable.
    pub env: Vec<(String, String)>,
    /// Where an executable serves its statistics in the guest, if not at
    /// [`stats::SOCKET`].
    pub stats: Option<String>,
}

impl SchedulerOptions {
    /// The spelling of "the kernel's own scheduler".
    pub const NONE: &'static str = "none";

    /// Whether the kernel's own scheduler is asked for.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.src == Self::NONE
    }
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions {
            src: Self::NONE.into(),
            rodata: BTreeMap::new(),
            args: Vec::new(),
            include: Vec::new(),
            defines: Vec::new(),
            staged: Vec::new(),
            env: Vec::new(),
            stats: None,
        }
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootPath {
    /// The unpacked ELF: the fastest.
    #[default]
    Auto,
    /// The unpacked ELF over PVH, without KASLR.
    Elf,
    /// The compressed image, as a boot loader does, with KASLR.
    BzImage,
}

impl BootPath {
    /// Every spelling.
    pub const NAMES: [&'static str; 3] = ["auto", "elf", "bzimage"];

    /// Reads `auto`, `elf` or `bzimage`.
    #[must_use]
    pub fn parse(text: &str) -> Option<BootPath> {
        match text {
            "auto" => Some(BootPath::Auto),
            "elf" => Some(BootPath::Elf),
            "bzimage" => Some(BootPath::BzImage),
            _ => None,
        }
    }
}

/// What end of a scheduler, unasked, a scenario wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpectExit {
    /// It must stay.
    #[default]
    None,
    /// The kernel ends it for an error: `runtime error`, `scx_bpf_error`, a stall.
    Error,
    /// The kernel's watchdog ends it: `runnable task stall` and its kin.
    Stall,
    /// It leaves, for whatever reason.
    Any,
    /// It leaves with a reason that contains this; `*` in it stands for anything.
    Message(String),
}

impl ExpectExit {
    /// Reads an author's spelling: `none`, `error`, `stall`, `any`, or a pattern.
    #[must_use]
    pub fn parse(text: &str) -> ExpectExit {
        match text {
            "none" => ExpectExit::None,
            "error" => ExpectExit::Error,
            "stall" => ExpectExit::Stall,
            "any" => ExpectExit::Any,
            pattern => ExpectExit::Message(pattern.into()),
        }
    }

    /// What is expected, completing "expected the scheduler ..".
    fn wanted(&self) -> String {
        match self {
            ExpectExit::None => "to stay".into(),
            ExpectExit::Error => "to be ended for an error".into(),
            ExpectExit::Stall => "to be ended by the watchdog for a stall".into(),
            ExpectExit::Any => "to leave".into(),
            ExpectExit::Message(pattern) => format!("to leave with a reason like {pattern:?}"),
        }
    }

    /// The sentence about a scheduler that was meant to stay.
    pub(super) fn left_unasked(exit: &SchedulerExit) -> String {
        let at = exit.elapsed_ms as f64 / 1000.0;
        let mut text = format!("the scheduler left unasked after {at:.2} s: {}", exit.reason);
        if !exit.instant.is_empty() {
            text.push('\n');
            text.push_str(&exit.instant);
        }
        text
    }

    /// Whether a scheduler that left for `reason` did what was expected. The words are those of
    /// the kernel's `scx_exit_reason()` and of its watchdog.
    #[must_use]
    pub fn is_met_by(&self, reason: &str) -> bool {
        let stall = ["runnable task stall", "watchdog failed to check in", "lockup"];
        let error = ["runtime error", "scx_bpf_error"];
        let has = |words: &[&str]| words.iter().any(|w| reason.contains(w));
        match self {
            ExpectExit::None => false,
            ExpectExit::Stall => has(&stall),
            ExpectExit::Error => has(&error) || has(&stall),
            ExpectExit::Any => true,
            ExpectExit::Message(pattern) => matches_pattern(pattern, reason),
        }
    }

    /// Judges how the scheduler ended, or that it did not (`None`). No check when it stayed and
    /// was meant to: that is nothing to boast of.
    #[must_use]
    pub fn judge(&self, exit: Option<&SchedulerExit>) -> Option<Check> {
        let check = |outcome, found: String| {
            Some(Check::new(outcome, "expect_exit").compared(self.wanted(), found))
        };
        match (self, exit) {
            (ExpectExit::None, None) => None,
            (_, None) => check(Outcome::Fail, "it stayed".into()),
            (ExpectExit::None, Some(exit)) => {
                let check = Check::fail("the scheduler stays", Self::left_unasked(exit));
                Some(check.compared(self.wanted(), format!("it left: {}", exit.reason)))
            }
            (_, Some(exit)) if self.is_met_by(&exit.reason) => {
                check(Outcome::Pass, format!("it left: {}", exit.reason))
            }
            (_, Some(exit)) => check(Outcome::Fail, format!("it left: {}", exit.reason)),
        }
    }
}

/// A scheduler that left without being asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerExit {
    /// The kernel's reason, or how the scheduler's program ended.
    pub reason: String,
    /// When, on the workload clock.
    pub elapsed_ms: u64,
    /// The end of what its loader said.
    pub log: String,
    /// Lines of the kernel's log about it.
    pub dmesg: String,
    /// The kernel's word for what it was, in lower case (`error_stall`), where it was captured.
    #[serde(default)]
    pub kind: Option<String>,
    /// What the scheduler or the kernel said in particular; the same.
    #[serde(default)]
    pub message: Option<String>,
    /// What is worth saying about that instant, a line each; empty when it was not captured.
    #[serde(default)]
    pub instant: String,
}

/// Whether `text` contains the parts of `pattern` between its `*`s, in order.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: &str) -> SchedulerExit {
        SchedulerExit {
            reason: reason.into(),
            elapsed_ms: 1234,
            log: String::new(),
            dmesg: String::new(),
            kind: None,
            message: None,
            instant: String::new(),
        }
    }

    #[test]
    fn exits_are_judged_by_what_was_expected() {
        let cases = [
            ("none", None, None),
            ("none", Some("unregistered from user space"), Some(Outcome::Fail)),
            ("error", None, Some(Outcome::Fail)),
            ("error", Some("scx_bpf_error (no such cpu)"), Some(Outcome::Pass)),
            ("error", Some("runtime error"), Some(Outcome::Pass)),
            ("error", Some("runnable task stall"), Some(Outcome::Pass)),
            ("error", Some("unregistered from BPF"), Some(Outcome::Fail)),
            ("stall", Some("runnable task stall (spin[12])"), Some(Outcome::Pass)),
            ("stall", Some("scx_bpf_error"), Some(Outcome::Fail)),
            ("any", Some("program ended with code 3"), Some(Outcome::Pass)),
            ("any", None, Some(Outcome::Fail)),
            ("bad * 42", Some("scx_bpf_error: bad cpu 42"), Some(Outcome::Pass)),
            ("42 * bad", Some("scx_bpf_error: bad cpu 42"), Some(Outcome::Fail)),
        ];
        for (expect, reason, want) in cases {
            let reason = reason.map(exit);
            let check = ExpectExit::parse(expect).judge(reason.as_ref());
            assert_eq!(check.map(|c| c.outcome), want, "{expect:?} {reason:?}");
        }
    }

    #[test]
    fn a_scheduler_that_leaves_says_when_and_why() {
        let check = ExpectExit::None.judge(Some(&exit("runnable task stall"))).unwrap();
        assert_eq!(
            check.message.as_deref(),
            Some("the scheduler left unasked after 1.23 s: runnable task stall")
        );
        assert_eq!(check.expected.as_deref(), Some("to stay"));
        let check = ExpectExit::Stall.judge(None).unwrap();
        assert_eq!(check.expected.as_deref(), Some("to be ended by the watchdog for a stall"));
        assert_eq!(check.found.as_deref(), Some("it stayed"));
    }

    #[test]
    fn deadlines_leave_room_for_the_boot() {
        let mut options = ScenarioOptions::default();
        assert_eq!(options.deadline(), Duration::from_secs(160));
        options.timeout = Some(Duration::from_secs(5));
        assert_eq!(options.deadline(), Duration::from_secs(5));
        options.timeout = None;
        options.duration = Duration::MAX;
        assert_eq!(options.deadline(), Duration::MAX, "saturates");
    }

    #[test]
    fn declarations_survive_json_and_default_what_is_missing() {
        let options: ScenarioOptions = serde_json::from_str(r#"{"kernel":"host"}"#).unwrap();
        let wanted = ScenarioOptions { kernel: "host".into(), ..ScenarioOptions::default() };
        assert_eq!(options, wanted);
        let decl = ScenarioDecl {
            name: "x".into(),
            file: "a/b.rhai".into(),
            index: 0,
            at: None,
            plain: false,
            boots: true,
            options,
        };
        let json = serde_json::to_string(&decl).unwrap();
        assert_eq!(serde_json::from_str::<ScenarioDecl>(&json).unwrap(), decl);
        assert_eq!(decl.base_dir(), Path::new("a"));
        assert_eq!(ScenarioDecl { file: "b.rhai".into(), ..decl }.base_dir(), Path::new("."));
    }

    #[test]
    fn boot_paths_are_spelled_as_they_are_listed() {
        for name in BootPath::NAMES {
            let path = BootPath::parse(name).unwrap();
            assert_eq!(serde_json::to_string(&path).unwrap(), format!("{name:?}"));
        }
        assert_eq!(BootPath::parse("pvh"), None);
    }
}
