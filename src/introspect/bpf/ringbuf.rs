//! RINGBUF and USER_RINGBUF: records between two positions that only grow.
//!
//! ```text
//! consumer_pos ─▶ │hdr│record│hdr│busy..│hdr│discarded│ ◀─ producer_pos
//! ```

use super::copy::Budget;
use super::kinds::{Found, text};
use super::layout::{At, Finder};
use super::rows::Rows;
use super::{BpfState, MapInfo, kind};
use crate::btf::Btf;
use crate::introspect::contents::Values;
use crate::introspect::error::IntrospectError;
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// Bits of a record's length (`BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT`): ABI.
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
/// What is before each record, and what records are rounded up to (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// `struct bpf_ringbuf_map` and `struct bpf_ringbuf` (kernel/bpf/ringbuf.c).
pub(crate) struct RingLayout {
    ring: At,
    mask: At,
    consumer: At,
    producer: At,
    /// Up to where records are known not to be busy (since cfa1a2329a69, "bpf: Fix overrunning
    /// reservations in ringbuf").
    pending: Option<At>,
    /// The oldest record that is there, of rings that overwrite the oldest ones (since 6.19).
    overwrite: Option<At>,
    overwrites: Option<At>,
    lock: Option<At>,
    /// Held while a program drains what user space has written (since 6.1).
    draining: Option<At>,
    data: u64,
}

impl RingLayout {
    pub(super) fn new(btf: &Btf) -> Result<Self, IntrospectError> {
        let ring = Finder::new(btf, "struct bpf_ringbuf")?;
        Ok(RingLayout {
            ring: Finder::new(btf, "struct bpf_ringbuf_map")?.number("rb")?,
            mask: ring.number("mask")?,
            consumer: ring.number("consumer_pos")?,
            producer: ring.number("producer_pos")?,
            pending: ring.number("pending_pos").ok(),
            overwrite: ring.number("overwrite_pos").ok(),
            overwrites: ring.number("overwrite_mode").ok(),
            lock: ring.lock("spinlock"),
            draining: ring.number("busy.counter").ok(),
            data: ring.at("data")?.offset as u64,
        })
    }
}

impl Kernel {
    /// The records that were written and not read yet, by their positions.
    pub(super) fn ring(&self, state: &BpfState, map: &MapInfo, budget: &mut Budget) -> Found {
        let layout = state.layouts.kinds.ring.as_ref().map_err(text)?;
        let at = map.kva.offset(layout.ring.offset as u64);
        let ring = Kva(self.read_u64(at).map_err(text)?);
        let number = |member: At| self.member(ring, member).map_err(text);
        let maybe = |member: Option<At>| member.map_or(Ok(0), number);
        let (size, mask) = (u64::from(map.max_entries), number(layout.mask)?);
        if !size.is_power_of_two() || mask != size - 1 {
            return Err(format!("it has {size} bytes of data, and a mask of {mask:#x} for them"));
        }
        let (consumer, producer) = (number(layout.consumer)?, number(layout.producer)?);
        let mut rows = Rows::of(Some(Values::empty(8)), Values::uneven());
        rows.detail("size", size);
        rows.detail("consumer_pos", consumer);
        rows.detail("producer_pos", producer);
        let mut start = consumer;
        if map.kind.number == kind::RINGBUF {
            if let Some(pending) = layout.pending {
                rows.detail("pending_pos", number(pending)?);
            }
            if maybe(layout.overwrites)? & 0xff != 0 {
                let oldest = maybe(layout.overwrite)?;
                rows.detail("overwrite_pos", oldest);
                start = start.max(oldest);
            }
            if maybe(layout.lock)? != 0 {
                rows.torn("its lock is held: a record is being reserved".into());
            }
        } else if maybe(layout.draining)? != 0 {
            rows.torn("a program is reading it".into());
        }
        let used = producer.wrapping_sub(start);
        if used > size || start % HEADER != 0 {
            return Err(format!(
                "it has {size} bytes, and claims those from {start} to {producer}"
            ));
        }
        let fits = budget.take_some(used, 1)?;
        let mut bytes = vec![0; fits as usize];
        // The pages of data are mapped twice, one time after the other: what goes past the end
        // goes on at the beginning.
        let data = ring.offset(layout.data).offset(start & mask);
        if let Some(hole) = self.space.read_what_is_there(data, &mut bytes).first() {
            bytes.truncate(hole.offset);
            rows.incomplete(format!("from position {start}+{} on: {}", hole.offset, hole.cause));
        } else if fits < used {
            rows.incomplete(format!("{fits} of {used} bytes fitted into the capture's budget"));
        }
        records(&mut rows, &bytes, start, used);
        Ok(rows.into())
    }
}

/// Takes records apart: `bytes` are the first of `used`, from the position `start` on.
fn records(rows: &mut Rows, bytes: &[u8], start: u64, used: u64) {
    let (mut at, mut busy, mut discarded, mut ready) = (0, 0u64, 0u64, 0u64);
    while at < used {
        let position = start.wrapping_add(at);
        let header = At { offset: at as usize, size: 4 }.read(bytes);
        let Some(header) = header.map(|word| word as u32) else {
            rows.incomplete(format!("the record at position {position} was not copied"));
            break;
        };
        let len = u64::from(header & !(BUSY | DISCARD));
        let next = at + (len + HEADER).next_multiple_of(HEADER);
        if next > used {
            let left = used - at;
            rows.incomplete(format!(
                "the record at position {position} claims {len} bytes of the {left} that are left"
            ));
            break;
        }
        let from = (at + HEADER) as usize;
        at = next;
        if header & BUSY == 0 && header & DISCARD != 0 {
            discarded += 1;
            continue;
        }
        let Some(record) = bytes.get(from..from + len as usize) else {
            rows.incomplete(format!("the record at position {position} was not copied"));
            break;
        };
        rows.push(&position.to_le_bytes(), record);
        if header & BUSY != 0 {
            busy += 1;
            rows.torn_row("it is reserved and not submitted: it may be half-written".into());
        } else {
            ready += 1;
        }
    }
    rows.detail("ready", ready);
    rows.detail("busy", busy);
    rows.detail("discarded", discarded);
}
