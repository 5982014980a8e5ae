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

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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
/// Bytes of header before each payload.
pub const HEADER: usize = 16;
const MAGIC: [u8; 4] = *b"CRYO";

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
    },
    /// The kernel's log so far; answered by [`Answer::Text`].
    Dmesg,
    /// Open every map of the attached scheduler by id and keep the descriptors, so that the maps
    /// outlive it; answered by [`Answer::Maps`]. For tests of the truth.
    HoldMaps,
    /// All keys and values of a held map as the bpf() syscall gives them, in pages; answered by
    /// [`Answer::MapPage`].
    DumpMap {
        /// The map's id.
        id: u32,
        /// Entries to skip.
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
    /// Some entries of a map.
    MapPage {
        /// Key and value bytes; a per-CPU map's value is all possible CPUs' values, each rounded
        /// up to 8 bytes, as the syscall gives them.
        entries: Vec<(Hex, Hex)>,
        /// Whether there are more.
        more: bool,
    },
}

/// Bytes that travel as hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hex(#[serde(with = "hex")] pub Vec<u8>);

/// A map as `bpf_map_get_info_by_fd` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

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

/// A frame that cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The stream does not hold a frame where one should start.
    #[error("frame {seq}: bad magic {found:02x?} instead of \"CRYO\"")]
    Magic {
        /// Sequence number expected.
        seq: u32,
        /// The four bytes found.
        found: [u8; 4],
    },
    /// A frame announces more than the cap.
    #[error("frame {seq}: {len} bytes announced, at most {MAX_PAYLOAD} are allowed")]
    TooLong {
        /// Sequence number expected.
        seq: u32,
        /// Bytes announced.
        len: usize,
    },
    /// The checksum does not match.
    #[error("frame {seq}: checksum {found:#010x} instead of {expected:#010x}")]
    Checksum {
        /// Sequence number expected.
        seq: u32,
        /// As computed.
        expected: u32,
        /// As received.
        found: u32,
    },
    /// A frame was lost or repeated.
    #[error("frame {found} where {seq} was expected")]
    Sequence {
        /// Sequence number expected.
        seq: u32,
        /// As received.
        found: u32,
    },
    /// The payload is whole but is no message of this protocol.
    #[error("frame {seq}: {reason}")]
    Payload {
        /// Its sequence number.
        seq: u32,
        /// serde's words.
        reason: String,
    },
}

/// Puts messages into frames, numbering them.
#[derive(Debug, Default)]
pub struct Encoder {
    seq: u32,
}

impl Encoder {
    /// One frame that holds `message`.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the message is over the cap; the sequence does not advance.
    pub fn encode<T: Serialize>(&mut self, message: &T) -> Result<Vec<u8>, WireError> {
        let payload = serde_json::to_vec(message)
            .map_err(|e| WireError::Payload { seq: self.seq, reason: e.to_string() })?;
        if payload.len() > MAX_PAYLOAD {
            return Err(WireError::TooLong { seq: self.seq, len: payload.len() });
        }
        let len = (payload.len() as u32).to_le_bytes();
        let seq = self.seq.to_le_bytes();
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&len);
        frame.extend_from_slice(&checksum(len, seq, &payload).to_le_bytes());
        frame.extend_from_slice(&seq);
        frame.extend_from_slice(&payload);
        self.seq = self.seq.wrapping_add(1);
        Ok(frame)
    }
}

/// Takes bytes as they come and gives messages. Buffers at most one frame beyond what was fed.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    seq: u32,
    damage: Option<WireError>,
}

impl Decoder {
    /// Adds received bytes. Ignored once the stream is damaged.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.damage.is_some() {
            return;
        }
        if self.start > 0 {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    /// The next message, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// The first damage found, and the same one ever after.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        self.take().inspect_err(|e| {
            self.damage = Some(e.clone());
            self.buf = Vec::new();
            self.start = 0;
        })
    }

    fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let seq = self.seq;
        let bytes = &self.buf[self.start..];
        let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes");
        if bytes.len() >= 4 && word(0) != MAGIC {
            return Err(WireError::Magic { seq, found: word(0) });
        }
        if bytes.len() < HEADER {
            return Ok(None);
        }
        let len = u32::from_le_bytes(word(4)) as usize;
        if len > MAX_PAYLOAD {
            return Err(WireError::TooLong { seq, len });
        }
        let Some(payload) = bytes.get(HEADER..HEADER + len) else {
            return Ok(None);
        };
        let (expected, found) = (checksum(word(4), word(12), payload), u32::from_le_bytes(word(8)));
        if expected != found {
            return Err(WireError::Checksum { seq, expected, found });
        }
        let found = u32::from_le_bytes(word(12));
        if found != seq {
            return Err(WireError::Sequence { seq, found });
        }
        let message = serde_json::from_slice(payload)
            .map_err(|e| WireError::Payload { seq, reason: e.to_string() })?;
        self.start += HEADER + len;
        self.seq = seq.wrapping_add(1);
        Ok(Some(message))
    }
}

fn checksum(len: [u8; 4], seq: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(&seq);
    hasher.update(payload);
    hasher.finalize()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> FromGuest {
        FromGuest::Hello(Hello {
            version: VERSION,
            release: "7.2.13+deb14-cloud-amd64".into(),
            cpus: 4,
            uptime_us: 2_500_000,
        })
    }

    fn two_frames() -> Vec<u8> {
        let mut encoder = Encoder::default();
        let patch = Patch { section: ".rodata".into(), offset: 8, bytes: vec![0, 0xff, 0x1a] };
        let op = Op::Attach(Attach::Object {
            path: "/s.bpf.o".into(),
            patches: vec![patch],
            timeout_ms: 60_000,
        });
        let mut bytes = encoder.encode(&hello()).unwrap();
        bytes.extend(encoder.encode(&Request { id: 7, op }).unwrap());
        bytes
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        for step in [1, 3, 16, 17, 1000] {
            let mut decoder = Decoder::default();
            let (mut first, mut second) = (None, None);
            for chunk in two_frames().chunks(step) {
                decoder.feed(chunk);
                if first.is_none() {
                    first = decoder.next::<FromGuest>().unwrap();
                }
                if first.is_some() && second.is_none() {
                    second = decoder.next::<Request>().unwrap();
                }
            }
            assert_eq!(first, Some(hello()), "in steps of {step}");
            assert_eq!(second.map(|r| r.id), Some(7), "in steps of {step}");
        }
    }

    #[test]
    fn damage_is_named_and_final() {
        let whole = two_frames();
        let cases: [(usize, u8, &str); 4] = [
            (0, b'X', "frame 0: bad magic [58, 52, 59, 4f] instead of \"CRYO\""),
            (7, 0xff, "at most 4194304 are allowed"),
            (12, 9, "checksum"),
            (20, b'!', "checksum"),
        ];
        for (at, byte, says) in cases {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let error = decoder.next::<FromGuest>().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            decoder.feed(&whole);
            assert_eq!(decoder.next::<FromGuest>().unwrap_err(), error);
        }
    }

    #[test]
    fn a_lost_frame_is_noticed() {
        let mut encoder = Encoder::default();
        let _lost = encoder.encode(&hello()).unwrap();
        let mut decoder = Decoder::default();
        decoder.feed(&encoder.encode(&hello()).unwrap());
        let error = decoder.next::<FromGuest>().unwrap_err();
        assert_eq!(error, WireError::Sequence { seq: 0, found: 1 });
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_caught(at in 0usize..400, bit in 0u8..8) {
            let mut bytes = two_frames();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let first = decoder.next::<FromGuest>();
            let second = first.clone().and_then(|_| decoder.next::<Request>());
            // A longer announced length waits for more; everything else is an error. A damaged
            // frame never comes out as a message.
            prop_assert!(!matches!((&first, &second), (Ok(Some(_)), Ok(Some(_)))));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let _ = decoder.next::<FromGuest>();
        }
    }
}
