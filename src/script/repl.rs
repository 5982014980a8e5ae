//! Scripts input by input: what the REPL evaluates, and what it knows about names.
//!
//! One engine and one scope live as long as the session. What Rhai forgets at the end of an
//! evaluation is kept here: the functions of an input become a module that later inputs see, so
//! that errors in them still point at the input they were written in, and what an input imports
//! becomes a module that the engine knows. A machine stands behind `vm`; whenever an input froze
//! it, `snap` becomes the newest snapshot.

mod complete;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rhai::{
    AST, Dynamic, Engine, EvalAltResult, Expr, FnAccess, ParseErrorType, Position, Scope, Stmt,
    Token,
};

use crate::scenario::cell::Cancel;
use crate::scenario::lab::LabOps;
use crate::scenario::verdict::Recorder;
use crate::snapshot::{Field, Snapshot};

use super::End;
use super::data;
use super::engine::{Limits, engine};
use super::error::ScriptError;
use super::run::{known, outline, script_error};
use super::session::{Mode, Session};
use super::source::Source;
use super::surface::Surface;
use super::values::{described, pretty, render};
use super::vm::Vm;

pub use complete::Candidate;
pub(crate) use text::continues;
pub use text::{Piece, is_whole, pieces};

pub(crate) use super::engine::on_big_stack;

/// The variable that holds the last value.
const LAST: &str = "_";
/// The variable that holds the newest snapshot.
const SNAP: &str = "snap";

/// The name of a script that comes from there.
const STDIN: &str = "stdin";

/// What became of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has a value, shown over as many lines as it takes.
    Value(String),
    /// There is nothing to show.
    Nothing,
    /// It ended itself, or the machine or the scheduler ended it; the recorder was told.
    Ended,
    /// Somebody stopped it.
    Interrupted,
    /// Something is wrong with it.
    Error(ScriptError),
}

/// A variable of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The name of its type.
    pub kind: String,
    /// Its value on one line.
    pub value: String,
}

/// A session: evaluates inputs, and says what could come next in one.
pub struct Interactive {
    session: Arc<Session>,
    engine: Engine,
    scope: Scope<'static>,
    /// None for a session that looks at a stored snapshot.
    lab: Option<Arc<dyn LabOps>>,
    /// What is registered by us, and all there is.
    ours: Surface,
    all: Surface,
    /// Functions of earlier inputs, with their numbers of parameters.
    functions: Vec<(String, usize)>,
    /// The functions of what was imported, by alias.
    modules: BTreeMap<String, Vec<(String, usize)>>,
    inputs: usize,
    newest: Option<Arc<Snapshot>>,
    /// While an input is compiled: where `_` is the last case of a `switch`.
    cases: Arc<Mutex<Option<BTreeSet<Position>>>>,
}

impl Interactive {
    /// A session with `vm`. What inputs print and judge goes to `recorder`; they end when `cancel`
    /// is raised.
    #[must_use]
    pub fn new(lab: Arc<dyn LabOps>, recorder: Recorder, cancel: Cancel) -> Self {
        Interactive::of(Some(lab), recorder, cancel)
    }

    /// A session without a machine: `snap` is this snapshot.
    #[must_use]
    pub fn of_snapshot(snapshot: Arc<Snapshot>, recorder: Recorder, cancel: Cancel) -> Self {
        let mut new = Interactive::of(None, recorder, cancel);
        bind(&mut new.scope, SNAP, data::snapshot(snapshot.clone()));
        new.newest = Some(snapshot);
        new.keep_up();
        new
    }

    fn of(lab: Option<Arc<dyn LabOps>>, recorder: Recorder, cancel: Cancel) -> Self {
        let (file, limits) = (Path::new("input"), Limits::default());
        let session = Session::new(Mode::Interactive, file, limits, recorder, cancel);
        let mut engine = engine(&session);
        let cases = Arc::default();
        let (ours, all) = (Surface::of(&engine, false), Surface::of(&engine, true));
        allow_last(&mut engine, &cases);
        let mut scope = Scope::new();
        if let Some(lab) = &lab {
            scope.push("vm", Vm { lab: lab.clone() });
        }
        scope.push_dynamic(LAST, Dynamic::UNIT);
        let mut new = Interactive {
            session,
            engine,
            scope,
            lab,
            ours,
            all,
            functions: Vec::new(),
            modules: BTreeMap::new(),
            inputs: 0,
            newest: None,
            cases,
        };
        new.keep_up();
        new
    }

    /// Evaluates an input.
    pub fn eval(&mut self, text: &str) -> Answer {
        match self.evaluate(text) {
            Ok(value) => self.answer(value, text),
            Err(answer) => answer,
        }
    }

    /// Evaluates a part of a script that is read from standard input; what is told about it counts
    /// the lines of the whole.
    pub fn eval_part(&mut self, whole: &str, part: Range<usize>) -> Answer {
        let text = whole.get(part.clone()).unwrap_or_default();
        let source = Source { path: STDIN.into(), text: whole.into(), embedded: false };
        let above = "\n".repeat(whole.get(..part.start).unwrap_or_default().matches('\n').count());
        match self.evaluate_as(STDIN, source, &format!("{above}{text}")) {
            Ok(value) => self.answer(value, text),
            Err(answer) => answer,
        }
    }

    /// Evaluates an input, and says of what type its value is.
    pub fn type_of(&mut self, text: &str) -> Answer {
        match self.evaluate(text) {
            Ok(value) => Answer::Value(self.kind(&value)),
            Err(answer) => answer,
        }
    }

    /// Evaluates a script's text in this session.
    pub fn load(&mut self, path: &Path) -> Answer {
        let source = match Source::read(path) {
            Ok(source) => source,
            Err(why) => return Answer::Error(ScriptError::new(why)),
        };
        let text = source.text.clone();
        match self.evaluate_as(&path.display().to_string(), source, &text) {
            Ok(value) => self.answer(value, &text),
            Err(answer) => answer,
        }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn newest(&self) -> Option<&Arc<Snapshot>> {
        self.newest.as_ref()
    }

    /// The variables there are, by name.
    #[must_use]
    pub fn variables(&self) -> Vec<Variable> {
        // Of several definitions of a name the last one counts.
        let all: BTreeMap<&str, Dynamic> =
            self.scope.iter().map(|(name, _, value)| (name, value)).collect();
        let shown = |(name, value): (&str, Dynamic)| Variable {
            name: name.to_owned(),
            kind: self.kind(&value),
            value: self.one_line(&value),
        };
        all.into_iter().filter(|(name, _)| *name != LAST).map(shown).collect()
    }

    /// Everything that scripts can name.
    #[must_use]
    pub fn surface(&self) -> &Surface {
        &self.ours
    }

    fn evaluate(&mut self, text: &str) -> Result<Dynamic, Answer> {
        self.inputs += 1;
        let name = format!("input {}", self.inputs);
        let source = Source { path: PathBuf::from(&name), text: text.into(), embedded: false };
        self.evaluate_as(&name, source, text)
    }

    /// Evaluates `text`, whose lines are those of `source`.
    fn evaluate_as(&mut self, name: &str, source: Source, text: &str) -> Result<Dynamic, Answer> {
        let session = self.session.clone();
        // What is told about "the script" is about this input.
        for name in [name, session.main().as_str()] {
            if session.sources.get(name).is_none_or(|known| known.text != source.text) {
                session.sources.add(name, source.clone());
            }
        }
        let mut ast = self.compile(&source, text).map_err(Answer::Error)?;
        ast.set_source(name);
        let mut found = outline(&ast);
        let own = std::mem::take(&mut found.functions);
        self.functions.retain(|function| !own.contains(function));
        self.functions.extend(own);
        found.functions.clone_from(&self.functions);
        // There are no scenarios here in which something could stand or not.
        found.scenarios.clear();
        session.lock().outline = found;
        let result = self.engine.eval_ast_with_scope::<Dynamic>(&mut self.scope, &ast);
        if ast.has_functions() {
            self.engine.register_global_module(ast.shared_lib().clone());
        }
        self.keep_imports(&ast, name);
        session.judge_pending();
        self.keep_up();
        let end = session.lock().end.take();
        match (end, result) {
            (Some(End::Cancelled), _) => Err(Answer::Interrupted),
            (Some(End::Threw(error)), _) => Err(Answer::Error(error)),
            (Some(_), _) => Err(Answer::Ended),
            (None, Ok(value)) => Ok(value),
            (None, Err(error)) => Err(self.failed(&error, name)),
        }
    }

    fn compile(&self, source: &Source, text: &str) -> Result<AST, ScriptError> {
        let cases = |to| *self.cases.lock().unwrap_or_else(PoisonError::into_inner) = to;
        cases(Some(text::default_cases(text)));
        let compiled = self.engine.compile_with_scope(&self.scope, text);
        cases(None);
        compiled.map_err(|error| {
            let at = source.place(error.position());
            let told =
                known(&self.session, &self.engine, Some(source), |known| known.compile(&error));
            let out = ScriptError::new(told.message).at(at);
            match error.err_type() {
                ParseErrorType::VariableUndefined(name) if name == SNAP => out.help(Some(
                    "snap is the newest snapshot, and there is none yet: vm.freeze(\"a name\")"
                        .into(),
                )),
                _ => out.help(told.help),
            }
        })
    }

    fn failed(&self, error: &EvalAltResult, name: &str) -> Answer {
        if matches!(error.unwrap_inner(), EvalAltResult::ErrorTerminated(..)) {
            return Answer::Interrupted;
        }
        Answer::Error(script_error(&self.session, &self.engine, error, Some(name)))
    }

    /// Rhai forgets what was imported when an evaluation is over.
    fn keep_imports(&mut self, ast: &AST, importer: &str) {
        for statement in ast.statements() {
            let Stmt::Import(import, pos) = statement else { continue };
            let (Expr::StringConstant(path, _), alias) = (&import.0, &import.1.name) else {
                continue;
            };
            let resolver = self.engine.module_resolver();
            // What could not be loaded was told when it was evaluated.
            let Ok(module) = resolver.resolve(&self.engine, Some(importer), path, *pos) else {
                continue;
            };
            if alias.is_empty() {
                continue;
            }
            let text = module.id().and_then(|id| self.session.sources.get(id));
            let functions = text.and_then(|s| self.engine.compile(&*s.text).ok()).map(|ast| {
                let public = ast
                    .iter_functions()
                    .filter(|f| f.access == FnAccess::Public && !f.name.starts_with("anon$"));
                public.map(|f| (f.name.to_string(), f.params.len())).collect()
            });
            self.modules.insert(alias.to_string(), functions.unwrap_or_default());
            self.engine.register_static_module(alias, module);
        }
    }

    /// Takes account of what an input has left: names for advice, and `snap`.
    fn keep_up(&mut self) {
        let newest = self.lab.as_ref().and_then(|lab| lab.snapshots().pop());
        let is_new = match (&newest, &self.newest) {
            (Some(new), Some(old)) => !Arc::ptr_eq(new, old),
            (new, _) => new.is_some(),
        };
        if let (true, Some(snapshot)) = (is_new, &newest) {
            bind(&mut self.scope, SNAP, data::snapshot(snapshot.clone()));
            self.newest = newest;
        }
        let names: BTreeSet<String> =
            self.scope.iter_raw().map(|(name, ..)| name.to_owned()).collect();
        self.session.lock().variables = names.into_iter().collect();
    }

    fn answer(&mut self, value: Dynamic, text: &str) -> Answer {
        // What a matcher gives is for the next matcher; it has been told already.
        if value.is_unit() || self.type_name(&value) == "Expectation" {
            return Answer::Nothing;
        }
        let shown = match text::is_statement(text) {
            true => Answer::Nothing,
            false => Answer::Value(self.shown(&value)),
        };
        bind(&mut self.scope, LAST, value);
        shown
    }

    /// A value on as many lines as it takes. Text of one line is quoted, so that it can be told
    /// from a number.
    fn shown(&self, value: &Dynamic) -> String {
        match value.as_immutable_string_ref() {
            Ok(text) if text.contains('\n') => text.to_string(),
            Ok(_) => render(value),
            Err(_) => self.told(value).unwrap_or_else(|| pretty(value)),
        }
    }

    fn one_line(&self, value: &Dynamic) -> String {
        self.told(value).unwrap_or_else(|| render(value))
    }

    /// What a machine and its kin say of themselves; all other values are shown by what they hold.
    fn told(&self, value: &Dynamic) -> Option<String> {
        if value.is_fnptr() || render(value) != described(value) {
            return None;
        }
        let mut scope = Scope::new();
        scope.push_dynamic("x", value.clone());
        self.engine.eval_expression_with_scope::<String>(&mut scope, "x.to_string()").ok()
    }

    /// The type's name in the reference's words.
    fn type_name(&self, value: &Dynamic) -> String {
        let name = self.engine.map_type_name(value.type_name());
        super::explain::type_name(name).to_owned()
    }

    /// The type, that of a captured field as C spells it too.
    fn kind(&self, value: &Dynamic) -> String {
        let name = self.type_name(value);
        match value.read_lock::<Field>() {
            Some(field) => format!("{name} ({})", field.type_name()),
            None => name,
        }
    }
}

/// Gives a variable a value, whatever it was before.
fn bind(scope: &mut Scope<'_>, name: &str, value: Dynamic) {
    match scope.is_constant(name) {
        Some(false) => drop(scope.set_value(name, value)),
        _ => drop(scope.push_dynamic(name, value)),
    }
}

/// Makes `_` a variable, which it is not in Rhai; `_ => ..` stays the last case of a `switch`.
#[allow(deprecated)] // Rhai calls this API volatile, and the whole of `Cargo.toml` pins it.
fn allow_last(engine: &mut Engine, cases: &Arc<Mutex<Option<BTreeSet<Position>>>>) {
    let cases = cases.clone();
    engine.on_parse_token(move |token, pos, _| {
        if !matches!(token, Token::Underscore) {
            return token;
        }
        match &*cases.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(cases) if !cases.contains(&pos) => Token::Identifier(Box::new(LAST.into())),
            _ => token,
        }
    });
}
