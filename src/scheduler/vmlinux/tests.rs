use proptest::prelude::*;

use super::*;
use crate::btf::testing::Builder;

/// What the header says between its prologue and its epilogue.
fn body(b: &Builder) -> String {
    let text = generate(&b.parse()).expect("a header");
    let (_, text) = text.split_once("#define __weak __attribute__((weak))\n#endif\n\n").unwrap();
    let (text, _) = text.split_once("\n#ifndef BPF_NO_PRESERVE_ACCESS_INDEX").unwrap();
    text.to_string()
}

#[test]
fn what_is_needed_comes_first_and_layouts_are_forced() {
    let mut b = Builder::new();
    let u8_ = b.int("unsigned char", 1, false);
    let u32_ = b.int("unsigned int", 4, false);
    let u64_ = b.int("long long unsigned int", 8, false);
    let rust = b.int("u64", 8, false);
    // `outer` uses by value what comes after it.
    let inner_id = b.next_id() + 1;
    b.structure("outer", 128, &[("first", u8_, 0), ("inner", inner_id, 512)]);
    let inner = b.structure("inner", 64, &[("a", u32_, 0)]);
    assert_eq!(inner, inner_id);
    b.structure("packed_thing", 5, &[("tag", u8_, 0), ("value", u32_, 8)]);
    b.bitfields("bits", 8, &[("low", u32_, 3, 5), ("word", u8_, 24, 0), ("high", u32_, 40, 7)]);
    let anonymous = b.union("", 8, &[("whole", u64_, 0), ("part", u32_, 0)]);
    let named_inside = b.structure("embedded", 8, &[("x", u64_, 0)]);
    let unnamed_enum = b.enumeration("", 4, false, &[("ONE", 1)]);
    let outer = b.structure(
        "holder",
        40,
        &[
            ("", anonymous, 0),
            ("", named_inside, 64),
            ("mode", unnamed_enum, 128),
            ("strange-name", rust, 192),
            ("int", u64_, 256),
        ],
    );
    let holder_p = b.ptr(outer);
    b.typedef("holder_t", holder_p);
    b.union("large", 64, &[("a", u64_, 0)]);
    b.structure("overlapping", 4, &[("a", u32_, 0), ("b", u32_, 16)]);
    assert_eq!(
        body(&b),
        "\
enum anonymous_enum_11 {
\tONE = 1,
};

struct outer;
struct inner;
struct packed_thing;
struct bits;
struct embedded;
struct holder;
union large;
struct overlapping;

struct inner {
\tunsigned int a;
\tint : 32;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
};

struct outer {
\tunsigned char first;
\tchar : 8;
\tshort : 16;
\tint : 32;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tlong : 64;
\tstruct inner inner;
};

struct packed_thing {
\tunsigned char tag;
\tunsigned int value;
} __attribute__((packed));

struct bits {
\tchar : 3;
\tunsigned int low : 5;
\tchar : 8;
\tchar : 8;
\tunsigned char word;
\tchar : 8;
\tunsigned int high : 7;
};

struct embedded {
\tlong long unsigned int x;
};

struct holder {
\tunion {
\t\tlong long unsigned int whole;
\t\tunsigned int part;
\t};
\tstruct {
\t\tlong long unsigned int x;
\t};
\tenum anonymous_enum_11 mode;
\tlong long unsigned int strange_name;
\tlong long unsigned int int_;
};

typedef struct holder *holder_t;

union large {
\tlong long unsigned int a;
} __attribute__((aligned(64)));

struct overlapping {
\tunsigned char __bytes[4];
};

#ifndef BPF_NO_KFUNC_PROTOTYPES
#endif
"
    );
}

#[test]
fn names_that_repeat_get_suffixes_and_kfuncs_get_prototypes() {
    let mut b = Builder::new();
    let int = b.int("int", 4, true);
    let u64_ = b.int("long long unsigned int", 8, false);
    let tiny = b.enumeration("state", 1, true, &[("DEAD", -1), ("ALIVE", 0)]);
    b.enum64("state", false, &[("ALIVE", 1 << 40), ("ALL", u64::MAX)]);
    b.structure("item", 4, &[("v", int, 0)]);
    b.structure("item", 8, &[("v", u64_, 0)]);
    let known = b.fwd("item", false);
    let hidden = b.fwd("hidden", false);
    let again = b.fwd("hidden", false);
    b.fwd("hidden", true);
    b.typedef("DEAD", int);
    let va = b.array(int, 1);
    b.typedef("__builtin_va_list", va);
    let (p, q, r) = (b.ptr(known), b.ptr(hidden), b.ptr(again));
    let arena = b.raw("address_space(1)", 18, true, 0, 0, &[]);
    let arena_p = b.ptr(arena);
    let proto =
        b.func_proto(arena_p, &[("item", p), ("", q), ("default", r), ("s", tiny), ("", 0)]);
    let kfunc = b.func("bpf_do", proto);
    b.decl_tag("bpf_kfunc", kfunc, -1);
    let other = b.func("not_for_bpf", proto);
    b.decl_tag("something_else", other, -1);
    let clash = b.func("DEAD", proto);
    b.decl_tag("bpf_kfunc", clash, -1);
    assert_eq!(
        body(&b),
        "\
enum state {
\tDEAD___2 = -1,
\tALIVE = 0,
} __attribute__((mode(QI)));

enum state___2 {
\tALIVE___2 = 1099511627776LL,
\tALL = 18446744073709551615ULL,
} __attribute__((mode(DI)));

struct item;
struct item___2;
struct item;
struct hidden;
struct hidden;
union hidden___2;

struct item {
\tint v;
};

struct item___2 {
\tlong long unsigned int v;
};

typedef int DEAD;

typedef int __builtin_va_list___2[1];

#ifndef BPF_NO_KFUNC_PROTOTYPES
extern void __attribute__((address_space(1))) *bpf_do(struct item *item, struct hidden *, \
struct hidden *default_, enum state s, ...) __weak __ksym;
#define __kfunc_bpf_do 1
#endif
"
    );
}

#[test]
fn what_c_cannot_say_is_refused_by_name() {
    let refused = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        build(&mut b);
        generate(&b.parse()).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|b| {
            let id = b.next_id();
            b.structure("matryoshka", 8, &[("self", id, 0)]);
        }),
        "type 1 (struct matryoshka) needs itself to be declared"
    );
    assert_eq!(
        refused(&|b| {
            let ptr = b.next_id() + 1;
            b.typedef("loop_t", ptr);
            b.ptr(1);
        }),
        "type 1 (loop_t) needs itself to be declared"
    );
    assert_eq!(
        refused(&|b| {
            // Each contains the next one.
            for i in 0..300 {
                let next = b.next_id() + 1;
                b.structure(&format!("s{i}"), 8, &[("m", next, 0)]);
            }
            b.int("long", 8, true);
        }),
        "type 202 (struct s201) nests more than 200 levels deep"
    );
    assert_eq!(
        refused(&|b| {
            // Each contains the one before it twice, written out both times.
            let mut at = b.int("int", 4, true);
            for _ in 0..40 {
                at = b.union("", 4, &[("a", at, 0), ("b", at, 0)]);
            }
            b.union("huge", 4, &[("", at, 0)]);
        }),
        "the header would be longer than 16 MiB"
    );
}

#[test]
fn huge_gaps_become_arrays() {
    let mut b = Builder::new();
    let byte = b.int("char", 1, true);
    b.structure("wider", 1 << 28, &[("first", byte, 0), ("last", byte, 8 * ((1 << 28) - 1))]);
    let text = body(&b);
    assert!(text.contains("\tunsigned char __padding_520[268434935];\n\tchar last;\n};"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever parses ends in a header or an error, soon.
    #[test]
    fn hostile_types_never_panic(types in prop::collection::vec((0u32..20, any::<u16>(), 0u32..12, 0u32..12, 0u32..12, any::<bool>()), 1..12)) {
        let mut b = Builder::new();
        for (kind, size, x, y, z, flag) in types {
            let size = u32::from(size % 64);
            let name = ["", "a", "b", "int"][(x % 4) as usize];
            match kind {
                1 => b.int(name, 4, flag),
                2 | 8..=11 | 18 => b.raw(name, kind, flag, 0, y, &[]),
                3 => b.array(y, x),
                4 | 5 => {
                    let members = [("m", y, size), ("", z, 8 * x)];
                    if kind == 4 { b.structure(name, size, &members) } else { b.union(name, size, &members) }
                }
                6 => b.enumeration(name, 4, flag, &[(name, 1)]),
                7 => b.fwd(name, flag),
                13 => b.func_proto(x, &[("p", y), ("q", z)]),
                _ => b.bitfields(name, 8, &[("b", y, x, z % 33)]),
            };
        }
        if let Ok(btf) = Btf::parse(&b.encode()) {
            let _ = generate(&btf);
        }
    }
}

#[test]
fn types_made_to_take_for_ever_do_not() {
    // Each prototype takes a pointer to the one before twice: 2^60 ways down.
    let mut b = Builder::new();
    let mut arg = b.int("int", 4, true);
    for _ in 0..60 {
        let proto = b.func_proto(0, &[("a", arg), ("b", arg)]);
        arg = b.ptr(proto);
    }
    b.typedef("callback", arg);
    generate(&b.parse()).expect("a header");

    let mut b = Builder::new();
    for _ in 0..30_000 {
        b.structure("same", 0, &[]);
    }
    let text = generate(&b.parse()).expect("a header");
    assert!(text.contains("struct same___30000 {"));

    // An array beyond all sizes as a member.
    let mut b = Builder::new();
    let byte = b.int("unsigned char", 1, false);
    let inner = b.array(byte, u32::MAX);
    let outer = b.array(inner, u32::MAX);
    b.structure("vast", 8, &[("bytes", outer, 0), ("tail", byte, 8)]);
    let _ = generate(&b.parse());
}
