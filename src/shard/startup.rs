//! What a client's start-up packet asks for beside user and database: its settings.

use super::root::Shard;
use crate::client::Farewell;
use crate::config::General;
use crate::net::Endpoint;
use crate::session::{Settings, is_setting_name};
use crate::wire::{Replication, StartupPacket, parse_options};

/// What `application_name_add_host` calls a client that gives no name.
const NAMELESS: &str = "app";

impl Shard {
    /// The settings of a client that asks for none.
    pub(super) fn no_wishes(&self) -> Settings {
        no_wishes(&self.snapshot.borrow().config.general)
    }
}

fn no_wishes(general: &General) -> Settings {
    let names = general.track_extra_parameters.iter();
    Settings::tracking(names.map(String::as_str))
}

/// The settings that a start-up packet asks for. Those of `ignore_startup_parameters` are dropped, though a name that
/// the client gives itself is not (as in PgBouncer), tracked ones taken, and others taken unless the configuration is strict.
/// A server that is opened for replication gets `options` as they are.
pub(super) fn settings(packet: &StartupPacket, general: &General) -> Result<Settings, Farewell> {
    let replication = packet.replication();
    let ignored = &general.ignore_startup_parameters;
    let is_ignored = |name: &str| ignored.iter().any(|one| one.eq_ignore_ascii_case(name));
    let is_taken = |settings: &Settings, name: &str| {
        let is_possible = !general.strict_startup_parameters && is_setting_name(name);
        !is_ignored(name) && (is_possible || settings.tracks(name))
    };
    let mut settings = no_wishes(general);
    for (name, value) in packet.params() {
        match name {
            "replication" if replication.is_some() => {}
            "options" if replication.is_some_and(|kind| kind != Replication::None) => {}
            "options" => {
                let text = str::from_utf8(value).map_err(|_| unsupported("options"))?;
                let options =
                    parse_options(text).map_err(|error| Farewell::because(error.to_string()))?;
                for (name, value) in options {
                    if is_taken(&settings, &name) {
                        settings.set(&name, value.as_bytes());
                    } else if !is_ignored("options") && !is_ignored(&name) {
                        let text = format!("unsupported startup parameter in options: {name}");
                        return Err(Farewell::because(text));
                    }
                }
            }
            "replication" => return Err(unsupported(name)),
            "application_name" => settings.set(name, value),
            _ if is_taken(&settings, name) => settings.set(name, value),
            _ if is_ignored(name) => {}
            _ => return Err(unsupported(name)),
        }
    }
    Ok(settings)
}

fn unsupported(name: &str) -> Farewell {
    Farewell::because(format!("unsupported startup parameter: {name}"))
}

/// Appends where a client is to the name that it has given itself.
pub(super) fn add_host(settings: &mut Settings, remote: &Endpoint) {
    let name = settings.tracked("application_name");
    let mut name = name.unwrap_or(NAMELESS.as_bytes()).to_vec();
    let place = match remote {
        Endpoint::Process { pid, port } => {
            let system = rustix::system::uname();
            format!("unix({pid}@{}):{port}", system.nodename().to_string_lossy())
        }
        Endpoint::Tcp(_) | Endpoint::Unix(_) => remote.to_string(),
    };
    name.extend_from_slice(format!(" - {place}").as_bytes());
    settings.set("application_name", &name);
}
