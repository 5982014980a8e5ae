//! Every kind of type that BTF has, and every modifier: what a value of it is, how it prints, and
//! what JSON has of it.

use serde_json::{Value, json};

use super::text;
use crate::btf::TypeId;
use crate::btf::testing::Builder;
use crate::snapshot::testing::{Object, Rows, bytes, comm, meta};
use crate::snapshot::{Field, FieldKind as K, Snapshot, to_json};

/// A value of one type.
#[derive(Clone)]
struct Case {
    name: &'static str,
    ty: TypeId,
    bytes: Vec<u8>,
    kind: K,
    shown: &'static str,
    json: Value,
}

fn case(
    name: &'static str,
    ty: TypeId,
    bytes: Vec<u8>,
    kind: K,
    shown: &'static str,
    json: Value,
) -> Case {
    Case { name, ty, bytes, kind, shown, json }
}

/// Each kind of `include/uapi/linux/btf.h` that a value can have, by its number.
fn plain(b: &mut Builder) -> Vec<Case> {
    let int = b.int("int", 4, true);
    let u8_ = b.int("unsigned char", 1, false);
    let u64_ = b.int("unsigned long", 8, false);
    let char_ = b.raw("char", 1, false, 0, 1, &[3 << 24 | 8]);
    let bool_ = b.boolean("_Bool");
    let wide = b.int("__int128", 16, true);
    let unsigned_wide = b.int("unsigned __int128", 16, false);
    let float = b.float("float", 4);
    let double = b.float("double", 8);
    let long_double = b.float("long double", 16);
    let pair = b.array(int, 2);
    let square = b.array(pair, 2);
    let text = b.array(char_, 16);
    let texts = b.array(text, 2);
    let octets = b.array(u8_, 4);
    let inner = b.structure("", 8, &[("x", int, 0), ("y", int, 32)]);
    let nested = b.structure("nested", 12, &[("", inner, 0), ("z", int, 64)]);
    let either = b.union("either", 8, &[("whole", u64_, 0), ("half", int, 0), ("", inner, 0)]);
    let bits = [("lo", int, 0, 3), ("neg", int, 3, 5), ("on", bool_, 8, 1), ("hi", u64_, 9, 40)];
    let bits = b.bitfields("bits", 8, &bits);
    let empty = b.structure("empty", 0, &[]);
    let odd = b.structure("odd", 4, &[("nothing", empty, 0), ("n", int, 0)]);
    vec![
        case("int", int, bytes![-5i32], K::Int, "-5", json!(-5)),
        case("unsigned", u64_, bytes![u64::MAX], K::Int, "18446744073709551615", json!(u64::MAX)),
        case("char", char_, vec![b'x'], K::Int, "120", json!(120)),
        case("bool", bool_, vec![1], K::Bool, "true", json!(true)),
        case(
            "__int128",
            wide,
            bytes![-(1i128 << 100)],
            K::Int,
            "-1267650600228229401496703205376",
            json!("-1267650600228229401496703205376"),
        ),
        case("small __int128", wide, bytes![-7i128], K::Int, "-7", json!(-7)),
        case(
            "unsigned __int128",
            unsigned_wide,
            bytes![u128::MAX],
            K::Int,
            "340282366920938463463374607431768211455",
            json!("340282366920938463463374607431768211455"),
        ),
        case("float", float, bytes![1.5f32], K::Float, "1.5", json!(1.5)),
        case("double", double, bytes![-0.25f64], K::Float, "-0.25", json!(-0.25)),
        case(
            "long double",
            long_double,
            bytes![1u128],
            K::Float,
            "0x01000000000000000000000000000000",
            json!("0x01000000000000000000000000000000"),
        ),
        case("array", pair, bytes![1i32, 2i32], K::Array, "[1, 2]", json!([1, 2])),
        case(
            "array of arrays",
            square,
            bytes![1i32, 2i32, 3i32, 4i32],
            K::Array,
            "[[1, 2], [3, 4]]",
            json!([[1, 2], [3, 4]]),
        ),
        case("text", text, comm("kworker"), K::Text, "\"kworker\"", json!("kworker")),
        case(
            "array of texts",
            texts,
            [comm("a"), comm("b")].concat(),
            K::Array,
            "[\"a\", \"b\"]",
            json!(["a", "b"]),
        ),
        case("octets", octets, vec![1, 2, 3, 4], K::Array, "[1, 2, 3, 4]", json!([1, 2, 3, 4])),
        case(
            "struct",
            nested,
            bytes![1i32, 2i32, 3i32],
            K::Struct,
            "{x: 1, y: 2, z: 3}",
            json!({ "x": 1, "y": 2, "z": 3 }),
        ),
        case(
            "union",
            either,
            bytes![0x2_0000_0001u64],
            K::Union,
            "{whole: 8589934593, half: 1, x: 1, y: 2}",
            json!({ "whole": 0x2_0000_0001u64, "half": 1, "x": 1, "y": 2 }),
        ),
        case(
            "bitfields",
            bits,
            bytes![5u64 | 0b11110 << 3 | 1 << 8 | 0xab_cdef_0123 << 9],
            K::Struct,
            "{lo: -3, neg: -2, on: true, hi: 737894400291}",
            json!({ "lo": -3, "neg": -2, "on": true, "hi": 737_894_400_291u64 }),
        ),
        case("struct without bytes", empty, vec![], K::Struct, "{}", json!({})),
        case(
            "member without bytes",
            odd,
            bytes![3i32],
            K::Struct,
            "{nothing: {}, n: 3}",
            json!({ "nothing": {}, "n": 3 }),
        ),
    ]
}

fn enums(b: &mut Builder) -> Vec<Case> {
    let small = b.enumeration("small", 1, false, &[("ZERO", 0), ("TEN", 10)]);
    let state = b.enumeration("state", 4, true, &[("NO", -1), ("IDLE", 0), ("BUSY", 1)]);
    let flags = b.enumeration("flags", 4, false, &[("NONE", 0), ("R", 1), ("W", 2), ("X", 4)]);
    let top = 1u64 << 63;
    let flags64 = b.enum64("flags64", false, &[("LOW", 1), ("TOP", top)]);
    let signed64 = b.enum64("signed64", true, &[("LESS", -4i64 as u64), ("MORE", 1 << 40)]);
    let holder = b.bitfields("holder", 4, &[("r", flags, 0, 3), ("s", small, 3, 4)]);
    vec![
        case("enum of a byte", small, vec![10], K::Enum, "TEN (10)", json!("TEN")),
        case("negative enum", state, bytes![-1i32], K::Enum, "NO (-1)", json!("NO")),
        case("unknown enum", state, bytes![7i32], K::Enum, "0x7", json!(7)),
        case("unknown negative enum", state, bytes![-7i32], K::Enum, "-7", json!(-7)),
        case("flag", flags, bytes![4u32], K::Enum, "X (4)", json!("X")),
        case("no flag", flags, bytes![0u32], K::Enum, "NONE (0)", json!("NONE")),
        case("flags", flags, bytes![5u32], K::Enum, "R|X (0x5)", json!("R|X")),
        case("flags and more", flags, bytes![0x15u32], K::Enum, "R|X|0x10 (0x15)", json!(0x15)),
        case("no known flag", flags, bytes![0x10u32], K::Enum, "0x10", json!(0x10)),
        case(
            "flags of 64 bits",
            flags64,
            bytes![top | 1],
            K::Enum,
            "LOW|TOP (0x8000000000000001)",
            json!("LOW|TOP"),
        ),
        case(
            "flag of 64 bits",
            flags64,
            bytes![top],
            K::Enum,
            "TOP (0x8000000000000000)",
            json!("TOP"),
        ),
        case("negative enum64", signed64, bytes![-4i64], K::Enum, "LESS (-4)", json!("LESS")),
        case("unknown enum64", signed64, bytes![-9i64], K::Enum, "-9", json!(-9)),
        case(
            "enums in bits",
            holder,
            bytes![0b0101_0101u32],
            K::Struct,
            "{r: R|X (0x5), s: TEN (10)}",
            json!({ "r": "R|X", "s": "TEN" }),
        ),
    ]
}

/// Pointers, and what names or qualifies another type.
fn modified(b: &mut Builder) -> Vec<Case> {
    let int = b.int("int", 4, true);
    let at = || bytes![0xffff_8880_0000_1000u64];
    let shown = "0xffff888000001000";
    let pointer = |name, ty| case(name, ty, at(), K::Pointer, shown, json!(shown));
    let number = |name, ty| case(name, ty, bytes![9i32], K::Int, "9", json!(9));
    let fwd = b.fwd("unknown", false);
    let proto = b.func_proto(int, &[("a", int), ("", 0)]);
    let to_int = b.ptr(int);
    let mut out = vec![
        pointer("pointer", to_int),
        case("NULL", to_int, bytes![0u64], K::Pointer, "NULL", json!("NULL")),
        pointer("pointer to void", b.ptr(0)),
        pointer("pointer to a pointer", b.ptr(to_int)),
        pointer("pointer to a name only", b.ptr(fwd)),
        pointer("pointer to a function", b.ptr(proto)),
        pointer("restrict pointer", b.raw("", 11, false, 0, to_int, &[])),
        number("const", b.constant(int)),
        number("volatile", b.volatile(int)),
        number("typedef", b.typedef("s32", int)),
    ];
    let chain = b.typedef("s32", int);
    let chain = b.constant(chain);
    let chain = b.volatile(chain);
    out.push(number("chain", b.typedef("again", chain)));
    for tag in ["kptr", "kptr_untrusted", "rcu", "percpu", "percpu_kptr", "user"] {
        let tagged = b.type_tag(tag, int);
        out.push(pointer(tag, b.ptr(tagged)));
    }
    out.push(number("tag on a number", b.type_tag("private", int)));
    let list = b.structure("with_tag", 4, &[("n", int, 0)]);
    b.decl_tag("contains:thing:node", list, 0);
    out.push(case("decl tag", list, bytes![4i32], K::Struct, "{n: 4}", json!({ "n": 4 })));
    out.push(case("name only", fwd, bytes![4i32], K::Opaque, "0x", json!("0x")));
    out.push(case("function type", proto, bytes![4i32], K::Opaque, "0x", json!("0x")));
    out
}

fn snapshot(mut b: Builder, cases: &[Case]) -> std::sync::Arc<Snapshot> {
    let int = b.int("unsigned int", 4, false);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    for Case { name, ty, bytes, .. } in cases {
        let rows = Rows { values: vec![bytes.clone()], ..Rows::default() };
        o.map(name, "array", (int, *ty), rows);
    }
    Snapshot::new(meta("k"), o.maps, Vec::new())
}

#[test]
fn every_kind_is_read_and_shown() {
    let mut b = Builder::new();
    let cases = [plain(&mut b), enums(&mut b), modified(&mut b)].concat();
    let snap = snapshot(b, &cases);
    for (map, case) in snap.maps().unwrap().into_iter().zip(&cases) {
        let value = map.at(0).unwrap().value().unwrap();
        assert_eq!(value.kind(), case.kind, "{}", case.name);
        assert_eq!(value.inline(200), case.shown, "{}", case.name);
        assert_eq!(to_json(&value), case.json, "{}", case.name);
        let all = serde_json::to_value(map.entries_as_json()).unwrap();
        assert_eq!(all, json!([{ "value": case.json }]), "{}", case.name);
        let dump = map.at(0).unwrap().dump();
        assert!(dump.contains(case.shown) || value.kind() == K::Struct, "{}: {dump}", case.name);
    }
}

#[test]
fn wide_numbers_and_odd_floats_say_what_they_are() {
    let mut b = Builder::new();
    let snap = {
        let cases = plain(&mut b);
        snapshot(b, &cases)
    };
    let value = |name: &str| -> Field { snap.map(name).unwrap().at(0).unwrap().value().unwrap() };
    let wide = value("__int128");
    assert_eq!(wide.as_str().as_deref(), Ok("-1267650600228229401496703205376"));
    assert_eq!(wide.as_f64(), Ok(-(2f64.powi(100))));
    assert_eq!(value("small __int128").as_i64(), Ok(-7));
    assert_eq!(
        text(wide.as_i64()),
        "expected a single value, found -1267650600228229401496703205376 (__int128, more than a \
         number holds; .as_str() gives the digits, .as_f64() comes near)"
    );
    let error = text(value("long double").as_f64());
    assert!(error.contains("a long double of 16 bytes"), "{error}");
}

#[test]
fn flags_are_text_that_is_read_back() {
    let mut b = Builder::new();
    let cases = enums(&mut b);
    let snap = snapshot(b, &cases);
    let value = |name: &str| snap.map(name).unwrap().at(0).unwrap().value().unwrap();
    assert_eq!(value("flags").as_str().as_deref(), Ok("R|X"));
    assert_eq!(value("flags").to_string(), "R|X (0x5)");
    let error = text(value("flags and more").as_str());
    assert!(error.contains("R|X|0x10"), "{error}");
    assert_eq!(value("flags and more").as_u64(), Ok(0x15));
}

/// A struct with a flexible array at its end, in values that are longer than the struct.
#[test]
fn flexible_arrays_go_on_as_far_as_the_value_does() {
    let mut b = Builder::new();
    let int = b.int("unsigned int", 4, false);
    let u64_ = b.int("unsigned long", 8, false);
    let char_ = b.int("char", 1, true);
    let many = b.array(u64_, 0);
    let pair = b.structure("pair", 8, &[("x", int, 0), ("y", int, 32)]);
    let pairs = b.array(pair, 0);
    let chars = b.array(char_, 0);
    let numbers = b.structure("numbers", 8, &[("len", int, 0), ("data", many, 64)]);
    let structs = b.structure("structs", 4, &[("len", int, 0), ("data", pairs, 32)]);
    let named = b.structure("named", 4, &[("len", int, 0), ("name", chars, 32)]);
    let amid = b.structure("amid", 12, &[("a", int, 0), ("here", chars, 32), ("b", u64_, 32)]);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    for (name, ty, value) in [
        ("numbers", numbers, bytes![3u64, 7u64, 8u64, 9u64, 1u32]),
        ("structs", structs, bytes![2u32, 1u32, 2u32, 3u32, 4u32]),
        ("named", named, [bytes![5u32], b"hello\0\0\0".to_vec()].concat()),
        ("amid", amid, bytes![1u32, 2u64]),
        ("short", numbers, bytes![3u64]),
    ] {
        o.map(name, "array", (int, ty), Rows { values: vec![value], ..Rows::default() });
    }
    let snap = Snapshot::new(meta("k"), o.maps, Vec::new());
    let entry = |name: &str| snap.map(name).unwrap().at(0).unwrap();
    let data = entry("numbers").get("data").unwrap();
    assert_eq!((data.kind(), data.as_array().unwrap().len()), (K::Array, 3));
    assert_eq!(data.to_string(), "[7, 8, 9]");
    assert_eq!(entry("numbers").get("data[2]").unwrap().as_u64(), Ok(9));
    assert_eq!(entry("numbers").value().unwrap().to_string(), "{len: 3, data: [7, 8, 9]}");
    assert_eq!(to_json(&entry("numbers").value().unwrap()), json!({ "len": 3, "data": [7, 8, 9] }));
    assert_eq!(
        text(entry("numbers").get("data[3]")),
        "\"numbers: data\" has no index 3: it has 3, from 0 to 2"
    );
    assert_eq!(entry("structs").get("data[1].y").unwrap().as_u64(), Ok(4));
    assert_eq!(entry("structs").get("data").unwrap().to_string(), "[{x: 1, y: 2}, {x: 3, y: 4}]");
    assert_eq!(entry("named").get("name").unwrap().as_str().as_deref(), Ok("hello"));
    assert_eq!(entry("named").get("name[1]").unwrap().as_u64(), Ok(u64::from(b'e')));
    assert_eq!(entry("amid").value().unwrap().to_string(), "{a: 1, here: \"\", b: 2}");
    assert_eq!(entry("short").value().unwrap().to_string(), "{len: 3, data: []}");
    for name in ["numbers", "structs", "named", "amid", "short"] {
        let all = serde_json::to_value(snap.map(name).unwrap().entries_as_json()).unwrap();
        assert_eq!(all, json!([{ "value": to_json(&entry(name).value().unwrap()) }]), "{name}");
    }
}

/// Variables: defined ones are there, those of other objects (`__ksym`) have no bytes.
#[test]
fn sections_have_the_variables_that_lie_in_them() {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let own = b.var("own", int);
    let ksym = b.raw("runqueues", 14, false, 0, int, &[2]);
    let pointer = b.ptr(int);
    let to = b.var("to", pointer);
    let bss = b.datasec(".bss", 16, &[(own, 0, 4), (to, 8, 8)]);
    b.datasec(".ksyms", 0, &[(ksym, 0, 4)]);
    let mut o = Object { btf: Some(b.parse()), maps: Vec::new() };
    let row = bytes![4i32, 0i32, 0u64];
    o.map("a.bss", "array", (0, bss), Rows { values: vec![row], ..Rows::default() });
    let snap = Snapshot::new(meta("k"), o.maps, Vec::new());
    let section = snap.map("a.bss").unwrap().at(0).unwrap().value().unwrap();
    assert_eq!(section.members().unwrap(), ["own", "to"]);
    assert_eq!(section.to_string(), "{own: 4, to: NULL}");
    assert_eq!(snap.global("own").unwrap().as_i64(), Ok(4));
    let error = text(snap.global("runqueues"));
    assert!(error.starts_with("no global variable is called \"runqueues\""), "{error}");
}
