//! The certificate files: read, checked, and watched for changes.

use super::certificate::Certificate;
use super::error::SetupError;
use crate::base::Clock;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Largest file that is read, in bytes: a CA bundle has a few hundred kilobytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What tells whether a file has been written or replaced; the default stands for one that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// Of the file that is at `path` now.
    pub fn of(path: &Path) -> FileStamp {
        fs::metadata(path).map_or_else(
            |_| FileStamp::default(),
            |data| FileStamp {
                device: data.dev(),
                inode: data.ino(),
                bytes: data.size(),
                modified: (data.mtime(), data.mtime_nsec()),
                changed: (data.ctime(), data.ctime_nsec()),
            },
        )
    }
}

/// One certificate, or list of revoked ones, in force: a row of SHOW TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    /// The setting that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Whose it is; of a list, who issued it.
    pub subject: String,
    /// From when it is valid, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Until when; 0 for a list that does not say when the next one comes.
    pub not_after: i64,
}

impl CertificateFile {
    /// Seconds until it expires; negative if it has.
    pub fn seconds_left(&self) -> i64 {
        self.not_after.saturating_sub(unix_seconds())
    }
}

/// The time, in seconds since the Unix epoch.
pub(super) fn unix_seconds() -> i64 {
    i64::try_from(Clock::unix_micros() / 1_000_000).unwrap_or(i64::MAX)
}

/// Reads the files of one side, and remembers what they held.
#[derive(Default)]
pub(super) struct Reader {
    digest: Sha256,
    pub(super) rows: Vec<CertificateFile>,
}

impl Reader {
    /// Takes account of a setting that is no file.
    pub(super) fn note(&mut self, setting: &str) {
        self.digest.update((setting.len() as u64).to_be_bytes());
        self.digest.update(setting);
    }

    /// What distinguishes these files and settings from any others.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    fn read(&mut self, key: &'static str, path: &Path) -> Result<Vec<u8>, SetupError> {
        let failed = |source| SetupError::Read {
            key,
            path: path.to_owned(),
            source,
        };
        let bytes = fs::metadata(path).map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(content(key, path, "is too large"));
        }
        let text = fs::read(path).map_err(failed)?;
        self.digest.update((text.len() as u64).to_be_bytes());
        self.digest.update(&text);
        Ok(text)
    }

    /// The certificates of a file, at least one.
    pub(super) fn certificates(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, SetupError> {
        let found = self.bundle(key, path)?;
        for (at, der) in found.iter().enumerate() {
            let certificate = Certificate::parse(der).ok_or_else(|| {
                content(key, path, &format!("certificate {} cannot be read", at + 1))
            })?;
            self.rows.push(CertificateFile {
                key,
                path: path.to_owned(),
                subject: certificate.subject,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            });
        }
        Ok(found)
    }

    /// The same of a bundle that is not the operator's own: no rows are made of it.
    pub(super) fn bundle(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, SetupError> {
        let text = self.read(key, path)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let found = found.map_err(|error| content(key, path, &pem_problem(&error)))?;
        if found.is_empty() {
            return Err(content(key, path, "holds no certificate"));
        }
        Ok(found)
    }

    /// The private key of a file.
    pub(super) fn private_key(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<PrivateKeyDer<'static>, SetupError> {
        let text = zeroize::Zeroizing::new(self.read(key, path)?);
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let is_encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
            let problem = match error {
                PemError::NoItemsFound if is_encrypted => {
                    "the private key is encrypted, which cannot be used".to_owned()
                }
                PemError::NoItemsFound => "holds no private key".to_owned(),
                other => pem_problem(&other),
            };
            content(key, path, &problem)
        })
    }

    /// The lists of revoked certificates of a file, at least one.
    pub(super) fn revoked(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, SetupError> {
        let text = self.read(key, path)?;
        let found: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&text).collect();
        let found = found.map_err(|error| content(key, path, &pem_problem(&error)))?;
        if found.is_empty() {
            return Err(content(key, path, "holds no list of revoked certificates"));
        }
        for (at, der) in found.iter().enumerate() {
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
                let problem = format!("list {} cannot be read", at + 1);
                return Err(content(key, path, &problem));
            };
            self.rows.push(CertificateFile {
                key,
                path: path.to_owned(),
                subject: list.issuer().to_string(),
                not_before: list.last_update().timestamp(),
                not_after: list.next_update().map_or(0, |time| time.timestamp()),
            });
        }
        Ok(found)
    }
}

pub(super) fn content(key: &'static str, path: &Path, problem: &str) -> SetupError {
    SetupError::Content {
        key,
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

fn pem_problem(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "ends in the middle of a PEM section".to_owned(),
        PemError::IllegalSectionStart { .. } => {
            "has a PEM section without a proper start".to_owned()
        }
        PemError::Base64Decode(_) => "has a PEM section that is no base64".to_owned(),
        other => other.to_string(),
    }
}
