//! Atomics and a queue for loom, which runs a test once for every interleaving of its threads and every
//! stale value that C11's memory model lets a load see (up to the bounds it is given).
//!
//! loom takes a SeqCst access for an AcqRel one, which would find failures in the store-buffer pattern
//! that cannot happen. Here a SeqCst load of a word whose last write was SeqCst reads that
//! write, by a read-modify-write that changes nothing; so SeqCst accesses are as if done one after
//! the other, in the order in which loom runs them, and loom runs them in every order. A load
//! is as stale as loom can make it as soon as it, or the write it should see, is weakened in the source.

#![allow(missing_docs)] // The originals have them.

use loom::sync::atomic::fence;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};

/// What loom is told of an access, `rest` if it is SeqCst.
fn without_seq_cst(order: Ordering, rest: Ordering) -> Ordering {
    if order == SeqCst { rest } else { order }
}

macro_rules! explored {
    ($($name:ident of $value:ty),*) => {$(
        #[derive(Debug)]
        pub struct $name {
            word: loom::sync::atomic::$name,
            /// Not seen by loom.
            is_seq_cst: std::sync::atomic::AtomicBool,
        }

        impl Default for $name {
            fn default() -> $name {
                $name::new(Default::default())
            }
        }

        impl $name {
            pub fn new(value: $value) -> $name {
                $name {
                    word: loom::sync::atomic::$name::new(value),
                    is_seq_cst: std::sync::atomic::AtomicBool::new(true),
                }
            }

            pub fn load(&self, order: Ordering) -> $value {
                if order == SeqCst && self.is_seq_cst.load(Relaxed) {
                    self.word.fetch_or(Default::default(), Acquire)
                } else {
                    self.word.load(without_seq_cst(order, Acquire))
                }
            }

            pub fn store(&self, value: $value, order: Ordering) {
                // loom does not know that a store cannot come between a read-modify-write and what
                // it read, and would let an overwritten claim come back: hence a swap here.
                self.word.swap(value, without_seq_cst(order, Release));
                self.wrote(order);
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                let old = self.word.swap(value, without_seq_cst(order, AcqRel));
                self.wrote(order);
                old
            }

            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let on_success = without_seq_cst(success, AcqRel);
                let on_failure = without_seq_cst(failure, Acquire);
                let old = self.word.compare_exchange(current, new, on_success, on_failure)?;
                self.wrote(success);
                Ok(old)
            }

            pub fn fetch_update(
                &self,
                set_order: Ordering,
                fetch_order: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut old = self.load(fetch_order);
                while let Some(new) = change(old) {
                    match self.compare_exchange(old, new, set_order, fetch_order) {
                        Err(moved) => old = moved,
                        exchanged => return exchanged,
                    }
                }
                Err(old)
            }

            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                let old = self.word.fetch_or(value, without_seq_cst(order, AcqRel));
                self.wrote(order);
                old
            }

            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                let old = self.word.fetch_and(value, without_seq_cst(order, AcqRel));
                self.wrote(order);
                old
            }

            fn wrote(&self, order: Ordering) {
                self.is_seq_cst.store(order == SeqCst, Relaxed);
            }
        }
    )*};
}

explored!(AtomicBool of bool, AtomicI32 of i32, AtomicU32 of u32, AtomicU64 of u64);

/// The twin's room: so little that it can be full within a test.
pub const QUEUE_MAX: usize = 2;

/// crossbeam's `ArrayQueue` (0.3), step by step with its orderings, but for the packing of lap and
/// index into one word.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    head: AtomicU64,
    tail: AtomicU64,
    slots: Vec<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    /// The position that may be written here; one more once it has been, and can be read.
    stamp: AtomicU64,
    /// A mutex only because the crate denies unsafe code: loom does not see it, nobody waits for it.
    value: Mutex<Option<T>>,
}

impl<T> ArrayQueue<T> {
    pub fn new(_room: usize) -> ArrayQueue<T> {
        let slot = |at| Slot {
            stamp: AtomicU64::new(at),
            value: Mutex::new(None),
        };
        ArrayQueue {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            slots: (0..QUEUE_MAX as u64).map(slot).collect(),
        }
    }

    pub fn push(&self, value: T) -> Result<(), T> {
        let mut tail = self.tail.load(Relaxed);
        loop {
            let slot = self.slot(tail);
            let stamp = slot.stamp.load(Acquire);
            if stamp == tail {
                match self.tail.compare_exchange(tail, tail + 1, SeqCst, Relaxed) {
                    Ok(_) => {
                        *slot.value.lock().unwrap() = Some(value);
                        slot.stamp.store(tail + 1, Release);
                        return Ok(());
                    }
                    Err(moved) => tail = moved,
                }
            } else {
                if stamp + QUEUE_MAX as u64 == tail + 1 {
                    fence(SeqCst);
                    if self.head.load(Relaxed) + QUEUE_MAX as u64 == tail {
                        return Err(value);
                    }
                }
                loom::thread::yield_now();
                tail = self.tail.load(Relaxed);
            }
        }
    }

    pub fn pop(&self) -> Option<T> {
        let mut head = self.head.load(Relaxed);
        loop {
            let slot = self.slot(head);
            let stamp = slot.stamp.load(Acquire);
            if stamp == head + 1 {
                match self.head.compare_exchange(head, head + 1, SeqCst, Relaxed) {
                    Ok(_) => {
                        let value = slot.value.lock().unwrap().take();
                        slot.stamp.store(head + QUEUE_MAX as u64, Release);
                        return value;
                    }
                    Err(moved) => head = moved,
                }
            } else {
                if stamp == head {
                    fence(SeqCst);
                    if self.tail.load(Relaxed) == head {
                        return None;
                    }
                }
                loom::thread::yield_now();
                head = self.head.load(Relaxed);
            }
        }
    }

    pub fn len(&self) -> usize {
        (self.tail.load(SeqCst) - self.head.load(SeqCst)) as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&self, position: u64) -> &Slot<T> {
        &self.slots[position as usize % QUEUE_MAX]
    }
}
