//! From a configuration file to serving shards.

use super::error::StartError;
use super::resolve::Resolver;
use super::{control, log, placement, preflight, sources};
use crate::base::limit::SHARDS_MAX;
use crate::base::{Clock, ShardId};
use crate::config::Config;
use crate::net::{listen_tcp, listen_unix, probe_tcp};
use crate::shard::{Common, Listeners, Snapshot, tcp_options};
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};
use std::fs::Permissions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// glommio's own buffers: it does no I/O for us.
const EXECUTOR_MEMORY_BYTES: usize = 64 * 1024;
/// Length of glommio's own rings.
const EXECUTOR_RING: usize = 32;
/// How often glommio looks at its own rings while tasks are running.
const EXECUTOR_PREEMPT: Duration = Duration::from_millis(100);
/// How many ports the kernel may choose, until one is free on all addresses.
const FREE_PORT_TRIES: usize = 16;

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub path: PathBuf,
    /// Number of shards, over that of the file.
    pub shards: Option<usize>,
}

/// Runs the pooler until it is told to stop; gives the exit code's error, if any.
///
/// # Errors
/// Why it did not start.
pub fn run(options: &Options) -> Result<(), StartError> {
    let snapshot = sources::load(&options.path, None)?;
    log::set_level(snapshot.config.general.log_level);
    sources::warn_of_expiry(&snapshot.tls);
    let general = &snapshot.config.general;
    let wanted = options.shards.unwrap_or(general.shards).min(SHARDS_MAX);
    let cores = placement::place(wanted, &general.cpus)?;
    preflight::check(&snapshot.config, cores.len())?;
    let (sockets, addresses) = bind(&snapshot.config, cores.len())?;
    let unix_path = addresses.unix.clone();
    let (control, requests) = channel();
    let common = Arc::new(make_common(cores.len(), snapshot, control.clone())?);
    let resolver = Resolver::start(&common);
    start_shards(&common, &cores, sockets)?;
    list_ignored(&common);
    control::listen_to_signals(control).map_err(|source| StartError::System {
        what: "listen to signals",
        source,
    })?;
    announce(&addresses, cores.len());
    control::run(&common, &options.path, &requests, &resolver);
    if let Some(path) = unix_path {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Says once which options of the file have no effect.
fn list_ignored(common: &Common) {
    let snapshot = common.snapshot.load();
    let ignored = &snapshot.config.ignored;
    if !ignored.is_empty() {
        let options = ignored.join(", ");
        tracing::warn!(
            options,
            "options of the configuration file that have no effect"
        );
    }
}

fn make_common(
    shards: usize,
    snapshot: Snapshot,
    control: Sender<crate::shard::Request>,
) -> Result<Common, StartError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| StartError::System {
        what: "get random bytes",
        source: io::Error::other(error.to_string()),
    })?;
    let common = Common::new(shards, snapshot, secret, control, Clock::now());
    common.map_err(|source| StartError::System {
        what: "make the mailboxes",
        source,
    })
}

fn start_shards(
    common: &Arc<Common>,
    cores: &[Option<usize>],
    sockets: Vec<Listeners>,
) -> Result<(), StartError> {
    let (reports, outcomes) = channel();
    let mut executors = Vec::with_capacity(cores.len());
    for ((shard, core), listeners) in cores.iter().enumerate().zip(sockets) {
        let common = common.clone();
        let report = Report::of(shard, &reports);
        let id = ShardId(u16::try_from(shard).unwrap_or(u16::MAX));
        let body = move || crate::shard::run(id, common, listeners, move || report.ready());
        let executor = LocalExecutorBuilder::new(core.map_or(Placement::Unbound, Placement::Fixed))
            .name(&format!("shard-{shard}"))
            .io_memory(EXECUTOR_MEMORY_BYTES)
            .ring_depth(EXECUTOR_RING)
            .preempt_timer(EXECUTOR_PREEMPT)
            .spawn(body);
        executors.push(executor);
    }
    drop(reports);
    await_ready(&outcomes, executors)
}

type Executor = Result<ExecutorJoinHandle<io::Result<()>>, GlommioError<()>>;

/// Waits until every shard serves: each reports exactly once, and then the channel is closed.
fn await_ready(
    outcomes: &Receiver<(usize, bool)>,
    mut executors: Vec<Executor>,
) -> Result<(), StartError> {
    match outcomes.iter().find(|(_, is_ready)| !is_ready) {
        None => Ok(()),
        Some((shard, _)) => Err(StartError::Shard {
            shard,
            reason: reason(executors.swap_remove(shard)),
        }),
    }
}

/// Why an executor that ended, or never began, did so.
fn reason(executor: Executor) -> String {
    match executor.and_then(ExecutorJoinHandle::join) {
        Ok(Ok(())) => "it ended".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Says once whether a shard serves; also if its executor cannot be made, since all that a shard
/// was to run is dropped then.
struct Report {
    shard: usize,
    is_ready: bool,
    outcomes: Sender<(usize, bool)>,
}

impl Report {
    fn of(shard: usize, outcomes: &Sender<(usize, bool)>) -> Report {
        Report {
            shard,
            is_ready: false,
            outcomes: outcomes.clone(),
        }
    }

    fn ready(mut self) {
        self.is_ready = true;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Nobody listens any more if another shard has failed already.
        let _ = self.outcomes.send((self.shard, self.is_ready));
    }
}

// ---- listening ---------------------------------------------------------------------------

/// Where clients can connect.
#[derive(Default)]
struct Addresses {
    tcp: Vec<SocketAddr>,
    unix: Option<PathBuf>,
}

fn bind(config: &Config, shards: usize) -> Result<(Vec<Listeners>, Addresses), StartError> {
    let general = &config.general;
    let mut sockets: Vec<Listeners> = (0..shards).map(|_| Listeners::default()).collect();
    let options = tcp_options(general);
    let wanted = listen_addresses(&general.listen_addr, general.listen_port)?;
    let (tcp, claims) = claim(&wanted)?;
    for address in &tcp {
        for listeners in &mut sockets {
            let listening = listen_tcp(*address, general.listen_backlog, &options);
            let socket = listening.map_err(|source| cannot_listen(address, source))?;
            listeners.tcp.push(socket);
        }
    }
    drop(claims);
    let port = tcp.first().map_or(general.listen_port, SocketAddr::port);
    let mut addresses = Addresses { tcp, unix: None };
    if let Some(dir) = &general.unix_socket_dir {
        let path = dir.join(format!(".s.PGSQL.{port}"));
        let socket = bind_unix(&path, general.listen_backlog, general.unix_socket_mode)?;
        if let Some(first) = sockets.first_mut() {
            first.unix = Some(socket);
        }
        addresses.unix = Some(path);
    }
    if addresses.tcp.is_empty() && addresses.unix.is_none() {
        return Err(StartError::NowhereToListen);
    }
    Ok((sockets, addresses))
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

fn listen_addresses(configured: &[String], port: u16) -> Result<Vec<SocketAddr>, StartError> {
    let mut all = Vec::new();
    for address in configured {
        if address == "*" {
            all.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
            if Path::new("/proc/net/if_inet6").exists() {
                all.push(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
            }
            continue;
        }
        let found = (address.as_str(), port).to_socket_addrs();
        all.extend(found.map_err(|source| StartError::Address {
            address: address.clone(),
            source,
        })?);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn port_of(socket: &OwnedFd) -> Option<u16> {
    let address = socket2::SockRef::from(socket).local_addr().ok()?;
    Some(address.as_socket()?.port())
}

fn bind_unix(path: &Path, backlog: u32, mode: u32) -> Result<OwnedFd, StartError> {
    if UnixStream::connect(path).is_ok() || lock_of(path).exists() {
        return Err(StartError::SocketInUse {
            path: path.to_owned(),
        });
    }
    let failed = |source| StartError::Listen {
        address: path.display().to_string(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let socket = listen_unix(path, backlog).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    Ok(socket)
}

/// A PostgreSQL server that owns the socket keeps a lock file beside it.
fn lock_of(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// The one line on standard output: where clients can connect.
fn announce(addresses: &Addresses, shards: usize) {
    let mut line = "ready".to_owned();
    for address in &addresses.tcp {
        line.push_str(&format!(" tcp={address}"));
    }
    if let Some(path) = &addresses.unix {
        line.push_str(&format!(" unix={}", path.display()));
    }
    let mut out = io::stdout().lock();
    // Nobody listening is no reason not to serve.
    let _ = writeln!(out, "{line} shards={shards} pid={}", std::process::id());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::TcpOptions;

    fn started(bodies: Vec<(usize, LocalExecutorBuilder)>) -> Result<(), StartError> {
        let (reports, outcomes) = channel();
        let begin = |(shard, builder): (usize, LocalExecutorBuilder)| {
            let report = Report::of(shard, &reports);
            builder.spawn(move || async move {
                report.ready();
                Ok(())
            })
        };
        let executors = bodies.into_iter().map(begin).collect();
        drop(reports);
        await_ready(&outcomes, executors)
    }

    fn small() -> LocalExecutorBuilder {
        LocalExecutorBuilder::new(Placement::Unbound).ring_depth(EXECUTOR_RING)
    }

    #[test]
    fn shards_that_serve_are_all_waited_for() {
        started(vec![(0, small()), (1, small())]).unwrap();
    }

    #[test]
    fn executor_that_cannot_be_made_on_its_thread_is_named_with_the_reason() {
        // More entries than any io_uring may have.
        let impossible = small().ring_depth(1 << 20);
        let error = started(vec![(0, small()), (1, impossible)]).unwrap_err();
        let StartError::Shard { shard: 1, reason } = error else {
            panic!("{error}");
        };
        assert!(reason.contains("Invalid argument"), "{reason}");
    }

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
}
