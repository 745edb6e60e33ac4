//! The server's side of SCRAM: we authenticate a client.
//!
//! ```text
//! ClientFirst --client_first--> ClientFinal --client_final--> Over
//! ```
//! Any error leads to Over.

use std::mem;
use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};

use super::keys::{stored_key, xor};
use super::message::{ClientFinal, ClientFirst, Gs2Flag, auth_message, encode};
use super::{ScramKeys, ScramVerifier};
use crate::auth::ScramError;
use crate::auth::kdf::hmac;

/// One exchange with one client.
#[derive(Debug)]
pub struct ServerExchange {
    verifier: ScramVerifier,
    genuine: bool,
    server_nonce: String,
    /// Channel-binding data, if channel binding was offered.
    channel: Option<Arc<[u8]>>,
    state: State,
}

/// The end of a successful exchange.
#[derive(Debug)]
pub struct ServerFinal {
    /// The server-final message, which proves to the client that we know its secret.
    pub message: Vec<u8>,
    /// ClientKey, recovered from the client's proof, and ServerKey. To be used on servers only if
    /// the verifier was a stored one, never if it was made up.
    pub keys: ScramKeys,
}

#[derive(Debug)]
enum State {
    ClientFirst,
    ClientFinal {
        flag: Gs2Flag,
        client_first_bare: Vec<u8>,
        server_first: Vec<u8>,
        nonce: Vec<u8>,
    },
    Over,
}

impl ServerExchange {
    /// Begins with what is stored about the user. With `genuine` false (no such user, or none
    /// with a usable secret) the exchange runs to its end at the same cost and then fails with
    /// the same error as for a wrong password. `server_nonce` comes from
    /// [`nonce_text`](super::nonce_text).
    pub fn new(verifier: ScramVerifier, genuine: bool, server_nonce: &str) -> ServerExchange {
        ServerExchange {
            verifier,
            genuine,
            server_nonce: server_nonce.to_owned(),
            channel: None,
            state: State::ClientFirst,
        }
    }

    /// The same with channel binding offered: to the end of a TLS channel with this data
    /// (`tls-server-end-point`, RFC 5929).
    pub fn offering(self, channel: Option<Arc<[u8]>>) -> ServerExchange {
        ServerExchange { channel, ..self }
    }

    /// Takes client-first, gives server-first. `is_plus`: whether the client picked the mechanism with
    /// channel binding.
    pub fn client_first(&mut self, is_plus: bool, data: &[u8]) -> Result<Vec<u8>, ScramError> {
        let State::ClientFirst = mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let first = ClientFirst::parse(data)?;
        match (first.flag, is_plus, self.channel.is_some()) {
            (Gs2Flag::Bound, true, true) | (Gs2Flag::Unsupported, false, _) => {}
            (Gs2Flag::Unoffered, false, false) => {}
            (Gs2Flag::Unoffered, false, true) => return Err(ScramError::ChannelBindingHidden),
            _ => return Err(ScramError::ChannelBinding),
        }
        let nonce = [first.nonce, self.server_nonce.as_bytes()].concat();
        let tail = format!(
            ",s={},i={}",
            encode(&self.verifier.salt),
            self.verifier.iterations
        );
        let server_first = [b"r=", nonce.as_slice(), tail.as_bytes()].concat();
        self.state = State::ClientFinal {
            flag: first.flag,
            client_first_bare: first.bare.to_vec(),
            server_first: server_first.clone(),
            nonce,
        };
        Ok(server_first)
    }

    /// Takes client-final, checks the proof and gives server-final.
    ///
    /// The proof is checked in constant time, and a mock exchange does all the work of a true one.
    pub fn client_final(&mut self, data: &[u8]) -> Result<ServerFinal, ScramError> {
        let State::ClientFinal {
            flag,
            client_first_bare,
            server_first,
            nonce,
        } = mem::replace(&mut self.state, State::Over)
        else {
            return Err(ScramError::OutOfOrder);
        };
        let last = ClientFinal::parse(data)?;
        let channel = self.channel.as_deref().unwrap_or_default();
        if last.binding != flag.binding(channel).as_bytes() {
            return Err(ScramError::ChannelBindingMismatch);
        }
        if last.nonce != nonce {
            return Err(ScramError::NonceMismatch);
        }
        let signed = auth_message(&client_first_bare, &server_first, last.without_proof);
        self.check_proof(&last.proof, &signed)
    }

    fn check_proof(&self, proof: &[u8; 32], signed: &[&[u8]]) -> Result<ServerFinal, ScramError> {
        let client_signature = hmac(&self.verifier.stored_key, signed);
        let server_signature = hmac(&self.verifier.server_key, signed);
        let client_key = xor(proof, &client_signature);
        let proven = stored_key(&client_key).ct_eq(&self.verifier.stored_key);
        if !bool::from(proven & Choice::from(u8::from(self.genuine))) {
            return Err(ScramError::WrongProof);
        }
        Ok(ServerFinal {
            message: format!("v={}", encode(&server_signature)).into_bytes(),
            keys: ScramKeys::new(client_key, self.verifier.server_key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::message::{decode, testing::*};
    use crate::auth::scram::{ClientExchange, mock_verifier};

    fn rfc_exchange(genuine: bool) -> ServerExchange {
        let salt = decode(RFC_SALT.as_bytes()).unwrap();
        let verifier = ScramVerifier::from_password(b"pencil", &salt, 4096, &mut kdf());
        ServerExchange::new(verifier, genuine, RFC_SERVER_NONCE)
    }

    fn final_error(first: &str, last: &[u8]) -> ScramError {
        let mut exchange = rfc_exchange(true);
        exchange.client_first(false, first.as_bytes()).unwrap();
        exchange.client_final(last).unwrap_err()
    }

    /// Cheap to stretch, for tests of many exchanges.
    fn small() -> (ScramVerifier, ScramKeys) {
        let keys = kdf().keys(b"pencil", b"salt", 2);
        (ScramVerifier::from_keys(&keys, b"salt", 2), keys)
    }

    /// A full login whose messages pass through `spoil_first` and `spoil_final` on the way in.
    fn login(
        spoil_first: impl Fn(&mut Vec<u8>),
        spoil_final: impl Fn(&mut Vec<u8>),
    ) -> Result<ServerFinal, ScramError> {
        let (verifier, keys) = small();
        let mut server = ServerExchange::new(verifier, true, "server");
        let mut client = ClientExchange::new("client").unwrap();
        let mut first = client.client_first();
        spoil_first(&mut first);
        let server_first = server.client_first(false, &first)?;
        client.server_first(&server_first)?;
        let mut last = client.client_final(&keys)?;
        spoil_final(&mut last);
        server.client_final(&last)
    }

    #[test]
    fn rfc_7677_example_is_answered_byte_by_byte() {
        let mut exchange = rfc_exchange(true);
        let server_first = exchange
            .client_first(false, RFC_CLIENT_FIRST.as_bytes())
            .unwrap();
        assert_eq!(server_first, RFC_SERVER_FIRST.as_bytes());
        let done = exchange.client_final(RFC_CLIENT_FINAL.as_bytes()).unwrap();
        assert_eq!(done.message, RFC_SERVER_FINAL.as_bytes());
        let salt = decode(RFC_SALT.as_bytes()).unwrap();
        assert_eq!(done.keys, kdf().keys(b"pencil", &salt, 4096));
    }

    #[test]
    fn a_mock_exchange_differs_in_nothing_but_the_secret() {
        let mut mock = rfc_exchange(false);
        let server_first = mock
            .client_first(false, RFC_CLIENT_FIRST.as_bytes())
            .unwrap();
        assert_eq!(server_first, RFC_SERVER_FIRST.as_bytes());
        let error = mock.client_final(RFC_CLIENT_FINAL.as_bytes()).unwrap_err();
        let wrong = RFC_CLIENT_FINAL.replace("p=dHz", "p=dHy");
        assert_eq!(error, final_error(RFC_CLIENT_FIRST, wrong.as_bytes()));

        let mut unknown = ServerExchange::new(
            mock_verifier(&[1; 32], "eve", 4096),
            false,
            RFC_SERVER_NONCE,
        );
        let server_first = unknown
            .client_first(false, RFC_CLIENT_FIRST.as_bytes())
            .unwrap();
        assert_eq!(server_first.len(), RFC_SERVER_FIRST.len());
        assert_eq!(
            unknown
                .client_final(RFC_CLIENT_FINAL.as_bytes())
                .unwrap_err(),
            error
        );
    }

    #[test]
    fn a_client_that_misses_channel_binding_gets_in_only_with_its_own_header() {
        let yes = RFC_CLIENT_FIRST.replacen('n', "y", 1);
        let plain = final_error(&yes, RFC_CLIENT_FINAL.as_bytes());
        assert_eq!(plain, ScramError::ChannelBindingMismatch);
        let (verifier, keys) = small();
        let mut server = ServerExchange::new(verifier, true, "server");
        let server_first = server.client_first(false, b"y,,n=,r=abc").unwrap();
        let without_proof = b"c=eSws,r=abcserver";
        let signed = auth_message(b"n=,r=abc", &server_first, without_proof);
        let proof = xor(keys.client_key(), &hmac(&keys.stored_key(), &signed));
        let last = [without_proof, b",p=".as_slice(), encode(&proof).as_bytes()].concat();
        assert!(server.client_final(&last).is_ok());
    }

    /// A login over TLS: the client over a channel with `theirs`, the server over one with `ours`.
    fn bound(theirs: &[u8], ours: &[u8], is_offered: bool) -> Result<ServerFinal, ScramError> {
        let (verifier, keys) = small();
        let server = ServerExchange::new(verifier, true, "server");
        let mut server = server.offering(Some(ours.into()));
        let client = ClientExchange::new("client").unwrap();
        let mut client = client.over(theirs.into(), is_offered);
        let server_first = server.client_first(is_offered, &client.client_first())?;
        client.server_first(&server_first)?;
        server.client_final(&client.client_final(&keys)?)
    }

    #[test]
    fn channel_binding_notices_whoever_stands_in_between() {
        assert!(bound(b"certificate", b"certificate", true).is_ok());
        let other = bound(b"certificate", b"another", true).unwrap_err();
        assert_eq!(other, ScramError::ChannelBindingMismatch);
        // Somebody has hidden the offer from the client.
        let hidden = bound(b"certificate", b"certificate", false).unwrap_err();
        assert_eq!(hidden, ScramError::ChannelBindingHidden);
    }

    #[test]
    fn mechanism_and_first_message_have_to_agree() {
        let first = |channel: Option<&[u8]>, is_plus, message: &str| {
            let exchange = ServerExchange::new(small().0, true, "server");
            let mut exchange = exchange.offering(channel.map(Into::into));
            exchange.client_first(is_plus, message.as_bytes()).map(drop)
        };
        let (end, unique) = ("p=tls-server-end-point,,n=,r=abc", "p=tls-unique,,n=,r=abc");
        assert_eq!(first(Some(b"x"), true, end), Ok(()));
        assert_eq!(first(Some(b"x"), false, "n,,n=,r=abc"), Ok(()));
        for (channel, is_plus, message) in [
            (None, true, end),
            (None, false, end),
            (Some(&b"x"[..]), false, end),
            (Some(b"x"), true, "n,,n=,r=abc"),
            (Some(b"x"), true, "y,,n=,r=abc"),
            (Some(b"x"), true, unique),
        ] {
            let refused = first(channel, is_plus, message);
            assert_eq!(refused, Err(ScramError::ChannelBinding), "{message}");
        }
    }

    #[test]
    fn a_nonce_that_was_not_sent_is_refused() {
        for nonce in [
            "rOprNGfwEbeRWgbNEkqO",
            "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k1",
            "",
            "x",
        ] {
            let last = format!("c=biws,r={nonce},p={}", encode(&[0; 32]));
            assert_eq!(
                final_error(RFC_CLIENT_FIRST, last.as_bytes()),
                ScramError::NonceMismatch
            );
        }
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        let late = rfc_exchange(true)
            .client_final(RFC_CLIENT_FINAL.as_bytes())
            .unwrap_err();
        assert_eq!(late, ScramError::OutOfOrder);
        let mut exchange = rfc_exchange(true);
        exchange
            .client_first(false, RFC_CLIENT_FIRST.as_bytes())
            .unwrap();
        let again = exchange
            .client_first(false, RFC_CLIENT_FIRST.as_bytes())
            .unwrap_err();
        assert_eq!(again, ScramError::OutOfOrder);
        assert!(exchange.client_final(RFC_CLIENT_FINAL.as_bytes()).is_err());
    }

    #[test]
    fn every_truncation_of_every_message_is_refused() {
        assert!(login(|_| (), |_| ()).is_ok());
        for end in 0..b"n,,n=,r=client".len() {
            assert!(login(|m| m.truncate(end), |_| ()).is_err(), "first {end}");
        }
        let whole = format!("c=biws,r=clientserver,p={}", encode(&[0; 32])).len();
        for end in 0..whole {
            assert!(login(|_| (), |m| m.truncate(end)).is_err(), "final {end}");
        }
    }

    #[test]
    fn no_flipped_bit_authenticates() {
        let whole = format!("c=biws,r=clientserver,p={}", encode(&[0; 32])).len();
        for bit in 0..8 {
            for at in 0..b"n,,n=,r=client".len() {
                assert!(
                    login(|m| m[at] ^= 1 << bit, |_| ()).is_err(),
                    "first {at} bit {bit}"
                );
            }
            for at in 0..whole {
                assert!(
                    login(|_| (), |m| m[at] ^= 1 << bit).is_err(),
                    "final {at} bit {bit}"
                );
            }
        }
    }
}
