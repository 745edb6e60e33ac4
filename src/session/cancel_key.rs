//! The cancel key that a client gets. It says which shard and which slot the client has, so that
//! a cancel request arriving anywhere finds it, and holds a secret, so that nobody else does.
//!
//! ```text
//! process id (32 bits): 0 | shard (10 bits) | slot + 1 (21 bits)     secret: 4 or 32 random bytes
//! ```
//! The top bit stays clear, and the slot counts from 1, because some tools want a positive process
//! id.

use crate::base::ShardId;
use subtle::ConstantTimeEq;

const SHARD_BITS: u32 = 10;
const SLOT_BITS: u32 = 21;
/// Clients of one shard that can have a key.
pub const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;
const PROCESS_ID_BYTES: usize = 4;
/// Bytes of a key in protocol 3.0.
const SHORT: usize = 8;
/// Bytes of a key from protocol 3.2 on (at most 4 + 256).
const LONG: usize = 36;

const _: () = assert!(crate::base::limit::SHARDS_MAX <= 1 << SHARD_BITS);
const _: () = assert!(SHARD_BITS + SLOT_BITS == 31);

/// A client's cancel key.
#[derive(Clone)]
pub struct CancelKey {
    bytes: [u8; LONG],
    len: usize,
}

impl CancelKey {
    /// The key of the client in `slot` of `shard`; `secret` is fresh randomness. `long` for
    /// protocol 3.2.
    pub fn new(shard: ShardId, slot: usize, long: bool, secret: [u8; 32]) -> CancelKey {
        assert!(slot < SLOTS_MAX, "a client's slot fits its cancel key");
        let process_id = (u32::from(shard.0) << SLOT_BITS) | (slot as u32 + 1);
        let mut bytes = [0; LONG];
        bytes[..PROCESS_ID_BYTES].copy_from_slice(&process_id.to_be_bytes());
        bytes[PROCESS_ID_BYTES..].copy_from_slice(&secret);
        CancelKey {
            bytes,
            len: if long { LONG } else { SHORT },
        }
    }

    /// Process id and secret, as BackendKeyData and CancelRequest carry them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Where a key received in a cancel request points to; it may be anybody's.
    pub fn locate(key: &[u8]) -> Option<(ShardId, usize)> {
        let (process_id, _) = key.split_first_chunk::<PROCESS_ID_BYTES>()?;
        let process_id = u32::from_be_bytes(*process_id);
        if process_id >> (SHARD_BITS + SLOT_BITS) != 0 {
            return None;
        }
        let shard = u16::try_from(process_id >> SLOT_BITS).ok()?;
        let slot = (process_id & ((1 << SLOT_BITS) - 1)).checked_sub(1)?;
        Some((ShardId(shard), slot as usize))
    }

    /// Whether `key` is this key; takes the same time wherever they differ.
    pub fn matches(&self, key: &[u8]) -> bool {
        self.bytes().ct_eq(key).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_locates_its_client_and_matches_only_itself() {
        for (shard, slot) in [(0, 0), (1, 5), (1023, SLOTS_MAX - 1)] {
            for long in [false, true] {
                let key = CancelKey::new(ShardId(shard), slot, long, [7; 32]);
                assert_eq!(CancelKey::locate(key.bytes()), Some((ShardId(shard), slot)));
                assert!(key.matches(key.bytes()));
                let mut other = key.bytes().to_vec();
                *other.last_mut().unwrap() ^= 1;
                assert!(!key.matches(&other));
                assert!(!key.matches(&key.bytes()[..7]));
            }
        }
    }

    #[test]
    fn negative_process_ids_and_short_keys_locate_nobody() {
        assert_eq!(CancelKey::locate(&[0x80, 0, 0, 0, 1, 2, 3, 4]), None);
        assert_eq!(CancelKey::locate(&[1, 2, 3]), None);
    }
}
