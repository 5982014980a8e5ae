//! The shape of a machine: NUMA nodes, last-level caches, cores, threads, and sets of its CPUs.
//!
//! A topology is written `NnLlCcTt`, as in `1n2l2c1t`: nodes, LLCs in the whole machine, cores per
//! LLC, threads per core. CPUs are numbered the way the guest's kernel numbers them: threads of a
//! core are neighbours, then the cores of an LLC, then the LLCs of a node.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The most CPUs any topology may have; engines may take fewer.
pub const MAX_CPUS: u32 = 512;

/// Nodes, last-level caches, cores and threads of a machine.
///
/// Invariant: no count is zero, LLCs are shared out evenly over the nodes, and there are at most
/// [`MAX_CPUS`] CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    nodes: u32,
    llcs: u32,
    cores: u32,
    threads: u32,
}

/// A topology or a set of CPUs that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Not of the form `NnLlCcTt`.
    #[error(
        "topology {asked:?}: {reason}; write it as nodes, LLCs (total), cores per LLC and threads \
         per core, as in \"1n2l2c1t\""
    )]
    Spelling {
        /// What was written.
        asked: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The LLCs cannot be shared out over the nodes.
    #[error(
        "topology {asked:?}: {llcs} LLCs cannot be shared out evenly over {nodes} nodes; \
         \"l\" counts the LLCs of the whole machine, so make it a multiple of \"n\""
    )]
    Uneven {
        /// What was written.
        asked: String,
        /// Nodes asked for.
        nodes: u32,
        /// LLCs asked for.
        llcs: u32,
    },
    /// More CPUs than anything here can run.
    #[error("topology {asked:?} has {cpus} CPUs; at most {MAX_CPUS} are possible")]
    TooManyCpus {
        /// What was written.
        asked: String,
        /// CPUs that would be.
        cpus: u64,
    },
    /// Not a set of CPUs.
    #[error("CPU set {asked:?}: {reason}")]
    CpuSet {
        /// What was written.
        asked: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

impl Topology {
    /// A machine of one node and one LLC with `cores` single-threaded cores.
    ///
    /// # Errors
    /// [`TopologyError::Spelling`] for zero, [`TopologyError::TooManyCpus`] beyond [`MAX_CPUS`].
    pub fn flat(cores: u32) -> Result<Self, TopologyError> {
        Self::parse(&format!("1n1l{cores}c1t"))
    }

    /// Reads `NnLlCcTt`.
    ///
    /// # Errors
    /// Every [`TopologyError`] but `CpuSet`.
    pub fn parse(asked: &str) -> Result<Self, TopologyError> {
        let wrong = |reason: String| TopologyError::Spelling { asked: asked.to_owned(), reason };
        let mut rest = asked;
        let mut counts = [0u32; 4];
        let parts = [("n", "nodes"), ("l", "LLCs"), ("c", "cores"), ("t", "threads")];
        for (count, (letter, what)) in counts.iter_mut().zip(parts) {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, after) = rest.split_at(digits);
            if number.is_empty() {
                return Err(wrong(format!("the number of {what} before \"{letter}\" is missing")));
            }
            rest = after.strip_prefix(letter).ok_or_else(|| {
                let found = after.chars().next().map_or("the end".to_owned(), |c| format!("{c:?}"));
                wrong(format!("\"{letter}\" ({what}) belongs after \"{number}\", found {found}"))
            })?;
            *count = number.parse().map_err(|_| wrong(format!("{number} {what} are too many")))?;
            if *count == 0 {
                return Err(wrong(format!("there must be at least one of the {what}")));
            }
        }
        if !rest.is_empty() {
            return Err(wrong(format!("nothing may follow the threads, found {rest:?}")));
        }
        let [nodes, llcs, cores, threads] = counts;
        let cpus = u64::from(llcs).saturating_mul(cores.into()).saturating_mul(threads.into());
        if cpus > u64::from(MAX_CPUS) {
            return Err(TopologyError::TooManyCpus { asked: asked.to_owned(), cpus });
        }
        if llcs % nodes != 0 {
            return Err(TopologyError::Uneven { asked: asked.to_owned(), nodes, llcs });
        }
        Ok(Topology { nodes, llcs, cores, threads })
    }

    /// NUMA nodes.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Last-level caches in the whole machine.
    #[must_use]
    pub fn llcs(&self) -> u32 {
        self.llcs
    }

    /// Last-level caches in each node.
    #[must_use]
    pub fn llcs_per_node(&self) -> u32 {
        self.llcs / self.nodes
    }

    /// Cores that share an LLC.
    #[must_use]
    pub fn cores_per_llc(&self) -> u32 {
        self.cores
    }

    /// Hardware threads of a core.
    #[must_use]
    pub fn threads_per_core(&self) -> u32 {
        self.threads
    }

    /// CPUs in the whole machine.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.llcs * self.cpus_per_llc()
    }

    fn cpus_per_llc(&self) -> u32 {
        self.cores * self.threads
    }

    /// The LLC of a CPU, or `None` when there is no such CPU.
    #[must_use]
    pub fn llc_of(&self, cpu: u32) -> Option<u32> {
        (cpu < self.cpus()).then(|| cpu / self.cpus_per_llc())
    }

    /// The node of a CPU, or `None` when there is no such CPU.
    #[must_use]
    pub fn node_of(&self, cpu: u32) -> Option<u32> {
        self.llc_of(cpu).map(|llc| llc / self.llcs_per_node())
    }

    /// The CPUs that share a core with this one (itself included); empty without such a CPU.
    #[must_use]
    pub fn siblings_of(&self, cpu: u32) -> CpuSet {
        if cpu >= self.cpus() {
            return CpuSet::default();
        }
        let first = cpu - cpu % self.threads;
        (first..first + self.threads).collect()
    }

    /// The CPUs of an LLC; empty when there is no such LLC.
    #[must_use]
    pub fn cpus_of_llc(&self, llc: u32) -> CpuSet {
        (0..self.cpus()).filter(|cpu| self.llc_of(*cpu) == Some(llc)).collect()
    }

    /// The CPUs of a node; empty when there is no such node.
    #[must_use]
    pub fn cpus_of_node(&self, node: u32) -> CpuSet {
        (0..self.cpus()).filter(|cpu| self.node_of(*cpu) == Some(node)).collect()
    }

    /// Every CPU.
    #[must_use]
    pub fn all(&self) -> CpuSet {
        (0..self.cpus()).collect()
    }

    /// Reads a set of this machine's CPUs. The spellings:
    ///
    /// | spelling | CPUs |
    /// |---|---|
    /// | `all` | every one |
    /// | `0-3,8` | a list as the kernel writes it |
    /// | `llc:1`, `node:0` | those of an LLC, of a node |
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
            Some(("llc", n)) => self.member(n, self.llcs, "LLC", |n| self.cpus_of_llc(n)),
            Some(("node", n)) => self.member(n, self.nodes, "node", |n| self.cpus_of_node(n)),
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
        Ok(cpus(n))
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

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}n{}l{}c{}t", self.nodes, self.llcs, self.cores, self.threads)
    }
}

impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topo(spec: &str) -> Topology {
        Topology::parse(spec).unwrap()
    }

    #[test]
    fn a_topology_says_where_each_cpu_is() {
        let t = topo("2n4l2c2t");
        assert_eq!((t.nodes(), t.llcs(), t.cores_per_llc(), t.threads_per_core()), (2, 4, 2, 2));
        assert_eq!(t.cpus(), 16);
        assert_eq!(t.llcs_per_node(), 2);
        let cases = [(0, 0, 0), (3, 0, 0), (4, 1, 0), (7, 1, 0), (8, 2, 1), (15, 3, 1)];
        for (cpu, llc, node) in cases {
            assert_eq!((t.llc_of(cpu), t.node_of(cpu)), (Some(llc), Some(node)), "CPU {cpu}");
        }
        assert_eq!((t.llc_of(16), t.node_of(16)), (None, None));
        assert_eq!(t.siblings_of(5).to_string(), "4-5");
        assert_eq!(t.siblings_of(16).to_string(), "");
        assert_eq!(t.cpus_of_llc(1).to_string(), "4-7");
        assert_eq!(t.cpus_of_node(1).to_string(), "8-15");
        assert!(t.cpus_of_llc(4).is_empty());
        assert_eq!(Topology::flat(3).unwrap(), topo("1n1l3c1t"));
    }

    #[test]
    fn wrong_topologies_say_what_is_right() {
        let form = "; write it as nodes, LLCs (total), cores per LLC and threads per core, as in \
                    \"1n2l2c1t\"";
        let spelling = [
            ("", "the number of nodes before \"n\" is missing"),
            ("n1l1c1t", "the number of nodes before \"n\" is missing"),
            ("1n2l", "the number of cores before \"c\" is missing"),
            ("1n2", "\"l\" (LLCs) belongs after \"2\", found the end"),
            ("1n2c1l1t", "\"l\" (LLCs) belongs after \"2\", found 'c'"),
            ("1n0l2c1t", "there must be at least one of the LLCs"),
            ("1n1l2c1tx", "nothing may follow the threads, found \"x\""),
            ("99999999999n1l1c1t", "99999999999 nodes are too many"),
            ("1n-1l1c1t", "the number of LLCs before \"l\" is missing"),
            ("1n1l1ü1t", "\"c\" (cores) belongs after \"1\", found 'ü'"),
        ];
        for (asked, reason) in spelling {
            let error = Topology::parse(asked).unwrap_err();
            assert_eq!(error.to_string(), format!("topology {asked:?}: {reason}{form}"));
        }
        let others = [
            (
                "2n3l1c1t",
                "topology \"2n3l1c1t\": 3 LLCs cannot be shared out evenly over 2 nodes; \"l\" \
                 counts the LLCs of the whole machine, so make it a multiple of \"n\"",
            ),
            ("1n2l200c2t", "topology \"1n2l200c2t\" has 800 CPUs; at most 512 are possible"),
            (
                "1n4000000000l4000000000c4000000000t",
                "topology \"1n4000000000l4000000000c4000000000t\" has 18446744073709551615 CPUs; \
                 at most 512 are possible",
            ),
        ];
        for (asked, message) in others {
            assert_eq!(Topology::parse(asked).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn cpu_sets_in_every_spelling() {
        let cases = [
            ("1n2l2c1t", "all", "0-3"),
            ("1n2l2c1t", "0-1,3", "0-1,3"),
            ("1n2l2c1t", "3,0", "0,3"),
            ("1n2l2c1t", "llc:1", "2-3"),
            ("2n2l2c2t", "node:1", "4-7"),
            ("1n1l8c1t", "disjoint:0/2", "0-3"),
            ("1n1l8c1t", "disjoint:1/2", "4-7"),
            ("1n1l8c1t", "disjoint:1/3", "3-4"),
            ("1n1l4c1t", "overlap:0/2@0.5", "0-2"),
            ("1n1l4c1t", "overlap:1/2@0.5", "1-3"),
            ("1n1l6c1t", "overlap:0/2@0.5", "0-3"),
            ("1n1l6c1t", "overlap:1/2@0.5", "2-5"),
            ("1n1l6c1t", "overlap:1/2@1", "0-5"),
            ("1n1l6c1t", "overlap:1/2@0", "3-5"),
            ("1n1l8c1t", "range:0.0-0.5", "0-3"),
            ("1n1l8c1t", "range:0.5-1.0", "4-7"),
            ("1n1l1c1t", "disjoint:0/1", "0"),
        ];
        for (spec, asked, set) in cases {
            assert_eq!(topo(spec).cpu_set(asked).unwrap().to_string(), set, "{asked} on {spec}");
        }
    }

    #[test]
    fn wrong_cpu_sets_say_what_is_right() {
        let forms = "not one of \"all\", \"0-3,8\", \"llc:0\", \"node:0\", \"disjoint:0/2\", \
                     \"overlap:0/2@0.5\", \"range:0.0-0.5\"";
        let cases = [
            ("llc:2", "there is no LLC 2; 1n2l2c1t has LLCs 0 to 1".to_owned()),
            ("node:1", "there is no node 1; 1n2l2c1t has nodes 0 to 0".to_owned()),
            ("llc:x", "\"x\" is not a number".to_owned()),
            ("0-8", "there is no CPU 4; 1n2l2c1t has CPUs 0-3".to_owned()),
            ("3-1", "the range \"3-1\" runs backwards".to_owned()),
            ("0,,2", "\"\" is not a CPU number, as in \"0-3,8\"".to_owned()),
            ("0-4000000000", "CPU 4000000000 is beyond the most there can be, 512".to_owned()),
            ("disjoint:2/2", "part 2 of 2 does not exist; parts are 0 to 1".to_owned()),
            ("disjoint:0/0", "there must be at least one part".to_owned()),
            ("disjoint:1", "\"1\" is not a part, as in \"0/2\"".to_owned()),
            ("disjoint:0/9", "no CPU is in it; 1n2l2c1t has 4 CPUs".to_owned()),
            ("overlap:0/2", "the shared fraction is missing, as in \"overlap:0/2@0.5\"".to_owned()),
            ("overlap:0/2@nan", "\"nan\" is not a fraction from 0.0 to 1.0".to_owned()),
            ("range:0.5", "two fractions are needed, as in \"range:0.0-0.5\"".to_owned()),
            ("range:0.5-0.5", "the range must ascend, 0.5 is not below 0.5".to_owned()),
            ("range:0-2", "\"2\" is not a fraction from 0.0 to 1.0".to_owned()),
            ("lcc:0", format!("{forms}; did you mean \"llc\"?")),
            ("nodes:0", format!("{forms}; did you mean \"node\"?")),
            ("every", forms.to_owned()),
            ("", forms.to_owned()),
        ];
        for (asked, reason) in cases {
            let error = topo("1n2l2c1t").cpu_set(asked).unwrap_err();
            assert_eq!(error.to_string(), format!("CPU set {asked:?}: {reason}"));
        }
    }

    prop_compose! {
        fn topologies()(n in 1u32..4, l in 1u32..4, c in 1u32..5, t in 1u32..3) -> Topology {
            topo(&format!("{n}n{}l{c}c{t}t", n * l))
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(t in topologies()) {
            prop_assert_eq!(t.to_string().parse::<Topology>().unwrap(), t);
        }

        #[test]
        fn llcs_and_nodes_partition_the_cpus(t in topologies()) {
            let llcs: Vec<u32> = (0..t.llcs()).flat_map(|i| t.cpus_of_llc(i).0).collect();
            let nodes: Vec<u32> = (0..t.nodes()).flat_map(|i| t.cpus_of_node(i).0).collect();
            let all: Vec<u32> = t.all().iter().collect();
            prop_assert_eq!(&llcs, &all);
            prop_assert_eq!(&nodes, &all);
        }

        #[test]
        fn disjoint_parts_partition_the_cpus(t in topologies(), of in 1u32..5) {
            let of = of.min(t.cpus());
            let parts: Vec<u32> = (0..of)
                .flat_map(|i| t.cpu_set(&format!("disjoint:{i}/{of}")).unwrap().0)
                .collect();
            prop_assert_eq!(parts, t.all().iter().collect::<Vec<_>>());
        }

        #[test]
        fn overlapping_windows_cover_the_cpus(t in topologies(), of in 1u32..5, share in 0.0f64..1.0) {
            let of = of.min(t.cpus());
            let covered: CpuSet = (0..of)
                .flat_map(|i| t.cpu_set(&format!("overlap:{i}/{of}@{share}")).unwrap().0)
                .collect();
            prop_assert_eq!(covered, t.all());
        }

        #[test]
        fn cpu_lists_survive_printing(cpus in proptest::collection::btree_set(0u32..MAX_CPUS, 0..40)) {
            let set: CpuSet = cpus.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }

        #[test]
        fn any_text_is_a_set_or_an_error(text in "\\PC{0,24}") {
            let _ = topo("2n2l2c2t").cpu_set(&text);
            let _ = Topology::parse(&text);
        }
    }
}
