//! One line of the file, and one connection string, in PgBouncer's grammar.

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'t> {
    /// Nothing: blank, or a comment.
    Blank,
    /// `[section]`; what stands behind it counts as a line of its own.
    Section(&'t str, &'t str),
    /// `%include FILE`.
    Include(&'t str),
    /// `key = value`.
    Setting(&'t str, &'t str),
}

/// What C's isspace takes for a blank.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0b' | '\x0c')
}

fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '*')
}

/// Reads one line. A comment begins with `;` or `#` at its start, never later.
///
/// # Errors
/// Says what is wrong with it.
pub(super) fn line(written: &str) -> Result<Line<'_>, &'static str> {
    let written = written.trim_matches(is_blank);
    if written.is_empty() || written.starts_with([';', '#']) {
        return Ok(Line::Blank);
    }
    if let Some(rest) = written.strip_prefix('[') {
        let section = rest.split_once(']').ok_or("the section has no ]")?;
        return Ok(Line::Section(section.0, section.1));
    }
    if let Some(file) = written.strip_prefix("%include") {
        let file = file.strip_prefix(is_blank).unwrap_or_default();
        return some(file.trim_start_matches(is_blank))
            .map(Line::Include)
            .ok_or("%include needs a blank and a file");
    }
    setting(written)
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn setting(written: &str) -> Result<Line<'_>, &'static str> {
    let (key, rest) = match written.strip_prefix('\'') {
        Some(quoted) => quoted
            .split_once('\'')
            .ok_or("the name has no closing quote")?,
        None => {
            let end = written.find(|c| !is_key(c)).unwrap_or(written.len());
            written.split_at(end)
        }
    };
    let value = rest.trim_start_matches(is_blank).strip_prefix('=');
    let value = value.ok_or("a line is [section], key = value, or a comment")?;
    Ok(Line::Setting(key, value.trim_start_matches(is_blank)))
}

/// Reads `key=value key='value with ''quotes'''`. Only spaces separate; blanks round `=` are free.
///
/// # Errors
/// Says what is wrong with it.
pub(super) fn pairs(written: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut found = Vec::new();
    let mut rest = written.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let end = rest.find(|c| !is_key(c)).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        let behind = behind.trim_start_matches(is_blank).strip_prefix('=');
        let behind = behind.ok_or("what stands there is not key=value")?;
        let (value, behind) = value(behind.trim_start_matches(is_blank))?;
        if value.is_empty() {
            return Err("a value is empty");
        }
        found.push((key.to_owned(), value));
        rest = behind.trim_start_matches(is_blank);
    }
    Ok(found)
}

/// One value, and what stands behind it.
fn value(written: &str) -> Result<(String, &str), &'static str> {
    let Some(mut rest) = written.strip_prefix('\'') else {
        let end = written.find(' ').unwrap_or(written.len());
        let (value, behind) = written.split_at(end);
        return Ok((value.to_owned(), behind));
    };
    let mut value = String::new();
    loop {
        let (part, behind) = rest.split_once('\'').ok_or("a quote is not closed")?;
        value.push_str(part);
        match behind.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return Ok((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Each case was tried with PgBouncer 1.18, but for quoted names, which came later.

    #[test]
    fn lines_of_every_sort_are_told_apart() {
        let cases = [
            ("", Line::Blank),
            ("  \t\r", Line::Blank),
            ("; pool_mode = session", Line::Blank),
            ("\t# comment", Line::Blank),
            ("[databases]", Line::Section("databases", "")),
            ("  [users] ; c", Line::Section("users", " ; c")),
            ("%include /etc/a b.ini", Line::Include("/etc/a b.ini")),
            ("pool_mode=session", Line::Setting("pool_mode", "session")),
            (
                " a.b-c*d \t=  host=h port=5 \r",
                Line::Setting("a.b-c*d", "host=h port=5"),
            ),
            ("x = 100 ; c", Line::Setting("x", "100 ; c")),
            ("'my db' = host=h", Line::Setting("my db", "host=h")),
            ("* =", Line::Setting("*", "")),
            ("= x", Line::Setting("", "x")),
        ];
        for (written, expected) in cases {
            assert_eq!(line(written), Ok(expected), "{written:?}");
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let wrong = [
            "justakey",
            "[pgbouncer",
            "two words = 1",
            "\"x\" = host=h",
            "'my''db' = host=h",
            "'open = 1",
            "%includex",
            "%include",
            "é = 1",
        ];
        for written in wrong {
            assert!(line(written).is_err(), "{written:?}");
        }
    }

    #[test]
    fn connection_strings_keep_quotes_and_blanks() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let cases = [
            ("", vec![]),
            ("host=h", vec![pair("host", "h")]),
            (
                "host = h  port =5",
                vec![pair("host", "h"), pair("port", "5")],
            ),
            ("host='a''b c'", vec![pair("host", "a'b c")]),
            ("host=h\tport=5", vec![pair("host", "h\tport=5")]),
            ("host='h'port=5", vec![pair("host", "h"), pair("port", "5")]),
            ("password=a'b", vec![pair("password", "a'b")]),
            ("x=a=b", vec![pair("x", "a=b")]),
        ];
        for (written, expected) in cases {
            assert_eq!(pairs(written), Ok(expected), "{written:?}");
        }
    }

    #[test]
    fn broken_connection_strings_are_refused() {
        for written in [
            "host=",
            "host='' port=3",
            "host",
            "host=h ; x=1",
            ";",
            "# c",
            "host='open",
            "host='open''",
        ] {
            assert!(pairs(written).is_err(), "{written:?}");
        }
    }

    #[test]
    fn no_text_panics() {
        let text = "[a] 'k' = 'v''w' %include ;\u{e9}\0=*\t";
        for (from, _) in text.char_indices() {
            for (to, _) in text.char_indices().filter(|(to, _)| *to >= from) {
                let _ = (line(&text[from..to]), pairs(&text[from..to]));
            }
        }
    }
}
