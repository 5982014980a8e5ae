//! Lets a closure use what the call around it was made on.
//!
//! Rhai shares a variable with the closures that capture it, and holds it locked for as long as
//! the method chain runs that begins with it. So `snap.map("m").filter(|e| e.n > snap.global("n"))`
//! would end in a data race, though nothing is changed: our types are immutable handles. Where a
//! script never assigns to such a variable again, its uses get a copy of the handle instead, and
//! nothing is locked.

use rhai::{Dynamic, Engine};

/// Makes `engine` copy shared handles out of variables, other than those for which `assigned`
/// says that a script assigns to a variable of that name: what an assignment writes to must be
/// the variable itself.
pub(crate) fn lend(engine: &mut Engine, assigned: impl Fn(&str) -> bool + Send + Sync + 'static) {
    // Not deprecated: Rhai marks what may change in a later version so.
    #[allow(deprecated)]
    engine.on_var(move |name, index, context| {
        let scope = context.scope();
        // The index counts from the end; 0 stands for a name that is not known beforehand.
        let value = match index {
            0 => scope.get(name),
            n => scope.iter_raw().nth(n - 1).map(|(_, _, value)| value),
        };
        match value.filter(|value| value.is_shared()) {
            Some(value) if !assigned(name) => Ok(handle(value)),
            _ => Ok(None),
        }
    });
}

/// A copy of what a variable holds, if it is of a type of ours.
fn handle(shared: &Dynamic) -> Option<Dynamic> {
    let value = shared.read_lock::<Dynamic>()?;
    let plain = value.is_unit()
        || value.is_bool()
        || value.is_int()
        || value.is_float()
        || value.is_char()
        || value.is_string()
        || value.is_array()
        || value.is_map()
        || value.is_blob()
        || value.is_fnptr();
    (!plain).then(|| value.clone())
}
