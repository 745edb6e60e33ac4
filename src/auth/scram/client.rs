//! The client's side of SCRAM: we log in to PostgreSQL.
//!
//! ```text
//! ServerFirst --server_first--> ClientFinal --client_final--> ServerFinal --server_final--> Proven
//! ```
//! Any error leads to Over. The exchange never sees a password, only the keys made from it, so
//! that the expensive step stays with the caller (and falls away with pass-through keys).

use std::mem;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::ScramKeys;
use super::keys::xor;
use super::message::{
    GS2_BOUND, Gs2Flag, ServerFirst, auth_message, encode, is_nonce, parse_server_final,
};
use crate::auth::ScramError;
use crate::auth::kdf::hmac;

/// One exchange with one server.
#[derive(Debug)]
pub struct ClientExchange {
    client_nonce: String,
    client_first_bare: Vec<u8>,
    flag: Gs2Flag,
    /// Channel-binding data, for [`Gs2Flag::Bound`].
    channel: Arc<[u8]>,
    state: State,
}

/// What the server wants the password stretched with; checked against
/// [`SALT_BYTES_MAX`](super::SALT_BYTES_MAX) and [`ITERATIONS_MAX`](super::ITERATIONS_MAX).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StretchParameters {
    /// The salt, as bytes, at least one.
    pub salt: Vec<u8>,
    /// PBKDF2 iterations, at least 1.
    pub iterations: u32,
}

#[derive(Debug)]
enum State {
    ServerFirst,
    ClientFinal {
        server_first: Vec<u8>,
        without_proof: Vec<u8>,
    },
    ServerFinal {
        signature: [u8; 32],
    },
    Proven,
    Over,
}

impl ClientExchange {
    /// Begins with a nonce from [`nonce_text`](super::nonce_text). The user name in the exchange
    /// is left empty, as libpq does: PostgreSQL takes the start-up packet's.
    pub fn new(nonce: &str) -> Result<ClientExchange, ScramError> {
        ClientExchange::with_name("", nonce)
    }

    fn with_name(name: &str, nonce: &str) -> Result<ClientExchange, ScramError> {
        if !is_nonce(nonce.as_bytes()) {
            return Err(ScramError::NonceBounds);
        }
        Ok(ClientExchange {
            client_nonce: nonce.to_owned(),
            client_first_bare: format!("n={name},r={nonce}").into_bytes(),
            flag: Gs2Flag::Unsupported,
            channel: Arc::default(),
            state: State::ServerFirst,
        })
    }

    /// The same over TLS whose end has this channel-binding data: bound to it if the server offers that,
    /// else telling the server so, which notices if somebody has taken its offer away.
    pub fn over(self, channel: Arc<[u8]>, is_offered: bool) -> ClientExchange {
        let flag = if is_offered {
            Gs2Flag::Bound
        } else {
            Gs2Flag::Unoffered
        };
        ClientExchange {
            flag,
            channel,
            ..self
        }
    }

    /// The client-first message.
    pub fn client_first(&self) -> Vec<u8> {
        let header: &[u8] = match self.flag {
            Gs2Flag::Unsupported => b"n,,",
            Gs2Flag::Unoffered => b"y,,",
            Gs2Flag::Bound => GS2_BOUND,
        };
        [header, self.client_first_bare.as_slice()].concat()
    }

    /// Takes server-first; tells what the keys are to be made with.
    pub fn server_first(&mut self, data: &[u8]) -> Result<StretchParameters, ScramError> {
        let State::ServerFirst = mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let first = ServerFirst::parse(data)?;
        // A server that adds nothing of its own would let old proofs be replayed.
        match first.nonce.strip_prefix(self.client_nonce.as_bytes()) {
            Some([_, ..]) => {}
            _ => return Err(ScramError::NonceMismatch),
        }
        self.state = State::ClientFinal {
            server_first: data.to_vec(),
            without_proof: [
                b"c=",
                self.flag.binding(&self.channel).as_bytes(),
                b",r=",
                first.nonce,
            ]
            .concat(),
        };
        Ok(StretchParameters {
            salt: first.salt,
            iterations: first.iterations,
        })
    }

    /// The client-final message, with the proof made from `keys`.
    pub fn client_final(&mut self, keys: &ScramKeys) -> Result<Vec<u8>, ScramError> {
        let State::ClientFinal {
            server_first,
            mut without_proof,
        } = mem::replace(&mut self.state, State::Over)
        else {
            return Err(ScramError::OutOfOrder);
        };
        let signed = auth_message(&self.client_first_bare, &server_first, &without_proof);
        let proof = xor(keys.client_key(), &hmac(&keys.stored_key(), &signed));
        self.state = State::ServerFinal {
            signature: hmac(keys.server_key(), &signed),
        };
        without_proof.extend_from_slice(b",p=");
        without_proof.extend_from_slice(encode(&proof).as_bytes());
        Ok(without_proof)
    }

    /// Takes server-final: an error unless the server proves that it knows the verifier.
    pub fn server_final(&mut self, data: &[u8]) -> Result<(), ScramError> {
        let State::ServerFinal { signature } = mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        if !bool::from(signature.ct_eq(&parse_server_final(data)?)) {
            return Err(ScramError::WrongServerSignature);
        }
        self.state = State::Proven;
        Ok(())
    }

    /// Whether the server has proved that it knows the verifier.
    pub fn is_proven(&self) -> bool {
        matches!(self.state, State::Proven)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::message::testing::*;
    use crate::auth::scram::{ITERATIONS_MAX, ScramVerifier, ServerExchange};

    fn small_keys() -> ScramKeys {
        kdf().keys(b"pencil", b"salt", 2)
    }

    /// A full login whose server messages pass through `spoil_first` and `spoil_final`.
    fn login(
        spoil_first: impl Fn(&mut Vec<u8>),
        spoil_final: impl Fn(&mut Vec<u8>),
    ) -> Result<(), ScramError> {
        let keys = small_keys();
        let verifier = ScramVerifier::from_keys(&keys, b"salt", 2);
        let mut server = ServerExchange::new(verifier, true, "server");
        let mut client = ClientExchange::new("client")?;
        let mut server_first = server.client_first(false, &client.client_first())?;
        spoil_first(&mut server_first);
        client.server_first(&server_first)?;
        let mut server_final = server.client_final(&client.client_final(&keys)?)?.message;
        spoil_final(&mut server_final);
        client.server_final(&server_final)?;
        assert!(client.is_proven());
        Ok(())
    }

    #[test]
    fn rfc_7677_example_is_spoken_byte_by_byte() {
        let mut client = ClientExchange::with_name("user", RFC_CLIENT_NONCE).unwrap();
        assert_eq!(client.client_first(), RFC_CLIENT_FIRST.as_bytes());
        let wanted = client.server_first(RFC_SERVER_FIRST.as_bytes()).unwrap();
        let keys = kdf().keys(b"pencil", &wanted.salt, wanted.iterations);
        assert_eq!(
            client.client_final(&keys).unwrap(),
            RFC_CLIENT_FINAL.as_bytes()
        );
        assert!(!client.is_proven());
        client.server_final(RFC_SERVER_FINAL.as_bytes()).unwrap();
        assert!(client.is_proven());
    }

    #[test]
    fn keys_recovered_from_a_clients_proof_log_in_elsewhere() {
        let keys = small_keys();
        let verifier = ScramVerifier::from_keys(&keys, b"salt", 2);
        let mut pooler = ServerExchange::new(verifier.clone(), true, "pooler");
        let mut client = ClientExchange::new("client").unwrap();
        client
            .server_first(&pooler.client_first(false, &client.client_first()).unwrap())
            .unwrap();
        let recovered = pooler
            .client_final(&client.client_final(&keys).unwrap())
            .unwrap()
            .keys;

        let mut server = ServerExchange::new(verifier, true, "server");
        let mut onward = ClientExchange::new("pooler").unwrap();
        onward
            .server_first(&server.client_first(false, &onward.client_first()).unwrap())
            .unwrap();
        let done = server
            .client_final(&onward.client_final(&recovered).unwrap())
            .unwrap();
        onward.server_final(&done.message).unwrap();
        assert!(onward.is_proven());
    }

    #[test]
    fn a_server_nonce_must_extend_ours() {
        for nonce in ["client", "clien", "Clientserver", "server", "xclientserver"] {
            let mut client = ClientExchange::new("client").unwrap();
            let message = format!("r={nonce},s=c2FsdA==,i=1");
            let error = client.server_first(message.as_bytes()).unwrap_err();
            assert_eq!(error, ScramError::NonceMismatch, "{nonce}");
        }
    }

    #[test]
    fn oversized_nonces_and_iteration_counts_are_refused() {
        let answer = |message: String| {
            ClientExchange::new("client")
                .unwrap()
                .server_first(message.as_bytes())
        };
        let long = "x".repeat(2000);
        let nonce = answer(format!("r=client{long},s=c2FsdA==,i=1"));
        assert_eq!(nonce, Err(ScramError::NonceBounds));
        let count = answer(format!("r=clientx,s=c2FsdA==,i={}", ITERATIONS_MAX + 1));
        assert_eq!(count, Err(ScramError::IterationBounds));
        let demand = answer("m=x,r=clientx,s=c2FsdA==,i=1".into());
        assert_eq!(demand, Err(ScramError::MandatoryExtension));
    }

    #[test]
    fn a_server_that_cannot_prove_itself_is_refused() {
        let spoil =
            |with: &'static str| login(|_| (), |m| *m = with.as_bytes().to_vec()).unwrap_err();
        assert_eq!(spoil(RFC_SERVER_FINAL), ScramError::WrongServerSignature);
        assert_eq!(spoil("e=invalid-proof"), ScramError::ServerRefused);
        assert_eq!(spoil("v=AAAA"), ScramError::Malformed("server-final"));
        assert_eq!(spoil("v="), ScramError::Malformed("server-final"));
    }

    #[test]
    fn every_truncation_of_a_servers_message_is_refused() {
        assert_eq!(login(|_| (), |_| ()), Ok(()));
        for end in 0.."r=clientserver,s=c2FsdA==,i=2".len() {
            assert!(login(|m| m.truncate(end), |_| ()).is_err(), "first {end}");
        }
        for end in 0..RFC_SERVER_FINAL.len() {
            assert!(login(|_| (), |m| m.truncate(end)).is_err(), "final {end}");
        }
    }

    #[test]
    fn no_flipped_bit_of_a_servers_message_is_accepted() {
        for bit in 0..8 {
            for at in 0.."r=clientserver,s=c2FsdA==,i=2".len() {
                assert!(
                    login(|m| m[at] ^= 1 << bit, |_| ()).is_err(),
                    "first {at} bit {bit}"
                );
            }
            for at in 0..RFC_SERVER_FINAL.len() {
                assert!(
                    login(|_| (), |m| m[at] ^= 1 << bit).is_err(),
                    "final {at} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        let mut client = ClientExchange::new("client").unwrap();
        assert_eq!(client.server_final(b"v="), Err(ScramError::OutOfOrder));
        assert_eq!(client.server_first(b"r="), Err(ScramError::OutOfOrder));
        assert_eq!(
            client.client_final(&small_keys()),
            Err(ScramError::OutOfOrder)
        );
    }
}
