//! Rhai's errors in an author's words, with what to do about them.

use rhai::{Dynamic, EvalAltResult, LexError, ParseError, ParseErrorType};

use crate::words::nearest;

use super::data;
use super::engine::{MAX_ARRAY, MAX_CALL_LEVELS, MAX_MAP, MAX_STRING};
use super::fault::Fault;
use super::surface::{Kind, Surface};

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

fn told(message: impl Into<String>) -> Told {
    Told { message: message.into(), help: None }
}

impl Told {
    fn help(mut self, help: impl Into<String>) -> Told {
        self.help = Some(help.into());
        self
    }

    fn maybe(mut self, help: Option<String>) -> Told {
        self.help = help.or(self.help);
        self
    }
}

/// What an explanation can draw on.
pub(crate) struct Known<'a> {
    /// Everything registered, Rhai's own functions too.
    pub(crate) surface: &'a Surface,
    /// Names that the script and its modules define: functions with their numbers of parameters.
    pub(crate) functions: &'a [(String, usize)],
    /// Words of the script.
    pub(crate) words: &'a [String],
    /// Members of maps that the script was given, and what they mean or nothing.
    pub(crate) members: &'a [(String, String)],
    /// How many steps the script was allowed.
    pub(crate) operations: u64,
}

/// A Rhai type's name in an author's words.
pub(crate) fn type_name(ty: &str) -> &str {
    match ty.trim() {
        "i64" | "INT" => "int",
        "f64" | "FLOAT" => "float",
        "&str | ImmutableString | String" | "&str" | "ImmutableString" | "String" => "string",
        "Fn" | "FnPtr" => "closure",
        "()" => "nothing",
        ty if ty.contains("::") => ty.rsplit("::").next().unwrap_or(ty),
        ty => ty,
    }
}

/// Takes `foo (i64, &str | ImmutableString | String)` apart.
fn call(signature: &str) -> (&str, Vec<&str>) {
    let Some((name, rest)) = signature.split_once(" (") else {
        return (signature, Vec::new());
    };
    let inner = rest.strip_suffix(')').unwrap_or(rest);
    let types = inner.split(", ").filter(|t| !t.is_empty()).map(type_name).collect();
    (name, types)
}

impl Known<'_> {
    /// An error of a running script; `error` is the innermost one.
    pub(crate) fn error(&self, error: &EvalAltResult) -> Told {
        use EvalAltResult as E;
        match error {
            E::ErrorParsing(why, _) => self.parse(why),
            E::ErrorRuntime(value, _) => thrown(value),
            E::ErrorFunctionNotFound(signature, _) => self.no_function(signature),
            E::ErrorVariableNotFound(name, _) => self.no_variable(name),
            E::ErrorPropertyNotFound(name, _) => {
                told(format!("the map has no property \"{name}\""))
                    .help(format!("ask with `\"{name}\" in map` before, or look at map.keys()"))
                    .maybe(self.nearest_member(name))
            }
            E::ErrorDotExpr(text, _) => self.no_property(text),
            E::ErrorIndexingType(text, _) => no_index(text),
            E::ErrorArrayBounds(len, index, _) => out_of_bounds("array", "element", *len, *index),
            E::ErrorStringBounds(len, index, _) => out_of_bounds("string", "character", *len, *index),
            E::ErrorIndexNotFound(index, _) => told(format!("there is nothing at index {index}")),
            E::ErrorModuleNotFound(name, _) => told(format!("there is no module \"{name}\"")),
            E::ErrorDataRace(..) => data_race(),
            E::ErrorMismatchDataType(want, found, _) => mismatch(want, found),
            E::ErrorMismatchOutputType(want, found, _) => mismatch(want, found),
            E::ErrorTooManyOperations(_) => told(format!(
                "the script did not come to an end after {} steps",
                self.operations
            ))
            .help("is there a loop that never ends? Waiting with sleep(..) or t.hold(..) costs no steps"),
            E::ErrorStackOverflow(_) => told(format!(
                "functions call each other more than {} deep",
                MAX_CALL_LEVELS
            ))
            .help("is there a function that calls itself without an end?"),
            E::ErrorDataTooLarge(what, _) => too_large(what),
            E::ErrorTooManyVariables(_) => told("too many variables are defined at once"),
            E::ErrorTooManyModules(_) => told("too many modules are imported"),
            E::ErrorNonPureMethodCallOnConstant(name, _) => {
                told(format!("{} would change a constant", display_name(name)))
            }
            E::ErrorAssignmentToConstant(name, _) => {
                told(format!("{name} is a constant and cannot be assigned to"))
            }
            E::ErrorFor(_) => told("`for` needs something to go through: an array, a range, a map"),
            E::ErrorUnboundThis(_) => told("`this` means nothing here"),
            E::ErrorArithmetic(text, _) => told(text.clone()),
            other => {
                let mut bare = other.to_string();
                if let Some(at) = bare.rfind(" (line ") {
                    bare.truncate(at);
                }
                told(bare)
            }
        }
    }

    /// A script that does not compile.
    pub(crate) fn compile(&self, error: &ParseError) -> Told {
        self.parse(error.err_type())
    }

    fn parse(&self, why: &ParseErrorType) -> Told {
        use ParseErrorType as P;
        match why {
            P::VariableUndefined(name) => self.no_variable(name),
            P::ModuleUndefined(name) => told(format!("there is no module called {name} here"))
                .help(format!("import it first: import \"..\" as {name};")),
            P::Reserved(name) => reserved(name),
            P::BadInput(LexError::ImproperSymbol(symbol, _)) => reserved(symbol),
            P::BadInput(LexError::UnterminatedString) => told("the string has no end")
                .help("close it with \"; a text of several lines stands between backticks"),
            P::BadInput(LexError::UnexpectedInput(what)) => {
                let told = told(format!("'{what}' is unexpected here"));
                match !what.is_ascii() {
                    true => told.help(
                        "names are made of a-z, A-Z, 0-9 and _; other letters stand in strings",
                    ),
                    false => told,
                }
            }
            P::MissingToken(token, what) => told(format!("'{token}' is missing {what}")),
            P::AssignmentToConstant(name) => {
                told(format!("{name} is a constant and cannot be assigned to"))
            }
            P::AssignmentToInvalidLHS(_) => told("this cannot be assigned to")
                .help("the result of a call is no place: keep it in a variable, or use a method"),
            P::DuplicatedProperty(name) => told(format!("the map has \"{name}\" twice")),
            P::ExprTooDeep => told("the expression is nested too deeply"),
            other => {
                let text = other.to_string();
                let mut chars = text.chars();
                let first = chars.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default();
                told(format!("{first}{}", chars.as_str()))
            }
        }
    }

    /// The member of a scheduler's statistics that may be meant.
    fn nearest_member(&self, name: &str) -> Option<String> {
        let near = nearest(name, self.members.iter().map(|(member, _)| member.as_str()))?;
        if near == name {
            return None;
        }
        let meaning = self.members.iter().find(|(member, _)| member == near).map(|(_, m)| m);
        Some(match meaning.filter(|meaning| !meaning.is_empty()) {
            Some(meaning) => format!("did you mean {near} ({meaning})?"),
            None => format!("did you mean {near}?"),
        })
    }

    fn no_variable(&self, name: &str) -> Told {
        let told = told(format!("there is no variable called {name} here"));
        if self.function_names().any(|f| f == name) {
            let help = format!("{name} is a function: call it, {name}(..), or pass |x| {name}(x)");
            return told.help(help);
        }
        let others = self.words.iter().map(String::as_str).filter(|w| *w != name);
        let near = nearest(name, others.chain(self.function_names()));
        told.maybe(near.map(|near| format!("did you mean {near}?")))
    }

    fn function_names(&self) -> impl Iterator<Item = &str> {
        let registered = self.surface.functions.iter();
        registered
            .filter(|f| f.kind == Kind::Function)
            .map(|f| f.name.as_str())
            .chain(self.functions.iter().map(|(name, _)| name.as_str()))
    }

    fn no_function(&self, signature: &str) -> Told {
        let (qualified, types) = call(signature);
        let given = types.join(", ");
        if qualified.starts_with("anon$") {
            let n = match types.len() {
                0 => "no argument".to_string(),
                1 => format!("1 argument ({given})"),
                n => format!("{n} arguments ({given})"),
            };
            return told(format!("a closure was called with {n}, but takes another number"))
                .help("give it as many parameters between its bars: |a, b| ..");
        }
        if !qualified.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            return operator(qualified, &types);
        }
        let name = qualified.rsplit("::").next().unwrap_or(qualified);
        let told = told(format!("there is no function {qualified}({given})"));
        let receiver = types.first().copied();
        let is_ours = self.surface.types.iter().any(|t| Some(t.name.as_str()) == receiver);
        let same = self.signatures(name, receiver, is_ours);
        if !same.is_empty() {
            return told.help(format!("there is {}", same.join(", ")));
        }
        if qualified != name {
            let near = nearest(name, self.functions.iter().map(|(name, _)| name.as_str()));
            return told.maybe(near.map(|near| format!("did you mean {near}?")));
        }
        told.maybe(self.nearest_function(name, receiver))
    }

    /// How functions of this name are called; those of the receiver's type when there are any.
    /// What other types have is no help for a receiver of ours (`is_ours`).
    fn signatures(&self, name: &str, receiver: Option<&str>, is_ours: bool) -> Vec<String> {
        let named: Vec<_> = self
            .surface
            .functions
            .iter()
            .filter(|f| f.kind == Kind::Function && f.name == name && !f.doc.is_empty())
            .collect();
        let own = named.iter().filter(|f| f.owner.is_some() && f.owner.as_deref() == receiver);
        let own: Vec<String> = own.map(|f| format!("x.{}", f.signature())).collect();
        if !own.is_empty() {
            return own;
        }
        let mut out: Vec<String> = named
            .iter()
            .filter(|f| !is_ours || f.owner.is_none())
            .map(|f| match &f.owner {
                Some(owner) => format!("{} of {owner}", f.signature()),
                None => f.signature(),
            })
            .collect();
        out.extend(self.functions.iter().filter(|(n, _)| n == name).map(
            |(n, params)| match params {
                1 => format!("{n}(..) with 1 parameter"),
                params => format!("{n}(..) with {params} parameters"),
            },
        ));
        out.truncate(4);
        out
    }

    fn nearest_function(&self, name: &str, receiver: Option<&str>) -> Option<String> {
        let of_receiver = self
            .surface
            .functions
            .iter()
            .filter(|f| f.owner.is_some() && f.owner.as_deref() == receiver);
        let own = nearest(name, of_receiver.clone().map(|f| f.name.as_str()));
        if let Some(near) = own {
            let found = of_receiver.clone().find(|f| f.name == near)?;
            return Some(match found.kind == Kind::Property && near == name {
                true => format!("it is a property: x.{name}, without parentheses"),
                false => format!("did you mean x.{}?", found.signature()),
            });
        }
        nearest(name, self.function_names()).map(|near| format!("did you mean {near}?"))
    }

    /// `Unknown property 'x' - a getter is not registered for type 'array'`
    fn no_property(&self, text: &str) -> Told {
        let quoted: Vec<&str> = text.split('\'').collect();
        let (Some(name), Some(ty)) = (quoted.get(1), quoted.get(3)) else {
            return told(text);
        };
        let ty = type_name(ty);
        if text.starts_with("No writable property") {
            return told(format!("the property \"{name}\" of {ty} cannot be set"));
        }
        if !text.starts_with("Unknown property") {
            return told(text);
        }
        let article = if ty.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let told = told(format!("{article} {ty} has no property \"{name}\""));
        let members = self.surface.functions.iter().filter(|f| f.owner.as_deref() == Some(ty));
        if let Some(method) = members.clone().find(|f| f.kind == Kind::Function && f.name == *name)
        {
            return told.help(format!("it is a method: {}", method.signature()));
        }
        let near = nearest(name, members.clone().map(|f| f.name.as_str()));
        let near = near.and_then(|near| members.clone().find(|f| f.name == near));
        told.maybe(near.map(|f| format!("did you mean {}?", f.signature())))
    }
}

/// What a script, or one of our functions, threw.
fn thrown(value: &Dynamic) -> Told {
    if let Some(fault) = value.read_lock::<Fault>() {
        return told(fault.message.clone());
    }
    if let Some(error) = data::error_of(value) {
        return told(error.to_string());
    }
    if value.is_unit() {
        return told("the script threw without saying what");
    }
    match value.clone().into_immutable_string() {
        Ok(text) => told(text.as_str()),
        Err(_) => told(format!("the script threw {value}")),
    }
}

fn out_of_bounds(what: &str, part: &str, len: usize, index: i64) -> Told {
    let parts = match len {
        0 => format!("the {what} is empty"),
        1 => format!("the {what} has 1 {part}"),
        n => format!("the {what} has {n} {part}s, counted from 0"),
    };
    told(format!("there is nothing at index {index}: {parts}"))
}

fn data_race() -> Told {
    told("a closure uses a value that the call around it holds").help(
        "take it from the closure's arguments instead of capturing it, as in \
         t.every(\"1s\", |t, i| ..), or copy what it needs into a variable before",
    )
}

fn mismatch(want: &str, found: &str) -> Told {
    let want = match type_name(want) {
        "" => "another type",
        want => want,
    };
    match type_name(found) {
        "" => told(format!("expected {want}")),
        found => told(format!("expected {want}, found {found}")),
    }
}

/// `Size of array/BLOB`, `Length of string`, `Size of object map`.
fn too_large(what: &str) -> Told {
    let limit = match what {
        what if what.contains("string") => format!("a text is longer than {MAX_STRING} bytes"),
        what if what.contains("map") => format!("a map has more than {MAX_MAP} properties"),
        _ => format!("an array has more than {MAX_ARRAY} elements"),
    };
    told(format!("{limit}, which is more than scripts may have"))
}

/// `&str [i64]`, or the name of a type.
fn no_index(text: &str) -> Told {
    match text.split_once(" [") {
        Some((ty, index)) => {
            let index = type_name(index.trim_end_matches(']'));
            told(format!("a {} cannot be indexed with {index}", type_name(ty)))
        }
        None => told(format!("a {} cannot be indexed", type_name(text))),
    }
}

fn operator(sign: &str, types: &[&str]) -> Told {
    match types {
        [left, right] => {
            let told = told(format!("`{left} {sign} {right}` means nothing"));
            match (*left, *right) {
                ("string", "int" | "float") | ("int" | "float", "string") => {
                    told.help("read a number with parse_int(text), or write one with to_string(n)")
                }
                ("int", "float") | ("float", "int") => {
                    told.help("convert with to_float() or to_int()")
                }
                _ => told,
            }
        }
        [one] => told(format!("`{sign}{one}` means nothing")),
        _ => told(format!("the operator {sign} cannot be used so")),
    }
}

fn reserved(name: &str) -> Told {
    if name == "eval" {
        return told("eval(..) is not available: code in a string has no line to point at");
    }
    let told = told(format!("{name} is a word of the language and cannot be used as a name"));
    if name.starts_with(|c: char| c.is_alphabetic()) {
        told.help(format!(
            "choose another; a member of that name is reached with brackets: x[\"{name}\"]"
        ))
    } else {
        told
    }
}

/// `get$x` as a property's name.
fn display_name(name: &str) -> String {
    match name.strip_prefix("get$").or_else(|| name.strip_prefix("set$")) {
        Some(property) => format!("the property {property}"),
        None => format!("{name}(..)"),
    }
}
