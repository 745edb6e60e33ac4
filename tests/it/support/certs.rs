//! Certificates made for one test: authorities, and what they have signed or revoked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RevokedCertParams, RsaKeySize, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;

/// A certificate, its key, and the files that hold them.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub serial: u64,
    _directory: TempDir,
}

impl Signed {
    fn write(certificate: &str, key: &KeyPair, serial: u64) -> Signed {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            private(&path);
            path
        };
        Signed {
            certificate: file("tls.crt", certificate),
            key: file("tls.key", &key.serialize_pem()),
            serial,
            _directory: directory,
        }
    }

    pub fn certificate_path(&self) -> &str {
        self.certificate.to_str().unwrap()
    }

    pub fn key_path(&self) -> &str {
        self.key.to_str().unwrap()
    }

    /// Copies of the certificate and its key, `NAME.crt` and `NAME.key` in `directory`, that every user may read.
    pub fn publish(&self, directory: &Path, name: &str) -> [PathBuf; 2] {
        [(&self.certificate, "crt"), (&self.key, "key")].map(|(from, kind)| {
            let to = directory.join(format!("{name}.{kind}"));
            fs::write(&to, fs::read(from).unwrap()).unwrap();
            to
        })
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        let found = CertificateDer::pem_file_iter(&self.certificate).unwrap();
        found.map(Result::unwrap).collect()
    }

    /// The certificate as the other side gets to see it.
    pub fn der(&self) -> Vec<u8> {
        self.chain()[0].to_vec()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }

    /// As a server that shows this certificate.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder().with_no_client_auth();
        Arc::new(
            builder
                .with_single_cert(self.chain(), self.private_key())
                .unwrap(),
        )
    }
}

/// libpq and PostgreSQL refuse a key that others can read.
pub fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// What a certificate is to be like; the default is valid and stands for this machine.
pub struct Wish<'a> {
    pub common_name: &'a str,
    pub names: &'a [&'a str],
    pub is_expired: bool,
    pub is_rsa: bool,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Wish {
            common_name: "ringbouncer test",
            names: &["localhost", "127.0.0.1"],
            is_expired: false,
            is_rsa: false,
        }
    }
}

/// Somebody who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root: Signed,
    count: std::sync::atomic::AtomicU64,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1));
        let root = Signed::write(&params.self_signed(&key).unwrap().pem(), &key, 0);
        Authority {
            issuer: Issuer::new(params, key),
            root,
            count: 1.into(),
        }
    }

    /// A certificate for this machine.
    pub fn sign(&self) -> Signed {
        self.sign_as(&Wish::default())
    }

    pub fn sign_as(&self, wish: &Wish<'_>) -> Signed {
        let key = if wish.is_rsa {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
        } else {
            KeyPair::generate().unwrap()
        };
        let names: Vec<_> = wish.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = named(wish.common_name);
        let serial = self
            .count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        let until = if wish.is_expired { 2021 } else { 2098 };
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed::write(&certificate.pem(), &key, serial)
    }

    /// The list of these revoked certificates, as the text of a file.
    pub fn revoke(&self, revoked: &[&Signed]) -> String {
        let revoked = revoked.iter().map(|signed| RevokedCertParams {
            serial_number: SerialNumber::from(signed.serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2098, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        self.root
            .chain()
            .into_iter()
            .for_each(|root| roots.add(root).unwrap());
        roots
    }

    /// As a client that speaks these versions and trusts this authority alone.
    pub fn client_config_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    /// As a client that trusts this authority alone, with a certificate of its own or without.
    pub fn client_config(&self, own: Option<&Signed>) -> ClientConfig {
        let builder = ClientConfig::builder().with_root_certificates(self.roots());
        match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(own.chain(), own.private_key())
                .unwrap(),
        }
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
