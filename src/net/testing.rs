//! Tests on a ring.

use super::tls::TlsSetup;
use super::{Driver, Net, NetOptions, spawn};
use crate::config::{General, SslMode};
use crate::stats::ShardStats;
use glommio::{LocalExecutorBuilder, Placement};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Runs `test` on a ring of its own, whose thread is left behind asleep.
pub(crate) fn on_ring<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(Net) -> F + Send + 'static,
) {
    let (done, is_done) = mpsc::channel();
    let body = || async {
        let net = Net::new(&NetOptions {
            receive_buffers: 64,
            receive_buffer_bytes: 2048,
            close_timeout: Duration::from_secs(10),
            stats: Arc::<ShardStats>::default(),
        });
        let net = net.expect("a ring");
        spawn(net, async move {
            test(net).await;
            done.send(()).unwrap();
        });
        Driver::new(net).run().await;
    };
    let executor = LocalExecutorBuilder::new(Placement::Unbound).ring_depth(32);
    let _thread = executor.spawn(body).unwrap();
    is_done.recv().expect("the test comes to its end");
}

/// A certificate of our own on both sides: for clients, who need no more, and for servers, by the name of `localhost`.
pub(super) fn tls_setup() -> TlsSetup {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let general = General {
        client_tls_sslmode: SslMode::Require,
        client_tls_cert_file: file("crt", made.cert.pem()),
        client_tls_key_file: file("key", made.signing_key.serialize_pem()),
        server_tls_sslmode: SslMode::VerifyFull,
        server_tls_ca_file: file("ca", made.cert.pem()),
        ..General::default()
    };
    TlsSetup::load(&general, None).unwrap()
}
