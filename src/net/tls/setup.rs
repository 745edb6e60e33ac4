//! What the settings and the files they name come to: who we are, whom we trust, what we offer.

use super::binding::end_point_binding;
use super::check::ServerCheck;
use super::error::SetupError;
use super::files::{CertificateFile, FileStamp, Reader, content};
use crate::config::{
    Curve, General, Protocols, SslMode, Suite, parse_ciphers, parse_curves, parse_protocols,
    parse_tls13_ciphers, suite_named,
};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, Ticketer, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The protocol that both sides name in ALPN (protocol section "SSL Session Encryption").
const ALPN: &[u8] = b"postgresql";

/// How clients are received.
pub struct Acceptor {
    pub(super) config: Arc<ServerConfig>,
    /// Channel-binding data of our certificate.
    pub(super) binding: Option<Arc<[u8]>>,
    fingerprint: [u8; 32],
    rows: Vec<CertificateFile>,
}

/// How servers are dialled.
pub struct Connector {
    pub(super) config: Arc<ClientConfig>,
    fingerprint: [u8; 32],
    rows: Vec<CertificateFile>,
}

/// Everything that the TLS settings come to.
#[derive(Clone)]
pub struct TlsSetup {
    /// Who must encrypt: the mode that these came from.
    pub client_mode: SslMode,
    /// Likewise.
    pub server_mode: SslMode,
    /// Towards clients; none if that is off.
    pub clients: Option<Arc<Acceptor>>,
    /// Towards servers; none if that is off.
    pub servers: Option<Arc<Connector>>,
    watched: Vec<(PathBuf, FileStamp)>,
}

impl Default for TlsSetup {
    fn default() -> TlsSetup {
        TlsSetup {
            client_mode: SslMode::Disable,
            server_mode: SslMode::Disable,
            clients: None,
            servers: None,
            watched: Vec::new(),
        }
    }
}

impl fmt::Debug for TlsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSetup")
    }
}

impl TlsSetup {
    /// Reads and checks the files that the settings name. A side of which nothing has changed since
    /// `old` is taken from there, so that its sessions can still be resumed and nobody has to reconnect.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn load(general: &General, old: Option<&TlsSetup>) -> Result<TlsSetup, SetupError> {
        // Before they are read: a change in between is noticed afterwards.
        let watched = stamps(general);
        let mut clients = None;
        if general.client_tls_sslmode > SslMode::Disable {
            let new = acceptor(general)?;
            let same = old.and_then(|old| old.clients.clone());
            clients = Some(kept(same, new, |side| side.fingerprint));
        }
        let mut servers = None;
        if general.server_tls_sslmode > SslMode::Disable {
            let new = connector(general)?;
            let same = old.and_then(|old| old.servers.clone());
            servers = Some(kept(same, new, |side| side.fingerprint));
        }
        Ok(TlsSetup {
            client_mode: general.client_tls_sslmode,
            server_mode: general.server_tls_sslmode,
            clients,
            servers,
            watched,
        })
    }

    /// Whether servers have to be dialled anew where `new` is in force.
    pub fn servers_differ(&self, new: &TlsSetup) -> bool {
        let print = |setup: &TlsSetup| setup.servers.as_ref().map(|side| side.fingerprint);
        print(self) != print(new)
    }

    /// The certificates in force.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateFile> {
        let of_clients = self.clients.iter().flat_map(|side| &side.rows);
        let of_servers = self.servers.iter().flat_map(|side| &side.rows);
        of_clients.chain(of_servers)
    }

    /// The files as they are now, for comparison with an earlier answer.
    pub fn look(&self) -> Vec<FileStamp> {
        let now = self.watched.iter().map(|(path, _)| FileStamp::of(path));
        now.collect()
    }

    /// The files as they were when they were read.
    pub fn stamps(&self) -> Vec<FileStamp> {
        self.watched.iter().map(|(_, stamp)| *stamp).collect()
    }
}

/// The old one if the new one is the same.
fn kept<T>(old: Option<Arc<T>>, new: T, fingerprint: impl Fn(&T) -> [u8; 32]) -> Arc<T> {
    old.filter(|old| fingerprint(old) == fingerprint(&new))
        .unwrap_or_else(|| Arc::new(new))
}

fn stamps(general: &General) -> Vec<(PathBuf, FileStamp)> {
    let of_clients = [
        &general.client_tls_key_file,
        &general.client_tls_cert_file,
        &general.client_tls_ca_file,
        &general.client_tls_crl_file,
    ];
    let of_servers = [
        &general.server_tls_key_file,
        &general.server_tls_cert_file,
        &general.server_tls_ca_file,
        &general.server_tls_crl_file,
    ];
    let is_on = |mode: SslMode| mode > SslMode::Disable;
    let clients = of_clients
        .into_iter()
        .filter(|_| is_on(general.client_tls_sslmode));
    let servers = of_servers
        .into_iter()
        .filter(|_| is_on(general.server_tls_sslmode));
    let files = clients.chain(servers).flatten();
    let system = trusts_the_system(general).then(system_bundle);
    files
        .map(PathBuf::as_path)
        .chain(system)
        .map(|path| (path.to_owned(), FileStamp::of(path)))
        .collect()
}

// ---- towards clients ---------------------------------------------------------------------

fn acceptor(general: &General) -> Result<Acceptor, SetupError> {
    let whole = |problem: String| SetupError::Whole {
        side: "client",
        problem,
    };
    let mut reader = Reader::default();
    reader.note(general.client_tls_sslmode.as_str());
    let offer = Offer::read(
        &mut reader,
        &general.client_tls_protocols,
        &general.client_tls_ciphers,
        &general.client_tls13_ciphers,
        &general.client_tls_ecdhcurve,
    );
    let offer = offer.map_err(whole)?;
    let provider = Arc::new(offer.provider());
    let verifier = client_verifier(general, &mut reader, &provider)?;
    let (Some(certificate), Some(key)) =
        (&general.client_tls_cert_file, &general.client_tls_key_file)
    else {
        return Err(whole("a certificate and its key are needed".to_owned()));
    };
    let chain = reader.certificates("client_tls_cert_file", certificate)?;
    let key_der = reader.private_key("client_tls_key_file", key)?;
    matching("client_tls_key_file", key, &chain, &key_der, &provider)?;
    let binding = chain.first().and_then(|der| end_point_binding(der));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&offer.versions())
        .map_err(|error| whole(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key_der);
    let mut config = config.map_err(|error| whole(error.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    // Sessions are resumed by tickets, which every shard can read. Their keys are as old as this
    // configuration: a session of before a change of certificates is not resumed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(|error| whole(error.to_string()))?;
    config.send_tls13_tickets = 1;
    Ok(Acceptor {
        config: Arc::new(config),
        binding,
        fingerprint: reader.fingerprint(),
        rows: reader.rows,
    })
}

/// A certificate that a client presents is always verified; without a CA none is asked for.
fn client_verifier(
    general: &General,
    reader: &mut Reader,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, SetupError> {
    let Some(path) = &general.client_tls_ca_file else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let (roots, _) = roots(reader, "client_tls_ca_file", path)?;
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Some(path) = &general.client_tls_crl_file {
        builder = builder.with_crls(reader.revoked("client_tls_crl_file", path)?);
    }
    if general.client_tls_sslmode < SslMode::VerifyCa {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| SetupError::Whole {
        side: "client",
        problem: error.to_string(),
    })
}

// ---- towards servers ---------------------------------------------------------------------

fn connector(general: &General) -> Result<Connector, SetupError> {
    let whole = |problem: String| SetupError::Whole {
        side: "server",
        problem,
    };
    let mut reader = Reader::default();
    reader.note(general.server_tls_sslmode.as_str());
    let offer = Offer::read(
        &mut reader,
        &general.server_tls_protocols,
        &general.server_tls_ciphers,
        &general.server_tls13_ciphers,
        "auto",
    );
    let offer = offer.map_err(whole)?;
    let provider = Arc::new(offer.provider());
    let check = server_check(general, &mut reader, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&offer.versions())
        .map_err(|error| whole(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let files = (&general.server_tls_cert_file, &general.server_tls_key_file);
    let mut config = match files {
        (Some(certificate), Some(key)) => {
            let chain = reader.certificates("server_tls_cert_file", certificate)?;
            let key_der = reader.private_key("server_tls_key_file", key)?;
            matching("server_tls_key_file", key, &chain, &key_der, &provider)?;
            let config = builder.with_client_auth_cert(chain, key_der);
            config.map_err(|error| whole(error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Connector {
        config: Arc::new(config),
        fingerprint: reader.fingerprint(),
        rows: reader.rows,
    })
}

fn server_check(
    general: &General,
    reader: &mut Reader,
    provider: &Arc<CryptoProvider>,
) -> Result<ServerCheck, SetupError> {
    let mode = general.server_tls_sslmode;
    let mut check = ServerCheck {
        mode,
        roots: Vec::new(),
        chain: None,
        algorithms: provider.signature_verification_algorithms,
    };
    let (store, ders) = match &general.server_tls_ca_file {
        Some(path) => roots(reader, "server_tls_ca_file", path)?,
        None if trusts_the_system(general) => (system_roots(reader)?, Vec::new()),
        None => return Ok(check),
    };
    let mut builder =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
    if let Some(path) = &general.server_tls_crl_file {
        builder = builder.with_crls(reader.revoked("server_tls_crl_file", path)?);
    }
    let chain = builder.build().map_err(|error| SetupError::Whole {
        side: "server",
        problem: error.to_string(),
    })?;
    check.roots = ders;
    check.chain = (mode >= SslMode::VerifyCa).then_some(chain);
    Ok(check)
}

// ---- both --------------------------------------------------------------------------------

/// Where systems keep the certificates that they trust: Debian and Alpine, Fedora, SUSE.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Whether certificates of servers must come from those that the system trusts.
fn trusts_the_system(general: &General) -> bool {
    general.server_tls_sslmode >= SslMode::VerifyCa && general.server_tls_ca_file.is_none()
}

fn system_bundle() -> &'static Path {
    let mut all = SYSTEM_BUNDLES.iter().map(Path::new);
    let found = all.find(|path| path.exists());
    found.unwrap_or(Path::new(SYSTEM_BUNDLES[0]))
}

fn system_roots(reader: &mut Reader) -> Result<RootCertStore, SetupError> {
    let found = reader.bundle("server_tls_ca_file", system_bundle())?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found);
    Ok(store)
}

type Roots = (RootCertStore, Vec<CertificateDer<'static>>);

fn roots(reader: &mut Reader, key: &'static str, path: &Path) -> Result<Roots, SetupError> {
    let found = reader.certificates(key, path)?;
    let mut store = RootCertStore::empty();
    for der in &found {
        let added = store.add(der.clone());
        added.map_err(|error| content(key, path, &error.to_string()))?;
    }
    Ok((store, found))
}

/// Whether a key can be used, and is that of the certificate.
fn matching(
    name: &'static str,
    path: &Path,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<(), SetupError> {
    let certified = CertifiedKey::from_der(chain.to_vec(), key.clone_key(), provider);
    certified.map(drop).map_err(|error| {
        let problem = match error {
            rustls::Error::InconsistentKeys(_) => "is not the key of the certificate".to_owned(),
            other => other.to_string(),
        };
        content(name, path, &problem)
    })
}

/// What we offer in a handshake.
struct Offer {
    protocols: Protocols,
    tls12: Vec<&'static Suite>,
    tls13: Vec<&'static Suite>,
    curves: Vec<Curve>,
}

impl Offer {
    fn read(
        reader: &mut Reader,
        protocols: &str,
        ciphers: &str,
        tls13_ciphers: &str,
        curves: &str,
    ) -> Result<Offer, String> {
        for setting in [protocols, ciphers, tls13_ciphers, curves] {
            reader.note(setting);
        }
        Ok(Offer {
            protocols: parse_protocols(protocols)?,
            tls12: parse_ciphers(ciphers)?,
            tls13: parse_tls13_ciphers(tls13_ciphers)?,
            curves: parse_curves(curves)?,
        })
    }

    fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let tls13 = self.protocols.tls13.then_some(&TLS13);
        let tls12 = self.protocols.tls12.then_some(&TLS12);
        tls13.into_iter().chain(tls12).collect()
    }

    fn provider(&self) -> CryptoProvider {
        let wanted = self.tls13.iter().chain(&self.tls12);
        CryptoProvider {
            cipher_suites: wanted.filter_map(|suite| supported(suite)).collect(),
            kx_groups: self.curves.iter().copied().map(group).collect(),
            ..default_provider()
        }
    }
}

fn group(curve: Curve) -> &'static dyn SupportedKxGroup {
    match curve {
        Curve::X25519 => kx_group::X25519,
        Curve::P256 => kx_group::SECP256R1,
        Curve::P384 => kx_group::SECP384R1,
        Curve::X25519MlKem768 => kx_group::X25519MLKEM768,
    }
}

fn supported(suite: &Suite) -> Option<SupportedCipherSuite> {
    let mut all = ALL_CIPHER_SUITES.iter();
    all.find(|other| iana_name(other) == suite.iana).copied()
}

/// rustls calls the suites of TLS 1.3 TLS13_..., IANA TLS_...
fn iana_name(suite: &SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    name.replacen("TLS13_", "TLS_", 1)
}

/// OpenSSL's name of the suite that a connection uses.
pub(super) fn suite_name(suite: Option<SupportedCipherSuite>) -> &'static str {
    let named = suite.and_then(|suite| suite_named(&iana_name(&suite)));
    named.map_or("unknown", |suite| suite.openssl)
}
