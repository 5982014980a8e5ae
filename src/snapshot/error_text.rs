//! How each error of the catalogue reads.

use std::fmt;

use super::error::{DELTA, ExcludedMap, SnapshotError};
use crate::words::nearest;

/// Names that a message lists before it says how many more there are.
const LISTED: usize = 16;
/// Characters of a name that a message shows.
const SHOWN: usize = 80;

impl std::error::Error for SnapshotError {}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SnapshotError as E;
        match self {
            E::MapNotFound { requested, available } => map_not_found(f, requested, available),
            E::VarNotFound { requested, available } => var_not_found(f, requested, available),
            E::AmbiguousVar { requested, found_in } => ambiguous(f, requested, found_in),
            E::FieldNotFound { requested, walked, component, available } => {
                field_not_found(f, requested, walked, component, available)
            }
            E::NotAStruct { requested, walked, component, kind } => {
                not_a_struct(f, requested, walked, component, kind)
            }
            E::TypeMismatch { expected, actual, requested } if requested.is_empty() => {
                write!(f, "expected {expected}, found {actual}")
            }
            E::TypeMismatch { expected, actual, requested } => {
                write!(f, "{}: expected {expected}, found {actual}", quoted(requested))
            }
            E::IndexOutOfRange { map, index, len } => out_of_range(f, map, *index, *len),
            E::PerCpuSlot { map, cpu, len, unmapped } => {
                per_cpu_slot(f, map, *cpu, *len, *unmapped)
            }
            E::NoMatch { map, op, len, available_keys } => {
                no_match(f, map, op, *len, available_keys)
            }
            E::EmptyPathComponent { requested } => empty_component(f, requested),
            E::PerCpuNotNarrowed { map } => write!(
                f,
                "{} has one value for each CPU: choose one with .cpu(n), or take .cpu_sum(path), \
                 .cpu_max(path) or .cpu_min(path) of an entry",
                quoted(map)
            ),
            E::NoRendered { map, side } => write!(
                f,
                "the {side} of {} has no BTF type, only bytes: read them with .raw(), or declare \
                 the map with __type({side}, ..) instead of __uint({side}_size, ..)",
                quoted(map)
            ),
            _ => fmt_of_runs(self, f),
        }
    }
}

/// The errors about captures and schedulers rather than about names and values.
fn fmt_of_runs(error: &SnapshotError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use SnapshotError as E;
    match error {
        E::PlaceholderSample { tag, reason } => write!(
            f,
            "sample {} has no values, because its freeze did not complete: {reason}",
            quoted(tag)
        ),
        E::MissingStats { tag, reason } if tag.is_empty() => write!(f, "no statistics: {reason}"),
        E::MissingStats { tag, reason } => {
            write!(f, "sample {} has no statistics: {reason}", quoted(tag))
        }
        E::HostFieldUnavailable { tag, cpu } => {
            write!(f, "sample {} has no CPU time of CPU {cpu}", quoted(tag))
        }
        E::PlaceholderSnapshot { tag } => {
            match tag {
                Some(tag) => write!(f, "snapshot {} is empty", quoted(tag))?,
                None => f.write_str("this snapshot is empty")?,
            }
            f.write_str(
                ", because its freeze did not complete: ask .is_placeholder first, and read the \
                 reason with .dump()",
            )
        }
        E::NoActiveScheduler { reason } => write!(f, "no scheduler was running: {reason}"),
        E::ActiveFilterExcludedMaps { requested, active_obj, excluded_maps, whitelist_kvas } => {
            excluded(f, requested, active_obj, excluded_maps, whitelist_kvas)
        }
        E::WalkerDriftedWithinPhase { phase, pinned_kvas, sample_kvas, requested } => write!(
            f,
            "{} cannot be followed through phase {}: the scheduler changed within it (maps at {} \
             at its start, at {} in this sample); end the phase where the scheduler is replaced",
            quoted(requested),
            quoted(phase),
            addresses(pinned_kvas),
            addresses(sample_kvas)
        ),
        E::ProjectionFailed { reason } => write!(f, "the projection's closure failed: {reason}"),
        E::MapRenderIncomplete { map, error } => {
            write!(f, "{} could not be read: {error}", thing(map))
        }
        // All others are worded by the caller.
        other => f.write_str(other.kind()),
    }
}

fn map_not_found(f: &mut fmt::Formatter<'_>, requested: &str, available: &[String]) -> fmt::Result {
    write!(f, "no captured map is called {}", quoted(requested))?;
    if available.is_empty() {
        return f.write_str(": this snapshot holds no map at all (is a scheduler attached?)");
    }
    choices(f, requested, available, "there are", |name| format!("map({})", quoted(name)))
}

fn var_not_found(f: &mut fmt::Formatter<'_>, requested: &str, available: &[String]) -> fmt::Result {
    write!(f, "no global variable is called {}", quoted(requested))?;
    if available.is_empty() {
        return f.write_str(
            ": no captured map is a .bss, .data or .rodata section with types (is a scheduler \
             attached?)",
        );
    }
    choices(f, requested, available, "there are", |name| format!("global({})", quoted(name)))
}

fn ambiguous(f: &mut fmt::Formatter<'_>, requested: &str, found_in: &[String]) -> fmt::Result {
    let asked = quoted(requested);
    let first = found_in.first().map_or_else(|| quoted(""), |name| quoted(name));
    let of_maps = |name: &String| name.strip_prefix(requested).is_some_and(|r| r.starts_with('#'));
    if !found_in.is_empty() && found_in.iter().all(of_maps) {
        return write!(
            f,
            "more than one captured map is called {asked}: {}; choose one, as in map({first})",
            Listed(found_in)
        );
    }
    if !found_in.is_empty() && found_in.iter().all(|place| place.starts_with('/')) {
        return write!(
            f,
            "the live schedulers of more than one cgroup have a variable {asked}: {}; choose one, \
             as in sched({first}).global({asked})",
            Listed(found_in)
        );
    }
    write!(
        f,
        "more than one captured map has a variable {asked}: {}; live_global({asked}) takes the \
         attached scheduler's, globals({asked}) all of them, map({first}).at(0).get({asked}) this \
         one's",
        Listed(found_in)
    )
}

fn field_not_found(
    f: &mut fmt::Formatter<'_>,
    requested: &str,
    walked: &str,
    component: &str,
    available: &[String],
) -> fmt::Result {
    match walked {
        "" => write!(f, "the value has no member {}", quoted(component))?,
        _ => write!(f, "{} has no member {}", quoted(walked), quoted(component))?,
    }
    if requested != component {
        write!(f, " (asked for {})", quoted(requested))?;
    }
    if available.is_empty() {
        return f.write_str("; it has no members at all");
    }
    choices(f, component, available, "it has", |name| quoted(&super::error::join(walked, name)))
}

fn not_a_struct(
    f: &mut fmt::Formatter<'_>,
    requested: &str,
    walked: &str,
    component: &str,
    kind: &str,
) -> fmt::Result {
    match walked {
        "" => f.write_str("the value is ")?,
        _ => write!(f, "{} is ", quoted(walked))?,
    }
    let (what, asked) = (quoted(component), quoted(requested));
    write!(f, "{}, ", with_article(kind))?;
    match kind {
        "pointer" => write!(
            f,
            "and its type does not tell what it leads to, so it has no member {what} (asked for \
             {asked}): give the type, as in .as_ptr(\"struct task_struct\"); .as_u64() gives the \
             address"
        ),
        "array" | "text" => write!(
            f,
            "so it has no member {what} (asked for {asked}): choose an element, as in {}",
            quoted(&format!("{walked}[0]"))
        ),
        _ if walked.is_empty() => {
            write!(f, "so it has no member {what} (asked for {asked}): read it without a path")
        }
        _ => write!(
            f,
            "so it has no member {what} (asked for {asked}): the path ends at {}",
            quoted(walked)
        ),
    }
}

fn out_of_range(f: &mut fmt::Formatter<'_>, map: &str, index: i64, len: usize) -> fmt::Result {
    write!(f, "{} has no index {index}: ", quoted(map))?;
    match len {
        0 => f.write_str("it is empty"),
        1 => f.write_str("it has one, index 0"),
        _ => write!(f, "it has {len}, from 0 to {}", len - 1),
    }
}

fn per_cpu_slot(
    f: &mut fmt::Formatter<'_>,
    map: &str,
    cpu: i64,
    len: usize,
    unmapped: bool,
) -> fmt::Result {
    let map = quoted(map);
    match (unmapped, len) {
        (true, _) => write!(
            f,
            "{map} has no memory behind its slot of CPU {cpu} (of {len}): the CPU cannot come up \
             in this machine, or its memory could not be read; .is_present() tells such slots"
        ),
        (false, 0) => write!(f, "{map} has no CPU {cpu}: no CPU was captured"),
        (false, 1) => write!(f, "{map} has no CPU {cpu}: the machine has one, CPU 0"),
        (false, _) => {
            write!(f, "{map} has no CPU {cpu}: the machine has {len}, from 0 to {}", len - 1)
        }
    }
}

fn no_match(
    f: &mut fmt::Formatter<'_>,
    map: &str,
    op: &str,
    len: usize,
    keys: &[String],
) -> fmt::Result {
    let map = quoted(map);
    if let (DELTA, [alone]) = (op, keys) {
        return write!(f, "{op} needs two samples with a value, and {map} has one: {}", cut(alone));
    }
    match len {
        0 => return write!(f, "{op} found nothing in {map}: it is empty"),
        1 => write!(f, "{op} found nothing in {map}, which has one entry")?,
        _ => write!(f, "{op} found nothing in {map}, which has {len} entries")?,
    }
    if keys.is_empty() {
        return Ok(());
    }
    let more = if keys.len() < len { ", .." } else { "" };
    let shown: Vec<String> = keys.iter().map(|key| cut(key)).collect();
    write!(f, "; keys there: {}{more}", shown.join(", "))?;
    if keys.iter().all(|key| is_raw_hex(key)) {
        f.write_str(
            " (bytes, because the map's key has no BTF type: give raw bytes, or declare the map \
             with __type(key, ..))",
        )?;
    }
    Ok(())
}

/// A key that could be shown as bytes only.
fn is_raw_hex(key: &str) -> bool {
    key.strip_prefix("0x")
        .is_some_and(|hex| hex.trim_end_matches('.').bytes().all(|b| b.is_ascii_hexdigit()))
}

fn empty_component(f: &mut fmt::Formatter<'_>, requested: &str) -> fmt::Result {
    if requested.is_empty() {
        return f.write_str("the path is empty: name a member, as in \"ctx.weight\"");
    }
    let whole: Vec<&str> = requested.split('.').filter(|part| !part.is_empty()).collect();
    write!(f, "path {} has an empty component", quoted(requested))?;
    if whole.is_empty() {
        f.write_str(": name a member, as in \"ctx.weight\"")
    } else {
        write!(f, "; write {}", quoted(&whole.join(".")))
    }
}

fn excluded(
    f: &mut fmt::Formatter<'_>,
    requested: &str,
    active_obj: &str,
    maps: &[ExcludedMap],
    live: &[u64],
) -> fmt::Result {
    let unknown = maps.iter().filter(|m| m.map_kva == 0).count();
    let cause = match (unknown, maps.len() - unknown) {
        (0, _) => "their addresses are stale: they were captured before the last attach or replace",
        (_, 0) => "their addresses were never recorded",
        _ => {
            "some addresses are stale (captured before the last attach or replace), the others \
             were never recorded"
        }
    };
    let names: Vec<String> = maps
        .iter()
        .map(|m| match m.map_kva {
            0 => m.name.clone(),
            kva => format!("{} at {kva:#x}", m.name),
        })
        .collect();
    write!(
        f,
        "{} was not looked for: none of the captured maps of {} ({}) belongs to the scheduler that \
         is live (maps at {}); {cause}; freeze again, or name the map with map(..)",
        quoted(requested),
        quoted(active_obj),
        names.iter().take(LISTED).map(|name| cut(name)).collect::<Vec<_>>().join(", "),
        addresses(live)
    )
}

/// `; did you mean X? There are ..`, the question only when a name is near enough.
fn choices(
    f: &mut fmt::Formatter<'_>,
    asked: &str,
    names: &[String],
    have: &str,
    spell: impl Fn(&str) -> String,
) -> fmt::Result {
    match nearest(asked, names.iter().map(String::as_str)) {
        Some(name) => write!(f, "; did you mean {}? ({have} {})", spell(name), Listed(names)),
        None => write!(f, "; {have} {}", Listed(names)),
    }
}

fn addresses(kvas: &[u64]) -> String {
    if kvas.is_empty() {
        return "no address".to_owned();
    }
    let mut shown: Vec<String> = kvas.iter().take(4).map(|kva| format!("{kva:#x}")).collect();
    if kvas.len() > 4 {
        shown.push(format!("{} more", kvas.len() - 4));
    }
    shown.join(", ")
}

/// A list of names, cut to what a message can hold.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.0.iter().take(LISTED).map(|name| cut(name)).collect();
        f.write_str(&shown.join(", "))?;
        match self.0.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A word of [`FieldKind`](super::FieldKind) with its article.
pub(crate) fn with_article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// A map by its name in quotes. Names of maps have no spaces: what has one is something of the
/// kernel's, in words.
fn thing(name: &str) -> String {
    if name.contains(' ') { cut(name) } else { format!("map {}", quoted(name)) }
}

/// A name in quotes: names come from the guest and from scripts, so what would not print is
/// escaped and what is endless is cut.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", cut(name))
}

/// A name without quotes, escaped and cut.
fn cut(name: &str) -> String {
    let mut out: String = name.chars().take(SHOWN).flat_map(escaped).collect();
    if name.chars().nth(SHOWN).is_some() {
        out.push_str("..");
    }
    out
}

/// Text with what would disturb a terminal as escapes.
pub(crate) fn escaped_text(text: &str) -> String {
    text.chars().flat_map(escaped).collect()
}

/// What would disturb a terminal becomes its escape.
fn escaped(c: char) -> impl Iterator<Item = char> {
    let plain = !c.is_control();
    plain.then_some(c).into_iter().chain((!plain).then(|| c.escape_default()).into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{MissingStatsReason, SnapshotError as E};

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Every variant at least once, with its text.
    fn catalogue() -> Vec<(E, &'static str)> {
        let mut all = about_names();
        all.extend(about_values());
        all.extend(about_runs());
        all
    }

    fn about_names() -> Vec<(E, &'static str)> {
        vec![
            (
                E::MapNotFound {
                    requested: "task_ctxx".into(),
                    available: names(&["task_ctx", "fifo.bss"]),
                },
                "no captured map is called \"task_ctxx\"; did you mean map(\"task_ctx\")? \
                 (there are task_ctx, fifo.bss)",
            ),
            (
                E::MapNotFound { requested: "m".into(), available: vec![] },
                "no captured map is called \"m\": this snapshot holds no map at all (is a \
                 scheduler attached?)",
            ),
            (
                E::VarNotFound {
                    requested: "nr_enqeued".into(),
                    available: names(&["nr_enqueued", "slice_ns"]),
                },
                "no global variable is called \"nr_enqeued\"; did you mean \
                 global(\"nr_enqueued\")? (there are nr_enqueued, slice_ns)",
            ),
            (
                E::VarNotFound { requested: "x".into(), available: vec![] },
                "no global variable is called \"x\": no captured map is a .bss, .data or .rodata \
                 section with types (is a scheduler attached?)",
            ),
            (
                E::AmbiguousVar {
                    requested: "nr".into(),
                    found_in: names(&["fifo.bss#3", "fifo.bss#9"]),
                },
                "more than one captured map has a variable \"nr\": fifo.bss#3, fifo.bss#9; \
                 live_global(\"nr\") takes the attached scheduler's, globals(\"nr\") all of them, \
                 map(\"fifo.bss#3\").at(0).get(\"nr\") this one's",
            ),
            (
                E::AmbiguousVar {
                    requested: "task_ctx".into(),
                    found_in: names(&["task_ctx#3", "task_ctx#9"]),
                },
                "more than one captured map is called \"task_ctx\": task_ctx#3, task_ctx#9; \
                 choose one, as in map(\"task_ctx#3\")",
            ),
            (
                E::FieldNotFound {
                    requested: "ctx.wieght".into(),
                    walked: "ctx".into(),
                    component: "wieght".into(),
                    available: names(&["weight", "vtime"]),
                },
                "\"ctx\" has no member \"wieght\" (asked for \"ctx.wieght\"); did you mean \
                 \"ctx.weight\"? (it has weight, vtime)",
            ),
            (
                E::FieldNotFound {
                    requested: "qqq".into(),
                    walked: String::new(),
                    component: "qqq".into(),
                    available: names(&["weight"]),
                },
                "the value has no member \"qqq\"; it has weight",
            ),
            (
                E::NotAStruct {
                    requested: "ctx.weight.x".into(),
                    walked: "ctx.weight".into(),
                    component: "x".into(),
                    kind: "int".into(),
                },
                "\"ctx.weight\" is an int, so it has no member \"x\" (asked for \
                 \"ctx.weight.x\"): the path ends at \"ctx.weight\"",
            ),
            (
                E::NotAStruct {
                    requested: "fifos.head".into(),
                    walked: "fifos".into(),
                    component: "head".into(),
                    kind: "array".into(),
                },
                "\"fifos\" is an array, so it has no member \"head\" (asked for \"fifos.head\"): \
                 choose an element, as in \"fifos[0]\"",
            ),
            (
                E::NotAStruct {
                    requested: "ctx.task.pid".into(),
                    walked: "ctx.task".into(),
                    component: "pid".into(),
                    kind: "pointer".into(),
                },
                "\"ctx.task\" is a pointer, and its type does not tell what it leads to, so it has \
                 no member \"pid\" (asked for \"ctx.task.pid\"): give the type, as in \
                 .as_ptr(\"struct task_struct\"); .as_u64() gives the address",
            ),
            (
                E::NotAStruct {
                    requested: "x".into(),
                    walked: String::new(),
                    component: "x".into(),
                    kind: "int".into(),
                },
                "the value is an int, so it has no member \"x\" (asked for \"x\"): read it \
                 without a path",
            ),
            (
                E::EmptyPathComponent { requested: "a..b".into() },
                "path \"a..b\" has an empty component; write \"a.b\"",
            ),
            (
                E::EmptyPathComponent { requested: String::new() },
                "the path is empty: name a member, as in \"ctx.weight\"",
            ),
            (
                E::EmptyPathComponent { requested: ".".into() },
                "path \".\" has an empty component: name a member, as in \"ctx.weight\"",
            ),
        ]
    }

    fn about_values() -> Vec<(E, &'static str)> {
        let no_match = |op: &str, len, keys: &[&str]| E::NoMatch {
            map: "task_ctx".into(),
            op: op.into(),
            len,
            available_keys: names(keys),
        };
        let slot = |cpu, len, unmapped| E::PerCpuSlot { map: "c".into(), cpu, len, unmapped };
        let index = |index, len| E::IndexOutOfRange { map: "a".into(), index, len };
        let render = |side: &str| E::NoRendered { map: "m".into(), side: side.into() };
        let mismatch = |requested: &str| E::TypeMismatch {
            expected: "a number".into(),
            actual: "struct ctx".into(),
            requested: requested.into(),
        };
        vec![
            (mismatch("ctx"), "\"ctx\": expected a number, found struct ctx"),
            (mismatch(""), "expected a number, found struct ctx"),
            (index(9, 4), "\"a\" has no index 9: it has 4, from 0 to 3"),
            (index(-1, 1), "\"a\" has no index -1: it has one, index 0"),
            (index(0, 0), "\"a\" has no index 0: it is empty"),
            (slot(9, 4, false), "\"c\" has no CPU 9: the machine has 4, from 0 to 3"),
            (slot(1, 1, false), "\"c\" has no CPU 1: the machine has one, CPU 0"),
            (slot(0, 0, false), "\"c\" has no CPU 0: no CPU was captured"),
            (
                slot(3, 4, true),
                "\"c\" has no memory behind its slot of CPU 3 (of 4): the CPU cannot come up in \
                 this machine, or its memory could not be read; .is_present() tells such slots",
            ),
            (
                no_match("get(7)", 17, &["1", "2", "3"]),
                "get(7) found nothing in \"task_ctx\", which has 17 entries; keys there: 1, 2, 3, ..",
            ),
            (
                no_match("find", 1, &["0x07000000"]),
                "find found nothing in \"task_ctx\", which has one entry; keys there: 0x07000000 \
                 (bytes, because the map's key has no BTF type: give raw bytes, or declare the \
                 map with __type(key, ..))",
            ),
            (
                no_match("delta", 1, &["periodic_003"]),
                "delta needs two samples with a value, and \"task_ctx\" has one: periodic_003",
            ),
            (no_match("max_by", 0, &[]), "max_by found nothing in \"task_ctx\": it is empty"),
            (
                E::PerCpuNotNarrowed { map: "cpu_stats".into() },
                "\"cpu_stats\" has one value for each CPU: choose one with .cpu(n), or take \
                 .cpu_sum(path), .cpu_max(path) or .cpu_min(path) of an entry",
            ),
            (
                render("key"),
                "the key of \"m\" has no BTF type, only bytes: read them with .raw(), or declare \
                 the map with __type(key, ..) instead of __uint(key_size, ..)",
            ),
            (
                render("value"),
                "the value of \"m\" has no BTF type, only bytes: read them with .raw(), or \
                 declare the map with __type(value, ..) instead of __uint(value_size, ..)",
            ),
            (
                E::MapRenderIncomplete {
                    map: "events".into(),
                    error: "maps of kind ringbuf cannot be decoded yet".into(),
                },
                "map \"events\" could not be read: maps of kind ringbuf cannot be decoded yet",
            ),
        ]
    }

    fn about_runs() -> Vec<(E, &'static str)> {
        let missing = |tag: &str| E::MissingStats {
            tag: tag.into(),
            reason: MissingStatsReason::DuringFreeze,
        };
        let excluded = |kvas: [u64; 2]| E::ActiveFilterExcludedMaps {
            requested: "nr".into(),
            active_obj: "fifo".into(),
            excluded_maps: vec![
                ExcludedMap { name: "fifo.bss".into(), map_kva: kvas[0] },
                ExcludedMap { name: "fifo.data".into(), map_kva: kvas[1] },
            ],
            whitelist_kvas: vec![0x30],
        };
        vec![
            (
                E::PlaceholderSample { tag: "s3".into(), reason: "timed out".into() },
                "sample \"s3\" has no values, because its freeze did not complete: timed out",
            ),
            (
                missing("s3"),
                "sample \"s3\" has no statistics: the machine was being frozen during the request",
            ),
            (missing(""), "no statistics: the machine was being frozen during the request"),
            (
                E::HostFieldUnavailable { tag: "s3".into(), cpu: 7 },
                "sample \"s3\" has no CPU time of CPU 7",
            ),
            (
                E::PlaceholderSnapshot { tag: Some("end".into()) },
                "snapshot \"end\" is empty, because its freeze did not complete: ask \
                 .is_placeholder first, and read the reason with .dump()",
            ),
            (
                E::PlaceholderSnapshot { tag: None },
                "this snapshot is empty, because its freeze did not complete: ask .is_placeholder \
                 first, and read the reason with .dump()",
            ),
            (
                E::NoActiveScheduler { reason: "none is attached".into() },
                "no scheduler was running: none is attached",
            ),
            (
                excluded([0x10, 0x20]),
                "\"nr\" was not looked for: none of the captured maps of \"fifo\" (fifo.bss at \
                 0x10, fifo.data at 0x20) belongs to the scheduler that is live (maps at 0x30); \
                 their addresses are stale: they were captured before the last attach or replace; \
                 freeze again, or name the map with map(..)",
            ),
            (
                excluded([0, 0]),
                "\"nr\" was not looked for: none of the captured maps of \"fifo\" (fifo.bss, \
                 fifo.data) belongs to the scheduler that is live (maps at 0x30); their addresses \
                 were never recorded; freeze again, or name the map with map(..)",
            ),
            (
                excluded([0x10, 0]),
                "\"nr\" was not looked for: none of the captured maps of \"fifo\" (fifo.bss at \
                 0x10, fifo.data) belongs to the scheduler that is live (maps at 0x30); some \
                 addresses are stale (captured before the last attach or replace), the others \
                 were never recorded; freeze again, or name the map with map(..)",
            ),
            (
                E::WalkerDriftedWithinPhase {
                    phase: "wide".into(),
                    pinned_kvas: vec![1, 2, 3, 4, 5, 6],
                    sample_kvas: vec![],
                    requested: "nr".into(),
                },
                "\"nr\" cannot be followed through phase \"wide\": the scheduler changed within \
                 it (maps at 0x1, 0x2, 0x3, 0x4, 2 more at its start, at no address in this \
                 sample); end the phase where the scheduler is replaced",
            ),
            (
                E::ProjectionFailed { reason: "division by zero".into() },
                "the projection's closure failed: division by zero",
            ),
        ]
    }

    #[test]
    fn every_error_reads_as_written_here() {
        for (error, text) in catalogue() {
            assert_eq!(error.to_string(), text, "{}", error.kind());
        }
    }

    #[test]
    fn every_kind_is_in_the_catalogue_and_names_its_fields() {
        let kinds: std::collections::BTreeSet<&str> =
            catalogue().iter().map(|(error, _)| error.kind()).collect();
        assert_eq!(kinds.len(), 21);
        for (error, _) in catalogue() {
            let stored = serde_json::to_value(&error).unwrap();
            let name = stored.as_object().unwrap().keys().next().unwrap();
            assert_eq!(name, error.kind(), "serialized and spoken names agree");
            assert!(!error.fields().is_empty());
            assert_eq!(serde_json::from_value::<E>(stored).unwrap(), error);
        }
        let error = E::NotAStruct {
            requested: "a.b".into(),
            walked: "a".into(),
            component: "b".into(),
            kind: "int".into(),
        };
        let fields: Vec<String> = error.fields().keys().cloned().collect();
        assert_eq!(fields, ["component", "kind", "requested", "walked"]);
    }

    #[test]
    fn long_lists_and_hostile_names_stay_readable() {
        let many: Vec<String> = (0..40).map(|i| format!("map_{i}")).collect();
        let text = E::MapNotFound { requested: "zebra".into(), available: many }.to_string();
        assert!(text.ends_with("map_15 and 24 more"), "{text}");
        let hostile = format!("\x1b[2J\n{}", "x".repeat(1000));
        let text = E::PerCpuNotNarrowed { map: hostile }.to_string();
        assert!(text.starts_with("\"\\u{1b}[2J\\nxxx"), "{text}");
        assert!(text.len() < 300);
    }

    #[test]
    fn a_path_that_failed_below_another_names_all_of_it() {
        let error = E::FieldNotFound {
            requested: "x".into(),
            walked: String::new(),
            component: "x".into(),
            available: names(&["y"]),
        };
        assert_eq!(
            error.below("ctx[2]").to_string(),
            "\"ctx[2]\" has no member \"x\" (asked for \"ctx[2].x\"); it has y"
        );
        let error = E::EmptyPathComponent { requested: "[0]..a".into() };
        assert_eq!(error.below("ctx"), E::EmptyPathComponent { requested: "ctx[0]..a".into() });
    }
}
