//! What a worker process does: it takes on its name, nice value and CPUs, says that it is ready,
//! waits until all that start together are and have their policy, and works until it is killed.

use std::ffi::CString;
use std::hint::black_box;
use std::io;
use std::time::Duration;

use cryoscope::wire::{Work, WorkKind};
use rustix::thread::CpuSet;

use crate::sys;

/// What a worker says on its report pipe when it is ready.
pub(crate) const READY: &[u8] = b"ready";
/// Steps of [`compute`] between two rests of the workers that rest: some ten microseconds.
const A_LITTLE: u32 = 5_000;
/// Sleep of `sleep` workers when none is asked for.
const DEFAULT_PERIOD: Duration = Duration::from_millis(1);

/// The name of a kind, which is also the worker's `comm`.
pub(crate) fn name(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Spin => "spin",
        WorkKind::Yield => "yield",
        WorkKind::Sleep => "sleep",
        WorkKind::Pipe => "pipe",
    }
}

/// The whole life of a worker; `leads` says whether it makes the first move of a `pipe` pair.
pub(crate) fn main(work: &Work, leads: bool) -> i32 {
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
        WorkKind::Spin => spin(),
        WorkKind::Yield => yielding(),
        WorkKind::Sleep => sleep(work.period_us.map_or(DEFAULT_PERIOD, Duration::from_micros)),
        WorkKind::Pipe => pipe(leads),
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

fn spin() -> ! {
    let mut state = 1;
    loop {
        state = compute(state, 1 << 20);
    }
}

fn yielding() -> ! {
    let mut state = 1;
    loop {
        state = compute(state, A_LITTLE);
        rustix::thread::sched_yield();
    }
}

fn sleep(period: Duration) -> ! {
    let mut state = 1;
    loop {
        std::thread::sleep(period);
        state = compute(state, A_LITTLE);
    }
}

/// Ends when the partner does.
fn pipe(leads: bool) -> i32 {
    let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut byte = [0];
    if leads && rustix::io::write(output, &byte).is_err() {
        return 1;
    }
    loop {
        match rustix::io::read(input, &mut byte) {
            Ok(1) => {}
            Err(rustix::io::Errno::INTR) => continue,
            _ => return 0,
        }
        if rustix::io::write(output, &byte).is_err() {
            return 0;
        }
    }
}
