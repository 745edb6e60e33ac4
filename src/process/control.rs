//! The control thread: signals, reloads, period boundaries, the end.
//!
//! Signals (PgBouncer's meanings): HUP reloads, TERM waits for clients, INT waits for servers, QUIT
//! exits at once, USR1 pauses, USR2 resumes; TERM or INT during a shutdown exits at once.

use super::listening::Listening;
use super::metrics::MetricsListener;
use super::resolve::Resolver;
use super::start::Options;
use super::watch::CertificateWatch;
use super::{log, sources, systemd};
use crate::admin::{Hold, Order, SetOutcome};
use crate::base::{Clock, ShardId};
use crate::config::{Config, Dialect, Reload, diff};
use crate::shard::{Common, Mail, Phase, Request, Snapshot, log_dropped};
use crate::stats::Averages;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

/// How often the control thread looks whether a shutdown is complete.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How often it looks at the clock otherwise.
const LOOK: Duration = Duration::from_secs(1);
/// How long shards may take to put a new configuration in force before it is said to be.
const RELOAD_SPAN: Duration = Duration::from_secs(5);
/// Pause before a message is posted again that found a mailbox full.
const REPOST: Duration = Duration::from_millis(1);

/// Turns signals into requests, on a thread of its own.
pub(super) fn listen_to_signals(control: Sender<Request>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])?;
    let run = move || {
        for signal in signals.forever() {
            let request = match signal {
                SIGHUP => {
                    tracing::info!("got SIGHUP, re-reading config");
                    Request::Reload(Box::new(|_| {}))
                }
                _ => Request::Signal(signal),
            };
            if control.send(request).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(run)
        .map(drop)
}

/// What is done about a signal.
#[derive(Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    Order(Order),
    Shutdown(Phase),
    Exit,
}

/// What PgBouncer logs of a signal, and does about it.
fn heed(signal: i32, phase: Phase, hold: Hold) -> (&'static str, Deed) {
    let is_stopping = phase > Phase::Serving;
    match (signal, hold) {
        (SIGINT, _) if is_stopping => ("got SIGINT while shutting down, fast exit", Deed::Exit),
        (SIGTERM, _) if is_stopping => ("got SIGTERM while shutting down, fast exit", Deed::Exit),
        // Suspended clients never leave.
        (SIGINT | SIGTERM, Hold::Suspended) => (
            "suspend was in progress, going down immediately",
            Deed::Exit,
        ),
        (SIGINT, _) => (
            "got SIGINT, shutting down, waiting for all servers connections to be released",
            Deed::Shutdown(Phase::WaitForServers),
        ),
        (SIGTERM, _) => (
            "got SIGTERM, shutting down, waiting for all clients to disconnect",
            Deed::Shutdown(Phase::WaitForClients),
        ),
        (SIGUSR1, Hold::None) => (
            "got SIGUSR1, pausing all activity",
            Deed::Order(Order::Pause(None)),
        ),
        (SIGUSR1, _) => ("got SIGUSR1, but already paused/suspended", Deed::Nothing),
        (SIGUSR2, _) if is_stopping => ("got SIGUSR2 while shutting down, ignoring", Deed::Nothing),
        (SIGUSR2, Hold::None) => ("got SIGUSR2, but not paused/suspended", Deed::Nothing),
        (SIGUSR2, Hold::Paused) => (
            "got SIGUSR2, continuing from PAUSE",
            Deed::Order(Order::Resume(None)),
        ),
        (SIGUSR2, Hold::Suspended) => (
            "got SIGUSR2, continuing from SUSPEND",
            Deed::Order(Order::Resume(None)),
        ),
        _ => ("got SIGQUIT, fast exit", Deed::Exit),
    }
}

/// Runs until the process is to exit.
pub(super) fn run(
    common: &Common,
    options: &Options,
    requests: &Receiver<Request>,
    resolver: &Resolver,
    listening: &Listening,
) {
    serve(common, options, requests, resolver, listening);
    systemd::notify("STOPPING=1");
    flush(common);
}

fn serve(
    common: &Common,
    options: &Options,
    requests: &Receiver<Request>,
    resolver: &Resolver,
    listening: &Listening,
) {
    let mut phase = Phase::Serving;
    let mut backlog = VecDeque::new();
    let mut version = 0;
    let mut certificates = CertificateWatch::default();
    loop {
        let look = if phase == Phase::Serving {
            LOOK
        } else {
            DRAIN_LOOK
        };
        let next = backlog
            .pop_front()
            .map_or_else(|| requests.recv_timeout(look), Ok);
        match next {
            Ok(Request::Reload(answer)) => {
                let others = take_reloads(requests, &mut backlog);
                version += 1;
                let result = reload(common, options, resolver, version);
                others.into_iter().for_each(|other| other(result.clone()));
                answer(result);
            }
            Ok(Request::Set {
                name,
                value,
                answer,
            }) => {
                version += 1;
                answer(set(common, options, &name, &value, version));
            }
            Ok(Request::Signal(signal)) => {
                let (announcement, deed) = heed(signal, phase, common.board.newest().hold());
                tracing::info!("{announcement}");
                match deed {
                    Deed::Nothing => {}
                    Deed::Order(order) => match common.give(&order, phase) {
                        Ok(_) => tell_all(common, || Mail::Orders),
                        Err(refusal) => tracing::warn!(command = order.verb(), %refusal, "ignored"),
                    },
                    Deed::Shutdown(wanted) => phase = shut_down(common, listening, wanted),
                    Deed::Exit => return,
                }
            }
            Ok(Request::Shutdown(None)) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Request::Shutdown(Some(wanted))) if phase > Phase::Serving => {
                // A successor wants no more than what is under way.
                if wanted != Phase::WaitForClients || !listening.is_relieved() {
                    return;
                }
                shut_down(common, listening, phase);
            }
            Ok(Request::Shutdown(Some(wanted))) => phase = shut_down(common, listening, wanted),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if is_drained(common, phase) {
            match phase {
                Phase::WaitForServers => tracing::info!("server connections dropped, exiting"),
                _ => tracing::info!("client connections dropped, exiting"),
            }
            return;
        }
        if let Some(snapshot) = certificates.look(common) {
            version += 1;
            publish(common, snapshot, version);
        }
        end_period(common);
    }
}

/// Begins a shutdown; gives its phase.
fn shut_down(common: &Common, listening: &Listening, phase: Phase) -> Phase {
    tracing::info!(?phase, "shutting down");
    if listening.is_relieved() {
        tracing::info!("another process has taken over");
        common.is_relieved.store(true, Ordering::Relaxed);
        listening.metrics.iter().for_each(MetricsListener::close);
    }
    systemd::notify("STOPPING=1");
    tell_all(common, || Mail::Phase(phase));
    phase
}

/// Ends a statistics period if its time has come, and says what it brought.
fn end_period(common: &Common) {
    let now = Clock::now();
    let mut history = common
        .history
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if !history.roll_if_due(now, || common.registry.totals_by_database()) {
        return;
    }
    let averages = history.averages_of_all(now, &common.registry.totals_by_database());
    drop(history);
    let line = stats_line(&averages);
    systemd::notify(&format!("STATUS={line}"));
    if common.snapshot.load().config.general.log_stats {
        tracing::info!("{line}");
    }
}

/// PgBouncer's line of averages.
fn stats_line(averages: &Averages) -> String {
    format!(
        "stats: {} xacts/s, {} queries/s, {} client parses/s, {} server parses/s, {} binds/s, {} client logins/s, \
         in {} B/s, out {} B/s, \
         xact {} us, query {} us, wait {} us",
        averages.xact_count,
        averages.query_count,
        averages.client_parse_count,
        averages.server_parse_count,
        averages.bind_count,
        averages.client_login_count,
        averages.bytes_received,
        averages.bytes_sent,
        averages.xact_time_us,
        averages.query_time_us,
        averages.wait_time_us,
    )
}

type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Takes every reload that is asked for, so that one serves all; other requests join `backlog` in
/// their order.
fn take_reloads(requests: &Receiver<Request>, backlog: &mut VecDeque<Request>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for request in requests.try_iter() {
        match request {
            Request::Reload(answer) => answers.push(answer),
            other => backlog.push_back(other),
        }
    }
    answers
}

/// Reads the configuration again and, if nothing is wrong with it, puts it in force on every shard.
fn reload(
    common: &Common,
    options: &Options,
    resolver: &Resolver,
    version: u64,
) -> Result<(), String> {
    systemd::notify_reloading();
    let old = common.snapshot.load_full();
    let general = &old.config.general;
    let path = general.conffile.as_ref().unwrap_or(&options.path);
    let outcome = match sources::load(path, Some(&old)) {
        Ok(snapshot) => {
            apply(common, options, snapshot, version);
            resolver.poke();
            Ok(())
        }
        Err(error) => {
            let problems = error.to_string();
            for problem in problems.lines() {
                tracing::error!(
                    problem,
                    "RELOAD failed, the old configuration stays in force"
                );
            }
            if old.config.dialect == Dialect::Ini {
                tracing::warn!("config file loading failed, the old configuration stays in force");
            }
            Err(problems)
        }
    };
    systemd::notify("READY=1");
    outcome
}

/// Changes one setting.
fn set(common: &Common, options: &Options, name: &str, value: &str, version: u64) -> SetOutcome {
    let old = common.snapshot.load_full();
    let Some(config) = old.config.with_setting(name, value) else {
        return SetOutcome::Failed;
    };
    let mut outcome = SetOutcome::Set;
    let tls = match sources::load_tls(&config, Some(&old)) {
        Ok(tls) => Arc::new(tls),
        // As in PgBouncer: a key and its certificate can only be set one after the other.
        Err(error) => {
            tracing::warn!(%error, "TLS settings could not be applied, still using old configuration");
            if name.contains("_tls_") {
                outcome = SetOutcome::TlsKept;
            }
            old.tls.clone()
        }
    };
    match sources::with_rules(config, old.users.clone(), tls) {
        Ok(snapshot) => apply(common, options, snapshot, version),
        Err(error) => {
            tracing::error!(%error, "SET failed");
            return SetOutcome::Failed;
        }
    }
    outcome
}

fn apply(common: &Common, options: &Options, mut snapshot: Snapshot, version: u64) {
    let old = common.snapshot.load_full();
    for change in diff(&old.config, &snapshot.config) {
        let (key, old, new) = (
            change.key,
            change.old.unwrap_or_default(),
            change.new.unwrap_or_default(),
        );
        match change.reload {
            Reload::Restart => tracing::warn!(key, old, new, "setting changed; it needs a restart"),
            reload => tracing::info!(key, old, new, "setting changed; it {}", reload.describe()),
        }
    }
    if snapshot.config.dialect == Dialect::Ini {
        let kept = &snapshot.config.databases;
        let dropped = old.config.databases.keys();
        dropped
            .filter(|name| !kept.contains_key(*name))
            .for_each(|name| log_dropped(name));
    }
    snapshot.config = Arc::new(Config::clone(&snapshot.config).keeping(&old.config));
    let general = &snapshot.config.general;
    if let Err(error) = log::apply(&snapshot.config, options.wishes()) {
        tracing::error!(%error, "cannot open logfile; the old one goes on");
    }
    common
        .history
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .set_period(general.stats_period);
    sources::log_remarks(&snapshot.remarks);
    publish(common, snapshot, version);
    tracing::info!("configuration reloaded");
}

/// Puts a configuration in force, on every shard.
fn publish(common: &Common, snapshot: Snapshot, version: u64) {
    sources::warn_of_expiry(&snapshot.tls);
    let snapshot = Arc::new(snapshot);
    common.snapshot.store(snapshot.clone());
    common.set_limits();
    common.tune_doors(&snapshot.config.general);
    common.forget_answers();
    common
        .board
        .forget(|name| snapshot.config.database(name).is_some());
    tell_all(common, || Mail::Reload {
        snapshot: snapshot.clone(),
        version,
    });
    let deadline = Clock::now().after(RELOAD_SPAN);
    while !common.reloaded.are_all_at(version) && Clock::now() < deadline {
        thread::sleep(REPOST);
    }
}

pub(super) fn tell_all(common: &Common, mail: impl Fn() -> Mail) {
    for shard in 0..common.mesh.shards() {
        let Ok(shard) = u16::try_from(shard) else {
            return;
        };
        while common.mesh.post_outside(ShardId(shard), mail()).is_err() {
            thread::sleep(REPOST);
        }
    }
}

/// Waits until the last replies have left, or their readers have had their time.
fn flush(common: &Common) {
    let timeout = common.snapshot.load().config.general.close_timeout;
    let deadline = Clock::now().after(timeout);
    let queued = || {
        let shards = common.registry.shards().iter();
        shards.map(|shard| shard.sends_queued.load()).sum::<u64>()
    };
    while queued() > 0 && Clock::now() < deadline {
        thread::sleep(DRAIN_LOOK);
    }
}

/// Whether what the phase waits for has come.
fn is_drained(common: &Common, phase: Phase) -> bool {
    let mut shards = (0..common.mesh.shards()).filter_map(|shard| u16::try_from(shard).ok());
    let is_read = |shard| common.mesh.depth(ShardId(shard)) == 0;
    match phase {
        Phase::Serving => false,
        Phase::WaitForClients => {
            let is_closed = common.listening.load(Ordering::Acquire) == 0;
            is_closed
                && shards.all(is_read)
                && common
                    .registry
                    .shards()
                    .iter()
                    .all(|shard| shard.clients.load() == 0)
        }
        Phase::WaitForServers => {
            let busy = |pool: &crate::stats::PoolEntry| {
                let gauges = pool.gauges();
                gauges.sv_active + gauges.sv_tested + gauges.sv_being_canceled + gauges.cl_waiting
            };
            shards.all(is_read) && common.registry.pools().iter().all(|pool| busy(pool) == 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn reload_request(answers: &Sender<Result<(), String>>) -> Request {
        let answers = answers.clone();
        Request::Reload(Box::new(move |result| answers.send(result).unwrap()))
    }

    #[test]
    fn what_a_signal_does_depends_on_what_is_going_on() {
        use Deed::{Exit, Nothing, Order as Orders, Shutdown};
        use Hold::{None as Free, Paused, Suspended};
        use Phase::{Serving, WaitForClients, WaitForServers};
        let (pause, resume) = (
            || Orders(Order::Pause(None)),
            || Orders(Order::Resume(None)),
        );
        let table = [
            (SIGINT, Serving, Free, Shutdown(WaitForServers)),
            (SIGINT, Serving, Paused, Shutdown(WaitForServers)),
            (SIGINT, Serving, Suspended, Exit),
            (SIGINT, WaitForServers, Free, Exit),
            (SIGTERM, Serving, Free, Shutdown(WaitForClients)),
            (SIGTERM, Serving, Suspended, Exit),
            (SIGTERM, WaitForClients, Free, Exit),
            (SIGQUIT, Serving, Free, Exit),
            (SIGQUIT, WaitForClients, Suspended, Exit),
            (SIGUSR1, Serving, Free, pause()),
            (SIGUSR1, Serving, Paused, Nothing),
            (SIGUSR1, Serving, Suspended, Nothing),
            (SIGUSR2, Serving, Free, Nothing),
            (SIGUSR2, Serving, Paused, resume()),
            (SIGUSR2, Serving, Suspended, resume()),
            (SIGUSR2, WaitForClients, Free, Nothing),
            (SIGUSR2, WaitForServers, Paused, Nothing),
        ];
        for (signal, phase, hold, deed) in table {
            assert_eq!(
                heed(signal, phase, hold).1,
                deed,
                "{signal} {phase:?} {hold:?}"
            );
        }
    }

    #[test]
    fn reloads_are_taken_together_and_others_keep_their_order() {
        let (requests, pending) = channel();
        let (answers, answered) = channel();
        let shutdown = |phase| Request::Shutdown(Some(phase));
        for request in [
            reload_request(&answers),
            shutdown(Phase::WaitForClients),
            reload_request(&answers),
            shutdown(Phase::WaitForServers),
        ] {
            requests.send(request).unwrap();
        }
        let mut backlog = VecDeque::new();
        let taken = take_reloads(&pending, &mut backlog);
        taken
            .into_iter()
            .for_each(|answer| answer(Err("no".to_owned())));
        assert_eq!(answered.try_iter().count(), 2);
        let phases: Vec<_> = backlog
            .into_iter()
            .map(|request| match request {
                Request::Shutdown(phase) => phase,
                Request::Reload(_) | Request::Set { .. } | Request::Signal(_) => None,
            })
            .collect();
        let expected = [Phase::WaitForClients, Phase::WaitForServers].map(Some);
        assert_eq!(phases, expected);
    }
}
