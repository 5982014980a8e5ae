//! Kernel stacks of CPUs and tasks.

use std::fmt;
use std::sync::Arc;

use super::super::Snapshot;
use super::super::error::SnapshotResult;
use super::super::symbols::Symbols;
use super::names::in_image;
use super::unwind::{At, Orc, Reg, RegsLayout, Saved, StackEnd, Stacks, numbering, walk};
use super::{Cpu, KernelState, NotThere, Place, Task, unreadable};

/// Functions of the kernel that were being executed, the innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// One after the other, callers behind what they called.
    pub frames: Vec<Frame>,
    /// How it ends.
    pub end: StackEnd,
}

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where in it: what is executed next once what it called has returned.
    pub address: u64,
    /// The same as [`Snapshot::symbol`] tells it.
    pub symbol: Option<String>,
}

impl Stack {
    /// Whether all of it is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !matches!(self.end, StackEnd::Cut(_))
    }

    /// How it ends, in a few words.
    #[must_use]
    pub fn ending(&self) -> &str {
        match &self.end {
            StackEnd::Bottom => "the end of the stack",
            StackEnd::User => "user mode",
            StackEnd::Cut(why) => why,
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.symbol {
            Some(symbol) => f.write_str(&super::super::error_text::escaped_text(symbol)),
            None => write!(f, "{:#x}", self.address),
        }
    }
}

impl fmt::Display for Stack {
    /// A line a frame, and how it ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for frame in &self.frames {
            writeln!(f, "{frame}")?;
        }
        match &self.end {
            StackEnd::Cut(why) => write!(f, "<cut: {why}>"),
            _ => write!(f, "<{}>", self.ending()),
        }
    }
}

/// The kernel's tables and memory.
struct Tables<'s> {
    snapshot: &'s Arc<Snapshot>,
    state: &'s KernelState,
    symbols: &'s Symbols,
    /// By their numbers in the entries.
    registers: &'static [Reg],
    layout: RegsLayout,
    /// Addresses of the places (`s32` from themselves), their number, and of the entries.
    ips: u64,
    count: u64,
    entries: u64,
    entry_size: u64,
}

impl<'s> Tables<'s> {
    fn new(snapshot: &'s Arc<Snapshot>) -> SnapshotResult<Tables<'s>> {
        let what = "a kernel stack";
        // Tables and stacks are in no other freeze.
        snapshot.ram()?;
        let (state, symbols) = (snapshot.kernel_state()?, snapshot.symbols()?);
        let btf = state.types()?;
        let entry = btf.find_c("struct orc_entry");
        let once = |name: &str| {
            let found = symbols.addresses(name).first().copied();
            found.ok_or_else(|| unreadable(what, format!("the kernel has no symbol '{name}'")))
        };
        let mark = once("__start_orc_header")?;
        let mark = state.at(mark, 20).ok().and_then(|mark| <[u8; 20]>::try_from(&mark[..]).ok());
        let registers = mark.and_then(numbering).ok_or_else(|| {
            unreadable(what, "the kernel's unwind tables are of a kind that is not known here")
        })?;
        let ips = once("__start_orc_unwind_ip")?;
        let count = once("__stop_orc_unwind_ip")?.saturating_sub(ips) / 4;
        let regs = btf.find_c("struct pt_regs");
        let offset = |name: &str| {
            let field = regs.and_then(|ty| btf.field(ty, name).ok());
            let none = || unreadable(what, format!("the kernel's registers have no {name:?}"));
            Ok(field.ok_or_else(none)?.offset)
        };
        let layout = RegsLayout {
            ip: offset("ip")?,
            sp: offset("sp")?,
            bp: offset("bp")?,
            cs: offset("cs")?,
            ax: offset("ax")?,
            dx: offset("dx")?,
            di: offset("di")?,
            r10: offset("r10")?,
            r13: offset("r13")?,
        };
        let entry_size = entry.and_then(|ty| btf.size_of(ty)).unwrap_or_default();
        let entries = once("__start_orc_unwind")?;
        Ok(Tables { snapshot, state, symbols, registers, layout, ips, count, entries, entry_size })
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        let bytes = self.state.at(at, N as u64).map_err(|why| match why {
            NotThere::NotCopied => format!("{at:#x} was not copied"),
            NotThere::Unreadable(why) => why,
        })?;
        bytes[..].try_into().map_err(|_| format!("there are too few bytes at {at:#x}"))
    }

    /// The place that entry `i` is for and all behind it, up to the next.
    fn place(&self, i: u64) -> Result<u64, String> {
        let at = self.ips.wrapping_add(4 * i);
        Ok(at.wrapping_add_signed(i64::from(i32::from_le_bytes(self.read(at)?))))
    }

    /// The stack from a place on.
    fn stack(&self, at: At) -> SnapshotResult<Stack> {
        let (places, end) = walk(self, at);
        let frame = |(address, exact): (u64, bool)| -> SnapshotResult<Frame> {
            let symbol = self.snapshot.symbol_before(address, u64::from(!exact))?;
            Ok(Frame { address, symbol })
        };
        Ok(Stack { frames: places.into_iter().map(frame).collect::<Result<_, _>>()?, end })
    }
}

impl Stacks for Tables<'_> {
    fn word(&self, at: u64) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.read(at)?))
    }

    fn orc(&self, ip: u64) -> Result<Option<Orc>, String> {
        if !in_image(self.symbols, ip) {
            return Ok(None);
        }
        // The last place that is not behind it.
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.place(middle)? <= ip {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let Some(i) = low.checked_sub(1) else {
            return Err(format!("the kernel has no unwind data for {ip:#x}"));
        };
        let at = self.entries.wrapping_add(i.wrapping_mul(self.entry_size));
        let entry = || -> SnapshotResult<Orc> {
            let what = format!("the unwind data for {ip:#x}");
            let entry = Place::of_type(self.snapshot, what, at, "struct orc_entry")?;
            let number = |name| entry.get(name)?.as_u64();
            let register = |name| -> SnapshotResult<Reg> {
                let found = self.registers.get(number(name)? as usize).copied();
                found.ok_or_else(|| entry.mismatch("a register", format!("another {name}")))
            };
            Ok(Orc {
                sp_offset: entry.get("sp_offset")?.as_i64()?,
                bp_offset: entry.get("bp_offset")?.as_i64()?,
                sp_reg: register("sp_reg")?,
                bp_reg: register("bp_reg")?,
                kind: number("type")?,
                signal: number("signal")? != 0,
            })
        };
        entry().map(Some).map_err(|e| e.to_string())
    }

    fn keeps_frames(&self, ip: u64) -> bool {
        self.snapshot.made_at(ip).is_ok_and(|made| made.is_some())
    }

    fn layout(&self) -> RegsLayout {
        self.layout
    }
}

impl Cpu {
    /// The kernel's functions that it was executing; none when it executed a program.
    ///
    /// # Errors
    /// As [`Cpu::registers`] and [`Snapshot::ram`]: the freeze has to keep all of memory.
    pub fn stack(&self) -> SnapshotResult<Stack> {
        let tables = Tables::new(self.snapshot())?;
        let regs = self.registers()?;
        if regs.in_user_mode() {
            return Ok(Stack { frames: Vec::new(), end: StackEnd::User });
        }
        let value = |name: &str| {
            let none = || unreadable(format!("CPU {}", regs.cpu), format!("it has no {name}"));
            regs.values.get(name).copied().ok_or_else(none)
        };
        let [ax, dx, di] = [value("rax")?, value("rdx")?, value("rdi")?];
        let saved = Saved::Cpu([ax, dx, di, value("r10")?, value("r13")?]);
        let (ip, sp, bp) = (value("rip")?, value("rsp")?, value("rbp")?);
        tables.stack(At { ip, sp, bp, exact: true, saved })
    }
}

impl Task {
    /// The kernel's functions in which it waits to go on, as `/proc/TID/stack` has them, those of
    /// the scheduler included; of a task that was on a CPU, that CPU's.
    ///
    /// # Errors
    /// As [`Cpu::stack`] and [`Task::get`].
    pub fn stack(&self) -> SnapshotResult<Stack> {
        let tables = Tables::new(self.snapshot())?;
        for cpu in self.snapshot().cpus()? {
            if cpu.curr().is_ok_and(|curr| curr.address() == self.address()) {
                return cpu.stack();
            }
        }
        let whole = self.whole()?;
        if self.is_on_cpu()? {
            let why = "a CPU was just switching from or to it";
            return Err(unreadable(format!("the stack of {}", whole.origin().map), why));
        }
        // What `__switch_to_asm` pushed (`struct inactive_task_frame`).
        let top = whole.get("thread.sp")?.as_u64()?;
        let what = format!("the stack of {}", whole.origin().map);
        let ty = "struct inactive_task_frame";
        let frame = Place::of_type(self.snapshot(), what, top, ty)?;
        let size = frame.typed().map_or(0, |(_, at)| at.size);
        let ip = frame.get("ret_addr")?.as_u64()?;
        let bp = frame.get("bp")?.as_u64()?;
        // One that never ran yet returns to the first instruction of a function.
        let exact = tables.symbols.at(ip).is_some_and(|(_, within)| within == 0);
        let saved = Saved::None;
        tables.stack(At { ip, sp: top.wrapping_add(size), bp, exact, saved })
    }
}
