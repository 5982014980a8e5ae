//! Rings that user space writes and programs read.

use std::io;
use std::os::fd::OwnedFd;

use libbpf_rs::libbpf_sys as b;

use super::mapping::Mapping;
use super::{Entries, Hex, Maker, PAGE, Spec, fact, noise};

/// What is before each record, and what records are rounded up to.
const HEADER: usize = 8;

/// A ring as its producer has it: the position up to which there is something, and the data,
/// twice in a row.
struct Ring {
    memory: Mapping,
    produced: usize,
}

impl Ring {
    fn new(fd: &OwnedFd, size: usize) -> io::Result<Ring> {
        Ok(Ring { memory: Mapping::writable(fd, PAGE, PAGE + 2 * size)?, produced: 0 })
    }

    /// Adds a record whose length has `bits` in it. Its position.
    fn put(&mut self, record: &[u8], bits: u32) -> u64 {
        let at = self.produced;
        let header = [record.len() as u32 | bits, 0].map(u32::to_le_bytes).concat();
        self.memory.write(PAGE + at, &header);
        self.memory.write(PAGE + at + HEADER, record);
        self.produced += (HEADER + record.len()).next_multiple_of(HEADER);
        self.memory.write(0, &(self.produced as u64).to_le_bytes());
        at as u64
    }
}

impl Maker<'_> {
    /// Of the records every seventh is thrown away again, every fifth not finished.
    pub(super) fn rings(&mut self) {
        let kind = b::BPF_MAP_TYPE_USER_RINGBUF;
        for (name, size, count) in [("requests", 2 * PAGE, 60usize), ("no_requests", PAGE, 0)] {
            let spec = Spec { name, kind, entries: size as u32, ..Spec::default() };
            self.map(spec, |map, _| {
                let mut ring = Ring::new(map, size)?;
                let mut entries = Entries::new();
                let mut discarded = 0;
                for i in 0..count {
                    let record: Vec<u8> = noise(i as u64 + 900).take(i * 37 % 150).collect();
                    let (discard, busy) = (i % 7 == 3, i % 5 == 2);
                    let bits = match (discard, busy) {
                        (true, _) => b::BPF_RINGBUF_DISCARD_BIT,
                        (_, true) => b::BPF_RINGBUF_BUSY_BIT,
                        _ => 0,
                    };
                    let at = ring.put(&record, bits);
                    if discard {
                        discarded += 1;
                        continue;
                    }
                    let record: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
                    let facts = vec![fact("record", record), fact("busy", busy)];
                    entries.push((Hex(at.to_le_bytes().into()), facts));
                }
                // The kernel's own page, which only it writes.
                let consumed = Mapping::readable(map, 0, PAGE)?.read(0, 8);
                let consumed = u64::from_le_bytes(consumed.try_into().unwrap_or_default());
                let facts = vec![
                    fact("consumer_pos", consumed),
                    fact("producer_pos", ring.produced),
                    fact("discarded", discarded),
                ];
                entries.push((Hex(Vec::new()), facts));
                Ok(entries)
            });
        }
    }
}
