//! What an input means: not the bytes of an image or a file, but a list of decisions on how to
//! change a seed. So one small input reaches deep, and what a fuzzer does to it (change a byte,
//! append some) is one more decision.

/// Decisions, taken from bytes one after the other. When there are none left, all are zero.
pub struct Program<'a> {
    bytes: &'a [u8],
}

/// Numbers at which code tends to go wrong.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0xfff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

impl<'a> Program<'a> {
    /// The program that `bytes` are.
    pub fn new(bytes: &'a [u8]) -> Self {
        Program { bytes }
    }

    /// Whether nothing is left to decide.
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What has not been used yet.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *first
    }

    /// A number of `bytes` bytes.
    pub fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    /// A number below `len`; zero if that is zero.
    pub fn below(&mut self, len: usize) -> usize {
        let bytes = match len {
            0..=1 => return 0,
            2..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        (self.number(bytes) % len as u64) as usize
    }

    /// One of several.
    pub fn pick<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.below(all.len())]
    }

    /// A number that is likely to hurt, given the one that was there.
    pub fn worse(&mut self, was: u64) -> u64 {
        match self.byte() % 8 {
            0 | 1 => *self.pick(&EDGES),
            2 => was.wrapping_add(u64::from(self.byte())),
            3 => was.wrapping_sub(u64::from(self.byte())),
            4 => was ^ 1 << (self.byte() % 64),
            5 => was.wrapping_mul(1 << (self.byte() % 32)),
            6 => was ^ self.number(2),
            _ => self.number(8),
        }
    }

    /// Changes some of `bytes`, which stand for something without further structure.
    pub fn harm(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.byte() % 10 {
            0 => bytes.truncate(at),
            1 => {
                let len = self.below(64).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
            2 => {
                let (len, byte) = (self.below(64), self.byte());
                bytes.splice(at..at, std::iter::repeat_n(byte, len));
            }
            3 => {
                let from = self.below(bytes.len());
                let len = self.below(64).min(bytes.len() - from);
                let copy = bytes[from..from + len].to_vec();
                bytes.splice(at..at, copy);
            }
            4 | 5 => self.worse_at(bytes, at & !3, 4),
            6 => self.worse_at(bytes, at & !7, 8),
            7 => self.worse_at(bytes, at, 2),
            _ => self.worse_at(bytes, at, 1),
        }
    }

    /// Puts a number that is likely to hurt in the place of `len` bytes.
    fn worse_at(&mut self, bytes: &mut [u8], at: usize, len: usize) {
        let Some(place) = bytes.get_mut(at..at + len) else { return };
        let was = place.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        place.copy_from_slice(&self.worse(was).to_le_bytes()[..len]);
    }

    /// A seed with some changes; the first decision can be to take the rest as it is instead.
    pub fn bytes_from(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let first = self.byte();
        if first == 0xff || seeds.is_empty() {
            return self.rest().to_vec();
        }
        let mut bytes = seeds[usize::from(first) % seeds.len()].clone();
        while !self.is_over() {
            self.harm(&mut bytes);
        }
        bytes
    }
}
