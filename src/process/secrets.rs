//! Secrets that stand in a file or in the environment instead of the configuration.

use super::error::StartError;
use crate::base::Secret;
use crate::base::limit::AUTH_MESSAGE_BYTES_MAX;
use crate::config::Config;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Fetches the secrets that databases and users name the place of; they stand in the configuration
/// from then on as if they had been written there. Gives what is odd about them.
///
/// # Errors
/// [`StartError::Secret`] for the first that cannot be had.
pub(super) fn fetch(config: &mut Config) -> Result<Vec<String>, StartError> {
    let mut remarks = Vec::new();
    for (name, database) in &mut config.databases {
        let (file, variable) = (&database.password_file, &database.password_env);
        let table = format!("databases.{name}");
        if let Some(secret) = secret(&table, file.as_deref(), variable, &mut remarks)? {
            let database = Arc::make_mut(database);
            database.password = Some(secret);
            database.password_file = None;
            database.password_env.clear();
        }
    }
    for (name, user) in &mut config.users {
        let (file, variable) = (&user.password_file, &user.password_env);
        let table = format!("users.{name}");
        if let Some(secret) = secret(&table, file.as_deref(), variable, &mut remarks)? {
            let user = Arc::make_mut(user);
            user.password = Some(secret);
            user.password_file = None;
            user.password_env.clear();
        }
    }
    Ok(remarks)
}

fn secret(
    table: &str,
    file: Option<&Path>,
    variable: &str,
    remarks: &mut Vec<String>,
) -> Result<Option<Secret>, StartError> {
    let fetched = match (file, variable) {
        (Some(file), _) => of_file(file, remarks).map_err(|reason| ("password_file", reason)),
        (None, "") => return Ok(None),
        (None, variable) => of_environment(variable).map_err(|reason| ("password_env", reason)),
    };
    let fetched = fetched.map_err(|(key, reason)| StartError::Secret {
        key: format!("{table}.{key}"),
        reason,
    });
    fetched.map(Some)
}

fn of_file(path: &Path, remarks: &mut Vec<String>) -> Result<Secret, String> {
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(told)?;
    let mode = file.metadata().map_err(told)?.permissions().mode();
    if mode & 0o007 != 0 {
        let (path, mode) = (path.display(), mode & 0o777);
        remarks.push(format!(
            "{path}: everybody may read or write this file with a password (mode {mode:o})"
        ));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let bytes_max = AUTH_MESSAGE_BYTES_MAX as u64 + 2;
    file.take(bytes_max).read_to_end(&mut bytes).map_err(told)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    checked(line).map_err(|fault| format!("{}: its first line {fault}", path.display()))
}

fn of_environment(variable: &str) -> Result<Secret, String> {
    let value = std::env::var_os(variable);
    let value = value.ok_or_else(|| format!("no environment variable {variable}"))?;
    let bytes = Zeroizing::new(value.into_vec());
    checked(&bytes).map_err(|fault| format!("environment variable {variable} {fault}"))
}

fn checked(bytes: &[u8]) -> Result<Secret, &'static str> {
    match bytes.len() {
        0 => Err("is empty"),
        1..=AUTH_MESSAGE_BYTES_MAX if bytes.contains(&0) => Err("contains a zero byte"),
        1..=AUTH_MESSAGE_BYTES_MAX => Ok(Secret::new(bytes)),
        _ => Err("is too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Result<Secret, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        of_file(&path, &mut Vec::new())
    }

    #[test]
    fn first_line_of_the_file_is_the_secret() {
        for content in [&b"x y "[..], b"x y \n", b"x y \r\nmore\n"] {
            assert_eq!(file(content), Ok(Secret::new("x y ")));
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_without_being_shown() {
        let long = vec![b'x'; AUTH_MESSAGE_BYTES_MAX + 1];
        for content in [&b""[..], b"\nx", b"hunter2\0", &long] {
            let reason = file(content).unwrap_err();
            assert!(
                !reason.contains("hunter2") && !reason.contains("xxx"),
                "{reason}"
            );
        }
        assert!(of_file(Path::new("/nonexistent/secret"), &mut Vec::new()).is_err());
        assert!(of_file(Path::new("/dev/zero"), &mut Vec::new()).is_err());
        assert!(of_environment("RINGBOUNCER_NO_SUCH_VARIABLE").is_err());
    }

    #[test]
    fn file_that_everybody_may_read_is_remarked_upon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "x").unwrap();
        for (mode, count) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let mut remarks = Vec::new();
            of_file(&path, &mut remarks).unwrap();
            assert_eq!(remarks.len(), count, "{mode:o}: {remarks:?}");
        }
    }
}
