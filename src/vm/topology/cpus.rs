//! Sets of CPUs: as numbers, and as authors name them by their place in a topology.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{MAX_CPUS, Topology, TopologyError};

impl Topology {
    /// Reads a set of this machine's CPUs. The spellings:
    ///
    /// | spelling | CPUs |
    /// |---|---|
    /// | `all` | every one |
    /// | `0-3,8` | a list as the kernel writes it |
    /// | `llc:1`, `node:0` | those of an LLC, of a node; a node without CPUs is an error |
    /// | `disjoint:I/N` | part I of N parts that cover all CPUs and share none |
    /// | `overlap:I/N@F` | window I of N equally wide windows that cover all CPUs, neighbours sharing the fraction F of their width |
    /// | `range:A-B` | from the fraction A to the fraction B of all CPUs |
    ///
    /// # Errors
    /// [`TopologyError::CpuSet`] for any other spelling, for CPUs, LLCs, nodes or parts that do
    /// not exist, and for sets that come out empty.
    pub fn cpu_set(&self, asked: &str) -> Result<CpuSet, TopologyError> {
        let set = match asked.split_once(':') {
            _ if asked == "all" => Ok(self.all()),
            None if asked.starts_with(|c: char| c.is_ascii_digit()) => self.listed(asked),
            Some(("llc", n)) => self.member(n, self.llcs(), "LLC", |n| self.cpus_of_llc(n)),
            Some(("node", n)) => self.member(n, self.nodes(), "node", |n| self.cpus_of_node(n)),
            Some(("disjoint", part)) => self.window(part, 0.0),
            Some(("overlap", part)) => self.overlap(part),
            Some(("range", range)) => self.range(range),
            _ => Err(unknown(asked)),
        };
        let wrong = |reason| TopologyError::CpuSet { asked: asked.to_owned(), reason };
        let set = set.map_err(wrong)?;
        if set.is_empty() {
            return Err(wrong(format!("no CPU is in it; {self} has {} CPUs", self.cpus())));
        }
        Ok(set)
    }

    fn listed(&self, list: &str) -> Result<CpuSet, String> {
        let set: CpuSet = list.parse().map_err(|e: TopologyError| match e {
            TopologyError::CpuSet { reason, .. } => reason,
            other => other.to_string(),
        })?;
        let beyond = set.iter().find(|cpu| *cpu >= self.cpus());
        match beyond {
            Some(cpu) => Err(format!("there is no CPU {cpu}; {self} has CPUs {}", self.all())),
            None => Ok(set),
        }
    }

    fn member(
        &self,
        number: &str,
        count: u32,
        what: &str,
        cpus: impl Fn(u32) -> CpuSet,
    ) -> Result<CpuSet, String> {
        let n = number.parse::<u32>().map_err(|_| format!("{number:?} is not a number"))?;
        if n >= count {
            let last = count - 1;
            return Err(format!("there is no {what} {n}; {self} has {what}s 0 to {last}"));
        }
        let cpus = cpus(n);
        if cpus.is_empty() {
            let with = |n: &u32| !self.cpus_of_node(*n).is_empty();
            let with: Vec<String> =
                (0..self.nodes()).filter(with).map(|n| format!("\"node:{n}\"")).collect();
            let with = with.join(", ");
            return Err(format!("node {n} of {self} has memory only; nodes with CPUs are {with}"));
        }
        Ok(cpus)
    }

    fn overlap(&self, asked: &str) -> Result<CpuSet, String> {
        let (part, share) = asked
            .split_once('@')
            .ok_or("the shared fraction is missing, as in \"overlap:0/2@0.5\"")?;
        self.window(part, fraction(share)?)
    }

    /// Window `I/N` of windows that share `share` of their width with the next.
    fn window(&self, part: &str, share: f64) -> Result<CpuSet, String> {
        let (index, of) = part
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse::<u32>().ok()?, n.parse::<u32>().ok()?)))
            .ok_or_else(|| format!("{part:?} is not a part, as in \"0/2\""))?;
        match of.checked_sub(1) {
            None => return Err("there must be at least one part".to_owned()),
            Some(last) if index > last => {
                return Err(format!("part {index} of {of} does not exist; parts are 0 to {last}"));
            }
            Some(_) => {}
        }
        let stride_in_widths = 1.0 - share;
        let width = f64::from(self.cpus()) / (1.0 + f64::from(of - 1) * stride_in_widths);
        let start = f64::from(index) * width * stride_in_widths;
        Ok(self.between(start, start + width))
    }

    fn range(&self, asked: &str) -> Result<CpuSet, String> {
        let (from, to) =
            asked.split_once('-').ok_or("two fractions are needed, as in \"range:0.0-0.5\"")?;
        let (from, to) = (fraction(from)?, fraction(to)?);
        if from >= to {
            return Err(format!("the range must ascend, {from} is not below {to}"));
        }
        let cpus = f64::from(self.cpus());
        Ok(self.between(from * cpus, to * cpus))
    }

    /// CPUs between two positions, each rounded to the nearest boundary between CPUs.
    fn between(&self, start: f64, end: f64) -> CpuSet {
        // The end of one window and the start of the next are computed differently; a hair more
        // than the last bit lets both fall on the same side of a boundary. Positions lie within
        // 0..=MAX_CPUS, so the conversions are exact.
        let boundary = |position: f64| (position + 1e-9).round() as u32;
        (boundary(start)..boundary(end).min(self.cpus())).collect()
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not a fraction from 0.0 to 1.0")),
    }
}

fn unknown(asked: &str) -> String {
    const FORMS: [&str; 5] = ["llc", "node", "disjoint", "overlap", "range"];
    let word = asked.split(':').next().unwrap_or_default();
    let near = FORMS
        .iter()
        .chain(&["all"])
        .min_by_key(|form| strsim::damerau_levenshtein(word, form))
        .filter(|form| strsim::damerau_levenshtein(word, form) <= 2);
    let hint = near.map_or(String::new(), |form| format!("; did you mean \"{form}\"?"));
    format!(
        "not one of \"all\", \"0-3,8\", \"llc:0\", \"node:0\", \"disjoint:0/2\", \
         \"overlap:0/2@0.5\", \"range:0.0-0.5\"{hint}"
    )
}

/// A set of CPU numbers; prints and parses as the kernel's CPU lists do (`0-3,8`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many CPUs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `cpu` is one of them.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// Maximal runs of consecutive CPUs as (first, last).
    fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for cpu in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => runs.push((cpu, cpu)),
            }
        }
        runs
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        CpuSet(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.runs().into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for CpuSet {
    type Err = TopologyError;

    /// Reads a list as the kernel writes it; an empty list is an empty set.
    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| TopologyError::CpuSet { asked: list.to_owned(), reason };
        let number = |text: &str| match text.parse::<u32>() {
            Ok(cpu) if cpu < MAX_CPUS => Ok(cpu),
            Ok(cpu) => Err(wrong(format!("CPU {cpu} is beyond the most there can be, {MAX_CPUS}"))),
            Err(_) => Err(wrong(format!("{text:?} is not a CPU number, as in \"0-3,8\""))),
        };
        let mut set = BTreeSet::new();
        for part in list.split(',').filter(|_| !list.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong(format!("the range {part:?} runs backwards")));
            }
            set.extend(first..=last);
        }
        Ok(CpuSet(set))
    }
}
