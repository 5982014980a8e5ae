//! Computing with captured values and with numbers beyond Rhai's own.

use rhai::{Dynamic, EvalAltResult, FLOAT, INT, Position};

use crate::snapshot::Scalar;

use super::{Native, Number, U64, described, mismatch, path, to_scalar};
use crate::script::data;

/// What `left sign right` is. Whole numbers are computed exactly and come out as an integer where
/// they fit, else as a [`U64`]; with a float among them the result is one.
pub(crate) fn compute(sign: &str, left: &Dynamic, right: &Dynamic) -> Native<Dynamic> {
    let (a, b) = (scalar(left, right, sign)?, scalar(right, left, sign)?);
    if sign == "+" && (matches!(a, Scalar::Str(_)) || matches!(b, Scalar::Str(_))) {
        return Ok(format!("{a}{b}").into());
    }
    let (Some(x), Some(y)) = (Number::of(&a), Number::of(&b)) else {
        let (bad, value) = if Number::of(&a).is_none() { (&a, left) } else { (&b, right) };
        let wanted = format!("a number for `{sign}`");
        return Err(data::thrown(mismatch(&wanted, bad.described(), path(value))));
    };
    match (x, y) {
        (Number::Whole(x), Number::Whole(y)) => whole(sign, x, y),
        (x, y) => float(sign, x.float(), y.float()),
    }
}

fn scalar(value: &Dynamic, partner: &Dynamic, sign: &str) -> Native<Scalar> {
    match to_scalar(value).map_err(data::thrown)? {
        Some(scalar) => Ok(scalar),
        None => {
            let wanted = format!("a number for `{sign}`");
            Err(data::thrown(mismatch(&wanted, described(value), path(partner))))
        }
    }
}

fn arithmetic(text: String) -> Box<EvalAltResult> {
    EvalAltResult::ErrorArithmetic(text, Position::NONE).into()
}

fn whole(sign: &str, a: i128, b: i128) -> Native<Dynamic> {
    let by_zero = || arithmetic(format!("{a} {sign} 0: division by zero"));
    let exact = match sign {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" if b == 0 => return Err(by_zero()),
        "/" => a.checked_div(b),
        "%" if b == 0 => return Err(by_zero()),
        "%" => a.checked_rem(b),
        "**" => match u32::try_from(b) {
            Ok(b) => a.checked_pow(b),
            Err(_) if b < 0 => return float(sign, a as f64, b as f64),
            Err(_) => None,
        },
        _ => return bits(sign, a, b),
    };
    exact.and_then(number).ok_or_else(|| {
        let help = match sign {
            "-" => "wrapping_sub(a, b) subtracts counters that wrap",
            _ => "compute with .as_f64(), or take differences with wrapping_sub(a, b)",
        };
        arithmetic(format!("{a} {sign} {b} does not fit 64 bits: {help}"))
    })
}

/// A number as a script has it, if it fits.
fn number(n: i128) -> Option<Dynamic> {
    match INT::try_from(n) {
        Ok(n) => Some(n.into()),
        Err(_) => u64::try_from(n).ok().map(U64::dynamic),
    }
}

/// On 64 bits. Two integers give an integer as in Rhai; with a larger number there is no sign.
fn bits(sign: &str, a: i128, b: i128) -> Native<Dynamic> {
    let wide = |n: i128| n > i128::from(i64::MAX);
    let word = |n: i128| -> Native<u64> {
        let fits = i64::try_from(n).map(|n| n as u64).or_else(|_| u64::try_from(n));
        fits.map_err(|_| arithmetic(format!("{n} does not fit 64 bits")))
    };
    let x = word(a)?;
    let result = match sign {
        "&" => x & word(b)?,
        "|" => x | word(b)?,
        "^" => x ^ word(b)?,
        _ => {
            let by = u32::try_from(b).ok().filter(|by| *by < 64);
            let by = by.ok_or_else(|| {
                arithmetic(format!("{a} {sign} {b}: 64 bits are shifted by 0 to 63"))
            })?;
            match sign {
                "<<" => x << by,
                _ if wide(a) => x >> by,
                _ => ((x as i64) >> by) as u64,
            }
        }
    };
    let unsigned = wide(a) || (wide(b) && !matches!(sign, "<<" | ">>"));
    Ok(if unsigned { U64::dynamic(result) } else { (result as INT).into() })
}

fn float(sign: &str, a: f64, b: f64) -> Native<Dynamic> {
    let result: FLOAT = match sign {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "%" => a % b,
        "**" => a.powf(b),
        _ => {
            let text = format!("{a:?} {sign} {b:?}: only whole numbers have bits");
            return Err(arithmetic(text));
        }
    };
    Ok(result.into())
}
