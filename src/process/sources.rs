//! Reads the files that make up the configuration: all of them, or none.

use super::error::StartError;
use crate::auth::{UserList, Users};
use crate::config::Config;
use crate::net::{SetupError, TlsSetup};
use crate::shard::Snapshot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DAY_SECONDS: i64 = 24 * 60 * 60;
/// A certificate that expires sooner is warned about when it is read.
const EXPIRES_SOON_SECONDS: i64 = 14 * DAY_SECONDS;

/// Reads and checks the configuration at `path` and the files it names. Certificates that are the same as
/// those of `old` are taken from there.
///
/// # Errors
/// Whatever is wrong with them.
pub fn load(path: &Path, old: Option<&Snapshot>) -> Result<Snapshot, StartError> {
    let config = Config::load(path)?;
    let list = match &config.general.auth_file {
        None => UserList::default(),
        Some(path) => read_user_list(path)?,
    };
    for duplicate in list.duplicates() {
        tracing::warn!(user = %duplicate.name, "user stands in auth_file more than once; the last line counts");
    }
    let configured = config
        .users
        .iter()
        .map(|(name, user)| (name.clone(), user.password.clone()));
    let users = Users::new(configured, list);
    let tls = load_tls(&config, old)?;
    Ok(Snapshot {
        config: Arc::new(config),
        users: Arc::new(users),
        tls: Arc::new(tls),
    })
}

/// Where relative paths start.
///
/// # Errors
/// If it is gone.
pub fn working_directory() -> Result<PathBuf, StartError> {
    std::env::current_dir().map_err(|source| StartError::System {
        what: "find the working directory",
        source,
    })
}

/// Reads the certificates and keys of `config`.
pub(super) fn load_tls(config: &Config, old: Option<&Snapshot>) -> Result<TlsSetup, SetupError> {
    TlsSetup::load(&config.general, old.map(|old| &*old.tls))
}

/// Says which certificates expire soon, or have expired.
pub(super) fn warn_of_expiry(tls: &TlsSetup) {
    for certificate in tls.certificates() {
        let (key, subject) = (certificate.key, &certificate.subject);
        let path = certificate.path.display();
        match certificate.seconds_left() {
            ..0 if certificate.not_after == 0 => {}
            ..0 => tracing::warn!(key, %path, subject, "certificate has expired"),
            left @ 0..EXPIRES_SOON_SECONDS => {
                tracing::warn!(key, %path, subject, days = left / DAY_SECONDS, "certificate expires soon");
            }
            _ => {}
        }
    }
}

fn read_user_list(path: &Path) -> Result<UserList, StartError> {
    let text = std::fs::read(path).map_err(|source| StartError::AuthFile {
        path: path.to_owned(),
        source,
    })?;
    UserList::parse(&text).map_err(|source| StartError::UserList {
        path: path.to_owned(),
        source,
    })
}
