//! Settings that follow a client from server to server.
//!
//! *Tracked* settings are reported by the server (ParameterStatus), so the pooler knows both
//! sides; the configuration can name more of those (`track_extra_parameters`). *Extra* settings came with the client's start-up packet and are not reported; the pooler
//! remembers which it has made on a server. When a client gets a server, what differs is set in one
//! round trip ahead of its first message, by `set_config` with bound parameters: nothing a client
//! sends is ever pasted into SQL (CVE-2025-12819).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Settings replayed because servers report them: all that PostgreSQL reports and lets clients change, as in PgBouncer
/// since 1.26. The encoding is set first, as the other values are in it.
pub const TRACKED: [&str; 8] = [
    "client_encoding",
    "application_name",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
    "default_transaction_read_only",
    SEARCH_PATH,
];

const SEARCH_PATH: &str = "search_path";

/// Those of [`TRACKED`] that are extra settings with a server that is too old to report them (before 14 and 18).
const ONCE_UNREPORTED: [&str; 2] = ["default_transaction_read_only", SEARCH_PATH];

/// How many different settings of clients are remembered.
const RECENT_MAX: usize = 8;

/// The value of a setting; bytes, as PostgreSQL does not insist on any encoding here.
type Value = Box<[u8]>;

/// One setting to make on a server; `None` resets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: Option<Value>,
}

impl Setting {
    /// Whether a server may refuse it although another has taken it; a tracked one, or a reset, never fails.
    pub fn may_fail(&self) -> bool {
        self.value.is_some() && index(&self.name).is_none()
    }
}

/// Whether `name` can be the name of a setting: identifiers, joined by dots.
pub fn is_setting_name(name: &str) -> bool {
    let part = |part: &str| {
        let mut bytes = part.bytes();
        bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$'))
    };
    name.len() < 64 && name.split('.').all(part)
}

fn tracked_name(name: &str) -> Option<&'static str> {
    TRACKED.get(index(name)?).copied()
}

/// What one client wants its settings to be. Cheap to copy and to compare with itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Arc<Inner>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Inner {
    tracked: [Option<Value>; TRACKED.len()],
    /// Tracked because the configuration says so.
    more: Vec<(Box<str>, Option<Value>)>,
    extra: BTreeMap<Box<str>, Value>,
}

impl Settings {
    /// No wishes; of what servers report, `names` are tracked as well.
    pub fn tracking<'n>(names: impl Iterator<Item = &'n str>) -> Settings {
        let more = names.filter(|name| index(name).is_none());
        Settings(Arc::new(Inner {
            more: more.map(|name| (name.into(), None)).collect(),
            ..Inner::default()
        }))
    }

    /// Whether a setting is tracked.
    pub fn tracks(&self, name: &str) -> bool {
        index(name).is_some() || self.0.more.iter().any(|(more, _)| is_same(more, name))
    }

    /// Sets one, under its canonical name.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let inner = Arc::make_mut(&mut self.0);
        if let Some(index) = index(name) {
            inner.tracked[index] = Some(value.into());
        } else if let Some((_, more)) = inner.more.iter_mut().find(|(more, _)| is_same(more, name))
        {
            *more = Some(value.into());
        } else {
            let name = name.to_ascii_lowercase();
            inner.extra.insert(name.into(), value.into());
        }
    }

    /// The value of a setting of [`TRACKED`].
    pub fn tracked(&self, name: &str) -> Option<&[u8]> {
        self.0.tracked[index(name)?].as_deref()
    }

    /// Tracked settings with their values.
    pub fn all_tracked(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let pairs = TRACKED.into_iter().zip(&self.0.tracked);
        let more = self.0.more.iter().map(|(name, value)| (&**name, value));
        let all = pairs.chain(more);
        all.filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// Fills tracked settings that the client said nothing about, and takes over how the server spells
    /// their names. What an old server does not report becomes an extra setting.
    pub fn fill(&mut self, from: &ServerParams) {
        for (index, name) in TRACKED.into_iter().enumerate() {
            let is_wanted = self.0.tracked[index].is_some();
            match from.reported.get(name) {
                Some(value) if !is_wanted => {
                    Arc::make_mut(&mut self.0).tracked[index] = Some(value.clone());
                }
                None if is_wanted && ONCE_UNREPORTED.contains(&name) => {
                    let inner = Arc::make_mut(&mut self.0);
                    let value = inner.tracked[index].take();
                    inner.extra.extend(value.map(|value| (name.into(), value)));
                }
                _ => {}
            }
        }
        if self.0.more.is_empty() {
            return;
        }
        for (name, value) in &mut Arc::make_mut(&mut self.0).more {
            let mut reported = from.reported.iter();
            if let Some((spelled, there)) = reported.find(|(spelled, _)| is_same(spelled, name)) {
                *name = spelled.clone();
                value.get_or_insert_with(|| there.clone());
            }
        }
    }

    /// Takes over how the server spells the values.
    fn take_spelling(&mut self, reported: &BTreeMap<Box<str>, Value>) {
        for (index, name) in TRACKED.into_iter().enumerate() {
            let reported = reported.get(name);
            if reported.is_some() && self.0.tracked[index].as_ref() != reported {
                Arc::make_mut(&mut self.0).tracked[index] = reported.cloned();
            }
        }
        for index in 0..self.0.more.len() {
            let (name, value) = &self.0.more[index];
            let reported = reported.get(name);
            if reported.is_some() && value.as_ref() != reported {
                Arc::make_mut(&mut self.0).more[index].1 = reported.cloned();
            }
        }
    }

    fn is(&self, other: &Settings) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn address(&self) -> *const Inner {
        Arc::as_ptr(&self.0)
    }
}

fn index(name: &str) -> Option<usize> {
    TRACKED.iter().position(|tracked| is_same(tracked, name))
}

fn is_same(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

/// As in PgBouncer; but there may be schemas of which only the case differs.
fn is_same_value(name: &str, there: &[u8], wanted: &[u8]) -> bool {
    match is_same(name, SEARCH_PATH) {
        true => there == wanted,
        false => there.eq_ignore_ascii_case(wanted),
    }
}

/// What a server has reported, and which settings the pooler has made on it.
#[derive(Clone, Debug, Default)]
pub struct ServerParams {
    reported: BTreeMap<Box<str>, Value>,
    /// Untracked settings that were made; `None` where the value may have changed since.
    extra: BTreeMap<Box<str>, Option<Value>>,
    /// The settings that the server was last brought in line with.
    applied: Settings,
}

impl ServerParams {
    /// Everything the server has reported.
    pub fn reported(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.reported
            .iter()
            .map(|(name, value)| (&**name, &**value))
    }

    /// One reported value.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.reported.get(name).map(|value| &**value)
    }

    /// The server reported a value outside of any lease.
    pub fn report(&mut self, name: &str, value: &[u8]) {
        let name = tracked_name(name).unwrap_or(name);
        self.reported.insert(name.into(), value.into());
    }

    /// The server reported a value while it was working for the client with these settings.
    pub fn report_to(&mut self, name: &str, value: &[u8], client: &mut Settings) {
        self.report(name, value);
        if client.tracks(name) {
            let was_in_line = self.applied.is(client);
            client.set(name, value);
            if was_in_line {
                self.applied = client.clone();
            }
        }
    }

    /// What has to be set before the server works for a client with these settings.
    pub fn differences(&mut self, client: &mut Settings) -> Vec<Setting> {
        if self.applied.is(client) {
            return Vec::new();
        }
        let mut todo = Vec::new();
        for (name, wanted) in client.all_tracked() {
            // What the server does not report, it does not have (an older version).
            let there = self.reported.get(name);
            if there.is_some_and(|there| !is_same_value(name, there, wanted)) {
                todo.push(Setting {
                    name: name.into(),
                    value: Some(wanted.into()),
                });
            }
        }
        for (name, wanted) in &client.0.extra {
            if self.extra.get(name).and_then(Option::as_ref) != Some(wanted) {
                todo.push(Setting {
                    name: name.clone(),
                    value: Some(wanted.clone()),
                });
            }
        }
        for name in self.extra.keys() {
            if !client.0.extra.contains_key(name) {
                todo.push(Setting {
                    name: name.clone(),
                    value: None,
                });
            }
        }
        if todo.is_empty() {
            // Equal in content: share one copy, so that the next comparison is one of pointers.
            self.adopt(client);
        }
        todo
    }

    /// The differences have been set: takes note of them, and gives the client the server's
    /// spelling (`ISO` becomes `ISO, MDY`), so that they are not set again.
    pub fn settled(&mut self, client: &mut Settings) {
        let made = client.0.extra.iter();
        self.extra = made
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect();
        self.adopt(client);
    }

    /// A SET or RESET was run, perhaps of a setting that is not tracked.
    pub fn changed_by_sql(&mut self) {
        if !self.extra.is_empty() {
            self.extra.values_mut().for_each(|value| *value = None);
            self.applied = Settings::default();
        }
    }

    /// DISCARD ALL has undone what the pooler had set.
    pub fn discarded(&mut self) {
        self.extra.clear();
        self.applied = Settings::default();
    }

    fn adopt(&mut self, client: &mut Settings) {
        client.take_spelling(&self.reported);
        if self.applied != *client {
            self.applied = client.clone();
        } else if self.applied.address() < client.address() {
            // Of two equal copies always the same one: so all servers and clients come to share it, where each
            // taking the other's would go on for ever.
            *client = self.applied.clone();
        } else {
            self.applied = client.clone();
        }
    }
}

/// The settings of clients that logged in lately: who wants the same as another shares its copy, which saves memory and, with
/// every server that comes to have it, comparing.
#[derive(Default)]
pub struct RecentSettings(VecDeque<Settings>);

impl RecentSettings {
    /// The copy to use of these settings.
    pub fn share(&mut self, settings: Settings) -> Settings {
        if let Some(known) = self.0.iter().find(|known| **known == settings) {
            return known.clone();
        }
        self.0.truncate(RECENT_MAX - 1);
        self.0.push_front(settings.clone());
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerParams {
        let mut server = ServerParams::default();
        for (name, value) in [
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("server_version", "15.3"),
        ] {
            server.report(name, value.as_bytes());
        }
        server
    }

    fn client(pairs: &[(&str, &str)]) -> Settings {
        let mut client = Settings::default();
        pairs
            .iter()
            .for_each(|(name, value)| client.set(name, value.as_bytes()));
        client
    }

    #[test]
    fn client_without_wishes_needs_nothing() {
        let (mut server, mut client) = (server(), Settings::default());
        client.fill(&server);
        assert_eq!(server.differences(&mut client), []);
        assert_eq!(client.tracked("timezone"), Some(&b"UTC"[..]));
    }

    #[test]
    fn only_differences_are_set_and_only_once() {
        let (mut server, mut client) = (
            server(),
            client(&[("timezone", "Asia/Tokyo"), ("datestyle", "iso, mdy")]),
        );
        let todo = server.differences(&mut client);
        assert_eq!(
            todo,
            [Setting {
                name: "TimeZone".into(),
                value: Some((*b"Asia/Tokyo").into())
            }]
        );
        server.report_to("TimeZone", b"Asia/Tokyo", &mut client);
        server.settled(&mut client);
        assert_eq!(server.differences(&mut client), []);
    }

    #[test]
    fn servers_spelling_becomes_the_clients() {
        let (mut server, mut client) = (server(), client(&[("DateStyle", "ISO")]));
        assert_eq!(server.differences(&mut client).len(), 1);
        // The server reports nothing, since the value stays the same.
        server.settled(&mut client);
        assert_eq!(client.tracked("DateStyle"), Some(&b"ISO, MDY"[..]));
        assert_eq!(server.differences(&mut client), []);
    }

    #[test]
    fn setting_named_by_the_configuration_is_tracked_like_the_others() {
        let mut server = server();
        server.report("Work_Mem", b"4MB");
        let tracking = || Settings::tracking(["work_mem", "timezone"].into_iter());
        let (mut one, mut two) = (tracking(), tracking());
        one.fill(&server);
        two.fill(&server);
        let tracked = |client: &Settings| {
            let mut all = client.all_tracked();
            let value = all.find_map(|(name, value)| (name == "Work_Mem").then_some(value));
            value.map(<[u8]>::to_vec)
        };
        assert_eq!(tracked(&one), Some(b"4MB".to_vec()));
        assert_eq!(server.differences(&mut one), []);
        server.report_to("Work_Mem", b"8MB", &mut one);
        assert_eq!(tracked(&one), Some(b"8MB".to_vec()));
        let todo = server.differences(&mut two);
        assert_eq!(
            todo,
            [Setting {
                name: "Work_Mem".into(),
                value: Some((*b"4MB").into())
            }]
        );
        server.report_to("Work_Mem", b"4MB", &mut two);
        server.settled(&mut two);
        assert_eq!(server.differences(&mut two), []);
        assert_eq!(server.differences(&mut one).len(), 1);
        let without = Settings::default();
        assert!(one.tracks("WORK_MEM") && !without.tracks("work_mem"));
    }

    #[test]
    fn extra_settings_are_made_and_taken_back() {
        let mut server = server();
        let (mut with, mut without) = (client(&[("extra_float_digits", "3")]), Settings::default());
        assert_eq!(server.differences(&mut with).len(), 1);
        server.settled(&mut with);
        assert_eq!(server.differences(&mut with), []);
        let back = server.differences(&mut without);
        assert_eq!(
            back,
            [Setting {
                name: "extra_float_digits".into(),
                value: None
            }]
        );
        server.settled(&mut without);
        assert_eq!(server.differences(&mut without), []);
    }

    #[test]
    fn search_path_is_tracked_where_it_is_reported() {
        let mut server = server();
        server.report("search_path", b"\"A\"");
        let (mut one, mut two) = (client(&[("search_path", "\"a\"")]), client(&[]));
        one.fill(&server);
        two.fill(&server);
        assert_eq!(one.tracked("search_path"), Some(&b"\"a\""[..]));
        assert_eq!(server.differences(&mut two), []);
        let wish = |value: &[u8]| {
            let (name, value) = ("search_path".into(), Some(value.into()));
            [Setting { name, value }]
        };
        assert_eq!(server.differences(&mut one), wish(b"\"a\""));
        server.report_to("search_path", b"\"a\"", &mut one);
        server.settled(&mut one);
        server.report_to("search_path", b"set_by_one", &mut one);
        assert_eq!(server.differences(&mut two), wish(b"\"A\""));
    }

    #[test]
    fn search_path_is_an_extra_setting_where_it_is_not_reported() {
        let mut server = server();
        let (mut with, mut without) = (client(&[("search_path", "a")]), client(&[]));
        with.fill(&server);
        without.fill(&server);
        assert_eq!(
            (with.tracked("search_path"), with.all_tracked().count()),
            (None, 2)
        );
        let made = server.differences(&mut with);
        assert_eq!(made.len(), 1);
        server.settled(&mut with);
        let back = server.differences(&mut without);
        assert_eq!((&*back[0].name, &back[0].value), ("search_path", &None));
        server.settled(&mut without);
        server.changed_by_sql();
        assert_eq!(server.differences(&mut without), []);
        assert_eq!(server.differences(&mut with).len(), 1);
    }

    #[test]
    fn extra_settings_are_made_again_after_a_set_or_reset() {
        let (mut server, mut with) = (server(), client(&[("work_mem", "a")]));
        server.differences(&mut with);
        server.settled(&mut with);
        server.changed_by_sql();
        assert_eq!(server.differences(&mut with).len(), 1);
        server.settled(&mut with);
        assert_eq!(server.differences(&mut with), []);
    }

    #[test]
    fn report_of_a_tracked_setting_does_not_hide_that_an_extra_one_was_changed() {
        let (mut server, mut with) = (server(), client(&[("work_mem", "a")]));
        server.differences(&mut with);
        server.settled(&mut with);
        // "set work_mem = b; set timezone = 'Asia/Tokyo'"
        server.changed_by_sql();
        server.report_to("TimeZone", b"Asia/Tokyo", &mut with);
        assert_eq!(server.differences(&mut with).len(), 1);
    }

    #[test]
    fn reported_setting_of_a_client_in_line_costs_no_comparison() {
        let (mut server, mut owner) = (server(), client(&[]));
        owner.fill(&server);
        server.differences(&mut owner);
        server.report_to("TimeZone", b"Asia/Tokyo", &mut owner);
        assert!(server.applied.is(&owner));
    }

    #[test]
    fn clients_with_equal_settings_come_to_share_them() {
        let mut server = server();
        let (mut a, mut b) = (
            client(&[("TimeZone", "UTC")]),
            client(&[("TimeZone", "UTC")]),
        );
        a.fill(&server);
        b.fill(&server);
        for _ in 0..2 {
            assert_eq!(server.differences(&mut a), []);
            assert_eq!(server.differences(&mut b), []);
        }
        assert!(a.is(&b));
    }

    #[test]
    fn servers_with_equal_settings_come_to_share_them() {
        let (mut a, mut b) = (server(), server());
        let (mut one, mut two) = (
            client(&[("TimeZone", "UTC")]),
            client(&[("TimeZone", "UTC")]),
        );
        for _ in 0..2 {
            for server in [&mut a, &mut b] {
                for client in [&mut one, &mut two] {
                    client.fill(server);
                    assert_eq!(server.differences(client), []);
                }
            }
        }
        assert!(one.is(&two) && a.applied.is(&one) && b.applied.is(&one));
    }

    #[test]
    fn clients_that_want_the_same_share_it_from_the_start() {
        let mut recent = RecentSettings::default();
        let utc = recent.share(client(&[("TimeZone", "UTC")]));
        for number in 1..RECENT_MAX {
            recent.share(client(&[("application_name", &number.to_string())]));
            assert!(recent.share(client(&[("TimeZone", "UTC")])).is(&utc));
        }
        recent.share(client(&[("application_name", "one more")]));
        assert!(!recent.share(client(&[("TimeZone", "UTC")])).is(&utc));
        assert_eq!(recent.0.len(), RECENT_MAX);
    }

    #[test]
    fn setting_names_cannot_carry_sql() {
        for good in ["TimeZone", "my.custom_setting", "a$1"] {
            assert!(is_setting_name(good), "{good}");
        }
        for bad in ["", "a b", "a;b", "a.", ".a", "a'", "a\"", "1a", "a--", "é"] {
            assert!(!is_setting_name(bad), "{bad}");
        }
    }
}
