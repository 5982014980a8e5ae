//! Everything that a script can name, read back from the engine's own metadata.

use rhai::Engine;
use serde::Deserialize;

/// The whole registered surface, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    /// Types, by name.
    pub types: Vec<TypeDoc>,
    /// Functions, methods, properties, indexers and operators.
    pub functions: Vec<FunctionDoc>,
}

/// A type that scripts meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeDoc {
    /// Its name in scripts.
    pub name: String,
    /// Its documentation, without comment marks.
    pub doc: String,
}

/// Something that can be called, read or applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionDoc {
    /// The type that it belongs to: that of the parameter called `self`. `None` for functions.
    pub owner: Option<String>,
    /// How it is used.
    pub kind: Kind,
    /// Its name; the operator's sign; empty for an indexer.
    pub name: String,
    /// The parameters without the receiver: name and type.
    pub params: Vec<(String, String)>,
    /// The type of the result, empty for none.
    pub returns: String,
    /// Its documentation, without comment marks.
    pub doc: String,
}

/// How something is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `x.name`
    Property,
    /// `x[..]`
    Index,
    /// `x.name(..)` or `name(..)`
    Function,
    /// `a + b`
    Operator,
}

impl FunctionDoc {
    /// The first line of the documentation.
    #[must_use]
    pub fn summary(&self) -> &str {
        self.doc.lines().next().unwrap_or("")
    }

    /// The signature in a script's words: `freeze(tag: string) -> Snapshot`.
    #[must_use]
    pub fn signature(&self) -> String {
        let params: Vec<String> = self.params.iter().map(|(name, ty)| param(name, ty)).collect();
        let params = params.join(", ");
        let returns = match self.returns.as_str() {
            "" => String::new(),
            ty => format!(" -> {}", spaced(ty)),
        };
        match self.kind {
            Kind::Property => format!("{}{}", self.name, returns.replacen(" -> ", ": ", 1)),
            Kind::Index => format!("[{params}]{returns}"),
            Kind::Function => format!("{}({params}){returns}", self.name),
            Kind::Operator => {
                let owner = self.owner.as_deref().unwrap_or("");
                let right: Vec<&str> = self.params.iter().map(|(_, ty)| ty.as_str()).collect();
                format!("{owner} {} {}{returns}", self.name, right.join(" "))
            }
        }
    }
}

fn param(name: &str, ty: &str) -> String {
    if ty.is_empty() { name.to_string() } else { format!("{name}: {}", spaced(ty)) }
}

/// `int|string` as `int | string`.
fn spaced(ty: &str) -> String {
    ty.split('|').map(str::trim).collect::<Vec<_>>().join(" | ")
}

impl Surface {
    /// Reads the surface of `engine`; with `standard`, Rhai's own functions too.
    pub(crate) fn of(engine: &Engine, standard: bool) -> Surface {
        let json = engine.gen_fn_metadata_to_json(standard);
        let raw: RawSurface =
            json.ok().and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        let mut types: Vec<TypeDoc> = raw
            .custom_types
            .into_iter()
            .map(|t| TypeDoc { name: t.display_name, doc: uncommented(&t.doc_comments) })
            .collect();
        types.sort();
        types.dedup();
        let mut functions: Vec<FunctionDoc> = raw.functions.into_iter().map(function).collect();
        functions.sort();
        functions.dedup();
        Surface { types, functions }
    }

    /// What belongs to a type (`None`: functions that belong to none), in order.
    pub fn of_type<'a>(
        &'a self,
        owner: Option<&'a str>,
    ) -> impl Iterator<Item = &'a FunctionDoc> + 'a {
        self.functions.iter().filter(move |f| f.owner.as_deref() == owner)
    }
}

fn function(raw: RawFunction) -> FunctionDoc {
    let mut params: Vec<(String, String)> = raw
        .params
        .into_iter()
        .map(|p| (p.name.unwrap_or_default(), p.typ.unwrap_or_else(|| "any".into())))
        .collect();
    let owner = params.first().filter(|(name, _)| name == "self").map(|(_, ty)| ty.clone());
    if owner.is_some() {
        params.remove(0);
    }
    let (kind, name) = match raw.name.strip_prefix("get$") {
        Some(property) => (Kind::Property, property.to_string()),
        None if raw.name.starts_with("index$") => (Kind::Index, String::new()),
        None if raw.name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
            (Kind::Function, raw.name)
        }
        None => (Kind::Operator, raw.name),
    };
    let doc = uncommented(&raw.doc_comments);
    FunctionDoc { owner, kind, name, params, returns: raw.return_type, doc }
}

pub(super) fn uncommented(comments: &[impl AsRef<str>]) -> String {
    let lines = comments.iter().flat_map(|c| c.as_ref().lines());
    let lines: Vec<&str> = lines
        .map(|l| l.strip_prefix("///").unwrap_or(l))
        .map(|l| l.strip_prefix(' ').unwrap_or(l))
        .collect();
    lines.join("\n").trim_end().to_string()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSurface {
    custom_types: Vec<RawType>,
    functions: Vec<RawFunction>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawType {
    display_name: String,
    doc_comments: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawFunction {
    name: String,
    params: Vec<RawParam>,
    return_type: String,
    doc_comments: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawParam {
    name: Option<String>,
    #[serde(rename = "type")]
    typ: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::super::register::Package;
    use super::*;
    use rhai::{INT, Module};

    #[derive(Clone)]
    struct Thing;

    #[test]
    fn what_was_registered_is_read_back() {
        let mut module = Module::new();
        Package::new(&mut module)
            .ty::<Thing>("Thing", "A thing.\nWith more to say.")
            .getter("size(self: Thing) -> int", "How large.", |_: &mut Thing| 1 as INT)
            .index(
                "index(self: Thing, key: int|string) -> any",
                "A part.",
                |_: &mut Thing, _: INT| 1 as INT,
            )
            .func(
                "grow(self: Thing, by: int) -> Thing",
                "A larger one.",
                |t: &mut Thing, _: INT| t.clone(),
            )
            .func("<(self: Thing, other: Thing) -> bool", "Order.", |_: Thing, _: Thing| false)
            .func("make(n: int)", "Makes things.\n\nMany of them.", |_: INT| {});
        let mut engine = Engine::new_raw();
        engine.register_global_module(module.into());
        let surface = Surface::of(&engine, false);
        let want = TypeDoc { name: "Thing".into(), doc: "A thing.\nWith more to say.".into() };
        assert_eq!(surface.types, [want]);
        let told: Vec<String> = surface
            .functions
            .iter()
            .map(|f| format!("{:?} {} | {}", f.owner.as_deref(), f.signature(), f.summary()))
            .collect();
        let want = [
            "None make(n: int) | Makes things.",
            "Some(\"Thing\") size: int | How large.",
            "Some(\"Thing\") [key: int | string] -> any | A part.",
            "Some(\"Thing\") grow(by: int) -> Thing | A larger one.",
            "Some(\"Thing\") Thing < Thing -> bool | Order.",
        ];
        assert_eq!(told, want);
    }
}
