//! Gathers a client's messages whole, from pieces of any size.

use crate::wire::{BadHeader, Scanner, Step};

/// Longest body of a message to the console: commands are short.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Vec<u8>,
}

/// What has been received and not been taken yet.
#[derive(Debug, Default)]
pub(super) struct Messages {
    scanner: Scanner,
    received: Vec<u8>,
    /// Bytes of `received` that have been scanned.
    at: usize,
    tag: u8,
    body: Vec<u8>,
}

impl Messages {
    /// Adds received bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.received.drain(..self.at);
        self.at = 0;
        self.received.extend_from_slice(bytes);
    }

    /// The next message; `None` if it has not come whole yet.
    ///
    /// # Errors
    /// [`BadHeader`] if its length is impossible or too large; nothing can be read any more then.
    pub(super) fn next(&mut self) -> Result<Option<Message>, BadHeader> {
        loop {
            let step = self
                .scanner
                .next(&self.received, &mut self.at, BODY_BYTES_MAX)?;
            let part = match step {
                Step::End => return Ok(None),
                Step::More { range } => range,
                Step::Begin {
                    header,
                    range,
                    body,
                    ..
                } => {
                    self.tag = header.tag;
                    body..range.end
                }
            };
            self.body
                .extend_from_slice(self.received.get(part).unwrap_or_default());
            if self.scanner.rest() == 0 {
                let (tag, body) = (self.tag, std::mem::take(&mut self.body));
                return Ok(Some(Message { tag, body }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frontend;

    fn gathered(stream: &[u8], piece: usize) -> Vec<Message> {
        let mut messages = Messages::default();
        let mut all = Vec::new();
        for piece in stream.chunks(piece) {
            messages.feed(piece);
            while let Some(message) = messages.next().unwrap() {
                all.push(message);
            }
        }
        all
    }

    #[test]
    fn messages_are_the_same_in_pieces_of_any_size() {
        let mut stream = Vec::new();
        frontend::query(&mut stream, b"SHOW POOLS");
        frontend::sync(&mut stream);
        frontend::query(&mut stream, b"RELOAD");
        let message = |tag, body: &[u8]| Message {
            tag,
            body: body.to_vec(),
        };
        let expected = [
            message(b'Q', b"SHOW POOLS\0"),
            message(b'S', b""),
            message(b'Q', b"RELOAD\0"),
        ];
        for piece in 1..=stream.len() {
            assert_eq!(gathered(&stream, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn truncated_message_does_not_come_out() {
        let mut stream = Vec::new();
        frontend::query(&mut stream, b"SHOW POOLS");
        for cut in 0..stream.len() {
            let mut messages = Messages::default();
            messages.feed(&stream[..cut]);
            assert_eq!(messages.next(), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn larger_than_the_limit_is_refused_by_its_header() {
        let verdict = |body_bytes: usize| {
            let mut messages = Messages::default();
            let length = u32::try_from(body_bytes + 4).unwrap();
            messages.feed(&[&b"Q"[..], &length.to_be_bytes()].concat());
            messages.next()
        };
        assert_eq!(verdict(BODY_BYTES_MAX), Ok(None));
        assert!(verdict(BODY_BYTES_MAX + 1).is_err());
        assert!(verdict(0x7fff_fff0).is_err());
    }
}
