//! PostgreSQL's md5 method (protocol section "Authentication", AuthenticationMD5Password).

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The 32 hexadecimal digits that PostgreSQL stores after `md5`: md5(password || user).
pub fn md5_secret(password: &[u8], user: &str) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hex_of_md5(password, user.as_bytes()))
}

/// The answer to a challenge: `md5` and the digits of md5(secret digits || salt).
pub fn md5_response(secret_hex: &[u8], salt: [u8; 4]) -> String {
    let digits = hex_of_md5(secret_hex, &salt);
    let mut response = String::with_capacity(35);
    response.push_str("md5");
    response.extend(digits.iter().map(|&digit| char::from(digit)));
    response
}

/// Whether `answer` is the right response; takes constant time for answers of the right length.
pub fn md5_response_matches(secret_hex: &[u8], salt: [u8; 4], answer: &[u8]) -> bool {
    md5_response(secret_hex, salt)
        .as_bytes()
        .ct_eq(answer)
        .into()
}

fn hex_of_md5(first: &[u8], second: &[u8]) -> [u8; 32] {
    let sum = Md5::new()
        .chain_update(first)
        .chain_update(second)
        .finalize();
    let mut digits = [0; 32];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(sum.iter()) {
        pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
    }
    digits
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 {
        b'0' + nibble
    } else {
        b'a' - 10 + nibble
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Sums computed with Python's hashlib.
    #[test]
    fn known_vectors_hold() {
        assert_eq!(
            &*md5_secret(b"pencil", "user"),
            b"20c46e3762c864548e296b33c3406aa9"
        );
        assert_eq!(
            md5_response(b"20c46e3762c864548e296b33c3406aa9", [1, 2, 3, 4]),
            "md54376eb6913b38f9aaff38dc7cf19ca76"
        );
    }

    #[test]
    fn any_other_answer_is_refused() {
        let secret = md5_secret(b"pencil", "user");
        let right = md5_response(&*secret, [9, 8, 7, 6]);
        assert!(md5_response_matches(
            &*secret,
            [9, 8, 7, 6],
            right.as_bytes()
        ));
        assert!(!md5_response_matches(
            &*secret,
            [9, 8, 7, 7],
            right.as_bytes()
        ));
        for end in 0..right.len() {
            assert!(!md5_response_matches(
                &*secret,
                [9, 8, 7, 6],
                &right.as_bytes()[..end]
            ));
        }
        for at in 0..right.len() {
            let mut wrong = right.clone().into_bytes();
            wrong[at] ^= 1;
            assert!(!md5_response_matches(&*secret, [9, 8, 7, 6], &wrong));
        }
    }
}
