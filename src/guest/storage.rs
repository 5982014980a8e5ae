//! Values that hang on sockets and files, for tests of the truth.

use std::fs::{self, File};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

use cryoscope::wire::{Answer, HeldMap, Hex, Refusal, RefusalKind};
use libbpf_rs::libbpf_sys as b;
use rustix::fs::{fstat, major, minor};

use crate::maps::Held;
use crate::refuse;
use crate::sys::reason;

/// Where files are made.
const DIR: &str = "/tmp/cryoscope-storage";

impl Held {
    /// Makes owners, puts a value into the storage of each, and tells both.
    pub(crate) fn store(&mut self, id: u32, count: u32) -> Result<Answer, Refusal> {
        let stored = self.put(id, count);
        stored.map_err(|e| {
            let message = format!("map {id} cannot be filled: {}", reason(&e));
            refuse(RefusalKind::Kernel, message)
        })
    }

    fn put(&mut self, id: u32, count: u32) -> io::Result<Answer> {
        let (info, fd) = self.find(id).ok_or(io::ErrorKind::NotFound)?;
        let mut entries = Vec::new();
        let mut made = Vec::new();
        for n in 0..count {
            let (owner, key) = match info.kind {
                b::BPF_MAP_TYPE_SK_STORAGE => socket(n)?,
                b::BPF_MAP_TYPE_INODE_STORAGE => file(n)?,
                _ => return Err(io::ErrorKind::Unsupported.into()),
            };
            let value = value(info, n);
            update(fd, &owner, &value)?;
            entries.push((Hex(key.into_bytes()), Hex(value)));
            made.push(owner);
        }
        made.into_iter().for_each(|owner| self.keep_open(owner));
        Ok(Answer::MapPage { entries, next: u64::from(count), more: false })
    }
}

fn value(info: &HeldMap, n: u32) -> Vec<u8> {
    let byte = |i: u32| (n.wrapping_mul(0x9e37_79b1).wrapping_add(i.wrapping_mul(31)) >> 8) as u8;
    (0..info.value_size).map(byte).collect()
}

/// A socket, and what the host calls it. Every other one is connected.
fn socket(n: u32) -> io::Result<(OwnedFd, String)> {
    let any = if n.is_multiple_of(3) { "[::1]:0" } else { "127.0.0.1:0" };
    let socket = UdpSocket::bind(any)?;
    let local = socket.local_addr()?;
    let mut remote = if local.is_ipv6() { "[::]:0".to_owned() } else { "0.0.0.0:0".to_owned() };
    if n % 2 == 1 {
        socket.connect(local)?;
        remote = local.to_string();
    }
    let inode = fstat(&socket)?.st_ino;
    let family = if local.is_ipv6() { "inet6" } else { "inet" };
    Ok((socket.into(), format!("{family} {local} > {remote} inode {inode}")))
}

/// A file, and what the host calls it.
fn file(n: u32) -> io::Result<(OwnedFd, String)> {
    fs::create_dir_all(DIR)?;
    let file = File::create(format!("{DIR}/file-{n}"))?;
    let stat = fstat(&file)?;
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    Ok((file.into(), format!("{major}:{minor}:{}", stat.st_ino)))
}

fn update(map: &OwnedFd, owner: &OwnedFd, value: &[u8]) -> io::Result<()> {
    let key = owner.as_raw_fd();
    // SAFETY: the key is a descriptor, as these kinds want it, and the value has the map's size.
    #[allow(unsafe_code)]
    let result = unsafe {
        let (key, value) = ((&raw const key).cast(), value.as_ptr().cast());
        b::bpf_map_update_elem(map.as_raw_fd(), key, value, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}
