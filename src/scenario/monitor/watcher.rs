//! What only the course of readings can tell: clocks and counters that run backwards or ahead, and
//! CPUs that are stuck.
//!
//! Pure: readings go in with their times, observations come out.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::snapshot::{CpuReading, Observation, Reading, SchedReading};

/// How many times as fast as the host's a guest's clock may run, and what it may be ahead besides:
/// an emulated kernel measures its frequency at boot, and on a busy host was seen to be wrong by a
/// factor of more than two, and to stay so.
const FASTER: u32 = 10;
const AHEAD: Duration = Duration::from_secs(2);
/// Context switches in a second that an idling CPU makes for the kernel's own threads: as many do not
/// show that it takes any of the tasks that wait.
const FEW: u32 = 100;

/// Looks at readings in their order.
#[derive(Debug, Default)]
pub struct Watcher {
    cpus: BTreeMap<u32, Before>,
    sched: Option<SchedReading>,
}

/// What was read of a CPU before.
#[derive(Debug)]
struct Before {
    at: Duration,
    clock: u64,
    nr_switches: u64,
    /// Since when it is stuck, if it is.
    since: Option<Duration>,
    /// Whether that is because it idles.
    idles: bool,
}

impl Watcher {
    /// Takes a reading: `elapsed` is its time on the workload clock, and the machine has been up for
    /// at most `up`. What cannot be true is taken out of it, and counted.
    pub fn observe(
        &mut self,
        mut reading: Reading,
        elapsed: Duration,
        up: Duration,
    ) -> Observation {
        let (mut stuck_us, mut doubts) = (Vec::new(), Vec::new());
        reading.cpus.retain(|read| match self.cpu(read, elapsed, up) {
            Ok(stuck) => {
                stuck_us.push(us(stuck));
                true
            }
            Err(why) => {
                doubts.push(format!("CPU {}: {why}", read.cpu));
                false
            }
        });
        reading.cpus_missing += doubts.len() as u32;
        if let Some(sched) = &mut reading.sched {
            doubts.extend(self.counters(sched));
        }
        doubts.into_iter().for_each(|why| reading.doubt(why));
        Observation { elapsed_us: us(elapsed), reading, stuck_us }
    }

    /// For how long a CPU has been stuck; why it cannot be believed.
    fn cpu(&mut self, read: &CpuReading, now: Duration, up: Duration) -> Result<Duration, String> {
        let most = up.saturating_mul(FASTER).saturating_add(AHEAD);
        if Duration::from_nanos(read.clock) > most {
            let clock = read.clock as f64 / 1e9;
            let up = up.as_secs_f64();
            return Err(format!("its clock says {clock:.1} s, after {up:.1} s at most"));
        }
        let waits = read.nr_running > u32::from(!read.idle);
        let before = self.cpus.get(&read.cpu);
        let backwards = before.and_then(|before| {
            let pairs = [
                ("clock", before.clock, read.clock),
                ("nr_switches", before.nr_switches, read.nr_switches),
            ];
            let back = pairs.into_iter().find(|(_, was, is)| is < was);
            back.map(|(what, was, is)| format!("its {what} ran back from {was} to {is}"))
        });
        let mut idles = read.idle;
        let since = match before {
            Some(before) if backwards.is_none() && before.nr_switches == read.nr_switches => {
                let stands = read.nr_running > 0 && before.clock == read.clock;
                let begun = if stands { before.at } else { now };
                (waits || stands).then(|| before.since.unwrap_or(begun))
            }
            Some(before) if backwards.is_none() && waits && before.idles => {
                let few = now.saturating_sub(before.at).as_secs_f64() * f64::from(FEW) + 2.0;
                let few = (read.nr_switches - before.nr_switches) as f64 <= few;
                idles |= few;
                before.since.filter(|_| few).or(Some(now))
            }
            _ => waits.then_some(now),
        };
        let (clock, nr_switches) = (read.clock, read.nr_switches);
        // Also when it ran back: what was read before may be what was wrong.
        self.cpus.insert(read.cpu, Before { at: now, clock, nr_switches, since, idles });
        match backwards {
            Some(why) => Err(why),
            None => Ok(since.map_or(Duration::ZERO, |since| now.saturating_sub(since))),
        }
    }

    /// Takes counters away that run backwards.
    fn counters(&mut self, read: &mut SchedReading) -> Option<String> {
        let before = self.sched.replace(read.clone()).filter(|before| same(before, read))?;
        let pairs = before.events.iter().flatten().zip(read.events.iter().flatten());
        let back = pairs.into_iter().find(|((_, was), (_, is))| is < was);
        let why =
            back.map(|((name, was), (_, is))| format!("{name} ran back from {was} to {is}"))?;
        read.events = None;
        Some(why)
    }
}

/// Whether two readings are of one scheduler.
pub(super) fn same(a: &SchedReading, b: &SchedReading) -> bool {
    (a.at, a.seq) == (b.at, b.seq)
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A CPU: tasks, whether it idles, its clock in ms, switches.
    fn read(nr_running: u32, idle: bool, clock: u64, nr_switches: u64) -> Reading {
        let clock = clock * 1_000_000;
        let (ext_running, task) = (None, None);
        let cpu = CpuReading { cpu: 0, nr_running, ext_running, clock, nr_switches, idle, task };
        Reading { cpus: vec![cpu], ..Reading::default() }
    }

    /// How long the CPU is stuck in each reading, 100 ms apart.
    fn stuck(course: &[(u32, bool, u64, u64)]) -> Vec<u64> {
        let mut watcher = Watcher::default();
        let times = (0..).map(|i| ms(100 * i));
        let seen = course.iter().zip(times).map(|((n, idle, clock, switches), at)| {
            let seen = watcher.observe(read(*n, *idle, *clock, *switches), at, at + ms(10_000));
            assert_eq!(seen.reading.doubted, 0, "{seen:?}");
            seen.stuck_us[0] / 1000
        });
        seen.collect()
    }

    #[test]
    fn a_cpu_is_stuck_while_tasks_wait_and_none_comes_or_time_stands() {
        // It spins through others' turns: its clock goes on.
        let spins = [
            (3, false, 1, 7),
            (3, false, 2, 7),
            (2, false, 3, 7),
            (2, false, 4, 8),
            (2, false, 5, 8),
        ];
        assert_eq!(stuck(&spins), [0, 100, 200, 0, 100]);
        // Idle, with a task that nobody dispatches.
        let idles =
            [(0, true, 1, 7), (1, true, 1, 7), (1, true, 2, 7), (1, true, 2, 7), (0, true, 2, 7)];
        assert_eq!(stuck(&idles), [0, 100, 200, 300, 0]);
        // The kernel's own threads have their turns meanwhile.
        let turns = [
            (1, true, 1, 7),
            (2, false, 2, 8),
            (1, true, 3, 9),
            (1, true, 4, 21),
            (1, true, 5, 99),
        ];
        assert_eq!(stuck(&turns), [0, 100, 200, 300, 0]);
        // One task that has the CPU for itself is not stuck, unless the tick is lost too.
        let alone = [(1, false, 1, 7), (1, false, 2, 7), (1, false, 3, 7)];
        assert_eq!(stuck(&alone), [0, 0, 0]);
        let hangs = [(1, false, 1, 7), (1, false, 1, 7), (1, false, 1, 7), (1, false, 2, 7)];
        assert_eq!(stuck(&hangs), [0, 100, 200, 0]);
        // What idles has a clock that stands.
        assert_eq!(stuck(&[(0, true, 1, 7), (0, true, 1, 7), (0, true, 1, 7)]), [0, 0, 0]);
        // It switches all the time.
        assert_eq!(stuck(&[(9, false, 1, 7), (9, false, 2, 8), (9, false, 3, 9)]), [0, 0, 0]);
    }

    #[test]
    fn clocks_that_run_back_or_ahead_are_not_believed() {
        let mut watcher = Watcher::default();
        let mut doubts = |clock, switches, at| {
            let seen = watcher.observe(read(1, false, clock, switches), ms(at), ms(1000 + at));
            assert_eq!(seen.reading.cpus_missing, seen.reading.doubted);
            assert_eq!(seen.reading.cpus.len(), seen.stuck_us.len());
            seen.reading.doubts.first().cloned().unwrap_or_default()
        };
        assert_eq!(doubts(900, 5, 0), "");
        assert_eq!(doubts(899, 6, 100), "CPU 0: its clock ran back from 900000000 to 899000000");
        assert_eq!(doubts(950, 4, 200), "CPU 0: its nr_switches ran back from 6 to 4");
        assert_eq!(doubts(1000, 8, 300), "");
        assert_eq!(doubts(90_000, 9, 400), "CPU 0: its clock says 90.0 s, after 1.4 s at most");
        // What was not believed is not held against what comes next.
        assert_eq!(doubts(1100, 9, 500), "");
    }

    #[test]
    fn counters_that_run_back_are_not_believed_unless_they_are_anothers() {
        let mut watcher = Watcher::default();
        let mut events = |at, n| {
            let events = Some(vec![("SCX_EV_X".to_owned(), n)]);
            let sched = Some(SchedReading { at, seq: Some(1), events });
            let seen = watcher.observe(Reading { sched, ..Reading::default() }, ms(0), ms(0));
            (seen.event("X").ok(), seen.reading.doubts)
        };
        assert_eq!(events(8, 5), (Some(5), vec![]));
        assert_eq!(events(8, 4), (None, vec!["SCX_EV_X ran back from 5 to 4".to_owned()]));
        assert_eq!(events(8, 4), (Some(4), vec![]));
        assert_eq!(events(16, 0), (Some(0), vec![]));
    }
}
