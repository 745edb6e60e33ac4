//! Channel binding of type `tls-server-end-point` (RFC 5929, section 4.1).

use sha2::{Digest, Sha256, Sha384, Sha512};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The hash of a certificate by the hash function of its signature; MD5 and SHA-1 give way to SHA-256.
/// None if the signature has no single hash function (Ed25519, or one that we do not know).
pub fn end_point_binding(der: &[u8]) -> Option<Arc<[u8]>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    match certificate
        .signature_algorithm
        .algorithm
        .to_id_string()
        .as_str()
    {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(der).as_slice().into()),
        // RSA and ECDSA with SHA-384.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => {
            Some(Sha384::digest(der).as_slice().into())
        }
        // RSA and ECDSA with SHA-512.
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => {
            Some(Sha512::digest(der).as_slice().into())
        }
        _ => None,
    }
}
