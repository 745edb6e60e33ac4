//! `SHOW ... [WHERE column op value [AND ...]] [LIMIT n]`: which rows of a table are wanted. Pure.
//!
//! A value stands there, or is a parameter (`$1`) that a Bind gives. Comparisons are those of SQL: with a
//! null nothing is true. Texts compare by their bytes.

use super::error::Refusal;
use super::table::{Column, Row, Type, Value};
use crate::wire::backend::oid;
use std::cmp::Ordering;
use std::sync::Arc;

/// Conditions of one statement.
const CONDITIONS_MAX: usize = 16;
/// Highest number of a parameter.
const PARAMETER_MAX: u16 = 32;
/// Numbers are compared in millionths: no table has finer ones.
const DECIMALS: usize = 6;

/// Which rows are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    conditions: Vec<Condition>,
    limit: Option<Operand>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    column: usize,
    kind: Type,
    test: Test,
    operand: Operand,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Test {
    /// Every operator; one that is the beginning of another comes behind it.
    pub(super) const ALL: [(&'static [u8], Test); 7] = [
        (b"<>", Test::NotEqual),
        (b"!=", Test::NotEqual),
        (b"<=", Test::LessOrEqual),
        (b">=", Test::GreaterOrEqual),
        (b"=", Test::Equal),
        (b"<", Test::Less),
        (b">", Test::Greater),
    ];

    fn holds(self, order: Ordering) -> bool {
        match self {
            Test::Equal => order.is_eq(),
            Test::NotEqual => order.is_ne(),
            Test::Less => order.is_lt(),
            Test::LessOrEqual => order.is_le(),
            Test::Greater => order.is_gt(),
            Test::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// What stands on the right of a comparison, or behind LIMIT, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Text(String),
    Parameter(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operand {
    Given(Key),
    Parameter(u16),
}

/// What a value is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Null,
    Text(String),
    /// In millionths.
    Number(i128),
}

/// The value of a parameter; `None` is null.
pub(super) type Parameter = Option<String>;

impl Filter {
    /// Adds a condition on a column of `columns`.
    ///
    /// # Errors
    /// There is no such column, the value is not of its type, or there are too many conditions.
    pub(super) fn add(
        &mut self,
        columns: &[Column],
        (name, test, written): (&str, Test, Written),
    ) -> Result<(), Refusal> {
        let (what, limit) = ("conditions", CONDITIONS_MAX);
        if self.conditions.len() >= limit {
            return Err(Refusal::TooMuch { what, limit });
        }
        let is_it = |column: &Column| column.name.eq_ignore_ascii_case(name);
        let column = columns.iter().position(is_it);
        let column = column.ok_or_else(|| Refusal::NoColumn { name: name.into() })?;
        let kind = columns[column].kind;
        let operand = Operand::read(written, kind)?;
        self.conditions.push(Condition {
            column,
            kind,
            test,
            operand,
        });
        Ok(())
    }

    /// Sets the most rows that are wanted.
    ///
    /// # Errors
    /// It is no whole number, or negative.
    pub(super) fn set_limit(&mut self, written: Written) -> Result<(), Refusal> {
        let operand = Operand::read(written, Type::Int8)?;
        check_limit(&operand)?;
        self.limit = Some(operand);
        Ok(())
    }

    /// The types of its parameters, in their order.
    pub(super) fn parameter_types(&self) -> Vec<u32> {
        let limit = self.limit.iter().map(|operand| (operand, Type::Int8));
        let conditions = self.conditions.iter();
        let conditions = conditions.map(|condition| (&condition.operand, condition.kind));
        let mut types = Vec::new();
        for (operand, kind) in conditions.chain(limit) {
            if let Operand::Parameter(number) = operand {
                let number = usize::from(*number);
                types.resize(types.len().max(number), oid::TEXT);
                types[number - 1] = parameter_type(kind);
            }
        }
        types
    }

    /// The same with values in the place of its parameters, of which there are as many as it has types.
    ///
    /// # Errors
    /// One of them is not of its column's type.
    pub(super) fn bind(&self, values: &[Parameter]) -> Result<Filter, Refusal> {
        let mut bound = self.clone();
        for condition in &mut bound.conditions {
            condition.operand.bind(values, condition.kind)?;
        }
        if let Some(limit) = &mut bound.limit {
            limit.bind(values, Type::Int8)?;
            check_limit(limit)?;
        }
        Ok(bound)
    }

    /// Whether it has no parameters left.
    pub(super) fn is_bound(&self) -> bool {
        let mut operands = self.conditions.iter().map(|condition| &condition.operand);
        let is_given = |operand: &Operand| matches!(operand, Operand::Given(_));
        operands.all(is_given) && self.limit.as_ref().is_none_or(is_given)
    }

    /// Whether a row is wanted.
    pub(super) fn matches(&self, row: &Row) -> bool {
        let mut conditions = self.conditions.iter();
        conditions.all(|condition| condition.holds(row))
    }

    /// The most rows that are wanted.
    pub(super) fn limit(&self) -> usize {
        match &self.limit {
            Some(Operand::Given(Key::Number(number))) => {
                usize::try_from(number / scale()).unwrap_or(usize::MAX)
            }
            _ => usize::MAX,
        }
    }
}

impl Condition {
    fn holds(&self, row: &Row) -> bool {
        let (Operand::Given(key), Some(value)) = (&self.operand, row.get(self.column)) else {
            return false;
        };
        compare(value, key).is_some_and(|order| self.test.holds(order))
    }
}

impl Operand {
    fn read(written: Written, kind: Type) -> Result<Operand, Refusal> {
        match written {
            Written::Text(text) => Key::read(text, kind).map(Operand::Given),
            Written::Parameter(number) if (1..=PARAMETER_MAX).contains(&number) => {
                Ok(Operand::Parameter(number))
            }
            Written::Parameter(number) => Err(Refusal::NoParameter { number }),
        }
    }

    fn bind(&mut self, values: &[Parameter], kind: Type) -> Result<(), Refusal> {
        let Operand::Parameter(number) = *self else {
            return Ok(());
        };
        let value = values.get(usize::from(number) - 1);
        *self = Operand::Given(match value {
            None => return Err(Refusal::NoParameter { number }),
            Some(None) => Key::Null,
            Some(Some(text)) => Key::read(text.clone(), kind)?,
        });
        Ok(())
    }
}

impl Key {
    fn read(text: String, kind: Type) -> Result<Key, Refusal> {
        if matches!(kind, Type::Text | Type::Bytea) {
            return Ok(Key::Text(text));
        }
        let number = millionths(text.trim());
        number.map(Key::Number).ok_or(Refusal::NoNumber { text })
    }
}

fn check_limit(limit: &Operand) -> Result<(), Refusal> {
    match limit {
        Operand::Given(Key::Number(number)) if *number < 0 || number % scale() != 0 => {
            Err(Refusal::BadLimit)
        }
        _ => Ok(()),
    }
}

/// A numeric column's parameter is an int8: its values are whole, but for a few.
const fn parameter_type(kind: Type) -> u32 {
    match kind {
        Type::Int4 => oid::INT4,
        Type::Int8 | Type::Numeric => oid::INT8,
        Type::Text | Type::Bytea => oid::TEXT,
    }
}

const fn scale() -> i128 {
    10i128.pow(DECIMALS as u32)
}

/// A decimal number of at most 18 digits before the point and 6 behind.
fn millionths(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, rest) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = !(whole.is_empty() && rest.is_empty()) && are_digits(whole) && are_digits(rest);
    if !is_number || whole.len() > 18 || rest.len() > DECIMALS {
        return None;
    }
    let number: i128 = format!("{whole}{rest:0<DECIMALS$}").parse().ok()?;
    Some(sign * number)
}

/// `None` if either is null.
fn compare(value: &Value, key: &Key) -> Option<Ordering> {
    let number = match value {
        Value::Null => return None,
        Value::Text(text) => return text_order(text, key),
        Value::Shared(text) => return text_order(text, key),
        Value::Int4(number) => i128::from(*number) * scale(),
        Value::Int8(number) => i128::from(*number) * scale(),
        Value::Numeric(number) => number.scaled(DECIMALS),
    };
    match key {
        Key::Number(key) => Some(number.cmp(key)),
        Key::Null | Key::Text(_) => None,
    }
}

fn text_order(text: &str, key: &Key) -> Option<Ordering> {
    match key {
        Key::Text(key) => Some(text.cmp(key)),
        Key::Null | Key::Number(_) => None,
    }
}

/// Which rows of so many clients or servers are wanted: asked of each shard.
pub struct Pick<R> {
    /// Whether one is.
    pub keep: Arc<dyn Fn(&R) -> bool + Send + Sync>,
    /// The most that are.
    pub limit: usize,
}

impl<R: 'static> Pick<R> {
    /// All of them.
    pub fn all() -> Pick<R> {
        Pick {
            keep: Arc::new(|_| true),
            limit: usize::MAX,
        }
    }

    /// Those whose row in a table `filter` wants.
    pub(super) fn by(filter: Option<&Arc<Filter>>, row: fn(R) -> Row) -> Pick<R>
    where
        R: Clone,
    {
        let Some(filter) = filter.cloned() else {
            return Pick::all();
        };
        Pick {
            limit: filter.limit(),
            keep: Arc::new(move |one| filter.matches(&row(R::clone(one)))),
        }
    }

    /// Those of them for which `also` holds.
    pub(super) fn and(self, also: fn(&R) -> bool) -> Pick<R> {
        let keep = self.keep;
        Pick {
            keep: Arc::new(move |one| also(one) && keep(one)),
            limit: self.limit,
        }
    }
}

impl<R> Clone for Pick<R> {
    fn clone(&self) -> Pick<R> {
        Pick {
            keep: self.keep.clone(),
            limit: self.limit,
        }
    }
}

impl<R> std::fmt::Debug for Pick<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pick of {}", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::text("name"),
        Column::int4("port"),
        Column::numeric("p50_us"),
    ];

    fn filter(conditions: &[(&str, Test, &str)]) -> Filter {
        let mut filter = Filter::default();
        for (name, test, text) in conditions {
            let written = Written::Text((*text).into());
            filter.add(COLUMNS, (name, *test, written)).unwrap();
        }
        filter
    }

    fn row() -> Row {
        vec![
            Value::text("shop"),
            Value::int4(6432),
            Value::thousandths(1_500),
        ]
    }

    #[test]
    fn rows_match_when_every_condition_holds() {
        use Test::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        type Conditions<'a> = &'a [(&'a str, Test, &'a str)];
        let table: &[(Conditions<'_>, bool)] = &[
            (&[], true),
            (&[("name", Equal, "shop")], true),
            (&[("NAME", Equal, "shop")], true),
            (&[("name", NotEqual, "shop")], false),
            (&[("name", Less, "ship")], false),
            (&[("name", Greater, "ship")], true),
            (&[("port", Equal, "6432")], true),
            (&[("port", Less, "10000")], true),
            (&[("port", Greater, "-1")], true),
            (&[("port", LessOrEqual, "6431")], false),
            (&[("p50_us", Equal, "1.5")], true),
            (&[("p50_us", GreaterOrEqual, "1.500001")], false),
            (&[("name", Equal, "shop"), ("port", Equal, "1")], false),
        ];
        for (conditions, matches) in table {
            assert_eq!(
                filter(conditions).matches(&row()),
                *matches,
                "{conditions:?}"
            );
        }
    }

    #[test]
    fn nothing_is_true_of_a_null() {
        let nulls = vec![Value::Null, Value::Null, Value::Null];
        for test in [Test::Equal, Test::NotEqual] {
            assert!(!filter(&[("name", test, "x")]).matches(&nulls));
        }
        let mut unbound = Filter::default();
        let condition = ("port", Test::NotEqual, Written::Parameter(1));
        unbound.add(COLUMNS, condition).unwrap();
        assert!(!unbound.is_bound() && !unbound.matches(&row()));
        let bound = unbound.bind(&[None]).unwrap();
        assert!(bound.is_bound() && !bound.matches(&row()));
        assert!(unbound.bind(&[Some("1".into())]).unwrap().matches(&row()));
    }

    #[test]
    fn what_does_not_fit_the_column_is_refused() {
        let mut filter = Filter::default();
        for text in [
            "",
            "x",
            "1.",
            "1e3",
            "--1",
            "0x10",
            "1.0000001",
            "9999999999999999999",
        ] {
            let written = Written::Text(text.into());
            let added = filter.add(COLUMNS, ("port", Test::Equal, written));
            assert_eq!(added.is_err(), text != "1.", "{text}");
        }
        let column = ("nothing", Test::Equal, Written::Text("1".into()));
        let name = "nothing".to_owned();
        assert_eq!(filter.add(COLUMNS, column), Err(Refusal::NoColumn { name }));
        let zero = ("port", Test::Equal, Written::Parameter(0));
        assert_eq!(
            filter.add(COLUMNS, zero),
            Err(Refusal::NoParameter { number: 0 })
        );
        assert!(filter.set_limit(Written::Text("-1".into())).is_err());
        assert!(filter.set_limit(Written::Text("1.5".into())).is_err());
    }

    #[test]
    fn parameters_have_the_types_of_their_columns() {
        let mut filter = Filter::default();
        let conditions = [("port", 3), ("name", 1)];
        for (name, number) in conditions {
            let condition = (name, Test::Equal, Written::Parameter(number));
            filter.add(COLUMNS, condition).unwrap();
        }
        filter.set_limit(Written::Parameter(4)).unwrap();
        let types = [oid::TEXT, oid::TEXT, oid::INT4, oid::INT8];
        assert_eq!(filter.parameter_types(), types);
        let values = ["shop", "", "6432", "5"].map(|text| Some(text.to_owned()));
        let bound = filter.bind(&values).unwrap();
        assert_eq!((bound.matches(&row()), bound.limit()), (true, 5));
        assert!(filter.bind(&values[..3]).is_err());
        let all = [values[0].clone(), None, values[2].clone(), None];
        assert_eq!(filter.bind(&all).unwrap().limit(), usize::MAX);
    }

    #[test]
    fn conditions_are_bounded() {
        let mut filter = Filter::default();
        let condition = || ("port", Test::Equal, Written::Text("1".into()));
        for _ in 0..CONDITIONS_MAX {
            filter.add(COLUMNS, condition()).unwrap();
        }
        assert!(filter.add(COLUMNS, condition()).is_err());
    }
}
