//! What a program's instructions prove of the values that they store. Pure.
//!
//! A forward flow of abstract values over the instructions as the verifier has left them: where
//! two ways meet, what they do not agree on is unknown. A loop ends because a register only ever
//! goes from one value to "that or null" to unknown. Once it is not known any more where a pointer
//! into a map's values has got to, anything may be written into that map.
//!
//! ```text
//! ctx argument, kfunc ──▶ Object ──member──▶ Object ─┐
//! map, lookup ──▶ Value ─────────────────────────────┴──store──▶ Store { map, offset, what }
//! ```

use std::collections::BTreeMap;

use super::known::{Effect, Insn, Known, Place, Store, Stored, World};

/// Registers; the last one points at the frame.
const REGS: usize = 11;
const FRAME: usize = 10;
/// Slots of eight bytes in a frame (`MAX_BPF_STACK`).
const SLOTS: usize = 64;
/// Places where ways meet of which what is known is kept; each takes two kilobytes.
const MAX_MEETINGS: usize = 8 << 10;
/// `BPF_PSEUDO_CALL`: a function of the program's own.
const CALL: u8 = 1;
/// Instructions that are looked at, over all rounds, for each that there is.
const ROUNDS: usize = 64;

#[derive(Clone, PartialEq)]
struct State {
    regs: [Known; REGS],
    slots: [Known; SLOTS],
}

impl State {
    fn unknown() -> State {
        let mut regs = [Known::Nothing; REGS];
        regs[FRAME] = Known::Frame(0);
        State { regs, slots: [Known::Nothing; SLOTS] }
    }

    fn start() -> State {
        let mut state = State::unknown();
        state.regs[1] = Known::Context(0);
        state
    }

    fn or(&self, other: &State) -> State {
        let mut out = self.clone();
        let regs = out.regs.iter_mut().zip(&other.regs);
        let slots = out.slots.iter_mut().zip(&other.slots);
        regs.chain(slots).for_each(|(a, b)| *a = a.or(*b));
        out
    }

    fn reg(&self, number: u8) -> Known {
        self.regs.get(usize::from(number)).copied().unwrap_or(Known::Nothing)
    }

    fn set(&mut self, number: u8, known: Known) {
        // The frame's end does not move.
        if let Some(reg) = self.regs.get_mut(usize::from(number)).filter(|_| number != 10) {
            *reg = known;
        }
    }

    /// The slot that begins at an offset from the frame's end.
    fn slot(&self, offset: i64) -> Known {
        let place = slot_of(offset).filter(|_| offset.rem_euclid(8) == 0);
        place.map_or(Known::Nothing, |place| self.slots[place])
    }

    /// Writes `len` bytes into the frame.
    fn spill(&mut self, offset: i64, len: i64, known: Known) {
        let whole = len == 8 && offset.rem_euclid(8) == 0;
        for at in [offset, offset.wrapping_add(len - 1)] {
            if let Some(place) = slot_of(at) {
                self.slots[place] = if whole { known } else { Known::Nothing };
            }
        }
    }

    /// Somebody else may write into the frame, and take pointers out of it.
    fn forget_frame(&mut self, maps: usize, found: &mut dyn FnMut(Store)) {
        for slot in std::mem::replace(&mut self.slots, [Known::Nothing; SLOTS]) {
            slot.lose(maps, found);
        }
    }

    /// What a function of the program's own begins with when it is called.
    fn called(&self) -> State {
        let mut state = State::unknown();
        for number in 1..=5 {
            let known = self.reg(number);
            state
                .set(number, if matches!(known, Known::Frame(_)) { Known::Nothing } else { known });
        }
        state
    }
}

fn slot_of(offset: i64) -> Option<usize> {
    let place = offset.checked_neg()?.checked_sub(1)?.div_euclid(8);
    usize::try_from(place).ok().filter(|place| *place < SLOTS)
}

/// Where the flow goes after an instruction.
enum Next {
    On,
    Jump(usize),
    Either(usize),
    /// Into a function, and behind its call.
    Call(usize, Box<State>),
    End,
}

struct Flow<'a, W> {
    insns: &'a [Insn],
    world: &'a W,
    /// Where ways meet.
    meet: Vec<bool>,
    /// What is known there.
    at: BTreeMap<usize, State>,
    work: Vec<usize>,
    seen: Vec<bool>,
    steps: usize,
}

/// Everything that a program is found to write into maps; `None` when it takes too long to tell.
pub(super) fn stores<W: World>(insns: &[Insn], world: &W) -> Option<Vec<Store>> {
    let mut flow = Flow {
        insns,
        world,
        meet: meetings(insns, world),
        at: BTreeMap::new(),
        work: Vec::new(),
        seen: vec![false; insns.len()],
        steps: insns.len().saturating_mul(ROUNDS),
    };
    flow.enter(0, &State::start());
    let mut next = 0;
    loop {
        flow.settle()?;
        // What nothing leads to are functions that are called: of their arguments nothing is known.
        while flow.seen.get(next).is_some_and(|seen| *seen) {
            next += 1;
        }
        if next >= insns.len() {
            break;
        }
        flow.enter(next, &State::unknown());
    }
    let mut out = Vec::new();
    for (start, state) in &flow.at {
        flow.block(*start, state.clone(), &mut |store| out.push(store));
    }
    out.sort_unstable();
    out.dedup();
    Some(out)
}

/// The instructions that others lead to, and not only the one before.
fn meetings<W: World>(insns: &[Insn], world: &W) -> Vec<bool> {
    let mut out = vec![false; insns.len()];
    for (at, insn) in insns.iter().enumerate() {
        let to = match (insn.code & 7, insn.code & 0xf0) {
            (5, 0x80) if insn.src == CALL => world.function(at, *insn),
            (5, 0x80 | 0x90) => None,
            (6, 0x00) => target(at, insn.imm.into()),
            (5 | 6, _) => target(at, insn.off.into()),
            _ => None,
        };
        if let Some(place) = to.and_then(|to| out.get_mut(to)) {
            *place = true;
        }
    }
    out
}

/// Where a jump leads.
fn target(at: usize, offset: i64) -> Option<usize> {
    let to = i64::try_from(at).ok()?.checked_add(1)?.checked_add(offset)?;
    usize::try_from(to).ok()
}

impl<W: World> Flow<'_, W> {
    /// Another way leads to an instruction.
    fn enter(&mut self, at: usize, state: &State) {
        if at >= self.insns.len() {
            return;
        }
        let joined = match self.at.get(&at) {
            Some(known) => {
                let joined = known.or(state);
                if joined == *known {
                    return;
                }
                joined
            }
            None => state.clone(),
        };
        self.at.insert(at, joined);
        self.work.push(at);
    }

    /// Follows all ways until nothing changes.
    fn settle(&mut self) -> Option<()> {
        while let Some(start) = self.work.pop() {
            if self.at.len() > MAX_MEETINGS {
                return None;
            }
            let state = self.at.get(&start)?.clone();
            let (ways, walked) = self.block(start, state, &mut |_| {});
            self.steps = self.steps.checked_sub(walked)?;
            self.seen[start..start + walked].fill(true);
            for (at, state) in ways {
                self.enter(at, &state);
            }
        }
        Some(())
    }

    /// Follows instructions until a way forks or another one is known to come in. The ways on, and
    /// how many instructions that were.
    fn block(
        &self,
        start: usize,
        mut state: State,
        found: &mut dyn FnMut(Store),
    ) -> (Vec<(usize, State)>, usize) {
        let mut at = start;
        loop {
            let Some(insn) = self.insns.get(at) else { return (Vec::new(), at - start) };
            let wide = usize::from(insn.code == 0x18);
            let next = self.step(at, *insn, &mut state, found);
            let after = (at + 1 + wide).min(self.insns.len());
            let walked = after - start;
            match next {
                Next::End => return (Vec::new(), walked),
                Next::Jump(to) => return (vec![(to, state)], walked),
                Next::Either(to) => {
                    let (mut there, mut here) = (state.clone(), state);
                    // A comparison with null: `if r == 0 goto` and `if r != 0 goto`.
                    match insn.code {
                        0x15 if insn.imm == 0 => there.set(insn.dst, Known::Number(0)),
                        0x55 if insn.imm == 0 => here.set(insn.dst, Known::Number(0)),
                        _ => {}
                    }
                    return (vec![(to, there), (after, here)], walked);
                }
                Next::Call(to, called) => return (vec![(to, *called), (after, state)], walked),
                Next::On if self.meet.get(after).is_some_and(|meet| *meet) => {
                    return (vec![(after, state)], walked);
                }
                Next::On => at = after,
            }
        }
    }

    fn step(&self, at: usize, insn: Insn, state: &mut State, found: &mut dyn FnMut(Store)) -> Next {
        match insn.code & 7 {
            0 => {
                let high = self.insns.get(at + 1).map_or(0, |next| next.imm as u32);
                let value = u64::from(high) << 32 | u64::from(insn.imm as u32);
                let known = match insn.code {
                    0x18 if value < 1 << 32 => Known::Number(value as i64),
                    0x18 => self.world.address(value),
                    _ => Known::Nothing,
                };
                state.set(insn.dst, known);
            }
            1 => {
                let known = self.load(insn, state);
                state.set(insn.dst, known);
            }
            2 | 3 => self.store(insn, state, found),
            4 | 7 => {
                let known = self.computed(insn, state);
                state.set(insn.dst, known);
            }
            class => return self.jump(class, at, insn, state, found),
        }
        Next::On
    }

    /// `BPF_LDX`.
    fn load(&self, insn: Insn, state: &State) -> Known {
        // BPF_DW, plain or as the verifier marks what may fault (BPF_PROBE_MEM).
        if !matches!(insn.code, 0x79 | 0x39) {
            return Known::Nothing;
        }
        match state.reg(insn.src).plus(insn.off.into()) {
            Known::Context(at) => {
                self.world.argument(at).map_or(Known::Nothing, |ty| Known::Object(ty, 0))
            }
            Known::Frame(at) => state.slot(at),
            Known::Object(ty, at) => {
                self.world.member(ty, at).map_or(Known::Nothing, |ty| Known::Object(ty, 0))
            }
            Known::Value(map, Place::Exact(at)) => {
                self.world.pointer(map, at).map_or(Known::Nothing, |ty| Known::Object(ty, 0))
            }
            _ => Known::Nothing,
        }
    }

    /// `BPF_ST` and `BPF_STX`, atomic operations among the latter.
    fn store(&self, insn: Insn, state: &mut State, found: &mut dyn FnMut(Store)) {
        let len = match insn.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        };
        let (plain, constant) = (insn.code & 0xe0 == 0x60, insn.code & 7 == 2);
        let known = match (plain, constant) {
            (true, true) => Known::Number(insn.imm.into()),
            (true, false) => state.reg(insn.src),
            (false, _) => Known::Nothing,
        };
        match state.reg(insn.dst).plus(insn.off.into()) {
            Known::Frame(at) => state.spill(at, len, known),
            Known::Value(map, Place::Exact(start)) => {
                let what = if len == 8 { known.into() } else { Stored::Other };
                found(Store { map, start, len, what });
            }
            Known::Value(map, place) => found(Store::from(map, place)),
            other => other.lose(self.world.maps(), found),
        }
        if !plain {
            // What it may read goes into a register: the old value, or r0 of a comparison.
            state.set(insn.src, Known::Nothing);
            state.set(0, Known::Nothing);
        }
    }

    /// `BPF_ALU` and `BPF_ALU64`.
    fn computed(&self, insn: Insn, state: &State) -> Known {
        let right = match insn.code & 8 {
            0 => Known::Number(insn.imm.into()),
            _ => state.reg(insn.src),
        };
        let left = state.reg(insn.dst);
        match (insn.code & 7, insn.code & 0xf0) {
            // With an offset it extends a sign or goes to another address space.
            (7, 0xb0) if insn.off == 0 => right,
            (4, 0xb0) if insn.off == 0 => match right {
                Known::Number(n) => Known::Number((n as u32).into()),
                other => other.vague(),
            },
            (7, 0x00) => match (left, right) {
                (known, Known::Number(n)) | (Known::Number(n), known) => known.plus(n),
                (Known::Map(map, at), Known::Nothing) | (Known::Nothing, Known::Map(map, at)) => {
                    // What the verifier makes of a lookup in an array.
                    match self.world.values_at(map) {
                        Some(first) if first == at => Known::Value(map, Place::Exact(0)),
                        _ => Known::Nothing,
                    }
                }
                (Known::Value(map, at), Known::Nothing)
                | (Known::Nothing, Known::Value(map, at)) => {
                    Known::Value(map, self.indexed(map, at))
                }
                (left, right) => left.or(right).vague(),
            },
            (7, 0x10) => match (left, right) {
                (known, Known::Number(n)) => known.plus(n.wrapping_neg()),
                (Known::Value(map, at), Known::Nothing) => Known::Value(map, self.indexed(map, at)),
                (left, right) => left.or(right).vague(),
            },
            _ => left.vague(),
        }
    }

    /// A place that an index was added to: C keeps it in the same variable.
    fn indexed(&self, map: usize, place: Place) -> Place {
        match place {
            Place::Exact(at) => self
                .world
                .variable(map, at)
                .map_or(Place::ANYWHERE, |(start, len)| Place::In(start, len)),
            range @ Place::In(..) => range,
        }
    }

    /// `BPF_JMP` and `BPF_JMP32`.
    fn jump(
        &self,
        class: u8,
        at: usize,
        insn: Insn,
        state: &mut State,
        found: &mut dyn FnMut(Store),
    ) -> Next {
        match (class, insn.code & 0xf0) {
            (5, 0x90) => {
                if !self.world.is_entry(at) {
                    state.reg(0).lose(self.world.maps(), found);
                }
                Next::End
            }
            (5, 0x80) => {
                let function = match insn.src {
                    CALL => self.world.function(at, insn),
                    _ => None,
                };
                let called = function.map(|to| Next::Call(to, Box::new(state.called())));
                self.call(insn, called.is_some(), state, found);
                called.unwrap_or(Next::On)
            }
            (5, 0x00) => target(at, insn.off.into()).map_or(Next::End, Next::Jump),
            (6, 0x00) => target(at, insn.imm.into()).map_or(Next::End, Next::Jump),
            _ => target(at, insn.off.into()).map_or(Next::On, Next::Either),
        }
    }

    /// What a call leaves; `followed`: what it does with its arguments is looked at elsewhere.
    fn call(&self, insn: Insn, followed: bool, state: &mut State, found: &mut dyn FnMut(Store)) {
        let effect = match insn.src {
            CALL => Effect::Writes,
            _ => self.world.call(insn),
        };
        let map = match state.reg(1) {
            Known::Map(map, 0) => Some(map),
            _ => None,
        };
        let gives = match effect {
            Effect::Gives(known) => known,
            Effect::Looks | Effect::Finds => map.map_or(Known::Nothing, |map| {
                let behind = self.world.value_behind(map, effect == Effect::Finds);
                behind.map_or(Known::Nothing, |behind| {
                    Known::Value(map, Place::Exact(behind.wrapping_neg()))
                })
            }),
            Effect::Updates => {
                if let Some(map) = map {
                    self.update(map, state, found);
                }
                Known::Nothing
            }
            Effect::Writes => {
                for number in 1..=5 {
                    match state.reg(number) {
                        Known::Frame(_) => state.forget_frame(self.world.maps(), found),
                        Known::Value(map, place) if !followed => found(Store::from(map, place)),
                        Known::Perhaps(_) if !followed => {
                            state.reg(number).lose(self.world.maps(), found);
                        }
                        _ => {}
                    }
                }
                Known::Nothing
            }
            Effect::Lends => {
                for number in 1..=5 {
                    match state.reg(number) {
                        Known::Frame(_) => state.forget_frame(self.world.maps(), found),
                        Known::Map(map, _) => found(Store::anything(map)),
                        other => other.lose(self.world.maps(), found),
                    }
                }
                Known::Nothing
            }
        };
        for number in 1..=5 {
            state.set(number, Known::Nothing);
        }
        state.set(0, gives);
    }

    /// A value is copied into a map.
    fn update(&self, map: usize, state: &State, found: &mut dyn FnMut(Store)) {
        let size = self.world.value_size(map);
        let Known::Frame(from) = state.reg(3) else {
            found(Store::anything(map));
            return;
        };
        let words = size.clamp(0, 8 * SLOTS as i64).div_euclid(8);
        for word in 0..words {
            let what = state.slot(from.wrapping_add(8 * word)).into();
            found(Store { map, start: 8 * word, len: 8, what });
        }
        if size > 8 * words {
            found(Store { map, start: 8 * words, len: i64::MAX, what: Stored::Other });
        }
    }
}
