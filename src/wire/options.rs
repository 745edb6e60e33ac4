//! The `options` start-up parameter: settings in the notation of a server command line.

use super::WireError;

/// The settings in `options`, in order; a name may come twice, and then the last one counts.
///
/// Understood are `-c name=value`, `-cname=value` and `--name=value`, separated by white space; a
/// backslash takes the next character literally. Dashes in a name become underscores, as on
/// PostgreSQL's command line.
///
/// # Errors
/// [`WireError::UnsupportedOptions`] for every other switch, a setting without `=`, an empty name.
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>, WireError> {
    let mut words = Words { rest: options };
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let long = word.strip_prefix("--");
        let setting = match long.or_else(|| word.strip_prefix("-c")) {
            Some("") if long.is_none() => &words.next().ok_or(WireError::UnsupportedOptions)?,
            Some(setting) => setting,
            None => return Err(WireError::UnsupportedOptions),
        };
        settings.push(split_setting(setting)?);
    }
    Ok(settings)
}

fn split_setting(setting: &str) -> Result<(String, String), WireError> {
    match setting.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.replace('-', "_"), value.to_owned())),
        _ => Err(WireError::UnsupportedOptions),
    }
}

/// Words between unescaped white space, backslashes removed (PostgreSQL: `pg_split_opts`).
struct Words<'a> {
    rest: &'a str,
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start_matches(is_space);
        let mut characters = self.rest.chars();
        let mut word = String::new();
        if self.rest.is_empty() {
            return None;
        }
        loop {
            self.rest = characters.as_str();
            match characters.next() {
                Some('\\') => word.extend(characters.next()),
                Some(character) if !is_space(character) => word.push(character),
                _ => return Some(word),
            }
        }
    }
}

/// White space in the sense of C's `isspace`, which includes the vertical tab.
const fn is_space(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\x0b'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Vec<(String, String)> {
        parse_options(options).unwrap()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn three_notations_are_understood() {
        let options = "-c geqo=off -cwork_mem=64MB\t--search-path=a,b ";
        let expected = [
            ("geqo", "off"),
            ("work_mem", "64MB"),
            ("search_path", "a,b"),
        ];
        assert_eq!(parsed(options), pairs(&expected));
    }

    #[test]
    fn backslash_takes_the_next_character_literally() {
        let options = r"-c a=x\ y -c b=\\ -c c=\-\=";
        assert_eq!(
            parsed(options),
            pairs(&[("a", "x y"), ("b", "\\"), ("c", "-=")])
        );
    }

    #[test]
    fn value_may_be_empty_and_may_hold_equal_signs() {
        assert_eq!(parsed("-ca= --b=c=d"), pairs(&[("a", ""), ("b", "c=d")]));
    }

    #[test]
    fn order_and_repetition_are_kept() {
        assert_eq!(parsed("--a=1 --a=2"), pairs(&[("a", "1"), ("a", "2")]));
    }

    #[test]
    fn nothing_but_space_is_no_setting() {
        assert_eq!(parsed(""), []);
        assert_eq!(parsed(" \t\x0b\n"), []);
    }

    #[test]
    fn other_switches_are_refused() {
        for options in [
            "-c",
            "-c ",
            "-c a",
            "--",
            "--a",
            "-ca",
            "-c =b",
            "--=b",
            "-d 5",
            "a=b",
            "-",
            "-C a=b",
            "--a=b stray",
            "\\",
            "-c a=b \\",
        ] {
            let refused = Err(WireError::UnsupportedOptions);
            assert_eq!(parse_options(options), refused, "{options:?}");
        }
    }

    #[test]
    fn escaped_settings_come_back_whatever_they_hold() {
        let value = "\\ \t\n-c x=y ü\u{10ffff}";
        let escaped: String = value.chars().flat_map(|c| ['\\', c]).collect();
        assert_eq!(parsed(&format!("-c a={escaped}")), pairs(&[("a", value)]));
    }
}
