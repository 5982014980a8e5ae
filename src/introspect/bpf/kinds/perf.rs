//! PERF_EVENT_ARRAY: the events that slots point at (kernel/bpf/arraymap.c).

use super::made::PMU;
use super::{Found, Rows, text};
use crate::btf::Btf;
use crate::introspect::bpf::copy::Budget;
use crate::introspect::bpf::layout::{At, Finder};
use crate::introspect::bpf::{BpfState, MapInfo};
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// `TASK_TOMBSTONE`: the task of the event has exited (kernel/events/core.c).
const TOMBSTONE: u64 = u64::MAX;

/// `struct bpf_event_entry`, `struct perf_event` and what that leads to
/// (include/linux/perf_event.h).
pub(crate) struct EventLayout {
    event: At,
    id: At,
    config: At,
    period: At,
    kind: At,
    state: At,
    cpu: At,
    context: At,
    task: At,
    pid: At,
    pmu: At,
    pmu_name: At,
}

impl EventLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let f = Finder::new(btf, "struct perf_event")?;
        Ok(EventLayout {
            event: Finder::new(btf, "struct bpf_event_entry")?.number("event")?,
            id: f.number("id")?,
            config: f.number("attr.config")?,
            period: f.number("attr.sample_period")?,
            kind: f.number("attr.type")?,
            state: f.number("state")?,
            cpu: f.number("cpu")?,
            context: f.number("ctx")?,
            task: Finder::new(btf, "struct perf_event_context")?.number("task")?,
            pid: Finder::new(btf, "struct task_struct")?.number("pid")?,
            pmu: f.number("pmu")?,
            pmu_name: Finder::new(btf, "struct pmu")?.number("name")?,
        })
    }
}

/// Bytes of an event's row.
const EVENT: usize = 40 + PMU;

impl Kernel {
    /// The events, each as `perf_event_open` was asked for it, and whose they became: the kernel
    /// gives a clock another type than it was asked for.
    pub(super) fn perf_events(
        &self,
        state: &BpfState,
        map: &MapInfo,
        budget: &mut Budget,
    ) -> Found {
        let layout = state.layouts.kinds.event.as_ref().map_err(text)?;
        let array = state.layouts.array.as_ref().map_err(text)?;
        let mut rows = Rows::new(Some(4), EVENT);
        let first = map.kva.offset(array.values as u64);
        for (index, at) in
            self.table_of_pointers(first, map.max_entries.into(), budget, &mut rows)?
        {
            if let Err(e) = budget.take(EVENT as u64) {
                rows.incomplete(e);
                break;
            }
            match self.perf_event(layout, at) {
                Ok(event) => rows.push(&index.to_le_bytes(), &event),
                Err(why) => rows.incomplete(why),
            }
        }
        Ok(rows.into())
    }

    /// An event: id, configuration, period, type, state, CPU, task and PMU.
    fn perf_event(&self, layout: &EventLayout, entry: Kva) -> Result<Vec<u8>, String> {
        let member = |base: Kva, at: At| self.member(base, at).map_err(text);
        let event = Kva(member(entry, layout.event)?);
        let task = member(Kva(member(event, layout.context)?), layout.task)?;
        let pid = match task {
            // Of no task: whatever runs on the CPU.
            0 => u32::MAX,
            TOMBSTONE => 0,
            task => member(Kva(task), layout.pid)? as u32,
        };
        let mut out = Vec::with_capacity(EVENT);
        for at in [layout.id, layout.config, layout.period] {
            out.extend(member(event, at)?.to_le_bytes());
        }
        for at in [layout.kind, layout.state, layout.cpu] {
            out.extend((member(event, at)? as u32).to_le_bytes());
        }
        out.extend(pid.to_le_bytes());
        let name = Kva(member(Kva(member(event, layout.pmu)?), layout.pmu_name)?);
        let name = self.read_cstr(name, PMU - 1).map_err(text)?;
        out.extend(name.as_bytes());
        out.resize(EVENT, 0);
        Ok(out)
    }
}
