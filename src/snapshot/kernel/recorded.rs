//! Stacks that programs have put into maps of stacks (kernel/bpf/stackmap.c).

use super::super::contents::Detail;
use super::super::entry::Entry;
use super::super::error::SnapshotResult;
use super::stack::{Frame, Stack};
use super::unwind::StackEnd;

/// `BPF_F_STACK_BUILD_ID`: frames are places in files where those are known.
const BUILD_ID: u32 = 1 << 5;
/// `BPF_STACK_BUILD_ID_VALID`: this one is.
const VALID: u32 = 1;
/// The lowest address of the kernel's half.
const KERNEL: u64 = 1 << 63;

/// A frame as the map has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded<'a> {
    Address(u64),
    /// A place in the file with a build id.
    InFile(&'a [u8], u64),
}

impl<'a> Recorded<'a> {
    /// From the bytes of an address or of a `struct bpf_stack_build_id`.
    fn new(raw: &'a [u8]) -> Self {
        let (head, last) = raw.split_at(raw.len().saturating_sub(8));
        let place = last.try_into().map(u64::from_le_bytes).unwrap_or_default();
        match head.split_at_checked(4) {
            Some((status, id)) if status == VALID.to_le_bytes() => Recorded::InFile(id, place),
            _ => Recorded::Address(place),
        }
    }
}

impl Entry {
    /// The stack that this entry of a map of stacks is. A frame in a file is told by the file's
    /// build id, in hexadecimal, and its address is the place in that file; user space has no other
    /// names.
    ///
    /// # Errors
    /// [`SnapshotError::TypeMismatch`](super::super::SnapshotError::TypeMismatch) in maps of other
    /// kinds; those of [`Entry::value`] and of
    /// [`Snapshot::symbol`](super::super::Snapshot::symbol).
    pub fn stack(&self) -> SnapshotResult<Stack> {
        self.of_kind(&["stack_trace"], "a map of stacks")?;
        let size = if self.map().attrs().flags & BUILD_ID != 0 { 32 } else { 8 };
        let bytes = self.value()?.bytes()?.into_owned();
        let room = bytes.len() / size;
        let count = self.details().iter().find_map(|fact| match fact {
            (name, Detail::Number(n)) if name == "nr" => usize::try_from(*n).ok(),
            _ => None,
        });
        let mut frames = Vec::new();
        for (i, raw) in bytes.chunks_exact(size).take(count.unwrap_or(room)).enumerate() {
            frames.push(self.frame(i, Recorded::new(raw))?);
        }
        let end = match frames.len() < room {
            true => StackEnd::Bottom,
            false => StackEnd::Cut(format!("the map keeps {room} frames")),
        };
        Ok(Stack { frames, end })
    }

    fn frame(&self, i: usize, recorded: Recorded<'_>) -> SnapshotResult<Frame> {
        let (address, symbol) = match recorded {
            Recorded::InFile(id, offset) => {
                let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                (offset, Some(format!("{id}+{offset:#x}")))
            }
            Recorded::Address(address) if address < KERNEL => (address, None),
            Recorded::Address(address) => {
                // All but the first are where a call returns to, which may be behind its function.
                let back = u64::from(i > 0);
                (address, self.map().snapshot().symbol_before(address, back)?)
            }
        };
        Ok(Frame { address, symbol })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::testing::{Object, Rows, bytes, meta};
    use crate::snapshot::{KeyArg, Snapshot};

    /// A map of one stack of these bytes, which claims so many frames.
    fn stack(kind: &str, flags: u32, value: Vec<u8>, nr: Option<u64>) -> SnapshotResult<Stack> {
        let details = nr.map(|nr| ("nr".to_owned(), Detail::Number(nr)));
        let rows = Rows {
            keys: Some(vec![bytes![7u32]]),
            values: vec![value],
            row_details: vec![(0, details.into_iter().collect())],
            ..Rows::default()
        };
        let mut object = Object { btf: None, maps: Vec::new() };
        object.map("stacks", kind, (0, 0), rows).maps[0].attrs.flags = flags;
        let snapshot: Arc<Snapshot> = Snapshot::new(meta("end"), object.maps, Vec::new());
        snapshot.map("stacks")?.get(&KeyArg::Bytes(bytes![7u32]))?.stack()
    }

    #[test]
    fn frames_of_user_space_are_addresses() {
        let value = bytes![0x1000u64, 0x2000u64, 0u64, 0u64];
        let found = stack("stack_trace", 0, value.clone(), Some(2)).unwrap();
        assert_eq!(found.to_string(), "0x1000\n0x2000\n<the end of the stack>");
        for (nr, len) in [(Some(0), 0), (Some(4), 4), (Some(u64::MAX), 4), (None, 4)] {
            let found = stack("stack_trace", 0, value.clone(), nr).unwrap();
            assert_eq!((found.frames.len(), found.is_complete()), (len, len < 4), "{nr:?}");
        }
        assert_eq!(found.ending(), "the end of the stack");
        let full = stack("stack_trace", 0, value, Some(4)).unwrap();
        assert_eq!(full.ending(), "the map keeps 4 frames");
    }

    #[test]
    fn frames_in_files_are_told_by_the_files_build_ids() {
        let frame = |status: u32, id: u8, place: u64| {
            [&bytes![status][..], &[id; 20], &bytes![place]].concat()
        };
        let value = [frame(1, 0xab, 0x1234), frame(2, 0, 0x5000), frame(0, 0, 0)].concat();
        let found = stack("stack_trace", BUILD_ID, value, Some(2)).unwrap();
        let id = "ab".repeat(20);
        assert_eq!(found.to_string(), format!("{id}+0x1234\n0x5000\n<the end of the stack>"));
        assert_eq!(found.frames[0].address, 0x1234);
    }

    #[test]
    fn what_is_no_stack_is_refused() {
        assert_eq!(
            stack("hash", 0, bytes![1u64], None).unwrap_err().to_string(),
            "expected an entry of a map of stacks, found one of \"stacks\", which is of kind hash"
        );
        // Bytes that are no whole frames are none.
        assert_eq!(stack("stack_trace", BUILD_ID, vec![1; 31], None).unwrap().frames, []);
        assert_eq!(stack("stack_trace", 0, vec![1; 7], Some(9)).unwrap().frames, []);
    }
}
