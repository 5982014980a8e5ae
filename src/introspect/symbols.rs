//! Kernel symbols: names to sets of addresses, and back.

use std::sync::OnceLock;

use super::error::IntrospectError;
use crate::mem::Kva;

/// The symbols of a kernel image (not those of modules or BPF programs).
///
/// A name can stand for several addresses: static functions of different files share names.
pub struct Symbols {
    names: Names,
    addresses: Vec<u64>,
    /// The sets of names that come up more than once, ascending by their first symbol.
    repeated: Vec<(u32, Vec<u64>)>,
    by_address: OnceLock<Vec<u32>>,
}

/// One symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address.
    pub address: Kva,
    /// The letter that `/proc/kallsyms` shows for it.
    pub kind: char,
}

/// The names of symbols and where to find them.
pub(crate) struct Names {
    /// All names, one after the other, each after the symbol's letter.
    text: String,
    /// Where each name ends in `text`; each letter is where the one before it ends.
    ends: Vec<u32>,
    /// Open addressing over the hashes of names: the first symbol of each name, plus one.
    slots: Vec<u32>,
    /// Symbols whose name came up before, with the first one of that name; ascending.
    again: Vec<(u32, u32)>,
}

impl Names {
    /// Slots that are looked at per name, on average, before names count as chosen to collide.
    /// Honest ones need less than two.
    const MAX_PROBES: usize = 64;

    /// Takes ASCII `text` of letters and names, each ending where `ends` says. `None` when the
    /// names collide so badly that somebody must have chosen them to.
    pub(crate) fn new(text: String, ends: Vec<u32>) -> Option<Self> {
        let slots = vec![0; (ends.len() * 2).next_power_of_two().max(8)];
        let mut names = Names { text, ends, slots, again: Vec::new() };
        let mut probes = names.ends.len().saturating_mul(Self::MAX_PROBES);
        for i in 0..names.ends.len() {
            let slot = names.slot(names.name(i), &mut probes)?;
            match names.slots[slot] {
                0 => names.slots[slot] = i as u32 + 1,
                first => names.again.push((first - 1, i as u32)),
            }
        }
        names.again.sort_unstable();
        Some(names)
    }

    /// The slot where `name` is, or the free one where it belongs; takes what it looks at off
    /// `probes`.
    fn slot(&self, name: &str, probes: &mut usize) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let mut slot = crc32fast::hash(name.as_bytes()) as usize & mask;
        // Half of the slots are free, so this ends.
        loop {
            match self.slots[slot] {
                0 => return Some(slot),
                i if self.name(i as usize - 1) == name => return Some(slot),
                _ => slot = (slot + 1) & mask,
            }
            *probes = probes.checked_sub(1)?;
        }
    }

    /// Where the letter of symbol `i` is.
    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] as usize }
    }

    fn name(&self, i: usize) -> &str {
        &self.text[self.start(i) + 1..self.ends[i] as usize]
    }

    fn kind(&self, i: usize) -> char {
        char::from(self.text.as_bytes()[self.start(i)])
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of the first symbol of that name.
    fn first(&self, name: &str) -> Option<u32> {
        let slot = self.slot(name, &mut { usize::MAX })?;
        self.slots[slot].checked_sub(1)
    }

    /// The numbers of all symbols of that name.
    pub(crate) fn numbers(&self, name: &str) -> Vec<usize> {
        let Some(first) = self.first(name) else { return Vec::new() };
        let start = self.again.partition_point(|(f, _)| *f < first);
        let rest = self.again[start..].iter().take_while(|(f, _)| *f == first);
        std::iter::once(first).chain(rest.map(|(_, i)| *i)).map(|i| i as usize).collect()
    }
}

impl Symbols {
    /// Takes as many addresses as there are names.
    pub(crate) fn new(names: Names, addresses: Vec<u64>) -> Self {
        let mut repeated: Vec<(u32, Vec<u64>)> = Vec::new();
        for (first, i) in &names.again {
            let address = addresses[*i as usize];
            match repeated.last_mut() {
                Some((name, set)) if name == first => set.push(address),
                _ => repeated.push((*first, vec![addresses[*first as usize], address])),
            }
        }
        for (_, set) in &mut repeated {
            set.sort_unstable();
            set.dedup();
        }
        Symbols { names, addresses, repeated, by_address: OnceLock::new() }
    }

    /// Symbols by letter, name and address, in this order. `None` when there are too many, or names
    /// are not ASCII or chosen to collide.
    #[must_use]
    pub fn of<'a>(all: impl Iterator<Item = (char, &'a str, u64)>) -> Option<Symbols> {
        let (mut text, mut ends, mut addresses) = (String::new(), Vec::new(), Vec::new());
        for (kind, name, at) in all {
            text.push(kind);
            text.push_str(name);
            ends.push(u32::try_from(text.len()).ok()?);
            addresses.push(at);
        }
        let names = text.is_ascii().then(|| Names::new(text, ends))??;
        Some(Symbols::new(names, addresses))
    }

    /// The addresses that `name` stands for, ascending; empty when there is no such symbol.
    #[must_use]
    pub fn lookup(&self, name: &str) -> &[u64] {
        let Some(first) = self.names.first(name) else { return &[] };
        match self.repeated.binary_search_by_key(&first, |(i, _)| *i) {
            Ok(at) => &self.repeated[at].1,
            Err(_) => std::slice::from_ref(&self.addresses[first as usize]),
        }
    }

    /// The address of a symbol, if there is one: the first one of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Kva> {
        self.lookup(name).first().map(|at| Kva(*at))
    }

    /// The address of a symbol that has to be there: the first one of `name`.
    ///
    /// # Errors
    /// [`IntrospectError::NoSymbol`], with the nearest name there is.
    pub fn address(&self, name: &str) -> Result<Kva, IntrospectError> {
        self.get(name).ok_or_else(|| IntrospectError::NoSymbol {
            name: name.to_owned(),
            hint: self.nearest(name).map_or(String::new(), |n| format!("; nearest: '{n}'")),
        })
    }

    /// The name most like `name`, if one is alike.
    fn nearest(&self, name: &str) -> Option<&str> {
        (0..self.names.len())
            .map(|i| self.names.name(i))
            .filter(|n| n.len().abs_diff(name.len()) <= 2)
            .map(|n| (strsim::damerau_levenshtein(n, name), n))
            .filter(|(distance, _)| *distance <= 1 + name.len() / 6)
            .min()
            .map(|(_, n)| n)
    }

    /// The symbol at or before `at`, and how far `at` lies behind it. `None` outside of the
    /// kernel image.
    #[must_use]
    pub fn find_addr(&self, at: Kva) -> Option<(&str, u64)> {
        let by_address = self.by_address();
        let last = *by_address.last()?;
        // Below the kernel's half of the address space are only per-CPU offsets.
        if at.0 >> 63 == 0 || at.0 > self.addresses[last as usize] {
            return None;
        }
        let address = |i: &u32| self.addresses[*i as usize];
        let after = by_address.partition_point(|i| address(i) <= at.0);
        let found = address(by_address.get(after.checked_sub(1)?)?);
        // Of several names for one address the kernel, too, gives the first.
        let first = by_address.partition_point(|i| address(i) < found);
        Some((self.names.name(by_address[first] as usize), at.0 - found))
    }

    fn by_address(&self) -> &[u32] {
        self.by_address.get_or_init(|| {
            let mut order: Vec<u32> = (0..self.addresses.len() as u32).collect();
            // Nearly sorted already: the kernel keeps them by address.
            order.sort_by_key(|i| self.addresses[*i as usize]);
            order
        })
    }

    /// Bytes from `at` to the next symbol; `None` behind the last one.
    #[must_use]
    pub fn room_at(&self, at: Kva) -> Option<u64> {
        let by_address = self.by_address();
        let address = |i: &u32| self.addresses[*i as usize];
        let next = by_address.partition_point(|i| address(i) <= at.0);
        Some(address(by_address.get(next)?) - at.0)
    }

    /// The names most like `name`, nearest first; few, and none that is not alike.
    #[must_use]
    pub fn alike(&self, name: &str) -> Vec<&str> {
        let short = name.len().min(64);
        let mut found: Vec<(usize, &str)> = (0..self.names.len())
            .map(|i| self.names.name(i))
            .filter(|n| n.len().abs_diff(short) <= 2)
            .map(|n| (strsim::damerau_levenshtein(n, &name[..name.floor_char_boundary(short)]), n))
            .filter(|(distance, _)| *distance <= 1 + short / 4)
            .collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|(_, n)| n).take(3).collect()
    }

    /// All of them as bytes, from which [`Symbols::unpack`] makes them again: their number, the
    /// length of each name, each address less the one before it, the names. They are arranged so
    /// that they compress well.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.len() * 10 + self.names.text.len());
        out.extend((self.len() as u32).to_le_bytes());
        for i in 0..self.len() {
            let len = self.names.ends[i] as usize - self.names.start(i);
            out.extend((len as u16).to_le_bytes());
        }
        let mut last = 0;
        for at in &self.addresses {
            out.extend(at.wrapping_sub(last).to_le_bytes());
            last = *at;
        }
        out.extend(self.names.text.as_bytes());
        out
    }

    /// Symbols from bytes that nobody vouches for; `None` when they are not what
    /// [`Symbols::pack`] gives.
    #[must_use]
    pub fn unpack(bytes: &[u8]) -> Option<Symbols> {
        let (count, rest) = bytes.split_first_chunk()?;
        let count = u32::from_le_bytes(*count) as usize;
        let (lengths, rest) = rest.split_at_checked(count.checked_mul(2)?)?;
        let (steps, text) = rest.split_at_checked(count.checked_mul(8)?)?;
        let mut ends = Vec::with_capacity(count);
        let mut end = 0u32;
        for len in lengths.as_chunks().0 {
            let len = u16::from_le_bytes(*len);
            end = end.checked_add(u32::from(len)).filter(|_| len > 0)?;
            ends.push(end);
        }
        if end as usize != text.len() || !text.is_ascii() {
            return None;
        }
        let mut at = 0u64;
        let addresses = steps.as_chunks().0.iter().map(|step| {
            at = at.wrapping_add(u64::from_le_bytes(*step));
            at
        });
        let addresses = addresses.collect();
        let names = Names::new(String::from_utf8(text.to_vec()).ok()?, ends)?;
        Some(Symbols::new(names, addresses))
    }

    /// How many symbols there are, repeated names included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All symbols, in the kernel's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        (0..self.len()).map(|i| Symbol {
            name: self.names.name(i),
            address: Kva(self.addresses[i]),
            kind: self.names.kind(i),
        })
    }
}

impl Default for Symbols {
    /// None at all.
    fn default() -> Self {
        Symbols::of(std::iter::empty()).unwrap_or_else(|| unreachable!("no names do not collide"))
    }
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Symbols({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(all: &[(&str, u64)]) -> Symbols {
        let mut text = String::new();
        let mut ends = Vec::new();
        for (name, _) in all {
            text.push('T');
            text.push_str(name);
            ends.push(text.len() as u32);
        }
        let addresses = all.iter().map(|(_, a)| *a).collect();
        Symbols::new(Names::new(text, ends).unwrap(), addresses)
    }

    #[test]
    fn a_name_has_a_set_of_addresses() {
        let base = 0xffff_ffff_8100_0000;
        let s = symbols(&[
            ("cpu_info", 0x2000),
            ("_text", base),
            ("_stext", base),
            ("init", base + 0x30),
            ("run", base + 0x20),
            ("init", base + 0x10),
            ("init", base + 0x10),
            ("_end", base + 0x100),
        ]);
        assert_eq!(s.lookup("init"), [base + 0x10, base + 0x30]);
        assert_eq!(s.lookup("run"), [base + 0x20]);
        assert_eq!(s.lookup("ini"), [0; 0]);
        assert_eq!(s.find_addr(Kva(base + 8)), Some(("_text", 8)));
        assert_eq!(s.find_addr(Kva(base + 0x2f)), Some(("run", 0xf)));
        assert_eq!(s.find_addr(Kva(base + 0x100)), Some(("_end", 0)));
        assert_eq!(s.find_addr(Kva(base + 0x101)), None);
        assert_eq!(s.find_addr(Kva(0x2010)), None);
        assert_eq!(s.len(), 8);
    }

    #[test]
    fn packed_symbols_are_the_same_and_damaged_ones_none() {
        let base = 0xffff_ffff_8100_0000;
        let s = symbols(&[("cpu", 0x2000), ("_text", base), ("run", base + 8), ("run", base)]);
        let bytes = s.pack();
        let again = Symbols::unpack(&bytes).unwrap();
        assert!(s.iter().eq(again.iter()));
        assert_eq!(again.lookup("run"), [base, base + 8]);
        assert_eq!(Symbols::unpack(&symbols(&[]).pack()).unwrap().len(), 0);
        for len in 0..bytes.len() {
            assert!(Symbols::unpack(&bytes[..len]).is_none(), "{len}");
        }
        for (at, value) in [(0, 0xff), (3, 0xff), (4, 0), (4, 0xff), (bytes.len() - 1, 0x80)] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(Symbols::unpack(&damaged).is_none(), "{at}");
        }
    }

    #[test]
    fn names_that_all_collide_are_refused() {
        // Chosen as a guest would: all of them belong into the same few slots.
        let slots = (2 * 3000usize).next_power_of_two();
        let names = (0u32..).map(|i| format!("f{i}"));
        let names = names.filter(|n| (crc32fast::hash(n.as_bytes()) as usize & (slots - 1)) < 8);
        let mut text = String::new();
        let mut ends = Vec::new();
        for name in names.take(3000) {
            text.push('T');
            text.push_str(&name);
            ends.push(text.len() as u32);
        }
        assert!(Names::new(text, ends).is_none());
    }

    #[test]
    fn a_missing_symbol_comes_with_the_nearest_name() {
        let s = symbols(&[("map_idr", 1 << 63), ("prog_idr", 1 << 63)]);
        let e = s.address("map_idrr").unwrap_err();
        assert_eq!(e.to_string(), "the guest kernel has no symbol 'map_idrr'; nearest: 'map_idr'");
        let e = s.address("scx_root").unwrap_err();
        assert_eq!(e.to_string(), "the guest kernel has no symbol 'scx_root'");
        assert!(symbols(&[]).address("x").is_err());
        assert_eq!(symbols(&[]).find_addr(Kva(u64::MAX)), None);
    }
}
