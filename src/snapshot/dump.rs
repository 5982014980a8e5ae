//! How captured values look to a reader: one line for a message, an aligned tree for `dump()`.
//!
//! Trees are built first (bounded in nodes, so that no type of a guest makes an endless one) and
//! laid out afterwards, for a terminal of 80 columns.

mod leaf;

use std::fmt;
use std::sync::Arc;

use super::access::{Field, Objects, Side};
use super::contents::Detail;
use super::entry::Entry;
use super::error::{SnapshotError, SnapshotResult};
use super::error_text::escaped_text;
use super::map::Map;
use super::path::{MEMBERS, for_each_member};
use super::value::{FieldKind, Scalar};
use super::{Pause, Snapshot};
use leaf::leaf_text;

/// Columns of a line.
const WIDTH: usize = 80;
/// Columns up to which values of siblings are aligned.
const ALIGNED: usize = 32;
/// Characters that a struct may take to be shown in its line.
const SHORT: usize = 56;
/// Lines of one dump.
const NODES: usize = 4000;
/// Levels of one dump.
const LEVELS: usize = 12;
/// Elements of one array that are shown: when it is asked for, and as a part of something.
const ELEMENTS: (usize, usize) = (1024, 64);
/// Entries of one map that are shown when the map is asked for, and when the snapshot is.
const ENTRIES: (usize, usize) = (64, 4);

/// Text with a limit: what would exceed it is left out and remembered.
struct Limited {
    out: String,
    left: usize,
    full: bool,
    /// Elements of one array.
    elements: usize,
}

impl Limited {
    fn new(limit: usize, elements: usize) -> Limited {
        Limited { out: String::new(), left: limit, full: false, elements }
    }

    /// Whether all of it fitted.
    fn finish(self) -> (String, bool) {
        (self.out, !self.full)
    }

    fn push(&mut self, text: &str) {
        for c in text.chars() {
            if self.left == 0 {
                self.full = true;
                return;
            }
            self.left -= 1;
            self.out.push(c);
        }
    }
}

impl Field {
    /// The value on one line of at most `max` characters: `5`, `"kworker"`, `{pid: 1, cpu: 0}`,
    /// `[1, 2, 0 x 30]`, `0xffff888003c0`. A place that cannot be read says why.
    #[must_use]
    pub fn inline(&self, max: usize) -> String {
        self.one_line(max, ELEMENTS.0)
    }

    fn one_line(&self, max: usize, elements: usize) -> String {
        // Two characters are kept for the mark that something was cut.
        let mut text = Limited::new(max.saturating_sub(2), elements);
        write_inline(self, &mut text, 0);
        match text.finish() {
            (text, true) => text,
            (text, false) => text + "..",
        }
    }

    /// The value as an aligned tree.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut budget = Budget { nodes: NODES, elements: ELEMENTS.0 };
        let label = if self.path().is_empty() { "value" } else { self.path() };
        layout(&[node(label.to_owned(), self, &mut budget, 0)])
    }

    /// The whole value on one line, if it is short.
    fn short(&self) -> Option<String> {
        let mut text = Limited::new(SHORT, ELEMENTS.0);
        write_inline(self, &mut text, 0);
        let (text, whole) = text.finish();
        whole.then_some(text)
    }

    /// The first members with their names.
    fn each_member(&self, limit: usize) -> Vec<(String, Field)> {
        if let Some(Ok(shown)) = self.shown() {
            return shown.each_member(limit);
        }
        let Some((btf, at)) = self.typed() else { return Vec::new() };
        let mut out = Vec::new();
        for_each_member(btf, at.ty, limit, &mut |name, member| {
            out.push((name.to_owned(), self.placed(name, member)));
        });
        out
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Text prints as it is; as a part of something it is quoted.
        match self.leaf() {
            Ok(Some(Scalar::Str(text))) => f.write_str(&text),
            _ => f.write_str(&self.inline(2000)),
        }
    }
}

fn write_inline(field: &Field, out: &mut Limited, depth: usize) {
    if out.full || depth > LEVELS {
        out.full = true;
        return;
    }
    if let Some(cpus) = field.cpumask() {
        return out.push(&cpus);
    }
    match field.kind() {
        FieldKind::Struct | FieldKind::Union => {
            out.push("{");
            // A member takes four characters at least, so this is more than there is room for,
            // even when most are anonymous.
            let limit = MEMBERS.min(8 * (out.left + 1));
            for (i, (name, member)) in field.each_member(limit).iter().enumerate() {
                out.push(if i == 0 { "" } else { ", " });
                out.push(&escaped_text(name));
                out.push(": ");
                write_inline(member, out, depth + 1);
                if out.full {
                    return;
                }
            }
            out.push("}");
        }
        FieldKind::Array => {
            out.push("[");
            write_elements(field, out, depth);
            out.push("]");
        }
        _ => out.push(&leaf_text(field)),
    }
}

fn write_elements(field: &Field, out: &mut Limited, depth: usize) {
    // Each takes a character at least.
    let runs = match runs(field, out.elements.min(out.left + 1)) {
        Ok(runs) => runs,
        Err(error) => return out.push(&unreadable(&error)),
    };
    for (i, run) in runs.shown.iter().enumerate() {
        out.push(if i == 0 { "" } else { ", " });
        write_inline(&run.element, out, depth + 1);
        if run.len > 1 {
            out.push(&format!(" x {}", run.len));
        }
        if out.full {
            return;
        }
    }
    if let Some(rest) = &runs.rest {
        out.push(if runs.shown.is_empty() { "" } else { ", " });
        out.push(&format!(".. {rest}"));
    }
}

/// The elements of an array as they are shown.
struct Runs {
    shown: Vec<Run>,
    /// What is to be said of those that are not: how many there are, or why they are missing.
    rest: Option<String>,
}

/// Neighbours that are shown as one.
struct Run {
    first: usize,
    len: usize,
    element: Field,
    /// Nothing but zeros.
    zero: bool,
}

/// Groups equal neighbours (fewer than four stay single) into at most `limit` runs.
fn runs(field: &Field, limit: usize) -> SnapshotResult<Runs> {
    if let Some(objects) = field.objects(limit) {
        return Ok(of_objects(objects));
    }
    let elements = field.elements()?;
    let bytes = field.bytes()?;
    let chunk = |i: usize| bytes.get(i * elements.size..(i + 1) * elements.size);
    let mut shown = Vec::new();
    let mut at = 0;
    while at < elements.len && shown.len() < limit {
        let same = (at + 1..elements.len).take_while(|&i| chunk(i) == chunk(at)).count();
        let len = if same >= 3 { 1 + same } else { 1 };
        let zero = chunk(at).is_some_and(|bytes| bytes.iter().all(|&b| b == 0));
        shown.push(Run { first: at, len, element: elements.at(at), zero });
        at += len;
    }
    Ok(Runs { shown, rest: rest(elements.len - at) })
}

fn rest(more: usize) -> Option<String> {
    (more > 0).then(|| format!("{} more", grouped(more as u64)))
}

/// The objects of a list, each for itself.
fn of_objects(objects: Objects) -> Runs {
    let Objects { found, more, broken, torn } = objects;
    let run = |(first, element)| Run { first, len: 1, element, zero: false };
    let rest = match (broken, torn.first()) {
        (Some(why), _) => Some(format!("the rest is missing: {why}")),
        (None, Some(why)) => Some(format!("torn: {why}")),
        (None, None) => more.then(|| "more".to_owned()),
    };
    Runs { shown: found.into_iter().enumerate().map(run).collect(), rest }
}

fn unreadable(error: &SnapshotError) -> String {
    match error {
        // Too frequent for a whole sentence each.
        SnapshotError::PerCpuSlot { unmapped: true, .. } => "<no memory>".to_owned(),
        error => format!("<{error}>"),
    }
}

/// What a dump may still hold.
struct Budget {
    nodes: usize,
    /// Elements of one array.
    elements: usize,
}

impl Budget {
    fn spend(&mut self) {
        self.nodes = self.nodes.saturating_sub(1);
    }
}

/// A line, or a line with others below it.
enum Node {
    Leaf { label: String, text: String },
    Branch { label: String, below: Vec<Node> },
}

fn node(label: String, field: &Field, budget: &mut Budget, depth: usize) -> Node {
    budget.spend();
    if let Some(text) = field.short() {
        return Node::Leaf { label, text };
    }
    let label_of_type = |label: &str| format!("{label} ({})", field.type_name());
    match field.kind() {
        _ if depth >= LEVELS => Node::Leaf { label, text: "..".to_owned() },
        FieldKind::Struct | FieldKind::Union => {
            let members = field.each_member(MEMBERS);
            Node::Branch {
                label: label_of_type(&label),
                below: nodes(members, budget, |(name, member), budget| {
                    node(escaped_text(name), member, budget, depth + 1)
                }),
            }
        }
        FieldKind::Array => match runs(field, budget.elements) {
            Ok(runs) if runs.shown.first().is_some_and(|run| is_compound(&run.element)) => {
                let below = element_nodes(runs, budget, depth);
                Node::Branch { label: label_of_type(&label), below }
            }
            _ => Node::Leaf { label, text: field.one_line(16_000, budget.elements) },
        },
        _ => Node::Leaf { label, text: field.inline(2000) },
    }
}

fn is_compound(field: &Field) -> bool {
    matches!(field.kind(), FieldKind::Struct | FieldKind::Union | FieldKind::Array)
}

/// Nodes of as many things as the budget allows, and a line that says how many it did not.
fn nodes<T>(
    things: Vec<T>,
    budget: &mut Budget,
    mut make: impl FnMut(&T, &mut Budget) -> Node,
) -> Vec<Node> {
    let mut out = Vec::new();
    for (i, thing) in things.iter().enumerate() {
        if budget.nodes == 0 {
            out.push(more(things.len() - i));
            break;
        }
        out.push(make(thing, budget));
    }
    out
}

fn more(n: usize) -> Node {
    Node::Leaf { label: "..".to_owned(), text: format!("{} more", grouped(n as u64)) }
}

fn element_nodes(runs: Runs, budget: &mut Budget, depth: usize) -> Vec<Node> {
    let mut below = nodes(runs.shown, budget, |run, budget| {
        let label = match run.len {
            1 => format!("[{}]", run.first),
            len => format!("[{}..{}]", run.first, run.first + len - 1),
        };
        if run.len > 1 && run.zero {
            budget.spend();
            return Node::Leaf { label, text: "all zero".to_owned() };
        }
        node(label, &run.element, budget, depth + 1)
    });
    if let Some(text) = runs.rest {
        below.push(Node::Leaf { label: "..".to_owned(), text });
    }
    below
}

impl Entry {
    /// The key and the value (of every CPU in a per-CPU map) as an aligned tree.
    #[must_use]
    pub fn dump(&self) -> String {
        layout(&[entry_node(self, &mut Budget { nodes: NODES, elements: ELEMENTS.0 })])
    }
}

fn entry_node(entry: &Entry, budget: &mut Budget) -> Node {
    let torn = entry.torn();
    let mut label = format!("[{}]", entry.key_text());
    if !torn.is_empty() {
        label.push_str(&format!(" (torn: {})", torn.join("; ")));
    }
    let map = entry.map();
    let (Ok(cpus), None) = (map.cpus(), map.narrowed_to()) else {
        return value_node(label, entry, budget);
    };
    let single: Option<Vec<String>> = (0..cpus)
        .map(|cpu| {
            let value = Field::whole(Entry::new(map.narrowed(cpu), entry.row()), Side::Value);
            (!is_compound(&value)).then(|| leaf_text(&value))
        })
        .collect();
    if let Some(values) = single {
        budget.spend();
        return Node::Leaf { label, text: format!("by CPU: {}", values.join(", ")) };
    }
    let below = nodes((0..cpus).collect(), budget, |&cpu, budget| {
        value_node(format!("CPU {cpu}"), &Entry::new(map.narrowed(cpu), entry.row()), budget)
    });
    Node::Branch { label, below }
}

fn detail_node((name, value): &(String, Detail), budget: &mut Budget) -> Node {
    budget.spend();
    let text = match value {
        Detail::Number(n) => n.to_string(),
        Detail::Text(text) => escaped_text(text),
    };
    Node::Leaf { label: escaped_text(name), text }
}

fn value_node(label: String, entry: &Entry, budget: &mut Budget) -> Node {
    if entry.map().attrs().kind == "stack_trace"
        && let Ok(stack) = entry.stack()
    {
        let frames = stack.frames.iter().enumerate().collect();
        let below = nodes(frames, budget, |(i, frame), budget| {
            budget.spend();
            Node::Leaf { label: format!("[{i}]"), text: frame.to_string() }
        });
        return Node::Branch { label, below };
    }
    match entry.value() {
        Ok(value) => match node(label.clone(), &value, budget, 1) {
            // An entry is known by its map: its type would only repeat.
            Node::Branch { below, .. } => Node::Branch { label, below },
            leaf => leaf,
        },
        Err(error) => Node::Leaf { label, text: unreadable(&error) },
    }
}

impl Map {
    /// The attributes and the entries as an aligned tree; of a large map the first entries.
    #[must_use]
    pub fn dump(&self) -> String {
        layout(&[map_node(self, ENTRIES.0, &mut Budget { nodes: NODES, elements: ELEMENTS.1 })])
    }

    /// One line: name, kind, number of entries, types.
    #[must_use]
    pub fn headline(&self) -> String {
        let attrs = self.attrs();
        let mut out = format!("{}: {}", escaped_text(self.name()), attrs.kind);
        match self.len() {
            Ok(1) => out.push_str(", 1 entry"),
            Ok(len) => out.push_str(&format!(", {} entries", grouped(len as u64))),
            Err(_) => out.push_str(", incomplete"),
        }
        // Storage has no limit of its own: the kernel says 0.
        let limited = attrs.max_entries > 0;
        if limited && self.len().is_ok_and(|len| len != attrs.max_entries as usize) {
            out.push_str(&format!(" of {}", grouped(attrs.max_entries.into())));
        }
        let side = |id, size: u32| match attrs.btf.as_ref().filter(|_| id != 0) {
            Some(btf) => btf.type_name(id),
            None => format!("{size} bytes"),
        };
        if !self.is_section() {
            let value = side(attrs.value_type, attrs.value_size);
            match attrs.kind.as_str() {
                // Without keys, or with one that says nothing.
                "queue" | "stack" | "struct_ops" => out.push_str(&format!(", {value}")),
                _ => {
                    let key = side(attrs.key_type, attrs.key_size);
                    out.push_str(&format!(", {key} -> {value}"));
                }
            }
        }
        if let Some(cpu) = self.narrowed_to() {
            out.push_str(&format!(", CPU {cpu}"));
        }
        out
    }
}

fn map_node(map: &Map, limit: usize, budget: &mut Budget) -> Node {
    budget.spend();
    let mut below = Vec::new();
    for reason in map.torn() {
        below.push(Node::Leaf { label: "torn".to_owned(), text: reason });
    }
    if let Some(why) = map.incomplete() {
        below.push(Node::Leaf { label: "incomplete".to_owned(), text: why.to_owned() });
    }
    below.extend(map.details().iter().map(|fact| detail_node(fact, budget)));
    let entries: Vec<Entry> = map.known_entries().take(limit).collect();
    if let (true, [only]) = (map.is_section(), entries.as_slice()) {
        let vars = only.value().map(|value| value.each_member(MEMBERS)).unwrap_or_default();
        below.extend(nodes(vars, budget, |(name, var), budget| {
            node(escaped_text(name), var, budget, 1)
        }));
    } else {
        below.extend(nodes(entries, budget, entry_node));
        if let Some(rest) = map.known_entries().len().checked_sub(limit).filter(|&n| n > 0) {
            below.push(more(rest));
        }
    }
    Node::Branch { label: map.headline(), below }
}

impl Snapshot {
    /// One line: tag, time and phase.
    #[must_use]
    pub fn headline(&self) -> String {
        let (s, ms) = (self.elapsed_ms() / 1000, self.elapsed_ms() % 1000);
        let mut out = format!("snapshot \"{}\" at {s}.{ms:03} s", escaped_text(self.tag()));
        if let Some(phase) = self.phase() {
            out.push_str(&format!(", phase \"{}\"", escaped_text(phase)));
        }
        out
    }

    /// Everything that was captured, of large maps the first entries, as an aligned tree.
    #[must_use]
    pub fn dump(self: &Arc<Self>) -> String {
        if let Some(reason) = self.placeholder_reason() {
            let (s, ms) = (self.elapsed_ms() / 1000, self.elapsed_ms() % 1000);
            let (tag, reason) = (escaped_text(self.tag()), escaped_text(reason));
            return format!(
                "snapshot \"{tag}\" at {s}.{ms:03} s is empty: its freeze did not complete: {reason}\n"
            );
        }
        let mut budget = Budget { nodes: NODES, elements: ELEMENTS.1 };
        let mut below = vec![self.pause_node()];
        if let Some(text) = self.trigger().told() {
            below.push(Node::Leaf { label: "because of".to_owned(), text: escaped_text(&text) });
        }
        for reason in self.torn() {
            below.push(Node::Leaf { label: "torn".to_owned(), text: reason.clone() });
        }
        let kernel = self.kernel_lines().into_iter();
        below.extend(kernel.map(|(label, text)| Node::Leaf { label, text }));
        below.extend(nodes(self.maps().unwrap_or_default(), &mut budget, |map, budget| {
            map_node(map, ENTRIES.1, budget)
        }));
        layout(&[Node::Branch { label: self.headline(), below }])
    }

    fn pause_node(&self) -> Node {
        let Pause { total_us, stop_us, copy_us, resume_us, hidden_us, skew_us } = self.pause();
        let mut text = format!(
            "for {} us (engine's stop {}, copy {}, engine's resume {})",
            grouped(total_us),
            grouped(stop_us),
            grouped(copy_us),
            grouped(resume_us)
        );
        let known = |n: Option<u64>, what: &str| {
            n.map_or(String::new(), |n| format!(", {} us {what}", grouped(n)))
        };
        text.push_str(&known(hidden_us, "hidden from the guest"));
        text.push_str(&known(skew_us, "between the first CPU's stop and the last one's"));
        text.push_str(&known(self.overshoot_us(), "after what was waited for was seen"));
        Node::Leaf { label: "stopped".to_owned(), text }
    }
}

/// `10,000`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Lines with their indentation, values of siblings below each other.
fn layout(nodes: &[Node]) -> String {
    let mut out = String::new();
    put(nodes, 0, &mut out);
    out
}

fn put(nodes: &[Node], indent: usize, out: &mut String) {
    let widths = nodes.iter().filter_map(|node| match node {
        Node::Leaf { label, .. } => Some(label.chars().count()),
        Node::Branch { .. } => None,
    });
    let column = widths.filter(|&w| w <= ALIGNED).max().unwrap_or_default();
    for node in nodes {
        match node {
            Node::Leaf { label, text } => {
                let head = format!("{:indent$}{label:column$}  ", "");
                wrap(&head, text, out);
            }
            Node::Branch { label, below } => {
                out.push_str(&format!("{:indent$}{label}\n", ""));
                put(below, indent + 2, out);
            }
        }
    }
}

/// A value after its label, broken after commas where it would leave the terminal.
fn wrap(head: &str, text: &str, out: &mut String) {
    let hang = head.chars().count().min(WIDTH / 2);
    out.push_str(head);
    let mut at = head.chars().count();
    for (i, piece) in text.split_inclusive(", ").enumerate() {
        let len = piece.trim_end().chars().count();
        if i > 0 && at + len > WIDTH {
            out.truncate(out.trim_end().len());
            out.push_str(&format!("\n{:hang$}", ""));
            at = hang;
        }
        out.push_str(piece);
        at += piece.chars().count();
    }
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}
