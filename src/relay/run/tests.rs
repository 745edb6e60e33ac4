//! What a client in line hears if two things reach it in one turn, which no peer can bring about.

use super::*;
use crate::base::ClientId;
use crate::net::Detached;
use crate::net::testing::on_ring;
use crate::pool::Outlook;
use crate::relay::Terms;
use crate::session::{Budget, Statements};
use crate::wire::frontend;
use futures_lite::future::poll_once;
use std::os::unix::net::UnixStream;
use std::pin::pin;

/// A pool without a server, and the place of its only client.
#[derive(Clone, Default)]
struct Line(Rc<Waiter>);

impl Servers for Line {
    fn terms(&self) -> Terms {
        Terms::new(PoolMode::Transaction, 0)
    }

    fn waiter(&self) -> Rc<Waiter> {
        self.0.clone()
    }

    fn recycle(&self, _: &Rc<Waiter>) {}

    fn request(&self, _: &Rc<Waiter>, _: &ClientEntry) {}

    fn withdraw(&self, _: &Waiter) {}

    fn outlook(&self, _: &Waiter) -> Option<Outlook> {
        None
    }

    fn release(&self, _: Server) {}

    fn release_session(&self, _: Server) {}

    fn cancel(&self, _: &Server) {}

    fn close(&self, _: Server, _: &str) {}
}

/// A client that has sent a query.
fn asking(net: Net, socket: Socket, line: &Line) -> Relay {
    let mut request = Vec::new();
    frontend::query(&mut request, "select 1");
    let (here, now) = (Rc::new(socket.local()), net.now());
    let entry = ClientEntry::new(ClientId(1), socket.local(), here, 0, now);
    let statements = Statements::new(Arc::new(Budget::new(0)));
    let options = RelaySettings {
        prepared_max: 0,
        packet_bytes_max: usize::MAX,
        is_strict: false,
        refuses_query: false,
        generation: Arc::default(),
    };
    Relay::new(
        net,
        socket,
        request,
        Rc::new(entry),
        Rc::new(line.clone()),
        Rc::new(Stores::new(statements)),
        Arc::default(),
        Settings::default(),
        options,
    )
}

#[test]
fn cancel_request_that_comes_with_the_news_of_another_pool_is_for_the_query_in_line() {
    on_ring(|net| async move {
        let (_peer, ours) = UnixStream::pair().unwrap();
        let line = Line::default();
        let mut relay = asking(net, Socket::attach(net, Detached::new(ours.into())), &line);
        let entry = relay.entry.clone();
        let mut life = pin!(relay.run());
        assert!(poll_once(&mut life).await.is_none());
        assert_eq!(entry.state(), ClientState::Waiting);
        line.0.serve(Err(Denial::Displaced));
        entry.send(Signal::Cancel);
        let ending = poll_once(&mut life).await;
        assert!(ending.is_none(), "{ending:?}");
        assert_eq!(entry.state(), ClientState::Idle);
        assert!(!entry.has_signal());
    });
}
