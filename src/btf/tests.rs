use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::testing::Builder;
use super::*;

/// A BTF with one of everything.
fn rich() -> (Builder, TypeId) {
    let mut b = Builder::new();
    let u32_ = b.int("unsigned int", 4, false);
    let u8_ = b.int("unsigned char", 1, false);
    let u32_t = b.typedef("u32", u32_);
    let vol = b.volatile(u32_t);
    let bytes = b.array(u8_, 16);
    let rows = b.array(bytes, 3);
    let anon = b.union("", 4, &[("low", u8_, 0), ("all", u32_t, 0)]);
    let point = b.bitfields(
        "point",
        64,
        &[("x", vol, 0, 0), ("flag", u32_, 37, 3), ("", anon, 64, 0), ("rows", rows, 96, 0)],
    );
    let ptr = b.ptr(point);
    let color = b.enumeration("color", 4, true, &[("RED", -1), ("BLUE", 7)]);
    b.enum64("mask", false, &[("ALL", u64::MAX)]);
    b.fwd("hidden", false);
    let proto = b.func_proto(ptr, &[("c", color), ("", 0)]);
    b.func("make", proto);
    let outer =
        b.structure("outer", 200, &[("one", point, 0), ("points", 0, 512), ("next", ptr, 1536)]);
    let var = b.var("origin", outer);
    b.datasec(".bss", 200, &[(var, 0, 200)]);
    b.decl_tag("bpf_kfunc", proto, -1);
    b.float("double", 8);
    (b, outer)
}

#[test]
fn shapes_see_through_typedefs_and_qualifiers() {
    let (b, _) = rich();
    let btf = b.parse();
    let u32_ = btf.find_c("u32").unwrap();
    assert!(matches!(
        &*btf.shape(u32_).unwrap(),
        Shape::Int { size: 4, bits: 32, signed: false, name, .. } if name == "unsigned int"
    ));
    let color = btf.find_c("enum color").unwrap();
    let shape = btf.shape(color).unwrap();
    let Shape::Enum(color) = &*shape else { panic!("{shape:?}") };
    assert_eq!(color.variants, [("RED".into(), -1), ("BLUE".into(), 7)]);
    assert_eq!(color.name_of(7), Some("BLUE"));
    let mask = btf.find("mask", Want::Enum).unwrap();
    assert!(matches!(
        &*btf.shape(mask).unwrap(),
        Shape::Enum(e) if e.size == 8 && e.variants == [("ALL".to_string(), i128::from(u64::MAX))]
    ));
    let sections = btf.datasecs();
    assert_eq!(sections[0].1, ".bss");
    assert!(matches!(
        &*btf.shape(sections[0].0).unwrap(),
        Shape::Datasec { vars, .. } if vars[0].name == "origin" && vars[0].size == 200
    ));
    let make = btf.find("make", Want::Func).unwrap();
    let shape = btf.shape(make).unwrap();
    let Shape::Func { proto, linkage: Linkage::Global, .. } = *shape else { panic!("{shape:?}") };
    assert!(matches!(
        &*btf.shape(proto).unwrap(),
        Shape::FuncProto { params, variadic: true, .. } if params.len() == 1
    ));
    // The same question gives the same allocation.
    assert!(Arc::ptr_eq(&btf.shape(u32_).unwrap(), &btf.shape(u32_).unwrap()));
}

#[test]
fn fields_are_found_through_anonymous_members_indices_and_bits() {
    let (b, outer) = rich();
    let btf = b.parse();
    let at = |path: &str| {
        let f = btf.field(outer, path).unwrap();
        (f.offset, f.size, f.bits.map(|b| (b.offset, b.len)))
    };
    assert_eq!(at(""), (0, 200, None));
    assert_eq!(at("one"), (0, 64, None));
    assert_eq!(at("one.x"), (0, 4, None));
    assert_eq!(at("one.flag"), (4, 1, Some((5, 3))));
    assert_eq!(at("one.low"), (8, 1, None));
    assert_eq!(at("one.rows"), (12, 48, None));
    assert_eq!(at("one.rows[2]"), (44, 16, None));
    assert_eq!(at("one.rows[2][15]"), (59, 1, None));
    assert_eq!(at("next"), (192, 8, None));
    let rows = btf.field(outer, "one.rows").unwrap().ty;
    assert_eq!(btf.field(rows, "[1][2]").unwrap().offset, 18);
}

#[test]
fn a_path_that_leads_nowhere_says_where_it_stopped() {
    let (b, outer) = rich();
    let btf = b.parse();
    let says = |path: &str| btf.field(outer, path).unwrap_err().to_string();
    assert_eq!(says("one.y"), "struct point has no member \"y\"; it has x, flag, low, all, rows");
    assert_eq!(says("next.x"), "\"next\" is a pointer (struct point *) and has no member \"x\"");
    assert_eq!(says("one.x.y"), "\"one.x\" is an integer (volatile u32) and has no member \"y\"");
    assert_eq!(says("one[1]"), "\"one\" is a struct (struct point) and cannot be indexed");
    assert_eq!(says("one.rows[3]"), "\"one.rows\" has 3 elements, index 3 is past its end");
    assert_eq!(says("one..x"), "path \"one..x\" has an empty component");
    assert_eq!(says("one."), "path \"one.\" has an empty component");
    for path in ["one.rows[", "one.rows[a]", "one.rows[1]x", "one.rows]", "one.rows[-1]"] {
        let component = &path[4..];
        assert_eq!(
            says(path),
            format!("path {path:?}: {component:?} is no member name with indices like \"name[3]\""),
        );
    }
    let u32_ = btf.find_c("u32").unwrap();
    assert_eq!(
        btf.field(u32_, "x").unwrap_err().to_string(),
        "\"the value\" is an integer (u32) and has no member \"x\""
    );
}

#[test]
fn types_are_spelled_as_in_c() {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let c_int = b.constant(int);
    let pc_int = b.ptr(c_int);
    let cpc_int = b.constant(pc_int);
    let arr = b.array(cpc_int, 4);
    let arr2 = b.array(arr, 2);
    let parr = b.ptr(arr2);
    let void_proto = b.func_proto(0, &[]);
    let fp = b.ptr(void_proto);
    let handler = b.func_proto(fp, &[("sig", int), ("f", fp), ("", 0)]);
    let handler_p = b.ptr(handler);
    let vtable = b.array(handler_p, 3);
    let tagged = b.type_tag("rcu", int);
    let tagged_p = b.ptr(tagged);
    let f = b.func("signal", handler);
    let anon = b.structure("", 4, &[("a", int, 0)]);
    let flex = b.array(int, 0);
    let btf = b.parse();
    for (id, want) in [
        (0, "void"),
        (c_int, "const int"),
        (pc_int, "const int *"),
        (cpc_int, "const int * const"),
        (arr, "const int * const[4]"),
        (arr2, "const int * const[2][4]"),
        (parr, "const int * const (*)[2][4]"),
        (void_proto, "void (void)"),
        (fp, "void (*)(void)"),
        (handler_p, "void (*(*)(int, void (*)(void), ...))(void)"),
        (vtable, "void (*(*[3])(int, void (*)(void), ...))(void)"),
        (tagged_p, "int *"),
        (f, "void (*signal(int, void (*)(void), ...))(void)"),
        (anon, "struct (anonymous)"),
        (flex, "int[]"),
        (999, "<no type 999>"),
    ] {
        assert_eq!(btf.type_name(id), want);
    }
}

#[test]
fn types_that_contain_or_name_themselves_end_in_an_error() {
    let mut b = Builder::new();
    let own = b.next_id();
    b.typedef("loop", own);
    let ptr = b.next_id();
    b.ptr(ptr);
    let arr = b.next_id();
    b.array(arr, 2);
    let rec = b.next_id();
    b.structure("rec", 8, &[("", rec, 0), ("", rec, 0)]);
    let proto = b.next_id();
    b.func_proto(proto, &[("a", proto), ("b", proto), ("c", proto)]);
    // Sixty levels, each with twice as many anonymous members as the one before.
    let mut wide = b.structure("", 8, &[]);
    for _ in 0..60 {
        wide = b.structure("", 8, &[("", wide, 0), ("", wide, 0)]);
    }
    let int = b.int("int", 4, true);
    let mut huge = int;
    for _ in 0..4 {
        huge = b.array(huge, u32::MAX);
    }
    let btf = b.parse();
    assert_eq!(btf.shape(own), Err(BtfError::Endless { id: own }));
    assert_eq!(btf.size_of(own), None);
    assert_eq!(btf.size_of(arr), None);
    assert_eq!(btf.size_of(huge), None);
    assert!(btf.shape(huge).is_err());
    assert!(btf.type_name(ptr).ends_with('*'));
    assert!(btf.type_name(proto).len() < 100_000);
    assert!(matches!(
        btf.field(rec, "x"),
        Err(FieldError::NoSuchMember { available, .. }) if available.is_empty()
    ));
    assert!(btf.field(wide, "x").is_err());
}

#[test]
fn split_btf_goes_on_where_its_base_ends() {
    let (base, outer) = rich();
    let base = base.parse();
    let mut b = Builder::split(&base);
    let ptr = b.ptr(outer);
    let module = b.structure("module_thing", 8, &[("o", ptr, 0)]);
    let btf = Btf::parse_split(&b.encode(), &base).unwrap();
    assert_eq!(btf.len(), base.len() + 2);
    assert_eq!(btf.find_c("struct module_thing"), Some(module));
    assert_eq!(btf.find_c("struct outer"), Some(outer));
    assert_eq!(btf.type_name(ptr), "struct outer *");
    assert_eq!(btf.field(outer, "one.low").unwrap().offset, 8);
    assert!(Arc::ptr_eq(&btf.shape(outer).unwrap(), &base.shape(outer).unwrap()));
    assert_eq!(Btf::parse_split(&b.encode(), &btf).unwrap_err(), BtfError::SplitBase);
}

#[test]
fn damaged_bytes_are_refused_by_name() {
    let (b, _) = rich();
    let good = b.encode();
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        Btf::parse(&bytes).unwrap_err().to_string()
    };
    let have = good.len();
    assert_eq!(with(&|b| b.truncate(10)), "BTF is 10 bytes long, shorter than its 24-byte header");
    assert_eq!(with(&|b| b[0] = 0), "not BTF: it begins with 0xeb00 instead of 0xeb9f");
    assert_eq!(with(&|b| b.swap(0, 1)), "big-endian BTF cannot be read");
    assert_eq!(with(&|b| b[2] = 2), "BTF header has version 2, expected 1");
    assert_eq!(with(&|b| b[3] = 1), "BTF header has flags 1, expected 0");
    assert_eq!(with(&|b| b[4] = 8), "BTF header has length 8, expected at least 24");
    assert_eq!(
        with(&|b| b[15] = 0xff),
        format!(
            "BTF type section ({} bytes at 24) reaches past the {have} bytes there are",
            u32::from_le_bytes([good[12], good[13], good[14], 0xff])
        )
    );
    assert_eq!(
        with(&|b| *b.last_mut().unwrap() = b'x'),
        "BTF string section does not end with a zero byte"
    );
    let strings = 24 + u32::from_le_bytes(good[16..20].try_into().unwrap()) as usize;
    assert_eq!(
        with(&|b| b[strings] = b'x'),
        "BTF string section does not begin with the empty string"
    );
    assert_eq!(with(&|b| b[strings + 1] = 0xff), "BTF string section is not UTF-8");
    assert_eq!(with(&|b| b[24 + 7] = 31), "BTF type 1: is of the unknown kind 31");
    assert_eq!(with(&|b| b[24 + 8] = 3), "BTF type 1: an integer of 32 bits from bit 0 in 3 bytes");
    assert_eq!(with(&|b| b[12] += 4), "BTF type 20: the type section ends inside it");

    let refused = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        build(&mut b);
        Btf::parse(&b.encode()).unwrap_err().to_string()
    };
    assert_eq!(refused(&|b| _ = b.ptr(7)), "BTF type 1: refers to type 7, but ids end at 1");
    assert_eq!(
        refused(&|b| _ = b.structure("s", 4, &[("m", 0, 33)])),
        "BTF type 1: a member at bit 33 of a struct of 4 bytes"
    );
    assert_eq!(
        refused(&|b| _ = b.enumeration("e", 3, false, &[])),
        "BTF type 1: an enum of 3 bytes"
    );
    assert_eq!(refused(&|b| _ = b.float("f", 5)), "BTF type 1: a float of 5 bytes");
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let btf = b.parse();
    assert_eq!(btf.shape(int + 1).unwrap_err().to_string(), "BTF has no type 2: its ids end at 1");
    assert_eq!(btf.parse_again_as_bytes().unwrap_err().to_string(), "BTF string section is empty");
}

impl Btf {
    /// Parses this BTF's bytes with the length of its strings set to nothing.
    fn parse_again_as_bytes(&self) -> Result<Arc<Btf>, BtfError> {
        let mut bytes = self.raw().to_vec();
        bytes[20..24].fill(0);
        Btf::parse(&bytes)
    }
}

#[test]
fn names_that_repeat_without_end_are_refused() {
    let refused = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        build(&mut b);
        Btf::parse(&b.encode()).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|b| _ = b.fwd(&"n".repeat(5000), false)),
        "BTF type 1: has a name of 5000 bytes"
    );
    // One long name, and many that use it.
    let text = "n".repeat(1 << 20);
    let members = vec![(text.as_str(), 0, 0); 65];
    assert_eq!(
        refused(&|b| _ = b.structure("s", 4, &members)),
        "BTF has 67108865 bytes of names, more than the 67108864 that are accepted"
    );
    assert_eq!(
        Btf::parse(&vec![0; (128 << 20) + 1]).unwrap_err().to_string(),
        "BTF has 134217729 bytes, more than the 134217728 that are accepted"
    );
    let mut b = Builder::new();
    b.fwd("n", false);
    let mut zeros = vec![0u8; 24 + 3_000_000];
    zeros[..24].copy_from_slice(&b.encode()[..24]);
    zeros[12..16].fill(0);
    zeros[16..20].fill(0);
    zeros[20..24].copy_from_slice(&3_000_000u32.to_le_bytes());
    assert_eq!(
        Btf::parse(&zeros).unwrap_err().to_string(),
        "BTF has 3000000 strings, more than the 2000000 that are accepted"
    );
}

/// Asks everything there is to ask of every type.
fn exercise(btf: &Btf) {
    for id in 0..btf.len() + 2 {
        let _ = btf.shape(id);
        let _ = btf.size_of(id);
        let _ = btf.type_name(id);
        let _ = btf.field(id, "one.rows[1][1]");
        let _ = btf.field(id, "nope");
        let _ = btf.decl_tag(id);
    }
    let _ = btf.names().count();
    let _ = btf.datasecs();
    let _ = btf.find("point", Want::Any);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn hostile_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut in any::<Option<prop::sample::Index>>()) {
        let mut bytes = rich().0.encode();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(btf) = Btf::parse(&bytes) {
            exercise(&btf);
        }
        let base = rich().0.parse();
        if let Ok(btf) = Btf::parse_split(&bytes, &base) {
            exercise(&btf);
        }
    }
}

#[test]
fn a_deferred_btf_is_parsed_when_it_is_asked_and_empty_when_it_is_none() {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let asked = Arc::new(AtomicBool::new(false));
    let (raw, told) = (b.encode(), asked.clone());
    let load = move || {
        told.store(true, Ordering::Relaxed);
        raw
    };
    let btf = Btf::deferred(load, None);
    assert!(!asked.load(Ordering::Relaxed));
    assert_eq!((btf.type_name(int), btf.len()), ("int".into(), 2));
    assert!(asked.load(Ordering::Relaxed));

    let mut split = Builder::split(&btf);
    let pointer = split.ptr(int);
    let raw = split.encode();
    assert_eq!(Btf::deferred(move || raw, Some(btf)).type_name(pointer), "int *");

    let none = Btf::deferred(|| b"no types".to_vec(), None);
    assert_eq!((none.len(), none.kind(1), none.datasecs().len()), (1, None, 0));
}
