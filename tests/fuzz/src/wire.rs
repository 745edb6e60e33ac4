//! Targets of the protocol codec. The claim is always: any bytes are read or refused, and what was
//! read can be written again and reads the same.

use ringbouncer::wire::backend::{
    self as server, Authentication, BackendKeyData, DataRow, Fields, NegotiateProtocolVersion,
    ParameterStatus, RowDescription, TransactionStatus,
};
use ringbouncer::wire::frontend::{
    self as client, Bind, Execute, Parse, SaslInitialResponse, Target, TargetKind,
};
use ringbouncer::wire::{
    FirstPacket, StartupPacket, cancel_request, first_packet_length, parse_first_packet,
    parse_options, ssl_request, startup_packet, tag,
};

/// The first packet of a connection: `data` as it is, and with its length word put right.
pub fn startup(data: &[u8]) {
    first_packet(data);
    let mut fixed = data.to_vec();
    let length = u32::try_from(data.len());
    if let (Some(word), Ok(length)) = (fixed.first_chunk_mut::<4>(), length) {
        *word = length.to_be_bytes();
        first_packet(&fixed);
    }
}

fn first_packet(packet: &[u8]) {
    let Ok(parsed) = parse_first_packet(packet) else {
        return;
    };
    assert_eq!(first_packet_length(packet), Ok(Some(packet.len())));
    match parsed {
        FirstPacket::SslRequest => assert_eq!(built(ssl_request), packet),
        FirstPacket::GssEncRequest => assert_eq!(packet.len(), 8),
        FirstPacket::Cancel(cancel) => {
            let again = built(|out| cancel_request(out, cancel.key.expose()));
            assert_eq!(again, packet);
        }
        FirstPacket::Startup(startup) => startup_round_trip(&startup),
    }
}

fn startup_round_trip(startup: &StartupPacket) {
    let mut pairs = vec![
        ("user", startup.user().as_bytes()),
        ("database", startup.database().as_bytes()),
    ];
    pairs.extend(startup.params());
    pairs.extend(
        startup
            .unsupported_extensions()
            .map(|name| (name, &b""[..])),
    );
    let again = built(|out| startup_packet(out, startup.minor_requested(), &pairs));
    // The database may be new, and no longer fit.
    let Ok(FirstPacket::Startup(again)) = parse_first_packet(&again) else {
        assert!(first_packet_length(&again).is_err());
        return;
    };
    assert_eq!(again.user(), startup.user());
    assert_eq!(again.database(), startup.database());
    assert_eq!(again.needs_negotiation(), startup.needs_negotiation());
    assert!(again.params().eq(startup.params()));
    for (name, _) in startup.params().take(4) {
        assert_eq!(again.get(name), startup.get(name));
    }
}

/// The `options` start-up parameter.
pub fn options(data: &[u8]) {
    let Ok(settings) = parse_options(&String::from_utf8_lossy(data)) else {
        return;
    };
    let written = settings.iter().map(|(name, value)| {
        assert!(!name.is_empty() && !name.contains('='));
        format!("-c {}={} ", escaped(name), escaped(value))
    });
    assert_eq!(parse_options(&written.collect::<String>()), Ok(settings));
}

fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|character| ['\\', character])
        .collect()
}

/// A client message: the first byte of `data` is its tag, the rest its body.
pub fn frontend(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else {
        return;
    };
    match tag {
        tag::frontend::PARSE => parse(body),
        tag::frontend::BIND => bind(body),
        tag::frontend::DESCRIBE => target(body, client::describe_statement),
        tag::frontend::CLOSE => target(body, client::close_statement),
        tag::frontend::EXECUTE => execute(body),
        tag::frontend::QUERY => query(body),
        tag::frontend::PASSWORD => proof(body),
        _ => {}
    }
}

fn parse(body: &[u8]) {
    if let Ok(view) = Parse::read(body) {
        let again = built(|out| client::parse_renamed(out, view.name, &view).expect("it fitted"));
        assert_body(&again, body);
    }
}

fn bind(body: &[u8]) {
    if let Ok(view) = Bind::read(body) {
        let rest_bytes = body.len() - view.names_bytes();
        let mut again = Vec::new();
        client::bind_renamed_head(&mut again, view.portal, view.statement, rest_bytes)
            .expect("it fitted");
        again.extend_from_slice(view.rest);
        assert_body(&again, body);
    }
}

fn target(body: &[u8], write: fn(&mut Vec<u8>, &[u8])) {
    if let Ok(view) = Target::read(body)
        && view.kind == TargetKind::Statement
    {
        assert_body(&built(|out| write(out, view.name)), body);
    }
}

fn execute(body: &[u8]) {
    if let Ok(view) = Execute::read(body) {
        let again = built(|out| client::execute(out, view.portal, view.rows_max));
        assert_body(&again, body);
    }
}

fn query(body: &[u8]) {
    if let Ok(text) = client::query_of(body) {
        assert_body(&built(|out| client::query(out, text)), body);
    }
}

fn proof(body: &[u8]) {
    if let Ok(password) = client::password_of(body) {
        assert_body(&built(|out| client::password(out, password)), body);
    }
    if let Ok(view) = SaslInitialResponse::read(body) {
        let write = |out: &mut _| client::sasl_initial_response(out, view.mechanism, view.data);
        assert_body(&built(write), body);
    }
}

/// A server message: the first byte of `data` is its tag, the rest its body.
pub fn backend(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else {
        return;
    };
    match tag {
        tag::backend::ERROR_RESPONSE | tag::backend::NOTICE_RESPONSE => fields(body),
        tag::backend::AUTHENTICATION => authentication(body),
        tag::backend::PARAMETER_STATUS => parameter_status(body),
        tag::backend::BACKEND_KEY_DATA => key_data(body),
        tag::backend::READY_FOR_QUERY => ready(body),
        tag::backend::NEGOTIATE_PROTOCOL_VERSION => negotiate(body),
        tag::backend::DATA_ROW => data_row(body),
        tag::backend::ROW_DESCRIPTION => row_description(body),
        tag::backend::COMMAND_COMPLETE => command(body),
        _ => {}
    }
}

fn fields(body: &[u8]) {
    let Ok(fields) = Fields::read(body) else {
        return;
    };
    let bytes: usize = fields.iter().map(|(_, value)| value.len() + 2).sum();
    assert_eq!(bytes + 1, body.len());
    if let Some(sqlstate) = fields.sqlstate() {
        assert_eq!(Some(sqlstate.as_str().as_bytes()), fields.get(b'C'));
        assert_eq!(sqlstate.class().len(), 2);
    }
    let first_message = fields.iter().find(|(code, _)| *code == b'M');
    assert_eq!(fields.message(), first_message.map(|(_, value)| value));
    fields.severity();
}

fn authentication(body: &[u8]) {
    let Ok(view) = Authentication::read(body) else {
        return;
    };
    let again = built(|out| match view {
        Authentication::Ok => server::authentication_ok(out),
        Authentication::CleartextPassword => server::authentication_cleartext(out),
        Authentication::Md5Password { salt } => server::authentication_md5(out, salt),
        Authentication::SaslContinue(data) => server::authentication_sasl_continue(out, data),
        Authentication::SaslFinal(data) => server::authentication_sasl_final(out, data),
        Authentication::Sasl(mechanisms) => {
            let names: Vec<&str> = mechanisms.iter().collect();
            assert!(names.iter().all(|name| mechanisms.contains(name)));
            server::authentication_sasl(out, &names);
        }
        Authentication::Other { .. } => {}
    });
    if !again.is_empty() {
        assert_body(&again, body);
    }
}

fn parameter_status(body: &[u8]) {
    if let Ok(view) = ParameterStatus::read(body) {
        let again = built(|out| server::parameter_status(out, view.name, view.value));
        assert_body(&again, body);
    }
}

fn key_data(body: &[u8]) {
    if let Ok(view) = BackendKeyData::read(body) {
        let parts = [&view.pid().to_be_bytes()[..], view.secret()].concat();
        assert_eq!(parts, view.key());
        assert_body(
            &built(|out| server::backend_key_data(out, view.key())),
            body,
        );
    }
}

fn ready(body: &[u8]) {
    if let Ok(status) = TransactionStatus::read(body) {
        assert_body(&built(|out| server::ready_for_query(out, status)), body);
    }
}

fn negotiate(body: &[u8]) {
    let Ok(view) = NegotiateProtocolVersion::read(body) else {
        return;
    };
    let names = view
        .unsupported_extensions()
        .collect::<Vec<_>>()
        .into_iter();
    if names.len() <= usize::from(u16::MAX) {
        let again = built(|out| server::negotiate_protocol_version(out, view.minor, names));
        // All but the major version, which may be left out.
        assert_eq!(again[5 + 2..], body[2..]);
    }
}

fn data_row(body: &[u8]) {
    if let Ok(view) = DataRow::read(body) {
        let values: Vec<_> = view.iter().collect();
        assert_body(&built(|out| server::data_row(out, &values)), body);
    }
}

fn row_description(body: &[u8]) {
    if let Ok(view) = RowDescription::read(body) {
        let bytes: usize = view.iter().map(|column| column.name.len() + 19).sum();
        assert_eq!(bytes + 2, body.len());
    }
}

fn command(body: &[u8]) {
    if let Ok(Ok(command)) = server::command_tag_of(body).map(str::from_utf8) {
        assert_body(&built(|out| server::command_complete(out, command)), body);
    }
}

fn built(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

/// Asserts that `message` is a tag, a true length word and `body`.
fn assert_body(message: &[u8], body: &[u8]) {
    let length = u32::try_from(message.len() - 1)
        .expect("small")
        .to_be_bytes();
    assert_eq!((&message[1..5], &message[5..]), (&length[..], body));
}
