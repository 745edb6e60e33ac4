//! Command line and commands.

use crate::wire::Protocol;
use clap::Parser;
use std::collections::HashMap;
use std::net::SocketAddr;

/// Connects clients, holds them and drives a part of them.
///
/// Reads commands from stdin, a line each, and answers each with lines on stdout:
///
///   drive clients=1000 rate=5000 seconds=5 warm_up=1 protocol=simple    prints `open` and `close` around the window, then
///                                                                       `result {JSON}`; rate=0 is a closed loop
///   check                                                               `alive N`
///   quit                                                                ends, as the end of input does
///
/// Its first line is `holding {JSON}`: how many clients have been connected, and what kept it from more.
#[derive(Clone, Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Options {
    /// Where the pooler listens.
    #[arg(long)]
    pub connect: SocketAddr,
    /// Whom the clients log in as; there is no password.
    #[arg(long, default_value = "postgres")]
    pub user: String,
    /// What they log in to.
    #[arg(long, default_value = "postgres")]
    pub database: String,
    /// How many to connect.
    #[arg(long)]
    pub clients: usize,
    /// Worker processes; by default as many as the limit on descriptors demands.
    #[arg(long)]
    pub processes: Option<usize>,
    /// Speak TLS; the certificate is not verified.
    #[arg(long)]
    pub tls: bool,
    /// What they ask.
    #[arg(long, default_value = "SELECT 1")]
    pub query: String,
    /// Connections that are being made at a time, in all processes together.
    #[arg(long, default_value_t = 64)]
    pub connecting: usize,
    /// (internal) Be the worker of this number.
    #[arg(long, hide = true)]
    pub worker: Option<usize>,
}

/// What `drive` is to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drive {
    /// How many of the clients take part.
    pub clients: usize,
    /// Transactions per second; 0: each client sends again when it has its answer.
    pub rate: f64,
    /// Length of the window.
    pub seconds: f64,
    /// How long before the window the load begins.
    pub warm_up: f64,
    /// How the clients ask.
    pub protocol: Protocol,
    /// When to begin, on the monotonic clock.
    pub start_nanos: u64,
}

impl Drive {
    /// Reads `key=value` words.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(words: &str) -> Result<Drive, String> {
        let given: HashMap<&str, &str> = words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let number = |key: &str, default: f64| match given.get(key) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("{key} is no number: {text}")),
        };
        let protocol = match given.get("protocol").copied().unwrap_or("simple") {
            "simple" => Protocol::Simple,
            "extended" => Protocol::Extended,
            "prepared" => Protocol::Prepared,
            other => return Err(format!("unknown protocol {other}")),
        };
        Ok(Drive {
            clients: number("clients", 1.0)? as usize,
            rate: number("rate", 0.0)?,
            seconds: number("seconds", 1.0)?,
            warm_up: number("warm_up", 0.5)?,
            protocol,
            start_nanos: number("start_nanos", 0.0)? as u64,
        })
    }

    /// The words that [`Drive::parse`] reads.
    pub fn words(&self) -> String {
        let protocol = format!("{:?}", self.protocol).to_lowercase();
        format!(
            "clients={} rate={} seconds={} warm_up={} protocol={protocol} start_nanos={}",
            self.clients, self.rate, self.seconds, self.warm_up, self.start_nanos
        )
    }

    /// The window in which is counted, on the monotonic clock.
    pub fn window(&self) -> (u64, u64) {
        let opens = self.start_nanos + nanos(self.warm_up);
        (opens, opens + nanos(self.seconds))
    }
}

/// Seconds as nanoseconds.
pub fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_survives_its_way_to_a_worker() {
        let drive = Drive::parse(
            "clients=10 rate=2.5 seconds=3 warm_up=1 protocol=prepared start_nanos=42",
        )
        .unwrap();
        assert_eq!(Drive::parse(&drive.words()), Ok(drive));
        assert_eq!(drive.window(), (1_000_000_042, 4_000_000_042));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Drive::parse("rate=many").is_err());
        assert!(Drive::parse("protocol=http").is_err());
    }
}
