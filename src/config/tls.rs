//! The TLS settings that are lists of names: protocols, ciphers, curves. Keywords and names are
//! PgBouncer's and OpenSSL's; each is mapped to what we offer, and a name that we do not offer is an
//! error, so that nobody believes in a cipher that is never used.

/// Which versions of TLS may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// TLS 1.2.
    pub tls12: bool,
    /// TLS 1.3.
    pub tls13: bool,
}

/// A cipher suite: what OpenSSL and what IANA call it.
#[derive(Debug, PartialEq, Eq)]
pub struct Suite {
    /// OpenSSL's name, which for TLS 1.3 is IANA's as well.
    pub openssl: &'static str,
    /// IANA's name.
    pub iana: &'static str,
    /// The words of OpenSSL's cipher lists that it answers to.
    words: &'static [&'static str],
}

macro_rules! suites {
    ($($table:ident: $($openssl:literal $iana:literal [$($word:literal)*];)+)+) => {
        $(const $table: &[Suite] = &[$(Suite { openssl: $openssl, iana: $iana, words: &[$($word),*] }),+];)+
    };
}

suites! {
    TLS12:
        "ECDHE-ECDSA-AES256-GCM-SHA384" "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" ["ECDSA" "AES" "AES256" "AESGCM" "SHA384"];
        "ECDHE-RSA-AES256-GCM-SHA384" "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" ["aRSA" "AES" "AES256" "AESGCM" "SHA384"];
        "ECDHE-ECDSA-AES128-GCM-SHA256" "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" ["ECDSA" "AES" "AES128" "AESGCM" "SHA256"];
        "ECDHE-RSA-AES128-GCM-SHA256" "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" ["aRSA" "AES" "AES128" "AESGCM" "SHA256"];
        "ECDHE-ECDSA-CHACHA20-POLY1305" "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" ["ECDSA" "CHACHA20"];
        "ECDHE-RSA-CHACHA20-POLY1305" "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" ["aRSA" "CHACHA20"];
    TLS13:
        "TLS_AES_256_GCM_SHA384" "TLS_AES_256_GCM_SHA384" [];
        "TLS_AES_128_GCM_SHA256" "TLS_AES_128_GCM_SHA256" [];
        "TLS_CHACHA20_POLY1305_SHA256" "TLS_CHACHA20_POLY1305_SHA256" [];
}

/// The suite with this IANA name.
pub fn suite_named(iana: &str) -> Option<&'static Suite> {
    TLS12.iter().chain(TLS13).find(|suite| suite.iana == iana)
}

/// Words that every suite of TLS 1.2 here answers to: all have forward secrecy and authenticated
/// encryption. PgBouncer's keywords are among them.
const EVERY_SUITE: [&str; 13] = [
    "default", "secure", "fast", "normal", "compat", "all", "HIGH", "ALL", "DEFAULT", "ECDHE",
    "EECDH", "kECDHE", "TLSv1.2",
];

/// A group for the exchange of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// Curve25519.
    X25519,
    /// NIST's P-256.
    P256,
    /// NIST's P-384.
    P384,
    /// Curve25519 together with ML-KEM-768, which resists quantum computers.
    X25519MlKem768,
}

const CURVES: [(&str, Curve); 9] = [
    ("x25519", Curve::X25519),
    ("p-256", Curve::P256),
    ("prime256v1", Curve::P256),
    ("secp256r1", Curve::P256),
    ("p-384", Curve::P384),
    ("secp384r1", Curve::P384),
    ("x25519mlkem768", Curve::X25519MlKem768),
    ("p256", Curve::P256),
    ("p384", Curve::P384),
];

/// The words of a list.
pub(super) fn listed(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split([',', ':', ' ', '\t']);
    words.filter(|word| !word.is_empty())
}

/// The value of `*_tls_protocols`: keywords and versions with `,` or `:` between them; `!` takes one
/// away again. TLS 1.0 and 1.1 may be named beside newer ones but are never used (RFC 8996).
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_protocols(text: &str) -> Result<Protocols, String> {
    let (mut tls12, mut tls13) = (false, false);
    for word in listed(text) {
        let (wanted, name) = match word.strip_prefix('!') {
            Some(name) => (false, name),
            None => (true, word),
        };
        match name.to_ascii_lowercase().as_str() {
            "secure" | "default" | "all" => (tls12, tls13) = (wanted, wanted),
            "tlsv1.2" => tls12 = wanted,
            "tlsv1.3" => tls13 = wanted,
            "tlsv1.0" | "tlsv1.1" => {}
            _ => return Err(format!("{name:?} is no version of TLS")),
        }
    }
    if !tls12 && !tls13 {
        return Err(format!(
            "{text:?} leaves no version; tlsv1.2 and tlsv1.3 are offered"
        ));
    }
    Ok(Protocols { tls12, tls13 })
}

/// The value of `*_tls_ciphers`, for TLS 1.2: a keyword or a list as OpenSSL takes it, in the order of
/// preference.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_ciphers(text: &str) -> Result<Vec<&'static Suite>, String> {
    let mut chosen: Vec<&'static Suite> = Vec::new();
    for word in listed(text) {
        if let Some(excluded) = word.strip_prefix(['!', '-']) {
            chosen.retain(|suite| !suite.answers_to(excluded));
            continue;
        }
        if word.starts_with('@') {
            // Orders and security levels: every suite here is of the highest.
            continue;
        }
        let found: Vec<_> = TLS12
            .iter()
            .filter(|suite| suite.answers_to(word))
            .collect();
        if found.is_empty() {
            return Err(not_offered(word, TLS12));
        }
        let fresh = found
            .into_iter()
            .filter(|suite| !text_excludes(text, suite));
        for suite in fresh {
            if !chosen.contains(&suite) {
                chosen.push(suite);
            }
        }
    }
    if chosen.is_empty() {
        return Err(format!("{text:?} leaves no cipher"));
    }
    Ok(chosen)
}

/// Whether a word of a cipher list means something here; orders and exclusions always do.
pub(super) fn offers_cipher(word: &str) -> bool {
    word.starts_with(['!', '-', '@']) || TLS12.iter().any(|suite| suite.answers_to(word))
}

/// Whether there is a suite of TLS 1.3 with this name.
pub(super) fn offers_tls13_cipher(name: &str) -> bool {
    tls13_suite(name).is_some()
}

fn tls13_suite(name: &str) -> Option<&'static Suite> {
    let mut all = TLS13.iter();
    all.find(|suite| suite.iana.eq_ignore_ascii_case(name))
}

/// Whether a `!` anywhere in the list takes the suite away for good.
fn text_excludes(text: &str, suite: &Suite) -> bool {
    listed(text).any(|word| {
        word.strip_prefix('!')
            .is_some_and(|word| suite.answers_to(word))
    })
}

impl Suite {
    /// Whether a word of a cipher list means this suite; `+` between two words means both.
    fn answers_to(&self, word: &str) -> bool {
        let alone = |word: &str| {
            let same = |other: &str| other.eq_ignore_ascii_case(word);
            let with_ecdsa = word == "aECDSA" && self.words.contains(&"ECDSA");
            same(self.openssl)
                || same(self.iana)
                || EVERY_SUITE.contains(&word)
                || self.words.contains(&word)
                || with_ecdsa
        };
        !word.is_empty() && word.split('+').all(alone)
    }
}

fn not_offered(word: &str, offered: &[Suite]) -> String {
    let names: Vec<_> = offered.iter().map(|suite| suite.openssl).collect();
    format!("{word:?} is not offered; there are {}", names.join(", "))
}

/// The value of `*_tls13_ciphers`: names in the order of preference; none means all.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_tls13_ciphers(text: &str) -> Result<Vec<&'static Suite>, String> {
    let mut chosen: Vec<&'static Suite> = Vec::new();
    for word in listed(text) {
        let suite = tls13_suite(word).ok_or_else(|| not_offered(word, TLS13))?;
        if !chosen.contains(&suite) {
            chosen.push(suite);
        }
    }
    if chosen.is_empty() {
        chosen.extend(TLS13);
    }
    Ok(chosen)
}

/// The value of `client_tls_ecdhcurve`: `auto`, or names in the order of preference.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_curves(text: &str) -> Result<Vec<Curve>, String> {
    if text == "auto" {
        return Ok(vec![
            Curve::X25519,
            Curve::P256,
            Curve::P384,
            Curve::X25519MlKem768,
        ]);
    }
    let mut chosen = Vec::new();
    for word in listed(text) {
        let lower = word.to_ascii_lowercase();
        let found = CURVES.iter().find(|(name, _)| *name == lower);
        let Some((_, curve)) = found else {
            return Err(format!(
                "{word:?} is not offered; there are X25519, prime256v1, secp384r1, X25519MLKEM768"
            ));
        };
        if !chosen.contains(curve) {
            chosen.push(*curve);
        }
    }
    if chosen.is_empty() {
        return Err("names no curve".to_owned());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&'static str> {
        let suites = parse_ciphers(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        suites.iter().map(|suite| suite.openssl).collect()
    }

    #[test]
    fn protocols_take_keywords_lists_and_exclusions() {
        let versions = |text: &str| parse_protocols(text).map(|it| (it.tls12, it.tls13));
        for both in ["secure", "default", "all", "tlsv1.0,tlsv1.2:tlsv1.3"] {
            assert_eq!(versions(both), Ok((true, true)), "{both}");
        }
        assert_eq!(versions("all:!tlsv1.2"), Ok((false, true)));
        assert_eq!(versions("TLSv1.2"), Ok((true, false)));
        for bad in [
            "",
            "legacy",
            "tlsv1.0",
            "tlsv1.1",
            "secure,!tlsv1.2,!tlsv1.3",
        ] {
            assert!(versions(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_keyword_of_pgbouncer_is_all_that_is_offered() {
        for word in [
            "default",
            "secure",
            "fast",
            "normal",
            "all",
            "HIGH:!aNULL:!MD5",
        ] {
            assert_eq!(names(word).len(), TLS12.len(), "{word}");
        }
    }

    #[test]
    fn cipher_lists_keep_their_order_and_exclusions_hold_for_good() {
        assert_eq!(
            names("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"),
            [
                "ECDHE-RSA-AES128-GCM-SHA256",
                "ECDHE-ECDSA-AES256-GCM-SHA384"
            ]
        );
        assert_eq!(
            names("ECDHE+AESGCM+aRSA:!AES128:@STRENGTH"),
            ["ECDHE-RSA-AES256-GCM-SHA384"]
        );
        assert_eq!(names("!CHACHA20:AES256:ALL").len(), 4);
        assert_eq!(names("!CHACHA20:AES256:ALL")[..2], names("AES256")[..2]);
    }

    #[test]
    fn what_is_not_offered_is_named_with_what_is() {
        for bad in [
            "AES256-SHA",
            "DHE-RSA-AES256-GCM-SHA384",
            "default:3DES",
            "",
            "ALL:!ALL",
        ] {
            let why = parse_ciphers(bad).expect_err(bad);
            assert!(why.contains("is not offered; there are ECDHE-") || why.contains("leaves no"));
        }
        assert!(parse_tls13_ciphers("TLS_AES_128_CCM_SHA256").is_err());
        assert_eq!(parse_tls13_ciphers("").map(|all| all.len()), Ok(3));
        assert!(parse_curves("secp521r1").is_err());
        assert!(parse_curves("none").is_err());
        assert_eq!(
            parse_curves("prime256v1:X25519"),
            Ok(vec![Curve::P256, Curve::X25519])
        );
    }
}
