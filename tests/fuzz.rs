//! The targets of `fuzz/`, on inputs from a generator: the same ones in every run, so that what
//! fails can be repeated. `make fuzz` searches further, led by coverage.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod fuzz;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fuzz::cap::{CAP, Counting, RUNNING, take_peak};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const THREADS: usize = RUNNING.len();
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When what is running began, in milliseconds; zero when nothing is.
static BEGAN: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

/// How long one input may take, in a build without optimizations on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// The bytes of input `number` of a target: splitmix64, seeded with both.
fn input(target: usize, number: u64) -> Vec<u8> {
    let mut state = number ^ (target as u64) << 56;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let len = 6 + next() % 90;
    (0..len).map(|_| next() as u8).collect()
}

/// Gives inputs to a target, every other one of them: there are two threads.
fn drive(name: &'static str, count: u64, nth: usize) {
    let target = fuzz::TARGETS.iter().position(|t| *t == name).expect("a target");
    let only = std::env::var("CRYOSCOPE_FUZZ_INPUT").ok();
    let only = only.as_deref().and_then(|only| only.split_once(':'));
    let (start, mut slowest) = (Instant::now(), (Duration::ZERO, 0));
    for number in (nth as u64..count).step_by(THREADS) {
        if only.is_some_and(|(t, n)| t != name || n != number.to_string()) {
            continue;
        }
        RUNNING[nth].store((target as u64) << 32 | number, Relaxed);
        BEGAN[nth].store(EPOCH.elapsed().as_millis() as u64, Relaxed);
        let from = Instant::now();
        let bytes = input(target, number);
        let result = std::panic::catch_unwind(|| fuzz::run(name, &bytes));
        slowest = slowest.max((from.elapsed(), number));
        if let Err(panic) = result {
            BEGAN.iter().for_each(|began| began.store(0, Relaxed));
            eprintln!("again: CRYOSCOPE_FUZZ_INPUT={name}:{number} cargo test --test fuzz");
            std::panic::resume_unwind(panic);
        }
    }
    let (took, (most, number)) = (start.elapsed().as_secs_f64(), slowest);
    println!("{name}: half of {count} inputs in {took:.1} s, the slowest {number} in {most:.1?}");
}

/// Ends the process when an input takes too long, naming it.
fn watch() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = EPOCH.elapsed();
            for (running, began) in RUNNING.iter().zip(&BEGAN) {
                let took = now.saturating_sub(Duration::from_millis(began.load(Relaxed)));
                if began.load(Relaxed) > 0 && took > LIMIT {
                    eprintln!("{took:.1?} have not been enough for {}", fuzz::cap::named(running));
                    std::process::abort();
                }
            }
        }
    });
}

#[test]
fn no_input_makes_us_panic_hang_or_hold_too_much() {
    fuzz::check_seeds();
    LazyLock::force(&EPOCH);
    watch();
    let half = |nth: usize| {
        drive("ram", 5000, nth);
        drive("capsule", 5000, nth);
        for small in ["btf", "wire", "kernel", "path", "devices"] {
            drive(small, 1000, nth);
        }
        BEGAN[nth].store(0, Relaxed);
    };
    let other = std::thread::spawn(move || half(1));
    half(0);
    other.join().expect("no input fails");
    fuzz::sweep();
    println!("{} MiB of {} were held at most", take_peak() >> 20, CAP >> 20);
}
