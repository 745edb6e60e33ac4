//! Values of parameters in a Bind, of the few types that drivers send: whole numbers, texts and booleans,
//! in both formats. Each becomes the text that would stand in the statement.

use super::error::Refusal;
use super::filter::Parameter;
use crate::wire::Reader;
use crate::wire::backend::oid;

/// `bool`, `name`, `int2`, `unknown`, `bpchar`, `varchar` (PostgreSQL: `pg_type.dat`).
const BOOL: u32 = 16;
const NAME: u32 = 19;
const INT2: u32 = 21;
const UNKNOWN: u32 = 705;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;

/// Reads the formats and values of the parameters of a statement that has `types`.
///
/// # Errors
/// The message is malformed, has another number of parameters, or a value that is none of its type.
pub(super) fn read(reader: &mut Reader<'_>, types: &[u32]) -> Result<Vec<Parameter>, Refusal> {
    let count = reader.u16("count of parameter formats")?;
    let formats: Vec<u16> = (0..count)
        .map(|_| reader.u16("parameter format"))
        .collect::<Result<_, _>>()?;
    let count = usize::from(reader.u16("count of parameters")?);
    let values: Vec<Option<&[u8]>> = (0..count)
        .map(|_| reader.value("parameter"))
        .collect::<Result<_, _>>()?;
    let required = types.len();
    if count != required {
        return Err(Refusal::Parameters { count, required });
    }
    if formats.len() > 1 && formats.len() != count {
        let (formats, columns) = (formats.len(), count);
        return Err(Refusal::FormatCount { formats, columns });
    }
    let format = |at: usize| match formats.as_slice() {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    };
    let values = values.into_iter().zip(types).enumerate();
    let values = values.map(|(at, (value, type_oid))| {
        let Some(bytes) = value else { return Ok(None) };
        let text = text(bytes, format(at), *type_oid)?;
        let bad = Refusal::BadParameter {
            number: at + 1,
            type_oid: *type_oid,
        };
        text.map(Some).ok_or(bad)
    });
    values.collect()
}

fn text(bytes: &[u8], format: u16, type_oid: u32) -> Result<Option<String>, Refusal> {
    let utf8 = || String::from_utf8(bytes.to_vec()).ok();
    Ok(match (format, type_oid) {
        (0, _) | (1, oid::TEXT | NAME | UNKNOWN | BPCHAR | VARCHAR) => utf8(),
        (1, INT2) => bytes
            .try_into()
            .ok()
            .map(i16::from_be_bytes)
            .map(|n| n.to_string()),
        (1, oid::INT4) => bytes
            .try_into()
            .ok()
            .map(i32::from_be_bytes)
            .map(|n| n.to_string()),
        (1, oid::INT8) => bytes
            .try_into()
            .ok()
            .map(i64::from_be_bytes)
            .map(|n| n.to_string()),
        (1, BOOL) => bytes.first().map(|byte| byte.to_string()),
        (1, _) => None,
        (code, _) => return Err(Refusal::FormatCode { code }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    fn bind(formats: &[u16], values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u16(formats.len() as u16);
        formats.iter().for_each(|format| body.put_u16(*format));
        body.put_u16(values.len() as u16);
        for value in values {
            match value {
                None => body.put_i32(-1),
                Some(bytes) => {
                    body.put_u32(bytes.len() as u32);
                    body.put_slice(bytes);
                }
            }
        }
        body
    }

    fn read(body: &[u8], types: &[u32]) -> Result<Vec<Parameter>, Refusal> {
        super::read(&mut Reader::new(body), types)
    }

    #[test]
    fn values_of_either_format_become_text() {
        let some = |text: &str| Some(text.to_owned());
        let body = bind(&[0, 1], &[Some(b"-7"), Some(&(-7i32).to_be_bytes())]);
        assert_eq!(
            read(&body, &[oid::INT4, oid::INT4]),
            Ok(vec![some("-7"), some("-7")])
        );
        let body = bind(
            &[1],
            &[Some(&9i64.to_be_bytes()), Some(&[0, 3]), Some(b"x"), None],
        );
        let types = [oid::INT8, INT2, VARCHAR, oid::TEXT];
        assert_eq!(
            read(&body, &types),
            Ok(vec![some("9"), some("3"), some("x"), None])
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let types = [oid::INT4];
        for (formats, value) in [
            (&[1u16][..], &b"123"[..]),
            (&[1], b"12345"),
            (&[2], b"1"),
            (&[0], b"\xff"),
            (&[0, 0], b"1"),
        ] {
            assert!(
                read(&bind(formats, &[Some(value)]), &types).is_err(),
                "{value:?}"
            );
        }
        let body = bind(&[1], &[Some(b"1234")]);
        assert!(read(&body, &[]).is_err() && read(&body, &[1700]).is_err());
        for cut in 0..body.len() {
            assert!(read(&body[..cut], &types).is_err(), "cut at {cut}");
        }
        assert_eq!(read(&body, &types), Ok(vec![Some(0x3132_3334.to_string())]));
    }
}
