//! Performs a client's login: sends the challenges that `auth` decides on, reads the answers.

use super::farewell::Farewell;
use super::intake::{Intake, IntakeError};
use crate::auth::{
    Accepted, Challenge, KdfCache, Login, LoginError, LoginRequest, LoginStep, SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS, ServerCredentials,
};
use crate::base::Secret;
use crate::wire::backend;
use std::cell::RefCell;

/// A client that has proved who it is.
pub struct Account {
    /// What its login taught us for logins to servers.
    pub credentials: ServerCredentials,
}

/// Why a client did not get in.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticateError {
    /// It went away or broke the protocol.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// It could not prove who it is.
    #[error("login failed")]
    Login(#[from] LoginError),
}

impl AuthenticateError {
    /// What the client is told, if it is still there.
    pub fn farewell(&self) -> Option<Farewell> {
        match self {
            AuthenticateError::Intake(error) => super::reject_protocol(error),
            AuthenticateError::Login(error) => Some(Farewell::new(error.client_text())),
        }
    }
}

/// What a login needs done that takes longer than a shard can afford.
pub trait Outside {
    /// Whether a password is right, if the method leaves that to somebody else.
    fn judge(&self, password: Secret) -> impl Future<Output = bool>;
    /// [`Login::stretch_ahead`], elsewhere; `None` if nobody has the time.
    fn stretch(&self, login: Login) -> impl Future<Output = Option<Login>>;
}

/// Runs the login to its end; AuthenticationOk is not sent yet.
///
/// # Errors
/// [`AuthenticateError`].
pub async fn authenticate(
    intake: &mut Intake,
    request: &LoginRequest<'_>,
    kdf: &RefCell<KdfCache>,
    outside: &impl Outside,
) -> Result<Account, AuthenticateError> {
    let (mut login, mut step) = Login::start(request)?;
    loop {
        step = match step {
            LoginStep::Challenge(challenge) => {
                intake.socket().send(challenge_message(challenge));
                answer(intake, &mut login, kdf).await?
            }
            LoginStep::Continue(data) => {
                let mut out = Vec::new();
                backend::authentication_sasl_continue(&mut out, &data);
                intake.socket().send(out);
                answer(intake, &mut login, kdf).await?
            }
            LoginStep::Stretch => {
                login = outside.stretch(login).await.ok_or(LoginError::Overload)?;
                login.stretch(&mut kdf.borrow_mut(), 0)?
            }
            LoginStep::Judge(password) => login.judged(outside.judge(password).await)?,
            LoginStep::Accepted(accepted) => return Ok(accept(intake, accepted)),
        };
    }
}

async fn answer(
    intake: &mut Intake,
    login: &mut Login,
    kdf: &RefCell<KdfCache>,
) -> Result<LoginStep, AuthenticateError> {
    let body = zeroize::Zeroizing::new(intake.password_message().await?);
    Ok(login.answer(&body, &mut kdf.borrow_mut())?)
}

fn challenge_message(challenge: Challenge) -> Vec<u8> {
    let mut out = Vec::new();
    match challenge {
        Challenge::Cleartext => backend::authentication_cleartext(&mut out),
        Challenge::Md5 { salt } => backend::authentication_md5(&mut out, salt),
        Challenge::Scram { plus: false } => {
            backend::authentication_sasl(&mut out, &[SCRAM_SHA_256]);
        }
        Challenge::Scram { plus: true } => {
            backend::authentication_sasl(&mut out, &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
        }
    }
    out
}

fn accept(intake: &Intake, accepted: Accepted) -> Account {
    if let Some(data) = accepted.scram_final {
        let mut out = Vec::new();
        backend::authentication_sasl_final(&mut out, &data);
        intake.socket().send(out);
    }
    Account {
        credentials: accepted.credentials,
    }
}
