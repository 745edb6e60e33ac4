//! The FIFO of replies a server owes: the real protocol state of a pooler, and the only authority
//! on "may this server be released?".
//!
//! Every message that will be answered pushes what it is owed; every answer is held against the
//! front. An error in an extended-query batch makes the server skip everything up to the next
//! Sync (PostgreSQL, "Extended Query"), so it takes everything up to that Sync out of the FIFO.
//!
//! ```text
//!  copy:  None ──CopyInResponse──► In ──CopyDone/CopyFail (client), ErrorResponse──► None
//!  skip:  false ──ErrorResponse, no Sync owed──► true ──Sync (client)──► false
//! ```
//!
//! Messages that nobody can explain make the FIFO *doubtful*: they are passed on, but the server
//! is never released again, only closed.

use crate::wire::tag::backend;
use std::collections::VecDeque;

/// What an owed reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Parse: ParseComplete.
    Parse,
    /// Bind: BindComplete.
    Bind,
    /// Describe: RowDescription or NoData, after ParameterDescription for a statement.
    Describe,
    /// Execute: rows, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Close: CloseComplete.
    Close,
    /// Sync: ReadyForQuery.
    Sync,
    /// Query or FunctionCall: anything up to ReadyForQuery.
    Query,
    /// Not a reply: the place where the client ended COPY data it sent before the server asked.
    CopyEnd,
}

/// What happens to an owed reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The client gets it.
    Forward,
    /// The pooler asked for it, the client must not see it.
    Drop,
    /// The client asked for it and gets another in its place, but for the notices that come with it.
    Replace,
    /// The server was not asked; the pooler makes it up when its turn has come.
    Fabricate,
}

/// What one message from the server is.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply<C> {
    /// Whether the client gets the message.
    pub forward: bool,
    /// The reply that it completed.
    pub completed: Option<Kind>,
    /// What the completed reply had been waiting to confirm.
    pub confirmed: Option<C>,
    /// It is an error that ends the pooler's own settings query.
    pub own_failed: bool,
    /// What an error has undone, newest first.
    pub undone: Vec<C>,
    /// The mark of the request that an error has ended; 0 if it has none.
    pub failed_mark: u32,
    /// A Parse or Close is among what an error has ended: the unnamed statement may be any.
    pub lost_parse: bool,
}

impl<C> Reply<C> {
    /// A message that completes nothing.
    const fn passing(forward: bool) -> Reply<C> {
        Reply {
            forward,
            completed: None,
            confirmed: None,
            own_failed: false,
            undone: Vec::new(),
            failed_mark: 0,
            lost_parse: false,
        }
    }
}

/// A message that answers nothing the server was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message '{}' from server", char::from(*.0).escape_default())]
pub struct OutOfStep(pub u8);

struct Owed<C> {
    kind: Kind,
    fate: Fate,
    /// What an error should tell about the request; see [`Replies::push_marked`].
    mark: u32,
    change: Option<Box<C>>,
}

/// The replies one server owes. `C` is what a reply confirms or, if it fails, takes back.
pub struct Replies<C> {
    owed: VecDeque<Owed<C>>,
    copying_in: bool,
    skipping: bool,
    batch_open: bool,
    doubtful: bool,
    /// Whether a ReadyForQuery may come that the client can do without.
    unsure: bool,
    /// Syncs that the server will ignore because it copies.
    swallowed: usize,
    /// ReadyForQuery messages that may come for such Syncs after all, as the COPY has failed.
    stray: usize,
    /// Transaction status of the last ReadyForQuery.
    status: u8,
}

impl<C> Default for Replies<C> {
    fn default() -> Replies<C> {
        Replies {
            owed: VecDeque::new(),
            copying_in: false,
            skipping: false,
            batch_open: false,
            doubtful: false,
            unsure: false,
            swallowed: 0,
            stray: 0,
            status: b'I',
        }
    }
}

impl<C> Replies<C> {
    /// Whether nothing is owed and the server stands outside of any transaction: the one answer
    /// to "may this server be released?".
    pub fn is_clean(&self) -> bool {
        self.is_over() && !self.unsure
    }

    /// Whether the client needs this server no more; if it is not clean as well, nobody may have it.
    pub fn is_over(&self) -> bool {
        self.is_settled() && self.status == b'I' && !self.doubtful
    }

    /// Whether nothing is owed; the server may be inside a transaction.
    pub fn is_settled(&self) -> bool {
        self.owed.is_empty() && !self.copying_in && !self.skipping && !self.batch_open
    }

    /// Transaction status: `I` idle, `T` in a transaction, `E` in a failed one.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether the server skips messages up to the next Sync; they need not be sent.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether COPY data from the client has a taker: the server asked for it, or may be about to.
    pub fn takes_copy_data(&self) -> bool {
        self.copying_in || !self.owed.is_empty()
    }

    /// Whether the server waits for COPY data.
    pub fn is_copying_in(&self) -> bool {
        self.copying_in
    }

    /// How many replies are owed.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether no reply is owed.
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether something happened that the FIFO cannot account for.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// A message was sent (or, for [`Fate::Fabricate`], was not) whose reply is owed now.
    pub fn push(&mut self, kind: Kind, fate: Fate, change: Option<Box<C>>) {
        self.push_marked(kind, fate, change, 0);
    }

    /// As [`Replies::push`]; an error in place of the reply comes with `mark`.
    pub fn push_marked(&mut self, kind: Kind, fate: Fate, change: Option<Box<C>>, mark: u32) {
        match kind {
            Kind::Sync if self.copying_in => {
                self.swallowed += 1;
                return;
            }
            Kind::Sync => (self.skipping, self.batch_open) = (false, false),
            // Its ReadyForQuery tells what has become of an extended batch before it.
            Kind::Query => self.batch_open = false,
            // The server fails its COPY over any other message, in ways not followed here.
            _ if self.copying_in => self.doubtful = true,
            _ => self.batch_open = true,
        }
        if kind == Kind::Query && self.copying_in {
            self.doubtful = true;
        }
        self.owed.push_back(Owed {
            kind,
            fate,
            mark,
            change,
        });
    }

    /// What the Query at the front is to change, if it is one.
    #[inline]
    pub fn query_change(&mut self) -> Option<&mut C> {
        let owed = self.owed.front_mut()?;
        let change = owed.change.as_deref_mut()?;
        (owed.kind == Kind::Query).then_some(change)
    }

    /// What is waiting for the Describe at the front, if it is one.
    pub fn describe_change(&self) -> Option<&C> {
        let owed = self.owed.front()?;
        let change = owed.change.as_deref()?;
        (owed.kind == Kind::Describe).then_some(change)
    }

    /// Whether messages of the extended protocol have been sent without a Sync.
    pub fn is_batch_open(&self) -> bool {
        self.batch_open || self.skipping
    }

    /// After an error: keeps the end of the failed batch from the client, if nothing else is owed.
    pub fn swallow_end(&mut self) -> bool {
        match self.owed.make_contiguous() {
            [owed] if matches!(owed.kind, Kind::Sync | Kind::Query) => {
                owed.fate = Fate::Drop;
                true
            }
            _ => false,
        }
    }

    /// The client ended its COPY data.
    pub fn copy_ended(&mut self) {
        if self.copying_in {
            self.copying_in = false;
        } else if !self.owed.is_empty() {
            self.owed.push_back(Owed {
                kind: Kind::CopyEnd,
                fate: Fate::Forward,
                mark: 0,
                change: None,
            });
        }
    }

    /// The next reply to make up, if it is its turn, and what it confirms.
    pub fn pop_fabricated(&mut self) -> Option<(Kind, Option<C>)> {
        self.drop_copy_ends();
        match self.owed.front() {
            Some(owed) if owed.fate == Fate::Fabricate => self.pop(),
            _ => None,
        }
    }

    /// Takes account of a message from the server.
    ///
    /// # Errors
    /// [`OutOfStep`] if nothing owed explains it: the server cannot be followed any further.
    #[inline]
    pub fn reply(&mut self, tag: u8) -> Result<Reply<C>, OutOfStep> {
        self.drop_copy_ends();
        let Some((kind, fate)) = self.owed.front().map(|owed| (owed.kind, owed.fate)) else {
            return self.unasked(tag);
        };
        if fate == Fate::Fabricate {
            return Err(OutOfStep(tag));
        }
        let passing = Reply::passing(fate == Fate::Forward);
        use Kind::{Bind, Close, Describe, Execute, Parse, Query, Sync};
        match (tag, kind) {
            (backend::NOTICE_RESPONSE | backend::PARAMETER_STATUS, _) => Ok(Reply {
                forward: fate != Fate::Drop,
                ..passing
            }),
            (backend::NOTIFICATION_RESPONSE, _) => Ok(Reply {
                forward: true,
                ..passing
            }),
            (backend::ERROR_RESPONSE, _) => Ok(self.failed(kind, passing)),
            (backend::DATA_ROW | backend::COPY_DATA | backend::COPY_DONE, Execute | Query)
            | (backend::COPY_OUT_RESPONSE, Execute | Query)
            | (backend::ROW_DESCRIPTION | backend::FUNCTION_CALL_RESPONSE, Query)
            | (backend::COMMAND_COMPLETE | backend::EMPTY_QUERY_RESPONSE, Query)
            | (backend::PARAMETER_DESCRIPTION, Describe) => Ok(passing),
            (backend::COPY_IN_RESPONSE, Execute | Query) => {
                self.copy_in_begins();
                Ok(passing)
            }
            (backend::COPY_BOTH_RESPONSE, Execute | Query) => {
                self.doubtful = true;
                Ok(passing)
            }
            (backend::PARSE_COMPLETE, Parse)
            | (backend::BIND_COMPLETE, Bind)
            | (backend::CLOSE_COMPLETE, Close)
            | (backend::ROW_DESCRIPTION | backend::NO_DATA, Describe)
            | (backend::COMMAND_COMPLETE, Execute)
            | (backend::EMPTY_QUERY_RESPONSE | backend::PORTAL_SUSPENDED, Execute)
            | (backend::READY_FOR_QUERY, Sync | Query) => {
                if matches!(kind, Execute | Query) {
                    // Its COPY has read them all.
                    self.swallowed = 0;
                }
                let (completed, confirmed) =
                    self.pop().map_or((None, None), |(kind, c)| (Some(kind), c));
                Ok(Reply {
                    completed,
                    confirmed,
                    ..passing
                })
            }
            _ => Err(OutOfStep(tag)),
        }
    }

    /// A ReadyForQuery told this status.
    pub fn ready(&mut self, status: u8) {
        self.status = status;
        // A COPY that was never ended by the client has failed on the server before this.
        self.copying_in = false;
    }

    fn unasked(&mut self, tag: u8) -> Result<Reply<C>, OutOfStep> {
        match tag {
            backend::NOTICE_RESPONSE
            | backend::PARAMETER_STATUS
            | backend::NOTIFICATION_RESPONSE
            | backend::ERROR_RESPONSE => {
                // An error out of the blue announces the end of the connection.
                self.doubtful |= tag == backend::ERROR_RESPONSE;
                Ok(Reply::passing(true))
            }
            backend::READY_FOR_QUERY if self.stray > 0 => {
                self.stray -= 1;
                (self.skipping, self.batch_open) = (false, false);
                Ok(Reply::passing(true))
            }
            _ => Err(OutOfStep(tag)),
        }
    }

    fn failed(&mut self, kind: Kind, passing: Reply<C>) -> Reply<C> {
        self.copying_in = false;
        // What the pooler asks for and that changes nothing belongs to its settings; what prepares a
        // client's statement is the client's affair.
        let changes = self.owed.front().is_some_and(|owed| owed.change.is_some());
        let failed_mark = self.owed.front().map_or(0, |owed| owed.mark);
        let is_settings = kind != Kind::Close && !changes;
        let own_failed = !passing.forward && is_settings;
        if self.swallowed > 0 {
            // Whether the server read those Syncs before it failed cannot be known.
            self.unsure = true;
            self.stray = std::mem::take(&mut self.swallowed);
        }
        if own_failed || matches!(kind, Kind::Query | Kind::Sync) {
            return Reply {
                own_failed,
                failed_mark,
                ..passing
            };
        }
        let (mut undone, mut lost_parse) = (Vec::new(), false);
        while let Some(owed) = self.owed.front() {
            if owed.kind == Kind::Sync {
                break;
            }
            lost_parse |= matches!(owed.kind, Kind::Parse | Kind::Close);
            undone.extend(self.pop().and_then(|(_, change)| change));
        }
        undone.reverse();
        self.skipping = self.owed.is_empty();
        // An error of the pooler's own Parse or Close is the client's: its batch has failed.
        Reply {
            forward: true,
            undone,
            failed_mark,
            lost_parse,
            ..passing
        }
    }

    /// The front asks for COPY data. Syncs sent after it and before the end of the data are read,
    /// and ignored, while the server copies (PostgreSQL, "COPY Operations").
    fn copy_in_begins(&mut self) {
        let mut ended = false;
        let mut index = 1;
        while let Some(owed) = self.owed.get(index) {
            match owed.kind {
                Kind::CopyEnd => {
                    self.owed.remove(index);
                    ended = true;
                    break;
                }
                Kind::Sync => {
                    self.owed.remove(index);
                    self.swallowed += 1;
                }
                _ => {
                    self.doubtful = true;
                    index += 1;
                }
            }
        }
        self.copying_in = !ended;
        let mut behind = self.owed.iter().skip(1).map(|owed| owed.kind);
        if self
            .owed
            .front()
            .is_some_and(|owed| owed.kind == Kind::Execute)
        {
            // The Sync that was to end its batch is among those ignored.
            self.batch_open = !behind.any(|kind| matches!(kind, Kind::Sync | Kind::Query));
        }
    }

    fn drop_copy_ends(&mut self) {
        while self
            .owed
            .front()
            .is_some_and(|owed| owed.kind == Kind::CopyEnd)
        {
            self.owed.pop_front();
        }
    }

    fn pop(&mut self) -> Option<(Kind, Option<C>)> {
        let owed = self.owed.pop_front()?;
        Some((owed.kind, owed.change.map(|change| *change)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fifo = Replies<u32>;

    fn owing(kinds: &[Kind]) -> Fifo {
        let mut replies = Fifo::default();
        kinds
            .iter()
            .for_each(|kind| replies.push(*kind, Fate::Forward, None));
        replies
    }

    /// Feeds tags; a `Z` reports status `I`.
    fn feed(replies: &mut Fifo, tags: &str) {
        for tag in tags.bytes() {
            replies.reply(tag).unwrap_or_else(|error| panic!("{error}"));
            if tag == b'Z' {
                replies.ready(b'I');
            }
        }
    }

    #[test]
    fn fresh_server_is_clean() {
        assert!(Fifo::default().is_clean());
    }

    #[test]
    fn simple_query_is_clean_after_its_ready_for_query() {
        let mut replies = owing(&[Kind::Query]);
        feed(&mut replies, "TDDCNSTDC");
        assert!(!replies.is_clean());
        feed(&mut replies, "Z");
        assert!(replies.is_clean());
    }

    #[test]
    fn extended_batch_ticks_off_each_reply() {
        let mut replies = owing(&[
            Kind::Parse,
            Kind::Describe,
            Kind::Bind,
            Kind::Execute,
            Kind::Close,
            Kind::Sync,
        ]);
        feed(&mut replies, "1tT2DDs3Z");
        assert!(replies.is_clean());
    }

    #[test]
    fn batch_without_sync_is_never_clean() {
        let mut replies = owing(&[Kind::Parse]);
        feed(&mut replies, "1");
        assert!(!replies.is_clean());
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "Z");
        assert!(replies.is_clean());
    }

    #[test]
    fn query_ends_an_extended_batch() {
        let mut replies = owing(&[Kind::Parse, Kind::Query]);
        feed(&mut replies, "1CZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn open_transaction_is_not_clean() {
        let mut replies = owing(&[Kind::Query]);
        feed(&mut replies, "CZ");
        replies.ready(b'T');
        assert!(!replies.is_clean() && replies.is_settled());
        replies.ready(b'E');
        assert!(!replies.is_clean());
    }

    #[test]
    fn error_skips_to_the_next_sync_and_no_further() {
        let mut replies = owing(&[
            Kind::Parse,
            Kind::Bind,
            Kind::Query,
            Kind::Sync,
            Kind::Query,
        ]);
        feed(&mut replies, "EZ");
        assert!(!replies.is_clean());
        feed(&mut replies, "CZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn error_without_sync_skips_what_comes_until_one() {
        let mut replies = owing(&[Kind::Parse]);
        feed(&mut replies, "E");
        assert!(replies.is_skipping() && !replies.is_clean());
        replies.push(Kind::Sync, Fate::Forward, None);
        assert!(!replies.is_skipping());
        feed(&mut replies, "Z");
        assert!(replies.is_clean());
    }

    #[test]
    fn error_at_sync_is_followed_by_its_ready_for_query() {
        let mut replies = owing(&[Kind::Sync]);
        feed(&mut replies, "EZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn error_undoes_changes_newest_first() {
        let mut replies = Fifo::default();
        for change in 1..=3 {
            replies.push(Kind::Parse, Fate::Forward, Some(Box::new(change)));
        }
        replies.push(Kind::Sync, Fate::Forward, None);
        assert_eq!(replies.reply(b'1').unwrap().confirmed, Some(1));
        assert_eq!(replies.reply(b'E').unwrap().undone, [3, 2]);
    }

    #[test]
    fn failed_batch_can_be_kept_from_the_client_if_it_is_the_only_one() {
        let batch = |replies: &mut Fifo| {
            replies.push_marked(Kind::Bind, Fate::Forward, None, 7);
            replies.push(Kind::Execute, Fate::Forward, None);
            replies.push(Kind::Sync, Fate::Forward, None);
        };
        let mut replies = Fifo::default();
        batch(&mut replies);
        assert_eq!(replies.reply(b'E').unwrap().failed_mark, 7);
        assert!(replies.swallow_end());
        assert!(!replies.reply(b'Z').unwrap().forward && replies.is_clean());
        batch(&mut replies);
        batch(&mut replies);
        assert_eq!(replies.reply(b'E').unwrap().failed_mark, 7);
        assert!(!replies.swallow_end());
    }

    #[test]
    fn made_up_reply_waits_for_its_turn() {
        let mut replies = owing(&[Kind::Bind]);
        replies.push(Kind::Parse, Fate::Fabricate, Some(Box::new(9)));
        assert_eq!(replies.pop_fabricated(), None);
        feed(&mut replies, "2");
        assert_eq!(replies.pop_fabricated(), Some((Kind::Parse, Some(9))));
    }

    #[test]
    fn own_replies_are_dropped_and_notifications_are_not() {
        let mut replies = Fifo::default();
        replies.push(Kind::Query, Fate::Drop, None);
        assert!(!replies.reply(b'C').unwrap().forward);
        assert!(!replies.reply(b'N').unwrap().forward);
        assert!(replies.reply(b'A').unwrap().forward);
        assert!(replies.reply(b'E').unwrap().own_failed);
    }

    #[test]
    fn notices_of_a_replaced_reply_are_the_clients() {
        let mut replies = Fifo::default();
        replies.push(Kind::Parse, Fate::Replace, Some(Box::new(1)));
        assert!(replies.reply(b'N').unwrap().forward);
        assert!(!replies.reply(b'1').unwrap().forward);
        replies.push(Kind::Parse, Fate::Replace, Some(Box::new(1)));
        let reply = replies.reply(b'E').unwrap();
        assert!(reply.forward && !reply.own_failed);
    }

    #[test]
    fn failing_parse_of_ours_is_the_clients_error() {
        let mut replies = Fifo::default();
        replies.push(Kind::Parse, Fate::Drop, Some(Box::new(1)));
        replies.push(Kind::Bind, Fate::Forward, None);
        let reply = replies.reply(b'E').unwrap();
        assert!(reply.forward && !reply.own_failed);
        assert_eq!(reply.undone, [1]);
    }

    #[test]
    fn simple_copy_in_holds_the_server_until_the_client_ends_it() {
        let mut replies = owing(&[Kind::Query]);
        feed(&mut replies, "G");
        assert!(replies.is_copying_in());
        replies.copy_ended();
        feed(&mut replies, "CZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn sync_read_while_copying_gets_no_answer() {
        let mut replies = owing(&[
            Kind::Parse,
            Kind::Bind,
            Kind::Describe,
            Kind::Execute,
            Kind::Sync,
        ]);
        feed(&mut replies, "12nG");
        replies.push(Kind::Sync, Fate::Forward, None);
        replies.copy_ended();
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "CZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn copy_data_sent_ahead_of_the_request_is_accounted_for() {
        let mut replies = owing(&[Kind::Bind, Kind::Execute]);
        assert!(replies.takes_copy_data());
        replies.copy_ended();
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "2G");
        assert!(!replies.is_copying_in());
        feed(&mut replies, "CZ");
        assert!(replies.is_clean());
    }

    #[test]
    fn failed_copy_in_frees_the_server_without_a_copy_done() {
        let mut replies = owing(&[Kind::Query]);
        feed(&mut replies, "GEZ");
        assert!(replies.is_clean() && !replies.takes_copy_data());
    }

    #[test]
    fn copy_that_fails_before_it_reads_the_sync_is_answered_twice() {
        let mut replies = owing(&[Kind::Parse, Kind::Bind, Kind::Execute, Kind::Sync]);
        feed(&mut replies, "12GEZ");
        assert!(replies.is_settled() && !replies.is_clean());
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "Z");
        assert!(replies.is_settled());
    }

    #[test]
    fn failing_settings_are_the_poolers_failure_at_any_step() {
        for kind in [Kind::Parse, Kind::Bind, Kind::Execute] {
            let mut replies = Fifo::default();
            replies.push(kind, Fate::Drop, None);
            assert!(replies.reply(b'E').unwrap().own_failed, "{kind:?}");
        }
    }

    #[test]
    fn query_during_copy_in_is_doubtful_for_ever() {
        let mut replies = owing(&[Kind::Query]);
        feed(&mut replies, "G");
        replies.push(Kind::Query, Fate::Forward, None);
        feed(&mut replies, "EZCZ");
        assert!(replies.is_settled() && !replies.is_clean());
    }

    #[test]
    fn replies_to_nothing_are_out_of_step() {
        for tag in *b"12345CDGHITVZdcnst" {
            assert_eq!(Fifo::default().reply(tag), Err(OutOfStep(tag)));
        }
        for (kind, wrong) in [
            (Kind::Parse, b'2'),
            (Kind::Bind, b'Z'),
            (Kind::Sync, b'C'),
            (Kind::Query, b'1'),
        ] {
            assert!(owing(&[kind]).reply(wrong).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn unasked_error_makes_the_server_doubtful() {
        let mut replies = Fifo::default();
        assert!(replies.reply(b'E').unwrap().forward);
        assert!(!replies.is_clean());
    }

    #[test]
    fn copy_of_a_batch_whose_sync_was_ignored_is_not_over_before_the_next_sync() {
        let mut replies = owing(&[Kind::Parse, Kind::Bind, Kind::Execute, Kind::Sync]);
        feed(&mut replies, "12G");
        replies.copy_ended();
        feed(&mut replies, "C");
        assert!(!replies.is_settled(), "the batch is still open");
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "Z");
        assert!(replies.is_clean());
    }

    #[test]
    fn copy_that_fails_after_its_end_was_sent_leaves_a_server_nobody_may_have() {
        // Whether the server read the first Sync while copying, or answers it, cannot be known.
        let mut replies = owing(&[Kind::Parse, Kind::Bind, Kind::Execute, Kind::Sync]);
        feed(&mut replies, "12G");
        replies.copy_ended();
        replies.push(Kind::Sync, Fate::Forward, None);
        feed(&mut replies, "EZ");
        assert!(replies.is_over() && !replies.is_clean());
    }
}
