//! The grammar of SCRAM messages (RFC 5802 section 7) and of the SASL messages around them.
//! Attributes are read as bytes, in order; nothing is copied.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::auth::ScramError;

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";

/// The mechanism with channel binding, over TLS alone.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The GS2 header of a client that binds to the channel, by the one type of binding there is
/// (RFC 5929, section 4).
pub(super) const GS2_BOUND: &[u8] = b"p=tls-server-end-point,,";

/// Longest nonce taken from a peer, in bytes; PostgreSQL's has 24, a combined one 48.
pub const NONCE_BYTES_MAX: usize = 1024;

/// Longest salt taken from a server, in bytes after base64; PostgreSQL's has 16.
pub const SALT_BYTES_MAX: usize = 1024;

/// Highest iteration count taken from a server, PgBouncer's (CVE-2026-6669): a good second of work, cut into slices.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// Random bytes behind one of our nonces (PostgreSQL: SCRAM_RAW_NONCE_LEN).
pub const NONCE_RANDOM_BYTES: usize = 18;

/// A nonce as text: printable and without a comma, because it is base64.
pub fn nonce_text(random: &[u8; NONCE_RANDOM_BYTES]) -> String {
    encode(random)
}

/// What the first character of client-first says about channel binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gs2Flag {
    /// `n`: the client does not support it.
    Unsupported,
    /// `y`: the client does, but believes that the server does not.
    Unoffered,
    /// `p=tls-server-end-point`: the client does it.
    Bound,
}

impl Gs2Flag {
    /// What `c=` must repeat: base64 of the header (`n,,` or `y,,`), with the `channel`'s data behind it
    /// if the client binds to it.
    pub(super) fn binding(self, channel: &[u8]) -> String {
        match self {
            Gs2Flag::Unsupported => encode(b"n,,"),
            Gs2Flag::Unoffered => encode(b"y,,"),
            Gs2Flag::Bound => encode(&[GS2_BOUND, channel].concat()),
        }
    }
}

/// `n,,n=user,r=nonce[,extensions]`
#[derive(Debug)]
pub(super) struct ClientFirst<'a> {
    pub(super) flag: Gs2Flag,
    pub(super) nonce: &'a [u8],
    /// The message without its GS2 header: part of what is signed.
    pub(super) bare: &'a [u8],
}

impl<'a> ClientFirst<'a> {
    /// The user name in it is ignored, as in PostgreSQL: the start-up packet's counts.
    pub(super) fn parse(data: &'a [u8]) -> Result<ClientFirst<'a>, ScramError> {
        let malformed = ScramError::Malformed("client-first");
        let (flag, rest) = split_comma(data).ok_or(malformed)?;
        let (authorization_id, bare) = split_comma(rest).ok_or(malformed)?;
        let flag = match flag {
            b"n" => Gs2Flag::Unsupported,
            b"y" => Gs2Flag::Unoffered,
            b"p=tls-server-end-point" => Gs2Flag::Bound,
            [b'p', b'=', ..] => return Err(ScramError::ChannelBinding),
            _ => return Err(malformed),
        };
        match authorization_id {
            b"" => {}
            [b'a', b'=', ..] => return Err(ScramError::AuthorizationId),
            _ => return Err(malformed),
        }
        let mut attributes = Attributes::new(bare, malformed);
        attributes.expect(b'n')?;
        let nonce = checked_nonce(attributes.expect(b'r')?)?;
        attributes.skip_extensions()?;
        Ok(ClientFirst { flag, nonce, bare })
    }
}

/// `r=nonce,s=salt,i=iterations[,extensions]`
#[derive(Debug)]
pub(super) struct ServerFirst<'a> {
    pub(super) nonce: &'a [u8],
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
}

impl<'a> ServerFirst<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<ServerFirst<'a>, ScramError> {
        let mut attributes = Attributes::new(data, ScramError::Malformed("server-first"));
        let nonce = checked_nonce(attributes.expect(b'r')?)?;
        let salt = checked_salt(attributes.expect(b's')?)?;
        let iterations = checked_iterations(attributes.expect(b'i')?)?;
        attributes.skip_extensions()?;
        Ok(ServerFirst {
            nonce,
            salt,
            iterations,
        })
    }
}

/// `c=binding,r=nonce[,extensions],p=proof`
#[derive(Debug)]
pub(super) struct ClientFinal<'a> {
    pub(super) binding: &'a [u8],
    pub(super) nonce: &'a [u8],
    pub(super) proof: [u8; 32],
    /// The message up to the comma before `p=`: part of what is signed.
    pub(super) without_proof: &'a [u8],
}

impl<'a> ClientFinal<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Result<ClientFinal<'a>, ScramError> {
        let malformed = ScramError::Malformed("client-final");
        let comma = data.iter().rposition(|&b| b == b',').ok_or(malformed)?;
        let (without_proof, last) = data.split_at_checked(comma).ok_or(malformed)?;
        let proof = last
            .strip_prefix(b",p=")
            .and_then(decode_key)
            .ok_or(malformed)?;
        let mut attributes = Attributes::new(without_proof, malformed);
        let binding = attributes.expect(b'c')?;
        let nonce = attributes.expect(b'r')?;
        attributes.skip_extensions()?;
        Ok(ClientFinal {
            binding,
            nonce,
            proof,
            without_proof,
        })
    }
}

/// The signature in `v=signature[,extensions]`; an error for `e=`.
pub(super) fn parse_server_final(data: &[u8]) -> Result<[u8; 32], ScramError> {
    let malformed = ScramError::Malformed("server-final");
    if data.starts_with(b"e=") {
        return Err(ScramError::ServerRefused);
    }
    let mut attributes = Attributes::new(data, malformed);
    let signature = decode_key(attributes.expect(b'v')?).ok_or(malformed)?;
    attributes.skip_extensions()?;
    Ok(signature)
}

/// Whether a client picked the mechanism with channel binding, and its first message.
pub(in crate::auth) type InitialResponse<'a> = (bool, &'a [u8]);

/// The client-first message inside a SASLInitialResponse body: mechanism, zero byte, length,
/// that many bytes and nothing after them.
pub(in crate::auth) fn parse_initial_response(
    body: &[u8],
) -> Result<InitialResponse<'_>, ScramError> {
    let malformed = ScramError::Malformed("initial-response");
    let mut halves = body.splitn(2, |&b| b == 0);
    let (mechanism, rest) = halves.next().zip(halves.next()).ok_or(malformed)?;
    let is_plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
    if !is_plus && mechanism != SCRAM_SHA_256.as_bytes() {
        return Err(ScramError::Mechanism);
    }
    let (length, data) = rest.split_first_chunk::<4>().ok_or(malformed)?;
    match i32::from_be_bytes(*length) {
        -1 => Err(ScramError::NoInitialResponse),
        length if usize::try_from(length) == Ok(data.len()) => Ok((is_plus, data)),
        _ => Err(malformed),
    }
}

/// The body of a SASLInitialResponse that picks `mechanism`. `None` if `data` is too long for the
/// protocol.
pub(in crate::auth) fn initial_response(mechanism: &str, data: &[u8]) -> Option<Vec<u8>> {
    let length = i32::try_from(data.len()).ok()?;
    let mut body = Vec::with_capacity(mechanism.len().saturating_add(5 + data.len()));
    body.extend_from_slice(mechanism.as_bytes());
    body.push(0);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(data);
    Some(body)
}

/// The message that both sides sign, in parts: client-first-bare, server-first,
/// client-final-without-proof, with commas between.
pub(super) fn auth_message<'a>(
    client_first_bare: &'a [u8],
    server_first: &'a [u8],
    client_final_without_proof: &'a [u8],
) -> [&'a [u8]; 5] {
    [
        client_first_bare,
        b",",
        server_first,
        b",",
        client_final_without_proof,
    ]
}

/// Base64 as PostgreSQL writes it: standard alphabet, padded.
pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Strict base64: one text per value, so no other text authenticates.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A key, a proof or a signature: base64 of exactly 32 bytes.
pub(super) fn decode_key(text: &[u8]) -> Option<[u8; 32]> {
    decode(text)?.try_into().ok()
}

/// Decimal digits only (no sign, no blanks) that fit a `u32`.
pub(super) fn parse_number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

/// RFC 5802: `printable`, any ASCII but controls, blank, DEL and comma.
pub(super) fn is_nonce(text: &[u8]) -> bool {
    let printable = |b: &u8| b.is_ascii_graphic() && *b != b',';
    !text.is_empty() && text.len() <= NONCE_BYTES_MAX && text.iter().all(printable)
}

fn checked_nonce(text: &[u8]) -> Result<&[u8], ScramError> {
    if is_nonce(text) {
        Ok(text)
    } else {
        Err(ScramError::NonceBounds)
    }
}

/// The text's length is checked before it is decoded: base64 takes 4 characters for 3 bytes.
fn checked_salt(text: &[u8]) -> Result<Vec<u8>, ScramError> {
    let short = text.len() <= SALT_BYTES_MAX.div_ceil(3) * 4;
    let salt = decode(text)
        .filter(|_| short)
        .ok_or(ScramError::SaltBounds)?;
    let bounds = 1..=SALT_BYTES_MAX;
    if bounds.contains(&salt.len()) {
        Ok(salt)
    } else {
        Err(ScramError::SaltBounds)
    }
}

fn checked_iterations(text: &[u8]) -> Result<u32, ScramError> {
    parse_number(text)
        .filter(|count| (1..=ITERATIONS_MAX).contains(count))
        .ok_or(ScramError::IterationBounds)
}

fn split_comma(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut halves = data.splitn(2, |&b| b == b',');
    Some((halves.next()?, halves.next()?))
}

/// The `name=value` items of a message, from first to last.
struct Attributes<'a> {
    rest: Option<&'a [u8]>,
    malformed: ScramError,
}

impl<'a> Attributes<'a> {
    fn new(data: &'a [u8], malformed: ScramError) -> Attributes<'a> {
        Attributes {
            rest: Some(data),
            malformed,
        }
    }

    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, ScramError> {
        let Some(rest) = self.rest else {
            return Ok(None);
        };
        let (item, rest) = match split_comma(rest) {
            Some((item, rest)) => (item, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        match item {
            [b'm', b'=', ..] => Err(ScramError::MandatoryExtension),
            [name, b'=', value @ ..] if name.is_ascii_alphabetic() && !value.contains(&0) => {
                Ok(Some((*name, value)))
            }
            _ => Err(self.malformed),
        }
    }

    fn expect(&mut self, name: u8) -> Result<&'a [u8], ScramError> {
        match self.next()? {
            Some((found, value)) if found == name => Ok(value),
            _ => Err(self.malformed),
        }
    }

    /// Optional extensions are to be ignored, but must be well formed.
    fn skip_extensions(&mut self) -> Result<(), ScramError> {
        while self.next()?.is_some() {}
        Ok(())
    }
}

/// RFC 7677 section 3's example, and a small cache.
#[cfg(test)]
pub(in crate::auth) mod testing {
    use crate::auth::KdfCache;
    use std::num::NonZeroUsize;

    pub(in crate::auth) const RFC_SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    pub(in crate::auth) const RFC_CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    pub(in crate::auth) const RFC_SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    pub(in crate::auth) const RFC_CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    pub(in crate::auth) const RFC_SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    pub(in crate::auth) const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    pub(in crate::auth) const RFC_SERVER_FINAL: &str =
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    pub(in crate::auth) fn kdf() -> KdfCache {
        KdfCache::new([3; 32], NonZeroUsize::new(8).unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_error(data: &[u8]) -> Option<ScramError> {
        ClientFirst::parse(data).err()
    }

    #[test]
    fn client_first_follows_the_grammar() {
        let malformed = Some(ScramError::Malformed("client-first"));
        let cases: [(&[u8], Option<ScramError>); 25] = [
            (b"n,,n=,r=abc", None),
            (b"p=tls-unique,,n=,r=abc", Some(ScramError::ChannelBinding)),
            (b"y,,n=user,r=abc", None),
            (b"n,,n=\xff\xfe,r=abc", None),
            (b"n,,n=user,r=abc,x=1,Y=,z==", None),
            (b"p=tls-server-end-point,,n=,r=abc", None),
            (b"n,a=admin,n=,r=abc", Some(ScramError::AuthorizationId)),
            (b"n,,m=x,n=,r=abc", Some(ScramError::MandatoryExtension)),
            (b"n,,n=,r=abc,m=x", Some(ScramError::MandatoryExtension)),
            (b"n,,n=,r=", Some(ScramError::NonceBounds)),
            (b"n,,n=,r=a b", Some(ScramError::NonceBounds)),
            (b"n,,n=,r=a\x7f", Some(ScramError::NonceBounds)),
            (b"n,,n=,r=\xc3\xa9", Some(ScramError::NonceBounds)),
            (b"", malformed),
            (b"n", malformed),
            (b"n,,", malformed),
            (b"p,,n=,r=abc", malformed),
            (b"x,,n=,r=abc", malformed),
            (b"n,b=x,n=,r=abc", malformed),
            (b"n,,r=abc,n=", malformed),
            (b"n,,n=user", malformed),
            (b"n,,n=,r=abc,", malformed),
            (b"n,,n=,r=abc,1=x", malformed),
            (b"n,,n=,r=abc,xx", malformed),
            (b"n,,n=a\0b,r=abc", malformed),
        ];
        for (data, want) in cases {
            assert_eq!(first_error(data), want, "{}", data.escape_ascii());
        }
    }

    #[test]
    fn nonces_are_bounded() {
        let message = |length: usize| [b"n,,n=,r=".as_slice(), &vec![b'x'; length]].concat();
        assert_eq!(first_error(&message(NONCE_BYTES_MAX)), None);
        assert_eq!(
            first_error(&message(NONCE_BYTES_MAX + 1)),
            Some(ScramError::NonceBounds)
        );
    }

    #[test]
    fn client_final_follows_the_grammar() {
        let key = encode(&[0; 32]);
        let parse = |text: String| ClientFinal::parse(text.as_bytes()).err();
        let malformed = Some(ScramError::Malformed("client-final"));
        assert_eq!(parse(format!("c=biws,r=abc,p={key}")), None);
        assert_eq!(parse(format!("c=biws,r=abc,x=1,p={key}")), None);
        assert_eq!(
            parse(format!("c=biws,r=abc,m=1,p={key}")),
            Some(ScramError::MandatoryExtension)
        );
        for broken in [
            format!("r=abc,c=biws,p={key}"),
            format!("c=biws,p={key}"),
            format!("c=biws,r=abc,p={key},x=1"),
            format!("c=biws,r=abc,p={key},"),
            format!("c=biws,r=abc,p={key}A"),
            format!("p={key}"),
            "c=biws,r=abc,p=AAAA".into(),
            "c=biws,r=abc,p=".into(),
            "c=biws,r=abc".into(),
            String::new(),
        ] {
            assert_eq!(parse(broken.clone()), malformed, "{broken}");
        }
    }

    #[test]
    fn server_first_bounds_salt_and_iterations() {
        let parse = |salt: &str, count: &str| {
            ServerFirst::parse(format!("r=abc,s={salt},i={count}").as_bytes()).map(|m| m.iterations)
        };
        let longest = encode(&vec![0; SALT_BYTES_MAX]);
        let too_long = encode(&vec![0; SALT_BYTES_MAX + 1]);
        assert_eq!(parse("c2FsdA==", "1"), Ok(1));
        assert_eq!(parse(&longest, "1000000"), Ok(ITERATIONS_MAX));
        for salt in ["", "c2FsdA", "*", &too_long] {
            assert_eq!(parse(salt, "1"), Err(ScramError::SaltBounds));
        }
        for count in [
            "",
            "0",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x10",
            "1000001",
            "4294967297",
            "99999999999999999999999",
        ] {
            assert_eq!(
                parse("c2FsdA==", count),
                Err(ScramError::IterationBounds),
                "{count}"
            );
        }
    }

    #[test]
    fn initial_response_survives_a_round_trip_and_no_truncation() {
        let body = initial_response(SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
        let plain = (false, b"n,,n=,r=abc".as_slice());
        assert_eq!(parse_initial_response(&body), Ok(plain));
        for end in 0..body.len() {
            assert!(parse_initial_response(&body[..end]).is_err(), "{end}");
        }
        let longer = [body.as_slice(), b"x"].concat();
        assert_eq!(
            parse_initial_response(&longer),
            Err(ScramError::Malformed("initial-response"))
        );
    }

    #[test]
    fn initial_response_lengths_that_lie_are_refused() {
        for length in [0i32, 1, 4, i32::MAX, i32::MIN, -2] {
            let body = [b"SCRAM-SHA-256\0".as_slice(), &length.to_be_bytes(), b"abc"].concat();
            let got = parse_initial_response(&body);
            assert_eq!(
                got,
                Err(ScramError::Malformed("initial-response")),
                "{length}"
            );
        }
        let none = b"SCRAM-SHA-256\0\xff\xff\xff\xff";
        assert_eq!(
            parse_initial_response(none),
            Err(ScramError::NoInitialResponse)
        );
        let plus = b"SCRAM-SHA-256-PLUS\0\0\0\0\x03abc";
        assert_eq!(parse_initial_response(plus), Ok((true, b"abc".as_slice())));
        let other = b"SCRAM-SHA-1\0\0\0\0\x03abc";
        assert_eq!(parse_initial_response(other), Err(ScramError::Mechanism));
    }
}
