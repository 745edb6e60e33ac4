//! psql, and with it libpq's own idea of TLS.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::postgres::binaries;

/// Runs `sql` with psql and further words of the connection string: what it printed, or its complaint.
pub fn psql(address: SocketAddr, database: &str, words: &str, sql: &str) -> Result<String, String> {
    let connection = format!(
        "host=localhost hostaddr={} port={} dbname={database} connect_timeout=30 {words}",
        address.ip(),
        address.port()
    );
    let mut command = Command::new(binaries().join("psql"));
    let user = if words.contains("user=") {
        ""
    } else {
        " user=postgres"
    };
    command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    command
        .arg("-d")
        .arg(connection + user)
        .stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    // Nothing of the user's own: ~/.postgresql/root.crt changes what the modes mean.
    let output = command.env("HOME", "/nonexistent").output().expect("psql");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}
