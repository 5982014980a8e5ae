//! A few types for what nobody has given any: ids, and text that we make of what the kernel has.

use std::sync::Arc;

use super::{Btf, Shape, TypeId};

/// A BTF with the types here in it, and their ids.
#[derive(Clone, Debug)]
pub struct Basics {
    /// Where they are.
    pub btf: Arc<Btf>,
    /// A number of four bytes.
    pub u32: TypeId,
    /// A number of eight bytes.
    pub u64: TypeId,
    /// `char[]`: text as long as there are bytes.
    pub text: TypeId,
}

impl Basics {
    /// The types alone, or behind those of `base`, so that one BTF describes a key of ours and a
    /// value of the author's. Types that are split themselves cannot be gone on from: then alone.
    #[must_use]
    pub fn new(base: Option<&Arc<Btf>>) -> Basics {
        let split = base.and_then(|base| Btf::parse_split(&encode(Some(base)), base).ok());
        let first = split.as_ref().map_or(1, |btf| btf.first_id());
        let btf = split.unwrap_or_else(|| Btf::parse(&encode(None)).expect("it is well-formed"));
        Basics { btf, u32: first, u64: first + 1, text: first + 3 }
    }
}

/// Three integers and an array of the last, as `struct btf_header` wants them.
fn encode(base: Option<&Arc<Btf>>) -> Vec<u8> {
    let (ids, names) = base.map_or((1, 0), |base| (base.len(), base.strings_end()));
    const STRINGS: &[u8] = b"\0u32\0u64\0char\0";
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    /// `BTF_INT_CHAR`.
    const CHAR: u32 = 2 << 24;
    // Of a split BTF the empty string at the start is one of many; alone it has to be there.
    let types = [
        [names + 1, INT, 4, 32].as_slice(),
        &[names + 5, INT, 8, 64],
        &[names + 9, INT, 1, CHAR | 8],
        &[0, ARRAY, 0, ids + 2, ids, 0],
    ]
    .concat();
    let len = 4 * types.len() as u32;
    let mut out = b"\x9f\xeb\x01\0".to_vec();
    for word in [24, 0, len, len, STRINGS.len() as u32].iter().chain(&types) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(STRINGS);
    out
}

impl Btf {
    /// Whether values of a type are text without a length of its own: `char[]`.
    #[must_use]
    pub fn is_open_text(&self, id: TypeId) -> bool {
        let shape = self.shape(id);
        let Some(Shape::Array { elem, len: 0, .. }) = shape.as_deref().ok() else { return false };
        matches!(self.shape(*elem).as_deref(), Ok(Shape::Int { size: 1, char: true, .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::testing::Builder;

    fn check(types: &Basics) {
        let name = |id| types.btf.type_name(id);
        assert_eq!(
            (name(types.u32), name(types.u64), name(types.text)),
            ("u32".into(), "u64".into(), "char[]".into())
        );
        assert_eq!(
            (types.btf.size_of(types.u32), types.btf.size_of(types.text)),
            (Some(4), Some(0))
        );
        assert!(types.btf.is_open_text(types.text));
        assert!(!types.btf.is_open_text(types.u64));
    }

    #[test]
    fn they_stand_alone_and_behind_others() {
        check(&Basics::new(None));
        let mut b = Builder::new();
        let int = b.int("int", 4, true);
        let some = b.parse();
        let behind = Basics::new(Some(&some));
        check(&behind);
        assert_eq!((behind.btf.type_name(int).as_str(), behind.u32), ("int", 2));
        let alone = Basics::new(Some(&behind.btf));
        check(&alone);
        assert_eq!(alone.u32, 1, "what is split already cannot be split again");
    }
}
