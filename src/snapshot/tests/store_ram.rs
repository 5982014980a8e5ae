//! All of memory in files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::snapshot::testing::{made_up, made_up_ram, sample};
use crate::snapshot::{Snapshot, StoreError};

/// Bytes that end a file with memory, and of those the ones that their checksum is of.
const END: usize = 40;
const CHECKED: usize = 36;

/// What is asked of all of memory.
fn answers(snap: &Arc<Snapshot>) -> String {
    let ram = snap.ram().unwrap();
    let mut out = format!("{ram:?} {}\n{}", snap.bytes(), snap.dump());
    let init = snap.kernel("init_task", Some("struct task_struct")).unwrap();
    out.push_str(&init.dump());
    let root = snap.kernel("scx_root", Some("struct scx_sched *")).unwrap();
    out.push_str(&format!("{:?}", root.get("ops.name").unwrap().as_str()));
    for task in snap.tasks().unwrap() {
        let (at, signal) = (task.address(), task.get("signal").unwrap().as_u64().unwrap());
        out.push_str(&format!("{:x?} {:x?}\n", ram.at(at, 64), ram.at(signal, 32)));
        out.push_str(&format!("{:x?}\n", ram.translate(at)));
    }
    out.push_str(&format!("{:?} {:?}", ram.at(1 << 62, 1), ram.physical(u64::MAX, 1)));
    out
}

fn saved(dir: &Path) -> (Arc<Snapshot>, std::path::PathBuf) {
    let (live, path) = (made_up_ram(), dir.join("a.cryo"));
    live.save_with_ram(&path).unwrap();
    (live, path)
}

#[test]
fn memory_in_a_file_gives_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (live, path) = saved(dir.path());
    let opened = Snapshot::open(&path).unwrap();
    assert_eq!(answers(&opened), answers(&live));
    let kept = live.ram().unwrap().kept();
    assert!(fs::metadata(&path).unwrap().len() < kept / 4, "it is compressed");
    // What was opened can be saved again, also into its own place.
    opened.save_with_ram(&path).unwrap();
    let again = Snapshot::open(&path).unwrap();
    assert_eq!(answers(&again), answers(&live));
    assert_eq!(answers(&opened), answers(&live), "the file that it has open is still there");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn memory_that_is_not_there_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (live, path) = saved(dir.path());
    let shown = path.display();
    for snap in [made_up(true), sample()] {
        let error = snap.save_with_ram(&path).unwrap_err();
        assert!(matches!(error, StoreError::NoRam { .. }), "{error:?}");
    }
    assert_eq!(
        made_up(true).save_with_ram(&path).unwrap_err().to_string(),
        format!(
            "cannot save all of memory to {shown}: it was not kept; freeze with t.freeze(\"tag\", \
             #{{ ram: true }})"
        )
    );
    // Without being asked to, a file does not have it, and says what to do.
    live.save(&path).unwrap();
    let opened = Snapshot::open(&path).unwrap();
    assert_eq!(
        opened.ram().unwrap_err().to_string(),
        "the guest's memory could not be read: it was left out when the snapshot was saved; save \
         it with snap.save(\"x.cryo\", #{ ram: true })"
    );
    let error = opened.kernel("ext_sched_class", None).unwrap_err().to_string();
    assert!(error.contains("it was left out when the snapshot was saved"), "{error}");
    assert_eq!(opened.tasks().unwrap().len(), live.tasks().unwrap().len());
}

/// The number of eight bytes at `at` of the end of a file.
fn number(whole: &[u8], at: usize) -> usize {
    let start = whole.len() - END + at;
    u64::from_le_bytes(whole[start..start + 8].try_into().unwrap()) as usize
}

fn unpacked(whole: &[u8], at: usize) -> Vec<u8> {
    zstd::bulk::decompress(&whole[at..at + number(whole, 16)], number(whole, 24)).unwrap()
}

/// Where the index begins, and where the memory before it.
fn index_at(whole: &[u8]) -> (usize, usize) {
    let header = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let (blobs, at) = (24 + header, number(whole, 8));
    let index = unpacked(whole, blobs + at);
    let memory = u64::from_le_bytes(index[8..16].try_into().unwrap()) as usize;
    (blobs + at, blobs + memory)
}

/// The file with another index, all checksums put right.
fn with_index(whole: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (at, _) = index_at(whole);
    let mut index = unpacked(whole, at);
    change(&mut index);
    let packed = zstd::bulk::compress(&index, 1).unwrap();
    let mut out = whole[..at].to_vec();
    out.extend(&packed);
    let mut end = whole[whole.len() - END..whole.len() - END + 16].to_vec();
    end.extend((packed.len() as u64).to_le_bytes());
    end.extend((index.len() as u64).to_le_bytes());
    end.extend(crc32fast::hash(&packed).to_le_bytes());
    assert_eq!(end.len(), CHECKED);
    end.extend(crc32fast::hash(&end).to_le_bytes());
    out.extend(end);
    out
}

#[test]
fn opening_reads_no_memory_and_damage_is_told_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (live, path) = saved(dir.path());
    let mut whole = fs::read(&path).unwrap();
    let (index, memory) = index_at(&whole);
    assert!(index - memory > 1000, "{memory} to {index}");
    whole[memory..index].fill(0x55);
    fs::write(&path, &whole).unwrap();
    let opened = Snapshot::open(&path).unwrap();
    assert_eq!(opened.tasks().unwrap().len(), live.tasks().unwrap().len());
    let error = opened.kernel("ext_sched_class", None).unwrap_err().to_string();
    assert!(error.contains(&format!("{} is damaged: the ", path.display())), "{error}");
    assert!(error.ends_with("do not fit their checksum"), "{error}");
}

#[test]
fn a_file_whose_end_is_lost_or_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(dir.path());
    let whole = fs::read(&path).unwrap();
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Snapshot::open(&path).map_or_else(|e| e.to_string(), |_| "it was opened".to_owned())
    };
    for len in [whole.len() - 1, whole.len() - END, index_at(&whole).0] {
        let text = told(&whole[..len]);
        assert!(text.contains("its memory is missing at its end"), "{text}");
    }
    let mut torn = whole.clone();
    torn[whole.len() - 10] ^= 1;
    let text = told(&torn);
    assert!(text.contains("its last bytes do not fit their checksum"), "{text}");
    let set = |at: usize, n: u64| {
        with_index(&whole, |index| index[at..at + 8].copy_from_slice(&n.to_le_bytes()))
    };
    let contradicts = "its index of memory contradicts itself";
    let cases = [
        // The size of chunks, where they begin, how many runs there are, a run's place and length.
        (0, 0, contradicts),
        (0, u64::MAX, contradicts),
        (0, 4096, contradicts),
        (8, u64::MAX, contradicts),
        (8, 1 << 40, contradicts),
        (16, u64::MAX, contradicts),
        (16, 0, contradicts),
        (24, u64::MAX, "pieces of its memory overlap"),
        (24, 1 << 50, "it has no 4096 bytes of memory at 0x4000000000000"),
        (32, 0, "pieces of its memory overlap"),
        (32, 1 << 40, contradicts),
        (32, u64::MAX, contradicts),
    ];
    for (at, n, says) in cases {
        let text = told(&set(at, n));
        assert!(text.contains(says), "{at} {n:#x}: {text}");
    }
    let text = told(&with_index(&whole, |index| index.truncate(20)));
    assert!(text.contains("its index of memory ends early"), "{text}");
    // A chunk that unpacks to more than it should.
    let last = with_index(&whole, |index| {
        let len = index.len();
        index[len - 8..len - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    });
    assert!(told(&last).contains(contradicts), "{}", told(&last));
    assert!(told(&with_index(&whole, |index| index.push(0))).contains(contradicts));
}

#[test]
fn damaged_memory_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(dir.path());
    let whole = fs::read(&path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (index, memory) = index_at(&whole);
    let (mut opened, mut read) = (0, 0);
    for round in 0..300 {
        let bytes = match round % 2 {
            0 => {
                let mut bytes = whole.clone();
                let from = [memory, index][random(2)];
                let at = from + random(whole.len() - from);
                bytes[at] ^= 1 << random(8);
                bytes
            }
            _ => with_index(&whole, |index| {
                let at = random(index.len() / 8) * 8;
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&index[at..at + 8]);
                let was = u64::from_le_bytes(bytes);
                let values = [0, 1, was ^ 1 << random(64), was + 4096, 1 << random(64), u64::MAX];
                index[at..at + 8].copy_from_slice(&values[random(values.len())].to_le_bytes());
            }),
        };
        fs::write(&path, &bytes).unwrap();
        let Ok(snap) = Snapshot::open(&path) else { continue };
        opened += 1;
        for name in ["init_task", "scx_root", "ext_sched_class", "init_uts_ns", "jiffies_64"] {
            read += usize::from(snap.kernel(name, None).is_ok());
        }
    }
    assert!(opened > 30 && read > 30, "only {opened} could be opened, {read} variables read");
}
