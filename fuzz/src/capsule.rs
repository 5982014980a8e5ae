//! Snapshot files that lie. A file's checksums would catch nearly every change, so what is changed
//! is what stands behind them: the header's text or its values, the bytes of a blob; then the
//! file is put together again with checksums that fit.
//!
//! ```text
//! magic, 8 bytes ┃ version ┃ length, length unpacked, CRC-32 of the header ┃ header ┃ blobs
//! ```

use std::sync::OnceLock;

use cryoscope::snapshot::Snapshot;
use serde_json::Value;

use super::program::Program;
use super::{scratch, walk};

/// Magic, version, and three numbers about the header.
const FIXED: usize = 24;

/// A file, taken apart.
#[derive(Clone)]
struct Capsule {
    name: String,
    whole: Vec<u8>,
    /// Magic and version.
    begin: Vec<u8>,
    header: Value,
    /// What is in each blob, in the order in which the header names them.
    blobs: Vec<Vec<u8>>,
}

impl Capsule {
    fn load(name: String, whole: Vec<u8>) -> Capsule {
        let len = u32::from_le_bytes(whole[12..16].try_into().expect("four bytes")) as usize;
        let blobs_at = FIXED + len;
        let json = zstd::stream::decode_all(&whole[FIXED..blobs_at]).expect("a header");
        let mut header: Value = serde_json::from_slice(&json).expect("JSON");
        let mut blobs = Vec::new();
        each_blob(&mut header, &mut |blob| {
            let number = |name: &str| blob[name].as_u64().expect("a number") as usize;
            let at = blobs_at + number("at");
            blobs.push(zstd::stream::decode_all(&whole[at..at + number("len")]).expect("a blob"));
        });
        Capsule { name, begin: whole[..12].to_vec(), header, blobs, whole }
    }

    /// The file again.
    fn pack(&self, header: Vec<u8>) -> Vec<u8> {
        let packed = zstd::bulk::compress(&header, 1).expect("it can be compressed");
        let mut out = self.begin.clone();
        let crc = crc32fast::hash(&packed);
        for number in [packed.len() as u32, header.len() as u32, crc] {
            out.extend(number.to_le_bytes());
        }
        out.extend(packed);
        out
    }

    fn harmed(mut self, program: &mut Program<'_>) -> Vec<u8> {
        let kind = program.byte() % 8;
        if kind == 0 {
            // The file as it is: what the checksums and lengths are there for.
            while !program.is_over() {
                program.harm(&mut self.whole);
            }
            return self.whole;
        }
        let mut text = None;
        // Changes to blobs first: their places are written after that.
        for _ in 0..program.byte() % 3 {
            let nth = program.below(self.blobs.len());
            if let Some(blob) = self.blobs.get_mut(nth) {
                program.harm(blob);
            }
        }
        let (mut bytes, mut nth) = (Vec::new(), 0);
        let blobs = &self.blobs;
        each_blob(&mut self.header, &mut |blob| {
            let unpacked = blobs.get(nth).map_or(&[][..], Vec::as_slice);
            let packed = zstd::bulk::compress(unpacked, 1).expect("it can be compressed");
            blob["at"] = bytes.len().into();
            blob["len"] = packed.len().into();
            blob["unpacked"] = unpacked.len().into();
            blob["crc"] = crc32fast::hash(&packed).into();
            bytes.extend(packed);
            nth += 1;
        });
        for _ in 0..24 {
            if program.is_over() {
                break;
            }
            if kind == 1 {
                let text = text.get_or_insert_with(|| self.header.to_string().into_bytes());
                program.harm(text);
            } else {
                harm(&mut self.header, program);
            }
        }
        let header = text.unwrap_or_else(|| self.header.to_string().into_bytes());
        let mut out = self.pack(header);
        out.extend(bytes);
        out
    }
}

/// Visits everything in a header that says where a blob is.
fn each_blob(value: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    let is_blob = ["at", "len", "unpacked", "crc"].iter().all(|name| value.get(name).is_some());
    match value {
        _ if is_blob => visit(value),
        Value::Array(all) => all.iter_mut().for_each(|value| each_blob(value, visit)),
        Value::Object(all) => all.values_mut().for_each(|value| each_blob(value, visit)),
        _ => {}
    }
}

/// Changes one value somewhere in a header.
fn harm(value: &mut Value, program: &mut Program<'_>) {
    let mut at = value;
    // Down, until something small is there or the program wants to stop.
    for _ in 0..12 {
        let stop = program.byte() == 0;
        let len = match &*at {
            Value::Array(all) => all.len(),
            Value::Object(all) => all.len(),
            _ => 0,
        };
        if stop || len == 0 {
            break;
        }
        let nth = program.below(len);
        at = match at {
            Value::Array(all) => &mut all[nth],
            Value::Object(all) => all.values_mut().nth(nth).expect("it is below the length"),
            other => other,
        };
    }
    match at {
        Value::Number(n) => {
            let was = n.as_u64().unwrap_or_default();
            *at = program.worse(was).into();
        }
        Value::String(text) => {
            let mut bytes = std::mem::take(text).into_bytes();
            program.harm(&mut bytes);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Value::Bool(b) => *b = !*b,
        Value::Array(all) if !all.is_empty() => {
            let nth = program.below(all.len());
            match program.byte() % 3 {
                0 => drop(all.remove(nth)),
                1 => all.push(all[nth].clone()),
                _ => {
                    let other = program.below(all.len());
                    all.swap(nth, other);
                }
            }
        }
        Value::Object(all) => {
            let name = all.keys().nth(program.below(all.len())).cloned();
            name.and_then(|name| all.remove(&name));
        }
        _ => *at = program.number(8).into(),
    }
}

fn capsules() -> &'static [Capsule] {
    static ALL: OnceLock<Vec<Capsule>> = OnceLock::new();
    ALL.get_or_init(|| {
        let files = super::seeds("capsule").into_iter();
        files.map(|(name, whole)| Capsule::load(name, whole)).collect()
    })
}

/// Some changes, then everything that can be asked.
pub(crate) fn run(data: &[u8]) {
    let mut program = Program::new(data);
    let capsule = program.pick(capsules()).clone();
    open(&capsule.harmed(&mut program));
}

fn open(bytes: &[u8]) -> bool {
    let path = scratch("a.cryo");
    std::fs::write(&path, bytes).expect("a scratch file can be written");
    match Snapshot::open(&path) {
        Ok(snapshot) => walk::snapshot(&snapshot),
        Err(e) => {
            let _ = e.to_string();
            return false;
        }
    }
    true
}

/// Every file opens, as it is and put together again.
pub(crate) fn check_seeds() {
    assert!(!capsules().is_empty(), "there are no seeds of snapshot files");
    for capsule in capsules() {
        assert!(open(&capsule.whole), "{} does not open", capsule.name);
        let again = capsule.clone().harmed(&mut Program::new(&[7]));
        assert!(open(&again), "{} does not open when it is put together again", capsule.name);
        let late = capsule.header.get("placeholder").is_some();
        assert!(late || !capsule.blobs.is_empty(), "{} has no blobs", capsule.name);
    }
}
