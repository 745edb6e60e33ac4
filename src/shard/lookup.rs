//! auth_query: users that no file knows are looked up on a server, through the normal pool, with its
//! limits. However many clients of however many shards ask about a user, it is asked once.

use super::guest::in_line;
use super::pools::Pool;
use super::root::Shard;
use super::shared::LookedUp;
use crate::auth::{Lookup, LookupKey, Turn, Verifier};
use crate::base::limit::USER_NAME_BYTES_MAX;
use crate::client::Farewell;
use crate::net::spawn;
use crate::server::{LookupError, Server, ServerState, UserRow, look_up};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a look-up may take if logins have no limit.
const SPAN_MAX: Duration = Duration::from_secs(60);

impl Shard {
    /// What auth_query says.
    pub(super) async fn look_user_up(self: &Rc<Self>, key: &LookupKey) -> LookedUp {
        let mut turn = Turn::Wait;
        let told = self
            .promised(|promise| {
                let now = self.net.now();
                turn = self.common.answers().begin(key, now, || promise);
                if turn == Turn::Ask {
                    // On its own: the client that asks first may leave before the others.
                    spawn(self.net, ask(self.clone(), key.clone()));
                }
            })
            .await;
        match turn {
            Turn::Known(answer) => Ok(answer),
            Turn::Ask | Turn::Wait => told.unwrap_or(Err(Farewell::CONFIG_ERROR)),
        }
    }
}

async fn ask(shard: Rc<Shard>, key: LookupKey) {
    let config = shard.snapshot().config.clone();
    let general = &config.general;
    let span = match general.client_login_timeout {
        Duration::ZERO => SPAN_MAX,
        timeout => timeout,
    };
    let deadline = shard.net.now().after(span);
    let outcome = shard.net.until(deadline, run(&shard, &key)).await;
    let told = outcome.unwrap_or_else(|_| {
        tracing::error!(user = ?key.user, "auth_query got no answer in time");
        Err(Farewell::CONFIG_ERROR)
    });
    let ttl = match told.as_deref() {
        Ok(Lookup::Nobody) => general.auth_query_negative_ttl,
        _ => general.auth_query_ttl,
    };
    let answer = told.as_ref().ok().cloned();
    let now = shard.net.now();
    let waiters = shard.common.answers().finish(&key, answer, now, ttl);
    for waiter in waiters {
        waiter.keep(told.clone());
    }
}

async fn run(shard: &Rc<Shard>, key: &LookupKey) -> LookedUp {
    let Some(database) = shard.snapshot().config.database(&key.database) else {
        tracing::error!(
            name = &*key.database,
            "authentication database is not configured"
        );
        return Err(Farewell::CONFIG_ERROR);
    };
    if shard.orders.borrow().own(&database.name).is_disabled {
        let text = format!("authentication database \"{}\" is disabled", database.name);
        return Err(Farewell::because(text));
    }
    let pool = shard.pool(&database, &key.auth_user);
    let server = in_line(&pool).await.map_err(|farewell| {
        tracing::error!(database = ?key.database, auth_user = ?key.auth_user, cause = ?farewell.text, "no server for auth_query");
        Farewell::CONFIG_ERROR
    })?;
    let mut lent = Lent {
        pool: &pool,
        server: Some(server),
    };
    lent.look_up(key).await.map_err(|error| {
        tracing::error!(database = ?key.database, auth_user = ?key.auth_user, user = ?key.user, %error, "auth_query failed");
        Farewell::CONFIG_ERROR
    })
}

/// A server while it runs auth_query. Unless it is given back it is closed, because what it still
/// has to say is nobody's business.
struct Lent<'a> {
    pool: &'a Rc<Pool>,
    server: Option<Server>,
}

impl Lent<'_> {
    async fn look_up(&mut self, key: &LookupKey) -> Result<Arc<Lookup>, LookupError> {
        let Some(server) = &mut self.server else {
            unreachable!("it is lent until this has ended");
        };
        server.entry.set_state(ServerState::Active);
        let mut fresh = self.pool.shard.no_wishes();
        fresh.fill(&self.pool.common.welcome.load_full().unwrap_or_default());
        let row = look_up(server, &mut fresh, &key.query, &key.user).await?;
        let lookup = row.map_or(Ok(Lookup::Nobody), user_of)?;
        if let Some(server) = self.server.take() {
            self.pool.take_back(server);
        }
        Ok(Arc::new(lookup))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.pool.close(server, "auth_query failed");
        }
    }
}

fn user_of((name, secret): UserRow) -> Result<Lookup, LookupError> {
    let name = std::str::from_utf8(&name).ok();
    let name = name.filter(|name| name.len() <= USER_NAME_BYTES_MAX);
    Ok(Lookup::User {
        name: name.ok_or(LookupError::NoName)?.into(),
        verifier: secret.and_then(|secret| Verifier::parse(&secret)),
    })
}
