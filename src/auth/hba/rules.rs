//! The whole file: its rules in order, and what could not be understood.

use super::address::Interface;
use super::fault::{HbaWarning, RuleFault};
use super::ident::IdentMaps;
use super::rule::{Arrival, Rule, Surroundings};
use super::token::{Field, Token, fields, lines};
use std::io;
use std::path::{Path, PathBuf};

/// How deeply `@file` may stand within `@file` (PostgreSQL: CONF_FILE_MAX_DEPTH).
const DEPTH_MAX: usize = 10;

/// The rules of one `pg_hba.conf`. Without rules nobody is let in.
#[derive(Clone, Debug, Default)]
pub struct Hba {
    rules: Vec<Rule>,
}

/// What the file's meaning depends on beside its own text.
pub struct HbaSources<'a> {
    /// Where the file is: `@file` starts at its directory.
    pub path: &'a Path,
    /// The maps that `map=` names.
    pub maps: &'a IdentMaps,
    /// The addresses of this machine, for `samehost` and `samenet`.
    pub machine: &'a [Interface],
    /// Gives the bytes of an `@file`.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

impl Hba {
    /// Reads `text`; lines that cannot be understood are skipped and reported.
    pub fn parse(text: &[u8], sources: &HbaSources<'_>, warnings: &mut Vec<HbaWarning>) -> Hba {
        let around = Surroundings {
            maps: sources.maps,
            machine: sources.machine,
        };
        let mut rules = Vec::new();
        let mut warn = |line, fault| {
            let file = sources.path.to_owned();
            warnings.push(HbaWarning { file, line, fault });
        };
        for (number, line) in lines(text) {
            let mut doubt = None;
            let parsed = fields(&line)
                .and_then(|fields| resolve(fields, sources))
                .and_then(|fields| match fields.is_empty() {
                    true => Ok(None),
                    false => Rule::parse(number, &fields, &around, &mut doubt).map(Some),
                });
            match parsed {
                Ok(rule) => rules.extend(rule),
                Err(fault) => doubt = Some(fault),
            }
            doubt.into_iter().for_each(|fault| warn(number, fault));
        }
        Hba { rules }
    }

    /// The first rule that is for this connection.
    pub fn decide(&self, arrival: &Arrival<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matches(arrival))
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// Puts the content of each `@file` in its place; only databases and users can come from files.
fn resolve(mut fields: Vec<Field>, sources: &HbaSources<'_>) -> Result<Vec<Field>, RuleFault> {
    for field in fields.iter_mut().skip(1).take(2) {
        let mut resolved = Vec::new();
        let dir = sources.path.parent().unwrap_or(Path::new(""));
        for token in std::mem::take(field) {
            expand(token, dir, DEPTH_MAX, sources, &mut resolved)?;
        }
        *field = resolved;
    }
    Ok(fields)
}

fn expand(
    token: Token,
    dir: &Path,
    depth: usize,
    sources: &HbaSources<'_>,
    out: &mut Vec<Token>,
) -> Result<(), RuleFault> {
    let Some(name) = token.marked('@').filter(|name| !name.is_empty()) else {
        out.push(token);
        return Ok(());
    };
    let depth = depth.checked_sub(1).ok_or(RuleFault::Depth)?;
    let path: PathBuf = dir.join(name);
    let text = (sources.read)(&path).map_err(|error| RuleFault::Include {
        path: path.clone(),
        why: error.to_string(),
    })?;
    let inner = path.parent().unwrap_or(Path::new(""));
    for (_, line) in lines(&text) {
        for token in fields(&line)?.into_iter().flatten() {
            expand(token, inner, depth, sources, out)?;
        }
    }
    Ok(())
}
