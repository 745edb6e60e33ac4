//! The process's memory: how much there is of it, how much there may be, and giving back what is not used.
//!
//! The budget (`memory_max`) is one of the whole process, whichever thread or shard asks:
//! ```text
//!   0 ───────────── 3/4 ─────────────── 7/8 ──────────────── 1 ──► memory_max
//!      Ample             Tight                Full                Spent
//! ```
//! What each of these means is for those to say who take memory for somebody; nothing here ever refuses an allocation.
#![allow(unsafe_code)]

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Bytes by which a thread's heap may have grown, or shrunk, without [`HEAP`] knowing.
const UNTOLD_MAX: i64 = 64 * 1024;

/// The part of the budget by which the heap may change before memory is measured anew: for a block of 50 KB the allocator may
/// take twice as much, and what has been freed it keeps for a while.
const STEP: u64 = 128;

/// Bytes that all threads have allocated, less those that they have freed.
static HEAP: AtomicI64 = AtomicI64::new(0);
/// What was resident beyond those bytes when it was last measured: code, stacks, receive buffers, what the allocator keeps.
static BEYOND: AtomicI64 = AtomicI64::new(0);
/// What [`HEAP`] was then.
static MEASURED_AT: AtomicI64 = AtomicI64::new(0);
/// `memory_max` in bytes; 0 is none.
static MAX: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// What this thread has not told [`HEAP`] yet. Without a destructor, so that it may be used until the thread's end.
    static UNTOLD: Cell<i64> = const { Cell::new(0) };
}

/// The allocator of the program: mimalloc, and a count of the bytes that it has given out.
#[derive(Clone, Copy, Debug)]
pub struct Counted;

// SAFETY: every call goes to mimalloc unchanged.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes as i64 - layout.size() as i64);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { MiMalloc.realloc(at, layout, bytes) }
    }
}

#[inline]
fn note(growth: i64) {
    let untold = UNTOLD.get() + growth;
    let is_much = untold.abs() > UNTOLD_MAX;
    UNTOLD.set(if is_much { 0 } else { untold });
    if is_much {
        HEAP.fetch_add(untold, Relaxed);
    }
}

/// How near the process is to its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// There is no budget, or a quarter of it is left.
    Ample,
    /// Three quarters are used: nobody is read ahead any more.
    Tight,
    /// Seven eighths are used: the rest is for those who are there already.
    Full,
    /// All of it is used.
    Spent,
}

impl Pressure {
    /// With `used` bytes of `max`; 0 is no budget.
    fn at(used: u64, max: u64) -> Pressure {
        match max {
            0 => Pressure::Ample,
            _ if used >= max => Pressure::Spent,
            _ if used >= max - max / 8 => Pressure::Full,
            _ if used >= max - max / 4 => Pressure::Tight,
            _ => Pressure::Ample,
        }
    }
}

/// Sets the budget, in bytes; 0 is none.
pub fn set_max(bytes: u64) {
    MAX.store(bytes, Relaxed);
}

/// The budget in bytes; 0 is none.
pub fn max() -> u64 {
    MAX.load(Relaxed)
}

/// Bytes of memory that the process has: what was resident when [`measure`] was called last, and the growth of the heap since.
/// Late by up to 64 KiB for each thread that allocates.
pub fn used() -> u64 {
    let used = HEAP.load(Relaxed) + BEYOND.load(Relaxed);
    u64::try_from(used).unwrap_or(0)
}

/// How near the process is to its budget. A few loads, and a measurement when the heap has changed by a [`STEP`] of the budget.
pub fn pressure() -> Pressure {
    pressure_with(0)
}

/// Whether `bytes` more leave what is kept for those who are there already.
pub fn has_room_for(bytes: usize) -> bool {
    pressure_with(bytes as u64) < Pressure::Full
}

fn pressure_with(more: u64) -> Pressure {
    let max = max();
    if max == 0 {
        return Pressure::Ample;
    }
    let change = HEAP.load(Relaxed) - MEASURED_AT.load(Relaxed);
    if change.unsigned_abs() > max / STEP {
        measure();
    }
    Pressure::at(used().saturating_add(more), max)
}

/// Measures what the process has in memory (resident set, proc(5)). Takes some 10 microseconds.
pub fn measure() {
    if let Some(bytes) = resident() {
        let heap = HEAP.load(Relaxed);
        BEYOND.store(bytes - heap, Relaxed);
        MEASURED_AT.store(heap, Relaxed);
    }
}

fn resident() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as i64)
}

/// Gives memory that the calling thread has freed back to the kernel, once it has lain unused for a second
/// (mimalloc's purge delay). mimalloc looks for such memory only when it is asked for some, so an idle process kept
/// what the logins of its clients had left: 1,139 bytes per idle client with this and without huge pages, 1,423 to 1,563
/// before (15,000 held). Takes microseconds when nothing is
/// due, and what madvise(2) takes for a part of the process's memory when something is; does nothing in a process with another allocator.
pub fn give_back() {
    // SAFETY: any thread may ask for it at any time.
    unsafe { libmimalloc_sys::mi_collect(false) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_has_three_steps() {
        let steps = [
            (0, Pressure::Ample),
            (74, Pressure::Ample),
            (75, Pressure::Tight),
            (87, Pressure::Tight),
            (88, Pressure::Full),
            (99, Pressure::Full),
            (100, Pressure::Spent),
            (u64::MAX, Pressure::Spent),
        ];
        for (used, pressure) in steps {
            assert_eq!(Pressure::at(used, 100), pressure, "{used} of 100");
        }
        assert_eq!(Pressure::at(u64::MAX, 0), Pressure::Ample);
    }

    #[test]
    fn what_is_allocated_is_counted_until_it_is_freed() {
        let layout = Layout::from_size_align(1 << 20, 16).unwrap();
        let counted = || HEAP.load(Relaxed) + UNTOLD.get();
        let before = counted();
        // SAFETY: the layout is not empty; the block is freed with the layout that it has by then.
        unsafe {
            let at = Counted.realloc(Counted.alloc(layout), layout, 3 << 20);
            assert_eq!(counted() - before, 3 << 20);
            Counted.dealloc(at, Layout::from_size_align(3 << 20, 16).unwrap());
        }
        assert_eq!(counted(), before);
    }

    #[test]
    fn resident_memory_is_measured() {
        assert!(resident().unwrap() > 1 << 20);
    }
}
