//! `expect(x)`: soft checks that say what was expected, what was found, and where it came from.

use std::collections::HashSet;
use std::sync::Arc;

use rhai::{Array, Dynamic, EvalAltResult, FnPtr, INT, NativeCallContext};

use crate::scenario::text::fit;
use crate::scenario::verdict::{Check, Outcome, ScriptPos};
use crate::snapshot::Scalar;

use super::data;
use super::fault::{Fault, Native};
use super::globals::LABEL;
use super::register::Package;
use super::session::Session;
use super::values::{self, Number, described};

/// Characters of a value in the text of a check.
const VALUE: usize = 400;

/// Something that is to be judged.
#[derive(Clone)]
pub(crate) struct Expectation {
    value: Dynamic,
    label: String,
    at: Option<ScriptPos>,
    id: u64,
    /// Why there is no value to judge.
    doubt: Option<String>,
}

/// What a matcher found out.
struct Found {
    holds: bool,
    /// What was found, when the value itself does not say it.
    text: Option<String>,
    /// Why the matcher could not do its work.
    why: Option<String>,
}

impl From<bool> for Found {
    fn from(holds: bool) -> Self {
        Found { holds, text: None, why: None }
    }
}

impl Found {
    fn saying(holds: bool, text: impl Into<String>) -> Self {
        Found { holds, text: Some(text.into()), why: None }
    }

    fn impossible(why: impl Into<String>) -> Self {
        Found { holds: false, text: None, why: Some(why.into()) }
    }
}

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Expectation>(
        "Expectation",
        "Something that is to be judged by the matcher that follows; matchers can be chained.\n\
         A failed one is recorded, and the scenario goes on.",
    );
    let s = session.clone();
    pkg.func(
        "expect(x: any) -> Expectation",
        "Begins a soft check of a value, a field, or what a closure gives.",
        move |ctx: NativeCallContext<'_>, x: Dynamic| {
            let label = s.words(&ctx).unwrap_or_default();
            expect(&s, &ctx, x, &label)
        },
    );
    let s = session.clone();
    pkg.func(
        "expect(x: any, label: string) -> Expectation",
        "The same, under a name of its own.",
        move |ctx: NativeCallContext<'_>, x: Dynamic, label: &str| expect(&s, &ctx, x, label),
    );
    equal(pkg, session);
    order(pkg, session);
    contents(pkg, session);
    thrown(pkg, session);
    values::incomparable::<Expectation>(pkg, "Expectation");
}

fn expect(s: &Session, ctx: &NativeCallContext<'_>, value: Dynamic, label: &str) -> Expectation {
    let label = fit(label, LABEL);
    let at = s.place(ctx);
    let id = s.expect(&label, at.clone());
    Expectation { value, label, at, id, doubt: None }
}

/// An expectation of a value that something else than `expect(..)` has made.
pub(crate) fn expecting(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    value: Dynamic,
    label: &str,
) -> Expectation {
    expect(s, ctx, value, label)
}

/// An expectation of a value that could not be had: whatever follows is inconclusive.
pub(crate) fn doubtful(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    label: &str,
    why: String,
) -> Expectation {
    Expectation { doubt: Some(why), ..expect(s, ctx, Dynamic::UNIT, label) }
}

/// The single value in `value`, when it is one.
fn scalar(value: &Dynamic) -> Option<Scalar> {
    values::to_scalar(value).ok().flatten()
}

/// A value for the text of a check.
fn shown(value: &Dynamic) -> String {
    fit(&values::render(value), VALUE)
}

/// Judges `e`: gets its value, asks `test`, records what came of it.
fn judge(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    e: &Expectation,
    expected: impl Into<String>,
    test: impl FnOnce(&Dynamic) -> Native<Found>,
) -> Native<Expectation> {
    s.matched(e.id);
    let expected = expected.into();
    if let Some(why) = &e.doubt {
        let check = Check::new(Outcome::Inconclusive, &*e.label).at(e.at.clone());
        s.record(ctx, check.compared(expected, "no value").message(why));
        return Ok(e.clone());
    }
    let value = match e.value.read_lock::<FnPtr>().map(|f| f.clone()) {
        None => Ok(e.value.clone()),
        Some(closure) => closure.call_within_context::<Dynamic>(ctx, ()),
    };
    let value = match value {
        Ok(value) => value,
        Err(error) => {
            let threw = what_was_thrown(error)?;
            let check = Check::new(Outcome::Fail, &*e.label).at(e.at.clone());
            s.record(ctx, check.compared(expected, format!("it threw {threw}")));
            return Ok(e.clone());
        }
    };
    let found = match test(&value) {
        Ok(found) => found,
        Err(error) => {
            let why = what_was_thrown(error)?;
            Found::impossible(why.strip_prefix("Argument: ").unwrap_or(&why))
        }
    };
    let outcome = if found.holds { Outcome::Pass } else { Outcome::Fail };
    let text = found.text.unwrap_or_else(|| shown(&value));
    let mut check = Check::new(outcome, &*e.label)
        .compared(expected, text)
        .origin(data::origin_of(&value))
        .at(e.at.clone());
    check.message = found.why;
    s.record(ctx, check);
    Ok(e.clone())
}

/// What a closure threw, in words; an ending that nothing may catch goes on.
pub(crate) fn what_was_thrown(error: Box<EvalAltResult>) -> Native<String> {
    let inner = error.unwrap_inner();
    if !inner.is_catchable() || matches!(inner, EvalAltResult::ErrorTerminated(..)) {
        return Err(error);
    }
    if let EvalAltResult::ErrorRuntime(value, _) = inner {
        if let Some(error) = data::error_of(value) {
            return Ok(format!("{}: {error}", error.kind()));
        }
        if let Some(fault) = value.read_lock::<Fault>() {
            return Ok(format!("{}: {}", fault.kind.name(), fault.message));
        }
        return Ok(value.to_string());
    }
    Ok(inner.to_string())
}

/// The answer of one of the engine's comparisons.
fn compare(ctx: &NativeCallContext<'_>, sign: &str, a: &Dynamic, b: &Dynamic) -> Native<bool> {
    let (mut a, mut b) = (a.clone(), b.clone());
    let answer = ctx.call_native_fn_raw(sign, false, &mut [&mut a, &mut b])?;
    Ok(answer.as_bool().unwrap_or(false))
}

fn is_nan(value: &Dynamic) -> bool {
    matches!(scalar(value), Some(Scalar::Float(x)) if x.is_nan())
}

/// Whether `a SIGN b`; two values without an order are no quiet "no".
fn ordered(ctx: &NativeCallContext<'_>, sign: &str, a: &Dynamic, b: &Dynamic) -> Native<Found> {
    for value in [a, b] {
        if is_nan(value) {
            return Ok(Found::impossible("NaN is neither more nor less than anything"));
        }
    }
    if compare(ctx, sign, a, b)? {
        return Ok(true.into());
    }
    for other in ["<", ">", "=="] {
        if compare(ctx, other, a, b)? {
            return Ok(false.into());
        }
    }
    let why = format!("{} and {} have no order", described(a), described(b));
    Ok(Found::impossible(why))
}

fn equal(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "eq(self: Expectation, y: any) -> Expectation",
        "Expects a value equal to `y`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, y: Dynamic| {
            judge(&s, &ctx, &e, shown(&y), |x| Ok(compare(&ctx, "==", x, &y)?.into()))
        },
    );
    let s = session.clone();
    pkg.func(
        "ne(self: Expectation, y: any) -> Expectation",
        "Expects a value that differs from `y`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, y: Dynamic| {
            let expected = format!("anything but {}", shown(&y));
            judge(&s, &ctx, &e, expected, |x| match is_nan(x) || is_nan(&y) {
                true => Ok(Found::impossible("NaN differs from everything, itself too")),
                false => Ok((!compare(&ctx, "==", x, &y)?).into()),
            })
        },
    );
    for (name, want) in [("is_true", true), ("is_false", false)] {
        let s = session.clone();
        pkg.func(
            &format!("{name}(self: Expectation) -> Expectation"),
            &format!("Expects `{want}`."),
            move |ctx: NativeCallContext<'_>, e: Expectation| {
                judge(&s, &ctx, &e, want.to_string(), |x| match scalar(x) {
                    Some(Scalar::Bool(b)) => Ok((b == want).into()),
                    _ => {
                        Ok(Found::impossible(format!("{} is neither true nor false", described(x))))
                    }
                })
            },
        );
    }
    let s = session.clone();
    pkg.func(
        "near(self: Expectation, x: any, tolerance: any) -> Expectation",
        "Expects a number that is at most `tolerance` away from `x`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, x: Dynamic, tolerance: Dynamic| {
            let expected = format!("{}, give or take {}", shown(&x), shown(&tolerance));
            judge(&s, &ctx, &e, expected, |value| Ok(near(value, &x, &tolerance)))
        },
    );
}

fn near(value: &Dynamic, x: &Dynamic, tolerance: &Dynamic) -> Found {
    for part in [value, x, tolerance] {
        if number(part).is_none() {
            return Found::impossible(format!("{} is no number", described(part)));
        }
        if is_nan(part) {
            return Found::impossible("NaN is near nothing");
        }
    }
    let (Some(a), Some(b), Some(t)) = (number(value), number(x), number(tolerance)) else {
        return false.into();
    };
    match (a, b, t) {
        // Whole numbers are compared as such: a counter above 2^53 has no exact float.
        (Number::Whole(a), Number::Whole(b), Number::Whole(t)) => {
            let away = a.abs_diff(b);
            Found::saying(t >= 0 && away <= t.unsigned_abs(), format!("{a}, which is {away} away"))
        }
        _ => {
            let away = (a.float() - b.float()).abs();
            Found::saying(away <= t.float(), format!("{}, which is {away} away", shown(value)))
        }
    }
}

fn number(value: &Dynamic) -> Option<Number> {
    scalar(value).as_ref().and_then(Number::of)
}

fn order(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let matchers = [
        ("lt", "<", "less than"),
        ("gt", ">", "more than"),
        ("at_least", ">=", "at least"),
        ("at_most", "<=", "at most"),
    ];
    for (name, sign, words) in matchers {
        let s = session.clone();
        pkg.func(
            &format!("{name}(self: Expectation, y: any) -> Expectation"),
            &format!("Expects {words} `y`."),
            move |ctx: NativeCallContext<'_>, e: Expectation, y: Dynamic| {
                let expected = format!("{words} {}", shown(&y));
                judge(&s, &ctx, &e, expected, |x| ordered(&ctx, sign, x, &y))
            },
        );
    }
    let s = session.clone();
    pkg.func(
        "between(self: Expectation, lo: any, hi: any) -> Expectation",
        "Expects at least `lo` and at most `hi`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, lo: Dynamic, hi: Dynamic| {
            let expected = format!("between {} and {}", shown(&lo), shown(&hi));
            judge(&s, &ctx, &e, expected, |x| {
                let low = ordered(&ctx, ">=", x, &lo)?;
                if !low.holds {
                    return Ok(low);
                }
                ordered(&ctx, "<=", x, &hi)
            })
        },
    );
}

fn contents(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "contains(self: Expectation, y: any) -> Expectation",
        "Expects a text, an array, a map or a `SnapshotMap` that has `y` in it.",
        move |ctx: NativeCallContext<'_>, e: Expectation, y: Dynamic| {
            let expected = format!("something that contains {}", shown(&y));
            judge(&s, &ctx, &e, expected, |x| Ok(contains(&ctx, x, &y)?.into()))
        },
    );
    let s = session.clone();
    pkg.func(
        "is_empty(self: Expectation) -> Expectation",
        "Expects nothing in it.",
        move |ctx: NativeCallContext<'_>, e: Expectation| {
            judge(&s, &ctx, &e, "nothing in it", |x| has_len(&ctx, x, 0))
        },
    );
    let s = session.clone();
    pkg.func(
        "len_eq(self: Expectation, n: int) -> Expectation",
        "Expects `n` elements in it.",
        move |ctx: NativeCallContext<'_>, e: Expectation, n: INT| {
            judge(&s, &ctx, &e, format!("a length of {n}"), |x| has_len(&ctx, x, n))
        },
    );
    let s = session.clone();
    pkg.func(
        "subset_of(self: Expectation, other: any) -> Expectation",
        "Expects nothing but elements of `other`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, other: Dynamic| {
            let expected = format!("only elements of {}", shown(&other));
            judge(&s, &ctx, &e, expected, |x| {
                let strangers = sift(&s, &ctx, x, &other, false)?;
                Ok(counted("also", strangers))
            })
        },
    );
    let s = session.clone();
    pkg.func(
        "disjoint_from(self: Expectation, other: any) -> Expectation",
        "Expects no element of `other`.",
        move |ctx: NativeCallContext<'_>, e: Expectation, other: Dynamic| {
            let expected = format!("no element of {}", shown(&other));
            judge(&s, &ctx, &e, expected, |x| {
                let common = sift(&s, &ctx, x, &other, true)?;
                Ok(counted("both have", common))
            })
        },
    );
}

fn counted(words: &str, elements: Array) -> Found {
    if elements.is_empty() {
        return true.into();
    }
    Found::saying(false, format!("{words} {}", shown(&Dynamic::from(elements))))
}

fn contains(ctx: &NativeCallContext<'_>, x: &Dynamic, y: &Dynamic) -> Native<bool> {
    let answer = ctx.call_native_fn_raw("contains", true, &mut [&mut x.clone(), &mut y.clone()]);
    match answer {
        Ok(answer) => Ok(answer.as_bool().unwrap_or(false)),
        Err(error) if is_missing(&error) => {
            let why = format!("{} cannot contain {}", described(x), described(y));
            Err(Fault::argument(why).into())
        }
        Err(error) => Err(error),
    }
}

/// Whether an error only says that a type has no such function or property.
fn is_missing(error: &EvalAltResult) -> bool {
    use EvalAltResult::{ErrorDotExpr, ErrorFunctionNotFound};
    matches!(error, ErrorFunctionNotFound(..) | ErrorDotExpr(..))
}

/// How many elements a value has, when it has any notion of that.
fn length(ctx: &NativeCallContext<'_>, x: &Dynamic) -> Native<Option<INT>> {
    for name in ["get$len", "len"] {
        match ctx.call_native_fn_raw(name, true, &mut [&mut x.clone()]) {
            Ok(n) => return Ok(n.as_int().ok()),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn has_len(ctx: &NativeCallContext<'_>, x: &Dynamic, n: INT) -> Native<Found> {
    match length(ctx, x)? {
        Some(found) if found == n => Ok(true.into()),
        Some(found) => Ok(Found::saying(false, format!("a length of {found}: {}", shown(x)))),
        None => Ok(Found::impossible(format!("{} has no length", described(x)))),
    }
}

/// The elements of an array; the keys of a map.
fn elements(ctx: &NativeCallContext<'_>, x: &Dynamic) -> Native<Array> {
    if let Ok(array) = x.as_array_ref() {
        return Ok(array.clone());
    }
    let keys = ctx.call_native_fn_raw("keys", true, &mut [&mut x.clone()]);
    keys.ok().and_then(|keys| keys.into_array().ok()).ok_or_else(|| {
        Fault::argument(format!("{} has no elements: give an array or a map", described(x))).into()
    })
}

/// The elements of `x` that are (`inside`) or are not in `other`.
fn sift(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    x: &Dynamic,
    other: &Dynamic,
    inside: bool,
) -> Native<Array> {
    let (x, other) = (elements(ctx, x)?, elements(ctx, other)?);
    let known: Option<HashSet<Exact>> = other.iter().map(exact).collect();
    let mut out = Array::new();
    for element in x {
        if s.cancel.is_raised() {
            return Err(s.cancelled(s.place(ctx)));
        }
        let found = match (&known, exact(&element)) {
            (Some(known), Some(element)) => known.contains(&element),
            // Elements of other types are compared as scripts would, one by one.
            _ => {
                let mut found = false;
                for candidate in &other {
                    found = found || compare(ctx, "==", &element, candidate)?;
                }
                found
            }
        };
        if found == inside {
            out.push(element);
        }
    }
    Ok(out)
}

/// A scalar that is equal to another one only if both are the same.
#[derive(PartialEq, Eq, Hash)]
enum Exact {
    Whole(i128),
    Bool(bool),
    Text(String),
}

fn exact(value: &Dynamic) -> Option<Exact> {
    match scalar(value)? {
        Scalar::Int(n) => Some(Exact::Whole(n.into())),
        Scalar::U64(n) => Some(Exact::Whole(n.into())),
        Scalar::Bool(b) => Some(Exact::Bool(b)),
        Scalar::Str(s) => Some(Exact::Text(s)),
        // A float equals a whole number too, an enum its name and its number.
        _ => None,
    }
}

fn thrown(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "throws(self: Expectation, what: string) -> Expectation",
        "Expects a closure to throw an error of that `kind`, or with that text in its message.",
        move |ctx: NativeCallContext<'_>, e: Expectation, what: &str| throws(&s, &ctx, &e, what),
    );
    let s = session.clone();
    pkg.func(
        "throws(self: Expectation) -> Expectation",
        "Expects a closure to throw.",
        move |ctx: NativeCallContext<'_>, e: Expectation| throws(&s, &ctx, &e, ""),
    );
}

fn throws(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    e: &Expectation,
    what: &str,
) -> Native<Expectation> {
    s.matched(e.id);
    let Some(closure) = e.value.read_lock::<FnPtr>().map(|f| f.clone()) else {
        let found = described(&e.value);
        let why =
            format!("only a closure can throw, as in expect(|| ..).throws(..); found {found}");
        return Err(Fault::argument(why).into());
    };
    let expected = match what {
        "" => "something to be thrown".to_string(),
        what => format!("{what} to be thrown"),
    };
    let (holds, found) = match closure.call_within_context::<Dynamic>(ctx, ()) {
        Ok(value) => (false, format!("it gave {}", shown(&value))),
        Err(error) => {
            let text = what_was_thrown(error)?;
            (text.contains(what), format!("it threw {text}"))
        }
    };
    let outcome = if holds { Outcome::Pass } else { Outcome::Fail };
    let check = Check::new(outcome, &*e.label).compared(expected, found).at(e.at.clone());
    s.record(ctx, check);
    Ok(e.clone())
}
