//! As much of the protocol as a load test needs (PostgreSQL, "Message Formats"). Peers here are trusted: a broken stream ends
//! the run with an error, not more.

/// Asks whether the server speaks TLS.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const PROTOCOL_3_0: u32 = 3 << 16;

/// Appends one message.
pub fn message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}

/// Appends a start-up packet.
pub fn startup(out: &mut Vec<u8>, user: &str, database: &str) {
    let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(&body);
}

/// The length of the packet without a tag that `data` begins with, once it is there whole.
pub fn packet(data: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(*data.first_chunk()?) as usize;
    (length >= 4 && length <= data.len()).then_some(length)
}

/// The tag, body and length of the message that `data` begins with, once it is there whole.
pub fn frame(data: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (tag, rest) = data.split_first()?;
    let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
    Some((*tag, rest.get(4..length)?, length + 1))
}

/// The human-readable text in the body of an ErrorResponse.
pub fn error_text(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or(b"error without a text")).into_owned()
}

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One Query.
    Simple,
    /// Parse, Bind, Describe, Execute, Sync; nothing is kept.
    Extended,
    /// A named statement: Parse once, then Bind, Describe, Execute, Sync.
    Prepared,
}

const STATEMENT: &[u8] = b"swarm\0";

/// What a client sends for one transaction.
pub fn request(protocol: Protocol, query: &str) -> Vec<u8> {
    let mut out = Vec::new();
    match protocol {
        Protocol::Simple => message(&mut out, b'Q', &[query.as_bytes(), b"\0"].concat()),
        Protocol::Extended => {
            message(
                &mut out,
                b'P',
                &[b"\0", query.as_bytes(), b"\0\0\0"].concat(),
            );
            execute(&mut out, b"\0");
        }
        Protocol::Prepared => execute(&mut out, STATEMENT),
    }
    out
}

/// What a client sends once, before its first [`Protocol::Prepared`] request; answered with one ReadyForQuery.
pub fn preparation(query: &str) -> Vec<u8> {
    let mut out = Vec::new();
    message(
        &mut out,
        b'P',
        &[STATEMENT, query.as_bytes(), b"\0\0\0"].concat(),
    );
    message(&mut out, b'S', b"");
    out
}

fn execute(out: &mut Vec<u8>, statement: &[u8]) {
    // No parameters, results in text.
    message(out, b'B', &[b"\0", statement, &[0; 6]].concat());
    message(out, b'D', b"P\0");
    message(out, b'E', b"\0\0\0\0\0");
    message(out, b'S', b"");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_seen_once_it_is_whole() {
        let mut out = Vec::new();
        message(&mut out, b'Q', b"SELECT 1\0");
        assert_eq!(frame(&out), Some((b'Q', &b"SELECT 1\0"[..], 14)));
        for length in 0..out.len() {
            assert_eq!(frame(&out[..length]), None);
        }
    }

    #[test]
    fn a_startup_packet_tells_its_length() {
        let mut out = Vec::new();
        startup(&mut out, "alice", "shop");
        assert_eq!(packet(&out), Some(out.len()));
        assert_eq!(packet(&out[..out.len() - 1]), None);
    }

    #[test]
    fn an_error_tells_its_message() {
        assert_eq!(error_text(b"SFATAL\0C53300\0Mfull\0\0"), "full");
    }
}
