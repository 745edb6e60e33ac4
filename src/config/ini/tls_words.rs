//! PgBouncer's words for TLS that mean something else here, or nothing.
//!
//! What is not offered is left out with a remark as long as something is left. A value that is left with nothing goes on
//! as it is, to be refused: nobody gets another protocol or cipher in its place.

use super::translate::Reading;
use crate::config::convert::quoted;
use crate::config::tls::{listed, offers_cipher, offers_tls13_cipher};

/// What `written` comes to as the value of the option `name`; none if it is to be read as it is.
pub(super) fn reading(name: &str, written: &str) -> Option<Reading> {
    let (_side, setting) = name.split_once("_tls")?;
    let is = |word: &str| written.eq_ignore_ascii_case(word);
    match setting {
        "_protocols" | "_ciphers" | "_dheparams" | "_ecdhcurve" if written.is_empty() => {
            Some(Reading::default())
        }
        "_protocols" => protocols(written),
        "_ciphers" => cipher_keyword(written).or_else(|| without_others(written, offers_cipher)),
        "13_ciphers" => without_others(written, offers_tls13_cipher),
        "_dheparams" if is("legacy") => Some(quoted("auto").into()),
        "_ecdhcurve" if is("auto") => Some(quoted("auto").into()),
        "_ecdhcurve" if is("none") => Some(Reading {
            value: Some(quoted("auto")),
            remark: Some("a key exchange without curves is not offered; auto holds instead".into()),
        }),
        _ => None,
    }
}

/// Words for every version there is.
fn protocols(written: &str) -> Option<Reading> {
    let is_every = |word: &str| matches!(&*word.to_ascii_lowercase(), "legacy" | "tlsv1");
    let ours = |word: &str| match word.strip_prefix('!') {
        Some(excluded) if is_every(excluded) => "!all".to_owned(),
        None if is_every(word) => "all".to_owned(),
        _ => word.to_owned(),
    };
    let words: Vec<_> = listed(written).collect();
    let translated: Vec<_> = words.iter().map(|word| ours(word)).collect();
    (words != translated).then(|| quoted(&translated.join(",")).into())
}

fn cipher_keyword(written: &str) -> Option<Reading> {
    let keyword = written.to_ascii_lowercase();
    match &*keyword {
        "legacy" | "insecure" => Some(quoted("all").into()),
        "default" | "secure" | "fast" | "normal" | "compat" | "all" => {
            Some(quoted(&keyword).into())
        }
        _ => None,
    }
}

fn without_others(written: &str, is_offered: fn(&str) -> bool) -> Option<Reading> {
    let (offered, others): (Vec<_>, Vec<_>) = listed(written).partition(|word| is_offered(word));
    let is_wish = |word: &&str| !word.starts_with(['!', '-', '@']);
    if !offered.iter().any(is_wish) || others.is_empty() {
        return None;
    }
    Some(Reading {
        value: Some(quoted(&offered.join(":"))),
        remark: Some(format!("left out, as not offered: {}", others.join(", "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str, written: &str) -> Option<(String, bool)> {
        let reading = reading(name, written)?;
        Some((reading.value.unwrap_or_default(), reading.remark.is_some()))
    }

    #[test]
    fn words_of_pgbouncer_become_ours() {
        let cases = [
            ("client_tls_protocols", "", "", false),
            ("client_tls_protocols", "legacy", "all", false),
            (
                "server_tls_protocols",
                "TLSv1:!tlsv1.2",
                "all,!tlsv1.2",
                false,
            ),
            ("client_tls_ciphers", "", "", false),
            ("client_tls_ciphers", "INSECURE", "all", false),
            ("server_tls_ciphers", "Secure", "secure", false),
            (
                "server_tls_ciphers",
                "HIGH:MEDIUM:+3DES:!aNULL",
                "HIGH:!aNULL",
                true,
            ),
            (
                "client_tls13_ciphers",
                "TLS_AES_128_CCM_SHA256:TLS_AES_128_GCM_SHA256",
                "TLS_AES_128_GCM_SHA256",
                true,
            ),
            ("client_tls_dheparams", "Legacy", "auto", false),
            ("client_tls_dheparams", "", "", false),
            ("client_tls_ecdhcurve", "NONE", "auto", true),
            ("client_tls_ecdhcurve", "", "", false),
        ];
        for (name, written, value, has_remark) in cases {
            let value = match value {
                "" => String::new(),
                value => quoted(value),
            };
            assert_eq!(
                parts(name, written),
                Some((value, has_remark)),
                "{name}={written}"
            );
        }
    }

    #[test]
    fn what_is_offered_and_what_leaves_nothing_goes_on_as_it_is() {
        for (name, written) in [
            ("client_tls_protocols", "secure"),
            ("client_tls_protocols", "tlsv1.0"),
            ("client_tls_ciphers", "HIGH:!aNULL"),
            ("client_tls_ciphers", "AES256-SHA"),
            ("client_tls_ciphers", "MEDIUM:!aNULL:@STRENGTH"),
            ("client_tls13_ciphers", ""),
            ("client_tls_ecdhcurve", "secp521r1"),
            ("client_tls_dheparams", "none"),
            ("client_tls_key_file", ""),
            ("auth_type", "legacy"),
        ] {
            assert_eq!(parts(name, written), None, "{name}={written}");
        }
    }
}
