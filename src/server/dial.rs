//! Opens a server connection: connect, start-up packet, login, until the first ReadyForQuery.

use super::conn::{Dialogue, Server};
use super::connect::{Target, connect};
use super::entry::{Identity, ServerEntry};
use super::error::DialError;
use super::messages::Messages;
use crate::auth::{
    AuthRequest, KdfCache, NONCE_RANDOM_BYTES, STRETCH_SLICE_ITERATIONS, ServerCredentials,
    ServerLogin, ServerLoginStep,
};
use crate::base::{Clock, ServerId};
use crate::config::Database;
use crate::net::{Net, Socket};
use crate::stats::PoolStats;
use crate::wire::backend::{BackendKeyData, Fields, ParameterStatus};
use crate::wire::tag::{backend as tag, frontend};
use crate::wire::{Replication, message, startup_packet};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Largest message of a login.
const LOGIN_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// As whom to log in, and which pool the connection belongs to.
pub struct Login<'a> {
    /// The connection's id.
    pub id: ServerId,
    /// Name of the pool's database entry.
    pub database: Arc<str>,
    /// The user.
    pub user: Arc<str>,
    /// The configuration that says where the server is.
    pub dialled: Arc<Database>,
    /// What proves who we are.
    pub credentials: ServerCredentials,
    /// What a client that has the connection for replication asks for; none for all others.
    pub wishes: Option<Wishes>,
    /// Random bytes, used once.
    pub nonce: [u8; NONCE_RANDOM_BYTES],
    /// Key-stretching results of this shard.
    pub kdf: &'a RefCell<KdfCache>,
    /// Where the connection counts.
    pub stats: Arc<PoolStats>,
}

/// The start-up packet of a client that has a connection of its own, for replication.
#[derive(Clone)]
pub struct Wishes {
    /// What it is for.
    pub replication: Replication,
    /// All its parameters but user and database, as they came.
    pub params: Vec<(String, Vec<u8>)>,
}

/// Opens a connection; the caller sets the deadline. One that was made and came to nothing, be it that this fails or
/// that the caller drops it, is `left` for the caller to see off: PostgreSQL still has it.
///
/// # Errors
/// [`DialError`].
pub async fn dial(
    net: Net,
    target: &Target,
    login: Login<'_>,
    left: &Cell<Option<Socket>>,
) -> Result<Server, DialError> {
    let mut greeting = Greeting::new(net, &login);
    let mut socket = connect(net, target, target.begins_encrypted(), left).await?;
    let mut greeted = greeting.run(&socket, &login).await;
    // `allow`: the server's rules may ask for encryption, which it says before anything else.
    if let Err(error) = &greeted
        && error.is_refused_by_rules()
        && !greeting.was_challenged
        && target.may_encrypt_instead()
    {
        greeting = Greeting::new(net, &login);
        socket.hang_up(true).await;
        // Nothing of it is left to see off, unlike the next one.
        drop(socket.finished());
        socket = connect(net, target, true, left).await?;
        greeted = greeting.run(&socket, &login).await;
    }
    greeted?;
    let local = socket.local();
    let identity = Identity {
        id: login.id,
        database: login.database,
        user: login.user,
        dialled: login.dialled,
        remote: target.endpoint.clone(),
        local,
        replication: login
            .wishes
            .map_or(Replication::None, |wishes| wishes.replication),
        tls: socket.tls_peer().map(|peer| peer.label),
        connector: target.tls.connector.clone(),
        cancel_key: greeting.cancel_key,
        connected_unix_us: Clock::unix_micros(),
        opened: net.now(),
    };
    let application_name = greeting.dialogue.application_name();
    Ok(Server {
        socket: socket.finished(),
        dialogue: Box::new(greeting.dialogue),
        entry: ServerEntry::new(identity, application_name, login.stats),
    })
}

struct Greeting<'a> {
    net: Net,
    login: ServerLogin,
    kdf: &'a RefCell<KdfCache>,
    dialogue: Dialogue,
    cancel_key: Box<[u8]>,
    /// The server has asked who we are: what is used once has been used.
    was_challenged: bool,
    ready: bool,
}

impl<'a> Greeting<'a> {
    fn new(net: Net, login: &Login<'a>) -> Greeting<'a> {
        Greeting {
            net,
            login: ServerLogin::new(&login.user, login.credentials.clone(), login.nonce),
            kdf: login.kdf,
            dialogue: Dialogue::default(),
            cancel_key: Box::default(),
            was_challenged: false,
            ready: false,
        }
    }

    async fn run(&mut self, socket: &Socket, login: &Login<'_>) -> Result<(), DialError> {
        let mut packet = Vec::new();
        let dialled = &login.dialled;
        let mut params: Vec<(&str, &[u8])> = vec![
            ("user", login.user.as_bytes()),
            ("database", dialled.server_dbname().as_bytes()),
        ];
        let wishes = login.wishes.iter().flat_map(|wishes| &wishes.params);
        params.extend(wishes.map(|(name, value)| (&**name, &**value)));
        let settings = [
            ("client_encoding", &dialled.client_encoding),
            ("datestyle", &dialled.datestyle),
            ("timezone", &dialled.timezone),
            ("application_name", &dialled.application_name),
        ];
        for (name, value) in settings {
            let is_given = |(given, _): &(&str, &[u8])| given.eq_ignore_ascii_case(name);
            if !value.is_empty() && !params.iter().any(is_given) {
                params.push((name, value.as_bytes()));
            }
        }
        startup_packet(&mut packet, 0, &params);
        socket.send(packet);
        self.login
            .over(socket.tls_peer().and_then(|peer| peer.channel_binding));
        let mut messages = Messages::new(socket, LOGIN_MESSAGE_BYTES_MAX);
        while !self.ready {
            let (tag, body) = messages.next().await?;
            self.take(tag, body, socket).await?;
        }
        messages.end()
    }

    async fn take(&mut self, tag: u8, body: &[u8], socket: &Socket) -> Result<(), DialError> {
        match tag {
            tag::AUTHENTICATION => self.authenticate(body, socket).await?,
            tag::PARAMETER_STATUS => {
                let status = ParameterStatus::read(body).map_err(DialError::Protocol)?;
                self.dialogue.reported(&status, None);
            }
            tag::BACKEND_KEY_DATA => {
                let data = BackendKeyData::read(body).map_err(DialError::Protocol)?;
                self.cancel_key = data.key().into();
            }
            tag::ERROR_RESPONSE => return Err(refusal(body)),
            tag::READY_FOR_QUERY => self.ready = true,
            tag::NOTICE_RESPONSE | tag::NEGOTIATE_PROTOCOL_VERSION => {}
            other => return Err(DialError::Unexpected(other)),
        }
        Ok(())
    }

    async fn authenticate(&mut self, body: &[u8], socket: &Socket) -> Result<(), DialError> {
        self.was_challenged = true;
        let mut step = self
            .login
            .answer(AuthRequest::parse(body)?, &mut self.kdf.borrow_mut())?;
        loop {
            match step {
                ServerLoginStep::Send(answer) => {
                    let mut out = Vec::new();
                    message(&mut out, frontend::PASSWORD, |body| {
                        body.extend_from_slice(answer.expose())
                    });
                    socket.send(out);
                    return Ok(());
                }
                ServerLoginStep::Await | ServerLoginStep::Done => return Ok(()),
                ServerLoginStep::Stretch => {
                    // A slice at a time, in the time that there is for logins.
                    let (login, kdf) = (&mut self.login, self.kdf);
                    let slice =
                        async { login.stretch(&mut kdf.borrow_mut(), STRETCH_SLICE_ITERATIONS) };
                    step = self.net.paced_ahead(slice).await?;
                }
            }
        }
    }
}

fn refusal(body: &[u8]) -> DialError {
    let text =
        |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"(no text)")).into_owned();
    match Fields::read(body) {
        Err(error) => DialError::Protocol(error),
        Ok(fields) => DialError::Refused {
            severity: text(fields.severity()),
            sqlstate: fields.sqlstate(),
            message: text(fields.message()),
        },
    }
}
