//! The provided-buffer ring: memory that the kernel receives into, lent out as [`Chunk`]s.
//!
//! Invariant: a buffer is either in the ring (the kernel may write) or owned by exactly one
//! `Chunk` or payload (nobody may write).

use super::reactor::Net;
use io_uring::Submitter;
use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU16, Ordering};

pub(super) const GROUP: u16 = 0;
/// Bytes of one entry of the ring (struct io_uring_buf).
const ENTRY_BYTES: usize = 16;

pub(super) struct BufferRing {
    entries: *mut u8,
    memory: *mut u8,
    count: u32,
    buffer_bytes: u32,
    tail: Cell<u16>,
    free: Cell<u32>,
}

impl BufferRing {
    /// Maps and registers `count` buffers (a power of two, at most 32,768) of `buffer_bytes`.
    pub(super) fn new(
        submitter: &Submitter<'_>,
        count: u32,
        buffer_bytes: u32,
    ) -> io::Result<Self> {
        let entries = map(count as usize * ENTRY_BYTES)?;
        let memory = map(count as usize * buffer_bytes as usize)?;
        // SAFETY: `entries` is a page-aligned mapping of the size the kernel expects for `count`
        // entries and is never unmapped.
        unsafe { submitter.register_buf_ring_with_flags(entries as u64, count as u16, GROUP, 0)? };
        let ring = BufferRing {
            entries,
            memory,
            count,
            buffer_bytes,
            tail: Cell::new(0),
            free: Cell::new(0),
        };
        for id in 0..count as u16 {
            ring.give(id);
        }
        Ok(ring)
    }

    pub(super) fn free(&self) -> u32 {
        self.free.get()
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Has the kernel put memory behind every buffer, so that what the ring takes is known. Best effort.
    pub(super) fn populate(&self) {
        let bytes = self.count as usize * self.buffer_bytes as usize;
        // SAFETY: the mapping is of this size; nothing that is in it changes.
        unsafe { libc::madvise(self.memory.cast(), bytes, libc::MADV_POPULATE_WRITE) };
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Gives a buffer to the kernel.
    pub(super) fn give(&self, id: u16) {
        let tail = self.tail.get();
        let index = tail as usize & (self.count as usize - 1);
        self.tail.set(tail.wrapping_add(1));
        self.free.set(self.free.get() + 1);
        // SAFETY: `index` is below `count`, so the entry lies inside the mapping; the kernel reads
        // it only after the release store of the tail, which overlays bytes 14..16 of entry 0 and
        // is the only field written there after set-up.
        unsafe {
            let entry = self.entries.add(index * ENTRY_BYTES);
            entry.cast::<u64>().write(self.at(id) as u64);
            entry.add(8).cast::<u32>().write(self.buffer_bytes);
            entry.add(12).cast::<u16>().write(id);
            (*self.entries.add(14).cast::<AtomicU16>())
                .store(tail.wrapping_add(1), Ordering::Release);
        }
    }

    /// Notes that the kernel has handed buffer `id` over.
    pub(super) fn take(&self) {
        self.free.set(self.free.get() - 1);
    }

    fn at(&self, id: u16) -> *mut u8 {
        debug_assert!((id as u32) < self.count);
        // SAFETY: buffer ids come from the kernel, which was given only ids below `count`.
        unsafe { self.memory.add(id as usize * self.buffer_bytes as usize) }
    }

    /// The bytes of a buffer that the caller owns.
    pub(super) fn bytes(&self, id: u16, start: u32, end: u32) -> &[u8] {
        debug_assert!(start <= end && end <= self.buffer_bytes);
        // SAFETY: the buffer is owned by the caller's Chunk or payload, so the kernel does not
        // write to it, and the range lies inside it.
        unsafe {
            std::slice::from_raw_parts(self.at(id).add(start as usize), (end - start) as usize)
        }
    }
}

impl BufferRing {
    /// The same, to be written to.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn bytes_mut(&self, id: u16, start: u32, end: u32) -> &mut [u8] {
        debug_assert!(start <= end && end <= self.buffer_bytes);
        // SAFETY: as in `bytes`; and the caller owns the buffer alone: it has the `Data` that stands for
        // it by `&mut`, for as long as this slice lives.
        unsafe {
            std::slice::from_raw_parts_mut(self.at(id).add(start as usize), (end - start) as usize)
        }
    }
}

fn map(bytes: usize) -> io::Result<*mut u8> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a fresh anonymous mapping has no other owner.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at.cast())
}

/// Where a chunk's bytes are.
pub(super) enum Data {
    /// A buffer of the ring, relayed without a copy.
    Buffer { id: u16, start: u32, end: u32 },
    /// A copy, made when the ring ran low: otherwise clients that wait for a server could hold
    /// every buffer, and the servers they wait for could receive nothing. Boxed, as every connection has room for a
    /// `Data`.
    Heap(Box<Heap>),
    /// No bytes.
    Nothing,
}

/// Bytes on the heap, from `start` on.
pub(super) struct Heap {
    bytes: Vec<u8>,
    start: usize,
}

impl Data {
    /// The bytes, of which those in a buffer lie in `buffers`.
    pub(super) fn bytes<'a>(&'a self, buffers: &'a BufferRing) -> &'a [u8] {
        match self {
            Data::Buffer { id, start, end } => buffers.bytes(*id, *start, *end),
            Data::Heap(heap) => &heap.bytes[heap.start..],
            Data::Nothing => &[],
        }
    }

    /// The same, to be written to.
    pub(super) fn bytes_mut<'a>(&'a mut self, buffers: &'a BufferRing) -> &'a mut [u8] {
        match self {
            Data::Buffer { id, start, end } => buffers.bytes_mut(*id, *start, *end),
            Data::Heap(heap) => heap.bytes.get_mut(heap.start..).unwrap_or_default(),
            Data::Nothing => &mut [],
        }
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Data {
        Data::Heap(Box::new(Heap { bytes, start: 0 }))
    }
}

/// Received bytes. A buffer of the ring goes back to the kernel when the chunk is dropped, or when
/// it has been sent.
pub struct Chunk {
    pub(super) net: Net,
    pub(super) data: Data,
}

impl Chunk {
    /// Bytes that did not come from a socket.
    pub fn from_vec(net: Net, bytes: Vec<u8>) -> Chunk {
        Chunk {
            net,
            data: bytes.into(),
        }
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        debug_assert!(len <= self.len());
        match &mut self.data {
            Data::Buffer { start, end, .. } => *end = *start + len as u32,
            Data::Heap(heap) => heap.bytes.truncate(heap.start + len),
            Data::Nothing => {}
        }
    }

    /// Drops the first `len` bytes.
    pub fn advance(&mut self, len: usize) {
        debug_assert!(len <= self.len());
        match &mut self.data {
            Data::Buffer { start, .. } => *start += len as u32,
            Data::Heap(heap) => heap.start += len,
            Data::Nothing => {}
        }
    }

    /// Takes the bytes out; the chunk is empty afterwards.
    pub(super) fn take(&mut self) -> Data {
        std::mem::replace(&mut self.data, Data::Nothing)
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.data.bytes(self.net.buffers())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Data::Buffer { id, .. } = self.data {
            self.net.recycle(id);
        }
    }
}
