//! What the engine's functions share while one script runs: what is to happen, what has happened,
//! and which line of the author is responsible.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhai::{EvalAltResult, NativeCallContext, Position};

use crate::scenario::cell::{Cancel, Why};
use crate::scenario::lab::{LabError, LabOps, LabResult};
use crate::scenario::plot::Plot;
use crate::scenario::text::seconds;
use crate::scenario::verdict::{Check, Recorder, ScriptPos};
use crate::scenario::{ScenarioDecl, ScenarioOptions};
use crate::series::SeriesField;

use super::End;
use super::engine::Limits;
use super::fault::{Fault, Native, terminate};
use super::source::{Source, Sources};
use super::statistics::Told;

/// Boots the machine that a declaration asks for.
pub type Boot = Arc<dyn Fn(&ScenarioDecl) -> LabResult<Arc<dyn LabOps>> + Send + Sync>;

/// What a script is run for.
pub(crate) enum Mode {
    /// To learn what it declares; nothing boots.
    Collect,
    /// To run one of its scenarios, or all of it when it is plain.
    Run {
        /// The scenario's place; 0 for a plain script.
        index: usize,
        /// Its name, to notice a script that changed meanwhile.
        name: String,
        /// How its machine is booted.
        boot: Boot,
    },
    /// To be evaluated input by input, with a machine that runs already.
    Interactive,
}

/// One run of one script.
pub(crate) struct Session {
    pub(crate) mode: Mode,
    /// The script, as the user named it.
    pub(crate) file: PathBuf,
    /// All texts read so far.
    pub(crate) sources: Sources,
    pub(crate) recorder: Recorder,
    pub(crate) cancel: Cancel,
    pub(crate) limits: Limits,
    state: Mutex<State>,
}

/// A script that declares no scenarios.
pub(crate) enum Plain {
    /// As far as it was read.
    WithoutMachine,
    /// With these options.
    Boots(Box<ScenarioOptions>),
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct State {
    /// The scenarios met so far.
    pub(crate) declared: Vec<ScenarioDecl>,
    /// Whether the script was found to be a plain one, and which machine it boots.
    pub(crate) plain: Option<Plain>,
    /// What the script's text holds.
    pub(crate) outline: Outline,
    /// Variables that earlier inputs have left.
    pub(crate) variables: Vec<String>,
    /// What schedulers told of themselves.
    pub(crate) statistics: Told,
    /// Functions of the modules imported so far: names and numbers of parameters.
    pub(crate) module_functions: BTreeSet<(String, usize)>,
    /// Whether the one scenario that was asked for has run.
    pub(crate) ran: bool,
    /// Machines that a plain script has booted.
    pub(crate) booted: usize,
    /// How the run ends, once that is known; then the script is being terminated.
    pub(crate) end: Option<End>,
    /// `expect(..)`s that no matcher has used yet.
    pending: BTreeMap<u64, (String, Option<ScriptPos>)>,
    next: u64,
}

impl State {
    /// Whether the script declares scenarios, so far or further on.
    pub(crate) fn has_scenarios(&self) -> bool {
        !self.outline.scenarios.is_empty() || !self.declared.is_empty()
    }
}

/// What is known about a script's text before it runs. Lines count from 1.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    /// Lines with a call of `scenario`, ascending.
    pub(crate) scenarios: Vec<usize>,
    /// Lines with a loop that has no end of its own (`loop`, `while`, `do`), ascending.
    pub(crate) loops: Vec<usize>,
    /// Functions: names and numbers of parameters.
    pub(crate) functions: Vec<(String, usize)>,
    /// What is called where, in order.
    pub(crate) calls: Vec<(String, Position)>,
    /// Functions that call themselves, and where they begin.
    pub(crate) recursive: Vec<(String, usize)>,
}

impl Outline {
    /// The loops that a script may be caught in that was called in `line`; one that is caught in
    /// a scenario's body only tells the line of the `scenario`.
    fn loops_from(&self, line: usize) -> Vec<usize> {
        let body = self.scenarios.iter().position(|s| *s == line);
        let end = body.and_then(|i| self.scenarios.get(i + 1)).copied().unwrap_or(usize::MAX);
        let within = self.loops.iter().filter(|l| (line..end).contains(*l) && body.is_some());
        let within: Vec<usize> = within.copied().collect();
        if within.is_empty() { self.loops.clone() } else { within }
    }

    /// The first call of `name` at or behind `line`.
    pub(crate) fn call_of(&self, name: &str, line: usize) -> Option<Position> {
        let mut calls = self.calls.iter().filter(|(call, _)| call == name).map(|(_, pos)| *pos);
        calls.find(|pos| pos.line() >= Some(line))
    }

    /// A sentence about the loops that a script may be caught in.
    pub(crate) fn suspects(&self, at: Option<&ScriptPos>) -> Option<String> {
        let lines = self.loops_from(at?.line);
        let shown: Vec<String> = lines.iter().take(5).map(usize::to_string).collect();
        match shown.len() {
            0 => None,
            1 => Some(format!("a loop begins in line {}", shown[0])),
            _ => Some(format!("loops begin in lines {}", shown.join(", "))),
        }
    }
}

/// The author's call that led into a module of cryoscope's own; it rides in the engine's tag.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) source: String,
    pub(crate) pos: Position,
}

impl Session {
    pub(crate) fn new(
        mode: Mode,
        file: &Path,
        limits: Limits,
        recorder: Recorder,
        cancel: Cancel,
    ) -> Arc<Self> {
        let (file, sources, state) = (file.to_path_buf(), Sources::default(), Mutex::default());
        Arc::new(Session { mode, file, sources, recorder, cancel, limits, state })
    }

    /// The name of the script itself among the sources.
    pub(crate) fn main(&self) -> String {
        self.file.display().to_string()
    }

    pub(crate) fn collecting(&self) -> bool {
        matches!(self.mode, Mode::Collect)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The author's call that is responsible for this native call, and the script it stands in.
    fn caller(&self, ctx: &NativeCallContext<'_>) -> (Option<Source>, Position) {
        let tag = ctx.tag().and_then(|tag| tag.read_lock::<Caller>());
        match tag {
            Some(caller) => (self.sources.get(&caller.source), caller.pos),
            None => {
                let main = self.main();
                (self.sources.get(ctx.call_source().unwrap_or(&main)), ctx.call_position())
            }
        }
    }

    /// The author's line that is responsible for this native call.
    pub(crate) fn place(&self, ctx: &NativeCallContext<'_>) -> Option<ScriptPos> {
        let (source, pos) = self.caller(ctx);
        source?.place(pos)
    }

    /// The author's line where `key` is given in this native call, or the call itself.
    pub(crate) fn place_of_key(&self, ctx: &NativeCallContext<'_>, key: &str) -> Option<ScriptPos> {
        let (source, pos) = self.caller(ctx);
        let source = source?;
        source.place(source.key(pos, key).unwrap_or(pos))
    }

    /// The words of this native call's first argument, as the script has them.
    pub(crate) fn words(&self, ctx: &NativeCallContext<'_>) -> Option<String> {
        let main = self.main();
        let source = self.sources.get(ctx.call_source().unwrap_or(&main))?;
        source.first_argument(ctx.call_position())
    }

    /// Records a check made by this native call.
    pub(crate) fn record(&self, ctx: &NativeCallContext<'_>, check: Check) {
        let at = check.at.clone().or_else(|| self.place(ctx));
        self.recorder.record(check.at(at));
    }

    /// Refuses what ends a scenario where there is none to end.
    pub(crate) fn in_scenario(&self, what: &str) -> Result<(), Fault> {
        let state = self.lock();
        if state.has_scenarios() && !state.ran {
            let why = format!(
                "{what} stands outside of any scenario, and would end none: move it into one"
            );
            return Err(Fault::misplaced(why));
        }
        Ok(())
    }

    /// Ends the run: nothing in the script can catch what this returns.
    pub(crate) fn end(&self, end: End) -> Box<EvalAltResult> {
        self.lock().end.get_or_insert(end);
        terminate()
    }

    /// What the laboratory answered, as a script meets it: what it may catch is thrown; with
    /// everything else the scenario is over, and recorded.
    pub(crate) fn lab<T>(&self, ctx: &NativeCallContext<'_>, answer: LabResult<T>) -> Native<T> {
        answer.map_err(|error| match Fault::try_from(&error) {
            Ok(fault) => fault.thrown(),
            Err(()) => match error {
                LabError::Snapshot(error) => crate::script::data::thrown(*error),
                error => self.over(error, self.place(ctx)),
            },
        })
    }

    /// The scenario is over because of `error`.
    pub(crate) fn over(&self, error: LabError, at: Option<ScriptPos>) -> Box<EvalAltResult> {
        match &error {
            LabError::Unsupported(reason) => {
                self.recorder.skip(reason, at);
                self.end(End::Stopped)
            }
            LabError::Interrupted => self.cancelled(at),
            _ => {
                if let Some(check) = error.check(at) {
                    self.recorder.record(check);
                }
                self.end(End::Lab(error))
            }
        }
    }

    /// The scenario is over because somebody, or the clock, wants it to be.
    pub(crate) fn cancelled(&self, at: Option<ScriptPos>) -> Box<EvalAltResult> {
        if self.lock().end.is_none() {
            self.record_cancelled(at, None);
        }
        self.end(End::Cancelled)
    }

    /// Records why the run was told to end.
    pub(crate) fn record_cancelled(&self, at: Option<ScriptPos>, hint: Option<String>) {
        if matches!(self.mode, Mode::Interactive) {
            // Whoever stops an input knows it, and the next one begins anew.
            return;
        }
        let check = match self.cancel.why() {
            Some(Why::Deadline(limit)) => {
                let limit = seconds(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
                let mut text = format!("the scenario did not end within its {limit}");
                if let Some(hint) = hint {
                    text.push_str(&format!("\nhelp: is there a loop that never ends? {hint}"));
                }
                Check::error("deadline", text)
            }
            _ => Check::error("interrupted", "the run was interrupted here"),
        };
        self.recorder.record(check.at(at));
    }

    /// The script itself, once it was read.
    pub(crate) fn script(&self) -> Option<Source> {
        self.sources.get(&self.main())
    }

    /// Functions that the script and its modules define: names and numbers of parameters.
    pub(crate) fn functions(&self) -> Vec<(String, usize)> {
        let state = self.lock();
        state.outline.functions.iter().chain(&state.module_functions).cloned().collect()
    }

    /// Prints for the script, unless it is only collected: then everything comes again.
    pub(crate) fn print(&self, text: &str) {
        if !self.collecting() {
            self.recorder.print(text);
        }
    }

    /// Draws fields for the script.
    pub(crate) fn plot(&self, fields: &[SeriesField]) {
        if !self.collecting() {
            self.recorder.plot(Plot::of(fields));
        }
    }

    /// Remembers an `expect(..)` until a matcher uses it.
    pub(crate) fn expect(&self, label: &str, at: Option<ScriptPos>) -> u64 {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        // A script that makes expectations without ever using them must not fill the memory.
        if state.pending.len() < MAX_PENDING {
            state.pending.insert(id, (label.to_string(), at));
        }
        id
    }

    /// A matcher has used the expectation.
    pub(crate) fn matched(&self, id: u64) {
        self.lock().pending.remove(&id);
    }

    /// Records every `expect(..)` that no matcher has used.
    pub(crate) fn judge_pending(&self) {
        let pending = std::mem::take(&mut self.lock().pending);
        for (label, at) in pending.into_values() {
            let text = "expect(..) without a matcher judges nothing; say what is expected, as in \
                        expect(x).eq(1)";
            self.recorder.record(Check::fail(label, text).at(at));
        }
    }
}

/// More unused `expect(..)`s than this are not remembered one by one.
const MAX_PENDING: usize = 1000;
