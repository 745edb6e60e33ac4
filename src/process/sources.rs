//! Reads the files that make up the configuration: all of them, or none.

use super::error::StartError;
use crate::auth::{UserList, Users};
use crate::config::Config;
use crate::shard::Snapshot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads and checks the configuration at `path` and the files it names.
///
/// # Errors
/// Whatever is wrong with them.
pub fn load(path: &Path) -> Result<Snapshot, StartError> {
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
    Ok(Snapshot {
        config: Arc::new(config),
        users: Arc::new(users),
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
