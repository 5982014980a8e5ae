//! The way up a kernel stack, from function to caller.
//!
//! The kernel has a table that says for every place in its code where the frame of the function
//! there ends (`arch/x86/include/asm/orc_types.h`, `struct orc_entry`). Code that is made while it
//! runs, a BPF program's, has no such entries but keeps frame pointers.

/// Frames of one stack at most: a damaged one may go in circles.
pub(super) const MAX_FRAMES: usize = 256;

/// `ORC_REG_*`: what an offset is counted from. Their numbers depend on the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reg {
    #[default]
    Undefined,
    /// The end of the frame.
    PrevSp,
    Ax,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    /// What lies where `rbp` and the offset lead.
    BpIndirect,
    /// The offset, and what lies where `rsp` leads.
    SpIndirect,
}

/// The registers by their number, of a kernel whose tables have this mark: the SHA-1 of the lines
/// of `asm/orc_types.h` that define them (`scripts/orc_hash.sh`), at `__start_orc_header`.
pub(super) fn numbering(mark: [u8; 20]) -> Option<&'static [Reg]> {
    use Reg::{Ax, Bp, BpIndirect, Di, Dx, PrevSp, R10, R13, Sp, SpIndirect, Undefined};
    /// As in 6.12.
    const OLD: [u8; 20] =
        *b"\xfe\x5d\x32\xbf\x58\x1b\xd6\x3b\x2c\xa9\xa5\xc6\x5b\xa5\xa6\x25\xea\xb3\xfe\x24";
    /// As in 7.2.
    const NEW: [u8; 20] =
        *b"\x13\x7c\x36\xad\x76\x27\xc4\xdd\x55\x93\x21\x76\xbb\x0e\xcd\xbd\x50\x41\xfc\x82";
    match mark {
        OLD => Some(&[Undefined, PrevSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect]),
        NEW => Some(&[Undefined, Ax, Dx, Sp, Bp, Di, R10, R13, PrevSp, SpIndirect, BpIndirect]),
        _ => None,
    }
}

/// `ORC_TYPE_*`: what lies at the end of a frame.
mod kind {
    pub(super) const END_OF_STACK: u64 = 1;
    pub(super) const CALL: u64 = 2;
    pub(super) const REGS: u64 = 3;
    pub(super) const REGS_PARTIAL: u64 = 4;
}

/// `struct orc_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orc {
    pub(super) sp_offset: i64,
    pub(super) bp_offset: i64,
    pub(super) sp_reg: Reg,
    pub(super) bp_reg: Reg,
    pub(super) kind: u64,
    pub(super) signal: bool,
}

impl Orc {
    /// A function that has pushed `rbp` and copied `rsp` into it.
    const FRAME_POINTER: Orc = Orc {
        sp_offset: 16,
        bp_offset: -16,
        sp_reg: Reg::Bp,
        bp_reg: Reg::PrevSp,
        kind: kind::CALL,
        signal: false,
    };
}

/// Offsets in `struct pt_regs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegsLayout {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) bp: u64,
    pub(super) cs: u64,
    pub(super) ax: u64,
    pub(super) dx: u64,
    pub(super) di: u64,
    pub(super) r10: u64,
    pub(super) r13: u64,
}

/// What is asked of a kernel on the way.
pub(super) trait Stacks {
    /// Eight bytes of memory.
    fn word(&self, at: u64) -> Result<u64, String>;

    /// The table's entry for a place in the kernel's own code; `None` outside of that.
    fn orc(&self, ip: u64) -> Result<Option<Orc>, String>;

    /// Whether code was made there that keeps frame pointers.
    fn keeps_frames(&self, ip: u64) -> bool;

    fn layout(&self) -> RegsLayout;
}

/// Registers that a frame may be counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// None are known.
    None,
    /// The CPU's own, in the order `rax`, `rdx`, `rdi`, `r10`, `r13`.
    Cpu([u64; 5]),
    /// A `struct pt_regs` on the stack.
    At(u64),
}

/// A place on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) ip: u64,
    pub(super) sp: u64,
    pub(super) bp: u64,
    /// Whether `ip` is what was to be executed next, not the place to which a call returns.
    pub(super) exact: bool,
    pub(super) saved: Saved,
}

/// Where a stack ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// At the first function of its task or CPU.
    Bottom,
    /// Where the kernel was entered from user mode.
    User,
    /// Somewhere before, and why it could not be followed any further.
    Cut(String),
}

/// The places from `at` upwards, each with whether it is exact, and how they end.
pub(super) fn walk(stacks: &dyn Stacks, mut at: At) -> (Vec<(u64, bool)>, StackEnd) {
    let mut frames = Vec::new();
    loop {
        if frames.len() == MAX_FRAMES {
            let why = format!("there are more than {MAX_FRAMES} frames");
            return (frames, StackEnd::Cut(why));
        }
        frames.push((at.ip, at.exact));
        match caller(stacks, at) {
            Ok(Next::Frame(next)) if (next.ip, next.sp) == (at.ip, at.sp) => {
                return (frames, StackEnd::Cut("a frame is its own caller".to_owned()));
            }
            Ok(Next::Frame(next)) => at = next,
            Ok(Next::End(end)) => return (frames, end),
            Err(why) => return (frames, StackEnd::Cut(why)),
        }
    }
}

enum Next {
    Frame(At),
    End(StackEnd),
}

/// One step up.
fn caller(stacks: &dyn Stacks, at: At) -> Result<Next, String> {
    // A call may be the last instruction of a function: what it returns to is then another's.
    let place = if at.exact { at.ip } else { at.ip.wrapping_sub(1) };
    let orc = match stacks.orc(place)? {
        Some(orc) => orc,
        None if stacks.keeps_frames(place) => Orc::FRAME_POINTER,
        None => {
            let at = at.ip;
            return Err(format!("{at:#x} is neither in the kernel's image nor in a BPF program"));
        }
    };
    if orc.kind == kind::END_OF_STACK {
        return Ok(Next::End(StackEnd::Bottom));
    }
    let sp = frame_end(stacks, at, orc)?;
    let layout = stacks.layout();
    let mut next = At { exact: orc.signal, saved: Saved::None, ..at };
    match orc.kind {
        kind::CALL => {
            next.ip = stacks.word(sp.wrapping_sub(8))?;
            next.sp = sp;
        }
        kind::REGS | kind::REGS_PARTIAL => {
            // Of the partial ones only what an interrupt pushes by itself is there.
            let whole = orc.kind == kind::REGS;
            let regs = if whole { sp } else { sp.wrapping_sub(layout.ip) };
            let of_user = stacks.word(regs.wrapping_add(layout.cs))? & 3 == 3;
            if of_user {
                return Ok(Next::End(StackEnd::User));
            }
            next.ip = stacks.word(regs.wrapping_add(layout.ip))?;
            next.sp = stacks.word(regs.wrapping_add(layout.sp))?;
            next.saved = if whole { Saved::At(regs) } else { Saved::None };
        }
        _ => return Err(format!("the kernel has no unwind data for {:#x}", at.ip)),
    }
    next.bp = match (orc.bp_reg, next.saved) {
        (Reg::Undefined, Saved::At(regs)) => stacks.word(regs.wrapping_add(layout.bp))?,
        (Reg::Undefined, _) => at.bp,
        (Reg::PrevSp, _) => stacks.word(sp.wrapping_add_signed(orc.bp_offset))?,
        (Reg::Bp, _) => stacks.word(at.bp.wrapping_add_signed(orc.bp_offset))?,
        (other, _) => {
            return Err(format!("rbp is kept where it cannot be, {other:?}, at {:#x}", at.ip));
        }
    };
    match next.ip {
        0 => Err("a frame returns to NULL".to_owned()),
        _ => Ok(Next::Frame(next)),
    }
}

/// Where the frame ends: the caller's `rsp`.
fn frame_end(stacks: &dyn Stacks, at: At, orc: Orc) -> Result<u64, String> {
    let layout = stacks.layout();
    let saved = |place: usize, offset: u64| match at.saved {
        Saved::Cpu(regs) => Ok(regs[place]),
        Saved::At(regs) => stacks.word(regs.wrapping_add(offset)),
        Saved::None => {
            Err(format!("the frame at {:#x} is counted from a register that was not kept", at.ip))
        }
    };
    match orc.sp_reg {
        Reg::Sp => Ok(at.sp.wrapping_add_signed(orc.sp_offset)),
        Reg::Bp => Ok(at.bp.wrapping_add_signed(orc.sp_offset)),
        Reg::SpIndirect => Ok(stacks.word(at.sp)?.wrapping_add_signed(orc.sp_offset)),
        Reg::BpIndirect => stacks.word(at.bp.wrapping_add_signed(orc.sp_offset)),
        Reg::Ax => saved(0, layout.ax),
        Reg::Dx => saved(1, layout.dx),
        Reg::Di => saved(2, layout.di),
        Reg::R10 => saved(3, layout.r10),
        Reg::R13 => saved(4, layout.r13),
        Reg::Undefined | Reg::PrevSp => {
            Err(format!("the kernel has no unwind data for {:#x}", at.ip))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Code at 0x1000.. with entries by place, made code at 0x9000..0x9100.
    #[derive(Default)]
    struct MadeUp {
        words: BTreeMap<u64, u64>,
        orc: BTreeMap<u64, Orc>,
    }

    impl Stacks for MadeUp {
        fn word(&self, at: u64) -> Result<u64, String> {
            self.words.get(&at).copied().ok_or_else(|| format!("nothing at {at:#x}"))
        }
        fn orc(&self, ip: u64) -> Result<Option<Orc>, String> {
            let in_image = (0x1000..0x9000).contains(&ip);
            Ok(self.orc.range(..=ip).next_back().filter(|_| in_image).map(|(_, orc)| *orc))
        }
        fn keeps_frames(&self, ip: u64) -> bool {
            (0x9000..0x9100).contains(&ip)
        }
        fn layout(&self) -> RegsLayout {
            RegsLayout {
                ip: 128,
                cs: 136,
                sp: 152,
                bp: 32,
                ax: 80,
                dx: 96,
                di: 112,
                r10: 56,
                r13: 16,
            }
        }
    }

    const SP_8: Orc = Orc { sp_reg: Reg::Sp, kind: kind::CALL, sp_offset: 8, ..NONE };
    const NONE: Orc = Orc {
        sp_offset: 0,
        bp_offset: 0,
        sp_reg: Reg::Undefined,
        bp_reg: Reg::Undefined,
        kind: 0,
        signal: false,
    };
    const END: Orc = Orc { kind: kind::END_OF_STACK, ..NONE };

    fn at(ip: u64, sp: u64, bp: u64) -> At {
        At { ip, sp, bp, exact: true, saved: Saved::None }
    }

    fn made(orc: &[(u64, Orc)], words: &[(u64, u64)]) -> MadeUp {
        MadeUp { orc: orc.iter().copied().collect(), words: words.iter().copied().collect() }
    }

    #[test]
    fn calls_lead_to_the_bottom() {
        // The second function's call is its last instruction: 0x3000 is already another's.
        let orc = [(0x1000, SP_8), (0x2000, Orc { sp_offset: 24, ..SP_8 }), (0x3000, NONE)];
        let orc = [&orc[..], &[(0x4000, END)]].concat();
        let stacks = made(&orc, &[(0x100, 0x3000), (0x118, 0x4010)]);
        let (frames, end) = walk(&stacks, at(0x1004, 0x100, 0));
        assert_eq!(frames, [(0x1004, true), (0x3000, false), (0x4010, false)]);
        assert_eq!(end, StackEnd::Bottom);
    }

    #[test]
    fn made_code_is_followed_by_its_frame_pointers() {
        let stacks = made(
            &[
                (0x1000, SP_8),
                (0x4000, Orc { sp_reg: Reg::Bp, sp_offset: 16, ..SP_8 }),
                (0x5000, END),
            ],
            // The call into the helper, then rbp and the return address of two frames.
            &[(0x100, 0x9010), (0x200, 0x300), (0x208, 0x4001), (0x308, 0x5001)],
        );
        let (frames, end) = walk(&stacks, at(0x1004, 0x100, 0x200));
        let ips: Vec<u64> = frames.iter().map(|(ip, _)| *ip).collect();
        assert_eq!((ips, end), (vec![0x1004, 0x9010, 0x4001, 0x5001], StackEnd::Bottom));
    }

    #[test]
    fn interrupts_are_stepped_over_to_what_they_interrupted() {
        let entry = Orc { sp_reg: Reg::Sp, kind: kind::REGS, signal: true, ..NONE };
        let regs = 0x400u64;
        // Stacks are switched to the interrupt's own: the old rsp lies at the new one.
        let switched = Orc { sp_reg: Reg::SpIndirect, sp_offset: 8, ..SP_8 };
        let stacks = |cs| {
            made(
                &[(0x1000, switched), (0x2000, entry), (0x3000, SP_8), (0x4000, END)],
                &[
                    (0x100, regs - 8),
                    (regs - 8, 0x2001),
                    (regs + 32, 0x77),
                    (regs + 128, 0x3000),
                    (regs + 136, cs),
                    (regs + 152, 0x800),
                    (0x800, 0x4001),
                ],
            )
        };
        let (frames, end) = walk(&stacks(0x10), at(0x1004, 0x100, 0));
        // What was interrupted is exact: at the first instruction of a function it is its own.
        let want = [(0x1004, true), (0x2001, false), (0x3000, true), (0x4001, false)];
        assert_eq!((frames.as_slice(), end), (&want[..], StackEnd::Bottom));
        let (frames, end) = walk(&stacks(0x33), at(0x1004, 0x100, 0));
        assert_eq!((frames.len(), end), (2, StackEnd::User));
    }

    #[test]
    fn an_interrupts_own_part_is_enough() {
        let entry = Orc { sp_reg: Reg::Sp, kind: kind::REGS_PARTIAL, signal: true, ..NONE };
        let stacks = made(
            &[(0x2000, entry), (0x4000, END)],
            &[(0x100, 0x4001), (0x108, 0x10), (0x118, 0x800)],
        );
        let (frames, end) = walk(&stacks, at(0x2000, 0x100, 0));
        assert_eq!((frames.len(), frames[1], end), (2, (0x4001, true), StackEnd::Bottom));
    }

    #[test]
    fn frames_may_be_counted_from_other_registers() {
        for (sp_reg, place) in [Reg::Ax, Reg::Dx, Reg::Di, Reg::R10, Reg::R13].into_iter().zip(0..)
        {
            let orc = [(0x1000, Orc { sp_reg, ..SP_8 }), (0x4000, END)];
            let stacks = made(&orc, &[(0x1f8, 0x4001)]);
            let mut regs = [0; 5];
            regs[place] = 0x200;
            let from = At { saved: Saved::Cpu(regs), ..at(0x1004, 0x100, 0) };
            assert_eq!(walk(&stacks, from).1, StackEnd::Bottom, "{sp_reg:?}");
            let (frames, end) = walk(&stacks, at(0x1004, 0x100, 0));
            let why = "the frame at 0x1004 is counted from a register that was not kept";
            assert_eq!((frames.len(), end), (1, StackEnd::Cut(why.to_owned())));
        }
    }

    #[test]
    fn what_leads_nowhere_says_why() {
        let cut = |stacks: &MadeUp, ip| match walk(stacks, at(ip, 0x100, 0x100)) {
            (frames, StackEnd::Cut(why)) => (frames.len(), why),
            other => panic!("{other:?}"),
        };
        let none = made(&[(0x1000, NONE)], &[]);
        let no_data = "the kernel has no unwind data for 0x1004".to_owned();
        assert_eq!(cut(&none, 0x1004), (1, no_data));
        let outside = "0xa000 is neither in the kernel's image nor in a BPF program".to_owned();
        assert_eq!(cut(&none, 0xa000), (1, outside));
        let call = made(&[(0x1000, SP_8)], &[]);
        assert_eq!(cut(&call, 0x1004), (1, "nothing at 0x100".to_owned()));
        let null = made(&[(0x1000, SP_8)], &[(0x100, 0)]);
        assert_eq!(cut(&null, 0x1004), (1, "a frame returns to NULL".to_owned()));
        // rsp stays where it is, and the return address is itself.
        let same = made(&[(0x1000, Orc { sp_offset: 0, ..SP_8 })], &[(0xf8, 0x1004)]);
        assert_eq!(cut(&same, 0x1004), (1, "a frame is its own caller".to_owned()));
        let orc = [(0x1000, Orc { sp_offset: 0, ..SP_8 }), (0x2000, Orc { sp_offset: 8, ..SP_8 })];
        let back = made(&orc, &[(0xf8, 0x2004), (0x100, 0x2004)]);
        let back = MadeUp { words: (0..9000).map(|i| (8 * i, 0x2000 + i)).collect(), ..back };
        assert_eq!(cut(&back, 0x2004), (MAX_FRAMES, "there are more than 256 frames".to_owned()));
    }
}
