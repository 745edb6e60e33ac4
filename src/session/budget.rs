//! Memory of prepared statements: what all clients of the process may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a client's name or a statement takes besides its bytes, in bytes, roughly.
const OVERHEAD_BYTES: usize = 160;

/// Memory that the prepared statements of all clients may take.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: AtomicU64,
}

impl Budget {
    /// A budget of `bytes_max`.
    pub fn new(bytes_max: u64) -> Budget {
        Budget {
            used: AtomicU64::new(0),
            max: AtomicU64::new(bytes_max),
        }
    }

    /// Sets another bound; what is in use stays.
    pub fn set_max(&self, bytes_max: u64) {
        self.max.store(bytes_max, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn charge(self: &Arc<Budget>, bytes: usize) -> Result<Charge, TooMany> {
        let (charge, used) = self.charge_anyway(bytes);
        let is_within = used <= self.max.load(Ordering::Relaxed);
        // The charge is given back when it is dropped.
        is_within.then_some(charge).ok_or(TooMany)
    }

    /// Charges what cannot be refused; gives the bytes in use with it, too.
    pub(super) fn charge_anyway(self: &Arc<Budget>, bytes: usize) -> (Charge, u64) {
        let bytes = (bytes.saturating_add(OVERHEAD_BYTES)) as u64;
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let charge = Charge {
            budget: self.clone(),
            bytes,
        };
        (charge, before.saturating_add(bytes))
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// Of which budget.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// How much of it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The prepared statements of all clients take more memory than they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prepared statements exceed prepared_statements_bytes_max")]
pub struct TooMany;
