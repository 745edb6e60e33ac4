//! PgBouncer's defaults where ours differ, and its options that have none.

use crate::config::keys::Section;

/// The default of a key in PgBouncer's file, in the notation of TOML, where it is another than ours.
pub(crate) fn preset(section: Section, name: &str) -> Option<&'static str> {
    if section != Section::General {
        return None;
    }
    Some(match name {
        "auth_query_negative_ttl" | "auth_query_ttl" => "\"0 s\"",
        "auth_type" => "\"md5\"",
        "listen_addr" => "[]",
        "listen_backlog" => "128",
        "max_client_conn" => "100",
        "pool_mode" => "\"session\"",
        "prepared_statement_errors_fatal" => "true",
        "strict_startup_parameters" => "true",
        "syslog_ident" => "\"pgbouncer\"",
        "tcp_defer_accept" => "true",
        "unix_socket_dir" => "\"/tmp\"",
        _ => return None,
    })
}

/// Whether an option without a built-in default keeps what it has when a section `[pgbouncer]` begins.
pub(in crate::config) fn keeps_its_value(name: &str) -> bool {
    matches!(
        name,
        "auth_dbname"
            | "auth_file"
            | "auth_ident_file"
            | "auth_ldap_options"
            | "auth_user"
            | "client_tls13_ciphers"
            | "conffile"
            | "server_tls13_ciphers"
            | "user"
            | "verbose"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::keys;

    #[test]
    fn every_preset_is_allowed_and_differs_from_ours() {
        let mut found = 0;
        for key in keys() {
            if let Some(written) = preset(key.section, key.name) {
                let own = key.preset_value();
                assert_ne!(key.value_of(written), own, "{}", key.name);
                found += 1;
            }
        }
        assert!(found >= 9, "{found}");
    }
}
