//! Tables as data: columns with types, values, and both of PostgreSQL's formats of a value.

use crate::wire::backend::oid;
use crate::wire::tag::backend as tag;
use crate::wire::{message, put_cstr};
use bytes::BufMut;
use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `text`.
    Text,
    /// `int4`.
    Int4,
    /// `int8`.
    Int8,
    /// `numeric`.
    Numeric,
    /// `bytea`; there are no values of it but null.
    Bytea,
}

impl Type {
    /// Object id, and bytes of a binary value, -1 if they vary (PostgreSQL: `pg_type.dat`).
    const fn on_the_wire(self) -> (u32, i16) {
        match self {
            Type::Text => (oid::TEXT, -1),
            Type::Int4 => (oid::INT4, 4),
            Type::Int8 => (oid::INT8, 8),
            Type::Numeric => (oid::NUMERIC, -1),
            Type::Bytea => (oid::BYTEA, -1),
        }
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
}

impl Column {
    pub(super) const fn text(name: &'static str) -> Column {
        let kind = Type::Text;
        Column { name, kind }
    }

    pub(super) const fn int4(name: &'static str) -> Column {
        let kind = Type::Int4;
        Column { name, kind }
    }

    pub(super) const fn int8(name: &'static str) -> Column {
        let kind = Type::Int8;
        Column { name, kind }
    }

    pub(super) const fn bytea(name: &'static str) -> Column {
        let kind = Type::Bytea;
        Column { name, kind }
    }

    pub(super) const fn numeric(name: &'static str) -> Column {
        let kind = Type::Numeric;
        Column { name, kind }
    }
}

/// One value; a row has one for each column, of that column's type or null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(Cow<'static, str>),
    /// Text that somebody else holds, too.
    Shared(Arc<str>),
    Int4(i32),
    Int8(i64),
    Numeric(Decimal),
}

/// The values of one row.
pub(super) type Row = Vec<Value>;

/// Rows that are made when they are asked for: a table of 100,000 clients is never text as a
/// whole.
pub(super) type Rows = Box<dyn Iterator<Item = Row>>;

impl Value {
    pub(super) fn text(text: impl Into<Cow<'static, str>>) -> Value {
        Value::Text(text.into())
    }

    /// An `int4`; what does not fit is the largest there is.
    pub(super) fn int4(number: impl TryInto<i32>) -> Value {
        Value::Int4(number.try_into().unwrap_or(i32::MAX))
    }

    /// An `int8`; what does not fit is the largest there is.
    pub(super) fn int8(number: u64) -> Value {
        Value::Int8(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// A whole `numeric`.
    pub(super) const fn numeric(number: u64) -> Value {
        Value::Numeric(Decimal {
            unscaled: number,
            decimals: 0,
        })
    }

    /// A `numeric` of so many thousandths.
    pub(super) const fn thousandths(number: u64) -> Value {
        Value::Numeric(Decimal {
            unscaled: number,
            decimals: 3,
        })
    }

    /// The number; none of null and of text.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Value::Null | Value::Text(_) | Value::Shared(_) => None,
            Value::Int4(number) => Some(f64::from(*number)),
            Value::Int8(number) => Some(*number as f64),
            Value::Numeric(number) => Some(number.to_f64()),
        }
    }

    fn put(&self, out: &mut Vec<u8>, format: Format) {
        let start = out.len();
        match self {
            Value::Null => return out.put_i32(-1),
            _ => out.put_i32(0),
        }
        match (self, format) {
            (Value::Int4(number), Format::Binary) => out.put_i32(*number),
            (Value::Int8(number), Format::Binary) => out.put_i64(*number),
            (Value::Numeric(number), Format::Binary) => number.put_binary(out),
            _ => self.put_text(out),
        }
        let length = out.len() - start - 4;
        let word = i32::try_from(length).expect("the console's own values are short");
        out[start..start + 4].copy_from_slice(&word.to_be_bytes());
    }

    fn put_text(&self, out: &mut Vec<u8>) {
        write!(out, "{self}").expect("a Vec takes everything");
    }
}

/// PostgreSQL's text format; null is empty.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => Ok(()),
            Value::Text(text) => f.write_str(text),
            Value::Shared(text) => f.write_str(text),
            Value::Int4(number) => number.fmt(f),
            Value::Int8(number) => number.fmt(f),
            Value::Numeric(number) => number.fmt(f),
        }
    }
}

/// `unscaled` / 10^`decimals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    unscaled: u64,
    decimals: u8,
}

impl Decimal {
    /// The number times 10^`decimals`, which is at least its own.
    pub(super) const fn scaled(self, decimals: usize) -> i128 {
        let more = (decimals as u32).saturating_sub(self.decimals as u32);
        self.unscaled as i128 * 10i128.pow(more)
    }

    fn to_f64(self) -> f64 {
        self.unscaled as f64 / 10f64.powi(i32::from(self.decimals))
    }

    /// Appends PostgreSQL's binary numeric (numeric.c, `numeric_send`): count of base-10000
    /// digits, weight of the first, sign (0 is positive), decimals to show, the digits without
    /// leading and trailing zeros.
    fn put_binary(self, out: &mut Vec<u8>) {
        let padding = (4 - self.decimals % 4) % 4;
        let mut left = u128::from(self.unscaled) * 10u128.pow(u32::from(padding));
        let mut weight = -i16::from((self.decimals + padding) / 4);
        let mut digits: Vec<u16> = Vec::new();
        while left > 0 {
            let digit = (left % 10_000) as u16;
            left /= 10_000;
            weight += 1;
            if digit > 0 || !digits.is_empty() {
                digits.push(digit);
            }
        }
        let is_zero = digits.is_empty();
        out.put_u16(digits.len() as u16);
        out.put_i16(if is_zero { 0 } else { weight - 1 });
        out.put_u16(0);
        out.put_u16(u16::from(self.decimals));
        digits.iter().rev().for_each(|digit| out.put_u16(*digit));
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10u64.pow(u32::from(self.decimals));
        let (whole, rest) = (self.unscaled / unit, self.unscaled % unit);
        match usize::from(self.decimals) {
            0 => write!(f, "{whole}"),
            width => write!(f, "{whole}.{rest:0width$}"),
        }
    }
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// How the values of each column are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Formats {
    Alike(Format),
    Each(Vec<Format>),
}

impl Formats {
    pub(super) const TEXT: Formats = Formats::Alike(Format::Text);

    fn of(&self, column: usize) -> Format {
        match self {
            Formats::Alike(format) => *format,
            Formats::Each(formats) => formats.get(column).copied().unwrap_or(Format::Text),
        }
    }
}

/// Appends RowDescription.
pub(super) fn row_description(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    message(out, tag::ROW_DESCRIPTION, |body| {
        put_count(body, columns.len());
        for (index, column) in columns.iter().enumerate() {
            let (type_oid, type_bytes) = column.kind.on_the_wire();
            put_cstr(body, column.name);
            body.put_u32(0); // No table,
            body.put_i16(0); // so no column number.
            body.put_u32(type_oid);
            body.put_i16(type_bytes);
            body.put_i32(-1); // No type modifier.
            body.put_i16(match formats.of(index) {
                Format::Text => 0,
                Format::Binary => 1,
            });
        }
    });
}

/// Appends DataRow.
pub(super) fn data_row(out: &mut Vec<u8>, row: &[Value], formats: &Formats) {
    message(out, tag::DATA_ROW, |body| {
        put_count(body, row.len());
        for (index, value) in row.iter().enumerate() {
            value.put(body, formats.of(index));
        }
    });
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u16(u16::try_from(count).expect("the console's own tables are narrow"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{DataRow, RowDescription};

    fn binary(unscaled: u64, decimals: u8) -> Vec<u16> {
        let mut out = Vec::new();
        Decimal { unscaled, decimals }.put_binary(&mut out);
        let words = out.chunks(2);
        words
            .map(|word| u16::from_be_bytes([word[0], word[1]]))
            .collect()
    }

    #[test]
    fn binary_numerics_are_postgresqls() {
        // Count, weight, sign, decimals, digits: `select numeric_send(...)` of a server.
        let table: &[(u64, u8, &[u16])] = &[
            (0, 0, &[0, 0, 0, 0]),
            (7, 0, &[1, 0, 0, 0, 7]),
            (10_000, 0, &[1, 1, 0, 0, 1]),
            (10_001, 0, &[2, 1, 0, 0, 1, 1]),
            (1_234_567_890, 0, &[3, 2, 0, 0, 12, 3456, 7890]),
            (u64::MAX, 0, &[5, 4, 0, 0, 1844, 6744, 737, 955, 1615]),
            (0, 3, &[0, 0, 0, 3]),
            (1, 3, &[1, 0xffff, 0, 3, 10]),
            (1_000, 3, &[1, 0, 0, 3, 1]),
            (12_345_678, 3, &[3, 1, 0, 3, 1, 2345, 6780]),
        ];
        for (unscaled, decimals, words) in table {
            assert_eq!(
                binary(*unscaled, *decimals),
                *words,
                "{unscaled}e-{decimals}"
            );
        }
    }

    #[test]
    fn decimals_are_padded_in_text() {
        for (unscaled, decimals, text) in [
            (0, 0, "0"),
            (42, 0, "42"),
            (0, 3, "0.000"),
            (7, 3, "0.007"),
            (12_345, 3, "12.345"),
        ] {
            assert_eq!(Decimal { unscaled, decimals }.to_string(), text);
        }
    }

    fn row() -> Row {
        vec![
            Value::Null,
            Value::text("a"),
            Value::Shared("b".into()),
            Value::int4(-5i32),
            Value::int8(6),
            Value::numeric(7),
        ]
    }

    fn values(formats: &Formats) -> Vec<Option<Vec<u8>>> {
        let mut out = Vec::new();
        data_row(&mut out, &row(), formats);
        let read = DataRow::read(&out[5..]).unwrap();
        read.iter().map(|value| value.map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn rows_are_written_in_both_formats() {
        let text = ["a", "b", "-5", "6", "7"].map(|text| Some(text.as_bytes().to_vec()));
        let values_as_text = values(&Formats::TEXT);
        assert_eq!(values_as_text[0], None);
        assert_eq!(values_as_text[1..], text);
        let in_binary = values(&Formats::Alike(Format::Binary));
        assert_eq!(in_binary[1], Some(b"a".to_vec()));
        assert_eq!(in_binary[3], Some((-5i32).to_be_bytes().to_vec()));
        assert_eq!(in_binary[4], Some(6i64.to_be_bytes().to_vec()));
        assert_eq!(in_binary[5].as_ref().map(Vec::len), Some(10));
    }

    #[test]
    fn each_column_has_the_format_it_was_given() {
        let formats = Formats::Each(vec![
            Format::Text,
            Format::Text,
            Format::Text,
            Format::Binary,
            Format::Text,
        ]);
        let mixed = values(&formats);
        assert_eq!(mixed[3], Some((-5i32).to_be_bytes().to_vec()));
        assert_eq!(mixed[4], Some(b"6".to_vec()));
        let columns = [
            Column::int4("n"),
            Column::numeric("m"),
            Column::text("t"),
            Column::int8("q"),
        ];
        let mut out = Vec::new();
        row_description(&mut out, &columns, &formats);
        let read = RowDescription::read(&out[5..]).unwrap();
        let seen: Vec<_> = read
            .iter()
            .map(|c| (c.name, c.type_oid, c.type_bytes, c.format))
            .collect();
        let expected: [(&[u8], _, _, _); 4] = [
            (b"n", 23, 4, 0),
            (b"m", 1700, -1, 0),
            (b"t", 25, -1, 0),
            (b"q", 20, 8, 1),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn numbers_that_do_not_fit_are_the_largest() {
        assert_eq!(Value::int4(u64::MAX), Value::Int4(i32::MAX));
        assert_eq!(Value::int8(u64::MAX), Value::Int8(i64::MAX));
    }
}
