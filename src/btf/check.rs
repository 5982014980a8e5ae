//! What is checked before anything trusts the bytes of a BTF.
//!
//! The decoder behind this module allocates by what the header says and copies a type's name
//! once per type, so both are bounded here. References are checked once, so that walks need
//! no care about ids that do not exist. The limits are the kernel's own
//! (`include/uapi/linux/btf.h`: `BTF_MAX_TYPE`, `BTF_MAX_NAME_OFFSET`) where it has one.

use std::ops::Range;

use super::{Btf, Kind};

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: u32 = 24;
const MAX_TYPES: usize = 0x000f_ffff;
const MAX_STRINGS: usize = 0x00ff_ffff;
/// A vmlinux has some 150,000; each costs the decoder a table entry.
const MAX_STRING_COUNT: usize = 2_000_000;
/// The whole of it; a vmlinux has some 5 MB, kernels with everything built in 20.
const MAX_BYTES: usize = 128 << 20;
/// The names of all types, members, parameters and enumerators together, each counted as often
/// as it is used; a vmlinux has some 6 MB.
const MAX_NAME_BYTES: usize = 64 << 20;
/// One type's name. The kernel's own limit is 511 (`KSYM_NAME_LEN`); it is repeated in spellings.
const MAX_NAME: usize = 4096;

/// Why bytes are not a BTF that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Fewer bytes than a header.
    #[error("BTF is {len} bytes long, shorter than its {HEADER_LEN}-byte header")]
    TooShort {
        /// Bytes there are.
        len: usize,
    },
    /// It does not begin as BTF does.
    #[error("not BTF: it begins with {found:#06x} instead of {MAGIC:#06x}")]
    Magic {
        /// The first two bytes.
        found: u16,
    },
    /// Written by a machine of the other byte order.
    #[error("big-endian BTF cannot be read")]
    BigEndian,
    /// A version, flag or header length that this reader does not know.
    #[error("BTF header has {what} {found}, expected {expected}")]
    Header {
        /// Which header field.
        what: &'static str,
        /// Its value.
        found: u32,
        /// What would have been right.
        expected: &'static str,
    },
    /// A section that the bytes do not hold.
    #[error("BTF {what} section ({len} bytes at {at}) reaches past the {have} bytes there are")]
    Section {
        /// `type` or `string`.
        what: &'static str,
        /// Where it would start.
        at: u64,
        /// How long it would be.
        len: u64,
        /// Bytes there are.
        have: usize,
    },
    /// More of something than the kernel itself allows.
    #[error("BTF has {found} {what}, more than the {max} that are accepted")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The string section is not a sequence of zero-terminated UTF-8 strings.
    #[error("BTF string section {problem}")]
    Strings {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A type that cannot be.
    #[error("BTF type {id}: {problem}")]
    Type {
        /// Its id.
        id: u32,
        /// What is wrong with it.
        problem: String,
    },
    /// A split BTF was given as base.
    #[error("the base of a split BTF is itself split")]
    SplitBase,
    /// The decoder refused it.
    #[error("cannot decode BTF: {0}")]
    Decode(String),
    /// An id outside of this BTF.
    #[error("BTF has no type {id}: its ids end at {}", len - 1)]
    NoSuchType {
        /// The id asked for.
        id: u32,
        /// The number of ids.
        len: u32,
    },
    /// Typedefs or qualifiers that lead to themselves.
    #[error("BTF type {id} leads through typedefs without an end")]
    Endless {
        /// Where the walk began.
        id: u32,
    },
}

/// Where things are in checked bytes.
pub(super) struct Layout {
    /// Byte offset of each own type; a stand-alone BTF has a place for `void` in front.
    pub offsets: Vec<u32>,
    /// The string section.
    pub strings: Range<usize>,
}

/// The little-endian word at `at`.
pub(super) fn word(raw: &[u8], at: usize) -> Option<u32> {
    let bytes = raw.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Checks `raw`, a split BTF when there is a `base`.
pub(super) fn check(raw: &[u8], base: Option<&Btf>) -> Result<Layout, BtfError> {
    if raw.len() > MAX_BYTES {
        return Err(BtfError::TooMany { what: "bytes", found: raw.len(), max: MAX_BYTES });
    }
    let (types, strings) = sections(raw)?;
    let strings_base = base.map_or(0, Btf::strings_end);
    check_strings(&raw[strings.clone()], base.is_some())?;

    let mut offsets = Vec::new();
    if base.is_none() {
        offsets.push(0);
    }
    let first = base.map_or(0, Btf::len);
    let mut at = types.start;
    while at < types.end {
        let id = first + offsets.len() as u32;
        if id as usize > MAX_TYPES {
            return Err(BtfError::TooMany { what: "types", found: id as usize, max: MAX_TYPES });
        }
        offsets.push(at as u32);
        at = type_end(raw, at, types.end, id)?;
    }
    let layout = Layout { offsets, strings };
    References {
        raw,
        strings: &raw[layout.strings.clone()],
        base,
        strings_base,
        len: first + layout.offsets.len() as u32,
        name_bytes: 0,
    }
    .check(&layout, first)?;
    Ok(layout)
}

/// The type and string sections that the header declares.
fn sections(raw: &[u8]) -> Result<(Range<usize>, Range<usize>), BtfError> {
    if raw.len() < HEADER_LEN as usize {
        return Err(BtfError::TooShort { len: raw.len() });
    }
    let magic = u16::from_le_bytes([raw[0], raw[1]]);
    if magic == MAGIC.swap_bytes() {
        return Err(BtfError::BigEndian);
    }
    if magic != MAGIC {
        return Err(BtfError::Magic { found: magic });
    }
    let header = |what, found: u32, expected| BtfError::Header { what, found, expected };
    if raw[2] != 1 {
        return Err(header("version", raw[2].into(), "1"));
    }
    if raw[3] != 0 {
        return Err(header("flags", raw[3].into(), "0"));
    }
    let field = |i: usize| word(raw, 4 + 4 * i).unwrap_or_default();
    let hdr_len = field(0);
    if hdr_len < HEADER_LEN {
        return Err(header("length", hdr_len, "at least 24"));
    }
    let section = |what, off: u32, len: u32| {
        let (at, len) = (u64::from(hdr_len) + u64::from(off), u64::from(len));
        let have = raw.len();
        if at + len > have as u64 {
            return Err(BtfError::Section { what, at, len, have });
        }
        Ok(at as usize..(at + len) as usize)
    };
    let types = section("type", field(1), field(2))?;
    let strings = section("string", field(3), field(4))?;
    Ok((types, strings))
}

fn check_strings(strings: &[u8], split: bool) -> Result<(), BtfError> {
    let bad = |problem| Err(BtfError::Strings { problem });
    if strings.len() > MAX_STRINGS {
        return Err(BtfError::TooMany {
            what: "bytes of strings",
            found: strings.len(),
            max: MAX_STRINGS,
        });
    }
    if strings.is_empty() {
        return if split { Ok(()) } else { bad("is empty") };
    }
    if !split && strings[0] != 0 {
        return bad("does not begin with the empty string");
    }
    if strings.last() != Some(&0) {
        return bad("does not end with a zero byte");
    }
    if std::str::from_utf8(strings).is_err() {
        return bad("is not UTF-8");
    }
    let count = memchr::memchr_iter(0, strings).count();
    if count > MAX_STRING_COUNT {
        return Err(BtfError::TooMany { what: "strings", found: count, max: MAX_STRING_COUNT });
    }
    Ok(())
}

/// Bytes after the three-word header, for a type of `kind` with `vlen` parts.
fn detail_len(kind: Kind, vlen: usize) -> usize {
    match kind {
        Kind::Int | Kind::Var | Kind::DeclTag => 4,
        Kind::Array => 12,
        Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => 12 * vlen,
        Kind::Enum | Kind::FuncProto => 8 * vlen,
        _ => 0,
    }
}

fn bad_type(id: u32, problem: impl Into<String>) -> BtfError {
    BtfError::Type { id, problem: problem.into() }
}

/// Where the type at `at` ends.
fn type_end(raw: &[u8], at: usize, end: usize, id: u32) -> Result<usize, BtfError> {
    let cut = || bad_type(id, "the type section ends inside it");
    if end - at < 12 {
        return Err(cut());
    }
    let info = word(raw, at + 4).ok_or_else(cut)?;
    let number = (info >> 24 & 0x1f) as u8;
    let kind = Kind::from_number(number)
        .filter(|&k| k != Kind::Void)
        .ok_or_else(|| bad_type(id, format!("is of the unknown kind {number}")))?;
    let next = at + 12 + detail_len(kind, (info & 0xffff) as usize);
    if next > end {
        return Err(cut());
    }
    Ok(next)
}

/// The second pass: every id and every name offset inside a type exists.
struct References<'a> {
    raw: &'a [u8],
    strings: &'a [u8],
    base: Option<&'a Btf>,
    strings_base: u32,
    len: u32,
    name_bytes: usize,
}

impl References<'_> {
    fn check(mut self, layout: &Layout, first: u32) -> Result<(), BtfError> {
        for (local, &at) in layout.offsets.iter().enumerate() {
            if at != 0 {
                self.one(at as usize, first + local as u32)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, at: usize, id: u32) -> Result<(), BtfError> {
        let info = self.word(at + 4);
        let vlen = (info & 0xffff) as usize;
        let size_or_type = self.word(at + 8);
        let kind = Kind::from_number((info >> 24 & 0x1f) as u8).unwrap_or(Kind::Void);
        self.type_name(at, kind, id)?;
        match kind {
            Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Func
            | Kind::FuncProto
            | Kind::Var
            | Kind::DeclTag
            | Kind::TypeTag => self.type_exists(size_or_type, id)?,
            Kind::Int => self.int(at, size_or_type, id)?,
            Kind::Enum | Kind::Enum64 if !matches!(size_or_type, 1 | 2 | 4 | 8) => {
                return Err(bad_type(id, format!("an enum of {size_or_type} bytes")));
            }
            Kind::Float if !matches!(size_or_type, 2 | 4 | 8 | 12 | 16) => {
                return Err(bad_type(id, format!("a float of {size_or_type} bytes")));
            }
            _ => {}
        }
        let detail = at + 12;
        match kind {
            Kind::Array => {
                self.type_exists(self.word(detail), id)?;
                self.type_exists(self.word(detail + 4), id)?;
            }
            Kind::Struct | Kind::Union => {
                let bitfields = info >> 31 == 1;
                for part in (0..vlen).map(|i| detail + 12 * i) {
                    self.member(part, size_or_type, bitfields, id)?;
                }
            }
            Kind::Enum => self.names((0..vlen).map(|i| detail + 8 * i), id)?,
            Kind::Enum64 => self.names((0..vlen).map(|i| detail + 12 * i), id)?,
            Kind::FuncProto => {
                self.names((0..vlen).map(|i| detail + 8 * i), id)?;
                for part in (0..vlen).map(|i| detail + 8 * i) {
                    self.type_exists(self.word(part + 4), id)?;
                }
            }
            Kind::Datasec => {
                for part in (0..vlen).map(|i| detail + 12 * i) {
                    self.type_exists(self.word(part), id)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn int(&self, at: usize, size: u32, id: u32) -> Result<(), BtfError> {
        let encoding = self.word(at + 12);
        let (bits, offset) = (encoding & 0xff, encoding >> 16 & 0xff);
        if !matches!(size, 1 | 2 | 4 | 8 | 16) || bits == 0 || bits + offset > size * 8 {
            return Err(bad_type(
                id,
                format!("an integer of {bits} bits from bit {offset} in {size} bytes"),
            ));
        }
        Ok(())
    }

    fn member(&mut self, at: usize, size: u32, bitfields: bool, id: u32) -> Result<(), BtfError> {
        self.name_exists(self.word(at), id)?;
        self.type_exists(self.word(at + 4), id)?;
        let offset = self.word(at + 8);
        let bit = if bitfields { offset & 0xff_ffff } else { offset };
        if u64::from(bit) > u64::from(size) * 8 {
            return Err(bad_type(id, format!("a member at bit {bit} of a struct of {size} bytes")));
        }
        Ok(())
    }

    fn word(&self, at: usize) -> u32 {
        // The first pass checked that every type lies inside the bytes.
        word(self.raw, at).unwrap_or_default()
    }

    fn type_exists(&self, target: u32, id: u32) -> Result<(), BtfError> {
        if target < self.len {
            return Ok(());
        }
        let last = self.len - 1;
        Err(bad_type(id, format!("refers to type {target}, but ids end at {last}")))
    }

    fn names(&mut self, parts: impl Iterator<Item = usize>, id: u32) -> Result<(), BtfError> {
        for part in parts {
            self.name_exists(self.word(part), id)?;
        }
        Ok(())
    }

    /// A name exists, and all of them together stay in bounds. Gives its length.
    fn name_exists(&mut self, offset: u32, id: u32) -> Result<usize, BtfError> {
        let end = self.strings_base as usize + self.strings.len();
        if offset as usize >= end && offset != 0 {
            return Err(bad_type(
                id,
                format!("has a name at {offset}, past the {end} bytes of strings"),
            ));
        }
        let len = match (offset.checked_sub(self.strings_base), self.base) {
            (Some(own), _) => {
                let rest = self.strings.get(own as usize..).unwrap_or_default();
                memchr::memchr(0, rest).unwrap_or_default()
            }
            (None, Some(base)) => base.string(offset).map_or(0, str::len),
            (None, None) => 0,
        };
        self.name_bytes += len;
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(BtfError::TooMany {
                what: "bytes of names",
                found: self.name_bytes,
                max: MAX_NAME_BYTES,
            });
        }
        Ok(len)
    }

    /// A type's own name. Tags carry texts, which may be longer.
    fn type_name(&mut self, at: usize, kind: Kind, id: u32) -> Result<(), BtfError> {
        let len = self.name_exists(self.word(at), id)?;
        if len > MAX_NAME && !matches!(kind, Kind::DeclTag | Kind::TypeTag) {
            return Err(bad_type(id, format!("has a name of {len} bytes")));
        }
        Ok(())
    }
}
