//! Images of RAM that lie: a small guest, some words of it changed, opened, frozen and looked at
//! in full.
//!
//! Which words are worth changing is found by reading the whole image once: those that are read
//! by themselves (pointers, counts, sizes) first, then all that is ever read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cryoscope::mem::{Gpa, GuestMem, MemError, Region};
use cryoscope::scenario::monitor::{Course, MonitorOptions, Watcher};
use cryoscope::snapshot::{CaptureRequest, Capturer, Meta, Observation, Snapshot};

use super::program::Program;
use super::walk;

const PAGE: u64 = 4096;
/// What a freeze may copy here.
const BYTES: u64 = 2 << 20;
/// What it may keep where all of memory is asked for.
const ALL: u64 = 8 << 20;
/// Where made-up guests have their direct map.
const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Reads of more bytes than this are no single values.
const WORD: usize = 64;

/// A stored image. The file is a zstd frame of pages, each behind its address (eight bytes,
/// little-endian).
struct Image {
    name: String,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Addresses of words that are read alone, and of all that are read.
    hot: Vec<u64>,
    warm: Vec<u64>,
}

/// An image with changes.
#[derive(Clone)]
struct Mutant {
    image: Arc<Image>,
    changed: BTreeMap<u64, Box<[u8]>>,
    gone: BTreeSet<u64>,
    regions: Vec<Region>,
}

impl Mutant {
    fn new(image: Arc<Image>) -> Self {
        let regions = regions(image.pages.keys().copied());
        Mutant { image, changed: BTreeMap::new(), gone: BTreeSet::new(), regions }
    }

    fn page(&self, at: u64) -> Option<&[u8]> {
        if self.gone.contains(&at) {
            return None;
        }
        self.changed.get(&at).or_else(|| self.image.pages.get(&at)).map(|page| &page[..])
    }

    fn word(&self, at: u64) -> u64 {
        let mut raw = [0; 8];
        let _ = self.read(Gpa(at), &mut raw);
        u64::from_le_bytes(raw)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let page = at & !(PAGE - 1);
            let Some(old) = self.image.pages.get(&page) else { continue };
            let new = self.changed.entry(page).or_insert_with(|| old.clone());
            new[(at - page) as usize] = *byte;
        }
    }

    /// One change.
    fn harm(&mut self, program: &mut Program<'_>) {
        let how = program.byte();
        let words = match how & 0xc0 {
            0 => &self.image.warm,
            _ => &self.image.hot,
        };
        let at = *program.pick(words);
        let other = *program.pick(&self.image.hot);
        let was = self.word(at);
        let low = was & 0xffff_ffff;
        let value = match how % 16 {
            0..=2 => self.word(other),
            // Structures that lead to themselves or to one another.
            3 => DIRECT + at,
            4 => DIRECT + other,
            5 => 0,
            6 => was.wrapping_add(8 * u64::from(program.byte())),
            7 | 8 => was & !0xffff_ffff | program.worse(low) & 0xffff_ffff,
            9 | 10 => low | program.worse(was >> 32) << 32,
            11 => was & !0xff | u64::from(program.byte()),
            12 if program.byte() < 8 => {
                self.gone.insert(at & !(PAGE - 1));
                let left = self.image.pages.keys().filter(|page| !self.gone.contains(page));
                self.regions = regions(left.copied());
                return;
            }
            _ => program.worse(was),
        };
        self.put(at, &value.to_le_bytes());
    }
}

impl GuestMem for Mutant {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        let len = buf.len();
        let mut done = 0;
        while done < len {
            let gpa = at.0.checked_add(done as u64).ok_or(MemError::NotRam { at, len })?;
            let within = (gpa % PAGE) as usize;
            let n = (len - done).min(PAGE as usize - within);
            let page = self.page(gpa - within as u64).ok_or(MemError::NotRam { at, len })?;
            buf[done..done + n].copy_from_slice(&page[within..within + n]);
            done += n;
        }
        Ok(())
    }
}

/// Notes what is read.
struct Watched {
    mem: Mutant,
    reads: Mutex<BTreeSet<(u64, usize)>>,
}

impl GuestMem for Watched {
    fn regions(&self) -> &[Region] {
        self.mem.regions()
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.reads.lock().expect("nobody panics with it").insert((at.0, buf.len()));
        self.mem.read(at, buf)
    }
}

fn regions(pages: impl Iterator<Item = u64>) -> Vec<Region> {
    let mut out: Vec<Region> = Vec::new();
    for page in pages {
        match out.last_mut() {
            Some(last) if last.start.0 + last.len == page => last.len += PAGE,
            _ => out.push(Region { start: Gpa(page), len: PAGE }),
        }
    }
    out
}

impl Image {
    fn load(name: String, packed: &[u8]) -> Arc<Image> {
        let raw = zstd::stream::decode_all(packed).expect("a seed of RAM is a zstd frame");
        let pages = raw.chunks_exact(8 + PAGE as usize).map(|piece| {
            let at = u64::from_le_bytes(piece[..8].try_into().expect("eight bytes"));
            (at, Box::from(&piece[8..]))
        });
        let mut image = Image { name, pages: pages.collect(), hot: vec![0], warm: vec![0] };
        let mem = Mutant::new(Arc::new(Image { pages: image.pages.clone(), ..Image::empty() }));
        let watched = Arc::new(Watched { mem, reads: Mutex::default() });
        let _ = freeze(watched.clone(), true, false);
        let reads = watched.reads.lock().expect("nobody panics with it");
        let words = |alone: bool| -> Vec<u64> {
            let reads = reads.iter().filter(|(_, len)| !alone || *len <= WORD);
            let words = reads.flat_map(|(at, len)| (at & !7..at + *len as u64).step_by(8));
            words.collect::<BTreeSet<u64>>().into_iter().collect()
        };
        (image.hot, image.warm) = (words(true), words(false));
        Arc::new(image)
    }

    fn empty() -> Image {
        Image { name: String::new(), pages: BTreeMap::new(), hot: Vec::new(), warm: Vec::new() }
    }
}

fn images() -> &'static [Arc<Image>] {
    static IMAGES: OnceLock<Vec<Arc<Image>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let files = super::seeds("ram").into_iter();
        files.map(|(name, packed)| Image::load(name, &packed)).collect()
    })
}

/// A snapshot of whatever is there.
fn freeze(mem: Arc<dyn GuestMem>, prepared: bool, all: bool) -> Option<Arc<Snapshot>> {
    let capturer = Capturer::open(mem).ok()?;
    let kernel = ["jiffies_64", "scx_root", "runqueues"].map(str::to_owned).to_vec();
    let time = Duration::from_millis(500);
    let ram = all.then_some(ALL);
    let request = CaptureRequest { bytes: BYTES, time, kernel, ram, ..CaptureRequest::default() };
    if prepared {
        let _ = capturer.prepare(&request);
    }
    monitor(&capturer);
    let raw = capturer.capture(&request).ok()?;
    assert!(
        raw.bytes() <= 2 * BYTES + ram.unwrap_or(0),
        "{} bytes are beyond what was granted",
        raw.bytes()
    );
    Some(raw.finish(Meta { tag: "fuzz".to_owned(), ..Meta::default() }))
}

/// Reads it twice, as a monitor does while it runs; whether there was anything.
fn monitor(capturer: &Capturer) -> bool {
    let (mut watcher, mut course) = (Watcher::default(), Course::new(&MonitorOptions::default()));
    let second = Duration::from_secs(1);
    for i in 1..=2 {
        let Ok(reading) = capturer.monitor() else { return false };
        assert!(reading.queues.len() <= 64 && reading.doubts.len() <= 8, "{reading:?}");
        let seen = watcher.observe(reading, second * i, second * i);
        for name in Observation::FIELDS {
            let _ = seen.field(name);
        }
        for (cpu, name) in (0..4).zip(Observation::OF_CPU) {
            let _ = seen.of_cpu(cpu, name);
        }
        course.take(&seen, 1);
    }
    !course.report().to_string().is_empty() && course.report().imbalance.is_some()
}

/// Some changes, then everything that can be asked.
pub(crate) fn run(data: &[u8]) {
    let mut program = Program::new(data);
    let image = program.pick(images()).clone();
    let thorough = program.byte();
    let mut mutant = Mutant::new(image);
    for _ in 0..32 {
        if program.is_over() {
            break;
        }
        mutant.harm(&mut program);
    }
    let (prepared, all) = (thorough & 1 == 1, thorough & 0xc == 0xc);
    if let Some(snapshot) = freeze(Arc::new(mutant), prepared, all) {
        // One of the two is enough to find what is wrong, and takes half as long.
        match thorough & 2 {
            0 => walk::maps(&snapshot),
            _ => walk::kernel(&snapshot),
        }
        if thorough >> 4 == 0 {
            walk::same_from_a_file(&snapshot, snapshot.ram().is_ok());
        }
    }
}

/// Every image gives maps and tasks.
pub(crate) fn check_seeds() {
    assert!(!images().is_empty(), "there are no seeds of RAM");
    let machines = images().iter().map(|image| Mutant::new(image.clone()));
    let capturers = machines.filter_map(|machine| Capturer::open(Arc::new(machine)).ok());
    assert!(capturers.filter(monitor).count() > 0, "nothing can be monitored");
    for image in images() {
        let name = &image.name;
        let part = freeze(Arc::new(Mutant::new(image.clone())), true, false);
        walk::same_from_a_file(
            &part.unwrap_or_else(|| panic!("{name}: it cannot be frozen")),
            false,
        );
        let snapshot = freeze(Arc::new(Mutant::new(image.clone())), true, true);
        let snapshot = snapshot.unwrap_or_else(|| panic!("{name}: it cannot be frozen"));
        walk::snapshot(&snapshot);
        walk::same_from_a_file(&snapshot, true);
        let maps = snapshot.maps().unwrap_or_else(|e| panic!("{name}: {e}"));
        let read = maps.iter().filter(|map| map.len().is_ok()).count();
        assert!(read > 0 || snapshot.tasks().is_ok_and(|t| !t.is_empty()), "{name}: it is empty");
        assert!(image.hot.len() > 500, "{name}: {} words are read", image.hot.len());
    }
}
