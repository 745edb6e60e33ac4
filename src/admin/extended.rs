//! Where a session stands in the extended query protocol: its statements and portals, and whether
//! it skips everything up to the next Sync after an error. Pure; running a portal is left to `serve`.
//!
//! ```text
//!            error                      Sync: portals go
//! taking ────────────► skipping   any ───────────────────► taking
//! ```
//! PostgreSQL documentation, 54.2.3 "Extended Query". All commands run outside of transactions, so
//! that a portal lives until the Sync at most.

use super::command::{self, Command};
use super::error::Refusal;
use super::parameters;
use super::table::{Format, Formats, Rows, row_description};
use crate::wire::frontend::{Bind, Execute, Parse, Target, TargetKind};
use crate::wire::tag::frontend as tag;
use crate::wire::{Reader, backend};
use std::collections::HashMap;

/// Prepared statements of one session.
const STATEMENTS_MAX: usize = 1024;
/// Portals of one session; each may hold the rows of a table.
const PORTALS_MAX: usize = 16;
/// Longest name of either, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// One session's statements and portals.
#[derive(Default)]
pub(super) struct Extended {
    statements: HashMap<Box<[u8]>, Prepared>,
    portals: HashMap<Box<[u8]>, Portal>,
    skipping: bool,
}

/// A prepared statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Prepared {
    /// `None` for an empty statement.
    command: Option<Command>,
    /// Types of its parameters.
    types: Vec<u32>,
}

/// A statement that is bound, and how far it has run.
pub(super) struct Portal {
    name: Box<[u8]>,
    pub(super) command: Option<Command>,
    pub(super) formats: Formats,
    pub(super) progress: Progress,
}

/// How far a portal has run.
pub(super) enum Progress {
    Fresh,
    /// These rows are left.
    Running(Rows),
    /// It had no rows to begin with.
    Spent,
}

/// What an Execute asks for. The portal is out of the session while it runs.
pub(super) struct Execution {
    pub(super) portal: Portal,
    /// Most rows wanted.
    pub(super) rows_max: usize,
}

impl Portal {
    /// The refusal of running it once more.
    pub(super) fn spent(&self) -> Refusal {
        let name = text(&self.name);
        Refusal::PortalSpent { name }
    }

    fn describe(&self, out: &mut Vec<u8>) {
        describe(self.command.as_ref(), &self.formats, out);
    }
}

impl Extended {
    /// Whether everything but Sync and Terminate is to be ignored.
    pub(super) fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Takes a Parse, Bind, Describe, Execute or Close, and appends the replies that can be given
    /// at once, errors included.
    pub(super) fn take(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Option<Execution> {
        if self.skipping {
            return None;
        }
        match self.step(tag, body, out) {
            Ok(execution) => execution,
            Err(refusal) => {
                self.fail(&refusal, out);
                None
            }
        }
    }

    /// Something has failed: says so, and skips to the next Sync.
    pub(super) fn fail(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        refusal.write(out);
        self.skipping = true;
    }

    /// Takes back a portal that has run.
    pub(super) fn put_back(&mut self, portal: Portal) {
        self.portals.insert(portal.name.clone(), portal);
    }

    /// A Sync: portals go, and messages count again.
    pub(super) fn sync(&mut self) {
        self.portals.clear();
        self.skipping = false;
    }

    /// A simple query: it ends what is unnamed, and all portals.
    pub(super) fn interrupted(&mut self) {
        self.statements.remove(&b""[..]);
        self.portals.clear();
    }

    fn step(
        &mut self,
        tag: u8,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Execution>, Refusal> {
        match tag {
            tag::PARSE => self.parse(&Parse::read(body)?, out)?,
            tag::BIND => self.bind(&Bind::read(body)?, out)?,
            tag::DESCRIBE => self.describe(&Target::read(body)?, out)?,
            tag::CLOSE => self.close(&Target::read(body)?, out),
            tag::EXECUTE => return self.execute(&Execute::read(body)?).map(Some),
            _ => {}
        }
        Ok(None)
    }

    fn parse(&mut self, parse: &Parse<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        check_name(parse.name)?;
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            let name = text(parse.name);
            return Err(Refusal::StatementExists { name });
        }
        check_room("prepared statements", self.statements.len(), STATEMENTS_MAX)?;
        let command = if command::is_empty(parse.query) {
            None
        } else {
            Some(Command::parse(parse.query)?)
        };
        let types = command.as_ref().map(Command::parameter_types);
        let mut types = types.unwrap_or_default();
        declare(&mut types, parse.param_types);
        let prepared = Prepared { command, types };
        self.statements.insert(parse.name.into(), prepared);
        backend::parse_complete(out);
        Ok(())
    }

    fn bind(&mut self, bind: &Bind<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        check_name(bind.portal)?;
        let prepared = self.statement(bind.statement)?;
        if !bind.portal.is_empty() && self.portals.contains_key(bind.portal) {
            let name = text(bind.portal);
            return Err(Refusal::PortalExists { name });
        }
        check_room("portals", self.portals.len(), PORTALS_MAX)?;
        let mut reader = Reader::new(bind.rest);
        let values = parameters::read(&mut reader, &prepared.types)?;
        let command = prepared.command.map(|command| command.bind(&values));
        let command = command.transpose()?;
        let columns = command
            .as_ref()
            .map_or(0, |command| command.columns().len());
        let portal = Portal {
            name: bind.portal.into(),
            command,
            formats: result_formats(&mut reader, columns)?,
            progress: Progress::Fresh,
        };
        self.put_back(portal);
        backend::bind_complete(out);
        Ok(())
    }

    fn describe(&mut self, target: &Target<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match target.kind {
            TargetKind::Statement => {
                let prepared = self.statement(target.name)?;
                backend::parameter_description(out, &prepared.types);
                describe(prepared.command.as_ref(), &Formats::TEXT, out);
            }
            TargetKind::Portal => {
                let portal = self.portals.get(target.name);
                portal.ok_or_else(|| no_portal(target.name))?.describe(out);
            }
        }
        Ok(())
    }

    fn close(&mut self, target: &Target<'_>, out: &mut Vec<u8>) {
        match target.kind {
            TargetKind::Statement => drop(self.statements.remove(target.name)),
            TargetKind::Portal => drop(self.portals.remove(target.name)),
        }
        backend::close_complete(out);
    }

    fn execute(&mut self, execute: &Execute<'_>) -> Result<Execution, Refusal> {
        let portal = self.portals.remove(execute.portal);
        let portal = portal.ok_or_else(|| no_portal(execute.portal))?;
        let rows_max = match usize::try_from(execute.rows_max) {
            Ok(limit) if limit > 0 => limit,
            _ => usize::MAX,
        };
        Ok(Execution { portal, rows_max })
    }

    fn statement(&self, name: &[u8]) -> Result<Prepared, Refusal> {
        let found = self.statements.get(name).cloned();
        found.ok_or_else(|| Refusal::NoStatement { name: text(name) })
    }
}

fn describe(command: Option<&Command>, formats: &Formats, out: &mut Vec<u8>) {
    let columns = command.map_or(&[][..], Command::columns);
    if columns.is_empty() {
        backend::no_data(out);
    } else {
        row_description(out, columns, formats);
    }
}

/// Puts the types that a Parse declares, where it does, in the place of ours.
fn declare(types: &mut [u32], declared: &[u8]) {
    let declared = declared.get(2..).unwrap_or_default();
    for (own, declared) in types.iter_mut().zip(declared.as_chunks().0) {
        match u32::from_be_bytes(*declared) {
            0 => {}
            declared => *own = declared,
        }
    }
}

/// Reads the last part of a Bind, the formats of the results.
fn result_formats(reader: &mut Reader<'_>, columns: usize) -> Result<Formats, Refusal> {
    let formats = reader.u16("count of result formats")?;
    let formats: Vec<u16> = (0..formats)
        .map(|_| reader.u16("result format"))
        .collect::<Result<_, _>>()?;
    reader.must_be_empty("Bind")?;
    match formats.as_slice() {
        [] => Ok(Formats::TEXT),
        [code] => format(*code).map(Formats::Alike),
        codes if codes.len() == columns => {
            let each: Result<_, _> = codes.iter().map(|code| format(*code)).collect();
            each.map(Formats::Each)
        }
        codes => Err(Refusal::FormatCount {
            formats: codes.len(),
            columns,
        }),
    }
}

fn format(code: u16) -> Result<Format, Refusal> {
    match code {
        0 => Ok(Format::Text),
        1 => Ok(Format::Binary),
        code => Err(Refusal::FormatCode { code }),
    }
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    let what = "bytes of a name";
    let limit = NAME_BYTES_MAX;
    if name.len() > limit {
        Err(Refusal::TooMuch { what, limit })
    } else {
        Ok(())
    }
}

fn check_room(what: &'static str, taken: usize, limit: usize) -> Result<(), Refusal> {
    if taken >= limit {
        Err(Refusal::TooMuch { what, limit })
    } else {
        Ok(())
    }
}

fn no_portal(name: &[u8]) -> Refusal {
    Refusal::NoPortal { name: text(name) }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::command::Show;
    use crate::wire::backend::{Fields, RowDescription};
    use crate::wire::{frontend, put_cstr};
    use bytes::BufMut;

    fn parse(name: &str, query: &str) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        put_cstr(&mut body, name);
        put_cstr(&mut body, query);
        body.put_u16(0);
        (b'P', body)
    }

    fn bind(portal: &str, statement: &str, formats: &[u16], parameters: &[&[u8]]) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        put_cstr(&mut body, portal);
        put_cstr(&mut body, statement);
        body.put_u16(1);
        body.put_u16(1);
        body.put_u16(parameters.len() as u16);
        for parameter in parameters {
            body.put_u32(parameter.len() as u32);
            body.put_slice(parameter);
        }
        body.put_u16(formats.len() as u16);
        formats.iter().for_each(|format| body.put_u16(*format));
        (b'B', body)
    }

    fn target(tag: u8, kind: u8, name: &str) -> (u8, Vec<u8>) {
        let mut body = vec![kind];
        put_cstr(&mut body, name);
        (tag, body)
    }

    fn execute(portal: &str, rows_max: i32) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        put_cstr(&mut body, portal);
        body.put_i32(rows_max);
        (b'E', body)
    }

    /// The replies by tag; errors as their SQLSTATE, executions as `!` and the row limit.
    fn replies(extended: &mut Extended, messages: &[(u8, Vec<u8>)]) -> String {
        let mut seen = Vec::new();
        for (tag, body) in messages {
            if *tag == b'S' {
                extended.sync();
                continue;
            }
            let mut out = Vec::new();
            if let Some(execution) = extended.take(*tag, body, &mut out) {
                seen.push(format!("!{}", execution.rows_max));
                extended.put_back(execution.portal);
            }
            let mut rest = &out[..];
            while let [tag, a, b, c, d, ..] = *rest {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                let body = &rest[5..=length];
                rest = &rest[length + 1..];
                seen.push(match tag {
                    b'E' => {
                        String::from_utf8(Fields::read(body).unwrap().get(b'C').unwrap().to_vec())
                            .unwrap()
                    }
                    tag => char::from(tag).to_string(),
                });
            }
        }
        seen.join(" ")
    }

    fn sync() -> (u8, Vec<u8>) {
        (b'S', Vec::new())
    }

    #[test]
    fn driver_prepares_describes_binds_and_executes() {
        let mut extended = Extended::default();
        let messages = [
            parse("s1", "SHOW POOLS"),
            target(b'D', b'S', "s1"),
            sync(),
            bind("", "s1", &[1], &[]),
            target(b'D', b'P', ""),
            execute("", 0),
            execute("", 5),
            target(b'C', b'S', "s1"),
            target(b'C', b'P', "never made"),
            sync(),
        ];
        let all = usize::MAX;
        assert_eq!(
            replies(&mut extended, &messages),
            format!("1 t T 2 T !{all} !5 3 3")
        );
        assert_eq!(replies(&mut extended, &[bind("", "s1", &[], &[])]), "26000");
    }

    #[test]
    fn described_portal_has_the_formats_it_was_bound_with() {
        let mut extended = Extended::default();
        replies(
            &mut extended,
            &[parse("", "SHOW LISTS"), bind("p", "", &[0, 1], &[])],
        );
        let mut out = Vec::new();
        let (tag, body) = target(b'D', b'P', "p");
        assert!(extended.take(tag, &body, &mut out).is_none());
        let columns = RowDescription::read(&out[5..]).unwrap();
        let formats: Vec<_> = columns.iter().map(|column| column.format).collect();
        assert_eq!(formats, [0, 1]);
    }

    #[test]
    fn after_an_error_everything_is_skipped_up_to_the_sync() {
        let mut extended = Extended::default();
        let messages = [
            parse("a", "nonsense"),
            parse("b", "SHOW POOLS"),
            bind("", "b", &[], &[]),
            execute("", 0),
            (b'P', Vec::new()),
        ];
        assert_eq!(replies(&mut extended, &messages), "08P01");
        assert!(extended.is_skipping());
        let after = [sync(), parse("b", "SHOW POOLS"), bind("", "b", &[], &[])];
        assert_eq!(replies(&mut extended, &after), "1 2");
        assert!(!extended.is_skipping());
    }

    #[test]
    fn portals_end_with_the_sync_and_statements_do_not() {
        let mut extended = Extended::default();
        let messages = [
            parse("", "SELECT 1"),
            bind("p", "", &[], &[]),
            sync(),
            execute("p", 0),
        ];
        assert_eq!(replies(&mut extended, &messages), "1 2 08P01");
        assert_eq!(
            replies(
                &mut extended,
                &[sync(), bind("p", "", &[], &[]), execute("p", 1)]
            ),
            "2 !1"
        );
    }

    #[test]
    fn simple_query_forgets_the_unnamed_statement_only() {
        let mut extended = Extended::default();
        replies(
            &mut extended,
            &[parse("", "SELECT 1"), parse("s", "SELECT 1")],
        );
        extended.interrupted();
        let messages = [bind("", "s", &[], &[]), bind("", "", &[], &[])];
        assert_eq!(replies(&mut extended, &messages), "2 26000");
    }

    #[test]
    fn empty_statement_and_commands_without_rows_have_no_data() {
        for text in ["", " ; ", "RELOAD", "SHOW HELP", "SET timezone = 'gmt'"] {
            let mut extended = Extended::default();
            let messages = [
                parse("", text),
                target(b'D', b'S', ""),
                bind("", "", &[], &[]),
                target(b'D', b'P', ""),
            ];
            assert_eq!(replies(&mut extended, &messages), "1 t n 2 n", "{text}");
        }
    }

    #[test]
    fn binds_are_refused_for_what_cannot_be() {
        // statement, formats, parameters of a Bind of the two columns of SHOW LISTS; the verdict
        type Row<'a> = (&'a str, &'a [u16], &'a [&'a [u8]], &'a str);
        let table: [Row<'_>; 7] = [
            ("s", &[], &[], "2"),
            ("s", &[0, 1], &[], "2"),
            ("s", &[0, 1, 1], &[], "08P01"),
            ("s", &[2], &[], "08P01"),
            ("s", &[0, 7], &[], "08P01"),
            ("s", &[], &[b"x"], "08P01"),
            ("other", &[], &[], "26000"),
        ];
        for (statement, formats, parameters, verdict) in table {
            let mut extended = Extended::default();
            replies(&mut extended, &[parse("s", "SHOW LISTS")]);
            let message = bind("", statement, formats, parameters);
            assert_eq!(
                replies(&mut extended, &[message]),
                verdict,
                "{formats:?} {parameters:?}"
            );
        }
    }

    #[test]
    fn names_are_taken_once_but_the_unnamed_again_and_again() {
        let mut extended = Extended::default();
        let messages = [
            parse("", "SELECT 1"),
            parse("", "RELOAD"),
            bind("", "", &[], &[]),
            bind("", "", &[], &[]),
        ];
        assert_eq!(replies(&mut extended, &messages), "1 1 2 2");
        let messages = [parse("s", "SELECT 1"), parse("s", "SELECT 1")];
        assert_eq!(replies(&mut extended, &messages), "1 42P05");
        let messages = [sync(), bind("p", "s", &[], &[]), bind("p", "s", &[], &[])];
        assert_eq!(replies(&mut extended, &messages), "2 08P01");
    }

    #[test]
    fn statements_portals_and_names_are_bounded() {
        let mut extended = Extended::default();
        for number in 0..STATEMENTS_MAX {
            assert_eq!(
                replies(&mut extended, &[parse(&format!("s{number}"), "SELECT 1")]),
                "1"
            );
        }
        assert_eq!(
            replies(&mut extended, &[parse("more", "SELECT 1"), sync()]),
            "08P01"
        );
        for number in 0..PORTALS_MAX {
            assert_eq!(
                replies(
                    &mut extended,
                    &[bind(&format!("p{number}"), "s0", &[], &[])]
                ),
                "2"
            );
        }
        assert_eq!(
            replies(&mut extended, &[bind("more", "s0", &[], &[]), sync()]),
            "08P01"
        );
        let mut extended = Extended::default();
        let fits = "n".repeat(NAME_BYTES_MAX);
        assert_eq!(
            replies(
                &mut extended,
                &[parse(&fits, "SELECT 1"), bind(&fits, &fits, &[], &[])]
            ),
            "1 2"
        );
        assert_eq!(
            replies(&mut extended, &[parse(&format!("{fits}n"), "SELECT 1")]),
            "08P01"
        );
    }

    #[test]
    fn every_truncation_and_every_surplus_is_refused() {
        let messages = [
            parse("s", "SELECT 1"),
            bind("p", "s", &[1], &[]),
            target(b'D', b'S', "s"),
            target(b'C', b'P', "p"),
            execute("p", 1),
        ];
        let refused = |tag: u8, body: &[u8]| {
            let mut extended = Extended::default();
            replies(&mut extended, &messages[..usize::from(tag != b'P')]);
            if tag == b'E' || tag == b'D' {
                replies(&mut extended, &messages[1..2]);
            }
            let mut out = Vec::new();
            extended.take(tag, body, &mut out).is_none() && extended.is_skipping()
        };
        for (tag, body) in &messages {
            assert!(!refused(*tag, body), "{}", char::from(*tag));
            for cut in 0..body.len() {
                assert!(
                    refused(*tag, &body[..cut]),
                    "{} cut at {cut}",
                    char::from(*tag)
                );
            }
            assert!(
                refused(*tag, &[&body[..], b"\0"].concat()),
                "{} and a byte",
                char::from(*tag)
            );
        }
    }

    #[test]
    fn messages_of_the_wire_builders_are_understood() {
        let mut out = Vec::new();
        frontend::parse(&mut out, b"s", b"SHOW CLIENTS", &[]);
        let mut extended = Extended::default();
        assert_eq!(replies(&mut extended, &[(b'P', out[5..].to_vec())]), "1");
        assert_eq!(
            extended.statement(b"s").unwrap().command,
            Some(Command::Show(Show::Clients))
        );
    }
}
