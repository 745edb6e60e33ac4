//! One process of the swarm: connects its part of the clients, then obeys.

use super::client::{Client, Dialer, Step};
use super::drive::Driving;
use super::options::{Drive, Options};
use crate::files;
use crate::poller::Poller;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use slab::Slab;
use std::io::{self, BufRead, Write};
use std::sync::Arc;

const SCRATCH_BYTES: usize = 64 * 1024;
/// A login that takes longer than this is given up.
const LOGIN_NANOS_MAX: u64 = 30_000_000_000;

/// The clients of one process.
struct Worker {
    options: Options,
    number: usize,
    dialer: Dialer,
    poller: Poller,
    clients: Slab<Client>,
    scratch: Vec<u8>,
    /// What keeps it from connecting more.
    obstacle: Option<String>,
}

/// Connects `options.clients` clients, says so, and obeys stdin.
///
/// # Errors
/// What the kernel says to epoll, or to stdin and stdout.
pub fn run(options: Options, number: usize) -> io::Result<()> {
    files::allow(1 << 20);
    let dialer = Dialer {
        address: options.connect,
        login: (options.user.clone(), options.database.clone()),
        tls: options.tls.then(trust_everybody).transpose()?,
    };
    let mut worker = Worker {
        options,
        number,
        dialer,
        poller: Poller::new()?,
        clients: Slab::new(),
        scratch: vec![0; SCRATCH_BYTES],
        obstacle: None,
    };
    worker.connect_all()?;
    let obstacle = worker.obstacle.as_deref().unwrap_or("");
    say(&format!("holding {} {obstacle}\n", worker.clients.len()))?;
    worker.obey()
}

impl Worker {
    fn connect_all(&mut self) -> io::Result<()> {
        let (mut begun, mut logging_in) = (0, 0);
        let mut progress = super::now_nanos();
        loop {
            while self.obstacle.is_none()
                && begun < self.options.clients
                && logging_in < self.options.connecting
            {
                if self.connect(begun) {
                    (begun, logging_in) = (begun + 1, logging_in + 1);
                }
            }
            if logging_in == 0 {
                return Ok(());
            }
            for key in self.poller.wait(Some(LOGIN_NANOS_MAX / 10))? {
                if self.logs_in(key) {
                    logging_in -= 1;
                    progress = super::now_nanos();
                }
            }
            if super::now_nanos() - progress > LOGIN_NANOS_MAX {
                self.obstacle = Some("logins do not get on".into());
                self.clients.retain(|_, client| client.is_ready());
                return Ok(());
            }
        }
    }

    fn connect(&mut self, number: usize) -> bool {
        let connected = Client::connect(&self.dialer, number).and_then(|client| {
            let entry = self.clients.vacant_entry();
            self.poller.add(client.socket(), entry.key())?;
            entry.insert(client);
            Ok(())
        });
        if let Err(error) = &connected {
            self.obstacle = Some(format!("cannot make a connection: {error}"));
        }
        connected.is_ok()
    }

    /// True if a login has ended, one way or the other.
    fn logs_in(&mut self, key: usize) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            return false;
        };
        let was_in = client.is_ready();
        match client.step(&self.dialer, &mut self.scratch) {
            Step::Nothing | Step::Answered(_) => false,
            Step::LoggedIn => true,
            Step::Gone(why) => {
                self.obstacle = Some(why);
                self.clients.remove(key);
                !was_in
            }
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        for line in io::stdin().lock().lines() {
            let line = line?;
            let (command, words) = line.split_once(' ').unwrap_or((&line, ""));
            match command {
                "quit" => break,
                "check" => {
                    self.forget_the_gone()?;
                    say(&format!("alive {}\n", self.clients.len()))?;
                }
                "drive" => {
                    let drive = Drive::parse(words).map_err(io::Error::other)?;
                    self.forget_the_gone()?;
                    let query = &self.options.query;
                    let driving = Driving::new(
                        &mut self.clients,
                        &self.dialer,
                        query,
                        drive,
                        self.number as u64 + 1,
                    );
                    say(&driving.run(&mut self.poller, &mut self.scratch)?.lines())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks at what happened while nobody looked.
    fn forget_the_gone(&mut self) -> io::Result<()> {
        loop {
            let keys: Vec<_> = self.poller.wait(Some(0))?.collect();
            if keys.is_empty() {
                return Ok(());
            }
            for key in keys {
                self.logs_in(key);
            }
        }
    }
}

fn say(lines: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(lines.as_bytes())?;
    out.flush()
}

/// A load test measures what encryption costs; whom it talks to it knows.
fn trust_everybody() -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
