//! The parsers above the wire: message framing and owed replies, the console's grammar, the
//! configuration, the user list, and what servers and clients say while they log in.

use ringbouncer::admin::Command;
use ringbouncer::auth::hba::{Arrival, Hba, HbaSources, IdentMaps};
use ringbouncer::auth::{
    AuthRequest, ClientExchange, Found, KdfCache, Login, LoginRequest, LoginStep, Method,
    ScramVerifier, ServerCredentials, ServerExchange, ServerLogin, UserList, Verifier,
};
use ringbouncer::base::Secret;
use ringbouncer::config::{Config, convert};
use ringbouncer::net::{Certificate, end_point_binding};
use ringbouncer::session::sql::{self, Command as Spoken};
use ringbouncer::session::{Fate, Kind, Replies};
use ringbouncer::wire::{Scanner, Step};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

const BODY_BYTES_MAX: usize = 1 << 20;
const OTHER_NAME: &[u8] = b"a \"name\"; of another";

/// The first byte says how the rest is cut; however it is cut, the messages are the same.
pub fn frame(data: &[u8]) {
    let Some((piece, stream)) = data.split_first() else {
        return;
    };
    let whole = messages(stream, stream.len().max(1));
    assert_eq!(whole, messages(stream, usize::from(*piece).max(1)));
}

/// Tags and bodies; the last may be cut, and the scan ends at the first impossible length.
fn messages(stream: &[u8], piece: usize) -> Vec<(u8, Vec<u8>)> {
    let mut scanner = Scanner::default();
    let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
    for bytes in stream.chunks(piece) {
        let mut at = 0;
        loop {
            match scanner.next(bytes, &mut at, BODY_BYTES_MAX) {
                Err(_) => return out,
                Ok(Step::End) => break,
                Ok(Step::Begin {
                    header,
                    range,
                    body,
                    ..
                }) => {
                    out.push((header.tag, bytes[body..range.end].to_vec()));
                }
                Ok(Step::More { range }) => {
                    if let Some((_, body)) = out.last_mut() {
                        body.extend_from_slice(&bytes[range]);
                    }
                }
            }
        }
    }
    out
}

/// Pairs of bytes: what the client does, what the server says. A server that is clean owes nothing.
pub fn replies(data: &[u8]) {
    let mut replies: Replies<u8> = Replies::default();
    for pair in data.chunks_exact(2) {
        let (action, tag) = (pair[0], pair[1]);
        let kinds = [
            Kind::Parse,
            Kind::Bind,
            Kind::Describe,
            Kind::Execute,
            Kind::Close,
            Kind::Sync,
            Kind::Query,
        ];
        let fate = match action >> 6 {
            0 | 1 => Fate::Forward,
            2 => Fate::Drop,
            _ => Fate::Fabricate,
        };
        match kinds.get(usize::from(action & 15)) {
            Some(kind) => replies.push(*kind, fate, Some(Box::new(action))),
            None if action & 15 == 7 => replies.copy_ended(),
            None => {}
        }
        while replies.pop_fabricated().is_some() {}
        if tag != 0 {
            if replies.reply(tag).is_err() {
                return;
            }
            if tag == b'Z' {
                replies.ready(b'I');
            }
            while replies.pop_fabricated().is_some() {}
        }
        assert!(!replies.is_clean() || replies.is_empty());
    }
}

/// SQL text behind a byte that says whether backslashes count: what is found stands in the text, in
/// order, and with another name written in its place the rest reads as before.
pub fn sql(data: &[u8]) {
    let Some((escapes, text)) = data.split_first() else {
        return;
    };
    let escapes = escapes & 1 == 1;
    let Some(commands) = sql::commands(text, escapes) else {
        return;
    };
    let (mut renamed, mut from) = (Vec::new(), 0);
    for command in commands.iter().flatten() {
        assert!(!command.name.is_empty() && command.name.len() < 64);
        assert!(from <= command.at.start && command.at.start < command.at.end);
        assert!(command.at.end <= command.end && command.end <= text.len());
        renamed.extend_from_slice(&text[from..command.at.start]);
        renamed.extend_from_slice(&sql::quoted(OTHER_NAME));
        from = command.at.end;
    }
    renamed.extend_from_slice(&text[from..]);
    let is_found = commands.iter().any(Option::is_some);
    assert!(!is_found || sql::may_concern(text));
    let again = sql::commands(&renamed, escapes).expect("what was understood stays so");
    let verbs = |command: &Option<Spoken>| command.as_ref().map(|command| command.verb);
    assert!(commands.iter().map(verbs).eq(again.iter().map(verbs)));
    let mut names = again.iter().flatten().map(|command| &command.name);
    assert!(names.all(|name| name == OTHER_NAME));
}

/// A console statement.
pub fn command(data: &[u8]) {
    let _ = Command::parse(data);
}

/// A configuration file.
pub fn config(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        let _ = Config::parse(text, Path::new("fuzz.toml"));
        pgbouncers_config(text);
    }
}

/// What PgBouncer's file says can be said in TOML, or it is told what cannot.
fn pgbouncers_config(text: &str) {
    let Ok(config) = Config::parse(text, Path::new("fuzz.ini")) else {
        return;
    };
    let converted = convert(&config, Path::new("/"));
    let back = Config::parse(&converted.toml, Path::new("fuzz.toml"));
    let is_told = |difference: &String| difference.starts_with("to be mended");
    match back {
        Ok(back) => assert_eq!(back.databases.len(), config.databases.len()),
        Err(_) => assert!(converted.differences.iter().any(is_told)),
    }
}

/// A user list, and each of its secrets.
pub fn userlist(data: &[u8]) {
    if let Ok(list) = UserList::parse(data) {
        for (_, secret) in list.into_users() {
            let _ = Verifier::parse(secret.expose());
        }
    }
}

/// An HBA file and, behind a line of a form feed, an ident file.
pub fn hba(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\x0c');
    let (rules, ident) = (parts.next().unwrap_or(&[]), parts.next().unwrap_or(&[]));
    let mut warnings = Vec::new();
    let maps = IdentMaps::parse(Path::new("ident"), ident, &mut warnings);
    if let Some(map) = maps.get("m") {
        let _ = map.allows("alice@example.net", "alice");
    }
    let sources = HbaSources {
        path: Path::new("dir/hba"),
        maps: &maps,
        machine: &[],
        read: &|path| match path.to_str() {
            Some("dir/f") => Ok(ident.to_vec()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        },
    };
    let hba = Hba::parse(rules, &sources, &mut warnings);
    for address in [None, Some([127, 0, 0, 1].into())] {
        for is_physical_replication in [false, true] {
            let arrival = Arrival {
                address,
                is_tls: false,
                database: "db",
                user: "alice",
                is_physical_replication,
            };
            // Whether a rule for certificates or peers lets somebody in is for the login to say: it asks the connection.
            let _ = hba.decide(&arrival);
        }
    }
}

/// Both sides of SCRAM, message by message: neither takes junk for proof.
pub fn scram(data: &[u8]) {
    let mut kdf = KdfCache::new([7; 32], NonZeroUsize::MIN);
    let verifier = ScramVerifier::from_password(b"correct horse", b"salt", 1, &mut kdf);
    let mut server = ServerExchange::new(verifier, true, "servernonce");
    let mut messages = bodies(data);
    if let Some(first) = messages.next()
        && server.client_first(false, first).is_ok()
        && let Some(last) = messages.next()
    {
        assert!(
            server.client_final(last).is_err(),
            "a proof without the secret"
        );
    }
    let Ok(mut client) = ClientExchange::new("clientnonce") else {
        return;
    };
    let mut messages = bodies(data);
    let Some(Ok(wanted)) = messages.next().map(|first| client.server_first(first)) else {
        return;
    };
    if wanted.iterations > 1000 {
        return;
    }
    let keys = kdf.keys(b"correct horse", &wanted.salt, wanted.iterations);
    if client.client_final(&keys).is_ok()
        && let Some(last) = messages.next()
    {
        assert!(
            client.server_final(last).is_err(),
            "a server that does not know the secret"
        );
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Verifier::parse(text.as_bytes());
    }
}

/// Messages of a peer that logs in, or is logged in to, each behind a length byte: none gets in
/// without the secret.
pub fn login(data: &[u8]) {
    let mut kdf = KdfCache::new([7; 32], NonZeroUsize::MIN);
    let verifier = Verifier::Plain(Secret::new("correct horse"));
    let channel: Arc<[u8]> = Arc::from([1; 32]);
    for method in [Method::Plain, Method::Md5, Method::ScramSha256] {
        let request = LoginRequest {
            channel: Some(&channel),
            method,
            user: "user",
            found: Found::Secret(&verifier),
            mostly_scram: false,
            process_secret: &[3; 32],
            scram_iterations: 1,
            md5_salt: [1, 2, 3, 4],
            scram_nonce: [5; 18],
        };
        let Ok((mut login, _)) = Login::start(&request) else {
            return;
        };
        for body in bodies(data) {
            let mut step = login.answer(body, &mut kdf);
            while matches!(step, Ok(LoginStep::Stretch)) {
                step = login.stretch(&mut kdf, 100);
            }
            match step {
                Ok(LoginStep::Accepted(_)) => {
                    assert!(
                        contains(body, b"correct horse"),
                        "got in without the secret"
                    );
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    let credentials = ServerCredentials::Password(Secret::new("correct horse"));
    let mut login = ServerLogin::new("user", credentials, [5; 18]);
    for body in bodies(data) {
        let answered = AuthRequest::parse(body).and_then(|request| login.answer(request, &mut kdf));
        if answered.is_err() {
            break;
        }
    }
}

/// What a peer shows as its certificate: read or refused, and the hash of what is read is a hash.
pub fn certificate(data: &[u8]) {
    let certificate = Certificate::parse(data);
    let binding = end_point_binding(data);
    if let Some(certificate) = certificate {
        assert_eq!(certificate.der, data);
        let name = certificate.common_name.unwrap_or_default();
        assert!(!name.contains('\0'));
        assert!(binding.is_none_or(|hash| [32, 48, 64].contains(&hash.len())));
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn bodies(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first()?;
        let (body, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        Some(body)
    })
}
