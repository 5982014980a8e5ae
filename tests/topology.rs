//! Machines have the shape that they were asked to have, as their kernels see it under QEMU. Here
//! are those that tell most; `make test-kvm` boots all twelve, and some on our own machine.

mod support;

use cryoscope::vm::VmSpec;
use cryoscope::vm::topology::Topology;
use cryoscope::wire::{Answer, Op};
use support::Guest;
use support::shape;
use support::shapes::{MEMORY_ONLY, UNEVEN};

fn boot(shape: &str) -> (Guest, VmSpec) {
    let image = support::kernel("debian:7.2");
    let spec = support::spec(support::elf(&image), shape, |_| {});
    (Guest::start(&spec), spec)
}

fn check(shape: &str) -> Guest {
    let (guest, spec) = boot(shape);
    shape::is_as_asked("qemu", &spec, &|path| guest.file(path));
    guest
}

#[test]
fn the_example_with_nodes_that_differ_passes() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cryoscope"));
    command.arg("run").arg(support::project("examples/nodes.rhai"));
    let out = command.output().expect("it starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

fn names(guest: &Guest, dir: &str) -> Vec<String> {
    let argv = ["ls", dir].map(str::to_owned).to_vec();
    match guest.call(Op::Exec { argv, timeout_ms: 60_000 }) {
        Answer::Exec(done) if done.code == Some(0) => {
            done.stdout.split_whitespace().map(str::to_owned).collect()
        }
        other => panic!("{dir}: {other:?}"),
    }
}

#[test]
fn every_level_is_there_with_several_of_each() {
    check("2n4l2c2t");
}

#[test]
fn nodes_that_differ_have_their_own_sizes_and_distance() {
    check(UNEVEN);
}

#[test]
fn a_node_may_have_memory_only_and_is_a_tier_of_its_own() {
    let guest = check(MEMORY_ONLY);
    let tiers = shape::tiers(2, &|dir| names(&guest, dir), &|path| guest.file(path));
    assert!(tiers[0] > 0 && tiers[1] > tiers[0], "{tiers:?}");
}

#[test]
fn threads_may_differ_and_distances_one_by_one() {
    let shape = "1n1l1c2t+1n2l1c1t+1n@10,20,15/21,10,17/16,18,10";
    let topology: Topology = shape.parse().expect("a topology");
    assert_eq!(topology.to_string(), shape);
    check(shape);
}
