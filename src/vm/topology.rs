//! The shape of a machine: NUMA nodes, last-level caches, cores, threads, and sets of its CPUs.
//!
//! A topology is written `NnLlCcTt`, as in `1n2l2c1t`: nodes, LLCs in the whole machine, cores per
//! LLC, threads per core. Nodes that differ are joined with `+`, RAM follows a `:`, distances an
//! `@`; see [`Topology::parse`]. CPUs are numbered the way the guest's kernel numbers them: threads
//! of a core are neighbours, then the cores of an LLC, then the LLCs of a node, then the nodes.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

mod cpus;
mod spelling;

pub use cpus::CpuSet;

/// The most CPUs any topology may have; engines may take fewer.
pub const MAX_CPUS: u32 = 512;
/// The most NUMA nodes.
pub const MAX_NODES: u32 = 64;
/// How far a node is from itself, in the units of ACPI's SLIT; other nodes are farther.
pub const LOCAL: u8 = 10;
/// How far it is from the others unless something else is asked for.
pub const REMOTE: u8 = 20;
/// The farthest there is: 255 means that a node cannot be reached.
pub const FARTHEST: u8 = 254;
/// RAM comes in pieces of this many bytes.
pub const PIECE: u64 = 2 << 20;

/// A NUMA node. One without LLCs has memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Last-level caches in it.
    pub llcs: u32,
    /// Cores that share one of them; 0 in a node without CPUs.
    pub cores: u32,
    /// Hardware threads of each core; 0 in a node without CPUs.
    pub threads: u32,
    /// Its RAM in bytes, a multiple of [`PIECE`]; without it, a share of what the machine has.
    pub memory: Option<u64>,
}

impl Node {
    /// A node without CPUs.
    #[must_use]
    pub fn of_memory(memory: Option<u64>) -> Self {
        Node { llcs: 0, cores: 0, threads: 0, memory }
    }

    /// CPUs in it.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.llcs * self.cpus_per_llc()
    }

    fn cpus_per_llc(&self) -> u32 {
        self.cores * self.threads
    }
}

/// Nodes, last-level caches, cores and threads of a machine. Cheap to clone.
///
/// Invariant: the first node has CPUs, and those that have none are the last, since kernels number
/// them so (they meet CPUs first in ACPI's SRAT); there are at most [`MAX_NODES`] nodes and [`MAX_CPUS`]
/// CPUs; a node has LLCs, cores and threads, or none of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    nodes: Arc<[Node]>,
    /// From each node to each, a row a node; without it, all are [`REMOTE`].
    distances: Option<Arc<[u8]>>,
}

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its node.
    pub node: u32,
    /// Which of the machine's LLCs it has.
    pub llc: u32,
    /// Which of its node's LLCs that is.
    pub llc_in_node: u32,
    /// Which core of the LLC.
    pub core: u32,
    /// Which thread of the core.
    pub thread: u32,
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
    /// Something is wrong with nodes that differ, with their RAM or their distances.
    #[error(
        "topology {asked:?}: {reason}; nodes that differ are joined with \"+\", a node without \
         CPUs is just \"1n\", RAM of each node follows a \":\", distances follow an \"@\", as in \
         \"1n2l2c1t:384M+1n:128M@10,17/17,10\""
    )]
    Parts {
        /// What was written.
        asked: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The LLCs cannot be shared out over the nodes.
    #[error(
        "topology {asked:?}: {llcs} LLCs cannot be shared out evenly over {nodes} nodes; \
         \"l\" counts the LLCs of the whole machine, so make it a multiple of \"n\", or say which \
         nodes have how many, as in {instead:?}"
    )]
    Uneven {
        /// What was written.
        asked: String,
        /// Nodes asked for.
        nodes: u32,
        /// LLCs asked for.
        llcs: u32,
        /// How uneven nodes are written.
        instead: String,
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

    /// A machine of these nodes; `distances` has a row for each, from it to every node.
    ///
    /// # Errors
    /// [`TopologyError::Parts`] and [`TopologyError::TooManyCpus`], both with the topology as it
    /// would be written.
    pub fn new(nodes: &[Node], distances: Option<&[Vec<u32>]>) -> Result<Self, TopologyError> {
        let asked = spelling::text(nodes, distances);
        let wrong = |reason| TopologyError::Parts { asked: asked.clone(), reason };
        check_nodes(nodes).map_err(wrong)?;
        let per_node = |n: &Node| {
            u64::from(n.llcs).saturating_mul(n.cores.into()).saturating_mul(n.threads.into())
        };
        let cpus = nodes.iter().map(per_node).fold(0, u64::saturating_add);
        if cpus > u64::from(MAX_CPUS) {
            return Err(TopologyError::TooManyCpus { asked, cpus });
        }
        let distances = match distances {
            Some(rows) => check_distances(rows, nodes.len()).map_err(wrong)?,
            None => None,
        };
        Ok(Topology { nodes: nodes.into(), distances: distances.map(Arc::from) })
    }

    /// Reads a topology. `NnLlCcTt` has nodes that are all alike, and `l` counts the LLCs of all of
    /// them. Groups of nodes that differ are joined with `+`. Each may be followed by `:` and the
    /// RAM of every node in it, `M` or `G`; nodes without it share what is left of the machine's.
    /// `Nn` alone is a group of nodes that have memory and no CPUs. After an `@` comes the distance
    /// between any two nodes, or the whole table: a row for each node, rows with a `/` between.
    ///
    /// | written | machine |
    /// |---|---|
    /// | `1n2l2c1t` | one node, two LLCs with two cores each |
    /// | `1n2l2c1t+1n1l4c1t` | two LLCs with two cores in node 0, one with four in node 1 |
    /// | `1n1l4c2t+1n1l4c1t` | threads in node 0, none in node 1 |
    /// | `1n1l2c1t:384M+1n:128M` | 384 MiB where the CPUs are, 128 MiB in a node of its own |
    /// | `3n3l1c1t@30` | three nodes, each 30 away from the others |
    /// | `2n2l1c1t+1n@10,20,40/20,10,30/40,30,10` | distances one by one |
    ///
    /// # Errors
    /// Every [`TopologyError`] but `CpuSet`.
    pub fn parse(asked: &str) -> Result<Self, TopologyError> {
        spelling::parse(asked)
    }

    /// NUMA nodes, those without CPUs too.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// Each node, in order.
    #[must_use]
    pub fn each_node(&self) -> &[Node] {
        &self.nodes
    }

    /// Last-level caches in the whole machine.
    #[must_use]
    pub fn llcs(&self) -> u32 {
        self.nodes.iter().map(|node| node.llcs).sum()
    }

    /// The LLCs of a node; empty without such a node, and in one without CPUs.
    #[must_use]
    pub fn llcs_of_node(&self, node: u32) -> Range<u32> {
        let before = self.nodes.iter().take(node as usize).map(|node| node.llcs).sum();
        before..before + self.nodes.get(node as usize).map_or(0, |node| node.llcs)
    }

    /// Cores that share an LLC, when that is the same for all LLCs.
    #[must_use]
    pub fn cores_per_llc(&self) -> Option<u32> {
        self.common(|node| node.cores)
    }

    /// Hardware threads of a core, when that is the same for all cores.
    #[must_use]
    pub fn threads_per_core(&self) -> Option<u32> {
        self.common(|node| node.threads)
    }

    fn common(&self, of: impl Fn(&Node) -> u32) -> Option<u32> {
        let mut all = self.nodes.iter().filter(|node| node.llcs > 0).map(of);
        let first = all.next()?;
        all.all(|other| other == first).then_some(first)
    }

    /// CPUs in the whole machine.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().map(Node::cpus).sum()
    }

    /// Where a CPU is, or `None` when there is no such CPU.
    #[must_use]
    pub fn place(&self, cpu: u32) -> Option<Place> {
        let (mut cpu, mut llcs) = (cpu, 0);
        for (number, node) in (0..).zip(&*self.nodes) {
            if cpu < node.cpus() {
                let llc_in_node = cpu / node.cpus_per_llc();
                return Some(Place {
                    node: number,
                    llc: llcs + llc_in_node,
                    llc_in_node,
                    core: cpu % node.cpus_per_llc() / node.threads,
                    thread: cpu % node.threads,
                });
            }
            cpu -= node.cpus();
            llcs += node.llcs;
        }
        None
    }

    /// The LLC of a CPU, or `None` when there is no such CPU.
    #[must_use]
    pub fn llc_of(&self, cpu: u32) -> Option<u32> {
        self.place(cpu).map(|place| place.llc)
    }

    /// The node of a CPU, or `None` when there is no such CPU.
    #[must_use]
    pub fn node_of(&self, cpu: u32) -> Option<u32> {
        self.place(cpu).map(|place| place.node)
    }

    /// The CPUs that share a core with this one (itself included); empty without such a CPU.
    #[must_use]
    pub fn siblings_of(&self, cpu: u32) -> CpuSet {
        let Some(place) = self.place(cpu) else { return CpuSet::default() };
        let threads = self.nodes[place.node as usize].threads;
        let first = cpu - place.thread;
        (first..first + threads).collect()
    }

    /// The CPUs of an LLC; empty when there is no such LLC.
    #[must_use]
    pub fn cpus_of_llc(&self, llc: u32) -> CpuSet {
        (0..self.cpus()).filter(|cpu| self.llc_of(*cpu) == Some(llc)).collect()
    }

    /// The CPUs of a node; empty when there is no such node, and in one without CPUs.
    #[must_use]
    pub fn cpus_of_node(&self, node: u32) -> CpuSet {
        (0..self.cpus()).filter(|cpu| self.node_of(*cpu) == Some(node)).collect()
    }

    /// Every CPU.
    #[must_use]
    pub fn all(&self) -> CpuSet {
        (0..self.cpus()).collect()
    }

    /// How far it is from one node to another, in the units of ACPI's SLIT: [`LOCAL`] to itself.
    /// `None` when one of them does not exist.
    #[must_use]
    pub fn distance(&self, from: u32, to: u32) -> Option<u8> {
        let nodes = self.nodes();
        if from >= nodes || to >= nodes {
            return None;
        }
        Some(match &self.distances {
            Some(table) => table[(from * nodes + to) as usize],
            None if from == to => LOCAL,
            None => REMOTE,
        })
    }

    /// The node with CPUs that is nearest to a node: itself, when it has some. The lowest number
    /// counts where several are equally near.
    #[must_use]
    pub fn nearest_cpus(&self, node: u32) -> Option<u32> {
        let with_cpus = (0..self.nodes()).filter(|n| self.nodes[*n as usize].llcs > 0);
        with_cpus.filter_map(|n| Some((self.distance(n, node)?, n))).min().map(|(_, n)| n)
    }
}

/// What a CPU's access to memory so far away is said to take: 100 ns within a node.
pub(crate) fn latency_ns(distance: u8) -> u32 {
    u32::from(distance) * 10
}

/// How much is said to go through in a second: 100 GiB within a node, less the farther it is, in
/// whole GiB, since tables have 16 bits for it.
pub(crate) fn bandwidth_mib(distance: u8) -> u64 {
    100 * u64::from(LOCAL) / u64::from(distance.max(1)) * 1024
}

fn check_nodes(nodes: &[Node]) -> Result<(), String> {
    if nodes.len() > MAX_NODES as usize {
        return Err(format!("{} nodes are too many, {MAX_NODES} are possible", nodes.len()));
    }
    for (number, node) in nodes.iter().enumerate() {
        let Node { llcs, cores, threads, memory } = *node;
        let counts = [llcs, cores, threads];
        if counts.contains(&0) && counts != [0; 3] {
            return Err(format!(
                "node {number} has {llcs} LLCs, {cores} cores and {threads} threads: all of them \
                 must be there, or none"
            ));
        }
        match memory {
            Some(0) => return Err(format!("node {number} has no RAM")),
            Some(size) if size % PIECE != 0 => {
                return Err(format!("the RAM of node {number} is no multiple of {}M", PIECE >> 20));
            }
            _ => {}
        }
    }
    let Some(last) = nodes.iter().rposition(|node| node.llcs > 0) else {
        return Err("no node has CPUs".to_owned());
    };
    match nodes[..last].iter().position(|node| node.llcs == 0) {
        None => Ok(()),
        Some(number) => Err(format!(
            "node {number} has no CPUs, and comes before node {last}, which has some; kernels number \
             nodes without CPUs last, so put them last"
        )),
    }
}

/// A table of distances, or `None` for the one that goes without saying.
fn check_distances(rows: &[Vec<u32>], nodes: usize) -> Result<Option<Vec<u8>>, String> {
    if rows.len() != nodes {
        return Err(format!("there are {nodes} nodes, and distances from {}", rows.len()));
    }
    let mut table = Vec::new();
    for (from, row) in rows.iter().enumerate() {
        if row.len() != nodes {
            return Err(format!(
                "there are {nodes} nodes, and distances from node {from} to {}",
                row.len()
            ));
        }
        for (to, distance) in row.iter().enumerate() {
            let range = if from == to { LOCAL..=LOCAL } else { LOCAL + 1..=FARTHEST };
            let known = u8::try_from(*distance).ok().filter(|d| range.contains(d));
            table.push(known.ok_or_else(|| match from == to {
                true => format!(
                    "node {from} is {distance} away from itself, and {LOCAL} is what that is called"
                ),
                false => format!(
                    "node {from} is {distance} away from node {to}, where {} to {FARTHEST} are \
                     possible",
                    LOCAL + 1
                ),
            })?);
        }
    }
    let usual = |i: usize| if i.is_multiple_of(nodes + 1) { LOCAL } else { REMOTE };
    let unusual = (0..).zip(&table).any(|(i, distance)| *distance != usual(i));
    Ok(unusual.then_some(table))
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.distances.as_ref().map(|table| {
            let rows = table.chunks(self.nodes.len());
            rows.map(|row| row.iter().map(|d| u32::from(*d)).collect()).collect::<Vec<_>>()
        });
        f.write_str(&spelling::text(&self.nodes, rows.as_deref()))
    }
}

impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

#[cfg(test)]
#[path = "../../tests/support/shapes.rs"]
pub(crate) mod shapes;

#[cfg(test)]
mod tests;
