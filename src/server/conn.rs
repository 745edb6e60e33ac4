//! One server connection: its socket, what it owes, what it knows.

use super::entry::{Identity, ServerEntry, ServerState};
use crate::base::Moment;
use crate::config::Database;
use crate::net::{Detached, Net, Socket};
use crate::session::{Change, Replies, ServerParams, ServerStatements, Settings};
use crate::stats::PoolStats;
use crate::wire::backend::ParameterStatus;
use crate::wire::tag::backend as tag;
use crate::wire::{Scanner, Step};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Largest notification (PostgreSQL: a channel's name and 8,000 bytes).
const NOTIFICATION_BYTES_MAX: usize = 16 * 1024;

/// Whose unnamed statement a server has.
#[derive(Clone, Copy, Debug)]
pub struct Unnamed {
    /// The client, and how many it had prepared by then.
    pub owner: (u64, u64),
    /// The server's batch in which that was.
    pub batch: u64,
    /// The server has said that it has it.
    pub is_answered: bool,
    /// It may make all statements go.
    pub forgets: bool,
}

/// The state of the conversation with a server.
#[derive(Default)]
pub struct Dialogue {
    /// What it owes.
    pub replies: Replies<Change>,
    /// What is prepared on it.
    pub statements: ServerStatements,
    /// Whose its unnamed statement is.
    pub unnamed: Option<Unnamed>,
    /// What it has reported, and what was set on it.
    pub params: ServerParams,
    /// Whether it is making the pooler's own settings.
    pub is_settling: bool,
    /// The application name that it has reported last, for whoever looks.
    application_name: ApplicationName,
    /// The scan of what it says while nobody has it.
    asides: RefCell<Scanner>,
    /// The first message among that which was no notification.
    stray: Cell<Option<u8>>,
}

/// Bodies of the CommandComplete messages after which settings may have changed.
const SETTING: [&[u8]; 2] = [b"SET\0", b"RESET\0"];
/// Bodies of the CommandComplete messages after which no prepared statement is left.
const FORGETTING: [&[u8]; 2] = [b"DISCARD ALL\0", b"DEALLOCATE ALL\0"];

impl Dialogue {
    /// The server has reported a setting, while it worked for the client with these settings if for any.
    pub fn reported(&mut self, status: &ParameterStatus<'_>, client: Option<&mut Settings>) {
        match client {
            Some(client) => self.params.report_to(status.name, status.value, client),
            None => self.params.report(status.name, status.value),
        }
        if status.name == APPLICATION_NAME {
            let name = String::from_utf8_lossy(status.value);
            self.application_name.replace(name.into());
        }
    }

    /// Whether a CommandComplete with so long a body may change what is known of the server.
    pub fn may_matter(body_bytes: usize) -> bool {
        let mut texts = FORGETTING.iter().chain(&SETTING);
        texts.any(|text| text.len() == body_bytes)
    }

    /// Takes account of the body of a CommandComplete; true if it has made every statement go.
    pub fn command_completed(&mut self, body: &[u8]) -> bool {
        if SETTING.contains(&body) {
            self.params.changed_by_sql();
        }
        let forgets = FORGETTING.contains(&body);
        if forgets {
            self.statements.clear();
            self.params.discarded();
        }
        forgets
    }

    /// What a new entry shares with it.
    pub(super) fn application_name(&self) -> ApplicationName {
        self.application_name.clone()
    }

    fn only_notifies(&self, bytes: &[u8]) -> bool {
        let (mut asides, mut at) = (self.asides.borrow_mut(), 0);
        loop {
            match asides.next(bytes, &mut at, NOTIFICATION_BYTES_MAX) {
                Ok(Step::End) => return true,
                Ok(Step::More { .. }) => {}
                Ok(Step::Begin { header, .. }) if header.tag == tag::NOTIFICATION_RESPONSE => {}
                Ok(Step::Begin { header, .. }) => {
                    self.stray.set(Some(header.tag));
                    return false;
                }
                Err(_) => return false,
            }
        }
    }
}

/// What a server calls the session, as the server itself and its entry share it.
pub(super) type ApplicationName = Rc<RefCell<Arc<str>>>;

const APPLICATION_NAME: &str = "application_name";

/// A server connection on this shard's ring.
pub struct Server {
    /// Its socket.
    pub socket: Socket,
    /// The conversation. On the heap, as a server moves from hand to hand twice in a transaction.
    pub dialogue: Box<Dialogue>,
    /// What others see of it.
    pub entry: Rc<ServerEntry>,
}

/// An idle server connection on its way to another shard: everything that belongs to it.
pub struct Parcel {
    socket: Detached,
    identity: Identity,
    statements: ServerStatements,
    params: ServerParams,
    close_needed: Option<&'static str>,
    requested_unix_us: u64,
    state: ServerState,
    /// When it was decided to send it.
    pub sent: Moment,
}

impl Server {
    /// Whether it may be given to another client: nothing owed, nothing unread.
    pub fn is_reusable(&self) -> bool {
        self.dialogue.replies.is_clean()
            && self.socket.is_quiet()
            && self.dialogue.asides.borrow().at_boundary()
            && self.entry.close_needed.get().is_none()
    }

    /// Whether a server that nobody has may go on being idle: it has said nothing but notifications, whole or in
    /// part, which are dropped, as there is nobody to hear them (as in PgBouncer).
    pub fn may_stay(&self, cx: &Context<'_>) -> bool {
        while self.dialogue.replies.is_clean() && !self.socket.is_quiet() {
            match self.socket.poll_recv(cx) {
                Poll::Ready(Ok(Some(chunk))) if self.dialogue.only_notifies(&chunk) => {}
                _ => return false,
            }
        }
        self.dialogue.replies.is_clean() && self.entry.close_needed.get().is_none()
    }

    /// The message by which a server that nobody has has shown that it may not stay, if that was it.
    pub fn stray(&self) -> Option<u8> {
        self.dialogue.stray.get()
    }

    /// Takes an idle server off this shard's ring, to be sent as was decided at `sent`.
    ///
    /// # Errors
    /// Gives it back if it said something or died meanwhile: then it is to be closed.
    pub async fn pack(self, sent: Moment) -> Result<Parcel, Server> {
        if !self.dialogue.asides.borrow().at_boundary() {
            return Err(self);
        }
        let Server {
            socket,
            dialogue,
            entry,
        } = self;
        match socket.detach().await {
            Err(socket) => Err(Server {
                socket,
                dialogue,
                entry,
            }),
            Ok(socket) => Ok(Parcel {
                socket,
                identity: Identity {
                    id: entry.id,
                    database: entry.database.clone(),
                    user: entry.user.clone(),
                    dialled: entry.dialled.clone(),
                    remote: entry.remote.clone(),
                    local: entry.local.clone(),
                    replication: entry.replication,
                    tls: entry.tls,
                    connector: entry.connector.clone(),
                    cancel_key: entry.cancel_key.clone(),
                    connected_unix_us: entry.connected_unix_us,
                    opened: entry.opened,
                },
                statements: dialogue.statements,
                params: dialogue.params,
                close_needed: entry.close_needed.get(),
                requested_unix_us: entry.requested_unix_us.get(),
                state: entry.state(),
                sent,
            }),
        }
    }
}

impl Parcel {
    /// Which pool it belongs to: database entry and user.
    pub fn pool(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.identity.database, &self.identity.user)
    }

    /// The configuration it was dialled by.
    pub fn dialled(&self) -> &Arc<Database> {
        &self.identity.dialled
    }

    /// Whether it is to be closed, as was found out while it was being packed.
    pub fn is_to_close(&self) -> bool {
        self.close_needed.is_some()
    }

    /// Puts the server on this shard's ring.
    pub fn unpack(self, net: Net, stats: Arc<PoolStats>) -> Server {
        let name = self.params.get(APPLICATION_NAME).unwrap_or_default();
        let name = Arc::<str>::from(String::from_utf8_lossy(name));
        let application_name = ApplicationName::new(name.into());
        let entry = ServerEntry::new(self.identity, application_name.clone(), stats);
        entry.close_needed.set(self.close_needed);
        entry.requested_unix_us.set(self.requested_unix_us);
        entry.set_state(self.state);
        entry.prepared.set(self.statements.len());
        Server {
            socket: Socket::attach(net, self.socket),
            dialogue: Box::new(Dialogue {
                replies: Replies::default(),
                is_settling: false,
                application_name,
                asides: RefCell::default(),
                stray: Cell::default(),
                statements: self.statements,
                unnamed: None,
                params: self.params,
            }),
            entry,
        }
    }
}
