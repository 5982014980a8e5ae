//! Asking a bloom filter, as the kernel does (kernel/bpf/bloom_filter.c).

use super::contents::{Contents, Detail};

/// More hash functions than the kernel takes (`map_extra` has four bits for them).
const MAX_HASHES: u64 = 15;

/// Whether `value` may have been put in: false is certain, true is not. `None` when the filter
/// is none that can be asked.
pub(crate) fn may_contain(filter: &dyn Contents, value: &[u8]) -> Option<bool> {
    let bits = filter.value(0)?;
    let number = |wanted: &str| {
        let found = filter.details().iter().find(|(name, _)| name == wanted);
        match found {
            Some((_, Detail::Number(n))) => Some(*n),
            _ => None,
        }
    };
    let (hashes, seed) = (number("nr_hash_funcs")?, number("hash_seed")? as u32);
    let mask = u32::try_from(number("bits")?.checked_sub(1)?).ok()?;
    if !(1..=MAX_HASHES).contains(&hashes) {
        return None;
    }
    for index in 0..hashes as u32 {
        let bit = jhash(value, seed.wrapping_add(index)) & mask;
        if bits.get(bit as usize / 8)? >> (bit % 8) & 1 == 0 {
            return Some(false);
        }
    }
    Some(true)
}

/// Bob Jenkins' hash of 2006 (lookup3, "hashlittle") with the kernel's start value. For whole
/// words `jhash2` gives the same.
fn jhash(bytes: &[u8], start: u32) -> u32 {
    const INITIAL: u32 = 0xdead_beef;
    let mut state = [INITIAL.wrapping_add(bytes.len() as u32).wrapping_add(start); 3];
    let mut rest = bytes;
    while rest.len() > 12 {
        let (block, after) = rest.split_at(12);
        add(&mut state, block);
        mix(&mut state);
        rest = after;
    }
    if !rest.is_empty() {
        add(&mut state, rest);
        last(&mut state);
    }
    state[2]
}

/// Adds up to twelve bytes, as three little-endian words.
fn add(state: &mut [u32; 3], bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        state[i / 4] = state[i / 4].wrapping_add(u32::from(*byte) << (8 * (i % 4)));
    }
}

/// Each step takes one word from another, turns it, and adds up two.
fn mix(state: &mut [u32; 3]) {
    for (step, turn) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
        let [a, b, c] = [step % 3, (step + 1) % 3, (step + 2) % 3];
        state[a] = state[a].wrapping_sub(state[c]) ^ state[c].rotate_left(turn);
        state[c] = state[c].wrapping_add(state[b]);
    }
}

fn last(state: &mut [u32; 3]) {
    for (step, turn) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        // c from b, a from c, b from a, and so on.
        let [to, from] = [(step + 2) % 3, (step + 1) % 3];
        state[to] = (state[to] ^ state[from]).wrapping_sub(state[from].rotate_left(turn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lookup3.c's author gives for his "hashlittle", whose start is `INITIAL + len + start`.
    #[test]
    fn hashes_are_those_of_the_author() {
        let text = b"Four score and seven years ago";
        assert_eq!(jhash(b"", 0), 0xdead_beef);
        assert_eq!(jhash(b"", 0xdead_beef), 0xbd5b_7dde);
        assert_eq!(jhash(text, 0), 0x1777_0551);
        assert_eq!(jhash(text, 1), 0xcd62_8161);
    }
}
