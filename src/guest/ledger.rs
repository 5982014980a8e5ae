//! Where workers write down what they do, and the agent reads it: pages of counters that both
//! share. A worker is the only writer of its page, but for the instant from which it can run, which
//! whoever wakes it up sets. Nothing is ever waited for, so a worker that gets no CPU keeps nobody
//! from reading what it did.

use std::fs;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use cryoscope::wire::{BUCKETS, Bucket, MAX_STEP_CPUS, WorkKind, WorkerReport, bucket_of};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::thread::sched_getcpu;
use rustix::time::{ClockId, clock_gettime};

/// That a worker sleeps, and for how long is not known.
const ASLEEP: u64 = u64::MAX;

/// What one worker does. All instants are of CLOCK_MONOTONIC, in nanoseconds.
pub(crate) struct Page {
    /// When it was let go; 0 until then.
    began: AtomicU64,
    /// Since when it can run and has not ended a unit, or [`ASLEEP`].
    able_since: AtomicU64,
    longest: AtomicU64,
    longest_ended: AtomicU64,
    cpus: [AtomicU64; MAX_STEP_CPUS],
    gaps: [AtomicU32; BUCKETS],
    wakes: [AtomicU32; BUCKETS],
}

/// The pages of workers that were started together.
pub(crate) struct Pages {
    first: NonNull<Page>,
    count: usize,
}

impl Pages {
    /// All of them empty.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let size = count.max(1).saturating_mul(size_of::<Page>());
        // SAFETY: a new mapping, wherever the kernel puts it; nothing is there before.
        #[allow(unsafe_code)]
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        let first = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pages { first, count })
    }

    /// The page of the worker with this number.
    pub(crate) fn page(&self, index: usize) -> &Page {
        assert!(index < self.count, "one page for each worker");
        // SAFETY: the mapping holds `count` pages, is aligned to more than a page needs, began as
        // zeroes, which are valid atomics, and lives as long as `self`. Other processes change it
        // by atomic operations only.
        #[allow(unsafe_code)]
        unsafe {
            self.first.add(index).as_ref()
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let size = self.count.max(1) * size_of::<Page>();
        // SAFETY: the mapping of `new`, to which no reference outlives `self`.
        #[allow(unsafe_code)]
        let _ = unsafe { munmap(self.first.as_ptr().cast(), size) };
    }
}

/// The clock that programs measure time by, which the guest's pauses do not advance.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, rest) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

fn put(buckets: &[AtomicU32; BUCKETS], ns: u64) {
    let counter = &buckets[bucket_of(ns)];
    counter.store(counter.load(Relaxed).saturating_add(1), Relaxed);
}

impl Page {
    /// It is let go: from now on it can run.
    pub(crate) fn begin(&self, now: u64) {
        self.began.store(now, Relaxed);
        self.able_since.store(now, Relaxed);
    }

    /// It is woken up at this instant, or will be.
    pub(crate) fn can_run_from(&self, at: u64) {
        self.able_since.store(at, Relaxed);
    }

    /// It goes to sleep until somebody wakes it up.
    pub(crate) fn waits(&self) {
        self.able_since.store(ASLEEP, Relaxed);
    }

    /// It runs, and was to from this instant on.
    pub(crate) fn woke(&self, able_since: u64, now: u64) {
        self.able_since.store(able_since, Relaxed);
        put(&self.wakes, now.saturating_sub(able_since));
    }

    /// It has ended a unit of its work.
    pub(crate) fn step(&self, now: u64) {
        let able_since = self.able_since.load(Relaxed);
        if able_since != ASLEEP {
            let gap = now.saturating_sub(able_since);
            put(&self.gaps, gap);
            if gap > self.longest.load(Relaxed) {
                self.longest.store(gap, Relaxed);
                self.longest_ended.store(now, Relaxed);
            }
        }
        add_one(&self.cpus[sched_getcpu().min(MAX_STEP_CPUS - 1)]);
        self.able_since.store(now, Relaxed);
    }
}

/// What a worker did so far.
pub(crate) fn report(pid: u32, kind: WorkKind, page: &Page) -> WorkerReport {
    let now = now();
    let began = match page.began.load(Relaxed) {
        0 => now,
        began => began,
    };
    let since_began = |at: u64| at.saturating_sub(began) / 1_000;
    let able_since = page.able_since.load(Relaxed);
    let (run_us, queued_us) = schedstat(pid).unzip();
    let cpus = (0..).zip(&page.cpus).map(|(cpu, units)| (cpu, units.load(Relaxed)));
    let cpus: Vec<(u32, u64)> = cpus.filter(|(_, units)| *units > 0).collect();
    WorkerReport {
        pid,
        kind,
        ended: false,
        working_us: since_began(now),
        // Not counted twice, since it goes on working meanwhile.
        units: cpus.iter().fold(0, |sum: u64, (_, units)| sum.saturating_add(*units)),
        gap_us: page.longest.load(Relaxed) / 1_000,
        gap_at_us: match page.longest_ended.load(Relaxed) {
            0 => 0,
            at => since_began(at),
        },
        waiting_us: match able_since {
            ASLEEP | 0 => 0,
            at => now.saturating_sub(at) / 1_000,
        },
        gaps: filled(&page.gaps),
        wakes: filled(&page.wakes),
        cpus,
        run_us,
        queued_us,
        migrations: migrations(pid),
    }
}

fn filled(buckets: &[AtomicU32; BUCKETS]) -> Vec<Bucket> {
    let counts = (0..).zip(buckets).map(|(at, count)| (at, u64::from(count.load(Relaxed))));
    counts.filter(|(_, count)| *count > 0).collect()
}

/// Microseconds that it ran, and that it was queued (kernel: `proc_pid_schedstat`).
fn schedstat(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().ok());
    Some((numbers.next()?? / 1_000, numbers.next()?? / 1_000))
}

/// How often the kernel moved it (kernel: `proc_sched_show_task`).
fn migrations(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/sched")).ok()?;
    let line = text.lines().find(|line| line.starts_with("se.nr_migrations"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(page: &Page) -> WorkerReport {
        report(std::process::id(), WorkKind::Sleep, page)
    }

    #[test]
    fn what_is_written_down_is_reported() {
        let pages = Pages::new(3).unwrap();
        assert_eq!((of(pages.page(2)).units, of(pages.page(2)).waiting_us), (0, 0));
        let (page, start) = (pages.page(1), now());
        page.begin(start);
        page.step(start + 5_000_000);
        page.can_run_from(start + 8_000_000);
        page.woke(start + 8_000_000, start + 8_300_000);
        page.step(start + 9_000_000);
        page.waits();
        page.step(start + 90_000_000);
        let report = of(page);
        assert_eq!((report.units, report.gap_us, report.gap_at_us), (3, 5_000, 5_000));
        let bucket = |ns| (bucket_of(ns) as u16, 1);
        assert_eq!(report.gaps, [bucket(1_000_000), bucket(5_000_000)]);
        assert_eq!(report.wakes, [bucket(300_000)]);
        assert_eq!(report.cpus.iter().map(|(_, units)| units).sum::<u64>(), 3);
        assert!(report.is_whole(), "{report:?}");
        assert_eq!(of(pages.page(0)).units, 0, "each has its own");
    }

    #[test]
    fn a_worker_that_gets_no_cpu_is_seen_to_wait() {
        let pages = Pages::new(1).unwrap();
        let page = pages.page(0);
        page.begin(now() - 70_000_000);
        assert!(of(page).waiting_us >= 70_000);
        page.waits();
        assert_eq!(of(page).waiting_us, 0);
        page.can_run_from(now() + 60_000_000_000);
        assert_eq!(of(page).waiting_us, 0, "its timer has not come");
    }

    #[test]
    fn the_kernel_says_how_long_this_process_ran() {
        let report = of(Pages::new(1).unwrap().page(0));
        assert!(report.run_us.is_some() && report.queued_us.is_some(), "{report:?}");
        assert_eq!(report.migrations.is_some(), fs::exists("/proc/self/sched").unwrap());
    }
}
