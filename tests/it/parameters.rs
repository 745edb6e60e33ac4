//! Session parameters: reported to the client, and carried from server to server.

use std::collections::BTreeSet;

use crate::support::wire::*;
use crate::support::*;

everywhere!(changed_parameter_is_reported_to_the_client, |stage| {
    let mut client = stage.client();
    client.value("set client_encoding to latin1");
    assert_eq!(client.params["client_encoding"], "LATIN1");
    client.value("set application_name to 'my app'");
    assert_eq!(client.params["application_name"], "my app");
    client.value("set datestyle to german");
    assert_eq!(client.params["DateStyle"], "German, DMY");
});

everywhere!(start_up_parameters_take_effect, |stage| {
    let params = [
        ("user", "postgres"),
        ("database", stage.entry.as_str()),
        ("application_name", "o'neill \\ co"),
        ("TimeZone", "Europe/Vienna"),
        ("client_encoding", "LATIN1"),
    ];
    let mut client = Client::login_with(stage.address(), &params);
    assert_eq!(client.params["application_name"], "o'neill \\ co");
    assert_eq!(client.value("show application_name"), "o'neill \\ co");
    assert_eq!(client.value("show timezone"), "Europe/Vienna");
    assert_eq!(client.value("show client_encoding"), "LATIN1");
});

everywhere!(name_in_the_encoding_of_its_client_is_taken, |stage| {
    let params = [
        ("user", "postgres"),
        ("database", stage.entry.as_str()),
        ("client_encoding", "LATIN1"),
        ("application_name", "caf#"),
    ];
    let mut packet = startup(PROTOCOL_3_0, &params);
    let accent = packet.iter().position(|byte| *byte == b'#').unwrap();
    packet[accent] = 0xe9;
    let mut client = Client::connect(stage.address());
    assert_eq!(client.exchange(&packet).status, b'I');
    assert_eq!(client.value("show client_encoding"), "LATIN1");
});

everywhere!(greeting_reports_what_drivers_rely_on, |stage| {
    let client = stage.client();
    for name in [
        "server_version",
        "server_encoding",
        "client_encoding",
        "DateStyle",
        "TimeZone",
    ] {
        assert!(
            client.params.contains_key(name),
            "{name} is missing in {:?}",
            client.params
        );
    }
    assert_eq!(client.params["integer_datetimes"], "on");
    assert_eq!(client.params["standard_conforming_strings"], "on");
    assert!(client.key.0 != 0 && client.key.1.len() == 4);
});

both_shards!(parameters_follow_their_client_to_another_server, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut owner = stage.client();
    let first = owner.value("set application_name = 'owner'; select pg_backend_pid()");
    let mut others = [stage.client(), stage.client()];
    let pids = others
        .each_mut()
        .map(|other| other.value("begin; select pg_backend_pid()"));
    // Both servers are taken; only the one that the owner has not seen is given back.
    let free = pids.iter().position(|pid| *pid != first).unwrap();
    let taken = 1 - free;
    assert_eq!(
        (
            pids[taken].as_str(),
            others[taken].value("show application_name").as_str()
        ),
        (&*first, "")
    );
    others[free].value("commit");
    assert_eq!(owner.value("select pg_backend_pid()"), pids[free]);
    assert_eq!(owner.value("show application_name"), "owner");
});

// One server, which moves between the shards.
both_shards!(parameters_of_one_client_never_show_in_another, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let zones = ["UTC", "Europe/Vienna", "Asia/Tokyo"];
    let mut clients: Vec<Client> = (0..8).map(|_| stage.client()).collect();
    let preset = clients[0].params["TimeZone"].clone();
    for (n, client) in clients.iter_mut().enumerate() {
        client.value(&format!("set application_name = 'app {n}'"));
        if n % 2 == 0 {
            client.value(&format!("set timezone = '{}'", zones[n % 3]));
            client.value("set datestyle = 'German'");
        }
    }
    let names = "application_name TimeZone DateStyle".split(' ');
    let settings = names.map(|name| format!("current_setting('{name}')"));
    let settings = settings.collect::<Vec<_>>().join(" || '/' || ");
    let mut pids = BTreeSet::new();
    for round in 0..5 {
        for (n, client) in clients.iter_mut().enumerate() {
            let (zone, style) = match n % 2 {
                0 => (zones[n % 3], "German, DMY"),
                _ => (&*preset, "ISO, MDY"),
            };
            let seen = client.value(&format!("select {settings}"));
            assert_eq!(seen, format!("app {n}/{zone}/{style}"), "round {round}");
            pids.insert(client.value("select pg_backend_pid()"));
        }
    }
    assert_eq!(pids.len(), 1);
    let table = stage.console("SHOW SHARDS").table();
    let moved = table.iter().any(|row| row["handoffs_in"] != "0");
    assert_eq!(moved, shards > 1, "{table:?}");
});

both_shards!(
    impossible_start_up_parameter_is_refused_and_harms_nobody,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let mut client = Client::connect(stage.address());
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("TimeZone", "No/Where"),
        ];
        let mut reply = client.start(wire::PROTOCOL_3_0, &params);
        if !reply.closed {
            reply = client.query("select 1");
        }
        reply.assert_fatal("invalid server parameter");
        drop(client);
        stage.assert_no_leak();
    }
);

both_shards!(request_behind_settings_that_fail_does_not_run, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    stage.database.sql("create table t(n int)");
    for insert in [
        query("insert into t values (1)"),
        extended("insert into t values (1)", &[]),
    ] {
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("options", "-c role=nobody_has_this_role"),
        ];
        let mut client = Client::login_with(stage.address(), &params);
        client
            .exchange(&insert)
            .assert_fatal("invalid server parameter");
    }
    // It would have run as the pool's user, who may do more.
    assert_eq!(stage.client().value("select count(*) from t"), "0");
    stage.assert_no_leak();
});
