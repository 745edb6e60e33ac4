//! What the file says, section by section, with everything it includes: the last assignment of each key, and where it
//! stands.

use super::presets::keeps_its_value;
use super::syntax::{Line, line};
use crate::config::error::Problem;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How deep files may include each other (PgBouncer's own bound).
const INCLUDE_DEPTH_MAX: usize = 10;
/// Lines of all files together that are read; an end to files that include each other over and over.
const LINES_MAX: usize = 200_000;

/// How an included file is read; the error says why it cannot be.
pub(crate) type Include<'a> = dyn Fn(&Path) -> Result<String, String> + 'a;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The file, if it is an included one.
    pub(crate) file: Option<Arc<PathBuf>>,
    /// The line, from 1.
    pub(crate) line: usize,
}

/// What is assigned to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) text: String,
    /// Number of its origin.
    pub(super) at: usize,
}

/// The keys of one section.
pub(super) type Settings = BTreeMap<String, Written>;

/// Everything the files say.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(super) general: Settings,
    pub(super) databases: Settings,
    pub(super) users: Settings,
    pub(super) peers: Settings,
    /// The lines, by number.
    pub(crate) origins: Vec<Origin>,
    /// What is wrong with the files' form.
    pub(crate) problems: Vec<Problem>,
    section: Section,
    has_pgbouncer: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    /// Before the first header.
    #[default]
    None,
    Pgbouncer,
    Databases,
    Users,
    Peers,
    /// An unknown one, which has been told.
    Unknown,
}

impl Source {
    /// Reads `text`, and the files it includes with `include`.
    pub(crate) fn read(text: &str, include: &Include<'_>) -> Source {
        let mut source = Source::default();
        source.file(text, None, 0, include);
        if !source.has_pgbouncer {
            let text = "there is no section [pgbouncer]";
            source.problems.push(Problem::new(None, "", text));
        }
        source
    }

    fn file(
        &mut self,
        text: &str,
        file: Option<&Arc<PathBuf>>,
        depth: usize,
        include: &Include<'_>,
    ) {
        for (number, written) in (1..).zip(text.lines()) {
            if self.origins.len() >= LINES_MAX {
                return self.blame(format!("more than {LINES_MAX} lines"));
            }
            self.origins.push(Origin {
                file: file.cloned(),
                line: number,
            });
            self.line(written, depth, include);
        }
    }

    fn line(&mut self, written: &str, depth: usize, include: &Include<'_>) {
        match line(written) {
            Err(why) => self.blame(why),
            Ok(Line::Blank) => {}
            Ok(Line::Section(name, rest)) => {
                self.enter(name);
                self.line(rest, depth, include);
            }
            Ok(Line::Include(_)) if depth >= INCLUDE_DEPTH_MAX => {
                self.blame("files include each other too deeply");
            }
            Ok(Line::Include(file)) => match include(Path::new(file)) {
                Err(why) => self.blame(format!("cannot include {file}: {why}")),
                Ok(text) => {
                    let file = Arc::new(PathBuf::from(file));
                    self.file(&text, Some(&file), depth + 1, include);
                }
            },
            Ok(Line::Setting(key, value)) => self.assign(key, value),
        }
    }

    /// Entering `[pgbouncer]` sets its options to their defaults.
    fn enter(&mut self, name: &str) {
        self.section = match name {
            "pgbouncer" => Section::Pgbouncer,
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            _ => {
                self.blame(format!(
                    "unknown section [{name}] (allowed: pgbouncer, databases, users, peers)"
                ));
                Section::Unknown
            }
        };
        if self.section == Section::Pgbouncer {
            self.has_pgbouncer = true;
            self.general.retain(|name, _| keeps_its_value(name));
        }
    }

    fn assign(&mut self, key: &str, value: &str) {
        let settings = match self.section {
            Section::Pgbouncer => &mut self.general,
            Section::Databases => &mut self.databases,
            Section::Users => &mut self.users,
            Section::Peers => &mut self.peers,
            Section::Unknown => return,
            Section::None => return self.blame("stands before the first section"),
        };
        let written = Written {
            text: value.to_owned(),
            at: self.origins.len().saturating_sub(1),
        };
        settings.insert(key.to_owned(), written);
    }

    /// Something is wrong with the line just read.
    fn blame(&mut self, text: impl Into<String>) {
        let at = self.origins.len().saturating_sub(1);
        let problem = self.problem(at, "", text);
        self.problems.push(problem);
    }

    /// A problem with line number `at`.
    pub(super) fn problem(&self, at: usize, key: &str, text: impl Into<String>) -> Problem {
        let origin = self.origins.get(at);
        let problem = Problem::new(origin.map(|origin| origin.line), key, text);
        match origin.and_then(|origin| origin.file.as_ref()) {
            Some(file) => problem.in_file(file),
            None => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Path) -> Result<String, String> {
        Err("no such file".to_owned())
    }

    fn read(text: &str) -> Source {
        Source::read(text, &nothing)
    }

    fn value<'a>(settings: &'a Settings, key: &str) -> Option<&'a str> {
        settings.get(key).map(|written| &*written.text)
    }

    #[test]
    fn last_assignment_wins() {
        let source = read("[databases]\na = host=x\na = port=1\n[pgbouncer]\nverbose=1\nverbose=2");
        assert_eq!(value(&source.databases, "a"), Some("port=1"));
        assert_eq!(value(&source.general, "verbose"), Some("2"));
        assert_eq!(source.problems, []);
    }

    #[test]
    fn second_pgbouncer_section_wipes_the_first_but_for_options_without_default() {
        let text = "[pgbouncer]\npool_mode=statement\nauth_file=f\nuser=u\nverbose=1\n[pgbouncer]\nlisten_port=1";
        let source = read(text);
        let left: Vec<_> = source.general.keys().map(String::as_str).collect();
        assert_eq!(left, ["auth_file", "listen_port", "user", "verbose"]);
    }

    #[test]
    fn included_file_goes_on_in_the_section_and_may_change_it() {
        let include = |path: &Path| match path.to_str() {
            Some("more.ini") => {
                Ok("listen_port = 2\n[users]\nann = pool_mode=session\nbroken\n".to_owned())
            }
            _ => nothing(path),
        };
        let text = "[pgbouncer]\n%include more.ini\nbob = pool_size=1\n";
        let source = Source::read(text, &include);
        assert_eq!(value(&source.general, "listen_port"), Some("2"));
        assert_eq!(source.users.len(), 2);
        let [problem] = &source.problems[..] else {
            panic!("{:?}", source.problems);
        };
        assert_eq!(
            (problem.file.as_deref(), problem.line),
            (Some(Path::new("more.ini")), Some(4))
        );
    }

    #[test]
    fn files_that_include_themselves_come_to_an_end() {
        let include = |_: &Path| Ok("%include again\n".to_owned());
        let source = Source::read("[pgbouncer]\n%include again", &include);
        assert_eq!(source.problems.len(), 1);
        assert_eq!(source.origins.len(), 2 + INCLUDE_DEPTH_MAX);
        let bomb = |_: &Path| Ok("%include again\n".repeat(9));
        let source = Source::read("[pgbouncer]\n%include again", &bomb);
        assert!(source.origins.len() <= LINES_MAX);
    }

    #[test]
    fn every_fault_of_form_is_told_with_its_line() {
        let source = read("early = 1\n[nosuch]\nx = 1\n[databases]\njunk\n%include gone\n");
        let problems: Vec<_> = source.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "1: stands before the first section",
                "2: unknown section [nosuch] (allowed: pgbouncer, databases, users, peers)",
                "5: a line is [section], key = value, or a comment",
                "6: cannot include gone: no such file",
                "there is no section [pgbouncer]",
            ]
        );
    }
}
