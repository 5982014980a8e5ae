//! The Rhai engine as scripts here meet it: its limits, what it prints to, how it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rhai::{Dynamic, Engine, INT, Module, OptimizationLevel};

use super::modules::Resolver;
use super::register::Package;
use super::session::Session;
use super::{cgroup, data, declare, expect, fault, globals, topology, values, vm};

/// How deep script functions may call each other.
pub(crate) const MAX_CALL_LEVELS: usize = 100;
/// How deep an expression may be nested, outside and inside of functions.
const MAX_EXPR_DEPTH: usize = 100;
/// Bytes of a string.
pub(crate) const MAX_STRING: usize = 64 << 20;
/// Elements of an array, those of nested arrays and maps included.
pub(crate) const MAX_ARRAY: usize = 1_000_000;
/// Properties of a map, nested ones included.
pub(crate) const MAX_MAP: usize = 200_000;
/// Functions of one script.
const MAX_FUNCTIONS: usize = 10_000;
/// Variables that may be defined at once.
const MAX_VARIABLES: usize = 10_000;
/// Modules of one script.
const MAX_MODULES: usize = 200;
/// What ends a script that does not end by itself. Tests lower these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many steps it may take; a busy loop uses them up within a minute or so, waiting does
    /// not.
    pub(crate) operations: u64,
    /// How long its top level may run while scripts are collected.
    pub(crate) collect: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { operations: 300_000_000, collect: Duration::from_secs(10) }
    }
}

/// Stack of the thread that a script runs on: enough for the limits above, in debug builds too,
/// and for values nested as deep as they allow. Only what is used takes memory.
const STACK: usize = 256 << 20;

/// How many operations pass between two looks at the clock.
const LOOK: u64 = 1024;

/// The engine for one session.
pub(crate) fn engine(session: &Arc<Session>) -> Engine {
    let mut engine = Engine::new();
    limit(&mut engine, &session.limits);
    engine.register_global_module(packages(session).into());
    engine.set_module_resolver(Resolver::new(session.clone()));
    // Scripts are judged as they stand: nothing is folded away before their calls are counted.
    engine.set_optimization_level(OptimizationLevel::None);
    engine.set_fail_on_invalid_map_property(true);
    engine.set_strict_variables(true);
    // Code in a string has no line of the author.
    engine.disable_symbol("eval");
    watch(&mut engine, session);
    let names = session.clone();
    data::lend(&mut engine, move |name| names.sources.assign(name));
    let printer = session.clone();
    engine.on_print(move |text| printer.print(text));
    let printer = session.clone();
    engine.on_debug(move |text, source, pos| {
        let source = source.unwrap_or_default();
        printer.print(&format!("{source}:{}: {text}", pos.line().unwrap_or(0)));
    });
    engine
}

/// The same limits whatever the build.
fn limit(engine: &mut Engine, limits: &Limits) {
    engine.set_max_call_levels(MAX_CALL_LEVELS);
    engine.set_max_expr_depths(MAX_EXPR_DEPTH, MAX_EXPR_DEPTH);
    engine.set_max_operations(limits.operations);
    engine.set_max_string_size(MAX_STRING);
    engine.set_max_array_size(MAX_ARRAY);
    engine.set_max_map_size(MAX_MAP);
    engine.set_max_functions(MAX_FUNCTIONS);
    engine.set_max_variables(MAX_VARIABLES);
    engine.set_max_modules(MAX_MODULES);
}

/// Everything of ours that scripts can name.
fn packages(session: &Arc<Session>) -> Module {
    let mut module = Module::new();
    let mut pkg = Package::new(&mut module);
    fault::register(&mut pkg);
    values::register(&mut pkg);
    data::register(&mut pkg);
    globals::register(&mut pkg, session);
    expect::register(&mut pkg, session);
    declare::register(&mut pkg, session);
    topology::register(&mut pkg);
    cgroup::register(&mut pkg, session);
    vm::register(&mut pkg, session);
    module
}

/// Stops a script that is to end, wherever it is.
fn watch(engine: &mut Engine, session: &Arc<Session>) {
    let session = session.clone();
    let limit = session.collecting().then(|| Instant::now() + session.limits.collect);
    let late = AtomicBool::new(false);
    engine.on_progress(move |operations| {
        if operations.is_multiple_of(LOOK) && limit.is_some_and(|limit| Instant::now() >= limit) {
            late.store(true, Ordering::Relaxed);
        }
        let stop = session.cancel.is_raised() || late.load(Ordering::Relaxed);
        stop.then(|| Dynamic::from(0 as INT))
    });
}

/// Runs `work` on a thread that has the stack scripts may need.
pub(crate) fn on_big_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("script".into()).stack_size(STACK);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|e| format!("no thread can be had to run the script on: {e}"))?;
        thread.join().map_err(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            format!("cryoscope itself failed: {}", text.unwrap_or_default())
        })
    })
}
