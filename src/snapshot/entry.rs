//! One entry of a map, and what can be computed over its CPUs.

use std::borrow::Cow;
use std::fmt;

use super::access::{Field, Side};
use super::contents::{Contents, Detail};
use super::error::{SnapshotError, SnapshotResult};
use super::kernel::{Prog, unreadable};
use super::map::Map;
use super::value::Scalar;

/// A key and its value. In a per-CPU map the value is read through [`Entry::cpu`].
#[derive(Clone)]
pub struct Entry {
    map: Map,
    row: usize,
}

/// How the values of all CPUs become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Added up.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl Reduce {
    fn call(self) -> &'static str {
        match self {
            Reduce::Sum => "cpu_sum",
            Reduce::Max => "cpu_max",
            Reduce::Min => "cpu_min",
        }
    }
}

impl Entry {
    pub(crate) fn new(map: Map, row: usize) -> Entry {
        Entry { map, row }
    }

    /// The map it is in, narrowed to the same CPU.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    pub(crate) fn row(&self) -> usize {
        self.row
    }

    /// The key. In arrays it is the index.
    #[must_use]
    pub fn key(&self) -> Field {
        Field::whole(self.clone(), Side::Key)
    }

    /// The key as text: a number, quoted text, `{pid: 1, cpu: 0}`, or bytes in hexadecimal.
    #[must_use]
    pub fn key_text(&self) -> String {
        self.key().inline(80)
    }

    /// The value.
    ///
    /// # Errors
    /// [`SnapshotError::PerCpuNotNarrowed`] in a per-CPU map before [`Entry::cpu`], and
    /// [`SnapshotError::PerCpuSlot`] when the chosen CPU has nothing.
    pub fn value(&self) -> SnapshotResult<Field> {
        let whole = Field::whole(self.clone(), Side::Value);
        whole.bytes()?;
        Ok(whole)
    }

    /// The field at a path in the value.
    ///
    /// # Errors
    /// As [`Entry::value`] and [`Field::get`].
    pub fn get(&self, path: &str) -> SnapshotResult<Field> {
        self.value()?.get(path)
    }

    /// The map that this entry of a map of maps leads to.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] in maps of other kinds;
    /// [`SnapshotError::MapRenderIncomplete`] when there was no such map any more.
    pub fn inner_map(&self) -> SnapshotResult<Map> {
        let id = self.leads_to(&["array_of_maps", "hash_of_maps"], "a map of maps")?;
        let maps = self.map.snapshot().maps()?;
        let found = maps.into_iter().find(|map| u64::from(map.attrs().id) == id);
        found.ok_or_else(|| self.gone("map", id))
    }

    /// The program that this entry of an array of programs leads to.
    ///
    /// # Errors
    /// As [`Entry::inner_map`] and [`Snapshot::progs`](super::Snapshot::progs).
    pub fn prog(&self) -> SnapshotResult<Prog> {
        let id = self.leads_to(&["prog_array"], "an array of programs")?;
        let progs = self.map.snapshot().progs()?;
        let found = progs.into_iter().find(|prog| u64::from(prog.state().id) == id);
        found.ok_or_else(|| self.gone("program", id))
    }

    /// What begins with this page of an arena, as a type of the kernel's or of an object's own. It
    /// may go on in the pages behind it.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] in maps of other kinds, and those of [`Field::as_ptr`].
    pub fn as_type(&self, ty: &str) -> SnapshotResult<Field> {
        self.of_kind(&["arena"], "an arena")?;
        self.key().as_ptr(ty)
    }

    /// The id that is the value in maps of these kinds.
    fn leads_to(&self, kinds: &[&str], what: &str) -> SnapshotResult<u64> {
        self.of_kind(kinds, what)?;
        self.value()?.as_u64()
    }

    /// Whether it is an entry of a map of these kinds.
    pub(super) fn of_kind(&self, kinds: &[&str], what: &str) -> SnapshotResult<()> {
        let kind = self.map.attrs().kind.as_str();
        if kinds.contains(&kind) {
            return Ok(());
        }
        Err(SnapshotError::TypeMismatch {
            expected: format!("an entry of {what}"),
            actual: format!("one of {:?}, which is of kind {kind}", self.map.name()),
            requested: String::new(),
        })
    }

    fn gone(&self, what: &str, id: u64) -> SnapshotError {
        unreadable(
            format!("the {what} behind {}[{}]", self.map.name(), self.key_text()),
            format!("no {what} of id {id} was there any more when they were listed"),
        )
    }

    /// The same entry as one CPU sees it.
    ///
    /// # Errors
    /// [`SnapshotError::PerCpuSlot`] when there is no such CPU, [`SnapshotError::TypeMismatch`]
    /// when the map is not per-CPU.
    pub fn cpu(&self, cpu: i64) -> SnapshotResult<Entry> {
        Ok(Entry { map: self.map.cpu(cpu)?, row: self.row })
    }

    /// Whether there is a value to read: in a per-CPU map, whether memory stands behind the slot
    /// of the chosen CPU, or of any CPU when none was chosen.
    #[must_use]
    pub fn is_present(&self) -> bool {
        let contents = self.map.contents();
        match (contents.cpus(), self.map.narrowed_to()) {
            (None, _) => contents.value(self.row).is_some(),
            (Some(_), Some(cpu)) => contents.cpu_value(self.row, cpu).is_some(),
            (Some(cpus), None) => (0..cpus).any(|c| contents.cpu_value(self.row, c).is_some()),
        }
    }

    /// Why this entry may be half-changed: the vCPUs stop anywhere. Usually empty; the map's own
    /// reasons are in [`Map::torn`].
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        self.map.contents().torn_row(self.row).to_vec()
    }

    /// What the kernel keeps of this entry beside key and value: a cgroup's id, where a socket
    /// leads. Nothing in most kinds.
    #[must_use]
    pub fn details(&self) -> &[(String, Detail)] {
        self.map.contents().row_details(self.row)
    }

    /// One number out of those that each CPU has at a path (the empty path is the value itself),
    /// whether or not the entry was narrowed to one CPU.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`] when the map is not per-CPU, what is there is no number, or
    /// a sum needs more than 64 bits; [`SnapshotError::PerCpuSlot`] when a CPU's slot cannot be
    /// read, since a sum without it would be a wrong one; [`SnapshotError::NoMatch`] when there
    /// is no CPU at all; those of [`Entry::get`].
    pub fn reduce(&self, how: Reduce, path: &str) -> SnapshotResult<Scalar> {
        let cpus = self.map.cpus()?;
        let mut whole: Option<Number> = None;
        for cpu in 0..cpus {
            let entry = Entry { map: self.map.narrowed(cpu), row: self.row };
            let value = entry.value()?;
            let field = if path.is_empty() { value } else { value.get(path)? };
            let number = Number::of(&field)?;
            whole = Some(match whole {
                None => number,
                Some(before) => before.with(number, how),
            });
        }
        let Some(number) = whole else {
            return Err(SnapshotError::NoMatch {
                map: self.map.name().to_owned(),
                op: format!("{}({path:?})", how.call()),
                len: 0,
                available_keys: Vec::new(),
            });
        };
        number.scalar().ok_or_else(|| SnapshotError::TypeMismatch {
            expected: "a sum that fits 64 bits".to_owned(),
            actual: "one that does not (add up .cpu(n) with wrapping_sub, or as_f64())".to_owned(),
            requested: path.to_owned(),
        })
    }

    /// The bytes of one side.
    pub(crate) fn bytes(&self, side: Side) -> SnapshotResult<Cow<'_, [u8]>> {
        let contents = self.map.contents();
        match side {
            Side::Key => match contents.key(self.row) {
                Some(key) => Ok(Cow::Borrowed(key)),
                // The index is what the kernel takes as the key of an array: a u32.
                None => Ok(Cow::Owned((self.row as u32).to_le_bytes().to_vec())),
            },
            Side::Value => self.value_bytes(contents).map(Cow::Borrowed),
        }
    }

    fn value_bytes<'a>(&self, contents: &'a dyn Contents) -> SnapshotResult<&'a [u8]> {
        let map = || self.map.name().to_owned();
        match (contents.cpus(), self.map.narrowed_to()) {
            (None, _) => contents.value(self.row).ok_or_else(|| {
                let error = "the value of this entry was not captured".to_owned();
                SnapshotError::MapRenderIncomplete { map: map(), error }
            }),
            (Some(_), None) => Err(SnapshotError::PerCpuNotNarrowed { map: map() }),
            (Some(len), Some(cpu)) => match contents.cpu_value(self.row, cpu) {
                Some(value) => Ok(value),
                None => {
                    // A copy that was cut off is another reason than a CPU that cannot be.
                    self.map.whole()?;
                    let cpu = i64::try_from(cpu).unwrap_or(i64::MAX);
                    Err(SnapshotError::PerCpuSlot { map: map(), cpu, len, unmapped: true })
                }
            },
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}[{}])", self.map.name(), self.key_text())
    }
}

/// A number that was read, wide enough to add up thousands of CPUs.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn of(field: &Field) -> SnapshotResult<Number> {
        let scalar = match field.leaf()? {
            Some(scalar) => scalar,
            None => return Err(field.mismatch("a number", field.described())),
        };
        match (&scalar, scalar.number()) {
            (Scalar::Float(x), _) => Ok(Number::Float(*x)),
            (_, Some(n)) => Ok(Number::Whole(n)),
            (_, None) => Err(field.mismatch("a number", scalar.described())),
        }
    }

    fn with(self, other: Number, how: Reduce) -> Number {
        use Number::{Float, Whole};
        match (self, other, how) {
            // At most 2^32 CPUs of 64 bits each: this cannot overflow.
            (Whole(a), Whole(b), Reduce::Sum) => Whole(a.saturating_add(b)),
            (Whole(a), Whole(b), Reduce::Max) => Whole(a.max(b)),
            (Whole(a), Whole(b), Reduce::Min) => Whole(a.min(b)),
            (a, b, how) => {
                let (a, b) = (a.float(), b.float());
                // NaN must not vanish in a comparison: `max` and `min` would drop it.
                Float(match how {
                    Reduce::Sum => a + b,
                    _ if a.is_nan() || b.is_nan() => f64::NAN,
                    Reduce::Max => a.max(b),
                    Reduce::Min => a.min(b),
                })
            }
        }
    }

    fn float(self) -> f64 {
        match self {
            Number::Whole(n) => n as f64,
            Number::Float(x) => x,
        }
    }

    fn scalar(self) -> Option<Scalar> {
        match self {
            Number::Whole(n) => Scalar::of_number(n),
            Number::Float(x) => Some(Scalar::Float(x)),
        }
    }
}
