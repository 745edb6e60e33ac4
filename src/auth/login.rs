//! A client's login, as steps without I/O: which challenge, and what its answer proves.
//!
//! ```text
//! start --trust, any, a witness--> Over (accepted or refused)
//! start --> Judged    --answer--> Awaiting --judged--> Over
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
    CleartextCheck, Found, Judge, KdfCache, LearnedKeys, LoginError, NONCE_RANDOM_BYTES, Refusal,
    ScramError, ScramVerifier, ServerCredentials, ServerExchange, Stretch, Verifier, Witness,
    made_up_salt, md5_response_matches, mock_verifier, nonce_text,
};
use crate::base::Secret;

/// How a client has to prove who it is (`auth_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all; the user need not even exist.
    Any,
    /// Not at all; the user must exist.
    Trust,
    /// By something outside of this exchange that has spoken already; the user must exist.
    Witnessed {
        /// What it is.
        witness: Witness,
        /// Whether it agrees that the client is who it says.
        agrees: bool,
    },
    /// By the password in clear text, which somebody else judges.
    Judged(Judge),
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
    /// Ask the judge about this password, then call [`Login::judged`].
    Judge(Secret),
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
    Judged(Judge),
    Awaiting {
        judge: Judge,
        password: Secret,
    },
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
    Keys { salt: Vec<u8>, iterations: u32 },
    Password(Secret),
    Nothing,
}

type Step = Result<LoginStep, LoginError>;

impl Login {
    /// Decides on the challenge.
    ///
    /// # Errors
    /// [`LoginError::Trust`] and [`LoginError::Witness`] at once; all other refusals wait for the
    /// client's answer.
    pub fn start(request: &LoginRequest<'_>) -> Result<(Login, LoginStep), LoginError> {
        let is_scram = match request.found {
            Found::Secret(verifier) => matches!(verifier, Verifier::Scram(_)),
            Found::Nobody | Found::NoSecret => request.mostly_scram,
        };
        match request.method {
            Method::Any => Ok(accept_at_once(request)),
            Method::Trust if request.found == Found::Nobody => Err(LoginError::Trust),
            Method::Trust => Ok(accept_at_once(request)),
            Method::Witnessed { witness, agrees } => start_witnessed(request, witness, agrees),
            Method::Judged(judge) => Ok(start_judged(request, judge)),
            Method::Plain => Ok(start_cleartext(request)),
            Method::Md5 if !is_scram => Ok(start_md5(request)),
            Method::Md5 | Method::ScramSha256 => Ok(start_scram(request)),
        }
    }

    /// Takes the body of a `p` message. After an error the login is over.
    pub fn answer(&mut self, body: &[u8], kdf: &mut KdfCache) -> Step {
        match mem::replace(&mut self.state, State::Over) {
            State::Judged(judge) => self.take_judged(judge, body),
            State::Cleartext { verifier } => self.take_cleartext(&verifier, body, kdf),
            State::Md5 { verifier, salt } => self.take_md5(verifier, salt, body),
            State::ScramFirst { proof, nonce } => self.take_initial(proof, nonce, body, kdf),
            State::ScramFinal { exchange, yields } => self.take_final(exchange, yields, body),
            State::Awaiting { .. }
            | State::CheckingCleartext { .. }
            | State::MakingUp { .. }
            | State::Over => Err(LoginError::OutOfOrder),
        }
    }

    /// Takes the verdict that [`LoginStep::Judge`] asked for. The password is kept for servers.
    pub fn judged(&mut self, is_right: bool) -> Step {
        match mem::replace(&mut self.state, State::Over) {
            State::Awaiting { password, .. } if is_right => Ok(LoginStep::Accepted(Accepted {
                scram_final: None,
                credentials: ServerCredentials::Password(password),
            })),
            State::Awaiting { judge, .. } => Err(LoginError::Judge(judge)),
            _ => Err(LoginError::OutOfOrder),
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

    /// Does all the stretching that [`LoginStep::Stretch`] asked for, in milliseconds, with a `pause` after every slice of
    /// it: for a thread that may take so long. [`Login::stretch`] then goes on at once.
    pub fn stretch_ahead(&mut self, pause: impl Fn()) {
        match &mut self.state {
            State::CheckingCleartext { check, .. } => check.stretch_ahead(pause),
            State::MakingUp { stretch, .. } => drop(stretch.finish(pause)),
            _ => {}
        }
    }

    fn keep_stretching(&mut self, state: State) -> Step {
        self.state = state;
        Ok(LoginStep::Stretch)
    }

    fn take_judged(&mut self, judge: Judge, body: &[u8]) -> Step {
        let password = terminated(body)?;
        if password.is_empty() {
            return Err(LoginError::EmptyPassword);
        }
        let password = Secret::new(password);
        self.state = State::Awaiting {
            judge,
            password: password.clone(),
        };
        Ok(LoginStep::Judge(password))
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
                let yields = Yields::Keys {
                    salt: verifier.salt.clone(),
                    iterations: verifier.iterations,
                };
                self.send_server_first(verifier, yields, &nonce, initial)
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
            Yields::Keys { salt, iterations } => ServerCredentials::Keys(LearnedKeys {
                keys: done.keys,
                salt,
                iterations,
            }),
            Yields::Password(password) => ServerCredentials::Password(password),
            Yields::Nothing => ServerCredentials::Nothing,
        };
        Ok(LoginStep::Accepted(Accepted {
            scram_final: Some(done.message),
            credentials,
        }))
    }
}

fn accept_at_once(request: &LoginRequest<'_>) -> (Login, LoginStep) {
    let credentials = ServerCredentials::from_verifier(request.found.verifier());
    let accepted = LoginStep::Accepted(Accepted {
        scram_final: None,
        credentials,
    });
    (login(request, None, State::Over), accepted)
}

/// A witness speaks of names, not of users: the user must exist as well.
fn start_witnessed(
    request: &LoginRequest<'_>,
    witness: Witness,
    agrees: bool,
) -> Result<(Login, LoginStep), LoginError> {
    match request.found {
        _ if !agrees => Err(LoginError::Witness(witness, Refusal::WrongName)),
        Found::Nobody => Err(LoginError::Witness(witness, Refusal::UnknownUser)),
        Found::NoSecret | Found::Secret(_) => Ok(accept_at_once(request)),
    }
}

fn start_judged(request: &LoginRequest<'_>, judge: Judge) -> (Login, LoginStep) {
    let login = login(request, None, State::Judged(judge));
    (login, LoginStep::Challenge(Challenge::Cleartext))
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
mod tests;
