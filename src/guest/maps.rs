//! BPF maps through the bpf() syscall: held open beyond their scheduler's life and read entry by
//! entry. This is the reference against which what the host reads from RAM is compared.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cryoscope::wire::{Answer, HeldMap, Hex, Prog, Refusal, RefusalKind};
use libbpf_rs::libbpf_sys;

use crate::menagerie::Arena;
use crate::refuse;
use crate::sys::reason;
use crate::text::parse_list;

const MAX_MAPS: usize = 4096;
const MAX_KEYS: usize = 1 << 20;
/// Raw bytes of keys and values in one page; twice that as text, well within a frame.
const PAGE: usize = 1 << 20;
/// What an entry costs beside its bytes: quotes, commas, brackets.
const FRAMING: usize = 8;

/// Maps that are kept open.
#[derive(Default)]
pub(crate) struct Held {
    maps: Vec<(HeldMap, OwnedFd)>,
    /// Keys of the map that is being dumped, so that every page continues the same walk.
    walk: Option<(u32, Vec<Vec<u8>>)>,
    /// Arenas among them that are mapped here: the syscall does not read them.
    arenas: Vec<(u32, Arena)>,
    /// What maps refer to, and would lose if it were closed.
    open: Vec<OwnedFd>,
}

/// Ids of all maps there are now.
pub(crate) fn all_ids() -> BTreeSet<u32> {
    let (mut ids, mut id) = (BTreeSet::new(), 0);
    while ids.len() < MAX_MAPS {
        let mut next = 0;
        // SAFETY: `next` outlives the call, which writes one u32 there.
        #[allow(unsafe_code)]
        let result = unsafe { libbpf_sys::bpf_map_get_next_id(id, &raw mut next) };
        if result != 0 || !ids.insert(next) {
            break;
        }
        id = next;
    }
    ids
}

/// All programs there are now, with what the syscall says of them.
pub(crate) fn progs() -> Result<Answer, Refusal> {
    let (mut progs, mut id) = (Vec::new(), 0);
    while progs.len() < MAX_MAPS {
        let mut next = 0;
        // SAFETY: `next` outlives the call, which writes one u32 there.
        #[allow(unsafe_code)]
        let result = unsafe { libbpf_sys::bpf_prog_get_next_id(id, &raw mut next) };
        if result != 0 || next <= id {
            break;
        }
        id = next;
        match prog(id) {
            Ok(prog) => progs.push(prog),
            // It has gone meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => {
                let message = format!("cannot open program {id}: {}", reason(&e));
                return Err(refuse(RefusalKind::Kernel, message));
            }
        }
    }
    Ok(Answer::Progs(progs))
}

/// The descriptor that a call of libbpf gave, or its error.
///
/// # Safety
/// A descriptor must be new and owned by nobody else.
#[allow(unsafe_code)]
pub(crate) unsafe fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the caller vouches for it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of the object behind `fd`; `info` may ask for more.
///
/// # Safety
/// `T` is the kernel's struct for objects of that kind, and what `info` points at is as large as
/// it says.
#[allow(unsafe_code)]
unsafe fn describe<T>(fd: &OwnedFd, mut info: T) -> io::Result<T> {
    let mut len = mem::size_of_val(&info) as u32;
    let at = (&raw mut info).cast();
    // SAFETY: `info` outlives the call and `len` says how large it is; the caller vouches for the
    // rest.
    let result = unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), at, &raw mut len) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(info)
}

/// The text in an array that a NUL ends.
fn text_of(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn prog(id: u32) -> io::Result<Prog> {
    let mut maps = [0u32; 64];
    // SAFETY: takes a number; a descriptor that it gives is new and owned by nobody else. All
    // zeroes is a valid `bpf_prog_info`, and `maps` outlives the call that writes at most as many
    // ids there as `nr_map_ids` allows.
    #[allow(unsafe_code)]
    let info = unsafe {
        let fd = owned(libbpf_sys::bpf_prog_get_fd_by_id(id))?;
        let mut info: libbpf_sys::bpf_prog_info = mem::zeroed();
        info.nr_map_ids = maps.len() as u32;
        info.map_ids = maps.as_mut_ptr() as u64;
        describe(&fd, info)?
    };
    Ok(Prog {
        id,
        name: text_of(&info.name),
        kind: info.type_,
        maps: maps[..maps.len().min(info.nr_map_ids as usize)].to_vec(),
        run_count: info.run_cnt,
        run_time_ns: info.run_time_ns,
    })
}

fn open(id: u32) -> io::Result<(HeldMap, OwnedFd)> {
    // SAFETY: takes a number; a descriptor that it gives is new and owned by nobody else.
    #[allow(unsafe_code)]
    let fd = unsafe { owned(libbpf_sys::bpf_map_get_fd_by_id(id))? };
    Ok((describe_map(&fd)?, fd))
}

/// A map as the syscall describes it.
pub(crate) fn describe_map(fd: &OwnedFd) -> io::Result<HeldMap> {
    // SAFETY: all zeroes is a valid `bpf_map_info`, which has no pointers.
    #[allow(unsafe_code)]
    let info = unsafe { describe(fd, mem::zeroed::<libbpf_sys::bpf_map_info>())? };
    Ok(HeldMap {
        id: info.id,
        name: text_of(&info.name),
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

impl Held {
    /// A map that is held.
    pub(crate) fn find(&self, id: u32) -> Option<(&HeldMap, &OwnedFd)> {
        self.maps.iter().find(|(info, _)| info.id == id).map(|(info, fd)| (info, fd))
    }

    /// Holds another map.
    pub(crate) fn keep(&mut self, map: HeldMap, fd: OwnedFd) {
        self.maps.push((map, fd));
    }

    /// Reads an arena's pages where they are mapped.
    pub(crate) fn keep_arena(&mut self, id: u32, arena: Arena) {
        self.arenas.push((id, arena));
    }

    /// Keeps a socket or a program open.
    pub(crate) fn keep_open(&mut self, fd: OwnedFd) {
        self.open.push(fd);
    }

    /// Opens every map that is not in `before`, and keeps it.
    pub(crate) fn hold(&mut self, before: &BTreeSet<u32>) -> Result<Answer, Refusal> {
        self.walk = None;
        self.maps.clear();
        self.arenas.clear();
        self.open.clear();
        for id in all_ids().difference(before) {
            match open(*id) {
                Ok(held) => self.maps.push(held),
                // It has gone meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => {
                    let message = format!("cannot open map {id}: {}", reason(&e));
                    return Err(refuse(RefusalKind::Kernel, message));
                }
            }
        }
        Ok(Answer::Maps(self.maps.iter().map(|(info, _)| info.clone()).collect()))
    }

    /// One page of the entries of a held map, `skip` entries in.
    pub(crate) fn page(&mut self, id: u32, skip: u64) -> Result<Answer, Refusal> {
        let Some((info, fd)) = self.maps.iter().find(|(info, _)| info.id == id) else {
            let known: Vec<u32> = self.maps.iter().map(|(info, _)| info.id).collect();
            let message = format!("map {id} is not held; held are: {known:?}");
            return Err(refuse(RefusalKind::NotFound, message));
        };
        let what = format!("map {id} (\"{}\", kind {})", info.name, info.kind);
        let failed = |doing: &str, e: &io::Error| {
            refuse(RefusalKind::Kernel, format!("{what}: cannot {doing}: {}", reason(e)))
        };
        let arena = self.arenas.iter().find(|(of, _)| *of == id).map(|(_, arena)| arena);
        let size = value_size(info).map_err(|e| failed("size its values", &e))?;
        if skip == 0 || self.walk.as_ref().is_none_or(|(walked, _)| *walked != id) {
            let keys = arena.map_or_else(|| keys(info, fd), |arena| Ok(arena.keys()));
            let keys = keys.map_err(|e| failed("list its keys", &e))?;
            self.walk = Some((id, keys));
        }
        let keys = self.walk.as_ref().map(|(_, keys)| &keys[..]).unwrap_or_default();
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, skip as usize);
        while let Some(key) = keys.get(at) {
            if bytes + key.len() + size + FRAMING > PAGE && !entries.is_empty() {
                break;
            }
            at += 1;
            match arena.map_or_else(|| lookup(fd, key, size), |arena| arena.page(key)) {
                Ok(value) => {
                    bytes += key.len() + value.len() + FRAMING;
                    entries.push((Hex(key.clone()), Hex(value)));
                }
                // Deleted meanwhile. It still counts as skipped.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(failed("read an entry", &e)),
            }
        }
        Ok(Answer::MapPage { entries, next: at as u64, more: at < keys.len() })
    }
}

fn keys(info: &HeldMap, fd: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    // The kernel copies `key_size` bytes to and fro; hash maps refuse a size of zero.
    let mut next = vec![0; info.key_size.max(4) as usize];
    loop {
        let last = keys.last().map_or(std::ptr::null(), |k| k.as_ptr());
        // SAFETY: both buffers hold the map's `key_size` bytes; a null key asks for the first.
        #[allow(unsafe_code)]
        let result = unsafe {
            libbpf_sys::bpf_map_get_next_key(fd.as_raw_fd(), last.cast(), next.as_mut_ptr().cast())
        };
        match -result {
            0 => keys.push(next[..info.key_size as usize].to_vec()),
            libc::ENOENT => return Ok(keys),
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        if keys.len() > MAX_KEYS {
            return Err(io::Error::other(format!("it has more than {MAX_KEYS} entries")));
        }
    }
}

fn lookup(fd: &OwnedFd, key: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; size];
    // SAFETY: `key` holds the map's `key_size` bytes and `value` as many as the kernel writes for
    // this kind of map (see `value_size`).
    #[allow(unsafe_code)]
    let result = unsafe {
        let at = value.as_mut_ptr().cast();
        libbpf_sys::bpf_map_lookup_elem(fd.as_raw_fd(), key.as_ptr().cast(), at)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::from_raw_os_error(-result)) }
}

/// How many CPUs this machine can have.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    match parse_list(&list).map_or(0, |l| l.len()) {
        0 => Err(io::Error::other("how many CPUs are possible is unknown")),
        cpus => Ok(cpus),
    }
}

/// Bytes that one lookup writes (kernel: `bpf_map_value_size` in `kernel/bpf/syscall.c`): kinds
/// with a value per CPU give one for each *possible* CPU, rounded up to 8 bytes; kinds that hold
/// descriptors give ids, for which the kernel demands values of 4 bytes.
fn value_size(info: &HeldMap) -> io::Result<usize> {
    use libbpf_sys as b;
    let one = info.value_size as usize;
    let size = match info.kind {
        b::BPF_MAP_TYPE_PERCPU_HASH
        | b::BPF_MAP_TYPE_LRU_PERCPU_HASH
        | b::BPF_MAP_TYPE_PERCPU_ARRAY
        | b::BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE => one.next_multiple_of(8) * possible_cpus()?,
        _ => one,
    };
    if size > 3 * PAGE / 2 {
        return Err(io::Error::other(format!("a value has {size} bytes, too many for a frame")));
    }
    Ok(size)
}
