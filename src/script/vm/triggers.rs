//! What makes something happen by itself: `t.every(..)` and `t.freeze_when(..)`, and stopping by
//! hand.

use std::sync::Arc;
use std::time::Duration;

use rhai::{Array, Dynamic, EvalAltResult, FnPtr, INT, Map, NativeCallContext};

use super::{Vm, request, span, thrown};
use crate::scenario::lab::{LabOps, Span};
use crate::scenario::text::seconds;
use crate::script::data;
use crate::script::fault::{Fault, Kind, Native};
use crate::script::options::{Mistake, Options};
use crate::script::register::Package;
use crate::script::session::Session;
use crate::script::values::described;
use crate::snapshot::{CaptureRequest, Snapshot, SnapshotError, Touched};

/// The shortest interval of `t.every(..)`.
const SHORTEST: Duration = Duration::from_millis(1);
/// How often `t.freeze_when(..)` looks when it is not told.
const EVERY: Duration = Duration::from_millis(10);
/// How long it waits when it is not told.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Missed boundaries that are named in a note.
const NAMED: usize = 10;

pub(super) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    by_hand(pkg, session);
    let s = session.clone();
    pkg.func(
        "every(self: Vm, d: duration, body: closure) -> map",
        "Calls `|t, i| ..` at every such boundary of workload time, to the end of the scenario's \
         `duration`.\n\
         `i` counts the boundaries from 0. One that has passed when an earlier call comes back is \
         missed: that is noted, and in the result, `#{ fired, missed: [..] }`. A call that gives \
         `false` is the last.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, d: &str, body: FnPtr| {
            every(&s, &ctx, t, d, &Map::new(), &body)
        },
    );
    let s = session.clone();
    pkg.func(
        "every(self: Vm, d: duration, opts: map, body: closure) -> map",
        "The same with options: `hold: \"2s\"` (or `\"50%\"`) is how long it goes on, `times: 5` \
         how many boundaries there are at most.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, d: &str, opts: Map, body: FnPtr| {
            every(&s, &ctx, t, d, &opts, &body)
        },
    );
    let s = session.clone();
    pkg.func(
        "freeze_when(self: Vm, cond: closure) -> Snapshot",
        "Freezes when `|s| ..` is true.\n\
         The closure is asked every 10 ms of workload time with a view of the running machine, \
         which has the accessors of a snapshot, and whose values may be torn. When it is true the \
         machine is stopped and the closure asked once more about what was copied then; if it is \
         false, looking goes on. Accessors that throw because something is not there (yet) count as \
         false. Throws a `Timeout` after 10 s of workload time.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, cond: FnPtr| {
            freeze_when(&s, &ctx, t, &cond, &Map::new())
        },
    );
    let s = session.clone();
    pkg.func(
        "freeze_when(self: Vm, cond: closure, opts: map) -> Snapshot",
        "The same with options: `every: \"10ms\"`, `timeout: \"10s\"`, `tag: \"freeze_when\"`, and \
         those of `t.freeze(..)`.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, cond: FnPtr, opts: Map| {
            freeze_when(&s, &ctx, t, &cond, &opts)
        },
    );
}

fn by_hand(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "pause(self: Vm)",
        "Stops all vCPUs until `t.resume()`. Freezes while it stands copy and leave it so; what \
         needs the guest to run is refused. Nothing happens when it is paused already.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| s.lab(&ctx, t.lab.pause()),
    );
    let s = session.clone();
    pkg.func(
        "resume(self: Vm)",
        "Lets a paused machine go on. Nothing happens when it runs.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm| s.lab(&ctx, t.lab.resume()),
    )
    .getter(
        "paused(self: Vm) -> bool",
        "Whether the machine is paused by hand.",
        |t: &mut Vm| t.lab.is_paused(),
    );
}

/// When boundaries fall, on the workload's clock: the first one interval after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Boundaries {
    start: Duration,
    interval: Duration,
    end: Duration,
    most: u32,
}

impl Boundaries {
    /// When boundary `i` falls; `None` behind the last.
    fn due(&self, i: u32) -> Option<Duration> {
        let at = self.interval.checked_mul(i.checked_add(1)?)?.checked_add(self.start)?;
        (i < self.most && at <= self.end).then_some(at)
    }

    /// The boundary after `i` that is still to come at `now`, or has just: one is missed when the
    /// next one has come too.
    fn after(&self, i: u32, now: Duration) -> (u32, Vec<u32>) {
        let mut next = i.saturating_add(1);
        let mut missed = Vec::new();
        while self.due(next).is_some() && self.due_at(next.saturating_add(1)) <= now {
            missed.push(next);
            next += 1;
        }
        (next, missed)
    }

    /// When boundary `i` falls, were there no end.
    fn due_at(&self, i: u32) -> Duration {
        self.interval.saturating_mul(i.saturating_add(1)).saturating_add(self.start)
    }
}

fn boundaries(lab: &dyn LabOps, d: &str, opts: &Map) -> Native<Boundaries> {
    let whole = lab.facts().duration;
    let interval = span("every", d)?.of(whole);
    if interval < SHORTEST {
        let why = format!("every(..): {d:?} is too short an interval; 1ms is the shortest");
        return Err(Fault::argument(why).into());
    }
    let read = Options::new("every(..)", opts, &["hold", "times"], &[]).map_err(thrown)?;
    let start = lab.elapsed();
    let end = match read.string("hold").map_err(thrown)? {
        Some(hold) => start.saturating_add(span("every", &hold)?.of(whole)),
        None => whole,
    };
    let times = read.number("times", 1, u32::MAX.into()).map_err(thrown)?;
    let most = times.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
    Ok(Boundaries { start, interval, end, most })
}

fn every(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    t: &Vm,
    d: &str,
    opts: &Map,
    body: &FnPtr,
) -> Native<Map> {
    let lab = &*t.lab;
    let boundaries = boundaries(lab, d, opts)?;
    let (mut i, mut fired, mut missed) = (0, 0, Vec::new());
    while let Some(due) = boundaries.due(i) {
        let left = due.saturating_sub(lab.elapsed());
        s.lab(ctx, lab.hold(Span::Time(left)))?;
        fired += 1;
        let go_on = body.call_within_context::<Dynamic>(ctx, (t.clone(), INT::from(i)))?;
        if go_on.as_bool() == Ok(false) {
            break;
        }
        let (next, passed) = boundaries.after(i, lab.elapsed());
        missed.extend(passed);
        i = next;
    }
    if !missed.is_empty() {
        let named: Vec<String> = missed.iter().take(NAMED).map(u32::to_string).collect();
        let more = if missed.len() > NAMED { ", .." } else { "" };
        let text = format!(
            "every({d}): {} of {} boundaries passed while a call for an earlier one took its time, \
             and were missed: {}{more}",
            missed.len(),
            fired + missed.len(),
            named.join(", ")
        );
        s.recorder.note(text, s.place(ctx));
    }
    let missed: Array = missed.into_iter().map(|i| INT::from(i).into()).collect();
    let fired = INT::try_from(fired).unwrap_or(INT::MAX);
    Ok(Map::from([("fired".into(), fired.into()), ("missed".into(), missed.into())]))
}

/// What a predicate made of a view.
enum Answer {
    True,
    False,
    /// Something was not there (yet).
    Threw(SnapshotError),
    /// What no other state of the machine can mend, unless it was torn.
    Mistake(Box<EvalAltResult>),
}

fn ask(ctx: &NativeCallContext<'_>, cond: &FnPtr, view: &Arc<Snapshot>) -> Native<Answer> {
    match cond.call_within_context::<Dynamic>(ctx, (data::snapshot(view.clone()),)) {
        Ok(value) => match value.as_bool() {
            Ok(true) => Ok(Answer::True),
            Ok(false) => Ok(Answer::False),
            Err(_) => {
                let found = described(&value);
                let why = format!("freeze_when(..): the closure gave {found}, not true or false");
                Err(Fault::argument(why).into())
            }
        },
        Err(error) => match data::error_in(&error) {
            Some(thrown) if is_absence(&thrown) => Ok(Answer::Threw(thrown)),
            Some(_) => Ok(Answer::Mistake(error)),
            None => Err(error),
        },
    }
}

/// Whether an accessor threw this because something is not there, rather than because it was asked
/// for something that cannot be.
fn is_absence(error: &SnapshotError) -> bool {
    use SnapshotError as E;
    !matches!(
        error,
        E::FieldNotFound { .. }
            | E::NotAStruct { .. }
            | E::TypeMismatch { .. }
            | E::EmptyPathComponent { .. }
            | E::PerCpuNotNarrowed { .. }
    )
}

/// What came of looking so far, for whoever is told that it was in vain.
#[derive(Default)]
struct Course {
    looks: u32,
    looking: Duration,
    /// Frozen states of which it was no longer true.
    undone: u32,
    /// Machines that did not stop: how often, and why at last.
    missed: Option<(u32, String)>,
    last: Option<SnapshotError>,
    /// A mistake that the view before had, too.
    suspect: bool,
}

impl Course {
    fn in_vain(&self, timeout: Duration) -> String {
        let after = seconds(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let each = self.looking.checked_div(self.looks).unwrap_or_default();
        let mut text = format!(
            "freeze_when(..): what was waited for did not become true within {after} of workload \
             time. It was asked {} times (a reading took {:.2} ms), and ",
            self.looks,
            each.as_secs_f64() * 1e3
        );
        match &self.last {
            Some(error) => text.push_str(&format!("threw at last {}: {error}", error.kind())),
            None => text.push_str("was false at last"),
        }
        if self.undone > 0 {
            text.push_str(&format!(
                "; {} times it was true of the running machine and no longer when that stood",
                self.undone
            ));
        }
        if let Some((times, why)) = &self.missed {
            text.push_str(&format!("; {times} times the machine did not stop: {why}"));
        }
        text
    }
}

/// How to look and what to take.
struct Wait {
    every: Duration,
    timeout: Duration,
    tag: String,
    request: CaptureRequest,
}

fn wait(opts: &Map) -> Result<Wait, Mistake> {
    const OURS: [&str; 3] = ["every", "timeout", "tag"];
    let of_freeze = |key: &str| !OURS.contains(&key);
    let others: Map = opts
        .iter()
        .filter(|(key, _)| of_freeze(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let known = ["every", "timeout", "tag", "maps", "kernel", "sched", "registers", "ram"];
    let read = Options::new("freeze_when(..)", opts, &known, &["budget"])?;
    Ok(Wait {
        every: read.duration("every")?.unwrap_or(EVERY),
        timeout: read.duration("timeout")?.unwrap_or(TIMEOUT),
        tag: read.string("tag")?.unwrap_or_else(|| "freeze_when".to_owned()),
        request: request(&others)?,
    })
}

fn freeze_when(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    t: &Vm,
    cond: &FnPtr,
    opts: &Map,
) -> Native<Dynamic> {
    let lab = &*t.lab;
    let Wait { every, timeout, tag, request } = wait(opts).map_err(thrown)?;
    super::is_tag(&tag)?;
    let tag = lab.fresh_tag(&tag);
    // Now, so that there is nothing left to get ready for when the machine is to stop.
    s.lab(ctx, lab.prepare(&request))?;
    let end = lab.elapsed().saturating_add(timeout);
    let (mut course, mut view) = (Course::default(), View::new(&request));
    loop {
        let due = lab.elapsed().saturating_add(every);
        if look(s, ctx, lab, cond, &mut view, &mut course)? {
            let seen = view.seen.take();
            let snapshot = s.lab(ctx, lab.freeze_unkept(&tag, &request, seen))?;
            if holds(ctx, cond, &snapshot, &mut course)? {
                lab.keep(&snapshot);
                return Ok(data::snapshot(snapshot));
            }
        }
        let now = lab.elapsed();
        if now >= end {
            return Err(Fault { kind: Kind::Timeout, message: course.in_vain(timeout) }.into());
        }
        s.lab(ctx, lab.hold(Span::Time(due.saturating_sub(now))))?;
    }
}

/// What is read of the running machine: everything at first, then what the closure looks at.
struct View {
    request: CaptureRequest,
    learned: Option<Touched>,
    /// When the last reading began.
    seen: Option<std::time::Instant>,
}

impl View {
    fn new(request: &CaptureRequest) -> View {
        // Registers are not there while it runs, and all of memory is no view.
        let request = CaptureRequest { ram: None, registers: false, ..request.clone() };
        View { request, learned: None, seen: None }
    }

    /// What is to be read next.
    fn wanted(&self) -> CaptureRequest {
        match &self.learned {
            Some(touched) => self.request.only(touched),
            None => self.request.clone(),
        }
    }

    /// Learns what the closure looked at; whether it was all there.
    fn learn(&mut self, touched: Touched) -> bool {
        match &mut self.learned {
            None => {
                self.learned = Some(touched);
                true
            }
            Some(known) => !known.extend(touched),
        }
    }
}

/// Whether the closure is true of the running machine.
fn look(
    s: &Session,
    ctx: &NativeCallContext<'_>,
    lab: &dyn LabOps,
    cond: &FnPtr,
    view: &mut View,
    course: &mut Course,
) -> Native<bool> {
    loop {
        let begin = std::time::Instant::now();
        let (live, seen) = s.lab(ctx, lab.look(&view.wanted()))?;
        course.looks += 1;
        course.looking += begin.elapsed();
        let answer = ask(ctx, cond, &live)?;
        let mut touched = live.touched();
        // What belongs to no map is copied with the CPUs and tasks.
        touched.sched |= matches!(answer, Answer::Threw(SnapshotError::MapRenderIncomplete { .. }));
        // What it looked at and was not there is read as well, at once.
        if !view.learn(touched) {
            continue;
        }
        view.seen = Some(seen);
        course.last = None;
        let mistaken = std::mem::take(&mut course.suspect);
        return match answer {
            Answer::True => Ok(true),
            Answer::False => Ok(false),
            Answer::Threw(error) => {
                course.last = Some(error);
                Ok(false)
            }
            // A torn value may look like one; it is believed when it comes again.
            Answer::Mistake(_) if !mistaken => {
                course.suspect = true;
                continue;
            }
            Answer::Mistake(error) => Err(error),
        };
    }
}

/// Whether the closure is still true of what was copied when the machine stood.
fn holds(
    ctx: &NativeCallContext<'_>,
    cond: &FnPtr,
    snapshot: &Arc<Snapshot>,
    course: &mut Course,
) -> Native<bool> {
    if let Some(why) = snapshot.placeholder_reason() {
        let times = course.missed.as_ref().map_or(0, |(times, _)| *times);
        course.missed = Some((times + 1, why.to_owned()));
        return Ok(false);
    }
    match ask(ctx, cond, snapshot)? {
        Answer::True => return Ok(true),
        Answer::False => {}
        Answer::Threw(error) => course.last = Some(error),
        Answer::Mistake(error) => return Err(error),
    }
    course.undone += 1;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_fall_at_multiples_and_are_missed_when_the_next_has_come() {
        let ms = Duration::from_millis;
        let all = Boundaries { start: ms(30), interval: ms(100), end: ms(530), most: 9 };
        let due = |i| all.due(i).map(|at| at.as_millis());
        assert_eq!([0, 1, 4, 5, u32::MAX].map(due), [Some(130), Some(230), Some(530), None, None]);
        let cases: [(u64, u32, &[u32]); 5] = [
            (140, 1, &[]),
            // Late, but the next one has not come yet.
            (329, 1, &[]),
            (330, 2, &[1]),
            (500, 3, &[1, 2]),
            // Behind the end there are none to be missed.
            (9_999, 5, &[1, 2, 3, 4]),
        ];
        for (now, next, missed) in cases {
            assert_eq!(all.after(0, ms(now)), (next, missed.to_vec()), "at {now}");
        }
        let two = Boundaries { most: 2, ..all };
        assert_eq!((two.due(1), two.due(2)), (Some(ms(230)), None));
    }
}
