//! PgBouncer's `userlist.txt` (its option `auth_file`).
//!
//! ```text
//! ; a comment
//! "name" "secret" anything else is ignored
//! "with ""quotes""" "md5..."
//! ```
//! It is all or nothing, or read as PgBouncer reads it, which stops at the first broken line and keeps what it has read.
//! Unlike in PgBouncer, a quoted text ends on its own line.

use std::collections::HashMap;
use std::fmt;

use thiserror::Error;

use super::PASSWORD_BYTES_MAX;
use crate::base::Secret;
use crate::base::limit::USER_NAME_BYTES_MAX;

/// The users of one file. A secret may be empty: such a user exists but matches no password.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UserList {
    users: HashMap<String, Secret>,
    duplicates: Vec<DuplicateUser>,
}

/// A user who stands in the file more than once: the last line counts. Worth a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateUser {
    /// The user's name.
    pub name: String,
    /// The later line, counted from 1.
    pub line: usize,
}

/// Every broken line of a file, in order; at least one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct UserListError {
    /// The lines.
    pub lines: Vec<BrokenLine>,
}

/// One broken line; says nothing of its content, which may be a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {fault}")]
pub struct BrokenLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: LineFault,
}

/// What can be wrong with a line.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LineFault {
    /// The line does not begin with a quote.
    #[error("user name must stand in double quotes")]
    NameUnquoted,
    /// No quote after the name's opening one.
    #[error("quotes around the user name are not closed")]
    NameUnclosed,
    /// A name of no bytes.
    #[error("user name is empty")]
    NameEmpty,
    /// A name above [`USER_NAME_BYTES_MAX`].
    #[error("user name is longer than {USER_NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// A name that is not UTF-8.
    #[error("user name is not UTF-8")]
    NameNotUtf8,
    /// No quoted secret after the name.
    #[error("secret in double quotes is missing")]
    SecretUnquoted,
    /// No quote after the secret's opening one.
    #[error("quotes around the secret are not closed")]
    SecretUnclosed,
    /// A secret above [`PASSWORD_BYTES_MAX`].
    #[error("secret is longer than {PASSWORD_BYTES_MAX} bytes")]
    SecretTooLong,
    /// A zero byte, which no name or secret of the protocol can hold.
    #[error("name or secret holds a zero byte")]
    ZeroByte,
}

/// The line that gives `name` this `secret`, without a line end.
pub fn user_line(name: &str, secret: &str) -> String {
    let quoted = |text: &str| text.replace('"', "\"\"");
    format!("\"{}\" \"{}\"", quoted(name), quoted(secret))
}

impl UserList {
    /// Reads a whole file.
    ///
    /// # Errors
    /// If any line is broken; the error lists them all.
    pub fn parse(text: &[u8]) -> Result<UserList, UserListError> {
        let (list, broken) = UserList::parse_while(text, |_| true);
        if broken.is_empty() {
            Ok(list)
        } else {
            Err(UserListError { lines: broken })
        }
    }

    /// Reads a file as PgBouncer does, up to the first broken line. A line with a name that nobody can log in with, which is
    /// no fault to PgBouncer, is passed over. Gives what was left out as well.
    pub fn parse_up_to_fault(text: &[u8]) -> (UserList, Vec<BrokenLine>) {
        UserList::parse_while(text, |fault| {
            matches!(fault, LineFault::NameEmpty | LineFault::NameNotUtf8)
        })
    }

    /// The users of whole lines and the broken lines, up to the first whose fault does not let it go on.
    fn parse_while(
        text: &[u8],
        goes_on: impl Fn(LineFault) -> bool,
    ) -> (UserList, Vec<BrokenLine>) {
        let mut list = UserList::default();
        let mut broken = Vec::new();
        for (line, content) in (1..).zip(text.split(|&b| b == b'\n')) {
            match parse_line(content) {
                Ok(None) => {}
                Ok(Some((name, secret))) => list.add(line, name, secret),
                Err(fault) => {
                    broken.push(BrokenLine { line, fault });
                    if !goes_on(fault) {
                        break;
                    }
                }
            }
        }
        (list, broken)
    }

    /// The secret of `name`, if the file has the user.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.users.get(name)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The users that stand in the file more than once, in the order of their later lines.
    pub fn duplicates(&self) -> &[DuplicateUser] {
        &self.duplicates
    }

    /// All users with their secrets, in no order.
    pub fn into_users(self) -> impl Iterator<Item = (String, Secret)> {
        self.users.into_iter()
    }

    fn add(&mut self, line: usize, name: String, secret: Secret) {
        if self.users.insert(name.clone(), secret).is_some() {
            self.duplicates.push(DuplicateUser { name, line });
        }
    }
}

impl fmt::Display for UserListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken user list")?;
        for (at, line) in self.lines.iter().enumerate() {
            write!(f, "{} {line}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// `None` for a blank line and for a comment.
fn parse_line(line: &[u8]) -> Result<Option<(String, Secret)>, LineFault> {
    let line = line.trim_ascii();
    let rest = match line {
        [] | [b';', ..] => return Ok(None),
        [b'"', rest @ ..] => rest,
        _ => return Err(LineFault::NameUnquoted),
    };
    let (name, rest) = take_quoted(rest).ok_or(LineFault::NameUnclosed)?;
    let [b'"', rest @ ..] = rest.trim_ascii_start() else {
        return Err(LineFault::SecretUnquoted);
    };
    let (secret, _ignored) = take_quoted(rest).ok_or(LineFault::SecretUnclosed)?;
    let secret = Secret::new(secret);
    if name.contains(&0) || secret.expose().contains(&0) {
        return Err(LineFault::ZeroByte);
    }
    if secret.expose().len() > PASSWORD_BYTES_MAX {
        return Err(LineFault::SecretTooLong);
    }
    Ok(Some((checked_name(name)?, secret)))
}

fn checked_name(name: Vec<u8>) -> Result<String, LineFault> {
    match name.len() {
        0 => Err(LineFault::NameEmpty),
        1..=USER_NAME_BYTES_MAX => String::from_utf8(name).map_err(|_| LineFault::NameNotUtf8),
        _ => Err(LineFault::NameTooLong),
    }
}

/// The text up to the closing quote, with doubled quotes made single, and what follows. `None` if
/// there is no closing quote.
fn take_quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut unquoted = Vec::new();
    let mut rest = text;
    loop {
        let quote = rest.iter().position(|&b| b == b'"')?;
        let (part, tail) = rest.split_at_checked(quote)?;
        unquoted.extend_from_slice(part);
        match tail {
            [b'"', b'"', after @ ..] => {
                unquoted.push(b'"');
                rest = after;
            }
            [_, after @ ..] => return Some((unquoted, after)),
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> UserList {
        UserList::parse(text.as_bytes()).unwrap()
    }

    fn fault(text: &[u8]) -> LineFault {
        let lines = UserList::parse(text).unwrap_err().lines;
        assert_eq!(
            (lines.len(), lines[0].line),
            (1, 1),
            "{}",
            text.escape_ascii()
        );
        lines[0].fault
    }

    #[test]
    fn good_lines_are_read() {
        let cases = [
            (r#""bob" "pw""#, "bob", "pw"),
            (r#""bob" "pw" and more "of it"#, "bob", "pw"),
            ("  \"bob\"\t \"pw\"\r", "bob", "pw"),
            (r#""bo""b" "p""w""""#, "bo\"b", "p\"w\""),
            (r#""bob" """#, "bob", ""),
            (r#""bob" ";#\n""#, "bob", ";#\\n"),
            (r#""böb" "pw ""#, "böb", "pw "),
        ];
        for (text, name, secret) in cases {
            assert_eq!(
                parsed(text).secret(name),
                Some(&Secret::new(secret)),
                "{text}"
            );
        }
    }

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let list = parsed("; \"x\" \"y\"\n\n \t\r\n  ; more\n\"a\" \"b\"\n");
        assert_eq!((list.len(), list.is_empty()), (1, false));
        assert!(parsed("").is_empty());
    }

    #[test]
    fn each_fault_is_named() {
        let long_name = format!("\"{}\" \"x\"", "n".repeat(USER_NAME_BYTES_MAX + 1));
        let long_secret = format!("\"x\" \"{}\"", "s".repeat(PASSWORD_BYTES_MAX + 1));
        let cases: [(&[u8], LineFault); 13] = [
            (b"bob \"pw\"", LineFault::NameUnquoted),
            (b"# comment", LineFault::NameUnquoted),
            (b"'bob' 'pw'", LineFault::NameUnquoted),
            (b"\"bob", LineFault::NameUnclosed),
            (b"\"bob\"\"", LineFault::NameUnclosed),
            (b"\"\" \"pw\"", LineFault::NameEmpty),
            (b"\"b\xffb\" \"pw\"", LineFault::NameNotUtf8),
            (b"\"bob\"", LineFault::SecretUnquoted),
            (b"\"bob\" pw", LineFault::SecretUnquoted),
            (b"\"bob\" \"pw", LineFault::SecretUnclosed),
            (b"\"bob\" \"p\0w\"", LineFault::ZeroByte),
            (long_name.as_bytes(), LineFault::NameTooLong),
            (long_secret.as_bytes(), LineFault::SecretTooLong),
        ];
        for (text, want) in cases {
            assert_eq!(fault(text), want, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn names_and_secrets_at_their_limit_are_accepted() {
        let name = "n".repeat(USER_NAME_BYTES_MAX);
        let secret = "s".repeat(PASSWORD_BYTES_MAX);
        let list = parsed(&format!("\"{name}\" \"{secret}\""));
        assert_eq!(list.secret(&name), Some(&Secret::new(secret)));
    }

    #[test]
    fn one_broken_line_refuses_the_file_and_all_are_listed() {
        let text = b"\"a\" \"b\"\nbroken\n; fine\n\"c\"\n";
        let error = UserList::parse(text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "broken user list: line 2: user name must stand in double quotes; \
             line 4: secret in double quotes is missing"
        );
    }

    #[test]
    fn users_before_the_first_broken_line_can_be_had() {
        let text = b"\"a\" \"1\"\n\"\" \"2\"\n\"b\xff\" \"3\"\n\"c\" \"4\"\nbroken\n\"d\" \"5\"\n";
        let (list, broken) = UserList::parse_up_to_fault(text);
        assert_eq!((list.len(), list.secret("d")), (2, None));
        assert_eq!(list.secret("c"), Some(&Secret::new("4")));
        let lines: Vec<_> = broken.iter().map(|broken| broken.line).collect();
        assert_eq!(lines, [2, 3, 5]);
    }

    #[test]
    fn the_last_of_duplicates_wins_and_is_reported() {
        let list = parsed("\"a\" \"1\"\n\"b\" \"2\"\n\"a\" \"3\"\n");
        assert_eq!(list.secret("a"), Some(&Secret::new("3")));
        assert_eq!(
            list.duplicates(),
            [DuplicateUser {
                name: "a".into(),
                line: 3
            }]
        );
    }

    #[test]
    fn any_truncation_of_a_line_but_its_ignored_end_is_refused() {
        let line = br#""bo""b" "pw""#;
        for end in 1..line.len() {
            assert!(UserList::parse(&line[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_written_line_is_read_back() {
        for (name, secret) in [
            ("alice", "SCRAM-SHA-256$1:c2FsdA==$a:b"),
            ("a\"b ", "\"\" c"),
        ] {
            let list = UserList::parse(user_line(name, secret).as_bytes()).unwrap();
            assert_eq!(list.secret(name).unwrap().expose(), secret.as_bytes());
        }
    }
}
