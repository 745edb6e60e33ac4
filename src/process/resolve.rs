//! Addresses of host names: looked up by a thread of its own, so that neither shards nor signals
//! ever wait for DNS.

use crate::config::Config;
use crate::shard::Common;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// How long an address is taken to be fresh (PgBouncer's default for dns_max_ttl).
const FRESH: Duration = Duration::from_secs(15);

/// The one who looks names up: nobody else replaces the addresses.
pub(super) struct Resolver {
    pokes: Sender<()>,
}

impl Resolver {
    /// Looks every configured host name up now, and keeps the addresses fresh from then on.
    pub(super) fn start(common: &Arc<Common>) -> Resolver {
        refresh(common);
        let (pokes, poked) = channel();
        let common = common.clone();
        let run = move || keep_fresh(&poked, || refresh(&common));
        // Without the thread, addresses stay as they are: worth a word, not a failure.
        if let Err(error) = thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(run)
        {
            tracing::warn!(%error, "cannot start the resolver; host names are looked up only at start");
        }
        Resolver { pokes }
    }

    /// Has the names of a new configuration looked up; does not wait for it.
    pub(super) fn poke(&self) {
        // Without the thread there is nobody to poke.
        let _ = self.pokes.send(());
    }
}

/// Refreshes when poked, once for all pokes that came, and when the addresses are old.
fn keep_fresh(poked: &Receiver<()>, mut refresh: impl FnMut()) {
    while poked.recv_timeout(FRESH) != Err(RecvTimeoutError::Disconnected) {
        while poked.try_recv().is_ok() {}
        refresh();
    }
}

/// Looks the host names of the configuration in force up.
fn refresh(common: &Common) {
    let known = common.addresses.load();
    let config = common.snapshot.load().config.clone();
    let mut fresh = HashMap::new();
    for host in names(&config) {
        let addresses = match lookup(host) {
            Ok(addresses) if !addresses.is_empty() => addresses,
            outcome => {
                let error = outcome
                    .err()
                    .map_or_else(|| "no address".to_owned(), |error| error.to_string());
                tracing::warn!(host, error, "server DNS lookup failed");
                // An old address is better than none; an empty list says that there is none.
                known.get(host).cloned().unwrap_or_default()
            }
        };
        fresh.insert(host.to_owned(), addresses);
    }
    if **known != fresh {
        common.addresses.store(Arc::new(fresh));
    }
}

fn names(config: &Config) -> BTreeSet<&str> {
    let hosts = config
        .databases
        .values()
        .map(|database| database.host.as_str());
    hosts
        .filter(|host| !host.starts_with('/') && host.parse::<IpAddr>().is_err())
        .collect()
}

fn lookup(host: &str) -> std::io::Result<Vec<IpAddr>> {
    Ok((host, 0)
        .to_socket_addrs()?
        .map(|address| address.ip())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pokes_that_came_together_are_one_lookup_and_a_later_one_another() {
        let (pokes, poked) = channel();
        (0..3).for_each(|_| pokes.send(()).unwrap());
        let (mut lookups, mut pokes) = (0, Some(pokes));
        keep_fresh(&poked, || {
            lookups += 1;
            if let Some(pokes) = pokes.take() {
                pokes.send(()).unwrap();
            }
        });
        assert_eq!(lookups, 2);
    }
}
