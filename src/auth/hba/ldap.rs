//! The options of LDAP authentication, as PostgreSQL has them (manual, 20.10): simple bind, or search
//! and bind.

use super::fault::RuleFault;
use super::token::fields;
use crate::base::Secret;
use thiserror::Error;

/// Stands for the user's name in a search filter.
const USER_MARK: &str = "$username";
/// The attribute that is searched for while nothing says otherwise.
const ATTRIBUTE_DEFAULT: &str = "uid";
/// Characters that have a meaning in a distinguished name (RFC 4514, section 2.4) or a bind name.
const DN_SPECIAL: &[char] = &[',', '+', '"', '\\', '<', '>', ';', '=', '\0'];

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LdapScheme {
    /// In plain text, until `ldaptls` says otherwise.
    #[default]
    Ldap,
    /// Inside TLS from the first byte.
    Ldaps,
}

/// Everything needed to ask an LDAP server whether a password is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LdapSettings {
    /// Host names or addresses, tried in this order; never empty.
    pub servers: Vec<String>,
    /// The port.
    pub port: u16,
    /// How it is spoken to.
    pub scheme: LdapScheme,
    /// Whether to ask for TLS with StartTLS.
    pub start_tls: bool,
    /// How the user's entry is found.
    pub bind: LdapBind,
}

/// How the name that is bound with comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LdapBind {
    /// Prefix, user, suffix.
    Simple {
        /// Before the user's name.
        prefix: String,
        /// Behind it.
        suffix: String,
    },
    /// The one entry that a search finds.
    Search(SearchBind),
}

/// A search for the user's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchBind {
    /// Where it begins.
    pub base_dn: String,
    /// Whom to search as; empty is anonymous.
    pub bind_dn: String,
    /// The searcher's password.
    pub bind_password: Secret,
    /// How far it reaches.
    pub scope: SearchScope,
    filter: String,
}

/// How far a search reaches below its base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchScope {
    /// The base itself.
    Base,
    /// One level below it.
    One,
    /// All that is below.
    #[default]
    Sub,
}

/// Why an `ldapurl` cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LdapUrlFault {
    /// Not `ldap://` or `ldaps://`.
    #[error("must begin with ldap:// or ldaps://")]
    Scheme,
    /// A port that is none.
    #[error("has an invalid port")]
    Port,
    /// A scope that does not exist.
    #[error("has an unknown scope")]
    Scope,
    /// Extensions, which nobody understands.
    #[error("has extensions, which are not supported")]
    Extensions,
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("has a broken percent escape")]
    Escape,
}

impl LdapSettings {
    /// Reads the options of `auth_ldap_options`: as behind a rule's method.
    ///
    /// # Errors
    /// What is wrong with them; secrets are not shown.
    pub fn parse(options: &str) -> Result<LdapSettings, RuleFault> {
        let mut read = LdapOptions::default();
        for token in fields(options.as_bytes())?.into_iter().flatten() {
            let name = token.text.split('=').next().unwrap_or("").to_owned();
            let unknown = || RuleFault::Option(name.clone());
            let (name, value) = token.text.split_once('=').ok_or_else(unknown)?;
            if !read.take(name, value)? {
                return Err(unknown());
            }
        }
        read.finish()
    }
}

impl LdapBind {
    /// The name to bind with for `user` in a simple bind; `None` if the name could be taken for more
    /// than a name.
    pub fn simple_name(prefix: &str, user: &str, suffix: &str) -> Option<String> {
        let is_safe = !user.contains(DN_SPECIAL) && !user.starts_with(['#', ' ']);
        (is_safe && !user.ends_with(' ')).then(|| format!("{prefix}{user}{suffix}"))
    }
}

impl SearchBind {
    /// The filter that finds `user`, with the name escaped (RFC 4515, section 3).
    pub fn filter_for(&self, user: &str) -> String {
        self.filter.replace(USER_MARK, &escaped(user))
    }
}

fn escaped(user: &str) -> String {
    let mut out = String::new();
    for letter in user.chars() {
        match letter {
            '*' | '(' | ')' | '\\' | '\0' => out.push_str(&format!("\\{:02x}", letter as u32)),
            letter => out.push(letter),
        }
    }
    out
}

/// The options while they are read.
#[derive(Default)]
pub(super) struct LdapOptions {
    server: String,
    port: Option<u16>,
    scheme: LdapScheme,
    start_tls: bool,
    prefix: Option<String>,
    suffix: Option<String>,
    base_dn: Option<String>,
    bind_dn: Option<String>,
    bind_password: Option<Secret>,
    attribute: Option<String>,
    filter: Option<String>,
    scope: SearchScope,
}

impl LdapOptions {
    /// Takes one option; false if it is none of these.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<bool, RuleFault> {
        let text = || Some(value.to_owned());
        match name {
            "ldapserver" => self.server = value.to_owned(),
            "ldapport" => self.port = Some(port(value)?),
            "ldapscheme" => self.scheme = scheme(value)?,
            "ldaptls" => self.start_tls = switch(value)?,
            "ldapprefix" => self.prefix = text(),
            "ldapsuffix" => self.suffix = text(),
            "ldapbasedn" => self.base_dn = text(),
            "ldapbinddn" => self.bind_dn = text(),
            "ldapbindpasswd" => self.bind_password = Some(Secret::new(value)),
            "ldapsearchattribute" => self.attribute = text(),
            "ldapsearchfilter" => self.filter = text(),
            "ldapurl" => self.take_url(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `ldap[s]://host[:port]/basedn[?[attribute][?[scope][?[filter]]]]` (RFC 4516).
    fn take_url(&mut self, url: &str) -> Result<(), LdapUrlFault> {
        let (scheme, rest) = url.split_once("://").ok_or(LdapUrlFault::Scheme)?;
        self.scheme = match scheme.to_ascii_lowercase().as_str() {
            "ldap" => LdapScheme::Ldap,
            "ldaps" => LdapScheme::Ldaps,
            _ => return Err(LdapUrlFault::Scheme),
        };
        let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
        self.take_host(host)?;
        let mut parts = rest.splitn(5, '?').map(unescaped);
        let mut next = || {
            parts
                .next()
                .transpose()
                .map(|part| part.filter(|part| !part.is_empty()))
        };
        self.base_dn = next()?;
        self.attribute = next()?;
        self.scope = match next()?.as_deref() {
            None | Some("base") => SearchScope::Base,
            Some("one") => SearchScope::One,
            Some("sub") => SearchScope::Sub,
            Some(_) => return Err(LdapUrlFault::Scope),
        };
        self.filter = next()?;
        match next()? {
            None => Ok(()),
            Some(_) => Err(LdapUrlFault::Extensions),
        }
    }

    fn take_host(&mut self, host: &str) -> Result<(), LdapUrlFault> {
        // An address of IPv6 stands in brackets.
        let colon = host.rfind(':').filter(|at| !host[*at..].contains(']'));
        let (name, digits) = colon.map_or((host, None), |at| (&host[..at], Some(&host[at + 1..])));
        self.port = digits
            .map(|digits| port(digits).map_err(|_| LdapUrlFault::Port))
            .transpose()?;
        self.server = unescaped(name)?;
        Ok(())
    }

    /// The settings, if the options go together as PostgreSQL demands.
    pub(super) fn finish(self) -> Result<LdapSettings, RuleFault> {
        let servers: Vec<String> = self
            .server
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        let fault = |text| Err(RuleFault::Options(text));
        if servers.is_empty() {
            return fault("method ldap needs ldapserver or ldapurl");
        }
        let is_simple = self.prefix.is_some() || self.suffix.is_some();
        let has_search = [
            self.base_dn.is_some(),
            self.bind_dn.is_some(),
            self.bind_password.is_some(),
            self.attribute.is_some(),
            self.filter.is_some(),
        ];
        if is_simple && has_search.contains(&true) {
            return fault("ldapprefix and ldapsuffix cannot be used with options of a search");
        }
        if self.attribute.is_some() && self.filter.is_some() {
            return fault("ldapsearchattribute cannot be used with ldapsearchfilter");
        }
        if self.start_tls && self.scheme == LdapScheme::Ldaps {
            return fault("ldaptls cannot be used with ldapscheme=ldaps");
        }
        let port = self.port.unwrap_or(match self.scheme {
            LdapScheme::Ldap => 389,
            LdapScheme::Ldaps => 636,
        });
        let (scheme, start_tls) = (self.scheme, self.start_tls);
        let bind = match (is_simple, self.base_dn) {
            (true, _) => LdapBind::Simple {
                prefix: self.prefix.unwrap_or_default(),
                suffix: self.suffix.unwrap_or_default(),
            },
            (false, Some(base_dn)) => LdapBind::Search(SearchBind {
                base_dn,
                bind_dn: self.bind_dn.unwrap_or_default(),
                bind_password: self.bind_password.unwrap_or_else(|| Secret::new("")),
                scope: self.scope,
                filter: search_filter(self.filter, self.attribute)?,
            }),
            (false, None) => {
                return fault("method ldap needs ldapprefix, ldapsuffix or ldapbasedn");
            }
        };
        Ok(LdapSettings {
            servers,
            port,
            scheme,
            start_tls,
            bind,
        })
    }
}

fn search_filter(filter: Option<String>, attribute: Option<String>) -> Result<String, RuleFault> {
    if let Some(filter) = filter {
        // A filter of an ldapurl may come without its parentheses.
        let is_whole = filter.starts_with('(');
        return Ok(if is_whole {
            filter
        } else {
            format!("({filter})")
        });
    }
    let attribute = attribute.unwrap_or_else(|| ATTRIBUTE_DEFAULT.to_owned());
    let letter = |c: char| c.is_ascii_alphanumeric() || "-.;_".contains(c);
    if attribute.is_empty() || !attribute.chars().all(letter) {
        return Err(RuleFault::OptionValue("ldapsearchattribute"));
    }
    Ok(format!("({attribute}={USER_MARK})"))
}

fn port(value: &str) -> Result<u16, RuleFault> {
    let port = value.parse().ok().filter(|port| *port > 0);
    port.ok_or(RuleFault::OptionValue("ldapport"))
}

fn scheme(value: &str) -> Result<LdapScheme, RuleFault> {
    match value {
        "ldap" => Ok(LdapScheme::Ldap),
        "ldaps" => Ok(LdapScheme::Ldaps),
        _ => Err(RuleFault::OptionValue("ldapscheme")),
    }
}

fn switch(value: &str) -> Result<bool, RuleFault> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(RuleFault::OptionValue("ldaptls")),
    }
}

/// Resolves percent escapes (RFC 3986, section 2.1).
fn unescaped(text: &str) -> Result<String, LdapUrlFault> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.first_chunk::<2>().ok_or(LdapUrlFault::Escape)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(LdapUrlFault::Escape);
        let value = digit(digits[0])? * 16 + digit(digits[1])?;
        bytes.push(u8::try_from(value).map_err(|_| LdapUrlFault::Escape)?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| LdapUrlFault::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<LdapSettings, RuleFault> {
        let mut read = LdapOptions::default();
        for (name, value) in options {
            assert!(read.take(name, value)?, "{name}");
        }
        read.finish()
    }

    fn search(settings: &LdapSettings) -> &SearchBind {
        match &settings.bind {
            LdapBind::Search(search) => search,
            LdapBind::Simple { .. } => panic!("simple"),
        }
    }

    #[test]
    fn url_says_all_that_options_say() {
        let url = "ldaps://ldap.example.net:1636/dc=example,dc=net?cn?sub";
        let by_url = read(&[("ldapurl", url)]).unwrap();
        let by_options = read(&[
            ("ldapserver", "ldap.example.net"),
            ("ldapport", "1636"),
            ("ldapscheme", "ldaps"),
            ("ldapbasedn", "dc=example,dc=net"),
            ("ldapsearchattribute", "cn"),
        ]);
        assert_eq!(Ok(by_url), by_options);
    }

    #[test]
    fn parts_of_a_url_may_be_missing_or_escaped() {
        let with = |url| read(&[("ldapurl", url)]);
        let plain = with("ldap://[::1]/dc=a%2Cb??one?(uid=$username)").unwrap();
        assert_eq!((plain.port, plain.servers), (389, vec!["[::1]".to_owned()]));
        let LdapBind::Search(found) = plain.bind else {
            panic!("simple")
        };
        assert_eq!(
            (found.base_dn.as_str(), found.scope),
            ("dc=a,b", SearchScope::One)
        );
        for (url, fault) in [
            ("http://x/dc=a", LdapUrlFault::Scheme),
            ("x", LdapUrlFault::Scheme),
            ("ldap://x:0/dc=a", LdapUrlFault::Port),
            ("ldap://x:a/dc=a", LdapUrlFault::Port),
            ("ldap://x/dc=a??far", LdapUrlFault::Scope),
            ("ldap://x/dc=%a", LdapUrlFault::Escape),
            ("ldap://x/dc=%ff", LdapUrlFault::Escape),
            ("ldap://x/dc=a?b?sub?c?d", LdapUrlFault::Extensions),
        ] {
            assert_eq!(with(url), Err(RuleFault::LdapUrl(fault)), "{url}");
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let cases: [&[(&str, &str)]; 8] = [
            &[("ldapprefix", "cn=")],
            &[("ldapserver", "x")],
            &[
                ("ldapserver", "x"),
                ("ldapprefix", "a"),
                ("ldapbasedn", "b"),
            ],
            &[
                ("ldapserver", "x"),
                ("ldapbasedn", "b"),
                ("ldapsearchattribute", "c"),
                ("ldapsearchfilter", "(d=e)"),
            ],
            &[
                ("ldapserver", "x"),
                ("ldapprefix", "a"),
                ("ldaptls", "1"),
                ("ldapscheme", "ldaps"),
            ],
            &[("ldapserver", "x"), ("ldapprefix", "a"), ("ldapport", "0")],
            &[("ldapserver", "x"), ("ldapprefix", "a"), ("ldaptls", "yes")],
            &[
                ("ldapserver", "x"),
                ("ldapbasedn", "b"),
                ("ldapsearchattribute", "a)(b"),
            ],
        ];
        for options in cases {
            assert!(read(options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn name_cannot_break_out_of_filter_or_dn() {
        let settings = read(&[
            ("ldapserver", "x"),
            ("ldapbasedn", "b"),
            ("ldapsearchfilter", "(|(uid=$username)(mail=$username))"),
        ]);
        let settings = settings.unwrap();
        assert_eq!(
            search(&settings).filter_for("a*)(b\\"),
            "(|(uid=a\\2a\\29\\28b\\5c)(mail=a\\2a\\29\\28b\\5c))"
        );
        let name = |user| LdapBind::simple_name("cn=", user, ",dc=x");
        assert_eq!(name("alice").as_deref(), Some("cn=alice,dc=x"));
        for user in ["a,ou=b", "a+b", "a=b", "a\\2cb", "#a", " a", "a ", "a\"b"] {
            assert_eq!(name(user), None, "{user}");
        }
    }

    #[test]
    fn options_of_the_configuration_are_those_of_a_rule() {
        let text =
            "ldapserver=\"a b\" ldapbasedn=\"dc=x, dc=y\" ldapbinddn=cn=s ldapbindpasswd=\"p q\"";
        let settings = LdapSettings::parse(text).unwrap();
        assert_eq!(settings.servers, ["a", "b"]);
        let found = search(&settings);
        assert_eq!(
            (found.base_dn.as_str(), found.bind_dn.as_str()),
            ("dc=x, dc=y", "cn=s")
        );
        assert_eq!(found.filter_for("eve"), "(uid=eve)");
        for bad in [
            "",
            "ldapserver=x",
            "nonsense",
            "map=x ldapserver=x ldapprefix=y",
            "ldapserver=\"x",
        ] {
            assert!(LdapSettings::parse(bad).is_err(), "{bad}");
        }
    }
}
