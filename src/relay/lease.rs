//! How a client comes by a server and gives it back: what the relay asks of its shard.

use crate::client::{ClientEntry, Farewell};
use crate::config::PoolMode;
use crate::pool::{Outlook, WaiterId};
use crate::server::Server;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What a client in line gets.
pub type Grant = Result<Server, Denial>;

/// Why a client gets no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It has to leave.
    Leave(Farewell),
    /// It may ask again later, but would wait too long now: what it is told.
    Busy(String),
    /// It belongs to another pool now, which it has to ask instead.
    Displaced,
}

impl From<Farewell> for Denial {
    fn from(farewell: Farewell) -> Denial {
        Denial::Leave(farewell)
    }
}

/// On what terms clients of a pool have its servers; a reload changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// When servers go back.
    pub mode: PoolMode,
    /// Named statements a server keeps; 0 passes names on unchanged, as sessions do.
    pub prepared_max: usize,
}

impl Terms {
    /// Those of a pool in `mode`, with `max_prepared_statements`.
    pub fn new(mode: PoolMode, max_prepared_statements: usize) -> Terms {
        // In session mode a client's names are the server's names.
        let prepared_max = match mode {
            PoolMode::Session => 0,
            _ => max_prepared_statements,
        };
        Terms { mode, prepared_max }
    }
}

/// The pool that a client gets its servers from.
pub trait Servers {
    /// On what terms.
    fn terms(&self) -> Terms;
    /// A place in line for [`Servers::request`].
    fn waiter(&self) -> Rc<Waiter>;
    /// Takes the place back, once it is not in line any more.
    fn recycle(&self, waiter: &Rc<Waiter>);
    /// Puts `client` in line; it may be served before this returns.
    fn request(&self, waiter: &Rc<Waiter>, client: &ClientEntry);
    /// Takes a client out of line. A server that it has been granted meanwhile goes back.
    fn withdraw(&self, waiter: &Waiter);
    /// Where a client in line stands; `None` if it is not in line.
    fn outlook(&self, waiter: &Waiter) -> Option<Outlook>;
    /// Takes a server back. It is given to others only if [`Server::is_reusable`].
    fn release(&self, server: Server);
    /// Takes a server back from a client that had it for a session: it is reset first.
    fn release_session(&self, server: Server);
    /// Cancels what a leased server is doing.
    fn cancel(&self, server: &Server);
    /// Closes a server.
    fn close(&self, server: Server, why: &str);
}

/// A client's place in line.
#[derive(Default)]
pub struct Waiter {
    /// Its number in the pool's line, while it is in it.
    pub number: Cell<Option<WaiterId>>,
    grant: RefCell<Option<Grant>>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    /// Serves the client.
    pub fn serve(&self, grant: Grant) {
        self.number.set(None);
        *self.grant.borrow_mut() = Some(grant);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Makes it as new.
    pub fn clear(&self) {
        self.number.set(None);
        drop((self.grant.take(), self.waker.take()));
    }

    /// What it has been served, if it has.
    pub fn take(&self) -> Option<Grant> {
        self.grant.take()
    }

    /// Whether it has been served.
    pub fn is_served(&self) -> bool {
        self.grant.borrow().is_some()
    }

    /// Whether what it has been served is a server.
    pub fn has_server(&self) -> bool {
        matches!(&*self.grant.borrow(), Some(Ok(_)))
    }

    /// As [`Waiter::take`]; wakes `cx` when there is something.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Grant> {
        match self.take() {
            Some(grant) => Poll::Ready(grant),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}
