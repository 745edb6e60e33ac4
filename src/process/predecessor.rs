//! An online restart (`-R`): the process of the same configuration that serves already, and how it is relieved.
//!
//! It is found at its Unix socket, as the console's owner. Nothing of it changes before the new process serves. Then
//! 1. the new Unix socket is put in place of the old one;
//! 2. whoever connects over TCP is steered to the new listeners;
//! 3. who came to the old one before, has time to complete the handshake and to say who he is ([`SETTLING`]);
//! 4. the old one is told `SHUTDOWN WAIT_FOR_CLIENTS`: it closes its listeners, and ends when its last client has left.

use super::error::StartError;
use super::listening::{Listening, is_abstract, socket_path};
use super::pidfile::{PidFile, PidFileDraft};
use super::socket_file::FileId;
use crate::config::{CONSOLE, General};
use crate::net::{is_deserted, steer, unsteer};
use crate::shard::Common;
use crate::wire::backend::{Authentication, DataRow, Fields};
use crate::wire::tag::backend as tag;
use crate::wire::{HEADER_BYTES, Header, frontend, startup_packet};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{Shutdown, shutdown};
use rustix::process::geteuid;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long the old process may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Longest message of it, in bytes; those of the tables that are asked for have some hundred.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How long the old listeners stay open when no new client comes to them: the kernel lets in after a second who was held back by
/// `tcp_defer_accept`.
const SETTLING: Duration = Duration::from_millis(1500);
/// How long the old process may take to close them; who connects later is no longer steered.
const CLOSING: Duration = Duration::from_millis(300);

/// The process that serves already.
pub(super) struct Predecessor {
    console: UnixStream,
    path: PathBuf,
    file: FileId,
    /// How many shards it has, each with a listener of its own for every TCP address.
    shards: u32,
}

impl Predecessor {
    /// Finds who answers at the Unix socket of this configuration; as in PgBouncer, nobody is no error.
    ///
    /// # Errors
    /// If whoever answers is no Ringbouncer of this user, or holds clients back, who could not be resumed any more.
    pub(super) fn find(general: &General) -> Result<Option<Predecessor>, StartError> {
        let path = socket_path(general, general.listen_port);
        let Some(path) = path.filter(|path| !is_abstract(path)) else {
            tracing::warn!(
                "cannot reboot without the file of a Unix socket (unix_socket_dir), try to continue normally"
            );
            return Ok(None);
        };
        let found = FileId::of(&path).and_then(|id| Ok((id, UnixStream::connect(&path)?)));
        match found {
            Ok((file, console)) => Predecessor::meet(console, path.clone(), file)
                .map(Some)
                .map_err(|reason| StartError::Reboot { path, reason }),
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "old process not found, try to continue normally");
                Ok(None)
            }
        }
    }

    fn meet(console: UnixStream, path: PathBuf, file: FileId) -> Result<Predecessor, String> {
        // Whoever else may make a file there must not be believed.
        let listener = socket_peercred(&console).map_err(|error| error.to_string())?;
        if listener.uid != geteuid() {
            return Err("it belongs to another user".to_owned());
        }
        let mut old = Predecessor {
            console,
            path,
            file,
            shards: 0,
        };
        old.log_in()?;
        let version = old.ask("SHOW VERSION")?;
        if !version.iter().any(|row| row.starts_with("Ringbouncer ")) {
            return Err(format!("it is no Ringbouncer: {}", version.join(", ")));
        }
        let is_held = |row: &String| row == "active no";
        if old.ask("SHOW STATE")?.iter().any(is_held)
            || !old.ask("SHOW DATABASES WHERE paused = 1")?.is_empty()
        {
            return Err("it is paused or suspended, RESUME it first".to_owned());
        }
        let shards = old.ask("SHOW SHARDS")?.len();
        old.shards = u32::try_from(shards).unwrap_or(u32::MAX);
        Ok(old)
    }

    /// Leaves to the old process who connects to the address of `listener`, which must be the first of ours there.
    ///
    /// # Errors
    /// If there is no second descriptor to be had.
    pub(super) fn keep_callers(&self, listener: &OwnedFd) -> io::Result<Beside> {
        let beside = Beside(vec![listener.try_clone()?]);
        beside.turn(&(0..self.shards));
        Ok(beside)
    }

    /// Takes its place when we serve, and that of its file at `pid_path`. This takes about 2 s.
    ///
    /// # Errors
    /// If the Unix socket is not its own any more or cannot be replaced, or there is no writing beside its pid file; it serves on then.
    pub(super) fn relieve(
        mut self,
        listening: &mut Listening,
        common: &Common,
        pid_path: Option<&Path>,
    ) -> Result<Option<PidFile>, StartError> {
        let failed = |reason| StartError::Reboot {
            path: self.path.clone(),
            reason,
        };
        // There are not two here at once, as there is one name for a socket that is to be put in place.
        if FileId::of(&self.path).is_ok_and(|file| file != self.file) {
            return Err(failed("another process has taken its place".to_owned()));
        }
        let draft = pid_path.map(PidFile::draft).transpose()?;
        let second = self.file.second_name(&self.path);
        self.replace_socket(&second, listening, common)
            .map_err(|error| failed(format!("the socket cannot be replaced: {error}")))?;
        // From here on there is no way back.
        let pid_file = draft.map(PidFileDraft::put_in_place).transpose();
        let pid_file = pid_file.unwrap_or_else(|error| {
            tracing::error!(%error, "the pid file is not ours");
            None
        });
        // Behind those of the old process come ours, in the order in which they began to listen.
        let shards = u32::try_from(common.mesh.shards()).unwrap_or(u32::MAX);
        let ours = self.shards..self.shards.saturating_add(shards);
        let beside = listening.beside();
        beside.iter().for_each(|address| address.turn(&ours));
        thread::sleep(SETTLING);
        match self.dismiss(&second) {
            Ok(()) => tracing::info!("old process relieved, it goes with its last client"),
            Err(error) => tracing::error!(
                %error,
                "cannot tell the old process to shut down, it has the addresses as well: send it SIGTERM"
            ),
        }
        thread::sleep(CLOSING);
        beside.into_iter().for_each(Beside::open_to_all);
        Ok(pid_file)
    }

    fn replace_socket(
        &self,
        second: &Path,
        listening: &mut Listening,
        common: &Common,
    ) -> io::Result<()> {
        // Under its second name it still hears of cancel requests.
        let linked = match SocketAddr::from_pathname(second) {
            Ok(_) => std::fs::hard_link(&self.path, second),
            Err(too_long) => Err(too_long),
        };
        let placed = listening.place_file(&self.path);
        match (linked, &placed) {
            (Ok(()), Ok(())) => common.predecessor.store(Some(Arc::new(second.to_owned()))),
            // It serves on, under its own name.
            (Ok(()), Err(_)) => drop(std::fs::remove_file(second)),
            // It has gone by itself.
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) => {
                tracing::warn!(%error, "cancel requests for clients of the old process will be lost");
            }
        }
        placed
    }

    /// Tells it to go; over a new connection if the one that there is has been lost meanwhile.
    fn dismiss(&mut self, second: &Path) -> Result<(), String> {
        const ORDER: &str = "SHUTDOWN WAIT_FOR_CLIENTS";
        let Err(error) = self.ask(ORDER) else {
            return Ok(());
        };
        match UnixStream::connect(second) {
            Ok(console) => self.console = console,
            // It has gone by itself.
            Err(error) if is_deserted(&error) => return Ok(()),
            Err(_) => return Err(error),
        }
        self.log_in()?;
        self.ask(ORDER).map(drop)
    }

    // ---- its console -----------------------------------------------------------------------

    fn log_in(&mut self) -> Result<(), String> {
        let console = &self.console;
        let timeouts = console
            .set_read_timeout(Some(ANSWER_MAX))
            .and_then(|()| console.set_write_timeout(Some(ANSWER_MAX)));
        timeouts.map_err(|error| error.to_string())?;
        let mut packet = Vec::new();
        let params = [("user", CONSOLE), ("database", CONSOLE)];
        startup_packet(
            &mut packet,
            0,
            &params.map(|(name, value)| (name, value.as_bytes())),
        );
        self.exchange(&packet).map(drop)
    }

    /// The rows of the answer, each as its values with spaces between.
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        let mut message = Vec::new();
        frontend::query(&mut message, command);
        self.exchange(&message)
    }

    fn exchange(&mut self, message: &[u8]) -> Result<Vec<String>, String> {
        self.console.write_all(message).map_err(silence)?;
        let mut rows = Vec::new();
        loop {
            let (tag, body) = self.receive().map_err(silence)?;
            match tag {
                tag::READY_FOR_QUERY => return Ok(rows),
                tag::DATA_ROW => {
                    let row = DataRow::read(&body).map_err(|error| error.to_string())?;
                    let values = row.iter().map(Option::unwrap_or_default);
                    let values: Vec<_> = values.map(String::from_utf8_lossy).collect();
                    rows.push(values.join(" "));
                }
                tag::ERROR_RESPONSE => {
                    let fields = Fields::read(&body).map_err(|error| error.to_string())?;
                    let text = fields.message().unwrap_or_default();
                    return Err(String::from_utf8_lossy(text).into_owned());
                }
                tag::AUTHENTICATION if Authentication::read(&body) != Ok(Authentication::Ok) => {
                    return Err("it belongs to another user: it asks for a password".to_owned());
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.console.read_exact(&mut header)?;
        let header = Header::parse(header, MESSAGE_BYTES_MAX).map_err(io::Error::other)?;
        let mut body = vec![0; header.body_bytes];
        self.console.read_exact(&mut body)?;
        Ok((header.tag, body))
    }
}

/// What a console that fails to answer is said to do.
fn silence(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            format!("it does not answer within {} s", ANSWER_MAX.as_secs())
        }
        io::ErrorKind::UnexpectedEof => "it hung up".to_owned(),
        _ => error.to_string(),
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        let mut farewell = Vec::new();
        frontend::terminate(&mut farewell);
        // It may have gone itself.
        let _ = self.console.write_all(&farewell);
    }
}

/// A TCP address at which the old process listens, too: our listeners there, once more. When this is dropped before we serve, they
/// listen no longer.
pub(super) struct Beside(Vec<OwnedFd>);

impl Beside {
    /// Adds one.
    ///
    /// # Errors
    /// If there is no second descriptor to be had.
    pub(super) fn add(&mut self, listener: &OwnedFd) -> io::Result<()> {
        self.0.push(listener.try_clone()?);
        Ok(())
    }

    /// Where it fails, clients come to both processes; who connects when the old one closes its listeners may wait for a second.
    fn turn(&self, favoured: &Range<u32>) {
        let steered = self.0.first().map(|listener| steer(listener, favoured));
        if let Some(Err(error)) = steered {
            tracing::warn!(%error, "cannot steer clients to one of two processes");
        }
    }

    /// Lets all who listen there have those who connect.
    fn open_to_all(mut self) {
        for listener in self.0.drain(..).take(1) {
            // Fails only if the steering did, which has been told.
            let _ = unsteer(&listener);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The kernel takes its time to close what a ring of a process has had. The last one is needed to end the steering.
        for (nth, listener) in self.0.iter().enumerate().rev() {
            if nth == 0 {
                let _ = unsteer(listener);
            }
            let _ = shutdown(listener, Shutdown::Both);
        }
    }
}
