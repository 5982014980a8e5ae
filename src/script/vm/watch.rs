//! `t.watch(..)`: a capture at each write to a place of the kernel's.

use std::sync::Arc;

use rhai::{Array, Dynamic, INT, Map, NativeCallContext};

use super::{Vm, thrown};
use crate::scenario::lab::{LabOps, WatchOptions};
use crate::script::data;
use crate::script::fault::{Fault, Native};
use crate::script::options::{Mistake, Options};
use crate::script::register::Package;
use crate::script::session::Session;
use crate::script::values::incomparable;
use crate::snapshot::{CaptureRequest, MAX_RAM, WatchTarget};

/// How many captures there are in a second of guest time at most, when nobody says otherwise.
const MOST: u32 = 20;
/// The most that can be asked for.
const MOST_ASKED: INT = 1000;

/// A watch.
#[derive(Clone)]
struct Watch {
    lab: Arc<dyn LabOps>,
    number: u64,
    place: String,
}

pub(super) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    pkg.ty::<Watch>("Watch", "A place of the kernel's that is watched: see `t.watch(..)`.");
    let s = session.clone();
    pkg.func(
        "watch(self: Vm, symbol: string) -> Watch",
        "Takes a snapshot at each write of the guest's to a variable of the kernel's, or a global one \
         of the scheduler's (`\"nr_enqueued\"`, `\"stats.nr[2]\"`), right behind the writing \
         instruction. At most 3 places at once, and 20 snapshots in a second of guest \
         time: then the watch is disarmed for the rest of that second.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, symbol: &str| {
            watch(&s, &ctx, t, symbol, &Map::new())
        },
    );
    let s = session.clone();
    pkg.func(
        "watch(self: Vm, symbol: string, opts: map) -> Watch",
        "The same with options: `bytes: 4` (1, 2, 4 or 8), `offset: 8` behind the symbol, `cpu: 1` \
         whose of a per-CPU symbol, `most: 100` snapshots in a second, and `maps`, `kernel`, \
         `sched`, `ram` as for `t.freeze`. The symbol may be an address in hexadecimal, \
         `\"0xffffffff82000000\"`.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, symbol: &str, opts: Map| {
            watch(&s, &ctx, t, symbol, &opts)
        },
    );
    let s = session.clone();
    pkg.func(
        "fires(self: Watch) -> array",
        "The snapshots that it took so far, in order, each with `fired.before` and `fired.after`.",
        move |ctx: NativeCallContext<'_>, w: &mut Watch| -> Native<Array> {
            let fires = s.lab(&ctx, w.lab.watching().fires(w.number))?;
            Ok(fires.into_iter().map(data::snapshot).collect())
        },
    );
    let s = session.clone();
    pkg.func(
        "count(self: Watch) -> map",
        "`#{ fires, limited, unseen_ms }`: the writes that were seen, how often the limit was \
         reached, and for how much guest time it was disarmed for that reason.",
        move |ctx: NativeCallContext<'_>, w: &mut Watch| -> Native<Map> {
            let count = s.lab(&ctx, w.lab.watching().count(w.number))?;
            let int = |n: u64| Dynamic::from(INT::try_from(n).unwrap_or(INT::MAX));
            let unseen = u64::try_from(count.unseen.as_millis()).unwrap_or(u64::MAX);
            Ok(Map::from([
                ("fires".into(), int(count.fires)),
                ("limited".into(), int(count.limited)),
                ("unseen_ms".into(), int(unseen)),
            ]))
        },
    );
    let s = session.clone();
    pkg.func(
        "stop(self: Watch)",
        "Ends it; what it took stays. Nothing to do when it has ended.",
        move |ctx: NativeCallContext<'_>, w: &mut Watch| {
            s.lab(&ctx, w.lab.watching().unwatch(w.number))
        },
    );
    pkg.getter("place(self: Watch) -> string", "What is watched.", |w: &mut Watch| w.place.clone())
        .func("to_string(self: Watch) -> string", "What is watched.", |w: &mut Watch| told(w))
        .func("to_debug(self: Watch) -> string", "What is watched.", |w: &mut Watch| told(w));
    incomparable::<Watch>(pkg, "Watch");
}

fn told(watch: &Watch) -> String {
    format!("Watch({})", watch.place)
}

fn watch(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    t: &Vm,
    symbol: &str,
    opts: &Map,
) -> Native<Watch> {
    if symbol.trim().is_empty() {
        let why =
            "watch(..): a watch needs a symbol of the kernel's, as in t.watch(\"jiffies_64\")";
        return Err(Fault::argument(why).into());
    }
    let options = options(symbol, opts).map_err(thrown)?;
    let (number, place) = s.lab(ctx, t.lab.watching().watch(&options))?;
    Ok(Watch { lab: t.lab.clone(), number, place })
}

fn options(symbol: &str, opts: &Map) -> Result<WatchOptions, Mistake> {
    let known = ["bytes", "offset", "cpu", "most", "maps", "kernel", "sched", "ram"];
    let read = Options::new("watch(..)", opts, &known, &["budget"])?;
    let all = CaptureRequest::default();
    let most = read.number("most", 1, MOST_ASKED)?;
    let target = WatchTarget {
        symbol: symbol.trim().to_owned(),
        bytes: read.number("bytes", 1, 8)?.map(|n| n as u64),
        offset: read.number("offset", 0, INT::MAX)?.unwrap_or(0) as u64,
        cpu: read.number("cpu", 0, INT::from(u32::MAX))?.map(|n| n as u32),
    };
    let request = CaptureRequest {
        maps: read.strings("maps")?,
        kernel: read.strings("kernel")?.unwrap_or_default(),
        sched: read.flag("sched")?.unwrap_or(all.sched),
        registers: true,
        ram: read.flag("ram")?.unwrap_or(false).then_some(MAX_RAM),
        ..all
    };
    Ok(WatchOptions { target, request, most: most.map_or(MOST, |n| n as u32) })
}
