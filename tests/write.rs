//! What the host writes into a running guest, the guest itself then has: its bpf() syscall, its
//! programs and its /proc say so.

mod support;

use std::time::{Duration, Instant};

use cryoscope::snapshot::{Place, Scalar};
use cryoscope::vm::EngineChoice;
use cryoscope::wire::{Answer, HeldMap, Op};
use support::machine::Machine;

const SOON: Duration = Duration::from_secs(60);

fn global(path: &str) -> Place {
    Place::Global { path: path.into(), obj: None }
}

fn entry(map: &str, index: u32, field: Option<&str>, cpu: Option<u32>) -> Place {
    Place::Entry { map: map.into(), index, field: field.map(Into::into), cpu }
}

fn symbol(name: &str, ty: &str) -> Place {
    Place::Symbol { path: name.into(), ty: Some(ty.into()) }
}

struct Bench {
    machine: Machine,
    maps: Vec<HeldMap>,
}

impl Bench {
    fn write(&mut self, place: &Place, value: Scalar, frozen: bool) -> Result<Scalar, String> {
        let write =
            |opened: &mut cryoscope::freeze::Opened<'_>| opened.capturer.write_place(place, &value);
        self.machine.freezer.with_kernel(frozen, write).unwrap_or_else(|e| panic!("{place:?}: {e}"))
    }

    fn read(&mut self, place: &Place) -> Result<Vec<Scalar>, String> {
        let read = |opened: &mut cryoscope::freeze::Opened<'_>| opened.capturer.read_place(place);
        self.machine.freezer.with_kernel(false, read).unwrap_or_else(|e| panic!("{place:?}: {e}"))
    }

    /// The old value is the one that was there, and the new one is read back.
    fn changes(&mut self, place: &Place, old: Scalar, new: Scalar) {
        for (frozen, from, to) in [(false, &old, &new), (true, &new, &old), (true, &old, &new)] {
            let before = self.write(place, to.clone(), frozen);
            assert_eq!(before.as_ref(), Ok(from), "{place:?}");
            assert_eq!(self.read(place).as_deref(), Ok(&[to.clone()][..]), "{place:?}");
        }
    }

    /// The bytes of a map's entry, as the guest's bpf() syscall gives them.
    fn said(&self, name: &str, index: usize) -> Vec<u8> {
        let map = self.maps.iter().find(|map| map.name == name);
        let id = map.unwrap_or_else(|| panic!("no {name} in {:?}", self.maps)).id;
        match self.machine.call(Op::DumpMap { id, skip: 0 }) {
            Answer::MapPage { entries, .. } => entries[index].1.0.clone(),
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn bpf_variables_and_entries(bench: &mut Bench) {
    let int = Scalar::Int;
    bench.changes(&global("mixed.small"), int(1), int(200));
    bench.changes(&global("mixed.signed_one"), int(0), int(-3));
    bench.changes(&global("mixed.middle"), int(5), int((1 << 17) - 1));
    bench.changes(&global("mixed.flag"), Scalar::Bool(false), Scalar::Bool(true));
    bench.changes(&global("mixed.text"), Scalar::Str(String::new()), Scalar::Str("seven c".into()));
    let mood = bench.write(&global("mixed.mood"), Scalar::Str("HASTY".into()), false);
    assert!(
        matches!(&mood, Ok(Scalar::Enum(e)) if e.name().as_deref() == Some("CALM")),
        "{mood:?}"
    );
    bench.changes(&global("mixed.wide"), int(0), Scalar::U64(u64::MAX));
    let said = bench.said("written.data", 0);
    let at =
        (0..=said.len() - 32).step_by(8).find(|at| said[at + 2..at + 4] == (-3i16).to_le_bytes());
    let at = at.unwrap_or_else(|| panic!("no -3 in {said:?}"));
    let whole = &said[at..];
    assert_eq!(whole[0], 200);
    let bits = u32::from_le_bytes(whole[4..8].try_into().expect("four bytes"));
    assert_eq!((bits & 7, bits >> 3 & 0x1_ffff, bits >> 20), (0, 0x1_ffff, 9), "neighbours stay");
    assert_eq!(whole[8], 7, "HASTY");
    assert_eq!((whole[12], &whole[13..21]), (1, &b"seven c\0"[..]));
    assert_eq!(whole[24..32], [0xff; 8]);

    bench.changes(&entry("shared", 2, Some("wide"), None), int(0), int(77));
    assert_eq!(bench.said("shared", 2)[24..32], 77u64.to_le_bytes());
    assert_eq!(bench.said("shared", 1), vec![0; 32], "only that entry");
    bench.changes(&entry("each_cpu", 1, None, Some(1)), int(0), int(5));
    let each = bench.said("each_cpu", 1);
    assert_eq!((&each[..8], &each[8..16]), (&[0; 8][..], &5u64.to_le_bytes()[..]), "only that CPU");

    // The program itself sees it.
    bench.changes(&global("limit"), int(100), int(-12345));
    let until = Instant::now() + SOON;
    while bench.read(&global("seen")) != Ok(vec![Scalar::U64((-12345i64) as u64)]) {
        assert!(
            Instant::now() < until,
            "the program does not see it: {:?}",
            bench.read(&global("seen"))
        );
        bench.machine.call(Op::Dmesg);
    }
}

fn the_kernels_own(bench: &mut Bench) {
    let int = Scalar::Int;
    assert_eq!(bench.machine.file("/proc/sys/kernel/panic"), "-1");
    bench.changes(&symbol("panic_timeout", "int"), int(-1), int(17));
    assert_eq!(bench.machine.file("/proc/sys/kernel/panic"), "17");
    let comm = Place::Task { tid: 1, field: "comm".into() };
    let before = bench.machine.file("/proc/1/comm");
    bench.changes(&comm, Scalar::Str(before), Scalar::Str("renamed".into()));
    assert_eq!(bench.machine.file("/proc/1/comm"), "renamed");
    let cpu = |cpu| Place::PerCpu { path: "runqueues.cpu".into(), ty: None, cpu };
    assert_eq!(bench.read(&cpu(1)), Ok(vec![int(1)]));
    assert_eq!(bench.read(&cpu(0)), Ok(vec![int(0)]));
    let name = bench.read(&symbol("init_task.comm", "struct task_struct"));
    assert_eq!(name, Ok(vec![Scalar::Str("swapper/0".into())]));
}

/// Each mistake says what is there, the nearest name, and what to do.
fn mistakes(bench: &mut Bench) {
    let int = Scalar::Int(1);
    let cases: [(Place, Scalar, &str); 16] = [
        (
            global("limitt"),
            int.clone(),
            "has a global variable \"limitt\"; did you mean \"limit\"?",
        ),
        (
            Place::Global { path: "limit".into(), obj: Some("writen".into()) },
            int.clone(),
            "no loaded BPF object is called \"writen\"; did you mean \"written\"?",
        ),
        (global("constant"), int.clone(), "map written.rodata is frozen: the verifier has built"),
        (
            global("mixed"),
            int.clone(),
            "struct mixed is no single value; write its members: small, signed_one",
        ),
        (
            global("mixed.text"),
            Scalar::Str("too long for".into()),
            "12 bytes do not fit into char[8]: 7 do",
        ),
        (
            global("mixed.small"),
            Scalar::Int(256),
            "256 does not fit into u8 of 8 bits: 0 to 255 do",
        ),
        (global("mixed.low"), Scalar::Int(8), "8 does not fit into u32 of 3 bits: 0 to 7 do"),
        (
            global("mixed.mood"),
            Scalar::Str("HASTE".into()),
            "has no value called \"HASTE\"; did you mean \"HASTY\"?",
        ),
        (global("mixed.flag"), Scalar::Int(2), "takes true or false, not 2"),
        (global("limit"), Scalar::Str("x".into()), "takes a whole number, not \"x\""),
        (
            entry("share", 0, None, None),
            int.clone(),
            "no BPF map is called \"share\"; did you mean \"shared\"?",
        ),
        (
            entry("shared", 4, None, None),
            int.clone(),
            "map shared has no entry 4; its last one is 3",
        ),
        (
            entry("table", 0, None, None),
            int.clone(),
            "only entries of arrays have a place of their own",
        ),
        (
            entry("each_cpu", 0, None, None),
            int.clone(),
            "each CPU has values of its own in map each_cpu; give `cpu`",
        ),
        (
            Place::Symbol { path: "panic_timeout".into(), ty: None },
            int.clone(),
            "does not tell the type of 'panic_timeout'; give it, as in #{ symbol: \"panic_timeout\", type: \"u64\" }",
        ),
        (symbol("linux_banner", "u8"), int.clone(), "is read-only data of the kernel's"),
    ];
    for (place, value, says) in cases {
        let error = bench.write(&place, value, false).expect_err("it is refused");
        assert!(error.contains(says), "{place:?}:\n{error}\n{says}");
    }
    let reads: [(Place, &str); 5] = [
        (
            Place::Task { tid: 4_000_000, field: "comm".into() },
            "there is no thread 4000000 in the guest",
        ),
        (symbol("panic_timeot", "int"), "no symbol 'panic_timeot'"),
        (
            Place::Symbol { path: "runqueues.cpu".into(), ty: None },
            "name one, #{ percpu: \"runqueues.cpu\", cpu: 0 }",
        ),
        (
            Place::PerCpu { path: "runqueues.cpu".into(), ty: None, cpu: 9 },
            "there is no CPU 9: this machine has 0 to 1",
        ),
        (Place::Address { at: 8, ty: "u64".into(), count: 1 }, "8"),
    ];
    for (place, says) in reads {
        let error = bench.read(&place).expect_err("it is refused");
        assert!(error.contains(says), "{place:?}:\n{error}\n{says}");
    }
}

#[test]
fn what_is_written_the_guest_has() {
    let kernel = support::kernel("debian:7.2");
    let written = support::scheduler("tests/schedulers/written.bpf.c", &kernel);
    let stage = |fs: &mut _| support::stage(fs, &written);
    let spec = support::spec(support::elf(&kernel), "1n1l2c1t", stage);
    let mut machine = Machine::boot(&spec, EngineChoice::Qemu);
    machine.call(support::attach(&written));
    let Answer::Maps(maps) = machine.call(Op::HoldMaps) else { panic!("no maps") };
    machine.freezer.open().unwrap_or_else(|e| panic!("{e}"));
    let mut bench = Bench { machine, maps };
    bpf_variables_and_entries(&mut bench);
    the_kernels_own(&mut bench);
    mistakes(&mut bench);
    bench.machine.power_off();
}
