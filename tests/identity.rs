//! Every accessor of a snapshot gives the same, byte for byte, while its machine still runs, from its
//! file in the same process, and from its file in another process.

use std::collections::BTreeSet;
use std::fmt::Write;

use cryoscope::script::surface::{FunctionDoc, Kind};
use place::{Place, Said, alone, project};

mod place;
mod support;

/// A module that is loaded, so that there is one.
const MODULE: &str = "drivers/net/dummy";

/// What is asked of each value of a type; `x` is the value, `s` the snapshot it comes from.
/// Several in one line are separated by `;`.
const ASKED: &[(&str, &[&str])] = &[
    (
        "Snapshot",
        &[
            "x.boundary_offset_ms; x.elapsed_ms; x.is_placeholder; x.overshoot_us; x.pause; x.pause_us; x.phase; x.stats; x.step_index; x.tag; x.torn()",
            "x.trigger; x.fired",
            "x.active(); x.cpu(0); x.cpu(99); x.cpus(); x.dsq(\"global\"); x.dsq(\"local:1\"); x.dsqs()",
            "x.diff(x); x.diff(s, #{ addresses: true }); x.save(\"/\"); x.save(\"/\", #{ ram: false })",
            "x.global(\"nr_running\"); x.global(\"nr_runing\"); x.globals(\"nr_running\")",
            "x.kernel(\"jiffies_64\"); x.kernel(\"init_task\", \"struct task_struct\")",
            "x.kernel(\"runqueues\"); x.kernel(\"runqueue\"); x.kernel(0, \"struct task_struct\")",
            "x.kernel(x.task(1).whole().origin().address, \"struct task_struct\")",
            "x.live_global(\"nr_enqueued\"); x.live_globals([\"nr_enqueued\", \"nr_running\"])",
            "x.map(\"task_ctx\"); x.map(\"task_ctxx\"); x.maps(); x.progs(); x.sched(); x.sched(\"/\")",
            "x.sched(\"/no\"); x.scheds(); x.symbol(u64(\"0xffffffff81000000\")); x.symbol(0)",
            "x.symbol(x.kernel(\"init_task\", \"struct task_struct\").origin().address)",
            "x.find_module(\"dummy\"); x.find_module(\"dumy\"); x.modules(); x.psi(); x.psi(\"/\"); x.psi(\"/no\")",
            "x.task(1); x.task(999999); x.tasks(); x.to_string(); x.to_debug(); x.dump()",
        ],
    ),
    (
        "SnapshotCpu",
        &[
            "x.cpustat; x.curr; x.dsq; x.is_idle; x.n; x[\"nr_running\"]; x[\"nr\"]; x.get(\"curr.pid\")",
            "x.kernel(\"runqueues\"); x.kernel(\"cpu_number\"); x.kernel(\"runqueues\", \"struct rq\")",
            "x.domains(); x.registers(); x.schedstats(); x.stack(); x.torn(); x.whole(); x.to_string(); x.to_debug()",
        ],
    ),
    (
        "SnapshotDomain",
        &[
            "x.cpu; x.flags; x.groups; x.name; x.span; x[\"imbalance_pct\"]; x.get(\"level\"); x.whole()",
            "x.to_string(); x.to_debug()",
        ],
    ),
    (
        "SnapshotDsq",
        &[
            "x.cpu; x.id; x.name; x.nr; x[\"nr\"]; x.get(\"seq\"); x.tasks(); x.torn(); x.whole()",
            "x.to_string(); x.to_debug()",
        ],
    ),
    (
        "SnapshotEntry",
        &[
            "x.key; x.value; x[0]; x[\"comm\"]; x[\"nope\"]; x.cpu(0); x.cpu(7); x.cpu_max(); x.cpu_min()",
            "x.cpu_sum(); x.cpu_max(\"nr_running\"); x.cpu_min(\"nr_running\"); x.cpu_sum(\"nr_running\")",
            "x.as_type(\"struct task_struct\"); x.details(); x.stack(); x.get(\"comm\"); x.get(\"a..b\"); x.is_present(); x.map(); x.prog(); x.torn()",
            "x.to_string(); x.to_debug(); x.dump()",
        ],
    ),
    (
        "SnapshotField",
        &[
            "x[0]; x[\"pid\"]; x.as_array(); x.as_bool(); x.as_cpus(); x.as_f64(); x.as_i64(); x.as_str()",
            "x.as_ptr(\"struct task_struct\"); x.as_u64(); x.get(\"comm\"); x.kind(); x.members(); x.max(3)",
            "x.min(3); x.origin(); x.points_to(); x.proven_by(); x.raw(); x.to_float(); x.to_int()",
            "x.type_name(); x.cpu(0); x.torn(); x.to_string(); x.to_debug(); x.dump()",
        ],
    ),
    (
        "SnapshotMap",
        &[
            "x.id; x.key_size; x.kind; x.len; x.len(); x.max_entries; x.name; x.value_size; x.at(0)",
            "x.at(99999999); x.contains(1); x.contains(\"x\"); x.cpu(1); x.cpu(99); x.details(); x.is_empty()",
            "x.filter(|e| e.is_present()).len; x.find(|e| e.is_present()); x.find(|e| false)",
            "x.find_or(|e| false, \"none\"); x.get(1); x.get(\"no\"); x.keys(); x.max_by(|e| 1); x.torn()",
            "x.to_string(); x.to_debug(); x.dump()",
        ],
    ),
    (
        "SnapshotModule",
        &[
            "x.address; x.name; x.refcount; x.size; x.state; x.taints; x[\"state\"]; x.get(\"name\")",
            "x.symbols(); x.whole(); x.to_string(); x.to_debug()",
        ],
    ),
    ("SnapshotPerCpu", &["x.cpu(0); x.cpu(99); x.to_string(); x.to_debug()"]),
    (
        "SnapshotProg",
        &["x.id; x.kind; x.maps; x.name; x.run_count; x.run_time_ns; x.to_string(); x.to_debug()"],
    ),
    (
        "SnapshotSched",
        &[
            "x.bypass_depth; x.cgroup; x.exit; x.id; x.is_attached; x.is_live; x.is_root; x.ops; x.parent",
            "x.state; x[\"ops.name\"]; x.children(); x.counters(); x.counters(0); x.get(\"ops.flags\")",
            "x.global(\"nr_enqueued\"); x.global(\"no\"); x.maps(); x.progs(); x.whole(); x.to_string()",
            "x.to_debug()",
        ],
    ),
    (
        "SnapshotStack",
        &["x.addresses; x.ending; x.frames; x.is_complete; x.to_string(); x.to_debug()"],
    ),
    (
        "SnapshotTask",
        &[
            "x.cgroup; x.cgroup_id; x.class; x.comm; x.cpu; x.cpus_allowed; x.dsq; x.dsq_vtime; x.nice",
            "x.on_cpu; x.policy; x.prio; x.runnable; x.slice; x.state; x.tgid; x.tid; x.weight",
            "x[\"group_leader.comm\"]; x.get(\"scx.weight\"); x.schedstats(); x.stack(); x.whole()",
            "x.to_string(); x.to_debug()",
        ],
    ),
    ("SnapshotError", &["x.fields; x.kind; x.message; x[\"kind\"]; x.to_string(); x.to_debug()"]),
];

/// How a call of `function` looks, up to its first argument, and how many arguments it has.
fn is_asked(function: &FunctionDoc, asked: &str) -> bool {
    let name = function.name.as_str();
    match function.kind {
        Kind::Property => asked == format!("x.{name}"),
        Kind::Index => match function.params[0].1.as_str() {
            "string" => asked.starts_with("x[\""),
            _ => asked.starts_with("x[") && !asked.starts_with("x[\""),
        },
        Kind::Function => {
            let Some(args) = asked.strip_prefix(&format!("x.{name}(")) else { return false };
            arguments(args) == function.params.len()
        }
        Kind::Operator => true,
    }
}

/// Arguments before the bracket that closes them.
fn arguments(text: &str) -> usize {
    let (mut depth, mut commas, mut empty, mut quoted) = (0, 0, true, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => return if empty { 0 } else { commas + 1 },
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => commas += 1,
            _ => {}
        }
        empty &= c.is_whitespace();
    }
    panic!("{text}: a bracket is open");
}

/// What is asked of a type, one by one.
fn asked(of: &str) -> impl Iterator<Item = &'static str> {
    let lists = ASKED.iter().filter(move |(name, _)| *name == of).flat_map(|(_, lists)| *lists);
    lists.flat_map(|list| list.split("; "))
}

#[test]
fn every_accessor_there_is_is_asked() {
    let surface = cryoscope::script::reference().surface(false);
    let types: BTreeSet<&str> =
        surface.functions.iter().filter_map(|f| f.owner.as_deref()).collect();
    let types: Vec<&str> = types.into_iter().filter(|name| name.starts_with("Snapshot")).collect();
    assert!(types.len() >= 12, "{types:?}");
    for owner in types {
        for function in surface.of_type(Some(owner)) {
            let found = asked(owner).any(|asked| is_asked(function, asked));
            assert!(found, "{owner}: nobody asks for {}", function.signature());
        }
    }
}

/// The script that asks: a method of a list of lines for each type.
fn script() -> String {
    let mut out = String::new();
    for (owner, _) in ASKED {
        writeln!(out, "fn {}(s, x, name) {{", owner.to_lowercase()).unwrap();
        for asked in asked(owner) {
            let said = asked.replace('"', "'");
            // What prints by itself is asked of a few only: printed lines are counted.
            let seldom =
                if asked == "x.dump()" { "if name.starts_with(\"task_ctx[0]\") " } else { "" };
            writeln!(
                out,
                "    {seldom}{{ try {{ this.say(`${{name}}: {said}`, {asked}) }} \
                 catch (e) {{ this.threw(s, `${{name}}: {said}`, e) }} }}"
            )
            .unwrap();
        }
        out.push_str("}\n");
    }
    out + r#"
fn say(what, y) {
    if type_of(y) == "()" { this.push(`${what}: ()`); return; }
    this.push(`${what}: ${type_of(y)} ${y}`);
    if type_of(y) == "array" && y.len > 0 { this.push(`${what} ends with ${y[y.len - 1]}`); }
}
fn threw(s, what, e) {
    if type_of(e) != "SnapshotError" { this.push(`${what} throws ${e}`); return; }
    this.push(`${what} throws ${e.kind}: ${e.message}`);
    if what.starts_with("task_ctx") { this.snapshoterror(s, e, what); }
}
// The parts of a value, some levels deep.
fn parts(s, x, name, deep) {
    this.snapshotfield(s, x, name);
    if deep == 0 { return; }
    try {
        for member in x.members() { this.parts(s, x.get(member), `${name}.${member}`, deep - 1); }
    } catch (e) { this.threw(s, name, e) }
}
fn of_map(s, map) {
    this.snapshotmap(s, map, map.name);
    let n = 0;
    for entry in map {
        let name = `${map.name}[${n}]`;
        this.snapshotentry(s, entry, name);
        if type_of(entry.value) == "SnapshotField" { this.parts(s, entry.value, name, 2); }
        n += 1;
        if n == 3 { break; }
    }
}
fn all(s) {
    let out = [];
    out.snapshot(s, s, "snap");
    for map in s.maps() {
        try { out.of_map(s, map) } catch (e) { out.threw(s, map.name, e) }
    }
    for cpu in s.cpus() {
        out.snapshotcpu(s, cpu, `cpu ${cpu.n}`);
        for domain in cpu.domains() { out.snapshotdomain(s, domain, `cpu ${cpu.n} ${domain.name}`); }
        out.parts(s, cpu.whole(), `cpu ${cpu.n}`, 1);
    }
    for m in s.modules() { out.snapshotmodule(s, m, m.name); }
    for dsq in s.dsqs() { out.snapshotdsq(s, dsq, dsq.name); }
    for prog in s.progs() { out.snapshotprog(s, prog, prog.name); }
    for sched in s.scheds() { out.snapshotsched(s, sched, sched.cgroup); }
    for task in s.tasks() { out.snapshottask(s, task, task.comm); }
    out.parts(s, s.task(1).whole(), "init", 1);
    try { out.snapshotstack(s, s.task(2).stack(), "stack") } catch (e) { out.threw(s, "stack", e) }
    out.snapshotpercpu(s, s.kernel("runqueues"), "runqueues");
    let text = "";
    for line in out {
        text += line + "\n";
        if text.len > 30000 { print(text); text = ""; }
    }
    print(text);
}
"#
}

fn printed(said: &Said) -> Vec<String> {
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    let lines = said.out.lines().filter_map(|line| line.trim_start().strip_prefix('│'));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_snapshot_its_file_and_its_file_elsewhere_say_the_same() {
    let _alone = alone();
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    let module = support::modules::files(&support::kernel("debian:7.2"), &[MODULE]);
    let module = module[0].display();
    place.file("ask.rhai", script());
    place.file(
        "live.rhai",
        format!(
            r#"import "ask" as ask;
scenario("live", #{{ scheduler: "{fifo}", topology: "1n1l2c1t", kernel: "debian:7.2",
    schedstats: true, bpf_stats: true, include_files: #{{ "{module}": "/module.ko" }} }}, |t| {{
    expect(t.exec(["insmod", "/module.ko"]).code).eq(0);
    t.start(#{{ work: "spin", count: 3 }});
    t.hold("200ms");
    for (opts, name) in [#{{ registers: true }}, #{{ ram: true }}] {{
        let s = t.freeze(`f${{name}}`, opts);
        let file = `f${{name}}.cryo`;
        s.save(file, #{{ ram: opts.contains("ram") }});
        ask::all(s);
        print("--- file");
        ask::all(open(file));
        print("--- next");
    }}
    expect(1).eq(1);
}});
"#
        ),
    );
    place.file(
        "opened.rhai",
        "import \"ask\" as ask;\nfor n in 0..2 {\n    ask::all(open(`f${n}.cryo`));\n    print(\"--- next\");\n}\nexpect(1).eq(1);\n",
    );
    let live = printed(&place.run(&["run", "live.rhai"]));
    let opened = printed(&place.run(&["run", "opened.rhai"]));
    let parts = |lines: &[String], mark: &str| -> Vec<Vec<String>> {
        let split = lines.split(|line| line.trim() == mark);
        split.map(<[String]>::to_vec).filter(|part| !part.is_empty()).collect()
    };
    let elsewhere = parts(&opened, "--- next");
    assert_eq!(elsewhere.len(), 2);
    for (i, both) in parts(&live, "--- next").iter().take(2).enumerate() {
        let both = parts(both, "--- file");
        assert_eq!(both.len(), 2, "{i}");
        let refused = both[0].iter().filter(|line| line.contains(" throws ")).count();
        let answered = both[0].len() - refused;
        assert!(answered > 5000, "{answered} of {}", both[0].len());
        for (which, other) in [("file", &both[1]), ("file elsewhere", &elsewhere[i])] {
            let differ = both[0].iter().zip(other).find(|(a, b)| a != b);
            assert_eq!(differ, None, "freeze {i}, {which}");
            assert_eq!(both[0].len(), other.len(), "freeze {i}, {which}");
        }
    }
}
