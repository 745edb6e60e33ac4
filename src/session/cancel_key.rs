//! The cancel key that a client gets. It says which shard and which slot the client has, so that
//! a cancel request arriving anywhere finds it, and holds a secret, so that nobody else does.
//!
//! ```text
//! process id (32 bits): 0 | shard (10 bits) | slot + 1 (21 bits)     secret: 4 or 32 random bytes
//! ```
//! The top bit stays clear, and the slot counts from 1, because some tools want a positive process
//! id.
//!
//! With peers the first eight bytes are laid out as PgBouncer's (1.21 and later), so that either can pass the other's
//! requests on; what PgBouncer leaves to chance says here which shard, and 35 bits stay secret (PostgreSQL's own keys
//! have 32). The shard finds the slot by the whole key.
//! ```text
//! byte 0: 0 | 7 random     bytes 1, 2: peer id, little endian     byte 3: lower 8 bits of the shard
//! byte 4: upper 2 bits of the shard | 6 random     bytes 5, 6: random     byte 7: 6 random | 2 bits of hops left
//! ```

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

/// The bits of byte 7 that count how often a request may still be passed on.
const HOPS_MASK: u8 = 0b11;

/// What finds a client by its key with a peer id: the first eight bytes, less the hops.
pub type Handle = [u8; SHORT];

/// A client's cancel key. Small, as every client keeps its own.
#[derive(Clone)]
pub struct CancelKey {
    bytes: Bytes,
    has_peer: bool,
}

#[derive(Clone)]
enum Bytes {
    Short([u8; SHORT]),
    Long(Box<[u8; LONG]>),
}

impl Bytes {
    fn of(bytes: [u8; LONG], is_long: bool) -> Bytes {
        match bytes.first_chunk() {
            Some(short) if !is_long => Bytes::Short(*short),
            _ => Bytes::Long(Box::new(bytes)),
        }
    }
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
            bytes: Bytes::of(bytes, long),
            has_peer: false,
        }
    }

    /// The key of a client of `shard` in the process that is known as `peer`, which is not 0.
    pub fn with_peer(peer: u16, shard: ShardId, long: bool, secret: [u8; 32]) -> CancelKey {
        let mut bytes = [0; LONG];
        bytes[..secret.len()].copy_from_slice(&secret);
        let [shard_low, shard_high] = shard.0.to_le_bytes();
        bytes[0] &= 0x7f;
        bytes[1..3].copy_from_slice(&peer.to_le_bytes());
        bytes[3] = shard_low;
        bytes[4] = bytes[4] & 0x3f | shard_high << 6;
        bytes[7] |= HOPS_MASK;
        CancelKey {
            bytes: Bytes::of(bytes, long),
            has_peer: true,
        }
    }

    /// What finds the client, if its key names a peer.
    pub fn handle(&self) -> Option<Handle> {
        let address = self.has_peer.then(|| PeerAddress::of(self.bytes()));
        address.flatten().map(|address| address.handle)
    }

    /// Process id and secret, as BackendKeyData and CancelRequest carry them.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Short(short) => short,
            Bytes::Long(long) => &**long,
        }
    }

    /// The shard that its client logged in on.
    pub fn shard(&self) -> Option<ShardId> {
        if self.has_peer {
            return PeerAddress::of(self.bytes()).map(|address| address.shard);
        }
        CancelKey::locate(self.bytes()).map(|(shard, _)| shard)
    }

    /// The key, less what changes while a request is passed on: the same for the whole of its life.
    pub fn name(&self) -> Box<[u8]> {
        if self.has_peer {
            return without_hops(self.bytes());
        }
        self.bytes().into()
    }

    /// The [names](CancelKey::name) that a key received in a cancel request may be meant to have.
    pub fn names_of(key: &[u8]) -> [Box<[u8]>; 2] {
        [key.into(), without_hops(key)]
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
        if !self.has_peer {
            return self.bytes().ct_eq(key).into();
        }
        without_hops(self.bytes()).ct_eq(&without_hops(key)).into()
    }
}

fn without_hops(key: &[u8]) -> Box<[u8]> {
    let mut key: Box<[u8]> = key.into();
    if let Some(byte) = key.get_mut(SHORT - 1) {
        *byte &= !HOPS_MASK;
    }
    key
}

/// Where a key with a peer id points to; it may be anybody's, and any key reads as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The process.
    pub peer: u16,
    /// The shard, if the process is this one.
    pub shard: ShardId,
    /// The client, if the shard is.
    pub handle: Handle,
    /// How often the request may still be passed on.
    pub hops: u8,
}

impl PeerAddress {
    /// Reads the first eight bytes of a key.
    pub fn of(key: &[u8]) -> Option<PeerAddress> {
        let (first, _) = key.split_first_chunk::<SHORT>()?;
        let [_, low, high, shard_low, shard_high, _, _, last] = *first;
        let mut handle = *first;
        handle[SHORT - 1] &= !HOPS_MASK;
        Some(PeerAddress {
            peer: u16::from_le_bytes([low, high]),
            shard: ShardId(u16::from_le_bytes([shard_low, shard_high >> 6])),
            handle,
            hops: last & HOPS_MASK,
        })
    }

    /// `key` as it is passed on, with one hop less; none if it has come far enough.
    pub fn passed_on(key: &[u8]) -> Option<Vec<u8>> {
        let hops_left = PeerAddress::of(key)?.hops.checked_sub(1)?;
        let mut key = key.to_vec();
        let byte = key.get_mut(SHORT - 1)?;
        *byte = *byte & !HOPS_MASK | hops_left;
        Some(key)
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
    fn key_with_peer_is_laid_out_as_pgbouncers() {
        for long in [false, true] {
            let key = CancelKey::with_peer(0x1234, ShardId(0x3a5), long, [0xff; 32]);
            let first: [u8; SHORT] = key.bytes()[..SHORT].try_into().unwrap();
            assert_eq!(first, [0x7f, 0x34, 0x12, 0xa5, 0xff, 0xff, 0xff, 0xff]);
            let address = PeerAddress::of(key.bytes()).unwrap();
            assert_eq!(
                (address.peer, address.shard, address.hops),
                (0x1234, ShardId(0x3a5), 3)
            );
            assert_eq!(key.handle(), Some(address.handle));
        }
        let key = CancelKey::with_peer(1, ShardId(0), false, [0; 32]);
        assert_eq!(key.bytes(), [0, 1, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn name_of_a_key_is_found_in_every_request_for_it() {
        let plain = CancelKey::new(ShardId(3), 9, true, [7; 32]);
        let peered = CancelKey::with_peer(7, ShardId(3), false, [0xa7; 32]);
        let passed = PeerAddress::passed_on(peered.bytes()).unwrap();
        assert!(CancelKey::names_of(plain.bytes()).contains(&plain.name()));
        assert!(CancelKey::names_of(peered.bytes()).contains(&peered.name()));
        assert!(CancelKey::names_of(&passed).contains(&peered.name()));
        assert_eq!(plain.shard(), Some(ShardId(3)));
        assert_eq!(peered.shard(), Some(ShardId(3)));
    }

    #[test]
    fn passed_on_key_still_finds_its_client_and_comes_to_an_end() {
        let key = CancelKey::with_peer(7, ShardId(2), false, [0xa6; 32]);
        let mut passed = key.bytes().to_vec();
        for hops in [2, 1, 0] {
            passed = PeerAddress::passed_on(&passed).unwrap();
            let address = PeerAddress::of(&passed).unwrap();
            assert_eq!((address.hops, Some(address.handle)), (hops, key.handle()));
            assert!(key.matches(&passed));
        }
        assert_eq!(PeerAddress::passed_on(&passed), None);
        passed[5] ^= 1;
        assert!(!key.matches(&passed));
        assert!(!key.matches(&key.bytes()[..7]));
        assert_eq!(PeerAddress::of(&key.bytes()[..7]), None);
    }

    #[test]
    fn negative_process_ids_and_short_keys_locate_nobody() {
        assert_eq!(CancelKey::locate(&[0x80, 0, 0, 0, 1, 2, 3, 4]), None);
        assert_eq!(CancelKey::locate(&[1, 2, 3]), None);
    }
}
