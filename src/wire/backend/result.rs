//! Borrowed views of result sets: what the pooler's own queries (auth_query) return.

use crate::wire::{Reader, WireError};

/// DataRow: one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRow<'a> {
    /// Length words and values, checked by `read`.
    values: &'a [u8],
}

impl<'a> DataRow<'a> {
    /// Views `body`. Fails unless it is exactly one DataRow.
    pub fn read(body: &'a [u8]) -> Result<DataRow<'a>, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u16("count of values")?;
        let values = reader.rest();
        for _ in 0..count {
            reader.value("value in DataRow")?;
        }
        reader.must_be_empty("DataRow")?;
        Ok(DataRow { values })
    }

    /// The row's values, `None` for null.
    pub fn iter(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut reader = Reader::new(self.values);
        std::iter::from_fn(move || reader.value("value in DataRow").ok())
    }
}

/// RowDescription: the columns of the rows that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDescription<'a> {
    /// Column descriptions, checked by `read`.
    columns: &'a [u8],
}

/// One column of a [`RowDescription`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnDescription<'a> {
    /// Its name, in the client's encoding.
    pub name: &'a [u8],
    /// Object id of its table, 0 if it comes from none.
    pub table_oid: u32,
    /// Its number in that table, 0 if it comes from none.
    pub attribute: i16,
    /// Object id of its type.
    pub type_oid: u32,
    /// Bytes of a value of its type, negative if they vary.
    pub type_bytes: i16,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
    /// 0: text, 1: binary.
    pub format: i16,
}

impl<'a> RowDescription<'a> {
    /// Views `body`. Fails unless it is exactly one RowDescription.
    pub fn read(body: &'a [u8]) -> Result<RowDescription<'a>, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u16("count of columns")?;
        let columns = reader.rest();
        for _ in 0..count {
            ColumnDescription::take(&mut reader)?;
        }
        reader.must_be_empty("RowDescription")?;
        Ok(RowDescription { columns })
    }

    /// The columns in order.
    pub fn iter(&self) -> impl Iterator<Item = ColumnDescription<'a>> + use<'a> {
        let mut reader = Reader::new(self.columns);
        std::iter::from_fn(move || ColumnDescription::take(&mut reader).ok())
    }
}

impl<'a> ColumnDescription<'a> {
    fn take(reader: &mut Reader<'a>) -> Result<ColumnDescription<'a>, WireError> {
        Ok(ColumnDescription {
            name: reader.cstr("column name")?,
            table_oid: reader.u32("column table")?,
            attribute: reader.i16("column number")?,
            type_oid: reader.u32("column type")?,
            type_bytes: reader.i16("column type length")?,
            type_modifier: reader.i32("column type modifier")?,
            format: reader.i16("column format")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::only_the_whole_is_read;

    #[test]
    fn row_is_read_whole_or_not_at_all() {
        let body = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";
        let row = DataRow::read(body).unwrap();
        assert!(row.iter().eq([Some(&b"ab"[..]), None, Some(&b""[..])]));
        only_the_whole_is_read(body, |body| DataRow::read(body).map(|_| ()));
        only_the_whole_is_read(b"\0\0", |body| DataRow::read(body).map(|_| ()));
    }

    #[test]
    fn row_with_a_wrong_count_is_refused() {
        for count in [0_u16, 1, 3, 0x8000, 0xffff] {
            let values = b"\0\0\0\x01a\xff\xff\xff\xff";
            let body = [&count.to_be_bytes()[..], values].concat();
            assert!(DataRow::read(&body).is_err(), "{count}");
        }
    }

    #[test]
    fn row_with_a_lying_value_length_is_refused() {
        for length in [0, 2, 4, -1, -2, i32::MAX, i32::MIN] {
            let body = [b"\0\x01", &length.to_be_bytes()[..], b"abc"].concat();
            assert!(DataRow::read(&body).is_err(), "{length}");
        }
    }

    #[test]
    fn columns_are_read_whole_or_not_at_all() {
        let body = b"\0\x01name\0\0\0\0\x07\0\x02\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let expected = ColumnDescription {
            name: b"name",
            table_oid: 7,
            attribute: 2,
            type_oid: 25,
            type_bytes: -1,
            type_modifier: -1,
            format: 0,
        };
        assert!(RowDescription::read(body).unwrap().iter().eq([expected]));
        only_the_whole_is_read(body, |body| RowDescription::read(body).map(|_| ()));
    }

    #[test]
    fn row_description_with_a_wrong_count_is_refused() {
        for count in [0_u16, 2, 0x8000, 0xffff] {
            let body = [&count.to_be_bytes()[..], b"name\0", &[0; 18]].concat();
            assert!(RowDescription::read(&body).is_err(), "{count}");
        }
    }
}
