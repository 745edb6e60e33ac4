//! Looks at start whether this machine lets us do what we need, and says in one sentence what is
//! missing.

use super::error::StartError;
use crate::base::limit::{CONSOLE_RESERVE, LOBBY_CLIENTS_MAX};
use crate::config::{Config, Dialect};
use crate::net;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Locked memory that an executor wants (glommio's own minimum).
const MEMLOCK_BYTES_MIN: u64 = 512 * 1024;
/// Descriptors besides clients and servers: rings, bells, listeners, logs.
const DESCRIPTORS_RESERVE: u64 = 64;
/// Of each shard: its rings and executor.
const DESCRIPTORS_PER_SHARD: u64 = 16;

/// How many files may be open at once.
pub(super) struct Descriptors {
    /// What holds now.
    limit: u64,
    /// What it could be raised to.
    hard: u64,
    /// What the configuration may come to need.
    needed: u64,
}

/// Checks kernel and limits; raises soft limits to the hard ones. With PgBouncer's file too few descriptors are no
/// obstacle.
///
/// # Errors
/// What is missing.
pub(super) fn check(config: &Config, shards: usize) -> Result<Descriptors, StartError> {
    net::probe().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOMEM) => memlock_too_low(shards),
        _ => StartError::IoUring(io_uring_missing(&error)),
    })?;
    check_memlock(shards)?;
    let descriptors = check_descriptors(config, shards);
    let Descriptors { limit, needed, .. } = descriptors;
    if limit < needed && config.dialect == Dialect::Toml {
        return Err(StartError::Descriptors { limit, needed });
    }
    Ok(descriptors)
}

impl Descriptors {
    /// Says what PgBouncer says of them, and whether they may run out.
    pub(super) fn log(&self, config: &Config) {
        let Descriptors {
            limit,
            hard,
            needed,
        } = *self;
        if config.dialect == Dialect::Ini {
            let clients = config.general.max_client_conn;
            tracing::info!(
                "kernel file descriptor limit: {limit} (hard: {hard}); max_client_conn: {clients}, max expected fd use: {needed}"
            );
        }
        if limit < needed {
            let error = StartError::Descriptors { limit, needed };
            tracing::warn!("{error}");
        }
    }
}

fn io_uring_missing(error: &io::Error) -> String {
    let disabled =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let kernel = rustix::system::uname();
    why_no_io_uring(error, disabled.trim(), &kernel.release().to_string_lossy())
}

/// `disabled` is the value of the sysctl of that name, empty if there is none.
fn why_no_io_uring(error: &io::Error, disabled: &str, release: &str) -> String {
    match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), "1" | "2") => format!(
            "io_uring is disabled by the sysctl kernel.io_uring_disabled = {disabled}: set it to 0"
        ),
        (Some(libc::EPERM | libc::ENOSYS), _) => {
            "io_uring is blocked, probably by a seccomp profile \
            (Docker's default one does): allow io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(libc::EINVAL), _) => format!(
            "the kernel ({release}) is too old: io_uring with DEFER_TASKRUN needs Linux 6.1"
        ),
        _ => format!("cannot make an io_uring: {error}"),
    }
}

fn check_memlock(shards: usize) -> Result<(), StartError> {
    if raise(Resource::Memlock, u64::MAX) < MEMLOCK_BYTES_MIN {
        return Err(memlock_too_low(shards));
    }
    Ok(())
}

/// That memory for a ring could not be locked; how much each takes is the kernel's affair.
pub(super) fn memlock_too_low(shards: usize) -> StartError {
    let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    StartError::Memlock { limit, shards }
}

fn check_descriptors(config: &Config, shards: usize) -> Descriptors {
    let pools: u64 = config
        .databases
        .values()
        .map(|database| u64::from(config.pool_size(database, "")))
        .sum();
    let beyond = LOBBY_CLIENTS_MAX + CONSOLE_RESERVE;
    let clients = (config.general.max_client_conn + beyond) as u64;
    let needed = clients + pools + DESCRIPTORS_RESERVE + DESCRIPTORS_PER_SHARD * shards as u64;
    let limit = raise(Resource::Nofile, needed);
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Descriptors {
        limit,
        hard,
        needed,
    }
}

/// Raises a soft limit as far as the hard one allows, and both to `wanted` if we may; gives what
/// holds then.
fn raise(resource: Resource, wanted: u64) -> u64 {
    let now = getrlimit(resource);
    let soft = now.current.unwrap_or(u64::MAX);
    if soft >= wanted {
        return soft;
    }
    let hard = now.maximum.unwrap_or(u64::MAX);
    let unlimited = (wanted != u64::MAX).then_some(wanted);
    if hard < wanted
        && setrlimit(
            resource,
            Rlimit {
                current: unlimited,
                maximum: unlimited,
            },
        )
        .is_ok()
    {
        return wanted;
    }
    let raised = setrlimit(
        resource,
        Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        },
    );
    if raised.is_ok() { hard } else { soft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_io_uring_is_put_down_to_its_cause() {
        let seccomp = "blocked, probably by a seccomp profile";
        for (errno, disabled, cause) in [
            (libc::EPERM, "1", "sysctl kernel.io_uring_disabled = 1:"),
            (libc::EPERM, "2", "sysctl kernel.io_uring_disabled = 2:"),
            (libc::EPERM, "0", seccomp),
            // Kernels before 6.6 have no such sysctl.
            (libc::EPERM, "", seccomp),
            (libc::ENOSYS, "0", seccomp),
            (libc::EINVAL, "0", "the kernel (5.15.0-generic) is too old"),
            (
                libc::EMFILE,
                "0",
                "cannot make an io_uring: Too many open files",
            ),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            let said = why_no_io_uring(&error, disabled, "5.15.0-generic");
            assert!(said.contains(cause), "{errno} {disabled:?}: {said}");
        }
    }
}
