//! Projections and patterns; the patterns against an obvious reference.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::snapshot::Meta;

mod projections;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A value of a sample, and how long after the one before it was taken.
type Row = (Option<Scalar>, u64);

fn error(tag: &str) -> SnapshotError {
    SnapshotError::PlaceholderSample { tag: tag.to_owned(), reason: "late".to_owned() }
}

fn field(label: &str, rows: &[Row]) -> SeriesField {
    let mut names = PhaseNames::default();
    let mut elapsed = 0;
    let stamps = rows.iter().enumerate().map(|(i, (_, after))| {
        elapsed += after;
        let meta = Meta { tag: format!("s{i}"), ..Meta::default() };
        Stamp::of(&meta.at(ms(elapsed)), &mut names)
    });
    let stamps: Arc<[Stamp]> = stamps.collect();
    let values = rows.iter().enumerate();
    let values = values.map(|(i, (value, _))| value.clone().ok_or_else(|| error(&format!("s{i}"))));
    SeriesField::new(label, stamps, values.collect())
}

fn ints(values: &[i64]) -> SeriesField {
    let rows: Vec<Row> = values.iter().map(|n| (Some(Scalar::Int(*n)), 100)).collect();
    field("x", &rows)
}

fn told(judgement: &Judgement) -> (Judged, &str) {
    (judgement.outcome, &judgement.found)
}

#[test]
fn a_fall_is_told_with_both_neighbours() {
    let found = ints(&[5, 57, 41, 60, 3]).nondecreasing();
    assert_eq!(
        told(&found),
        (Judged::Fail, "41 in s2 at 0.300 s, after 57 in s1 at 0.200 s; 2 of 4 pairs fail")
    );
    assert_eq!(found.pattern, "nondecreasing()");
    assert_eq!(found.expected, "each sample at least the one before it");
    assert_eq!(told(&ints(&[5, 5, 9]).nondecreasing()), (Judged::Pass, "3 samples from 5 to 9"));
    assert_eq!(
        told(&ints(&[5, 5, 9]).strictly_increasing()),
        (Judged::Fail, "5 in s1 at 0.200 s, after 5 in s0 at 0.100 s; 1 of 2 pairs fail")
    );
    assert_eq!(
        told(&ints(&[5]).nondecreasing()),
        (Judged::Inconclusive, "1 usable of 1 samples; 2 are needed")
    );
}

#[test]
fn what_is_left_out_is_noted() {
    let rows: Vec<Row> = (0..8).map(|i| ((i < 2).then_some(Scalar::Int(i)), 100)).collect();
    let found = field("nr", &rows).nondecreasing();
    assert_eq!(found.outcome, Judged::Pass);
    let note = found.note.unwrap();
    assert!(
        note.starts_with(
            "nr: nondecreasing() left out 6 samples: s2 at 0.300 s (PlaceholderSample: "
        ),
        "{note}"
    );
    assert!(note.ends_with("; and 2 more"), "{note}");
    // Text is no number.
    let rows = [(Some(Scalar::Str("a".into())), 100), (Some(Scalar::Int(1)), 100)];
    let found = field("nr", &rows).nondecreasing();
    assert_eq!(found.outcome, Judged::Inconclusive);
    assert!(found.note.unwrap().contains("TypeMismatch"));
    let found = field("nr", &rows).each(&Bound::AtLeast(Scalar::Int(0))).unwrap();
    assert!(found.found.starts_with("no value in s0 at 0.100 s (TypeMismatch: "), "{found:?}");
}

#[test]
fn numbers_beyond_floats_are_compared_exactly() {
    let top = u64::MAX;
    let rows = [(Some(Scalar::U64(top)), 100), (Some(Scalar::U64(top - 1)), 100)];
    let found = field("x", &rows).nondecreasing();
    assert_eq!(found.outcome, Judged::Fail, "{found:?}");
    assert_eq!(field("x", &rows).delta().unwrap(), Scalar::Int(-1));
    assert_eq!(field("x", &rows).max().unwrap(), Scalar::U64(top));
    let far = [(Some(Scalar::U64(top)), 1), (Some(Scalar::Int(i64::MIN)), 1)];
    let lost = field("x", &far).delta().unwrap_err();
    assert_eq!(lost.kind(), "TypeMismatch");
    let float = [(Some(Scalar::Float(9007199254740992.0)), 1)];
    let bound = Bound::AtLeast(Scalar::Int(9007199254740993));
    assert_eq!(field("x", &float).each(&bound).unwrap().outcome, Judged::Fail);
}

#[test]
fn rates_are_of_neighbours_only() {
    let int = |n| Some(Scalar::Int(n));
    let rows = [(int(0), 100), (int(10), 100), (None, 100), (int(1000), 100), (int(1012), 100)];
    let found = field("x", &rows).rate_within(90.0, 130.0).unwrap();
    assert_eq!(told(&found), (Judged::Pass, "100/s to 120/s over 2 pairs"));
    let found = field("x", &rows).rate_within(110.0, 130.0).unwrap();
    assert_eq!(
        told(&found),
        (Judged::Fail, "100/s: 10 in s1 at 0.200 s, after 0 in s0 at 0.100 s; 1 of 2 pairs fail")
    );
    assert_eq!(found.expected, "a rate between 110/s and 130/s from sample to sample");
    let alone = [(int(0), 100), (None, 100), (int(5), 100)];
    assert_eq!(
        told(&field("x", &alone).rate_within(0.0, 1.0).unwrap()),
        (Judged::Inconclusive, "no two usable samples next to each other")
    );
    let still = [(int(0), 100), (int(5), 0)];
    assert_eq!(
        told(&field("x", &still).rate_within(0.0, 1.0).unwrap()),
        (Judged::Inconclusive, "no time between s0 and s1 at 0.100 s")
    );
    assert_eq!(field("x", &still).rate_within(2.0, 1.0).unwrap_err(), "nothing is between 2 and 1");
}

#[test]
fn steadiness_begins_behind_the_warmup() {
    let found = ints(&[900, 100, 110, 90]).steady_within(ms(200), 0.1).unwrap();
    assert_eq!(told(&found), (Judged::Pass, "3 samples with the mean 100"));
    let found = ints(&[900, 100, 120, 80]).steady_within(ms(200), 0.1).unwrap();
    assert_eq!(
        told(&found),
        (Judged::Fail, "120 in s2 at 0.300 s, 20 % away from the mean 100; 2 of 3 samples fail")
    );
    assert_eq!(found.expected, "every sample from 0.200 s on within 10 % of their mean");
    let found = ints(&[1, -1]).steady_within(ms(0), 0.1).unwrap();
    assert_eq!(told(&found), (Judged::Inconclusive, "the mean of 2 samples is 0"));
    let found = ints(&[1]).steady_within(ms(500), 0.1).unwrap();
    assert_eq!(told(&found), (Judged::Inconclusive, "no usable sample from 0.500 s on"));
    assert_eq!(
        ints(&[1]).steady_within(ms(0), -0.5).unwrap_err(),
        "-0.5 is no fraction: give a number from 0 on"
    );
}

#[test]
fn convergence_has_a_deadline() {
    let found = ints(&[9, 5, 4, 6, 5]).converges_to(5.0, 1.0, ms(450)).unwrap();
    assert_eq!(told(&found), (Judged::Pass, "there in s3 at 0.400 s"));
    let found = ints(&[9, 5, 4, 7, 5]).converges_to(5.0, 1.0, ms(450)).unwrap();
    assert_eq!(told(&found), (Judged::Fail, "nearest 5 in s1 at 0.200 s, last 7 in s3 at 0.400 s"));
    assert_eq!(found.expected, "3 samples in a row within 1 of 5 by 0.450 s");
    let found = ints(&[5, 5, 5]).converges_to(5.0, 1.0, ms(250)).unwrap();
    assert_eq!(
        told(&found),
        (Judged::Inconclusive, "2 usable of 3 samples; 3 are needed by 0.250 s")
    );
}

#[test]
fn strict_patterns_fail_on_what_is_missing() {
    let rows = [(Some(Scalar::Bool(true)), 100), (None, 100)];
    let found = field("ok", &rows).always_true();
    assert_eq!(found.outcome, Judged::Fail);
    assert!(found.found.starts_with("no value in s1 at 0.200 s (PlaceholderSample: "), "{found:?}");
    assert_eq!(told(&ints(&[1, 7]).always_true()), (Judged::Pass, "2 samples from 1 to 7"));
    assert_eq!(
        told(&ints(&[1, 0]).always_true()),
        (Judged::Fail, "0 in s1 at 0.200 s; 1 of 2 samples fail")
    );
    assert_eq!(told(&ints(&[]).always_true()), (Judged::Inconclusive, "no sample at all"));
    let between = Bound::Between(Scalar::Int(1), Scalar::Int(3));
    let found = ints(&[1, 4]).each(&between).unwrap();
    assert_eq!(found.expected, "between 1 and 3 in every sample");
    assert_eq!(told(&found), (Judged::Fail, "4 in s1 at 0.200 s; 1 of 2 samples fail"));
    let no = ints(&[1]).each(&Bound::AtMost(Scalar::Str("x".into()))).unwrap_err();
    assert_eq!(no, "\"x\" (text) is no bound: give a number");
}

#[test]
fn ratios_need_the_same_samples_and_no_zero() {
    let found = ints(&[2, 9]).ratio_within(&ints(&[1, 3]), 1.0, 2.5).unwrap();
    assert_eq!(told(&found), (Judged::Fail, "3: 9 over 3 in s1 at 0.200 s; 1 of 2 samples fail"));
    let found = ints(&[2, 9]).ratio_within(&ints(&[1, 0]), 1.0, 2.5).unwrap();
    assert_eq!(told(&found), (Judged::Inconclusive, "x is 0 in s1 at 0.200 s"));
    let no = ints(&[2]).ratio_within(&ints(&[]), 1.0, 2.0).unwrap_err();
    assert_eq!(no, "x has 1 samples and x has 0: a ratio needs the same samples of both");
}

#[test]
fn nan_fails_by_name() {
    let nan = |x: f64| (Some(Scalar::Float(x)), 100);
    let rows = [nan(1.0), nan(f64::NAN), nan(3.0), nan(3.0), nan(3.0)];
    let f = field("x", &rows);
    let all = [
        f.nondecreasing(),
        f.strictly_increasing(),
        f.rate_within(-1e9, 1e9).unwrap(),
        f.steady_within(ms(0), 9.0).unwrap(),
        f.converges_to(3.0, 1.0, ms(9000)).unwrap(),
        f.always_true(),
        f.each(&Bound::AtLeast(Scalar::Int(-9))).unwrap(),
        f.ratio_within(&f, -9.0, 9.0).unwrap(),
    ];
    for found in all {
        assert_eq!(found.outcome, Judged::Fail, "{found:?}");
        assert!(found.found.starts_with("NaN in s1 at 0.200 s"), "{found:?}");
    }
    assert!(matches!(f.min(), Ok(Scalar::Float(x)) if x.is_nan()));
}

#[test]
fn reductions_over_nothing_say_so() {
    let none = field("x", &[(None, 1)]);
    let want = SnapshotError::NoMatch {
        map: "x".to_owned(),
        op: "min".to_owned(),
        len: 0,
        available_keys: vec![],
    };
    assert_eq!(none.min(), Err(want));
    for error in [none.first().err(), none.last().err(), none.mean().err(), none.delta().err()] {
        assert_eq!(error.unwrap().kind(), "NoMatch");
    }
    let lost = ints(&[3]).delta().unwrap_err();
    assert_eq!(lost.to_string(), "delta needs two samples with a value, and \"x\" has one: s0");
    let some = ints(&[3, 1, 8]);
    assert_eq!((some.min(), some.max()), (Ok(Scalar::Int(1)), Ok(Scalar::Int(8))));
    assert_eq!((some.mean(), some.delta()), (Ok(4.0), Ok(Scalar::Int(5))));
}

/// What the patterns mean, as one would write it down: a value in each sample or none, and times.
mod obvious {
    use super::Judged::{self, Fail, Inconclusive, Pass};

    pub(super) type Seen = [(Option<f64>, u64)];

    pub(super) fn usable(seen: &Seen) -> Vec<f64> {
        seen.iter().filter_map(|(x, _)| *x).collect()
    }

    pub(super) fn rising(seen: &Seen, holds: fn(f64, f64) -> bool) -> Judged {
        let usable = usable(seen);
        if usable.iter().any(|x| x.is_nan()) {
            return Fail;
        }
        for i in 1..usable.len() {
            if !holds(usable[i - 1], usable[i]) {
                return Fail;
            }
        }
        if usable.len() < 2 { Inconclusive } else { Pass }
    }

    pub(super) fn rate(seen: &Seen, lo: f64, hi: f64) -> Judged {
        if usable(seen).iter().any(|x| x.is_nan()) {
            return Fail;
        }
        let (mut pairs, mut unclear) = (0, false);
        for i in 1..seen.len() {
            let ((Some(a), ta), (Some(b), tb)) = (seen[i - 1], seen[i]) else { continue };
            if ta == tb {
                unclear = true;
                continue;
            }
            pairs += 1;
            let rate = (b - a) / ((tb - ta) as f64 / 1000.0);
            if rate < lo || rate > hi {
                return Fail;
            }
        }
        if unclear || pairs == 0 { Inconclusive } else { Pass }
    }

    pub(super) fn steady(seen: &Seen, warmup: u64, fraction: f64) -> Judged {
        let late: Vec<(Option<f64>, u64)> =
            seen.iter().filter(|(_, t)| *t >= warmup).copied().collect();
        let values = usable(&late);
        if values.iter().any(|x| x.is_nan()) {
            return Fail;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        if values.is_empty() || mean == 0.0 {
            return Inconclusive;
        }
        let near = |x: &f64| (x - mean).abs() / mean.abs() <= fraction;
        if values.iter().all(near) { Pass } else { Fail }
    }

    pub(super) fn converges(seen: &Seen, target: f64, tolerance: f64, deadline: u64) -> Judged {
        let early: Vec<(Option<f64>, u64)> =
            seen.iter().filter(|(_, t)| *t <= deadline).copied().collect();
        let values = usable(&early);
        if values.iter().any(|x| x.is_nan()) {
            return Fail;
        }
        if values.len() < 3 {
            return Inconclusive;
        }
        for i in 2..values.len() {
            if (i - 2..=i).all(|k| (values[k] - target).abs() <= tolerance) {
                return Pass;
            }
        }
        Fail
    }

    pub(super) fn each(seen: &Seen, holds: impl Fn(f64) -> bool) -> Judged {
        match seen {
            [] => Inconclusive,
            all if all.iter().all(|(x, _)| x.is_some_and(|x| !x.is_nan() && holds(x))) => Pass,
            _ => Fail,
        }
    }

    pub(super) fn ratio(a: &Seen, b: &Seen, lo: f64, hi: f64) -> Judged {
        let (mut judged, mut unclear) = (0, false);
        for i in 0..a.len() {
            let (Some(x), Some(y)) = (a[i].0, b[i].0) else { continue };
            if x.is_nan() || y.is_nan() {
                return Fail;
            }
            if y == 0.0 {
                unclear = true;
                continue;
            }
            judged += 1;
            if x / y < lo || x / y > hi {
                return Fail;
            }
        }
        if unclear || judged == 0 { Inconclusive } else { Pass }
    }
}

fn value() -> impl Strategy<Value = Option<Scalar>> {
    prop_oneof![
        6 => (-3i64..6).prop_map(|n| Some(Scalar::Int(n))),
        2 => (-4i32..8).prop_map(|n| Some(Scalar::Float(f64::from(n) / 2.0))),
        1 => any::<bool>().prop_map(|b| Some(Scalar::Bool(b))),
        1 => Just(Some(Scalar::Float(f64::NAN))),
        2 => Just(None),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec((value(), prop_oneof![1 => Just(0), 5 => 1u64..4]), 0..7)
}

fn seen(field: &SeriesField) -> Vec<(Option<f64>, u64)> {
    let number = |value: &Scalar| match value {
        Scalar::Int(n) => *n as f64,
        Scalar::Float(x) => *x,
        Scalar::Bool(b) => f64::from(u8::from(*b)),
        other => panic!("{other:?} is not made here"),
    };
    let each =
        |point: Point<'_>| (point.value.ok().map(number), point.stamp.elapsed.as_millis() as u64);
    field.points().map(each).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn patterns_mean_what_is_obvious(
        rows in rows(),
        others in rows(),
        lo in -3i32..3,
        span in 0i32..5,
        warmup in 0u64..8,
    ) {
        let f = field("x", &rows);
        let seen = seen(&f);
        let (lo, hi) = (f64::from(lo), f64::from(lo + span));
        prop_assert_eq!(f.nondecreasing().outcome, obvious::rising(&seen, |a, b| a <= b));
        prop_assert_eq!(f.strictly_increasing().outcome, obvious::rising(&seen, |a, b| a < b));
        let (fast, slow) = (lo * 500.0, hi * 500.0);
        prop_assert_eq!(
            f.rate_within(fast, slow).unwrap().outcome,
            obvious::rate(&seen, fast, slow)
        );
        let fraction = f64::from(span) / 2.0;
        prop_assert_eq!(
            f.steady_within(ms(warmup), fraction).unwrap().outcome,
            obvious::steady(&seen, warmup, fraction)
        );
        prop_assert_eq!(
            f.converges_to(lo, fraction, ms(warmup * 2)).unwrap().outcome,
            obvious::converges(&seen, lo, fraction, warmup * 2)
        );
        prop_assert_eq!(f.always_true().outcome, obvious::each(&seen, |x| x != 0.0));
        let bound = Bound::Between(Scalar::Float(lo), Scalar::Float(hi));
        prop_assert_eq!(
            f.each(&bound).unwrap().outcome,
            obvious::each(&seen, |x| lo <= x && x <= hi)
        );
        let at_least = Bound::AtLeast(Scalar::Float(lo));
        prop_assert_eq!(f.each(&at_least).unwrap().outcome, obvious::each(&seen, |x| lo <= x));
        let at_most = Bound::AtMost(Scalar::Float(hi));
        prop_assert_eq!(f.each(&at_most).unwrap().outcome, obvious::each(&seen, |x| x <= hi));
        // The same number of samples.
        let n = rows.len().min(others.len());
        let (a, b) = (field("a", &rows[..n]), field("b", &others[..n]));
        prop_assert_eq!(
            a.ratio_within(&b, lo, hi).unwrap().outcome,
            obvious::ratio(&self::seen(&a), &self::seen(&b), lo, hi)
        );
    }
}
