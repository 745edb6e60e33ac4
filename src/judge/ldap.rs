//! Asks an LDAP server whether a password is right: simple bind, or search and bind (PostgreSQL
//! manual, 20.10).
//!
//! TLS verifies the server against the authorities of the system, or those of the file that
//! `SSL_CERT_FILE` names.

use crate::auth::hba::{LdapBind, LdapScheme, LdapSettings, SearchBind, SearchScope};
use crate::base::Secret;
use ldap3::{LdapConn, LdapConnSettings, LdapError, Scope, SearchEntry, SearchOptions};
use std::time::Duration;

/// Time for connecting, TLS included, to one server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for each question to it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Result code `invalidCredentials` (RFC 4511, appendix A): the password is wrong.
const INVALID_CREDENTIALS: u32 = 49;
/// Requests no attribute (RFC 4511, section 4.5.1.8): the entry's name is enough.
const NO_ATTRIBUTES: [&str; 1] = ["1.1"];

/// Whether the user's password is right. Blocks for seconds if servers do not answer; what is wrong
/// with them is logged, and nobody is let in.
pub fn ldap_allows(settings: &LdapSettings, user: &str, password: &Secret) -> bool {
    let Ok(password) = std::str::from_utf8(password.expose()) else {
        return false;
    };
    // A bind without a password is an anonymous one, which servers grant (RFC 4513, 5.1.2).
    if password.is_empty() {
        return false;
    }
    for server in &settings.servers {
        match ask(settings, server, user, password) {
            Ok(verdict) => return verdict,
            Err(error) => tracing::error!(server, user, %error, "cannot ask an LDAP server"),
        }
    }
    false
}

fn ask(
    settings: &LdapSettings,
    server: &str,
    user: &str,
    password: &str,
) -> Result<bool, LdapError> {
    let mut connection = connect(settings, server)?;
    let verdict = match &settings.bind {
        LdapBind::Simple { prefix, suffix } => match LdapBind::simple_name(prefix, user, suffix) {
            Some(name) => binds(&mut connection, &name, password),
            None => {
                tracing::info!(user, "user name with special characters refused for LDAP");
                Ok(false)
            }
        },
        LdapBind::Search(search) => match find(&mut connection, search, user)? {
            Some(name) => binds(&mut connection, &name, password),
            None => Ok(false),
        },
    };
    let _ = connection.unbind();
    verdict
}

fn connect(settings: &LdapSettings, server: &str) -> Result<LdapConn, LdapError> {
    let scheme = match settings.scheme {
        LdapScheme::Ldap => "ldap",
        LdapScheme::Ldaps => "ldaps",
    };
    let is_bare_v6 = server.contains(':') && !server.starts_with('[');
    let host = match is_bare_v6 {
        true => format!("[{server}]"),
        false => server.to_owned(),
    };
    let options = LdapConnSettings::new()
        .set_conn_timeout(CONNECT_TIMEOUT)
        .set_starttls(settings.start_tls);
    LdapConn::with_settings(options, &format!("{scheme}://{host}:{}", settings.port))
}

/// Whether `name` and `password` are accepted; an error unless the server said yes or no.
fn binds(connection: &mut LdapConn, name: &str, password: &str) -> Result<bool, LdapError> {
    let result = connection
        .with_timeout(ANSWER_TIMEOUT)
        .simple_bind(name, password)?;
    if result.rc == INVALID_CREDENTIALS {
        return Ok(false);
    }
    result.success().map(|_| true)
}

/// The name of the one entry that the search finds.
fn find(
    connection: &mut LdapConn,
    search: &SearchBind,
    user: &str,
) -> Result<Option<String>, LdapError> {
    if !search.bind_dn.is_empty() {
        let password = String::from_utf8_lossy(search.bind_password.expose()).into_owned();
        let result = connection
            .with_timeout(ANSWER_TIMEOUT)
            .simple_bind(&search.bind_dn, &password)?;
        result.success()?;
    }
    let scope = match search.scope {
        SearchScope::Base => Scope::Base,
        SearchScope::One => Scope::OneLevel,
        SearchScope::Sub => Scope::Subtree,
    };
    // Two are enough to know that one is not the only one.
    let options = SearchOptions::new().sizelimit(2);
    let answer = connection
        .with_search_options(options)
        .with_timeout(ANSWER_TIMEOUT)
        .search(
            &search.base_dn,
            scope,
            &search.filter_for(user),
            NO_ATTRIBUTES,
        )?;
    let (entries, _) = match answer.1.rc {
        // sizeLimitExceeded: there are more than two.
        4 => (answer.0, answer.1),
        _ => answer.success()?,
    };
    let mut names = entries
        .into_iter()
        .filter(|entry| !entry.is_ref())
        .map(|entry| SearchEntry::construct(entry).dn);
    let found = names.next();
    if names.next().is_some() {
        tracing::warn!(user, "LDAP search found more than one entry");
        return Ok(None);
    }
    Ok(found)
}
