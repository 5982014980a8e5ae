use std::fs;
use std::process::Command;

use serde_json::json;

use super::object::Variable;
use super::*;
use crate::btf::testing::Builder;

fn spec(dir: &Path, src: &str) -> SchedulerSpec {
    SchedulerSpec { src: src.into(), base_dir: dir.into(), ..SchedulerSpec::default() }
}

/// A kernel whose types are those of `btf`.
fn kernel(dir: &Path, btf: &[u8]) -> KernelImage {
    let vmlinux = dir.join("vmlinux");
    fs::write(&vmlinux, btf).expect("written");
    let mut image = KernelImage::for_test("/nowhere/vmlinuz", vmlinux.to_str().expect("UTF-8"));
    image.facts.btf = Some(0..btf.len() as u64);
    image
}

fn small_kernel(dir: &Path) -> KernelImage {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    b.structure("task_struct", 4, &[("pid", int, 0)]);
    kernel(dir, &b.encode())
}

/// Writes a program, from a process of its own: were it open for writing here while another
/// test's thread forks, it could not be run ("Text file busy").
fn script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod +x \"$0\"";
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(text).status();
    assert!(status.expect("sh runs").success());
}

/// A compiler that notes every run, warns, names the source and `x.h` as what it read, and gives
/// the source back as object.
fn fake_clang(dir: &Path, version: &str) -> Toolchain {
    let text = format!(
        "#!/bin/sh\n\
         echo \"$*\" >> {dir}/runs\n\
         if [ \"$1\" = --version ]; then echo 'Debian clang version {version} (1)'; exit; fi\n\
         printf 'object: %s \\\\\\n {dir}/x.h\\n' {dir}/a.bpf.c > /proc/self/fd/0\n\
         grep -q bad {dir}/a.bpf.c && {{ echo 'a.bpf.c:1: bad' >&2; exit 1; }}\n\
         grep -q crash {dir}/a.bpf.c && kill -SEGV $$\n\
         echo 'a.bpf.c:1: a warning' >&2\n\
         cat {dir}/a.bpf.c\n",
        dir = dir.display()
    );
    let clang = dir.join("clang");
    script(&clang, &text);
    Toolchain::new(Some(clang), None)
}

fn runs(dir: &Path) -> usize {
    fs::read_to_string(dir.join("runs")).unwrap_or_default().lines().count()
}

#[test]
fn what_was_compiled_is_found_again_until_a_file_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, at) = (dir.path(), |name: &str| dir.path().join(name));
    let (kernel, cache) = (small_kernel(dir), CacheDir::at(at("cache")));
    let tools = fake_clang(dir, "19.1.7");
    fs::write(at("a.bpf.c"), "one").expect("written");
    fs::write(at("x.h"), "header").expect("written");
    let compile = |spec: &SchedulerSpec| {
        compile::compile(&at("a.bpf.c"), spec, &kernel, &cache, &tools).expect("compiled")
    };
    let plain = spec(dir, "a.bpf.c");
    let first = compile(&plain);
    assert_eq!((&*first.object, first.log.as_str()), (b"one".as_slice(), "a.bpf.c:1: a warning\n"));
    // Asked for its version, then run.
    assert_eq!(runs(dir), 2);
    let again = compile(&plain);
    assert_eq!((again.object, again.log, runs(dir)), (first.object, first.log, 2));

    fs::write(at("x.h"), "changed").expect("written");
    compile(&plain);
    assert_eq!(runs(dir), 4, "a header changed");
    fs::write(at("a.bpf.c"), "two").expect("written");
    assert_eq!(&*compile(&plain).object, b"two");
    assert_eq!(runs(dir), 6, "the source changed");
    fs::write(at("x.h"), "header").expect("written");
    fs::write(at("a.bpf.c"), "one").expect("written");
    assert_eq!(&*compile(&plain).object, b"one");
    assert_eq!(runs(dir), 6, "both as they were at first");

    compile(&SchedulerSpec { defines: vec!["X=1".into()], ..plain.clone() });
    assert_eq!(runs(dir), 8, "other flags");
    fake_clang(dir, "19.1.8 is longer");
    compile(&plain);
    assert_eq!(runs(dir), 10, "another compiler");

    for i in 0..20 {
        fs::write(at("a.bpf.c"), format!("edit {i}")).expect("written");
        compile(&plain);
    }
    let entries = cache.list("schedulers").expect("listed");
    assert!(entries.len() < 40, "old entries go: {}", entries.len());
}

#[test]
fn what_was_compiled_before_needs_no_compiler() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, at) = (dir.path(), |name: &str| dir.path().join(name));
    let (kernel, cache) = (small_kernel(dir), CacheDir::at(at("cache")));
    fs::write(at("a.bpf.c"), "one").expect("written");
    fs::write(at("x.h"), "header").expect("written");
    let spec = spec(dir, "a.bpf.c");
    let compile = |spec: &SchedulerSpec, tools: &Toolchain| {
        let compiled = compile::compile(&at("a.bpf.c"), spec, &kernel, &cache, tools);
        compiled.map(|c| c.object.to_vec()).map_err(|e| e.to_string())
    };
    let none = Toolchain::new(None, Some(at("empty").into()));
    let missing = SchedulerError::NoClang { src: at("a.bpf.c") }.to_string();
    assert_eq!(compile(&spec, &none), Err(missing.clone()), "nothing was compiled yet");
    assert_eq!(compile(&spec, &fake_clang(dir, "19.1.7")), Ok(b"one".to_vec()));
    assert_eq!(compile(&spec, &none), Ok(b"one".to_vec()));
    let other = SchedulerSpec { defines: vec!["X=1".into()], ..spec.clone() };
    assert_eq!(compile(&other, &none), Err(missing.clone()), "other flags");
    fs::write(at("x.h"), "changed").expect("written");
    assert_eq!(compile(&spec, &none), Err(missing), "a header changed");
}

#[test]
fn the_command_line_says_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (kernel, cache) = (small_kernel(dir), CacheDir::at(dir.join("cache")));
    let tools = fake_clang(dir, "19.1.7");
    fs::write(dir.join("a.bpf.c"), "bad").expect("written");
    fs::write(dir.join("x.h"), "").expect("written");
    let spec = SchedulerSpec {
        defines: vec!["NAME=\"a b\"".into()],
        include: vec!["inc".into()],
        ..spec(dir, "a.bpf.c")
    };
    let error = prepare(&spec, &kernel, &cache, &tools).expect_err("it is bad");
    assert!(error.is_schedulers_fault());
    let headers = fs::read_dir(cache.path()).expect("a cache").flatten().map(|e| e.path());
    let headers: Vec<_> =
        headers.filter(|path| path.to_string_lossy().contains("headers-")).collect();
    let [headers] = headers.as_slice() else { panic!("{headers:?}") };
    let mut after = String::new();
    for path in ["/usr/include/x86_64-linux-gnu", "/usr/include"] {
        if Path::new(path).is_dir() {
            after.push_str(&format!(" -idirafter {path}"));
        }
    }
    assert_eq!(
        error.to_string(),
        format!(
            "{dir}/a.bpf.c does not compile:\na.bpf.c:1: bad\nthe command was:\n  {dir}/clang \
             --target=bpf -mcpu=v3 -g -O2 -std=gnu11 -Wall -Wno-compare-distinct-pointer-types \
             -Wno-unused-function -D__TARGET_ARCH_x86 '-DNAME=\"a b\"' -I {dir}/inc -I \
             {headers}{after} -c {dir}/a.bpf.c -o /dev/null",
            dir = dir.display(),
            headers = headers.display()
        )
    );
    assert!(headers.join("vmlinux.h").is_file() && headers.join("cryoscope.bpf.h").is_file());

    fs::write(dir.join("a.bpf.c"), "crash").expect("written");
    let text = prepare(&spec, &kernel, &cache, &tools).expect_err("it crashed");
    assert!(!text.is_schedulers_fault());
    let text = text.to_string();
    let says = format!(
        "{}/clang was killed by signal 11 while compiling; is there enough memory?",
        dir.display()
    );
    assert_eq!(text, says);
}

#[test]
fn compilers_are_found_newest_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let tools = Toolchain::new(None, Some(dir.into()));
    let found = || tools.clang().expect("looked").map(|clang| clang.path);
    assert_eq!(found(), None);
    let says = |version: &str| format!("#!/bin/sh\necho 'clang version {version}'\n");
    for (name, text) in [
        ("clang-14", says("14.0.6")),
        ("clang", says("14.0.6")),
        ("clang-16", says("16.0.1-git")),
        ("clang-19", says("19.1.7+deb")),
        ("clang-22", "#!/bin/sh\nexit 1\n".into()),
    ] {
        script(&dir.join(name), &text);
        assert_eq!(found(), Some(dir.join(name)));
    }
    fs::write(dir.join("clang-23"), "not executable").expect("written");
    assert_eq!(found(), Some(dir.join("clang-22")));

    let version = |name: &str| {
        let asked = Toolchain::new(Some(name.into()), Some(dir.into()));
        asked.clang()?.expect("asked for").version()
    };
    let text = |name: &str| version(name).expect_err("refused").to_string();
    assert_eq!(version("clang-16").expect("new enough"), "16.0.1");
    assert_eq!(version("clang-19").expect("new enough"), "19.1.7");
    let at = dir.display();
    assert_eq!(
        text("clang-14"),
        format!(
            "{at}/clang-14 is clang 14.0.6, too old for sched_ext: it needs 16 or later; install \
             one (`apt install clang-19` on Debian), or name one with `--clang PATH`"
        )
    );
    assert_eq!(
        text("clang-22"),
        format!(
            "{at}/clang-22 is no clang that can be used: `{at}/clang-22 --version` names no version"
        )
    );
    assert_eq!(
        text("clang-77"),
        "no clang at clang-77: No such file or directory; give `--clang` the path of one"
    );
    assert_eq!(
        text("./x/clang"),
        "no clang at ./x/clang: No such file or directory; give `--clang` the path of one"
    );
    let file = dir.join("clang-23");
    assert_eq!(
        text(file.to_str().expect("UTF-8")),
        format!(
            "no clang at {}: not an executable file; give `--clang` the path of one",
            file.display()
        )
    );
    assert_eq!(
        SchedulerError::NoClang { src: "fifo.bpf.c".into() }.to_string(),
        "no clang to compile fifo.bpf.c with: none called clang-N or clang is on the search path; \
         install one of version 16 or later (`apt install clang-19` on Debian), or name one with \
         `--clang PATH`"
    );
}

#[test]
fn what_is_no_scheduler_is_refused_by_what_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (kernel, cache) = (small_kernel(dir), CacheDir::at(dir.join("cache")));
    let tools = Toolchain::default();
    let mut elf = vec![0u8; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let with = |at: usize, value: u16| {
        let mut bytes = elf.clone();
        bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let mut big = with(18, 22 << 8);
    big[5] = 2;
    for (name, bytes) in [
        ("fifo.bpf.c", b"".to_vec()),
        ("fifo.c", b"int x;".to_vec()),
        ("text.bpf.o", b"hello".to_vec()),
        ("script", b"#!/bin/sh\n".to_vec()),
        ("short", b"\x7fELF".to_vec()),
        ("arm", with(18, 183)),
        ("s390", big),
        ("strange", with(18, 999)),
        ("module", with(16, 1)),
        ("plain", with(18, 62)),
        ("x86.bpf.o", with(18, 62)),
    ] {
        fs::write(dir.join(name), bytes).expect("written");
    }
    let refused = |src: &str| {
        let error = prepare(&spec(dir, src), &kernel, &cache, &tools).expect_err(src);
        error.to_string().replace(&format!("{}/", dir.display()), "")
    };
    let forms = "; a scheduler is a .bpf.c, a .bpf.o, an executable, or \"none\"";
    for (src, says) in [
        (
            "fifo.bpfc",
            "no scheduler at fifo.bpfc; did you mean `fifo.bpf.c`? (a relative path starts at the \
             script's directory)"
                .to_owned(),
        ),
        (
            "xyz/fifo",
            "no scheduler at xyz/fifo (a relative path starts at the script's directory)".into(),
        ),
        ("fifo.c/x", "cannot read fifo.c/x: Not a directory".into()),
        (".", format!(". is a directory{forms}")),
        ("/dev/null", format!("/dev/null is neither a file nor a link to one{forms}")),
        ("fifo.c", format!("fifo.c is a C source whose name does not end with .bpf.c{forms}")),
        ("text.bpf.o", format!("text.bpf.o is no ELF file{forms}")),
        (
            "script",
            format!(
                "script is a script; stage it and its interpreter, and name the interpreter{forms}"
            ),
        ),
        ("short", format!("short is no ELF file{forms}")),
        ("arm", "arm is a program for AArch64; the guest is x86-64".into()),
        ("s390", "s390 is a program for s390; the guest is x86-64".into()),
        (
            "strange",
            "strange is a program for another machine (ELF machine 999); the guest is x86-64"
                .into(),
        ),
        ("module", format!("module is an ELF file, but not a program{forms}")),
        ("plain", "plain is not executable; `chmod +x plain` makes it so".into()),
        ("x86.bpf.o", "x86.bpf.o cannot be loaded: it is an ELF file, but not one for BPF".into()),
    ] {
        // The directory itself has no slash behind it.
        let text = refused(src).replace(&format!("{}.", dir.display()), ".");
        assert_eq!(text, says, "{src}");
    }
    let large = dir.join("large.bpf.o");
    fs::write(&large, b"\x7fELF").expect("written");
    File::options().write(true).open(&large).and_then(|f| f.set_len(1 << 40)).expect("sparse");
    assert_eq!(
        refused("large.bpf.o"),
        "large.bpf.o is 1099511627776 bytes long, more than the 67108864 that a scheduler may have"
    );
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (mut kernel, cache) = (small_kernel(dir), CacheDir::at(dir.join("cache")));
    let tools = Toolchain::default();
    fs::write(dir.join("a.bpf.c"), "").expect("written");
    fs::copy("/bin/true", dir.join("prog")).expect("copied");
    let refused = |spec: SchedulerSpec| {
        prepare(&spec, &kernel, &cache, &tools).expect_err("refused").to_string()
    };
    let one = || BTreeMap::from([("slice_ns".to_owned(), json!(1))]);
    assert_eq!(
        refused(SchedulerSpec { args: vec!["-v".into()], ..spec(dir, "a.bpf.c") }),
        "the scheduler option `args` is for executables; a.bpf.c is a C source"
    );
    assert_eq!(
        refused(SchedulerSpec { rodata: one(), ..spec(dir, "prog") }),
        "the scheduler option `rodata` is for sources and objects; prog is an executable"
    );
    assert_eq!(
        refused(SchedulerSpec { defines: vec!["X".into()], ..spec(dir, "none") }),
        "the scheduler option `defines` is for sources; none is no scheduler at all"
    );
    assert_eq!(
        refused(SchedulerSpec { staged: vec![("nope".into(), "/x".into())], ..spec(dir, "none") }),
        format!("cannot stage {}/nope: No such file or directory", dir.display())
    );
    assert_eq!(
        refused(SchedulerSpec { staged: vec![("prog".into(), "x".into())], ..spec(dir, "none") }),
        format!("cannot stage {}/prog: \"x\" is no absolute path in the guest", dir.display())
    );
    kernel.facts.has_sched_ext = false;
    let refused = prepare(&spec(dir, "a.bpf.c"), &kernel, &cache, &tools).expect_err("refused");
    assert!(matches!(refused, SchedulerError::Kernel(_)), "{refused}");
    // The kernel's own scheduler needs no sched_ext.
    let none = prepare(&spec(dir, "none"), &kernel, &cache, &tools).expect("ready");
    assert_eq!((none.name.as_str(), none.attach, none.files.len()), ("none", None, 0));
}

#[test]
fn programs_are_staged_with_their_libraries_and_the_kernels_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (mut kernel, cache) = (small_kernel(dir), CacheDir::at(dir.join("cache")));
    fs::write(dir.join("config"), "CONFIG_HZ=250\n").expect("written");
    kernel.config = Some(dir.join("config"));
    fs::copy("/bin/true", dir.join("scx_true")).expect("copied");
    let spec = SchedulerSpec {
        args: vec!["--slice".into(), "5".into()],
        env: vec![("RUST_LOG".into(), "info".into())],
        staged: vec![("config".into(), "/etc/scx".into()), ("scx_true".into(), "/bin/t".into())],
        ..spec(dir, "scx_true")
    };
    let ready = prepare(&spec, &kernel, &cache, &Toolchain::default()).expect("ready");
    assert_eq!(ready.name, "scx_true");
    assert_eq!(
        ready.attach,
        Some(AttachPlan::Program {
            argv: ["/scheduler/scx_true", "--slice", "5"].map(String::from).to_vec(),
            env: spec.env
        })
    );
    let files: Vec<_> =
        ready.files.iter().map(|f| (f.guest.as_str(), f.mode & 0o100, f.closure)).collect();
    assert_eq!(
        files,
        [
            ("/scheduler/scx_true", 0o100, true),
            ("/boot/config-7.2.13+made", 0, false),
            ("/etc/scx", 0, false),
            ("/bin/t", 0o100, true)
        ]
    );
}

/// An object with a variable of each type.
fn variables() -> BpfObject {
    let mut b = Builder::new();
    let [u8_, s8, u16_, u32_] =
        [("u8", 1, false), ("s8", 1, true), ("u16", 2, false), ("u32", 4, false)]
            .map(|(name, size, signed)| b.int(name, size, signed));
    let u64_ = b.int("unsigned long", 8, false);
    let s64 = b.int("long", 8, true);
    let bool_ = b.boolean("_Bool");
    let (double, float) = (b.float("double", 8), b.float("float", 4));
    let mode = b.enumeration(
        "fifo_mode",
        4,
        true,
        &[("FIFO_FAST", 1), ("FIFO_FAIR", 2), ("FIFO_OFF", -1)],
    );
    let flags = b.enum64("flags", false, &[("FLAG_TOP", 1 << 63)]);
    let text = b.array(s8, 8);
    let pair = b.array(u16_, 2);
    let point = b.bitfields(
        "point",
        16,
        &[("x", u32_, 0, 0), ("bits", u32_, 32, 3), ("pair", pair, 64, 0), ("on", bool_, 96, 0)],
    );
    let points = b.array(point, 2);
    let ptr = b.ptr(point);
    let konst = b.constant(u64_);
    let konst = b.volatile(konst);
    let mut variables = Vec::new();
    let mut offset = 0;
    for (name, ty, section) in [
        ("slice_ns", konst, ".rodata"),
        ("tiny", u8_, ".rodata"),
        ("offset", s8, ".rodata"),
        ("big", s64, ".data"),
        ("enabled", bool_, ".rodata"),
        ("ratio", double, ".rodata"),
        ("small_ratio", float, ".rodata"),
        ("mode", mode, ".rodata"),
        ("flags", flags, ".rodata"),
        ("name", text, ".rodata"),
        ("points", points, ".bss"),
        ("task", ptr, ".bss"),
        ("count.local", u32_, ".bss"),
    ] {
        let section = section.to_owned();
        variables.push(Variable { name: name.into(), section, offset, ty });
        offset += 100;
    }
    let (path, struct_ops) = ("a.bpf.o".into(), vec!["ops".into()]);
    BpfObject { path, btf: b.parse(), variables, struct_ops, uses_kconfig: false }
}

#[test]
fn values_are_encoded_by_the_types_of_their_variables() {
    let object = variables();
    let one = |name: &str, value: serde_json::Value| {
        let patches = values::patches(&object, name, &value).expect(name);
        let [patch] = patches.as_slice() else { panic!("{name}: {patches:?}") };
        (patch.offset, patch.bytes.clone())
    };
    assert_eq!(one("slice_ns", json!(u64::MAX)), (0, vec![0xff; 8]));
    assert_eq!(one("slice_ns", json!(5_000_000)), (0, 5_000_000u64.to_le_bytes().to_vec()));
    assert_eq!(one("tiny", json!(255)), (100, vec![255]));
    assert_eq!(one("offset", json!(-128)), (200, vec![0x80]));
    assert_eq!(one("big", json!(i64::MIN)), (300, i64::MIN.to_le_bytes().to_vec()));
    assert_eq!(one("enabled", json!(true)), (400, vec![1]));
    assert_eq!(one("enabled", json!(0)), (400, vec![0]));
    assert_eq!(one("ratio", json!(0.25)), (500, 0.25f64.to_le_bytes().to_vec()));
    assert_eq!(one("ratio", json!(2)), (500, 2f64.to_le_bytes().to_vec()));
    assert_eq!(one("small_ratio", json!(0.5)), (600, 0.5f32.to_le_bytes().to_vec()));
    assert_eq!(one("mode", json!("FIFO_FAIR")), (700, vec![2, 0, 0, 0]));
    assert_eq!(one("mode", json!("FIFO_OFF")), (700, vec![0xff; 4]));
    assert_eq!(one("mode", json!(17)), (700, vec![17, 0, 0, 0]));
    assert_eq!(one("flags", json!("FLAG_TOP")), (800, (1u64 << 63).to_le_bytes().to_vec()));
    assert_eq!(one("name", json!("llc 0")), (900, b"llc 0\0\0\0".to_vec()));
    assert_eq!(one("points[1].pair[1]", json!(7)), (1000 + 16 + 8 + 2, vec![7, 0]));
    assert_eq!(one("count.local", json!(3)), (1200, vec![3, 0, 0, 0]));

    let patches = values::patches(&object, "points[0]", &json!({ "x": 1, "pair": [2, 3] }));
    let patches = patches.expect("a struct in part");
    let places: Vec<_> = patches.iter().map(|p| (p.offset, p.bytes.as_slice())).collect();
    assert_eq!(places.len(), 3);
    for place in [(1000, &[1, 0, 0, 0][..]), (1008, &[2, 0]), (1010, &[3, 0])] {
        assert!(places.contains(&place), "{places:?}");
    }
    assert!(patches.iter().all(|p| p.section == ".bss"));
}

#[test]
fn values_that_do_not_fit_say_what_would() {
    let object = variables();
    let refused = |name: &str, value: serde_json::Value| {
        values::patches(&object, name, &value).expect_err(name).to_string()
    };
    for (name, value, says) in [
        (
            "slice_ns",
            json!(-1),
            "variable `slice_ns` is unsigned long: -1 is out of its range 0 to \
             18446744073709551615",
        ),
        ("slice_ns", json!(1.5), "variable `slice_ns` is unsigned long: 1.5 is not an integer"),
        ("tiny", json!(256), "variable `tiny` is u8: 256 is out of its range 0 to 255"),
        ("offset", json!(128), "variable `offset` is s8: 128 is out of its range -128 to 127"),
        (
            "big",
            json!(1u64 << 63),
            "variable `big` is long: 9223372036854775808 is out of its range -9223372036854775808 \
             to 9223372036854775807",
        ),
        ("enabled", json!("yes"), "variable `enabled` is _Bool: \"yes\" is neither true nor false"),
        ("enabled", json!(2), "variable `enabled` is _Bool: 2 is neither true nor false"),
        ("ratio", json!("much"), "variable `ratio` is double: \"much\" is not a number"),
        (
            "mode",
            json!("FIFO_FST"),
            "variable `mode` is enum fifo_mode: `FIFO_FST` is not one of its values; did you mean \
             `FIFO_FAST`?; they are FIFO_FAST, FIFO_FAIR, FIFO_OFF",
        ),
        (
            "mode",
            json!(1u64 << 40),
            "variable `mode` is enum fifo_mode: 1099511627776 is out of its range -2147483648 to \
             2147483647; they are FIFO_FAST, FIFO_FAIR, FIFO_OFF",
        ),
        (
            "name",
            json!("12345678"),
            "variable `name` is s8[8]: 8 bytes of text and the zero that ends them do not fit \
             into 8",
        ),
        (
            "points",
            json!([1]),
            "variable `points` is struct point[2]: 1 values were given for 2 elements",
        ),
        ("points", json!(1), "variable `points` is struct point[2]: 1 is not an array"),
        ("points[0]", json!(1), "variable `points[0]` is struct point: 1 is no map of its members"),
        (
            "points[0]",
            json!({ "pairs": 1 }),
            "variable `points[0]` is struct point: struct point has no member \"pairs\"; it has x, \
             bits, pair, on; did you mean `pair`?",
        ),
        ("points[0].bits", json!(1), "variable `points[0].bits` is u32: bitfields cannot be set"),
        (
            "points[2].x",
            json!(1),
            "variable `points` is struct point[2]: \"the value\" has 2 elements, index 2 is past \
             its end",
        ),
        ("task", json!(1), "variable `task` is struct point *: a pointer cannot be set"),
        (
            "slice_n",
            json!(1),
            "the scheduler has no variable `slice_n`; did you mean `slice_ns`?; it has slice_ns \
             (unsigned long, .rodata), tiny (u8, .rodata), offset (s8, .rodata), \
             enabled (_Bool, .rodata), ratio (double, .rodata), small_ratio (float, .rodata), mode \
             (enum fifo_mode, .rodata), flags (enum flags, .rodata), name (s8[8], .rodata), big \
             (long, .data), points (struct point[2], .bss), task (struct point *, .bss), \
             count.local (u32, .bss)",
        ),
    ] {
        assert_eq!(refused(name, value), says);
    }
    let none = BpfObject { variables: vec![], ..variables() };
    assert_eq!(
        values::patches(&none, "x", &json!(1)).expect_err("none").to_string(),
        "the scheduler has no variable `x`; it has none at all"
    );
}

#[test]
fn a_kernel_whose_types_are_damaged_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let cache = CacheDir::at(dir.join("cache"));
    fs::write(dir.join("a.bpf.c"), "").expect("written");
    let tools = fake_clang(dir, "19.1.7");
    let mut b = Builder::new();
    b.structure("self", 8, &[("own", 1, 0)]);
    for (btf, says) in [
        (
            b"not BTF, whatever it is.".to_vec(),
            "the BTF of kernel 7.2.13+made is damaged: not BTF: it begins with 0x6f6e instead of \
             0xeb9f",
        ),
        (
            b.encode(),
            "cannot write vmlinux.h for kernel 7.2.13+made: type 1 (struct self) needs itself to \
             be declared",
        ),
    ] {
        let error = prepare(&spec(dir, "a.bpf.c"), &kernel(dir, &btf), &cache, &tools);
        assert_eq!(error.expect_err("refused").to_string(), says);
    }
    assert_eq!(runs(dir), 0);
}

#[test]
fn a_compiler_that_cannot_be_run_or_does_not_end_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (kernel, cache) = (small_kernel(dir), CacheDir::at(dir.join("cache")));
    fs::write(dir.join("a.bpf.c"), "").expect("written");
    script(&dir.join("clang"), "#!/nowhere/sh\n");
    let tools = Toolchain::new(Some(dir.join("clang")), None);
    let error = prepare(&spec(dir, "a.bpf.c"), &kernel, &cache, &tools).expect_err("refused");
    assert_eq!(
        error.to_string(),
        format!("{}/clang is no clang that can be used: No such file or directory", dir.display())
    );
    let (src, command) = ("fifo.bpf.c".into(), "clang -c fifo.bpf.c".into());
    let error = SchedulerError::CompileTimeout { src, seconds: 120, command };
    assert_eq!(
        error.to_string(),
        "compiling fifo.bpf.c took more than 120 s; the command was:\n  clang -c fifo.bpf.c"
    );
}
