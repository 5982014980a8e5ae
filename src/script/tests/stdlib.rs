//! What the functions of our modules answer, where the answers are known: on the made-up machine of
//! `introspect/sched/testing.rs`, with tasks that wait. That their examples run is tested in
//! `shipped.rs`, and on a real machine in `tests/run.rs`.

use super::*;

const IMPORTS: &str = "\
import \"std/bpf\" as bpf; import \"std/cgroup\" as cgroup; import \"std/cpus\" as cpus;
import \"std/load\" as load; import \"std/sched\" as sched;";

/// Runs the body of a scenario on the made-up machine, with two workers started and frozen.
fn run(body: &str) -> (Bench, Ran) {
    let text = format!(
        "{IMPORTS}\nscenario(\"x\", |t| {{ load::spin(t, 2); let snap = t.freeze(\"a\");\n{body}\n}});"
    );
    let bench = Bench::with(FakeLab::new().with_fifo().with_kernel());
    let ran = bench.run_as(&text, 0, "x");
    (bench, ran)
}

#[test]
fn answers_are_exact() {
    let cases = [
        // Each CPU has counted 10, of which 3 are reason 2; the common counters are ahead by one.
        ("bpf::sum(snap.map(\"reasons\"), \"\")", "20"),
        ("bpf::sum(snap.map(\"task_ctx\"), \"runs.nr_runs\")", "20"),
        ("bpf::sum(t.freeze(\"b\", #{ maps: [] }).map(\"task_ctx\"), \"weight\")", "200"),
        ("bpf::largest(snap.map(\"reasons\"), \"\")", "14"),
        ("bpf::smallest(snap.map(\"reasons\"), \"\")", "6"),
        (
            "bpf::top(snap.map(\"reasons\"), \"\", 1).map(|row| [row.entry.key, row.value])",
            "[[1, 14]]",
        ),
        ("bpf::top(snap.map(\"task_ctx\"), \"weight\", 9).map(|row| row.entry.key)", "[100, 101]"),
        ("bpf::per_cpu(snap.map(\"reasons\").get(1), \"\", 2)", "[7, 7]"),
        (
            "bpf::log2_histogram(snap.map(\"run_hist\"), \"count\", 14)",
            "[#{from: 1048576, count: 10}, #{from: 2097152, count: 3}]",
        ),
        (
            "bpf::draw([#{ from: 0, count: 1 }, #{ from: 16, count: 2 }])",
            "\"from 0  |####################                    | 1\\n\
               from 16 |########################################| 2\\n\"",
        ),
        ("bpf::draw([])", "\"\""),
        ("bpf::percentile([], 0.5)", "()"),
        ("bpf::fill(snap.map(\"task_ctx\"))", "1.0"),
        ("cpus::parse(\" 8,0-2,1 \")", "[0, 1, 2, 8]"),
        ("cpus::format([])", "\"\""),
        ("cpus::format([5, 3, 4, 4, 7])", "\"3-5,7\""),
        ("cpus::format(cpus::parse(\"0-8191\"))", "\"0-8191\""),
        ("cpus::core_siblings(topology(\"1n1l2c4t\"), 6)", "[4, 5, 6, 7]"),
        ("cpus::node_siblings(topology(\"2n2l2c1t\"), 3)", "[2, 3]"),
        ("sched::waiting(snap).map(|task| task.tid)", "[1, 41, 42]"),
        ("sched::waiting(snap).map(|task| sched::wait_ns(snap, task))", "[600, 400, 200]"),
        ("sched::wait_ns(snap, snap.task(50))", "0"),
        ("sched::longest_wait(snap).ns", "600"),
        ("sched::longest_wait(snap).task.comm", "\"init\""),
        ("sched::runqueues(snap)", "[2, 1]"),
        ("sched::imbalance(snap)", "1"),
        ("sched::idle_cpus(snap)", "[1]"),
        (
            "sched::wasted(snap).map(|row| [row.task.tid, row.cpus])",
            "[[1, [1]], [41, [1]], [42, [1]]]",
        ),
        ("sched::nothing_runnable(snap)", "false"),
        ("sched::by_state(snap)", "#{running: 4, sleeping: 1}"),
        ("sched::dsq_depths(snap)", "#{\"7\": 2, \"local:0\": 1}"),
        ("sched::llc(snap, 1)", "[0, 1]"),
        ("cgroup::pressure(snap, \"io\")", "#{\"/\": 1, \"/lab/hot\": 100}"),
        ("cgroup::groups(snap)", "#{\"/\": 1, \"/lab/hot\": 4}"),
        ("cgroup::tasks(snap, \"/lab\").map(|task| task.tid)", "[40, 41, 42, 50]"),
        ("cgroup::path_of(snap, \"hot\")", "\"/lab/hot\""),
        ("cgroup::running(snap)", "#{\"/lab/hot\": 1}"),
        ("cgroup::parent(\"/\")", "()"),
        ("cgroup::parent(\"/a/b/c\")", "\"/a/b\""),
        ("cgroup::is_below(\"/a\", \"/\")", "true"),
        ("cgroup::shares(#{ a: 5, b: 10 }, #{ a: 35, b: 20 })", "#{a: 0.75, b: 0.25}"),
        ("cgroup::shares(#{ a: 5 }, #{ a: 5 })", "#{a: 0.0}"),
    ];
    for (expression, want) in cases {
        let (_, ran) = run(&format!("expect({expression}).eq({want});"));
        assert_eq!(ran.outcome, Outcome::Pass, "{expression}: {}", ran.one());
    }
}

#[test]
fn what_cannot_be_answered_is_an_error_that_says_why() {
    let cases = [
        (
            "cpus::parse(\"0-x\")",
            "\"0-x\" is no list of CPUs: \"0-x\" is no number and no range; write \"0-3,8\"",
        ),
        ("cpus::parse(\"1-2-3\")", "\"1-2-3\" is no number and no range"),
        ("cpus::parse(\"99999999999\")", "is no number and no range"),
        ("cpus::parse(\"0-9000\")", "\"0-9000\" goes down or past 8191"),
        ("cpus::parse(\"3-1\")", "\"3-1\" goes down or past 8191"),
        (
            "cgroup::path_of(snap, \"cold\")",
            "0 cgroups with tasks are called \"cold\"; those with tasks are",
        ),
        ("bpf::top(snap.map(\"task_ctx\"), \"runs.nr_rnus\", 3)", "did you mean \"runs.nr_runs\"?"),
        (
            "bpf::sum(snap.map(\"task_ctx\"), \"comm\")",
            "\"comm\" is text in task_ctx: \"worker\"; it cannot be counted",
        ),
        ("bpf::largest(snap.map(\"task_ctx\"), \"runs\")", ""),
    ];
    for (expression, says) in cases {
        let (_, ran) = run(&format!("{expression};"));
        assert_eq!(ran.outcome, Outcome::Error, "{expression}: {ran:?}");
        assert!(ran.one().contains(says), "{expression}: {}", ran.one());
    }
}

#[test]
fn workloads_ask_for_what_they_promise() {
    let (bench, ran) = run("let herd = t.new_cgroup(\"herd\"); load::spin(herd, 4);
        load::thundering_herd(t, herd, \"100ms\"); load::pinned(t, [0, 1]);
        load::bursty(t, 3, \"5ms\"); load::wake_pairs(herd, 2); load::mixed_nice(t, [-5, 5]);
        expect(1).eq(1);");
    assert_eq!(ran.outcome, Outcome::Pass, "{ran:?}");
    let asked = bench.lab.asked.lock().unwrap().join("\n");
    let order = [
        "start Some(\"herd\") WorkOptions { work: Spin, count: 4",
        "cgroup_freeze herd true\nhold 100ms\ncgroup_freeze herd false",
        "affinity: Some(\"0\")",
        "affinity: Some(\"1\")",
        "work: Sleep, count: 3, policy: None, nice: None, affinity: None, period: Some(5ms)",
        "start Some(\"herd\") WorkOptions { work: Pipe, count: 4",
        "nice: Some(-5)",
        "nice: Some(5)",
    ];
    let mut at = 0;
    for part in order {
        let found = asked[at..].find(part);
        at += found.unwrap_or_else(|| panic!("{part:?} is not asked for, in this order:\n{asked}"));
    }
}
