//! The atomics and the queue through which shards meet: the standard library's and crossbeam's. Under
//! the unit tests of feature `loom` they are twins whose interleavings that tool explores.

#[cfg(not(all(test, feature = "loom")))]
pub use crossbeam::queue::ArrayQueue;
pub use std::sync::atomic::Ordering;
#[cfg(not(all(test, feature = "loom")))]
pub use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64};

#[cfg(all(test, feature = "loom"))]
pub use super::explored::{ArrayQueue, AtomicBool, AtomicI32, AtomicU32, AtomicU64};
