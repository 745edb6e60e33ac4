//! A client's side of SCRAM-SHA-256, message by message (RFC 5802).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use pbkdf2::pbkdf2_hmac_array;
use sha2::{Digest, Sha256};

use super::peer::{Client, Reply};
use super::wire::{PROTOCOL_3_0, message, startup};

const NONCE: &str = "r=abcdefghijklmnop";

/// Logs `user` in; what came behind the last message of SCRAM, or instead of one.
pub fn login(client: &mut Client, user: &str, database: &str, password: &str) -> Reply {
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", database)],
    ));
    client.expect(b'R');
    client.send(&first());
    let server_first = server_first(&client.expect(b'R').body);
    client.exchange(&right_final(password, &server_first))
}

/// The first message of a client that is to log in.
pub fn first() -> Vec<u8> {
    initial(&format!("n,,n=,{NONCE}"))
}

/// Its last message, with the proof that it knows the password.
pub fn right_final(password: &str, server_first: &str) -> Vec<u8> {
    let without_proof = without_proof(server_first, "");
    let signed = format!("n=,{NONCE},{server_first},{without_proof}");
    let proof = proof(password, server_first, &signed);
    message_p(&format!("{without_proof},p={proof}"))
}

/// A SASLInitialResponse with this client-first message.
pub fn initial(first: &str) -> Vec<u8> {
    let length = (first.len() as u32).to_be_bytes();
    let body = [b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat();
    message(b'p', &body)
}

/// A message with a password or SASL data.
pub fn message_p(body: &str) -> Vec<u8> {
    message(b'p', body.as_bytes())
}

/// The server-first message in the body of an AuthenticationSASLContinue.
pub fn server_first(body: &[u8]) -> String {
    String::from_utf8(body[4..].to_vec()).unwrap()
}

/// The client-final message up to its proof, `extensions` included.
pub fn without_proof(server_first: &str, extensions: &str) -> String {
    let nonce = server_first.split(',').next().unwrap();
    format!("c=biws,{nonce}{extensions}")
}

/// A client-final message with a proof that proves nothing.
pub fn wrong_final(server_first: &str) -> Vec<u8> {
    let proof = "A".repeat(43) + "=";
    let without_proof = without_proof(server_first, "");
    message_p(&format!("{without_proof},p={proof}"))
}

/// ClientProof (section 3), in base64; `signed` is the AuthMessage.
pub fn proof(password: &str, server_first: &str, signed: &str) -> String {
    let attribute = |name: &str| {
        let mut attributes = server_first.split(',');
        attributes.find_map(|it| it.strip_prefix(name)).unwrap()
    };
    let salt = STANDARD.decode(attribute("s=")).unwrap();
    let iterations = attribute("i=").parse().unwrap();
    let salted = pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, iterations);
    let hmac = |key: &[u8], text: &str| {
        let mut hmac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        hmac.update(text.as_bytes());
        hmac.finalize().into_bytes()
    };
    let client_key = hmac(&salted, "Client Key");
    let signature = hmac(&Sha256::digest(client_key), signed);
    let proof = client_key.iter().zip(signature).map(|(a, b)| a ^ b);
    STANDARD.encode(proof.collect::<Vec<u8>>())
}
