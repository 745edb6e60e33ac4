//! Lines, fields and tokens, cut as PostgreSQL cuts them (`next_token` of hba.c): fields stand apart
//! by blanks, a field is a list of tokens with commas, a token may have quotes, `""` inside quotes is
//! a quote, `#` begins a comment, a backslash at the end of a line joins the next.

use super::fault::RuleFault;

/// Longest line, continuation included, in bytes: far above any rule.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    /// Whether it begins with a quote: then it is never a keyword.
    pub(super) is_quoted: bool,
}

impl Token {
    /// Whether it is the keyword `word`.
    pub(super) fn is_keyword(&self, word: &str) -> bool {
        !self.is_quoted && self.text == word
    }

    /// What follows `mark`, if the token is not quoted and begins with it.
    pub(super) fn marked(&self, mark: char) -> Option<&str> {
        (!self.is_quoted)
            .then(|| self.text.strip_prefix(mark))
            .flatten()
    }
}

/// The tokens of one field.
pub(super) type Field = Vec<Token>;

/// The lines of a file with their numbers (that of the first of joined lines), comments included.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    let mut numbered = (1..).zip(text.split(|byte| *byte == b'\n'));
    std::iter::from_fn(move || {
        let (number, first) = numbered.next()?;
        let mut line = without_return(first).to_vec();
        while line.last() == Some(&b'\\') {
            line.pop();
            match numbered.next() {
                Some((_, next)) => line.extend_from_slice(without_return(next)),
                None => break,
            }
        }
        Some((number, line))
    })
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The fields of one line; none for a blank line or a comment.
pub(super) fn fields(line: &[u8]) -> Result<Vec<Field>, RuleFault> {
    if line.len() > LINE_BYTES_MAX {
        return Err(RuleFault::TooLong);
    }
    let text = str::from_utf8(line).map_err(|_| RuleFault::NotUtf8)?;
    if text.contains('\0') {
        return Err(RuleFault::ZeroByte);
    }
    let mut cutter = Cutter {
        rest: text.chars().peekable(),
    };
    let mut fields = Vec::new();
    while let Some(field) = cutter.field()? {
        fields.push(field);
    }
    Ok(fields)
}

struct Cutter<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
}

impl Cutter<'_> {
    /// The next list of tokens, if there is one. A comma at the very end of a line is tolerated.
    fn field(&mut self) -> Result<Option<Field>, RuleFault> {
        let mut field = Vec::new();
        loop {
            let Some((token, has_comma)) = self.token()? else {
                return Ok((!field.is_empty()).then_some(field));
            };
            field.extend(token);
            if !has_comma {
                return Ok(Some(field));
            }
        }
    }

    /// The next token, which may be empty between two commas, and whether a comma follows.
    fn token(&mut self) -> Result<Option<(Option<Token>, bool)>, RuleFault> {
        while self.rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let mut text = String::new();
        let is_quoted = self.rest.peek() == Some(&'"');
        let mut in_quotes = false;
        let mut begun = false;
        while let Some(&letter) = self.rest.peek() {
            match letter {
                '#' if !in_quotes => {
                    self.rest.by_ref().for_each(drop);
                    break;
                }
                ',' if !in_quotes => {
                    self.rest.next();
                    let token = begun.then_some(Token { text, is_quoted });
                    return Ok(Some((token, true)));
                }
                _ if !in_quotes && letter.is_ascii_whitespace() => break,
                _ => {
                    self.rest.next();
                    begun = true;
                    match letter {
                        '"' if in_quotes && self.rest.next_if_eq(&'"').is_some() => text.push('"'),
                        '"' => in_quotes = !in_quotes,
                        _ => text.push(letter),
                    }
                }
            }
        }
        match (in_quotes, begun) {
            (true, _) => Err(RuleFault::Unclosed),
            (false, true) => Ok(Some((Some(Token { text, is_quoted }), false))),
            (false, false) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(line: &str) -> Vec<Vec<String>> {
        let fields = fields(line.as_bytes()).unwrap();
        let mark = |token: &Token| {
            if token.is_quoted {
                format!("'{}'", token.text)
            } else {
                token.text.clone()
            }
        };
        fields
            .iter()
            .map(|field| field.iter().map(mark).collect())
            .collect()
    }

    #[test]
    fn fields_are_cut_as_postgresql_cuts_them() {
        let cases: [(&str, &[&[&str]]); 13] = [
            ("", &[]),
            ("  # all", &[]),
            ("a b\tc", &[&["a"], &["b"], &["c"]]),
            ("a,b c", &[&["a", "b"], &["c"]]),
            ("a, b c", &[&["a", "b"], &["c"]]),
            ("a ,b c", &[&["a"], &["b"], &["c"]]),
            ("a,,b", &[&["a", "b"]]),
            ("a,", &[&["a"]]),
            ("\"a b\" c#d", &[&["'a b'"], &["c"]]),
            ("\"a\"\"b\"", &[&["'a\"b'"]]),
            ("a\"b c\"d", &[&["ab cd"]]),
            ("\"#\" x", &[&["'#'"], &["x"]]),
            ("\"\" x", &[&["''"], &["x"]]),
        ];
        for (line, want) in cases {
            assert_eq!(cut(line), want, "{line}");
        }
    }

    #[test]
    fn open_quotes_and_odd_bytes_are_faults() {
        assert_eq!(fields(b"a \"b"), Err(RuleFault::Unclosed));
        assert_eq!(fields(b"a \xff"), Err(RuleFault::NotUtf8));
        assert_eq!(fields(b"a \0"), Err(RuleFault::ZeroByte));
        assert_eq!(fields(&[b'a'; 70_000]), Err(RuleFault::TooLong));
    }

    #[test]
    fn backslash_joins_lines_and_numbers_stay_true() {
        let text = b"one\r\ntwo \\\nthree\n\nfour\\";
        let got: Vec<_> = lines(text).collect();
        let want: [(usize, &[u8]); 4] = [(1, b"one"), (2, b"two three"), (4, b""), (5, b"four")];
        assert_eq!(got, want.map(|(n, line)| (n, line.to_vec())));
    }
}
