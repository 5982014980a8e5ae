//! What a machine asks of the host beyond RAM and time: huge pages, and CPUs of its own.

use std::fs;

use super::topology::CpuSet;
use super::{VmError, VmSpec};

/// Pages of 2 MiB, as Linux counts them (`Documentation/admin-guide/mm/hugetlbpage.rst`).
const HUGE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Refuses RAM in huge pages that the host does not have.
///
/// # Errors
/// [`VmError::HugePages`].
pub(super) fn check_huge_pages(spec: &VmSpec) -> Result<(), VmError> {
    if !spec.huge_pages {
        return Ok(());
    }
    let count = |file: &str| {
        let text = fs::read_to_string(format!("{HUGE}/{file}")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    // Promised to others, though not in use yet.
    enough(spec.memory, count("free_hugepages").saturating_sub(count("resv_hugepages")))
}

fn enough(bytes: u64, free: u64) -> Result<(), VmError> {
    let needed = bytes.div_ceil(2 << 20);
    if needed <= free { Ok(()) } else { Err(VmError::HugePages { needed, free }) }
}

/// The host's CPU for each of the machine's, when they are to be pinned.
///
/// # Errors
/// [`VmError::Pin`].
pub(super) fn pins(spec: &VmSpec) -> Result<Option<Vec<u32>>, VmError> {
    let Some(asked) = &spec.pin else { return Ok(None) };
    let mine = rustix::thread::sched_getaffinity(None)
        .map_err(|e| VmError::Host { what: "ask for our CPUs".into(), reason: e.to_string() })?;
    let most = super::topology::MAX_CPUS.min(rustix::thread::CpuSet::MAX_CPU as u32);
    let mine: CpuSet = (0..most).filter(|cpu| mine.is_set(*cpu as usize)).collect();
    assign(spec.topology.cpus(), asked, &mine).map(Some)
}

fn assign(cpus: u32, asked: &CpuSet, mine: &CpuSet) -> Result<Vec<u32>, VmError> {
    let wrong = |reason| Err(VmError::Pin { asked: asked.to_string(), reason });
    if let Some(other) = asked.iter().find(|cpu| !mine.contains(*cpu)) {
        return wrong(format!(
            "this process may not run on CPU {other} of the host, but on {mine}"
        ));
    }
    if asked.len() < cpus as usize {
        let found = asked.len();
        return wrong(format!(
            "the machine has {cpus} CPUs, and that is {found} of the host; name one for each"
        ));
    }
    Ok(asked.iter().take(cpus as usize).collect())
}

/// Binds the calling thread to a CPU of the host.
///
/// # Errors
/// The host's.
pub(super) fn pin_to(cpu: u32) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu as usize);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_before_they_are_asked_for() {
        assert!(enough(512 << 20, 256).is_ok());
        assert_eq!(
            enough((512 << 20) + 1, 256).unwrap_err().to_string(),
            "the machine's RAM needs 257 huge pages of 2 MiB, and this host has 256 free; reserve \
             more (as root: sysctl vm.nr_hugepages=N), or leave huge pages out"
        );
    }

    #[test]
    fn each_cpu_gets_one_of_the_hosts() {
        let set = |text: &str| text.parse::<CpuSet>().unwrap();
        assert_eq!(assign(2, &set("1,3,5"), &set("0-7")).unwrap(), [1, 3]);
        let cases = [
            (
                "0-1",
                "pin \"0-1\": the machine has 4 CPUs, and that is 2 of the host; name one for each",
            ),
            ("0-9", "pin \"0-9\": this process may not run on CPU 8 of the host, but on 0-7"),
        ];
        for (asked, text) in cases {
            let error = assign(4, &set(asked), &set("0-7")).unwrap_err();
            assert_eq!(error.to_string(), text);
        }
    }
}
