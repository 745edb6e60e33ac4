//! Certificates take effect when their files change, without a RELOAD: a certificate that is renewed every few
//! weeks is not worth a ticket each time.

use super::sources::load_tls;
use crate::net::FileStamp;
use crate::shard::{Common, Snapshot};
use std::sync::Arc;

/// Looks at the files; for the control thread alone.
#[derive(Default)]
pub(super) struct CertificateWatch {
    /// How the files were when they could not be used, so that it is said once.
    refused: Option<Vec<FileStamp>>,
}

impl CertificateWatch {
    /// What is to be put in force if files have changed since they were read. While key and certificate are
    /// being replaced one after the other they do not go together: the old pair stays, and the next look
    /// finds the new one.
    pub(super) fn look(&mut self, common: &Common) -> Option<Snapshot> {
        let snapshot = common.snapshot.load_full();
        let now = snapshot.tls.look();
        if now == snapshot.tls.stamps() || self.refused.as_ref() == Some(&now) {
            return None;
        }
        match load_tls(&snapshot.config, Some(&snapshot)) {
            Ok(tls) => {
                self.refused = None;
                tracing::info!("certificate files have changed, the new ones come into force");
                Some(Snapshot {
                    tls: Arc::new(tls),
                    ..Snapshot::clone(&snapshot)
                })
            }
            Err(error) => {
                tracing::warn!(%error, "certificate files have changed and cannot be used, the old ones stay in force");
                self.refused = Some(now);
                None
            }
        }
    }
}
