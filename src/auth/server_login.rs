//! Our answers to PostgreSQL's authentication requests, as steps without I/O.
//!
//! ```text
//! Start --Ok----------------------------------------------------------> Over (done)
//! Start --Cleartext, Md5--> Answered --Ok-----------------------------> Over (done)
//! Start --Sasl--> ScramFirst --SaslContinue--> [Stretching] -->
//!         ScramFinal --SaslFinal--> Proven --Ok-----------------------> Over (done)
//! ```
//! Anything else is refused: a server cannot step down from SCRAM to clear text midway, nor
//! say Ok before it has proved that it knows the secret.

use std::mem;
use std::sync::Arc;

use super::scram::initial_response;
use super::{
    ClientExchange, KdfCache, NONCE_RANDOM_BYTES, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys,
    ServerCredentials, ServerLoginError, Stretch, md5_response, md5_secret, nonce_text,
};
use crate::base::Secret;

/// A server's authentication request: the body of an `R` message (protocol section "Message
/// Formats", Authentication*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthRequest<'a> {
    /// AuthenticationOk.
    Ok,
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password.
    Md5 {
        /// The salt for this login.
        salt: [u8; 4],
    },
    /// AuthenticationSASL.
    Sasl {
        /// Zero-terminated mechanism names, ended by an empty one, as they came.
        mechanisms: &'a [u8],
    },
    /// AuthenticationSASLContinue with its data.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal with its data.
    SaslFinal(&'a [u8]),
    /// Any other kind, by its code.
    Other(i32),
}

impl<'a> AuthRequest<'a> {
    /// Reads the body of an `R` message.
    ///
    /// # Errors
    /// [`ServerLoginError::Malformed`] if it is cut short or too long for its kind.
    pub fn parse(body: &'a [u8]) -> Result<AuthRequest<'a>, ServerLoginError> {
        let (code, rest) = body
            .split_first_chunk::<4>()
            .ok_or(ServerLoginError::Malformed)?;
        match (i32::from_be_bytes(*code), rest) {
            (0, []) => Ok(AuthRequest::Ok),
            (3, []) => Ok(AuthRequest::Cleartext),
            (5, &[a, b, c, d]) => Ok(AuthRequest::Md5 { salt: [a, b, c, d] }),
            (0 | 3 | 5, _) => Err(ServerLoginError::Malformed),
            (10, mechanisms) => Ok(AuthRequest::Sasl { mechanisms }),
            (11, data) => Ok(AuthRequest::SaslContinue(data)),
            (12, data) => Ok(AuthRequest::SaslFinal(data)),
            (code, _) => Ok(AuthRequest::Other(code)),
        }
    }
}

/// One login to a server.
pub struct ServerLogin {
    user: String,
    credentials: ServerCredentials,
    nonce: [u8; NONCE_RANDOM_BYTES],
    /// Channel-binding data of the connection, if it is encrypted.
    channel: Option<Arc<[u8]>>,
    state: State,
}

/// What to do next. Message bodies are those of a `p` message, header excluded.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerLoginStep {
    /// Send this body, then await the next request.
    Send(Secret),
    /// Call [`ServerLogin::stretch`] until it gives another step.
    Stretch,
    /// Nothing to send: await the next request.
    Await,
    /// Logged in.
    Done,
}

enum State {
    Start,
    Answered,
    ScramFirst(ClientExchange),
    Stretching(ClientExchange, Stretch),
    ScramFinal(ClientExchange),
    Proven,
    Over,
}

type Step = Result<ServerLoginStep, ServerLoginError>;

impl ServerLogin {
    /// Begins a login as `user`, the name in the start-up packet. `nonce`: random bytes, used once.
    pub fn new(
        user: &str,
        credentials: ServerCredentials,
        nonce: [u8; NONCE_RANDOM_BYTES],
    ) -> ServerLogin {
        ServerLogin {
            user: user.to_owned(),
            credentials,
            nonce,
            channel: None,
            state: State::Start,
        }
    }

    /// The connection is encrypted, and this is its channel-binding data, if it has any: then SCRAM is
    /// bound to it wherever the server offers that.
    pub fn over(&mut self, channel: Option<Arc<[u8]>>) {
        self.channel = channel;
    }

    /// Answers one request. After an error the login is over.
    pub fn answer(&mut self, request: AuthRequest<'_>, kdf: &mut KdfCache) -> Step {
        match (mem::replace(&mut self.state, State::Over), request) {
            (_, AuthRequest::Other(code)) => Err(ServerLoginError::Unsupported(code)),
            (State::Start | State::Answered | State::Proven, AuthRequest::Ok) => {
                Ok(ServerLoginStep::Done)
            }
            (
                State::ScramFirst(_) | State::Stretching(..) | State::ScramFinal(_),
                AuthRequest::Ok,
            ) => Err(ServerLoginError::Unproven),
            (State::Start, AuthRequest::Cleartext) => self.send_cleartext(),
            (State::Start, AuthRequest::Md5 { salt }) => self.send_md5(salt),
            (State::Start, AuthRequest::Sasl { mechanisms }) => self.send_client_first(mechanisms),
            (State::ScramFirst(exchange), AuthRequest::SaslContinue(data)) => {
                self.take_server_first(exchange, data, kdf)
            }
            (State::ScramFinal(mut exchange), AuthRequest::SaslFinal(data)) => {
                exchange.server_final(data)?;
                self.state = State::Proven;
                Ok(ServerLoginStep::Await)
            }
            _ => Err(ServerLoginError::OutOfOrder),
        }
    }

    /// Does at most `iterations` more of the key stretching that
    /// [`ServerLoginStep::Stretch`] asked for.
    pub fn stretch(&mut self, kdf: &mut KdfCache, iterations: u32) -> Step {
        let State::Stretching(exchange, mut stretch) = mem::replace(&mut self.state, State::Over)
        else {
            return Err(ServerLoginError::OutOfOrder);
        };
        match stretch.advance(iterations) {
            Some(keys) => {
                kdf.remember(&stretch);
                self.send_client_final(exchange, &keys)
            }
            None => {
                self.state = State::Stretching(exchange, stretch);
                Ok(ServerLoginStep::Stretch)
            }
        }
    }

    fn send_cleartext(&mut self) -> Step {
        let password = self.password("a clear-text password")?;
        let body = terminated(password.expose());
        self.state = State::Answered;
        Ok(ServerLoginStep::Send(body))
    }

    fn send_md5(&mut self, salt: [u8; 4]) -> Step {
        let response = match &self.credentials {
            ServerCredentials::Md5(digits) => md5_response(digits.expose(), salt),
            _ => {
                let password = self.password("an md5 password")?;
                md5_response(&*md5_secret(password.expose(), &self.user), salt)
            }
        };
        self.state = State::Answered;
        Ok(ServerLoginStep::Send(terminated(response.as_bytes())))
    }

    fn send_client_first(&mut self, mechanisms: &[u8]) -> Step {
        let offers = |wanted: &str| {
            let mut names = mechanisms.split(|&b| b == 0);
            names.any(|name| name == wanted.as_bytes())
        };
        let is_bound = self.channel.is_some() && offers(SCRAM_SHA_256_PLUS);
        let mechanism = if is_bound {
            SCRAM_SHA_256_PLUS
        } else {
            SCRAM_SHA_256
        };
        if !offers(mechanism) {
            return Err(ServerLoginError::Mechanism);
        }
        if !matches!(self.credentials, ServerCredentials::Keys(_)) {
            self.password(SCRAM_SHA_256)?;
        }
        let mut exchange = ClientExchange::new(&nonce_text(&self.nonce))?;
        if let Some(channel) = &self.channel {
            exchange = exchange.over(channel.clone(), is_bound);
        }
        let body = initial_response(mechanism, &exchange.client_first());
        let body = body.ok_or(ServerLoginError::Malformed)?;
        self.state = State::ScramFirst(exchange);
        Ok(ServerLoginStep::Send(Secret::new(body)))
    }

    fn take_server_first(
        &mut self,
        mut exchange: ClientExchange,
        data: &[u8],
        kdf: &mut KdfCache,
    ) -> Step {
        let wanted = exchange.server_first(data)?;
        if let ServerCredentials::Keys(learned) = &self.credentials {
            if let Some(misfit) = learned.misfit(&wanted) {
                return Err(misfit);
            }
            let keys = learned.keys.clone();
            return self.send_client_final(exchange, &keys);
        }
        let password = self.password(SCRAM_SHA_256)?.expose();
        let stretch = kdf.begin(password, &wanted.salt, wanted.iterations);
        self.state = State::Stretching(exchange, stretch);
        // A remembered password needs no iteration: it is answered at once.
        self.stretch(kdf, 0)
    }

    fn send_client_final(&mut self, mut exchange: ClientExchange, keys: &ScramKeys) -> Step {
        let body = exchange.client_final(keys)?;
        self.state = State::ScramFinal(exchange);
        Ok(ServerLoginStep::Send(Secret::new(body)))
    }

    /// The password, if it is known and fits the protocol's zero-terminated string.
    fn password(&self, asked: &'static str) -> Result<&Secret, ServerLoginError> {
        match &self.credentials {
            ServerCredentials::Password(password) if !password.expose().contains(&0) => {
                Ok(password)
            }
            other => Err(ServerLoginError::WrongSecret {
                asked,
                known: other.describe(),
            }),
        }
    }
}

fn terminated(text: &[u8]) -> Secret {
    Secret::new([text, b"\0"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{parse_initial_response, testing::kdf};
    use crate::auth::{LearnedKeys, ScramError, ScramVerifier, ServerExchange};

    const SALT: [u8; 4] = [1, 2, 3, 4];
    const SASL: AuthRequest<'_> = AuthRequest::Sasl {
        mechanisms: b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
    };

    fn keys() -> ScramKeys {
        kdf().keys(b"pencil", b"salt", 3)
    }

    fn learned() -> LearnedKeys {
        LearnedKeys {
            keys: keys(),
            salt: b"salt".to_vec(),
            iterations: 3,
        }
    }

    fn password() -> ServerCredentials {
        ServerCredentials::Password(Secret::new("pencil"))
    }

    fn md5() -> ServerCredentials {
        ServerCredentials::Md5(Secret::new(md5_secret(b"pencil", "user").to_vec()))
    }

    fn login(credentials: ServerCredentials) -> ServerLogin {
        ServerLogin::new("user", credentials, [5; NONCE_RANDOM_BYTES])
    }

    fn first_answer(credentials: ServerCredentials, request: AuthRequest<'_>) -> Step {
        login(credentials).answer(request, &mut kdf())
    }

    fn sent(step: Step) -> Secret {
        match step {
            Ok(ServerLoginStep::Send(body)) => body,
            other => panic!("{other:?}"),
        }
    }

    /// Plays the server up to the point where it has taken client-final.
    fn up_to_client_final(login: &mut ServerLogin) -> Vec<u8> {
        let cache = &mut kdf();
        let verifier = ScramVerifier::from_keys(&keys(), b"salt", 3);
        let mut server = ServerExchange::new(verifier, true, "server");
        let body = sent(login.answer(SASL, cache));
        let (is_plus, first) = parse_initial_response(body.expose()).unwrap();
        let first = server.client_first(is_plus, first).unwrap();
        let mut step = login.answer(AuthRequest::SaslContinue(&first), cache);
        while let Ok(ServerLoginStep::Stretch) = step {
            step = login.stretch(cache, 1);
        }
        server.client_final(sent(step).expose()).unwrap().message
    }

    #[test]
    fn requests_are_told_apart() {
        let cases: [(&[u8], Result<AuthRequest<'_>, ServerLoginError>); 12] = [
            (b"\0\0\0\0", Ok(AuthRequest::Ok)),
            (b"\0\0\0\x03", Ok(AuthRequest::Cleartext)),
            (
                b"\0\0\0\x05\x01\x02\x03\x04",
                Ok(AuthRequest::Md5 { salt: SALT }),
            ),
            (
                b"\0\0\0\x0aX\0\0",
                Ok(AuthRequest::Sasl {
                    mechanisms: b"X\0\0",
                }),
            ),
            (b"\0\0\0\x0bdata", Ok(AuthRequest::SaslContinue(b"data"))),
            (b"\0\0\0\x0cdata", Ok(AuthRequest::SaslFinal(b"data"))),
            (b"\0\0\0\x07", Ok(AuthRequest::Other(7))),
            (b"\xff\xff\xff\xff", Ok(AuthRequest::Other(-1))),
            (b"\0\0\0\0x", Err(ServerLoginError::Malformed)),
            (b"\0\0\0\x05\x01\x02\x03", Err(ServerLoginError::Malformed)),
            (
                b"\0\0\0\x05\x01\x02\x03\x04\x05",
                Err(ServerLoginError::Malformed),
            ),
            (b"\0\0\0", Err(ServerLoginError::Malformed)),
        ];
        for (body, want) in cases {
            assert_eq!(AuthRequest::parse(body), want, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn a_server_that_trusts_needs_no_secret() {
        assert_eq!(
            first_answer(ServerCredentials::Nothing, AuthRequest::Ok),
            Ok(ServerLoginStep::Done)
        );
    }

    #[test]
    fn a_password_answers_clear_text_and_md5() {
        let body = sent(first_answer(password(), AuthRequest::Cleartext));
        assert_eq!(body.expose(), b"pencil\0");
        let from_password = sent(first_answer(password(), AuthRequest::Md5 { salt: SALT }));
        let from_secret = sent(first_answer(md5(), AuthRequest::Md5 { salt: SALT }));
        assert_eq!(from_password, from_secret);
        let want = md5_response(&*md5_secret(b"pencil", "user"), SALT);
        assert_eq!(from_secret.expose(), [want.as_bytes(), b"\0"].concat());
    }

    #[test]
    fn a_secret_of_the_wrong_kind_is_named() {
        let cases = [
            (
                md5(),
                SASL,
                "server asks for SCRAM-SHA-256 but only an md5 secret is known",
            ),
            (
                md5(),
                AuthRequest::Cleartext,
                "server asks for a clear-text password but only an md5 secret is known",
            ),
            (
                ServerCredentials::Keys(learned()),
                AuthRequest::Cleartext,
                "server asks for a clear-text password but only a pair of SCRAM keys is known",
            ),
            (
                ServerCredentials::Keys(learned()),
                AuthRequest::Md5 { salt: SALT },
                "server asks for an md5 password but only a pair of SCRAM keys is known",
            ),
            (
                ServerCredentials::VerifierOnly,
                SASL,
                "server asks for SCRAM-SHA-256 but only a SCRAM verifier is known",
            ),
            (
                ServerCredentials::Nothing,
                SASL,
                "server asks for SCRAM-SHA-256 but no secret is known",
            ),
            (
                ServerCredentials::Nothing,
                AuthRequest::Cleartext,
                "server asks for a clear-text password but no secret is known",
            ),
            (
                ServerCredentials::Password(Secret::new("a\0b")),
                AuthRequest::Cleartext,
                "server asks for a clear-text password but only a password that cannot be sent is known",
            ),
            (
                password(),
                AuthRequest::Other(7),
                "server asks for unsupported authentication method 7",
            ),
            (
                password(),
                AuthRequest::Sasl {
                    mechanisms: b"SCRAM-SHA-256-PLUS\0\0",
                },
                "server offers no SASL mechanism that is supported",
            ),
            (
                password(),
                AuthRequest::Sasl { mechanisms: b"" },
                "server offers no SASL mechanism that is supported",
            ),
        ];
        for (credentials, request, want) in cases {
            assert_eq!(
                first_answer(credentials, request).unwrap_err().to_string(),
                want
            );
        }
    }

    #[test]
    fn scram_logs_in_with_a_password_or_with_keys() {
        for credentials in [password(), ServerCredentials::Keys(learned())] {
            let mut login = login(credentials);
            let last = up_to_client_final(&mut login);
            let step = login.answer(AuthRequest::SaslFinal(&last), &mut kdf());
            assert_eq!(step, Ok(ServerLoginStep::Await));
            assert_eq!(
                login.answer(AuthRequest::Ok, &mut kdf()),
                Ok(ServerLoginStep::Done)
            );
        }
    }

    #[test]
    fn a_remembered_password_is_answered_without_stretching() {
        let cache = &mut kdf();
        for round in 0..2 {
            let mut login = login(password());
            sent(login.answer(SASL, cache));
            let nonce = nonce_text(&[5; NONCE_RANDOM_BYTES]);
            let first = format!("r={nonce}x,s=c2FsdA==,i=3");
            let step = login.answer(AuthRequest::SaslContinue(first.as_bytes()), cache);
            match (round, step) {
                (0, Ok(ServerLoginStep::Stretch)) => sent(login.stretch(cache, 9)),
                (1, step) => sent(step),
                (round, step) => panic!("{round}: {step:?}"),
            };
        }
    }

    #[test]
    fn ok_before_the_server_has_proved_itself_is_refused() {
        let mut early = login(password());
        sent(early.answer(SASL, &mut kdf()));
        assert_eq!(
            early.answer(AuthRequest::Ok, &mut kdf()),
            Err(ServerLoginError::Unproven)
        );
        let mut late = login(password());
        up_to_client_final(&mut late);
        assert_eq!(
            late.answer(AuthRequest::Ok, &mut kdf()),
            Err(ServerLoginError::Unproven)
        );
        assert_eq!(
            late.answer(AuthRequest::Ok, &mut kdf()),
            Err(ServerLoginError::OutOfOrder)
        );
    }

    #[test]
    fn a_server_cannot_step_down_to_clear_text_midway() {
        let mut downgraded = login(password());
        up_to_client_final(&mut downgraded);
        let step = downgraded.answer(AuthRequest::Cleartext, &mut kdf());
        assert_eq!(step, Err(ServerLoginError::OutOfOrder));
        let mut twice = login(password());
        sent(twice.answer(AuthRequest::Md5 { salt: SALT }, &mut kdf()));
        let step = twice.answer(AuthRequest::Cleartext, &mut kdf());
        assert_eq!(step, Err(ServerLoginError::OutOfOrder));
    }

    #[test]
    fn a_wrong_server_signature_is_refused() {
        let mut login = login(password());
        up_to_client_final(&mut login);
        let forged = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let step = login.answer(AuthRequest::SaslFinal(forged), &mut kdf());
        assert_eq!(
            step,
            Err(ServerLoginError::Scram(ScramError::WrongServerSignature))
        );
    }

    #[test]
    fn keys_of_another_secret_are_not_sent_and_the_reason_is_told() {
        let cases = [
            ("r=%,s=c2FsdA==,i=3", None),
            (
                "r=%,s=c2FsdA==,i=4",
                Some(ServerLoginError::OtherIterations {
                    server: 4,
                    known: 3,
                }),
            ),
            ("r=%,s=cGVwcGVy,i=3", Some(ServerLoginError::OtherSalt)),
        ];
        for (template, fault) in cases {
            let mut login = login(ServerCredentials::Keys(learned()));
            let cache = &mut kdf();
            let first = sent(login.answer(SASL, cache));
            let text = String::from_utf8_lossy(first.expose()).into_owned();
            let nonce = text.rsplit("r=").next().unwrap();
            let server_first = template.replace('%', &format!("{nonce}server"));
            let step = login.answer(AuthRequest::SaslContinue(server_first.as_bytes()), cache);
            assert_eq!(step.err(), fault, "{template}");
        }
    }
}
