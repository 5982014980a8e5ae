//! Snapshots that go through a file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::introspect;
use crate::snapshot::testing::{Object, Rows, made_up, meta, sample};
use crate::snapshot::{KernelState, KeyArg, ModuleState, Snapshot, StoreError, Symbols, save_all};

/// The snapshot that a file of it gives.
pub(super) fn stored(snapshot: &Snapshot) -> Arc<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    snapshot.save(&path).unwrap();
    // What is read later does not need the file's name.
    let opened = Snapshot::open(&path).unwrap();
    drop(dir);
    opened
}

/// Everything that there is to say about a snapshot.
fn everything(snapshot: &Arc<Snapshot>) -> String {
    let mut out = format!(
        "{:?} {} {:?} {:?} {} {:?}\n{}",
        snapshot,
        snapshot.elapsed_ms(),
        snapshot.pause(),
        snapshot.phase(),
        snapshot.bytes(),
        snapshot.torn(),
        snapshot.dump(),
    );
    for map in snapshot.maps().unwrap_or_default() {
        let attrs = format!("{:?}", map.attrs());
        // Types are compared by what they make of the values.
        let attrs = attrs.split(", btf: ").next().unwrap_or_default().to_owned();
        out.push_str(&format!("{attrs}\n{:?} {:?}\n", map.torn(), map.len()));
        out.push_str(&map.dump());
        for entry in map.entries().into_iter().flatten() {
            out.push_str(&format!("{:?} {:?} {}\n", entry, entry.torn(), entry.dump()));
            for cpu in 0..6 {
                out.push_str(&format!("{:?}\n", entry.cpu(cpu).map(|e| e.dump())));
            }
        }
    }
    out
}

#[test]
fn what_older_files_do_not_say_is_unknown() {
    let old = r#"{"tag": "end", "elapsed_ms": 4012, "pause": {"total_us": 1234, "stop_us": 690,
        "copy_us": 180, "resume_us": 364}, "phase": "wide", "bytes": 0}"#;
    let meta: crate::snapshot::Meta = serde_json::from_str(old).unwrap();
    assert_eq!(meta, self::meta("end"));
    assert_eq!((meta.pause.hidden_us, meta.pause.skew_us, meta.overshoot_us), (None, None, None));
    // And what is known goes through a file.
    let pause = crate::snapshot::Pause { hidden_us: Some(1000), skew_us: Some(7), ..meta.pause };
    let meta = crate::snapshot::Meta { pause, overshoot_us: Some(2675), ..meta };
    let opened = stored(&Snapshot::new(meta, Vec::new(), Vec::new()));
    assert_eq!((opened.pause(), opened.overshoot_us()), (pause, Some(2675)));
    let says = "(engine's stop 690, copy 180, engine's resume 364), 1,000 us hidden from the \
                guest, 7 us between the first CPU's stop and the last one's, 2,675 us after what \
                was waited for was seen";
    let dump = opened.dump().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(dump.contains(says), "{dump}");
}

#[test]
fn a_file_gives_the_same_answers() {
    let live = sample();
    let opened = stored(&live);
    assert_eq!(everything(&opened), everything(&live));
    // And what was opened can be saved again.
    assert_eq!(everything(&stored(&opened)), everything(&live));
    let error = opened.global("nr_enqueuedd").unwrap_err();
    assert_eq!(error.to_string(), live.global("nr_enqueuedd").unwrap_err().to_string());
}

#[test]
fn a_file_keeps_rows_in_the_order_in_which_they_are_read() {
    let keys = |snapshot: &Arc<Snapshot>| -> Vec<Vec<Vec<u8>>> {
        let of = |map: crate::snapshot::Map| {
            let contents = map.contents();
            (0..contents.rows()).filter_map(|row| Some(contents.key(row)?.to_vec())).collect()
        };
        snapshot.maps().unwrap().into_iter().map(of).collect()
    };
    let live = sample();
    let (before, after) = (keys(&live), keys(&stored(&live)));
    let mut moved = 0;
    for ((map, before), after) in live.maps().unwrap().into_iter().zip(before).zip(after) {
        let read: Vec<Vec<u8>> = map.known_entries().filter_map(|e| e.key().raw().ok()).collect();
        if !before.is_empty() {
            assert_eq!(after, read, "{}", map.name());
            moved += usize::from(after != before);
        }
    }
    assert!(moved > 0, "no map was out of order");
}

/// Everything that there is to say about the kernel in a snapshot.
fn of_the_kernel(snapshot: &Arc<Snapshot>) -> String {
    let mut out = snapshot.dump();
    for task in snapshot.tasks().unwrap() {
        let parts = (task.cgroup(), task.class(), task.cpus_allowed(), task.dsq().map(drop));
        out.push_str(&format!("{task:?} {parts:?}\n{}", task.whole().unwrap().dump()));
    }
    for cpu in snapshot.cpus().unwrap() {
        let parts = (cpu.cpustat(), cpu.torn(), cpu.curr());
        out.push_str(&format!("{cpu:?} {parts:?}\n{}", cpu.whole().unwrap().dump()));
    }
    for dsq in snapshot.dsqs().unwrap() {
        out.push_str(&format!("{dsq:?} {:?} {:?}\n", dsq.tasks(), dsq.torn()));
    }
    let sched = snapshot.sched().unwrap();
    let jiffies = snapshot.kernel("jiffies_64", Some("u64")).unwrap();
    let symbols = snapshot.symbols().unwrap();
    let init = symbols.addresses("init_task");
    assert!(symbols.len() > 10 && init.len() == 1, "{init:x?} of {}", symbols.len());
    let near = (symbols.at(init[0] + 1), symbols.alike("init_tas"), symbols.room_at(init[0]));
    out.push_str(&format!("{init:x?} {near:?} {}", symbols.len()));
    format!("{out}{sched:?} {:?} {jiffies:?} {jiffies}", sched.counters(None))
}

#[test]
fn the_kernels_state_is_in_the_file() {
    let live = made_up(true);
    let opened = stored(&live);
    assert_eq!(of_the_kernel(&opened), of_the_kernel(&live));
    assert_eq!(of_the_kernel(&stored(&opened)), of_the_kernel(&live));
    // What was not copied is not there afterwards either.
    let error = stored(&sample()).tasks().unwrap_err().to_string();
    assert_eq!(error, sample().tasks().unwrap_err().to_string());
}

#[test]
fn a_kernels_state_that_lies_gives_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    made_up(true).save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        fs::write(&path, with_header(&whole, change)).unwrap();
        Snapshot::open(&path)
    };
    let error = open(&|h| h["kernel"]["btf"] = 77.into()).unwrap_err().to_string();
    assert!(error.contains("the kernel has types that are not there"), "{error}");
    let error = open(&|h| h["kernel"]["bytes"]["at"] = u64::MAX.into()).unwrap_err().to_string();
    assert!(error.contains("bytes are missing at its end"), "{error}");
    let huge = || serde_json::Value::from(u64::MAX);
    let wild = open(&|h| {
        let state = &mut h["kernel"]["state"];
        state["memory"]["pieces"][3] = serde_json::json!([0, u64::MAX, u64::MAX]);
        state["memory"]["pieces"][0][1] = huge();
        state["tasks"][0]["at"] = huge();
        state["tasks"][1]["cgroup"] = huge();
        state["cpus"][1]["cpu"] = u32::MAX.into();
        state["dsqs"][5]["tasks"][0] = huge();
    });
    let wild = wild.unwrap();
    for task in wild.tasks().unwrap() {
        let _ = (format!("{task:?}"), task.cgroup(), task.cpus_allowed(), task.dsq().map(drop));
    }
    assert!(wild.dump().contains("snapshot \"end\""));
}

#[test]
fn a_placeholder_stays_one() {
    let opened = stored(&Snapshot::placeholder(meta("late"), "vCPU 1 did not stop"));
    assert_eq!(opened.placeholder_reason(), Some("vCPU 1 did not stop"));
    assert_eq!(opened.tag(), "late");
}

#[test]
fn saving_replaces_a_file_whole_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    fs::write(&path, "older").unwrap();
    sample().save(&path).unwrap();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["a.cryo"]);
    assert!(Snapshot::open(&path).is_ok());
    let nowhere = Path::new("/nowhere/a.cryo");
    assert_eq!(
        sample().save(nowhere).unwrap_err().to_string(),
        "cannot save the snapshot to /nowhere/a.cryo: No such file or directory; make the \
         directory first"
    );
    assert_eq!(
        sample().save(Path::new("/dev/full/x")).unwrap_err().to_string(),
        "cannot save the snapshot to /dev/full/x: Not a directory"
    );
}

#[test]
fn what_is_no_snapshot_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    let shown = path.display();
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Snapshot::open(&path).unwrap_err().to_string()
    };
    let none = format!(
        "{shown} is no snapshot: it does not begin as one; give a file that snap.save(..) has \
         written"
    );
    assert_eq!(told(b""), none);
    assert_eq!(told(b"cryo is the beginning of many a thing"), none);
    assert!(Snapshot::open(dir.path()).unwrap_err().to_string().contains("is no snapshot"));
    assert_eq!(
        Snapshot::open(Path::new("/nowhere.cryo")).unwrap_err().to_string(),
        "cannot open /nowhere.cryo: No such file or directory"
    );
    save_all(&path, std::iter::once(sample())).unwrap();
    assert_eq!(
        Snapshot::open(&path).unwrap_err().to_string(),
        format!(
            "{shown} is a series of many snapshots: open(\"{shown}\") gives it to a script, and \
             .at(0) its first snapshot, which .save(..) writes to a file of its own"
        )
    );
    sample().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut newer = whole.clone();
    newer[8] = 9;
    assert_eq!(
        told(&newer),
        format!(
            "{shown} is a snapshot of version 9, and this cryoscope reads versions up to 1: open \
             it with the cryoscope that wrote it, or a newer one"
        )
    );
    let mut torn = whole.clone();
    torn[30] ^= 1;
    let text = told(&torn);
    assert!(
        text.ends_with("do not fit their checksum; copy it again from where it was saved"),
        "{text}"
    );
    let text = told(&whole[..whole.len() / 2]);
    assert!(text.starts_with(&format!("{shown} is damaged: ")), "{text}");
}

#[test]
fn damage_in_a_map_makes_that_map_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    let live = sample();
    live.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    // The last blob is of the last map that has one: types come after the contents of theirs.
    let mut lost = 0;
    for at in (whole.len() - 900..whole.len()).step_by(30) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let Ok(opened) = Snapshot::open(&path) else { continue };
        for map in opened.maps().unwrap() {
            match (map.len(), live.map(map.name()).unwrap().len()) {
                (Ok(now), Ok(then)) => assert_eq!(now, then),
                (Err(error), Ok(_)) => {
                    lost += 1;
                    assert_eq!(error.kind(), "MapRenderIncomplete");
                    assert!(error.to_string().contains("do not fit their checksum"), "{error}");
                }
                (_, Err(_)) => {}
            }
        }
    }
    assert!(lost > 0, "no damage hit a map");
}

/// Recomputes the checksum of the header, so that damage in it is seen by more than that.
pub(super) fn with_header(whole: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let len = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let packed = &whole[24..24 + len];
    let json = zstd::bulk::decompress(packed, 1 << 20).unwrap();
    let mut header: serde_json::Value = serde_json::from_slice(&json).unwrap();
    change(&mut header);
    let json = serde_json::to_vec(&header).unwrap();
    let packed = zstd::bulk::compress(&json, 1).unwrap();
    let mut out = whole[..12].to_vec();
    out.extend((packed.len() as u32).to_le_bytes());
    out.extend((json.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(&packed).to_le_bytes());
    out.extend(packed);
    out.extend(&whole[24 + len..]);
    out
}

/// A change of a header, and what is said of it.
type Lie<'a> = (&'a str, &'a dyn Fn(&mut serde_json::Value));

#[test]
fn headers_that_lie_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    sample().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let told = |change: &dyn Fn(&mut serde_json::Value)| {
        fs::write(&path, with_header(&whole, change)).unwrap();
        match Snapshot::open(&path) {
            Ok(snapshot) => everything(&snapshot),
            Err(error) => error.to_string(),
        }
    };
    let same = told(&|_| {});
    assert_eq!(same, everything(&sample()));
    let hash = |header: &mut serde_json::Value| -> usize {
        let maps = header["maps"].as_array().unwrap();
        maps.iter().position(|m| m["attrs"]["kind"] == "hash").unwrap()
    };
    let cases: [Lie<'_>; 9] = [
        ("it claims 536870912 bytes out of ", &|h| {
            let maps = h["maps"].as_array_mut().unwrap();
            let map = maps.iter_mut().find(|m| m["attrs"]["name"] == "squares").unwrap();
            (map["rows"], map["values"]["unpacked"]) = ((1 << 26).into(), (1 << 29).into());
        }),
        ("claims 4000000000 entries of no bytes", &|h| {
            let map = hash(h);
            let map = h["maps"][map].as_object_mut().unwrap();
            map["rows"] = 4_000_000_000u64.into();
            map.retain(|name, _| name != "keys" && name != "values");
        }),
        ("does not have its 4000000000 entries", &|h| {
            let map = hash(h);
            h["maps"][map]["rows"] = 4_000_000_000u64.into();
        }),
        ("its maps claim more than 4 GiB", &|h| {
            let map = hash(h);
            h["maps"][map]["keys"]["unpacked"] = (5u64 << 30).into();
        }),
        ("bytes are missing at its end", &|h| {
            let map = hash(h);
            h["maps"][map]["keys"]["at"] = u64::MAX.into();
        }),
        ("has types that are not there", &|h| {
            let map = hash(h);
            h["maps"][map]["btf"] = 77.into();
        }),
        ("types are split from some that come later", &|h| h["btfs"][0]["base"] = 5.into()),
        ("it claims 1073741824 bytes in one piece", &|h| {
            h["btfs"][0]["raw"]["unpacked"] = (1u64 << 30).into();
        }),
        ("its header: ", &|h| h["maps"] = 5.into()),
    ];
    for (says, change) in cases {
        let text = told(change);
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    sample().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut opened = 0;
    for round in 0..600 {
        let mut bytes = match round % 2 {
            0 => whole.clone(),
            // Numbers in the header, its checksum put right.
            _ => with_header(&whole, |header| {
                let maps = header["maps"].as_array().unwrap().len();
                let map = &mut header["maps"][random(maps)];
                let values = [0, 1, 7, 1 << 20, u64::from(u32::MAX), u64::MAX];
                let value = values[random(values.len())];
                let paths =
                    ["/rows", "/sizes/0", "/sizes/1", "/keys/unpacked", "/values/len", "/btf"];
                let extra =
                    ["/cpus/0/unpacked", "/attrs/key_type", "/attrs/value_type", "/keys/at"];
                let all: Vec<&str> = paths.into_iter().chain(extra).collect();
                if let Some(place) = map.pointer_mut(all[random(all.len())]) {
                    *place = value.into();
                }
            }),
        };
        if round % 2 == 0 {
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(bytes.len() - random(2) * random(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        match Snapshot::open(&path) {
            Ok(snapshot) => {
                opened += 1;
                let _ = everything(&snapshot);
            }
            Err(StoreError::Write { .. }) => panic!("nothing was written"),
            Err(_) => {}
        }
    }
    assert!(opened > 50, "only {opened} could be opened");
}

/// A guest may claim any size for values that no CPU has.
#[test]
fn values_that_are_not_there_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    let percpu = |value_size: u32, cpus: Vec<Vec<Option<Vec<u8>>>>| {
        let mut object = Object { btf: None, maps: Vec::new() };
        let rows = Rows { cpus: Some(cpus), ..Rows::default() };
        object.map("sums", "percpu_array", (0, 0), rows);
        object.maps[0].attrs.value_size = value_size;
        Snapshot::new(meta("end"), object.maps, Vec::new())
    };
    let none = percpu(u32::MAX, vec![vec![None, None]; 2]);
    assert_eq!(everything(&stored(&none)), everything(&none));
    let mut rows = vec![vec![None]; 1 << 20];
    rows[7] = vec![Some(vec![1; 8 << 10])];
    let error = percpu(8 << 10, rows).save(&path).unwrap_err().to_string();
    assert!(error.ends_with("a map has more than 1024 MiB"), "{error}");
}

#[test]
fn keys_of_an_absurd_size_are_not_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cryo");
    sample().save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let lie = with_header(&whole, |h| {
        let maps = h["maps"].as_array_mut().unwrap();
        let map = maps.iter_mut().find(|m| m["attrs"]["name"] == "task_ctx").unwrap();
        map["attrs"]["key_size"] = 0x8000_0000u32.into();
    });
    fs::write(&path, lie).unwrap();
    let map = Snapshot::open(&path).unwrap().map("task_ctx").unwrap();
    let error = map.get(&KeyArg::Number(7)).unwrap_err().to_string();
    assert!(error.contains("it claims keys of 2147483648 bytes"), "{error}");
}

#[test]
fn nothing_that_we_write_is_packed_beyond_belief() {
    let mut object = Object { btf: None, maps: Vec::new() };
    let rows = Rows { values: vec![vec![0; 64 << 20]], ..Rows::default() };
    object.map("zeros", "array", (0, 0), rows);
    let zeros = Snapshot::new(meta("end"), object.maps, Vec::new());
    let read = stored(&zeros).map("zeros").unwrap().at(0).unwrap().value().unwrap();
    assert_eq!(read.raw().unwrap().len(), 64 << 20);
}

#[test]
fn symbols_that_a_reader_would_refuse_are_left_out_of_a_file() {
    let table = || {
        let name = "x".repeat(511);
        let all = (0..140_000u64).map(|at| ('t', name.as_str(), at));
        introspect::Symbols::of(all).unwrap()
    };
    let module = ModuleState {
        name: "made".into(),
        at: 0,
        memory: Vec::new(),
        per_cpu: None,
        symbols: (0, 140_000),
        btf: None,
        incomplete: None,
    };
    let kernel = KernelState {
        btf: Some(crate::btf::testing::Builder::new().parse()),
        symbols: Some(Arc::new(Symbols::made(table))),
        modules: vec![module],
        module_symbols: Some(Arc::new(Symbols::made(table))),
        ..KernelState::default()
    };
    let snap = Snapshot::with_kernel(meta("end"), Vec::new(), Vec::new(), kernel);
    assert_eq!(snap.module("made").unwrap().symbols().unwrap().len(), 140_000);
    let opened = stored(&snap);
    let why = opened.module("made").unwrap().symbols().unwrap_err().to_string();
    assert!(why.ends_with("those of all modules take more than a file keeps"), "{why}");
    let why = opened.symbols().unwrap_err().to_string();
    assert!(why.contains("they took more than it keeps"), "{why}");
}

#[test]
fn a_shelf_gives_the_same_answers_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = crate::snapshot::Shelf::new(dir.path()).unwrap();
    let (plain, kernel) = (sample(), made_up(true));
    let empty = Snapshot::placeholder(meta("x"), "CPU 1 did not come");
    let put: Vec<_> =
        [&plain, &kernel, &empty, &plain].map(|snapshot| shelf.put(snapshot).unwrap()).into();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    drop(shelf);
    let opened: Vec<_> = put.iter().map(|shelved| shelved.open().unwrap()).collect();
    drop(put);
    assert_eq!(everything(&opened[0]), everything(&plain));
    assert_eq!(of_the_kernel(&opened[1]), of_the_kernel(&kernel));
    assert_eq!(opened[2].placeholder_reason(), Some("CPU 1 did not come"));
    assert_eq!(everything(&opened[3]), everything(&plain));
    // Types and symbols are the very same.
    let size = |snapshot: &Arc<Snapshot>| {
        let path = dir.path().join("a.cryo");
        snapshot.save(&path).unwrap();
        fs::metadata(&path).unwrap().len()
    };
    let (on_shelf, whole) = (crate::snapshot::Shelf::new(dir.path()).unwrap(), size(&kernel));
    assert!(on_shelf.put(&kernel).unwrap().len() < whole);
    // What was on a shelf can be saved as any other.
    assert_eq!(of_the_kernel(&stored(&opened[1])), of_the_kernel(&kernel));
    let error = crate::snapshot::Shelf::new(&dir.path().join("gone")).err().unwrap();
    assert!(error.to_string().ends_with("; make the directory first"), "{error}");
}
