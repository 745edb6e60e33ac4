//! The first batch of a lease, kept as the client sent it until it is answered: a server that refuses
//! a prepared statement before it has run anything can be asked again without the client noticing.
//!
//! ```text
//!  Armed ──Bind, Describe──► Keeping ──Sync──► Whole ──refused──► Again ──sent again──► Armed
//!    │                          │ └─refused─► Refused ──Sync──────────▲
//!    └──────────────────────────┴────────────────┴── a reply, anything else, too long ──► Over
//! ```
//!
//! A server refuses as soon as it has read the Bind, which may be before the client has sent the rest. Until
//! the Sync tells whether the batch can be sent again, the client is not told.

use crate::wire::frontend::{Bind, Execute, Target, TargetKind};
use crate::wire::tag::frontend as tag;
use crate::wire::{Header, Scanner, Step};

/// Longest batch that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// Largest buffer that stays for the next batch, in bytes.
const SPARE_BYTES_MAX: usize = 512;
/// How often one batch is sent again: only DDL that never rests needs more.
const AGAIN_MAX: u8 = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Over,
    Armed,
    /// A Query has come, and nothing else.
    Query,
    Keeping,
    Whole,
    /// The server has refused it and skips the rest, which is still to come.
    Refused,
    Again,
}

/// What becomes of the news that the server has refused the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The client gets it.
    Tell,
    /// It is held until it is known which: see [`Kept::is_waiting`].
    Hold,
    /// The client can do without: the batch is going to be sent again.
    Drop,
}

/// See the file's comment.
#[derive(Debug, Default)]
pub(super) struct Kept {
    state: State,
    bytes: Vec<u8>,
    /// How often it has been sent again.
    times: u8,
    /// The client has asked for its answers so far, and waits for them.
    is_flushed: bool,
}

impl Kept {
    /// A lease begins, outside of any transaction.
    pub(super) fn arm(&mut self) {
        self.state = State::Armed;
        self.times = 0;
        self.is_flushed = false;
        self.bytes.clear();
    }

    /// Whether what the client sends matters here.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Over
    }

    /// A message begins: its header as sent, and as much of its body as is at hand.
    pub(super) fn begin(&mut self, header: &[u8], body: &[u8]) {
        let tag = header.first().copied().unwrap_or_default();
        self.state = match (self.state, tag) {
            (State::Armed, tag::PARSE | tag::CLOSE | tag::FLUSH) => return,
            (State::Keeping, tag::FLUSH) => {
                self.is_flushed = true;
                State::Keeping
            }
            (State::Armed | State::Keeping, tag::BIND | tag::DESCRIBE)
            | (State::Keeping, tag::PARSE | tag::CLOSE | tag::EXECUTE) => State::Keeping,
            (State::Keeping, tag::SYNC) => State::Whole,
            (
                State::Refused,
                tag::BIND | tag::DESCRIBE | tag::PARSE | tag::CLOSE | tag::EXECUTE,
            ) => State::Refused,
            (State::Refused, tag::SYNC) if is_self_describing(&self.bytes) => State::Again,
            (State::Armed, tag::QUERY) => {
                self.state = State::Query;
                return;
            }
            _ => return self.forget(),
        };
        self.bytes.extend_from_slice(header);
        self.goes_on(body);
    }

    /// More of the body of the message begun last.
    pub(super) fn goes_on(&mut self, body: &[u8]) {
        if matches!(self.state, State::Keeping | State::Whole | State::Refused) {
            self.bytes.extend_from_slice(body);
            if self.bytes.len() > KEPT_BYTES_MAX {
                self.forget();
            }
        }
    }

    /// A part of a header has come. Behind a whole batch it is the next message's, and that batch cannot be sent again: it would be
    /// read as what is missing of the header.
    pub(super) fn header_begins(&mut self) {
        if self.state == State::Whole {
            self.forget();
        }
    }

    /// The Query that has come can be sent again as well: these are its header and body.
    pub(super) fn keep_query(&mut self, header: &[u8], body: &[u8]) {
        if self.state == State::Query {
            self.state = State::Whole;
            self.bytes.extend_from_slice(header);
            self.goes_on(body);
        }
    }

    /// The client has got a reply.
    #[inline]
    pub(super) fn answered(&mut self) {
        if self.state != State::Over {
            self.forget();
        }
    }

    /// The server has refused the batch because a statement is out of date.
    pub(super) fn refused(&mut self) -> News {
        if self.times >= AGAIN_MAX {
            return News::Tell;
        }
        match self.state {
            State::Keeping if !self.is_flushed => {
                self.state = State::Refused;
                News::Hold
            }
            State::Whole if is_self_describing(&self.bytes) => {
                self.state = State::Again;
                News::Drop
            }
            _ => News::Tell,
        }
    }

    /// Whether the news of the refusal is to be held.
    pub(super) fn is_waiting(&self) -> bool {
        self.state == State::Refused
    }

    /// Whether the batch is going to be sent again.
    pub(super) fn is_refused(&self) -> bool {
        self.state == State::Again
    }

    /// The batch, if it is to be sent again now.
    pub(super) fn take_again(&mut self) -> Option<Vec<u8>> {
        if self.state != State::Again {
            return None;
        }
        self.state = State::Armed;
        self.is_flushed = false;
        self.times += 1;
        Some(std::mem::take(&mut self.bytes))
    }

    /// Whether the batch has been sent before.
    pub(super) fn is_repeated(&self) -> bool {
        self.times > 0
    }

    /// As new, but for a short buffer.
    pub(super) fn end(&mut self) {
        self.forget();
        (self.times, self.is_flushed) = (0, false);
    }

    /// A short buffer stays for the next batch, so that the steady state needs no allocation.
    fn forget(&mut self) {
        self.state = State::Over;
        if self.bytes.capacity() > SPARE_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
    }
}

/// Whether the client can make sense of rows of any shape: for every Bind it asks what they are like, or for text.
/// One that relies on an older description must be told of the change.
fn is_self_describing(batch: &[u8]) -> bool {
    let (mut at, mut scanner) = (0, Scanner::default());
    // Statements described so far, and portals still to be described.
    let (mut described, mut opaque) = (Vec::new(), Vec::new());
    while let Ok(Step::Begin {
        header,
        range,
        body,
        ..
    }) = scanner.next(batch, &mut at, KEPT_BYTES_MAX)
    {
        let body = batch.get(body..range.end).unwrap_or_default();
        match (header.tag, Target::read(body), Bind::read(body)) {
            (tag::DESCRIBE, Ok(target), _) if target.kind == TargetKind::Statement => {
                described.push(target.name);
            }
            (tag::DESCRIBE, Ok(target), _) => opaque.retain(|portal| *portal != target.name),
            (tag::BIND, _, Ok(bind)) => {
                opaque.retain(|portal| *portal != bind.portal);
                let is_clear = bind.results_are_text() || described.contains(&bind.statement);
                opaque.extend((!is_clear).then_some(bind.portal));
            }
            (tag::BIND, _, Err(_)) => return false,
            (tag::EXECUTE, ..) => {
                // Rows ahead of their description.
                let is_opaque = |it: Execute<'_>| opaque.contains(&it.portal);
                if Execute::read(body).map_or(true, is_opaque) {
                    return false;
                }
            }
            _ => {}
        }
    }
    opaque.is_empty()
}

/// The same for a single Bind, as far as can be told from it and from the bytes `behind` it.
pub(super) fn is_flexible(bind: &Bind<'_>, is_whole: bool, behind: &[u8]) -> bool {
    if is_whole && bind.results_are_text() {
        return true;
    }
    let Some((bytes, body)) = behind.split_first_chunk() else {
        return false;
    };
    let is_portal =
        |target: Target<'_>| target.kind == TargetKind::Portal && target.name == bind.portal;
    match Header::parse(*bytes, KEPT_BYTES_MAX) {
        Ok(header) if header.tag == tag::DESCRIBE => body
            .get(..header.body_bytes)
            .is_some_and(|body| Target::read(body).is_ok_and(is_portal)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frontend as build;
    use crate::wire::message;

    fn feed(kept: &mut Kept, batch: &[u8]) {
        let (mut at, mut scanner) = (0, Scanner::default());
        while let Ok(Step::Begin { range, body, .. }) = scanner.next(batch, &mut at, usize::MAX) {
            kept.begin(&batch[range.start..body], &batch[body..range.end]);
        }
    }

    /// Bind whose result is to be binary.
    fn binary_bind() -> Vec<u8> {
        let mut out = Vec::new();
        message(&mut out, tag::BIND, |body| {
            body.extend_from_slice(b"\0s\0\0\0\0\0\0\x01\0\x01");
        });
        out
    }

    fn text_batch() -> Vec<u8> {
        let mut out = Vec::new();
        build::bind(&mut out, b"", b"s", &[Some(b"1")]);
        build::execute(&mut out, b"", 0);
        build::sync(&mut out);
        out
    }

    fn described(bind: &[u8], describes: bool) -> Vec<u8> {
        let mut out = bind.to_vec();
        if describes {
            message(&mut out, tag::DESCRIBE, |body| {
                body.extend_from_slice(b"P\0")
            });
        }
        build::execute(&mut out, b"", 0);
        build::sync(&mut out);
        out
    }

    #[test]
    fn refused_batch_is_sent_again_as_it_was() {
        let (mut kept, batch) = (Kept::default(), text_batch());
        kept.arm();
        feed(&mut kept, &batch);
        assert_eq!(kept.refused(), News::Drop);
        assert_eq!(kept.take_again(), Some(batch));
        assert_eq!(kept.take_again(), None);
    }

    #[test]
    fn batch_with_a_reply_is_not_sent_again() {
        let mut kept = Kept::default();
        kept.arm();
        feed(&mut kept, &text_batch());
        kept.answered();
        assert_eq!(kept.refused(), News::Tell);
    }

    #[test]
    fn only_a_single_whole_batch_is_sent_again() {
        let batch = text_batch();
        let mut query = Vec::new();
        build::query(&mut query, "select 1");
        let cases = [[&batch[..], &batch].concat(), [&query[..], &batch].concat()];
        for case in cases {
            let mut kept = Kept::default();
            kept.arm();
            feed(&mut kept, &case);
            assert_eq!(kept.refused(), News::Tell, "{case:?}");
        }
    }

    #[test]
    fn news_is_held_until_the_rest_of_the_batch_decides() {
        let cases = [
            (text_batch(), true),
            (described(&binary_bind(), true), true),
            (described(&binary_bind(), false), false),
        ];
        for (batch, is_sent_again) in cases {
            let bind_bytes = 1 + usize::from(batch[4]);
            let mut kept = Kept::default();
            kept.arm();
            feed(&mut kept, &batch[..bind_bytes]);
            assert_eq!(kept.refused(), News::Hold, "{batch:?}");
            feed(&mut kept, &batch[bind_bytes..batch.len() - 5]);
            assert!(kept.is_waiting());
            feed(&mut kept, &batch[batch.len() - 5..]);
            assert!(!kept.is_waiting());
            assert_eq!(kept.take_again(), is_sent_again.then_some(batch));
        }
    }

    #[test]
    fn client_that_waits_for_the_news_is_told() {
        let mut kept = Kept::default();
        kept.arm();
        feed(&mut kept, &binary_bind());
        assert_eq!(kept.refused(), News::Hold);
        let mut flush = Vec::new();
        message(&mut flush, tag::FLUSH, |_| {});
        feed(&mut kept, &flush);
        assert!(!kept.is_waiting() && !kept.is_open());
    }

    #[test]
    fn client_that_waits_already_is_told() {
        let mut flush = Vec::new();
        message(&mut flush, tag::FLUSH, |_| {});
        let mut kept = Kept::default();
        kept.arm();
        feed(&mut kept, &[binary_bind(), flush].concat());
        assert_eq!(kept.refused(), News::Tell);
    }

    #[test]
    fn client_that_relies_on_an_old_description_is_told() {
        for (describes, expected) in [(false, News::Tell), (true, News::Drop)] {
            let mut kept = Kept::default();
            kept.arm();
            feed(&mut kept, &described(&binary_bind(), describes));
            assert_eq!(kept.refused(), expected);
        }
    }

    #[test]
    fn description_of_something_else_does_not_count() {
        let describe = |target: &[u8]| {
            let mut out = Vec::new();
            message(&mut out, tag::DESCRIBE, |body| {
                body.extend_from_slice(target)
            });
            out
        };
        let execute = || {
            let mut out = Vec::new();
            build::execute(&mut out, b"", 0);
            out
        };
        let text_bind = |portal: &[u8]| {
            let mut out = Vec::new();
            build::bind(&mut out, portal, b"s", &[]);
            out
        };
        let bind = binary_bind();
        for (batch, expected) in [
            ([describe(b"Ss\0"), bind.clone()].concat(), true),
            ([describe(b"Sother\0"), bind.clone()].concat(), false),
            ([bind.clone(), describe(b"Ss\0")].concat(), false),
            ([bind.clone(), describe(b"Pother\0")].concat(), false),
            ([bind.clone(), describe(b"P\0")].concat(), true),
            (
                [bind.clone(), bind.clone(), describe(b"P\0")].concat(),
                true,
            ),
            ([bind.clone(), execute(), describe(b"P\0")].concat(), false),
            ([bind.clone(), describe(b"P\0"), execute()].concat(), true),
            ([bind.clone(), text_bind(b"other")].concat(), false),
            ([bind.clone(), text_bind(b"")].concat(), true),
        ] {
            assert_eq!(is_self_describing(&batch), expected, "{batch:?}");
        }
    }

    #[test]
    fn no_batch_is_sent_again_for_ever() {
        let mut kept = Kept::default();
        kept.arm();
        let mut times = 0;
        loop {
            feed(&mut kept, &text_batch());
            if kept.refused() == News::Tell {
                break;
            }
            times += 1;
            kept.take_again();
        }
        assert_eq!(times, AGAIN_MAX);
    }

    #[test]
    fn batch_too_long_is_not_kept() {
        let mut kept = Kept::default();
        kept.arm();
        kept.begin(b"B\0\0\0\0", &[0; KEPT_BYTES_MAX]);
        assert!(!kept.is_open() && kept.bytes.capacity() == 0);
    }

    #[test]
    fn bind_is_flexible_if_a_describe_of_its_portal_follows() {
        let bind = binary_bind();
        let bind = Bind::read(&bind[5..]).unwrap();
        let rest = described(&[], true);
        assert!(is_flexible(&bind, true, &rest));
        for cut in 0..rest.len() {
            let seen = &rest[..cut];
            assert_eq!(is_flexible(&bind, true, seen), cut >= 7, "{cut}");
        }
        assert!(!is_flexible(&bind, true, &described(&[], false)));
    }
}
