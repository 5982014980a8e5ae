//! How a script's values look: on one line in messages, on many for `dump(x)`.

use std::sync::Arc;

use rhai::{Array, Dynamic, Map};

use crate::snapshot::{
    Cpu, Domain, Dsq, Entry, EnumValue, Field, Module, PerCpu, Sched, Snapshot, SnapshotError,
    Stack, Task,
};

use crate::vm::topology::Topology;

use super::U64;

/// Columns that a collection may take to be shown on one line.
const SHORT: usize = 76;
/// Characters of one line.
const LINE: usize = 2000;
/// Levels of nested collections.
const DEPTH: usize = 16;
/// Elements of one collection on many lines.
const ELEMENTS: usize = 1000;

/// A value with what it is, for messages: `5 (int)`, `"x" (string)`, `a closure`.
pub(crate) fn described(value: &Dynamic) -> String {
    if let Some(field) = value.read_lock::<Field>() {
        return field.described();
    }
    let kind = type_of(value);
    match kind {
        "int" | "float" | "bool" | "string" | "U64" | "EnumValue" => {
            format!("{} ({kind})", render(value))
        }
        "nothing" => "nothing, ()".to_owned(),
        _ if kind.starts_with(['a', 'e', 'i', 'o']) => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

/// The type in an author's words.
fn type_of(value: &Dynamic) -> &'static str {
    let is = |yes: bool, name: &'static str| yes.then_some(name);
    is(value.is_int(), "int")
        .or_else(|| is(value.is_float(), "float"))
        .or_else(|| is(value.is_bool(), "bool"))
        .or_else(|| is(value.is_string() || value.is_char(), "string"))
        .or_else(|| is(value.is_array(), "array"))
        .or_else(|| is(value.is_map(), "object map"))
        .or_else(|| is(value.is_blob(), "blob"))
        .or_else(|| is(value.is_unit(), "nothing"))
        .or_else(|| is(value.is_fnptr(), "closure"))
        .or_else(|| is(value.is::<U64>(), "U64"))
        .or_else(|| is(value.is::<EnumValue>(), "EnumValue"))
        .or_else(|| is(value.is::<crate::snapshot::Map>(), "SnapshotMap"))
        .or_else(|| is(value.is::<Entry>(), "SnapshotEntry"))
        .or_else(|| is(value.is::<Task>(), "SnapshotTask"))
        .or_else(|| is(value.is::<Cpu>(), "SnapshotCpu"))
        .or_else(|| is(value.is::<Domain>(), "SnapshotDomain"))
        .or_else(|| is(value.is::<Dsq>(), "SnapshotDsq"))
        .or_else(|| is(value.is::<Module>(), "SnapshotModule"))
        .or_else(|| is(value.is::<Sched>(), "SnapshotSched"))
        .or_else(|| is(value.is::<Stack>(), "SnapshotStack"))
        .or_else(|| is(value.is::<PerCpu>(), "SnapshotPerCpu"))
        .or_else(|| is(value.is::<Arc<Snapshot>>(), "Snapshot"))
        .or_else(|| is(value.is::<SnapshotError>(), "SnapshotError"))
        .or_else(|| value.type_name().rsplit("::").next())
        .unwrap_or("value")
}

/// A value on one line; text is quoted.
pub(crate) fn render(value: &Dynamic) -> String {
    let mut out = String::new();
    write(value, &mut out, 0);
    if out.chars().count() > LINE {
        out = out.chars().take(LINE).collect::<String>() + "..";
    }
    out
}

fn write(value: &Dynamic, out: &mut String, depth: usize) {
    if depth > DEPTH || out.len() > 4 * LINE {
        out.push_str("..");
        return;
    }
    if let Ok(array) = value.as_array_ref() {
        out.push('[');
        for (i, item) in array.iter().enumerate() {
            if out.len() > 4 * LINE {
                break;
            }
            out.push_str(if i == 0 { "" } else { ", " });
            write(item, out, depth + 1);
        }
        out.push(']');
    } else if let Ok(map) = value.as_map_ref() {
        out.push_str("#{");
        for (i, (name, item)) in map.iter().enumerate() {
            if out.len() > 4 * LINE {
                break;
            }
            out.push_str(if i == 0 { "" } else { ", " });
            out.push_str(&property(name));
            out.push_str(": ");
            write(item, out, depth + 1);
        }
        out.push('}');
    } else {
        out.push_str(&single(value));
    }
}

/// A property as a literal would spell it.
fn property(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts && name.chars().all(plain) { name.to_owned() } else { format!("{name:?}") }
}

fn single(value: &Dynamic) -> String {
    if let Ok(text) = value.as_immutable_string_ref() {
        return format!("{:?}", text.as_str());
    }
    if let Ok(c) = value.as_char() {
        return format!("{:?}", c.to_string());
    }
    if let Ok(x) = value.as_float() {
        return format!("{x:?}");
    }
    if let Ok(bytes) = value.as_blob_ref() {
        let hex: String = bytes.iter().take(64).map(|b| format!("{b:02x}")).collect();
        let more = if bytes.len() > 64 { ".." } else { "" };
        return format!("0x{hex}{more}");
    }
    if value.is_unit() {
        return "()".to_owned();
    }
    if value.is_fnptr() {
        return "a closure".to_owned();
    }
    if let Some(field) = value.read_lock::<Field>() {
        return field.inline(LINE);
    }
    if let Some(n) = value.read_lock::<U64>() {
        return n.to_string();
    }
    if let Some(e) = value.read_lock::<EnumValue>() {
        return e.to_string();
    }
    if let Some(map) = value.read_lock::<crate::snapshot::Map>() {
        return map.headline();
    }
    if let Some(entry) = value.read_lock::<Entry>() {
        return format!("{}[{}]", entry.map().name(), entry.key_text());
    }
    if let Some(snapshot) = value.read_lock::<Arc<Snapshot>>() {
        return snapshot.headline();
    }
    if let Some(error) = value.read_lock::<SnapshotError>() {
        return format!("{}: {}", error.kind(), *error);
    }
    if let Some(topology) = value.read_lock::<Topology>() {
        return topology.to_string();
    }
    if let Some(text) = of_the_kernel(value) {
        return text;
    }
    match value.is_int() || value.is_bool() {
        true => value.to_string(),
        false => described(value),
    }
}

/// Something of the kernel's own state on one line.
fn of_the_kernel(value: &Dynamic) -> Option<String> {
    let task = || value.read_lock::<Task>().map(|task| task.headline());
    let cpu = || value.read_lock::<Cpu>().map(|cpu| cpu.headline());
    let domain = || value.read_lock::<Domain>().map(|domain| domain.headline());
    let module = || value.read_lock::<Module>().map(|module| module.headline());
    let dsq = || value.read_lock::<Dsq>().map(|dsq| dsq.headline());
    let sched = || value.read_lock::<Sched>().map(|sched| sched.headline());
    let variable = || {
        let variable = value.read_lock::<PerCpu>()?;
        Some(format!("kernel variable {} of each CPU", variable.symbol()))
    };
    let stack = || {
        let stack = value.read_lock::<Stack>()?;
        let frames: Vec<String> = stack.frames.iter().map(|f| f.to_string()).collect();
        Some(format!("[{}], then {}", frames.join(", "), stack.ending()))
    };
    task()
        .or_else(cpu)
        .or_else(domain)
        .or_else(module)
        .or_else(dsq)
        .or_else(sched)
        .or_else(variable)
        .or_else(stack)
}

/// A value on as many lines as it takes, without a line break at its end.
pub(crate) fn pretty(value: &Dynamic) -> String {
    if let Ok(text) = value.as_immutable_string_ref() {
        return text.to_string();
    }
    let mut out = String::new();
    lines(value, "", 0, &mut out);
    out.truncate(out.trim_end().len());
    out
}

/// Writes a value after `label` at a level of indentation.
fn lines(value: &Dynamic, label: &str, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let head = if label.is_empty() { String::new() } else { format!("{label}: ") };
    if let Some(tree) = tree(value) {
        let below = if label.is_empty() { "" } else { "  " };
        if !label.is_empty() {
            out.push_str(&format!("{indent}{label}:\n"));
        }
        for line in tree.lines() {
            out.push_str(&format!("{indent}{below}{line}\n"));
        }
        return;
    }
    let short = render(value);
    let compound = value.is_array() || value.is_map();
    let fits =
        !holds_tree(value, depth) && indent.len() + head.len() + short.chars().count() <= SHORT;
    if !compound || fits || depth > DEPTH {
        out.push_str(&format!("{indent}{head}{short}\n"));
        return;
    }
    let (open, close) = if value.is_array() { ("[", "]") } else { ("#{", "}") };
    out.push_str(&format!("{indent}{head}{open}\n"));
    let mut count = 0;
    let mut each = |label: &str, item: &Dynamic, out: &mut String| {
        count += 1;
        if count <= ELEMENTS {
            lines(item, label, depth + 1, out);
        }
    };
    if let Ok(array) = value.as_array_ref() {
        array_items(&array, |item| each("", item, out));
    } else if let Ok(map) = value.as_map_ref() {
        map_items(&map, |name, item| each(&property(name), item, out));
    }
    if count > ELEMENTS {
        out.push_str(&format!("{indent}  .. {} more\n", count - ELEMENTS));
    }
    out.push_str(&format!("{indent}{close}\n"));
}

fn array_items(array: &Array, mut each: impl FnMut(&Dynamic)) {
    array.iter().for_each(&mut each);
}

fn map_items(map: &Map, mut each: impl FnMut(&str, &Dynamic)) {
    map.iter().for_each(|(name, item)| each(name, item));
}

/// Whether something in a collection says more on many lines than on one.
fn holds_tree(value: &Dynamic, depth: usize) -> bool {
    let shown_by_name = value.is::<Arc<Snapshot>>()
        || value.is::<crate::snapshot::Map>()
        || value.is::<Entry>()
        || value.is::<SnapshotError>();
    if shown_by_name || depth > DEPTH {
        return shown_by_name;
    }
    if let Ok(array) = value.as_array_ref() {
        return array.iter().any(|item| holds_tree(item, depth + 1));
    }
    value.as_map_ref().is_ok_and(|map| map.values().any(|item| holds_tree(item, depth + 1)))
}

/// What has a tree of its own.
fn tree(value: &Dynamic) -> Option<String> {
    if let Some(snapshot) = value.read_lock::<Arc<Snapshot>>() {
        return Some(snapshot.dump());
    }
    if let Some(map) = value.read_lock::<crate::snapshot::Map>() {
        return Some(map.dump());
    }
    if let Some(entry) = value.read_lock::<Entry>() {
        return Some(entry.dump());
    }
    if let Some(error) = value.read_lock::<SnapshotError>() {
        let mut out = format!("{}: {}\n", error.kind(), *error);
        for (name, field) in error.fields() {
            out.push_str(&format!("  {name}: {field}\n"));
        }
        return Some(out);
    }
    if let Some(stack) = value.read_lock::<Stack>() {
        return Some(stack.to_string());
    }
    let field = value.read_lock::<Field>()?;
    Some(field.dump())
}
