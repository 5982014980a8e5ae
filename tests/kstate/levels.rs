//! Scheduling domains and pressure: what a snapshot says equals `/proc/schedstat`, debugfs,
//! `/proc/pressure` and cgroups' files.

use std::collections::BTreeMap;
use std::sync::Arc;

use cryoscope::freeze::Freezer;
use cryoscope::snapshot::{CaptureRequest, Domain, Pressure, Snapshot, SnapshotError, Stall};
use cryoscope::wire::{CgroupSet, Op, Work, WorkKind};

use super::support::{self, Guest};
use super::{freeze, start, work};

/// A machine whose kernel shows its domains in debugfs.
fn boot(spec: &str, topology: &str) -> Guest {
    let image = support::kernel(spec);
    let mut spec = support::spec(support::elf(&image), topology, |_| {});
    spec.kargs.push("sched_verbose".to_owned());
    Guest::start(&spec)
}

/// A mask as `/proc/schedstat` has it: hexadecimal, 32 bits between commas.
fn cpus(mask: &str) -> Vec<u32> {
    let words = mask.split(',').rev().map(|word| u32::from_str_radix(word, 16).expect("hex"));
    let bits = |(i, word): (u32, u32)| {
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| 32 * i + bit)
    };
    (0..).zip(words).flat_map(bits).collect()
}

/// A CPU set as the numbers in it.
fn numbers(set: &str) -> Vec<u32> {
    let run = |run: &str| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        first.parse().expect("a number")..=last.parse().expect("a number")
    };
    set.split(',').filter(|run| !run.is_empty()).flat_map(run).collect()
}

/// Names (where this kernel's file has them) and CPUs of each CPU's domains.
fn in_schedstat(guest: &Guest) -> Vec<Vec<(Option<String>, Vec<u32>)>> {
    let text = guest.file("/proc/schedstat");
    let mut out: Vec<Vec<_>> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            cpu if cpu.starts_with("cpu") => out.push(Vec::new()),
            domain if domain.starts_with("domain") => {
                // The name came with version 17 of the file.
                let named = !words[1].starts_with(|c: char| c.is_ascii_hexdigit())
                    || words[1].chars().any(|c| c.is_ascii_uppercase());
                let (name, mask) =
                    if named { (Some(words[1]), words[2]) } else { (None, words[1]) };
                let domains = out.last_mut().expect("a CPU comes first");
                domains.push((name.map(str::to_owned), cpus(mask)));
            }
            _ => {}
        }
    }
    out
}

fn is_that_of_debugfs(guest: &Guest, domain: &Domain, level: usize) -> Result<(), SnapshotError> {
    let dir = format!("/sys/kernel/debug/sched/domains/cpu{}/domain{level}", domain.cpu());
    let file = |name: &str| guest.file(&format!("{dir}/{name}")).trim().to_owned();
    assert_eq!(domain.name(), Some(file("name").as_str()));
    for name in ["level", "min_interval", "max_interval", "busy_factor", "imbalance_pct"] {
        assert_eq!(domain.get(name)?.as_u64()?.to_string(), file(name), "{dir}/{name}");
    }
    let flags = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let ours = domain.flags()?;
    assert!(ours.iter().all(|flag| flag.starts_with("SD_")), "{ours:?}");
    assert_eq!(ours, flags(file("flags")), "{dir}");
    assert_eq!(domain.groups()?[0].flags, flags(file("groups_flags")), "{dir}");
    Ok(())
}

/// Groups share the domain's CPUs out, as the domains below it have them.
fn groups_are_plausible(domain: &Domain, below: Option<&Domain>) -> Result<(), SnapshotError> {
    let groups = domain.groups()?;
    let mut all: Vec<u32> = groups.iter().flat_map(|group| numbers(&group.span)).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, numbers(&domain.span()?));
    let own = below.map_or(Ok(domain.cpu().to_string()), Domain::span)?;
    assert_eq!(groups[0].span, own, "{domain:?}");
    for group in &groups {
        assert_eq!(group.weight as usize, numbers(&group.span).len(), "{group:?}");
        assert!((1..=1024).contains(&group.min_capacity), "{group:?}");
        assert!((group.min_capacity..=1024).contains(&group.max_capacity), "{group:?}");
        let most = group.weight * 1024;
        assert!((group.max_capacity..=most).contains(&group.capacity), "{group:?}");
    }
    Ok(())
}

fn domains_are_those_of_the_kernel(
    guest: &Guest,
    snap: &Arc<Snapshot>,
) -> Result<usize, SnapshotError> {
    let said = in_schedstat(guest);
    let cpus = snap.cpus()?;
    assert_eq!(cpus.len(), said.len());
    for (cpu, said) in cpus.iter().zip(&said) {
        let domains = cpu.domains()?;
        assert_eq!(domains.len(), said.len(), "{domains:?} {said:?}");
        for (level, (domain, (name, span))) in domains.iter().zip(said).enumerate() {
            assert_eq!(&numbers(&domain.span()?), span, "{domain:?}");
            assert_eq!(domain.get("span_weight")?.as_u64()?, span.len() as u64);
            if name.is_some() {
                assert_eq!(domain.name(), name.as_deref());
            }
            is_that_of_debugfs(guest, domain, level)?;
            groups_are_plausible(domain, level.checked_sub(1).map(|below| &domains[below]))?;
            if let Some(parent) = domains.get(level + 1) {
                let weight = domain.get("parent.span_weight")?.as_u64()?;
                assert_eq!(weight, parent.get("span_weight")?.as_u64()?);
            }
        }
    }
    println!("{:?}", cpus[0].domains()?);
    Ok(said.iter().map(Vec::len).min().unwrap_or_default())
}

fn domains(spec: &str, topology: &str, levels: usize) {
    let mut guest = boot(spec, topology);
    let mut freezer = Freezer::new(guest.take_engine());
    let snap = freeze(&mut freezer, &CaptureRequest::default());
    let least = domains_are_those_of_the_kernel(&guest, &snap).unwrap_or_else(|e| panic!("{e}"));
    assert!(least >= levels, "{least} levels");
    pressure_equals(&guest, &mut freezer);
    freezer.stop();
}

#[test]
fn domains_and_pressure_are_those_of_7_3_with_nodes_caches_and_threads() {
    domains("debian:7.3", "2n4l2c2t", 3);
}

#[test]
fn domains_and_pressure_are_those_of_6_12() {
    domains("debian:6.12", "1n2l2c1t", 2);
}

/// A file of pressure: by share, the averages and the total.
fn file(guest: &Guest, path: &str) -> BTreeMap<String, Stall> {
    let text = guest.file(path);
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let share = words.next().expect("some or full").to_owned();
        let values: Vec<&str> =
            words.map(|word| word.split_once('=').expect("a value").1).collect();
        let avg = |i: usize| values[i].parse().expect("percent");
        let total = values[3].parse().expect("microseconds");
        (share, Stall { avg10: avg(0), avg60: avg(1), avg300: avg(2), total })
    };
    text.lines().map(line).collect()
}

type Lines = BTreeMap<(String, String), Stall>;

fn said(guest: &Guest, cgroup: Option<&str>, resources: &[&str]) -> Lines {
    let mut out = Lines::new();
    for resource in resources {
        let path = match cgroup {
            None => format!("/proc/pressure/{resource}"),
            Some(path) => format!("/sys/fs/cgroup{path}/{resource}.pressure"),
        };
        for (share, stall) in file(guest, &path) {
            out.insert(((*resource).to_owned(), share), stall);
        }
    }
    out
}

fn read(all: Vec<Pressure>) -> Lines {
    let lines = all.into_iter().flat_map(|one| {
        let shares = [("some", one.some), ("full", one.full)];
        let key = move |share: &str| (one.resource.to_owned(), share.to_owned());
        shares.into_iter().filter_map(move |(share, stall)| Some((key(share), stall?)))
    });
    lines.collect()
}

/// Totals lie between what the files say before and after; averages are theirs where those did not
/// move.
fn pressure_equals(guest: &Guest, freezer: &mut Freezer) {
    guest.call(Op::CgroupCreate { name: "hot".into(), set: CgroupSet::default() });
    let spin = work(WorkKind::Spin, 3 * guest_cpus(guest));
    start(guest, Work { cgroup: Some("hot".into()), ..spin });
    let (mut still, mut waited) = (0, 0);
    for _ in 0..8 {
        for cgroup in [None, Some("/lab"), Some("/lab/hot")] {
            let snap = freeze(freezer, &CaptureRequest::default());
            let ours = read(snap.psi(cgroup).unwrap_or_else(|e| panic!("{e}")));
            let mut resources: Vec<&str> =
                ours.keys().map(|(resource, _)| resource.as_str()).collect();
            resources.dedup();
            assert!(resources.len() >= 3, "{resources:?}");
            let before = said(guest, cgroup, &resources);
            let snap = freeze(freezer, &CaptureRequest::default());
            let ours = read(snap.psi(cgroup).unwrap_or_else(|e| panic!("{e}")));
            let after = said(guest, cgroup, &resources);
            assert!(ours.keys().eq(before.keys()), "{ours:?} {before:?}");
            for (line, ours) in &ours {
                let (before, after) = (before[line], after[line]);
                let bounds = before.total..=after.total;
                assert!(bounds.contains(&ours.total), "{cgroup:?} {line:?}: {ours:?} {bounds:?}");
                let avgs = |stall: &Stall| [stall.avg10, stall.avg60, stall.avg300];
                if avgs(&before) == avgs(&after) {
                    assert_eq!(avgs(ours), avgs(&before), "{cgroup:?} {line:?}");
                    still += 1;
                    waited += usize::from(ours.avg10 > 0.0);
                }
            }
        }
    }
    println!("{still} lines of averages stood still, {waited} of them with pressure");
    assert!(still > 20 && waited > 0, "{still} lines stood still, {waited} had pressure");
    let snap = freeze(freezer, &CaptureRequest::default());
    let e = snap.psi(Some("/lab/hat")).unwrap_err().to_string();
    assert!(e.contains("keys there: /lab/hot"), "{e}");
}

fn guest_cpus(guest: &Guest) -> u32 {
    let text = guest.file("/proc/stat");
    let cpus = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    u32::try_from(cpus.count()).expect("a number of CPUs")
}

#[test]
fn a_kernel_that_does_not_account_for_pressure_says_so() {
    let image = support::kernel("debian:6.12");
    let mut spec = support::spec(support::elf(&image), "1n1l1c1t", |_| {});
    spec.kargs.push("psi=0".to_owned());
    let mut guest = Guest::start(&spec);
    let mut freezer = Freezer::new(guest.take_engine());
    let snap = freeze(&mut freezer, &CaptureRequest::default());
    let e = snap.psi(None).unwrap_err().to_string();
    assert_eq!(
        e,
        "the pressure of the system could not be read: the kernel does not account for pressure \
         (PSI is off); boot it with psi=1 on its command line: the scenario option kargs: \
         [\"psi=1\"]"
    );
    // One CPU has nothing to balance with.
    let cpu = snap.cpu(0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cpu.domains().map(|domains| domains.len()), Ok(0));
    freezer.stop();
}
