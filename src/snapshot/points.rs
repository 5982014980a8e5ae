//! Where a machine can be made to stand still by itself: places that are written to, and the code
//! by which schedulers leave.

pub use crate::introspect::Leaving;
use crate::introspect::{ExitPoint, Kernel};
use crate::mem::Kva;
use crate::words::nearest_first;

use super::Capturer;

/// Bytes that a CPU can watch, the most first.
const LENGTHS: [u8; 4] = [8, 4, 2, 1];

/// What of the kernel is to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchTarget {
    /// A symbol of the kernel's, a global variable of a scheduler's, or an address in hexadecimal.
    pub symbol: String,
    /// How many bytes; as many as can be when not given.
    pub bytes: Option<u64>,
    /// How far behind the symbol they lie.
    pub offset: u64,
    /// Whose, of a per-CPU symbol.
    pub cpu: Option<u32>,
}

/// A place that can be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchPlace {
    /// What it is called: `jiffies_64`, `rq+0x10 of CPU 1`.
    pub name: String,
    /// The symbol, if it is one.
    pub symbol: Option<String>,
    /// Its address.
    pub address: u64,
    /// 1, 2, 4 or 8 bytes.
    pub len: u8,
}

/// A scheduler that leaves, and how one finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitTrap {
    point: ExitPoint,
}

impl ExitTrap {
    /// The kernel's virtual address of the instruction, and its physical one.
    #[must_use]
    pub fn address(&self) -> (u64, u64) {
        (self.point.at.0, self.point.physical.0)
    }

    /// The kernel's function that it is in.
    #[must_use]
    pub fn function(&self) -> &str {
        &self.point.function
    }

    /// The `struct scx_sched` that leaves, given the first argument (`rdi`).
    #[must_use]
    pub fn sched(&self, argument: u64) -> u64 {
        argument.wrapping_sub(self.point.work)
    }
}

impl Capturer {
    /// Finds a place that is to be watched.
    ///
    /// # Errors
    /// Why it cannot be, with the nearest name or what to ask for instead.
    pub fn watch_place(&self, target: &WatchTarget) -> Result<WatchPlace, String> {
        place(self.kernel(), target)
    }

    /// What is at a place now, up to eight bytes of it.
    #[must_use]
    pub fn value_at(&self, place: &WatchPlace) -> Option<u64> {
        let mut raw = [0; 8];
        self.kernel().read(Kva(place.address), &mut raw[..usize::from(place.len.min(8))]).ok()?;
        Some(u64::from_le_bytes(raw))
    }

    /// Where schedulers leave. One must be attached.
    ///
    /// # Errors
    /// Why that cannot be found.
    pub fn exit_traps(&self) -> Result<Vec<ExitTrap>, String> {
        let points = self.kernel().exit_points().map_err(|e| e.to_string())?;
        Ok(points.into_iter().map(|point| ExitTrap { point }).collect())
    }

    /// The root scheduler's `struct scx_sched`, if there is one.
    #[must_use]
    pub fn root_sched(&self) -> Option<u64> {
        self.kernel().root_sched().ok().map(|at| at.0)
    }

    /// How many root schedulers have been enabled since the machine booted, where it counts them.
    #[must_use]
    pub fn enabled_before(&self) -> Option<u64> {
        let at = self.kernel().symbols().get("scx_enable_seq")?;
        self.kernel().read_u64(at).ok()
    }

    /// Whether a scheduler is leaving, the root one when none is given; `None` when there is none,
    /// or none that can be read.
    #[must_use]
    pub fn leaving(&self, sched: Option<u64>) -> Option<Leaving> {
        let sched = sched.or_else(|| self.root_sched())?;
        self.kernel().leaving(Kva(sched)).ok()
    }
}

fn place(kernel: &Kernel, target: &WatchTarget) -> Result<WatchPlace, String> {
    let WatchTarget { symbol, bytes, offset, cpu } = target;
    if let Some(hex) = symbol.strip_prefix("0x") {
        let address = u64::from_str_radix(hex, 16)
            .map_err(|_| format!("{symbol:?} is no address: it is 0x and up to 16 digits"))?;
        let address = address.wrapping_add(*offset);
        let len = length(symbol, address, *bytes, 8)?;
        let name = format!("{address:#x}");
        return Ok(WatchPlace { name, symbol: None, address, len });
    }
    if kernel.symbols().lookup(symbol).is_empty()
        && let Some(place) = global(kernel, target)?
    {
        return Ok(place);
    }
    let base = unique(kernel, symbol)?;
    refuse_code(kernel, symbol, base)?;
    let room = kernel.symbols().room_at(Kva(base)).unwrap_or(8).max(1);
    if *offset >= room {
        return Err(format!("{symbol} has {room} bytes: there is nothing of it at {offset:#x}"));
    }
    let mut address = base.wrapping_add(*offset);
    let mut name = symbol.clone();
    if *offset != 0 {
        name.push_str(&format!("+{offset:#x}"));
    }
    match (is_per_cpu(kernel, base), cpu) {
        (false, None) => {}
        (false, Some(_)) => return Err(format!("{symbol} is not per-CPU: leave cpu away")),
        (true, None) => {
            return Err(format!(
                "{symbol} is per-CPU: say whose, as in t.watch({symbol:?}, #{{ cpu: 0 }})"
            ));
        }
        (true, Some(cpu)) => {
            let offset = kernel.per_cpu_offset(*cpu).ok_or_else(|| {
                let last = kernel.nr_cpu_ids().saturating_sub(1);
                format!("there is no CPU {cpu}; this machine has CPUs 0 to {last}")
            })?;
            address = address.wrapping_add(offset);
            name.push_str(&format!(" of CPU {cpu}"));
        }
    }
    let len = length(&name, address, *bytes, room - offset)?;
    Ok(WatchPlace { name, symbol: Some(symbol.clone()), address, len })
}

/// A global variable of a BPF object's, if there is one of that name.
fn global(kernel: &Kernel, target: &WatchTarget) -> Result<Option<WatchPlace>, String> {
    let WatchTarget { symbol, bytes, offset, cpu } = target;
    let found = kernel.globals_at(symbol).unwrap_or_default();
    let one = match &found[..] {
        [] => return Ok(None),
        [one] => one,
        several => {
            let maps: Vec<&str> = several.iter().map(|global| global.map.as_str()).collect();
            return Err(format!(
                "several objects have a global variable {symbol:?}, and which is meant cannot be \
                 told: it is in {}",
                maps.join(" and in ")
            ));
        }
    };
    if cpu.is_some() {
        return Err(format!("{symbol} is not per-CPU: leave cpu away"));
    }
    let room = one.size;
    if *offset >= room {
        return Err(format!("{symbol} has {room} bytes: there is nothing of it at {offset:#x}"));
    }
    let address = one.at.0.wrapping_add(*offset);
    let len = length(symbol, address, *bytes, room - offset)?;
    Ok(Some(WatchPlace { name: symbol.clone(), symbol: None, address, len }))
}

/// The one address of a symbol.
fn unique(kernel: &Kernel, symbol: &str) -> Result<u64, String> {
    match kernel.symbols().lookup(symbol) {
        [at] => Ok(*at),
        [] => {
            let alike = nearest_first(symbol, kernel.symbols().alike(symbol));
            let hint = match alike.first() {
                Some(near) => format!("; did you mean {near:?}?"),
                None => "; /proc/kallsyms in the guest lists them".to_owned(),
            };
            Err(format!("the kernel has no symbol {symbol:?}{hint}"))
        }
        several => {
            let at: Vec<String> = several.iter().take(8).map(|at| format!("\"{at:#x}\"")).collect();
            let more = if several.len() > 8 { ", .." } else { "" };
            Err(format!(
                "{} symbols are called {symbol:?}; give the address of the one that is meant: {}{more}",
                several.len(),
                at.join(", ")
            ))
        }
    }
}

fn within(kernel: &Kernel, at: u64, start: &str, end: &str) -> bool {
    let symbol = |name| kernel.symbols().get(name).map(|at| at.0);
    symbol(start).zip(symbol(end)).is_some_and(|(start, end)| (start..end).contains(&at))
}

fn is_per_cpu(kernel: &Kernel, at: u64) -> bool {
    within(kernel, at, "__per_cpu_start", "__per_cpu_end")
}

fn refuse_code(kernel: &Kernel, symbol: &str, at: u64) -> Result<(), String> {
    match within(kernel, at, "_stext", "_etext") {
        true => Err(format!("{symbol} is code, which is not written; watch a variable")),
        false => Ok(()),
    }
}

/// How many bytes to watch at an address: what was asked for, or as many as fit in `room`.
fn length(name: &str, address: u64, asked: Option<u64>, room: u64) -> Result<u8, String> {
    let fits = |len: &u8| address.is_multiple_of(u64::from(*len));
    let Some(asked) = asked else {
        let best = LENGTHS.into_iter().find(|len| fits(len) && u64::from(*len) <= room.max(1));
        return Ok(best.unwrap_or(1));
    };
    let Some(len) = LENGTHS.into_iter().find(|len| u64::from(*len) == asked) else {
        return Err(format!("a CPU watches 1, 2, 4 or 8 bytes, not {asked}"));
    };
    if !fits(&len) {
        let best = LENGTHS.into_iter().find(fits).unwrap_or(1);
        return Err(format!(
            "{name} lies at {address:#x}, and a CPU watches {len} bytes only at a multiple of \
             {len}; ask for bytes: {best}"
        ));
    }
    if asked > room {
        return Err(format!("{name} has only {room} bytes there; ask for fewer than {asked}"));
    }
    Ok(len)
}
