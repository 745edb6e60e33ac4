//! Who exists, and with which verifier.

use std::collections::HashMap;

use super::{UserList, Verifier};
use crate::base::Secret;

/// The users of one configuration; immutable, replaced as a whole on reload.
#[derive(Clone, Debug, Default)]
pub struct Users {
    by_name: HashMap<String, Option<Verifier>>,
    are_mostly_scram: bool,
}

/// The answer to "who is this?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// No such user.
    Nobody,
    /// The user exists but has no secret that could match: none is given, or an empty one.
    NoSecret,
    /// The user exists and can prove it.
    Secret(&'a Verifier),
}

impl Users {
    /// Merges the configuration's users with those of a user list. A secret in the configuration
    /// wins; a user named there without one (only limits, say) keeps the list's.
    pub fn new(
        configured: impl IntoIterator<Item = (String, Option<Secret>)>,
        list: UserList,
    ) -> Users {
        let listed = list
            .into_users()
            .map(|(name, secret)| (name, Verifier::parse(secret.expose())));
        Users::merged(listed.collect(), configured)
    }

    /// These users, and over them those of another configuration.
    pub fn with(&self, configured: impl IntoIterator<Item = (String, Option<Secret>)>) -> Users {
        Users::merged(self.by_name.clone(), configured)
    }

    fn merged(
        mut users: HashMap<String, Option<Verifier>>,
        configured: impl IntoIterator<Item = (String, Option<Secret>)>,
    ) -> Users {
        for (name, secret) in configured {
            let entry = users.entry(name).or_default();
            if let Some(secret) = secret {
                *entry = Verifier::parse(secret.expose());
            }
        }
        let secrets = || users.values().flatten();
        let scram = secrets().filter(|secret| matches!(secret, Verifier::Scram(_)));
        Users {
            are_mostly_scram: scram.count() > secrets().count() / 2,
            by_name: users,
        }
    }

    /// Whether more than half of the secrets are SCRAM verifiers.
    pub const fn are_mostly_scram(&self) -> bool {
        self.are_mostly_scram
    }

    /// Looks a user up by exact name.
    pub fn lookup(&self, name: &str) -> Found<'_> {
        match self.by_name.get(name) {
            None => Found::Nobody,
            Some(None) => Found::NoSecret,
            Some(Some(verifier)) => Found::Secret(verifier),
        }
    }

    /// Every name, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl<'a> Found<'a> {
    /// The verifier, if there is one.
    pub const fn verifier(self) -> Option<&'a Verifier> {
        match self {
            Found::Secret(verifier) => Some(verifier),
            Found::Nobody | Found::NoSecret => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(found: Found<'_>) -> &[u8] {
        match found {
            Found::Secret(Verifier::Plain(secret)) => secret.expose(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn configuration_wins_over_the_list_where_it_has_a_secret() {
        let list = UserList::parse(
            b"\"both\" \"list\"\n\"limits\" \"list\"\n\"listed\" \"list\"\n\"emptied\" \"list\"\n\"blank\" \"\"",
        );
        let configured = [
            ("both", Some("config")),
            ("limits", None),
            ("bare", None),
            ("emptied", Some("")),
        ];
        let configured =
            configured.map(|(name, secret)| (name.to_owned(), secret.map(Secret::new)));
        let users = Users::new(configured, list.unwrap());
        assert_eq!((users.len(), users.is_empty()), (6, false));
        assert_eq!(plain(users.lookup("both")), b"config");
        assert_eq!(plain(users.lookup("limits")), b"list");
        assert_eq!(plain(users.lookup("listed")), b"list");
        for without in ["bare", "emptied", "blank"] {
            assert_eq!(users.lookup(without), Found::NoSecret, "{without}");
        }
        for nobody in ["Both", "", "both "] {
            assert_eq!(users.lookup(nobody), Found::Nobody, "{nobody}");
        }
    }

    #[test]
    fn users_of_before_stay_under_a_new_configuration() {
        let list = UserList::parse(b"\"both\" \"list\"\n\"listed\" \"list\"").unwrap();
        let before = Users::new([("limits".to_owned(), None)], list);
        let configured = [("both", Some("new")), ("listed", None), ("fresh", None)];
        let configured =
            configured.map(|(name, secret)| (name.to_owned(), secret.map(Secret::new)));
        let users = before.with(configured);
        assert_eq!(plain(users.lookup("both")), b"new");
        assert_eq!(plain(users.lookup("listed")), b"list");
        for without in ["limits", "fresh"] {
            assert_eq!(users.lookup(without), Found::NoSecret, "{without}");
        }
    }

    #[test]
    fn more_than_half_of_the_secrets_decide() {
        let scram = crate::auth::mock_verifier(&[1; 32], "eve", 4096).to_string();
        let users = |secrets: &[&str]| {
            let named = secrets.iter().enumerate();
            let configured = named.map(|(n, secret)| (n.to_string(), Some(Secret::new(*secret))));
            Users::new(configured, UserList::default())
        };
        for (secrets, expected) in [
            (&[][..], false),
            (&[scram.as_str()], true),
            (&[scram.as_str(), "plain"], false),
            (&[scram.as_str(), "plain", scram.as_str()], true),
            (&[scram.as_str(), "", ""], true),
        ] {
            assert_eq!(users(secrets).are_mostly_scram(), expected, "{secrets:?}");
        }
    }
}
