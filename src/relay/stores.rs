//! What the relays of a shard share.

use super::downstream::Downstream;
use super::kept::Kept;
use super::portal::LastPortal;
use super::spoken::Spoken;
use crate::session::Statements;
use std::cell::RefCell;

/// State of one lease of a server.
#[derive(Default)]
pub(super) struct Lease {
    pub(super) downstream: Downstream,
    pub(super) spoken: Spoken,
    pub(super) portal: LastPortal,
    /// The client's batch under way, as long as it may have to be sent again.
    pub(super) kept: Kept,
}

impl Lease {
    /// Makes it as new: the next one is another client's.
    pub(super) fn end(&mut self) {
        self.downstream = Downstream::default();
        self.spoken = Spoken::default();
        self.portal = LastPortal::default();
        self.kept.end();
    }
}

/// Texts of prepared statements, and memory of leases: an idle client has none, and a lease takes what an earlier one left.
pub struct Stores {
    /// Texts of the clients' prepared statements.
    pub statements: RefCell<Statements>,
    /// In their boxes, which is how they are handed out.
    #[allow(clippy::vec_box)]
    leases: RefCell<Vec<Box<Lease>>>,
}

impl Stores {
    /// With these texts.
    pub fn new(statements: Statements) -> Stores {
        Stores {
            statements: RefCell::new(statements),
            leases: RefCell::default(),
        }
    }

    /// A new lease.
    pub(super) fn lease(&self) -> Box<Lease> {
        self.leases.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the memory of a lease that is over; there are never more than servers were leased at once.
    pub(super) fn take_back(&self, mut lease: Box<Lease>) {
        lease.end();
        self.leases.borrow_mut().push(lease);
    }
}
