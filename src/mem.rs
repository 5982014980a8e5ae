//! Guest physical memory, seen from the host.
//!
//! [`GuestMem`] is the one view through which everything above reads a guest: a live machine
//! ([`MappedMem`]), a stored image, or a test's own pages ([`FakeMem`]). Readers never hold a
//! reference into guest memory: every access copies, so a guest that runs on while it is read
//! can give torn values but never undefined behaviour.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

use own::Own;

mod own;

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A guest kernel-virtual address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kva(pub u64);

impl Kva {
    /// This address moved up by `offset` bytes, wrapping like the guest's own arithmetic.
    #[must_use]
    pub fn offset(self, offset: u64) -> Self {
        Kva(self.0.wrapping_add(offset))
    }

    /// Whether this is the null pointer.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Kva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kva {:#x}", self.0)
    }
}

impl fmt::Display for Kva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of guest RAM, in guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: Gpa,
    /// Length in bytes, never zero.
    pub len: u64,
}

/// A read of guest-physical memory that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// The range is not (wholly) RAM.
    #[error("no guest RAM at {at} ({len} bytes asked)")]
    NotRam {
        /// First address asked for.
        at: Gpa,
        /// Bytes asked for.
        len: usize,
    },
    /// The memory is a copy, or was mapped for reading alone.
    #[error("this memory cannot be written: it is no running machine's")]
    ReadOnly,
    /// The host could not map or read the memory behind the guest.
    #[error("cannot map guest RAM: {0}")]
    Host(String),
}

/// A view of a guest's physical memory.
///
/// Implementations copy on every read. A read either fills the whole buffer or fails. Only the
/// memory of a machine that runs can be written.
pub trait GuestMem: Send + Sync {
    /// The RAM there is, ascending and without overlaps.
    fn regions(&self) -> &[Region];

    /// Fills `buf` from guest-physical `at`.
    ///
    /// # Errors
    /// [`MemError::NotRam`] when any byte of the range is not RAM.
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError>;

    /// Writes all of `bytes` at guest-physical `at`. One, two, four or eight of them, at a multiple
    /// of their number, are one store; others may be seen half-written by a guest that runs.
    ///
    /// # Errors
    /// [`MemError::ReadOnly`], by default; [`MemError::NotRam`] when any byte of the range is not
    /// RAM. Nothing has been written then.
    fn store(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemError> {
        let _ = (at, bytes);
        Err(MemError::ReadOnly)
    }

    /// Makes later reads cheap: maps what the guest has already touched into this process.
    /// A hint, called outside of freezes; the default does nothing.
    fn prefault(&self) {}

    /// The parts of RAM that may hold something other than zeros, ascending. Searches read these
    /// alone: a page that the guest never touched costs the host a page once it is looked at.
    fn populated(&self) -> Vec<Region> {
        self.regions().to_vec()
    }

    /// Total RAM in bytes.
    fn size(&self) -> u64 {
        self.regions().iter().map(|r| r.len).sum()
    }
}

/// Guest RAM, mapped once: of files or memfds, and shared with the machine that runs on it, or of
/// this process alone.
pub struct MappedMem {
    // Before what backs it.
    mem: GuestMemoryMmap,
    regions: Vec<Region>,
    /// What backs each region.
    backing: Vec<Backing>,
    writable: bool,
}

/// What backs a region.
enum Backing {
    /// A file, and where in it the region starts.
    File(File, u64),
    /// Nothing but this process; `/proc/self/pagemap` tells which pages are there.
    Own(Own, Option<File>),
}

impl Backing {
    /// The runs of a region that hold something, as offsets into it; none where a file system
    /// cannot tell.
    fn populated(&self, len: u64) -> Vec<(u64, u64)> {
        match self {
            Backing::File(file, start) => {
                let (mut runs, mut at) = (Vec::new(), *start);
                let end = start + len;
                while let Some((data, hole)) = next_data(file, at).filter(|(data, _)| *data < end) {
                    runs.push((data - start, hole.min(end) - data));
                    at = hole;
                }
                runs
            }
            Backing::Own(own, Some(pages)) => {
                own.populated(pages).iter().map(|r| (r.start as u64, r.len() as u64)).collect()
            }
            Backing::Own(_, None) => vec![(0, len)],
        }
    }
}

impl MappedMem {
    /// Maps `file` read-only as guest RAM. `layout` gives each region with its offset in the file.
    ///
    /// # Errors
    /// [`MemError::Host`] when the kernel refuses the mapping or the layout overlaps itself.
    pub fn new(file: File, layout: &[(Region, u64)]) -> Result<Self, MemError> {
        let parts = layout.iter().map(|(region, offset)| {
            let file = file.try_clone().map_err(|e| MemError::Host(e.to_string()))?;
            Ok((*region, file, *offset))
        });
        Self::from_parts(parts.collect::<Result<_, MemError>>()?)
    }

    /// Maps regions, ascending, each from a file of its own (a machine with several NUMA nodes
    /// has one for each): region, file, offset in the file.
    ///
    /// # Errors
    /// As [`MappedMem::new`].
    pub fn from_parts(parts: Vec<(Region, File, u64)>) -> Result<Self, MemError> {
        Self::mapped(parts, libc::PROT_READ)
    }

    /// As [`MappedMem::from_parts`], for whoever makes a machine of it and fills it.
    ///
    /// # Errors
    /// As [`MappedMem::new`].
    pub fn writable(parts: Vec<(Region, File, u64)>) -> Result<Self, MemError> {
        Self::mapped(parts, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// The mapping itself.
    pub(crate) fn mapping(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// RAM of a machine that runs in this process, which nobody else has to have. Where the host
    /// gives huge pages, it is made of those: a guest then leaves for its first touch of 2 MiB
    /// rather than of 4 KiB.
    ///
    /// # Errors
    /// As [`MappedMem::new`].
    pub fn own(regions: Vec<Region>) -> Result<Self, MemError> {
        let pages = File::open("/proc/self/pagemap").ok();
        let mut parts = Vec::with_capacity(regions.len());
        for region in regions {
            let len = length(region)?;
            let own = Own::new(len).map_err(|e| host(&e))?;
            let pages = pages.as_ref().and_then(|pages| pages.try_clone().ok());
            let builder = MmapRegionBuilder::new(len)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: the mapping is that long and has these rights. It stays for as long as
            // `own`, which is kept beside the region and dropped after it.
            #[allow(unsafe_code)]
            let builder = unsafe { builder.with_raw_mmap_pointer(own.as_ptr()) };
            let map = builder.build().map_err(|e| host(&e))?;
            parts.push((region, map, Backing::Own(own, pages)));
        }
        Self::of(parts, true)
    }

    fn mapped(parts: Vec<(Region, File, u64)>, prot: i32) -> Result<Self, MemError> {
        let mut mapped = Vec::with_capacity(parts.len());
        for (region, file, offset) in parts {
            let shared = file.try_clone().map_err(|e| host(&e))?;
            let map = MmapRegionBuilder::new(length(region)?)
                .with_file_offset(FileOffset::new(shared, offset))
                .with_mmap_prot(prot)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(|e| host(&e))?;
            mapped.push((region, map, Backing::File(file, offset)));
        }
        Self::of(mapped, prot & libc::PROT_WRITE != 0)
    }

    fn of(parts: Vec<(Region, MmapRegion, Backing)>, writable: bool) -> Result<Self, MemError> {
        let mut mapped = Vec::with_capacity(parts.len());
        let (mut regions, mut backing) = (Vec::new(), Vec::new());
        for (region, map, behind) in parts {
            let guest = GuestRegionMmap::new(map, GuestAddress(region.start.0))
                .ok_or_else(|| MemError::Host("a region ends beyond the address space".into()))?;
            mapped.push(guest);
            regions.push(region);
            backing.push(behind);
        }
        let mem = GuestMemoryMmap::from_regions(mapped).map_err(|e| host(&e))?;
        Ok(MappedMem { mem, regions, backing, writable })
    }

    /// The runs of RAM that hold data, ascending; none where a file system cannot tell.
    fn extents(&self) -> Vec<Region> {
        let behind = self.regions.iter().zip(&self.backing);
        let runs = |(region, backing): (&Region, &Backing)| {
            let start = region.start.0;
            let runs = backing.populated(region.len);
            runs.into_iter().map(move |(at, len)| Region { start: Gpa(start + at), len })
        };
        behind.flat_map(runs).collect()
    }

    /// Populates the page tables of this process for a run of RAM.
    fn populate(&self, run: Region) {
        if let Ok(host) = self.mem.get_host_address(GuestAddress(run.start.0)) {
            let len = run.len as usize;
            // SAFETY: the range lies inside one region of `self.mem`, which stays mapped as
            // long as `self` lives; populating for reads changes no memory contents, and a
            // failure (an old kernel) only leaves the pages to be faulted in later.
            #[allow(unsafe_code)]
            unsafe {
                libc::madvise(host.cast(), len, libc::MADV_POPULATE_READ);
            }
        }
    }
}

fn host(e: &dyn fmt::Display) -> MemError {
    MemError::Host(e.to_string())
}

fn length(region: Region) -> Result<usize, MemError> {
    usize::try_from(region.len).map_err(|e| host(&e))
}

impl GuestMem for MappedMem {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        self.mem
            .read_slice(buf, GuestAddress(at.0))
            .map_err(|_| MemError::NotRam { at, len: buf.len() })
    }

    fn store(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemError> {
        if !self.writable {
            return Err(MemError::ReadOnly);
        }
        let (mem, to, order) = (&self.mem, GuestAddress(at.0), Ordering::Release);
        let not_ram = |_| MemError::NotRam { at, len: bytes.len() };
        if !mem.check_range(to, bytes.len()) {
            return Err(MemError::NotRam { at, len: bytes.len() });
        }
        let done = match *bytes {
            [a] => mem.store(a, to, order),
            [a, b] if at.0.is_multiple_of(2) => mem.store(u16::from_le_bytes([a, b]), to, order),
            [a, b, c, d] if at.0.is_multiple_of(4) => {
                mem.store(u32::from_le_bytes([a, b, c, d]), to, order)
            }
            [a, b, c, d, e, f, g, h] if at.0.is_multiple_of(8) => {
                mem.store(u64::from_le_bytes([a, b, c, d, e, f, g, h]), to, order)
            }
            _ => mem.write_slice(bytes, to),
        };
        done.map_err(not_ram)
    }

    /// Only pages that hold data are populated: touching a hole of a memfd would allocate it. What
    /// is this process's own is there once it holds data.
    fn prefault(&self) {
        self.extents().into_iter().for_each(|run| self.populate(run));
    }

    fn populated(&self) -> Vec<Region> {
        self.extents()
    }
}

/// The first run of data in a file at or after `at`, as offsets of its start and end.
fn next_data(file: &File, at: u64) -> Option<(u64, u64)> {
    let fd = file.as_raw_fd();
    let at = i64::try_from(at).ok()?;
    // SAFETY: lseek on a descriptor that `file` owns; no memory is passed. The file offset that
    // it moves is used by nobody (all access goes through the mapping).
    #[allow(unsafe_code)]
    let (data, hole) = unsafe {
        let data = libc::lseek(fd, at, libc::SEEK_DATA);
        (data, if data < 0 { -1 } else { libc::lseek(fd, data, libc::SEEK_HOLE) })
    };
    (hole > data).then_some((data as u64, hole as u64))
}

/// Memory made of single pages, for tests and small stored images: what is not there is not RAM.
#[derive(Clone, Default)]
pub struct FakeMem {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    regions: Vec<Region>,
}

const PAGE: usize = 4096;

impl FakeMem {
    /// Memory without any page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `bytes` at `at`, adding zeroed pages where there are none.
    pub fn write(&mut self, at: Gpa, bytes: &[u8]) {
        let mut gpa = at.0;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (gpa % PAGE as u64) as usize;
            let n = rest.len().min(PAGE - within);
            let page = self.pages.entry(gpa - within as u64).or_insert_with(|| Box::new([0; PAGE]));
            page[within..within + n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            gpa += n as u64;
        }
        self.regions = runs(self.pages.keys().copied());
    }
}

/// Merges ascending page addresses into regions.
fn runs(pages: impl Iterator<Item = u64>) -> Vec<Region> {
    let mut out: Vec<Region> = Vec::new();
    for page in pages {
        match out.last_mut() {
            Some(last) if last.start.0 + last.len == page => last.len += PAGE as u64,
            _ => out.push(Region { start: Gpa(page), len: PAGE as u64 }),
        }
    }
    out
}

impl GuestMem for FakeMem {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemError> {
        let len = buf.len();
        let mut done = 0;
        while done < len {
            let gpa = at.0.checked_add(done as u64).ok_or(MemError::NotRam { at, len })?;
            let within = (gpa % PAGE as u64) as usize;
            let n = (len - done).min(PAGE - within);
            let page =
                self.pages.get(&(gpa - within as u64)).ok_or(MemError::NotRam { at, len })?;
            buf[done..done + n].copy_from_slice(&page[within..within + n]);
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn fake_memory_reads_across_pages_and_refuses_holes() {
        let mut mem = FakeMem::new();
        mem.write(Gpa(0x1ffe), &[1, 2, 3, 4]);
        let mut buf = [0; 4];
        mem.read(Gpa(0x1ffe), &mut buf).unwrap();
        assert_eq!(buf, [1, 2, 3, 4]);
        assert_eq!(mem.regions(), [Region { start: Gpa(0x1000), len: 0x2000 }]);
        let err = mem.read(Gpa(0x2ffe), &mut buf).unwrap_err();
        assert_eq!(err.to_string(), "no guest RAM at 0x2ffe (4 bytes asked)");
        assert!(mem.read(Gpa(u64::MAX - 1), &mut buf).is_err());
    }

    #[test]
    fn mapped_memory_follows_the_file_and_its_layout() {
        let fd = rustix::fs::memfd_create("mem-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(0x4000).unwrap();
        file.write_all_at(b"low", 0x1000).unwrap();
        file.write_all_at(b"high", 0x2000).unwrap();
        let low = Region { start: Gpa(0), len: 0x2000 };
        let high = Region { start: Gpa(0x1_0000_0000), len: 0x2000 };
        let writer = file.try_clone().unwrap();
        let mem = MappedMem::new(file, &[(low, 0), (high, 0x2000)]).unwrap();
        mem.prefault();
        let page = |gpa| Region { start: Gpa(gpa), len: 0x1000 };
        assert_eq!(mem.populated(), [page(0x1000), page(0x1_0000_0000)]);
        let mut buf = [0; 4];
        mem.read(Gpa(0x1_0000_0000), &mut buf).unwrap();
        assert_eq!(&buf, b"high");
        mem.read(Gpa(0x1000), &mut buf[..3]).unwrap();
        assert_eq!(&buf[..3], b"low");
        writer.write_all_at(b"LOW", 0x1000).unwrap();
        mem.read(Gpa(0x1000), &mut buf[..3]).unwrap();
        assert_eq!(&buf[..3], b"LOW");
        assert!(mem.read(Gpa(0x2000), &mut buf).is_err(), "the gap is not RAM");
        assert!(mem.read(Gpa(0x1fff), &mut buf).is_err(), "a read may not leave its region");
        assert_eq!(mem.size(), 0x4000);
    }

    #[test]
    fn only_what_was_mapped_for_it_is_written_and_only_ram() {
        let memfd = || {
            let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let file = File::from(fd);
            file.set_len(0x2000).unwrap();
            file
        };
        let region = Region { start: Gpa(0x1000), len: 0x2000 };
        let mem = MappedMem::writable(vec![(region, memfd(), 0)]).unwrap();
        for len in [1, 2, 3, 4, 7, 8, 16] {
            for at in [0x1000, 0x1001, 0x1ffd, 0x2ff0] {
                let bytes: Vec<u8> = (1..=len).collect();
                mem.store(Gpa(at), &bytes).unwrap();
                let mut found = vec![0; bytes.len()];
                mem.read(Gpa(at), &mut found).unwrap();
                assert_eq!(found, bytes, "{len} bytes at {at:#x}");
            }
        }
        for (at, len) in [(0xfff, 1), (0xfff, 8), (0x2fff, 2), (0x2ff8, 16), (u64::MAX, 4)] {
            let error = mem.store(Gpa(at), &vec![0x99; len]).unwrap_err();
            assert_eq!(error, MemError::NotRam { at: Gpa(at), len }, "{len} bytes at {at:#x}");
        }
        let mut last = [0; 8];
        mem.read(Gpa(0x2ff8), &mut last).unwrap();
        assert!(!last.contains(&0x99), "nothing has been written then");
        let copy = MappedMem::from_parts(vec![(region, memfd(), 0)]).unwrap();
        let refused = "this memory cannot be written: it is no running machine's";
        assert_eq!(copy.store(Gpa(0x1000), &[1]).unwrap_err().to_string(), refused);
        let mut fake = FakeMem::new();
        fake.write(Gpa(0), &[1]);
        assert_eq!(fake.store(Gpa(0), &[2]), Err(MemError::ReadOnly));
    }

    #[test]
    fn memory_of_its_own_is_zeros_until_it_is_written() {
        const MIB: u64 = 1 << 20;
        let region = |start, len| Region { start: Gpa(start), len };
        let regions = vec![region(0, 6 * MIB), region(4096 * MIB, 4 * MIB)];
        let mem = MappedMem::own(regions.clone()).unwrap();
        assert_eq!(mem.regions(), regions);
        assert!(mem.populated().is_empty());
        let mut found = [1; 16];
        mem.read(Gpa(6 * MIB - 16), &mut found).unwrap();
        assert_eq!(found, [0; 16]);
        assert_eq!(mem.store(Gpa(6 * MIB - 4), &[9; 8]), {
            Err(MemError::NotRam { at: Gpa(6 * MIB - 4), len: 8 })
        });
        mem.store(Gpa(4099 * MIB), &[1, 2, 3, 4]).unwrap();
        mem.read(Gpa(4099 * MIB), &mut found[..4]).unwrap();
        assert_eq!(found[..4], [1, 2, 3, 4]);
        mem.prefault();
        let holds = |run: &Region| (run.start.0..run.start.0 + run.len).contains(&(4099 * MIB));
        assert!(mem.populated().iter().any(holds), "{:?}", mem.populated());
        assert!(MappedMem::own(vec![region(0, u64::MAX / 4)]).is_err());
    }

    #[test]
    fn regions_of_several_files_read_as_one_memory() {
        let memfd = |fill: u8| {
            let fd = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let file = File::from(fd);
            file.set_len(0x3000).unwrap();
            file.write_all_at(&[fill; 0x1000], 0x1000).unwrap();
            file
        };
        let region = |start| Region { start: Gpa(start), len: 0x2000 };
        let parts = vec![(region(0), memfd(1), 0), (region(0x2000), memfd(2), 0x1000)];
        let mem = MappedMem::from_parts(parts).unwrap();
        let mut buf = [0; 4];
        mem.read(Gpa(0x1ffe), &mut buf).unwrap();
        assert_eq!(buf, [1, 1, 2, 2], "a read crosses from one file to the next");
        let page = |gpa| Region { start: Gpa(gpa), len: 0x1000 };
        assert_eq!(mem.populated(), [page(0x1000), page(0x2000)]);
        let parts = vec![(region(0), memfd(1), 0), (region(0x1000), memfd(2), 0)];
        assert!(matches!(MappedMem::from_parts(parts), Err(MemError::Host(_))));
    }
}
