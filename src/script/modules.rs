//! `import`: cryoscope's own modules and those beside the script, and the border between modules.
//!
//! Rhai forgets who called a module's function, and runs an author's closure that a module calls
//! as if it stood in that module. So every function of a module is wrapped: on the way in, the
//! author's call is noted for whatever is recorded below it; closures among the arguments run in
//! the surroundings that they were written in.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rhai::{
    Dynamic, Engine, EvalAltResult, FnAccess, FnPtr, FuncRegistration, Module, ModuleResolver,
    NativeCallContext, Position, RhaiFunc, Scope, Shared,
};

use crate::words::nearest;

use super::fault::Fault;
use super::session::{Caller, Session};
use super::source::Source;

/// cryoscope's own modules: name and text.
pub(crate) const STDLIB: &[(&str, &str)] = &[
    ("std/bpf", include_str!("../../stdlib/bpf.rhai")),
    ("std/cgroup", include_str!("../../stdlib/cgroup.rhai")),
    ("std/checks", include_str!("../../stdlib/checks.rhai")),
    ("std/cpus", include_str!("../../stdlib/cpus.rhai")),
    ("std/load", include_str!("../../stdlib/load.rhai")),
    ("std/sched", include_str!("../../stdlib/sched.rhai")),
    ("std/topologies", include_str!("../../stdlib/topologies.rhai")),
];

/// Modules may import modules, but not deeper than this.
const MAX_DEPTH: usize = 16;

/// Finds and loads modules for one session.
pub(crate) struct Resolver {
    session: Arc<Session>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: BTreeMap<String, SharedModule>,
    /// The module that an importer meant by a path.
    meant: BTreeMap<(String, String), String>,
    /// Being loaded, outermost first.
    loading: Vec<String>,
}

impl Loaded {
    fn known(&self, asked: &(String, String)) -> Option<SharedModule> {
        self.modules.get(self.meant.get(asked)?).cloned()
    }
}

impl Resolver {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Resolver { session, loaded: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The module that `path` means in the script `importer`: its name and its text.
    fn find(&self, importer: &str, path: &str) -> Result<(String, Source), Fault> {
        let refuse = |why: String| Err(Fault::argument(why));
        let embedded = self.session.sources.get(importer).is_some_and(|s| s.embedded);
        let asked = Path::new(path);
        let stem = path.strip_suffix(".rhai").unwrap_or(path);
        if asked.is_absolute() || asked.components().any(|c| c == Component::ParentDir) {
            return refuse(format!(
                "\"{path}\" leads out of the script's directory; a module stands beside the \
                 script or below it"
            ));
        }
        let dir = Path::new(importer).parent().unwrap_or(Path::new(""));
        if !embedded {
            let file = dir.join(format!("{stem}.rhai"));
            if file.exists() {
                self.inside(path, &file)?;
                let source = Source::read(&file).map_err(Fault::argument)?;
                return Ok((file.display().to_string(), source));
            }
        }
        if let Some((name, text)) = STDLIB.iter().find(|(name, _)| *name == stem) {
            let path = PathBuf::from(format!("{name}.rhai"));
            let source = Source { path, text: (*text).into(), embedded: true };
            return Ok(((*name).to_string(), source));
        }
        let beside = modules_below(dir);
        let names = beside.iter().map(String::as_str).chain(STDLIB.iter().map(|(name, _)| *name));
        let hint = match nearest(stem, names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => {
                let own: Vec<&str> = STDLIB.iter().map(|(name, _)| *name).collect();
                let file = dir.join(format!("{stem}.rhai"));
                format!(
                    "there is no file {}, and own modules are: {}",
                    file.display(),
                    own.join(", ")
                )
            }
        };
        refuse(format!("there is no module \"{path}\"; {hint}"))
    }

    /// Refuses a file that a symbolic link puts outside of the script's directory.
    fn inside(&self, asked: &str, file: &Path) -> Result<(), Fault> {
        let root = match self.session.file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let real = |p: &Path| p.canonicalize();
        match (real(root), real(file)) {
            (Ok(root), Ok(file)) if file.starts_with(&root) => Ok(()),
            _ => Err(Fault::argument(format!(
                "\"{asked}\" leads out of the script's directory through a symbolic link"
            ))),
        }
    }

    fn load(
        &self,
        engine: &Engine,
        name: &str,
        source: Source,
    ) -> Result<SharedModule, Box<EvalAltResult>> {
        self.session.sources.add(name, source.clone());
        let mut ast = engine.compile(&*source.text)?;
        ast.set_source(name);
        let mut functions: BTreeSet<(String, usize)> = ast
            .iter_functions()
            .filter(|f| f.access == FnAccess::Public && !f.name.starts_with("anon$"))
            .map(|f| (f.name.to_string(), f.params.len()))
            .collect();
        let mut inner = Module::eval_ast_as_new(Scope::new(), &ast, engine)?;
        inner.set_id(name);
        self.session.lock().module_functions.append(&mut functions);
        Ok(border(&Arc::new(inner), name, source.embedded).into())
    }
}

impl ModuleResolver for Resolver {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        pos: Position,
    ) -> Result<SharedModule, Box<EvalAltResult>> {
        let importer = source.map_or_else(|| self.session.main(), str::to_string);
        let here = |fault: Fault| Box::new(EvalAltResult::ErrorRuntime(Dynamic::from(fault), pos));
        let asked = (importer, path.to_string());
        if let Some(known) = self.lock().known(&asked) {
            return Ok(known);
        }
        let (name, text) = self.find(&asked.0, path).map_err(here)?;
        {
            let mut loaded = self.lock();
            loaded.meant.insert(asked, name.clone());
            if let Some(module) = loaded.modules.get(&name) {
                return Ok(module.clone());
            }
            let circle = loaded.loading.contains(&name) || name == self.session.main();
            if circle || loaded.loading.len() >= MAX_DEPTH {
                let mut way = loaded.loading.clone();
                way.push(name);
                let why = if circle {
                    "modules import each other in a circle"
                } else {
                    "modules are nested too deeply"
                };
                return Err(here(Fault::argument(format!("{why}: {}", way.join(" imports ")))));
            }
            loaded.loading.push(name.clone());
        }
        let result = self.load(engine, &name, text);
        let mut loaded = self.lock();
        loaded.loading.pop();
        match result {
            Ok(module) => {
                loaded.modules.insert(name, module.clone());
                Ok(module)
            }
            Err(error)
                if error.is_system_exception()
                    && !matches!(*error, EvalAltResult::ErrorParsing(..)) =>
            {
                Err(error)
            }
            Err(error) => Err(EvalAltResult::ErrorInModule(name, error, pos).into()),
        }
    }
}

/// The modules in `dir` and in its direct subdirectories, as an import names them.
pub(super) fn modules_below(dir: &Path) -> Vec<String> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let listed = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).take(1000).collect()
    };
    let mut out = Vec::new();
    for path in listed(dir) {
        let inner = if path.is_dir() { listed(&path) } else { vec![path] };
        for file in inner.iter().filter(|p| p.extension().is_some_and(|e| e == "rhai")) {
            if let Ok(name) = file.with_extension("").strip_prefix(dir) {
                out.push(name.display().to_string());
            }
        }
    }
    out.sort();
    out
}

/// A module whose public functions are `inner`'s behind a border.
fn border(inner: &SharedModule, name: &str, embedded: bool) -> Module {
    let mut outer = Module::new();
    outer.set_id(name);
    for (_, access, function, params, def) in inner.iter_script_fn_info() {
        if access == FnAccess::Private || function.starts_with("anon$") {
            continue;
        }
        let call = crossing(inner.clone(), function.to_string(), embedded);
        let func = RhaiFunc::Method {
            func: Shared::new(call),
            has_context: true,
            is_pure: true,
            is_volatile: true,
        };
        FuncRegistration::new(function)
            .in_internal_namespace()
            .with_params_info(def.params.iter().map(|p| p.as_str()))
            .with_comments(def.comments.iter().map(|c| c.as_str()))
            .set_into_module_raw(&mut outer, vec![TypeId::of::<Dynamic>(); params], func);
    }
    for (name, value) in inner.iter_var() {
        outer.set_var(name, value.clone());
    }
    for (name, module) in inner.iter_sub_modules() {
        outer.set_sub_module(name, module.clone());
    }
    outer.build_index();
    outer
}

type SharedModule = Arc<Module>;
type Answer = Result<Dynamic, Box<EvalAltResult>>;

/// The call of `function` in `inner` from outside.
fn crossing(
    inner: SharedModule,
    function: String,
    embedded: bool,
) -> impl Fn(Option<NativeCallContext<'_>>, &mut [&mut Dynamic]) -> Answer + Send + Sync {
    move |ctx, args| {
        let ctx = ctx.ok_or("a module's function was called without a context")?;
        let mut state = ctx.global_runtime_state().clone();
        // The first may be the author's own variable, and a call consumes what it is given.
        let mut own: Vec<Dynamic> = args.iter().map(|arg| (**arg).clone()).collect();
        for arg in &mut own {
            if let Some(closure) = arg.read_lock::<FnPtr>().map(|f| f.clone()) {
                *arg = Dynamic::from(at_home(closure, &ctx)?);
            }
        }
        if embedded && state.tag.is_unit() {
            let source = ctx.call_source().unwrap_or_default().to_string();
            state.tag = Dynamic::from(Caller { source, pos: ctx.call_position() });
        }
        state.lib.push(inner.clone());
        let ctx = NativeCallContext::new_with_all_fields(
            ctx.engine(),
            ctx.fn_name(),
            ctx.fn_source(),
            &state,
            ctx.call_position(),
        );
        let mut args: Vec<&mut Dynamic> = own.iter_mut().collect();
        ctx.call_fn_raw(&function, false, false, &mut args)
    }
}

/// What a closure is called once it is at home; Rhai's array functions look for it in errors.
const AT_HOME: &str = "closure";

/// `closure`, to be run where it was written, whoever calls it.
#[allow(deprecated)] // Rhai calls this API volatile, and the whole of `Cargo.toml` pins it.
fn at_home(closure: FnPtr, ctx: &NativeCallContext<'_>) -> Result<FnPtr, Box<EvalAltResult>> {
    let home = ctx.global_runtime_state().clone();
    let pos = ctx.call_position();
    let level = ctx.call_level();
    FnPtr::from_fn(AT_HOME, move |caller: NativeCallContext<'_>, args: &mut [&mut Dynamic]| {
        let mut state = home.clone();
        state.level = caller.call_level().max(level);
        let ctx =
            NativeCallContext::new_with_all_fields(caller.engine(), AT_HOME, None, &state, pos);
        let args: Vec<Dynamic> = args.iter().map(|a| (*a).clone()).collect();
        closure.call_raw(&ctx, None, args).map_err(|mut error| {
            // Rhai's map(..), filter(..) and their kin try again with an index when a closure of
            // this name does not take what they gave it.
            if let EvalAltResult::ErrorFunctionNotFound(signature, _) = &mut *error
                && let Some(rest) = signature.strip_prefix(closure.fn_name())
            {
                *signature = format!("{AT_HOME}{rest}");
            }
            error
        })
    })
}
