//! The grammar: what is a command, and what is not.

use super::*;

#[test]
fn commands_are_read() {
    let table: &[(&str, Command)] = &[
        ("SHOW STATS", Command::Show(Show::Stats)),
        (" show\tstats_TOTALS ; ", Command::Show(Show::StatsTotals)),
        ("SELECT clients;", Command::Show(Show::Clients)),
        ("show \"Pools\"", Command::Show(Show::Pools)),
        ("\x0b\r\nSHOW help", Command::Show(Show::Help)),
        ("select 1", Command::SelectOne),
        ("SELECT 1;", Command::SelectOne),
        ("reload", Command::Reload),
        ("PAUSE", Command::Order(Order::Pause(None))),
        (
            "pause \"My Shop\";",
            Command::Order(Order::Pause(Some("My Shop".into()))),
        ),
        (
            "RESUME shop",
            Command::Order(Order::Resume(Some("shop".into()))),
        ),
        ("Kill", Command::Order(Order::Kill(None))),
        ("reconnect;", Command::Order(Order::Reconnect(None))),
        (
            "DISABLE shop",
            Command::Order(Order::Disable("shop".into())),
        ),
        (
            "ENABLE",
            Command::Incomplete("ENABLE", Refusal::DatabaseRequired),
        ),
        ("WAIT_CLOSE", Command::WaitClose(None)),
        ("KILL_CLIENT 26", Command::KillClient(26)),
        ("kill_client 0x1a", Command::KillClient(26)),
        (
            "kill_client shop",
            Command::Incomplete("KILL_CLIENT", Refusal::BadClient),
        ),
        ("SHUTDOWN;", Command::Shutdown(Shutdown::Now)),
        (
            "shutdown WAIT_FOR_CLIENTS",
            Command::Shutdown(Shutdown::WaitForClients),
        ),
        (
            "SHUTDOWN wait_for_servers;",
            Command::Shutdown(Shutdown::WaitForServers),
        ),
        ("SET DateStyle = 'ISO, MDY'", Command::SetIgnored),
        ("set timezone to gmt;", Command::SetIgnored),
        ("SET client_encoding='it''s'", Command::SetIgnored),
        (
            "SET standard_conforming_strings TO \"on\"",
            Command::SetIgnored,
        ),
    ];
    for (text, command) in table {
        assert_eq!(
            Command::parse(text.as_bytes()).as_ref(),
            Ok(command),
            "{text}"
        );
    }
}

#[test]
fn argument_may_be_a_parameter() {
    let ann = || Some("ann's".to_owned());
    let bound = |text: &str, value| Command::parse(text.as_bytes())?.bind(&[value]);
    for (text, command) in [
        (
            "PAUSE $1",
            Command::Order(Order::Pause(Some("ann's".into()))),
        ),
        ("enable $1;", Command::Order(Order::Enable("ann's".into()))),
        ("WAIT_CLOSE $1", Command::WaitClose(Some("ann's".into()))),
        ("SET query_timeout = $1", set(b"query_timeout", b"ann's")),
        ("SET timezone TO $1", Command::SetIgnored),
        ("KILL_CLIENT $1", client(Some(b"ann's"))),
    ] {
        assert_eq!(bound(text, ann()), Ok(command), "{text}");
    }
    let id = Some("17".to_owned());
    assert_eq!(bound("KILL_CLIENT $1", id), Ok(Command::KillClient(17)));
    for value in [None, Some("x".repeat(VALUE_BYTES_MAX + 1))] {
        for text in ["PAUSE $1", "SET query_timeout = $1"] {
            let verdict = bound(text, value.clone());
            assert_eq!(verdict, Err(Refusal::BadArguments), "{text}");
        }
    }
    let long = "x".repeat(VERB_BYTES_MAX + 1);
    let verdict = bound(&format!("{long} $1"), ann());
    assert_eq!(verdict, Err(Refusal::BadArguments));
    for text in [
        "SHOW $1",
        "SELECT $1",
        "RELOAD $1",
        "SUSPEND $1",
        "PAUSE $2",
        "PAUSE $1 $1",
        "$1",
    ] {
        let verdict = bound(text, ann());
        assert!(
            matches!(verdict, Err(Refusal::InvalidCommand { .. })),
            "{text}: {verdict:?}"
        );
    }
}

fn some_of(text: &str) -> (Show, Arc<Filter>) {
    match Command::parse(text.as_bytes()) {
        Ok(Command::ShowSome(show, filter)) => (show, filter),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn rows_can_be_chosen() {
    let row = vec![crate::admin::table::Value::text("it's"); 17];
    let table = [
        ("SHOW POOLS WHERE database = 'it''s' LIMIT 5", 5, true),
        (
            "show pools where \"user\"<>its and database>=a;",
            usize::MAX,
            true,
        ),
        ("SELECT POOLS WHERE user = x", usize::MAX, false),
        ("SHOW POOLS LIMIT 0;", 0, true),
    ];
    for (text, limit, matches) in table {
        let (show, filter) = some_of(text);
        assert_eq!(show, Show::Pools);
        assert_eq!(
            (filter.limit(), filter.matches(&row)),
            (limit, matches),
            "{text}"
        );
    }
    let (_, filter) = some_of("SHOW CLIENTS WHERE port > $2 AND user = $1 LIMIT $3");
    assert_eq!(filter.parameter_types(), [25, 23, 20]);
    for text in [
        "SHOW POOLS WHERE",
        "SHOW POOLS WHERE user",
        "SHOW POOLS WHERE user =",
        "SHOW POOLS WHERE user = x AND",
        "SHOW POOLS WHERE user = x user = y",
        "SHOW POOLS LIMIT",
        "SHOW POOLS LIMIT 1 LIMIT 2",
        "SHOW POOLS LIMIT 1 WHERE user = x",
        "SHOW POOLS WHERE user = $x",
        "SHOW TIMEZONE LIMIT 1",
        "SHOW HELP LIMIT 1",
        "PAUSE WHERE user = x",
    ] {
        let verdict = Command::parse(text.as_bytes());
        assert!(
            matches!(verdict, Err(Refusal::InvalidCommand { .. })),
            "{text}: {verdict:?}"
        );
    }
    let verdict = Command::parse(b"SHOW POOLS WHERE nothing = 1");
    assert!(
        matches!(verdict, Err(Refusal::NoColumn { .. })),
        "{verdict:?}"
    );
}

#[test]
fn variables_have_pgbouncers_values_and_their_name_as_column() {
    let table = [
        ("CLIENT_ENCODING", "client_encoding", "UTF-8"),
        (
            "default_transaction_isolation",
            "default_transaction_isolation",
            "read committed",
        ),
        (
            "standard_conforming_strings",
            "standard_conforming_strings",
            "on",
        ),
        ("DateStyle", "datestyle", "ISO"),
        ("timezone", "timezone", "GMT"),
        ("extra_float_digits", "extra_float_digits", "2"),
    ];
    for (typed, name, value) in table {
        let command = Command::parse(format!("SHOW {typed}").as_bytes()).unwrap();
        let Command::Show(Show::Variable(variable)) = command else {
            panic!("{command:?}")
        };
        assert_eq!(variable.value, value);
        assert_eq!(command.columns(), [Column::text(name)]);
    }
}

#[test]
fn everything_shown_by_name_is_found_by_its_name() {
    for (word, show) in Show::ALL {
        assert_eq!(shown(word.as_bytes()), Some(*show));
    }
}

#[test]
fn anything_else_is_invalid_and_quoted_back() {
    let table: &[&[u8]] = &[
        b"",
        b";",
        b"BEGIN",
        b"COMMIT",
        b"PAUSE a b",
        b"DISABLE a b",
        b"SHOW",
        b"SHOW ;",
        b"SHOW nothing",
        b"SHOW pools pools",
        b"SHOW pools;;",
        b"SHOW pools; SHOW pools",
        b"SHOW pools -- comment",
        b"SHOW 'pools'",
        b"SHOW \"pools",
        b"SELECT 2",
        b"SELECT version()",
        b"RELOAD now",
        b"SHUTDOWN later",
        b"SET timezone",
        b"SET timezone =",
        b"SET timezone gmt",
        b"SET pool_mode session",
        b"SET server_lifetime = 3.5",
        b"SET timezone = 'gmt",
        b"\xff\xfe",
        b"SHOW\0POOLS",
    ];
    for text in table {
        let quoted = String::from_utf8_lossy(text).into_owned();
        assert_eq!(
            Command::parse(text),
            Err(Refusal::InvalidCommand { text: quoted }),
            "{text:?}"
        );
    }
    let refusal = Command::parse(b"BEGIN").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "invalid command 'BEGIN', use SHOW HELP;"
    );
}

#[test]
fn words_beyond_pgbouncers_limits_are_bad_arguments() {
    let long = |count| "x".repeat(count);
    let verdict = |text: String| Command::parse(text.as_bytes()).unwrap_err();
    let is_invalid = |text| matches!(verdict(text), Refusal::InvalidCommand { .. });
    assert!(is_invalid(long(15)));
    assert!(is_invalid(format!("SHOW {}", long(63))));
    let command = Command::parse(format!("SET {} = 1", long(63)).as_bytes());
    assert!(matches!(command, Ok(Command::Set(_))));
    assert_eq!(verdict(long(16)), Refusal::BadArguments);
    assert_eq!(verdict(format!("SHOW {}", long(64))), Refusal::BadArguments);
    assert_eq!(
        verdict(format!("SET {} = 1", long(64))),
        Refusal::BadArguments
    );
    let value = |count| format!("SET timezone = '{}'", long(count));
    assert_eq!(
        Command::parse(value(255).as_bytes()),
        Ok(Command::SetIgnored)
    );
    assert_eq!(verdict(value(256)), Refusal::BadArguments);
}

#[test]
fn parser_is_total_on_every_truncation_and_flipped_byte() {
    let texts: [&[u8]; 4] = [
        b"SET timezone TO \"a\"\"b\";",
        b"show \"clients\" ;",
        b"shutdown wait_for_clients;",
        b"show pools where a<='b' and c=$1 limit 5;",
    ];
    for text in texts {
        for cut in 0..text.len() {
            let _ = Command::parse(&text[..cut]);
            for byte in 0..=u8::MAX {
                let mut flipped = text.to_vec();
                flipped[cut] = byte;
                let _ = Command::parse(&flipped);
                let _ = is_empty(&flipped);
            }
        }
    }
}

#[test]
fn only_space_and_one_semicolon_are_empty() {
    for text in ["", " \t", ";", " ;\n"] {
        assert!(is_empty(text.as_bytes()), "{text:?}");
    }
    for text in [";;", "SHOW", "; x", "--"] {
        assert!(!is_empty(text.as_bytes()), "{text:?}");
    }
}
