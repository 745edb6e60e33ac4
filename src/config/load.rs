//! Reading a configuration file.

use super::check::check;
use super::dialect::Dialect;
use super::document::Document;
use super::error::{ConfigError, Problem};
use super::ini::{Include, Source, translate};
use super::model::Config;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest file that is read, in bytes: far above any configuration, and an end to /dev/zero.
const FILE_BYTES_MAX: u64 = 64 << 20;

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it cannot be read, else every problem in it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let bytes = read(path);
        let bytes = bytes.map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let bytes = match Dialect::of(path, &String::from_utf8_lossy(&bytes)) {
            Dialect::Toml => bytes,
            Dialect::Ini => without_odd_comments(&bytes),
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => parse(text, path, &include),
            Err(error) => Err(not_utf8(&bytes, error.valid_up_to(), path)),
        }
    }

    /// Checks `text` as the content of the file at `path`, which need not exist.
    ///
    /// # Errors
    /// [`ConfigError::Problems`] with every problem of the text.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        parse(text, path, &|_| Err("no file is read here".to_owned()))
    }
}

fn parse(text: &str, path: &Path, include: &Include<'_>) -> Result<Config, ConfigError> {
    let dialect = Dialect::of(path, text);
    let checked = match dialect {
        Dialect::Toml => check(Document::read(text), dialect, path),
        Dialect::Ini => {
            let done = translate(Source::read(text, include));
            check(Document::of_translation(&done), dialect, path)
        }
    };
    checked.map_err(|problems| ConfigError::Problems {
        path: path.to_owned(),
        problems,
    })
}

/// Reads a file for `%include`; a relative path starts at the working directory, as PgBouncer's do.
fn include(path: &Path) -> Result<String, String> {
    let bytes = read(path).map_err(|error| error.to_string())?;
    String::from_utf8(without_odd_comments(&bytes)).map_err(|error| error.utf8_error().to_string())
}

/// A file of PgBouncer's with blanks for comments that are not UTF-8.
fn without_odd_comments(bytes: &[u8]) -> Vec<u8> {
    let is_odd = |line: &[u8]| {
        let is_comment =
            line.trim_ascii_start().starts_with(b";") || line.trim_ascii_start().starts_with(b"#");
        is_comment && std::str::from_utf8(line).is_err()
    };
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| if is_odd(line) { b"" } else { line });
    lines.collect::<Vec<_>>().join(&b'\n')
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= FILE_BYTES_MAX => Ok(bytes),
        _ => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
    }
}

fn not_utf8(bytes: &[u8], valid: usize, path: &Path) -> ConfigError {
    let breaks = bytes
        .iter()
        .take(valid)
        .filter(|byte| **byte == b'\n')
        .count();
    let problem = Problem::new(Some(breaks + 1), "", "not valid UTF-8");
    ConfigError::Problems {
        path: path.to_owned(),
        problems: vec![problem],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_file_is_told_with_its_path_and_cause() {
        let error = Config::load(Path::new("/nonexistent/r.toml")).expect_err("missing");
        assert_eq!(
            error.to_string(),
            "cannot read configuration file /nonexistent/r.toml"
        );
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn endless_file_is_refused() {
        let error = Config::load(Path::new("/dev/zero")).expect_err("endless");
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    }

    #[test]
    fn comments_of_an_ini_may_be_in_any_encoding() {
        let text = b"; f\xfcr\n[pgbouncer]\n # \xe4\nx = \xff\n; \xc3\xbc\n";
        let kept = b"\n[pgbouncer]\n\nx = \xff\n; \xc3\xbc\n";
        assert_eq!(without_odd_comments(text), kept);
        let directory = tempfile::tempdir().expect("a directory");
        let load = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            Config::load(&path)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(load("p.ini", b"; \xfc\n[pgbouncer]\n"), Ok(()));
        let error = load("p.ini", b"; \xfc\n[pgbouncer]\nuser = \xfc\n").expect_err("no text");
        assert!(error.ends_with("p.ini:3: not valid UTF-8"), "{error}");
        let error = load("r.toml", b"# \xfc\n").expect_err("no text");
        assert!(error.ends_with("r.toml:1: not valid UTF-8"), "{error}");
    }

    #[test]
    fn line_of_the_first_byte_that_is_not_utf8_is_told() {
        let bytes = [b"# fine\n# also fine\nshards = \"".as_slice(), &[0xff]].concat();
        let valid = std::str::from_utf8(&bytes)
            .expect_err("not UTF-8")
            .valid_up_to();
        let error = not_utf8(&bytes, valid, Path::new("r.toml"));
        assert_eq!(error.to_string(), "r.toml:3: not valid UTF-8");
    }
}
