//! Makes `userlist.txt` lines with SCRAM secrets, for whoever knows the password.

use crate::auth::{KdfCache, PASSWORD_BYTES_MAX, ScramVerifier, user_line};
use crate::base::Secret;
use crate::base::limit::USER_NAME_BYTES_MAX;
use std::io::{self, BufRead, IsTerminal};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// PostgreSQL's SCRAM_DEFAULT_SALT_LEN.
const SALT_BYTES: usize = 16;

/// Why there is no verifier.
#[derive(Debug, Error)]
pub enum VerifierError {
    /// The name cannot stand in a user list.
    #[error("user name must have 1 to {USER_NAME_BYTES_MAX} bytes and no line end")]
    Name,
    /// The password cannot be one.
    #[error("password must have 1 to {PASSWORD_BYTES_MAX} bytes and no zero byte")]
    Password,
    /// The two passwords typed in differ.
    #[error("the two passwords are not the same")]
    Differ,
    /// The password could not be read.
    #[error("cannot read the password from {place}")]
    Read {
        /// From where.
        place: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No random salt.
    #[error("cannot get random bytes: {0}")]
    Random(getrandom::Error),
}

/// The `userlist.txt` line for `user` with a fresh salt. Without a `password` it is the first line of
/// `file`, else it is asked for twice on the terminal, else it is the first line of standard input.
///
/// # Errors
/// If there is no usable password.
pub fn scram_user_line(
    user: &str,
    password: Option<String>,
    file: Option<&Path>,
    iterations: u32,
) -> Result<String, VerifierError> {
    if user.is_empty() || user.len() > USER_NAME_BYTES_MAX || user.contains(['\n', '\r', '\0']) {
        return Err(VerifierError::Name);
    }
    let password = Secret::new(match (password, file) {
        (Some(password), _) => password,
        (None, Some(file)) => std::fs::File::open(file)
            .and_then(|file| first_line(io::BufReader::new(file)))
            .map_err(|source| cannot_read(file, source))?,
        (None, None) => ask(user)?,
    });
    let bytes = password.expose();
    if bytes.is_empty() || bytes.len() > PASSWORD_BYTES_MAX || bytes.contains(&0) {
        return Err(VerifierError::Password);
    }
    let (mut salt, mut process_key) = ([0; SALT_BYTES], [0; 32]);
    getrandom::fill(&mut salt).map_err(VerifierError::Random)?;
    getrandom::fill(&mut process_key).map_err(VerifierError::Random)?;
    let mut kdf = KdfCache::new(process_key, NonZeroUsize::MIN);
    let verifier = ScramVerifier::from_password(bytes, &salt, iterations, &mut kdf);
    Ok(user_line(user, &verifier.to_string()))
}

fn ask(user: &str) -> Result<String, VerifierError> {
    if !io::stdin().is_terminal() {
        return first_line(io::stdin().lock())
            .map_err(|source| cannot_read(Path::new("standard input"), source));
    }
    let prompt = |text: String| {
        rpassword::prompt_password(text)
            .map_err(|source| cannot_read(Path::new("the terminal"), source))
    };
    let password = prompt(format!("Password for {user}: "))?;
    if password != prompt("Again: ".to_owned())? {
        return Err(VerifierError::Differ);
    }
    Ok(password)
}

fn first_line(mut from: impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn cannot_read(place: &Path, source: io::Error) -> VerifierError {
    VerifierError::Read {
        place: place.to_owned(),
        source,
    }
}
