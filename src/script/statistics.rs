//! The scheduler's own statistics: how a script asks for them, and what is known of their names
//! since, for errors and for completion.

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Dynamic, Map, NativeCallContext};
use serde_json::Value;

use super::data;
use super::fault::{Fault, Native};
use super::register::Package;
use super::session::Session;
use super::values::described;
use super::vm::Vm;
use crate::scenario::stats::TOP;
use crate::scenario::text::clean;
use crate::snapshot::{MissingStatsReason, Snapshot, SnapshotError};

/// Names that are remembered, and the bytes of each and of what it means.
const MOST_NAMES: usize = 1000;
const NAME: usize = 64;
const MEANING: usize = 200;

/// What schedulers have told of themselves so far.
#[derive(Default)]
pub(crate) struct Told {
    /// The last answers to `t.stats()` and `t.stats_meta()`, by the call.
    last: BTreeMap<&'static str, Value>,
    /// Names of fields, and of members of other maps that a script was given, each with what it
    /// means as far as that was told.
    names: BTreeMap<String, String>,
}

impl Told {
    /// The last answer to a call.
    pub(crate) fn last(&self, call: &str) -> Option<&Value> {
        self.last.get(call)
    }

    /// Names of fields, each with what it means or nothing.
    pub(crate) fn names(&self) -> Vec<(String, String)> {
        self.names.iter().map(|(name, meaning)| (name.clone(), meaning.clone())).collect()
    }

    /// Paths that go on from the last dot of what is typed, each with whether it ends there.
    pub(crate) fn paths(&self, typed: &str) -> Vec<(String, bool)> {
        let (base, parts) = match typed.rsplit_once('.') {
            Some((base, _)) => (format!("{base}."), base.split('.').collect()),
            None => (String::new(), Vec::new()),
        };
        let at = parts.iter().try_fold(self.last.get("stats"), |at, part| Some(at?.get(part)));
        let members = at.flatten().and_then(Value::as_object).into_iter().flatten();
        members
            .map(|(name, value)| {
                let ends = !matches!(value, Value::Object(_) | Value::Array(_));
                (format!("{base}{name}"), ends)
            })
            .collect()
    }

    fn learn(&mut self, name: &str, meaning: &str) {
        if name.len() > NAME {
            return;
        }
        let room = self.names.len() < MOST_NAMES;
        let meaning = || {
            let line = clean(meaning).split_whitespace().collect::<Vec<_>>().join(" ");
            line.chars().take(MEANING).collect::<String>()
        };
        match self.names.get_mut(name) {
            Some(known) if known.is_empty() => *known = meaning(),
            Some(_) => {}
            None if room => drop(self.names.insert(name.to_owned(), meaning())),
            None => {}
        }
    }

    /// Every name in an answer.
    fn learn_answer(&mut self, value: &Value) {
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                self.learn(name, "");
                self.learn_answer(value);
            }),
            Value::Array(items) => items.iter().for_each(|item| self.learn_answer(item)),
            _ => {}
        }
    }

    /// Every name in a map that a script is given.
    fn learn_map(&mut self, map: &Map) {
        for (name, value) in map {
            self.learn(name, "");
            if let Some(inner) = value.read_lock::<Map>() {
                self.learn_map(&inner);
            }
        }
    }

    /// The fields of each structure that the scheduler describes: `{"Metrics": {"fields":
    /// {"nr_running": {"desc": ".."}}}}`.
    fn learn_meta(&mut self, value: &Value) {
        let structures = value.as_object().into_iter().flatten();
        let fields = structures.filter_map(|(_, s)| s.get("fields")?.as_object()).flatten();
        for (name, field) in fields {
            let meaning = field.get("desc").and_then(Value::as_str).unwrap_or_default();
            self.learn(name, meaning);
        }
    }
}

/// Statistics as a script has them, whose names are remembered.
pub(crate) fn value(session: &Session, answer: Value) -> Dynamic {
    session.lock().statistics.learn_answer(&answer);
    data::json(answer)
}

/// A map for a script, whose names are remembered.
pub(crate) fn named(session: &Session, map: Map) -> Map {
    session.lock().statistics.learn_map(&map);
    map
}

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "stats(self: Vm) -> any",
        "Asks the scheduler for its statistics (scx_stats, target `top`), as a map. Throws \
         `MissingStats` with the reason: only an executable serves them.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| stats(&s, &ctx, t, TOP, &Map::new()),
    );
    let s = session.clone();
    pkg.func(
        "stats(self: Vm, target: string) -> any",
        "The same of another target.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, target: &str| {
            stats(&s, &ctx, t, target, &Map::new())
        },
    );
    let s = session.clone();
    pkg.func(
        "stats(self: Vm, target: string, args: map) -> any",
        "The same with further arguments, which are texts.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, target: &str, args: Map| {
            stats(&s, &ctx, t, target, &args)
        },
    );
    let s = session.clone();
    pkg.func(
        "stats_meta(self: Vm) -> any",
        "Which statistics the scheduler has: their names and what they mean, in its own words.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| -> Native<Dynamic> {
            let meta = answered(s.lab(&ctx, t.lab.stats_meta())?)?;
            let told = &mut s.lock().statistics;
            told.learn_meta(&meta);
            told.last.insert("stats_meta", meta.clone());
            Ok(data::json(meta))
        },
    );
    let s = session.clone();
    pkg.getter(
        "stats(self: Snapshot) -> any",
        "Of a periodic sample: what the scheduler's statistics said just before its time, as a map. \
         Throws `MissingStats` with the reason.",
        move |snapshot: Arc<Snapshot>| -> Native<Dynamic> {
            Ok(value(&s, snapshot.stats().map_err(data::thrown)?.clone()))
        },
    );
}

fn stats(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    t: &Vm,
    target: &str,
    args: &Map,
) -> Native<Dynamic> {
    let text = |(name, value): (&rhai::Identifier, &Dynamic)| match value.clone().into_string() {
        Ok(text) => Ok((name.to_string(), text)),
        Err(_) => {
            let found = described(value);
            Err(Fault::argument(format!("stats(..): the argument {name} is {found}, not a text")))
        }
    };
    let args = args.iter().map(text).collect::<Result<_, _>>()?;
    let answer = answered(s.lab(ctx, t.lab.stats(target, &args))?)?;
    if target == TOP {
        s.lock().statistics.last.insert("stats", answer.clone());
    }
    Ok(value(s, answer))
}

/// What came of a question to the scheduler.
fn answered(answer: Result<Value, MissingStatsReason>) -> Native<Value> {
    let missing = |reason| SnapshotError::MissingStats { tag: String::new(), reason };
    answer.map_err(|reason| data::thrown(missing(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_learnt_within_bounds() {
        let mut told = Told::default();
        told.learn_answer(&json!({ "a": { "b": 1 }, "c": [{ "d": null }], "x".repeat(65): 1 }));
        told.learn_meta(&json!({
            "M": { "fields": { "b": { "desc": "bees\n and \u{1b}[1m" }, "e": {}, "d": 3 }, "desc": "no field" },
            "N": { "fields": 7 }, "O": [],
        }));
        let named = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        let want = [("a", ""), ("b", "bees and"), ("c", ""), ("d", ""), ("e", "")];
        assert_eq!(told.names(), want.map(named));
        told.learn_meta(&json!("text"));
        for i in 0..2 * MOST_NAMES {
            told.learn(&format!("n{i}"), &"m".repeat(1000));
        }
        assert_eq!(told.names.len(), MOST_NAMES);
        assert!(told.names.values().all(|meaning| meaning.len() <= MEANING));
        told.learn("a", "known, and there is room for what it means");
        assert!(told.names["a"].starts_with("known"));
    }
}
