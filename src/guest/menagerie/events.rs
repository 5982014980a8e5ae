//! Perf events in maps.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libbpf_rs::libbpf_sys as b;

use super::{Entries, Hex, Maker, Spec, fact, update};
use crate::maps::owned;

/// `PERF_EVENT_IOC_ID`: an event's id.
const IOC_ID: u64 = 0x8008_2407;
/// `PERF_TYPE_SOFTWARE`: events that the kernel counts itself.
const SOFTWARE: u32 = 1;

/// An event to open.
struct Event {
    /// Whose the kernel makes it.
    pmu: &'static str,
    /// `enum perf_sw_ids`.
    config: u64,
    period: u64,
    pid: i32,
    cpu: i32,
    /// What the kernel calls it when it counts, and when it does not.
    state: &'static str,
}

impl Maker<'_> {
    pub(super) fn events(&mut self) {
        let this = std::process::id() as i32;
        let events = [
            // CPU clocks.
            Event {
                pmu: "cpu_clock",
                config: 0,
                period: 10_000_000,
                pid: -1,
                cpu: 0,
                state: "OFF",
            },
            Event { pmu: "cpu_clock", config: 0, period: 7, pid: -1, cpu: 1, state: "OFF" },
            // One that counts nothing.
            Event { pmu: "software", config: 9, period: 0, pid: this, cpu: -1, state: "OFF" },
            // What programs send.
            Event { pmu: "software", config: 10, period: 1, pid: -1, cpu: 1, state: "ACTIVE" },
        ];
        let kind = b::BPF_MAP_TYPE_PERF_EVENT_ARRAY;
        let spec = Spec { name: "events", kind, key: 4, value: 4, entries: 7, flags: 0 };
        self.map(spec, |map, held| {
            let mut entries = Entries::new();
            for (i, event) in events.iter().enumerate() {
                let (fd, id) = open(event)?;
                let key = (2 * i as u32).to_le_bytes();
                update(map, &key, &fd.as_raw_fd().to_le_bytes())?;
                let mut facts = vec![
                    fact("id", id),
                    fact("pmu", event.pmu),
                    fact("config", event.config),
                    fact("sample_period", event.period),
                    fact("pid", event.pid),
                    fact("cpu", event.cpu),
                    fact("state", format!("PERF_EVENT_STATE_{}", event.state)),
                ];
                // What it makes of a clock's type is nowhere to be asked.
                if event.pmu == "software" {
                    facts.push(fact("type", "PERF_TYPE_SOFTWARE"));
                }
                entries.push((Hex(key.into()), facts));
                held.keep_open(fd);
            }
            Ok(entries)
        });
    }
}

/// An event and its id.
fn open(event: &Event) -> io::Result<(OwnedFd, u64)> {
    let mut attr = b::perf_event_attr {
        type_: SOFTWARE,
        size: size_of::<b::perf_event_attr>() as u32,
        config: event.config,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = event.period;
    attr.set_disabled(u64::from(event.state == "OFF"));
    let mut id = 0u64;
    // SAFETY: `attr` is as large as it says and outlives the call; the descriptor is new and owned
    // by nobody else. The second call writes eight bytes to `id`, which outlives it.
    #[allow(unsafe_code)]
    unsafe {
        let open = libc::SYS_perf_event_open;
        let fd = libc::syscall(open, &raw const attr, event.pid, event.cpu, -1, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = owned(fd as i32)?;
        if libc::ioctl(fd.as_raw_fd(), IOC_ID as _, &raw mut id) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((fd, id))
    }
}
