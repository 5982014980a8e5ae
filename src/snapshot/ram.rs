//! All of a machine's memory, as it stood at a freeze.
//!
//! ```text
//! running   make_room()  memory to copy into, touched so that writing to it is quick
//! stopped   copy()       what the guest ever touched, run by run ──▶ Copied
//! running   Ram::new     pages of zeros dropped, read by the kernel's own page tables
//! ```
//!
//! A stored image is the same, with its pages unpacked when they are read.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::Snapshot;
use super::error::SnapshotResult;
use super::kernel::unreadable;
use crate::introspect::{Layout, View};
use crate::mem::{Gpa, GuestMem, Kva, MemError, Region};

/// Bytes of memory that a freeze keeps at most.
pub const MAX_RAM: u64 = 4 << 30;

/// Bytes that one read gives at most: no type of a kernel's is as large.
const MAX_READ: u64 = 64 << 20;

const PAGE: usize = 4096;

/// Where kept bytes come from.
pub(super) trait Kept: Send + Sync {
    /// Bytes there are.
    fn len(&self) -> u64;

    /// Fills `buf` from there; the range lies within what there is. What is wrong with the file
    /// otherwise.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), String>;
}

impl Kept for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = self.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(range.ok_or("it ends early")?);
        Ok(())
    }
}

/// Memory that is kept in one piece: its address, its length, its place in what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) offset: u64,
}

/// What is told of memory beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The machine's RAM: address and length, ascending.
    pub(super) regions: Vec<(u64, u64)>,
    /// Where the kernel is.
    pub(super) layout: Layout,
}

/// Physical memory: what was kept of it, and zeros.
struct Image {
    regions: Vec<Region>,
    /// Ascending, without overlaps, within the regions.
    runs: Vec<Run>,
    kept: Box<dyn Kept>,
    /// What turned out to be wrong with what is kept.
    damage: OnceLock<String>,
}

impl GuestMem for Image {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        let len = buf.len();
        let within = |r: &Region| {
            at.0.checked_sub(r.start.0).is_some_and(|o| o <= r.len && len as u64 <= r.len - o)
        };
        if !self.regions.iter().any(within) {
            return Err(MemError::NotRam { at, len });
        }
        buf.fill(0);
        let end = at.0 + len as u64;
        let first = self.runs.partition_point(|run| run.at + run.len <= at.0);
        for run in self.runs[first..].iter().take_while(|run| run.at < end) {
            let (from, to) = (run.at.max(at.0), (run.at + run.len).min(end));
            let piece = &mut buf[(from - at.0) as usize..(to - at.0) as usize];
            self.kept.read(run.offset + (from - run.at), piece).map_err(|why| {
                let _ = self.damage.set(why.clone());
                MemError::Host(why)
            })?;
        }
        Ok(())
    }

    fn populated(&self) -> Vec<Region> {
        self.runs.iter().map(|run| Region { start: Gpa(run.at), len: run.len }).collect()
    }
}

/// All of a machine's memory. Reading it costs about as much as reading the machine's.
pub struct Ram {
    image: Arc<Image>,
    layout: Layout,
    view: OnceLock<View>,
}

impl Ram {
    /// Memory of which nobody vouches for the parts. What contradicts itself is an error.
    pub(super) fn new(about: About, runs: Vec<Run>, kept: Box<dyn Kept>) -> Result<Ram, String> {
        let (mut end, mut regions) = (0, Vec::with_capacity(about.regions.len()));
        for (at, len) in about.regions {
            let fits = at >= end && len > 0;
            end = at.checked_add(len).filter(|_| fits).ok_or("its memory contradicts itself")?;
            regions.push(Region { start: Gpa(at), len });
        }
        let (mut end, mut region) = (0, regions.iter().peekable());
        for run in &runs {
            let stop = run.at.checked_add(run.len).filter(|_| run.at >= end && run.len > 0);
            end = stop.ok_or("pieces of its memory overlap")?;
            while region.next_if(|r| r.start.0 + r.len <= run.at).is_some() {}
            let inside =
                region.peek().is_some_and(|r| r.start.0 <= run.at && end <= r.start.0 + r.len);
            let there = run.offset.checked_add(run.len).is_some_and(|stop| stop <= kept.len());
            if !inside || !there {
                return Err(format!("it has no {} bytes of memory at {:#x}", run.len, run.at));
            }
        }
        let image = Arc::new(Image { regions, runs, kept, damage: OnceLock::new() });
        Ok(Ram { image, layout: about.layout, view: OnceLock::new() })
    }

    fn view(&self) -> &View {
        self.view.get_or_init(|| View::new(self.image.clone(), &self.layout))
    }

    /// Bytes at a kernel-virtual address.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn at(&self, at: u64, len: u64) -> Result<Vec<u8>, String> {
        if len > MAX_READ {
            return Err(format!("{len} bytes are more than {} MiB at once", MAX_READ >> 20));
        }
        let mut out = vec![0; len as usize];
        let read = self.view().read(Kva(at), &mut out);
        read.map(|()| out).map_err(|e| match self.image.damage.get() {
            Some(damage) => damage.clone(),
            None => e.cause.to_string(),
        })
    }

    /// Bytes at a physical address.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn physical(&self, at: u64, len: u64) -> Result<Vec<u8>, String> {
        if len > MAX_READ {
            return Err(format!("{len} bytes are more than {} MiB at once", MAX_READ >> 20));
        }
        let mut out = vec![0; len as usize];
        self.image.read(Gpa(at), &mut out).map(|()| out).map_err(|e| e.to_string())
    }

    /// The physical address behind a kernel-virtual one.
    #[must_use]
    pub fn translate(&self, at: u64) -> Option<u64> {
        self.view().translate(Kva(at)).map(|gpa| gpa.0)
    }

    /// Bytes of the machine's RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Bytes that are kept: what the guest ever touched and is not zeros.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.image.runs.iter().map(|run| run.len).sum()
    }

    /// What is told of it beside its bytes.
    pub(super) fn about(&self) -> About {
        let regions = self.image.regions.iter().map(|r| (r.start.0, r.len)).collect();
        About { regions, layout: self.layout }
    }

    /// Addresses and lengths of what is kept, ascending.
    pub(super) fn runs(&self) -> &[Run] {
        &self.image.runs
    }

    /// Fills `buf` from what is kept, which lies end to end.
    pub(super) fn read_kept(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        self.image.kept.read(offset, buf)
    }
}

impl Snapshot {
    /// All of the machine's memory.
    ///
    /// # Errors
    /// [`super::SnapshotError::PlaceholderSnapshot`],
    /// [`super::SnapshotError::MapRenderIncomplete`] when it was not kept.
    pub fn ram(&self) -> SnapshotResult<&Ram> {
        let state = self.kernel_state()?;
        state.ram.as_deref().ok_or_else(|| {
            let why = state.ram_incomplete.clone().unwrap_or_else(|| {
                "it was not kept; freeze with t.freeze(\"tag\", #{ ram: true })".to_owned()
            });
            unreadable("the guest's memory", why)
        })
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ram({} of {} MiB)", self.kept() >> 20, self.size() >> 20)
    }
}

/// Makes memory of all that the guest has touched so far, with room for what it touches until it
/// is stopped: fresh memory costs a page fault a page when it is first written to.
///
/// # Errors
/// There is more than `most`.
pub(super) fn make_room(mem: &dyn GuestMem, most: u64, spare: &mut Vec<u8>) -> Result<(), String> {
    let touched = mem.populated().iter().map(|run| run.len).sum();
    if touched > most {
        return Err(too_much(touched, most));
    }
    let want = (touched + touched / 16 + (4 << 20)).min(most) as usize;
    if spare.len() < want {
        *spare = Vec::new();
        *spare = vec![0; want];
        spare.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    }
    Ok(())
}

fn too_much(touched: u64, most: u64) -> String {
    format!(
        "the guest has used {} MiB of it, a freeze with `ram` keeps at most {} MiB; give the \
         machine less memory, as in memory: \"2G\", or freeze without `ram: true`",
        touched >> 20,
        most >> 20
    )
}

/// What was copied of memory.
pub(super) struct Copied {
    regions: Vec<Region>,
    /// One after the other in `bytes`.
    runs: Vec<Region>,
    bytes: Vec<u8>,
}

/// Copies what the guest ever touched into `spare`.
///
/// # Errors
/// There is more than `most`, or the host cannot read it.
pub(super) fn copy(mem: &dyn GuestMem, most: u64, spare: Vec<u8>) -> Result<Copied, String> {
    let runs = mem.populated();
    let total = runs.iter().map(|run| run.len).sum();
    if total > most {
        return Err(too_much(total, most));
    }
    let mut bytes = spare;
    bytes.resize(total as usize, 0);
    let mut rest = bytes.as_mut_slice();
    for run in &runs {
        let piece;
        (piece, rest) = rest.split_at_mut(run.len as usize);
        mem.read(run.start, piece).map_err(|e| e.to_string())?;
    }
    Ok(Copied { regions: mem.regions().to_vec(), runs, bytes })
}

impl Copied {
    /// Bytes that were copied.
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The memory, pages of zeros left out.
    ///
    /// # Errors
    /// It contradicts itself.
    pub(super) fn finish(mut self, layout: Layout) -> Result<Ram, String> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut from, mut to) = (0, 0);
        for region in &self.runs {
            let end = from + region.len as usize;
            let mut at = region.start.0;
            while from < end {
                let len = PAGE.min(end - from);
                if self.bytes[from..from + len] != [0; PAGE][..len] {
                    self.bytes.copy_within(from..from + len, to);
                    let (len, offset) = (len as u64, to as u64);
                    match runs.last_mut() {
                        Some(last) if last.at + last.len == at => last.len += len,
                        _ => runs.push(Run { at, len, offset }),
                    }
                    to += len as usize;
                }
                from += len;
                at += len as u64;
            }
        }
        self.bytes.truncate(to);
        self.bytes.shrink_to_fit();
        let regions = self.regions.iter().map(|r| (r.start.0, r.len)).collect();
        Ram::new(About { regions, layout }, runs, Box::new(self.bytes))
    }
}
