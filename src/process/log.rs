//! Logs: to standard error, with a level that a reload can change.

use crate::config::LogLevel;
use std::sync::OnceLock;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging; later calls change the level.
pub(super) fn set_level(level: LogLevel) {
    let filter = filter(level);
    if let Some(handle) = LEVEL.get() {
        // Fails only if the subscriber is gone, and then nobody logs.
        let _ = handle.reload(filter);
        return;
    }
    let (filter, handle) = reload::Layer::new(filter);
    let format = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    if tracing_subscriber::registry()
        .with(filter)
        .with(format)
        .try_init()
        .is_ok()
    {
        let _ = LEVEL.set(handle);
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
