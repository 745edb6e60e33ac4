//! Whose notation a configuration file is in, and what follows from it.

use super::error::Problem;
use super::ini;
use super::keys::{Key, Section};
use super::value::Value;
use std::path::Path;

/// The notation of a configuration file, and with it whose defaults hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Ringbouncer's own.
    #[default]
    Toml,
    /// PgBouncer's.
    Ini,
}

impl Dialect {
    /// The dialect of the file at `path` with content `text`: `.toml` and `.ini` say it, and in other files a line that
    /// is the header `[pgbouncer]`.
    pub fn of(path: &Path, text: &str) -> Dialect {
        let extension = path.extension().map(|ext| ext.to_ascii_lowercase());
        match extension.as_ref().and_then(|ext| ext.to_str()) {
            Some("toml") => Dialect::Toml,
            Some("ini") => Dialect::Ini,
            _ if text.lines().any(|line| line.trim() == "[pgbouncer]") => Dialect::Ini,
            _ => Dialect::Toml,
        }
    }

    /// Where relative paths of the file at `path` start: at its directory, or as PgBouncer's do at the working directory.
    pub(super) fn paths_start_at(self, path: &Path) -> &Path {
        match self {
            Dialect::Toml => path.parent().unwrap_or(Path::new("")),
            Dialect::Ini => Path::new(""),
        }
    }

    /// The value of a key that the file does not set.
    pub(super) fn preset_value(self, key: &Key) -> Value {
        let own = match self {
            Dialect::Toml => None,
            Dialect::Ini => ini::preset(key.section, key.name),
        };
        own.map_or_else(|| key.preset_value(), |written| key.value_of(written))
    }

    /// Has problems name the tables as the file does.
    pub(super) fn translate(self, problems: &mut [Problem]) {
        if self == Dialect::Toml {
            return;
        }
        for problem in problems {
            if let Some(rest) = problem.key.strip_prefix(Section::General.name()) {
                problem.key = format!("pgbouncer{rest}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_told_by_its_extension_else_by_its_content() {
        let cases = [
            ("r.toml", "[pgbouncer]", Dialect::Toml),
            ("pgbouncer.ini", "", Dialect::Ini),
            ("P.INI", "", Dialect::Ini),
            ("pgbouncer.conf", "; x\n [pgbouncer] \n", Dialect::Ini),
            ("pgbouncer", "[databases]\n[pgbouncer]", Dialect::Ini),
            ("config", "[ringbouncer]\n", Dialect::Toml),
        ];
        for (path, text, expected) in cases {
            assert_eq!(Dialect::of(Path::new(path), text), expected, "{path}");
        }
    }
}
