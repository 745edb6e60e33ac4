//! Cancel requests: the key says which shard and slot its client has; there the query is found,
//! running or in line.

use super::message::{Answer, Ask};
use super::root::Shard;
use crate::base::{Moment, ServerId, ShardId};
use crate::client::{ClientEntry, ClientState, Signal, Who};
use crate::config::SslMode;
use crate::net::{Endpoint, TcpOptions};
use crate::pool::Permit;
use crate::server::{CancelWay, DialError, ServerEntry, ServerTls, Target, send_cancel};
use crate::session::{CancelKey, PeerAddress};
use crate::stats::{Gauge, PoolStats};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// How much longer than the cancel itself its sender is kept waiting for news from another shard.
const MAIL_SPAN: Duration = Duration::from_secs(1);

/// How often a request to a busy peer looks for its turn.
const PERMIT_LOOK: Duration = Duration::from_millis(10);

/// Ends the mark on a server that a cancel is under way, whatever happens.
pub(super) struct Mark(Rc<ServerEntry>);

impl Mark {
    /// Marks a server: while the mark stands, it is given to nobody else. None if it has one, as one
    /// cancel request at a time bounds their number; and none while it makes the pooler's own settings,
    /// as those would be cancelled instead (PgBouncer ignores such a request, too).
    pub(super) fn put(server: &Rc<ServerEntry>) -> Option<Mark> {
        if server.is_being_cancelled() || server.is_settling.get() {
            return None;
        }
        server.cancel_begins();
        Some(Mark(server.clone()))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.cancel_ended();
    }
}

/// A client connection that has brought a cancel request, or the connection that carries it on: counted in one of its
/// pool's numbers as long as this lives.
struct Counted {
    stats: Arc<PoolStats>,
    within: fn(&PoolStats) -> &Gauge,
}

impl Counted {
    fn new(stats: &Arc<PoolStats>, within: fn(&PoolStats) -> &Gauge) -> Counted {
        within(stats).add(1);
        let stats = stats.clone();
        Counted { stats, within }
    }

    /// From here on in this number.
    fn moved(self, within: fn(&PoolStats) -> &Gauge) -> Counted {
        Counted::new(&self.stats, within)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.within)(&self.stats).sub(1);
    }
}

impl Shard {
    /// Cancels what the owner of `key` does, wherever it is. Returns when the request has reached
    /// the server, so that its sender may rely on that; keys of nobody are dropped silently.
    pub(super) async fn cancel_anywhere(self: &Rc<Self>, key: &[u8]) {
        let config = self.snapshot().config.clone();
        let named = PeerAddress::of(key).filter(|_| config.general.peer_id != 0);
        let located = match named {
            Some(address) if address.peer == config.general.peer_id => Some(address.shard),
            Some(PeerAddress { peer, .. }) if config.peers.contains_key(&peer) => {
                return self.pass_cancel_on(peer, key).await;
            }
            // It may be older than our own peer_id.
            _ => CancelKey::locate(key).map(|(shard, _)| shard),
        };
        let is_ours = match located {
            Some(shard) => self.cancel_on(shard, key).await,
            None => false,
        };
        if !is_ours {
            self.pass_cancel_back(key).await;
        }
    }

    /// Whether there is such a client.
    async fn cancel_on(self: &Rc<Self>, shard: ShardId, key: &[u8]) -> bool {
        if shard == self.id {
            return self.cancel_here(key).await;
        }
        if shard.index() >= self.common.mesh.shards() {
            return false;
        }
        let ask = Ask::Cancel(key.into());
        let answers = self.gather(ask, std::iter::once(shard), self.cancel_span());
        let found = |answer: &Answer| matches!(answer, Answer::Found(true));
        answers.await.iter().any(found)
    }

    /// How long another shard may take to cancel something.
    pub(super) fn cancel_span(&self) -> Duration {
        self.snapshot().config.general.cancel_wait_timeout + MAIL_SPAN
    }

    /// Cancels what a client does that logged in on this shard, wherever it is now. Whether there is such a client.
    pub(super) async fn cancel_here(self: &Rc<Self>, key: &[u8]) -> bool {
        match self.client_with(key) {
            Some(entry) => {
                self.cancel_client(&entry).await;
                true
            }
            None => self.cancel_stray(key).await,
        }
    }

    /// Cancels what a client of this shard does.
    pub(super) async fn cancel_client(&self, entry: &ClientEntry) {
        let is_console = entry.who().is_some_and(Who::is_console);
        if is_console || entry.state() == ClientState::Waiting {
            return entry.send(Signal::Cancel);
        }
        // A client without a server has nothing to cancel; one without a query neither, and the
        // request must not hit its next one.
        let link = entry
            .link
            .get()
            .filter(|_| entry.query_since.get().is_some());
        let Some(server) = link.and_then(|link| self.server_entry(link)) else {
            return;
        };
        self.cancel_at(server).await;
    }

    /// Passes a request on to the peer that its key names. Returns when the peer has dealt with it.
    async fn pass_cancel_on(&self, id: u16, key: &[u8]) {
        let config = self.snapshot().config.clone();
        let (Some(key), Some(peer)) = (PeerAddress::passed_on(key), config.peers.get(&id)) else {
            return;
        };
        let deadline = self.cancel_deadline();
        let permits = self.common.peer_permits(id);
        let passing = async {
            let in_line = Permit::take(&self.common.peer_queue(id));
            let _permit = loop {
                match Permit::take(&permits) {
                    Some(permit) => break permit,
                    None => self.net.sleep(PERMIT_LOOK).await,
                }
            };
            drop(in_line);
            let host = peer.host.as_deref().unwrap_or_default();
            let endpoint = self.endpoint_at(host, peer.port, 0);
            let Some(endpoint) = endpoint else {
                return Err(DialError::NoAddress);
            };
            let target = Target {
                endpoint,
                tcp: self.tcp_options(),
                tls: self.server_tls(host),
            };
            send_cancel(self.net, &target, false, &key).await
        };
        match self.net.until(deadline, passing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(peer = id, %error, "cannot pass a cancel request on to a peer");
            }
            Err(_) => tracing::warn!(peer = id, "cancel request to a peer timed out"),
        }
    }

    /// Passes a request on to the process whose place this one has taken, if there was one: its clients come to us with it.
    async fn pass_cancel_back(&self, key: &[u8]) {
        let Some(path) = self.common.predecessor.load_full() else {
            return;
        };
        let target = Target {
            endpoint: Endpoint::Unix(path.to_path_buf()),
            tcp: TcpOptions::default(),
            tls: ServerTls {
                mode: SslMode::Disable,
                connector: None,
                host: String::new(),
            },
        };
        let passing = send_cancel(self.net, &target, false, key);
        let Ok(Err(error)) = self.net.until(self.cancel_deadline(), passing).await else {
            return;
        };
        if error.is_nobody_there() {
            // Its last client has left.
            self.common.predecessor.store(None);
        } else {
            tracing::warn!(%error, "cannot pass a cancel request back to the process before this one");
        }
    }

    fn cancel_deadline(&self) -> Moment {
        let timeout = self.snapshot().config.general.cancel_wait_timeout;
        if timeout.is_zero() {
            return Moment::NEVER;
        }
        self.net.now().after(timeout)
    }

    fn server_entry(&self, id: ServerId) -> Option<Rc<ServerEntry>> {
        let mut found = None;
        self.each_pool(|pool| {
            let entries = pool.entries.borrow();
            let mut living = entries.iter().filter_map(Weak::upgrade);
            found = found.take().or_else(|| living.find(|entry| entry.id == id));
        });
        found
    }

    /// Cancels what a server does, as a client wishes.
    async fn cancel_at(&self, server: Rc<ServerEntry>) {
        let stats = self.stats_of(&server);
        let sender = Counted::new(&stats, |stats| &stats.cl_waiting_cancel_req);
        match Mark::put(&server) {
            None => server.uncancelled().await,
            Some(mark) => self.send_cancel(&mark.0, Some(sender)).await,
        }
    }

    /// Sends the marked server a cancel request.
    pub(super) async fn cancel_marked(&self, mark: Mark) {
        self.send_cancel(&mark.0, None).await;
    }

    async fn send_cancel(&self, server: &ServerEntry, sender: Option<Counted>) {
        let (target, is_encrypted) = self.way_to(server);
        let sending = async {
            let way = CancelWay::open(self.net, &target, is_encrypted).await?;
            let _sender = sender.map(|sender| sender.moved(|stats| &stats.cl_active_cancel_req));
            let stats = self.stats_of(server);
            let _carrier = Counted::new(&stats, |stats| &stats.sv_active_cancel);
            way.request(&server.cancel_key).await;
            Ok::<(), DialError>(())
        };
        match self.net.until(self.cancel_deadline(), sending).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::warn!(server = %server.id, %error, "cannot pass a cancel request on");
            }
            Err(_) => tracing::warn!(server = %server.id, "cancel request timed out"),
        }
        // It may yet arrive, and must not hit somebody else's query.
        server
            .close_needed
            .set(Some("outcome of a cancel request unknown"));
    }

    fn stats_of(&self, server: &ServerEntry) -> Arc<PoolStats> {
        let registry = &self.common.registry;
        registry.pool(self.id, &server.database, &server.user)
    }

    /// How a cancel request gets to a server: where, and whether it is encrypted, as its connection is.
    pub(super) fn way_to(&self, server: &ServerEntry) -> (Target, bool) {
        let target = Target {
            endpoint: server.remote.clone(),
            tcp: self.tcp_options(),
            tls: self.server_tls(self.host_at(&server.dialled, &server.remote)),
        };
        (target, server.tls.is_some())
    }

    /// Cancels what a server still does whose connection is being closed. Nobody depends on it.
    pub(super) async fn cancel_abandoned(
        &self,
        (target, is_encrypted): (Target, bool),
        key: &[u8],
    ) {
        let sending = send_cancel(self.net, &target, is_encrypted, key);
        let _ = self.net.until(self.cancel_deadline(), sending).await;
    }
}
