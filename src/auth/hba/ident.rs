//! `pg_ident.conf`: which outside names may log in as which users.
//!
//! ```text
//! map  system-name             user
//! corp "CN with blanks"        alice
//! corp /^(.*)@example\.com$    \1
//! corp root                    all
//! ```

use super::address::single;
use super::fault::{HbaWarning, RuleFault};
use super::pattern::Pattern;
use super::token::{Field, fields, lines};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The maps of one file, by name.
#[derive(Clone, Debug, Default)]
pub struct IdentMaps(HashMap<String, Arc<IdentMap>>);

/// The lines of one map; without lines it lets nobody in.
#[derive(Clone, Debug, Default)]
pub struct IdentMap(Vec<Line>);

#[derive(Clone, Debug)]
struct Line {
    system: Pattern,
    user: Target,
}

/// Whom a system name may log in as.
#[derive(Clone, Debug)]
enum Target {
    /// Anybody.
    All,
    One(Pattern),
    /// The user's name with what the group of the system name's expression took in place of `\1`.
    Substituted {
        before: String,
        after: String,
    },
}

impl IdentMaps {
    /// Reads the content of the file at `path`; lines that cannot be understood are skipped.
    pub fn parse(path: &Path, text: &[u8], warnings: &mut Vec<HbaWarning>) -> IdentMaps {
        let mut maps: HashMap<String, IdentMap> = HashMap::new();
        for (number, line) in lines(text) {
            match fields(&line).and_then(|fields| parse_line(&fields)) {
                Ok(None) => {}
                Ok(Some((name, line))) => maps.entry(name).or_default().0.push(line),
                Err(fault) => warnings.push(HbaWarning {
                    file: path.to_owned(),
                    line: number,
                    fault,
                }),
            }
        }
        let shared = |(name, map)| (name, Arc::new(map));
        IdentMaps(maps.into_iter().map(shared).collect())
    }

    /// The map called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<IdentMap>> {
        self.0.get(name)
    }
}

impl IdentMap {
    /// Whether whoever is `system` outside may log in as `user`.
    pub fn allows(&self, system: &str, user: &str) -> bool {
        self.0.iter().any(|line| line.allows(system, user))
    }
}

impl Line {
    fn allows(&self, system: &str, user: &str) -> bool {
        match &self.user {
            Target::All => self.system.matches(system),
            Target::One(target) => self.system.matches(system) && target.matches(user),
            Target::Substituted { before, after } => {
                let Pattern::Regex(regex) = &self.system else {
                    return false;
                };
                let group = regex.captures(system).and_then(|found| found.get(1));
                let middle = user
                    .strip_prefix(before.as_str())
                    .and_then(|rest| rest.strip_suffix(after.as_str()));
                // A group that took part in no match stands for nothing, and nobody has no name.
                group.is_some_and(|group| !group.is_empty() && middle == Some(group.as_str()))
            }
        }
    }
}

fn parse_line(fields: &[Field]) -> Result<Option<(String, Line)>, RuleFault> {
    let (name, system, user) = match fields {
        [] => return Ok(None),
        [name, system, user] => (name, system, user),
        [_] => return Err(RuleFault::Missing("the system name")),
        [_, _] => return Err(RuleFault::Missing("the user")),
        _ => return Err(RuleFault::Surplus),
    };
    let name = single(name, "the map")?;
    let system = Pattern::parse(single(system, "the system name")?)?;
    let user = single(user, "the user")?;
    if user.marked('+').is_some() {
        return Err(RuleFault::RoleMembers(user.text.clone()));
    }
    let target = match (&system, user.text.split_once("\\1")) {
        _ if user.is_keyword("all") => Target::All,
        (Pattern::Regex(regex), Some((before, after))) if !user.text.starts_with('/') => {
            if regex.captures_len() < 2 {
                return Err(RuleFault::NoGroup);
            }
            Target::Substituted {
                before: before.to_owned(),
                after: after.to_owned(),
            }
        }
        _ => Target::One(Pattern::parse(user)?),
    };
    let line = Line {
        system,
        user: target,
    };
    Ok(Some((name.text.clone(), line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# map   system                       user
corp    alice                        alice
corp    "Alice Liddell"              alice
corp    /^(.*)@example\.com$         \1
corp    /^svc-(.+)$                  app_\1_rw
any     root                         all
quoted  root                         "all"
many    /^(a|b)$                     /^team_
opt     /^x(y)?$                     \1
case    Alice                        alice
pair    /^(.+)\.(.+)$                \1
"#;

    #[test]
    fn maps_say_who_may_be_whom() {
        let mut warnings = Vec::new();
        let maps = IdentMaps::parse(Path::new("ident"), FILE.as_bytes(), &mut warnings);
        assert_eq!(warnings, []);
        let cases = [
            ("corp", "alice", "alice", true),
            ("corp", "alice", "bob", false),
            ("corp", "Alice Liddell", "alice", true),
            ("corp", "bob@example.com", "bob", true),
            ("corp", "bob@example.com", "alice", false),
            ("corp", "bob@example.comx", "bob", false),
            ("corp", "bob@exampleXcom", "bob", false),
            ("corp", "@example.com", "", false),
            ("corp", "svc-shop", "app_shop_rw", true),
            ("corp", "svc-shop", "shop", false),
            ("corp", "svc-shop", "app__rw", false),
            ("any", "root", "anybody", true),
            ("any", "toor", "anybody", false),
            ("quoted", "root", "anybody", false),
            ("quoted", "root", "all", true),
            ("many", "a", "team_x", true),
            ("many", "c", "team_x", false),
            ("many", "a", "x_team_", false),
            ("opt", "xy", "y", true),
            ("opt", "x", "", false),
            ("case", "alice", "alice", false),
            ("pair", "a.b.c", "a.b", true),
            ("pair", "a.b.c", "a", false),
        ];
        for (map, system, user, want) in cases {
            let map = maps.get(map).expect("there");
            assert_eq!(map.allows(system, user), want, "{system} as {user}");
        }
        assert!(maps.get("none").is_none());
    }

    #[test]
    fn lines_that_mean_nothing_are_skipped_with_a_warning() {
        let text =
            b"m a\nm\nm a b c\nm a,b c\nm /( x\nm /a \\1\nm a +group\n\nm good one\nm \"x y\n";
        let mut warnings = Vec::new();
        let maps = IdentMaps::parse(Path::new("ident"), text, &mut warnings);
        let lines: Vec<_> = warnings.iter().map(|warning| warning.line).collect();
        assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 10]);
        assert!(maps.get("m").is_some_and(|map| map.allows("good", "one")));
    }
}
