//! Temporal patterns over a field.
//!
//! A sample without a value is an error sample: the strict patterns (`always_true`, `each`) fail on
//! it, the others leave it out and say so. What needs more samples than there are, or would divide
//! by zero, is inconclusive. NaN fails.

use std::cmp::Ordering;
use std::time::Duration;

use super::field::{Number, SeriesField, Stamp, mean};
use super::judge::{Judgement, Jury, at, seconds, short};
use crate::snapshot::{Scalar, SnapshotError};

/// Samples in a row that [`SeriesField::converges_to`] wants.
const IN_A_ROW: usize = 3;

/// A value of the field as a number, or what it has instead.
type Read = Result<Number, SnapshotError>;

/// What every sample has to be: see [`SeriesField::each`].
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// No less.
    AtLeast(Scalar),
    /// No more.
    AtMost(Scalar),
    /// Neither less nor more.
    Between(Scalar, Scalar),
}

impl SeriesField {
    fn reads(&self) -> impl DoubleEndedIterator<Item = (&Stamp, Read)> {
        self.points().map(|point| {
            let number = point
                .value
                .map_err(Clone::clone)
                .and_then(|value| Number::of(value).ok_or_else(|| self.no_number(value)));
            (point.stamp, number)
        })
    }

    /// The samples with a number; the others are left out.
    fn numbered(&self, jury: &mut Jury) -> Vec<(&Stamp, Number)> {
        let mut out = Vec::with_capacity(self.len());
        for (stamp, read) in self.reads() {
            match read {
                Ok(number) => out.push((stamp, number)),
                Err(error) => jury.skips(stamp, &error),
            }
        }
        out
    }

    /// Whether no sample is less than the one before it. Fewer than two usable samples are
    /// inconclusive.
    #[must_use]
    pub fn nondecreasing(&self) -> Judgement {
        let expected = "each sample at least the one before it".to_owned();
        self.monotonic(Jury::new("nondecreasing()", expected, "pairs"), Ordering::is_ge)
    }

    /// Whether every sample is more than the one before it. Fewer than two usable samples are
    /// inconclusive.
    #[must_use]
    pub fn strictly_increasing(&self) -> Judgement {
        let expected = "each sample more than the one before it".to_owned();
        self.monotonic(Jury::new("strictly_increasing()", expected, "pairs"), Ordering::is_gt)
    }

    fn monotonic(&self, mut jury: Jury, holds: fn(Ordering) -> bool) -> Judgement {
        let numbers = self.numbered(&mut jury);
        let numbers = self.without_nan(numbers, &mut jury);
        for pair in numbers.windows(2) {
            let [(before, a), (stamp, b)] = pair else { continue };
            // Without NaN there is an order.
            jury.saw(b.order(*a).is_some_and(holds), || {
                format!("{} in {}, after {} in {}", b.text(), at(stamp), a.text(), at(before))
            });
        }
        if numbers.len() < 2 {
            jury.doubts(|| self.too_few(numbers.len(), 2));
        }
        jury.verdict(self.label(), || self.course(&numbers))
    }

    /// Whether the rate between every two samples next to each other, in guest time, is at least
    /// `lo` and at most `hi` a second. An error sample between two is not bridged. Two samples of
    /// one time have no rate, which is inconclusive.
    ///
    /// # Errors
    /// Bounds that no rate can keep.
    pub fn rate_within(&self, lo: f64, hi: f64) -> Result<Judgement, String> {
        ordered(lo, hi)?;
        let expected =
            format!("a rate between {}/s and {}/s from sample to sample", short(lo), short(hi));
        let mut jury = Jury::new("rate_within(..)", expected, "pairs");
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut before: Option<(&Stamp, Number)> = None;
        for (stamp, read) in self.reads() {
            let number = match read {
                Ok(number) if !jury.nan(stamp, number) => number,
                Ok(_) => {
                    before = None;
                    continue;
                }
                Err(error) => {
                    jury.skips(stamp, &error);
                    before = None;
                    continue;
                }
            };
            if let Some((earlier, a)) = before {
                let time = stamp.elapsed.saturating_sub(earlier.elapsed);
                if time.is_zero() {
                    jury.doubts(|| format!("no time between {} and {}", earlier.tag, at(stamp)));
                } else {
                    let rate = difference(number, a) / time.as_secs_f64();
                    (least, most) = (least.min(rate), most.max(rate));
                    jury.saw(lo <= rate && rate <= hi, || {
                        format!(
                            "{}/s: {} in {}, after {} in {}",
                            short(rate),
                            number.text(),
                            at(stamp),
                            a.text(),
                            at(earlier)
                        )
                    });
                }
            }
            before = Some((stamp, number));
        }
        if jury.seen() == 0 {
            let usable = self.usable().count();
            jury.doubts(|| match usable {
                0 | 1 => self.too_few(usable, 2),
                _ => "no two usable samples next to each other".to_owned(),
            });
        }
        let pairs = jury.seen();
        Ok(jury.verdict(self.label(), || {
            format!("{}/s to {}/s over {pairs} pairs", short(least), short(most))
        }))
    }

    /// Whether every sample at or after `warmup` is within `fraction` of the mean of those samples.
    /// A mean of zero is inconclusive.
    ///
    /// # Errors
    /// A fraction that is none.
    pub fn steady_within(&self, warmup: Duration, fraction: f64) -> Result<Judgement, String> {
        not_negative("fraction", fraction)?;
        let expected = format!(
            "every sample from {} on within {} % of their mean",
            seconds(warmup),
            short(fraction * 100.0)
        );
        let mut jury = Jury::new("steady_within(..)", expected, "samples");
        let mut numbers = Vec::new();
        for (stamp, read) in self.reads().filter(|(stamp, _)| stamp.elapsed >= warmup) {
            match read {
                Ok(number) => numbers.push((stamp, number)),
                Err(error) => jury.skips(stamp, &error),
            }
        }
        let numbers = self.without_nan(numbers, &mut jury);
        let all: Vec<Number> = numbers.iter().map(|(_, n)| *n).collect();
        if all.is_empty() {
            jury.doubts(|| format!("no usable sample from {} on", seconds(warmup)));
            return Ok(jury.verdict(self.label(), String::new));
        }
        let mean = mean(&all);
        if mean == 0.0 {
            jury.doubts(|| format!("the mean of {} samples is 0", all.len()));
        } else {
            for (stamp, number) in &numbers {
                let away = (number.float() - mean).abs() / mean.abs();
                jury.saw(away <= fraction, || {
                    let percent = short(away * 100.0);
                    let (value, mean) = (number.text(), short(mean));
                    format!("{value} in {}, {percent} % away from the mean {mean}", at(stamp))
                });
            }
        }
        Ok(jury.verdict(self.label(), || {
            format!("{} samples with the mean {}", all.len(), short(mean))
        }))
    }

    /// Whether three consecutive usable samples at or before `deadline` are within `tolerance` of
    /// `target`. Fewer than three usable samples are inconclusive.
    ///
    /// # Errors
    /// A tolerance that is none, a target that is no number.
    pub fn converges_to(
        &self,
        target: f64,
        tolerance: f64,
        deadline: Duration,
    ) -> Result<Judgement, String> {
        not_negative("tolerance", tolerance)?;
        if !target.is_finite() {
            return Err(format!("nothing converges to {target}"));
        }
        let (goal, by) = (short(target), seconds(deadline));
        let within = format!("within {} of {goal}", short(tolerance));
        let expected = format!("{IN_A_ROW} samples in a row {within} by {by}");
        let mut jury = Jury::new("converges_to(..)", expected, "samples");
        let mut numbers = Vec::new();
        for (stamp, read) in self.reads().filter(|(stamp, _)| stamp.elapsed <= deadline) {
            match read {
                Ok(number) => numbers.push((stamp, number)),
                Err(error) => jury.skips(stamp, &error),
            }
        }
        let numbers = self.without_nan(numbers, &mut jury);
        let near = |n: &Number| (n.float() - target).abs() <= tolerance;
        let reached = numbers.windows(IN_A_ROW).find(|three| three.iter().all(|(_, n)| near(n)));
        let reached = reached.and_then(|three| three.last()).map(|(stamp, _)| at(stamp));
        if numbers.len() < IN_A_ROW {
            jury.doubts(|| format!("{} by {by}", self.too_few(numbers.len(), IN_A_ROW)));
        } else if reached.is_none() && !jury.is_broken() {
            let nearest = numbers.iter().min_by(|(_, a), (_, b)| {
                let away = |n: &Number| (n.float() - target).abs();
                away(a).total_cmp(&away(b))
            });
            let told = |(stamp, n): &(&Stamp, Number)| format!("{} in {}", n.text(), at(stamp));
            let (nearest, last) = (nearest.map(told), numbers.last().map(told));
            jury.saw(false, || {
                format!(
                    "nearest {}, last {}",
                    nearest.unwrap_or_default(),
                    last.unwrap_or_default()
                )
            });
        }
        Ok(jury.verdict(self.label(), || format!("there in {}", reached.unwrap_or_default())))
    }

    /// Whether every sample is true, or a number other than 0. No sample at all is inconclusive.
    #[must_use]
    pub fn always_true(&self) -> Judgement {
        let mut jury = Jury::new("always_true()", "true in every sample".to_owned(), "samples");
        for point in self.points() {
            let stamp = point.stamp;
            match point.value.map(|value| (value, value.as_bool(self.label()))) {
                Ok((Scalar::Float(x), _)) if x.is_nan() => {
                    jury.saw(false, || format!("NaN in {}", at(stamp)));
                }
                Ok((value, Ok(holds))) => jury.saw(holds, || format!("{value} in {}", at(stamp))),
                Ok((value, Err(_))) => jury.saw(false, || {
                    format!("{} in {}, neither true nor false", value.described(), at(stamp))
                }),
                Err(error) => jury.saw(false, || no_value(stamp, error)),
            }
        }
        self.strict(jury)
    }

    /// Whether every sample keeps a bound. No sample at all is inconclusive.
    ///
    /// # Errors
    /// A bound that is no number.
    pub fn each(&self, bound: &Bound) -> Result<Judgement, String> {
        let number = |scalar: &Scalar| match Number::of(scalar) {
            Some(n) if !n.is_nan() => Ok(n),
            _ => Err(format!("{} is no bound: give a number", scalar.described())),
        };
        let (name, lo, hi, expected) = match bound {
            Bound::AtLeast(lo) => ("at_least", Some(number(lo)?), None, format!("at least {lo}")),
            Bound::AtMost(hi) => ("at_most", None, Some(number(hi)?), format!("at most {hi}")),
            Bound::Between(lo, hi) => {
                let words = format!("between {lo} and {hi}");
                ("between", Some(number(lo)?), Some(number(hi)?), words)
            }
        };
        let mut jury =
            Jury::new(format!("each().{name}(..)"), expected + " in every sample", "samples");
        for (stamp, read) in self.reads() {
            match read {
                Ok(n) if jury.nan(stamp, n) => {}
                Ok(n) => {
                    let above = lo.is_none_or(|lo| n.order(lo).is_some_and(Ordering::is_ge));
                    let below = hi.is_none_or(|hi| n.order(hi).is_some_and(Ordering::is_le));
                    jury.saw(above && below, || format!("{} in {}", n.text(), at(stamp)));
                }
                Err(error) => jury.saw(false, || no_value(stamp, &error)),
            }
        }
        Ok(self.strict(jury))
    }

    /// Whether at every index this value over the other's is at least `lo` and at most `hi`. A
    /// denominator of zero is inconclusive.
    ///
    /// # Errors
    /// Series of different length, bounds that no ratio can keep.
    pub fn ratio_within(&self, other: &SeriesField, lo: f64, hi: f64) -> Result<Judgement, String> {
        ordered(lo, hi)?;
        if self.len() != other.len() {
            return Err(format!(
                "{} has {} samples and {} has {}: a ratio needs the same samples of both",
                self.label(),
                self.len(),
                other.label(),
                other.len()
            ));
        }
        let expected = format!(
            "a ratio to {} between {} and {} in every sample",
            other.label(),
            short(lo),
            short(hi)
        );
        let mut jury = Jury::new("ratio_within(..)", expected, "samples");
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for ((stamp, above), (_, below)) in self.reads().zip(other.reads()) {
            let (a, b) = match (above, below) {
                (Ok(a), Ok(b)) => (a, b),
                (Err(error), _) | (_, Err(error)) => {
                    jury.skips(stamp, &error);
                    continue;
                }
            };
            if jury.nan(stamp, a) || jury.nan(stamp, b) {
                continue;
            }
            if b.float() == 0.0 {
                jury.doubts(|| format!("{} is 0 in {}", other.label(), at(stamp)));
                continue;
            }
            let ratio = a.float() / b.float();
            (least, most) = (least.min(ratio), most.max(ratio));
            jury.saw(lo <= ratio && ratio <= hi, || {
                format!("{}: {} over {} in {}", short(ratio), a.text(), b.text(), at(stamp))
            });
        }
        if jury.seen() == 0 {
            jury.doubts(|| "no sample has both".to_owned());
        }
        let seen = jury.seen();
        Ok(jury.verdict(self.label(), || {
            format!("{} to {} in {seen} samples", short(least), short(most))
        }))
    }

    /// How much the field changed in phase `a` over how much it did in phase `b`.
    ///
    /// # Errors
    /// Why there is no such ratio: a phase without two usable samples, or one without a change.
    pub fn ratio_across_phases(&self, a: &str, b: &str) -> Result<f64, String> {
        let change = |name: &str| -> Result<f64, String> {
            let phase = self.phase(name);
            let numbers: Vec<Number> =
                phase.usable().filter_map(|(_, value)| Number::of(value)).collect();
            match (numbers.first(), numbers.last()) {
                (Some(first), Some(last)) if numbers.len() > 1 => Ok(difference(*last, *first)),
                _ => Err(format!(
                    "phase {name:?} has {} usable samples; a change needs two",
                    numbers.len()
                )),
            }
        };
        let (above, below) = (change(a)?, change(b)?);
        if below == 0.0 {
            return Err(format!(
                "{} did not change in phase {b:?}: there is no ratio",
                self.label()
            ));
        }
        if above.is_nan() || below.is_nan() {
            return Err(format!("{} is NaN at an end of a phase", self.label()));
        }
        Ok(above / below)
    }

    fn strict(&self, mut jury: Jury) -> Judgement {
        if jury.seen() == 0 {
            jury.doubts(|| "no sample at all".to_owned());
        }
        let numbers: Vec<(&Stamp, Number)> =
            self.reads().filter_map(|(stamp, read)| Some((stamp, read.ok()?))).collect();
        jury.verdict(self.label(), || self.course(&numbers))
    }

    fn without_nan<'f>(
        &self,
        numbers: Vec<(&'f Stamp, Number)>,
        jury: &mut Jury,
    ) -> Vec<(&'f Stamp, Number)> {
        numbers.into_iter().filter(|(stamp, number)| !jury.nan(stamp, *number)).collect()
    }

    fn too_few(&self, usable: usize, wanted: usize) -> String {
        format!("{usable} usable of {} samples; {wanted} are needed", self.len())
    }

    /// What there is, when nothing is wrong with it.
    fn course(&self, numbers: &[(&Stamp, Number)]) -> String {
        match numbers {
            [] => format!("{} samples", self.len()),
            [(_, only)] => format!("{} in one sample", only.text()),
            [(_, first), .., (_, last)] => {
                format!("{} samples from {} to {}", numbers.len(), first.text(), last.text())
            }
        }
    }
}

fn no_value(stamp: &Stamp, error: &SnapshotError) -> String {
    format!("no value in {} ({}: {error})", at(stamp), error.kind())
}

fn difference(b: Number, a: Number) -> f64 {
    match (b, a) {
        // Exact for counters beyond 2^53.
        (Number::Whole(b), Number::Whole(a)) => (b - a) as f64,
        (b, a) => b.float() - a.float(),
    }
}

fn ordered(lo: f64, hi: f64) -> Result<(), String> {
    match lo <= hi {
        true => Ok(()),
        false => Err(format!("nothing is between {} and {}", short(lo), short(hi))),
    }
}

fn not_negative(what: &str, x: f64) -> Result<(), String> {
    match x >= 0.0 && x.is_finite() {
        true => Ok(()),
        false => Err(format!("{} is no {what}: give a number from 0 on", short(x))),
    }
}
