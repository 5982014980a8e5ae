//! Host↔guest frames: what is said over the channel, and how it is put into bytes.
//!
//! A frame is a 16-byte header and a JSON payload, all integers little-endian:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | the magic `CRYO` |
//! | 4..8 | payload length, at most [`MAX_PAYLOAD`] |
//! | 8..12 | CRC-32 (IEEE) of bytes 4..8, 12..16 and the payload |
//! | 12..16 | sequence number, from 0, one up per frame and direction |
//!
//! A damaged frame is reported and the decoder stays damaged: there is no resynchronizing, since
//! whatever follows could only be guessed at. Everything here is pure; transports live elsewhere.

use serde::{Deserialize, Serialize};

pub use frame::{Decoder, Encoder, WireError};
#[cfg(test)]
pub(crate) use report::testing;
pub use report::{
    BUCKETS, Bucket, MAX_REPORTS, MAX_STEP_CPUS, WorkerReport, bucket_end, bucket_of, percentile,
};

mod frame;
mod report;

/// The protocol's version, carried in [`Hello`]; host and agent must agree exactly.
pub const VERSION: u32 = 1;
/// The largest payload in bytes, in either direction.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// The virtio-serial port over which frames travel, unless the kernel command line names another
/// with [`PORT_ARG`] or a serial line with [`TTY_ARG`].
pub const PORT_NAME: &str = "cryoscope.frames";
/// Kernel argument with the name of a virtio-serial port: `cryoscope.port=NAME`.
pub const PORT_ARG: &str = "cryoscope.port";
/// Kernel argument with a serial line to use instead of a virtio port: `cryoscope.tty=ttyS1`.
pub const TTY_ARG: &str = "cryoscope.tty";
/// Where groups are, relative to the root of the cgroup v2 hierarchy: group `hot` has the path
/// `/lab/hot`.
pub const LAB_CGROUP: &str = "lab";
/// Bytes of a line to or from a socket in the guest.
pub const MAX_LINE: usize = 256 << 10;
/// Bytes of header before each payload.
pub const HEADER: usize = 16;

/// From the host to the guest: one request, answered by one [`FromGuest::Reply`] with its `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique on this channel.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// What the agent can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Load and attach a scheduler; answered by [`Answer::Attached`].
    Attach(Attach),
    /// Detach the scheduler that `Attach` brought up; answered by [`Answer::Detached`].
    Detach,
    /// State of sched_ext and of the scheduler's loader; answered by [`Answer::Scheduler`].
    SchedulerState,
    /// Make a cgroup v2 group below the laboratory's own ([`LAB_CGROUP`]); answered by
    /// [`Answer::Done`].
    CgroupCreate {
        /// A single path component.
        name: String,
        /// Its first settings.
        set: CgroupSet,
    },
    /// Change a group's settings; answered by [`Answer::Done`].
    CgroupSet {
        /// The group.
        name: String,
        /// What to change.
        set: CgroupSet,
    },
    /// Freeze or thaw a group, waiting until the kernel says so; answered by [`Answer::Done`].
    CgroupFreeze {
        /// The group.
        name: String,
        /// True freezes, false thaws.
        frozen: bool,
    },
    /// The pids in a group; answered by [`Answer::Pids`].
    CgroupProcs {
        /// The group.
        name: String,
    },
    /// Text of a group's statistics files (`cpu.stat`, `cpu.pressure`, ..); answered by
    /// [`Answer::Files`].
    CgroupStats {
        /// The group.
        name: String,
    },
    /// Move every process of one group to another; answered by [`Answer::Done`].
    CgroupMove {
        /// From this group,
        from: String,
        /// to that one.
        to: String,
    },
    /// Kill and reap the workers of a group (all workers without a name); answered by
    /// [`Answer::Done`].
    StopWorkers {
        /// The group, or every worker there is.
        cgroup: Option<String>,
    },
    /// Kill what runs in a group and remove it; answered by [`Answer::Done`].
    CgroupRemove {
        /// The group.
        name: String,
    },
    /// Start workers; answered by [`Answer::Workers`].
    Start(Work),
    /// What these workers, of which there may be [`MAX_REPORTS`], did so far; answered by
    /// [`Answer::Reports`], which leaves out those that the agent no longer knows.
    WorkerReports {
        /// Their pids.
        pids: Vec<u32>,
    },
    /// Run a program to its end; answered by [`Answer::Exec`]. It leads a process group of its
    /// own, of which nothing is left when the answer comes.
    Exec {
        /// Program and arguments. The agent's own applets (`cat`, `ls`, ..) serve where the
        /// program is not in the guest.
        argv: Vec<String>,
        /// Killed after this many milliseconds.
        timeout_ms: u64,
    },
    /// A file's contents, capped; answered by [`Answer::File`].
    ReadFile {
        /// Absolute path.
        path: String,
        /// Where to start, for files that are longer than the cap.
        #[serde(default)]
        offset: u64,
    },
    /// Write a file, in the place of one that is there, which whoever runs it keeps; directories
    /// above it are made; answered by [`Answer::Done`].
    WriteFile {
        /// Absolute path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Whether to go on with the file that is there: of a long one each frame has a part.
        append: bool,
        /// What to write.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// Send a line to a Unix socket in the guest and receive one; answered by [`Answer::Line`].
    AskSocket {
        /// Absolute path of the socket.
        path: String,
        /// Whose connection is used: it is kept for the next request of the same asker, since
        /// schedulers tell what changed since the last answer on the same connection.
        asker: String,
        /// What to send, without the line's end.
        line: String,
        /// How long all of it may take.
        timeout_ms: u64,
    },
    /// The kernel's log so far; answered by [`Answer::Text`].
    Dmesg,
    /// Open every map that came with the attached scheduler and keep the descriptors, so that the
    /// maps outlive it; answered by [`Answer::Maps`]. For tests of the truth. Held maps are let
    /// go by the next `HoldMaps`.
    HoldMaps,
    /// Make maps of kinds that user space fills, with known contents, and hold them beside those
    /// that are held; answered by [`Answer::Made`]. For tests of the truth.
    MakeMaps,
    /// Put values into a held map whose entries hang on sockets or files, for new ones of which the
    /// agent keeps the descriptors; answered by [`Answer::MapPage`], in which keys are the text
    /// that the host makes of such an owner. For tests of the truth.
    StoreByFd {
        /// The map's id.
        id: u32,
        /// How many.
        count: u32,
    },
    /// List the BPF programs there are, as the bpf() syscall describes them.
    ListProgs,
    /// All keys and values of a held map as the bpf() syscall gives them, in pages; answered by
    /// [`Answer::MapPage`].
    DumpMap {
        /// The map's id.
        id: u32,
        /// 0, or where the last page said that the next one starts.
        skip: u64,
    },
    /// Sync, power off. No answer but [`Event::PoweringOff`].
    PowerOff,
}

/// A scheduler to attach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// A BPF object that the agent itself opens, loads and attaches with libbpf.
    Object {
        /// Where it is in the guest.
        path: String,
        /// Initial values for variables of read-only (and other) sections.
        patches: Vec<Patch>,
        /// How long loading and attaching may take.
        timeout_ms: u64,
    },
    /// A program that loads its own scheduler and stays.
    Program {
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to a minimal environment.
        env: Vec<(String, String)>,
        /// How long it may take until sched_ext is enabled.
        timeout_ms: u64,
    },
}

/// Bytes to put into a section of a BPF object before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// ELF section name, as in `.rodata`.
    pub section: String,
    /// Byte offset in the section.
    pub offset: u32,
    /// The bytes, in hexadecimal on the wire.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// Settings of a cgroup; `None` leaves a setting alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSet {
    /// `cpuset.cpus`, as a kernel CPU list.
    pub cpus: Option<String>,
    /// `cpuset.mems`, as a kernel node list.
    pub mems: Option<String>,
    /// `cpu.weight`, 1 to 10,000.
    pub weight: Option<u64>,
    /// `cpu.max`, as the kernel spells it.
    pub cpu_max: Option<String>,
}

/// Workers to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// What each does.
    pub kind: WorkKind,
    /// How many processes (for `pipe`: pairs count as two processes, so this must be even).
    pub count: u32,
    /// In which group; without one, outside any (in the root of the hierarchy).
    pub cgroup: Option<String>,
    /// Scheduling policy; without one the worker joins SCHED_EXT when a scheduler is attached.
    pub policy: Option<Policy>,
    /// Nice value, -20 to 19.
    pub nice: Option<i32>,
    /// CPUs to bind to.
    pub affinity: Option<Vec<u32>>,
    /// For `sleep`: microseconds asleep between wake-ups; for others: ignored.
    pub period_us: Option<u64>,
}

/// What a worker does until it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkKind {
    /// Computes without ever giving up the CPU.
    Spin,
    /// Computes a little, then `sched_yield`, for ever.
    Yield,
    /// Sleeps, wakes, computes a little, for ever.
    Sleep,
    /// Two processes that hand one byte to and fro over pipes.
    Pipe,
}

/// A scheduling policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// SCHED_OTHER.
    Normal,
    /// SCHED_BATCH.
    Batch,
    /// SCHED_IDLE.
    Idle,
    /// SCHED_FIFO with this priority.
    Fifo(u32),
    /// SCHED_RR with this priority.
    Rr(u32),
    /// SCHED_EXT.
    Ext,
}

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// First frame: the agent is up.
    Hello(Hello),
    /// The answer to the request with this id.
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Answer, Refusal>,
    },
    /// Something happened unasked.
    Event(Event),
}

/// The agent's introduction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// `uname -r`.
    pub release: String,
    /// CPUs online.
    pub cpus: u32,
    /// Microseconds since the kernel started (CLOCK_BOOTTIME).
    pub uptime_us: u64,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The line that came back, without its end; `None` when it went on beyond
    /// [`MAX_LINE`] bytes, of which `size` were received.
    Line {
        /// The line.
        text: Option<String>,
        /// Bytes that were received.
        size: u64,
    },
    /// Nothing to tell.
    Done,
    /// The scheduler is in charge.
    Attached {
        /// The name in `/sys/kernel/sched_ext/root/ops`.
        ops: String,
        /// What libbpf or the program said.
        log: String,
    },
    /// The scheduler is gone.
    Detached {
        /// What libbpf or the program said since it was attached.
        log: String,
    },
    /// sched_ext as sysfs shows it.
    Scheduler(SchedulerState),
    /// Pids.
    Pids(Vec<u32>),
    /// Workers started, in order.
    Workers(Vec<u32>),
    /// What workers did, in the order in which they were asked for.
    Reports(Vec<WorkerReport>),
    /// A program has ended.
    Exec(Exec),
    /// File name to contents.
    Files(Vec<(String, String)>),
    /// A file; `truncated` when it was longer than the cap.
    File {
        /// Contents.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
        /// Whether the cap cut it.
        truncated: bool,
    },
    /// Text, such as the kernel's log.
    Text(String),
    /// Maps now held.
    Maps(Vec<HeldMap>),
    /// Maps that were made, or that the kernel would not have.
    Made(Vec<MadeMap>),
    /// Programs, ascending by id.
    Progs(Vec<Prog>),
    /// Some entries of a map.
    MapPage {
        /// Key and value bytes; a per-CPU map's value is all possible CPUs' values, each rounded
        /// up to 8 bytes, as the syscall gives them.
        entries: Vec<(Hex, Hex)>,
        /// Where the next page starts.
        next: u64,
        /// Whether there are more.
        more: bool,
    },
}

/// Bytes that travel as hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hex(#[serde(with = "hex")] pub Vec<u8>);

/// A map that the agent has made itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeMap {
    /// The map.
    pub map: HeldMap,
    /// What is known of entries beside what the syscall says, by their keys.
    pub entries: Vec<(Hex, Vec<(String, String)>)>,
    /// Why the kernel would not have it, or not with these contents.
    pub refused: Option<String>,
}

/// A map as `bpf_map_get_info_by_fd` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldMap {
    /// Map id.
    pub id: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: u32,
}

/// A program as `bpf_prog_get_info_by_fd` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prog {
    /// Program id.
    pub id: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// Ids of the maps it uses.
    pub maps: Vec<u32>,
    /// How often it ran; 0 unless the kernel counts.
    pub run_count: u64,
    /// Nanoseconds that took.
    pub run_time_ns: u64,
}

/// sched_ext and the scheduler's loader, as seen inside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerState {
    /// `/sys/kernel/sched_ext/state`, or empty on a kernel without sched_ext.
    pub state: String,
    /// `/sys/kernel/sched_ext/root/ops`, when there is one.
    pub ops: Option<String>,
    /// `/sys/kernel/sched_ext/enable_seq`.
    pub enable_seq: u64,
    /// Whether a scheduler that the host asked for is attached as far as the agent knows.
    pub attached: bool,
    /// What its loader has said so far.
    pub log: String,
    /// While sched_ext is enabled: workers that were to follow the scheduler and have another
    /// policy than SCHED_EXT, with its number; at most [`MAX_STRAYS`].
    #[serde(default)]
    pub strays: Vec<(u32, u32)>,
}

/// Workers that are named in [`SchedulerState::strays`] at most.
pub const MAX_STRAYS: usize = 64;
/// Workers at one time; each takes some hundred kilobytes of the guest's memory.
pub const MAX_WORKERS: u32 = 1024;
/// Workers that have ended whose last reports are kept.
pub const MAX_LAST_REPORTS: usize = 1024;
/// The number of the policy SCHED_EXT (kernel: `include/uapi/linux/sched.h`).
pub const SCHED_EXT: u32 = 7;

/// How a program ended and what it printed (each stream capped).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when one killed it.
    pub signal: Option<i32>,
    /// Whether the agent killed it because its time was up.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether a stream was longer than the cap; its beginning was kept.
    #[serde(default)]
    pub truncated: bool,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What sort of trouble.
    pub kind: RefusalKind,
    /// Completes "failed: ..": names what was asked and what the kernel said.
    pub message: String,
    /// libbpf's, the verifier's or the program's words, where there are any.
    pub log: String,
}

/// Sorts of trouble in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// No such group, map, file or program.
    NotFound,
    /// The request itself makes no sense.
    Invalid,
    /// The verifier rejected a program.
    Verifier,
    /// The scheduler's program ended before it was in charge.
    Exited,
    /// It took longer than allowed.
    Timeout,
    /// The kernel refused.
    Kernel,
}

/// Something that happened unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// sched_ext left the state "enabled" without `Detach`, or the scheduler's program ended.
    SchedulerExited {
        /// The kernel's reason from its log (`runnable task stall`, ..), or how the program ended.
        reason: String,
        /// End of the loader's log.
        log: String,
        /// Lines of the kernel's log that speak of it.
        dmesg: String,
    },
    /// A worker ended without being stopped.
    WorkerExited {
        /// Its pid.
        pid: u32,
        /// How it ended.
        reason: String,
    },
    /// The agent received a frame it cannot trust; it stops listening.
    ChannelDamaged {
        /// What was wrong.
        reason: String,
    },
    /// The agent cannot go on, because of a fault of its own; it powers the machine off.
    AgentFailed {
        /// What went wrong.
        reason: String,
    },
    /// The last frame before the machine goes off.
    PoweringOff,
}

/// Bytes as lower-case hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(DIGITS[usize::from(byte >> 4)] as char);
            text.push(DIGITS[usize::from(byte & 15)] as char);
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        let digit = |b: u8| {
            (b as char).to_digit(16).ok_or_else(|| D::Error::custom("not a hexadecimal digit"))
        };
        if text.len() % 2 != 0 {
            return Err(D::Error::custom("odd number of hexadecimal digits"));
        }
        text.as_bytes()
            .chunks_exact(2)
            .map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
            .collect()
    }
}
