//! `SeriesField`: what a series holds at one place, and the patterns that it is judged by.

use std::sync::Arc;
use std::time::Duration;

use rhai::{Array, Dynamic, FLOAT, INT, Map, NativeCallContext};

use super::{int, known_phase, names, native, values};
use crate::scenario::verdict::{Check, Outcome};
use crate::script::expect::{doubtful, expecting};
use crate::script::fault::{Fault, Native};
use crate::script::register::Package;
use crate::script::session::Session;
use crate::script::units;
use crate::script::values::{Number, described, from_scalar, incomparable, to_scalar};
use crate::series::{Bound, Judged, Judgement, SeriesField};
use crate::snapshot::{Scalar, SnapshotResult};

/// `field.each()`.
#[derive(Clone)]
struct SeriesEach(SeriesField);

pub(super) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<SeriesField>(
        "SeriesField",
        "What a series holds at one place: a value or a `SnapshotError` for each sample.\n\
         A pattern is a soft check: it is recorded, and the field comes back, so that more can follow.",
    )
    .ty::<SeriesEach>("SeriesEach", "Every sample of a field, to be judged one by one.");
    about(pkg);
    reductions(pkg);
    phases(pkg, session);
    plots(pkg, session);
    monotonic(pkg, session);
    bounded(pkg, session);
    courses(pkg, session);
    incomparable::<SeriesField>(pkg, "SeriesField");
    incomparable::<SeriesEach>(pkg, "SeriesEach");
}

fn about(pkg: &mut Package<'_>) {
    pkg.getter(
        "label(self: SeriesField) -> string",
        "What it is called.",
        |f: &mut SeriesField| f.label().to_owned(),
    )
    .getter(
        "len(self: SeriesField) -> int",
        "How many samples, those without a value among them.",
        |f: &mut SeriesField| int(f.len()),
    )
    .func(
        "named(self: SeriesField, label: string) -> SeriesField",
        "The same under another name.",
        |f: &mut SeriesField, label: &str| f.named(label),
    )
    .func(
        "values(self: SeriesField) -> array",
        "The value of each sample; `()` where there is an error.",
        |f: &mut SeriesField| values(f),
    )
    .func(
        "errors(self: SeriesField) -> array",
        "The samples without a value: `#{ tag, elapsed_ms, phase, error }` each, `error` being a \
         `SnapshotError`.",
        |f: &mut SeriesField| -> Array { errors(f) },
    )
    .func("to_string(self: SeriesField) -> string", "Its name and its course.", told)
    .func("to_debug(self: SeriesField) -> string", "Its name and its course.", told);
}

/// Drawing fields. (`plot(f)` and `f.plot()` are one call in Rhai.)
fn plots(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "plot(self: SeriesField)",
        "Draws how it went over time: a line of blocks in the terminal, a chart in the report.",
        move |f: &mut SeriesField| s.plot(std::slice::from_ref(f)),
    );
    let s = session.clone();
    pkg.func(
        "plot(fields: array)",
        "Draws several fields over the same time, at most 8.",
        move |fields: Array| -> Native<()> {
            let field = |value: Dynamic| -> Native<SeriesField> {
                let found = described(&value);
                value.try_cast::<SeriesField>().ok_or_else(|| {
                    Fault::argument(format!("plot(..) draws fields of a series, found {found}"))
                        .into()
                })
            };
            let fields: Vec<SeriesField> = fields.into_iter().map(field).collect::<Native<_>>()?;
            s.plot(&fields);
            Ok(())
        },
    );
}

fn told(f: &mut SeriesField) -> String {
    let bad = f.errors().count();
    let ends = match (f.first(), f.last()) {
        (Ok(first), Ok(last)) => format!(", {first} to {last}"),
        _ => String::new(),
    };
    let bad = if bad > 0 { format!(", {bad} without a value") } else { String::new() };
    format!("SeriesField({}: {} samples{ends}{bad})", f.label(), f.len())
}

fn errors(f: &SeriesField) -> Array {
    let each = f.errors().map(|(stamp, error)| {
        let elapsed = INT::try_from(stamp.elapsed.as_millis()).unwrap_or(INT::MAX);
        let phase = stamp.phase.as_ref().map_or(Dynamic::UNIT, |name| name.to_string().into());
        Dynamic::from(Map::from([
            ("tag".into(), stamp.tag.to_string().into()),
            ("elapsed_ms".into(), elapsed.into()),
            ("phase".into(), phase),
            ("error".into(), Dynamic::from(error.clone())),
        ]))
    });
    each.collect()
}

fn reductions(pkg: &mut Package<'_>) {
    type Reduction = fn(&SeriesField) -> SnapshotResult<Scalar>;
    let all: [(&str, &str, Reduction); 6] = [
        ("first", "The first value.", SeriesField::first),
        ("last", "The last value.", SeriesField::last),
        ("min", "The smallest value.", SeriesField::min),
        ("max", "The largest value.", SeriesField::max),
        ("mean", "The mean.", |f| f.mean().map(Scalar::Float)),
        ("delta", "How much more the last value is than the first.", SeriesField::delta),
    ];
    for (name, doc, reduce) in all {
        pkg.getter(
            &format!("{name}(self: SeriesField) -> any"),
            &format!("{doc} Throws `NoMatch` when no sample has a value."),
            move |f: &mut SeriesField| native(reduce(f)).map(from_scalar),
        );
    }
}

fn phases(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.func(
        "phase(self: SeriesField, name: string) -> SeriesField",
        "The samples of one phase; the second one of a name is `name#2`.",
        |f: &mut SeriesField, name: &str| -> Native<SeriesField> {
            known_phase(name, &f.phases())?;
            Ok(f.phase(name))
        },
    )
    .func(
        "phases(self: SeriesField) -> array",
        "The phases that have samples, in order.",
        |f: &mut SeriesField| names(f.phases()),
    );
    type Reduction = fn(&SeriesField) -> SnapshotResult<Scalar>;
    let all: [(&str, &str, Reduction); 3] = [
        ("delta_per_phase", "How much it changed in each phase", SeriesField::delta),
        ("first_per_phase", "The first value of each phase", SeriesField::first),
        ("last_per_phase", "The last value of each phase", SeriesField::last),
    ];
    for (name, doc, reduce) in all {
        pkg.func(
            &format!("{name}(self: SeriesField) -> map"),
            &format!("{doc}, by the phase's name."),
            move |f: &mut SeriesField| -> Native<Map> {
                let each = native(f.per_phase(reduce))?.into_iter();
                Ok(each.map(|(name, value)| ((*name).into(), from_scalar(value))).collect())
            },
        );
    }
    let s = session.clone();
    pkg.func(
        "ratio_across_phases(self: SeriesField, a: string, b: string) -> Expectation",
        "How much it changed in phase `a` over how much it did in phase `b`, to be judged: \
         `f.ratio_across_phases(\"narrow\", \"wide\").between(0.4, 0.6)`. Inconclusive when a phase \
         has less than two values, or `b` no change.",
        move |ctx: NativeCallContext<'_>, f: &mut SeriesField, a: &str, b: &str| {
            let label = format!("{}: change in {a} over change in {b}", f.label());
            match f.ratio_across_phases(a, b) {
                Ok(ratio) => expecting(&s, &ctx, ratio.into(), &label),
                Err(why) => doubtful(&s, &ctx, &label, why),
            }
        },
    );
}

/// Records what a pattern found.
fn record(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    field: &SeriesField,
    judgement: Judgement,
) -> SeriesField {
    let outcome = match judgement.outcome {
        Judged::Pass => Outcome::Pass,
        Judged::Inconclusive => Outcome::Inconclusive,
        Judged::Fail => Outcome::Fail,
    };
    let label = format!("{}: {}", field.label(), judgement.pattern);
    s.record(ctx, Check::new(outcome, label).compared(judgement.expected, judgement.found));
    if let Some(note) = judgement.note {
        s.recorder.note(note, s.place(ctx));
    }
    field.clone()
}

/// The same of a pattern that may refuse its arguments.
fn tried(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    call: &str,
    field: &SeriesField,
    judgement: Result<Judgement, String>,
) -> Native<SeriesField> {
    let judgement = judgement.map_err(|why| Fault::argument(format!("{call}(..): {why}")))?;
    Ok(record(s, ctx, field, judgement))
}

fn monotonic(pkg: &mut Package<'_>, session: &Arc<Session>) {
    type Pattern = fn(&SeriesField) -> Judgement;
    let all: [(&str, &str, Pattern); 3] = [
        (
            "nondecreasing",
            "Expects no sample to be less than the one before it. Samples without a value are left \
             out, with a note; fewer than two others are inconclusive.",
            SeriesField::nondecreasing,
        ),
        (
            "strictly_increasing",
            "Expects every sample to be more than the one before it. Samples without a value are \
             left out, with a note; fewer than two others are inconclusive.",
            SeriesField::strictly_increasing,
        ),
        (
            "always_true",
            "Expects every sample to be true, or a number other than 0; one without a value fails.",
            SeriesField::always_true,
        ),
    ];
    for (name, doc, pattern) in all {
        let s = session.clone();
        pkg.func(
            &format!("{name}(self: SeriesField) -> SeriesField"),
            doc,
            move |ctx: NativeCallContext<'_>, f: &mut SeriesField| record(&s, &ctx, f, pattern(f)),
        );
    }
}

fn bounded(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.func(
        "each(self: SeriesField) -> SeriesEach",
        "Every sample: `f.each().at_least(1)`. One without a value fails.",
        |f: &mut SeriesField| SeriesEach(f.clone()),
    )
    .func("to_string(self: SeriesEach) -> string", "What it is.", |e: &mut SeriesEach| {
        format!("each sample of {}", e.0.label())
    });
    type One = (&'static str, &'static str, fn(Scalar) -> Bound);
    let one: [One; 2] =
        [("at_least", "at least", Bound::AtLeast), ("at_most", "at most", Bound::AtMost)];
    for (name, words, bound) in one {
        let s = session.clone();
        pkg.func(
            &format!("{name}(self: SeriesEach, x: any) -> SeriesField"),
            &format!("Expects {words} `x` in every sample."),
            move |ctx: NativeCallContext<'_>, e: &mut SeriesEach, x: Dynamic| {
                tried(&s, &ctx, name, &e.0, e.0.each(&bound(scalar(name, &x)?)))
            },
        );
    }
    let s = session.clone();
    pkg.func(
        "between(self: SeriesEach, lo: any, hi: any) -> SeriesField",
        "Expects at least `lo` and at most `hi` in every sample.",
        move |ctx: NativeCallContext<'_>, e: &mut SeriesEach, lo: Dynamic, hi: Dynamic| {
            let bound = Bound::Between(scalar("between", &lo)?, scalar("between", &hi)?);
            tried(&s, &ctx, "between", &e.0, e.0.each(&bound))
        },
    );
    let s = session.clone();
    pkg.func(
        "ratio_within(self: SeriesField, other: SeriesField, lo: any, hi: any) -> SeriesField",
        "Expects this value over the other's to be at least `lo` and at most `hi` in every sample. \
         Samples that lack one of them are left out, with a note; a zero below is inconclusive.",
        move |ctx: NativeCallContext<'_>,
              f: &mut SeriesField,
              other: SeriesField,
              lo: Dynamic,
              hi: Dynamic| {
            let call = "ratio_within";
            let (lo, hi) = (number(call, &lo)?, number(call, &hi)?);
            tried(&s, &ctx, call, f, f.ratio_within(&other, lo, hi))
        },
    );
}

fn courses(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "rate_within(self: SeriesField, lo: rate, hi: rate) -> SeriesField",
        "Expects the rate from each sample to the next, in guest time, to be at least `lo` and at \
         most `hi`: `\"100/s\"`, `\"5/ms\"`, or a number by the second. A sample without a value is \
         not bridged; samples of one time are inconclusive.",
        move |ctx: NativeCallContext<'_>, f: &mut SeriesField, lo: Dynamic, hi: Dynamic| {
            let (lo, hi) = (rate(&lo)?, rate(&hi)?);
            tried(&s, &ctx, "rate_within", f, f.rate_within(lo, hi))
        },
    );
    let s = session.clone();
    pkg.func(
        "steady_within(self: SeriesField, warmup: duration, fraction: float) -> SeriesField",
        "Expects every sample at or after `warmup` to be within `fraction` (0.1 is 10 %) of the mean \
         of those samples. Samples without a value are left out, with a note; a mean of 0 is \
         inconclusive.",
        move |ctx: NativeCallContext<'_>, f: &mut SeriesField, warmup: &str, fraction: Dynamic| {
            let call = "steady_within";
            let (warmup, fraction) = (time(call, warmup)?, number(call, &fraction)?);
            tried(&s, &ctx, call, f, f.steady_within(warmup, fraction))
        },
    );
    let s = session.clone();
    pkg.func(
        "converges_to(self: SeriesField, target: any, tolerance: any, deadline: duration) -> \
         SeriesField",
        "Expects three samples in a row within `tolerance` of `target` at or before `deadline`. \
         Samples without a value are left out, with a note; fewer than three others are \
         inconclusive.",
        move |ctx: NativeCallContext<'_>,
              f: &mut SeriesField,
              target: Dynamic,
              tolerance: Dynamic,
              deadline: &str| {
            let call = "converges_to";
            let (target, tolerance) = (number(call, &target)?, number(call, &tolerance)?);
            let deadline = time(call, deadline)?;
            tried(&s, &ctx, call, f, f.converges_to(target, tolerance, deadline))
        },
    );
}

fn scalar(call: &str, value: &Dynamic) -> Native<Scalar> {
    let scalar = native(to_scalar(value))?;
    scalar.ok_or_else(|| no_number(call, value))
}

fn number(call: &str, value: &Dynamic) -> Native<FLOAT> {
    let number = native(to_scalar(value))?.as_ref().and_then(Number::of);
    number.map(Number::float).ok_or_else(|| no_number(call, value))
}

fn no_number(call: &str, value: &Dynamic) -> Box<rhai::EvalAltResult> {
    let found = described(value);
    Fault::argument(format!("{call}(..): {found} is no number")).into()
}

fn rate(value: &Dynamic) -> Native<FLOAT> {
    match value.as_immutable_string_ref() {
        Ok(text) => {
            let rate = units::rate(&text);
            Ok(rate.map_err(|why| Fault::argument(format!("rate_within(..): {why}")))?)
        }
        Err(_) => number("rate_within", value),
    }
}

fn time(call: &str, text: &str) -> Native<Duration> {
    let time = units::duration(text);
    Ok(time.map_err(|why| Fault::argument(format!("{call}(..): {why}")))?)
}
