//! Maps whose structures lie: pointers to nowhere, lists that run in circles, numbers that cannot
//! be, too little budget, locks that are held. Whatever a guest has in its memory, what is read is
//! a part that says so, or a reason, in bounded time and room.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::kind;
use super::super::*;
use super::world::{PATCHED, Subject, world};
use crate::introspect::{MapContents, MapData};
use crate::mem::{Gpa, GuestMem, Kva, MemError, Region};

/// Guest memory of which some bytes are others.
struct Patched {
    mem: Arc<dyn GuestMem>,
    patches: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl GuestMem for Patched {
    fn regions(&self) -> &[Region] {
        self.mem.regions()
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.mem.read(at, buf)?;
        for (from, bytes) in self.patches.lock().unwrap().iter() {
            for (i, byte) in bytes.iter().enumerate() {
                let within = (from + i as u64).checked_sub(at.0).map(|n| n as usize);
                if let Some(place) = within.and_then(|within| buf.get_mut(within)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }
}

/// Bytes that a copy may take here.
const ROOM: u64 = 1 << 20;

struct Lab {
    mem: Arc<Patched>,
    kernel: Kernel,
    subjects: Vec<(Subject, MapInfo, MapContents)>,
}

impl Lab {
    /// Every subject, and what is read of it while nothing lies.
    fn new() -> Lab {
        let (guest, subjects) = world();
        let mem = Arc::new(Patched { mem: guest.mem(), patches: Mutex::default() });
        let kernel = Kernel::open(mem.clone()).unwrap();
        let list = kernel.maps().unwrap().maps;
        let with = |subject: Subject| {
            let info = list.iter().find(|map| map.kva == subject.map).unwrap().clone();
            let whole = read(&kernel, &info, &mut Budget::new(ROOM, Duration::from_secs(60)));
            (subject, info, whole)
        };
        let subjects = subjects.into_iter().map(with).collect();
        Lab { mem, kernel, subjects }
    }

    /// What is read of a map while `patches` are in memory, within a small budget.
    fn with(&self, info: &MapInfo, patches: &[(Kva, Vec<u8>)]) -> MapContents {
        let gpa = |at: &Kva| at.0.checked_sub(PATCHED).expect("it is in the direct map");
        *self.mem.patches.lock().unwrap() =
            patches.iter().map(|(at, bytes)| (gpa(at), bytes.clone())).collect();
        let got = read(&self.kernel, info, &mut Budget::new(ROOM, Duration::from_secs(20)));
        self.mem.patches.lock().unwrap().clear();
        got
    }
}

fn read(kernel: &Kernel, info: &MapInfo, budget: &mut Budget) -> MapContents {
    let start = Instant::now();
    let got = kernel.copy_map(info, budget).decode();
    assert!(start.elapsed() < Duration::from_secs(10), "{}: {:?}", info.name, start.elapsed());
    // Rows may be a little longer than what they were made of.
    assert!(got.data.bytes() as u64 <= 8 * ROOM, "{}: {} bytes", info.name, got.data.bytes());
    got
}

fn rows(contents: &MapContents) -> usize {
    contents.data.len().unwrap_or(0)
}

/// Whether it says that something is missing or half-changed.
fn says(contents: &MapContents) -> bool {
    let slot_is_gone = match &contents.data {
        MapData::Unreadable { reason } => return !reason.is_empty(),
        MapData::PerCpuHash { values, .. } => {
            (0..values.len()).any(|row| (0..values.cpus()).any(|c| values.get(row, c).is_none()))
        }
        _ => false,
    };
    slot_is_gone || contents.incomplete.is_some() || !contents.torn.is_empty()
}

/// Nowhere: an address without RAM, one that is none, the last words of the address space.
const NOWHERE: [u64; 4] = [0xffff_8880_dead_0000, 1 << 63, 0xffff_ffff_ffff_fff8, u64::MAX];

#[test]
fn every_subject_is_read_whole() {
    let lab = Lab::new();
    let kinds: Vec<u32> = lab.subjects.iter().map(|(subject, ..)| subject.kind).collect();
    let wanted = [
        kind::RINGBUF,
        kind::USER_RINGBUF,
        kind::BLOOM_FILTER,
        kind::ARENA,
        kind::RHASH,
        kind::DEVMAP,
        kind::DEVMAP_HASH,
        kind::CPUMAP,
        kind::SOCKMAP,
        kind::SOCKHASH,
        kind::XSKMAP,
        kind::REUSEPORT_SOCKARRAY,
        kind::INSN_ARRAY,
        kind::CGRP_STORAGE,
        kind::INODE_STORAGE,
        kind::SK_STORAGE,
        kind::STACK_TRACE,
        kind::CGROUP_ARRAY,
        kind::PERF_EVENT_ARRAY,
        kind::CGROUP_STORAGE,
        kind::PERCPU_CGROUP_STORAGE,
    ];
    assert!(wanted.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    for (subject, info, whole) in &lab.subjects {
        assert!(!says(whole), "{}: {whole:?}", info.name);
        assert_eq!(rows(whole), subject.rows, "{}", info.name);
        let first = match &whole.data {
            MapData::Hash { keys, values } => {
                (keys.get(0).unwrap().to_vec(), values.get(0).unwrap().to_vec())
            }
            MapData::Array { values } => (Vec::new(), values.get(0).unwrap().to_vec()),
            MapData::PerCpuHash { keys, values } => {
                let cpus = (0..values.cpus()).flat_map(|cpu| values.get(0, cpu).unwrap().to_vec());
                (keys.get(0).unwrap().to_vec(), cpus.collect())
            }
            other => panic!("{}: {other:?}", info.name),
        };
        if let Some(want) = &subject.first {
            assert_eq!(&first, want, "{}", info.name);
        }
    }
}

#[test]
fn pointers_to_nowhere_leave_a_part_that_says_so() {
    let lab = Lab::new();
    for (subject, info, whole) in &lab.subjects {
        for at in &subject.pointers {
            for wild in NOWHERE {
                let got = lab.with(info, &[(*at, wild.to_le_bytes().to_vec())]);
                assert!(says(&got), "{}: {at} leads to {wild:#x}: {got:?}", info.name);
                assert!(rows(&got) <= rows(whole), "{}", info.name);
            }
            // Null is nothing, or something missing.
            let got = lab.with(info, &[(*at, vec![0; 8])]);
            assert!(rows(&got) <= rows(whole), "{}: {at} is null: {got:?}", info.name);
        }
    }
}

#[test]
fn slots_that_lead_to_nowhere_leave_the_others() {
    let lab = Lab::new();
    for (subject, info, whole) in &lab.subjects {
        for at in &subject.slots {
            let got = lab.with(info, &[(*at, NOWHERE[0].to_le_bytes().to_vec())]);
            let text = got.incomplete.as_deref().unwrap_or_default();
            assert!(!text.is_empty(), "{}: {got:?}", info.name);
            assert_eq!(rows(&got), rows(whole) - 1, "{}: {got:?}", info.name);
            let got = lab.with(info, &[(*at, vec![0; 8])]);
            assert_eq!((rows(&got), says(&got)), (rows(whole) - 1, false), "{}", info.name);
        }
    }
}

#[test]
fn lists_that_run_in_circles_end() {
    let lab = Lab::new();
    for (subject, info, whole) in &lab.subjects {
        for link in &subject.links {
            // To itself, and to every other link that there is.
            for to in &subject.links {
                let got = lab.with(info, &[(*link, to.0.to_le_bytes().to_vec())]);
                let less = rows(&got) < rows(whole);
                assert!(says(&got) || !less, "{}: {link} to {to}: {got:?}", info.name);
                assert!(rows(&got) <= rows(whole), "{}: {link} to {to}: {got:?}", info.name);
            }
        }
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_or_change_nothing() {
    let lab = Lab::new();
    for (subject, info, whole) in &lab.subjects {
        for (at, len) in &subject.numbers {
            for value in [u64::MAX, 1 << (8 * len - 1), u64::from(u32::MAX) - 7, 0x7fff_fff8] {
                let got = lab.with(info, &[(*at, value.to_le_bytes()[..*len].to_vec())]);
                let same = got.data == whole.data && got.incomplete.is_none();
                assert!(says(&got) || same, "{}: {at} is {value:#x}: {got:?}", info.name);
            }
        }
    }
}

#[test]
fn attributes_that_cannot_be_are_refused_or_bounded() {
    let lab = Lab::new();
    for (_, info, whole) in &lab.subjects {
        for absurd in [0, 1, 3, 7, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX] {
            for info in [
                MapInfo { key_size: absurd, ..info.clone() },
                MapInfo { value_size: absurd, ..info.clone() },
                MapInfo { max_entries: absurd, ..info.clone() },
                MapInfo { map_flags: absurd, ..info.clone() },
                MapInfo { key_size: absurd, value_size: absurd, ..info.clone() },
            ] {
                let got = lab.with(&info, &[]);
                let limit = rows(whole).max(1 << 18);
                assert!(rows(&got) <= limit, "{}: {} rows", info.name, rows(&got));
            }
        }
    }
}

#[test]
fn a_part_that_fits_a_small_budget_says_so() {
    let lab = Lab::new();
    for (_, info, whole) in &lab.subjects {
        let mut all = Budget::new(ROOM, Duration::from_secs(60));
        read(&lab.kernel, info, &mut all);
        let cost = ROOM - all.left();
        assert!(cost > 0, "{} costs nothing", info.name);
        let steps = (0..cost).step_by((cost / 300).max(1) as usize);
        for bytes in steps.chain([cost - 1]) {
            let mut budget = Budget::new(bytes, Duration::from_secs(60));
            let got = read(&lab.kernel, info, &mut budget);
            assert!(says(&got), "{} in {bytes} of {cost} bytes: {got:?}", info.name);
            assert!(rows(&got) <= rows(whole), "{} in {bytes} bytes: {got:?}", info.name);
        }
        let late = read(&lab.kernel, info, &mut Budget::new(ROOM, Duration::ZERO));
        assert!(says(&late) && rows(&late) == 0, "{} without time: {late:?}", info.name);
    }
}

#[test]
fn what_was_being_changed_is_torn() {
    let lab = Lab::new();
    let mut seen = 0;
    for (subject, info, whole) in &lab.subjects {
        for lock in &subject.locks {
            let got = lab.with(info, &[(*lock, vec![1])]);
            assert!(!got.torn.is_empty(), "{}: {got:?}", info.name);
            assert_eq!(rows(&got), rows(whole), "{}", info.name);
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} locks");
}

/// Numbers that look like nothing.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[test]
fn words_of_any_value_anywhere_are_read_in_bounds() {
    /// Changes of each subject.
    const ROUNDS: usize = 400;
    let lab = Lab::new();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for (subject, info, whole) in &lab.subjects {
        let len = subject.span.1.0 - subject.span.0.0;
        let (mut said, mut same) = (0, 0);
        for _ in 0..ROUNDS {
            let count = 1 + noise.below(4);
            let patches: Vec<(Kva, Vec<u8>)> = (0..count)
                .map(|_| {
                    let at = subject.span.0.offset(noise.below(len / 4) * 4);
                    let value = match noise.below(6) {
                        0 => noise.next(),
                        1 => noise.below(64),
                        2 => NOWHERE[noise.below(4) as usize],
                        3 => u64::MAX >> noise.below(64),
                        // Somewhere in the same map.
                        _ => subject.span.0.offset(noise.below(len / 8) * 8).0,
                    };
                    let bytes = if noise.below(2) == 0 { 4 } else { 8 };
                    (at, value.to_le_bytes()[..bytes].to_vec())
                })
                .collect();
            let got = lab.with(info, &patches);
            said += usize::from(says(&got));
            same += usize::from(got.data == whole.data);
        }
        // Instructions are nothing but values: any will do.
        assert!(said > 0 || subject.kind == kind::INSN_ARRAY, "{}: none was noticed", info.name);
        assert!(same < ROUNDS, "{}: nothing changes", info.name);
    }
}
