//! Functions that belong to no value: judging outright, remarks, waiting.

use std::sync::Arc;
use std::time::Instant;

use rhai::{Dynamic, EvalAltResult, FLOAT, INT, NativeCallContext};

use crate::scenario::text::fit;
use crate::scenario::verdict::{Check, Outcome};

use super::End;
use super::fault::{Fault, Native};
use super::register::Package;
use super::session::Session;
use super::values::described;
use super::{data, units, values};

/// Characters of a label that was taken from the script's own words.
pub(crate) const LABEL: usize = 72;

pub(crate) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    judging(pkg, session);
    remarks(pkg, session);
    waiting(pkg, session);
}

fn judging(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "require(cond: bool, msg: string)",
        "Ends the scenario with a Fail that says `msg`, unless `cond` holds.",
        move |ctx: NativeCallContext<'_>, cond: Dynamic, msg: &str| require(&s, &ctx, cond, msg),
    );
    let s = session.clone();
    pkg.func(
        "require(cond: bool)",
        "Ends the scenario with a Fail, unless `cond` holds.",
        move |ctx: NativeCallContext<'_>, cond: Dynamic| require(&s, &ctx, cond, ""),
    );
    let s = session.clone();
    pkg.func(
        "fail(msg: string)",
        "Records a Fail; the scenario goes on.",
        move |ctx: NativeCallContext<'_>, msg: &str| s.record(&ctx, Check::fail("fail", msg)),
    );
    let s = session.clone();
    pkg.func(
        "inconclusive(reason: string)",
        "Records that the evidence does not suffice; the scenario goes on.",
        move |ctx: NativeCallContext<'_>, reason: &str| {
            s.record(&ctx, Check::new(Outcome::Inconclusive, "inconclusive").message(reason));
        },
    );
    let s = session.clone();
    pkg.func(
        "skip(reason: string)",
        "Ends the scenario, unjudged: it is a Skip unless a check has already failed.",
        move |ctx: NativeCallContext<'_>, reason: &str| -> Native<()> {
            s.in_scenario("skip(..)")?;
            s.recorder.skip(reason, s.place(&ctx));
            Err(s.end(End::Stopped))
        },
    );
}

fn require(s: &Session, ctx: &NativeCallContext<'_>, cond: Dynamic, msg: &str) -> Native<()> {
    let Ok(holds) = cond.as_bool() else {
        let found = described(&cond);
        return Err(
            Fault::argument(format!("require(..) judges true or false, found {found}")).into()
        );
    };
    let words = s.words(ctx).map(|words| fit(&words, LABEL)).unwrap_or_default();
    let label = if msg.is_empty() { words.clone() } else { msg.to_string() };
    if holds {
        s.record(ctx, Check::pass(label));
        return Ok(());
    }
    s.in_scenario("require(..)")?;
    let mut check = Check::new(Outcome::Fail, label);
    if !words.is_empty() {
        check = check.compared(format!("{words} to hold"), "it does not");
    }
    s.record(ctx, check);
    Err(s.end(End::Stopped))
}

fn remarks(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "note(msg: any)",
        "Adds a remark to the report.",
        move |ctx: NativeCallContext<'_>, msg: Dynamic| {
            let text = match msg.clone().into_string() {
                Ok(text) => text,
                Err(_) => values::render(&msg),
            };
            s.recorder.note(text, s.place(&ctx));
        },
    );
    let s = session.clone();
    data::dumps(pkg, move |x| s.print(&values::pretty(x)));
    let s = session.clone();
    pkg.func(
        "dump(x: any)",
        "Prints a value with everything in it, over as many lines as it takes.",
        move |x: Dynamic| s.print(&values::pretty(&x)),
    );
    pkg.func("exit()", "Refused: use `skip`, `require` or `return`.", || -> Native<()> {
        Err(no_exit())
    });
    pkg.func(
        "exit(code: any)",
        "Refused: use `skip`, `require` or `return`.",
        |_: Dynamic| -> Native<()> { Err(no_exit()) },
    );
}

fn no_exit() -> Box<EvalAltResult> {
    Fault::misplaced(
        "exit(..) would leave the scenario unjudged: end it with skip(reason), require(cond, msg) \
         or return",
    )
    .into()
}

fn waiting(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.func(
        "milliseconds(d: duration) -> float",
        "A duration as a number: `milliseconds(\"1.5s\")` is 1500.0.",
        |d: &str| -> Native<FLOAT> {
            Ok(units::duration(d).map_err(Fault::argument)?.as_secs_f64() * 1e3)
        },
    );
    let s = session.clone();
    pkg.func(
        "sleep(d: duration)",
        "Waits for a time of the host, as in `sleep(\"250ms\")`; `t.hold(d)` waits for guest time.",
        move |ctx: NativeCallContext<'_>, d: &str| -> Native<()> {
            if d.trim_end().ends_with('%') {
                let why =
                    format!("sleep(\"{d}\") knows no scenario's duration: use t.hold(\"{d}\")");
                return Err(Fault::argument(why).into());
            }
            let time = units::duration(d).map_err(Fault::argument)?;
            // Nothing is worth waiting for while scripts are only collected.
            if !s.collecting() && s.cancel.wait_until(Instant::now() + time) {
                return Err(s.cancelled(s.place(&ctx)));
            }
            Ok(())
        },
    );
    pkg.func("sleep(d: int)", "Refused: a duration has a unit.", |d: INT| -> Native<()> {
        Err(no_unit(&d.to_string()))
    });
    pkg.func("sleep(d: float)", "Refused: a duration has a unit.", |d: FLOAT| -> Native<()> {
        Err(no_unit(&d.to_string()))
    });
}

fn no_unit(number: &str) -> Box<EvalAltResult> {
    Fault::argument(format!(
        "sleep({number}) has no unit: write sleep(\"{number}s\") or sleep(\"{number}ms\")"
    ))
    .into()
}
