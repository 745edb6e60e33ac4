//! SHOW TLS: the certificates in force, and when they expire.

use super::date::timestamp;
use crate::admin::table::{Column, Row, Value};
use crate::net::CertificateFile;

pub(in crate::admin) const TLS: &[Column] = &[
    Column::text("setting"),
    Column::text("file"),
    Column::text("subject"),
    Column::text("not_before"),
    Column::text("not_after"),
    Column::int8("seconds_left"),
];

/// A row of SHOW TLS. Of a list of revoked certificates, `subject` is its issuer and `not_after` the time of
/// the next one.
pub(super) fn certificate(file: CertificateFile) -> Row {
    let seconds_left = file.seconds_left();
    let has_end = file.not_after != 0;
    vec![
        Value::text(file.key),
        Value::text(file.path.display().to_string()),
        Value::text(file.subject),
        Value::text(moment(file.not_before)),
        Value::text(if has_end {
            moment(file.not_after)
        } else {
            String::new()
        }),
        if has_end {
            Value::Int8(seconds_left)
        } else {
            Value::Null
        },
    ]
}

fn moment(unix_seconds: i64) -> String {
    timestamp(
        u64::try_from(unix_seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::testing::{assert_columns, printed};

    fn file(not_after: i64) -> CertificateFile {
        CertificateFile {
            key: "client_tls_cert_file",
            path: "/etc/tls.crt".into(),
            subject: "CN=pooler".to_owned(),
            not_before: 1_795_416_828,
            not_after,
        }
    }

    #[test]
    fn certificate_is_shown_with_its_end() {
        assert_columns(
            TLS,
            "setting t, file t, subject t, not_before t, not_after t, seconds_left q",
        );
        let text = printed(TLS, &certificate(file(1)));
        assert!(
            text.starts_with(
                "setting=client_tls_cert_file file=/etc/tls.crt subject=CN=pooler not_before=2026-11-23 \
                 06:53:48 UTC not_after=1970-01-01 00:00:01 UTC seconds_left=-"
            ),
            "{text}"
        );
    }

    #[test]
    fn list_without_a_next_one_has_no_end() {
        let text = printed(TLS, &certificate(file(0)));
        assert!(text.contains(" not_after= seconds_left="), "{text}");
    }
}
