//! Single values as scripts see them: numbers beyond Rhai's own, comparing and computing with
//! what was captured, and how values are shown.
//!
//! Rhai compares a type that it does not know with anything else by answering `false`. So every
//! type of ours that stands for a value ([`U64`], a captured field, an enum's value) has all six
//! operators for every partner on either side, and answers a pairing that makes no sense with an
//! error. What compares is decided in one place, [`compare`]; what computes in [`compute`].

use std::cmp::Ordering;
use std::fmt;

use rhai::{Dynamic, EvalAltResult, FLOAT, INT, Variant};

use crate::snapshot::{EnumValue, Field, Scalar, SnapshotError};
use crate::words::nearest_first;

use super::data;
use super::fault::{Fault, Native};
use super::register::Package;

mod compute;
mod show;

pub(crate) use compute::compute;
pub(crate) use show::{described, pretty, render};

/// A number above [`i64::MAX`]; smaller ones are Rhai's own integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct U64(u64);

impl U64 {
    /// The number as a script has it: an integer where it fits.
    pub(crate) fn dynamic(n: u64) -> Dynamic {
        match INT::try_from(n) {
            Ok(n) => n.into(),
            Err(_) => Dynamic::from(U64(n)),
        }
    }
}

impl fmt::Display for U64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A count or a time as a script's integer; what is larger is the largest.
pub(crate) fn int(n: impl TryInto<INT>) -> INT {
    n.try_into().unwrap_or(INT::MAX)
}

/// A value above `i64::MAX`, or an integer that is not negative.
pub(crate) fn as_u64(value: &Dynamic) -> Option<u64> {
    match value.read_lock::<U64>() {
        Some(n) => Some(n.0),
        None => value.as_int().ok().and_then(|n| u64::try_from(n).ok()),
    }
}

/// A scalar as a script has it.
pub(crate) fn from_scalar(scalar: Scalar) -> Dynamic {
    match scalar {
        Scalar::Int(n) => n.into(),
        Scalar::U64(n) => U64::dynamic(n),
        Scalar::Float(x) => x.into(),
        Scalar::Bool(b) => b.into(),
        Scalar::Str(s) => s.into(),
        Scalar::Enum(e) => Dynamic::from(e),
    }
}

/// What a script's value is worth, if it is a single one: a captured field is read.
pub(crate) fn to_scalar(value: &Dynamic) -> Result<Option<Scalar>, SnapshotError> {
    if let Ok(n) = value.as_int() {
        return Ok(Some(Scalar::Int(n)));
    }
    if let Ok(x) = value.as_float() {
        return Ok(Some(Scalar::Float(x)));
    }
    if let Ok(b) = value.as_bool() {
        return Ok(Some(Scalar::Bool(b)));
    }
    if let Ok(s) = value.as_immutable_string_ref() {
        return Ok(Some(Scalar::Str(s.to_string())));
    }
    if let Ok(c) = value.as_char() {
        return Ok(Some(Scalar::Str(c.to_string())));
    }
    if let Some(n) = value.read_lock::<U64>() {
        return Ok(Scalar::of_number(n.0.into()));
    }
    if let Some(e) = value.read_lock::<EnumValue>() {
        return Ok(Some(Scalar::Enum(e.clone())));
    }
    match value.read_lock::<Field>() {
        Some(field) => field.scalar().map(Some),
        None => Ok(None),
    }
}

/// The value of a captured field; anything else as it is.
fn plain(value: Dynamic) -> Native<Dynamic> {
    if !value.is::<Field>() {
        return Ok(value);
    }
    match to_scalar(&value).map_err(data::thrown)? {
        Some(scalar) => Ok(from_scalar(scalar)),
        None => Ok(value),
    }
}

/// The six comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Op {
    const ALL: [(Op, &'static str); 6] = [
        (Op::Eq, "=="),
        (Op::Ne, "!="),
        (Op::Lt, "<"),
        (Op::Le, "<="),
        (Op::Gt, ">"),
        (Op::Ge, ">="),
    ];

    /// What it answers for an order; none is that of NaN.
    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Op::Eq => order == Some(Ordering::Equal),
            Op::Ne => order != Some(Ordering::Equal),
            Op::Lt => order == Some(Ordering::Less),
            Op::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Op::Gt => order == Some(Ordering::Greater),
            Op::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

/// Compares two values: numbers with numbers, text with text, truth with truth, an enum's value
/// with its names and numbers.
///
/// # Errors
/// [`SnapshotError::TypeMismatch`] for every other pair; a [`Fault`] with advice for a number above
/// `i64::MAX` against a negative integer or a float, which is how Rhai reads a large literal.
pub(crate) fn compare(op: Op, left: &Dynamic, right: &Dynamic) -> Native<bool> {
    let a = operand(left, right)?;
    let b = operand(right, left)?;
    use Scalar as S;
    let order = match (&a, &b) {
        (S::Str(a), S::Str(b)) => Some(a.cmp(b)),
        (S::Bool(a), S::Bool(b)) => Some(a.cmp(b)),
        (S::Enum(e), S::Str(name)) => e.value().partial_cmp(&named(e, name, left)?),
        (S::Str(name), S::Enum(e)) => named(e, name, right)?.partial_cmp(&e.value()),
        _ => match (Number::of(&a), Number::of(&b)) {
            (Some(a), Some(b)) => a.order(b)?,
            _ => return Err(data::thrown(not_comparable(left, right, &a, &b))),
        },
    };
    Ok(op.holds(order))
}

fn operand(value: &Dynamic, partner: &Dynamic) -> Native<Scalar> {
    match to_scalar(value) {
        Ok(Some(scalar)) => Ok(scalar),
        Ok(None) => {
            // The partner is the one of ours: it says what it wants.
            let wanted = match to_scalar(partner) {
                Ok(Some(scalar)) => wanted_by(&scalar),
                _ => "a single value to compare with".to_owned(),
            };
            Err(data::thrown(mismatch(&wanted, described(value), path(partner))))
        }
        Err(error) => Err(data::thrown(error)),
    }
}

/// The number that an enum gives to a name. A name that it does not have is an error: it would be
/// unequal for ever.
fn named(e: &EnumValue, name: &str, field: &Dynamic) -> Native<i128> {
    e.value_of(name).ok_or_else(|| {
        let names: Vec<&str> = nearest_first(name, e.names().collect());
        let more = if names.len() > 8 { ", .." } else { "" };
        let names: Vec<&str> = names.into_iter().take(8).collect();
        let wanted = format!("a name of {} ({}{more})", e.type_name(), names.join(", "));
        data::thrown(mismatch(&wanted, format!("{name:?}"), path(field)))
    })
}

/// A number to compare or compute with.
#[derive(Clone, Copy)]
pub(crate) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(crate) fn of(scalar: &Scalar) -> Option<Number> {
        match scalar {
            Scalar::Float(x) => Some(Number::Float(*x)),
            other => other.number().map(Number::Whole),
        }
    }

    pub(crate) fn float(self) -> f64 {
        match self {
            Number::Whole(n) => n as f64,
            Number::Float(x) => x,
        }
    }

    fn order(self, other: Number) -> Native<Option<Ordering>> {
        use Number::{Float, Whole};
        let wide = |n: i128| n > i128::from(i64::MAX);
        match (self, other) {
            (Whole(a), Whole(b)) if wide(a) && b < 0 => Err(literal_advice(a, &b.to_string())),
            (Whole(a), Whole(b)) if wide(b) && a < 0 => Err(literal_advice(b, &a.to_string())),
            (Whole(a), Whole(b)) => Ok(Some(a.cmp(&b))),
            (Whole(a), Float(x)) | (Float(x), Whole(a)) if wide(a) => {
                Err(literal_advice(a, &format!("{x:?}")))
            }
            (a, b) => Ok(a.float().partial_cmp(&b.float())),
        }
    }
}

fn literal_advice(wide: i128, other: &str) -> Box<EvalAltResult> {
    Fault::argument(format!(
        "{wide} cannot be compared with {other}: Rhai reads a literal above {} as a float, or in \
         hexadecimal as a negative number; write it as u64(\"..\"), as in u64(\"{wide:#x}\")",
        i64::MAX
    ))
    .into()
}

fn not_comparable(left: &Dynamic, right: &Dynamic, a: &Scalar, b: &Scalar) -> SnapshotError {
    // The captured side says what it wants; of two the left one.
    let ours = |value: &Dynamic| {
        value.is::<Field>() || value.is::<EnumValue>() || value.is::<U64>() || value.tag() != 0
    };
    let (reference, wants, found) =
        if ours(right) && !ours(left) { (right, b, left) } else { (left, a, right) };
    mismatch(&wanted_by(wants), described(found), path(reference))
}

fn wanted_by(scalar: &Scalar) -> String {
    let what = match scalar {
        Scalar::Int(_) | Scalar::U64(_) | Scalar::Float(_) => "a number",
        Scalar::Bool(_) => "true or false",
        Scalar::Str(_) => "text",
        Scalar::Enum(_) => "a number or a name",
    };
    format!("{what} to compare with {}", scalar.described())
}

fn path(value: &Dynamic) -> String {
    value.read_lock::<Field>().map(|field| field.path().to_owned()).unwrap_or_default()
}

pub(super) fn mismatch(expected: &str, actual: String, requested: String) -> SnapshotError {
    SnapshotError::TypeMismatch { expected: expected.to_owned(), actual, requested }
}

/// A whole number, for the functions that take nothing else.
fn whole(value: &Dynamic, call: &str) -> Native<i128> {
    let scalar = to_scalar(value).map_err(data::thrown)?;
    scalar.as_ref().and_then(Scalar::number).ok_or_else(|| {
        let wanted = format!("a whole number for {call}");
        data::thrown(mismatch(&wanted, described(value), path(value)))
    })
}

/// The 64 bits of a whole number.
fn word(value: &Dynamic, call: &str) -> Native<u64> {
    let n = whole(value, call)?;
    i64::try_from(n).map(|n| n as u64).or_else(|_| u64::try_from(n)).map_err(|_| {
        let wanted = format!("a number of 64 bits for {call}");
        data::thrown(mismatch(&wanted, n.to_string(), path(value)))
    })
}

/// Registers what makes `T` a value: all operators, with anything on either side.
pub(crate) fn operators<T: Variant + Clone>(pkg: &mut Package<'_>, ty: &str) {
    for (op, sign) in Op::ALL {
        let doc = "Compares by value; throws for a partner that it cannot be compared with.";
        pkg.func(
            &format!("{sign}(self: {ty}, other: any) -> bool"),
            doc,
            move |a: T, b: Dynamic| compare(op, &Dynamic::from(a), &b),
        );
        pkg.func(
            &format!("{sign}(self: any, other: {ty}) -> bool"),
            doc,
            move |a: Dynamic, b: T| compare(op, &a, &Dynamic::from(b)),
        );
    }
    for sign in ["+", "-", "*", "/", "%", "**", "&", "|", "^", "<<", ">>"] {
        let doc = match sign {
            "+" => "Adds numbers, or appends to text. Overflow is an error.",
            "&" | "|" | "^" | "<<" | ">>" => "Computes on the 64 bits of whole numbers.",
            _ => "Computes with numbers. Overflow is an error.",
        };
        pkg.func(
            &format!("{sign}(self: {ty}, other: any) -> any"),
            doc,
            move |a: T, b: Dynamic| compute(sign, &Dynamic::from(a), &b),
        );
        pkg.func(
            &format!("{sign}(self: any, other: {ty}) -> any"),
            doc,
            move |a: Dynamic, b: T| compute(sign, &a, &Dynamic::from(b)),
        );
    }
    for (name, op, doc) in [
        ("min", Op::Le, "The smaller of two values that compare."),
        ("max", Op::Ge, "The larger of two values that compare."),
    ] {
        let pick = move |a: Dynamic, b: Dynamic| -> Native<Dynamic> {
            let first = compare(op, &a, &b)?;
            plain(if first { a } else { b })
        };
        pkg.func(
            &format!("{name}(self: {ty}, other: any) -> any"),
            doc,
            move |a: T, b: Dynamic| pick(Dynamic::from(a), b),
        );
        pkg.func(&format!("{name}(a: any, b: {ty}) -> any"), doc, move |a: Dynamic, b: T| {
            pick(a, Dynamic::from(b))
        });
    }
    pkg.func(&format!("to_float(self: {ty}) -> float"), "The nearest float.", |a: T| {
        let value = Dynamic::from(a);
        match to_scalar(&value).map_err(data::thrown)? {
            Some(scalar) => scalar.as_f64(&path(&value)).map_err(data::thrown),
            None => Err(data::thrown(mismatch("a number", described(&value), String::new()))),
        }
    })
    .func(
        &format!("to_int(self: {ty}) -> int"),
        "The number as an integer; a float loses what is behind its point.",
        |a: T| -> Native<INT> {
            let value = Dynamic::from(a);
            let wanted = || mismatch("a number that fits i64", described(&value), path(&value));
            match to_scalar(&value).map_err(data::thrown)?.as_ref().and_then(Number::of) {
                Some(Number::Whole(n)) => INT::try_from(n).map_err(|_| data::thrown(wanted())),
                // From the lowest to the highest i64, the latter not being a float itself.
                Some(Number::Float(x)) if (-2f64.powi(63)..2f64.powi(63)).contains(&x) => {
                    Ok(x as INT)
                }
                _ => Err(data::thrown(wanted())),
            }
        },
    );
    pkg.func(&format!("-(self: {ty}) -> any"), "The number with its sign changed.", |a: T| {
        compute("-", &Dynamic::from(0 as INT), &Dynamic::from(a))
    });
}

/// Registers the throwing comparisons of a type that is no single value, so that none is silently
/// `false`.
pub(crate) fn incomparable<T: Variant + Clone>(pkg: &mut Package<'_>, ty: &'static str) {
    let refuse = move || -> Native<bool> {
        Err(Fault::argument(format!("a {ty} cannot be compared: compare values in it")).into())
    };
    for (_, sign) in Op::ALL {
        let doc = "Refused: compare values in it.";
        let (own, other) = (
            format!("{sign}(self: {ty}, other: any) -> bool"),
            format!("{sign}(self: any, other: {ty}) -> bool"),
        );
        pkg.func(&own, doc, move |_: T, _: Dynamic| refuse());
        pkg.func(&other, doc, move |_: Dynamic, _: T| refuse());
    }
}

pub(crate) fn register(pkg: &mut Package<'_>) {
    pkg.ty::<U64>(
        "U64",
        "A whole number above 9223372036854775807; smaller ones are plain `int`.\n\
         It prints in decimal, compares and computes with `int`; overflow is an error.",
    );
    operators::<U64>(pkg, "U64");
    pkg.func("to_string(self: U64) -> string", "The number in decimal.", |n: U64| n.to_string())
        .func("to_debug(self: U64) -> string", "The number in decimal.", |n: U64| n.to_string())
        .func(
            "hex(self: U64) -> string",
            "The number in hexadecimal: `0xffffffff81000000`.",
            |n: U64| format!("{:#x}", n.0),
        )
        .func("hex(self: int) -> string", "The 64 bits of the number in hexadecimal.", |n: INT| {
            format!("{n:#x}")
        });
    pkg.ty::<EnumValue>(
        "EnumValue",
        "A value of a C enum: equal to its name and to its number, printed as the name.",
    );
    operators::<EnumValue>(pkg, "EnumValue");
    pkg.func(
        "to_string(self: EnumValue) -> string",
        "The name, or the number without one.",
        |e: EnumValue| e.to_string(),
    )
    .func(
        "to_debug(self: EnumValue) -> string",
        "The enum, the name and the number.",
        |e: EnumValue| format!("{e:?}"),
    )
    .getter(
        "name(self: EnumValue) -> string",
        "The name; of an enum whose names are bits, those of all bits that are set: `A|B`. `()` when \
         the enum has none for the number.",
        |e: EnumValue| e.name().map_or(Dynamic::UNIT, |name| name.into_owned().into()),
    )
    .func(
        "has(self: EnumValue, name: string) -> bool",
        "Whether all bits of that name, or of those names (`\"A|B\"`), are set. Throws for a name \
         that the enum does not have.",
        |e: EnumValue, name: &str| -> Native<bool> {
            let bits = named(&e, name, &Dynamic::UNIT)?;
            Ok(e.value() & bits == bits)
        },
    )
    .getter(
        "value(self: EnumValue) -> int|U64",
        "The number.",
        |e: EnumValue| -> Native<Dynamic> {
            compute("+", &Dynamic::from(e), &Dynamic::from(0 as INT))
        },
    );
    functions(pkg);
    conversions::<INT>(pkg, "int");
    conversions::<FLOAT>(pkg, "float");
    conversions::<bool>(pkg, "bool");
    conversions::<rhai::ImmutableString>(pkg, "string");
    conversions::<U64>(pkg, "U64");
    conversions::<EnumValue>(pkg, "EnumValue");
}

fn functions(pkg: &mut Package<'_>) {
    pkg.func(
        "u64(text: string) -> int|U64",
        "Reads a number from 0 to 18446744073709551615: `u64(\"0xffffffff81000000\")`, \
         `u64(\"18446744073709551615\")`.",
        |text: &str| -> Native<Dynamic> {
            parse_u64(text).map(U64::dynamic).map_err(|e| Fault::argument(e).into())
        },
    )
    .func(
        "u64(n: any) -> int|U64",
        "The number itself; a negative one is refused.",
        |n: Dynamic| -> Native<Dynamic> {
            match u64::try_from(whole(&n, "u64(..)")?) {
                Ok(n) => Ok(U64::dynamic(n)),
                Err(_) => Err(Fault::argument(format!(
                    "u64({}) is negative: Rhai reads a large literal so; write it as text, as in \
                     u64(\"0xffffffff81000000\")",
                    render(&n)
                ))
                .into()),
            }
        },
    )
    .func(
        "wrapping_sub(a: any, b: any) -> int",
        "`a - b` in 64 bits that wrap, with a sign: how far a counter or a vtime `a` is ahead of `b`.",
        |a: Dynamic, b: Dynamic| -> Native<INT> {
            let call = "wrapping_sub(a, b)";
            Ok(word(&a, call)?.wrapping_sub(word(&b, call)?) as INT)
        },
    )
    .func(
        "time_before(a: any, b: any) -> bool",
        "Whether a time `a` that wraps lies before `b`, as the kernel's `time_before()` tells.",
        |a: Dynamic, b: Dynamic| -> Native<bool> {
            let call = "time_before(a, b)";
            Ok((word(&a, call)?.wrapping_sub(word(&b, call)?) as i64) < 0)
        },
    );
}

/// `as_u64()` and the others on plain values, so that a leaf reads the same whether it came as a
/// field or as its value.
fn conversions<T: Variant + Clone>(pkg: &mut Package<'_>, ty: &str) {
    fn read<T: Variant + Clone, R>(
        value: T,
        convert: impl Fn(&Scalar) -> Result<R, SnapshotError>,
    ) -> Native<R> {
        let value = Dynamic::from(value);
        match to_scalar(&value).map_err(data::thrown)? {
            Some(scalar) => convert(&scalar).map_err(data::thrown),
            None => Err(data::thrown(mismatch("a single value", described(&value), String::new()))),
        }
    }
    pkg.func(&format!("as_u64(self: {ty}) -> int|U64"), "The number, without a sign.", |v: T| {
        read(v, |s| s.as_u64("")).map(U64::dynamic)
    })
    .func(&format!("as_i64(self: {ty}) -> int"), "The number, with its sign.", |v: T| {
        read(v, |s| s.as_i64(""))
    })
    .func(&format!("as_f64(self: {ty}) -> float"), "The number, as a float.", |v: T| {
        read(v, |s| s.as_f64(""))
    })
    .func(
        &format!("as_bool(self: {ty}) -> bool"),
        "False for 0, true for any other number.",
        |v: T| read(v, |s| s.as_bool("")),
    )
    .func(&format!("as_str(self: {ty}) -> string"), "The text, or an enum's name.", |v: T| {
        read(v, |s| s.as_str(""))
    });
}

/// Reads a decimal or hexadecimal number; underscores may group digits.
fn parse_u64(text: &str) -> Result<u64, String> {
    let digits: String = text.trim().chars().filter(|&c| c != '_').collect();
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        // `from_str_radix` would take a sign.
        Some(hex) if hex.starts_with(['+', '-']) => Err(()),
        Some(hex) => u64::from_str_radix(hex, 16).map_err(|_| ()),
        None if digits.starts_with(['+', '-']) => Err(()),
        None => digits.parse().map_err(|_| ()),
    };
    parsed.map_err(|()| {
        format!(
            "u64({text:?}) is no number from 0 to {}: write decimal digits, or 0x and hexadecimal \
             ones",
            u64::MAX
        )
    })
}

#[cfg(test)]
mod tests;
