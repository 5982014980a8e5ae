//! How everything that a script can name is registered: with a signature in the script's own
//! words and a line of documentation, so that `cryoscope api` has nothing to make up.

use std::any::TypeId;

use rhai::{Dynamic, FnNamespace, FuncRegistration, Module, RhaiNativeFunc, Variant};

use super::fault::Native;

/// What a loop goes through, one value or error after the other.
pub(crate) type Items = Box<dyn Iterator<Item = Native<Dynamic>>>;

/// A module under construction whose every function is documented.
///
/// Signatures read like this: `freeze(self: Vm, tag: string) -> Snapshot`. Types are the names a
/// script author knows: `int`, `float`, `bool`, `string`, `array`, `map`, `closure`, `any` or a
/// registered type; alternatives are joined by `|`. Without `->` a function returns nothing.
/// The first line of the documentation stands alone in listings.
pub(crate) struct Package<'m> {
    module: &'m mut Module,
}

impl<'m> Package<'m> {
    /// Starts to fill `module`.
    pub(crate) fn new(module: &'m mut Module) -> Self {
        Package { module }
    }

    /// Names a type that scripts meet.
    pub(crate) fn ty<T>(&mut self, name: &str, doc: &str) -> &mut Self {
        let doc = comment(doc);
        self.module.set_custom_type_with_comments::<T>(name, &[doc.as_str()]);
        self
    }

    /// Registers a function, a method (the first parameter is the receiver) or an operator.
    pub(crate) fn func<A: 'static, const N: usize, const X: bool, R, const F: bool, FUNC>(
        &mut self,
        signature: &str,
        doc: &str,
        func: FUNC,
    ) -> &mut Self
    where
        R: Variant + Clone,
        FUNC: RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    {
        let sig = Signature::parse(signature);
        self.set(FuncRegistration::new(sig.name), &sig, doc, func)
    }

    /// Registers a property: `tag(self: Snapshot) -> string` becomes `snapshot.tag`.
    pub(crate) fn getter<A: 'static, const N: usize, const X: bool, R, const F: bool, FUNC>(
        &mut self,
        signature: &str,
        doc: &str,
        func: FUNC,
    ) -> &mut Self
    where
        R: Variant + Clone,
        FUNC: RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    {
        let sig = Signature::parse(signature);
        self.set(FuncRegistration::new_getter(sig.name), &sig, doc, func)
    }

    /// Registers an indexer: `index(self: SnapshotEntry, path: string) -> any` becomes
    /// `entry["path"]`. Rhai also asks it for a property that has no getter.
    pub(crate) fn index<A: 'static, const N: usize, const X: bool, R, const F: bool, FUNC>(
        &mut self,
        signature: &str,
        doc: &str,
        func: FUNC,
    ) -> &mut Self
    where
        R: Variant + Clone,
        FUNC: RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    {
        let sig = Signature::parse(signature);
        self.set(FuncRegistration::new_index_getter(), &sig, doc, func)
    }

    /// Lets `for x in value` go through what `items` gives.
    pub(crate) fn iterable<T: Variant + Clone>(
        &mut self,
        items: impl Fn(T) -> Items + Send + Sync + 'static,
    ) -> &mut Self {
        self.module.set_iter_result(TypeId::of::<T>(), move |value| items(value.cast::<T>()));
        self
    }

    fn set<A: 'static, const N: usize, const X: bool, R, const F: bool, FUNC>(
        &mut self,
        registration: FuncRegistration,
        sig: &Signature<'_>,
        doc: &str,
        func: FUNC,
    ) -> &mut Self
    where
        R: Variant + Clone,
        FUNC: RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    {
        assert_eq!(sig.params.len(), N, "{}: number of parameters", sig.name);
        assert!(!doc.trim().is_empty(), "{} is undocumented", sig.name);
        let info = sig.params.iter().copied().chain([sig.returns]);
        registration
            .with_namespace(FnNamespace::Global)
            .with_params_info(info)
            .with_comments([comment(doc)])
            .set_into_module(self.module, func);
        self
    }
}

/// Documentation in the form in which the engine keeps it.
fn comment(doc: &str) -> String {
    let lines: Vec<String> = doc
        .trim()
        .lines()
        .map(|line| format!("/// {}", line.trim()).trim_end().to_string())
        .collect();
    lines.join("\n")
}

struct Signature<'a> {
    name: &'a str,
    params: Vec<&'a str>,
    returns: &'a str,
}

impl<'a> Signature<'a> {
    fn parse(text: &'a str) -> Signature<'a> {
        let malformed = || -> ! { panic!("malformed signature: {text}") };
        let Some((name, rest)) = text.split_once('(') else { malformed() };
        let Some((params, tail)) = rest.split_once(')') else { malformed() };
        let returns = match tail.trim() {
            "" => "()",
            tail => match tail.strip_prefix("->") {
                Some(returns) => returns.trim(),
                None => malformed(),
            },
        };
        let params = match params.trim() {
            "" => Vec::new(),
            params => params.split(',').map(str::trim).collect(),
        };
        if params.iter().any(|p| !p.contains(':')) {
            malformed()
        }
        Signature { name: name.trim(), params, returns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_apart() {
        let sig = Signature::parse("at(self: SnapshotMap, i: int) -> SnapshotEntry");
        assert_eq!(
            (sig.name, sig.returns, sig.params),
            ("at", "SnapshotEntry", vec!["self: SnapshotMap", "i: int"])
        );
        let sig = Signature::parse("exit_info(self: X) -> map|()");
        assert_eq!((sig.returns, sig.params), ("map|()", vec!["self: X"]));
        let sig = Signature::parse("note(msg: any)");
        assert_eq!((sig.returns, sig.params), ("()", vec!["msg: any"]));
    }

    #[test]
    #[should_panic(expected = "x: number of parameters")]
    fn a_signature_that_lies_about_its_parameters_is_refused() {
        let mut module = Module::new();
        Package::new(&mut module).func("x(a: int)", "Doc.", |_: rhai::INT, _: rhai::INT| {});
    }
}
