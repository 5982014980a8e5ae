//! Enums whose names are bits, and values that are several of them.

use super::EnumShape;

impl EnumShape {
    /// Whether its names are bits that can be put together: most are one bit, and they are no mere
    /// count upwards from nothing (0, 1, 2, 3, 4 has three of one bit, too).
    #[must_use]
    pub fn is_flags(&self) -> bool {
        let mut values: Vec<i128> =
            self.variants.iter().map(|(_, value)| *value).filter(|value| *value != 0).collect();
        values.sort_unstable();
        values.dedup();
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else { return false };
        let single = values.iter().filter(|value| value.count_ones() == 1).count();
        let counts_up = most > 2 && usize::try_from(most).is_ok_and(|most| most == values.len());
        least > 0 && single >= 2 && 2 * single >= values.len() && !counts_up
    }

    /// The names of the bits that are set in a value that has no name of its own, lowest first, and
    /// the bits without one. `None` where the enum is no set of bits or no bit has a name.
    #[must_use]
    pub fn flags_of(&self, value: i128) -> Option<(Vec<&str>, i128)> {
        if value <= 0 || !self.is_flags() {
            return None;
        }
        let mut rest = value;
        let mut names = Vec::new();
        while rest != 0 {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            names.extend(self.name_of(bit).map(|name| (name, bit)));
        }
        let named = names.iter().fold(0, |all, (_, bit)| all | bit);
        (!names.is_empty()).then(|| (names.into_iter().map(|(n, _)| n).collect(), value & !named))
    }

    /// The value behind a name, or behind names of bits put together as in C: `A|B`.
    #[must_use]
    pub fn value_of(&self, spelled: &str) -> Option<i128> {
        let one = |name: &str| self.variants.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        one(spelled).or_else(|| {
            let several = spelled.contains('|') && self.is_flags();
            let mut names = spelled.split('|').filter(|_| several).peekable();
            names.peek()?;
            names.try_fold(0, |all, name| Some(all | one(name.trim())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(variants: &[(&str, i128)]) -> EnumShape {
        let variants = variants.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        EnumShape { name: "e".into(), size: 8, signed: false, variants }
    }

    #[test]
    fn bits_are_told_from_numbers() {
        let flags: [&[(&str, i128)]; 4] = [
            &[("A", 1), ("B", 2)],
            &[("NONE", 0), ("R", 1), ("W", 2), ("X", 8), ("RW", 3)],
            &[("WAKEUP", 1), ("HEAD", 16), ("LAST", 1 << 41), ("MASK", 0xff << 56)],
            &[("LOW", 1), ("HIGH", 1 << 63)],
        ];
        let numbers: [&[(&str, i128)]; 6] = [
            &[],
            &[("ZERO", 0), ("ONE", 1)],
            &[("A", 0), ("B", 1), ("C", 2), ("D", 3), ("E", 4)],
            &[("A", 1), ("B", 2), ("C", 3)],
            &[("NO", -1), ("A", 1), ("B", 2)],
            &[("A", 3), ("B", 5), ("C", 8), ("D", 16), ("E", 17)],
        ];
        for variants in flags {
            assert!(shape(variants).is_flags(), "{variants:?}");
        }
        for variants in numbers {
            assert!(!shape(variants).is_flags(), "{variants:?}");
            assert_eq!(shape(variants).flags_of(3), None);
        }
    }

    #[test]
    fn a_set_is_spelled_and_read_back() {
        let e = shape(&[("A", 1), ("B", 2), ("TOP", 1 << 63)]);
        assert_eq!(e.flags_of(3), Some((vec!["A", "B"], 0)));
        assert_eq!(e.flags_of((1 << 63) | 0x10 | 1), Some((vec!["A", "TOP"], 0x10)));
        assert_eq!((e.flags_of(0x10), e.flags_of(0), e.flags_of(-1)), (None, None, None));
        assert_eq!((e.value_of("A|B"), e.value_of("A | TOP")), (Some(3), Some((1 << 63) | 1)));
        assert_eq!((e.value_of("A|C"), e.value_of(""), e.value_of("|")), (None, None, None));
    }
}
