//! From a configuration file to serving shards.

use super::error::StartError;
use super::identity::{become_user, go_to_background, is_root};
use super::listening::Listening;
use super::log::Wishes;
use super::pidfile::PidFile;
use super::predecessor::Predecessor;
use super::resolve::Resolver;
use super::{control, log, placement, preflight, sources, systemd};
use crate::base::limit::SHARDS_MAX;
use crate::base::{Clock, ShardId};
use crate::config::{Config, Dialect};
use crate::shard::{Common, Listeners, Request, Snapshot};
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// glommio's own buffers: it does no I/O for us.
const EXECUTOR_MEMORY_BYTES: usize = 64 * 1024;
/// Length of glommio's own rings.
const EXECUTOR_RING: usize = 32;
/// How often glommio looks at its own rings while tasks are running.
const EXECUTOR_PREEMPT: Duration = Duration::from_millis(100);

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub path: PathBuf,
    /// Number of shards, over that of the file.
    pub shards: Option<usize>,
    /// Go to the background.
    pub daemon: bool,
    /// Log nothing to standard error.
    pub quiet: bool,
    /// How much more to log than the file says.
    pub verbose: u8,
    /// The user to become, over that of the file.
    pub user: Option<String>,
    /// Take the place of the process of this configuration that serves already, if there is one.
    pub reboot: bool,
}

impl Options {
    /// What they say about logs.
    pub(super) fn wishes(&self) -> Wishes {
        Wishes {
            quiet: self.quiet,
            verbose: self.verbose.into(),
        }
    }
}

/// Runs the pooler until it is told to stop; gives the exit code's error, if any.
///
/// # Errors
/// Why it did not start.
pub fn run(options: &Options) -> Result<(), StartError> {
    let outcome = serve(options);
    if let Err(error) = &outcome {
        log::fatal(&error.to_string());
    }
    outcome
}

fn serve(options: &Options) -> Result<(), StartError> {
    let passed = systemd::passed_sockets();
    let snapshot = sources::load(&options.path, None)?;
    let config = snapshot.config.clone();
    let general = &config.general;
    let wanted = options.shards.unwrap_or(general.shards).min(SHARDS_MAX);
    let cores = placement::place(wanted, &general.cpus)?;
    // Root may raise limits; whom we become may not.
    let descriptors = preflight::check(&config, cores.len())?;
    settle_user(options, &config)?;
    log::apply(&config, options.wishes()).map_err(|source| StartError::LogFile { source })?;
    warn_of_root(&config);
    descriptors.log(&config);
    sources::log_remarks(&snapshot.remarks);
    sources::warn_of_expiry(&snapshot.tls);
    let old = match options.reboot && passed.is_empty() {
        true => Predecessor::find(general)?,
        false => None,
    };
    let pid_path = general.pidfile.as_deref();
    if let (Some(path), None) = (pid_path, &old) {
        PidFile::check(path)?;
    }
    let mut listening = Listening::open(&config, cores.len(), passed, old.as_ref())?;
    let starting = in_background(options, &config)?;
    let mut pid_file = match old {
        Some(_) => None,
        None => pid_path.map(PidFile::create).transpose()?,
    };
    let (control, requests) = channel();
    let common = Arc::new(make_common(cores.len(), snapshot, control.clone())?);
    let resolver = Resolver::start(&common);
    let sockets = std::mem::take(&mut listening.sockets);
    without_huge_pages(|| start_shards(&common, &cores, sockets))?;
    if let Some(metrics) = &listening.metrics {
        metrics.serve(&common)?;
    }
    list_ignored(&common);
    control::listen_to_signals(control).map_err(|source| StartError::System {
        what: "listen to signals",
        source,
    })?;
    if let Some(old) = old {
        pid_file = old.relieve(&mut listening, &common, pid_path)?;
    }
    announce(&listening, cores.len());
    if let Some(starting) = starting {
        log::leave_stderr();
        starting.done();
    }
    control::run(&common, options, &requests, &resolver, &listening);
    drop((listening, pid_file));
    tracing::info!("process down");
    Ok(())
}

/// Becomes the configured user; PgBouncer does not run as root.
fn settle_user(options: &Options, config: &Config) -> Result<(), StartError> {
    let name = options.user.as_ref().unwrap_or(&config.general.user);
    if !name.is_empty() {
        become_user(name)?;
    }
    if is_root() && config.dialect == Dialect::Ini {
        return Err(StartError::Root);
    }
    Ok(())
}

fn warn_of_root(config: &Config) {
    if is_root() && config.general.user.is_empty() {
        tracing::warn!("running as root; user = \"...\" names the user to become");
    }
}

/// Goes to the background if that is wanted.
fn in_background(
    options: &Options,
    config: &Config,
) -> Result<Option<super::identity::Starting>, StartError> {
    let general = &config.general;
    if !options.daemon {
        return Ok(None);
    }
    if general.pidfile.is_none() {
        return Err(StartError::Daemon("pidfile"));
    }
    if general.logfile.is_none() && !general.syslog {
        return Err(StartError::Daemon("logfile or syslog"));
    }
    go_to_background().map(Some)
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
    control: Sender<Request>,
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

/// Runs `start` with memory in pages of the ordinary size: of what a ring registers, the kernel counts whole pages against
/// the limit of locked memory, and three rings of a shard with a few KiB each in huge pages are 6 MiB.
fn without_huge_pages<T>(start: impl FnOnce() -> T) -> T {
    let switches = transparent_huge_pages_are_disabled().is_ok_and(|are_off| !are_off)
        && disable_transparent_huge_pages(true).is_ok();
    let outcome = start();
    if switches {
        // Fails no more than the call before.
        let _ = disable_transparent_huge_pages(false);
    }
    outcome
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
        Some((shard, _)) => {
            let error = why(executors.swap_remove(shard));
            match error.raw_os_error() {
                Some(libc::ENOMEM) => Err(preflight::memlock_too_low(executors.len() + 1)),
                _ => Err(StartError::Shard {
                    shard,
                    reason: error.to_string(),
                }),
            }
        }
    }
}

/// Why an executor that ended, or never began, did so.
fn why(executor: Executor) -> io::Error {
    match executor.and_then(ExecutorJoinHandle::join) {
        Ok(Ok(())) => io::Error::other("it ended"),
        Ok(Err(error)) | Err(GlommioError::IoError(error)) => error,
        Err(error) => io::Error::other(error.to_string()),
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

/// The one line on standard output: where clients can connect.
fn announce(listening: &Listening, shards: usize) {
    let pid = std::process::id();
    tracing::info!(
        "process up: Ringbouncer {}, shards: {shards}, pid: {pid}",
        env!("CARGO_PKG_VERSION")
    );
    systemd::notify("READY=1");
    let mut line = "ready".to_owned();
    for address in &listening.tcp {
        line.push_str(&format!(" tcp={address}"));
    }
    if let Some(path) = &listening.unix {
        line.push_str(&format!(" unix={}", path.display()));
    }
    let mut out = io::stdout().lock();
    // Nobody listening is no reason not to serve.
    let _ = writeln!(out, "{line} shards={shards} pid={pid}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
