//! Made-up programs.

use super::flow::stores;
use super::known::*;

const TASK: u32 = 7;
const OTHER: u32 = 8;

/// One hash (map 0), one section with a variable of 16 bytes at 8 (map 1).
struct Made;

impl World for Made {
    fn maps(&self) -> usize {
        2
    }
    fn argument(&self, offset: i64) -> Option<u32> {
        [Some(TASK), None, Some(OTHER)].get(usize::try_from(offset / 8).ok()?).copied()?
    }
    fn member(&self, ty: u32, offset: i64) -> Option<u32> {
        ((ty, offset) == (OTHER, 16)).then_some(TASK)
    }
    fn pointer(&self, map: usize, offset: i64) -> Option<u32> {
        ((map, offset) == (0, 32)).then_some(TASK)
    }
    fn address(&self, at: u64) -> Known {
        match at {
            0x1_0000_0000 => Known::Map(0, 0),
            0x2_0000_0000.. => Known::Value(1, Place::Exact((at - 0x2_0000_0000) as i64)),
            _ => Known::Nothing,
        }
    }
    fn values_at(&self, _: usize) -> Option<i64> {
        None
    }
    fn value_behind(&self, map: usize, finds: bool) -> Option<i64> {
        (map == 0).then_some(if finds { 56 } else { 0 })
    }
    fn variable(&self, map: usize, offset: i64) -> Option<(i64, i64)> {
        (map == 1 && (8..24).contains(&offset)).then_some((8, 16))
    }
    fn value_size(&self, _: usize) -> i64 {
        24
    }
    fn call(&self, insn: Insn) -> Effect {
        match insn.imm {
            1 => Effect::Looks,
            2 => Effect::Finds,
            3 => Effect::Updates,
            4 => Effect::Gives(Known::Object(TASK, 0)),
            5 => Effect::Lends,
            _ => Effect::Writes,
        }
    }
    fn function(&self, at: usize, insn: Insn) -> Option<usize> {
        (at + 1).checked_add_signed(insn.imm as isize)
    }
    fn is_entry(&self, at: usize) -> bool {
        at < 100
    }
}

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, dst, src, off, imm }
}
/// `dst = *(u64 *)(src + off)`
fn load(dst: u8, src: u8, off: i16) -> Insn {
    insn(0x79, dst, src, off, 0)
}
/// `*(u64 *)(dst + off) = src`
fn store(dst: u8, off: i16, src: u8) -> Insn {
    insn(0x7b, dst, src, off, 0)
}
fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}
fn add(dst: u8, imm: i32) -> Insn {
    insn(0x07, dst, 0, 0, imm)
}
fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}
fn wide(dst: u8, at: u64) -> [Insn; 2] {
    [insn(0x18, dst, 0, 0, at as i32), insn(0, 0, 0, 0, (at >> 32) as i32)]
}
fn if_zero(dst: u8, off: i16) -> Insn {
    insn(0x15, dst, 0, off, 0)
}
const EXIT: Insn = Insn { code: 0x95, dst: 0, src: 0, off: 0, imm: 0 };
const MAP: u64 = 0x1_0000_0000;
const SECTION: u64 = 0x2_0000_0000;

fn program(parts: &[&[Insn]]) -> Vec<Insn> {
    parts.concat()
}

fn proven(parts: &[&[Insn]]) -> Vec<(usize, i64, u32)> {
    agreed(&stores(&program(parts), &Made).expect("it ends"))
}

/// `r6 = the task; r7 = the value of a lookup that found something`.
fn found() -> Vec<Insn> {
    program(&[
        &[load(6, 1, 0)],
        &wide(1, MAP),
        &[call(2), if_zero(0, 1), add(0, 56), mov(7, 0), insn(0x55, 7, 0, 1, 0), EXIT],
    ])
}

#[test]
fn an_argument_that_is_stored_is_a_pointer() {
    let stored = proven(&[&found(), &[store(7, 8, 6), EXIT]]);
    assert_eq!(stored, [(0, 8, TASK)]);
    let section = proven(&[&[load(6, 1, 0)], &wide(2, SECTION), &[store(2, 0, 6), EXIT]]);
    assert_eq!(section, [(1, 0, TASK)]);
    let number = proven(&[&[load(6, 1, 8)], &wide(2, SECTION), &[store(2, 0, 6), EXIT]]);
    assert_eq!(number, []);
}

#[test]
fn members_results_and_typed_pointers_are_followed() {
    let member = [load(2, 1, 16), load(3, 2, 16)];
    assert_eq!(proven(&[&member, &wide(4, SECTION), &[store(4, 0, 3), EXIT]]), [(1, 0, TASK)]);
    assert_eq!(proven(&[&[call(4)], &wide(4, SECTION), &[store(4, 0, 0), EXIT]]), [(1, 0, TASK)]);
    let typed = proven(&[&found(), &[load(3, 7, 32), store(7, 0, 3), EXIT]]);
    assert_eq!(typed, [(0, 0, TASK)]);
    let moved = [load(2, 1, 0), add(2, 8)];
    assert_eq!(proven(&[&moved, &wide(4, SECTION), &[store(4, 0, 2), EXIT]]), [], "a member of it");
}

#[test]
fn what_is_put_together_in_the_frame_goes_into_the_map() {
    let update = program(&[&wide(1, MAP), &[mov(3, 10), add(3, -24), call(3), EXIT]]);
    let whole = [load(6, 1, 0), store(10, -24, 6), store(10, -16, 1), store(10, -8, 6)];
    assert_eq!(proven(&[&whole, &update]), [(0, 0, TASK), (0, 16, TASK)]);
    let half = [load(6, 1, 0), store(10, -24, 6), insn(0x63, 10, 1, -20, 0)];
    assert_eq!(proven(&[&half, &update]), [], "half of it was overwritten");
}

#[test]
fn null_agrees_and_anything_else_does_not() {
    let zero = insn(0x7a, 7, 0, 8, 0);
    assert_eq!(proven(&[&found(), &[store(7, 8, 6), zero, EXIT]]), [(0, 8, TASK)]);
    let one = insn(0x7a, 7, 0, 8, 1);
    let half = insn(0x62, 7, 0, 12, 0);
    let other = [load(3, 10, -8), store(7, 8, 3)];
    let atomic = insn(0xdb, 7, 3, 8, 0);
    for spoils in [&[one][..], &[half], &other, &[atomic]] {
        assert_eq!(proven(&[&found(), &[store(7, 8, 6)], spoils, &[EXIT]]), [], "{spoils:?}");
    }
    let beside = insn(0x7a, 7, 0, 16, 1);
    assert_eq!(proven(&[&found(), &[store(7, 8, 6), beside, EXIT]]), [(0, 8, TASK)]);
}

#[test]
fn an_index_stays_in_its_variable() {
    let indexed = |from| {
        let base = wide(2, SECTION + from);
        let spoil = [insn(0x0f, 2, 9, 0, 0), store(2, 0, 9)];
        proven(&[&[load(6, 1, 0)], &wide(3, SECTION), &[store(3, 0, 6)], &base, &spoil, &[EXIT]])
    };
    assert_eq!(indexed(8), [(1, 0, TASK)], "the variable behind it");
    assert_eq!(indexed(0), [], "it lies in no variable");
}

#[test]
fn a_pointer_that_is_lost_may_write_anything() {
    // r8 is the value or a number.
    let forked = [mov(8, 7), if_zero(9, 1), mov(8, 9), store(8, 0, 9), EXIT];
    assert_eq!(proven(&[&found(), &[store(7, 8, 6)], &forked]), []);
    let unused = [mov(8, 7), if_zero(9, 1), mov(8, 9), EXIT];
    assert_eq!(proven(&[&found(), &[store(7, 8, 6)], &unused]), [(0, 8, TASK)]);
    let given = [mov(1, 7), call(9), EXIT];
    assert_eq!(proven(&[&found(), &[store(7, 8, 6)], &given]), [], "a helper may write");
    let lent = program(&[&wide(1, MAP), &[call(5), EXIT]]);
    assert_eq!(proven(&[&found(), &[store(7, 8, 6)], &lent]), [], "a callback gets values");
    let kept = [store(10, -8, 7), mov(1, 10), call(9), EXIT];
    assert_eq!(proven(&[&found(), &[store(7, 8, 6)], &kept]), [], "a helper reads it there");
}

#[test]
fn functions_are_entered_with_what_they_are_called_with() {
    let writes = |store: Insn| {
        let begin = found();
        // The call, an exit, and the function behind them.
        let body = [mov(1, 7), mov(2, 6), insn(0x85, 0, 1, 0, 1), EXIT, store, EXIT];
        proven(&[&begin, &body])
    };
    assert_eq!(writes(store(1, 8, 2)), [(0, 8, TASK)]);
    assert_eq!(writes(store(1, 8, 3)), []);
}

#[test]
fn loops_end_and_strange_code_is_survived() {
    // r2 walks through the value for ever.
    let walk = [mov(2, 7), store(2, 0, 6), add(2, 8), insn(0x05, 0, 0, -3, 0)];
    assert_eq!(proven(&[&found(), &walk]), []);
    assert_eq!(stores(&[], &Made), Some(vec![]));
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u8
    };
    for len in 0..400 {
        let raw: Vec<u8> = (0..len * 8).map(|_| random()).collect();
        let code: Vec<Insn> = raw.as_chunks().0.iter().map(Insn::decode).collect();
        if let Some(found) = stores(&code, &Made) {
            agreed(&found);
        }
    }
}
