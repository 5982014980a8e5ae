//! What clang makes of C against what the model reads: the types come from `.BTF`, the bytes from
//! the initialized section that would become a map.

use std::process::{Command, Stdio};

use object::{Object as _, ObjectSection as _};

use super::super::testing::{Object, Rows, meta};
use super::super::*;
use crate::btf::{Btf, Want};

const SOURCE: &str = r#"
typedef unsigned int u32;
typedef unsigned long long u64;
enum state { IDLE, QUEUED, GONE = -1 };
enum big { NONE, HUGE_ONE = 0x8000000000000000ULL };
struct inner { u32 weight; long vtime; };
struct all {
	signed char tiny; unsigned char octet; short s; unsigned short us; int i; u64 u;
	_Bool yes; char name[8]; char one; enum state st; enum big b; float f; double d;
	struct { unsigned lo:3; int mid:5; unsigned long hi:40; enum state e:3; _Bool flag:1; } bits;
	union { u32 word; unsigned char b4[4]; };
	int grid[2][3]; char names[2][4]; struct inner inners[2];
	const volatile void *p; __int128 wide; __int128 wider;
};
__attribute__((section(".data.all"), used)) struct all value = {
	-5, 250, -300, 65000, -7, ~0ULL, 1, "abc", 'x', GONE, HUGE_ONE, 1.5f, -0.25,
	{ 5, -3, 0xabcdef0123, GONE, 1 }, { 0x04030201 },
	{ { 1, 2, 3 }, { 4, 5, 6 } }, { "abc", "defg" }, { { 1, -1 }, { 2, -2 } },
	(void *)0x1234, -9, (__int128)1 << 80,
};
int nr;
int count(void *ctx)
{
	static u64 calls;
	return nr + ++calls;
}
"#;

/// The newest clang that can be started.
fn clang() -> String {
    let numbered = (16..40).rev().map(|n| format!("clang-{n}"));
    let starts = |name: &String| Command::new(name).arg("--version").output().is_ok();
    let mut names = numbered.chain(["clang".to_owned()]);
    names.find(starts).expect("`make test` sets up a clang")
}

/// Compiles [`SOURCE`] without touching the disk: its types and the bytes of `.data.all`.
fn compiled() -> (Arc<Btf>, Vec<u8>) {
    let mut child = Command::new(clang())
        .args(["-O2", "-g", "-target", "bpf", "-x", "c", "-c", "-", "-o", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("clang starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, SOURCE.as_bytes()).expect("clang reads");
    drop(stdin);
    let output = child.wait_with_output().expect("clang ends");
    assert!(output.status.success());
    let file = object::File::parse(&*output.stdout).expect("an ELF file");
    let section = |name: &str| {
        let section = file.section_by_name(name).unwrap_or_else(|| panic!("no {name}"));
        section.data().expect("its bytes").to_vec()
    };
    (Btf::parse(&section(".BTF")).expect("valid BTF"), section(".data.all"))
}

/// A snapshot with an array `all` that has it as its only entry.
pub(super) fn snapshot() -> Arc<Snapshot> {
    let (btf, bytes) = compiled();
    let ty = btf.find("all", Want::Struct).expect("the struct");
    let mut o = Object { btf: Some(btf), maps: Vec::new() };
    o.map("all", "array", (0, ty), Rows { values: vec![bytes], ..Rows::default() });
    Snapshot::new(meta("c"), o.maps, Vec::new())
}

#[test]
fn values_are_what_the_compiler_meant() {
    let entry = snapshot().map("all").unwrap().at(0).unwrap();
    let shown = |path: &str| entry.get(path).unwrap().inline(200);
    for (path, want) in [
        ("tiny", "-5"),
        ("octet", "250"),
        ("s", "-300"),
        ("us", "65000"),
        ("i", "-7"),
        ("u", "18446744073709551615"),
        ("yes", "true"),
        ("name", "\"abc\""),
        ("one", "120"),
        ("st", "GONE (-1)"),
        ("b", "HUGE_ONE (0x8000000000000000)"),
        ("f", "1.5"),
        ("d", "-0.25"),
        ("bits", "{lo: 5, mid: -3, hi: 737894400291, e: GONE (-1), flag: true}"),
        ("word", "67305985"),
        ("b4", "[1, 2, 3, 4]"),
        ("grid", "[[1, 2, 3], [4, 5, 6]]"),
        ("grid[1][2]", "6"),
        ("names", "[\"abc\", \"defg\"]"),
        ("names[1]", "\"defg\""),
        ("inners", "[{weight: 1, vtime: -1}, {weight: 2, vtime: -2}]"),
        ("inners[1].vtime", "-2"),
        ("p", "0x1234"),
        ("wide", "-9"),
        ("wider", "1208925819614629174706176"),
    ] {
        assert_eq!(shown(path), want, "{path}");
    }
    assert_eq!(entry.get("p").unwrap().type_name(), "const volatile void *");
    assert_eq!(
        entry.get("wider").unwrap().as_i64().unwrap_err().to_string(),
        "\"wider\": expected a single value, found 1208925819614629174706176 (__int128, more than a \
         number holds; .as_str() gives the digits, .as_f64() comes near)"
    );
}

#[test]
fn statics_of_functions_are_globals_with_a_dot() {
    let (btf, _) = compiled();
    let (bss, _) = btf.datasecs().into_iter().find(|(_, name)| name == ".bss").expect(".bss");
    let mut o = Object { btf: Some(btf), maps: Vec::new() };
    // Offsets are filled in when the object is loaded; here all variables begin at 0.
    let rows = Rows { values: vec![vec![42, 0, 0, 0, 0, 0, 0, 0]], ..Rows::default() };
    o.map("x.bss", "array", (0, bss), rows);
    let snap = Snapshot::new(meta("c"), o.maps, Vec::new());
    assert_eq!(snap.global("count.calls").unwrap().as_u64(), Ok(42));
    assert_eq!(
        snap.global("calls").unwrap_err().to_string(),
        "no global variable is called \"calls\"; did you mean global(\"count.calls\")? (there are \
         count.calls, nr)"
    );
}
