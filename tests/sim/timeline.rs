//! Events in the order of their moments; those of one moment in the order in which they were added.

use ringbouncer::base::Moment;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub struct Timeline<E> {
    heap: BinaryHeap<Entry<E>>,
    added: u64,
}

struct Entry<E> {
    place: Reverse<(Moment, u64)>,
    event: E,
}

impl<E> Timeline<E> {
    pub fn new() -> Timeline<E> {
        Timeline {
            heap: BinaryHeap::new(),
            added: 0,
        }
    }

    pub fn add(&mut self, at: Moment, event: E) {
        self.added += 1;
        let place = Reverse((at, self.added));
        self.heap.push(Entry { place, event });
    }

    pub fn next(&mut self) -> Option<(Moment, E)> {
        let Entry { place, event } = self.heap.pop()?;
        Some((place.0.0, event))
    }

    pub fn retain(&mut self, keep: impl Fn(&E) -> bool) {
        self.heap.retain(|entry| keep(&entry.event));
    }

    pub fn next_at(&self) -> Option<Moment> {
        self.heap.peek().map(|entry| entry.place.0.0)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Entry<E>) -> bool {
        self.place == other.place
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Entry<E>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Entry<E>) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}
