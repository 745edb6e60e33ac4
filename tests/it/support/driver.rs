//! The same through a real driver.

use std::net::SocketAddr;

use tokio_postgres::{Client, Config, Error, NoTls};

/// Runs a future on a runtime of its own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// Logs in; must be called inside [`block_on`].
pub async fn connect(
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
) -> Result<Client, Error> {
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user(user)
        .dbname(database);
    config
        .password(password)
        .connect_timeout(super::wait::PATIENCE);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Logs in and asks `select current_user`: the answer, or SQLSTATE and text of the refusal.
pub fn try_login(
    address: SocketAddr,
    user: &str,
    password: &str,
    database: &str,
) -> Result<String, (String, String)> {
    let outcome = block_on(async {
        let client = connect(address, user, password, database).await?;
        client.query_one("select current_user::text", &[]).await
    });
    match outcome {
        Ok(row) => Ok(row.get(0)),
        Err(error) => Err(match error.as_db_error() {
            Some(refusal) => (refusal.code().code().into(), refusal.message().into()),
            None => (String::new(), error.to_string()),
        }),
    }
}
