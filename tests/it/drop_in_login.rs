//! Who gets in and what the others are told, and how the pooler itself gets in. Each claim holds for PgBouncer, too.

use std::fs;

use rustix::process::Signal;

use crate::support::drop_in::*;
use crate::support::postgres::{MUST_MD5, MUST_PASSWORD, MUST_SCRAM, Postgres};
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "correct horse, \"battery\" staple";

fn role(group: &str, encryption: &str) -> String {
    Postgres::shared().role(group, encryption, PASSWORD)
}

/// A pooler with these lines in `[pgbouncer]` and these users and secrets; `main` leads to the database as `postgres`.
#[track_caller]
fn start(brand: Brand, lines: &str, users: &[(&str, &str)]) -> DropIn {
    let database = Postgres::shared().database();
    let forced = entry("main", &database, "user=postgres");
    start_before(
        brand,
        database,
        &format!("{lines}\n[databases]\n{forced}"),
        users,
    )
}

/// The same before this database, with lines of whatever section.
#[track_caller]
fn start_before(brand: Brand, database: Database, lines: &str, users: &[(&str, &str)]) -> DropIn {
    DropIn::start_knowing(brand, database, lines, users)
}

/// Who one is for the server, or SQLSTATE and text of the refusal.
fn login(drop_in: &DropIn, user: &str, password: &str, entry: &str) -> Result<String, String> {
    let outcome = driver::try_login(drop_in.address, user, password, entry);
    outcome.map_err(|(code, text)| format!("{code} {text}"))
}

/// The outcome of a start-up packet without a password.
fn bare(drop_in: &DropIn, user: &str, entry: &str) -> peer::Reply {
    drop_in.enter(user, entry)
}

// ---- secrets of the file -----------------------------------------------------------------------------------------

const NO_PASSWORD: &str = "08P01 password authentication failed";
const NO_SASL: &str = "08P01 SASL authentication failed";
const NO_TRUST: &str = "08P01 \"trust\" authentication failed";

drop_in!(kind_of_secret_decides_who_gets_in, |brand| {
    let (by_md5, by_scram) = (role(MUST_MD5, "md5"), role(MUST_SCRAM, "scram-sha-256"));
    let secret = |name: &str| Postgres::shared().stored_secret(name);
    let (md5, scram) = (secret(&by_md5), secret(&by_scram));
    let users = [
        ("plain", PASSWORD),
        (by_md5.as_str(), md5.as_str()),
        (by_scram.as_str(), scram.as_str()),
        ("hollow", ""),
    ];
    let names = [
        users[0].0,
        users[1].0,
        users[2].0,
        users[3].0,
        "nobody_at_all",
    ];
    let (yes, no) = (Ok("postgres".to_owned()), |text: &str| Err(text.to_owned()));
    // By the right password; by a wrong one where that differs.
    let table = [
        ("trust", [&yes, &yes, &yes, &yes, &no(NO_TRUST)], None),
        ("any", [&yes; 5], None),
        (
            "plain",
            [&yes, &yes, &yes, &no(NO_PASSWORD), &no(NO_PASSWORD)],
            Some([NO_PASSWORD; 5]),
        ),
        (
            "md5",
            [&yes, &yes, &yes, &no(NO_PASSWORD), &no(NO_PASSWORD)],
            Some([NO_PASSWORD, NO_PASSWORD, NO_SASL, NO_PASSWORD, NO_PASSWORD]),
        ),
        (
            "scram-sha-256",
            [&yes, &no(NO_SASL), &yes, &no(NO_SASL), &no(NO_SASL)],
            Some([NO_SASL; 5]),
        ),
    ];
    for (auth_type, by_right, by_wrong) in table {
        let drop_in = start(brand, &format!("auth_type = {auth_type}"), &users);
        for (at, name) in names.iter().enumerate() {
            let outcome = login(&drop_in, name, PASSWORD, "main");
            assert_eq!(outcome, *by_right[at], "{auth_type}: {name}, right");
            let outcome = login(&drop_in, name, "wrong", "main");
            let expected = by_wrong.map_or(by_right[at].clone(), |texts| no(texts[at]));
            assert_eq!(outcome, expected, "{auth_type}: {name}, wrong");
        }
    }
});

drop_in!(database_that_is_not_there_is_told_to_users_only, |brand| {
    for (auth_type, refusal) in [
        ("plain", NO_PASSWORD),
        ("md5", NO_PASSWORD),
        ("scram-sha-256", NO_SASL),
    ] {
        let drop_in = start(
            brand,
            &format!("auth_type = {auth_type}"),
            &[("ann", PASSWORD)],
        );
        let outcome = |user: &str, password: &str| login(&drop_in, user, password, "nowhere");
        let told = Err("08P01 no such database: nowhere".to_owned());
        assert_eq!(outcome("ann", PASSWORD), told, "{auth_type}");
        assert_eq!(outcome("ann", "wrong"), Err(refusal.into()), "{auth_type}");
        assert_eq!(outcome("bob", PASSWORD), Err(refusal.into()), "{auth_type}");
    }
});

drop_in!(empty_password_is_refused, |brand| {
    let drop_in = start(
        brand,
        "auth_type = plain",
        &[("ann", PASSWORD), ("hollow", "")],
    );
    for user in ["ann", "hollow"] {
        let mut client = Client::connect(drop_in.address);
        let params = [("user", user), ("database", "main")];
        client.send(&startup(PROTOCOL_3_0, &params));
        assert_eq!(client.expect(b'R').u32_at(0), 3);
        let reply = client.exchange(&message(b'p', b"\0"));
        assert_eq!(reply.code(), "08P01");
        reply.assert_fatal("empty password returned by client");
    }
});

drop_in!(any_needs_a_user_of_the_database, |brand| {
    let drop_in = start(brand, "auth_type = any", &[]);
    assert_eq!(
        login(&drop_in, "whoever", "", "main"),
        Ok("postgres".into())
    );
    let reply = bare(&drop_in, "whoever", &drop_in.database.name);
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("bouncer config error");
});

drop_in!(unknown_type_of_authentication_does_not_start, |brand| {
    for (auth_type, starts) in [("password", false), ("scram", false), ("PLAIN", true)] {
        let database = Postgres::shared().database();
        let started = DropIn::try_start(brand, database, &format!("auth_type = {auth_type}"));
        assert_eq!(started.is_ok(), starts, "{auth_type}");
    }
});

drop_in!(reload_reads_secrets_again, |brand| {
    let drop_in = start(brand, "auth_type = md5", &[("ann", "old"), ("bob", "bob")]);
    assert!(login(&drop_in, "ann", "old", "main").is_ok());
    // A different length: the file is read again when it is seen to have changed.
    fs::write(drop_in.path("userlist.txt"), "\"ann\" \"brand new\"\n").unwrap();
    assert!(
        login(&drop_in, "ann", "old", "main").is_ok(),
        "not before RELOAD"
    );
    drop_in.signal(rustix::process::Signal::HUP);
    wait_until("the new secret holds", || {
        login(&drop_in, "ann", "brand new", "main").is_ok()
    });
    assert_eq!(
        login(&drop_in, "ann", "old", "main"),
        Err(NO_PASSWORD.into())
    );
    assert_eq!(
        login(&drop_in, "bob", "bob", "main"),
        Err(NO_PASSWORD.into())
    );
});

drop_in!(checks_have_an_order, |brand| {
    let drop_in = start(brand, "auth_type = plain", &[("postgres", PASSWORD)]);
    let words = format!("password='{PASSWORD}'");
    let order = |sql| psql(drop_in.address, "pgbouncer", &words, sql).unwrap();
    order("disable main");
    // Only who has proved himself is told of it.
    assert_eq!(
        login(&drop_in, "postgres", "wrong", "main"),
        Err(NO_PASSWORD.into())
    );
    let told = login(&drop_in, "postgres", PASSWORD, "main");
    assert_eq!(told, Err("08P01 database \"main\" is disabled".into()));
    order("enable main");
    let mut only = Client::connect(drop_in.address);
    only.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "main")],
    ));
    only.expect(b'R');
    order("set max_client_conn = 1");
    // Before anybody asks for a database or a password.
    for (user, entry) in [
        ("postgres", "main"),
        ("postgres", "none"),
        ("nobody_at_all", "main"),
    ] {
        let refused = bare(&drop_in, user, entry);
        refused.assert_fatal("no more connections allowed (max_client_conn)");
    }
});

// ---- auth_query --------------------------------------------------------------------------------------------------

const ASKING: &str = "auth_type = scram-sha-256\nauth_user = postgres";

/// A pooler that looks users up with this query, if any is given, and knows none but `postgres`.
fn start_asking(brand: Brand, lines: &str, query: Option<&str>) -> DropIn {
    let query = query.map(|query| format!("\nauth_query = {query}"));
    let lines = format!("{lines}{}", query.unwrap_or_default());
    start_before(
        brand,
        Postgres::shared().database(),
        &lines,
        &[("postgres", "")],
    )
}

drop_in!(role_of_the_server_logs_in_as_itself, |brand| {
    let drop_in = start_asking(brand, ASKING, None);
    let (name, entry) = (role(MUST_SCRAM, "scram-sha-256"), &drop_in.database.name);
    assert_eq!(login(&drop_in, &name, PASSWORD, entry), Ok(name.clone()));
    assert_eq!(login(&drop_in, &name, "wrong", entry), Err(NO_SASL.into()));
    assert_eq!(login(&drop_in, &name, PASSWORD, entry), Ok(name));
});

drop_in!(md5_role_of_the_server_logs_in_as_itself, |brand| {
    let drop_in = start_asking(brand, "auth_type = md5\nauth_user = postgres", None);
    let (name, entry) = (role(MUST_MD5, "md5"), &drop_in.database.name);
    assert_eq!(login(&drop_in, &name, PASSWORD, entry), Ok(name.clone()));
    assert_eq!(
        login(&drop_in, &name, "wrong", entry),
        Err(NO_PASSWORD.into())
    );
});

drop_in!(role_that_the_query_does_not_find_is_refused, |brand| {
    for (auth_type, refusal) in [
        ("scram-sha-256", NO_SASL),
        // As most roles are asked.
        ("md5", NO_SASL),
        ("plain", NO_PASSWORD),
    ] {
        let lines = format!("auth_type = {auth_type}\nauth_user = postgres");
        let drop_in = start_asking(brand, &lines, None);
        let outcome = login(&drop_in, "nobody_at_all", PASSWORD, &drop_in.database.name);
        let told = match brand {
            Brand::PgBouncer => "08P01 no such user",
            // Which says nothing about who there is.
            Brand::Ringbouncer(_) => refusal,
        };
        assert_eq!(outcome, Err(told.into()), "{auth_type}");
    }
});

drop_in!(password_that_has_run_out_is_none, since(1, 24), |brand| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let drop_in = start_asking(brand, ASKING, None);
    let entry = &drop_in.database.name;
    for (until, refused) in [("yesterday", true), ("infinity", false)] {
        let alter = format!("alter role {name} valid until '{until}'");
        drop_in.database.sql(&alter);
        let outcome = login(&drop_in, &name, PASSWORD, entry);
        match refused {
            true => assert_eq!(outcome, Err(NO_SASL.into())),
            false => assert_eq!(outcome, Ok(name.clone())),
        }
    }
});

// Before, it was an error of the configuration.
drop_in!(row_without_a_name_is_none, since(1, 26), |brand| {
    let query = "select null::text, $1::text";
    let drop_in = start_asking(brand, ASKING, Some(query));
    let outcome = login(&drop_in, "ann", PASSWORD, &drop_in.database.name);
    let told = match brand {
        Brand::PgBouncer => "08P01 no such user",
        Brand::Ringbouncer(_) => NO_SASL,
    };
    assert_eq!(outcome, Err(told.into()));
});

drop_in!(secret_of_the_file_goes_before_the_server, |brand| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let drop_in = start(brand, ASKING, &[("postgres", ""), (&name, "of the file")]);
    assert_eq!(
        login(&drop_in, &name, "of the file", "main"),
        Ok("postgres".into())
    );
    assert_eq!(
        login(&drop_in, &name, PASSWORD, "main"),
        Err(NO_SASL.into())
    );
});

drop_in!(null_secret_never_matches, |brand| {
    let query = "select $1::text, null::text";
    let of_md5 = match brand {
        Brand::PgBouncer => NO_PASSWORD,
        // As most roles are asked.
        Brand::Ringbouncer(_) => NO_SASL,
    };
    for (auth_type, refusal) in [
        ("scram-sha-256", NO_SASL),
        ("md5", of_md5),
        ("plain", NO_PASSWORD),
    ] {
        let lines = format!("auth_type = {auth_type}\nauth_user = postgres");
        let drop_in = start_asking(brand, &lines, Some(query));
        for password in ["null", "x"] {
            let outcome = login(&drop_in, "ann", password, &drop_in.database.name);
            assert_eq!(outcome, Err(refusal.into()), "{auth_type} {password}");
        }
    }
});

drop_in!(name_in_the_answer_is_who_logs_in, |brand| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let query = format!(
        "select '{name}'::text, rolpassword from pg_authid where rolname = '{name}' and $1 = 'alias'"
    );
    let drop_in = start_asking(brand, ASKING, Some(&query));
    let entry = &drop_in.database.name;
    assert_eq!(login(&drop_in, "alias", PASSWORD, entry), Ok(name));
});

drop_in!(
    answer_that_makes_no_sense_is_an_error_of_the_configuration,
    |brand| {
        let cases = [
            "select 'a', 'b', $1::text",
            "select $1::text",
            "select no_such_column, $1::text",
            "select $1::text, (1/0)::text",
        ];
        for query in cases {
            let drop_in = start_asking(brand, ASKING, Some(query));
            let outcome = login(&drop_in, "ann", "x", &drop_in.database.name);
            assert_eq!(outcome, Err("08P01 bouncer config error".into()), "{query}");
        }
    }
);

// ---- HBA ---------------------------------------------------------------------------------------------------------

/// A pooler with these rules that knows `users`, all with [`PASSWORD`], and the entries `main` and `other`.
fn start_ruled(brand: Brand, rules: &str, users: &[&str]) -> (DropIn, tempfile::TempDir) {
    let files = open_directory();
    let hba = files.path().join("hba");
    fs::write(&hba, rules).unwrap();
    fs::write(files.path().join("names"), "ann\n\"bob\"\n").unwrap();
    let database = Postgres::shared().database();
    let entries: String = ["main", "other", "ann", "all"]
        .map(|name| entry(name, &database, "user=postgres"))
        .concat();
    let lines = format!(
        "auth_type = hba\nauth_hba_file = {}\n[databases]\n{entries}",
        hba.display()
    );
    let users: Vec<_> = users.iter().map(|user| (*user, PASSWORD)).collect();
    (start_before(brand, database, &lines, &users), files)
}

const NO_RULE: &str = "no authentication method is found";

/// What they are told whom no rule matches.
fn no_rule(brand: Brand) -> &'static str {
    match brand.is_before((1, 20)) {
        true => REJECTED,
        false => NO_RULE,
    }
}

const REJECTED: &str = "login rejected";

drop_in!(first_rule_that_matches_decides, |brand| {
    let cases: [(&str, &str, &str, &str); 23] = [
        ("host all all 127.0.0.1/32 trust", "ann", "main", ""),
        ("host all all 127.0.0.1/32 reject", "ann", "main", REJECTED),
        ("", "ann", "main", NO_RULE),
        ("local all all trust", "ann", "main", NO_RULE),
        ("hostssl all all 127.0.0.1/32 trust", "ann", "main", NO_RULE),
        ("hostnossl all all 127.0.0.1/32 trust", "ann", "main", ""),
        ("host all all 10.0.0.0/8 trust", "ann", "main", NO_RULE),
        ("host all all 127.0.0.0/8 trust", "ann", "main", ""),
        ("host all all 127.0.0.0 255.0.0.0 trust", "ann", "main", ""),
        ("host all all 0.0.0.0/0 trust", "ann", "main", ""),
        ("host all all ::/0 trust", "ann", "main", NO_RULE),
        ("host main,other all 127.0.0.1/32 trust", "ann", "other", ""),
        ("host other all 127.0.0.1/32 trust", "ann", "main", NO_RULE),
        ("host all bob,ann 127.0.0.1/32 trust", "ann", "main", ""),
        ("host all bob 127.0.0.1/32 trust", "ann", "main", NO_RULE),
        ("host sameuser all 127.0.0.1/32 trust", "ann", "ann", ""),
        (
            "host sameuser all 127.0.0.1/32 trust",
            "ann",
            "main",
            NO_RULE,
        ),
        ("host \"all\" all 127.0.0.1/32 trust", "ann", "all", ""),
        (
            "host \"all\" all 127.0.0.1/32 trust",
            "ann",
            "main",
            NO_RULE,
        ),
        ("host all \"ann\" 127.0.0.1/32 trust", "ann", "main", ""),
        (
            "host all bob 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 reject",
            "bob",
            "main",
            "",
        ),
        (
            "# none\n\nnonsense\nhost all\nhost all all 127.0.0.1/32 trust",
            "ann",
            "main",
            "",
        ),
        (
            "host all all 127.0.0.1/32 nonsense\nhost all ann 127.0.0.1/32 trust # why",
            "ann",
            "main",
            "",
        ),
    ];
    for (rules, user, entry, refusal) in cases {
        let (drop_in, _files) = start_ruled(brand, &format!("{rules}\n"), &["ann", "bob"]);
        let reply = bare(&drop_in, user, entry);
        match refusal {
            NO_RULE => reply.assert_fatal(no_rule(brand)),
            "" => assert_eq!(reply.status, b'I', "{rules}: {reply:?}"),
            text => {
                assert_eq!((reply.code(), reply.text()), ("08P01", text), "{rules}");
                reply.fatal();
            }
        }
    }
});

drop_in!(rule_may_be_for_every_address, since(1, 23), |brand| {
    let rules = "host other all 10.0.0.1/32 trust\nhost all all all trust\n";
    let (drop_in, _files) = start_ruled(brand, rules, &["ann"]);
    assert_eq!(bare(&drop_in, "ann", "other").status, b'I');
});

drop_in!(rule_says_how_the_user_proves_himself, |brand| {
    let rules = "host main ann 127.0.0.1/32 md5\nhost main bob 127.0.0.1/32 scram-sha-256\n\
                 host main cyd 127.0.0.1/32 password\nhost main all 127.0.0.1/32 scram-sha-256\n";
    let (drop_in, _files) = start_ruled(brand, rules, &["ann", "bob", "cyd"]);
    for (user, request, refusal) in [
        ("ann", 5, NO_PASSWORD),
        ("bob", 10, NO_SASL),
        ("cyd", 3, NO_PASSWORD),
        ("nobody_at_all", 10, NO_SASL),
    ] {
        let mut client = Client::connect(drop_in.address);
        client.send(&startup(
            PROTOCOL_3_0,
            &[("user", user), ("database", "main")],
        ));
        assert_eq!(client.expect(b'R').u32_at(0), request, "{user}");
        let outcome = login(&drop_in, user, PASSWORD, "main");
        assert_eq!(
            outcome.is_ok(),
            user != "nobody_at_all",
            "{user}: {outcome:?}"
        );
        assert_eq!(
            login(&drop_in, user, "wrong", "main"),
            Err(refusal.into()),
            "{user}"
        );
    }
});

drop_in!(names_may_stand_in_a_file_beside_the_rules, |brand| {
    let (drop_in, _files) = start_ruled(
        brand,
        "host all @names 127.0.0.1/32 trust\n",
        &["ann", "bob", "cyd"],
    );
    for user in ["ann", "bob"] {
        assert_eq!(bare(&drop_in, user, "main").status, b'I', "{user}");
    }
    bare(&drop_in, "cyd", "main").assert_fatal(no_rule(brand));
});

drop_in!(rules_hold_for_the_console_too, |brand| {
    let rules = "host pgbouncer postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 reject\n";
    let (drop_in, _files) = start_ruled(brand, rules, &["postgres", "ann"]);
    assert_eq!(drop_in.console("SHOW VERSION").complete, ["SHOW"]);
    bare(&drop_in, "postgres", "main").assert_fatal(REJECTED);
});

drop_in!(rules_are_read_again_by_reload, |brand| {
    let rules = "host pgbouncer postgres 127.0.0.1/32 trust\n";
    let (drop_in, files) = start_ruled(brand, rules, &["postgres", "ann"]);
    bare(&drop_in, "ann", "main").assert_fatal(no_rule(brand));
    let more = format!("{rules}host main ann 127.0.0.1/32 trust\n");
    fs::write(files.path().join("hba"), more).unwrap();
    bare(&drop_in, "ann", "main").assert_fatal(no_rule(brand));
    assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(bare(&drop_in, "ann", "main").status, b'I');
});

/// The SQLSTATE that clients see of a server that refused the pooler.
fn code_of_server(brand: Brand, code: &str) -> &str {
    match brand.is_before((1, 20)) {
        true => "08P01",
        false => code,
    }
}

// ---- towards servers ---------------------------------------------------------------------------------------------

drop_in!(secret_of_the_file_opens_the_server, |brand| {
    let groups = [
        (MUST_PASSWORD, "scram-sha-256"),
        (MUST_MD5, "md5"),
        (MUST_SCRAM, "scram-sha-256"),
    ];
    for (group, encryption) in groups {
        let name = role(group, encryption);
        for auth_type in ["trust", "plain", "md5", "scram-sha-256"] {
            let lines = format!("auth_type = {auth_type}");
            let users = [(name.as_str(), PASSWORD)];
            let drop_in = start_before(brand, Postgres::shared().database(), &lines, &users);
            let outcome = login(&drop_in, &name, PASSWORD, &drop_in.database.name);
            assert_eq!(outcome, Ok(name.clone()), "{group} by {auth_type}");
        }
    }
});

drop_in!(stored_secret_opens_a_server_with_the_same, |brand| {
    let cases = [
        (MUST_MD5, "md5", "md5"),
        (MUST_MD5, "md5", "plain"),
        (MUST_MD5, "md5", "trust"),
        (MUST_SCRAM, "scram-sha-256", "md5"),
        (MUST_SCRAM, "scram-sha-256", "scram-sha-256"),
    ];
    for (group, encryption, auth_type) in cases {
        let name = role(group, encryption);
        let secret = Postgres::shared().stored_secret(&name);
        let lines = format!("auth_type = {auth_type}");
        let users = [(name.as_str(), secret.as_str())];
        let drop_in = start_before(brand, Postgres::shared().database(), &lines, &users);
        let outcome = login(&drop_in, &name, PASSWORD, &drop_in.database.name);
        assert_eq!(outcome, Ok(name.clone()), "{group} by {auth_type}");
    }
});

drop_in!(
    secret_of_the_file_opens_the_server_for_a_forced_user,
    |brand| {
        let database = Postgres::shared().database();
        let [known, other] = [(); 2].map(|()| role(MUST_SCRAM, "scram-sha-256"));
        let entries = entry("known", &database, &format!("user={known}"))
            + &entry("other", &database, &format!("user={other}"));
        let lines = format!("auth_type = plain\n[databases]\n{entries}");
        let users = [("ann", "sesame"), (&*known, PASSWORD)];
        let drop_in = start_before(brand, database, &lines, &users);
        assert_eq!(login(&drop_in, "ann", "sesame", "known"), Ok(known.clone()));
        // Not the client's own.
        assert!(login(&drop_in, "ann", "sesame", "other").is_err());
    }
);

drop_in!(password_of_the_entry_opens_the_server, |brand| {
    for (group, encryption) in [
        (MUST_PASSWORD, "md5"),
        (MUST_MD5, "md5"),
        (MUST_SCRAM, "scram-sha-256"),
    ] {
        let (name, database) = (role(group, encryption), Postgres::shared().database());
        let right = entry(
            "right",
            &database,
            &format!("user={name} password='{PASSWORD}'"),
        );
        let wrong = entry("wrong", &database, &format!("user={name} password=wrong"));
        let lines = format!("[databases]\n{right}{wrong}");
        let drop_in = start_before(brand, database, &lines, &[("ann", "")]);
        assert_eq!(
            login(&drop_in, "ann", "", "right"),
            Ok(name.clone()),
            "{group}"
        );
        let code = code_of_server(brand, "28P01");
        let refusal = format!("{code} password authentication failed for user \"{name}\"");
        assert_eq!(login(&drop_in, "ann", "", "wrong"), Err(refusal), "{group}");
    }
});

drop_in!(secret_that_cannot_answer_the_server_is_of_no_use, |brand| {
    // An md5 secret cannot answer SCRAM.
    let (name, by_md5) = (role(MUST_SCRAM, "scram-sha-256"), role(MUST_MD5, "md5"));
    let secret = Postgres::shared().stored_secret(&by_md5);
    let users = [(name.as_str(), secret.as_str())];
    let drop_in = start_before(brand, Postgres::shared().database(), "", &users);
    let reply = bare(&drop_in, &name, &drop_in.database.name);
    assert_eq!(reply.code(), "08P01");
    match brand {
        Brand::PgBouncer => reply.assert_fatal("server login failed: wrong password type"),
        // More precise on purpose.
        Brand::Ringbouncer(_) => assert!(
            reply.fatal().text.starts_with("server login failed: "),
            "{reply:?}"
        ),
    }
});

drop_in!(words_of_a_server_that_refuses_reach_the_client, |brand| {
    let database = Postgres::shared().database();
    let missing = entry("missing", &database, "")
        .replace(&format!("dbname={}", database.name), "dbname=not_there");
    let stranger = entry("stranger", &database, "user=not_a_role");
    let drop_in = start_before(
        brand,
        database,
        &format!("[databases]\n{missing}{stranger}"),
        &[("postgres", "")],
    );
    for (entry, code, text) in [
        ("missing", "3D000", "database \"not_there\" does not exist"),
        ("stranger", "28000", "role \"not_a_role\" does not exist"),
    ] {
        let refusal = format!("{} {text}", code_of_server(brand, code));
        assert_eq!(login(&drop_in, "postgres", "", entry), Err(refusal));
    }
});

// ---- time --------------------------------------------------------------------------------------------------------

drop_in!(login_that_takes_too_long_is_ended, |brand| {
    let lines = "auth_type = md5\nclient_login_timeout = 60";
    let drop_in = start(brand, lines, &[("ann", PASSWORD)]);
    let mut silent = Client::connect(drop_in.address);
    let mut asked = Client::connect(drop_in.address);
    asked.send(&startup(
        PROTOCOL_3_0,
        &[("user", "ann"), ("database", "main")],
    ));
    asked.expect(b'R');
    let file = drop_in.path("pgbouncer.ini");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("timeout = 60", "timeout = 1")).unwrap();
    drop_in.signal(Signal::HUP);
    for client in [&mut silent, &mut asked] {
        let reply = client.reply();
        assert_eq!(reply.code(), "08P01");
        reply.assert_fatal("client_login_timeout");
    }
});

drop_in!(login_waits_for_a_server_that_is_down, |brand| {
    let postgres = Postgres::own();
    let database = postgres.database();
    let lines = "auth_type = trust\nclient_login_timeout = 2\nserver_login_retry = 1";
    let users = [("postgres", "")];
    let drop_in = start_before(brand, database, lines, &users);
    postgres.kill();
    let reply = bare(&drop_in, "postgres", &drop_in.database.name);
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("client_login_timeout (server down)");
    let mut waiting = Client::connect(drop_in.address);
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    waiting.send(&startup(PROTOCOL_3_0, &params));
    wait_until("it has come", || {
        drop_in.log().matches("login attempt").count() == 2
    });
    postgres.start();
    let mut reply = waiting.reply();
    wait_until("it is back", || {
        if reply.status != b'I' {
            reply = bare(&drop_in, "postgres", &drop_in.database.name);
        }
        reply.status == b'I'
    });
});
