//! One console session.

use super::command::{Command, Show};
use super::error::{Ended, Refusal, Stop};
use super::extended::{Execution, Extended, Progress};
use super::messages::{Message, Messages};
use super::office::{Access, Office, SetOutcome, Shutdown};
use super::outlet::Outlet;
use super::show;
use super::table::{Formats, Rows, Value, data_row, row_description};
use crate::base::Clock;
use crate::client::Farewell;
use crate::net::{Net, Socket};
use crate::session::CancelKey;
use crate::stats::PoolStats;
use crate::wire::backend::{self, Report, Severity, TransactionStatus};
use crate::wire::frontend::query_of;
use crate::wire::tag::frontend as tag;
use crate::wire::{BadHeader, SqlState};
use std::sync::Arc;

/// What the session says it is. `server_version` names the PgBouncer whose console this one
/// resembles, as that does itself (`1.25.2/bouncer`): drivers and tools take the numbers in front
/// and, as they know PgBouncer's, do not expect what only a server of our own version could do.
const SETTINGS: [(&str, &str); 7] = [
    ("server_version", "1.25.2/ringbouncer"),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];

/// PgBouncer's words for SET of a TLS setting that does not go with the others (yet).
const TLS_KEPT: &str = "TLS settings could not be applied, still using old configuration";

/// A simple query gives no values.
const UNBOUND: Refusal = Refusal::NoParameter { number: 1 };

/// Who a console session belongs to.
pub struct Session {
    /// What it may do.
    pub access: Access,
    /// Its cancel key, for the welcome.
    pub key: CancelKey,
    /// Where it counts.
    pub stats: Arc<PoolStats>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Parting {
    /// By the client's Terminate, or with the process.
    Terminated,
    /// The client hung up.
    Vanished,
    /// The client has been sent away for that reason, and told so.
    Dismissed(Farewell),
}

/// Serves a console session until the client leaves; the client has been authenticated, but not
/// been told so yet. `ahead` has been read already.
pub async fn serve(
    net: Net,
    socket: &Socket,
    ahead: Vec<u8>,
    session: &Session,
    office: &dyn Office,
) -> Parting {
    let mut console = Console {
        outlet: Outlet::new(net, socket),
        extended: Extended::default(),
        access: session.access,
        stats: &session.stats,
        office,
        is_asked: false,
        parting: Parting::Vanished,
    };
    console.welcome(&session.key);
    // Either way the session is over, and everybody has been told.
    let _ = console.converse(socket, &ahead).await;
    console.parting
}

struct Console<'a> {
    outlet: Outlet<'a>,
    extended: Extended,
    access: Access,
    stats: &'a PoolStats,
    office: &'a dyn Office,
    /// Whether a request is under way.
    is_asked: bool,
    /// How the session has ended, once it has.
    parting: Parting,
}

impl Console<'_> {
    fn welcome(&mut self, key: &CancelKey) {
        let out = &mut self.outlet.bytes;
        backend::authentication_ok(out);
        for (name, value) in SETTINGS {
            backend::parameter_status(out, name, value.as_bytes());
        }
        backend::backend_key_data(out, key.bytes());
        backend::ready_for_query(out, TransactionStatus::Idle);
        self.outlet.send();
    }

    async fn converse(&mut self, socket: &Socket, ahead: &[u8]) -> Result<(), Ended> {
        let mut messages = Messages::default();
        messages.feed(ahead);
        loop {
            match messages.next() {
                Ok(Some(message)) => self.take(&message).await?,
                Ok(None) => match socket.recv().await {
                    Ok(Some(chunk)) => messages.feed(&chunk),
                    Ok(None) | Err(_) => return Err(Ended),
                },
                Err(error) => return Err(self.cannot_follow(error)),
            }
        }
    }

    // ---- messages ------------------------------------------------------------------------

    async fn take(&mut self, message: &Message) -> Result<(), Ended> {
        if message.tag == tag::TERMINATE {
            self.parting = Parting::Terminated;
            return Err(Ended);
        }
        self.begin();
        match message.tag {
            tag::SYNC => {
                self.extended.sync();
                self.ready();
            }
            tag::QUERY if !self.extended.is_skipping() => {
                self.query(&message.body).await?;
                self.ready();
            }
            tag::FLUSH => self.outlet.send(),
            tag::PARSE | tag::BIND | tag::DESCRIBE | tag::CLOSE | tag::EXECUTE => {
                let out = &mut self.outlet.bytes;
                if let Some(execution) = self.extended.take(message.tag, &message.body, out) {
                    self.execute(execution).await?;
                }
            }
            tag::QUERY => {}
            tag if !tag::is_known(tag) => return Err(self.dismiss(Farewell::new("unknown pkt"))),
            tag => return Err(self.unsupported(tag)),
        }
        self.outlet.settle().await
    }

    /// Counts a request with its first message. As in PgBouncer, no times and no bytes of the console are counted: a PAUSE
    /// that waits for long would be all there is to see in the totals.
    fn begin(&mut self) {
        if !self.is_asked {
            self.is_asked = true;
            self.stats.query_count.inc();
            self.stats.xact_count.inc();
        }
    }

    /// Ends a request.
    fn ready(&mut self) {
        backend::ready_for_query(&mut self.outlet.bytes, TransactionStatus::Idle);
        self.is_asked = false;
        self.outlet.send();
    }

    async fn query(&mut self, body: &[u8]) -> Result<(), Ended> {
        self.extended.interrupted();
        match self.answer(body).await {
            Ok(()) => Ok(()),
            Err(Stop::Refused(refusal)) => {
                self.office.hear(&refusal);
                refusal.write(&mut self.outlet.bytes);
                Ok(())
            }
            Err(Stop::Ended) => Err(Ended),
        }
    }

    async fn answer(&mut self, body: &[u8]) -> Result<(), Stop> {
        let command = Command::parse(query_of(body)?)?;
        if let Some(mut rows) = self.run(&command).await? {
            row_description(&mut self.outlet.bytes, command.columns(), &Formats::TEXT);
            self.emit(&mut rows, &Formats::TEXT, usize::MAX).await?;
        }
        backend::command_complete(&mut self.outlet.bytes, command.tag());
        Ok(())
    }

    async fn execute(&mut self, execution: Execution) -> Result<(), Ended> {
        match self.run_portal(execution).await {
            Ok(()) => Ok(()),
            Err(Stop::Refused(refusal)) => {
                self.office.hear(&refusal);
                self.extended.fail(&refusal, &mut self.outlet.bytes);
                Ok(())
            }
            Err(Stop::Ended) => Err(Ended),
        }
    }

    async fn run_portal(&mut self, execution: Execution) -> Result<(), Stop> {
        let Execution {
            mut portal,
            rows_max,
        } = execution;
        let Some(command) = portal.command.clone() else {
            backend::empty_query_response(&mut self.outlet.bytes);
            self.extended.put_back(portal);
            return Ok(());
        };
        let rows = match std::mem::replace(&mut portal.progress, Progress::Spent) {
            Progress::Fresh => self.run(&command).await?,
            Progress::Running(rows) => Some(rows),
            Progress::Spent => return Err(portal.spent().into()),
        };
        let mut is_complete = true;
        if let Some(mut rows) = rows {
            is_complete = self.emit(&mut rows, &portal.formats, rows_max).await?;
            portal.progress = Progress::Running(rows);
        }
        if is_complete {
            backend::command_complete(&mut self.outlet.bytes, command.tag());
        } else {
            backend::portal_suspended(&mut self.outlet.bytes);
        }
        self.extended.put_back(portal);
        Ok(())
    }

    /// Writes `rows`, at most `rows_max`; whether that was all. As in PostgreSQL, nobody looks
    /// whether another row would follow the last one wanted.
    async fn emit(
        &mut self,
        rows: &mut Rows,
        formats: &Formats,
        rows_max: usize,
    ) -> Result<bool, Ended> {
        for _ in 0..rows_max {
            let Some(row) = rows.next() else {
                return Ok(true);
            };
            data_row(&mut self.outlet.bytes, &row, formats);
            self.outlet.pause().await?;
        }
        Ok(false)
    }

    // ---- commands ------------------------------------------------------------------------

    /// Runs a command; gives its rows, if it is one that has rows.
    async fn run(&mut self, command: &Command) -> Result<Option<Rows>, Stop> {
        if command.needs_admin() && self.access != Access::Admin {
            return Err(Refusal::AdminAccessNeeded.into());
        }
        match command {
            Command::Show(Show::Help) => self.notice("Console usage", Some(&show::help())),
            Command::Show(show) => {
                return Ok(Some(
                    show::rows(*show, None, self.office, self.access, Clock::now()).await,
                ));
            }
            Command::ShowSome(_, filter) if !filter.is_bound() => return Err(UNBOUND.into()),
            Command::Blank(_) => return Err(UNBOUND.into()),
            Command::ShowSome(show, filter) => {
                let rows =
                    show::rows(*show, Some(filter), self.office, self.access, Clock::now()).await;
                let filter = filter.clone();
                let limit = filter.limit();
                let wanted = rows.filter(move |row| filter.matches(row)).take(limit);
                return Ok(Some(Box::new(wanted)));
            }
            Command::SelectOne => return Ok(Some(Box::new(std::iter::once(vec![Value::Int4(1)])))),
            Command::SetIgnored => self.notice("SET ignored", None),
            Command::Set(setting) => match self.office.set(&setting.name, &setting.value).await {
                SetOutcome::Set => {}
                SetOutcome::TlsKept => self.notice(TLS_KEPT, None),
                SetOutcome::Failed => return Err(Refusal::SetFailed.into()),
            },
            Command::Order(order) => self.unless_gone(self.office.order(order)).await??,
            Command::WaitClose(name) => {
                let waiting = self.office.wait_close(name.as_deref());
                self.unless_gone(waiting).await??;
            }
            Command::KillClient(id) => self.office.kill_client(*id).await?,
            Command::Incomplete(_, refusal) => return Err(refusal.clone().into()),
            Command::Reload => {
                let outcome = self.office.reload().await;
                outcome.map_err(|detail| Refusal::ReloadFailed { detail })?;
            }
            Command::Shutdown(how) => {
                self.office.shutdown(*how);
                if *how == Shutdown::Now {
                    self.parting = Parting::Terminated;
                    return Err(Stop::Ended);
                }
            }
        }
        Ok(None)
    }

    /// Waits for `work`, unless the client hangs up before it is done.
    async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let work = async { Ok(work.await) };
        futures_lite::future::or(work, self.outlet.hung_up()).await
    }

    fn notice(&mut self, message: &str, detail: Option<&str>) {
        let report = Report {
            severity: Severity::Notice,
            sqlstate: SqlState::SUCCESSFUL_COMPLETION,
            message,
            detail,
            hint: None,
        };
        backend::notice_response(&mut self.outlet.bytes, &report);
    }

    // ---- leaving -------------------------------------------------------------------------

    fn unsupported(&mut self, tag: u8) -> Ended {
        let report = Report {
            severity: Severity::Error,
            sqlstate: SqlState::PROTOCOL_VIOLATION,
            message: &format!("unsupported packet type for admin console: {tag}"),
            detail: None,
            hint: None,
        };
        backend::error_response(&mut self.outlet.bytes, &report);
        self.dismiss(Farewell::new("bad packet"))
    }

    fn cannot_follow(&mut self, error: BadHeader) -> Ended {
        self.dismiss(Farewell::because(error.to_string()))
    }

    fn dismiss(&mut self, farewell: Farewell) -> Ended {
        farewell.write(&mut self.outlet.bytes);
        self.outlet.send();
        self.parting = Parting::Dismissed(farewell);
        Ended
    }
}
