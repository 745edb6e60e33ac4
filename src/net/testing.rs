//! Tests on a ring.

use super::{Driver, Net, NetOptions, spawn};
use crate::stats::ShardStats;
use glommio::{LocalExecutorBuilder, Placement};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Runs `test` on a ring of its own, whose thread is left behind asleep.
pub(super) fn on_ring<F: Future<Output = ()> + 'static>(
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
