//! Numbers beyond Rhai's own.

use std::sync::LazyLock;

use super::*;
use rhai::{Engine, Module};

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let mut module = Module::new();
    let mut pkg = Package::new(&mut module);
    crate::script::fault::register(&mut pkg);
    register(&mut pkg);
    let mut engine = Engine::new();
    engine.register_global_module(module.into());
    engine
});

fn eval(script: &str) -> Result<String, String> {
    ENGINE.eval::<Dynamic>(script).map(|value| render(&value)).map_err(|e| match *e {
        EvalAltResult::ErrorRuntime(value, _) => match value.read_lock::<Fault>() {
            Some(fault) => fault.message.clone(),
            None => data::error_of(&value).map_or_else(|| value.to_string(), |e| e.to_string()),
        },
        EvalAltResult::ErrorArithmetic(text, _) => text,
        other => other.to_string(),
    })
}

fn gives(script: &str, want: &str) {
    assert_eq!(eval(script).as_deref(), Ok(want), "{script}");
}

fn throws(script: &str, want: &str) {
    assert_eq!(eval(script), Err(want.to_owned()), "{script}");
}

#[test]
fn numbers_are_read_and_stay_plain_where_they_fit() {
    gives("u64(\"0xffffffff81000000\")", "18446744071578845184");
    gives("u64(\"18446744073709551615\")", "18446744073709551615");
    gives("type_of(u64(\"18446744073709551615\"))", "\"U64\"");
    gives("u64(\"1_000\")", "1000");
    gives("type_of(u64(\"5\"))", "\"i64\"");
    gives("u64(7)", "7");
    gives("u64(u64(\"0xffffffffffffffff\"))", "18446744073709551615");
    for bad in ["", "x", "-1", "+1", "0x", "0x-1", "18446744073709551616", "1.5"] {
        throws(
            &format!("u64({bad:?})"),
            &format!(
                "u64({bad:?}) is no number from 0 to 18446744073709551615: write decimal digits, \
                 or 0x and hexadecimal ones"
            ),
        );
    }
    throws(
        "u64(0xffffffff81000000)",
        "u64(-2130706432) is negative: Rhai reads a large literal so; write it as text, as in \
         u64(\"0xffffffff81000000\")",
    );
    throws("u64(1.5)", "expected a whole number for u64(..), found 1.5 (float)");
}

#[test]
fn they_print_in_decimal_and_in_hexadecimal() {
    gives("`${u64(\"18446744073709551615\")}`", "\"18446744073709551615\"");
    gives("u64(\"18446744073709551615\").hex()", "\"0xffffffffffffffff\"");
    gives("(-1).hex()", "\"0xffffffffffffffff\"");
    gives("255.hex()", "\"0xff\"");
    gives("\"at \" + u64(\"18446744073709551615\")", "\"at 18446744073709551615\"");
    gives("u64(\"18446744073709551615\") + \" ns\"", "\"18446744073709551615 ns\"");
}

#[test]
fn they_compare_with_integers_on_both_sides() {
    let max = "u64(\"18446744073709551615\")";
    for (expr, want) in [
        ("M == M", true),
        ("M != M", false),
        ("M > 5", true),
        ("5 > M", false),
        ("M >= M", true),
        ("M < M", false),
        ("5 <= M", true),
        ("5 != M", true),
        ("M == 5", false),
    ] {
        gives(&expr.replace('M', max), &want.to_string());
    }
    throws(
        &format!("{max} == -1"),
        "18446744073709551615 cannot be compared with -1: Rhai reads a literal above \
         9223372036854775807 as a float, or in hexadecimal as a negative number; write it as \
         u64(\"..\"), as in u64(\"0xffffffffffffffff\")",
    );
    throws(
        &format!("18446744073709551615 == {max}"),
        "18446744073709551615 cannot be compared with 1.8446744073709552e19: Rhai reads a literal \
         above 9223372036854775807 as a float, or in hexadecimal as a negative number; write it \
         as u64(\"..\"), as in u64(\"0xffffffffffffffff\")",
    );
    throws(
        &format!("{max} == \"x\""),
        "expected a number to compare with 18446744073709551615 (int), found \"x\" (string)",
    );
    throws(
        &format!("() == {max}"),
        "expected a number to compare with 18446744073709551615 (int), found nothing, ()",
    );
    throws(
        &format!("{max} != true"),
        "expected a number to compare with 18446744073709551615 (int), found true (bool)",
    );
}

#[test]
fn they_compute_exactly_or_not_at_all() {
    let max = "u64(\"18446744073709551615\")";
    for (expr, want) in [
        ("M - M", "0"),
        ("M - 1", "18446744073709551614"),
        ("9223372036854775807 - M", "-9223372036854775808"),
        ("M / 2", "9223372036854775807"),
        ("M % 10", "5"),
        ("M & 255", "255"),
        ("255 & M", "255"),
        ("M ^ M", "0"),
        ("M >> 60", "15"),
        ("M << 60", "17293822569102704640"),
        ("M & -16", "18446744073709551600"),
        ("M * 1", "18446744073709551615"),
        ("M * 0.5", "9.223372036854776e18"),
        ("M.to_float()", "1.8446744073709552e19"),
        ("max(M, 5)", "18446744073709551615"),
        ("max(5, M)", "18446744073709551615"),
        ("min(5, M)", "5"),
        ("min(M, M)", "18446744073709551615"),
        ("let a = 1; a += M - M; a", "1"),
    ] {
        gives(&expr.replace('M', max), want);
    }
    throws(
        &format!("1 - {max}"),
        "1 - 18446744073709551615 does not fit 64 bits: wrapping_sub(a, b) subtracts counters \
         that wrap",
    );
    throws(
        &format!("{max} + 1"),
        "18446744073709551615 + 1 does not fit 64 bits: compute with .as_f64(), or take \
         differences with wrapping_sub(a, b)",
    );
    throws(
        &format!("-{max}"),
        "0 - 18446744073709551615 does not fit 64 bits: wrapping_sub(a, b) subtracts counters \
         that wrap",
    );
    throws(
        &format!("{max}.to_int()"),
        "expected a number that fits i64, found 18446744073709551615 (U64)",
    );
    throws(&format!("{max} / 0"), "18446744073709551615 / 0: division by zero");
    throws(&format!("{max} % 0"), "18446744073709551615 % 0: division by zero");
    throws(&format!("{max} << 64"), "18446744073709551615 << 64: 64 bits are shifted by 0 to 63");
    throws(&format!("{max} & 1.5"), "1.8446744073709552e19 & 1.5: only whole numbers have bits");
    throws(&format!("{max} * true"), "expected a number for `*`, found true (bool)");
    throws(&format!("{max} - []"), "expected a number for `-`, found an array");
}

#[test]
fn counters_that_wrap_have_their_own_functions() {
    gives("wrapping_sub(5, u64(\"18446744073709551615\"))", "6");
    gives("wrapping_sub(u64(\"18446744073709551615\"), 5)", "-6");
    gives("wrapping_sub(7, 5)", "2");
    gives("wrapping_sub(-9223372036854775807 - 1, 1)", "9223372036854775807");
    gives("time_before(u64(\"18446744073709551615\"), 5)", "true");
    gives("time_before(5, u64(\"18446744073709551615\"))", "false");
    gives("time_before(5, 5)", "false");
    throws(
        "wrapping_sub(1.5, 1)",
        "expected a whole number for wrapping_sub(a, b), found 1.5 (float)",
    );
    throws(
        "time_before(1, \"2\")",
        "expected a whole number for time_before(a, b), found \"2\" (string)",
    );
}

#[test]
fn plain_values_convert_like_fields() {
    gives("5.as_u64()", "5");
    gives("u64(\"18446744073709551615\").as_u64()", "18446744073709551615");
    gives("1.as_bool()", "true");
    gives("true.as_u64()", "1");
    gives("\"x\".as_str()", "\"x\"");
    gives("2.as_f64()", "2.0");
    throws("(-5).as_u64()", "expected an unsigned number, found -5 (int)");
    throws("5.as_str()", "expected text, found 5 (int)");
    throws("\"5\".as_i64()", "expected a whole number, found \"5\" (text)");
}

#[test]
fn values_are_shown_on_one_line_and_on_many() {
    gives(
        "[1, \"a\", 2.0, (), true, 'c', #{ b: 1, \"x y\": [] }]",
        "[1, \"a\", 2.0, (), true, \"c\", #{b: 1, \"x y\": []}]",
    );
    gives("|x| x", "a closure");
    gives("blob(3, 255)", "0xffffff");
    let engine = Engine::new();
    let value: Dynamic = engine
        .eval("#{ short: [1, 2], long: [`${\"x\".len}`, #{ name: \"a name that is quite long\", other: \"another that is long\" }, 3] }")
        .unwrap();
    assert_eq!(
        pretty(&value),
        "#{\n  long: [\n    \"1\"\n    #{name: \"a name that is quite long\", other: \"another that is long\"}\n    3\n  ]\n  short: [1, 2]\n}"
    );
    assert_eq!(pretty(&"plain\ntext".into()), "plain\ntext");
    let endless: Dynamic = vec![Dynamic::from("y".repeat(100)); 5000].into();
    assert!(render(&endless).len() < 2100);
    assert!(pretty(&endless).ends_with("  .. 4000 more\n]"));
}
