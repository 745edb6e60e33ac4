//! The listening sockets: our own, or those that systemd passes on.

use super::error::StartError;
use super::metrics::MetricsListener;
use super::predecessor::{Beside, Predecessor};
use super::socket_file::{SocketFile, file_beside};
use crate::config::{Config, Dialect, General};
use crate::net::{adopt_listener, listen_tcp, listen_unix, probe_tcp};
use crate::shard::{Listeners, tcp_options};
use rustix::fs::{Gid, chown};
use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How many ports the kernel may choose, until one is free on all addresses.
const FREE_PORT_TRIES: usize = 16;

/// Where clients can connect, and the sockets of each shard.
#[derive(Default)]
pub(super) struct Listening {
    pub(super) tcp: Vec<SocketAddr>,
    pub(super) unix: Option<PathBuf>,
    pub(super) sockets: Vec<Listeners>,
    /// The thread that answers scrapes.
    pub(super) metrics: Option<MetricsListener>,
    /// The file of our Unix socket, if it has one.
    file: Option<SocketFile>,
    /// In an online restart: the TCP addresses that we share.
    beside: Vec<Beside>,
}

impl Listening {
    /// Listens as `config` says, with a TCP socket of its own for each shard; or on `passed`, if there are any. Beside
    /// an `old` process nobody comes to it yet: it goes on to have them all.
    ///
    /// # Errors
    /// Where it cannot.
    pub(super) fn open(
        config: &Config,
        shards: usize,
        passed: Vec<OwnedFd>,
        old: Option<&Predecessor>,
    ) -> Result<Listening, StartError> {
        let mut listening = Listening {
            sockets: (0..shards).map(|_| Listeners::default()).collect(),
            metrics: MetricsListener::open(config, old.is_some())?,
            ..Listening::default()
        };
        if passed.is_empty() {
            // Before any TCP socket: only one process at a time may be about to relieve another.
            if old.is_some() {
                listening.open_unix(&config.general, true)?;
            }
            listening.open_tcp(config, old)?;
            if old.is_none() {
                listening.open_unix(&config.general, false)?;
            }
        } else {
            listening.adopt(&config.general, passed)?;
        }
        if listening.tcp.is_empty() && listening.unix.is_none() {
            return Err(StartError::NowhereToListen);
        }
        listening.log();
        Ok(listening)
    }

    /// Puts the file of our Unix socket at `path`, where another process had its own until now.
    ///
    /// # Errors
    /// Those of rename(2).
    pub(super) fn place_file(&mut self, path: &Path) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.move_to(path))
    }

    /// Takes the TCP addresses that the old process listens at, too.
    pub(super) fn beside(&mut self) -> Vec<Beside> {
        std::mem::take(&mut self.beside)
    }

    /// Whether another process has taken our place, as far as the Unix socket says: it tells us to go then.
    pub(super) fn is_relieved(&self) -> bool {
        self.file.as_ref().is_some_and(SocketFile::is_replaced)
    }

    fn open_tcp(&mut self, config: &Config, old: Option<&Predecessor>) -> Result<(), StartError> {
        let general = &config.general;
        let mut refused = None;
        for address in &general.listen_addr {
            let opened = listen_addresses(address, self.port(general))
                .and_then(|wanted| self.open_addresses(&wanted, general, old));
            match opened {
                // PgBouncer makes do with the rest. The old process may have what is in use: it would be lost with it.
                Err(error)
                    if config.dialect == Dialect::Ini && !(old.is_some() && is_in_use(&error)) =>
                {
                    tracing::warn!(%error, "an address of listen_addr is left out");
                    refused.get_or_insert(error);
                }
                opened => opened?,
            }
        }
        match refused {
            Some(error) if self.tcp.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// The configured port, or the one that the kernel chose for the first address.
    fn port(&self, general: &General) -> u16 {
        self.tcp
            .first()
            .map_or(general.listen_port, SocketAddr::port)
    }

    fn open_addresses(
        &mut self,
        wanted: &[SocketAddr],
        general: &General,
        old: Option<&Predecessor>,
    ) -> Result<(), StartError> {
        let new = |address: &&SocketAddr| !self.tcp.contains(address);
        let wanted: Vec<_> = wanted.iter().filter(new).copied().collect();
        let shares = general.so_reuseport && general.listen_port != 0;
        let (addresses, claims) = if shares || old.is_some() {
            (wanted, Vec::new())
        } else {
            claim(&wanted)?
        };
        let options = tcp_options(general);
        for address in &addresses {
            let failed = |source| cannot_listen(address, source);
            for (shard, listeners) in self.sockets.iter_mut().enumerate() {
                let socket =
                    listen_tcp(*address, general.listen_backlog, &options).map_err(failed)?;
                match (old, self.beside.last_mut()) {
                    (Some(old), _) if shard == 0 => {
                        self.beside.push(old.keep_callers(&socket).map_err(failed)?);
                    }
                    (Some(_), Some(beside)) => beside.add(&socket).map_err(failed)?,
                    _ => {}
                }
                listeners.tcp.push(socket);
            }
        }
        drop(claims);
        self.tcp.extend(addresses);
        Ok(())
    }

    /// Opens the Unix socket; as a draft it has another name until [`Listening::place_file`].
    fn open_unix(&mut self, general: &General, is_draft: bool) -> Result<(), StartError> {
        let Some(path) = socket_path(general, self.port(general)) else {
            return Ok(());
        };
        let own = if is_draft {
            file_beside(&path, "new")
        } else {
            path.clone()
        };
        let (socket, file) = bind_unix(&own, general)?;
        if let Some(first) = self.sockets.first_mut() {
            first.unix.push(socket);
        }
        self.file = file;
        self.unix = Some(path);
        Ok(())
    }

    /// Takes sockets that listen already; all shards accept from each TCP socket.
    fn adopt(&mut self, general: &General, passed: Vec<OwnedFd>) -> Result<(), StartError> {
        if !general.listen_addr.is_empty() || general.unix_socket_dir.is_some() {
            tracing::warn!("sockets were passed on; listen_addr and unix_socket_dir are ignored");
        }
        let failed = |source| StartError::System {
            what: "use a socket that was passed on",
            source,
        };
        let options = tcp_options(general);
        for socket in passed {
            match adopt_listener(&socket, &options).map_err(failed)? {
                crate::net::Endpoint::Tcp(address) => {
                    for listeners in &mut self.sockets {
                        listeners.passed.push(socket.try_clone().map_err(failed)?);
                    }
                    self.tcp.push(address);
                }
                crate::net::Endpoint::Unix(path) => {
                    if let Some(first) = self.sockets.first_mut() {
                        first.unix.push(socket);
                    }
                    self.unix = Some(path);
                }
                crate::net::Endpoint::Process { .. } => unreachable!("a listener without a peer"),
            }
        }
        Ok(())
    }

    fn log(&self) {
        for address in &self.tcp {
            tracing::info!("listening on {address}");
        }
        if let Some(path) = &self.unix {
            tracing::info!("listening on unix:{}", path.display());
        }
    }
}

/// The addresses with their port, and sockets that hold them until ours listen: with SO_REUSEPORT
/// a second process of the same user would silently share the port, so nobody may have it yet.
type Claimed = (Vec<SocketAddr>, Vec<OwnedFd>);

fn claim(wanted: &[SocketAddr]) -> Result<Claimed, StartError> {
    let takes_any_port = wanted.first().is_some_and(|address| address.port() == 0);
    let mut claimed = claim_all(wanted);
    // A port that is free on one address may be taken on the next.
    for _ in 1..FREE_PORT_TRIES {
        if claimed.is_ok() || !takes_any_port {
            break;
        }
        claimed = claim_all(wanted);
    }
    claimed
}

/// Claims every address, all with the port of the first.
fn claim_all(wanted: &[SocketAddr]) -> Result<Claimed, StartError> {
    let (mut addresses, mut claims) = (Vec::new(), Vec::new());
    let mut port = wanted.first().map_or(0, SocketAddr::port);
    for mut address in wanted.iter().copied() {
        address.set_port(port);
        let claim = probe_tcp(address).map_err(|source| cannot_listen(&address, source))?;
        port = port_of(&claim).unwrap_or(port);
        address.set_port(port);
        addresses.push(address);
        claims.push(claim);
    }
    Ok((addresses, claims))
}

fn cannot_listen(address: &SocketAddr, source: io::Error) -> StartError {
    StartError::Listen {
        address: address.to_string(),
        source,
    }
}

/// The addresses that an entry of `listen_addr` stands for.
fn listen_addresses(configured: &str, port: u16) -> Result<Vec<SocketAddr>, StartError> {
    if configured == "*" {
        let mut all = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
        if Path::new("/proc/net/if_inet6").exists() {
            all.push(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
        }
        return Ok(all);
    }
    let found = (configured, port).to_socket_addrs();
    let found = found.map_err(|source| StartError::Address {
        address: configured.to_owned(),
        source,
    })?;
    let mut all: Vec<_> = found.collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn is_in_use(error: &StartError) -> bool {
    matches!(error, StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
}

fn port_of(socket: &OwnedFd) -> Option<u16> {
    let address = socket2::SockRef::from(socket).local_addr().ok()?;
    Some(address.as_socket()?.port())
}

/// Where the Unix socket for `port` is, if there is to be one.
pub(super) fn socket_path(general: &General, port: u16) -> Option<PathBuf> {
    let dir = general.unix_socket_dir.as_ref()?;
    Some(dir.join(format!(".s.PGSQL.{port}")))
}

/// Whether the name of a Unix socket stands for no file (unix(7)); `@` is written for its zero byte.
pub(super) fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(b"@")
}

fn bind_unix(path: &Path, general: &General) -> Result<(OwnedFd, Option<SocketFile>), StartError> {
    let in_use = || StartError::SocketInUse {
        path: path.to_owned(),
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => in_use(),
        _ => StartError::Listen {
            address: path.display().to_string(),
            source,
        },
    };
    if is_abstract(path) {
        let socket = listen_unix(path, general.listen_backlog).map_err(failed)?;
        return Ok((socket, None));
    }
    if UnixStream::connect(path).is_ok() || lock_of(path).exists() {
        return Err(in_use());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let socket = listen_unix(path, general.listen_backlog).map_err(failed)?;
    let file = SocketFile::new(path).map_err(failed)?;
    if !general.unix_socket_group.is_empty() {
        let group = group(&general.unix_socket_group).map_err(failed)?;
        chown(path, None, Some(group)).map_err(|error| failed(error.into()))?;
    }
    let mode = Permissions::from_mode(general.unix_socket_mode);
    std::fs::set_permissions(path, mode).map_err(failed)?;
    Ok((socket, Some(file)))
}

/// The group of this name or number.
fn group(written: &str) -> io::Result<Gid> {
    if let Ok(number) = written.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = nix::unistd::Group::from_name(written)?;
    let found = found.ok_or_else(|| io::Error::other(format!("there is no group {written}")))?;
    Ok(Gid::from_raw(found.gid.as_raw()))
}

/// A PostgreSQL server that owns the socket keeps a lock file beside it.
fn lock_of(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::TcpOptions;

    #[test]
    fn any_port_is_the_same_port_on_every_address() {
        let wanted = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST].map(|ip| (ip, 0).into());
        let (addresses, _claims) = claim(&wanted).unwrap();
        let port = addresses[0].port();
        assert!(port > 0 && addresses.iter().all(|address| address.port() == port));
        for address in addresses {
            listen_tcp(address, 1, &TcpOptions::default()).unwrap();
        }
    }

    #[test]
    fn ports_of_our_own_kind_of_listener_are_not_shared() {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let socket = listen_tcp(any, 1, &TcpOptions::default()).unwrap();
        let port = port_of(&socket).unwrap();
        for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
            let error = claim(&[(ip, port).into()]).unwrap_err();
            assert!(matches!(error, StartError::Listen { .. }), "{error}");
        }
    }

    #[test]
    fn groups_go_by_name_and_number() {
        assert_eq!(group("0").unwrap(), Gid::ROOT);
        assert_eq!(group("root").unwrap(), Gid::ROOT);
        assert!(group("no such group").is_err());
    }
}
