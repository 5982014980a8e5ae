//! What a series holds at one place: a value or an error for each sample.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::PhaseNames;
use crate::snapshot::{DELTA, Meta, Scalar, SnapshotError, SnapshotResult};

/// When a sample was taken, and in which phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The sample.
    pub tag: Arc<str>,
    /// Workload time: pauses are taken out.
    pub elapsed: Duration,
    /// The phase; `name#2` for the second one of that name.
    pub phase: Option<Arc<str>>,
}

impl Stamp {
    pub(super) fn of(meta: &Meta, names: &mut PhaseNames) -> Stamp {
        let phase = meta.phase.as_deref().map(|name| names.of(name, meta.step_index));
        Stamp { tag: Arc::from(meta.tag.as_str()), elapsed: meta.elapsed(), phase }
    }
}

/// A projection of a series. A cheap handle.
#[derive(Clone, Debug)]
pub struct SeriesField {
    label: Arc<str>,
    stamps: Arc<[Stamp]>,
    values: Arc<[Value]>,
}

/// Errors are rare, and large.
type Value = Result<Scalar, Box<SnapshotError>>;

/// One sample's value.
#[derive(Clone, Copy, Debug)]
pub struct Point<'f> {
    /// When.
    pub stamp: &'f Stamp,
    /// What.
    pub value: Result<&'f Scalar, &'f SnapshotError>,
}

impl SeriesField {
    /// A field of these values, one for each stamp.
    #[must_use]
    pub fn new(
        label: &str,
        stamps: Arc<[Stamp]>,
        values: Vec<SnapshotResult<Scalar>>,
    ) -> SeriesField {
        debug_assert_eq!(stamps.len(), values.len());
        let values = values.into_iter().map(|value| value.map_err(Box::new)).collect();
        SeriesField { label: Arc::from(label), stamps, values }
    }

    /// What it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same under another name.
    #[must_use]
    pub fn named(&self, label: &str) -> SeriesField {
        SeriesField { label: Arc::from(label), ..self.clone() }
    }

    /// How many samples it has, errors among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Value or error of each sample.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = Point<'_>> + ExactSizeIterator {
        self.stamps
            .iter()
            .zip(self.values.iter())
            .map(|(stamp, value)| Point { stamp, value: value.as_ref().map_err(|error| &**error) })
    }

    /// The samples that have a value, which is all that the reductions look at.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = (&Stamp, &Scalar)> {
        self.points().filter_map(|point| Some((point.stamp, point.value.ok()?)))
    }

    /// The samples that have none, and why.
    pub fn errors(&self) -> impl Iterator<Item = (&Stamp, &SnapshotError)> {
        self.points().filter_map(|point| Some((point.stamp, point.value.err()?)))
    }

    /// The first value.
    ///
    /// # Errors
    /// [`SnapshotError::NoMatch`] when no sample has one.
    pub fn first(&self) -> SnapshotResult<Scalar> {
        self.usable().next().map(|(_, value)| value.clone()).ok_or_else(|| self.nothing("first"))
    }

    /// The last value.
    ///
    /// # Errors
    /// As [`SeriesField::first`].
    pub fn last(&self) -> SnapshotResult<Scalar> {
        let last = self.usable().next_back();
        last.map(|(_, value)| value.clone()).ok_or_else(|| self.nothing("last"))
    }

    /// The smallest number; NaN when one of them is.
    ///
    /// # Errors
    /// [`SnapshotError::NoMatch`] when no sample has a value, [`SnapshotError::TypeMismatch`] when
    /// one is no number.
    pub fn min(&self) -> SnapshotResult<Scalar> {
        self.extreme("min", Ordering::Less)
    }

    /// The largest number; NaN when one of them is.
    ///
    /// # Errors
    /// As [`SeriesField::min`].
    pub fn max(&self) -> SnapshotResult<Scalar> {
        self.extreme("max", Ordering::Greater)
    }

    /// The mean.
    ///
    /// # Errors
    /// As [`SeriesField::min`].
    pub fn mean(&self) -> SnapshotResult<f64> {
        let numbers = self.numbers("mean")?;
        Ok(mean(&numbers))
    }

    /// How much more the last value is than the first.
    ///
    /// # Errors
    /// As [`SeriesField::min`]; [`SnapshotError::NoMatch`] too when one sample alone has a value,
    /// of which nobody knows whether it changes; [`SnapshotError::TypeMismatch`] when it needs more
    /// than 64 bits.
    pub fn delta(&self) -> SnapshotResult<Scalar> {
        let numbers = self.numbers(DELTA)?;
        let [first, .., last] = numbers.as_slice() else {
            let alone = self.usable().map(|(stamp, _)| stamp.tag.to_string());
            return Err(SnapshotError::NoMatch {
                map: self.label.to_string(),
                op: DELTA.to_owned(),
                len: numbers.len(),
                available_keys: alone.collect(),
            });
        };
        last.minus(*first).ok_or_else(|| SnapshotError::TypeMismatch {
            expected: "a difference that fits 64 bits".to_owned(),
            actual: format!("{} - {}", last.text(), first.text()),
            requested: self.label.to_string(),
        })
    }

    /// Those of one phase.
    #[must_use]
    pub fn phase(&self, name: &str) -> SeriesField {
        let is = |stamp: &&Stamp| stamp.phase.as_deref() == Some(name);
        let kept = self.stamps.iter().zip(self.values.iter()).filter(|(stamp, _)| is(stamp));
        let (stamps, values): (Vec<Stamp>, Vec<Value>) =
            kept.map(|(stamp, value)| (stamp.clone(), value.clone())).unzip();
        SeriesField { label: self.label.clone(), stamps: stamps.into(), values: values.into() }
    }

    /// The phases that have samples, in order.
    #[must_use]
    pub fn phases(&self) -> Vec<Arc<str>> {
        phases(&self.stamps)
    }

    /// What `reduce` makes of each phase.
    ///
    /// # Errors
    /// The first of its errors.
    pub fn per_phase<T>(
        &self,
        reduce: impl Fn(&SeriesField) -> SnapshotResult<T>,
    ) -> SnapshotResult<BTreeMap<Arc<str>, T>> {
        let each = |name: Arc<str>| {
            let value = reduce(&self.phase(&name))?;
            Ok((name, value))
        };
        self.phases().into_iter().map(each).collect()
    }

    fn extreme(&self, op: &str, wanted: Ordering) -> SnapshotResult<Scalar> {
        let numbers = self.numbers(op)?;
        if let Some(nan) = numbers.iter().find(|n| n.is_nan()) {
            return Ok(nan.scalar());
        }
        let best = numbers.into_iter().reduce(|best, n| match n.order(best) {
            Some(order) if order == wanted => n,
            _ => best,
        });
        best.map(Number::scalar).ok_or_else(|| self.nothing(op))
    }

    /// All values as numbers.
    fn numbers(&self, op: &str) -> SnapshotResult<Vec<Number>> {
        let numbers: Vec<Number> = self
            .usable()
            .map(|(_, value)| Number::of(value).ok_or_else(|| self.no_number(value)))
            .collect::<SnapshotResult<_>>()?;
        if numbers.is_empty() { Err(self.nothing(op)) } else { Ok(numbers) }
    }

    pub(super) fn no_number(&self, value: &Scalar) -> SnapshotError {
        SnapshotError::TypeMismatch {
            expected: "a number".to_owned(),
            actual: value.described(),
            requested: self.label.to_string(),
        }
    }

    fn nothing(&self, op: &str) -> SnapshotError {
        SnapshotError::NoMatch {
            map: self.label.to_string(),
            op: op.to_owned(),
            len: 0,
            available_keys: Vec::new(),
        }
    }
}

/// The phases in some stamps, each once, in order.
pub(super) fn phases(stamps: &[Stamp]) -> Vec<Arc<str>> {
    let mut out: Vec<Arc<str>> = Vec::new();
    for phase in stamps.iter().filter_map(|stamp| stamp.phase.as_ref()) {
        // A new one differs from the one before it, so that this is not looked for at each sample.
        if out.last() != Some(phase) && !out.contains(phase) {
            out.push(phase.clone());
        }
    }
    out
}

pub(super) fn mean(numbers: &[Number]) -> f64 {
    let whole: Option<i128> = numbers.iter().try_fold(0i128, |sum, n| match n {
        Number::Whole(n) => sum.checked_add(*n),
        Number::Float(_) => None,
    });
    // Whole numbers are added up as such: large counters have no exact floats.
    let sum = whole.map_or_else(|| numbers.iter().map(|n| n.float()).sum(), |sum| sum as f64);
    sum / numbers.len() as f64
}

/// A value as a number. A truth value counts as 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(super) fn of(scalar: &Scalar) -> Option<Number> {
        match scalar {
            Scalar::Float(x) => Some(Number::Float(*x)),
            Scalar::Bool(b) => Some(Number::Whole((*b).into())),
            other => other.number().map(Number::Whole),
        }
    }

    pub(super) fn float(self) -> f64 {
        match self {
            Number::Whole(n) => n as f64,
            Number::Float(x) => x,
        }
    }

    pub(super) fn is_nan(self) -> bool {
        matches!(self, Number::Float(x) if x.is_nan())
    }

    /// Which is larger; whole numbers are compared exactly, with floats too. None for NaN.
    pub(super) fn order(self, other: Number) -> Option<Ordering> {
        use Number::{Float, Whole};
        match (self, other) {
            (Whole(a), Whole(b)) => Some(a.cmp(&b)),
            (Float(a), Float(b)) => a.partial_cmp(&b),
            (Whole(a), Float(b)) => against(a, b),
            (Float(a), Whole(b)) => against(b, a).map(Ordering::reverse),
        }
    }

    pub(super) fn minus(self, other: Number) -> Option<Scalar> {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => Scalar::of_number(a.checked_sub(b)?),
            (a, b) => Some(Scalar::Float(a.float() - b.float())),
        }
    }

    fn scalar(self) -> Scalar {
        match self {
            // Every value came out of 64 bits.
            Number::Whole(n) => Scalar::of_number(n).unwrap_or(Scalar::Float(n as f64)),
            Number::Float(x) => Scalar::Float(x),
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Number::Whole(n) => n.to_string(),
            Number::Float(x) if x.is_nan() => "NaN".to_owned(),
            Number::Float(x) => format!("{x:?}"),
        }
    }
}

/// A whole number of at most 65 bits against a float.
fn against(whole: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    // Beyond 2^100 the float is larger in any case; below, its whole part is exact.
    let limit = 2f64.powi(100);
    if float >= limit {
        return Some(Ordering::Less);
    }
    if float <= -limit {
        return Some(Ordering::Greater);
    }
    let floor = float.floor();
    Some(whole.cmp(&(floor as i128)).then(if float > floor {
        Ordering::Less
    } else {
        Ordering::Equal
    }))
}
