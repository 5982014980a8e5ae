//! The reference: nothing undocumented, no Rust types, examples that run.

use crate::script::reference;
use crate::script::surface::Kind;

/// Words for types that are not types of ours.
const WORDS: &[&str] = &[
    "int", "float", "bool", "string", "char", "array", "map", "closure", "any", "blob", "range",
    "duration", "rate", "()", "",
];

#[test]
fn everything_is_documented_in_the_scripts_own_words() {
    let surface = reference().surface(false);
    let types: Vec<&str> = surface.types.iter().map(|t| t.name.as_str()).collect();
    let mut wrong = Vec::new();
    for ty in &surface.types {
        if ty.doc.trim().is_empty() || ty.name.contains("::") {
            wrong.push(format!("type {}: {:?}", ty.name, ty.doc));
        }
    }
    for f in &surface.functions {
        let name = format!("{} {}", f.owner.as_deref().unwrap_or("-"), f.signature());
        let summary = f.summary();
        if summary.is_empty() || !(summary.ends_with('.') || summary.ends_with(':')) {
            wrong.push(format!("{name}: the documentation is {summary:?}"));
        }
        let mentioned = f.params.iter().map(|(_, ty)| ty).chain([&f.returns]);
        for ty in mentioned.flat_map(|ty| ty.split('|')).map(str::trim) {
            if !WORDS.contains(&ty) && !types.contains(&ty) {
                wrong.push(format!("{name}: nobody knows the type {ty:?}"));
            }
        }
        for (param, _) in &f.params {
            if param.is_empty() || param == "_" {
                wrong.push(format!("{name}: a parameter has no name"));
            }
        }
        let called = match f.kind {
            Kind::Function => format!("x.{}()", f.name),
            Kind::Property => format!("x.{}", f.name),
            Kind::Index | Kind::Operator => "x".to_owned(),
        };
        if let Err(e) = rhai::Engine::new().compile(&called) {
            wrong.push(format!("{name}: no script can say {called}: {e}"));
        }
        if let Some(owner) = &f.owner
            && !types.contains(&owner.as_str())
            && !WORDS.contains(&owner.as_str())
        {
            wrong.push(format!("{name}: belongs to {owner:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(surface.functions.len() > 80 && types.len() >= 6, "the surface was not read");
}

#[test]
fn nothing_is_listed_that_is_not_there() {
    let surface = reference().surface(false);
    let mut planned = surface.functions.iter().filter(|f| f.summary() == "Not available yet.");
    assert!(planned.next().is_none());
    assert!(surface.functions.iter().any(|f| f.kind == Kind::Property && f.name == "elapsed_ms"));
}
