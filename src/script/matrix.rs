//! The option `matrix`: one declaration, a scenario for each combination of its values.

use rhai::{Array, Dynamic, Map};

use super::options::{Mistake, Options};
use super::values::{described, render};
use crate::scenario::with_axes;

/// What a matrix may vary.
const AXES: [&str; 4] = ["topology", "kernel", "scheduler", "args"];
/// The most combinations of one matrix.
const MOST: usize = 256;

/// One combination.
pub(crate) struct Variant {
    /// Options with the values of this combination in the place of the matrix.
    pub(crate) options: Map,
    /// The axes and the names of their values, in the order in which they vary.
    pub(crate) axes: Vec<(String, String)>,
}

impl Variant {
    /// `name[topology=1n1l2c1t,kernel=debian:7.2]`; the name itself without a matrix.
    pub(crate) fn name(&self, name: &str) -> String {
        with_axes(name, &self.axes)
    }
}

/// The combinations of a declaration's matrix; one without a matrix is its only one.
pub(crate) fn expand(what: &'static str, options: &Map) -> Result<Vec<Variant>, Mistake> {
    let Some(given) = options.get("matrix").filter(|value| !value.is_unit()) else {
        return Ok(vec![Variant { options: options.clone(), axes: Vec::new() }]);
    };
    let wrong = |why: String| Mistake {
        key: Some("matrix".to_owned()),
        message: format!("the option \"matrix\" of {what}: {why}"),
        later: false,
    };
    let Ok(given) = given.as_map_ref() else {
        let found = described(given);
        let why = "expected a map of arrays, like #{ topology: [\"1n1l2c1t\", \"1n2l2c1t\"] }";
        return Err(wrong(format!("{why}, found {found}")));
    };
    Options::new("matrix: #{ .. }", &given, &AXES, &[])?;
    let mut rest = options.clone();
    rest.remove("matrix");
    let mut variants = vec![Variant { options: rest.clone(), axes: Vec::new() }];
    for axis in AXES {
        let Some(values) = given.get(axis) else { continue };
        let Ok(values) = values.as_array_ref() else {
            let found = described(values);
            return Err(wrong(format!("{axis}: expected an array of values, found {found}")));
        };
        if values.is_empty() {
            return Err(wrong(format!("{axis}: the array is empty, so nothing would run")));
        }
        if axis != "args" && rest.contains_key(axis) {
            let why = format!("{axis} is an option of its own as well: give it in one place");
            return Err(wrong(why));
        }
        if variants.len().saturating_mul(values.len()) > MOST {
            let why = format!("it has more than {MOST} combinations: vary less in one scenario");
            return Err(wrong(why));
        }
        let names = names(axis, &values).map_err(&wrong)?;
        let mut next = Vec::new();
        for variant in &variants {
            for (value, name) in values.iter().zip(&names) {
                let mut options = variant.options.clone();
                put(&mut options, axis, value).map_err(&wrong)?;
                let mut axes = variant.axes.clone();
                axes.push((axis.to_owned(), name.clone()));
                next.push(Variant { options, axes });
            }
        }
        variants = next;
    }
    match variants.first().is_some_and(|variant| variant.axes.is_empty()) {
        true => Err(wrong(format!("it is empty; it may vary {}", AXES.join(", ")))),
        false => Ok(variants),
    }
}

/// Puts an axis' value into the options.
fn put(options: &mut Map, axis: &str, value: &Dynamic) -> Result<(), String> {
    if axis != "args" {
        options.insert(axis.into(), value.clone());
        return Ok(());
    }
    let scheduler = options.get("scheduler").cloned().unwrap_or_default();
    let mut scheduler = match scheduler.clone().try_cast::<Map>() {
        Some(map) => map,
        None if scheduler.is_string() => Map::from([("src".into(), scheduler)]),
        None => {
            return Err(
                "args: they are a scheduler's, and there is none: say which executable is \
                        meant with the option scheduler"
                    .to_owned(),
            );
        }
    };
    if scheduler.contains_key("args") {
        return Err(
            "args: the scheduler has args of its own as well: give them in one place".into()
        );
    }
    scheduler.insert("args".into(), value.clone());
    options.insert("scheduler".into(), scheduler.into());
    Ok(())
}

/// What each value of an axis is called.
fn names(axis: &str, values: &Array) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for value in values {
        let name = name(value);
        // The last part of a path is enough where it tells them apart.
        let name = if names.contains(&name) { whole(value) } else { name };
        if name.chars().count() > 60 || name.chars().any(char::is_control) {
            return Err(format!("{axis}: {name:?} makes no name: 60 characters at most"));
        }
        if names.contains(&name) {
            return Err(format!("{axis}: {name} comes twice"));
        }
        names.push(name);
    }
    Ok(names)
}

/// A value with the whole of its path.
fn whole(value: &Dynamic) -> String {
    match value.as_immutable_string_ref() {
        Ok(text) => text.to_string(),
        Err(_) => name(value),
    }
}

fn name(value: &Dynamic) -> String {
    if let Ok(text) = value.as_immutable_string_ref() {
        let last = text.rsplit('/').next().unwrap_or(&text).to_owned();
        return last;
    }
    if let Ok(map) = value.as_map_ref() {
        let src = map.get("src").map(name).unwrap_or_default();
        let rest = map.iter().filter(|(key, _)| key.as_str() != "src");
        let rest: Vec<String> = rest.map(|(key, value)| format!("{key}:{}", name(value))).collect();
        return match rest.is_empty() {
            true => src,
            false => format!("{src}{{{}}}", rest.join(" ")),
        };
    }
    if let Ok(array) = value.as_array_ref() {
        return array.iter().map(name).collect::<Vec<_>>().join(" ");
    }
    render(value)
}
