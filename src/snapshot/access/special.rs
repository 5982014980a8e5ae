//! Members that the kernel treats as more than bytes: what they mean, and the objects of lists and
//! trees.
//!
//! A timer, a queued work, a lock and a count are bytes to a program's types (`__opaque`). They are
//! shown as structs of our own instead, made when somebody looks. The objects of a list or a tree
//! are what its nodes are parts of; the walk trusts nothing: every node is visited once, and what
//! contradicts itself is told.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use super::{Field, Type};
use crate::btf::builder::Builder;
use crate::btf::{self, Btf, Contains, FieldError, Shape, Special, TypeId};
use crate::snapshot::error::{SnapshotError, SnapshotResult};
use crate::snapshot::kernel::{Place, unreadable};

/// Objects of one list that are handed out at once.
pub(crate) const OBJECTS: usize = 1 << 16;
/// Levels of a tree.
const MAX_LEVELS: usize = 96;
/// Reasons of one walk that are told.
const MAX_TORN: usize = 4;
/// Bytes of a callback's name, of a program's, of a clock's.
const NAMES: [u32; 3] = [256, 64, 16];

/// `WORK_STRUCT_PENDING` (include/linux/workqueue.h).
const PENDING: u64 = 1;

/// The structs that are shown, with the members' places known to those who fill them.
struct Shown {
    btf: Arc<Btf>,
    timer: TypeId,
    work: TypeId,
    lock: TypeId,
    count: TypeId,
    node: TypeId,
}

static SHOWN: LazyLock<Shown> = LazyLock::new(|| {
    let mut b = Builder::new();
    let (bool_, u32_, u64_) = (b.boolean("bool"), b.int("u32", 4, false), b.int("u64", 8, false));
    let char_ = b.int("char", 1, true);
    let [function, program, clock] = NAMES.map(|len| b.array(char_, len));
    let [function_len, program_len, clock_len] = NAMES;
    let set = [("initialized", bool_, 0), ("armed", bool_, 8)];
    let timer = [
        set[0],
        set[1],
        ("expires_ns", u64_, 64),
        ("clock", clock, 128),
        ("callback", function, 128 + 8 * clock_len),
        ("prog", program, 128 + 8 * (clock_len + function_len)),
    ];
    let work = [
        set[0],
        ("queued", bool_, 8),
        ("callback", function, 64),
        ("prog", program, 64 + 8 * function_len),
    ];
    let names = function_len + program_len;
    let timer = b.structure("bpf_timer", 16 + clock_len + names, &timer);
    let work = b.structure("bpf_wq", 8 + names, &work);
    let lock = b.structure("bpf_spin_lock", 4, &[("held", bool_, 0)]);
    let count = b.structure("bpf_refcount", 4, &[("count", u32_, 0)]);
    let node = b.structure("bpf_node", 1, &[("linked", bool_, 0)]);
    Shown { btf: b.parse(), timer, work, lock, count, node }
});

/// A list's or a tree's objects, as far as they can be followed.
pub(crate) struct Objects {
    /// In their order.
    pub(crate) found: Vec<Field>,
    /// Whether there are more than were asked for.
    pub(crate) more: bool,
    /// Why the walk ended early.
    pub(crate) broken: Option<String>,
    /// What contradicts itself: the list was just being changed.
    pub(crate) torn: Vec<String>,
}

impl Field {
    /// What the kernel treats this as, when it is not just bytes.
    pub(crate) fn special(&self) -> Option<Special> {
        let Type::Btf { btf, at, root, made: None } = &self.ty else { return None };
        match &*btf.shape(at.ty).ok()? {
            Shape::Struct(s) => {
                let special = Special::of_struct(&s.name)?;
                match special {
                    Special::List(_) | Special::Tree(_) => btf.special_at(*root, at.offset),
                    other => Some(other),
                }
            }
            Shape::Ptr { .. } => btf.special_at(*root, at.offset),
            _ => None,
        }
    }

    /// What lists and trees here are said to hold.
    fn contains(&self) -> Option<(Contains, bool)> {
        match self.special()? {
            Special::List(contains) => Some((contains?, false)),
            Special::Tree(contains) => Some((contains?, true)),
            _ => None,
        }
    }

    /// Whether there is anything special in it.
    pub(crate) fn has_specials(&self) -> bool {
        match &self.ty {
            Type::Btf { btf, at, made: None, .. } => !btf.specials(at.ty).is_empty(),
            _ => false,
        }
    }

    /// Whether this is a list or a tree whose objects can be followed.
    pub(crate) fn is_list(&self) -> bool {
        self.contains().is_some()
    }

    /// A timer, a work, a lock or a count as it is shown; `None` for anything else.
    pub(crate) fn shown(&self) -> Option<SnapshotResult<Field>> {
        let special = self.special()?;
        let word = || -> SnapshotResult<u64> {
            let bytes = self.bytes()?;
            let mut word = [0; 8];
            let len = bytes.len().min(8);
            word[..len].copy_from_slice(&bytes[..len]);
            Ok(u64::from_le_bytes(word))
        };
        let shown = &*SHOWN;
        Some(match special {
            Special::Timer => word().and_then(|cb| self.timer(cb)),
            Special::Work => word().and_then(|cb| self.work(cb)),
            Special::Lock => word().map(|word| {
                let held = word as u32 != 0;
                self.made_of(shown.lock, vec![held.into(), 0, 0, 0])
            }),
            Special::Refcount => {
                let count = |word| (word as u32).to_le_bytes().to_vec();
                word().map(|word| self.made_of(shown.count, count(word)))
            }
            // Behind what links it, a node says whose it is; nobody's, when it is in nothing.
            Special::Node => self.bytes().map(|bytes| {
                let owner = bytes.last_chunk::<8>().is_some_and(|word| *word != [0; 8]);
                self.made_of(shown.node, vec![owner.into()])
            }),
            Special::List(_) | Special::Tree(_) | Special::Kptr { .. } => return None,
        })
    }

    /// The same place as one of our own structs.
    fn made_of(&self, ty: TypeId, bytes: Vec<u8>) -> Field {
        let btf = SHOWN.btf.clone();
        let at = btf::Field { offset: 0, bits: None, ty, size: bytes.len() as u64 };
        Field { ty: Type::Btf { btf, at, root: ty, made: Some(bytes.into()) }, ..self.clone() }
    }

    /// The kernel's struct at an address in this.
    fn behind(&self, at: u64, ty: &str) -> SnapshotResult<Field> {
        Place::of_type(self.snapshot(), self.here(), at, ty)
    }

    /// `struct bpf_hrtimer` (kernel/bpf/helpers.c): a timer's only word leads to it.
    fn timer(&self, cb: u64) -> SnapshotResult<Field> {
        let mut bytes = Vec::new();
        let mut callback = (String::new(), String::new());
        let (mut armed, mut expires, mut clock) = (false, 0, "");
        if cb != 0 {
            let timer = self.behind(cb, "struct bpf_hrtimer")?;
            // `state` became `is_queued` in 7.1 ("hrtimer: Convert state and properties to boolean").
            armed = match timer.get("timer.is_queued") {
                Ok(queued) => queued.as_bool()?,
                Err(e) if !matches!(e, SnapshotError::FieldNotFound { .. }) => return Err(e),
                Err(_) => timer.get("timer.state")?.as_u64()? & 1 == 1,
            };
            if armed {
                expires = timer.get("timer.node.expires")?.as_i64()?;
            }
            let base = timer.get("timer.base").and_then(|base| base.get("clockid"));
            clock = base.and_then(|id| id.as_i64()).map_or("", clock_name);
            callback = self.callback(&timer)?;
        }
        bytes.extend([u8::from(cb != 0), u8::from(armed), 0, 0, 0, 0, 0, 0]);
        bytes.extend(expires.to_le_bytes());
        let [function, program, name] = NAMES;
        put(&mut bytes, clock, name);
        put(&mut bytes, &callback.0, function);
        put(&mut bytes, &callback.1, program);
        Ok(self.made_of(SHOWN.timer, bytes))
    }

    /// `struct bpf_work` (kernel/bpf/helpers.c).
    fn work(&self, cb: u64) -> SnapshotResult<Field> {
        let mut callback = (String::new(), String::new());
        let mut queued = false;
        if cb != 0 {
            let work = self.behind(cb, "struct bpf_work")?;
            queued = work.get("work.data.counter")?.scalar()?.number().unwrap_or(0) as u64
                & PENDING
                != 0;
            callback = self.callback(&work)?;
        }
        let mut bytes = vec![u8::from(cb != 0), u8::from(queued), 0, 0, 0, 0, 0, 0];
        let [function, program, _] = NAMES;
        put(&mut bytes, &callback.0, function);
        put(&mut bytes, &callback.1, program);
        Ok(self.made_of(SHOWN.work, bytes))
    }

    /// What a `struct bpf_async_cb` calls, and the program that set it up.
    fn callback(&self, whole: &Field) -> SnapshotResult<(String, String)> {
        let snapshot = self.snapshot();
        let function = match whole.get("cb.callback_fn")?.as_u64()? {
            0 => String::new(),
            at => match snapshot.made_at(at)? {
                Some(made) if made.start == at => made.function().to_owned(),
                _ => format!("{at:#x}"),
            },
        };
        let id = whole.get("cb.prog.aux.id").and_then(|id| id.as_u64());
        let program = id.map_or_else(
            |_| String::new(),
            |id| {
                let named = snapshot.progs().ok().and_then(|progs| {
                    let found = progs.into_iter().find(|prog| u64::from(prog.state().id) == id)?;
                    Some(found.state().name.clone())
                });
                named.unwrap_or_else(|| format!("#{id}"))
            },
        );
        Ok((function, program))
    }

    /// The first `most` objects of a list or a tree.
    pub(crate) fn objects(&self, most: usize) -> Option<Objects> {
        let (contains, tree) = self.contains()?;
        let out = Objects { found: Vec::new(), more: false, broken: None, torn: Vec::new() };
        let mut walk = Walk { from: self, contains, most, out };
        let walked = if tree { walk.tree() } else { walk.list() };
        walk.out.broken = walked.err();
        Some(walk.out)
    }

    /// All objects of a list or a tree.
    pub(super) fn all_objects(&self) -> Option<SnapshotResult<Vec<Field>>> {
        let objects = self.objects(OBJECTS)?;
        let why = objects
            .broken
            .or_else(|| objects.more.then(|| format!("it has more than {OBJECTS} objects")));
        Some(match why {
            Some(why) => Err(unreadable(format!("{} {}", self.of(), self.path()), why)),
            None => Ok(objects.found),
        })
    }

    /// Why a list, a tree or a struct with a lock may be half-changed; usually nothing.
    #[must_use]
    pub fn torn(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(objects) = self.objects(OBJECTS) {
            out.extend(objects.torn);
            out.extend(objects.broken);
            return out;
        }
        let Type::Btf { btf, at, made: None, .. } = &self.ty else { return out };
        let Ok(bytes) = self.bytes() else { return out };
        let specials = btf.specials(at.ty);
        for lock in specials.iter().filter(|found| found.special == Special::Lock) {
            let start = usize::try_from(lock.offset).unwrap_or(usize::MAX);
            let word = bytes.get(start..).and_then(|rest| rest.get(..4));
            if word.is_some_and(|word| word != [0; 4]) && out.len() < MAX_TORN {
                out.push(format!("the lock at byte {start} of it is held"));
            }
        }
        out
    }

    /// Goes on where a walk through types ended at something special: `timer.armed`, `head[0].x`.
    pub(super) fn get_special(
        &self,
        path: &str,
        error: &FieldError,
    ) -> Option<SnapshotResult<Field>> {
        let (FieldError::NoSuchMember { walked, .. }
        | FieldError::NotAStruct { walked, .. }
        | FieldError::NotAnArray { walked, .. }) = error
        else {
            return None;
        };
        let here = match walked.as_str() {
            "" => self.clone(),
            walked => self.get(walked).ok()?,
        };
        let rest = path.get(walked.len()..)?;
        if let Some(shown) = here.shown() {
            let rest = rest.strip_prefix('.').unwrap_or(rest).to_owned();
            return Some(shown.and_then(|shown| shown.get(&rest)));
        }
        let (index, rest) = rest.strip_prefix('[')?.split_once(']')?;
        let index: usize = index.parse().ok()?;
        let objects = here.objects(index.saturating_add(1).min(OBJECTS))?;
        let len = objects.found.len();
        let Some(object) = objects.found.into_iter().nth(index) else {
            let map = format!("{}: {}", self.of(), here.path());
            return Some(Err(match objects.broken {
                Some(why) => unreadable(map, format!("from [{len}] on: {why}")),
                None if objects.more => {
                    let why =
                        format!("[{index}] is behind the {len} objects that can be handed out");
                    unreadable(map, why)
                }
                None => {
                    let index = i64::try_from(index).unwrap_or(i64::MAX);
                    SnapshotError::IndexOutOfRange { map, index, len }
                }
            }));
        };
        Some(match rest.strip_prefix('.').unwrap_or(rest) {
            "" => Ok(object),
            rest => object.get(rest),
        })
    }
}

fn put(bytes: &mut Vec<u8>, text: &str, room: u32) {
    let end = bytes.len() + room as usize;
    // One byte stays zero.
    bytes.extend(text.bytes().take(room as usize - 1));
    bytes.resize(end, 0);
}

/// `CLOCK_*` (include/uapi/linux/time.h).
fn clock_name(id: i64) -> &'static str {
    match id {
        0 => "realtime",
        1 => "monotonic",
        7 => "boottime",
        11 => "tai",
        _ => "",
    }
}

/// A walk over nodes.
struct Walk<'a> {
    from: &'a Field,
    contains: Contains,
    most: usize,
    out: Objects,
}

impl Walk<'_> {
    /// The words with which the head begins.
    fn head(&self) -> Result<[u64; 2], String> {
        let bytes = self.from.bytes().map_err(|e| e.to_string())?;
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 8).ok_or("its head is cut off")?;
            Ok::<u64, String>(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
        };
        Ok([word(0)?, word(8)?])
    }

    /// A word of a node, by the kernel's type of nodes.
    fn node(&self, at: u64, ty: &str, member: &str) -> Result<u64, String> {
        let node = self.from.behind(at, ty).and_then(|node| node.get(member)?.as_u64());
        node.map_err(|e| match e {
            SnapshotError::MapRenderIncomplete { error, .. } => error,
            other => other.to_string(),
        })
    }

    fn torn(&mut self, why: String) {
        if self.out.torn.len() < MAX_TORN {
            self.out.torn.push(why);
        }
    }

    /// Takes the object that a node is a part of; whether more are wanted.
    fn take(&mut self, node: u64) -> bool {
        if self.out.found.len() == self.most {
            self.out.more = true;
            return false;
        }
        let Type::Btf { btf, .. } = &self.from.ty else { return false };
        let path = format!("{}[{}]", self.from.path, self.out.found.len());
        let at = node.wrapping_sub(self.contains.node);
        match self.from.start().follow(at, &path) {
            Ok(place) => {
                let field = Field::of_kernel(place, Some((btf.clone(), self.contains.ty)));
                self.out.found.push(Field { path: path.into(), ..field });
                true
            }
            Err(e) => {
                self.out.broken = Some(e.to_string());
                false
            }
        }
    }

    /// `struct bpf_list_head` holds a `struct list_head`. Where it lies itself its first node tells.
    fn list(&mut self) -> Result<(), String> {
        const NODE: &str = "struct bpf_list_node_kern";
        let [first, last] = self.head()?;
        // Nobody has put anything into it yet; empty, it points to itself.
        if first == 0 || self.node(first, NODE, "list_head.next")? == first {
            return Ok(());
        }
        let head = self.node(first, NODE, "list_head.prev")?;
        let (mut at, mut before) = (first, head);
        let mut visited = HashSet::new();
        while at != head {
            let n = self.out.found.len();
            if !visited.insert(at) {
                return Err(format!("its list comes back to [{n}] without an end"));
            }
            let prev = self.node(at, NODE, "list_head.prev")?;
            if prev != before {
                self.torn(format!("[{n}] does not lead back to the one before it"));
            }
            if self.node(at, NODE, "owner").is_ok_and(|owner| owner != head) {
                self.torn(format!("[{n}] does not belong to the list: it is being moved"));
            }
            let next = self.node(at, NODE, "list_head.next")?;
            if !self.take(at) {
                return self.out.broken.take().map_or(Ok(()), Err);
            }
            (before, at) = (at, next);
        }
        if before != last {
            self.torn("its head has another last node".to_owned());
        }
        Ok(())
    }

    /// `struct bpf_rb_root` holds a `struct rb_root_cached`: the root and the leftmost node.
    fn tree(&mut self) -> Result<(), String> {
        const NODE: &str = "struct bpf_rb_node_kern";
        let [root, leftmost] = self.head()?;
        let mut visited = HashSet::new();
        let mut above: Vec<u64> = Vec::new();
        let (mut at, mut parent, mut first) = (root, 0, true);
        loop {
            while at != 0 {
                if above.len() > MAX_LEVELS || !visited.insert(at) {
                    return Err("its tree has no end".to_owned());
                }
                // The lowest two bits are the node's colour.
                let up = self.node(at, NODE, "rb_node.__rb_parent_color")? & !3;
                if up != parent {
                    self.torn("a node does not lead back to the one above it".to_owned());
                }
                above.push(at);
                parent = at;
                at = self.node(at, NODE, "rb_node.rb_left")?;
            }
            let Some(node) = above.pop() else { return Ok(()) };
            if first && node != leftmost {
                self.torn("its root has another first node".to_owned());
            }
            first = false;
            let right = self.node(node, NODE, "rb_node.rb_right")?;
            if !self.take(node) {
                return self.out.broken.take().map_or(Ok(()), Err);
            }
            (at, parent) = (right, node);
        }
    }
}
