//! Who runs auth_query, and where, and what its answers come to. Each claim holds for PgBouncer, too. PgBouncer 1.18 aborts
//! when somebody who was looked up comes to an entry with a user, and knows no auth_dbname.

use crate::support::drop_in::*;
use crate::support::postgres::MUST_SCRAM;
use crate::support::*;

const PASSWORD: &str = "sesame";
const NO_PASSWORD: &str = "password authentication failed";

fn database() -> Database {
    Postgres::shared().database()
}

/// A pooler that looks users up by passwords in clear text, with these entries of this database: name and keys. `main`
/// has none.
fn start(brand: Brand, lines: &str, entries: &[(&str, &str)], users: &[(&str, &str)]) -> DropIn {
    let database = database();
    create_role(&database, "ann");
    let main = entry("main", &database, "");
    let others = entries
        .iter()
        .map(|(name, keys)| entry(name, &database, keys));
    let entries = others.fold(main, |all, one| all + &one);
    let lines = format!("auth_type = plain\n{lines}\n[databases]\n{entries}");
    DropIn::start_knowing(brand, database, &lines, users)
}

/// A role of the server, which lets it in without a password; other tests may have it as well.
fn create_role(database: &Database, name: &str) {
    let quoted = name.replace('"', "\"\"");
    let create = format!("create role \"{quoted}\" login");
    let exists = "exception when duplicate_object or unique_violation then null";
    database.sql(&format!("do $role$ begin {create}; {exists}; end $role$"));
}

/// Who one is for the server, or what one is told.
fn login(drop_in: &DropIn, user: &str, password: &str, entry: &str) -> Result<String, String> {
    let outcome = driver::try_login(drop_in.address, user, password, entry);
    outcome.map_err(|(_, text)| text)
}

/// A user's password is what this says of the session that asks for it.
fn password_is(what: &str) -> String {
    format!("auth_query = select $1::text, ({what})::text")
}

#[track_caller]
fn assert_in(drop_in: &DropIn, user: &str, password: &str, entry: &str) {
    create_role(&drop_in.database, user);
    let outcome = login(drop_in, user, password, entry);
    assert_eq!(outcome, Ok(user.into()), "{entry}");
    let refused = login(drop_in, user, "something else", entry);
    assert_eq!(refused, Err(NO_PASSWORD.into()), "{entry}");
}

drop_in!(query_is_run_in_the_clients_database_by_auth_user, |brand| {
    let who = password_is("current_user || '@' || current_database()");
    let lines = format!("auth_user = postgres\n{who}");
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    let password = format!("postgres@{}", drop_in.database.name);
    assert_in(&drop_in, "ann", &password, "main");
});

drop_in!(auth_user_of_the_entry_goes_before_that_of_all, |brand| {
    let role = Postgres::shared().role(MUST_SCRAM, "scram-sha-256", PASSWORD);
    let lines = format!("auth_user = postgres\n{}", password_is("current_user"));
    let keys = format!("auth_user={role}");
    let users = [("postgres", ""), (&*role, PASSWORD)];
    let drop_in = start(brand, &lines, &[("other", &keys)], &users);
    assert_in(&drop_in, "ann", "postgres", "main");
    // The secret of the file opens its server.
    assert_in(&drop_in, "ann", &role, "other");
});

drop_in!(without_auth_user_nobody_is_asked, |brand| {
    let drop_in = start(brand, &password_is("'known'"), &[], &[]);
    assert_eq!(
        login(&drop_in, "ann", "known", "main"),
        Err(NO_PASSWORD.into())
    );
});

drop_in!(query_is_run_in_auth_dbname, since(1, 19), |brand| {
    let elsewhere = database();
    let lines = format!(
        "auth_user = postgres\nauth_dbname = asked\n{}",
        password_is("current_database()")
    );
    let other = "auth_dbname=main";
    let asked = entry("asked", &elsewhere, "");
    let database = database();
    let entries = [
        entry("main", &database, ""),
        entry("other", &database, other),
        asked,
    ]
    .concat();
    let lines = format!("auth_type = plain\n{lines}\n[databases]\n{entries}");
    let drop_in = DropIn::start_knowing(brand, database, &lines, &[("postgres", "")]);
    assert_in(&drop_in, "ann", &elsewhere.name, "main");
    assert_in(&drop_in, "ann", &drop_in.database.name, "other");
});

drop_in!(admin_is_looked_up_in_auth_dbname, since(1, 19), |brand| {
    let lines = format!(
        "auth_user = postgres\nauth_dbname = main\nadmin_users = ann\n{}",
        password_is("'known'")
    );
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    for (password, is_in) in [("known", true), ("wrong", false)] {
        let words = format!("user=ann password={password}");
        let outcome = psql(drop_in.address, "pgbouncer", &words, "show version");
        assert_eq!(outcome.is_ok(), is_in, "{outcome:?}");
    }
});

drop_in!(database_to_ask_must_be_there, since(1, 19), |brand| {
    let lines = format!(
        "auth_user = postgres\nauth_dbname = nowhere\n{}",
        password_is("'known'")
    );
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    let told = login(&drop_in, "ann", "known", "main");
    assert_eq!(told, Err("bouncer config error".into()));
    let lines = lines.replace("nowhere", "pgbouncer");
    assert!(DropIn::try_start(brand, database(), &lines).is_err());
});

drop_in!(
    database_to_ask_that_is_disabled_is_named,
    since(1, 19),
    |brand| {
        let lines = format!(
            "auth_user = postgres\nauth_dbname = asked\nadmin_users = postgres\n{}",
            password_is("'known'")
        );
        let users = [("postgres", PASSWORD)];
        let drop_in = start(brand, &lines, &[("asked", "")], &users);
        let words = format!("password={PASSWORD}");
        psql(drop_in.address, "pgbouncer", &words, "disable asked").unwrap();
        let told = login(&drop_in, "ann", "known", "main");
        assert_eq!(
            told,
            Err("authentication database \"asked\" is disabled".into())
        );
    }
);

drop_in!(entry_may_have_a_query_of_its_own, since(1, 23), |brand| {
    let lines = format!("auth_user = postgres\n{}", password_is("'of all'"));
    let keys = "auth_query='select $1::text, ''its own''::text'";
    let drop_in = start(brand, &lines, &[("other", keys)], &[("postgres", "")]);
    assert_in(&drop_in, "ann", "of all", "main");
    assert_in(&drop_in, "ann", "its own", "other");
});

drop_in!(name_is_a_parameter_of_the_query, |brand| {
    let lines = format!("auth_user = postgres\n{}", password_is("length($1)"));
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    for name in ["o'hara", "a\"b", "x' or '1'='1", "$1", "Ann Bee"] {
        assert_in(&drop_in, name, &name.len().to_string(), "main");
    }
});

drop_in!(user_without_a_secret_in_the_file_is_looked_up, |brand| {
    let lines = format!("auth_user = postgres\n{}", password_is("'of the server'"));
    let users = [("postgres", ""), ("ann", ""), ("bob", "of the file")];
    let drop_in = start(brand, &lines, &[], &users);
    match brand {
        Brand::PgBouncer => {
            let refused = login(&drop_in, "ann", "of the server", "main");
            assert_eq!(refused, Err(NO_PASSWORD.into()));
        }
        Brand::Ringbouncer(_) => assert_in(&drop_in, "ann", "of the server", "main"),
    }
    assert_in(&drop_in, "bob", "of the file", "main");
});

drop_in!(several_rows_are_no_answer, |brand| {
    let query = "auth_query = select $1::text, x::text from generate_series(1, 2) x";
    let lines = format!("auth_user = postgres\n{query}");
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    let [first, last] = ["1", "2"].map(|password| login(&drop_in, "ann", password, "main"));
    match brand {
        Brand::PgBouncer => {
            assert_eq!(first, Err(NO_PASSWORD.into()));
            assert_eq!(last, Ok("ann".into()), "the last one counts");
        }
        Brand::Ringbouncer(_) => {
            let refused = Err("bouncer config error".to_owned());
            assert_eq!([first, last], [refused.clone(), refused]);
        }
    }
});

drop_in!(trust_asks_whether_the_user_is_there, |brand| {
    let query = "auth_query = select $1::text, null::text where $1 = 'ann'";
    let lines = format!("auth_user = postgres\n{query}\nauth_type = trust");
    let drop_in = start(brand, &lines, &[], &[("postgres", "")]);
    assert_eq!(login(&drop_in, "ann", "", "main"), Ok("ann".into()));
    let told = match brand {
        Brand::PgBouncer => "no such user",
        Brand::Ringbouncer(_) => "\"trust\" authentication failed",
    };
    assert_eq!(login(&drop_in, "bob", "", "main"), Err(told.into()));
});

drop_in!(lookup_at_a_server_that_is_down_fails, |brand| {
    let lines = format!(
        "auth_user = postgres\nclient_login_timeout = 2\nquery_wait_timeout = 2\nserver_login_retry = 1\n{}",
        password_is("'known'")
    );
    let database = database();
    // Nobody listens at 127.0.0.2.
    let down = format!(
        "down = host=127.0.0.2 port={}\n",
        database.postgres.address().port()
    );
    let lines = format!("auth_type = plain\n{lines}\n[databases]\n{down}");
    let drop_in = DropIn::start_knowing(brand, database, &lines, &[("postgres", "")]);
    let told = login(&drop_in, "ann", "known", "down");
    let texts: &[&str] = match brand {
        Brand::PgBouncer => &["query_wait_timeout"],
        // Lookup and login run out of time together.
        Brand::Ringbouncer(_) => &["bouncer config error", "client_login_timeout"],
    };
    assert!(
        texts.iter().any(|text| told == Err((*text).into())),
        "{told:?}"
    );
});
