//! How a client gets past the door: which method it has to pass, what is known about its user, and
//! the exchange itself.

use super::guest::Guest;
use super::opening::salt_and_nonce;
use super::shared::Snapshot;
use crate::auth::hba::{Arrival, CertificateDemand, HbaMethod, IdentMap};
use crate::auth::{
    Found, Judge, Login, LoginError, LoginRequest, Lookup, LookupKey, Method, PeerIdentity,
    ServerCredentials, Witness,
};
use crate::base::{Clock, Secret, limit};
use crate::client::{AuthenticateError, Farewell, Intake, Outside, authenticate};
use crate::config::{AuthType, Dialect, is_console};
use crate::judge::{ldap_allows, os_user_name, pam_allows};
use crate::net::{Certificate, Endpoint};
use crate::relay::Ending;
use crate::wire::{Replication, StartupPacket};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

/// Who is an administrator of the console without proof: whoever runs the process.
const OWNERS: [&str; 2] = ["pgbouncer", "ringbouncer"];

/// A client that has been let in.
pub(super) struct Admission {
    /// Whom it is logged in as: auth_query may have given another name than the client.
    pub(super) user: Arc<str>,
    /// What its login taught us for logins to servers.
    pub(super) credentials: ServerCredentials,
    /// Whether it is the console's owner: the user that the process runs as, on the Unix socket.
    pub(super) is_owner: bool,
}

/// What a client has to pass.
enum Demand {
    Any,
    Rule {
        method: HbaMethod,
        certificate: CertificateDemand,
        /// Its line in the HBA file; 0 without a file.
        line: usize,
    },
}

impl Demand {
    fn of(method: HbaMethod) -> Demand {
        Demand::Rule {
            method,
            certificate: CertificateDemand::None,
            line: 0,
        }
    }

    /// Whether it matters what is known about the user.
    fn needs_user(&self) -> bool {
        let Demand::Rule { method, .. } = self else {
            return false;
        };
        !matches!(method, HbaMethod::Ldap(_) | HbaMethod::Pam(_))
    }
}

/// Where a user is known from.
enum Known<'a> {
    Listed(Found<'a>),
    Answered(Arc<Lookup>, LookupKey),
}

impl Known<'_> {
    fn found(&self) -> Found<'_> {
        match self {
            Known::Listed(found) => *found,
            Known::Answered(answer, _) => match &**answer {
                Lookup::Nobody => Found::Nobody,
                Lookup::User { verifier, .. } => {
                    verifier.as_ref().map_or(Found::NoSecret, Found::Secret)
                }
            },
        }
    }

    fn name(&self, asked: &str) -> Arc<str> {
        match self {
            Known::Answered(answer, _) => match &**answer {
                Lookup::User { name, .. } => name.clone(),
                Lookup::Nobody => asked.into(),
            },
            Known::Listed(_) => asked.into(),
        }
    }
}

/// Whether a client says that it is somebody of whom nobody has to be asked to know that there is no such user.
pub(super) fn is_stranger(packet: &StartupPacket, snapshot: &Snapshot) -> bool {
    let is_list_asked = matches!(
        snapshot.config.general.auth_type,
        AuthType::Trust | AuthType::Plain | AuthType::Md5 | AuthType::ScramSha256
    );
    is_list_asked
        && !is_console(packet.database())
        && matches!(snapshot.users.lookup(packet.user()), Found::Nobody)
        && lookup_key(packet, snapshot).is_none()
}

impl Guest {
    /// Authenticates the client; AuthenticationOk is not sent yet.
    pub(super) async fn log_in(
        &self,
        intake: &mut Intake,
        packet: &StartupPacket,
        snapshot: &Snapshot,
    ) -> Result<Admission, Ending> {
        if is_console(packet.database()) && self.is_owner(intake, packet) {
            return Ok(Admission {
                user: packet.user().into(),
                credentials: ServerCredentials::Nothing,
                is_owner: true,
            });
        }
        if packet.user().len() > limit::USER_NAME_BYTES_MAX {
            return Err(Ending::SentAway(Farewell::new("username too long")));
        }
        if packet.database().len() > limit::DATABASE_NAME_BYTES_MAX {
            // Nor can there be one.
            let text = format!("no such database: {}", packet.database());
            return Err(Ending::SentAway(Farewell::because(text)));
        }
        if !self.may_try() {
            return Err(Ending::SentAway(Farewell::TOO_MANY_FAILURES));
        }
        let demand = self
            .demand(intake, packet, snapshot)
            .map_err(|error| self.refuse(packet, &error.into(), snapshot))?;
        let known = self.known(packet, &demand, snapshot).await?;
        let passed = self.pass(intake, packet, &demand, &known, snapshot).await;
        let credentials = match passed {
            Ok(credentials) => credentials,
            Err(error) => {
                let ending = self.refuse(packet, &error, snapshot);
                if is_punished(&error) {
                    self.punish(&known, snapshot).await;
                }
                return Err(ending);
            }
        };
        Ok(Admission {
            user: known.name(packet.user()),
            credentials,
            is_owner: false,
        })
    }

    /// Whether the client runs as the very user that this process runs as, and says so.
    fn is_owner(&self, intake: &Intake, packet: &StartupPacket) -> bool {
        let own = rustix::process::geteuid().as_raw();
        OWNERS.contains(&packet.user()) && intake.socket().peer_uid() == Some(own)
    }

    /// Logs why a login failed; the client learns less.
    fn refuse(
        &self,
        packet: &StartupPacket,
        error: &AuthenticateError,
        snapshot: &Snapshot,
    ) -> Ending {
        // PgBouncer has a line for it at the end only.
        if snapshot.config.dialect == Dialect::Toml {
            tracing::info!(client = %self.entry.id, remote = %self.entry.remote, user = packet.user(), database = packet.database(), reason = reason(error), "login failed");
        }
        error.farewell().map_or(Ending::Vanished, Ending::SentAway)
    }

    // ---- what it has to pass -------------------------------------------------------------

    fn demand(
        &self,
        intake: &Intake,
        packet: &StartupPacket,
        snapshot: &Snapshot,
    ) -> Result<Demand, LoginError> {
        Ok(match snapshot.config.general.auth_type {
            AuthType::Any => Demand::Any,
            AuthType::Trust => Demand::of(HbaMethod::Trust),
            AuthType::Plain => Demand::of(HbaMethod::Password),
            AuthType::Md5 => Demand::of(HbaMethod::Md5),
            AuthType::ScramSha256 => Demand::of(HbaMethod::ScramSha256),
            AuthType::Cert => Demand::of(HbaMethod::Cert(None)),
            AuthType::Ldap => match &snapshot.ldap {
                Some(settings) => Demand::of(HbaMethod::Ldap(settings.clone())),
                None => return Err(LoginError::NoRule),
            },
            AuthType::Pam => {
                let service = snapshot.config.general.auth_pam_service.as_str();
                Demand::of(HbaMethod::Pam(service.into()))
            }
            AuthType::Hba => return self.rule(intake, packet, snapshot),
        })
    }

    fn rule(
        &self,
        intake: &Intake,
        packet: &StartupPacket,
        snapshot: &Snapshot,
    ) -> Result<Demand, LoginError> {
        let arrival = Arrival {
            address: self.address(),
            is_tls: intake.is_encrypted(),
            database: packet.database(),
            user: packet.user(),
            is_physical_replication: packet.replication() == Some(Replication::Physical),
        };
        let rule = snapshot.hba.decide(&arrival).ok_or(LoginError::NoRule)?;
        if matches!(rule.method, HbaMethod::Reject) {
            return Err(LoginError::Rejected(rule.line));
        }
        Ok(Demand::Rule {
            method: rule.method.clone(),
            certificate: rule.certificate,
            line: rule.line,
        })
    }

    // ---- what is known about the user ----------------------------------------------------

    /// Users without a secret in a file are looked up on a server, if there is a way to.
    async fn known<'s>(
        &self,
        packet: &StartupPacket,
        demand: &Demand,
        snapshot: &'s Snapshot,
    ) -> Result<Known<'s>, Ending> {
        let listed = snapshot.users.lookup(packet.user());
        if matches!(listed, Found::Secret(_)) || !demand.needs_user() {
            return Ok(Known::Listed(listed));
        }
        let Some(key) = lookup_key(packet, snapshot) else {
            return Ok(Known::Listed(listed));
        };
        match self.shard.look_user_up(&key).await {
            Ok(answer) if *answer == Lookup::Nobody => Ok(Known::Listed(listed)),
            Ok(answer) => Ok(Known::Answered(answer, key)),
            Err(farewell) => Err(Ending::SentAway(farewell)),
        }
    }

    // ---- after a failure -----------------------------------------------------------------

    /// Its address; none on a Unix socket, whose users are this machine's affair.
    fn address(&self) -> Option<IpAddr> {
        match &self.entry.remote {
            Endpoint::Tcp(address) => Some(address.ip()),
            Endpoint::Unix(_) | Endpoint::Process { .. } => None,
        }
    }

    /// Whether not too many logins from the client's address have failed.
    fn may_try(&self) -> bool {
        let common = &self.shard.common;
        let limit = common.failure_limit();
        let now = self.shard.net.now();
        self.address()
            .is_none_or(|address| common.failures().allows(address, now, limit))
    }

    /// A login has failed: it is counted, the answer it rested on may be out of date, and the client
    /// waits before it may try again.
    async fn punish(&self, known: &Known<'_>, snapshot: &Snapshot) {
        let (common, now) = (&self.shard.common, self.shard.net.now());
        let general = &snapshot.config.general;
        if let Some(address) = self.address() {
            let window = general.login_failures_window;
            let unix_us = Clock::unix_micros();
            common.failures().failed(address, now, unix_us, window);
        }
        if let Known::Answered(_, key) = known {
            let age_min = general.auth_query_negative_ttl;
            common.answers().doubt(key, now, age_min);
        }
        if !general.login_failure_delay.is_zero() {
            self.shard.net.sleep(general.login_failure_delay).await;
        }
    }

    // ---- the exchange --------------------------------------------------------------------

    async fn pass(
        &self,
        intake: &mut Intake,
        packet: &StartupPacket,
        demand: &Demand,
        known: &Known<'_>,
        snapshot: &Snapshot,
    ) -> Result<ServerCredentials, AuthenticateError> {
        let tls = intake.socket().tls_peer();
        let certificate = tls.as_ref().and_then(|peer| peer.certificate.as_ref());
        let identity = certificate.map(identity);
        check_certificate(demand, packet, identity.as_ref())?;
        let (md5_salt, scram_nonce) = salt_and_nonce();
        let request = LoginRequest {
            method: self.method(demand, intake, packet, identity.as_ref()).await,
            user: packet.user(),
            found: known.found(),
            mostly_scram: snapshot.users.are_mostly_scram()
                || lookup_key(packet, snapshot).is_some(),
            process_secret: &self.shard.common.process_secret,
            scram_iterations: snapshot.config.general.scram_iterations,
            md5_salt,
            scram_nonce,
            channel: tls.as_ref().and_then(|peer| peer.channel_binding.as_ref()),
        };
        let staff = Staff {
            guest: self,
            demand,
            user: packet.user(),
            is_for_console: is_console(packet.database()),
        };
        let account = authenticate(intake, &request, &self.shard.kdf, &staff).await?;
        Ok(account.credentials)
    }

    async fn method(
        &self,
        demand: &Demand,
        intake: &Intake,
        packet: &StartupPacket,
        identity: Option<&PeerIdentity>,
    ) -> Method {
        let Demand::Rule { method, .. } = demand else {
            return Method::Any;
        };
        match method {
            HbaMethod::Trust => Method::Trust,
            HbaMethod::Password => Method::Plain,
            HbaMethod::Md5 => Method::Md5,
            HbaMethod::ScramSha256 => Method::ScramSha256,
            HbaMethod::Cert(map) => Method::Witnessed {
                witness: Witness::Certificate,
                agrees: identity.is_some_and(|peer| peer.allows(packet.user(), map.as_deref())),
            },
            HbaMethod::Peer(map) => Method::Witnessed {
                witness: Witness::UnixSocket,
                agrees: self.is_peer(intake, packet.user(), map.as_deref()).await,
            },
            HbaMethod::Ldap(_) => Method::Judged(Judge::Ldap),
            HbaMethod::Pam(_) => Method::Judged(Judge::Pam),
            // Refused before it comes to a method.
            HbaMethod::Reject => Method::Witnessed {
                witness: Witness::UnixSocket,
                agrees: false,
            },
        }
    }

    /// Whether the process at the other end of the Unix socket belongs to `user`.
    async fn is_peer(&self, intake: &Intake, user: &str, map: Option<&IdentMap>) -> bool {
        let Some(uid) = intake.socket().peer_uid() else {
            return false;
        };
        let namers = &self.shard.common.namers;
        let name = self
            .shard
            .worked_out(namers, move || os_user_name(uid))
            .await;
        name.flatten().is_some_and(|name| match map {
            Some(map) => map.allows(&name, user),
            None => name == user,
        })
    }
}

/// Worker threads that a login has its long work done by.
struct Staff<'a> {
    guest: &'a Guest,
    demand: &'a Demand,
    user: &'a str,
    is_for_console: bool,
}

impl Outside for Staff<'_> {
    async fn judge(&self, password: Secret) -> bool {
        let Demand::Rule { method, .. } = self.demand else {
            return false;
        };
        let shard = &self.guest.shard;
        let (method, user) = (method.clone(), self.user.to_owned());
        let remote = self.guest.entry.remote.address();
        let ask = move || match &method {
            HbaMethod::Ldap(settings) => ldap_allows(settings, &user, &password),
            HbaMethod::Pam(service) => pam_allows(service, &user, &password, &remote),
            _ => false,
        };
        let verdict = shard.worked_out(&shard.common.judges, ask);
        verdict.await.unwrap_or(false)
    }

    async fn stretch(&self, mut login: Login) -> Option<Login> {
        let shard = &self.guest.shard;
        let workers = match self.is_for_console {
            true => &shard.common.console_stretchers,
            false => &shard.common.stretchers,
        };
        let stretched = shard.worked_out(workers, move || {
            // With every core busy, whoever wakes up waits for a whole slice of the scheduler's otherwise: at 1,000 logins
            // at once the p99 of queries was 9 ms, and is 1.1 ms with this (loadtest/storm.py).
            login.stretch_ahead(std::thread::yield_now);
            login
        });
        stretched.await
    }
}

/// The names in a verified certificate.
fn identity(certificate: &Certificate) -> PeerIdentity {
    let addresses = certificate.ip_addresses.iter().map(ToString::to_string);
    PeerIdentity {
        alternative_names: certificate
            .dns_names
            .iter()
            .cloned()
            .chain(addresses)
            .collect(),
        common_name: certificate.common_name.clone(),
    }
}

/// What a rule wants of the certificate besides its method.
fn check_certificate(
    demand: &Demand,
    packet: &StartupPacket,
    identity: Option<&PeerIdentity>,
) -> Result<(), LoginError> {
    let Demand::Rule {
        certificate, line, ..
    } = demand
    else {
        return Ok(());
    };
    let is_met = match certificate {
        CertificateDemand::None => true,
        CertificateDemand::Valid => identity.is_some(),
        CertificateDemand::Named => identity.is_some_and(|peer| peer.allows(packet.user(), None)),
    };
    if is_met {
        Ok(())
    } else {
        Err(LoginError::NoCertificate(*line))
    }
}

/// Where to look the user up; none if no auth_user is set, or there is no database to ask: then the
/// user stays unknown, which the client cannot tell from a wrong password.
fn lookup_key(packet: &StartupPacket, snapshot: &Snapshot) -> Option<LookupKey> {
    let asked = packet.database();
    let database = snapshot.config.database(asked);
    let lookup = snapshot.config.user_lookup(database.as_deref())?;
    let place = match lookup.database {
        Some(place) => place,
        None => &database.as_ref()?.name,
    };
    Some(LookupKey {
        database: place.into(),
        auth_user: lookup.user.into(),
        query: lookup.query.into(),
        user: packet.user().into(),
    })
}

/// Whether the client has tried and failed, and did not just go away.
fn is_punished(error: &AuthenticateError) -> bool {
    matches!(error, AuthenticateError::Login(error) if *error != LoginError::Overload)
}

fn reason(error: &AuthenticateError) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}
