//! Why a configuration was refused.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why [`Config::load`](super::Config::load) gave no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read at all.
    #[error("cannot read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file was read and is wrong; `Display` prints `FILE:LINE: key: text`, one line for each.
    #[error("{}", listed(path, problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// Every problem found, in the order of the lines; never empty.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, if it is one that the configuration file includes.
    pub file: Option<PathBuf>,
    /// Line in the file, from 1; `None` if the problem is with the file as a whole.
    pub line: Option<usize>,
    /// Dotted path of the key, such as `databases.shop.port`; empty if there is none.
    pub key: String,
    /// What is wrong, what is allowed, and what may have been meant; never a secret.
    pub text: String,
}

impl Problem {
    pub(super) fn new(
        line: Option<usize>,
        key: impl Into<String>,
        text: impl Into<String>,
    ) -> Problem {
        Problem {
            file: None,
            line,
            key: key.into(),
            text: text.into(),
        }
    }

    /// The same in an included file.
    pub(super) fn in_file(self, file: &Path) -> Problem {
        Problem {
            file: Some(file.to_owned()),
            ..self
        }
    }
}

/// `LINE: key: text`, without the parts that are unknown.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

fn listed(path: &Path, problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| {
        let file = problem.file.as_deref().unwrap_or(path).display();
        match problem.line {
            Some(_) => format!("{file}:{problem}"),
            None => format!("{file}: {problem}"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_prints_as_one_line_with_file_line_and_key() {
        let problems = vec![
            Problem::new(
                Some(7),
                "databases.shop.prt",
                "unknown key; did you mean \"port\"?",
            ),
            Problem::new(None, "", "not valid"),
        ];
        let error = ConfigError::Problems {
            path: "/etc/r.toml".into(),
            problems,
        };
        let lines = "/etc/r.toml:7: databases.shop.prt: unknown key; did you mean \"port\"?\n\
                     /etc/r.toml: not valid";
        assert_eq!(error.to_string(), lines);
    }
}
