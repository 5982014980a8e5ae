//! Durations, parts of a duration, and sizes in an author's spelling.

use std::time::Duration;

use crate::scenario::lab::Span;

/// What a duration looks like, for error messages.
pub(crate) const DURATION: &str = "\"250ms\", \"2s\" or \"1m30s\"";
/// What a stretch of a scenario looks like, for error messages.
pub(crate) const SPAN: &str = "\"250ms\", \"2s\", \"1m30s\", or \"50%\" of the scenario's duration";
/// What a size looks like, for error messages.
pub(crate) const SIZE: &str = "\"512M\" or \"2G\"";

/// Reads `250ms`, `2s`, `1m30s`, `1.5s`: numbers with the units `us`, `ms`, `s`, `m` and `h`,
/// larger units first.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |why: &str| format!("\"{text}\" is no duration: {why}; write {DURATION}");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    let mut total = Duration::ZERO;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(wrong("it has to start with a number"));
        }
        let micros: u64 = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "" => return Err(wrong(&format!("{number} has no unit"))),
            _ => {
                return Err(wrong(&format!(
                    "there is no unit \"{unit}\"; units are us, ms, s, m, h"
                )));
            }
        };
        if micros >= last_unit {
            return Err(wrong("units go from large to small, each once"));
        }
        last_unit = micros;
        let number: f64 =
            number.parse().map_err(|_| wrong(&format!("\"{number}\" is no number")))?;
        let part = Duration::try_from_secs_f64(number * micros as f64 / 1e6)
            .ok()
            .and_then(|part| total.checked_add(part))
            .filter(|sum| *sum <= LONGEST)
            .ok_or_else(|| wrong("it is longer than a week"))?;
        total = part;
        rest = tail;
    }
    Ok(total)
}

/// The longest duration that makes any sense here.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads a duration, or `50%` of a scenario's.
pub(crate) fn span(text: &str) -> Result<Span, String> {
    let Some(number) = text.trim().strip_suffix('%') else {
        return duration(text).map(Span::Time).map_err(|e| e.replace(DURATION, SPAN));
    };
    match number.trim().parse::<f64>() {
        Ok(percent) if percent.is_finite() && (0.0..=10_000.0).contains(&percent) => {
            Ok(Span::Fraction(percent / 100.0))
        }
        _ => Err(format!("\"{text}\" is no part of a duration; write {SPAN}")),
    }
}

/// What a rate looks like, for error messages.
pub(crate) const RATE: &str = "\"100/s\" or \"5/ms\"";

/// Reads `100/s`, `5/ms`: how much in how much time. The answer is by the second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let wrong = |why: &str| format!("\"{text}\" is no rate: {why}; write {RATE}");
    let (number, unit) = text.split_once('/').ok_or_else(|| wrong("it lacks a /"))?;
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        unit => {
            return Err(wrong(&format!("there is no unit \"{unit}\"; units are us, ms, s, m, h")));
        }
    };
    match number.trim().replace('_', "").parse::<f64>() {
        Ok(n) if n.is_finite() => Ok(n / seconds),
        _ => Err(wrong(&format!("\"{}\" is no number", number.trim()))),
    }
}

/// Reads `512M`, `2G`, `64K`: powers of 1024, with or without `B` or `iB` behind them.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = |why: &str| format!("\"{text}\" is no size: {why}; write {SIZE}");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(wrong("it has to start with a whole number"));
    }
    let unit = unit.trim();
    let stem = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let shift = match stem {
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "" => return Err(wrong("it has no unit")),
        _ => return Err(wrong(&format!("there is no unit \"{unit}\"; units are K, M, G, T"))),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| wrong("it does not fit into 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_refused_with_the_reason() {
        let ms = Duration::from_millis;
        let good = [
            ("250ms", ms(250)),
            ("2s", ms(2000)),
            ("1m30s", ms(90_000)),
            ("1.5s", ms(1500)),
            ("1h", ms(3_600_000)),
            ("10us", Duration::from_micros(10)),
            ("0s", ms(0)),
        ];
        for (text, want) in good {
            assert_eq!(duration(text), Ok(want), "{text}");
        }
        let bad = [
            ("", "it is empty"),
            ("5", "5 has no unit"),
            ("s", "it has to start with a number"),
            ("-1s", "it has to start with a number"),
            ("5sec", "there is no unit \"sec\"; units are us, ms, s, m, h"),
            ("1s1m", "units go from large to small, each once"),
            ("1s1s", "units go from large to small, each once"),
            ("1..5s", "\"1..5\" is no number"),
            ("99999h", "it is longer than a week"),
            ("99999999999999999999999999h", "it is longer than a week"),
            ("5 s", "5 has no unit"),
        ];
        for (text, why) in bad {
            let want =
                format!("\"{text}\" is no duration: {why}; write \"250ms\", \"2s\" or \"1m30s\"");
            assert_eq!(duration(text), Err(want), "{text}");
        }
    }

    #[test]
    fn parts_of_a_duration_are_percentages() {
        assert_eq!(span("50%"), Ok(Span::Fraction(0.5)));
        assert_eq!(span("2s"), Ok(Span::Time(Duration::from_secs(2))));
        let help = "write \"250ms\", \"2s\", \"1m30s\", or \"50%\" of the scenario's duration";
        assert_eq!(span("x%"), Err(format!("\"x%\" is no part of a duration; {help}")));
        assert_eq!(span("-5%"), Err(format!("\"-5%\" is no part of a duration; {help}")));
        assert_eq!(span("5"), Err(format!("\"5\" is no duration: 5 has no unit; {help}")));
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, want) in
            [("512M", 512 << 20), ("2G", 2 << 30), ("64K", 64 << 10), ("1GiB", 1 << 30)]
        {
            assert_eq!(size(text), Ok(want), "{text}");
        }
        let bad = [
            ("512", "it has no unit"),
            ("M", "it has to start with a whole number"),
            ("1.5G", "there is no unit \".5G\"; units are K, M, G, T"),
            ("5X", "there is no unit \"X\"; units are K, M, G, T"),
            ("99999999999T", "it does not fit into 64 bits"),
        ];
        for (text, why) in bad {
            let want = format!("\"{text}\" is no size: {why}; write \"512M\" or \"2G\"");
            assert_eq!(size(text), Err(want), "{text}");
        }
    }
}
