//! What can be known of 64 bits, and of what is written into maps.

use crate::btf::TypeId;

/// An instruction (`struct bpf_insn`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Insn {
    pub(super) code: u8,
    pub(super) dst: u8,
    pub(super) src: u8,
    pub(super) off: i16,
    pub(super) imm: i32,
}

impl Insn {
    /// Bytes of one.
    pub(super) const SIZE: usize = 8;

    pub(super) fn decode(raw: &[u8; Insn::SIZE]) -> Insn {
        let [code, regs, o0, o1, i0, i1, i2, i3] = *raw;
        Insn {
            code,
            dst: regs & 0xf,
            src: regs >> 4,
            off: i16::from_le_bytes([o0, o1]),
            imm: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }
}

/// What is known of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    Number(i64),
    /// The program's context, and an offset.
    Context(i64),
    /// The frame's end, and an offset.
    Frame(i64),
    /// A `struct bpf_map`, by its place in the list of maps, and an offset.
    Map(usize, i64),
    /// In a value of a map.
    Value(usize, Place),
    /// An object of one of the kernel's types, or null, and an offset.
    Object(TypeId, i64),
    /// It may be in a value of one of these maps.
    Perhaps(Maps),
}

/// Maps by their place in the list; the last bit stands for all that have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Maps(u64);

impl Maps {
    const LAST: usize = 63;

    fn one(map: usize) -> Maps {
        Maps(1 << map.min(Maps::LAST))
    }

    fn has(self, map: usize) -> bool {
        self.0 & Maps::one(map).0 != 0
    }
}

/// A place in a value of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Exact(i64),
    /// Somewhere in a range: from here, so many bytes.
    In(i64, i64),
}

impl Place {
    pub(super) const ANYWHERE: Place = Place::In(0, i64::MAX);

    fn plus(self, n: i64) -> Place {
        match self {
            Place::Exact(at) => Place::Exact(at.wrapping_add(n)),
            range @ Place::In(..) => range,
        }
    }
}

impl Known {
    pub(super) fn plus(self, n: i64) -> Known {
        match self {
            Known::Number(a) => Known::Number(a.wrapping_add(n)),
            Known::Context(at) => Known::Context(at.wrapping_add(n)),
            Known::Frame(at) => Known::Frame(at.wrapping_add(n)),
            Known::Map(map, at) => Known::Map(map, at.wrapping_add(n)),
            Known::Value(map, at) => Known::Value(map, at.plus(n)),
            Known::Object(ty, at) => Known::Object(ty, at.wrapping_add(n)),
            known @ (Known::Nothing | Known::Perhaps(_)) => known,
        }
    }

    /// What is left of it where its value is not known any more.
    pub(super) fn vague(self) -> Known {
        match self {
            Known::Value(map, _) => Known::Perhaps(Maps::one(map)),
            known @ Known::Perhaps(_) => known,
            _ => Known::Nothing,
        }
    }

    /// What holds whichever of two ways was taken.
    pub(super) fn or(self, other: Known) -> Known {
        match (self, other) {
            (a, b) if a == b => a,
            (Known::Number(0), object @ Known::Object(_, 0))
            | (object @ Known::Object(_, 0), Known::Number(0)) => object,
            (Known::Number(0), value @ Known::Value(..))
            | (value @ Known::Value(..), Known::Number(0)) => value,
            (Known::Value(a, _), Known::Value(b, _)) if a == b => Known::Value(a, Place::ANYWHERE),
            (a, b) => match (a.vague(), b.vague()) {
                (Known::Perhaps(a), Known::Perhaps(b)) => Known::Perhaps(Maps(a.0 | b.0)),
                (Known::Perhaps(maps), _) | (_, Known::Perhaps(maps)) => Known::Perhaps(maps),
                _ => Known::Nothing,
            },
        }
    }

    /// A pointer goes where it is not followed any more, or is used where it is not known: anything
    /// may be written into the `count` maps that it may be in.
    pub(super) fn lose(self, count: usize, found: &mut dyn FnMut(Store)) {
        if let Known::Perhaps(maps) = self.vague() {
            (0..count).filter(|map| maps.has(*map)).for_each(|map| found(Store::anything(map)));
        }
    }
}

/// What a call does that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It gives something, and writes only what it is there to write.
    Gives(Known),
    /// It looks a value up in the map in its first argument.
    Looks,
    /// As [`Effect::Looks`], but it gives what the map keeps the value in.
    Finds,
    /// It copies a value into the map in its first argument, from what the third points to.
    Updates,
    /// It may write wherever an argument points.
    Writes,
    /// It hands values of the maps in its arguments to a function that it calls.
    Lends,
}

/// What instructions refer to.
pub(super) trait World {
    /// How many maps there are.
    fn maps(&self) -> usize;
    /// The type that the argument of the context at an offset points to.
    fn argument(&self, offset: i64) -> Option<TypeId>;
    /// The type that the pointer at an offset of an object points to.
    fn member(&self, ty: TypeId, offset: i64) -> Option<TypeId>;
    /// The type that the typed pointer at an offset of a map's value points to.
    fn pointer(&self, map: usize, offset: i64) -> Option<TypeId>;
    /// What lies at an address that an instruction has in it.
    fn address(&self, at: u64) -> Known;
    /// Where in a map its values begin, if they lie in it one after the other.
    fn values_at(&self, map: usize) -> Option<i64>;
    /// How far behind what [`Effect::Finds`] gives the value begins; `None` where no value of the
    /// map's type does, also with [`Effect::Looks`].
    fn value_behind(&self, map: usize, finds: bool) -> Option<i64>;
    /// What an index may be added to without leaving it: the variable at an offset of a value,
    /// where it begins and its bytes.
    fn variable(&self, map: usize, offset: i64) -> Option<(i64, i64)>;
    /// Bytes of a map's value.
    fn value_size(&self, map: usize) -> i64;
    /// What a call of a helper or kfunc does.
    fn call(&self, insn: Insn) -> Effect;
    /// Where the function of the program's own begins that an instruction calls.
    fn function(&self, at: usize, insn: Insn) -> Option<usize>;
    /// Whether an instruction is the first function's, which gives what it gives to the kernel.
    fn is_entry(&self, at: usize) -> bool;
}

/// Something that a program writes into the values of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Store {
    pub(super) map: usize,
    /// The first byte.
    pub(super) start: i64,
    /// Bytes; of a range in which it is, all.
    pub(super) len: i64,
    pub(super) what: Stored,
}

impl Store {
    /// Whatever one likes, wherever one likes.
    pub(super) fn anything(map: usize) -> Store {
        Store { map, start: 0, len: i64::MAX, what: Stored::Other }
    }

    /// As much as one likes from a place on.
    pub(super) fn from(map: usize, place: Place) -> Store {
        match place {
            Place::Exact(start) => Store { map, start, len: i64::MAX, what: Stored::Other },
            Place::In(start, len) => Store { map, start, len, what: Stored::Other },
        }
    }
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stored {
    Zero,
    /// The address of an object of that type, or null.
    Pointer(TypeId),
    Other,
}

impl From<Known> for Stored {
    fn from(known: Known) -> Stored {
        match known {
            Known::Number(0) => Stored::Zero,
            Known::Object(ty, 0) => Stored::Pointer(ty),
            _ => Stored::Other,
        }
    }
}

/// The places in the values of maps that only ever hold the address of one type of object, or null:
/// every store agrees, and there is one.
pub(super) fn agreed(stores: &[Store]) -> Vec<(usize, i64, TypeId)> {
    let pointers = stores.iter().filter_map(|s| match s.what {
        Stored::Pointer(ty) => Some((s.map, s.start, ty)),
        _ => None,
    });
    let mut out: Vec<_> = pointers.collect();
    out.sort_unstable();
    out.dedup();
    out.retain(|place| holds(*place, stores));
    out
}

fn holds((map, offset, ty): (usize, i64, TypeId), stores: &[Store]) -> bool {
    stores.iter().filter(|s| s.map == map).all(|s| {
        let (end, behind) = (s.start.saturating_add(s.len), offset.saturating_add(8));
        let apart = end <= offset || s.start >= behind;
        let same = s.start == offset && s.what == Stored::Pointer(ty);
        let zeroed = s.what == Stored::Zero && s.start <= offset && end >= behind;
        apart || same || zeroed
    })
}
