//! The kernel's state in a few lines, for those who look at all of a snapshot.

use std::sync::Arc;

use super::super::error_text::escaped_text;
use super::{Domain, Held, Pressure};
use crate::snapshot::Snapshot;

impl Snapshot {
    /// The kernel's state in a few lines: label and text.
    pub(in crate::snapshot) fn kernel_lines(self: &Arc<Self>) -> Vec<(String, String)> {
        /// CPUs and queues that are shown.
        const SHOWN: usize = 16;
        let Ok(Some(Held { state, .. })) = self.copied_kernel() else { return Vec::new() };
        if let Some(why) = &state.left_out {
            return vec![("kernel".to_owned(), format!("<{why}>"))];
        }
        let split = |line: String| match line.split_once(": ") {
            Some((label, text)) => (label.to_owned(), text.to_owned()),
            None => (line, String::new()),
        };
        let mut out = vec![("tasks".to_owned(), state.tasks.len().to_string())];
        out.extend(state.tasks_incomplete.iter().map(|why| ("tasks".to_owned(), why.clone())));
        out.extend(self.sched().ok().map(|sched| ("sched".to_owned(), sched.headline())));
        // The tree of schedulers, each below its parent.
        for sched in self.scheds().unwrap_or_default().iter().take(SHOWN) {
            let path = escaped_text(sched.path().unwrap_or("?"));
            out.push((format!("scheduler {path}"), sched.summary()));
        }
        let cpus = self.cpus().unwrap_or_default();
        out.extend(cpus.iter().take(SHOWN).map(|cpu| split(cpu.headline())));
        let dsqs = self.dsqs().unwrap_or_default();
        let used = dsqs.iter().filter(|dsq| !dsq.is_empty()).take(SHOWN);
        out.extend(used.map(|dsq| (format!("dsq {}", dsq.name()), dsq.contents())));
        out.extend(self.levels());
        out
    }

    /// What there is of the kernel, counted: label and text.
    pub(crate) fn kernel_counts(self: &Arc<Self>) -> Vec<(String, String)> {
        let Ok(state) = self.kernel_state() else { return Vec::new() };
        let count = |n: usize, one: &str, many: &str| match n {
            1 => format!("1 {one}"),
            n => format!("{n} {many}"),
        };
        let counts = [
            count(state.tasks.len(), "task", "tasks"),
            count(state.cpus.len(), "CPU", "CPUs"),
            count(state.dsqs.len(), "dispatch queue", "dispatch queues"),
            count(state.progs.len(), "program", "programs"),
            count(state.modules.len(), "module", "modules"),
        ];
        let counts = match &state.left_out {
            None => counts.join(", "),
            Some(why) => format!("<{why}>"),
        };
        let mut out = vec![("kernel".to_owned(), counts)];
        out.extend(self.levels());
        let mut kept: Vec<String> = Vec::new();
        if !state.variables.is_empty() {
            let names: Vec<&str> = state.variables.keys().map(String::as_str).collect();
            kept.push(escaped_text(&names.join(", ")));
        }
        if !state.registers.is_empty() {
            let cpus = count(state.registers.len(), "CPU", "CPUs");
            kept.push(format!("the registers of {cpus}"));
        }
        if let Some(ram) = &state.ram {
            kept.push(format!("all of memory ({} MiB)", ram.kept() >> 20));
        }
        if !kept.is_empty() {
            out.push(("kept".to_owned(), kept.join(", ")));
        }
        out
    }

    /// The first CPU's domains, and the system's pressure, a line each.
    fn levels(self: &Arc<Self>) -> Vec<(String, String)> {
        let mut out = Vec::new();
        let first = self.cpus().ok().and_then(|cpus| cpus.into_iter().next());
        let domains = first.and_then(|cpu| Some((cpu.number(), cpu.domains().ok()?)));
        if let Some((cpu, domains)) = domains.filter(|(_, domains)| !domains.is_empty()) {
            let lines: Vec<String> = domains.iter().map(Domain::headline).collect();
            out.push((format!("domains of CPU {cpu}"), escaped_text(&lines.join("; "))));
        }
        let (Ok(system), Ok(cgroups)) = (self.psi(None), self.psi_cgroups()) else { return out };
        let share = |one: &Pressure| {
            let stall = one.some.or(one.full).unwrap_or_default();
            format!("{} {:.2} %", one.resource, stall.avg10)
        };
        let shares: Vec<String> = system.iter().map(share).collect();
        let of = format!("{} of 10 s; also of {} cgroups", shares.join(", "), cgroups.len());
        out.push(("pressure".to_owned(), of));
        out
    }
}
