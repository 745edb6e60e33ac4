//! Checks that every view's tests share.

use super::WireError;
use std::fmt::Debug;

/// The body of the one message in `out`, whose tag and length word are checked.
pub fn body_of(out: &[u8], tag: u8) -> &[u8] {
    assert_eq!(out[0], tag, "tag");
    let length = u32::from_be_bytes(out[1..5].try_into().unwrap());
    assert_eq!(length as usize + 1, out.len(), "length word");
    &out[5..]
}

/// What `build` appends to an empty buffer.
pub fn built(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

/// Asserts that `read` takes `body`, but neither a part of it nor a byte more.
pub fn only_the_whole_is_read<T: Debug>(body: &[u8], read: impl Fn(&[u8]) -> Result<T, WireError>) {
    read(body).expect("the whole body");
    for cut in 0..body.len() {
        let part = read(&body[..cut]);
        assert!(part.is_err(), "cut at {cut}: {part:?}");
    }
    let longer = [body, b"\0"].concat();
    let surplus = read(&longer);
    assert!(surplus.is_err(), "a byte more: {surplus:?}");
}
