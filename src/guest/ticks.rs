//! `ticks SECONDS`: what the clock looks like to programs, on every CPU at once.
//!
//! A thread bound to each CPU reads CLOCK_MONOTONIC as fast as it can. Told are the first and the
//! last reading, how many there were, how many were behind one that another CPU had made before,
//! and the longest times between two of one thread: a machine that was stopped and does not hide
//! it shows there.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::CpuSet;

use crate::ledger::now;
use crate::sys::reason;

/// Of each CPU's longest gaps this many are told.
const GAPS: usize = 4;

/// What one CPU saw, in nanoseconds.
#[derive(Default)]
struct Seen {
    first: u64,
    last: u64,
    readings: u64,
    backwards: u64,
    /// How far behind the one that was furthest.
    behind: u64,
    /// How long, and when they began; the longest first.
    gaps: Vec<(u64, u64)>,
}

pub(crate) fn main(args: &[String]) -> bool {
    let seconds = args.first().and_then(|a| a.parse().ok());
    let Some(time) = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) else {
        eprintln!("ticks: for how many seconds?");
        return false;
    };
    let cpus = match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>(),
        Err(error) => {
            eprintln!("ticks: {}", reason(&error.into()));
            return false;
        }
    };
    let latest = &AtomicU64::new(0);
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let seen: Vec<(usize, Seen)> = std::thread::scope(|scope| {
        let watch = |cpu| (cpu, scope.spawn(move || watch(cpu, time, latest)));
        let threads: Vec<_> = cpus.iter().copied().map(watch).collect();
        threads.into_iter().filter_map(|(cpu, t)| Some((cpu, t.join().ok()?))).collect()
    });
    seen.iter().all(|(cpu, seen)| tell(*cpu, seen).is_ok()) && seen.len() == cpus.len()
}

fn watch(cpu: usize, time: u64, latest: &AtomicU64) -> Seen {
    let mut set = CpuSet::new();
    set.set(cpu);
    let bound = rustix::thread::sched_setaffinity(None, &set);
    let first = now();
    let mut seen = Seen { first, last: first, ..Seen::default() };
    if bound.is_err() {
        return seen;
    }
    while seen.last.saturating_sub(first) < time || seen.readings == 0 {
        let elsewhere = latest.load(Ordering::SeqCst);
        let at = now();
        latest.fetch_max(at, Ordering::SeqCst);
        let behind = elsewhere.max(seen.last).saturating_sub(at);
        seen.backwards += u64::from(behind > 0);
        seen.behind = seen.behind.max(behind);
        let gap = (at.saturating_sub(seen.last), seen.last);
        if seen.gaps.len() < GAPS || seen.gaps.last().is_some_and(|least| gap > *least) {
            seen.gaps.push(gap);
            seen.gaps.sort_unstable_by(|a, b| b.cmp(a));
            seen.gaps.truncate(GAPS);
        }
        seen.last = seen.last.max(at);
        seen.readings += 1;
    }
    seen
}

/// One line for a CPU; times in microseconds.
fn tell(cpu: usize, seen: &Seen) -> io::Result<()> {
    let gaps: Vec<String> =
        seen.gaps.iter().map(|(long, at)| format!("{}@{}", long / 1000, at / 1000)).collect();
    writeln!(
        io::stdout(),
        "cpu={cpu} first={} last={} readings={} backwards={} behind_ns={} gaps={}",
        seen.first / 1000,
        seen.last / 1000,
        seen.readings,
        seen.backwards,
        seen.behind,
        gaps.join(",")
    )
}
