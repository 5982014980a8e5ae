//! What could stand next in an input: variables, members by the type of what they belong to, names
//! of maps, globals and members from the newest snapshot and its BTF, modules, files.
//!
//! Nothing with an effect is evaluated for it. A receiver is looked up when it is a variable; what
//! follows is evaluated where it only reads a snapshot (`snap.map("m").at(0)`), and everywhere else
//! the type that the reference names for a call's result has to do.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rhai::{Dynamic, Scope};

use super::{Interactive, text};
use crate::scenario::text::clean;
use crate::script::data;
use crate::script::explain::type_name;
use crate::script::modules::STDLIB;
use crate::script::source::{Tokens, open_quote};
use crate::script::surface::{FunctionDoc, Kind};
use crate::script::vm::Vm;
use crate::snapshot::{Entry, Field, Map, Sched, Snapshot};

/// Something that could stand next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// What to insert.
    pub text: String,
    /// How to list it.
    pub shown: String,
}

impl Candidate {
    /// A name with what closes it, which is inserted with it.
    fn closed(name: &str, close: &str) -> Candidate {
        Candidate { text: format!("{name}{close}"), shown: name.to_owned() }
    }
}

/// Calls that only read a snapshot.
const READING: [&str; 14] = [
    "active",
    "as_array",
    "at",
    "cpu",
    "get",
    "global",
    "globals",
    "key",
    "keys",
    "live_global",
    "map",
    "maps",
    "members",
    "sched",
];
/// Functions of Rhai's own that stand alone.
const STANDARD: [&str; 6] = ["debug", "parse_float", "parse_int", "print", "range", "type_of"];
/// Elements of an array that is looked into.
const LOOKED_INTO: usize = 10_000;
/// Files of a directory that are offered.
const FILES: usize = 1000;

/// One token and where it begins.
type Tok<'a> = (usize, &'a str);

/// One step of `a.b(1)[2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'t, 'a> {
    /// `a`, `.b`
    Name(&'a str),
    /// `.b(..)` with its arguments.
    Call(&'a str, &'t [Tok<'a>]),
    /// `[..]`
    Index(&'t [Tok<'a>]),
}

/// What is known about a receiver.
enum Known {
    Value(Dynamic),
    /// The name of its type.
    Type(String),
}

impl Interactive {
    /// What could stand at the end of `input`: where the part begins that it replaces, and the
    /// candidates. With `rest`, something follows the cursor already, and nothing is closed.
    #[must_use]
    pub fn complete(&self, input: &str, rest: bool) -> (usize, Vec<Candidate>) {
        let tokens: Vec<Tok<'_>> = Tokens::new(input).collect();
        if let Some(&(at, token)) = tokens.last()
            && let Some(quote) = open_quote(token)
        {
            if quote != '"' {
                return (input.len(), Vec::new());
            }
            let (start, mut found) =
                self.in_string(at + 1, &token[1..], &tokens[..tokens.len() - 1]);
            if rest {
                found.iter_mut().for_each(|c| c.text.truncate(c.shown.len()));
            }
            return (start, found);
        }
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        let start = input.trim_end_matches(inside).len();
        let word = &input[start..];
        let before: Vec<Tok<'_>> = tokens.into_iter().filter(|(at, _)| *at < start).collect();
        if word.starts_with(|c: char| c.is_ascii_digit()) || in_comment(input) {
            return (input.len(), Vec::new());
        }
        let found = match before.as_slice() {
            [receiver @ .., (_, ".")] => match self.known(receiver) {
                Some(known) => self.members(&known),
                None => Vec::new(),
            },
            [.., (_, alias), (_, ":"), (_, ":")] => self.of_module(alias),
            _ => self.names(),
        };
        let mut found: Vec<Candidate> =
            found.into_iter().filter(|c| c.text.starts_with(word)).collect();
        found.sort();
        // Of several ways to call something, the one that takes something says enough.
        found.dedup_by(|next, kept| {
            let (next, kept) = (next.text.as_str(), kept.text.as_str());
            next == kept || next.strip_suffix(')') == Some(kept)
        });
        (start, found)
    }

    /// Everything that can stand alone.
    fn names(&self) -> Vec<Candidate> {
        let word = |name: &str| Candidate::closed(name, "");
        let mut out: Vec<Candidate> = self.variables().iter().map(|v| word(&v.name)).collect();
        out.extend(text::keywords().map(word));
        out.extend(self.functions.iter().map(|(name, params)| callable(name, *params > 0)));
        out.extend(self.modules.keys().map(|alias| Candidate::closed(alias, "::")));
        out.extend(self.ours.of_type(None).filter(|f| is_offered(f)).map(member));
        out.extend(STANDARD.iter().map(|name| callable(name, true)));
        out
    }

    fn of_module(&self, alias: &str) -> Vec<Candidate> {
        let functions = self.modules.get(alias).into_iter().flatten();
        functions.map(|(name, params)| callable(name, *params > 0)).collect()
    }

    /// What can follow the dot behind a receiver.
    fn members(&self, known: &Known) -> Vec<Candidate> {
        let mut out = Vec::new();
        let ty = match known {
            Known::Type(ty) => ty.clone(),
            Known::Value(value) => {
                let own = own_members(value).into_iter();
                // A member whose name is Rhai's own is reached with brackets.
                let plain = own.filter(|name| !text::is_keyword(name) && is_name(name));
                out.extend(plain.map(|name| Candidate::closed(&name, "")));
                self.type_name(value)
            }
        };
        out.extend(self.ours.of_type(Some(&ty)).filter(|f| is_offered(f)).map(member));
        if self.ours.types.iter().any(|t| t.name == ty) {
            return out;
        }
        // Rhai's own types have functions whose first parameter is of that type.
        let standard =
            self.all.functions.iter().filter(|f| {
                f.owner.is_none() && is_offered(f) && first_type(f) == Some(ty.as_str())
            });
        out.extend(standard.map(|f| callable(&f.name, f.params.len() > 1)));
        out
    }

    /// What could stand in the string that begins behind `before` and goes so far.
    fn in_string(&self, start: usize, typed: &str, before: &[Tok<'_>]) -> (usize, Vec<Candidate>) {
        let found = match before {
            [receiver @ .., (_, "."), (_, name), (_, "(")] => {
                self.known(receiver).and_then(|known| self.argument(&known, name, typed))
            }
            [.., (_, "import")] => Some(self.importable()),
            [receiver @ .., (_, "[")] if is_value_end(receiver) => match self.known(receiver) {
                Some(Known::Value(value)) => Some(paths(&value, typed, "\"]")),
                _ => Some(Vec::new()),
            },
            _ if is_list_of_maps(before) => Some(self.map_names("\"")),
            _ => None,
        };
        match found {
            Some(found) => {
                let fits = |c: &Candidate| c.shown.starts_with(typed) && clean(&c.shown) == c.shown;
                let mut found: Vec<Candidate> = found
                    .into_iter()
                    .filter(fits)
                    .filter(|c| !c.shown.contains(['"', '\\']))
                    .collect();
                found.sort();
                found.dedup();
                (start, found)
            }
            None => files(start, typed),
        }
    }

    /// The first argument of a method, where its values are known.
    fn argument(&self, known: &Known, method: &str, typed: &str) -> Option<Vec<Candidate>> {
        let ty = match known {
            Known::Type(ty) => ty.clone(),
            Known::Value(value) => self.type_name(value),
        };
        let value = match known {
            Known::Value(value) => Some(value),
            Known::Type(_) => None,
        };
        let closed = |names: Vec<String>| -> Vec<Candidate> {
            names.iter().map(|name| Candidate::closed(name, "\")")).collect()
        };
        match (ty.as_str(), method) {
            ("Snapshot", "map") => {
                let names = value.and_then(snapshot_of).map(|s| map_names(&s));
                Some(names.map_or_else(|| self.map_names("\")"), closed))
            }
            ("Snapshot", "global" | "globals") => {
                let snapshot = value.and_then(snapshot_of).or_else(|| self.newest.clone());
                Some(snapshot.map_or_else(Vec::new, |s| globals(&s, typed)))
            }
            ("Snapshot", "sched") => {
                let snapshot = value.and_then(snapshot_of).or_else(|| self.newest.clone());
                let all = snapshot.map(|s| s.scheds().unwrap_or_default()).unwrap_or_default();
                Some(closed(all.iter().filter_map(|s| Some(s.path().ok()?.to_owned())).collect()))
            }
            ("SnapshotSched", "global") => {
                let sched = value.and_then(|value| Some(value.read_lock::<Sched>()?.clone()));
                let maps = sched.and_then(|sched| sched.maps().ok());
                Some(maps.map_or_else(Vec::new, |maps| variables(maps, typed)))
            }
            ("Snapshot", "live_global") => {
                let snapshot = value.and_then(snapshot_of).or_else(|| self.newest.clone());
                Some(snapshot.map_or_else(Vec::new, |s| live_globals(&s, typed)))
            }
            ("SnapshotEntry", "get" | "cpu_sum" | "cpu_max" | "cpu_min")
            | ("SnapshotField", "get") => {
                Some(value.map_or_else(Vec::new, |value| paths(value, typed, "\")")))
            }
            ("Vm", "snapshot") => {
                let taken = self.lab.as_ref().map(|lab| lab.snapshots()).unwrap_or_default();
                Some(closed(taken.iter().map(|s| s.tag().to_owned()).collect()))
            }
            ("Vm", "cgroup") => {
                Some(closed(self.lab.as_ref().map(|lab| lab.cgroups()).unwrap_or_default()))
            }
            ("SampleSeries", "stats") => {
                let paths = self.session.lock().statistics.paths(typed).into_iter();
                let close = |ends| if ends { "\")" } else { "" };
                Some(paths.map(|(path, ends)| Candidate::closed(&path, close(ends))).collect())
            }
            ("Snapshot", "save") => None,
            // Other texts of ours are no files.
            ("Vm" | "Snapshot" | "SnapshotMap" | "SnapshotSched" | "Cgroup" | "Scheduler", _) => {
                Some(Vec::new())
            }
            _ => None,
        }
    }

    fn map_names(&self, close: &str) -> Vec<Candidate> {
        let names = self.newest.as_ref().map(map_names).unwrap_or_default();
        names.iter().map(|name| Candidate::closed(name, close)).collect()
    }

    fn importable(&self) -> Vec<Candidate> {
        let own = STDLIB.iter().map(|(name, _)| (*name).to_owned());
        let beside = crate::script::modules::modules_below(Path::new(""));
        own.chain(beside).map(|name| Candidate::closed(&name, "\" as ")).collect()
    }

    /// What the chain is that ends with the last token.
    fn known(&self, tokens: &[Tok<'_>]) -> Option<Known> {
        let steps = steps(tokens)?;
        let (root, rest) = steps.split_first()?;
        let root = match root {
            Step::Name(name) => self.element(tokens, name).or_else(|| self.variable(name))?,
            Step::Call(name, _) => self.result(None, name, Kind::Function)?,
            Step::Index(_) => return None,
        };
        rest.iter().try_fold(root, |now, step| self.step(now, step))
    }

    fn variable(&self, name: &str) -> Option<Known> {
        let value = self.scope.get(name)?;
        let long = value.as_array_ref().is_ok_and(|array| array.len() > LOOKED_INTO);
        Some(match long {
            true => Known::Type("array".into()),
            false => Known::Value(value.flatten_clone()),
        })
    }

    /// What a closure's parameter stands for in `map.find(|name| ..)`, or a loop's variable in
    /// `for name in map {`: any element shows what all have.
    fn element(&self, tokens: &[Tok<'_>], name: &str) -> Option<Known> {
        let of = (0..tokens.len()).rev().find_map(|end| match &tokens[..end] {
            [of @ .., (_, "."), _, (_, "("), (_, "|"), (_, p), (_, "|")] if *p == name => Some(of),
            [rest @ .., (_, "{")] => {
                let start = rest.iter().rposition(|(_, token)| *token == "in")?;
                let (head, of) = (&rest[..start], &rest[start + 1..]);
                matches!(head, [.., (_, "for"), (_, p)] if *p == name).then_some(of)
            }
            _ => None,
        })?;
        let Known::Value(value) = self.known(of)? else { return None };
        let first = match value.is_array() {
            true => Step::Index(&[(0, "0")]),
            false => Step::Call("at", &[(0, "0")]),
        };
        self.read(&value, &first).map(Known::Value)
    }

    fn step(&self, now: Known, step: &Step<'_, '_>) -> Option<Known> {
        let ty = match now {
            Known::Value(value) => match self.read(&value, step) {
                Some(value) => return Some(Known::Value(value)),
                None => self.type_name(&value),
            },
            Known::Type(ty) => ty,
        };
        match step {
            Step::Name(name) => self.result(Some(&ty), name, Kind::Property),
            Step::Call(name, _) => self.result(Some(&ty), name, Kind::Function),
            Step::Index(_) => self.result(Some(&ty), "", Kind::Index),
        }
    }

    /// What a step gives, where it only reads what was captured.
    fn read(&self, value: &Dynamic, step: &Step<'_, '_>) -> Option<Dynamic> {
        if let (Step::Call(name, []), true) = (step, value.is::<Vm>()) {
            return self.session.lock().statistics.last(name).cloned().map(data::json);
        }
        let plain = value.is_map() || value.is_array();
        let captured = value.is::<Arc<Snapshot>>()
            || value.is::<Map>()
            || value.is::<Sched>()
            || value.is::<Entry>()
            || value.is::<Field>();
        let text = match step {
            Step::Name(name) if captured || value.is_map() => format!("x.{name}"),
            Step::Call(name, args) if captured && READING.contains(name) => {
                format!("x.{name}({})", literals(args)?)
            }
            Step::Index(args) if captured || plain => format!("x[{}]", literals(args)?),
            _ => return None,
        };
        let mut scope = Scope::new();
        scope.push_dynamic("x", value.clone());
        self.engine.eval_expression_with_scope::<Dynamic>(&mut scope, &text).ok()
    }

    /// The type that a member gives according to the reference.
    fn result(&self, owner: Option<&str>, name: &str, kind: Kind) -> Option<Known> {
        let mut named = self.ours.of_type(owner).filter(|f| f.name == name && f.kind == kind);
        let first = named.next()?.returns.split('|').next()?.trim().to_owned();
        (!first.is_empty() && first != "any").then_some(Known::Type(first))
    }
}

/// The chain of names, calls and indices that ends with the last token, root first.
fn steps<'t, 'a>(tokens: &'t [Tok<'a>]) -> Option<Vec<Step<'t, 'a>>> {
    let mut out = Vec::new();
    let mut end = tokens.len();
    loop {
        let last = tokens.get(end.checked_sub(1)?)?.1;
        match last {
            ")" | "]" => {
                let open = opening(&tokens[..end])?;
                let inner = &tokens[open + 1..end - 1];
                if last == "]" {
                    out.push(Step::Index(inner));
                    end = open;
                    continue;
                }
                let name = tokens.get(open.checked_sub(1)?)?.1;
                if !is_name(name) {
                    return None;
                }
                out.push(Step::Call(name, inner));
                end = open - 1;
            }
            name if is_name(name) => {
                out.push(Step::Name(name));
                end -= 1;
            }
            _ => return None,
        }
        match tokens[..end].last() {
            Some((_, ".")) => end -= 1,
            // A module's function: nothing is known about its result.
            Some((_, ":")) if tokens[..end].iter().rev().nth(1).is_some_and(|t| t.1 == ":") => {
                return None;
            }
            _ => break,
        }
    }
    out.reverse();
    Some(out)
}

/// Where the bracket was opened that the last token closes.
fn opening(tokens: &[Tok<'_>]) -> Option<usize> {
    let mut depth = 0usize;
    for (i, (_, token)) in tokens.iter().enumerate().rev() {
        match *token {
            ")" | "]" | "}" => depth += 1,
            "(" | "[" | "{" | "#{" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

/// The arguments as text, if all are single literals.
fn literals(args: &[Tok<'_>]) -> Option<String> {
    let is_literal = |token: &str| {
        token.starts_with(|c: char| c == '"' || c.is_ascii_digit())
            || matches!(token, "," | "-" | "true" | "false")
    };
    let all = args.iter().all(|(_, token)| is_literal(token));
    all.then(|| args.iter().map(|(_, token)| *token).collect())
}

/// Whether `[` behind these tokens is an index, rather than the start of an array.
fn is_value_end(tokens: &[Tok<'_>]) -> bool {
    tokens.last().is_some_and(|(_, token)| matches!(*token, ")" | "]") || is_name(token))
}

/// Whether the tokens end inside of `maps: [`.
fn is_list_of_maps(tokens: &[Tok<'_>]) -> bool {
    let open = tokens.iter().rposition(|(_, token)| *token == "[");
    let closed = tokens.iter().rposition(|(_, token)| *token == "]");
    let Some(open) = open.filter(|open| closed.is_none_or(|closed| closed < *open)) else {
        return false;
    };
    matches!(&tokens[..open], [.., (_, "maps"), (_, ":")])
}

fn in_comment(input: &str) -> bool {
    text::pieces(input).last().is_some_and(|(_, piece)| *piece == super::Piece::Comment)
        && !input.ends_with('\n')
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Not what is only there to say that it is not, and not what Rhai calls by itself.
fn is_offered(function: &FunctionDoc) -> bool {
    matches!(function.kind, Kind::Function | Kind::Property)
        && !function.doc.contains("Not available yet")
        && !function.doc.starts_with("Refused")
        && !matches!(function.name.as_str(), "to_string" | "to_debug" | "print" | "debug")
}

fn member(function: &FunctionDoc) -> Candidate {
    match function.kind {
        Kind::Property => Candidate::closed(&function.name, ""),
        _ => callable(&function.name, !function.params.is_empty()),
    }
}

fn callable(name: &str, takes_some: bool) -> Candidate {
    let text = if takes_some { format!("{name}(") } else { format!("{name}()") };
    Candidate { shown: text.clone(), text }
}

/// The type of a function's first parameter in an author's words.
fn first_type(function: &FunctionDoc) -> Option<&str> {
    let (_, ty) = function.params.first()?;
    let ty = type_name(ty.strip_prefix("&mut ").unwrap_or(ty));
    Some(match ty {
        "Array" => "array",
        "Map" => "map",
        "Blob" => "blob",
        ty => ty,
    })
}

fn snapshot_of(value: &Dynamic) -> Option<Arc<Snapshot>> {
    value.read_lock::<Arc<Snapshot>>().map(|s| s.clone())
}

fn map_names(snapshot: &Arc<Snapshot>) -> Vec<String> {
    snapshot.maps().unwrap_or_default().iter().map(|map| map.name().to_owned()).collect()
}

/// What a value's own data has members of.
fn own_members(value: &Dynamic) -> Vec<String> {
    if let Ok(map) = value.as_map_ref() {
        return map.keys().map(|key| key.to_string()).collect();
    }
    field_of(value).and_then(|field| field.members().ok()).unwrap_or_default()
}

/// The field that paths in a value begin at.
fn field_of(value: &Dynamic) -> Option<Field> {
    if let Some(entry) = value.read_lock::<Entry>() {
        // Of a per-CPU value any CPU's has the members.
        return entry.value().or_else(|_| entry.cpu(0)?.value()).ok();
    }
    value.read_lock::<Field>().map(|field| field.clone())
}

/// Global variables, and paths below them.
fn globals(snapshot: &Arc<Snapshot>, typed: &str) -> Vec<Candidate> {
    variables(snapshot.maps().unwrap_or_default(), typed)
}

/// The same of live schedulers; all of them where it is not known which are live.
fn live_globals(snapshot: &Arc<Snapshot>, typed: &str) -> Vec<Candidate> {
    let live = snapshot.live_maps();
    if live.is_empty() {
        return globals(snapshot, typed);
    }
    let maps = snapshot.maps().unwrap_or_default().into_iter().zip(live);
    variables(maps.filter(|(_, live)| *live).map(|(map, _)| map).collect(), typed)
}

fn variables(maps: Vec<Map>, typed: &str) -> Vec<Candidate> {
    let sections = maps.into_iter().filter(Map::is_section);
    let values = sections.filter_map(|section| section.at(0).ok()?.value().ok());
    values.flat_map(|value| below(&value, typed, "\")")).collect()
}

fn paths(value: &Dynamic, typed: &str, close: &str) -> Vec<Candidate> {
    field_of(value).map_or_else(Vec::new, |field| below(&field, typed, close))
}

/// Paths that go on from the last dot of what is typed; those that end at a leaf are closed.
fn below(field: &Field, typed: &str, close: &str) -> Vec<Candidate> {
    let (base, at) = match typed.rsplit_once('.') {
        Some((base, _)) => (format!("{base}."), field.get(base).ok()),
        None => (String::new(), Some(field.clone())),
    };
    let Some(at) = at else { return Vec::new() };
    let names: BTreeSet<String> = at.members().unwrap_or_default().into_iter().collect();
    let candidate = |name: &String| {
        let leaf = at.get(name).is_ok_and(|member| member.kind().is_leaf());
        Candidate::closed(&format!("{base}{name}"), if leaf { close } else { "" })
    };
    names.iter().filter(|name| !name.is_empty()).map(candidate).collect()
}

/// Files whose names go on from what is typed.
fn files(start: usize, typed: &str) -> (usize, Vec<Candidate>) {
    let (dir, name) = match typed.rfind('/') {
        Some(at) => typed.split_at(at + 1),
        None => ("", typed),
    };
    let within = if dir.is_empty() { "." } else { dir };
    let entries = std::fs::read_dir(within).into_iter().flatten().flatten().take(FILES);
    let mut found: Vec<Candidate> = entries
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let hidden = file.starts_with('.') && !name.starts_with('.');
            let odd = clean(&file) != file || file.contains(['"', '\\']);
            if hidden || odd || !file.starts_with(name) {
                return None;
            }
            let slash = if entry.path().is_dir() { "/" } else { "" };
            let shown = format!("{file}{slash}");
            Some(Candidate { text: shown.clone(), shown })
        })
        .collect();
    found.sort();
    (start + dir.len(), found)
}

impl Interactive {
    /// Files whose names go on from `typed`, which begins at `start`.
    #[must_use]
    pub fn files(start: usize, typed: &str) -> (usize, Vec<Candidate>) {
        files(start, typed)
    }
}
