//! The text of a file as a TOML tree that remembers lines, with every syntax error in it.
//!
//! The parser recovers from errors, so that one of them does not hide the rest of the file. It
//! does not tell where the first of two equal keys stands; [`places`] finds out.

use super::error::Problem;
use super::ini::{Origin, Translation};
use super::keys::Section;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use toml::de::{DeTable, DeValue, Error};

/// A parsed file.
pub(super) struct Document<'i> {
    /// What could be understood.
    pub(super) tree: DeTable<'i>,
    /// Where the lines begin.
    pub(super) lines: Lines,
    /// The syntax errors, at most one for each line.
    pub(super) problems: Vec<Problem>,
    /// The lines on which the tree is the parser's guess; duplicates are certain.
    pub(super) guessed: BTreeSet<usize>,
    /// Options that have no effect.
    pub(super) ignored: Vec<String>,
    /// What is not as the file says.
    pub(super) remarks: Vec<String>,
}

impl<'i> Document<'i> {
    /// Reads `text`, whatever it holds.
    pub(super) fn read(text: &'i str) -> Document<'i> {
        let (tree, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::of(text);
        let located: Vec<_> = errors
            .iter()
            .map(|error| (lines.of_error(error), error))
            .collect();
        let guesses = located.iter().filter(|(_, error)| !is_duplicate(error));
        Document {
            tree: tree.into_inner(),
            guessed: guesses.flat_map(|(line, _)| hit(text, *line)).collect(),
            problems: explain(text, &lines, &located),
            lines,
            ignored: Vec::new(),
            remarks: Vec::new(),
        }
    }
}

impl<'i> Document<'i> {
    /// Reads what a file of PgBouncer was translated to.
    pub(super) fn of_translation(done: &'i Translation) -> Document<'i> {
        let mut document = Document::read(&done.toml);
        if let Lines::Own { starts } = document.lines {
            document.lines = Lines::Translated {
                starts,
                origins: done.origins.clone(),
            };
        }
        document.problems.extend(done.problems.iter().cloned());
        document.ignored.clone_from(&done.ignored);
        document.remarks.clone_from(&done.remarks);
        document
    }
}

/// Translates byte offsets into lines.
pub(super) enum Lines {
    /// Of the file itself.
    Own {
        /// Where they begin.
        starts: Vec<usize>,
    },
    /// Of the file that the text was translated from.
    Translated {
        /// Where the lines of the text begin.
        starts: Vec<usize>,
        /// What each of them comes from.
        origins: Vec<Origin>,
    },
}

impl Lines {
    fn of(text: &str) -> Lines {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Lines::Own {
            starts: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    /// The line, from 1, that holds the byte at `offset`.
    pub(super) fn number(&self, offset: usize) -> usize {
        match self {
            Lines::Own { starts } => line_at(starts, offset),
            Lines::Translated { .. } => self.origin(offset).map_or(0, |origin| origin.line),
        }
    }

    /// The file that holds it, if it is an included one.
    pub(super) fn file(&self, offset: usize) -> Option<&Path> {
        Some(self.origin(offset)?.file.as_ref()?)
    }

    fn origin(&self, offset: usize) -> Option<&Origin> {
        match self {
            Lines::Own { .. } => None,
            Lines::Translated { starts, origins } => {
                origins.get(line_at(starts, offset).checked_sub(1)?)
            }
        }
    }

    fn of_error(&self, error: &Error) -> usize {
        self.number(error.span().map_or(usize::MAX, |span| span.start))
    }

    /// What stands on line `number` of `text`.
    fn written<'t>(&self, text: &'t str, number: usize) -> &'t str {
        let (Lines::Own { starts } | Lines::Translated { starts, .. }) = self;
        let start = number.checked_sub(1).and_then(|before| starts.get(before));
        let rest = start
            .and_then(|start| text.get(*start..))
            .unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }
}

fn line_at(starts: &[usize], offset: usize) -> usize {
    starts.partition_point(|start| *start <= offset)
}

/// The lines that are understood wrongly if `line` is: itself, and if it is a table's name all lines of the table.
fn hit(text: &str, line: usize) -> Range<usize> {
    let is_table = |text: &&str| text.trim_start().starts_with('[');
    let mut rest = text.lines().skip(line - 1);
    let others = match rest.next().filter(is_table) {
        Some(_) => rest.take_while(|text| !is_table(text)).count(),
        None => 0,
    };
    line..line + 1 + others
}

/// The dotted path of a key, each part quoted where TOML wants it quoted.
pub(super) fn dotted<S: AsRef<str>>(parts: &[S]) -> String {
    let quoted = parts.iter().map(|part| {
        let part = part.as_ref();
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !part.is_empty() && part.chars().all(bare) {
            part.to_owned()
        } else {
            format!("{part:?}")
        }
    });
    quoted.collect::<Vec<_>>().join(".")
}

fn explain(text: &str, lines: &Lines, errors: &[(usize, &Error)]) -> Vec<Problem> {
    if errors.is_empty() {
        return Vec::new();
    }
    let places = places(text);
    let mut problems = BTreeMap::new();
    for (line, error) in errors {
        let problem = || syntax_problem(error, *line, lines.written(text, *line), places.get(line));
        problems.entry(*line).or_insert_with(problem);
    }
    problems.into_values().collect()
}

fn syntax_problem(error: &Error, line: usize, written: &str, place: Option<&Place>) -> Problem {
    let key = place.map(|place| dotted(&place.path)).unwrap_or_default();
    let text = match place {
        Some(Place {
            path,
            first: Some(first),
        }) if is_duplicate(error) => {
            format!("duplicate {}, first defined on line {first}", noun(path))
        }
        _ => format!("not valid TOML: {}{}", error.message(), hint(written)),
    };
    Problem::new(Some(line), key, text)
}

fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key"
}

fn noun(path: &[String]) -> &'static str {
    match path {
        [section, _] if section == Section::Database.name() => "database",
        [section, _] if section == Section::User.name() => "user",
        [_] => "table",
        _ => "key",
    }
}

/// What was probably meant by a line that TOML refuses.
fn hint(written: &str) -> &'static str {
    if written.trim_start().starts_with('[') && written.contains(".*") {
        return "; the star needs quotes: [databases.\"*\"]";
    }
    let (_, value) = written.split_once('=').unwrap_or_default();
    let value = value.trim_start_matches(|c: char| c == '[' || c.is_whitespace());
    let unquoted = |first: char| first.is_alphanumeric() || matches!(first, '*' | '/' | ':');
    if value.starts_with(unquoted) {
        return "; strings need quotes, and so do addresses and numbers with a unit";
    }
    ""
}

/// What a line defines.
struct Place {
    path: Vec<String>,
    /// The earlier line that defines the same.
    first: Option<usize>,
}

/// The key or table that each line defines, by line number. Lines within a multi-line value may
/// be mistaken for keys, which costs nothing: only lines with an error are looked up.
fn places(text: &str) -> BTreeMap<usize, Place> {
    let mut places = BTreeMap::new();
    let mut firsts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    let mut table = Vec::new();
    for (line, written) in (1..).zip(text.lines()) {
        let Some(path) = defined(written.trim(), &mut table) else {
            continue;
        };
        let first = firsts.get(&path).copied();
        if first.is_none() {
            firsts.insert(path.clone(), line);
        }
        places.insert(line, Place { path, first });
    }
    places
}

/// The path that `written` defines within `table`; a header changes `table`.
fn defined(written: &str, table: &mut Vec<String>) -> Option<Vec<String>> {
    if written.starts_with('[') {
        *table = header(written)?;
        return Some(table.clone());
    }
    let (key, _) = written.split_once('=')?;
    let key = header(&format!("[{key}]"))?;
    Some(table.iter().cloned().chain(key).collect())
}

/// The path in the header of a table.
fn header(written: &str) -> Option<Vec<String>> {
    let mut tree = DeTable::parse(written).ok()?.into_inner();
    let mut path = Vec::new();
    while let Some((key, value)) = tree.into_iter().next() {
        path.push(key.into_inner().into_owned());
        match value.into_inner() {
            DeValue::Table(below) => tree = below,
            _ => break,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Document::read(text)
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn lines_count_from_one() {
        let lines = Lines::of("a\nbc\n\nd");
        let numbers = [0, 1, 2, 4, 5, 6, 99].map(|offset| lines.number(offset));
        assert_eq!(numbers, [1, 1, 2, 2, 3, 4, 4]);
    }

    #[test]
    fn table_whose_name_is_wrong_is_not_understood_at_all() {
        let text = "[ringbouncer\nlisten_port = 1\n\n[databases.shop]\nport = 1\nhost =";
        let guessed: Vec<_> = Document::read(text).guessed.into_iter().collect();
        assert_eq!(guessed, [1, 2, 3, 6]);
    }

    #[test]
    fn duplicate_database_names_both_lines() {
        let text = "[databases.shop]\nport = 1\n\n[databases.\"shop\"]\nhost = \"h\"\n";
        assert_eq!(
            problems(text),
            ["4: databases.shop: duplicate database, first defined on line 1"]
        );
    }

    #[test]
    fn duplicate_key_names_both_lines() {
        let text = "[users.a]\npool_size = 1\n[ringbouncer]\nshards = 1\n# no\nshards = 2\n";
        assert_eq!(
            problems(text),
            ["6: ringbouncer.shards: duplicate key, first defined on line 4"]
        );
    }

    #[test]
    fn each_syntax_error_is_told_with_its_line() {
        let text =
            "[ringbouncer]\npool_mode = session\nstats_period = 5s\nshards = 2\n[databases.*]\n";
        let problems = problems(text);
        let starts = [
            "2: ringbouncer.pool_mode: not",
            "3: ringbouncer.stats_period: not",
            "5: not",
        ];
        let ends = ["with a unit", "with a unit", "[databases.\"*\"]"];
        assert_eq!(problems.len(), 3, "{problems:?}");
        for ((problem, start), end) in problems.iter().zip(starts).zip(ends) {
            assert!(
                problem.starts_with(start) && problem.ends_with(end),
                "{problem}"
            );
        }
    }

    #[test]
    fn what_is_sound_survives_an_error_elsewhere() {
        let document =
            Document::read("[ringbouncer]\npool_mode = @@\n[databases.shop]\nport = 1\n");
        assert_eq!(document.problems.len(), 1);
        assert!(document.tree.contains_key("databases"));
    }

    #[test]
    fn odd_names_are_quoted_in_paths() {
        assert_eq!(
            dotted(&["databases", "my.db", "a-b_1", ""]),
            "databases.\"my.db\".a-b_1.\"\""
        );
        assert_eq!(dotted(&["a\nb"]), "\"a\\nb\"");
    }
}
