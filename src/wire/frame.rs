//! Header scan of a byte stream of messages: tag, length, and where bodies begin and end. Only
//! headers are looked at; bodies may be longer than any buffer.
//!
//! A message is one tag byte, an `Int32` length that counts itself but not the tag, and the body
//! (PostgreSQL protocol, "Messages"). A header that is cut off by the end of the bytes at hand is
//! kept inside the scanner and comes out whole with the next bytes, so that nobody ever has to
//! decide about a message whose tag he has sent on without knowing its length.

use std::ops::Range;

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 5;

/// Bytes of the length in it, which counts itself.
pub const LENGTH_BYTES: usize = 4;

/// The header of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's tag.
    pub tag: u8,
    /// Bytes of the body that follows the header.
    pub body_bytes: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// If the length cannot be true, or the body is longer than `body_bytes_max`.
    pub fn parse(bytes: [u8; HEADER_BYTES], body_bytes_max: usize) -> Result<Header, BadHeader> {
        let [tag, a, b, c, d] = bytes;
        // The length is an Int32: one with its top bit set is negative.
        let length = i32::from_be_bytes([a, b, c, d]);
        match usize::try_from(length.wrapping_sub(4)) {
            Ok(body_bytes) if length >= 4 && body_bytes <= body_bytes_max => {
                Ok(Header { tag, body_bytes })
            }
            _ => Err(BadHeader(bytes)),
        }
    }
}

impl From<Header> for BadHeader {
    fn from(header: Header) -> BadHeader {
        let length = u32::try_from(header.body_bytes + LENGTH_BYTES).unwrap_or(u32::MAX);
        let [a, b, c, d] = length.to_be_bytes();
        BadHeader([header.tag, a, b, c, d])
    }
}

/// A header whose length cannot be true, or exceeds the bound. Displays as PgBouncer words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad packet header: '{}'", hex(.0))]
pub struct BadHeader(pub [u8; HEADER_BYTES]);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One step of a scan. Ranges refer to the bytes given to [`Scanner::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A message begins: its header, whether the header came out of the scanner's memory (`held`:
    /// then the first bytes of it are not in the range) and as much of the body as there is.
    Begin {
        /// The header.
        header: Header,
        /// Where the message, as far as it is at hand, begins and ends; starts with the header
        /// unless `held`.
        range: Range<usize>,
        /// Where the body begins.
        body: usize,
        /// Part of the header was kept from earlier bytes.
        held: bool,
    },
    /// More of the body of the message begun earlier.
    More {
        /// Where.
        range: Range<usize>,
    },
    /// Nothing more is at hand.
    End,
}

/// Scans a stream of messages, given piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    header: [u8; HEADER_BYTES],
    held: u8,
    /// Body bytes of the current message that have not come yet.
    rest: usize,
}

impl Scanner {
    /// Whether the scan stands between two messages.
    pub fn at_boundary(&self) -> bool {
        self.rest == 0 && self.held == 0
    }

    /// Body bytes of the current message still to come.
    pub fn rest(&self) -> usize {
        self.rest
    }

    /// The next step in `bytes` from `at` on; `at` moves behind what the step covers.
    ///
    /// # Errors
    /// [`BadHeader`]; the stream cannot be followed any further then.
    #[inline]
    pub fn next(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        body_bytes_max: usize,
    ) -> Result<Step, BadHeader> {
        let start = *at;
        let left = bytes.get(start..).unwrap_or_default();
        if self.rest > 0 {
            let len = self.rest.min(left.len());
            if len == 0 {
                return Ok(Step::End);
            }
            self.rest -= len;
            *at = start + len;
            return Ok(Step::More { range: start..*at });
        }
        let missing = HEADER_BYTES - self.held as usize;
        if left.len() < missing {
            self.hold(left);
            *at = bytes.len();
            return Ok(Step::End);
        }
        let held = self.held > 0;
        self.hold(&left[..missing]);
        self.held = 0;
        let header = Header::parse(self.header, body_bytes_max)?;
        let body = start + missing;
        let len = header.body_bytes.min(bytes.len() - body);
        self.rest = header.body_bytes - len;
        *at = body + len;
        Ok(Step::Begin {
            header,
            range: start..*at,
            body,
            held,
        })
    }

    /// The current header as it stood on the wire; valid after [`Step::Begin`].
    pub fn header_bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    fn hold(&mut self, bytes: &[u8]) {
        let from = self.held as usize;
        self.header[from..from + bytes.len()].copy_from_slice(bytes);
        self.held += bytes.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    /// Tags and bodies that come out when `stream` is cut into pieces of `piece` bytes.
    fn scan(stream: &[u8], piece: usize) -> Vec<(u8, Vec<u8>)> {
        let mut scanner = Scanner::default();
        let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
        for bytes in stream.chunks(piece) {
            let mut at = 0;
            loop {
                match scanner.next(bytes, &mut at, MAX).unwrap() {
                    Step::Begin {
                        header,
                        range,
                        body,
                        held,
                    } => {
                        assert_eq!(held, body - range.start < HEADER_BYTES);
                        out.push((header.tag, bytes[body..range.end].to_vec()));
                    }
                    Step::More { range } => {
                        out.last_mut().unwrap().1.extend_from_slice(&bytes[range]);
                    }
                    Step::End => break,
                }
            }
            assert_eq!(at, bytes.len());
        }
        assert!(scanner.at_boundary());
        out
    }

    #[test]
    fn every_way_to_cut_a_stream_gives_the_same_messages() {
        let long: Vec<u8> = (0..200).collect();
        let messages = [
            (b'Q', &b"select 1\0"[..]),
            (b'S', b""),
            (b'd', &long),
            (b'H', b""),
            (b'Z', b"I"),
        ];
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|(tag, body)| message(*tag, body))
            .collect();
        let expected: Vec<_> = messages
            .iter()
            .map(|(tag, body)| (*tag, body.to_vec()))
            .collect();
        for piece in 1..=stream.len() {
            assert_eq!(scan(&stream, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 1, 3, 1 << 31, (1 << 31) + 3, (1 << 31) + 4, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            let result = Scanner::default().next(&bytes, &mut 0, usize::MAX);
            assert!(result.is_err(), "length {length}");
        }
        let too_long = Header::parse([b'd', 0, 0x10, 0, 5], MAX);
        assert!(too_long.is_err());
    }

    #[test]
    fn the_largest_body_allowed_is_accepted() {
        let header = Header::parse([b'd', 0, 0x10, 0, 4], MAX).unwrap();
        assert_eq!(header.body_bytes, MAX);
    }

    #[test]
    fn bad_header_reads_like_pgbouncers() {
        let error = Header::parse([0x51, 0xff, 0xff, 0xff, 0xff], MAX).unwrap_err();
        assert_eq!(error.to_string(), "bad packet header: '51ffffffff'");
    }
}
