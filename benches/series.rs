//! Series of samples, measured against references in the same run:
//!
//! - 200 fields over 1,000 samples projected and judged by every pattern, over the same projection by
//!   the ordinary accessors, sample by sample;
//! - a projection by a script's closure over the native one of the same field.
//!
//! `make bench` runs it. It needs no machine: the samples are made up.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryoscope::btf::Btf;
use cryoscope::series::{Bound, Judgement, Sample, SampleSeries, SeriesField};
use cryoscope::snapshot::{CapturedMap, Contents, MapAttrs, Meta, Scalar, Snapshot, Target};

const FIELDS: usize = 200;
const SAMPLES: usize = 1000;
const ROUNDS: usize = 7;
/// Projections of one field that a script makes.
const TIMES: usize = 20;

/// The middle of `ROUNDS` times, in milliseconds.
fn timed(mut what: impl FnMut()) -> f64 {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            what();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2].as_secs_f64() * 1e3
}

fn name(field: usize) -> String {
    format!("counter_{field:03}")
}

/// The types of an object with so many counters of 64 bits in its `.bss`.
fn types() -> Arc<Btf> {
    let mut strings = vec![0u8];
    let mut string = |text: &str| {
        let at = strings.len() as u32;
        strings.extend(text.bytes().chain([0]));
        at
    };
    let mut types = Vec::new();
    let mut put = |numbers: &[u32]| types.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    // An integer, a variable of it for each counter, and the section.
    put(&[string("unsigned long"), 1 << 24, 8, 64]);
    for field in 0..FIELDS {
        put(&[string(&name(field)), 14 << 24, 1, 1]);
    }
    put(&[string(".bss"), 15 << 24 | FIELDS as u32, 8 * FIELDS as u32]);
    for field in 0..FIELDS as u32 {
        put(&[2 + field, 8 * field, 8]);
    }
    let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
    let mut raw = vec![0x9f, 0xeb, 1, 0];
    for number in [24, 0, types_len, types_len, strings_len] {
        raw.extend(number.to_le_bytes());
    }
    raw.extend(types);
    raw.extend(strings);
    Btf::parse(&raw).expect("the types can be read")
}

/// The section's one row.
struct Section(Vec<u8>);

impl Contents for Section {
    fn rows(&self) -> usize {
        1
    }
    fn key(&self, _: usize) -> Option<&[u8]> {
        None
    }
    fn value(&self, row: usize) -> Option<&[u8]> {
        (row == 0).then_some(&self.0)
    }
    fn cpus(&self) -> Option<usize> {
        None
    }
    fn cpu_value(&self, _: usize, _: usize) -> Option<&[u8]> {
        None
    }
    fn torn(&self) -> &[String] {
        &[]
    }
    fn torn_row(&self, _: usize) -> &[String] {
        &[]
    }
    fn incomplete(&self) -> Option<&str> {
        None
    }
}

fn snapshot(btf: &Arc<Btf>, sample: usize) -> Arc<Snapshot> {
    let values = (0..FIELDS).flat_map(|field| ((sample * (field + 1)) as u64).to_le_bytes());
    let section = Section(values.collect());
    let attrs = MapAttrs {
        id: 1,
        kva: 0xffff_8880_0000_1000,
        name: "made.bss".to_owned(),
        section: Some(".bss".to_owned()),
        kind: "array".to_owned(),
        key_size: 4,
        value_size: 8 * FIELDS as u32,
        max_entries: 1,
        btf: Some(btf.clone()),
        value_type: FIELDS as u32 + 2,
        ..MapAttrs::default()
    };
    let map = CapturedMap::new(attrs, Box::new(move || Box::new(section)));
    let phase = Some(if sample < SAMPLES / 2 { "narrow" } else { "wide" }.to_owned());
    let meta = Meta { tag: format!("periodic_{sample:03}"), phase, ..Meta::default() };
    Snapshot::new(meta.at(Duration::from_millis(10 * sample as u64)), vec![map], Vec::new())
}

/// New samples, so that none was looked at before.
fn series() -> SampleSeries {
    let btf = types();
    SampleSeries::new((0..SAMPLES).map(|i| Sample::held(snapshot(&btf, i))).collect())
}

fn targets() -> Vec<(String, Target)> {
    (0..FIELDS).map(|field| (name(field), Target::Global(name(field)))).collect()
}

/// Every pattern on a field.
fn judged(field: &SeriesField, other: &SeriesField) -> Vec<Judgement> {
    let time = Duration::from_secs(5);
    let bound = Bound::Between(Scalar::Int(0), Scalar::Int(i64::MAX));
    vec![
        field.nondecreasing(),
        field.strictly_increasing(),
        field.rate_within(0.0, 1e9).expect("bounds"),
        field.steady_within(time, 0.5).expect("a fraction"),
        field.converges_to(500.0, 100.0, time).expect("a target"),
        field.always_true(),
        field.each(&bound).expect("a bound"),
        field.ratio_within(other, 0.0, 1e9).expect("the same samples"),
    ]
}

fn projections() {
    let mut fresh: Vec<SampleSeries> = (0..ROUNDS).map(|_| series()).collect();
    let mut fields = Vec::new();
    let project = timed(|| fields = fresh.pop().expect("one for each round").targets(targets()));
    let last = fields[FIELDS - 1].last().expect("a value");
    assert_eq!(last, Scalar::Int(((SAMPLES - 1) * FIELDS) as i64));
    let patterns = timed(|| {
        for (i, field) in fields.iter().enumerate() {
            black_box(judged(field, &fields[(i + 1) % FIELDS]));
        }
    });
    let whole = project + patterns;
    let one = series();
    let single = timed(|| drop(black_box(one.target("x", Target::Global(name(7))))));
    let plain = timed(|| {
        for field in 0..FIELDS {
            let name = name(field);
            let read = |s: &Arc<Snapshot>| s.global(&name).and_then(|field| field.scalar());
            black_box(one.project(&name, read));
        }
    });
    println!("project     {project:8.1} ms for {FIELDS} fields over {SAMPLES} samples");
    println!("patterns    {patterns:8.1} ms for all 8 patterns on each of them");
    println!("both        {whole:8.1} ms; aim: under 250");
    println!("accessors   {plain:8.1} ms for the same values, one by one");
    println!("ratio       {:8.2}    accessors over project", plain / project);
    println!("one field   {:8.3} ms", single);
}

/// Runs a script that has the series in memory and projects `what` so often; seconds.
fn script(dir: &Path, what: &str) -> f64 {
    let text = format!(
        "let s = open({:?}); let all = []; for snap in s {{ all.push(snap); }}\n\
         for i in range(0, {TIMES}) {{ {what} }}\nexpect(all.len).eq({SAMPLES});",
        dir.join("series.cryo").display().to_string()
    );
    let path = dir.join("bench.rhai");
    fs::write(&path, text).expect("a script");
    let start = Instant::now();
    let ran = Command::new(env!("CARGO_BIN_EXE_cryoscope")).arg("run").arg(&path).output();
    let ran = ran.expect("cryoscope can be run");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    start.elapsed().as_secs_f64() * 1e3
}

fn closures() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("series.cryo");
    let series = series();
    let save = timed(|| series.save(&path).expect("it can be saved"));
    let len = fs::metadata(&path).expect("a file").len();
    let open = timed(|| {
        let opened = SampleSeries::open(&path).expect("it can be opened");
        black_box(opened.target("x", Target::Global(name(7))).last().expect("a value"));
    });
    println!(
        "save        {save:8.1} ms for {SAMPLES} samples, {} bytes each",
        len / SAMPLES as u64
    );
    println!("open        {open:8.1} ms, and one field of all");
    let least = |what: &str| (0..5).map(|_| script(dir.path(), what)).fold(f64::MAX, f64::min);
    let nothing = least("");
    let native = least("for k in range(0, 50) { s.bpf(\"counter_007\"); }") - nothing;
    let closure = least("s.bpf(\"x\", |snap| snap.global(\"counter_007\"));") - nothing;
    let (native, closure) = (native / (50 * TIMES) as f64, closure / TIMES as f64);
    println!("in a script {native:8.3} ms to project a field natively");
    println!("closure     {closure:8.3} ms by a closure");
    println!("ratio       {:8.1}    closure over native; aim: at most 30", closure / native);
}

fn main() {
    projections();
    closures();
}
