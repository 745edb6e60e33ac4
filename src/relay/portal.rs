//! The portal that a client has bound last: a Describe of it tells what the result of its statement is like. Drivers
//! describe a portal right behind its Bind, if at all; one that is described later is not followed.

use super::upstream::Exchange;
use crate::session::{Change, Occurrence, ServerChange, Statement, StatementId, Told};
use crate::wire::frontend::Bind;

/// Of one lease.
#[derive(Default)]
pub(super) struct LastPortal {
    name: Vec<u8>,
    bound: Option<Bound>,
}

/// To which statement, and who is told of it.
struct Bound {
    id: StatementId,
    at: Occurrence,
    told: Told,
}

impl LastPortal {
    /// A Bind of a statement that is not the pooler's passes, or what may have the portal go.
    pub(super) fn is_foreign(&mut self) {
        self.bound = None;
    }

    #[inline]
    fn set(&mut self, name: &[u8], bound: Option<Bound>) {
        self.name.clear();
        if bound.is_some() {
            self.name.extend_from_slice(name);
        }
        self.bound = bound;
    }

    /// What it is bound to, if it has this name and was bound in this batch.
    #[inline]
    fn of(&self, name: &[u8], batch: u64) -> Option<&Bound> {
        let bound = self.bound.as_ref()?;
        (bound.at.batch == batch && self.name == name).then_some(bound)
    }
}

/// A portal is bound to the statement.
pub(super) fn is_bound(
    bind: &Bind<'_>,
    statement: &Statement,
    told: Option<Told>,
    exchange: &mut Exchange<'_>,
) {
    let at = exchange.dialogue.statements.occurrence(statement.id());
    let told = told.or_else(|| exchange.names.telling(bind.statement));
    let bound = at.zip(told).filter(|_| statement.is_fixed());
    let bound = bound.map(|(at, told)| Bound {
        id: statement.id(),
        at,
        told,
    });
    exchange.portal.set(bind.portal, bound);
}

/// What the Describe of a portal is going to tell its client, unless that knows it already.
pub(super) fn telling(portal: &[u8], exchange: &Exchange<'_>) -> Option<Box<Change>> {
    let on_server = &exchange.dialogue.statements;
    let Bound { id, at, told } = exchange.portal.of(portal, on_server.batch())?;
    let rows = on_server.rows_at(*id, *at);
    if told.due().is_none() && rows.is_some() && told.types() == rows {
        return None;
    }
    told.begins(*at);
    Some(Box::new(Change {
        told: Some((told.clone(), *at)),
        ..Change::from(ServerChange::Asked(*id, at.preparation))
    }))
}
