//! Storage that hangs on something else: tasks, cgroups, inodes, sockets.
//!
//! ```text
//! bpf_local_storage_map.buckets[] ──map_node──▶ elem ──local_storage──▶ owner: the task, the cgroup, ..
//! ```
//!
//! The kernel has pointers where a key would be. A task's key is its id; the others' is text.

use std::collections::HashMap;

use super::copy::Budget;
use super::kinds::{Found, text};
use super::layout::{At, Finder};
use super::rows::Rows;
use super::sock::{INET, INET6, SockLayout};
use super::{BpfState, MapInfo, kind};
use crate::btf::Btf;
use crate::introspect::contents::{Details, Values};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::introspect::sched::Cgroup;
use crate::introspect::sched::layout::CgroupNode;
use crate::mem::Kva;

type Layout<T> = Result<T, IntrospectError>;

/// Bytes of a file's name.
const MAX_NAME: usize = 256;

/// `struct bpf_local_storage_map` and what hangs off it (include/linux/bpf_local_storage.h).
pub(crate) struct StorageLayout {
    buckets: At,
    bucket_log: At,
    bucket_size: usize,
    bucket_head: usize,
    elem_node: u64,
    elem_storage: At,
    elem_value: u64,
    /// Which of its lists the element has left (since 7.1); not zero while it is being freed.
    elem_state: Option<At>,
    owner: At,
    task_pid: At,
    cgroup: Layout<CgroupNode>,
    inode: Layout<InodeLayout>,
    sock: Layout<OwningSock>,
}

fn offset(f: &Finder<'_>, path: &str) -> Layout<u64> {
    f.at(path).map(|at| at.offset as u64)
}

/// From a cgroup to its path.
pub(super) fn cgroup_node(btf: &Btf) -> Layout<CgroupNode> {
    let cgroup = Finder::new(btf, "struct cgroup")?;
    let node = Finder::new(btf, "struct kernfs_node")?;
    CgroupNode::new(|path| offset(&cgroup, path), |path| offset(&node, path))
}

impl StorageLayout {
    pub(super) fn new(btf: &Btf) -> Layout<Self> {
        let f = Finder::new(btf, "struct bpf_local_storage_map")?;
        let bucket = Finder::new(btf, "struct bpf_local_storage_map_bucket")?;
        let elem = Finder::new(btf, "struct bpf_local_storage_elem")?;
        Ok(StorageLayout {
            buckets: f.number("buckets")?,
            bucket_log: f.number("bucket_log")?,
            bucket_size: bucket.size.max(1),
            bucket_head: bucket.at("list")?.offset,
            elem_node: offset(&elem, "map_node")?,
            elem_storage: elem.number("local_storage")?,
            elem_value: offset(&elem, "sdata.data")?,
            elem_state: elem.number("state.counter").ok(),
            owner: Finder::new(btf, "struct bpf_local_storage")?.number("owner")?,
            task_pid: Finder::new(btf, "struct task_struct")?.number("pid")?,
            cgroup: cgroup_node(btf),
            inode: InodeLayout::new(btf),
            sock: OwningSock::new(btf),
        })
    }
}

/// `struct inode`, `struct super_block`, `struct dentry` (include/linux/fs.h, dcache.h).
struct InodeLayout {
    superblock: At,
    number: At,
    first_alias: At,
    device: At,
    /// From an alias to the dentry's name.
    alias: u64,
    name: At,
}

impl InodeLayout {
    fn new(btf: &Btf) -> Layout<Self> {
        let inode = Finder::new(btf, "struct inode")?;
        let dentry = Finder::new(btf, "struct dentry")?;
        // Out of the union d_u since 7.2.
        let alias = dentry.at("d_alias").or_else(|_| dentry.at("d_u.d_alias"))?;
        Ok(InodeLayout {
            superblock: inode.number("i_sb")?,
            number: inode.number("i_ino")?,
            first_alias: inode.number("i_dentry.first")?,
            device: Finder::new(btf, "struct super_block")?.number("s_dev")?,
            alias: alias.offset as u64,
            name: dentry.number("d_name.name")?,
        })
    }
}

/// A socket and, where it is known, the inode of its file.
struct OwningSock {
    sock: SockLayout,
    inode: Option<At>,
}

impl OwningSock {
    fn new(btf: &Btf) -> Layout<Self> {
        let inode = || {
            let whole = Finder::new(btf, "struct socket_alloc").ok()?;
            (whole.at("socket").ok()?.offset == 0).then(|| whole.number("vfs_inode.i_ino").ok())?
        };
        Ok(OwningSock { sock: SockLayout::new(btf)?, inode: inode() })
    }
}

/// Keys that have come up, and in which row.
type Known = HashMap<Vec<u8>, usize>;

/// Whose an element is: its key, and what else is known.
struct Owner {
    key: Vec<u8>,
    details: Details,
}

impl From<u32> for Owner {
    fn from(id: u32) -> Self {
        Owner { key: id.to_le_bytes().into(), details: Details::new() }
    }
}

impl Kernel {
    /// All elements of a storage map, by whom they belong to.
    pub(super) fn storage(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let layout = state.layouts.kinds.storage.as_ref().map_err(text)?;
        let number = |at: At| self.member(map.kva, at).map_err(text);
        let (buckets, log) = (Kva(number(layout.buckets)?), number(layout.bucket_log)?);
        if log > 24 {
            return Err(format!("it claims 2^{log} buckets"));
        }
        let size = map.value_size as usize;
        let ids = map.kind.number == kind::TASK_STORAGE;
        let keys = if ids { Values::empty(4) } else { Values::uneven() };
        let mut rows = Rows::of(Some(keys), Values::empty(size));
        let (mut known, mut value) = (Known::new(), vec![0; size]);
        for bucket in 0..1u64 << log {
            if let Err(e) = budget.take(layout.bucket_size as u64) {
                rows.incomplete(e);
                break;
            }
            let head = buckets.offset(bucket * layout.bucket_size as u64);
            let head = head.offset(layout.bucket_head as u64);
            let limit = (budget.left() / (size as u64 + 1)).min(1 << 20) as usize;
            for node in rows.walked_list(self, head, limit) {
                if let Err(e) = budget.take(size as u64 + 4) {
                    rows.incomplete(e);
                    return Ok(rows.into());
                }
                let elem = Kva(node.0.wrapping_sub(layout.elem_node));
                let into = (&mut rows, &mut known);
                if let Err(e) = self.element(layout, map, elem, &mut value, into) {
                    rows.incomplete(e);
                }
            }
        }
        Ok(rows.into())
    }

    /// One element, if it still belongs to something.
    fn element(
        &self,
        layout: &StorageLayout,
        map: &MapInfo,
        elem: Kva,
        value: &mut [u8],
        (rows, known): (&mut Rows, &mut Known),
    ) -> Result<(), String> {
        let storage = Kva(self.member(elem, layout.elem_storage).map_err(text)?);
        let owner = match storage.is_null() {
            true => Kva(0),
            false => Kva(self.member(storage, layout.owner).map_err(text)?),
        };
        if owner.is_null() {
            rows.torn("an element has lost its owner: it is being freed".into());
            return Ok(());
        }
        let found = match map.kind.number {
            kind::CGRP_STORAGE => self.cgroup_owner(layout, owner)?,
            kind::INODE_STORAGE => self.inode_owner(layout, owner)?,
            kind::SK_STORAGE => self.sock_owner(layout, owner)?,
            _ => Owner::from(self.member(owner, layout.task_pid).map_err(text)? as u32),
        };
        self.read(elem.offset(layout.elem_value), value).map_err(text)?;
        rows.push(&found.key, value);
        if layout.elem_state.is_some_and(|at| self.member(elem, at).is_ok_and(|n| n != 0)) {
            rows.torn_row("it is being freed".into());
        }
        let row = rows.len() - 1;
        if let Some(other) = known.insert(found.key, row) {
            let why = "another entry has the same key: its owner is gone and something new has \
                       its number or name";
            rows.torn_at(other, why.into());
            rows.torn_at(row, why.into());
        }
        if !found.details.is_empty() {
            rows.row_details(found.details);
        }
        Ok(())
    }

    /// A cgroup's path and id.
    pub(super) fn cgroup_path(&self, layout: &StorageLayout, at: Kva) -> Result<Cgroup, String> {
        let nodes = layout.cgroup.as_ref().map_err(text)?;
        let cgroup = self.cgroup_at(nodes, at);
        cgroup.ok_or_else(|| format!("the path of the cgroup at {at} is unreadable"))
    }

    /// A cgroup: its path from the root, and its id.
    fn cgroup_owner(&self, layout: &StorageLayout, at: Kva) -> Result<Owner, String> {
        let cgroup = self.cgroup_path(layout, at)?;
        Ok(Owner { key: cgroup.path.into_bytes(), details: vec![("id", cgroup.id.into())] })
    }

    /// An inode: `8:1:4711`, and a name that it has.
    fn inode_owner(&self, layout: &StorageLayout, at: Kva) -> Result<Owner, String> {
        let layout = layout.inode.as_ref().map_err(text)?;
        let member = |base, at| self.member(base, at).map_err(text);
        let device = member(Kva(member(at, layout.superblock)?), layout.device)?;
        let number = member(at, layout.number)?;
        // MINORBITS of include/linux/kdev_t.h.
        let (major, minor) = (device >> 20, device & 0xf_ffff);
        let mut details =
            vec![("device", format!("{major}:{minor}").into()), ("ino", number.into())];
        let alias = Kva(member(at, layout.first_alias)?);
        if !alias.is_null() {
            let dentry = Kva(alias.0.wrapping_sub(layout.alias));
            let name = Kva(member(dentry, layout.name)?);
            details.push(("name", self.read_cstr(name, MAX_NAME).map_err(text)?.into()));
        }
        Ok(Owner { key: format!("{major}:{minor}:{number}").into_bytes(), details })
    }

    /// A socket: `inet 127.0.0.1:80 > 10.0.0.1:5000 inode 4711`, and the same in parts.
    fn sock_owner(&self, layout: &StorageLayout, at: Kva) -> Result<Owner, String> {
        let layout = layout.sock.as_ref().map_err(text)?;
        let sock = self.sock(&layout.sock, at).map_err(text)?;
        let family = match sock.family {
            1 => "unix".to_owned(),
            INET => "inet".to_owned(),
            INET6 => "inet6".to_owned(),
            16 => "netlink".to_owned(),
            17 => "packet".to_owned(),
            other => format!("family {other}"),
        };
        let mut key = family.clone();
        let mut details = vec![("family", family.into())];
        if let Some((local, remote)) = sock.ends {
            key.push_str(&format!(" {local} > {remote}"));
            let ends = [("local", local), ("remote", remote)];
            details.extend(ends.map(|(name, end)| (name, end.to_string().into())));
        }
        for (name, n) in [("type", sock.kind), ("protocol", sock.protocol), ("state", sock.state)] {
            details.push((name, u64::from(n).into()));
        }
        let cookie = sock.cookie;
        let inode = match layout.inode {
            Some(inode) if !sock.socket.is_null() => {
                self.member(sock.socket, inode).map_err(text)?
            }
            _ => 0,
        };
        match (inode, cookie) {
            (0, 0) => {}
            (0, cookie) => key.push_str(&format!(" cookie {cookie}")),
            (inode, _) => key.push_str(&format!(" inode {inode}")),
        }
        let numbers = [("inode", inode), ("cookie", cookie)];
        details.extend(numbers.into_iter().filter(|(_, n)| *n != 0).map(|(s, n)| (s, n.into())));
        Ok(Owner { key: key.into_bytes(), details })
    }
}
