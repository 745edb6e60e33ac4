//! Whether a server is the one that we meant to reach.

use super::certificate::Certificate;
use super::files::unix_seconds;
use crate::config::SslMode;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// Checks what the mode asks for: below `verify-ca` nothing but that the server has the key of the
/// certificate it shows.
///
/// In two points it is as tolerant as libpq, where certificates in the field need it: a certificate
/// that stands in the CA file itself is trusted, whatever its extensions say; and the common name
/// counts where there are no alternative names.
#[derive(Debug)]
pub(super) struct ServerCheck {
    pub(super) mode: SslMode,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Checks chain, revocation and name; none below `verify-ca`.
    pub(super) chain: Option<Arc<WebPkiServerVerifier>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCheck {
    fn is_wrong_name(error: &Error) -> bool {
        matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        )
    }

    /// Whether the name matters not, or is the certificate's common name.
    fn name_is_fine(&self, end_entity: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
        self.mode < SslMode::VerifyFull
            || Certificate::parse(end_entity)
                .is_some_and(|certificate| certificate.common_name_is(&name.to_str()))
    }

    /// The verdict on a certificate that stands in the CA file itself.
    fn judge_root(
        &self,
        end_entity: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), Error> {
        let certificate = Certificate::parse(end_entity);
        let certificate =
            certificate.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let now = unix_seconds();
        if now > certificate.not_after {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        if !certificate.is_valid_at(now) {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if self.mode < SslMode::VerifyFull
            || certificate.common_name_is(&name.to_str())
            || certificate.has_alternative_name(name)
        {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // The name is judged last, so that an error about it means that all else was well.
        let judged =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match judged {
            Err(error) if ServerCheck::is_wrong_name(&error) => self
                .name_is_fine(end_entity, server_name)
                .then(ServerCertVerified::assertion)
                .ok_or(error),
            Err(Error::InvalidCertificate(CertificateError::Revoked)) => {
                Err(Error::InvalidCertificate(CertificateError::Revoked))
            }
            Err(_) if self.roots.iter().any(|root| root == end_entity) => self
                .judge_root(end_entity, server_name)
                .map(|()| ServerCertVerified::assertion()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
