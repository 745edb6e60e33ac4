//! Checks a password that came in clear text against every kind of verifier.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{KdfCache, ScramVerifier, Stretch, Verifier, md5_secret};

/// A check on its way: only the one against a SCRAM verifier takes more than microseconds.
pub struct CleartextCheck(Check);

enum Check {
    Known(bool),
    Scram {
        verifier: ScramVerifier,
        stretch: Stretch,
    },
}

impl CleartextCheck {
    /// Begins to check `password`. An empty one never matches.
    pub fn begin(
        verifier: &Verifier,
        user: &str,
        password: &[u8],
        kdf: &mut KdfCache,
    ) -> CleartextCheck {
        CleartextCheck(match verifier {
            _ if password.is_empty() => Check::Known(false),
            Verifier::Plain(secret) => Check::Known(same(secret.expose(), password)),
            Verifier::Md5(digits) => {
                Check::Known(same(digits.expose(), &*md5_secret(password, user)))
            }
            Verifier::Scram(verifier) => Check::Scram {
                stretch: kdf.begin(password, &verifier.salt, verifier.iterations),
                verifier: verifier.clone(),
            },
        })
    }

    /// Does all of the stretching, with a `pause` after every slice; the verdict is ready then.
    pub fn stretch_ahead(&mut self, pause: impl Fn()) {
        if let Check::Scram { stretch, .. } = &mut self.0 {
            stretch.finish(pause);
        }
    }

    /// Does at most `iterations` more of the stretching; the verdict once it is done. Only a
    /// password that matched is remembered.
    pub fn advance(&mut self, kdf: &mut KdfCache, iterations: u32) -> Option<bool> {
        match &mut self.0 {
            Check::Known(matches) => Some(*matches),
            Check::Scram { verifier, stretch } => {
                let keys = stretch.advance(iterations)?;
                let matches = verifier.matches(&keys);
                if matches {
                    kdf.remember(stretch);
                }
                Some(matches)
            }
        }
    }
}

/// Whether `password` is the one behind `verifier`, in one go: milliseconds for a SCRAM verifier
/// that `kdf` does not remember.
pub fn check_cleartext(
    verifier: &Verifier,
    user: &str,
    password: &[u8],
    kdf: &mut KdfCache,
) -> bool {
    let mut check = CleartextCheck::begin(verifier, user, password, kdf);
    loop {
        if let Some(matches) = check.advance(kdf, u32::MAX) {
            return matches;
        }
    }
}

/// Compares hashes, so that not even the length of the secret shows in the time taken.
fn same(secret: &[u8], claimed: &[u8]) -> bool {
    Sha256::digest(secret)
        .ct_eq(&Sha256::digest(claimed))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::made_up_verifier;
    use crate::auth::scram::testing::kdf;
    use crate::base::Secret;

    fn every_kind() -> [Verifier; 3] {
        let scram = made_up_verifier(&[1; 32], "user", b"pencil", 3, &mut kdf());
        let md5 = md5_secret(b"pencil", "user");
        [
            Verifier::Plain(Secret::new("pencil")),
            Verifier::Md5(Secret::new(md5.to_vec())),
            Verifier::Scram(scram),
        ]
    }

    #[test]
    fn only_the_right_password_matches_any_kind() {
        for verifier in every_kind() {
            let kdf = &mut kdf();
            assert!(
                check_cleartext(&verifier, "user", b"pencil", kdf),
                "{verifier:?}"
            );
            for wrong in ["", "pencis", "pencil ", "penci", "Pencil", "\0"] {
                assert!(
                    !check_cleartext(&verifier, "user", wrong.as_bytes(), kdf),
                    "{wrong}"
                );
            }
        }
    }

    #[test]
    fn an_empty_password_matches_not_even_an_empty_secret() {
        let verifiers = [
            Verifier::Plain(Secret::new("")),
            Verifier::Md5(Secret::new(md5_secret(b"", "user").to_vec())),
            Verifier::Scram(made_up_verifier(&[1; 32], "user", b"", 3, &mut kdf())),
        ];
        for verifier in verifiers {
            assert!(
                !check_cleartext(&verifier, "user", b"", &mut kdf()),
                "{verifier:?}"
            );
        }
    }

    #[test]
    fn md5_secrets_are_bound_to_their_user() {
        let [_, md5, _] = every_kind();
        assert!(!check_cleartext(&md5, "other", b"pencil", &mut kdf()));
    }

    #[test]
    fn the_stored_text_of_a_hash_is_not_its_password() {
        let [_, md5, scram] = every_kind();
        let Verifier::Md5(digits) = &md5 else {
            panic!("not md5")
        };
        let text = [b"md5", digits.expose()].concat();
        assert!(!check_cleartext(&md5, "user", &text, &mut kdf()));
        let Verifier::Scram(inner) = &scram else {
            panic!("not SCRAM")
        };
        let text = inner.to_string();
        assert!(!check_cleartext(
            &scram,
            "user",
            text.as_bytes(),
            &mut kdf()
        ));
    }

    #[test]
    fn wrong_guesses_are_not_remembered() {
        let [_, _, scram] = every_kind();
        let mut cache = kdf();
        check_cleartext(&scram, "user", b"guess", &mut cache);
        assert!(cache.is_empty());
        check_cleartext(&scram, "user", b"pencil", &mut cache);
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn checks_in_slices_come_to_the_same_verdict() {
        let [_, _, scram] = every_kind();
        for (password, want) in [("pencil", true), ("guess", false)] {
            let cache = &mut kdf();
            let mut check = CleartextCheck::begin(&scram, "user", password.as_bytes(), cache);
            assert_eq!(check.advance(cache, 1), None);
            assert_eq!(check.advance(cache, 1), Some(want));
        }
    }
}
