//! Decoding of the kernel's own symbol table, as kernel/kallsyms.c reads it.
//!
//! Names are sequences of tokens: a length (one byte, or two from 128 on, see
//! "kallsyms: support big kernel symbols", 73bbb94466fd), then one byte per token. The first
//! character of a name is the symbol's letter. Addresses come in three encodings that VMCOREINFO
//! does not tell apart; the one under which symbols lie where VMCOREINFO has them is right.

use super::error::IntrospectError;
use super::space::AddressSpace;
use super::symbols::{Names, Symbols};
use super::vmcoreinfo::Vmcoreinfo;
use crate::mem::Kva;

/// More symbols than any kernel has (distribution kernels have about 200,000).
const MAX_SYMBOLS: u32 = 4 << 20;
/// More than the compressed names of that many symbols take in practice.
const MAX_NAMES: u64 = 64 << 20;
/// Longest name, with its letter (`KSYM_NAME_LEN`).
const MAX_NAME: usize = 512;
/// More than all names together take once they are expanded.
const MAX_TEXT: usize = 256 << 20;
const TOKENS: usize = 256;

/// How `kallsyms_offsets` becomes addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// `&kallsyms_offsets[i] + offset` (7.0 on, "kallsyms: Get rid of kallsyms relative base").
    SelfRelative,
    /// `kallsyms_relative_base + offset`, unsigned (6.15 on, "kallsyms: Remove
    /// KALLSYMS_ABSOLUTE_PERCPU", 01157ddc58dc).
    BaseRelative,
    /// Per-CPU symbols as they are; all others negative, from `kallsyms_relative_base`
    /// (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`).
    AbsolutePercpu,
}

const ENCODINGS: [Encoding; 3] =
    [Encoding::SelfRelative, Encoding::BaseRelative, Encoding::AbsolutePercpu];

/// The symbols by which an encoding is judged. VMCOREINFO has all of them; the first is text, the
/// second data, and a kernel that keeps symbols of data keeps the others too.
const WITNESSES: [&str; 4] = ["_stext", "init_uts_ns", "swapper_pg_dir", "node_online_map"];

/// The table of offsets and what it is relative to.
struct Offsets {
    at: Kva,
    raw: Vec<i32>,
    base: Option<u64>,
}

impl Offsets {
    fn address(&self, i: usize, encoding: Encoding) -> Option<u64> {
        let raw = self.raw[i];
        match encoding {
            Encoding::SelfRelative => {
                Some(self.at.offset(i as u64 * 4).0.wrapping_add_signed(i64::from(raw)))
            }
            Encoding::BaseRelative => Some(self.base?.wrapping_add(u64::from(raw as u32))),
            Encoding::AbsolutePercpu if raw >= 0 => Some(raw as u64),
            Encoding::AbsolutePercpu => {
                Some(self.base?.wrapping_sub(1).wrapping_add_signed(-i64::from(raw)))
            }
        }
    }
}

/// Reads all symbols of the kernel that `info` describes.
pub(crate) fn read(space: &AddressSpace, info: &Vmcoreinfo) -> Result<Symbols, IntrospectError> {
    let at = |name: &str| {
        info.symbol(name).ok_or_else(|| IntrospectError::NotBuilt {
            option: "CONFIG_KALLSYMS",
            detail: format!("its VMCOREINFO does not name {name}"),
        })
    };
    let count = space.read_u32(at("kallsyms_num_syms")?)?;
    if count == 0 || count > MAX_SYMBOLS {
        return Err(damaged(format!("it claims to have {count} symbols")));
    }
    let tokens = Tokens::read(space, at("kallsyms_token_table")?, at("kallsyms_token_index")?)?;
    let names_at = at("kallsyms_names")?;
    // The table of tokens comes behind the names, so it bounds them.
    let len = match at("kallsyms_token_table")?.0.wrapping_sub(names_at.0) {
        len @ 1..=MAX_NAMES => len,
        _ => MAX_NAMES,
    };
    let mut raw = vec![0; len as usize];
    let there = space.read_prefix(names_at, &mut raw);
    let names = expand(&raw[..there], count, &tokens)?;
    let offsets_at = at("kallsyms_offsets")?;
    let mut raw = vec![0; count as usize * 4];
    space.read(offsets_at, &mut raw)?;
    let base = info.symbol("kallsyms_relative_base").map(|at| space.read_u64(at)).transpose()?;
    let raw = raw.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    assemble(names, &Offsets { at: offsets_at, raw, base }, info)
}

fn damaged(what: String) -> IntrospectError {
    IntrospectError::Damaged(format!("its symbol table is damaged: {what}"))
}

/// What each of the 256 tokens stands for.
struct Tokens {
    table: Vec<u8>,
    /// First byte and end in `table`.
    span: Vec<(usize, usize)>,
}

impl Tokens {
    fn read(space: &AddressSpace, table: Kva, index: Kva) -> Result<Self, IntrospectError> {
        let mut raw = [0; TOKENS * 2];
        space.read(index, &mut raw)?;
        let starts = raw.as_chunks().0.iter().map(|b| usize::from(u16::from_le_bytes(*b)));
        let starts: Vec<usize> = starts.collect();
        let last = starts.iter().max().copied().unwrap_or(0);
        let mut bytes = vec![0; last + MAX_NAME];
        let there = space.read_prefix(table, &mut bytes);
        bytes.truncate(there);
        let mut span = Vec::with_capacity(TOKENS);
        for start in starts {
            let rest = bytes.get(start..).unwrap_or_default();
            let len = memchr::memchr(0, rest)
                .ok_or_else(|| damaged(format!("the token at {start} has no end")))?;
            span.push((start, start + len));
        }
        Ok(Tokens { table: bytes, span })
    }

    fn get(&self, token: u8) -> &[u8] {
        let (start, end) = self.span[usize::from(token)];
        &self.table[start..end]
    }
}

/// Expands `count` names.
fn expand(raw: &[u8], count: u32, tokens: &Tokens) -> Result<Names, IntrospectError> {
    let count = count as usize;
    let mut text: Vec<u8> = Vec::with_capacity(raw.len().saturating_mul(3).min(MAX_TEXT));
    let mut ends = Vec::with_capacity(count.min(raw.len()));
    let mut rest = raw;
    for i in 0..count {
        let name = next_name(&mut rest)
            .ok_or_else(|| damaged(format!("the names end after {i} of {count}")))?;
        let start = text.len();
        // The hottest loop of opening a kernel: plain, so that debug builds stay quick.
        for token in name {
            text.extend_from_slice(tokens.get(*token));
            if text.len() - start > MAX_NAME {
                return Err(damaged(format!("name {i} is longer than {MAX_NAME} bytes")));
            }
        }
        if text.len() == start {
            return Err(damaged(format!("name {i} is empty")));
        }
        if text.len() > MAX_TEXT {
            return Err(damaged(format!("its names take more than {} MiB", MAX_TEXT >> 20)));
        }
        ends.push(text.len() as u32);
    }
    if !text.is_ascii() {
        return Err(damaged("a name is not ASCII".into()));
    }
    let text = String::from_utf8(text).map_err(|e| damaged(e.to_string()))?;
    Names::new(text, ends).ok_or_else(|| damaged("its names are made to collide".into()))
}

/// Cuts the next name's tokens off `rest`.
fn next_name<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&low, mut after) = rest.split_first()?;
    let mut len = usize::from(low);
    if low & 0x80 != 0 {
        let (&high, more) = after.split_first()?;
        len = usize::from(low & 0x7f) | usize::from(high) << 7;
        after = more;
    }
    let (name, after) = after.split_at_checked(len)?;
    *rest = after;
    Some(name)
}

/// Joins names and addresses under the encoding that agrees with VMCOREINFO.
fn assemble(
    names: Names,
    offsets: &Offsets,
    info: &Vmcoreinfo,
) -> Result<Symbols, IntrospectError> {
    let witnesses: Vec<(&str, Kva, Vec<usize>)> = WITNESSES
        .iter()
        .filter_map(|name| Some((*name, info.symbol(name)?, names.numbers(name))))
        .filter(|(_, _, numbers)| !numbers.is_empty())
        .collect();
    for name in &WITNESSES[..2] {
        if info.symbol(name).is_some() && !witnesses.iter().any(|(n, ..)| n == name) {
            return Err(match *name {
                "_stext" => damaged("it lacks _stext".into()),
                _ => IntrospectError::NotBuilt {
                    option: "CONFIG_KALLSYMS_ALL",
                    detail: format!("its symbol table lacks {name}, which is data"),
                },
            });
        }
    }
    let agrees = |encoding: &Encoding| {
        witnesses.iter().all(|(_, at, candidates)| {
            candidates.iter().any(|i| offsets.address(*i, *encoding) == Some(at.0))
        })
    };
    let Some(encoding) = ENCODINGS.into_iter().find(agrees) else {
        return Err(damaged(
            "under none of the known encodings are its symbols where VMCOREINFO has them".into(),
        ));
    };
    // An encoding that agreed has its base, so no address is missing.
    let addresses =
        (0..names.len()).map(|i| offsets.address(i, encoding).unwrap_or_default()).collect();
    Ok(Symbols::new(names, addresses))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::paging::tests::Builder;
    use super::super::space::START_KERNEL_MAP;
    use super::*;
    use crate::mem::Gpa;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A kernel's tables, encoded as scripts/kallsyms.c would, in a small image.
    pub(crate) struct Encoded {
        pub(crate) names: Vec<u8>,
        pub(crate) table: Vec<u8>,
        pub(crate) index: Vec<u8>,
    }

    /// Tokens: every printable character stands for itself, and a few for longer strings.
    pub(crate) fn encode(symbols: &[(char, String)]) -> Encoded {
        let longer = ["Tinit_", "dma_", "_uts_ns", "__per_cpu", "sched_"];
        let mut table = Vec::new();
        let mut index = Vec::new();
        let mut tokens: Vec<Vec<u8>> = (0..=255u8)
            .map(|b| if (0x20..0x7f).contains(&b) { vec![b] } else { Vec::new() })
            .collect();
        for (i, word) in longer.iter().enumerate() {
            tokens[200 + i] = word.as_bytes().to_vec();
        }
        for token in &tokens {
            index.extend_from_slice(&(table.len() as u16).to_le_bytes());
            table.extend_from_slice(token);
            table.push(0);
        }
        let mut names = Vec::new();
        for (kind, name) in symbols {
            let text = format!("{kind}{name}");
            let mut rest = text.as_str();
            let mut coded = Vec::new();
            while !rest.is_empty() {
                let long = longer.iter().position(|w| rest.starts_with(w));
                let (token, len) =
                    long.map_or((rest.as_bytes()[0], 1), |i| (200 + i as u8, longer[i].len()));
                coded.push(token);
                rest = &rest[len..];
            }
            if coded.len() > 127 {
                names.extend([coded.len() as u8 | 0x80, (coded.len() >> 7) as u8]);
            } else {
                names.push(coded.len() as u8);
            }
            names.extend(coded);
        }
        Encoded { names, table, index }
    }

    const BASE: u64 = START_KERNEL_MAP + 0x100_0000;
    const OFFSETS: u64 = BASE + 0x8_0000;

    fn sample() -> Vec<(char, String, u64)> {
        let long = "x".repeat(300);
        [
            ('D', "cpu_info", 0x1_2340),
            ('T', "_text", BASE),
            ('T', "_stext", BASE),
            ('t', "init_dma_sched_", BASE + 0x20),
            ('t', "twice", BASE + 0x40),
            ('t', &long, BASE + 0x50),
            ('t', "twice", BASE + 0x60),
            ('D', "init_uts_ns", BASE + 0x10_0000),
            ('D', "swapper_pg_dir", BASE + 0x10_1000),
            ('B', "_end", BASE + 0x20_0000),
        ]
        .map(|(kind, name, at)| (kind, name.to_owned(), at))
        .to_vec()
    }

    fn offset_of(encoding: Encoding, i: usize, at: u64) -> i32 {
        match encoding {
            Encoding::SelfRelative => at.wrapping_sub(OFFSETS + i as u64 * 4) as i32,
            Encoding::BaseRelative => at.wrapping_sub(BASE) as u32 as i32,
            Encoding::AbsolutePercpu if at < BASE => at as i32,
            Encoding::AbsolutePercpu => -1 - (at - BASE) as i32,
        }
    }

    /// An image of two megabytes at `BASE` with the tables in it, and its VMCOREINFO.
    fn image(encoding: Encoding, symbols: &[(char, String, u64)]) -> (AddressSpace, Vmcoreinfo) {
        let named: Vec<_> = symbols.iter().map(|(k, n, _)| (*k, n.clone())).collect();
        let coded = encode(&named);
        let mut b = Builder::new(false);
        b.map(Kva(BASE), Gpa(0x20_0000), 21);
        let mut put = |at: u64, bytes: &[u8]| b.mem.write(Gpa(0x20_0000 + at - BASE), bytes);
        put(BASE + 0x1_0000, &(symbols.len() as u32).to_le_bytes());
        put(BASE + 0x1_0004, &coded.names);
        put(BASE + 0x4_0000, &coded.table);
        put(BASE + 0x5_0000, &coded.index);
        for (i, (.., at)) in symbols.iter().enumerate() {
            put(OFFSETS + i as u64 * 4, &offset_of(encoding, i, *at).to_le_bytes());
        }
        let mut text = format!(
            "OSRELEASE=t\nSYMBOL(swapper_pg_dir)={:x}\nSYMBOL(_stext)={BASE:x}\n\
             SYMBOL(init_uts_ns)={:x}\nSYMBOL(kallsyms_names)={:x}\n\
             SYMBOL(kallsyms_num_syms)={:x}\nSYMBOL(kallsyms_token_table)={:x}\n\
             SYMBOL(kallsyms_token_index)={:x}\nSYMBOL(kallsyms_offsets)={OFFSETS:x}\n",
            BASE + 0x10_1000,
            BASE + 0x10_0000,
            BASE + 0x1_0004,
            BASE + 0x1_0000,
            BASE + 0x4_0000,
            BASE + 0x5_0000,
        );
        if encoding != Encoding::SelfRelative {
            text += &format!("SYMBOL(kallsyms_relative_base)={:x}\n", BASE + 0x6_0000);
            put(BASE + 0x6_0000, &BASE.to_le_bytes());
        }
        let info = Vmcoreinfo::parse(Gpa(0), text.as_bytes()).unwrap();
        (AddressSpace::new(Arc::new(b.mem), b.tables), info)
    }

    #[test]
    fn each_encoding_is_told_by_itself() {
        for encoding in ENCODINGS {
            let mut want = sample();
            if encoding != Encoding::AbsolutePercpu {
                // Only that one can hold addresses far below the image.
                want.remove(0);
            }
            let (space, info) = image(encoding, &want);
            let symbols = read(&space, &info).unwrap();
            let got: Vec<_> =
                symbols.iter().map(|s| (s.kind, s.name.to_owned(), s.address.0)).collect();
            assert_eq!(got, want, "{encoding:?}");
            assert_eq!(symbols.lookup("twice"), [BASE + 0x40, BASE + 0x60]);
        }
    }

    #[test]
    fn a_table_that_contradicts_vmcoreinfo_is_refused() {
        let mut symbols = sample();
        symbols.remove(0);
        symbols[6].2 += 8;
        let (space, info) = image(Encoding::BaseRelative, &symbols);
        assert_eq!(
            read(&space, &info).unwrap_err().to_string(),
            "the guest kernel cannot be read: its symbol table is damaged: under none of the \
             known encodings are its symbols where VMCOREINFO has them"
        );
    }

    #[test]
    fn a_kernel_without_data_symbols_names_the_option() {
        let mut symbols = sample();
        symbols.retain(|(_, name, _)| name != "init_uts_ns");
        let (space, info) = image(Encoding::AbsolutePercpu, &symbols);
        assert_eq!(
            read(&space, &info).unwrap_err().to_string(),
            "the guest kernel was built without CONFIG_KALLSYMS_ALL: \
             its symbol table lacks init_uts_ns, which is data"
        );
        let info = Vmcoreinfo::parse(Gpa(0), b"OSRELEASE=t\nSYMBOL(swapper_pg_dir)=1").unwrap();
        assert_eq!(
            read(&space, &info).unwrap_err().to_string(),
            "the guest kernel was built without CONFIG_KALLSYMS: \
             its VMCOREINFO does not name kallsyms_num_syms"
        );
    }

    #[test]
    fn names_that_end_early_or_never_are_refused() {
        let tokens =
            |token: &[u8]| Tokens { table: token.to_vec(), span: vec![(0, token.len()); TOKENS] };
        let text = |raw: &[u8], count, token: &[u8]| {
            expand(raw, count, &tokens(token)).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(text(&[1, b'x'], 2, b"T").ends_with("the names end after 1 of 2"));
        assert!(text(&[5, b'x'], 1, b"T").ends_with("the names end after 0 of 1"));
        assert!(text(&[0x81], 1, b"T").ends_with("the names end after 0 of 1"));
        assert!(text(&[0, 0], 2, b"T").ends_with("name 0 is empty"));
        assert!(text(&[1, 1], 1, b"").ends_with("name 0 is empty"));
        assert!(text(&[2, 1, 1], 1, &[b'a'; 600]).ends_with("name 0 is longer than 512 bytes"));
        assert!(text(&[1, 1], 1, b"T\xff").ends_with("a name is not ASCII"));
    }

    proptest! {
        #[test]
        fn hostile_names_never_panic(
            raw in prop::collection::vec(any::<u8>(), 0..400),
            table in prop::collection::vec(any::<u8>(), 1..64),
            count in 1u32..5000,
        ) {
            let end = table.len();
            let span = (0..TOKENS).map(|i| (i % end, end)).collect();
            let _ = expand(&raw, count, &Tokens { table, span });
        }
    }
}
