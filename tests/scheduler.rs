//! Headers and objects made for real kernels by real compilers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cryoscope::btf::{Btf, Kind, Shape, TypeId, Want};
use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels};
use cryoscope::scheduler::vmlinux;

const KERNELS: [&str; 3] = ["debian:6.12", "debian:7.2", "debian:7.3"];

fn cache() -> CacheDir {
    let env = std::env::var_os;
    CacheDir::locate(env("XDG_CACHE_HOME"), env("HOME")).expect("a place for the cache")
}

/// Kernels to test with, through the cache that the program uses.
fn kernel(spec: &str) -> KernelImage {
    let (cache, progress) = (cache(), Printed::to_stderr());
    Kernels::new(&cache, &progress).resolve(spec).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

fn kernel_btf(spec: &str) -> Arc<Btf> {
    let image = kernel(spec);
    Btf::parse(&image.btf_bytes().expect("BTF")).expect("valid BTF")
}

fn object_btf(vmlinux: &Path) -> Arc<Btf> {
    use object::{Object as _, ObjectSection as _};
    let elf = std::fs::read(vmlinux).expect("the kernel is readable");
    let file = object::File::parse(&*elf).expect("the kernel is an ELF file");
    let section = file.section_by_name(".BTF").expect("the kernel has BTF");
    Btf::parse(section.data().expect("the section has data")).expect("the BTF is valid")
}

/// The tag that the header gives to each struct and union: where names repeat, later ones get
/// a suffix.
fn tags(btf: &Btf) -> Vec<(TypeId, String)> {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut out = Vec::new();
    for id in 1..btf.len() {
        let (kind, name) = (btf.kind(id).unwrap(), btf.name(id));
        let enums = matches!(kind, Kind::Enum | Kind::Enum64);
        if name.is_empty() || !(enums || matches!(kind, Kind::Struct | Kind::Union)) {
            continue;
        }
        let n = seen.entry(name).and_modify(|n| *n += 1).or_insert(1);
        let suffix = if *n == 1 { String::new() } else { format!("___{n}") };
        if !enums {
            let keyword = if kind == Kind::Union { "union" } else { "struct" };
            out.push((id, format!("{keyword} {name}{suffix}")));
        }
    }
    out
}

/// Paths of all members that have a name and an address, through anonymous structs.
fn members(btf: &Btf, id: TypeId, base: u64, out: &mut Vec<(String, u64)>) {
    let shape = btf.shape(id).unwrap();
    let Shape::Struct(s) = &*shape else { return };
    for member in &s.members {
        let bit = base + u64::from(member.bit_offset);
        if member.name.is_empty() {
            members(btf, member.ty, bit, out);
        } else if member.bitfield_len.is_none() {
            out.push((member.name.clone(), bit / 8));
        }
    }
}

/// All members with their places in bits, bitfields too.
fn places(btf: &Btf, id: TypeId, base: u64, out: &mut Vec<(String, u64, Option<u32>)>) {
    let shape = btf.shape(id).unwrap();
    let Shape::Struct(s) = &*shape else { return };
    for member in &s.members {
        let bit = base + u64::from(member.bit_offset);
        if member.name.is_empty() {
            places(btf, member.ty, bit, out);
        } else {
            out.push((member.name.clone(), bit, member.bitfield_len));
        }
    }
}

fn compile(dir: &Path, source: &str, args: &[&str]) -> PathBuf {
    let (c, o) = (dir.join("t.c"), dir.join("t.o"));
    std::fs::write(&c, source).unwrap();
    let out = Command::new("clang-19")
        .args(["-target", "bpf", "-g", "-O2", "-std=gnu11", "-Wall", "-Werror", "-c"])
        .args(["-ferror-limit=200", "-Wno-microsoft-anon-tag"])
        .args(args)
        .arg("-o")
        .args([&o, &c])
        .output()
        .expect("clang runs");
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}", &errors[..errors.len().min(6000)]);
    o
}

#[test]
fn every_type_of_real_kernels_has_a_shape_and_a_name() {
    for spec in KERNELS {
        let btf = kernel_btf(spec);
        for id in 0..btf.len() {
            btf.shape(id).unwrap_or_else(|e| panic!("{spec}: {e}"));
            assert!(!btf.type_name(id).contains('<'), "{spec}: {}", btf.type_name(id));
        }
        let task = btf.find_c("struct task_struct").expect("tasks");
        let pid = btf.field(task, "pid").expect("a member");
        assert_eq!((pid.size, pid.bits, btf.type_name(pid.ty)), (4, None, "pid_t".to_string()));
        // Through an anonymous struct or union on all of them.
        btf.field(task, "rcu_node_entry.next").expect("a member");
    }
}

#[test]
fn the_header_lays_every_type_out_as_the_kernel_does() {
    for spec in KERNELS {
        let btf = kernel_btf(spec);
        let header = vmlinux::generate(&btf).expect("a header");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux.h"), &header).unwrap();

        let mut source = String::from("#include \"vmlinux.h\"\n");
        let tags = tags(&btf);
        assert!(tags.len() > 8_000, "{}", tags.len());
        for (id, tag) in &tags {
            let size = btf.size_of(*id).unwrap();
            let _ = writeln!(source, "_Static_assert(sizeof({tag}) == {size}, \"{tag}\");");
            let mut found = Vec::new();
            members(&btf, *id, 0, &mut found);
            for (name, offset) in found {
                let _ = writeln!(
                    source,
                    "_Static_assert(__builtin_offsetof({tag}, {name}) == {offset}, \"{tag} {name}\");"
                );
            }
        }
        compile(dir.path(), &source, &["-DBPF_NO_PRESERVE_ACCESS_INDEX"]);

        // Bitfields have no address, enumerators have suffixes where their names repeat: compare
        // what the compiler says of those.
        let mut source = String::from("#include \"vmlinux.h\"\n");
        let (mut bitfields, mut enums) = (Vec::new(), Vec::new());
        for (id, tag) in &tags {
            let mut want = Vec::new();
            places(&btf, *id, 0, &mut want);
            if want.iter().any(|p| p.2.is_some()) {
                let _ = writeln!(source, "{tag} *v{id};");
                bitfields.push((*id, tag, want));
            }
        }
        for id in (1..btf.len()).filter(|&id| !btf.name(id).is_empty()) {
            if let Shape::Enum(_) = &*btf.shape(id).unwrap()
                && btf.find(btf.name(id), Want::Enum) == Some(id)
            {
                let _ = writeln!(source, "enum {} e{id};", btf.name(id));
                enums.push(id);
            }
        }
        assert!(bitfields.len() > 200 && enums.len() > 500, "{} {}", bitfields.len(), enums.len());
        let ours = object_btf(&compile(dir.path(), &source, &[]));
        let var = |name: String| {
            let var = ours.find(&name, Want::Var).expect("the variable");
            let Shape::Var { ty, .. } = *ours.shape(var).unwrap() else { panic!("{name}") };
            ours.shape(ty).unwrap()
        };
        for (id, tag, want) in bitfields {
            let Shape::Ptr { to } = *var(format!("v{id}")) else { panic!("{tag}") };
            let mut have = Vec::new();
            places(&ours, to, 0, &mut have);
            assert_eq!(have, want, "{tag}");
        }
        for id in enums {
            let (want, have) = (btf.shape(id).unwrap(), var(format!("e{id}")));
            let (Shape::Enum(want), Shape::Enum(have)) = (&*want, &*have) else { panic!("{id}") };
            assert_eq!(have.size, want.size, "{}", want.name);
            let plain = |(name, value): &(String, i128)| {
                let name = name.split("___").next().unwrap().to_string();
                (name, *value & ((1i128 << (want.size * 8)) - 1))
            };
            let wanted: Vec<_> = want.variants.iter().map(plain).collect();
            let had = have.variants.iter().map(plain);
            // What stands in for an enum without enumerators.
            let had: Vec<_> = had.filter(|(name, _)| !name.starts_with("__empty_")).collect();
            assert_eq!(had, wanted, "{}", want.name);
        }
    }
}
