//! Topologies and sets of CPUs, read, printed and refused.

use super::*;
use proptest::prelude::*;

fn topo(spec: &str) -> Topology {
    Topology::parse(spec).unwrap()
}

#[test]
fn a_topology_says_where_each_cpu_is() {
    let t = topo("2n4l2c2t");
    assert_eq!((t.nodes(), t.llcs()), (2, 4));
    assert_eq!((t.cores_per_llc(), t.threads_per_core()), (Some(2), Some(2)));
    assert_eq!(t.cpus(), 16);
    assert_eq!((t.llcs_of_node(0), t.llcs_of_node(1)), (0..2, 2..4));
    assert!(t.llcs_of_node(2).is_empty());
    let place = Place { node: 1, llc: 3, llc_in_node: 1, core: 1, thread: 1 };
    assert_eq!((t.place(15), t.place(16)), (Some(place), None));
    assert_eq!(
        [(0, 0), (0, 1), (1, 0), (1, 2)].map(|(a, b)| t.distance(a, b)),
        [Some(10), Some(20), Some(20), None]
    );
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
fn nodes_may_differ() {
    let t = topo("1n2l2c1t:384M+1n1l1c2t+1n:128M@10,20,40/21,10,30/40,31,10");
    assert_eq!((t.nodes(), t.llcs(), t.cpus()), (3, 3, 6));
    assert_eq!((t.cores_per_llc(), t.threads_per_core()), (None, None));
    let of = |cpu| t.place(cpu).map(|p| (p.node, p.llc, p.core, p.thread)).unwrap();
    let places =
        [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, 0), (1, 2, 0, 0), (1, 2, 0, 1)];
    assert_eq!((0..6).map(of).collect::<Vec<_>>(), places);
    assert_eq!([0, 1, 2].map(|n| t.llcs_of_node(n)), [0..2, 2..3, 3..3]);
    assert_eq!([0, 1, 2].map(|n| t.cpus_of_node(n).to_string()), ["0-3", "4-5", ""]);
    assert_eq!(
        (t.siblings_of(1).to_string(), t.siblings_of(5).to_string()),
        ("1".into(), "4-5".into())
    );
    assert_eq!(
        t.each_node().iter().map(|n| n.memory).collect::<Vec<_>>(),
        [Some(384 << 20), None, Some(128 << 20)]
    );
    assert_eq!(
        (t.distance(1, 0), t.distance(2, 1), t.distance(1, 2)),
        (Some(21), Some(31), Some(30))
    );
    assert_eq!([0, 1, 2, 3].map(|n| t.nearest_cpus(n)), [Some(0), Some(1), Some(1), None]);
    assert_eq!(t.cpu_set("node:1").unwrap().to_string(), "4-5");
    assert_eq!(t.cpu_set("llc:2").unwrap().to_string(), "4-5");
    assert_eq!(
        topo("1n1l1c1t+1n").cpu_set("node:1").unwrap_err().to_string(),
        "CPU set \"node:1\": node 1 of 1n1l1c1t+1n has memory only; nodes with CPUs are \"node:0\""
    );
    assert_eq!(topo("1n1l2c2t+1n1l3c2t").threads_per_core(), Some(2), "of those that there are");
    assert_eq!(topo("1n1l2c2t+1n").cores_per_llc(), Some(2), "where there are cores");
}

#[test]
fn a_topology_has_one_spelling() {
    let cases = [
        ("1n1l1c1t+1n1l1c1t", "2n2l1c1t"),
        ("1n1l1c1t+1n2l1c1t+1n1l1c1t", "1n1l1c1t+1n2l1c1t+1n1l1c1t"),
        ("1n1l1c1t:1024M", "1n1l1c1t:1G"),
        ("1n1l1c1t+1n+1n", "1n1l1c1t+2n"),
        ("2n2l1c1t@20", "2n2l1c1t"),
        ("2n2l1c1t@10,30/30,10", "2n2l1c1t@30"),
        ("2n2l1c1t@10,30/31,10", "2n2l1c1t@10,30/31,10"),
        ("1n1l1c1t@10", "1n1l1c1t"),
        ("3n3l1c1t@10,20,20/20,10,20/20,20,10", "3n3l1c1t"),
    ];
    for (asked, text) in cases {
        assert_eq!(topo(asked).to_string(), text);
        assert_eq!(topo(text), topo(asked));
    }
}

#[test]
fn the_topologies_of_the_book_are_topologies() {
    let book = include_str!("../../../docs/scenarios.md");
    let table = book.split("| topology | machine |").nth(1).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let asked: Vec<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert_eq!(asked.len(), 5, "{asked:?}");
    for asked in asked {
        assert_eq!(topo(asked).to_string(), asked);
    }
}

#[test]
fn wrong_parts_say_what_is_right() {
    let form = "; nodes that differ are joined with \"+\", a node without CPUs is just \"1n\", RAM of \
                each node follows a \":\", distances follow an \"@\", as in \
                \"1n2l2c1t:384M+1n:128M@10,17/17,10\"";
    let cases = [
        ("1n1l1c1t+", "the number of nodes before \"n\" is missing"),
        ("1n1l1c1t+1n1l", "the number of cores before \"c\" is missing"),
        ("1n1l1c1t:", "\"\" is no size, as in \"256M\" or \"1G\""),
        ("1n1l1c1t:256", "\"256\" is no size, as in \"256M\" or \"1G\""),
        ("1n1l1c1t:+1M", "\"\" is no size, as in \"256M\" or \"1G\""),
        ("1n1l1c1t:99999999999999G", "\"99999999999999G\" is no size, as in \"256M\" or \"1G\""),
        ("1n1l1c1t:3M", "the RAM of node 0 is no multiple of 2M"),
        ("1n1l1c1t:0M", "node 0 has no RAM"),
        ("1n:64M", "no node has CPUs"),
        (
            "1n1l1c1t+2n+1n1l1c1t",
            "node 1 has no CPUs, and comes before node 3, which has some; kernels number nodes \
             without CPUs last, so put them last",
        ),
        ("1n1l1c1t+99n", "100 nodes are too many, 64 are possible"),
        ("2n2l1c1t@x", "\"x\" is no distance, as in \"20\""),
        ("2n2l1c1t@10,20", "there are 2 nodes, and distances from 1"),
        ("2n2l1c1t@10,20/20", "there are 2 nodes, and distances from node 1 to 1"),
        ("2n2l1c1t@10", "node 0 is 10 away from node 1, where 11 to 254 are possible"),
        ("2n2l1c1t@255", "node 0 is 255 away from node 1, where 11 to 254 are possible"),
        ("2n2l1c1t@11,20/20,10", "node 0 is 11 away from itself, and 10 is what that is called"),
        ("2n2l1c1t@30@40", "\"30@40\" is no distance, as in \"20\""),
    ];
    for (asked, reason) in cases {
        let error = Topology::parse(asked).unwrap_err();
        assert_eq!(error.to_string(), format!("topology {asked:?}: {reason}{form}"));
    }
    let uneven = [
        ("2n3l1c1t", "1n2l1c1t+1n1l1c1t"),
        ("3n5l2c1t", "2n4l2c1t+1n1l2c1t"),
        ("2n1l1c1t", "1n1l1c1t+1n"),
    ];
    for (asked, instead) in uneven {
        let error = Topology::parse(asked).unwrap_err().to_string();
        assert!(error.ends_with(&format!("as in {instead:?}")), "{error}");
        assert!(Topology::parse(instead).is_ok());
    }
    let halves = Node { llcs: 1, cores: 0, threads: 1, memory: None };
    let error = Topology::new(&[halves], None).unwrap_err().to_string();
    let starts = "topology \"1n1l0c1t\": node 0 has 1 LLCs, 0 cores and 1 threads: all of them \
                  must be there, or none";
    assert!(error.starts_with(starts), "{error}");
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
             counts the LLCs of the whole machine, so make it a multiple of \"n\", or say which \
             nodes have how many, as in \"1n2l1c1t+1n1l1c1t\"",
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
    fn nodes()(
        l in 1u32..4, c in 1u32..5, t in 1u32..3, cpus: bool, mib in proptest::option::of(1u64..600),
    ) -> Node {
        let memory = mib.map(|mib| mib * PIECE);
        match cpus {
            true => Node { llcs: l, cores: c, threads: t, memory },
            false => Node::of_memory(memory),
        }
    }
}

prop_compose! {
    fn topologies()(
        first in nodes().prop_filter("CPUs", |node| node.llcs > 0),
        others in proptest::collection::vec(nodes(), 0..3),
        distances in proptest::option::of(proptest::collection::vec(11u32..=254, 16)),
        alike: bool,
    ) -> Topology {
        let mut nodes = if alike { vec![first; 1 + others.len()] } else { others };
        if !alike {
            nodes.push(first);
            nodes.sort_by_key(|node| node.llcs == 0);
        }
        let count = nodes.len();
        let to = |d: &[u32], a: usize, b: usize| if a == b { 10 } else { d[a * 4 + b] };
        let row = |d: &Vec<u32>, a| (0..count).map(|b| to(d, a, b)).collect();
        let rows = distances.map(|d| (0..count).map(|a| row(&d, a)).collect::<Vec<_>>());
        Topology::new(&nodes, rows.as_deref()).unwrap()
    }
}

proptest! {
    #[test]
    fn printing_and_parsing_agree(t in topologies()) {
        prop_assert_eq!(t.to_string().parse::<Topology>().unwrap(), t);
    }

    #[test]
    fn llcs_and_nodes_partition_the_cpus(t in topologies()) {
        let of = |set: CpuSet| set.iter().collect::<Vec<_>>();
        let llcs: Vec<u32> = (0..t.llcs()).flat_map(|i| of(t.cpus_of_llc(i))).collect();
        let nodes: Vec<u32> = (0..t.nodes()).flat_map(|i| of(t.cpus_of_node(i))).collect();
        let all: Vec<u32> = t.all().iter().collect();
        prop_assert_eq!(&llcs, &all);
        prop_assert_eq!(&nodes, &all);
    }

    #[test]
    fn disjoint_parts_partition_the_cpus(t in topologies(), of in 1u32..5) {
        let of = of.min(t.cpus());
        let parts: Vec<u32> = (0..of)
            .flat_map(|i| t.cpu_set(&format!("disjoint:{i}/{of}")).unwrap().iter().collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(parts, t.all().iter().collect::<Vec<_>>());
    }

    #[test]
    fn overlapping_windows_cover_the_cpus(t in topologies(), of in 1u32..5, share in 0.0f64..1.0) {
        let of = of.min(t.cpus());
        let covered: CpuSet = (0..of)
            .flat_map(|i| t.cpu_set(&format!("overlap:{i}/{of}@{share}")).unwrap().iter().collect::<Vec<_>>())
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
