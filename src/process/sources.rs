//! Reads the files that make up the configuration: all of them, or none.

use super::error::StartError;
use super::secrets;
use crate::auth::hba::{Hba, HbaSources, IdentMaps, Interface, LdapSettings};
use crate::auth::{UserList, Users};
use crate::config::{AuthType, Config, Dialect};
use crate::net::{SetupError, TlsSetup};
use crate::shard::Snapshot;
use std::io;
use std::net::IpAddr;
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
    let mut config = Config::load(path)?;
    if let Some(old) = old {
        config = config.following(&old.config);
    }
    let mut remarks = secrets::fetch(&mut config)?;
    let users = read_users(&config, old, &mut remarks)?;
    let tls = load_tls(&config, old)?;
    let mut snapshot = with_rules(config, Arc::new(users), Arc::new(tls))?;
    remarks.extend_from_slice(&snapshot.remarks);
    snapshot.remarks = remarks.into();
    Ok(snapshot)
}

/// Logs what is odd about the files, which they may not say before it is known where logs go.
pub(super) fn log_remarks(remarks: &[String]) {
    for remark in remarks {
        tracing::warn!("{remark}");
    }
}

/// `config`, `users` and `tls` together with the rules that the configuration names. Takes the remarks of `config`.
///
/// # Errors
/// If `auth_ldap_options` is wrong; broken files of rules let nobody in.
pub(super) fn with_rules(
    mut config: Config,
    users: Arc<Users>,
    tls: Arc<TlsSetup>,
) -> Result<Snapshot, StartError> {
    let mut remarks = std::mem::take(&mut config.remarks);
    let maps = read_ident_maps(config.general.auth_ident_file.as_deref(), &mut remarks);
    let hba = read_hba(config.general.auth_hba_file.as_deref(), &maps, &mut remarks);
    let ldap = match config.general.auth_ldap_options.as_str() {
        "" => None,
        options => Some(LdapSettings::parse(options).map_err(StartError::Ldap)?),
    };
    Ok(Snapshot {
        config: Arc::new(config),
        users,
        tls,
        hba: Arc::new(hba),
        ldap: ldap.map(Arc::new),
        remarks: remarks.into(),
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
    match config.tls_fault() {
        Some(problem) => Err(SetupError::Whole {
            side: "TLS",
            problem,
        }),
        None => TlsSetup::load(&config.general, old.map(|old| &*old.tls)),
    }
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

/// The users of the configuration and of its `auth_file`. What is wrong with that of PgBouncer's file is told, and no
/// obstacle.
fn read_users(
    config: &Config,
    old: Option<&Snapshot>,
    remarks: &mut Vec<String>,
) -> Result<Users, StartError> {
    let configured = config
        .users
        .iter()
        .map(|(name, user)| (name.clone(), user.password.clone()));
    let is_ini = config.dialect == Dialect::Ini;
    // PgBouncer does not look at it then.
    let is_unread = is_ini && config.general.auth_type == AuthType::Pam;
    let list = match &config.general.auth_file {
        Some(path) if !is_unread => match read_user_list(path, is_ini, remarks) {
            Ok(list) => list,
            // Who was in force stays.
            Err(error @ StartError::AuthFile { .. }) if is_ini => {
                remarks.push(error.to_string());
                let old = old.map_or_else(Users::default, |old| Users::clone(&old.users));
                return Ok(old.with(configured));
            }
            Err(error) => return Err(error),
        },
        _ => UserList::default(),
    };
    for duplicate in list.duplicates() {
        let (name, line) = (&duplicate.name, duplicate.line);
        remarks.push(format!(
            "auth_file: user {name:?} stands in it more than once; line {line} counts"
        ));
    }
    Ok(Users::new(configured, list))
}

fn read_user_list(
    path: &Path,
    is_ini: bool,
    remarks: &mut Vec<String>,
) -> Result<UserList, StartError> {
    let text = std::fs::read(path).map_err(|source| StartError::AuthFile {
        path: path.to_owned(),
        source,
    })?;
    if is_ini {
        let (list, broken) = UserList::parse_up_to_fault(&text);
        let path = path.display();
        remarks.extend(
            broken
                .iter()
                .map(|line| format!("broken auth_file {path}: {line}")),
        );
        return Ok(list);
    }
    UserList::parse(&text).map_err(|source| StartError::UserList {
        path: path.to_owned(),
        source,
    })
}

/// A file that cannot be read has no maps: a rule that names one lets nobody in.
fn read_ident_maps(path: Option<&Path>, remarks: &mut Vec<String>) -> IdentMaps {
    let Some(path) = path else {
        return IdentMaps::default();
    };
    let mut warnings = Vec::new();
    let maps = match std::fs::read(path) {
        Ok(text) => IdentMaps::parse(path, &text, &mut warnings),
        Err(error) => {
            let path = path.display();
            remarks.push(format!("cannot read auth_ident_file {path}: {error}"));
            IdentMaps::default()
        }
    };
    remarks.extend(warnings.iter().map(ToString::to_string));
    maps
}

/// A file that cannot be read has no rules: everybody is refused.
fn read_hba(path: Option<&Path>, maps: &IdentMaps, remarks: &mut Vec<String>) -> Hba {
    let Some(path) = path else {
        return Hba::default();
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            let path = path.display();
            remarks.push(format!(
                "cannot read auth_hba_file {path}, so everybody is refused: {error}"
            ));
            return Hba::default();
        }
    };
    let sources = HbaSources {
        path,
        maps,
        machine: &interfaces(remarks),
        read: &|path| std::fs::read(path),
    };
    let mut warnings = Vec::new();
    let hba = Hba::parse(&text, &sources, &mut warnings);
    remarks.extend(warnings.iter().map(ToString::to_string));
    hba
}

/// The addresses of this machine; none if the system does not say.
fn interfaces(remarks: &mut Vec<String>) -> Vec<Interface> {
    match nix::ifaddrs::getifaddrs() {
        Ok(all) => all.filter_map(|one| interface(&one)).collect(),
        Err(error) => {
            let error = io::Error::from(error);
            remarks.push(format!(
                "cannot list this machine's addresses, so samehost and samenet match nothing: {error}"
            ));
            Vec::new()
        }
    }
}

fn interface(found: &nix::ifaddrs::InterfaceAddress) -> Option<Interface> {
    let (address, mask) = (found.address.as_ref()?, found.netmask.as_ref()?);
    let v4 = |storage: &nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in()?;
        Some(IpAddr::from(v4.ip().to_be_bytes()))
    };
    let v6 = |storage: &nix::sys::socket::SockaddrStorage| {
        Some(IpAddr::from(storage.as_sockaddr_in6()?.ip()))
    };
    Some(Interface {
        address: v4(address).or_else(|| v6(address))?,
        mask: v4(mask).or_else(|| v6(mask))?,
    })
}
