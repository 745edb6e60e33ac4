//! Opens a server connection: connect, start-up packet, login, until the first ReadyForQuery.

use super::conn::{Dialogue, Server};
use super::entry::{Identity, ServerEntry};
use super::error::DialError;
use super::messages::Messages;
use crate::auth::{
    AuthRequest, KdfCache, NONCE_RANDOM_BYTES, STRETCH_SLICE_ITERATIONS, ServerCredentials,
    ServerLogin, ServerLoginStep,
};
use crate::base::{Clock, ServerId};
use crate::config::Database;
use crate::net::{Endpoint, Net, Socket, TcpOptions};
use crate::stats::PoolStats;
use crate::wire::backend::{BackendKeyData, Fields, ParameterStatus};
use crate::wire::tag::{backend as tag, frontend};
use crate::wire::{message, startup_packet};
use std::cell::RefCell;
use std::sync::Arc;

/// Largest message of a login.
const LOGIN_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server.
    pub endpoint: Endpoint,
    /// Options of the socket.
    pub tcp: TcpOptions,
}

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
    /// Random bytes, used once.
    pub nonce: [u8; NONCE_RANDOM_BYTES],
    /// Key-stretching results of this shard.
    pub kdf: &'a RefCell<KdfCache>,
    /// Where the connection counts.
    pub stats: Arc<PoolStats>,
}

/// Opens a connection; the caller sets the deadline.
///
/// # Errors
/// [`DialError`].
pub async fn dial(net: Net, target: &Target, login: Login<'_>) -> Result<Server, DialError> {
    let socket = Socket::connect(net, &target.endpoint, &target.tcp)
        .await
        .map_err(DialError::Connect)?;
    let mut packet = Vec::new();
    let params: [(&str, &[u8]); 2] = [
        ("user", login.user.as_bytes()),
        ("database", login.dialled.server_dbname().as_bytes()),
    ];
    startup_packet(&mut packet, 0, &params);
    socket.send(packet);
    let mut greeting = Greeting {
        login: ServerLogin::new(&login.user, login.credentials, login.nonce),
        kdf: login.kdf,
        dialogue: Dialogue::default(),
        cancel_key: Box::default(),
        ready: false,
    };
    greeting.run(&socket).await?;
    let local = socket.local();
    let identity = Identity {
        id: login.id,
        database: login.database,
        user: login.user,
        dialled: login.dialled,
        remote: target.endpoint.clone(),
        local,
        cancel_key: greeting.cancel_key,
        connected_unix_us: Clock::unix_micros(),
        opened: net.now(),
    };
    Ok(Server {
        socket,
        dialogue: Box::new(greeting.dialogue),
        entry: ServerEntry::new(identity, login.stats),
    })
}

struct Greeting<'a> {
    login: ServerLogin,
    kdf: &'a RefCell<KdfCache>,
    dialogue: Dialogue,
    cancel_key: Box<[u8]>,
    ready: bool,
}

impl Greeting<'_> {
    async fn run(&mut self, socket: &Socket) -> Result<(), DialError> {
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
                self.dialogue.params.report(status.name, status.value);
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
                    // Others get a turn between two slices.
                    futures_lite::future::yield_now().await;
                    step = self
                        .login
                        .stretch(&mut self.kdf.borrow_mut(), STRETCH_SLICE_ITERATIONS)?;
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
