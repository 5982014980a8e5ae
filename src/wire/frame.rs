//! Frames: messages to checksummed, numbered bytes and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{HEADER, MAX_PAYLOAD};

const MAGIC: [u8; 4] = *b"CRYO";

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
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Attach, FromGuest, Hello, Op, Patch, Request, VERSION};
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
                    first = decoder.message::<FromGuest>().unwrap();
                }
                if first.is_some() && second.is_none() {
                    second = decoder.message::<Request>().unwrap();
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
            let error = decoder.message::<FromGuest>().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            decoder.feed(&whole);
            assert_eq!(decoder.message::<FromGuest>().unwrap_err(), error);
        }
    }

    #[test]
    fn a_lost_frame_is_noticed() {
        let mut encoder = Encoder::default();
        let _lost = encoder.encode(&hello()).unwrap();
        let mut decoder = Decoder::default();
        decoder.feed(&encoder.encode(&hello()).unwrap());
        let error = decoder.message::<FromGuest>().unwrap_err();
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
            let first = decoder.message::<FromGuest>();
            let second = first.clone().and_then(|_| decoder.message::<Request>());
            // A longer announced length waits for more; everything else is an error. A damaged
            // frame never comes out as a message.
            prop_assert!(!matches!((&first, &second), (Ok(Some(_)), Ok(Some(_)))));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            let _ = decoder.message::<FromGuest>();
        }
    }
}
