//! What a monitor reads of a made-up machine, whole and damaged.

use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::mem::{Gpa, GuestMem, MemError, Region};

fn read(machine: Machine) -> Reading {
    Kernel::open(machine.guest.mem()).unwrap().monitor().unwrap()
}

fn harmed(harm: impl Fn(&mut Machine)) -> Reading {
    let mut machine = Machine::monitored(true);
    harm(&mut machine);
    read(machine)
}

#[test]
fn runqueues_queues_and_counters_are_read() {
    let reading = read(Machine::monitored(true));
    let task = Some((50, "spin".to_owned()));
    let cpu = |cpu, nr_running, nr_switches, task: Option<(u32, String)>| {
        let idle = task.is_none();
        CpuReading { cpu, nr_running, ext_running: None, clock: 1000, nr_switches, idle, task }
    };
    let cpus = vec![cpu(0, 2, 70, task), cpu(1, 1, 71, None)];
    let named = |(name, depth): (&str, u32)| (name.to_owned(), depth);
    let queues =
        [("local:0", 1), ("local:1", 0), ("bypass:0", 0), ("bypass:1", 0), ("global", 0), ("7", 2)];
    let events = [("SCX_EV_FALLBACK", 3), ("SCX_EV_BYPASS", 30)];
    let events = events.map(|(name, n)| (name.to_owned(), n)).to_vec();
    let at = Machine::monitored(true).sched.0;
    assert_eq!(
        reading,
        Reading {
            cpus,
            has_queues: true,
            queues: queues.map(named).to_vec(),
            sched: Some(SchedReading { at, seq: Some(1), events: Some(events) }),
            ..Reading::default()
        }
    );
}

#[test]
fn a_cpu_that_is_offline_is_left_out_and_so_is_what_the_kernel_lacks() {
    let reading = harmed(|m| m.guest.write_u32(m.rqs[1].offset(at::ONLINE), 0));
    assert_eq!((reading.cpus.len(), reading.cpus_missing, reading.doubted), (1, 0, 0));
    assert!(reading.queues.iter().all(|(name, _)| name != "local:1"));
    let reading = read(Machine::monitored(false));
    assert_eq!((reading.cpus.len(), reading.has_queues, reading.sched), (2, false, None));
    let reading = harmed(Machine::detach);
    assert_eq!((reading.queues.len(), reading.sched, reading.doubted), (2, None, 0));
    let lacks = Kernel::open(Machine::new(true).guest.mem()).unwrap().monitor().unwrap_err();
    assert!(lacks.to_string().contains("nr_switches"), "{lacks}");
}

#[test]
fn what_cannot_be_true_is_left_out_with_the_reason() {
    type Harm = fn(&mut Machine);
    let cases: [(Harm, &str); 9] = [
        (
            |m| m.guest.write_u32(m.rqs[1], 0xffff_fff0),
            "CPU 1: nr_running is 4294967280, but there",
        ),
        (|m| m.guest.write_u64(m.rqs[1].offset(24), 0), "CPU 1: clock is 0"),
        (
            |m| m.guest.write_u64(m.rqs[1].offset(24), 1 << 63),
            "CPU 1: clock is 9223372036854775808",
        ),
        (
            |m| m.guest.write_u64(m.rqs[1].offset(8), 0x1234),
            "CPU 1: curr is 0x1234, which is no place of the kernel's",
        ),
        (|m| m.guest.write_u32(m.rqs[1].offset(at::ONLINE), 7), "CPU 1: online is 7"),
        (
            |m| m.guest.write_u32(m.user_dsq.offset(at::NR), 99_999_999),
            "a queue of the scheduler's: it counts 99999999 tasks, but there is room for",
        ),
        (
            |m| m.guest.write_u64(m.tasks[&42].offset(at::DSQ_NODE), 0x1000),
            "a queue of the scheduler's: its list leads to 0x1000, no place of the kernel's",
        ),
        (
            |m| {
                let root = Kva(m.guest.address("scx_root"));
                m.guest.write_u64(root, 0x41);
            },
            "scx_root is 0x41, which is no place of the kernel's",
        ),
        (|m| m.guest.write_u32(m.table, u32::MAX), "the table of dispatch queues has 4294967295"),
    ];
    for (harm, why) in cases {
        let reading = harmed(harm);
        assert_eq!(reading.doubted, 1, "{why}: {reading:?}");
        assert!(reading.doubts[0].contains(why), "{why}: {:?}", reading.doubts);
        let of_cpu = why.starts_with("CPU");
        assert_eq!(reading.cpus.len(), if of_cpu { 1 } else { 2 });
        assert_eq!((reading.cpus_missing == 1, reading.queues_missing), (of_cpu, !of_cpu));
    }
    // A negative count takes all counters away, and nothing else.
    let reading = harmed(|m| {
        let pcpu = m.guest.read_u64(m.sched.offset(32));
        m.guest.write_u64(Kva(pcpu + crate::introspect::testing::Guest::cpu_offset(1) + 8), !4);
    });
    assert_eq!(reading.doubts, ["SCX_EV_BYPASS of CPU 1 is -5"]);
    assert_eq!((reading.sched.unwrap().events, reading.queues.len()), (None, 6));
}

#[test]
fn what_changes_meanwhile_is_given_up_and_not_held_against_it() {
    // A queue that lists two tasks and counts three may just be filled.
    let reading = harmed(|m| m.guest.write_u32(m.user_dsq.offset(at::NR), 3));
    assert_eq!((reading.given_up, reading.doubted), (1, 0));
    assert!(reading.queues.contains(&("7".to_owned(), 3)));
    // A list that comes back to itself and never to its queue.
    let reading = harmed(|m| {
        let [from, to] = [42, 41].map(|pid| m.tasks[&pid].offset(at::DSQ_NODE));
        m.guest.write_u64(from, to.0);
    });
    assert_eq!((reading.given_up, reading.doubted), (1, 0));
    // One of nothing but cursors.
    let reading = harmed(|m| {
        let node = m.tasks[&41].offset(at::DSQ_NODE);
        m.guest.write_u32(node.offset(16), 1);
        m.guest.write_u64(node, node.0);
    });
    assert_eq!((reading.given_up, reading.doubted), (1, 0));
    // A queue that is destroyed has the kernel's flag and nothing else for an id.
    let reading = harmed(|m| m.guest.write_u64(m.user_dsq.offset(32), 1 << 63));
    assert_eq!((reading.given_up, reading.queues.len(), reading.doubted), (1, 5, 0));
    // A task that is none has no name, and the rest is read.
    let reading = harmed(|m| m.guest.write(m.tasks[&50].offset(at::COMM), b"\x01\x02\0"));
    assert_eq!((reading.cpus[0].task.clone(), reading.cpus[0].idle), (None, false));
}

/// A machine in which one number changes while it is read.
struct Changing {
    machine: Arc<dyn GuestMem>,
    at: Gpa,
    /// What whoever reads it finds, one after the other; the last one stays.
    values: Mutex<VecDeque<u64>>,
}

impl GuestMem for Changing {
    fn regions(&self) -> &[Region] {
        self.machine.regions()
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        if at == self.at && buf.len() <= 8 {
            let mut values = self.values.lock().unwrap();
            let value = if values.len() > 1 { values.pop_front() } else { values.front().copied() };
            let bytes = value.unwrap().to_le_bytes();
            let len = buf.len();
            buf.copy_from_slice(&bytes[..len]);
            return Ok(());
        }
        self.machine.read(at, buf)
    }
}

/// What is read where a number is one of these after the other.
fn changing(
    harm: impl Fn(&mut Machine),
    place: impl Fn(&Machine) -> Kva,
    values: impl Fn(&Machine) -> Vec<u64>,
) -> Reading {
    let made = || {
        let mut machine = Machine::monitored(true);
        harm(&mut machine);
        machine
    };
    let machine = made().guest.mem();
    let at = Kernel::open(machine.clone()).unwrap().translate(place(&made())).unwrap();
    let values = Mutex::new(values(&made()).into());
    Kernel::open(Arc::new(Changing { machine, at, values })).unwrap().monitor().unwrap()
}

#[test]
fn a_machine_that_changes_while_it_is_read_is_not_taken_for_a_damaged_one() {
    let nr = |m: &Machine| m.user_dsq.offset(at::NR);
    // Tasks come and go: the last count is taken, whatever the list was.
    type Harm = fn(&mut Machine);
    let harms: [(Harm, u32); 2] =
        [(|_| {}, 0), (|m| m.guest.write_u64(m.tasks[&42].offset(at::DSQ_NODE), 0x1000), 1)];
    for (harm, given_up) in harms {
        let reading = changing(harm, nr, |_| vec![2, 5]);
        assert_eq!((reading.given_up, reading.doubted), (given_up, 0), "{reading:?}");
        assert!(reading.queues.contains(&("7".to_owned(), 5)));
    }
    // The queue has become another's memory.
    let id = |m: &Machine| m.user_dsq.offset(32);
    let reading = changing(|_| {}, id, |_| vec![7, 9]);
    assert_eq!((reading.given_up, reading.doubted, reading.queues.len()), (1, 0, 5));
    // The scheduler has gone: nothing that was read of it is told.
    let root = |m: &Machine| Kva(m.guest.address("scx_root"));
    let reading = changing(|_| {}, root, |m| vec![m.sched.0, 0]);
    assert_eq!((reading.sched, reading.queues_missing, reading.given_up), (None, true, 1));
    assert_eq!(reading.queues, [("local:0".to_owned(), 1), ("local:1".to_owned(), 0)]);
    // The CPU has gone on to another task: the name may be anybody's.
    let curr = |m: &Machine| m.rqs[0].offset(8);
    let reading = changing(|_| {}, curr, |m| vec![m.tasks[&50].0, m.tasks[&40].0]);
    let cpu = &reading.cpus[0];
    assert_eq!((cpu.task.clone(), cpu.idle, reading.doubted), (None, false, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Wherever a guest writes whatever it likes, a reading ends, is small, and says only what can be.
    #[test]
    fn no_guest_makes_a_reading_panic_hang_or_absurd(
        words in writes()
    ) {
        let mut machine = Machine::monitored(true);
        write_anything(&mut machine, words);
        let reading = read(machine);
        prop_assert!(reading.queues.len() <= 64 && reading.doubts.len() <= 8);
        prop_assert!(reading.cpus.iter().all(|cpu| cpu.nr_running <= 4 << 20));
        prop_assert!(reading.queues.iter().all(|(_, depth)| *depth <= 4 << 20));
    }
}
