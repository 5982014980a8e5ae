//! Where a scheduler belongs that goes below another one: to the cgroup whose id stands in the
//! member `sub_cgroup_id` of its struct_ops (kernel: `scx_sub_enable_workfn` in
//! `kernel/sched/ext`, from 7.1 on). A cgroup's id is known only where the cgroup is, so it is
//! put in between opening and loading.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cryoscope::wire::{Refusal, RefusalKind};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{MemberAttr, Struct};
use libbpf_rs::{AsRawLibbpf, MapType, OpenMapMut, OpenObject, libbpf_sys};

use crate::cgroup::MOUNT;
use crate::loader::cause;
use crate::refuse;
use crate::sys::reason;

const MEMBER: &str = "sub_cgroup_id";

/// Writes the id of the cgroup at `cgroup`, a path in the cgroup hierarchy such as `/lab/hot`, into
/// every scheduler of the object; the id.
pub(crate) fn aim(path: &str, object: &mut OpenObject, cgroup: &str) -> Result<u64, Refusal> {
    let id = id_of(cgroup)?;
    let btf = Btf::from_path(path).map_err(|e| {
        refuse(RefusalKind::Invalid, format!("cannot read the types of {path}: {}", cause(&e)))
    })?;
    let mut aimed = false;
    for mut map in object.maps_mut() {
        if map.map_type() != MapType::StructOps {
            continue;
        }
        let Some(place) = place_in(&btf, &map) else { continue };
        let value = map.initial_value_mut().and_then(|value| value.get_mut(place..));
        if let Some(target) = value.and_then(|rest| rest.first_chunk_mut()) {
            *target = id.to_ne_bytes();
            aimed = true;
        }
    }
    if aimed {
        return Ok(id);
    }
    let message = format!(
        "no struct_ops of {path} has the member {MEMBER}, so it cannot be attached to a cgroup; \
         kernels from 7.1 on have it"
    );
    Err(refuse(RefusalKind::Invalid, message))
}

/// Where the member lies in a map's value: the object's own type of that value, of whichever form
/// or flavour, as libbpf has found it.
fn place_in(btf: &Btf<'_>, map: &OpenMapMut<'_>) -> Option<usize> {
    // SAFETY: the map is open as long as it is borrowed; the call reads a member of it.
    #[allow(unsafe_code)]
    let id = unsafe { libbpf_sys::bpf_map__btf_value_type_id(map.as_libbpf_object().as_ptr()) };
    let ops = btf.type_by_id::<Struct<'_>>(id.into())?;
    let member = ops.iter().find(|member| member.name.is_some_and(|name| name == MEMBER))?;
    match member.attr {
        MemberAttr::Normal { offset } => Some(offset as usize / 8),
        MemberAttr::BitField { .. } => None,
    }
}

/// The number by which the kernel knows a cgroup: that of its directory's inode (`cgroup_id` and
/// `kernfs_ino`, which are one where inode numbers have 64 bits).
fn id_of(cgroup: &str) -> Result<u64, Refusal> {
    let dir = PathBuf::from(format!("{MOUNT}/{}", cgroup.trim_matches('/')));
    let found = fs::metadata(dir.join("cgroup.procs")).and_then(|_| fs::metadata(&dir));
    let found = found.map_err(|e| {
        let message =
            format!("no cgroup {cgroup}: {} ({MOUNT} has those that there are)", reason(&e));
        refuse(RefusalKind::NotFound, message)
    })?;
    Ok(found.ino())
}
