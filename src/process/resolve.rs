//! Addresses of host names: looked up by threads of their own, so that neither shards nor signals ever wait for DNS, and
//! no name waits for another. Each name is looked up by one thread at a time, and again when its answer is
//! `dns_max_ttl` old, or `dns_nxdomain_ttl` if there was none. When addresses change the shards are told.

use super::control::tell_all;
use crate::config::{Config, socket_path};
use crate::shard::{Common, Mail};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How soon a name is looked up again at the earliest, whatever the settings say.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How long the start waits for the first answers; names that take longer come later.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// What the resolver thread is told.
enum Word {
    /// The configuration has changed.
    Poke,
    /// What a look-up came to.
    Answer(String, io::Result<Vec<IpAddr>>),
}

/// The one who has names looked up: nobody else replaces the addresses.
pub(super) struct Resolver {
    words: Sender<Word>,
}

impl Resolver {
    /// Looks every configured host name up now, and keeps the addresses fresh from then on.
    pub(super) fn start(common: &Arc<Common>) -> Resolver {
        let (words, heard) = channel();
        let mut names = Names::new(words.clone());
        names.await_first(common, &heard);
        let common = common.clone();
        let run = move || names.keep_fresh(&common, &heard);
        // Without the thread, addresses stay as they are: worth a word, not a failure.
        if let Err(error) = thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(run)
        {
            tracing::warn!(%error, "cannot start the resolver; host names are looked up only at start");
        }
        Resolver { words }
    }

    /// Has the names of a new configuration looked up; does not wait for it.
    pub(super) fn poke(&self) {
        // Without the thread there is nobody to poke.
        let _ = self.words.send(Word::Poke);
    }
}

/// The names and when each is due.
struct Names {
    words: Sender<Word>,
    due: HashMap<String, Instant>,
    /// Names that a thread is looking up.
    pending: BTreeSet<String>,
}

impl Names {
    fn new(words: Sender<Word>) -> Names {
        Names {
            words,
            due: HashMap::new(),
            pending: BTreeSet::new(),
        }
    }

    fn await_first(&mut self, common: &Common, heard: &Receiver<Word>) {
        let deadline = Instant::now() + FIRST_ANSWERS;
        self.look_up_due(common);
        while !self.pending.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match heard.recv_timeout(left) {
                // The shards, which are not there yet, will find the addresses.
                Ok(word) => drop(self.hear(common, word)),
                Err(_) => return,
            }
        }
    }

    fn keep_fresh(mut self, common: &Common, heard: &Receiver<Word>) {
        loop {
            match heard.recv_timeout(self.until_next()) {
                Ok(word) => {
                    if self.hear(common, word) {
                        tell_all(common, || Mail::Addresses);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look_up_due(common);
        }
    }

    fn until_next(&self) -> Duration {
        const AT_MOST: Duration = Duration::from_secs(3600);
        let next = self.due.values().min();
        let left = next.map(|due| due.saturating_duration_since(Instant::now()));
        left.unwrap_or(AT_MOST).min(AT_MOST)
    }

    /// Whether addresses have changed.
    fn hear(&mut self, common: &Common, word: Word) -> bool {
        match word {
            Word::Poke => {
                self.due.clear();
                false
            }
            Word::Answer(name, answer) => self.take(common, name, answer),
        }
    }

    /// Sends for every name that is due, and forgets those that are no longer configured.
    fn look_up_due(&mut self, common: &Common) {
        let config = common.snapshot.load().config.clone();
        let wanted = names(&config);
        self.due.retain(|name, _| wanted.contains(&**name));
        let now = Instant::now();
        for name in wanted {
            let is_due = self.due.get(name).is_none_or(|due| *due <= now);
            if is_due && !self.pending.contains(name) {
                self.look_up(name, &config);
            }
        }
    }

    fn look_up(&mut self, name: &str, config: &Config) {
        let (words, asked) = (self.words.clone(), name.to_owned());
        let run = move || {
            let answer = lookup(&asked);
            // Nobody is interested any more when the process ends.
            let _ = words.send(Word::Answer(asked, answer));
        };
        let thread = thread::Builder::new().name("lookup".to_owned());
        let pause = match thread.spawn(run) {
            Ok(_) => {
                self.pending.insert(name.to_owned());
                config.general.dns_max_ttl
            }
            Err(error) => {
                tracing::warn!(host = name, %error, "cannot start a thread to look a name up");
                config.general.dns_nxdomain_ttl
            }
        };
        self.due_after(name, pause);
    }

    fn due_after(&mut self, name: &str, pause: Duration) {
        let due = Instant::now() + pause.max(PAUSE_MIN);
        self.due.insert(name.to_owned(), due);
    }

    fn take(&mut self, common: &Common, name: String, answer: io::Result<Vec<IpAddr>>) -> bool {
        self.pending.remove(&name);
        let config = common.snapshot.load().config.clone();
        let known = common.addresses.load();
        let old = known.get(&name);
        let answer = answer.and_then(|addresses| match addresses.is_empty() {
            true => Err(io::Error::other("no address")),
            false => Ok(addresses),
        });
        let (addresses, pause) = match answer {
            Ok(addresses) => (addresses, config.general.dns_max_ttl),
            Err(error) => {
                tracing::warn!(host = name, %error, "server DNS lookup failed");
                // An old address is better than none; an empty list says that there is none.
                let old = old.cloned().unwrap_or_default();
                (old, config.general.dns_nxdomain_ttl)
            }
        };
        self.due_after(&name, pause);
        if old == Some(&addresses) {
            return false;
        }
        let wanted = names(&config);
        let mut all = HashMap::clone(&known);
        all.insert(name, addresses);
        all.retain(|name, _| wanted.contains(&**name));
        common.addresses.store(Arc::new(all));
        true
    }
}

/// The configured hosts that are names.
fn names(config: &Config) -> BTreeSet<&str> {
    let databases = config.databases.values();
    let of_databases = databases.flat_map(|database| database.hosts());
    let of_peers = config
        .peers
        .values()
        .filter_map(|peer| peer.host.as_deref());
    let is_name = |host: &&str| socket_path(host, 0).is_none() && host.parse::<IpAddr>().is_err();
    of_databases.chain(of_peers).filter(is_name).collect()
}

fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<_> = (host, 0)
        .to_socket_addrs()?
        .map(|address| address.ip())
        .collect();
    // Resolvers rotate the order, which is no change.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;

    const TOML: &str = "[ringbouncer]\nauth_type = \"trust\"\ndns_max_ttl = \"1 h\"\ndns_nxdomain_ttl = \"0 s\"\n\
        [databases.a]\nhost = \"one, 10.0.0.1,/run\"\n[peers.2]\nhost = \"two\"\n";

    fn common() -> Common {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.toml");
        std::fs::write(&path, TOML).unwrap();
        let snapshot = crate::process::load(&path, None).unwrap();
        Common::new(1, snapshot, [0; 32], channel().0, Clock::now()).unwrap()
    }

    fn answer(last: u8) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([10, 0, 0, last])])
    }

    #[test]
    fn only_names_are_looked_up() {
        let common = common();
        let config = common.snapshot.load().config.clone();
        assert_eq!(names(&config), BTreeSet::from(["one", "two"]));
    }

    #[test]
    fn shards_are_told_only_of_addresses_that_changed() {
        let (common, mut names) = (common(), Names::new(channel().0));
        let mut take = |answer| names.take(&common, "one".to_owned(), answer);
        assert!(take(answer(1)));
        assert!(!take(answer(1)));
        // An address that was known is better than none.
        assert!(!take(Err(io::Error::other("no network"))));
        assert!(!take(Ok(Vec::new())));
        assert_eq!(common.addresses.load().get("one"), answer(1).ok().as_ref());
        assert!(take(answer(2)));
        assert_eq!(common.addresses.load().get("one"), answer(2).ok().as_ref());
    }

    #[test]
    fn answer_stays_for_its_time_and_failure_for_its_own() {
        let (common, mut names) = (common(), Names::new(channel().0));
        names.take(&common, "one".to_owned(), answer(1));
        assert!(names.until_next() > Duration::from_secs(3500));
        names.take(
            &common,
            "one".to_owned(),
            Err(io::Error::other("no network")),
        );
        assert!(names.until_next() <= PAUSE_MIN);
        names.hear(&common, Word::Poke);
        assert!(names.due.is_empty());
    }

    #[test]
    fn name_that_is_no_longer_configured_is_forgotten() {
        let (common, mut names) = (common(), Names::new(channel().0));
        names.take(&common, "gone".to_owned(), answer(1));
        assert!(common.addresses.load().is_empty());
        names.take(&common, "one".to_owned(), answer(1));
        names.take(&common, "two".to_owned(), answer(2));
        names.look_up_due(&common);
        assert_eq!(names.due.len(), 2);
    }
}
