//! A client's login, as steps without I/O: which challenge, and what its answer proves.
//!
//! ```text
//! start --trust--> Over (accepted or refused)
//! start --> Cleartext --answer--> [CheckingCleartext --stretch-->] Over
//! start --> Md5       --answer--> Over
//! start --> ScramFirst --answer--> [MakingUp --stretch-->] ScramFinal --answer--> Over
//! ```
//! A user who cannot log in (unknown, without a secret, or with one of the wrong kind) gets the
//! challenge of a user who can, and fails after its answer with the same text.

use std::mem;
use std::sync::Arc;

use super::scram::{InitialResponse, parse_initial_response};
use super::{
    CleartextCheck, Found, KdfCache, LoginError, NONCE_RANDOM_BYTES, Refusal, ScramError,
    ScramVerifier, ServerCredentials, ServerExchange, Stretch, Verifier, made_up_salt,
    md5_response_matches, mock_verifier, nonce_text,
};
use crate::base::Secret;

/// How a client has to prove who it is (`auth_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all; the user must exist.
    Trust,
    /// By the password in clear text, checked against any kind of secret.
    Plain,
    /// By md5 from an md5 or plain-text secret; a user with a SCRAM secret is asked for SCRAM.
    Md5,
    /// By SCRAM-SHA-256 from a SCRAM or plain-text secret.
    ScramSha256,
}

/// All that a login depends on.
#[derive(Clone, Copy)]
pub struct LoginRequest<'a> {
    /// The method.
    pub method: Method,
    /// The user name of the start-up packet.
    pub user: &'a str,
    /// What the look-up of that name gave.
    pub found: Found<'a>,
    /// Whether most users have SCRAM secrets ([`Users::are_mostly_scram`](super::Users::are_mostly_scram)):
    /// then `md5` asks those without a secret for SCRAM, as it asks most of the others.
    pub mostly_scram: bool,
    /// Random bytes, drawn once per process and the same on all shards.
    pub process_secret: &'a [u8; 32],
    /// `scram_iterations`, for verifiers that nobody stored.
    pub scram_iterations: u32,
    /// Random bytes, used once.
    pub md5_salt: [u8; 4],
    /// Random bytes, used once.
    pub scram_nonce: [u8; NONCE_RANDOM_BYTES],
    /// Channel-binding data of the client's connection, if it is encrypted: then SCRAM is offered with
    /// channel binding as well.
    pub channel: Option<&'a Arc<[u8]>>,
}

/// What the client is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password.
    Md5 {
        /// The salt to send.
        salt: [u8; 4],
    },
    /// AuthenticationSASL with the mechanism [`SCRAM_SHA_256`](super::SCRAM_SHA_256).
    Scram {
        /// And, before it, with [`SCRAM_SHA_256_PLUS`](super::SCRAM_SHA_256_PLUS).
        plus: bool,
    },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum LoginStep {
    /// Send the challenge, then pass the body of the client's `p` message to [`Login::answer`].
    Challenge(Challenge),
    /// Send AuthenticationSASLContinue with these bytes, then as above.
    Continue(Vec<u8>),
    /// Call [`Login::stretch`] until it gives another step.
    Stretch,
    /// The client is who it says.
    Accepted(Accepted),
}

/// A login that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    /// If set: send AuthenticationSASLFinal with these bytes before AuthenticationOk.
    pub scram_final: Option<Vec<u8>>,
    /// What this login taught us for logins to servers.
    pub credentials: ServerCredentials,
}

/// One client's login.
pub struct Login {
    user: String,
    /// Why this client cannot get in whatever it answers; `None` if it can.
    hopeless: Option<Refusal>,
    /// Channel-binding data, if channel binding is offered.
    channel: Option<Arc<[u8]>>,
    state: State,
}

enum State {
    Cleartext {
        verifier: Verifier,
    },
    CheckingCleartext {
        check: CleartextCheck,
        password: Secret,
    },
    Md5 {
        verifier: Verifier,
        salt: [u8; 4],
    },
    ScramFirst {
        proof: ScramProof,
        nonce: String,
    },
    MakingUp {
        stretch: Stretch,
        proof: PlainProof,
        is_plus: bool,
        client_first: Vec<u8>,
        nonce: String,
    },
    ScramFinal {
        exchange: ServerExchange,
        yields: Yields,
    },
    Over,
}

/// What a SCRAM login is checked against.
enum ScramProof {
    Stored(ScramVerifier),
    Plain(PlainProof),
    Mock(ScramVerifier),
}

/// A plain-text secret and how its verifier is made up.
struct PlainProof {
    password: Secret,
    salt: [u8; 16],
    iterations: u32,
}

/// What a SCRAM login teaches. The keys recovered from a made-up verifier fit no server.
enum Yields {
    Keys,
    Password(Secret),
    Nothing,
}

type Step = Result<LoginStep, LoginError>;

impl Login {
    /// Decides on the challenge.
    ///
    /// # Errors
    /// [`LoginError::Trust`] at once; all other refusals wait for the client's answer.
    pub fn start(request: &LoginRequest<'_>) -> Result<(Login, LoginStep), LoginError> {
        let is_scram = match request.found {
            Found::Secret(verifier) => matches!(verifier, Verifier::Scram(_)),
            Found::Nobody | Found::NoSecret => request.mostly_scram,
        };
        match request.method {
            Method::Trust => start_trust(request),
            Method::Plain => Ok(start_cleartext(request)),
            Method::Md5 if !is_scram => Ok(start_md5(request)),
            Method::Md5 | Method::ScramSha256 => Ok(start_scram(request)),
        }
    }

    /// Takes the body of a `p` message. After an error the login is over.
    pub fn answer(&mut self, body: &[u8], kdf: &mut KdfCache) -> Step {
        match mem::replace(&mut self.state, State::Over) {
            State::Cleartext { verifier } => self.take_cleartext(&verifier, body, kdf),
            State::Md5 { verifier, salt } => self.take_md5(verifier, salt, body),
            State::ScramFirst { proof, nonce } => self.take_initial(proof, nonce, body, kdf),
            State::ScramFinal { exchange, yields } => self.take_final(exchange, yields, body),
            State::CheckingCleartext { .. } | State::MakingUp { .. } | State::Over => {
                Err(LoginError::OutOfOrder)
            }
        }
    }

    /// Does at most `iterations` more of the key stretching that [`LoginStep::Stretch`] asked for.
    pub fn stretch(&mut self, kdf: &mut KdfCache, iterations: u32) -> Step {
        match mem::replace(&mut self.state, State::Over) {
            State::CheckingCleartext {
                mut check,
                password,
            } => match check.advance(kdf, iterations) {
                Some(matches) => self.settle_cleartext(matches, password),
                None => self.keep_stretching(State::CheckingCleartext { check, password }),
            },
            State::MakingUp {
                mut stretch,
                proof,
                is_plus,
                client_first,
                nonce,
            } => {
                let Some(keys) = stretch.advance(iterations) else {
                    let state = State::MakingUp {
                        stretch,
                        proof,
                        is_plus,
                        client_first,
                        nonce,
                    };
                    return self.keep_stretching(state);
                };
                kdf.remember(&stretch);
                let verifier = ScramVerifier::from_keys(&keys, &proof.salt, proof.iterations);
                self.send_server_first(
                    verifier,
                    Yields::Password(proof.password),
                    &nonce,
                    (is_plus, &client_first),
                )
            }
            _ => Err(LoginError::OutOfOrder),
        }
    }

    fn keep_stretching(&mut self, state: State) -> Step {
        self.state = state;
        Ok(LoginStep::Stretch)
    }

    fn take_cleartext(&mut self, verifier: &Verifier, body: &[u8], kdf: &mut KdfCache) -> Step {
        let password = terminated(body)?;
        if password.is_empty() {
            return Err(LoginError::EmptyPassword);
        }
        let check = CleartextCheck::begin(verifier, &self.user, password, kdf);
        self.state = State::CheckingCleartext {
            check,
            password: Secret::new(password),
        };
        self.stretch(kdf, 0)
    }

    fn settle_cleartext(&self, matches: bool, password: Secret) -> Step {
        self.settle_password(matches, ServerCredentials::Password(password))
    }

    fn take_md5(&self, verifier: Verifier, salt: [u8; 4], body: &[u8]) -> Step {
        let response = terminated(body)?;
        if response.is_empty() {
            return Err(LoginError::EmptyPassword);
        }
        let matches = match &verifier {
            Verifier::Md5(digits) => md5_response_matches(digits.expose(), salt, response),
            Verifier::Plain(password) => {
                let digits = super::md5_secret(password.expose(), &self.user);
                md5_response_matches(&*digits, salt, response)
            }
            Verifier::Scram(_) => false,
        };
        self.settle_password(matches, ServerCredentials::from_verifier(Some(&verifier)))
    }

    fn settle_password(&self, matches: bool, credentials: ServerCredentials) -> Step {
        match self.hopeless {
            Some(refusal) => Err(LoginError::Password(refusal)),
            None if !matches => Err(LoginError::Password(Refusal::WrongPassword)),
            None => Ok(LoginStep::Accepted(Accepted {
                scram_final: None,
                credentials,
            })),
        }
    }

    fn take_initial(
        &mut self,
        proof: ScramProof,
        nonce: String,
        body: &[u8],
        kdf: &mut KdfCache,
    ) -> Step {
        let initial = parse_initial_response(body).map_err(LoginError::SaslBroken)?;
        match proof {
            ScramProof::Stored(verifier) => {
                self.send_server_first(verifier, Yields::Keys, &nonce, initial)
            }
            ScramProof::Mock(verifier) => {
                self.send_server_first(verifier, Yields::Nothing, &nonce, initial)
            }
            ScramProof::Plain(proof) => {
                let stretch = kdf.begin(proof.password.expose(), &proof.salt, proof.iterations);
                let (is_plus, client_first) = initial;
                self.state = State::MakingUp {
                    stretch,
                    proof,
                    is_plus,
                    client_first: client_first.to_vec(),
                    nonce,
                };
                self.stretch(kdf, 0)
            }
        }
    }

    fn send_server_first(
        &mut self,
        verifier: ScramVerifier,
        yields: Yields,
        nonce: &str,
        (is_plus, client_first): InitialResponse<'_>,
    ) -> Step {
        let exchange = ServerExchange::new(verifier, self.hopeless.is_none(), nonce);
        let mut exchange = exchange.offering(self.channel.clone());
        let message = exchange
            .client_first(is_plus, client_first)
            .map_err(LoginError::SaslBroken)?;
        self.state = State::ScramFinal { exchange, yields };
        Ok(LoginStep::Continue(message))
    }

    fn take_final(&self, mut exchange: ServerExchange, yields: Yields, body: &[u8]) -> Step {
        let done = exchange.client_final(body).map_err(|error| match error {
            ScramError::WrongProof => {
                LoginError::Sasl(self.hopeless.unwrap_or(Refusal::WrongPassword))
            }
            error => LoginError::SaslBroken(error),
        })?;
        let credentials = match yields {
            Yields::Keys => ServerCredentials::Keys(done.keys),
            Yields::Password(password) => ServerCredentials::Password(password),
            Yields::Nothing => ServerCredentials::Nothing,
        };
        Ok(LoginStep::Accepted(Accepted {
            scram_final: Some(done.message),
            credentials,
        }))
    }
}

fn start_trust(request: &LoginRequest<'_>) -> Result<(Login, LoginStep), LoginError> {
    if request.found == Found::Nobody {
        return Err(LoginError::Trust);
    }
    let credentials = ServerCredentials::from_verifier(request.found.verifier());
    let accepted = LoginStep::Accepted(Accepted {
        scram_final: None,
        credentials,
    });
    Ok((login(request, None, State::Over), accepted))
}

/// A user who cannot log in is checked against a mock SCRAM verifier: the check that takes
/// longest, and the kind of secret that is most common today.
fn start_cleartext(request: &LoginRequest<'_>) -> (Login, LoginStep) {
    let verifier = match request.found {
        Found::Secret(verifier) => verifier.clone(),
        Found::Nobody | Found::NoSecret => Verifier::Scram(mock(request)),
    };
    let login = login(
        request,
        missing(request.found),
        State::Cleartext { verifier },
    );
    (login, LoginStep::Challenge(Challenge::Cleartext))
}

fn start_md5(request: &LoginRequest<'_>) -> (Login, LoginStep) {
    let salt = request.md5_salt;
    let verifier = match request.found {
        Found::Secret(verifier) => verifier.clone(),
        Found::Nobody | Found::NoSecret => Verifier::Md5(Secret::new([b'0'; 32])),
    };
    let login = login(
        request,
        missing(request.found),
        State::Md5 { verifier, salt },
    );
    (login, LoginStep::Challenge(Challenge::Md5 { salt }))
}

fn start_scram(request: &LoginRequest<'_>) -> (Login, LoginStep) {
    let (proof, hopeless) = match request.found {
        Found::Secret(Verifier::Scram(verifier)) => (ScramProof::Stored(verifier.clone()), None),
        Found::Secret(Verifier::Plain(password)) => {
            (ScramProof::Plain(plain_proof(request, password)), None)
        }
        Found::Secret(Verifier::Md5(_)) => {
            (ScramProof::Mock(mock(request)), Some(Refusal::Md5Secret))
        }
        found => (ScramProof::Mock(mock(request)), missing(found)),
    };
    let nonce = nonce_text(&request.scram_nonce);
    let login = login(request, hopeless, State::ScramFirst { proof, nonce });
    let plus = request.channel.is_some();
    (login, LoginStep::Challenge(Challenge::Scram { plus }))
}

fn login(request: &LoginRequest<'_>, hopeless: Option<Refusal>, state: State) -> Login {
    Login {
        user: request.user.to_owned(),
        hopeless,
        channel: request.channel.cloned(),
        state,
    }
}

fn missing(found: Found<'_>) -> Option<Refusal> {
    match found {
        Found::Nobody => Some(Refusal::UnknownUser),
        Found::NoSecret => Some(Refusal::NoSecret),
        Found::Secret(_) => None,
    }
}

fn mock(request: &LoginRequest<'_>) -> ScramVerifier {
    mock_verifier(
        request.process_secret,
        request.user,
        request.scram_iterations,
    )
}

fn plain_proof(request: &LoginRequest<'_>, password: &Secret) -> PlainProof {
    PlainProof {
        password: password.clone(),
        salt: made_up_salt(request.process_secret, request.user),
        iterations: request.scram_iterations,
    }
}

/// The text of a PasswordMessage body: one zero byte, and that at its end.
fn terminated(body: &[u8]) -> Result<&[u8], LoginError> {
    match body.split_last() {
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(LoginError::MalformedPassword),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::scram::{initial_response, testing::kdf};
    use crate::auth::{
        ClientExchange, SCRAM_SHA_256, ScramKeys, made_up_verifier, md5_response, md5_secret,
    };

    const SALT: [u8; 4] = [1, 2, 3, 4];

    fn plain() -> Verifier {
        Verifier::Plain(Secret::new("pencil"))
    }

    fn md5() -> Verifier {
        Verifier::Md5(Secret::new(md5_secret(b"pencil", "user").to_vec()))
    }

    fn scram() -> Verifier {
        Verifier::Scram(ScramVerifier::from_keys(&stored_keys(), b"salt", 3))
    }

    const PLAIN_SCRAM: Challenge = Challenge::Scram { plus: false };

    fn stored_keys() -> ScramKeys {
        kdf().keys(b"pencil", b"salt", 3)
    }

    fn request(method: Method, found: Found<'_>) -> LoginRequest<'_> {
        LoginRequest {
            channel: None,
            method,
            user: "user",
            found,
            mostly_scram: false,
            process_secret: &[9; 32],
            scram_iterations: 3,
            md5_salt: SALT,
            scram_nonce: [5; NONCE_RANDOM_BYTES],
        }
    }

    /// Drives a login as a client who knows `password`. Gives the challenge and the outcome.
    fn run(method: Method, found: Found<'_>, password: &str) -> (Option<Challenge>, Step) {
        let (mut login, step) = match Login::start(&request(method, found)) {
            Ok(started) => started,
            Err(error) => return (None, Err(error)),
        };
        let LoginStep::Challenge(challenge) = step else {
            return (None, Ok(step));
        };
        let cache = &mut kdf();
        let outcome = match challenge {
            Challenge::Cleartext => answer(&mut login, format!("{password}\0").as_bytes(), cache),
            Challenge::Md5 { salt } => {
                let response = md5_response(&*md5_secret(password.as_bytes(), "user"), salt);
                answer(&mut login, format!("{response}\0").as_bytes(), cache)
            }
            Challenge::Scram { .. } => run_scram(&mut login, password, cache),
        };
        (Some(challenge), outcome)
    }

    fn run_scram(login: &mut Login, password: &str, cache: &mut KdfCache) -> Step {
        let mut client = ClientExchange::new("client").unwrap();
        let first = initial_response(SCRAM_SHA_256, &client.client_first()).unwrap();
        let LoginStep::Continue(server_first) = answer(login, &first, cache)? else {
            panic!("no server-first");
        };
        let wanted = client.server_first(&server_first).unwrap();
        let keys = kdf().keys(password.as_bytes(), &wanted.salt, wanted.iterations);
        let outcome = answer(login, &client.client_final(&keys).unwrap(), cache)?;
        if let LoginStep::Accepted(Accepted {
            scram_final: Some(message),
            ..
        }) = &outcome
        {
            client.server_final(message).unwrap();
        }
        Ok(outcome)
    }

    fn answer(login: &mut Login, body: &[u8], cache: &mut KdfCache) -> Step {
        let mut step = login.answer(body, cache);
        while let Ok(LoginStep::Stretch) = step {
            step = login.stretch(cache, 1);
        }
        step
    }

    fn accepted(step: Step) -> ServerCredentials {
        match step {
            Ok(LoginStep::Accepted(accepted)) => accepted.credentials,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn method_and_secret_decide_on_challenge_and_credentials() {
        let password = || ServerCredentials::Password(Secret::new("pencil"));
        let digits = || ServerCredentials::from_verifier(Some(&md5()));
        let keys = || ServerCredentials::Keys(stored_keys());
        let md5_challenge = Challenge::Md5 { salt: SALT };
        let cases = [
            (Method::Trust, plain(), None, password()),
            (Method::Trust, md5(), None, digits()),
            (
                Method::Trust,
                scram(),
                None,
                ServerCredentials::VerifierOnly,
            ),
            (
                Method::Plain,
                plain(),
                Some(Challenge::Cleartext),
                password(),
            ),
            (Method::Plain, md5(), Some(Challenge::Cleartext), password()),
            (
                Method::Plain,
                scram(),
                Some(Challenge::Cleartext),
                password(),
            ),
            (Method::Md5, plain(), Some(md5_challenge), password()),
            (Method::Md5, md5(), Some(md5_challenge), digits()),
            (Method::Md5, scram(), Some(PLAIN_SCRAM), keys()),
            (Method::ScramSha256, plain(), Some(PLAIN_SCRAM), password()),
            (Method::ScramSha256, scram(), Some(PLAIN_SCRAM), keys()),
        ];
        for (method, verifier, challenge, credentials) in cases {
            let (asked, outcome) = run(method, Found::Secret(&verifier), "pencil");
            assert_eq!(asked, challenge, "{method:?} {verifier:?}");
            assert_eq!(accepted(outcome), credentials, "{method:?} {verifier:?}");
        }
    }

    #[test]
    fn a_wrong_password_is_refused_whatever_the_secret() {
        for method in [Method::Plain, Method::Md5, Method::ScramSha256] {
            for verifier in [plain(), md5(), scram()] {
                let (_, outcome) = run(method, Found::Secret(&verifier), "pencils");
                assert!(outcome.is_err(), "{method:?} {verifier:?}");
            }
        }
    }

    #[test]
    fn an_unknown_user_sees_what_a_known_one_with_a_wrong_password_sees() {
        let cases = [
            (Method::Plain, scram(), Challenge::Cleartext),
            (Method::Md5, md5(), Challenge::Md5 { salt: SALT }),
            (Method::ScramSha256, scram(), PLAIN_SCRAM),
            (Method::ScramSha256, plain(), PLAIN_SCRAM),
        ];
        for (method, verifier, challenge) in cases {
            let (asked, outcome) = run(method, Found::Secret(&verifier), "wrong");
            let text = outcome.unwrap_err().client_text();
            for nobody in [Found::Nobody, Found::NoSecret] {
                let (asked_nobody, outcome) = run(method, nobody, "wrong");
                assert_eq!((asked, asked_nobody), (Some(challenge), Some(challenge)));
                assert_eq!(outcome.unwrap_err().client_text(), text);
            }
        }
    }

    #[test]
    fn an_md5_secret_fails_scram_after_a_full_exchange() {
        let verifier = md5();
        let (asked, outcome) = run(Method::ScramSha256, Found::Secret(&verifier), "pencil");
        assert_eq!(asked, Some(PLAIN_SCRAM));
        assert_eq!(outcome, Err(LoginError::Sasl(Refusal::Md5Secret)));
    }

    #[test]
    fn the_log_learns_why_but_the_client_does_not() {
        let reason = |method, found| run(method, found, "x").1.unwrap_err();
        let scram_nobody = reason(Method::ScramSha256, Found::Nobody);
        assert_eq!(scram_nobody, LoginError::Sasl(Refusal::UnknownUser));
        assert_eq!(scram_nobody.client_text(), "SASL authentication failed");
        let md5_blank = reason(Method::Md5, Found::NoSecret);
        assert_eq!(md5_blank, LoginError::Password(Refusal::NoSecret));
        assert_eq!(md5_blank.client_text(), "password authentication failed");
    }

    #[test]
    fn trust_lets_in_whoever_exists() {
        let (_, nobody) = run(Method::Trust, Found::Nobody, "");
        assert_eq!(
            nobody.unwrap_err().client_text(),
            "\"trust\" authentication failed"
        );
        let (_, blank) = run(Method::Trust, Found::NoSecret, "");
        assert_eq!(accepted(blank), ServerCredentials::Nothing);
    }

    #[test]
    fn the_mock_of_a_cleartext_login_stretches_like_a_true_one() {
        for found in [Found::Nobody, Found::Secret(&scram())] {
            let (mut login, _) = Login::start(&request(Method::Plain, found)).unwrap();
            let cache = &mut kdf();
            assert_eq!(login.answer(b"guess\0", cache), Ok(LoginStep::Stretch));
            assert_eq!(login.stretch(cache, 1), Ok(LoginStep::Stretch));
            assert!(login.stretch(cache, 1).is_err());
        }
    }

    #[test]
    fn md5_asks_unknown_users_for_what_it_asks_most_users_for() {
        for (mostly_scram, expected) in
            [(true, PLAIN_SCRAM), (false, Challenge::Md5 { salt: SALT })]
        {
            for found in [Found::Nobody, Found::NoSecret] {
                let request = LoginRequest {
                    mostly_scram,
                    ..request(Method::Md5, found)
                };
                let (_, step) = Login::start(&request).unwrap();
                assert_eq!(step, LoginStep::Challenge(expected));
            }
        }
    }

    #[test]
    fn knowing_the_mock_secret_does_not_help() {
        let zeros = md5_response(&[b'0'; 32], SALT);
        let (mut login, _) = Login::start(&request(Method::Md5, Found::Nobody)).unwrap();
        let step = login.answer(format!("{zeros}\0").as_bytes(), &mut kdf());
        assert_eq!(step, Err(LoginError::Password(Refusal::UnknownUser)));
    }

    #[test]
    fn a_plain_secrets_verifier_is_made_up_once() {
        let cache = &mut kdf();
        let verifier = plain();
        let first = initial_response(SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
        for round in 0..2 {
            let request = request(Method::ScramSha256, Found::Secret(&verifier));
            let (mut login, _) = Login::start(&request).unwrap();
            let step = login.answer(&first, cache).unwrap();
            assert_eq!(step == LoginStep::Stretch, round == 0);
            if step == LoginStep::Stretch {
                login.stretch(cache, 100).unwrap();
            }
        }
        let made_up = made_up_verifier(&[9; 32], "user", b"pencil", 3, cache);
        assert_eq!((cache.len(), made_up.iterations), (1, 3));
    }

    #[test]
    fn malformed_password_messages_are_refused() {
        let cases: [(&[u8], LoginError); 6] = [
            (b"", LoginError::MalformedPassword),
            (b"pencil", LoginError::MalformedPassword),
            (b"pen\0cil\0", LoginError::MalformedPassword),
            (b"pencil\0\0", LoginError::MalformedPassword),
            (b"\0", LoginError::EmptyPassword),
            (b"penci\0", LoginError::Password(Refusal::WrongPassword)),
        ];
        for (body, want) in cases {
            for method in [Method::Plain, Method::Md5] {
                let verifier = plain();
                let request = request(method, Found::Secret(&verifier));
                let (mut login, _) = Login::start(&request).unwrap();
                assert_eq!(login.answer(body, &mut kdf()), Err(want), "{method:?}");
            }
        }
    }

    #[test]
    fn a_login_that_is_over_takes_no_more_messages() {
        let verifier = plain();
        let request = request(Method::Plain, Found::Secret(&verifier));
        let (mut login, _) = Login::start(&request).unwrap();
        let cache = &mut kdf();
        assert_eq!(login.stretch(cache, 1), Err(LoginError::OutOfOrder));
        assert_eq!(
            login.answer(b"pencil\0", cache),
            Err(LoginError::OutOfOrder)
        );
    }

    #[test]
    fn no_junk_gets_anybody_in() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..2000 {
            let method = [Method::Plain, Method::Md5, Method::ScramSha256][(random() % 3) as usize];
            let verifier = [plain(), md5(), scram()][(random() % 3) as usize].clone();
            let request = request(method, Found::Secret(&verifier));
            let (mut login, _) = Login::start(&request).unwrap();
            for _ in 0..3 {
                let mut body: Vec<u8> = (0..random() % 40)
                    .map(|_| random().to_le_bytes()[0])
                    .collect();
                if random() % 2 == 0 {
                    body = initial_response(
                        SCRAM_SHA_256,
                        &[b"n,,n=,r=abc,x=", body.as_slice()].concat(),
                    )
                    .unwrap();
                }
                let step = answer(&mut login, &body, &mut kdf());
                assert!(
                    !matches!(step, Ok(LoginStep::Accepted(_))),
                    "{method:?} {verifier:?}"
                );
            }
        }
    }
}
