//! What a worker process does: it takes on its name, nice value and CPUs, says that it is ready,
//! waits until all that start together are and have their policy, and works until it is killed.

use std::ffi::CString;
use std::hint::black_box;
use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use cryoscope::wire::{Work, WorkKind};
use rustix::io::Errno;
use rustix::thread::{ClockId, CpuSet, Timespec, clock_nanosleep_absolute};

use crate::ledger::{Page, now};
use crate::sys;

/// What a worker says on its report pipe when it is ready.
pub(crate) const READY: &[u8] = b"ready";
/// Steps of [`compute`] in a unit of the workers that rest: some ten microseconds.
const A_LITTLE: u32 = 5_000;
/// Steps of [`compute`] in a unit of those that do not: some thirty microseconds, beside which it
/// does not count that a clock is read.
const A_LOT: u32 = 1 << 14;
/// Sleep of `sleep` workers when none is asked for.
const DEFAULT_PERIOD: Duration = Duration::from_millis(1);

/// What a worker is told of its place among those that were started with it.
pub(crate) struct Place<'a> {
    /// Whether it makes the first move of a `pipe` pair.
    pub(crate) leads: bool,
    /// Where it writes down what it does,
    pub(crate) page: &'a Page,
    /// and where the other one of a pair does.
    pub(crate) partner: &'a Page,
}

/// The name of a kind, which is also the worker's `comm`.
pub(crate) fn name(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Spin => "spin",
        WorkKind::Yield => "yield",
        WorkKind::Sleep => "sleep",
        WorkKind::Pipe => "pipe",
    }
}

/// The whole life of a worker.
pub(crate) fn main(work: &Work, place: &Place<'_>) -> i32 {
    let report = sys::take_report();
    if let Err(why) = become_what_was_asked(work) {
        let _ = rustix::io::write(&report, why.as_bytes());
        return 1;
    }
    if rustix::io::write(&report, READY).is_err() {
        return 1;
    }
    drop(report);
    sys::wait_for_go();
    match work.kind {
        WorkKind::Spin => compute_with(place.page, A_LOT, || {}),
        WorkKind::Yield => compute_with(place.page, A_LITTLE, rustix::thread::sched_yield),
        WorkKind::Sleep => {
            sleep(place.page, work.period_us.map_or(DEFAULT_PERIOD, Duration::from_micros))
        }
        WorkKind::Pipe => pipe(place),
    }
}

fn become_what_was_asked(work: &Work) -> Result<(), String> {
    let comm = CString::new(name(work.kind)).expect("names hold no NUL");
    rustix::thread::set_name(&comm).map_err(|e| format!("cannot name itself: {e}"))?;
    if let Some(nice) = work.nice {
        rustix::process::setpriority_process(None, nice)
            .map_err(|e| format!("nice {nice}: {}", sys::reason(&e.into())))?;
    }
    if let Some(cpus) = &work.affinity {
        bind(cpus).map_err(|e| {
            let hint = if e.raw_os_error() == Some(libc::EINVAL) {
                " (none of them is among the CPUs of its group and of the machine)"
            } else {
                ""
            };
            format!("affinity to CPUs {cpus:?}: {}{hint}", sys::reason(&e))
        })?;
    }
    Ok(())
}

fn bind(cpus: &[u32]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        let cpu = *cpu as usize;
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        set.set(cpu);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Steps of a generator that the compiler cannot shorten.
fn compute(mut state: u64, steps: u32) -> u64 {
    for _ in 0..steps {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state = black_box(state);
    }
    state
}

/// Computes for ever, and does something else after each unit.
fn compute_with(page: &Page, steps: u32, after: impl Fn()) -> ! {
    let mut state = 1;
    loop {
        state = compute(state, steps);
        page.step(now());
        after();
    }
}

/// Sleeps to an instant, so that what it takes to get there is no part of the delay.
fn sleep(page: &Page, period: Duration) -> ! {
    // The kernel would add 50 us to each sleep, to wake up together with others.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    let mut state = 1;
    loop {
        let until = now().saturating_add(period).min(i64::MAX as u64);
        page.can_run_from(until);
        let at = Timespec {
            tv_sec: (until / 1_000_000_000) as i64,
            tv_nsec: (until % 1_000_000_000) as i64,
        };
        while clock_nanosleep_absolute(ClockId::Monotonic, &at) == Err(Errno::INTR) {}
        page.woke(until, now());
        state = compute(state, A_LITTLE);
        page.step(now());
    }
}

/// Hands the instant at which it hands it to and fro; ends when the partner does.
fn pipe(place: &Place<'_>) -> i32 {
    let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let hand_over = || {
        place.page.waits();
        let at = now();
        place.partner.can_run_from(at);
        rustix::io::write(output, &at.to_le_bytes()).is_ok()
    };
    if place.leads {
        if !hand_over() {
            return 1;
        }
    } else {
        place.page.waits();
    }
    let mut bytes = [0; 8];
    loop {
        match rustix::io::read(input, &mut bytes) {
            Ok(8) => {}
            Err(Errno::INTR) => continue,
            _ => return 0,
        }
        place.page.woke(u64::from_le_bytes(bytes), now());
        place.page.step(now());
        if !hand_over() {
            return 0;
        }
    }
}
