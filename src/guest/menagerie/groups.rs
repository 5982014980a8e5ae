//! Cgroups in maps, and what programs that are attached to them keep.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libbpf_rs::libbpf_sys as b;

use super::{Entries, Hex, Maker, Spec, code, fact, noise, update};
use crate::cgroup::MOUNT;

/// Cgroups that are made.
const NAMES: [&str; 4] = ["/made", "/made/a", "/made/a/deep one", "/made/b"];
/// How programs are attached.
const WAYS: [b::bpf_attach_type; 2] = [b::BPF_CGROUP_INET_INGRESS, b::BPF_CGROUP_INET_EGRESS];

/// A cgroup: its directory and its id.
fn group(name: &str) -> io::Result<(OwnedFd, u64)> {
    let dir = format!("{MOUNT}{name}");
    if !Path::new(&dir).is_dir() {
        fs::create_dir(&dir)?;
    }
    let dir = File::open(dir)?;
    let id = dir.metadata()?.ino();
    Ok((dir.into(), id))
}

impl Maker<'_> {
    pub(super) fn groups(&mut self) {
        let kind = b::BPF_MAP_TYPE_CGROUP_ARRAY;
        let spec = Spec { name: "cgroups", kind, key: 4, value: 4, entries: 9, flags: 0 };
        self.map(spec, |map, _| {
            let mut entries = Entries::new();
            for (i, name) in ["/"].iter().chain(&NAMES).enumerate() {
                let (dir, id) = group(name)?;
                let key = (2 * i as u32 % 9).to_le_bytes();
                update(map, &key, &dir.as_raw_fd().to_le_bytes())?;
                entries.push((Hex(key.into()), vec![fact("", name), fact("details.id", id)]));
            }
            Ok(entries)
        });
        let cpus = crate::maps::possible_cpus().unwrap_or(0);
        let (shared, per_cpu) =
            (b::BPF_MAP_TYPE_CGROUP_STORAGE, b::BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
        for (name, kind, key, size) in [
            ("group_ways", shared, 16, 45),
            ("groups_all", shared, 8, 45),
            ("cpu_ways", per_cpu, 16, 48 * cpus),
            ("cpu_all", per_cpu, 8, 48 * cpus),
        ] {
            let spec = Spec { name, kind, key, value: 45, ..Spec::default() };
            self.map(spec, |map, _| attach(map, key as usize, size));
        }
    }
}

/// Attaches a program to cgroups in both ways, and fills what it keeps for each.
fn attach(map: &OwnedFd, key_size: usize, size: usize) -> io::Result<Entries> {
    let prog = code::has_storage(map)?;
    let mut entries = Entries::new();
    for (i, name) in NAMES.iter().enumerate() {
        let (dir, id) = group(name)?;
        for way in WAYS {
            // SAFETY: takes numbers, two of which are descriptors that are open.
            #[allow(unsafe_code)]
            let result = unsafe {
                b::bpf_prog_attach(prog.as_raw_fd(), dir.as_raw_fd(), way, b::BPF_F_ALLOW_MULTI)
            };
            if result != 0 {
                return Err(io::Error::from_raw_os_error(-result));
            }
            let mut key = [0; 16];
            key[..8].copy_from_slice(&id.to_le_bytes());
            let mut facts = vec![fact("key.cgroup_inode_id", id)];
            if key_size == 16 {
                key[8..12].copy_from_slice(&way.to_le_bytes());
                let word = if way == WAYS[0] { "INGRESS" } else { "EGRESS" };
                facts.push(fact("key.attach_type", format!("BPF_CGROUP_INET_{word}")));
            } else {
                facts = vec![fact("key", id)];
            }
            let value: Vec<u8> = noise(100 * i as u64 + u64::from(way)).take(size).collect();
            update(map, &key[..key_size], &value)?;
            entries.push((Hex(key[..key_size].into()), facts));
        }
    }
    Ok(entries)
}
