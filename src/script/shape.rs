//! A machine's shape as an author gives it: as text, as a map of nodes, or as a `Topology`.

use rhai::{Array, Dynamic, Map};

use crate::vm::topology::{MAX_CPUS, Node, Topology};

use super::options::{Mistake, Options};
use super::values::described;

/// What a map that describes a machine may have.
const MACHINE: [&str; 4] = ["nodes", "cores", "threads", "distances"];
/// What each of its nodes may have.
const NODE: [&str; 4] = ["llcs", "cores", "threads", "memory"];
/// How such a map looks, for error messages.
const EXAMPLE: &str =
    "#{ nodes: [#{ llcs: 2 }, #{ memory: \"128M\" }], cores: 2, distances: [[10, 17], [17, 10]] }";

/// Reads a topology in any of its forms.
pub(crate) fn topology(value: &Dynamic) -> Result<Topology, String> {
    if let Some(topology) = value.read_lock::<Topology>() {
        return Ok(topology.clone());
    }
    if let Some(text) = value.read_lock::<rhai::ImmutableString>() {
        return Topology::parse(&text).map_err(|e| e.to_string());
    }
    match value.read_lock::<Map>() {
        Some(map) => of_map(&map),
        None => Err(format!(
            "expected a topology like \"1n2l2c1t\" or a map like {EXAMPLE}, found {}",
            described(value)
        )),
    }
}

fn said(mistake: Mistake) -> String {
    mistake.message
}

/// Reads a map of nodes.
fn of_map(map: &Map) -> Result<Topology, String> {
    let read = Options::new("a topology", map, &MACHINE, &[]).map_err(said)?;
    let count = |key: &str| read.number(key, 1, MAX_CPUS.into()).map_err(said);
    let (cores, threads) = (count("cores")?, count("threads")?);
    let nodes = map.get("nodes").ok_or_else(|| {
        format!("a topology needs \"nodes\", a list with a map for each, as in {EXAMPLE}")
    })?;
    let nodes = nodes.read_lock::<Array>().ok_or_else(|| {
        format!(
            "\"nodes\" of a topology: expected a list with a map for each, as in {EXAMPLE}, found \
             {}",
            described(nodes)
        )
    })?;
    let nodes = nodes.iter().enumerate().map(|(number, value)| {
        let about = |why: String| format!("node {number} of a topology: {why}");
        let map = value.read_lock::<Map>();
        let map = map.ok_or_else(|| {
            about(format!("expected a map like #{{ llcs: 2 }}, found {}", described(value)))
        })?;
        node(&map, cores, threads).map_err(about)
    });
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let distances = map.get("distances").map(distances).transpose()?;
    Topology::new(&nodes, distances.as_deref()).map_err(|e| e.to_string())
}

/// Reads a node; how many cores an LLC has and threads a core, it may leave to the machine.
fn node(map: &Map, cores: Option<i64>, threads: Option<i64>) -> Result<Node, String> {
    let read = Options::new("a node", map, &NODE, &[]).map_err(said)?;
    let count = |key: &str, low| read.number(key, low, MAX_CPUS.into()).map_err(said);
    let memory = read.size("memory").map_err(said)?;
    let (llcs, own_cores, own_threads) =
        (count("llcs", 0)?, count("cores", 1)?, count("threads", 1)?);
    let has_cpus = match llcs {
        Some(llcs) => llcs > 0,
        None => own_cores.is_some() || own_threads.is_some(),
    };
    if !has_cpus {
        if let Some(what) = own_cores.map(|_| "cores").or(own_threads.map(|_| "threads")) {
            return Err(format!("it has {what}, and no LLCs that they could share"));
        }
        if llcs.is_none() && memory.is_none() {
            return Err("it is empty: say what it has, \"llcs\", \"cores\" or \"memory\"".into());
        }
        return Ok(Node::of_memory(memory));
    }
    // Checked to lie within 1..=MAX_CPUS.
    let number = |value: Option<i64>| value.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    Ok(Node {
        llcs: number(llcs),
        cores: number(own_cores.or(cores)),
        threads: number(own_threads.or(threads)),
        memory,
    })
}

/// Reads the distances from each node to each.
fn distances(value: &Dynamic) -> Result<Vec<Vec<u32>>, String> {
    let wrong = |found: &Dynamic| {
        format!(
            "\"distances\" of a topology: expected a list for each node with the distance to each, \
             as in [[10, 17], [17, 10]], found {}",
            described(found)
        )
    };
    let rows = value.read_lock::<Array>().ok_or_else(|| wrong(value))?;
    let row = |row: &Dynamic| {
        let cells = row.read_lock::<Array>().ok_or_else(|| wrong(row))?;
        let number = |cell: &Dynamic| {
            let number = cell.as_int().ok().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| wrong(cell))
        };
        cells.iter().map(number).collect()
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let value: Dynamic = rhai::Engine::new().eval(text).unwrap();
        topology(&value).map(|t| t.to_string())
    }

    #[test]
    fn maps_of_nodes_are_topologies() {
        let cases = [
            ("\"1n2l2c1t\"", "1n2l2c1t"),
            ("#{ nodes: [#{ llcs: 2 }, #{ llcs: 1 }], cores: 2 }", "1n2l2c1t+1n1l2c1t"),
            (
                "#{ nodes: [#{ llcs: 2, memory: \"256M\" }, #{ llcs: 1 }, #{ memory: \"128M\" }], \
                 cores: 2, threads: 1, distances: [[10, 20, 30], [20, 10, 40], [30, 40, 10]] }",
                "1n2l2c1t:256M+1n1l2c1t+1n:128M@10,20,30/20,10,40/30,40,10",
            ),
            ("#{ nodes: [#{ cores: 4, threads: 2 }, #{ cores: 4 }] }", "1n1l4c2t+1n1l4c1t"),
            ("#{ nodes: [#{ llcs: 1 }, #{ llcs: 0 }] }", "1n1l1c1t+1n"),
        ];
        for (text, wanted) in cases {
            assert_eq!(read(text).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_topology_says_what_would_be() {
        let cases = [
            ("1", "expected a topology like \"1n2l2c1t\" or a map like "),
            ("#{ cores: 2 }", "a topology needs \"nodes\", a list with a map for each, as in #{ "),
            (
                "#{ nodes: 2 }",
                "\"nodes\" of a topology: expected a list with a map for each, as in ",
            ),
            (
                "#{ nodes: [2] }",
                "node 0 of a topology: expected a map like #{ llcs: 2 }, found 2 (int)",
            ),
            (
                "#{ nodes: [#{ llc: 2 }] }",
                "node 0 of a topology: \"llc\" is no option of a node; did you mean \"llcs\"? \
                 Options are: llcs, cores, threads, memory",
            ),
            (
                "#{ nodes: [#{}] }",
                "node 0 of a topology: it is empty: say what it has, \"llcs\", \"cores\" or \
                 \"memory\"",
            ),
            (
                "#{ nodes: [#{ llcs: 0, cores: 2 }] }",
                "node 0 of a topology: it has cores, and no LLCs that they could share",
            ),
            (
                "#{ nodes: [#{ llcs: -1 }] }",
                "node 0 of a topology: the option \"llcs\" of a node: expected a whole number from 0 \
                 to 512, found -1 (int)",
            ),
            (
                "#{ nodes: [#{ llcs: 1 }], node: 1 }",
                "\"node\" is no option of a topology; did you mean \"nodes\"? Options are: nodes, \
                 cores, threads, distances",
            ),
            (
                "#{ nodes: [#{ llcs: 1 }], distances: [10] }",
                "\"distances\" of a topology: expected a list for each node with the distance to \
                 each, as in [[10, 17], [17, 10]], found 10 (int)",
            ),
            (
                "#{ nodes: [#{ llcs: 1 }, #{ llcs: 1 }], distances: [[10, 20]] }",
                "topology \"2n2l1c1t@10,20\": there are 2 nodes, and distances from 1; nodes that ",
            ),
            ("#{ nodes: [#{ memory: \"64M\" }] }", "topology \"1n:64M\": no node has CPUs; "),
            ("#{ nodes: [#{ llcs: 300, cores: 2 }] }", "topology \"1n300l2c1t\" has 600 CPUs; "),
        ];
        for (text, wanted) in cases {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
    }
}
