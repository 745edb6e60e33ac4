//! Messages as bytes, both directions, and a reader for what comes back.

use std::collections::BTreeMap;

pub const PROTOCOL_3_0: u32 = 0x0003_0000;
pub const PROTOCOL_3_2: u32 = 0x0003_0002;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// A message with its tag and length.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    with_length(tag, body, body.len() as i32 + 4)
}

/// A message whose length word lies.
pub fn with_length(tag: u8, body: &[u8], length: i32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), b"\0"].concat()
}

fn untagged(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

pub fn startup(version: u32, params: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in params {
        body.extend([text(name), text(value)].concat());
    }
    body.push(0);
    untagged(&body)
}

pub fn ssl_request() -> Vec<u8> {
    untagged(&SSL_REQUEST.to_be_bytes())
}

pub fn gssenc_request() -> Vec<u8> {
    untagged(&GSSENC_REQUEST.to_be_bytes())
}

pub fn cancel_request(pid: u32, secret: &[u8]) -> Vec<u8> {
    untagged(
        &[
            &CANCEL_REQUEST.to_be_bytes()[..],
            &pid.to_be_bytes(),
            secret,
        ]
        .concat(),
    )
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &text(sql))
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[text(name), text(sql), vec![0, 0]].concat())
}

/// Bind of text parameters, results as text.
pub fn bind(portal: &str, statement: &str, params: &[&str]) -> Vec<u8> {
    let mut body = [text(portal), text(statement), vec![0, 0]].concat();
    body.extend((params.len() as u16).to_be_bytes());
    for param in params {
        body.extend((param.len() as u32).to_be_bytes());
        body.extend(param.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// Describe of a statement (`b'S'`) or a portal (`b'P'`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[vec![kind], text(name)].concat())
}

/// Close of a statement (`b'S'`) or a portal (`b'P'`).
pub fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[vec![kind], text(name)].concat())
}

pub fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    message(
        b'E',
        &[text(portal), rows_max.to_be_bytes().to_vec()].concat(),
    )
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

pub fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &text(reason))
}

/// Parse, Bind, Describe, Execute, Sync of the unnamed statement.
pub fn extended(sql: &str, params: &[&str]) -> Vec<u8> {
    let portal = [describe(b'P', ""), execute("", 0), sync()].concat();
    [parse("", sql), bind("", "", params), portal].concat()
}

/// Bind, Execute of a statement parsed earlier.
pub fn run_prepared(statement: &str, params: &[&str]) -> Vec<u8> {
    [bind("", statement, params), execute("", 0)].concat()
}

// Server messages, for the scripted server.

pub fn authentication_ok() -> Vec<u8> {
    message(b'R', &0u32.to_be_bytes())
}

pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', &[text(name), text(value)].concat())
}

pub fn backend_key(pid: u32, secret: u32) -> Vec<u8> {
    message(b'K', &[pid.to_be_bytes(), secret.to_be_bytes()].concat())
}

pub fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

pub fn complete(tag: &str) -> Vec<u8> {
    message(b'C', &text(tag))
}

/// RowDescription of one text column.
pub fn one_column(name: &str) -> Vec<u8> {
    let column = [
        &[0; 6][..],
        &25u32.to_be_bytes(),
        &[255, 255],
        &[255; 4],
        &[0, 0],
    ]
    .concat();
    message(b'T', &[vec![0, 1], text(name), column].concat())
}

/// DataRow of one text column.
pub fn one_value(value: &str) -> Vec<u8> {
    message(
        b'D',
        &[
            &[0, 1][..],
            &(value.len() as u32).to_be_bytes(),
            value.as_bytes(),
        ]
        .concat(),
    )
}

/// ErrorResponse with the given fields: `[(b'S', "ERROR"), (b'C', "22012"), ..]`.
pub fn error(fields: &[(u8, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (code, value) in fields {
        body.push(*code);
        body.extend(text(value));
    }
    body.push(0);
    message(b'E', &body)
}

/// One message as it arrived.
#[derive(Clone, Debug)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// The zero-terminated strings of the body from `from` on.
    pub fn strings(&self, from: usize) -> Vec<String> {
        let parts = self.body[from..].split(|byte| *byte == 0);
        parts
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    /// The columns of a DataRow; `None` is NULL. Panics at a row that is not whole.
    pub fn values(&self) -> Vec<Option<String>> {
        let count = u16::from_be_bytes(self.body[..2].try_into().unwrap());
        let mut at = 2;
        let values = (0..count).map(|_| {
            let length = self.u32_at(at) as i32;
            let start = at + 4;
            at = start + length.max(0) as usize;
            let value = self
                .body
                .get(start..at)
                .unwrap_or_else(|| panic!("broken row {:?}", self.body));
            (length >= 0).then(|| String::from_utf8_lossy(value).into_owned())
        });
        values.collect()
    }

    /// The names of a RowDescription, and the object ids of their types.
    pub fn columns(&self) -> Vec<(String, u32)> {
        let count = u16::from_be_bytes(self.body[..2].try_into().unwrap());
        let mut at = 2;
        let mut names = Vec::new();
        for _ in 0..count {
            let end = at + self.body[at..].iter().position(|byte| *byte == 0).unwrap();
            let name = String::from_utf8_lossy(&self.body[at..end]).into_owned();
            names.push((name, self.u32_at(end + 7)));
            at = end + 19;
        }
        names
    }

    /// The fields of an ErrorResponse or NoticeResponse.
    pub fn failure(&self) -> Failure {
        let parts = self.strings(0).into_iter().filter(|part| !part.is_empty());
        let mut fields: BTreeMap<char, String> = parts
            .map(|part| (part.chars().next().unwrap(), part.chars().skip(1).collect()))
            .collect();
        let mut take = |code| fields.remove(&code).unwrap_or_default();
        Failure {
            severity: take('S'),
            code: take('C'),
            text: take('M'),
            detail: take('D'),
        }
    }
}

/// What an ErrorResponse says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    pub severity: String,
    pub code: String,
    pub text: String,
    pub detail: String,
}
