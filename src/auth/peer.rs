//! What a client's certificate says about it.

use super::hba::IdentMap;

/// The names in a certificate that has been verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Subject alternative names: DNS names and addresses as text.
    pub alternative_names: Vec<String>,
    /// The subject's common name.
    pub common_name: Option<String>,
}

impl PeerIdentity {
    /// Whether its bearer may log in as `user`: by the map, or by a name that is the user's. As in
    /// PgBouncer, the common name counts also beside alternative names; unlike there, letters and `*` stand for
    /// themselves alone.
    pub fn allows(&self, user: &str, map: Option<&IdentMap>) -> bool {
        let may_be = |name: &String| match map {
            Some(map) => map.allows(name, user),
            None => name == user,
        };
        self.alternative_names.iter().any(may_be) || self.common_name.as_ref().is_some_and(may_be)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::hba::IdentMaps;
    use std::path::Path;

    fn identity(common_name: Option<&str>, names: &[&str]) -> PeerIdentity {
        PeerIdentity {
            alternative_names: names.iter().map(|name| (*name).to_owned()).collect(),
            common_name: common_name.map(str::to_owned),
        }
    }

    #[test]
    fn alternative_names_and_the_common_name_count() {
        assert!(identity(Some("alice"), &[]).allows("alice", None));
        assert!(!identity(Some("alice"), &[]).allows("Alice", None));
        assert!(identity(Some("alice"), &["bob"]).allows("alice", None));
        assert!(identity(Some("alice"), &["x", "bob"]).allows("bob", None));
        assert!(!identity(None, &[]).allows("", None));
        assert!(!identity(None, &[]).allows("alice", None));
    }

    #[test]
    fn a_map_replaces_the_comparison() {
        let maps = IdentMaps::parse(Path::new("i"), b"m cert-alice alice", &mut Vec::new());
        let map = maps.get("m").map(std::sync::Arc::as_ref);
        assert!(identity(Some("cert-alice"), &[]).allows("alice", map));
        assert!(!identity(Some("alice"), &[]).allows("alice", map));
        assert!(!identity(Some("cert-alice"), &[]).allows("cert-alice", map));
    }
}
