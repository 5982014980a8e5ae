//! A zoo of maps: filled by a scheduler that is then detached, and by the agent. Left alone, it reads
//! the same through every engine, but for addresses and for what names tasks and groups.

use std::collections::BTreeMap;
use std::time::Duration;

use cryoscope::kernel::KernelImage;
use cryoscope::scheduler::Prepared;
use cryoscope::snapshot::{CaptureRequest, Meta};
use cryoscope::vm::EngineChoice;
use cryoscope::vm::initramfs::{Initramfs, InitramfsError};
use cryoscope::wire::{Answer, Op};
use serde_json::Value;

use super::support;
use super::support::machine::Machine;
use super::support::outer::{Outer, SELF};
use super::{PATIENCE, archive_in_guest};

pub(super) const CPUS: &str = "1n1l2c1t";
/// Where the outer guest leaves what was read.
pub(super) const FOUND: &str = "/zoo-found";
const ATTACH: &str = "/inner/zoo-attach";
/// Of tasks, groups, sockets and files there are others in every machine.
const OTHERS: [&str; 6] = ["notes", "noted", "group_notes", "groups_noted", "sockets", "inodes"];
/// Filters hash with a seed that each kernel draws; stacks are known by a hash of their addresses.
const DRAWN: [&str; 2] = ["bloom_filter", "stack_trace"];
/// What the scheduler counted while it was attached, which takes longer in one machine; ports that
/// a kernel picks.
const VARYING: [&str; 4] = ["custom_counter", "nr_enqueued", "local_port", "remote_port"];
/// Kernel addresses, which lie anywhere, begin here.
const KERNEL: u64 = 0xffff_0000_0000_0000;
/// More bytes than an arena of the zoo has.
const ARENA: u64 = 64 << 20;

pub(super) struct Zoo {
    prepared: Prepared,
}

impl Zoo {
    pub(super) fn prepare(image: &KernelImage) -> Zoo {
        Zoo { prepared: support::scheduler("tests/schedulers/zoo.bpf.c", image) }
    }

    fn archive(&self) -> Vec<u8> {
        let mut fs = Initramfs::new();
        fs.agent(support::agent()).expect("the agent can be staged");
        support::stage(&mut fs, &self.prepared);
        fs.build().expect("an archive")
    }

    pub(super) fn stage(&self, fs: &mut Initramfs) -> Result<(), InitramfsError> {
        let attach = serde_json::to_vec(&support::attach(&self.prepared)).expect("plain data");
        fs.bytes(ATTACH, attach, 0o644)?;
        fs.bytes(&archive_in_guest("zoo"), self.archive(), 0o644)
    }

    /// Reads the zoo through both engines and compares.
    pub(super) fn compare(&self, image: &KernelImage, outer: Option<&Outer>, kernel: &str) {
        let spec = |topology: &str| {
            let stage = |fs: &mut Initramfs| support::stage(fs, &self.prepared);
            support::spec(support::elf(image), topology, stage)
        };
        let attach = || support::attach(&self.prepared);
        let qemu = read(Machine::boot(&spec(CPUS), EngineChoice::Qemu), attach());
        let kvm = match outer {
            None => read(Machine::boot(&spec(CPUS), EngineChoice::Kvm), attach()),
            Some(outer) => {
                let archive = archive_in_guest("zoo");
                outer.run(&[SELF, "inner", "zoo", kernel, &archive, ATTACH], PATIENCE);
                outer.file(FOUND)
            }
        };
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let (qemu, kvm) = (lines(&qemu), lines(&kvm));
        let differ = qemu.iter().zip(&kvm).filter(|(a, b)| a != b).map(|(a, b)| {
            let at = a.bytes().zip(b.bytes()).position(|(a, b)| a != b).unwrap_or(0);
            let part = |text: &str| {
                let name = text.split(" [").next().unwrap_or_default();
                let there = text.chars().skip(at.saturating_sub(60)).take(200);
                format!("{name} .. {}", there.collect::<String>())
            };
            format!("under QEMU: {}\non our machine: {}", part(a), part(b))
        });
        let differ: Vec<String> = differ.collect();
        assert!(differ.is_empty(), "{}", differ.join("\n"));
        assert_eq!(qemu.len(), kvm.len(), "maps");
        let entries: usize = qemu.iter().map(|line| line.matches("},{").count() + 1).sum();
        assert!(qemu.len() > 50 && entries > 10_000, "{} maps, {entries} entries", qemu.len());
        println!("zoo         {} maps read the same, {entries} entries", qemu.len());
    }
}

/// Fills the zoo, reads it, and gives a line for each map: its name, and its entries in order.
pub(super) fn read(mut machine: Machine, attach: Op) -> String {
    machine.call(attach);
    let Answer::Maps(held) = machine.call(Op::HoldMaps) else { panic!("no maps are held") };
    machine.call(Op::Detach);
    let Answer::Made(made) = machine.call(Op::MakeMaps) else { panic!("no maps were made") };
    let mut names = BTreeMap::new();
    let ours = held.into_iter().chain(made.into_iter().map(|made| made.map));
    for map in ours.filter(|map| !OTHERS.contains(&map.name.as_str())) {
        names.insert(map.id, map.name);
    }
    // Inside an emulated machine it takes long to copy all of it.
    let time = Duration::from_secs(60);
    let request = CaptureRequest { registers: false, time, ..CaptureRequest::default() };
    let snap = machine.freezer.freeze(&request, Meta::default).unwrap_or_else(|e| panic!("{e}"));
    let mut lines = Vec::new();
    for (id, name) in names {
        let map = snap.map(&format!("{name}#{id}")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(map.incomplete(), None, "{name}");
        if DRAWN.contains(&map.attrs().kind.as_str()) {
            continue;
        }
        let entries = serde_json::to_value(map.entries_as_json()).expect("plain data");
        let mut entries: Vec<String> = match entries {
            Value::Array(all) if map.attrs().kind == "arena" => pages(all),
            Value::Array(all) => all.into_iter().map(|e| steady(e).to_string()).collect(),
            other => panic!("{name}: {other}"),
        };
        entries.sort();
        lines.push(format!("{name} {} [{}]", map.attrs().kind, entries.join(",")));
    }
    lines.sort();
    machine.power_off();
    lines.join("\n")
}

/// The pages of an arena, which lies anywhere in the address space of the process that made it, as
/// counted from the first one; so are addresses of the arena in them, whole or their lower half.
fn pages(all: Vec<Value>) -> Vec<String> {
    let first = all.iter().filter_map(|page| page["key"].as_u64()).min().unwrap_or_default();
    let from_first = |word: u64| match word.wrapping_sub(first) {
        near if near < ARENA => near,
        _ => match u64::from((word as u32).wrapping_sub(first as u32)) {
            near if near < ARENA && word >> 32 == 0 => near,
            _ => word,
        },
    };
    let page = |page: &Value| {
        let hex = page["value"].as_str().expect("bytes in hexadecimal");
        // Long ones are cut.
        let hex = hex.trim_start_matches("0x").trim_end_matches('.');
        let words = hex.as_bytes().chunks_exact(16).map(|digits| {
            let digits = std::str::from_utf8(digits).expect("digits");
            let word = u64::from_str_radix(digits, 16).expect("hexadecimal digits");
            from_first(word.swap_bytes())
        });
        let words: Vec<u64> = words.collect();
        let key = page["key"].as_u64().expect("an address");
        format!("{} {words:x?}", key - first)
    };
    all.iter().map(page).collect()
}

/// The same without kernel addresses, as numbers or in texts, and without what varies.
fn steady(value: Value) -> Value {
    const GONE: &str = "address";
    match value {
        Value::Array(all) => all.into_iter().map(steady).collect(),
        Value::Object(all) => {
            let all = all.into_iter().filter(|(key, _)| !VARYING.contains(&key.as_str()));
            all.map(|(key, value)| (key, steady(value))).collect()
        }
        Value::Number(n) if n.as_u64().is_some_and(|n| n >= KERNEL) => GONE.into(),
        Value::String(text) if text.contains("0xffff") => GONE.into(),
        other => other,
    }
}
