//! What logins come to: every method, every kind of secret, junk.

use super::*;
use crate::auth::scram::{initial_response, testing::kdf};
use crate::auth::{
    ClientExchange, SCRAM_SHA_256, ScramKeys, made_up_verifier, md5_response, md5_secret,
};

const SALT: [u8; 4] = [1, 2, 3, 4];
const PLAIN_SCRAM: Challenge = Challenge::Scram { plus: false };

fn plain() -> Verifier {
    Verifier::Plain(Secret::new("pencil"))
}

fn md5() -> Verifier {
    Verifier::Md5(Secret::new(md5_secret(b"pencil", "user").to_vec()))
}

fn scram() -> Verifier {
    Verifier::Scram(ScramVerifier::from_keys(&stored_keys(), b"salt", 3))
}

fn stored_keys() -> ScramKeys {
    kdf().keys(b"pencil", b"salt", 3)
}

fn request(method: Method, found: Found<'_>) -> LoginRequest<'_> {
    LoginRequest {
        channel: None,
        method,
        user: "user",
        found,
        mostly_scram: false,
        process_secret: &[9; 32],
        scram_iterations: 3,
        md5_salt: SALT,
        scram_nonce: [5; NONCE_RANDOM_BYTES],
    }
}

/// Drives a login as a client who knows `password`. Gives the challenge and the outcome.
fn run(method: Method, found: Found<'_>, password: &str) -> (Option<Challenge>, Step) {
    let (mut login, step) = match Login::start(&request(method, found)) {
        Ok(started) => started,
        Err(error) => return (None, Err(error)),
    };
    let LoginStep::Challenge(challenge) = step else {
        return (None, Ok(step));
    };
    let cache = &mut kdf();
    let outcome = match challenge {
        Challenge::Cleartext => answer(&mut login, format!("{password}\0").as_bytes(), cache),
        Challenge::Md5 { salt } => {
            let response = md5_response(&*md5_secret(password.as_bytes(), "user"), salt);
            answer(&mut login, format!("{response}\0").as_bytes(), cache)
        }
        Challenge::Scram { .. } => run_scram(&mut login, password, cache),
    };
    (Some(challenge), outcome)
}

fn run_scram(login: &mut Login, password: &str, cache: &mut KdfCache) -> Step {
    let mut client = ClientExchange::new("client").unwrap();
    let first = initial_response(SCRAM_SHA_256, &client.client_first()).unwrap();
    let LoginStep::Continue(server_first) = answer(login, &first, cache)? else {
        panic!("no server-first");
    };
    let wanted = client.server_first(&server_first).unwrap();
    let keys = kdf().keys(password.as_bytes(), &wanted.salt, wanted.iterations);
    let outcome = answer(login, &client.client_final(&keys).unwrap(), cache)?;
    if let LoginStep::Accepted(Accepted {
        scram_final: Some(message),
        ..
    }) = &outcome
    {
        client.server_final(message).unwrap();
    }
    Ok(outcome)
}

fn answer(login: &mut Login, body: &[u8], cache: &mut KdfCache) -> Step {
    let mut step = login.answer(body, cache);
    while let Ok(LoginStep::Stretch) = step {
        step = login.stretch(cache, 1);
    }
    step
}

fn accepted(step: Step) -> ServerCredentials {
    match step {
        Ok(LoginStep::Accepted(accepted)) => accepted.credentials,
        other => panic!("{other:?}"),
    }
}

#[test]
fn method_and_secret_decide_on_challenge_and_credentials() {
    let password = || ServerCredentials::Password(Secret::new("pencil"));
    let digits = || ServerCredentials::from_verifier(Some(&md5()));
    let keys = || {
        ServerCredentials::Keys(LearnedKeys {
            keys: stored_keys(),
            salt: b"salt".to_vec(),
            iterations: 3,
        })
    };
    let md5_challenge = Challenge::Md5 { salt: SALT };
    let cases = [
        (Method::Trust, plain(), None, password()),
        (Method::Trust, md5(), None, digits()),
        (
            Method::Trust,
            scram(),
            None,
            ServerCredentials::VerifierOnly,
        ),
        (
            Method::Plain,
            plain(),
            Some(Challenge::Cleartext),
            password(),
        ),
        (Method::Plain, md5(), Some(Challenge::Cleartext), password()),
        (
            Method::Plain,
            scram(),
            Some(Challenge::Cleartext),
            password(),
        ),
        (Method::Md5, plain(), Some(md5_challenge), password()),
        (Method::Md5, md5(), Some(md5_challenge), digits()),
        (Method::Md5, scram(), Some(PLAIN_SCRAM), keys()),
        (Method::ScramSha256, plain(), Some(PLAIN_SCRAM), password()),
        (Method::ScramSha256, scram(), Some(PLAIN_SCRAM), keys()),
    ];
    for (method, verifier, challenge, credentials) in cases {
        let (asked, outcome) = run(method, Found::Secret(&verifier), "pencil");
        assert_eq!(asked, challenge, "{method:?} {verifier:?}");
        assert_eq!(accepted(outcome), credentials, "{method:?} {verifier:?}");
    }
}

#[test]
fn a_wrong_password_is_refused_whatever_the_secret() {
    for method in [Method::Plain, Method::Md5, Method::ScramSha256] {
        for verifier in [plain(), md5(), scram()] {
            let (_, outcome) = run(method, Found::Secret(&verifier), "pencils");
            assert!(outcome.is_err(), "{method:?} {verifier:?}");
        }
    }
}

#[test]
fn an_unknown_user_sees_what_a_known_one_with_a_wrong_password_sees() {
    let cases = [
        (Method::Plain, scram(), Challenge::Cleartext),
        (Method::Md5, md5(), Challenge::Md5 { salt: SALT }),
        (Method::ScramSha256, scram(), PLAIN_SCRAM),
        (Method::ScramSha256, plain(), PLAIN_SCRAM),
    ];
    for (method, verifier, challenge) in cases {
        let (asked, outcome) = run(method, Found::Secret(&verifier), "wrong");
        let text = outcome.unwrap_err().client_text();
        for nobody in [Found::Nobody, Found::NoSecret] {
            let (asked_nobody, outcome) = run(method, nobody, "wrong");
            assert_eq!((asked, asked_nobody), (Some(challenge), Some(challenge)));
            assert_eq!(outcome.unwrap_err().client_text(), text);
        }
    }
}

#[test]
fn an_md5_secret_fails_scram_after_a_full_exchange() {
    let verifier = md5();
    let (asked, outcome) = run(Method::ScramSha256, Found::Secret(&verifier), "pencil");
    assert_eq!(asked, Some(PLAIN_SCRAM));
    assert_eq!(outcome, Err(LoginError::Sasl(Refusal::Md5Secret)));
}

#[test]
fn the_log_learns_why_but_the_client_does_not() {
    let reason = |method, found| run(method, found, "x").1.unwrap_err();
    let scram_nobody = reason(Method::ScramSha256, Found::Nobody);
    assert_eq!(scram_nobody, LoginError::Sasl(Refusal::UnknownUser));
    assert_eq!(scram_nobody.client_text(), "SASL authentication failed");
    let md5_blank = reason(Method::Md5, Found::NoSecret);
    assert_eq!(md5_blank, LoginError::Password(Refusal::NoSecret));
    assert_eq!(md5_blank.client_text(), "password authentication failed");
}

#[test]
fn trust_lets_in_whoever_exists() {
    let (_, nobody) = run(Method::Trust, Found::Nobody, "");
    assert_eq!(
        nobody.unwrap_err().client_text(),
        "\"trust\" authentication failed"
    );
    let (_, blank) = run(Method::Trust, Found::NoSecret, "");
    assert_eq!(accepted(blank), ServerCredentials::Nothing);
}

#[test]
fn the_mock_of_a_cleartext_login_stretches_like_a_true_one() {
    for found in [Found::Nobody, Found::Secret(&scram())] {
        let (mut login, _) = Login::start(&request(Method::Plain, found)).unwrap();
        let cache = &mut kdf();
        assert_eq!(login.answer(b"guess\0", cache), Ok(LoginStep::Stretch));
        assert_eq!(login.stretch(cache, 1), Ok(LoginStep::Stretch));
        assert!(login.stretch(cache, 1).is_err());
    }
}

#[test]
fn stretching_ahead_leaves_nothing_to_do_and_changes_no_verdict() {
    for (password, good) in [("pencil", true), ("pencils", false)] {
        let verifier = scram();
        let request = request(Method::Plain, Found::Secret(&verifier));
        let (mut login, _) = Login::start(&request).unwrap();
        let cache = &mut kdf();
        let body = format!("{password}\0");
        assert_eq!(login.answer(body.as_bytes(), cache), Ok(LoginStep::Stretch));
        login.stretch_ahead(|| ());
        assert_eq!(login.stretch(cache, 0).is_ok(), good);
        assert_eq!(cache.len(), usize::from(good));
    }
}

#[test]
fn md5_asks_unknown_users_for_what_it_asks_most_users_for() {
    for (mostly_scram, expected) in [(true, PLAIN_SCRAM), (false, Challenge::Md5 { salt: SALT })] {
        for found in [Found::Nobody, Found::NoSecret] {
            let request = LoginRequest {
                mostly_scram,
                ..request(Method::Md5, found)
            };
            let (_, step) = Login::start(&request).unwrap();
            assert_eq!(step, LoginStep::Challenge(expected));
        }
    }
}

#[test]
fn knowing_the_mock_secret_does_not_help() {
    let zeros = md5_response(&[b'0'; 32], SALT);
    let (mut login, _) = Login::start(&request(Method::Md5, Found::Nobody)).unwrap();
    let step = login.answer(format!("{zeros}\0").as_bytes(), &mut kdf());
    assert_eq!(step, Err(LoginError::Password(Refusal::UnknownUser)));
}

#[test]
fn a_plain_secrets_verifier_is_made_up_once() {
    let cache = &mut kdf();
    let verifier = plain();
    let first = initial_response(SCRAM_SHA_256, b"n,,n=,r=abc").unwrap();
    for round in 0..2 {
        let request = request(Method::ScramSha256, Found::Secret(&verifier));
        let (mut login, _) = Login::start(&request).unwrap();
        let step = login.answer(&first, cache).unwrap();
        assert_eq!(step == LoginStep::Stretch, round == 0);
        if step == LoginStep::Stretch {
            login.stretch(cache, 100).unwrap();
        }
    }
    let made_up = made_up_verifier(&[9; 32], "user", b"pencil", 3, cache);
    assert_eq!((cache.len(), made_up.iterations), (1, 3));
}

#[test]
fn a_witness_decides_but_only_about_users_who_exist() {
    let verifier = plain();
    for witness in [Witness::Certificate, Witness::UnixSocket] {
        let method = |agrees| Method::Witnessed { witness, agrees };
        let (_, known) = run(method(true), Found::Secret(&verifier), "");
        assert_eq!(
            accepted(known),
            ServerCredentials::Password(Secret::new("pencil"))
        );
        let (_, blank) = run(method(true), Found::NoSecret, "");
        assert_eq!(accepted(blank), ServerCredentials::Nothing);
        let refused = |method, found| run(method, found, "").1.unwrap_err().client_text();
        let text = refused(method(false), Found::Secret(&verifier));
        assert_eq!(refused(method(true), Found::Nobody), text);
    }
}

#[test]
fn any_lets_everybody_in() {
    let (_, nobody) = run(Method::Any, Found::Nobody, "");
    assert_eq!(accepted(nobody), ServerCredentials::Nothing);
}

#[test]
fn a_judge_is_asked_about_the_password_and_its_word_counts() {
    for judge in [Judge::Ldap, Judge::Pam] {
        for is_right in [true, false] {
            let request = request(Method::Judged(judge), Found::Nobody);
            let (mut login, step) = Login::start(&request).unwrap();
            assert_eq!(step, LoginStep::Challenge(Challenge::Cleartext));
            let asked = login.answer(b"pencil\0", &mut kdf());
            assert_eq!(asked, Ok(LoginStep::Judge(Secret::new("pencil"))));
            // A second password while the first is judged.
            assert!(login.answer(b"pencil\0", &mut kdf()).is_err());
            let (mut login, _) = Login::start(&request).unwrap();
            login.answer(b"pencil\0", &mut kdf()).unwrap();
            assert_eq!(login.judged(is_right).is_ok(), is_right);
            assert_eq!(login.judged(true), Err(LoginError::OutOfOrder));
        }
    }
}

#[test]
fn a_judge_is_never_asked_about_an_empty_password() {
    // An LDAP server takes a bind without a password for an anonymous one, and grants it.
    let request = request(Method::Judged(Judge::Ldap), Found::Nobody);
    let (mut login, _) = Login::start(&request).unwrap();
    assert_eq!(
        login.answer(b"\0", &mut kdf()),
        Err(LoginError::EmptyPassword)
    );
    assert_eq!(login.judged(true), Err(LoginError::OutOfOrder));
}

#[test]
fn malformed_password_messages_are_refused() {
    let cases: [(&[u8], LoginError); 6] = [
        (b"", LoginError::MalformedPassword),
        (b"pencil", LoginError::MalformedPassword),
        (b"pen\0cil\0", LoginError::MalformedPassword),
        (b"pencil\0\0", LoginError::MalformedPassword),
        (b"\0", LoginError::EmptyPassword),
        (b"penci\0", LoginError::Password(Refusal::WrongPassword)),
    ];
    for (body, want) in cases {
        for method in [Method::Plain, Method::Md5] {
            let verifier = plain();
            let request = request(method, Found::Secret(&verifier));
            let (mut login, _) = Login::start(&request).unwrap();
            assert_eq!(login.answer(body, &mut kdf()), Err(want), "{method:?}");
        }
    }
}

#[test]
fn a_login_that_is_over_takes_no_more_messages() {
    let verifier = plain();
    let request = request(Method::Plain, Found::Secret(&verifier));
    let (mut login, _) = Login::start(&request).unwrap();
    let cache = &mut kdf();
    assert_eq!(login.stretch(cache, 1), Err(LoginError::OutOfOrder));
    assert_eq!(
        login.answer(b"pencil\0", cache),
        Err(LoginError::OutOfOrder)
    );
}

#[test]
fn no_junk_gets_anybody_in() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2000 {
        let method = [Method::Plain, Method::Md5, Method::ScramSha256][(random() % 3) as usize];
        let verifier = [plain(), md5(), scram()][(random() % 3) as usize].clone();
        let request = request(method, Found::Secret(&verifier));
        let (mut login, _) = Login::start(&request).unwrap();
        for _ in 0..3 {
            let mut body: Vec<u8> = (0..random() % 40)
                .map(|_| random().to_le_bytes()[0])
                .collect();
            if random() % 2 == 0 {
                body = initial_response(
                    SCRAM_SHA_256,
                    &[b"n,,n=,r=abc,x=", body.as_slice()].concat(),
                )
                .unwrap();
            }
            let step = answer(&mut login, &body, &mut kdf());
            assert!(
                !matches!(step, Ok(LoginStep::Accepted(_))),
                "{method:?} {verifier:?}"
            );
        }
    }
}
