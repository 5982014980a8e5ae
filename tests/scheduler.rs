//! Headers and objects made for real kernels by real compilers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::json;

use cryoscope::btf::{Btf, Kind, Shape, TypeId, Want};
use cryoscope::kernel::progress::Printed;
use cryoscope::kernel::{CacheDir, KernelImage, Kernels};
use cryoscope::scheduler::{AttachPlan, Patch, SchedulerSpec, Toolchain, prepare, vmlinux};

/// Those that can run schedulers, and one that cannot.
const SCHED_EXT: [&str; 2] = ["debian:7.2", "debian:7.3"];
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

fn toolchain() -> Toolchain {
    Toolchain::new(None, std::env::var_os("PATH"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn spec(src: &str) -> SchedulerSpec {
    SchedulerSpec { src: src.into(), base_dir: root().into(), ..SchedulerSpec::default() }
}

fn clang(dir: &Path, source: &str, args: &[&str]) -> PathBuf {
    let (c, o) = (dir.join("t.c"), dir.join("t.o"));
    std::fs::write(&c, source).unwrap();
    let out = Command::new(toolchain().clang().expect("looked for").expect("a compiler").path)
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
        clang(dir.path(), &source, &["-DBPF_NO_PRESERVE_ACCESS_INDEX"]);

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
        let ours = object_btf(&clang(dir.path(), &source, &[]));
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

const FIFO: &str = "examples/schedulers/fifo.bpf.c";

#[test]
fn a_scheduler_is_compiled_once_for_each_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CacheDir::at(dir.path().join("cache"));
    // The real compiler, and a note of every run.
    let real = toolchain().clang().unwrap().expect("a compiler").path;
    let (wrapper, runs) = (dir.path().join("clang"), dir.path().join("runs"));
    let script = format!("#!/bin/sh\necho >> {}\nexec {} \"$@\"\n", runs.display(), real.display());
    // Written by another process, so that no fork in between keeps it open for writing.
    let write = "printf %s \"$1\" > \"$0\" && chmod +x \"$0\"";
    let status = Command::new("sh").args(["-c", write]).arg(&wrapper).arg(script).status();
    assert!(status.unwrap().success());
    let tools = Toolchain::new(Some(wrapper), None);
    let count = || std::fs::read_to_string(&runs).unwrap_or_default().lines().count();

    let spec = SchedulerSpec {
        rodata: [("slice_ns", json!(7)), ("direct_local", json!(false))]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        ..spec(FIFO)
    };
    let mut objects = Vec::new();
    for (i, name) in SCHED_EXT.into_iter().enumerate() {
        let kernel = kernel(name);
        let ready = prepare(&spec, &kernel, &cache, &tools).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(count(), 2 * (i + 1), "asked for its version and run");
        assert_eq!((ready.name.as_str(), ready.log.as_str()), ("fifo", ""));
        let patch = |offset, bytes: &[u8]| Patch {
            section: ".rodata".into(),
            offset,
            bytes: bytes.to_vec(),
        };
        assert_eq!(
            ready.attach,
            Some(AttachPlan::Object {
                guest_path: "/scheduler/fifo.bpf.o".into(),
                patches: vec![patch(8, &[0]), patch(0, &[7, 0, 0, 0, 0, 0, 0, 0])],
            })
        );
        let config = format!("/boot/config-{}", kernel.release);
        let files: Vec<_> = ready.files.iter().map(|f| f.guest.as_str()).collect();
        assert_eq!(files, ["/scheduler/fifo.bpf.o", config.as_str()]);

        let again = prepare(&spec, &kernel, &cache, &tools).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(again.object, ready.object);
        assert_eq!(count(), 2 * (i + 1), "found in the cache");
        objects.push(ready.object.expect("an object"));
    }

    // The same as an object.
    let path = dir.path().join("fifo.bpf.o");
    std::fs::write(&path, &objects[0]).unwrap();
    let spec = SchedulerSpec { src: path.to_str().unwrap().into(), ..spec };
    let kernel = kernel(SCHED_EXT[0]);
    let nothing = Toolchain::new(Some("/nowhere/clang".into()), None);
    let ready = prepare(&spec, &kernel, &cache, &nothing).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((ready.name.as_str(), ready.object), ("fifo", Some(objects[0].clone())));
}

#[test]
fn every_scheduler_here_compiles_without_a_word() {
    let tools = toolchain();
    for name in SCHED_EXT {
        let kernel = kernel(name);
        for src in ["broken_verifier", "exits", "stall", "zoo"] {
            let src = format!("tests/schedulers/{src}.bpf.c");
            let ready = prepare(&spec(&src), &kernel, &cache(), &tools);
            let ready = ready.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(ready.log, "", "{name}: {src}");
        }
    }
}

#[test]
fn the_compilers_words_are_shown_as_they_are() {
    let src = "tests/schedulers/broken_syntax.bpf.c";
    let error = prepare(&spec(src), &kernel("debian:7.2"), &cache(), &toolchain());
    let text = error.expect_err("it does not compile").to_string();
    let src = root().join(src);
    let src = src.display();
    // Compilers differ in which error they tell first, and in where they think it is.
    assert!(text.starts_with(&format!("{src} does not compile:\n{src}:9:")), "{text}");
    for says in [
        "error: expected ';' after expression\n",
        "use of undeclared identifier 'SCX_DSQ_GLOBL'; did you mean 'SCX_DSQ_GLOBAL'?\n",
        "2 errors generated.\nthe command was:\n  /",
    ] {
        assert!(text.contains(says), "{text}");
    }
    // The command is one that a shell can run, and ends as it did here.
    let (_, command) = text.split_once("the command was:\n").unwrap();
    let out = Command::new("sh").arg("-c").arg(command).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("2 errors generated."));
}

#[test]
fn a_kernel_without_sched_ext_runs_no_scheduler() {
    let kernel = kernel("debian:6.12");
    let error = prepare(&spec(FIFO), &kernel, &cache(), &toolchain()).expect_err("refused");
    assert!(error.to_string().contains("sched_ext"), "{error}");
    assert!(prepare(&spec("none"), &kernel, &cache(), &toolchain()).is_ok());
}

#[test]
fn options_of_a_real_scheduler_are_checked_by_its_types() {
    let kernel = kernel("debian:7.2");
    let with = |name: &str, value: serde_json::Value| {
        let spec = SchedulerSpec { rodata: [(name.into(), value)].into(), ..spec(FIFO) };
        prepare(&spec, &kernel, &cache(), &toolchain()).expect_err("refused").to_string()
    };
    assert_eq!(
        with("slice", json!(1)),
        "the scheduler has no variable `slice`; did you mean `slice_ns`?; it has slice_ns (u64, \
         .rodata), direct_local (bool, .rodata), nr_enqueued (u64, .bss), nr_dispatched (u64, \
         .bss), nr_select_local (u64, .bss), nr_running (u64, .bss), nr_stopping (u64, .bss), \
         nr_tasks (u64, .bss), nr_untracked (u64, .bss), max_run_ns (u64, .bss), min_run_ns (u64, \
         .data)"
    );
    assert_eq!(
        with("slice_ns", json!(-5)),
        "variable `slice_ns` is u64: -5 is out of its range 0 to 18446744073709551615"
    );
    assert_eq!(
        with("direct_local", json!("off")),
        "variable `direct_local` is bool: \"off\" is neither true nor false"
    );
}

/// Compiles a source text as a scheduler for 7.2 and gives what `prepare` says of the object.
fn object_is_refused(flags: &[&str], source: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("x.bpf.o");
    let from = dir.path().join("x.c");
    std::fs::write(&from, source).unwrap();
    let status = Command::new(toolchain().clang().unwrap().expect("a compiler").path)
        .args(["--target=bpf", "-O2", "-c", "-o"])
        .args([&object, &from])
        .args(flags)
        .status();
    assert!(status.unwrap().success());
    let mut kernel = kernel("debian:7.2");
    kernel.config = None;
    let error = prepare(&spec(object.to_str().unwrap()), &kernel, &cache(), &toolchain());
    error.expect_err("refused").to_string().replace(object.to_str().unwrap(), "x.bpf.o")
}

#[test]
fn objects_that_cannot_be_loaded_are_refused_before_they_are() {
    assert_eq!(
        object_is_refused(&[], "int x = 1;"),
        "x.bpf.o cannot be loaded: it has no BTF, the description of its types; compile it with -g"
    );
    assert_eq!(
        object_is_refused(&["-g"], "int x = 1;"),
        "x.bpf.o cannot be loaded: it has no struct_ops, so there is no scheduler in it to attach; \
         sched_ext schedulers define a `struct sched_ext_ops` in section .struct_ops.link"
    );
    assert_eq!(
        object_is_refused(
            &["-g"],
            "extern int CONFIG_HZ __attribute__((section(\".kconfig\")));\n\
             struct ops { void *f; } o __attribute__((section(\".struct_ops.link\")));\n\
             int f(void) { return CONFIG_HZ; }\n"
        ),
        format!(
            "x.bpf.o uses values of the kernel's configuration, and that of kernel {0} was not \
             found; put it beside the image as config-{0}, or use a kernel that has it (`debian:..`)",
            kernel("debian:7.2").release
        )
    );
}

#[test]
fn objects_that_contradict_themselves_are_refused() {
    let kernel = kernel("debian:7.2");
    let (tools, cache) = (toolchain(), cache());
    let good = prepare(&spec(FIFO), &kernel, &cache, &tools).expect("compiled").object.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo.bpf.o");
    let says = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = prepare(&spec(path.to_str().unwrap()), &kernel, &cache, &tools);
        let text = error.expect_err("refused").to_string();
        let (_, problem) = text.split_once("cannot be loaded: ").expect("an object's error");
        problem.to_owned()
    };
    // Names of sections and symbols are in .strtab, those of types in .BTF.
    let (strtab, symbol) = {
        use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
        let file = object::File::parse(&*good).unwrap();
        let range = file.section_by_name(".strtab").unwrap().file_range().unwrap();
        let symbol = file.symbols().find(|s| s.name() == Ok("slice_ns")).unwrap().index().0;
        let symtab = file.section_by_name(".symtab").unwrap().file_range().unwrap().0 as usize;
        (range.0 as usize..(range.0 + range.1) as usize, symtab + 24 * symbol)
    };
    let renamed = |from: &str, to: &str| {
        let mut bytes = good.to_vec();
        // Names may share their ends: .BTF lies in .rel.BTF.
        let from = format!("{from}\0");
        let at = bytes[strtab.clone()].windows(from.len()).position(|w| w == from.as_bytes());
        let at = strtab.start + at.expect("the name");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert_eq!(says(&renamed("slice_ns", "slice_nx")), "it has no symbol for variable slice_ns");
    assert_eq!(
        says(&renamed(".rodata", ".rodatx")),
        "its BTF has section .rodata, its ELF file has not"
    );
    assert_eq!(
        says(&renamed("nr_enqueued", "nr_stopping")),
        "it has no symbol for variable nr_enqueued"
    );
    let mut bytes = good.to_vec();
    bytes[symbol + 8..symbol + 16].copy_from_slice(&5u64.to_le_bytes());
    assert_eq!(
        says(&bytes),
        "variable slice_ns (8 bytes at 5) does not fit section .rodata of 9 bytes"
    );
    bytes[symbol + 8..symbol + 16].fill(0xff);
    assert_eq!(says(&bytes), "variable slice_ns is out of bounds");
    assert_eq!(
        says(&renamed(".BTF", ".BTX")),
        "it has no BTF, the description of its types; compile it with -g"
    );
    assert!(says(&good[..good.len() / 2]).starts_with("it is a damaged ELF file: "));
}

/// Damage at every place of an object that its readers look at ends in an error or in an object.
#[test]
fn damaged_objects_never_panic() {
    let kernel = kernel("debian:7.2");
    let (tools, cache) = (toolchain(), cache());
    let ready = prepare(&spec(FIFO), &kernel, &cache, &tools).expect("compiled");
    let good = ready.object.expect("an object");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo.bpf.o");
    let spec = SchedulerSpec {
        rodata: [("slice_ns".to_owned(), json!(7))].into(),
        ..spec(path.to_str().unwrap())
    };
    let sections = {
        use object::{Object as _, ObjectSection as _};
        let file = object::File::parse(&*good).unwrap();
        let ranges = file.sections().filter(|s| s.name() == Ok(".BTF"));
        ranges.filter_map(|s| s.file_range()).collect::<Vec<_>>()
    };
    let table = good.len() - 64 * 56;
    let (btf, len) = (sections[0].0 as usize, sections[0].1 as usize);
    let mut refused = 0;
    for i in 0..400usize {
        let mut bytes = good.to_vec();
        // In turn: the ELF header, the section headers at the end, the BTF, and an early end.
        match i % 4 {
            0 => bytes[(i / 4) % 64] ^= 1 << (i % 7),
            1 => bytes[table + (i * 37) % (64 * 56)] = (i * 73) as u8,
            2 => bytes[btf + (i * 7919) % len] = (i * 31) as u8,
            _ => bytes.truncate(i * good.len() / 400),
        }
        std::fs::write(&path, &bytes).unwrap();
        refused += usize::from(prepare(&spec, &kernel, &cache, &tools).is_err());
    }
    assert!(refused > 100, "{refused}");
}

/// The headers of the scx project keep the kernel's constants in variables, which their loaders
/// fill in; here there is no such loader.
#[test]
fn constants_in_variables_are_filled_in_from_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CacheDir::at(dir.path().join("cache"));
    std::fs::create_dir(dir.path().join("inc")).unwrap();
    let header = "const volatile u64 __SCX_DSQ_LOCAL __attribute__((weak));\n\
                  const volatile u64 __SCX_DSQ_GLOBAL __attribute__((weak));\n\
                  const volatile u64 __SCX_NO_SUCH_THING __attribute__((weak));\n";
    std::fs::write(dir.path().join("inc/constants.bpf.h"), header).unwrap();
    let source = "#define BPF_NO_KFUNC_PROTOTYPES\n\
                  #include <vmlinux.h>\n\
                  #include <constants.bpf.h>\n\
                  void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq, u64 slice, u64 flags) __ksym;\n\
                  __attribute__((section(\"struct_ops/e\"), used)) void e(u64 *words) {\n\
                      struct task_struct *p = (void *)words[0];\n\
                      scx_bpf_dsq_insert(p, __SCX_DSQ_GLOBAL, __SCX_NO_SUCH_THING, __SCX_DSQ_LOCAL);\n\
                  }\n\
                  __attribute__((section(\".struct_ops.link\"), used))\n\
                  struct sched_ext_ops ops = { .enqueue = (void *)e, .name = \"own\" };\n";
    std::fs::write(dir.path().join("own.bpf.c"), source).unwrap();
    let spec = SchedulerSpec {
        src: "own.bpf.c".into(),
        base_dir: dir.path().into(),
        include: vec!["inc".into()],
        rodata: [("__SCX_DSQ_GLOBAL".to_owned(), json!(5))].into(),
        ..SchedulerSpec::default()
    };
    let ready = prepare(&spec, &kernel("debian:7.2"), &cache, &toolchain());
    let Some(AttachPlan::Object { patches, .. }) = ready.expect("compiled").attach else {
        panic!("an object")
    };
    let mut values: Vec<u64> =
        patches.iter().map(|p| u64::from_le_bytes(p.bytes[..].try_into().unwrap())).collect();
    // The author's own value comes last.
    assert_eq!(values.pop(), Some(5));
    values.sort_unstable();
    assert_eq!(values, [1 << 63 | 1, 1 << 63 | 2]);
}
