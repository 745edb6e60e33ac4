//! Recognises `PREPARE`, `EXECUTE` and `DEALLOCATE` in SQL text, and where they name a statement.
//!
//! This is not a parser of SQL: it knows tokens (quoting, comments, dollar quotes) well enough to tell
//! where statements begin and end, and the first words of these three. A text that it does not
//! understand is left alone.

use std::ops::Range;

/// Longest identifier of PostgreSQL, in bytes; longer ones are cut off there, which is left alone.
const NAME_BYTES_MAX: usize = 63;

/// What a statement does with a prepared statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `PREPARE name ...`
    Prepare,
    /// `EXECUTE name ...`, also within `EXPLAIN` and `CREATE TABLE ... AS`.
    Execute,
    /// `DEALLOCATE [PREPARE] name`
    Deallocate,
}

/// A statement that names a prepared statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What it does.
    pub verb: Verb,
    /// The name: case folded or quotes removed.
    pub name: Vec<u8>,
    /// Where in the text the name stands, quotes included.
    pub at: Range<usize>,
    /// Where the statement ends.
    pub end: usize,
}

/// The statements of a text that are not empty, in order; `None` for those that name nothing.
pub type Commands = Vec<Option<Command>>;

/// Whether a text may have a [`Command`] in it, or may be one for [`forgets`]: cheap, and wrong in one direction only.
pub fn may_concern(text: &[u8]) -> bool {
    may_begin(text) || text.split(|byte| *byte == b';').skip(1).any(may_begin)
}

/// Whether the statement at the beginning of `text` may be one.
pub fn may_begin(text: &[u8]) -> bool {
    let start = text.iter().position(|byte| !is_space(*byte));
    let Some(word) = start.and_then(|start| text.get(start..)) else {
        return false;
    };
    let Some(first) = word.first() else {
        return false;
    };
    match first | 0x20 {
        b'p' => has_prefix(word, b"prepare"),
        b'e' => has_prefix(word, b"execute") || has_prefix(word, b"explain"),
        b'd' => has_prefix(word, b"deallocate") || has_prefix(word, b"discard"),
        b'c' => has_prefix(word, b"create"),
        // A comment.
        b'-' | b'/' => true,
        _ => false,
    }
}

/// Whether a text has a `DEALLOCATE ALL` or `DISCARD ALL` in it: cheap, and not sure to know one with comments in it.
pub fn forgets(text: &[u8]) -> bool {
    let is_end = |byte: &u8| is_space(*byte) || *byte == 0;
    let mut statements = text.split(|byte| *byte == b';');
    statements.any(|statement| {
        let Some(start) = statement.iter().position(|byte| !is_space(*byte)) else {
            return false;
        };
        let statement = statement.get(start..).unwrap_or_default();
        if !matches!(statement, [b'd' | b'D', b'i' | b'I' | b'e' | b'E', ..]) {
            return false;
        }
        let mut words = statement.split(is_end).filter(|word| !word.is_empty());
        let mut next_is = |wanted: &[&str]| {
            let word = words.next().unwrap_or_default();
            let found = wanted
                .iter()
                .position(|it| word.eq_ignore_ascii_case(it.as_bytes()));
            found.map_or(usize::MAX, |at| at)
        };
        match next_is(&["discard", "deallocate"]) {
            0 => next_is(&["all"]) == 0,
            1 => match next_is(&["all", "prepare"]) {
                0 => true,
                1 => next_is(&["all"]) == 0,
                _ => false,
            },
            _ => false,
        }
    })
}

/// Whether the types of a text's result may be others each time: those of a FETCH are its cursor's.
pub fn may_vary(text: &[u8]) -> bool {
    let mut lexer = Lexer {
        text,
        at: 0,
        escapes: false,
    };
    // Behind a comment that does not end there is nothing to run.
    let Some(()) = lexer.skip_blanks() else {
        return false;
    };
    let word = text.get(lexer.at..).unwrap_or_default();
    let is_word = |known: &&[u8]| has_prefix(word, known);
    [&b"fetch"[..], b"execute", b"call"].iter().any(is_word)
}

/// As far as `text` goes: it may be cut off.
fn has_prefix(text: &[u8], word: &[u8]) -> bool {
    text.iter()
        .zip(word)
        .all(|(have, want)| have.eq_ignore_ascii_case(want))
}

/// Reads a text; `None` if it is not understood. `escapes`: backslashes count in all strings
/// (`standard_conforming_strings` is off).
pub fn commands(text: &[u8], escapes: bool) -> Option<Commands> {
    let mut lexer = Lexer {
        text,
        at: 0,
        escapes,
    };
    let mut commands = Vec::new();
    let mut tokens = Vec::new();
    loop {
        match lexer.next()? {
            Some(Token {
                kind: Kind::Semicolon,
                range,
            }) => finish(text, &mut tokens, range.start, &mut commands)?,
            Some(token) => tokens.push(token),
            None => {
                finish(text, &mut tokens, text.len(), &mut commands)?;
                return Some(commands);
            }
        }
    }
}

/// One statement has ended; `None` if what it is cannot be told.
fn finish(text: &[u8], tokens: &mut Vec<Token>, end: usize, to: &mut Commands) -> Option<()> {
    let words = Words {
        text,
        tokens: std::mem::take(tokens),
    };
    if !words.tokens.is_empty() {
        to.push(words.command(end)?);
    }
    Some(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    Quoted,
    String,
    Semicolon,
    Open,
    Close,
    Other,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
}

/// The tokens of one statement.
struct Words<'a> {
    text: &'a [u8],
    tokens: Vec<Token>,
}

impl Words<'_> {
    fn is(&self, index: usize, word: &str) -> bool {
        self.tokens.get(index).is_some_and(|token| {
            token.kind == Kind::Word && self.bytes(token).eq_ignore_ascii_case(word.as_bytes())
        })
    }

    fn bytes(&self, token: &Token) -> &[u8] {
        self.text.get(token.range.clone()).unwrap_or_default()
    }

    /// `None`: not understood. `Some(None)`: names nothing.
    fn command(&self, end: usize) -> Option<Option<Command>> {
        let found = if self.is(0, "prepare") {
            // PREPARE TRANSACTION 'id' is something else.
            let is_two_phase = self.kind(2) == Some(Kind::String);
            (!is_two_phase).then_some((Verb::Prepare, 1))
        } else if self.is(0, "execute") {
            Some((Verb::Execute, 1))
        } else if self.is(0, "deallocate") {
            let index = if self.is(1, "prepare") && self.tokens.len() > 2 {
                2
            } else {
                1
            };
            (!self.is(index, "all")).then_some((Verb::Deallocate, index))
        } else if self.is(0, "explain") {
            let index = self.explained();
            self.is(index, "execute")
                .then_some((Verb::Execute, index + 1))
        } else if self.is(0, "create") {
            if (0..self.tokens.len()).any(|index| self.is(index, "atomic")) {
                // A function's body has semicolons of its own.
                return None;
            }
            self.created().map(|index| (Verb::Execute, index))
        } else {
            None
        };
        let Some((verb, index)) = found else {
            return Some(None);
        };
        let token = self.tokens.get(index)?;
        let name = self.name(token)?;
        if self.runs_into_quotes(index) {
            return None;
        }
        Some(Some(Command {
            verb,
            name,
            at: token.range.clone(),
            end,
        }))
    }

    /// `s"t"`, a syntax error: with quotes around `s` it would be a name.
    fn runs_into_quotes(&self, index: usize) -> bool {
        match self.tokens.get(index..index + 2) {
            Some([name, next]) => next.kind == Kind::Quoted && next.range.start == name.range.end,
            _ => false,
        }
    }

    fn kind(&self, index: usize) -> Option<Kind> {
        self.tokens.get(index).map(|token| token.kind)
    }

    /// The first word behind EXPLAIN and its options.
    fn explained(&self) -> usize {
        let mut index = 1;
        if self.kind(index) == Some(Kind::Open) {
            let close = (index..self.tokens.len()).find(|at| self.kind(*at) == Some(Kind::Close));
            return close.map_or(index, |close| close + 1);
        }
        while ["analyze", "analyse", "verbose"]
            .iter()
            .any(|word| self.is(index, word))
        {
            index += 1;
        }
        index
    }

    /// The name in `CREATE TABLE ... AS EXECUTE name`.
    fn created(&self) -> Option<usize> {
        let found = (1..self.tokens.len())
            .find(|index| self.is(*index, "as") && self.is(index + 1, "execute"))?;
        Some(found + 2)
    }

    /// The name that a token stands for.
    fn name(&self, token: &Token) -> Option<Vec<u8>> {
        let bytes = self.bytes(token);
        let name = match token.kind {
            Kind::Word if bytes.is_ascii() => bytes.to_ascii_lowercase(),
            Kind::Quoted => unquoted(bytes.get(1..bytes.len().checked_sub(1)?)?),
            _ => return None,
        };
        (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then_some(name)
    }
}

/// A quoted identifier's own text: `""` is `"`.
fn unquoted(inner: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        name.push(*byte);
        if *byte == b'"' {
            bytes.next();
        }
    }
    name
}

/// An identifier as a quoted one.
pub fn quoted(name: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in name {
        out.push(*byte);
        if *byte == b'"' {
            out.push(b'"');
        }
    }
    out.push(b'"');
    out
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    escapes: bool,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    /// The next token; `Some(None)` at the end, `None` if a quote or comment does not end.
    fn next(&mut self) -> Option<Option<Token>> {
        self.skip_blanks()?;
        let start = self.at;
        let Some(first) = self.peek(0) else {
            return Some(None);
        };
        self.at += 1;
        let kind = match first {
            b'\'' => {
                self.string(self.escapes)?;
                Kind::String
            }
            b'"' => {
                self.quoted()?;
                Kind::Quoted
            }
            b'$' => {
                self.dollar()?;
                Kind::Other
            }
            b';' => Kind::Semicolon,
            b'(' => Kind::Open,
            b')' => Kind::Close,
            byte if is_word_start(byte) => return self.word(start).map(Some),
            _ => Kind::Other,
        };
        let range = start..self.at;
        Some(Some(Token { kind, range }))
    }

    fn word(&mut self, start: usize) -> Option<Token> {
        while self.peek(0).is_some_and(is_word_part) {
            self.at += 1;
        }
        let is_escaped = matches!(self.text.get(start..self.at), Some([b'e' | b'E']));
        let is_unicode = matches!(self.text.get(start..self.at), Some([b'u' | b'U']));
        match self.peek(0) {
            Some(b'\'') if is_escaped => {
                self.at += 1;
                self.string(true)?;
            }
            // An identifier with escapes of its own: left alone.
            Some(b'&') if is_unicode && self.peek(1) == Some(b'"') => return None,
            _ => {
                let range = start..self.at;
                return Some(Token {
                    kind: Kind::Word,
                    range,
                });
            }
        }
        let range = start..self.at;
        Some(Token {
            kind: Kind::String,
            range,
        })
    }

    fn skip_blanks(&mut self) -> Option<()> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(byte), _) if is_space(byte) => self.at += 1,
                (Some(b'-'), Some(b'-')) => {
                    while self
                        .peek(0)
                        .is_some_and(|byte| byte != b'\n' && byte != b'\r')
                    {
                        self.at += 1;
                    }
                }
                (Some(b'/'), Some(b'*')) => self.comment()?,
                _ => return Some(()),
            }
        }
    }

    /// A comment of this kind may have others inside.
    fn comment(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0)?, self.peek(1)) {
                (b'/', Some(b'*')) => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', Some(b'/')) => (depth, self.at) = (depth.checked_sub(1)?, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// Behind the opening quote. A doubled quote reads as two strings, which is as good.
    fn string(&mut self, escapes: bool) -> Option<()> {
        loop {
            match self.peek(0)? {
                b'\\' if escapes => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }

    /// Behind the opening quote.
    fn quoted(&mut self) -> Option<()> {
        loop {
            let byte = self.peek(0)?;
            self.at += 1;
            if byte == b'"' {
                if self.peek(0) != Some(b'"') {
                    return Some(());
                }
                self.at += 1;
            }
        }
    }

    /// Behind a `$`: a quoted text, a parameter, or neither.
    fn dollar(&mut self) -> Option<()> {
        let start = self.at - 1;
        let tag = self.text.get(self.at..)?;
        let bytes = tag
            .iter()
            .position(|byte| !is_word_part(*byte) || *byte == b'$');
        let Some(bytes) = bytes.filter(|at| tag.get(*at) == Some(&b'$')) else {
            return Some(());
        };
        if tag.first().is_some_and(u8::is_ascii_digit) {
            return Some(());
        }
        self.at += bytes + 1;
        let delimiter = self.text.get(start..self.at)?;
        let rest = self.text.get(self.at..)?;
        let end = rest
            .windows(delimiter.len())
            .position(|window| window == delimiter)?;
        self.at += end + delimiter.len();
        Some(())
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word_part(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_makes_all_statements_go_is_known() {
        for text in [
            "discard all",
            " DISCARD  All ;",
            "select 1;\ndeallocate prepare all\0",
            "deallocate all",
        ] {
            assert!(forgets(text.as_bytes()), "{text}");
        }
        for text in [
            "discard plans",
            "deallocate s",
            "select 'discard all'",
            "d",
            "",
        ] {
            assert!(!forgets(text.as_bytes()), "{text}");
        }
    }

    /// Verb, name and statement number of what is found.
    fn found(text: &str) -> Vec<(usize, Verb, String)> {
        let commands = commands(text.as_bytes(), false).unwrap_or_default();
        let named = commands.into_iter().enumerate();
        named
            .filter_map(|(index, command)| {
                let command = command?;
                Some((
                    index,
                    command.verb,
                    String::from_utf8(command.name).unwrap(),
                ))
            })
            .collect()
    }

    #[test]
    fn names_are_found_in_every_spelling() {
        use Verb::{Deallocate, Execute, Prepare};
        for (text, verb, name) in [
            ("prepare s as select 1", Prepare, "s"),
            ("PREPARE S(int, text) AS SELECT $1", Prepare, "s"),
            ("prepare\n\"A \"\"b\" as select 1;", Prepare, "A \"b"),
            ("/* a /* b */ ; */ execute -- x;\n s (1)", Execute, "s"),
            ("EXECUTE\"s\"", Execute, "s"),
            ("explain execute s", Execute, "s"),
            ("explain analyze verbose execute s(1)", Execute, "s"),
            ("explain (analyze, format json) execute s", Execute, "s"),
            ("create temp table x as execute s(1)", Execute, "s"),
            ("deallocate s", Deallocate, "s"),
            ("deallocate prepare s", Deallocate, "s"),
            ("deallocate prepare", Deallocate, "prepare"),
        ] {
            assert!(may_concern(text.as_bytes()), "{text}");
            assert_eq!(found(text), [(0, verb, name.to_owned())], "{text}");
        }
    }

    #[test]
    fn statements_are_counted_and_quotes_hide_what_is_in_them() {
        use Verb::{Deallocate, Execute, Prepare};
        let text = "; select ';execute a', E'\\';execute b', $x$;execute c$x$, $1; \
                    prepare s as select \";execute d\"; execute s; ; deallocate s";
        let expected = [(1, Prepare), (2, Execute), (3, Deallocate)];
        let expected = expected.map(|(index, verb)| (index, verb, "s".to_owned()));
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_only_looks_alike_names_nothing() {
        for text in [
            "",
            ";;",
            "select 1",
            "prepare transaction 'x'",
            "deallocate all",
            "deallocate prepare all",
            "create function f() returns int language sql as 'execute s'",
            "create trigger t before insert on x execute function f()",
            "explain select 1",
            "executed",
            "select 1; -- execute s",
        ] {
            assert_eq!(found(text), [], "{text}");
            assert!(commands(text.as_bytes(), false).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let long = format!("execute {}", "x".repeat(64));
        for text in [
            "execute 'x",
            "execute s /* ",
            "prepare",
            "execute 1",
            "execute U&\"x\"",
            "execute s\"t\"",
            "execute größe",
            "select $$ ; execute s",
            "create function f() returns int begin atomic select 1; execute s; end",
            &long,
        ] {
            assert_eq!(commands(text.as_bytes(), false), None, "{text}");
        }
    }

    #[test]
    fn backslashes_count_where_strings_have_escapes() {
        let text = b"select '\\'; execute s; --'";
        assert_eq!(commands(text, true).unwrap().len(), 1);
        assert_eq!(commands(text, false).unwrap().len(), 2);
    }

    #[test]
    fn ordinary_texts_are_passed_over_quickly() {
        for text in [
            "select 1",
            "begin",
            "commit",
            "update t set a = 'x;y'",
            "declare c cursor for select 1",
        ] {
            assert!(!may_concern(text.as_bytes()), "{text}");
        }
        assert!(may_concern(b"select 1; execute s"));
        assert!(may_concern(b"  PREP"), "cut off");
    }

    #[test]
    fn names_survive_quoting() {
        for name in [&b"s"[..], b"a\"b", b"\"\"", b"A B"] {
            let text = [b"execute ", &*quoted(name)].concat();
            let commands = commands(&text, false).unwrap();
            assert_eq!(commands[0].as_ref().unwrap().name, name);
        }
    }

    #[test]
    fn no_text_makes_it_panic_or_hang() {
        let pieces = [
            "'", "\"", "$a$", "/*", "*/", "--", "\n", ";", "execute ", "e", "\\", "(", ")", "$",
            "u&\"",
        ];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.extend_from_slice(pieces[(state >> 33) as usize % pieces.len()].as_bytes());
            }
            if let Some(commands) = commands(&text, state.is_multiple_of(2)) {
                for command in commands.into_iter().flatten() {
                    assert!(command.at.end <= command.end && command.end <= text.len());
                }
            }
        }
    }
}
