//! A token that names one thing or, after a slash, many by a regular expression.

use super::fault::RuleFault;
use super::token::Token;
use regex::{Regex, RegexBuilder};

/// Largest compiled expression, in bytes. Matching takes linear time whatever the expression.
const COMPILED_BYTES_MAX: usize = 256 * 1024;

/// A literal or a regular expression.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    Literal(String),
    Regex(Regex),
}

impl Pattern {
    /// What `token` stands for. A slash makes an expression of it in quotes, too (PostgreSQL:
    /// regcomp_auth_token).
    pub(super) fn parse(token: &Token) -> Result<Pattern, RuleFault> {
        match token.text.strip_prefix('/') {
            None => Ok(Pattern::Literal(token.text.clone())),
            Some(expression) => compile(expression).map(Pattern::Regex),
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Pattern::Literal(literal) => literal == text,
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

fn compile(expression: &str) -> Result<Regex, RuleFault> {
    RegexBuilder::new(expression)
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|_| RuleFault::Pattern(expression.to_owned()))
}
