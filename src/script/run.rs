//! Compiling and running a script, for either of its two purposes.

use std::path::Path;
use std::sync::Arc;

use rhai::{AST, ASTNode, Engine, EvalAltResult, Expr, FnAccess, Position, Scope, Stmt};

use crate::scenario::cell::Cancel;
use crate::scenario::lab::LabError;
use crate::scenario::text::seconds;
use crate::scenario::verdict::{Check, Recorder, ScriptPos};
use crate::scenario::{ScenarioDecl, ScenarioOptions};

use super::engine::{Limits, engine, on_big_stack};
use super::error::ScriptError;
use super::explain::Known;
use super::modules::STDLIB;
use super::session::{Boot, Mode, Outline, Plain, Session};
use super::source::Source;
use super::surface::{self, FunctionDoc, Kind, Surface};

/// How a run of a script ended. Whatever counts for the verdict has been recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It came to its end.
    Done,
    /// `require` or `skip` ended it, or the machine cannot do what was asked for.
    Stopped,
    /// The machine, the engine or the scheduler ended it.
    Lab(LabError),
    /// The script threw something that nothing caught.
    Threw(ScriptError),
    /// It was told to end, or its time was up.
    Cancelled,
}

/// Learns what a script declares. A script without `scenario(..)` comes back as one plain
/// scenario that carries the file's name.
///
/// # Errors
/// What is wrong with the script, with the author's line.
pub fn collect(path: &Path) -> Result<Vec<ScenarioDecl>, ScriptError> {
    collect_within(path, Limits::default())
}

pub(super) fn collect_within(
    path: &Path,
    limits: Limits,
) -> Result<Vec<ScenarioDecl>, ScriptError> {
    let session = Session::new(Mode::Collect, path, limits, Recorder::new(), Cancel::new());
    let inner = session.clone();
    on_big_stack(move || collect_here(&inner)).map_err(ScriptError::new)??;
    let mut state = session.lock();
    let declared = std::mem::take(&mut state.declared);
    if state.plain.is_some() || (declared.is_empty() && !state.has_scenarios()) {
        let name = path.file_stem().map_or_else(|| "script".into(), |s| s.to_string_lossy().into());
        let (file, at) = (path.to_path_buf(), None);
        let (boots, options) = match state.plain.take() {
            Some(Plain::Boots(options)) => (true, *options),
            _ => (false, ScenarioOptions::default()),
        };
        return Ok(vec![ScenarioDecl { name, file, index: 0, at, plain: true, boots, options }]);
    }
    Ok(declared)
}

fn collect_here(session: &Arc<Session>) -> Result<(), ScriptError> {
    let script = Script::compile(session)?;
    let result = script.run();
    let state = session.lock();
    if state.plain.is_some() {
        return Ok(());
    }
    if let Some(End::Threw(error)) = &state.end {
        return Err(error.clone());
    }
    let ended = state.end.is_some();
    drop(state);
    match result {
        Ok(()) => Ok(()),
        // `require` or `skip` at the top level: the scenarios so far are declared.
        Err(_) if ended => Ok(()),
        Err(error) if matches!(error.unwrap_inner(), EvalAltResult::ErrorTerminated(..)) => {
            let limit = seconds(session.limits.collect.as_millis() as u64);
            let text = format!("the script's top level did not come to its end within {limit}");
            let at = session.script().and_then(|s| s.place(error.unwrap_inner().position()));
            let help = "while scenarios are collected nothing should compute for long: move the \
                        work into a scenario; is there a loop that never ends?";
            Err(ScriptError::new(text).at(at).help(Some(help.into())))
        }
        Err(error) => Err(script_error(session, &script.engine, &error, None)),
    }
}

/// Runs one scenario of a script, or a plain script, to its end. `index` and `name` are those
/// that [`collect`] gave.
pub fn run_scenario(
    path: &Path,
    index: usize,
    name: &str,
    boot: Boot,
    recorder: Recorder,
    cancel: Cancel,
) -> End {
    let mode = Mode::Run { index, name: name.to_string(), boot };
    run(&Session::new(mode, path, Limits::default(), recorder, cancel))
}

pub(super) fn run(session: &Arc<Session>) -> End {
    let inner = session.clone();
    let ended = on_big_stack(move || run_here(&inner));
    ended.unwrap_or_else(|text| {
        let error = ScriptError::new(text);
        session.recorder.record(Check::error("internal", error.message.clone()));
        End::Threw(error)
    })
}

fn run_here(session: &Arc<Session>) -> End {
    let script = match Script::compile(session) {
        Ok(script) => script,
        Err(error) => {
            session.recorder.record(error.check());
            return End::Threw(error);
        }
    };
    let end = finish(session, &script.engine, script.run(), None);
    let state = session.lock();
    let Mode::Run { index, name, .. } = &session.mode else { return end };
    let found_nothing = end == End::Done && !state.ran && state.has_scenarios();
    drop(state);
    if found_nothing {
        let error = ScriptError::new(format!(
            "the script no longer declares a scenario number {} called {name:?}: what it declares \
             must not change from run to run",
            index + 1
        ));
        session.recorder.record(error.check());
        return End::Threw(error);
    }
    end
}

/// What a body or a whole script came to; records what is left to record. `source` names the
/// script in which the call stands whose result this is; without it, it is the script itself.
pub(super) fn finish(
    session: &Arc<Session>,
    engine: &Engine,
    result: Result<(), Box<EvalAltResult>>,
    source: Option<&str>,
) -> End {
    let end = session.lock().end.clone();
    match (end, result) {
        (Some(end), _) => {
            if matches!(end, End::Done | End::Stopped) {
                session.judge_pending();
            }
            end
        }
        (None, Ok(())) => {
            session.judge_pending();
            End::Done
        }
        (None, Err(error)) => {
            let innermost = error.unwrap_inner();
            if matches!(innermost, EvalAltResult::ErrorTerminated(..)) {
                let at = trail(session, &error, source).pop().and_then(|step| step.place(session));
                let hint = session.lock().outline.suspects(at.as_ref());
                session.record_cancelled(at, hint);
                return End::Cancelled;
            }
            let error = script_error(session, engine, &error, source);
            session.recorder.record(error.check());
            End::Threw(error)
        }
    }
}

/// A compiled script with its engine.
struct Script {
    engine: Engine,
    ast: AST,
}

impl Script {
    fn compile(session: &Arc<Session>) -> Result<Script, ScriptError> {
        let source = Source::read(&session.file).map_err(ScriptError::new)?;
        let name = session.main();
        session.sources.add(&name, source.clone());
        let engine = engine(session);
        let mut ast = match engine.compile(&*source.text) {
            Ok(ast) => ast,
            Err(error) => {
                let told = known(session, &engine, Some(&source), |known| known.compile(&error));
                let at = source.place(error.position());
                return Err(ScriptError::new(told.message).at(at).help(told.help));
            }
        };
        ast.set_source(name);
        session.lock().outline = outline(&ast);
        Ok(Script { engine, ast })
    }

    fn run(&self) -> Result<(), Box<EvalAltResult>> {
        self.engine.run_ast_with_scope(&mut Scope::new(), &self.ast)
    }
}

/// What is worth knowing about a script before it runs.
pub(super) fn outline(ast: &AST) -> Outline {
    let mut outline = Outline::default();
    ast.walk(&mut |path: &[ASTNode<'_>]| {
        match path.last() {
            Some(
                ASTNode::Expr(Expr::FnCall(call, pos) | Expr::MethodCall(call, pos))
                | ASTNode::Stmt(Stmt::FnCall(call, pos)),
            ) => {
                if call.name == "scenario" && !call.is_qualified() {
                    outline.scenarios.extend(pos.line());
                }
                outline.calls.push((call.name.to_string(), *pos));
            }
            Some(ASTNode::Stmt(Stmt::While(_, pos) | Stmt::Do(_, _, pos))) => {
                outline.loops.extend(pos.line());
            }
            _ => {}
        }
        true
    });
    outline.calls.sort_by_key(|(_, pos)| (pos.line(), pos.position()));
    for (_, _, name, params, def) in ast.shared_lib().iter_script_fn_info() {
        if name.starts_with("anon$") {
            continue;
        }
        outline.functions.push((name.to_string(), params));
        let lines = (def.body.start_position().line(), def.body.end_position().line());
        if let (Some(start), Some(end)) = lines
            && outline.call_of(name, start).and_then(|pos| pos.line()).is_some_and(|l| l <= end)
        {
            outline.recursive.push((name.to_string(), start));
        }
    }
    outline.scenarios.sort_unstable();
    outline.scenarios.dedup();
    outline.loops.sort_unstable();
    outline.loops.dedup();
    outline
}

/// One step of the way from the script's top level to where an error happened.
#[derive(Debug)]
struct Step {
    source: String,
    pos: Position,
    /// The function that was called here, if any.
    into: Option<String>,
}

impl Step {
    fn place(&self, session: &Session) -> Option<ScriptPos> {
        session.sources.get(&self.source)?.place(self.pos)
    }
}

/// The way to an error, outermost call first; the last step is the error itself.
fn trail(session: &Session, error: &EvalAltResult, source: Option<&str>) -> Vec<Step> {
    let mut here = source.map_or_else(|| session.main(), str::to_string);
    let mut error = error;
    let mut out = Vec::new();
    loop {
        let pos = error.position();
        match error {
            EvalAltResult::ErrorInFunctionCall(name, source, inner, _) => {
                out.push(Step { source: here.clone(), pos, into: Some(name.clone()) });
                if !source.is_empty() {
                    here.clone_from(source);
                }
                error = inner;
            }
            EvalAltResult::ErrorInModule(name, inner, _) => {
                out.push(Step { source: here, pos, into: None });
                here = name.clone();
                error = inner;
            }
            _ => {
                out.push(Step { source: here, pos, into: None });
                return out;
            }
        }
    }
}

/// Tells an error of a running script.
pub(super) fn script_error(
    session: &Arc<Session>,
    engine: &Engine,
    error: &EvalAltResult,
    source: Option<&str>,
) -> ScriptError {
    let steps = trail(session, error, source);
    let is_authors = |step: &Step| {
        session.sources.get(&step.source).is_some_and(|s| !s.embedded) && !step.pos.is_none()
    };
    let own = steps.iter().rposition(is_authors);
    let mut at = own.and_then(|i| steps[i].place(session));
    if let EvalAltResult::ErrorDataRace(what, _) = error.unwrap_inner() {
        at = race(session, what, at.as_ref()).or(at);
    }
    let main = own.and_then(|i| session.sources.get(&steps[i].source));
    let main = main.or_else(|| session.script());
    let innermost = error.unwrap_inner();
    let told = known(session, engine, main.as_ref(), |known| known.error(innermost));
    let mut out = ScriptError::new(told.message).at(at.clone()).help(told.help);
    if let (Some(help), Some(suspects)) = (&mut out.help, suspects(session, innermost, &at)) {
        help.push_str(&suspects);
    }
    let shown = |step: &Step| match step.place(session) {
        Some(at) => at.to_string(),
        None => step.source.clone(),
    };
    // What lies below the author's line, then who called the author's line.
    let own = own.unwrap_or(0);
    if let Some(deepest) = steps.get(own + 1..).and_then(|below| below.last())
        && !deepest.pos.is_none()
    {
        out.trail.push(format!("it happened in {}", shown(deepest)));
    }
    for step in steps[..own].iter().rev() {
        match &step.into {
            Some(name) if !name.starts_with("anon$") => {
                out.trail.push(format!("{name}(..) was called from {}", shown(step)));
            }
            _ => {}
        }
    }
    out
}

/// Rhai gives a data race no position, but the function's name: `argument #1 of function 'f'`.
fn race(session: &Session, what: &str, at: Option<&ScriptPos>) -> Option<ScriptPos> {
    let name = what.rsplit('\'').nth(1)?;
    let pos = session.lock().outline.call_of(name, at.map_or(1, |at| at.line))?;
    session.script()?.place(pos)
}

/// Who may be to blame that a script used up its steps or its call levels: Rhai only tells which
/// call never came back.
fn suspects(session: &Session, error: &EvalAltResult, at: &Option<ScriptPos>) -> Option<String> {
    let state = session.lock();
    match error {
        EvalAltResult::ErrorTooManyOperations(_) => {
            state.outline.suspects(at.as_ref()).map(|loops| format!("; {loops}"))
        }
        EvalAltResult::ErrorStackOverflow(_) => {
            let (name, line) = state.outline.recursive.first()?;
            Some(format!(" {name}(..) in line {line} does"))
        }
        _ => None,
    }
}

/// Calls `tell` with what is known about names.
pub(super) fn known<T>(
    session: &Session,
    engine: &Engine,
    source: Option<&Source>,
    tell: impl FnOnce(&Known<'_>) -> T,
) -> T {
    let surface = Surface::of(engine, true);
    let functions = session.functions();
    let words = source.into_iter().flat_map(Source::words);
    let mut words: Vec<String> = words.map(str::to_string).collect();
    words.extend(session.lock().variables.iter().cloned());
    let operations = session.limits.operations;
    let members = session.lock().statistics.names();
    let (functions, words, members) = (&functions[..], &words[..], &members[..]);
    tell(&Known { surface: &surface, functions, words, members, operations })
}

/// Everything that scripts can name, with cryoscope's own modules, and definition files for
/// editors.
#[must_use]
pub fn reference() -> Reference {
    let (file, limits) = (Path::new("reference.rhai"), Limits::default());
    let session = Session::new(Mode::Collect, file, limits, Recorder::new(), Cancel::new());
    Reference { engine: engine(&session) }
}

/// A module of cryoscope's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleDoc {
    /// As it is imported.
    pub name: String,
    /// What it is for.
    pub doc: String,
    /// Its functions.
    pub functions: Vec<FunctionDoc>,
}

/// The surface of an engine that runs nothing.
pub struct Reference {
    engine: Engine,
}

impl Reference {
    /// What is registered; with `standard`, Rhai's own functions too.
    #[must_use]
    pub fn surface(&self, standard: bool) -> Surface {
        Surface::of(&self.engine, standard)
    }

    /// cryoscope's own modules.
    #[must_use]
    pub fn modules(&self) -> Vec<ModuleDoc> {
        STDLIB.iter().map(|(name, text)| self.module(name, text)).collect()
    }

    fn module(&self, name: &str, text: &str) -> ModuleDoc {
        let head = text.lines().take_while(|l| l.starts_with("//!"));
        let doc: Vec<&str> = head.map(|l| l.trim_start_matches("//!").trim()).collect();
        let ast = self.engine.compile(text).unwrap_or_default();
        let mut functions: Vec<FunctionDoc> = ast
            .iter_functions()
            .filter(|f| f.access == FnAccess::Public && !f.name.starts_with("anon$"))
            .map(|f| FunctionDoc {
                owner: None,
                kind: Kind::Function,
                name: f.name.to_string(),
                params: f.params.iter().map(|p| ((*p).to_string(), String::new())).collect(),
                returns: String::new(),
                doc: surface::uncommented(&f.comments),
            })
            .collect();
        functions.sort();
        ModuleDoc { name: name.to_string(), doc: doc.join("\n"), functions }
    }

    /// Definition files for editors: name and text.
    #[must_use]
    pub fn definitions(&self) -> Vec<(String, String)> {
        self.engine.definitions().with_headers(true).iter_files().collect()
    }
}
