//! The guest kernel's address space: reads at kernel-virtual addresses.
//!
//! Two ranges translate by arithmetic once the page tables have confirmed them: the direct map of
//! all RAM and the kernel's own image. Everything else is walked.

use std::sync::Arc;

use super::error::{ReadError, Unreachable};
use super::paging::{PAGE, PageTables, Run};
use crate::mem::{Gpa, GuestMem, Kva};

/// Where x86-64 maps its image, before KASLR (`__START_KERNEL_map`, arch/x86 page_64_types.h).
pub(crate) const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// A range that is mapped in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Linear {
    at: Kva,
    len: u64,
    to: Gpa,
}

impl Linear {
    /// Where `len` bytes at `at` lead, if all of them lie in this range.
    fn translate(&self, at: Kva, len: u64) -> Option<Gpa> {
        let offset = at.0.wrapping_sub(self.at.0);
        (offset < self.len && len <= self.len - offset).then(|| Gpa(self.to.0 + offset))
    }
}

/// Reads guest memory by kernel-virtual address.
pub(crate) struct AddressSpace {
    mem: Arc<dyn GuestMem>,
    tables: PageTables,
    /// The direct map, then pieces of the image, largest first.
    linear: Vec<Linear>,
}

impl AddressSpace {
    pub(crate) fn new(mem: Arc<dyn GuestMem>, tables: PageTables) -> Self {
        AddressSpace { mem, tables, linear: Vec::new() }
    }

    /// Takes the image's range `start..end` as linear, as far as the page tables say so. What
    /// the kernel has unmapped since (its init sections) stays out.
    pub(crate) fn trust_image(&mut self, start: Kva, end: Kva, phys_base: u64) {
        /// More than any image; keeps a damaged symbol from causing a long walk.
        const MAX_IMAGE: u64 = 1 << 30;
        let len = end.0.saturating_sub(start.0).min(MAX_IMAGE);
        let mut pieces = Vec::new();
        self.tables.walk(self.mem.as_ref(), start, len, &mut |run| {
            let expected = run.at.0.wrapping_sub(START_KERNEL_MAP).wrapping_add(phys_base);
            if run.to == Ok(Gpa(expected)) {
                pieces.push(Linear { at: run.at, len: run.len, to: Gpa(expected) });
            }
        });
        pieces.sort_by_key(|p| std::cmp::Reverse(p.len));
        pieces.truncate(4);
        self.linear.extend(pieces);
    }

    /// Takes `base` as the start of the direct map if the page tables agree at every place looked
    /// at: both ends and the middle of each region of RAM. Firmware and the kernel keep some
    /// pages out of the direct map, so places that are not mapped do not count.
    pub(crate) fn trust_direct_map(&mut self, base: Kva) -> bool {
        let mut agree = 0;
        let mut end = 0;
        for region in self.mem.regions() {
            let last = region.start.0.saturating_add(region.len - 1) & !(PAGE - 1);
            let middle = region.start.0.midpoint(last) & !(PAGE - 1);
            for gpa in [region.start.0, middle, last] {
                match self.tables.translate(self.mem.as_ref(), base.offset(gpa)) {
                    Ok(found) if found == Gpa(gpa) => agree += 1,
                    Err(Unreachable::NotMapped(_)) => {}
                    _ => return false,
                }
            }
            end = end.max(region.start.0.saturating_add(region.len));
        }
        if agree > 0 {
            self.linear.insert(0, Linear { at: base, len: end, to: Gpa(0) });
        }
        agree > 0
    }

    fn fast(&self, at: Kva, len: u64) -> Option<Gpa> {
        self.linear.iter().find_map(|range| range.translate(at, len))
    }

    /// Where `at` leads.
    pub(crate) fn translate(&self, at: Kva) -> Result<Gpa, Unreachable> {
        match self.fast(at, 1) {
            Some(gpa) => Ok(gpa),
            None => self.tables.translate(self.mem.as_ref(), at),
        }
    }

    /// Calls `f` with the contiguous runs that make up `len` bytes from `at` on.
    pub(crate) fn runs(&self, at: Kva, len: u64, f: &mut dyn FnMut(Run)) {
        match self.fast(at, len) {
            Some(gpa) if len > 0 => f(Run { at, len, to: Ok(gpa) }),
            _ => self.tables.walk(self.mem.as_ref(), at, len, f),
        }
    }

    /// Writes all of `bytes` at `at`, or nothing.
    pub(crate) fn write(&self, at: Kva, bytes: &[u8]) -> Result<(), String> {
        let (mut runs, mut wrong) = (Vec::new(), None);
        self.runs(at, bytes.len() as u64, &mut |run| match run.to {
            Ok(gpa) => runs.push((gpa, run.len as usize)),
            Err(cause) => {
                wrong.get_or_insert(cause);
            }
        });
        if let Some(cause) = wrong {
            return Err(format!("cannot write {} bytes at {at}: {cause}", bytes.len()));
        }
        // A piece that is not RAM must not leave the one before it written.
        for (gpa, len) in &runs {
            self.mem.read(*gpa, &mut vec![0; *len]).map_err(|e| e.to_string())?;
        }
        let mut rest = bytes;
        for (gpa, len) in runs {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            self.mem.store(gpa, piece).map_err(|e| e.to_string())?;
            rest = after;
        }
        Ok(())
    }

    /// Fills `buf` from `at`.
    pub(crate) fn read(&self, at: Kva, buf: &mut [u8]) -> Result<(), ReadError> {
        if buf.is_empty() {
            return Ok(());
        }
        let size = buf.len();
        let fail = |cause| ReadError { at, len: size, cause };
        let within = at.0 % PAGE;
        let len = size as u64;
        let direct = match self.fast(at, len) {
            None if within + len <= PAGE => {
                Some(self.tables.translate(self.mem.as_ref(), at).map_err(fail)?)
            }
            other => other,
        };
        if let Some(gpa) = direct {
            let not_ram = fail(Unreachable::NotRam { at, gpa });
            return self.mem.read(gpa, buf).map_err(|_| not_ram);
        }
        match self.read_what_is_there(at, buf).first() {
            None => Ok(()),
            Some(hole) => Err(fail(hole.cause)),
        }
    }

    /// Fills what can be read of `buf` and zeroes the rest. Returns the holes, ascending.
    pub(crate) fn read_what_is_there(&self, at: Kva, buf: &mut [u8]) -> Vec<Hole> {
        let mut holes: Vec<Hole> = Vec::new();
        let mut done = 0;
        self.runs(at, buf.len() as u64, &mut |run| {
            let len = run.len as usize;
            let piece = &mut buf[done..done + len];
            match run.to {
                Err(cause) => {
                    piece.fill(0);
                    holes.push(Hole { offset: done, len, cause });
                }
                Ok(gpa) if self.mem.read(gpa, piece).is_err() => {
                    self.read_pages(run.at, gpa, piece, done, &mut holes);
                }
                Ok(_) => {}
            }
            done += len;
        });
        holes
    }

    /// Reads a contiguous run page by page because not all of it is RAM.
    fn read_pages(&self, at: Kva, gpa: Gpa, buf: &mut [u8], base: usize, holes: &mut Vec<Hole>) {
        let mut done = 0;
        while done < buf.len() {
            let (at, gpa) = (at.offset(done as u64), Gpa(gpa.0 + done as u64));
            let len = ((PAGE - gpa.0 % PAGE) as usize).min(buf.len() - done);
            let piece = &mut buf[done..done + len];
            if self.mem.read(gpa, piece).is_err() {
                piece.fill(0);
                let cause = Unreachable::NotRam { at, gpa };
                match holes.last_mut() {
                    Some(last) if last.offset + last.len == base + done => last.len += len,
                    _ => holes.push(Hole { offset: base + done, len, cause }),
                }
            }
            done += len;
        }
    }

    /// Fills the front of `buf` as far as memory is there without a hole; returns how far.
    pub(crate) fn read_prefix(&self, at: Kva, buf: &mut [u8]) -> usize {
        self.read_what_is_there(at, buf).first().map_or(buf.len(), |hole| hole.offset)
    }

    /// Bytes of RAM.
    pub(crate) fn size(&self) -> u64 {
        self.mem.size()
    }

    pub(crate) fn read_u64(&self, at: Kva) -> Result<u64, ReadError> {
        let mut raw = [0; 8];
        self.read(at, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    pub(crate) fn read_u32(&self, at: Kva) -> Result<u32, ReadError> {
        let mut raw = [0; 4];
        self.read(at, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// The bytes at `at` up to a NUL, of which there must be one within `limit` bytes.
    pub(crate) fn read_cstr(&self, at: Kva, limit: usize) -> Result<Vec<u8>, ReadError> {
        let mut out = Vec::new();
        while out.len() < limit {
            let from = at.offset(out.len() as u64);
            let page_rest = (PAGE - from.0 % PAGE) as usize;
            let mut chunk = [0; 256];
            let chunk = &mut chunk[..page_rest.min(256).min(limit - out.len())];
            self.read(from, chunk)?;
            match chunk.iter().position(|b| *b == 0) {
                Some(end) => {
                    out.extend_from_slice(&chunk[..end]);
                    return Ok(out);
                }
                None => out.extend_from_slice(chunk),
            }
        }
        Err(ReadError { at, len: limit, cause: Unreachable::NoEnd(limit) })
    }
}

/// A part of a range that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Bytes from the start of the range.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) cause: Unreachable,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::paging::tests::Builder;
    use super::*;

    const DIRECT: u64 = 0xffff_8880_0000_0000;
    const VMALLOC: u64 = 0xffff_c900_0000_0000;

    fn space(b: &Builder) -> AddressSpace {
        AddressSpace::new(Arc::new(b.mem.clone()), b.tables)
    }

    #[test]
    fn reads_cross_scattered_pages_and_stop_at_holes() {
        let mut b = Builder::new(false);
        b.map(Kva(VMALLOC), Gpa(0x5000), 12);
        b.map(Kva(VMALLOC + PAGE), Gpa(0x3000), 12);
        b.map(Kva(VMALLOC + 3 * PAGE), Gpa(0xdead_0000), 12);
        b.mem.write(Gpa(0x5ffe), b"ab");
        b.mem.write(Gpa(0x3000), b"cd\0");
        let s = space(&b);
        let mut buf = [0; 4];
        s.read(Kva(VMALLOC + 0xffe), &mut buf).unwrap();
        assert_eq!(&buf, b"abcd");
        assert_eq!(s.read_cstr(Kva(VMALLOC + 0xffe), 100).unwrap(), b"abcd");
        assert_eq!(
            s.read_cstr(Kva(VMALLOC + 0xffe), 4).unwrap_err().to_string(),
            "cannot read 4 bytes at 0xffffc90000000ffe: no end of the string within 4 bytes"
        );
        let mut long = [1; 0x3000];
        let err = s.read(Kva(VMALLOC), &mut long).unwrap_err();
        assert_eq!(
            err.to_string(),
            "cannot read 12288 bytes at 0xffffc90000000000: no page is mapped at 0xffffc90000002000"
        );
        assert_eq!(s.read_prefix(Kva(VMALLOC), &mut long), 0x2000);
        let err = s.read_u64(Kva(VMALLOC + 3 * PAGE)).unwrap_err();
        assert_eq!(
            err.to_string(),
            "cannot read 8 bytes at 0xffffc90000003000: \
             0xffffc90000003000 is mapped to 0xdead0000, which is not RAM"
        );
    }

    #[test]
    fn the_direct_map_is_believed_only_when_the_tables_agree() {
        let mut b = Builder::new(false);
        b.mem.write(Gpa(0), &[0; PAGE as usize]);
        b.map(Kva(DIRECT), Gpa(0), 30);
        b.map(Kva(DIRECT + (1 << 30)), Gpa(1 << 30), 30);
        let mut s = space(&b);
        assert!(!s.trust_direct_map(Kva(DIRECT + PAGE)));
        assert!(s.trust_direct_map(Kva(DIRECT)));
        assert_eq!(s.fast(Kva(DIRECT + 0x10), 8), Some(Gpa(0x10)));
        // Past the end of RAM the arithmetic ends.
        assert_eq!(s.fast(Kva(DIRECT + (4 << 30)), 8), None);
        let mut empty = Builder::new(false);
        empty.mem.write(Gpa(0), &[0; PAGE as usize]);
        assert!(!space(&empty).trust_direct_map(Kva(DIRECT)), "nothing is mapped at all");
    }

    #[test]
    fn the_image_is_believed_piece_by_piece() {
        let mut b = Builder::new(false);
        let at = START_KERNEL_MAP + 0x100_0000;
        b.map(Kva(at), Gpa(0x300_0000), 21);
        b.map(Kva(at + (1 << 21)), Gpa(0x320_0000), 21);
        b.map(Kva(at + (3 << 21)), Gpa(0x900_0000), 21);
        let mut s = space(&b);
        s.trust_image(Kva(at), Kva(at + (4 << 21)), 0x200_0000);
        assert_eq!(s.linear.len(), 1);
        assert_eq!(s.fast(Kva(at + 0x1000), 16), Some(Gpa(0x300_1000)));
        assert_eq!(s.fast(Kva(at + (2 << 21) - 8), 16), None, "runs over the end of the piece");
        assert_eq!(s.translate(Kva(at + (3 << 21))), Ok(Gpa(0x900_0000)), "by the tables");
    }
}
