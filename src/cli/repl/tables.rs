//! What the newest snapshot says of the kernel, as tables.

use std::sync::Arc;

use crate::scenario::text::clean;
use crate::snapshot::{Dsq, Snapshot, SnapshotError, SnapshotResult, Task};

use super::session::table;

/// All tasks: what ps(1) would show, and where each is queued.
pub(super) fn tasks(snapshot: &Arc<Snapshot>) -> Result<String, String> {
    let tasks = snapshot.tasks().map_err(|e| e.to_string())?;
    let head = ["TID", "COMMAND", "STATE", "CPU", "CLASS", "NICE", "QUEUE", "CGROUP"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(tasks.iter().map(task));
    Ok(format!("{}\n{}", clean(snapshot.tag()), table(&rows, usize::MAX)))
}

fn task(task: &Task) -> [String; 8] {
    let queue = task.dsq().map(|dsq| dsq.map_or_else(String::new, |dsq| dsq.name().to_owned()));
    let cpu = task.cpu().and_then(|cpu| cpu.as_i64());
    let cgroup = task.cgroup().map(|path| path.unwrap_or_default().to_owned());
    [
        or_unknown(task.tid().map(|tid| tid.to_string())),
        or_unknown(task.comm()),
        or_unknown(task.state().map(str::to_owned)),
        or_unknown(cpu.map(|cpu| cpu.to_string())),
        or_unknown(task.class()),
        or_unknown(task.nice().map(|nice| nice.to_string())),
        or_unknown(queue),
        or_unknown(cgroup),
    ]
}

/// What could not be captured of one task is no reason to show nothing of the others.
fn or_unknown(text: Result<String, SnapshotError>) -> String {
    text.unwrap_or_else(|_| "?".to_owned())
}

/// Every dispatch queue that has tasks, with them in order; the others by name.
pub(super) fn queues(snapshot: &Arc<Snapshot>) -> Result<String, String> {
    let dsqs = snapshot.dsqs().map_err(|e| e.to_string())?;
    let (empty, used): (Vec<Dsq>, Vec<Dsq>) = dsqs.into_iter().partition(Dsq::is_empty);
    let mut out = format!("{}\n", clean(snapshot.tag()));
    for dsq in &used {
        out.push_str(&format!("{}\n", clean(&dsq.headline())));
        out.extend(queued(dsq).map_err(|e| e.to_string())?);
    }
    if !empty.is_empty() {
        let names: Vec<&str> = empty.iter().map(Dsq::name).collect();
        out.push_str(&format!("empty: {}\n", clean(&names.join(", "))));
    }
    Ok(out)
}

fn queued(dsq: &Dsq) -> SnapshotResult<Vec<String>> {
    let tasks = dsq.tasks()?;
    Ok(tasks.iter().map(|task| format!("  {}\n", clean(&task.headline()))).collect())
}
