//! What auth_query said about users: remembered for a while, and asked once however many wait.
//!
//! ```text
//! (nothing) --begin: Ask--> asked --finish--> known, or nothing if it failed or may not be kept
//!     ^                     asked --begin: Wait--> asked       known --begin: Known--> known
//!     '------ forget, time is over, RELOAD (an answer under way is given, but not kept) ------'
//! ```

use super::Verifier;
use crate::base::Moment;
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// Users that are remembered, and in a table of their own names that are nobody's: whoever tries
/// random names pushes no user out.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// What was asked: where, by whom, with which query, about whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LookupKey {
    /// The database entry in which the query runs.
    pub database: Arc<str>,
    /// The user who runs it.
    pub auth_user: Arc<str>,
    /// The query.
    pub query: Arc<str>,
    /// The user it is about.
    pub user: Arc<str>,
}

/// What the query said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// There is no such user.
    Nobody,
    /// There is; this is its name and what it can be checked with.
    User {
        /// The name in the answer: the client is logged in as this user.
        name: Arc<str>,
        /// The secret; none if it is null or could never match.
        verifier: Option<Verifier>,
    },
}

/// What somebody who wants to know has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: here is the answer.
    Known(Arc<Lookup>),
    /// Run the query, and then [`Answers::finish`] whatever came of it.
    Ask,
    /// Wait: somebody else is running it.
    Wait,
}

struct Remembered {
    answer: Arc<Lookup>,
    since: Moment,
    until: Moment,
}

struct Asked<W> {
    waiters: Vec<W>,
    generation: u64,
}

/// All answers of the process. `W` is how somebody who waits is told.
pub struct Answers<W> {
    users: LruCache<LookupKey, Remembered>,
    nobodies: LruCache<LookupKey, Remembered>,
    asked: HashMap<LookupKey, Asked<W>>,
    generation: u64,
}

impl<W> Default for Answers<W> {
    fn default() -> Answers<W> {
        Answers {
            users: LruCache::new(REMEMBERED_MAX),
            nobodies: LruCache::new(REMEMBERED_MAX),
            asked: HashMap::new(),
            generation: 0,
        }
    }
}

impl<W> Answers<W> {
    /// Somebody wants to know. Unless the answer is [`Turn::Known`], `waiter` is kept until it comes.
    pub fn begin(&mut self, key: &LookupKey, now: Moment, waiter: impl FnOnce() -> W) -> Turn {
        if let Some(asked) = self.asked.get_mut(key) {
            asked.waiters.push(waiter());
            return Turn::Wait;
        }
        let known = self.users.get(key).or_else(|| self.nobodies.get(key));
        if let Some(known) = known.filter(|known| now < known.until) {
            return Turn::Known(known.answer.clone());
        }
        let asked = Asked {
            waiters: vec![waiter()],
            generation: self.generation,
        };
        self.asked.insert(key.clone(), asked);
        Turn::Ask
    }

    /// The query has ended, with an answer or (`None`) without. Gives everybody who waits; an answer
    /// is kept for `ttl` unless it was asked for before a [`Answers::clear`].
    pub fn finish(
        &mut self,
        key: &LookupKey,
        answer: Option<Arc<Lookup>>,
        now: Moment,
        ttl: Duration,
    ) -> Vec<W> {
        let Some(asked) = self.asked.remove(key) else {
            return Vec::new();
        };
        self.forget(key);
        if let Some(answer) = answer
            && asked.generation == self.generation
            && !ttl.is_zero()
        {
            let table = match *answer {
                Lookup::Nobody => &mut self.nobodies,
                Lookup::User { .. } => &mut self.users,
            };
            let remembered = Remembered {
                answer,
                since: now,
                until: now.after(ttl),
            };
            table.put(key.clone(), remembered);
        }
        asked.waiters
    }

    /// A login with this answer failed: perhaps the password was changed. An answer that is older
    /// than `age_min` is not used again; the age keeps guesses from asking the server each time.
    pub fn doubt(&mut self, key: &LookupKey, now: Moment, age_min: Duration) {
        let is_old = |known: &Remembered| now.since(known.since) >= age_min;
        if self.users.peek(key).is_some_and(is_old) {
            self.users.pop(key);
        }
    }

    /// Forgets everything; what is being asked now will not be remembered.
    pub fn clear(&mut self) {
        self.generation += 1;
        self.users.clear();
        self.nobodies.clear();
    }

    fn forget(&mut self, key: &LookupKey) {
        self.users.pop(key);
        self.nobodies.pop(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn key(user: &str) -> LookupKey {
        LookupKey {
            database: "db".into(),
            auth_user: "auth".into(),
            query: "select".into(),
            user: user.into(),
        }
    }

    fn alice() -> Arc<Lookup> {
        Arc::new(Lookup::User {
            name: "alice".into(),
            verifier: None,
        })
    }

    fn at(seconds: u64) -> Moment {
        Moment::default().after(Duration::from_secs(seconds))
    }

    fn begin(answers: &mut Answers<u8>, who: u8, seconds: u64) -> Turn {
        answers.begin(&key("alice"), at(seconds), || who)
    }

    #[test]
    fn one_asks_and_the_others_wait_for_the_same_answer() {
        let mut answers = Answers::default();
        assert_eq!(begin(&mut answers, 1, 0), Turn::Ask);
        assert_eq!(begin(&mut answers, 2, 0), Turn::Wait);
        assert_eq!(begin(&mut answers, 3, 1), Turn::Wait);
        assert_eq!(answers.begin(&key("bob"), at(0), || 4), Turn::Ask);
        let told = answers.finish(&key("alice"), Some(alice()), at(1), TTL);
        assert_eq!(told, [1, 2, 3]);
        assert_eq!(begin(&mut answers, 5, 2), Turn::Known(alice()));
    }

    #[test]
    fn answers_are_used_until_their_time_is_over() {
        let mut answers = Answers::default();
        begin(&mut answers, 1, 0);
        answers.finish(&key("alice"), Some(alice()), at(5), TTL);
        assert_eq!(begin(&mut answers, 1, 14), Turn::Known(alice()));
        assert_eq!(begin(&mut answers, 1, 15), Turn::Ask);
    }

    #[test]
    fn failures_and_answers_without_time_are_not_kept() {
        for (answer, ttl) in [(None, TTL), (Some(alice()), Duration::ZERO)] {
            let mut answers = Answers::default();
            begin(&mut answers, 1, 0);
            assert_eq!(answers.finish(&key("alice"), answer, at(1), ttl), [1]);
            assert_eq!(begin(&mut answers, 1, 1), Turn::Ask);
        }
    }

    #[test]
    fn reload_forgets_what_is_known_and_what_is_being_asked() {
        let mut answers = Answers::default();
        begin(&mut answers, 1, 0);
        answers.clear();
        assert_eq!(begin(&mut answers, 2, 0), Turn::Wait);
        answers.finish(&key("alice"), Some(alice()), at(1), TTL);
        assert_eq!(begin(&mut answers, 3, 1), Turn::Ask);
        answers.finish(&key("alice"), Some(alice()), at(1), TTL);
        answers.clear();
        assert_eq!(begin(&mut answers, 4, 1), Turn::Ask);
    }

    #[test]
    fn failed_login_doubts_an_answer_but_not_a_fresh_one() {
        let mut answers = Answers::default();
        begin(&mut answers, 1, 0);
        answers.finish(&key("alice"), Some(alice()), at(0), TTL);
        answers.doubt(&key("alice"), at(1), Duration::from_secs(2));
        assert_eq!(begin(&mut answers, 1, 1), Turn::Known(alice()));
        answers.doubt(&key("alice"), at(2), Duration::from_secs(2));
        assert_eq!(begin(&mut answers, 1, 2), Turn::Ask);
    }

    #[test]
    fn names_that_are_nobodys_push_no_user_out() {
        let mut answers = Answers::default();
        begin(&mut answers, 1, 0);
        answers.finish(&key("alice"), Some(alice()), at(0), TTL);
        for number in 0..2 * REMEMBERED_MAX.get() {
            let key = key(&number.to_string());
            answers.begin(&key, at(0), || 1);
            answers.finish(&key, Some(Arc::new(Lookup::Nobody)), at(0), TTL);
        }
        assert_eq!(begin(&mut answers, 1, 1), Turn::Known(alice()));
        assert_eq!(answers.nobodies.len(), REMEMBERED_MAX.get());
    }
}
