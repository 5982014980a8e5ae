//! Parsers of single things: types, frames, kernel images, paths.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use cryoscope::btf::{Btf, Want};
use cryoscope::kernel::progress::Silent;
use cryoscope::kernel::{self, CacheDir};
use cryoscope::snapshot::Snapshot;
use cryoscope::wire::{Answer, Decoder, FromGuest, Hello, Hex, Refusal, RefusalKind, Request};

use super::program::Program;
use super::{scratch, walk};

type Seeds = OnceLock<Vec<Vec<u8>>>;

fn seeds(kind: &str) -> Vec<Vec<u8>> {
    super::seeds(kind).into_iter().map(|(_, bytes)| bytes).collect()
}

fn btfs() -> &'static [Vec<u8>] {
    static ALL: Seeds = OnceLock::new();
    ALL.get_or_init(|| seeds("btf"))
}

/// BTF: parsed, every type spelled and taken apart, by itself and as the base of itself.
pub(crate) fn btf(data: &[u8]) {
    let raw = Program::new(data).bytes_from(btfs());
    types(&raw);
}

fn types(raw: &[u8]) -> u32 {
    let Ok(btf) = Btf::parse(raw) else { return 0 };
    let look = |btf: &Arc<Btf>| {
        for id in 0..btf.len().min(300) {
            let _ = (btf.kind(id), btf.name(id), btf.size_of(id), btf.type_name(id));
            let _ = (btf.resolve(id), btf.shape(id), btf.decl_tag(id), btf.is_attribute(id));
            let _ = btf.find_c(&btf.type_name(id));
            for path in ["", "a", "map.id", "data[3]", "name[99999999999]", "[", "a..b"] {
                let _ = btf.field(id, path).map_err(|e| e.to_string());
            }
        }
        let _ = (btf.datasecs(), btf.names().count(), btf.find("bpf_map", Want::Struct));
    };
    look(&btf);
    if let Ok(split) = Btf::parse_split(raw, &btf) {
        look(&split);
    }
    btf.len()
}

/// A frame of that payload.
fn frame(payload: &[u8], seq: u32) -> Vec<u8> {
    let (len, seq) = ((payload.len() as u32).to_le_bytes(), seq.to_le_bytes());
    let crc = crc32fast::hash(&[&len[..], &seq, payload].concat());
    [&b"CRYO"[..], &len, &crc.to_le_bytes(), &seq, payload].concat()
}

/// Payloads of several kinds of messages.
fn said() -> &'static [Vec<u8>] {
    static ALL: Seeds = OnceLock::new();
    ALL.get_or_init(|| {
        let reply = |result| FromGuest::Reply { id: 7, result };
        let (key, value) = (Hex(vec![1, 0]), Hex(vec![0xff; 8]));
        let (kind, message) = (RefusalKind::NotFound, "no such group".to_owned());
        let refusal = Refusal { kind, message, log: String::new() };
        let release = "7.2.13".to_owned();
        let messages = [
            FromGuest::Hello(Hello { version: 1, release, cpus: 2, uptime_us: 1_000_000 }),
            reply(Ok(Answer::Done)),
            reply(Ok(Answer::Pids(vec![1, 2, 300]))),
            reply(Ok(Answer::File { bytes: b"0-3\n".to_vec(), truncated: true })),
            reply(Ok(Answer::Files(vec![("cpu.stat".to_owned(), "usage_usec 7".to_owned())]))),
            reply(Ok(Answer::MapPage { entries: vec![(key, value)], next: 1, more: false })),
            reply(Err(refusal)),
        ];
        messages.iter().map(|m| serde_json::to_vec(m).expect("it is JSON")).collect()
    })
}

/// Frames, in pieces, with payloads that were changed before they were framed or after that.
pub(crate) fn wire(data: &[u8]) {
    let mut program = Program::new(data);
    let mut stream = Vec::new();
    for seq in 0..u32::from(program.byte() % 5) {
        let mut payload = program.pick(said()).clone();
        for _ in 0..program.byte() % 4 {
            program.harm(&mut payload);
        }
        stream.extend(frame(&payload, seq));
    }
    let step = 1 + program.below(64);
    while !program.is_over() {
        program.harm(&mut stream);
    }
    decoded::<FromGuest>(&stream, step);
    decoded::<Request>(&stream, step);
}

fn decoded<T: serde::de::DeserializeOwned>(stream: &[u8], step: usize) -> usize {
    let mut decoder = Decoder::default();
    let mut all = 0;
    for piece in stream.chunks(step) {
        decoder.feed(piece);
        while let Ok(Some(_)) = decoder.message::<T>() {
            all += 1;
        }
    }
    all
}

fn kernels() -> &'static [Vec<u8>] {
    static ALL: Seeds = OnceLock::new();
    ALL.get_or_init(|| seeds("kernel"))
}

/// Kernel images, packed and unpacked.
pub(crate) fn kernel(data: &[u8]) {
    let bytes = Program::new(data).bytes_from(kernels());
    image(&bytes);
}

fn image(bytes: &[u8]) -> bool {
    let path = scratch("kernel");
    std::fs::write(&path, bytes).expect("a scratch file can be written");
    let cache = scratch("kernel-cache");
    let found = kernel::resolve(&spelled(&path), &CacheDir::at(&cache), &Silent);
    let read = match &found {
        Ok(kernel) => {
            let _ = (kernel.has_sched_ext(), kernel.require_sched_ext().map_err(|e| e.to_string()));
            kernel.btf_bytes().is_ok_and(|raw| types(&raw) > 1)
        }
        Err(e) => {
            let _ = e.to_string();
            false
        }
    };
    let _ = std::fs::remove_dir_all(&cache);
    read
}

fn spelled(path: &Path) -> String {
    path.display().to_string()
}

/// A snapshot that paths are tried on.
fn sample() -> &'static [Arc<Snapshot>] {
    static ALL: OnceLock<Vec<Arc<Snapshot>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let files = super::seeds("capsule").into_iter();
        files
            .map(|(_, bytes)| {
                let path = scratch("sample.cryo");
                std::fs::write(&path, bytes).expect("a scratch file can be written");
                Snapshot::open(&path).expect("a seed opens")
            })
            .collect()
    })
}

const PIECES: [&str; 24] = [
    ".",
    "[",
    "]",
    "[0]",
    "[1]",
    "[-1]",
    "[18446744073709551616]",
    "->",
    "*",
    "&",
    "",
    " ",
    "group_leader",
    "comm",
    "scx",
    "dsq",
    "pid",
    "nr_enqueued",
    "stats",
    "name",
    "value",
    "\0",
    "\u{1f980}",
    "0x10",
];

/// Paths of pieces that mean something, and of what is left of the input.
pub(crate) fn path(data: &[u8]) {
    let mut program = Program::new(data);
    let snapshot = program.pick(sample());
    let mut path = String::new();
    for _ in 0..program.byte() % 24 {
        let piece: &&str = program.pick(&PIECES);
        path.push_str(piece);
    }
    path.push_str(&String::from_utf8_lossy(program.rest()));
    ask(snapshot, &path);
}

fn ask(snapshot: &Arc<Snapshot>, path: &str) {
    let _ = snapshot.global(path).map(|f| walk::field(&f, 2)).map_err(|e| e.to_string());
    let _ = snapshot.globals(path).map_err(|e| e.to_string());
    let _ = snapshot.map(path).map_err(|e| e.to_string());
    let _ = snapshot.dsq(path).map(|d| d.headline()).map_err(|e| e.to_string());
    let _ = snapshot.kernel("jiffies_64", Some(path)).map_err(|e| e.to_string());
    for map in snapshot.maps().into_iter().flatten() {
        for entry in map.known_entries().take(2) {
            let _ = entry.get(path).map(|f| walk::field(&f, 2)).map_err(|e| e.to_string());
        }
    }
    for task in snapshot.tasks().into_iter().flatten().take(3) {
        let _ = task.get(path).map(|f| walk::field(&f, 2)).map_err(|e| e.to_string());
    }
}

/// Every seed can be read.
pub(crate) fn check_seeds() {
    assert!(!btfs().is_empty() && !kernels().is_empty(), "there are no seeds");
    for raw in btfs() {
        assert!(types(raw) > 3, "a seed of types has none");
    }
    for bytes in kernels() {
        assert!(image(bytes), "a seed of a kernel cannot be read");
    }
    let stream: Vec<u8> =
        (0u32..).zip(said()).flat_map(|(seq, payload)| frame(payload, seq)).collect();
    assert_eq!(decoded::<FromGuest>(&stream, 7), said().len(), "not all messages are understood");
    assert!(sample().len() > 1, "there are no snapshots to try paths on");
}
