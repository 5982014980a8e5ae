//! A scheduler in the tree of them: where it stands, whether it is live, what belongs to it.

use std::sync::Arc;

use super::super::access::Field;
use super::super::error::SnapshotResult;
use super::super::map::Map;
use super::{OwnState, Prog, Sched, unreadable};
use crate::btf::Shape;

/// `SCX_EXIT_NONE` and `SCX_EXIT_DONE` of `enum scx_exit_kind`.
const NONE: i64 = 0;
const DONE: i64 = 1;

/// Why a scheduler left or leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The kernel's word for it, in lower case: `unreg`, `error_stall`.
    pub kind: String,
    /// The exit code, where it is one that the scheduler or the kernel gave.
    pub code: i64,
    /// The kernel's words; empty until it has got so far.
    pub reason: String,
    /// What the scheduler or the kernel said in particular; empty for nothing.
    pub message: String,
}

impl Sched {
    /// The path of its cgroup: `/` for the root.
    ///
    /// # Errors
    /// [`SnapshotError::NoActiveScheduler`](super::super::SnapshotError) when it is none.
    pub fn path(&self) -> SnapshotResult<&str> {
        let sched = self.copied()?;
        Ok(sched.cgroup.as_deref().unwrap_or(if self.is_root()? { "/" } else { "?" }))
    }

    /// The id of its cgroup, as in `/sys/kernel/sched_ext/root/sub/sub-ID`: 1 for the root.
    ///
    /// # Errors
    /// As [`Sched::path`] and [`Field::get`].
    pub fn id(&self) -> SnapshotResult<u64> {
        // There are no others where the member is missing (it is there since 7.1).
        if self.is_root()? { Ok(1) } else { self.get("ops.sub_cgroup_id")?.as_u64() }
    }

    /// Whether it is the one at the root.
    ///
    /// # Errors
    /// As [`Sched::path`].
    pub fn is_root(&self) -> SnapshotResult<bool> {
        self.copied()?;
        Ok(self.snapshot().scx_state()?.root() == Some(self.place()))
    }

    /// The scheduler above it.
    ///
    /// # Errors
    /// As [`Sched::path`].
    pub fn parent(&self) -> SnapshotResult<Option<Sched>> {
        let Some(parent) = self.copied()?.parent else { return Ok(None) };
        let place = self.snapshot().scx_state()?.scheds.iter().position(|s| s.at == parent);
        Ok(place.map(|place| Sched::new(self.snapshot().clone(), place)))
    }

    /// The schedulers right below it.
    ///
    /// # Errors
    /// As [`Sched::path`].
    pub fn children(&self) -> SnapshotResult<Vec<Sched>> {
        let at = self.copied()?.at;
        let all = self.snapshot().scx_state()?.scheds.iter().enumerate();
        let below = all.filter(|(_, sched)| sched.parent == Some(at));
        Ok(below.map(|(place, _)| Sched::new(self.snapshot().clone(), place)).collect())
    }

    /// Whether it schedules: not one that comes or goes.
    ///
    /// # Errors
    /// As [`Sched::get`]; [`SnapshotError::MapRenderIncomplete`](super::super::SnapshotError) when
    /// that was not recorded.
    pub fn is_live(&self) -> SnapshotResult<bool> {
        Ok(self.not_live()?.is_none())
    }

    /// Why it does not schedule, if so.
    pub(super) fn not_live(&self) -> SnapshotResult<Option<String>> {
        self.owns()?;
        let sched = self.copied()?;
        let name = format!("{:?}", self.ops()?.as_str()?);
        if let Some(exit) = self.exit()? {
            let why = [exit.reason, exit.message].join(": ");
            let why = why.trim_matches([':', ' ']);
            let why = if why.is_empty() { &exit.kind } else { why };
            return Ok(Some(format!("{name} was leaving ({why})")));
        }
        let state = self.state()?;
        let coming = match state {
            "enabled" if !sched.linked => "was coming or going, and not linked".to_owned(),
            // Set before tasks move to a sub-scheduler, and never for the root.
            "enabled" if !self.is_root()? && !self.is_sub_attached()? => {
                "was still being enabled, and had not scheduled anything yet".to_owned()
            }
            "enabled" => return Ok(None),
            "enabling" => "was still being enabled, and had not scheduled anything yet".to_owned(),
            other => format!("was not in charge (sched_ext was {other})"),
        };
        Ok(Some(format!("{name} {coming}")))
    }

    /// Whether its parent has accepted it; true where the kernel does not say.
    fn is_sub_attached(&self) -> SnapshotResult<bool> {
        self.get("sub_attached").map_or(Ok(true), |attached| attached.as_bool())
    }

    /// Why it leaves; `None` for one that does not.
    ///
    /// # Errors
    /// As [`Sched::get`].
    pub fn exit(&self) -> SnapshotResult<Option<Exit>> {
        let mut number = self.get("exit_kind.counter")?.as_i64()?;
        if number == NONE {
            return Ok(None);
        }
        let info = |member: &str| {
            self.get("exit_info").and_then(|i| i.get(member)).and_then(|f| f.as_i64())
        };
        if number == DONE {
            // What it was is kept there only.
            number = info("kind").unwrap_or(number);
        }
        let (reason, message) = self.copied()?.exit.clone().unwrap_or_default();
        let code = info("exit_code").unwrap_or_default();
        Ok(Some(Exit { kind: self.kind_name(number)?, code, reason, message }))
    }

    /// The word for a number of `enum scx_exit_kind`.
    fn kind_name(&self, number: i64) -> SnapshotResult<String> {
        let btf = self.snapshot().kernel_state()?.types()?;
        let shape = btf.find_c("enum scx_exit_kind").and_then(|id| btf.shape(id).ok());
        let name = match shape.as_deref() {
            Some(Shape::Enum(kinds)) => kinds
                .name_of(number.into())
                .map(|name| name.strip_prefix("SCX_EXIT_").unwrap_or(name).to_ascii_lowercase()),
            _ => None,
        };
        Ok(name.unwrap_or_else(|| format!("kind {number}")))
    }

    /// What was found out to belong to it.
    pub(super) fn owns(&self) -> SnapshotResult<&OwnState> {
        self.copied()?.owns.as_ref().ok_or_else(|| {
            let why = "the file was saved by an older cryoscope, which did not record it";
            unreadable("what belongs to the scheduler", why)
        })
    }

    fn complete(&self) -> SnapshotResult<&OwnState> {
        let owns = self.owns()?;
        match &owns.incomplete {
            None => Ok(owns),
            Some(why) => Err(unreadable("what belongs to the scheduler", why)),
        }
    }

    /// Its maps that were captured: those that its programs use, and all others of the same loaded
    /// object. Its STRUCT_OPS map is the last of them.
    ///
    /// # Errors
    /// [`SnapshotError::MapRenderIncomplete`](super::super::SnapshotError) when not all of them
    /// are known.
    pub fn maps(&self) -> SnapshotResult<Vec<Map>> {
        let owns = self.complete()?;
        let all = self.snapshot().maps()?;
        let ops = all.iter().filter(|map| owns.ops_map == Some(map.attrs().id));
        Ok(all.iter().filter(|map| owns.has(map)).chain(ops).cloned().collect())
    }

    /// Its programs: those that it is made of, and all others of the same loaded object, such as
    /// timers' and those that user space runs.
    ///
    /// # Errors
    /// As [`Sched::maps`].
    pub fn progs(&self) -> SnapshotResult<Vec<Prog>> {
        let owns = self.complete()?;
        let all = self.snapshot().progs()?;
        Ok(all.into_iter().filter(|prog| owns.progs.contains(&prog.state().id)).collect())
    }

    /// Its global variable of that name. A path below it may follow.
    ///
    /// # Errors
    /// As [`Snapshot::live_global`](super::super::Snapshot::live_global), whether it is live or
    /// not.
    pub fn global(&self, name: &str) -> SnapshotResult<Field> {
        let snapshot: &Arc<_> = self.snapshot();
        snapshot.global_of(std::slice::from_ref(self), name)
    }
}
