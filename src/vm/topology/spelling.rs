//! How a topology is written: read and printed. Pure.

use super::{LOCAL, MAX_CPUS, MAX_NODES, Node, Topology, TopologyError};

/// What comes before each letter of `NnLlCcTt`.
const PARTS: [(&str, &str); 4] = [("n", "nodes"), ("l", "LLCs"), ("c", "cores"), ("t", "threads")];

/// A group of nodes that are alike.
struct Group {
    nodes: u32,
    /// LLCs of all of them together; 0 for nodes without CPUs.
    llcs: u32,
    cores: u32,
    threads: u32,
    memory: Option<u64>,
}

pub(super) fn parse(asked: &str) -> Result<Topology, TopologyError> {
    let simple = !asked.contains(['+', ':', '@']);
    let wrong = |reason: String| {
        let asked = asked.to_owned();
        match simple {
            true => TopologyError::Spelling { asked, reason },
            false => TopologyError::Parts { asked, reason },
        }
    };
    let (groups, distances) = match asked.split_once('@') {
        Some((groups, distances)) => (groups, Some(distances)),
        None => (asked, None),
    };
    let groups: Vec<Group> = groups
        .split('+')
        .map(|text| group(text, simple))
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    too_many(asked, &groups)?;
    let mut nodes = Vec::new();
    for Group { nodes: count, llcs, cores, threads, memory } in groups {
        if llcs % count != 0 {
            let node = |llcs| Node { llcs, cores, threads, memory };
            let more = (llcs % count) as usize;
            let each = llcs / count;
            let mut instead = vec![node(each + 1); more];
            instead.resize(count as usize, node(each));
            instead.iter_mut().filter(|n| n.llcs == 0).for_each(|n| *n = Node::of_memory(memory));
            let (asked, instead) = (asked.to_owned(), text(&instead, None));
            return Err(TopologyError::Uneven { asked, nodes: count, llcs, instead });
        }
        let node = Node { llcs: llcs / count, cores, threads, memory };
        nodes.extend(std::iter::repeat_n(node, count as usize));
    }
    let rows = distances.map(|text| rows(text, nodes.len())).transpose().map_err(wrong)?;
    // What is wrong is told in the author's own words.
    Topology::new(&nodes, rows.as_deref()).map_err(|e| match e {
        TopologyError::Parts { reason, .. } => wrong(reason),
        other => other,
    })
}

/// Refuses counts before anything is made of them.
fn too_many(asked: &str, groups: &[Group]) -> Result<(), TopologyError> {
    let of = |g: &Group| {
        u64::from(g.llcs).saturating_mul(g.cores.into()).saturating_mul(g.threads.into())
    };
    let cpus = groups.iter().map(of).fold(0, u64::saturating_add);
    if cpus > u64::from(MAX_CPUS) {
        return Err(TopologyError::TooManyCpus { asked: asked.to_owned(), cpus });
    }
    let nodes: u64 = groups.iter().map(|g| u64::from(g.nodes)).sum();
    if nodes > u64::from(MAX_NODES) {
        let reason = format!("{nodes} nodes are too many, {MAX_NODES} are possible");
        return Err(TopologyError::Parts { asked: asked.to_owned(), reason });
    }
    Ok(())
}

/// Reads `NnLlCcTt`, or `Nn` unless the topology is to be `simple`, and RAM behind it.
fn group(text: &str, simple: bool) -> Result<Group, String> {
    let (text, memory) = match text.split_once(':') {
        Some((text, size)) => (text, Some(memory(size)?)),
        None => (text, None),
    };
    let mut rest = text;
    let mut counts = [0u32; 4];
    for (index, (letter, what)) in PARTS.into_iter().enumerate() {
        if index == 1 && rest.is_empty() && !simple {
            break;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(format!("the number of {what} before \"{letter}\" is missing"));
        }
        rest = after.strip_prefix(letter).ok_or_else(|| {
            let found = after.chars().next().map_or("the end".to_owned(), |c| format!("{c:?}"));
            format!("\"{letter}\" ({what}) belongs after \"{number}\", found {found}")
        })?;
        let count = number.parse().map_err(|_| format!("{number} {what} are too many"))?;
        if count == 0 {
            return Err(format!("there must be at least one of the {what}"));
        }
        counts[index] = count;
    }
    if !rest.is_empty() {
        return Err(format!("nothing may follow the threads, found {rest:?}"));
    }
    let [nodes, llcs, cores, threads] = counts;
    Ok(Group { nodes, llcs, cores, threads, memory })
}

/// Reads a size: mebibytes or gibibytes.
fn memory(size: &str) -> Result<u64, String> {
    let wrong = || format!("{size:?} is no size, as in \"256M\" or \"1G\"");
    let (digits, shift) = match (size.strip_suffix('M'), size.strip_suffix('G')) {
        (Some(digits), _) => (digits, 20),
        (_, Some(digits)) => (digits, 30),
        _ => return Err(wrong()),
    };
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
    let bytes = number.flatten().and_then(|n| n.checked_mul(1 << shift));
    bytes.ok_or_else(wrong)
}

/// Reads distances: one for all, or a table.
fn rows(text: &str, nodes: usize) -> Result<Vec<Vec<u32>>, String> {
    let number = |text: &str| {
        text.parse::<u32>().map_err(|_| format!("{text:?} is no distance, as in \"20\""))
    };
    if text.contains([',', '/']) {
        let row = |row: &str| row.split(',').map(number).collect();
        return text.split('/').map(row).collect();
    }
    let distance = number(text)?;
    let to = |from, to| if from == to { LOCAL.into() } else { distance };
    Ok((0..nodes).map(|a| (0..nodes).map(|b| to(a, b)).collect()).collect())
}

/// How these nodes are written.
pub(super) fn text(nodes: &[Node], distances: Option<&[Vec<u32>]>) -> String {
    let mut out = String::new();
    for group in nodes.chunk_by(|a, b| a == b) {
        if !out.is_empty() {
            out.push('+');
        }
        let (count, Node { llcs, cores, threads, memory }) = (group.len(), group[0]);
        out.push_str(&format!("{count}n"));
        if (llcs, cores, threads) != (0, 0, 0) {
            let llcs = count as u64 * u64::from(llcs);
            out.push_str(&format!("{llcs}l{cores}c{threads}t"));
        }
        match memory {
            Some(size) if size > 0 && size % (1 << 30) == 0 => {
                out.push_str(&format!(":{}G", size >> 30));
            }
            Some(size) => out.push_str(&format!(":{}M", size >> 20)),
            None => {}
        }
    }
    let Some(rows) = distances else { return out };
    let square = rows.len() == nodes.len() && rows.iter().all(|row| row.len() == nodes.len());
    let others = || {
        let remote = |(a, row): (usize, &Vec<u32>)| {
            row.iter()
                .enumerate()
                .filter(move |(b, _)| a != *b)
                .map(|(_, d)| *d)
                .collect::<Vec<_>>()
        };
        rows.iter().enumerate().flat_map(remote).collect::<Vec<_>>()
    };
    let itself = |rows: &[Vec<u32>]| (0..rows.len()).all(|n| rows[n][n] == u32::from(LOCAL));
    out.push('@');
    match others().as_slice() {
        [first, rest @ ..] if square && itself(rows) && rest.iter().all(|other| other == first) => {
            out.push_str(&first.to_string());
        }
        _ => {
            let row = |row: &Vec<u32>| row.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            out.push_str(&rows.iter().map(row).collect::<Vec<_>>().join("/"));
        }
    }
    out
}
